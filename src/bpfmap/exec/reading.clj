(ns ^:no-doc bpfmap.exec.reading
  "Implements the commands that read a map: `show`, `types`, `dump` and `get`.

  They open it read-only."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.column-tree :as column-tree]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.map-info :as map-info]
            [bpfmap.exec.progress :as progress]
            [bpfmap.exec.query :as query]
            [bpfmap.exec.shown :as shown]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.type.c :as c]
            [bpfmap.type :as type])
  (:import (clojure.lang ExceptionInfo IReduceInit)
           (java.io File)))

(set! *warn-on-reflection* true)

(defn- show-one
  "Returns the kernel's information about a map, and its owners."
  [options]
  (let [info (with-open [m (input/open options :read-only)]
               (let [info (bpf/info m)
                     {:keys [from] :as found} (input/types-from m options)]
                 (cond-> (merge (map-info/with-entries info info (map-info/entries-of m info)
                                                       (constantly true))
                                (dissoc found :from))
                   from (assoc :types-from from))))
        ;; This process no longer holds the map, because it has closed it.
        [info owners] (map-info/named-with-owners info)]
    (map-info/ordered info (cond-> owners
                             (map-info/ring? info) (assoc :fill (map-info/fill info))))))

(defn- check-selection [command {:keys [ref held-by]}]
  (when-not (or (some? ref) held-by)
    (throw (arguments/missing-option command :ref :held-by))))

(defn show
  "Returns the kernel's information about a map, and its owners.

  Returns a vector if the options select any number of maps; see `input/several?`.

      (show {:ref {:name \"counts\"}})   ;=> {:id 12, :type :hash, …}
      (show {:ref {:glob \"counts*\"}}) ;=> [{:id 12, :type :hash, …}]"
  [options]
  (check-selection "show" options)
  (if (input/several? options)
    (input/for-each options (fn [options _] (show-one options)))
    (show-one options)))

;; --- types

(defn- side [spec side]
  (when-let [t (get spec side)]
    {:type t
     :c (c/declaration t (name side) (:types spec))
     :size (type/size t (:types spec))
     :offsets (type/offsets t (:types spec))}))

(defn- has-events? [m]
  (contains? map-types/event-types (:type (bpf/info m))))

(defn- open-for-types
  "Opens the map of options with its types.

  The type of events is not a type of the map."
  ^java.io.Closeable [{:keys [value-type] :as options}]
  (let [untyped (dissoc options :value-type)]
    (if (with-open [m (input/open untyped :read-only)] (has-events? m))
      (input/open untyped :read-only)
      (do (when (string? value-type)
            (throw (arguments/refused "types" :value-type value-type "must be a type"
                     "only events can have the name of a struct")))
          (input/open-typed options :read-only)))))

(defn- spec-for-types
  "Returns the spec of an open map; events are the values of a map of events."
  [m options]
  (if (has-events? m)
    {:name (:name (bpf/info m))
     :value ((requiring-resolve 'bpfmap.exec.tail/type-of-events) (bpf/info m) options)}
    (bpf/spec m)))

(defn- about-types
  "Returns the source of the types of an open map that has none of its own."
  [m {:keys [key-type value-type types] :as options}]
  (let [info (bpf/info m)
        found ((requiring-resolve 'bpfmap.exec.remembered/find-types) info types)
        reason (input/why-untyped info options)]
    (cond-> {}
      reason (assoc :untyped reason)
      (and reason (or (and (:key found) (not key-type)) (and (:value found) (not value-type))))
      (assoc :types-from (:from found)))))

(defn types
  "Returns the types of keys and values as data and in C, with offsets.

  Those of a ring buffer or perf event array are the type of its events, as `:value`. With
  `:template`, returns a file for the option `:hints` as data. With `:save`, writes the types to the
  file of `:types`, and returns it under `:saved`. For a map without BTF, `:untyped` is the reason,
  and `:types-from` the file that the types are from, or \"bpftrace\".

      (types {:ref {:name \"counts\"}})
      ;=> {:key {:type :u32, :c [\"__u32 key;\"], :size 4, :offsets {}}, :value {…}}"
  [{:keys [template save types] :as options}]
  (when (and template save)
    (throw (arguments/refused "types" :save true ["cannot be combined with " :template])))
  (let [options (cond-> options
                  ;; The file is made by --save.
                  (and save types (not (.exists (File. ^String types)))) (assoc :types "none"))]
    (with-open [m (open-for-types options)]
      (let [spec (spec-for-types m options)
            {:keys [name] :as info} (bpf/info m)
            identity (select-keys info [:id :name :type])]
        (cond
          template
          ((requiring-resolve 'bpfmap.exec.hints/template) (assoc spec :name name))
          save
          {:map identity
           :saved ((requiring-resolve 'bpfmap.exec.remembered/save) info spec types)}
          :else
          (into (array-map :map identity)
                (remove (comp nil? second))
                (into [[:key (side spec :key)]
                       [:value (side spec :value)]]
                      (about-types m options))))))))

;; --- dump

(defn- next-keys
  "Returns the keys of a map that only has next-key, as rows.

  Stops after as many keys as the map can have, because others may delete keys."
  [m]
  (let [{:keys [type max-entries]} (bpf/spec m)]
    (reify IReduceInit
      (reduce [_ f init]
        (loop [k (bpf/next-key m) n (long (map-types/most-keys type max-entries)) acc init]
          (if (or (nil? k) (zero? n))
            acc
            (let [acc (f acc {:key k})]
              (if (reduced? acc) @acc (recur (bpf/next-key m k) (dec n) acc)))))))))

(defn- read-options
  "Returns the options for reading values with `bpfmap.core`, or nil."
  [{:keys [cpus lock]}]
  (cond-> nil
    (int? cpus) (assoc :cpu cpus)
    lock (assoc :lock true)))

(def ^:private listed-by-iterator
  "Types of local storages that `bpfmap.host/local-storage` reads."
  #{:task-storage :cgrp-storage :sk-storage})

(defn- spec-of-rows
  "Returns the spec of an open map with the type of the keys in [[entries]].

  The keys of local storages are the numbers that `bpfmap.host/local-storage` returns."
  [m]
  (let [{:keys [type] :as spec} (bpf/spec m)]
    (cond-> spec (listed-by-iterator type) (assoc :key :u64 :key-size 8))))

(defn- check-dumpable
  "Does the same as `input/check-dumpable`, but accepts local storages."
  [m options]
  (when-not (listed-by-iterator (:type (bpf/spec m)))
    (input/check-dumpable m options)))

(defn- entries
  "Returns the entries of an open map as rows to reduce: `{:key :value}`.

  With `:keys`, rows of a map that only has next-key have only the key.

      (into [] (entries m {})) ;=> [{:key 7 :value 42}]"
  [m {:keys [keys cpus] :as options}]
  (let [{:keys [ops per-cpu]} (input/row-of m)
        of-value (if per-cpu (input/combiner cpus) identity)
        read-options (read-options options)]
    (cond
      (and keys (:next-key ops) (not (:reduce ops)))
      (next-keys m)

      (listed-by-iterator (:type (bpf/spec m)))
      (into [] (comp (map (fn [[k v]] {:key k :value v})) (progress/counting "entries"))
            ((requiring-resolve 'bpfmap.impl.host.local-storage/entries) m))

      :else
      (eduction (map (fn [[k v]] {:key k :value (of-value v)}))
                (progress/counting "entries")
                (if read-options (bpf/entries m read-options) m)))))

(defn- with-fields
  "Returns options with the `:fields` of the entries of an open map.

  They are for `bpfmap.exec.query`."
  [m {:keys [cpus] :as options}]
  (assoc options :fields (fields/of-entries (bpf/spec m) cpus)))

(defn- about
  "Returns the metadata of entries: type and spec of the map, CPUs, and `:untyped`.

  `:untyped` is the reason for having no types, `:collapsed` the paths of arrays that the shower of
  hints shows as one value."
  [m {:keys [cpus] :as options} shower]
  (let [{:keys [type key value] :as info} (bpf/info m)
        bytes? #(and (vector? %) (= :bytes (first %)))]
    {:type type
     :spec (bpf/spec m)
     :cpus (input/cpus-apart m cpus)
     :collapsed (:collapsed shower)
     :untyped (when (or (bytes? key) (bytes? value))
                (input/why-untyped info options))}))

(defn- requested
  "Returns a transducer to the requested parts of rows, shown by hints.

  With `:keys`, these are only the keys."
  [{:keys [keys]} shower]
  (comp (shown/showing shower)
        (map (if keys #(select-keys % [:outer :key]) identity))))

;; --- inner maps

(defn- open-inner
  "Opens an inner map with the types of the options; nil if it no longer exists."
  ^java.io.Closeable [options {{:keys [map-id]} :value}]
  (try
    (input/open (assoc options :ref {:id map-id}) :read-only)
    (catch ExceptionInfo e
      (when-not (= :not-found (:bpfmap/error (ex-data e)))
        (throw e)))))

(defn- inner-rows
  "Returns the entries of an inner map as rows.

  They have the key of the outer map as `:outer`."
  [options {:keys [key] :as entry}]
  (when-let [inner (open-inner options entry)]
    (with-open [inner inner]
      (into [] (map #(array-map :outer key :key (:key %) :value (:value %)))
            (entries inner options)))))

(defn- check-outer
  "Throws `:usage` if a map is not a map of maps."
  [m]
  (when-not (:inner (input/row-of m))
    (throw (arguments/refused "dump" :inner true "requires a map of maps"
             (let [{:keys [id type]} (bpf/info m)]
               (str "map " id " is of type " (name type)))))))

(defn- with-inner
  "Calls f as [[with-rows]] does, with the entries of the inner maps of a map."
  [{:keys [outer-type] :as options} f]
  (with-open [m (input/open (-> options (dissoc :value-type) (assoc :key-type outer-type))
                            :read-only)]
    (check-outer m)
    (let [outer (into [] (map (fn [[k v]] {:key k :value v})) m)
          about-inner (fn [inner]
                        (check-dumpable inner options)
                        (let [shower (shown/shower options (bpf/spec inner) inner)]
                          [(with-fields inner options) (about inner options shower) shower]))
          [inner-options about shower]
          (or (some #(when-let [inner (open-inner options %)]
                       (with-open [inner inner] (about-inner inner)))
                    outer)
              (let [spec (or (:inner-map (bpf/spec m)) {:type :hash})]
                [(assoc options :fields (fields/of-entries spec (:cpus options)))
                 {:type (:type spec) :spec spec} nil]))
          outer-spec (bpf/spec m)]
      (f (eduction (mapcat #(inner-rows options %)) outer)
         (update-in inner-options [:fields :fields]
                    #(into [["outer" (fields/of-side outer-spec :key)]] %))
         (assoc about
                :map (select-keys (bpf/info m) [:id :name :type])
                :outer (:key (column-tree/of-entries outer-spec nil)))
         shower))))

(defn- with-rows
  "Opens the map of the options and calls `(f rows options about shower)`.

  `rows` are entries to reduce, the options have their `:fields`; see [[about]]."
  [{:keys [inner] :as options} f]
  (if inner
    (with-inner options f)
    (with-open [m (input/open-typed options :read-only)]
      (check-dumpable m options)
      (let [shower (shown/shower options (spec-of-rows m) m)]
        (f (entries m options)
           (with-fields m options)
           (assoc (about m options shower) :map (select-keys (bpf/info m) [:id :name :type]))
           shower)))))

(defn- stream-of
  "Returns a reducible that calls `(f told step init)`.

  `:about` of its metadata is an atom with the result of [[about]], set at the beginning of each
  reduction."
  [f]
  (let [told (atom nil)]
    (with-meta (reify IReduceInit
                 (reduce [_ step init] (f told step init)))
      {:about told})))

(defn- count-one
  "Returns the number of entries of a map that the options select, and the map."
  [options]
  (with-rows options
    (fn [rows options about _]
      (array-map :map (:map about)
                 :count (transduce (comp (query/selecting options) (map (constantly 1)))
                                   + 0 rows)))))

(defn- dump-one
  "Returns the entries of a map."
  [options]
  (with-rows options
    (fn [rows options about shower]
      (with-meta (into [] (requested options shower) (query/rows options rows))
        about))))

(defn- check-options
  "Throws `:usage` for options of `dump` that exclude each other."
  [{:keys [stream sort count inner outer-type] :as options}]
  (when (and outer-type (not inner))
    (throw (arguments/refused "dump" :outer-type outer-type ["requires " :inner])))
  (when (and stream sort)
    (throw (arguments/refused "dump" :stream true ["cannot be combined with " :sort])))
  (when (and stream count)
    (throw (arguments/refused "dump" :stream true ["cannot be combined with " :count])))
  (when (and stream (input/several? options))
    (throw (arguments/refused "dump" :stream true "requires one map"))))

(defn dump
  "Returns the entries of a map, in the kernel's order.

  With `:stream`, returns a reducible, which opens the map for each reduction. The metadata has
  the map's `:type` and `:spec`, and the reason why entries are bytes under `:untyped`. With
  `:count`, returns `{:map :count}`. If the options select any number of maps, returns a vector of
  `{:map :entries}`, or of `{:map :count}`; see `input/several?`. An error about one of them is the
  element `{:id :name :type :error :message}`, or `{:ref :error :message}`. With `:inner`, the entries of
  the inner maps of a map of maps have its key as `:outer`.

      (dump {:ref {:name \"counts\"} :key-type :u32 :value-type :u64}) ;=> [{:key 7, :value 42}]
      (dump {:ref {:glob \"counts*\"} :count true}) ;=> [{:map {:id 12, …}, :count 1}]"
  [{:keys [stream count] :as options}]
  (check-selection "dump" options)
  (check-options options)
  (cond
    stream
    (stream-of
     (fn [told f init]
       (with-rows options
         (fn [rows options about shower]
           (reset! told about)
           (transduce (comp (query/selecting options) (requested options shower))
                      (completing f) init rows)))))

    (input/several? options)
    (input/for-each options
                    (fn [options m]
                      (if count
                        (assoc (count-one options) :map m)
                        (array-map :map m :entries (dump-one options)))))

    count (count-one options)
    :else (dump-one options)))

;; --- one entry

(defn get-entry
  "Returns the entry of a key, or nil.

  For a queue or stack without a key, returns the next value. For a bloom filter, returns whether
  it may contain the value.

      (get-entry {:ref {:name \"counts\"} :key 7}) ;=> {:key 7, :value 42}"
  [{:keys [cpus] :as options}]
  (input/call-typed options :read-only [:key]
    (fn [m {:keys [key] :as typed} _]
      (input/check-key m "get" typed)
      (let [{:keys [ops per-cpu]} (input/row-of m)
            show (:row (shown/shower options (bpf/spec m) m) identity)
            found (fn [v] (when-not (= ::none v) v))]
        (cond
          (:might-contain? ops) {:value key :might-contain (bpf/might-contain? m key)}
          (:peek ops) (when-some [v (found (bpf/peek m ::none))] (show {:value v}))
          :else (let [read-options (read-options options)
                      v (if read-options
                          (bpf/lookup m key ::none read-options)
                          (bpf/lookup m key ::none))]
                  (when-not (= ::none v)
                    (show {:key key :value (if per-cpu ((input/combiner cpus) v) v)}))))))))
