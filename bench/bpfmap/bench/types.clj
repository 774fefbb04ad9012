(ns bpfmap.bench.types
  "Measures what types cost inside the JVM, each beside its own yardstick in the same run.

      bin/clj -M:bench:bench-types

  Two things are timed in turn, many times; the ratio is that of the medians.
  The kernel's BTF is timed alone, warm: the median with its quartiles."
  (:require [bpfmap.bench.report :refer [median]]
            [bpfmap.btf :as btf]
            [bpfmap.codec :as codec])
  (:import (bpfmap.sys Codec)
           (com.sun.management ThreadMXBean)
           (java.lang.foreign Arena MemorySegment)
           (java.lang.management ManagementFactory)
           (java.nio.file Files LinkOption Path)))

(set! *warn-on-reflection* true)

(def ^:private slices 41)
(def ^:private slice-size 200000)

(defn- per-call
  "Nanoseconds and bytes of one call of a function of a long, on average over a slice."
  [^clojure.lang.IFn f]
  (let [thread ^ThreadMXBean (ManagementFactory/getThreadMXBean)
        bytes (.getCurrentThreadAllocatedBytes thread)
        begun (System/nanoTime)]
    (f slice-size)
    [(/ (- (System/nanoTime) begun) (double slice-size))
     (/ (- (.getCurrentThreadAllocatedBytes thread) bytes) (double slice-size))]))

(defmacro ^:private calling
  "A function that evaluates an expression n times, a number under a name, and keeps the results alive."
  [[i] expression]
  `(fn [n#]
     (let [n# (long n#)
           sink# (object-array 8)]
       (loop [~i 0]
         (when (< ~i n#)
           (let [result# ~expression]
             (aset sink# (bit-and ~i 7) result#))
           (recur (inc ~i))))
       sink#)))

(defn- memory-of
  "Native memory that holds a value."
  [^Codec c value]
  (let [memory (.allocate (Arena/ofAuto) (max 1 (.size c)) 8)]
    (.encode c value memory 0)
    memory))

(def ^:private four [:struct [:a :u32] [:b :u32] [:c :u64] [:d :u64]])

(defn- comparisons
  "Name, yardstick and subject of each comparison."
  []
  (let [c (codec/codec four)
        value {:a 100000 :b 200000 :c 300000 :d 400000}
        ^MemorySegment memory (memory-of c value)
        u64 (codec/codec :u64)
        ^MemorySegment eight (memory-of u64 700000)]
    [["decode a struct of four integers" "the same map as a literal"
      (calling [i] {:a (Long/valueOf (+ 100000 i))
                    :b (Long/valueOf (+ 200000 i))
                    :c (Long/valueOf (+ 300000 i))
                    :d (Long/valueOf (+ 400000 i))})
      (calling [i] (.decode ^Codec c memory 0))]
     ["encode a struct of four integers" "looking its four fields up"
      (calling [i] (do (:a value) (:b value) (:c value) (:d value)))
      (calling [i] (do (.encode ^Codec c value memory 0) nil))]
     ["decode a :u64" "boxing a long"
      (calling [i] (Long/valueOf (+ 700000 i)))
      (calling [i] (.decode ^Codec u64 eight 0))]
     ["encode a :u64" "boxing a long"
      (calling [i] (Long/valueOf (+ 700000 i)))
      (let [boxed (Long/valueOf 700000)]
        (calling [i] (do (.encode ^Codec u64 boxed eight 0) nil)))]]))

(defn- compared [[name yardstick reference subject]]
  (dotimes [_ 10] (per-call reference) (per-call subject))
  (let [pairs (vec (repeatedly slices (fn [] [(per-call reference) (per-call subject)])))
        at #(median (map % pairs))
        [r s] [(at ffirst) (at (comp first second))]]
    (format "| %s | %s | %.1f | %.1f | %.2f | %.0f | %.0f |" name yardstick r s (/ s r)
            (at (comp second first)) (at (comp second second)))))

(defn- millis [f]
  (let [begun (System/nanoTime)]
    (f)
    (/ (- (System/nanoTime) begun) 1e6)))

(defn- quartiles [xs]
  (let [sorted (vec (sort xs))
        at #(nth sorted (int (* % (dec (count sorted)))))]
    (format "| %.2f | %.2f–%.2f |" (median xs) (at 0.25) (at 0.75))))

(defn- kernel-btf []
  (let [path (Path/of "/sys/kernel/btf/vmlinux" (make-array String 0))]
    (when (Files/exists path (make-array LinkOption 0))
      (let [bytes (Files/readAllBytes path)
            times (fn [warm-up f] (dotimes [_ warm-up] (f)) (doall (repeatedly 31 #(millis f))))
            open-and-find (fn [] (btf/type-named (btf/parse bytes) "list_head"))
            b (btf/parse bytes)]
        (println (str "\n" b "\n"))
        (println "| warm, alone | median, ms | quartiles, ms |\n|---|---:|---:|")
        (println (str "| open it and look up a type by its name " (quartiles (times 20 open-and-find))))
        (doseq [name ["timespec64" "iphdr" "bpf_map_ops" "sk_buff" "task_struct"]
                :when (btf/type-named b name)]
          (println (str "| decode struct " name " " (quartiles (times 500 #(btf/type-named b name))))))))))

(defn -main
  "Runs it and prints two tables."
  [& _]
  (println (str "| what | yardstick | yardstick, ns | bpfmap, ns | ratio | yardstick, bytes | bpfmap, bytes |\n"
                "|---|---|---:|---:|---:|---:|---:|"))
  (run! (comp println compared) (comparisons))
  (kernel-btf)
  (shutdown-agents))
