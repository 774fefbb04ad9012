(ns bpfmap.impl.memory.bulk
  "The numbers of an array view to and from primitive arrays, many at a time."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.memory.access :as access :refer [accessing]]
            [bpfmap.impl.memory.view :as view]
            [bpfmap.type :as type])
  (:import (bpfmap.impl.memory.reducing FloatRow IntegerRow)
           (bpfmap.impl.memory.view ArrayView)
           (bpfmap.sys Blocks)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(defn array-view?
  "Whether x is a view of an array."
  [x]
  (instance? ArrayView x))

(defn- check-numbers
  "Throws for elements that are no numbers."
  [^ArrayView v op]
  (when-not (.-numbers v)
    (throw (access/invalid (.-source v) op (str "Not numbers: elements of type " (type/summary (:type (:element (.-shape v)))))
                           "arrays take integers of up to 8 bytes, and floating-point numbers"))))

(def ^:private integer-arrays
  {1 ["a byte array" bytes?], 2 ["a short array" #(instance? short/1 %)], 4 ["an int array" #(instance? int/1 %)]
   8 ["a long array" #(instance? long/1 %)]})

(def ^:private float-arrays
  {4 ["a float array" #(instance? float/1 %)], 8 ["a double array" #(instance? double/1 %)]})

(defn- exact
  "The array whose elements have the size of a view's, as `[in-words test]`; nil for numbers in another order than the
  processor's."
  [^ArrayView v]
  (let [{:keys [integer float]} (:element (.-shape v))
        {:keys [size swap?]} (or integer float)]
    (when-not swap?
      ((if integer integer-arrays float-arrays) size))))

(defn- check-exact
  "Throws for an array that does not take elements as they are. `widest` is what is taken besides."
  [^ArrayView v op array widest]
  (let [[in-words fits?] (exact v)]
    (when-not (and fits? (fits? array))
      (throw (access/invalid (.-source v) op (str "Not an array for these elements: " (pr-str (error/shown array)))
                             (if-let [taken (seq (distinct (remove nil? [in-words widest])))]
                               (str "it takes " (error/list-of taken))
                               "their bytes are in another order than this processor's; write! takes them"))))))

(defn- fits?
  "Whether n things from number `at` on are among `total`."
  [at n ^long total]
  (and (int? at) (int? n) (<= 0 (long at)) (<= 0 (long n)) (<= (long at) (- total (long n)))))

(defn- how-many
  "How many elements go from or to an array, checked on both sides."
  [^ArrayView v op from array start n]
  (let [length (long (java.lang.reflect.Array/getLength array))
        n (or n (if (int? start) (max 0 (- length (long start))) 0))
        refuse (fn [at total of]
                 (error/error :out-of-range
                              (str (pr-str (error/shown n)) " elements from " (pr-str (error/shown at)) " of " of " " total)
                              (access/data (.-source v) op nil)))]
    (cond
      (not (fits? from n (.-n v))) (throw (refuse from (.-n v) "a view of"))
      (not (fits? start n length)) (throw (refuse start length "an array of"))
      :else n)))

(defn copy-to
  "Reads elements, from number `from` on, into an array."
  [^ArrayView v from array start n]
  (check-numbers v :copy-to)
  (let [numbers (.-numbers v)
        integers? (instance? IntegerRow numbers)
        converted? (if integers? (instance? long/1 array) (instance? double/1 array))
        _ (when-not converted?
            (check-exact v :copy-to array (if integers? "a long array" "a double array")))
        n (long (how-many v :copy-to from array start n))
        ^MemorySegment segment (.-segment v)
        stride (.-stride v)
        offset (+ (.-offset v) (* (long from) stride))]
    (accessing [(.-source v) :copy-to]
      (cond
        (not converted?) (Blocks/copyOut segment offset stride array (int start) (int n))
        integers? (let [^IntegerRow xs numbers]
                    (Blocks/longs segment offset stride (int (.-size xs)) (boolean (.-signed xs)) (boolean (.-swap xs))
                                  ^longs array (int start) (int n)))
        :else (let [^FloatRow xs numbers]
                (Blocks/doubles segment offset stride (int (.-size xs)) (boolean (.-swap xs))
                                ^doubles array (int start) (int n))))
      array)))

(defn copy-from
  "Writes elements, from number `from` on, from an array whose elements have their size."
  [^ArrayView v from array start n]
  (check-numbers v :copy-from)
  (check-exact v :copy-from array nil)
  (let [n (long (how-many v :copy-from from array start n))
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
        integers? (instance? IntegerRow (.-numbers v))]
    (check-numbers v :->array)
    (when (< (- Integer/MAX_VALUE 8) n)
      (throw (error/error :out-of-range (str "A view of " n " elements is too large for an array")
                          (access/data (.-source v) :->array {:bpfmap/hint "copy-to takes a part of it at a time"}))))
    (copy-to v 0 (if integers? (long-array n) (double-array n)) 0 n)))
