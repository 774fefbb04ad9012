(ns ^:no-doc bpfmap.metrics.page.readings
  "Readings of all maps of the host, for the page.

  The numbers of entries are read each time, and what takes longer (memory, owners, pins) less
  often."
  (:require [bpfmap.exec.host :as exec.host]
            [bpfmap.exec.map-info :as map-info]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.host.pressure :as pressure]
            [bpfmap.metrics.maps :as maps]
            [bpfmap.metrics.page.shared :as shared]))

(set! *warn-on-reflection* true)

(def interval "Milliseconds between two readings of the host." 2000)

(def ^:private owners-interval "Milliseconds between two readings of owners." 10000)

(defn- owners
  "Returns the rows of `list` by id: names, memory, pins and owners."
  []
  (into {} (map (juxt :id #(select-keys % [:name :memlock :held :used-by :pinned :frozen])))
        (exec.host/list-maps {:columns [["id"] ["name"] ["memlock"] ["held"] ["used-by"]
                                        ["pinned"] ["frozen"]]})))

(defn- numbers
  "Returns the infos of all maps with their entries, `:full` and `:fill`."
  []
  (let [counts (pressure/kernel-counts)
        until (pressure/deadline 250)]
    (holders/maps
     {:brief true
      :row (fn [scanner info]
             (let [n (exec.host/entries info false #(pressure/entries scanner info counts until))]
               (cond-> (map-info/with-entries info info n (constantly true))
                 (map-info/ring? info) (assoc :fill (map-info/fill info)))))})))

(defn source
  "Returns the source of readings of the host, `{:rows}`, or `{:error}`."
  []
  (let [slow (shared/source owners-interval (fn [_] (owners)))]
    (shared/source interval
                   (fn [_]
                     (maps/or-failed
                      #(hash-map :error (maps/failure %))
                      (let [infos (numbers)
                            [_ by-id] (shared/current slow)]
                        {:rows (mapv #(merge % (get by-id (:id %))) infos)}))))))
