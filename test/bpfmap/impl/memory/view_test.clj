(ns bpfmap.impl.memory.view-test
  "Views read what a lookup reads and write what a put! writes, for every type; and say what does
  not fit before they write."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.memory :as mem]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.core.reducers :as reducers]
            [clojure.pprint :as pprint]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]]
            [clojure.test.check :as check]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn- an-array ^Closeable [value n change]
  (bpf/create (merge {:name "t_view" :type :array :key :u32 :value value :max-entries n
                      :flags #{:mmapable}} change)))

(defn- shown [text]
  (str/replace text #"map \d+" "map N"))

;; --- every type

(def ^:private a-value-type
  "A type that a map's value can have, with two of its values."
  (gen/such-that some?
                 (gen/bind types/a-type
                           (fn [t]
                             (if (pos? (long (type/size t)))
                               (gen/fmap #(cons t %) (gen/vector (type/->generator t) 2))
                               (gen/return nil))))
                 100))

(defn- leaves
  "The paths to everything in a value of maps and vectors that is neither."
  [x path]
  (cond
    (= #{:prefixlen :data} (when (map? x) (set (keys x)))) [path] ; how an odd prefix reads
    (map? x) (mapcat (fn [[k v]] (leaves v (conj path k))) (dissoc x :bpfmap/padding)) ; no field
    (vector? x) (mapcat (fn [i v] (leaves v (conj path i))) (range) x)
    :else [path]))

(defn- same?
  "Whether values are equal as they print: unlike for =, a NaN is equal to itself."
  [& xs]
  (apply = (map pr-str xs)))

(defn- agrees?
  "Whether views of a map's memory and the map's own operations come to the same for two values."
  [[t a b]]
  (with-open [m (an-array t 3 nil)
              memory ^Closeable (bpf/memory m)]
    (let [elements (mem/elements m)
          alone #(mem/view memory t (* % (quot (+ 7 (type/size t)) 8) 8))]
      (bpf/put! m 0 a)
      (mem/write! elements 1 a)
      (mem/write! (alone 2) b)
      (let [[a b] [(m 0) (m 2)]] ; as they are read, which may say more than was written
        (and (same? a (m 1) (nth elements 0) (nth elements 1) @(mem/at elements 1) @(alone 0)
                    @(alone 1))
             (same? b (nth elements 2) @(alone 2))
             (same? [a a b] (vec elements) @elements (reduce conj [] elements) (vec (seq elements)))
             ;; Fields and elements one by one.
             (every? (fn [path]
                       (same? (get-in b path) @(mem/at elements (into [2] path))
                              (get-in elements (into [2] path))))
                     (leaves b []))
             (do (mem/write! elements [b a b])
                 (same? [b a b] (mapv m (range 3)))))))))

(kernel-test m1-views-agree-with-lookups
  (testing "views of any type agree with the operations of the map"
    (let
     [{:keys [pass?] :as result} (check/quick-check (fixture/trials 150)
                                                    (prop/for-all [x a-value-type] (agrees? x))
                                                    :max-size 60)]
      (is pass? (pr-str (select-keys result [:seed :shrunk]))))))

;; --- arrays

(kernel-test m8-element-strides
  (testing "elements have a stride of a multiple of 8 bytes"
    (doseq [[t stride] [[:u8 8] [:u16 8] [:u32 8] [:u64 8] [[:bytes 9] 16]
                        [[:struct [:a :u64] [:b :u32]] 16] [[:array :u8 17] 24]]]
      (testing t
        (with-open [m (an-array t 5 nil)
                    memory ^Closeable (bpf/memory m)]
          (is (= (* 5 stride) (mem/size memory) (mem/size (mem/elements m))))
          (is (= 5 (count (mem/elements m))))
          (mem/fill! (mem/slice memory (* 3 stride) (type/size t)) 255)
          (let [empty-value (m 0)]
            (is (= [true true false true] (map #(= empty-value (m %)) [1 2 3 4])))
            (is (= (m 3) (nth (mem/elements m) 3)))))))))

(kernel-test array-view-folds
  (testing "a view of an array is indexed, reducible and foldable"
    (with-open [m (an-array :u32 5000
                            {:contents (into {} (map (juxt identity #(* 3 %))) (range 5000))})]
      (let [v (mem/elements m)
            expected (mapv #(* 3 %) (range 5000))]
        (is (= [3 3 3 :none nil :none]
               [(nth v 1) (v 1) (get v 1) (v 5000 :none) (get v -1) (nth v 5000 :none)]))
        (is (= [3 :none] [(apply v [1]) (apply v [:x :none])]))
        (is (thrown? clojure.lang.ArityException (apply v [1 2 3])))
        (is (= expected (into [] v) (vec (seq v)) @v))
        (is (= (reduce + expected) (reduce + v) (reduce + 0 v) (reducers/fold + v)
               (reducers/fold 64 + + v)))
        (is (= (frequencies expected)
               (reducers/fold 100 (reducers/monoid (partial merge-with +) hash-map)
                              (fn [acc x] (update acc x (fnil inc 0))) v)))
        (is (= 3 (transduce (comp (filter odd?) (take 1)) + 0 v)))
        (testing "a fold that throws throws"
          (let [f (fn ([] 0) ([_ x] (if (= 9000 x) (throw (IllegalStateException. "enough")) 0)))]
            (is (thrown-with-msg? IllegalStateException #"enough" (reducers/fold 64 + f v)))))
        (testing "one with no elements"
          (let [none (mem/view (bpf/memory m) [:array :u64 0] 8)]
            (is (= [0 0 [] nil 0]
                   [(count none) (reduce + none) @none (seq none) (reducers/fold + none)]))
            (is (re-find #"it has no elements" (:message (error-of (nth none 0)))))))
        (mem/close (bpf/memory m))))))

(kernel-test struct-view-by-field
  (testing "a view of a struct is looked up by field"
    (with-open [m (an-array [:struct [:a :u32] [nil [:union [:n :u32] [:half [:array :u16 2]]]]
                             [:low [:bits :u8 3]] [:high [:bits :u8 5]]
                             [:inner [:struct [:x :s16] [:label [:string 6]]]]]
                            2 nil)
                memory ^Closeable (bpf/memory m)]
      (let [v (mem/at (mem/elements m) 1)]
        (bpf/put! m 1 {:a 1 :n 0x20003 :low 5 :high 20 :inner {:x -4 :label "five"}})
        (is (= [1 [3 2] 5 20 -4] [(:a v) (:half v) (:low v) (:high v) (get-in v [:inner :x])]))
        (is (= [1 :none nil :none] [(v :a) (v :b :none) (:b v) (get v 0 :none)]))
        (is (= [1 :none] [(apply v [:a]) (apply v [:b :none])]))
        (is (= (m 1) @v))
        (testing "and written by field, whatever lies beside it"
          (mem/write! v :high 31)
          (mem/write! v [:half 1] 9)
          (mem/write! v [:inner :label] "six")
          (mem/write! (mem/at v :low) 0)
          (is (= {:a 1 :n 0x90003 :half [3 9] :low 0 :high 31 :inner {:x -4 :label "six"}} (m 1))))
        (testing "the other element stays"
          (is (= 0 (:a (m 0)) (:high (m 0)))))))))

;; --- what does not fit

(kernel-test misfit-writes-nothing
  (testing "writes nothing if the value does not fit"
    (with-open [m (an-array [:struct [:a :u8] [:b [:array :u16 2]] [:c [:c-string 4]]] 3
                            {:contents {1 {:a 1 :b [2 3] :c "abc"}}})]
      (let [v (mem/elements m)
            id (:id (bpf/info m))
            before (mapv m (range 3))]
        (are [path message f]
             (= [:invalid-value :write! path message {:id id :name "t_view" :type :array}]
                ((juxt :bpfmap/error :bpfmap/op :bpfmap/path :message :bpfmap/map) (error-of (f))))
          [1 :a] "[1 :a]: 256 is not a :u8: it must be an integer from 0 to 255"
          #(mem/write! v [1 :a] 256)
          [1 :b 1] "[1 :b 1]: -1 is not a :u16: it must be an integer from 0 to 65535"
          #(mem/write! v 1 {:a 9 :b [9 -1] :c ""})
          [1 :b 1] "[1 :b 1]: -1 is not a :u16: it must be an integer from 0 to 65535"
          #(mem/write! v [1 :b] [9 -1])
          [1 :b 0] "[1 :b 0]: :x is not a :u16: it must be an integer from 0 to 65535"
          #(mem/write! (mem/at v 1) [:b 0] :x)
          [1 :c] "[1 :c]: the field :c is missing: every field is required"
          #(mem/write! v 1 {:a 9 :b [9 9]})
          [1 :c]
          "[1 :c]: \"abcd\" is not a [:c-string 4]: it must be a string of up to 3 bytes in UTF-8, got 4" #(mem/write! v [1 :c] "abcd")
          [2 :a] "[2 :a]: 300 is not a :u8: it must be an integer from 0 to 255"
          #(mem/write! v [{:a 9 :b [9 9] :c ""} {:a 9 :b [9 9] :c ""} {:a 300 :b [9 9] :c ""}]))
        (is (re-find #"it must be a sequence of 3 elements"
                     (:message (error-of (mem/write! v [1 2])))))
        (is (= before (mapv m (range 3))))
        (mem/close (bpf/memory m))))))

(kernel-test path-leading-nowhere
  (testing "a path that leads nowhere reports where it ends"
    (with-open [m (an-array [:struct [:a :u8] [:b [:array :u16 2]]] 3 nil)]
      (let [v (mem/elements m)]
        (are [kind message f]
             (= [kind message] (let [e (error-of (f))] [(:bpfmap/error e) (shown (:message e))]))
          :out-of-range
          "No element 3 of [:array {:a :b} 3] in the memory of map N (t_view): elements are 0 to 2"
          #(mem/at v 3)
          :out-of-range
          "No element 2 of [:array :u16 2] in the memory of map N (t_view): elements are 0 to 1"
          #(mem/at v [0 :b 2])
          :out-of-range
          "No element -1 of [:array :u16 2] in the memory of map N (t_view): elements are 0 to 1"
          #(nth (mem/at v [0 :b]) -1)
          :out-of-range
          "No element 18446744073709551616 of [:array :u16 2] in the memory of map N (t_view): elements are 0 to 1"
          #((mem/at v [0 :b]) 18446744073709551616N)
          :invalid-value
          "No element :a of [:array :u16 2] in the memory of map N (t_view): use the index of an element"
          #(mem/write! v [0 :b :a] 1)
          :invalid-value
          "No field :c of {:a :b} in the memory of map N (t_view): use :a or :b"
          #(mem/write! v [0 :c] 1)
          :invalid-value
          "No part :x of :u8 in the memory of map N (t_view): it has no parts"
          #(mem/at v [0 :a :x])
          :invalid-value
          "The argument must be a view, got 7: pass a result of view, elements or variables"
          #(mem/at 7 0)
          :invalid-value
          "The argument must be a view, got 7: pass a result of view, elements or variables"
          #(mem/write! 7 0)
          :invalid-spec
          (str
           "[]: a type must be a keyword such as :u32 or a vector that starts with a keyword "
           "such as :struct, got 7; see bpfmap.type for all types")
          #(mem/view (bpf/memory m) 7))
        (mem/close (bpf/memory m))))))

(kernel-test kernel-fields
  (testing "rejects writes to fields of the kernel"
    (with-open [m (an-array [:bytes 16] 1 nil)
                memory ^Closeable (bpf/memory m)]
      (let [v (mem/view memory
                        [:struct [:lock :spin-lock] [:n :u32]
                         [:timers [:array [:struct [:t :task-work]] 1]]])]
        (mem/fill! memory 1)
        (testing "a Java method of the same name is not a field"
          (is (= {:n 0x01010101 :timers [{:bpfmap/padding (bpf/->bytes (repeat 8 1))}]
                  :bpfmap/padding (bpf/->bytes [1 1 1 1])} @v)))
        (mem/write! v :n 7)
        (let [{:keys [message] :bpfmap/keys [error]} (error-of (mem/write! v {:n 8 :timers [{}]}))]
          (is (= :invalid-value error))
          (is
           (=
            (str
             "A {:lock :n :timers} must not be written as a whole: the kernel has a private part "
             "in it, such as a spin lock; write its other fields one by one")
            message)))
        (is (= [1 1 1 1 7 0 0 0 1] (take 9 memory)))))))

(kernel-test named-types-in-views
  (testing "a view accepts named types"
    (with-open [m (an-array [:bytes 16] 1 nil)
                memory ^Closeable (bpf/memory m)]
      (let [v (mem/view memory [:array :pair 2] 0 {:pair [:struct [:x :u32] [:y :u32]]})]
        (mem/write! v [1 :y] 7)
        (is (= [{:x 0 :y 0} {:x 0 :y 7}] @v)))
      (is (= :invalid-spec (:bpfmap/error (error-of (mem/view memory :pair))))))))

;; --- for people

(kernel-test printed-content-and-place
  (testing "prints the content and position of a view"
    (with-open [m (an-array [:struct {:name "flow"} [:a :u8] [:b [:array :u16 2]]] 100 nil)]
      (let [memory (bpf/memory m)
            v (mem/elements m)]
        (mem/write! v [1 :a] 7)
        (are [text x] (= text (shown (pr-str x)))
          (str
           "#<bpf-view [:array struct flow 100] at 0 of map N (t_view): [{:a 0, :b [0 0]} {:a 7, "
           ":b [0 0]}"
           (str/join (repeat 6 " {:a 0, :b [0 0]}")) " …]>")
          v
          "#<bpf-view struct flow at 8 of map N (t_view): {:a 7, :b [0 0]}>" (mem/at v 1)
          "#<bpf-view :u8 at 8 of map N (t_view): 7>" (mem/at v [1 :a])
          "#<bpf-view [:array :u16 2] at 10 of map N (t_view): [0 0]>" (mem/at v [1 :b])
          "#<bpf-view [:array [:bytes 600] 1] at 0 of map N (t_view)>"
          (mem/view memory [:array [:bytes 600] 1])
          "#<bpf-view [:bytes 600] at 8 of map N (t_view)>" (mem/view memory [:bytes 600] 8)
          "#<bpf-view [:array [:bytes 40] 9] at 0 of map N (t_view): [#bpfmap/bytes \"00 00 00 00 00 00 00 00 07 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00\" …]>"
          (mem/view memory [:array [:bytes 40] 9]))
        (mem/close memory)
        (is (= "#<bpf-view :u8 at 8 of map N (t_view), closed>"
               (shown (pr-str (mem/at v [1 :a])))))))))

(kernel-test pretty-printed-views
  (testing "pretty-prints a view as it prints"
    (with-open [m (an-array :u32 100 {:contents {1 7}})
                memory ^Closeable (bpf/memory m)]
      (let [pretty #(str/trim (with-out-str (pprint/pprint %)))
            v (mem/elements m)]
        (doseq [x [memory v (mem/at v 1) (mem/view memory [:struct [:a :u64] [:b :u32]])]]
          (is (= (pr-str x) (pretty x))))))))

(kernel-test m3-m5-read-only-or-closed
  (testing "views reject read-only and closed memory"
    (with-open [m (an-array :u32 4 {:contents {1 7} :freeze true})]
      (let [memory (bpf/memory m)
            v (mem/elements m)
            cell (mem/at v 1)
            pair (mem/view memory [:struct [:a :u64] [:b :u32]])]
        (is (= [7 7 [0 7 0 0]] [(v 1) @cell @v]))
        (is (= [:read-only :write!]
               ((juxt :bpfmap/error :bpfmap/op) (error-of (mem/write! v 1 8)))))
        (is (str/includes? (pr-str cell) ", read-only: 7>"))
        (mem/close memory)
        (doseq [[what f] {"nth" #(nth v 0), "get" #(get v 0), "reduce" #(reduce + 0 v)
                          "fold" #(reducers/fold + v), "seq" #(seq v), "deref" #(deref v)
                          "cell" #(deref cell), "struct" #(deref pair), "field" #(:a pair)
                          "write!" #(mem/write! v 1 8)}]
          (testing what
            (is (= :closed (:bpfmap/error (error-of (f)))))))))))
