(ns ^:no-doc bpfmap.impl.host.explore
  "Shows the objects of a host as navigable data, for `datafy` and `nav`.

  `clojure.datafy/datafy` returns the details of an object, `nav` follows a reference: from the
  host to its maps, from a map to its entries, from an entry to the map or program in it.

  Everything is plain data with metadata, and nothing stays open. Entries are read on demand;
  their number is limited."
  (:require [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.batch-ops :as batch-ops]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.prog :as prog]
            [clojure.core.protocols :as p])
  (:import (clojure.lang ExceptionInfo IObj)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private max-entries
  "The number of entries of a map that `datafy` reads.
  `nav` to them reads all."
  100)

(declare map-row program-row map-of-id program-of-id)

(defn- with-nav
  "Returns x with functions for `datafy` and `nav` in its metadata.

  A function that is nil leaves the default."
  [x {:keys [datafy nav]}]
  (vary-meta x merge
             (when datafy {`p/datafy (fn [x] (datafy (vary-meta x dissoc `p/datafy)))})
             (when nav {`p/nav (fn [_ k v] (nav k v))})))

(defn- with-nav-each
  "Returns a vector of `(f x)` for each x.
  `nav` to an element also datafies it."
  [f xs]
  (with-nav (mapv f xs) {:nav (fn [_ v] (p/datafy v))}))

;; --- references in values

(defn- follow
  "Returns the inner map or program that a value refers to; else the value.

  The value can be navigated in the same way."
  [x]
  (cond
    (not (map? x)) x
    (= [:map-id] (keys x)) (map-of-id (:map-id x))
    (= [:program-id] (keys x)) (program-of-id (:program-id x))
    :else (with-nav x {:nav (fn [_ v] (follow v))})))

(defn- error-data [^ExceptionInfo e]
  {:error (:bpfmap/error (ex-data e)) :message (ex-message e)})

(defmacro ^:private or-error
  "Runs body; returns an error as `{:error :message}`: the object may have gone."
  [& body]
  `(try
     ~@body
     (catch ExceptionInfo e#
       (error-data e#))))

;; --- maps

(defn- entry [[k v]]
  (let [part (fn [x] (if (instance? IObj x) (with-nav x {:nav (fn [_ v] (follow v))}) x))]
    (with-nav [(part k) (part v)] {:nav (fn [_ v] (follow v))})))

(defn- read-entries
  "Returns the first n entries of an open map, or all of them if n is nil.

  Returns nil if the map cannot be iterated."
  [m n]
  (when (contains? (:ops (map-types/types (:type (bpf-map/identity-of m)))) :reduce)
    (with-nav-each entry (into [] (if n (take n) identity) (batch-ops/entries m nil)))))

(defn- with-opened
  "Calls f with a map, opened read-only during the call.

  `info` has its id, and its types if they are known."
  [info f]
  (with-open [^Closeable m (lifecycle/open (:id info) (into {:access :read-only}
                                                            (remove (comp nil? val))
                                                            (select-keys
                                                             info [:key :value :types])))]
    (f m)))

(defn- map-nav [{:keys [id] :as info}]
  (fn [k v]
    (case k
      :entries (or-error (with-opened info #(read-entries % nil)))
      :used-by (with-nav-each program-row (holders/programs-using id))
      v)))

(defn- map-details
  "Returns the info of a map with its first entries and the programs that use it."
  [info m]
  (let [id (:id info)]
    (with-nav (into info (remove (comp nil? val))
                    {:entries (or-error (read-entries m max-entries))
                     :used-by (or-error (mapv #(select-keys % [:id :name :type])
                                              (holders/programs-using id)))})
      {:nav (map-nav (merge info (select-keys (bpf-map/spec-of m) [:types])))})))

(defn- map-row
  "Returns the info of a map, navigable to its entries and programs."
  [info]
  (with-nav info
    {:datafy (fn [_] (or-error (with-opened info #(map-details (lifecycle/info %) %))))
     :nav (map-nav info)}))

(defn of-map
  "Returns the details of an open map, with its first entries.
  For `datafy`.

      (:entries (of-map m)) ;=> [[7 42]]"
  [m]
  (map-details (lifecycle/info m) m))

(defn- map-of-id [id]
  (or-error (with-opened {:id id} #(map-details (lifecycle/info %) %))))

;; --- programs, links, pins

(defn- maps-of [ids]
  (with-nav-each map-row (filter #(some #{(:id %)} ids) (holders/maps))))

(defn- program-row
  "Returns the info of a program, navigable to its maps."
  [{:keys [map-ids] :as info}]
  (with-nav info {:nav (fn [k v] (if (= :map-ids k) (maps-of map-ids) v))}))

(defn- program-of-id [id]
  (or-error (with-open [^Closeable program (prog/open id)]
              (program-row (prog/info program)))))

(defn- link-row [info]
  (with-nav info {:nav (fn [k v]
                         (case k
                           :program-id (program-of-id v)
                           :map-id (map-of-id v)
                           v))}))

(defn- pin-row [{:keys [kind id] :as pin}]
  (with-nav pin {:nav (fn [k v]
                        (case [k kind]
                          [:id :map] (map-of-id id)
                          [:id :program] (program-of-id id)
                          v))}))

;; --- objects

(defn of-object
  "Returns the state of a loaded object as data.
  For `datafy`.

      (get-in (of-object x) [:variables \"packets\"]) ;=> 42"
  [x]
  (with-nav {:name (:name x)
             :license (:license x)
             :maps (update-vals (:maps x) #(or-error (lifecycle/info %)))
             :programs (update-vals (:programs x) #(or-error (program-row (prog/info %))))
             :variables (update-vals (:variables x) #(or-error (deref %)))}
    {:nav (fn [k v]
            (if (= :maps k)
              (update-vals (:maps x) #(or-error (of-map %)))
              v))}))

;; --- the host

(def ^:private of-host
  {:maps #(with-nav-each map-row (holders/maps))
   :programs #(with-nav-each program-row (holders/programs))
   :links #(with-nav-each link-row (holders/links))
   :pins #(with-nav-each pin-row (holders/pins))})

(defn host
  "Returns the objects of the host, read now and navigable.

      (count (:maps (host))) ;=> 12"
  []
  (with-nav (into (array-map) (for [k [:maps :programs :links :pins]]
                                [k (or-error ((of-host k)))]))
    {:nav (fn [k v] (if-let [read (of-host k)] (or-error (read)) v))}))
