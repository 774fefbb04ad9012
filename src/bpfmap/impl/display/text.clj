(ns ^:no-doc bpfmap.impl.display.text
  "Prints numbers and bytes as what they mean: sizes, durations, points in time, sets, addresses."
  (:require [bpfmap.impl.codec.scalar :as scalar]
            [clojure.string :as str])
  (:import (java.math RoundingMode)
           (java.time Instant ZoneOffset)
           (java.time.format DateTimeFormatter)
           (java.util HexFormat)))

(set! *warn-on-reflection* true)

;; --- numbers

(defn- in-base
  "Returns an integer with a prefix, in two's complement if it is negative.

  `size` is the number of its bytes; nil if unknown. Then a negative number has a sign."
  [n radix prefix size]
  (let [n (biginteger n)
        n (if (and size (neg? (.signum n)))
            (.add n (.shiftLeft BigInteger/ONE (* 8 (int size))))
            n)]
    (str (when (neg? (.signum n)) "-") prefix (.toString (.abs n) (int radix)))))

(defn hex
  "Returns an integer of `size` bytes in hexadecimal.

      (hex 255 4) ;=> \"0xff\"
      (hex -1 4)  ;=> \"0xffffffff\""
  [n size]
  (in-base n 16 "0x" size))

(defn octal
  "Returns an integer of `size` bytes in octal, as C has it.

      (octal 420 4) ;=> \"0644\""
  [n size]
  (if (zero? n) "0" (in-base n 8 "0" size)))

;; --- time

(def ^:private units
  "The units of short durations, by their nanoseconds."
  [[1000000000 "s"] [1000000 "ms"] [1000 "us"] [1 "ns"]])

(defn- decimal
  "Returns n divided by a unit, with at most three digits after the point."
  [n unit]
  (-> (bigdec n)
      (.divide (bigdec unit) 3 RoundingMode/HALF_UP)
      .stripTrailingZeros
      .toPlainString))

(defn- long-duration [seconds]
  (let [parts [[(quot seconds 86400) "d"] [(rem (quot seconds 3600) 24) "h"]
               [(rem (quot seconds 60) 60) "m"] [(rem seconds 60) "s"]]]
    (str/join (map (fn [[n unit]] (str n unit))
                   (take 2 (drop-while (comp zero? first) parts))))))

(defn duration
  "Returns a number of nanoseconds as a duration.

  From a minute on, it has the two largest units and is rounded down.

      (duration 1500000)       ;=> \"1.5ms\"
      (duration 5400000000000) ;=> \"1h30m\""
  [n]
  (let [size (if (neg? n) (-' n) n)]
    (str (when (neg? n) "-")
         (cond
           (zero? size) "0s"
           (<= 60000000000 size) (long-duration (quot size 1000000000))
           :else (let [[unit name] (first (filter #(<= (long (first %)) size) units))]
                   (str (decimal size unit) name))))))

(def ^:private to-microseconds
  (delay (.withZone (DateTimeFormatter/ofPattern "uuuu-MM-dd'T'HH:mm:ss.SSSSSS'Z'")
                    ZoneOffset/UTC)))

(defn instant
  "Returns nanoseconds since 1970 as a point in time in UTC, to the microsecond.

      (instant 1500000000123456789) ;=> \"2017-07-14T02:40:00.123456Z\""
  [n]
  (let [n (bigint n)
        seconds (.divide (biginteger (- n (mod n 1000000000))) (biginteger 1000000000))]
    (.format ^DateTimeFormatter @to-microseconds
             (Instant/ofEpochSecond (.longValue seconds) (long (mod n 1000000000))))))

;; --- sets

(defn- runs
  "Returns ascending numbers as `[first last]` pairs of consecutive ones."
  [numbers]
  (reduce (fn [found n]
            (let [[from to] (peek found)]
              (if (and to (= (long n) (inc (long to))))
                (conj (pop found) [from n])
                (conj found [n n]))))
          [] numbers))

(defn number-list
  "Returns ascending numbers as the kernel lists CPUs, or `none`.

      (number-list [0 1 2 3 8]) ;=> \"0-3,8\""
  [numbers]
  (if (seq numbers)
    (str/join "," (map (fn [[from to]] (if (= from to) (str from) (str from "-" to)))
                       (runs numbers)))
    "none"))

(defn bits
  "Returns the numbers of the bits that are set in a non-negative integer.

      (bits 0x10f) ;=> (0 1 2 3 8)"
  [n]
  (let [n (biginteger n)]
    (filter #(.testBit n (int %)) (range (.bitLength n)))))

(defn flags
  "Returns the names of the bits of a number, joined by `|`.

  `values` are names with their numbers, which may have several bits. Bits without a name follow in
  hexadecimal. A name of zero stands for zero only.

      (flags 19 {:SYN 1 :ACK 2}) ;=> \"SYN|ACK|0x10\""
  [n values]
  (let [n (biginteger n)
        ;; Names of more bits first, so that a name of several bits wins over names of some of them.
        named (sort-by (fn [[k v]] [(- (.bitCount (biginteger v))) v (str k)])
                       (filter (fn [[_ v]] (pos? v)) values))
        [left found] (reduce (fn [[^BigInteger left found] [k v]]
                               (let [v (biginteger v)]
                                 (if (= v (.and left v))
                                   [(.andNot left v) (conj found [v k])]
                                   [left found])))
                             [n []] named)]
    (if (zero? (.signum n))
      (str (if-let [zero (first (sort (keep (fn [[k v]] (when (zero? v) (name k))) values)))]
             zero
             0))
      (str/join "|" (concat (map (comp name second) (sort-by first found))
                            (when-not (zero? (.signum ^BigInteger left)) [(hex left nil)]))))))

;; --- addresses

(def ^:private colons (HexFormat/ofDelimiter ":"))

(defn mac
  "Returns the text of an Ethernet address of six bytes.

      (mac (byte-array [0 27 33 10 11 12])) ;=> \"00:1b:21:0a:0b:0c\""
  [^bytes array]
  (.formatHex ^HexFormat colons array))

(defn address
  "Returns the text of an IP address of 4 or 16 bytes; nil for another length.

      (address (byte-array [10 0 0 1])) ;=> \"10.0.0.1\""
  [^bytes array]
  (case (alength array)
    4 (scalar/ipv4-text array)
    16 (scalar/ipv6-text array)
    nil))

(defn hex-bytes
  "Returns bytes as one hexadecimal number, the first byte first.

      (hex-bytes (byte-array [10 -1])) ;=> \"0x0aff\""
  [^bytes array]
  (str "0x" (.formatHex (HexFormat/of) array)))
