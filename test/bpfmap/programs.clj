(ns bpfmap.programs
  "What makes the kernel itself fill a map: programs in a cgroup, stacks, tail calls, congestion
  control.

  Maps are open ones, as `bpfmap.core` returns them; what is loaded or attached goes when it is
  closed."
  (:require [bpfmap.asm :as asm]
            [bpfmap.btf :as btf]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture]
            [bpfmap.host :as host]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.kernel.btf :as sys.btf]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.linux :as linux :refer [attr-field call constant held pack]]
            [bpfmap.objects :as objects]
            [bpfmap.prog :as prog])
  (:import (bpfmap.impl.prog.program Program)
           (bpfmap.sys Abi Attr Fd)))

(set! *warn-on-reflection* true)

(defn descriptor
  "The descriptor of a loaded program: `.acquire` it for its number, `.release` it when done."
  ^Fd [^Program program]
  (.-fd program))

(defn- command
  "Makes one call of bpf(2) with the fields that fill sets; throws for an errno."
  [what number fill]
  (with-open [attr (Attr.)]
    (fill attr)
    (let [result (.call attr (int number))]
      (if (neg? result)
        (throw (linux/failed what result))
        result))))

;; --- programs in a cgroup

(defn storage-counter
  "A program that counts the packets of a cgroup in its own element of a CGROUP_STORAGE or
  PERCPU_CGROUP_STORAGE map, whose value begins with a u64."
  ^java.io.Closeable [m]
  (prog/load {:type :cgroup-skb
              :insns [[:lddw :r1 m]
                      [:mov64 :r2 0]
                      [:call :get-local-storage]
                      [:mov64 :r1 1]
                      [:atomic-add64 [:r0 0] :r1]
                      [:mov64 :r0 1] ; let it pass
                      [:exit]]}))

(defn- cgroup-attachment [^Fd program cgroup number flags]
  (command (if (= "BPF_PROG_ATTACH" number) "attaching to a cgroup" "detaching from a cgroup")
           (constant number)
           (fn [^Attr attr]
             (.int32 attr (attr-field "target_fd") (:fd cgroup))
             (.fd attr (attr-field "attach_bpf_fd") program)
             (.int32 attr (attr-field "attach_type") (constant "BPF_CGROUP_INET_EGRESS"))
             (.int32 attr (attr-field "attach_flags") flags))))

(defn attach-to-cgroup
  "Attaches a program of type `:cgroup-skb` to what a cgroup sends; closing what this returns
  detaches it.

  `cgroup` is what `bpfmap.objects/cgroup` returned, and is closed after this. The element of a
  cgroup's storage is there from now on, and goes with the cgroup or with the program."
  ^java.io.Closeable [program cgroup]
  (let [fd (descriptor program)]
    (cgroup-attachment fd cgroup "BPF_PROG_ATTACH" (constant "BPF_F_ALLOW_MULTI"))
    (let [number (.acquire fd)] ; so that the program outlives its attachment
      (held {:fd number}
            #(try
               (cgroup-attachment fd cgroup "BPF_PROG_DETACH" 0)
               (finally (.release fd)))))))

(defn attach-without-link
  "Attaches a program to a device or to the network namespace of the thread, without a link, by the
  number of an attach type; closing what this returns detaches it.

  `target` is the index of a device, or 0 for the namespace."
  ^java.io.Closeable [program target attach-type]
  (let [fd (descriptor program)
        run (fn [what number]
              (command what (constant number)
                       (fn [^Attr attr]
                         (.int32 attr (attr-field "target_fd") target)
                         (.fd attr (attr-field "attach_bpf_fd") fd)
                         (.int32 attr (attr-field "attach_type") attach-type))))]
    (run "attaching without a link" "BPF_PROG_ATTACH")
    (let [number (.acquire fd)]
      (held {:fd number}
            #(try
               (run "detaching without a link" "BPF_PROG_DETACH")
               (finally (.release fd)))))))

(defn send-from
  "Sends one UDP packet over loopback from a process in the cgroup. The socket belongs to the
  cgroup too."
  [cgroup]
  (with-open [receiver (objects/udp-socket)]
    (let [{:keys [exit err]} (fixture/run ["bash" "-c" (str "echo $$ >\"$0/cgroup.procs\" && "
                                                            "echo packet >/dev/udp/127.0.0.1/$1")
                                           (:path cgroup) (str (:port receiver))])]
      (when-not (zero? exit)
        (throw (ex-info (str "nothing was sent from the cgroup: " err) {}))))))

;; --- stacks

(defn record-stacks
  "Makes the kernel put stacks of this thread into a STACK_TRACE map; returns their ids, one or
  more.

  They are the stacks at which system calls begin: those in the kernel, or with `:user` those of
  the process."
  ([m] (record-stacks m :kernel))
  ([m where]
   (with-open [ids ^java.io.Closeable (bpf/create {:type :hash :key :u32 :value :u32
                                                   :max-entries 64})
               p ^java.io.Closeable
               (prog/load {:type :raw-tracepoint
                           :insns [[:mov64 :r6 :r1]
                                   [:call :get-current-pid-tgid]
                                   [:jne32 :r0 (call "gettid") :out] ; the low half is the thread
                                   ;; Not the clock, which the vDSO may have to ask the kernel for
                                   [:ldxdw :r1 [:r6 8]]
                                   [:jne :r1 (fixture/syscall-number "gettid") :out]
                                   [:mov64 :r1 :r6]
                                   [:lddw :r2 m]
                                   [:mov64 :r3
                                    ({:kernel 0 :user (constant "BPF_F_USER_STACK")} where)]
                                   [:call :get-stackid]
                                   [:jslt :r0 0 :out]
                                   [:stxw [:r10 -4] :r0]
                                   [:stw [:r10 -8] 0]
                                   [:lddw :r1 ids]
                                   [:mov64 :r2 :r10]
                                   [:add64 :r2 -4]
                                   [:mov64 :r3 :r10]
                                   [:add64 :r3 -8]
                                   [:mov64 :r4 0]
                                   [:call :map-update-elem]
                                   :out
                                   [:mov64 :r0 0]
                                   [:exit]]})]
     (with-open [_ ^java.io.Closeable (prog/attach-raw-tracepoint p "sys_enter")]
       (call "gettid"))
     (vec (sort (keys (into {} ids)))))))

;; --- system calls

(def ^:private first-argument
  "Where `struct pt_regs` has the first argument of a system call: di, x0 or orig_a0."
  (case (System/getProperty "os.arch") "amd64" 112 "aarch64" 0 "riscv64" 280))

(defn- commands-counter
  "A program that counts the commands of bpf(2) that this thread gives, by number, in an array."
  ^java.io.Closeable [counts]
  (let [bpf (fixture/syscall-number "bpf")]
    (prog/load {:type :raw-tracepoint
                :insns [[:mov64 :r6 :r1]
                        [:ldxdw :r1 [:r6 8]] ; the number of the system call
                        [:jne :r1 bpf :out]
                        [:call :get-current-pid-tgid]
                        [:jne32 :r0 (call "gettid") :out]
                        [:ldxdw :r3 [:r6 0]] ; its registers
                        [:add64 :r3 first-argument]
                        [:mov64 :r1 :r10]
                        [:add64 :r1 -8]
                        [:mov64 :r2 8]
                        [:call :probe-read-kernel]
                        [:ldxw :r1 [:r10 -8]]
                        [:stxw [:r10 -12] :r1]
                        [:lddw :r1 counts]
                        [:mov64 :r2 :r10]
                        [:add64 :r2 -12]
                        [:call :map-lookup-elem]
                        [:jeq :r0 0 :out]
                        [:mov64 :r1 1]
                        [:atomic-add64 [:r0 0] :r1]
                        :out
                        [:mov64 :r0 0]
                        [:exit]]})))

(defn commands-made
  "Which commands of bpf(2) this thread gives while f runs, by number, and how often: `{0 1}` is
  one map created.

  A program counts them, so that not even one that fails is missed; but the kernel does not run it
  for a call that comes while it runs for another on the same CPU. Then f is called again, so it
  must be something that can be repeated."
  [f]
  (loop [tries 100]
    (let [[counts
           misses] (with-open
                    [counts ^java.io.Closeable (bpf/create
                                                {:type :array :value :u64 :max-entries 64})
                     p (commands-counter counts)]
                     (with-open [_ ^java.io.Closeable (prog/attach-raw-tracepoint p "sys_enter")]
                       (f))
                     [(into {} (remove (comp zero? val)) counts)
                      (:recursion-misses (prog/info p) 0)])]
      (if (or (zero? misses) (zero? tries))
        counts
        (recur (dec tries))))))

;; --- tail calls

(defn tail-target
  "A program that returns n, for a PROG_ARRAY; of type `:socket-filter` unless another is given."
  (^java.io.Closeable [n] (tail-target n :socket-filter))
  (^java.io.Closeable [n type]
   (prog/load {:type type :insns [[:mov64 :r0 n] [:exit]]})))

(defn tail-caller
  "A program that goes on with the program at an index of a PROG_ARRAY, and returns 1 if there is
  none."
  (^java.io.Closeable [m index] (tail-caller m index :socket-filter))
  (^java.io.Closeable [m index type]
   (prog/load {:type type
               :insns [[:lddw :r2 m] ; r1 is the context
                       [:mov64 :r3 index]
                       [:call :tail-call]
                       [:mov64 :r0 1]
                       [:exit]]})))

;; --- struct ops

(defn struct-ops-type
  "What the kernel's BTF says of a struct that programs can implement, such as
  \"tcp_congestion_ops\"; nil for others.

  `:value-id` and `:value-size` are those of the wrapper that a STRUCT_OPS map holds, `:id` that
  of the struct in it. `:members` maps the name of each of the struct's members to `{:index
  :offset}`, the offset from the wrapper's start."
  [struct]
  (let [b (host/kernel-btf)
        value-id (first (blob/ids-named b (str "bpf_struct_ops_" struct) :struct))
        id (first (blob/ids-named b struct :struct))]
    (when (and value-id id)
      (let [data (some #(when (= "data" (:name %)) (:bit-offset %))
                       (:members (blob/record b value-id)))]
        {:value-id value-id
         :value-size (blob/size-of b value-id)
         :id id
         :members (into {}
                        (map-indexed (fn [i {:keys [name bit-offset]}]
                                       [name {:index i :offset (quot (+ data bit-offset) 8)}]))
                        (:members (blob/record b id)))}))))

(defn create-struct-ops
  "Creates the STRUCT_OPS map of a [[struct-ops-type]]; flags are names such as `:link`. Returns
  its descriptor.

  The kernel wants some BTF object with it, though it looks up the type in its own."
  ^Fd [{:keys [value-id value-size]} flags]
  (with-open [btf ^Fd (sys.btf/load (:bytes (btf/->btf [:u32] nil)) nil {:op :create})]
    (Fd/own (command "creating a struct_ops map" Abi/BPF_MAP_CREATE
                     (fn [^Attr attr]
                       (doto attr
                         (.int32 Abi/MAP_CREATE_MAP_TYPE (map-types/type-number :struct-ops))
                         (.int32 Abi/MAP_CREATE_KEY_SIZE 4)
                         (.int32 Abi/MAP_CREATE_VALUE_SIZE value-size)
                         (.int32 Abi/MAP_CREATE_MAX_ENTRIES 1)
                         (.int32 Abi/MAP_CREATE_MAP_FLAGS (map-types/flag-word flags))
                         (.fd Abi/MAP_CREATE_BTF_FD btf)
                         (.int32 (attr-field "btf_vmlinux_value_type_id") value-id)))))))

(defn- load-struct-op
  "The number of a program that stands for a member of a struct and returns n."
  [{:keys [id members]} member n]
  (let [^bytes insns (:bytes (asm/assemble [[:mov64 :r0 n] [:exit]]))]
    (command (str "loading " member) Abi/BPF_PROG_LOAD
             (fn [^Attr attr]
               (doto attr
                 (.int32 Abi/PROG_LOAD_PROG_TYPE (prog/types :struct-ops))
                 (.int32 Abi/PROG_LOAD_INSN_CNT (quot (alength insns) 8))
                 (.bytes Abi/PROG_LOAD_INSNS insns)
                 (.string Abi/PROG_LOAD_LICENSE "GPL")
                 (.int32 (attr-field "expected_attach_type") (:index (members member)))
                 (.int32 (attr-field "attach_btf_id") id))))))

(defn congestion-control
  "A TCP congestion control of programs that do nothing: `{:value bytes :fds numbers}`, the value
  registers it when it is written at index 0 of a STRUCT_OPS map. `name` has at most 15 bytes.

  Without the flag `:link` it stays registered, also when the map is closed, until index 0 is
  deleted."
  ^java.io.Closeable [{:keys [value-size members] :as type} ^String name]
  (let [value (byte-array value-size)
        copy-to (fn [^bytes bytes member]
                  (System/arraycopy bytes 0 value (:offset (members member)) (alength bytes)))
        fds (reduce (fn [fds [member n]]
                      (try
                        (conj fds (load-struct-op type member n))
                        (catch Throwable e
                          (apply linux/close fds)
                          (throw e))))
                    []
                    [["ssthresh" 2] ["cong_avoid" 0] ["undo_cwnd" 10]])]
    (doseq [[fd member] (map vector fds ["ssthresh" "cong_avoid" "undo_cwnd"])]
      (copy-to (pack :u64 fd) member))
    (copy-to (.getBytes name "US-ASCII") "name")
    (held {:value value :fds fds} #(apply linux/close fds))))

(defn register
  "Writes the value of a [[congestion-control]] at index 0 of its map."
  [^Fd m {:keys [value]}]
  (command "registering a struct" Abi/BPF_MAP_UPDATE_ELEM
           (fn [^Attr attr]
             (doto attr
               (.fd Abi/ELEM_MAP_FD m)
               (.bytes Abi/ELEM_KEY (byte-array 4))
               (.bytes Abi/ELEM_VALUE value)))))
