(ns bpfmap.impl.btf.writer-test
  "Writing BTF: what is written is read again, by us, by bpftool and by the kernel."
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
            {:id 5 :kind :fwd :union? false}
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
   "it is :int, :ptr, :array, :struct, :union, :enum, :fwd, :typedef, :volatile, :const, "
   ":restrict, :func, "
   ":func-proto, :var, :datasec, :float, :decl-tag, :type-tag or :enum64"))

(defn- refusal [{:keys [message] :bpfmap/keys [error path]}]
  (is (= :invalid-value error) message)
  [path message])

(deftest bad-record-with-position
  (testing "an invalid record is an error with its position"
    (are [path message records]
         (= [path (str "Cannot write BTF, at " (pr-str path) ": " message)]
            (refusal (error-of (writer/blob records))))
      [] "{:kind :ptr} is not a sequence of records"
      {:kind :ptr}
      [1] "7 is not a record: it is a map such as {:kind :ptr :type 1}"
      [{:kind :fwd} 7]
      [0 :kind] (str "nil is not a kind: " kinds-listed)
      [{}]
      [0 :kind] (str ":class is not a kind: " kinds-listed)
      [{:kind :class}]
      [0 :kind] ":void is not a kind: void is type 0 without being written"
      [{:id 0 :kind :void}]
      [0 :kind] (str ":unknown is not a kind: " kinds-listed)
      [{:id 1 :kind :unknown :number 20}]
      [0 :type] "nil is not an integer"
      [{:kind :ptr}]
      [0 :type] "1.5 is not an integer"
      [{:kind :ptr :type 1.5}]
      [0 :type] "-1 is outside 0 to 4294967295"
      [{:kind :ptr :type -1}]
      [0 :type]
      "the type 2 does not exist, the last one is 1: types count from 1 in their order, and 0 is void"
      [{:kind :ptr :type 2}]
      [0 :size] "4294967296 is outside 0 to 4294967295"
      [{:kind :float :size 4294967296}]
      [0 :size] "100000000000000000000 is outside 0 to 4294967295"
      [{:kind :float :size 100000000000000000000}]
      [0 :bits] "256 is outside 0 to 255"
      [{:kind :int :size 4 :bits 256}]
      [0 :offset] "-1 is outside 0 to 255"
      [{:kind :int :size 4 :bits 32 :offset -1}]
      [0 :offset] "nil is not an integer"
      [{:kind :int :size 4 :bits 32 :offset nil}]
      [0 :component] "2147483648 is outside -2147483648 to 2147483647"
      [{:kind :decl-tag :name "a" :type 0 :component 2147483648}]
      [0 :linkage] ":weak is not a linkage: it is :static, :global or :extern"
      [{:kind :var :type 0 :linkage :weak}]
      [0 :linkage] "65536 is outside 0 to 65535"
      [{:kind :func :type 0 :linkage 65536}]
      [0 :members] "1 is not a sequence"
      [{:kind :struct :size 1 :members 1}]
      [0 :members] "there are more than 65535"
      [{:kind :struct :size 1 :members (repeat {:type 0 :bit-offset 0})}]
      [0 :members 0] "[\"a\" 1] is not a map"
      [{:kind :struct :size 1 :members [["a" 1]]}]
      [0 :members 1 :bit-offset] "nil is not an integer"
      [{:kind :struct :size 1 :members [{:type 0 :bit-offset 0} {:type 0}]}]
      [0 :members 1 :bit-offset] "16777216 is outside 0 to 16777215"
      [{:kind :struct :size 1
        :members [{:type 0 :bit-offset 0 :bits 1} {:type 0 :bit-offset 16777216}]}]
      [0 :members 0 :bits] "\"3\" is not an integer"
      [{:kind :struct :size 1 :members [{:type 0 :bit-offset 0 :bits "3"}]}]
      [0 :members 0 :bits] "256 is outside 0 to 255"
      [{:kind :struct :size 1 :members [{:type 0 :bit-offset 0 :bits 256}]}]
      [0 :members 0 :type]
      "the type 5 does not exist, the last one is 1: types count from 1 in their order, and 0 is void"
      [{:kind :union :size 1 :members [{:type 5 :bit-offset 0}]}]
      [0 :values 0] "{:name \"A\", :value 1} is not a pair of a name and a value"
      [{:kind :enum :size 4 :values [{:name "A" :value 1}]}]
      [0 :values 0 :value] "-1 is outside 0 to 4294967295"
      [{:kind :enum :size 4 :values [["A" -1]]}]
      [0 :values 0 :value] "2147483648 is outside -2147483648 to 2147483647"
      [{:kind :enum :size 4 :signed true :values [["A" 2147483648]]}]
      [0 :values 0 :value] "-1 is outside 0 to 18446744073709551615"
      [{:kind :enum64 :size 8 :values [["A" -1]]}]
      [0 :values 0 :value]
      "9223372036854775808 is outside -9223372036854775808 to 9223372036854775807"
      [{:kind :enum64 :size 8 :signed true :values [["A" 9223372036854775808]]}]
      [0 :values 0 :name] ":A is not a string: leave out :name if there is no name"
      [{:kind :enum :size 4 :values [[:A 1]]}]
      [0 :name] "\"a\\u0000b\" contains a zero, which would end it"
      [{:kind :fwd :name "a\u0000b"}]
      [0 :params 0 :name]
      "\"\\ud83d\" has no form in UTF-8: one half of a surrogate pair stands alone"
      [{:kind :func-proto :return 0 :params [{:name "\ud83d" :type 0}]}]
      [0 :name] "the name has 65536 bytes, more than 65535"
      [{:kind :fwd :name (apply str (repeat 65536 "x"))}]
      [0 :vars 0 :size] "nil is not an integer"
      [{:kind :datasec :size 1 :vars [{:type 0 :offset 0}]}]
      [] "the types take 2202009600 bytes, and an array holds 2147483647"
      (repeat 2800 {:kind :struct :size 0 :members (vec (repeat 65535 {:type 0 :bit-offset 0}))}))
    (is (= [[:base] (str "Cannot write BTF, at [:base]: \"vmlinux\" is not a BTF blob: pass a "
                         "result of parse")]
           (refusal (error-of (writer/blob [] {:base "vmlinux"})))))))

;; ---------------------------------------------------------------- other readers

(defn- load-into-kernel
  "Loads BTF as a loader of programs would; returns nil, or what the kernel says against it."
  [^bytes bytes]
  (with-open [arena (Arena/ofConfined)]
    (let [[bpf close] (if (fixture/x86-64?) [321 3] [280 57])
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

(kernel-test kernel-loads-all-kinds
  (testing "the kernel loads types of every kind"
    (is (nil? (load-into-kernel (writer/blob every-kind))))
    (is (nil? (load-into-kernel (writer/blob [{:kind :ptr :type 0}]))))
    (is (re-find #"(?s)^errno 22: .*Invalid name"
                 (load-into-kernel (writer/blob [{:kind :ptr :name "p" :type 0}])))
        "it does look")))
