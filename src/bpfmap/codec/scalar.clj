(ns bpfmap.codec.scalar
  "Codecs of types without parts: numbers, truth values, characters, text, bytes."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.codec.misfit :refer [misfit]])
  (:import (bpfmap.bytes ByteView)
           (bpfmap.sys Bytes Codec Integers)
           (clojure.lang BigInt)
           (java.nio ByteBuffer CharBuffer)
           (java.nio.charset CharacterCodingException StandardCharsets)))

(set! *warn-on-reflection* true)

(defn- integer-in
  "The slow way in for an integer that is not a Long, or does not fit."
  [value low high type path]
  (if (and (integer? value) (<= low value high))
    value
    (throw (misfit type path value (str "it takes an integer from " low " to " high)))))

(defn unsigned
  "A Long as the number that its 64 bits are without a sign: a BigInt above 2^63-1.

      (unsigned -1) ;=> 18446744073709551615N"
  [^long bits]
  (if (neg? bits)
    (BigInt/fromBigInteger (.add (biginteger bits) (.shiftLeft BigInteger/ONE 64)))
    bits))

(defmacro ^:private integer-codec
  "A codec whose every value fits a Long: the common case is one range check and one store."
  [type path size low high [get & get-args] [put & put-args] kind]
  `(reify Codec
     (size [_#] ~size)
     (integers [_#] ~kind)
     (encode [_# value# memory# offset#]
       ;; Two comparisons of two numbers: Clojure inlines those, and calls a function that boxes for one of three.
       (if (and (instance? Long value#) (<= ~low (.longValue ^Long value#)) (<= (.longValue ^Long value#) ~high))
         (~put memory# offset# (.longValue ^Long value#) ~@put-args)
         (~put memory# offset# (.longValue ^Number (integer-in value# ~low ~high ~type ~path)) ~@put-args)))
     (decode [_# memory# offset#]
       (~get memory# offset# ~@get-args))))

(defn- u64-codec [type path swap]
  (let [swap (boolean swap)
        kind (Integers/kind 8 false swap)]
    (reify Codec
      (size [_] 8)
      (integers [_] kind)
      (encode [_ value memory offset]
        (if (and (instance? Long value) (<= 0 (.longValue ^Long value)))
          (Bytes/put64 memory offset (.longValue ^Long value) swap)
          (Bytes/put64 memory offset (.longValue ^Number (integer-in value 0 18446744073709551615N type path)) swap)))
      (decode [_ memory offset]
        (unsigned (Bytes/get64 memory offset swap))))))

(defn- wide-codec [type path signed? swap]
  (let [swap (boolean swap)
        big? (= (boolean (Bytes/swapped true)) swap) ; whether the first eight bytes are the high ones
        high-at (if big? 0 8)
        low-at (if big? 8 0)
        two-to-127 (bigint (.shiftLeft BigInteger/ONE 127))
        [least most] (if signed? [(- two-to-127) (dec two-to-127)] [0 (dec (* 2 two-to-127))])]
    (reify Codec
      (size [_] 16)
      (encode [_ value memory offset]
        (let [n (biginteger (integer-in value least most type path))]
          (Bytes/put64 memory (+ offset low-at) (.longValue n) swap)
          (Bytes/put64 memory (+ offset high-at) (.longValue (.shiftRight n 64)) swap)))
      (decode [_ memory offset]
        (let [high (Bytes/get64 memory (+ offset high-at) swap)
              high (biginteger (if signed? high (unsigned high)))
              n (.or (.shiftLeft high 64) (biginteger (unsigned (Bytes/get64 memory (+ offset low-at) swap))))]
          (if (< (.bitLength n) 64) (.longValue n) (BigInt/fromBigInteger n)))))))

(defn- swapped? [order]
  (case order
    nil false
    :be (Bytes/swapped true)
    :le (Bytes/swapped false)))

(defn integer
  "The codec of an integer's node."
  [{:keys [type size signed? order]} path]
  (let [swap (boolean (swapped? order))
        kind (Integers/kind (long size) (boolean signed?) swap)]
    (case [size (boolean signed?)]
      [1 false] (integer-codec type path 1 0 255 (Bytes/getU8) (Bytes/put8) kind)
      [1 true] (integer-codec type path 1 -128 127 (Bytes/getS8) (Bytes/put8) kind)
      [2 false] (integer-codec type path 2 0 65535 (Bytes/getU16 swap) (Bytes/put16 swap) kind)
      [2 true] (integer-codec type path 2 -32768 32767 (Bytes/getS16 swap) (Bytes/put16 swap) kind)
      [4 false] (integer-codec type path 4 0 4294967295 (Bytes/getU32 swap) (Bytes/put32 swap) kind)
      [4 true] (integer-codec type path 4 -2147483648 2147483647 (Bytes/getS32 swap) (Bytes/put32 swap) kind)
      [8 false] (u64-codec type path swap)
      [8 true] (integer-codec type path 8 Long/MIN_VALUE Long/MAX_VALUE (Bytes/get64 swap) (Bytes/put64 swap) kind)
      ([16 false] [16 true]) (wide-codec type path signed? swap))))

(defn pointer
  "The codec of a pointer's node: its address."
  [{:keys [type]} path]
  (u64-codec type path false))

(defn- float-in
  "A number as a double, refused where a finite one would become infinite."
  [value type path size]
  (let [x (if (number? value)
            (double value)
            (throw (misfit type path value "it takes a number")))]
    (if (and (= 4 size) (Double/isFinite x) (Float/isInfinite (unchecked-float x)))
      (throw (misfit type path value (str "it takes a number of magnitude up to " Float/MAX_VALUE)))
      x)))

(defn floating
  "The codec of a floating-point number's node."
  [{:keys [type size order]} path]
  (let [swap (boolean (swapped? order))]
    (if (= 4 size)
      (reify Codec
        (size [_] 4)
        (encode [_ value memory offset]
          (Bytes/putF32 memory offset (double (float-in value type path 4)) swap))
        (decode [_ memory offset]
          (Bytes/getF32 memory offset swap)))
      (reify Codec
        (size [_] 8)
        (encode [_ value memory offset]
          (Bytes/putF64 memory offset (double (float-in value type path 8)) swap))
        (decode [_ memory offset]
          (Bytes/getF64 memory offset swap))))))

(defn bool
  "The codec of a truth value's node. A byte that C never writes there, 2 to 255, reads as its number."
  [{:keys [type]} path]
  (reify Codec
    (size [_] 1)
    (encode [_ value memory offset]
      (Bytes/put8 memory offset
                  (cond
                    (boolean? value) (if (.booleanValue ^Boolean value) 1 0)
                    (and (int? value) (<= 2 (long value) 255)) (long value)
                    :else (throw (misfit type path value "it takes true or false")))))
    (decode [_ memory offset]
      (let [n (Bytes/getU8 memory offset)]
        (case n 0 false 1 true n)))))

(defn character
  "The codec of a character's node."
  [{:keys [type]} path]
  (reify Codec
    (size [_] 1)
    (encode [_ value memory offset]
      (if (and (char? value) (<= (int value) 255))
        (Bytes/put8 memory offset (long (int value)))
        (throw (misfit type path value "it takes a character from \\u0000 to \\u00ff"))))
    (decode [_ memory offset]
      (char (Bytes/getU8 memory offset)))))

(defn- array-of
  "The array of what can stand for n bytes, or nil. A byte array or view is not copied."
  ^bytes [value n]
  (cond
    (bytes? value) value
    (instance? ByteView value) (.-array ^ByteView value)
    (and (sequential? value) (every? #(and (int? %) (<= -128 (long %) 255)) (take (inc (long n)) value)))
    (bytes/->array (take (inc (long n)) value)) ; it may be endless
    :else nil))

(defn- exactly ^bytes [^bytes array type path value n]
  (if (= (long n) (alength array))
    array
    (throw (misfit type path value (str "it takes " n " bytes, these are " (alength array))))))

(defn fixed-bytes
  "The codec of a node of fixed bytes."
  [{:keys [type size]} path]
  (let [n (int size)]
    (reify Codec
      (size [_] n)
      (encode [_ value memory offset]
        (if-let [array (array-of value n)]
          (Bytes/copyIn (exactly array type path value n) memory offset)
          (throw (misfit type path value
                         "it takes a byte array, a byte view (see ->bytes), or a sequence of integers from -128 to 255"))))
      (decode [_ memory offset]
        (bytes/wrap (Bytes/copyOut memory offset n))))))

(defn- text-before-nul
  "The text before the first NUL of an array; nil when there is none, or it is not UTF-8."
  [^bytes array]
  (let [n (alength array)
        end (loop [i 0] (cond (= i n) -1 (zero? (aget array i)) i :else (recur (inc i))))]
    (when-not (neg? end)
      (try
        (str (.decode (.newDecoder StandardCharsets/UTF_8) (ByteBuffer/wrap array 0 end)))
        (catch CharacterCodingException _ nil)))))

(defn- utf-8
  "The bytes of a text in UTF-8; nil for one with a surrogate alone."
  ^bytes [^String text]
  (try
    (let [buffer (.encode (.newEncoder StandardCharsets/UTF_8) (CharBuffer/wrap text))
          array (byte-array (.remaining buffer))]
      (.get buffer array)
      array)
    (catch CharacterCodingException _ nil)))

(defn text
  "The codec of a NUL-terminated text's node. Bytes that are none read as a byte view, which goes in again."
  [{:keys [type size]} path]
  (let [n (int size)]
    (reify Codec
      (size [_] n)
      (encode [_ value memory offset]
        (if (string? value)
          (let [^bytes array (or (utf-8 value)
                                 (throw (misfit type path value "it takes a text that UTF-8 can say, and this has half a character")))]
            (cond
              (neg? (.indexOf ^String value 0))
              (if (< (alength array) n)
                (do (Bytes/zero memory offset n)
                    (Bytes/copyIn array memory offset))
                (throw (misfit type path value (str "it takes a text of up to " (dec n) " bytes in UTF-8, this has " (alength array)))))
              :else (throw (misfit type path value "it takes a text without NUL characters"))))
          (if-let [array (array-of value n)]
            (Bytes/copyIn (exactly array type path value n) memory offset)
            (throw (misfit type path value "it takes a text, or bytes that are none")))))
      (decode [_ memory offset]
        (let [array (Bytes/copyOut memory offset n)]
          (or (text-before-nul array) (bytes/wrap array)))))))

(defn nothing
  "The codec of a node that is the kernel's, or a hole: written as zero, read as nil."
  [{:keys [type size]} path]
  (reify Codec
    (size [_] size)
    (encode [_ value memory offset]
      (if (nil? value)
        (Bytes/zero memory offset size)
        (throw (misfit type path value "it is not the user's to write; leave it out"))))
    (decode [_ _memory _offset] nil)))
