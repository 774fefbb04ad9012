(ns bpfmap.impl.codec.network-test
  "Prefixes of addresses, against arithmetic on numbers as long as the addresses."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.fixture :refer [error-of]]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.codec.scalar :as scalar]
            [bpfmap.type :as type]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (bpfmap.sys Codec)
           (java.lang.foreign MemorySegment)
           (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

(def ^:private families
  {:ipv4 {:bits 32 :text scalar/ipv4-text :example "10.0.0.0/8"}
   :ipv6 {:bits 128 :text scalar/ipv6-text :example "2001:db8::/32"}})

(defn- encoded [t value]
  (let [^Codec c (codec/codec t [:key])
        array (byte-array (.size c) (repeat (unchecked-byte 0xa5)))]
    (.encode c value (MemorySegment/ofArray array) 0)
    (vec array)))

(defn- decoded [t array]
  (.decode (codec/codec t [:key]) (MemorySegment/ofArray (byte-array array)) 0))

(defn- raw
  "The bytes of the kernel's struct: a length in this machine's byte order, and an address."
  [n address]
  (into (vec (.array (.putInt (.order (ByteBuffer/allocate 4) (ByteOrder/nativeOrder))
                              (unchecked-int n)))) address))

(defn- network-of
  "An address, a vector of bytes, with its last bits zero: as a number, shifted out and in again."
  [bits address n]
  (let [behind (int (- bits n))
        number (.shiftLeft (.shiftRight (BigInteger. 1 (byte-array address)) behind) behind)]
    (mapv #(.byteValue (.shiftRight number (int (- bits 8 (* 8 %))))) (range (quot bits 8)))))

(defn- address-of [bits]
  (gen/vector (gen/frequency [[3 (gen/choose -128 127)] [1 (gen/elements [0 -1])]]) (quot bits 8)))

(def ^:private an-address
  (gen/let [family (gen/elements [:ipv4 :ipv6])
            address (address-of (:bits (families family)))]
    [family address]))

(defspec every-prefix-length 60
  (prop/for-all [[family address] an-address]
                (let [{:keys [bits text]} (families family)
                      t [:prefix family]
                      whole (text (byte-array address))]
                  (and (= (raw bits address) (encoded t whole))
                       (every? (fn [n]
                                 (let [network (network-of bits address n)
                                       canonical (str (text (byte-array network)) "/" n)]
                                   (and (= (raw n network) (encoded t (str whole "/" n))
                                           (encoded t canonical))
                                        (= canonical (decoded t (raw n network))))))
                               (range (inc bits)))))))

(defspec any-bytes-round-trip 3000
  (prop/for-all [[[family address] n clear?]
                 (gen/tuple an-address
                            (gen/one-of [(gen/choose 0 140) (gen/choose -0x80000000 0x7fffffff)
                                         (gen/elements [-1 32 33 128 129])])
                            gen/boolean)]
                (let [{:keys [bits]} (families family)
                      t [:prefix family]
                      address (if (and clear? (<= 0 n bits)) (network-of bits address n) address)
                      array (raw n address)
                      value (decoded t array)
                      prefix? (and (<= 0 n bits) (= address (network-of bits address n)))]
                  (and (= array (encoded t value))
                       (if prefix?
                         (and (string? value) (str/ends-with? value (str "/" n)))
                         (= {:prefixlen (bit-and 0xffffffff n) :data (bytes/->bytes address)}
                            value))))))

(defspec generated-prefixes 300
  (prop/for-all [[t prefix] (gen/let [t (gen/elements [[:prefix :ipv4] [:prefix :ipv6]])
                                      prefix (type/->generator t)]
                              [t prefix])]
                (and (string? prefix) (= prefix (decoded t (encoded t prefix))))))

(deftest generated-lengths
  (testing "the generator produces every prefix length"
    (is (= (set (range 33))
           (set (map #(parse-long (last (str/split % #"/")))
                     (gen/sample (type/->generator [:prefix :ipv4]) 2000)))))))

(deftest malformed-prefixes
  (testing "rejects text that is not a prefix"
    (doseq [[family
             texts] {:ipv4 ["" "/" "/8" "10.0.0.0/" "10.0.0.0/33" "10.0.0.0/08" "10.0.0.0/00"
                            "10.0.0.0/+8" "10.0.0.0/-1"
                            "10.0.0.0/ 8" "10.0.0.0 /8" " 10.0.0.0/8" "10.0.0.0/8 " "10.0.0.0/8\n"
                            "10.0.0.0/8/8" "10.0.0.0//8"
                            "10.0.0.0/x" "10.0.0.0/0x8" "10.0.0.0/8.0" "10.0.0.0/255.0.0.0"
                            "10.0.0.0/99999999999999999999"
                            "10.0.0.0/٨" "10/8" "10.0.0/8" "010.0.0.0/8" "10.0.0.256/8"
                            "2001:db8::/32" "::/0" "x/8"]
                     :ipv6 ["" "/" "/8" "::/" "::/129" "::/032" "::/+1" "::/-1" "::/ 1" ":: /1"
                            " ::/1" "::/1 " "::/1\n" "::/1/1"
                            "::/1000" "[::]/1" "fe80::1%eth0/64" ":/1" "10.0.0.0/8" "x::/8"]}
            text texts
            :let [t [:prefix family]
                  {:keys [message] :bpfmap/keys [error path type value hint]}
                  (error-of (encoded t text))
                  {:keys [bits example]} (families family)]]
      (testing (pr-str t text)
        (is (= [:invalid-value [:key] t text] [error path type value]))
        (is (= (str "it must be a string such as \"" example "\", with a length from 0 to " bits)
               hint))
        (is (= (str "[:key]: " (pr-str text) " is not a " t ": " hint) message))))))

(defspec any-text-or-error 3000
  (prop/for-all [[family text] (gen/tuple (gen/elements [:ipv4 :ipv6])
                                          (gen/fmap str/join
                                                    (gen/vector
                                                     (gen/elements
                                                      (map str "0123456789afF.:/%+- ١\n")) 0 24)))]
                (let [t [:prefix family]
                      array (try (encoded t text)
                                 (catch clojure.lang.ExceptionInfo e
                                   (:bpfmap/error (ex-data e))))]
                  (or (= :invalid-value array)
                      (string? (decoded t array))))))

(deftest prefix-without-text-form
  (testing "a prefix without a text form reads as the struct of the kernel"
    (are [family value array] (and (= array (encoded [:prefix family] value))
                                   (= value (decoded [:prefix family] array)))
      :ipv4 {:prefixlen 33 :data (bytes/->bytes [10 0 0 0])} (raw 33 [10 0 0 0])
      :ipv4 {:prefixlen 8 :data (bytes/->bytes [10 1 2 3])} (raw 8 [10 1 2 3])
      :ipv4 {:prefixlen 4294967295 :data (bytes/->bytes [0 0 0 0])} (raw -1 [0 0 0 0])
      :ipv6 {:prefixlen 129 :data (bytes/->bytes (range 16))} (raw 129 (range 16)))
    (testing "and the struct of a text is that text"
      (is (= "10.0.0.0/8"
             (decoded [:prefix :ipv4]
                      (encoded [:prefix :ipv4] {:prefixlen 8 :data [10 0 0 0]})))))))

(deftest prefix-codecs-are-total
  (testing "prefix codecs decode any bytes"
    (is (true? (.total (codec/codec [:prefix :ipv4]))))
    (is (true? (.total (codec/codec [:struct [:net [:prefix :ipv6]]]))))))

(deftest nested-prefixes
  (testing "prefixes work inside other types"
    (are [t value] (= value (decoded t (encoded t value)))
      [:struct [:a :u8] [:net [:prefix :ipv4]] [:b :u8]] {:a 1 :net "10.0.0.0/8" :b 2}
      [:struct {:packed true} [:a :u8] [:net [:prefix :ipv6]]] {:a 1 :net "2001:db8::/32"}
      [:array [:prefix :ipv4] 2] ["0.0.0.0/0" "10.1.2.3/32"]
      [:typedef "net_t" [:prefix :ipv4]] "10.0.0.0/8"
      [:via [:prefix :ipv4] first vector] ["10.0.0.0/8"]
      [:union [:net [:prefix :ipv4]] [:n :u64]] {:net "0.0.0.0/0" :n 0})
    (testing "a member of a union beside another that says the same"
      (let [t [:union [:net [:prefix :ipv4]] [:raw [:bytes 8]]]
            value (decoded t (raw 33 [1 2 3 4]))]
        (is (= {:prefixlen 33 :data (bytes/->bytes [1 2 3 4])} (:net value)))
        (is (= (raw 33 [1 2 3 4]) (encoded t value)))))))
