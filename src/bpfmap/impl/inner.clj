(ns bpfmap.impl.inner
  "The spec of an open map; that of a map of maps with what it holds, as far as the kernel tells."
  (:require [bpfmap.impl.lifecycle :as lifecycle]
            [bpfmap.impl.store :as store])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(defn- inner-spec
  "Returns the spec of the first map that a map of maps holds, or nil if it holds none or none can be opened. The kernel takes only
  maps that are like the one for which the map of maps was made."
  [m]
  (try
    (when-let [{:keys [map-id]} (reduce (fn [_ [_ value]] (reduced value)) nil m)]
      (with-open [^java.io.Closeable inner (lifecycle/open {:id map-id} {:access :read-only})]
        (dissoc (store/spec-of inner) :name)))
    (catch ExceptionInfo _ nil)))

(defn spec
  "Returns the spec of the map."
  [m]
  (let [{:keys [inner-map] :as spec} (store/spec-of m)
        inner (when (and (nil? inner-map) (:inner? (store/row-of m)))
                (inner-spec m))]
    (cond-> spec inner (assoc :inner-map inner))))
