(ns ^:no-doc bpfmap.impl.host.pressure
  "Counts the entries of maps, and tells how full they are.

  From Linux 6.6 an iterator over all maps calls `bpf_map_sum_elem_count`, which adds up the
  counters that hash tables have for each CPU: source kernel/bpf/map_iter.c. That takes no longer
  for a large map. Other maps are read, within a bound in time."
  (:require [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.lifecycle :as lifecycle])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(def ^:private counted-by-kernel
  "The map types whose elements the kernel counts: source kernel/bpf/hashtab.c."
  #{:hash :percpu-hash :lru-hash :lru-percpu-hash :hash-of-maps})

(defn counted-by-kernel?
  "Returns true for a map type whose elements the kernel itself counts.

      (counted-by-kernel? :hash) ;=> true"
  [type]
  (contains? counted-by-kernel type))

(defn kernel-counts
  "Returns the kernel's numbers of elements by map id, of all maps in one read.

  They are exact for a map to which nobody writes. The number is 0 for a map that is not
  [[counted-by-kernel?]]. Returns nil before Linux 6.6, without BTF of the kernel, and without
  CAP_BPF and CAP_PERFMON.

      (get (kernel-counts) 12) ;=> 1024"
  []
  (try
    ;; Loaded on demand, because it takes longer to load than a list of maps.
    ((requiring-resolve 'bpfmap.impl.host.iterator/entry-counts))
    (catch ExceptionInfo _ nil)))

(defn deadline
  "Returns the time of `System/nanoTime` that is so many milliseconds from now."
  ^long [ms]
  (+ (System/nanoTime) (* 1000000 (long ms))))

(defn has-fullness?
  "Returns true for a map type whose number of entries grows up to its maximum.

      (has-fullness? :array) ;=> false"
  [type]
  (and (contains? (:ops (map-types/types type)) :reduce)
       (not (map-types/by-index? type))))

(defn full
  "Returns how full a map is in percent, to a tenth; nil where that has no meaning.

  It has none for arrays, whose entries always exist.

      (full {:type :hash :max-entries 1024} 1000) ;=> 97.7"
  [{:keys [type max-entries]} entries]
  (when (and entries max-entries (pos? (long max-entries)) (has-fullness? type))
    (/ (Math/round (/ (* 1000.0 (long entries)) (long max-entries))) 10.0)))

(defn entries
  "Returns the number of entries of the map that a scanner has open, or nil.

  `counts` are [[kernel-counts]], or nil. A map that is not in them is read, up to the deadline.

      (entries scanner {:id 12 :type :hash} {12 1024} (deadline 1000)) ;=> 1024"
  [scanner {:keys [id type] :as info} counts until]
  (or (when (counted-by-kernel? type) (get counts id))
      (when (contains? (:ops (map-types/types type)) :reduce)
        (lifecycle/entry-count scanner info until))))

(def reading-time "Milliseconds for reading maps that the kernel does not count." 1000)

(defn pressure
  "Returns the entries of the maps of the host, and how full they are in percent.

  Leaves out maps that are never full. A row has no `:entries` if counting took too long.

      (first (pressure))
      ;=> {:id 12 :type :hash :name \"flows\" :entries 1000 :max-entries 1024 :full 97.7}"
  []
  (let [counts (kernel-counts)
        until (deadline reading-time)
        row (fn [scanner {:keys [type max-entries] :as info}]
              (when (and (has-fullness? type) (pos? (long max-entries)))
                (let [n (entries scanner info counts until)]
                  (cond-> (select-keys info [:id :type :name])
                    n (assoc :entries n)
                    true (assoc :max-entries max-entries)
                    n (assoc :full (full info n))))))
        rows (holders/maps {:brief true :row row})]
    (with-meta (into [] (remove nil?) rows) (meta rows))))
