(ns ^:no-doc bpfmap.metrics.collecting
  "Collects the families of a config: of its maps, of the host, and about the reading itself.

  Needs no library: `bpfmap.metrics.snapshot` converts families for Prometheus."
  (:require [bpfmap.metrics.config :as config]
            [bpfmap.metrics.host :as metrics.host]
            [bpfmap.metrics.maps :as maps]
            [bpfmap.metrics.metric]
            [bpfmap.prog :as prog]
            [clojure.string :as str])
  (:import (bpfmap.metrics.metric Series)
           (clojure.lang ExceptionInfo)
           (java.io Closeable)
           (java.util.concurrent.atomic AtomicInteger AtomicLong)
           (java.util.function DoubleUnaryOperator)))

(set! *warn-on-reflection* true)

;; --- families about the reading

(def ^:private own
  "The families about the reading, by their keys in [[own-families]]."
  (array-map
   :up {:name "bpfmap_up" :type :gauge :label-names ["map"]
        :help "1 if the map could be read for all of its metrics, 0 if not."}
   :seconds {:name "bpfmap_map_read_seconds" :type :gauge :label-names ["map"]
             :help "Duration of the last reading of the map."}
   :dropped {:name "bpfmap_metric_dropped_entries" :type :gauge :label-names ["metric"]
             :help "Entries left out, because the metric has as many series as its limit allows."}
   :invalid {:name "bpfmap_metric_invalid_entries" :type :gauge :label-names ["metric"]
             :help "Entries left out, because their value is negative or not a number."}))

(defn- own-families [readings families]
  (let [by-map (fn [f] (mapv (fn [{:keys [text] :as r}] [[text] (f r)]) readings))
        by-metric (fn [k] (into [] (keep (fn [{n k metric-name :name}] (when n [[metric-name] n])))
                                families))]
    [(assoc (:up own) :rows (by-map #(if (:up %) 1 0)))
     (assoc (:seconds own) :rows (by-map :seconds))
     (assoc (:dropped own) :rows (by-metric :dropped))
     (assoc (:invalid own) :rows (by-metric :invalid))]))

(defn descriptions
  "Returns what a registry checks about every family of a checked config.

  It has the name, the type and the names of the labels.

      (descriptions {:metrics []}) ;=> [{:name \"bpfmap_up\" :type :gauge :label-names [\"map\"]} …]"
  [{:keys [metrics host]}]
  (concat
   (for [{:keys [name type labels cpus]} metrics]
     {:name name :type type :label-names (cond-> (mapv first labels) (= :each cpus) (conj "cpu"))})
   (for [{:keys [of name type]} metrics.host/families :when (contains? host of)]
     {:name name :type type :label-names ["id" "name" "type"]})
   (map #(select-keys % [:name :type :label-names]) (vals own))))

;; --- collecting

(defn- merge-sources
  "Returns the readings with one row for each text.

  References of one text are up if all of them are."
  [readings]
  (for [[text same] (group-by :text readings)]
    {:text text :up (every? :up same) :message (some :message same)
     :seconds (reduce + (map :seconds same))}))

(defn start
  "Starts a collection of a checked config, and returns it.

  The caller must [[close]] it. Measures the run time of programs from now on, if the config wants
  it. The option `:on-change` is a function of `{:map :up :message}`, which is called when a map can
  no longer be read, and when it can be read again."
  [config {:keys [on-change]}]
  (let [note (or on-change (fn [_]))
        statistics (when (get-in config [:host :programs])
                     (try
                       (prog/enable-statistics!)
                       (catch ExceptionInfo e
                         (note {:up false :message (str "The run time of programs is not measured: "
                                                        (ex-message e))})
                         nil)))]
    {:config (cond-> config (nil? statistics) (update :host dissoc :programs))
     :sources (maps/sources (:metrics config))
     :statistics statistics
     :note note
     :state (volatile! {:n 0 :told {}})
     :lock (Object.)}))

(defn- tell-changes [{:keys [note state]} readings]
  (doseq [{:keys [text up message]} readings
          :let [before (get-in @state [:told text] ::none)
                now (if up nil message)]]
    (when (not= before now)
      (vswap! state assoc-in [:told text] now)
      (when-not (and up (= ::none before))
        (note (cond-> {:map text :up up} message (assoc :message message)))))))

(defn- read-host
  "Returns the families of the host, or none if it cannot be read.

  The reason is reported once."
  [{:keys [config note state]}]
  (let [[families message] (maps/or-failed
                            #(vector [] (str "No metrics of the host: " (maps/failure %)))
                            [(vec (metrics.host/read-host (:host config) (:limit config))) nil])]
    (when (and message (not= message (:host-message @state)))
      (note {:up false :message message}))
    (vswap! state assoc :host-message message)
    families))

(defn collect
  "Calls f with the families of a new reading, and returns its result.

  Returns nil after [[close]]. A reading takes its turn after those of other threads."
  [{:keys [sources state lock] :as collection} f]
  (locking lock
    (when-not (:closed @state)
      (let [n (:n (vswap! state update :n inc))
            readings (mapv #(maps/read-source % n) sources)
            by-text (merge-sources readings)
            families (into (vec (mapcat :families readings)) (read-host collection))]
        (tell-changes collection by-text)
        (f (into families (own-families by-text families)))))))

(defn sharing
  "Returns a function that calls f, and shares results among waiting threads.

  One thread at a time calls f. A thread that waited takes the result of a call that began after it
  came. So scrapes that take longer than the time between them do not queue up: all that wait, also
  for clients that are gone, are answered by one reading.

      ((sharing (fn [] 1))) ;=> 1"
  [f]
  (let [begun (AtomicLong.)
        waiting (AtomicInteger.)
        lock (Object.)
        latest (volatile! nil)]
    (fn []
      (let [before (.get begun)]
        (.incrementAndGet waiting)
        (locking lock
          (let [others? (pos? (.decrementAndGet waiting))
                {:keys [number result]} @latest]
            (if (and number (< before (long number)))
              (do
                (when-not others? (vreset! latest nil))
                result)
              (let [number (.incrementAndGet begun)
                    result (f)]
                (vreset! latest (when (pos? (.get waiting)) {:number number :result result}))
                result))))))))

(defn close
  "Ends a collection, after the reading in progress."
  [{:keys [^Closeable statistics lock state]}]
  (locking lock
    (vswap! state assoc :closed true)
    (some-> statistics .close)))

;; --- as data

(defn- histogram-data [{:keys [^doubles bounds has-sum ^DoubleUnaryOperator scale]} ^Series s]
  (let [^doubles counts (.-counts s)]
    (cond-> {:count (long (reduce + counts))
             :buckets (mapv vector (conj (vec bounds) ##Inf) (reductions + (map long counts)))}
      has-sum (assoc :sum (.applyAsDouble scale (.sum s))))))

(defn data
  "Returns a family as data: `{:name :type :help :samples}`.

  A sample is `{:labels :value}`, or for a histogram `{:labels :count :buckets :sum}` with
  cumulative counts by upper bound."
  [{:keys [type label-names series rows ^DoubleUnaryOperator scale] :as family}]
  (let [labels #(into (sorted-map) (zipmap label-names %))]
    (assoc (select-keys family [:name :type :help])
           :samples (if series
                      (mapv (fn [^Series s]
                              (merge {:labels (labels (.-values s))}
                                     (if (= :histogram type)
                                       (histogram-data family s)
                                       {:value (.applyAsDouble scale (.total s))})))
                            series)
                      (mapv (fn [[values x]] {:labels (labels values) :value x}) rows)))))

;; --- checking

(defn- sound
  "Returns the metrics of a config that have no problem of their own."
  [{:keys [metrics]} problems]
  (let [wrong (set (for [{[part index] :path} problems :when (= :metrics part)] index))]
    (filterv (fn [{:keys [index] of-map :map}] (and of-map (not (wrong index)))) metrics)))

(defn check
  "Checks a config on this host; returns `{:config :problems :missing}`.

  Metrics without a problem of their own are compared with their maps. `:missing` has the messages
  about maps that do not exist yet."
  [given]
  (let [{:keys [problems config]} (config/checked given)
        found (mapv maps/check-source (maps/sources (sound config problems)))]
    {:config config
     :problems (vec (concat problems
                            (for [[index messages] (sort (into {} (mapcat :errors) found))
                                  message messages]
                              (update (config/problem given [:metrics index] "" nil)
                                      :message #(str (str/trim %) ": " message)))))
     :missing (into [] (keep :missing) found)}))
