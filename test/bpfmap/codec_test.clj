(ns bpfmap.codec-test
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.fixture :refer [error-of]]
            [bpfmap.impl.codec :as codec]
            [bpfmap.type :as type]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (bpfmap.sys Codec)
           (java.lang.foreign MemorySegment)
           (java.nio ByteOrder)))

(set! *warn-on-reflection* true)

(defn- encoded
  "The bytes that a codec writes, between two guard bytes that it must not touch."
  [^Codec c value]
  (let [array (byte-array (+ 2 (.size c)) (repeat (unchecked-byte 0xa5)))]
    (.encode c value (MemorySegment/ofArray array) 1)
    (assert (= -91 (first array) (last array)) "a guard byte was overwritten")
    (bytes/->bytes (vec (butlast (rest array))))))

(defn- decoded [^Codec c view]
  (.decode c (MemorySegment/ofArray (bytes/->array (concat [0] view [0]))) 1))

(def ^:private integer-types
  (into {} (filter #(= :integer (:kind (val %)))) type/scalars))

(defn- bounds [{:keys [size signed]}]
  (let [two-to (.shiftLeft BigInteger/ONE (int (* 8 size)))]
    (if signed
      [(- (quot (bigint two-to) 2)) (dec (quot (bigint two-to) 2))]
      [0 (dec (bigint two-to))])))

(def ^:private typed-integers
  (gen/let [[t row] (gen/elements (vec integer-types))
            n (let [[low high] (bounds row)]
                (gen/one-of [gen/small-integer
                             gen/size-bounded-bigint
                             (gen/elements [low high (dec low) (inc high) (quot high 2)])]))]
    [t row n]))

(defspec integers-in-range 2000
  (prop/for-all [[t row n] typed-integers]
                (let [[low high] (bounds row)
                      c (codec/codec t [:value])]
                  (if (<= low n high)
                    (let [back (decoded c (encoded c n))]
                      (and (= n back)
                           (or (int? back) (not (<= Long/MIN_VALUE back Long/MAX_VALUE)))))
                    (let [{:keys [message]
                           :bpfmap/keys [error path type value]} (error-of (encoded c n))]
                      (and (= :invalid-value error) (= [:value] path) (= t type) (= n value)
                           (str/includes? message (str "from " low))))))))

(defspec integer-byte-order 1000
  (prop/for-all [[t row n] typed-integers]
                (let [[low high] (bounds row)
                      size (:size row)
                      big? (or (= :be (:order row))
                               (and (nil? (:order row))
                                    (= ByteOrder/BIG_ENDIAN (ByteOrder/nativeOrder))))]
                  (or (not (<= low n high))
                      (let [modulo (mod n (bigint (.shiftLeft BigInteger/ONE (int (* 8 size)))))
                            little (map #(mod (quot modulo
                                                    (bigint
                                                     (.shiftLeft BigInteger/ONE (int (* 8 %)))))
                                              256) (range size))]
                        (= (map long (if big? (reverse little) little))
                           (seq (encoded (codec/codec t) n))))))))

(defspec doubles-round-trip 500
  (prop/for-all [t (gen/elements [:f64 :f64be :f64le])
                 x gen/double]
                (let [c (codec/codec t)
                      back (decoded c (encoded c x))]
                  (or (= x back) (and (Double/isNaN x) (Double/isNaN back))))))

(defspec floats-rounded-once 500
  (prop/for-all [t (gen/elements [:f32 :f32be :f32le])
                 x (gen/double* {:min -1e30 :max 1e30 :NaN? false :infinite? false})]
                (let [c (codec/codec t)]
                  (= (double (float x)) (decoded c (encoded c x))))))

(deftest other-scalars
  (testing "encodes and decodes the other scalar types"
    (are [t value layout] (let [c (codec/codec t)]
                            (and (= (bytes/->bytes layout) (encoded c value))
                                 (= value (decoded c (bytes/->bytes layout)))))
      :bool true [1]
      :bool false [0]
      :char \A [65]
      :char \ÿ [255]
      [:bytes 3] (bytes/->bytes [1 2 3]) [1 2 3])
    (testing "a byte that C never writes into a bool is shown, and goes in again"
      (is (= (bytes/->bytes [7]) (decoded (codec/codec :bool) (bytes/->bytes [7]))))
      (is (= (bytes/->bytes [7]) (encoded (codec/codec :bool) (bytes/->bytes [7])))))))

(deftest bytes-from-arrays
  (testing "accepts byte arrays, views and integers as bytes"
    (let [c (codec/codec [:bytes 2])]
      (is (= (bytes/->bytes [1 255])
             (encoded c (byte-array [1 -1]))
             (encoded c (bytes/->bytes [1 255]))
             (encoded c [1 255]))))))

(deftest misfit-path-and-type
  (testing "rejects a value that does not fit with its path, type and value"
    (are [t value hint]
         (let [{:keys [message]
                :bpfmap/keys [error path type]} (error-of
                                                  (encoded (codec/codec t [:value :n]) value))]
           (and (= :invalid-value error) (= [:value :n] path) (= t type)
                (str/starts-with? message "[:value :n]: ")
                (str/includes? message hint)))
      :u8 256 "an integer from 0 to 255"
      :u8 1.0 "an integer from 0 to 255"
      :u8 nil "an integer from 0 to 255"
      :u8 "1" "an integer from 0 to 255"
      :u64 -1 "an integer from 0 to 18446744073709551615"
      :s16be 40000 "an integer from -32768 to 32767"
      :f64 "1" "it must be a number"
      :f32 1e300 "of magnitude up to"
      :bool nil "true or false"
      :bool 1 "true or false"
      :char "a" "a character"
      :char \Ā "a character"
      [:bytes 2] [1] "it must have 2 bytes, got 1"
      [:bytes 2] (byte-array 3) "it must have 2 bytes, got 3"
      [:bytes 2] "0100" "see ->bytes"
      [:bytes 2] [1 300] "integers from -128 to 255"
      [:bytes 2] nil "a byte array")))

(deftest malformed-types
  (testing "rejects a malformed type and reports where"
    (are [t words]
         (let [{:keys [message] :bpfmap/keys [error path]} (error-of (codec/codec t [:key]))]
           (and (= :invalid-spec error) (= [:key] path) (str/includes? message words)))
      :u33 "unknown type :u33; did you mean :u32"
      [:bytes] "must have one size from 1"
      [:bytes 0] "must have one size from 1"
      [:bytes 1 2] "must have one size from 1"
      "u32" "a type must be a keyword"
      nil "a type must be a keyword")))

(deftest codec-description
  (testing "a codec prints its type and size"
    (is (= "codec of [:struct [:a :u8] [:b :u32]], 8 bytes"
           (str (codec/codec [:struct [:a :u8] [:b :u32]]))))
    (testing "and its size is the type's"
      (doseq [[t {:keys [size]}] type/scalars]
        (is (= size (.size (codec/codec t)) (type/size t)))))))
