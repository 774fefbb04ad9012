(ns bpfmap.impl.map-types-test
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.impl.map-types :as map-types]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop]))

(set! *warn-on-reflection* true)

(defn- c-name [prefix k]
  (str prefix (str/replace (str/upper-case (name k)) "-" "_")))

(deftest header-numbers
  (testing "the numbers match the kernel header"
    (let [types (into {} (map (fn [[k row]] [(c-name "BPF_MAP_TYPE_" k) (:number row)]))
                      map-types/types)
          flags (into {} (map (fn [[k row]] [(c-name "BPF_F_" k) (bit-shift-left 1 (:bit row))]))
                      map-types/flags)
          element-flags (into {} (map (fn [[k {:keys [value]}]]
                                        [(c-name (if (#{:any :noexist :exist} k) "BPF_" "BPF_F_") k)
                                         value]))
                              map-types/element-flags)
          ours (merge types flags element-flags)
          header (fixture/c-values ["linux/bpf.h"] (keys ours))]
      (if-not header
        (fixture/skip! "no C compiler to compare the map types and flags with")
        (do
          (is (= (select-keys ours (keys header)) header))
          (is (< 40 (count header)) "the header knows most of them"))))))

(deftest unique-type-numbers
  (testing "every type has its own number"
    (is (= (range 1 36) (sort (map :number (vals map-types/types)))))
    (is (= (range 20) (sort (map :bit (vals map-types/flags)))))))

(deftest names-and-numbers
  (testing "type names and numbers convert to each other"
    (are [number name] (and (= name (map-types/type-name number))
                            (= number (map-types/type-number name)))
      1 :hash 2 :array 33 :arena 99 99)
    (is (nil? (map-types/type-number :nonsense)))))

(defspec flag-word-round-trip 200
  (prop/for-all [word (gen/choose 0 0xffffffff)]
                (= word (map-types/flag-word (map-types/flag-set word)))))

(deftest unknown-flag-bits
  (testing "unknown flag bits stay numbers"
    (is (= #{:no-prealloc 0x40000000} (map-types/flag-set 0x40000001)))))

(deftest releases-as-numbers
  (testing "compares releases as numbers"
    (are [release version newer?] (= newer? (map-types/at-least? release version))
      "6.18.44-fc-v769" "5.14" true
      "5.4.0-150-generic" "5.14" false
      "5.14" "5.14" true
      "6.2.0" "6.18" false
      "7.0-rc1" "6.18" true)))

(deftest alternative-is-named
  (testing "a denied operation names its alternative"
    (are [type op value-size words]
         (str/includes? (str (map-types/alternative type op value-size)) words)
      :array :delete! 8 "put! a zero value"
      :array :push! 8 "use put!"
      :queue :lookup 8 "use push!, pop! and peek"
      :bloom-filter :pop! 8 "push! and might-contain?"
      :lpm-trie :take! 8 "lookup, then delete!"
      :sockmap :lookup 4 "only if values have 8 bytes"
      :ringbuf :put! 0 "share its memory"
      :struct-ops :insert! 256 "once in the life of the map"
      :struct-ops :replace! 256 "into a new map"
      99 :lookup 8 "does not know the layout of elements of this type")
    (is (nil? (map-types/alternative :hash :delete! 8)))
    (is (nil? (map-types/alternative :sockmap :lookup 8)))))

(deftest most-keys-by-type
  (testing "a map has at most as many keys as slots"
    (are [type max-entries most] (= most (map-types/most-keys type max-entries))
      :hash 10 10
      :stack-trace 10 16
      :stack-trace 16 16
      :stack-trace 1 1
      :cgroup-storage 0 Long/MAX_VALUE)))

(deftest implied-key-types
  (testing "keys with only one possible type get that type"
    (are [type key-size found] (= found (map-types/key-type type key-size))
      :array nil :u32
      :array 0 :u32
      :array 8 nil
      :hash 4 nil
      :cgroup-storage nil :u64
      :cgroup-storage 8 :u64
      :cgroup-storage 16 [:struct [:cgroup-id :u64] [:attach-type :u32]]
      :cgroup-storage 12 nil
      99 4 nil)))

(deftest alternative-per-denial
  (testing "every denied operation of every type has an alternative"
    (doseq [[type {:keys [ops]}] map-types/types
            op map-types/operations]
      (is (= (contains? ops op) (nil? (map-types/alternative type op 8))) (str type " " op))
      (is (contains? map-types/operations op)))))

(deftest required-row-columns
  (testing "every row has the required columns"
    (doseq [[type row] map-types/types
            :let [{:keys [key-size max-entries flags requires ops batch btf]} row]]
      (is (every? map-types/flags flags) (str type))
      (is (every? flags requires) (str type))
      (is (every? map-types/operations ops) (str type))
      (is (every? #{:read :take :write :delete} batch) (str type))
      (is (contains? #{nil :none :required :index :value :kernel} btf) (str type))
      (is (and (or key-size (:keys row)) max-entries (or (:value-size row) (:values row)))
          (str type)))))

(deftest refusals-by-type
  (testing "a handle rejects what its type or access does not allow"
    (is (= #{:push! :pop! :peek :might-contain?}
           (set (keys (map-types/refusals :hash 8 :read-write))))
        "operations of maps without keys")
    (are [type access op refusal] (= refusal (first (get (map-types/refusals type 8 access) op)))
      :hash :read-only :put! :read-only
      :hash :read-only :freeze! :read-only
      :hash :read-only :lookup nil
      :hash :write-only :reduce :write-only
      :hash :write-only :put! nil
      :array :read-write :delete! :not-supported
      :array :read-only :delete! :not-supported
      :struct-ops :read-write :freeze! :not-supported
      :queue :read-write :freeze! nil
      :bloom-filter :read-write :freeze! nil
      :arena :read-write :freeze! nil
      :ringbuf :read-only :freeze! :read-only
      :ringbuf :read-write :lookup :not-supported
      4242 :read-write :lookup :not-supported
      4242 :read-write :freeze! nil)))

(deftest flag-name-or-bit
  (testing "finds a flag by name or by bit"
    (are [given flag found?] (= found? (map-types/has-flag? given flag))
      #{:no-prealloc} :no-prealloc true
      [1] :no-prealloc true
      [0x401] :mmapable true
      #{:mmapable 2} :no-common-lru true
      #{:mmapable} :no-prealloc false
      nil :no-prealloc false
      "no-prealloc" :no-prealloc false
      [nil 1.5 -1 "x"] :no-prealloc false)
    (is (= [32 8 8]
           (map #(map-types/by-flag {:stack-build-id 32 nil 8} %) [[:stack-build-id] [] nil])))))
