(ns bpfmap.sys.abi-test
  "Every constant of the Java core's Abi, against the C header compiled on the spot."
  (:require [bpfmap.fixture :as fixture]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (bpfmap.sys Abi Info)
           (java.lang.reflect Field Modifier)))

(set! *warn-on-reflection* true)

(defn- offset [struct]
  (fn [field] (str "offsetof(" struct ", " field ")")))

(def ^:private in-c
  "Prefix of a constant to what it is in C, from the rest of its name in lower case. The first
  that fits counts."
  [["MAP_CREATE_" (offset "union bpf_attr")]
   ["MAP_INFO_" (offset "struct bpf_map_info")]
   ["PROG_INFO_GPL_COMPATIBLE"
    (constantly
     "offsetof(struct bpf_prog_info, ifindex) + sizeof(((struct bpf_prog_info *)0)->ifindex)")]
   ["PROG_INFO_" (offset "struct bpf_prog_info")]
   ["LINK_INFO_RAW_TRACEPOINT_" #((offset "struct bpf_link_info") (str "raw_tracepoint." %))]
   ["LINK_INFO_TRACING_" #((offset "struct bpf_link_info") (str "tracing." %))]
   ["LINK_INFO_CGROUP_" #((offset "struct bpf_link_info") (str "cgroup." %))]
   ["LINK_INFO_ITER_MAP_" #((offset "struct bpf_link_info") (str "iter.map." %))]
   ["LINK_INFO_ITER_" #((offset "struct bpf_link_info") (str "iter." %))]
   ["LINK_INFO_NETNS_" #((offset "struct bpf_link_info") (str "netns." %))]
   ["LINK_INFO_XDP_" #((offset "struct bpf_link_info") (str "xdp." %))]
   ["LINK_INFO_NETFILTER_" #((offset "struct bpf_link_info") (str "netfilter." %))]
   ["LINK_INFO_KPROBE_MULTI_" #((offset "struct bpf_link_info") (str "kprobe_multi." %))]
   ["LINK_INFO_UPROBE_MULTI_" #((offset "struct bpf_link_info") (str "uprobe_multi." %))]
   ["LINK_INFO_PERF_EVENT_TYPE" (constantly "offsetof(struct bpf_link_info, perf_event.type)")]
   ["LINK_INFO_PERF_EVENT_" #((offset "struct bpf_link_info")
                              (str "perf_event." (str/replace-first % "_" ".")))]
   ["LINK_INFO_" (offset "struct bpf_link_info")]
   ["LINK_CREATE_PERF_EVENT_" #((offset "union bpf_attr") (str "link_create.perf_event." %))]
   ["LINK_CREATE_TRACING_" #((offset "union bpf_attr") (str "link_create.tracing." %))]
   ["LINK_CREATE_KPROBE_MULTI_" #((offset "union bpf_attr") (str "link_create.kprobe_multi." %))]
   ["LINK_CREATE_UPROBE_MULTI_" #((offset "union bpf_attr") (str "link_create.uprobe_multi." %))]
   ["LINK_CREATE_NETFILTER_" #((offset "union bpf_attr") (str "link_create.netfilter." %))]
   ["LINK_CREATE_TCX_" #((offset "union bpf_attr") (str "link_create.tcx." %))]
   ["LINK_CREATE_" #((offset "union bpf_attr") (str "link_create." %))]
   ["LINK_UPDATE_" #((offset "union bpf_attr") (str "link_update." %))]
   ["ITER_CREATE_" #((offset "union bpf_attr") (str "iter_create." %))]
   ["QUERY_" #((offset "union bpf_attr") (str "query." %))]
   ["PROG_LOAD_" (offset "union bpf_attr")]
   ["ENABLE_STATS_" #((offset "union bpf_attr") (str "enable_stats." %))]
   ["LINK_DETACH_" #((offset "union bpf_attr") (str "link_detach." %))]
   ["BTF_LOAD_" (offset "union bpf_attr")]
   ["BTF_INFO_" (offset "struct bpf_btf_info")]
   ["BATCH_SIZE"
    (constantly
     "offsetof(union bpf_attr, batch.flags) + sizeof(((union bpf_attr *)0)->batch.flags)")]
   ["BATCH_" #((offset "union bpf_attr") (str "batch." %))]
   ["ELEM_" (offset "union bpf_attr")]
   ["OBJ_" (offset "union bpf_attr")]
   ["TEST_" #((offset "union bpf_attr") (str "test." %))]
   ["ID_" (offset "union bpf_attr")]
   ["INFO_" #((offset "union bpf_attr") (str "info." %))]
   ["TASK_" #((offset "union bpf_attr") (str "task_fd_query." %))]
   ["RAW_TRACEPOINT_" #((offset "union bpf_attr") (str "raw_tracepoint." %))]
   ["TOKEN_CREATE_" #((offset "union bpf_attr") (str "token_create." %))]
   ["PERF_ATTR_SIZE_VER0" (constantly "PERF_ATTR_SIZE_VER0")]
   ["PERF_ATTR_SIZE_VER1" (constantly "PERF_ATTR_SIZE_VER1")]
   ["PERF_ATTR_" (offset "struct perf_event_attr")]
   ["PERF_PAGE_" (offset "struct perf_event_mmap_page")]
   ["PERF_" #(str "PERF_" (str/upper-case %))]
   ["NAME_LENGTH" (constantly "BPF_OBJ_NAME_LEN - 1")]
   ["MEMBARRIER_" #(str "MEMBARRIER_" (str/upper-case %))]
   ["BPF_" #(str "BPF_" (str/upper-case %))]
   ["SYS_" #(str "__NR_" %)]
   ["E" #(str "E" (str/upper-case %))]])

(defn- c-expression [constant]
  (some (fn [[prefix in-c]]
          (when (str/starts-with? constant prefix)
            (in-c (str/lower-case (subs constant (count prefix))))))
        in-c))

(defn- constants-of [^Class class]
  (into {}
        (comp (remove #(Modifier/isPrivate (.getModifiers ^Field %)))
              (map (fn [^Field f]
                     (.setAccessible f true)
                     [(.getName f) (long (.get f nil))])))
        (.getDeclaredFields class)))

(defn- constants
  "Those of Abi, and those of Info with the struct's name spelt out: MAP_ID is MAP_INFO_ID."
  []
  (into (constants-of Abi) (update-keys (constants-of Info) #(str/replace-first % "_" "_INFO_"))))

(deftest constants-match-header
  (testing "every constant matches the kernel header"
    (let [ours (constants)
          header (fixture/c-values ["linux/bpf.h" "linux/perf_event.h" "linux/membarrier.h" "sys/ioctl.h"
                                  "sys/syscall.h"]
                                 (map c-expression (keys ours)))
          ;; Internal to the kernel: no header that user space sees has it.
          unseen #{"ENOTSUPP"}
          ;; Compared where the header is new enough to have them.
          newer #{"BPF_F_CPU" "BPF_F_ALL_CPUS" "BPF_TOKEN_CREATE" "TOKEN_CREATE_FLAGS"
                  "TOKEN_CREATE_BPFFS_FD"
                  "MAP_CREATE_VALUE_TYPE_BTF_OBJ_FD" "MAP_CREATE_MAP_TOKEN_FD" "BTF_LOAD_BTF_FLAGS"
                  "BTF_LOAD_BTF_TOKEN_FD"
                  "BPF_F_BEFORE" "BPF_F_AFTER" "BPF_F_ID" "BPF_F_LINK"
                  "BPF_F_UPROBE_MULTI_RETURN" "BPF_F_NETFILTER_IP_DEFRAG" "RAW_TRACEPOINT_COOKIE"
                  "QUERY_LINK_IDS" "QUERY_REVISION"}
          newer? #(or (newer %)
                      (re-find #"^LINK_(CREATE|INFO)_(KPROBE_MULTI|UPROBE_MULTI|NETFILTER|TCX)_" %)
                      (re-find #"^LINK_INFO_(PERF_EVENT_|\w+_COOKIE$)" %))]
      (if-not header
        (fixture/skip! "no C compiler to compare the constants with")
        (doseq [[constant value] ours
                :when (not (or (unseen constant)
                               (and (newer? constant) (nil? (header (c-expression constant))))))]
          (is (= value (header (c-expression constant))) constant))))))
