(ns ^:no-doc bpfmap.impl.kernel.call
  "Makes bpf(2) commands and converts their results to data or to errors.

  In order: exceptions for failed calls; one command; descriptors; ids and infos; pins; kinds of
  objects. Commands of one kind of object only are in `bpfmap.impl.kernel.map`, `prog`, `link` and
  `btf`."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.errno :as errno]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.map-types :as map-types]
            [clojure.string :as str])
  (:import (bpfmap.sys Abi Attr Bytes ClosedFdException Fd FileSyscalls MemlockLimit Native
                       NotSimulatedException PossibleCpus Refusal SimulatedMap)
           (java.io File)
           (java.lang.foreign MemorySegment)
           (java.nio.charset StandardCharsets)
           (java.nio.file Path)))

(set! *warn-on-reflection* true)

;; --- machines without these system calls

(Refusal/setExceptions
 (fn [reason]
   (error/error :not-supported "The kernel cannot be called" {:bpfmap/hint reason})))

;; --- failures

(def ^:private network-maps
  "Map types that require CAP_NET_ADMIN.

  Source: map_create in kernel/bpf/syscall.c."
  #{:sockmap :sockhash :devmap :devmap-hash :xskmap})

(def ^:private network-programs
  "Program types that require CAP_NET_ADMIN.

  Source: is_net_admin_prog_type in kernel/bpf/syscall.c."
  #{:sched-cls :sched-act :xdp :lwt-in :lwt-out :lwt-xmit :lwt-seg6local :sk-skb :sk-msg
    :flow-dissector :cgroup-device
    :cgroup-sock :cgroup-sock-addr :cgroup-sockopt :cgroup-sysctl :sock-ops :ext :netfilter})

(def ^:private tracing-programs
  "Program types that require CAP_PERFMON.

  Source: is_perfmon_prog_type in kernel/bpf/syscall.c."
  #{:kprobe :tracepoint :perf-event :raw-tracepoint :raw-tracepoint-writable :tracing :lsm
    :struct-ops :ext})

(def ^:private capabilities-by-operation
  "Capabilities of operations that require the same for objects of all types."
  {:test-run ["CAP_BPF"]
   :load-btf ["CAP_BPF"]
   :btf-by-id ["CAP_SYS_ADMIN"]
   :list ["CAP_SYS_ADMIN"]
   :enable-statistics! ["CAP_SYS_ADMIN"]
   :instructions ["CAP_BPF"]
   :open ["CAP_SYS_ADMIN"]})

(defn- required-capabilities
  "Returns the names of the capabilities that an operation requires.

  These hold since Linux 5.8. Earlier kernels require CAP_SYS_ADMIN for everything."
  [{:keys [op type program-type]}]
  (case op
    :create (cond-> ["CAP_BPF"] (network-maps type) (conj "CAP_NET_ADMIN"))
    :load (cond-> ["CAP_BPF"]
            (network-programs program-type) (conj "CAP_NET_ADMIN")
            (tracing-programs program-type) (conj "CAP_PERFMON"))
    (:attach :attach-raw-tracepoint) (when (tracing-programs program-type) ["CAP_PERFMON"])
    (capabilities-by-operation op)))

(defn fdinfo-text
  "Returns the fdinfo of an open descriptor as text; nil if it cannot be read."
  [^Fd fd]
  (let [number (.acquire fd)]
    (try
      (if-let [simulated (.simulated fd)]
        (.fdinfo simulated)
        (procfs/fdinfo-text number))
      (finally (.release fd)))))

(defn fdinfo
  "Returns the fdinfo of an open descriptor as a map of strings.

  Empty if it cannot be read."
  [^Fd fd]
  (let [number (.acquire fd)]
    (try
      (procfs/fdinfo number)
      (finally (.release fd)))))

(defn- bpffs?
  "Returns true if a file is, or would be, on a BPF file system; nil if unknown.

  A file that does not exist is on the file system of the nearest directory above it that exists."
  [path]
  (loop [path path]
    (let [answer (FileSyscalls/fileSystem (paths/bytes-of path))]
      (cond
        (= FileSyscalls/BPF_FS answer) true
        (not (neg? answer)) false
        (and (= (- Abi/ENOENT) answer) (paths/parent path)) (recur (paths/parent path))
        :else nil))))

(defn simulated?
  "Returns true if a descriptor refers to a map that is simulated in this process."
  [^Fd fd]
  (some? (.simulated fd)))

(defn- diagnostics-of-kernel
  "Returns facts about the process and the kernel that can explain a failure."
  [{:keys [op path fd type] :as ctx}]
  {:release (procfs/kernel-release)
   :missing (when-not path ; access to a path depends on file modes
              (seq (procfs/missing-capabilities (required-capabilities ctx))))
   :unprivileged (some? (seq (procfs/missing-capabilities ["CAP_BPF"])))
   :passes-modes (procfs/passes-file-modes?)
   :user-namespace (procfs/user-namespace?)
   :unprivileged-bpf-disabled (procfs/unprivileged-bpf-disabled)
   :unlimited-memlock (when (#{:create :load} op) (procfs/unlimited-memlock?))
   :lsms (when (= :inode-storage type) (procfs/security-modules))
   :bpffs (when path (bpffs? path))
   :file-type (when path (paths/type-of path true))
   :directory (when path (some-> (paths/parent path) paths/directory?))
   :frozen (when fd (= "1" (get (fdinfo fd) "frozen")))})

(defn- diagnostics
  "Returns facts that can explain a failure.

  A simulated map does not depend on the process and its kernel."
  [{:keys [^Fd fd] :as ctx}]
  (if (and fd (simulated? fd))
    {:frozen (= "1" (procfs/field (fdinfo-text fd) "frozen"))}
    (diagnostics-of-kernel ctx)))

(defn failure
  "Returns the exception for a negated errno, explained by ctx and diagnostics.

  `ctx` has the keys of `bpfmap.impl.errno/explain`, with `:fd` for the open map. A value that is
  expensive to compute may be a delay. `action` is a text or a function of no arguments that
  returns one."
  ^Throwable [action result ctx]
  (errno/failure (if (fn? action) (action) action) (- (long result))
                 (merge (diagnostics ctx)
                        (update-vals ctx force)
                        (update-vals (select-keys ctx [:path :from]) paths/printable))))

(defn- closed [{:keys [op map object]}]
  (error/error :closed (str (if map
                              (str "Map " (error/id-and-name map))
                              (str "The " (if object (name object) "object")))
                            " is closed")
               {:bpfmap/op op
                :bpfmap/map map
                :bpfmap/hint "it was closed before or during this call; open it again"}))

(defn check-open
  "Throws `:closed` if a descriptor was closed."
  [^Fd fd ctx]
  (when (.isClosed fd)
    (throw (closed ctx))))

(defn in-context
  "Returns an exception as an error as data, with the operation and the map.

  Converts exceptions of the Java layer. Adds the operation and the map to errors that lack them."
  ^Throwable [^Throwable e {:keys [op map] :as ctx}]
  (let [data (ex-data e)]
    (cond
      (instance? ClosedFdException e)
      (closed ctx)

      (instance? NotSimulatedException e)
      (error/error :not-supported (str (if op (name op) "The operation")
                                       (when map (str " on map " (error/id-and-name map)))
                                       " is refused")
                   {:bpfmap/op op :bpfmap/map map :bpfmap/hint (ex-message e)} e)

      (and (:bpfmap/error data) op (nil? (:bpfmap/op data)))
      (doto ^Throwable (ex-info (ex-message e)
                                (cond-> (assoc data :bpfmap/op op) map (assoc :bpfmap/map map))
                                (ex-cause e))
        (.setStackTrace (.getStackTrace e)))

      :else e)))

;; --- one command

(def ^:private memlock-commands
  "Commands that may fail with EPERM because of RLIMIT_MEMLOCK, before Linux 5.11."
  #{Abi/BPF_MAP_CREATE Abi/BPF_PROG_LOAD})

(defn- call
  "Makes the call, and repeats it with a raised RLIMIT_MEMLOCK if that may help.

  Nobody can raise the limit of a running JVM from outside, and libbpf does the same."
  [^Attr attr number]
  (let [outcome (.call attr (int number))]
    (if (and (== outcome (- Abi/EPERM))
             (memlock-commands number)
             (map-types/charges-memlock? (procfs/kernel-release)))
      (do (MemlockLimit/raise)
          (.call attr (int number)))
      outcome)))

(defn command
  "Makes one call of bpf(2); returns `(result outcome attr filled)`.

  `(fill attr)` sets the fields of the attribute; its return value is `filled`. Throws for a
  negated errno unless it is in `expected`."
  ([action ctx number fill result] (command action ctx number fill result #{}))
  ([action ctx number fill result expected]
   (try
     (with-open [attr (Attr.)]
       (let [filled (fill attr)
             outcome (long (call attr number))]
         (if (and (neg? outcome) (not (expected outcome)))
           (throw (failure action outcome ctx))
           (result outcome attr filled))))
     (catch RuntimeException e
       (throw (in-context e ctx))))))

(defn own-fd
  "Returns an outcome that is a descriptor as an `Fd` that owns it.

  This is the `result` of a [[command]] that opens something."
  ^Fd [outcome _attr _filled]
  (Fd/own outcome))

(defn text
  "Returns the NUL-terminated text at an offset, of at most n bytes."
  [^MemorySegment memory offset n]
  (let [bytes (Bytes/copyOut memory offset n)
        end (loop [i 0] (if (or (= i (alength bytes)) (zero? (aget bytes i))) i (recur (inc i))))]
    (String. bytes 0 (int end) StandardCharsets/UTF_8)))

(defn u32
  "Returns the unsigned number of four bytes at an offset."
  [^MemorySegment memory offset]
  (Bytes/getU32 memory offset false))

;; --- descriptors

(defn close
  "Closes a descriptor after the calls in flight have ended.
  Idempotent."
  [^Fd fd]
  (.close fd))

(defn- fd-or-throw ^Fd [outcome action ctx]
  (if (neg? (long outcome))
    (throw (failure action outcome ctx))
    (Fd/own outcome)))

(defn duplicate
  "Duplicates a descriptor.
  The copy refers to the same object and is closed separately."
  ^Fd [^Fd fd ctx]
  (if (simulated? fd)
    (SimulatedMap/duplicate fd)
    (fd-or-throw (FileSyscalls/duplicate fd) "Duplicating the descriptor" ctx)))

(def ^:dynamic *refuse-number*
  "Function of a descriptor's number and an operation that throws; or nil.

  Bound while the caller is another process, in which the number belongs to another descriptor.
  Nil if the caller is this process."
  nil)

(defn check-fd-number
  "Returns a descriptor's number given by the caller.

  Throws if the caller is another process."
  [number op]
  (when *refuse-number* (*refuse-number* number op))
  number)

(defn duplicate-number
  "Duplicates the descriptor with a number that has another owner in this process."
  ^Fd [number ctx]
  (check-fd-number number (:op ctx))
  (fd-or-throw (FileSyscalls/duplicate (int number)) "Duplicating the descriptor"
               (assoc ctx :reference (str "descriptor " number " in this process"))))

(defn open-file
  "Opens a file or directory as an object, without access to its contents.

  The directory of a cgroup has to be readable."
  ^Fd [path directory? ctx]
  (fd-or-throw (FileSyscalls/open (paths/bytes-of path) (boolean directory?))
               (str "Opening " (paths/printable path))
               (assoc ctx :reference (paths/printable path))))

(defn- pidfd-of
  "Returns the number of a pidfd, or the negated errno.

  Before Linux 6.9 only processes have pidfds. For the thread that leads its process, the pidfd of
  the process is equivalent: the kernel's task storages treat it so."
  [pid thread?]
  (let [outcome (FileSyscalls/pidfd (int pid) (boolean thread?))]
    (if (and thread? (= outcome (- Abi/EINVAL)))
      (let [of-process (FileSyscalls/pidfd (int pid) false)]
        ;; A thread that leads no process returns EINVAL, and ENOENT on later kernels. ESRCH means
        ;; that the thread has ended.
        (if (or (nat-int? of-process) (= of-process (- Abi/ESRCH))) of-process outcome))
      outcome)))

(defn pidfd
  "Opens a descriptor of a process, or of a single thread."
  ^Fd [pid thread? ctx]
  (let [action (str (if thread? "thread " "process ") pid)]
    (fd-or-throw (pidfd-of pid thread?) (str "Opening " action)
                 (assoc ctx :reference action :object :task :thread (boolean thread?)))))

(defn descriptor-of-process
  "Duplicates a descriptor of another process."
  ^Fd [pid number ctx]
  (let [process (pidfd pid false ctx)]
    (try
      (fd-or-throw (FileSyscalls/fromProcess process (int number))
                   (str "Opening descriptor " number " of process " pid)
                   (assoc ctx :reference (str "descriptor " number " of process " pid)))
      (finally (close process)))))

(defn rename
  "Moves a file atomically.
  Throws if the target exists."
  [from to ctx]
  (let [outcome (FileSyscalls/rename (paths/bytes-of from) (paths/bytes-of to) false)]
    (when (neg? outcome)
      (throw (failure (str "Moving " (paths/printable from) " to " (paths/printable to))
                      outcome
                      ctx)))))

(defn remove-file
  "Removes a file; returns true if it existed."
  [path action ctx]
  (let [outcome (long (paths/remove-file path))]
    (cond
      (zero? outcome) true
      (= (- Abi/ENOENT) outcome) false
      :else (throw (failure (str action " " (paths/printable path))
                            outcome
                            (assoc ctx :removing true))))))

(defn kind
  "Returns the kind of a descriptor: `:map`, `:program`, `:link` or `:other`.

  Nil if /proc cannot be read."
  [fd]
  (when-let [info (not-empty (fdinfo fd))]
    (or (procfs/kind info) :other)))

(defn access
  "Returns the access mode of a descriptor; nil if /proc cannot be read.

  One of `:read-write`, `:read-only` and `:write-only`."
  [fd]
  (when-let [flags (get (fdinfo fd) "flags")]
    (case (bit-and 3 (Long/parseLong flags 8))
      0 :read-only
      1 :write-only
      :read-write)))

(defn terminal-size
  "Returns the size of the terminal of a descriptor's number: `{:width :height}`.

  Counted in characters. Both are zero if the terminal does not know its size. Returns nil if the
  descriptor is not a terminal."
  [number]
  (when-not (Native/unavailable)
    (let [size (FileSyscalls/windowSize (int number))]
      (when-not (neg? size)
        {:width (bit-and size 0xffff) :height (bit-shift-right size 16)}))))

(defn interface-index
  "Returns the index of a network interface in the network namespace of the thread.

  Returns the negated errno if there is none."
  [^String interface]
  (FileSyscalls/deviceIndex (.getBytes interface StandardCharsets/UTF_8)))

(defn interface-names
  "Returns the names of the network interfaces of the thread's network namespace."
  []
  (procfs/interface-names))

(defn kernel-release
  "Returns the kernel's release as `uname -r` prints it; nil if it cannot be read."
  []
  (procfs/kernel-release))

(defn security-modules
  "Returns the names of the active security modules as a set; nil if unknown."
  []
  (procfs/security-modules))

(def ^:private cached-page-size (delay (procfs/page-size)))

(defn page-size
  "Returns the size of a page of memory in bytes."
  []
  @cached-page-size)

(def ^:private cached-cpus (delay (vec (PossibleCpus/possible))))

(defn possible-cpus
  "Returns the numbers of the possible CPUs, ascending.

  These are all CPUs that the kernel may ever bring online, or with a descriptor of a simulated
  map, the CPUs of that map."
  ([]
   @cached-cpus)
  ([^Fd fd]
   (if-let [simulated (.simulated fd)]
     (vec (range (.cpus simulated)))
     @cached-cpus)))

;; --- ids and infos

(def ^:private commands
  "The commands that list ids and open an id, by kind of object."
  {:map {:next-id Abi/BPF_MAP_GET_NEXT_ID :by-id Abi/BPF_MAP_GET_FD_BY_ID}
   :program {:next-id Abi/BPF_PROG_GET_NEXT_ID :by-id Abi/BPF_PROG_GET_FD_BY_ID}
   :link {:next-id Abi/BPF_LINK_GET_NEXT_ID :by-id Abi/BPF_LINK_GET_FD_BY_ID}
   :btf {:next-id Abi/BPF_BTF_GET_NEXT_ID :by-id Abi/BPF_BTF_GET_FD_BY_ID}})

(defn ids
  "Returns the ids of all objects of a kind, ascending."
  [kind ctx]
  (let [ctx (assoc ctx :object kind)
        number (int (get-in commands [kind :next-id]))]
    (try
      (with-open [attr (Attr.)]
        (loop [id 0 found (transient [])]
          (.int32 attr Abi/ID_START_ID id)
          (.int32 attr Abi/ID_NEXT_ID 0)
          (let [outcome (.call attr number)]
            (cond
              (= outcome (- Abi/ENOENT)) (persistent! found)
              (neg? outcome) (throw (failure (str "Listing the " (name kind) "s")
                                             outcome
                                             ctx))
              :else (let [id (.int32 attr Abi/ID_NEXT_ID)]
                      (recur id (conj! found id)))))))
      (catch RuntimeException e
        (throw (in-context e ctx))))))

(defn- open-id-expecting
  "Opens an object by id; returns nil if the outcome is in `expected`."
  [kind id flags ctx expected]
  (command #(str "Opening " (name kind) " " id) (assoc ctx :object kind)
           (:by-id (commands kind))
           (fn [^Attr attr]
             (.int32 attr Abi/ID_START_ID id)
             (when-not (zero? (long flags)) (.int32 attr Abi/ID_OPEN_FLAGS flags)))
           (fn [outcome attr filled]
             (when-not (neg? (long outcome)) (own-fd outcome attr filled)))
           expected))

(def ^:private flag-errnos
  "Outcomes of a kernel that rejects flags because it does not know them."
  #{(- Abi/EINVAL)})

(defn open-id
  "Opens an object of a kind by id; returns its descriptor.

  `flags` restrict access; 0 allows reading and writing. Before Linux 4.15 the kernel accepts no
  flags, and the descriptor can be used both ways."
  (^Fd [kind id ctx] (open-id kind id 0 ctx))
  (^Fd [kind id flags ctx]
   (or (open-id-expecting kind id flags ctx (if (zero? (long flags)) #{} flag-errnos))
       (open-id-expecting kind id 0 ctx #{}))))

(defn- shorter-size
  "Returns the offset of the last 32 bits of an info that are not zero, or nil.

  That is the size to retry with if the kernel rejected all of `size`."
  [^MemorySegment memory ^long size]
  (loop [size size]
    (when (<= 4 size)
      (if (zero? (long (u32 memory (- size 4))))
        (recur (- size 4))
        (- size 4)))))

(defn- read-info
  "Reads an info of at most `size` bytes; returns 0 or the negated errno.

  Sets all bytes to zero that the kernel did not write."
  [^Attr attr ^MemorySegment memory ^long size]
  (.int32 attr Abi/INFO_INFO_LEN size)
  (let [outcome (.call attr Abi/BPF_OBJ_GET_INFO_BY_FD)]
    (when-not (neg? outcome)
      (.fill (.asSlice memory (min (.byteSize memory) (.int32 attr Abi/INFO_INFO_LEN))) 0))
    outcome))

(defn info
  "Reads the info of an object and returns `(result memory filled)`.

  `(fill attr memory)`, if not nil, sets where the kernel may write more. `action` begins the
  message of an error.

  A kernel whose struct is longer writes only as much as fits. A kernel whose struct is shorter
  returns E2BIG if a field is set that it lacks. The call is then repeated without the last field
  that is set, and fields that the kernel lacks read as zero."
  [action ^Fd fd size ctx fill result]
  (try
    (with-open [attr (Attr.)]
      (.fd attr Abi/INFO_BPF_FD fd)
      (let [memory (.buffer attr Abi/INFO_INFO size)
            filled (when fill (fill attr memory))]
        (loop [size (long size)]
          (let [outcome (long (read-info attr memory size))
                less (when (= outcome (- Abi/E2BIG)) (shorter-size memory size))]
            (cond
              less (recur (long less))
              (neg? outcome) (throw (failure action outcome ctx))
              :else (result memory filled))))))
    (catch RuntimeException e
      (throw (in-context e ctx)))))

;; --- pins

(defn path-text
  "Returns the text of a path given by a user; see `bpfmap.impl.kernel.paths`.

  Throws `:invalid-value` for what is not a path or none that the kernel accepts, and `:ambiguous`
  if two files match."
  [file op]
  (let [given (if (paths/path? file) (str file) file)
        reject (fn [kind message hint]
                 (throw (error/error kind message
                                     {:bpfmap/op op :bpfmap/file (error/shown given)
                                      :bpfmap/hint hint})))
        invalid (fn [constraint]
                  (reject :invalid-value
                          (str "A path must " constraint ", got " (error/printed given))
                          nil))]
    (cond
      (not (string? given)) (invalid "be a string, a File or a Path")
      (str/blank? given) (invalid "not be empty")
      (str/includes? given "\u0000") (invalid "not have a NUL character")
      :else (or (paths/resolve file #(reject :ambiguous
                                             (str "Path " (error/printed given)
                                                  " names two files")
                                             %))
                (invalid "not have half a character (a lone surrogate)")))))

(defn check-pin-path
  "Throws `:invalid-value` for a path that no pin can have."
  [path op]
  ;; The kernel returns EPERM for a dot, just as for a path on another file system.
  (when (re-find #"\.[^/]*/*$" path)
    (throw (error/error :invalid-value (str "The name of a pin must not have a dot, got "
                                            (paths/printable path))
                        {:bpfmap/op op :bpfmap/file path
                         :bpfmap/hint "use another name: the BPF file system rejects dots"}))))

(defn pin
  "Pins an object at a path."
  [^Fd fd path ctx]
  (check-pin-path path (:op ctx))
  (command (str "Pinning to " (paths/printable path)) ctx Abi/BPF_OBJ_PIN
           (fn [^Attr attr]
             (.bytes attr Abi/OBJ_PATHNAME (paths/c-string path))
             (.fd attr Abi/OBJ_BPF_FD fd))
           (constantly nil)))

(defn- get-pinned ^Fd [path flags ctx expected]
  (command (str "Opening " (paths/printable path)) ctx Abi/BPF_OBJ_GET
           (fn [^Attr attr]
             (.bytes attr Abi/OBJ_PATHNAME (paths/c-string path))
             (when-not (zero? (long flags)) (.int32 attr Abi/OBJ_FILE_FLAGS flags)))
           (fn [outcome attr filled]
             (when-not (neg? (long outcome)) (own-fd outcome attr filled)))
           expected))

(defn open-path
  "Opens the object pinned at a path; returns its descriptor.

  `flags` restrict access; the default is BPF_F_RDONLY."
  (^Fd [path ctx] (open-path path Abi/BPF_F_RDONLY ctx))
  (^Fd [path flags ctx]
   (or (get-pinned path flags ctx #{(- Abi/EINVAL)})
       ;; A pinned link returns EINVAL if there are any flags.
       (get-pinned path 0 ctx #{}))))

;; --- kinds of objects

(defn kind-or-throw
  "Returns the kind of a descriptor: `:map`, `:program`, `:link` or `:other`.

  Throws an error that names `place` if /proc cannot be read."
  [^Fd fd place ctx]
  (or (kind fd)
      (throw (error/error :kernel (str "The kind of " place " cannot be read")
                          {:bpfmap/op (:op ctx) :bpfmap/file (:path ctx)
                           :bpfmap/hint (str "check that /proc is mounted, and that this process "
                                             "has a descriptor left (ulimit -n)")}))))

(defn- check-kind
  "Returns the descriptor if it is of the wanted kind; else closes it and throws."
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

(defn open-pinned
  "Opens the object of a kind that is pinned at a path.

  Throws `:not-a-map`, `:not-a-program` or `:not-a-link` for another kind."
  (^Fd [wanted path ctx] (check-kind (open-path path ctx) wanted (paths/printable path) ctx))
  (^Fd [wanted path flags ctx] (check-kind (open-path path flags ctx) wanted (paths/printable path)
                                           ctx)))

(defn open-number
  "Duplicates the descriptor with a number, if it is of the wanted kind."
  ^Fd [wanted number ctx]
  (check-kind (duplicate-number number ctx) wanted (str "Descriptor " number) ctx))

;; --- references to programs and links

(defn open-reference
  "Opens a program or link by a user's reference; returns it.

  `object` is `:program` or `:link`. The reference is an id, a pin path, or a map with `:id`,
  `:program-id` or `:link-id`, `:path` or `:fd`. `adopt` makes the result of a descriptor and a
  context.

      (open-reference :link {:link-id 12} adopt)"
  [object ref adopt]
  (let [ctx {:op :open :object object}
        id-key (keyword (str (name object) "-id"))
        invalid (fn [hint]
                  (error/error :invalid-value
                               (str "Invalid reference to a " (name object) ": "
                                    (error/printed ref))
                               {:bpfmap/op :open :bpfmap/hint hint}))
        [k x] (cond
                (int? ref) [:id ref]
                (or (string? ref) (instance? Path ref) (instance? File ref)) [:path ref]
                (and (map? ref) (= 1 (count ref))) (first ref)
                :else (throw (invalid (str "it must be an id, a pin path, {" id-key
                                           " n} or {:fd n}"))))
        number (fn [most]
                 (if (and (int? x) (<= 0 (long x) (long most)))
                   x
                   (throw (invalid (str "an id must be an integer from 0 to 4294967295, a "
                                        "descriptor from 0 to 2147483647")))))]
    (cond
      (or (= :id k) (= id-key k)) (adopt (open-id object (number 0xffffffff) ctx) ctx)
      (= :fd k) (adopt (open-number object (number 0x7fffffff) ctx) ctx)
      (= :path k) (let [path (path-text x :open)
                        ctx (assoc ctx :path path)]
                    (adopt (open-pinned object path ctx) ctx))
      :else (throw (invalid (str "it must be {:id n}, {" id-key
                                 " n}, {:path p} or {:fd n}"))))))
