(ns bpfmap.impl.btf.writer-test
  "Writing BTF: the result is read by bpfmap, by bpftool and by the kernel."
  (:require [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.samples :as samples :refer [big every-kind little]]
            [bpfmap.impl.btf.writer :as writer]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.lang.foreign Arena MemorySegment ValueLayout)
           (java.nio ByteOrder)
           (java.util HexFormat)))

(set! *warn-on-reflection* true)

(deftest bytes-of-the-format
  (testing "writes the bytes of the BTF format"
    (let [hex (fn [options] (.formatHex (HexFormat/of)
                                        (writer/blob [{:kind :int :name "int" :size 4 :bits 32
                                                       :signed true}
                                                      {:kind :ptr :type 1}]
                                                     options)))]
      (is (= (str "9feb0100" "18000000" "00000000" "1c000000" "1c000000" "05000000"
                  "01000000" "00000001" "04000000" "20000001"
                  "00000000" "00000002" "01000000"
                  "00696e7400")
             (hex little)))
      (is (= (str "eb9f0100" "00000018" "00000000" "0000001c" "0000001c" "00000005"
                  "00000001" "01000000" "00000004" "01000020"
                  "00000000" "02000000" "00000001"
                  "00696e7400")
             (hex big)))
      (is (= (hex nil) (hex {:byte-order (ByteOrder/nativeOrder)})))
      (is (= [57 24 28 5]
             (let [n (count (writer/blob [{:kind :int :name "int" :size 4 :bits 32 :signed true}
                                          {:kind :ptr :type 1}]))]
               [n 24 28 (- n 24 28)]))))))

(deftest every-kind-reads-back
  (testing "records of every kind can be read back"
    (doseq [order [little big] records [every-kind (samples/numbered samples/attributes) []]]
      (is (= records (samples/all-records (blob/parse (writer/blob records order))))))))

(defspec random-records 300
  (prop/for-all [records (samples/gen-records 40)
                 order (gen/elements [little big])]
                (= records (samples/all-records (blob/parse (writer/blob records order))))))

(defspec random-split-records 150
  (prop/for-all [[records added] (gen/let [records (samples/gen-records 15)
                                           added (samples/gen-records 15 (count records))]
                                   [records added])
                 order (gen/elements [little big])]
                (let [base (blob/parse (writer/blob records order))
                      b (blob/parse (writer/blob added (assoc order :base base)) base)]
                  (and (= added (samples/all-records b))
                       (= records (map #(blob/record b %) (range 1 (inc (count records)))))
                       (every? (fn [{:keys [id name]}]
                                 (or (nil? name) (some #{id} (blob/ids-named b name))))
                               (concat records added))))))

(defspec names-find-their-types 150
  (prop/for-all [records (samples/gen-records 40)]
                (let [b (blob/parse (writer/blob records))]
                  (every? (fn [[name of-name]] (= (mapv :id of-name) (blob/ids-named b name)))
                          (dissoc (group-by :name records) nil)))))

(deftest name-is-written-once
  (testing "writes a name once"
    (is (= (+ 24 36 1 5)
           (count (writer/blob [{:kind :fwd :name "same"} {:kind :fwd :name "same"}
                                {:kind :fwd :name ""}]))))))

(deftest default-fields-omitted
  (testing "fields with default values can be omitted"
    (is (= [{:id 1 :kind :int :size 4 :bits 32 :offset 0 :signed false :char false :bool false}
            {:id 2 :kind :struct :size 4 :members [{:type 1 :bit-offset 0 :bits 0}]}
            {:id 3 :kind :struct :size 0 :members []}
            {:id 4 :kind :enum :size 4 :signed false :values [[nil 1]]}
            {:id 5 :kind :fwd :union false}
            {:id 6 :kind :func-proto :return 0 :params []}
            {:id 7 :kind :func :type 6 :linkage :static}]
           (samples/all-records
            (blob/parse (writer/blob [{:id 99 :kind :int :size 4 :bits 32}
                                      {:kind :struct :size 4 :members '({:type 1 :bit-offset 0})}
                                      {:kind :struct :size 0}
                                      {:kind :enum :size 4 :values [["" 1]]}
                                      {:kind :fwd :name nil}
                                      {:kind :func-proto :return 0 :params ()}
                                      {:kind :func :type 6 :linkage 0}])))))
    (is (= 0 (blob/type-count (blob/parse (writer/blob nil)))))))

(deftest bit-field-flag
  (testing "sets the bit-field flag only if there are bit fields"
    (let [flag (fn [members]
                 (bit-test (aget (writer/blob [{:kind :struct :size 8 :members members}] little) 31)
                   7))]
      (is (false? (flag [{:type 0 :bit-offset 0xffffffff}])))
      (is (true? (flag [{:type 0 :bit-offset 0} {:type 0 :bit-offset 8 :bits 1}]))))))

(deftest split-records
  (testing "records of a split blob can be written as a split blob"
    (let [base (blob/parse (writer/blob every-kind))
          n (count every-kind)
          shifted [{:id (+ 1 n) :kind :ptr :type 1} {:id (+ 2 n) :kind :const :type (+ 1 n)}]]
      (is (= shifted (samples/all-records (blob/parse (writer/blob shifted {:base base}) base)))))))

;; ---------------------------------------------------------------- what cannot be written

(def ^:private kinds-listed
  (str
   "must be :int, :ptr, :array, :struct, :union, :enum, :fwd, :typedef, :volatile, :const, "
   ":restrict, :func, "
   ":func-proto, :var, :datasec, :float, :decl-tag, :type-tag or :enum64"))

(defn- refusal [{:keys [message] :bpfmap/keys [error path]}]
  (is (= :invalid-value error) message)
  [path message])

(deftest bad-record-with-position
  (testing "an invalid record is an error with its position"
    (are [path message records]
         (= [path (str "Cannot write BTF: " (if (= [] path) "the records" path) " " message)]
            (refusal (error-of (writer/blob records))))
      [] "must be a sequence, got {:kind :ptr}"
      {:kind :ptr}
      [1] "must be a map such as {:kind :ptr :type 1}, got 7"
      [{:kind :fwd} 7]
      [0 :kind] (str kinds-listed ", got nil")
      [{}]
      [0 :kind] (str kinds-listed ", got :class")
      [{:kind :class}]
      [0 :kind] (str kinds-listed ", got :void: use the id 0 for void")
      [{:id 0 :kind :void}]
      [0 :kind] (str kinds-listed ", got :unknown")
      [{:id 1 :kind :unknown :number 20}]
      [0 :type] "must be an integer, got nil"
      [{:kind :ptr}]
      [0 :type] "must be an integer, got 1.5"
      [{:kind :ptr :type 1.5}]
      [0 :type] "must be from 0 to 4294967295, got -1"
      [{:kind :ptr :type -1}]
      [0 :type]
      "must be an id up to 1, got 2: count types from 1 in their order; 0 is void"
      [{:kind :ptr :type 2}]
      [0 :size] "must be from 0 to 4294967295, got 4294967296"
      [{:kind :float :size 4294967296}]
      [0 :size] "must be from 0 to 4294967295, got 100000000000000000000"
      [{:kind :float :size 100000000000000000000}]
      [0 :bits] "must be from 0 to 255, got 256"
      [{:kind :int :size 4 :bits 256}]
      [0 :offset] "must be from 0 to 255, got -1"
      [{:kind :int :size 4 :bits 32 :offset -1}]
      [0 :offset] "must be an integer, got nil"
      [{:kind :int :size 4 :bits 32 :offset nil}]
      [0 :component] "must be from -2147483648 to 2147483647, got 2147483648"
      [{:kind :decl-tag :name "a" :type 0 :component 2147483648}]
      [0 :linkage] "must be :static, :global or :extern, got :weak"
      [{:kind :var :type 0 :linkage :weak}]
      [0 :linkage] "must be from 0 to 65535, got 65536"
      [{:kind :func :type 0 :linkage 65536}]
      [0 :members] "must be a sequence, got 1"
      [{:kind :struct :size 1 :members 1}]
      [0 :members] "must have at most 65535 elements"
      [{:kind :struct :size 1 :members (repeat {:type 0 :bit-offset 0})}]
      [0 :members 0] "must be a map, got [\"a\" 1]"
      [{:kind :struct :size 1 :members [["a" 1]]}]
      [0 :members 1 :bit-offset] "must be an integer, got nil"
      [{:kind :struct :size 1 :members [{:type 0 :bit-offset 0} {:type 0}]}]
      [0 :members 1 :bit-offset] "must be from 0 to 16777215, got 16777216"
      [{:kind :struct :size 1
        :members [{:type 0 :bit-offset 0 :bits 1} {:type 0 :bit-offset 16777216}]}]
      [0 :members 0 :bits] "must be an integer, got \"3\""
      [{:kind :struct :size 1 :members [{:type 0 :bit-offset 0 :bits "3"}]}]
      [0 :members 0 :bits] "must be from 0 to 255, got 256"
      [{:kind :struct :size 1 :members [{:type 0 :bit-offset 0 :bits 256}]}]
      [0 :members 0 :type]
      "must be an id up to 1, got 5: count types from 1 in their order; 0 is void"
      [{:kind :union :size 1 :members [{:type 5 :bit-offset 0}]}]
      [0 :values 0] "must be a pair of a name and a value, got {:name \"A\", :value 1}"
      [{:kind :enum :size 4 :values [{:name "A" :value 1}]}]
      [0 :values 0 :value] "must be from 0 to 4294967295, got -1"
      [{:kind :enum :size 4 :values [["A" -1]]}]
      [0 :values 0 :value] "must be from -2147483648 to 2147483647, got 2147483648"
      [{:kind :enum :size 4 :signed true :values [["A" 2147483648]]}]
      [0 :values 0 :value] "must be from 0 to 18446744073709551615, got -1"
      [{:kind :enum64 :size 8 :values [["A" -1]]}]
      [0 :values 0 :value]
      "must be from -9223372036854775808 to 9223372036854775807, got 9223372036854775808"
      [{:kind :enum64 :size 8 :signed true :values [["A" 9223372036854775808]]}]
      [0 :values 0 :name] "must be a string, got :A: leave out :name if there is no name"
      [{:kind :enum :size 4 :values [[:A 1]]}]
      [0 :name] "must not have a NUL character, got \"a\\u0000b\""
      [{:kind :fwd :name "a\u0000b"}]
      [0 :params 0 :name]
      "must not have half a character (a lone surrogate), got \"\\ud83d\""
      [{:kind :func-proto :return 0 :params [{:name "\ud83d" :type 0}]}]
      [0 :name] "must have at most 65535 bytes, got 65536"
      [{:kind :fwd :name (apply str (repeat 65536 "x"))}]
      [0 :vars 0 :size] "must be an integer, got nil"
      [{:kind :datasec :size 1 :vars [{:type 0 :offset 0}]}]
      [] "must have at most 2147483647 bytes, got 2202009600"
      (repeat 2800 {:kind :struct :size 0 :members (vec (repeat 65535 {:type 0 :bit-offset 0}))}))
    (is (= [[:base] (str "Cannot write BTF: [:base] must be a BTF blob, got \"vmlinux\": pass a "
                         "result of parse")]
           (refusal (error-of (writer/blob [] {:base "vmlinux"})))))))

;; ---------------------------------------------------------------- other readers

(defn- load-into-kernel
  "Loads BTF as a loader of programs would; returns nil, or what the kernel says against it."
  [^bytes bytes]
  (with-open [arena (Arena/ofConfined)]
    (let [[bpf close] ["bpf" "close"]
          log-size 65536
          log (.allocate arena (long log-size) 8)
          attr (.allocate arena 32 8)
          data (.allocate arena (long (max 1 (alength bytes))) 8)
          load-command 18]
      (MemorySegment/copy bytes 0 data ValueLayout/JAVA_BYTE 0 (alength bytes))
      (.set attr ValueLayout/JAVA_LONG 0 (.address data))
      (.set attr ValueLayout/JAVA_LONG 8 (.address log))
      (.set attr ValueLayout/JAVA_INT 16 (alength bytes))
      (.set attr ValueLayout/JAVA_INT 20 (int log-size))
      (.set attr ValueLayout/JAVA_INT 24 (int 1))
      (let [fd (long (fixture/syscall bpf load-command (.address attr) 32))]
        (if (neg? fd)
          (str "errno " (- fd) ": "
               (str/join "\n" (take-last 3 (str/split-lines (.getString log 0)))))
          (do (fixture/syscall close fd) nil))))))

(kernel-test ^{:needs [[:kernel :signed-enums]]} kernel-loads-all-kinds
  (testing "the kernel loads types of every kind"
    (is (nil? (load-into-kernel (writer/blob every-kind))))
    (is (nil? (load-into-kernel (writer/blob [{:kind :ptr :type 0}]))))
    (is (re-find #"(?s)^errno 22: .*Invalid name"
                 (load-into-kernel (writer/blob [{:kind :ptr :name "p" :type 0}])))
        "it does look")))
