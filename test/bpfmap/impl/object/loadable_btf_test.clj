(ns bpfmap.impl.object.loadable-btf-test
  "BTF of objects as the kernel takes it, and as kernels took it that lacked kinds of types."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.fixture :refer [kernel-test]]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.writer :as writer]
            [bpfmap.impl.feature.btf :as feature-btf]
            [bpfmap.impl.kernel.btf :as kernel.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.object.loadable-btf :as loadable-btf]
            [bpfmap.object :as object]
            [clojure.test :refer [deftest is testing]])
  (:import (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

(def ^:private all-features (set (keys loadable-btf/features)))

(def ^:private older-kernels
  "The features of each kernel, from the one with none to the one with all."
  (reductions conj #{} (keys loadable-btf/features)))

(def ^:private records
  "A type of every kind, with everything that a compiler leaves to a loader."
  [{:kind :int :name "int" :size 4 :bits 32 :signed true}                  ; 1
   {:kind :int :name "char" :size 1 :bits 8}                               ; 2
   {:kind :array :element 2 :index 1 :count 5}                             ; 3
   {:kind :int :name "u64" :size 8 :bits 64}                               ; 4
   {:kind :var :name "CONFIG_TEXT" :type 3 :linkage :extern}               ; 5
   {:kind :var :name "CONFIG_B" :type 4 :linkage :extern}                  ; 6
   {:kind :var :name "CONFIG_A" :type 1 :linkage :extern}                  ; 7
   {:kind :datasec :name ".kconfig" :size 0                                ; 8
    :vars [{:type 5 :offset 0 :size 5} {:type 6 :offset 0 :size 8} {:type 7 :offset 0 :size 4}]}
   {:kind :const :type 0}                                                  ; 9
   {:kind :var :name "bpf_link_fops" :type 9 :linkage :extern}             ; 10
   {:kind :func-proto :return 1 :params [{:type 1} {:name "b" :type 1}]}   ; 11
   {:kind :func :name "bpf_rcu_read_lock" :type 11 :linkage :extern}       ; 12
   {:kind :datasec :name ".ksyms" :size 0                                  ; 13
    :vars [{:type 10 :offset 0 :size 0} {:type 12 :offset 0 :size 0}]}
   {:kind :func :name "hidden" :type 11 :linkage :global}                  ; 14
   {:kind :func :name "open" :type 11 :linkage :global}                    ; 15
   {:kind :var :name "a" :type 1 :linkage :global}                         ; 16
   {:kind :var :name "b" :type 1 :linkage :static}                         ; 17
   {:kind :datasec :name ".data" :size 8                                   ; 18
    :vars [{:type 16 :offset 4 :size 4} {:type 17 :offset 0 :size 4}
           {:type 17 :offset 2 :size 4} {:type 17 :offset 8 :size 4}]}
   {:kind :datasec :name "?.data.a-b" :size 4 :vars [{:type 16 :offset 0 :size 4}]} ; 19
   {:kind :float :name "double" :size 8}                                   ; 20
   {:kind :decl-tag :name "a tag" :type 16 :component -1}                  ; 21
   {:kind :type-tag :name "kptr" :type 1}                                  ; 22
   {:kind :ptr :type 22}                                                   ; 23
   {:kind :enum64 :name "wide" :size 8 :signed true :values [["W" -1] ["V" 5]]} ; 24
   {:kind :enum :name "narrow" :size 4 :signed true :values [["N" -1] ["M" 5]]} ; 25
   {:kind :type-tag :name "any" :type 1 :attribute true}                   ; 26
   {:kind :ptr :type 26}                                                   ; 27
   {:kind :struct :name "s" :size 8 :members [{:name "f" :type 20 :bit-offset 0}]} ; 28
   {:kind :fwd :name "gone"}                                               ; 29
   {:kind :datasec :name ".lost" :size 0 :vars [{:type 16 :offset 0 :size 4}]}]) ; 30

(def ^:private o
  {:btf (bytes/wrap (writer/blob records))
   :programs {"p" {:btf-id 15 :lines [{:slot 0 :file "a.c" :text "int a" :line 7 :column 3}
                                      {:slot 2 :file "a.c" :text "narrow" :line 9 :column 1}]}}
   :functions {"hidden" {:btf-id 14 :visibility :hidden :linkage :global
                         :lines [{:slot 1 :file "b.c" :text "return" :line 1 :column 0}]}
               "bare" {:btf-id 15}
               "typeless" {}}})

(defn- parsed [{:keys [bytes]}]
  (blob/parse bytes))

(defn- record [b id]
  (dissoc (blob/record b id) :id))

(deftest every-kernel
  (testing "what no kernel takes is replaced, and ids stay"
    (let [l (loadable-btf/loadable o all-features)
          b (parsed l)]
      (testing "the values of the configuration are laid out"
        (is (= {:size 17 :offsets {"CONFIG_B" 0 "CONFIG_A" 8 "CONFIG_TEXT" 12}} (:kconfig l)))
        (is (= {:kind :datasec :name ".kconfig" :size 17
                :vars [{:type 6 :offset 0 :size 8} {:type 7 :offset 8 :size 4}
                       {:type 5 :offset 12 :size 5}]}
               (record b 8)))
        (is (= [:global :global :global] (map (comp :linkage #(record b %)) [5 6 7]))))
      (testing "symbols of the kernel are ints"
        (is (= {:kind :datasec :name ".ksyms" :size 8
                :vars [{:type 10 :offset 0 :size 4} {:type 31 :offset 4 :size 4}]}
               (record b 13)))
        (is (= {:kind :var :name "bpf_link_fops" :type 1 :linkage :global} (record b 10)))
        (is (= {:kind :var :name "dummy_ksym" :type 1 :linkage :global} (record b 31)))
        (is (= {:kind :func :name "bpf_rcu_read_lock" :type 11 :linkage :global} (record b 12)))
        (is (= ["dummy_ksym" "b"] (map :name (:params (record b 11))))))
      (testing "a hidden function is static"
        (is (= [:static :global] (map (comp :linkage #(record b %)) [14 15]))))
      (testing "variables are in order and do not overlap"
        (is (= {:kind :datasec :name ".data" :size 8
                :vars [{:type 17 :offset 0 :size 4} {:type 16 :offset 4 :size 4}]}
               (record b 18)))
        (is (= {:kind :datasec :name ".lost" :size 4 :vars [{:type 16 :offset 0 :size 4}]}
               (record b 30))))
      (testing "and all else keeps its bytes"
        (is (= 31 (blob/type-count b)))
        (doseq [id [1 2 3 4 9 20 21 22 23 24 25 26 27 28 29]]
          (is (= (blob/record (blob/parse (writer/blob records)) id) (blob/record b id)))))))
  (testing "an int is added if the object has none"
    (let [b (parsed (loadable-btf/loadable
                     {:btf (bytes/wrap (writer/blob [{:kind :var :name "v" :type 0 :linkage :extern}
                                                     {:kind :datasec :name ".ksyms" :size 0
                                                      :vars [{:type 1 :offset 0 :size 0}]}]))}
                     all-features))]
      (is (= {:kind :var :name "v" :type 3 :linkage :global} (record b 1)))
      (is (= ["int" 4] ((juxt :name :size) (record b 3))))))
  (testing "an object without types has none"
    (is (nil? (loadable-btf/loadable {} all-features)))
    (is (nil? (loadable-btf/func-info nil [{:slot 0 :program {}}])))
    (is (nil? (loadable-btf/line-info nil [{:slot 0 :program {}}])))))

(deftest older
  (testing "a kernel gets types that it has, of the same sizes"
    (let [without (fn [feature id]
                    (record (parsed (loadable-btf/loadable o (disj all-features feature))) id))]
      (is (= {:kind :typedef :name "open" :type 11} (without :func 15)))
      (is (= {:kind :enum :size 4 :signed false :values []} (without :func 11)))
      (is (= :static (:linkage (without :global-func 15))))
      (is (= {:kind :struct :name "_data" :size 8
              :members [{:name "b" :type 17 :bit-offset 0 :bits 0}
                        {:name "a" :type 16 :bit-offset 32 :bits 0}]}
             (without :datasec 18)))
      (is (= ["__data_a_b" "_kconfig"] (map (comp :name #(without :datasec %)) [19 8])))
      (is (= ["a" 1 8] ((juxt :name :size :bits) (without :datasec 16))))
      (is (= ["dummy_ksym" :int] ((juxt :name :kind) (without :datasec 31))))
      (is (= {:kind :struct :size 8 :members []} (without :float 20)))
      (is (= ["a tag" :int 1] ((juxt :name :kind :size) (without :decl-tag 21))))
      (is (= {:kind :const :type 1} (without :type-tag 22) (without :type-tag 26)))
      (is (= {:kind :union :name "wide" :size 8
              :members [{:name "W" :type 32 :bit-offset 0 :bits 0}
                        {:name "V" :type 32 :bit-offset 0 :bits 0}]}
             (without :enum64 24)))
      (is (= [["N" 0xffffffff] ["M" 5]] (:values (without :enum64 25))))
      (is (= "_.data.a_b" (:name (without :optional-section 19))))
      (is (= {:kind :type-tag :name "any" :type 1} (without :attribute 26)))))
  (testing "and no kernel gets a kind that it lacks"
    (let [kinds {:func #{:func :func-proto} :datasec #{:datasec :var} :float #{:float}
                 :decl-tag #{:decl-tag} :type-tag #{:type-tag} :enum64 #{:enum64}}]
      (doseq [features older-kernels
              :let [b (parsed (loadable-btf/loadable o features))]
              [feature lacking] kinds :when (not (features feature))
              id (range 1 (inc (blob/type-count b)))]
        (is (not (lacking (blob/kind b id))) [features id])))))

(defn- words [^bytes bytes]
  (let [buffer (.order (ByteBuffer/wrap bytes) (ByteOrder/nativeOrder))]
    (vec (repeatedly (quot (alength bytes) 4) #(.getInt buffer)))))

(defn- part [slot kind name]
  {:slot slot :program (get-in o [kind name])})

(deftest instruction-tables
  (let [l (loadable-btf/loadable o all-features)
        b (parsed l)
        text #(blob/string b %)
        p (part 0 :programs "p")
        lines (fn [parts]
                (for [[slot file line position]
                      (partition 4 (words (loadable-btf/line-info l parts)))]
                  [slot (text file) (text line) (bit-shift-right position 10)
                   (bit-and 0x3ff position)]))]
    (testing "functions have their types"
      (is (= [0 15 12 14]
             (words (loadable-btf/func-info l [p (part 12 :functions "hidden")]))))
      (is (nil? (loadable-btf/func-info l [p (part 12 :functions "typeless")]))))
    (testing "lines have their file and text; strings of the BTF are used again"
      (is (= [[0 "a.c" "int a" 7 3] [2 "a.c" "narrow" 9 1]] (lines [p])))
      (is (= 1 (count (re-seq #"narrow" (String. ^bytes (:bytes l) "ISO-8859-1"))))))
    (testing "each function has a line at its start"
      (is (= [[0 "a.c" "int a" 7 3] [2 "a.c" "narrow" 9 1]
              [12 "b.c" "return" 1 0] [13 "b.c" "return" 1 0]
              [20 "" "" 0 0]]
             (lines [p (part 12 :functions "hidden") (part 20 :functions "bare")])))
      (is (nil? (loadable-btf/line-info l [(part 0 :functions "bare")]))))
    (testing "lines that were edited stay in order, and numbers in their range"
      (is (= [[0 "new.c" "x" 0 0] [3 "new.c" "y" 5 0]]
             (let [program {:btf-id 15 :lines [{:slot 3 :file "new.c" :text "y" :line 5 :column 5000}
                                               {:slot 0 :file "new.c" :text "x" :line -1}
                                               {:slot 3 :file "new.c" :text "z" :line 6}]}
                   l (loadable-btf/loadable (assoc-in o [:programs "p"] program) all-features)
                   b (parsed l)]
               (for [[slot file line position]
                     (partition 4 (words (loadable-btf/line-info l [{:slot 0 :program program}])))]
                 [slot (blob/string b file) (blob/string b line)
                  (bit-shift-right position 10) (bit-and 0x3ff position)])))))
    (testing "kernels without types of functions get neither"
      (let [l (loadable-btf/loadable o (disj all-features :func))]
        (is (nil? (loadable-btf/func-info l [p])))
        (is (nil? (loadable-btf/line-info l [p])))))))

(defn- loads? [^bytes bytes]
  (call/close (kernel.btf/load bytes nil {:op :load}))
  true)

(kernel-test kernel-takes-it
  (testing "the kernel takes the types of every object, also as older kernels get them"
    (let [here (feature-btf/supported {:op :load})]
      (doseq [object [o (object/read "test/objects/flows-el.o")
                      (object/read "test/objects/newer-el.o")]
              features older-kernels
              :let [l (loadable-btf/loadable object (set (filter here features)))]]
        (is (loads? (:bytes l)) features)))))

(kernel-test features-by-probing
  (testing "the features are probed one by one if the kernel does not take all at once"
    (let [here (feature-btf/supported {:op :load})
          seen (atom [])]
      (is (contains? here :func))
      (is (= #{:func :float}
             (feature-btf/probe (fn [^bytes bytes]
                                  (swap! seen conj bytes)
                                  (some #(= (seq bytes) (seq (feature-btf/blob %)))
                                        [:func :float])))))
      (is (= (inc (count loadable-btf/features)) (count @seen)))
      (doseq [feature here]
        (is (loads? (feature-btf/blob feature)) feature))
      (is (identical? here (feature-btf/supported {:op :load}))))))
