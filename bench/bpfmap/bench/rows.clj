(ns bpfmap.bench.rows
  "What is measured: each row is one operation done one way, beside its counterpart in C.

  A row's `:slice` takes the subject (see [[subject]]) on the thread that will
  run it, and returns a function of a count and a seed that makes so many
  operations and returns the sum that bench/baseline.c returns for the same."
  (:require [bpfmap.bench.loops :refer [entries in-scratch low low-byte low-of-view one-if ordered passes times]]
            [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.impl.store :as store])
  (:import (bpfmap.impl.store BpfMap)
           (bpfmap.sys Abi Batch Bytes Elements Scratch)))

(set! *warn-on-reflection* true)
(set! *unchecked-math* :warn-on-boxed)

(def spec
  "The map that everything is measured on."
  {:name "bpfmap_bench" :type :hash :key :u32 :value :u64 :max-entries entries})

(defn subject
  "Fills the open map of [[spec]], and gives it in every form that a row may want.

  `:typed` is the map itself, `:untyped` a handle of it whose keys and values are byte views."
  [^BpfMap m untyped]
  (dotimes [k entries]
    (bpf/put! m k k))
  {:typed m
   :untyped untyped
   :fd (store/descriptor m)
   :elements (Elements. (store/descriptor m) 4 8)})

;; --- layer 0, byte arrays

(defn- arrays-lookup [{:keys [^Elements elements]}]
  (let [key (byte-array 4) key-buffer (ordered key)
        value (byte-array 8)]
    (times [k]
      (do (.putInt key-buffer 0 (unchecked-int k))
          (if (zero? (.lookup elements key value Abi/BPF_ANY))
            (low (aget value low-byte))
            0)))))

(defn- arrays-miss [{:keys [^Elements elements]}]
  (let [key (byte-array 4) key-buffer (ordered key)
        value (byte-array 8)]
    (times [k]
      (do (.putInt key-buffer 0 (unchecked-int (+ k entries)))
          (one-if (neg? (.lookup elements key value Abi/BPF_ANY)))))))

(defn- arrays-update [{:keys [^Elements elements]}]
  (let [key (byte-array 4) key-buffer (ordered key)
        value (byte-array 8) value-buffer (ordered value)]
    (times [k]
      (do (.putInt key-buffer 0 (unchecked-int k))
          (.putLong value-buffer 0 k)
          (one-if (zero? (.update elements key value Abi/BPF_ANY)))))))

(defn- arrays-delete-insert [{:keys [^Elements elements]}]
  (let [key (byte-array 4) key-buffer (ordered key)
        value (byte-array 8) value-buffer (ordered value)]
    (times [k]
      (do (.putInt key-buffer 0 (unchecked-int k))
          (.putLong value-buffer 0 k)
          (one-if (and (zero? (.delete elements key))
                       (zero? (.update elements key value Abi/BPF_ANY))))))))

;; --- layer 0, in place

(defn- scratch-lookup [{:keys [^Elements elements]}]
  (let [value-at (.valueOffset elements)]
    (in-scratch [s elements]
      (let [memory (.-memory s)]
        (times [k]
          (do (Bytes/put32 memory Scratch/KEY k false)
              (if (zero? (.lookup elements s Abi/BPF_ANY))
                (low (Bytes/get64 memory value-at false))
                0)))))))

(defn- scratch-miss [{:keys [^Elements elements]}]
  (in-scratch [s elements]
    (let [memory (.-memory s)]
      (times [k]
        (do (Bytes/put32 memory Scratch/KEY (+ k entries) false)
            (one-if (neg? (.lookup elements s Abi/BPF_ANY))))))))

(defn- scratch-update [{:keys [^Elements elements]}]
  (let [value-at (.valueOffset elements)]
    (in-scratch [s elements]
      (let [memory (.-memory s)]
        (times [k]
          (do (Bytes/put32 memory Scratch/KEY k false)
              (Bytes/put64 memory value-at k false)
              (one-if (zero? (.update elements s Abi/BPF_ANY)))))))))

(defn- scratch-delete-insert [{:keys [^Elements elements]}]
  (let [value-at (.valueOffset elements)]
    (in-scratch [s elements]
      (let [memory (.-memory s)]
        (times [k]
          (do (Bytes/put32 memory Scratch/KEY k false)
              (Bytes/put64 memory value-at k false)
              (one-if (and (zero? (.delete elements s))
                           (zero? (.update elements s Abi/BPF_ANY))))))))))

(defn- scratch-walk [{:keys [^Elements elements]}]
  (let [value-at (.valueOffset elements)]
    (in-scratch [s elements]
      (let [memory (.-memory s)]
        (fn ^long [^long count ^long _seed]
          (loop [i 0 first? true sum 0]
            (cond
              (== i count) sum
              (neg? (.nextKey elements s first?)) (recur i true sum)
              :else
              (do (Bytes/put32 memory Scratch/KEY (Bytes/getU32 memory value-at false) false)
                  (recur (inc i) false
                         (if (zero? (.lookup elements s Abi/BPF_ANY))
                           (+ sum (low (Bytes/get64 memory value-at false)))
                           sum))))))))))

(defn- batch-reader [{:keys [fd]}]
  (passes
    (with-open [reader (Batch. fd Abi/BPF_MAP_LOOKUP_BATCH 4 8 entries 0 4096)]
      (loop [sum 0]
        (let [n (.read reader)]
          (if (zero? n)
            sum
            (let [values (.values reader)]
              (recur (long (loop [i 0 sum sum]
                             (if (< i n)
                               (recur (inc i) (+ sum (low (Bytes/get64 values (* 8 i) false))))
                               sum)))))))))))

;; --- bpfmap.core

(defmacro ^:private view
  "A new byte view of what the array holds now, as a caller would bring one."
  [array]
  `(bytes/wrap (aclone ~array)))

(defn- untyped-lookup [{m :untyped}]
  (let [key (byte-array 4) key-buffer (ordered key)]
    (times [k]
      (do (.putInt key-buffer 0 (unchecked-int k))
          (low-of-view (bpf/lookup m (view key)))))))

(defn- untyped-miss [{m :untyped}]
  (let [key (byte-array 4) key-buffer (ordered key)]
    (times [k]
      (do (.putInt key-buffer 0 (unchecked-int (+ k entries)))
          (one-if (nil? (bpf/lookup m (view key))))))))

(defn- untyped-put [{m :untyped}]
  (let [key (byte-array 4) key-buffer (ordered key)
        value (byte-array 8) value-buffer (ordered value)]
    (times [k]
      (do (.putInt key-buffer 0 (unchecked-int k))
          (.putLong value-buffer 0 k)
          (one-if (identical? m (bpf/put! m (view key) (view value))))))))

(defn- untyped-delete-put [{m :untyped}]
  (let [key (byte-array 4) key-buffer (ordered key)
        value (byte-array 8) value-buffer (ordered value)]
    (times [k]
      (do (.putInt key-buffer 0 (unchecked-int k))
          (.putLong value-buffer 0 k)
          (let [deleted? (bpf/delete! m (view key))]
            (bpf/put! m (view key) (view value))
            (one-if deleted?))))))

(defn- typed-lookup [{m :typed}]
  (times [k] (low (bpf/lookup m k))))

(defn- typed-miss [{m :typed}]
  (times [k] (one-if (nil? (bpf/lookup m (+ k entries))))))

(defn- typed-put [{m :typed}]
  (times [k] (one-if (identical? m (bpf/put! m k k)))))

(defn- typed-delete-put [{m :typed}]
  (times [k]
    (let [deleted? (bpf/delete! m k)]
      (bpf/put! m k k)
      (one-if deleted?))))

(defn- typed-reduce [{m :typed}]
  (passes (reduce (fn [sum entry] (+ (long sum) (low (val entry)))) 0 m)))

(defn- typed-reduce-kv [{m :typed}]
  (passes (reduce-kv (fn [sum _ value] (+ (long sum) (low value))) 0 m)))

(defn- untyped-reduce [{m :untyped}]
  (passes (reduce (fn [sum entry] (+ (long sum) (low-of-view (val entry)))) 0 m)))

(defn- typed-walk [{m :typed}]
  (passes (store/reduce-entries m (fn [sum _ value] (+ (long sum) (low value))) 0 :walk)))

;; --- the table

(def ^:private raw-target {:ratio 1.15 :bytes 0})

(def ^:private table
  "Operation, its name in C, threads, operations per slice; then each way of doing it, and the target if there is one."
  [["lookup, hit" "lookup-hit" 1 10000
    ["Elements, byte arrays" arrays-lookup raw-target]
    ["Elements, in place" scratch-lookup raw-target]
    ["lookup, bytes" untyped-lookup]
    ["lookup, typed" typed-lookup]]
   ["lookup, miss" "lookup-miss" 1 10000
    ["Elements, byte arrays" arrays-miss]
    ["Elements, in place" scratch-miss]
    ["lookup, bytes" untyped-miss]
    ["lookup, typed" typed-miss]]
   ["update" "update" 1 10000
    ["Elements, byte arrays" arrays-update]
    ["Elements, in place" scratch-update]
    ["put!, bytes" untyped-put]
    ["put!, typed" typed-put]]
   ["delete and insert" "delete-insert" 1 5000
    ["Elements, byte arrays" arrays-delete-insert]
    ["Elements, in place" scratch-delete-insert]
    ["delete! put!, bytes" untyped-delete-put]
    ["delete! put!, typed" typed-delete-put]]
   ["whole map, batches" "batch" 1 (* 4 entries)
    ["Batch, chunks of 4096" batch-reader]
    ["reduce, bytes" untyped-reduce]
    ["reduce, typed" typed-reduce]
    ["reduce-kv, typed" typed-reduce-kv]]
   ["whole map, next key and lookup" "walk" 1 entries
    ["Elements, in place" scratch-walk]
    ["reduce without batches, typed" typed-walk]
    ["reduce, typed" typed-reduce]]
   ["lookup, hit, 2 threads" "lookup-hit" 2 10000
    ["Elements, byte arrays" arrays-lookup]
    ["Elements, in place" scratch-lookup]
    ["lookup, bytes" untyped-lookup]
    ["lookup, typed" typed-lookup]]])

(def rows
  "Every row: `:operation`, `:way`, `:baseline` (its name in C), `:threads`, `:count` (operations per thread and slice),
  `:slice`, and where one is set `:target` with the highest `:ratio` to C and `:bytes` per operation."
  (vec
   (for [[operation baseline threads count & ways] table
         [way slice target] ways]
     {:operation operation :way way :baseline baseline :threads threads :count count :slice slice :target target})))
