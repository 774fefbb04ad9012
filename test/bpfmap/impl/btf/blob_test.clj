(ns bpfmap.impl.btf.blob-test
  "Reading BTF: the records."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.fixture :as fixture]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.kinds :as kinds]
            [bpfmap.impl.btf.samples :as samples :refer [big info little needs-base raw refused]]
            [bpfmap.impl.btf.writer :as writer]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.nio ByteOrder)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

(def ^:private u32-max 0xffffffff)

;; ---------------------------------------------------------------- records

(deftest both-byte-orders
  (testing "reads type records in either byte order"
    (doseq [order [ByteOrder/LITTLE_ENDIAN ByteOrder/BIG_ENDIAN]
            :let [b (blob/parse (raw [1 (info :int) 4 0x01000020
                                      0 (info :ptr) 3
                                      5 (info :struct 2 1) 8, 10 1 0x03000000, 0 2 0x1d000003]
                                     ["" "int" "pair" "low"]
                                     :order order))]]
      (is (= [{:id 0 :kind :void}
              {:id 1 :kind :int :name "int" :size 4 :bits 32 :offset 0 :signed true :char false
               :bool false}
              {:id 2 :kind :ptr :type 3}
              {:id 3 :kind :struct :name "pair" :size 8
               :members [{:name "low" :type 1 :bit-offset 0 :bits 3}
                         {:type 2 :bit-offset 3 :bits 29}]}]
             (map #(blob/record b %) (range 4))))
      (is (= 3 (blob/type-count b)))
      (is (nil? (blob/base b)))
      (is (= 14 (blob/string-end b)))
      (is (= [:void :int :ptr :struct] (map #(blob/kind b %) (range 4))))
      (is (= ["" "int" "nt" "pair"] (map #(blob/string b %) [0 1 2 5])))
      (is (= (str "#<btf 3 types, 102 bytes " order ">") (str b) (pr-str b))))))

(deftest offsets-without-flag
  (testing "without the bit-field flag all bits of a member are its offset"
    (let [b (blob/parse (raw [0 (info :struct 1 0) 4, 0 0 0x03000002] [""]))]
      (is (= [{:type 0 :bit-offset 0x03000002 :bits 0}] (:members (blob/record b 1)))))))

(deftest enumerator-width-and-sign
  (testing "enumerators have the width and sign of their enum"
    (let [values (fn [& words]
                   (map second (:values (blob/record (blob/parse (raw words [""])) 1))))]
      (is (= [4294967295 0] (values 0 (info :enum 2 0) 4, 0 u32-max, 0 0)))
      (is (= [-1 -2147483648 2147483647]
             (values 0 (info :enum 3 1) 4, 0 u32-max, 0 0x80000000, 0 0x7fffffff)))
      (is (= [18446744073709551615 9223372036854775808 4294967296]
             (values 0 (info :enum64 3 0) 8, 0 u32-max u32-max, 0 0 0x80000000, 0 0 1)))
      (is (= [-1 Long/MIN_VALUE 4294967295]
             (values 0 (info :enum64 3 1) 8, 0 u32-max u32-max, 0 0 0x80000000, 0 u32-max 0)))
      (is (= [clojure.lang.BigInt Long]
             (map class (values 0 (info :enum64 2 0) 8, 0 0 0x80000000, 0 5 0)))))))

(deftest unknown-linkage
  (testing "an unknown linkage keeps its number"
    (let [b (blob/parse (raw [0 (info :func 1) 0, 0 (info :func 9) 0, 0 (info :var) 0 2, 0
                              (info :var) 0 77] [""]))]
      (is (= [:global 9 :extern 77] (map #(:linkage (blob/record b %)) (range 1 5)))))))

(deftest tags-for-attributes
  (testing "a tag can stand for an attribute"
    (is (= [{:id 1 :kind :type-tag :type 0 :attribute true}
            {:id 2 :kind :decl-tag :type 1 :component -1 :attribute true}]
           (samples/all-records (blob/parse (raw [0 (info :type-tag 0 1) 0, 0 (info :decl-tag 0 1) 1
                                                  -1] [""])))))))

(deftest many-parameters
  (testing "reads more entries than older kernels accept"
    (is (= 65536
           (count
            (:params
             (blob/record (blob/parse (raw (concat [0 (info :func-proto 65536) 0]
                                                   (repeat 131072 0))
                                           [""]))
                          1)))))))

(deftest arrays-and-views
  (testing "parses a byte array or a byte view"
    (let [array (writer/blob [{:kind :ptr :type 0}])]
      (is (= "#<btf 1 types, 37 bytes LITTLE_ENDIAN>"
             (str (blob/parse (writer/blob [{:kind :ptr :type 0}] little)))))
      (is (= (str (blob/parse array)) (str (blob/parse (bytes/->bytes array))))))))

(deftest bad-arguments
  (testing "rejects arguments that are not BTF"
    (let [b (blob/parse (writer/blob []))
          said (fn [f] (let [{:keys [message] :bpfmap/keys [error]} (fixture/caught f)]
                         (is (= :invalid-value error))
                         message))]
      (are [message f] (= message (said f))
        "BTF must be a byte array or a byte view, got \"9f eb\"" #(blob/parse "9f eb")
        "The base must be a BTF blob or nil, got 1: pass the parsed BTF of vmlinux"
        #(blob/parse (writer/blob []) 1)
        "The id of a type must be an integer, got nil" #(blob/record b nil)
        "The id of a type must be an integer, got \"1\"" #(blob/size-of b "1")
        "The offset of a string must be an integer, got :x" #(blob/string b :x)
        "The name of a type must be a string, got :int" #(blob/ids-named b :int)
        (str
         "The kind of a type must be :int, :ptr, :array, :struct, :union, :enum, :fwd, "
         ":typedef, :volatile, "
         ":const, :restrict, :func, :func-proto, :var, :datasec, :float, :decl-tag, :type-tag "
         "or :enum64, got :class")
        #(blob/ids-named b "a" :class)))))

;; ---------------------------------------------------------------- names

(deftest ordered-ids-by-name
  (testing "finds ids by name in ascending order"
    (let [b (blob/parse (writer/blob [{:kind :struct :name "same" :size 0} {:kind :ptr :type 0}
                                      {:kind :typedef :name "same" :type 1} {:kind :fwd :name "sam"}
                                      {:kind :struct :name "same" :size 1}
                                      {:kind :fwd :name "größe"}]))]
      (is (= [1 3 5] (blob/ids-named b "same")))
      (is (vector? (blob/ids-named b "same")))
      (is (= [1 5] (blob/ids-named b "same" :struct)))
      (is (= [3] (blob/ids-named b "same" :typedef)))
      (is (= [4] (blob/ids-named b "sam")))
      (is (= [6] (blob/ids-named b "größe")))
      (is (= [] (blob/ids-named b "s") (blob/ids-named b "samey") (blob/ids-named b "")
             (blob/ids-named b "sam\u0000")
             (blob/ids-named b (apply str (repeat 500 "x")))))
      (is (= [] (blob/ids-named (blob/parse (writer/blob [])) "same"))))))

(deftest long-names-distinguished
  (testing "distinguishes names longer than the hashed prefix"
    (let [long-name (apply str (repeat 100 "long"))
          b (blob/parse (writer/blob (for [end ["a" "b" "" "a"]]
                                       {:kind :fwd :name (str long-name end)})))]
      (is (= [1 4] (blob/ids-named b (str long-name "a"))))
      (is (= [3] (blob/ids-named b long-name)))
      (is (= [] (blob/ids-named b (subs long-name 0 64)))))))

(deftest concurrent-lookup
  (testing "many threads find the same ids"
    (let [b (blob/parse (writer/blob (for [i (range 5000)]
                                       {:kind :fwd :name (str "name" (mod i 1000))})))]
      (is (= (repeat 8 [8 1008 2008 3008 4008])
             (fixture/in-threads 8 (fn [_] (blob/ids-named b "name7"))))))))

;; ---------------------------------------------------------------- following

(deftest resolve-skips-typedefs
  (testing "resolve skips typedefs, qualifiers and tags"
    (let [b (blob/parse (writer/blob samples/every-kind))]
      (is (= [0 1 1 4 17 1] (map #(blob/resolve b %) [0 1 13 16 17 27]))
          "void; int; typedef of const of volatile of int; restrict of a pointer; a prototype; type tag of int"))))

(deftest type-sizes
  (testing "size-of returns bytes, or nil for types without values"
    (let [b (blob/parse (writer/blob samples/every-kind))]
      (is (= [nil, 4 1 1 8 12 16 8 16 4 4, nil nil 4 4 4 8 nil nil 4 8, 12 4 nil nil 8 8 4 8]
             (map #(blob/size-of b %) (range 29)))))
    (testing "arrays of arrays, and of nothing"
      (let [b (blob/parse (writer/blob [{:kind :float :size 8}
                                        {:kind :array :element 1 :index 1 :count 4}
                                        {:kind :array :element 2 :index 1 :count 5}
                                        {:kind :array :element 0 :index 1 :count 5}
                                        {:kind :array :element 3 :index 1 :count 0}
                                        {:kind :array :element 5 :index 1 :count 0xffffffff}]))]
        (is (= [32 160 nil 0 0] (map #(blob/size-of b %) [2 3 4 5 6])))))))

(defn- chain
  "A blob of n typedefs, each of the next, and at last an int."
  [n]
  (blob/parse (writer/blob (conj (mapv (fn [i] {:kind :typedef :name "t" :type (+ i 2)}) (range n))
                                 (first samples/every-kind)))))

(deftest reference-depth-limit
  (testing "follows at most 64 references"
    (is (= [65 4] [(blob/resolve (chain 64) 1) (blob/size-of (chain 64) 1)]))
    (doseq [f [blob/resolve blob/size-of] n [65 100000]]
      (is (= [[:type 1]
              "Malformed BTF: type 1 must lead through at most 64 types, and not in a cycle"]
             (refused (f (chain n) 1)))))))

(deftest cycles-are-errors
  (testing "a cycle of types is an error"
    (let [b (blob/parse (writer/blob [{:kind :typedef :name "a" :type 2} {:kind :const :type 1}
                                      {:kind :array :element 3 :index 1 :count 2}
                                      {:kind :var :name "v" :type 4 :linkage :static}
                                      {:kind :ptr :type 5}]))]
      (is (= [[:type 2]
              "Malformed BTF: type 2 must lead through at most 64 types, and not in a cycle"]
             (refused (blob/resolve b 2))
             (refused (blob/size-of b 2))))
      (is (= [:type 3] (first (refused (blob/size-of b 3)))))
      (is (= [:type 4] (first (refused (blob/size-of b 4)))))
      (is (= [3 8 5] [(blob/resolve b 3) (blob/size-of b 5) (blob/resolve b 5)])
          "a pointer to itself is not a cycle"))))

(deftest sizes-beyond-32-bits
  (testing "rejects sizes of more than 32 bits"
    (let [b (blob/parse (writer/blob [{:kind :float :size 0xffffffff}
                                      {:kind :array :element 1 :index 1 :count 0xffffffff}
                                      {:kind :array :element 1 :index 1 :count 1}
                                      {:kind :array :element 3 :index 1 :count 2}]))]
      (is (= [[:type 2 :count]
              "Malformed BTF: the count of type 2 must have at most 4294967295 bytes, got 4294967295 elements of 4294967295"]
             (refused (blob/size-of b 2))))
      (is (= 0xffffffff (blob/size-of b 3)))
      (is (= [:type 4 :count] (first (refused (blob/size-of b 4))))))))

;; ---------------------------------------------------------------- split

(def ^:private base-records
  (samples/numbered [{:kind :fwd :name "shared" :union false}
                     {:kind :struct :name "of_base" :size 8 :members []}]))

(def ^:private split-records
  (samples/numbered [{:kind :ptr :type 2} {:kind :fwd :name "shared" :union true}
                     {:kind :const :type 5}
                     {:kind :array :element 2 :index 0 :count 3}]
                    3))

(deftest split-blob-after-base
  (testing "a split blob continues the ids and strings of its base"
    (doseq [order [little big]
            :let [base (blob/parse (writer/blob base-records order))
                  b (blob/parse (writer/blob split-records (assoc order :base base)) base)]]
      (is (= (into [{:id 0 :kind :void}] (concat base-records split-records))
             (map #(blob/record b %) (range 7))))
      (is (= [6 2] [(blob/type-count b) (blob/type-count base)]))
      (is (identical? base (blob/base b)))
      (is (= [1 4] (blob/ids-named b "shared")))
      (is (= [1] (blob/ids-named base "shared")))
      (is (= [2] (blob/ids-named b "of_base" :struct)))
      (is (= [24 8 nil] (map #(blob/size-of b %) [6 2 4])))
      (is (re-find #"^#<btf 6 types, 2 of them the base's, 91 bytes " (str b)))
      (is (= ["" "shared" "of_base" "shared"] (map #(blob/string b %) [0 1 8 16])))
      (is (= 23 (blob/string-end b)))
      (is (= [:type 7] (first (refused (blob/record b 7))))))))

(deftest strings-of-the-base
  (testing "a split blob can use strings of its base"
    (let [base (blob/parse (raw [1 (info :fwd) 0] ["" "name"]))
          b (blob/parse (raw [1 (info :typedef) 1, 6 (info :fwd) 0] ["own"]) base)
          stringless (blob/parse (raw [1 (info :typedef) 1] "") base)]
      (is (= [["name" "own"] [1 2] [3]]
             [(map #(:name (blob/record b %)) [2 3]) (blob/ids-named b "name")
              (blob/ids-named b "own")]))
      (is (= [1 2] (blob/ids-named stringless "name")))
      (testing "and there may be a third on top"
        (let [third (blob/parse (raw [10 (info :const) 3, 6 (info :const) 4] ["top"]) b)]
          (is (= [{:id 4 :kind :const :name "top" :type 3} {:id 5 :kind :const :name "own" :type 4}]
                 (samples/all-records third)))
          (is (= [3 5] (blob/ids-named third "own")))
          (is (= 3 (blob/resolve third 5))))))))

(deftest split-blob-without-base
  (testing "a split blob without its base is an error that names the base"
    (let [base (blob/parse (writer/blob base-records))
          split (writer/blob split-records {:base base})]
      (is (= [[:strings] (str "Malformed BTF: the strings must begin with an empty string: " needs-base)]
             (refused (blob/parse split))))
      (testing "with a base, an offset that is too large does not suggest a missing base"
        (is (= [[:type 3 :name]
                "Malformed BTF: the name of type 3 must be an offset below 18, got 99"]
               (refused (blob/parse (raw [99 (info :ptr) 0] ["" ""]) base))))))))

;; ---------------------------------------------------------------- tables

(deftest tables-match-the-header
  (testing "the tables match the kernel header"
    (let [c-name #(str "BTF_KIND_" (str/replace (str/upper-case (name %)) "-" "_"))
          values (fixture/c-values ["linux/btf.h"]
                                   (concat (map c-name kinds/kinds)
                                           ["BTF_FUNC_STATIC" "BTF_FUNC_GLOBAL" "BTF_FUNC_EXTERN"
                                            "BTF_VAR_STATIC"
                                            "BTF_VAR_GLOBAL_ALLOCATED" "BTF_VAR_GLOBAL_EXTERN"
                                            "sizeof(struct btf_array)" "sizeof(struct btf_member)"
                                            "sizeof(struct btf_enum)" "sizeof(struct btf_enum64)"
                                            "sizeof(struct btf_param)"
                                            "sizeof(struct btf_var_secinfo)"]))]
      (if (empty? values)
        (fixture/skip! "no C compiler with <linux/btf.h> to compare the kinds with")
        (do
          (doseq [kind kinds/kinds :when (values (c-name kind))]
            (is (= (values (c-name kind)) (kinds/numbers kind)) kind))
          (doseq [[names linkage] [[["BTF_FUNC_STATIC" "BTF_VAR_STATIC"] :static]
                                   [["BTF_FUNC_GLOBAL" "BTF_VAR_GLOBAL_ALLOCATED"] :global]
                                   [["BTF_FUNC_EXTERN" "BTF_VAR_GLOBAL_EXTERN"] :extern]]
                  c names :when (values c)]
            (is (= linkage (kinds/linkages (values c))) c))
          (doseq [[c bytes] {"array" (kinds/tail-bytes :array) "member" (kinds/entry-bytes :struct)
                             "enum" (kinds/entry-bytes :enum) "enum64" (kinds/entry-bytes :enum64)
                             "param" (kinds/entry-bytes :func-proto)
                             "var_secinfo" (kinds/entry-bytes :datasec)}
                  :let [size (values (str "sizeof(struct btf_" c ")"))] :when size]
            (is (= size bytes) c))))
      (is (= [4 12 12]
             [(kinds/numbers :struct) (kinds/tail-bytes :array) (kinds/entry-bytes :enum64)]))
      (is (= 19 (count kinds/kinds))))))

(deftest parsing-keeps-bytes
  (testing "parsing does not change the bytes"
    (let [bytes (writer/blob samples/every-kind)
          before (aclone bytes)
          b (blob/parse bytes)]
      (samples/all-records b)
      (blob/ids-named b "int")
      (is (Arrays/equals before bytes)))))
