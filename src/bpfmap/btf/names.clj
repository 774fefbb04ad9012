(ns bpfmap.btf.names
  "An index from names to the types of an image: two arrays of ints, and no string.

  Types whose names have the same hash are a chain: `heads` has the first id of
  each, `nexts` the id that follows another, and 0 ends it. Ids ascend."
  (:require [bpfmap.btf.image :as image])
  (:import (bpfmap.btf.image Image)
           (java.nio.charset StandardCharsets)))

(set! *warn-on-reflection* true)

(deftype Index [^ints heads ^ints nexts])

(def ^:private hashed-bytes
  "How much of a name is hashed. Names may share their bytes, and the work must not grow with their product."
  64)

(defn- name-hash
  "The hash (FNV-1a) of the bytes from a place to the first zero, or to the place `limit`."
  ^long [^bytes bytes ^long from ^long limit]
  (loop [i from hash 0x811c9dc5]
    (let [b (if (< i limit) (aget bytes i) 0)]
      (if (zero? b)
        hash
        (recur (inc i)
               (bit-and 0xffffffff (* 0x01000193 (bit-xor hash (bit-and 0xff b)))))))))

(defn- slot ^long [^ints heads ^long hash]
  (bit-and (bit-xor hash (bit-shift-right hash 16)) (dec (alength heads))))

(defn- name-place
  "Where the name of a type lies in the bytes of `owner`."
  ^long [^Image owner ^long offset]
  (+ (.-strings-at owner) (- offset (.-first-string owner))))

(defn- type-name ^long [^Image image ^long i]
  (image/u32 image (aget ^ints (.-offsets image) i)))

(defn index
  "Makes the index of the types that the image holds itself, without its base's."
  ^Index [^Image image]
  (let [n (alength ^ints (.-offsets image))
        heads (int-array (max 2 (Integer/highestOneBit (int (min (* 2 n) 0x40000000)))))
        nexts (int-array n)
        first-id (.-first-id image)]
    ;; Backwards, so that each chain ascends.
    (loop [i (dec n)]
      (when (<= 0 i)
        (let [offset (type-name image i)
              ^Image owner (image/string-owner image offset)
              ^bytes bytes (.-bytes owner)
              place (name-place owner offset)]
          (when-not (zero? (aget bytes place))
            (let [limit (min (alength bytes) (+ place (long hashed-bytes)))
                  slot (slot heads (name-hash bytes place limit))]
              (aset nexts i (aget heads slot))
              (aset heads slot (int (+ first-id i))))))
        (recur (dec i))))
    (Index. heads nexts)))

(defn- named?
  "Whether the string at an offset has just these bytes."
  [^Image image ^long offset ^bytes wanted]
  (let [^Image owner (image/string-owner image offset)
        ^bytes bytes (.-bytes owner)
        place (name-place owner offset)
        n (alength wanted)]
    (loop [i 0]
      (let [b (aget bytes (+ place i))]
        (cond
          (= i n) (zero? b)
          (= b (aget wanted i)) (recur (inc i))
          :else false)))))

(defn ids
  "The ids, ascending, of the image's own types that have the name; empty for the empty name."
  [^Image image ^Index index ^String name]
  (let [wanted (.getBytes name StandardCharsets/UTF_8)
        ^ints heads (.-heads index)
        ^ints nexts (.-nexts index)
        first-id (.-first-id image)
        hash (name-hash wanted 0 (min (alength wanted) (long hashed-bytes)))]
    (loop [id (aget heads (slot heads hash)) found (transient [])]
      (if (zero? id)
        (persistent! found)
        (recur (aget nexts (- id first-id))
               (if (named? image (type-name image (- id first-id)) wanted)
                 (conj! found (long id))
                 found))))))
