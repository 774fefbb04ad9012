(ns bpfmap.assembled
  "Instructions as the tests of the assembler make them: bytes of them, and generators of good
  ones."
  (:require [bpfmap.asm :as asm]
            [clojure.test.check.generators :as gen])
  (:import (java.nio ByteOrder)
           (java.util Arrays HexFormat)))

(set! *warn-on-reflection* true)

(def little {:byte-order ByteOrder/LITTLE_ENDIAN})
(def big {:byte-order ByteOrder/BIG_ENDIAN})

(defn hex [^bytes bytes]
  (.formatHex (HexFormat/of) bytes))

(defn assembled
  "The bytes of a program in hex, little-endian unless told."
  ([insns] (assembled insns little))
  ([insns options] (hex (:bytes (asm/assemble insns options)))))

(defn alone
  "The bytes of one instruction, with room around it for its jump."
  ^bytes [insn options]
  (let [room (repeat 4 [:exit])
        bytes ^bytes (:bytes (asm/assemble [room insn :function room] options))]
    (Arrays/copyOfRange bytes 32 (- (alength bytes) 32))))

(defn integers [low high]
  (gen/one-of [(gen/elements [low -1 0 1 high]) (gen/large-integer* {:min low :max high})]))

(defn register-up-to [n]
  (gen/fmap #(keyword (str "r" %)) (gen/choose 0 n)))

(def memory
  (gen/tuple (register-up-to 10) (integers -0x8000 0x7fff)))

(def signed-32 (integers -0x80000000 0x7fffffff))

(def operand
  "Generators of good operands by kind; LLVM accepts the immediates too."
  {:to (register-up-to 9) :left (register-up-to 10) :right (register-up-to 10)
   :fetched (register-up-to 9)
   :source (gen/one-of [(register-up-to 10) signed-32])
   :memory-from memory :memory-to memory
   :wide (integers Long/MIN_VALUE Long/MAX_VALUE)
   :map (gen/return :a-map) :map-offset (gen/choose 0 0x7fffffff)
   :function (gen/return :function)
   :target (gen/choose -5 3) ; what `alone` has room for
   :far-target (gen/choose -5 3)
   :btf-id (gen/choose 0 0x7fffffff)
   :to-space (gen/choose 0 0xffff) :from-space (gen/choose 0 0xffff)
   :fields (gen/hash-map :code (gen/choose 0 255) :dst (gen/choose 0 15) :src (gen/choose 0 15)
                         :off (gen/choose -0x8000 0x7fff) :imm signed-32)
   :helper (gen/elements (concat (range 1 212) (keys asm/helpers)))})

(defn instruction-of [mnemonic]
  (let [{:keys [operands] range :immediate} (asm/mnemonics mnemonic)
        immediate (get {:bits8 (integers -0x80 0x7f) :bits16 (integers -0x8000 0x7fff)} range
                       signed-32)]
    (gen/fmap #(into [mnemonic] %)
              (apply gen/tuple (map (assoc operand :immediate immediate) operands)))))

(def instruction
  (gen/bind (gen/elements (sort (keys asm/mnemonics))) instruction-of))
