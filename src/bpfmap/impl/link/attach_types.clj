(ns ^:no-doc bpfmap.impl.link.attach-types
  "Attach types by name, and their names by number."
  (:require [clojure.set :as set]))

(set! *warn-on-reflection* true)

(def numbers
  "Numbers of attach types by name: `enum bpf_attach_type` in linux/bpf.h."
  (zipmap [:cgroup-inet-ingress :cgroup-inet-egress :cgroup-inet-sock-create :cgroup-sock-ops
           :sk-skb-stream-parser
           :sk-skb-stream-verdict :cgroup-device :sk-msg-verdict :cgroup-inet4-bind
           :cgroup-inet6-bind
           :cgroup-inet4-connect :cgroup-inet6-connect :cgroup-inet4-post-bind
           :cgroup-inet6-post-bind
           :cgroup-udp4-sendmsg :cgroup-udp6-sendmsg :lirc-mode2 :flow-dissector :cgroup-sysctl
           :cgroup-udp4-recvmsg
           :cgroup-udp6-recvmsg :cgroup-getsockopt :cgroup-setsockopt :trace-raw-tp :trace-fentry
           :trace-fexit
           :modify-return :lsm-mac :trace-iter :cgroup-inet4-getpeername :cgroup-inet6-getpeername
           :cgroup-inet4-getsockname :cgroup-inet6-getsockname :xdp-devmap :cgroup-inet-sock-release
           :xdp-cpumap
           :sk-lookup :xdp :sk-skb-verdict :sk-reuseport-select :sk-reuseport-select-or-migrate
           :perf-event
           :trace-kprobe-multi :lsm-cgroup :struct-ops :netfilter :tcx-ingress :tcx-egress
           :trace-uprobe-multi
           :cgroup-unix-connect :cgroup-unix-sendmsg :cgroup-unix-recvmsg :cgroup-unix-getpeername
           :cgroup-unix-getsockname :netkit-primary :netkit-peer :trace-kprobe-session
           :trace-uprobe-session]
          (range)))

(def ^:private number->name (set/map-invert numbers))

(defn name-of
  "Returns the name of an attach type's number, or the number if it has none."
  [number]
  (number->name number number))
