(ns ^:no-doc bpfmap.impl.host.outer-maps
  "Finds the maps of maps that hold a map.

  The kernel does not report them. The values of a map of maps are ids."
  (:require [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.batch-ops :as batch-ops]
            [bpfmap.impl.map.lifecycle :as lifecycle])
  (:import (clojure.lang ExceptionInfo)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private reading-time "Milliseconds for reading all maps of maps of a host." 1000)

(defn- inner-ids
  "Returns the ids of the maps in a map of maps, each once, up to a deadline.

  Returns none for a map that cannot be read or is gone."
  [id until]
  (try
    (with-open [^Closeable m (lifecycle/open id {:access :read-only})]
      (reduce (fn [ids [_ {:keys [map-id]}]]
                (if (pos? (- (System/nanoTime) (long until)))
                  (reduced ids)
                  (cond-> ids map-id (conj map-id))))
              #{} (batch-ops/entries m nil)))
    (catch ExceptionInfo _ #{})))

(defn outer-maps
  "Returns the maps of maps that hold each map, by map id.

  Each is `{:id :name :type}`. Reads maps of maps for at most a second.

      (get (outer-maps) 12) ;=> [{:id 30 :name \"tenants\" :type :hash-of-maps}]"
  []
  (let [until (+ (System/nanoTime) (* 1000000 (long reading-time)))]
    (reduce (fn [found {:keys [id] :as outer}]
              (reduce (fn [found inner]
                        (update found inner (fnil conj [])
                                (select-keys outer [:id :name :type])))
                      found (inner-ids id until)))
            {}
            (filter #(:inner (map-types/types (:type %))) (holders/maps {:brief true})))))
