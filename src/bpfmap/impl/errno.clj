(ns ^:no-doc bpfmap.impl.errno
  "Explains errnos: their names, and one table from errno and situation to kind and hint.

  [[explain]] is pure. Its facts about the process, the map and the kernel are read by the caller,
  after a call has failed."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.map-types :as map-types]
            [clojure.string :as str])
  (:import (bpfmap.sys Errno)))

(set! *warn-on-reflection* true)

(defn errno-name
  "Returns the name of an errno number as a keyword, or the number if it has none.

      (errno-name 524) ;=> :ENOTSUPP"
  [code]
  (if-some [errno (Errno/name (int code))]
    (keyword errno)
    code))

(def ^:private puts #{:put! :insert! :replace! :push!})
(def ^:private elements (into map-types/writes map-types/reads))

(defn- stored
  "Returns the kind of objects that a map type stores, a key of [[wanted]], or nil."
  [{:keys [type]}]
  (get-in (map-types/types type) [:refers :value :in]))

(defn- hangs-on
  "Returns the kind of objects that are keys, a key of [[wanted]], or nil."
  [{:keys [type]}]
  (get-in (map-types/types type) [:refers :key :in]))

(def ^:private wanted
  "The constraint of the kernel on an object that a map stores or is keyed by."
  {:map (str "the value must be a map that matches the :inner-map of the spec: type, key-size, "
             "value-size and flags, and max-entries of an array unless both have the flag "
             ":inner-map")
   :program (str "the value must be a program of the same type as the first program stored in the "
                 "map, and not attached elsewhere in a way that forbids it")
   :program-field (str "the interface of that index, or the CPU of that number, must exist, and a "
                       "program must be an XDP program made for this kind of map (its expected "
                       "attach type)")
   :socket (str "the socket must be of this map's kind: TCP listening or established, UDP bound, "
                "or in a reuseport group")
   :xdp-socket "the socket must be an AF_XDP socket"
   :perf-event "the descriptor must be of a perf event that programs can write to"
   :cgroup "the directory must be a cgroup of a cgroup2 hierarchy"
   :functions (str "the value must have the members that the struct requires (tcp_congestion_ops: "
                   ":name, :ssthresh, :undo_cwnd, and :cong_avoid or :cong_control); of the other "
                   "members that are not functions, only some are accepted, and no counters or "
                   "links, such as :common, or :refcnt, :state and :list at the top of the struct; "
                   "load the programs as :struct-ops, with the struct's id in the kernel's BTF as "
                   ":attach-btf-id and the index of the member as :expected-attach-type")
   :task "the descriptor must be a pidfd"
   :inode "the descriptor must be of a file"})

(defn- must-be [kind]
  (str "the given descriptor is not open, or is of another kind; " (wanted kind)))

(defn- missing-capabilities [{:keys [op missing unprivileged-bpf-disabled]}]
  (str (if (= :load op) "loading a program" (name op)) " needs " (str/join " and " (sort missing))
       (when (and unprivileged-bpf-disabled (not= 0 unprivileged-bpf-disabled))
         (str ", and kernel.unprivileged_bpf_disabled is " unprivileged-bpf-disabled))
       "; run as root, or grant the capability (setcap, systemd's AmbientCapabilities=)"))

(defn- pin-elsewhere [{:keys [path]}]
  (str path " is not on a BPF file system; "
       ;; Where others look for pins, and where the pages have them.
       (if (str/starts-with? path "/sys/fs/bpf/")
         "mount it with `mount -t bpf bpf /sys/fs/bpf`"
         "mount one with `mount -t bpf bpf DIRECTORY` and pin below it")))

(defn- dotted?
  "Returns true if the BPF file system rejected a name with a dot.

  It does not look up such a name: stat(2) gets EPERM, too. Directories above the mount point can
  have dots."
  [{:keys [path file-type]}]
  (and path (= -1 file-type) (boolean (re-find #"[^./]\.|\.[^./]" path))))

(defn- without-bpf-lsm?
  "Returns true if the kernel is known to run without the BPF LSM."
  [{:keys [lsms]}]
  (and lsms (not (contains? lsms "bpf"))))

(defn- bpf-lsm-hint [{:keys [lsms]}]
  (str "this kernel runs without the BPF LSM: /sys/kernel/security/lsm has "
       (str/join ", " (sort lsms))
       "; boot it with bpf in lsm="))

(defn left-out
  "Returns the hint for a kernel that lacks a map type older than it.

  `lsms` are the names of its security modules, or nil.

      (left-out :xskmap nil) ;=> \"this kernel is built without it\""
  [type lsms]
  (cond
    (not= :inode-storage type) "this kernel is built without it"
    (without-bpf-lsm? {:lsms lsms}) (bpf-lsm-hint {:lsms lsms})
    :else "this kernel is built without it (CONFIG_BPF_LSM)"))

(defn- too-old?
  "Returns true if a release is known to be older than the required one."
  [needed release]
  (boolean (and needed release (not (map-types/at-least? release needed)))))

(def ^:private explanations
  "Rows that explain errnos; the first row that matches counts.

  `:row` is its name, for tests. `:errno` and `:op` are sets; a missing one matches any. `:when` is
  a predicate of the facts. `:hint` is a text or a function of the facts."
  [;; bpfmap opens the first thread of a process as the process itself, so this is another one.
   {:row :thread-without-pidfd
    :errno #{:EINVAL} :when #(and (:reference %) (:thread %)) :error :not-supported
    :hint (fn [{:keys [reference release]}]
            (str reference " is not the first thread of its process, and a pidfd of such a thread "
                 "needs Linux 6.9" (when release (str ", this is " release))
                 "; {:pid n} is the first thread"))}
   ;; ENOENT from about Linux 6.14 on. An id without a process answers ESRCH.
   {:row :thread-as-process
    :errno #{:EINVAL :ENOENT} :when #(and (:reference %) (= :task (:object %))) :error :not-found
    :hint (fn [{:keys [reference]}]
            (str reference " is a thread, not a process; a thread is {:tid n}, from Linux 6.9 on"))}
   {:row :reference-gone
    :errno #{:ENOENT :ESRCH :ENOTDIR} :when :reference :error :not-found
    :hint (fn [{:keys [reference]}] (str reference " does not exist (any more)"))}
   {:row :reference-number-closed
    :errno #{:EBADF} :when :reference :error :not-found
    :hint (fn [{:keys [reference]}] (str reference " does not exist"))}
   {:row :reference-denied
    :errno #{:EPERM :EACCES} :when :reference :error :permission
    :hint (fn [{:keys [reference]}]
            (str "this process is not allowed to open " reference
                 "; an id requires CAP_SYS_ADMIN, a descriptor of another process "
                 "the right to trace it, and a path the permission of its file mode"))}
   {:row :opened-read-only
    :errno #{:EPERM} :op map-types/writes :when #(= :read-only (:access %)) :error :read-only
    :hint "the map was opened read-only; open it with {:access :read-write}"}
   {:row :opened-write-only
    :errno #{:EPERM} :op map-types/reads :when #(= :write-only (:access %)) :error :write-only
    :hint "the map was opened write-only; open it with {:access :read-write}"}
   {:row :perf-event-denied
    :errno #{:EPERM :EACCES} :when #(= :event (:perf %)) :error :permission
    ;; the sysctl: a patch of Debian (security-perf-allow-further-restriction-of-perf_event_open)
    :hint (str "opening a perf event requires CAP_PERFMON, or CAP_SYS_ADMIN before Linux 5.8 and "
               "on kernels of Debian if the sysctl kernel.perf_event_paranoid is above 2; a "
               "seccomp filter, as of containers, may deny it too")}
   {:row :perf-memory-denied
    :errno #{:EPERM} :when #(= :memory (:perf %)) :error :permission
    :hint (str "the buffers are larger than this user may lock: use fewer :pages, raise "
               "RLIMIT_MEMLOCK or the sysctl kernel.perf_event_mlock_kb, or grant CAP_IPC_LOCK")}
   {:row :perf-memory
    :errno #{:ENOMEM} :when #(= :memory (:perf %)) :error :no-memory
    :hint "the kernel has no memory for the buffers; use fewer :pages"}
   {:row :frozen
    :errno #{:EPERM} :op (conj map-types/writes :reader :writer) :when :frozen :error :permission
    :hint "the map is frozen, which cannot be undone"}
   {:row :pin-off-bpffs
    :errno #{:EPERM} :op #{:pin! :move-pin!} :when #(false? (:bpffs %)) :error :not-bpffs
    :hint pin-elsewhere}
   ;; sysfs answers ENOENT, and /sys/fs/bpf is in it if no BPF file system is mounted there.
   {:row :pin-on-sysfs
    :errno #{:ENOENT} :op #{:pin! :move-pin!} :when #(and (false? (:bpffs %)) (:directory %))
    :error :not-bpffs :hint pin-elsewhere}
   {:row :open-off-bpffs
    :errno #{:EPERM :EACCES} :op #{:open} :when #(false? (:bpffs %)) :error :not-bpffs
    :hint (fn [{:keys [path]}]
            (str path " is not on a BPF file system, so it cannot be a pin"))}
   ;; The address is used by the JVM, or by another handle of this process: an arena has only one
   ;; address.
   {:row :address-taken
    :errno #{:EEXIST} :op #{:memory} :error :busy
    :hint (str "the address is taken in this process, by the same arena mapped through "
               "another handle or by something else; use that handle's memory, or create the "
               "arena with another :map-extra")}
   {:row :arena-elsewhere
    :errno #{:EINVAL :EBUSY} :op #{:memory} :when #(= :arena (:type %)) :error :busy
    :hint (str "another process or handle has mapped the arena, which has the same address "
               "in all of them, but the kernel does not report it; create the arena with the "
               "address as :map-extra, and all can map it")}
   {:row :memory-of-kernel-fields
    :errno #{:ENOTSUPP :EOPNOTSUPP} :op #{:memory} :error :not-supported
    :hint (str "the kernel does not map values with fields that it owns, such as a spin lock "
               "or a timer")}
   {:row :memory-before-5-5
    :errno #{:ENODEV} :op #{:memory} :error :not-supported
    :hint "mapping a map's memory needs Linux 5.5"}
   {:row :page-denied
    :errno #{:EFAULT :ENOMEM} :op #{:populate!} :error :no-memory
    :hint (str "the kernel cannot allocate one of the pages, and reading it would end this "
               "process: the memory cgroup of the arena's creator is at its limit, or a "
               "program holds the page")}
   {:row :address-space-full
    :errno #{:ENOMEM} :op #{:memory} :error :no-memory
    :hint (str "this process has no address space left; check its limit (ulimit -v) and the "
               "sysctl vm.max_map_count")}
   {:row :capabilities-missing
    :errno #{:EPERM} :when (comp seq :missing) :error :permission :hint missing-capabilities}
   ;; From 5.19 on, kernels use it to deny only creating and loading: __sys_bpf in
   ;; kernel/bpf/syscall.c.
   {:row :unprivileged-bpf-disabled
    :errno #{:EPERM} :error :permission
    :when (fn [{:keys [op unprivileged unprivileged-bpf-disabled release]}]
            (and unprivileged
                 (not (#{nil 0} unprivileged-bpf-disabled))
                 (too-old? "5.19" release)
                 (not (#{:unpin! :move-pin!} op)))) ; these do not call bpf(2)
    :hint (fn [{:keys [unprivileged-bpf-disabled]}]
            (str "before Linux 5.19, kernel.unprivileged_bpf_disabled, which is "
                 unprivileged-bpf-disabled ", denies bpf(2) altogether to a process without "
                 "CAP_BPF; run as root, or grant the capability (setcap, systemd's "
                 "AmbientCapabilities=)"))}
   {:row :user-namespace
    :errno #{:EPERM} :when #(and (:user-namespace %) (not (:path %))) :error :permission
    :hint (fn [{:keys [op]}]
            (str "this process is in a user namespace, such as a container's, and its capabilities "
                 "do not count outside; "
                 (if (#{:create :load-btf} op)
                   (str "mount a BPF file system that delegates the creation of maps and the "
                        "loading of BTF (Linux 6.9), and set LIBBPF_BPF_TOKEN_PATH to it, "
                        "default: /sys/fs/bpf")
                   "run it in the namespace of the host")))}
   {:row :memlock-limit
    :errno #{:EPERM} :op #{:create :load}
    :when #(and (map-types/charges-memlock? (:release %)) (not (:unlimited-memlock %)))
    :error :permission
    :hint (str "kernels before 5.11 charge maps and programs to RLIMIT_MEMLOCK, and this "
               "process is not allowed to raise it far enough; raise it (ulimit -l "
               "unlimited), or grant CAP_SYS_RESOURCE")}
   {:row :unpin-denied
    :errno #{:EPERM :EACCES} :op #{:unpin! :move-pin!} :when (some-fn :removing :from)
    :error :permission
    :hint (fn [{:keys [path from]}]
            (let [path (or from path)]
              (str "this user cannot write to the directory of " path
                   ", or the directory is sticky, like the root of a "
                   "BPF file system, and " path " belongs to another user")))}
   ;; bpf_lookup in kernel/bpf/inode.c rejects dots, which are reserved for future use.
   {:row :dotted-name
    :errno #{:EPERM} :op #{:open :pin! :unpin! :move-pin!} :when dotted? :error :invalid-value
    :hint "use another name: the BPF file system rejects dots in the names of pins and directories"}
   ;; bpf(2) answers EACCES for every file that is not a pin, whatever its mode.
   {:row :opens-directory
    :errno #{:EPERM :EACCES} :op #{:open :unpin! :move-pin! :pins}
    :when #(and (:path %) (= :directory (:file-type %))) :error :not-a-pin
    :hint (fn [{:keys [path]}] (str path " is a directory"))}
   {:row :opens-kernel-file
    :errno #{:EPERM :EACCES} :op #{:open :unpin! :move-pin! :pins}
    :when #(and (:path %) (:passes-modes %)) :error :not-a-pin
    :hint (fn [{:keys [path]}]
            (str "the file modes allow this, but " path
                 " is a file of the kernel, such as maps.debug, or a security module denies it"))}
   {:row :path-denied
    :errno #{:EPERM :EACCES} :op #{:open :pin! :unpin! :move-pin! :pins}
    :when #(and (:path %) (not (:passes-modes %))) :error :permission
    :hint (fn [{:keys [path]}]
            (str "the file mode of " path " or of a directory above it denies this"))}
   {:row :program-lacking
    :op #{:load} :when (comp force :lacks) :error :not-supported
    :hint (comp force :lacks)}
   {:row :silent-refusal
    :errno #{:EPERM :EACCES} :op #{:load} :when :silent :error :program-rejected
    :hint (str "the kernel gave no reason, and this process has the capabilities: check for a "
               "security module (SELinux, AppArmor, lockdown) or a seccomp filter")}
   {:row :verifier-denied
    :errno #{:EPERM :EACCES} :op #{:load} :error :program-rejected
    :hint (str "the verifier rejected the program; the end of its log, if there is one, has "
               "the instruction and the reason")}
   {:row :unprivileged
    :errno #{:EPERM :EACCES} :when :unprivileged :error :permission
    :hint (str "this process has neither CAP_BPF nor CAP_SYS_ADMIN; run as root, or grant "
               "the capability (setcap, systemd's AmbientCapabilities=)")}
   {:row :security-module
    :errno #{:EPERM :EACCES} :error :permission
    :hint (str "the process has the capabilities; check for a security module (SELinux, "
               "AppArmor, lockdown) or a seccomp filter")}

   {:row :nothing-behind
    :errno #{:ENOENT} :op #{:open} :when #(and (:path %) (= :file (:file-type %))) :error :not-found
    :hint (fn [{:keys [path]}]
            (str path " exists, but it is not a pin; it may be a file of the kernel, such as "
                 "maps.debug"))}
   {:row :path-missing
    :errno #{:ENOENT :ENOTDIR} :op #{:open :pin! :move-pin! :unpin!} :when :path :error :not-found
    :hint (fn [{:keys [path op]}]
            (if (#{:pin! :move-pin!} op)
              (str "the directory of " path " does not exist")
              (str "the file " path " does not exist")))}
   {:row :pins-gone
    :errno #{:ENOENT} :op #{:pins} :error :not-found
    :hint "the directory lists it, but it is gone by now or is not a pin"}
   {:row :id-gone
    :errno #{:ENOENT} :op #{:open :list} :error :not-found
    :hint (fn [{:keys [object]}]
            (str "no " (name (or object :map)) " has that id (any more)"))}
   {:row :link-being-made
    :errno #{:EAGAIN} :op #{:open :list} :when #(= :link (:object %)) :error :busy
    :hint "the link is being created; try again"}
   {:row :links-before-5-8
    :errno #{:EINVAL} :op #{:list}
    :when #(and (= :link (:object %)) (some-> (:release %) (map-types/at-least? "5.8") not))
    :error :not-supported :hint "links have ids from Linux 5.8 on"}
   {:row :btf-gone
    :errno #{:ENOENT} :op #{:btf-by-id} :error :not-found
    :hint "no BTF object has that id (any more)"}
   {:row :pin-exists
    :errno #{:EEXIST} :op #{:pin! :move-pin!} :error :exists
    :hint (fn [{:keys [path]}] (str path " exists already; unpin it, or pin somewhere else"))}
   {:row :pin-across-file-systems
    :errno #{:EXDEV} :op #{:pin! :move-pin!} :error :invalid-value
    :hint (str "a pin can only move within one BPF file system; pin! the map at the new path "
               "and unpin! it at the old one")}

   {:row :queue-full
    :errno #{:E2BIG} :op #{:push!} :error :map-full
    :hint (fn [{:keys [max-entries]}]
            (str "the map is full with " (error/plural max-entries "value") "; "
                 "pop! some, or push! with {:overwrite true}"))}
   {:row :index-out-of-range
    :errno #{:E2BIG :EINVAL} :op puts :when #(and (map-types/by-index? (:type %)) (nil? (stored %)))
    :error :out-of-range
    :hint (fn [{:keys [max-entries]}]
            (str "the index must be from 0 to " (dec max-entries)))}
   {:row :reference-index-out-of-range
    :errno #{:E2BIG} :op puts :when #(map-types/by-index? (:type %)) :error :out-of-range
    :hint (fn [{:keys [max-entries]}]
            (str "the index must be from 0 to " (dec max-entries)))}
   {:row :map-full
    :errno #{:E2BIG :ENOSPC} :op puts :when #(not (map-types/by-index? (:type %))) :error :map-full
    :hint (fn [{:keys [max-entries]}]
            (str "the map is full with " (error/plural max-entries "entry" "entries") "; "
                 "delete some, or create it with more :max-entries"))}
   {:row :struct-registered
    :errno #{:EBUSY} :op puts :when #(= :functions (stored %)) :error :busy
    :hint (str "a map of this type registers one value in its life, and this map has done "
               "so; create another")}
   {:row :struct-name-taken
    :errno #{:EEXIST} :op puts :when #(= :functions (stored %)) :error :exists
    :hint (str "the kernel has a registered struct with this name; use another name, or "
               "delete! the other from its map")}
   ;; Linux 6.18 returns 1, which is not an errno, for a member owned by the kernel, such as the
   ;; :owner of tcp_congestion_ops.
   {:row :struct-member-denied
    :errno #{-1} :op puts :when #(= :functions (stored %)) :error :incompatible
    :hint (comp wanted stored)}
   {:row :struct-linked
    :errno #{:EOPNOTSUPP} :op #{:delete!} :when #(= :functions (stored %)) :error :not-supported
    :hint (str "a map with the flag :link is registered and unregistered by a link; close "
               "the link, or the map if it has none")}
   ;; Linux 5.10 creates such a map, but answers EBADF for every file.
   {:row :inodes-without-lsm
    :errno #{:EBADF} :op elements :when #(and (= :inode-storage (:type %)) (without-bpf-lsm? %))
    :error :not-supported
    :hint (fn [ctx] (str "inodes cannot have storage here; " (bpf-lsm-hint ctx)))}
   ;; The errno is the same for both causes, and without securityfs the security modules are
   ;; unknown.
   {:row :inodes-unknown-lsm
    :errno #{:EBADF} :op elements :when #(and (= :inode-storage (:type %)) (nil? (:lsms %)))
    :error :invalid-value
    :hint (str (must-be :inode)
               "; if it is, this kernel may run without the BPF LSM: mount securityfs and check "
               "that /sys/kernel/security/lsm has bpf")}
   {:row :key-descriptor-wrong
    :errno #{:EBADF :ENOTSOCK} :op elements :when hangs-on :error :invalid-value
    :hint (comp must-be hangs-on)}
   {:row :value-descriptor-wrong
    :errno #{:EBADF} :op elements :when stored :error :invalid-value :hint (comp must-be stored)}
   ;; The errno has several causes. Before about 7.0 it does not even mean that the program is the
   ;; cause: kernel/bpf/cpumap.c.
   {:row :cpu-program-denied
    :errno #{:ENOMEM :EINVAL} :op puts :when #(= :cpumap (:type %)) :error :incompatible
    :hint (str "the kernel does not accept it: a program must be an XDP program made for CPU "
               "maps (its expected attach type); or the queue cannot be allocated")}
   {:row :cpu-queue-too-long
    :errno #{:EOVERFLOW} :op puts :when #(= :cpumap (:type %)) :error :invalid-value
    :hint "the queue of a CPU must have at most 16384 places"}
   ;; Another program's map may have more entries than there are CPUs; this process's has not.
   {:row :cpu-missing
    :errno #{:ENODEV} :op puts :when #(= :cpumap (:type %)) :error :out-of-range
    :hint (str "the index must be the number of a possible CPU: "
               "/sys/devices/system/cpu/possible lists them")}
   {:row :xdp-socket-without-ring
    :errno #{:ENOBUFS} :op puts :when #(= :xdp-socket (stored %)) :error :incompatible
    :hint "an AF_XDP socket must have a receive ring or a transmit ring (setsockopt XDP_RX_RING, XDP_TX_RING)"}
   {:row :socket-stored-already
    :errno #{:EBUSY} :op puts :when #(= :socket (stored %)) :error :busy
    :hint "the socket is already in this map or another of its kind"}
   {:row :value-object-denied
    :errno #{:EINVAL :EOPNOTSUPP :ENOTSUPP :EPROTOTYPE :ESOCKTNOSUPPORT :ENOTSOCK :ENODEV} :op puts
    :when stored :error :incompatible
    :hint (comp wanted stored)}
   {:row :long-values-before-5-15
    :errno #{:E2BIG} :op #{:create}
    :when (fn [{:keys [type release]}]
            (too-old? (:long-values-since (map-types/types type)) release))
    :error :not-supported
    :hint (fn [{:keys [type release]}]
            (str "values longer than a page need Linux " (:long-values-since (map-types/types type))
                 ", this is " release))}
   {:row :arena-too-large
    :errno #{:E2BIG} :op #{:create} :when #(= :arena (:type %)) :error :invalid-spec
    :hint (str "an arena has at most 4 GiB, and :max-entries counts pages, which have more than "
               "4 KiB on some machines")}
   {:row :create-too-large
    :errno #{:E2BIG} :op #{:create} :error :invalid-spec
    :hint "the key, the value or :max-entries is larger than this kernel allows"}
   {:row :program-too-long
    :errno #{:E2BIG} :op #{:load} :error :program-rejected
    :hint (fn [{:keys [release]}]
            (str "the program has more instructions than this kernel accepts, or its paths "
                 "have more than a million, as in a long loop; in the second case there is a "
                 ;; A log that is too long keeps its beginning there.
                 (if (too-old? "6.4" release) "log" "log that says so")))}
   {:row :no-memory
    :errno #{:ENOMEM} :error :no-memory
    :hint (fn [{:keys [type]}]
            (str "the kernel has no memory for it; make :max-entries or the values smaller"
                 (when (= :hash type) ", or allocate on demand with :no-prealloc")))}
   {:row :name-too-long
    :errno #{:ENAMETOOLONG} :error :invalid-value
    :hint (str "a part of the path is longer than 255 bytes, or the whole path is longer "
               "than 4095")}
   {:row :process-files
    :errno #{:EMFILE} :error :too-many-files
    :hint "this process has reached its limit of open files (ulimit -n)"}
   {:row :system-files
    :errno #{:ENFILE} :error :too-many-files
    :hint "the system has reached its limit of open files (fs.file-max)"}
   {:row :arena-mapped-before
    :errno #{:EBUSY} :op #{:freeze!} :when #(= :arena (:type %)) :error :busy
    :hint (str "an arena can only be frozen before its memory is mapped for writing for the "
               "first time")}
   {:row :mapped-by-handle
    :errno #{:EBUSY} :op #{:freeze!} :when :mapped-here :error :busy
    :hint (str "this handle has its memory mapped for writing; close it first: (.close "
               "(memory m))")}
   {:row :mapped-by-others
    :errno #{:EBUSY} :op #{:freeze!} :error :busy
    :hint (fn [{:keys [writers]}]
            (str "the map's memory is mapped writable; unmap it first"
                 (when writers
                   (str "; processes with writable memory of this map or another: " writers))))}
   {:row :busy
    :errno #{:EBUSY} :error :busy :hint "the object is in use; try again"}
   {:row :storage-being-changed
    :errno #{:EAGAIN} :op puts :when hangs-on :error :busy
    :hint "the storage of this key was being created or deleted by somebody else; try again"}
   {:row :interrupted
    :errno #{:EINTR :EAGAIN} :error :interrupted :hint "a signal interrupted the call; try again"}

   {:row :alternative
    :errno #{:ENOTSUPP :EOPNOTSUPP :EINVAL} :op elements :when :alternative :error :not-supported
    :hint :alternative}
   {:row :operation-before-its-release
    :errno #{:ENOTSUPP :EOPNOTSUPP :EINVAL}
    :when (fn [{:keys [type op release]}] (map-types/since-text type op release))
    :error :not-supported
    :hint (fn [{:keys [type op release]}] (map-types/since-text type op release))}
   {:row :freeze-of-kernel-fields
    :errno #{:ENOTSUPP} :op #{:freeze!} :error :not-supported
    :hint (str "a map cannot be frozen if its values have fields owned by the kernel, such "
               "as spin locks, timers, kptrs")}
   {:row :create-lacks
    :errno #{:EINVAL} :op #{:create} :when :unsupported :error :not-supported :hint :unsupported}
   {:row :stack-too-deep
    :errno #{:EINVAL} :op #{:create} :when #(= :stack-trace (:type %)) :error :invalid-spec
    :hint (str "a stack has at most as many frames as the sysctl kernel.perf_event_max_stack "
               "allows, default: 127")}
   {:row :numa-node-missing
    :errno #{:EINVAL} :op #{:create} :when :numa-node :error :invalid-spec
    :hint (fn [{:keys [numa-node]}]
            (str "this machine may have no node " numa-node
                 "; see /sys/devices/system/node/online"))}
   {:row :struct-not-implementable
    :errno #{:ENOTSUPP} :op #{:create} :when #(= :struct-ops (:type %)) :error :not-supported
    :hint (str "programs of this kernel cannot implement that struct; Linux 5.10 supports "
               "none until it has read its own BTF, which happens when the first program is "
               "loaded")}
   {:row :create-breaks-rule
    :errno #{:EINVAL :ENOTSUPP :EOPNOTSUPP} :op #{:create} :error :invalid-spec
    :hint "the spec breaks a rule of its map type that bpfmap does not check"}
   {:row :btf-denied
    :op #{:load-btf} :errno #{:EINVAL :E2BIG :ENOTSUPP :EOPNOTSUPP} :error :invalid-value
    :hint (fn [{:keys [release]}]
            (str "this kernel does not accept these types: a name is too long ("
                 (if (too-old? "6.1" release) 128 512) ; KSYM_NAME_LEN of the kernel
                 " characters), or a kind is newer than the kernel"))}
   {:row :program-denied
    :op #{:load} :error :program-rejected
    :hint "the kernel rejected the program; the log, if there is one, has the reason"}
   {:row :statistics-before-5-8
    :errno #{:EINVAL} :op #{:enable-statistics!} :error :not-supported
    :hint (str "statistics for as long as a process wants them need Linux 5.8; before, set the "
               "sysctl kernel.bpf_stats_enabled to 1")}
   {:row :link-stays-attached
    :errno #{:EOPNOTSUPP :ENOTSUPP} :op #{:detach!} :error :not-supported
    :hint (str "the kernel does not detach a link of this type; it is detached when no process and "
               "no pin has it any more")}
   {:row :detach-before-5-9
    :errno #{:EINVAL} :op #{:detach!} :error :not-supported
    :hint "detaching a link that others have needs Linux 5.9"}
   {:row :test-run-input
    :errno #{:EINVAL} :op #{:test-run} :error :invalid-value
    :hint (str "the program type requires other input: data of 14 bytes or more for packet "
               "programs, a context and no data for raw tracepoints")}
   {:row :kernel-lacks
    :errno #{:ENOTSUPP :EOPNOTSUPP :ENOSYS} :error :not-supported
    :hint "this kernel does not support it"}
   {:row :descriptor-wrong
    :errno #{:EBADF} :error :invalid-value
    :hint "the descriptor is not open (any more), or is of another kind"}
   {:row :element-missing
    :errno #{:ENOENT} :op elements :error :not-found
    :hint "the key, or the object that it refers to, does not exist (any more)"}
   {:row :missing
    :errno #{:ENOENT :ENOTDIR :ESRCH} :error :not-found
    :hint "the object does not exist (any more)"}
   {:row :exists
    :errno #{:EEXIST} :error :exists
    :hint "it exists already; use replace! or put!, or another name"}
   {:row :element-invalid
    :errno #{:EINVAL} :op elements :error :invalid-value
    :hint (str "this map type does not accept the operation, one of its options, or the "
               "given key or value")}
   {:row :invalid
    :errno #{:EINVAL :E2BIG} :error :invalid-value
    :hint (str "this kernel does not accept the call: it is too old for it, or the object is "
               "of another kind")}
   {:row :no-space
    :errno #{:ENOSPC :EDQUOT} :error :no-memory
    :hint (str "no space is left: in the map, in the file system, or within the quota "
               "of this user")}
   {:row :read-only-file-system
    :errno #{:EROFS} :error :permission :hint "the file system is mounted read-only"}
   {:row :is-directory
    :errno #{:EISDIR} :error :invalid-value :hint "the path is a directory"}
   {:row :symbolic-links
    :errno #{:ELOOP} :error :invalid-value
    :hint "the path has too many symbolic links, or they form a circle"}
   {:row :no-device
    :errno #{:ENODEV :ENXIO} :error :not-supported
    :hint "the device does not exist, or this kernel does not support it"}
   {:row :out-of-range
    :errno #{:ERANGE :EOVERFLOW :EDOM} :error :invalid-value
    :hint "a number is outside the range that this kernel allows"}
   {:row :lock
    :errno #{:EDEADLK :ETIMEDOUT} :error :busy
    :hint "the kernel could not get a lock; try again"}
   {:row :unknown
    :error :kernel :hint "bpfmap has no explanation for this errno; please report it"}])

(defn- fits? [row {:keys [op] :as ctx} errno]
  (and (or (nil? (:errno row)) ((:errno row) errno))
       (or (nil? (:op row)) ((:op row) op) ((:op row) (map-types/ability op)))
       (or (nil? (:when row)) ((:when row) ctx))))

(defn- explaining-row
  "Returns the row that explains an errno, given the facts."
  [code ctx]
  (let [errno (errno-name code)]
    (first (filter #(fits? % ctx errno) explanations))))

(defn explain
  "Returns the kind and hint of an errno: `{:bpfmap/error kind :bpfmap/hint text}`.

  Facts, all optional except `:op`:

  - of the object: `:type :max-entries :numa-node :frozen :access :path :bpffs :directory
    :alternative :unsupported :thread`, `:object` (its kind: `:map`, which is the default,
    `:program` or `:link`), `:file-type` of the path
  - of the process: `:missing` (capabilities that the thread lacks), `:user-namespace`,
    `:passes-modes`, `:unprivileged`, `:unlimited-memlock`
  - of the kernel: `:unprivileged-bpf-disabled`, `:release`, `:lsms` (the names of its security
    modules)

      (:bpfmap/error (explain 7 {:op :put! :type :hash :max-entries 10})) ;=> :map-full"
  [code ctx]
  (let [row (explaining-row code ctx)
        hint (:hint row)]
    {:bpfmap/error (if (= :not-a-pin (:error row)) ; named by the object to open
                     (keyword (str "not-a-" (name (:object ctx :map))))
                     (:error row))
     :bpfmap/hint (if (string? hint) hint (hint ctx))}))

(defn failure
  "Returns the exception for an errno: operation, errno and hint.

  `what` begins the message. `ctx` has the facts of [[explain]], with `:map`, the identity of the
  map, and `:path`, the file, if there is one.

      (throw (failure \"put! into map 7\" 7 {:op :put! :type :hash :max-entries 10}))"
  [what code {:keys [op path] :as ctx}]
  (let [errno (errno-name code)
        explanation (explain code ctx)]
    (error/error (:bpfmap/error explanation)
                 (str what " failed with " (if (keyword? errno) (name errno) (str "errno " errno)))
                 {:bpfmap/op op
                  :bpfmap/errno errno
                  :bpfmap/errno-code code
                  :bpfmap/map (:map ctx)
                  :bpfmap/file path
                  :bpfmap/hint (:bpfmap/hint explanation)})))
