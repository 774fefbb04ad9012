(ns bpfmap.impl.cache-test
  "Caches for maps that are opened and created often never make one map read as another."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.btf.writer :as writer]
            [bpfmap.impl.cache :as cache]
            [bpfmap.impl.kernel.btf :as btf]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.impl.map.map-btf :as map-btf]
            [bpfmap.impl.type.node :as node]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.test :refer [deftest is testing]]
            [clojure.test.check.generators :as gen])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.sys Fd)
           (java.io Closeable)
           (java.util.concurrent ConcurrentHashMap)))

(set! *warn-on-reflection* true)

(deftest cache-size-is-bounded
  (testing "a cache never exceeds its size"
    (let [^ConcurrentHashMap c (cache/cache)]
      (dotimes [i 1000]
        (is (= (* 2 i) (cache/through c 10 i #(* 2 i))))
        (is (<= (.size c) 10)))
      (testing "and keep the latest values"
        (is (= 1998 (cache/through c 10 999 #(throw (IllegalStateException.)))))))))

(deftest keys-by-identity
  (testing "cache keys compare types by identity"
    (let [a [:struct [:x :u8]] b (vec (list :struct [:x :u8]))]
      (is (= a b))
      (is (= (cache/by-identity a :u8 nil [1]) (cache/by-identity a :u8 nil [1])))
      (is (not= (cache/by-identity a :u8 nil [1]) (cache/by-identity b :u8 nil [1])))
      (is (not= (cache/by-identity a :u8 nil [1]) (cache/by-identity a :u8 nil [2])))
      (is (not= (cache/by-identity a :u8 nil [1]) (cache/by-identity :u8 a nil [1]))))))

(kernel-test specs-that-differ
  (testing "different specs create different maps"
    (let [base {:type :hash :key :u32 :value :u64 :max-entries 8}]
      (testing "in anything but their types"
        (doseq [[change k expected] [[{:name "cache_a"} :name "cache_a"]
                                     [{:name "cache_b"} :name "cache_b"]
                                     [{} :name ""]
                                     [{:max-entries 9} :max-entries 9]
                                     [{:flags #{:no-prealloc}} :flags #{:no-prealloc}]
                                     [{:type :lru-hash} :type :lru-hash]
                                     [{:key :s32} :key :s32]
                                     [{:value :f64} :value :f64]]
                _ (range 2)]
          (with-open [m ^Closeable (bpf/create (merge base change))]
            (is (= expected (get (bpf/info m) k)) change))))
      (testing "in the order of names of the same number"
        (let [spec (fn [names] (assoc base :value [:enum :u32 names]))
              [one two] [(array-map :A 1 :B 1) (array-map :B 1 :A 1)]]
          (is (= one two))
          (doseq [[names read] [[one :A] [two :B] [one :A]]]
            (with-open [m ^Closeable (bpf/create (spec names))]
              (bpf/put! m 1 1)
              (is (= read (m 1)))))))
      (testing "and a bad one is refused after a good one"
        (doseq [change [{:name :keyword} {:max-entries -1} {:flags #{:nonsense}} {:freeze 7}
                        {:max-entries (range)}]]
          (with-open [_ ^Closeable (bpf/create base)]
            (is (= :invalid-spec
                   (:bpfmap/error (fixture/error-of (bpf/create (merge base change)))))
                change)))))))

(kernel-test types-of-a-map
  (testing "a map opens with its own types"
    (testing "whatever was opened before"
      (let [specs (for [[k v] (partition 2
                                         (gen/sample
                                          (gen/such-that #(pos? (type/size %)) types/a-struct) 40))]
                    {:type :hash :key k :value v :max-entries 8})]
        (doseq [_ (range 2) {:keys [key value] :as spec} specs]
          (with-open [m ^Closeable (bpf/create spec)
                      again ^Closeable (bpf/open (:id (bpf/info m)))
                      third ^Closeable (bpf/open (:id (bpf/info m)))]
            (is (= (bpf/spec again) (bpf/spec third)))
            (is (= (map type/size [key value])
                   (map type/size ((juxt :key :value) (bpf/spec again)))))
            (is (= (keys (type/offsets (:value (bpf/spec m))))
                   (keys (type/offsets (:value (bpf/spec m)))))))))
      (testing "and by another type of the same BTF object"
        (let [integer (fn [name signed?]
                        {:kind :int :name name :size 4 :bits 32 :offset 0 :signed signed?
                         :char false :bool false})]
          (with-open [btf ^Fd (btf/load (writer/blob [(integer "int" true)
                                                      (integer "unsigned int" false)]) nil
                                        {:op :create})]
            (let [open (fn [k v]
                         (with-open
                          [fd ^Fd (map/create {:type :hash :key-size 4 :value-size 4 :max-entries 1
                                               :flags #{}
                                               :name "cache" :btf {:fd btf :key k :value v}}
                                              {:op :create})]
                           (let [number (.acquire fd)]
                             (try
                               (with-open [m ^Closeable (bpf/open {:fd number})]
                                 ((juxt :key :value) (bpf/spec m)))
                               (finally (.release fd))))))]
              (doseq [_ (range 2)]
                (is (= [[:s32 :u32] [:u32 :s32] [:s32 :s32]]
                       [(open 1 2) (open 2 1) (open 1 1)]))))))))))

(kernel-test btf-id-expiry
  (testing "types that are cached by BTF id expire after a minute"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 8})]
      (let [id (:id (bpf/info m))
            c ^ConcurrentHashMap @#'map-btf/types-cache
            {:keys [btf-id btf-key-type-id btf-value-type-id]} (bpf/info m)
            k (@#'map-btf/->TypeIds btf-id btf-key-type-id btf-value-type-id :hash)
            told (fn [read-at]
                   (@#'map-btf/->BtfTypes (node/node :s32 nil [:key])
                                          (node/node :s64 nil [:value]) read-at))
            types #(with-open [m ^Closeable (bpf/open id)] ((juxt :key :value) (bpf/spec m)))]
        (is (= [:u32 :u64] (types)))
        (testing "what another object of the same id would have left there is used"
          (.put c k (told (System/nanoTime)))
          (is (= [:s32 :s64] (types))))
        (testing "and read again when it is older"
          (.put c k (told (- (System/nanoTime) 60000000001)))
          (is (= [:u32 :u64] (types))))
        (testing "and a handle's parts are its own"
          (with-open [a ^Closeable (bpf/open id)
                      again ^Closeable (bpf/open id)
                      b ^Closeable (bpf/open id {:access :read-only})]
            (is (identical? (.-key-codec ^BpfMap a) (.-key-codec ^BpfMap again)))
            (is (= :read-only (:bpfmap/error (fixture/error-of (bpf/put! b 1 1)))))
            (bpf/put! a 1 1)
            (is (= 1 (b 1)))))))))

(kernel-test ^:volume handles-and-caches
  (testing "caches never return the types of another map"
    (testing
     "when maps of all sorts are made, opened and closed in turn, and their ids and descriptors come round"
      (let [shapes (for [field [:a :b]
                         names [(array-map :A 1 :B 1) (array-map :B 1 :A 1)]
                         name ["own_a" "own_b" nil]
                         type [:hash :lru-hash :percpu-hash]]
                     (cond-> {:type type :key [:struct [field :u32]]
                              :value [:struct [field :u64] [:e [:enum :u32 names]]] :max-entries 8}
                       name (assoc :name name)))
            random (java.util.Random. 10)
            shapes (vec shapes)
            pick #(nth % (.nextInt random (count %)))
            live (java.util.ArrayDeque.)
            bare (fn [type] (into [] (remove map?) type)) ; without the struct's own name
            check (fn [{:keys [spec id path entry frozen]} ^BpfMap m access]
                    (let [info (bpf/info m)
                          said (bpf/spec m)]
                      (is (= [id (:type spec) (:name spec "") frozen]
                             (map info [:id :type :name :frozen])))
                      (is (= [(:type spec) (:name spec "")] [(:type said) (str (:name said))]))
                      (is (= (:key spec) (bare (:key said))) "the same names of fields")
                      (is (= access (.-access m)))
                      (is (= (if path [path] []) (bpf/pinned-paths m)))
                      (when-not (= :write-only access)
                        (is (= [entry] (map first (bpf/snapshot m)))))))]
        (dotimes [i 300]
          (when (< 12 (.size live))
            (let [{:keys [m]} (.poll live)] (bpf/close m)))
          (let [spec (pick shapes)
                field (first (second (:key spec)))
                m (bpf/create spec)
                key {field i}
                value {field i :e (pick [:A :B])}]
            (if (= :percpu-hash (:type spec))
              (bpf/put! m key value {:cpus :all})
              (bpf/put! m key value))
            (let [frozen (.nextBoolean random)]
              (when frozen (bpf/freeze! m))
              (.add live {:m m :spec spec :id (:id (bpf/info m)) :entry key :frozen frozen})))
          (let [{:keys [m spec id] :as known} (pick (vec live))
                access (pick [:read-write :read-only])]
            (check known m :read-write)
            (with-open [again ^Closeable (bpf/open id {:access access})]
              (check known again access)
              (is (= (bpf/snapshot m) (bpf/snapshot again)))
              (is (= (str (:name spec)) (str (:name (bpf/info again))))))))
        (doseq [{:keys [m]} live] (bpf/close m))))))
