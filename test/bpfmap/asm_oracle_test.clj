(ns bpfmap.asm-oracle-test
  "The assembler against LLVM, and its helpers against the kernel's header."
  (:require [bpfmap.asm :as asm]
            [bpfmap.assembled :refer [alone big hex instruction-of little]]
            [bpfmap.fixture :as fixture]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]]
            [clojure.test.check.generators :as gen])
  (:import (java.io ByteArrayOutputStream File)
           (java.nio ByteBuffer ByteOrder)
           (java.nio.file Files)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

(defn- run
  "Runs a command with text as its input; nil for an unknown command."
  [command ^String input]
  (try
    (let [process (-> (ProcessBuilder. ^java.util.List command) .start)
          err (future (slurp (.getErrorStream process)))]
      (future (with-open [out (.getOutputStream process)] (.write out (.getBytes input "UTF-8"))))
      (let [out (ByteArrayOutputStream.)]
        (io/copy (.getInputStream process) out)
        {:exit (.waitFor process) :err @err :out (.toString out "UTF-8")}))
    (catch java.io.IOException _ nil)))

(defn- text-section
  "The bytes of section .text of a 64-bit ELF file."
  [^bytes elf]
  (let [buffer (doto (ByteBuffer/wrap elf)
                 (.order (if (= 1 (aget elf 5)) ByteOrder/LITTLE_ENDIAN ByteOrder/BIG_ENDIAN)))
        section (fn [i] (+ (.getLong buffer 0x28) (* i (.getShort buffer 0x3a))))
        offset (fn [at] (.getLong buffer (int (+ at 0x18))))
        size (fn [at] (.getLong buffer (int (+ at 0x20))))
        names (offset (section (.getShort buffer 0x3e)))
        named? (fn [at] (let [start (int (+ names (.getInt buffer (int at))))]
                          (= ".text"
                             (String. elf start (min 5 (- (alength elf) start)) "US-ASCII"))))
        at (first (filter named? (map section (range (.getShort buffer 0x3c)))))]
    (Arrays/copyOfRange elf (int (offset at)) (int (+ (offset at) (size at))))))

(defn- llvm-assemble
  "What LLVM makes of lines of its BPF assembly: `{:bytes b}`, `{:bad-lines #{index}}`, or nil
  without LLVM."
  [target lines]
  (let [object (File/createTempFile "bpfmap" ".o")
        path (.getPath object)]
    (try
      (when-let [{:keys [exit err]}
                 (some #(run % (str/join "\n" (concat lines [""])))
                       (concat
                        ;; Debian installs several side by side, under names with their number:
                        ;; the newest reads most.
                        (for [mc (conj (mapv #(str "llvm-mc-" %) (range 25 14 -1)) "llvm-mc")]
                          [mc (str "-triple=" target) "-mcpu=v4" "-filetype=obj" "-" "-o" path])
                        [["clang" (str "--target=" target) "-mcpu=v4" "-c" "-x" "assembler" "-" "-o"
                          path]]))]
        (if (zero? exit)
          {:bytes (text-section (Files/readAllBytes (.toPath object)))}
          {:bad-lines (into #{} (map #(dec (parse-long (second %))))
                            (re-seq #":(\d+):\d+: error:" err))
           :err err}))
      (finally (.delete object)))))

(def ^:private signs
  {"sdiv" "s/=" "smod" "s%=" "add" "+=" "sub" "-=" "mul" "*=" "div" "/=" "or" "|=" "and" "&=" "lsh" "<<=" "rsh" ">>="
   "mod" "%=" "xor" "^="
   "mov" "=" "arsh" "s>>=" "jeq" "==" "jgt" ">" "jge" ">=" "jset" "&" "jne" "!=" "jsgt" "s>"
   "jsge" "s>=" "jlt" "<"
   "jle" "<=" "jslt" "s<" "jsle" "s<="})

(defn- llvm-text
  "An instruction in LLVM's notation, or nil when it has none, as for maps."
  [[mnemonic a b c d]]
  (let [[_ op suffix] (re-matches #"(ldind|.*?)(64|32|16|8|dw|w|h|b)?" (name mnemonic))
        plain #(if (keyword? %) (name %) (str %))
        sized (fn [x] (cond-> (plain x) (and (= "32" suffix) (keyword? x)) (str/replace "r" "w")))
        at (fn [[base offset]] (str (name base) " " (if (neg? offset) "-" "+") " " (abs offset)))
        bits (get {"b" 8 "h" 16 "w" 32 "dw" 64 "8" 8 "16" 16 "32" 32 "64" 64} suffix)
        narrow #(if (= 64 bits) (plain %) (str/replace (plain %) "r" "w"))
        pointer #(str "(u" bits " *)(" (at %) ")")
        wide? (= "64" suffix)]
    (case (get-in asm/mnemonics [mnemonic :operands])
      [:to :source] (str (sized a) " " (signs op) " " (sized b))
      [:to] (if (= "neg" op)
              (str (sized a) " = -" (sized a))
              (str (plain a) " = " (name mnemonic) " " (plain a)))
      [:to :wide] (str (plain a) " = " b " ll")
      [:to :memory-from] (case op
                           "load-acquire" (str (narrow a) " = load_acquire(" (pointer b) ")")
                           "ldxs" (str (plain a) " = *(s" bits " *)(" (at b) ")")
                           (str (plain a) " = *" (pointer b)))
      [:memory-to :right] (case op
                            "stx" (str "*" (pointer a) " = " (plain b))
                            "store-release" (str "store_release(" (pointer a) ", " (narrow b) ")")
                            "atomic-cmpxchg" (str (if wide? "r0 = cmpxchg_64(" "w0 = cmpxchg32_32(")
                                                  (at a)
                                                  (if wide? ", r0, " ", w0, ") (sized b) ")")
                            (str "lock *" (pointer a) " " (signs (subs op 7)) " " (sized b)))
      [:memory-to :fetched] (if (= "atomic-xchg" op)
                              (str (sized b) " = " (if wide? "xchg_64(" "xchg32_32(") (at a) ", "
                                   (sized b) ")")
                              (str (sized b) " = " (str/replace op "-" "_") "(" (pointer a) ", "
                                   (sized b) ")"))
      [:memory-to :immediate] (str "*" (pointer a) " = " b)
      [:left :source :target] (str "if " (sized a) " " (signs op) " " (sized b) " goto "
                                   (format "%+d" c))
      [:target] (str (if (= :may-goto mnemonic) "may_goto " "goto ") (format "%+d" a))
      [:far-target] (when (= :gotol mnemonic) (str "gotol " (format "%+d" a)))
      [:left] (str (name mnemonic) " " (plain a))
      [:immediate] (str "r0 = *(u" bits " *)skb[" a "]")
      ;; LLVM has no text for an offset.
      [:right :immediate] (when (zero? b) (str "r0 = *(u" bits " *)skb[" (plain a) "]"))
      [:to :right :to-space :from-space] (str (plain a) " = addr_space_cast(" (plain b) ", " c
                                              ", " d ")")
      [:to :right] (let [[_ width full] (re-matches #"movs([bhw])(64|32)" (name mnemonic))
                         register #(if (= "32" full) (str/replace (plain %) "r" "w") (plain %))]
                     (str (register a) " = (s" ({"b" 8 "h" 16 "w" 32} width) ")" (register b)))
      [:helper] (str "call " (asm/helpers a a))
      [] "exit"
      nil)))

(def ^:private newer-notation
  "What LLVM 14 cannot read as text. LLVM 19 reads everything."
  (re-pattern (str "st(b|h|w|dw)|s?mod.*|jset.*|atomic-(fetch|xchg|cmpxchg).*"
                   "|sdiv.*|movs.*|ldxs.|bswap.*|gotol|may-goto|callx|addr-space-cast")))

(def ^:private newest
  "What LLVM 19 cannot read. `asm-test` has its bytes by hand."
  #"load-acquire.*|store-release.*|gotox")

(deftest same-bytes-as-llvm
  (testing "assembles to the same bytes as llvm-mc"
    (doseq [[target options] {"bpfel" little "bpfeb" big}
            :let [insns (for [mnemonic (sort (keys asm/mnemonics))
                              seed (range 30)
                              :let [insn (gen/generate (instruction-of mnemonic) 30 seed)]
                              :when (and (not (re-matches newest (name mnemonic)))
                                         (llvm-text insn))]
                          insn)
                  first-try (llvm-assemble target (map llvm-text insns))
                  unread (map (vec insns) (sort (:bad-lines first-try)))
                  insns (remove (set unread) insns)
                  theirs (when first-try (llvm-assemble target (map llvm-text insns)))]]
      (cond
        (nil? first-try)
        (fixture/skip! (str "no clang or llvm-mc to compare with, " target))
        (= #{} (:bad-lines first-try))
        (fixture/skip! (str "the LLVM here does not work for " target ": "
                            (first (str/split-lines (:err first-try)))))
        (nil? (:bytes theirs))
        (is (= "assembled" (:err theirs)))
        :else
        (let [buffer (ByteBuffer/wrap (:bytes theirs))]
          (when (seq unread)
            (fixture/skip! (str "the LLVM here is too old to read "
                                (count (distinct (map first unread)))
                                " of the mnemonics, target " target)))
          (is (= [] (remove #(re-matches newer-notation (name (first %))) unread)))
          (doseq [insn insns
                  :let [mine (alone insn options)
                        their (byte-array (alength mine))]]
            (.get buffer their)
            (is (= (hex their) (hex mine)) (str insn " is " (llvm-text insn))))
          (is (zero? (.remaining buffer))))))))

(deftest helper-numbers
  (testing "helpers have the numbers of the kernel header"
    (is (= 211 (count asm/helpers) (apply max (vals asm/helpers))))
    (is (= [1 2 3 181 211]
           (map asm/helpers [:map-lookup-elem :map-update-elem :map-delete-elem :loop
                             :cgrp-storage-delete])))
    (let [{:keys [exit out]} (some #(run [% "-E" "-P" "-"] "#include <linux/bpf.h>\n")
                                   ["cc" "clang"])
          [_ body] (when (= 0 exit) (re-find #"(?s)enum\s+bpf_func_id\s*\{(.*?)\}" out))]
      (if-not body
        (fixture/skip! "no C preprocessor with <linux/bpf.h> to compare the helpers with")
        (doseq [[i [_ helper number]] (map-indexed vector
                                                   (re-seq #"\bBPF_FUNC_(\w+)(?:\s*=\s*(\d+))?"
                                                           body))
                :when (not (#{"unspec"} helper))]
          (is (= (if number (parse-long number) i)
                 (asm/helpers (keyword (str/replace helper "_" "-")))) helper))))))
