(ns ^:no-doc bpfmap.impl.link.targets
  "Targets of programs as data: one table of the kinds, and checks that read it.

  A target is a map whose kind is the key that this table has, such as `{:tracepoint
  \"sched/sched_switch\"}`. Nothing here calls the kernel."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.nearest :as nearest]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

;; --- constraints of values: predicate, and the text of a message

(def ^:private text
  [#(and (string? %) (re-matches #"[^\u0000]+" %)) "a string that is not empty"])

(def ^:private tracepoint
  [#(and (string? %) (re-matches #"[\w.-]+[/:][\w.-]+" %)) "\"category/name\""])

(defn- integer [least most] [#(and (int? %) (<= (long least) (long %) (long most)))
                             (str "an integer from " least " to " most)])

(def ^:private u31 (integer 0 0x7fffffff))
(def ^:private offset (integer 0 Long/MAX_VALUE))
(def ^:private u32 (integer 0 0xffffffff))
(def ^:private pid (integer 1 0x7fffffff))
(def ^:private flag [boolean? "true or false"])
(def ^:private anything [some? "a value"])

(def ^:private texts
  [#(and (sequential? %) (seq %) (every? (first text) %)) "a vector of strings"])

(defn pattern?
  "Returns true if a text has wildcards."
  [x]
  (boolean (and (string? x) (re-find #"[*?]" x))))

(defn glob
  "Returns a predicate of names that fit a pattern, in which * and ? are wildcards.

      ((glob \"vfs_*\") \"vfs_read\") ;=> true"
  [pattern]
  (let [regex (re-pattern (str/join (map #(case %
                                            \* ".*"
                                            \? "."
                                            (str "\\Q" % "\\E"))
                                         pattern)))]
    #(boolean (re-matches regex %))))

(defn- one-of [names]
  [(set names) (error/list-of names)])

(def ^:private functions
  [#(or ((first texts) %) ((first text) %)) "a name, a pattern such as \"vfs_*\", or a vector of names"])

(def ^:private interface
  [#(or ((first text) %) (and (int? %) (< 0 (long %) 0x7fffffff)))
   "the name of a network interface, or its index"])

(def ^:private directory
  [#(or (some? (:fd %)) (not (or (map? %) (nil? %) (int? %) (keyword? %))))
   "the path of a directory, or {:fd n}"])

(def ^:private namespace-file
  [#(or (= :self %) (some? (:fd %)) (not (or (map? %) (nil? %) (int? %) (keyword? %))))
   ":self, the path of a network namespace, or {:fd n}"])

(def software-events
  "Software events by name: `enum perf_sw_ids` in linux/perf_event.h."
  {:cpu-clock 0 :task-clock 1 :page-faults 2 :context-switches 3 :cpu-migrations 4
   :page-faults-min 5 :page-faults-maj 6 :alignment-faults 7 :emulation-faults 8
   :cgroup-switches 11})

(def hardware-events
  "Counters of the processor by name: `enum perf_hw_id` in linux/perf_event.h."
  {:cpu-cycles 0 :instructions 1 :cache-references 2 :cache-misses 3 :branch-instructions 4
   :branch-misses 5 :bus-cycles 6 :stalled-cycles-frontend 7 :stalled-cycles-backend 8
   :ref-cpu-cycles 9})

(def event-types
  "Types of perf events by name, each with its number and the names of its events."
  {:software [1 software-events] :hardware [0 hardware-events] :raw [4 {}]})

(def ^:private clocks
  "Names of software events by `[type config]`, if they have a type of their own.

  Since Linux 6.3, the kernel registers these types first, behind the fixed ones."
  {[6 0] :cpu-clock, [7 1] :task-clock})

(defn event-text
  "Returns the name of a perf event by its numbers in linux/perf_event.h.

      (event-text 1 0)     ;=> \"software cpu-clock\"
      (event-text 6 0)     ;=> \"software cpu-clock\"
      (event-text 4 0x1c2) ;=> \"raw 0x1c2\"
      (event-text 9 1)     ;=> \"type 9 0x1\""
  [type config]
  (let [clock (clocks [type config])
        [type-name [_ events]] (some (fn [[_ [number] :as row]]
                                       (when (= (if clock 1 type) number) row))
                                     event-types)
        event (or clock (some (fn [[event number]] (when (= number config) event)) events))]
    (str (if type-name (name type-name) (str "type " type)) " "
         (if event (name event) (str "0x" (Long/toHexString config))))))

(def ^:private program
  [#(or (some-> (:program-id %) pos-int?)
        (not (or (map? %) (string? %) (int? %) (keyword? %))))
   "an open program, or {:program-id n}"])

(def ^:private event
  [map? "a map such as {:type :software :event :cpu-clock :frequency 99}"])

(def orders
  "Orders of a cgroup iterator: `enum bpf_cgroup_iter_order` in linux/bpf.h."
  {:self 1 :descendants-pre 2 :descendants-post 3 :ancestors-up 4})

(def hooks
  "Hooks of netfilter, in the order of a packet."
  [:prerouting :local-in :forward :local-out :postrouting])

(def xdp-modes
  "Modes of XDP by name, with the flag of `BPF_LINK_CREATE`: linux/if_link.h."
  {:generic 2 :native 4 :offload 8})

;; --- the table

(def cgroup-programs
  "Programs of cgroups by type, each with its attach types.
  If there is one, it is the default."
  {:cgroup-skb [:cgroup-inet-ingress :cgroup-inet-egress]
   :cgroup-sock [:cgroup-inet-sock-create :cgroup-inet-sock-release :cgroup-inet4-post-bind
                 :cgroup-inet6-post-bind]
   :cgroup-sock-addr [:cgroup-inet4-bind :cgroup-inet6-bind :cgroup-inet4-connect
                      :cgroup-inet6-connect :cgroup-unix-connect :cgroup-udp4-sendmsg
                      :cgroup-udp6-sendmsg :cgroup-unix-sendmsg :cgroup-udp4-recvmsg
                      :cgroup-udp6-recvmsg :cgroup-unix-recvmsg :cgroup-inet4-getpeername
                      :cgroup-inet6-getpeername :cgroup-unix-getpeername
                      :cgroup-inet4-getsockname :cgroup-inet6-getsockname
                      :cgroup-unix-getsockname]
   :cgroup-sockopt [:cgroup-getsockopt :cgroup-setsockopt]
   :cgroup-device [:cgroup-device]
   :cgroup-sysctl [:cgroup-sysctl]
   :sock-ops [:cgroup-sock-ops]
   :lsm [:lsm-cgroup]})

(def ^:private trampolines
  "The option of kernels in which programs can replace or surround functions."
  "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS")

(defn- of-function
  "Returns the row of a kind whose programs are loaded for one kernel function."
  [attach-type sections what & {:as more}]
  (merge {:value text
          :meaning (str what "; the function is chosen when the program is loaded")
          :form :tracing
          :programs {:tracing [attach-type]}
          :cookie "5.19"
          :since "5.5"
          :config trampolines
          :sections sections}
         more))

(def kinds
  "Kinds of targets.

  | key             | meaning                                                                |
  |-----------------|------------------------------------------------------------------------|
  | `:meaning`      | a text for the guide                                                   |
  | `:value`        | the constraint of the value of the key that is the kind                |
  | `:keys`         | further keys, each with its constraint                                 |
  | `:required`     | further keys that are required                                         |
  | `:programs`     | program types, each with the attach types that fit                     |
  | `:form`         | how the link is made: a form of `bpfmap.impl.kernel.link/create`, or a  |
  |                 | subject that decides between forms                                     |
  | `:since`        | the first Linux release with links of this kind                        |
  | `:config`       | the option with which a kernel has them, if many lack it               |
  | `:cookie`       | the first Linux release with `:cookie`, if there is one                |
  | `:order`        | the first Linux release with `:before`, `:after` and `:revision`       |
  | `:sections`     | names of sections whose programs have this kind of target, each with   |
  |                 | the keys that the name implies                                         |
  | `:refusals`     | errno to `[error hint]`, for errnos with a special meaning             |"
  (array-map
   :raw-tracepoint
   {:value text :form :raw-tracepoint
    :meaning "a tracepoint, with its arguments as they are in the kernel"
    :programs {:raw-tracepoint [nil] :raw-tracepoint-writable [nil]}
    :since "4.17" :cookie "6.10"
    :sections {"raw_tracepoint" {} "raw_tp" {} "raw_tracepoint.w" {} "raw_tp.w" {}}
    :refusals {:ENOENT [:not-found "no raw tracepoint has that name"]}}

   :tracepoint
   {:value tracepoint :form :perf-event
    :meaning "a tracepoint, with its arguments as its format describes them"
    :programs {:tracepoint [nil]}
    :since "4.7" :cookie "5.15"
    :sections {"tracepoint" {} "tp" {}}}

   :kprobe
   {:value text :keys {:offset offset :return flag} :form :perf-event
    :meaning "a kernel function: its start, an instruction in it, or its return"
    :programs {:kprobe [nil]}
    :since "4.17" :config "CONFIG_KPROBE_EVENTS" :cookie "5.15"
    :sections {"kprobe" {} "kretprobe" {:return true}}
    :refusals {:EINVAL [:invalid-value (str "the kernel does not allow a probe there: the function "
                                            "is protected, or :offset is not the start of an "
                                            "instruction")]
               :EILSEQ [:invalid-value ":offset must be the start of an instruction"]
               :EADDRNOTAVAIL [:ambiguous "several functions have that name"]
               :EOPNOTSUPP [:not-supported (str "this kernel is built without kprobes "
                                                "(CONFIG_KPROBE_EVENTS)")]}}

   :ksyscall
   {:value text :keys {:return flag} :form :perf-event
    :meaning "the kernel's function of a system call, by the name of the call"
    :programs {:kprobe [nil]}
    :since "4.17" :config "CONFIG_KPROBE_EVENTS" :cookie "5.15"
    :sections {"ksyscall" {} "kretsyscall" {:return true}}
    :refusals {:EINVAL [:invalid-value "the kernel does not allow a probe on that function"]}}

   :kprobe-multi
   {:value functions :keys {:return flag :session flag} :form :kprobe-multi
    :meaning "many kernel functions at once, by a vector of names or a pattern"
    :programs {:kprobe [:trace-kprobe-multi :trace-kprobe-session]}
    :since "5.18" :config "CONFIG_FPROBE" :cookie "5.18"
    :sections {"kprobe.multi" {} "kretprobe.multi" {:return true} "kprobe.session" {:session true}}
    :refusals {:EOPNOTSUPP [:not-supported "this kernel is built without CONFIG_FPROBE"]
               :EINVAL [:invalid-value (str "the program must be loaded with :expected-attach-type "
                                            ":trace-kprobe-multi, or :trace-kprobe-session")]}}

   :uprobe
   {:value text :form :perf-event
    :keys {:symbol text :offset offset :return flag :pid pid :counter u32}
    :meaning "a function of a program or a shared library, in every process or in one"
    :programs {:kprobe [nil]}
    :since "4.17" :config "CONFIG_UPROBE_EVENTS" :cookie "5.15"
    :sections {"uprobe" {} "uprobe.s" {} "uretprobe" {:return true} "uretprobe.s" {:return true}}
    :refusals {:EINVAL [:invalid-value "the kernel does not allow a probe at that offset of the file"]
               :EIO [:invalid-value "the kernel does not allow a probe at that offset of the file"]
               :ENOTSUPP [:not-supported "the kernel cannot probe the instruction at that offset"]
               :ESRCH [:not-found "the process of :pid does not exist"]}}

   :uprobe-multi
   {:value text :form :uprobe-multi
    :keys {:symbols functions :offsets [#(and (sequential? %) (seq %) (every? (first offset) %))
                                        "a vector of offsets in the file"]
           :return flag :session flag :pid pid}
    :meaning "many functions of a program or a shared library at once"
    :programs {:kprobe [:trace-uprobe-multi :trace-uprobe-session]}
    :since "6.6" :config "CONFIG_UPROBE_EVENTS" :cookie "6.6"
    :sections {"uprobe.multi" {} "uprobe.multi.s" {}
               "uretprobe.multi" {:return true} "uretprobe.multi.s" {:return true}
               "uprobe.session" {:session true} "uprobe.session.s" {:session true}}
    :refusals {:ESRCH [:not-found "the process of :pid does not exist"]
               :EINVAL [:invalid-value
                        (str "the program must be loaded with :expected-attach-type "
                             ":trace-uprobe-multi or :trace-uprobe-session, and every offset must "
                             "be that of an instruction")]
               :EBADF [:invalid-value "the path must name a file that can be executed or mapped"]}}

   :usdt
   {:value text :form :usdt
    :keys {:provider text :name text :pid pid} :required [:provider :name]
    :meaning (str "a probe that a program or a shared library declares (USDT), at all its places, in "
                  "every process or in one")
    :programs {:kprobe [nil :trace-uprobe-multi]}
    :since "4.17" :config "CONFIG_UPROBE_EVENTS" :cookie "4.17"
    :sections {"usdt" {} "usdt.s" {}}
    :refusals {:EINVAL [:invalid-value (str "the program must be loaded without an attach type or "
                                            "for :trace-uprobe-multi, and the kernel must allow a "
                                            "probe there")]
               :ENOTSUPP [:not-supported "the kernel cannot probe the instruction at that offset"]
               :ESRCH [:not-found "the process of :pid does not exist"]}}

   :perf-event
   {:value event :keys {:pid pid :cpu u31} :form :perf-event
    :meaning "a clock or a counter: the program runs after so many events, or so often in a second"
    :programs {:perf-event [nil]}
    :since "4.9" :cookie "5.15"
    :sections {"perf_event" nil}
    :refusals {:ENOENT [:not-supported (str "this machine does not count that event; virtual "
                                            "machines often have no hardware counters")]
               :EOPNOTSUPP [:not-supported (str "this machine does not count that event; virtual "
                                                "machines often have no hardware counters")]
               :ENODEV [:not-found "the CPU of :cpu is not online"]
               :EINVAL [:invalid-value (str "this machine must have the CPU of :cpu, and the event "
                                            "must count with that :period or :frequency")]
               :ESRCH [:not-found "the process of :pid does not exist"]}}

   :tp-btf
   (of-function :trace-raw-tp {"tp_btf" {}} "a tracepoint, with typed arguments"
                :config nil :cookie "6.10")
   :fentry
   (of-function :trace-fentry {"fentry" {} "fentry.s" {}} "the start of a kernel function")
   :fexit
   (of-function :trace-fexit {"fexit" {} "fexit.s" {}} "the end of a kernel function")
   :fmod-ret
   (of-function :modify-return {"fmod_ret" {} "fmod_ret.s" {}}
                "the start of a kernel function, whose result the program may replace" :since "5.7")
   :lsm
   (of-function :lsm-mac {"lsm" {} "lsm.s" {}} "a hook of the BPF LSM" :programs {:lsm [:lsm-mac]}
                :since "5.7" :config "CONFIG_BPF_LSM"
                :refusals {:EBUSY [:busy (str "the hook has its largest number of programs")]})
   :freplace
   (let [other [:invalid-value
                (str "the function must have the parameters and the result of the program, and its "
                     "program the type for which this one was loaded; if this one was attached "
                     "before, give the other one as :program (Linux 5.10)")]]
     {:value text :keys {:program program} :form :replacement
      :meaning (str "a function of another program, which is chosen when the program is loaded; "
                    ":program chooses another one that has such a function (Linux 5.10)")
      :programs {:ext [nil]}
      :since "5.6" :config trampolines
      :sections {"freplace" {}}
      :refusals {:EBUSY [:busy (str "another program replaces or traces that function, or the "
                                    "other program is in a map of programs")]
                 :EINVAL other
                 :ENOENT other}}) ; on 5.10, if it was attached before

   :iter
   {:value text :form :iter
    :keys {:map anything :cgroup directory :order (one-of (keys orders)) :pid pid :tid pid}
    :meaning (str "an iterator over objects of the kernel, such as \"task\" or \"bpf_map\"; the kind "
                  "of object is chosen when the program is loaded")
    :programs {:tracing [:trace-iter]}
    :since "5.8"
    :sections {"iter" {} "iter.s" {}}
    :refusals {:EBADF [:invalid-value (str "this iterator requires :map, the open map whose "
                                           "elements it visits")]
               :EINVAL [:invalid-value (str "this iterator does not accept the map, or the "
                                            "parameters that the target has")]}}

   :xdp
   {:value interface :keys {:mode (one-of (keys xdp-modes))} :form :device
    :meaning "the packets that a network interface receives, before the kernel's network stack"
    :programs {:xdp [:xdp]}
    :since "5.9"
    :sections {"xdp" nil "xdp.frags" nil}
    :refusals {:EBUSY [:busy "the interface has an XDP program already; close its link, or update! it"]
               :EEXIST [:busy "the interface has an XDP program in another mode"]
               :EOPNOTSUPP [:not-supported (str "the driver of the interface does not support "
                                                "this mode; use :mode :generic")]
               :EINVAL [:incompatible (str "the interface does not accept the program: its packets "
                                           "may be longer than a page, or the flags of the program "
                                           "do not fit (xdp.frags)")]}}

   :tcx
   {:value (one-of [:ingress :egress]) :keys {:interface interface} :required [:interface]
    :form :device
    :meaning "the packets that a network interface receives or sends"
    :programs {:sched-cls [:tcx-ingress :tcx-egress]}
    :attach-types {:ingress :tcx-ingress :egress :tcx-egress}
    :since "6.6" :order "6.6"
    :sections {"tcx/ingress" nil "tcx/egress" nil "tc/ingress" nil "tc/egress" nil
               "tc" nil "classifier" nil}}

   :netkit
   {:value (one-of [:primary :peer]) :keys {:interface interface} :required [:interface]
    :form :device
    :meaning "the packets of a netkit device"
    :programs {:sched-cls [:netkit-primary :netkit-peer]}
    :attach-types {:primary :netkit-primary :peer :netkit-peer}
    :since "6.7" :config "CONFIG_NETKIT" :order "6.7"
    :sections {"netkit/primary" nil "netkit/peer" nil}
    :refusals {:ENXIO [:invalid-value "the interface must be a netkit device"]
               :EACCES [:invalid-value "the interface must be the primary device of the pair"]
               :EINVAL [:not-supported "this kernel is built without CONFIG_NETKIT"]}}

   :cgroup
   {:value directory :keys {:attach-type [keyword? "a name from bpfmap.prog/attach-types"]}
    :form :cgroup
    :meaning "the processes of a cgroup and of the cgroups below it"
    :programs cgroup-programs
    :since "5.7" :order "6.17"
    :sections (into {"sockops" nil "lsm_cgroup" nil "cgroup_skb/ingress" nil
                     "cgroup_skb/egress" nil}
                    (for [s ["skb" "sock" "sock_create" "sock_release" "post_bind4" "post_bind6"
                             "dev" "sysctl" "getsockopt" "setsockopt"
                             "bind4" "bind6" "connect4" "connect6" "connect_unix" "sendmsg4"
                             "sendmsg6" "sendmsg_unix" "recvmsg4" "recvmsg6" "recvmsg_unix"
                             "getpeername4" "getpeername6" "getpeername_unix" "getsockname4"
                             "getsockname6" "getsockname_unix"]]
                      [(str "cgroup/" s) nil]))
    :refusals {:EBADF [:invalid-value "the directory must be a cgroup of a cgroup2 hierarchy"]
               :EPERM [:permission (str "a cgroup above has a program that was attached without "
                                        "allowing others, or a capability is missing")]
               :EINVAL [:invalid-value (str "the program must have been loaded for the attach type")]
               :E2BIG [:busy "the cgroup has its largest number of programs, 64"]}}

   :sk-lookup
   {:value namespace-file :form :netns
    :meaning "the choice of a socket for a packet, in a network namespace"
    :programs {:sk-lookup [:sk-lookup]}
    :since "5.9"
    :sections {"sk_lookup" nil}
    :refusals {:E2BIG [:busy "the network namespace has its largest number of programs, 64"]}}

   :flow-dissector
   {:value namespace-file :form :netns
    :meaning "the parser of packets, of a network namespace or, from the first one, of all"
    :programs {:flow-dissector [:flow-dissector]}
    :since "5.8"
    :sections {"flow_dissector" nil}
    :refusals {:E2BIG [:busy "the network namespace has a flow dissector already"]
               :EEXIST [:busy (str "a flow dissector is attached without a link, or in the first "
                                   "network namespace for all")]}}

   :netfilter
   {:value (one-of [:ipv4 :ipv6])
    :keys {:hook (one-of hooks) :priority (integer -2147483648 2147483647) :defragment flag}
    :required [:hook] :form :netfilter
    :meaning "a hook of netfilter in the network namespace of the thread"
    :programs {:netfilter [:netfilter]}
    :since "6.4" :config "CONFIG_NETFILTER_BPF_LINK"
    :sections {"netfilter" nil}
    :refusals {:EBUSY [:busy "another BPF program has this hook and priority; use another :priority"]
               :ERANGE [:invalid-value (str "the kernel keeps the lowest and the highest :priority "
                                            "for itself; with :defragment it must be more than -400")]
               :EAFNOSUPPORT [:not-supported "this kernel has no netfilter for that family"]
               :EOPNOTSUPP [:not-supported "this kernel cannot defragment packets of that family"]}}

   :sockmap
   {:value anything :keys {:attach-type (one-of [:sk-skb-stream-parser :sk-skb-stream-verdict
                                                 :sk-skb-verdict :sk-msg-verdict])}
    :form :sockmap
    :meaning "the data of the sockets in a map of type sockmap or sockhash"
    :programs {:sk-skb [:sk-skb-stream-verdict :sk-skb-stream-parser :sk-skb-verdict]
               :sk-msg [:sk-msg-verdict]}
    :since "6.10"
    :sections {"sk_skb" nil "sk_skb/stream_parser" nil "sk_skb/stream_verdict" nil
               "sk_skb/verdict" nil "sk_msg" nil}
    :refusals {:EBUSY [:busy "the map has a program with this attach type already"]}}

   :struct-ops
   {:value anything :form :struct-ops
    :meaning "a struct of functions, registered by the open map that has it as its value"
    :programs {}
    :since "6.4"
    :sections {}
    :refusals {:EINVAL [:invalid-value (str "the map must have been created with the flag :link, "
                                            "and have its value, which is put! at index 0")]
               :EEXIST [:exists "a struct with the same name is registered already"]}}))

;; --- checks

(defn invalid
  "Returns the exception for a target or option that is not valid."
  ^Throwable [path message hint]
  (error/error :invalid-value message
               {:bpfmap/op :attach :bpfmap/path path :bpfmap/hint hint}))

(defn kind-of
  "Returns the kind of a target, a key of [[kinds]].
  Throws `:invalid-value` for anything else."
  [target]
  (when-not (error/named-map? target)
    (throw (invalid [] (str "A target must be a map such as {:tracepoint \"sched/sched_switch\"}, got "
                            (error/printed target)) nil)))
  (let [found (filter kinds (keys target))
        ;; :cgroup is a parameter of an iterator too.
        found (if (contains? target :iter) [:iter] found)]
    (case (count found)
      1 (first found)
      0 (throw (invalid [] (str "A target must have one kind, got " (error/printed target))
                        (or (some #(nearest/did-you-mean % (keys kinds)) (keys target))
                            "bpfmap.link/targets has all kinds")))
      (throw (invalid [] (str "A target must have one kind, got "
                              (error/list-of found "and")) nil)))))

(defn check
  "Returns a target; throws `:invalid-value` unless it has the form of its kind.

      (check {:tcx :ingress :interface \"eth0\"}) ;=> {:tcx :ingress :interface \"eth0\"}"
  [target]
  (let [kind (kind-of target)
        {:keys [value required] known :keys} (kinds kind)
        constraints (assoc known kind value)]
    (doseq [[k x] target
            :let [[good? words :as row] (constraints k)]]
      (when-not row
        (throw (invalid [k] (str "Unknown key " (error/printed k) " of a target " kind)
                        (nearest/alternatives k (keys constraints)))))
      (when-not (good? x)
        (throw (invalid [k] (str k " must be " words ", got " (error/printed x)) nil))))
    (doseq [k required :when (nil? (get target k))]
      (throw (invalid [k] (str "A target " kind " must have " k ", got " (error/printed target))
                      nil)))
    target))

(defn check-program
  "Throws `:invalid-value` unless programs of a type can have a kind of target."
  [kind type]
  (let [types (keys (:programs (kinds kind)))]
    (when (empty? types)
      (throw (invalid [] (str "A program cannot have a target " kind)
                      "attach the open map that has the struct as its value")))
    (when-not (some #{type} types)
      (throw (invalid [] (str "A program for a target " kind " must be of type "
                              (error/list-of types) ", got one of type " type)
                      (when-let [others (seq (for [[k row] kinds
                                                   :when (contains? (:programs row) type)]
                                               k))]
                        (str "targets of this program are " (error/list-of others))))))))

(def ^:private order-keys [:before :after :revision])

(defn check-options
  "Returns options; throws unless a kind of target has them."
  [kind options]
  (when-not (or (nil? options) (map? options))
    (throw (invalid [] (str "Options must be a map, got " (error/printed options)) nil)))
  (let [{:keys [cookie order]} (kinds kind)]
    (doseq [[k x] options]
      (case k
        :cookie (cond
                  (nil? cookie)
                  (throw (invalid [k] (str "A target " kind " must not have the option :cookie") nil))
                  (not (or (and (integer? x) (<= 0 x 18446744073709551615))
                           (and (#{:kprobe-multi :uprobe-multi} kind) (sequential? x)
                                (every? integer? x))))
                  (throw (invalid [k] (str ":cookie must be an unsigned 64-bit integer, got "
                                           (error/printed x)) nil)))
        (:before :after :revision)
        (when-not order
          (throw (invalid [k] (str "A target " kind " must not have the option " k)
                          (str "the kernel orders only the programs of "
                               (error/list-of (for [[k row] kinds :when (:order row)] k) "and")))))
        (throw (invalid [k] (str "Unknown option " (error/printed k))
                        (nearest/alternatives k (cons :cookie order-keys))))))
    (when (and (:before options) (:after options))
      (throw (invalid [] "Options must have :before or :after, not both" nil)))
    (when-let [n (:revision options)]
      (when-not (pos-int? n)
        (throw (invalid [:revision] (str ":revision must be a positive integer, got "
                                         (error/printed n))
                        "bpfmap.link/attached returns the current one"))))
    options))

;; --- sections

(def ^:private by-section
  "Section names to `[kind keys]`.
  The keys are nil if the name says nothing of the target."
  (into {} (for [[kind {:keys [sections]}] kinds, [section more] sections]
             [section [kind more]])))

(defn- section-row
  "Returns the row of a section's name up to one of its slashes, the longest."
  [section]
  (let [section (cond-> section (str/starts-with? section "?") (subs 1))]
    (loop [text section]
      (or (by-section text)
          (when-let [at (str/last-index-of text "/")]
            (recur (subs text 0 at)))))))

(defn- decoded
  "Returns an offset in the name of a section as a number.

  An offset that is too large becomes the largest one, which no function has."
  [text]
  (try (Long/decode text)
       (catch NumberFormatException _ Long/MAX_VALUE)))

(defn- parsed
  "Returns the target that a kind's text stands for, or nil."
  [kind text]
  (case kind
    (:kprobe) (let [[_ function plus] (re-matches #"([^+]+)(?:\+(0x[0-9a-fA-F]+|\d+))?" text)]
                (cond-> {kind function}
                  plus (assoc :offset (decoded plus))))
    :uprobe (let [[_ path symbol plus] (re-matches #"(.+):([^:+]+)(?:\+(0x[0-9a-fA-F]+|\d+))?" text)]
              (when path
                (cond-> {kind path}
                  (re-matches #"0x[0-9a-fA-F]+" symbol) (assoc :offset (decoded symbol))
                  (not (re-matches #"0x[0-9a-fA-F]+" symbol)) (assoc :symbol symbol)
                  plus (assoc :offset (decoded plus)))))
    :usdt (let [[_ path provider name] (re-matches #"(.+):([^:]+):([^:]+)" text)]
            (when path {kind path :provider provider :name name}))
    :uprobe-multi (let [[_ path symbols] (re-matches #"(.+):([^:]+)" text)]
                    (when path {kind path :symbols symbols}))
    {kind text}))

(defn of-section
  "Returns the target in the section of a program, as data; nil if it has none.

  `definition` has the keys `:section` and `:target`, as of a program of an object.

      (of-section {:section \"kretprobe/do_unlinkat\" :target \"do_unlinkat\"})
      ;=> {:kprobe \"do_unlinkat\" :return true}"
  [{:keys [section target]}]
  (when section
    (let [[kind more] (section-row section)]
      (when (and more target)
        (some-> (parsed kind target) (merge more))))))

(defn- struct-ops? [section]
  (boolean (re-find #"^\??struct_ops" section)))

(defn example
  "Returns an example of a target for a section, as text; nil if none is known."
  [{:keys [section]}]
  (let [[kind] (some-> section section-row)]
    (case (if (and section (struct-ops? section)) :struct-ops kind)
      :struct-ops "{:struct-ops m}, and in place of the program m, the open map of the struct"
      :xdp "{:xdp \"eth0\"}"
      :tcx (str "{:tcx " (if (re-find #"egress" section) :egress :ingress) " :interface \"eth0\"}")
      :netkit "{:netkit :primary :interface \"nk0\"}"
      :cgroup "{:cgroup \"/sys/fs/cgroup/my\"}"
      :sk-lookup "{:sk-lookup :self}"
      :flow-dissector "{:flow-dissector :self}"
      :netfilter "{:netfilter :ipv4 :hook :prerouting}"
      :perf-event "{:perf-event {:type :software :event :cpu-clock :frequency 99}}"
      :sockmap "{:sockmap m}"
      (:kprobe :fentry) "{:kprobe \"do_unlinkat\"}"
      :uprobe "{:uprobe \"/bin/bash\" :symbol \"readline\"}"
      :usdt "{:usdt \"libc\" :provider \"libc\" :name \"setjmp\"}"
      nil)))

;; --- refusals

(def ^:private lacking-errnos
  "Errnos of a kernel that does not know what it is asked for."
  #{:EINVAL :E2BIG :EOPNOTSUPP :ENOTSUPP :ENOSYS :ENOENT})

(defn- needs [what needed release]
  (when (and needed release (not (map-types/at-least? release needed)))
    [:not-supported (str what " need Linux " needed ", this is " release)]))

(defn refusal
  "Returns the meaning of an errno for a kind of target; nil if it has none.

  The meaning is `[error hint]`.

      (refusal :tcx :EINVAL {:release \"6.1.0\"})
      ;=> [:not-supported \"links of :tcx need Linux 6.6, this is 6.1.0\"]"
  [kind errno {:keys [release options]}]
  (let [{:keys [since cookie order refusals config]} (kinds kind)
        ordered? (boolean (some #(get options %) order-keys))]
    (or (when (lacking-errnos errno)
          (or (needs (str "links of " kind) since release)
              (when (:cookie options) (needs (str "cookies of " kind) cookie release))
              (when ordered? (needs (str "orders of " kind) order release))))
        (when (= :ESTALE errno)
          [:busy (str "other programs were attached or detached since :revision "
                      (:revision options) "; read it again with bpfmap.link/attached")])
        (when (and ordered? (= :ENOENT errno))
          [:not-found "the program or link of :before or :after is not attached there"])
        (when (and (= :EEXIST errno) order)
          [:exists "this program is attached there already"])
        (when (and (= :ERANGE errno) order)
          [:busy "the hook has its largest number of programs, 64"])
        (get refusals errno)
        (when (and config (#{:EOPNOTSUPP :ENOTSUPP :ENOSYS} errno))
          [:not-supported (str "links of " kind " need a kernel built with " config)]))))
