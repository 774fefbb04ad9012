(ns ^:no-doc bpfmap.impl.memory.view
  "Mapped memory as typed values.

  In order: views of cells, structs and arrays; making them; reading; writing; printing; bulk
  copies; parallel folds."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.codec.error :as codec.error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.memory :as kernel.memory]
            [bpfmap.impl.memory.bytes :as memory.bytes :refer [accessing]]
            [bpfmap.impl.memory.layout :as layout]
            [bpfmap.impl.memory.reducing :as reducing]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.type :as type]
            [clojure.core.reducers :as reducers]
            [clojure.string :as str])
  (:import (bpfmap.impl.memory.bytes Memory Source)
           (bpfmap.impl.memory.reducing FloatRow IntegerRow)
           (bpfmap.sys AtomicType Blocks TypeCodec)
           (clojure.lang ArityException Counted ExceptionInfo IDeref IFn ILookup IReduce
                         IReduceInit Indexed Seqable)
           (java.lang.foreign MemorySegment)
           (java.util.concurrent ForkJoinTask)))

(set! *warn-on-reflection* true)

;; --- views

(declare make element-view text element field reduce-range overwrite overwrite-cell)

(defprotocol View
  "A typed view of memory."
  (layout-of [view] "Returns its layout.")
  (place [view]
    "Returns its place: `{:source :segment :offset :path}`.

    `:path` leads from the first view to this one, the last key first.")
  (part [view k] "Returns a view of an element or field; nil if there is none."))

(defprotocol Writable
  "A place to which a value can be written.

  A view, or a variable that is not mapped."
  (write [place x]
    "Writes a value, or nothing if the value does not fit."))

(defprotocol WritableBySyscall
  "A place that is not mapped, and written by system calls."
  (write-part [place path x] "Writes a value to the part that a path leads to."))

;; `segment` is all of the map's memory, `offset` the place of the view in it. `atomic` is the
;; `bpfmap.sys.AtomicType` of a number that the processor accesses atomically; else nil.
(deftype Cell
         [^Source source ^MemorySegment segment ^long offset layout ^TypeCodec codec path
          ^AtomicType atomic]
  View
  (layout-of [_] layout)
  (place [_] {:source source :segment segment :offset offset :path path})
  (part [_ _] nil)
  Writable
  (write [this x] (overwrite-cell this x))
  IDeref
  (deref [_]
    (accessing [source :deref]
      (.decode codec segment offset)))
  Object
  (toString [this] (text this)))

(deftype StructView
         [^Source source ^MemorySegment segment ^long offset layout ^TypeCodec codec path]
  View
  (layout-of [_] layout)
  (place [_] {:source source :segment segment :offset offset :path path})
  (part [_ k]
    (when-let [{at :offset member :layout} (get (:members layout) k)]
      (make source segment (+ offset (long at)) @member (cons k path))))
  Writable
  (write [this x] (overwrite this x))
  ILookup
  (valAt [this k] (field this k nil))
  (valAt [this k not-found] (field this k not-found))
  IFn
  (invoke [this k] (field this k nil))
  (invoke [this k not-found] (field this k not-found))
  (applyTo [this args]
    (case (int (bounded-count 3 args))
      1 (field this (first args) nil)
      2 (field this (first args) (second args))
      (throw (ArityException. (bounded-count 20 args) "StructView"))))
  IDeref
  (deref [_]
    (accessing [source :deref]
      (.decode codec segment offset)))
  Object
  (toString [this] (text this)))

;; `numbers` is a row of the elements for `bpfmap.impl.memory.reducing` and bulk copies; nil if they
;; are not numbers. `atomic` is that field of each element as a cell; nil if they are not cells or
;; not all alike.
(deftype ArrayView
         [^Source source ^MemorySegment segment ^long offset ^long stride ^long n layout
          ^TypeCodec codec path numbers ^AtomicType atomic]
  View
  (layout-of [_] layout)
  (place [_] {:source source :segment segment :offset offset :path path})
  (part [this k]
    (when (and (int? k) (<= 0 (long k)) (< (long k) n))
      (element-view this k)))
  Writable
  (write [this x] (overwrite this x))
  Counted
  (count [_]
    (if (<= n Integer/MAX_VALUE)
      (int n)
      (throw (error/error :out-of-range
                          (str "The view has " n " elements, more than Clojure counts")
                          (memory.bytes/data source :count nil)))))
  Indexed
  (nth [this i] (element this i))
  (nth [this i not-found] (.valAt this i not-found))
  ILookup
  (valAt [this k] (.valAt this k nil))
  (valAt [this k not-found]
    (if (and (int? k) (<= 0 (long k)) (< (long k) n)) (element this k) not-found))
  IFn
  (invoke [this k] (element this k))
  (invoke [this k not-found] (.valAt this k not-found))
  (applyTo [this args]
    (case (int (bounded-count 3 args))
      1 (element this (first args))
      2 (.valAt this (first args) (second args))
      (throw (ArityException. (bounded-count 20 args) "ArrayView"))))
  IReduceInit
  (reduce [this f init] (reduce-range this f init 0 n))
  IReduce
  (reduce [this f]
    (if (zero? n)
      (f)
      (reduce-range this f (element this 0) 1 n)))
  Seqable
  (seq [this] (seq (into [] this)))
  IDeref
  (deref [this]
    (if (:whole layout)
      (accessing [source :deref]
        (.decode (layout/codec-of layout) segment offset))
      (into [] this)))
  Object
  (toString [this] (text this)))

(defmethod print-method Cell [v ^java.io.Writer w] (.write w (str v)))
(defmethod print-method StructView [v ^java.io.Writer w] (.write w (str v)))
(defmethod print-method ArrayView [v ^java.io.Writer w] (.write w (str v)))

(defn view?
  "Returns true if x is a view."
  [x]
  (instance? bpfmap.impl.memory.view.View x))

;; --- making views

(defn- atomic-here
  "Returns `atomic` of a cell: its layout's, or nil if the cell is not aligned."
  ^AtomicType [^MemorySegment segment ^long offset layout]
  (when-some [^AtomicType atomic (:atomic layout)]
    (when (.isAligned atomic (+ (.address segment) offset))
      atomic)))

(defn- numbers
  "Returns the elements of an array as a row of numbers; nil for other elements."
  [segment offset stride {:keys [integer float]}]
  (cond
    integer (IntegerRow. segment offset stride (:size integer) (:signed integer) (:swap integer))
    float (FloatRow. segment offset stride (:size float) (:swap float))))

(defn- make
  "Returns a view of a layout, which lies within the memory."
  [source segment offset layout path]
  (let [kind (:kind layout)]
    (cond
      (identical? :cell kind) (Cell. source segment offset layout (:codec layout) path
                                     (atomic-here segment offset layout))
      (identical? :struct kind) (StructView. source segment offset layout (:codec layout) path)
      :else (let [{:keys [element count stride]} layout]
              (ArrayView. source segment offset stride count layout (layout/codec-of element) path
                          (numbers segment offset stride element)
                          (when (and (identical? :cell (:kind element))
                                     (zero? (rem (long stride) (layout/size-of element))))
                            (atomic-here segment offset element)))))))

(defn- element-view
  "Returns a view of an element, whose index is valid."
  [^ArrayView v ^long i]
  (let [offset (+ (.-offset v) (* i (.-stride v)))
        layout (:element (.-layout v))
        path (cons i (.-path v))]
    (if (nil? (.-atomic v))
      (make (.-source v) (.-segment v) offset layout path)
      (Cell. (.-source v) (.-segment v) offset layout (.-codec v) path (.-atomic v)))))

(defn over
  "Returns a view of a layout at an offset of memory.

  Throws `:out-of-range` if it does not fit."
  [^Memory m layout offset op]
  (let [^Source source (.-source m)
        at (memory.bytes/within source op offset (layout/size-of layout)
                                (.byteSize ^MemorySegment (.-segment m)))]
    (make source (memory.bytes/segment source) (+ (.-from m) (long at)) layout nil)))

(defn over-copy
  "Returns a view of a layout at an offset of a byte array, a copy of map memory.

  `path` leads to it, the last key first."
  [identity ^bytes array layout offset path]
  (make (Source. nil identity (alength array) false nil) (MemorySegment/ofArray array) (long offset)
        layout path))

(defn- summary
  "Returns the type of a layout in short."
  [{:keys [kind type element count] whole? :whole}]
  (if (and (= :array kind) (not whole?))
    (str "[:array " (type/summary (:type element)) " " count "]")
    (type/summary type)))

(defn- no-part ^Throwable [v k op]
  (let [{:keys [source]} (place v)
        {:keys [kind count members] :as layout} (layout-of v)
        what (str (error/printed k) " of " (summary layout) " in the memory of "
                  (memory.bytes/described source))]
    (case kind
      :array (if (integer? k)
               (error/error :out-of-range (str "No element " what)
                            (memory.bytes/data source op {:bpfmap/hint (if (zero? (long count))
                                                                         "it has no elements"
                                                                         (str "elements are 0 to "
                                                                              (dec
                                                                               (long count))))}))
               (memory.bytes/invalid source op (str "No element " what)
                                     "use the index of an element"))
      :struct (memory.bytes/invalid source op (str "No field " what)
                                    (nearest/alternatives k (keys members)))
      (memory.bytes/invalid source op (str "No part " what) "it has no parts"))))

(defn check
  "Returns x if it is a view; else throws `:invalid-value` or `:not-supported`."
  [x op]
  (cond
    (view? x) x
    (satisfies? Writable x)
    (throw (error/error :not-supported (str "The view must be in memory, got " x)
                        {:bpfmap/op op
                         :bpfmap/hint "use @, get or write!, which make system calls"}))
    :else
    (throw (error/error :invalid-value (str "The argument must be a view, got "
                                            (error/printed x))
                        {:bpfmap/op op
                         :bpfmap/hint "pass a result of view, elements or variables"}))))

(defn- part-of [v k op]
  (or (part v k) (throw (no-part v k op))))

(defn at
  "Returns a view of the part that a path leads to: a key, or a vector of keys."
  [v path op]
  (let [v (check v op)]
    (if (vector? path)
      (reduce #(part-of %1 %2 op) v path)
      (part-of v path op))))

;; --- reading

(defn- element [^ArrayView v i]
  (if (and (int? i) (<= 0 (long i)) (< (long i) (.-n v)))
    (accessing [(.-source v) :nth]
      (.decode ^TypeCodec (.-codec v) (.-segment v)
               (+ (.-offset v) (* (long i) (.-stride v)))))
    (throw (no-part v i :nth))))

(defn- field [^StructView v k not-found]
  (if-let [p (part v k)]
    @p
    not-found))

(defn reduce-range
  "Reduces over the elements with an index from `from` up to `to`."
  [^ArrayView v f init from to]
  (let [numbers (.-numbers v)]
    (accessing [(.-source v) :reduce]
      (cond
        (instance? IntegerRow numbers) (reducing/over-integers numbers f init from to)
        (instance? FloatRow numbers) (reducing/over-floats numbers f init from to)
        :else (let [^TypeCodec codec (.-codec v)
                    segment (.-segment v)
                    offset (.-offset v)
                    stride (.-stride v)]
                (reducing/over-elements (fn [^long i]
                                          (.decode codec segment (+ offset (* i stride)))) f init
                                        from to))))))

;; --- writing

(defn failed
  "Returns the exception of a write with the whole path, the operation and the map.

  The last key of `path` comes first."
  ^Throwable [^Throwable e identity op path]
  (call/in-context (if (seq path) (codec.error/deeper e (vec (reverse (rest path))) (first path)) e)
    {:op op :map identity}))

(defn- write-elements
  "Writes all elements of a view with a stride larger than its elements.

  All are encoded before the first is written."
  [^ArrayView v xs segment]
  (let [codec (.-codec v)
        n (.-n v)]
    (when-not (and (sequential? xs) (= n (bounded-count (inc n) xs)))
      (throw (codec.error/misfit (:type (.-layout v)) [] xs
                                 (str "it must be a sequence of " n " elements"))))
    (kernel.memory/encode-each codec xs segment (.-offset v) (.-stride v))))

(defn- overwrite [v x]
  (let [{:keys [source segment offset path]} (place v)
        {:keys [codec] private? :private :as layout} (layout-of v)]
    (memory.bytes/check-writable source :write! segment)
    (when private?
      (throw (memory.bytes/invalid source :write!
                                   (str "A " (type/summary (:type layout))
                                        " must not be written as a whole")
                                   (str "the kernel has a private part in it, such as a spin lock; "
                                        "write its other fields one by one"))))
    (accessing [source :write!]
      (try
        (if codec
          (kernel.memory/encode-whole codec x segment offset)
          (write-elements v x segment))
        (catch ExceptionInfo e
          (throw (failed e (.-identity ^Source source) :write! path)))))
    v))

(defn- overwrite-cell [^Cell c x]
  (if (:at-once (.-layout c))
    (let [^MemorySegment segment (.-segment c)]
      (memory.bytes/check-writable (.-source c) :write! segment)
      (try
        (.encode ^TypeCodec (.-codec c) x segment (.-offset c))
        c
        (catch ExceptionInfo e
          (throw (failed e (.-identity ^Source (.-source c)) :write! (.-path c))))
        (catch IllegalStateException e (throw (memory.bytes/failed (.-source c) :write! e)))))
    (overwrite c x)))

;; --- printing

(def ^:private ^:const max-printed "Bytes of the largest struct that is printed." 512)

(defn- printed-count
  "Returns the number of elements to print: up to eight small ones, or one."
  [{:keys [count element]}]
  (min (long count) (max 1 (min 8 (quot 64 (max 1 (layout/size-of element)))))))

(defn- content
  "Returns the text of the value of a view; nil if it is too large."
  [v]
  (let [{:keys [kind count element] whole? :whole :as layout} (layout-of v)]
    (if (and (= :array kind) (not whole?))
      (when (<= (layout/size-of element) max-printed)
        (let [n (printed-count layout)]
          (str "[" (str/join " " (map #(pr-str (error/unsuffixed (nth v %))) (range n)))
               (when (< n (long count)) " …") "]")))
      (when (<= (layout/size-of layout) max-printed)
        (pr-str (error/unsuffixed @v))))))

(defn- text ^String [v]
  (let [{:keys [^Source source ^MemorySegment segment offset]} (place v)]
    (str "#<bpf-view " (summary (layout-of v)) " at " offset " of " (memory.bytes/described source)
         (when (.isReadOnly segment) ", read-only")
         (try
           (cond
             (memory.bytes/source-closed? source) ", closed"
             (.-quiet? source) ""
             :else (when-let [shown (content v)] (str ": " shown)))
           (catch ExceptionInfo _ ", closed"))
         ">")))

;; --- bulk copies

(defn array-view?
  "Returns true if x is a view of an array."
  [x]
  (instance? ArrayView x))

(defn- check-numbers
  "Throws if the elements are not numbers."
  [^ArrayView v op]
  (when-not (.-numbers v)
    (throw (memory.bytes/invalid (.-source v) op
                                 (str "Elements must be integers of up to 8 bytes or "
                                      "floating-point numbers, got type "
                                      (type/summary (:type (:element (.-layout v)))))
                                 nil))))

(def ^:private integer-arrays
  {1 ["a byte array" bytes?], 2 ["a short array" #(instance? short/1 %)]
   4 ["an int array" #(instance? int/1 %)]
   8 ["a long array" #(instance? long/1 %)]})

(def ^:private float-arrays
  {4 ["a float array" #(instance? float/1 %)], 8 ["a double array" #(instance? double/1 %)]})

(defn- array-type
  "Returns the array type with elements of a view's size, as `[name test]`.

  Returns nil for numbers in another byte order than the processor's."
  [^ArrayView v]
  (let [{:keys [integer float]} (:element (.-layout v))
        {:keys [size swap]} (or integer float)]
    (when-not swap
      ((if integer integer-arrays float-arrays) size))))

(defn- check-array-type
  "Throws for an array that cannot hold the elements unconverted.

  `widest` is another type that is accepted, for the error."
  [^ArrayView v op array widest]
  (let [[summary fits?] (array-type v)
        accepted (seq (distinct (remove nil? [summary widest])))
        got (error/printed array)]
    (when-not (and fits? (fits? array))
      (throw (if accepted
               (memory.bytes/invalid (.-source v) op
                                     (str "The array must be " (error/list-of accepted) ", got "
                                          got)
                                     nil)
               (memory.bytes/invalid (.-source v) op
                                     (str "The elements cannot be copied from an array, got " got)
                                     (str "their byte order is not the processor's; "
                                          "use write!")))))))

(defn- fits?
  "Returns true if n elements from index `at` on are within `total`."
  [at n ^long total]
  (and (int? at) (int? n) (<= 0 (long at)) (<= 0 (long n)) (<= (long at) (- total (long n)))))

(defn- check-copy
  "Returns the number of elements to copy, checked against view and array."
  [^ArrayView v op from array start n]
  (let [length (long (java.lang.reflect.Array/getLength array))
        n (or n (if (int? start) (max 0 (- length (long start))) 0))
        refuse (fn [at total of]
                 (error/error :out-of-range
                              (str (if (= 1 n) "1 element" (str (error/printed n) " elements"))
                                   " from "
                                   (error/printed at) " of " of " " total)
                              (memory.bytes/data (.-source v) op nil)))]
    (cond
      (not (fits? from n (.-n v))) (throw (refuse from (.-n v) "a view of"))
      (not (fits? start n length)) (throw (refuse start length "an array of"))
      :else n)))

(defn copy-to
  "Reads elements, from index `from` on, into an array."
  [^ArrayView v from array start n]
  (check-numbers v :copy-to)
  (let [numbers (.-numbers v)
        integers? (instance? IntegerRow numbers)
        converted? (if integers? (instance? long/1 array) (instance? double/1 array))
        _ (when-not converted?
            (check-array-type v :copy-to array (if integers? "a long array" "a double array")))
        n (long (check-copy v :copy-to from array start n))
        ^MemorySegment segment (.-segment v)
        stride (.-stride v)
        offset (+ (.-offset v) (* (long from) stride))]
    (accessing [(.-source v) :copy-to]
      (cond
        (not converted?) (Blocks/copyOut segment offset stride array (int start) (int n))
        integers? (let [^IntegerRow xs numbers]
                    (Blocks/longs segment offset stride (int (.-size xs)) (boolean (.-signed xs))
                                  (boolean (.-swap xs))
                                  ^longs array (int start) (int n)))
        :else (let [^FloatRow xs numbers]
                (Blocks/doubles segment offset stride (int (.-size xs)) (boolean (.-swap xs))
                                ^doubles array (int start) (int n))))
      array)))

(defn copy-from
  "Writes elements, from index `from` on, from an array of elements of their size."
  [^ArrayView v from array start n]
  (check-numbers v :copy-from)
  (check-array-type v :copy-from array nil)
  (let [n (long (check-copy v :copy-from from array start n))
        ^MemorySegment segment (.-segment v)
        stride (.-stride v)]
    (memory.bytes/check-writable (.-source v) :copy-from segment)
    (accessing [(.-source v) :copy-from]
      (Blocks/copyIn array (int start) (int n) segment (+ (.-offset v) (* (long from) stride))
                     stride)
      v)))

(defn ->array
  "Returns all elements in a new array of longs or doubles."
  [^ArrayView v]
  (let [n (.-n v)
        integers? (instance? IntegerRow (.-numbers v))]
    (check-numbers v :->array)
    (when (< (- Integer/MAX_VALUE 8) n)
      (throw (error/error :out-of-range (str "A view of " n " elements is too large for an array")
                          (memory.bytes/data (.-source v) :->array
                                             {:bpfmap/hint "copy parts of it with copy-to"}))))
    (copy-to v 0 (if integers? (long-array n) (double-array n)) 0 n)))

;; --- parallel folds

(defn- fold
  "Folds a range: halves it until at most n elements are left, and forks one half."
  [v n combine f from to]
  (if (<= (- (long to) (long from)) (long n))
    (reduce-range v f (combine) from to)
    (let [middle (quot (+ (long from) (long to)) 2)
          right (.fork (ForkJoinTask/adapt ^Callable (fn [] (fold v n combine f middle to))))
          left (try
                 (fold v n combine f from middle)
                 (catch Throwable e
                   (.cancel right true)
                   (throw e)))]
      (combine left (.join right)))))

(extend-type ArrayView
  reducers/CollFold
  (coll-fold [v n combine f]
    (fold v (max 1 (long n)) combine f 0 (.-n v))))
