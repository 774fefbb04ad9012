(ns ^:no-doc bpfmap.impl.memory.fast-path
  "Reads and writes elements of an array in its memory, without a system call.

  For a map opened `{:mapped true}`. Everything unusual returns `::fallback`, and the caller makes
  the system call, so that the results are the same: an index beyond the end, a map that is closed
  or read-only, memory that was unmapped."
  (:require [bpfmap.impl.kernel.memory :as kernel.memory]
            [bpfmap.impl.memory.bytes :as memory.bytes]
            [bpfmap.impl.memory.layout :as layout]
            [bpfmap.impl.memory.mapping :as mapping]
            [bpfmap.impl.type.node :as node])
  (:import (bpfmap.impl.memory.bytes Memory)
           (bpfmap.impl.memory.mapping Mapping)
           (bpfmap.sys Bytes Codec Integers)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(defmacro or-fallback
  "Returns the result of a call of this namespace, or of `ordinary`.

  Evaluates `ordinary` if the call returns `::fallback`, or if the map has no fast path.

      (or-fallback (lookup fast-path k) (by-system-call k))"
  [[f layout & args] ordinary]
  `(let [fast-path# ~layout
         answer# (if (nil? fast-path#) ::fallback (~f fast-path# ~@args))]
     (if (identical? ::fallback answer#) ~ordinary answer#)))

;; The place of the elements in the memory. `kind` is the integer kind of the values' codec, for
;; `bpfmap.sys.Integers`. `plain-key?` is true if a key is its index, `writes?` if user space may
;; write every byte of a value.
(deftype FastPath
         [^Mapping mapping ^Codec key-codec ^Codec value-codec ^long kind ^long entries ^long stride
          plain-key? writes?])

(defn fast-path
  "Returns the fast path to the elements of an array in its memory."
  ^FastPath [mapping key-codec ^Codec value-codec {:keys [key max-entries] :as spec}]
  (FastPath. mapping key-codec value-codec (.integers value-codec) max-entries (mapping/stride spec)
             (= :u32 key)
             (not (layout/kernel's? (node/node-of spec :value)))))

(defn- index
  "Returns the index of a key; -1 if it is beyond the end or not an index."
  ^long [^FastPath l k]
  (let [i (cond
            (not (.-plain-key? l))
            (let [four (MemorySegment/ofArray (byte-array 4))]
              (.encode ^Codec (.-key-codec l) k four 0)
              (Bytes/getU32 four 0 false))
            (int? k) (long k)
            :else -1)]
    (if (and (<= 0 i) (< i (.-entries l))) i -1)))

(defn- key-of
  "Returns the key of an index."
  [^FastPath l i]
  (if (.-plain-key? l)
    i
    (let [four (MemorySegment/ofArray (byte-array 4))]
      (Bytes/put32 four 0 i false)
      (.decode ^Codec (.-key-codec l) four 0))))

(defn- unless-unmapped
  "Returns `::fallback` if the memory was unmapped; else throws the exception."
  [^Memory memory op e]
  (let [failure (memory.bytes/failed (.-source memory) op e)]
    (if (identical? e failure) (throw e) ::fallback)))

(defn- value-at [^FastPath l ^Memory memory ^long i]
  (Integers/read (int (.-kind l)) (.-value-codec l) (.-segment memory) (* i (.-stride l))))

(defn lookup
  "Returns the value of a key, or `::fallback`."
  [^FastPath l k]
  (if-some [memory (mapping/through (.-mapping l))]
    (let [i (index l k)]
      (if (neg? i)
        ::fallback
        (try
          (value-at l memory i)
          (catch IllegalStateException e (unless-unmapped memory :lookup e)))))
    ::fallback))

(defn write
  "Writes the whole value of a key; returns true, or `::fallback`."
  [^FastPath l k v]
  (let [memory (when (.-writes? l) (mapping/through (.-mapping l)))]
    (if (or (nil? memory) (.isReadOnly ^MemorySegment (.-segment memory)))
      ::fallback
      (let [i (index l k)]
        (if (neg? i)
          ::fallback
          (try
            (let [at (* i (.-stride l))]
              (if (== Integers/NONE (.-kind l))
                (kernel.memory/encode-whole (.-value-codec l) v (.-segment memory) at)
                (Integers/write (int (.-kind l)) (.-value-codec l) v (.-segment memory) at)))
            true
            (catch IllegalStateException e (unless-unmapped memory :put! e))))))))

(defn reduce-entries
  "Reduces over all entries with `(step acc key value)`, or returns `::fallback`."
  [^FastPath l step init]
  (if-some [memory (mapping/through (.-mapping l))]
    (memory.bytes/accessing [(.-source memory) :reduce]
      (loop [i 0 acc init]
        (cond
          (reduced? acc) (unreduced acc)
          (< i (.-entries l))
          (recur (inc i)
                 (step acc (key-of l i) (value-at l memory i)))
          :else acc)))
    ::fallback))
