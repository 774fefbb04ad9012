(ns bpfmap.bytes
  "Bytes as a value: immutable, compared by content, printed in hexadecimal.

  Keys and values without a type are byte views. A view is `Counted`, `Indexed`
  (elements 0 to 255), reducible, `Comparable` (unsigned, left to right), and
  reads back from its printed form: `#bpfmap/bytes \"01 00 00 00\"`."
  (:require [bpfmap.error :as error])
  (:import (clojure.lang Counted IHashEq ILookup IReduce IReduceInit Indexed Murmur3
                         Reduced Seqable)
           (java.util Arrays HexFormat)))

(set! *warn-on-reflection* true)

(declare unsigned)

(deftype ByteView [^bytes array]
  Counted
  (count [_] (alength array))

  Indexed
  (nth [_ i] (unsigned array i))
  (nth [_ i not-found]
    (if (< -1 i (alength array)) (unsigned array i) not-found))

  ILookup
  (valAt [this i] (.valAt this i nil))
  (valAt [this i not-found]
    (if (and (int? i) (<= 0 (long i) Integer/MAX_VALUE)) (.nth this (int i) not-found) not-found))

  Seqable
  (seq [this] (seq (into [] this)))

  IReduceInit
  (reduce [_ f init]
    (loop [i 0 acc init]
      (cond
        (reduced? acc) (.deref ^Reduced acc)
        (< i (alength array)) (recur (inc i) (f acc (unsigned array i)))
        :else acc)))

  IReduce
  (reduce [this f]
    (reduce f (into [] this)))

  IHashEq
  (hasheq [this] (Murmur3/mixCollHash (.hashCode this) (alength array)))

  Comparable
  (compareTo [_ other]
    (Arrays/compareUnsigned array ^bytes (.-array ^ByteView other)))

  Object
  (hashCode [_] (Arrays/hashCode array))
  (equals [_ other]
    (and (instance? ByteView other)
         (Arrays/equals array ^bytes (.-array ^ByteView other))))
  (toString [_]
    (.formatHex (HexFormat/ofDelimiter " ") array)))

(defn- unsigned [^bytes array i]
  (bit-and 0xff (long (aget array (int i)))))

(defn byte-view?
  "Returns true if x is a byte view.

      (byte-view? (->bytes [1 2])) ;=> true"
  [x]
  (instance? ByteView x))

(defn wrap
  "Returns a view of an array without copying it.

  Nobody may write to the array afterwards.

      (wrap (byte-array [1 2])) ;=> #bpfmap/bytes \"01 02\""
  [^bytes array]
  (ByteView. array))

(defn byte-count
  "Returns the number of bytes in a byte array or byte view; nil for anything else.

      (byte-count (->bytes \"0a0b\")) ;=> 2"
  [x]
  (cond
    (bytes? x) (alength ^bytes x)
    (byte-view? x) (count x)
    :else nil))

(defn- invalid [x expected]
  (error/error :invalid-value
               (str "Bytes must be " expected ", got " (error/printed x))
               {:bpfmap/value (error/shown x)}))

(defn- parse-hex ^bytes [^String text]
  (let [digits (.replaceAll text "(?i)0x|[\\s:]" "")]
    (try
      (.parseHex (HexFormat/of) digits)
      (catch IllegalArgumentException _
        (throw (invalid text
                        "pairs of hexadecimal digits, such as \"0a 00\" or \"0x0a00\""))))))

(defn- integers->array ^bytes [xs]
  (byte-array
   (map (fn [x]
          (if (and (int? x) (<= -128 x 255))
            (unchecked-byte x)
            (throw (invalid x "integers from -128 to 255"))))
        xs)))

(defn ->array
  "Copies bytes into a new byte array.

  Accepts and throws the same as [[->bytes]].

      (seq (->array \"0a ff\")) ;=> (10 -1)"
  ^bytes [x]
  (cond
    (bytes? x) (aclone ^bytes x)
    (byte-view? x) (aclone ^bytes (.-array ^ByteView x))
    (string? x) (parse-hex x)
    (sequential? x) (integers->array x)
    :else (throw (invalid x
                          "a byte array, a byte view, a hexadecimal string or a sequence of integers"))))

(defn ->bytes
  "Makes a byte view of a byte array, a hexadecimal string, or integers.

  The integers are a sequence of numbers from -128 to 255. The bytes are copied, so that later
  writes to an array do not show. Throws `:invalid-value` for anything else.

      (->bytes \"01 00\")       ;=> #bpfmap/bytes \"01 00\"
      (->bytes [1 0])         ;=> #bpfmap/bytes \"01 00\"
      (nth (->bytes [1 255]) 1) ;=> 255"
  [x]
  (if (byte-view? x) x (wrap (->array x))))

(defn literal
  "Returns the form that `#bpfmap/bytes` in Clojure code expands to.

  The compiler cannot embed the view itself. For EDN, the reader of the tag is [[->bytes]].

      (literal \"01 02\") ;=> (bpfmap.bytes/->bytes \"01 02\")"
  [text]
  (list `->bytes (str (->bytes text))))

(defn- print-view [^ByteView view ^java.io.Writer w]
  (let [n (count view)
        shown (if (int? *print-length*) (min n (long *print-length*)) n)]
    (.write w "#bpfmap/bytes \"")
    (.write w (.formatHex (HexFormat/ofDelimiter " ") ^bytes (.-array view) 0 (int shown)))
    (when (< shown n) (.write w " …"))
    (.write w "\"")))

(defmethod print-method ByteView [view w] (print-view view w))

(defmethod print-dup ByteView [view ^java.io.Writer w]
  (.write w (str "#=(bpfmap.bytes/->bytes \"" view "\")")))
