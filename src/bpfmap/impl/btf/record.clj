(ns ^:no-doc bpfmap.impl.btf.record
  "Reads one type of an image as data, following the tables of `bpfmap.impl.btf.kinds`."
  (:require [bpfmap.impl.btf.image :as image :refer [malformed u32]]
            [bpfmap.impl.btf.kinds :as kinds])
  (:import (bpfmap.impl.btf.image Image)
           (java.util HashMap)))

(set! *warn-on-reflection* true)

;; State shared by the fields of one record. `seen` has the names by offset, `room` the number of
;; bytes that further names may have.
(deftype Context [^Image image id row flag? ^HashMap seen ^longs room])

(def ^:private spare-room 65536)

(defn- path [^Context context i key]
  (cond-> [:type (.-id context)]
    i (conj (:entry (.-row context)) i)
    true (conj key)))

(defn- name-at
  "Returns the name at an offset, or nil for the empty name.

  The names of one record can together be slightly longer than all strings. That is sufficient
  unless they overlap, because a name that occurs twice counts once. So the memory for a record is
  limited by the size of the blob."
  [^Context context ^long offset]
  (let [^HashMap seen (.-seen context)]
    (or (.get seen offset)
        (let [^String text (image/string (.-image context) offset)
              ^longs room (.-room context)]
          (aset room 0 (- (aget room 0) (.length text)))
          (when (neg? (aget room 0))
            (throw (malformed [:type (.-id context)]
                              "its names overlap, and are together longer than all strings")))
          (when-not (.isEmpty text)
            (.put seen offset text)
            text)))))

(defn- reference [^Context context ^long at i key]
  (let [image (.-image context)
        id (u32 image at)]
    (when (< (image/type-count image) id)
      (throw (malformed (path context i key)
                        (str "it is type " id ", and the last one is " (image/type-count image)))))
    id))

(defn- value64 [^Context context ^long at]
  (let [image (.-image context)
        value (bit-or (u32 image at) (bit-shift-left (u32 image (+ at 4)) 32))]
    (if (and (neg? value) (not (.-flag? context)))
      (+ (bigint value) 18446744073709551616N)
      value)))

(def ^:private readers
  "Readers of fields by form: functions of context, map, key, offset and index.

  The map has the fields that were read before. The index is the index of the entry, or nil."
  {:name (fn [context m key at _]
           (if-let [text (name-at context (u32 (.-image ^Context context) at))]
             (assoc m key text)
             m))
   :reference (fn [context m key at i] (assoc m key (reference context at i key)))
   :u32 (fn [context m key at _] (assoc m key (u32 (.-image ^Context context) at)))
   :s32 (fn [context m key at _]
          (assoc m key (long (unchecked-int (u32 (.-image ^Context context) at)))))
   :linkage (fn [context m key at _]
              (let [n (u32 (.-image ^Context context) at)]
                (assoc m key (get kinds/linkages n n))))
   :encoding (fn [context m _ at _]
               (let [word (u32 (.-image ^Context context) at)]
                 (assoc m
                        :bits (bit-and word 0xff)
                        :offset (bit-and (bit-shift-right word 16) 0xff)
                        :signed (bit-test word 24)
                        :char (bit-test word 25)
                        :bool (bit-test word 26))))
   :place (fn [context m key at _]
            (let [word (u32 (.-image ^Context context) at)]
              (if (.-flag? ^Context context)
                (assoc m key (bit-and word 0xffffff) :bits (bit-shift-right word 24))
                (assoc m key word :bits 0))))
   :value32 (fn [context m key at _]
              (let [word (u32 (.-image ^Context context) at)]
                (assoc m key (if (.-flag? ^Context context) (long (unchecked-int word)) word))))
   :value64 (fn [context m key at _] (assoc m key (value64 context at)))})

(defn- compiled
  "Returns fields as `[key reader bytes]`.

  So the reader of a form is looked up once, and not for each member of a struct."
  [fields]
  (mapv (fn [[key form]] [key (readers form) (kinds/field-bytes form)]) fields))

(def ^:private rows
  "The rows of `kinds/rows` with compiled fields, and sizes of tail and entry."
  (mapv (fn [{:keys [kind third] :as row}]
          (-> row
              (assoc :tail-bytes (kinds/tail-bytes kind) :entry-bytes (kinds/entry-bytes kind))
              (update :third #(when % (compiled [third])))
              (update :tail compiled)
              (update :fields compiled)))
        kinds/rows))

(def ^:private name-field (compiled [[:name :name]]))

(defn- read-fields [context m fields at i]
  (loop [m m n 0 at (long at)]
    (if (< n (count fields))
      (let [[key reader bytes] (nth fields n)]
        (recur (reader context m key at i) (inc n) (+ at (long bytes))))
      m)))

(defn- read-entries [^Context context ^long at ^long n]
  (let [{:keys [fields entries entry-bytes]} (.-row context)
        step (long entry-bytes)]
    (loop [i 0 done (transient [])]
      (if (< i n)
        (let [entry (read-fields context {} fields (+ at (* i step)) i)]
          ;; An enumerator is a pair, because that is how people write one.
          (recur (inc i)
                 (conj! done (if (= :values entries) [(:name entry) (:value entry)] entry))))
        (persistent! done)))))

(defn record
  "Returns the type of an id as data, see `bpfmap.impl.btf.blob/record`.

  The id must be 0 to the image's type-count."
  [^Image image ^long id]
  (if (zero? id)
    {:id 0 :kind :void}
    (let [^Image owner (image/owner image id)
          at (image/at owner id)
          info (u32 owner (+ at 4))
          row (get rows (image/kind-number info))
          {:keys [kind third tail tail-bytes entries flag mark vlen]} row
          flag? (image/flag? info)
          context (Context. owner id row flag? (HashMap.)
                            (doto (long-array 1)
                              (aset 0 (+ (.-string-end owner) (long spare-room)))))
          m (read-fields context {:id id :kind (or kind :unknown)} name-field at nil)]
      (cond-> m
        (nil? row) (assoc :number (image/kind-number info))
        third (as-> m (read-fields context m third (+ at 8) nil))
        flag (assoc flag flag?)
        (and mark flag?) (assoc mark true)
        vlen (assoc vlen (get kinds/linkages (image/vlen info) (image/vlen info)))
        row (as-> m (read-fields context m tail (+ at 12) nil))
        entries (assoc entries
                       (read-entries context (+ at 12 (long tail-bytes)) (image/vlen info)))))))
