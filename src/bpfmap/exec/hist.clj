(ns ^:no-doc bpfmap.exec.hist
  "Implements the command `hist`: histograms of a map's buckets, or of the values of a field.

  A histogram is `{:title :kind :total :buckets}`, a bucket `{:from :to :count}` with both limits
  included. Empty buckets are omitted at the ends only.

  The types of a map and the options decide where its buckets are:

  | the map has                                        | a histogram for                     |
  |----------------------------------------------------|-------------------------------------|
  | values with an array of integers (`slots`)         | each entry, as libbpf-tools keep it |
  | integer keys and values                            | the map                             |
  | structs of keys, of which `:bucket` names a field  | each of the other fields' values    |

  `:bucket` also selects the array of a value that has several.

  | `:slots`    | slot n counts values from … to …                                                |
  |-------------|---------------------------------------------------------------------------------|
  | `:log2`     | 2^n to 2^(n+1)-1, as libbpf-tools; slot 0 counts 0 too                          |
  | `:bcc`      | 2^(n-1) to 2^n-1                                                                |
  | `:bpftrace` | 2^(n-2) to 2^(n-1)-1; slot 0 counts negative values, slot 1 zeros               |

  With `:linear`, slot n counts values from n times the step on. With `:bpftrace` too, slot 0 counts
  all lower values and slot n begins at n-1 times the step."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.progress :as progress]
            [bpfmap.exec.query :as query]
            [bpfmap.exec.shown :as shown]))

(set! *warn-on-reflection* true)

;; --- buckets

(defn- power [n] (.shiftLeft BigInteger/ONE (int n)))

(defn- whole [x] (let [x (bigint x)] (if (<= Long/MIN_VALUE x Long/MAX_VALUE) (long x) x)))

(defn- log2-ends
  "Returns the limits of the bucket that begins at 2^n."
  [n]
  [(whole (power n)) (whole (dec (bigint (power (inc (long n))))))])

(def slot-ends
  "Returns a function from a slot's number to `[from to]`, by `:slots`.

  The function returns nil for a number that is not a slot."
  {:log2 (fn [n] (cond (zero? (long n)) [0 1] (<= 1 n 128) (log2-ends n)))
   :bcc (fn [n] (cond (zero? (long n)) [0 0] (= 1 n) [0 1] (<= 2 n 129) (log2-ends (dec (long n)))))
   :bpftrace (fn [n] (case (long n)
                       0 [nil -1]
                       1 [0 0]
                       2 [1 1]
                       (when (<= 3 n 130) (log2-ends (- (long n) 2)))))})

(defn- linear-ends [step]
  (fn [n] [(*' n step) (dec (*' (inc (bigint n)) step))]))

(defn- log2-slot
  "Returns the slot of a value, as libbpf-tools count it; -1 for a negative one."
  [x]
  (cond
    (neg? x) -1
    (int? x) (max 0 (- 63 (Long/numberOfLeadingZeros (long x))))
    :else (dec (.bitLength (biginteger x)))))

(defn- histogram
  "Returns the histogram of slot numbers with counts.

  `ends` returns the limits of a slot."
  [title kind ends counts]
  (let [counted (into {} (filter (fn [[_ n]] (not (zero? n)))) counts)]
    {:title title
     :kind kind
     :total (reduce +' 0 (vals counted))
     :buckets (if (empty? counted)
                []
                (let [[least most] (apply (juxt min max) (keys counted))]
                  (when (< 10000 (- most least))
                    (throw (error/error :usage
                                        (str "From the first bucket to the last there would be "
                                             (inc (- most least)) " lines")
                                        {:bpfmap/hint "use a larger step with --linear"})))
                  (into [] (for [n (range least (inc most))
                                 :let [[from to] (ends n)]]
                             {:from from :to to :count (counted n 0)}))))}))

(defn- checked-ends
  "Returns a function from a slot's number to its limits.

  The function throws for a number that is not a slot."
  [{:keys [slots linear]}]
  (if linear
    (if (= :bpftrace slots)
      #(if (zero? (long %)) [nil -1] ((linear-ends linear) (dec (long %))))
      (linear-ends linear))
    (let [ends (slot-ends (or slots :log2))]
      (fn [n]
        (or (ends n)
            (throw (error/error :usage
                                (str n " is not a slot of a " (name (or slots :log2)) " histogram")
                                {:bpfmap/hint "use --linear for buckets of equal width, or --field for values"})))))))

;; --- kinds of histograms

(defn- counts? [x] (and (vector? x) (< 1 (count x)) (every? integer? x)))

(defn- slots-path
  "Returns the path of the array of counts in a value, `[]` for the value itself.

  Returns nil if there is none, or if there are several and none is called slots."
  [value]
  (if (map? value)
    (let [found (filter #(counts? (get value %)) (keys value))]
      (cond
        (some #{:slots} found) ["slots"]
        (= 1 (count found)) [(name (first found))]))
    (when (counts? value) [])))

(defn- of-fields
  "Returns the histogram of the values of a field."
  [{:keys [field linear title]} rows]
  (let [values (mapcat (query/getter field) rows)
        slot (if linear #(Math/floorDiv (long %) (long linear)) log2-slot)
        kind (if linear :linear :log2)]
    (when-let [odd (first (remove integer? values))]
      (throw (error/error :usage
                          (str "The field " (fields/path-text field) " must hold integers, got "
                               (error/printed odd)) {})))
    (when (and (seq rows) (empty? values))
      (throw (error/error :usage (str "Unknown field " (fields/path-text field)) {})))
    [(histogram title kind
                (if linear
                  (linear-ends linear)
                  #(if (neg? (long %)) [nil -1] ((slot-ends :log2) %)))
                (frequencies (map slot values)))]))

(defn- of-arrays
  "Returns a histogram for each entry whose value has an array of slots."
  [options path rows]
  (let [ends (checked-ends options)
        counts-in (query/getter (cons "value" path))]
    (for [{:keys [key value]} rows]
      (histogram key (if (:linear options) :linear :log2) ends
                 (into {} (map-indexed vector) (counts-in {:value value}))))))

(defn- of-keys
  "Returns histograms of entries whose keys contain the number of a slot.

  There is one for each value of the other fields of the keys."
  [{:keys [bucket] :as options} rows]
  (let [ends (checked-ends options)
        slot (if bucket (comp first (query/getter bucket) #(select-keys % [:key])) :key)
        without (fn [{:keys [key]}]
                  (when bucket (not-empty (dissoc key (keyword (peek (vec bucket)))))))]
    (for [[title rows] (group-by without rows)]
      (histogram title (if (:linear options) :linear :log2) ends
                 (reduce (fn [counts row] (update counts (slot row) (fnil +' 0) (:value row))) {}
                         rows)))))

(defn- entries
  "Returns the entries of an open map as rows, with one value for each key."
  [m cpus]
  (let [of-value (if (:per-cpu (input/row-of m)) (input/combiner cpus) identity)]
    (eduction (map (fn [[k v]] {:key k :value (of-value v)}))
              (progress/counting "entries")
              (if (int? cpus) (bpf/entries m {:cpu cpus}) m))))

(defn- showing
  "Returns a function that shows the titles and limits of histograms by hints.

  The limits are shown by the hint for the field at the path `limits`, which begins with its side."
  [{:keys [places row] :as shower} limits keys?]
  (let [[side & names] limits
        show (some (fn [{:keys [keys show]}]
                     (when (= names (seq (map fields/name-of keys))) show))
                   (get places (keyword side)))
        limit (fn [x] (if (and show (some? x)) (show x nil) x))]
    (if-not shower
      identity
      (fn [{:keys [title] :as histogram}]
        (cond-> (update histogram :buckets
                        (partial mapv #(-> % (update :from limit) (update :to limit))))
          (and keys? (some? title)) (assoc :title (:key (row {:key title}))))))))

(defn- with-bpftrace
  "Returns the options with the defaults for a histogram of bpftrace.

  bpftrace gives its maps no types. The last 8 bytes of a key are the number of the bucket; the rest
  is the field `arg`, a number if it has 8 bytes."
  [{:keys [ref field bucket slots key-type] :as options}]
  (if (or field bucket key-type (bpf/bpf-map? ref))
    options
    (with-open [m (input/open options :read-only)]
      (let [{:keys [id key-size key]} (bpf/info m)
            parts (when (= [:bytes key-size] key) (- (long key-size) 8))]
        (if-not (or (= :bpftrace slots) (= "bpftrace" (:from (input/types-from m options))))
          options
          (cond-> (assoc options :ref {:id id} :slots (or slots :bpftrace))
            (and parts (pos? (long parts)))
            (assoc :key-type [:struct [:arg (if (= 8 parts) :u64 [:bytes parts])] [:bucket :u64]]
                   :value-type (:value-type options :u64)
                   :bucket ["bucket"])))))))

(defn- histograms
  "Returns the histograms of a map."
  [{:keys [field bucket cpus] :as options}]
  (with-open [m (input/open-typed options :read-only)]
    (let [cpus (or cpus :sum)
          row-field (fields/of-entries (bpf/spec m) cpus)
          title (some-> field fields/path-text) ; unconverted
          shower (shown/shower options (bpf/spec m) m)
          [field bucket] (map #(when % (query/real-path row-field %)) [field bucket])
          options (assoc options :field field :title title :bucket bucket :fields row-field)
          rows (into [] (query/selecting (select-keys options [:where :fields]))
                     (entries m cpus))
          {:keys [key value]} (first rows)
          of-value (some->> bucket (query/values-at {:value value}))
          path (cond
                 (nil? bucket) (slots-path value)
                 (and
                  (next
                   of-value) (every?
                              integer? of-value)) (if (= "value" (first bucket))
                                                    (rest bucket)
                                                    bucket))
          found (cond
                  field (of-fields options rows)
                  (empty? rows) []
                  path (of-arrays options path rows)
                  (not (or bucket (integer? key)))
                  (throw (error/error :usage (str m " has no buckets according to its types")
                                      {:bpfmap/hint (str "select the buckets with --bucket, or a"
                                                         " field with --field; give --key-type and"
                                                         " --value-type if the map has no types")}))
                  (not (integer? value))
                  (throw (error/error :usage (str "The values of " m " are not counts")
                                      {:bpfmap/hint "use --field to select a field"}))
                  :else (of-keys options rows))]
      (into []
            (comp (remove (comp empty? :buckets))
                  (map (showing shower
                                (cond field field path (cons "value" path) bucket bucket
                                      :else ["key"])
                                (not field))))
            (sort-by :title query/order found)))))

(defn hist
  "Returns histograms of the buckets that a map has, or of the values of `:field`.

      (hist {:ref {:name \"hists\"}}) ;=> [{:title 0, :kind :log2, :total 12, :buckets [{:from 4, :to 7, :count 12}]}]"
  [{:keys [field bucket slots linear cpus] :as options}]
  (when (and field (or bucket slots))
    (throw (arguments/refused "hist" :field (fields/path-text field)
             ["cannot be combined with " :bucket " or " :slots])))
  (when (and linear (contains? #{:log2 :bcc} slots))
    (throw (arguments/refused "hist" :linear linear
             ["cannot be combined with " :slots " " (name slots)])))
  (when (contains? #{:each :all} cpus)
    (throw (arguments/refused "hist" :cpus cpus "must be sum or the number of a CPU")))
  (histograms (with-bpftrace options)))
