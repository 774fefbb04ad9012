(ns bpfmap.type-values-test
  "Values of types: written values are read back, and values that do not fit are rejected."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.fixture :refer [error-of]]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.type.node :as node]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(defn- memory ^MemorySegment [n]
  (MemorySegment/ofArray (byte-array n)))

(defn- contents [^MemorySegment m]
  (vec (.toArray m java.lang.foreign.ValueLayout/JAVA_BYTE)))

(defn- as-given?
  "Whether a value read back says all that was given. A union gives more than the one member it
  was written from."
  [given back]
  (cond
    (map? given) (and (map? back) (every? (fn [[k v]] (as-given? v (get back k))) given))
    (vector? given) (and (= (count given) (count back)) (every? true? (map as-given? given back)))
    :else (.equals ^Object given back)))

(def ^:private typed-value
  (gen/let [t types/a-type
            v (type/->generator t)]
    [t v]))

(defspec value-round-trip 700
  (prop/for-all [[t v] typed-value]
                (let [c (codec/codec t)
                      m (memory (+ 2 (.size c)))]
                  (.set m java.lang.foreign.ValueLayout/JAVA_BYTE 0 (byte 0x5a))
                  (.encode c v m 1)
                  (and (as-given? v (.decode c m 1))
                       (= 0x5a (first (contents m)))
                       (= 0 (peek (contents m)))))))

(defn- covered
  "Which bytes of a type's node say something, as bit masks: all but padding."
  [{:keys [kind size members element count]} masks base]
  (case kind
    (:struct :union)
    (reduce (fn [masks {:keys [node offset bits bit-offset]}]
              (if bits
                (reduce (fn [masks bit]
                          (update masks (+ base (quot bit 8)) bit-or
                                  (bit-shift-left 1 (rem bit 8))))
                        masks (range bit-offset (+ bit-offset bits)))
                (covered node masks (+ base offset))))
            masks members)
    :array (reduce (fn [masks i] (covered element masks (+ base (* i (:size element))))) masks
                   (range count))
    (:private :pad) masks
    (reduce #(assoc %1 %2 0xff) masks (range base (+ base size)))))

(defspec padding-written-as-zero 300
  (prop/for-all [[t v]
                 (gen/such-that (fn [[t _]] (not (str/includes? (pr-str t) ":union"))) typed-value
                                100)]
                (let [c (codec/codec t)
                      m (memory (.size c))
                      masks (covered (node/node t nil []) (vec (repeat (.size c) 0)) 0)]
                  (.fill m (byte -1))
                  (.encode c v m 0)
                  (every? zero?
                          (map #(bit-and (bit-not %1) (bit-and 0xff %2)) masks (contents m))))))

(defn- encoded [t v]
  (let [c (codec/codec t nil [:value]) m (memory (.size c))]
    (.encode c v m 0)
    (bytes/wrap (.toArray m java.lang.foreign.ValueLayout/JAVA_BYTE))))

(defn- read-back [t v]
  (.decode (codec/codec t) (MemorySegment/ofArray (bytes/->array (encoded t v))) 0))

(deftest semantic-types
  (testing "semantic types read in readable form"
    (are [t v layout] (and (= (bytes/->bytes layout) (encoded t v)) (= v (read-back t v)))
      :ipv4 "10.0.0.1" "0a 00 00 01"
      :ipv6 "2001:db8::1" "20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 01"
      :ipv6 "::" "00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"
      :ipv6 "::ffff:10.0.0.1" "00 00 00 00 00 00 00 00 00 00 ff ff 0a 00 00 01"
      :ipv6 "1:0:0:2::3" "00 01 00 00 00 00 00 02 00 00 00 00 00 00 00 03"
      :ipv6 "fe80::1:0:0:1" "fe 80 00 00 00 00 00 00 00 01 00 00 00 00 00 01"
      :mac "00:1b:21:0a:0b:ff" "00 1b 21 0a 0b ff"
      :port 443 "01 bb"
      [:prefix :ipv4] "10.0.0.0/8" "08 00 00 00 0a 00 00 00"
      [:prefix :ipv6] "2001:db8::/32" "20 00 00 00 20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 00"
      [:string 5] "héy" "68 c3 a9 79 00"
      [:string 6] "hé" "68 c3 a9 00 00 00")))

(deftest text-types-round-trip
  (testing "texts survive encoding and decoding"
    (is (= "hi" (read-back [:string 3] "hi")))
    (testing "a text may take all of its bytes, but for a NUL where one is needed"
      (is (= "abc" (read-back [:string 3] "abc")))
      (is (= "ab" (read-back [:c-string 3] "ab"))))
    (testing "bytes that are not text are read as bytes and can be written again"
      (is (= (bytes/->bytes "616263") (read-back [:c-string 3] [97 98 99])))
      (is (= (bytes/->bytes "ff0000") (read-back [:string 3] (bytes/->bytes "ff0000")))))))

(deftest enums-as-names
  (testing "enums read as names, or as numbers without a name"
    (let [t [:enum :s16 (array-map :A 1 :B 1 :C -2)]]
      (is (= :A (read-back t :B)) "the first of equal numbers")
      (is (= :C (read-back t -2)))
      (is (= 7 (read-back t 7))))))

(deftest unions-from-one-member
  (testing "unions read as all members and are written from one"
    (let [t [:union [:n :u32] [:bytes [:bytes 4]] [:small :u8]]]
      (is (= {:n 0x01020304 :bytes (bytes/->bytes "04030201") :small 4}
             (read-back t {:n 0x01020304})))
      (is (= {:n 5 :bytes (bytes/->bytes "05000000") :small 5} (read-back t {:small 5})))
      (is (= (read-back t {:n 5}) (read-back t (read-back t {:n 5}))) "a value that was read can be written again")
      (let [{:keys [message]} (error-of (encoded t {:n 1 :small 2}))]
        (is (str/includes? message "its members differ; give only one"))))))

(deftest kernel-fields
  (testing "omits fields of the kernel and writes them as zeros"
    (let [t [:struct [:lock :spin-lock] [:n :u32]]]
      (is (= {:n 7} (read-back t {:n 7})))
      (is (= (bytes/->bytes "00 00 00 00 07 00 00 00") (encoded t {:n 7})))
      (is (str/includes? (:message (error-of (encoded t {:lock 1 :n 7})))
                         ":lock is not a field: use :n")))))

(deftest type-with-own-functions
  (testing "a type can have custom functions"
    (let [seconds [:via :u64 #(* 1000000000 %) #(quot % 1000000000)]]
      (is (= {:age 3} (read-back [:struct [:age seconds]] {:age 3})))
      (is (false? (.total (codec/codec [:array seconds 2]))))
      (is (true? (.total (codec/codec [:array :u64 2]))))
      (let [{:keys [message]
             :bpfmap/keys [error path]} (error-of (encoded [:struct [:age seconds]] {:age "x"}))]
        (is (= [:invalid-value [:value :age]] [error path]))
        (is (str/includes? message "its encode function threw java.lang.ClassCastException")))
      (is (instance? ClassCastException
                     (ex-cause (try (encoded seconds "x") (catch Exception e e)))))
      (let [{:keys [message]
             :bpfmap/keys [error]} (error-of (read-back [:via :u8 identity #(/ 1 %)] 0))]
        (is (= :invalid-value error))
        (is (str/includes? message "its decode function threw java.lang.ArithmeticException"))))))

(deftest misfit-path-and-type
  (testing "rejects a value that does not fit with its path, type and value"
    (are [t v path words]
         (let [{:keys [message] found :bpfmap/path :bpfmap/keys [error]} (error-of (encoded t v))]
           (and (= :invalid-value error)
                (= path found)
                (str/starts-with? message (str path ": "))
                (str/includes? message words)))
      [:struct [:a :u8]] {} [:value :a] "the field :a is missing: every field is required"
      [:struct [:a :u8]] {:a 1 :b 2} [:value :b] ":b is not a field: use :a"
      [:struct [:a :u8]] [1] [:value] "it must be a map with :a"
      [:struct [:a :u8]] nil [:value] "it must be a map with :a"
      [:struct [:a [:struct [:b :u8]]]] {:a {:b 256}} [:value :a :b] "256 is not a :u8"
      [:struct [:a [:array [:struct [:b [:array :u8 2]]] 2]]] {:a [{:b [1 2]} {:b [1 -1]}]}
      [:value :a 1 :b 1] "-1 is not a :u8"
      [:struct [:a [:array [:struct [:b :u8]] 2]]] {:a [{:b 1} {}]} [:value :a 1 :b]
      "the field :b is missing"
      [:struct [nil [:struct [:a :u8]]]] {:a -1} [:value :a] "-1 is not a :u8"
      [:struct [nil [:union [:a :u8] [:b :u8]]]] {} [:value] "it must have one of :a or :b"
      [:union [:a :u8]] {:c 1} [:value] "it must have one of :a"
      [:union [:a :u8]] {:a 1 :c 1} [:value :c] ":c is not a field"
      [:array :u8 2] [1] [:value] "it must be a sequence of 2 elements, got 1"
      [:array :u8 2] (range) [:value] "it must be a sequence of 2 elements, got more"
      [:bytes 2] (range) [:value] "it must have 2 bytes, got 3"
      [:string 4] "\ud800" [:value] "without half a character"
      [:union [nil [:struct [:a :u32] [:b :u32]]] [:c :u64]] {:a 1} [:value :b]
      "the field :b is missing"
      [:struct [:a :u8]] (sorted-map "a" 1) [:value :a] "the field :a is missing"
      :ipv4 "010.0.0.1" [:value] "it must be a string such as"
      [:array :u8 2] 7 [:value] "it must be a sequence of 2 elements"
      [:array :u8 2] [1 256] [:value 1] "256 is not a :u8"
      [:struct [:a [:bits :u8 3]]] {:a 8} [:value :a]
      "8 is not a [:bits :u8 3]: it must be an integer from 0 to 7"
      [:struct [:a [:bits :s8 3]]] {:a 4} [:value :a] "it must be an integer from -4 to 3"
      [:struct [:a [:bits :bool 1]]] {:a 1} [:value :a] "it must be true or false"
      [:enum :u8 {:A 1}] :B [:value] ":B is not a [:enum :u8 {:A 1}]: it must be a number or :A"
      [:enum :u8 {:A 1}] 256 [:value] "from 0 to 255"
      [:string 3] "abcd" [:value] "it must be a string of up to 3 bytes in UTF-8, got 4"
      [:c-string 3] "abc" [:value] "it must be a string of up to 2 bytes in UTF-8, got 3"
      [:string 3] "a\u0000" [:value] "it must be a string without NUL characters"
      [:string 3] [1 2] [:value] "it must have 3 bytes, got 2"
      [:string 3] 7 [:value] "it must be a string, or bytes that are not one"
      [:struct [:net [:prefix :ipv4]]] {:net "10.0.0.0/33"} [:value :net]
      "\"10.0.0.0/33\" is not a [:prefix :ipv4]: it must be a string such as \"10.0.0.0/8\", with a length from 0 to 32"
      [:prefix :ipv6] "::/129" [:value]
      "it must be a string such as \"2001:db8::/32\", with a length from 0 to 128"
      [:prefix :ipv4] nil [:value]
      "nil is not a [:prefix :ipv4]: it must be a string such as \"10.0.0.0/8\""
      [:prefix :ipv4] {:prefixlen 8} [:value :data] "the field :data is missing"
      [:prefix :ipv4] {:prefixlen 4294967296 :data [10 0 0 0]} [:value :prefixlen]
      "from 0 to 4294967295"
      [:prefix :ipv4] {:prefixlen 8 :data [10 0 0]} [:value :data] "it must have 4 bytes, got 3"
      [:prefix :ipv4] {:prefixlen 8 :data [10 0 0 0] :family 4} [:value :family]
      ":family is not a field: use :prefixlen or :data"
      [:prefix :ipv4] (sorted-map "a" 1) [:value :prefixlen] "the field :prefixlen is missing"
      :ipv4 "10.0.0" [:value] "it must be a string such as \"10.0.0.1\""
      :ipv4 "10.0.0.256" [:value] "it must be a string such as"
      :ipv4 167772161 [:value] "it must be a string such as"
      :ipv6 "::g" [:value] "2001:db8::1"
      :ipv6 "fe80::1%eth0" [:value] "2001:db8::1"
      :mac "00:1b:21:0a:0b" [:value] "00:1b:21:0a:0b:0c"
      :u128 -1 [:value] "from 0 to 340282366920938463463374607431768211455"
      :ptr -1 [:value] "from 0 to 18446744073709551615"
      :spin-lock 1 [:value] "the kernel owns it; leave it out")))
