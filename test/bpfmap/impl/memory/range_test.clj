(ns bpfmap.impl.memory.range-test
  "Memory as a byte view: what Clojure's functions make of it, and every way out of range."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :refer [error-of kernel-test]]
            [bpfmap.memory :as mem]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]])
  (:import (java.io Closeable)
           (java.nio ByteOrder ReadOnlyBufferException)))

(set! *warn-on-reflection* true)

(defn- an-array
  "A map of n bytes, a multiple of 8, which are 0, 1, 2 … and begin again after 255."
  (^Closeable [n] (an-array n nil))
  (^Closeable [n change]
   (bpf/create (merge {:name "t_range" :type :array :key :u32 :value [:bytes 8]
                       :max-entries (quot n 8) :flags #{:mmapable}
                       :contents (into {}
                                       (map (fn [i]
                                              [i (mapv #(bit-and 0xff (+ (* 8 i) %)) (range 8))]))
                                       (range (quot n 8)))}
                      change))))

(defn- shown
  "A printed text with N for the map's id."
  [text]
  (str/replace text #"map \d+" "map N"))

(kernel-test memory-as-byte-view
  (testing "memory can be used as a byte view"
    (with-open [m (an-array 512)
                memory ^Closeable (bpf/memory m)]
      (let [expected (mapv #(bit-and 0xff %) (range 512))]
        (is (= 512 (count memory) (mem/size memory)))
        (is (= 255 (nth memory 255) (memory 255) (get memory 255) (apply memory [255])))
        (is (= expected (into [] memory) (vec (seq memory)) (reduce conj [] memory)))
        (is (= (reduce + expected) (reduce + memory) (reduce + 0 memory)
               (transduce (map inc) + -512 memory)))
        (is (= [0 1 2] (reduce (fn [acc x] (if (= 3 x) (reduced acc) (conj acc x))) [] memory)))
        (testing "a missing index has the default if one is given"
          (is (= [:none :none :none nil]
                 [(nth memory 512 :none) (memory -1 :none) (get memory :x :none) (get memory 512)]))
          (is (= :none (apply memory [512 :none]))))
        (testing "it is called as a vector is"
          (is (thrown? clojure.lang.ArityException (apply memory [1 2 3])))
          (is (thrown? clojure.lang.ArityException (apply memory []))))))))

(kernel-test memory-is-an-identity
  (testing "memory is compared by identity and its snapshot by value"
    (with-open [m (an-array 16)
                memory ^Closeable (bpf/memory m)
                other (an-array 16)
                same ^Closeable (bpf/memory other)]
      (is (= memory memory))
      (is (not= memory same))
      (is (= 2 (count (set [memory same memory]))))
      (let [before (mem/snapshot memory)]
        (is (= before (mem/snapshot same) (bytes/->bytes (range 16))))
        (is (= (hash before) (hash (mem/snapshot same))))
        (let [hash-before (hash memory)]
          (mem/fill! memory 7)
          (is (= hash-before (hash memory)))
          (is (= [7 7] (take 2 memory)))
          (is (= before (bytes/->bytes (range 16))) "the snapshot stays"))))))

(kernel-test slice-shares-the-bytes
  (testing "a slice shares the bytes of the memory"
    (with-open [m (an-array 64)
                memory ^Closeable (bpf/memory m)]
      (let [part (mem/slice memory 8 16)
            inner (mem/slice part 4)]
        (is (= (range 8 24) (seq part)))
        (is (= (range 12 24) (seq inner)))
        (is (= [16 12 0] (map mem/size [part inner (mem/slice memory 64)])))
        (is (= [] (into [] (mem/slice memory 64 0))))
        (is (nil? (seq (mem/slice memory 64))))
        (is (= 0 (reduce + (mem/slice memory 64))))
        (mem/fill! inner 255)
        (is (= [11 255 255 24] [(memory 11) (memory 12) (memory 23) (memory 24)]))
        (let [{:keys [message] :bpfmap/keys [error op]} (error-of (mem/close part))]
          (is (= [:not-supported :close] [error op]))
          (is (= (str "A part of the memory of map " (:id (bpf/info m))
                      " (t_range) cannot be closed: "
                      "close the result of (memory m)")
                 message)))
        (mem/close memory)
        (is (mem/closed? part))))))

(kernel-test m2-access-out-of-range
  (testing "every access out of range throws :out-of-range"
    (with-open [m (an-array 64)
                memory ^Closeable (bpf/memory m)]
      (let [far 9223372036854775807
            farther 18446744073709551616N]
        (testing "the last byte is there, and nothing behind it"
          (is (= 63 (memory 63) (nth memory 63)))
          (is (= 56 (first (mem/copy-to memory 56 (byte-array 8)))))
          (is (= 8 (mem/size (mem/slice memory 56 8)))))
        (doseq [[what f] {"nth" #(nth memory 64), "nth below" #(nth memory -1), "call" #(memory 64)
                          "call below" #(memory -1)
                          "call far" #(memory far), "call farther" #(memory farther)
                          "call least" #(memory Long/MIN_VALUE)
                          "slice" #(mem/slice memory 65), "slice below" #(mem/slice memory -1)
                          "slice too long" #(mem/slice memory 57 8)
                          "slice of overflow" #(mem/slice memory far far)
                          "slice of a negative size" #(mem/slice memory 8 -8)
                          "slice far" #(mem/slice memory farther 1)
                          "of a slice" #(nth (mem/slice memory 8 8) 8)
                          "copy-to" #(mem/copy-to memory (byte-array 65))
                          "copy-to behind" #(mem/copy-to memory 57 (long-array 1))
                          "copy-to below" #(mem/copy-to memory -1 (byte-array 1))
                          "copy-to far" #(mem/copy-to memory far (byte-array 1))
                          "copy-from" #(mem/copy-from memory 57 (byte-array 8))
                          "copy-from far" #(mem/copy-from memory farther (byte-array 8))
                          "of the array" #(mem/copy-to memory 0 (byte-array 4) 3 2)
                          "of the array below" #(mem/copy-to memory 0 (byte-array 4) -1 2)
                          "of the array far" #(mem/copy-from
                                               memory 0 (byte-array 4) 3 Integer/MAX_VALUE)
                          "view" #(mem/view memory :u64 57), "view below" #(mem/view memory :u64 -8)
                          "view far" #(mem/view memory :u64 far)
                          "view too large" #(mem/view memory [:array :u64 9])}]
          (testing what
            (is (= [:out-of-range (select-keys (bpf/info m) [:id :name :type])]
                   ((juxt :bpfmap/error :bpfmap/map) (error-of (f)))))))
        (testing "in words"
          (are [message f] (= message (shown (:message (error-of (f)))))
            "The offset of 1 byte in the memory of map N (t_range) must be from 0 to 63, got 64" #(memory 64)
            "The offset of 8 bytes in the memory of map N (t_range) must be from 0 to 56, got 57" #(mem/view memory :u64 57)
            "An access to the memory of map N (t_range) must be of 0 to 64 bytes, got 72" #(mem/view memory [:array :u64 9])
            "An access to the memory of map N (t_range) must be of 0 to 64 bytes, got -8" #(mem/slice memory 8 -8)
            "An array of 4 elements has no 2 from 3" #(mem/copy-to memory 0 (byte-array 4) 3 2)))
        (testing "nothing was written by any of them"
          (is (= (range 64) (seq memory))))))))

(kernel-test bad-arguments
  (testing "rejects invalid arguments"
    (with-open [m (an-array 16)
                memory ^Closeable (bpf/memory m)]
      (are [message f]
           (= [:invalid-value message]
              (let [e (error-of (f))] [(:bpfmap/error e) (shown (:message e))]))
        "An offset or size must be a non-negative integer, got :a" #(memory :a)
        "An offset or size must be a non-negative integer, got 1.5" #(mem/slice memory 1.5)
        "A byte must be an integer from -128 to 255, got 256" #(mem/fill! memory 256)
        "A byte must be an integer from -128 to 255, got \\a" #(mem/fill! memory \a)
        "The array must be of bytes, shorts, ints, longs, floats, doubles or chars, got [1 2]"
        #(mem/copy-to memory [1 2])
        "The argument must be the memory of a map, got 7: pass a result of memory or slice"
        #(mem/snapshot 7)
        "The argument must be the memory of a map, got nil: pass a result of memory or slice"
        #(mem/close nil)))))

(kernel-test primitive-array-copies
  (testing "copies arrays of every primitive type"
    (with-open [m (an-array 64)
                memory ^Closeable (bpf/memory m)]
      (let [little? (= ByteOrder/LITTLE_ENDIAN (ByteOrder/nativeOrder))]
        (is (= [1 2 3] (seq (mem/copy-to memory 1 (byte-array 3)))))
        (when little?
          (is (= [0x0100 0x0302] (map int (mem/copy-to memory (char-array 2)))))
          (is (= [0x0201] (seq (mem/copy-to memory 1 (short-array 1)))))
          (is (= [0x07060504] (seq (mem/copy-to memory 4 (int-array 1)))))
          (is (= [0x0706050403020100 0x0f0e0d0c0b0a0908]
                 (seq (mem/copy-to memory (long-array 2)))))))
      (testing "a part of the array, and the rest stays"
        (is (= [9 0 1 9] (seq (mem/copy-to memory 0 (byte-array [9 9 9 9]) 1 2)))))
      (testing "and the other way round"
        (is (= memory (mem/copy-from memory 8 (double-array [1.5 -2.5]))))
        (is (= [1.5 -2.5] (seq (mem/copy-to memory 8 (double-array 2)))))
        (is (= [0.5]
               (seq (mem/copy-to (mem/copy-from memory 1 (float-array [0.5])) 1 (float-array 1)))))
        (mem/copy-from memory (byte-array [1 2 3 4]))
        (mem/copy-from memory 0 (byte-array [7 8 9]) 1 1)
        (is (= [8 2 3 4] (take 4 memory)))
        (mem/copy-from memory 4 (bpf/->bytes "ff fe"))
        (is (= [255 254] (seq (mem/slice memory 4 2))))))))

(kernel-test byte-buffer-shares-memory
  (testing "a byte buffer has native order and shares the bytes"
    (with-open [m (an-array 64)
                memory ^Closeable (bpf/memory m)]
      (let [buffer (mem/byte-buffer memory)]
        (is (= [64 0 (ByteOrder/nativeOrder) false true]
               [(.capacity buffer) (.position buffer) (.order buffer) (.isReadOnly buffer)
                (.isDirect buffer)]))
        (.putLong buffer 8 77)
        (is (= 77 @(mem/view memory :u64 8)))
        (mem/write! (mem/view memory :u64 8) 78)
        (is (= 78 (.getLong buffer 8)))
        (is (= 8 (.byteSize (mem/segment (mem/slice memory 8 8)))))
        (mem/close memory)
        (is (thrown? IllegalStateException (.getLong buffer 8)))))
    (with-open [m (an-array 64 {:freeze true})
                memory ^Closeable (bpf/memory m)]
      (is (.isReadOnly (mem/byte-buffer memory)))
      (is (.isReadOnly (mem/segment memory)))
      (is (thrown? ReadOnlyBufferException (.put (mem/byte-buffer memory) 0 (byte 1)))))))

(kernel-test printed-place-and-bytes
  (testing "prints the position and the first bytes"
    (with-open [m (an-array 64)
                memory ^Closeable (bpf/memory m)]
      (are [text x] (= text (shown (pr-str x)))
        "#<bpf-memory map N (t_range), 64 bytes at 0: 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f …>" memory
        "#<bpf-memory map N (t_range), 8 bytes at 8 of 64: 08 09 0a 0b 0c 0d 0e 0f>"
        (mem/slice memory 8 8)
        "#<bpf-memory map N (t_range), 1 byte at 63 of 64: 3f>" (mem/slice memory 63)
        "#<bpf-memory map N (t_range), 0 bytes at 64 of 64: >" (mem/slice memory 64))
      (is (= (pr-str memory) (str memory)))
      (testing "as many bytes as *print-length* says"
        (binding [*print-length* 3]
          (is (= "#<bpf-memory map N (t_range), 64 bytes at 0: 00 01 02 …>"
                 (shown (pr-str memory)))))
        (binding [*print-length* 64]
          (is (str/ends-with? (pr-str memory) "3e 3f>"))))
      (mem/close memory)
      (is (= "#<bpf-memory map N (t_range), 64 bytes at 0, closed>" (shown (pr-str memory)))))
    (with-open [m (an-array 16 {:name nil :freeze true})
                memory ^Closeable (bpf/memory m)]
      (is
       (=
        "#<bpf-memory map N, 16 bytes at 0, read-only: 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f>" (shown (pr-str memory)))))))

(kernel-test m5-access-to-closed-memory
  (testing "every access to closed memory throws :closed"
    (with-open [m (an-array 64)]
      (let [memory (bpf/memory m)
            part (mem/slice memory 8 8)
            message (str "The memory of map " (:id (bpf/info m))
                         " (t_range) is closed: it was unmapped before or during this access; "
                         "(memory m) maps it again")]
        (mem/close memory)
        (is (nil? (mem/close memory)) "closing twice is fine")
        (is (mem/closed? memory))
        (doseq [[op f] {:nth #(memory 0), :get #(get memory 0), :reduce #(reduce + 0 memory)
                        :seq #(seq memory)
                        :snapshot #(mem/snapshot memory)
                        :slice #(mem/slice memory 0), :fill! #(mem/fill! memory 0)
                        :copy-to #(mem/copy-to memory (byte-array 1))
                        :copy-from #(mem/copy-from memory (byte-array 1))
                        :byte-buffer #(mem/byte-buffer memory)
                        :view #(mem/view memory :u64 64)}]
          (testing op
            (is (= [:closed op message]
                   ((juxt :bpfmap/error :bpfmap/op :message) (error-of (f)))))))
        (is (= :closed (:bpfmap/error (error-of (part 0)))))
        (testing "what needs no access still answers"
          (is (= [64 8] [(mem/size memory) (count part)]))
          (is (= [:none nil] [(get memory 64 :none) (get memory -1)])))))))

(kernel-test m3-read-only-memory
  (testing "writing to read-only memory reports the reason"
    (with-open [m (an-array 16 {:freeze true})
                memory ^Closeable (bpf/memory m)]
      (is (mem/read-only? memory))
      (doseq [[op f] {:fill! #(mem/fill! memory 0)
                      :copy-from #(mem/copy-from memory (byte-array 1))
                      :output-stream #(mem/output-stream memory)
                      :write! #(mem/write! (mem/view memory :u8) 1)}]
        (testing op
          (is (= [:read-only op
                  (str "The memory of map " (:id (bpf/info m))
                       " (t_range) is mapped read-only: the map is frozen, or "
                       "created :rdonly-prog, or was opened read-only")]
                 ((juxt :bpfmap/error :bpfmap/op :message) (error-of (f)))))))
      (is (= (range 16) (seq memory))))))
