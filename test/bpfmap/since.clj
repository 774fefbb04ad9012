(ns bpfmap.since
  "Since when a kernel has what a test uses, as rows, and skips that name the row that let them.

  | row                       | what is asked                                                          |
  |---------------------------|------------------------------------------------------------------------|
  | `[:map-type type]`        | `:since` of `bpfmap.impl.map-types/types`                                        |
  | `[:flag flag]`            | `:since` of `bpfmap.impl.map-types/flags`                                        |
  | `[:element-flag flag]`    | `:since` of `bpfmap.impl.map-types/element-flags`                                |
  | `[:operation type op]`    | `bpfmap.impl.map-types/since`, and the type's own                                |
  | `[:conditional type]`     | `bpfmap.feature/conditional-write`: stable releases have the fix of 6.13 |
  | `[:batch type]`           | `:batch-since` of the type's row                                        |
  | `[:long-values type]`     | `:long-values-since` of the type's row                                  |
  | `[:kernel name]`          | [[kernel]]                                                              |
  | `[:target kind]`          | `:since` of `bpfmap.impl.link.targets/kinds`                            |
  | `[:cookie kind]`, `[:order kind]` | the releases of these options in the same table                 |
  | `[:lsm name]`             | the active security modules                                             |
  | `[:jvm :c2]`              | the JVM's options: what allocates nothing needs its second compiler     |

  [[has?]] leaves out a row of a table, [[needing]] a part of a test, and `:needs` in the metadata
  of a `kernel-test`'s name all of it."
  (:require [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.link.targets :as targets]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.spec :as spec]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (com.sun.management HotSpotDiagnosticMXBean)
           (java.lang.management ManagementFactory)))

(set! *warn-on-reflection* true)

(def kernel
  "What kernels came to have and the library has no row for: the first release."
  {:vmlinux-btf-object "5.11"
   :pidfd-of-a-thread "6.9"
   :struct-ops-common "6.9" ; struct bpf_struct_ops_common_value
   :tcx-links "6.6"
   :long-names-of-types "6.1" ; KSYM_NAME_LEN is 512, and 128 before
   :bpf-of-the-unprivileged "5.19" ; with kernel.unprivileged_bpf_disabled
   :maps-of-4-gib "5.11"
   :sockmap-of-unix-sockets "5.15"
   :list-heads "6.2" ; fields that the kernel refuses where it knows them
   :timers "5.15"
   :atomic-fetch "5.12" ; atomic instructions other than an addition without its result
   :cookies-in-tracing "5.12" ; bpf_get_socket_cookie in programs of the type tracing
   :locked-memory-by-cgroup "5.11" ; and no limit of locked memory for maps, which is raised before
   :signed-enums "6.0" ; and enum64
   :targets-of-tracing "5.13" ; in the info of a link
   :links-of-perf-events "5.15"
   :info-of-perf-events "6.6"
   :kprobe-sessions "6.10"
   :uprobe-sessions "6.14"
   :lsm-cgroups "6.0"
   :attach-btf-of-programs "6.0" ; in the info of a program
   :attach-flags-of-programs "6.0" ; in BPF_PROG_QUERY, which bpftool 7 always asks for
   :programs-of-sockmaps "5.18" ; BPF_PROG_QUERY of a sockmap
   :sizes-of-per-cpu-values "6.12" ; E2BIG for more than 32 KiB, and ENOMEM before
   :locks-in-structs spec/locks-in-structs-since
   :iterators-of-one-task "6.2"
   :iterators-of-cgroups "6.1"
   :loops "5.17" ; the helper bpf_loop
   :sleeping-programs "5.14" ; of the type syscall, which can be run
   :callbacks "5.13" ; functions that are passed to helpers, and for_each_map_elem
   :verified-insns "5.16"
   :counts-of-elements "6.6" ; bpf_map_sum_elem_count
   :sizes-of-logs "5.15" ; logs of less than 128 bytes, or of more than 16 MiB
   :ends-of-logs "6.4" ; of logs that are too long
   :locked-maps-are-not-frozen "6.3"
   :floats "5.13" ; in BTF: without them, a map has no types for other processes
   :drop-reasons "5.17" ; enum skb_drop_reason
   :misses-of-kprobes "6.7" ; :recursion-misses in the info of a program
   :names-of-sections "6.9"}) ; of any printable characters in BTF, as .data.a-b

(defn- newest [versions]
  (reduce (fn [a b] (if (map-types/at-least? a b) a b)) "0" (remove nil? versions)))

(defn since
  "The first release that has what a row names; nil if it does not depend on the release."
  [[table a b]]
  (when-not (#{:lsm :jvm} table)
    (or (case table
          :map-type (:since (map-types/types a))
          :flag (:since (map-types/flags a))
          :element-flag (:since (map-types/element-flags a))
          :operation (newest [(:since (map-types/types a)) (map-types/since a b)])
          :conditional (:conditional-since (map-types/types a))
          :batch (newest [(:since (map-types/types a)) (:batch-since (map-types/types a))])
          :long-values (newest [(:since (map-types/types a))
                                (:long-values-since (map-types/types a))])
          :target (:since (targets/kinds a))
          :cookie (:cookie (targets/kinds a))
          :order (:order (targets/kinds a))
          :kernel (kernel a))
        (throw (ex-info "no such row" {:row [table a b]})))))

(def ^:private security-modules
  "The active security modules; securityfs is mounted for it where it is not. Nil where the kernel
  has none."
  (delay
    (or (call/security-modules)
        (let [dir (fixture/temporary-directory)]
          (try
            (when (zero? (long (:exit (fixture/run ["mount" "-t" "securityfs" "securityfs"
                                                    (str dir)]))))
              (try
                (set (str/split (str/trim (:out (fixture/run ["cat" (str dir "/lsm")]))) #","))
                (finally (fixture/run ["umount" (str dir)]))))
            (finally (io/delete-file dir true)))))))

(defn- c2?
  "Returns true if the JVM's options leave it the C2 compiler."
  []
  (let [^HotSpotDiagnosticMXBean bean (ManagementFactory/getPlatformMXBean HotSpotDiagnosticMXBean)]
    (and (not (str/includes? (System/getProperty "java.vm.info") "interpreted"))
         (= "4" (.getValue (.getVMOption bean "TieredStopAtLevel"))))))

(defn- lacks
  "Why this kernel lacks what a row names; nil if it has it. Inodes have storage where the BPF LSM
  is active."
  [[table a :as row]]
  (let [release (call/kernel-release)]
    (case (if (and (= [:map-type :inode-storage] row) (map-types/at-least? release (since row)))
            :inode-storage
            table)
      :inode-storage (lacks [:lsm "bpf"])
      ;; Where the kernel does not list them, it is taken to have it.
      :lsm (when-not (contains? (or @security-modules #{a}) a)
             (str "row " row ": the active security modules are "
                  (str/join ", " (sort @security-modules))))
      :jvm (when-not (c2?)
             (str "row " row
                  ": this JVM runs without the C2 compiler (-XX:TieredStopAtLevel or -Xint)"))
      :conditional (when-not (:supported (feature/conditional-write a))
                     (str "row " row " needs Linux " (since row) ", this is " release))
      (when-not (map-types/at-least? release (since row))
        (str "row " row " needs Linux " (since row) ", this is " release)))))

(defn lacking
  "Why this kernel lacks what rows name, the first of them that it lacks; nil if it has all."
  [& rows]
  (some lacks rows))

(defn here?
  "Whether this kernel has all that rows name."
  [& rows]
  (nil? (apply lacking rows)))

(def ^:private developed-on
  "The kernel on which no test may be skipped. Tests of newer features are omitted there."
  "6.18")

(defn has?
  "Whether this kernel has all that rows name. If it does not, records a skip that names the row:
  for what a test leaves out."
  [& rows]
  (let [row (first (filter lacks rows))]
    (when (and row (or (nil? (since row)) (map-types/at-least? developed-on (since row))))
      (fixture/skip! (lacks row)))
    (nil? row)))

(defmacro needing
  "Runs body if this kernel has what the rows name; else records a skip that names the row."
  [rows & body]
  `(if-let [why# (lacking ~@rows)]
     (fixture/skip! why#)
     (do ~@body)))
