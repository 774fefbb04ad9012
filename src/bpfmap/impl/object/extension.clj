(ns ^:no-doc bpfmap.impl.object.extension
  "Reads the section `.BTF.ext`: functions, source lines and CO-RE relocations of instructions.

  It has three blocks, each with the size of its records, and then for each section of the object
  its name, the number of records and the records. Offsets are in bytes of the section."
  (:require [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.object.malformed :refer [malformed]])
  (:import (java.nio ByteBuffer ByteOrder)
           (java.util HashMap)))

(set! *warn-on-reflection* true)

(def ^:private magic 0xeb9f)

(defn- u32 ^long [^ByteBuffer b ^long at]
  (bit-and 0xffffffff (.getInt b (int at))))

(defn- broken ^Throwable [at what]
  (malformed [:section ".BTF.ext" :offset at] what))

(def ^:private blocks
  "The blocks, each with the place of its offset in the header.

  Its length follows the offset. The third element is the smallest size of a record."
  [[:functions 8 8] [:lines 16 16] [:core 24 16]])

(defn- strings
  "Returns a function of an offset to the string there, which is made once.

  All strings together may be a little longer than all strings of the BTF."
  [b]
  (let [seen (HashMap.)
        room (long-array 1 (+ 65536 (blob/string-end b)))]
    (fn [offset at]
      (or (.get seen offset)
          (let [_ (when-not (< -1 (long offset) (blob/string-end b))
                    (throw (broken at (str "the string at " offset " is outside the BTF, which has "
                                           (blob/string-end b) " bytes of strings"))))
                ^String text (blob/string b offset)]
            (aset room 0 (- (aget room 0) (.length text)))
            (when (neg? (aget room 0))
              (throw (broken at "its strings overlap, and are longer than those of the BTF")))
            (.put seen offset text)
            text)))))

(def ^:private readers
  "Functions that read a record of each block.

  The arguments are the buffer, the place of the record, and the function of strings."
  {:functions (fn [b at _]
                {:offset (u32 b at) :type (u32 b (+ (long at) 4))})
   :lines (fn [b at string]
            (let [at (long at)
                  position (u32 b (+ at 12))]
              {:offset (u32 b at)
               :file (string (u32 b (+ at 4)) (+ at 4))
               :text (string (u32 b (+ at 8)) (+ at 8))
               :line (bit-shift-right position 10)
               :column (bit-and 0x3ff position)}))
   :core (fn [b at string]
           (let [at (long at)]
             {:offset (u32 b at)
              :type (u32 b (+ at 4))
              :access (string (u32 b (+ at 8)) (+ at 8))
              :kind (u32 b (+ at 12))}))})

(defn- records
  "Returns the records of a block by the name of their section."
  [^ByteBuffer b kind from to least string]
  (let [from (long from)
        to (long to)
        _ (when (< (- to from) 4) (throw (broken from "the block is too short for its record size")))
        size (u32 b from)
        read-record (readers kind)]
    (when-not (and (<= (long least) size 4096) (zero? (rem size 4)))
      (throw (broken from (str "a record must have at least " least " bytes, got " size))))
    (loop [at (+ from 4) found {}]
      (if (= at to)
        found
        (let [_ (when (< (- to at) 8) (throw (broken at "the block ends inside a section's header")))
              section (string (u32 b at) at)
              n (u32 b (+ at 4))
              start (+ at 8)]
          (when (< (quot (- to start) size) n)
            (throw (broken at (str n " records of " size " bytes are longer than the block"))))
          (recur (+ start (* n size))
                 (update found section (fnil into [])
                         (map (fn [i] (read-record b (+ start (* (long i) size)) string)))
                         (range n))))))))

(defn parse
  "Reads the bytes of the section with the BTF of the object.

  Returns `{:functions :lines :core}`, each the records by the name of their section.

      (parse bytes b)
      ;=> {:lines {\"xdp\" [{:offset 0 :file \"a.c\" :text \"int f()\" :line 7 :column 3}]} …}"
  [^bytes bytes b]
  (when (< (alength bytes) 24)
    (throw (broken 0 "its header must have at least 24 bytes")))
  (let [little? (= 0x9f (bit-and 0xff (aget bytes 0)))
        buffer (.order (ByteBuffer/wrap bytes)
                       (if little? ByteOrder/LITTLE_ENDIAN ByteOrder/BIG_ENDIAN))
        header (u32 buffer 4)
        string (strings b)]
    (when-not (= magic (bit-and 0xffff (.getShort buffer 0)))
      (throw (broken 0 "it must begin with the number 0xeb9f")))
    (when-not (<= 24 header (alength bytes))
      (throw (broken 4 (str "the header has " header " bytes, and the section "
                            (alength bytes)))))
    (into {}
          (for [[kind field least] blocks
                :let [field (long field)]
                :when (<= (+ field 8) header)
                :let [from (+ header (u32 buffer field))
                      length (u32 buffer (+ field 4))]
                :when (pos? length)]
            (do (when (< (alength bytes) (+ from length))
                  (throw (broken field (str "the block of " (name kind) " ends at "
                                            (+ from length) ", behind the section"))))
                [kind (records buffer kind from (+ from length) least string)])))))
