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
  "Writes the stored layouts again, from the C compiler of this machine.

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
                         "[:key]: named types must be a map of keywords to types, got 7"))
      (is (str/includes? (type/problem :flo types []) "unknown type :flo; did you mean :flow?"))
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
      :u33 [:value] "unknown type :u33; did you mean :u32"
      [:strct [:a :u8]] [:value] "did you mean :struct? See bpfmap.type for all types"
      "u32" [:value] "a type must be a keyword such as :u32 or a vector that starts with a keyword"
      nil [:value] "a type must be a keyword"
      [] [:value] "a type must be a keyword"
      [:list :u8] [:value] "a type must be a keyword"
      [:struct [:a :u8] [:b [:struct [:c :u33]]]] [:value :b :c] "unknown type :u33"
      [:struct [:a [:array :x 2]]] [:value :a :element] "unknown type :x"
      [:struct :a] [:value] "a member must be [name type] or [name type options], got :a"
      [:struct [:a]] [:value] "a member must be [name type]"
      [:struct ["a" :u8]] [:value "a"] "a member's name must be a keyword or nil, got \"a\""
      [:struct [:a :u8 :packed]] [:value :a] "a member's options must be a map, got :packed"
      [:struct [:a :u8 {:packed true}]] [:value :a]
      "unknown option :packed; use :align, :bit-offset or :offset"
      [:struct {:packd true} [:a :u8]] [:value]
      "unknown option :packd; did you mean :packed?"
      [:struct [(Object.) :u8]] [:value "java.lang.Object"] "name must be a keyword or nil"
      [:enum :u32 {:a 0} 7] [:value] "options of a type must be a map, got 7"
      [:struct {:align 3} [:a :u8]] [:value] ":align must be a power of two, got 3"
      [:struct {:size -1} [:a :u8]] [:value] ":size must be an integer from 0, got -1"
      [:struct {:size 3} [:a :u32]] [:value]
      ":size must be at least 4, the size of its members, got 3"
      [:struct {:packed 1} [:a :u32]] [:value] ":packed must be true or false, got 1"
      [:struct {:name :x} [:a :u32]] [:value] ":name must be a string, got :x"
      [:struct [:a :u32] [:b :u32 {:offset 2}]] [:value] ":b overlaps :a"
      [:struct [:a [:bits :u8 4]] [:b [:bits :u8 4] {:bit-offset 2}]] [:value]
      ":b overlaps :a"
      [:struct [:a :u32 {:bit-offset 3}]] [:value :a] ":bit-offset is for bit-fields; use :offset"
      [:struct [:a :u8] [:a :u8]] [:value] "two members have the name :a"
      [:struct [:a :u8] [nil [:union [:a :u8]]]] [:value] "two members have the name :a"
      [:struct [nil :u8]] [:value]
      "a member without a name must be a struct, a union, a bit-field or [:pad n], got :u8"
      [:array :u8] [:value] "an array must be [:array type n], got [:array :u8]"
      [:prefix] [:value] "a prefix must be [:prefix :ipv4] or [:prefix :ipv6], got [:prefix]"
      [:prefix :ipv4 8] [:value]
      "a prefix must be [:prefix :ipv4] or [:prefix :ipv6], got [:prefix :ipv4 8]"
      [:struct [:net [:prefix :mac]]] [:value :net]
      "a prefix must be [:prefix :ipv4] or [:prefix :ipv6], got [:prefix :mac]"
      [:prefix [:bytes 2]] [:value]
      "a prefix must be [:prefix :ipv4] or [:prefix :ipv6], got [:prefix [:bytes 2]]"
      [:prefix nil] [:value]
      "a prefix must be [:prefix :ipv4] or [:prefix :ipv6], got [:prefix nil]"
      [:prefix (range)] [:value]
      "a prefix must be [:prefix :ipv4] or [:prefix :ipv6], got [:prefix [0 1 2"
      [:struct [:a [:bits [:prefix :ipv4] 3]]] [:value :a]
      "the type of a bit-field must be an integer type"
      [:array :u8 -1] [:value] "the count of an array must be an integer from 0, got -1"
      [:array [:array [:array :u64 2000000000] 2000000000] 2] [:value :element :element]
      "it has more than 4294967295 bytes"
      [:enum :u8] [:value] "an enum must be [:enum type {name number}], got [:enum :u8]"
      [:enum :f32 {:a 1}] [:value]
      "the type of an enum must be an integer type of up to 8 bytes, got :f32"
      [:enum :u8 {:a 256}] [:value] ":a does not fit :u8: 256"
      [:enum :u8 {"a" 1}] [:value] "the names of an enum must be keywords, got \"a\""
      [:bits :u8 3] [:value] "[:bits type n] must be a member of a struct or union"
      [:struct [:a [:bits :u8 9]]] [:value :a] "a bit-field of :u8 must have 1 to 8 bits, got 9"
      [:struct [:a [:bits :u8 0]]] [:value :a] "must have 1 to 8 bits, got 0"
      [:struct [:a [:bits :bool 2]]] [:value :a] "must have 1 to 1 bits, got 2"
      [:struct [:a [:bits :f32 2]]] [:value :a] "the type of a bit-field must be an integer type"
      [:struct [:a [:bits :u16be 2]]] [:value :a] "this machine's byte order"
      [:struct [:a [:bits :u8]]] [:value :a] "a bit-field must be [:bits type n], got [:bits :u8]"
      [:bytes] [:value] "[:bytes n] must have one size from 1"
      [:string 0] [:value] "[:string n] must have one size from 1"
      [:typedef :x :u8] [:value] "a typedef must be [:typedef \"name\" type], got [:typedef :x :u8]"
      [:via :u8 1 2] [:value] "it must be [:via type encode decode] with two functions, got"
      [:ptr] [:value] "a pointer must be :ptr or [:ptr type], got [:ptr]"
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
