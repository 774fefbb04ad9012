(ns ^:no-doc bpfmap.impl.elf.usdt
  "Reads the USDT probes of programs and shared libraries, and the places of their arguments.

  A probe is a note in the section .note.stapsdt: the address of an instruction, the names of a
  provider and of the probe, and a text with the operands that hold its arguments, such as
  `-4@%edi 8@-16(%rbp)`. A semaphore is a counter in the data of the file: the program evaluates the
  arguments only while it is positive, and the kernel increments it while the probe is in use.

  An object that includes libbpf's usdt.bpf.h reads the arguments by descriptions in the map
  `__bpf_usdt_specs`, whose values [[description]] encodes.

  Sources: the layout of notes: SystemTap's sys/sdt.h; of descriptions: libbpf's usdt.bpf.h; of
  registers: struct pt_regs in asm/ptrace.h of each processor."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.elf.symbols :as symbols]
            [clojure.string :as str])
  (:import (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

;; --- probes

(def ^:private note-type "NT_STAPSDT." 3)

(defn- u32 ^long [^ByteBuffer b ^long at] (bit-and 0xffffffff (.getInt b (int at))))

(defn- padded ^long [^long n] (bit-and (+ n 3) -4))

(defn- notes
  "Returns the places of the probes in a section of notes, as `[start end]`."
  [^ByteBuffer b]
  (let [size (.capacity b)]
    (loop [at 0 found []]
      (if (< size (+ at 12))
        found
        (let [name-size (u32 b at)
              start (+ at 12 (padded name-size))
              end (+ start (u32 b (+ at 4)))]
          (if (< size end)
            found
            (recur (+ start (padded (- end start)))
                   (cond-> found
                     (and (= note-type (u32 b (+ at 8)))
                          (= 8 name-size)
                          (= "stapsdt" (symbols/text-at (.array b) (+ at 12))))
                     (conj [start end])))))))))

(defn- texts
  "Returns the three texts between two places; nil if there are fewer."
  [^ByteBuffer b start end]
  (loop [at (long start) found []]
    (if (= 3 (count found))
      found
      (let [nul (loop [i at]
                  (cond
                    (<= (long end) i) nil
                    (zero? (.get b (int i))) i
                    :else (recur (inc i))))]
        (when nul
          (recur (inc (long nul)) (conj found (symbols/text-at (.array b) at))))))))

(defn- probe
  "Returns the probe of a note; nil if it is malformed.

  All addresses are moved by as much as the section .stapsdt.base was since the note was written."
  [elf ^ByteBuffer b base [start end]]
  (let [start (long start)
        [provider name arguments] (when (<= (+ start 24) (long end)) (texts b (+ start 24) end))]
    (when arguments
      (let [written (.getLong b (int (+ start 8)))
            moved (if (or (nil? base) (zero? written)) 0 (unchecked-subtract (long base) written))
            at #(let [n (.getLong b (int (+ start (long %))))]
                  (when-not (zero? n) (unchecked-add n moved)))
            address (or (at 0) 0)
            semaphore (at 16)]
        (cond-> {:provider provider
                 :name name
                 :arguments arguments
                 :address address
                 :offset (symbols/address->offset elf address)}
          semaphore (assoc :semaphore-address semaphore
                           :semaphore (symbols/address->offset elf semaphore)))))))

(defn probes
  "Returns the places of all USDT probes of a file, in the order of the file.

  `elf` is a result of `bpfmap.impl.elf.symbols/open`. A probe that the compiler has copied has
  several places. `:offset` and `:semaphore` are offsets in the file, nil if they lie outside of it;
  a probe without a semaphore has no `:semaphore`.

      (probes elf)
      ;=> [{:provider \"libc\" :name \"setjmp\" :arguments \"8@%rdi -4@%esi 8@%rax\"
      ;     :address 0x3c9f0 :offset 0x3c9f0}]"
  [elf]
  (let [base (:address (first (symbols/sections-named elf ".stapsdt.base")))]
    (into []
          (mapcat (fn [section]
                    (let [b (symbols/contents elf section)]
                      (keep #(probe elf b base %) (notes b)))))
          (symbols/sections-named elf ".note.stapsdt"))))

;; --- registers

(defn- numbered
  "Returns registers with numbers to their offsets."
  [names numbers first-offset]
  (into {} (for [i (range (count numbers)), text names]
             [(format text (nth numbers i)) (+ (long first-offset) (* 8 (long i)))])))

(def ^:private x86-64
  "Registers of x86-64 to their offsets in struct pt_regs.

  The second byte of a register, such as that of %ah, follows the first one."
  (let [wide {"bp" 32 "bx" 40 "ax" 80 "cx" 88 "dx" 96 "si" 104 "di" 112 "ip" 128 "sp" 152}
        high (select-keys wide ["ax" "bx" "cx" "dx"])]
    (merge (into {} (for [[r offset] wide, prefix ["r" "e" ""]] [(str prefix r) offset]))
           (into {} (for [[r offset] high] [(str (first r) "l") offset]))
           (into {} (for [[r offset] high] [(str (first r) "h") (inc (long offset))]))
           (into {} (for [r ["si" "di" "bp" "sp"]] [(str r "l") (wide r)]))
           (into {} (for [i (range 8 16), suffix ["" "d" "w" "b"]]
                      ;; r15 is the first field.
                      [(str "r" i suffix) (if (< i 12) (* 8 (- 17 i)) (* 8 (- 15 i)))])))))

(def ^:private arm64
  "Registers of arm64 to their offsets in struct user_pt_regs."
  (merge (numbered ["x%d" "w%d"] (range 31) 0) {"fp" 232 "lr" 240 "sp" 248 "wsp" 248}))

(def ^:private riscv64
  "Registers of riscv64 to their offsets in struct user_regs_struct."
  (merge {"pc" 0 "ra" 8 "sp" 16 "gp" 24 "tp" 32 "t0" 40 "t1" 48 "t2" 56 "s0" 64 "fp" 64 "s1" 72}
         (numbered ["a%d"] (range 8) 80)
         (numbered ["s%d"] (range 2 12) 144)
         (numbered ["t%d"] (range 3 7) 224)))

;; --- arguments

(defn- number
  "Returns the number of a text, decimal or hexadecimal; nil if it is not one."
  [text]
  (try (.longValue (BigInteger. ^String (str/replace text #"(?i)^(-?)0x" "$1")
                                (int (if (re-find #"(?i)^-?0x" text) 16 10))))
       (catch NumberFormatException _ nil)))

(def ^:private number-pattern "-?(?:0[xX][0-9a-fA-F]+|[0-9]+)")

(defn- constant [text] {:kind :constant :value (number text)})

(defn- memory
  "Returns the place of an argument in memory, or nil.

  An index without a base becomes the base, if its scale allows it."
  [offset base index scale]
  (let [scale (parse-long (or scale "1"))
        offset (if offset (number offset) 0)]
    (cond
      (and base index) {:kind :memory :register base :offset offset :index index :scale scale}
      base {:kind :memory :register base :offset offset}
      (and index (= 1 scale)) {:kind :memory :register index :offset offset})))

(defn- x86-operand [text]
  (let [n number-pattern]
    (if-let [[_ value] (re-matches (re-pattern (str "\\$(" n ")")) text)]
      (constant value)
      (if-let [[_ register] (re-matches #"%(\w+)" text)]
        {:kind :register :register register}
        (when-let [[_ offset base index scale]
                   (re-matches (re-pattern (str "(" n ")?\\((?:%(\\w+))?(?:,%(\\w+)(?:,([1248]))?)?\\)"))
                               text)]
          (memory offset base index scale))))))

(defn- arm64-operand [text]
  (let [n number-pattern]
    (if-let [[_ value] (re-matches (re-pattern (str "#?(" n ")")) text)]
      (constant value)
      (if-let [[_ base offset] (re-matches (re-pattern (str "\\[\\s*(\\w+)\\s*(?:,\\s*#?(" n ")\\s*)?\\]"))
                                           text)]
        (memory offset base nil nil)
        (when (re-matches #"\w+" text)
          (if (#{"xzr" "wzr"} text) (constant "0") {:kind :register :register text}))))))

(defn- riscv-operand [text]
  (let [n number-pattern]
    (if-let [[_ value] (re-matches (re-pattern (str "(" n ")")) text)]
      (constant value)
      (if-let [[_ offset base] (re-matches (re-pattern (str "(" n ")?\\((\\w+)\\)")) text)]
        (memory offset base nil nil)
        (when (re-matches #"\w+" text)
          (if (= "zero" text) (constant "0") {:kind :register :register text}))))))

(def ^:private machines
  "Processors by their numbers in ELF files: registers, and the reader of operands."
  {62 [x86-64 x86-operand]
   183 [arm64 arm64-operand]
   243 [riscv64 riscv-operand]})

(defn- refusal ^Throwable [text reason]
  (error/error :not-supported (str "The argument " (error/printed text) " of the probe " reason)
               {:bpfmap/op :attach}))

(defn- argument
  "Returns an argument as data, with the offsets of its registers."
  [[registers operand] text]
  (let [[_ sign size float place] (re-matches #"(?s)(-?)([1248])(f?)@(.*)" text)
        found (when (and place (= "" float)) (operand place))
        offset #(or (registers %) (throw (refusal text (str "is in the register " % ", which programs "
                                                            "cannot read"))))]
    (cond
      (= "f" float) (throw (refusal text "is a floating-point number, which programs cannot read"))
      (nil? found) (throw (refusal text "has a form that is not supported"))
      :else (cond-> (assoc found :size (parse-long size) :signed (= "-" sign))
              (:register found) (update :register offset)
              (:index found) (update :index offset)))))

(def most-arguments "Arguments of a probe that programs can read: BPF_USDT_MAX_ARG_CNT." 12)

(defn arguments
  "Returns the arguments of a probe as data.

  `machine` is the number of the processor in ELF files.

  | key         | meaning                                                              |
  |-------------|----------------------------------------------------------------------|
  | `:kind`     | `:constant`, `:register`, or `:memory`: what registers and an offset point to |
  | `:size`     | 1, 2, 4 or 8 bytes                                                   |
  | `:signed`   | true if the program sees it with its sign                            |
  | `:value`    | of a constant                                                        |
  | `:register` | the offset of the register in the registers that a program sees      |
  | `:offset` `:index` `:scale` | the rest of the address in memory                    |

  Throws `:not-supported` for what programs cannot read.

      (arguments 62 \"-4@%edi\") ;=> [{:kind :register :size 4 :signed true :register 112}]"
  [machine text]
  (let [row (or (machines machine)
                (throw (refusal text (str "belongs to an unknown processor, number " machine
                                          " in ELF files"))))
        found (re-seq #"[^\s@]+@(?:\[[^\]]*\]|\S+)|\S+" text)]
    (when (< (long most-arguments) (count found))
      (throw (error/error :not-supported (str "The probe has " (count found) " arguments")
                          {:bpfmap/op :attach
                           :bpfmap/hint (str "usdt.bpf.h of libbpf reads at most "
                                             most-arguments)})))
    (mapv (fn [text] (argument row text)) found)))

;; --- descriptions for programs

(def ^:private kinds
  "Kinds of arguments: `enum __bpf_usdt_arg_type`.
  The last one came with libbpf 1.7."
  {:constant 0 :register 1 :memory 2 :memory-with-index 3})

(defn- put-number!
  "Writes a number to a field, given as its place in a struct at an offset."
  [^ByteBuffer b at {:keys [offset size bit-offset bits]} n]
  (if bits
    (let [place (int (+ (long at) (quot (long bit-offset) 8)))
          shift (rem (long bit-offset) 8)]
      ;; A bit field may share its bytes.
      (dotimes [i (quot (+ shift (long bits) 7) 8)]
        (.put b (+ place i)
              (unchecked-byte (bit-or (.get b (+ place i))
                                      (bit-shift-right (bit-shift-left (long n) shift)
                                                       (* 8 i)))))))
    (let [place (int (+ (long at) (long offset)))]
      (case (long size)
        1 (.put b place (unchecked-byte n))
        2 (.putShort b place (unchecked-short n))
        4 (.putInt b place (unchecked-int n))
        8 (.putLong b place (long n))))))

(defn- argument-fields [{:keys [kind size signed value register offset index scale]}]
  (cond-> {:val_off (or value offset 0)
           :arg_type (kinds (if index :memory-with-index kind))
           :reg_off (or register 0)
           :arg_signed (if signed 1 0)
           :arg_bitshift (- 64 (* 8 (long size)))}
    index (assoc :idx_reg_off index
                 :scale_bitshift (Long/numberOfTrailingZeros (long scale)))))

(defn description
  "Returns the bytes of struct __bpf_usdt_spec for the arguments of a probe.

  `layout` has the size of the struct as `:size`, and its fields in the form of
  `bpfmap.type/offsets` as `:offsets`: they differ between versions of libbpf. `cookie` is the number
  that bpf_usdt_cookie returns. Throws `:not-supported` for an argument with an index register if
  the struct has no field for it, and `:incompatible` for another struct."
  ^bytes [{:keys [size offsets]} arguments cookie]
  (let [b (.order (ByteBuffer/allocate (int size)) (ByteOrder/nativeOrder))
        each (quot (long (get-in offsets [[:args] :size] 0)) (long most-arguments))
        place (fn [path]
                (let [{:keys [offset size bit-offset bits] :as found} (get offsets path)
                      end (if bits
                            (quot (+ (long bit-offset) (long bits) 7) 8)
                            (+ (long (or offset 0)) (long (or size 0))))]
                  (when-not (and found (<= end (.capacity b)) (or bits (#{1 2 4 8} size)))
                    (throw (error/error :incompatible
                                        (str "The descriptions of probes must have the field "
                                             (name (peek path)))
                                        {:bpfmap/op :attach
                                         :bpfmap/hint "include usdt.bpf.h of libbpf as it is"})))
                  found))]
    (when (and (some :index arguments) (not (get offsets [:args 0 :idx_reg_off])))
      (throw (error/error :not-supported "An argument of the probe is addressed with an index register"
                          {:bpfmap/op :attach
                           :bpfmap/hint (str "compile the object with usdt.bpf.h of libbpf 1.7 or "
                                             "newer")})))
    (doseq [[i argument] (map-indexed vector arguments)
            [field n] (argument-fields argument)]
      (put-number! b (* each (long i)) (place [:args 0 field]) n))
    (put-number! b 0 (place [:usdt_cookie]) (unchecked-long cookie))
    (put-number! b 0 (place [:arg_cnt]) (count arguments))
    (.array b)))
