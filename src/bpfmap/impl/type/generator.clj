(ns ^:no-doc bpfmap.impl.type.generator
  "Generators of values for types, for `bpfmap.type/->generator`.

  Only this namespace of the library requires test.check."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.codec.scalar :as scalar]
            [clojure.string :as str]
            [clojure.test.check.generators :as gen])
  (:import (java.nio.charset StandardCharsets)))

(set! *warn-on-reflection* true)

(declare generator)

(defn- integer-of [bits signed?]
  (let [high (.shiftLeft BigInteger/ONE (int bits))
        half (.shiftLeft BigInteger/ONE (int (dec (long bits))))
        fit (fn [n]
              (let [n (.mod (biginteger n) high)
                    n (if (and signed? (<= 0 (.compareTo n half))) (.subtract n high) n)]
                ;; The result is the same as from a codec: a Long if it fits.
                (if (< (.bitLength n) 64) (.longValue n) (bigint n))))]
    (gen/fmap fit (gen/one-of [gen/small-integer
                               gen/large-integer
                               gen/size-bounded-bigint
                               (gen/elements [0 1 -1 half (dec (bigint half))
                                              (dec (bigint high))])]))))

(defn- float-of [size]
  (if (= 4 size)
    (gen/fmap #(double (float %))
              (gen/double* {:min -3.0e38 :max 3.0e38 :NaN? false :infinite? false}))
    (gen/double* {:NaN? false :infinite? true})))

(defn- texts
  "Returns a generator of texts of up to n bytes in UTF-8."
  [n]
  (gen/fmap (fn [s]
              (let [s (str/replace s "\u0000" "")]
                (first (filter #(<= (alength (.getBytes ^String % StandardCharsets/UTF_8)) (long n))
                               (iterate #(subs % 0 (dec (count %))) s)))))
            (gen/one-of [gen/string-alphanumeric
                         (gen/fmap str/join (gen/vector (gen/elements ["a" "ö" "€" "z"]) 0 n))])))

(defn- octets [n]
  (gen/vector (gen/choose 0 255) n))

(defn- prefix-of [family address-size]
  (gen/fmap (fn [[xs n]] (scalar/prefix-text family (byte-array (map unchecked-byte xs)) n))
            (gen/tuple (octets address-size) (gen/choose 0 (* 8 (long address-size))))))

(defn- enum-of [{:keys [values names base]}]
  (gen/fmap #(get names % %)
            (gen/one-of (cond-> [(generator base)]
                          (seq values) (conj (gen/elements (vals values)))))))

(defn- members-of [{:keys [members]}]
  (gen/fmap #(into (array-map) cat %)
            (apply gen/tuple
                   (for [{:keys [name node bits]} members]
                     (cond
                       bits (gen/fmap (fn [v] {name v})
                                      (if (= :bool (:kind node))
                                        gen/boolean
                                        (gen/fmap #(get (:names node) % %)
                                                  (integer-of bits (:signed node)))))
                       (= :private (:kind node)) (gen/return {})
                       name (gen/fmap (fn [v] {name v}) (generator node))
                       :else (generator node))))))

(defn generator
  "Returns a test.check generator for the values of a type's node."
  [{:keys [kind size signed element count members type target family terminated] :as node}]
  (case kind
    :integer (integer-of (* 8 (long size)) signed)
    :pointer (integer-of 64 false)
    :float (float-of size)
    :bool gen/boolean
    :char (gen/fmap char (gen/choose 0 255))
    :ipv4 (gen/fmap #(str/join "." %) (octets 4))
    :mac (gen/fmap (fn [xs] (str/join ":" (map #(format "%02x" %) xs))) (octets 6))
    :ipv6 (gen/fmap (fn [xs] (scalar/ipv6-text (byte-array (map unchecked-byte xs)))) (octets 16))
    :prefix (prefix-of family (- (long size) 4))
    :enum (enum-of node)
    :bytes (gen/fmap bytes/->bytes (octets size))
    :string (texts (if terminated (dec (long size)) size))
    :array (gen/vector (generator element) count)
    :struct (members-of node)
    ;; One member determines the others, so a value has only one.
    :union (if-let [usable (seq (remove #(= :private (:kind (:node %))) members))]
             (gen/one-of (for [member usable] (members-of {:members [member]})))
             (gen/return {}))
    (:private :pad) (gen/return nil)
    :via (throw (error/error :not-supported
                             (str "Values of " (error/printed type) " cannot be generated")
                             {:bpfmap/hint (str
                                            "generate the values "
                                            "of "
                                            (error/printed (:type target))
                                            " and decode them")}))))
