(ns ^:no-doc bpfmap.impl.btf.writer
  "Encodes records, as `bpfmap.impl.btf.blob/record` returns them, as BTF."
  (:require [bpfmap.error :refer [error list-of printed]]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.image :as image]
            [bpfmap.impl.btf.kinds :as kinds])
  (:import (bpfmap.impl.btf.blob Blob)
           (bpfmap.impl.btf.image Image)
           (java.io ByteArrayOutputStream)
           (java.nio ByteBuffer ByteOrder)
           (java.nio.charset StandardCharsets)
           (java.util HashMap List)))

(set! *warn-on-reflection* true)

;; The types, and the strings with the offset of each. The first string has the offset
;; `first-string`. Types can refer to ids up to `last-id`.
(deftype Writer
         [^ByteBuffer types ^ByteArrayOutputStream strings ^HashMap offsets ^long first-string
          ^long last-id])

(def ^:private most-entries
  "The largest number of entries that all kernels allow.

  Only kernels from 2026 on allow more."
  65535)

(defn- invalid
  "Returns the exception for records that cannot be written.

  `constraint` follows the path in the message; an empty path stands for all records."
  ^Throwable [path constraint hint]
  (error :invalid-value (str "Cannot write BTF: "
                             (if (seq path) (pr-str path) "the records")
                             " " constraint)
         {:bpfmap/path path :bpfmap/hint hint}))

(defn- number
  "Returns the value under a key; throws unless it is an integer from low to high."
  [m key path [low high]]
  (let [x (get m key)]
    (when-not (integer? x)
      (throw (invalid (conj path key) (str "must be an integer, got " (printed x)) nil)))
    (when-not (<= low x high)
      (throw (invalid (conj path key) (str "must be from " low " to " high ", got " x) nil)))
    x))

(defn- optional
  "Returns the same as [[number]], or 0 if the key is missing."
  [m key path range]
  (if (contains? m key) (number m key path range) 0))

(defn- put! [^Writer w x]
  (.putInt ^ByteBuffer (.-types w) (unchecked-int (long x))))

;; ---------------------------------------------------------------- names

(defn- name-bytes ^bytes [path text]
  (when-not (string? text)
    (throw (invalid path (str "must be a string, got " (printed text))
                    "leave out :name if there is no name")))
  (let [bytes (.getBytes ^String text StandardCharsets/UTF_8)]
    (cond
      (< (long image/longest-string) (alength bytes))
      (throw (invalid path
                      (str "must have at most " image/longest-string " bytes, got "
                           (alength bytes)) nil))
      (some zero? bytes)
      (throw (invalid path (str "must not have a NUL character, got " (printed text)) nil))
      (not= text (String. bytes StandardCharsets/UTF_8))
      (throw (invalid path (str "must not have half a character (a lone surrogate), got "
                                 (printed text)) nil))
      :else bytes)))

(defn- name-offset
  "Returns the offset of a name in the strings; adds it if it is new.

  The empty name has the offset 0."
  [^Writer w path text]
  (let [^HashMap offsets (.-offsets w)]
    (or (.get offsets (or text ""))
        (let [bytes (name-bytes path text)
              ^ByteArrayOutputStream strings (.-strings w)
              offset (+ (.-first-string w) (.size strings))]
          (.write strings bytes 0 (alength bytes))
          (.write strings 0)
          (.put offsets text offset)
          offset))))

;; ---------------------------------------------------------------- fields

(def ^:private u8 [0 0xff])
(def ^:private u32 [0 0xffffffff])
(def ^:private s32 [-0x80000000 0x7fffffff])
(def ^:private u64 [0 0xffffffffffffffff])
(def ^:private s64 [Long/MIN_VALUE Long/MAX_VALUE])

(defn- linkage [m key path most]
  (let [x (get m key)
        i (.indexOf ^List kinds/linkages x)]
    (cond
      (<= 0 i) i
      (integer? x) (number m key path [0 most])
      :else (throw (invalid (conj path key)
                            (str "must be " (list-of kinds/linkages) ", got " (printed x))
                            nil)))))

(def ^:private writers
  "Writers of fields by form: functions of writer, map, key, path of the map, flag."
  {:name (fn [w m key path _] (put! w (name-offset w (conj path key) (get m key))))
   :reference (fn [^Writer w m key path _]
                (let [id (number m key path u32)]
                  (when (< (.-last-id w) (long id))
                    (throw (invalid (conj path key)
                                    (str "must be an id up to " (.-last-id w) ", got " id)
                                    "count types from 1 in their order; 0 is void")))
                  (put! w id)))
   :u32 (fn [w m key path _] (put! w (number m key path u32)))
   :s32 (fn [w m key path _] (put! w (number m key path s32)))
   :linkage (fn [w m key path _] (put! w (linkage m key path 0xffffffff)))
   :encoding (fn [w m key path _]
               (put! w (bit-or (long (number m key path u8))
                               (bit-shift-left (long (optional m :offset path u8)) 16)
                               (if (:signed m) 0x1000000 0)
                               (if (:char m) 0x2000000 0)
                               (if (:bool m) 0x4000000 0))))
   :place (fn [w m key path flag?]
            (let [bits (long (optional m :bits path u8))]
              (put! w (if flag?
                        (bit-or (long (number m key path [0 0xffffff])) (bit-shift-left bits 24))
                        (number m key path u32)))))
   :value32 (fn [w m key path flag?] (put! w (number m key path (if flag? s32 u32))))
   :value64 (fn [w m key path flag?]
              (let [value (.longValue (biginteger (number m key path (if flag? s64 u64))))]
                (put! w value)
                (put! w (bit-shift-right value 32))))})

(defn- write-fields [w m path fields flag?]
  (doseq [[key form] fields]
    ((writers form) w m key path flag?)))

;; ---------------------------------------------------------------- records

(defn- record-bytes
  "Returns the size of a record in bytes.

  Throws unless it is a record, with at most the allowed number of entries."
  ^long [i record]
  (when-not (map? record)
    (throw (invalid [i] (str "must be a map such as {:kind :ptr :type 1}, got " (printed record))
                    nil)))
  (let [kind (:kind record)
        _ (when-not (kinds/numbers kind)
            (throw (invalid [i :kind] (str "must be " (list-of kinds/kinds) ", got " (printed kind))
                            (when (= :void kind) "use the id 0 for void"))))
        key (:entries (kinds/rows (kinds/numbers kind)))
        found (get record key)
        _ (when-not (or (nil? found) (sequential? found))
            (throw (invalid [i key] (str "must be a sequence, got " (printed found)) nil)))
        n (bounded-count (inc (long most-entries)) found)]
    (when (< (long most-entries) n)
      (throw (invalid [i key] (str "must have at most " most-entries " elements") nil)))
    (+ 12 (long (kinds/tail-bytes kind)) (* n (long (kinds/entry-bytes kind))))))

(defn- entry-map
  "Returns an entry as a map.

  An enumerator can be a pair of name and value."
  [entries entry path]
  (cond
    (and (= :values entries) (vector? entry) (= 2 (count entry))) {:name (entry 0) :value (entry 1)}
    (= :values
       entries) (throw (invalid path
                                (str "must be a pair of a name and a value, got " (printed entry))
                                nil))
    (map? entry) entry
    :else (throw (invalid path (str "must be a map, got " (printed entry)) nil))))

(defn- bit-field? [member]
  (let [bits (:bits member)]
    (and (integer? bits) (pos? bits))))

(defn- write-record [w i record]
  (let [kind (:kind record)
        number (kinds/numbers kind)
        {:keys [third tail entries fields flag mark vlen]} (kinds/rows number)
        found (get record entries)
        flag? (if (= :members entries)
                (boolean (some bit-field? found))
                (boolean (get record (or flag mark))))]
    (write-fields w record [i] [[:name :name]] false)
    (put! w (bit-or (bit-shift-left (long number) 24)
                    (if flag? 0x80000000 0)
                    (long (if vlen (linkage record vlen [i] most-entries) (count found)))))
    (if third
      (write-fields w record [i] [third] false)
      (put! w 0))
    (write-fields w record [i] tail flag?)
    (when entries
      (doseq [[j entry] (map-indexed vector found) :let [path [i entries j]]]
        (write-fields w (entry-map entries entry path) path fields flag?)))))

(defn- assembled
  "Returns the header, the types and the strings as one array."
  ^bytes [^Writer w ^ByteOrder order]
  (let [types (.-types w)
        strings (.toByteArray ^ByteArrayOutputStream (.-strings w))
        length (.position ^ByteBuffer types)
        out (doto (ByteBuffer/allocate (+ 24 length (alength strings))) (.order order))]
    (.putShort out (unchecked-short 0xeb9f))
    (.put out (byte 1)) ; the version, followed by the flags
    (.put out (byte 0))
    (doseq [x [24 0 length length (alength strings)]]
      (.putInt out (int x)))
    (.put out (.flip ^ByteBuffer types))
    (.put out strings)
    (.array out)))

(defn blob
  "Returns the BTF blob of a sequence of records as a new byte array.

  A record has the shape that `bpfmap.impl.btf.blob/record` describes. Its id is its position in the
  sequence, from 1; `:id` is ignored. Optional keys are `:name`, the flags (`:signed` and others),
  `:bits` of a member, `:offset` of an `:int`, and an empty sequence of entries.

  | option        | meaning                                                         |
  |---------------|-----------------------------------------------------------------|
  | `:byte-order` | a `java.nio.ByteOrder`, default: this machine's                 |
  | `:base`       | the blob that this one continues, with the preceding ids        |

  Parsing the result returns the same records. The rules of the kernel are not checked: it requires
  names for some types, and sizes that fit.

  Throws `:invalid-value` with the position, such as `[16 :members 3 :type]`, counted from 0: for a
  number that does not fit, an unknown type, more than 65,535 entries, and a name that is not a
  string or is longer than 65,535 bytes.

      (blob [{:kind :int :name \"int\" :size 4 :bits 32 :signed true}
             {:kind :ptr :type 1}]) ;=> 24 bytes of header, 28 of types, 5 of strings"
  (^bytes [records]
   (blob records nil))
  (^bytes [records {:keys [byte-order base]}]
   (when-not (or (nil? records) (sequential? records))
     (throw (invalid [] (str "must be a sequence, got " (printed records)) nil)))
   (when-not (or (nil? base) (instance? Blob base))
     (throw (invalid [:base] (str "must be a BTF blob, got " (printed base))
                     "pass a result of parse")))
   (let [records (vec records)
         order (or byte-order (ByteOrder/nativeOrder))
         total (reduce + 0 (map-indexed record-bytes records))
         _ (when (< Integer/MAX_VALUE (long total))
             (throw (invalid []
                             (str "must have at most " Integer/MAX_VALUE " bytes, got "
                                  total) nil)))
         w (Writer. (doto (ByteBuffer/allocate (int total)) (.order order))
                    (ByteArrayOutputStream.)
                    (HashMap. {"" 0})
                    (if base (blob/string-end base) 0)
                    (+ (count records) (if base (blob/type-count base) 0)))]
     (when-not base
       (.write ^ByteArrayOutputStream (.-strings w) 0))
     (dotimes [i (count records)]
       (write-record w i (records i)))
     (assembled w order))))

;; ---------------------------------------------------------------- editing

(defn- section-range
  "Returns the start and the end in the blob of a section of the header."
  [^ByteBuffer buffer field]
  (let [header (.getInt buffer 4)
        start (+ header (.getInt buffer (int field)))]
    [start (+ start (.getInt buffer (int (+ (long field) 4))))]))

(defn- string-offsets
  "Returns the offset of each string of a range, the first one of equal strings."
  ^HashMap [^bytes bytes ^long from ^long to]
  (let [offsets (HashMap.)]
    (loop [start from i from]
      (when (< i to)
        (if (zero? (aget bytes i))
          (do (.putIfAbsent offsets
                            (String. bytes (int start) (int (- i start)) StandardCharsets/UTF_8)
                            (- start from))
              (recur (inc i) (inc i)))
          (recur start (inc i)))))
    offsets))

(defn edited
  "Returns a blob with other records, as `{:bytes array :offsets HashMap}`.

  `records` are id to record and replace types, `appended` are records behind the last one. All
  other types keep their bytes, and all types their ids. `strings` are added if the blob does not
  have them; `:offsets` are the offsets of all strings. The header has its first 24 bytes only. The
  blob must not have a base.

      (:bytes (edited b {7 {:kind :const :type 1}} [] [\"a.c\"]))"
  [b records appended strings]
  (let [^Image image (.-image ^Blob b)
        ^bytes bytes (.-bytes image)
        ^ByteBuffer buffer (.-buffer image)
        [types-from types-to] (section-range buffer 8)
        [strings-from strings-to] (section-range buffer 16)
        types-from (long types-from) types-to (long types-to)
        last-id (blob/type-count b)
        room (reduce + (- types-to types-from)
                     (concat (map record-bytes (keys records) (vals records))
                             (map record-bytes (range) appended)))
        all (ByteArrayOutputStream. (int (+ 1024 (- (long strings-to) (long strings-from)))))
        w (Writer. (doto (ByteBuffer/allocate (int room)) (.order (.order buffer)))
                   all
                   (string-offsets bytes strings-from strings-to)
                   0
                   (+ last-id (count appended)))
        place (fn ^long [^long id] (if (< last-id id) types-to (image/at image id)))
        copy! (fn [from to]
                (.put ^ByteBuffer (.-types w) bytes (int from) (int (- (long to) (long from)))))]
    (.write all bytes (int strings-from) (int (- (long strings-to) (long strings-from))))
    (loop [at types-from ids (sort (keys records))]
      (if-let [id (first ids)]
        (do (copy! at (place id))
            (write-record w id (get records id))
            (recur (long (place (inc (long id)))) (next ids)))
        (copy! at types-to)))
    (doseq [[i record] (map-indexed vector appended)]
      (write-record w (+ last-id 1 (long i)) record))
    (doseq [text strings]
      (name-offset w [:strings] text))
    {:bytes (assembled w (.order buffer))
     :offsets (.-offsets w)}))
