(ns bpfmap.btf
  "Converts BTF, the kernel's type format, to and from types, which are data.

      (def b (bpfmap.host/kernel-btf))
      (type-named b \"timespec64\")
      ;=> [:struct {:name \"timespec64\"} [:tv_sec [:typedef \"time64_t\" …]] [:tv_nsec …]]

  `bpfmap.type` describes the types. A struct has options only if its layout differs from C's,
  because it is packed or padded by hand. Types without an equivalent in C (`:ipv4`, `:port`,
  `:ktime` …) are written as typedefs with special names, prefixes as structs with such names, and
  read back as the same types; `__be32` and similar types read as `:u32be`. Structs owned by the
  kernel read as `:spin-lock`, `:timer` and so on. A pointer reads as `[:ptr \"struct name\"]`."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.object-file :as object-file]
            [bpfmap.impl.btf.types :as types]
            [bpfmap.impl.btf.writer :as writer]))

(set! *warn-on-reflection* true)

(defn parse
  "Parses a BTF blob, which is a byte array or a byte view.

  `base` is the blob that a split blob continues. Only the offsets of the types are decoded at
  first. The bytes are not copied. Throws `:malformed-btf` with the position under `:bpfmap/path`.

      (parse bytes) ;=> #<btf 151234 types, 5700000 bytes LITTLE_ENDIAN>"
  ([bytes] (blob/parse bytes))
  ([bytes base] (blob/parse bytes base)))

(defn parse-object
  "Parses the BTF of an object file from a compiler; nil if it has none.

  `bytes` are the bytes of a 64-bit ELF file; its BTF is in the section `.BTF`, which `-g` adds. A
  compiler leaves the offsets of variables to a loader: in the BTF, a data section has the size 0,
  and its variables have no offsets. This function adds them from the object's section headers,
  relocations and symbols. A section that only has declarations does not exist in the object: its
  variables are laid out as libbpf lays out `.kconfig`.

  Throws `:malformed-btf` if the bytes are not such a file.

      (def b (parse-object bytes))
      (type-named b \"flow\")  ;=> [:struct {:name \"flow\"} …]
      (type-named b \".data\") ;=> [:struct {:name \".data\"} [:seen :u64] [:pick.turn :u32]]"
  [bytes]
  (object-file/parse (bytes/->array bytes)))

(defn type-of
  "Returns the type of an id, as data.

  A data section is a struct of its variables, in the order of their offsets. If variables share a
  name, as each file of a program may have its own `static seen`, the first has the plain name, and
  any other its offset behind it: `:seen` and `:seen#24`. A variable whose type has no size (a
  function, or a symbol of type `void`) is an `[:array :u8 0]`.

  Throws `:malformed-btf` if the id does not exist, if the type has no value (void, a function), and
  for a data section whose variables have no offsets yet: see [[parse-object]].

      (type-of b 12) ;=> [:struct {:name \"flow\"} [:src :ipv4] [:n :u64]]"
  [b id]
  (types/type-of (blob/check b) id))

(def ^:private of-value
  "Kinds that a value can have."
  #{:int :float :ptr :array :struct :union :enum :enum64 :typedef :const :volatile :restrict
    :type-tag :var :datasec})

(defn type-named
  "Returns the first type with a name that a value can have, as data; or nil.

      (type-named b \"timespec64\") ;=> [:struct {:name \"timespec64\"} …]"
  [b name]
  (when-let [id (some #(when (of-value (blob/kind b %)) %) (blob/ids-named (blob/check b) name))]
    (types/type-of b id)))

(defn type-id
  "Returns the id of the first type of a kind with a name; nil if there is none.

  The kind is a keyword such as `:struct`, `:typedef` or `:func`. Programs that trace a function of
  the kernel are loaded with its id as `:attach-btf-id`.

      (type-id (host/kernel-btf) :func \"bpf_iter_task\") ;=> 24512"
  [b kind name]
  (first (filter #(= kind (blob/kind b %)) (blob/ids-named (blob/check b) name))))

(defn ->btf
  "Writes types as BTF and returns `{:bytes byte-array :ids [id …]}`.

  `:ids` has an id for each type in order, 0 for nil. `named` has named types that the others may
  use. Names of fields become C identifiers in the kernel, `:tx-bytes` becomes `tx_bytes`. Throws
  `:invalid-spec` for a malformed type.

      (:ids (->btf [:u32 [:struct [:a :u32]]] nil)) ;=> [1 2]"
  [types named]
  (when-not (sequential? types)
    (throw (error/error :invalid-value
                        (str "The types must be a sequence, got " (error/printed types))
                        {})))
  (let [{:keys [records ids]} (types/records types named)]
    {:bytes (writer/blob records) :ids ids}))
