(ns ^:no-doc bpfmap.nrepl.bounded-print
  "Bounds the results that nREPL prints, so that a map of a million entries does not fill the
  editor.

  Only results are bounded. Output of the code itself is not: otherwise `spit` could write an
  incomplete file without notice.

  | bound           | default                    | how to change it                                            |
  |-----------------|----------------------------|-------------------------------------------------------------|
  | `*print-length*`| 100 elements               | `(set! *print-length* 1000)` in the session                 |
  | `*print-level*` | 12 levels                  | `(set! *print-level* 20)` in the session                    |
  | the quota       | 100,000 characters         | the client, with `nrepl.middleware.print/quota`             |

  If a client names its own printer, as editors do, it is used within the same bounds."
  (:require [nrepl.middleware :as middleware]
            [nrepl.middleware.print :as print]))

(set! *warn-on-reflection* true)

(def ^:const default-length "The number of printed elements of a collection." 100)
(def ^:const default-level "The number of printed levels of nested collections." 12)
(def ^:const default-quota "The number of characters of a result that are sent." 100000)

(defn- printer
  "Returns the function of a printer that a client names, or nil."
  [sym]
  (when sym
    (try
      (requiring-resolve (symbol sym))
      (catch Exception _ nil))))

(defn print-bounded
  "Prints a value within the bounds, with the printer of the client or session.

  It is a print function of nREPL.

      (print-bounded (range) *out* nil)"
  [value writer {:keys [print options]}]
  (binding [*print-length* (or *print-length* default-length)
            *print-level* (or *print-level* default-level)]
    (if-let [f (printer print)]
      (f value writer options)
      (print/*print-fn* value writer))))

(defn- bounded
  "Returns a request with the bounds.

  nREPL reports a printer that cannot be found."
  [{::print/keys [print options quota] :as msg}]
  (cond-> msg
    (or (nil? print) (printer print))
    (assoc ::print/print `print-bounded, ::print/options {:print print :options options})
    (nil? quota)
    (assoc ::print/quota default-quota)))

(defn wrap-bounds
  "Wraps a handler so that results of `eval` and `load-file` are bounded.

      (nrepl.server/default-handler #'wrap-bounds)"
  [handler]
  (fn [{:keys [op] :as msg}]
    (handler (if (#{"eval" "load-file"} op) (bounded msg) msg))))

(middleware/set-descriptor! #'wrap-bounds {:requires #{}
                                           :expects #{#'print/wrap-print}
                                           :handles {}})
