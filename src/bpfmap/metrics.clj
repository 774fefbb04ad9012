(ns bpfmap.metrics
  "Makes metrics of maps for a Prometheus registry, from a config that is data.

      (require '[bpfmap.metrics :as metrics])
      (import '(io.prometheus.metrics.model.registry PrometheusRegistry))

      (metrics/register! PrometheusRegistry/defaultRegistry
                         {:metrics [{:name \"flow_bytes_total\" :type :counter
                                     :help \"Bytes by source\"
                                     :map \"/sys/fs/bpf/flows\" :value :bytes
                                     :labels {:src :src}}]})

  Maps are read at each scrape, each of them once. doc/metrics.md has all keys of a config, the
  metrics about maps and programs of the host, and `bpfmap export`, which serves a config over HTTP.

  This namespace requires the libraries of the alias :export, such as
  io.prometheus/prometheus-metrics-core, which do not come with the jar of bpfmap."
  (:require [bpfmap.metrics.collecting :as collecting]
            [bpfmap.metrics.config :as config]
            [bpfmap.metrics.snapshot :as snapshot])
  (:import (io.prometheus.metrics.model.registry MultiCollector PrometheusRegistry)
           (io.prometheus.metrics.model.snapshots MetricSnapshots)
           (java.io Closeable)
           (java.util Collection)))

(set! *warn-on-reflection* true)

(defn problems
  "Returns all problems of a config, as `{:path :message}`; none for a valid one.

  It needs no kernel. [[check]] compares the config with the maps of this host too.

      (problems {:metrics [{:name \"hits\" :type :gauge}]})
      ;=> [{:path [:metrics 0 :map], :message \"metric hits :map is required\"}]"
  [config]
  (vec (:problems (config/checked config))))

(defn check
  "Returns `{:problems :missing}` of a config on this host.

  Opens each map and compares the metrics with its types. `:problems` are `{:path :message}`. A map
  that does not exist is not a problem, because it may come later: `:missing` has a text for each.
  Needs the permission to open the maps.

      (check {:metrics [{:name \"hits\" :type :gauge :map \"hits\"}]})
      ;=> {:problems [], :missing [\"No map named \\\"hits\\\": it may come later\"]}"
  [config]
  (select-keys (collecting/check config) [:problems :missing]))

(defn- snapshots
  "Returns the snapshots of a new reading; none of a closed collection."
  ^MetricSnapshots [collection]
  (let [^Collection found (or (collecting/collect collection #(into [] (keep snapshot/snapshot) %))
                              [])]
    (MetricSnapshots. found)))

(deftype ^:no-doc Collector [collection scrape]
  MultiCollector
  (collect [_] (scrape))
  (getMetricFamilyDescriptors [_]
    (mapv snapshot/descriptor (collecting/descriptions (:config collection))))
  Closeable
  (close [_] (collecting/close collection))
  Object
  (toString [_] (str "#<collector of " (count (:metrics (:config collection))) " metrics>")))

(defmethod print-method Collector [collector ^java.io.Writer w]
  (.write w (str collector)))

(defn collector
  "Returns a `MultiCollector` for a config.

  Close it. It reads the maps at each scrape. Maps may come, go and be replaced under their pins:
  the metric `bpfmap_up` has the state of each. Maps are open only during a scrape. While a
  collector is open, the kernel measures the run time of programs, unless `:host` of the config
  leaves them out. Several threads may scrape: those that wait for the reading in progress share the
  next one. A closed collector has no metrics.

  The option `:on-change` is a function of `{:map :up :message}`, called when the state of a map
  changes. Throws `:invalid-value` with all problems under `:bpfmap/problems` for an invalid config.
  Scraping needs the permission to open the maps, and CAP_SYS_ADMIN for maps given by id or name and
  for the metrics of the host.

      (with-open [c (collector {:metrics [{:name \"hits\" :type :gauge :map \"hits\"}]})] (.collect c))"
  (^Closeable [config] (collector config nil))
  (^Closeable [config {:keys [on-change]}]
   (let [{:keys [config problems]} (config/checked config)]
     (when (seq problems)
       (throw (config/refusal problems)))
     (let [collection (collecting/start config {:on-change on-change})]
       (Collector. collection (collecting/sharing #(snapshots collection)))))))

(defn register!
  "Registers a [[collector]] for a config in a registry, and returns it.

  Takes the same options and throws the same errors. Throws the registry's
  IllegalArgumentException if it has one of the names already; nothing is registered then. To end
  it, unregister and close it.

      (register! PrometheusRegistry/defaultRegistry {:host true})"
  (^Closeable [registry config] (register! registry config nil))
  (^Closeable [^PrometheusRegistry registry config options]
   (let [^Collector c (collector config options)]
     (try
       (.register registry ^MultiCollector c)
       c
       (catch Throwable e
         (.close c)
         (throw e))))))

(defn samples
  "Reads all maps of a collector now, and returns the metrics as data.

  The result is a vector of `{:name :type :help :samples}`. A sample is `{:labels :value}`, or for a
  histogram `{:labels :count :buckets}` with `:sum` if there is one. `:buckets` are pairs of an
  upper bound and the count up to it. A closed collector returns none.

      (first (samples (collector {:host false :metrics [{:name \"hits\" :type :gauge :map \"hits\"}]})))
      ;=> {:name \"hits\", :type :gauge, :help \"From the map hits.\", :samples [{:labels {}, :value 3.0}]}"
  [collector]
  (or (collecting/collect (.-collection ^Collector collector) #(mapv collecting/data %)) []))
