(ns bpfmap.impl.memory.range
  "A range of a map's memory as a byte view: what is in it now, byte by byte, without a system call.

  It is an identity, as an open map is: what it holds may change while one looks, so that equality and hash are those of
  the object."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.memory.access :as access :refer [accessing]]
            [bpfmap.impl.memory.reducing :as reducing]
            [bpfmap.impl.sys.regions :as regions])
  (:import (bpfmap.impl.memory.access Source)
           (bpfmap.impl.memory.reducing IntegerRow)
           (bpfmap.sys Blocks Bytes Region)
           (clojure.lang ArityException Counted IFn ILookup IReduce IReduceInit Indexed Seqable)
           (java.io Closeable)
           (java.lang.foreign MemorySegment)
           (java.nio ByteBuffer ByteOrder)
           (java.util HexFormat)))

(set! *warn-on-reflection* true)

(declare byte-at reduce-bytes snapshot close text)

;; `segment` is the range, which begins at the offset `from` of all of the map's memory. A part owns nothing.
(deftype Memory [^Source source ^MemorySegment segment ^long from part?]
  Counted
  (count [_]
    (let [size (.byteSize segment)]
      (if (<= size Integer/MAX_VALUE)
        (int size)
        (throw (error/error :out-of-range
                            (str "The memory of " (access/described source) " has " size " bytes, more than Clojure counts")
                            (access/data source :count {:bpfmap/hint "bpfmap.memory/size says how many"}))))))

  Indexed
  (nth [this i] (byte-at this :nth i))
  (nth [this i not-found] (.valAt this i not-found))

  ILookup
  (valAt [this i] (.valAt this i nil))
  (valAt [this i not-found]
    (if (and (int? i) (<= 0 (long i)) (< (long i) (.byteSize segment)))
      (byte-at this :get i)
      not-found))

  IFn
  (invoke [this i] (byte-at this :nth i))
  (invoke [this i not-found] (.valAt this i not-found))
  (applyTo [this args]
    (case (int (bounded-count 3 args))
      1 (.invoke this (first args))
      2 (.invoke this (first args) (second args))
      (throw (ArityException. (bounded-count 20 args) "Memory"))))

  IReduceInit
  (reduce [this f init] (reduce-bytes this f init 0))

  IReduce
  (reduce [this f]
    (if (zero? (.byteSize segment))
      (f)
      (reduce-bytes this f (byte-at this :reduce 0) 1)))

  Seqable
  (seq [this] (seq (snapshot this :seq)))

  Closeable
  (close [this] (close this))

  Object
  (toString [this] (text this 16)))

(defmethod print-method Memory [m ^java.io.Writer w]
  (.write w ^String (text m (if (int? *print-length*) (min 4096 (long *print-length*)) 16))))

(defn whole
  "All of the memory of a map, mapped as a region."
  ^Memory [^Region region identity quiet?]
  (let [segment (.segment region)]
    (Memory. (access/->Source region identity (.byteSize segment) quiet?) segment 0 false)))

(defn memory?
  "Whether x is memory of a map, mapped or unmapped."
  [x]
  (instance? Memory x))

(defn check
  "Memory itself; throws `:invalid-value` for anything else."
  ^Memory [x op]
  (if (instance? Memory x)
    x
    (throw (error/error :invalid-value (str "Not the memory of a map: " (pr-str (error/shown x)))
                        {:bpfmap/op op :bpfmap/hint "it takes what (memory m) or (slice mem …) returned"}))))

(defn closed?
  "Whether memory is unmapped."
  [^Memory m]
  (access/closed? (.-source m)))

(defn writable?
  "Whether memory can be written to."
  [^Memory m]
  (not (.isReadOnly ^MemorySegment (.-segment m))))

(defn- byte-at [^Memory m op i]
  (let [^MemorySegment segment (.-segment m)
        at (long (access/within (.-source m) op i 1 (.byteSize segment)))]
    (accessing [(.-source m) op]
      (Bytes/getU8 segment at))))

(defn- reduce-bytes [^Memory m f init from]
  (let [^MemorySegment segment (.-segment m)]
    (accessing [(.-source m) :reduce]
      (reducing/over-integers (IntegerRow. segment 0 1 1 false false) f init from (.byteSize segment)))))

(defn- as-int
  "A size as Java takes it in arrays and buffers."
  [^Memory m op size what]
  (if (<= (long size) (- Integer/MAX_VALUE 8))
    (int size)
    (throw (error/error :out-of-range
                        (str size " bytes of the memory of " (access/described (.-source m)) " are too many for " what)
                        (access/data (.-source m) op {:bpfmap/hint "it takes less than 2 GiB; slice the memory first"})))))

(defn snapshot
  "A copy of what is in memory now, as an immutable byte view."
  ([^Memory m] (snapshot m :snapshot))
  ([^Memory m op]
   (let [^MemorySegment segment (.-segment m)
         size (as-int m op (.byteSize segment) "a copy")]
     (accessing [(.-source m) op]
       (bytes/wrap (Bytes/copyOut segment 0 size))))))

(defn slice
  "A part of memory, which shares its bytes and its life."
  [^Memory m offset size]
  (let [^MemorySegment segment (.-segment m)
        total (.byteSize segment)
        offset (long (access/within (.-source m) :slice offset (or size 0) total))
        size (long (or size (- total offset)))]
    (access/check-open (.-source m) :slice)
    (Memory. (.-source m) (.asSlice segment offset size) (+ (.-from m) offset) true)))

(defn populate
  "Has the kernel allocate what pages of memory are not there yet."
  [^Memory m]
  (let [^Source source (.-source m)
        ^MemorySegment segment (.-segment m)]
    (access/check-open source :populate!)
    (when (pos? (.byteSize segment))
      (regions/populate (.-region source) segment {:op :populate! :map (.-identity source)}))
    m))

(defn close
  "Unmaps memory, now; closing twice is fine. A part cannot be closed, since others use the rest."
  [^Memory m]
  (when (.-part? m)
    (throw (error/error :not-supported
                        (str "Only all of the memory of " (access/described (.-source m)) " can be closed, and this is a part of it")
                        (access/data (.-source m) :close {:bpfmap/hint "close what (memory m) returned"}))))
  (try
    (.close ^Region (.-region ^Source (.-source m)))
    (catch IllegalStateException _
      (throw (error/error :busy (str "The memory of " (access/described (.-source m)) " cannot be unmapped now")
                          (access/data (.-source m) :close
                                       {:bpfmap/hint (str "a thread reads a file or socket into a buffer of it, or writes from one, "
                                                          "and has not come back; end that, then close again")}))))))

;; --- bytes in and out

(defn fill
  "Writes one byte everywhere."
  [^Memory m x]
  (let [^MemorySegment segment (.-segment m)]
    (when-not (and (int? x) (<= -128 (long x) 255))
      (throw (access/invalid (.-source m) :fill! (str "Not a byte: " (pr-str (error/shown x)))
                             "it is an integer from -128 to 255")))
    (access/check-writable (.-source m) :fill! segment)
    (accessing [(.-source m) :fill!]
      (.fill segment (unchecked-byte (long x))))
    m))

(defn- stretch
  "Where elements of an array go or come from: `[offset start n]`, checked."
  [^Memory m op offset array start n]
  (let [width (Blocks/elementSize array)
        source (.-source m)]
    (when (zero? width)
      (throw (access/invalid source op (str "Not an array of numbers: " (pr-str (error/shown array)))
                             "it takes a byte array, or one of shorts, ints, longs, floats, doubles or chars")))
    (let [length (long (java.lang.reflect.Array/getLength array))
          n (or n (if (and (int? start) (<= 0 (long start) length)) (- length (long start)) 0))]
      (when-not (and (int? start) (int? n) (<= 0 (long start) length) (<= 0 (long n) (- length (long start))))
        (throw (error/error :out-of-range (str "An array of " length " elements has no " (pr-str (error/shown n)) " from "
                                               (pr-str (error/shown start)))
                            (access/data source op nil))))
      [(access/within source op offset (* width (long n)) (.byteSize ^MemorySegment (.-segment m))) start n])))

(defn copy-to
  "Copies bytes of memory into a primitive array, as they are."
  [^Memory m offset array start n]
  (let [[offset start n] (stretch m :copy-to offset array start n)
        ^MemorySegment segment (.-segment m)]
    (accessing [(.-source m) :copy-to]
      (Blocks/copyOut segment offset (Blocks/elementSize array) array (int start) (int n)))
    array))

(defn copy-from
  "Copies the elements of a primitive array, or a byte view, into memory, as they are."
  [^Memory m offset array start n]
  (let [array (if (bytes/byte-view? array) (bytes/->array array) array)
        [offset start n] (stretch m :copy-from offset array start n)
        ^MemorySegment segment (.-segment m)]
    (access/check-writable (.-source m) :copy-from segment)
    (accessing [(.-source m) :copy-from]
      (Blocks/copyIn array (int start) (int n) segment offset (Blocks/elementSize array)))
    m))

(defn byte-buffer
  "A buffer over memory, in this machine's byte order; read-only where the memory is."
  ^ByteBuffer [^Memory m]
  (let [^MemorySegment segment (.-segment m)]
    (as-int m :byte-buffer (.byteSize segment) "a buffer")
    (access/check-open (.-source m) :byte-buffer)
    (.order (.asByteBuffer segment) (ByteOrder/nativeOrder))))

;; --- for people

(defn- text
  "Memory as it prints: its place, and its first bytes in hexadecimal, at most `most` of them."
  ^String [^Memory m most]
  (let [^Source source (.-source m)
        ^MemorySegment segment (.-segment m)
        size (.byteSize segment)
        shown (min size (long most))]
    (str "#<bpf-memory " (access/described source) ", " size (if (= 1 size) " byte" " bytes") " at " (.-from m)
         (when-not (= size (.-size source)) (str " of " (.-size source)))
         (when (.isReadOnly segment) ", read-only")
         (try
           (cond
             (access/closed? source) ", closed"
             (.-quiet? source) ""
             :else (str ": " (.formatHex (HexFormat/ofDelimiter " ") (Bytes/copyOut segment 0 (int shown)))
                        (when (< shown size) " …")))
           (catch IllegalStateException _ ", closed"))
         ">")))
