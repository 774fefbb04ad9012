(ns bpfmap.plot
  "Returns Vega-Lite specs of histograms, rates and entries, as data.

  Each function returns a whole spec of Vega-Lite 5, with its values in it: maps, vectors, strings,
  numbers and keywords for keys. Portal, Clerk and other tools draw such data; as JSON it can be
  opened in Vega's editor. Nothing is read but the arguments.

      (require '[bpfmap.exec :as exec] '[bpfmap.plot :as plot])

      (tap> (with-meta (plot/top (exec/dump {:ref \"flows\"}) {:field :bytes})
              {:portal.viewer/default :portal.viewer/vega-lite}))

  All functions take these options:

  | option             | meaning                                    | default              |
  |--------------------|--------------------------------------------|----------------------|
  | `:title`           | the text above the picture                 | none                 |
  | `:width` `:height` | the size of the picture, in pixels         | 600, as high as needed |

  Keys are shown as text: a struct as `src=10.0.0.1 port=443`. Integers beyond 2^53 are rounded by
  what draws them. Numbers that are not finite are left out, because JSON does not have them."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.field-path :as field-path]
            [bpfmap.impl.options :as options]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def ^:private schema "https://vega.github.io/schema/vega-lite/v5.json")

(defn- invalid ^Throwable [message hint]
  (error/error :invalid-value message {:bpfmap/op :plot :bpfmap/hint hint}))

(defn- name-of [x]
  (cond
    (keyword? x) (subs (str x) 1)
    (string? x) x
    :else (error/printed x)))

(defn- shown
  "Returns a key as text."
  [x]
  (cond
    (map? x) (str/join " " (for [[k v] x] (str (name-of k) "=" (shown v))))
    (vector? x) (str "[" (str/join " " (map shown x)) "]")
    :else (name-of x)))

;; --- numbers of values

(defn- member
  "Returns a field of a map by name, or an element of a vector by index; or nil."
  [x name]
  (cond
    (map? x) (some (fn [[k v]] (when (= name (name-of k)) v)) x)
    (and (vector? x) (re-matches #"[0-9]{1,9}" name)) (get x (parse-long name))))

(defn- number-at
  "Returns the number at a path of a value, or nil.

  The numbers of a vector are added, as those of a per-CPU value."
  [x path]
  (cond
    (and (empty? path) (number? x)) x
    (and (vector? x) (nil? (some->> (first path) (member x))))
    (let [numbers (map #(number-at % path) x)]
      (when (and (seq numbers) (every? some? numbers))
        (reduce +' numbers)))
    (empty? path) nil
    :else (some-> (member x (first path)) (number-at (rest path)))))

(defn- path-of [field]
  (when (some? field)
    (or (field-path/path-of field)
        (throw (invalid (str "A field must be a name or a path, got " (error/printed field))
                        "such as :bytes, \"stats.rx\" or [:stats :rx]")))))

(defn- number-of
  "Returns the number at a path of a value; throws if there is none."
  [x path]
  (or (number-at x path)
      (let [one (if (vector? x) (first x) x)]
        (throw (invalid (str (if path (str "The field " (field-path/path-text path)) "The value")
                             " must have a number, got " (error/printed x))
                        (when (map? one)
                          (str "give one of its fields as :field, such as "
                               (error/printed (first (keys one))))))))))

(defn- finite?
  "Returns false for NaN and infinity, which JSON does not have."
  [x]
  (Double/isFinite (double x)))

;; --- specs

(defn- spec-of
  "Returns a spec with its values, and options of its picture."
  [values {:keys [title width height]} spec]
  (cond-> (merge {:$schema schema
                  :width (or width 600)
                  :data {:values (vec values)}}
                 spec)
    title (assoc :title title)
    height (assoc :height height)))

(defn- ends-text [{:keys [from to]}]
  (cond
    (= from to) (str from)
    (nil? from) (str "up to " to)
    (nil? to) (str "from " from)
    :else (str from "–" to)))

(defn- check-histograms [x]
  (let [histograms (if (map? x) [x] x)]
    (when-not (and (sequential? histograms)
                   (every? #(and (map? %) (sequential? (:buckets %))) histograms))
      (throw (invalid (str "Histograms must be those of exec/hist, got " (error/printed x))
                      "such as [{:title \"read\" :buckets [{:from 0 :to 1 :count 5}]}]")))
    histograms))

(defn- bucket-texts
  "Returns the texts of all buckets, in ascending order of their limits."
  [histograms]
  (let [buckets (mapcat :buckets histograms)
        low #(let [x (:from %)] (cond (nil? x) ##-Inf (number? x) (double x)))]
    ;; Limits that are text, such as times, stay in the order of their histograms.
    (vec (distinct (map ends-text (if (every? low buckets) (sort-by low buckets) buckets))))))

(defn- title-text [{:keys [title]}] (if (nil? title) "" (shown title)))

(defn histogram
  "Returns a spec of histograms: a bar for each bucket.

  `histograms` is what `bpfmap.exec/hist` returns, or one element of it. Several are drawn below
  each other. `:unit` is the name of what the buckets count, default: `\"value\"`. Throws
  `:invalid-value`.

      (histogram [{:title \"read\" :buckets [{:from 4 :to 7 :count 12}]}] {:unit \"us\"})
      ;=> {:mark {:type \"bar\" …} :data {:values [{:bucket \"4–7\" :count 12 …}]} …}"
  ([histograms] (histogram histograms nil))
  ([histograms {:keys [unit] :as options}]
   (options/check :plot-histogram options)
   (let [histograms (check-histograms histograms)]
     (spec-of (for [h histograms, bucket (:buckets h)]
                {:title (title-text h) :bucket (ends-text bucket) :count (:count bucket)})
              options
              {:mark {:type "bar" :tooltip true}
               :encoding (cond-> {:x {:field "bucket" :type "ordinal"
                                      :sort (bucket-texts histograms)
                                      :title (or unit "value")}
                                  :y {:field "count" :type "quantitative"}}
                           (next histograms)
                           (assoc :row {:field "title" :type "nominal" :title nil
                                        :sort (vec (distinct (map title-text histograms)))}))
               :resolve {:scale {:y "independent"}}}))))

(defn- counts-by-bucket
  "Returns the counts of all histograms by the text of their bucket."
  [histograms]
  (reduce (fn [counts bucket] (update counts (ends-text bucket) (fnil +' 0) (:count bucket)))
          {} (mapcat :buckets histograms)))

(defn heat-map
  "Returns a spec of histograms over time.

  It has a column for each time and a row for each bucket. `samples` is a sequence of
  `[seconds histograms]`, each with what `bpfmap.exec/hist` returned at that time. A cell shows what
  was counted since the sample before, so the first sample is not drawn. A count that fell was
  reset, and counts from 0. `:unit` is as for [[histogram]]. Throws `:invalid-value`.

      (heat-map [[0 (exec/hist {:ref \"latency\"})]
                 [1 (exec/hist {:ref \"latency\"})]]) ; a second later
      ;=> {:mark {:type \"rect\" …} …}"
  ([samples] (heat-map samples nil))
  ([samples {:keys [unit] :as options}]
   (options/check :plot-heat-map options)
   (let [samples (for [[seconds histograms :as sample] samples]
                   (if (and (number? seconds) (finite? seconds))
                     [seconds (check-histograms histograms)]
                     (throw (invalid (str "A sample must be [seconds histograms], got "
                                          (error/printed sample)) nil))))]
     (spec-of (for [[[from before] [to after]] (partition 2 1 samples)
                    :let [old (counts-by-bucket before)]
                    [bucket n] (counts-by-bucket after)
                    :let [more (-' n (old bucket 0))]
                    :when (not (zero? more))]
                {:from from :to to :bucket bucket :count (if (neg? more) n more)})
              options
              {:mark {:type "rect" :tooltip true}
               :encoding {:x {:field "from" :type "quantitative" :title "seconds"
                              :scale {:zero false}}
                          :x2 {:field "to"}
                          :y {:field "bucket" :type "ordinal" :title (or unit "value")
                              :sort (vec (rseq (bucket-texts (mapcat second samples))))}
                          :color {:field "count" :type "quantitative"}}}))))

(defn- most
  "Returns the first elements of a collection by a number, the largest first."
  [limit number coll]
  (take (or limit 10) (sort-by number #(compare %2 %1) coll)))

(defn rates
  "Returns a spec of rates over time: a line for each entry.

  `frames` is a reducible or sequence of the frames of `bpfmap.exec/watch`. `:field` is the field of
  the value, by name or path; it is needed if the value is not a number. `:limit` is the number of
  entries that are drawn, those that changed most, default: 10. Throws `:invalid-value`.

      (rates (exec/watch {:ref \"flows\" :interval 1 :seconds 30}) {:field :bytes})
      ;=> {:mark {:type \"line\" …} …}"
  ([frames] (rates frames nil))
  ([frames {:keys [field limit] :as options}]
   (options/check :plot-rates options)
   (let [path (path-of field)
         points (into []
                      (mapcat (fn [{:keys [elapsed rows]}]
                                (for [{:keys [key per-second]} rows
                                      :when (some? per-second)
                                      :let [rate (number-of per-second path)]
                                      :when (finite? rate)]
                                  {:seconds elapsed :key (shown key) :rate rate})))
                      frames)
         totals (reduce (fn [sums {:keys [key rate]}] (update sums key (fnil +' 0) (abs rate)))
                        {} points)
         keys (mapv key (most limit val totals))]
     (spec-of (filter (comp (set keys) :key) points)
              options
              {:mark {:type "line" :tooltip true}
               :encoding {:x {:field "seconds" :type "quantitative"}
                          :y {:field "rate" :type "quantitative" :title "per second"}
                          :color {:field "key" :type "nominal" :sort keys}}}))))

(defn top
  "Returns a spec of the largest entries: a bar for each.

  `entries` is an open map, `[key value]` pairs, or the rows of `bpfmap.exec/dump`. `:field` is the
  field of the value, by name or path; it is needed if the value is not a number. The values of all
  CPUs are added. `:limit` is the number of entries, default: 10. Throws `:invalid-value`.

      (top m {:field :bytes :limit 20}) ;=> {:mark {:type \"bar\" …} …}"
  ([entries] (top entries nil))
  ([entries {:keys [field limit] :as options}]
   (options/check :plot-top options)
   (let [path (path-of field)
         rows (into []
                    (comp (map (fn [entry]
                                 (let [[k v] (if (map? entry) [(:key entry) (:value entry)] entry)]
                                   {:key (shown k) :value (number-of v path)})))
                          (filter (comp finite? :value)))
                    entries)]
     (spec-of (most limit :value rows)
              options
              {:mark {:type "bar" :tooltip true}
               :encoding {:y {:field "key" :type "nominal" :sort "-x" :title nil}
                          :x {:field "value" :type "quantitative"
                              :title (if path (field-path/path-text path) "value")}}}))))
