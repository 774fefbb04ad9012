(ns ^:no-doc bpfmap.impl.codec
  "Compiles types to codecs: structs, arrays, unions and text, and entry points."
  (:refer-clojure :exclude [struct])
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.cache :as cache]
            [bpfmap.impl.codec.error :refer [deeper misfit]]
            [bpfmap.impl.codec.scalar :as scalar :refer [view-written?]]
            [bpfmap.impl.codec.struct-map :as struct-map]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.type.node :as node])
  (:import (bpfmap.bytes ByteView)
           (bpfmap.sys Bytes Codec Padding StructWords TypeCodec)
           (clojure.lang PersistentArrayMap PersistentHashMap PersistentVector)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

;; --- structs, arrays, unions

;; ---------------------------------------------------------------- arrays

(defn- encode-element [^TypeCodec element value memory offset path i]
  (try
    (.encode element value memory (long offset))
    (catch RuntimeException e
      (throw (deeper e path i)))))

(defn array
  "Returns the codec of an array's node."
  [{:keys [type element count size]} path codec]
  ;; The path of an error begins at the element, whose index is known only when it fails.
  (let [^TypeCodec of-element (codec element [])
        n (long count)
        stride (long (:size element))
        size (long size)]
    (reify Codec
      (size [_] size)
      (total [_] (.total of-element))
      (encode [_ value memory offset]
        (when-not (view-written? value size type path memory offset)
          (let [given (when (sequential? value) (bounded-count (inc n) value))] ; it may be infinite
            (when-not (= n given)
              (throw (misfit type path value
                             (str "it must be a sequence of " n " elements"
                                  (when given
                                    (str ", got " (if (< n (long given)) "more" given))))))))
          (reduce (fn [^long i x]
                    (encode-element of-element x memory (+ offset (* i stride)) path i)
                    (inc i))
                  0 value)))
      (decode [_ memory offset]
        (if (<= n 32)
          (PersistentVector/adopt (.decodeRow of-element n stride memory offset))
          (loop [i 0 out (transient [])]
            (if (< i n)
              (recur (inc i) (conj! out (.decode of-element memory (+ offset (* i stride)))))
              (persistent! out))))))))

;; ---------------------------------------------------------------- enums

(defn- enum-lookup
  "Returns two functions of an enum's node, `[name->number number->name]`.

  The first returns nil for an unknown name, the second the number itself if it has no name."
  [{:keys [values names]}]
  [#(when (keyword? %) (get values %))
   #(get names % %)])

(defn- expected-name [values]
  (str "it must be a number or " (error/list-of (take 16 (keys values)))
       (when (< 16 (count values)) " …")))

(defn enum
  "Returns the codec of an enum's node."
  [{:keys [type base values] :as node} path codec]
  (let [^Codec of-base (codec base path)
        size (.size of-base)
        [number name] (enum-lookup node)]
    (reify Codec
      (size [_] size)
      (encode [_ value memory offset]
        (if (integer? value)
          (.encode of-base value memory offset)
          (when-not (view-written? value size type path memory offset)
            (.encode of-base
                     (or (number value) (throw (misfit type path value (expected-name values))))
                     memory offset))))
      (decode [_ memory offset]
        (name (.decode of-base memory offset))))))

;; ---------------------------------------------------------------- bit-fields

(defn bit-field
  "Returns the codec of a bit-field's member.

  Its offset is the offset of the struct, and it has no size of its own."
  ^Codec [{:keys [node bits bit-offset]} path]
  (let [bits (long bits)
        bit-offset (long bit-offset)
        {:keys [kind signed values type]} node
        n (int bits)
        [number name] (enum-lookup node)
        type [:bits type bits]
        two-to #(bigint (.shiftLeft BigInteger/ONE (int %)))
        [low high] (if signed
                     [(- (two-to (dec bits))) (dec (two-to (dec bits)))]
                     [0 (dec (two-to bits))])
        spare (- 64 n)
        checked (fn [value]
                  (let [value (or (number value) value)]
                    (if (and (integer? value) (<= low value high))
                      (.longValue ^Number value)
                      (throw (misfit type path value
                                     (if values
                                       (expected-name values)
                                       (str "it must be an integer from " low " to " high)))))))]
    (reify Codec
      (size [_] 0)
      (encode [_ value memory offset]
        (Bytes/putBits memory (+ (* 8 offset) bit-offset) n
                       (if (= :bool kind)
                         (if (boolean? value)
                           (if (.booleanValue ^Boolean value) 1 0)
                           (throw (misfit type path value "it must be true or false")))
                         (long (checked value)))))
      (decode [_ memory offset]
        (let [raw (Bytes/getBits memory (+ (* 8 offset) bit-offset) n)]
          (cond
            (= :bool kind) (= 1 raw)
            signed (name (bit-shift-right (bit-shift-left raw spare) spare))
            :else (name (scalar/unsigned raw))))))))

;; ---------------------------------------------------------------- structs and unions

(declare parts choice)

(defn- part
  "Returns the fields that a member contributes to encoding its struct.

  That is `{:name :codec :offset}` of a field, the fields of an anonymous struct one by one, and
  `{:choice [parts …]}` of an anonymous union, with the parts of each member. Members owned by the
  kernel contribute nothing, nor do structs and unions of nothing else."
  [{:keys [name node offset bits] :as member} base path codec]
  (let [at (+ (long base) (long offset))]
    (cond
      (= :private (:kind node)) nil
      bits [{:name name :codec (TypeCodec/of (bit-field member (conj path name))) :offset base}]
      name [{:name name :codec (codec node (conj path name)) :offset at}]
      (= :struct (:kind node)) (parts node at path codec)
      (= :union (:kind node)) (choice node at path codec))))

(defn- parts [{:keys [members]} base path codec]
  (into [] (mapcat #(part % base path codec)) members))

(defn- choice
  "Returns the one part of a union, or none if no member has parts."
  [{:keys [members size]} base path codec]
  (when-let [choice (seq (keep #(seq (part % base path codec)) members))]
    [{:choice choice :offset base :size size}]))

(defn- fields
  "Returns all fields of parts in order, with the fields of choices."
  [parts]
  (mapcat #(if (:choice %) (mapcat fields (:choice %)) [%]) parts))

(defn- into-map
  "Returns a map of decoded values by name, which prints in their order.

  A hash map if there are many."
  [^objects names-and-values]
  (if (<= (alength names-and-values) 128)
    (PersistentArrayMap. names-and-values)
    (PersistentHashMap/create names-and-values)))

(declare encode-parts)

(defn- alone
  "Returns the bytes of a struct with only one member of a union written.

  They end at the end of the union."
  ^bytes [parts end value type path]
  (let [array (byte-array end)]
    (encode-parts parts value (MemorySegment/ofArray array) 0 type path)
    array))

(defn- merged
  "Returns the combined bytes of several members, or nil if they differ.

  Members agree if all bits that they share are equal. All other bits are zero."
  ^bytes [^long end arrays]
  (let [all (byte-array end)]
    (doseq [^bytes array arrays]
      (dotimes [i end]
        (aset all i (unchecked-byte (bit-or (aget all i) (aget array i))))))
    all))

(defn- encode-choice
  "Writes the given members of a union.

  Several members must agree, and are written together."
  [{:keys [choice offset size]} value memory base type path]
  (let [at (+ (long base) (long offset))
        end (+ (long offset) (long size))
        given-fields (fn [parts] (filter #(contains? value (:name %)) (fields parts)))
        given (filter (comp seq given-fields) choice)]
    (cond
      (empty? given)
      (throw (misfit type path value
                     (str "it must have one of "
                          (error/list-of (map :name (mapcat fields choice))))))
      (nil? (next given))
      (do (Bytes/zero memory at size)
          (encode-parts (first given) value memory base type path))
      :else
      (let [arrays (mapv #(alone % end value type path) given)
            ^bytes all (merged end arrays)]
        (doseq [[parts ^bytes array] (map vector given arrays)
                {:keys [^Codec codec offset]} (given-fields parts)]
          (when-not (.equals ^Object (.decode codec (MemorySegment/ofArray array) offset)
                             (.decode codec (MemorySegment/ofArray all) offset))
            (throw (misfit type path value "its members differ; give only one"))))
        (MemorySegment/copy (MemorySegment/ofArray all) (long offset) memory at (long size))))
    (count (mapcat given-fields given))))

(defn- field-value
  "Returns the value of a field in a map; throws if it is missing."
  [value name type path]
  (let [x (get value name ::missing)]
    (if (identical? ::missing x)
      (throw (misfit type (conj path name) value "every field is required"
                     (str "the field " name " is missing")))
      x)))

(defn- encode-parts
  "Writes parts from a map; returns the number of keys used."
  [parts value memory base type path]
  (reduce (fn [^long used {:keys [choice name ^Codec codec offset] :as part}]
            (if choice
              (+ used (long (encode-choice part value memory base type path)))
              (do (.encode codec (field-value value name type path) memory
                           (+ (long base) (long offset)))
                  (inc used))))
          0 parts))

(defn- unknown-field
  "Returns the exception for a map with an unknown key."
  ^Throwable [value known type path]
  (let [unknown (first (remove known (keys value)))]
    (misfit type (conj path (error/shown unknown)) (get value unknown)
            (nearest/alternatives unknown known)
            (str (error/printed unknown) " is not a field"))))

(defn- plain-map
  "Returns a map whose keys compare with any name; throws for other values.

  A sorted map may have keys that do not."
  [value names type path]
  (if (map? value)
    (into {} value)
    (throw (misfit type path value
                   (str "it must be a map with " (error/list-of (take 32 names) "and"))))))

;; --- unused bits

(defn- taken-bits
  "Returns the ranges of bits, `[from to]`, of the fields of a struct or union.

  Fields that are private to the kernel have no range."
  [{:keys [members]} base]
  (mapcat (fn [{:keys [name node offset bits bit-offset]}]
            (let [at (+ (long base) (long offset))]
              (cond
                (= :private (:kind node)) nil
                bits (let [from (+ (* 8 (long base)) (long bit-offset))]
                       [[from (+ from (long bits))]])
                name [[(* 8 at) (* 8 (+ at (long (:size node))))]]
                :else (taken-bits node at))))
          members))

(defn- unused-bits
  "Returns the unused ranges of bits of a struct or union, ascending."
  [{:keys [size] :as node}]
  (let [[gaps end] (reduce (fn [[gaps ^long end] [^long from ^long to]]
                             [(if (< end from) (conj gaps [end from]) gaps) (max end to)])
                           [[] 0]
                           (sort-by first (taken-bits node 0)))
        all (* 8 (long size))]
    (if (< (long end) all) (conj gaps [end all]) gaps)))

(defn- padding-of
  "Returns the unused bits of a struct's or union's node; nil if there are none."
  ^Padding [node]
  (when-let [gaps (seq (unused-bits node))]
    (Padding. (:size node) (long-array (mapcat identity gaps)))))

(def padding-key
  "The key for unused bits in the value of a struct or union, if any is set."
  :bpfmap/padding)

(defn- with-padding
  "Returns decoded values by name, with the unused bits as bytes."
  [^objects names-and-values ^Padding padding memory offset]
  (let [n (alength names-and-values)
        more (java.util.Arrays/copyOf names-and-values (+ n 2))]
    (aset more n padding-key)
    (aset more (inc n) (bytes/wrap (.read padding memory (long offset))))
    (into-map more)))

(defn- write-padding
  "Writes the unused bits in a map; returns the number of keys used."
  [value ^Padding padding memory offset path]
  (if (and padding (contains? value padding-key))
    (let [given (get value padding-key)
          n (.count padding)
          path (conj (vec path) padding-key)
          refuse #(misfit [:bytes n] path given %)
          array (scalar/exactly (or (scalar/array-of given n)
                                    (throw
                                     (refuse
                                      "it must be the bytes with unused bits, in order")))
                                [:bytes n] path given n)]
      (when-not (.fits padding array)
        (throw (refuse "it must have zeros for all bits of fields")))
      (.write padding array memory (long offset))
      1)
    0))

;; Types are made again for each reader and each map. One object for each shape keeps the lookups
;; quick that compare it.
(def ^:private shapes (cache/cache))

(defn- struct-words
  "Returns the `StructWords` of a struct; nil for fields that do not fit words."
  ^StructWords [size padding names codecs offsets]
  (when-let [words (StructWords/of struct-map/maker size padding names codecs offsets)]
    (if-let [shape (.shape words)]
      (cache/through shapes 256 shape (constantly words))
      words)))

(defn- compound [{:keys [type size] :as node} path parts zero-first?]
  (let [size (long size)
        all (vec (fields parts))
        known (set (map :name all))
        in-order (map :name all)
        n (count all)
        names (object-array in-order)
        ^"[Lbpfmap.sys.TypeCodec;" codecs (into-array TypeCodec (map :codec all))
        offsets (long-array (map :offset all))
        choices? (boolean (some :choice parts))
        padding (padding-of node)
        total? (every? #(.total ^Codec (:codec %)) all)
        words (struct-words size padding names codecs offsets)
        check-used (fn [used value]
                     (when-not (= used (count value))
                       (throw (unknown-field value known type path))))
        encode-map (fn [value memory offset]
                     (when zero-first?
                       (Bytes/zero memory (long offset) size))
                     (let [used (long (encode-parts parts value memory offset type path))]
                       (check-used (+ used (long (write-padding value padding memory offset path)))
                                   value)))]
    (reify Codec
      (size [_] size)
      (total [_] (boolean total?))
      (words [_] words)
      (encode [_ value memory offset]
        (cond
          (or choices? (not (map? value)) (sorted? value))
          (when-not (view-written? value size type path memory offset)
            (encode-map (if (and (map? value) (not (sorted? value)))
                          value
                          (plain-map value in-order type path))
                        memory offset))
          :else
          (do
            (when zero-first?
              (Bytes/zero memory offset size))
            (loop [i 0]
              (if (< i n)
                (do (.encode ^TypeCodec (aget codecs i)
                             (field-value value (aget names i) type path)
                             memory (+ offset (aget offsets i)))
                    (recur (inc i)))
                (when-not (== n (count value))
                  (check-used (+ n (long (write-padding value padding memory offset path)))
                              value)))))))
      (decode [_ memory offset]
        (let [names-and-values (TypeCodec/decodeFields names codecs offsets memory offset)]
          (if (or (nil? padding) (.isZero padding memory offset))
            (into-map names-and-values)
            (with-padding names-and-values padding memory offset)))))))

(defn- covered?
  "Returns true if the fields write every byte, so that none must be zeroed first."
  [{:keys [size members]}]
  (and (every? #(and (:name %) (not (:bits %)) (not= :private (:kind (:node %)))) members)
       (= size (reduce + 0 (map #(:size (:node %)) members)))))

(defn struct
  "Returns the codec of a struct's node: a map of all fields.

  A value must have every field and no other, including the fields of anonymous members."
  [node path codec]
  (compound node path (parts node 0 path codec) (not (covered? node))))

(defn union
  "Returns the codec of a union's node: a map of every member.

  It is written from one member, or from several that agree."
  [node path codec]
  (compound node path (choice node 0 path codec) true))

;; ---------------------------------------------------------------- functions of the caller

(defn- encode-via [value {:keys [type encode]} path]
  (try
    (encode value)
    (catch Exception e
      (throw (misfit type path value (str "its encode function threw " e) nil e)))))

(defn- decode-via [raw {:keys [type decode]} path]
  (try
    (decode raw)
    (catch Exception e
      (throw (misfit type path raw (str "its decode function threw " e) "it cannot be decoded"
                     e)))))

(defn via
  "Returns the codec of a node with encode and decode functions around a type.

  A byte view for a type other than bytes stands for bytes without a natural value: it bypasses the
  functions, both ways."
  [{:keys [target] :as node} path codec]
  (let [^Codec of-target (codec target path)
        size (.size of-target)
        passes? (not (contains? #{:bytes :via} (:kind target)))]
    (reify Codec
      (size [_] size)
      (total [_] false)
      (encode [_ value memory offset]
        (.encode of-target
                 (if (and passes? (instance? ByteView value)) value (encode-via value node path))
                 memory offset))
      (decode [_ memory offset]
        (let [raw (.decode of-target memory offset)]
          (if (and passes? (instance? ByteView raw)) raw (decode-via raw node path)))))))

(defn via-key
  "Returns the codec of [[via]] in a key.

  If the functions do not encode a value to the same bytes again, the value might be mistaken for
  another key, and it is read as a byte view."
  [{:keys [target] :as node} path codec]
  (let [^Codec plain (via node path codec)
        size (.size plain)
        passes? (not (contains? #{:bytes :via} (:kind target)))
        same-bytes? (fn [value ^MemorySegment memory offset]
                      (let [again (MemorySegment/ofArray (byte-array size))]
                        (try
                          (.encode plain value again 0)
                          (= -1 (.mismatch again (.asSlice memory (long offset) size)))
                          (catch Exception _ false))))]
    (if-not passes?
      plain
      (reify Codec
        (size [_] size)
        (total [_] false)
        (encode [_ value memory offset] (.encode plain value memory offset))
        (decode [_ memory offset]
          (let [value (.decode plain memory offset)]
            (if (same-bytes? value memory offset)
              value
              (bytes/wrap (Bytes/copyOut memory offset (int size))))))))))

;; --- entry points

(def ^:private makers
  "Functions that make codecs, by kind of node.

  The arguments are the node, its path, and the function that compiles its parts."
  (let [without-parts (fn [make] (fn [node path _codec] (make node path)))]
    {:integer (without-parts scalar/integer)
     :float (without-parts scalar/floating)
     :bool (without-parts scalar/bool)
     :char (without-parts scalar/character)
     :pointer (without-parts scalar/pointer)
     :bytes (without-parts scalar/fixed-bytes)
     :string (without-parts scalar/text)
     :private (without-parts scalar/nothing)
     :pad (without-parts scalar/nothing)
     :ipv4 (without-parts scalar/ipv4)
     :ipv6 (without-parts scalar/ipv6)
     :mac (without-parts scalar/mac)
     :prefix scalar/prefix
     :array array
     :struct struct
     :union union
     :enum enum
     :via via}))

(defn- compiler
  "Returns the function that compiles a node at a path, by a table of makers."
  [makers]
  (fn of-node ^TypeCodec [node path]
    (TypeCodec/of ((makers (:kind node)) node path of-node) (:type node))))

(def ^:private of-value (compiler makers))

(def ^:private of-key
  (compiler (assoc makers
                   :float (fn [node path _codec] (scalar/floating-key node path))
                   :via via-key)))

(defn of-node
  "Returns the codec of a type that was parsed to a node; see [[codec]]."
  ^TypeCodec [node path]
  (of-value node path))

(defn key-of-node
  "Returns the codec of keys for a type that is a node already; see [[key-codec]]."
  ^TypeCodec [node path]
  (of-key node path))

(defn codec
  "Compiles a type to a `bpfmap.sys.TypeCodec`.

  `types` maps names to types. `path` is the path of the type for error messages. Throws
  `:invalid-spec` for a malformed type.

      (.size (codec [:struct [:a :u8] [:b :u32]])) ;=> 8"
  (^TypeCodec [type] (codec type nil []))
  (^TypeCodec [type path] (codec type nil path))
  (^TypeCodec [type types path] (of-node (node/node type types path) path)))

(defn key-codec
  "Returns a codec of keys for a type: different bytes read as different values.

  It is like [[codec]], except that a floating-point number that is -0.0, which is `=` to 0.0, or
  NaN, which is `=` to nothing, reads as a byte view.

      (.decode (key-codec :f32 nil [:key]) memory 0) ;=> #bpfmap/bytes \"00 00 00 80\""
  ^Codec [type types path]
  (key-of-node (node/node type types path) path))
