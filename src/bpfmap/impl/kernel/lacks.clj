(ns ^:no-doc bpfmap.impl.kernel.lacks
  "Explains what a kernel lacks: the release that has it first, or the option that it is built with.

  Tables and pure functions. Facts of the running kernel are arguments: `:release`, and `:options`
  by name, or nil if they are unknown."
  (:require [bpfmap.impl.map-types :as map-types]))

(set! *warn-on-reflection* true)

(def trampolines
  "The options with which functions can call programs at their start and end."
  ["CONFIG_BPF_JIT" "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"])

(def program-types
  "The first release and the options of each program type.

  Source: include/linux/bpf_types.h."
  (let [events ["CONFIG_BPF_EVENTS"], cgroups ["CONFIG_CGROUP_BPF"]]
    {:socket-filter {:since "3.19" :options ["CONFIG_NET"]}
     :kprobe {:since "4.1" :options events}
     :sched-cls {:since "4.1" :options ["CONFIG_NET"]}
     :sched-act {:since "4.1" :options ["CONFIG_NET"]}
     :tracepoint {:since "4.7" :options events}
     :xdp {:since "4.8" :options ["CONFIG_NET"]}
     :perf-event {:since "4.9" :options events}
     :cgroup-skb {:since "4.10" :options cgroups}
     :cgroup-sock {:since "4.10" :options cgroups}
     :lwt-in {:since "4.10" :options ["CONFIG_NET"]}
     :lwt-out {:since "4.10" :options ["CONFIG_NET"]}
     :lwt-xmit {:since "4.10" :options ["CONFIG_NET"]}
     :sock-ops {:since "4.13" :options ["CONFIG_NET"]}
     :sk-skb {:since "4.14" :options ["CONFIG_NET"]}
     :cgroup-device {:since "4.15" :options cgroups}
     :sk-msg {:since "4.17" :options ["CONFIG_NET"]}
     :raw-tracepoint {:since "4.17" :options events}
     :cgroup-sock-addr {:since "4.17" :options cgroups}
     :lwt-seg6local {:since "4.18" :options ["CONFIG_NET"]}
     :lirc-mode2 {:since "4.18" :options ["CONFIG_BPF_LIRC_MODE2"]}
     :sk-reuseport {:since "4.19" :options ["CONFIG_INET"]}
     :flow-dissector {:since "4.20" :options ["CONFIG_NET"]}
     :cgroup-sysctl {:since "5.2" :options cgroups}
     :raw-tracepoint-writable {:since "5.2" :options events}
     :cgroup-sockopt {:since "5.3" :options cgroups}
     :tracing {:since "5.5" :options events}
     :struct-ops {:since "5.6" :options ["CONFIG_BPF_JIT"]}
     :ext {:since "5.6" :options ["CONFIG_BPF_JIT"]}
     :lsm {:since "5.7" :options ["CONFIG_BPF_LSM"]}
     :sk-lookup {:since "5.9" :options ["CONFIG_INET"]}
     :syscall {:since "5.14"}
     :netfilter {:since "6.4" :options ["CONFIG_NETFILTER_BPF_LINK"]}}))

(def attach-types
  "The first release of attach types that are newer than their program type."
  (into {:modify-return {:since "5.7"}
         :trace-iter {:since "5.8"}
         :xdp-devmap {:since "5.8"}
         :xdp-cpumap {:since "5.9"}
         :cgroup-inet-sock-release {:since "5.9"}
         :sk-reuseport-select-or-migrate {:since "5.14"}
         :lsm-cgroup {:since "6.0"}}
        (concat (for [k [:cgroup-inet4-getpeername :cgroup-inet6-getpeername
                         :cgroup-inet4-getsockname :cgroup-inet6-getsockname]]
                  [k {:since "5.8"}])
                (for [k [:cgroup-unix-connect :cgroup-unix-sendmsg :cgroup-unix-recvmsg
                         :cgroup-unix-getpeername :cgroup-unix-getsockname]]
                  [k {:since "6.7"}]))))

(def iterators
  "The first release and the options of each kind of iterator."
  {"bpf_map" {:since "5.8"}
   "task" {:since "5.8"}
   "task_file" {:since "5.8"}
   "netlink" {:since "5.8" :options ["CONFIG_NET" "CONFIG_PROC_FS"]}
   "ipv6_route" {:since "5.8" :options ["CONFIG_IPV6" "CONFIG_PROC_FS"]}
   "bpf_map_elem" {:since "5.9"}
   "bpf_sk_storage_map" {:since "5.9" :options ["CONFIG_NET"]}
   "tcp" {:since "5.9" :options ["CONFIG_INET" "CONFIG_PROC_FS"]}
   "udp" {:since "5.9" :options ["CONFIG_INET" "CONFIG_PROC_FS"]}
   "bpf_prog" {:since "5.9"}
   "sockmap" {:since "5.10" :options ["CONFIG_NET"]}
   "task_vma" {:since "5.12"}
   "unix" {:since "5.15" :options ["CONFIG_UNIX" "CONFIG_PROC_FS"]}
   "bpf_link" {:since "5.19"}
   "ksym" {:since "6.0" :options ["CONFIG_KALLSYMS"]}
   "cgroup" {:since "6.1" :options ["CONFIG_CGROUPS"]}
   "kmem_cache" {:since "6.13"}
   "dmabuf" {:since "6.16" :options ["CONFIG_DMA_SHARED_BUFFER"]}})

(def structs
  "The first release and the options of each struct that programs can implement."
  {"tcp_congestion_ops" {:since "5.6" :options ["CONFIG_INET"]}
   "hid_bpf_ops" {:since "6.11" :options ["CONFIG_HID_BPF"]}
   "sched_ext_ops" {:since "6.12" :options ["CONFIG_SCHED_CLASS_EXT"]}
   "Qdisc_ops" {:since "6.16" :options ["CONFIG_NET_SCH_BPF"]}})

(def hooks
  "The first release and the option of the hooks of the BPF LSM."
  {:since "5.7" :options ["CONFIG_BPF_LSM"]})

(def kernel-types
  "The option of kernels that have their own BTF."
  {:since "5.4" :options ["CONFIG_DEBUG_INFO_BTF"]})

(defn missing-option
  "Returns the first option that a kernel is known to be built without; or nil."
  [names options]
  (when options
    (first (remove #(#{"y" "m"} (get options %)) names))))

(defn explain
  "Returns the text for what a kernel lacks; nil if it should have it.

  The second argument is a row of a table.

      (explain \"iterators over dmabuf\" (iterators \"dmabuf\") {:release \"6.12.0\"})
      ;=> \"iterators over dmabuf need Linux 6.16, this is 6.12.0\""
  [what {:keys [since] names :options} {:keys [release options]}]
  (if (and since release (not (map-types/at-least? release since)))
    (str what " need Linux " since ", this is " release)
    (when-let [option (missing-option names options)]
      (str what " need a kernel built with " option ", and this one is not"))))

(defn all-options
  "Returns the text for something that a kernel lacks for an unknown reason.

      (all-options \"LSM programs\" {:options [\"CONFIG_BPF_LSM\"]})
      ;=> \"LSM programs need a kernel built with CONFIG_BPF_LSM\""
  [what {names :options}]
  (when (seq names)
    (str what " need a kernel built with " (apply str (interpose " and " names)))))

(def ^:private at-functions
  "Attach types of programs that are called from functions of the kernel."
  #{:trace-fentry :trace-fexit :modify-return :lsm-mac :lsm-cgroup})

(defn at-function?
  "Returns true if a program is called from a function by a trampoline."
  [{:keys [type attach-type]}]
  (or (= :ext type) (contains? at-functions attach-type)))

(defn of-program
  "Returns what a kernel lacks that refused a program without a reason; or nil.

  `program` has `:type` and `:attach-type`. `refuses-such` and `lockdown` are functions: the first
  returns true if the kernel refuses the smallest program of that kind as well, but not programs of
  every other kind, the second how far the kernel is locked down, or nil.

      (of-program {:type :netfilter} {:release \"6.1.0\"})
      ;=> \"programs of type :netfilter need Linux 6.4, this is 6.1.0\""
  [{:keys [type attach-type] :as program} {:keys [options refuses-such lockdown] :as kernel}]
  (let [what (str "programs of type " type)
        trampoline? (at-function? program)]
    (or (explain what (program-types type) kernel)
        (when attach-type
          (explain (str "programs of attach type " attach-type) (attach-types attach-type) kernel))
        (when trampoline?
          (explain (str what " at a function") {:options trampolines} kernel))
        (when (and (or trampoline? (= :trace-iter attach-type)) refuses-such (refuses-such))
          (str (if trampoline?
                 "this kernel has no trampolines: it refuses all programs at functions"
                 "this kernel refuses all programs of this iterator")
               (cond
                 (not trampoline?) nil
                 options (str ", although it is built with " (last trampolines))
                 :else (str "; it must be built with " (last trampolines) " and allow them"))
               (when-let [level (and lockdown (lockdown))]
                 (str "; it is locked down (" level ")"))
               (when (= :tracing type)
                 (str "; use " (if trampoline? "a tracepoint (raw_tp, tp_btf)" "another iterator")
                      " instead")))))))
