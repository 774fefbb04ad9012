(ns bpfmap.btf
  "BTF, the kernel's type format, to and from types as data.

      (def b (bpfmap.host/kernel-btf))
      (type-named b \"timespec64\")
      ;=> [:struct {:name \"timespec64\"} [:tv_sec [:typedef \"time64_t\" …]] [:tv_nsec …]]

  The types are those of `bpfmap.type`. What C lays out as C does needs no more words; what is
  packed or padded by hand says so in its options. Types that mean more than C says (`:ipv4`,
  `:port`, `:ktime` …) are written as typedefs with names of this library's, prefixes as structs
  with such names, and read back as what they mean; `__be32` and its like read as `:u32be`.
  Structs that the kernel keeps for itself read as `:spin-lock`, `:timer` and so on. A pointer
  reads as `[:ptr \"struct name\"]`.

  What is written down in a blob, uninterpreted, is in `bpfmap.impl.btf.blob`."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.object :as object]
            [bpfmap.impl.btf.types :as types]
            [bpfmap.impl.btf.writer :as writer]))

(set! *warn-on-reflection* true)

(defn parse
  "Reads a BTF blob from a byte array or byte view; `base` is the blob that a split one continues.

  Nothing is decoded yet but where each type lies. The bytes are not copied.
  Throws `:malformed-btf` with the place under `:bpfmap/path`.

      (parse bytes) ;=> #<btf 151234 types, 5700000 bytes LITTLE_ENDIAN>"
  ([bytes] (blob/parse bytes))
  ([bytes base] (blob/parse bytes base)))

(defn parse-object
  "Reads the BTF of an object file that a compiler made: the section `.BTF` of a 64-bit ELF file,
  given as its bytes.

  A compiler leaves the places of variables to a loader: in the BTF, a data section has the size
  0, and its variables have no offsets. This fills them in from the object's section headers,
  relocations and symbols. A section of declarations alone has no place in an object: its
  variables are laid out as libbpf lays out those of `.kconfig`.

  Returns nil if the object has no BTF (compile with `-g`). Throws `:malformed-btf` for bytes that
  are not such a file.

      (def b (parse-object bytes))
      (type-named b \"flow\")  ;=> [:struct {:name \"flow\"} …]
      (type-named b \".data\") ;=> [:struct {:name \".data\"} [:seen :u64] [:pick.turn :u32]]"
  [bytes]
  (object/parse (bytes/->array bytes)))

(defn type-of
  "Returns the type of an id, as data.

  A data section is a struct of its variables, in the order of their places. Of variables that
  share a name, as each file of a program may have its own `static seen`, the first has the plain
  name, and any other its offset behind it: `:seen` and `:seen#24`. What is declared of a type
  without size, a function or a symbol of type `void`, is an `[:array :u8 0]`.

  Throws `:malformed-btf` if there is no such id, if the type has no value (void, a function), and
  for a data section whose variables have no places yet: see [[parse-object]].

      (type-of b 12) ;=> [:struct {:name \"flow\"} [:src :ipv4] [:n :u64]]"
  [b id]
  (types/type-of (blob/check b) id))

(def ^:private of-value
  "Kinds that a value can have."
  #{:int :float :ptr :array :struct :union :enum :enum64 :typedef :const :volatile :restrict
    :type-tag :var :datasec})

(defn type-named
  "The first type of a name that a value can have, as data; nil when there is none.

      (type-named b \"timespec64\") ;=> [:struct {:name \"timespec64\"} …]"
  [b name]
  (when-let [id (some #(when (of-value (blob/kind b %)) %) (blob/ids-named (blob/check b) name))]
    (types/type-of b id)))

(defn ->btf
  "Writes types as BTF: `{:bytes byte-array :ids [id …]}`, an id for each type in order, 0 for a
  nil.

  `named` gives names to types that those may use. Names of fields pass
  through the kernel as C identifiers, `:tx-bytes` as `tx_bytes`. Throws
  `:invalid-spec` for a malformed type.

      (:ids (->btf [:u32 [:struct [:a :u32]]] nil)) ;=> [1 2]"
  [types named]
  (when-not (sequential? types)
    (throw (error/error :invalid-value
                        (str "Not a sequence of types: " (pr-str (error/shown types))) {})))
  (let [{:keys [records ids]} (types/records types named)]
    {:bytes (writer/blob records) :ids ids}))
