(ns bpfmap.bench.loops
  "The loops around what is measured, as macros: each slice is then one function whose locals are
  primitive.

  A slice is a function of a count and of a place in the order of the keys, all longs, which sums
  what was read. What is summed is evaluated before the sum is put on the JVM's stack: the JIT
  does not replace a loop that runs while something lies there, and one that it had to give up
  once would be interpreted from then on."
  (:require [bpfmap.bytes])
  (:import (bpfmap.bytes ByteView)
           (java.nio ByteOrder)))

(set! *warn-on-reflection* true)

(set! *unchecked-math* :warn-on-boxed)

(defmacro in-order
  "A slice: sums an expression over `count` indices in their order, which begins again behind its
  end.

      (in-order [n order] (+ n 1))"
  [[n order] expression]
  `(let [order# (ints ~order)
         entries# (alength order#)]
     (fn ^{:tag ~'long} [^{:tag ~'long} count# ^{:tag ~'long} first#]
       (loop [i# 0 at# first# sum# 0]
         (if (< i# count#)
           (let [~n (long (aget order# at#))
                 next# (inc at#)
                 read# (long ~expression)]
             (recur (inc i#) (if (== next# entries#) 0 next#) (+ sum# read#)))
           sum#)))))

(defmacro passes
  "A slice: sums an expression, which reads `entries` entries, until `count` entries are read."
  [entries expression]
  `(let [entries# (long ~entries)]
     (fn ^{:tag ~'long} [^{:tag ~'long} count# ^{:tag ~'long} _first#]
       (loop [i# 0 sum# 0]
         (if (< i# count#)
           (let [read# (long ~expression)]
             (recur (+ i# entries#) (+ sum# read#)))
           sum#)))))

(defmacro times
  "A slice: sums an expression as often as `count` says."
  [expression]
  `(passes 1 ~expression))

(defmacro in-scratch
  "A slice that keeps one `bpfmap.sys.CallBuffer` of some `bpfmap.sys.Elements` for all its
  operations."
  [[scratch elements] slice]
  `(fn ^{:tag ~'long} [^{:tag ~'long} count# ^{:tag ~'long} first#]
     (let [~scratch (.take ~elements)]
       (try
         (let [slice# ~slice]
           (.invokePrim ^clojure.lang.IFn$LLL slice# count# first#))
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
  "The low byte of the number that a byte view begins with; of the first of them, if there are
  several."
  ^long [view]
  (let [view (if (vector? view) (nth view 0) view)]
    (low (aget ^bytes (.-array ^ByteView view) low-byte))))
