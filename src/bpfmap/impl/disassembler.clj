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

(defn- empty-slot? [{:keys [code dst src off]}]
  (= 0 code dst src off))

(defn starts
  "Returns the slots at which instructions start, and the fields of all slots.

      (starts buffer) ;=> {:starts [0 1 3] :slots [{:code 0xb7 …} …]}"
  [^ByteBuffer buffer]
  (let [n (quot (.capacity buffer) 8)
        slots (mapv #(slot buffer %) (range n))]
    (loop [i 0 starts (transient [])]
      (if (< i n)
        (recur (if (and (= wide-code (:code (slots i)))
                        (< (inc i) n)
                        (empty-slot? (slots (inc i))))
                 (+ i 2)
                 (inc i))
               (conj! starts i))
        {:starts (persistent! starts) :slots slots}))))

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

(def ^:private candidates
  "The rows that each opcode may mean.

  A row is `{:mnemonic :operands :constants :immediate}`."
  (let [variants (for [[mnemonic {:keys [code operands] :as row}]
                       (dissoc isa/mnemonics :insn :ld-map-value)
                       [code source] (if (some #{:source} operands)
                                       [[code :immediate] [(bit-or 0x08 (long code)) :register]]
                                       [[code nil]])
                       :let [operands (mapv #(if (= :source %) source %) operands)]]
                   [code {:mnemonic mnemonic
                          :operands operands
                          :immediate (:immediate row)
                          :constants (vec (apply dissoc
                                                 (merge {:dst 0 :src 0 :off 0 :imm 0}
                                                        (select-keys row [:src :off :imm]))
                                                 (mapcat fields-of operands)))}])]
    (update-vals (group-by first variants) #(mapv second %))))

(defn- in-range? [range x]
  (let [[low high] (isa/ranges range)]
    (<= (long low) (long x) (long high))))

(defn- wide-number [{:keys [imm next]}]
  (bit-or (bit-and 0xffffffff (long imm)) (bit-shift-left (long next) 32)))

(defn- operand
  "Returns an operand of a kind, or nil if the assembler rejects these fields."
  [kind {:keys [dst src off imm slot target] :as fields} {:keys [immediate]}]
  (case kind
    :to (when (< (long dst) 10) (register-names dst))
    :left (register-names dst)
    (:right :register) (register-names src)
    :fetched (when (< (long src) 10) (register-names src))
    :immediate (when (in-range? immediate imm) imm)
    :memory-from (when-let [base (register-names src)] [base off])
    :memory-to (when-let [base (register-names dst)] [base off])
    :target (target (+ (long slot) 1 (long off)))
    :far-target (target (+ (long slot) 1 (long imm)))
    :helper (when (<= 0 (long imm)) (helper-names imm imm))
    :btf-id (when (<= 0 (long imm)) imm)
    :wide (when (:next fields) (wide-number fields))
    ;; BPF_PSEUDO_FUNC; the program itself is not a function.
    :function (let [start (+ (long slot) 1 (long imm))]
                (when (and (= 4 src) (= 0 (:next fields)) (pos? start))
                  (target start)))
    :to-space (bit-and 0xffff (bit-shift-right (long imm) 16))
    :from-space (bit-and 0xffff (long imm))))

(defn- as-row
  "Returns the fields as an instruction of a row, or nil if they are not one."
  [fields {:keys [mnemonic operands constants] :as row}]
  (when (reduce (fn [_ [field x]] (if (= (long x) (long (fields field))) true (reduced false)))
                true constants)
    (reduce (fn [insn kind]
              (if-some [x (operand kind fields row)]
                (conj insn x)
                (reduced nil)))
            [mnemonic] operands)))

(defn raw
  "Returns a slot as an `:insn`, with its fields that are not zero.

      (raw {:code 0x18 :dst 1 :src 3 :off 0 :imm 7}) ;=> [:insn {:code 24 :dst 1 :src 3 :imm 7}]"
  [fields]
  [:insn (into {}
               (filter (fn [[_ x]] (not= 0 x)))
               (select-keys fields [:code :dst :src :off :imm]))])

(defn- decoded
  "Returns the instruction of the fields of a slot, or nil if they are not one."
  [fields]
  (some #(as-row fields %) (candidates (:code fields))))

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
  (let [{:keys [starts slots]} (starts buffer)
        n (count slots)
        known (doto (BitSet. n) (as-> known (run! #(.set ^BitSet known (int %)) starts)))
        targets (BitSet. n)
        target (fn [slot]
                 (when (and (< -1 (long slot) n) (.get ^BitSet known (int slot)))
                   (.set targets (int slot))
                   (label slot)))
        ;; Two slots that are not a wide instruction are written by their fields.
        of-slot (fn [out slot end]
                  (let [wide? (= 2 (- (long end) (long slot)))
                        fields (assoc (nth slots slot) :slot slot :target target)
                        following (when wide? (nth slots (inc (long slot))))
                        fields (if wide? (assoc fields :next (:imm following)) fields)]
                    (if-let [insn (or (substitute slot fields) (decoded fields))]
                      (conj! out [slot insn])
                      (cond-> (conj! out [slot (raw fields)])
                        wide? (conj! [nil (raw following)])))))
        insns (loop [i 0 out (transient [])]
                (if (< i (count starts))
                  (recur (inc i) (of-slot out (nth starts i) (nth starts (inc i) n)))
                  (persistent! out)))]
    (persistent!
     (reduce (fn [out [slot insn]]
               (conj! (if (and slot (.get targets (int slot))) (conj! out (label slot)) out) insn))
             (transient []) insns))))

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
    (and (map? x) (= #{:map :id} (set (keys x)))) (str "map " (:map x) "[" (:id x) "]")
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
      [:to :map :map-offset] (str (plain a) " = &" (reference b)
                                      (when (not= 0 c) (str " + " c)))
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
