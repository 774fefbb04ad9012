(ns bpfmap.machine-test
  "The assembler, compared with the machine that runs its programs."
  (:require [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.prog :as prog]
            [clojure.test :refer [are is testing]]
            [clojure.test.check :as check]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn- returned
  "What a packet program returns for an empty packet."
  [insns]
  (with-open [p ^Closeable (prog/load {:type :socket-filter :insns insns})]
    (:return (prog/test-run p {:data (byte-array 14)}))))

(def ^:private two-to-64 (.shiftLeft BigInteger/ONE 64))

(defn- u64 [n] (mod (bigint n) (bigint two-to-64)))
(defn- u32 [n] (mod (bigint n) 4294967296))
(defn- signed [n bits]
  (let [half (bigint (.shiftLeft BigInteger/ONE (int (dec bits))))]
    (if (< n half) n (- n (* 2 half)))))

(defn- apply-alu
  "What an operation of 64 or 32 bits makes of two numbers, after RFC 9669: division by zero gives
  zero, modulo by zero leaves the number, shifts use the low bits of the count."
  [op bits a b]
  (let [wrap (if (= 64 bits) u64 u32)
        a (wrap a) b (wrap b)
        shift (int (mod b bits))
        power (bigint (.shiftLeft BigInteger/ONE shift))]
    (wrap (case op
            :mov b :add (+ a b) :sub (- a b) :mul (* a b)
            :div (if (zero? b) 0 (quot a b))
            :mod (if (zero? b) a (rem a b))
            :or (.or (biginteger a) (biginteger b))
            :and (.and (biginteger a) (biginteger b))
            :xor (.xor (biginteger a) (biginteger b))
            :lsh (* a power)
            :rsh (quot a power)
            :arsh (.shiftRight (biginteger (signed a bits)) shift)))))

(def ^:private alu-step
  (gen/let [op (gen/elements [:mov :add :sub :mul :div :mod :or :and :xor :lsh :rsh :arsh])
            bits (gen/elements [64 32])
            to (gen/choose 0 5)
            source (gen/one-of [(gen/tuple (gen/return :register) (gen/choose 0 5))
                                (gen/tuple (gen/return :immediate)
                                           (gen/one-of
                                            [(gen/choose -100 100)
                                             (gen/choose -2147483648 2147483647)]))])]
    (let [[kind n] source]
      ;; The verifier refuses immediates that divide by zero or shift by more than the width.
      (cond
        (and (= :immediate kind) (#{:lsh :rsh :arsh} op)) [op bits to [:immediate (mod n bits)]]
        (and (= :immediate kind) (#{:div :mod} op) (zero? n)) [op bits to [:immediate 1]]
        :else [op bits to source]))))

(defn- reg [n] (keyword (str "r" n)))

(kernel-test arithmetic-as-specified
  (testing "arithmetic programs compute what the standard specifies"
    (let [programs (gen/tuple (gen/vector gen/large-integer 6) (gen/vector alu-step 1 30))
          property (prop/for-all [[start steps] programs]
                                 (let
                                  [insns (concat (map-indexed (fn [i n] [:lddw (reg i) n]) start)
                                                 (for [[op bits to [kind n]] steps]
                                                   [(keyword (str (name op) bits)) (reg to)
                                                    (if (= :register kind) (reg n) n)])
                                                 [[:exit]])
                                   end (reduce (fn [regs [op bits to [kind n]]]
                                                 (assoc regs to
                                                        (apply-alu
                                                         op bits (regs to)
                                                         (if (= :register kind) (regs n) n))))
                                               (mapv u64 start)
                                               steps)]
                                   (= (u32 (first end)) (returned insns))))
          result (check/quick-check (fixture/trials 300) property)]
      (is (:pass? result) (pr-str (:shrunk result))))))

(kernel-test ^{:needs [[:kernel :atomic-fetch]]} other-instructions
  (testing "jumps, loads, stores and calls work as specified"
    (are [result insns] (= result (returned insns))
      3
      [[:mov64 :r0 0] [:mov64 :r1 3] :again [:add64 :r0 1] [:sub64 :r1 1] [:jne :r1 0 :again]
       [:exit]]
      1 [[:mov64 :r0 1] [:mov64 :r1 -1] [:jslt :r1 0 :out] [:mov64 :r0 2] :out [:exit]]
      0x34 [[:stdw [:r10 -8] 0x1234] [:ldxb :r0 [:r10 -8]] [:exit]]
      0x3412 [[:mov64 :r0 0x1234] [:be16 :r0] [:exit]]
      5
      [[:stdw [:r10 -8] 2] [:mov64 :r1 3] [:atomic-add64 [:r10 -8] :r1] [:ldxdw :r0 [:r10 -8]]
       [:exit]]
      2
      [[:stdw [:r10 -8] 2] [:mov64 :r1 3] [:atomic-fetch-add64 [:r10 -8] :r1] [:mov64 :r0 :r1]
       [:exit]]
      7 [[:stdw [:r10 -8] 7] [:mov64 :r1 9] [:atomic-xchg64 [:r10 -8] :r1] [:mov64 :r0 :r1] [:exit]]
      9
      [[:stdw [:r10 -8] 7] [:mov64 :r0 7] [:mov64 :r1 9] [:atomic-cmpxchg64 [:r10 -8] :r1]
       [:ldxdw :r0 [:r10 -8]] [:exit]]
      1
      [[:call :get-smp-processor-id] [:mov64 :r1 :r0] [:mov64 :r0 0] [:jgt :r1 4095 :out]
       [:mov64 :r0 1] :out [:exit]])))
