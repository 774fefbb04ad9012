(ns ^:no-doc bpfmap.impl.prog.instructions
  "Reads the instructions of a loaded program, as the kernel runs them, and its machine code.

  The verifier has changed the instructions: it inlines some lookups, resolves CO-RE relocations and
  calls, and removes dead code. What the kernel writes as numbers becomes references by name: maps
  by their ids, variables by the BTF of their maps, calls by the function records of the program,
  and calls of the kernel by the symbols of the kernel."
  (:require [bpfmap.btf :as btf]
            [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.disassembler :as disassembler]
            [bpfmap.impl.isa :as isa]
            [bpfmap.impl.kernel.btf :as kernel.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.kernel.prog :as kernel.prog]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.nio ByteBuffer ByteOrder)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

;; --- slots

(def ^:private call-code 0x85)

(def ^:private registers (mapv #(keyword (str "r" %)) (range 10)))

;; Values of the source register: BPF_PSEUDO_MAP_FD and so on in linux/bpf.h. For calls 1 is a
;; function of the program, and 2 one of the kernel that is not a helper.
(def ^:private ^:const map-source 1)
(def ^:private ^:const map-value-source 2)
(def ^:private ^:const function-source 4)
(def ^:private ^:const local-call 1)

(def ^:private ^:const tail-call
  "The number of the helper for tail calls, which the kernel does not replace."
  12)

(defn- wide? [{:keys [code]}]
  (= disassembler/wide-code code))

(defn- kernel-call?
  "Returns true for a call of a function of the kernel.

  Its immediate is a distance from the kernel's symbol `__bpf_call_base`."
  [{:keys [code src imm]}]
  (and (= call-code code) (not= local-call src) (not= tail-call imm)))

;; --- what the instructions refer to

(defn- or-nothing
  "Returns the result of f, or nil if the object has gone or must not be read."
  [f]
  (try
    (f)
    (catch ExceptionInfo e
      (when-not (#{:not-found :permission :malformed-btf} (:bpfmap/error (ex-data e)))
        (throw e)))))

(defn- btf-of
  "Returns the BTF object of an id; nil if it cannot be read."
  [id ctx]
  (or-nothing #(btf/parse (:bytes (kernel.btf/blob id ctx)))))

(defn- variables-of
  "Returns the variables in the value of a map, as `{:name :offset :size}`, or nil.

  The value of such a map is a data section, such as .bss. `read-btf` returns the BTF of an id."
  [{:keys [btf-id btf-value-type-id]} read-btf]
  (when-let [b (and btf-id btf-value-type-id (read-btf btf-id))]
    (or-nothing
     #(when (= :datasec (blob/kind b btf-value-type-id))
        (into []
              (keep (fn [{:keys [type offset size]}]
                      (when-let [name (not-empty (blob/name-of b type))]
                        {:name name :offset offset :size size})))
              (:vars (blob/record b btf-value-type-id)))))))

(defn- map-facts
  "Returns the name and the variables of a map: `{:name :variables}`."
  [id read-btf ctx]
  (or (or-nothing #(let [fd (call/open-id :map id (assoc ctx :op :open))]
                     (try
                       (let [{:keys [name] :as info} (kernel.map/info fd ctx nil)]
                         {:name name :variables (variables-of info read-btf)})
                       (finally (call/close fd)))))
      {:name ""}))

(defn- in-map
  "Returns the operands for an offset in a map: a reference, and an offset in it.

  If a variable is there, the reference has its name, and the offset counts from its start."
  [id {:keys [name variables]} offset]
  (let [offset (long offset)
        reference {:map name :id id}
        within? (fn [{start :offset :keys [size]}]
                  (< -1 (- offset (long start)) (long size)))]
    (if-let [{start :offset variable :name} (some #(when (within? %) %) variables)]
      [(assoc reference :variable variable) (- offset (long start))]
      [reference offset])))

(def ^:private helper-symbols
  "Names of helpers by the names of their functions in the kernel."
  (into {} (map (fn [k] [(str "bpf_" (str/replace (name k) "-" "_")) k])) (keys isa/helpers)))

(defn- called
  "Returns the operand of a call of the kernel."
  [{:keys [src imm]} symbols]
  (let [symbol (get symbols imm)]
    (cond
      (= 2 src) {:kfunc (or symbol "?")}
      (helper-symbols symbol) (helper-symbols symbol)
      :else {:ksym (or symbol "?")})))

(defn- substitute
  "Returns the function that gives the instructions of a function their references.

  It is passed to `disassembler/instructions`. `start` is the slot of the function."
  [{:keys [maps symbols names ordered]} start]
  (fn [slot {:keys [src imm off dst] :as fields}]
    (let [next-slot (+ (long start) (long slot) 1)
          register (get registers dst)]
      (cond
        (and (wide? fields) register (= map-source src))
        [:lddw register {:map (:name (maps imm)) :id imm}]

        (and (wide? fields) register (= map-value-source src))
        (into [:ld-map-value register]
              (in-map imm (maps imm) (bit-and 0xffffffff (long (:next fields)))))

        (and (wide? fields) register (= function-source src))
        (when-let [name (names (+ next-slot (long imm)))] [:lddw register {:function name}])

        (and (= call-code (:code fields)) (= local-call src))
        ;; The distance is in 16 bits. If it does not fit, the number of the function counts.
        (if-let [name (or (names (+ next-slot (long off))) (get ordered imm))]
          [:call {:function name}]
          (when-let [label ((:target fields) (+ (long slot) 1 (long off)))]
            [:call-local label]))

        (kernel-call? fields) [:call (called fields symbols)]))))

;; --- functions

(defn- with-ends
  "Returns the functions with the slots behind their ends."
  [functions end]
  (map (fn [function following] (assoc function :end (:slot following end)))
       functions (concat (rest functions) [nil])))

(defn- distinct-name
  "Returns the name of a function, with its slot behind it if it is taken."
  [taken name slot]
  (if (taken name) (str name "#" slot) name))

(defn- named
  "Returns the functions with their names from the BTF.

  The main one is named `main` if the BTF has no name for it."
  [functions b main]
  (reduce (fn [found {:keys [slot type-id] :as function}]
            (let [name (or (when b (not-empty (blob/name-of b type-id)))
                           (if (= 0 slot) main (str "L" slot)))]
              (conj found (assoc function
                                 :name (distinct-name (set (map :name found)) name slot)))))
          [] functions))

(defn- lines-of
  "Returns the source lines of the slots of a function."
  [lines b {:keys [slot end]}]
  (when b
    (into []
          (comp (filter #(<= (long slot) (long (:slot %)) (dec (long end))))
                (map (fn [line]
                       {:slot (- (long (:slot line)) (long slot))
                        :file (blob/string b (:file line)) :line (:line line)
                        :column (:column line) :text (blob/string b (:text line))})))
          lines)))

(defn- slices
  "Returns the functions of a program with the slots where they end, in order.

  A program without function records is one function."
  [{:keys [functions]} n]
  (let [functions (if (= 0 (:slot (first functions))) functions [{:slot 0}])]
    (with-ends (take-while #(< (long (:slot %)) (long n)) functions) n)))

(defn- check-readable [^bytes insns ctx]
  (when (zero? (alength insns))
    (throw (error/error :permission "The kernel hides the instructions of the program"
                        {:bpfmap/op (:op ctx)
                         :bpfmap/hint (str "reading them requires CAP_BPF, and CAP_SYSLOG if "
                                           "constants are blinded (net.core.bpf_jit_harden)")}))))

(defn instructions
  "Returns the instructions of an open program, see `bpfmap.prog/instructions`."
  [fd ctx]
  (let [{:keys [^bytes insns lines] :as found} (kernel.prog/instructions fd ctx)
        _ (check-readable insns ctx)
        {:keys [name type btf-id]} (kernel.prog/brief-info fd ctx)
        read-btf (memoize #(btf-of % ctx))
        buffer (.order (ByteBuffer/wrap insns) (ByteOrder/nativeOrder))
        {:keys [starts slots]} (disassembler/starts buffer)
        b (when btf-id (read-btf btf-id))
        functions (named (slices found (count slots)) b name)
        at-starts (map slots starts)
        distances (into #{} (comp (filter kernel-call?) (map :imm)) at-starts)
        ids (into #{} (comp (filter #(and (wide? %) (#{map-source map-value-source} (:src %))))
                            (map :imm))
                  at-starts)
        context {:maps (into {} (map (fn [id] [id (map-facts id read-btf ctx)])) ids)
                 :symbols (when (seq distances)
                            (procfs/kernel-symbols "__bpf_call_base" distances))
                 :names (into {} (map (juxt :slot :name)) functions)
                 :ordered (mapv :name functions)}
        read-function
        (fn [{:keys [slot end name] :as function}]
          (let [lines (lines-of lines b function)]
            (cond-> {:name name
                     :insns (disassembler/instructions
                             (-> buffer
                                 (.slice (int (* 8 (long slot)))
                                         (int (* 8 (- (long end) (long slot)))))
                                 (.order (ByteOrder/nativeOrder)))
                             (substitute context slot))}
              (seq lines) (assoc :lines lines))))
        [main & others] (map read-function functions)]
    (cond-> (assoc main :type type)
      (seq others) (assoc :functions (into (array-map) (map (juxt :name identity)) others)))))

;; --- machine code

(defn- check-code [{:keys [^bytes code size]} ctx]
  (when (zero? (alength code))
    (throw
     (if (zero? (long size))
       (error/error :not-found "The program has no machine code that this process can read"
                    {:bpfmap/op (:op ctx)
                     :bpfmap/hint (str "the kernel interprets programs if its JIT compiler is off "
                                       "(net.core.bpf_jit_enable); reading machine code requires "
                                       "CAP_BPF")})
       (error/error :permission "The kernel hides the machine code of the program"
                    {:bpfmap/op (:op ctx)
                     :bpfmap/hint (str "reading it requires CAP_SYSLOG, and fails if addresses of "
                                       "the kernel are hidden (kernel.kptr_restrict) or constants "
                                       "are blinded (net.core.bpf_jit_harden)")})))))

(defn- code-lines
  "Returns the source lines of a function by the offset of their code.

  `from` is the address of the function, and `size` the number of its bytes."
  [{:keys [lines line-addresses]} b from size]
  (when b
    (into []
          (keep (fn [[{:keys [file text line column]} address]]
                  (let [offset (- (long address) (long from))]
                    (when (< -1 offset (long size))
                      {:offset offset :file (blob/string b file) :line line :column column
                       :text (blob/string b text)}))))
          (map vector lines line-addresses))))

(defn machine-code
  "Returns the machine code of an open program, see `bpfmap.prog/machine-code`."
  [fd ctx]
  (let [found (kernel.prog/machine-code fd ctx)
        {:keys [^bytes code addresses lengths functions]} found
        _ (check-code found ctx)
        {:keys [name type btf-id]} (kernel.prog/brief-info fd ctx)
        b (when btf-id (btf-of btf-id ctx))
        lengths (or lengths [(alength code)])
        n (count lengths)
        ;; A program whose functions have no records: these are numbered.
        records (if (= n (count functions))
                  functions
                  (map (fn [i] {:slot i :type-id 0}) (range n)))
        [main & others]
        (map (fn [{:keys [name]} at size address]
               (let [lines (when address (code-lines found b address size))]
                 (cond-> {:name name
                          :code (bytes/wrap (Arrays/copyOfRange code (int at)
                                                                (int (+ (long at) (long size)))))}
                   address (assoc :address (if (neg? (long address))
                                             (+ 18446744073709551616N address)
                                             address))
                   (seq lines) (assoc :lines lines))))
             (named records (when (= records functions) b) name)
             (reductions + 0 lengths) lengths (concat addresses (repeat nil)))]
    (cond-> (assoc main :type type)
      (seq others) (assoc :functions (into (array-map) (map (juxt :name identity)) others)))))
