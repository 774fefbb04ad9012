(ns ^:no-doc bpfmap.impl.kernel.procfs
  "Reads what the kernel publishes in files: /proc and /sys."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.paths :as paths]
            [clojure.string :as str])
  (:import (bpfmap.sys Fd Fdinfo FileSyscalls)
           (java.io IOException)
           (java.nio.charset StandardCharsets)
           (java.nio.file DirectoryIteratorException Files LinkOption NoSuchFileException Path)
           (java.util ArrayDeque ArrayList Arrays HashMap)
           (java.util.function BiConsumer)))

(set! *warn-on-reflection* true)

(defn- path ^Path [s]
  (Path/of s (make-array String 0)))

(defn- read-at-once
  "Returns the bytes of a file of /proc or /sys; nil if it cannot be read this way.

  The names of these files are ASCII."
  ^bytes [^String file]
  (FileSyscalls/readFile (.getBytes file StandardCharsets/US_ASCII)))

(defn- read-file
  "Returns the text of a file; nil if it cannot be read.

  Uses `Files/readString` because `slurp` fails: the kernel's seq files return EINVAL when a
  FileInputStream queries the number of available bytes."
  [file]
  (try
    (if-let [bytes (read-at-once file)]
      (String. bytes StandardCharsets/UTF_8)
      (Files/readString (path file)))
    (catch java.io.IOException _ nil)
    (catch SecurityException _ nil)))

(defn read-bytes
  "Returns the bytes of a file; throws an IOException if it cannot be read."
  ^bytes [file]
  (or (when (str/starts-with? file "/proc/") (read-at-once file))
      (Files/readAllBytes (path file))))

(defn unreadable
  "Returns the exception for a file that exists and cannot be read."
  ^Throwable [file ^IOException e op]
  (error/error :io (str "Cannot read " file)
               {:bpfmap/op op :bpfmap/file file :bpfmap/hint (ex-message e)}
               e))

(defn- colon-lines
  "Returns lines of `name: value` as a map of strings."
  [text]
  (if (nil? text)
    {}
    (let [^String text text
          n (.length text)]
      (loop [from 0 found (transient {})]
        (if (<= n from)
          (persistent! found)
          (let [end (.indexOf text 10 from)
                end (if (neg? end) n end)
                colon (.indexOf text 58 from)]
            (recur (inc end)
                   (if (< -1 colon end)
                     (assoc! found (.substring text from colon)
                             (.trim (.substring text (inc colon) end)))
                     found))))))))

(defn fdinfo-text
  "Returns the text of `/proc/thread-self/fdinfo/N`; nil if it cannot be read."
  [descriptor]
  (read-file (str "/proc/thread-self/fdinfo/" descriptor)))

(defn field
  "Returns the value of a field of a fdinfo text; nil if it is missing.

  Does not find `pos`, the first line.

      (field \"pos:\\t0\\nfrozen:\\t0\\n\" \"frozen\") ;=> \"0\""
  [^String text name]
  (when text
    (let [line (.concat (.concat "\n" ^String name) ":")
          at (.indexOf text line)]
      (when-not (neg? at)
        (let [from (+ at (.length line))
              end (.indexOf text 10 from)]
          (.trim (.substring text from (if (neg? end) (.length text) end))))))))

(defn fdinfo
  "Returns the fdinfo of a descriptor as a map of strings.

  Empty if it cannot be read.

      (get (fdinfo 7) \"frozen\") ;=> \"0\""
  [descriptor]
  (colon-lines (fdinfo-text descriptor)))

(def ^:private kind-fields
  "Fields of fdinfo that identify the kind of a descriptor.
  The first match counts.

  A link also has the id of its program, and a link of an iterator, a struct_ops or a sockmap the
  id of its map. Before Linux 4.18 fdinfo has no ids."
  [["link_id" :link] ["map_id" :map] ["prog_id" :program] ["map_type" :map] ["prog_type" :program]])

(defn kind
  "Returns the kind of BPF object that a fdinfo belongs to.

  `:map`, `:program` or `:link`; nil for anything else.

      (kind {\"map_type\" \"1\"}) ;=> :map"
  [fdinfo]
  (some (fn [[field kind]] (when (contains? fdinfo field) kind)) kind-fields))

;; --- processes

(defn list-names
  "Returns the names in a directory; throws an IOException if it cannot be read."
  [directory]
  (try
    (with-open [entries (Files/newDirectoryStream (path directory))]
      (mapv #(str (.getFileName ^Path %)) entries))
    (catch DirectoryIteratorException e
      (throw (.getCause e)))))

(defn processes
  "Returns the numbers of the visible processes, ascending.

  Throws an IOException if /proc cannot be read."
  []
  (into [] (sort (keep parse-long (list-names "/proc")))))

(defn command
  "Returns the name of a process as the kernel stores it, at most 15 bytes.

  Has escapes if it is not UTF-8. Throws an IOException if it cannot be read."
  [pid]
  (let [bytes (read-bytes (str "/proc/" pid "/comm"))
        ;; Without the newline at the end
        bytes (java.util.Arrays/copyOf bytes (max 0 (dec (alength bytes))))]
    (or (paths/utf-8 bytes) (paths/text bytes))))

(defn- objects-from-files
  "Does the same as [[objects]], with exceptions that have a reason."
  [directory]
  (into []
        (keep (fn [number]
                (try
                  (Fdinfo/parse (parse-long number) (read-bytes (str directory number)))
                  (catch NoSuchFileException _ nil)))) ; closed since it was listed
        (list-names directory)))

(defn pipe?
  "Returns true if a descriptor of this process is a pipe.

      (pipe? 1) ;=> true"
  [number]
  (try
    (str/starts-with? (str (Files/readSymbolicLink (path (str "/proc/self/fd/" number)))) "pipe:")
    (catch IOException _ false)))

(defn objects
  "Returns the BPF objects that a process has open, each as a `Fdinfo`.

  In the order of the kernel: by the number of the descriptor. Throws an IOException if they
  cannot be read."
  [pid]
  (let [directory (str "/proc/" pid "/fdinfo/")
        found (ArrayList.)
        outcome (FileSyscalls/readEach
                 (.getBytes directory StandardCharsets/US_ASCII)
                 (reify BiConsumer
                   (accept [_ name bytes]
                     (when-let [object (Fdinfo/parse (Integer/parseInt (String. ^bytes name))
                                                     bytes)]
                       (.add found object)))))]
    (if (zero? outcome)
      found
      (objects-from-files directory))))

(defn- split-at-nuls
  "Returns the parts of bytes that each end in a NUL, as byte arrays."
  [^bytes bytes]
  (loop [from 0, at 0, parts []]
    (cond
      (= at (alength bytes)) parts
      (zero? (aget bytes at)) (recur (inc at) (inc at)
                                     (conj parts (java.util.Arrays/copyOfRange bytes from at)))
      :else (recur from (inc at) parts))))

(defn arguments
  "Returns the arguments of this process as it received them.

  `words` are the arguments as the JVM decoded them: in a locale that is not UTF-8 it replaces
  bytes that it cannot decode. Words that are not arguments of this process are returned
  unchanged. See `bpfmap.impl.kernel.paths/argument`.

      (arguments [\"put\" \"m\" \"1\" \"caf\uFFFD\uFFFD\"]) ;=> [\"put\" \"m\" \"1\" \"café\"]"
  [words]
  (let [given (try
                ;; Not read-bytes, which would wait until the C library is linked: the command line
                ;; reads its arguments meanwhile.
                (take-last (count words)
                           (split-at-nuls (Files/readAllBytes (path "/proc/self/cmdline"))))
                (catch java.io.IOException _ nil))
        same? (fn [word ^bytes bytes]
                (or (some neg? bytes) (= word (String. bytes StandardCharsets/US_ASCII))))]
    (if (and (= (count words) (count given)) (every? true? (map same? words given)))
      (mapv paths/argument given)
      (vec words))))

(defn environment
  "Returns the bytes of an environment variable in every locale; nil if not set.

      (String. (environment \"HOME\")) ;=> \"/root\""
  ^bytes [name]
  (let [prefix (str name "=")]
    (try
      (some (fn [^bytes entry]
              (when (str/starts-with? (String. entry StandardCharsets/ISO_8859_1) prefix)
                (java.util.Arrays/copyOfRange entry (count prefix) (alength entry))))
            (split-at-nuls (read-bytes "/proc/self/environ")))
      (catch java.io.IOException _
        (some-> (System/getenv name) paths/exact-bytes)))))

;; --- mounts

(defn- unescape
  "Returns a field of mountinfo without octal escapes.

  The kernel escapes blanks, newlines and backslashes."
  [text]
  (str/replace text #"\\([0-7]{3})" (fn [[_ octal]] (str (char (Long/parseLong octal 8))))))

(defn parse-mounts
  "Returns the lines of a mountinfo as `{:id :parent :path :type}`.

  `:path` is the mount point, `:type` the file system. Each character of the text stands for a
  byte of the file.

      (parse-mounts \"43 42 0:39 / /sys/fs/bpf rw - bpf bpf rw\")
      ;=> [{:id 43 :parent 42 :path \"/sys/fs/bpf\" :type \"bpf\"}]"
  [text]
  (into []
        (keep (fn [line]
                ;; id parent device root path options [optional fields] - type source options
                (let [[mount file-system] (str/split line #" - " 2)
                      [id parent _ _ path] (str/split mount #" ")]
                  (when file-system
                    {:id (parse-long id)
                     :parent (parse-long parent)
                     :path (paths/text (.getBytes ^String (unescape path)
                                                  StandardCharsets/ISO_8859_1))
                     :type (first (str/split file-system #" "))}))))
        (str/split-lines text)))

(defn mounts
  "Returns the mounts of this process's mount namespace, as [[parse-mounts]] does.

  Throws an IOException if they cannot be read."
  []
  (parse-mounts (String. (read-bytes "/proc/self/mountinfo") StandardCharsets/ISO_8859_1)))

(defn- prefixes
  "Returns a path and all paths above it, from the root down."
  [path]
  (let [parts (remove empty? (str/split path #"/"))]
    (reductions (fn [above part] (str (when (not= "/" above) above) "/" part)) "/" parts)))

(defn mount-locator
  "Returns a function from a path without symbolic links to its mount, or nil.

  It follows a path as the kernel does: from the root down, and at each directory through
  everything mounted there, one mount on top of the other. A path outside of all mounts has none.

      (:type ((mount-locator (mounts)) \"/sys/fs/bpf/flows\")) ;=> \"bpf\""
  [mounts]
  (let [mounts (remove #(= (:id %) (:parent %)) mounts)
        on-top (into {} (map (juxt (juxt :parent :path) identity)) mounts)
        ;; The root directory is in a mount that the process does not see.
        outside (first (remove (set (map :id mounts)) (map :parent mounts)))
        through (fn [mount directory]
                  (last (take-while some? (iterate #(on-top [(:id %) directory]) mount))))]
    (fn [path]
      (let [mount (reduce through {:id outside} (prefixes path))]
        (when (:type mount) mount)))))

(def ^:const most-cgroups "The largest number of cgroups that are looked at." 100000)

(defn- inode [^Path path]
  (try
    (Files/getAttribute path "unix:ino" (into-array LinkOption [LinkOption/NOFOLLOW_LINKS]))
    (catch IOException _ nil)))

(defn- directories-in [^Path directory]
  (try
    (with-open [entries (Files/newDirectoryStream directory)]
      (into [] (filter #(Files/isDirectory % (into-array LinkOption [LinkOption/NOFOLLOW_LINKS])))
            entries))
    (catch IOException _ [])
    (catch DirectoryIteratorException _ [])))

(defn cgroups
  "Returns the cgroups: `{:root directory :paths {id path} :complete boolean}`.

  The id of a cgroup is the inode number of its directory in the cgroup2 file system. Paths count
  from the root. `:complete` is false if there are more than [[most-cgroups]]. `:root` is nil
  without such a file system. Throws an IOException if the mounts cannot be read."
  []
  (let [root (some #(when (= "cgroup2" (:type %)) (:path %)) (mounts))
        found (HashMap.)
        queue (ArrayDeque.)]
    (when root
      (.add queue (path root)))
    (while (and (seq queue) (< (.size found) (long most-cgroups)))
      (let [^Path directory (.poll queue)]
        (when-let [id (inode directory)]
          (.put found id (let [below (subs (str directory) (count root))]
                           (if (= "" below) "/" below)))
          (run! #(.add queue %) (directories-in directory)))))
    {:root root :paths (into {} found) :complete (.isEmpty queue)}))

(defn namespace-number
  "Returns the number of a namespace from its file below /proc/PID/ns.

      (namespace-number \"/proc/self/ns/net\") ;=> 4026531833"
  [file]
  (some->> (str (Files/readSymbolicLink (path file))) (re-find #"\d+") parse-long))

;; --- the process and the kernel

(def ^:private capability-bits
  "Source: linux/capability.h."
  {"CAP_NET_ADMIN" 12, "CAP_SYS_ADMIN" 21, "CAP_PERFMON" 38, "CAP_BPF" 39})

(defn missing-capabilities
  "Returns the named capabilities that the calling thread lacks; nil if unknown.

  CAP_SYS_ADMIN includes the narrower ones, as in the kernel.

      (missing-capabilities [\"CAP_BPF\"]) ;=> ()"
  [names]
  (when-let [effective (get (colon-lines (read-file "/proc/thread-self/status")) "CapEff")]
    (let [bits (java.lang.Long/parseUnsignedLong effective 16)
          has? #(bit-test bits (capability-bits %))]
      (if (has? "CAP_SYS_ADMIN") () (remove has? names)))))

(defn passes-file-modes?
  "Returns true if the calling thread has CAP_DAC_OVERRIDE; nil if unknown.

  No file mode denies anything to such a thread."
  []
  (when-let [effective (get (colon-lines (read-file "/proc/thread-self/status")) "CapEff")]
    (bit-test (java.lang.Long/parseUnsignedLong effective 16) 1))) ; linux/capability.h

(defn kernel-release
  "Returns the kernel's release as `uname -r` prints it; nil if it cannot be read.

      (kernel-release) ;=> \"6.18.44\""
  []
  (some-> (read-file "/proc/sys/kernel/osrelease") str/trim))

(defn interface-names
  "Returns the names of the interfaces in the network namespace of the thread.

      (interface-names) ;=> [\"eth0\" \"lo\"]"
  []
  (into [] (keep #(second (re-find #"^\s*([^\s:]+):" %)))
        (some-> (read-file "/proc/thread-self/net/dev") str/split-lines)))

(defn- read-security
  "Returns the text of a file of securityfs; nil if it cannot be read.

  If securityfs is not mounted, it is mounted for the time of a call, where only this process
  reaches it."
  [name]
  (or (read-file (str "/sys/kernel/security/" name))
      (let [outcome (FileSyscalls/mount "securityfs")]
        (when-not (neg? outcome)
          (with-open [fd (Fd/own outcome)]
            (try
              (read-file (str "/proc/self/fd/" (.acquire fd) "/" name))
              (finally (.release fd))))))))

(defn security-modules
  "Returns the names of the active security modules as a set; nil if unknown.

      (security-modules) ;=> #{\"capability\" \"lockdown\" \"bpf\"}"
  []
  (some-> (read-security "lsm") str/trim not-empty (str/split #",") set))

(defn lockdown
  "Returns how far the kernel is locked down; nil if it is not or is unknown.

      (lockdown) ;=> \"integrity\""
  []
  (let [[_ level] (re-find #"\[(\w+)\]" (or (read-security "lockdown") ""))]
    (when-not (= "none" level) level)))

(def ^:private first-user-namespace
  "PROC_USER_INIT_INO of include/linux/proc_ns.h."
  "user:[4026531837]")

(defn user-namespace?
  "Returns true if this process is in a user namespace, as in many containers.

  Capabilities in it do not count for BPF. Returns false if /proc cannot be read."
  []
  (try
    (not= first-user-namespace (str (Files/readSymbolicLink (path "/proc/thread-self/ns/user"))))
    (catch Exception _ false)))

(defn unlimited-memlock?
  "Returns true if this process may lock any amount of memory; nil if unknown."
  []
  (some->> (read-file "/proc/self/limits")
           (re-find #"(?m)^Max locked memory +(\S+)")
           second
           (= "unlimited")))

(defn unprivileged-bpf-disabled
  "Returns the sysctl kernel.unprivileged_bpf_disabled as a number; nil if missing."
  []
  (some-> (read-file "/proc/sys/kernel/unprivileged_bpf_disabled") str/trim parse-long))

;; --- symbols of the kernel

;; A line is `ffffffff81000000 T _text`, for a module's symbol with the module behind it. There are
;; more than 100,000, and the command line reads them without a compiled loop.

(defn- line-end
  "Returns the offset of the next end of a line."
  ^long [^bytes text ^long from]
  (loop [i from]
    (if (or (= i (alength text)) (= 10 (aget text i))) i (recur (inc i)))))

(defn- address-at
  "Returns the number in hexadecimal digits at an offset."
  ^long [^bytes text ^long from]
  (loop [i from n 0]
    (let [c (if (< i (alength text)) (long (aget text i)) 32)]
      (if (= 32 c)
        n
        (recur (inc i)
               (bit-or (bit-shift-left n 4) (if (< c 97) (- c 48) (- c 87))))))))

(defn- symbol-name [^bytes text from end]
  (let [line (String. text (int from) (int (- (long end) (long from))) StandardCharsets/UTF_8)]
    (second (re-find #"^[0-9a-f]+ \S (\S+)" line))))

(defn- symbol-address
  "Returns the address of a symbol; 0 if it is hidden or does not exist."
  ^long [^bytes text ^String symbol]
  (let [wanted (.getBytes (str " " symbol) StandardCharsets/UTF_8)
        n (alength wanted)]
    (loop [from 0]
      (if (<= (alength text) from)
        0
        (let [end (line-end text from)]
          (if (and (< from (- end n))
                   (Arrays/equals text (int (- end n)) (int end) wanted 0 n))
            (address-at text from)
            (recur (inc end))))))))

(defn- symbols-at
  "Returns the names of the symbols at some addresses, by address."
  [^bytes text addresses]
  (let [wanted (long-array (sort addresses))]
    (loop [from 0 found {}]
      (if (<= (alength text) from)
        found
        (let [address (address-at text from)
              end (line-end text from)]
          (recur (inc end)
                 (if (and (<= 0 (Arrays/binarySearch wanted address))
                          (not (contains? found address)))
                   (assoc found address (symbol-name text from end))
                   found)))))))

(defn kernel-symbols
  "Returns the names of the kernel's symbols at distances from another one.

  They are keyed by the distance. The first name counts. Returns nil if the addresses of symbols are hidden from this process, by
  the sysctl kernel.kptr_restrict or for want of CAP_SYSLOG.

      (kernel-symbols \"__bpf_call_base\" [-13520]) ;=> {-13520 \"bpf_ktime_get_ns\"}"
  [base distances]
  (let [^bytes text (try (read-bytes "/proc/kallsyms") (catch IOException _ (byte-array 0)))
        address (symbol-address text base)]
    (when-not (zero? address)
      (update-keys (symbols-at text (map #(+ address (long %)) distances))
                   #(- (long %) address)))))

(def ^:private ^:const at-pagesz "Source: linux/auxvec.h, AT_PAGESZ." 6)

(defn page-size
  "Returns the size of a page of memory in bytes, from the auxiliary vector.

  Returns 4096 if it cannot be read.

      (page-size) ;=> 4096"
  []
  (let [^java.nio.LongBuffer words
        (try
          (.asLongBuffer (.order (java.nio.ByteBuffer/wrap (read-bytes "/proc/self/auxv"))
                                 (java.nio.ByteOrder/nativeOrder)))
          (catch java.io.IOException _ (java.nio.LongBuffer/allocate 0)))]
    (loop [i 0]
      (cond
        (< (.limit words) (+ i 2)) 4096
        (= at-pagesz (.get words (int i))) (.get words (int (inc i)))
        :else (recur (+ i 2))))))
