(ns ^:no-doc bpfmap.exec.column-tree
  "The fields of a map's keys and values as a tree.

  It follows from the types of the map, before any entry is read. A tree is a map:

  | key       | meaning                                                                   |
  |-----------|---------------------------------------------------------------------------|
  | `:leaves` | the number of its columns; 1 for a leaf                                   |
  | `:integer`  | of a leaf: true if it is an integer, which has a rate                   |
  | `:fields` | of a map: `[key tree]` pairs, in order                                    |
  | `:of` `:count` | of a vector: the tree of each element, and the largest number of elements |"
  (:require [bpfmap.exec.fields :as fields]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.type.node :as node]))

(set! *warn-on-reflection* true)

(def ^:private most-leaves
  "The number of leaves up to which keys or values have several columns."
  1024)

(def leaf
  "The tree of a number, a text or anything else that has one column."
  {:leaves 1})

(def ^:private integer (assoc leaf :integer true))

(defn- of-fields
  "Returns the tree of a map; a leaf for a map without fields."
  [fields]
  (if (seq fields)
    {:fields (vec fields) :leaves (reduce + (map (comp :leaves second) fields))}
    leaf))

(defn- of-vector [tree n]
  (if (pos? (long n))
    {:of tree :count n :leaves (*' (:leaves tree) n)}
    leaf))

(defn- of-field
  "Returns the tree of a field of `bpfmap.exec.fields`."
  [{:keys [kind fields of] integer? :integer n :count}]
  (case kind
    :struct (of-fields (map (fn [[name field]] [(keyword name) (of-field field)]) fields))
    :list (of-vector (of-field of) n)
    (if integer? integer leaf)))

(defn- of-type [type types]
  (of-field (fields/of-node (node/node type types []))))

(defn- of-program-field [tree]
  (if-let [fields (:fields tree)]
    (of-fields (map (fn [[k tree]] [k (if (= :program k) (of-fields [[:program-id leaf]]) tree)])
                    fields))
    tree))

(defn- of-side
  "Returns the tree of one key, or of one value of one CPU."
  [{:keys [type types] :as spec} side]
  (when-some [given (get spec side)]
    (let [out (get-in (map-types/types type) [:refers side :out])]
      (case out
        (:map-id :program-id :socket-cookie) (of-fields [[out leaf]])
        :program-field (of-program-field (of-type given types))
        :functions leaf
        (of-type given types)))))

(defn collapsed
  "Returns a tree with a leaf at a path, for an array that is shown as one value.

      (collapsed {:fields [[:a {:of {:leaves 1} :count 6 :leaves 6}]] :leaves 6} [:a])
      ;=> {:fields [[:a {:leaves 1}]], :leaves 1}"
  [{:keys [fields of count] :as tree} path]
  (let [[k & more] path]
    (cond
      ;; Several values of CPUs, or an array on the way
      (and of (or (:fields of) (:of of)) (not (int? k))) (of-vector (collapsed of path) count)
      (nil? k) leaf
      fields (of-fields (map (fn [[name below]]
                               [name (if (= name k) (collapsed below more) below)])
                             fields))
      :else tree)))

(defn- bounded [{:keys [leaves] :as tree}]
  (if (<= leaves most-leaves) tree leaf))

(defn of-entries
  "Returns the trees of the keys and values of a map, `{:key :value}`.

  A side that the map lacks is missing. `cpus` is the number of CPUs whose values are separate,
  nil if there is one value for each key.

      (of-entries {:type :hash :key :u32 :value [:struct [:a :u8] [:b :u8]]} nil)
      ;=> {:key {:leaves 1}, :value {:fields [[:a {:leaves 1}] [:b {:leaves 1}]], :leaves 2}}"
  [spec cpus]
  (let [key (of-side spec :key)
        value (of-side spec :value)]
    (cond-> {}
      key (assoc :key (bounded key))
      value (assoc :value (bounded (if cpus (of-vector value cpus) value))))))

(defn rates
  "Returns the tree of the rates of a value, or nil.

  It has the integers of the value's tree, and no other leaves.

      (rates {:fields [[:n {:leaves 1 :integer true}] [:comm {:leaves 1}]] :leaves 2})
      ;=> {:fields [[:n {:leaves 1 :integer true}]], :leaves 1, :partial true}"
  [{:keys [fields of] integer? :integer n :count :as tree}]
  (cond
    fields (when-let [kept (seq (keep (fn [[k tree]] (when-let [kept (rates tree)] [k kept]))
                                      fields))]
             (assoc (of-fields kept) :partial true))
    of (when-let [kept (rates of)]
         (of-vector kept n))
    integer? tree))

(defn with-collapsed
  "Returns the trees of sides with leaves at some paths, which begin with the side.

      (with-collapsed {:key {:of {:leaves 1} :count 6 :leaves 6}} [[:key]]) ;=> {:key {:leaves 1}}"
  [trees paths]
  (reduce (fn [trees [side & path]] (update trees side collapsed path)) trees paths))

(defn paths
  "Returns the paths of the leaves of a tree, in order.

      (paths {:fields [[:a {:leaves 1}]], :leaves 1}) ;=> ([:a])"
  ([tree] (paths [] tree))
  ([path {:keys [fields of count]}]
   (cond
     fields (mapcat (fn [[k tree]] (paths (conj path k) tree)) fields)
     of (mapcat #(paths (conj path %) of) (range count))
     :else [path])))
