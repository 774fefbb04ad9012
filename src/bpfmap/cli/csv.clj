(ns bpfmap.cli.csv
  "Rows as comma-separated values, with a line of names."
  (:require [bpfmap.cli.output :as output]
            [clojure.data.csv :as csv]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn- flat
  "A value as `[path text]` pairs, one for each leaf of maps and vectors."
  [path x]
  (cond
    (and (map? x) (seq x)) (mapcat (fn [[k v]] (flat (conj path k) v)) x)
    (and (vector? x) (seq x)) (mapcat (fn [i v] (flat (conj path i) v)) (range) x)
    :else [[path (if (nil? x) "" (output/cell x))]]))

(defn- column-name [path]
  (str/join "." (map output/cell path)))

(defn- cells [columns row]
  (mapcat (fn [{:keys [title of csv path]}] (flat (or path [(str/lower-case title)]) ((or csv of) row))) columns))

(defn print-rows
  "Prints rows, or what reduces to rows, on *out*. A structured value becomes a column for each of its leaves, named
  `value.packets`, after those of the first row.

      (print-rows [{:title \"KEY\" :of :key}] [{:key {:src 1 :dst 2}}]) ; prints key.src,key.dst and 1,2"
  [columns rows]
  (let [write #(csv/write-csv *out* [%])
        paths (reduce (fn [paths row]
                        (let [found (cells columns row)
                              paths (or paths (let [paths (mapv first found)]
                                                (write (map column-name paths))
                                                paths))
                              by-path (into {} found)]
                          (write (map #(by-path % "") paths))
                          paths))
                      nil rows)]
    (when-not paths
      (write (map (comp str/lower-case :title) columns)))))
