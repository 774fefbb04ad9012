(ns ^:no-doc bpfmap.nrepl.bounded-print
  "An nREPL middleware: results come bounded, so that a map of a million entries does not fill the
  editor.

  Only the printing of a result is bounded. What the code itself prints or writes is not, since a
  file that `spit` wrote would then lack what is behind the bound, and nothing would say so.

  | bound           | unless asked for otherwise | who asks for otherwise                                      |
  |-----------------|----------------------------|-------------------------------------------------------------|
  | `*print-length*`| 100 elements               | `(set! *print-length* 1000)` in the session                 |
  | `*print-level*` | 12 levels                  | `(set! *print-level* 20)` in the session                    |
  | the quota       | 100,000 characters         | the client, with `nrepl.middleware.print/quota`             |

  A client that names a printer of its own, as editors do, gets that one, within the same bounds."
  (:require [nrepl.middleware :as middleware]
            [nrepl.middleware.print :as print]))

(set! *warn-on-reflection* true)

(def ^:const default-length "Elements of a collection that are printed." 100)
(def ^:const default-level "Levels of collections within one another that are printed." 12)
(def ^:const default-quota "Characters of a result that are sent." 100000)

(defn- printer
  "The function of a printer that a client has named; nil for one that cannot be found, and for
  none."
  [sym]
  (when sym
    (try
      (requiring-resolve (symbol sym))
      (catch Exception _ nil))))

(defn print-bounded
  "Prints a value as the client asked for, or else as the session does, within the bounds. What
  nREPL calls a print function.

      (print-bounded (range) *out* nil)"
  [value writer {:keys [print options]}]
  (binding [*print-length* (or *print-length* default-length)
            *print-level* (or *print-level* default-level)]
    (if-let [f (printer print)]
      (f value writer options)
      (print/*print-fn* value writer))))

(defn- bounded
  "A request with the bounds put into it. A printer that cannot be found is left for nREPL to
  complain of."
  [{::print/keys [print options quota] :as msg}]
  (cond-> msg
    (or (nil? print) (printer print))
    (assoc ::print/print `print-bounded, ::print/options {:print print :options options})
    (nil? quota)
    (assoc ::print/quota default-quota)))

(defn wrap-bounds
  "The middleware: bounds what `eval` and `load-file` print of their results.

      (nrepl.server/default-handler #'wrap-bounds)"
  [handler]
  (fn [{:keys [op] :as msg}]
    (handler (if (#{"eval" "load-file"} op) (bounded msg) msg))))

(middleware/set-descriptor! #'wrap-bounds {:requires #{}
                                           :expects #{#'print/wrap-print}
                                           :handles {}})
