(ns bpfmap.impl.btf.semantic-test
  "Prefixes of addresses in the kernel, and the structs that are read back as prefixes."
  (:require [bpfmap.btf :as btf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.types :as types]
            [bpfmap.impl.btf.writer :as writer]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.impl.map.map-btf :as map-btf]
            [clojure.data.json :as json]
            [clojure.java.io :as io]
            [clojure.test :refer [are deftest is testing]])
  (:import (bpfmap.sys Codec)
           (java.io File)
           (java.lang.foreign MemorySegment)
           (java.nio.file Files)))

(set! *warn-on-reflection* true)

(deftest prefix-becomes-a-struct
  (testing "a prefix type is written as a struct"
    (doseq [[family size] {:ipv4 8 :ipv6 20}]
      (let [{:keys [bytes ids]} (btf/->btf [[:prefix family]] nil)
            b (btf/parse bytes)
            record (blob/record b (first ids))]
        (is (= [:struct (types/prefix-structs family) size]
               ((juxt :kind :name :size) record)))
        (is (= [["prefixlen" 0 0] ["data" 32 0]]
               (map (juxt :name :bit-offset :bits) (:members record))))
        (is (= [:u32 [:bytes (- size 4)]] (map #(btf/type-of b (:type %)) (:members record))))))))

(deftest shared-prefix-struct
  (testing "all uses of a prefix share one struct"
    (let [{:keys [bytes ids]} (btf/->btf [[:prefix :ipv4]
                                          [:struct [:net [:prefix :ipv4]] [:six [:prefix :ipv6]]]
                                          [:prefix :ipv4]] nil)
          b (btf/parse bytes)]
      (is (= (first ids) (last ids)))
      (is (= 1 (count (blob/ids-named b "bpfmap_ipv4_prefix"))))
      (is (= [:struct [:net [:prefix :ipv4]] [:six [:prefix :ipv6]]]
             (btf/type-of b (second ids)))))))

;; --- structs that are read as prefixes

(def ^:private words
  [{:kind :int :name "unsigned int" :size 4 :bits 32 :offset 0 :signed false}     ; 1
   {:kind :int :name "unsigned char" :size 1 :bits 8 :offset 0 :signed false}     ; 2
   {:kind :int :name "char" :size 1 :bits 8 :offset 0 :signed true}               ; 3
   {:kind :int :name "int" :size 4 :bits 32 :offset 0 :signed true}               ; 4
   {:kind :array :element 2 :index 1 :count 4}                                     ; 5
   {:kind :array :element 2 :index 1 :count 16}                                    ; 6
   {:kind :array :element 3 :index 1 :count 4}                                     ; 7
   {:kind :typedef :name "__be32" :type 1}                                         ; 8
   {:kind :typedef :name "__u32" :type 1}                                          ; 9
   {:kind :typedef :name "__u8" :type 2}                                           ; 10
   {:kind :array :element 10 :index 1 :count 4}                                    ; 11
   {:kind :const :type 9}                                                          ; 12
   {:kind :array :element 2 :index 1 :count 0}])                                   ; 13

(defn- read-as
  "The type of a struct or union as data, given as `[name type bit-offset bits]`, from a blob that
  holds it."
  [kind name size & members]
  (let [records (conj words {:kind kind :name name :size size
                             :members (for [[name type bit-offset bits] members]
                                        {:name name :type type :bit-offset bit-offset
                                         :bits (or bits 0)})})]
    (btf/type-of (btf/parse (writer/blob records)) (count records))))

(deftest equal-struct-is-prefix
  (testing "a struct of that name and layout reads as a prefix"
    (is (= [:prefix :ipv4]
           (read-as :struct "bpfmap_ipv4_prefix" 8 ["prefixlen" 1 0] ["data" 5 32])))
    (is (= [:prefix :ipv4]
           (read-as :struct "bpfmap_ipv4_prefix" 8 ["prefixlen" 9 0] ["data" 11 32]))
        "in the kernel's words")
    (is (= [:prefix :ipv4]
           (read-as :struct "bpfmap_ipv4_prefix" 8 ["prefixlen" 12 0] ["data" 5 32])))
    (is (= [:prefix :ipv6]
           (read-as :struct "bpfmap_ipv6_prefix" 20 ["prefixlen" 1 0] ["data" 6 32])))))

(deftest other-layout-is-struct
  (testing "a struct of that name with another layout stays a struct"
    (are [t kind name size members] (= t (apply read-as kind name size members))
      [:struct {:name "bpfmap_ipv6_prefix"} [:prefixlen :u32] [:data [:bytes 4]]]
      :struct "bpfmap_ipv6_prefix" 8 [["prefixlen" 1 0] ["data" 5 32]]
      [:struct {:name "bpfmap_ipv4_prefix"} [:prefixlen :u32] [:data [:bytes 16]]]
      :struct "bpfmap_ipv4_prefix" 20 [["prefixlen" 1 0] ["data" 6 32]]
      [:struct {:size 12 :name "bpfmap_ipv4_prefix"} [:prefixlen :u32] [:data [:bytes 4]]]
      :struct "bpfmap_ipv4_prefix" 12 [["prefixlen" 1 0] ["data" 5 32]]
      [:struct {:name "bpfmap_ipv4_prefix"} [:data [:bytes 4]] [:prefixlen :u32]]
      :struct "bpfmap_ipv4_prefix" 8 [["data" 5 0] ["prefixlen" 1 32]]
      [:struct {:name "bpfmap_ipv4_prefix"} [:length :u32] [:data [:bytes 4]]]
      :struct "bpfmap_ipv4_prefix" 8 [["length" 1 0] ["data" 5 32]]
      [:struct {:name "bpfmap_ipv4_prefix"} [:prefixlen :s32] [:data [:bytes 4]]]
      :struct "bpfmap_ipv4_prefix" 8 [["prefixlen" 4 0] ["data" 5 32]]
      [:struct {:name "bpfmap_ipv4_prefix"} [:prefixlen :u32be] [:data [:bytes 4]]]
      :struct "bpfmap_ipv4_prefix" 8 [["prefixlen" 8 0] ["data" 5 32]]
      [:struct {:name "bpfmap_ipv4_prefix"} [:prefixlen :u32] [:data [:string 4]]]
      :struct "bpfmap_ipv4_prefix" 8 [["prefixlen" 1 0] ["data" 7 32]]
      [:struct {:name "bpfmap_ipv4_prefix"} [:prefixlen :u32] [:data :u32]]
      :struct "bpfmap_ipv4_prefix" 8 [["prefixlen" 1 0] ["data" 1 32]]
      [:struct {:name "bpfmap_ipv4_prefix"} [:prefixlen [:bits :u32 32]] [:data [:bytes 4]]]
      :struct "bpfmap_ipv4_prefix" 8 [["prefixlen" 1 0 32] ["data" 5 32]]
      [:struct {:packed true :name "bpfmap_ipv4_prefix"} [:prefixlen :u32 {:offset 0}]
       [:data [:bytes 4] {:offset 8}]]
      :struct "bpfmap_ipv4_prefix" 12 [["prefixlen" 1 0] ["data" 5 64]]
      [:struct {:size 8 :name "bpfmap_ipv4_prefix"} [:prefixlen :u32]]
      :struct "bpfmap_ipv4_prefix" 8 [["prefixlen" 1 0]]
      [:struct {:name "bpfmap_ipv4_prefix"} [:prefixlen :u32] [:data [:bytes 4]]
       [:more [:array :u8 0]]]
      :struct "bpfmap_ipv4_prefix" 8 [["prefixlen" 1 0] ["data" 5 32] ["more" 13 64]]
      [:union {:size 8 :name "bpfmap_ipv4_prefix"} [:prefixlen :u32] [:data [:bytes 4]]]
      :union "bpfmap_ipv4_prefix" 8 [["prefixlen" 1 0] ["data" 5 0]])))

(deftest other-names-are-structs
  (testing "structs of other names stay structs"
    (is (= [:struct {:name "bpf_lpm_trie_key"} [:prefixlen :u32] [:data [:bytes 4]]]
           (read-as :struct "bpf_lpm_trie_key" 8 ["prefixlen" 1 0] ["data" 5 32])))
    (is (= [:struct {:name "ipv4_key"} [:prefixlen :u32] [:data :u32be]]
           (read-as :struct "ipv4_key" 8 ["prefixlen" 1 0] ["data" 8 32])))
    (is (= [:struct {:name "bpf_lpm_trie_key_u8"} [:prefixlen :u32] [:data [:array :u8 0]]]
           (read-as :struct "bpf_lpm_trie_key_u8" 4 ["prefixlen" 1 0] ["data" 13 32])))))

(deftest compiled-struct-is-prefix
  (testing "a compiled struct of that name reads as a prefix"
    (if-let [clang (fixture/executable "clang")]
      (let [dir (fixture/temporary-directory)
            [c object] (map #(File. dir ^String %) ["prefix.c" "prefix.o"])]
        (try
          (spit c (str "typedef unsigned int __u32; typedef unsigned char __u8;\n"
                       "struct bpfmap_ipv4_prefix { __u32 prefixlen; __u8 data[4]; };\n"
                       "struct bpfmap_ipv6_prefix { __u32 prefixlen; __u8 data[16]; };\n"
                       "struct route { struct bpfmap_ipv4_prefix from; struct bpfmap_ipv6_prefix "
                       "to; } r;\n"))
          (is (= 0
                 (:exit (fixture/run [clang "-g" "-target" "bpf" "-c" (str c) "-o" (str object)]))))
          (is (= [:struct {:name "route"} [:from [:prefix :ipv4]] [:to [:prefix :ipv6]]]
                 (btf/type-named (btf/parse-object (Files/readAllBytes (.toPath ^File object)))
                                 "route")))
          (finally
            (run! #(.delete ^File %) (reverse (file-seq dir))))))
      (fixture/skip! "no clang to make an object with"))))

;; --- the kernel

(def ^:private facts {:op :create})

(defn- trie
  "The completed spec of a trie with a type of key."
  [key key-size]
  {:type :lpm-trie :key key :value :u32 :key-size key-size :value-size 4 :max-entries 8
   :flags #{:no-prealloc} :name nil})

(defn- with-map
  "Calls f with what `create-with-btf` makes of a spec, and the info of the map; closes it."
  [spec f]
  (let [before (fixture/settled-descriptors)
        {:keys [fd] :as created} (map-btf/create-with-btf spec facts)]
    (try
      (f created (map/info fd facts))
      (finally (call/close fd)))
    (is (= before (fixture/open-descriptors)))))

(kernel-test trie-key-type
  (testing "a trie keeps the type of its key"
    (doseq [[family size] {:ipv4 8 :ipv6 20}]
      (with-map (trie [:prefix family] size)
        (fn [{:keys [untyped]} {:keys [btf-id btf-key-type-id btf-value-type-id] :as info}]
          (is (nil? untyped))
          (is (every? pos-int? [btf-id btf-key-type-id btf-value-type-id]))
          (is (= {:key [:prefix family] :value :u32} (map-btf/types-of info {} {:op :open}))))))))

(kernel-test struct-trie-key
  (testing "a trie accepts BTF only if its key is a struct, also behind a typedef"
    (with-map (trie [:typedef "net_t" [:prefix :ipv4]] 8)
      (fn [{:keys [untyped]} info]
        (is (nil? untyped))
        (is (= [:typedef "net_t" [:prefix :ipv4]] (:key (map-btf/types-of info {} {:op :open}))))))
    (doseq [key [[:array :u32 2] :u64 [:typedef "net_t" [:bytes 8]]
                 [:union [:net [:prefix :ipv4]]]]]
      (with-map (trie key 8)
        (fn [{:keys [untyped]} info]
          (is (= "the kernel rejected the types of key and value for this map (EINVAL)" untyped)
              (pr-str key))
          (is (nil? (:btf-id info))))))))

(defn- encoded [t value]
  (let [^Codec c (codec/codec t)
        array (byte-array (.size c))]
    (.encode c value (MemorySegment/ofArray array) 0)
    array))

(defn- decoded
  "A value from its bytes as bpftool spells them: \"0x0a\"."
  [t bytes]
  (let [array (byte-array (map #(unchecked-byte (Long/decode %)) bytes))]
    (.decode (codec/codec t) (MemorySegment/ofArray array) 0)))

(defn- hex [array]
  (map #(format "%02x" %) array))

(kernel-test bits-after-prefix
  (testing "the kernel keeps the bits after a prefix and ignores them"
    (if-let [bpftool (fixture/executable "bpftool")]
      (with-map (trie [:prefix :ipv4] 8)
        (fn [_ {:keys [id]}]
          (let [run (fn [command & args]
                      (fixture/run (concat [bpftool "-j" "map" command "id" (str id)] args)))
                key-of #(concat ["key" "hex"] (hex (encoded [:prefix :ipv4] %)))
                put (fn [k v]
                      (:exit (apply run "update"
                                    (concat (key-of k) ["value" "hex"] (hex (encoded :u32 v))))))
                found #(let [{:keys [exit out]} (apply run "lookup" (key-of %))]
                         (when (zero? exit) (decoded :u32 (get (json/read-str out) "value"))))
                dump #(json/read-str (:out (run "dump")))
                keys-there #(set (map (fn [entry] (decoded [:prefix :ipv4] (get entry "key")))
                                      (dump)))]
            (is (= [0 0 0] [(put "10.0.0.0/8" 1) (put "10.1.2.3/16" 2) (put "192.168.0.1" 3)]))
            (is (= #{"10.0.0.0/8" "10.1.0.0/16" "192.168.0.1/32"} (keys-there)))
            (testing "other tools see fields"
              (is (= #{{"key" {"prefixlen" 8 "data" [10 0 0 0]} "value" 1}
                       {"key" {"prefixlen" 16 "data" [10 1 0 0]} "value" 2}
                       {"key" {"prefixlen" 32 "data" [192 168 0 1]} "value" 3}}
                     (set (map #(get % "formatted") (dump))))))
            (testing "the longest prefix is found, whatever stands behind the one asked for"
              (is (= [2 1 1 1 3 nil]
                     (map found
                          ["10.1.9.9" "10.9.9.9" "10.0.0.0/8" {:prefixlen 8 :data [10 255 0 0]}
                           "192.168.0.1" "192.168.0.0/24"]))))
            (testing
             "what another writer left behind a prefix is shown, is the same key, and is overwritten"
              (is (= 0 (put {:prefixlen 8 :data [10 1 2 3]} 4)))
              (is (contains? (keys-there) (decoded [:prefix :ipv4] (map str [8 0 0 0 10 1 2 3]))))
              (is (= 3 (count (keys-there))) "it took the place of 10.0.0.0/8")
              (is (= 4 (found "10.0.0.0/8")))
              (is (= 0 (put "10.0.0.0/8" 5)))
              (is (= #{"10.0.0.0/8" "10.1.0.0/16" "192.168.0.1/32"} (keys-there))))
            (testing "a length beyond the address"
              (is (not= 0 (put {:prefixlen 33 :data [10 1 2 3]} 6)))
              (is (nil? (found {:prefixlen 33 :data [10 1 2 3]})))))))
      (fixture/skip! "no bpftool to fill a trie with"))))

(kernel-test kernel-trie-key-struct
  (testing "the trie key of the kernel headers stays a struct"
    (if-not (.canRead (io/file "/sys/kernel/btf/vmlinux"))
      (fixture/skip! "this kernel shows no BTF of its own")
      (let [b (btf/parse (Files/readAllBytes (.toPath (io/file "/sys/kernel/btf/vmlinux"))))]
        (if-let [t (btf/type-named b "bpf_lpm_trie_key_u8")]
          (is (= [:struct {:name "bpf_lpm_trie_key_u8"}] (subvec t 0 2)))
          (fixture/skip! "this kernel has no bpf_lpm_trie_key_u8"))))))
