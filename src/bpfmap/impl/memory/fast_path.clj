(ns ^:no-doc bpfmap.impl.memory.fast-path
  "Elements of an array read and written in its memory, in place of a system call, for a map
  opened `{:mapped true}`.

  Whatever is not plain goes the ordinary way, so that it comes to the same: an index beyond the
  end, a map that is closed or can only be read, memory that was unmapped. `elsewhere` says so."
  (:require [bpfmap.impl.kernel.memory :as memory]
            [bpfmap.impl.memory.bytes :as bytes]
            [bpfmap.impl.memory.layout :as layout]
            [bpfmap.impl.memory.mapping :as mapping]
            [bpfmap.impl.type.node :as node])
  (:import (bpfmap.impl.memory.bytes Memory)
           (bpfmap.impl.memory.mapping Mapping)
           (bpfmap.sys Bytes Codec Integers)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(defmacro or-fallback
  "What a call of this namespace's answers; or what `ordinary` does, where the call says elsewhere
  or there is no layout.

      (or-elsewhere (lookup layout k) (by-system-call k))"
  [[f layout & args] ordinary]
  `(let [layout# ~layout
         answer# (if (nil? layout#) ::elsewhere (~f layout# ~@args))]
     (if (identical? ::elsewhere answer#) ~ordinary answer#)))

;; Where the elements lie. `kind` is that of the values' codec, for `bpfmap.sys.Integers`.
;; `plain-key?` says that a key is its index, `writes?` that user space may write every byte of a
;; value.
(deftype Layout
  [^Mapping mapping ^Codec key-codec ^Codec value-codec ^long kind ^long entries ^long stride
   plain-key? writes?])

(defn layout
  "Where the elements of an array lie in its memory."
  ^Layout [mapping key-codec ^Codec value-codec {:keys [key max-entries] :as spec}]
  (Layout. mapping key-codec value-codec (.integers value-codec) max-entries (mapping/stride spec)
           (= :u32 key)
           (not (layout/kernel's? (node/node-of spec :value)))))

(defn- index
  "The index that a key is; -1 for one beyond the end, or that is none."
  ^long [^Layout l k]
  (let [i (cond
            (not (.-plain-key? l))
            (let [four (MemorySegment/ofArray (byte-array 4))]
              (.encode ^Codec (.-key-codec l) k four 0)
              (Bytes/getU32 four 0 false))
            (int? k) (long k)
            :else -1)]
    (if (and (<= 0 i) (< i (.-entries l))) i -1)))

(defn- key-of
  "The key that an index is."
  [^Layout l i]
  (if (.-plain-key? l)
    i
    (let [four (MemorySegment/ofArray (byte-array 4))]
      (Bytes/put32 four 0 i false)
      (.decode ^Codec (.-key-codec l) four 0))))

(defn- unless-unmapped
  "What to answer to an exception: that it is done elsewhere if the memory was unmapped meanwhile,
  else the exception."
  [^Memory memory op e]
  (let [failure (bytes/failed (.-source memory) op e)]
    (if (identical? e failure) (throw e) ::elsewhere)))

(defn- value-at [^Layout l ^Memory memory ^long i]
  (Integers/read (int (.-kind l)) (.-value-codec l) (.-segment memory) (* i (.-stride l))))

(defn lookup
  "The value of a key, or elsewhere."
  [^Layout l k]
  (if-some [memory (mapping/through (.-mapping l))]
    (let [i (index l k)]
      (if (neg? i)
        ::elsewhere
        (try
          (value-at l memory i)
          (catch IllegalStateException e (unless-unmapped memory :lookup e)))))
    ::elsewhere))

(defn write
  "Writes the value of a key, as a whole; true, or elsewhere."
  [^Layout l k v]
  (let [memory (when (.-writes? l) (mapping/through (.-mapping l)))]
    (if (or (nil? memory) (.isReadOnly ^MemorySegment (.-segment memory)))
      ::elsewhere
      (let [i (index l k)]
        (if (neg? i)
          ::elsewhere
          (try
            (let [at (* i (.-stride l))]
              (if (== Integers/NONE (.-kind l))
                (memory/encode-whole (.-value-codec l) v (.-segment memory) at)
                (Integers/write (int (.-kind l)) (.-value-codec l) v (.-segment memory) at)))
            true
            (catch IllegalStateException e (unless-unmapped memory :put! e))))))))

(defn reduce-entries
  "Reduces over all entries with `(step acc key value)`, or elsewhere."
  [^Layout l step init]
  (if-some [memory (mapping/through (.-mapping l))]
    (bytes/accessing [(.-source memory) :reduce]
      (loop [i 0 acc init]
        (cond
          (reduced? acc) (unreduced acc)
          (< i (.-entries l))
          (recur (inc i)
                 (step acc (key-of l i) (value-at l memory i)))
          :else acc)))
    ::elsewhere))
