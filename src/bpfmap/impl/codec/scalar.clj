(ns ^:no-doc bpfmap.impl.codec.scalar
  "Codecs of single values: integers, floats, booleans, enums, times, and network addresses."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.codec.error :refer [misfit]]
            [clojure.string :as str])
  (:import (bpfmap.bytes ByteView)
           (bpfmap.sys Bytes Codec TypeCodec)
           (clojure.lang BigInt)
           (java.net Inet4Address Inet6Address InetAddress)
           (java.nio CharBuffer)
           (java.nio.charset CharacterCodingException StandardCharsets)
           (java.util Arrays HexFormat)))

(set! *warn-on-reflection* true)

;; --- integers, floats, enums, times

(defn array-of
  "Returns the array of a value that can be written as n bytes, or nil.

  A byte array or view is not copied."
  ^bytes [value n]
  (cond
    (bytes? value) value
    (instance? ByteView value) (.-array ^ByteView value)
    (and (sequential? value)
         (every? #(and (int? %) (<= -128 (long %) 255)) (take (inc (long n)) value)))
    (bytes/->array (take (inc (long n)) value)) ; it may be infinite
    :else nil))

(defn exactly
  "Returns an array if it has n bytes; throws for any other size."
  ^bytes [^bytes array type path value n]
  (if (= (long n) (alength array))
    array
    (throw (misfit type path value (str "it must have " n " bytes, got " (alength array))))))

(defn view-written?
  "Writes a byte view of `size` bytes and returns true; returns false otherwise.

  Every type accepts a byte view, because bytes without a natural value are read as one."
  [value size type path memory offset]
  (if (instance? ByteView value)
    (do (Bytes/copyIn (exactly (.-array ^ByteView value) type path value size) memory (long offset))
        true)
    false))

(defn- integer-in
  "Returns an integer within bounds that is not a Long; throws for anything else.

  The fast path is in [[integer-codec]]."
  [value low high type path]
  (if (and (integer? value) (<= low value high))
    value
    (throw (misfit type path value (str "it must be an integer from " low " to " high)))))

(defn unsigned
  "Returns the unsigned number of 64 bits: a BigInt if it exceeds 2^63-1.

      (unsigned -1) ;=> 18446744073709551615N"
  [^long bits]
  (if (neg? bits)
    (BigInt/fromBigInteger (.add (biginteger bits) (.shiftLeft BigInteger/ONE 64)))
    bits))

(defn- integer-codec
  "Returns the codec of integers of up to 8 bytes.

  `TypeCodec` handles every Long in range itself."
  [type path size signed? swap]
  (let [size (long size)
        swap (boolean swap)
        bits (* 8 size)
        two-to #(bigint (.shiftLeft BigInteger/ONE (int %)))
        [low high] (if signed?
                     [(- (two-to (dec bits))) (dec (two-to (dec bits)))]
                     [0 (dec (two-to bits))])]
    (TypeCodec/integer
     (reify Codec
       (size [_] size)
       (encode [_ value memory offset]
         (when-not (view-written? value size type path memory offset)
           (let [n (.longValue ^Number (integer-in value low high type path))]
             (case size
               1 (Bytes/put8 memory offset n)
               2 (Bytes/put16 memory offset n swap)
               4 (Bytes/put32 memory offset n swap)
               8 (Bytes/put64 memory offset n swap)))))
       (decode [_ memory offset]
         (unsigned (Bytes/get64 memory offset swap))))
     (boolean signed?) swap type)))

(defn- wide-codec [type path signed? swap]
  (let [swap (boolean swap)
        ;; True if the first eight bytes are the high ones.
        big? (= (boolean (Bytes/swapped true)) swap)
        high-at (if big? 0 8)
        low-at (if big? 8 0)
        two-to-127 (bigint (.shiftLeft BigInteger/ONE 127))
        [least most] (if signed? [(- two-to-127) (dec two-to-127)] [0 (dec (* 2 two-to-127))])]
    (reify Codec
      (size [_] 16)
      (encode [_ value memory offset]
        (when-not (view-written? value 16 type path memory offset)
          (let [n (biginteger (integer-in value least most type path))]
            (Bytes/put64 memory (+ offset low-at) (.longValue n) swap)
            (Bytes/put64 memory (+ offset high-at) (.longValue (.shiftRight n 64)) swap))))
      (decode [_ memory offset]
        (let [high (Bytes/get64 memory (+ offset high-at) swap)
              high (biginteger (if signed? high (unsigned high)))
              n (.or (.shiftLeft high 64)
                     (biginteger (unsigned (Bytes/get64 memory (+ offset low-at) swap))))]
          (if (< (.bitLength n) 64) (.longValue n) (BigInt/fromBigInteger n)))))))

(defn- swapped? [order]
  (case order
    nil false
    :be (Bytes/swapped true)
    :le (Bytes/swapped false)))

(defn integer
  "Returns the codec of an integer's node."
  [{:keys [type size signed order]} path]
  (let [swap (swapped? order)]
    (if (= 16 size)
      (wide-codec type path signed swap)
      (integer-codec type path size signed swap))))

(defn pointer
  "Returns the codec of a pointer's node: its address."
  [{:keys [type]} path]
  (integer-codec type path 8 false false))

(defn- float-in
  "Returns a number as a double; throws for a finite one that does not fit 4 bytes."
  [value type path size]
  (let [x (if (number? value)
            (double value)
            (throw (misfit type path value "it must be a number")))]
    (if (and (= 4 size) (Double/isFinite x) (Float/isInfinite (unchecked-float x)))
      (throw (misfit type path value
                     (str "it must be a number of magnitude up to " Float/MAX_VALUE)))
      x)))

(defn- float-codec
  "Returns the codec of floating-point numbers, which are read as doubles.

  Bits for which `special?` returns true are read as a byte view, because a double would lose them."
  [{:keys [type size order]} path special?]
  (let [swap (boolean (swapped? order))
        n (int size)
        special (fn [memory offset x]
                  (if (special? memory offset swap x)
                    (bytes/wrap (Bytes/copyOut memory (long offset) n))
                    x))]
    (if (= 4 n)
      (reify Codec
        (size [_] 4)
        (encode [_ value memory offset]
          (when-not (view-written? value 4 type path memory offset)
            (Bytes/putF32 memory offset (double (float-in value type path 4)) swap)))
        (decode [_ memory offset]
          (let [x (Bytes/getF32 memory offset swap)]
            (if (and (== x x) (not (zero? x)))
              x
              (special memory offset x)))))
      (reify Codec
        (size [_] 8)
        (encode [_ value memory offset]
          (when-not (view-written? value 8 type path memory offset)
            (Bytes/putF64 memory offset (double (float-in value type path 8)) swap)))
        (decode [_ memory offset]
          (let [x (Bytes/getF64 memory offset swap)]
            (if (and (== x x) (not (zero? x)))
              x
              (special memory offset x))))))))

(defn floating
  "Returns the codec of a floating-point number's node.

  A NaN other than Java's reads as a byte view."
  [{:keys [size] :as node} path]
  (float-codec node path
               (if (= 4 size)
                 (fn [memory offset swap x]
                   (and (not (== x x))
                        (not (== 0x7fc00000 (Bytes/getU32 memory (long offset) (boolean swap))))))
                 (fn [memory offset swap x]
                   (and (not (== x x))
                        (not (== 0x7ff8000000000000
                                 (Bytes/get64 memory (long offset) (boolean swap)))))))))

(defn floating-key
  "Returns the codec of a floating-point number's node in a key.

  NaNs and -0.0 are read as byte views. As numbers, a NaN would not equal itself, and -0.0 would
  equal 0.0, which has other bytes."
  [node path]
  (float-codec node path
               (fn [_ _ _ x]
                 (let [x (double x)]
                   (or (not (== x x)) (neg? (Math/copySign 1.0 x)))))))

(defn bool
  "Returns the codec of a boolean's node.

  A byte from 2 to 255, which C never writes, is read as a byte view."
  [{:keys [type]} path]
  (reify Codec
    (size [_] 1)
    (encode [_ value memory offset]
      (if (boolean? value)
        (Bytes/put8 memory offset (if (.booleanValue ^Boolean value) 1 0))
        (when-not (view-written? value 1 type path memory offset)
          (throw (misfit type path value "it must be true or false")))))
    (decode [_ memory offset]
      (case (Bytes/getU8 memory offset)
        0 false
        1 true
        (bytes/wrap (Bytes/copyOut memory offset 1))))))

(defn character
  "Returns the codec of a character's node."
  [{:keys [type]} path]
  (reify Codec
    (size [_] 1)
    (encode [_ value memory offset]
      (if (and (char? value) (<= (int value) 255))
        (Bytes/put8 memory offset (long (int value)))
        (when-not (view-written? value 1 type path memory offset)
          (throw (misfit type path value "it must be a character from \\u0000 to \\u00ff")))))
    (decode [_ memory offset]
      (char (Bytes/getU8 memory offset)))))

(defn fixed-bytes
  "Returns the codec of a node of fixed bytes."
  [{:keys [type size]} path]
  (let [n (int size)]
    (reify Codec
      (size [_] n)
      (encode [_ value memory offset]
        (if-let [array (array-of value n)]
          (Bytes/copyIn (exactly array type path value n) memory offset)
          (throw (misfit type path value
                         "it must be a byte array, a byte view (see ->bytes) or a sequence of integers from -128 to 255"))))
      (decode [_ memory offset]
        (bytes/wrap (Bytes/copyOut memory offset n))))))

(defn- utf-8
  "Returns the bytes of a text in UTF-8; nil if it has a lone surrogate."
  ^bytes [^String text]
  (try
    (let [buffer (.encode (.newEncoder StandardCharsets/UTF_8) (CharBuffer/wrap text))
          array (byte-array (.remaining buffer))]
      (.get buffer array)
      array)
    (catch CharacterCodingException _ nil)))

(defn text
  "Returns the codec of a string's node.

  The string is followed by zeros; with `:terminated`, by at least one. Any other bytes are read as
  a byte view, which can be written again."
  [{:keys [type size terminated]} path]
  (let [n (int size)
        terminated (boolean terminated)
        most (if terminated (dec n) n)]
    (reify Codec
      (size [_] n)
      (encode [_ value memory offset]
        (if (string? value)
          (let [^bytes array (or (utf-8 value)
                                 (throw (misfit type path value
                                                "it must be a string that UTF-8 can encode, without half a character (a lone surrogate)")))]
            (cond
              (not (neg? (.indexOf ^String value 0)))
              (throw (misfit type path value "it must be a string without NUL characters"))
              (< most (alength array))
              (throw (misfit type path value
                             (str "it must be a string of up to " (error/plural most "byte")
                                  " in UTF-8, got "
                                  (alength array))))
              :else
              (do (Bytes/zero memory offset n)
                  (Bytes/copyIn array memory offset))))
          (if-let [array (array-of value n)]
            (Bytes/copyIn (exactly array type path value n) memory offset)
            (throw (misfit type path value "it must be a string, or bytes that are not one")))))
      (decode [_ memory offset]
        (let [array (Bytes/copyOut memory offset n)]
          (or (Bytes/text array terminated) (bytes/wrap array)))))))

(defn- zeros? [^bytes array]
  (loop [i 0]
    (or (= i (alength array))
        (and (zero? (aget array i)) (recur (inc i))))))

(defn nothing
  "Returns the codec of a node owned by the kernel, or of a hole.

  It is written as zero and read as nil. Non-zero bytes are read as a byte view. Only memory, and
  maps without BTF, can contain them."
  [{:keys [type size]} path]
  (let [n (int size)]
    (reify Codec
      (size [_] n)
      (encode [_ value memory offset]
        (if (nil? value)
          (Bytes/zero memory offset n)
          (when-not (view-written? value n type path memory offset)
            (throw (misfit type path value "the kernel owns it; leave it out")))))
      (decode [_ memory offset]
        (let [array (Bytes/copyOut memory offset n)]
          (when-not (zeros? array)
            (bytes/wrap array)))))))

;; --- network addresses

(defn- octet [^bytes array i]
  (bit-and 0xff (aget array (int i))))

(defn- text-codec
  "Returns the codec of n bytes that are read as a text.

  `parse` returns an array, or nil for a text that does not have the form."
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
  "Returns the four bytes of an IPv4 address in dotted form; nil for other text.

      (seq (ipv4-bytes \"10.0.0.1\")) ;=> (10 0 0 1)"
  ^bytes [^String text]
  ;; ofLiteral also accepts fewer parts and leading zeros, and reads them as inet_aton does, which
  ;; is not what people mean.
  (when (re-matches #"(0|[1-9]\d{0,2})(\.(0|[1-9]\d{0,2})){3}" text)
    (try
      (.getAddress ^InetAddress (Inet4Address/ofLiteral text))
      (catch IllegalArgumentException _ nil))))

(defn ipv4-text
  "Returns an IPv4 address of four bytes in dotted form."
  [^bytes array]
  (str (octet array 0) "." (octet array 1) "." (octet array 2) "." (octet array 3)))

(defn ipv6-bytes
  "Returns the sixteen bytes of an IPv6 address without a zone; nil for other text.

      (last (ipv6-bytes \"::1\")) ;=> 1"
  ^bytes [^String text]
  (when-not (or (str/includes? text "%") (str/includes? text "["))
    (try
      (let [array (.getAddress ^InetAddress (Inet6Address/ofLiteral text))]
        (if (= 4 (alength array)) ; Java's class for ::ffff:10.0.0.1
          (byte-array (concat (repeat 10 0) [-1 -1] array))
          array))
      (catch IllegalArgumentException _ nil))))

(defn- longest-zeros
  "Returns the start and length of the longest run of two or more zero groups.

  The first of equally long runs counts. Source: RFC 5952, 4.2."
  [groups]
  (loop [i 0 best [nil 1]]
    (if (< i 8)
      (let [n (count (take-while zero? (drop i groups)))]
        (recur (+ i (max 1 n)) (if (< (second best) n) [i n] best)))
      (when (first best) best))))

(defn ipv6-text
  "Returns an IPv6 address of sixteen bytes in the form of RFC 5952.

      (ipv6-text (ipv6-bytes \"0:0:0:0:0:0:0:1\")) ;=> \"::1\""
  [^bytes array]
  (let [groups (mapv #(bit-or (bit-shift-left (octet array (* 2 %)) 8) (octet array (inc (* 2 %))))
                     (range 8))
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
  "Returns the codec of an IPv4 address's node."
  [node path]
  (text-codec node path ipv4-bytes ipv4-text "it must be a string such as \"10.0.0.1\""))

(defn ipv6
  "Returns the codec of an IPv6 address's node."
  [node path]
  (text-codec node path ipv6-bytes ipv6-text "it must be a string such as \"2001:db8::1\""))

(defn mac
  "Returns the codec of an Ethernet address's node."
  [node path]
  (text-codec node path mac-bytes mac-text "it must be a string such as \"00:1b:21:0a:0b:0c\""))

;; ---------------------------------------------------------------- prefixes

(def ^:private families
  "Functions that read and write addresses, and an example of a prefix, by family."
  {:ipv4 {:parse ipv4-bytes :unparse ipv4-text :example "10.0.0.0/8"}
   :ipv6 {:parse ipv6-bytes :unparse ipv6-text :example "2001:db8::/32"}})

(defn- network
  "Returns a copy of an address with zeros after its first n bits."
  ^bytes [^bytes array n]
  (let [n (long n)
        out (byte-array (alength array))]
    (dotimes [i (alength array)]
      (let [kept (max 0 (min 8 (- n (* 8 i))))]
        (aset out i (unchecked-byte (bit-and (aget array i) (bit-shift-left 0xff (- 8 kept)))))))
    out))

(defn prefix-text
  "Returns the prefix of the first n bits of an address.

  `family` is :ipv4 or :ipv6, and the array has the address's bytes.

      (prefix-text :ipv4 (ipv4-bytes \"10.1.2.3\") 8) ;=> \"10.0.0.0/8\""
  [family array n]
  (str ((:unparse (families family)) (network array n)) "/" n))

(defn- parse-prefix
  "Returns the length and the address of a prefix; nil for any other text.

  Without a length, the prefix is the whole address."
  [text parse most]
  (when-let [[_ address digits] (re-matches #"([^/]*)(?:/(0|[1-9]\d{0,2}))?" text)]
    (let [n (if digits (parse-long digits) most)]
      (when (<= (long n) (long most))
        (when-let [array (parse address)]
          [n (network array n)])))))

(def ^:private prefixlen-size "Bytes of the length, which stands before the address." 4)

(defn prefix
  "Returns the codec of a prefix's node.

  Bytes without a textual form are read as a map, `{:prefixlen n :data bytes}`, which can be written
  again. These are a length beyond the address, and set bits after the prefix."
  [{:keys [type size family layout]} path codec]
  (let [{:keys [parse example]} (families family)
        size (long size)
        address-size (- size (long prefixlen-size))
        most (* 8 address-size)
        ^Codec of-layout (codec layout path)
        expected (str "it must be a string such as " (pr-str example) ", with a length from 0 to "
                      most)]
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
