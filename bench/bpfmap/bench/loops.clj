(ns bpfmap.bench.loops
  "The loops around what is measured, as macros: each slice is then one function whose locals are primitive.

  A slice is a function of a count and a seed, all longs, which sums what was read."
  (:require [bpfmap.bytes])
  (:import (bpfmap.bytes ByteView)
           (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)
(set! *unchecked-math* :warn-on-boxed)

(def ^:const entries
  "Keys in the map: 0 to this, a power of two.

  So few that the map stays in the processor's cache: else what differs between two
  callers would be hidden behind memory that both wait for."
  16384)

(def ^:const mask
  "What makes any number a key."
  (dec entries))

(defmacro next-random
  "Marsaglia's xorshift with 64 bits, as in bench/baseline.c.

      (next-random 1) ;=> 1082269761"
  [x]
  `(let [x# (long ~x)
         x# (bit-xor x# (bit-shift-left x# 13))
         x# (bit-xor x# (unsigned-bit-shift-right x# 7))]
     (bit-xor x# (bit-shift-left x# 17))))

(defmacro times
  "A slice: sums an expression over `count` pseudo-random keys.

      (times [k] (+ k 1))"
  [[key] expression]
  `(fn ^{:tag ~'long} [^{:tag ~'long} count# ^{:tag ~'long} seed#]
     (loop [i# 0 x# seed# sum# 0]
       (if (< i# count#)
         (let [x# (next-random x#)
               ~key (bit-and x# mask)]
           (recur (inc i#) x# (+ sum# (long ~expression))))
         sum#))))

(defmacro passes
  "A slice: sums an expression, which reads the whole map, until `count` entries are read."
  [expression]
  `(fn ^{:tag ~'long} [^{:tag ~'long} count# ^{:tag ~'long} seed#]
     (loop [i# 0 sum# 0]
       (if (< i# count#)
         (recur (+ i# entries) (+ sum# (long ~expression)))
         sum#))))

(defmacro in-scratch
  "A slice that keeps one `bpfmap.sys.Scratch` of some `bpfmap.sys.Elements` for all its operations."
  [[scratch elements] slice]
  `(fn ^{:tag ~'long} [^{:tag ~'long} count# ^{:tag ~'long} seed#]
     (let [~scratch (.take ~elements)]
       (try
         (let [slice# ~slice]
           (.invokePrim ^clojure.lang.IFn$LLL slice# count# seed#))
         (finally (.give ~scratch))))))

(defmacro one-if
  "1 for what is true, else 0."
  [test]
  `(if ~test 1 0))

(defmacro low
  "The low byte of a number."
  [x]
  `(bit-and 0xff (long ~x)))

(def ^:const low-byte
  "Where the low byte of eight lies."
  (if (= ByteOrder/LITTLE_ENDIAN (ByteOrder/nativeOrder)) 0 7))

(defn low-of-view
  "The low byte of the number in a byte view."
  ^long [^ByteView view]
  (low (aget ^bytes (.-array view) low-byte)))

(defn ordered
  "A buffer over an array, in this machine's byte order."
  ^ByteBuffer [^bytes array]
  (.order (ByteBuffer/wrap array) (ByteOrder/nativeOrder)))
