(ns ^:no-doc bpfmap.exec.host
  "The commands about the whole host: `list` and `tree`."
  (:require [bpfmap.exec.map-info :as map-info]
            [bpfmap.exec.query :as query]
            [bpfmap.impl.host.inventory :as inventory]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.impl.rules :as rules]))

(set! *warn-on-reflection* true)

(def ^:private cheap-bytes
  "A map of at most so many bytes of keys and values is counted for `list`."
  (* 4 1024 1024))

(def ^:private cheap-calls
  "A map that the kernel reads entry by entry is counted if it has room for so many at most."
  1024)

(defn- cheap? [{:keys [type key-size value-size max-entries]}]
  (let [{:keys [per-cpu batch]} (rules/types type)
        bytes (* (long max-entries) (+ (long key-size) (* (if per-cpu 64 1) (long value-size))))]
    (and (<= bytes (long cheap-bytes))
         (or (contains? batch :read) (<= (long max-entries) (long cheap-calls))))))

(defn- entries
  "Returns how many entries a map has, by `count-entries` if need be.

  Nil if that would take long, or if they cannot be read."
  [{:keys [type max-entries] :as info} every? count-entries]
  (let [{:keys [ops every-index]} (rules/types type)]
    (cond
      every-index max-entries
      (and (:reduce ops) (or every? (cheap? info))) (count-entries))))

;; --- the commands

(defn- wanted
  "A predicate of the keys of a row that are shown, or that a condition or the order looks at."
  [{:keys [columns] :as options}]
  (if (seq columns)
    (into (set columns) (map #(map-info/column [%])) (query/fields-used options))
    (constantly true)))

(defn list-maps
  "Every map on the host, with whose it is; `:skipped` of the metadata says what was left out, and
  why.

  With `:columns`, what takes more than a few system calls is found out only if it is shown or
  looked at.

      (list-maps {}) ;=> [{:id 12, :type :hash, :name \"counts\", … :pinned [] :held [{:pid 4711 :command \"agent\"}] :used-by []}]"
  [{:keys [count columns] :as options}]
  (let [columns (mapv map-info/column columns)
        options (assoc options :fields map-info/list-fields)
        wanted (wanted (assoc options :columns columns))
        entries? (wanted :entries)
        maps (inventory/maps (not-any? wanted [:memlock :frozen])
                             (fn [fd info]
                               (cond-> info
                                 entries? (assoc :entries
                                                 (entries
                                                  info count #(lifecycle/entry-count fd info))))))
        found (into []
                    (keep (fn [[k of]] (when (wanted k) [k (of)])))
                    [[:pinned map-info/pins]
                     [:held map-info/holders]
                     [:used-by map-info/users]])
        row (fn [{:keys [id] :as info}]
              (map-info/ordered (reduce (fn [row [k by-id]] (assoc row k (get by-id id [])))
                                        info found)))
        chosen (fn [row] (apply array-map (mapcat #(vector % (get row %)) columns)))]
    (with-meta (cond->> (query/rows options (eduction (map row) maps))
                 (seq columns) (mapv chosen))
      (meta maps))))

(defn tree
  "What is pinned, by path: on every BPF file system, or below `:directory`.

      (tree {}) ;=> [{:path \"/sys/fs/bpf/counts\" :kind :map :id 12 :name \"counts\" :type :hash}]"
  [{:keys [directory]}]
  (if directory (inventory/pins directory) (inventory/pins)))
