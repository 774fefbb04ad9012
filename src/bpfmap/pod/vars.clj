(ns ^:no-doc bpfmap.pod.vars
  "Lists the namespaces and vars that a pod offers, with the function of each var.

  The functions are the public API. Macros, callbacks and tag readers run in the client: their code
  is in resources/bpfmap/pod/client.clj."
  (:require [bpfmap.core]
            [bpfmap.error :as error]
            [bpfmap.events :as events]
            [bpfmap.exec]
            [bpfmap.feature]
            [bpfmap.host]
            [bpfmap.link]
            [bpfmap.pod.change-events :as change-events]
            [bpfmap.pod.handles :as handles]
            [bpfmap.pod.subscription :as subscription]
            [bpfmap.prog]
            [bpfmap.type]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (clojure.lang LineNumberingPushbackReader)
           (java.io StringReader)))

(set! *warn-on-reflection* true)

;; --- namespaces and vars

(def namespaces
  "The namespaces of a pod: names at the client and functions of this library."
  '[{:name pod.bpfmap.core :of bpfmap.core
     :vars [create open clone info spec freeze! pin! move-pin! unpin! pinned-path pinned-at?
            pinned-paths
            lookup has-key? put! insert! replace! delete! take! next-key push! pop! peek
            might-contain?
            put-all! delete-all! lookup-all entries snapshot count-entries drain!
            spec-diff compatible? ->bytes]}
    {:name pod.bpfmap.host :of bpfmap.host
     :vars [maps pressure local-storage programs links attachments pins holders programs-using]}
    {:name pod.bpfmap.feature :of bpfmap.feature
     :vars [map-type map-flag operation element-flag conditional-write program-type helper report
            possible-cpus]}
    {:name pod.bpfmap.prog :of bpfmap.prog
     :vars [load open info pin! instructions machine-code test-run attach-raw-tracepoint]}
    {:name pod.bpfmap.link :of bpfmap.link
     :vars [probes target attach open info attached update! detach! pin!]}
    {:name pod.bpfmap.events :of bpfmap.events
     :vars [reader peek poll! flush! pause! resume! stats writer send!]}
    {:name pod.bpfmap.type :of bpfmap.type
     :vars [check problem size align offsets summary]}
    {:name pod.bpfmap.exec :of bpfmap.exec
     :vars [overview list show tree holds features types dump get watch top tail diff hist put
            delete take clear create pin unpin freeze save restore demo inspect run prog-list
            prog-show prog-dump prog-top link-list link-show link-detach]}])

(def left-out
  "The public vars that a pod does not offer, with the reason."
  '{bpfmap.core {drain-into! "functions do not reach another process; drain! returns all entries"
                 memory "shared memory does not reach another process as EDN"}
    bpfmap.host {kernel-btf "a BTF object has megabytes, and is not data"
                 module-btf "as kernel-btf"
                 btf-by-id "as kernel-btf"
                 load-btf "as kernel-btf"
                 explore "its data contains functions"}
    bpfmap.feature {unsupported "for errors, whose hints have it"}
    bpfmap.events {raw-length "an event in place does not reach another process"
                   raw-byte "as raw-length"
                   raw-short "as raw-length"
                   raw-int "as raw-length"
                   raw-long "as raw-length"
                   raw-copy! "as raw-length"
                   reserve "memory does not reach another process; send! sends a whole record"
                   commit! "as reserve"
                   discard! "as reserve"}
    bpfmap.prog {types "a table, not a function", attach-types "a table, not a function"
                 enable-statistics! "exec/prog-top has the rates of all programs"}
    bpfmap.link {targets "a table, not a function"
                 link? "a handle is not an open link; its tag says what it is"
                 lines "a reducible does not reach another process"
                 records "as lines"
                 close "pod.bpfmap.core/close closes all objects"}
    bpfmap.type {scalars "a table, not a function", ->generator "a generator is not data"}
    bpfmap.exec {define-commands "a macro, for namespaces of the library's own"}})

(defn- close
  "Closes anything that has a handle, and returns nil.

  Closing it twice has no effect."
  [{:keys [table]} x]
  (cond
    (nil? x) nil ; it was closed before
    (handles/openable? x) (handles/close table x)
    :else (throw (error/error :invalid-value (str "The argument must be a handle, got " (error/printed x))
                              {:bpfmap/op :close
                               :bpfmap/hint "pass a result of create, open, load or watch"}))))

(defn refuse-number
  "Throws `:invalid-value` for a descriptor of the client, given by its number."
  [number op]
  (throw (error/error :invalid-value (str "A pod cannot open {:fd " number "}")
                      {:bpfmap/op op
                       :bpfmap/hint (str "a descriptor's number means nothing in the pod's process"
                                         (when-not (= :open op)
                                           "; use {:pid p :fd n} with the process id of its owner"))})))

(defn- watch-start
  "Starts a watch for `watch` and returns its handle."
  [_ m options]
  (change-events/start m options))

(defn- watch-events
  "Sends the events of a watch until it ends."
  [{:keys [table emit]} w]
  (when-not (change-events/watch? w)
    (throw (error/error :invalid-value (str "The argument must be a watch, got " (error/printed w))
                        {:bpfmap/op :watch})))
  (try
    (change-events/run w emit)
    (finally (handles/close table w))))

(defn- drain-events
  "Returns the events that are there now, without waiting, as a vector."
  [_ reader]
  (let [found (volatile! [])]
    (events/drain! reader #(vswap! found conj %))
    @found))

(defn- subscribe-start
  "Starts a subscription for `subscribe` and returns its handle."
  [_ reader]
  (subscription/start reader))

(defn- check-subscription [x]
  (when-not (subscription/subscription? x)
    (throw (error/error :invalid-value (str "The argument must be a subscription, got "
                                            (error/printed x))
                        {:bpfmap/op :subscribe}))))

(defn- subscribe-events
  "Sends the events of a subscription until it ends."
  [{:keys [table emit]} x]
  (check-subscription x)
  (try
    (subscription/run x emit)
    (finally (handles/close table x))))

(defn- subscribe-more
  "Allows n more events to a subscription."
  [_ x n]
  (when (some? x) ; it was closed before
    (check-subscription x)
    (when-not (and (int? n) (<= 0 (long n) 0xffff))
      (throw (error/error :invalid-value (str "A number of events must be from 0 to 65535, got "
                                              (error/printed n))
                          {:bpfmap/op :subscribe})))
    (subscription/allow x n)))

(defn- not-here
  "Throws `:not-supported` for a feature that requires the caller's own process."
  [command what hint]
  (throw (error/error :not-supported (str "A pod has no " what)
                      {:bpfmap/op (keyword command) :bpfmap/hint hint})))

(defn- checked-options
  "Returns the options of a command.

  Throws if the pod does not support one."
  [command options]
  (when (map? options)
    (when (:stream options)
      (not-here command "option :stream"
                (str "leave it out; exec/" command
                     " returns all rows, and :where and :limit keep them few")))
    (when (:print options)
      (not-here command "option :print"
                (str "print what exec/" command
                     " returns, such as with clojure.pprint/print-table"))))
  options)

(defn- watch-refused
  "Throws `:not-supported` for a command that returns a reducible.

  A reducible cannot be sent to another process. `pod.bpfmap.core/watch` calls a function with the
  changes of a map instead."
  [& _]
  (not-here "watch" "exec/watch"
            "use pod.bpfmap.core/watch, which calls a function with what changes in an open map"))

(defn- tail-refused
  "Throws `:not-supported` for a command that returns a reducible.

  `pod.bpfmap.events/subscribe` calls a function with the events of a map instead."
  [& _]
  (not-here "tail" "exec/tail"
            "use pod.bpfmap.events/subscribe, which calls a function with each event of a reader"))

(defn- collected
  "Calls a command that returns a reducible; returns all of its elements.

  Throws `:not-supported` without `:seconds` or another option that ends it."
  [sym options]
  (when-not (and (map? options) (some options [:seconds :rounds :once]))
    (not-here (name sym) (str "exec/" (name sym) " without :seconds")
              (str "set :seconds; exec/" (name sym) " then returns all rows as a vector")))
  (into [] ((ns-resolve 'bpfmap.exec sym) (checked-options (name sym) options))))

(def ^:private own-commands
  "The functions of `bpfmap.exec`, with their options checked."
  (into {'watch {:call watch-refused :arglists '([options]) :doc (:doc (meta #'watch-refused))}
         'tail {:call tail-refused :arglists '([options]) :doc (:doc (meta #'tail-refused))}
         'top {:call (fn [_ options] (collected 'top options))}
         'prog-top {:call (fn [_ options] (collected 'prog-top options))}
         'run {:call (fn [_ options] (collected 'run options))}}
        (for [{:keys [of vars]} namespaces, sym vars
              :when (and (= 'bpfmap.exec of) (not (#{'watch 'tail 'top 'prog-top 'run} sym)))]
          [sym
           {:call (fn [_ options]
                    ((ns-resolve 'bpfmap.exec sym) (checked-options (name sym) options)))}])))

(def ^:private own
  "Functions for a pod that replace functions of the library.

  The first argument is the pod's part of the call: its `:table` of handles, and `:emit`, which
  sends a value before the last one."
  {'pod.bpfmap.core {'close {:call close :closed-is-nil true :arglists '([x])
                             :doc (:doc (meta #'close))}
                     'watch-start {:call watch-start :arglists '([m options])
                                   :doc (:doc (meta #'watch-start))}
                     'watch-events {:call watch-events :arglists '([watch])
                                    :doc (:doc (meta #'watch-events)) :streams true}}
   'pod.bpfmap.events {'drain! {:call drain-events :arglists '([reader])
                                :doc (:doc (meta #'drain-events))}
                       'subscribe-start {:call subscribe-start :arglists '([reader])
                                         :doc (:doc (meta #'subscribe-start))}
                       'subscribe-events {:call subscribe-events :arglists '([subscription])
                                          :doc (:doc (meta #'subscribe-events)) :streams true}
                       'subscribe-more {:call subscribe-more :arglists '([subscription n])
                                        :closed-is-nil true
                                        :doc (:doc (meta #'subscribe-more))}}
   'pod.bpfmap.exec own-commands})

(defn- of-library [ns-name var-name]
  (let [v (ns-resolve ns-name var-name)]
    (merge {:call (fn [_ & args] (apply @v args))}
           (select-keys (meta v) [:arglists :doc]))))

(def ^:private offered
  "The vars that the pod offers, by namespace."
  (into (array-map)
        (for [{:keys [name of vars]} namespaces]
          [name (merge-with merge
                            (into {} (map (juxt identity #(of-library of %))) vars)
                            (own name))])))

(defn function
  "Returns the function of a var: `{:call :streams :closed-is-nil}`.

  Throws `:not-found` for an unknown var.

      ((:call (function \"pod.bpfmap.core/put!\")) pod m 7 42)"
  [full-name]
  (let [sym (symbol full-name)]
    (or (get-in offered [(some-> (namespace sym) symbol) (symbol (name sym))])
        (throw (error/error :not-found (str "The pod has no var " (error/shown full-name))
                            {:bpfmap/hint "the answer to describe lists its vars"})))))

;; --- description

(defn- forms
  "Returns the forms of a file, each with its text."
  [text]
  (let [reader (LineNumberingPushbackReader. (StringReader. text))]
    (binding [*read-eval* false]
      (vec (take-while #(not= ::end (first %))
                       (repeatedly #(read+string {:eof ::end} reader)))))))

(def ^:private client-code
  "The vars that the client defines itself, by namespace, in order.

  Each is `{\"name\" \"code\"}`."
  (delay
    (reduce (fn [found [[what var-name] text]]
              (if (= 'ns what)
                (assoc found ::last var-name)
                (update found (::last found) (fnil conj [])
                        {"name" (str var-name) "code" (str/trim text)})))
            {} (forms (slurp (io/resource "bpfmap/pod/client.clj"))))))

(defn- described [[var-name {:keys [arglists doc] streams? :streams}]]
  (cond-> {"name" (str var-name)
           "meta" (pr-str {:arglists arglists :doc doc})}
    streams? (assoc "async" "true")))

(defn description
  "Returns the answer to `describe`."
  []
  {"format" "edn"
   "ops" {"shutdown" {}}
   "readers" (into {} (map (fn [tag] [(str tag) (str "pod.bpfmap.core/read-" (name tag))]))
                   (cons 'bpfmap/bytes handles/tags))
   "namespaces" (for [[ns-name vars] offered]
                  {"name" (str ns-name)
                   "vars" (concat (map described (sort-by key vars)) (@client-code ns-name))})})
