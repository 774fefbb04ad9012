(ns bpfmap.impl.memory.access
  "What every access to mapped memory has in common: whose memory it is, and the errors for what is out of range, closed
  or read-only."
  (:require [bpfmap.error :as error])
  (:import (bpfmap.sys Region)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

;; Whose memory it is: the mapping; `identity`, the map's {:id :name :type}; `size`, the bytes of all of it. `quiet?` says
;; that reading changes something, so that printing must not do it: a page of an arena is allocated when it is first read.
;; Of a copy of a map's memory `region` is nil.
(deftype Source [^Region region identity ^long size quiet?])

(defn described
  "The map of a source, as an error's message names it."
  [^Source source]
  (str "map " (error/id-and-name (.-identity source))))

(defn data
  "The data of an error about a source."
  [^Source source op more]
  (merge {:bpfmap/op op :bpfmap/map (.-identity source)} more))

(defn closed?
  "Whether the memory of a source is unmapped."
  [^Source source]
  (if-some [region (.-region source)]
    (.isClosed ^Region region)
    false))

(defn segment
  "All of the memory of a source."
  ^MemorySegment [^Source source]
  (.segment ^Region (.-region source)))

(defn closed
  "The exception for an access to memory that is unmapped. What the JDK throws is not its cause: it would say no more, and a
  REPL shows the cause alone."
  ^Throwable [source op]
  (error/error :closed (str "The memory of " (described source) " is closed")
               (data source op {:bpfmap/hint "it was unmapped before or during this access; (memory m) maps it again"})))

(defn check-open
  "Throws `:closed` for memory that is unmapped, where nothing of it is read that would."
  [source op]
  (when (closed? source)
    (throw (closed source op))))

(defn failed
  "What an access threw, as an error of this library where it is one that memory throws."
  ^Throwable [source op ^Throwable e]
  ;; No subclass: those are other people's. The JDK throws just this when the arena of a segment is closed.
  (if (and (identical? IllegalStateException (class e)) (closed? source))
    (closed source op)
    e))

(defmacro accessing
  "Runs body, which reads or writes memory of a source; that it was unmapped meanwhile becomes `:closed`."
  [[source op] & body]
  `(try
     ~@body
     (catch IllegalStateException e#
       (throw (failed ~source ~op e#)))))

(defn out-of-range
  "The exception for `size` bytes at an offset of memory that has only `total`."
  ^Throwable [source op offset size total]
  (error/error :out-of-range
               (str size (if (= 1 size) " byte" " bytes") " at " offset " of the memory of " (described source))
               (data source op {:bpfmap/hint (str "it has " total " bytes here, so that "
                                                  (if (<= (bigint size) total)
                                                    (str "an offset runs from 0 to " (- total size))
                                                    "they fit nowhere"))})))

(defn within
  "An offset at which `size` bytes lie within memory of `total` bytes; throws `:out-of-range` for any other.

  Any integer may be given, of any size."
  [source op offset size total]
  (cond
    (not (and (integer? offset) (integer? size)))
    (throw (error/error :invalid-value (str "Not a number of bytes: " (pr-str (error/shown (if (integer? offset) size offset))))
                        (data source op {:bpfmap/hint "offsets and sizes are integers from 0"})))
    (and (int? offset) (int? size)
         (<= 0 (long offset)) (<= 0 (long size)) (<= (long offset) (- (long total) (long size))))
    (long offset)
    (closed? source) (throw (closed source op))
    :else (throw (out-of-range source op offset size total))))

(defn check-writable
  "Throws `:read-only` for memory that is mapped for reading alone."
  [^Source source op ^MemorySegment segment]
  (when (.isReadOnly segment)
    (throw (if (closed? source)
             (closed source op)
             (error/error :read-only (str "The memory of " (described source) " is mapped for reading alone")
                          (data source op {:bpfmap/hint (str "the map is frozen, or created :rdonly-prog, or was opened "
                                                             "read-only")}))))))

(defn invalid
  "The exception for an argument that makes no sense."
  ^Throwable [source op message hint]
  (error/error :invalid-value message (data source op {:bpfmap/hint hint})))
