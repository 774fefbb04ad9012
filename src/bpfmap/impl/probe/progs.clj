(ns bpfmap.impl.probe.progs
  "Probes of program types and helpers: the smallest program of a type, and what the verifier says of it."
  (:require [bpfmap.asm :as asm]
            [bpfmap.impl.probe :as probe]
            [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.probes :as probes]
            [bpfmap.impl.sys.procfs :as procfs]
            [bpfmap.impl.sys.progs :as progs]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def ^:private needs
  "What the smallest program of a type has besides its instructions, by the type's name.

  `:attach-type` is a number of `enum bpf_attach_type`, linux/bpf.h. The kernel looks at it while loading where it
  decides what the program is given. No function or struct of the kernel is named for the types that are loaded for
  one: the verifier says that it is missing, which tells that it knows the type."
  {:kprobe {:kernel-version true} ; before Linux 5.0
   :cgroup-sock-addr {:attach-type 8} ; BPF_CGROUP_INET4_BIND
   :lirc-mode2 {:attach-type 16} ; BPF_LIRC_MODE2
   :cgroup-sockopt {:attach-type 21} ; BPF_CGROUP_GETSOCKOPT
   :lsm {:attach-type 27} ; BPF_LSM_MAC
   :sk-lookup {:attach-type 36} ; BPF_SK_LOOKUP
   :syscall {:sleepable true}
   :netfilter {:attach-type 45}}) ; BPF_NETFILTER

(def ^:private targeted
  "Types whose helpers depend on the function or struct that a program is loaded for, and why they are not probed."
  {:tracing "which helpers it may call depends on the function that it traces"
   :lsm "which helpers it may call depends on the hook that it is for"
   :ext "it may call the helpers of the program that it replaces a function of"
   :struct-ops "which helpers it may call depends on the struct and member that it is for"})

(defn- version-code
  "The kernel's release as LINUX_VERSION_CODE has it."
  []
  (let [[major minor patch] (map parse-long (re-seq #"\d+" (or (sys/kernel-release) "0.0.0")))]
    (+ (* 65536 (long major)) (* 256 (long minor)) (min 255 (long (or patch 0))))))

(defn- load-smallest
  "Loads instructions as a program of a type, a name or a number: `{:errno name-or-nil :outcome number :log text}`."
  [type number insns]
  (let [{:keys [kernel-version] :as needs} (needs type)
        program (cond-> (assoc needs :type number :insns (:bytes (asm/assemble insns)))
                  kernel-version (assoc :kernel-version (version-code)))]
    (loop [attempt 1]
      (let [{:keys [outcome] :as loaded} (probes/load-program program {:op :load})
            errno (probe/errno-of outcome)]
        (if (and (= :EAGAIN errno) (< attempt progs/attempts))
          (recur (inc attempt))
          (assoc loaded :errno errno))))))

(defn- missing [& capabilities]
  (seq (procfs/missing-capabilities capabilities)))

(defn- why
  "The answer of a program that could not be loaded for a reason of the process."
  [{:keys [outcome]}]
  ;; A refusal that has no log is none of the verifier's, to which errors of :load ascribe it.
  (probe/why "Loading a program to probe with" outcome {:op (if (missing "CAP_BPF" "CAP_PERFMON") :load :feature)}))

(defn try-type
  "Whether the kernel has a program type: its name, if it has one, and its number."
  [type number]
  (let [{:keys [errno log] :as loaded} (load-smallest type number [[:mov64 :r0 0] [:exit]])]
    (cond
      (nil? errno) probe/supported
      ;; The verifier is reached only by a type that it has rules for.
      (not (str/blank? log)) probe/supported
      (= :EINVAL errno) probe/unsupported
      ;; Of a struct's program without a struct; the JIT refuses later than the verifier too.
      (= :ENOTSUPP errno) probe/supported
      :else (why loaded))))

;; --- helpers

(def ^:private refusals
  "How the verifier says that there is no such helper, or not for this program type. The first is said of numbers that
  no type knows; of the others older kernels say the second, newer ones the third.
  Source: check_helper_call in kernel/bpf/verifier.c."
  #"invalid func |unknown func |program of this type cannot use helper ")

(def ^:private hiding
  "Capabilities that a helper needs besides CAP_BPF and CAP_PERFMON. Without them the kernel says that there is none."
  {36 ["CAP_SYS_ADMIN"]}) ; probe-write-user

(defn called
  "What the verifier's log of a program that calls a helper says: `:known`, `:unknown`, or nil where it says neither."
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
    (probe/inconclusive (str "helpers of " type " programs are not probed: " reason))
    (let [{:keys [errno log] :as loaded} (load-smallest type number [[:call helper] [:exit]])
          hidden (apply missing "CAP_BPF" "CAP_PERFMON" (hiding helper))]
      (case (called errno log)
        :known probe/supported
        :unknown (if hidden
                   (probe/inconclusive (str "the kernel may hide helpers from a process without "
                                            (str/join " and " (sort hidden))))
                   probe/unsupported)
        (if (str/blank? log)
          (why loaded)
          (probe/inconclusive (str "the verifier did not come to the call: " (first (str/split-lines log)))))))))
