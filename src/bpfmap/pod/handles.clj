(ns ^:no-doc bpfmap.pod.handles
  "What the client of a pod has open: the pod keeps the object, the client gets a handle that
  stands for it.

  A handle is EDN, `#bpfmap/map {:handle 1, :id 12, :type :hash, :name \"counts\"}`. The number
  says which object it is; the rest is for people, and is compared, so that a handle of another
  pod is not taken for one of this. Numbers are not used twice: a handle that was closed is known
  as such, and the table holds nothing for it."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.pod.watch :as watch]
            [bpfmap.prog :as prog])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.pod.watch Watch)
           (bpfmap.prog Attachment Program)
           (java.io Closeable)
           (java.util ArrayList HashMap IdentityHashMap Map)))

(set! *warn-on-reflection* true)

(def ^:private kinds
  "What may be open, by its tag: its class, what a handle says of it beside the number, and what
  people call it."
  [{:tag 'bpfmap/map :class BpfMap :facts bpf-map/identity-of :word "map"}
   {:tag 'bpfmap/program :class Program :facts #(select-keys (prog/info %) [:id :type :name])
    :word "program"}
   {:tag 'bpfmap/attachment :class Attachment
    :facts #(select-keys (prog/info %) [:id :type :tracepoint]) :word "attachment"}
   {:tag 'bpfmap/watch :class Watch :facts #(select-keys (watch/map-of %) [:id :name])
    :word "watch"}])

(def tags
  "The tags of handles, as symbols."
  (mapv :tag kinds))

(defn- kind-of [object]
  (some #(when (instance? (:class %) object) %) kinds))

;; `objects` maps a number to [object handle], `numbers` an object to its number. Both are guarded
;; by the table itself.
(deftype Table [^Map objects ^Map numbers ^longs issued])

(defn table
  "Makes a table in which nothing is open."
  ^Table []
  (Table. (HashMap.) (IdentityHashMap.) (long-array 1)))

(defn openable?
  "Whether x is something that has a handle: a map, a program, an attachment.

      (openable? m) ;=> true"
  [x]
  (some? (kind-of x)))

(defn handle
  "The handle of an object, as a tagged literal. An object that has none gets one, and is the
  table's to close.

      (handle table m) ;=> #bpfmap/map {:handle 1, :id 12, :type :hash, :name \"counts\"}"
  [^Table table object]
  (let [^Map objects (.-objects table)
        ^Map numbers (.-numbers table)
        ^longs issued (.-issued table)]
    (locking table
      (if-let [number (.get numbers object)]
        (second (.get objects number))
        (let [{:keys [tag facts]} (kind-of object)
              number (inc (aget issued 0))
              handle (tagged-literal tag (into {:handle number} (facts object)))]
          (aset issued 0 number)
          (.put objects number [object handle])
          (.put numbers object number)
          handle)))))

(defn- word [tag]
  (some #(when (= tag (:tag %)) (:word %)) kinds))

(defn- no-handle [tag form hint]
  (error/error :invalid-value (str "Not a handle: #" tag " " (pr-str (error/shown form)))
               {:bpfmap/hint hint}))

(defn- of-another-pod [tag form]
  (error/error :not-found (str "No open " (word tag) " has the handle " (:handle form))
               {:bpfmap/hint "it is not of this pod; a handle is what create, open or load returned, as long as the pod runs"}))

(defn object
  "The object of a handle, as its tag and form; `when-closed` where the handle was closed, or else
  it throws `:closed`.

  Throws `:not-found` for a handle that this pod has not given out, `:invalid-value` for what is
  none.

      (object table 'bpfmap/map {:handle 1 :id 12 :type :hash :name \"counts\"})"
  ([table tag form]
   (let [object (object table tag form ::closed)]
     (if (identical? ::closed object)
       (throw (error/error :closed (str "The " (word tag) " of handle " (:handle form) " is closed")
                           (when (= 'bpfmap/map tag)
                             {:bpfmap/map (error/shown (select-keys form [:id :type :name]))})))
       object)))
  ([^Table table tag form when-closed]
   (let [^Map objects (.-objects table)
         ^longs issued (.-issued table)
         number (when (map? form) (:handle form))]
     (when-not (int? number)
       (throw (no-handle tag form "its :handle is a number")))
     (locking table
       (let [[object handle] (.get objects number)]
         (cond
           (= handle (tagged-literal tag form)) object
           (and (nil? handle) (<= 1 (long number) (aget issued 0))) when-closed
           :else (throw (of-another-pod tag form))))))))

(defn close
  "Closes an object of the table, and forgets it. Closing what is closed already is fine."
  [^Table table ^Closeable object]
  (let [^Map objects (.-objects table)
        ^Map numbers (.-numbers table)]
    (locking table
      (when-let [number (.remove numbers object)]
        (.remove objects number)))
    (.close object)))

(defn close-all
  "Closes everything that is open, or of it what `which?` says; returns how many that were."
  ([table] (close-all table any?))
  ([^Table table which?]
   (let [^Map numbers (.-numbers table)
         open (filterv which? (locking table (vec (ArrayList. (.keySet numbers)))))]
     (run! #(close table %) open)
     (count open))))
