(ns ^:no-doc bpfmap.impl.btf.image
  "Reads the bytes of BTF: the header, strings, records by id and by name, and one record as data."
  (:require [bpfmap.error :refer [error]]
            [bpfmap.impl.btf.kinds :as kinds]
            [clojure.string :as str])
  (:import (clojure.lang RT)
           (java.nio ByteBuffer ByteOrder)
           (java.nio.charset StandardCharsets)
           (java.util ArrayList Arrays HashMap)))

(set! *warn-on-reflection* true)

;; --- bytes

;; Ids and string offsets are counted across all images of a chain, beginning with the base. `fixed`
;; and `each` are indexed by the number of a kind: the size of a type without its entries, and the
;; size of an entry. `fixed` is -1 for an unknown kind.
(deftype Image [^bytes bytes ^ByteBuffer buffer base
                ^long first-id ^ints offsets
                ^long first-string ^long strings-at ^long string-end
                ^ints fixed ^ints each])

(def longest-string
  "The largest length of a name in bytes.

  Names can share bytes, so without a limit a small blob could require much memory. The kernel
  allows names of 511 bytes, and tags of any length."
  65535)

(defn place
  "Returns a path as words.

      (place [:type 1 :member 3 :name]) ;=> \"the name of member 3 of type 1\""
  [path]
  (let [parts (reduce (fn [parts x]
                        (if (keyword? x)
                          (conj parts [(name x)])
                          (conj (pop parts) (conj (peek parts) x))))
                      [] path)]
    (str/join " of " (for [[part x] (rseq parts)]
                       (cond
                         x (str part " " x)
                         (= "elf" part) "the ELF file"
                         :else (str "the " part))))))

(defn malformed
  "Returns the exception for malformed BTF.

  `path` is the position, and `what` the rest of the sentence about it.

      (throw (malformed [:type 17 :name] \"must be an offset below 30, got 99\"))"
  (^Throwable [path what]
   (malformed path what nil))
  (^Throwable [path what hint]
   (error :malformed-btf (str "Malformed BTF: " (place path) " " what)
          {:bpfmap/path path :bpfmap/hint hint})))

(defn malformed-in
  "Returns the exception for malformed BTF, with a whole sentence about a position.

      (throw (malformed-in [:type 17] \"a typedef must have a name\"))"
  (^Throwable [path sentence]
   (malformed-in path sentence nil))
  (^Throwable [path sentence hint]
   (error :malformed-btf (str "Malformed BTF in " (place path) ": " sentence)
          {:bpfmap/path path :bpfmap/hint hint})))

(def ^:private needs-base
  "pass the BTF of vmlinux as the base if this is the BTF of a module")

;; ---------------------------------------------------------------- reading

(defn- word ^long [^ByteBuffer buffer ^long at]
  (bit-and 0xffffffff (.getInt buffer (int at))))

(defn u32
  "Returns the unsigned word at an offset of the image."
  ^long [^Image image ^long at]
  (word (.-buffer image) at))

(defn kind-number "Returns the number of the kind in a word of info." ^long [^long info]
  (bit-and 0x7f (bit-shift-right info 24)))

(defn vlen "Returns the number of entries in a word of info." ^long [^long info]
  (bit-and 0xffffff info))

(defn flag? "Returns true if the kind's own flag is set in a word of info." [^long info]
  (bit-test info 31))

(defn type-count
  "Returns the number of types, with the types of the base but without void.

  This is the last id."
  ^long [^Image image]
  (+ (.-first-id image) -1 (alength ^ints (.-offsets image))))

(defn owner
  "Returns the image of the chain that has the type of an id.

  The id must be 1 to [[type-count]]."
  [^Image image ^long id]
  (if (< id (.-first-id image))
    (recur (.-base image) id)
    image))

(defn at
  "Returns the offset of the type of an id in its [[owner]]."
  ^long [^Image owner ^long id]
  (aget ^ints (.-offsets owner) (- id (.-first-id owner))))

(defn string-owner
  "Returns the image of the chain that has the string of an offset.

  The offset must be less than the image's string-end."
  [^Image image ^long offset]
  (if (< offset (.-first-string image))
    (recur (.-base image) offset)
    image))

(defn string
  "Returns the string at an offset, decoded as UTF-8.

  Throws if the offset is outside the strings, or if the string is longer than `longest-string`."
  [^Image image ^long offset]
  (when-not (< -1 offset (.-string-end image))
    (throw (malformed [:string offset] (str "must be an offset below " (.-string-end image))
                      (when-not (.-base image) needs-base))))
  (let [^Image owner (string-owner image offset)
        ^bytes bytes (.-bytes owner)
        from (+ (.-strings-at owner) (- offset (.-first-string owner)))
        limit (+ from (long longest-string))]
    ;; The last string is known to end with a zero, so the loop ends.
    (loop [to from]
      (cond
        (zero? (aget bytes to)) (String. bytes from (- to from) StandardCharsets/UTF_8)
        (= to
           limit) (throw (malformed [:string offset]
                                    (str "must have at most " longest-string " bytes")))
        :else (recur (inc to))))))

;; ---------------------------------------------------------------- the header

(def ^:private header-bytes 24)

(def ^:private sections
  "The sections, with the offsets of their fields in the header.

  The last section was added to Linux in 2026."
  [{:section :type :field 8 :align 4}
   {:section :str :field 16 :align 1}
   {:section :layout :field 24 :align 4}])

(defn- field-name [section part]
  (keyword (str (name section) "-" part)))

(defn- byte-order [^bytes bytes]
  (let [start (vec (take 4 bytes))]
    (condp = (take 2 start)
      [(unchecked-byte 0x9f) (unchecked-byte 0xeb)] ByteOrder/LITTLE_ENDIAN
      [(unchecked-byte 0xeb) (unchecked-byte 0x9f)] ByteOrder/BIG_ENDIAN
      (throw (malformed [:header :magic]
                        (if (empty? start)
                          "must be 9f eb or eb 9f, got no bytes"
                          (str "must be 9f eb or eb 9f, got "
                               (str/join " " (map #(format "%02x" %) (take 2 start)))))
                        (when (= start [0x7f 0x45 0x4c 0x46])
                          "use bpfmap.btf/parse-object for an ELF object"))))))

(defn- check-fields
  "Checks the fields of the header, known and unknown; returns its length."
  [^bytes bytes ^ByteBuffer buffer]
  (when (< (alength bytes) (long header-bytes))
    (throw (malformed [:header]
                      (str "must have at least " header-bytes " bytes, got " (alength bytes)))))
  (let [version (aget bytes 2)
        flags (bit-and 0xff (aget bytes 3))
        length (word buffer 4)
        known (+ 8 (* 8 (count sections)))]
    (when-not (= 1 version)
      (throw (malformed [:header :version]
                        (str "must be 1, got " (bit-and 0xff version)))))
    (when-not (zero? flags)
      (throw (malformed [:header :flags] (str "must be 0, got " flags))))
    (when-not (<= (long header-bytes) length (alength bytes))
      (throw (malformed [:header :hdr-len] (str "must be from " header-bytes " to "
                                                (alength bytes) ", got " length))))
    (loop [i (if (< length known) (long header-bytes) known)]
      (when (< i length)
        (when-not (zero? (aget bytes i))
          (throw (malformed [:header] (str "must have a zero in byte " i ", got " (aget bytes i))
                            "use a newer bpfmap, which may know this field")))
        (recur (inc i))))
    length))

(defn- locate
  "Checks a section's offset and length; returns it with :from and :to."
  [^bytes bytes buffer length {:keys [section field align]}]
  (let [[offset size] (if (<= (+ (long field) 8) (long length))
                        [(word buffer field) (word buffer (+ (long field) 4))]
                        [0 0])
        room (- (alength bytes) (long length))]
    (when-not (zero? (rem offset align))
      (throw (malformed [:header (field-name section "off")]
                        (str "must be a multiple of " align ", got " offset))))
    (when (< room offset)
      (throw (malformed [:header (field-name section "off")]
                        (str "must be at most " room ", got " offset))))
    (when (< room (+ offset size))
      (throw (malformed [:header (field-name section "len")]
                        (str "must be at most " (- room offset) ", got " size))))
    {:section section :from (+ length offset) :to (+ length offset size)}))

(defn- check-overlap [sections]
  (let [sections (sort-by :from (filter #(< (:from %) (:to %)) sections))]
    (doseq [[a b] (map vector sections (rest sections)) :when (< (:from b) (:to a))]
      (throw (malformed [:header (field-name (:section b) "off")]
                        (str "must be outside the section of " (name (:section a)) "-off"))))))

(defn- check-strings [^bytes bytes base {:keys [^long from ^long to]}]
  (cond
    (= from to) (when-not base
                  (throw (malformed [:header :str-len]
                                    "must be at least 1, got 0" needs-base)))
    (not
     (zero? (aget bytes (dec to)))) (throw (malformed [:strings]
                                                      "must end with a zero"))
    (not
     (or
      base (zero?
            (aget bytes from)))) (throw (malformed [:strings] "must begin with an empty string"
                                                   needs-base))))

;; ---------------------------------------------------------------- the types

(def ^:private known-fixed
  (int-array 128
             (into [-1] (concat (map #(+ 12 (kinds/tail-bytes %)) kinds/kinds) (repeat 127 -1)))))

(def ^:private known-each
  (int-array 128 (into [0] (map kinds/entry-bytes) kinds/kinds)))

(def ^:private named-entries
  "By the number of a kind: 1 if its entries begin with a name, else 0."
  (int-array 128 (map #(if (= [:name :name] (first (:fields %))) 1 0) kinds/rows)))

(defn- sizes
  "Returns two arrays: the sizes of the types of each kind, and of an entry.

  For unknown kinds the sizes are in the layout section, if there is one."
  [^bytes bytes ^Image base {:keys [^long from ^long to]}]
  (cond
    (not (zero? (rem (- to from) 4)))
    (throw (malformed [:header :layout-len] (str "must be a multiple of 4, got " (- to from))))

    (< from to)
    (let [fixed (aclone ^ints known-fixed)
          each (aclone ^ints known-each)]
      (doseq [kind (range (inc (count kinds/kinds)) (min 128 (quot (- to from) 4)))
              :let [place (+ from (* 4 (long kind)))
                    tail (bit-and 0xff (aget bytes place))
                    entry (bit-and 0xff (aget bytes (inc place)))]]
        (when-not (zero? (rem (bit-or tail entry) 4))
          (throw (malformed [:layout kind]
                            (str "must have sizes that are multiples of 4, got " tail " and " entry))))
        (aset fixed kind (int (+ 12 tail)))
        (aset each kind (int entry)))
      [fixed each])

    base [(.-fixed base) (.-each base)]
    :else [known-fixed known-each]))

(defn- misplaced ^Throwable [path offset end base]
  (malformed path (str "must be an offset below " end ", got " offset)
             (when-not base needs-base)))

(defn- walk
  "Checks the types from `from` to `to`; returns the array of their offsets."
  [^ByteBuffer buffer base {:keys [from to]} first-id string-end [fixed each]]
  (let [from (long from) to (long to) first-id (long first-id) string-end (long string-end)
        ^ints fixed fixed ^ints each each ^ints named named-entries
        offsets (int-array (quot (- to from) 12))]
    (loop [at from i 0]
      (if (= at to)
        (Arrays/copyOf offsets i)
        (let [id (+ first-id i)
              _ (when (< (- to at) 12)
                  (throw (malformed [:type id]
                                    (str "must have at least 12 bytes, got " (- to at)))))
              name-offset (word buffer at)
              info (word buffer (+ at 4))
              kind (kind-number info)
              entry (aget each kind)
              entries (+ at (aget fixed kind))
              end (+ entries (* entry (vlen info)))]
          (when (neg? (aget fixed kind))
            (throw (malformed [:type id :kind]
                              (str "must be from 1 to " (count kinds/kinds) ", got " kind)
                              "use a newer bpfmap, which may know this kind")))
          (when (< to end)
            (throw (malformed [:type id] (str "has " (- end at) " bytes, of which only "
                                              (- to at) " are in the section"))))
          (when (<= string-end name-offset)
            (throw (misplaced [:type id :name] name-offset string-end base)))
          (when (= 1 (aget named kind))
            (loop [place entries]
              (when (< place end)
                (when (<= string-end (word buffer place))
                  (throw (misplaced [:type id (:entry (kinds/rows kind))
                                     (quot (- place entries) entry) :name]
                                    (word buffer place) string-end base)))
                (recur (+ place entry)))))
          (aset offsets i (int at))
          (recur end (inc i)))))))

(defn of
  "Checks the bytes and returns their image.

  `base` is the image that a split one continues, or nil."
  ^Image [^bytes bytes ^Image base]
  (let [buffer (.order (ByteBuffer/wrap bytes) (byte-order bytes))
        length (check-fields bytes buffer)
        [types strings layout :as located] (mapv #(locate bytes buffer length %) sections)
        first-id (if base (inc (type-count base)) 1)
        first-string (if base (.-string-end base) 0)
        string-end (+ first-string (- (:to strings) (:from strings)))]
    (check-overlap located)
    (check-strings bytes base strings)
    (let [[fixed each :as sizes] (sizes bytes base layout)]
      (Image. bytes buffer base
              first-id (walk buffer base types first-id string-end sizes)
              first-string (:from strings) string-end
              fixed each))))

;; --- names

(deftype Index [^ints heads ^ints nexts])

(def ^:private hashed-bytes
  "The number of bytes of a name that are hashed.

  Names can share bytes, and the work must not be proportional to their number times their length."
  64)

(defn- name-hash
  "Returns the hash (FNV-1a) of the bytes from `at` to a zero or to `limit`."
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
  "Returns the offset of the name of a type in the bytes of `owner`."
  ^long [^Image owner ^long offset]
  (+ (.-strings-at owner) (- offset (.-first-string owner))))

(defn- type-name ^long [^Image image ^long i]
  (u32 image (aget ^ints (.-offsets image) i)))

(defn index
  "Returns the index of the image's own types, without the types of its base."
  ^Index [^Image image]
  (let [n (alength ^ints (.-offsets image))
        heads (int-array (max 2 (Integer/highestOneBit (int (min (* 2 n) 0x40000000)))))
        nexts (int-array n)
        first-id (.-first-id image)]
    ;; Backwards, so that the ids of each chain are ascending.
    (loop [i (dec n)]
      (when (<= 0 i)
        (let [offset (type-name image i)
              ^Image owner (string-owner image offset)
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
  "Returns true if the string at an offset has exactly these bytes."
  [^Image image ^long offset ^bytes wanted]
  (let [^Image owner (string-owner image offset)
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
  "Returns the ids, ascending, of the image's own types with a name.

  There are none for the empty name."
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

;; --- flavours of names

(def ^:private longest-flavour
  "The number of bytes of a name that are searched for a flavour.

  Names can share bytes, and the work must not be proportional to their number times their length."
  256)

(defn- flavoured?
  "Returns true if the string at a place has three underscores."
  [^bytes bytes ^long place]
  (let [limit (min (alength bytes) (+ place (long longest-flavour)))]
    (loop [i place run 0]
      (let [b (if (< i limit) (aget bytes i) 0)]
        (cond
          (= 3 run) true
          (zero? b) false
          (= 95 b) (recur (inc i) (inc run))
          :else (recur (inc i) 0))))))

(defn flavoured-ids
  "Returns the ids, ascending, of the image's own types whose names have `___`.

  CO-RE takes the text behind it for a note to readers: task_struct___old is task_struct."
  [^Image image]
  (let [n (alength ^ints (.-offsets image))]
    (loop [i 0 found (transient [])]
      (if (= i n)
        (persistent! found)
        (let [offset (type-name image i)
              ^Image owner (string-owner image offset)]
          (recur (inc i)
                 (if (flavoured? (.-bytes owner) (name-place owner offset))
                   (conj! found (+ (.-first-id image) i))
                   found)))))))

;; --- one record as data, by the tables of bpfmap.impl.btf.kinds

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
        (let [^String text (string (.-image context) offset)
              ^longs room (.-room context)]
          (aset room 0 (- (aget room 0) (.length text)))
          (when (neg? (aget room 0))
            (throw (malformed [:type (.-id context)]
                              "must have names that do not overlap; together they are longer than all strings")))
          (when-not (.isEmpty text)
            (.put seen offset text)
            text)))))

(defn- reference [^Context context ^long at i key]
  (let [image (.-image context)
        id (u32 image at)]
    (when (< (type-count image) id)
      (throw (malformed (path context i key)
                        (str "must be an id up to " (type-count image) ", got " id))))
    id))

(defn- value64 [^Context context ^long at]
  (let [image (.-image context)
        value (bit-or (u32 image at) (bit-shift-left (u32 image (+ at 4)) 32))]
    (if (and (neg? value) (not (.-flag? context)))
      (+ (bigint value) 18446744073709551616N)
      value)))

(defn- put! [^ArrayList out key value]
  (.add out key)
  (.add out value))

(def ^:private readers
  "Readers of fields by form: functions of context, output, key, offset and index.

  A reader adds keys and values to the output. The index is the index of the entry, or nil."
  {:name (fn [context out key at _]
           (when-let [text (name-at context (u32 (.-image ^Context context) at))]
             (put! out key text)))
   :reference (fn [context out key at i] (put! out key (reference context at i key)))
   :u32 (fn [context out key at _] (put! out key (u32 (.-image ^Context context) at)))
   :s32 (fn [context out key at _]
          (put! out key (long (unchecked-int (u32 (.-image ^Context context) at)))))
   :linkage (fn [context out key at _]
              (let [n (u32 (.-image ^Context context) at)]
                (put! out key (get kinds/linkages n n))))
   :encoding (fn [context out _ at _]
               (let [word (u32 (.-image ^Context context) at)]
                 (put! out :bits (bit-and word 0xff))
                 (put! out :offset (bit-and (bit-shift-right word 16) 0xff))
                 (put! out :signed (bit-test word 24))
                 (put! out :char (bit-test word 25))
                 (put! out :bool (bit-test word 26))))
   :place (fn [context out key at _]
            (let [word (u32 (.-image ^Context context) at)
                  flag? (.-flag? ^Context context)]
              (put! out key (if flag? (bit-and word 0xffffff) word))
              (put! out :bits (if flag? (bit-shift-right word 24) 0))))
   :value32 (fn [context out key at _]
              (let [word (u32 (.-image ^Context context) at)]
                (put! out key (if (.-flag? ^Context context) (long (unchecked-int word)) word))))
   :value64 (fn [context out key at _] (put! out key (value64 context at)))})

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

(defn- read-fields [context out fields at i]
  (loop [n 0 at (long at)]
    (when (< n (count fields))
      (let [[key reader bytes] (nth fields n)]
        (reader context out key at i)
        (recur (inc n) (+ at (long bytes)))))))

(defn- map-of
  "Returns the map of keys and values that alternate."
  [^ArrayList out]
  (RT/mapUniqueKeys (.toArray out)))

(defn- read-entries [^Context context ^long at ^long n]
  (let [{:keys [fields entries entry-bytes]} (.-row context)
        step (long entry-bytes)
        pairs? (= :values entries)
        out (ArrayList. 8)]
    (loop [i 0 done (transient [])]
      (if (< i n)
        (do (.clear out)
            (read-fields context out fields (+ at (* i step)) i)
            (recur (inc i)
                   ;; An enumerator is a pair, because that is how people write one.
                   (conj! done (if pairs?
                                 (if (= 2 (.size out))
                                   [nil (.get out 1)]
                                   [(.get out 1) (.get out 3)])
                                 (map-of out)))))
        (persistent! done)))))

(defn record
  "Returns the type of an id as data, see `bpfmap.impl.btf.blob/record`.

  The id must be 0 to the image's type-count."
  [^Image image ^long id]
  (if (zero? id)
    {:id 0 :kind :void}
    (let [^Image owner (owner image id)
          at (at owner id)
          info (u32 owner (+ at 4))
          row (get rows (kind-number info))
          {:keys [kind third tail tail-bytes entries flag mark] counted :vlen} row
          flag? (flag? info)
          context (Context. owner id row flag? (HashMap.)
                            (doto (long-array 1)
                              (aset 0 (+ (.-string-end owner) (long spare-room)))))
          out (ArrayList. 20)]
      (put! out :id id)
      (put! out :kind (or kind :unknown))
      (read-fields context out name-field at nil)
      (when-not row
        (put! out :number (kind-number info)))
      (when third
        (read-fields context out third (+ at 8) nil))
      (when flag
        (put! out flag flag?))
      (when (and mark flag?)
        (put! out mark true))
      (when counted
        (put! out counted (get kinds/linkages (vlen info) (vlen info))))
      (when row
        (read-fields context out tail (+ at 12) nil))
      (when entries
        (put! out entries (read-entries context (+ at 12 (long tail-bytes)) (vlen info))))
      (map-of out))))
