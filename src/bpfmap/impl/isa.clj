(ns ^:no-doc bpfmap.impl.isa
  "The BPF instruction set as data: registers, helper functions and mnemonics.

  The encodings follow RFC 9669. `bpfmap.asm` reads these tables. A new instruction of a known form
  needs only a new row.")

(set! *warn-on-reflection* true)

(def registers
  "The registers by name: `:r0` to `:r9`, and the read-only frame pointer `:r10`."
  (into {} (map (fn [n] [(keyword (str "r" n)) n])) (range 11)))

(def helpers
  "Numbers of helper functions by the kernel's name, in kebab case.

  Source: ___BPF_FUNC_MAPPER in <linux/bpf.h>, where `bpf_map_lookup_elem` is 1. The list is
  complete: since Linux 6.2, new functions for programs are not helpers.

      (helpers :map-lookup-elem) ;=> 1"
  (zipmap
   [:map-lookup-elem :map-update-elem :map-delete-elem :probe-read :ktime-get-ns :trace-printk
    :get-prandom-u32
    :get-smp-processor-id :skb-store-bytes :l3-csum-replace :l4-csum-replace :tail-call
    :clone-redirect
    :get-current-pid-tgid :get-current-uid-gid :get-current-comm :get-cgroup-classid :skb-vlan-push
    :skb-vlan-pop
    :skb-get-tunnel-key :skb-set-tunnel-key :perf-event-read :redirect :get-route-realm
    :perf-event-output
    :skb-load-bytes :get-stackid :csum-diff :skb-get-tunnel-opt :skb-set-tunnel-opt
    :skb-change-proto
    :skb-change-type :skb-under-cgroup :get-hash-recalc :get-current-task :probe-write-user
    :current-task-under-cgroup :skb-change-tail :skb-pull-data :csum-update :set-hash-invalid
    :get-numa-node-id
    :skb-change-head :xdp-adjust-head :probe-read-str :get-socket-cookie :get-socket-uid :set-hash
    :setsockopt
    :skb-adjust-room :redirect-map :sk-redirect-map :sock-map-update :xdp-adjust-meta
    :perf-event-read-value
    :perf-prog-read-value :getsockopt :override-return :sock-ops-cb-flags-set :msg-redirect-map
    :msg-apply-bytes
    :msg-cork-bytes :msg-pull-data :bind :xdp-adjust-tail :skb-get-xfrm-state :get-stack
    :skb-load-bytes-relative
    :fib-lookup :sock-hash-update :msg-redirect-hash :sk-redirect-hash :lwt-push-encap
    :lwt-seg6-store-bytes
    :lwt-seg6-adjust-srh :lwt-seg6-action :rc-repeat :rc-keydown :skb-cgroup-id
    :get-current-cgroup-id
    :get-local-storage :sk-select-reuseport :skb-ancestor-cgroup-id :sk-lookup-tcp :sk-lookup-udp
    :sk-release
    :map-push-elem :map-pop-elem :map-peek-elem :msg-push-data :msg-pop-data :rc-pointer-rel
    :spin-lock
    :spin-unlock :sk-fullsock :tcp-sock :skb-ecn-set-ce :get-listener-sock :skc-lookup-tcp
    :tcp-check-syncookie
    :sysctl-get-name :sysctl-get-current-value :sysctl-get-new-value :sysctl-set-new-value :strtol
    :strtoul
    :sk-storage-get :sk-storage-delete :send-signal :tcp-gen-syncookie :skb-output :probe-read-user
    :probe-read-kernel :probe-read-user-str :probe-read-kernel-str :tcp-send-ack :send-signal-thread
    :jiffies64
    :read-branch-records :get-ns-current-pid-tgid :xdp-output :get-netns-cookie
    :get-current-ancestor-cgroup-id
    :sk-assign :ktime-get-boot-ns :seq-printf :seq-write :sk-cgroup-id :sk-ancestor-cgroup-id
    :ringbuf-output
    :ringbuf-reserve :ringbuf-submit :ringbuf-discard :ringbuf-query :csum-level :skc-to-tcp6-sock
    :skc-to-tcp-sock
    :skc-to-tcp-timewait-sock :skc-to-tcp-request-sock :skc-to-udp6-sock :get-task-stack
    :load-hdr-opt
    :store-hdr-opt :reserve-hdr-opt :inode-storage-get :inode-storage-delete :d-path :copy-from-user
    :snprintf-btf
    :seq-printf-btf :skb-cgroup-classid :redirect-neigh :per-cpu-ptr :this-cpu-ptr :redirect-peer
    :task-storage-get
    :task-storage-delete :get-current-task-btf :bprm-opts-set :ktime-get-coarse-ns :ima-inode-hash
    :sock-from-file
    :check-mtu :for-each-map-elem :snprintf :sys-bpf :btf-find-by-name-kind :sys-close :timer-init
    :timer-set-callback :timer-start :timer-cancel :get-func-ip :get-attach-cookie :task-pt-regs
    :get-branch-snapshot :trace-vprintk :skc-to-unix-sock :kallsyms-lookup-name :find-vma :loop
    :strncmp
    :get-func-arg :get-func-ret :get-func-arg-cnt :get-retval :set-retval :xdp-get-buff-len
    :xdp-load-bytes
    :xdp-store-bytes :copy-from-user-task :skb-set-tstamp :ima-file-hash :kptr-xchg
    :map-lookup-percpu-elem
    :skc-to-mptcp-sock :dynptr-from-mem :ringbuf-reserve-dynptr :ringbuf-submit-dynptr
    :ringbuf-discard-dynptr
    :dynptr-read :dynptr-write :dynptr-data :tcp-raw-gen-syncookie-ipv4 :tcp-raw-gen-syncookie-ipv6
    :tcp-raw-check-syncookie-ipv4 :tcp-raw-check-syncookie-ipv6 :ktime-get-tai-ns
    :user-ringbuf-drain
    :cgrp-storage-get :cgrp-storage-delete]
   (rest (range))))

(def ^:private alu
  {"add" 0x00 "sub" 0x10 "mul" 0x20 "div" 0x30 "or" 0x40 "and" 0x50 "lsh" 0x60 "rsh" 0x70
   "mod" 0x90 "xor" 0xa0 "mov" 0xb0 "arsh" 0xc0})

(def ^:private branches
  {"jeq" 0x10 "jgt" 0x20 "jge" 0x30 "jset" 0x40 "jne" 0x50 "jsgt" 0x60 "jsge" 0x70
   "jlt" 0xa0 "jle" 0xb0 "jslt" 0xc0 "jsle" 0xd0})

;; Suffix, size bits, and the range of an immediate of that size. A 64-bit store has an immediate of
;; 32 bits, whose sign is extended.
(def ^:private sizes
  [["w" 0x00 :bits32] ["h" 0x08 :bits16] ["b" 0x10 :bits8] ["dw" 0x18 :signed32]])

;; Name, immediate, operands. Fetching writes the old value into the source register; cmpxchg
;; writes it into r0.
(def ^:private atomics
  (concat (for [[op code] {"add" 0x00 "or" 0x40 "and" 0x50 "xor" 0xa0}
                [prefix fetch source] [["" 0 :right] ["fetch-" 1 :fetched]]]
            [(str prefix op) (+ code fetch) [:memory-to source]])
          [["xchg" 0xe1 [:memory-to :fetched]]
           ["cmpxchg" 0xf1 [:memory-to :right]]]))

(def mnemonics
  "The rows of all mnemonics of the assembler, by name.

  `:code` is the opcode, `:operands` the kinds of operands in order, `:immediate` the range of an
  immediate. `:imm`, `:off` and `:src` are constants that belong to the operation. `:slots` is 2 for
  an instruction of two slots.

      (mnemonics :mov64) ;=> {:code 0xb7 :operands [:to :source] :immediate :signed32}"
  (into {:neg64 {:code 0x87 :operands [:to]}
         :neg32 {:code 0x84 :operands [:to]}
         :lddw {:code 0x18 :operands [:to :wide] :slots 2}
         :ld-map-value {:code 0x18 :operands [:to :map :map-offset] :slots 2}
         :ld-func {:code 0x18 :operands [:to :function] :slots 2}
         :ja {:code 0x05 :operands [:target]}
         :gotol {:code 0x06 :operands [:far-target]}
         :may-goto {:code 0xe5 :operands [:target]}
         :gotox {:code 0x0d :operands [:left]}
         :call {:code 0x85 :operands [:helper]}
         :call-local {:code 0x85 :src 1 :operands [:far-target]} ; BPF_PSEUDO_CALL
         :call-btf {:code 0x85 :src 2 :operands [:btf-id]} ; BPF_PSEUDO_KFUNC_CALL
         :callx {:code 0x8d :operands [:left]}
         :addr-space-cast {:code 0xbf :off 1 :operands [:to :right :to-space :from-space]}
         :insn {:code 0 :operands [:fields]}
         :exit {:code 0x95 :operands []}}
        (map (fn [[mnemonic row]] [(keyword mnemonic) row]))
        (concat
         (for [[op code] alu
               [bits class immediate] [["64" 0x07 :signed32] ["32" 0x04 :bits32]]]
           [(str op bits) {:code (+ code class) :operands [:to :source] :immediate immediate}])
         (for [[op code] branches
               [bits class immediate] [["" 0x05 :signed32] ["32" 0x06 :bits32]]]
           [(str op bits)
            {:code (+ code class) :operands [:left :source :target] :immediate immediate}])
         (for [[order code] {"le" 0xd4 "be" 0xdc}
               bits [16 32 64]]
           [(str order bits) {:code code :operands [:to] :imm bits}])
         (mapcat (fn [[suffix size immediate]]
                   [[(str "ldx" suffix) {:code (+ 0x61 size) :operands [:to :memory-from]}]
                    [(str "stx" suffix) {:code (+ 0x63 size) :operands [:memory-to :right]}]
                    [(str "st" suffix) {:code (+ 0x62 size) :operands [:memory-to :immediate]
                                        :immediate immediate}]])
                 sizes)
         (for [[op imm operands] atomics
               [bits code] [["64" 0xdb] ["32" 0xc3]]]
           [(str "atomic-" op bits) {:code code :operands operands :imm imm}])
         (for [[op imm operands] [["load-acquire" 0x100 [:to :memory-from]]
                                  ["store-release" 0x110 [:memory-to :right]]]
               [bits code] [["64" 0xdb] ["32" 0xc3] ["16" 0xcb] ["8" 0xd3]]]
           [(str op bits) {:code code :operands operands :imm imm}])
         ;; Signed division is division with an offset of 1, and a move with a width there extends
         ;; the sign.
         (for [[op code] [["sdiv" 0x30] ["smod" 0x90]]
               [bits class immediate] [["64" 0x07 :signed32] ["32" 0x04 :bits32]]]
           [(str op bits)
            {:code (+ code class) :off 1 :operands [:to :source] :immediate immediate}])
         (for [[bits code widths] [["64" 0xbf [["b" 8] ["h" 16] ["w" 32]]]
                                   ["32" 0xbc [["b" 8] ["h" 16]]]]
               [suffix width] widths]
           [(str "movs" suffix bits) {:code code :off width :operands [:to :right]}])
         (for [[suffix code] [["b" 0x91] ["h" 0x89] ["w" 0x81]]]
           [(str "ldxs" suffix) {:code code :operands [:to :memory-from]}])
         (for [bits [16 32 64]]
           [(str "bswap" bits) {:code 0xd7 :operands [:to] :imm bits}])
         ;; Packets: classic BPF's, with the bytes in network order, into r0.
         (for [[suffix size] [["w" 0x00] ["h" 0x08] ["b" 0x10]]
               [op code operands] [["ldabs" 0x20 [:immediate]]
                                   ["ldind" 0x40 [:right :immediate]]]]
           [(str op suffix) {:code (+ code size) :operands operands :immediate :signed32}]))))

(def ranges
  "The smallest and largest integer of each kind of immediate, offset and number."
  {:signed16 [-0x8000 0x7fff]
   :signed32 [-0x80000000 0x7fffffff]
   ;; An operation that uses only these bits accepts the signed and the unsigned reading.
   :bits8 [-0x80 0xff]
   :bits16 [-0x8000 0xffff]
   :bits32 [-0x80000000 0xffffffff]
   :bits64 [-0x8000000000000000 0xffffffffffffffff]
   :unsigned4 [0 0xf]
   :unsigned8 [0 0xff]
   :unsigned16 [0 0xffff]
   :unsigned31 [0 0x7fffffff]
   :unsigned32 [0 0xffffffff]})
