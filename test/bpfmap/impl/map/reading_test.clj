(ns bpfmap.impl.map.reading-test
  "Everything in a map is read while it changes: by the one who reads, and by others."
  (:require [bpfmap.core :as bpf]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.linux :as linux]
            [bpfmap.objects :as objects]
            [bpfmap.programs :as programs]
            [clojure.string :as str]
            [clojure.test :refer [is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (bpfmap.sys KeyOrder)
           (java.io Closeable)
           (java.lang.foreign MemorySegment)
           (java.util Random)
           (java.util.concurrent.atomic AtomicBoolean)))

(set! *warn-on-reflection* true)

(defn- keys-by-walking [m]
  (vec (take-while some? (iterate #(bpf/next-key m %) (bpf/next-key m)))))

(defn- read-keys
  "The keys that a reading shows, in its order; `(step key how-many-before)` is called with each."
  [m options step]
  (bpf-map/reduce-entries m (fn [acc k _] (step k (count acc)) (conj acc k)) [] options))

;; ---------------------------------------------------------------- the order of prefixes

(defn- lpm-trie ^Closeable [most]
  (bpf/create {:type :lpm-trie :key [:prefix :ipv4] :value :u32 :max-entries most
               :flags #{:no-prealloc}}))

(defn- after? [^KeyOrder order a b]
  (.after order (MemorySegment/ofArray ^bytes a) 0 (MemorySegment/ofArray ^bytes b) 0
          (alength ^bytes a)))

(def ^:private prefix
  "Prefixes of few bits that differ, so that many cover others."
  (gen/fmap (fn [[a b length]]
              (let [word (bit-and (bit-or (bit-shift-left (long a) 24) (long b))
                                  (bit-shift-left -1 (- 32 (long length))) 0xffffffff)]
                (str (str/join "." (map #(bit-and 255 (bit-shift-right word %)) [24 16 8 0])) "/"
                     length)))
            (gen/tuple (gen/choose 0 255) (gen/choose 0 15) (gen/choose 0 32))))

(kernel-test order-of-prefixes
  (testing "prefixes arrive in the expected order"
    (with-open [m (lpm-trie 4096)]
      (dotimes [_ 25]
        (bpf/put-all! m (zipmap (gen/sample prefix 120) (range)))
        (let [ks (mapv #(linux/pack [:prefix :ipv4] %) (keys-by-walking m))]
          (is (< 10 (count ks)))
          (doseq [[i a] (map-indexed vector ks) [j b] (map-indexed vector ks)]
            (when-not (= (< (long j) (long i)) (after? KeyOrder/PREFIX a b))
              (is (= (< (long j) (long i)) (after? KeyOrder/PREFIX a b)) [(vec a) (vec b)]))))
        (bpf/delete-all! m (keys-by-walking m))))))

(defspec order-of-array-indices 200
  (prop/for-all [a (gen/choose 0 0xffffffff) b (gen/choose 0 0xffffffff)]
                (= (< (long b) (long a))
                   (after? KeyOrder/INDEX (linux/pack :u32 a) (linux/pack :u32 b)))))

;; ---------------------------------------------------------------- changed by the one who reads

(def ^:private changing
  "Maps whose keys come and go: the spec, the i-th key, a value."
  [{:spec {:type :hash :key :u32 :value :u64} :key identity :value 7}
   {:spec {:type :hash :key :u32 :value :u64 :flags #{:no-prealloc}} :key identity :value 7}
   {:spec {:type :lru-hash :key :u32 :value :u64} :key identity :value 7}
   {:spec {:type :lpm-trie :key [:prefix :ipv4] :value :u32 :flags #{:no-prealloc}}
    :key #(str "10." (quot % 256) "." (mod % 256) "." (if (even? %) "0/24" "7/32")) :value 7}
   {:spec {:type :devmap-hash} :key identity :value 1}])

(defn- readers [{{:keys [type]} :spec}]
  (if (= :devmap-hash type) [{:reader :keys}] [nil {:reader :batches :chunk 10} {:reader :keys}]))

(kernel-test b5-delete-while-reading
  (testing "deleting entries that were read neither skips nor restarts"
    (let [n 600]
      (doseq [{:keys [spec key value] :as form} changing
              options (readers form)
              ;; The last of a chunk among them
              delete? [(constantly true) even? odd? #(= 9 (mod % 10)) #(= 127 (mod % 128))
                       #(< 590 %)]]
        (testing [spec options]
          (with-open [m ^Closeable (bpf/create (assoc spec :max-entries 20000))]
            (bpf/put-all! m (map #(vector (key %) value) (range n)))
            (let [seen (read-keys m options (fn [k i] (when (delete? i) (bpf/delete! m k))))]
              (is (= (sort (map key (range n))) (sort seen)))
              (is (= (count (remove delete? (range n))) (bpf/count-entries m))))))))))

(kernel-test b5-trie-of-many-chunks
  (testing "a large trie yields its remaining entries once"
    (with-open [m (lpm-trie 100000)]
      (bpf/put-all! m (for [i (range 40000)] [(str "10." (quot i 256) "." (mod i 256) ".0/24") i]))
      (let [seen (reduce (fn [acc [k v]] (when (odd? v) (bpf/delete! m k)) (conj acc v)) [] m)]
        (is (= (range 40000) (sort seen)))
        (is (= 20000 (bpf/count-entries m)))))))

(def ^:private ^:const at-once "How many keys a walk hands out before it asks for more." 128)

(kernel-test b5-cursor-key-is-deleted
  (testing "iteration continues if the key of the cursor is deleted"
    (doseq [{:keys [spec key value]} [(first changing) (last changing)]
            [case gone] {"the key after the chunk" [at-once]
                         "and the last of the chunk" [at-once (dec at-once)]
                         "and all but the first" (range 1 (inc at-once))
                         "all that was seen and the next" (range 0 (inc at-once))
                         "all but the last" (range 0 999)}]
      (testing [(:type spec) case]
        (with-open [m ^Closeable (bpf/create (assoc spec :max-entries 2000))]
          (bpf/put-all! m (map #(vector (key %) value) (range 1000)))
          (let [order (keys-by-walking m)
                seen (read-keys m {:reader :keys}
                                (fn [_ i]
                                  (when (= (dec at-once) i) (bpf/delete-all! m (map order gone)))))]
            (is (= (concat (take at-once order)
                           (remove (set (map order gone)) (drop at-once order)))
                   seen))))))))

(defn- counted-cgroup
  "A cgroup that has an element in the map of a program."
  [program]
  (let [cgroup (objects/cgroup)
        attachment (programs/attach-to-cgroup program cgroup)]
    (linux/held {:id (:id cgroup)} #(run! (fn [^Closeable x] (.close x)) [attachment cgroup]))))

(kernel-test ^{:needs [[:long-values :cgroup-storage]]} b6-vanishing-cgroups
  (testing "storages that disappear do not end the iteration"
    ;; Large values, so that few make a chunk: 8 of them.
    (with-open [m ^Closeable (bpf/create {:type :cgroup-storage :key-size 8
                                          :value [:struct [:n :u64] [:rest [:bytes 32000]]]})
                program (programs/storage-counter m)]
      (let [cgroups (vec (repeatedly 20 #(counted-cgroup program)))
            by-id (into {} (map (juxt :id identity)) cgroups)]
        (try
          (let [order (keys-by-walking m)
                seen (read-keys m nil (fn [_ i]
                                        (when (= 7 i)
                                          (.close ^Closeable (by-id (order 8)))
                                          ;; The kernel takes its time.
                                          (fixture/eventually #(nil? (m (order 8)))))))]
            (is (= (set (keys by-id)) (set order)))
            (is (= (remove #{(order 8)} order) seen)
                "the kernel says that nothing follows a storage that is gone"))
          (finally (run! (fn [^Closeable cgroup] (.close cgroup)) cgroups)))))))

;; ---------------------------------------------------------------- changed by others

(defn- while-writing
  "Calls f while threads put and delete keys of `come-and-go` in a map, and put those of `stay`
  again where `rewrite?`."
  [m {:keys [stay come-and-go value] rewrite? :rewrite} f]
  (let [over (AtomicBoolean.)
        any (fn [^Random random xs] (nth xs (.nextInt random (count xs))))
        writers (vec (repeatedly 2 (fn []
                                     (fixture/thread
                                       #(let [random (Random.)]
                                          (while (not (.get over))
                                            (bpf/put! m (any random come-and-go)
                                                      (value (.nextInt random 1000)))
                                            (when rewrite?
                                              (bpf/put! m (any random stay)
                                                        (value (.nextInt random 1000))))
                                            (bpf/delete! m (any random come-and-go))))))))]
    (try
      (f)
      (finally
        (.set over true)
        (run! fixture/join writers)))))

(def ^:private pair [:struct [:a :u64] [:b :u64]])
(defn- pair-of [n] {:a n :b n})
(defn- cpus [n] (vec (repeat (count (feature/possible-cpus)) n)))

(def ^:private written
  "Maps that others write to while they are read; `:whole` tells whether a value is one that was
  written."
  [{:spec {:type :hash :key :u32 :value pair} :value pair-of}
   {:spec {:type :hash :key :u32 :value pair :flags #{:no-prealloc}} :value pair-of}
   {:spec {:type :percpu-hash :key :u32 :value :u64} :value cpus}
   {:spec {:type :lru-hash :key :u32 :value pair} :value pair-of}
   {:spec {:type :lpm-trie :key [:prefix :ipv4] :value :u32 :flags #{:no-prealloc}}
    :key #(str "10." (quot % 256) "." (mod % 256) "." (if (even? %) "0/24" "7/32")) :value identity}
   {:spec {:type :devmap-hash} :value (constantly 1)}])

(defn- forms-of [{:keys [key] :or {key identity} :as form}]
  (assoc form :stay (mapv key (range 200)) :come-and-go (mapv key (range 1000 1200))))

(defn- ways
  "How a map is read: `[options rounds]`, and what may be said of it: `:once` where each key that
  stays is seen once, `:rewritten` where that holds for keys that are written again too, `:mostly`
  where the kernel itself loses one at times."
  [{{:keys [type]} :spec}]
  (case type
    ;; The kernel goes through a trie without a lock, and may take a turn too many while a node is
    ;; replaced.
    :lpm-trie [[nil 40 #{:once :rewritten :mostly}]
               [{:reader :batches :chunk 3} 10 #{:once :rewritten :mostly}]
               [{:reader :keys} 10 #{:once :mostly}]]
    :devmap-hash [[nil 20 #{}]]
    ;; Key by key, a key may be missed that is written again at the same time, because it
    ;; moves to the front.
    [[nil 40 #{:once :rewritten}] [{:reader :batches :chunk 1} 10 #{:once :rewritten}]
     [{:reader :keys} 10 #{}]]))

(defn- missing [stay seen]
  (into #{} (remove seen) stay))

(kernel-test b6-concurrent-writes
  (testing "reads all stable entries while others write"
    (doseq [{:keys [spec value stay come-and-go] :as form} (map forms-of written)
            [options rounds holds?] (ways form)]
      (testing [spec options]
        (with-open [m ^Closeable (bpf/create (assoc spec :max-entries 16384))]
          (bpf/put-all! m (map #(vector % (value 1)) stay))
          (while-writing m (assoc form :rewrite (holds? :rewritten))
                         (fn []
                           (dotimes [_ (fixture/trials rounds)]
                             (let
                              [entries (bpf-map/reduce-entries
                                        m (fn [acc k v] (conj acc [k v])) [] options)
                               seen (frequencies (map first entries))
                               missed (missing stay seen)]
                               (if (holds? :mostly)
                                 (is (empty? (filter missed (missing stay (into #{} (map key) m))))
                                     "what one reading lost the next has")
                                 (is (empty? missed) "all that stayed is there"))
                               (is (empty? (remove (set (concat stay come-and-go)) (keys seen)))
                                   "and nothing that never was")
                               (when (holds? :once)
                                 (is (empty? (filter #(< 1 (seen % 0)) stay)) "twice"))
                               (when (= pair-of value)
                                 (is (every? (fn [[_ {:keys [a b]}]] (= a b))
                                             (filter #(contains? (set stay) (first %)) entries))
                                     "as one wrote it"))))
                           (when-not (holds? :mostly)
                             (is (empty? (missing stay (bpf/snapshot m))))
                             (is (<= (count stay) (bpf/count-entries m)
                                     (+ (count stay) (count come-and-go))))))))))))

(kernel-test ^{:needs [[:operation :hash :take!]]} b6-endless-restarts
  (testing "aborts after too many restarts with the entries that it read"
    ;; Of each chunk all that was seen and the key to come are deleted, and others put: the kernel
    ;; starts again each time.
    (let [fresh (atom 0)
          put-fresh! (fn [m]
                       (let [from (swap! fresh + 200)]
                         (bpf/put-all! m (zipmap (range from (+ from 200)) (range)))))
          again! (fn [m i] (when (= (dec at-once) (mod i at-once)) (bpf/drain! m) (put-fresh! m)))]
      ;; As on a kernel without batches
      (with-redefs [map-types/types (update map-types/types :hash dissoc :batch)]
        (doseq [[case read
                 whole?] [["reduced"
                           (fn [m] (reduce (fn [acc e] (again! m (count acc)) (conj acc e)) [] m))
                           vector?]
                          ;; It is a transient until then.
                          ["into a map" (fn [m] (into {} (map-indexed (fn [i e] (again! m i) e)) m))
                           map?]]]
          (testing case
            (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u32
                                                  :max-entries 200})]
              (put-fresh! m)
              (let [{:keys [message] :bpfmap/keys [error op so-far]} (error-of (read m))]
                (is (= [:iteration-aborted :reduce] [error op]))
                (is (str/includes? message
                                   "others delete keys faster than they can be read; the result so far is under :bpfmap/so-far"))
                (is (whole? so-far))
                (is (= (count so-far) (count (into {} so-far))) "no key twice")
                (is (<= at-once (count so-far) 400) "up to twice as many as there can be")))))))))
