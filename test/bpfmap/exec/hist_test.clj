(ns bpfmap.exec.hist-test
  "Histograms: of slots as each family of tools numbers them, and of the values of fields."
  (:require [bpfmap.cli.calling :refer [bpfmap id-of lines-of refused]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.hist :as hist]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(deftest slot-ranges-by-tool
  (testing "each slot has the range of the tool that filled it"
    (are [way slot ends] (= ends ((hist/slot-ends way) slot))
      :log2 0 [0 1]
      :log2 1 [2 3]
      :log2 10 [1024 2047]
      :log2 63 [9223372036854775808N 18446744073709551615N]
      :log2 -1 nil
      :log2 1000 nil
      :bcc 1 [0 1]
      :bcc 2 [2 3]
      :bcc 11 [1024 2047]
      :bpftrace 0 [nil -1]
      :bpftrace 1 [0 0]
      :bpftrace 2 [1 1]
      :bpftrace 3 [2 3]
      :bpftrace 12 [1024 2047])))

(defspec slots-without-gaps 100
  (prop/for-all [n (gen/choose 1 120)
                 way (gen/elements [:log2 :bcc])]
                (let [[_ to] ((hist/slot-ends way) n)
                      [from _] ((hist/slot-ends way) (inc n))]
                  (= (inc (bigint to)) from))))

(defn- map-of ^Closeable [key value contents]
  (bpf/create {:name "hist" :type :hash :key key :value value :max-entries 64 :contents contents}))

(defn- buckets [{:keys [buckets]}]
  (mapv (juxt :from :to :count) buckets))

(kernel-test slot-array-per-entry
  (testing "an array of slots in a value is one histogram per entry"
    (with-open [m (map-of :u32 [:struct [:slots [:array :u32 8]] [:comm [:string 16]]]
                          {1 {:slots [0 0 3 0 9 0 0 0] :comm "a"}
                           2 {:slots [0 0 0 0 0 0 0 0] :comm "b"}
                           0 {:slots [1 0 0 0 0 0 0 0] :comm "c"}})]
      (let [[one two :as all] (exec/hist {:ref (id-of m)})]
        (is (= [0 1] (map :title all)) "empty ones are left out")
        (is (= [[0 1 1]] (buckets one)))
        (is (= [[4 7 3] [8 15 0] [16 31 9]] (buckets two))
            "empty buckets are shown in gaps, and not at the ends")
        (is (= 12 (:total two))))
      (is (= [[20 29 3] [30 39 0] [40 49 9]]
             (buckets (second (exec/hist {:ref (id-of m) :linear 10})))))
      (is (= [[2 3 3] [4 7 0] [8 15 9]]
             (buckets (second (exec/hist {:ref (id-of m) :slots :bcc}))))))))

(kernel-test keys-are-slots
  (testing "keys that are slots form one histogram"
    (with-open [m ^Closeable (bpf/create {:type :percpu-hash :key :u64 :value :u64
                                          :max-entries 64})]
      (doseq [[slot n] {1 5, 3 7}] (bpf/put! m slot n {:cpus :all}))
      (let [cpus (count (bpf/lookup m 1))]
        (is (= [[0 0 (* 5 cpus)] [1 1 0] [2 3 (* 7 cpus)]]
               (buckets (first (exec/hist {:ref (id-of m) :slots "bpftrace"})))))
        (is (= [[0 9 5] [10 19 0] [20 29 7]]
               (buckets (first (exec/hist {:ref (id-of m) :slots 'bpftrace :linear 10
                                           :cpus 0})))))))))

(kernel-test histograms-of-bpftrace
  (testing "the end of a key of bpftrace is the slot, and the rest is the field arg"
    (let [bytes-of (fn [& numbers]
                     (vec (mapcat (fn [n] (cons n (repeat 7 0))) numbers)))
          untyped (fn [key-size contents]
                    (bpf/create {:name "AT_hist" :type :hash :key-size key-size :value-size 8
                                 :max-entries 8 :contents contents}))
          hist (fn [m options]
                 (map (juxt :title buckets) (exec/hist (merge {:ref (id-of m)} options))))]
      (with-open [m ^Closeable (untyped 16 {(bytes-of 39 3) (bytes-of 5)
                                            (bytes-of 39 2) (bytes-of 1)
                                            (bytes-of 0 1) (bytes-of 2)})
                  text ^Closeable (untyped 24 {(bytes-of 0x61 0 4) (bytes-of 9)})
                  plain ^Closeable (untyped 8 {(bytes-of 3) (bytes-of 5)})]
        (is (= [[{:arg 0} [[0 0 2]]] [{:arg 39} [[1 1 1] [2 3 5]]]] (hist m {:slots :bpftrace})))
        (is (= [[{:arg 39} [[1 1 1] [2 3 5]]]]
               (hist m {:types "bpftrace" :where "arg=39"})))
        (is (= ["{:arg \"getpid\"}"]
               (filter #(str/starts-with? % "{")
                       (lines-of "hist" (id-of m) "--slots" "bpftrace" "--as" "arg=syscall"
                                 "--where" "arg=39"))))
        (is (= [[[4 7 9]]] (map second (hist text {:types "bpftrace"}))))
        (is (= [[nil [[2 3 5]]]] (hist plain {:types "bpftrace"})))
        (testing "any other map needs its types"
          (is (str/includes? (second (refused "hist" (id-of m))) "has no buckets")))))))

(kernel-test slot-field-of-key
  (testing "a key field is the slot and the other fields separate the histograms"
    (with-open [m (map-of [:struct [:comm [:string 8]] [:slot :u64]] :u64
                          {{:comm "b" :slot 2} 4, {:comm "a" :slot 1} 2, {:comm "a" :slot 3} 1})]
      (let [found (exec/hist {:ref (id-of m) :bucket "slot"})]
        (is (= [{:comm "a"} {:comm "b"}] (map :title found)))
        (is (= [[2 3 2] [4 7 0] [8 15 1]] (buckets (first found)))))
      (is (= [{:comm "b"}]
             (map :title (exec/hist {:ref (id-of m) :bucket "key.slot" :where "comm=b"})))))))

(kernel-test several-arrays
  (testing "a value with several arrays requires the name of one"
    (with-open [m (map-of :u32
                          [:struct [:a [:array :u32 3]]
                           [:b [:array [:struct [:n [:array :u64 2]]] 2]]]
                          {1 {:a [0 2 0] :b [{:n [5 0]} {:n [0 6]}]}})]
      (is (= [[2 3 2]] (buckets (first (exec/hist {:ref (id-of m)}))))
          "of one only array of integers it is that")
      (is (= [[2 3 6]] (buckets (first (exec/hist {:ref (id-of m) :bucket "b.1.n"})))))
      (is (= [[0 1 5]] (buckets (first (exec/hist {:ref (id-of m) :bucket "value.b.0.n"}))))))))

(kernel-test values-of-a-field
  (testing "counts the values of a field"
    (with-open [m (map-of :u32 [:struct [:bytes :u64] [:delta :s32]]
                          (into {} (for [i (range 10)] [i {:bytes (* i 100) :delta (- i 2)}])))]
      (is (= [[0 1 1] [2 3 0] [4 7 0] [8 15 0] [16 31 0] [32 63 0] [64 127 1] [128 255 1]
              [256 511 3] [512 1023 4]]
             (buckets (first (exec/hist {:ref (id-of m) :field :bytes})))))
      (is (= [[nil -1 2] [0 1 2] [2 3 2] [4 7 4]]
             (buckets (first (exec/hist {:ref (id-of m) :field "value.delta"})))))
      (is (= [[-5 -1 2] [0 4 5] [5 9 3]]
             (buckets (first (exec/hist {:ref (id-of m) :field "delta" :linear 5})))))
      (is (= [[0 7 8] [8 15 2]]
             (buckets (first (exec/hist {:ref (id-of m) :field "key" :linear 8}))))))))

(kernel-test drawn-like-bpf-tools
  (testing "draws a histogram in the style of the BPF tools"
    (with-open [m (map-of :u32 [:array :u64 16] {7 [0 0 1 10 40 0 0 0 0 0 0 0 0 0 0 0]})]
      (is (= ["7"
              "     usecs       : count distribution"
              "     4 -> 7      : 1     |*                                       |"
              "     8 -> 15     : 10    |**********                              |"
              "    16 -> 31     : 40    |****************************************|"]
             (lines-of "hist" (id-of m) "--unit" "usecs")))
      (is (= ["title,from,to,count" "7,4,7,1" "7,8,15,10" "7,16,31,40"]
             (lines-of "hist" (id-of m) "--csv"))))))

(kernel-test large-numbers-aligned
  (testing "large numbers stay aligned and exact"
    (with-open [m (map-of :u32 [:array :u64 64]
                          {1 (into (vec (repeat 63 0)) [18446744073709551615N])})]
      (let [[_ heading line] (lines-of "hist" (id-of m))]
        (is (= (str/index-of heading ":") (str/index-of line ":")))
        (is (str/includes? line
                           "9223372036854775808 -> 18446744073709551615 : 18446744073709551615 |***"))))))

(kernel-test nothing-counted-yet
  (testing "reports if nothing has been counted"
    (with-open [m (map-of :u32 :u64 {})]
      (is (= {:exit 0 :out "" :err "no counts yet\n"} (bpfmap "hist" (id-of m)))))))

(kernel-test map-without-buckets
  (testing "a map without buckets is an error with a hint"
    (with-open [m (map-of [:bytes 4] :u64 {[1 2 3 4] 1})
                names (map-of :u32 [:string 4] {1 "a"})
                wide (map-of :u32 :u64 {0 1, 4000000000 1})
                slots (map-of :u32 :u64 {500 1})]
      (are [args pattern] (let [[exit line] (apply refused "hist" args)]
                            (is (= 2 exit))
                            (is (re-find pattern line)))
        [(id-of m)] #"has no buckets according to its types: select the buckets with --bucket,"
        [(id-of names)] #"are not counts: use --field"
        [(id-of names) "--field" "value"] #"The field value must hold integers, got \"a\""
        [(id-of names) "--field" "foo"] #"Unknown field foo"
        [(id-of wide) "--linear" "1"] #"there would be 4000000001 lines: use a larger step"
        [(id-of slots)] #"500 is not a slot of a log2 histogram"
        [(id-of wide) "--linear" "0"] #"--linear must be a positive integer, got \"0\""
        [(id-of wide) "--linear" "5" "--slots" "log2"]
        #"--linear cannot be combined with --slots log2"
        [(id-of wide) "--field" "key" "--slots" "bcc"]
        #"--field cannot be combined with --bucket or --slots"
        [(id-of wide) "--slots" "x"] #"--slots must be log2, bcc or bpftrace, got \"x\""))))
