(ns bpfmap.impl.memory.reducing-test
  "Reductions over numbers in memory are those over the same numbers in a vector, whatever kind of
  function reduces."
  (:require [bpfmap.impl.codec.scalar :as scalar]
            [bpfmap.impl.memory.reducing :as reducing]
            [clojure.test :refer [deftest is testing]]
            [clojure.test.check :as check]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (bpfmap.impl.memory.reducing FloatRow IntegerRow)
           (bpfmap.sys Blocks Bytes)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(defn- holds [property]
  (let [{:keys [pass?] :as result} (check/quick-check 100 property)]
    (is pass? (pr-str (select-keys result [:seed :shrunk])))))

(def ^:private widths [1 2 4 8])

(defn- number-of
  "The number that the low bits of a long are, in so many bytes."
  [bits size signed?]
  (let [spare (- 64 (* 8 (long size)))
        shifted (bit-shift-left (long bits) spare)]
    (if signed?
      (bit-shift-right shifted spare)
      (scalar/unsigned (unsigned-bit-shift-right shifted spare)))))

(defn- lay
  "Memory in which numbers lie, given as longs whose low bits count."
  ^MemorySegment [numbers offset stride size swap?]
  (let [memory (MemorySegment/ofArray (byte-array (+ (long offset) (* (long stride) (count numbers))
                                                     8) (repeat (byte 0x55))))]
    (doseq [[i bits] (map-indexed vector numbers)
            :let [at (+ (long offset) (* (long i) (long stride)))]]
      (case (long size)
        1 (Bytes/put8 memory at bits)
        2 (Bytes/put16 memory at bits swap?)
        4 (Bytes/put32 memory at bits swap?)
        8 (Bytes/put64 memory at bits swap?)))
    memory))

(def ^:private layout
  (gen/let [size (gen/elements widths)
            gap (gen/elements [0 0 3 8])
            offset (gen/choose 0 9)
            signed? gen/boolean
            swap? gen/boolean
            n (gen/elements [0 1 2 7 511 512 513 1500])
            bits (gen/vector (gen/one-of [gen/large-integer
                                          (gen/elements [-1 0 1 Long/MAX_VALUE Long/MIN_VALUE])])
                             n)]
    {:size size :stride (+ size gap) :offset offset :signed signed? :swap (and swap? (< 1 size))
     :bits bits}))

(defn- run-of
  "The numbers as reducing takes them, and in a vector."
  [{:keys [size stride offset signed swap bits]}]
  [(IntegerRow. (lay bits offset stride size swap) offset stride size signed swap)
   (mapv #(number-of % size signed) bits)])

(defn- same?
  "Whether both functions return the same, or throw the same."
  [f g]
  (let [outcome (fn [f]
                  (try
                    [:value (f)]
                    (catch ArithmeticException _ [:overflow])
                    (catch IllegalArgumentException e [:refused (ex-message e)])))]
    (= (outcome f) (outcome g))))

(deftest any-function-like-vector
  (testing "reduces with any function as over a vector"
    (holds
     (prop/for-all [layout layout]
                   (let [[numbers expected] (run-of layout)
                         n (count expected)]
                     (every? (fn [[f init]]
                               (same? #(reducing/over-integers numbers f init 0 n)
                                      #(reduce f init expected)))
                             [[conj []]
                              [+ 0] [+ 5] [+ -7] [+ 0N] [+ 0.5] [+ Long/MAX_VALUE]
                              [+' 0]
                              [max 0]
                              [(fn ^long [^long acc ^long x]
                                 (bit-xor (unchecked-multiply 31 acc) x)) 1]
                              [(fn ^long [^long acc ^long x] (+ acc x)) 0]
                              [(fn [acc ^long x] (conj acc x)) []]
                              [(fn [^long acc ^long x] (bit-xor acc x)) 0]
                              [(fn [^long acc ^long x] (if (< 100 x) (reduced acc) (max acc x))) 0]
                              [(fn [acc x] (if (< 20 (count acc)) (reduced acc) (conj acc x))) []]
                              [(fn [acc ^long x]
                                 (if (< 600 (count acc)) (reduced [:stopped acc]) (conj acc x)))
                               []]]))))))

(deftest reduce-part-of-elements
  (testing "reduces a range of the elements"
    (let [[numbers
           expected] (run-of {:size 4 :stride 8 :offset 4 :signed false :swap false
                              :bits (range 2000)})]
      (doseq [[from to] [[0 0] [0 1] [5 5] [511 513] [512 1024] [3 2000]]]
        (is (= (subvec expected from to) (reducing/over-integers numbers conj [] from to)))
        (is (= (reduce + (subvec expected from to))
               (reducing/over-integers numbers + 0 from to)))))))

(deftest sums-beyond-machine-words
  (testing "sums are exact if machine words overflow"
    (testing "unsigned numbers above 2^63-1 are added as they are"
      (let [[numbers] (run-of {:size 8 :stride 8 :offset 0 :signed false :swap false
                               :bits [-1 -1 1]})]
        (is (= 36893488147419103231N (reducing/over-integers numbers + 0 0 3)))))
    (testing "longs that overflow throw, as + does"
      (let [[numbers] (run-of {:size 8 :stride 8 :offset 0 :signed true :swap false
                               :bits [Long/MAX_VALUE 1]})]
        (is (thrown? ArithmeticException (reducing/over-integers numbers + 0 0 2)))
        (is (= 9223372036854775808N (reducing/over-integers numbers + 0N 0 2))))
      (let [[numbers] (run-of {:size 8 :stride 8 :offset 0 :signed true :swap false
                               :bits (repeat 512 (bit-shift-left 1 54))})]
        (is (thrown? ArithmeticException (reducing/over-integers numbers + 0 0 512)))))
    (testing "just below, they do not"
      (let [big (dec (bit-shift-left 1 52))]
        (doseq [x [big (- big)]]
          (let [[numbers] (run-of {:size 8 :stride 8 :offset 0 :signed true :swap false
                                   :bits (repeat 1000 x)})]
            (is (= (* 1000 x) (reducing/over-integers numbers + 0 0 1000)))
            (is (= (+ 7 (* 1000 x)) (reducing/over-integers numbers + 7 0 1000)))))))))

(deftest primitive-overflow
  (testing "a function of longs rejects a number that is not a long"
    (let [[numbers] (run-of {:size 8 :stride 8 :offset 0 :signed false :swap false :bits [1 -1]})]
      (is (thrown-with-msg? IllegalArgumentException #"out of range for long: 18446744073709551615"
                            (reducing/over-integers numbers (fn ^long [^long acc ^long x] (+ acc x))
                                                    0 0 2))))))

(deftest primitive-other-init
  (testing "a function of longs with another init is called as usual"
    (let [[numbers
           expected] (run-of {:size 4 :stride 4 :offset 0 :signed true :swap false
                              :bits (range 10)})
          f (fn ^long [^long acc ^long x] (+ acc x))]
      (is (= (reduce f 1.0 expected) (reducing/over-integers numbers f 1.0 0 10))))))

(deftest floats-like-vector
  (testing "reduces floating-point numbers as over a vector"
    (holds
     (prop/for-all [size (gen/elements [4 8])
                    gap (gen/elements [0 4])
                    swap? gen/boolean
                    n (gen/elements [0 1 3 512 700])
                    seed gen/large-integer]
                   (let [random (java.util.Random. seed)
                         xs (vec (repeatedly n #(double (.nextFloat random))))
                         stride (+ size gap)
                         memory (MemorySegment/ofArray (byte-array (+ 16 (* n stride))))
                         _ (dotimes [i n]
                             (if (= 8 size)
                               (Bytes/putF64 memory (* i stride) (xs i) swap?)
                               (Bytes/putF32 memory (* i stride) (xs i) swap?)))
                         numbers (FloatRow. memory 0 stride size swap?)]
                     (every? (fn [[f init]]
                               (= (reduce f init xs) (reducing/over-floats numbers f init 0 n)))
                             [[conj []] [+ 0.0] [+ 0] [max 0.0]
                              [(fn ^double [^double acc ^double x] (- x acc)) 0.5]
                              [(fn [acc ^double x]
                                 (if (< 5 (count acc)) (reduced acc) (conj acc x))) []]]))))))

(deftest other-elements
  (testing "reads other elements one by one"
    (is (= [0 1 2 3] (reducing/over-elements identity conj [] 0 4)))
    (is (= [0 1]
           (reducing/over-elements identity (fn [acc x] (if (= 2 x) (reduced acc) (conj acc x))) []
                                   0 9)))))

(deftest blocks-read-every-width
  (testing "Blocks reads numbers of every width, sign and order"
    (holds
     (prop/for-all [{:keys [size stride offset signed swap bits] :as layout} layout]
                   (let [[_ expected] (run-of layout)
                         n (count bits)
                         out (long-array (+ n 4) -7)]
                     (Blocks/longs (lay bits offset stride size swap) offset stride size signed swap
                                   out 2 n)
                     (and (= [-7 -7] (take 2 out) (drop (+ 2 n) out))
                          (= expected
                             (map #(if (and (= 8 size) (not signed)) (scalar/unsigned %) %)
                                  (take n (drop 2 out))))))))))

(deftest overflow-detection
  (testing "Blocks detects which numbers add up without overflow"
    (doseq [[sum signed?
             numbers] [[(dec (bit-shift-left 1 52)) true [0 1 -1 (dec (bit-shift-left 1 52)) -7 7]]
                       [(- (bit-shift-left 1 52)) true [(- (bit-shift-left 1 52))]]
                       [Blocks/TOO_LARGE true [(bit-shift-left 1 52)]]
                       [Blocks/TOO_LARGE true [0 0 0 (dec (- (bit-shift-left 1 52)))]]
                       [(+ 6 (bit-shift-left 1 52)) false [0 7 (dec (bit-shift-left 1 52))]]
                       [Blocks/TOO_LARGE false [-1]]
                       [Blocks/TOO_LARGE false [1 2 Long/MIN_VALUE]]
                       [0 true []]]]
      (is (= sum (Blocks/sum (long-array numbers) (count numbers) signed?)) numbers))))

(deftest odd-size-rejected
  (testing "rejects a size that no integer has"
    (is (thrown-with-msg? IllegalArgumentException #"not the size of an integer: 3"
                          (Blocks/longs (MemorySegment/ofArray (byte-array 8)) 0 3 3 false false
                                        (long-array 1) 0 1)))))
