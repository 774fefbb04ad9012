(ns ^:no-doc bpfmap.exec.listing
  "Selects the columns of lists of maps, programs and links, and orders the fields of their rows."
  (:require [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.query :as query])
  (:import (clojure.lang PersistentArrayMap)))

(set! *warn-on-reflection* true)

;; --- columns

(defn column
  "Returns the key of a row for a column, given as a path.

  Accepts aliases of the fields. Throws `:usage` for an unknown column.

      (column \"list\" map-info/list-fields [\"memory\"]) ;=> :memlock"
  [command row-field path]
  (let [real (query/real-path row-field path)
        field (keyword (first real))]
    (when (next real)
      (throw (arguments/refused command :columns (fields/path-text path)
               (str "must be a whole column, such as " (first real)))))
    field))

(defn plan
  "Returns what a list has to read: `{:columns :options :wanted :named}`.

  `:wanted` is a predicate for the keys that are shown, or that rows are selected by; `:named` is
  the set of those that the options name; `:options` are for `bpfmap.exec.query`.

      ((:wanted (plan \"list\" map-info/list-fields {:columns [[\"id\"]]})) :held) ;=> nil"
  [command row-field {:keys [columns] :as options}]
  (let [columns (mapv #(column command row-field %) columns)
        options (assoc options :fields row-field)
        named (into (set columns)
                    (map #(column command row-field [%]))
                    (query/fields-used options))]
    {:columns columns
     :options options
     :named named
     :wanted (if (seq columns) named (constantly true))}))

(defn rows
  "Returns the rows that the options of a plan select, with its columns only.

      (rows (plan \"list\" map-info/list-fields {:columns [[\"id\"]]}) [{:id 12 :name \"a\"}]) ;=> [{:id 12}]"
  [{:keys [columns options]} all]
  (let [chosen (fn [row] (apply array-map (mapcat #(vector % (get row %)) columns)))]
    (cond->> (query/rows options all)
      (seq columns) (mapv chosen))))

;; --- fields

(defn order
  "Returns an order of fields: these first, and the rest by name.

      (ordered (order [:id :name]) {:name \"counts\" :flags #{} :id 12} nil)
      ;=> {:id 12, :name \"counts\", :flags #{}}"
  [first-fields]
  {:first (object-array first-fields) :leading (set first-fields)})

(defn ordered
  "Returns a row of an object's info and its owners, with the keys in an order.

  An array map, since making a hash map of each row of a list takes longer than everything else
  about it. See [[order]]."
  [{leading :leading ^objects first-fields :first} info owners]
  (let [row (object-array (* 2 (+ (count info) (count owners))))
        start (loop [i 0 n 0]
                (if (< i (alength first-fields))
                  (let [k (aget first-fields i)
                        x (get info k ::none)
                        x (if (identical? ::none x) (get owners k ::none) x)]
                    (if (identical? ::none x)
                      (recur (inc i) n)
                      (do (aset row n k)
                          (aset row (inc n) x)
                          (recur (inc i) (+ n 2)))))
                  n))]
    (when (< start (alength row))
      (reduce-kv (fn [n k x]
                   (if (contains? leading k)
                     n
                     (loop [i (long n)] ; the place of the key among those since start
                       (if (and (< start i) (neg? (compare k (aget row (- i 2)))))
                         (do (aset row i (aget row (- i 2)))
                             (aset row (inc i) (aget row (dec i)))
                             (recur (- i 2)))
                         (do (aset row i k)
                             (aset row (inc i) x)
                             (+ (long n) 2))))))
                 start info))
    (PersistentArrayMap. row)))
