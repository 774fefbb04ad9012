(ns bpfmap.impl.type.c-test
  "Types as C, which a compiler lays out as the types are."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.impl.type.c :as c]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.generators :as gen]
            [clojure.walk :as walk]))

(set! *warn-on-reflection* true)

(deftest c-declaration-of-type
  (testing "a type becomes a C declaration"
    (are [type lines] (= lines (c/declaration type "value" nil))
      :u32 ["__u32 value;"]
      :s64 ["__s64 value;"]
      :u16be ["__be16 value;"]
      :s32be ["__s32 value; /* big-endian */"]
      :u128 ["unsigned __int128 value;"]
      :f64 ["double value;"]
      :bool ["bool value;"]
      :ipv4 ["__be32 value; /* an IPv4 address */"]
      :ipv6 ["struct in6_addr value;"]
      :mac ["__u8 value[6]; /* a MAC address */"]
      :port ["__be16 value; /* a port */"]
      :ktime ["__u64 value; /* nanoseconds of the kernel's clock */"]
      :spin-lock ["struct bpf_spin_lock value;"]
      :kptr ["void *value;"]
      :ptr ["void *value;"]
      [:ptr "struct task_struct"] ["struct task_struct *value;"]
      [:string 16] ["char value[16];"]
      [:bytes 3] ["__u8 value[3];"]
      [:array [:array :u16 3] 2] ["__u16 value[2][3];"]
      [:typedef "pid_t" :s32] ["pid_t value;"]
      [:via :u64 identity identity] ["__u64 value;"]
      [:prefix :ipv4] ["struct {" "    __u32 prefixlen;" "    __u8 data[4];" "} value;"]
      [:enum :u32 {:NEW 0 :OLD 1}] ["enum { NEW = 0, OLD = 1 } value;"]
      [:enum :s32 {:NEW -1} {:name "e"}] ["enum e { NEW = -1 } value;"]
      [:enum :u8 {:A 1} {:name "e"}] ["__u8 value; /* enum e: A = 1 */"])))

(deftest struct-line-per-member
  (testing "a struct has one line per member"
    (is (= ["struct flow {"
            "    __u64 tx_bytes;"
            "    __u32 syn : 1;"
            "    __u32 : 0;"
            "    union {"
            "        __u8 a;"
            "        __be16 b;"
            "    };"
            "    __u8 _pad4[3];"
            "    struct {"
            "        __u8 x;"
            "    } in[2] __attribute__((aligned(8)));"
            "} __attribute__((packed)) key;"]
           (c/declaration [:struct {:name "flow" :packed true} [:tx-bytes :u64]
                           [:syn [:bits :u32 1]] [nil [:bits :u32 0]]
                           [nil [:union [:a :u8] [:b :u16be]]] [:pad 3]
                           [:in [:array [:struct [:x :u8]] 2] {:align 8}]]
                          "key" nil)))))

(deftest named-types-expanded
  (testing "a named type is replaced by its definition"
    (is (= ["struct {" "    __u32 id;" "} key;"]
           (c/declaration [:struct [:id :user]] "key" {:user :u32})))))

(deftest malformed-types
  (testing "rejects a malformed type"
    (is (= :invalid-spec (:bpfmap/error (fixture/error-of (c/declaration :u33 "x" nil)))))))

(defn- with-own-names
  "Types whose enums have constants of their own, since in C they are all names of one kind."
  [types]
  (let [n (volatile! 0)]
    (walk/postwalk (fn [x]
                     (if (and (vector? x) (= :enum (first x)))
                       (update x 2 update-keys (fn [k] (keyword (str (name k) "_" (vswap! n inc)))))
                       x))
                   types)))

(def ^:private prelude
  (str
   "#include <stdbool.h>\n#include <stddef.h>\n#include <linux/types.h>\n#include <linux/in6.h>\n"))

(deftest c-compiler-layout
  (testing "a C compiler lays out the declaration as the type"
    (if-let [cc (fixture/executable "gcc")]
      (let [made (with-own-names (distinct (gen/sample types/a-struct 120)))
            dir (fixture/temporary-directory)
            source (io/file dir "types.c")]
        (try
          (spit source
                (str prelude
                     (str/join
                      (map-indexed
                       (fn [i t]
                         (str (str/join "\n" (c/declaration t (str "t" i) nil)) "\n"
                              "_Static_assert(sizeof(t" i ") == " (type/size t) ", \"size\");\n"
                              "_Static_assert(_Alignof(__typeof__(t" i ")) == " (type/align t)
                              ", \"align\");\n"
                              (str/join (for [[path {:keys [offset]}] (type/offsets t)
                                              :when (and offset (every? keyword? path))]
                                          (str "_Static_assert(offsetof(__typeof__(t" i "), "
                                               (str/join "." (map name path)) ") == " offset
                                               ", \"offset\");\n")))))
                       made))))
          (let [{:keys [exit err]} (fixture/run [cc "-w" "-std=gnu11" "-c" "-o" "/dev/null"
                                                 (str source)])]
            (is (zero? exit) err))
          (finally
            (run! #(.delete ^java.io.File %) (reverse (file-seq dir))))))
      (fixture/skip! "there is no gcc"))))
