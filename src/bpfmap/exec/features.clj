(ns ^:no-doc bpfmap.exec.features
  "Implements the command `features`."
  (:require [bpfmap.exec.fields :as fields]
            [bpfmap.exec.query :as query]
            [bpfmap.feature :as feature]
            [bpfmap.impl.map-types :as map-types]))

(set! *warn-on-reflection* true)

(defn- answers
  "Returns the rows for one kind of feature."
  [feature of table answers]
  (for [[name {:keys [supported why]}] (sort-by (comp str key) answers)]
    (cond-> (array-map :feature feature :of of :name name :here supported)
      (:since (get table name)) (assoc :since (:since (get table name)))
      why (assoc :why why))))

(def row-fields
  "The fields of a row of `features`.

  See `bpfmap.exec.fields`."
  (let [name-in (fn [names] {:kind :name :names (into {} (map (fn [k] [(name k) nil])) names)})]
    (fields/row [["feature" (name-in [:map-type :map-flag :operation :element-flag :program-type])]
                 ["of" (name-in (keys map-types/types))]
                 ["name" {:kind :name}]
                 ["here" {:kind :boolean :shown {"?" nil}}]
                 ["since" {:kind :text}]
                 ["why" {:kind :text}]])))

(defn features
  "Returns the BPF features of this kernel, one row each.

  They are map types, create flags and operations of each, flags of element operations, and
  program types. `:here` is nil if the probe was inconclusive; `:why` has the reason.

      (features {}) ;=> [{:feature :map-type, :of nil, :name :hash, :here true, :since \"3.19\"} …]"
  [options]
  (let [{:keys [kernel map-types map-flags operations element-flags
                program-types]} (feature/report)]
    (with-meta
      (query/rows (assoc options :fields row-fields)
                  (concat (answers :map-type nil map-types/types map-types)
                          (mapcat (fn [[type found]] (answers :map-flag type map-types/flags found))
                                  (sort-by key map-flags))
                          (mapcat (fn [[type found]] (answers :operation type nil found))
                                  (sort-by key operations))
                          (answers :element-flag nil nil element-flags)
                          (answers :program-type nil nil program-types)))
      {:kernel kernel})))
