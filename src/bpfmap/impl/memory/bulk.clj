(ns bpfmap.impl.memory.bulk
  "The numbers of an array view to and from primitive arrays, many at a time."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.memory.access :as access :refer [accessing]]
            [bpfmap.impl.memory.view :as view]
            [bpfmap.type :as type])
  (:import (bpfmap.impl.memory.view ArrayView)
           (bpfmap.sys Blocks)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(defn array-view?
  "Whether x is a view of an array."
  [x]
  (instance? ArrayView x))

(defn- numbers
  "What is known of the elements of an array view as numbers; throws for elements that are none."
  [^ArrayView v op]
  (let [{:keys [element]} (.-shape v)]
    (if (or (:integer element) (:float element))
      element
      (throw (access/invalid (.-source v) op (str "Not numbers: elements of type " (type/summary (:type element)))
                             "arrays take integers of up to 8 bytes, and floating-point numbers")))))

(def ^:private integer-arrays
  {1 ["a byte array" bytes?], 2 ["a short array" #(instance? (Class/forName "[S") %)]
   4 ["an int array" #(instance? (Class/forName "[I") %)], 8 ["a long array" #(instance? (Class/forName "[J") %)]})

(def ^:private float-arrays
  {4 ["a float array" #(instance? (Class/forName "[F") %)], 8 ["a double array" #(instance? (Class/forName "[D") %)]})

(defn- how
  "How an array goes with the elements of a view: `:as-they-are`, or `:converted` to the widest type; throws where it does not.

  A number in another byte order than the processor's is always converted."
  [^ArrayView v op array both-ways?]
  (let [{:keys [integer float]} (numbers v op)
        {:keys [size swap?]} (or integer float)
        arrays (if integer integer-arrays float-arrays)
        [exact exact?] (arrays size)
        [widest widest?] (arrays 8)]
    (cond
      (and (not swap?) (exact? array)) :as-they-are
      (and (not both-ways?) (widest? array)) :converted
      :else (throw (access/invalid (.-source v) op (str "Not an array for these elements: " (pr-str (error/shown array)))
                                   (if (and swap? both-ways?)
                                     "their bytes are in another order than this processor's; write! takes them"
                                     (str "it takes " (error/list-of (distinct (concat (when-not swap? [exact]) (when-not both-ways? [widest])))))))))))

(defn- stretch
  "Which elements go where: `[from start n]`, checked."
  [^ArrayView v op from array start n]
  (let [length (long (java.lang.reflect.Array/getLength array))
        n (or n (if (int? start) (max 0 (- length (long start))) 0))
        fits? (fn [at n total] (and (int? at) (int? n) (<= 0 (long at)) (<= 0 (long n)) (<= (long at) (- (long total) (long n)))))]
    (when-not (fits? from n (.-n v))
      (throw (error/error :out-of-range (str (pr-str (error/shown n)) " elements from " (pr-str (error/shown from)) " of a view of " (.-n v))
                          (access/data (.-source v) op nil))))
    (when-not (fits? start n length)
      (throw (error/error :out-of-range (str (pr-str (error/shown n)) " elements from " (pr-str (error/shown start)) " of an array of " length)
                          (access/data (.-source v) op nil))))
    [from start n]))

(defn copy-to
  "Reads elements, from number `from` on, into an array."
  [^ArrayView v from array start n]
  (let [as (how v :copy-to array false)
        [from start n] (stretch v :copy-to from array start n)
        {{:keys [integer float]} :element} (.-shape v)
        {:keys [size signed? swap?]} (or integer float)
        ^MemorySegment segment (.-segment v)
        stride (.-stride v)
        offset (+ (.-offset v) (* (long from) stride))]
    (accessing [(.-source v) :copy-to]
      (cond
        (= :as-they-are as) (Blocks/copyOut segment offset stride array (int start) (int n))
        integer (Blocks/longs segment offset stride (int size) (boolean signed?) (boolean swap?) ^longs array (int start) (int n))
        :else (Blocks/doubles segment offset stride (int size) (boolean swap?) ^doubles array (int start) (int n)))
      array)))

(defn copy-from
  "Writes elements, from number `from` on, from an array whose elements have their size."
  [^ArrayView v from array start n]
  (how v :copy-from array true)
  (let [[from start n] (stretch v :copy-from from array start n)
        ^MemorySegment segment (.-segment v)
        stride (.-stride v)]
    (access/check-writable (.-source v) :copy-from segment)
    (accessing [(.-source v) :copy-from]
      (Blocks/copyIn array (int start) (int n) segment (+ (.-offset v) (* (long from) stride)) stride)
      v)))

(defn ->array
  "All elements in a new array: of longs, or of doubles."
  [^ArrayView v]
  (let [n (.-n v)
        {:keys [integer]} (numbers v :->array)]
    (when (< (- Integer/MAX_VALUE 8) n)
      (throw (error/error :out-of-range (str "A view of " n " elements is too large for an array")
                          (access/data (.-source v) :->array {:bpfmap/hint "copy-to takes a part of it at a time"}))))
    (copy-to v 0 (if integer (long-array n) (double-array n)) 0 n)))
