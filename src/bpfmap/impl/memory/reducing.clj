(ns ^:no-doc bpfmap.impl.memory.reducing
  "Reduces over numbers in memory, by blocks: some hundred are copied to an array, and then
  passed to the function. The JIT checks the kind of memory at each access, but an array has one
  type.

  Rows of bpfmap.bench.memory justify the two faster ways: `(reduce + view)` the sum of a block in
  Java, and `reduce, a function of longs` the loops without objects. Every other reduction calls
  the function with objects."
  (:require [bpfmap.impl.codec.scalar :as scalar])
  (:import (bpfmap.sys Blocks)
           (clojure.lang IFn$LLL)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(set! *unchecked-math* :warn-on-boxed)

(def ^:private ^:const block-size
  "The number of elements that are read ahead of the function: four kilobytes.
  bpfmap.sys.Blocks/sum requires that it is at most 512."
  512)

;; Numbers of one type, `stride` bytes apart. `signed` and `swap` are booleans.
(deftype IntegerRow [^MemorySegment segment ^long offset ^long stride ^long size signed swap])
(deftype FloatRow [^MemorySegment segment ^long offset ^long stride ^long size swap])

(defn- over-blocks
  "Reduces over blocks of numbers.

  `(fill from n)` reads n numbers from the number `from` on, and `(step acc n)` reduces over
  them. Stops at a `reduced`."
  [fill step init from to]
  (loop [i (long from) acc init]
    (cond
      (reduced? acc) (unreduced acc)
      (< i (long to)) (let [n (min block-size (- (long to) i))]
                        (fill i n)
                        (recur (+ i n) (step acc n)))
      :else acc)))

;; --- integers

;; An unsigned number of eight bytes above 2^63-1 is a negative long in a block. Functions of longs
;; have a loop of their own for such numbers: with one loop for all, the row of the benchmark takes
;; eight times as long, because the loop sees more functions than the JIT inlines.

(defn- with-longs
  "Reduces over the first n numbers of a block with a function of longs."
  ^long [^IFn$LLL f ^long acc ^longs block ^long n]
  (loop [i 0 acc acc]
    (if (< i n)
      (recur (inc i) (.invokePrim f acc (aget block i)))
      acc)))

(defn- with-unsigned-longs
  "Reduces over n unsigned numbers of a block with a function of longs.

  A number above 2^63-1 is not a long, and the function itself rejects it."
  ^long [^IFn$LLL f ^long acc ^longs block ^long n]
  (loop [i 0 acc acc]
    (if (< i n)
      (let [x (aget block i)]
        (recur (inc i) (if (neg? x)
                         (long (f acc (scalar/unsigned x)))
                         (.invokePrim f acc x))))
      acc)))

(defn- with-objects
  "Reduces over the first n numbers of a block with any function."
  [f acc ^longs block n wide?]
  (let [n (long n)
        wide? (boolean wide?)]
    (loop [i 0 acc acc]
      (if (or (== i n) (reduced? acc))
        acc
        (let [x (aget block i)]
          (recur (inc i) (f acc (if (and wide? (neg? x)) (scalar/unsigned x) x))))))))

(def ^:private ^:const far-from-overflow (bit-shift-left 1 62))

(defn- sum
  "Adds n numbers of a block, by `+` itself if machine words could overflow."
  [acc ^longs block n wide?]
  (let [sum (if (and (instance? Long acc)
                     (< (.longValue ^Long acc) far-from-overflow)
                     (< (- far-from-overflow) (.longValue ^Long acc)))
              (Blocks/sum block (int n) (not wide?))
              Blocks/TOO_LARGE)]
    (if (== sum Blocks/TOO_LARGE)
      (with-objects + acc block n wide?)
      (+ (.longValue ^Long acc) sum))))

(defn over-integers
  "Reduces over the integers from number `from` up to `to`."
  [^IntegerRow xs f init from to]
  (let [wide? (and (== 8 (.-size xs)) (not (.-signed xs)))
        long? (instance? Long init)
        block (long-array block-size)]
    (over-blocks (fn [^long from ^long n]
                   (Blocks/longs (.-segment xs) (+ (.-offset xs) (* from (.-stride xs)))
                                 (.-stride xs) (int (.-size xs)) (boolean (.-signed xs))
                                 (boolean (.-swap xs)) block 0 (int n)))
                 (cond
                   (and long? (identical? + f)) (fn [acc n] (sum acc block n wide?))
                   (not (and long? (instance? IFn$LLL f)))
                   (fn [acc n] (with-objects f acc block n wide?))
                   wide? (fn [acc ^long n] (with-unsigned-longs f (long acc) block n))
                   :else (fn [acc ^long n] (with-longs f (long acc) block n)))
                 init from to)))

;; --- other elements

(defn over-floats
  "Reduces over the floating-point numbers from number `from` up to `to`."
  [^FloatRow xs f init from to]
  (let [block (double-array block-size)]
    (over-blocks (fn [^long from ^long n]
                   (Blocks/doubles (.-segment xs) (+ (.-offset xs) (* from (.-stride xs)))
                                   (.-stride xs) (int (.-size xs)) (boolean (.-swap xs))
                                   block 0 (int n)))
                 (fn [acc ^long n]
                   (loop [i 0 acc acc]
                     (if (or (== i n) (reduced? acc))
                       acc
                       (recur (inc i) (f acc (aget block i))))))
                 init from to)))

(defn over-elements
  "Reduces over what `(element i)` returns for each i from `from` up to `to`."
  [element f init from to]
  (loop [i (long from) acc init]
    (cond
      (reduced? acc) (unreduced acc)
      (< i (long to)) (recur (inc i) (f acc (element i)))
      :else acc)))
