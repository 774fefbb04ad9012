(ns ^:no-doc bpfmap.pod.handles
  "Keeps the objects that a pod's client has open. The client gets handles that stand for them.

  A handle is EDN, `#bpfmap/map {:handle 1, :id 12, :type :hash, :name \"counts\"}`. The number
  identifies the object. The other keys are for people, and are compared, so that a handle of
  another pod is rejected. Numbers are never reused: the number of a closed handle is known to be
  closed, and the table keeps nothing for it."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.events.reader]
            [bpfmap.impl.events.writer]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.prog :as prog])
  (:import (bpfmap.impl.events.reader EventReader)
           (bpfmap.impl.events.writer EventWriter)
           (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.impl.prog.program Program)
           (bpfmap.impl.link.link Link)
           (java.io Closeable)
           (java.util ArrayList HashMap IdentityHashMap Map)))

(set! *warn-on-reflection* true)

(def ^:private words
  "The tags of handles, with the words for their objects in messages."
  (array-map 'bpfmap/map "map"
             'bpfmap/program "program"
             'bpfmap/link "link"
             'bpfmap/watch "watch"
             'bpfmap/reader "reader"
             'bpfmap/writer "writer"
             'bpfmap/subscription "subscription"))

(def tags
  "The tags of handles, as symbols."
  (vec (keys words)))

(defprotocol Openable
  "An object that a client can have open."
  (tag [object] "Returns the tag of the object's handle; nil if it cannot have one.")
  (facts [object] "Returns the facts in the object's handle, as a map."))

(extend-protocol Openable
  nil
  (tag [_] nil)
  Object
  (tag [_] nil)
  BpfMap
  (tag [_] 'bpfmap/map)
  (facts [m] (bpf-map/identity-of m))
  Program
  (tag [_] 'bpfmap/program)
  (facts [program] (select-keys (prog/info program) [:id :type :name]))
  EventReader
  (tag [_] 'bpfmap/reader)
  (facts [reader] (select-keys (first (.-identities ^EventReader reader)) [:id :name]))
  EventWriter
  (tag [_] 'bpfmap/writer)
  (facts [writer] (select-keys (.-identity ^EventWriter writer) [:id :name]))
  Link
  (tag [_] 'bpfmap/link)
  (facts [link] (select-keys (prog/info link) [:id :type :tracepoint])))

;; `objects` maps a number to [object handle], `numbers` an object to its number. Both are guarded
;; by the table itself.
(deftype Table [^Map objects ^Map numbers ^longs issued])

(defn table
  "Returns an empty table."
  ^Table []
  (Table. (HashMap.) (IdentityHashMap.) (long-array 1)))

(defn openable?
  "Returns true if x can have a handle, such as a map or a program.

      (openable? m) ;=> true"
  [x]
  (some? (tag x)))

(defn handle
  "Returns the handle of an object, as a tagged literal.

  An object without a handle gets one. The table closes it.

      (handle table m) ;=> #bpfmap/map {:handle 1, :id 12, :type :hash, :name \"counts\"}"
  [^Table table object]
  (let [^Map objects (.-objects table)
        ^Map numbers (.-numbers table)
        ^longs issued (.-issued table)]
    (locking table
      (if-let [number (.get numbers object)]
        (second (.get objects number))
        (let [number (inc (aget issued 0))
              handle (tagged-literal (tag object) (into {:handle number} (facts object)))]
          (aset issued 0 number)
          (.put objects number [object handle])
          (.put numbers object number)
          handle)))))

(defn- no-handle [tag form hint]
  (error/error :invalid-value (str "A handle must be a result of this pod, got #" tag " " (error/printed form))
               {:bpfmap/hint hint}))

(defn- of-another-pod [tag form]
  (error/error :not-found (str "No open " (words tag) " has the handle " (:handle form))
               {:bpfmap/hint "pass a handle from this pod; it is valid as long as the pod runs"}))

(defn object
  "Returns the object of a handle, given as tag and form.

  Returns `when-closed` if the handle was closed, or throws `:closed` without that argument.
  Throws `:not-found` for a handle of another pod, and `:invalid-value` for anything else.

      (object table 'bpfmap/map {:handle 1 :id 12 :type :hash :name \"counts\"})"
  ([table tag form]
   (let [object (object table tag form ::closed)]
     (if (identical? ::closed object)
       (throw (error/error :closed (str "The " (words tag) " of handle " (:handle form) " is closed")
                           (when (= 'bpfmap/map tag)
                             {:bpfmap/map (error/shown (select-keys form [:id :type :name]))})))
       object)))
  ([^Table table tag form when-closed]
   (let [^Map objects (.-objects table)
         ^longs issued (.-issued table)
         number (when (map? form) (:handle form))]
     (when-not (int? number)
       (throw (no-handle tag form "its :handle must be a number")))
     (locking table
       (let [[object handle] (.get objects number)]
         (cond
           (= handle (tagged-literal tag form)) object
           (and (nil? handle) (<= 1 (long number) (aget issued 0))) when-closed
           :else (throw (of-another-pod tag form))))))))

(defn close
  "Closes an object and removes it from the table.

  Closing it twice has no effect."
  [^Table table ^Closeable object]
  (let [^Map objects (.-objects table)
        ^Map numbers (.-numbers table)]
    (locking table
      (when-let [number (.remove numbers object)]
        (.remove objects number)))
    (.close object)))

(defn close-all
  "Closes all open objects that `which?` accepts, and returns their number."
  ([table] (close-all table any?))
  ([^Table table which?]
   (let [^Map numbers (.-numbers table)
         open (filterv which? (locking table (vec (ArrayList. (.keySet numbers)))))]
     (run! #(close table %) open)
     (count open))))
