(ns bpfmap.impl.memory.streams
  "Memory as what Java reads and writes: streams, a channel, and whatever `clojure.java.io` makes of those.

  Each has a place of its own in the memory, counted in 64 bits. Closing one leaves the memory as it is."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.memory.access :as access :refer [accessing]]
            [bpfmap.impl.memory.range :as range]
            [clojure.java.io :as io])
  (:import (bpfmap.impl.memory.access Source)
           (bpfmap.impl.memory.range Memory)
           (bpfmap.sys Streams Streams$Failures)
           (java.io InputStream OutputStream)
           (java.lang.foreign MemorySegment)
           (java.nio ByteBuffer)
           (java.nio.channels ClosedChannelException SeekableByteChannel)
           (java.util.concurrent.atomic AtomicBoolean AtomicLong)))

(set! *warn-on-reflection* true)

(defn- no-room ^Throwable [^Source source op n]
  (error/error :out-of-range (str "There is no room for " n (if (= 1 n) " more byte" " more bytes") " in the memory of "
                                  (access/described source))
               (access/data source op {:bpfmap/hint "memory does not grow"})))

(defn- failures
  "What a stream throws, as errors of this library."
  ^Streams$Failures [^Source source op]
  (reify Streams$Failures
    (failed [_ e] (access/failed source op e))
    (full [_ n] (no-room source op n))))

(defn input-stream
  "A stream of the bytes of memory from its beginning."
  ^InputStream [^Memory m]
  (Streams/input (.-segment m) (failures (.-source m) :read)))

(defn output-stream
  "A stream that writes to memory from its beginning."
  ^OutputStream [^Memory m]
  (access/check-writable (.-source m) :output-stream (.-segment m))
  (Streams/output (.-segment m) (failures (.-source m) :write)))

(defn channel
  "A channel over memory, whose position may be anywhere from 0. It writes what fits, as channels do, and throws where nothing
  does."
  ^SeekableByteChannel [^Memory m]
  (let [^Source source (.-source m)
        ^MemorySegment segment (.-segment m)
        size (.byteSize segment)
        place (AtomicLong.)
        closed (AtomicBoolean.)
        check-channel (fn []
                        (when (.get closed) (throw (ClosedChannelException.)))
                        (access/check-open source :channel))
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
        (access/check-writable source :write segment)
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
          (throw (access/out-of-range source :position to 0 size)))
        (.set place to)
        this)
      (size [_]
        (check-channel)
        size)
      (truncate [this to]
        (check-channel)
        (when (< to size)
          (throw (error/error :not-supported (str "The memory of " (access/described source) " cannot be cut to " to " bytes")
                              (access/data source :truncate {:bpfmap/hint "a map keeps its size"}))))
        (when (< to (.get place))
          (.set place to))
        this)
      (isOpen [_] (not (or (.get closed) (access/closed? source))))
      (close [_] (.set closed true)))))

(extend Memory
  io/IOFactory
  (assoc io/default-streams-impl
         :make-input-stream (fn [m _] (input-stream m))
         :make-output-stream (fn [m _] (output-stream m))))
