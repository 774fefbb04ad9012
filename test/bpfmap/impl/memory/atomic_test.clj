(ns bpfmap.impl.memory.atomic-test
  "Numbers read and written in one step: what each operation leaves and returns, and what none of
  them takes."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.memory :as mem]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]]
            [clojure.test.check :as check]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (bpfmap.sys Bytes)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn- an-array
  (^Closeable [] (an-array nil))
  (^Closeable [change]
   (bpf/create (merge {:name "t_atomic" :type :array :key :u32 :value :u64 :max-entries 8
                       :flags #{:mmapable}} change))))

;; --- a model: integers that wrap around

(def ^:private types
  {:u32 [32 false], :s32 [32 true], :u64 [64 false], :s64 [64 true], :ktime [64 false]
   :ptr [64 false]})

(defn- wrapped
  "An integer as so many bits hold it."
  [x [bits signed?]]
  (let [two-to-bits (.shiftLeft BigInteger/ONE (int bits))
        low (.mod (biginteger x) two-to-bits)]
    (if (and signed? (.testBit low (dec (int bits))))
      (bigint (.subtract low two-to-bits))
      (bigint low))))

(defn- range-of [[bits signed?]]
  (let [two-to #(bigint (.shiftLeft BigInteger/ONE (int %)))]
    (if signed?
      [(- (two-to (dec bits))) (dec (two-to (dec bits)))]
      [0 (dec (two-to bits))])))

(defn- a-number
  "A generator of integers that a type holds, in every guise that Clojure has for them."
  [shape]
  (let [[low high] (range-of shape)]
    (gen/let [x (gen/one-of [(gen/fmap #(wrapped % shape) gen/large-integer)
                             (gen/fmap #(wrapped (* % 4611686018427387904N) shape)
                                       gen/small-integer)
                             (gen/elements [low high 0 1])])
              guise (gen/elements [identity #(if (<= Long/MIN_VALUE % Long/MAX_VALUE) (long %) %)
                                   biginteger bigint])]
      (guise x))))

(defn- apply-model
  "What an operation leaves, and returns."
  [shape now [op x y]]
  (let [both (fn [f] (wrapped (f (biginteger now) (biginteger x)) shape))]
    (case op
      :write [x :view]
      :set-release! [x :view]
      :get-acquire [now now]
      :add! [(wrapped (+ now (bigint x)) shape) :view]
      :fetch-add! [(wrapped (+ now (bigint x)) shape) now]
      :exchange! [x now]
      :compare-and-set! (if (= now (bigint x)) [y true] [now false])
      :bit-or! [(both #(.or ^BigInteger %1 ^BigInteger %2)) :view]
      :fetch-or! [(both #(.or ^BigInteger %1 ^BigInteger %2)) now]
      :bit-and! [(both #(.and ^BigInteger %1 ^BigInteger %2)) :view]
      :fetch-and! [(both #(.and ^BigInteger %1 ^BigInteger %2)) now]
      :bit-xor! [(both #(.xor ^BigInteger %1 ^BigInteger %2)) :view]
      :fetch-xor! [(both #(.xor ^BigInteger %1 ^BigInteger %2)) now])))

(defn- perform [cell [op x y]]
  (let [answer (case op
                 :write (mem/write! cell x)
                 :set-release! (mem/set-release! cell x)
                 :get-acquire (mem/get-acquire cell)
                 :add! (mem/add! cell x)
                 :fetch-add! (mem/fetch-add! cell x)
                 :exchange! (mem/exchange! cell x)
                 :compare-and-set! (mem/compare-and-set! cell x y)
                 :bit-or! (mem/bit-or! cell x)
                 :fetch-or! (mem/fetch-or! cell x)
                 :bit-and! (mem/bit-and! cell x)
                 :fetch-and! (mem/fetch-and! cell x)
                 :bit-xor! (mem/bit-xor! cell x)
                 :fetch-xor! (mem/fetch-xor! cell x))]
    (if (identical? cell answer) :view answer)))

(def ^:private a-trial
  (gen/let [t (gen/elements (keys types))]
    (let [shape (types t)
          n (a-number shape)
          ;; What is added or combined with may be of either sign.
          word (gen/one-of [n (gen/fmap #(wrapped % [(first shape) true]) n)])]
      (gen/tuple (gen/return t)
                 (gen/vector
                  (gen/one-of [(gen/tuple (gen/elements [:write :set-release! :exchange!]) n)
                               (gen/tuple
                                (gen/elements [:add! :bit-or! :bit-and! :bit-xor! :fetch-add!
                                               :fetch-or! :fetch-and!
                                               :fetch-xor!])
                                word)
                               (gen/tuple (gen/return :compare-and-set!) n n)
                               (gen/return [:get-acquire])
                               (gen/return [:compare-and-set! :now 7])])
                  1 30)))))

(kernel-test wrapping-integers
  (testing "atomic operations wrap around as integers of their size"
    (with-open [m (an-array)
                memory ^Closeable (bpf/memory m)]
      (let [holds? (fn [[t commands]]
                     (let [cell (mem/view memory t 16)
                           shape (types t)]
                       (mem/fill! memory 0)
                       (loop [now 0N [command & more] commands]
                         (if-not command
                           ;; Nothing around it was written.
                           (every? zero?
                                   (concat (mem/slice memory 0 16)
                                           (mem/slice memory (+ 16 (quot (first shape) 8)))))
                           (let [command (mapv #(if (= :now %) now %) command)
                                 [after expected] (apply-model shape now command)
                                 answer (perform cell command)]
                             (and (= (if (number? expected) (bigint expected) expected)
                                     (if (number? answer) (bigint answer) answer))
                                  (= (bigint after) (bigint @cell) (bigint (mem/get-acquire cell)))
                                  (recur (bigint after) more)))))))
            {:keys [pass?] :as result} (check/quick-check
                                        (fixture/trials 300)
                                        (prop/for-all [trial a-trial] (holds? trial)))]
        (is pass? (pr-str (select-keys result [:seed :shrunk])))))))

(kernel-test long-or-bigint-numbers
  (testing "returns numbers as Long or BigInt"
    (with-open [m (an-array)
                memory ^Closeable (bpf/memory m)]
      (let [cell (mem/view memory :u64)]
        (is (instance? Long (mem/exchange! cell 18446744073709551615N)))
        (is (= 18446744073709551615N (mem/fetch-add! cell 1)))
        (is (= [0 Long] ((juxt identity class) (mem/get-acquire cell))))))))

(kernel-test path-after-the-view
  (testing "accepts a path after the view"
    (with-open [m (an-array {:value [:struct [:a :u32] [:b [:array :u32 2]]]})]
      (let [v (mem/elements m)]
        (is (= [5 5] [@(mem/add! v [3 :b 1] 5) (mem/get-acquire v [3 :b 1])]))
        (is (= 5 (mem/exchange! v [3 :b 1] 6)))
        (is (true? (mem/compare-and-set! v [3 :b 1] 6 8)))
        (is (= [9 8 11]
               [@(mem/bit-or! v [3 :b 1] 1) @(mem/bit-and! v [3 :b 1] -2)
                @(mem/bit-xor! v [3 :b 1] 3)]))
        (is (= [11 12 13 9 11]
               [(mem/fetch-add! v [3 :b 1] 1) (mem/fetch-or! v [3 :b 1] 1)
                (mem/fetch-and! v [3 :b 1] 9)
                (mem/fetch-xor! v [3 :b 1] 2) @(mem/at v [3 :b 1])]))
        (is (= 11 @(mem/set-release! v [3 :b 1] 11)))
        (is (= {:a 0 :b [0 11]} (m 3)))
        (is (= :out-of-range (:bpfmap/error (error-of (mem/add! v [8 :a] 1)))))
        (mem/close (bpf/memory m))))))

(kernel-test not-atomic-rejected
  (testing "rejects a target that cannot be written in one step"
    (with-open [m (an-array)
                memory ^Closeable (bpf/memory m)]
      (let [other-order (if (Bytes/swapped true) "be" "le")]
        (doseq [[t offset why] [[:u64 4 "it is not aligned to its 8 bytes"]
                                [:u64 9 "it is not aligned to its 8 bytes"]
                                [:u32 2 "it is not aligned to its 4 bytes"]
                                [:s32 5 "it is not aligned to its 4 bytes"]
                                [:u8 0
                                 "atomic operations take integers of 4 or 8 bytes, and it has 1"]
                                [:s16 0
                                 "atomic operations take integers of 4 or 8 bytes, and it has 2"]
                                [:u128 0 "atomic operations take integers of 4 or 8 bytes"]
                                [:f64 0 "atomic operations take integers of 4 or 8 bytes"]
                                [:bool 0 "atomic operations take integers of 4 or 8 bytes"]
                                [[:enum :u32 {:a 1}] 0
                                 "atomic operations take integers of 4 or 8 bytes"]
                                [[:struct [:a :u64]] 0
                                 "atomic operations take a number; name a field or element of it"]
                                [[:array :u64 1] 0
                                 "atomic operations take a number; name a field or element of it"]
                                [(keyword (str "u64" other-order)) 0
                                 "its bytes are not in the order of this processor"]]
                [op f] {:add! #(mem/add! % 1), :get-acquire mem/get-acquire
                        :set-release! #(mem/set-release! % 1)
                        :exchange! #(mem/exchange! % 1)
                        :compare-and-set! #(mem/compare-and-set! % 0 1), :bit-or! #(mem/bit-or! % 1)
                        :bit-and! #(mem/bit-and! % 1)
                        :bit-xor! #(mem/bit-xor! % 1), :fetch-add! #(mem/fetch-add! % 1)
                        :fetch-or! #(mem/fetch-or! % 1)
                        :fetch-and! #(mem/fetch-and! % 1), :fetch-xor! #(mem/fetch-xor! % 1)}]
          (testing [t offset op]
            (let [{:keys [message] :bpfmap/keys [error]
                   found :bpfmap/op} (error-of (f (mem/view memory t offset)))]
              (is (= [:invalid-value op] [error found]))
              (is (str/starts-with? message "Not to be read and written in one step: "))
              (is (str/ends-with? message (str ": " why)))))))
      (testing "bit-fields have no width of their own"
        (is (= :invalid-value
               (:bpfmap/error (error-of (mem/add! (mem/view memory [:struct [:a [:bits :u32 32]]])
                                                  :a 1))))))
      (is
       (=
        "The argument must be a view, got 7: pass a result of view, elements or variables"
        (:message (error-of (mem/add! 7 1)))))
      (is (every? zero? memory)))))

(kernel-test misfits-before-writing
  (testing "rejects numbers that do not fit before writing"
    (with-open [m (an-array)
                memory ^Closeable (bpf/memory m)]
      (are [op t x message] (= [:invalid-value op message]
                               (let [e (error-of ((case op
                                                    :set-release! mem/set-release!
                                                    :exchange! mem/exchange!
                                                    :add! mem/add!, :bit-or! mem/bit-or!
                                                    :compare-and-set! #(mem/compare-and-set!
                                                                        %1 0 %2))
                                                  (mem/view memory t) x))]
                                 [(:bpfmap/error e) (:bpfmap/op e) (:message e)]))
        :set-release! :u64 -1
        "-1 is not a :u64: it must be an integer from 0 to 18446744073709551615"
        :set-release! :u64 18446744073709551616N
        "18446744073709551616 is not a :u64: it must be an integer from 0 to 18446744073709551615"
        :exchange! :u64 -1 "-1 is not a :u64: it must be an integer from 0 to 18446744073709551615"
        :exchange! :u32 4294967296
        "4294967296 is not a :u32: it must be an integer from 0 to 4294967295"
        :compare-and-set! :s32 2147483648
        "2147483648 is not a :s32: it must be an integer from -2147483648 to 2147483647"
        :exchange! :s64 9223372036854775808N
        "9223372036854775808 is not a :s64: it must be an integer from -9223372036854775808 to 9223372036854775807"
        :add! :u64 18446744073709551616N
        "18446744073709551616 is not a :u64: it must be an integer from -9223372036854775808 to 18446744073709551615"
        :add! :u32 4294967296
        "4294967296 is not a :u32: it must be an integer from -2147483648 to 4294967295"
        :add! :u64 1.0
        "1.0 is not a :u64: it must be an integer from -9223372036854775808 to 18446744073709551615"
        :bit-or! :u64 nil
        "nil is not a :u64: it must be an integer from -9223372036854775808 to 18446744073709551615")
      (let [v (mem/view memory [:struct [:value [:array [:struct [:x :u32]] 2]]])]
        (is (= [:value 1 :x] (:bpfmap/path (error-of (mem/exchange! v [:value 1 :x] -1))))))
      (is (every? zero? memory)))))

(kernel-test m3-m5-read-only-or-closed
  (testing "rejects read-only and closed memory"
    (with-open [m (an-array {:contents {0 7} :freeze true})]
      (let [memory (bpf/memory m)
            operations {:add! #(mem/add! % 1), :set-release! #(mem/set-release! % 1)
                        :exchange! #(mem/exchange! % 1)
                        :compare-and-set! #(mem/compare-and-set! % 0 1), :bit-or! #(mem/bit-or! % 1)
                        :bit-and! #(mem/bit-and! % 1)
                        :bit-xor! #(mem/bit-xor! % 1), :fetch-add! #(mem/fetch-add! % 1)
                        :fetch-or! #(mem/fetch-or! % 1)
                        :fetch-and! #(mem/fetch-and! % 1), :fetch-xor! #(mem/fetch-xor! % 1)}
            cells (map #(mem/view memory %) [:u64 :s64 :u32 :s32])]
        (doseq [cell cells]
          (is (= 7 (mem/get-acquire cell)))
          (doseq [[op f] operations]
            (is (= [:read-only op] ((juxt :bpfmap/error :bpfmap/op) (error-of (f cell)))))))
        (mem/close memory)
        (doseq [cell cells
                [op f] (assoc operations :get-acquire mem/get-acquire)]
          (is (= [:closed op] ((juxt :bpfmap/error :bpfmap/op) (error-of (f cell))))))))
    (with-open [m (an-array)]
      (let [memory (bpf/memory m)
            cells (map #(mem/view memory %) [:u64 :s64 :u32 :s32])]
        (mem/close memory)
        (doseq [cell cells
                f [#(mem/add! % 1) mem/get-acquire #(mem/set-release! % 1)
                   #(mem/compare-and-set! % 1 2)]]
          (is (= :closed (:bpfmap/error (error-of (f cell))))))))))

(kernel-test release-and-acquire
  (testing "an acquire sees everything written before the release"
    ;; One thread writes a row of numbers and then, with release, which row it is. Whoever sees
    ;; that number sees all of the row.
    (with-open [m (an-array {:max-entries 65})]
      (let [v (mem/elements m)
            rounds 20000
            [_ seen] (fixture/in-threads
                       2 (fn [i]
                           (if (zero? (long i))
                             (doseq [round (range 1 (inc rounds))]
                               (dotimes [k 8] (mem/write! v (inc k) round))
                               (mem/set-release! v 0 round)
                               (while (not= round (mem/get-acquire v 64)) (Thread/onSpinWait)))
                             (loop [seen (num 0)]
                               (let [round (mem/get-acquire v 0)]
                                 (cond
                                   (= round seen) (do (Thread/onSpinWait) (recur seen))
                                   (not-every?
                                    #(=
                                      round (v (inc %))) (range 8)) [:torn round (mapv v (range 9))]
                                   :else (do (mem/set-release! v 64 round)
                                             (if (= rounds round) :all-seen (recur round)))))))))]
        (is (= :all-seen seen))
        (mem/close (bpf/memory m))))))
