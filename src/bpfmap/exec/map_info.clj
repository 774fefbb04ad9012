(ns ^:no-doc bpfmap.exec.map-info
  "Facts about maps that several commands show: the order of fields, pins, holders and programs."
  (:require [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.query :as query]
            [bpfmap.impl.events.ring :as ring]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.map-types :as map-types])
  (:import (clojure.lang ExceptionInfo PersistentArrayMap)))

(set! *warn-on-reflection* true)

;; --- fields

(def ^:private first-fields
  "The fields that come first in a row; the rest follows by name."
  [:id :type :name :key :key-size :value :value-size :max-entries :entries :fill :memlock :frozen
   :flags :pinned :held :used-by])

(def ^:private first-field? (set first-fields))

(defn ordered
  "Returns a map's information with its keys in the usual order.

  `owners` has other keys. An array map, since making a hash map of each row of a list takes longer
  than everything else about it.

      (ordered {:name \"counts\" :id 12} {:pinned []}) ;=> {:id 12, :name \"counts\", :pinned []}"
  [info owners]
  (let [row (object-array (* 2 (+ (count info) (count owners))))
        add (fn [^long i k x]
              (aset row i k)
              (aset row (inc i) x)
              (+ i 2))
        n (long (reduce (fn [i k]
                          (let [x (get info k ::none)
                                x (if (identical? ::none x) (get owners k ::none) x)]
                            (if (identical? ::none x) i (add i k x))))
                        0 first-fields))]
    (when (< n (alength row))
      (reduce (fn [i k] (add i k (get info k)))
              n (sort (into [] (remove first-field?) (keys info)))))
    (PersistentArrayMap. row)))

(def list-fields
  "The fields of a row of `list`, which are its columns.

  Headings of the table are aliases. See `bpfmap.exec.fields`."
  (let [number {:kind :number}
        text {:kind :text}
        name-in (fn [table value]
                  {:kind :name :names (into {} (map (fn [[k row]] [(name k) (value row)])) table)})]
    (fields/row [["id" number]
                 ["type" (name-in map-types/types :number)]
                 ["name" text]
                 ["key-size" number]
                 ["value-size" number]
                 ["max-entries" number]
                 ["entries" number]
                 ["fill" number]
                 ["memlock" number]
                 ["frozen" {:kind :boolean}]
                 ["flags" {:kind :list :of (name-in map-types/flags (constantly nil))}]
                 ["pinned" {:kind :list :of text}]
                 ["held" {:kind :list :of (fields/row [["pid" number] ["command" text]])}]
                 ["used-by"
                  {:kind :list
                   :of (fields/row [["id" number] ["name" text] ["type" {:kind :name}]])}]
                 ["btf-id" number]
                 ["btf-key-type-id" number]
                 ["btf-value-type-id" number]
                 ["map-extra" number]
                 ["ifindex" number]]
                {"key" "key-size" "value" "value-size" "max" "max-entries" "memory" "memlock"
                 "held-by" "held"})))

(defn column
  "Returns the key of a row for a column of `list`, given as a path.

  Accepts aliases. Throws `:usage` for an unknown column.

      (column [\"memory\"]) ;=> :memlock"
  [path]
  (let [real (query/real-path list-fields path)
        field (keyword (first real))]
    (when (next real)
      (throw (arguments/refused "list" :columns (fields/path-text path)
               (str "must be a whole column, such as " (first real)))))
    field))

;; --- rings

(defn ring?
  "Returns true for the info of a ring buffer or user ring buffer.

      (ring? {:id 12 :type :ringbuf}) ;=> true"
  [{:keys [type]}]
  (or (identical? :ringbuf type) (identical? :user-ringbuf type)))

(defn fill
  "Returns the bytes in use in a ring, headers included, from its info.

  Returns nil if it cannot be mapped.

      (fill {:id 12 :type :ringbuf :max-entries 4096}) ;=> 48"
  [info]
  (try
    (ring/fill info :list)
    (catch ExceptionInfo _ nil)))

;; --- owners

(defn- by-map
  "Returns a map from map ids to vectors.

  `(f add all x)` adds the values of each x with `(add all id y)`."
  [f xs]
  (let [add (fn [all id y] (assoc! all id (conj (get all id []) y)))]
    (persistent! (reduce (fn [all x] (f add all x)) (transient {}) xs))))

(defn users
  "Returns the programs that use each map, by map id.

  Each is `{:id :name :type}`.

      (get (users) 12) ;=> [{:id 30 :name \"count_packets\" :type :xdp}]"
  []
  (by-map (fn [add all {:keys [map-ids] :as program}]
            (let [user (select-keys program [:id :name :type])]
              (reduce (fn [all id] (add all id user)) all map-ids)))
          (holders/programs {:brief true})))

(defn pins
  "Returns the paths of the pins of each map, by map id.

      (get (pins) 12) ;=> [\"/sys/fs/bpf/counts\"]"
  []
  (by-map (fn [add all {:keys [kind id path]}] (if (= :map kind) (add all id path) all))
          (holders/pins)))

(defn owners
  "Returns a function from a map's id to its pins, holders and users.

      ((owners) 12) ;=> {:pinned [\"/sys/fs/bpf/counts\"] :held [{:pid 4711 :command \"agent\"}] :used-by []}"
  []
  (let [held (holders/held-maps)
        used (users)
        pinned (pins)]
    (fn [id]
      {:pinned (get pinned id []) :held (get-in held [id :holders] []) :used-by (get used id [])})))
