(ns bpfmap.bench.chunks
  "Measures what it costs to read a whole map in chunks of different sizes: why `bpfmap.sys.Batch`
  grows as it does.

      bin/clj -M:bench:bench-chunks            and into doc/performance.md
      bin/clj -M:bench:bench-chunks --print    printed only"
  (:require [bpfmap.bench.page :as page]
            [bpfmap.bench.raw :as raw]
            [bpfmap.bench.report :as report]
            [bpfmap.bench.rows :as rows]
            [bpfmap.bench.shapes :as shapes]
            [bpfmap.impl.map.bpf-map :as bpf-map])
  (:import (com.sun.management ThreadMXBean)
           (java.lang.management ManagementFactory)))

(set! *warn-on-reflection* true)

(def ^:private kib [1 4 16 32 64 128 256 1024 4096])
(def ^:private sizes [1000 100000 1000000])
(def ^:private rounds 7)
(def ^:private kinds
  (filter (comp #{"hash 4→8" "hash 16→32 struct" "array 4→8"} :title) shapes/maps))

(defn- per-entry
  "Nanoseconds of processor time for each entry that a function reads, n of them at once."
  [n f]
  (let [thread ^ThreadMXBean (ManagementFactory/getThreadMXBean)
        passes (max 1 (quot 20000 (long n)))
        begun (.getCurrentThreadCpuTime thread)]
    (dotimes [_ passes] (f))
    (/ (- (.getCurrentThreadCpuTime thread) begun) (double (* n passes)))))

(defn- ways
  "Name to a function that reads the whole map of a subject, so many entries at a time."
  [{:keys [entries typed] :as subject} chunk]
  {:raw (let [slice (raw/batch-reader (assoc subject :batch chunk))] #(slice entries 0))
   :typed #(bpf-map/reduce-entries typed (fn [acc _ _] acc) nil {:chunk chunk})})

(defn- measured
  "Of one map and way: the medians in the order of [[kib]]; measured in turn, so that a slow
  moment hits all sizes."
  [{:keys [entries key-size value-size] :as subject} way]
  (let [fs (for [k kib] (way (ways subject (max 1 (quot (* 1024 k) (+ key-size value-size))))))
        fs (vec fs)]
    (run! #(per-entry entries %) fs)
    (apply mapv (fn [& xs] (report/median xs))
           (repeatedly rounds #(mapv (fn [f] (per-entry entries f)) fs)))))

(defn- lines []
  (report/table
   (concat [["map" :title] ["entries" (comp report/number-shown :entries) true]
            ["read" (comp name :way)]]
           (map-indexed (fn [i k] [(if (< k 1024) (str k " KiB") (str (quot k 1024) " MiB"))
                                   #(report/number-shown (nth (:ns %) i)) true])
                        kib))
   (doall
    (for [kind kinds, entries sizes
          row (let [subject (rows/subject kind entries)]
                (try
                  (mapv (fn [way]
                          {:title (:title kind) :entries entries :way way
                           :ns (measured subject way)}) [:raw :typed])
                  (finally (rows/close subject))))]
      row))))

(defn -main
  "Measures and prints a table: nanoseconds for each entry, by the bytes of a chunk."
  [& args]
  (let [lines (concat (report/facts (report/machine)) [""] (lines))]
    (run! println lines)
    (when (empty? args)
      (page/write "bin/clj -M:bench:bench-chunks" lines)))
  (shutdown-agents))
