(ns ^:no-doc bpfmap.exec.map-info
  "Facts about maps that several commands show: the order of fields, pins, holders and programs."
  (:require [bpfmap.exec.fields :as fields]
            [bpfmap.exec.listing :as listing]
            [bpfmap.impl.events.ring :as ring]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.host.outer-maps :as outer-maps]
            [bpfmap.impl.host.pressure :as pressure]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.batch-ops :as batch-ops]
            [bpfmap.impl.map.whole-names :as whole-names])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

;; --- fields

(def ^:private order
  (listing/order [:id :type :name :kernel-name :key :key-size :value :value-size :max-entries
                  :entries :full :fill :memlock :frozen :flags :pinned :held :used-by :outer]))

(defn ordered
  "Returns a map's information with its keys in the usual order.

  `owners` has other keys.

      (ordered {:name \"counts\" :id 12} {:pinned []}) ;=> {:id 12, :name \"counts\", :pinned []}"
  [info owners]
  (listing/ordered order info owners))

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
                 ["full" number]
                 ["fill" number]
                 ["memlock" number]
                 ["frozen" {:kind :boolean}]
                 ["flags" {:kind :list :of (name-in map-types/flags (constantly nil))}]
                 ["pinned" {:kind :list :of text}]
                 ["held" {:kind :list :of (fields/row [["pid" number] ["command" text]])}]
                 ["used-by"
                  {:kind :list
                   :of (fields/row [["id" number] ["name" text] ["type" {:kind :name}]])}]
                 ["outer"
                  {:kind :list
                   :of (fields/row [["id" number] ["name" text] ["type" {:kind :name}]])}]
                 ["btf-id" number]
                 ["btf-key-type-id" number]
                 ["btf-value-type-id" number]
                 ["map-extra" number]
                 ["ifindex" number]
                 ["kernel-name" text]]
                {"key" "key-size" "value" "value-size" "max" "max-entries" "memory" "memlock"
                 "held-by" "held"})))

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

;; --- how full

(defn with-entries
  "Adds `:entries` of a map to a row, and `:full` in percent.

  `wanted` is a predicate for these keys. Leaves out `:full` if it has no meaning or the entries
  are unknown. See `bpfmap.impl.host.pressure`.

      (with-entries {} {:type :hash :max-entries 1024} 1000 #{:full}) ;=> {:full 97.7}"
  [row info n wanted]
  (let [full (when (wanted :full) (pressure/full info n))]
    (cond-> row
      (wanted :entries) (assoc :entries n)
      full (assoc :full full))))

(defn counter
  "Returns a function that counts the entries of maps, if possible.

  It takes a scanner and the info of the map that the scanner has open. It reads the numbers of the kernel at once for all maps, and reads other maps for at most a second
  altogether."
  []
  (let [counts (pressure/kernel-counts)
        deadline (pressure/deadline pressure/reading-time)]
    (fn [scanner info]
      (pressure/entries scanner info counts deadline))))

(defn entries-of
  "Returns the number of entries of an open map; nil if it cannot be counted.

  Reads the map for at most a second.

      (entries-of m) ;=> 1024"
  [m {:keys [type id]}]
  (let [{:keys [ops]} (map-types/types type)]
    (when (contains? ops :reduce)
      (try
        (or (batch-ops/count-entries m (pressure/deadline pressure/reading-time))
            (when (pressure/counted-by-kernel? type) (get (pressure/kernel-counts) id)))
        (catch ExceptionInfo _ nil)))))

;; --- owners

(defn- by-id
  "Returns a map from ids to vectors.

  `(f add all x)` adds the values of each x with `(add all id y)`."
  [f xs]
  (let [add (fn [all id y] (assoc! all id (conj (get all id []) y)))]
    (persistent! (reduce (fn [all x] (f add all x)) (transient {}) xs))))

(defn users
  "Returns the programs that use each map, by map id.

  Each is `{:id :name :type}`. `programs` are the infos of all programs.

      (get (users (holders/programs)) 12) ;=> [{:id 30 :name \"count_packets\" :type :xdp}]"
  [programs]
  (by-id (fn [add all {:keys [map-ids] :as program}]
           (let [user (select-keys program [:id :name :type])]
             (reduce (fn [all id] (add all id user)) all map-ids)))
         programs))

(defn named-with-owners
  "Returns the info of a map with its whole name, and its owners.

  These are its pins, holders, users and outer maps.

      (named-with-owners {:id 12 :name \"flows\"})
      ;=> [{:id 12 :name \"flows\"} {:pinned [] :held [{:pid 4711 :command \"agent\"}] :used-by []}]"
  [{:keys [id] :as info}]
  (let [held (holders/held-maps)
        programs (holders/programs {:brief true})
        pinned (holders/pins-by-id :map)
        outer (get (outer-maps/outer-maps) id)]
    [(whole-names/with-whole-name info (whole-names/namer (delay programs) (delay pinned)))
     (cond-> {:pinned (get pinned id [])
              :held (get-in held [id :holders] [])
              :used-by (get (users programs) id [])}
       outer (assoc :outer outer))]))
