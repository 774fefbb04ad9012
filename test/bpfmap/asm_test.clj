(ns bpfmap.asm-test
  "The assembler against RFC 9669, and against itself."
  (:require [bpfmap.asm :as asm]
            [bpfmap.assembled :refer [alone assembled big hex instruction integers little operand]]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (clojure.lang ExceptionInfo)
           (java.nio ByteBuffer ByteOrder)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

;; ---------------------------------------------------------------- helpers

(defn- refused
  "The error of a program that must not assemble, its data with the message as `:message`."
  [insns]
  (try (asm/assemble insns)
       {:message "nothing was thrown"}
       (catch ExceptionInfo e (assoc (ex-data e) :message (ex-message e)))))

;; ---------------------------------------------------------------- encodings

(def ^:private opcodes
  "Opcodes by hand from the tables of RFC 9669: with an immediate (or the only one), then with a
  register."
  {:add64 [0x07 0x0f] :sub64 [0x17 0x1f] :mul64 [0x27 0x2f] :div64 [0x37 0x3f] :or64 [0x47 0x4f]
   :and64 [0x57 0x5f] :lsh64 [0x67 0x6f] :rsh64 [0x77 0x7f] :neg64 [0x87] :mod64 [0x97 0x9f]
   :xor64 [0xa7 0xaf] :mov64 [0xb7 0xbf] :arsh64 [0xc7 0xcf]
   :add32 [0x04 0x0c] :sub32 [0x14 0x1c] :mul32 [0x24 0x2c] :div32 [0x34 0x3c] :or32 [0x44 0x4c]
   :and32 [0x54 0x5c] :lsh32 [0x64 0x6c] :rsh32 [0x74 0x7c] :neg32 [0x84] :mod32 [0x94 0x9c]
   :xor32 [0xa4 0xac] :mov32 [0xb4 0xbc] :arsh32 [0xc4 0xcc]
   :le16 [0xd4] :le32 [0xd4] :le64 [0xd4] :be16 [0xdc] :be32 [0xdc] :be64 [0xdc]
   :lddw [0x18] :ld-map-value [0x18] :ld-func [0x18]
   :ldxw [0x61] :ldxh [0x69] :ldxb [0x71] :ldxdw [0x79]
   :stw [0x62] :sth [0x6a] :stb [0x72] :stdw [0x7a]
   :stxw [0x63] :stxh [0x6b] :stxb [0x73] :stxdw [0x7b]
   :atomic-add64 [0xdb] :atomic-or64 [0xdb] :atomic-and64 [0xdb] :atomic-xor64 [0xdb]
   :atomic-fetch-add64 [0xdb] :atomic-fetch-or64 [0xdb] :atomic-fetch-and64 [0xdb]
   :atomic-fetch-xor64 [0xdb]
   :atomic-xchg64 [0xdb] :atomic-cmpxchg64 [0xdb]
   :atomic-add32 [0xc3] :atomic-or32 [0xc3] :atomic-and32 [0xc3] :atomic-xor32 [0xc3]
   :atomic-fetch-add32 [0xc3] :atomic-fetch-or32 [0xc3] :atomic-fetch-and32 [0xc3]
   :atomic-fetch-xor32 [0xc3]
   :atomic-xchg32 [0xc3] :atomic-cmpxchg32 [0xc3]
   :ja [0x05] :jeq [0x15 0x1d] :jgt [0x25 0x2d] :jge [0x35 0x3d] :jset [0x45 0x4d] :jne [0x55 0x5d]
   :jsgt [0x65 0x6d] :jsge [0x75 0x7d] :jlt [0xa5 0xad] :jle [0xb5 0xbd] :jslt [0xc5 0xcd]
   :jsle [0xd5 0xdd]
   :jeq32 [0x16 0x1e] :jgt32 [0x26 0x2e] :jge32 [0x36 0x3e] :jset32 [0x46 0x4e] :jne32 [0x56 0x5e]
   :jsgt32 [0x66 0x6e] :jsge32 [0x76 0x7e] :jlt32 [0xa6 0xae] :jle32 [0xb6 0xbe] :jslt32 [0xc6 0xce]
   :jsle32 [0xd6 0xde]
   :call [0x85] :exit [0x95] :call-local [0x85] :call-btf [0x85] :callx [0x8d]
   :gotol [0x06] :may-goto [0xe5] :gotox [0x0d] :addr-space-cast [0xbf]
   :sdiv64 [0x37 0x3f] :sdiv32 [0x34 0x3c] :smod64 [0x97 0x9f] :smod32 [0x94 0x9c]
   :movsb64 [0xbf] :movsh64 [0xbf] :movsw64 [0xbf] :movsb32 [0xbc] :movsh32 [0xbc]
   :ldxsb [0x91] :ldxsh [0x89] :ldxsw [0x81]
   :bswap16 [0xd7] :bswap32 [0xd7] :bswap64 [0xd7]
   :ldabsw [0x20] :ldabsh [0x28] :ldabsb [0x30] :ldindw [0x40] :ldindh [0x48] :ldindb [0x50]
   :load-acquire64 [0xdb] :load-acquire32 [0xc3] :load-acquire16 [0xcb] :load-acquire8 [0xd3]
   :store-release64 [0xdb] :store-release32 [0xc3] :store-release16 [0xcb] :store-release8 [0xd3]
   :insn [0x18]})

(def ^:private plain-operand
  {:to :r1 :left :r1 :right :r2 :fetched :r2 :source 1 :immediate 1 :memory-from [:r1 0]
   :memory-to [:r1 0]
   :wide 1 :map :a-map :map-offset 0 :function :function :target 0 :far-target 0 :helper 1 :btf-id 1
   :to-space 0 :from-space 1 :fields {:code 0x18 :src 6}})

(deftest mnemonic-opcodes
  (testing "every mnemonic has its opcode"
    (is (= {:code 0xb7 :operands [:to :source] :immediate :signed32} (asm/mnemonics :mov64)))
    (is (= (set (keys opcodes)) (set (keys asm/mnemonics))))
    (doseq [[mnemonic [with-immediate with-register]] opcodes
            :let [opcode (fn [operands]
                           (bit-and 0xff (aget (alone (into [mnemonic] operands) little) 0)))
                  kinds (get-in asm/mnemonics [mnemonic :operands])]]
      (is (= with-immediate (opcode (map plain-operand kinds))) mnemonic)
      (when with-register
        (is (= with-register (opcode (map (assoc plain-operand :source :r3) kinds))) mnemonic)))))

(deftest instruction-fields
  (testing "encodes each field where the BPF standard puts it"
    (are [insn expected] (= expected (hex (alone insn little)))
      [:mov64 :r1 5]                       "b701000005000000"
      [:mov64 :r1 :r2]                     "bf21000000000000"
      [:mov64 :r9 :r10]                    "bfa9000000000000"
      [:mov64 :r0 -1]                      "b7000000ffffffff"
      [:neg32 :r7]                         "8407000000000000"
      [:be16 :r1]                          "dc01000010000000"
      [:le64 :r1]                          "d401000040000000"
      [:lddw :r1 0x1122334455667788]       "18010000887766550000000044332211"
      [:lddw :r1 -1]                       "18010000ffffffff00000000ffffffff"
      [:lddw :r1 0xffffffffffffffff]       "18010000ffffffff00000000ffffffff"
      [:lddw :r1 0xffffffff]               "18010000ffffffff0000000000000000"
      [:ldxb :r1 [:r2 4]]                  "7121040000000000"
      [:ldxdw :r0 [:r10 -8]]               "79a0f8ff00000000"
      [:stxdw [:r10 -8] :r1]               "7b1af8ff00000000"
      [:stw [:r10 -4] 7]                   "620afcff07000000"
      [:stb [:r10 -1] 255]                 "720affffff000000"
      [:atomic-add64 [:r0 8] :r1]          "db10080000000000"
      [:atomic-or64 [:r0 0] :r1]           "db10000040000000"
      [:atomic-and32 [:r0 0] :r1]          "c310000050000000"
      [:atomic-xor64 [:r0 0] :r1]          "db100000a0000000"
      [:atomic-fetch-add64 [:r0 0] :r1]    "db10000001000000"
      [:atomic-fetch-xor32 [:r0 0] :r1]    "c3100000a1000000"
      [:atomic-xchg64 [:r0 0] :r1]         "db100000e1000000"
      [:atomic-cmpxchg64 [:r2 0] :r1]      "db120000f1000000"
      [:jeq :r1 5 2]                       "1501020005000000"
      [:jsgt32 :r1 :r2 -1]                 "6e21ffff00000000"
      [:ja 3]                              "0500030000000000"
      [:call :map-lookup-elem]             "8500000001000000"
      [:call 181]                          "85000000b5000000"
      [:exit]                              "9500000000000000"
      [:sdiv64 :r1 :r2]                    "3f21010000000000"
      [:smod32 :r1 3]                      "9401010003000000"
      [:movsb64 :r1 :r2]                   "bf21080000000000"
      [:movsw64 :r1 :r2]                   "bf21200000000000"
      [:movsh32 :r1 :r2]                   "bc21100000000000"
      [:ldxsw :r1 [:r2 -4]]                "8121fcff00000000"
      [:bswap32 :r1]                       "d701000020000000"
      [:gotol -2]                          "06000000feffffff"
      [:may-goto 1]                        "e500010000000000"
      [:call-local 2]                      "8510000002000000"
      [:call-btf 1234]                     "85200000d2040000"
      [:callx :r3]                         "8d03000000000000"
      [:gotox :r3]                         "0d03000000000000"
      [:addr-space-cast :r1 :r2 0 1]       "bf21010001000000"
      [:addr-space-cast :r1 :r2 1 0]       "bf21010000000100"
      [:ldabsh 12]                         "280000000c000000"
      [:ldindw :r3 0]                      "4030000000000000"
      [:load-acquire8 :r1 [:r2 4]]         "d321040000010000"
      [:store-release64 [:r1 0] :r2]       "db21000010010000"
      [:insn {:code 0x18 :src 6 :imm -1}]  "18600000ffffffff")))

(deftest named-parts
  (testing "references to parts of an object leave relocations"
    (are [insn expected] (= expected (let [{:keys [bytes relocations]}
                                           (asm/assemble [insn [:exit]] little)]
                                       [(subs (hex bytes) 0 16) (mapv (juxt :kind :ref)
                                                                      relocations)]))
      [:lddw :r1 {:map "m"}]                 ["1811000000000000" [[:map-fd {:map "m"}]]]
      [:ld-map-value :r1 {:variable "v"} 4]  ["1821000000000000" [[:map-value {:variable "v"}]]]
      [:call {:function "f"}]                ["8510000000000000" [[:call {:function "f"}]]]
      [:lddw :r2 {:function "f"}]            ["1842000000000000" [[:function {:function "f"}]]]
      [:call {:kfunc "k"}]                   ["8520000000000000" [[:kfunc {:kfunc "k"}]]]
      [:lddw :r2 {:kfunc "k"}]               ["1832000000000000" [[:btf-id {:kfunc "k"}]]]
      [:lddw :r2 {:ksym "s"}]                ["1802000000000000" [[:ksym {:ksym "s"}]]])))

(deftest big-endian-encoding
  (testing "big-endian encoding reverses the bytes and swaps the registers"
    (are [insn expected] (= expected (hex (alone insn big)))
      [:mov64 :r1 :r2]               "bf12000000000000"
      [:stw [:r10 -4] 7]             "62a0fffc00000007"
      [:lddw :r1 0x1122334455667788] "18100000556677880000000011223344")))

(deftest default-byte-order
  (testing "uses the byte order of this machine by default"
    (is (= (assembled [[:stw [:r10 -4] 7]] nil)
           (assembled [[:stw [:r10 -4] 7]] {:byte-order (ByteOrder/nativeOrder)})))
    (is (= [-73 0 0 0 2 0 0 0 -107 0 0 0 0 0 0 0]
           (vec (:bytes (asm/assemble [[:mov64 :r0 2] [:exit]] little)))))))

(deftest unsigned-immediates
  (testing "accepts an unsigned immediate if it has the same bits as the signed one"
    (are [unsigned signed] (= (assembled [unsigned]) (assembled [signed]))
      [:mov32 :r1 0xffffffff]    [:mov32 :r1 -1]
      [:stw [:r10 -4] 0x80000000] [:stw [:r10 -4] -0x80000000]
      [:lddw :r1 0x8000000000000000] [:lddw :r1 Long/MIN_VALUE]
      [:mov64 :r1 (biginteger 7)] [:mov64 :r1 (short 7)])
    (is (= (hex (alone [:jne32 :r1 0xfffffffe 0] little)) (hex (alone [:jne32 :r1 -2 0] little))))))

;; ---------------------------------------------------------------- maps, labels, nesting

(deftest map-leaves-relocation
  (testing "a map reference leaves a relocation for its descriptor"
    (let [counts (Object.)
          {:keys [bytes relocations]} (asm/assemble [[:mov64 :r0 0]
                                                     [:lddw :r1 counts]
                                                     [:ld-map-value :r2 counts 16]
                                                     [:exit]])]
      (is (= [{:slot 1 :kind :map-fd :ref counts}
              {:slot 3 :kind :map-value :ref counts}]
             relocations))
      (testing "and the instruction says what the number will be"
        (is (= (str "b700000000000000"
                    "1811000000000000" "0000000000000000"
                    "1822000000000000" "0000000010000000"
                    "9500000000000000")
               (assembled [[:mov64 :r0 0] [:lddw :r1 counts] [:ld-map-value :r2 counts 16]
                           [:exit]]))))
      (testing "which is patched in, and nothing else"
        (let [before (aclone ^bytes bytes)
              after (asm/patch-map-fd! bytes 3 77)]
          (is (identical? bytes after))
          (is (= 77 (-> (ByteBuffer/wrap after) (.order (ByteOrder/nativeOrder)) (.getInt 28))))
          (is (Arrays/equals before (asm/patch-map-fd! (aclone after) 3 0))))))))

(deftest function-addresses
  (testing "the address of a function is the distance to its label"
    (let [insns [[:ld-func :r2 :second] [:ld-func :r3 :first] [:ld-func :r4 :second] [:exit]
                 :first [:exit]
                 :second [:exit]]]
      (is (= (str "1842000007000000" "0000000000000000"
                  "1843000004000000" "0000000000000000"
                  "1844000003000000" "0000000000000000"
                  "9500000000000000" "9500000000000000" "9500000000000000")
             (assembled insns)))
      (is (= [7 8] (:functions (asm/assemble insns))))
      (is (= [] (:functions (asm/assemble [[:exit]])))))))

(deftest labels-name-next-insn
  (testing "a label stands for the instruction that follows it"
    (is (= (assembled [[:jeq :r1 0 3] [:lddw :r0 1] [:ja -4] [:exit]])
           (assembled [:again [:jeq :r1 0 :done] [:lddw :r0 1] [:ja :again] :done [:exit]])))
    (testing "several may share one"
      (is (= (assembled [[:ja 0] [:exit]])
             (assembled [[:ja :a] :b :a [:exit]]))))))

(deftest nested-instructions
  (testing "flattens nested instructions into the program"
    (let [return (fn [n] (list [:mov64 :r0 n] [:exit]))]
      (is (= (assembled [[:jeq :r1 0 :zero] [:mov64 :r0 1] [:exit] :zero [:mov64 :r0 0] [:exit]])
             (assembled [nil [:jeq :r1 0 :zero] (return 1) () [[] nil] (list :zero (return 0))])
             (assembled [[[[[:jeq :r1 0 :zero]]] (return 1)] :zero (when false [:exit])
                         (return 0)]))))))

;; ---------------------------------------------------------------- errors

(deftest malformed-instructions
  (testing "rejects malformed instructions and reports the reason"
    (are [message insns]
         (let [error (refused insns)]
           (and (is (= :invalid-program (:bpfmap/error error)))
                (is (= :assemble (:bpfmap/op error)))
                (is (str/includes? (:message error) message))))
      "unknown instruction :mov; did you mean :mov32, :mov64, :movsb32"            [[:mov :r1 5]]
      "unknown instruction :jeq64; did you mean :jeq?"
      [[:jeq64 :r1 5 0] [:exit]]
      "unknown instruction :frob"                                      [[:frob]]
      "nested instructions that start with a label must be a list"         [[:loop [:exit]]]
      "it must have the form [:mov64 register register-or-immediate]"                [[:mov64 :r1]]
      "it must have the form [:exit]"                                                [[:exit 0]]
      "it must have the form [:jeq register register-or-immediate label-or-offset]"  [[:jeq :r1 :r2]]
      "it must have the form [:stw [register offset] immediate]"                     [[:stw :r10 -4 7]]
      "a register must be :r0 to :r10, got :r11"                                [[:mov64 :r11 5]]
      "a register must be :r0 to :r10, got nil"                                              [[:neg64 nil]]
      "a register must be :r0 to :r10, got 5"                                                [[:stxdw [:r10 -8] 5]]
      "the source must be a register, :r0 to :r10, or an integer, got \"r2\""          [[:mov64 :r1 "r2"]]
      "the source must be a register, :r0 to :r10, or an integer, got 1.5"                                          [[:mov64 :r1 1.5]]
      "the immediate must be an integer, got :r1"                                              [[:stw [:r10 -4] :r1]]
      "the immediate must be from -2147483648 to 2147483647, got 2147483648; use :lddw for 64 bits"
      [[:mov64 :r1 0x80000000]]
      "the immediate must be from -2147483648 to 2147483647, got 4294967295"
      [[:stdw [:r10 -8] 0xffffffff]]
      "the immediate must be from"
      [[:jeq :r1 -0x80000001 0] [:exit]]
      "the immediate must be from -2147483648 to 4294967295, got 4294967296"
      [[:mov32 :r1 0x100000000]]
      "the immediate must be from -32768 to 65535, got 65536"
      [[:sth [:r10 -2] 0x10000]]
      "the immediate must be from -128 to 255, got 256"                           [[:stb [:r10 -1] 256]]
      "the immediate must be from -9223372036854775808 to 18446744073709551615, got 18446744073709551616"
      [[:lddw :r1 0x10000000000000000]]
      "the offset must be from -32768 to 32767, got 32768"                        [[:ldxw :r1 [:r2 32768]]]
      "the offset must be from"
      [[:stxw [:r2 -32769] :r1]]
      "a memory operand must be a register and an offset in bytes, such as [:r10 -8], got :r2"
      [[:ldxw :r1 :r2]]
      "a memory operand must be a register and an offset in bytes, such as [:r10 -8], got [:r2]"                                      [[:ldxw :r1 [:r2]]]
      "a memory operand must be a register and an offset in bytes, such as [:r10 -8], got [:r2 :r3]"                                  [[:ldxw :r1 [:r2 :r3]]]
      "a register must be :r0 to :r10, got :m"                                               [[:ldxw :r1 [:m 0]]]
      "unknown label :nowhere"                                         [[:ja :nowhere] [:exit]]
      "the target must be a label or an offset in slots, got nil"                      [[:ja nil] [:exit]]
      "the jump must be from -32768 to 32767, got 32768 slots"                 [[:ja 32768] [:exit]]
      "the jump must be from" [[:ja :far] (repeat 40000 [:exit]) :far [:exit]]
      "the jump must be from"
      [:far (repeat 40000 [:exit]) [:ja :far]]
      "the jump to 1 leaves the program"                                   [[:ja 1] [:exit]]
      "the jump to -2 leaves the program"                                  [[:ja -2] [:exit]]
      "the jump to :end leaves the program"                                [[:ja :end] [:exit] :end]
      "the jump to 1 ends inside an instruction of two slots"
      [[:ja 1] [:lddw :r0 1] [:exit]]
      "the label :a is defined twice"                                      [:a [:ja :a] :a [:exit]]
      "a bare keyword is a label; an instruction must be a vector"                 [:exit]
      "a bare keyword is a label"                                          [:mov64 :r1 5]
      "a bare keyword is a label"                                          [:r1 [:exit]]
      ":r10, the frame pointer, is read-only"                              [[:add64 :r10 -8]]
      ":r10, the frame pointer, is read-only"                              [[:ldxdw :r10 [:r1 0]]]
      ":r10, the frame pointer, is read-only"                              [[:lddw :r10 1]]
      ":r10, the frame pointer, is read-only"
      [[:ld-map-value :r10 :m 0]]
      ":r10, the frame pointer, is read-only"                              [[:be16 :r10]]
      ":r10, the frame pointer, is read-only"
      [[:atomic-fetch-add64 [:r0 0] :r10]]
      "the operand must be an integer or a map, got :r2; use :mov64 to copy a register"                           [[:lddw :r1 :r2]]
      "the operand must be a map, got nil"                                                   [[:lddw :r1 nil]]
      "the operand must be a map, got 1.5"                                                   [[:lddw :r1 1.5]]
      "the operand must be a map, got 3"                                                     [[:ld-map-value :r1 3 0]]
      "the offset must be from 0 to 4294967295, got -1"
      [[:ld-map-value :r1 :m -1]]
      "the offset must be an integer, got :r2"
      [[:ld-map-value :r1 :m :r2]]
      "the function must be a label, got 1"                                                   [[:ld-func :r2 1]]
      "unknown label :nowhere"
      [[:ld-func :r2 :nowhere] [:exit]]
      "the function at :start is the program itself"
      [:start [:ld-func :r2 :start] [:exit]]
      "no instruction follows the label :end"
      [[:ld-func :r2 :end] [:exit] :end]
      "unknown helper :bpf_map_lookup_elem; did you mean :map-lookup-elem?"
      [[:call :bpf_map_lookup_elem]]
      "unknown helper :frobnicate"                                     [[:call :frobnicate]]
      "the helper's number must be from 0 to 2147483647, got -1"                  [[:call -1]]
      "the helper must be a name or a number, got \"bind\""                 [[:call "bind"]]
      "the helper must be a name or a number, got {:ksym \"f\"}"               [[:call {:ksym "f"}]]
      "got {:variable \"v\"}; use :ld-map-value for a part of the value of a map"
      [[:lddw :r1 {:variable "v"}] [:exit]]
      "the id must be from 0 to 2147483647, got -1"                         [[:call-btf -1]]
      "the id must be an integer, got :f"                                   [[:call-btf :f]]
      "the address space must be from 0 to 65535, got 65536"
      [[:addr-space-cast :r1 :r2 0x10000 0]]
      "the operand must be a map of the fields of a slot, got 7"            [[:insn 7]]
      "the fields of a slot must be :code, :dst, :imm, :off or :src, got :op" [[:insn {:op 1}]]
      ":code must be an integer, got \"a\""                                 [[:insn {:code "a"}]]
      ":dst must be from 0 to 15, got 16"                                   [[:insn {:dst 16}]]
      "an instruction must be a vector such as [:mov64 :r0 0], and a label a keyword" [{:mov64 [:r1 5]}]
      "an instruction must be a vector such as [:mov64 :r0 0], and a label a keyword" [[:exit] 5]
      "a program must have an instruction; the smallest is [[:mov64 :r0 0] [:exit]]" []
      "a program must have an instruction"                                       nil
      "a program must have an instruction"                                       [:only-a-label nil ()]
      "a program must be a sequence of instructions"                            {:exit []})))

(deftest error-position
  (testing "an error names the instruction by its position"
    (is (= {:bpfmap/error :invalid-program
            :bpfmap/op :assemble
            :bpfmap/path [3]
            :bpfmap/hint "a register must be :r0 to :r10, got :r12"
            :message "Cannot assemble instruction 3, [:mov64 :r12 0]: a register must be :r0 to :r10, got :r12"}
           (refused [[:mov64 :r0 0] nil :label (list [:neg64 :r0] [[:mov64 :r12 0]]) [:exit]])))
    (testing "and an object in it is named, not printed"
      (is
       (=
        "Cannot assemble instruction 0, [:lddw :r10 \"java.lang.Object\"]: :r10, the frame pointer, is read-only"
        (:message (refused [[:lddw :r10 (Object.)]])))))
    (testing "and what concerns the whole has no place"
      (is (not (contains? (refused []) :bpfmap/path))))))

(deftest frame-pointer-reads
  (testing "accepts instructions that read the frame pointer"
    (is (asm/assemble [[:mov64 :r2 :r10] [:stxdw [:r10 -8] :r10] [:jeq :r10 :r10 0]
                       [:atomic-add64 [:r10 -8] :r10] [:atomic-cmpxchg64 [:r10 -8] :r10]
                       [:exit]]))))

;; ---------------------------------------------------------------- properties

(def ^:private straight-instruction
  (gen/such-that #(not-any? #{:target :far-target :function}
                            (get-in asm/mnemonics [(first %) :operands]))
                 instruction
                 100))

(defspec instruction-size 500
  (prop/for-all [insn instruction]
                (= (if (#{:lddw :ld-map-value :ld-func} (first insn)) 16 8)
                   (alength (alone insn little)))))

(defspec program-concatenation 100
  (prop/for-all [insns (gen/not-empty (gen/vector straight-instruction))]
                (= (assembled insns)
                   (apply str (map #(assembled [%]) insns))
                   (assembled (map list insns)))))

(defspec same-fields-both-orders 500
  (prop/for-all [insn instruction]
                (let [fields (fn [{:keys [^ByteOrder byte-order] :as options}]
                               (let [buffer (doto (ByteBuffer/wrap (alone insn options))
                                              (.order byte-order))
                                     registers (bit-and 0xff (.get buffer 1))
                                     pair [(quot registers 16) (mod registers 16)]]
                                 [(.get buffer 0) (if (= big options) pair (rseq pair))
                                  (.getShort buffer 2)
                                  (.getInt buffer 4)
                                  (when (< 8 (.capacity buffer)) (.getInt buffer 12))]))]
                  (= (fields big) (fields little)))))

(defspec wide-immediates 200
  (prop/for-all [x (integers Long/MIN_VALUE Long/MAX_VALUE)]
                (let [buffer (doto (ByteBuffer/wrap (alone [:lddw :r1 x] little))
                               (.order ByteOrder/LITTLE_ENDIAN))]
                  (= x (bit-or (bit-shift-left (.getInt buffer 12) 32)
                               (bit-and 0xffffffff (.getInt buffer 4)))))))

(defspec labels-and-offsets 100
  (prop/for-all [[insns jumps] (gen/let [insns (gen/not-empty (gen/vector straight-instruction))
                                         jumps (gen/vector
                                                (gen/choose 0 (dec (count insns))) (count insns))]
                                 [insns jumps])]
    ;; Before each instruction stands a jump to the given one's own jump.
                (let [slots (reductions +
                                        (map #(+ 1 (get-in asm/mnemonics [(first %) :slots] 1))
                                             insns))
                      starts (vec (cons 0 slots))
                      label #(keyword (str "at-" %))]
                  (= (assembled (map (fn [insn i to] (list (label i) [:ja (label to)] insn)) insns
                                     (range)
                                     jumps))
                     (assembled (map (fn [insn i to] (list [:ja (- (starts to) (starts i) 1)] insn))
                                     insns
                                     (range) jumps))))))

(defspec any-input-or-error 1000
  (let [junk (gen/frequency [[4 (gen/one-of (vals operand))]
                             [1
                              (gen/elements [nil :a :r10 :r11 1/2 2.5 "s" [] [:r1]
                                             0x10000000000000000N])]
                             [1 gen/any-printable-equatable]])
        insn (gen/let [mnemonic (gen/elements (sort (keys asm/mnemonics)))
                       operands (gen/vector junk 0 4)]
               (into [mnemonic] operands))]
    (prop/for-all [insns (gen/vector (gen/frequency [[5 insn] [3 instruction] [1 junk]]) 0 4)]
                  (try
                    (zero? (mod (alength ^bytes (:bytes (asm/assemble insns))) 8))
                    (catch ExceptionInfo e
                      (let [{:bpfmap/keys [error path hint]} (ex-data e)]
                        (and (= :invalid-program error)
                             (string? hint)
                             (or (nat-int? (first path))
                                 (str/starts-with? hint "a program must have an instruction")))))))))

;; ---------------------------------------------------------------- disassembly

(defn- disassembled-again [^bytes bytes options]
  (:bytes (asm/assemble (asm/disassemble bytes options) options)))

(defspec disassembled-instruction 1000
  (prop/for-all [insn (gen/such-that #(not= :ld-map-value (first %)) instruction 100)
                 options (gen/elements [little big])]
                (let [room (repeat 6 [:exit])
                      bytes (:bytes (asm/assemble [room insn :function room] options))]
                  (Arrays/equals ^bytes bytes ^bytes (disassembled-again bytes options)))))

(defspec same-instructions 500
  (prop/for-all [insns (gen/not-empty
                        (gen/vector (gen/such-that #(not (#{:insn :ld-map-value} (first %)))
                                                   straight-instruction 100)))
                 options (gen/elements [little big])]
    ;; A number may be written in several ways, and the bytes are the same.
                (let [read (asm/disassemble (:bytes (asm/assemble insns options)) options)]
                  (and (= (map first insns) (map first read))
                       (= (assembled insns options) (assembled read options))))))

(defspec disassembled-bytes 2000
  (prop/for-all [bytes (gen/such-that
                        seq
                        (gen/fmap #(byte-array (apply concat %))
                                  (gen/vector
                                   (gen/tuple (gen/one-of
                                               [(gen/elements (map #(unchecked-byte (:code %))
                                                                   (vals asm/mnemonics)))
                                                gen/byte])
                                              gen/byte gen/byte (gen/elements [0 0 1 -1 8])
                                              (gen/elements [0 0 1 2 5 16 -1]) gen/byte
                                              (gen/elements [0 0 1 -1]) (gen/elements [0 0 1 -1]))))
                        100)
                 options (gen/elements [little big])]
                (Arrays/equals ^bytes bytes ^bytes (disassembled-again bytes options))))

(deftest disassembled-data
  (testing "disassembles into instructions with labels"
    (is (= [[:mov64 :r0 0] :L1 [:jeq :r1 5 :L5] [:lddw :r2 -1] [:ja :L1] :L5
            [:call :map-lookup-elem] [:call 1000] [:exit]]
           (asm/disassemble (:bytes (asm/assemble [[:mov64 :r0 0] :a [:jeq :r1 5 :b] [:lddw :r2 -1]
                                                   [:ja :a] :b [:call 1] [:call 1000] [:exit]])))))
    (testing "and bytes that are no instruction into the fields of their slots"
      (are [bytes expected] (= expected (asm/disassemble (byte-array bytes) little))
        [0x18 0x61 0 0 3 0 0 0 0 0 0 0 9 0 0 0] [[:insn {:code 0x18 :dst 1 :src 6 :imm 3}]
                                                 [:insn {:imm 9}]]
        [5 0 7 0 0 0 0 0]                       [[:insn {:code 5 :off 7}]]
        [-1 0 0 0 0 0 0 0]                      [[:insn {:code 255}]]))))

(deftest readable-assembly
  (testing "prints a function with its source lines"
    (is (= (str "f:\n; return x; @ a.c:7\n   0: r2 = map flows\nL2:\n   2: w1 s/= -2\n"
                "   3: if r1 > r2 goto L2\n; f(); @ a.c:8\n   4: call g\n   5: exit\n")
           (asm/disassemble {:name "f"
                             :insns [[:lddw :r2 {:map "flows"}] :L2 [:sdiv32 :r1 -2]
                                     [:jgt :r1 :r2 :L2] [:call {:function "g"}] [:exit]]
                             :lines [{:slot 0 :file "a.c" :line 7 :text "  return x;"}
                                     {:slot 4 :file "a.c" :line 8 :text "f();"}]})))))

(deftest disassembly-errors
  (testing "rejects what cannot be disassembled"
    (doseq [[x message] {"add" "it must be bytes, or a function of an object with :insns"
                         (byte-array 7) "its length must be a multiple of 8 bytes, got 7"
                         {:insns [[:frob]]} "unknown instruction :frob"
                         {:insns [7]} "an instruction must be a vector such as [:mov64 :r0 0]"}]
      (is (thrown-with-msg? ExceptionInfo (re-pattern (java.util.regex.Pattern/quote message))
                            (asm/disassemble x))))))
