(ns ^:no-doc bpfmap.impl.feature.probe
  "Probes the running kernel for map types, program types, helpers and instructions."
  (:require [bpfmap.asm :as asm]
            [bpfmap.btf :as btf]
            [bpfmap.impl.errno :as errno]
            [bpfmap.impl.kernel.btf :as sys.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.impl.kernel.probe :as probe]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.kernel.prog :as prog]
            [bpfmap.impl.rules :as rules]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

;; --- how a probe reads an errno

(def supported "The answer yes." {:supported true})

(def unsupported "The answer no." {:supported false})

(defn inconclusive
  "The answer of a probe that found out nothing, with the reason as a text."
  [why]
  {:supported nil :why why})

(def unsupported-errnos
  "How a kernel refuses what it does not know or have. The probes ask with arguments that are
  right otherwise."
  #{:EINVAL :ENOTSUPP :EOPNOTSUPP})

(def ^:private of-the-process
  "Refusals that are about the process and its limits, whatever was asked."
  #{:EPERM :EACCES :ENOMEM :EMFILE :ENFILE :EINTR :EAGAIN :ENOSYS :EFAULT})

(defn errno-of
  "The name of a negated errno; nil for an outcome that is none."
  [outcome]
  (when (neg? (long outcome))
    (errno/errno-name (- (long outcome)))))

(defn why
  "What a failed outcome means, for people."
  [what outcome ctx]
  (inconclusive (ex-message (call/failure what outcome ctx))))

(defn of-creation
  "The answer that `create` gives, a function that returns a descriptor or throws.

  An errno in `known-by` counts as a yes, one in `unknown-by` as a no, besides those that always
  do."
  [known-by unknown-by create]
  (try
    (call/close (create))
    supported
    (catch ExceptionInfo e
      (let [errno (:bpfmap/errno (ex-data e))]
        (cond
          (contains? known-by errno) supported
          (or (unsupported-errnos errno) (contains? unknown-by errno)) unsupported
          :else (inconclusive (ex-message e)))))))

(defn of-operation
  "The answer that the outcome of an operation on an element gives.

  Other than creating, an operation may fail for want of the element: such errors come from behind
  the place where the kernel looks whether the map type has the operation."
  [known-by outcome ctx]
  (let [errno (errno-of outcome)]
    (cond
      (or (nil? errno) (contains? known-by errno)) supported
      (unsupported-errnos errno) unsupported
      (of-the-process errno) (why "The probe" outcome ctx)
      :else supported)))

;; --- map types and flags

;; --- the smallest maps

(def ^:private nobodys
  "A descriptor that no process has: it is above the highest limit of open files. The kernel
  refuses it with EBADF, once it has looked whether there is anything to do with it. A negative
  number will not do: socket maps answer EINVAL."
  0x7fffffff)

(def ^:private local-storage
  "What hangs on sockets, inodes, tasks and cgroups; the key is a descriptor of one."
  {:max-entries 0 :flags #{:no-prealloc} :needs :types :key nobodys})

(def ^:private smallest
  "Where the smallest map of a type is not one entry of four bytes each.

  Besides the keys of a spec: `:needs`, what must be made first; `:known-by`, errno values that
  only a kernel with the type gives; `:key` and `:value`, what an operation is tried with where 0
  would not do: a number in the first four bytes. `:max-entries` may be a function, of what this
  machine is like."
  {:prog-array {:value nobodys}
   :perf-event-array {:value nobodys}
   :stack-trace {:value-size 8}
   :cgroup-array {:value nobodys}
   :lpm-trie {:key-size 8 :flags #{:no-prealloc}}
   :array-of-maps {:needs :inner-map :value nobodys}
   :hash-of-maps {:needs :inner-map :value nobodys}
   :sockmap {:value nobodys}
   :xskmap {:value nobodys}
   :sockhash {:value nobodys}
   :cgroup-storage {:key-size 8 :max-entries 0}
   :reuseport-sockarray {:value nobodys}
   :percpu-cgroup-storage {:key-size 8 :max-entries 0}
   :queue {:key-size 0}
   :stack {:key-size 0}
   :sk-storage local-storage
   :devmap-hash {:value 1} ; the loopback device, which every network namespace has as its first
   ;; Its value is a struct of the kernel's. The kernel answers ENOTSUPP to the id of a type that
   ;; is no such struct (kernel/bpf/bpf_struct_ops.c), and E2BIG before 5.6, when the attribute
   ;; had no field for it.
   :struct-ops {:value-type 1 :known-by #{:ENOTSUPP} :unknown-by #{:E2BIG}}
   :ringbuf {:key-size 0 :value-size 0 :max-entries call/page-size}
   :inode-storage local-storage
   :task-storage local-storage
   :bloom-filter {:key-size 0}
   :user-ringbuf {:key-size 0 :value-size 0 :max-entries call/page-size}
   :cgrp-storage local-storage
   :arena {:key-size 0 :value-size 0 :flags #{:mmapable}}
   :insn-array {:value-size 16}
   :rhash {:flags #{:no-prealloc}}})

(def ^:private companions
  "What must be in a spec for a flag to be looked at. Where that is a descriptor, EBADF comes only
  from a kernel that looks."
  {:stack-build-id {:value-size 32} ; struct bpf_stack_build_id
   :token-fd {:token nobodys :known-by #{:EBADF}}
   :vtype-btf-obj-fd {:value-type-btf nobodys :known-by #{:EBADF}}})

(defn- spec-of
  "The spec of the smallest map of a type, with a flag unless that is nil."
  [type flag]
  (let [spec (merge {:key-size 4 :value-size 4 :max-entries 1 :flags #{} :known-by #{}
                     :unknown-by #{}}
                    (smallest type)
                    {:type type})
        spec (update spec :max-entries #(if (fn? %) (%) %))
        {:keys [known-by] :as companion} (companions flag)]
    (-> (merge spec (dissoc companion :known-by))
        (update :known-by into known-by)
        (cond-> flag (update :flags conj flag)))))

(def ^:private ctx {:op :create})

(def ^:private array {:type :array :key-size 4 :value-size 4 :max-entries 1 :flags #{}})

(defn- with-btf
  "Creates a map with BTF for its key and value; returns its descriptor."
  [spec key value]
  (let [{:keys [bytes ids]} (btf/->btf [key value] nil)
        blob (sys.btf/load bytes nil ctx)]
    (try
      (map/create (assoc spec :btf {:fd blob :key (first ids) :value (second ids)}) ctx)
      (finally (call/close blob)))))

(defn- create
  "Creates the map of a spec, and before it what it `:needs`; returns its descriptor."
  [{:keys [needs] :as spec}]
  (case needs
    nil (map/create spec ctx)
    :types (with-btf spec :s32 :u32)
    :inner-map (let [inner (map/create array ctx)]
                 (try
                   (map/create (assoc spec :inner-map inner) ctx)
                   (finally (call/close inner))))))

(defn try-map
  "Whether the kernel has a map type, or takes a flag on it unless that is nil."
  [type flag]
  (let [{:keys [known-by unknown-by] :as spec} (spec-of type flag)]
    (of-creation known-by unknown-by #(create spec))))

;; --- operations

(def operations
  "What [[try-operation]] can ask for."
  probe/operations)

(def ^:private ambiguous
  "Operations whose EINVAL does not mean that the type lacks them, but that there is no such
  element. Source: sock_map_delete_elem in net/core/sock_map.c; it came with the type."
  {[:sockmap :delete] #{:EINVAL}})

(def ^:private value-room
  "Bytes for a value. The kernel moves one of eight bytes for each possible CPU, and is never
  built for more than 8192."
  (* 8 8192))

(defn- bytes-of
  "A byte array of a size that begins with a number of four bytes; nil for size 0."
  [size number]
  (when (pos? (long size))
    (.array (.putInt (.order (ByteBuffer/allocate (int size)) (ByteOrder/nativeOrder))
                     (int number)))))

(defn- operate [fd op {:keys [key-size key value]} flags]
  (probe/operate op fd
                  {:key (bytes-of key-size (or key 0)) :value (bytes-of value-room (or value 0))
                   :flags flags}
                  ctx))

(defn- with-map
  "Calls `f` with the descriptor that `make` returns, and closes it; a refusal to make it says
  nothing of what was asked."
  [make f]
  (try
    (let [fd (make)]
      (try (f fd) (finally (call/close fd))))
    (catch ExceptionInfo e
      (inconclusive (ex-message e)))))

(defn try-operation
  "Whether the kernel has an operation on a map type that it has."
  [type op]
  (let [spec (spec-of type nil)]
    (cond
      (not (rules/types type))
      (inconclusive (str "bpfmap does not know what a map of type " type " is like"))

      (= :struct-ops type)
      (inconclusive
       "a map of type :struct-ops has the type of a struct of the kernel, and is not probed further")

      :else
      (with-map #(create spec)
        #(of-operation (ambiguous [type op]) (operate % op spec nil) ctx)))))

;; --- flags of operations

(def element-flags
  "What [[try-element-flag]] can ask for."
  (set (keys probe/element-flags)))

(def ^:private locked
  "A value that the kernel can lock."
  [:struct [:lock :spin-lock] [:n :u32]])

(defn try-conditional-write
  "Whether the kernel looks whether the key exists before a write that depends on it, on maps of a
  type, with a flag of [[element-flags]] beside it unless that is nil. It is tried with BPF_EXIST
  and a key that does not exist."
  [type flag]
  (let [spec (spec-of type nil)
        bits (bit-or (long (:value (rules/element-flags :exist)))
                     (long (if flag (:bits (probe/element-flags flag)) 0)))]
    (with-map #(create spec)
      #(let [outcome (operate % :update spec bits)
             errno (errno-of outcome)]
         (cond
           (= :ENOENT errno) supported
           (nil? errno) unsupported
           :else (why "The probe" outcome ctx))))))

(defn try-element-flag
  "Whether the kernel has a flag of element operations."
  [flag]
  (let [{:keys [op bits]} (probe/element-flags flag)
        make (if (= :lock flag)
               #(with-btf (assoc array :value-size 8) :u32 locked)
               #(map/create (assoc array :type :percpu-array :value-size 8) ctx))]
    (with-map make
      #(of-operation nil (operate % op array bits) ctx))))

;; --- program types, helpers, instructions

(def ^:private needs
  "What the smallest program of a type has besides its instructions, by the type's name.

  `:attach-type` is a number of `enum bpf_attach_type`, linux/bpf.h. The kernel looks at it while
  loading where it decides what the program is given. No function or struct of the kernel is named
  for the types that are loaded for one: the verifier says that it is missing, which tells that it
  knows the type."
  {:kprobe {:kernel-version true} ; before Linux 5.0
   :cgroup-sock-addr {:attach-type 8} ; BPF_CGROUP_INET4_BIND
   :lirc-mode2 {:attach-type 16} ; BPF_LIRC_MODE2
   :cgroup-sockopt {:attach-type 21} ; BPF_CGROUP_GETSOCKOPT
   :lsm {:attach-type 27} ; BPF_LSM_MAC
   :sk-lookup {:attach-type 36} ; BPF_SK_LOOKUP
   :syscall {:sleepable true}
   :netfilter {:attach-type 45}}) ; BPF_NETFILTER

(def ^:private targeted
  "Types whose helpers depend on the function or struct that a program is loaded for, and why they
  are not probed."
  {:tracing "which helpers it may call depends on the function that it traces"
   :lsm "which helpers it may call depends on the hook that it is for"
   :ext "it may call the helpers of the program that it replaces a function of"
   :struct-ops "which helpers it may call depends on the struct and member that it is for"})

(defn- version-code
  "The kernel's release as LINUX_VERSION_CODE has it."
  []
  (let [[major minor patch] (map parse-long (re-seq #"\d+" (or (call/kernel-release) "0.0.0")))]
    (+ (* 65536 (long major)) (* 256 (long minor)) (min 255 (long (or patch 0))))))

(defn- load-smallest
  "Loads instructions as a program of a type, a name or a number: `{:errno name-or-nil :outcome
  number :log text}`."
  [type number insns]
  (let [{:keys [kernel-version] :as needs} (needs type)
        program (cond-> (assoc needs :type number :insns (:bytes (asm/assemble insns)))
                  kernel-version (assoc :kernel-version (version-code)))]
    (loop [attempt 1]
      (let [{:keys [outcome] :as loaded} (probe/load-program program {:op :load})
            errno (errno-of outcome)]
        (if (and (= :EAGAIN errno) (< attempt prog/attempts))
          (recur (inc attempt))
          (assoc loaded :errno errno))))))

(defn- missing [& capabilities]
  (seq (procfs/missing-capabilities capabilities)))

(defn- why-refused
  "The answer of a program that could not be loaded for a reason of the process."
  [{:keys [outcome]}]
  ;; A refusal that has no log is none of the verifier's, to which errors of :load ascribe it.
  (why "Loading a program to probe with" outcome
       {:op (if (missing "CAP_BPF" "CAP_PERFMON") :load :feature)}))

(defn try-type
  "Whether the kernel has a program type: its name, if it has one, and its number."
  [type number]
  (let [{:keys [errno log] :as loaded} (load-smallest type number [[:mov64 :r0 0] [:exit]])]
    (cond
      (nil? errno) supported
      ;; The verifier is reached only by a type that it has rules for.
      (not (str/blank? log)) supported
      (= :EINVAL errno) unsupported
      ;; Of a struct's program without a struct; the JIT refuses later than the verifier too.
      (= :ENOTSUPP errno) supported
      :else (why-refused loaded))))

;; --- helpers

(def ^:private refusals
  "How the verifier says that there is no such helper, or not for this program type. The first is
  said of numbers that no type knows; of the others older kernels say the second, newer ones the
  third. Source: check_helper_call in kernel/bpf/verifier.c."
  #"invalid func |unknown func |program of this type cannot use helper ")

(def ^:private hiding
  "Capabilities that a helper needs besides CAP_BPF and CAP_PERFMON. Without them the kernel says
  that there is none."
  {36 ["CAP_SYS_ADMIN"]}) ; probe-write-user

(defn called
  "What the verifier's log of a program that calls a helper says: `:known`, `:unknown`, or nil
  where it says neither."
  [errno log]
  (cond
    (nil? errno) :known
    (re-find refusals log) :unknown
    ;; The verifier writes down an instruction before it looks at it.
    (re-find #"\(85\) call" log) :known))

(defn try-helper
  "Whether programs of a type that the kernel has may call a helper, by its number."
  [type number helper]
  (if-let [reason (targeted type)]
    (inconclusive (str "helpers of " type " programs are not probed: " reason))
    (let [{:keys [errno log] :as loaded} (load-smallest type number [[:call helper] [:exit]])
          hidden (apply missing "CAP_BPF" "CAP_PERFMON" (hiding helper))]
      (case (called errno log)
        :known supported
        :unknown (if hidden
                   (inconclusive (str "the kernel may hide helpers from a process without "
                                            (str/join " and " (sort hidden))))
                   unsupported)
        (if (str/blank? log)
          (why-refused loaded)
          (inconclusive (str "the verifier did not come to the call: "
                             (first (str/split-lines log)))))))))
