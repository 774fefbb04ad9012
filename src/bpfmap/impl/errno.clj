(ns ^:no-doc bpfmap.impl.errno
  "What the kernel's refusals mean: names of errno values, and one table that explains them.

  [[explain]] is pure. The facts that it reads about the process, the map and
  the kernel are gathered by the effects layer, after a call has failed."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.rules :as rules]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def ^:private names
  "Source: asm-generic/errno-base.h and errno.h; 524 is in the kernel's internal linux/errno.h."
  {1 :EPERM 2 :ENOENT 3 :ESRCH 4 :EINTR 5 :EIO 6 :ENXIO 7 :E2BIG 8 :ENOEXEC 9 :EBADF 10 :ECHILD
   11 :EAGAIN 12 :ENOMEM 13 :EACCES 14 :EFAULT 15 :ENOTBLK 16 :EBUSY 17 :EEXIST 18 :EXDEV
   19 :ENODEV 20 :ENOTDIR 21 :EISDIR 22 :EINVAL 23 :ENFILE 24 :EMFILE 25 :ENOTTY 26 :ETXTBSY
   27 :EFBIG 28 :ENOSPC 29 :ESPIPE 30 :EROFS 31 :EMLINK 32 :EPIPE 33 :EDOM 34 :ERANGE 35 :EDEADLK
   36 :ENAMETOOLONG 37 :ENOLCK 38 :ENOSYS 39 :ENOTEMPTY 40 :ELOOP 42 :ENOMSG 43 :EIDRM 44 :ECHRNG
   45 :EL2NSYNC 46 :EL3HLT 47 :EL3RST 48 :ELNRNG 49 :EUNATCH 50 :ENOCSI 51 :EL2HLT 52 :EBADE
   53 :EBADR 54 :EXFULL 55 :ENOANO 56 :EBADRQC 57 :EBADSLT 59 :EBFONT 60 :ENOSTR 61 :ENODATA
   62 :ETIME 63 :ENOSR 64 :ENONET 65 :ENOPKG 66 :EREMOTE 67 :ENOLINK 68 :EADV 69 :ESRMNT
   70 :ECOMM 71 :EPROTO 72 :EMULTIHOP 73 :EDOTDOT 74 :EBADMSG 75 :EOVERFLOW 76 :ENOTUNIQ
   77 :EBADFD 78 :EREMCHG 79 :ELIBACC 80 :ELIBBAD 81 :ELIBSCN 82 :ELIBMAX 83 :ELIBEXEC 84 :EILSEQ
   85 :ERESTART 86 :ESTRPIPE 87 :EUSERS 88 :ENOTSOCK 89 :EDESTADDRREQ 90 :EMSGSIZE 91 :EPROTOTYPE
   92 :ENOPROTOOPT 93 :EPROTONOSUPPORT 94 :ESOCKTNOSUPPORT 95 :EOPNOTSUPP 96 :EPFNOSUPPORT
   97 :EAFNOSUPPORT 98 :EADDRINUSE 99 :EADDRNOTAVAIL 100 :ENETDOWN 101 :ENETUNREACH
   102 :ENETRESET 103 :ECONNABORTED 104 :ECONNRESET 105 :ENOBUFS 106 :EISCONN 107 :ENOTCONN
   108 :ESHUTDOWN 109 :ETOOMANYREFS 110 :ETIMEDOUT 111 :ECONNREFUSED 112 :EHOSTDOWN
   113 :EHOSTUNREACH 114 :EALREADY 115 :EINPROGRESS 116 :ESTALE 117 :EUCLEAN 118 :ENOTNAM
   119 :ENAVAIL 120 :EISNAM 121 :EREMOTEIO 122 :EDQUOT 123 :ENOMEDIUM 124 :EMEDIUMTYPE
   125 :ECANCELED 126 :ENOKEY 127 :EKEYEXPIRED 128 :EKEYREVOKED 129 :EKEYREJECTED 130 :EOWNERDEAD
   131 :ENOTRECOVERABLE 132 :ERFKILL 133 :EHWPOISON 524 :ENOTSUPP})

(defn errno-name
  "The name of an errno number as a keyword; the number itself where it has none.

      (errno-name 524) ;=> :ENOTSUPP"
  [code]
  (names code code))

(def ^:private puts #{:put! :insert! :replace! :push!})
(def ^:private elements (into rules/writes rules/reads))

(defn- stored
  "What a map type stores as descriptors: a key of [[wanted]], or nil."
  [{:keys [type]}]
  (get-in (rules/types type) [:refers :value :in]))

(defn- hangs-on
  "What the elements of a map type hang on, given as keys that are descriptors: a key of
  [[wanted]], or nil."
  [{:keys [type]}]
  (get-in (rules/types type) [:refers :key :in]))

(def ^:private wanted
  "What the kernel wants of an object that a map stores or is keyed by."
  {:map (str
         "what is stored must be a map like the :inner-map of the spec: type, key-size, value-size "
         "and flags, and max-entries "
             "of an array unless both were created with :inner-map among their flags")
   :program (str
             "what is stored must be a program; all programs of one map are of one type, that of "
             "the first stored, "
                 "and not attached elsewhere in a way that forbids it")
   :program-field (str
                   "the interface of that index, or the CPU of that number, must exist, and a "
                   "program must be an XDP program "
                       "made for this kind of map (its expected attach type)")
   :socket "the socket must be one of this map's kind: TCP listening or established, UDP bound, or a reuseport group's"
   :xdp-socket "the socket must be an AF_XDP socket"
   :perf-event "the descriptor must be of a perf event that programs can write to"
   :cgroup "the directory must be one of a cgroup2 hierarchy"
   :functions (str
               "give the members that the struct must have (tcp_congestion_ops: a :name, "
               ":ssthresh, :undo_cwnd, and :cong_avoid or "
                   ":cong_control), and of the others that are no functions only those that the "
                   "kernel takes: "
                   "nothing that counts or links, such as :common, or :refcnt, :state and :list "
                   "where the struct has them at its top; "
                   "a program is loaded as :struct-ops, with the struct's id in the kernel's BTF "
                   "as :attach-btf-id and the index "
                   "of its member as :expected-attach-type")
   :task "the descriptor must be a pidfd"
   :inode "the descriptor must be of a file"})

(defn- must-be [kind]
  (str "the descriptor given is not open, or of another kind; " (wanted kind)))

(defn- missing-capabilities [{:keys [op missing unprivileged-bpf-disabled]}]
  (str (if (= :load op) "loading a program" (name op)) " needs " (str/join " and " (sort missing))
       (when (and unprivileged-bpf-disabled (not= 0 unprivileged-bpf-disabled))
         (str ", and kernel.unprivileged_bpf_disabled is " unprivileged-bpf-disabled))
       "; run as root, or grant the capability (setcap, systemd's AmbientCapabilities=)"))

(defn- pin-elsewhere [{:keys [path]}]
  (str path
       " is not on a BPF file system; mount one with `mount -t bpf bpf DIRECTORY` and pin below it"))

(defn- without-bpf-lsm?
  "Whether the kernel is known to run without the BPF LSM."
  [{:keys [lsms]}]
  (and lsms (not (contains? lsms "bpf"))))

(defn- bpf-lsm-hint [{:keys [lsms]}]
  (str "this kernel runs without the BPF LSM: /sys/kernel/security/lsm has "
       (str/join ", " (sort lsms))
       "; boot it with bpf in lsm="))

(defn left-out
  "Returns why a kernel may lack a map type that is older than it: a hint. `lsms` are the names of
  its security modules, or nil.

      (left-out :xskmap nil) ;=> \"this kernel is built without it\""
  [type lsms]
  (cond
    (not= :inode-storage type) "this kernel is built without it"
    (without-bpf-lsm? {:lsms lsms}) (bpf-lsm-hint {:lsms lsms})
    :else "this kernel is built without it (CONFIG_BPF_LSM)"))

(defn- too-old?
  "Returns true if a release is known to be older than the one needed."
  [needed release]
  (boolean (and needed release (not (rules/at-least? release needed)))))

(def ^:private explanations
  "The first row that fits wins. `:row` is its name, for tests; `:errno` and `:op` are sets,
  absent where any will do; `:when` looks at the facts; `:hint` is a text or a function of the
  facts."
  [;; Of a thread that leads its process bpfmap has taken a pidfd of the process instead.
   {:row :thread-without-pidfd
    :errno #{:EINVAL} :when #(and (:reference %) (:thread %)) :error :not-supported
    :hint (fn [{:keys [reference release]}]
            (str reference
                 " is not the first of its process, and a pidfd of such a thread needs Linux 6.9"
                 (when release (str ", this is " release)) "; the first thread is {:pid n}"))}
   ;; ENOENT from Linux 6.14 on, or near it; a process that is none answers ESRCH.
   {:row :thread-as-process
    :errno #{:EINVAL :ENOENT} :when #(and (:reference %) (= :task (:object %))) :error :not-found
    :hint (fn [{:keys [reference]}]
            (str reference " is a thread of a process; one thread is {:tid n}, from Linux 6.9 on"))}
   {:row :reference-gone
    :errno #{:ENOENT :ESRCH :ENOTDIR} :when :reference :error :not-found
    :hint (fn [{:keys [reference]}] (str "there is no " reference " (any more)"))}
   {:row :reference-number-closed
    :errno #{:EBADF} :when :reference :error :not-found
    :hint (fn [{:keys [reference]}] (str "there is no " reference))}
   {:row :reference-denied
    :errno #{:EPERM :EACCES} :when :reference :error :permission
    :hint (fn [{:keys [reference]}]
            (str "this process may not open " reference
                 "; an id takes CAP_SYS_ADMIN, a descriptor of another process "
                 "the right to trace it, a path its file's mode"))}
   {:row :opened-read-only
    :errno #{:EPERM} :op rules/writes :when #(= :read-only (:access %)) :error :read-only
    :hint "the map was opened read-only; open it with {:access :read-write}"}
   {:row :opened-write-only
    :errno #{:EPERM} :op rules/reads :when #(= :write-only (:access %)) :error :write-only
    :hint "the map was opened write-only; open it with {:access :read-write}"}
   {:row :frozen
    :errno #{:EPERM} :op rules/writes :when :frozen :error :permission
    :hint "the map is frozen: user space can never change it again"}
   {:row :pin-off-bpffs
    :errno #{:EPERM} :op #{:pin! :move-pin!} :when #(false? (:bpffs %)) :error :not-bpffs
    :hint pin-elsewhere}
   ;; sysfs, in which the usual place to mount one is, answers ENOENT.
   {:row :pin-on-sysfs
    :errno #{:ENOENT} :op #{:pin! :move-pin!} :when #(and (false? (:bpffs %)) (:directory? %))
    :error :not-bpffs :hint pin-elsewhere}
   {:row :open-off-bpffs
    :errno #{:EPERM :EACCES} :op #{:open} :when #(false? (:bpffs %)) :error :not-bpffs
    :hint (fn [{:keys [path]}]
            (str path " is not on a BPF file system, so nothing is pinned there"))}
   ;; The JVM may have put something there; or another handle of this process has the arena, which
   ;; lies at one address only.
   {:row :address-taken
    :errno #{:EEXIST} :op #{:memory} :error :busy
    :hint (str
           "something of this process lies at the address already: the same arena, mapped through "
           "another handle, or "
               "anything else; use that handle's memory, or create the arena with another "
               ":map-extra")}
   {:row :arena-elsewhere
    :errno #{:EINVAL :EBUSY} :op #{:memory} :when #(= :arena (:type %)) :error :busy
    :hint (str
           "it is mapped already, by another process or handle, and lies at the same address for "
           "all of them, which the "
               "kernel does not tell; create it with the address as :map-extra, and all can map it")}
   {:row :memory-of-kernel-fields
    :errno #{:ENOTSUPP :EOPNOTSUPP} :op #{:memory} :error :not-supported
    :hint "the kernel does not map values in which it keeps something for itself, such as a spin lock or a timer"}
   {:row :memory-before-5-5
    :errno #{:ENODEV} :op #{:memory} :error :not-supported
    :hint "mapping a map's memory needs Linux 5.5"}
   {:row :page-denied
    :errno #{:EFAULT :ENOMEM} :op #{:populate!} :error :no-memory
    :hint (str
           "there is a page that the kernel cannot allocate, and reading it would end this "
           "process: the memory cgroup of "
               "the arena's creator is at its limit, or a program holds the page back")}
   {:row :address-space-full
    :errno #{:ENOMEM} :op #{:memory} :error :no-memory
    :hint "this process has no room for it: see its limit of address space (ulimit -v) and the sysctl vm.max_map_count"}
   {:row :capabilities-missing
    :errno #{:EPERM} :when (comp seq :missing) :error :permission :hint missing-capabilities}
   {:row :user-namespace
    :errno #{:EPERM} :when #(and (:user-namespace %) (not (:path %))) :error :permission
    :hint (fn [{:keys [op]}]
            (str
             "this process is in a user namespace, as of a container, and its capabilities do not "
             "count outside; "
                 (if (#{:create :load-btf} op)
                   (str
                    "a BPF file system that delegates the creation of maps and the loading of BTF "
                    "gives a token for it (Linux 6.9; "
                        "LIBBPF_BPF_TOKEN_PATH says where it is, /sys/fs/bpf unless set)")
                   "run it in the host's")))}
   {:row :memlock-limit
    :errno #{:EPERM} :op #{:create :load} :when (comp rules/charges-memlock? :release)
    :error :permission
    :hint (str
           "kernels before 5.11 charge maps and programs to RLIMIT_MEMLOCK, and this process may "
           "not raise it as far as it takes; "
               "raise it (ulimit -l unlimited), or grant CAP_SYS_RESOURCE")}
   {:row :unpin-denied
    :errno #{:EPERM :EACCES} :op #{:unpin! :move-pin!} :when (some-fn :removing :from)
    :error :permission
    :hint (fn [{:keys [path from]}]
            (let [path (or from path)]
              (str "this user may not write in the directory of " path
                   ", or the directory is sticky, as the root of a "
                   "BPF file system is, and " path " belongs to another user")))}
   ;; bpf(2) answers EACCES for whatever is not a pin, which is not a matter of modes.
   {:row :opens-directory
    :errno #{:EPERM :EACCES} :op #{:open :unpin! :move-pin! :pins}
    :when #(and (:path %) (= :directory (:file-type %))) :error :not-a-pin
    :hint (fn [{:keys [path]}] (str path " is a directory"))}
   {:row :opens-kernel-file
    :errno #{:EPERM :EACCES} :op #{:open :unpin! :move-pin! :pins}
    :when #(and (:path %) (:passes-modes %)) :error :not-a-pin
    :hint (fn [{:keys [path]}]
            (str "no file mode denies this process anything: " path
                 " is a file of the kernel's own, such as maps.debug, or a security "
                 "module denies it"))}
   {:row :path-denied
    :errno #{:EPERM :EACCES} :op #{:open :pin! :unpin! :move-pin! :pins}
    :when #(and (:path %) (not (:passes-modes %))) :error :permission
    :hint (fn [{:keys [path]}]
            (str "the file mode of " path " or of a directory above it denies this"))}
   {:row :verifier-denied
    :errno #{:EPERM :EACCES} :op #{:load} :error :program-rejected
    :hint "the verifier refused the program; the end of its log, where there is one, says which instruction and why"}
   {:row :unprivileged
    :errno #{:EPERM :EACCES} :when :unprivileged :error :permission
    :hint (str
           "this process has neither CAP_BPF nor CAP_SYS_ADMIN, and what it has open does not "
           "allow this; run as root, or grant "
               "the capability (setcap, systemd's AmbientCapabilities=)")}
   {:row :security-module
    :errno #{:EPERM :EACCES} :error :permission
    :hint "the process has the capabilities; look for a security module (SELinux, AppArmor, lockdown) or a seccomp filter"}

   {:row :nothing-behind
    :errno #{:ENOENT} :op #{:open} :when #(and (:path %) (= :file (:file-type %))) :error :not-found
    :hint (fn [{:keys [path]}]
            (str "there is a file " path
                 ", but the kernel has no object for it; it may be one of the kernel's own, such "
                 "as maps.debug"))}
   {:row :path-missing
    :errno #{:ENOENT :ENOTDIR} :op #{:open :pin! :move-pin! :unpin!} :when :path :error :not-found
    :hint (fn [{:keys [path op]}]
            (if (#{:pin! :move-pin!} op)
              (str "the directory of " path " does not exist")
              (str "there is no file " path)))}
   {:row :pins-gone
    :errno #{:ENOENT} :op #{:pins} :error :not-found
    :hint "its directory names it, but it is gone by now, or nothing is behind the name"}
   {:row :id-gone
    :errno #{:ENOENT} :op #{:open :list} :error :not-found
    :hint (fn [{:keys [object]}]
            (str "no " (name (or object :map)) " has that id, or none has it any more"))}
   {:row :link-being-made
    :errno #{:EAGAIN} :op #{:open :list} :when #(= :link (:object %)) :error :busy
    :hint "the link is being made at this moment; try again"}
   {:row :links-before-5-8
    :errno #{:EINVAL} :op #{:list}
    :when #(and (= :link (:object %)) (some-> (:release %) (rules/at-least? "5.8") not))
    :error :not-supported :hint "links have ids from Linux 5.8 on"}
   {:row :btf-gone
    :errno #{:ENOENT} :op #{:btf-by-id} :error :not-found
    :hint "no BTF object has that id, or none has it any more"}
   {:row :tracepoint-missing
    :errno #{:ENOENT} :op #{:attach-raw-tracepoint} :error :not-found
    :hint "no raw tracepoint has that name; /sys/kernel/tracing/available_events lists them, without the part before the colon and but for those of syscalls"}
   {:row :pin-exists
    :errno #{:EEXIST} :op #{:pin! :move-pin!} :error :exists
    :hint (fn [{:keys [path]}] (str path " exists already; unpin it, or pin somewhere else"))}
   {:row :pin-across-file-systems
    :errno #{:EXDEV} :op #{:pin! :move-pin!} :error :invalid-value
    :hint "a pin moves within one BPF file system only; pin! the map at the new path and unpin! it at the old one"}

   {:row :queue-full
    :errno #{:E2BIG} :op #{:push!} :error :map-full
    :hint (fn [{:keys [max-entries]}]
            (str "it holds its " max-entries (if (= 1 max-entries) " value; " " values; ")
                       "pop! some, or push! with {:overwrite true}"))}
   {:row :index-out-of-range
    :errno #{:E2BIG :EINVAL} :op puts :when #(and (rules/by-index? (:type %)) (nil? (stored %)))
    :error :out-of-range
    :hint (fn [{:keys [max-entries]}]
            (str "an index of this map runs from 0 to " (dec max-entries)))}
   {:row :reference-index-out-of-range
    :errno #{:E2BIG} :op puts :when #(rules/by-index? (:type %)) :error :out-of-range
    :hint (fn [{:keys [max-entries]}]
            (str "an index of this map runs from 0 to " (dec max-entries)))}
   {:row :map-full
    :errno #{:E2BIG :ENOSPC} :op puts :when #(not (rules/by-index? (:type %))) :error :map-full
    :hint (fn [{:keys [max-entries]}]
            (str "the map holds its " max-entries (if (= 1 max-entries) " entry; " " entries; ")
                       "delete some, or create it with more :max-entries"))}
   {:row :struct-registered
    :errno #{:EBUSY} :op puts :when #(= :functions (stored %)) :error :busy
    :hint "a value is registered once in the life of its map, and this map has had its own; create another"}
   {:row :struct-name-taken
    :errno #{:EEXIST} :op puts :when #(= :functions (stored %)) :error :exists
    :hint "the kernel has one of that name already; give it another name, or delete! the other from its map"}
   ;; Linux 6.18 returns 1, which is no errno, for a member that is the kernel's own, such as the
   ;; :owner of tcp_congestion_ops.
   {:row :struct-member-denied
    :errno #{-1} :op puts :when #(= :functions (stored %)) :error :incompatible
    :hint (comp wanted stored)}
   {:row :struct-linked
    :errno #{:EOPNOTSUPP} :op #{:delete!} :when #(= :functions (stored %)) :error :not-supported
    :hint "a map with the flag :link is registered and unregistered by a link; close the link, or the map if it has none"}
   ;; Linux 5.10 makes such a map, and answers EBADF for every file.
   {:row :inodes-without-lsm
    :errno #{:EBADF} :op elements :when #(and (= :inode-storage (:type %)) (without-bpf-lsm? %))
    :error :not-supported
    :hint (fn [ctx] (str "inodes have no storage here; " (bpf-lsm-hint ctx)))}
   ;; The kernel does not say which, and without securityfs its security modules are not known.
   {:row :inodes-unknown-lsm
    :errno #{:EBADF} :op elements :when #(and (= :inode-storage (:type %)) (nil? (:lsms %)))
    :error :invalid-value
    :hint (str (must-be :inode)
               "; if it is one, this kernel runs without the BPF LSM: mount securityfs and see "
               "whether /sys/kernel/security/lsm has bpf")}
   {:row :key-descriptor-wrong
    :errno #{:EBADF :ENOTSOCK} :op elements :when hangs-on :error :invalid-value
    :hint (comp must-be hangs-on)}
   {:row :value-descriptor-wrong
    :errno #{:EBADF} :op elements :when stored :error :invalid-value :hint (comp must-be stored)}
   ;; What its program is wrong with, the kernel does not say, nor, before 7.0 or so, that it is
   ;; the program: kernel/bpf/cpumap.c.
   {:row :cpu-program-denied
    :errno #{:ENOMEM :EINVAL} :op puts :when #(= :cpumap (:type %)) :error :incompatible
    :hint (str
           "the kernel does not take it: a program must be an XDP program made for CPU maps (its "
           "expected attach type); "
               "or there is no memory for the queue")}
   {:row :cpu-queue-too-long
    :errno #{:EOVERFLOW} :op puts :when #(= :cpumap (:type %)) :error :invalid-value
    :hint "the queue of a CPU has at most 16384 places"}
   {:row :xdp-socket-without-ring
    :errno #{:ENOBUFS} :op puts :when #(= :xdp-socket (stored %)) :error :incompatible
    :hint "an AF_XDP socket must have a receive ring or a transmit ring (setsockopt XDP_RX_RING, XDP_TX_RING)"}
   {:row :socket-stored-already
    :errno #{:EBUSY} :op puts :when #(= :socket (stored %)) :error :busy
    :hint "the socket is in this map, or another of its kind, already"}
   {:row :value-object-denied
    :errno #{:EINVAL :EOPNOTSUPP :ENOTSUPP :EPROTOTYPE :ESOCKTNOSUPPORT :ENOTSOCK :ENODEV} :op puts
    :when stored :error :incompatible
    :hint (comp wanted stored)}
   {:row :long-values-before-5-15
    :errno #{:E2BIG} :op #{:create}
    :when (fn [{:keys [type release]}] (too-old? (:long-values-since (rules/types type)) release))
    :error :not-supported
    :hint (fn [{:keys [type release]}]
            (str "values longer than a page need Linux " (:long-values-since (rules/types type))
                 ", this is " release))}
   {:row :arena-too-large
    :errno #{:E2BIG} :op #{:create} :when #(= :arena (:type %)) :error :invalid-spec
    :hint (str "an arena has at most 4 GiB, and :max-entries counts pages, which have more than "
               "4 KiB on some machines")}
   {:row :create-too-large
    :errno #{:E2BIG} :op #{:create} :error :invalid-spec
    :hint "key, value or :max-entries is larger than this kernel allows"}
   {:row :program-too-long
    :errno #{:E2BIG} :op #{:load} :error :program-rejected
    :hint (str
           "the program has more instructions than this kernel takes, or more than a million are "
           "run through on its paths, as by a "
               "long loop; in the latter case there is a log that says so")}
   {:row :no-memory
    :errno #{:ENOMEM} :error :no-memory
    :hint (fn [{:keys [type]}]
            (str "the kernel has no memory for it; make :max-entries or the values smaller"
                 (when (= :hash type) ", or allocate on demand with :no-prealloc")))}
   {:row :name-too-long
    :errno #{:ENAMETOOLONG} :error :invalid-value
    :hint "a part of the path is longer than 255 bytes, or the whole than 4095"}
   {:row :process-files
    :errno #{:EMFILE} :error :too-many-files
    :hint "this process has reached its limit of open files (ulimit -n)"}
   {:row :system-files
    :errno #{:ENFILE} :error :too-many-files
    :hint "the system has reached its limit of open files (fs.file-max)"}
   {:row :arena-mapped-before
    :errno #{:EBUSY} :op #{:freeze!} :when #(= :arena (:type %)) :error :busy
    :hint "an arena can only be frozen before its memory is mapped for writing the first time"}
   {:row :mapped-by-handle
    :errno #{:EBUSY} :op #{:freeze!} :when :mapped-here :error :busy
    :hint "this handle has its memory mapped for writing; close that first: (.close (memory m))"}
   {:row :mapped-by-others
    :errno #{:EBUSY} :op #{:freeze!} :error :busy
    :hint (fn [{:keys [writers]}]
            (str "somebody has the map's memory mapped writable; unmap it first"
                 (when writers
                   (str "; processes that have a map's memory mapped so, this one's or another's: "
                        writers))))}
   {:row :busy
    :errno #{:EBUSY} :error :busy :hint "the kernel is using it; try again"}
   {:row :interrupted
    :errno #{:EINTR :EAGAIN} :error :interrupted :hint "a signal cut it short part-way; try again"}

   {:row :alternative
    :errno #{:ENOTSUPP :EOPNOTSUPP :EINVAL} :op elements :when :alternative :error :not-supported
    :hint :alternative}
   {:row :operation-before-its-release
    :errno #{:ENOTSUPP :EOPNOTSUPP :EINVAL}
    :when (fn [{:keys [type op release]}] (rules/since-text type op release)) :error :not-supported
    :hint (fn [{:keys [type op release]}] (rules/since-text type op release))}
   {:row :freeze-of-kernel-fields
    :errno #{:ENOTSUPP} :op #{:freeze!} :error :not-supported
    :hint "a map cannot be frozen whose values have fields that the kernel keeps for itself: spin locks, timers, kptrs and the like"}
   {:row :create-lacks
    :errno #{:EINVAL} :op #{:create} :when :unsupported :error :not-supported :hint :unsupported}
   {:row :stack-too-deep
    :errno #{:EINVAL} :op #{:create} :when #(= :stack-trace (:type %)) :error :invalid-spec
    :hint "a stack has at most as many frames as the sysctl kernel.perf_event_max_stack says, 127 unless it was changed"}
   {:row :numa-node-missing
    :errno #{:EINVAL} :op #{:create} :when :numa-node :error :invalid-spec
    :hint (fn [{:keys [numa-node]}]
            (str "this machine may have no node " numa-node
                 "; /sys/devices/system/node/online says which it has"))}
   {:row :struct-not-implementable
    :errno #{:ENOTSUPP} :op #{:create} :when #(= :struct-ops (:type %)) :error :not-supported
    :hint (str
           "this kernel's programs cannot implement that struct; Linux 5.10 has none before it has "
           "read its own BTF, "
               "which it does when the first program is loaded")}
   {:row :create-breaks-rule
    :errno #{:EINVAL :ENOTSUPP :EOPNOTSUPP} :op #{:create} :error :invalid-spec
    :hint "the spec breaks a rule of its map type that bpfmap does not know of"}
   {:row :btf-denied
    :op #{:load-btf} :errno #{:EINVAL :E2BIG :ENOTSUPP :EOPNOTSUPP} :error :invalid-value
    :hint "this kernel does not take these types: a name is too long (512 characters), or a kind newer than it"}
   {:row :program-denied
    :op #{:load} :error :program-rejected
    :hint "the kernel refused the program; the log, where there is one, says why"}
   {:row :tracepoint-of-program-type
    :errno #{:EINVAL} :op #{:attach-raw-tracepoint} :error :invalid-value
    :hint "only a program of type :raw-tracepoint attaches to a raw tracepoint"}
   {:row :test-run-input
    :errno #{:EINVAL} :op #{:test-run} :error :invalid-value
    :hint "the program type wants other input: data of 14 bytes or more for packet programs, a context and no data for raw tracepoints"}
   {:row :kernel-lacks
    :errno #{:ENOTSUPP :EOPNOTSUPP :ENOSYS} :error :not-supported
    :hint "this kernel does not support it"}
   {:row :descriptor-wrong
    :errno #{:EBADF} :error :invalid-value
    :hint "a descriptor that it was given is not open (any more), or is of another kind"}
   {:row :element-missing
    :errno #{:ENOENT} :op elements :error :not-found
    :hint "the key, or what it names, is not there (any more)"}
   {:row :missing
    :errno #{:ENOENT :ENOTDIR :ESRCH} :error :not-found
    :hint "what it names is not there (any more)"}
   {:row :exists
    :errno #{:EEXIST} :error :exists
    :hint "there is one already: use replace! or put!, or another name"}
   {:row :element-invalid
    :errno #{:EINVAL} :op elements :error :invalid-value
    :hint "this map type does not take the operation, one of its options, or the key or value that was given"}
   {:row :invalid
    :errno #{:EINVAL :E2BIG} :error :invalid-value
    :hint "this kernel does not take it: it is older than what was asked for, or the object is of another kind"}
   {:row :no-space
    :errno #{:ENOSPC :EDQUOT} :error :no-memory
    :hint "there is no room left for it: in the map, the file system, or what this user may use"}
   {:row :read-only-file-system
    :errno #{:EROFS} :error :permission :hint "the file system is mounted read-only"}
   {:row :is-directory
    :errno #{:EISDIR} :error :invalid-value :hint "it is a directory"}
   {:row :symbolic-links
    :errno #{:ELOOP} :error :invalid-value
    :hint "the path leads through too many symbolic links, or round in a circle"}
   {:row :no-device
    :errno #{:ENODEV :ENXIO} :error :not-supported
    :hint "there is no such device, or this kernel has nothing that does it"}
   {:row :out-of-range
    :errno #{:ERANGE :EOVERFLOW :EDOM} :error :invalid-value
    :hint "a number is outside the range that this kernel allows"}
   {:row :lock
    :errno #{:EDEADLK :ETIMEDOUT} :error :busy
    :hint "a lock of the kernel's could not be had; try again"}
   {:row :unknown
    :error :kernel :hint "bpfmap knows no reason for this answer; please report it"}])

(defn- fits? [row {:keys [op] :as ctx} errno]
  (and (or (nil? (:errno row)) ((:errno row) errno))
       (or (nil? (:op row)) ((:op row) op) ((:op row) (rules/ability op)))
       (or (nil? (:when row)) ((:when row) ctx))))

(defn- explaining-row
  "Returns the row that explains an errno, given the facts."
  [code ctx]
  (let [errno (errno-name code)]
    (first (filter #(fits? % ctx errno) explanations))))

(defn explain
  "Says what an errno means, given the facts: `{:bpfmap/error kind :bpfmap/hint text}`.

  Facts, all optional but `:op`: `:type :max-entries :numa-node :frozen :access :path :bpffs
  :directory? :alternative :unsupported :thread` of the object, `:object` (its kind, `:map` unless
  it is `:program` or `:link`), `:missing` (names of capabilities the thread lacks),
  `:user-namespace`, `:unprivileged-bpf-disabled`, `:release`, `:lsms` (the names of the kernel's
  security modules), `:file-type` of the path, `:passes-modes` and `:unprivileged` of the process.

      (:bpfmap/error (explain 7 {:op :put! :type :hash :max-entries 10})) ;=> :map-full"
  [code ctx]
  (let [row (explaining-row code ctx)
        hint (:hint row)]
    {:bpfmap/error (if (= :not-a-pin (:error row)) ; of what was to be opened
                     (keyword (str "not-a-" (name (:object ctx :map))))
                     (:error row))
     :bpfmap/hint (if (string? hint) hint (hint ctx))}))

(defn failure
  "The exception for an errno: what was asked, what the kernel said, what to do.

  `what` begins the message. `facts` are those of [[explain]], with `:map`, the
  identity of the map, and `:path`, the file, when there is one.

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
