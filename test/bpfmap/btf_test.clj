(ns bpfmap.btf-test
  (:require [bpfmap.btf :as btf]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.types :as btf-types]
            [bpfmap.impl.btf.writer :as writer]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop]))

(set! *warn-on-reflection* true)

(defn- there-and-back [t]
  (let [{:keys [bytes ids]} (btf/->btf [t] nil)]
    (btf/type-of (btf/parse bytes) (first ids))))

(deftest types-round-trip
  (testing "types that the kernel can express survive the conversion to BTF and back"
    (doseq [t [:u8 :u16 :u32 :u64 :u128 :s8 :s16 :s32 :s64 :s128 :f32 :f64 :bool :char :ptr
               :u16be :u32be :u64be :u16le :s32be :s64le :u128be :f32be :f64le
               :ipv4 :ipv6 :mac :port :ktime
               [:prefix :ipv4] [:prefix :ipv6] [:array [:prefix :ipv4] 3]
               [:typedef "net" [:prefix :ipv6]]
               [:struct {:name "route"} [:to [:prefix :ipv4]] [:via :ipv4]]
               :spin-lock :timer :wq :list-head :list-node :rb-root :rb-node :refcount :dynptr
               :res-spin-lock :task-work
               [:bytes 3] [:string 16] [:array :u32 3] [:array [:array :u16 2] 3] [:array :char 4]
               [:array :u8 4] [:array :ipv4 2]
               [:array :u32 0]
               [:enum :u32 (array-map :A 0 :B 7)] [:enum :s32 (array-map :A -1) {:name "sign"}]
               [:enum :u8 (array-map :A 255)]
               [:enum :u64 (array-map :BIG 18446744073709551615N)]
               [:enum :s64 (array-map :SMALL Long/MIN_VALUE)]
               [:typedef "pid_t" :s32] [:typedef "addr" :ipv4] [:typedef "v" [:array :u32 4]]
               [:struct [:a :u8] [:b :u64] [:c [:string 5]]]
               [:struct {:name "flow"} [:src :ipv4] [:dst :ipv4] [:sport :port]]
               [:struct {:packed true} [:a :u8] [:b :u64]]
               [:struct {:size 16} [:a :u8]]
               [:struct {:packed true :size 16} [:a :u8 {:offset 3}] [:b :u32 {:offset 8}]]
               [:struct [:lock :spin-lock] [:n :u32]]
               [:struct [:a [:bits :u32 3]] [:b [:bits :s32 5]] [:c [:bits :bool 1]] [:d :u8]]
               [:struct [nil [:union [:a :u32] [:b :f32]]] [:c :u8]]
               [:struct [nil [:struct [:x :u16]]] [:inner [:struct {:name "in"} [:y :u8]]]]
               [:union {:name "u"} [:a :u64] [:b [:bytes 12]]]]]
      (is (= t (there-and-back t))))))

(deftest types-without-btf
  (testing "a type that C cannot express reads back as its C type"
    (are [given read] (= read (there-and-back given))
      [:via :u32 identity identity] :u32
      [:via [:prefix :ipv4] identity identity] [:prefix :ipv4]
      [:struct [:a :u8] [:pad 3] [:b :u32]] [:struct [:a :u8] [:b :u32]]
      [:struct [:tx-bytes :u64]] [:struct [:tx_bytes :u64]]
      [:struct {:name "my flow"} [:a :u64]] [:struct {:name "my_flow"} [:a :u64]]
      [:enum :u32 {:A-B 1} {:name "e-f"}] [:enum :u32 {:A_B 1} {:name "e_f"}]
      [:struct {:align 16} [:a :u8]] [:struct {:size 16} [:a :u8]]
      [:ptr :u32] [:ptr "unsigned int"]
      [:c-string 4] [:string 4]
      [:typedef "__u32" :u32] :u32
      [:typedef "x" :u16be] [:typedef "x" :u16be])))

(defspec layouts-round-trip 300
  (prop/for-all [t types/a-struct]
                (let [back (there-and-back t)
                      places #(into {} (map (fn [[path place]] [path place])) (type/offsets %))]
                  (and (= (type/size t) (type/size back))
                       (= (places t) (places back))))))

(deftest c-identifiers
  (testing "field names become C identifiers"
    (are [k text] (= text (btf-types/identifier k))
      :a "a" :tx-bytes "tx_bytes" :9lives "_9lives" :is? "is_" :größe "gr__e")))

(defn- of-records [& records]
  (btf/parse (writer/blob records)))

(def ^:private int-u32
  {:kind :int :name "unsigned int" :size 4 :bits 32 :offset 0 :signed false :char false
   :bool false})

(deftest types-of-a-program
  (testing "reads types that the author of a program wrote"
    ;; 1
    (let [b (of-records int-u32
                        ;; 2
                        {:kind :typedef :name "__be32" :type 1}
                        ;; 3
                        {:kind :const :type 2}
                        ;; 4
                        {:kind :struct :name "task" :size 8
                         :members [{:name "next" :type 5 :bit-offset 0 :bits 0}]}
                        ;; 5
                        {:kind :ptr :type 4}
                        ;; 6
                        {:kind :type-tag :name "kptr" :type 4}
                        ;; 7
                        {:kind :ptr :type 6}
                        ;; 8
                        {:kind :var :name "count" :type 1 :linkage 1}
                        ;; 9
                        {:kind :datasec :name ".data" :size 24 :vars [{:type 8 :offset 16 :size 4}]}
                        ;; 10
                        {:kind :func-proto :return 0 :params []}
                        ;; 11
                        {:kind :ptr :type 10}
                        ;; 12
                        {:kind :fwd :name "later" :union false}
                        ;; 13
                        {:kind :ptr :type 12}
                        ;; 14
                        {:kind :ptr :type 5}
                        ;; 15
                        {:kind :float :name "half" :size 2})]
      (are [id t] (= t (btf/type-of b id))
        3 :u32be
        4 [:struct {:name "task"} [:next [:ptr "struct task"]]]
        7 :kptr
        8 :u32
        9 [:struct {:packed true :size 24 :name ".data"} [:count :u32 {:offset 16}]]
        11 [:ptr "function"]
        13 [:ptr "struct later"]
        14 [:ptr "struct task *"]
        15 [:bytes 2])
      (is (= [:struct {:name "task"} [:next [:ptr "struct task"]]] (btf/type-named b "task")))
      (is (nil? (btf/type-named b "nothing")))
      (is (= [4 nil nil] [(btf/type-id b :struct "task") (btf/type-id b :func "task")
                          (btf/type-id b :struct "nothing")])))))

(deftest blobs-without-type
  (testing "rejects a blob that describes no type and reports where"
    (are [id path words records]
         (let [{:keys [message] found :bpfmap/path
                :bpfmap/keys [error]} (error-of (btf/type-of (apply of-records records) id))]
           (and (= :malformed-btf error)
                (= path (vec (take (count path) found)))
                (str/includes? message words)))
      0 [:type 0] "must be a type with values, got the kind void" [int-u32]
      9 [:type 9] "" [int-u32]
      2 [:type 2] "must be a type with values, got the kind func-proto" [int-u32 {:kind :func-proto :return 0 :params []}]
      1 [:type 1] "the type must not contain itself" [{:kind :typedef :name "a" :type 1}]
      1 [:type 1] "the type must not contain itself"
      [{:kind :struct :name "a" :size 4 :members [{:name "a" :type 1 :bit-offset 0 :bits 0}]}]
      2 [:type 2] "do not fit in its 2 bytes"
      [int-u32
       {:kind :struct :name "a" :size 2 :members [{:name "a" :type 1 :bit-offset 0 :bits 0}]}]
      2 [:type 2] "share a name, or overlap"
      [int-u32
       {:kind :union :name "a" :size 4 :members [{:name "a" :type 1 :bit-offset 0 :bits 0}
                                                 {:name "a" :type 1 :bit-offset 0 :bits 0}]}]
      2 [:type 2] "share a name, or overlap"
      [int-u32
       {:kind :struct :name "a" :size 8 :members [{:name "a" :type 1 :bit-offset 0 :bits 0}
                                                  {:name "b" :type 1 :bit-offset 16 :bits 0}]}]
      2 [:type 2] "must have a name"
      [int-u32 {:kind :struct :name "a" :size 4 :members [{:type 1 :bit-offset 0 :bits 0}]}]
      2 [:type 2] "got 33 bits of the kind integer"
      [int-u32
       {:kind :struct :name "a" :size 8 :members [{:name "a" :type 1 :bit-offset 0 :bits 33}]}]
      2 [:type 2] "more than 4294967295 bytes"
      [int-u32 {:kind :array :element 1 :index 1 :count 4000000000}]
      2 [:type 2] "a typedef must have a name" [int-u32 {:kind :typedef :type 1}]
      2 [:type 2] "a data section must have only variables"
      [int-u32 {:kind :datasec :name ".data" :size 4 :vars [{:type 1 :offset 0 :size 4}]}])))

(deftest exponential-types
  (testing "rejects a type that doubles at every level without expanding it"
    (let [levels (for [i (range 60)]
                   {:kind :struct :name (str "s" i) :size (if (< i 25) (bit-shift-left 4 i) 0)
                    :members [{:name "a" :type (inc i) :bit-offset 0 :bits 0}
                              {:name "b" :type (inc i)
                               :bit-offset (* 8 (if (< i 25) (bit-shift-left 4 (dec i)) 0))
                               :bits 0}]})
          b (apply of-records int-u32
                   (map #(update % :members (fn [ms] (if (odd? (count ms)) ms ms))) (rest levels)))
          begun (System/nanoTime)
          {:bpfmap/keys [error]} (error-of (btf/type-of b 40))]
      (is (= :malformed-btf error))
      (is (< (- (System/nanoTime) begun) (* fixture/slowness 5000000000))))))

(deftest broken-blobs-throw-data
  (testing "a hundred thousand broken blobs throw only malformed-BTF errors"
    (let [random (java.util.Random. 7)
          sources (vec (for [t (gen/sample types/a-struct 40)] ^bytes (:bytes (btf/->btf [t] nil))))
          outcomes (frequencies
                    (for [_ (range 100000)]
                      (let [bytes (aclone ^bytes (rand-nth sources))
                            n (alength bytes)]
                        ;; The header stays, so that most get as far as the types.
                        (dotimes [_ (inc (.nextInt random 4))]
                          (when (< 24 n)
                            (aset bytes (+ 24 (.nextInt random (- n 24)))
                                  (unchecked-byte (.nextInt random 256)))))
                        (try
                          (let [b (btf/parse bytes)]
                            (type/check (btf/type-of b
                                                     (inc
                                                      (.nextInt
                                                       random (max 1 (blob/type-count b))))))
                            :type)
                          (catch clojure.lang.ExceptionInfo e
                            (or (:bpfmap/error (ex-data e)) e))
                          (catch Throwable e
                            e)))))]
      (is (= #{:type :malformed-btf} (set (keys outcomes))) (pr-str outcomes))
      (is (every? #(< 1000 (val %)) outcomes)))))

(deftest object-file-types
  (testing "reads the types of an object file"
    (if-let [clang (fixture/executable "clang")]
      (let [dir (fixture/temporary-directory)
            [c object] (map #(java.io.File. dir ^String %) ["types.c" "types.o"])]
        (try
          (spit c "struct flow { unsigned int src; char comm[16]; } f;")
          (is (= 0
                 (:exit (fixture/run [clang "-g" "-target" "bpf" "-c" (str c) "-o" (str object)]))))
          (let [bytes (java.nio.file.Files/readAllBytes (.toPath ^java.io.File object))]
            (is (= [:struct {:name "flow"} [:src :u32] [:comm [:string 16]]]
                   (btf/type-named (btf/parse-object bytes) "flow")))
            (testing "however it is broken, an error as data"
              (let [random (java.util.Random. 3)]
                (dotimes [_ 2000]
                  (let [broken (aclone bytes)]
                    (dotimes [_ 3]
                      (aset broken (.nextInt random (alength broken))
                            (unchecked-byte (.nextInt random))))
                    (let [broken (if (.nextBoolean random)
                                   broken
                                   (java.util.Arrays/copyOf
                                    broken (.nextInt random (alength broken))))
                          outcome (try (btf/parse-object broken) :read
                                       (catch clojure.lang.ExceptionInfo e
                                         (:bpfmap/error (ex-data e))))]
                      (when-not (#{:read :malformed-btf} outcome)
                        (is (= :malformed-btf outcome)))))))))
          (finally
            (run! #(.delete ^java.io.File %) (reverse (file-seq dir))))))
      (fixture/skip! "no clang to make an object with"))))

(deftest absurd-sections
  (testing "rejects a section with an absurd size or offset"
    (let [object (fn [offset size]
                   (let [b (.order (java.nio.ByteBuffer/allocate 128)
                                   java.nio.ByteOrder/LITTLE_ENDIAN)]
                     (.put b (byte-array [0x7f 0x45 0x4c 0x46 2 1]))
                     (.putLong b 0x28 64)
                     (.putShort b 0x3a 64)
                     (.putShort b 0x3c 1)
                     (.putLong b (+ 64 0x18) offset)
                     (.putLong b (+ 64 0x20) size)
                     (.array b)))]
      (doseq [[offset size] [[Long/MAX_VALUE 1] [1 Long/MAX_VALUE] [Long/MAX_VALUE Long/MAX_VALUE]
                             [Long/MIN_VALUE Long/MIN_VALUE]
                             [-1 1] [0 -1] [129 0] [0 129] [1 128]]]
        (is (= ["Malformed ELF object: a section lies outside the file"
                :malformed-btf]
               ((juxt :message :bpfmap/error) (error-of (btf/parse-object (object offset size)))))
            (str offset " " size)))
      (testing "and one that fits exactly is taken"
        (is (nil? (btf/parse-object (object 0 128))))))))

(deftest not-an-object-file
  (testing "rejects bytes that are not an object file"
    (is (str/includes? (:message (error-of (btf/parse-object (byte-array 100))))
                       "does not begin as a 64-bit ELF file does"))))

(deftest types-of-running-kernel
  (testing "reads the types of the running kernel"
    (if-not (.exists (java.io.File. "/sys/kernel/btf/vmlinux"))
      (fixture/skip! "this kernel shows no BTF of its own")
      (let
       [b (btf/parse
           (java.nio.file.Files/readAllBytes
            (java.nio.file.Path/of "/sys/kernel/btf/vmlinux" (make-array String 0))))]
        (is (= [:struct {:name "list_head"} [:next [:ptr "struct list_head"]]
                [:prev [:ptr "struct list_head"]]]
               (btf/type-named b "list_head")))
        (is (= :spin-lock (btf/type-named b "bpf_spin_lock")))
        (testing "every struct and union of it reads, and has its size"
          (let [ids (filter #(#{:struct :union :enum :enum64 :typedef :array} (blob/kind b %))
                            (range 1 (inc (blob/type-count b))))]
            (is (< 10000 (count ids)))
            (doseq [id (take-nth 7 ids)
                    :let [size (blob/size-of b id)]
                    :when size]
              (let [t (try (btf/type-of b id) (catch clojure.lang.ExceptionInfo e (ex-message e)))]
                (if (string? t)
                  (is (= "" t) (str id))
                  (is (= size (type/size t)) (str id)))))))))))

;; --- pointers

(defn- through-btf
  "A type as it reads from the BTF that it is written as."
  [t named]
  (let [{:keys [bytes ids]} (btf/->btf [t] named)]
    (btf/type-of (btf/parse bytes) (first ids))))

(deftest pointers-keep-targets
  (testing "pointers keep their targets"
    (testing "as C spells them, they read back as they were written"
      (doseq [text ["struct task_struct" "union u" "enum e" "function" "char" "int" "unsigned int"
                    "long" "long unsigned int" "unsigned long long"
                    "_Bool" "double" "char *" "struct task_struct * *" "int[]" "size_t"
                    "unsigned __int128"]]
        (is (= [:struct [:p [:ptr text]] [:q [:ptr text]]]
               (through-btf [:struct [:p [:ptr text]] [:q [:ptr text]]] nil)))))
    (testing "types of this library's read back as C spells them"
      (are [t text]
           (= [:ptr text]
              (through-btf [:ptr t]
                           {:node [:struct {:name "node"} [:next [:ptr :node]] [:n :u32]]}))
        :u8 "unsigned char"
        :s64 "long long"
        :f64 "double"
        :ipv4 "bpfmap_ipv4"
        [:ptr :char] "char *"
        [:array :u32 4] "unsigned int[]"
        [:enum :u32 {:A 1} {:name "state"}] "enum state"
        [:typedef "pid_t" :s32] "pid_t"
        [:struct {:name "flow"} [:a :u8]] "struct flow"
        :node "struct node"))
    (testing "a type without a name is void"
      (is (= :ptr (through-btf [:ptr "void"] nil) (through-btf [:ptr "a b"] nil)
             (through-btf [:ptr "struct {…}"] nil)
             (through-btf [:ptr [:enum]] nil) (through-btf :ptr nil))))
    (testing "the target is there, for other tools"
      (let [{:keys [bytes ids]} (btf/->btf [[:ptr [:struct {:name "flow"} [:a :u8] [:b :u64]]]] nil)
            b (btf/parse bytes)]
        (is (= [:struct {:name "flow"} [:a :u8] [:b :u64]] (btf/type-named b "flow")))
        (is (= (first (blob/ids-named b "flow")) (:type (blob/record b (first ids)))))))))

(kernel-test kernel-pointers
  (testing "the kernel accepts pointer types and returns them unchanged"
    (doseq [t [[:ptr "struct task_struct"] [:ptr "function"] [:ptr :u32]
               [:ptr [:struct {:name "flow"} [:a :u8]]] [:ptr "pid_t"] [:ptr "enum e"]
               [:ptr "char *"] [:ptr "int[]"] [:ptr :node]]
            :let [types {:node [:struct {:name "node"} [:next [:ptr :node]]]}]]
      (with-open [m ^java.io.Closeable (bpf/create {:type :hash :key :u32
                                                    :value [:struct [:p t] [:n :u64]] :types types
                                                    :max-entries 1})
                  again ^java.io.Closeable (bpf/open (:id (bpf/info m)))]
        (is (nil? (:untyped (bpf/info m))) t)
        (is (= (through-btf [:struct [:p t] [:n :u64]] types) (:value (bpf/spec again))))))))
