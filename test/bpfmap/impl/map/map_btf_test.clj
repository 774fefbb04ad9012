(ns bpfmap.impl.map.map-btf-test
  "Maps with types: created with BTF, opened with it, and held against what bpftool makes of the
  same bytes."
  (:require [bpfmap.btf :as btf]
            [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.impl.map.map-btf :as map-btf]
            [bpfmap.impl.type.node :as node]
            [bpfmap.programs :as programs]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.data.json :as json]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]]
            [clojure.test.check :as check]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.io Closeable File)
           (java.util Map)))

(set! *warn-on-reflection* true)

(def ^:private flows
  {:name "t_flows" :type :hash :max-entries 8
   :key [:struct {:name "flow_key"} [:src :ipv4] [:dst :ipv4] [:sport :port] [:dport :u16be]
         [:proto :u8] [:pad 3]]
   :value [:struct {:name "flow"} [:packets :u64] [:comm [:string 16]] [:mac :mac]
           [:state [:enum :u32 (array-map :NEW 0 :OLD 1)]]
           [:flags [:bits :u32 3]] [:v6 :ipv6] [:seen :ktime] [nil [:union [:a :u32] [:b :s32]]]]})

(def ^:private k {:src "10.0.0.1" :dst "10.0.0.2" :sport 80 :dport 443 :proto 6})
(def ^:private v
  {:packets 1 :comm "bash" :mac "00:1b:21:0a:0b:0c" :state :OLD :flags 5 :v6 "::1" :seen 7 :a 3})

(kernel-test typed-map-as-data
  (testing "a typed map is written and read as data"
    (with-open [m ^Closeable (bpf/create flows)]
      (bpf/put! m k v)
      (is (= (assoc v :b 3) (m k)))
      (is (= {k (assoc v :b 3)} (into {} m)))
      (is (= k (bpf/next-key m)))
      (let [{:keys [message]
             :bpfmap/keys [error path map op]} (error-of (bpf/put! m (assoc k :src "10.0.0") v))]
        (is (= [:invalid-value [:key :src] :put! "t_flows"] [error path op (:name map)]))
        (is (str/starts-with? message "[:key :src]: \"10.0.0\" is not a :ipv4")))
      (is (= [:value :comm] (:bpfmap/path (error-of (bpf/put! m k (dissoc v :comm))))))
      (is (= {k (assoc v :b 3)} (into {} m)) "refused writes changed nothing"))))

(kernel-test semantic-types
  (testing "semantic types survive in the kernel"
    (with-open [m ^Closeable (bpf/create flows)]
      (bpf/put! m k v)
      (testing "in this process"
        (with-open [o ^Closeable (bpf/open (:id (bpf/info m)))]
          (is (= (into {} m) (into {} o)))
          (is (= [:struct {:name "flow_key"} [:src :ipv4] [:dst :ipv4] [:sport :port]
                  [:dport :u16be] [:proto :u8]]
                 (:key (bpf/spec o))))
          (bpf/put! o (assoc k :src "10.0.0.9") v)
          (is (= (m (assoc k :src "10.0.0.9")) (o (assoc k :src "10.0.0.9"))))
          (testing "a map made from the opened one's spec"
            (with-open [again ^Closeable (bpf/create (bpf/spec o))]
              (is (= (dissoc (bpf/info o) :id :btf-id :memlock)
                     (dissoc (bpf/info again) :id :btf-id :memlock)))))))
      (testing "in another process"
        (let [{:keys [out err exit]}
              (fixture/run (fixture/java
                            "-e"
                            (str "(require '[bpfmap.core :as bpf]) (with-open [m (bpf/open "
                                 (:id (bpf/info m)) ")] (prn (into {} m)))")))]
          (is (= 0 exit) err)
          (is (= (into {} m) (read-string out))))))))

(kernel-test given-types-override
  (testing "types given to open override the types of the map"
    (with-open [m ^Closeable (bpf/create flows)]
      (bpf/put! m k v)
      (with-open [o ^Closeable (bpf/open (:id (bpf/info m)) {:key [:bytes 16]})]
        (is (= (bpf/->bytes "0a000001 0a000002 0050 01bb 06 000000") (bpf/next-key o)))
        (is (= (:mac v) (:mac (val (first (seq o))))) "the other side still comes from BTF"))
      (with-open [o ^Closeable (bpf/open (:id (bpf/info m))
                                         {:key :my-key :types {:my-key [:array :u32be 4]}})]
        (is (= 167772161 (first (bpf/next-key o))))))))

(kernel-test maps-without-btf
  (testing "creates a map without BTF if the kernel does not accept its types"
    (testing "a field's name that is not a C identifier is converted to one"
      (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value [:struct [:tx-bytes :u64]]
                                            :max-entries 1})]
        (bpf/put! m 1 {:tx-bytes 2})
        (is (= {:tx-bytes 2} (m 1)))
        (with-open [o ^Closeable (bpf/open (:id (bpf/info m)))]
          (is (= {:tx_bytes 2} (o 1))))))
    (testing "two fields whose names become one"
      (with-open [m ^Closeable (bpf/create {:type :hash :key :u32
                                            :value [:struct [:a-b :u32] [:a_b :u32]]
                                            :max-entries 1})]
        (bpf/put! m 1 {:a-b 1 :a_b 2})
        (is (= {:a-b 1 :a_b 2} (m 1)))
        (with-open [o ^Closeable (bpf/open (:id (bpf/info m)))]
          (is (= {:a_b 1 :a_b_2 2} (o 1))))))
    (testing "bytes and bytes say nothing"
      (with-open [m ^Closeable (bpf/create {:type :hash :key-size 4 :value-size 4 :max-entries 1})]
        (is (nil? (:btf-id (bpf/info m))))))
    (testing "an array's key is an integer to the kernel whatever it is here"
      (with-open [m ^Closeable (bpf/create {:type :array :key-size 4 :value [:struct [:n :u64]]
                                            :max-entries 2})]
        (is (:btf-id (bpf/info m)))
        (with-open [o ^Closeable (bpf/open (:id (bpf/info m)))]
          (is (= [[0 {:n 0}] [1 {:n 0}]] (seq o))))))))

(kernel-test enum-index-keeps-types
  (testing "an array with an enum index keeps the type of its value"
    (with-open [m ^Closeable (bpf/create {:type :array :key [:enum :u32 {:RX 0 :TX 1}]
                                          :value [:struct {:name "my-v"} [:a :u64]]
                                          :max-entries 2})]
      (bpf/put! m :TX {:a 5})
      (is (= [[:RX {:a 0}] [:TX {:a 5}]] (seq m)))
      (with-open [o ^Closeable (bpf/open (:id (bpf/info m)))]
        (is (= [[0 {:a 0}] [1 {:a 5}]] (seq o)))))))

(kernel-test ^{:needs [[:kernel :list-heads]]} s8-list-head-without-btf
  (testing "creates a map without BTF if its list head has no element type"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32
                                          :value [:struct [:head :list-head] [:n :u64]]
                                          :max-entries 1})]
      (is (nil? (:btf-id (bpf/info m))))
      (is (str/includes? (:untyped (bpf/info m))
                         "the kernel rejected the types as BTF (EINVAL)"))
      (bpf/put! m 1 {:n 7})
      (is (= {1 {:n 7}} (into {} m))))
    (testing "a type too large for BTF"
      (with-open [m ^Closeable (bpf/create {:type :array :key :u32 :max-entries 1
                                            :value [:struct [:a [:bytes 2200000]]
                                                    [:b [:bits :u32 3]]]})]
        (is (= (str "Cannot write BTF: [3 :members 1 :bit-offset] must be from 0 to 16777215, "
                    "got 17600000")
               (:untyped (bpf/info m))))))))

(kernel-test ^{:needs [[:kernel :list-heads] [:kernel :timers]]} s8-retry-without-btf
  (testing "retries without BTF once, only after an error that BTF can cause"
    (let [create-map 0
          load-btf 18
          asked (fn [spec]
                  (let [kind (volatile! nil)]
                    [(select-keys (programs/commands-made
                                   #(vreset! kind (try (bpf/close (bpf/create spec)) :created
                                                       (catch Exception e
                                                         (:bpfmap/error (ex-data e))))))
                                  [create-map load-btf])
                     @kind]))]
      (testing "with BTF, and that is that"
        (is (= [{create-map 1 load-btf 1} :created] (asked flows))))
      (testing "types that say nothing, and map types that take none"
        (is (= [{create-map 1} :created]
               (asked {:type :hash :key-size 4 :value-size 4 :max-entries 1})))
        (is (= [{create-map 1} :created] (asked {:type :queue :value :u64 :max-entries 1})))
        (is (= [{create-map 1} :created] (asked {:type :devmap :max-entries 1}))))
      (testing "BTF that the kernel refuses to load"
        (is (= [{create-map 1 load-btf 1} :created]
               (asked {:type :hash :key :u32 :value [:struct [:head :list-head] [:n :u64]]
                       :max-entries 1}))))
      (testing
       "BTF that the kernel loads, and refuses for the map: there are no timers for each CPU"
        (is (= [{create-map 2 load-btf 1} :created]
               (asked {:type :percpu-hash :key :u32 :value [:struct [:t :timer] [:n :u64]]
                       :max-entries 1}))))
      (testing "no memory has nothing to do with BTF"
        (is (= [{create-map 1 load-btf 1} :no-memory]
               (asked {:type :array :value [:array :u64 1000] :max-entries 1000000000}))))
      (testing "nor has a spec that is refused before the kernel sees it"
        (is (= [{} :invalid-spec] (asked {:type :array :key :u64 :value :u64 :max-entries 1})))))
    (testing "a missing capability is not retried away"
      (let [{:bpfmap/keys [error errno]} (fixture/unprivileged #(error-of (bpf/create flows)))]
        (is (= [:permission :EPERM] [error errno]))))
    (testing "a map that is refused with and without BTF is explained by the missing feature"
      (is (= :not-supported
             (:bpfmap/error (error-of (bpf/create (assoc flows :flags #{0x40000000})))))))))

(kernel-test hidden-spin-lock
  (testing "the kernel knows the spin lock and the value omits it"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32
                                          :value [:struct [:lock :spin-lock] [:n :u32]]
                                          :max-entries 1})]
      (is (:btf-id (bpf/info m)))
      (bpf/put! m 1 {:n 5})
      (is (= {:n 5} (m 1)))
      (with-open [o ^Closeable (bpf/open (:id (bpf/info m)))]
        (is (= {1 {:n 5}} (into {} o)))))))

(kernel-test ^{:needs [[:operation :hash :take!]]} e3-undecodable-take
  (testing "a take whose value cannot be decoded does not delete it"
    (let [seconds [:via :u64 identity #(if (< 100 %) (throw (ex-info "too many" {})) %)]]
      (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value seconds :max-entries 2})]
        (bpf/put! m 1 5)
        (bpf/put! m 2 500)
        (is (= 5 (bpf/take! m 1)))
        (let [{:keys [message] :bpfmap/keys [error op]} (error-of (bpf/take! m 2))]
          (is (= [:invalid-value :take!] [error op]))
          (is (str/includes? message "its decode function threw")))
        (with-open [raw ^Closeable (bpf/open (:id (bpf/info m)) {:value :u64})]
          (is (= {2 500} (into {} raw)) "it is still there"))))))

;; --- against bpftool

(defn- bpftool [& args]
  (fixture/run (cons (fixture/executable "bpftool") args)))

(defn- plain
  "A value as bpftool's JSON spells it: numbers, texts, arrays and objects."
  [t x]
  (let [t (if (and (vector? t) (= :typedef (first t))) (nth t 2) t)
        head (if (vector? t) (first t) t)]
    (case head
      :ipv4 (let [[a b c d] (map parse-long (str/split x #"\."))]
              (+ a (* 256 b) (* 65536 c) (* 16777216 d)))
      :mac (map #(Long/parseLong % 16) (str/split x #":"))
      (:port :u16be) (bit-or (bit-shift-left (bit-and x 0xff) 8) (bit-shift-right x 8))
      :u32be (Long/reverseBytes (bit-shift-left x 32))
      :char x
      (:bool) x
      :bytes (vec x)
      :string (if (string? x) x (vec x))
      ;; Bpftool prints a nameless number as an int
      :enum (if (keyword? x) (name x) (long (unchecked-int x)))
      :array (mapv #(plain (second t) %) x)
      (:struct :union)
      (let [members (if (map? (second t)) (drop 2 t) (rest t))]
        (into {} (mapcat (fn [[field ft]]
                           (cond
                             (nil? field) (plain ft x)
                             (contains? x
                                        field) [[(name field)
                                                 (plain
                                                  (if (= :bits (when (vector? ft) (first ft)))
                                                    :bits
                                                    ft) (get x field))]])))
              members))
      x)))

(defn- normal
  "What bpftool printed, spelled as above: bit-fields are texts in hexadecimal, texts may be
  arrays, empty names are anonymous."
  [x]
  (cond
    (map? x) (into {} (mapcat (fn [[k v]] (if (= "" k) (normal v) [[k (normal v)]]))) x)
    (sequential? x) (mapv normal x)
    (and (string? x) (re-matches #"0x[0-9a-f]+" x)) (Long/parseUnsignedLong (subs x 2) 16)
    :else x))

(def ^:private printable
  "Types whose values bpftool prints in full: no floats, no 128-bit integers, no enums of 64 bits,
  no unsigned bit-fields of bools."
  [:struct {:name "printable"}
   [:a :u8] [:b :s8] [:c :u16] [:d :s16] [:e :u32] [:f :s32] [:g :u64] [:h :s64] [:i :bool]
   [:j :ipv4] [:k :mac] [:l :port] [:m :u32be] [:n [:string 8]] [:o [:bytes 3]] [:p [:array :u16 2]]
   [:q [:enum :u32 (array-map :A 0 :B 5)]]
   [:r [:struct {:name "inner"} [:x :u8] [:y [:array [:struct {:name "deep"} [:z :u32]] 2]]]]
   [:s [:bits :u32 5]] [:t [:bits :u32 11]] [:u :ktime] [:w [:typedef "pid_t" :s32]]
   [nil [:union [:un1 :u32] [:un2 :u16]]]])

(kernel-test bpftool-values
  (testing "decoded values agree with bpftool"
    (if-not (fixture/executable "bpftool")
      (fixture/skip! "no bpftool to compare with")
      (let [generator (gen/such-that #(and (< 0 (count (:n %)) 8) (re-matches #"[ -~]*" (:n %)))
                                     (type/->generator printable) 1000)]
        (doseq [map-type [:hash :array]
                key-type (case map-type
                           :hash [:u64 [:struct {:name "key"} [:x :u16] [:y :ipv4]]]
                           :array [:u32])]
          (with-open [m ^Closeable (bpf/create {:type map-type :key key-type :value printable
                                                :max-entries 30})]
            (dotimes [i 30]
              (bpf/put! m (case map-type :array i (gen/generate (type/->generator key-type)))
                        (gen/generate generator)))
            (let [{:keys [exit out err]} (bpftool "-j" "map" "dump" "id" (str (:id (bpf/info m))))
                  theirs (into {}
                               (map (fn [{{:strs [key value]} "formatted"}]
                                      [(normal key) (normal value)]))
                               (when (zero? exit) (json/read-str out)))
                  ours (into {}
                             (map (fn [[k v]]
                                    [(normal (plain key-type k)) (normal (plain printable v))])) m)]
              (is (= 0 exit) err)
              (is (seq theirs))
              (is (= (count theirs) (count ours)))
              (doseq [[k v] ours]
                (is (= v (theirs k)))))))))))

(def ^:private c-source
  "#include <stddef.h>
#define SEC(x) __attribute__((section(x), used))
#define __uint(name, val) int (*name)[val]
#define __type(name, val) val *name
typedef unsigned int __be32;
enum color { RED, GREEN = 7 };
struct inner { short a[3]; char name[8]; };
struct value {
    unsigned long long n; __be32 addr; enum color color; struct inner in; unsigned f1 : 3; int f2 : 9;
    union { unsigned u; signed char c[4]; }; _Bool ok; void *p; const volatile signed char tail;
} ; struct packed { char c; unsigned long long n; } __attribute__((packed)); struct { __uint(type,
1); __uint(max_entries, 4); __type(key, struct packed); __type(value, struct value); } ct_hash
SEC(\".maps\"); struct { __uint(type, 2); __uint(max_entries, 2); __type(key, unsigned);
__type(value, struct inner); } ct_array SEC(\".maps\"); int counter SEC(\".data\") = 41; struct
inner where SEC(\".data\") = { {1, 2, 3}, \"here\" }; const char greeting[8] SEC(\".rodata\") =
\"hello\"; static void *(*lookup)(void *map, const void *key) = (void *)1; SEC(\"socket\") int
prog(void *ctx) {
    struct packed k = { 1, 2 }; unsigned i = 0;
    return counter + where.a[0] + greeting[0] + (lookup(&ct_hash, &k) != 0) + (lookup(&ct_array, &i) != 0);
}
char _license[] SEC(\"license\") = \"GPL\";
")

(defn- with-clang-maps
  "Calls f with a function of a map's name to its pin, for a program that clang compiled and
  bpftool loaded."
  [f]
  (let [dir (fixture/temporary-directory)
        source (io/file dir "maps.c")
        object (str (io/file dir "maps.o"))
        pins (fixture/new-pin)]
    (try
      (spit source c-source)
      (let [compiled (fixture/run ["clang" "-g" "-O2" "-target" "bpf" "-c" (str source) "-o"
                                   object])]
        (when-not (zero? (:exit compiled)) (throw (ex-info (:err compiled) {}))))
      (.mkdir (io/file pins))
      (let [loaded (bpftool "prog" "load" object (str pins "/prog") "type" "socket" "pinmaps" pins)]
        (when-not (zero? (:exit loaded)) (throw (ex-info (:err loaded) {}))))
      (f (fn [name]
           (some #(when (str/ends-with? (.getName ^File %) name) (str %))
                 (.listFiles (io/file pins)))))
      (finally
        (run! #(.delete ^File %) (reverse (file-seq (io/file pins))))
        (run! #(.delete ^File %) (reverse (file-seq dir)))))))

(kernel-test compiled-program-maps
  (testing "maps of a compiled program open typed and can be written"
    (if-not (and (fixture/executable "clang") (fixture/executable "bpftool"))
      (fixture/skip! "no clang and bpftool to make a program's maps with")
      (with-clang-maps
        (fn [pin]
          (with-open [m ^Closeable (bpf/open (pin "ct_hash"))]
            (let [key {:c \x :n 9}
                  value {:n 18446744073709551615N :addr 167772161 :color :GREEN
                         :in {:a [1 -2 3] :name "abc"} :f1 5 :f2 -3
                         :u 7 :ok true :p 4096 :tail -1}]
              (is (= [:struct {:packed true :name "packed"} [:c :char] [:n :u64]]
                     (:key (bpf/spec m))))
              (bpf/put! m key value)
              (is (= (assoc value :c [7 0 0 0]) (m key)))
              (let [{:strs [n addr color in f1 u ok tail]}
                    (normal
                     (get-in
                      (json/read-str (:out (bpftool "-j" "map" "dump" "id"
                                                    (str (:id (bpf/info m))))))
                      [0 "formatted" "value"]))]
                (is (= [18446744073709551615N (plain :u32be 167772161) "GREEN"
                        {"a" [1 -2 3] "name" "abc"} 5 7 true -1]
                       [n addr color in f1 u ok tail])))))
          (with-open [a ^Closeable (bpf/open (pin "ct_array"))]
            (bpf/put! a 1 {:a [1 2 3] :name "abc"})
            (is (= [[0 {:a [0 0 0] :name ""}] [1 {:a [1 2 3] :name "abc"}]] (seq a))))
          (testing "data sections read as their variables"
            (with-open [data ^Closeable (bpf/open (pin "_data"))]
              (is (= {0 {:counter 41 :where {:a [1 2 3] :name "here"}}} (into {} data)))
              (bpf/put! data 0 {:counter 42 :where {:a [4 5 6] :name "there"}})
              (is (= 42 (:counter (data 0)))))
            (with-open [rodata ^Closeable (bpf/open (pin "_rodata") {:access :read-only})]
              ;; What the section holds beside its variables
              (is (= {:greeting "hello"} (dissoc (rodata 0) :bpfmap/padding)))
              (is (true? (:frozen (bpf/info rodata)))))))))))

(defn- parses
  "Returns how often each of the types is parsed while f runs with empty caches."
  [types f]
  (doseq [c [@#'lifecycle/completed-specs @#'lifecycle/same-specs @#'lifecycle/parts-cache
             @#'map-btf/types-cache]]
    (Map/.clear c))
  (let [calls (atom [])
        parse node/node]
    (with-redefs [node/node (fn [type types path]
                              (swap! calls conj type)
                              (parse type types path))]
      (f))
    (mapv (frequencies @calls) types)))

(kernel-test types-parsed-once
  (testing "creating a map parses the type of its key and of its value once each, as does opening"
    (doseq [spec [{:type :hash :key :u32 :value :u64}
                  {:type :hash :key :u32 :value [:array :u64 4] :contents {1 [1 2 3 4]}
                   :freeze true}
                  {:type :hash :key [:struct [:a :u32] [:b :u32]]
                   :value [:struct {:name "x"} [:n :u64]]}
                  {:type :hash :key :k :value :v :types {:k :u64 :v [:struct [:k :k] [:n :u32]]}}
                  {:type :array :key :u32 :value [:struct [:n :u64]] :flags #{:mmapable}
                   :name "a_name_of_more_than_15_letters" :contents {0 {:n 1}}}
                  {:type :percpu-hash :key :u16 :value [:struct [:n :u32]]}
                  {:type :lpm-trie :key [:prefix :ipv4] :value :u32 :flags #{:no-prealloc}}]
            :let [{:keys [key value] :as spec} (assoc spec :max-entries 2)]]
      (is (= [1 1] (parses [key value] #(bpf/close (bpf/create spec)))) (str "create " spec))
      (with-open [m ^Closeable (bpf/create spec)]
        (let [id (:id (bpf/info m))
              given (select-keys spec [:key :value :types])]
          (is (= [1 1] (parses [key value] #(bpf/close (bpf/open id given))))
              (str "open with the types of " spec))
          ;; To find a prefix in BTF, the members of one are compared with those of the struct
          (when-not (or (:types spec) (= :lpm-trie (:type spec)))
            (is (= [1 1] (parses [key value] #(bpf/close (bpf/open id))))
                (str "open with the BTF of " spec))))))))
