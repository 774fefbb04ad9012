(ns ^:no-doc bpfmap.metrics.host
  "Families about all maps and programs of the host: pressure, rings, run time."
  (:require [bpfmap.exec.fields :as fields]
            [bpfmap.exec.map-info :as map-info]
            [bpfmap.exec.query :as query]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.host.pressure :as pressure]))

(set! *warn-on-reflection* true)

(def families
  "The families of the host, in the order of the exposition.

  `:value` is a function of a row, which returns nil for a row without a sample."
  [{:of :maps :name "bpfmap_map_entries" :type :gauge :value :entries
    :help "Entries of the map, for types that can be full."}
   {:of :maps :name "bpfmap_map_max_entries" :type :gauge
    :value #(when (:entries %) (:max-entries %))
    :help "Largest number of entries of the map."}
   {:of :maps :name "bpfmap_map_pressure_ratio" :type :gauge
    :value (fn [{:keys [entries max-entries]}]
             (when entries (/ (double entries) (long max-entries))))
    :help "Entries of the map as a fraction of the largest number."}
   {:of :maps :name "bpfmap_ring_used_bytes" :type :gauge :value :fill
    :help "Bytes in use in the ring buffer, with headers."}
   {:of :maps :name "bpfmap_ring_size_bytes" :type :gauge :value #(when (:fill %) (:max-entries %))
    :help "Size of the ring buffer."}
   {:of :programs :name "bpfmap_program_runs_total" :type :counter :value #(:run-count % 0)
    :help "Runs of the program while the kernel measured."}
   {:of :programs :name "bpfmap_program_run_time_seconds_total" :type :counter
    :value #(/ (double (:run-time-ns % 0)) 1e9)
    :help "Run time of the program while the kernel measured."}
   {:of :programs :name "bpfmap_program_recursion_misses_total" :type :counter
    :value #(:recursion-misses % 0)
    :help "Runs that were left out because the program was running on the same CPU."}])

(defn- selecting [where row-fields]
  (query/selecting {:where where :fields row-fields}))

(defn- map-rows
  "Returns a row for each map that can be full, and for each ring."
  [{:keys [where]}]
  (let [counts (pressure/kernel-counts)
        until (pressure/deadline pressure/reading-time)
        row (fn [scanner {:keys [type max-entries] :as info}]
              (cond
                (map-info/ring? info) info
                (and (pressure/has-fullness? type) (pos? (long max-entries)))
                (let [n (pressure/entries scanner info counts until)]
                  (cond-> info n (assoc :entries n :full (pressure/full info n))))))]
    (into [] (comp (remove nil?)
                   (map #(if-let [fill (when (map-info/ring? %) (map-info/fill %))]
                           (assoc % :fill fill)
                           %))
                   (selecting where map-info/list-fields))
          (holders/maps {:brief true :row row}))))

(defn- program-rows [{:keys [where]}]
  (into []
        (selecting where @(requiring-resolve 'bpfmap.exec.program-info/program-fields))
        (holders/programs {:brief true})))

(defn label-values
  "Returns the values of the labels id, name and type of a row.

      (label-values {:id 12 :name \"flows\" :type :hash}) ;=> [\"12\" \"flows\" \"hash\"]"
  [{:keys [id name type]}]
  [(str id) (or name "") (if (keyword? type) (fields/name-of type) (str type))])

(defn read-host
  "Returns the families of the host.

  They are `{:name :type :help :label-names :rows :dropped}`. `:rows` are pairs of label values and a number. `parts` has the conditions of `:maps` and
  `:programs`; a missing one is left out."
  [parts limit]
  (let [rows {:maps (some-> (:maps parts) map-rows)
              :programs (some-> (:programs parts) program-rows)}]
    (for [{:keys [of value] :as family} families
          :when (get parts of)
          :let [found (into [] (keep (fn [row] (when-let [x (value row)] [(label-values row) x])))
                            (get rows of))
                kept (into [] (take limit) found)]]
      (-> (dissoc family :of :value)
          (assoc :label-names ["id" "name" "type"] :rows kept
                 :dropped (- (count found) (count kept)))))))
