(ns ^:no-doc bpfmap.impl.object.section-name
  "What the name of a section says about the programs in it, as a table."
  (:require [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def ^:private cgroup-rows
  "The sections of cgroup programs for system calls on socket addresses."
  (for [[call versions] [["bind" ["4" "6"]]
                         ["connect" ["4" "6" "_unix"]]
                         ["sendmsg" ["4" "6" "_unix"]]
                         ["recvmsg" ["4" "6" "_unix"]]
                         ["getpeername" ["4" "6" "_unix"]]
                         ["getsockname" ["4" "6" "_unix"]]]
        version versions
        :let [;; UDP's calls have its name in their attach types.
              attach (cond
                       (= "_unix" version) (str "cgroup-unix-" call)
                       (str/ends-with? call "msg") (str "cgroup-udp" version "-" call)
                       :else (str "cgroup-inet" version "-" call))]]
    [(str "cgroup/" call version) {:type :cgroup-sock-addr :attach-type (keyword attach)}]))

(def rows
  "Sections by name.

  | key            | meaning                                                                 |
  |----------------|-------------------------------------------------------------------------|
  | `:type`        | the program type, as in `bpfmap.prog/types`                             |
  | `:attach-type` | the attach type that the program is loaded with, if there is one        |
  | `:target`      | the meaning of the text behind the name and `/`, if it has one          |
  | `:flags`       | `:sleepable`, `:xdp-has-frags`: flags that the program is loaded with   |

  Source: libbpf's documentation of program types."
  (into
   {"socket" {:type :socket-filter}
    "sk_reuseport" {:type :sk-reuseport :attach-type :sk-reuseport-select}
    "sk_reuseport/migrate" {:type :sk-reuseport :attach-type :sk-reuseport-select-or-migrate}
    "kprobe" {:type :kprobe :target :kernel-function}
    "kretprobe" {:type :kprobe :target :kernel-function}
    "kprobe.multi" {:type :kprobe :attach-type :trace-kprobe-multi :target :pattern}
    "kretprobe.multi" {:type :kprobe :attach-type :trace-kprobe-multi :target :pattern}
    "kprobe.session" {:type :kprobe :attach-type :trace-kprobe-session :target :pattern}
    "ksyscall" {:type :kprobe :target :system-call}
    "kretsyscall" {:type :kprobe :target :system-call}
    "uprobe" {:type :kprobe :target :path-and-function}
    "uprobe.s" {:type :kprobe :target :path-and-function :flags #{:sleepable}}
    "uretprobe" {:type :kprobe :target :path-and-function}
    "uretprobe.s" {:type :kprobe :target :path-and-function :flags #{:sleepable}}
    "usdt" {:type :kprobe :target :path-provider-and-name}
    "usdt.s" {:type :kprobe :target :path-provider-and-name :flags #{:sleepable}}
    "tc" {:type :sched-cls}
    "classifier" {:type :sched-cls}
    "action" {:type :sched-act}
    "tc/ingress" {:type :sched-cls :attach-type :tcx-ingress}
    "tc/egress" {:type :sched-cls :attach-type :tcx-egress}
    "tcx/ingress" {:type :sched-cls :attach-type :tcx-ingress}
    "tcx/egress" {:type :sched-cls :attach-type :tcx-egress}
    "netkit/primary" {:type :sched-cls :attach-type :netkit-primary}
    "netkit/peer" {:type :sched-cls :attach-type :netkit-peer}
    "tracepoint" {:type :tracepoint :target :category-and-name}
    "tp" {:type :tracepoint :target :category-and-name}
    "raw_tracepoint" {:type :raw-tracepoint :target :tracepoint}
    "raw_tp" {:type :raw-tracepoint :target :tracepoint}
    "raw_tracepoint.w" {:type :raw-tracepoint-writable :target :tracepoint}
    "raw_tp.w" {:type :raw-tracepoint-writable :target :tracepoint}
    "tp_btf" {:type :tracing :attach-type :trace-raw-tp :target :tracepoint}
    "freplace" {:type :ext :target :program-function}
    "lsm" {:type :lsm :attach-type :lsm-mac :target :hook}
    "lsm.s" {:type :lsm :attach-type :lsm-mac :target :hook :flags #{:sleepable}}
    "lsm_cgroup" {:type :lsm :attach-type :lsm-cgroup :target :hook}
    "iter" {:type :tracing :attach-type :trace-iter :target :iterator}
    "iter.s" {:type :tracing :attach-type :trace-iter :target :iterator :flags #{:sleepable}}
    "syscall" {:type :syscall :flags #{:sleepable}}
    "xdp" {:type :xdp :attach-type :xdp}
    "xdp/devmap" {:type :xdp :attach-type :xdp-devmap}
    "xdp/cpumap" {:type :xdp :attach-type :xdp-cpumap}
    "xdp.frags" {:type :xdp :attach-type :xdp :flags #{:xdp-has-frags}}
    "xdp.frags/devmap" {:type :xdp :attach-type :xdp-devmap :flags #{:xdp-has-frags}}
    "xdp.frags/cpumap" {:type :xdp :attach-type :xdp-cpumap :flags #{:xdp-has-frags}}
    "perf_event" {:type :perf-event}
    "lwt_in" {:type :lwt-in}
    "lwt_out" {:type :lwt-out}
    "lwt_xmit" {:type :lwt-xmit}
    "lwt_seg6local" {:type :lwt-seg6local}
    "sockops" {:type :sock-ops :attach-type :cgroup-sock-ops}
    "sk_skb" {:type :sk-skb}
    "sk_skb/stream_parser" {:type :sk-skb :attach-type :sk-skb-stream-parser}
    "sk_skb/stream_verdict" {:type :sk-skb :attach-type :sk-skb-stream-verdict}
    "sk_skb/verdict" {:type :sk-skb :attach-type :sk-skb-verdict}
    "sk_msg" {:type :sk-msg :attach-type :sk-msg-verdict}
    "sk_lookup" {:type :sk-lookup :attach-type :sk-lookup}
    "lirc_mode2" {:type :lirc-mode2 :attach-type :lirc-mode2}
    "flow_dissector" {:type :flow-dissector :attach-type :flow-dissector}
    "cgroup_skb/ingress" {:type :cgroup-skb :attach-type :cgroup-inet-ingress}
    "cgroup_skb/egress" {:type :cgroup-skb :attach-type :cgroup-inet-egress}
    "cgroup/skb" {:type :cgroup-skb}
    "cgroup/sock" {:type :cgroup-sock :attach-type :cgroup-inet-sock-create}
    "cgroup/sock_create" {:type :cgroup-sock :attach-type :cgroup-inet-sock-create}
    "cgroup/sock_release" {:type :cgroup-sock :attach-type :cgroup-inet-sock-release}
    "cgroup/post_bind4" {:type :cgroup-sock :attach-type :cgroup-inet4-post-bind}
    "cgroup/post_bind6" {:type :cgroup-sock :attach-type :cgroup-inet6-post-bind}
    "cgroup/dev" {:type :cgroup-device :attach-type :cgroup-device}
    "cgroup/sysctl" {:type :cgroup-sysctl :attach-type :cgroup-sysctl}
    "cgroup/getsockopt" {:type :cgroup-sockopt :attach-type :cgroup-getsockopt}
    "cgroup/setsockopt" {:type :cgroup-sockopt :attach-type :cgroup-setsockopt}
    "struct_ops" {:type :struct-ops :target :member}
    "struct_ops.s" {:type :struct-ops :target :member :flags #{:sleepable}}
    "netfilter" {:type :netfilter :attach-type :netfilter}}
   (concat
    cgroup-rows
    (for [[text attach-type] {"fentry" :trace-fentry "fexit" :trace-fexit
                              "fmod_ret" :modify-return}
          [suffix flags] {"" nil ".s" #{:sleepable}}]
      [(str text suffix) (cond-> {:type :tracing :attach-type attach-type :target :kernel-function}
                           flags (assoc :flags flags))])
    (for [text ["uprobe" "uretprobe"]
          [suffix flags] {".multi" nil ".multi.s" #{:sleepable}}]
      [(str text suffix) (cond-> {:type :kprobe :attach-type :trace-uprobe-multi
                                  :target :path-and-pattern}
                           flags (assoc :flags flags))])
    (for [[suffix flags] {".session" nil ".session.s" #{:sleepable}}]
      [(str "uprobe" suffix) (cond-> {:type :kprobe :attach-type :trace-uprobe-session
                                      :target :path-and-pattern}
                               flags (assoc :flags flags))]))))

(defn- cuts
  "Returns a name cut at each slash, the last one first.

  The result for a/b is `([\"a/b\" nil] [\"a\" \"b\"])`."
  [text]
  (cons [text nil]
        (for [at (reverse (keep-indexed #(when (= \/ %2) %1) text))]
          [(subs text 0 at) (subs text (inc (long at)))])))

(defn described
  "Returns what the name of a section says about a program.

  The keys are `:type :attach-type :target :flags :autoload`. The longest name of the table counts, up to a slash. Keys that do not apply are missing, `:type`
  for an unknown name. `:autoload` is false for a name that starts with `?`.

      (described \"kprobe/do_unlinkat\") ;=> {:type :kprobe :target \"do_unlinkat\"}
      (described \"?xdp\")               ;=> {:type :xdp :attach-type :xdp :autoload false}"
  [section]
  (let [optional? (str/starts-with? section "?")
        text (cond-> section optional? (subs 1))
        ;; No name of the table has more than one slash, so only the first two can matter.
        [row more] (some (fn [[text more]] (when-let [row (rows text)] [row more]))
                         (if (< (count text) 512)
                           (cuts text)
                           [(str/split text #"/" 2)]))]
    (cond-> (dissoc (or row {}) :target)
      (and (:target row) (seq more)) (assoc :target more)
      optional? (assoc :autoload false))))
