(ns ^:no-doc bpfmap.impl.feature.probe
  "Probes the running kernel for features.

  In order: results of probes from errnos; the smallest map of each type; map types and flags;
  operations; flags of operations; program types; helpers."
  (:require [bpfmap.asm :as asm]
            [bpfmap.btf :as btf]
            [bpfmap.impl.errno :as errno]
            [bpfmap.impl.kernel.btf :as kernel.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.kernel.probe :as kernel.probe]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.kernel.prog :as kernel.prog]
            [bpfmap.impl.map-types :as map-types]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

;; --- results

(def supported "Result: the kernel has the feature." {:supported true})

(def unsupported "Result: the kernel does not have the feature." {:supported false})

(defn inconclusive
  "Returns the result of a probe that found out nothing, with the reason."
  [inconclusive-outcome]
  {:supported nil :why inconclusive-outcome})

(def unsupported-errnos
  "Errnos for something that the kernel does not know or have.

  The other arguments of a probe are valid."
  #{:EINVAL :ENOTSUPP :EOPNOTSUPP})

(def ^:private process-errnos
  "Errnos that depend on the process and its limits, and not on the probe."
  #{:EPERM :EACCES :ENOMEM :EMFILE :ENFILE :EINTR :EAGAIN :ENOSYS :EFAULT})

(defn errno-of
  "Returns the name of a negated errno; nil for any other outcome."
  [outcome]
  (when (neg? (long outcome))
    (errno/errno-name (- (long outcome)))))

(defn inconclusive-outcome
  "Returns the inconclusive result of a failed outcome, explained."
  [action outcome ctx]
  (inconclusive (ex-message (call/failure action outcome ctx))))

(defn of-creation
  "Returns the result of a probe by `create`, which returns a descriptor or throws.

  An errno in `known-by` means supported. [[unsupported-errnos]] and those in `unknown-by` mean
  unsupported."
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
  "Returns the result of a probe by an operation on an element.

  The kernel checks first if the map type has the operation. Errnos about the element itself come
  after this check, so they mean supported."
  [known-by outcome ctx]
  (let [errno (errno-of outcome)]
    (cond
      (or (nil? errno) (contains? known-by errno)) supported
      (unsupported-errnos errno) unsupported
      (process-errnos errno) (inconclusive-outcome "The probe" outcome ctx)
      :else supported)))

;; --- the smallest map of each type

(def ^:private unused-fd
  "A descriptor that no process has: it is above the highest limit of open files.

  The kernel returns EBADF for it, after it has checked that the field applies. A negative number
  does not work: socket maps return EINVAL."
  0x7fffffff)

(def ^:private local-storage
  "The smallest storage of sockets, inodes, tasks or cgroups.

  The key is a descriptor of one of these."
  {:max-entries 0 :flags #{:no-prealloc} :needs :types :key unused-fd})

(def ^:private smallest-maps
  "Spec keys of types whose smallest map is not one entry of four bytes each.

  `:needs` is what must be created first. `:known-by` are errnos that only a kernel with the type
  returns, `:unknown-by` errnos of kernels without it. `:key` and `:value` are used in an
  operation if 0 does not work: a number in the first four bytes. `:max-entries` may be a function
  that depends on this machine."
  {:prog-array {:value unused-fd}
   :perf-event-array {:value unused-fd}
   :stack-trace {:value-size 8}
   :cgroup-array {:value unused-fd}
   :lpm-trie {:key-size 8 :flags #{:no-prealloc}}
   :array-of-maps {:needs :inner-map :value unused-fd}
   :hash-of-maps {:needs :inner-map :value unused-fd}
   :sockmap {:value unused-fd}
   :xskmap {:value unused-fd}
   :sockhash {:value unused-fd}
   :cgroup-storage {:key-size 8 :max-entries 0}
   :reuseport-sockarray {:value unused-fd}
   :percpu-cgroup-storage {:key-size 8 :max-entries 0}
   :queue {:key-size 0}
   :stack {:key-size 0}
   :sk-storage local-storage
   :devmap-hash {:value 1} ; the loopback device, which every network namespace has as its first
   ;; Its value is a struct of the kernel. For the id of any other type the kernel returns ENOTSUPP
   ;; (kernel/bpf/bpf_struct_ops.c), and E2BIG before 5.6, when the attribute had no such field.
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

(def ^:private flag-companions
  "Spec keys without which the kernel does not check a flag.

  If the value is a descriptor, only a kernel that reads it returns EBADF."
  {:stack-build-id {:value-size 32} ; struct bpf_stack_build_id
   :token-fd {:token unused-fd :known-by #{:EBADF}}
   :vtype-btf-obj-fd {:value-type-btf unused-fd :known-by #{:EBADF}}})

(defn- spec-of
  "Returns the spec of the smallest map of a type, with a flag unless it is nil."
  [type flag]
  (let [spec (merge {:key-size 4 :value-size 4 :max-entries 1 :flags #{} :known-by #{}
                     :unknown-by #{}}
                    (smallest-maps type)
                    {:type type})
        spec (update spec :max-entries #(if (fn? %) (%) %))
        {:keys [known-by] :as companion} (flag-companions flag)]
    (-> (merge spec (dissoc companion :known-by))
        (update :known-by into known-by)
        (cond-> flag (update :flags conj flag)))))

(def ^:private ctx {:op :create})

(def ^:private array {:type :array :key-size 4 :value-size 4 :max-entries 1 :flags #{}})

;; --- map types and flags

(defn- create-with-btf
  "Creates a map with BTF for its key and value; returns its descriptor."
  [spec key value]
  (let [{:keys [bytes ids]} (btf/->btf [key value] nil)
        blob (kernel.btf/load bytes nil ctx)]
    (try
      (kernel.map/create (assoc spec :btf {:fd blob :key (first ids) :value (second ids)}) ctx)
      (finally (call/close blob)))))

(defn- create
  "Creates the map of a spec, and first the objects it `:needs`.

  Returns its descriptor."
  [{:keys [needs] :as spec}]
  (case needs
    nil (kernel.map/create spec ctx)
    :types (create-with-btf spec :s32 :u32)
    :inner-map (let [inner (kernel.map/create array ctx)]
                 (try
                   (kernel.map/create (assoc spec :inner-map inner) ctx)
                   (finally (call/close inner))))))

(defn try-map
  "Probes for a map type, and for a flag on it unless the flag is nil."
  [type flag]
  (let [{:keys [known-by unknown-by] :as spec} (spec-of type flag)]
    (of-creation known-by unknown-by #(create spec))))

;; --- operations

(def operations
  "Operations of [[try-operation]]."
  kernel.probe/operations)

(def ^:private ambiguous
  "Operations whose EINVAL means that the element does not exist.

  Source: sock_map_delete_elem in net/core/sock_map.c. The operation came with the type."
  {[:sockmap :delete] #{:EINVAL}})

(def ^:private value-room
  "Bytes for a value.
  The kernel copies at most eight bytes for each possible CPU.

  It is never built for more than 8192 CPUs."
  (* 8 8192))

(defn- bytes-of
  "Returns a byte array that begins with a number of four bytes; nil for size 0."
  [size number]
  (when (pos? (long size))
    (.array (.putInt (.order (ByteBuffer/allocate (int size)) (ByteOrder/nativeOrder))
                     (int number)))))

(defn- operate [fd op {:keys [key-size key value]} flags]
  (kernel.probe/operate op fd
                        {:key (bytes-of key-size (or key 0))
                         :value (bytes-of value-room (or value 0))
                         :flags flags}
                        ctx))

(defn- with-map
  "Calls `f` with the descriptor that `make` returns, and closes it.

  If the map cannot be created, the result is inconclusive."
  [make f]
  (try
    (let [fd (make)]
      (try (f fd) (finally (call/close fd))))
    (catch ExceptionInfo e
      (inconclusive (ex-message e)))))

(defn try-operation
  "Probes for an operation on a map type that the kernel has."
  [type op]
  (let [spec (spec-of type nil)]
    (cond
      (not (map-types/types type))
      (inconclusive (str "bpfmap does not know what a map of type " type " is like"))

      (= :struct-ops type)
      (inconclusive
       "a map of type :struct-ops has the type of a struct of the kernel, and is not probed further")

      :else
      (with-map #(create spec)
        #(of-operation (ambiguous [type op]) (operate % op spec nil) ctx)))))

;; --- flags of operations

(def element-flags
  "Flags of [[try-element-flag]]."
  (set (keys kernel.probe/element-flags)))

(def ^:private locked-value
  "Type of a value that the kernel can lock."
  [:struct [:lock :spin-lock] [:n :u32]])

(defn try-conditional-write
  "Probes if the kernel checks that the key exists before a conditional write.

  On maps of a type, with one of [[element-flags]] unless `flag` is nil. Writes with BPF_EXIST to
  a key that does not exist."
  [type flag]
  (let [spec (spec-of type nil)
        bits (bit-or (long (:value (map-types/element-flags :exist)))
                     (long (if flag (:bits (kernel.probe/element-flags flag)) 0)))]
    (with-map #(create spec)
      #(let [outcome (operate % :update spec bits)
             errno (errno-of outcome)]
         (cond
           (= :ENOENT errno) supported
           (nil? errno) unsupported
           :else (inconclusive-outcome "The probe" outcome ctx))))))

(defn try-element-flag
  "Probes for a flag of element operations."
  [flag]
  (let [{:keys [op bits]} (kernel.probe/element-flags flag)
        make (if (= :lock flag)
               #(create-with-btf (assoc array :value-size 8) :u32 locked-value)
               #(kernel.map/create (assoc array :type :percpu-array :value-size 8) ctx))]
    (with-map make
      #(of-operation nil (operate % op array bits) ctx))))

;; --- program types

(def ^:private needs
  "Requirements of the smallest program of a type, besides its instructions.

  `:attach-type` is a number of `enum bpf_attach_type`, linux/bpf.h. The kernel checks it while
  loading if it determines the program's context. Types that are loaded for a function or struct
  of the kernel get none: the verifier reports that it is missing, so it knows the type."
  {:kprobe {:kernel-version true} ; before Linux 5.0
   :cgroup-sock-addr {:attach-type 8} ; BPF_CGROUP_INET4_BIND
   :lirc-mode2 {:attach-type 16} ; BPF_LIRC_MODE2
   :cgroup-sockopt {:attach-type 21} ; BPF_CGROUP_GETSOCKOPT
   :lsm {:attach-type 27} ; BPF_LSM_MAC
   :sk-lookup {:attach-type 36} ; BPF_SK_LOOKUP
   :syscall {:sleepable true}
   :netfilter {:attach-type 45}}) ; BPF_NETFILTER

(def ^:private unprobed-types
  "Program types whose helpers are not probed, with the reason.

  Their helpers depend on the function or struct that a program is loaded for."
  {:tracing "which helpers it may call depends on the function that it traces"
   :lsm "which helpers it may call depends on the hook that it is for"
   :ext "it may call the helpers of the program that it replaces a function of"
   :struct-ops "which helpers it may call depends on the struct and member that it is for"})

(defn- version-code
  "Returns the kernel's release as a LINUX_VERSION_CODE."
  []
  (let [[major minor patch] (map parse-long (re-seq #"\d+" (or (call/kernel-release) "0.0.0")))]
    (+ (* 65536 (long major)) (* 256 (long minor)) (min 255 (long (or patch 0))))))

(defn- load-smallest
  "Loads instructions as a program of a type: `{:errno :outcome :log}`.

  `:errno` is a name or nil, `:outcome` a number, `:log` a text."
  [type number insns]
  (let [{:keys [kernel-version] :as needs} (needs type)
        program (cond-> (assoc needs :type number :insns (:bytes (asm/assemble insns)))
                  kernel-version (assoc :kernel-version (version-code)))]
    (loop [attempt 1]
      (let [{:keys [outcome] :as loaded} (kernel.probe/load-program program {:op :load})
            errno (errno-of outcome)]
        (if (and (= :EAGAIN errno) (< attempt kernel.prog/max-attempts))
          (recur (inc attempt))
          (assoc loaded :errno errno))))))

(defn- missing [& capabilities]
  (seq (procfs/missing-capabilities capabilities)))

(defn- inconclusive-load
  "Returns the inconclusive result of a load that failed because of the process."
  [{:keys [outcome]}]
  ;; Without a log the error is not one of the verifier, as the hint for :load would claim.
  (inconclusive-outcome "Loading a program to probe with" outcome
                        {:op (if (missing "CAP_BPF" "CAP_PERFMON") :load :feature)}))

(defn try-type
  "Probes for a program type, by its name, if it has one, and its number."
  [type number]
  (let [{:keys [errno log] :as loaded} (load-smallest type number [[:mov64 :r0 0] [:exit]])]
    (cond
      (nil? errno) supported
      ;; Only programs of types that the kernel knows reach the verifier.
      (not (str/blank? log)) supported
      (= :EINVAL errno) unsupported
      ;; For struct_ops without a struct. The JIT, too, returns it only after the verifier.
      (= :ENOTSUPP errno) supported
      :else (inconclusive-load loaded))))

;; --- helpers

(def ^:private refusals
  "Matches the verifier's messages about a helper that it does not know or allow.

  The first is about numbers that no type knows. The second is used by older kernels for other
  helpers, the third by newer ones. Source: check_helper_call in kernel/bpf/verifier.c."
  #"invalid func |unknown func |program of this type cannot use helper ")

(def ^:private hidden-helpers
  "Capabilities that a helper needs besides CAP_BPF and CAP_PERFMON.

  Without them the kernel reports that it does not know the helper."
  {36 ["CAP_SYS_ADMIN"]}) ; probe-write-user

(defn called
  "Returns `:known` or `:unknown` by the verifier's log of a call; else nil."
  [errno log]
  (cond
    (nil? errno) :known
    (re-find refusals log) :unknown
    ;; The verifier logs an instruction before it checks it.
    (re-find #"\(85\) call" log) :known))

(defn try-helper
  "Probes if programs of a type may call a helper, by its number.

  The kernel has the type."
  [type number helper]
  (if-let [reason (unprobed-types type)]
    (inconclusive (str "helpers of " type " programs are not probed: " reason))
    (let [{:keys [errno log] :as loaded} (load-smallest type number [[:call helper] [:exit]])
          hidden (apply missing "CAP_BPF" "CAP_PERFMON" (hidden-helpers helper))]
      (case (called errno log)
        :known supported
        :unknown (if hidden
                   (inconclusive (str "the kernel may hide helpers from a process without "
                                      (str/join " and " (sort hidden))))
                   unsupported)
        (if (str/blank? log)
          (inconclusive-load loaded)
          (inconclusive (str "the verifier did not come to the call: "
                             (first (str/split-lines log)))))))))
