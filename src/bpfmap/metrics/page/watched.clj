(ns ^:no-doc bpfmap.metrics.page.watched
  "Reads a map again and again for its page, and keeps a short history of it.

  A reading has the entries, the rates of their numbers since the reading before, and the counts of
  histograms. All of it has bounds: the entries and the time of a reading, the fields and keys with
  a history, and its length."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec.column-tree :as column-tree]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.map-info :as map-info]
            [bpfmap.impl.display.hints :as hints]
            [bpfmap.impl.host.local-storage :as local-storage]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.metrics.maps :as maps]
            [bpfmap.metrics.metric :as metric]
            [bpfmap.metrics.page.shared :as shared])
  (:import (bpfmap.metrics.metric Series)
           (clojure.lang ExceptionInfo)
           (java.util ArrayList HashMap)))

(set! *warn-on-reflection* true)

(def most-entries "The largest number of entries that are read." 20000)
(def ^:private reading-time "Milliseconds for the entries of a reading." 500)
(def most-fields "The largest number of fields whose rates are kept." 8)
(def ^:private most-keys "The largest number of keys whose rates are kept." 400)
(def ^:private most-series "The largest number of series of a histogram with a heat map." 4)

;; --- what the config has about a map

(defn- same-map?
  "Returns true if a reference of the config is to the map with this info."
  [ref {:keys [id name kernel-name pinned]}]
  (cond
    (bpf/bpf-map? ref) (= id (:id (bpf-map/identity-of ref)))
    (:id ref) (= id (:id ref))
    (:path ref) (boolean (some #{(:path ref)} pinned))
    (:name ref) (contains? #{name kernel-name} (:name ref))))

(defn metrics-of
  "Returns the metrics of a config that are about the map with this info."
  [config info]
  (filterv #(same-map? (:map %) info) (:metrics config)))

(defn- of-metrics
  "Returns `{:key-type :value-type :as}` for a map, from its metrics."
  [metrics]
  (let [pairs (mapcat #(mapcat identity (:as %)) metrics)]
    (assoc (into {} (map #(select-keys % [:key-type :value-type])) metrics)
           :as (vals (into (array-map) (map (juxt first identity)) pairs)))))

;; --- plans

(def ^:private plan-time
  "Nanoseconds after which a plan, with names of the host, is made again."
  (* 60 1000 1000 1000))

(defn- histograms
  "Returns the histograms of a map, compiled, and the texts of problems.

  They come from the metrics, from the parameters `bucket` and `slots` of the page, or from an array
  of counts that is called slots."
  [m metrics {:keys [bucket slots]}]
  (let [{:keys [value]} (hints/sides (bpf/spec m))
        slots? (some #(and (= :slots (:name %)) (= :array (:kind (:node %)))) (:members value))
        own {:name (if bucket (str bucket) "slots") :type :histogram :limit 1000 :form :classic
             :index -1 :map {:id (:id (bpf-map/identity-of m))}}
        wanted (cond
                 bucket [(cond-> (assoc own :bucket bucket) slots (assoc :slots slots))]
                 (some #(= :histogram (:type %)) metrics) (filter #(= :histogram (:type %)) metrics)
                 slots? [own])]
    (when (seq wanted)
      (maps/compiled m (map-indexed #(assoc %2 :index %1) wanted)))))

(defn- compiled-hints
  "Returns hints as functions, by side; those that do not fit are left out."
  [as spec context]
  (reduce (fn [found hint]
            (try
              (merge-with into found
                          (hints/compile [hint] (hints/sides spec) context))
              (catch ExceptionInfo _ found)))
          {} as))

(defn- plan-of
  "Returns what reading an open map needs."
  [m metrics params]
  (let [spec (bpf/spec m)
        info (bpf/info m)
        iterated? (maps/iterated? (:type spec))
        _ (when-not iterated? (input/check-dumpable m {}))
        possible (input/cpus-of m)
        trees (column-tree/of-entries spec nil)
        {:keys [context] :as found} (histograms m metrics params)
        numbers (some-> (:value trees) column-tree/rates column-tree/paths)
        ;; The counts of a histogram are in its heat map.
        paths (vec (if (seq (:metrics found)) (remove #(some int? %) numbers) numbers))
        context (or context (maps/context-of m))]
    {:id (:id info)
     :until (+ (System/nanoTime) (long plan-time))
     :info info
     :spec spec
     :iterated iterated?
     :key-out (:key-out context)
     :combine (if possible (input/combiner :sum) identity)
     :fields (fields/of-watched spec :sum)
     :trees trees
     :paths (vec (take most-fields paths))
     :more-paths (max 0 (- (count paths) (long most-fields)))
     :shown (compiled-hints (:as (of-metrics metrics)) spec context)
     :histograms (:metrics found)
     :problems (vec (vals (:errors found)))}))

;; --- a reading

(defn- read-entries
  "Reads entries within the bounds, and adds them to histograms.

  Returns `{:rows :values :whole}`: rows `{:key :value}`, the values by key, and true if these are
  all entries."
  [m {:keys [iterated key-out combine histograms]} n]
  (let [rows (ArrayList.)
        values (HashMap.)
        until (+ (System/nanoTime) (* 1000000 (long reading-time)))
        adders (mapv :add histograms)
        add (fn [_ k v]
              (if (or (<= (long most-entries) (.size rows))
                      (and (zero? (rem (.size rows) 64)) (pos? (- (System/nanoTime) until))))
                (reduced false)
                (let [key (key-out k)
                      value (combine v)]
                  (doseq [adder adders] (adder n k v))
                  (.add rows {:key key :value value})
                  (.put values key value)
                  true)))
        whole (if iterated
                (reduce (fn [acc [k v]] (add acc k v)) true (local-storage/entries m))
                (with-open [raw (raw-entries/open-raw m :keys)]
                  (bpf-map/reduce-entries raw add true nil)))]
    {:rows rows :values values :whole whole}))

(defn- with-rates
  "Returns the rows with `:per-second` and `:change` since the values before."
  [rows ^HashMap before seconds]
  (if (nil? before)
    (vec rows)
    (mapv (fn [{:keys [key value] :as row}]
            (let [old (.getOrDefault before key ::none)
                  added? (identical? ::none old)
                  rate (raw-entries/rates (when-not added? old) value seconds)]
              (cond-> row
                added? (assoc :change :added)
                (and (not added?) (not= old value)) (assoc :change :changed)
                (some? rate) (assoc :per-second rate))))
          rows)))

(defn- rate-at [{:keys [per-second]} path]
  (let [x (get-in per-second path)]
    (when (number? x) (double x))))

(defn- totals
  "Returns the sum of the rates of all rows, for each path."
  [rows paths]
  (mapv (fn [path]
          (transduce (keep #(rate-at % path)) + 0.0 rows))
        paths))

(defn- longer
  "Adds a sample to a history; forgets the oldest one if it is long enough."
  [history sample]
  (conj (if (<= (long shared/samples) (count history)) (vec (rest history)) (or history []))
        sample))

(defn- latest-wanted
  "Returns the keys that clients saw last; forgets the others."
  [wanted]
  (let [kept (swap! wanted (fn [all]
                             (if (<= (count all) (long most-keys))
                               all
                               (into {} (take most-keys) (sort-by (comp - val) all)))))]
    (keys kept)))

(defn- by-key
  "Returns the histories of the rates of the keys that clients saw."
  [before rows paths wanted]
  (let [current (into {} (map (juxt :key identity)) rows)]
    (into {}
          (keep (fn [k]
                  (when-let [row (get current k)]
                    [k (longer (get before k) (mapv #(rate-at row %) paths))])))
          (latest-wanted wanted))))

;; --- histograms

(defn- deltas
  "Returns the counts since those before; counts that fell begin at 0."
  [before now]
  (mapv (fn [a b] (let [a (double (or a 0.0)) b (double b)] (if (< b a) b (- b a))))
        (concat before (repeat 0.0)) now))

(defn- histogram-counts
  "Returns `[label-values counts]` pairs of a histogram, the sum first."
  [compiled n entries]
  (let [series (mapv (fn [^Series s] [(vec (.-values s)) (vec (.-counts s))])
                     (metric/end! compiled n entries))
        sum (when (seq series) (apply mapv + (map second series)))
        most (->> series
                  (sort-by (fn [[_ counts]] (- (double (reduce + counts)))))
                  (take most-series))]
    (cond
      (nil? sum) []
      (next series) (into [[nil sum]] most)
      :else series)))

(defn- heat
  "Returns the histogram after a reading: bounds, and counts over time by series."
  [before {:keys [bounds label-names] compiled-metric :metric :as compiled} n entries]
  (let [counts (histogram-counts compiled n entries)
        former (into {} (map (juxt :labels identity)) (:series before))]
    {:name (:name compiled-metric)
     :help (:help compiled-metric)
     :bounds (vec bounds)
     :series (vec (for [[values now] counts
                        :let [labels (when values (zipmap label-names values))
                              {:keys [counts history]} (get former labels)]]
                    {:labels labels
                     :counts now
                     :history (if counts (longer history (deltas counts now)) [])}))}))

;; --- the source

(defn- open-map
  "Opens the map of an id with the types that its metrics have, or remembered ones."
  ^java.io.Closeable [id metrics]
  (input/open-typed (assoc (dissoc (of-metrics metrics) :as) :ref {:id id}) :read-only))

(defn- failed
  "Returns the reading for an error: the map is gone, or cannot be read."
  [before e]
  (let [gone? (= :not-found (:bpfmap/error (ex-data e)))]
    (-> (select-keys before [:info :id])
        (assoc :error (if gone? "The map no longer exists." (maps/failure e)) :gone gone?))))

(defn- read-next
  "Reads a map once more; `before` is the reading before, or nil."
  [id metrics-now params wanted before]
  (maps/or-failed
   #(failed before %)
   (let [metrics (metrics-now)
         before (when (and (:plan before) (= metrics (:metrics before))) before)]
     (with-open [m (open-map id metrics)]
       (let [{:keys [paths histograms] :as plan}
             (if (and before (neg? (- (System/nanoTime) (long (:until (:plan before))))))
               (:plan before)
               (plan-of m metrics params))
             n (inc (long (:n before 0)))
             at (System/nanoTime)
             _ (run! metric/begin! histograms)
             {:keys [rows values whole]} (read-entries m plan n)
             seconds (when before (max 1e-3 (/ (- at (long (:at before))) 1e9)))
             rows (with-rates rows (:values before) seconds)
             entries (if whole
                       (count rows)
                       (map-info/entries-of m (:info plan)))]
         {:n n :at at :plan plan :metrics metrics :id id :info (:info plan)
          :rows rows :values values :whole whole :entries entries :seconds seconds
          :totals (if before (longer (:totals before) (totals rows paths)) [])
          :by-key (when before (by-key (:by-key before) rows paths wanted))
          :wanted wanted
          :heat (mapv #(heat %1 %2 n (count rows))
                      (concat (:heat before) (repeat nil)) histograms)})))))

(defn source
  "Returns the source of readings of a map.

  `(metrics-now)` returns the metrics of the config about the map, and `params` has the parameters
  `:bucket` and `:slots` of the page as data."
  [id metrics-now params]
  (let [wanted (atom {})]
    (shared/source shared/interval (fn [before] (read-next id metrics-now params wanted before)))))
