(ns ^:no-doc bpfmap.impl.memory.atomic
  "Reads and writes numbers of memory atomically, and in an order that other threads and BPF
  programs can rely on."
  (:refer-clojure :exclude [compare-and-set!])
  (:require [bpfmap.impl.codec.error :as error]
            [bpfmap.impl.codec.scalar :as scalar]
            [bpfmap.impl.memory.bytes :as memory.bytes :refer [accessing]]
            [bpfmap.impl.memory.view :as view]
            [bpfmap.type :as type])
  (:import (bpfmap.impl.memory.bytes Source)
           (bpfmap.impl.memory.view Cell)
           (bpfmap.sys AtomicType AtomicType$Change)))

(set! *warn-on-reflection* true)

;; --- cells

(defn- not-atomic
  "Returns the exception for a view that the processor does not access atomically."
  ^Throwable [v op]
  (let [{:keys [^Source source offset]} (view/place v)
        {{:keys [swap] :as integer} :integer :keys [type size]} (view/layout-of v)]
    (memory.bytes/invalid
     source op
     (str "Not to be read and written in one step: " (type/summary type) " at " offset
          " of the memory of " (memory.bytes/described source))
     (cond
       (not (instance? Cell v)) "atomic operations take a number; name a field or element of it"
       (nil? integer) "atomic operations take integers of 4 or 8 bytes"
       (not (contains? #{4 8} size))
       (str "atomic operations take integers of 4 or 8 bytes, and it has " size)
       swap "its bytes are not in the order of this processor"
       :else (str "it is not aligned to its " size " bytes")))))

(defn- cell
  "Returns a view that is a cell for atomic operations; throws for any other."
  ^Cell [v op]
  (if (and (instance? Cell v) (.-atomic ^Cell v))
    v
    (throw (not-atomic (view/check v op) op))))

(defn- writable
  "Returns a view that is a writable atomic cell; throws for any other."
  ^Cell [v op]
  (let [c (cell v op)]
    (memory.bytes/check-writable (.-source c) op (.-segment c))
    c))

;; --- numbers and their bits

(defn- number
  "Returns the number that a long is in a cell: a BigInt for a :u64 above 2^63-1."
  [^Cell c ^long bits]
  (if (and (neg? bits) (identical? AtomicType/U64 (.-atomic c)))
    (scalar/unsigned bits)
    bits))

(def ^:private values
  "The least and the largest number of each type."
  {AtomicType/U32 [0 4294967295]
   AtomicType/S32 [Integer/MIN_VALUE Integer/MAX_VALUE]
   AtomicType/U64 [0 18446744073709551615N]
   AtomicType/S64 [Long/MIN_VALUE Long/MAX_VALUE]})

(def ^:private operands
  "The least and the largest operand of each type, of either sign."
  (let [of-4-bytes [Integer/MIN_VALUE 4294967295]
        of-8-bytes [Long/MIN_VALUE 18446744073709551615N]]
    {AtomicType/U32 of-4-bytes, AtomicType/S32 of-4-bytes
     AtomicType/U64 of-8-bytes, AtomicType/S64 of-8-bytes}))

(defn- bits
  "Returns the bits of an integer in the range of a cell; throws for others."
  ^long [^Cell c op x ranges]
  (let [[least most] (get ranges (.-atomic c))]
    (if (and (integer? x) (<= least x) (<= x most))
      (.longValue ^Number x)
      (throw (view/failed (error/misfit (:type (.-layout c)) [] x
                                        (str "it must be an integer from " least " to " most))
                          (.-identity ^Source (.-source c)) op (.-path c))))))

;; --- the operations

(defn get-acquire
  "Returns the number.
  Everything that was written before it was written with release is then visible."
  ([v]
   (let [c (cell v :get-acquire)]
     (accessing [(.-source c) :get-acquire]
       (number c (.getAcquire ^AtomicType (.-atomic c) (.-segment c) (.-offset c))))))
  ([v path] (get-acquire (view/at v path :get-acquire))))

(defn set-release!
  "Writes the number, after everything that was written before."
  ([v x]
   (let [c (writable v :set-release!)
         x (bits c :set-release! x values)]
     (accessing [(.-source c) :set-release!]
       (.setRelease ^AtomicType (.-atomic c) (.-segment c) (.-offset c) x)
       c)))
  ([v path x] (set-release! (view/at v path :set-release!) x)))

(defn compare-and-set!
  "Writes a number if the cell has the expected one; returns true if it had."
  ([v expected x]
   (let [c (writable v :compare-and-set!)
         expected (bits c :compare-and-set! expected values)
         x (bits c :compare-and-set! x values)]
     (accessing [(.-source c) :compare-and-set!]
       (.compareAndSet ^AtomicType (.-atomic c) (.-segment c) (.-offset c) expected x))))
  ([v path expected x] (compare-and-set! (view/at v path :compare-and-set!) expected x)))

(defn- get-and-change!
  "Changes the number of a cell; returns the previous one."
  [^Cell c op ^AtomicType$Change change ^long bits]
  (accessing [(.-source c) op]
    (number c (.getAndChange ^AtomicType (.-atomic c) (.-segment c) (.-offset c) change bits))))

(defn exchange!
  "Writes a number; returns the previous one."
  ([v x]
   (let [c (writable v :exchange!)]
     (get-and-change! c :exchange! AtomicType$Change/SET (bits c :exchange! x values))))
  ([v path x] (exchange! (view/at v path :exchange!) x)))

(defn- combine!
  "Combines the number of a view with an operand; returns the previous number."
  [v op change x]
  (let [c (writable v op)]
    (get-and-change! c op change (bits c op x operands))))

(defn fetch-add!
  "Adds to the number, modulo its size; returns the previous number."
  ([v x] (combine! v :fetch-add! AtomicType$Change/ADD x))
  ([v path x] (fetch-add! (view/at v path :fetch-add!) x)))

(defn fetch-or!
  "Sets bits of the number; returns the previous number."
  ([v x] (combine! v :fetch-or! AtomicType$Change/OR x))
  ([v path x] (fetch-or! (view/at v path :fetch-or!) x)))

(defn fetch-and!
  "Clears bits of the number; returns the previous number."
  ([v x] (combine! v :fetch-and! AtomicType$Change/AND x))
  ([v path x] (fetch-and! (view/at v path :fetch-and!) x)))

(defn fetch-xor!
  "Inverts bits of the number; returns the previous number."
  ([v x] (combine! v :fetch-xor! AtomicType$Change/XOR x))
  ([v path x] (fetch-xor! (view/at v path :fetch-xor!) x)))

(defn add!
  "Adds to the number, modulo its size; returns the view."
  ([v x]
   ;; The row "add! a view" of bpfmap.bench.memory justifies the first branch. It calls no function
   ;; of Clojure, and the access itself detects read-only memory: through combine! it takes three
   ;; times as long.
   (if (and (instance? Cell v) (identical? AtomicType/U64 (.-atomic ^Cell v)) (instance? Long x))
     (let [^Cell c v]
       (try
         (AtomicType/addU64 (.-segment c) (.-offset c) (.longValue ^Long x))
         v
         (catch RuntimeException e
           (writable v :add!)
           (throw (memory.bytes/failed (.-source c) :add! e)))))
     (do (combine! v :add! AtomicType$Change/ADD x)
         v)))
  ([v path x] (add! (view/at v path :add!) x)))

(defn bit-or!
  "Sets bits of the number; returns the view."
  ([v x] (combine! v :bit-or! AtomicType$Change/OR x) v)
  ([v path x] (bit-or! (view/at v path :bit-or!) x)))

(defn bit-and!
  "Clears bits of the number; returns the view."
  ([v x] (combine! v :bit-and! AtomicType$Change/AND x) v)
  ([v path x] (bit-and! (view/at v path :bit-and!) x)))

(defn bit-xor!
  "Inverts bits of the number; returns the view."
  ([v x] (combine! v :bit-xor! AtomicType$Change/XOR x) v)
  ([v path x] (bit-xor! (view/at v path :bit-xor!) x)))
