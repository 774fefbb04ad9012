(ns ^:no-doc bpfmap.impl.btf.blob
  "Parses BTF (BPF Type Format) and returns its types by id, as data.

      (def b (parse bytes))             ; e.g. of /sys/kernel/btf/vmlinux
      (ids-named b \"task_struct\" :struct) ;=> [189]
      (record b 189)                    ;=> {:id 189 :kind :struct :name \"task_struct\" …}

  Types refer to each other by id, which is a position in the blob, counted from 1. Id 0 is `void`.
  The BTF of a kernel module is split: it continues the ids and the strings of its base, the BTF of
  vmlinux. Both byte orders are supported.

  A blob is checked when it is parsed. References are checked when they are followed. Invalid bytes
  always throw `:malformed-btf`, with the position under `:bpfmap/path`, such as `[:header
  :type-len]` or `[:type 17 :member 3 :type]`. A blob is immutable and can be used by many threads."
  (:refer-clojure :exclude [resolve])
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :refer [error list-of printed shown]]
            [bpfmap.impl.btf.image :as image :refer [malformed u32]]
            [bpfmap.impl.btf.kinds :as kinds])
  (:import (bpfmap.bytes ByteView)
           (bpfmap.impl.btf.image Image)
           (java.io Writer)
           (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

;; `sections` maps ids to the records of data sections whose sizes and offsets were filled in; see
;; [[with-sections]].
(declare type-count)

(deftype Blob [^Image image base index sections]
  Object
  (toString [this]
    (str "#<btf " (type-count this) " types"
         (when base (str ", " (type-count base) " of them the base's")) ", "
         (alength ^bytes (.-bytes image)) " bytes " (.order ^ByteBuffer (.-buffer image)) ">")))

(defmethod print-method Blob [blob ^Writer w]
  (.write w (str blob)))

(defn- invalid ^Throwable [what constraint x hint]
  (error :invalid-value (str what " must be " constraint ", got " (printed x))
         {:bpfmap/value (shown x) :bpfmap/hint hint}))

(defn parse
  "Parses a BTF blob and returns it as an object for the other functions.

  `bytes` is a byte array or a byte view. It is not copied, so it must not be changed afterwards.
  `base` is the blob that a split blob continues.

  Checks the header, the bounds of all types and of their entries, and the offsets of all names.
  Types are decoded on demand.

  Throws `:malformed-btf`, and `:invalid-value` if an argument is not bytes or not a blob.

      (parse (emit/blob [{:kind :ptr :type 0}])) ;=> #<btf 1 types, 37 bytes LITTLE_ENDIAN>"
  ([bytes]
   (parse bytes nil))
  ([bytes base]
   (when-not (bytes/byte-count bytes)
     (throw (invalid "BTF" "a byte array or a byte view" bytes nil)))
   (when-not (or (nil? base) (instance? Blob base))
     (throw (invalid "The base" "a BTF blob or nil" base "pass the parsed BTF of vmlinux")))
   (let [image (image/of (if (bytes? bytes) bytes (.-array ^ByteView bytes))
                         (when base (.-image ^Blob base)))]
     (Blob. image base (delay (image/index image)) nil))))

(defn check
  "Returns the blob; throws `:invalid-value` for anything that is not a blob.

      (check b) ;=> b"
  ^Blob [b]
  (if (instance? Blob b)
    b
    (throw (invalid "The argument" "a BTF blob" b "pass a result of parse"))))

(defn type-count
  "Returns the number of types, with the types of the base but without void.

  Ids are 0 to this number.

      (type-count (parse (emit/blob [{:kind :ptr :type 0}]))) ;=> 1"
  ^long [^Blob b]
  (image/type-count (.-image b)))

(defn base
  "Returns the blob that this one continues, or nil.

      (base (parse module vmlinux)) ;=> vmlinux"
  [^Blob b]
  (.-base b))

(defn string-end
  "Returns the size of all strings in bytes, with the strings of the base.

  Offsets of strings are less than this.

      (string-end (parse (emit/blob []))) ;=> 1"
  ^long [^Blob b]
  (.-string-end ^Image (.-image b)))

(defn string
  "Returns the string at an offset; the empty string at 0.

  It is decoded as UTF-8, with U+FFFD for invalid bytes. Throws `:malformed-btf` if the offset is
  outside the strings, or if the string is longer than 65,535 bytes.

      (string b 0) ;=> \"\""
  [^Blob b offset]
  (when-not (int? offset)
    (throw (invalid "The offset of a string" "an integer" offset nil)))
  (image/string (.-image b) offset))

(defn- image-with
  "Returns the image if it or its base has the id, else throws."
  ^Image [^Blob b id]
  (when-not (int? id)
    (throw (invalid "The id of a type" "an integer" id nil)))
  (when-not (and (<= 0 (long id)) (<= (long id) (type-count b)))
    (throw (malformed [:type id] (str "must be an id up to " (type-count b) ", got " id))))
  (.-image b))

(defn record
  "Returns the type of an id as data; throws `:malformed-btf` for an unknown id.

  Every record has `:id` and `:kind`, and `:name` unless it is empty: neither
  a type without a name nor such a member or parameter has the key. Then there are:

  | kind                                   | keys                                                     |
  |----------------------------------------|----------------------------------------------------------|
  | `:void`                                | none; its id is 0                                        |
  | `:int`                                 | `:size :bits :offset :signed :char :bool`             |
  | `:float`                               | `:size`                                                  |
  | `:ptr`, and the modifiers `:typedef :const :volatile :restrict :type-tag` | `:type`               |
  | `:array`                               | `:element`, `:index` (the type of the index), `:count`   |
  | `:struct :union`                       | `:size`, `:members` of `:name :type :bit-offset :bits`   |
  | `:enum :enum64`                        | `:size :signed`, `:values` of `[name value]`            |
  | `:fwd`                                 | `:union`                                                 |
  | `:func :var`                           | `:type :linkage`                                         |
  | `:func-proto`                          | `:return`, `:params` of `:name :type`                    |
  | `:datasec`                             | `:size`, `:vars` of `:type :offset :size`                |
  | `:decl-tag`                            | `:type`, `:component`: a member or parameter, -1 for all |
  | `:unknown`                             | `:number`, the kind's; only with a layout section        |

  `:size` is in bytes, as is the `:offset` of a variable; `:bit-offset` and the
  `:offset` of an `:int` are in bits. `:bits` of a member is 0 when it is no
  bit-field. `:type`, `:element`, `:index` and `:return` are ids, checked to be
  there. A last parameter of type 0 without a name stands for `...`. `:linkage` is
  `:static`, `:global`, `:extern`, or the number of an unknown one. A tag has
  `:attribute true` where it stands for any attribute of C (Linux 6.15).

  Before Linux 6.0 and LLVM 15 no enum said that it was signed: from such a
  blob, -1 is read as 4294967295.

      (record b 1)
      ;=> {:id 1 :kind :int :name \"int\" :size 4 :bits 32 :offset 0 :signed true :char false :bool false}"
  [^Blob b id]
  (let [image (image-with b id)]
    (or (get (.-sections b) id)
        (image/record image id))))

(defn- kind-of [^Image image ^long id]
  (if (zero? id)
    :void
    (let [owner (image/owner image id)
          number (image/kind-number (u32 owner (+ 4 (image/at owner id))))]
      (:kind (get kinds/rows number) :unknown))))

(defn with-sections
  "Returns a blob with other records for some data sections: id to record.

  The bytes do not change.

      (:size (record (with-sections b {7 (assoc (record b 7) :size 16)}) 7)) ;=> 16"
  [^Blob b sections]
  (Blob. (.-image b) (.-base b) (.-index b) (not-empty sections)))

(defn entries-at
  "Returns the offset of the entries of a data section in the blob, in bytes.

      (entries-at b 7) ;=> 1156"
  ^long [^Blob b id]
  (let [owner (image/owner (image-with b id) id)]
    (+ 12 (image/at owner id))))

(defn kind
  "Returns the kind of the type of an id, without reading the rest of it.

      (kind b 1) ;=> :int"
  [^Blob b id]
  (kind-of (image-with b id) id))

(defn name-of
  "Returns the name of the type of an id, or nil, without reading the rest of it.

      (name-of b 1) ;=> \"int\""
  [^Blob b id]
  (let [image (image-with b id)]
    (when (pos? (long id))
      (let [owner (image/owner image id)
            offset (u32 owner (image/at owner id))]
        (when (pos? offset)
          (string b offset))))))

(defn ids-named
  "Returns the ids of the types with a name, ascending, as a vector.

  With a kind, only types of that kind. The names of the base are included. The first call makes an
  index, two arrays of ints. The empty name finds nothing.

      (ids-named b \"task_struct\")         ;=> [189]
      (ids-named b \"task_struct\" :struct) ;=> [189]"
  ([^Blob b name]
   (when-not (string? name)
     (throw (invalid "The name of a type" "a string" name nil)))
   (into (if-let [base (.-base b)] (ids-named base name) [])
         (image/ids (.-image b) @(.-index b) name)))
  ([^Blob b name kind]
   (when-not (or (kinds/numbers kind) (= :unknown kind))
     (throw (invalid "The kind of a type" (list-of kinds/kinds) kind nil)))
   (filterv #(= kind (kind-of (.-image b) %)) (ids-named b name))))

(defn own-ids-named
  "Returns the ids of the types with a name, without those of the base.

      (own-ids-named module \"nf_conn\") ;=> [152011]"
  [^Blob b name]
  (image/ids (.-image b) @(.-index b) name))

(defn flavoured-ids
  "Returns the ids of the types whose names have `___`, without those of the base.

      (flavoured-ids b) ;=> []"
  [^Blob b]
  (image/flavoured-ids (.-image b)))

(defn byte-order
  "Returns the byte order of a blob.

      (byte-order b) ;=> LITTLE_ENDIAN"
  ^ByteOrder [^Blob b]
  (.order ^ByteBuffer (.-buffer ^Image (.-image b))))

(def ^:private deepest
  "The maximum length of a chain of types.

  Compilers nest them a few levels deep, and the kernel rejects more than 32."
  64)

(defn- follow
  "Returns the id in a word of a type; throws if there is no such type."
  ^long [^Image image ^long id ^long word key]
  (let [owner (image/owner image id)
        target (u32 owner (+ (image/at owner id) word))]
    (when (< (image/type-count owner) target)
      (throw (malformed [:type id key]
                        (str "must be an id up to " (image/type-count owner) ", got " target))))
    target))

(defn- too-deep ^Throwable [id]
  (malformed [:type id]
             (str "must lead through at most " deepest " types, and not in a cycle")))

(defn resolve
  "Returns the id of a type behind its names and qualifiers.

  Skips `:typedef`, `:const`, `:volatile`, `:restrict` and `:type-tag`. Throws `:malformed-btf` for
  a cycle, and for more than 64 of them in a chain.

      (:kind (record b (resolve b (first (ids-named b \"size_t\"))))) ;=> :int"
  [^Blob b id]
  (let [image (image-with b id)]
    (loop [at (long id) depth 0]
      (cond
        (not (kinds/modifiers (kind-of image at))) at
        (= depth (long deepest)) (throw (too-deep id))
        :else (recur (follow image at 8 :type) (inc depth))))))

(defn- size [^Blob b start ^long id ^long depth]
  (when (< (long deepest) depth)
    (throw (too-deep start)))
  (case (kind-of (.-image b) id)
    (:int :enum :enum64 :struct :union :float :datasec)
    (or (:size (get (.-sections b) id))
        (let [owner (image/owner (.-image b) id)]
          (u32 owner (+ 8 (image/at owner id)))))
    (:typedef :const :volatile :restrict :type-tag :var)
    (recur b start (follow (.-image b) id 8 :type) (inc depth))
    :array
    (when-let [each (size b start (follow (.-image b) id 12 :element) (inc depth))]
      (let [owner (image/owner (.-image b) id)
            n (u32 owner (+ 20 (image/at owner id)))]
        (when (and (pos? n) (< (quot 0xffffffff n) (long each)))
          (throw (malformed [:type id :count]
                            (str "must have at most 4294967295 bytes, got " n " elements of "
                                 each))))
        (* n (long each))))
    :ptr 8
    nil))

(defn size-of
  "Returns the size of a value of a type in bytes; nil for types without values.

  Types without values are `:void`, functions and their prototypes, `:fwd`, `:decl-tag` and
  `:unknown`, and types made of these. A pointer has 8 bytes, as in BPF programs. Throws
  `:malformed-btf` for a cycle, for more than 64 types in a chain, and for 4 GiB or more.

      (size-of b 1) ;=> 4"
  [^Blob b id]
  (image-with b id)
  (size b id id 0))
