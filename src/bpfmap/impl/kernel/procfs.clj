(ns ^:no-doc bpfmap.impl.kernel.procfs
  "What the kernel says in files rather than in system calls, in /proc and /sys."
  (:require [bpfmap.impl.kernel.paths :as paths]
            [clojure.string :as str])
  (:import (bpfmap.sys FileSyscalls)
           (java.nio.charset StandardCharsets)
           (java.nio.file DirectoryIteratorException Files NoSuchFileException Path)
           (java.util.function BiConsumer)))

(set! *warn-on-reflection* true)

(defn- path ^Path [s]
  (Path/of s (make-array String 0)))

(defn- at-once
  "The bytes of a file of /proc or /sys; nil if it cannot be read this way. What files there are
  called is ASCII."
  ^bytes [^String file]
  (FileSyscalls/readFile (.getBytes file StandardCharsets/US_ASCII)))

(defn- read-file
  "The text of a file, nil where it cannot be read.

  `Files/readString`, not `slurp`: the kernel's seq files answer a FileInputStream's
  question for the bytes available with EINVAL."
  [file]
  (try
    (if-let [bytes (at-once file)]
      (String. bytes StandardCharsets/UTF_8)
      (Files/readString (path file)))
    (catch java.io.IOException _ nil)
    (catch SecurityException _ nil)))

(defn bytes-of
  "The bytes of a file; throws an IOException where it cannot be read."
  ^bytes [file]
  (or (when (str/starts-with? file "/proc/") (at-once file))
      (Files/readAllBytes (path file))))

(defn- colon-lines
  "Lines of `name: value` as a map of strings."
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
  "Returns the text of `/proc/thread-self/fdinfo` for a descriptor; nil if it cannot be read."
  [descriptor]
  (read-file (str "/proc/thread-self/fdinfo/" descriptor)))

(defn field
  "Returns the value of a field of a text of fdinfo; nil if it is missing.

  The first line, `pos`, is not found.

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
  "What `/proc/thread-self/fdinfo` says about a descriptor, as a map of strings; empty where it
  cannot be read.

      (get (fdinfo 7) \"frozen\") ;=> \"0\""
  [descriptor]
  (colon-lines (fdinfo-text descriptor)))

(def ^:private id-fields
  "The fields of fdinfo that say what a descriptor is. The first that is there counts: a link
  names its program too, and one of an iterator, a struct_ops or a sockmap its map."
  [["link_id" :link] ["map_id" :map] ["prog_id" :program]])

(def ^:private kind-fields
  "As [[id-fields]], for kernels before 4.18, whose fdinfo has no ids."
  [["map_type" :map] ["prog_type" :program]])

(defn kind
  "What kind of BPF object a descriptor's fdinfo is of: `:map`, `:program` or `:link`; nil for
  anything else.

      (kind {\"map_type\" \"1\"}) ;=> :map"
  [fdinfo]
  (some (fn [[field kind]] (when (contains? fdinfo field) kind))
        (concat id-fields kind-fields)))

(defn object
  "What BPF object a descriptor's fdinfo, a text, is of, as `[kind id]`; nil for anything else.

      (object \"pos:\\t0\\nmap_id:\\t12\\n\") ;=> [:map 12]"
  [^String fdinfo]
  (loop [fields (seq id-fields)]
    (when fields
      (let [[name kind] (first fields)]
        (if-let [id (some-> (field fdinfo name) parse-long)]
          [kind id]
          (recur (next fields)))))))

;; --- processes

(defn- names-in
  "The names in a directory; throws an IOException where it cannot be read."
  [directory]
  (try
    (with-open [entries (Files/newDirectoryStream (path directory))]
      (mapv #(str (.getFileName ^Path %)) entries))
    (catch DirectoryIteratorException e
      (throw (.getCause e)))))

(defn- read-text
  "The text of a file that may hold any bytes; throws an IOException where it cannot be read."
  [file]
  (String. (bytes-of file) StandardCharsets/UTF_8))

(defn processes
  "The numbers of the processes in sight, ascending; throws an IOException where /proc cannot be
  read."
  []
  (into [] (sort (keep parse-long (names-in "/proc")))))

(defn command
  "The name of a process as the kernel keeps it, at most 15 bytes, with escapes if it is not
  UTF-8; throws an IOException where it cannot be read."
  [pid]
  (let [bytes (bytes-of (str "/proc/" pid "/comm"))
        ;; Without the newline at the end
        bytes (java.util.Arrays/copyOf bytes (max 0 (dec (alength bytes))))]
    (or (paths/utf-8 bytes) (paths/text bytes))))

(defn- objects-of-files
  "As [[objects]], by Java's own files, whose exceptions say why one cannot be read."
  [directory]
  (into (sorted-map)
        (keep (fn [number]
                (when-let [found (try
                                   (object (read-text (str directory number)))
                                   (catch NoSuchFileException _ nil))] ; closed meanwhile
                  [(parse-long number) found])))
        (names-in directory)))

(defn objects
  "What BPF objects a process has descriptors of: number to `[kind id]`, ascending.

  Throws an IOException where that cannot be read.

      (objects 4711) ;=> {5 [:map 12]}"
  [pid]
  (let [directory (str "/proc/" pid "/fdinfo/")
        found (volatile! (sorted-map))
        text (fn [^bytes bytes] (String. bytes StandardCharsets/ISO_8859_1))
        outcome (FileSyscalls/readEach
                 (.getBytes directory StandardCharsets/US_ASCII)
                 (reify BiConsumer
                   (accept [_ name bytes]
                     (when-let [object (object (text bytes))]
                       (vswap! found assoc (parse-long (text name)) object)))))]
    (if (zero? outcome)
      @found
      (objects-of-files directory))))
(defn- split-at-nuls
  "Returns the parts of bytes that end in a NUL each, as byte arrays."
  [^bytes bytes]
  (loop [from 0, at 0, parts []]
    (cond
      (= at (alength bytes)) parts
      (zero? (aget bytes at)) (recur (inc at) (inc at)
                                     (conj parts (java.util.Arrays/copyOfRange bytes from at)))
      :else (recur from (inc at) parts))))

(defn arguments
  "Returns the arguments of this process as it was given them, where `words` is what the JVM made
  of them: in a locale that is not UTF-8 it replaces what it cannot decode. See
  `bpfmap.impl.kernel.paths/argument`; words that are not this process's stay.

      (arguments [\"put\" \"m\" \"1\" \"caf\uFFFD\uFFFD\"]) ;=> [\"put\" \"m\" \"1\" \"café\"]"
  [words]
  (let [given (try
                (take-last (count words) (split-at-nuls (bytes-of "/proc/self/cmdline")))
                (catch java.io.IOException _ nil))
        same? (fn [word ^bytes bytes]
                (or (some neg? bytes) (= word (String. bytes StandardCharsets/US_ASCII))))]
    (if (and (= (count words) (count given)) (every? true? (map same? words given)))
      (mapv paths/argument given)
      (vec words))))

(defn environment
  "Returns the bytes of an environment variable of this process, whatever the locale is; nil if it
  is not set.

      (String. (environment \"HOME\")) ;=> \"/root\""
  ^bytes [name]
  (let [prefix (str name "=")]
    (try
      (some (fn [^bytes entry]
              (when (str/starts-with? (String. entry StandardCharsets/ISO_8859_1) prefix)
                (java.util.Arrays/copyOfRange entry (count prefix) (alength entry))))
            (split-at-nuls (bytes-of "/proc/self/environ")))
      (catch java.io.IOException _
        (some-> (System/getenv name) paths/exact-bytes)))))

;; --- mounts

(defn- unescaped
  "A field of mountinfo, in which the kernel writes blanks, newlines and backslashes in octal."
  [text]
  (str/replace text #"\\([0-7]{3})" (fn [[_ octal]] (str (char (Long/parseLong octal 8))))))

(defn parse-mounts
  "The lines of a mountinfo as `{:id :parent :path :type}`: `:path` is where the mount is, `:type`
  its file system. A character of the text is a byte of the file.

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
                     :path (paths/text (.getBytes ^String (unescaped path)
                                                  StandardCharsets/ISO_8859_1))
                     :type (first (str/split file-system #" "))}))))
        (str/split-lines text)))

(defn mounts
  "Every mount of this process's mount namespace, as [[parse-mounts]] gives them.

  Throws an IOException where that cannot be read."
  []
  (parse-mounts (String. (bytes-of "/proc/self/mountinfo") StandardCharsets/ISO_8859_1)))

(defn- prefixes
  "A path and all above it, from the root down."
  [path]
  (let [parts (remove empty? (str/split path #"/"))]
    (reductions (fn [above part] (str (when (not= "/" above) above) "/" part)) "/" parts)))

(defn locator
  "A function of a path without symbolic links that gives the mount in which it is; nil outside of
  all.

  A path is followed as the kernel does: from the root down, at each directory through whatever is
  mounted there, one on top of the other.

      (:type ((locator (mounts)) \"/sys/fs/bpf/flows\")) ;=> \"bpf\""
  [mounts]
  (let [mounts (remove #(= (:id %) (:parent %)) mounts)
        on-top (into {} (map (juxt (juxt :parent :path) identity)) mounts)
        ;; The root directory lies in a mount that the process does not see.
        outside (first (remove (set (map :id mounts)) (map :parent mounts)))
        through (fn [mount directory]
                  (last (take-while some? (iterate #(on-top [(:id %) directory]) mount))))]
    (fn [path]
      (let [mount (reduce through {:id outside} (prefixes path))]
        (when (:type mount) mount)))))

;; --- the process and the kernel

(def ^:private capability-bits
  "Source: linux/capability.h."
  {"CAP_NET_ADMIN" 12, "CAP_SYS_ADMIN" 21, "CAP_PERFMON" 38, "CAP_BPF" 39})

(defn missing-capabilities
  "Which of the named capabilities the calling thread lacks; nil where that cannot be read.

  CAP_SYS_ADMIN stands in for the narrower ones, as it does in the kernel.

      (missing-capabilities [\"CAP_BPF\"]) ;=> ()"
  [names]
  (when-let [effective (get (colon-lines (read-file "/proc/thread-self/status")) "CapEff")]
    (let [bits (java.lang.Long/parseUnsignedLong effective 16)
          held? #(bit-test bits (capability-bits %))]
      (if (held? "CAP_SYS_ADMIN") () (remove held? names)))))

(defn passes-file-modes?
  "Returns true if the calling thread has CAP_DAC_OVERRIDE, so that no file mode denies it
  anything; nil if that cannot be read."
  []
  (when-let [effective (get (colon-lines (read-file "/proc/thread-self/status")) "CapEff")]
    (bit-test (java.lang.Long/parseUnsignedLong effective 16) 1))) ; linux/capability.h

(defn kernel-release
  "The kernel's release as `uname -r` prints it; nil where that cannot be read.

      (kernel-release) ;=> \"6.18.44\""
  []
  (some-> (read-file "/proc/sys/kernel/osrelease") str/trim))

(defn security-modules
  "The names of the kernel's active security modules as a set; nil where they cannot be read:
  securityfs need not be mounted.

      (security-modules) ;=> #{\"capability\" \"lockdown\" \"bpf\"}"
  []
  (some-> (read-file "/sys/kernel/security/lsm") str/trim not-empty (str/split #",") set))

(def ^:private first-user-namespace
  "PROC_USER_INIT_INO of include/linux/proc_ns.h."
  "user:[4026531837]")

(defn user-namespace?
  "Whether this process is in a user namespace of its own, as in many containers: capabilities
  that it has there do not count for BPF. False where /proc cannot tell."
  []
  (try
    (not= first-user-namespace (str (Files/readSymbolicLink (path "/proc/thread-self/ns/user"))))
    (catch Exception _ false)))

(defn unlimited-memlock?
  "Returns true if this process may lock any amount of memory; nil if that cannot be read."
  []
  (some->> (read-file "/proc/self/limits")
           (re-find #"(?m)^Max locked memory +(\S+)")
           second
           (= "unlimited")))

(defn unprivileged-bpf-disabled
  "The sysctl kernel.unprivileged_bpf_disabled as a number; nil where there is none."
  []
  (some-> (read-file "/proc/sys/kernel/unprivileged_bpf_disabled") str/trim parse-long))

(def ^:private ^:const at-pagesz "Source: linux/auxvec.h, AT_PAGESZ." 6)

(defn page-size
  "Bytes of a page of memory, as the kernel told this process when it began; 4096 where that
  cannot be read.

      (page-size) ;=> 4096"
  []
  (let [^java.nio.LongBuffer words
        (try
          (.asLongBuffer (.order (java.nio.ByteBuffer/wrap (bytes-of "/proc/self/auxv"))
                                 (java.nio.ByteOrder/nativeOrder)))
          (catch java.io.IOException _ (java.nio.LongBuffer/allocate 0)))]
    (loop [i 0]
      (cond
        (< (.limit words) (+ i 2)) 4096
        (= at-pagesz (.get words (int i))) (.get words (int (inc i)))
        :else (recur (+ i 2))))))
