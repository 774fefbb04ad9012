(ns bpfmap.impl.codec.law-test
  "The law of the codecs: writing a decoded value gives the same bytes, for every type and whatever
  the bytes; and different keys read as different values."
  (:require [bpfmap.btf :as btf]
            [bpfmap.bytes :as bytes]
            [bpfmap.fixture :as fixture :refer [error-of]]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.codec.map-codecs :as map-codecs]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.edn :as edn]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.io File)
           (java.nio.file Files)
           (java.util Random)))

(set! *warn-on-reflection* true)

;; ---------------------------------------------------------------- bytes

(def ^:private a-byte
  "A generator of bytes in which special values are likely: zeros, text, NaN, infinity, signs."
  (gen/frequency [[6 (gen/return 0)]
                  [2 (gen/choose 97 122)]
                  [2 (gen/elements [0x7f 0x80 0xff 0xf8 0xf0 0xc0 1 2])]
                  [2 (gen/choose 0 255)]]))

(defn- bytes-of [size]
  (gen/frequency [[1 (gen/fmap bytes/->bytes (gen/vector (gen/choose 0 255) size))]
                  [4 (gen/fmap bytes/->bytes (gen/vector a-byte size))]]))

(defn- read-again
  "A value through its printed form."
  [value]
  (edn/read-string {:readers {'bpfmap/bytes bytes/->bytes}} (pr-str value)))

(defn- holds?
  "Whether the law holds for these bytes of a codec: directly, through what is printed, and given
  as a byte view."
  [c view]
  (let [value (types/decoded c view)]
    (and (= view (types/encoded c value))
         (= view (types/encoded c (read-again value)))
         (= view (types/encoded c view)))))

(def ^:private typed-bytes
  (gen/let [t types/any-type
            view (bytes-of (type/size t))]
    [t view]))

(defspec decoded-encodes-the-same 1500
  (prop/for-all [[t view] typed-bytes]
                (and (holds? (codec/codec t) view)
                     (holds? (codec/key-codec t nil []) view))))

;; ---------------------------------------------------------------- keys

(defn- changed
  "Bytes of which one bit is another."
  [view bit]
  (let [array (bytes/->array view)
        i (quot (long bit) 8)]
    (aset array i (unchecked-byte (bit-xor (aget array i) (bit-shift-left 1 (rem (long bit) 8)))))
    (bytes/wrap array)))

(def ^:private two-keys
  (gen/let [t (gen/such-that #(pos? (long (type/size %))) types/any-type 100)
            a (bytes-of (type/size t))
            b (gen/frequency [[3
                               (gen/fmap #(changed a %)
                                         (gen/choose 0 (dec (* 8 (long (type/size t))))))]
                              [1 (bytes-of (type/size t))]])]
    [t a b]))

(defspec distinct-keys 1500
  (prop/for-all [[t a b] two-keys]
                (let [c (codec/key-codec t nil [])
                      [x again y] [(types/decoded c a) (types/decoded c a) (types/decoded c b)]]
                  (and (= x again)
                       (= (hash x) (hash again))
                       (= {x 1} {again 1})
                       (= (= a b) (= x y))
                       (= (count (set [a b])) (count (into #{} [x again y])))))))

(deftest every-scalar-byte
  (testing "every scalar survives the round trip for every byte"
    (doseq [[t {:keys [size]}] type/scalars]
      (is (= []
             (for [i (range size)
                   n (range 256)
                   base [0 255]
                   :let [view (bytes/->bytes (assoc (vec (repeat size base)) i n))]
                   :when (not (and (holds? (codec/codec t) view)
                                   (holds? (codec/key-codec t nil []) view)))]
               view))
          (str t)))))

(deftest equal-numbers-in-keys
  (testing "equal but different numbers decode as bytes in keys"
    (are [t hex value key] (let [view (bytes/->bytes hex)]
                             (and (= (pr-str value) (pr-str (types/decoded (codec/codec t) view)))
                                  (= key (types/decoded (codec/key-codec t nil []) view))))
      :f32le "00 00 00 80" -0.0 (bytes/->bytes "00 00 00 80")
      :f32le "00 00 00 00" 0.0 0.0
      :f32le "00 00 c0 7f" ##NaN (bytes/->bytes "00 00 c0 7f")
      :f32le "00 00 80 7f" ##Inf ##Inf
      :f64be "80 00 00 00 00 00 00 00" -0.0 (bytes/->bytes "80 00 00 00 00 00 00 00")
      :f64be "7f f8 00 00 00 00 00 00" ##NaN (bytes/->bytes "7f f8 00 00 00 00 00 00"))
    ;; a NaN with a payload, a signalling one, and a negative one
    (are [t hex] (let [view (bytes/->bytes hex)] (= view (types/decoded (codec/codec t) view)))
      :f32be "7f c0 00 01"
      :f32be "7f a0 00 00"
      :f32be "ff c0 00 00"
      :f64be "7f f8 00 00 00 00 00 01"
      :f64be "7f f4 00 00 00 00 00 00"
      :f64be "ff f8 00 00 00 00 00 00")
    (testing "a NaN is written as Java's, whatever its bits"
      (is (= (bytes/->bytes "7f f8 00 00 00 00 00 00")
             (types/encoded (codec/codec :f64be) (Double/longBitsToDouble 0x7ff8000000000001))
             (types/encoded (codec/codec :f64be) (Double/longBitsToDouble -2251799813685248))))
      (is (= (bytes/->bytes "7f c0 00 00")
             (types/encoded (codec/codec :f32be) (Double/longBitsToDouble -2251799813685248)))))))

;; ---------------------------------------------------------------- printed forms

(def ^:private group-and-cache [:struct [:group :u64] [:cache :u32]])
(def ^:private bits [:struct [:a [:bits :u32 5]] [:b [:bits :u32 7]]])

(deftest unused-bits-round-trip
  (testing "unused bits are shown and written again"
    (are [t hex value] (let [view (bytes/->bytes hex)]
                         (and (= value (types/decoded (codec/codec t) view))
                              (= view (types/encoded (codec/codec t) value))))
      group-and-cache "01 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00" {:group 1 :cache 2}
      group-and-cache "01 00 00 00 00 00 00 00 02 00 00 00 de ad be ef"
      {:group 1 :cache 2 :bpfmap/padding (bytes/->bytes "de ad be ef")}
      [:struct [:proto :u8] [:addr :u32]] "06 00 ff 00 01 00 00 00"
      {:proto 6 :addr 1 :bpfmap/padding (bytes/->bytes "00 ff 00")}
      bits "21 10 00 80" {:a 1 :b 1 :bpfmap/padding (bytes/->bytes "10 00 80")}
      bits "21 00 00 00" {:a 1 :b 1}
      [:struct [:lock :spin-lock] [:n :u32]] "01 00 00 00 07 00 00 00"
      {:n 7 :bpfmap/padding (bytes/->bytes "01 00 00 00")}
      [:struct [:in [:struct [:a :u8] [:b :u16]]] [:c :u64]]
      "01 02 03 00 04 00 00 00 05 00 00 00 00 00 00 00"
      {:in {:a 1 :b 3 :bpfmap/padding (bytes/->bytes "02")} :c 5
       :bpfmap/padding (bytes/->bytes "04 00 00 00")}
      [:struct [nil [:union [:x :u16] [:y :u8]]] [:z :u32]] "01 02 03 00 04 00 00 00"
      {:x 513 :y 1 :z 4 :bpfmap/padding (bytes/->bytes "03 00")}
      [:union {:align 4} [:x :u8]] "01 02 00 00" {:x 1 :bpfmap/padding (bytes/->bytes "02 00 00")})
    (testing "zeros may be given, and what no field takes is asked for alone"
      (is (= (types/decoded (codec/codec group-and-cache)
                            (types/encoded (codec/codec group-and-cache)
                                           {:group 1 :cache 2 :bpfmap/padding [0 0 0 0]}))
             {:group 1 :cache 2})))
    (testing "what does not fit is refused, with its place"
      (are [t value words]
           (let [{:keys [message]
                  :bpfmap/keys [path error]} (error-of
                                               (types/encoded (codec/codec t [:key]) value))]
             (and (= :invalid-value error)
                  (= [:key :bpfmap/padding] path)
                  (str/includes? message words)))
        group-and-cache {:group 1 :cache 2 :bpfmap/padding (bytes/->bytes "00")}
        "it must have 4 bytes, got 1"
        group-and-cache {:group 1 :cache 2 :bpfmap/padding nil}
        "nil is not a [:bytes 4]: it must be the bytes with unused bits, in order"
        bits {:a 1 :b 1 :bpfmap/padding [1 0 0]}
        "it must have zeros for all bits of fields"
        [:struct [:a :u8]] {:a 1 :bpfmap/padding [0]}
        ":bpfmap/padding is not a field: use :a"))
    (is (str/includes? (:message (error-of (codec/codec [:struct [:bpfmap/padding :u8]])))
                       "no member can be named :bpfmap/padding"))))

(deftest both-kinds-of-text
  (testing "both kinds of text survive the round trip"
    (are [t hex text]
         (let [view (bytes/->bytes hex) value (if (vector? text) (bytes/->bytes text) text)]
           (and (= value (types/decoded (codec/codec t) view))
                (= view (types/encoded (codec/codec t) value))))
      [:string 4] "74 65 73 74" "test"
      [:string 4] "74 65 00 00" "te"
      [:string 4] "00 00 00 00" ""
      [:string 4] "74 00 73 00" [0x74 0 0x73 0]
      [:string 4] "ff 00 00 00" [0xff 0 0 0]
      [:c-string 4] "74 65 73 00" "tes"
      [:c-string 4] "74 65 73 74" [0x74 0x65 0x73 0x74]
      [:c-string 4] "00 00 00 01" [0 0 0 1]
      [:c-string 1] "00" ""
      :bool "07" [7])
    (are [t value words]
         (str/includes? (:message (error-of (types/encoded (codec/codec t) value))) words)
      [:string 4] "tests" "it must be a string of up to 4 bytes in UTF-8, got 5"
      [:c-string 4] "test" "it must be a string of up to 3 bytes in UTF-8, got 4"
      [:c-string 1] "a" "it must be a string of up to 0 bytes in UTF-8, got 1"
      [:c-string 4] [1 2] "it must have 4 bytes, got 2")
    (is (str/includes? (:message (error-of (type/check [:c-string 0])))
                       "must have one size from 1"))))

(deftest view-of-wrong-size
  (testing "every type rejects a byte view of another size"
    (doseq [t (concat (keys type/scalars)
                      [[:struct [:a :u8] [:b :u32]] [:union [:a :u16]] [:array :u8 3]
                       [:enum :u8 {:A 1}] [:prefix :ipv4]
                       [:string 3] [:c-string 3] [:bytes 3] [:ptr :u8]
                       [:via :u32 identity identity]])
            :let [n (type/size t)
                  {:keys [message] :bpfmap/keys [error path]}
                  (error-of (types/encoded (codec/codec t [:value])
                                           (bytes/->bytes (repeat (inc n) 1))))]]
      (is (= [t :invalid-value [:value]] [t error path]))
      (is (str/ends-with? message (str "it must have " n " bytes, got " (inc n)))))))

(deftest own-functions-keep-bytes
  (testing "types with custom functions keep the bytes"
    (testing "bytes that the type has no value for pass by them"
      (let [t [:via [:string 4] name keyword]
            c (codec/codec t)]
        (is (= :ab (types/decoded c (bytes/->bytes "61 62 00 00"))))
        (is (= (bytes/->bytes "61 00 62 00") (types/decoded c (bytes/->bytes "61 00 62 00"))))
        (is (holds? c (bytes/->bytes "61 00 62 00")))))
    (testing "a key that they do not write as it was is bytes"
      (let [c (codec/key-codec [:via :u32 identity #(quot % 10)] nil [])]
        (is (= 0 (types/decoded c (bytes/->bytes "00 00 00 00"))))
        (is (= (bytes/->bytes "0b 00 00 00") (types/decoded c (bytes/->bytes "0b 00 00 00"))))
        (is (every? #(holds? c (bytes/->bytes [% 0 0 0])) (range 256)))))))

;; ---------------------------------------------------------------- elements of maps

(defspec per-cpu-bytes-kept 300
  (prop/for-all [[t view]
                 (gen/let [t (gen/such-that #(pos? (long (type/size %))) types/any-type 100)
                           view (bytes-of (* 3 (map-types/stride (type/size t))))]
                   [t view])]
                (holds? (map-codecs/value {:type :percpu-hash :value t} 3) view)))

(deftest per-cpu-padding
  (testing "shows nonzero bytes between the values of two CPUs"
    (let [c (map-codecs/value {:type :percpu-hash :value :u32} 2)]
      (is (= [7 (bytes/->bytes "08 00 00 00 00 01 00 00")]
             (types/decoded c
                            (bytes/->bytes "07 00 00 00 00 00 00 00 08 00 00 00 00 01 00 00")))))))

;; ---------------------------------------------------------------- BTF

(defspec btf-types-keep-bytes 200
  (prop/for-all [[t seed] (gen/tuple types/a-struct gen/large-integer)]
                (let [{blob :bytes ids :ids} (btf/->btf [t] nil)
                      parsed (btf/type-of (btf/parse blob) (first ids))
                      array (byte-array (type/size parsed))]
                  (.nextBytes (Random. seed) array)
                  (and (= (type/size t) (type/size parsed))
                       (holds? (codec/codec parsed) (bytes/wrap array))
                       (holds? (codec/key-codec parsed nil []) (bytes/wrap array))))))

(deftest kernel-types-keep-bytes
  (testing "types of the kernel keep the bytes"
    (let [file (File. "/sys/kernel/btf/vmlinux")]
      (if-not (.canRead file)
        (fixture/skip! "without /sys/kernel/btf/vmlinux")
        (let [b (btf/parse (Files/readAllBytes (.toPath file)))
              random (Random. 11)
              tried (for [_ (range 4000)
                          :let [id (inc (.nextInt random 100000))
                                t (try (btf/type-of b id) (catch clojure.lang.ExceptionInfo _ nil))]
                          :when (and t (< 0 (long (type/size t)) 2048))]
                      (let [array (byte-array (type/size t))
                            c (codec/codec t)]
                        (.nextBytes random array)
                        (when-not (holds? c (bytes/wrap array))
                          t)))]
          (is (< 300 (count tried)))
          (is (= [] (vec (remove nil? tried)))))))))
