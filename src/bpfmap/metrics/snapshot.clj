(ns ^:no-doc bpfmap.metrics.snapshot
  "Converts families to snapshots of the Prometheus library."
  (:require [bpfmap.metrics.metric])
  (:import (bpfmap.metrics.metric Series)
           (io.prometheus.metrics.model.registry MetricType)
           (io.prometheus.metrics.model.snapshots
            ClassicHistogramBuckets CounterSnapshot CounterSnapshot$CounterDataPointSnapshot
            Exemplars GaugeSnapshot GaugeSnapshot$GaugeDataPointSnapshot HistogramSnapshot
            HistogramSnapshot$HistogramDataPointSnapshot Labels MetricFamilyDescriptor
            MetricFamilyDescriptor$Builder MetricMetadata MetricSnapshot
            NativeHistogramBuckets)
           (java.util ArrayList Collection List TreeMap)
           (java.util.function DoubleUnaryOperator)))

(set! *warn-on-reflection* true)

;; --- points

(defn- labels-of ^Labels [^List names ^List values]
  (if (.isEmpty names) Labels/EMPTY (Labels/of names values)))

(defn- kept-labels
  "Returns the labels of a series, which are made once."
  ^Labels [^Series s names]
  (or (.cached s)
      (let [labels (labels-of names (.-values s))]
        (.keep s labels)
        labels)))

(defn- counter-point [^double x ^Labels labels]
  (CounterSnapshot$CounterDataPointSnapshot. x labels nil 0))

(defn- gauge-point [^double x ^Labels labels]
  (GaugeSnapshot$GaugeDataPointSnapshot. x labels nil))

;; --- histograms

(defn- classic-buckets ^ClassicHistogramBuckets [^doubles bounds ^longs counts]
  (let [n (alength bounds)
        limits (java.util.Arrays/copyOf bounds (inc n))]
    (aset limits n Double/POSITIVE_INFINITY)
    (ClassicHistogramBuckets/of limits counts)))

(defn- native-index
  "Returns the index of the native bucket that contains a positive number.

  Bucket i of schema s is above 2^((i-1)/2^s), up to 2^(i/2^s)."
  [^double x ^long schema]
  (let [exponent (Math/getExponent x)]
    (if (and (zero? schema) (== x (Math/scalb 1.0 exponent)))
      (long exponent) ; exact for a power of two
      (long (Math/ceil (* (/ (Math/log x) (Math/log 2.0)) (Math/scalb 1.0 (int schema))))))))

(defn- native-buckets
  "Returns native buckets of counts, as `[zeros positive negative]`.

  Values above all bounds are in the bucket after the last one."
  [^doubles bounds ^longs counts schema]
  (let [positive (TreeMap.)
        negative (TreeMap.)
        add (fn [^TreeMap buckets i n] (.merge buckets (int i) n (fn [a b] (+ (long a) (long b)))))
        n (alength bounds)]
    (loop [i 0 zeros 0]
      (if (< i (alength counts))
        (let [amount (aget counts i)
              bound (if (< i n) (aget bounds i) (aget bounds (dec n)))]
          (cond
            (zero? amount) (recur (inc i) zeros)
            (and (zero? bound) (< i n)) (recur (inc i) (+ zeros amount))
            (neg? bound) (do (add negative (native-index (- bound) schema) amount)
                             (recur (inc i) zeros))
            :else (do (add positive (cond-> (native-index (if (zero? bound) 1.0 bound) schema)
                                      (= i n) inc)
                           amount)
                      (recur (inc i) zeros))))
        [zeros positive negative]))))

(defn- native-of ^NativeHistogramBuckets [^TreeMap buckets]
  (NativeHistogramBuckets/of (int-array (keys buckets)) (long-array (vals buckets))))

(defn- histogram-point
  "Returns the point of a series of a histogram."
  [{:keys [^doubles bounds form has-sum schema label-names ^DoubleUnaryOperator scale]} ^Series s]
  (let [^doubles of-series (.-counts s)
        counts (long-array (alength of-series))
        labels (kept-labels s label-names)
        sum (if has-sum (.applyAsDouble scale (.sum s)) Double/NaN)]
    (dotimes [i (alength counts)]
      (aset counts i (long (aget of-series i))))
    (if (= :classic form)
      (HistogramSnapshot$HistogramDataPointSnapshot. (classic-buckets bounds counts) sum labels
                                                     Exemplars/EMPTY 0)
      (let [[zeros positive negative] (native-buckets bounds counts schema)
            classic (if (= :both form)
                      (classic-buckets bounds counts)
                      ClassicHistogramBuckets/EMPTY)]
        (HistogramSnapshot$HistogramDataPointSnapshot.
         ^ClassicHistogramBuckets classic (int schema) (long zeros) 0.0
         (native-of positive) (native-of negative) sum labels Exemplars/EMPTY 0)))))

;; --- families

(defn- points
  "Returns the points of a family as a list."
  ^Collection [{:keys [type label-names ^List series rows ^DoubleUnaryOperator scale] :as family}]
  (let [of-number (if (= :counter type) counter-point gauge-point)]
    (if series
      (let [found (ArrayList. (.size series))
            point (if (= :histogram type)
                    #(histogram-point family %)
                    (fn [^Series s]
                      (of-number (.applyAsDouble scale (.total s))
                                 (kept-labels s label-names))))]
        (run! #(.add found (point %)) series)
        found)
      (mapv (fn [[label-values x]]
              (of-number (double x) (labels-of label-names label-values)))
            rows))))

(defn snapshot
  "Returns the snapshot of a family; nil if it has no samples.

  A family is as `bpfmap.metrics.maps` and `bpfmap.metrics.host` return it."
  ^MetricSnapshot [{:keys [name type help] :as family}]
  (let [found (points family)]
    (when-not (.isEmpty found)
      (case type
        :counter (CounterSnapshot.
                  (MetricMetadata. (subs name 0 (- (count name) (count "_total"))) help) found)
        :gauge (GaugeSnapshot. (MetricMetadata. name help) found)
        :histogram (HistogramSnapshot. (MetricMetadata. name help) found)))))

(def ^:private types
  {:counter MetricType/COUNTER :gauge MetricType/GAUGE :histogram MetricType/HISTOGRAM})

(defn descriptor
  "Returns what a registry checks when a family is registered."
  ^MetricFamilyDescriptor [{:keys [type label-names] metric-name :name}]
  (let [^MetricFamilyDescriptor$Builder builder (MetricFamilyDescriptor/of ^MetricType (types type)
                                                                           ^String metric-name)]
    (.labelNames builder ^java.util.Collection label-names)
    (.build builder)))
