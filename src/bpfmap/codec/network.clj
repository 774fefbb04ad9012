(ns bpfmap.codec.network
  "Codecs of addresses and of prefixes of them, which read as people write them."
  (:require [bpfmap.codec.misfit :refer [misfit]]
            [bpfmap.codec.scalar :refer [view-written?]]
            [clojure.string :as str])
  (:import (bpfmap.sys Bytes Codec)
           (java.net Inet4Address Inet6Address InetAddress)
           (java.util Arrays HexFormat)))

(set! *warn-on-reflection* true)

(defn- octet [^bytes array i]
  (bit-and 0xff (aget array (int i))))

(defn- text-codec
  "A codec of n bytes that read as a text. `parse` gives an array, or nil for a text that is none."
  [{:keys [type size]} path parse unparse expected]
  (let [n (int size)]
    (reify Codec
      (size [_] n)
      (encode [_ value memory offset]
        (if-let [array (when (string? value) (parse value))]
          (Bytes/copyIn array memory offset)
          (when-not (view-written? value n type path memory offset)
            (throw (misfit type path value expected)))))
      (decode [_ memory offset]
        (unparse (Bytes/copyOut memory offset n))))))

(defn ipv4-bytes
  "The four bytes of an IPv4 address in dotted form; nil for any other text.

      (seq (ipv4-bytes \"10.0.0.1\")) ;=> (10 0 0 1)"
  ^bytes [^String text]
  ;; ofLiteral takes fewer parts too, and leading zeros, as inet_aton does, and means something else than people do.
  (when (re-matches #"(0|[1-9]\d{0,2})(\.(0|[1-9]\d{0,2})){3}" text)
    (try
      (.getAddress ^InetAddress (Inet4Address/ofLiteral text))
      (catch IllegalArgumentException _ nil))))

(defn ipv4-text
  "An IPv4 address of four bytes in dotted form."
  [^bytes array]
  (str (octet array 0) "." (octet array 1) "." (octet array 2) "." (octet array 3)))

(defn ipv6-bytes
  "The sixteen bytes of an IPv6 address; nil for any other text, and for one with a zone.

      (last (ipv6-bytes \"::1\")) ;=> 1"
  ^bytes [^String text]
  (when-not (or (str/includes? text "%") (str/includes? text "["))
    (try
      (let [array (.getAddress ^InetAddress (Inet6Address/ofLiteral text))]
        (if (= 4 (alength array)) ; what Java makes of ::ffff:10.0.0.1
          (byte-array (concat (repeat 10 0) [-1 -1] array))
          array))
      (catch IllegalArgumentException _ nil))))

(defn- longest-zeros
  "Where the longest run of two or more zero groups begins, and how long it is; the first of equals. RFC 5952, 4.2."
  [groups]
  (loop [i 0 best [nil 1]]
    (if (< i 8)
      (let [n (count (take-while zero? (drop i groups)))]
        (recur (+ i (max 1 n)) (if (< (second best) n) [i n] best)))
      (when (first best) best))))

(defn ipv6-text
  "An IPv6 address of sixteen bytes as RFC 5952 writes it.

      (ipv6-text (ipv6-bytes \"0:0:0:0:0:0:0:1\")) ;=> \"::1\""
  [^bytes array]
  (let [groups (mapv #(bit-or (bit-shift-left (octet array (* 2 %)) 8) (octet array (inc (* 2 %)))) (range 8))
        hex #(str/join ":" (map Long/toHexString %))]
    (if (and (every? zero? (subvec groups 0 5)) (= 0xffff (groups 5)))
      (str "::ffff:" (ipv4-text (byte-array (drop 12 array))))
      (if-let [[start n] (longest-zeros groups)]
        (str (hex (subvec groups 0 start)) "::" (hex (subvec groups (+ start n))))
        (hex groups)))))

(def ^:private colons (HexFormat/ofDelimiter ":"))

(defn- mac-bytes ^bytes [text]
  (when (re-matches #"(?i)[0-9a-f]{2}(:[0-9a-f]{2}){5}" text)
    (.parseHex ^HexFormat colons text)))

(defn- mac-text [^bytes array]
  (.formatHex ^HexFormat colons array))

(defn ipv4
  "The codec of an IPv4 address's node."
  [node path]
  (text-codec node path ipv4-bytes ipv4-text "it takes a text such as \"10.0.0.1\""))

(defn ipv6
  "The codec of an IPv6 address's node."
  [node path]
  (text-codec node path ipv6-bytes ipv6-text "it takes a text such as \"2001:db8::1\""))

(defn mac
  "The codec of an Ethernet address's node."
  [node path]
  (text-codec node path mac-bytes mac-text "it takes a text such as \"00:1b:21:0a:0b:0c\""))

;; ---------------------------------------------------------------- prefixes

(def ^:private families
  "Of each kind of address: what reads and what writes its text, and a prefix of it for people to see."
  {:ipv4 {:parse ipv4-bytes :unparse ipv4-text :example "10.0.0.0/8"}
   :ipv6 {:parse ipv6-bytes :unparse ipv6-text :example "2001:db8::/32"}})

(defn- network
  "A copy of an address with zeros behind its first n bits."
  ^bytes [^bytes array n]
  (let [n (long n)
        out (byte-array (alength array))]
    (dotimes [i (alength array)]
      (let [kept (max 0 (min 8 (- n (* 8 i))))]
        (aset out i (unchecked-byte (bit-and (aget array i) (bit-shift-left 0xff (- 8 kept)))))))
    out))

(defn prefix-text
  "The prefix of the first n bits of an address: `family` is :ipv4 or :ipv6, and the array has its bytes.

      (prefix-text :ipv4 (ipv4-bytes \"10.1.2.3\") 8) ;=> \"10.0.0.0/8\""
  [family array n]
  (str ((:unparse (families family)) (network array n)) "/" n))

(defn- parse-prefix
  "The length and the address of a prefix; nil for a text that is none. Without a length it is the whole address."
  [text parse most]
  (when-let [[_ address digits] (re-matches #"([^/]*)(?:/(0|[1-9]\d{0,2}))?" text)]
    (let [n (if digits (parse-long digits) most)]
      (when (<= (long n) (long most))
        (when-let [array (parse address)]
          [n (network array n)])))))

(def ^:private prefixlen-size "Bytes of the length, which stands before the address." 4)

(defn prefix
  "The codec of a prefix's node. Bytes that no text says, a length beyond the address or bits set behind the prefix, read
  as the struct that they are, `{:prefixlen n :data bytes}`, which goes in again."
  [{:keys [type size family layout]} path codec]
  (let [{:keys [parse example]} (families family)
        size (long size)
        address-size (- size (long prefixlen-size))
        most (* 8 address-size)
        ^Codec of-layout (codec layout path)
        expected (str "it takes a text such as " (pr-str example) ", with a length from 0 to " most)]
    (reify Codec
      (size [_] size)
      (encode [_ value memory offset]
        (if (map? value)
          (.encode of-layout value memory offset)
          (if-let [[n array] (when (string? value) (parse-prefix value parse most))]
            (do (Bytes/put32 memory offset (long n) false)
                (Bytes/copyIn array memory (+ offset (long prefixlen-size))))
            (when-not (view-written? value size type path memory offset)
              (throw (misfit type path value expected))))))
      (decode [_ memory offset]
        (let [n (Bytes/getU32 memory offset false)
              array (Bytes/copyOut memory (+ offset (long prefixlen-size)) (int address-size))]
          (if (and (<= n most) (Arrays/equals array (network array n)))
            (prefix-text family array n)
            (.decode of-layout memory offset)))))))
