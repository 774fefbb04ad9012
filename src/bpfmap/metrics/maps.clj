(ns ^:no-doc bpfmap.metrics.maps
  "Follows the maps of a config, and reads each once for all of its metrics.

  A map is open only while it is read, so that nothing is kept alive. It is found again by its id
  as long as it exists. A map given by its pin path is the one that is pinned there now; one that
  was given by name and is gone is looked up by name again."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec.input :as input]
            [bpfmap.host :as host]
            [bpfmap.impl.display.host :as display.host]
            [bpfmap.impl.host.local-storage :as local-storage]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.metrics.metric :as metric])
  (:import (clojure.lang ExceptionInfo)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

;; --- finding maps

(defn ref-text
  "Returns a reference as the config has it, for the label `map`.

      (ref-text {:path \"/sys/fs/bpf/flows\"}) ;=> \"/sys/fs/bpf/flows\""
  [ref]
  (if (bpf/bpf-map? ref)
    (let [{:keys [id name]} (bpf-map/identity-of ref)]
      (if (seq name) name (str id)))
    (str (first (vals ref)))))

(defn- open-again
  "Opens the map of a source again; `known` is its id at the last reading, or nil."
  ^Closeable [{:keys [ref types]} known]
  (let [open #(input/open (assoc types :ref %) :read-only)]
    (if (and known (map? ref) (:name ref)) ; an open map has a lookup of its own
      (try
        (open {:id known})
        (catch ExceptionInfo e
          (if (= :not-found (:bpfmap/error (ex-data e)))
            (open ref)
            (throw e))))
      (open ref))))

;; --- types

(defn iterated?
  "Returns true for a map type whose entries only an iterator lists.

      (iterated? :task-storage) ;=> true"
  [type]
  (contains? #{:task-storage :cgrp-storage :sk-storage} type))

(defn context-of
  "Returns what compiling the metrics of an open map needs.

  It has the spec, the decoder of keys, and the resolvers of hints."
  [m]
  (let [{:keys [type] :as spec} (bpf/spec m)
        iterated (iterated? type)
        _ (when-not iterated (input/check-dumpable m {}))
        possible (input/cpus-of m)
        {:keys [key-out]} (when-not iterated (raw-entries/types spec (count possible)))
        btf (delay (try
                     (some-> (:btf-id (bpf/info m)) host/btf-by-id)
                     (catch ExceptionInfo _ nil)))]
    {:spec spec
     :possible possible
     :check-cpu #(input/check % possible)
     :picker #(input/picker % possible)
     :iterated iterated
     :key-out (or key-out identity)
     :host (display.host/resolvers)
     :types (:types spec)
     :enum-in (fn [name] (some-> (force btf) (display.host/enum-in name)))}))

(defn compiled
  "Returns the metrics of an open map, compiled, as `{:id :context :metrics}`.

  `:errors` has the message of each metric that does not fit the types, by its number in the config."
  [m metrics]
  (let [{:keys [spec] :as context} (context-of m)
        compile-one (fn [{:keys [index] :as metric}]
                      (try
                        {:metric (metric/compile-metric metric spec context)}
                        (catch ExceptionInfo e
                          {:error [index (ex-message e)]})))
        all (mapv compile-one metrics)]
    {:id (:id (bpf-map/identity-of m))
     :context context
     :metrics (into [] (keep :metric) all)
     :errors (into {} (keep :error) all)}))

;; --- sources

(defn sources
  "Returns the sources of checked metrics: each map, with its metrics.

  Metrics of the same map with the same types share a source."
  [metrics]
  (vec
   (for [[[ref types] metrics] (group-by (juxt :map #(select-keys % [:key-type :value-type]))
                                         metrics)]
     {:ref ref :text (ref-text ref) :types types :metrics metrics :state (volatile! nil)})))

(def ^:private names-for
  "Nanoseconds after which names of the host are read again."
  (* 60 1000 1000 1000))

(defn- current
  "Returns the compiled metrics of an open map.

  They are those of the last reading if it is the same map."
  [m {:keys [metrics state]}]
  (let [{:keys [id at] :as known} @state
        now (System/nanoTime)]
    (if (and known (= id (:id (bpf-map/identity-of m))) (< (- now (long at)) (long names-for)))
      known
      (vreset! state (assoc (compiled m metrics) :at now)))))

(defn- read-entries
  "Adds all entries of an open map to its metrics; returns the number of entries."
  [m {:keys [iterated]} n metrics]
  (let [n (long n)
        adders (object-array (map :add metrics))
        amount (alength adders)
        add (fn [^long entries k v]
              (loop [i 0]
                (when (< i amount)
                  ((aget adders i) n k v)
                  (recur (inc i))))
              (inc entries))]
    (if iterated
      (reduce (fn [entries [k v]] (add entries k v)) 0 (local-storage/entries m))
      (with-open [raw (raw-entries/open-raw m :keys)]
        (bpf-map/reduce-entries raw add 0 nil)))))

(defn- family
  "Returns the family of a compiled metric after a reading."
  [{:keys [metric label-names bounds has-sum scale dropped invalid] :as compiled} n entries]
  (assoc (select-keys metric [:name :type :form])
         :help (or (:help metric) (str "From the map " (ref-text (:map metric)) "."))
         :label-names label-names :bounds bounds
         :schema (if (some metric [:linear :bounds]) 5 0)
         :has-sum has-sum
         :scale scale
         :series (metric/end! compiled n entries)
         :dropped @dropped :invalid @invalid))

(defmacro or-failed
  "Returns the value of body, or `(f e)` for the error e that it throws.

  A value that nobody expected, or a pattern that needs too much stack, must not hide other maps."
  [f & body]
  `(try
     ~@body
     (catch Exception e# (~f e#))
     (catch StackOverflowError e# (~f e#))))

(defn failure
  "Returns the message of an error of a reading.

      (failure (StackOverflowError.)) ;=> \"Reading failed: java.lang.StackOverflowError\""
  [e]
  (if (instance? ExceptionInfo e)
    (ex-message e)
    (str "Reading failed: " e)))

(defn read-source
  "Reads the map of a source once, as reading number n.

  Returns `{:text :up :families :seconds}`, with `:message` instead of families if the map cannot
  be read. `:up` is false too if a metric does not fit the map's types."
  [{:keys [text state] :as source} n]
  (let [begun (System/nanoTime)
        seconds #(/ (- (System/nanoTime) begun) 1e9)]
    (or-failed
     #(hash-map :text text :up false :families [] :seconds (seconds) :message (failure %))
     (with-open [m (open-again source (:id @state))]
       (let [{:keys [context metrics errors]} (current m source)]
         (run! metric/begin! metrics)
         (let [entries (read-entries m context n metrics)
               families (mapv #(family % n entries) metrics)]
           (cond-> {:text text :up (empty? errors) :families families :seconds (seconds)}
             (seq errors) (assoc :message (first (vals errors))))))))))

(defn check-source
  "Checks a source on this host; returns `{:missing message}` or `{:errors map}`.

  A map that does not exist is not a problem. `:errors` has the messages by the numbers of metrics."
  [{:keys [ref metrics] :as source}]
  (let [errors (fn [f] {:errors (into {} (map (juxt :index f)) metrics)})]
    (try
      (with-open [m (open-again source nil)]
        (let [{:keys [spec] :as context} (context-of m)]
          (errors #(metric/misfits % spec context))))
      (catch ExceptionInfo e
        (if (contains? #{:not-found :not-bpffs} (:bpfmap/error (ex-data e)))
          {:missing (cond-> (ex-message e)
                      (not (:id ref)) (str ": it may come later"))} ; an id is not used again
          (errors (constantly [(ex-message e)])))))))
