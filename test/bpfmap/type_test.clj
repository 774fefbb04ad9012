(ns bpfmap.type-test
  (:require [bpfmap.fixture :refer [error-of]]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop]))

(set! *warn-on-reflection* true)

;; --- layout

(defn- ours [t]
  {:type t :size (type/size t) :align (type/align t) :offsets (type/offsets t)})

(def ^:private stored
  "What a C compiler said of 500 generated types, for machines without one."
  "test/bpfmap/layouts.edn")

(defn- some-types
  "n generated types, small and large, from a seed."
  [n seed]
  (map #(gen/generate types/a-struct (+ 5 (mod % 20)) (+ (long seed) (long %))) (range n)))

(defn store-layouts
  "Writes the stored layouts anew, from the C compiler here.

      bin/clj -M:dev -e \"((requiring-resolve 'bpfmap.type-test/store-layouts))\""
  []
  (with-open [w (io/writer stored)]
    (binding [*out* w]
      (println ";; Written by bpfmap.type-test/store-layouts, from gcc on x86-64.")
      (run! prn (types/c-layouts (some-types 500 1))))))

(defn- read-stored []
  (with-open [r (java.io.PushbackReader. (io/reader stored))]
    (doall (take-while some? (repeatedly #(edn/read {:eof nil} r))))))

(deftest c-compiler-layouts
  (testing "lays out generated types as the C compiler does"
    (let [seed (System/nanoTime)]
      (if-let [layouts (types/c-layouts (some-types 520 seed))]
        (do
          (is (= 520 (count layouts)))
          (doseq [layout layouts]
            (is (= layout (ours (:type layout))) (str "seed " seed))))
        (println "no C compiler: types are compared with the stored layouts only")))))

(deftest stored-layouts-match
  (testing "lays out the stored types as recorded"
    (let [layouts (read-stored)]
      (is (= 500 (count layouts)))
      (doseq [layout layouts]
        (is (= layout (ours (:type layout))))))))

(deftest layouts-known-from-c
  (testing "lays out types with known C layouts"
    (are [t size align] (= [size align] [(type/size t) (type/align t)])
      [:struct] 0 1
      [:struct [:a :u8] [:b :u64]] 16 8
      [:struct {:packed true} [:a :u8] [:b :u64]] 9 1
      [:struct {:packed true :align 4} [:a :u8] [:b :u64]] 12 4
      [:struct {:align 64} [:a :u8]] 64 64
      [:struct [:a :u8] [:b :u8 {:align 8}]] 16 8
      [:struct {:size 24} [:a :u32 {:offset 4}]] 24 4
      [:union [:a :u8] [:b [:array :u16 3]]] 6 2
      [:struct [:a :u128]] 16 16
      [:array [:struct [:a :u8] [:b :u16]] 3] 12 2
      [:struct [:a [:bits :u32 20]] [:b [:bits :u32 20]]] 8 4
      [:struct [:a [:bits :u8 3]] [nil [:bits :u8 0]] [:b [:bits :u8 3]]] 2 1
      [:typedef "t" :u16] 2 2
      [:via :u32 identity identity] 4 4
      :ipv6 16 4
      [:prefix :ipv4] 8 4
      [:prefix :ipv6] 20 4
      [:struct [:a :u8] [:net [:prefix :ipv6]] [:b :u8]] 28 4
      :spin-lock 4 4)))

(deftest prefix-is-one-field
  (testing "a prefix is one field"
    (is (= {[:a] {:offset 0 :size 1} [:nets] {:offset 4 :size 16}}
           (type/offsets [:struct [:a :u8] [:nets [:array [:prefix :ipv4] 2]]])))))

(deftest offsets-as-data
  (testing "returns the offsets of fields as data"
    (is (= {[:a] {:offset 0 :size 1}
            [:b] {:offset 4 :size 8}
            [:b :x] {:offset 4 :size 4}
            [:b :y] {:bit-offset 64 :bits 3}
            [:c] {:offset 12 :size 4}
            [:d] {:offset 16 :size 4}
            [:d 0 :z] {:offset 16 :size 2}}
           (type/offsets [:struct [:a :u8] [:b [:struct [:x :u32] [:y [:bits :u8 3]]]]
                          [nil [:union [:c :u32]]]
                          [:d [:array [:struct [:z :u16]] 2]]])))
    (is (= [[:a] [:z] [:b]] (keys (type/offsets [:struct [:a :u8] [:z :u8] [:b :u8]]))))))

(deftest type-summary
  (testing "summarizes a type in a few words"
    (are [t text] (= text (type/summary t))
      :u32 ":u32"
      [:bytes 4] "[:bytes 4]"
      [:prefix :ipv6] "[:prefix :ipv6]"
      [:struct {:name "flow"} [:a :u8]] "struct flow"
      [:union {:align 8} [:a :u8] [:b :u8]] "{:a :b}"
      (into [:struct] (map #(vector (keyword (str "f" %)) :u8)) (range 9))
      "{:f0 :f1 :f2 :f3 :f4 :f5 …}"
      [:array [:struct [:abcdef :u8] [:ghijkl :u8]] 3] "[:array [:struct [:abcdef :u8] [:ghijkl…"
      nil "nil")))

(deftest named-types-from-options
  (testing "named types are taken from the options"
    (let [types {:port-pair [:struct [:src :port] [:dst :port]]
                 :flow [:struct [:ports :port-pair] [:n :u32]]}]
      (is (= 8 (type/size :flow types)))
      (is (str/includes? (type/problem :u8 7 [:key])
                         "[:key]: named types are a map of keywords to types, not 7"))
      (is (str/includes? (type/problem :flo types []) "the named ones :flow or :port-pair"))
      (is (str/includes? (type/problem :a {:a [:struct [:b :a]]} [])
                         "the named type :a contains itself")))))

(deftest malformed-types
  (testing "a malformed type reports where and why"
    (are [t path words]
         (let [{:keys [message] found :bpfmap/path
                :bpfmap/keys [error]} (error-of (type/check t nil [:value]))]
           (and (= :invalid-spec error)
                (= path found)
                (str/starts-with? message (str path ": "))
                (str/includes? message words)))
      :u33 [:value] "unknown type :u33; the scalar types are "
      "u32" [:value] "a type is a keyword such as :u32 or a vector that starts with :array"
      nil [:value] "a type is a keyword"
      [] [:value] "a type is a keyword"
      [:list :u8] [:value] "a type is a keyword"
      [:struct [:a :u8] [:b [:struct [:c :u33]]]] [:value :b :c] "unknown type :u33"
      [:struct [:a [:array :x 2]]] [:value :a :element] "unknown type :x"
      [:struct :a] [:value] "a member is [name type] or [name type options], not :a"
      [:struct [:a]] [:value] "a member is [name type]"
      [:struct ["a" :u8]] [:value "a"] "a member's name is a keyword, or nil, not \"a\""
      [:struct [:a :u8 :packed]] [:value :a] "a member's options are a map"
      [:struct [:a :u8 {:packed true}]] [:value :a]
         "unknown option :packed; there are :align, :bit-offset or :offset"
      [:struct {:packd true} [:a :u8]] [:value]
         "unknown option :packd; there are :align, :name, :packed or :size"
      [:struct {:align 3} [:a :u8]] [:value] ":align is a power of two, not 3"
      [:struct {:size -1} [:a :u8]] [:value] ":size is a number from 0"
      [:struct {:size 3} [:a :u32]] [:value] "its members need 4 bytes, more than :size 3"
      [:struct {:packed 1} [:a :u32]] [:value] ":packed is true or false"
      [:struct {:name :x} [:a :u32]] [:value] ":name is a text"
      [:struct [:a :u32] [:b :u32 {:offset 2}]] [:value] ":b lies where :a does"
      [:struct [:a [:bits :u8 4]] [:b [:bits :u8 4] {:bit-offset 2}]] [:value]
         ":b lies where :a does"
      [:struct [:a :u32 {:bit-offset 3}]] [:value :a] ":bit-offset is for bit-fields; use :offset"
      [:struct [:a :u8] [:a :u8]] [:value] "it has two members named :a"
      [:struct [:a :u8] [nil [:union [:a :u8]]]] [:value] "it has two members named :a"
      [:struct [nil :u8]] [:value]
         "only structs, unions, bit-fields and [:pad n] can do without a name"
      [:array :u8] [:value] "an array is [:array type n]"
      [:prefix] [:value] "a prefix is [:prefix :ipv4] or [:prefix :ipv6], not [:prefix]"
      [:prefix :ipv4 8] [:value]
         "a prefix is [:prefix :ipv4] or [:prefix :ipv6], not [:prefix :ipv4 8]"
      [:struct [:net [:prefix :mac]]] [:value :net]
         "a prefix is [:prefix :ipv4] or [:prefix :ipv6], not [:prefix :mac]"
      [:prefix [:bytes 2]] [:value]
         "a prefix is [:prefix :ipv4] or [:prefix :ipv6], not [:prefix [:bytes 2]]"
      [:prefix nil] [:value] "a prefix is [:prefix :ipv4] or [:prefix :ipv6], not [:prefix nil]"
      [:prefix (range)] [:value]
         "a prefix is [:prefix :ipv4] or [:prefix :ipv6], not [:prefix [0 1 2"
      [:struct [:a [:bits [:prefix :ipv4] 3]]] [:value :a] "a bit-field is of an integer type"
      [:array :u8 -1] [:value] "an array has a count from 0, not -1"
      [:array [:array [:array :u64 2000000000] 2000000000] 2] [:value :element :element]
         "it has more than 4294967295 bytes"
      [:enum :u8] [:value] "an enum is [:enum type {name number}]"
      [:enum :f32 {:a 1}] [:value] "an enum is of an integer type up to 8 bytes, not of :f32"
      [:enum :u8 {:a 256}] [:value] ":a does not fit :u8: 256"
      [:enum :u8 {"a" 1}] [:value] "the names of an enum are keywords"
      [:bits :u8 3] [:value] "stands only as a member"
      [:struct [:a [:bits :u8 9]]] [:value :a] "a bit-field of :u8 has 1 to 8 bits, not 9"
      [:struct [:a [:bits :u8 0]]] [:value :a] "has 1 to 8 bits, not 0"
      [:struct [:a [:bits :bool 2]]] [:value :a] "has 1 to 1 bits"
      [:struct [:a [:bits :f32 2]]] [:value :a] "a bit-field is of an integer type"
      [:struct [:a [:bits :u16be 2]]] [:value :a] "this machine's byte order"
      [:struct [:a [:bits :u8]]] [:value :a] "a bit-field is [:bits type n]"
      [:bytes] [:value] "[:bytes n] takes one size"
      [:string 0] [:value] "[:string n] takes one size from 1"
      [:typedef :x :u8] [:value] "a typedef is [:typedef \"name\" type]"
      [:via :u8 1 2] [:value] "it is [:via type encode decode]"
      [:ptr] [:value] "a pointer is :ptr or [:ptr type]"
      (nth (iterate #(vector :array % 1) :u8) 100) (into [:value] (repeat 64 :element))
         "types are nested more than 64 deep")))

(defspec any-type-or-error 500
  (prop/for-all [x (gen/recursive-gen (fn [inner]
                                        (gen/fmap vec
                                                  (gen/tuple
                                                   (gen/elements
                                                    [:struct :union :array :enum :bits :bytes :via
                                                     :ptr :typedef :x nil {}])
                                                             inner inner)))
                                      (gen/one-of [gen/simple-type-printable
                                                   (gen/elements [:u8 :u64 4 {:packed true}])]))]
    (let [problem (type/problem x)]
      (or (string? problem) (nat-int? (type/size x))))))
