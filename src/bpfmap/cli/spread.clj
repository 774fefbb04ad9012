(ns bpfmap.cli.spread
  "Columns for structured keys and values: one for each field, named as `--where` and `--sort` name it."
  (:require [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def ^:private most-columns
  "A struct of more fields than this stays in one column."
  12)

(defn- leaves
  "The paths of the fields of a value, nested maps taken apart; those in vectors stay together."
  [path x]
  (if (and (map? x) (seq x))
    (mapcat (fn [[k v]] (leaves (conj path k) v)) x)
    [path]))

(defn field-name
  "A field's name as a title.

      (field-name :tx-bytes) ;=> \"tx-bytes\""
  [k]
  (if (keyword? k) (subs (str k) 1) (str k)))

(defn- title
  "The names on a path, without the side where the rest says it all."
  [[side & fields] clashes?]
  (cond
    (empty? fields) (str/upper-case (name side))
    clashes? (str/join "." (map field-name (cons side fields)))
    :else (str/join "." (map field-name fields))))

(defn columns
  "Columns for the sides, such as `[:key :value]`, of rows of which the first shows the fields.

      (map :title (columns [:key :value] [{:key {:src \"10.0.0.1\"} :value 3}])) ;=> (\"src\" \"VALUE\")"
  [sides rows]
  (let [row (first rows)
        of-side (into {} (for [side sides
                               :let [paths (leaves [side] (get row side))]]
                           [side (if (<= (count paths) (long most-columns)) paths [[side]])]))
        paths (mapcat of-side sides)
        clashes (into #{} (comp (filter (fn [[_ n]] (< 1 (long n)))) (map key)) (frequencies (map #(title % false) paths)))]
    (map-indexed (fn [i path]
                   (let [plain (title path false)]
                     (cond-> {:title (if (clashes plain) (title path true) plain)
                              :of #(get-in % path)
                              :side (first path) :path path
                              :least (if (next path) 12 16)}
                       (pos? (long i)) (assoc :rank i))))
                 paths)))
