(ns ^:no-doc bpfmap.impl.memory.atomic
  "Reading and writing a number in one step, and in an order that other threads and BPF programs
  can rely on."
  (:refer-clojure :exclude [compare-and-set!])
  (:require [bpfmap.impl.codec.error :as error]
            [bpfmap.impl.codec.scalar :as scalar]
            [bpfmap.impl.memory.bytes :as bytes :refer [accessing]]
            [bpfmap.impl.memory.view :as view]
            [bpfmap.type :as type])
  (:import (bpfmap.impl.memory.bytes Source)
           (bpfmap.impl.memory.view ArrayView Cell)
           (bpfmap.sys Atomics)))

(set! *warn-on-reflection* true)

(set! *unchecked-math* :warn-on-boxed)

;; --- what can be read and written in one step

(defn- refused
  "The exception for what the processor does not read and write in one step, with the reason."
  ^Throwable [v op]
  (let [{:keys [^Source source offset]} (view/place v)
        {{:keys [swap]} :integer :keys [type size]} (view/shape-of v)]
    (bytes/invalid source op
                   (str "Not to be read and written in one step: " (type/summary type) " at "
                        offset
                        " of the memory of " (bytes/described source))
                   (cond
                     (not (instance? Cell
                                     v)) "atomic operations take a number; name a field or element of it"
                     (nil?
                      (:integer
                       (view/shape-of v))) "atomic operations take integers of 4 or 8 bytes"
                     (not (contains? #{4 8}
                                     size)) (str
                                             "atomic operations take integers of 4 or 8 bytes, "
                                             "and it has " size)
                     swap "its bytes are not in the order of this processor"
                     :else (str "it is not aligned to its " size " bytes")))))

(defn- cell
  "The cell itself, if it can be read and written in one step."
  ^Cell [v op]
  (if (and (instance? Cell v) (not (== 0 (.-atomic ^Cell v))))
    v
    (throw (refused (view/check v op) op))))

(defn- writable ^Cell [v op]
  (let [c (cell v op)]
    (when (odd? (.-atomic c))
      (bytes/check-writable (.-source c) op (.-segment c)))
    c))

;; --- numbers and their bits

(defmacro ^:private wide?
  "Whether a cell has 64 bits."
  [c]
  `(<= 64 (abs (.-atomic ~c))))

(defn- from-bits
  "The number that bits are in a cell."
  [^Cell c ^long bits]
  (case (.-atomic c)
    (64 65) (scalar/unsigned bits)
    (32 33) (bit-and 0xffffffff bits)
    bits))

(defn- misfit ^Throwable [^Cell c op x least most]
  (view/failed (error/misfit (:type (.-shape c)) [] x
                             (str "it must be an integer from " least " to " most))
               (.-identity ^Source (.-source c)) op (.-path c)))

(defn- low-bits
  "The bits of a number that lies in a range, seldom used: where it is no Long, or out of range."
  [^Cell c op x least most]
  (if (and (integer? x) (<= least x most))
    (.longValue (biginteger x))
    (throw (misfit c op x least most))))

(defn- value-bits
  "The bits of a number that a cell can hold."
  ^long [^Cell c op x]
  (if (instance? Long x)
    (let [n (.longValue ^Long x)]
      (case (.-atomic c)
        64 (if (neg? n) (throw (misfit c op x 0 18446744073709551615N)) n)
        -64 n
        32 (if (== n (bit-and 0xffffffff n)) n (throw (misfit c op x 0 4294967295)))
        (if (== n (unchecked-int n))
          n
          (throw (misfit c op x Integer/MIN_VALUE Integer/MAX_VALUE)))))
    (long (case (.-atomic c)
            64 (low-bits c op x 0 18446744073709551615N)
            -64 (low-bits c op x Long/MIN_VALUE Long/MAX_VALUE)
            32 (low-bits c op x 0 4294967295)
            (low-bits c op x Integer/MIN_VALUE Integer/MAX_VALUE)))))

(defn- word-bits
  "The bits of a number to add or to combine with: of either sign, whatever the cell's is."
  ^long [^Cell c op x]
  (if (and (instance? Long x) (or (wide? c)
                                  (and (<= Integer/MIN_VALUE (.longValue ^Long x))
                                       (<= (.longValue ^Long x) 0xffffffff))))
    (.longValue ^Long x)
    (long (if (wide? c)
            (low-bits c op x Long/MIN_VALUE 18446744073709551615N)
            (low-bits c op x Integer/MIN_VALUE 4294967295)))))

;; --- the operations

(defmacro ^:private by-width
  "A call of the method for a cell's width, with its bits as longs."
  [c [of-64 of-32] & bits]
  `(if (wide? ~c)
     (~of-64 (.-segment ~c) (.-offset ~c) ~@bits)
     (~of-32 (.-segment ~c) (.-offset ~c) ~@(map (fn [b] `(unchecked-int ~b)) bits))))

(defmacro ^:private quickly-or
  "What `result` makes of what a method returns for an unsigned integer of 64 bits that can be
  written, given Longs: the common case, with no call of a function in it. For all else, `slowly`.
  `fits` is what the Longs have to satisfy besides.

  `v` is a cell or, with a `path` that is no nil, an array of which that is the index.

  It ends with `accessing`, since a `try` that is not the last thing of a function is made a
  function of its own."
  [[v path op method & longs] fits result slowly]
  (let [primitive (fn [x] `(.longValue ~(vary-meta x assoc :tag `Long)))
        c (vary-meta v assoc :tag (if path `ArrayView `Cell))]
    `(if (and (instance? ~(:tag (meta c)) ~v)
              (== 64 (.-atomic ~c))
              ~@(for [x longs] `(instance? Long ~x))
              ~@(for [x longs] `(~fits ~(primitive x)))
              ~@(when path
                  [`(instance? Long ~path) `(<= 0 ~(primitive path))
                   `(< ~(primitive path) (.-n ~c))]))
       (accessing [(.-source ~c) ~op]
         (~result ~(if path `(view/part ~v ~path) v)
                  (~method (.-segment ~c)
                           ~(if path
                              `(+ (.-offset ~c) (* ~(primitive path) (.-stride ~c)))
                              `(.-offset ~c))
                           ~@(map primitive longs))))
       ~slowly)))

(defmacro ^:private any-bits [_] true)
(defmacro ^:private no-sign [x] `(<= 0 ~x))

(defmacro ^:private number [_ bits]
  `(let [bits# ~bits]
     (if (neg? bits#) (scalar/unsigned bits#) bits#)))

(defmacro ^:private view-itself [v effect]
  `(do ~effect ~v))

(defn- get-slowly [v op]
  (let [c (cell v op)]
    (accessing [(.-source c) op]
      (from-bits c (by-width c [Atomics/getAcquire64 Atomics/getAcquire32])))))

(defn get-acquire
  "The number, and with it everything that was written before it was written with release."
  ([v]
   (quickly-or [v nil :get-acquire Atomics/getAcquire64] nil number
               (get-slowly v :get-acquire)))
  ([v path]
   (quickly-or [v path :get-acquire Atomics/getAcquire64] nil number
               (get-slowly (view/at v path :get-acquire) :get-acquire))))

(defn set-release!
  "Writes the number, after everything that was written before."
  ([v x]
   (let [c (writable v :set-release!)
         bits (value-bits c :set-release! x)]
     (accessing [(.-source c) :set-release!]
       (by-width c [Atomics/setRelease64 Atomics/setRelease32] bits)
       v)))
  ([v path x] (set-release! (view/at v path :set-release!) x)))

(defn compare-and-set!
  "Writes a number if the expected one is there; whether it was."
  ([v expected x]
   (let [c (writable v :compare-and-set!)
         expected (value-bits c :compare-and-set! expected)
         bits (value-bits c :compare-and-set! x)]
     (accessing [(.-source c) :compare-and-set!]
       (by-width c [Atomics/compareAndSet64 Atomics/compareAndSet32] expected bits))))
  ([v path expected x] (compare-and-set! (view/at v path :compare-and-set!) expected x)))

(defmacro ^:private def-changing
  "Defines an operation that makes another number of the number and one given."
  [name [bits-of fits] [result slow-result] doc methods]
  (let [op (keyword (str name))
        slowly (symbol (str name "-slowly"))]
    `(do
       (defn- ~slowly [v# x#]
         (let [c# (writable v# ~op)
               bits# (~bits-of c# ~op x#)]
           (accessing [(.-source c#) ~op]
             (~slow-result c# (by-width c# ~methods bits#)))))
       (defn ~name ~doc
         ([~'v ~'x]
          (quickly-or [~'v nil ~op ~(first methods) ~'x] ~fits ~result
                      (~slowly ~'v ~'x)))
         ([~'v ~'path ~'x]
          (quickly-or [~'v ~'path ~op ~(first methods) ~'x] ~fits ~result
                      (~slowly (view/at ~'v ~'path ~op) ~'x)))))))

(def-changing exchange!
  [value-bits no-sign]
  [number from-bits]
  "Writes a number and returns the one before."
  [Atomics/getAndSet64 Atomics/getAndSet32])

(def-changing add!
  [word-bits any-bits]
  [view-itself view-itself]
  "Adds to the number, modulo its width; returns the view."
  [Atomics/getAndAdd64 Atomics/getAndAdd32])
(def-changing bit-or!
  [word-bits any-bits]
  [view-itself view-itself]
  "Sets bits of the number; returns the view."
  [Atomics/getAndOr64 Atomics/getAndOr32])
(def-changing bit-and!
  [word-bits any-bits]
  [view-itself view-itself]
  "Keeps only some bits of the number; returns the view."
  [Atomics/getAndAnd64 Atomics/getAndAnd32])
(def-changing bit-xor!
  [word-bits any-bits]
  [view-itself view-itself]
  "Turns bits of the number around; returns the view."
  [Atomics/getAndXor64 Atomics/getAndXor32])

(def-changing fetch-add!
  [word-bits any-bits]
  [number from-bits]
  "As [[add!]]; returns the number before."
  [Atomics/getAndAdd64 Atomics/getAndAdd32])
(def-changing fetch-or!
  [word-bits any-bits]
  [number from-bits]
  "As [[bit-or!]]; returns the number before."
  [Atomics/getAndOr64 Atomics/getAndOr32])
(def-changing fetch-and!
  [word-bits any-bits]
  [number from-bits]
  "As [[bit-and!]]; returns the number before."
  [Atomics/getAndAnd64 Atomics/getAndAnd32])
(def-changing fetch-xor!
  [word-bits any-bits]
  [number from-bits]
  "As [[bit-xor!]]; returns the number before."
  [Atomics/getAndXor64 Atomics/getAndXor32])
