(ns bpfmap.impl.memory.bulk-test
  "Elements of a view to and from primitive arrays."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :refer [error-of kernel-test]]
            [bpfmap.memory :as mem]
            [clojure.test :refer [are is testing]])
  (:import (bpfmap.sys Bytes)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private other-order (if (Bytes/swapped true) "be" "le"))

(kernel-test numbers-to-arrays
  (testing "copies numbers of every type to arrays"
    (with-open [m (bpf/create {:type :array :key :u32 :value [:bytes 64] :max-entries 1
                               :flags #{:mmapable}})
                memory ^Closeable (bpf/memory m)]
      (doseq [[t xs exact as-they-are] [[:u8 [0 1 255] byte-array [0 1 -1]]
                                        [:s8 [0 1 -128] byte-array [0 1 -128]]
                                        [:u16 [0 1 65535] short-array [0 1 -1]]
                                        [:s16 [0 -2 32767] short-array [0 -2 32767]]
                                        [:u32 [0 1 4294967295] int-array [0 1 -1]]
                                        [:s32 [0 -2 5] int-array [0 -2 5]]
                                        [:u64 [0 1 9223372036854775807] long-array
                                         [0 1 9223372036854775807]]
                                        [:s64 [0 -1 7] long-array [0 -1 7]]
                                        [:ktime [1 2 3] long-array [1 2 3]]
                                        [:port [80 443 1] nil nil]
                                        [(keyword (str "u32" other-order)) [0 1 4294967295] nil nil]
                                        [(keyword (str "s64" other-order)) [0 -1 7] nil nil]
                                        [:f32 [0.0 1.5 -2.5] float-array [0.0 1.5 -2.5]]
                                        [:f64 [0.0 1.5 -2.5] double-array [0.0 1.5 -2.5]]
                                        [(keyword (str "f32" other-order)) [0.0 1.5 -2.5] nil nil]]
              stride? [false true]]
        (testing [t stride?]
          (let [v (mem/view memory [:array t 3])
                float? (#{\f} (first (name t)))
                widest (if float? double-array long-array)]
            (mem/fill! memory 0)
            (mem/write! v xs)
            (is (= xs (seq (mem/->array v)) (seq (mem/copy-to v (widest 3)))))
            (is (= [9 9] (map long (take 2 (mem/copy-to v 0 (widest [9 9 9 9 9]) 2 3)))))
            (is (= (subvec xs 1) (seq (mem/copy-to v 1 (widest 2)))))
            (when exact
              (is (= as-they-are (seq (mem/copy-to v (exact 3)))))
              (mem/fill! memory 0)
              (is (identical? v (mem/copy-from v (exact as-they-are))))
              (is (= xs @v))
              (mem/copy-from v 1 (exact (reverse as-they-are)) 0 1)
              (is (= [(first xs) (last xs) (last xs)] @v)))))))))

(kernel-test elements-with-gaps
  (testing "copies elements with gaps to arrays"
    (with-open [m (bpf/create {:type :array :key :u32 :value :u16 :max-entries 1000
                               :flags #{:mmapable}
                               :contents (into {} (map (juxt identity identity)) (range 1000))})
                memory ^Closeable (bpf/memory m)]
      (let [v (mem/elements m)]
        (is (= (range 1000) (seq (mem/->array v)) (seq (mem/copy-to v (short-array 1000)))
               (seq (mem/copy-to v (long-array 1000)))))
        (is (= [500 501] (seq (mem/copy-to v 500 (short-array 2)))))
        (mem/fill! memory 255)
        (mem/copy-from v (short-array 1000))
        (is (every? zero? v))
        (is (= 255 (memory 2) (memory 7)) "what lies between the elements stays")))))

(kernel-test mismatched-arrays
  (testing "rejects arrays that do not match the elements"
    (with-open [m (bpf/create {:name "t_bulk" :type :array :key :u32 :value :u32 :max-entries 8
                               :flags #{:mmapable}})
                memory ^Closeable (bpf/memory m)]
      (let [v (mem/elements m)
            swapped (mem/view memory [:array (keyword (str "u32" other-order)) 2])]
        (are [kind message f] (= [kind message] ((juxt :bpfmap/error :message) (error-of (f))))
          :invalid-value
          "The array must be an int array or a long array, got \"[D\""
          #(mem/copy-to v (double-array 1))
          :invalid-value
          "The array must be an int array or a long array, got \"byte[1]\""
          #(mem/copy-to v (byte-array 1))
          :invalid-value
          "The array must be an int array or a long array, got [1]"
          #(mem/copy-to v [1])
          :invalid-value "The array must be an int array, got \"[J\""
          #(mem/copy-from v (long-array 1))
          :invalid-value "The array must be a long array, got \"[I\""
          #(mem/copy-to swapped (int-array 1))
          :invalid-value
          (str "The elements cannot be copied from an array, got \"[I\": "
               "their byte order is not the processor's; use write!")
          #(mem/copy-from swapped (int-array 1))
          :invalid-value
          "Elements must be integers of up to 8 bytes or floating-point numbers, got type :bool"
          #(mem/copy-to (mem/view memory [:array :bool 2]) (byte-array 2))
          :invalid-value
          "Elements must be integers of up to 8 bytes or floating-point numbers, got type :u128"
          #(mem/->array (mem/view memory [:array :u128 2]))
          :invalid-value "The view must be a view of an array, got 7" #(mem/->array 7)
          :out-of-range "9 elements from 0 of a view of 8" #(mem/copy-to v (int-array 9))
          :out-of-range "1 element from 8 of a view of 8" #(mem/copy-to v 8 (int-array 1))
          :out-of-range "1 element from -1 of a view of 8" #(mem/copy-from v -1 (int-array 1))
          :out-of-range "2 elements from 3 of an array of 4" #(mem/copy-to v 0 (int-array 4) 3 2)
          :out-of-range "1 element from 9223372036854775808 of a view of 8"
          #(mem/copy-to v 9223372036854775808N (int-array 1)))
        (is (= 0 (count (mem/copy-to v 8 (int-array 0)))) "nothing at the very end is fine")))))

(kernel-test m3-m5-read-only-or-closed
  (testing "rejects read-only and closed memory"
    (with-open [m (bpf/create {:type :array :key :u32 :value :u32 :max-entries 8 :flags #{:mmapable}
                               :freeze true})]
      (let [v (mem/elements m)]
        (is (= [:read-only :copy-from]
               ((juxt :bpfmap/error :bpfmap/op) (error-of (mem/copy-from v (int-array 1))))))
        (mem/close (bpf/memory m))
        (is (= [:closed :copy-from]
               ((juxt :bpfmap/error :bpfmap/op) (error-of (mem/copy-from v (int-array 1))))))
        (is (= [:closed :copy-to]
               ((juxt :bpfmap/error :bpfmap/op) (error-of (mem/copy-to v (int-array 1))))))))))
