(ns ^:no-doc bpfmap.metrics.metric
  "Compiles a checked metric for the types of a map, and adds up its series from entries.

  A series is kept from one reading to the next, with the label values of its keys, so that a key
  that was there before needs no decoding. Entries with the same labels are added up."
  (:require [bpfmap.error :as error]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.query :as query]
            [bpfmap.impl.display.hints :as hints]
            [bpfmap.impl.field-path :as field-path]
            [bpfmap.impl.map-types :as map-types]
            [clojure.string :as str])
  (:import (bpfmap.bytes ByteView)
           (clojure.lang ExceptionInfo)
           (java.util ArrayList Arrays Collection Comparator HashMap List)
           (java.util.function DoubleUnaryOperator)
           (java.util.regex Matcher Pattern)))

(set! *warn-on-reflection* true)

;; --- series

(definterface SeriesOps
  (^boolean touch [^long n])
  (^long reading [])
  (add [^double x])
  (addSum [^double x])
  (^double total [])
  (^double sum [])
  (cached [])
  (keep [x]))

;; The mutable fields are used by one thread at a time: see `bpfmap.metrics.maps`.
(deftype Series [^List values
                 ^doubles counts
                 ^:unsynchronized-mutable ^long reading-number
                 ^:unsynchronized-mutable ^double of-total
                 ^:unsynchronized-mutable ^double of-sum
                 ^:unsynchronized-mutable kept]
  SeriesOps
  (touch [_ n]
    (if (== n reading-number)
      false
      (do
        (set! reading-number n)
        (set! of-total 0.0)
        (set! of-sum 0.0)
        (when counts (Arrays/fill counts 0.0))
        true)))
  (reading [_] reading-number)
  (add [_ x] (set! of-total (+ of-total x)))
  (addSum [_ x] (set! of-sum (+ of-sum x)))
  (total [_] of-total)
  (sum [_] of-sum)
  (cached [_] kept)
  (keep [_ x] (set! kept x)))

(deftype Slot
  [^Series series ^long index])

;; --- fields

(defn- refused [message hint]
  (error/error :usage message {:bpfmap/op :metrics :bpfmap/hint hint}))

(defn- getter
  "Returns a function from a key or value to its field at the keys of a path."
  [ks]
  (let [step (fn [k] (if (int? k) #(nth % k nil) #(get % k)))]
    (case (count ks)
      0 identity
      1 (step (first ks))
      (apply comp (reverse (map step ks))))))

(defn- untyped
  "Returns the rest of a hint about fields if a side has only bytes, or nil."
  [sides]
  (when-let [found (seq (for [side [:key :value] :when (= :bytes (:kind (get sides side)))]
                          (str ":" (name side) "-type")))]
    (str "; give " (str/join " and " found) " if the map has no BTF")))

(defn- place
  "Returns the field at a path as `{:side :keys :node :get :path}`.

  Throws `:usage` for an unknown field, and for one in the elements of an array."
  [sides path]
  (let [[side ks node] (try
                         (hints/find-field sides path)
                         (catch ExceptionInfo e
                           (let [{:bpfmap/keys [hint]} (ex-data e)]
                             (throw (refused (str "Unknown field " (field-path/path-text path))
                                             (str hint (untyped sides)))))))
        within (fn within [{:keys [kind element] :as node} ks]
                 (when-let [[k & more] (seq ks)]
                   (cond
                     (and (= :array kind) (not (int? k)))
                     (throw (refused (str "The field " (field-path/path-text path)
                                          " is in each element of an array")
                                     "name an element, such as slots.0.count"))
                     (= :array kind) (recur element more)
                     :else (recur (some (fn [{:keys [name node]}] (when (= k name) node))
                                        (:members node))
                                  more))))]
    (within (get sides side) ks)
    {:side side :keys ks :node node :get (getter ks) :path path}))

(defn- number-kind? [{:keys [kind]}]
  (contains? #{nil :via :integer :pointer :float :bool :enum} kind))

(defn- check-number [{:keys [node path side] ks :keys} what]
  (when-not (number-kind? node)
    (throw (refused (str "The field " (field-path/path-text path) " must be a number for " what
                         ", got " (hints/type-text node))
                    (cond
                      (seq (:members node))
                      (str "name one of its fields, such as "
                           (field-path/path-text
                            (conj (vec path) (subs (str (some :name (:members node))) 1))))
                      (and (= :bytes (:kind node)) (empty? ks))
                      (str "give :" (name side) "-type, such as :u64"))))))

(defn- number-of
  "Returns a value as a number, or nil."
  [x values]
  (cond
    (number? x) x
    (boolean? x) (if x 1 0)
    (keyword? x) (get values x)))

;; --- texts of labels

(defn- text [x]
  (cond
    (string? x) x
    (nil? x) ""
    (keyword? x) (subs (str x) 1)
    (vector? x) (str/join "\n" (map text x))
    (coll? x) (error/printed x)
    :else (str x)))

(defn- stack
  "Returns an array of addresses without the zeros at its end."
  [x]
  (if (and (vector? x) (seq x) (every? integer? x))
    (let [last-one (some #(when-not (zero? (nth x %)) %) (range (dec (count x)) -1 -1))
          n (if last-one (inc (long last-one)) 0)]
      (if (= n (count x)) x (subvec x 0 n)))
    x))

(defn- matched
  "Returns the part of a text that the first matching pattern selects.

  Returns nil if none matches."
  [patterns s]
  (some (fn [^Pattern pattern]
          (let [m (re-matcher pattern s)]
            (when (.find ^Matcher m)
              (if (pos? (.groupCount m)) (or (.group m 1) "") (.group m)))))
        patterns))

(defn- label-reader
  "Returns a function from an entry's side and the entry to the text of a label.

  The function returns nil for an entry to leave out."
  [{:keys [side get]
    ks :keys} {:keys [names unknown match]} places]
  (let [show (some (fn [place] (when (= ks (:keys place)) (:show place)))
                   (clojure.core/get places side))
        array? (boolean show)
        unknown (or unknown :keep)]
    (fn [key value]
      (let [x (get (if (= :key side) key value))
            x (if show (show (stack x) {:key key :value value}) x)
            s (if (and match array? (vector? x))
                (let [parts (map #(matched match (text %)) x)]
                  (when (every? some? parts) (str/join "\n" parts)))
                (let [s (text x)] (if match (matched match s) s)))]
        (when s
          (if names
            (or (clojure.core/get names s)
                (case unknown
                  :keep s
                  :drop nil
                  (str/replace unknown "%s" (Matcher/quoteReplacement s))))
            s))))))

;; --- scale

(defn- decimal
  "Returns the decimal number that is printed for a number."
  ^BigDecimal [x]
  (if (or (integer? x) (decimal? x))
    (bigdec x)
    (let [x (double x)]
      ;; A large double prints fewer digits than it has.
      (if (== x (Math/rint x)) (BigDecimal. x) (BigDecimal/valueOf x)))))

(defn- product
  "Returns the double nearest to the product of two numbers as they are printed.

  The product of the doubles 10 and 1.5e-6 is 1.4999999999999999e-5."
  ^double [x y]
  (.doubleValue (.multiply (decimal x) (decimal y))))

(defn- scaling
  "Returns the function that multiplies a double by the `:scale` of a metric.

  Division by an integer is exact to the last digit, and faster than decimal numbers."
  ^DoubleUnaryOperator [scale]
  (let [scale (or scale 1)
        divisor (/ 1.0 (double scale))
        exact? (fn [^double x] (and (== x (Math/rint x)) (< (abs x) 9007199254740992.0)))
        divides? (and (exact? divisor) (or (ratio? scale) (== 1 (product scale divisor))))]
    (reify DoubleUnaryOperator
      (applyAsDouble [_ x]
        (cond
          (not (Double/isFinite x)) x
          (and divides? (exact? x)) (/ x divisor)
          (ratio? scale) (* x (double scale))
          :else (product x scale))))))

;; --- buckets

(defn- upper-limits
  "Returns a function from the number of a bucket to its upper limit.

  `:scale` is not in it."
  [{:keys [slots linear bounds]}]
  (cond
    bounds #(nth bounds % ##Inf)
    linear (let [shift (if (= :bpftrace slots) 1 0)]
             (fn [n] (let [n (- (long n) shift)]
                       (if (neg? n)
                         -1
                         (if (integer? linear)
                           (dec (* (inc n) linear))
                           (product (inc n) linear))))))
    :else (let [power #(Math/scalb 1.0 (int %))]
            (case (or slots :log2)
              :log2 (fn [n] (dec (power (inc (long n)))))
              :exp2 power
              :exp2zero (fn [n] (if (zero? (long n)) 0 (power (dec (long n)))))
              :bcc (fn [n] (dec (power n)))
              :bpftrace (fn [n] (if (zero? (long n)) -1 (dec (power (dec (long n))))))))))

(defn- layout
  "Returns the buckets of a histogram: `{:bounds doubles :index function}`.

  `:index` returns the index of the number of a bucket in the counts. The last count is for values
  above all bounds. `length` is the number of buckets of an array, or nil."
  [{:keys [slots bounds scale] from :first, to :last, :as metric} length]
  (let [from (long (or from 0))
        to (long (or to
                     (when bounds (dec (count bounds)))
                     (when length (dec (long length)))
                     (throw (refused "The histogram must have :last, the number of its last bucket"
                                     "such as :last 26"))))
        scale (scaling scale)
        upper (upper-limits metric)
        limits (into [] (take-while #(not= ##Inf %)) (map upper (range from (inc to))))
        n (count limits)
        limits (double-array (map #(.applyAsDouble scale (double %)) limits))]
    {:bounds limits
     :index (if (= :limit slots)
              (let [given (double-array bounds)]
                (fn [x]
                  (let [i (Arrays/binarySearch given (double x))]
                    (if (neg? i) (- (inc i)) i))))
              ;; The number of a bucket may be any that another program has written.
              (fn [x] (let [i (-' x from)]
                        (cond (< n i) n (pos? i) (long i) :else 0))))}))

(defn- array-length [{:keys [node]}]
  (when (= :array (:kind node)) (:count node)))

(defn- slots-place
  "Returns the place of the array of counts in a value, or nil."
  [{:keys [value]}]
  (let [counts? (fn [{:keys [kind element]}] (and (= :array kind) (= :integer (:kind element))))
        found (filter (comp counts? :node) (:members value))]
    (cond
      (counts? value) {:side :value :keys [] :node value :get identity :path ["value"]}
      (seq found) (let [member (or (some #(when (= :slots (:name %)) %) found)
                                   (when-not (next found) (first found)))]
                    (when member
                      {:side :value :keys [(:name member)] :node (:node member)
                       :get (getter [(:name member)])
                       :path ["value" (subs (str (:name member)) 1)]})))))

(defn- bucket-place
  "Returns the place of the buckets, or of their numbers, of a histogram."
  [{:keys [bucket]} {:keys [key] :as sides}]
  (let [found (cond
                bucket (place sides bucket)
                (slots-place sides) (slots-place sides)
                (= :integer (:kind key)) (place sides ["key"]))]
    (cond
      (nil? found) (throw (refused "The map has no buckets according to its types"
                                   "name the field that has them with :bucket"))
      (= :array (:kind (:node found))) found
      (not= :key (:side found))
      (throw (refused (str "The field " (field-path/path-text (:path found))
                           " must be in the key, or an array of counts")
                      "such as :bucket \"key.slot\" or \"value.slots\""))
      :else (do (check-number found "buckets") found))))

;; --- per-CPU values

(defn- summing
  "Returns a function of a per-CPU value that adds up the numbers of f.

  It returns nil if one of them is nil."
  [f]
  (fn [values]
    (reduce (fn [sum x]
              (let [n (f x)]
                (if (nil? n) (reduced nil) (+' sum n))))
            0 values)))

;; --- compiling

(defn- check-hints
  "Throws `:usage` for a hint of a field that no label has."
  [compiled label-places]
  (let [used (set (map (juxt :side :keys) label-places))]
    (doseq [[side places] compiled
            {:keys [path] ks :keys} places]
      (when-not (used [side ks])
        (throw (refused (str "The hint for " (field-path/path-text path)
                             " must be for the field of a label")
                        nil))))))

(defn- in-usage
  "Calls f; its errors about hints and fields become `:usage`."
  [f]
  (try
    (f)
    (catch ExceptionInfo e
      (let [{:bpfmap/keys [error hint]} (ex-data e)
            message (ex-message e)]
        (throw (if (= :invalid-value error)
                 (refused (cond-> message hint (str/replace (str ": " hint) "")) hint)
                 e))))))

(defn- value-place
  "Returns the place of a metric's number in the values of a map, or nil.

  A histogram whose buckets are an array has its numbers there."
  [{:keys [value]} sides in-array]
  (let [found (if value
                (place sides value)
                (when-let [node (:value sides)]
                  {:side :value :keys [] :node node :get identity :path ["value"]}))]
    (when (and found (not in-array))
      (check-number found "a metric"))
    (when (= :key (:side found))
      (throw (refused (str "The field " (field-path/path-text (:path found))
                           " must be in the value")
                      nil)))
    found))

(defn- sum-place [{:keys [sum]} sides]
  (when (vector? sum)
    (doto (place sides sum) (check-number ":sum"))))

(defn- per-cpu-of
  "Returns how the values of a per-CPU map are read, or nil for other maps.

  `:sum`, `:each` or the number of a CPU."
  [{:keys [cpus]} map-type {:keys [check-cpu]}]
  (let [cpus (or cpus :sum)
        per-cpu? (:per-cpu (map-types/types map-type))]
    (check-cpu cpus)
    (when (and (= :each cpus) (not per-cpu?))
      (throw (refused "The map is not a per-CPU map" "leave :cpus out")))
    (when per-cpu? cpus)))

(defn- label-readers
  "Returns how labels are read: `{:names :readers :by-value}`.

  `:by-value` is true if one of them is a field of the value, so that it can change."
  [{:keys [labels as]} sides cpus context]
  (let [labels (sort-by first labels) ; the library sorts labels by name, too
        places (mapv (fn [[_ {:keys [field]}]] (place sides field)) labels)
        compiled (in-usage #(hints/compile (mapcat identity as) sides context))
        by-value (boolean (some #(= :value (:side %)) places))]
    (check-hints compiled places)
    (when (and by-value cpus (not (int? cpus)))
      (throw (refused "Labels of a per-CPU map must be fields of the key"
                      "or select a CPU with :cpus")))
    {:names (mapv first labels)
     :readers (mapv (fn [place [_ label]] (label-reader place label compiled)) places labels)
     :by-value by-value}))

(defn- number-plan
  "Returns the part of a [[plan]] about the number or the buckets."
  [{:keys [type] :as metric} sides]
  (let [bucket (when (= :histogram type) (bucket-place metric sides))
        in-array (= :array (get-in bucket [:node :kind]))
        {:keys [bounds index]} (when bucket (layout metric (array-length bucket)))
        {get-value :get node :node} (value-place metric sides in-array)]
    {:bucket bucket :in-array in-array :bounds bounds :index index
     :value-of get-value
     :number-of (fn [x] (number-of (get-value x) (:values node)))}))

(defn- plan
  "Returns where a metric finds its numbers and labels in the entries of a map.

  | key           | meaning                                                                |
  |---------------|------------------------------------------------------------------------|
  | `:cpus`       | see [[per-cpu-of]]                                                     |
  | `:bucket`     | the place of the buckets of a histogram, or of their numbers           |
  | `:in-array`   | true if the buckets are an array of counts in the value                |
  | `:bounds` `:index` | see [[layout]]                                                    |
  | `:value-of`   | a function of one value to the field with the number                   |
  | `:number-of`  | a function of one value to the number, or nil                          |
  | `:sum-of`     | a function of one value to the sum of a histogram, or nil              |
  | `:pick`       | a function of the values of all CPUs to that of the CPU in `:cpus`     |
  | `:names` `:readers` `:by-value` | see [[label-readers]]                                |

  Throws `:usage` if the metric does not fit the types."
  [metric {map-type :type :as spec} {:keys [picker] :as context}]
  (let [cpus (per-cpu-of metric map-type context)
        sides (hints/sides spec)
        {get-sum :get} (sum-place metric sides)]
    (merge {:cpus cpus
            :sum-of (when get-sum (fn [x] (number-of (get-sum x) nil)))
            :pick (when (int? cpus) (picker cpus))}
           (number-plan metric sides)
           (label-readers metric sides cpus context))))

;; --- the state of a metric

(defn- new-state
  "Returns the mutable part of a compiled metric.

  `:series` has the series by label values, `:slots` those of keys. `:tally` has how many series are
  in the reading, and how many are not in the order yet."
  []
  {:series (HashMap.) :slots (HashMap.) :tally (long-array 2) :order (volatile! nil)
   :dropped (volatile! 0) :invalid (volatile! 0)})

(defn- touch
  "Counts a series that is in reading n for the first time."
  [^longs tally ^Series s ^long n]
  (when (.touch s n)
    (aset tally 0 (inc (aget tally 0))))
  nil)

(defn- series-finder
  "Returns a function from label values to their series; nil above the limit."
  [{:keys [limit]} {:keys [bounds]} {:keys [^HashMap series ^longs tally dropped]}]
  (let [buckets (when bounds (inc (alength ^doubles bounds)))]
    (fn [^List label-values]
      (or (.get series label-values)
          (if (< (.size series) (long limit))
            (let [new-series (Series. label-values (when buckets (double-array buckets))
                                      0 0.0 0.0 nil)]
              (.put series label-values new-series)
              (aset tally 1 (inc (aget tally 1)))
              new-series)
            (do (vswap! dropped inc) nil))))))

;; --- entries

(defn- labels-of
  "Returns a function from an entry to its label values.

  It returns nil for an entry to leave out."
  [{:keys [readers]}]
  (let [n (count readers)]
    (fn [key value]
      (let [all (ArrayList. n)]
        (loop [i 0]
          (if (< i n)
            (let [s ((nth readers i) key value)]
              (when (some? s) (.add all s) (recur (inc i))))
            all))))))

(defn- bucket-index
  "Returns a function from a key to the index of its bucket in the counts.

  It returns -1 if the number is the total, -2 if it is the sum, and `::invalid` for a key that has
  no number."
  [{:keys [sum]} {:keys [bucket in-array index]}]
  (if (or (nil? bucket) in-array)
    (constantly -1)
    (let [{:keys [get node]} bucket]
      (fn [key]
        (let [n (number-of (get key) (:values node))]
          (cond
            (nil? n) ::invalid
            (and (int? sum) (== sum n)) -2
            :else (index n)))))))

(defn- accepter
  "Returns a predicate for the entries that `:where` selects, or nil without it."
  [{:keys [where]} spec {:keys [cpus pick]} {:keys [picker]}]
  (when where
    (let [merged (cond pick pick (= :sum cpus) (picker :sum) :else identity)
          row-fields (fields/of-entries spec (if (= :each cpus) :each :sum))
          step ((query/selecting {:where where :fields row-fields})
                (fn ([found] found) ([_ _] true)))]
      (fn [key value]
        (true? (step nil {:key key :value (merged value)}))))))

(defn- number-adder
  "Returns a function that adds a number to a series, or to its bucket i."
  [{:keys [type]} {:keys [tally invalid]}]
  (let [gauge? (= :gauge type)]
    (fn [^Series s n i x]
      (let [i (long i)]
        (if (or (nil? x) (and (neg? (double x)) (not gauge?)))
          (vswap! invalid inc)
          (do
            (touch tally s (long n))
            (cond
              (= -1 i) (.add s (double x))
              (= -2 i) (.addSum s (double x))
              :else (let [^doubles counts (.-counts s)]
                      (aset counts i (+ (aget counts i) (double x)))))))))))

(defn- counts-adder
  "Returns a function that adds an array of counts to the buckets of a series."
  [{:keys [sum]} {:keys [bucket index]}]
  (let [counts-of (:get bucket)]
    (fn [^Series s value]
      (let [^doubles counts (.-counts s)]
        (reduce (fn [n x]
                  (if (and (int? sum) (== (long sum) (long n)))
                    (.addSum s (double x))
                    (let [i (long (index n))]
                      (aset counts i (+ (aget counts i) (double x)))))
                  (inc (long n)))
                0 (counts-of value))))))

(defn- of-cpus
  "Returns a function of one value as a function of those of all CPUs.

  It takes the value of the selected CPU, or adds up the results for all."
  [f {:keys [cpus pick]}]
  (cond pick (comp f pick) cpus (summing f) :else f))

(defn- slot-adder
  "Returns a function that adds a value to the series of a slot, in reading n."
  [metric {:keys [cpus pick in-array sum-of] :as plan} {:keys [tally] :as state}]
  (let [number (of-cpus (:number-of plan) plan)
        sum (when sum-of (of-cpus sum-of plan))
        add-number (number-adder metric state)
        add-counts (when in-array (counts-adder metric plan))]
    (fn [^long n ^Slot slot value]
      (let [^Series s (.-series slot)]
        (if in-array
          (do
            (touch tally s n)
            (cond
              pick (add-counts s (pick value))
              cpus (run! #(add-counts s %) value)
              :else (add-counts s value)))
          (add-number s n (.-index slot) (number value)))
        (when sum
          (when-let [x (sum value)]
            (.addSum s (double x))))))))

(defn- cpu-adder
  "Returns a function that adds the value of each CPU to a series of its own.

  The label `cpu` has its number."
  [metric {:keys [names in-array number-of] :as plan} {:keys [tally invalid] :as state}
   {:keys [possible]}]
  (let [cpu-at (.indexOf ^List names "cpu")
        series-of (series-finder metric plan state)
        read-labels (labels-of plan)
        index-of (bucket-index metric plan)
        add-number (number-adder metric state)
        add-counts (when in-array (counts-adder metric plan))]
    (fn [^long n key value]
      (let [i (index-of key)]
        (when-let [^ArrayList label-values (read-labels key nil)]
          (dotimes [cpu (count value)]
            (let [all (doto (ArrayList. label-values)
                        (.add (int cpu-at) (str (nth possible cpu))))]
              (when-let [^Series s (series-of all)]
                (cond
                  in-array (do (touch tally s n) (add-counts s (nth value cpu)))
                  (= ::invalid i) (vswap! invalid inc)
                  :else (add-number s n i (number-of (nth value cpu))))))))))))

(defn- slot-finder
  "Returns a function from an entry to the slot that it belongs to, or nil."
  [metric plan {:keys [invalid] :as state}]
  (let [series-of (series-finder metric plan state)
        read-labels (labels-of plan)
        index-of (bucket-index metric plan)]
    (fn [key value]
      (let [i (index-of key)]
        (if (= ::invalid i)
          (do (vswap! invalid inc) nil)
          (when-let [label-values (read-labels key value)]
            (when-let [found (series-of label-values)]
              (Slot. found (long i)))))))))

(defn- cached-adder
  "Returns the adder that keeps the slots of keys.

  A key that was there before is not decoded."
  [metric plan {:keys [^HashMap slots dropped] :as state} accept? {:keys [key-out]}]
  (let [slot-of (slot-finder metric plan state)
        add-to (slot-adder metric plan state)
        known? (fn [found ^long n]
                 (and found (<= (dec n) (.reading ^Series (.-series ^Slot found)))))]
    (fn [^long n k value]
      (let [key (when accept? (key-out k))]
        (when (or (nil? accept?) (accept? key value))
          (let [found (.get slots k)]
            (cond
              (identical? ::skip found) nil
              (known? found n) (add-to n found value)
              :else
              (let [before @dropped]
                (if-let [slot (slot-of (or key (key-out k)) value)]
                  (do (.put slots k slot)
                      (add-to n slot value))
                  ;; One that was dropped may have room at the next reading.
                  (when (= before @dropped)
                    (.put slots k ::skip)))))))))))

(defn- decoding-adder
  "Returns the adder for labels in the value.

  The slot of a key can be another one each time."
  [metric plan state accept? {:keys [key-out]}]
  (let [slot-of (slot-finder metric plan state)
        add-to (slot-adder metric plan state)]
    (fn [^long n k value]
      (let [key (key-out k)]
        (when (or (nil? accept?) (accept? key value))
          (when-let [slot (slot-of key value)]
            (add-to n slot value)))))))

(defn- plain-adder
  "Returns the adder for a metric that has only numbers by key.

  For most entries, a key that was there before has an integer again. Its series is in the place of
  its slot, one object less to look at. `add` is for the others."
  [{:keys [type]} {:keys [value-of]} {:keys [^HashMap slots tally]} add]
  (let [gauge? (= :gauge type)]
    (fn [^long n k value]
      (let [found (.get slots k)
            x (value-of value)]
        (if (and (instance? Series found) (<= (dec n) (.reading ^Series found))
                 (instance? Long x) (or gauge? (<= 0 (long x))))
          (do
            (touch tally found n)
            (.add ^Series found (double (long x))))
          (do
            (when (instance? Series found) (.remove slots k))
            (add n k value)
            (let [slot (.get slots k)]
              (when (instance? Slot slot) (.put slots k (.-series ^Slot slot))))))))))

(defn- adder
  "Returns the function that adds an entry in reading n."
  [metric {:keys [cpus bucket by-value sum-of] :as plan} state accept?
   {:keys [key-out] :as context}]
  (cond
    (= :each cpus)
    (let [add (cpu-adder metric plan state context)]
      (fn [^long n k value]
        (let [key (key-out k)]
          (when (or (nil? accept?) (accept? key value))
            (add n key value)))))

    by-value (decoding-adder metric plan state accept? context)

    :else
    (let [add (cached-adder metric plan state accept? context)]
      (if (or accept? cpus bucket sum-of)
        add
        (plain-adder metric plan state add)))))

(defn compile-metric
  "Returns what adds entries of a map to the series of a metric.

  The result is `{:add function :series HashMap :label-names names :bounds doubles :scale operator}`.
  `:add` is a function of the number of the reading, the key as a byte view, and the decoded value.
  `:scale` is for the totals and sums of series. `spec` is the spec of the map, `context` is for
  hints. Throws `:usage` if the metric does not fit the types.

      (compile-metric {:name \"hits\" :type :gauge} {:type :hash :key :u32 :value :u64} context)"
  [{:keys [sum scale] :as metric} spec context]
  (let [{:keys [cpus bounds] :as plan} (plan metric spec context)
        plan (cond-> plan
               (= :each cpus) (update :names #(vec (sort (conj % "cpu")))))
        state (new-state)]
    (assoc state
           :metric metric
           :label-names (:names plan)
           :bounds bounds
           :has-sum (some? sum)
           :scale (scaling scale)
           :add (adder metric plan state (accepter metric spec plan context) context))))

(defn misfits
  "Returns the messages about all that does not fit the types of a map in a metric.

  The arguments are those of [[compile-metric]], which throws one of them.

      (misfits {:name \"n\" :type :gauge :value [\"x\"]} {:type :hash :key :u32 :value :u64} context)
      ;=> [\"Unknown field x: the fields are key, value\"]"
  [{:keys [labels as where] :as metric} {map-type :type :as spec} context]
  (let [sides (hints/sides spec)
        parts (concat
               [#(per-cpu-of metric map-type context) #(number-plan metric sides)
                #(sum-place metric sides)]
               (for [[_ {:keys [field]}] labels] #(place sides field))
               (for [hint (mapcat identity as)]
                 #(in-usage (fn [] (hints/compile [hint] sides context))))
               [#(label-readers metric sides (per-cpu-of metric map-type context) context)]
               (for [condition where]
                 #(accepter (assoc metric :where [condition]) spec nil context))
               [#(compile-metric metric spec context)])]
    (into []
          (comp (keep (fn [part] (try (part) nil (catch ExceptionInfo e (ex-message e)))))
                (distinct))
          parts)))

;; --- a reading

(def ^:private by-labels
  (reify Comparator
    (compare [_ a b]
      (let [^List a (.-values ^Series a) ^List b (.-values ^Series b)]
        (loop [i 0]
          (if (< i (.size a))
            (let [order (.compareTo ^String (.get a i) (.get b i))]
              (if (zero? order) (recur (inc i)) order))
            0))))))

(defn begin!
  "Prepares a compiled metric for a reading."
  [{:keys [dropped invalid ^longs tally]}]
  (vreset! dropped 0)
  (vreset! invalid 0)
  (aset tally 0 0))

(defn end!
  "Ends reading number n, of so many entries: forgets series that were not in it.

  Returns the series that were, sorted by their labels."
  ^List [{:keys [^HashMap series ^HashMap slots ^longs tally order]} n entries]
  (when (< (+ 1000 (* 2 (long entries))) (.size slots))
    (.clear slots))
  (if (and @order (zero? (aget tally 1)) (== (aget tally 0) (.size series)))
    @order
    (do
      (.removeIf (.values series)
                 (reify java.util.function.Predicate
                   (test [_ s] (not (== (long n) (.reading ^Series s))))))
      (aset tally 1 0)
      (vreset! order (doto (ArrayList. ^Collection (.values series))
                       (.sort by-labels))))))
