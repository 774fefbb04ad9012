(ns ^:no-doc bpfmap.impl.display.host
  "Names what numbers refer to on this host: interfaces, cgroups, users, processes, symbols.

  [[resolvers]] returns a function for each kind. A function returns `{:name text}`, or `{:missing
  reason}` for a number that refers to nothing. It reads the host when it is first called, remembers
  what it found, and never reads again. So the names of one set of resolvers are of one time. All
  that is read is bounded, and a number beyond the bound is missing with that reason."
  (:require [bpfmap.btf :as btf]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.display.symbols :as symbols]
            [bpfmap.impl.host.kernel-btf :as kernel-btf]
            [bpfmap.impl.host.syscalls :as syscalls]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.clock :as clock]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.type.node :as node]
            [clojure.string :as str])
  (:import (bpfmap.sys Errno)
           (clojure.lang ExceptionInfo)
           (java.io IOException)
           (java.nio.charset StandardCharsets)
           (java.nio.file Files Path)
           (java.util HashMap)))

(set! *warn-on-reflection* true)

;; --- files

(def ^:private largest-file
  "The largest file that is read for names, in bytes."
  (* 16 1024 1024))

(defn- lines
  "Returns the lines of a small text file; empty if it cannot be read."
  [path]
  (try
    (if (<= (Files/size (Path/of path (make-array String 0))) (long largest-file))
      (str/split-lines (String. (procfs/read-bytes path) StandardCharsets/UTF_8))
      [])
    (catch IOException _ [])))

(defn- from-table
  "Returns a resolver that looks numbers up in a map, made at the first call."
  [reason make]
  (let [table (delay (make))]
    (fn [n]
      (if-let [text (get @table n)] {:name text} {:missing reason}))))

(def ^:private most-remembered
  "The largest number of results that a resolver remembers."
  65536)

(defn- remembered
  "Returns a resolver that remembers the results of f, up to a bound.

  Beyond the bound it does not call f, because each call reads a file."
  [f]
  (let [known (HashMap.)]
    (fn [& args]
      (locking known
        (or (.get known args)
            (if (< (.size known) (long most-remembered))
              (let [found (apply f args)]
                (.put known args found)
                found)
              {:missing (str "not one of the first " most-remembered " that were looked up")}))))))

;; --- networks

(defn- interfaces
  "Returns the names of network interfaces by index.

  They are in the network namespace of the thread. /sys/class/net may have other interfaces: it
  shows the namespace in which sysfs was mounted."
  []
  (into {}
        (for [name (call/interface-names)
              :let [index (call/interface-index name)]
              :when (pos? (long index))]
          [index name])))

;; --- users

(defn- accounts
  "Returns the names in /etc/passwd or /etc/group by number."
  [file]
  (into {}
        (keep (fn [line]
                (let [[name _ id] (str/split line #":")]
                  (when-let [id (some-> id parse-long)] [id name]))))
        (reverse (lines file)))) ; the first of several lines of a number counts

;; --- cgroups

(defn- cgroup-resolver []
  (let [known (delay (try (procfs/cgroups) (catch IOException _ {:paths {} :complete true})))]
    (fn [id]
      (let [{:keys [paths] all? :complete} @known]
        (if-let [path (get paths id)]
          {:name path}
          {:missing (if all? "no such cgroup" (str "not one of the first "
                                                   procfs/most-cgroups " cgroups"))})))))

;; --- processes

(defn- command [pid]
  (if (= 0 pid)
    {:name "idle"}
    (try
      {:name (procfs/command pid)}
      (catch IOException _ {:missing "no such process"}))))

;; --- enums

(defn- values-of [type]
  (when type
    (:values (node/node type nil []))))

(defn enum-in
  "Returns the names and numbers of an enum of a BTF object, or nil.

  `name` is the name of the enum, of a typedef, or of one of its values: most flags of the kernel
  are in enums without a name.

      (enum-in b \"bpf_map_type\") ;=> {:BPF_MAP_TYPE_UNSPEC 0, …}"
  [b name]
  (or (try
        (values-of (btf/type-named b name))
        (catch ExceptionInfo _ nil))
      (let [n (long (blob/type-count b))]
        (loop [id 1]
          (when (<= id n)
            (or (when (#{:enum :enum64} (blob/kind b id))
                  (let [{:keys [values]} (blob/record b id)]
                    (when (some #(= name (first %)) values)
                      (into {} (map (fn [[name value]] [(keyword name) value])) values))))
                (recur (inc id))))))))

(defn- kernel-enum []
  (let [kernel (delay (try (kernel-btf/kernel) (catch ExceptionInfo _ nil)))]
    (memoize (fn [name] (some-> @kernel (enum-in name))))))

;; --- all of them

(defn resolvers
  "Returns the functions that name numbers of this host, by what the numbers are.

  Nothing is read before one of them is called.

      (((resolvers) :interface) 1) ;=> {:name \"lo\"}"
  []
  {:interface (from-table "no such interface" interfaces)
   :user (from-table "no such user" #(accounts "/etc/passwd"))
   :group (from-table "no such group" #(accounts "/etc/group"))
   :cgroup (cgroup-resolver)
   :command (remembered command)
   :syscall (fn [n]
              (let [text (syscalls/syscall-name n)]
                (if (str/starts-with? text "syscall_")
                  {:missing "no such system call"}
                  {:name text})))
   :errno (fn [n]
            (if-let [text (when (<= 1 n 4095) (Errno/name (int n)))]
              {:name text}
              {:missing "no such errno"}))
   :clock-offset (memoize clock/offset)
   :enum (kernel-enum)
   :kernel-symbol (symbols/kernel-resolver)
   :user-symbol (remembered (symbols/user-resolver))
   :build-id-symbol (remembered (symbols/build-id-resolver))
   :elf-files symbols/files-at
   :file-symbol (remembered (symbols/file-resolver))})
