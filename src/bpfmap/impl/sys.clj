(ns bpfmap.impl.sys
  "The commands of bpf(2) as functions: numbers and descriptors in, data and descriptors out, errors as data.

  With `bpfmap.impl.sys.elements`, which has the hot paths, this is the only
  namespace that calls the kernel."
  (:require [bpfmap.errno :as errno]
            [bpfmap.error :as error]
            [bpfmap.impl.sys.paths :as paths]
            [bpfmap.impl.sys.procfs :as procfs]
            [bpfmap.rules :as rules])
  (:import (bpfmap.sys Abi Attr Bytes ClosedFdException Cpus Descriptors Fd MemlockLimit Native)
           (java.lang.foreign MemorySegment)
           (java.nio.charset StandardCharsets)))

(set! *warn-on-reflection* true)

;; --- failures

(def ^:private network-maps
  "Map types that take CAP_NET_ADMIN: map_create in kernel/bpf/syscall.c."
  #{:sockmap :sockhash :devmap :devmap-hash :xskmap})

(def ^:private network-programs
  "Program types that take CAP_NET_ADMIN: is_net_admin_prog_type in kernel/bpf/syscall.c."
  #{:sched-cls :sched-act :xdp :lwt-in :lwt-out :lwt-xmit :lwt-seg6local :sk-skb :sk-msg :flow-dissector :cgroup-device
    :cgroup-sock :cgroup-sock-addr :cgroup-sockopt :cgroup-sysctl :sock-ops :ext :netfilter})

(def ^:private tracing-programs
  "Program types that take CAP_PERFMON: is_perfmon_prog_type in kernel/bpf/syscall.c."
  #{:kprobe :tracepoint :perf-event :raw-tracepoint :raw-tracepoint-writable :tracing :lsm :struct-ops :ext})

(def ^:private capabilities-by-operation
  "The capabilities of the operations for which objects of all types take the same."
  {:attach-raw-tracepoint ["CAP_PERFMON"]
   :test-run ["CAP_BPF"]
   :load-btf ["CAP_BPF"]
   :btf-by-id ["CAP_SYS_ADMIN"]
   :list ["CAP_SYS_ADMIN"]
   :open ["CAP_SYS_ADMIN"]})

(defn- needed-capabilities
  "Returns the names of the capabilities that an operation takes. Since 5.8; before that, CAP_SYS_ADMIN for all."
  [{:keys [op type program-type]}]
  (case op
    :create (cond-> ["CAP_BPF"] (network-maps type) (conj "CAP_NET_ADMIN"))
    :load (cond-> ["CAP_BPF"]
            (network-programs program-type) (conj "CAP_NET_ADMIN")
            (tracing-programs program-type) (conj "CAP_PERFMON"))
    (capabilities-by-operation op)))

(defn fdinfo-text
  "Returns the text that /proc has about an open descriptor; nil if it cannot be read."
  [^Fd fd]
  (let [number (.acquire fd)]
    (try
      (procfs/fdinfo-text number)
      (finally (.release fd)))))

(defn fdinfo
  "What /proc says about an open descriptor, as a map of strings; empty where it cannot be read."
  [^Fd fd]
  (let [number (.acquire fd)]
    (try
      (procfs/fdinfo number)
      (finally (.release fd)))))

(defn- bpffs?
  "Returns true if a file, or the nearest directory above it that exists, is on a BPF file system; nil if that cannot be told."
  [path]
  (loop [path path]
    (let [answer (Descriptors/fileSystem (paths/bytes-of path))]
      (cond
        (= Descriptors/BPF_FS answer) true
        (not (neg? answer)) false
        (and (= (- Abi/ENOENT) answer) (paths/parent path)) (recur (paths/parent path))
        :else nil))))

(defn- circumstances
  "What the process and the kernel are like, as far as it can explain a failed operation."
  [{:keys [path fd type] :as facts}]
  {:release (procfs/kernel-release)
   :missing (when-not path ; a path is a matter of file modes
              (seq (procfs/missing-capabilities (needed-capabilities facts))))
   :unprivileged? (some? (seq (procfs/missing-capabilities ["CAP_BPF"])))
   :passes-modes? (procfs/passes-file-modes?)
   :user-namespace? (procfs/user-namespace?)
   :unprivileged-bpf-disabled (procfs/unprivileged-bpf-disabled)
   :lsms (when (= :inode-storage type) (procfs/security-modules))
   :bpffs? (when path (bpffs? path))
   :file-type (when path (paths/type-of path true))
   :directory? (when path (some-> (paths/parent path) paths/directory?))
   :frozen? (when fd (= "1" (get (fdinfo fd) "frozen")))})

(defn failure
  "The exception for a negated errno, explained from the facts given and the circumstances.

  Facts are those of `bpfmap.errno/explain`, with `:fd` for the open map. A
  fact that costs something to find out may be a delay, and `what` a function of no arguments."
  ^Throwable [what result facts]
  (errno/failure (if (fn? what) (what) what) (- (long result))
                 (merge (circumstances facts)
                        (update-vals facts force)
                        (update-vals (select-keys facts [:path :from]) paths/printed))))

(defn- closed [{:keys [op map]}]
  (error/error :closed (str (if map (str "Map " (error/id-and-name map)) "It") " is closed")
               {:bpfmap/op op
                :bpfmap/map map
                :bpfmap/hint "it was closed before or during this call; open it again"}))

(defn in-context
  "Turns what layer 0 throws into errors as data, and adds the operation and the map to errors that lack them."
  ^Throwable [^Throwable e {:keys [op map] :as facts}]
  (let [data (ex-data e)]
    (cond
      (instance? ClosedFdException e)
      (closed facts)

      (and (instance? UnsupportedOperationException e) (Native/unavailable))
      (error/error :not-supported "The kernel cannot be called"
                   {:bpfmap/op op :bpfmap/hint (Native/unavailable)} e)

      (and (:bpfmap/error data) op (nil? (:bpfmap/op data)))
      (doto ^Throwable (ex-info (ex-message e) (cond-> (assoc data :bpfmap/op op) map (assoc :bpfmap/map map)) (ex-cause e))
        (.setStackTrace (.getStackTrace e)))

      :else e)))

;; --- one command

(def ^:private charged
  "The commands that kernels before 5.11 refuse with EPERM when RLIMIT_MEMLOCK is reached."
  #{Abi/BPF_MAP_CREATE Abi/BPF_PROG_LOAD})

(defn- call
  "Makes the call. One that RLIMIT_MEMLOCK may have refused is made again once the limit is raised: a process of the JVM cannot
  be told to raise it itself, and libbpf does the same."
  [^Attr attr number]
  (let [outcome (.call attr (int number))]
    (if (and (== outcome (- Abi/EPERM))
             (charged number)
             (rules/charges-memlock? (procfs/kernel-release)))
      (do (MemlockLimit/raise)
          (.call attr (int number)))
      outcome)))

(defn command
  "Makes one call of bpf(2): `fill` sets the fields of an attribute, `result` reads the outcome from the call's
  number, the attribute, and what fill returned. A negated errno in `expected` counts as an outcome too."
  ([what facts number fill result] (command what facts number fill result #{}))
  ([what facts number fill result expected]
   (try
     (with-open [attr (Attr.)]
       (let [filled (fill attr)
             outcome (long (call attr number))]
         (if (and (neg? outcome) (not (expected outcome)))
           (throw (failure what outcome facts))
           (result outcome attr filled))))
     (catch RuntimeException e
       (throw (in-context e facts))))))

(defn own
  "An outcome that is a descriptor, owned: the `result` of a [[command]] that opens something."
  ^Fd [outcome _attr _filled]
  (Fd/own outcome))

(defn text
  "A NUL-terminated text of at most n bytes."
  [^MemorySegment memory offset n]
  (let [bytes (Bytes/copyOut memory offset n)
        end (loop [i 0] (if (or (= i (alength bytes)) (zero? (aget bytes i))) i (recur (inc i))))]
    (String. bytes 0 (int end) StandardCharsets/UTF_8)))

(defn u32
  "A field of four bytes, as a number from 0."
  [^MemorySegment memory offset]
  (Bytes/getU32 memory offset false))

;; --- descriptors

(defn close
  "Closes a descriptor; calls in flight end first. Closing twice is fine."
  [^Fd fd]
  (.close fd))

(defn- owned ^Fd [outcome what facts]
  (if (neg? (long outcome))
    (throw (failure what outcome facts))
    (Fd/own outcome)))

(defn- duplicated ^Fd [outcome facts]
  (owned outcome "Duplicating the descriptor" facts))

(defn duplicate
  "Duplicates a descriptor: same object, own lifetime."
  ^Fd [^Fd fd facts]
  (duplicated (Descriptors/duplicate fd) facts))

(def ^:dynamic *refuse-number*
  "Called with a descriptor's number and the operation if the caller is another process, in which the number is of another
  descriptor; throws. Nil if the caller is this process."
  nil)

(defn callers-number
  "Returns a descriptor's number that the caller gave; throws if the caller is another process."
  [number op]
  (when *refuse-number* (*refuse-number* number op))
  number)

(defn duplicate-number
  "Duplicates a descriptor that somebody else owns, given by its number."
  ^Fd [number facts]
  (callers-number number (:op facts))
  (duplicated (Descriptors/duplicate (int number))
              (assoc facts :reference (str "descriptor " number " in this process"))))

(defn open-file
  "Opens a file or directory for what it is, not for what is in it. A cgroup's directory has to be readable."
  ^Fd [path directory? facts]
  (owned (Descriptors/open (paths/bytes-of path) (boolean directory?)) (str "Opening " (paths/printed path)) (assoc facts :reference (paths/printed path))))

(defn- pidfd-of
  "The number of a pidfd, or the negated errno. Before Linux 6.9 there is none of a thread: of the one that leads its process, one of
  the process stands for it, as it does for the kernel's storages."
  [pid thread?]
  (let [outcome (Descriptors/pidfd (int pid) (boolean thread?))]
    (if (and thread? (= outcome (- Abi/EINVAL)))
      (let [of-process (Descriptors/pidfd (int pid) false)]
        ;; What is no leader answers EINVAL, and ENOENT on later kernels; what is gone ESRCH.
        (if (or (nat-int? of-process) (= of-process (- Abi/ESRCH))) of-process outcome))
      outcome)))

(defn pidfd
  "Opens a descriptor of a process, or of a single thread."
  ^Fd [pid thread? facts]
  (let [what (str (if thread? "thread " "process ") pid)]
    (owned (pidfd-of pid thread?) (str "Opening " what)
           (assoc facts :reference what :object :task :thread? (boolean thread?)))))

(defn descriptor-of-process
  "Duplicates a descriptor of another process."
  ^Fd [pid number facts]
  (let [process (pidfd pid false facts)]
    (try
      (owned (Descriptors/fromProcess process (int number)) (str "Opening descriptor " number " of process " pid)
             (assoc facts :reference (str "descriptor " number " of process " pid)))
      (finally (close process)))))

(defn rename
  "Moves a file in one step; refuses a target that exists."
  [from to facts]
  (let [outcome (Descriptors/rename (paths/bytes-of from) (paths/bytes-of to) false)]
    (when (neg? outcome)
      (throw (failure (str "Moving " (paths/printed from) " to " (paths/printed to)) outcome facts)))))

(defn remove-file
  "Removes a file; returns true if it was there."
  [path what facts]
  (let [outcome (long (paths/remove-file path))]
    (cond
      (zero? outcome) true
      (= (- Abi/ENOENT) outcome) false
      :else (throw (failure (str what " " (paths/printed path)) outcome (assoc facts :removing true))))))

(defn kind
  "What a descriptor is: `:map`, `:program`, `:link`, `:other`, or nil where /proc cannot be read."
  [fd]
  (when-let [info (not-empty (fdinfo fd))]
    (or (procfs/kind info) :other)))

(defn access
  "Which way a descriptor may be used: `:read-write`, `:read-only` or `:write-only`; nil where /proc cannot be read."
  [fd]
  (when-let [flags (get (fdinfo fd) "flags")]
    (case (bit-and 3 (Long/parseLong flags 8))
      0 :read-only
      1 :write-only
      :read-write)))

(defn terminal-size
  "How many characters fit on the terminal that a descriptor of this process, given by its number, is: `{:width :height}`.

  Zeros where the terminal does not know, nil where the descriptor is no terminal."
  [number]
  (when-not (Native/unavailable)
    (let [size (Descriptors/windowSize (int number))]
      (when-not (neg? size)
        {:width (bit-and size 0xffff) :height (bit-shift-right size 16)}))))

(defn kernel-release
  "The kernel's release as `uname -r` prints it; nil where that cannot be read."
  []
  (procfs/kernel-release))

(defn security-modules
  "The names of the kernel's active security modules as a set; nil where they cannot be read."
  []
  (procfs/security-modules))

(def ^:private remembered-page-size (delay (procfs/page-size)))

(defn page-size
  "Bytes of a page of memory."
  []
  @remembered-page-size)

(def ^:private remembered-cpus (delay (vec (Cpus/possible))))

(defn possible-cpus
  "The numbers of the CPUs that the kernel may ever bring up, ascending."
  []
  @remembered-cpus)
