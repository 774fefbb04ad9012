(ns bpfmap.bench.rows
  "What is measured: each row is one operation, done one way, beside its counterpart in C.

  A way's slice takes the subject on the thread that will run it, and returns a function of a
  count and of a place in the order of the keys, which makes so many operations and returns the
  sum that bench/baseline.c returns for the same."
  (:require [bpfmap.bench.data :as data]
            [bpfmap.bench.raw :as raw]
            [bpfmap.bench.shapes :as shapes]
            [bpfmap.core :as bpf]
            [bpfmap.impl.map.bpf-map :as bpf-map])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.sys BatchReader Codec Elements)))

(set! *warn-on-reflection* true)

(def ways
  "How it is done, in the order of the table."
  {:arrays "raw: Elements, byte arrays"
   :in-place "raw: Elements, in place"
   :reader "raw: BatchReader"
   :bulk "raw: BatchWriter"
   :views "byte views"
   :typed "typed"})

;; Operations per slice: so many that a slice takes some milliseconds, and of what deletes, no
;; more than there are.
(defn- five-thousand [_entries _threads] 5000)
(defn- at-most-all [entries threads] (min 5000 (quot entries threads)))
(defn- from-the-beginning [entries _threads] (min 5000 entries))
(defn- whole [at-least] (fn [entries _threads] (* entries (max 1 (quot at-least entries)))))
(defn- handles [_entries _threads] 100)
(defn- creations [entries _threads] (max 1 (min 50 (quot 100000 entries))))

(def ^:private table
  "Operation, its name in C, operations per slice, and each way of doing it."
  [["lookup, hit" "lookup-hit" five-thousand
    {:arrays raw/lookup-arrays :in-place raw/lookup-in-place :views data/lookup-views
     :typed data/lookup-typed}]
   ["lookup, miss" "lookup-miss" five-thousand
    {:arrays raw/miss-arrays :in-place raw/miss-in-place :views data/miss-views
     :typed data/miss-typed}]
   ["update" "update" five-thousand
    {:arrays raw/update-arrays :in-place raw/update-in-place :views data/update-views
     :typed data/update-typed}]
   ["delete" "delete" at-most-all
    {:arrays raw/delete-arrays :in-place raw/delete-in-place :views data/delete-views
     :typed data/delete-typed}]
   ["take" "take" at-most-all
    {:arrays raw/take-arrays :in-place raw/take-in-place :views data/take-views
     :typed data/take-typed}]
   ["next key and lookup" "walk" from-the-beginning
    {:in-place raw/walk-in-place :typed data/walk-typed}]
   ["batch read, 64 at a time" "read-batch" (whole 20000) {:reader raw/batch-reader} 64]
   ["batch read, 1,024 at a time" "read-batch" (whole 20000) {:reader raw/batch-reader} 1024]
   ["batch read, 16,384 at a time" "read-batch" (whole 20000) {:reader raw/batch-reader} 16384]
   ["reduce" "read-batch" (whole 20000)
    {:reader raw/batch-reader :views data/reduce-views :typed data/reduce-typed} :own]
   ["reduce-kv" "read-batch" (whole 20000) {:typed data/reduce-kv-typed} :own]
   ["into {}" "read-batch" (whole 5000) {:typed data/into-typed} :own]
   ["batch write" "write-batch" at-most-all {:bulk raw/write-batch :typed data/put-all-typed} 4096]
   ["batch delete" "delete-batch" at-most-all {:bulk raw/delete-batch :typed data/delete-all-typed}
    4096]
   ["open by id, close" "open-close" handles {:views data/open-views :typed data/open-typed}]
   ["create, close" "create-close" creations {:views data/create-views :typed data/create-typed}]])

(def ^:private slices-for
  "How many slices make a round, by how many operations have to be made in each: long ones are
  steady."
  [[20000 7] [200000 3] [Long/MAX_VALUE 1]])

(def ^:private lacking
  "What the kernel does not do on a type: an array's entries stay, and of a trie nothing is taken."
  {:array #{"delete" "take" "delete-batch"}
   :lpm-trie #{"take"}})

(defn- own-batch
  "How many entries `reduce` asks for at a time, once it has begun."
  [key-size value-size entries]
  (min entries (BatchReader/steadyChunk key-size value-size)))

(defn rows
  "The rows of a map with so many entries, on so many threads: what [[ways]] it has of each
  operation that the kernel does.

  Beside `:operation`, `:way`, `:threads`, `:entries` and `:map`, each has what
  [[bpfmap.bench.measure/measure]] needs."
  [{:keys [title shape spec]} entries threads]
  (for [[operation in-c count-of ways-of batch] table
        :when (not (contains? (lacking (:type spec)) in-c))
        way (keys ways)
        :let [slice (ways-of way)
              n (count-of entries threads)]
        :when (and slice
                   ;; The kernel reads a trie entry by entry, each from its root: a million take
                   ;; many seconds.
                   (not (and (= :prefix shape) (= "read-batch" in-c) (< 100000 entries)))
                   ;; A per-CPU value is a vector, and typed as such.
                   (not (and (= :percpu shape) (= "update" operation) (= :views way))))]
    {:map title :shape shape :operation operation :way way :threads threads :entries entries
     :in-c in-c :count n :batch batch :slice slice
     :restores (contains? #{"delete" "take" "delete-batch"} in-c)
     :slices (second (first (filter #(<= n (first %)) slices-for)))}))

;; --- the map of a row

(defn subject
  "Makes a map of a kind with so many entries, fills it, and returns it in every form that a row
  may want. Close it with [[close]].

  `:typed` is the map, `:views` a handle of it whose keys and values are byte views."
  [{:keys [title shape spec]} entries]
  (let [spec (assoc spec :name "bpfmap_bench" :max-entries entries)
        ^BpfMap m (bpf/create spec)
        {:keys [id key-size] one-size :value-size} (bpf/info m)
        as-views {:key [:bytes key-size] :value [:bytes one-size]}
        value-size (.size ^Codec (.-value-codec m))
        cpus (count (or (bpf-map/cpus-of m) [0]))
        key-of (shapes/key-of shape entries)
        value-of (shapes/value-of shape cpus)]
    (bpf/put-all! m (eduction (map (fn [n] [(key-of n) (value-of n)])) (range entries)))
    {:title title :shape shape :spec spec :id id :entries entries :order (shapes/order entries)
     :typed m :views (bpf/open id as-views) :as-views as-views
     :fd (bpf-map/descriptor m)
     :elements (Elements. (bpf-map/descriptor m) key-size value-size)
     :key-size key-size :value-size value-size :one-size one-size :cpus cpus
     :key-of key-of :value-of value-of :of-value (shapes/first-number shape)
     :own-batch (own-batch key-size value-size entries)}))

(defn close
  "Closes what [[subject]] opened."
  [{:keys [typed views]}]
  (bpf/close views)
  (bpf/close typed))

(defn sized
  "A row with its batch as a number: as `reduce` reads, where the row says so."
  [{:keys [batch] :as row} {:keys [own-batch]}]
  (assoc row :batch (case batch :own own-batch nil 1 batch)))
