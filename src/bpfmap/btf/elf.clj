(ns bpfmap.btf.elf
  "Finds a section of an ELF object: where compilers put BTF. Nothing else of the format is read.

  Source: the System V ABI, chapter 4; 64-bit objects of either byte order."
  (:require [bpfmap.error :as error])
  (:import (java.nio BufferUnderflowException ByteBuffer ByteOrder)
           (java.nio.charset StandardCharsets)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

(defn- malformed ^Throwable [hint]
  (error/error :malformed-btf "Not an ELF object that can be read" {:bpfmap/path [:elf] :bpfmap/hint hint}))

(defn- slice
  "Bytes of the object; throws where there are none."
  ^bytes [^bytes object offset size]
  (when-not (and (<= 0 (long size) (alength object)) (<= 0 (long offset) (- (alength object) (long size))))
    (throw (malformed "a section lies outside the file")))
  (Arrays/copyOfRange object (int offset) (int (+ (long offset) (long size)))))

(defn- text-at [^bytes table offset]
  (if (< -1 (long offset) (alength table))
    (let [end (loop [i (int offset)] (if (or (= i (alength table)) (zero? (aget table i))) i (recur (inc i))))]
      (String. table (int offset) (int (- end (long offset))) StandardCharsets/UTF_8))
    ""))

(defn- headers
  "The section headers: `{:name-offset :offset :size}` of each, and which of them has the names."
  [^ByteBuffer b]
  (let [start (.getLong b 0x28)
        each (bit-and 0xffff (.getShort b 0x3a))
        n (bit-and 0xffff (.getShort b 0x3c))
        names (bit-and 0xffff (.getShort b 0x3e))]
    (when-not (and (<= 64 each) (<= 0 start (- (.capacity b) (* n each))))
      (throw (malformed "its section headers lie outside the file")))
    {:names names
     :sections (vec (for [i (range n)
                          :let [at (int (+ start (* i each)))]]
                      {:name-offset (bit-and 0xffffffff (.getInt b at))
                       :offset (.getLong b (+ at 0x18))
                       :size (.getLong b (+ at 0x20))}))}))

(defn section
  "The bytes of the first section of a name, as a new array; nil when there is none.

  Throws `:malformed-btf` for what is no 64-bit ELF object.

      (alength (section object \".BTF\")) ;=> 612"
  ^bytes [^bytes object section-name]
  (when-not (and (<= 64 (alength object)) (= [0x7f 0x45 0x4c 0x46 2] (map #(aget object %) (range 5))))
    (throw (malformed "it does not begin as a 64-bit ELF file does")))
  (try
    (let [b (.order (ByteBuffer/wrap object)
                    (if (= 2 (aget object 5)) ByteOrder/BIG_ENDIAN ByteOrder/LITTLE_ENDIAN))
          {:keys [names sections]} (headers b)
          table (when-let [{:keys [offset size]} (get sections names)] (slice object offset size))]
      (when table
        (some (fn [{:keys [name-offset offset size]}]
                (when (= section-name (text-at table name-offset))
                  (slice object offset size)))
              sections)))
    (catch IndexOutOfBoundsException _ (throw (malformed "it ends too early")))
    (catch BufferUnderflowException _ (throw (malformed "it ends too early")))))
