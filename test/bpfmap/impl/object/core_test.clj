(ns bpfmap.impl.object.core-test
  "CO-RE: relocations resolved against kernels made of records, and instructions patched."
  (:require [bpfmap.asm :as asm]
            [bpfmap.btf :as btf]
            [bpfmap.fixture :refer [kernel-test]]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.samples :as samples]
            [bpfmap.impl.btf.writer :as writer]
            [bpfmap.impl.host.kernel-btf :as kernel-btf]
            [bpfmap.impl.object.core :as core]
            [bpfmap.object :as object]
            [clojure.test :refer [are deftest is testing]])
  (:import (clojure.lang ExceptionInfo)
           (java.nio ByteOrder)
           (java.util SplittableRandom)))

(set! *warn-on-reflection* true)

(defn- parsed
  ([records] (parsed records nil))
  ([records options]
   (blob/parse (writer/blob records options) (:base options))))

(defn- member
  ([name type offset] (member name type offset 0))
  ([name type offset bits]
   (cond-> {:type type :bit-offset (* 8 offset) :bits bits} name (assoc :name name))))

(def ^:private base-types
  "Types 1 to 5 of every blob here."
  [{:kind :int :name "int" :size 4 :bits 32 :signed true}
   {:kind :int :name "u64" :size 8 :bits 64}
   {:kind :int :name "u8" :size 1 :bits 8}
   {:kind :ptr :type 0}
   {:kind :int :name "u32" :size 4 :bits 32}])

(def ^:private object-types
  (into base-types
        [{:kind :struct :name "task___own" :size 96                      ; 6
          :members [(member "pid" 1 0)
                    (member "inner" 7 8)
                    (member nil 8 16)
                    (member "list" 9 24)
                    (member "flag" 5 40 3)
                    (member "gone" 1 44)
                    (member "tail" 10 48)
                    (member "narrow" 5 48)
                    (member "sized" 1 52)
                    (member "kind" 11 56)
                    (member "other" 4 64)]}
         {:kind :struct :name "inner" :size 8 :members [(member "x" 1 4)]} ; 7
         {:kind :union :size 8 :members [(member "deep" 2 0)]}             ; 8
         {:kind :array :element 7 :index 1 :count 2}                       ; 9
         {:kind :array :element 1 :index 1 :count 0}                       ; 10
         {:kind :enum :name "kind___old" :size 4                           ; 11
          :values [["KIND_A" 1] ["KIND_B___v2" 2] ["KIND_C" 3] ["KIND_NEG" 0xffffffff]]}
         {:kind :struct :name "nobody" :size 4 :members [(member "a" 1 0)]} ; 12
         {:kind :typedef :name "number" :type 2}                          ; 13
         {:kind :const :type 6}                                           ; 14
         {:kind :func-proto :return 1 :params [{:name "t" :type 16}]}     ; 15
         {:kind :ptr :type 6}                                             ; 16
         {:kind :typedef :name "callback" :type 15}                       ; 17
         {:kind :struct :name "twin" :size 4 :members [(member "a" 1 0)]} ; 18
         {:kind :struct :name "same" :size 4 :members [(member "a" 1 0)]} ; 19
         {:kind :struct :name "of_module" :size 4 :members [(member "m" 1 0)]} ; 20
         {:kind :struct :name "flexible" :size 4                           ; 21
          :members [(member "a" 1 0) (member "tail" 10 4)]}
         {:kind :struct :name "strict" :size 4                             ; 22
          :members [(member "a" 1 0) (member "tail" 10 4)]}]))

(def ^:private kernel-types
  (into base-types
        [{:kind :struct :name "task" :size 256                             ; 6
          :members [(member nil 8 0)
                    (member "pid" 1 128)
                    (member "list" 9 136)
                    (member "other" 1 160)
                    {:name "flag" :type 5 :bit-offset (+ 4 (* 8 176)) :bits 3}
                    (member "narrow" 2 184)
                    (member "sized" 2 192)
                    (member "kind" 10 200)
                    (member "tail" 11 208)]}
         {:kind :struct :name "inner" :size 16 :members [(member "y" 1 0) (member "x" 1 12)]} ; 7
         {:kind :struct :size 96 :members [(member "inner" 7 32)           ; 8
                                           (member "deep" 2 80)]}
         {:kind :array :element 7 :index 1 :count 1}                       ; 9
         {:kind :enum :name "kind" :size 4 :signed true                    ; 10
          :values [["KIND_B" 20] ["KIND_A" 10] ["KIND_NEG" -5]]}
         {:kind :array :element 1 :index 1 :count 0}                       ; 11
         {:kind :typedef :name "number" :type 5}                           ; 12
         {:kind :ptr :type 6}                                              ; 13
         {:kind :func-proto :return 1 :params [{:name "t" :type 13}]}      ; 14
         {:kind :typedef :name "callback" :type 14}                        ; 15
         {:kind :struct :name "twin" :size 4 :members [(member "a" 1 0)]}  ; 16
         {:kind :struct :name "twin___b" :size 8 :members [(member "a" 1 4)]} ; 17
         {:kind :struct :name "same" :size 4 :members [(member "a" 1 0)]}  ; 18
         {:kind :struct :name "same" :size 8 :members [(member "a" 1 0)]}  ; 19
         {:kind :struct :name "flexible" :size 16                          ; 20
          :members [(member "b" 1 0) (member "a" 1 8) (member "tail" 11 12)]}
         {:kind :struct :name "strict" :size 16                            ; 21
          :members [(member "tail" 11 12) (member "a" 1 8)]}]))

(def ^:private kernel (delay (parsed kernel-types)))

(def ^:private local (delay (core/local (parsed object-types))))

(def ^:private targets (delay (core/targets @kernel)))

(defn- resolved
  ([kind type-id access] (resolved @local @targets kind type-id access))
  ([local targets kind type-id access]
   (core/resolve local targets {:kind kind :type-id type-id :access access})))

(defn- thrown [f]
  (try
    (f)
    (catch ExceptionInfo e [(:bpfmap/error (ex-data e)) (ex-message e)])))

(deftest essential-names
  (testing "the last ___ between other characters begins a flavour"
    (are [expected text] (= expected (core/essential-name text))
      "a" "a" "a" "a___b" "a___b" "a___b___c" "___a" "___a" "a___" "a___" "a____b" "a____b" "" ""
      "a__b" "a__b" "_" "_")))

(deftest fields
  (testing "a field is found by name, and has the place of the kernel"
    (are [expected kind access] (= expected (resolved kind 6 access))
      {:value 128 :was 0} :field-byte-offset "0:0"
      {:value 44 :was 12} :field-byte-offset "0:1:0"
      {:value 1 :was 1} :field-exists "0:1:0"
      {:value 4 :was 4} :field-byte-size "0:0"
      {:value 8 :was 8} :field-byte-size "0:2:0"
      {:value 80 :was 16} :field-byte-offset "0:2:0"
      {:value 148 :was 28} :field-byte-offset "0:3:0:0"
      {:value 136 :was 24 :size 16 :was-size 8
       :misfit "struct task field list has 16 bytes on this kernel, and 8 in the object"}
      :field-byte-offset "0:3"
      {:value 1 :was 1} :field-signed "0:0"
      {:value 0 :was 0} :field-signed "0:4"
      {:value 32 :was 32} :field-rshift-u64 "0:0"
      {:value 32 :was 32} :field-lshift-u64 "0:0"
      {:value 256 :was 96 :size 256 :was-size 96
       :misfit "struct task has 256 bytes on this kernel, and 96 in the object"}
      :field-byte-offset "1"
      {:value 256 :was 96} :field-byte-size "0"
      {:value 1 :was 1} :field-exists "7"))
  (testing "a bit-field has the unit, shifts and sign to read it"
    (are [expected kind] (= expected (resolved kind 6 "0:4"))
      {:value 176} :field-byte-offset
      {:value 4} :field-byte-size
      {:value 57} :field-lshift-u64
      {:value 61 :was 61} :field-rshift-u64
      {:value 0 :was 0} :field-signed))
  (testing "a load gets the size of the kernel, if the value stays the same"
    (is (= {:value 184 :was 48 :size 8 :was-size 4} (resolved :field-byte-offset 6 "0:7")))
    (is (= {:value 192 :was 52 :size 8 :was-size 4
            :misfit "struct task field sized has 8 bytes on this kernel, and 4 in the object"}
           (resolved :field-byte-offset 6 "0:8"))))
  (testing "an element beyond an array of no length is meant at the end of a struct only"
    (is (= {:value 24 :was 16} (resolved :field-byte-offset 21 "0:1:3")))
    (is (= :invalid-value (first (thrown #(resolved :field-byte-offset 6 "0:6:3")))))
    (is (= {:poison "struct strict has no field tail[3] on this kernel"}
           (resolved :field-byte-offset 22 "0:1:3"))))
  (testing "what the kernel does not have has a reason"
    (are [reason access] (= {:poison reason} (resolved :field-byte-offset 6 access))
      "struct task has no field gone on this kernel" "0:5"
      "struct task has no field list[1].x on this kernel" "0:3:1:0"
      "struct task has no field other on this kernel" "0:10")
    (is (= {:poison "this kernel has no struct nobody"} (resolved :field-byte-offset 12 "0:0")))
    (is (= {:value 0 :was 1} (resolved :field-exists 12 "0:0")))
    (is (= {:value 0 :was 1} (resolved :field-exists 6 "0:5")))))

(deftest big-endian-shifts
  (testing "the left shift of a bit-field counts from the other end"
    (let [big {:byte-order ByteOrder/BIG_ENDIAN}
          l (core/local (parsed object-types big))
          t (core/targets (parsed kernel-types big))]
      (is (= {:value (+ 32 4)} (resolved l t :field-lshift-u64 6 "0:4")))
      (is (= {:value 61 :was 61} (resolved l t :field-rshift-u64 6 "0:4"))))))

(deftest whole-types
  (testing "types are found by name and kind"
    (are [expected kind id] (= expected (resolved kind id "0"))
      {:value 1 :was 1} :type-exists 6
      {:value 0 :was 1} :type-exists 12
      {:value 256 :was 96} :type-size 6
      {:value 0 :was 4} :type-size 12
      {:value 6} :type-id-target 6
      {:value 0} :type-id-target 12
      {:value 6} :type-id-local 6
      {:value 1 :was 1} :type-exists 13
      {:value 4 :was 8} :type-size 13
      {:value 1 :was 1} :type-exists 17
      {:value 1 :was 1} :type-matches 17
      {:value 1 :was 1} :type-matches 19
      {:value 0 :was 1} :type-matches 6
      {:value 0 :was 1} :type-matches 13
      {:value 0 :was 1} :type-matches 11)))

(deftest enumerators
  (testing "enumerators are found by name"
    (are [expected kind access] (= expected (resolved kind 11 access))
      {:value 10 :was 1} :enumval-value "0"
      {:value 20 :was 2} :enumval-value "1"
      {:value 1 :was 1} :enumval-exists "1"
      {:poison "enum kind has no enumerator KIND_C on this kernel"} :enumval-value "2"
      {:value 0 :was 1} :enumval-exists "2"
      {:value -5 :was -1} :enumval-value "3")))

(deftest several-candidates
  (testing "candidates that agree are one"
    (is (= {:value 0 :was 0} (resolved :field-byte-offset 19 "0:0"))))
  (testing "candidates that differ are an error that names them"
    (is (= [:ambiguous (str "All types struct twin of this kernel must give the same value, "
                            "got 0 for type 16 and 4 for type 17: "
                            "declare the type with the fields that tell these types apart")]
           (thrown #(resolved :field-byte-offset 18 "0:0"))))
    (is (= [:ambiguous (str "All types struct same of this kernel must give the same value, "
                            "got 18 for type 18 and 19 for type 19: "
                            "declare the type with the fields that tell these types apart")]
           (thrown #(resolved :type-id-target 19 "0"))))))

(deftest modules
  (testing "modules count if the kernel has no such type, and are not read before"
    (let [module (parsed [{:kind :struct :name "of_module" :size 8 :members [(member "m" 1 4)]}]
                         {:base @kernel})
          reads (atom 0)
          t (core/targets @kernel (delay (swap! reads inc) [["nf" module]]))
          at #(resolved @local t %1 %2 %3)]
      (is (= {:value 128 :was 0} (at :field-byte-offset 6 "0:0")))
      (is (= 0 @reads))
      (is (= {:value 4 :was 0} (at :field-byte-offset 20 "0:0")))
      (is (= {:value 22 :module "nf"} (at :type-id-target 20 "0")))
      (is (= {:value 0 :was 1} (at :type-exists 12 "0")))
      (is (= 1 @reads)))))

(deftest invalid-relocations
  (testing "a relocation that does not fit the object says what is wrong"
    (let [hint ": take relocations and BTF from the same object"]
      (are [expected kind id access]
           (= [:invalid-value (str expected hint)] (thrown #(resolved kind id access)))
        "The type of a CO-RE relocation must be an id from 1 to 22, got 23"
        :field-exists 23 "0"
        "The type of a CO-RE relocation must be an id from 1 to 22, got nil"
        :field-exists nil "0"
        "The type of a CO-RE relocation must be a type with a name, got \"struct task___own\""
        :field-exists 14 "0"
        "The access of a CO-RE relocation must be 1 to 64 numbers with colons between them, got \"\""
        :field-exists 6 ""
        "The access of a CO-RE relocation must be 1 to 64 numbers with colons between them, got \"0:-1\""
        :field-exists 6 "0:-1"
        "The access of a CO-RE relocation must be 1 to 64 numbers with colons between them, got 7"
        :field-exists 6 7
        "The access of a CO-RE relocation must be an index of the 11 members of type 6, got \"0:11\""
        :field-exists 6 "0:11"
        "The access of a CO-RE relocation must be an index of the 2 elements of type 9, got \"0:3:2\""
        :field-exists 6 "0:3:2"
        "The access of a CO-RE relocation must be a path of members and elements, but type 1 is a int, got \"0:0:0\""
        :field-exists 6 "0:0:0"
        "The access of a CO-RE relocation must be a path to a member for :field-signed, got \"0\""
        :field-signed 6 "0"
        "The access of a CO-RE relocation must be an index of the 4 enumerators of type 11, got \"4\""
        :enumval-value 11 "4"
        "The type of a CO-RE relocation must be an enum, got \"struct task___own\""
        :enumval-value 6 "0"
        "The access of a CO-RE relocation must be 0 for a whole type, got \"1\""
        :type-exists 6 "1")
      (is (= :invalid-value (first (thrown #(resolved 13 6 "0"))))))))

;; --- instructions

(defn- patched
  "The instructions after a relocation of the first, as data."
  ([insns result] (patched insns result (ByteOrder/nativeOrder)))
  ([insns result order]
   (asm/disassemble (core/patch! (:bytes (asm/assemble insns {:byte-order order})) 0 result order)
                    {:byte-order order})))

(deftest instructions
  (doseq [order [ByteOrder/LITTLE_ENDIAN ByteOrder/BIG_ENDIAN]]
    (testing (str "values go where the instruction takes them, " order)
      (are [expected insn result] (= [expected [:exit]] (patched [insn [:exit]] result order))
        [:mov64 :r1 7] [:mov64 :r1 3] {:value 7 :was 3}
        [:mov64 :r1 -1] [:mov64 :r1 3] {:value -1}
        [:add32 :r1 7] [:add32 :r1 3] {:value 7}
        [:ldxw :r1 [:r2 40]] [:ldxw :r1 [:r2 8]] {:value 40 :was 8}
        [:ldxdw :r1 [:r2 40]] [:ldxw :r1 [:r2 8]] {:value 40 :was 8 :size 8 :was-size 4}
        [:stb [:r2 40] 9] [:stdw [:r2 8] 9] {:value 40 :was 8 :size 1 :was-size 8}
        [:stxh [:r2 40] :r3] [:stxw [:r2 8] :r3] {:value 40 :size 2 :was-size 4}
        [:lddw :r1 0x1234567890] [:lddw :r1 5] {:value 0x1234567890 :was 5}
        [:lddw :r1 -2] [:lddw :r1 5] {:value -2}
        [:mov64 :r1 7] [:mov64 :r1 3] {:value 7 :misfit "for memory only"}))
    (testing "what must not run becomes a call that the verifier rejects"
      (is (= [[:call 195896080] [:exit]]
             (patched [[:ldxw :r1 [:r2 8]] [:exit]] {:poison "gone"} order)
             (patched [[:ldxw :r1 [:r2 8]] [:exit]] {:value 8 :misfit "wider"} order)))
      (is (= [[:call 195896080] [:call 195896080] [:exit]]
             (patched [[:lddw :r1 8] [:exit]] {:poison "gone"} order)))
      (is (core/poison-helper? 195896080)))))

(deftest refused-instructions
  (testing "an instruction that the compiler did not write this way is refused"
    (let [hint ": change instructions and :core together, or neither"]
      (are [expected insn result]
           (= [:invalid-program (str expected hint)]
              (thrown #(patched [insn [:exit]] result)))
        "The immediate of the instruction at slot 0 must be 4, which its CO-RE relocation says that the compiler wrote, got 3"
        [:mov64 :r1 3] {:value 7 :was 4}
        "The offset of the instruction at slot 0 must be 4, which its CO-RE relocation says that the compiler wrote, got 8"
        [:ldxw :r1 [:r2 8]] {:value 7 :was 4}
        "The immediate of the instruction at slot 0 must be 4, which its CO-RE relocation says that the compiler wrote, got 4294967300"
        [:lddw :r1 0x100000004] {:value 7 :was 4}
        "The size in bytes of the instruction at slot 0 must be 8, which its CO-RE relocation says that the compiler wrote, got 4"
        [:ldxw :r1 [:r2 8]] {:value 7 :was 8 :size 4 :was-size 8}
        "The instruction at slot 0 must be one that takes a value, got opcode 0xbf"
        [:mov64 :r1 :r2] {:value 7}
        "The instruction at slot 0 must be one that takes a value, got opcode 0x18"
        [:lddw :r1 {:map "m"}] {:value 7}
        "The instruction at slot 0 must be one that takes a value, got opcode 0x85"
        [:call 1] {:value 7})
      (is (= [:invalid-program (str "The offset of the instruction at slot 0 must be at most 32767, "
                                    "and the field is at 40000: read the field with bpf_core_read")]
             (thrown #(patched [[:ldxw :r1 [:r2 8]] [:exit]] {:value 40000 :was 8}))))
      (is (= [:invalid-program "The slot of a CO-RE relocation must be from 0 to 0, got 1"]
             (thrown #(core/patch! (byte-array 8) 1 {:value 1} (ByteOrder/nativeOrder))))))))

;; --- hostile types

(defn- broken [^bytes bytes ^SplittableRandom random]
  (let [copy (aclone bytes)]
    (dotimes [_ (inc (.nextInt random 3))]
      (let [at (+ 24 (.nextInt random (- (alength copy) 24)))]
        (aset copy at (unchecked-byte (case (.nextInt random 3)
                                        0 (.nextInt random)
                                        1 (.nextInt random 24)
                                        (bit-flip (aget copy at) (.nextInt random 8)))))))
    copy))

(defn- outcome [local-bytes kernel-bytes kind id access]
  (try
    (let [result (resolved (core/local (blob/parse local-bytes))
                           (core/targets (blob/parse kernel-bytes))
                           kind id access)]
      (if (or (int? (:value result)) (string? (:poison result))) :resolved result))
    (catch ExceptionInfo e
      (if (#{:malformed-btf :invalid-value :ambiguous} (:bpfmap/error (ex-data e)))
        (:bpfmap/error (ex-data e))
        e))
    (catch Throwable e e)))

(deftest mutated-types
  (testing "broken types and accesses give a value or an error, soon"
    (let [object-bytes (writer/blob object-types)
          kernel-bytes (writer/blob kernel-types)
          kinds [:field-byte-offset :field-byte-size :field-exists :field-signed :field-lshift-u64
                 :field-rshift-u64 :type-id-local :type-id-target :type-exists :type-size
                 :enumval-exists :enumval-value :type-matches]
          accesses ["0" "0:0" "0:1:0" "0:2:0" "0:3:1:0" "0:4" "999999999" "1:6" "3" "0:10" "0:8"]
          outcomes (for [i (range 6000)
                         :let [random (SplittableRandom. i)
                               pick #(nth % (.nextInt random (count %)))
                               id (inc (.nextInt random 20))
                               kind (pick kinds) access (pick accesses)
                               mostly-broken #(cond-> % (pos? (.nextInt random 4)) (broken random))
                               a (mostly-broken object-bytes)
                               b (mostly-broken kernel-bytes)
                               {:keys [result ms]} (samples/cost #(outcome a b kind id access))]]
                     [result ms i])]
      (is (= [] (take 3 (remove #(keyword? (first %)) outcomes))))
      (is (< 300 (count (filter #(= :resolved (first %)) outcomes))))
      (is (< 200 (count (filter #(= :malformed-btf (first %)) outcomes))))
      (is (< (double (apply max (map second outcomes))) 1000)))))

(deftest bounded-work
  (testing "types whose parts double with every level end in an error"
    (let [levels 30
          doubling (fn [bottom]
                     (parsed
                      (into base-types
                            (concat
                             [{:kind :struct :name "root" :size 8
                               :members [(member nil 7 0) (member "there" 1 0)]}]
                             (for [i (range levels)]
                               {:kind :union :size 8
                                :members [(member nil (+ 8 i) 0) (member nil (+ 8 i) 0)]})
                             [{:kind :union :size 8 :members [(member bottom 1 0)]}]))))
          l (core/local (parsed (into base-types [{:kind :struct :name "root" :size 4
                                             :members [(member "wanted" 1 0)]}])))]
      (is (= [:malformed-btf true]
             (update (thrown #(resolved l (core/targets (doubling "other")) :field-exists 6 "0:0"))
                     1 (fn [text] (boolean (re-find #"must be compared in at most" (str text))))))))
    (let [proto (fn [i] {:kind :func-proto :return 0
                         :params (repeat 12 {:name "p" :type i})})
          nested (parsed (into base-types (concat [{:kind :typedef :name "f" :type 7}]
                                            (map proto (range 8 20)) [(proto 1)])))]
      (is (= [:malformed-btf true]
             (update (thrown #(resolved (core/local nested) (core/targets nested)
                                        :type-exists 6 "0"))
                     1 (fn [text] (boolean (re-find #"must be compared in at most" (str text))))))))))

;; --- the running kernel

(kernel-test running-kernel
  (testing "the types of the running kernel are read once, and give its offsets"
    (is (identical? (kernel-btf/running-kernel) (kernel-btf/running-kernel)))
    (let [b (kernel-btf/running-kernel)
          task (blob/record b (first (blob/ids-named b "task_struct" :struct)))
          pid (first (filter #(= "pid" (:name %)) (:members task)))
          o (object/read "test/objects/flows-el.o")
          [offset links _ size] (:core (get-in o [:programs "on_enter"]))
          l (core/local (btf/parse (:btf o)))]
      (is (= {:value (quot (:bit-offset pid) 8) :was 0}
             (core/resolve l (kernel-btf/targets) offset)))
      (is (= {:value 16 :was 16} (core/resolve l (kernel-btf/targets) size)))
      (is (= {:poison "struct task_struct has no field links[1].next on this kernel"}
             (core/resolve l (kernel-btf/targets) links))))))
