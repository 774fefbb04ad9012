(ns ^:no-doc bpfmap.impl.map.raw-entries
  "Entries of a map as bytes, and their conversion by the types of a spec.

  Bytes are compared instead of data, because different bytes may decode to the same data. They
  are views (`bpfmap.bytes`). A per-CPU value has the values of all CPUs one after the other, each
  on a stride of eight bytes."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.codec.map-codecs :as map-codecs]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.element :as kernel.element]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map :refer [with-error-context]])
  (:import (bpfmap.bytes ByteView)
           (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.sys Codec)
           (clojure.lang IReduceInit)
           (java.lang.foreign MemorySegment)
           (java.util Arrays HashMap Map)))

(set! *warn-on-reflection* true)

;; --- a map as bytes

(defn- as-bytes
  "Returns the codec of as many bytes as another codec has; nil for nil."
  ^Codec [^Codec codec]
  (when codec (codec/codec [:bytes (.size codec)])))

(defn open-raw
  "Opens a second handle of the map, whose keys and values are bytes.
  Close it. With `:keys`, only its keys are bytes.

      (with-open [raw (open-raw m)] (into {} raw))
      ;=> {#bpfmap/bytes \"07 00 00 00\" #bpfmap/bytes \"2a 00 00 00\"}"
  ^BpfMap [^BpfMap m & [sides]]
  (with-error-context [m :clone]
    (let [key-codec (as-bytes (.-key-codec m))
          value-codec (cond-> (.-value-codec m) (not= :keys sides) as-bytes)
          size (fn [^Codec codec] (if codec (.size codec) 0))
          fd (call/duplicate (bpf-map/descriptor m) {:op :clone :map (bpf-map/identity-of m)})]
      (BpfMap. fd (bpf-map/identity-of m) (.-spec m) (.-access m) (.-refusals m)
               (kernel.element/elements fd (size key-codec) (size value-codec))
               key-codec value-codec nil nil (atom nil) (bpf-map/row-of m) nil nil))))

;; --- bytes to data and back

(defn- decoder [^Codec codec]
  (fn [^ByteView view]
    (.decode codec (MemorySegment/ofArray ^bytes (.-array view)) 0)))

(defn- reference-number
  "Returns the number of a reference that was read from the kernel."
  [x]
  (cond
    (not (map? x)) x
    (contains? x :map-id) (:map-id x)
    (contains? x :program-id) (:program-id x)
    (contains? x :program) (update x :program #(if (nil? %) 0 (reference-number %)))
    :else x))

(defn- encoder [^Codec codec]
  (let [size (.size codec)]
    (fn [x]
      (if (= size (bytes/byte-count x))
        (bytes/->bytes x)
        (let [array (byte-array size)]
          (.encode codec (reference-number x) (MemorySegment/ofArray array) 0)
          (bytes/wrap array))))))

(defn types
  "Returns the conversions between data and bytes for a completed spec.

  As `{:key-in :value-in :key-out :value-out}`: `in` from data to bytes, `out` from bytes to data.
  `cpus` is the number of values of a per-CPU map. The functions to bytes return bytes of the
  right size unchanged, and throw `:invalid-value` for anything that does not fit.

      ((:key-in (types {:type :hash :key :u32 :value :u32} nil)) 7)
      ;=> #bpfmap/bytes \"07 00 00 00\""
  [spec cpus]
  (let [key-codec (map-codecs/key spec)
        value-codec (map-codecs/value spec cpus)]
    {:key-in (encoder key-codec) :key-out (decoder key-codec)
     :value-in (encoder value-codec) :value-out (decoder value-codec)}))

(defn- zero-padding
  "Returns a function that sets the padding of a per-CPU value's bytes to zero.

  The kernel leaves arbitrary bytes between the values of CPUs."
  [{:keys [type value-size]}]
  (let [size (long value-size)
        stride (map-types/stride size)]
    (if (and (:per-cpu (map-types/types type)) (< size stride))
      (fn [^ByteView view]
        (let [array (aclone ^bytes (.-array view))]
          (doseq [at (range size (alength array) stride)]
            (Arrays/fill array (int at) (int (+ (long at) (- stride size))) (byte 0)))
          (bytes/wrap array)))
      identity)))

;; --- all entries

(defn entries
  "Returns the entries of an open map as a reducible of `[key value]`, as bytes.

  The padding between the values of CPUs is zero.

      (into {} (entries m)) ;=> {#bpfmap/bytes \"07 00 00 00\" #bpfmap/bytes \"2a 00 00 00\"}"
  [m]
  (let [normal (zero-padding (bpf-map/spec-of m))]
    (reify IReduceInit
      (reduce [_ f init]
        (with-open [raw (open-raw m)]
          (bpf-map/reduce-entries raw (fn [acc k v] (f acc (kernel.element/entry k (normal v))))
                                  init nil))))))

(defn snapshot
  "Returns a reducible of pairs of bytes as a `HashMap`.

      (snapshot (entries m)) ;=> {#bpfmap/bytes \"07 00 00 00\" #bpfmap/bytes \"2a 00 00 00\"}"
  ^HashMap [entries]
  (let [all (HashMap.)]
    (run! (fn [[k v]] (.put all k v)) entries)
    all))

;; --- comparing two readings

(defn compared
  "Returns a reducible of the results of f for the keys of two readings (maps).


  The keys of `after` come first, then the keys that only `before` has. f gets the change (`:added`,
  `:changed`, `:removed` or `:same`), the key, and the values before and after, nil if there is
  none. `same?` compares two values. If `before` is nil, this is the first reading, and the change
  is nil.

      (into [] (compared {1 10, 2 20} {1 11, 3 30} = vector))
      ;=> [[:changed 1 10 11] [:added 3 nil 30] [:removed 2 20 nil]]"
  [^Map before ^Map after same? f]
  (if (nil? before)
    (eduction (map (fn [[k v]] (f nil k nil v))) after)
    (eduction cat
              [(eduction (map (fn [[k v]]
                                (let [old (.getOrDefault before k ::none)]
                                  (cond
                                    (identical? ::none old) (f :added k nil v)
                                    (same? old v) (f :same k old v)
                                    :else (f :changed k old v)))))
                         after)
               (eduction (remove (fn [[k _]] (.containsKey after k)))
                         (map (fn [[k v]] (f :removed k v nil)))
                         before)])))

;; --- comparison of data

(defn same-data?
  "Returns true if two values are equal.
  Compares floating-point numbers by bits.

  NaN is the same as NaN, and -0.0 is not the same as 0.0.

      (same-data? {:f ##NaN} {:f ##NaN}) ;=> true"
  [a b]
  (cond
    (and (float? a) (float? b)) (zero? (Double/compare (double a) (double b)))
    (and (map? a) (map? b)) (and (= (count a) (count b))
                                 (every? (fn [[k v]] (same-data? v (get b k ::missing))) a))
    (and (vector? a) (vector? b)) (and (= (count a) (count b)) (every? true? (map same-data? a b)))
    :else (= a b)))

;; --- rates

(defn- rounded
  "Returns a rate rounded to thousandths, if a double is that precise."
  ^double [^double x]
  (if (< (abs x) 1e12) (/ (Math/round (* 1000 x)) 1000.0) x))

(defn rates
  "Returns the increase per second of the integers of a value, or nil.

  Integers that were not there before count from 0.

      (rates {:packets 10 :comm \"a\"} {:packets 30 :comm \"a\"} 2.0) ;=> {:packets 10.0}"
  [before now seconds]
  (cond
    (integer? now) (when (or (nil? before) (integer? before))
                     (rounded (/ (double (- (bigint now) (bigint (or before 0))))
                                 (double seconds))))
    (map? now) (not-empty (into (empty now)
                                (keep (fn [[k x]]
                                        (when-some
                                         [rate (rates (when (map? before) (get before k)) x
                                                      seconds)]
                                          [k rate])))
                                now))
    (vector? now) (when (seq now)
                    (let [all (map-indexed (fn [i x]
                                             (rates (when (vector? before) (nth before i nil)) x
                                                    seconds)) now)]
                      (when (every? some? all) (vec all))))))

;; --- errors

(defn with-entry-context
  "Runs f; adds the entry of `:contents` to an error that it throws.

      (with-entry-context :restore 7 #(key-in 7))"
  [op k f]
  (try
    (f)
    (catch clojure.lang.ExceptionInfo e
      (throw (ex-info (str "In :contents, the entry of " (error/printed k) ": "
                           (ex-message e))
                      (assoc (ex-data e) :bpfmap/op op
                             :bpfmap/path
                             (into [:contents (error/shown k)] (:bpfmap/path (ex-data e))))
                      e)))))
