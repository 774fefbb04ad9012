(ns bpfmap.impl.map.raw-entries-test
  "Nothing is merged, lost or counted wrongly, whatever the bytes that others left in a map: the
  multiset of raw entries is conserved by every operation on entries that were read."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.since :as since]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.edn :as edn]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.io Closeable)
           (java.util Random)))

(set! *warn-on-reflection* true)

(def ^:private special [0 0 0 0 0x80 0x7f 0xff 0xf8 97 98 1 2])

(defn- random-bytes
  "A generator of bytes in which special values are likely."
  [^Random random n]
  (bytes/->bytes (repeatedly n #(if (.nextBoolean random)
                                  (nth special (.nextInt random (count special)))
                                  (.nextInt random 256)))))

(defn- relatives
  "Bytes and others that differ from them in one bit each: keys that would be one if that bit
  meant nothing."
  [^Random random view n]
  (into [view]
        (repeatedly n #(let [array (bytes/->array view)
                             i (.nextInt random (alength array))]
                         (aset array i
                               (unchecked-byte
                                (bit-xor (aget array i) (bit-shift-left 1 (.nextInt random 8)))))
                         (bytes/wrap array)))))

(defn- raw-keys [random n]
  (distinct (mapcat #(relatives random % 8) (repeatedly 5 #(random-bytes random n)))))

(defn- raw-prefixes
  "Keys of an LPM trie that the kernel takes: any length up to that of the address, and any bits
  behind it. What a trie compares of them differs."
  [^Random random n]
  (let [address (- (long n) 4)]
    (vals (into {}
                (map (fn [view]
                       (let [length (.nextInt random (int (inc (* 8 address))))
                             view (bytes/->bytes (concat [length 0 0 0] (drop 4 view)))
                             bits (mapcat (fn [x] (map #(bit-test x %) (range 7 -1 -1)))
                                          (drop 4 view))]
                         [(take length bits) view])))
                (raw-keys random n)))))

(defn- read-again
  "A value through its printed form."
  [value]
  (edn/read-string {:readers {'bpfmap/bytes bytes/->bytes}} (pr-str value)))

;; ---------------------------------------------------------------- one map under a pair of types

(defn- fill [raw entries]
  (doseq [[k v] entries] (bpf/put! raw k v)))

(defn- raw-entries [raw]
  (into {} raw))

(defn- next-keys
  "The keys of a loop over next-key; ends where it would go on for ever."
  [m most]
  (loop [found [] k (bpf/next-key m)]
    (if (or (nil? k) (< most (count found)))
      found
      (recur (conj found k) (bpf/next-key m k)))))

(defn- conserved?
  "Whether all operations on what is read under types conserve raw entries; a vector of what did
  not."
  [raw m other raw-other {takes? :takes drains? :drains} entries]
  (let [n (count entries)
        failed (volatile! [])
        check (fn [what ok?] (when-not ok? (vswap! failed conj what)))
        refill #(do (fill raw entries) (raw-entries raw))
        before (refill)
        ks (map key m)]
    (check :count (= n (count before) (bpf/count-entries m)))
    (check :snapshot (= n (count (bpf/snapshot m))))
    (check :into (= n (count (into {} m)) (count (set ks))))
    (check :reduce (= n (reduce (fn [i _] (inc i)) 0 m) (reduce-kv (fn [i _ _] (inc i)) 0 m)))
    (check :next-key (= (set ks) (set (next-keys m n))))
    (check :next-key-count (= n (count (next-keys m n))))
    (check :get (every? (fn [[k v]] (= (pr-str v) (pr-str (m k)))) m))
    (check :lookup-all (= n (count (bpf/lookup-all m ks))))
    (check :put-all! (and (= n (bpf/put-all! other (bpf/snapshot m)))
                          (= before (raw-entries raw-other))))
    (check :put!
           (do (doseq [[k v] (bpf/snapshot m)] (bpf/put! m k v)) (= before (raw-entries raw))))
    (check :printed (= before (do (bpf/delete-all! raw-other (keys before))
                                  (doseq [[k v] m]
                                    (bpf/put! other (read-again k) (read-again v)))
                                  (raw-entries raw-other))))
    (check :delete-all! (and (= n (bpf/delete-all! m (mapv key m))) (= {} (raw-entries raw))))
    (refill)
    (check :delete! (and (every? #(true? (bpf/delete! m %)) (mapv key m)) (= {} (raw-entries raw))))
    (refill)
    (when takes?
      (check :take!
             (and (every? #(not= ::none (bpf/take! m % ::none)) (mapv key m))
                  (= {} (raw-entries raw)))))
    (when drains?
      (refill)
      (let [drained (bpf/drain! m)]
        (check :drain! (and (= n (count drained)) (= {} (raw-entries raw))))
        (check :drained (= n (bpf/put-all! m drained)))
        (check :drained-bytes (= before (raw-entries raw))))
      (let [drained (bpf/drain-into! m conj [])]
        (check :drain-with-f (and (= n (count drained)) (= {} (raw-entries raw))))
        (bpf/put-all! m drained)
        (check :drained-with-f (= before (raw-entries raw)))))
    (bpf/delete-all! raw (keys before))
    (bpf/delete-all! raw-other (keys before))
    (check :all-deleted (= [{} {}] [(raw-entries raw) (raw-entries raw-other)]))
    @failed))

(defn- with-maps
  "Calls f with two maps of bytes, and each again under types: `(f raw typed raw-other
  typed-other)`."
  [spec types f]
  (let [by-id #(bpf/open (:id (bpf/info %)) types)]
    (with-open [raw ^Closeable (bpf/create spec)
                raw-other ^Closeable (bpf/create spec)
                m ^Closeable (by-id raw)
                other ^Closeable (by-id raw-other)]
      (f raw m raw-other other))))

(defn- holds-under
  "What did not hold for a kind of map under types, with random entries; nil if all did."
  [{:keys [type flags keys-of cpus] :as kind} key-type value-type seed]
  (let [random (Random. seed)
        key-size (type/size key-type)
        value-size (type/size value-type)
        raw-value (fn []
                    (random-bytes random (if cpus (* cpus (quot (+ value-size 7) 8) 8) value-size)))
        entries (into {} (map (fn [k] [k (raw-value)])) ((or keys-of raw-keys) random key-size))]
    (with-maps (cond-> {:type type :key-size key-size :value-size value-size
                        :max-entries (* 64 (count entries))}
                 flags (assoc :flags flags))
      {:key key-type :value value-type}
      (fn [raw m raw-other other]
        ;; Hash maps have take!, which drain! uses for some types, from Linux 5.14 on.
        (let [takes? (or (not (:takes kind)) (since/has? [:operation type :take!]))
              kind (cond-> kind (not takes?) (dissoc :takes :drains))]
          (not-empty (conserved? raw m other raw-other kind entries)))))))

(def ^:private hash-kinds
  [{:type :hash :takes true :drains true}
   {:type :lru-hash :takes true :drains true}])

(def ^:private named-types
  "The types of keys that the law is easily broken for, and their like."
  [[:struct [:group :u64] [:cache :u32]]
   [:struct [:proto :u8] [:addr :u32]]
   [:struct [:a [:bits :u32 5]] [:b [:bits :u32 7]]]
   [:string 8] [:c-string 8] :f32 :f64 :f32be :bool :char [:enum :u8 {:A 1 :B 2}] :u128 :s128be
   :port :ipv4 :ipv6 :mac
   [:prefix :ipv4] [:prefix :ipv6] [:array :f32 3] [:array [:struct [:p :u8] [:q :u16]] 2]
   [:union [:f :f32] [:n :u32] [:s [:string 3]]]
   [:struct [:name [:string 4]] [:in [:struct [:x :bool] [:y :f64]]]]
   [:struct [:lock :spin-lock] [:n :u16]]])

(kernel-test ^:volume named-types-keep-entries
  (testing "operations under the named types keep every raw entry"
    (doseq [kind hash-kinds, t named-types]
      (testing [(:type kind) t]
        (is (nil? (holds-under kind t t (hash t))))))
    (testing "keys that functions of the user's do not keep apart"
      (is (nil? (holds-under (first hash-kinds) [:via :u32 identity #(quot (long %) 7)] :u32 7))))))

(kernel-test ^:volume any-types-keep-entries
  (testing "operations under any types keep every raw entry"
    (let [small (gen/such-that #(< 0 (long (type/size %)) 300) types/any-type 200)]
      (dotimes [seed (fixture/trials 60)]
        (let [key-type (gen/generate small 20 seed)
              value-type (gen/generate small 20 (+ 1000 seed))]
          (is (nil? (holds-under (first hash-kinds) key-type value-type seed))
              (pr-str key-type value-type)))))))

(kernel-test per-cpu-bytes-kept
  (testing "per-CPU values keep their bytes"
    (let [kind {:type :percpu-hash :takes true :drains true
                :cpus (count (feature/possible-cpus))}]
      (doseq [t [:u8 :u32 :u64 [:string 5] [:struct [:a :u64] [:b :u32]] [:bytes 12] :f32]]
        (testing t
          (is (nil? (holds-under kind :u32 t (hash t)))))))))

(kernel-test prefixes-keep-raw-entries
  (testing "operations under prefix types keep every raw entry"
    (doseq [t [[:prefix :ipv4] [:prefix :ipv6]
               [:struct [:prefixlen :u32] [:data [:array :bool 4]]]]]
      (testing t
        (is (nil? (holds-under {:type :lpm-trie :flags #{:no-prealloc} :keys-of raw-prefixes} t :f64
                               (hash t))))))))

(kernel-test queues-keep-raw-values
  (testing "operations on queues keep every raw value"
    (doseq [t [[:struct [:proto :u8] [:addr :u32]] [:string 8] :f32 :bool]]
      (testing t
        (let [random (Random. 3)
              values (vec (repeatedly 50 #(random-bytes random (type/size t))))]
          (with-maps {:type :queue :value-size (type/size t) :max-entries 100} {:value t}
            (fn [raw m raw-other other]
              (doseq [take-all [bpf/drain! #(bpf/drain-into! % conj [])]]
                (run! #(bpf/push! raw %) values)
                (run! #(bpf/push! other %) (take-all m))
                (is (= values (bpf/drain! raw-other)))))))))))

(def ^:private small-maps
  "Maps with few keys and values, so that two often share some; nil is a value too."
  (gen/map (gen/choose 0 5) (gen/elements [nil 0 1])))

(defspec compared-readings 200
  (prop/for-all [before small-maps
                 after small-maps]
                (let [found (into [] (raw-entries/compared before after = vector))
                      only (fn [change]
                             (into {} (for [[c k old new] found :when (= change c)] [k [old new]])))
                      shared (filter #(contains? after %) (keys before))]
                  (and (= (count found) (count (merge before after)))
                       (= (only :added)
                          (update-vals (reduce dissoc after (keys before)) #(vector nil %)))
                       (= (only :removed)
                          (update-vals (reduce dissoc before (keys after)) #(vector % nil)))
                       (= (merge (only :same) (only :changed))
                          (into {} (for [k shared] [k [(before k) (after k)]])))
                       (every? (fn [[old new]] (= old new)) (vals (only :same)))
                       (not-any? (fn [[old new]] (= old new)) (vals (only :changed)))
                       (= (into [] (raw-entries/compared nil after = vector))
                          (for [[k v] after] [nil k nil v]))))))

(deftest rates-shaped-like-values
  (testing "rates have the same structure as the value"
    (are [before now seconds rates] (= rates (raw-entries/rates before now seconds))
      10 30 2.0 10.0
      nil 30 2.0 15.0
      30 10 2.0 -10.0
      {:packets 1 :comm "a"} {:packets 3 :comm "b"} 1.0 {:packets 2.0}
      nil {:packets 3} 1.0 {:packets 3.0}
      {:a {:b 1}} {:a {:b 2}} 1.0 {:a {:b 1.0}}
      [1 2] [2 4] 1.0 [1.0 2.0]
      0 18446744073709551615N 1.0 18446744073709552000.0
      18446744073709551614N 18446744073709551615N 1.0 1.0
      "a" "b" 1.0 nil
      {:comm "a"} {:comm "b"} 1.0 nil
      [] [] 1.0 nil
      ["a"] ["b"] 1.0 nil)))
