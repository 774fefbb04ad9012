(ns ^:no-doc bpfmap.impl.memory.bytes
  "Mapped memory as bytes: bounds, reads, writes, and Java streams over it."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.kernel.memory :as memory]
            [bpfmap.impl.memory.reducing :as reducing]
            [clojure.java.io :as io])
  (:import (bpfmap.impl.memory.reducing IntegerRow)
           (bpfmap.sys Blocks Bytes MappedMemory Streams Streams$Failures)
           (clojure.lang ArityException Counted IFn ILookup IReduce IReduceInit Indexed Seqable)
           (java.io Closeable InputStream OutputStream)
           (java.lang.foreign MemorySegment)
           (java.nio ByteBuffer ByteOrder)
           (java.nio.channels ClosedChannelException SeekableByteChannel)
           (java.util HexFormat)
           (java.util.concurrent.atomic AtomicBoolean AtomicLong)))

(set! *warn-on-reflection* true)

;; --- bounds and errors

;; Whose memory it is: the mapping; `identity`, the map's {:id :name :type}; `size`, the bytes of
;; all of it. `quiet?` says that reading changes something, so that printing must not do it: a
;; page of an arena is allocated when it is first read. Of a copy of a map's memory `region` is
;; nil.
(deftype Source [^MappedMemory region identity ^long size quiet?])

(defn described
  "The map of a source, as an error's message names it."
  [^Source source]
  (str "map " (error/id-and-name (.-identity source))))

(defn data
  "The data of an error about a source."
  [^Source source op more]
  (merge {:bpfmap/op op :bpfmap/map (.-identity source)} more))

(defn source-closed?
  "Whether the memory of a source is unmapped."
  [^Source source]
  (if-some [region (.-region source)]
    (.isClosed ^MappedMemory region)
    false))

(defn segment
  "All of the memory of a source."
  ^MemorySegment [^Source source]
  (.segment ^MappedMemory (.-region source)))

(defn closed
  "The exception for an access to memory that is unmapped. What the JDK throws is not its cause:
  it would say no more, and a REPL shows the cause alone."
  ^Throwable [source op]
  (error/error :closed (str "The memory of " (described source) " is closed")
               (data source op
                     {:bpfmap/hint "it was unmapped before or during this access; (memory m) maps it again"})))

(defn check-open
  "Throws `:closed` for memory that is unmapped, where nothing of it is read that would."
  [source op]
  (when (source-closed? source)
    (throw (closed source op))))

(defn failed
  "What an access threw, as an error of this library where it is one that memory throws."
  ^Throwable [source op ^Throwable e]
  ;; No subclass: those are other people's. The JDK throws just this when the arena of a segment
  ;; is closed.
  (if (and (identical? IllegalStateException (class e)) (source-closed? source))
    (closed source op)
    e))

(defmacro accessing
  "Runs body, which reads or writes memory of a source; that it was unmapped meanwhile becomes
  `:closed`."
  [[source op] & body]
  `(try
     ~@body
     (catch IllegalStateException e#
       (throw (failed ~source ~op e#)))))

(defn out-of-range
  "The exception for `size` bytes at an offset of memory that has only `total`."
  ^Throwable [source op offset size total]
  (error/error :out-of-range
               (str size (if (= 1 size) " byte" " bytes") " at " offset " of the memory of "
                    (described source))
               (data source op {:bpfmap/hint (str "it has " total " bytes here, so that "
                                                  (if (<= (bigint size) total)
                                                    (str "an offset runs from 0 to " (- total size))
                                                    "they fit nowhere"))})))

(defn within
  "An offset at which `size` bytes lie within memory of `total` bytes; throws `:out-of-range` for
  any other.

  Any integer may be given, of any size."
  [source op offset size total]
  (cond
    (not (and (integer? offset) (integer? size)))
    (throw (error/error :invalid-value
                        (str "Not a number of bytes: "
                             (pr-str (error/shown (if (integer? offset) size offset))))
                        (data source op {:bpfmap/hint "offsets and sizes are integers from 0"})))
    (and (int? offset) (int? size)
         (<= 0 (long offset)) (<= 0 (long size)) (<= (long offset) (- (long total) (long size))))
    (long offset)
    (source-closed? source) (throw (closed source op))
    :else (throw (out-of-range source op offset size total))))

(defn check-writable
  "Throws `:read-only` for memory that is mapped for reading alone."
  [^Source source op ^MemorySegment segment]
  (when (.isReadOnly segment)
    (throw (if (source-closed? source)
             (closed source op)
             (error/error :read-only
                          (str "The memory of " (described source) " is mapped for reading alone")
                          (data source op
                                {:bpfmap/hint (str
                                               "the map is frozen, or created :rdonly-prog, or was "
                                               "opened "
                                                   "read-only")}))))))

(defn invalid
  "The exception for an argument that makes no sense."
  ^Throwable [source op message hint]
  (error/error :invalid-value message (data source op {:bpfmap/hint hint})))

;; --- bytes

(declare byte-at reduce-bytes snapshot close text)

;; `segment` is the range, which begins at the offset `from` of all of the map's memory. A part
;; owns nothing.
(deftype Memory [^Source source ^MemorySegment segment ^long from part?]
  Counted
  (count [_]
    (let [size (.byteSize segment)]
      (if (<= size Integer/MAX_VALUE)
        (int size)
        (throw (error/error :out-of-range
                            (str "The memory of " (described source) " has " size
                                 " bytes, more than Clojure counts")
                            (data source :count
                                  {:bpfmap/hint "bpfmap.memory/size says how many"}))))))

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
  ^Memory [^MappedMemory region identity quiet?]
  (let [segment (.segment region)]
    (Memory. (->Source region identity (.byteSize segment) quiet?) segment 0 false)))

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
                        {:bpfmap/op op
                         :bpfmap/hint "it takes what (memory m) or (slice mem …) returned"}))))

(defn closed?
  "Whether memory is unmapped."
  [^Memory m]
  (source-closed? (.-source m)))

(defn writable?
  "Whether memory can be written to."
  [^Memory m]
  (not (.isReadOnly ^MemorySegment (.-segment m))))

(defn- byte-at [^Memory m op i]
  (let [^MemorySegment segment (.-segment m)
        at (long (within (.-source m) op i 1 (.byteSize segment)))]
    (accessing [(.-source m) op]
      (Bytes/getU8 segment at))))

(defn- reduce-bytes [^Memory m f init from]
  (let [^MemorySegment segment (.-segment m)]
    (accessing [(.-source m) :reduce]
      (reducing/over-integers (IntegerRow. segment 0 1 1 false false) f init from
                              (.byteSize segment)))))

(defn- as-int
  "A size as Java takes it in arrays and buffers."
  [^Memory m op size what]
  (if (<= (long size) (- Integer/MAX_VALUE 8))
    (int size)
    (throw (error/error :out-of-range
                        (str size " bytes of the memory of " (described (.-source m))
                             " are too many for " what)
                        (data (.-source m) op
                              {:bpfmap/hint "it takes less than 2 GiB; slice the memory first"})))))

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
        offset (long (within (.-source m) :slice offset (or size 0) total))
        size (long (or size (- total offset)))]
    (check-open (.-source m) :slice)
    (Memory. (.-source m) (.asSlice segment offset size) (+ (.-from m) offset) true)))

(defn populate
  "Has the kernel allocate what pages of memory are not there yet."
  [^Memory m]
  (let [^Source source (.-source m)
        ^MemorySegment segment (.-segment m)]
    (check-open source :populate!)
    (when (pos? (.byteSize segment))
      (memory/populate (.-region source) segment {:op :populate! :map (.-identity source)}))
    m))

(defn close
  "Unmaps memory, now; closing twice is fine. A part cannot be closed, since others use the rest."
  [^Memory m]
  (when (.-part? m)
    (throw (error/error :not-supported
                        (str "Only all of the memory of " (described (.-source m))
                             " can be closed, and this is a part of it")
                        (data (.-source m) :close
                              {:bpfmap/hint "close what (memory m) returned"}))))
  (try
    (.close ^MappedMemory (.-region ^Source (.-source m)))
    (catch IllegalStateException _
      (throw (error/error :busy
                          (str "The memory of " (described (.-source m)) " cannot be unmapped now")
                          (data (.-source m) :close
                                       {:bpfmap/hint (str
                                                      "a thread reads a file or socket into a "
                                                      "buffer of it, or writes from one, "
                                                          "and has not come back; end that, then "
                                                          "close again")}))))))

;; --- bytes in and out

(defn fill
  "Writes one byte everywhere."
  [^Memory m x]
  (let [^MemorySegment segment (.-segment m)]
    (when-not (and (int? x) (<= -128 (long x) 255))
      (throw (invalid (.-source m) :fill! (str "Not a byte: " (pr-str (error/shown x)))
                             "it is an integer from -128 to 255")))
    (check-writable (.-source m) :fill! segment)
    (accessing [(.-source m) :fill!]
      (.fill segment (unchecked-byte (long x))))
    m))

(defn- stretch
  "Where elements of an array go or come from: `[offset start n]`, checked."
  [^Memory m op offset array start n]
  (let [width (Blocks/elementSize array)
        source (.-source m)]
    (when (zero? width)
      (throw (invalid source op (str "Not an array of numbers: " (pr-str (error/shown array)))
                             "it takes a byte array, or one of shorts, ints, longs, floats, doubles or chars")))
    (let [length (long (java.lang.reflect.Array/getLength array))
          n (or n (if (and (int? start) (<= 0 (long start) length)) (- length (long start)) 0))]
      (when-not (and (int? start)
                     (int? n)
                     (<= 0 (long start) length)
                     (<= 0 (long n) (- length (long start))))
        (throw (error/error :out-of-range
                            (str "An array of " length " elements has no " (pr-str (error/shown n))
                                 " from "
                                 (pr-str (error/shown start)))
                            (data source op nil))))
      [(within source op offset (* width (long n)) (.byteSize ^MemorySegment (.-segment m))) start
       n])))

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
    (check-writable (.-source m) :copy-from segment)
    (accessing [(.-source m) :copy-from]
      (Blocks/copyIn array (int start) (int n) segment offset (Blocks/elementSize array)))
    m))

(defn byte-buffer
  "A buffer over memory, in this machine's byte order; read-only where the memory is."
  ^ByteBuffer [^Memory m]
  (let [^MemorySegment segment (.-segment m)]
    (as-int m :byte-buffer (.byteSize segment) "a buffer")
    (check-open (.-source m) :byte-buffer)
    (.order (.asByteBuffer segment) (ByteOrder/nativeOrder))))

;; --- for people

(defn- text
  "Memory as it prints: its place, and its first bytes in hexadecimal, at most `most` of them."
  ^String [^Memory m most]
  (let [^Source source (.-source m)
        ^MemorySegment segment (.-segment m)
        size (.byteSize segment)
        shown (min size (long most))]
    (str "#<bpf-memory " (described source) ", " size (if (= 1 size) " byte" " bytes") " at "
         (.-from m)
         (when-not (= size (.-size source)) (str " of " (.-size source)))
         (when (.isReadOnly segment) ", read-only")
         (try
           (cond
             (source-closed? source) ", closed"
             (.-quiet? source) ""
             :else (str ": "
                        (.formatHex (HexFormat/ofDelimiter " ")
                                    (Bytes/copyOut segment 0 (int shown)))
                        (when (< shown size) " …")))
           (catch IllegalStateException _ ", closed"))
         ">")))

;; --- Java streams

(defn- no-room ^Throwable [^Source source op n]
  (error/error :out-of-range
               (str "There is no room for " n (if (= 1 n) " more byte" " more bytes")
                    " in the memory of "
                    (described source))
               (data source op {:bpfmap/hint "memory does not grow"})))

(defn- failures
  "What a stream throws, as errors of this library."
  ^Streams$Failures [^Source source op]
  (reify Streams$Failures
    (failed [_ e] (failed source op e))
    (full [_ n] (no-room source op n))))

(defn input-stream
  "A stream of the bytes of memory from its beginning."
  ^InputStream [^Memory m]
  (Streams/input (.-segment m) (failures (.-source m) :read)))

(defn output-stream
  "A stream that writes to memory from its beginning."
  ^OutputStream [^Memory m]
  (check-writable (.-source m) :output-stream (.-segment m))
  (Streams/output (.-segment m) (failures (.-source m) :write)))

(defn channel
  "A channel over memory, whose position may be anywhere from 0. It writes what fits, as channels
  do, and throws where nothing does."
  ^SeekableByteChannel [^Memory m]
  (let [^Source source (.-source m)
        ^MemorySegment segment (.-segment m)
        size (.byteSize segment)
        place (AtomicLong.)
        closed (AtomicBoolean.)
        check-channel (fn []
                        (when (.get closed) (throw (ClosedChannelException.)))
                        (check-open source :channel))
        left #(max 0 (- size (.get place)))
        stretch (fn ^ByteBuffer [n] (.asByteBuffer (.asSlice segment (.get place) (long n))))]
    (reify SeekableByteChannel
      (read [_ target]
        (check-channel)
        (let [n (min (.remaining target) (long (left)))]
          (cond
            (not (.hasRemaining target)) 0
            (zero? n) -1
            :else (do (accessing [source :read] (.put target ^ByteBuffer (stretch n)))
                      (.addAndGet place n)
                      (int n)))))
      (write [_ given]
        (check-channel)
        (check-writable source :write segment)
        (let [n (min (.remaining given) (long (left)))]
          (when (and (zero? n) (.hasRemaining given))
            (throw (no-room source :write (.remaining given))))
          (when (pos? n)
            (accessing [source :write]
              (.put ^ByteBuffer (stretch n) (.slice given (.position given) (int n))))
            (.position given (+ (.position given) (int n)))
            (.addAndGet place n))
          (int n)))
      (position [_]
        (check-channel)
        (.get place))
      (position [this to]
        (check-channel)
        (when (neg? to)
          (throw (out-of-range source :position to 0 size)))
        (.set place to)
        this)
      (size [_]
        (check-channel)
        size)
      (truncate [this to]
        (check-channel)
        (when (< to size)
          (throw (error/error :not-supported
                              (str "The memory of " (described source) " cannot be cut to " to
                                   " bytes")
                              (data source :truncate {:bpfmap/hint "a map keeps its size"}))))
        (when (< to (.get place))
          (.set place to))
        this)
      (isOpen [_] (not (or (.get closed) (source-closed? source))))
      (close [_] (.set closed true)))))

(extend Memory
  io/IOFactory
  (assoc io/default-streams-impl
         :make-input-stream (fn [m _] (input-stream m))
         :make-output-stream (fn [m _] (output-stream m))))
