(ns bpfmap.exec.diff-test
  "Differences: by bytes if both sides have the same types, else by decoded data."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.cli.calling :refer [bpfmap id-of lines-of]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check :as tc]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn- of-bytes
  "A hash map of these types with these raw entries."
  ^Closeable [key value entries]
  (let [m (bpf/create {:name "raw" :type :hash :key key :value value :max-entries 64})]
    (with-open [^Closeable raw (raw-entries/open-raw m)]
      (bpf/put-all! raw (map (fn [[k v]] [(bytes/->bytes k) (bytes/->bytes v)]) entries)))
    m))

(kernel-test nan-without-change
  (testing "a NaN that stays the same is not a change"
    (with-open [a (of-bytes :u8 [:struct [:f :f32] [:n :u32]]
                            {[1] "0000c07f 01000000" [2] "0000c07f 01000000"})
                b (of-bytes :u8 [:struct [:f :f32] [:n :u32]]
                            {[1] "0000c07f 01000000" [2] "0000c07f 02000000"})]
      (is (= [2] (map :key (exec/diff {:old a :new b}))))
      (is (= [] (exec/diff {:old a :new a})))
      (is (= [] (exec/diff {:old a :seconds 0.01}))))))

(kernel-test signed-zeros-differ
  (testing "zeros of different signs are different values"
    (with-open [a (of-bytes :u8 :f64 {[1] "0000000000000000"})
                b (of-bytes :u8 :f64 {[1] "0000000000000080"})]
      (is (= [[0.0 -0.0]] (map (juxt :old :new) (exec/diff {:old a :new b})))))))

(kernel-test keys-with-padding
  (testing "keys that differ only in padding are different keys"
    (with-open [a (of-bytes [:struct [:group :u64] [:cache :u32]] :u32 {(repeat 16 0) "01000000"})
                b (of-bytes [:struct [:group :u64] [:cache :u32]] :u32 {(repeat 16 0) "01000000"
                                                                        (concat (repeat 15 0)
                                                                                [1]) "01000000"
                                                                        (concat (repeat 15 0)
                                                                                [2]) "01000000"})]
      (is (= {:added 2 :changed 0 :removed 0 :same 1}
             (select-keys (meta (exec/diff {:old a :new b})) [:added :changed :removed :same])))
      (is (= "2 added, 0 changed, 0 removed, 1 the same\n"
             (:err (bpfmap "diff" (id-of a) (id-of b)))))
      (is (= "0 added, 0 changed, 2 removed, 1 the same; 1 row is shown\n"
             (:err (bpfmap "diff" (id-of b) (id-of a) "--limit" "1")))))))

(kernel-test different-types
  (testing "compares maps of different types by their decoded values"
    (with-open [narrow (of-bytes :u32 :u32 {"01000000" "05000000", "02000000" "06000000"})
                wide (of-bytes :u64 :u64
                               {"0100000000000000" "0500000000000000"
                                "0200000000000000" "0700000000000000"})
                swapped (of-bytes :u32be :u32 {"00000001" "05000000", "00000002" "06000000"})
                untyped (of-bytes [:bytes 4] [:bytes 4]
                                  {"01000000" "05000000", "02000000" "06000000"})]
      (is (= [[:changed 2 6 7]]
             (map (juxt :change :key :old :new) (exec/diff {:old narrow :new wide}))))
      (is (= [] (exec/diff {:old narrow :new swapped})))
      (is (= [] (exec/diff {:old narrow :new untyped}))
          "bytes are bytes, whether or not somebody says what they mean"))))

(kernel-test per-cpu-values
  (testing "compares per-CPU values as they are shown"
    (with-open [^Closeable a (bpf/create {:type :percpu-array :value [:bytes 3] :max-entries 1})
                ^Closeable b (bpf/create {:type :percpu-array :value [:bytes 3] :max-entries 1})]
      (let [n (count (a 0))
            values (fn [x y] (vec (cons x (repeat (dec n) y))))]
        (bpf/put! a 0 (values [1 0 0] [2 0 0]))
        (bpf/put! b 0 (values [1 0 0] [3 0 0]))
        (is (= [] (exec/diff {:old a :new b :cpus 0})))
        (when (< 1 n)
          (is (= 1 (count (exec/diff {:old a :new b}))))
          (is (= [[(bytes/->bytes [2 0 0]) (bytes/->bytes [3 0 0])]]
                 (map (juxt :old :new) (exec/diff {:old a :new b :cpus 1}))))))
      (is (re-find #"Unknown CPU 5000"
                   (:message (fixture/error-of (exec/diff {:old a :new b :cpus 5000}))))))))

(deftest same-data-values
  (testing "same-data? compares decoded values"
    (are [same? a b] (= same? (raw-entries/same-data? a b))
      true ##NaN ##NaN
      false 0.0 -0.0
      true {:a [1 ##NaN]} {:a [1 ##NaN]}
      false {:a 1} {:b 1}
      false {:a nil} {:b nil}
      false [1] [1 2]
      false 1 1.0
      true "a" "a")))

(def ^:private two-maps
  "A type for keys and one for values, and the raw entries of two maps."
  (gen/let [key (gen/such-that #(<= 1 (type/size %) 64) types/a-type 100)
            value (gen/such-that #(<= 1 (type/size %) 64) types/a-type 100)
            base (gen/vector (gen/choose 0 255) (type/size key))
            a-key (gen/return (gen/fmap (fn [[i x]]
                                          (bytes/->bytes (assoc base (mod i (count base)) x)))
                                        (gen/tuple gen/nat (gen/choose 0 255))))
            a-value (gen/return (gen/fmap bytes/->bytes
                                          (gen/vector (gen/elements [0 1 255]) (type/size value))))
            a (gen/map a-key a-value {:max-elements 20})
            b (gen/map a-key a-value {:max-elements 20})
            b (gen/elements [b (merge a b)])]
    {:key key :value value :a a :b b}))

(kernel-test raw-entries-counted-once
  (testing "counts every raw entry once under any types"
    (let [result (tc/quick-check (fixture/trials 60)
                                 (prop/for-all [{:keys [key value a b]} two-maps]
                                               (with-open [ma (of-bytes key value a)
                                                           mb (of-bytes key value b)]
                                                 (let [rows (exec/diff {:old ma :new mb})
                                                       expected {:added (count
                                                                         (remove #(contains? a %)
                                                                                 (keys b)))
                                                                 :removed (count
                                                                           (remove #(contains? b %)
                                                                                   (keys a)))
                                                                 :changed (count
                                                                           (filter
                                                                            (fn [[k v]]
                                                                              (and (contains? a k)
                                                                                   (not= v (a k))))
                                                                            b))
                                                                 :same (count
                                                                        (filter
                                                                         (fn [[k v]] (= v (a k)))
                                                                         b))}]
                                                   (and (= expected
                                                           (select-keys
                                                            (meta rows)
                                                            [:added :removed :changed :same]))
                                                        (= (dissoc expected :same)
                                                           (merge {:added 0 :removed 0 :changed 0}
                                                                  (frequencies
                                                                   (map :change rows)))))))))]
      (is (:pass? result) (pr-str (:shrunk result) (:seed result))))))

(kernel-test diff-prints-csv
  (testing "diff prints CSV by type"
    (with-open [a (of-bytes :u8 [:struct [:n :u8] [:c [:string 3]]] {[1] "05 610000"})
                b (of-bytes :u8 [:struct [:n :u8] [:c [:string 3]]] {[1] "06 610000"})]
      (is (= ["change,key,old.n,old.c,new.n,new.c" "changed,1,5,a,6,a"]
             (lines-of "diff" (id-of a) (id-of b) "--csv"))))))
