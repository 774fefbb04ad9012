(ns ^:no-doc bpfmap.impl.memory.reducing
  "Reductions over numbers in memory, by blocks: some hundred are copied to an array, then the
  function gets them.

  The array is in the processor's first cache, and the JIT knows its type, which it does not know
  of memory: so a loop over it is fast whatever else the program does with memory. A function of
  primitives, `(fn ^long [^long acc ^long x] …)`, is called as one, without boxes; `+` is not
  called at all."
  (:require [bpfmap.impl.codec.scalar :as scalar])
  (:import (bpfmap.sys Blocks)
           (clojure.lang IFn$DDD IFn$LLL IFn$LLO IFn$ODO IFn$OLO)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(set! *unchecked-math* :warn-on-boxed)

(def ^:private ^:const block-size
  "As many numbers are read ahead of the function: four kilobytes. bpfmap.sys.Blocks/sum counts on it."
  512)

;; Numbers of one type, `stride` bytes apart. `signed` and `swap` are booleans.
(deftype IntegerRow [^MemorySegment segment ^long offset ^long stride ^long size signed swap])
(deftype FloatRow [^MemorySegment segment ^long offset ^long stride ^long size swap])

(defmacro ^:private over-blocks
  "Folds an expression over blocks: the numbers from `from` up to `to` are read into `block`, n at
  a time. Stops at a `reduced`, if the expression can give one."
  [[acc init block n] [from to fill] expression stops?]
  (let [i (gensym "i")]
    `(loop [~i (long ~from) ~acc ~init]
       (if (< ~i (long ~to))
         (let [~n (min block-size (- (long ~to) ~i))]
           (~@fill ~i ~block ~n)
           ~(if stops?
              `(let [result# ~expression]
                 (if (reduced? result#)
                   (unreduced result#)
                   (recur (+ ~i ~n) result#)))
              `(recur (+ ~i ~n) ~expression)))
         ~acc))))

(defmacro ^:private in-block
  "Folds an expression over the first n numbers of a block."
  [[acc init x] [block n] expression]
  `(loop [i# 0 ~acc ~init]
     (if (< i# ~n)
       (let [~x (aget ~block i#)]
         (recur (inc i#) ~expression))
       ~acc)))

(defmacro ^:private in-block-until-reduced
  [[acc init x] [block n] expression]
  `(loop [i# 0 ~acc ~init]
     (if (or (== i# ~n) (reduced? ~acc))
       ~acc
       (let [~x (aget ~block i#)]
         (recur (inc i#) ~expression)))))

(defn- read-longs [^IntegerRow xs ^long from ^longs block ^long n]
  (Blocks/longs (.-segment xs) (+ (.-offset xs) (* from (.-stride xs))) (.-stride xs)
                (int (.-size xs))
                (boolean (.-signed xs)) (boolean (.-swap xs)) block 0 (int n)))

(defn- read-doubles [^FloatRow xs ^long from ^doubles block ^long n]
  (Blocks/doubles (.-segment xs) (+ (.-offset xs) (* from (.-stride xs))) (.-stride xs)
                  (int (.-size xs))
                  (boolean (.-swap xs)) block 0 (int n)))

;; Each loop over a block is a function of its own, so that the JIT compiles it as a whole.

(defn- longs-to-long ^long [^IFn$LLL f ^long acc ^longs block ^long n]
  (in-block [acc acc x] [block n] (.invokePrim f acc x)))

(defn- wide-to-long
  "As [[longs-to-long]], of unsigned numbers of 64 bits: one above 2^63-1 is no long, and f says
  so itself."
  ^long [^IFn$LLL f ^long acc ^longs block ^long n]
  (in-block [acc acc x] [block n]
    (if (neg? x)
      (long (f acc (scalar/unsigned x)))
      (.invokePrim f acc x))))

(defn- longs-to-boxed
  "As [[longs-to-object]], of a function that takes the accumulator as a long too, but returns any
  object."
  [^IFn$LLO f acc ^longs block ^long n]
  (in-block-until-reduced [acc acc x] [block n]
    (if (instance? Long acc)
      (.invokePrim f (.longValue ^Long acc) x)
      (f acc x))))

(defn- longs-to-object [^IFn$OLO f acc ^longs block ^long n]
  (in-block-until-reduced [acc acc x] [block n] (.invokePrim f acc x)))

(defn- longs-to-any [f acc ^longs block ^long n]
  (in-block-until-reduced [acc acc x] [block n] (f acc x)))

(defn- wide-to-any [f acc ^longs block ^long n]
  (in-block-until-reduced [acc acc x]
    [block n]
    (f acc (if (neg? x) (scalar/unsigned x) (Long/valueOf x)))))

(defn- doubles-to-double ^double [^IFn$DDD f ^double acc ^doubles block ^long n]
  (in-block [acc acc x] [block n] (.invokePrim f acc x)))

(defn- sum-of-doubles ^double [^double acc ^doubles block ^long n]
  (in-block [acc acc x] [block n] (+ acc x)))

(defn- doubles-to-object [^IFn$ODO f acc ^doubles block ^long n]
  (in-block-until-reduced [acc acc x] [block n] (.invokePrim f acc x)))

(defn- doubles-to-any [f acc ^doubles block ^long n]
  (in-block-until-reduced [acc acc x] [block n] (f acc x)))

(def ^:private ^:const far-from-overflow (bit-shift-left 1 62))

(defn- sum-of-block
  "The sum of a block and what was before, added by `+` itself where machine words could overflow."
  [acc ^longs block ^long n wide?]
  (let [sum (if (and (instance? Long acc)
                     (< (.longValue ^Long acc) far-from-overflow)
                     (< (- far-from-overflow) (.longValue ^Long acc)))
              (Blocks/sum block (int n) (not wide?))
              Blocks/TOO_LARGE)]
    (cond
      (not (== sum Blocks/TOO_LARGE)) (+ (.longValue ^Long acc) sum)
      wide? (wide-to-any + acc block n)
      :else (longs-to-any + acc block n))))

(defn over-integers
  "Reduces over the integers from number `from` up to `to`."
  [^IntegerRow xs f init from to]
  (let [wide? (and (== 8 (.-size xs)) (not (.-signed xs)))
        block (long-array block-size)]
    (cond
      (and (identical? + f) (instance? Long init))
      (over-blocks [acc init block n] [from to (read-longs xs)] (sum-of-block acc block n wide?)
                   false)

      (and (instance? IFn$LLL f) (instance? Long init))
      (if wide?
        (over-blocks [acc (.longValue ^Long init) block n] [from to (read-longs xs)]
                     (wide-to-long f acc block n) false)
        (over-blocks [acc (.longValue ^Long init) block n] [from to (read-longs xs)]
                     (longs-to-long f acc block n) false))

      wide?
      (over-blocks [acc init block n] [from to (read-longs xs)] (wide-to-any f acc block n) true)

      (instance? IFn$OLO f)
      (over-blocks [acc init block n] [from to (read-longs xs)] (longs-to-object f acc block n)
                   true)

      (instance? IFn$LLO f)
      (over-blocks [acc init block n] [from to (read-longs xs)] (longs-to-boxed f acc block n) true)

      :else
      (over-blocks [acc init block n] [from to (read-longs xs)] (longs-to-any f acc block n)
                   true))))

(defn over-floats
  "Reduces over the floating-point numbers from number `from` up to `to`."
  [^FloatRow xs f init from to]
  (let [block (double-array block-size)]
    (cond
      (and (identical? + f) (instance? Double init))
      (over-blocks [acc (.doubleValue ^Double init) block n] [from to (read-doubles xs)]
                   (sum-of-doubles acc block n) false)

      (and (instance? IFn$DDD f) (instance? Double init))
      (over-blocks [acc (.doubleValue ^Double init) block n] [from to (read-doubles xs)]
                   (doubles-to-double f acc block n) false)

      (instance? IFn$ODO f)
      (over-blocks [acc init block n] [from to (read-doubles xs)] (doubles-to-object f acc block n)
                   true)

      :else
      (over-blocks [acc init block n] [from to (read-doubles xs)] (doubles-to-any f acc block n)
                   true))))

(defn over-elements
  "Reduces over what `(element i)` returns for each i from `from` up to `to`."
  [element f init from to]
  (loop [i (long from) acc init]
    (cond
      (reduced? acc) (unreduced acc)
      (< i (long to)) (recur (inc i) (f acc (element i)))
      :else acc)))
