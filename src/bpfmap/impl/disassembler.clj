(ns ^:no-doc bpfmap.impl.disassembler
  "Disassembles BPF instructions: bytes to data, and data to text.

  The tables are those of the assembler, read in the other direction. Every slot can be written as
  data: bytes that are not an instruction of `bpfmap.impl.isa` become an `:insn` with their fields."
  (:require [bpfmap.impl.isa :as isa]
            [clojure.set :as set]
            [clojure.string :as str])
  (:import (java.nio ByteBuffer ByteOrder)
           (java.util BitSet)))

(set! *warn-on-reflection* true)

;; --- slots

(defn slot
  "Returns the fields of the slot at an index: `{:code :dst :src :off :imm}`.

      (slot (ByteBuffer/wrap bytes) 0) ;=> {:code 0xb7 :dst 1 :src 0 :off 0 :imm 5}"
  [^ByteBuffer buffer ^long i]
  (let [at (int (* 8 i))
        registers (bit-and 0xff (.get buffer (inc at)))
        low (bit-and 0xf registers)
        high (bit-shift-right registers 4)
        big? (= ByteOrder/BIG_ENDIAN (.order buffer))]
    {:code (bit-and 0xff (.get buffer at))
     :dst (if big? high low)
     :src (if big? low high)
     :off (long (.getShort buffer (+ at 2)))
     :imm (long (.getInt buffer (+ at 4)))}))

(def wide-code
  "The opcode of the only instruction that takes two slots.

  It is BPF_LD | BPF_IMM | BPF_DW."
  0x18)

(defn- start-set
  "Returns the set of the slots at which instructions start."
  ^BitSet [^ByteBuffer buffer ^long n]
  (let [starts (BitSet. n)
        wide? (fn [^long i]
                (and (= (long wide-code) (bit-and 0xff (.get buffer (int (* 8 i)))))
                     (< (inc i) n)
                     ;; The second slot has an immediate only.
                     (zero? (.getInt buffer (int (* 8 (inc i)))))))]
    (loop [i 0]
      (when (< i n)
        (.set starts (int i))
        (recur (if (wide? i) (+ i 2) (inc i)))))
    starts))

(defn starts
  "Returns the slots at which instructions start, and the fields of all slots.

      (starts buffer) ;=> {:starts [0 1 3] :slots [{:code 0xb7 …} …]}"
  [^ByteBuffer buffer]
  (let [n (quot (.capacity buffer) 8)
        ^BitSet known (start-set buffer n)]
    {:starts (filterv #(.get known (int %)) (range n))
     :slots (mapv #(slot buffer %) (range n))}))

;; --- bytes to data

(def ^:private register-names (set/map-invert isa/registers))

(def ^:private helper-names (set/map-invert isa/helpers))

(def ^:private fields-of
  "The fields that an operand of each kind sets.

  All other fields must have the constants of the row."
  {:to #{:dst} :left #{:dst} :right #{:src} :fetched #{:src} :register #{:src} :immediate #{:imm}
   :memory-from #{:src :off} :memory-to #{:dst :off} :target #{:off} :far-target #{:imm}
   :helper #{:imm} :btf-id #{:imm} :wide #{:imm} :to-space #{:imm} :from-space #{:imm}
   :function #{:src :imm}})

(deftype ^:private Row [mnemonic operands immediate ^long checked ^long dst ^long src ^long off
                        ^long imm])

;; `checked` has a bit for each field that must have the constant of the row.
(def ^:private field-bits {:dst 0 :src 1 :off 2 :imm 3})

(defn- compiled-row [mnemonic operands immediate constants]
  (let [{:keys [dst src off imm] :or {dst 0 src 0 off 0 imm 0}} constants]
    (Row. mnemonic operands immediate
          (reduce #(bit-set %1 (field-bits %2)) 0 (keys constants))
          dst src off imm)))

(def ^:private candidates
  "The rows that each opcode may mean, by opcode."
  (let [variants (for [[mnemonic {:keys [code operands] :as row}]
                       (dissoc isa/mnemonics :insn :ld-map-value)
                       [code source] (if (some #{:source} operands)
                                       [[code :immediate] [(bit-or 0x08 (long code)) :register]]
                                       [[code nil]])
                       :let [operands (mapv #(if (= :source %) source %) operands)]]
                   [code (compiled-row mnemonic operands (:immediate row)
                                       (apply dissoc
                                              (merge {:dst 0 :src 0 :off 0 :imm 0}
                                                     (select-keys row [:src :off :imm]))
                                              (mapcat fields-of operands)))])
        by-code (group-by first variants)]
    (object-array (for [code (range 256)]
                    (object-array (map second (by-code code)))))))

(defn- in-range? [range x]
  (let [[low high] (isa/ranges range)]
    (<= (long low) (long x) (long high))))

;; The fields of an instruction. `next` is the immediate of a second slot, or nil; `target` is a
;; function of a slot to its label.
(defrecord ^:private Fields [code dst src off imm next slot target])

(defn- fields-at [^ByteBuffer buffer big? slot wide? target]
  (let [at (* 8 (long slot))
        registers (bit-and 0xff (.get buffer (int (inc at))))
        low (bit-and 0xf registers)
        high (bit-shift-right registers 4)]
    (Fields. (bit-and 0xff (.get buffer (int at)))
             (if big? high low)
             (if big? low high)
             (long (.getShort buffer (int (+ at 2))))
             (long (.getInt buffer (int (+ at 4))))
             (when wide? (long (.getInt buffer (int (+ at 12)))))
             slot
             target)))

(defn- wide-number [^Fields fields]
  (bit-or (bit-and 0xffffffff (long (.-imm fields)))
          (bit-shift-left (long (.-next fields)) 32)))

(def ^:private register-at
  "The names of the registers by number, nil for numbers without one."
  (mapv register-names (range 16)))

(defn- operand
  "Returns an operand of a kind, or nil if the assembler rejects these fields."
  [kind ^Fields fields ^Row row]
  (let [dst (long (.-dst fields))
        src (long (.-src fields))
        imm (long (.-imm fields))
        target (.-target fields)]
    (case kind
      :to (when (< dst 10) (register-at dst))
      :left (register-at dst)
      (:right :register) (register-at src)
      :fetched (when (< src 10) (register-at src))
      :immediate (when (in-range? (.-immediate row) imm) imm)
      :memory-from (when-let [base (register-at src)] [base (.-off fields)])
      :memory-to (when-let [base (register-at dst)] [base (.-off fields)])
      :target (target (+ (long (.-slot fields)) 1 (long (.-off fields))))
      :far-target (target (+ (long (.-slot fields)) 1 imm))
      :helper (when (<= 0 imm) (helper-names imm imm))
      :btf-id (when (<= 0 imm) imm)
      :wide (when (.-next fields) (wide-number fields))
      ;; BPF_PSEUDO_FUNC; the program itself is not a function.
      :function (let [start (+ (long (.-slot fields)) 1 imm)]
                  (when (and (= 4 src) (= 0 (.-next fields)) (pos? start))
                    (target start)))
      :to-space (bit-and 0xffff (bit-shift-right imm 16))
      :from-space (bit-and 0xffff imm))))

(defn- as-row
  "Returns the fields as an instruction of a row, or nil if they are not one."
  [^Fields fields ^Row row]
  (let [checked (.-checked row)
        operands (.-operands row)
        n (count operands)]
    (when (and (or (not (bit-test checked 0)) (= (.-dst row) (long (.-dst fields))))
               (or (not (bit-test checked 1)) (= (.-src row) (long (.-src fields))))
               (or (not (bit-test checked 2)) (= (.-off row) (long (.-off fields))))
               (or (not (bit-test checked 3)) (= (.-imm row) (long (.-imm fields)))))
      (loop [i 0 insn [(.-mnemonic row)]]
        (if (= i n)
          insn
          (when-some [x (operand (nth operands i) fields row)]
            (recur (inc i) (conj insn x))))))))

(defn raw
  "Returns a slot as an `:insn`, with its fields that are not zero.

      (raw {:code 0x18 :dst 1 :src 3 :off 0 :imm 7}) ;=> [:insn {:code 24 :dst 1 :src 3 :imm 7}]"
  [fields]
  [:insn (into {}
               (filter (fn [[_ x]] (not= 0 x)))
               (select-keys fields [:code :dst :src :off :imm]))])

(defn- decoded
  "Returns the instruction of the fields of a slot, or nil if they are not one."
  [^Fields fields]
  (let [^objects rows (aget ^objects candidates (.-code fields))
        n (alength rows)]
    (loop [i 0]
      (when (< i n)
        (or (as-row fields (aget rows i))
            (recur (inc i)))))))

(defn label
  "Returns the label of a slot.

      (label 12) ;=> :L12"
  [slot]
  (keyword (str "L" slot)))

(defn instructions
  "Disassembles a buffer; returns the instructions and labels, as data.

  `substitute` is called with the slot and fields of each instruction, those of a second slot under
  `:next`. It returns an instruction to use instead, or nil.

      (instructions (ByteBuffer/wrap bytes) (constantly nil)) ;=> [[:mov64 :r0 0] [:exit]]"
  [^ByteBuffer buffer substitute]
  (let [big? (= ByteOrder/BIG_ENDIAN (.order buffer))
        n (quot (.capacity buffer) 8)
        ^BitSet known (start-set buffer n)
        targets (BitSet. n)
        target (fn [slot]
                 (when (and (< -1 (long slot) n) (.get known (int slot)))
                   (.set targets (int slot))
                   (label slot)))
        insns (object-array n)]
    (loop [slot 0]
      (when (< slot n)
        (let [wide? (and (< (inc slot) n) (not (.get known (int (inc slot)))))
              fields (fields-at buffer big? slot wide? target)]
          (if-let [insn (or (substitute slot fields) (decoded fields))]
            (aset insns slot insn)
            ;; Two slots that are not a wide instruction are written by their fields.
            (do (aset insns slot (raw fields))
                (when wide?
                  (aset insns (inc slot) (raw (fields-at buffer big? (inc slot) false nil))))))
          (recur (if wide? (+ slot 2) (inc slot))))))
    (loop [slot 0 out (transient [])]
      (if (< slot n)
        (recur (inc slot)
               (if-let [insn (aget insns slot)]
                 (conj! (if (.get targets (int slot)) (conj! out (label slot)) out) insn)
                 out))
        (persistent! out)))))

;; --- data to text

(def ^:private signs
  {"add" "+=" "sub" "-=" "mul" "*=" "div" "/=" "sdiv" "s/=" "or" "|=" "and" "&=" "lsh" "<<="
   "rsh" ">>=" "mod" "%=" "smod" "s%=" "xor" "^=" "mov" "=" "arsh" "s>>=" "jeq" "==" "jgt" ">"
   "jge" ">=" "jset" "&" "jne" "!=" "jsgt" "s>" "jsge" "s>=" "jlt" "<" "jle" "<=" "jslt" "s<"
   "jsle" "s<="})

(def ^:private bits {"b" 8 "h" 16 "w" 32 "dw" 64 "8" 8 "16" 16 "32" 32 "64" 64})

(defn- plain [x]
  (if (keyword? x) (name x) (str x)))

(defn- half
  "Returns a register by its name for 32 bits; anything else as it is."
  [x]
  (if (isa/registers x) (str "w" (subs (name x) 1)) (plain x)))

(defn- address [[base offset]]
  (str (name base) (if (neg? (long offset)) " - " " + ") (abs (long offset))))

(defn- reference
  "Returns how text refers to a map or a part of an object.

  A map of a loaded program has an id, and not always a name."
  [x]
  (cond
    (and (map? x) (:id x)) (str "map " (:map x) "[" (:id x) "]")
    (and (map? x) (= 1 (count x))) (let [[kind what] (first x)]
                                     (if (#{:function :variable :section :kconfig} kind)
                                       (plain what)
                                       (str (name kind) " " (plain what))))
    :else (pr-str x)))

(defn- helper-text [x]
  (cond
    (keyword? x) (str "bpf_" (str/replace (name x) "-" "_"))
    (and (map? x) (:ksym x)) (:ksym x)
    (map? x) (reference x)
    :else (str x)))

(defn text
  "Returns an instruction as text, in the notation of LLVM and the kernel.

      (text [:ldxdw :r1 [:r10 -8]]) ;=> \"r1 = *(u64 *)(r10 - 8)\""
  [[mnemonic a b c :as insn]]
  (let [[_ op suffix] (re-matches #"(ldind|.*?)(64|32|16|8|dw|w|h|b)?" (name mnemonic))
        {:keys [operands code]} (isa/mnemonics mnemonic)
        size (bits suffix)
        narrow? (and size (< (long size) 64))
        sized (if (= "32" suffix) half plain)
        data (if narrow? half plain)
        pointer (fn [x] (str "(u" size " *)(" (address x) ")"))]
    (case operands
      [:to :source] (str (sized a) " " (signs op) " " (sized b))
      [:left :source :target] (str "if " (sized a) " " (signs op) " " (sized b) " goto " (plain c))
      [:to] (if (= "neg" op)
              (str (sized a) " = -" (sized a))
              (str (plain a) " = " (name mnemonic) " " (plain a)))
      [:to :wide] (if (integer? b)
                    (str (plain a) " = " b " ll")
                    (str (plain a) " = " (when (:function b) "&") (reference b)))
      [:to :function] (str (plain a) " = &" (plain b))
      [:to :map :map-offset] (let [variable (when (:id b) (:variable b))]
                               (str (plain a) " = &" (or variable (reference b))
                                    (when (not= 0 c) (str " + " c))
                                    (when variable (str " in " (reference b)))))
      [:to :memory-from] (if (str/starts-with? op "load-acquire")
                           (str (data a) " = load_acquire(" (pointer b) ")")
                           (let [signed? (str/starts-with? op "ldxs")]
                             (str (plain a) " = *(" (if signed? "s" "u") size " *)(" (address b)
                                  ")")))
      [:memory-to :immediate] (str "*" (pointer a) " = " b)
      [:memory-to :right]
      (case op
        "stx" (str "*" (pointer a) " = " (plain b))
        "store-release" (str "store_release(" (pointer a) ", " (data b) ")")
        "atomic-cmpxchg" (str (if narrow? "w0 = cmpxchg32_32(" "r0 = cmpxchg_64(") (address a)
                              (if narrow? ", w0, " ", r0, ") (sized b) ")")
        (str "lock *" (pointer a) " " (signs (subs op 7)) " " (sized b)))
      [:memory-to :fetched]
      (if (= "atomic-xchg" op)
        (str (sized b) " = " (if narrow? "xchg32_32(" "xchg_64(") (address a) ", " (sized b) ")")
        (str (sized b) " = " (str/replace op "-" "_") "(" (pointer a) ", " (sized b) ")"))
      [:to :right] (let [[_ width full] (re-matches #"movs([bhw])(64|32)" (name mnemonic))
                         shown (if (= "32" full) half plain)]
                     (str (shown a) " = (s" (bits width) ")" (shown b)))
      [:to :right :to-space :from-space]
      (str (plain a) " = addr_space_cast(" (plain b) ", " c ", " (nth insn 4) ")")
      [:target] (str (if (= :may-goto mnemonic) "may_goto " "goto ") (plain a))
      [:far-target] (str (if (= :gotol mnemonic) "gotol " "call ") (plain a))
      [:helper] (str "call " (helper-text a))
      [:btf-id] (str "call btf " a)
      [:left] (str (name mnemonic) " " (plain a))
      [:immediate] (str "r0 = *(u" size " *)skb[" a "]")
      [:right :immediate] (str "r0 = *(u" size " *)skb[" (plain a) (when (not= 0 b) (str " + " b))
                               "]")
      [] (name mnemonic)
      (if code (str ".insn " (pr-str a)) (pr-str insn)))))

(defn- line-text [{:keys [file line text]}]
  (str "; " (some-> text str/trim) (when file (str " @ " file ":" line))))

(defn- core-text [{:keys [kind type path enumerator]}]
  (str "  ; CO-RE " (plain kind) " " type
       (str/join (map #(if (keyword? %) (str "." (name %)) (str "[" % "]")) path))
       (when enumerator (str " " enumerator))))

(defn listing
  "Returns a function as text: source lines, labels, slots and instructions.

  `lines` are the source lines of slots: `{:slot :file :line :text}`, in order. A line that several
  records in a row are for is shown once. `core` are the CO-RE relocations, which have a slot too.

      (listing \"f\" [[:mov64 :r0 0] [:exit]] nil nil) ;=> \"f:\\n   0: r0 = 0\\n   1: exit\\n\""
  [title insns lines core]
  (let [by-slot (->> lines
                     (remove #(= 0 (:line %))) ; made by the compiler
                     (partition-by (juxt :file :line :text))
                     (map first)
                     (group-by :slot))
        relocations (into {} (map (juxt :slot identity)) core)
        out (StringBuilder.)]
    (when title
      (.append out (str title ":\n")))
    (loop [items (seq insns) slot 0]
      (when items
        (let [item (first items)]
          (if (keyword? item)
            (do (.append out (str (name item) ":\n"))
                (recur (next items) slot))
            (do (doseq [line (by-slot slot)]
                  (.append out (str (line-text line) "\n")))
                (.append out (format "%4d: %s%s\n" slot (text item)
                                     (if-let [relocation (relocations slot)]
                                       (core-text relocation)
                                       "")))
                (recur (next items)
                       (+ slot (long (:slots (isa/mnemonics (first item)) 1)))))))))
    (str out)))
