(ns bpfmap.probed
  "Makes a program for x86-64 with USDT probes, without a compiler.

  It fills registers and memory with known numbers, passes each probe once, and ends with status 0."
  (:require [bpfmap.elf-file :refer [joined packed text words]]
            [bpfmap.linux :as linux]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (java.io File)
           (java.nio ByteBuffer ByteOrder)
           (java.nio.file Files OpenOption)
           (java.util Arrays Random)))

(set! *warn-on-reflection* true)

;; --- the state of the program when it passes the probes

(def ^:private registers
  "Registers by their numbers in instructions."
  ["ax" "cx" "dx" "bx" "sp" "bp" "si" "di" "8" "9" "10" "11" "12" "13" "14" "15"])

(def base "The address of the code." 0x400000)
(def ^:private data-offset "The place of the data in the file." 0x1000)
(def ^:private data "The address of the data." 0x411000)
(def ^:private frame "Where %rbp points: the middle of the data." (+ (long data) 0x800))
(def ^:private semaphores "Offset of the first semaphore in the data." 0xf00)

(def ^:private memory
  "The data: known bytes, and zeros for semaphores."
  (let [bytes (byte-array 0x1000)]
    (.nextBytes (Random. 7) bytes)
    (Arrays/fill bytes (int semaphores) (int 0x1000) (byte 0))
    bytes))

(def ^:private pushed "What is on the stack, from its end on." [0x1234567 -2 0x7fffffff])

(def ^:private values
  "The numbers in registers, but for %rsp. Index registers have small ones."
  (assoc (into {} (map-indexed (fn [i r] [r (.nextLong (Random. (long i)))])) registers)
         "bp" frame "12" 5 "13" -3))

(defn- split
  "The register and the first byte of an operand such as %ah or %r8d."
  [operand]
  (let [[_ number] (re-matches #"r(\d+)[dwb]?" operand)]
    (cond
      number [number 0]
      (re-matches #"[abcd]h" operand) [(str (first operand) "x") 1]
      (re-matches #"[abcd]l" operand) [(str (first operand) "x") 0]
      :else [(str/replace (str/replace operand #"^[re]" "") #"(?<=..)l$" "") 0])))

(defn- cast-to
  "The lowest bytes of a number, with or without a sign."
  [n size signed?]
  (let [drop (- 64 (* 8 (long size)))
        n (bit-shift-left (unchecked-long n) drop)]
    (if signed? (bit-shift-right n drop) (unsigned-bit-shift-right n drop))))

(defn- at-address [address]
  (let [address (long address)
        b (.order (ByteBuffer/wrap memory) ByteOrder/LITTLE_ENDIAN)]
    (.getLong b (int (- address (long data))))))

(defn value
  "The number that a program must read for an argument such as -4@-8(%rbp), at an address."
  [argument address]
  (let [[_ sign size operand] (re-matches #"(-?)(\d)@(.*)" argument)
        number #(if (str/blank? %) 0 (Long/decode %))
        register #(let [[r shift] (split %)]
                    (if (= "ip" r)
                      address
                      (unsigned-bit-shift-right (long (values r)) (* 8 (long shift)))))
        n (or (some-> (re-matches #"\$(.*)" operand) second Long/decode)
              (some-> (re-matches #"%(\w+)" operand) second register)
              (let [[_ offset base index scale]
                    (re-matches #"([^(]*)\((?:%(\w+))?(?:,%(\w+)(?:,(\d))?)?\)" operand)]
                (if (= "rsp" base)
                  (nth (reverse pushed) (quot (long (number offset)) 8))
                  (at-address (+ (long (number offset))
                                 (if base (long (register base)) 0)
                                 (* (if index (long (register index)) 0)
                                    (long (number (or scale "1")))))))))]
    (cast-to n (parse-long size) (= "-" sign))))

;; --- the file

(defn- code
  "Bytes of instructions, given as numbers and arrays."
  ^bytes [& parts]
  (joined (map #(if (bytes? %) % (byte-array [(unchecked-byte %)])) parts)))

(def ^:private start "Where the code begins in the file." 0x100)

(def ^:private prologue
  "Sets the registers and the stack. Programs read only data that were used before, so it reads
  some."
  (joined (concat
           [(code 0x48 0x8b 0x05 (words (- (long data) (+ (long base) (long start) 7))))] ; mov %rax
           (map #(code 0x68 (words %)) pushed) ; push
           (for [[i r] (map-indexed vector registers) :when (not= "sp" r)]
             (code (if (< i 8) 0x48 0x49) (+ 0xb8 (bit-and i 7)) (packed [[8 (values r)]]))))))

(def ^:private nop (code 0x90))

(defn- gated
  "Passes a place only while a semaphore is positive."
  [address semaphore]
  (let [next-one (+ (long address) 8)] ; the comparison has eight bytes
    (code 0x66 0x83 0x3d (words (- (long semaphore) next-one)) 0x00 ; cmpw $0, semaphore(%rip)
          0x74 0x01 ; je
          nop)))

(def ^:private epilogue
  (code 0xb8 (words 60) 0x31 0xff 0x0f 0x05)) ; exit(0)

(defn- with-places
  "Probes with their addresses, and the code that passes them."
  [probes]
  (loop [probes (map-indexed vector probes) placed [] parts [prologue]
         address (+ (long base) (long start) (alength ^bytes prologue))]
    (if-let [[i {:keys [semaphore] :as probe}] (first probes)]
      (let [word (+ (long data) (long semaphores) (* 2 (long i)))
            ^bytes part (if semaphore (gated address word) nop)]
        (recur (next probes)
               (conj placed (cond-> (assoc probe :address (dec (+ address (alength part))))
                              semaphore (assoc :semaphore word)))
               (conj parts part)
               (+ address (alength part))))
      [placed (joined (conj parts epilogue))])))

(defn- padded ^bytes [^bytes bytes n]
  (Arrays/copyOf bytes (int n)))

(defn- note
  "The note of a probe, whose addresses were moved by so much afterwards."
  [{:keys [provider name arguments address semaphore]} base-address moved]
  (let [moved (long moved)
        description (joined [(packed [[8 (- (long address) moved)] [8 (- (long base-address) moved)]
                                      [8 (if semaphore (- (long semaphore) moved) 0)]])
                             (text provider) (text name) (text arguments)])
        n (alength ^bytes description)]
    (joined [(words 8 n 3) (text "stapsdt") (padded description (bit-and (+ n 3) -4))])))

(defn file
  "The bytes of a program that passes probes in order.

  A probe is `{:provider :name :arguments}`, with `:semaphore true` if the program passes it only
  while it is in use. `:file-type` is 2 for a program with fixed addresses, or 3. `:moved` is by how
  much the file was moved after its notes were written. Returns `{:bytes :probes}`, the probes with
  the `:address` of each."
  [probes & {:keys [file-type moved] :or {file-type 2 moved 0}}]
  (let [[placed ^bytes instructions] (with-places probes)
        base-address (+ (long base) 0x800)
        notes (joined (map #(note % base-address moved) placed))
        names (joined (map text ["" ".note.stapsdt" ".stapsdt.base" ".shstrtab"]))
        names-at (+ 0x2000 (alength ^bytes notes))
        headers-at (bit-and (+ names-at (alength ^bytes names) 7) -8)
        segment (fn [flags offset address]
                  (packed [[4 1] [4 flags] [8 offset] [8 address] [8 address] [8 0x1000] [8 0x1000]
                           [8 0x1000]]))
        section (fn [name type flags address offset size]
                  (packed [[4 name] [4 type] [8 flags] [8 address] [8 offset] [8 size] [4 0] [4 0]
                           [8 1] [8 0]]))]
    {:probes placed
     :bytes (joined
             [(packed (concat (map (fn [x] [1 x]) [0x7f 0x45 0x4c 0x46 2 1 1 0 0 0 0 0 0 0 0 0])
                              [[2 file-type] [2 62] [4 1] [8 (+ (long base) (long start))] [8 64]
                               [8 headers-at] [4 0] [2 64] [2 56] [2 2] [2 64] [2 4] [2 3]]))
              (padded (joined [(segment 5 0 base) (segment 6 data-offset data)])
                      (- (long start) 64))
              (padded instructions (- 0x1000 (long start)))
              memory
              notes
              (padded names (- headers-at names-at))
              (section 0 0 0 0 0 0)
              (section 1 7 0 0 0x2000 (alength ^bytes notes))
              (section 15 1 2 base-address 0x800 1)
              (section 30 3 0 0 names-at (alength ^bytes names))])}))

(defn program
  "Writes a program with probes to a temporary file: `{:path :probes}`.
  Closing it removes the file."
  ^java.io.Closeable [probes & options]
  (let [{:keys [^bytes bytes probes]} (apply file probes options)
        file (File/createTempFile "bpfmap" ".probed")
        ^"[Ljava.nio.file.OpenOption;" no-options (make-array OpenOption 0)]
    (Files/write (.toPath file) bytes no-options)
    (.setExecutable file true)
    (linux/held {:path (str file) :probes probes} #(io/delete-file file true))))
