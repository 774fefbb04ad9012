(ns bpfmap.asm
  "Assembles BPF instructions, which are data, into bytes; and disassembles them.

  An instruction is a vector, a bare keyword is a label, and a program is a sequence of both:

      [[:mov64 :r0 0]
       [:jeq :r1 0 :done]
       [:mov64 :r0 1]
       :done
       [:exit]]

  | instruction                                   | mnemonics                                       |
  |-----------------------------------------------|-------------------------------------------------|
  | `[:add64 :r1 :r2]`, `[:add64 :r1 5]`          | `mov add sub mul div mod or and xor lsh rsh arsh`; `64`, `32` |
  | `[:neg64 :r1]`                                | `neg64 neg32`                                   |
  | `[:sdiv64 :r1 :r2]`                           | `sdiv smod`, with signs; `64`, `32`             |
  | `[:movsb64 :r1 :r2]`                          | `movsb movsh` and, for `64`, `movsw`: extend the sign |
  | `[:be16 :r1]`                                 | `be16 be32 be64 le16 le32 le64`: machine's order to that, or back; `bswap16 bswap32 bswap64` |
  | `[:lddw :r1 0x1122334455667788]`              | a number of 64 bits, in two slots               |
  | `[:lddw :r1 m]`, `[:ld-map-value :r1 m 8]`    | map `m`; the address in its value 0, plus 8; two slots |
  | `[:ldxw :r1 [:r2 4]]`                         | `ldxb ldxh ldxw ldxdw`: 1, 2, 4 and 8 bytes; `ldxsb ldxsh ldxsw` extend the sign |
  | `[:stxw [:r10 -4] :r1]`, `[:stw [:r10 -4] 7]` | `stxb stxh stxw stxdw`, `stb sth stw stdw`      |
  | `[:atomic-add64 [:r0 0] :r1]`                 | `add or and xor`, `fetch-` and these, `xchg cmpxchg`; `64`, `32` |
  | `[:load-acquire64 :r1 [:r2 0]]`, `[:store-release64 [:r2 0] :r1]` | `64 32 16 8`                |
  | `[:addr-space-cast :r1 :r2 0 1]`              | to address space 0, from 1: the address of arena memory |
  | `[:ldabsw 12]`, `[:ldindw :r1 12]`            | `ldabs ldind`; `b h w`: bytes of the packet     |
  | `[:jeq :r1 5 :label]`, `[:jeq :r1 :r2 3]`     | `jeq jne jgt jge jlt jle jset jsgt jsge jslt jsle`, and with `32` |
  | `[:ja :label]`, `[:exit]`                     | `gotol` jumps farther, `may-goto` leaves loops  |
  | `[:call :map-lookup-elem]`, `[:call 1]`       | the names are in `helpers`                      |
  | `[:ld-func :r2 :label]`                       | the function that begins at a label, to pass to a helper as a callback (Linux 5.13); two slots |
  | `[:call-local :label]`, `[:call-btf 1234]`    | a function in the same bytes; one of the kernel by its BTF id |
  | `[:callx :r1]`, `[:gotox :r1]`                | the address is in a register                    |
  | `[:insn {:code 0x18 :src 6 :imm 3}]`          | one slot by its fields: `:code :dst :src :off :imm` |

  Instructions of an object (`bpfmap.object`) refer to its parts by name:

  | instruction                                   | refers to                                       |
  |-----------------------------------------------|-------------------------------------------------|
  | `[:lddw :r1 {:map \"flows\"}]`                 | a map                                           |
  | `[:ld-map-value :r1 {:variable \"count\"} 0]`  | a variable, and an offset in it; also `{:kconfig name}`, `{:section name}` |
  | `[:call {:function \"f\"}]`, `[:lddw :r1 {:function \"f\"}]` | a function; its address       |
  | `[:call {:kfunc \"f\"}]`, `[:lddw :r1 {:kfunc \"f\"}]` | a function of the kernel; its BTF id, 0 if absent |
  | `[:lddw :r1 {:ksym \"init_task\"}]`            | a variable of the kernel                        |

  Offsets of jumps count slots of eight bytes from the instruction that follows. The kernel, not
  this namespace, checks that a program is safe. The encodings follow RFC 9669. This namespace does
  no I/O."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :refer [error list-of printed]]
            [bpfmap.impl.disassembler :as disassembler]
            [bpfmap.impl.isa :as isa :refer [ranges registers]]
            [bpfmap.impl.nearest :as nearest]
            [clojure.string :as str])
  (:import (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

(def helpers
  "The numbers of helper functions by name, in kebab case."
  isa/helpers)

(def mnemonics "The rows of all mnemonics by name, as data." isa/mnemonics)

;; ---------------------------------------------------------------- operands
;;
;; A reader is called with the context of an operand and the operand. It returns the fields that the
;; operand sets: :dst, :src, :off, :imm, :next (the immediate of a second slot), :code (bits to
;; add), :kind and :ref (a relocation). For an invalid operand it returns a text with the reason,
;; which ends the message of the error.

(defn- in-range? [range x]
  (let [[low high] (ranges range)]
    (<= low x high)))

(defn- outside [what x range & [more]]
  (let [[low high] (ranges range)]
    (str what " must be from " low " to " high ", got " x more)))

(defn- suggestions
  "Returns a suggestion for a misspelt name of a table, as text to append, or nil."
  [table mistaken]
  (let [wanted (-> (name mistaken) (str/replace "_" "-") (str/replace #"^bpf-(func-)?" ""))
        near? (fn [k] (or (str/starts-with? (name k) wanted) (str/starts-with? wanted (name k))))]
    (when-let [found (seq (or (seq (take 8 (sort (filter near? (keys table)))))
                              (nearest/nearest wanted (sort (keys table)))))]
      (str "; did you mean " (list-of found) "?"))))

(defn- register [field]
  (fn [_ x]
    (if-let [n (registers x)]
      {field n}
      (str "a register must be :r0 to :r10, got " (printed x)))))

(defn- written-register [field]
  (fn [context x]
    (if (= :r10 x)
      ":r10, the frame pointer, is read-only"
      ((register field) context x))))

(defn- memory [field]
  (fn [context x]
    (if-not (and (vector? x) (= 2 (count x)) (integer? (second x)))
      (str "a memory operand must be a register and an offset in bytes, such as [:r10 -8], got "
           (printed x))
      (let [[base off] x
            fields ((register field) context base)]
        (cond
          (string? fields) fields
          (in-range? :signed16 off) (assoc fields :off off)
          :else (outside "the offset" off :signed16))))))

(defn- immediate [{{range :immediate} :row} x]
  (cond
    (not (integer? x)) (str "the immediate must be an integer, got " (printed x))
    (in-range? range x) {:imm x}
    :else (outside "the immediate" x range
                   (when (= :signed32 range)
                     "; use :lddw for 64 bits"))))

(defn- source [context x]
  (cond
    (registers x) {:code 0x08 :src (registers x)}
    (integer? x) (immediate context x)
    :else (str "the source must be a register, :r0 to :r10, or an integer, got " (printed x))))

(def ^:private named-parts
  "Parts of an object that are not maps, by the key of the reference.

  Each has the kind of its relocation and the source register, for a call and for an address."
  {:function {:call [:call 1] :address [:function 4]} ; BPF_PSEUDO_CALL, BPF_PSEUDO_FUNC
   :kfunc {:call [:kfunc 2] :address [:btf-id 3]} ; BPF_PSEUDO_KFUNC_CALL, BPF_PSEUDO_BTF_ID
   :ksym {:address [:ksym 0]}})

(def ^:private values-of-maps "Parts of an object that lie in the value of a map."
  #{:variable :section :kconfig})

(defn- part
  "Returns the key of a reference to a part of an object by name, or nil."
  [x]
  (when (and (map? x) (= 1 (count x)))
    (let [[k text] (first x)]
      (when (string? text) k))))

(defn- part-reference
  "Returns the fields of a reference to a part that is not a map, or nil."
  [x use]
  (when-let [[kind src] (get-in named-parts [(part x) use])]
    {:src src :imm 0 :kind kind :ref x}))

(defn- map-reference [kind src]
  (fn [_ x]
    ;; Any object can represent a map, so only obvious mistakes are rejected.
    (if (or (nil? x) (boolean? x) (number? x) (registers x))
      (str "the operand must be a map, got " (printed x))
      {:src src :imm 0 :kind kind :ref x})))

(defn- wide [context x]
  (cond
    (registers x) (str "the operand must be an integer or a map, got " x
                       "; use :mov64 to copy a register")
    (values-of-maps (part x)) (str "the operand must be an integer or a map, got " (printed x)
                                    "; use :ld-map-value for a part of the value of a map")
    (part-reference x :address) (part-reference x :address)
    (not (integer? x)) ((map-reference :map-fd 1) context x) ; BPF_PSEUDO_MAP_FD
    (in-range? :bits64 x) (let [bits (.longValue (biginteger x))]
                            {:imm bits :next (bit-shift-right bits 32)})
    :else (outside "the immediate" x :bits64)))

(defn- map-offset [_ x]
  (cond
    (not (integer? x)) (str "the offset must be an integer, got " (printed x))
    (in-range? :unsigned32 x) {:next x}
    :else (outside "the offset" x :unsigned32)))

(defn- target
  "Returns the reader of a jump's target, whose distance is in a field."
  [field range]
  (fn [{:keys [slot labels starts end]} x]
    (let [off (cond
                (keyword? x) (some-> (labels x) (- slot 1))
                (integer? x) x)]
      (cond
        (and (nil? off) (keyword? x)) (str "unknown label " x (suggestions labels x))
        (nil? off) (str "the target must be a label or an offset in slots, got " (printed x))
        (not (in-range? range off)) (outside "the jump" off range " slots")
        (starts (+ slot 1 off)) {field off}
        (< -1 (+ slot 1 off) end) (str "the jump to " x " ends inside an instruction of two slots")
        :else (str "the jump to " x " leaves the program")))))

(defn- number
  "Returns the reader of a number in a range, which is multiplied."
  [what field range factor]
  (fn [_ x]
    (cond
      (not (integer? x)) (str what " must be an integer, got " (printed x))
      (in-range? range x) {field (* (long x) (long factor))}
      :else (outside what x range))))

(def ^:private slot-fields
  {:code :unsigned8 :dst :unsigned4 :src :unsigned4 :off :signed16 :imm :bits32})

(defn- fields [_ x]
  (cond
    (not (map? x)) (str "the operand must be a map of the fields of a slot, got " (printed x))
    (not-every? slot-fields (keys x))
    (str "the fields of a slot must be " (list-of (sort (keys slot-fields))) ", got "
         (list-of (map printed (remove slot-fields (keys x))) "and"))
    :else (or (some (fn [[k v]]
                      (cond
                        (not (integer? v)) (str k " must be an integer, got " (printed v))
                        (not (in-range? (slot-fields k) v)) (outside (str k) v (slot-fields k))))
                    x)
              x)))

(defn- helper [_ x]
  (cond
    (integer? x) (if (in-range? :unsigned31 x)
                   {:imm x}
                   (outside "the helper's number" x :unsigned31))
    (helpers x) {:imm (helpers x)}
    (part-reference x :call) (part-reference x :call)
    (keyword? x) (str "unknown helper " x (suggestions helpers x))
    :else (str "the helper must be a name or a number, got " (printed x))))

(defn- function [{:keys [slot labels starts]} x]
  (let [start (when (keyword? x) (labels x))]
    (cond
      (not (keyword? x)) (str "the function must be a label, got " (printed x))
      (nil? start) (str "unknown label " x (suggestions labels x))
      (zero? (long start)) (str "the function at " x " is the program itself")
      (not (starts start)) (str "no instruction follows the label " x)
      :else {:src 4 :imm (- (long start) slot 1) :function start}))) ; BPF_PSEUDO_FUNC

(def ^:private operands
  "Kinds of operands: how a usage line shows one, and the function that reads it."
  {:to {:shows "register" :read (written-register :dst)}
   :left {:shows "register" :read (register :dst)}
   :right {:shows "register" :read (register :src)}
   :fetched {:shows "register" :read (written-register :src)}
   :source {:shows "register-or-immediate" :read source}
   :immediate {:shows "immediate" :read immediate}
   :memory-from {:shows "[register offset]" :read (memory :src)}
   :memory-to {:shows "[register offset]" :read (memory :dst)}
   :wide {:shows "immediate-or-map" :read wide}
   :map {:shows "map" :read (map-reference :map-value 2)} ; BPF_PSEUDO_MAP_VALUE
   :map-offset {:shows "offset" :read map-offset}
   :target {:shows "label-or-offset" :read (target :off :signed16)}
   :far-target {:shows "label-or-offset" :read (target :imm :signed32)}
   :function {:shows "label" :read function}
   :helper {:shows "helper" :read helper}
   :btf-id {:shows "id" :read (number "the id" :imm :unsigned31 1)}
   :to-space {:shows "space" :read (number "the address space" :imm :unsigned16 0x10000)}
   :from-space {:shows "space" :read (number "the address space" :imm :unsigned16 1)}
   :fields {:shows "fields" :read fields}})

;; ---------------------------------------------------------------- assembly

(defn- invalid ^Throwable [index item hint]
  (error :invalid-program
         (str "Cannot assemble " (when index (str "instruction " index ", ")) (printed item))
         {:bpfmap/op :assemble :bpfmap/path (when index [index]) :bpfmap/hint hint}))

(defn- instruction? [x]
  (and (vector? x) (keyword? (first x))))

(defn- flat [x]
  (cond
    (nil? x) nil
    (and (sequential? x) (not (instruction? x))) (mapcat flat x)
    :else [x]))

(defn- label-problem [labels label]
  (cond
    (or (mnemonics label)
        (registers label)) "a bare keyword is a label; an instruction must be a vector, such as [:exit]"
    (labels label) (str "the label " label " is defined twice")))

(defn- row-problem [insn]
  (let [mnemonic (first insn)
        {kinds :operands :as row} (mnemonics mnemonic)]
    (cond
      (nil? row)
      (str "unknown instruction " mnemonic
           (if (mnemonics (when (vector? (second insn)) (first (second insn))))
             "; nested instructions that start with a label must be a list"
             (suggestions mnemonics mnemonic)))
      (not= (count kinds) (dec (count insn)))
      (str "it must have the form ["
           (str/join " " (cons mnemonic (map (comp :shows operands) kinds))) "]"))))

(defn- layout
  "Returns the instructions with their slots, and the slots of the labels."
  [items]
  (reduce
   (fn [{:keys [labels end] :as state} [index item]]
     (if-let [problem (cond
                        (keyword? item) (label-problem labels item)
                        (instruction? item) (row-problem item)
                        :else "an instruction must be a vector such as [:mov64 :r0 0], and a label a keyword")]
       (throw (invalid index item problem))
       (if (keyword? item)
         (assoc-in state [:labels item] end)
         (let [row (mnemonics (first item))]
           (-> state
               (update :insns conj {:index index :slot end :row row :insn item})
               (update :starts conj end)
               (assoc :end (+ end (:slots row 1))))))))
   {:insns [] :labels {} :starts #{} :end 0}
   (map-indexed vector items)))

(defn- encode
  "Reads the operands of an instruction; returns it with the fields that they set."
  [program {:keys [index row insn] :as item}]
  (let [context (merge program item)]
    (reduce
     (fn [fields [kind operand]]
       (let [read (get-in operands [kind :read])
             fields-or-problem (read context operand)]
         (if (string? fields-or-problem)
           (throw (invalid index insn fields-or-problem))
           ;; Operands set fields of their own, except that a register as the source adds a bit to
           ;; the opcode.
           (merge-with + fields fields-or-problem))))
     (merge (select-keys item [:slot]) (select-keys row [:code :imm :off :src :slots]))
     (map vector (:operands row) (rest insn)))))

(defn- write-slot!
  [^ByteBuffer buffer {:keys [code dst src off imm] :or {code 0 dst 0 src 0 off 0 imm 0}}]
  ;; The two registers are bit fields of one byte, so the byte order decides which is first.
  (let [[low high] (if (= ByteOrder/BIG_ENDIAN (.order buffer)) [src dst] [dst src])]
    (.put buffer (unchecked-byte (long code)))
    (.put buffer (unchecked-byte (+ (long low) (* 16 (long high)))))
    (.putShort buffer (unchecked-short (long off)))
    (.putInt buffer (unchecked-int (long imm)))))

(defn assemble
  "Assembles instructions into bytes, and lists the maps in them.

  `insns` is a sequence of instructions and labels, as this namespace describes. Nested sequences
  are flattened and nil is ignored, so that a function may return several instructions. A vector
  that starts with a keyword is always an instruction: nested instructions that start with a label
  must be a list or another seq. Labels are visible in the whole program; a function that defines
  one must make a new one each time, with `gensym`.

  Immediates are integers of 32 bits, and of 64 bits for `:lddw`. If the sign of 32 bits is extended
  to 64, they are -2147483648 to 2147483647. If an operation uses only 32, 16 or 8 bits, the
  unsigned reading is also accepted.

  A map may be any object except a number, a boolean, nil or a register. Its descriptor is not known
  here, so its immediate is 0 and it is listed under `:relocations`; see `patch-map-fd!`.

  | option        | meaning                                                        |
  |---------------|----------------------------------------------------------------|
  | `:byte-order` | a `java.nio.ByteOrder`, default: this machine's                |

  Returns `{:bytes b :relocations rs :functions fs}`:

  - `:bytes` is a new byte array with eight bytes for each slot.
  - `:relocations` is a vector of `{:slot n :kind k :ref map}`. The kind is `:map-fd` or
    `:map-value`; for parts of an object also `:call`, `:function`, `:kfunc`, `:btf-id` or `:ksym`,
    with the reference as `:ref`.
  - `:functions` are the slots at which the functions of `:ld-func` begin, ascending. The kernel
    accepts a program with such functions only with BTF that describes them, which
    `bpfmap.prog/load` adds.

  Throws `:invalid-program`. Its `:bpfmap/path` is `[index]`, the position of the instruction in the
  flat sequence, labels included, counted from 0.

      (vec (:bytes (assemble [[:mov64 :r0 2] [:exit]] {:byte-order ByteOrder/LITTLE_ENDIAN})))
      ;=> [-73 0 0 0 2 0 0 0 -107 0 0 0 0 0 0 0]"
  ([insns]
   (assemble insns nil))
  ([insns {:keys [byte-order]}]
   (when-not (or (nil? insns) (sequential? insns))
     (throw (invalid nil insns "a program must be a sequence of instructions")))
   (let [{:keys [insns end] :as program} (layout (mapcat flat insns))
         _ (when (zero? end)
             (throw (invalid nil []
                             "a program must have an instruction; the smallest is [[:mov64 :r0 0] [:exit]]")))
         encoded (mapv #(encode program %) insns)
         buffer (doto (ByteBuffer/allocate (* 8 end))
                  (.order (or byte-order (ByteOrder/nativeOrder))))]
     (doseq [fields encoded]
       (write-slot! buffer fields)
       (when (:slots fields)
         (write-slot! buffer {:imm (:next fields 0)})))
     {:bytes (.array buffer)
      :functions (into [] (comp (keep :function) (distinct)) (sort-by :function encoded))
      :relocations (into [] (comp (filter :kind) (map #(select-keys % [:slot :kind :ref])))
                         encoded)})))

(defn patch-map-fd!
  "Writes a map's descriptor into the instruction at a slot; returns the array.

  `bytes` is in the order of this machine, and `slot` is one that `assemble` listed under
  `:relocations`. The array changes: copy an assembled program with `aclone` first if it is loaded
  twice.

      (reduce (fn [b {:keys [slot ref]}] (patch-map-fd! b slot (fd-of ref)))
              (aclone bytes) relocations)"
  ^bytes [^bytes bytes slot fd]
  (-> (ByteBuffer/wrap bytes)
      (.order (ByteOrder/nativeOrder))
      (.putInt (+ 4 (* 8 (int slot))) (int fd)))
  bytes)

;; ---------------------------------------------------------------- disassembly

(defn- unreadable ^Throwable [x hint]
  (error :invalid-value (str "Cannot disassemble " (printed x))
         {:bpfmap/op :disassemble :bpfmap/hint hint}))

(defn disassemble
  "Disassembles bytes into instructions, or prints a function as readable assembly.

  | argument                                   | result                                          |
  |--------------------------------------------|-------------------------------------------------|
  | bytes: a byte array or a byte view         | a vector of instructions and labels, as data    |
  | a function: a map with `:insns`            | a string: labels, slots, instructions in the notation of LLVM, and its source lines and CO-RE relocations, if it has `:lines` and `:core` |

  A function is a value of `:programs` or `:functions` of an object, see `bpfmap.object/read`.
  Labels are named after their slots. Bytes that are not an instruction that [[assemble]] writes
  become an `:insn` with the fields of the slot, so assembling the result returns the same bytes.

  | option        | meaning                                                        |
  |---------------|----------------------------------------------------------------|
  | `:byte-order` | the `java.nio.ByteOrder` of the bytes, default: this machine's |

  Throws `:invalid-value` for anything else, and for bytes that are not whole slots of eight.

      (disassemble (:bytes (assemble [[:mov64 :r0 2] [:exit]]))) ;=> [[:mov64 :r0 2] [:exit]]
      (print (disassemble {:name \"f\" :insns [[:ldxw :r0 [:r1 4]] [:exit]]}))
      ; f:
      ;    0: r0 = *(u32 *)(r1 + 4)
      ;    1: exit"
  ([x]
   (disassemble x nil))
  ([x {:keys [byte-order]}]
   (cond
     (bytes/byte-count x)
     (do (when-not (zero? (rem (long (bytes/byte-count x)) 8))
           (throw (unreadable x (str "its length must be a multiple of 8 bytes, got "
                                     (bytes/byte-count x)))))
         (disassembler/instructions (.order (ByteBuffer/wrap (bytes/->array x))
                                            (or byte-order (ByteOrder/nativeOrder)))
                                    (constantly nil)))
     (and (map? x) (sequential? (:insns x)))
     (let [insns (mapcat flat (:insns x))]
       (doseq [[index item] (map-indexed vector insns)]
         (when-not (or (keyword? item) (and (instruction? item) (nil? (row-problem item))))
           (throw (invalid index item (if (instruction? item)
                                        (row-problem item)
                                        "an instruction must be a vector such as [:mov64 :r0 0]")))))
       (disassembler/listing (:name x) insns (:lines x) (:core x)))
     :else (throw (unreadable x "it must be bytes, or a function of an object with :insns")))))
