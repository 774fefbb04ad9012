(ns ^:no-doc bpfmap.impl.kernel.call
  "Makes one bpf(2) command of an attribute: data or an error out; and the commands that all kinds
  of object share."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.errno :as errno]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.rules :as rules]
            [clojure.string :as str])
  (:import (bpfmap.sys Abi Attr Bytes ClosedFdException Fd FileSyscalls MemlockLimit Native
                       PossibleCpus)
           (java.lang.foreign MemorySegment)
           (java.nio.charset StandardCharsets)))

(set! *warn-on-reflection* true)

;; --- commands and descriptors

;; --- failures

(def ^:private network-maps
  "Map types that take CAP_NET_ADMIN: map_create in kernel/bpf/syscall.c."
  #{:sockmap :sockhash :devmap :devmap-hash :xskmap})

(def ^:private network-programs
  "Program types that take CAP_NET_ADMIN: is_net_admin_prog_type in kernel/bpf/syscall.c."
  #{:sched-cls :sched-act :xdp :lwt-in :lwt-out :lwt-xmit :lwt-seg6local :sk-skb :sk-msg
    :flow-dissector :cgroup-device
    :cgroup-sock :cgroup-sock-addr :cgroup-sockopt :cgroup-sysctl :sock-ops :ext :netfilter})

(def ^:private tracing-programs
  "Program types that take CAP_PERFMON: is_perfmon_prog_type in kernel/bpf/syscall.c."
  #{:kprobe :tracepoint :perf-event :raw-tracepoint :raw-tracepoint-writable :tracing :lsm
    :struct-ops :ext})

(def ^:private capabilities-by-operation
  "The capabilities of the operations for which objects of all types take the same."
  {:attach-raw-tracepoint ["CAP_PERFMON"]
   :test-run ["CAP_BPF"]
   :load-btf ["CAP_BPF"]
   :btf-by-id ["CAP_SYS_ADMIN"]
   :list ["CAP_SYS_ADMIN"]
   :open ["CAP_SYS_ADMIN"]})

(defn- needed-capabilities
  "Returns the names of the capabilities that an operation takes. Since 5.8; before that,
  CAP_SYS_ADMIN for all."
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
  "Returns true if a file, or the nearest directory above it that exists, is on a BPF file system;
  nil if that cannot be told."
  [path]
  (loop [path path]
    (let [answer (FileSyscalls/fileSystem (paths/bytes-of path))]
      (cond
        (= FileSyscalls/BPF_FS answer) true
        (not (neg? answer)) false
        (and (= (- Abi/ENOENT) answer) (paths/parent path)) (recur (paths/parent path))
        :else nil))))

(defn- circumstances
  "What the process and the kernel are like, as far as it can explain a failed operation."
  [{:keys [op path fd type] :as ctx}]
  {:release (procfs/kernel-release)
   :missing (when-not path ; a path is a matter of file modes
              (seq (procfs/missing-capabilities (needed-capabilities ctx))))
   :unprivileged (some? (seq (procfs/missing-capabilities ["CAP_BPF"])))
   :passes-modes (procfs/passes-file-modes?)
   :user-namespace (procfs/user-namespace?)
   :unprivileged-bpf-disabled (procfs/unprivileged-bpf-disabled)
   :unlimited-memlock (when (#{:create :load} op) (procfs/unlimited-memlock?))
   :lsms (when (= :inode-storage type) (procfs/security-modules))
   :bpffs (when path (bpffs? path))
   :file-type (when path (paths/type-of path true))
   :directory? (when path (some-> (paths/parent path) paths/directory?))
   :frozen (when fd (= "1" (get (fdinfo fd) "frozen")))})

(defn failure
  "The exception for a negated errno, explained from the facts given and the circumstances.

  Facts are those of `bpfmap.impl.errno/explain`, with `:fd` for the open map. A
  fact that costs something to find out may be a delay, and `what` a function of no arguments."
  ^Throwable [what result ctx]
  (errno/failure (if (fn? what) (what) what) (- (long result))
                 (merge (circumstances ctx)
                        (update-vals ctx force)
                        (update-vals (select-keys ctx [:path :from]) paths/printed))))

(defn- closed [{:keys [op map]}]
  (error/error :closed (str (if map (str "Map " (error/id-and-name map)) "It") " is closed")
               {:bpfmap/op op
                :bpfmap/map map
                :bpfmap/hint "it was closed before or during this call; open it again"}))

(defn in-context
  "Turns what layer 0 throws into errors as data, and adds the operation and the map to errors
  that lack them."
  ^Throwable [^Throwable e {:keys [op map] :as ctx}]
  (let [data (ex-data e)]
    (cond
      (instance? ClosedFdException e)
      (closed ctx)

      (and (instance? UnsupportedOperationException e) (Native/unavailable))
      (error/error :not-supported "The kernel cannot be called"
                   {:bpfmap/op op :bpfmap/hint (Native/unavailable)} e)

      (and (:bpfmap/error data) op (nil? (:bpfmap/op data)))
      (doto ^Throwable (ex-info (ex-message e)
                                (cond-> (assoc data :bpfmap/op op) map (assoc :bpfmap/map map))
                                (ex-cause e))
        (.setStackTrace (.getStackTrace e)))

      :else e)))

;; --- one command

(def ^:private charged
  "The commands that kernels before 5.11 refuse with EPERM when RLIMIT_MEMLOCK is reached."
  #{Abi/BPF_MAP_CREATE Abi/BPF_PROG_LOAD})

(defn- call
  "Makes the call. One that RLIMIT_MEMLOCK may have refused is made again once the limit is
  raised: a process of the JVM cannot be told to raise it itself, and libbpf does the same."
  [^Attr attr number]
  (let [outcome (.call attr (int number))]
    (if (and (== outcome (- Abi/EPERM))
             (charged number)
             (rules/charges-memlock? (procfs/kernel-release)))
      (do (MemlockLimit/raise)
          (.call attr (int number)))
      outcome)))

(defn command
  "Makes one call of bpf(2): `fill` sets the fields of an attribute, `result` reads the outcome
  from the call's number, the attribute, and what fill returned. A negated errno in `expected`
  counts as an outcome too."
  ([what ctx number fill result] (command what ctx number fill result #{}))
  ([what ctx number fill result expected]
   (try
     (with-open [attr (Attr.)]
       (let [filled (fill attr)
             outcome (long (call attr number))]
         (if (and (neg? outcome) (not (expected outcome)))
           (throw (failure what outcome ctx))
           (result outcome attr filled))))
     (catch RuntimeException e
       (throw (in-context e ctx))))))

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

(defn- owned ^Fd [outcome what ctx]
  (if (neg? (long outcome))
    (throw (failure what outcome ctx))
    (Fd/own outcome)))

(defn- duplicated ^Fd [outcome ctx]
  (owned outcome "Duplicating the descriptor" ctx))

(defn duplicate
  "Duplicates a descriptor: same object, own lifetime."
  ^Fd [^Fd fd ctx]
  (duplicated (FileSyscalls/duplicate fd) ctx))

(def ^:dynamic *refuse-number*
  "Called with a descriptor's number and the operation if the caller is another process, in which
  the number is of another descriptor; throws. Nil if the caller is this process."
  nil)

(defn callers-number
  "Returns a descriptor's number that the caller gave; throws if the caller is another process."
  [number op]
  (when *refuse-number* (*refuse-number* number op))
  number)

(defn duplicate-number
  "Duplicates a descriptor that somebody else owns, given by its number."
  ^Fd [number ctx]
  (callers-number number (:op ctx))
  (duplicated (FileSyscalls/duplicate (int number))
              (assoc ctx :reference (str "descriptor " number " in this process"))))

(defn open-file
  "Opens a file or directory for what it is, not for what is in it. A cgroup's directory has to be
  readable."
  ^Fd [path directory? ctx]
  (owned (FileSyscalls/open (paths/bytes-of path) (boolean directory?))
         (str "Opening " (paths/printed path)) (assoc ctx :reference (paths/printed path))))

(defn- pidfd-of
  "The number of a pidfd, or the negated errno. Before Linux 6.9 there is none of a thread: of the
  one that leads its process, one of the process stands for it, as it does for the kernel's
  storages."
  [pid thread?]
  (let [outcome (FileSyscalls/pidfd (int pid) (boolean thread?))]
    (if (and thread? (= outcome (- Abi/EINVAL)))
      (let [of-process (FileSyscalls/pidfd (int pid) false)]
        ;; What is no leader answers EINVAL, and ENOENT on later kernels; what is gone ESRCH.
        (if (or (nat-int? of-process) (= of-process (- Abi/ESRCH))) of-process outcome))
      outcome)))

(defn pidfd
  "Opens a descriptor of a process, or of a single thread."
  ^Fd [pid thread? ctx]
  (let [what (str (if thread? "thread " "process ") pid)]
    (owned (pidfd-of pid thread?) (str "Opening " what)
           (assoc ctx :reference what :object :task :thread (boolean thread?)))))

(defn descriptor-of-process
  "Duplicates a descriptor of another process."
  ^Fd [pid number ctx]
  (let [process (pidfd pid false ctx)]
    (try
      (owned (FileSyscalls/fromProcess process (int number))
             (str "Opening descriptor " number " of process " pid)
             (assoc ctx :reference (str "descriptor " number " of process " pid)))
      (finally (close process)))))

(defn rename
  "Moves a file in one step; refuses a target that exists."
  [from to ctx]
  (let [outcome (FileSyscalls/rename (paths/bytes-of from) (paths/bytes-of to) false)]
    (when (neg? outcome)
      (throw (failure (str "Moving " (paths/printed from) " to " (paths/printed to))
               outcome
               ctx)))))

(defn remove-file
  "Removes a file; returns true if it was there."
  [path what ctx]
  (let [outcome (long (paths/remove-file path))]
    (cond
      (zero? outcome) true
      (= (- Abi/ENOENT) outcome) false
      :else (throw (failure (str what " " (paths/printed path))
                     outcome
                     (assoc ctx :removing true))))))

(defn kind
  "What a descriptor is: `:map`, `:program`, `:link`, `:other`, or nil where /proc cannot be read."
  [fd]
  (when-let [info (not-empty (fdinfo fd))]
    (or (procfs/kind info) :other)))

(defn access
  "Which way a descriptor may be used: `:read-write`, `:read-only` or `:write-only`; nil where
  /proc cannot be read."
  [fd]
  (when-let [flags (get (fdinfo fd) "flags")]
    (case (bit-and 3 (Long/parseLong flags 8))
      0 :read-only
      1 :write-only
      :read-write)))

(defn terminal-size
  "How many characters fit on the terminal that a descriptor of this process, given by its number,
  is: `{:width :height}`.

  Zeros where the terminal does not know, nil where the descriptor is no terminal."
  [number]
  (when-not (Native/unavailable)
    (let [size (FileSyscalls/windowSize (int number))]
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

(def ^:private remembered-cpus (delay (vec (PossibleCpus/possible))))

(defn possible-cpus
  "The numbers of the CPUs that the kernel may ever bring up, ascending."
  []
  @remembered-cpus)

;; --- ids, pins and infos

(def ^:private commands
  "By kind: the command that lists ids, and the one that opens one."
  {:map {:next-id Abi/BPF_MAP_GET_NEXT_ID :by-id Abi/BPF_MAP_GET_FD_BY_ID}
   :program {:next-id Abi/BPF_PROG_GET_NEXT_ID :by-id Abi/BPF_PROG_GET_FD_BY_ID}
   :link {:next-id Abi/BPF_LINK_GET_NEXT_ID :by-id Abi/BPF_LINK_GET_FD_BY_ID}})

(defn ids
  "The ids of all objects of a kind, ascending."
  [kind-or-throw ctx]
  (let [ctx (assoc ctx :object kind-or-throw)
        number (int (get-in commands [kind-or-throw :next-id]))]
    (try
      (with-open [attr (Attr.)]
        (loop [id 0 found (transient [])]
          (.int32 attr Abi/ID_START_ID id)
          (.int32 attr Abi/ID_NEXT_ID 0)
          (let [outcome (.call attr number)]
            (cond
              (= outcome (- Abi/ENOENT)) (persistent! found)
              (neg? outcome) (throw (failure (str "Listing the " (name kind-or-throw) "s")
                                      outcome
                                      ctx))
              :else (let [id (.int32 attr Abi/ID_NEXT_ID)]
                      (recur id (conj! found id)))))))
      (catch RuntimeException e
        (throw (in-context e ctx))))))

(defn- opened-by-id
  "Opens an object by its id; nil if the outcome is in `expected`."
  [kind-or-throw id flags ctx expected]
  (command #(str "Opening " (name kind-or-throw) " " id) (assoc ctx :object kind-or-throw)
               (:by-id (commands kind-or-throw))
               (fn [^Attr attr]
                 (.int32 attr Abi/ID_START_ID id)
                 (when-not (zero? (long flags)) (.int32 attr Abi/ID_OPEN_FLAGS flags)))
               (fn [outcome attr filled]
                 (when-not (neg? (long outcome)) (own outcome attr filled)))
               expected))

(def ^:private no-flags
  "Outcomes with which a kernel refuses flags that it does not know."
  #{(- Abi/EINVAL)})

(defn by-id
  "Opens an object of a kind by its id; returns its descriptor. `flags` say which way it may be
  used, 0 for both.

  Before Linux 4.15 the kernel takes no flags, and the descriptor may be used both ways."
  (^Fd [kind-or-throw id ctx] (by-id kind-or-throw id 0 ctx))
  (^Fd [kind-or-throw id flags ctx]
   (or (opened-by-id kind-or-throw id flags ctx (if (zero? (long flags)) #{} no-flags))
       (opened-by-id kind-or-throw id 0 ctx #{}))))

(defn- asked
  "The bytes of an info before its last 32 bits that are not zero, if any are: what to ask for if
  all was too much."
  [^MemorySegment memory ^long size]
  (loop [size size]
    (when (<= 4 size)
      (if (zero? (long (u32 memory (- size 4))))
        (recur (- size 4))
        (- size 4)))))

(defn- read-info
  "One call for an info of at most `size` bytes: 0 or the negated errno. Of a struct that has
  fewer bytes, or whose end was not asked for, the rest is zero."
  [^Attr attr ^MemorySegment memory ^long size]
  (.int32 attr Abi/INFO_INFO_LEN size)
  (let [outcome (.call attr Abi/BPF_OBJ_GET_INFO_BY_FD)]
    (when-not (neg? outcome)
      (.fill (.asSlice memory (min (.byteSize memory) (.int32 attr Abi/INFO_INFO_LEN))) 0))
    outcome))

(defn info
  "Reads an object's info, of `size` bytes: `(fill attr memory)`, if given, sets where the kernel
  may write more, and `(result memory filled)` reads what it wrote. `what` begins the message of
  an error.

  A kernel whose struct is longer writes what there is room for. One whose struct is shorter
  answers E2BIG if a field that it lacks is set: it is asked again, each time without the last
  field that is set, and the fields that it lacks read as zero."
  [what ^Fd fd size ctx fill result]
  (try
    (with-open [attr (Attr.)]
      (.fd attr Abi/INFO_BPF_FD fd)
      (let [memory (.buffer attr Abi/INFO_INFO size)
            filled (when fill (fill attr memory))]
        (loop [size (long size)]
          (let [outcome (long (read-info attr memory size))
                less (when (= outcome (- Abi/E2BIG)) (asked memory size))]
            (cond
              less (recur (long less))
              (neg? outcome) (throw (failure what outcome ctx))
              :else (result memory filled))))))
    (catch RuntimeException e
      (throw (in-context e ctx)))))

;; --- pins

(defn path-text
  "Returns the text of a path that a user gave, see `bpfmap.impl.kernel.paths`; throws
  `:invalid-value` for one that the kernel cannot take, and `:ambiguous` if two files may be
  meant."
  [file op]
  (let [given (str file)
        refuse (fn [kind-or-throw hint]
                 (throw (error/error kind-or-throw
                                     (str (if (= :ambiguous kind-or-throw)
                                            "Two paths are meant by "
                                            "Not a path: ")
                                 (pr-str (error/shown given)))
                                     {:bpfmap/op op :bpfmap/file (error/shown given)
                                      :bpfmap/hint hint})))]
    (cond
      (str/blank? given) (refuse :invalid-value "it is empty")
      (str/includes? given "\u0000") (refuse :invalid-value "it has a NUL character")
      :else (or (paths/resolve file #(refuse :ambiguous %))
                (refuse :invalid-value "it has half a character: a lone surrogate")))))

(defn check-pin-path
  "Throws `:invalid-value` for a path that no pin can have."
  [path op]
  ;; The kernel answers EPERM to a dot, as it does to a path on another file system.
  (when (re-find #"\.[^/]*/*$" path)
    (throw (error/error :invalid-value (str "Cannot pin to " (paths/printed path))
                        {:bpfmap/op op :bpfmap/file path
                         :bpfmap/hint "the BPF file system takes no dots in a name"}))))

(defn pin
  "Pins an object at a path."
  [^Fd fd path ctx]
  (check-pin-path path (:op ctx))
  (command (str "Pinning to " (paths/printed path)) ctx Abi/BPF_OBJ_PIN
               (fn [^Attr attr]
                 (.bytes attr Abi/OBJ_PATHNAME (paths/terminated path))
                 (.fd attr Abi/OBJ_BPF_FD fd))
               (constantly nil)))

(defn- get-pinned ^Fd [path flags ctx expected]
  (command (str "Opening " (paths/printed path)) ctx Abi/BPF_OBJ_GET
               (fn [^Attr attr]
                 (.bytes attr Abi/OBJ_PATHNAME (paths/terminated path))
                 (when-not (zero? (long flags)) (.int32 attr Abi/OBJ_FILE_FLAGS flags)))
               (fn [outcome attr filled]
                 (when-not (neg? (long outcome)) (own outcome attr filled)))
               expected))

(defn by-path
  "Opens whatever is pinned at a path; returns its descriptor. `flags` say which way it may be
  used, reading unless given."
  (^Fd [path ctx] (by-path path Abi/BPF_F_RDONLY ctx))
  (^Fd [path flags ctx]
   (or (get-pinned path flags ctx #{(- Abi/EINVAL)})
       ;; A pinned link answers EINVAL to anything but plain opening.
       (get-pinned path 0 ctx #{}))))

;; --- telling them apart

(defn kind-or-throw
  "What a descriptor is: `:map`, `:program` or `:link`, or `:other`. Where that cannot be told,
  the error names `place`."
  [^Fd fd place ctx]
  (or (kind fd)
      (throw (error/error :kernel (str "What " place " is cannot be told")
                          {:bpfmap/op (:op ctx) :bpfmap/file (:path ctx)
                           :bpfmap/hint (str "/proc cannot be read: it is not mounted, "
                                             "or this process has no descriptor left (ulimit -n)")}))))

(defn- checked
  "The descriptor if it is one of the kind that is wanted; else closes it and says what it is."
  ^Fd [^Fd fd wanted place ctx]
  (try
    (let [found (kind-or-throw fd place ctx)]
      (when (not= wanted found)
        (throw (error/error (keyword (str "not-a-" (name wanted)))
                            (str place " is not a " (name wanted))
                            {:bpfmap/op (:op ctx) :bpfmap/file (:path ctx)
                             :bpfmap/hint (str "it is "
                                               (if (= :other found)
                                                 "something else"
                                                 (str "a " (name found))))})))
      fd)
    (catch Throwable e
      (close fd)
      (throw e))))

(defn pinned
  "Opens the object of a kind that is pinned at a path; throws `:not-a-program` and its like for
  another kind."
  (^Fd [wanted path ctx] (checked (by-path path ctx) wanted (paths/printed path) ctx))
  (^Fd [wanted path flags ctx] (checked (by-path path flags ctx) wanted (paths/printed path) ctx)))

(defn of-number
  "Duplicates the descriptor of an object of a kind that somebody else owns, given by its number."
  ^Fd [wanted number ctx]
  (checked (duplicate-number number ctx) wanted (str "Descriptor " number) ctx))
