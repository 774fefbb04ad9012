(ns ^:no-doc bpfmap.impl.host.explore
  "What there is on a host as data that leads on: `clojure.datafy/datafy` shows what a thing is,
  `nav` goes to what it names, from the host to its maps, from a map to its entries, from an entry
  to the map or program in it.

  Everything here is plain data with metadata; nothing stays open. Entries are read when they are
  shown, and bounded."
  (:require [bpfmap.impl.host.inventory :as inventory]
            [bpfmap.impl.map.batch-ops :as batch-ops]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.impl.rules :as rules]
            [bpfmap.prog :as prog]
            [clojure.core.protocols :as p])
  (:import (clojure.lang ExceptionInfo IObj)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private shown-entries
  "How many entries of a map `datafy` shows; `nav` to them reads all."
  100)

(declare map-row program-row map-of-id program-of-id)

(defn- leading
  "Data with what `datafy` and `nav` make of it. Functions that are nil leave it as it is."
  [x {:keys [datafy nav]}]
  (vary-meta x merge
             (when datafy {`p/datafy (fn [x] (datafy (vary-meta x dissoc `p/datafy)))})
             (when nav {`p/nav (fn [_ k v] (nav k v))})))

(defn- all-leading
  "A vector of which each element leads on, as `(f element)` says, also when it is gone to."
  [f xs]
  (leading (mapv f xs) {:nav (fn [_ v] (p/datafy v))}))

;; --- what a value names

(defn- followed
  "What a value or a part of it names: an inner map, a program; anything else as it is."
  [x]
  (cond
    (not (map? x)) x
    (= [:map-id] (keys x)) (map-of-id (:map-id x))
    (= [:program-id] (keys x)) (program-of-id (:program-id x))
    :else (leading x {:nav (fn [_ v] (followed v))})))

(defn- error-data [^ExceptionInfo e]
  {:error (:bpfmap/error (ex-data e)) :message (ex-message e)})

(defmacro ^:private or-error
  "Runs body; what it throws as data is the value, as `{:error :message}`: what is looked at may
  be gone."
  [& body]
  `(try
     ~@body
     (catch ExceptionInfo e#
       (error-data e#))))

;; --- maps

(defn- entry [[k v]]
  (let [lead (fn [x] (if (instance? IObj x) (leading x {:nav (fn [_ v] (followed v))}) x))]
    (leading [(lead k) (lead v)] {:nav (fn [_ v] (followed v))})))

(defn- read-entries
  "The first n entries of an open map, or all of them; nil where the kernel does not tell any."
  [m n]
  (when (contains? (:ops (rules/types (:type (bpf-map/identity-of m)))) :reduce)
    (all-leading entry (into [] (if n (take n) identity) (batch-ops/entries m nil)))))

(defn- opened
  "Calls f with a map, opened read-only for the time; `info` has its id, and its types where they
  are known."
  [info f]
  (with-open [^Closeable m (lifecycle/open (:id info) (into {:access :read-only}
                                                            (remove (comp nil? val))
                                                            (select-keys
                                                             info [:key :value :types])))]
    (f m)))

(defn- map-nav [{:keys [id] :as info}]
  (fn [k v]
    (case k
      :entries (or-error (opened info #(read-entries % nil)))
      :used-by (all-leading program-row (inventory/programs-using id))
      v)))

(defn- shown
  "What a map is, with the first of its entries and with what uses it."
  [info m]
  (let [id (:id info)]
    (leading (into info (remove (comp nil? val))
                   {:entries (or-error (read-entries m shown-entries))
                    :used-by (or-error (mapv #(select-keys % [:id :name :type])
                                             (inventory/programs-using id)))})
             {:nav (map-nav (merge info (select-keys (bpf-map/spec-of m) [:types])))})))

(defn- map-row
  "What the kernel says of a map, which leads on to what is in it."
  [info]
  (leading info {:datafy (fn [_] (or-error (opened info #(shown (lifecycle/info %) %))))
                 :nav (map-nav info)}))

(defn of-map
  "What an open map is, with the first of its entries: what `datafy` makes of it.

      (:entries (of-map m)) ;=> [[7 42]]"
  [m]
  (shown (lifecycle/info m) m))

(defn- map-of-id [id]
  (or-error (opened {:id id} #(shown (lifecycle/info %) %))))

;; --- programs, links, pins

(defn- maps-of [ids]
  (all-leading map-row (filter #(some #{(:id %)} ids) (inventory/maps))))

(defn- program-row
  "What the kernel says of a program, which leads on to its maps."
  [{:keys [map-ids] :as info}]
  (leading info {:nav (fn [k v] (if (= :map-ids k) (maps-of map-ids) v))}))

(defn- program-of-id [id]
  (or-error (with-open [^Closeable program (prog/open id)]
              (program-row (prog/info program)))))

(defn- link-row [info]
  (leading info {:nav (fn [k v]
                        (case k
                          :program-id (program-of-id v)
                          :map-id (map-of-id v)
                          v))}))

(defn- pin-row [{:keys [kind id] :as pin}]
  (leading pin {:nav (fn [k v]
                       (case [k kind]
                         [:id :map] (map-of-id id)
                         [:id :program] (program-of-id id)
                         v))}))

;; --- the host

(def ^:private of-host
  {:maps #(all-leading map-row (inventory/maps))
   :programs #(all-leading program-row (inventory/programs))
   :links #(all-leading link-row (inventory/links))
   :pins #(all-leading pin-row (inventory/pins))})

(defn host
  "What there is on the host, read now, which leads on to everything in it.

      (count (:maps (host))) ;=> 12"
  []
  (leading (into (array-map) (for [k [:maps :programs :links :pins]]
                               [k (or-error ((of-host k)))]))
           {:nav (fn [k v] (if-let [read (of-host k)] (or-error (read)) v))}))
