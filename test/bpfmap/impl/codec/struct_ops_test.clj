(ns bpfmap.impl.codec.struct-ops-test
  (:require [bpfmap.fixture :refer [error-of]]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.codec.map-codecs :as map-codecs]
            [bpfmap.impl.type.node :as node]
            [bpfmap.type :as type]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (bpfmap.sys Codec)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(def ^:private wrapper
  "A struct of everything that may lie in one, around it what the kernel puts there."
  [:struct {:name "bpf_struct_ops_x"}
   [:common [:struct [:refcnt :s32] [:state [:enum :u32 {:init 0 :in-use 1}]]]]
   [:data {:offset 64}]])

(def ^:private x
  [:struct {:name "x"}
   [:init [:ptr "function"]]
   [:release [:typedef "release_fn" [:ptr "function"]]]
   [:owner [:ptr "struct module"]]
   [:name [:string 16]]
   [:low [:bits :u32 3]]
   [:high [:bits :u32 5]]
   [nil [:struct [:a :u32] [:b :u16]]]
   [nil [:union [:n :u64] [:bytes [:bytes 8]] [nil [:struct [:half :u32] [:other :u32]]]]]
   [:u [:union [:c :u8] [:d :u64]]]
   [:list [:typedef "list" [:struct [:next :ptr] [:prev :ptr]]]]
   [:slots [:array :u16 3]]])

(def ^:private value-type (assoc wrapper 3 [:data x {:offset 64}]))

(def ^:private of-type (codec/codec value-type nil [:value]))
(def ^:private c (map-codecs/codec of-type (node/node value-type nil [])))

(defn- encoded [^Codec codec value]
  (let [bytes (byte-array (repeat (.size codec) -1))] ; nothing of what lay there before may stay
    (.encode codec value (MemorySegment/ofArray bytes) 0)
    bytes))

(defn- decoded [^Codec codec ^bytes bytes]
  (.decode codec (MemorySegment/ofArray bytes) 0))

(def ^:private zeros (decoded of-type (byte-array (type/size value-type))))

(deftest function-pointer-members
  (testing "finds the members that point to functions"
    (is (= [:init :release] (map-codecs/functions (node/node value-type nil []))))
    (is (= [:init :release]
           (map-codecs/functions
            (node/node [:typedef "t" (assoc wrapper 3 [:data :x])] {:x x} []))))
    (are [type] (= [] (map-codecs/functions (node/node type nil [])))
      :u64
      [:bytes 256]
      [:struct [:init [:ptr "function"]]]
      [:struct [:data [:struct [:init [:ptr "struct function"]] [:more :ptr]]]])))

(deftest omitted-members
  (testing "omitted members are zero"
    (are [given path->value]
         (= (reduce-kv assoc-in zeros path->value) (decoded of-type (encoded c given)))
      {} {}
      {:data {}} {}
      {:data {:init 7}} {[:data :init] 7}
      {:common {:state :in-use}} {[:common :state] :in-use}
      {:data {:name "mine" :high 31}} {[:data :name] "mine" [:data :high] 31}
      {:data {:b 5}} {[:data :b] 5}
      {:data {:list {:prev 9}}} {[:data :list :prev] 9}
      (sorted-map :data (sorted-map :slots [1 2 3])) {[:data :slots] [1 2 3]})))

(deftest union-from-one-member
  (testing "a union is given by one of its members"
    (let [of (fn [data]
               (select-keys (:data (decoded of-type (encoded c {:data data})))
                            [:n :half :other :u]))]
      (is (= {:n 1 :half 1 :other 0 :u {:c 0 :d 0}} (of {:n 1})))
      (is (= {:n 0x200000001 :half 1 :other 2 :u {:c 0 :d 0}} (of {:half 1 :other 2})))
      (is (= {:c 0x34 :d 0x1234} (:u (of {:u {:d 0x1234}})))))))

(deftest misfits-are-rejected
  (testing "rejects values that do not fit"
    (are [value path]
         (= [:invalid-value path] ((juxt :bpfmap/error :bpfmap/path) (error-of (encoded c value))))
      7 [:value]
      nil [:value]
      {:dta {}} [:value :dta]
      {:data 7} [:value :data]
      {:data {:inti 7}} [:value :data :inti]
      {:data {nil 7}} [:value :data nil]
      {:data {"init" 7}} [:value :data "init"]
      (sorted-map "data" {}) [:value "data"]
      {:data {:slots [1]}} [:value :data :slots]
      {:data {:u {}}} [:value :data :u])))

(deftest programs-as-references
  (testing "programs read as references"
    (is (= {:init {:program-id 7} :release nil :owner 9}
           (select-keys (:data (decoded c (encoded c {:data {:init 7 :owner 9}})))
                        [:init :release :owner])))
    (is (= 7
           (let [^Codec plain (codec/codec :u8)]
             (decoded (map-codecs/codec plain (node/node :u8 nil [])) (byte-array [7]))))
        "without any, nothing changes")))

(defspec whole-value-unchanged 100
  (prop/for-all [value (type/->generator value-type)]
                (java.util.Arrays/equals ^bytes (encoded of-type value) ^bytes (encoded c value))))

(defspec partial-values 100
  (let [parts [:init :release :owner :name :low :high :list :slots]]
    (prop/for-all [value (type/->generator value-type)
                   kept (gen/set (gen/elements parts))]
                  (= (update zeros :data merge (select-keys (:data value) kept))
                     (decoded of-type (encoded c {:data (select-keys (:data value) kept)}))))))
