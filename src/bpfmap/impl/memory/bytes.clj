(ns ^:no-doc bpfmap.impl.memory.bytes
  "Mapped memory as bytes, with Java streams and channels over it.

  In order: bounds and errors; the byte view; arrays and buffers; printing; streams."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.kernel.memory :as kernel.memory]
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

;; The memory of a map: `identity` is the map's {:id :name :type}, `size` the bytes of all of it.
;; `region` is the mapping; nil for a copy of the memory. `quiet?` is true if printing must not
;; read it, because a page of an arena is allocated when it is first read. `owner` is nil, or the
;; reservation in a user ring buffer whose memory this is.
(deftype Source [^MappedMemory region identity ^long size quiet? owner])

(defn described
  "Returns the map of a source for the message of an error."
  [^Source source]
  (str (when (.-owner source) "a reservation of ") "map " (error/id-and-name (.-identity source))))

(defn data
  "Returns the data of an error about a source."
  [^Source source op more]
  (merge {:bpfmap/op op :bpfmap/map (.-identity source)} more))

(defn source-closed?
  "Returns true if the memory of a source is unmapped."
  [^Source source]
  (if-some [region (.-region source)]
    (.isClosed ^MappedMemory region)
    false))

(defn segment
  "Returns all of the memory of a source."
  ^MemorySegment [^Source source]
  (.segment ^MappedMemory (.-region source)))

(defn closed
  "Returns the exception for an access to memory that is unmapped.

  It has no cause: the JDK's exception adds nothing, and a REPL shows only the cause."
  ^Throwable [^Source source op]
  (error/error :closed (str "The memory of " (described source) " is closed")
               (data source op
                     {:bpfmap/hint
                      (if (.-owner source)
                        "it was committed or discarded before or during this access"
                        "it was unmapped before or during this access; (memory m) maps it again")})))

(defn check-open
  "Throws `:closed` for memory that is unmapped.

  Needed only where nothing is read or written, which would throw itself."
  [source op]
  (when (source-closed? source)
    (throw (closed source op))))

(defn failed
  "Returns the exception of an access, as `:closed` if the memory was unmapped."
  ^Throwable [source op ^Throwable e]
  ;; The JDK throws exactly this class for a segment of a closed arena. Subclasses have other
  ;; causes.
  (if (and (identical? IllegalStateException (class e)) (source-closed? source))
    (closed source op)
    e))

(defmacro accessing
  "Runs body, which accesses memory; throws `:closed` if the memory was unmapped."
  [[source op] & body]
  `(try
     ~@body
     (catch IllegalStateException e#
       (throw (failed ~source ~op e#)))))

(defn out-of-range
  "Returns the exception for `size` bytes at an offset of `total` bytes."
  ^Throwable [source op offset size total]
  (let [memory (str "the memory of " (described source))]
    (error/error :out-of-range
                 (if (<= 0 (bigint size) total)
                   (str "The offset"
                        (when (pos? size) (str " of " (error/plural size "byte")))
                        " in " memory " must be from 0 to " (- total size) ", got " offset)
                   (str "An access to " memory " must be of 0 to " total " bytes, got " size))
                 (data source op nil))))

(defn within
  "Returns an offset at which `size` bytes are within memory of `total` bytes.

  Throws `:out-of-range` for any other integer, however large."
  [source op offset size total]
  (cond
    (not (and (integer? offset) (integer? size)))
    (throw (error/error :invalid-value
                        (str "An offset or size must be a non-negative integer, got "
                             (error/printed (if (integer? offset) size offset)))
                        (data source op nil)))
    (and (int? offset) (int? size)
         (<= 0 (long offset)) (<= 0 (long size)) (<= (long offset) (- (long total) (long size))))
    (long offset)
    (source-closed? source) (throw (closed source op))
    :else (throw (out-of-range source op offset size total))))

(defn check-writable
  "Throws `:read-only` for memory that is mapped read-only."
  [^Source source op ^MemorySegment segment]
  (when (.isReadOnly segment)
    (throw (if (source-closed? source)
             (closed source op)
             (error/error :read-only
                          (str "The memory of " (described source) " is mapped read-only")
                          (data source op
                                {:bpfmap/hint (str
                                               "the map is frozen, or created :rdonly-prog, or was "
                                               "opened "
                                               "read-only")}))))))

(defn invalid
  "Returns the exception for an invalid argument."
  ^Throwable [source op message hint]
  (error/error :invalid-value message (data source op {:bpfmap/hint hint})))

;; --- the byte view

(declare byte-at reduce-bytes snapshot close text)

;; `segment` begins at the offset `from` of all of the map's memory. A part does not own the
;; mapping.
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
                                  {:bpfmap/hint "use bpfmap.memory/size"}))))))

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
  "Returns all of the memory of a map."
  ^Memory [^MappedMemory region identity quiet?]
  (let [segment (.segment region)]
    (Memory. (->Source region identity (.byteSize segment) quiet? nil) segment 0 false)))

(defn reserved
  "Returns the memory of a reservation in a user ring buffer.

  Closing it ends the reservation."
  ^Memory [^MappedMemory region identity reservation]
  (let [segment (.segment region)]
    (Memory. (->Source region identity (.byteSize segment) false reservation) segment 0 false)))

(defn owner-of
  "Returns the reservation that has this memory; nil for any other memory."
  [^Memory m]
  (when-not (.-part? m)
    (.-owner ^Source (.-source m))))

(defn memory?
  "Returns true if x is memory of a map, mapped or unmapped."
  [x]
  (instance? Memory x))

(defn check
  "Returns x if it is memory of a map; else throws `:invalid-value`."
  ^Memory [x op]
  (if (instance? Memory x)
    x
    (throw (error/error :invalid-value (str "The argument must be the memory of a map, got "
                                            (error/printed x))
                        {:bpfmap/op op
                         :bpfmap/hint "pass a result of memory or slice"}))))

(defn closed?
  "Returns true if memory is unmapped."
  [^Memory m]
  (source-closed? (.-source m)))

(defn writable?
  "Returns true if memory can be written."
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
  "Returns a size as an int for arrays and buffers; throws if it is too large."
  [^Memory m op size what]
  (if (<= (long size) (- Integer/MAX_VALUE 8))
    (int size)
    (throw (error/error :out-of-range
                        (str size " bytes of the memory of " (described (.-source m))
                             " are too many for " what)
                        (data (.-source m) op
                              {:bpfmap/hint "slice the memory into parts of less than 2 GiB"})))))

(defn snapshot
  "Returns a copy of memory as an immutable byte view."
  ([^Memory m] (snapshot m :snapshot))
  ([^Memory m op]
   (let [^MemorySegment segment (.-segment m)
         size (as-int m op (.byteSize segment) "a copy")]
     (accessing [(.-source m) op]
       (bytes/wrap (Bytes/copyOut segment 0 size))))))

(defn slice
  "Returns a part of memory, which shares its bytes and is closed with it."
  [^Memory m offset size]
  (let [^MemorySegment segment (.-segment m)
        total (.byteSize segment)
        offset (long (within (.-source m) :slice offset (or size 0) total))
        size (long (or size (- total offset)))]
    (check-open (.-source m) :slice)
    (Memory. (.-source m) (.asSlice segment offset size) (+ (.-from m) offset) true)))

(defn populate
  "Makes the kernel allocate the missing pages of memory."
  [^Memory m]
  (let [^Source source (.-source m)
        ^MemorySegment segment (.-segment m)]
    (check-open source :populate!)
    (when (pos? (.byteSize segment))
      (kernel.memory/populate (.-region source) segment {:op :populate! :map (.-identity source)}))
    m))

(defn busy-error
  "Returns the error of memory that cannot be unmapped, because the kernel uses it."
  ^Throwable [^Memory m op]
  (error/error :busy
               (str "The memory of " (described (.-source m)) " cannot be unmapped now")
               (data (.-source m) op
                     {:bpfmap/hint (str
                                    "a thread reads a file or socket into a "
                                    "buffer of it, or writes from one, "
                                    "and has not come back; end that, then "
                                    "close again")})))

(defn close
  "Unmaps memory.
  Idempotent. A part cannot be closed, since others use the rest."
  [^Memory m]
  (when (.-part? m)
    (throw (error/error :not-supported
                        (str "A part of the memory of " (described (.-source m))
                             " cannot be closed")
                        (data (.-source m) :close
                              {:bpfmap/hint "close the result of (memory m)"}))))
  (try
    (.close ^MappedMemory (.-region ^Source (.-source m)))
    (catch IllegalStateException _
      (throw (busy-error m :close)))))

;; --- arrays and buffers

(defn fill
  "Writes one byte to all of the memory."
  [^Memory m x]
  (let [^MemorySegment segment (.-segment m)]
    (when-not (and (int? x) (<= -128 (long x) 255))
      (throw (invalid (.-source m) :fill! (str "A byte must be an integer from -128 to 255, got "
                                               (error/printed x))
                      nil)))
    (check-writable (.-source m) :fill! segment)
    (accessing [(.-source m) :fill!]
      (.fill segment (unchecked-byte (long x))))
    m))

(defn- check-copy
  "Returns `[offset start n]` of a copy between memory and an array, checked."
  [^Memory m op offset array start n]
  (let [width (Blocks/elementSize array)
        source (.-source m)]
    (when (zero? width)
      (throw (invalid source op
                      (str "The array must be of bytes, shorts, ints, longs, floats, doubles or "
                           "chars, got " (error/printed array))
                      nil)))
    (let [length (long (java.lang.reflect.Array/getLength array))
          n (or n (if (and (int? start) (<= 0 (long start) length)) (- length (long start)) 0))]
      (when-not (and (int? start)
                     (int? n)
                     (<= 0 (long start) length)
                     (<= 0 (long n) (- length (long start))))
        (throw (error/error :out-of-range
                            (str "An array of " length " elements has no " (error/printed n)
                                 " from "
                                 (error/printed start))
                            (data source op nil))))
      [(within source op offset (* width (long n)) (.byteSize ^MemorySegment (.-segment m))) start
       n])))

(defn copy-to
  "Copies bytes of memory into a primitive array, without conversion."
  [^Memory m offset array start n]
  (let [[offset start n] (check-copy m :copy-to offset array start n)
        ^MemorySegment segment (.-segment m)]
    (accessing [(.-source m) :copy-to]
      (Blocks/copyOut segment offset (Blocks/elementSize array) array (int start) (int n)))
    array))

(defn copy-from
  "Copies a primitive array, or a byte view, into memory, without conversion."
  [^Memory m offset array start n]
  (let [array (if (bytes/byte-view? array) (bytes/->array array) array)
        [offset start n] (check-copy m :copy-from offset array start n)
        ^MemorySegment segment (.-segment m)]
    (check-writable (.-source m) :copy-from segment)
    (accessing [(.-source m) :copy-from]
      (Blocks/copyIn array (int start) (int n) segment offset (Blocks/elementSize array)))
    m))

(defn byte-buffer
  "Returns a buffer over memory, in this machine's byte order.

  It is read-only if the memory is."
  ^ByteBuffer [^Memory m]
  (let [^MemorySegment segment (.-segment m)]
    (as-int m :byte-buffer (.byteSize segment) "a buffer")
    (check-open (.-source m) :byte-buffer)
    (.order (.asByteBuffer segment) (ByteOrder/nativeOrder))))

;; --- printing

(defn- text
  "Returns the text of memory: its place, and at most `most` bytes in hexadecimal."
  ^String [^Memory m most]
  (let [^Source source (.-source m)
        ^MemorySegment segment (.-segment m)
        size (.byteSize segment)
        shown (min size (long most))]
    (str "#<bpf-memory " (described source) ", " (error/plural size "byte") " at "
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

;; --- streams and channels

(defn- no-room ^Throwable [^Source source op n]
  (error/error :out-of-range
               (str "No room for " (error/plural n "more byte")
                    " in the memory of "
                    (described source))
               (data source op {:bpfmap/hint "memory does not grow"})))

(defn- failures
  "Returns the conversion of a stream's failures to errors of this library."
  ^Streams$Failures [^Source source op]
  (reify Streams$Failures
    (failed [_ e] (failed source op e))
    (full [_ n] (no-room source op n))))

(defn input-stream
  "Returns a stream of the bytes of memory from its beginning."
  ^InputStream [^Memory m]
  (Streams/input (.-segment m) (failures (.-source m) :read)))

(defn output-stream
  "Returns a stream that writes to memory from its beginning."
  ^OutputStream [^Memory m]
  (check-writable (.-source m) :output-stream (.-segment m))
  (Streams/output (.-segment m) (failures (.-source m) :write)))

(defn channel
  "Returns a channel over memory, whose position may be any non-negative number.

  A write writes as much as fits, and throws if nothing does."
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
        check-copy (fn ^ByteBuffer [n] (.asByteBuffer (.asSlice segment (.get place) (long n))))]
    (reify SeekableByteChannel
      (read [_ target]
        (check-channel)
        (let [n (min (.remaining target) (long (left)))]
          (cond
            (not (.hasRemaining target)) 0
            (zero? n) -1
            :else (do (accessing [source :read] (.put target ^ByteBuffer (check-copy n)))
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
              (.put ^ByteBuffer (check-copy n) (.slice given (.position given) (int n))))
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
                              (str "The memory of " (described source) " cannot be cut to "
                                   (error/plural to "byte"))
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
