(ns bpfmap.impl.elf.usdt-test
  (:require [bpfmap.fixture :refer [error-of]]
            [bpfmap.impl.elf.symbols :as symbols]
            [bpfmap.impl.elf.usdt :as usdt]
            [bpfmap.object :as object]
            [bpfmap.probed :as probed]
            [bpfmap.type :as type]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.util Arrays Random)))

(set! *warn-on-reflection* true)

(defn- of-bytes
  "An opened file with these bytes."
  [^bytes bytes]
  (symbols/open (fn [offset n]
                  (let [start (min (long offset) (alength bytes))
                        end (min (alength bytes) (+ start (long n)))]
                    (Arrays/copyOfRange bytes (int start) (int end))))))

(def ^:private example
  [{:provider "p" :name "first" :arguments "8@%rax"}
   {:provider "p" :name "first" :arguments "-4@$7"}
   {:provider "q" :name "gated" :arguments "" :semaphore true}])

(deftest reads-notes
  (testing "probes have their names, operands and places"
    (doseq [moved [0 0x300 -0x10]]
      (let [{:keys [bytes probes]} (probed/file example :moved moved)
            found (usdt/probes (of-bytes bytes))]
        (is (= (map (juxt :provider :name :arguments :address) probes)
               (map (juxt :provider :name :arguments :address) found)))
        (is (= (map #(- (long (:address %)) (long probed/base)) probes) (map :offset found)))
        (is (= [nil nil (:semaphore (last probes))] (map :semaphore-address found)))
        (is (= 0x1f04 (:semaphore (last found))) "the data lie elsewhere in memory than in the file")
        (is (not-any? #(contains? % :semaphore) (butlast found))))))
  (testing "a file without such notes has no probes"
    (is (= [] (usdt/probes (of-bytes (:bytes (probed/file [])))))))
  (testing "places outside of the file are nil"
    (let [found (usdt/probes (of-bytes (:bytes (probed/file example :moved 0x7000000000))))]
      (is (= (map :arguments example) (map :arguments found)) "moved back by the base"))))

(deftest hostile-notes
  (testing "any bytes in the file are read without an exception"
    (let [{:keys [^bytes bytes]} (probed/file example)
          random (Random.)]
      (dotimes [_ 3000]
        (let [copy (aclone bytes)]
          (dotimes [_ (inc (.nextInt random 8))]
            ;; The notes, the names and the headers begin at 0x2000.
            (let [at (if (zero? (.nextInt random 4))
                       (.nextInt random 256)
                       (+ 0x2000 (.nextInt random (- (alength copy) 0x2000))))]
              (aset copy at (unchecked-byte (.nextInt random)))))
          (is (vector? (or (some-> (of-bytes (if (zero? (.nextInt random 8))
                                               (Arrays/copyOf copy (.nextInt random
                                                                             (alength copy)))
                                               copy))
                                   usdt/probes)
                           []))))))))

(deftest arguments-on-x86-64
  (testing "reads the operands of x86-64"
    (are [text arguments] (= arguments (usdt/arguments 62 text))
      "" []
      "-4@%edi" [{:kind :register :size 4 :signed true :register 112}]
      "8@%rax 2@%cx" [{:kind :register :size 8 :signed false :register 80}
                      {:kind :register :size 2 :signed false :register 88}]
      "1@%ah" [{:kind :register :size 1 :signed false :register 81}]
      "-1@%r15b" [{:kind :register :size 1 :signed true :register 0}]
      "4@%r8d" [{:kind :register :size 4 :signed false :register 72}]
      "8@%r12 8@%r11" [{:kind :register :size 8 :signed false :register 24}
                       {:kind :register :size 8 :signed false :register 48}]
      "-4@$-9" [{:kind :constant :size 4 :signed true :value -9}]
      "8@$0x10" [{:kind :constant :size 8 :signed false :value 16}]
      "8@$18446744073709551615" [{:kind :constant :size 8 :signed false :value -1}]
      "8@(%rsp)" [{:kind :memory :size 8 :signed false :register 152 :offset 0}]
      "-4@-1204(%rbp)" [{:kind :memory :size 4 :signed true :register 32 :offset -1204}]
      "-1@-96(%rbp,%rax,8)" [{:kind :memory :size 1 :signed true :register 32 :offset -96
                              :index 80 :scale 8}]
      "8@(%rbx,%rcx)" [{:kind :memory :size 8 :signed false :register 40 :offset 0 :index 88
                        :scale 1}]
      "8@8(,%rdx,1)" [{:kind :memory :size 8 :signed false :register 96 :offset 8}]))
  (testing "and refuses what programs cannot read"
    (are [text words]
         (let [{:keys [message] :bpfmap/keys [error]} (error-of (usdt/arguments 62 text))]
           (and (= :not-supported error) (str/includes? message words)))
      "8f@%xmm0" "The argument \"8f@%xmm0\" of the probe is a floating-point number"
      "8@%xmm0" "is in the register xmm0, which programs cannot read"
      "8@(%rbp,%zmm0,8)" "is in the register zmm0"
      "8@counter(%rip)" "The argument \"8@counter(%rip)\" of the probe has a form that is not supported"
      "8@8(,%rdx,4)" "has a form that is not supported"
      "3@%rax" "has a form that is not supported"
      "4@" "has a form that is not supported"
      "%rax" "The argument \"%rax\" of the probe has a form that is not supported"
      (str/join " " (repeat 13 "8@%rax"))
      "The probe has 13 arguments: usdt.bpf.h of libbpf reads at most 12")
    (is (str/includes? (:message (error-of (usdt/arguments 2 "8@%o0")))
                       "belongs to an unknown processor, number 2 in ELF files"))))

(deftest arm64-arguments
  (testing "reads the operands of arm64"
    (are [text arguments] (= arguments (usdt/arguments 183 text))
      "-4@w1 8@x30" [{:kind :register :size 4 :signed true :register 8}
                     {:kind :register :size 8 :signed false :register 240}]
      "-4@5 8@-1" [{:kind :constant :size 4 :signed true :value 5}
                   {:kind :constant :size 8 :signed false :value -1}]
      "8@[sp] -4@[sp, 96] 8@[x29, -16] 1@[x0,#8]"
      [{:kind :memory :size 8 :signed false :register 248 :offset 0}
       {:kind :memory :size 4 :signed true :register 248 :offset 96}
       {:kind :memory :size 8 :signed false :register 232 :offset -16}
       {:kind :memory :size 1 :signed false :register 0 :offset 8}]
      "4@wzr" [{:kind :constant :size 4 :signed false :value 0}]))
  (testing "and refuses the others"
    (are [text words] (str/includes? (:message (error-of (usdt/arguments 183 text))) words)
      "8@[x0, x1]" "The argument \"8@[x0, x1]\" of the probe has a form that is not supported"
      "8@d0" "is in the register d0"
      "8@x31" "is in the register x31")))

(deftest riscv64-arguments
  (testing "reads the operands of riscv64"
    (are [text arguments] (= arguments (usdt/arguments 243 text))
      "8@a0 -4@s11 8@t6" [{:kind :register :size 8 :signed false :register 80}
                          {:kind :register :size 4 :signed true :register 216}
                          {:kind :register :size 8 :signed false :register 248}]
      "-4@-8(s0) 8@(sp)" [{:kind :memory :size 4 :signed true :register 64 :offset -8}
                          {:kind :memory :size 8 :signed false :register 16 :offset 0}]
      "4@zero -8@-3" [{:kind :constant :size 4 :signed false :value 0}
                      {:kind :constant :size 8 :signed true :value -3}]))
  (testing "and refuses the others"
    (is (str/includes? (:message (error-of (usdt/arguments 243 "8@fa0")))
                       "is in the register fa0"))))

(defn- layout
  "The layout of the descriptions of an object."
  [name]
  (let [type (get-in (object/read (str "test/objects/" name "-el.o"))
                     [:maps "__bpf_usdt_specs" :value])]
    {:size (type/size type) :offsets (type/offsets type)}))

(deftest descriptions
  (let [arguments (usdt/arguments 62 "-4@-8(%rbp) 8@$1")]
    (testing "a description has the layout of struct __bpf_usdt_spec"
      (let [bytes (usdt/description (layout "usdt") arguments 7)]
        (is (= 208 (alength bytes)))
        (is (= [-8 -1 -1 -1 -1 -1 -1 -1, 2 0 0 0, 32 0, 1, 32] (take 16 bytes)))
        (is (= [1 0 0 0 0 0 0 0, 0 0 0 0, 0 0, 0, 0] (take 16 (drop 16 bytes))))
        (is (= [7 0 0 0 0 0 0 0, 2 0] (take 10 (drop 192 bytes))))))
    (testing "also of newer versions"
      (let [bytes (usdt/description (layout "usdt-index")
                                    (conj arguments (first (usdt/arguments 62 "1@(%rax,%r9,4)")))
                                    -1)]
        (is (= 304 (alength bytes)))
        (is (= [-8 -1 -1 -1 -1 -1 -1 -1, 2 0, 0 0, 0 0, 32 0, 1, 32] (take 18 bytes)))
        (is (= [0 0 0 0 0 0 0 0, 3 0, 64 0x20, 0 0, 80 0, 0, 56] (take 18 (drop 48 bytes))))
        (is (= [-1 -1 -1 -1 -1 -1 -1 -1, 3 0] (take 10 (drop 288 bytes))))))
    (testing "an older header cannot read an index register"
      (let [{:keys [message] :bpfmap/keys [error]}
            (error-of (usdt/description (layout "usdt") (usdt/arguments 62 "1@(%rax,%rcx,4)") 0))]
        (is (= :not-supported error))
        (is (str/includes? message (str "An argument of the probe is addressed with an index register: "
                                        "compile the object with usdt.bpf.h of libbpf 1.7")))))
    (testing "another struct is refused"
      (doseq [changed [{:size 100} {:offsets {}}]]
        (let [{:keys [message] :bpfmap/keys [error]}
              (error-of (usdt/description (merge (layout "usdt") changed) arguments 0))]
          (is (= :incompatible error))
          (is (re-find #"must have the field \w+: include usdt.bpf.h of libbpf as it is" message)))))))
