(ns bpfmap.cli.spread
  "Columns for structured keys and values: one for each field, named as `--where` and `--sort` name it."
  (:require [bpfmap.cli.output :as output]
            [bpfmap.cli.tree :as tree]
            [bpfmap.exec.fields :as fields]
            [clojure.string :as str])
  (:import (java.util LinkedHashMap)))

(set! *warn-on-reflection* true)

(def ^:private most-columns
  "A struct of more fields than this stays in one column."
  12)

(defn- collect
  "Adds the fields of a value to those found before: name to what is below it. ::plain is for a value that is neither nil
  nor a map of fields."
  [^LinkedHashMap found x]
  (cond
    (nil? x) nil
    (and (map? x) (seq x))
    (reduce-kv (fn [_ k v]
                 (let [below (or (.get found k)
                                 (let [below (LinkedHashMap.)] (.put found k below) below))]
                   (collect below v)))
               nil x)
    :else (.put found ::plain true))
  found)

(defn- leaves
  "The paths of the fields that were found; those in vectors stay together. Where some values have fields and others are
  plain, they stay together too."
  [path ^LinkedHashMap found]
  (if (or (.isEmpty found) (.containsKey found ::plain))
    [path]
    (mapcat (fn [[k below]] (leaves (conj path k) below)) found)))

(defn- tree-leaves
  "The paths of the fields of a tree."
  [path {:keys [fields]}]
  (if fields
    (mapcat (fn [[k tree]] (tree-leaves (conj path k) tree)) fields)
    [path]))

(defn- side-leaves
  "The paths of the fields of one side: those of all rows, or if there are no rows those of its tree."
  [side rows trees]
  (if (seq rows)
    (leaves [side] (reduce (fn [found row] (collect found (get row side))) (LinkedHashMap.) rows))
    (tree-leaves [side] (get trees side))))

(defn field-name
  "A field's name as a title.

      (field-name :tx-bytes) ;=> \"tx-bytes\""
  [k]
  (if (keyword? k) (subs (str k) 1) (str k)))

(defn- title
  "The names on a path, without the side where the rest says it all."
  [[side & names] clashes?]
  (cond
    (empty? names) (str/upper-case (name side))
    clashes? (fields/path-text (map field-name (cons side names)))
    :else (fields/path-text (map field-name names))))

(defn columns
  "Columns for the sides, such as `[:key :value]`, of rows; without rows, of what `trees` say, by side (see `bpfmap.cli.tree`).
  A field whose name is one of the sides or of `others`, further fields of the rows, has the side in its title.

      (map :title (columns [:key :value] [{:key {:src \"10.0.0.1\"} :value 3}])) ;=> (\"src\" \"VALUE\")"
  ([sides rows] (columns sides rows nil))
  ([sides rows trees] (columns sides rows trees nil))
  ([sides rows trees others]
   (let [of-side (into {} (for [side sides
                                :let [paths (side-leaves side rows trees)]]
                            [side (if (<= (count paths) (long most-columns)) paths [[side]])]))
         paths (mapcat of-side sides)
         clashes (into #{} (comp (filter (fn [[_ n]] (< 1 (long n)))) (map key)) (frequencies (map #(title % false) paths)))
         taken (into #{"key" "value"} others)
         clashes? (fn [[_ name] plain]
                    (or (clashes plain) (and name (taken (str/lower-case (field-name name))))))]
     (map-indexed (fn [i path]
                    (let [plain (title path false)]
                      (cond-> {:title (if (clashes? path plain) (title path true) plain)
                               :of #(get-in % path) :cell output/element-cell
                               :side (first path) :path path
                               :least (if (next path) 12 16)}
                        (pos? (long i)) (assoc :rank i))))
                  paths))))

(defn csv-columns
  "Columns for the sides of rows as comma-separated values: each has the tree that `trees` have for it.

      (csv-columns [:key] {:key {:leaves 1}}) ;=> ({:title \"key\" :of :key :tree {:leaves 1}})"
  [sides trees]
  (for [side sides]
    {:title (name side) :of side :tree (get trees side tree/leaf)}))
