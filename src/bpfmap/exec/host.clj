(ns ^:no-doc bpfmap.exec.host
  "The commands about the whole host: `list` and `tree`."
  (:require [bpfmap.exec.listing :as listing]
            [bpfmap.exec.map-info :as map-info]
            [bpfmap.exec.progress :as progress]
            [bpfmap.exec.selection :as selection]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.host.outer-maps :as outer-maps]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.impl.map.whole-names :as whole-names]
            [bpfmap.impl.waiting :as waiting]))

(set! *warn-on-reflection* true)

(def ^:private cheap-bytes
  "The largest map, in bytes of keys and values, whose entries `list` counts."
  (* 4 1024 1024))

(def ^:private cheap-calls
  "The largest map, in entries, that is counted without batches.

  The kernel has no batches for some map types."
  1024)

(defn- cheap? [{:keys [type key-size value-size max-entries]}]
  (let [{:keys [per-cpu batch]} (map-types/types type)
        bytes (* (long max-entries) (+ (long key-size) (* (if per-cpu 64 1) (long value-size))))]
    (and (<= bytes (long cheap-bytes))
         (or (contains? batch :read) (<= (long max-entries) (long cheap-calls))))))

(defn entries
  "Returns the number of entries of a map, from `count-entries` if necessary.

  Returns nil if counting would take long, unless `every?` is true, or if the map cannot be
  iterated.

      (entries (bpf/info m) false #(bpf/count-entries m)) ;=> 3"
  [{:keys [type max-entries] :as info} every? count-entries]
  (let [{:keys [ops every-index]} (map-types/types type)]
    (cond
      every-index max-entries
      (and (:reduce ops) (or every? (cheap? info))) (count-entries))))

;; --- the commands

(defn list-maps
  "Returns every map on the host with its owners.

  `:skipped` of the metadata has the maps that could not be read. With `:columns`, expensive
  fields are read only if they are used. If the options name `:full`, the entries of large maps are
  counted too; if they name `:outer`, maps of maps are read. `:name` and `:held-by` select maps, see
  `bpfmap.exec.selection`. With `:total`, returns `{:count n}`.

      (list-maps {}) ;=> [{:id 12, :type :hash, :name \"counts\", … :pinned [] :held [{:pid 4711 :command \"agent\"}] :used-by []}]"
  [{:keys [count name held-by total] :as options}]
  (let [{:keys [wanted named] :as plan} (listing/plan "list" map-info/list-fields options)
        wanted (if total named wanted)
        wanted (fn [k]
                 (or (wanted k) (and name (#{:name :kernel-name} k)) (and held-by (= :held k))))
        selecting (apply comp (remove nil? [(map identity)
                                            (when name (filter (selection/named name)))
                                            (when held-by
                                              (let [holder? (selection/held-by held-by)]
                                                (filter #(some holder? (:held %)))))]))
        held? (wanted :held)
        memory? (or (wanted :memlock) (wanted :frozen))
        counter (when (and (named :full) (not count)) (map-info/counter))
        count-entries (fn [scanner info]
                        (if counter
                          (entries info true #(counter scanner info))
                          (entries info count #(lifecycle/entry-count scanner info))))
        numbers (fn [scanner info]
                  (cond-> {}
                    (or (wanted :entries) (wanted :full))
                    (map-info/with-entries info (count-entries scanner info) wanted)
                    (and (wanted :fill) (map-info/ring? info))
                    (assoc :fill (map-info/fill info))))
        pins (delay (holders/pins-by-id :map))
        programs (delay (holders/programs {:brief true}))
        named-in (if (or (wanted :name) (wanted :kernel-name))
                   (whole-names/namer programs pins)
                   (constantly nil))
        ;; What this process has open, before it opens the maps for the list.
        own (when held? (holders/own-objects))
        count-map (progress/counter "maps")
        read-maps (fn []
                    [(holders/maps {:brief (or held? (not memory?))
                                    :row (fn [scanner info]
                                           (let [found [info (numbers scanner info)]]
                                             (count-map)
                                             found))})
                     (when (wanted :pinned) @pins)
                     (when (wanted :used-by) (map-info/users @programs))])
        ;; The holders take as long to read as everything else. Their fdinfo has the memory of the
        ;; maps, which is read afterwards for maps without a holder.
        [held [maps pinned used]] (waiting/beside #(when held? (holders/held-maps own)) read-maps)
        outer (when (named :outer) (outer-maps/outer-maps))
        row (fn [[{:keys [id] :as info} numbers]]
              (let [{:keys [holders fdinfo]} (get held id)]
                (map-info/ordered
                 (whole-names/with-whole-name info named-in)
                 (cond-> numbers
                   (and held? memory?) (holders/add-memory id fdinfo)
                   held? (assoc :held (or holders []))
                   pinned (assoc :pinned (get pinned id []))
                   used (assoc :used-by (get used id []))
                   outer (assoc :outer (get outer id []))))))]
    (let [rows (listing/rows plan (into [] (comp (map row) selecting) maps))]
      (if total
        {:count (clojure.core/count rows)}
        (with-meta rows (meta maps))))))

(defn tree
  "Returns the pins of every BPF file system, or below `:directory`, by path.

      (tree {}) ;=> [{:path \"/sys/fs/bpf/counts\" :kind :map :id 12 :name \"counts\" :type :hash}]"
  [{:keys [directory]}]
  (if directory (holders/pins directory) (holders/pins)))
