(ns bpfmap.codec
  "Compiles a type to a codec: an object that writes a value into memory and reads it back.

  A codec either writes every byte of its size or throws `:invalid-value` with
  the path, the type and the value. It holds no state and may be shared between
  threads."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.type :as type])
  (:import (bpfmap.bytes ByteView)
           (bpfmap.sys Bytes Codec)
           (clojure.lang BigInt)))

(set! *warn-on-reflection* true)

(defn- misfit [type path value expected]
  (error/error :invalid-value
               (str (when (seq path) (str path ": ")) (pr-str (error/shown value))
                    " is not a " (pr-str type))
               {:bpfmap/path path
                :bpfmap/type type
                :bpfmap/value (error/shown value)
                :bpfmap/hint expected}))

(defn- integer-in
  "The slow way in for an integer that is not a Long, or does not fit."
  [value low high type path]
  (if (and (integer? value) (<= low value high))
    (.longValue ^Number value)
    (throw (misfit type path value (str "it takes an integer from " low " to " high)))))

(defmacro ^:private integer-codec
  "A codec for integers of up to 63 bits of magnitude: the common case is one range check and one store."
  [type path size low high [get & get-args] [put & put-args]]
  `(reify Codec
     (size [_#] ~size)
     (encode [_# value# memory# offset#]
       (if (and (instance? Long value#) (<= ~low (.longValue ^Long value#) ~high))
         (~put memory# offset# (.longValue ^Long value#) ~@put-args)
         (~put memory# offset# (long (integer-in value# ~low ~high ~type ~path)) ~@put-args)))
     (decode [_# memory# offset#]
       (~get memory# offset# ~@get-args))
     (toString [_#] (str "codec of " ~type))))

(def ^:private u64-max 18446744073709551615N)

(defn- u64
  "A Long of any sign bit as the number that its 64 bits are without one."
  [^long bits]
  (if (neg? bits)
    (BigInt/fromBigInteger (.add (biginteger bits) (.shiftLeft BigInteger/ONE 64)))
    bits))

(defn- u64-codec [type path swap]
  (let [swap (boolean swap)]
    (reify Codec
      (size [_] 8)
      (encode [_ value memory offset]
        (if (and (instance? Long value) (<= 0 (.longValue ^Long value)))
          (Bytes/put64 memory offset (.longValue ^Long value) swap)
          (Bytes/put64 memory offset (long (integer-in value 0 u64-max type path)) swap)))
      (decode [_ memory offset]
        (u64 (Bytes/get64 memory offset swap)))
      (toString [_] (str "codec of " type)))))

(defn- swapped? [order]
  (case order
    nil false
    :be (Bytes/swapped true)
    :le (Bytes/swapped false)))

(defn- integer [type path {:keys [size signed? order]}]
  (let [swap (boolean (swapped? order))]
    (case [size signed?]
      [1 false] (integer-codec type path 1 0 255 (Bytes/getU8) (Bytes/put8))
      [1 true] (integer-codec type path 1 -128 127 (Bytes/getS8) (Bytes/put8))
      [2 false] (integer-codec type path 2 0 65535 (Bytes/getU16 swap) (Bytes/put16 swap))
      [2 true] (integer-codec type path 2 -32768 32767 (Bytes/getS16 swap) (Bytes/put16 swap))
      [4 false] (integer-codec type path 4 0 4294967295 (Bytes/getU32 swap) (Bytes/put32 swap))
      [4 true] (integer-codec type path 4 -2147483648 2147483647 (Bytes/getS32 swap) (Bytes/put32 swap))
      [8 false] (u64-codec type path swap)
      [8 true] (integer-codec type path 8 Long/MIN_VALUE Long/MAX_VALUE (Bytes/get64 swap) (Bytes/put64 swap)))))

(defn- float-in
  "A number as a double, refused where a finite one would become infinite."
  [value type path size]
  (let [x (if (number? value)
            (double value)
            (throw (misfit type path value "it takes a number")))]
    (if (and (= 4 size) (Double/isFinite x) (Float/isInfinite (unchecked-float x)))
      (throw (misfit type path value (str "it takes a number of magnitude up to " Float/MAX_VALUE)))
      x)))

(defn- floating [type path {:keys [size order]}]
  (let [swap (boolean (swapped? order))
        small? (= 4 size)]
    (reify Codec
      (size [_] size)
      (encode [_ value memory offset]
        (let [x (double (float-in value type path size))]
          (if small?
            (Bytes/putF32 memory offset x swap)
            (Bytes/putF64 memory offset x swap))))
      (decode [_ memory offset]
        (if small?
          (Bytes/getF32 memory offset swap)
          (Bytes/getF64 memory offset swap)))
      (toString [_] (str "codec of " type)))))

(defn- bool [type path _row]
  (reify Codec
    (size [_] 1)
    (encode [_ value memory offset]
      (if (boolean? value)
        (Bytes/put8 memory offset (if value 1 0))
        (throw (misfit type path value "it takes true or false"))))
    (decode [_ memory offset]
      (not (zero? (Bytes/getU8 memory offset))))
    (toString [_] (str "codec of " type))))

(defn- character [type path _row]
  (reify Codec
    (size [_] 1)
    (encode [_ value memory offset]
      (if (and (char? value) (<= (int value) 255))
        (Bytes/put8 memory offset (long (int value)))
        (throw (misfit type path value "it takes a character from \\u0000 to \\u00ff"))))
    (decode [_ memory offset]
      (char (Bytes/getU8 memory offset)))
    (toString [_] (str "codec of " type))))

(defn- exact-bytes
  "The array of a value that has exactly n bytes; a byte array or view is not copied."
  ^bytes [value type path n]
  (let [array (cond
                (bytes? value) value
                (instance? ByteView value) (.-array ^ByteView value)
                (and (sequential? value) (every? #(and (int? %) (<= -128 % 255)) value)) (bytes/->array value)
                :else (throw (misfit type path value "it takes a byte array, a byte view (see ->bytes), or a sequence of integers from -128 to 255")))]
    (if (= n (alength ^bytes array))
      array
      (throw (misfit type path value (str "it takes " n " bytes, these are " (alength ^bytes array)))))))

(defn- byte-string [type path]
  (let [n (int (second type))]
    (reify Codec
      (size [_] n)
      (encode [_ value memory offset]
        (Bytes/copyIn (exact-bytes value type path n) memory offset))
      (decode [_ memory offset]
        (bytes/wrap (Bytes/copyOut memory offset n)))
      (toString [_] (str "codec of " type)))))

(def ^:private makers
  {:integer integer, :float floating, :bool bool, :char character})

(defn codec
  "Compiles a type to a `bpfmap.sys.Codec`.

  `path` is where the type stands, for error messages. Throws `:invalid-spec`
  for a malformed type.

      (.size (codec :u32 [:key])) ;=> 4"
  (^Codec [type] (codec type []))
  (^Codec [type path]
   (type/check type path)
   (if (keyword? type)
     (let [row (type/scalars type)]
       ((makers (:kind row)) type path row))
     (byte-string type path))))
