(ns bpfmap.bench.metrics
  "Measures the processor time of a scrape: a hundred maps of a thousand entries, each a series.

      bin/clj -M:bench:bench-metrics"
  (:require [bpfmap.bench.report :as report]
            [bpfmap.core :as bpf]
            [bpfmap.metrics :as metrics])
  (:import (com.sun.management ThreadMXBean)
           (io.prometheus.metrics.expositionformats ExpositionFormats)
           (io.prometheus.metrics.model.registry MultiCollector)
           (java.io ByteArrayOutputStream Closeable)
           (java.lang.management ManagementFactory)))

(set! *warn-on-reflection* true)

(def ^:private rounds 41)

(defn- create-map
  "A map of a thousand entries, of which each is a series of its own."
  [i]
  (doto (bpf/create {:type :hash :name (str "bench" i) :max-entries 2000
                     :key [:struct [:src :ipv4] [:port :u16] [:pad :u16]]
                     :value [:struct [:packets :u64] [:bytes :u64]]})
    (bpf/put-all! (for [j (range 1000)]
                    [{:src (str "10.0." (quot (long j) 256) "." (rem (long j) 256)) :port j :pad 0}
                     {:packets j :bytes (* 1000 (long j))}]))))

(defn- milliseconds
  "The median of the processor time that f takes on this thread."
  [f]
  (let [thread ^ThreadMXBean (ManagementFactory/getThreadMXBean)
        once (fn []
               (let [begun (.getCurrentThreadCpuTime thread)]
                 (f)
                 (/ (- (.getCurrentThreadCpuTime thread) begun) 1e6)))]
    (report/median (vec (repeatedly rounds once)))))

(defn- write-text [^MultiCollector c]
  (.write (.getPrometheusTextFormatWriter (ExpositionFormats/init))
          (ByteArrayOutputStream. 8000000) (.collect c)))

(defn -main
  "Prints the processor time of reading all maps, and with the text."
  [& _]
  (let [maps (mapv create-map (range 100))
        config {:host false
                :metrics (vec (for [[i m] (map-indexed vector maps)]
                                {:name (str "m" i "_bytes_total") :type :counter
                                 :map {:id (:id (bpf/info m))} :value :bytes
                                 :labels {:src :src :port :port}}))}]
    (try
      (with-open [c ^Closeable (metrics/collector config)]
        (run! println (report/facts (report/machine)))
        (dotimes [_ 2] (milliseconds #(write-text c))) ; until it is compiled
        (println "100 maps of 1000 entries, medians of processor time in ms")
        (println "read and made to snapshots:" (milliseconds #(.collect ^MultiCollector c)))
        (println "with the text:" (milliseconds #(write-text c))))
      (finally (run! bpf/close maps))))
  (shutdown-agents))
