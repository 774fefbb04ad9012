(ns bpfmap.hints-test
  "Tries the hints of `bpfmap.impl.errno` on the running kernel: each row is provoked, what it
  recommends is done and succeeds, and what it states as a fact is looked up. A row that nothing
  here can provoke is listed with the reason; any other fails the test."
  (:require [bpfmap.core :as bpf]
            [bpfmap.events :as events]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.errno :as errno]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.link :as kernel.link]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.open-object :as open-object]
            [bpfmap.linux :as linux]
            [bpfmap.memory :as mem]
            [bpfmap.objects :as objects]
            [bpfmap.prog :as prog]
            [bpfmap.programs :as programs]
            [bpfmap.since :as since]
            [clojure.java.io :as io]
            [clojure.set :as set]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (bpfmap.sys Abi)
           (java.io Closeable)
           (java.lang ProcessHandle)
           (java.lang.foreign Arena ValueLayout)
           (java.nio.file Files Path)
           (java.nio.file.attribute FileAttribute PosixFilePermissions)))

(set! *warn-on-reflection* true)

;; --- which row explained

(def ^:private rows (mapv :row @#'errno/explanations))

(def ^:private ^:dynamic *explained*
  "An atom with [row hint] of all that was explained, the latest last."
  nil)

(defn- recording [f]
  (let [explained (atom [])
        explain errno/explain]
    (with-redefs [errno/explain (fn [code facts]
                                  (let [explanation (explain code facts)]
                                    (swap! explained conj
                                           [(:row (#'errno/explaining-row code facts))
                                            (:bpfmap/hint explanation)])
                                    explanation))]
      (binding [*explained* explained]
        (f)))))

(def ^:private ^:dynamic *row* nil)

(defn- refused
  "Calls f, which the kernel has to refuse for the reason of the row that is tried; returns the
  hint."
  [f]
  (let [{:keys [message] :bpfmap/keys [hint]} (fixture/caught f)]
    (is (= *row* (first (last (filter #(= hint (second %)) @*explained*)))) message)
    (is (not (str/includes? (str message) "please report")))
    (str hint)))

(defmacro ^:private refusal
  "The hint of the refusal of body, by the row that is tried."
  [& body]
  `(refused (fn [] ~@body)))

(defmacro ^:private works
  "Asserts that body succeeds, and closes the objects that it opens."
  [& body]
  `(let [result# (try (do ~@body) (catch Throwable e# e#))]
     (is (not (instance? Throwable result#)) (str "what the hint recommends fails: " result#))
     (when (and (instance? Closeable result#)) (.close ^Closeable result#))))

(defmacro ^:private says
  "The hint has the words."
  [hint & words]
  `(doseq [w# [~@words]] (is (str/includes? ~hint (str w#)))))

;; --- refused calls

(defn- create ^Closeable [spec] (bpf/create spec))

(defn- hash-map-of
  ^Closeable [n]
  (create {:name "t_hints" :type :hash :key :u32 :value :u64 :max-entries n}))

(defn- id-of [m] (:id (bpf/info m)))

(defn- program
  (^Closeable [type] (program type {}))
  (^Closeable [type more] (prog/load (merge {:type type :insns [[:mov64 :r0 0] [:exit]]} more))))

(defn- mode! [path mode]
  (Files/setPosixFilePermissions (.toPath (io/file path)) (PosixFilePermissions/fromString mode)))

(defn- shell
  "Runs a command, which has to succeed."
  [& words]
  (let [{:keys [exit err] :as ran} (fixture/run words)]
    (is (= 0 exit) err)
    ran))

(defn- with-directory [f]
  (let [dir (fixture/temporary-directory)]
    (try (f (str dir))
         (finally (.delete dir)))))

(defn- with-mount
  "Calls f with a directory on which a file system of a type is mounted with options."
  [type options f]
  (with-directory
    (fn [dir]
      (shell "mount" "-t" type "-o" options type dir)
      (try (f dir)
           (finally (fixture/run ["umount" "-l" dir]))))))

(defn- with-limit
  "Calls f while a limit of this process, by its number, is soft at a value."
  [resource value f]
  (with-open [arena (Arena/ofConfined)]
    (let [limits (.allocate arena 16 8) ; struct rlimit64: soft, hard
          ask (fn [new old] (assert (= 0 (fixture/syscall "prlimit64" 0 resource new old))))]
      (ask 0 (.address limits))
      (let [before (.get limits ValueLayout/JAVA_LONG 0)
            soft! (fn [x] (.set limits ValueLayout/JAVA_LONG 0 (long x)) (ask (.address limits) 0))]
        (try
          (soft! value)
          (f)
          (finally (soft! before)))))))

(def ^:private this-pid (.pid (ProcessHandle/current)))

(defn- with-other-thread
  "Calls f with the number of a thread of this process that does not lead it."
  [f]
  (let [ready (promise)
        done (promise)
        thread (fixture/thread #(do (deliver ready (linux/call "gettid")) @done))]
    (try (f (deref ready fixture/patience nil))
         (finally (deliver done true) (fixture/join thread)))))

(defn- storage ^Closeable [type]
  (create {:type type :value :u64 :flags #{:no-prealloc}}))

(defn- dead-pid []
  (let [process (.start (ProcessBuilder. ["true"]))]
    (.waitFor process)
    (.pid process)))

(def ^:private lacking-types
  "Map types that this kernel lacks, with specs."
  (delay (filterv #(false? (:supported (feature/map-type (:type %))))
                  [{:type :rhash :key :u32 :value :u32 :max-entries 4 :flags #{:no-prealloc}}
                   {:type :insn-array :max-entries 4}
                   {:type :arena :max-entries 1 :flags #{:mmapable}}
                   {:type :cgrp-storage :value :u32 :flags #{:no-prealloc}}
                   {:type :inode-storage :value :u32 :flags #{:no-prealloc}}])))

(defn- struct-value [name ssthresh cong-avoid undo-cwnd]
  {:data {:name name :ssthresh ssthresh :cong_avoid cong-avoid :undo_cwnd undo-cwnd}})

(defn- with-struct-ops
  "Calls f with a function that makes a STRUCT_OPS map with flags, and one that makes a value for
  it by its name's suffix."
  [f]
  (let [{:keys [id members]} (programs/struct-ops-type "tcp_congestion_ops")
        op (fn [member n] (prog/load {:type :struct-ops :name member :insns [[:mov64 :r0 n] [:exit]]
                                      :attach-btf-id id
                                      :expected-attach-type (:index (members member))}))]
    (with-open [ssthresh ^Closeable (op "ssthresh" 2)
                cong-avoid ^Closeable (op "cong_avoid" 0)
                undo-cwnd ^Closeable (op "undo_cwnd" 10)]
      (f (fn [flags]
           (create {:name "t_cc" :type :struct-ops :struct-ops "tcp_congestion_ops" :flags flags}))
         (fn [suffix]
           (struct-value (str "hints" suffix "_" (mod this-pid 10000000)) ssthresh cong-avoid
                         undo-cwnd))))))

(def ^:private has-struct-ops? (delay (some? (programs/struct-ops-type "tcp_congestion_ops"))))

;; --- the trials

(def ^:private trials
  "What provokes each row, and does what its hint says: a function by the row's name."
  {:thread-without-pidfd
   (fn []
     (linux/on-a-kernel-that-refuses
      [{:call Abi/SYS_PIDFD_OPEN :arguments {1 0200} :errno 22}] ; as kernels before 6.9
      (bound-fn []
        (with-other-thread
          (fn [tid]
            (with-open [m (storage :task-storage)]
              (says (refusal (bpf/put! m {:tid tid} 1)) "thread " tid
                "{:pid n} is the first thread")
              (works (bpf/put! m {:pid this-pid} 1))))))))

   :thread-as-process
   (fn []
     (with-other-thread
       (fn [tid]
         (with-open [m (storage :task-storage)]
           (says (refusal (bpf/put! m {:pid tid} 1)) "a thread is {:tid n}")
           (works (bpf/put! m {:tid tid} 1))))))

   :reference-gone
   (fn []
     (with-open [m (storage :task-storage)]
       (let [pid (dead-pid)]
         (says (refusal (bpf/put! m {:pid pid} 1)) "process " pid " does not exist")
         (is (not (.exists (io/file (str "/proc/" pid)))))))
     (with-open [m (create {:type :cgroup-array :max-entries 2})
                 group (objects/cgroup)]
       (says (refusal (bpf/put! m 0 (str (:path group) "-none"))) (str (:path group) "-none"))
       (works (bpf/put! m 0 (:path group)))))

   :reference-number-closed
   (fn []
     (says (refusal (bpf/open {:fd 100000})) "descriptor 100000 in this process")
     (is (not (.exists (io/file "/proc/self/fd/100000"))))
     (with-open [m (hash-map-of 1)]
       (says (refusal (prog/open {:fd 100000})) "descriptor 100000")))

   :reference-denied
   (fn []
     (with-open [inner (create {:type :array :value :u32 :max-entries 1})
                 outer (create {:type :array-of-maps :max-entries 2
                                :inner-map {:type :array :value :u32 :max-entries 1}})
                 processes (storage :task-storage)
                 groups (create {:type :cgroup-array :max-entries 2})
                 group (objects/cgroup)
                 other (objects/others-process)]
       (testing "an id requires CAP_SYS_ADMIN"
         (let [put #(bpf/put! outer 0 {:map-id (id-of inner)})]
           (says (fixture/unprivileged #(refused put)) "an id requires CAP_SYS_ADMIN")
           (fixture/unprivileged ["CAP_SYS_ADMIN"] #(works (do (put) nil)))))
       (testing "a path the permission of its file mode"
         (let [put #(bpf/put! groups 0 (:path group))]
           (mode! (:path group) "rwx------")
           (says (fixture/unprivileged #(refused put)) "a path the permission of its file mode")
           (mode! (:path group) "rwxr-xr-x")
           (fixture/unprivileged #(works (do (put) nil)))))
       (testing "a descriptor of another process the right to trace it"
         (let [put #(bpf/put! groups 1 {:pid (:pid other) :fd 0})]
           (says (fixture/unprivileged #(refused put)) "the right to trace it")
           ;; It may be had now; that it is /dev/null is another matter.
           (let
            [{:bpfmap/keys [error]} (fixture/unprivileged
                                     ["CAP_SYS_PTRACE"] #(fixture/caught put))]
             (is (= :invalid-value error)))))))

   :perf-event-denied
   (fn []
     (with-open [m (create {:type :perf-event-array :max-entries 1})]
       (says (fixture/unprivileged ["CAP_BPF"] #(refused (fn [] (events/reader m))))
             "CAP_PERFMON")))

   :perf-memory-denied
   (fn []
     (with-open [m (create {:type :perf-event-array :max-entries 1})]
       ;; CAP_SYS_ADMIN: for kernels of Debian
       (says (fixture/unprivileged ["CAP_BPF" "CAP_PERFMON" "CAP_SYS_ADMIN"]
                                   #(refused (fn [] (events/reader m {:pages 0x8000}))))
             "CAP_IPC_LOCK")))

   :perf-memory
   (fn []
     (with-open [m (create {:type :perf-event-array :max-entries 1})]
       (says (refused #(events/reader m {:pages 0x400000})) "fewer :pages")))

   :frozen
   (fn []
     (with-open [m (create {:type :hash :key :u32 :value :u64 :max-entries 2 :contents {1 1}
                            :freeze true})
                 again ^Closeable (bpf/open (id-of m))]
       (doseq [m [m again]
               write [#(bpf/put! m 1 2) #(bpf/delete! m 1) #(bpf/take! m 1)
                      #(bpf/put-all! m {1 2})]]
         (says (refused write) "frozen"))
       (is (= {1 1} (into {} again)))))

   :pin-off-bpffs
   (fn []
     (with-directory
       (fn [dir]
         (with-open [m (hash-map-of 1)]
           (let [hint (refusal (bpf/pin! m (str dir "/x")))]
             (says hint (str dir "/x is not on a BPF file system") "mount -t bpf bpf DIRECTORY")
             (try
               (apply shell
                      (str/split (str/replace (second (re-find #"`(.*)`" hint)) "DIRECTORY" dir)
                                 #" "))
               (works (do (bpf/pin! m (str dir "/x")) (bpf/unpin! m)))
               (finally (fixture/run ["umount" "-l" dir]))))))))

   :pin-on-sysfs
   (fn []
     (with-open [m (hash-map-of 1)]
       (says (refusal (bpf/pin! m "/proc/t_hints")) "/proc/t_hints is not on a BPF file system")))

   :open-off-bpffs
   (fn []
     (with-open [file (objects/file)
                 m (hash-map-of 1)]
       (says (refusal (bpf/open (:path file))) (str (:path file) " is not on a BPF file system"))
       (says (refusal (prog/open (:path file))) "it cannot be a pin")
       (is (not= "bpf_fs" (str/trim (:out (shell "stat" "-f" "-c" "%T" (:path file))))))))

   :address-taken
   (fn []
     (let [spec {:type :arena :max-entries 1 :flags #{:mmapable}}
           at 0x7b0000000000]
       (with-open [m (create (assoc spec :map-extra at))
                   twin ^Closeable (bpf/clone m)
                   elsewhere (create (assoc spec :map-extra (+ at 0x100000000)))]
         (with-open [memory ^Closeable (bpf/memory m)]
           (says (refusal (bpf/memory twin)) "use that handle's memory" "another :map-extra")
           (works (do (memory 0) nil))
           (works (bpf/memory elsewhere))))))

   :arena-elsewhere
   (fn []
     (let [spec {:type :arena :max-entries 1 :flags #{:mmapable}}
           in-another-process (fn [m]
                                (let [code `(do (require '[bpfmap.core :as ~'bpf])
                                                (print
                                                 (try ((~'bpf/memory (~'bpf/open ~(id-of m))) 0)
                                                      (catch Exception ~'e
                                                        (:bpfmap/hint (ex-data ~'e)))))
                                                (flush))
                                      ran (fixture/run (fixture/java "-e" (pr-str code)))]
                                  (last (str/split-lines (:out ran)))))]
       (with-open [m (create spec)
                   twin ^Closeable (bpf/clone m)
                   memory ^Closeable (bpf/memory m)]
         (says (refusal (bpf/memory twin)) "create the arena with the address as :map-extra")
         (with-open [placed (create (assoc spec :map-extra 0x7b2000000000))
                     memory ^Closeable (bpf/memory placed)]
           (is (= "0" (in-another-process placed)) "all can map it")))))

   :memory-of-kernel-fields
   (fn []
     (let [spec {:type :array :max-entries 1 :flags #{:mmapable}}]
       (with-open [m (create (assoc spec :value [:struct [:lock :spin-lock] [:n :u32]]))
                   without (create (assoc spec :value [:struct [:lock :u32] [:n :u32]]))]
         (says (refusal (bpf/memory m)) "fields that it owns, such as a spin lock or a timer")
         (works (bpf/memory without)))))

   :address-space-full
   (fn []
     (with-open [m (create {:type :arena :max-entries 0x100000 :flags #{:mmapable}})]
       (says (with-limit 9
               (* 1024 (+ 2000000 (long (fixture/status "VmSize"))))
               #(refusal (bpf/memory m))) "ulimit -v")
       (works (bpf/memory m))))

   :capabilities-missing
   (fn []
     (with-open [m (hash-map-of 1)
                 p (program :raw-tracepoint)]
       (let [{:keys [btf-id] :as info} (bpf/info m)
             program-types (filter #(:supported (feature/program-type %))
                                   (remove #{:ext :lsm} (keys prog/types)))]
         (doseq [[what f] (concat
                           {"open" #(bpf/open (:id info))
                            "open a program" #(prog/open (:id (prog/info p)))
                            "list" #(first (host/maps))
                            "list programs" #(first (host/programs))
                            "btf-by-id" #(host/btf-by-id btf-id)
                            "load-btf" #(host/load-btf [:u32])}
                           (for [spec [{:type :hash :key :u32 :value :u64 :max-entries 1}
                                       {:type :array :value :u64 :max-entries 1}
                                       {:type :queue :value :u64 :max-entries 1}
                                       {:type :lpm-trie :key [:prefix :ipv4] :value :u64
                                        :max-entries 1 :flags #{:no-prealloc}}
                                       {:type :task-storage :value :u64 :flags #{:no-prealloc}}
                                       {:type :sk-storage :value :u64 :flags #{:no-prealloc}}
                                       {:type :array-of-maps :max-entries 1
                                        :inner-map {:type :array :value :u32 :max-entries 1}}
                                       {:type :sockhash :key :u32 :max-entries 1}
                                       {:type :ringbuf :max-entries 4096}
                                       {:type :prog-array :max-entries 1}
                                       {:type :stack-trace :max-entries 1}
                                       {:type :devmap :max-entries 1}
                                       {:type :devmap-hash :max-entries 1} {:type :cpumap}
                                       {:type :xskmap :max-entries 1}
                                       {:type :sockmap :max-entries 1}
                                       {:type :reuseport-sockarray :max-entries 1}
                                       {:type :cgroup-array :max-entries 1}]]
                             [(str "create " (:type spec)) #(bpf/create spec)])
                           (for [type program-types]
                             [(str "load " type) #(program type)]))]
           (testing what
             (let [hint (fixture/unprivileged #(refused f))
                   needed (re-seq #"CAP_\w+" (first (str/split hint #";")))
                   again (fixture/unprivileged needed
                                               (bound-fn [] (try (f) (catch Exception e e))))]
               (is (seq needed))
               (is (not= :permission (:bpfmap/error (ex-data again)))
                   "what the hint asks for is enough")
               (is (not= :EPERM (:bpfmap/errno (ex-data again))) "what the hint asks for is enough")
               (when (instance? Closeable again) (.close ^Closeable again))
               (doseq [one needed :when (and (next needed) (not= "CAP_SYS_ADMIN" one))]
                 (is (= :EPERM
                        (:bpfmap/errno
                         (fixture/unprivileged (remove #{one} needed) #(fixture/caught f))))
                     (str "each of it is needed: " one)))))))))

   :unpin-denied
   (fn []
     (let [path (fixture/new-pin)]
       (shell "chmod" "1777" (fixture/bpffs)) ; as the kernel makes it; another test may change it
       (with-open [m (hash-map-of 1)]
         (bpf/pin! m path)
         (mode! path "rw-rw-rw-")
         (says (fixture/unprivileged #(with-open [again ^Closeable (bpf/open path)]
                                        (refusal (bpf/unpin! again)))) path)
         (says (fixture/unprivileged #(with-open [again ^Closeable (bpf/open path)]
                                        (refusal (bpf/move-pin! again (str path "m"))))) path)
         (is (str/includes? (:out (shell "stat" "-c" "%A %u" (fixture/bpffs))) "t")
             "the directory is sticky")
         (shell "chown" "65534" path)
         (works (fixture/unprivileged #(with-open [again ^Closeable (bpf/open path)]
                                         (bpf/unpin! again)
                                         nil))))))

   :dotted-name
   (fn []
     (with-open [m (hash-map-of 1)]
       (doseq [path (map #(str (fixture/bpffs) %) ["/a.b/m" "/a.b/c/m" "/m.x"])]
         (says (refusal (bpf/open path)) "the BPF file system rejects dots")
         (when-not (str/ends-with? path ".x") ; these are rejected before the kernel is called
           (says (refusal (bpf/pin! m path)) "the BPF file system rejects dots"))))
     (let [dir (str (fixture/temporary-directory) "/with.dot")]
       (io/make-parents (str dir "/x"))
       (shell "mount" "-t" "bpf" "bpf" dir)
       (try
         (with-open [m (hash-map-of 1)]
           (bpf/pin! m (str dir "/m"))
           (works (bpf/open (str dir "/m")))
           (is (= :not-found (:bpfmap/error (fixture/error-of (bpf/open (str dir "/n")))))))
         (finally (shell "umount" dir)))))

   :opens-directory
   (fn []
     (says (refusal (bpf/open (fixture/bpffs))) "is a directory")
     (says (refusal (prog/open (fixture/bpffs))) "is a directory"))

   :opens-kernel-file
   (fn []
     (let [path (fixture/new-pin)]
       (with-open [m (hash-map-of 1)]
         (bpf/pin! m path)
         ;; BPF_OBJ_GET, as a security module does
         (says (linux/on-a-kernel-that-refuses [{:arguments {0 7} :errno 13}]
                                               (bound-fn [] (refusal (bpf/open path))))
           "the file modes allow this" "or a security module denies it")
         (works (bpf/open path))
         (bpf/unpin! m))))

   :nothing-behind
   (fn []
     (let [path (fixture/new-pin)]
       (with-open [m (hash-map-of 1)]
         (bpf/pin! m path)
         ;; BPF_OBJ_GET of maps.debug was seen to answer so, where the kernel has not loaded its
         ;; iterators.
         (says (linux/on-a-kernel-that-refuses [{:arguments {0 7} :errno 2}]
                                               (bound-fn [] (refusal (bpf/open path))))
           (str path " exists, but it is not a pin") "such as maps.debug")
         (is (.exists (io/file path)))
         (bpf/unpin! m))))

   :path-denied
   (fn []
     (let [path (fixture/new-pin)]
       (with-open [m (hash-map-of 1)]
         (bpf/pin! m path)
         (mode! path "rw-------")
         (if (or (since/here? [:kernel :bpf-of-the-unprivileged])
                 (= 0 (procfs/unprivileged-bpf-disabled)))
           (do (says (fixture/unprivileged #(refusal (bpf/open path)))
                 (str "the file mode of " path))
               (mode! path "rw-rw-rw-")
               (works (fixture/unprivileged #(bpf/open path)))
               (testing "a directory above it"
                 (let [dir (fixture/new-pin)]
                   (.mkdir (io/file dir))
                   (bpf/pin! m (str dir "/x"))
                   (mode! (str dir "/x") "rw-rw-rw-")
                   (mode! dir "rwx------")
                   (says (fixture/unprivileged #(refusal (bpf/open (str dir "/x"))))
                     "or of a directory above it")
                   (mode! dir "rwxr-xr-x")
                   (works (fixture/unprivileged #(bpf/open (str dir "/x"))))
                   (bpf/unpin! m)
                   (.delete (io/file dir)))))
           ;; There no mode is looked at.
           (binding [*row* :unprivileged-bpf-disabled]
             (mode! path "rw-rw-rw-")
             (says (fixture/unprivileged #(refusal (bpf/open path)))
               "kernel.unprivileged_bpf_disabled")
             (works (bpf/open path)))))))

   :verifier-denied
   (fn []
     (let [bad {:type :socket-filter :insns [[:exit]]}
           hint (refusal (prog/load bad))]
       (says hint "the end of its log")
       (is (re-find #"R0 !read_ok" (:bpfmap/log (fixture/caught #(prog/load bad)))))
       (works (prog/load (update bad :insns #(into [[:mov64 :r0 0]] %))))))

   :security-module
   (fn []
     (says (linux/on-a-kernel-that-refuses [{:arguments {0 Abi/BPF_MAP_CREATE} :errno 1}]
                                           (bound-fn [] (refusal (hash-map-of 1))))
       "the process has the capabilities" "a seccomp filter"))

   :path-missing
   (fn []
     (let [path (fixture/new-pin)]
       (with-open [m (hash-map-of 1)]
         (says (refusal (bpf/open path)) (str "the file " path " does not exist"))
         (bpf/pin! m path)
         (works (bpf/open path))
         (bpf/unpin! m)
         (says (refusal (bpf/pin! m (str path "/x")))
           (str "the directory of " path "/x does not exist"))
         (.mkdir (io/file path))
         (works (do (bpf/pin! m (str path "/x")) (bpf/unpin! m) nil))
         (.delete (io/file path)))))

   :pins-gone
   (fn []
     (let [path (.toPath (io/file (fixture/new-pin)))]
       (Files/createSymbolicLink path (Path/of (str path "-none") (make-array String 0))
                                 (make-array FileAttribute 0))
       (try
         (reset! *explained* [])
         (host/pins (fixture/bpffs))
         (is (or (empty? @*explained*) (some #{:pins-gone} (map first @*explained*))))
         (finally (Files/delete path)))))

   :id-gone
   (fn []
     (let [id (with-open [m (hash-map-of 1)] (id-of m))]
       ;; the kernel frees it a little later
       (is (fixture/eventually #(not-any? (comp #{id} :id) (host/maps))))
       (says (refusal (bpf/open id)) "no map has that id"))
     (says (refusal (prog/open 0x7ffffff0)) "no program has that id"))

   :btf-gone
   (fn [] (says (refusal (host/btf-by-id 0x7ffffff0)) "no BTF object has that id"))

   :pin-exists
   (fn []
     (let [path (fixture/new-pin)]
       (with-open [m (hash-map-of 1)
                   other (hash-map-of 1)]
         (bpf/pin! m path)
         (says (refusal (bpf/pin! other path)) "unpin it, or pin somewhere else")
         (works (do (bpf/pin! other (str path "b")) (bpf/unpin! other) nil))
         (bpf/unpin! m)
         (works (do (bpf/pin! other path) nil))
         (bpf/pin! m (str path "b"))
         (says (refusal (bpf/move-pin! m path)) "exists already")
         (bpf/unpin! other)
         (works (do (bpf/move-pin! m path) (bpf/unpin! m) nil)))))

   :pin-across-file-systems
   (fn []
     (with-mount "bpf" "mode=0700"
       (fn [dir]
         (let [path (fixture/new-pin)]
           (with-open [m (hash-map-of 1)]
             (bpf/pin! m path)
             (says (refusal (bpf/move-pin! m (str dir "/x")))
               "pin! the map at the new path and unpin! it at the old one")
             (works (do (bpf/pin! m (str dir "/x")) (bpf/unpin! m path) nil))
             (is (= [(str dir "/x")] (bpf/pinned-paths m)))
             (bpf/unpin! m))))))

   :queue-full
   (fn []
     (doseq [type [:queue :stack]]
       (with-open [m (create {:type type :value :u32 :max-entries 2})]
         (bpf/push! m 1)
         (bpf/push! m 2)
         (says (refusal (bpf/push! m 3)) "the map is full with 2 values")
         (works (do (bpf/push! m 3 {:overwrite true}) nil))
         (bpf/pop! m)
         (works (do (bpf/push! m 3) nil)))))

   :index-out-of-range
   (fn []
     (doseq [spec [{:type :array :value :u32 :max-entries 4}
                   {:type :percpu-array :value :u32 :max-entries 4}]
             write [bpf/put! bpf/replace!]]
       (with-open [m (create spec)]
         (let [value (if (= :percpu-array (:type spec))
                       (vec (repeat (count (feature/possible-cpus)) 1))
                       1)]
           (says (refusal (write m 4 value)) "from 0 to 3")
           (works (do (write m 3 value) nil))))))

   :reference-index-out-of-range
   (fn []
     (with-open [m (create {:type :prog-array :max-entries 4})
                 p (program :socket-filter)]
       (says (refusal (bpf/put! m 4 p)) "from 0 to 3")
       (works (do (bpf/put! m 3 p) nil))))

   :map-full
   (fn []
     (doseq [spec [{:type :hash :key :u32 :value :u64 :flags #{:no-prealloc}}
                   {:type :hash :key :u32 :value :u64}
                   {:type :lpm-trie :key :u64 :value :u64 :flags #{:no-prealloc}}]
             :let [ks (if (= :lpm-trie (:type spec)) ["a" "b"] [1 2])
                   spec (cond-> spec (= :lpm-trie (:type spec)) (assoc :key [:prefix :ipv4]))
                   [a b] (if (= :lpm-trie (:type spec)) ["10.0.0.0/8" "11.0.0.0/8"] ks)]]
       (with-open [m (create (assoc spec :max-entries 1))
                   larger (create (assoc spec :max-entries 2))]
         (bpf/put! m a 1)
         (bpf/put! larger a 1)
         (says (refusal (bpf/put! m b 1)) "the map is full with 1 entry")
         (says (refusal (bpf/put-all! m {b 1})) "delete some, or create it with more :max-entries")
         (works (do (bpf/put! larger b 1) nil))
         (bpf/delete! m a)
         (works (do (bpf/put! m b 1) nil)))))

   :struct-registered
   (fn []
     (with-struct-ops
       (fn [map-of value-of]
         (with-open [m ^Closeable (map-of #{})
                     other ^Closeable (map-of #{})]
           (bpf/put! m 0 (value-of "a"))
           (try
             (says (refusal (bpf/put! m 0 (value-of "b"))) "create another")
             (works (do (bpf/put! other 0 (value-of "b")) nil))
             (finally (bpf/delete! m 0) (bpf/delete! other 0)))))))

   :struct-name-taken
   (fn []
     (with-struct-ops
       (fn [map-of value-of]
         (with-open [m ^Closeable (map-of #{})
                     other ^Closeable (map-of #{})
                     third ^Closeable (map-of #{})]
           (bpf/put! m 0 (value-of "a"))
           (try
             (says (refusal (bpf/put! other 0 (value-of "a")))
               "use another name, or delete! the other")
             (works (do (bpf/put! other 0 (value-of "b")) nil))
             (finally (bpf/delete! m 0) (bpf/delete! other 0)))
           (works (do (bpf/put! third 0 (value-of "a")) nil))
           (bpf/delete! third 0)))))

   :struct-linked
   (fn []
     (with-struct-ops
       (fn [map-of value-of]
         (with-open [m ^Closeable (map-of #{:link})]
           (bpf/put! m 0 (value-of "l"))
           (says (refusal (bpf/delete! m 0)) "or the map if it has none")))))

   :key-descriptor-wrong
   (fn []
     (with-open [m (storage :task-storage)
                 file (objects/file)
                 process (objects/this-process)]
       (says (refusal (bpf/put! m {:fd (:fd file)} 1)) "the descriptor must be a pidfd")
       (works (do (bpf/put! m {:fd (:fd process)} 1) nil)))
     (with-open [m (storage :sk-storage)
                 file (objects/file)
                 socket (objects/udp-socket)]
       (says (refusal (bpf/put! m {:fd (:fd file)} 1)) "of another kind")
       (works (do (bpf/put! m {:fd (:fd socket)} 1) nil))))

   :value-descriptor-wrong
   (fn []
     (with-open [m (create {:type :cgroup-array :max-entries 2})
                 file (objects/file)
                 group (objects/cgroup)]
       (says (refusal (bpf/put! m 0 {:fd (:fd file)})) "must be a cgroup of a cgroup2 hierarchy")
       (works (do (bpf/put! m 0 {:fd (:fd group)}) nil))))

   :cpu-program-denied
   (fn []
     (with-open [m (create {:type :cpumap :value [:struct [:qsize :u32] [:program :u32]]})
                 wrong (program :xdp)
                 right (program :xdp {:expected-attach-type :xdp-cpumap})]
       (says (refusal (bpf/put! m 0 {:qsize 16 :program wrong})) "an XDP program made for CPU maps")
       (works (do (bpf/put! m 0 {:qsize 16 :program right}) nil))))

   :cpu-queue-too-long
   (fn []
     (with-open [m (create {:type :cpumap})]
       (says (refusal (bpf/put! m 0 16385)) "at most 16384 places")
       (works (do (bpf/put! m 0 16384) nil))))

   :cpu-missing
   (fn []
     ;; As of another program: bpfmap makes no map with more entries than there are CPUs.
     (let [cpus (count (feature/possible-cpus))
           fd (kernel.map/create {:type :cpumap :key-size 4 :value-size 4 :max-entries (inc cpus)
                                  :flags #{} :name nil}
                                 {:op :create})]
       (try
         (with-open [m ^Closeable (bpf/open {:map-id (kernel.map/id-of fd {:op :open})})]
           (says (refusal (bpf/put! m cpus 8)) "the number of a possible CPU")
           (works (do (bpf/put! m (dec cpus) 8) nil)))
         (finally (call/close fd)))))

   :socket-stored-already
   (fn []
     (with-open [m (create {:type :reuseport-sockarray :max-entries 2})
                 other (create {:type :reuseport-sockarray :max-entries 2})
                 socket (objects/reuseport-socket :udp)]
       (bpf/put! m 0 {:fd (:fd socket)})
       (says (refusal (bpf/put! other 0 {:fd (:fd socket)}))
         "is already in this map or another of its kind")
       (bpf/delete! m 0)
       (works (do (bpf/put! other 0 {:fd (:fd socket)}) nil))))

   :value-object-denied
   (fn []
     (with-open [m (create {:type :sockmap :max-entries 2})
                 bare (objects/unbound-socket)
                 bound (objects/udp-socket)
                 listening (objects/tcp-listener)
                 connected (objects/tcp-connection)]
       (says (refusal (bpf/put! m 0 {:fd (:fd bare)})) "TCP listening or established, UDP bound")
       (doseq [right [bound listening connected]]
         (works (do (bpf/put! m 0 {:fd (:fd right)}) nil))))
     (let [inner {:type :hash :key :u32 :value :u32 :max-entries 4}]
       (with-open [m (create {:type :hash-of-maps :key :u32 :max-entries 2 :inner-map inner})
                   right (create inner)]
         (doseq [change [{:type :lru-hash} {:value :u64} {:key :u64} {:flags #{:no-prealloc}}]]
           (with-open [wrong (create (merge inner change))]
             (says (refusal (bpf/put! m 1 wrong)) "type, key-size, value-size and flags")))
         (works (do (bpf/put! m 1 right) nil))
         (with-open [longer (create (assoc inner :max-entries 9))]
           (works (do (bpf/put! m 1 longer) nil)))))
     (let [inner {:type :array :value :u32 :max-entries 4}]
       (doseq [flags [#{} #{:inner-map}]
               :let [inner (assoc inner :flags flags)]]
         (with-open [m (create {:type :array-of-maps :max-entries 2 :inner-map inner})
                     longer (create (assoc inner :max-entries 9))]
           (if (seq flags)
             (works (do (bpf/put! m 1 longer) nil))
             (says (refusal (bpf/put! m 1 longer))
               "max-entries of an array unless both have the flag :inner-map")))))
     (with-open [m (create {:type :prog-array :max-entries 2})
                 first-one (program :socket-filter)
                 other (program :xdp)
                 alike (program :socket-filter)]
       (bpf/put! m 0 first-one)
       (says (refusal (bpf/put! m 1 other))
         "a program of the same type as the first program stored")
       (works (do (bpf/put! m 1 alike) nil)))
     (with-open [m (create {:type :devmap :max-entries 2})]
       (says (refusal (bpf/put! m 0 0x7ffffff0)) "the interface of that index")
       (works (do (bpf/put! m 0 1) nil))))

   :create-too-large
   (fn []
     (let [spec {:type :hash :key :u32 :max-entries 1}]
       (says (refusal (create (assoc spec :value [:bytes 0x7ffffff0])))
         "larger than this kernel allows")
       (works (create (assoc spec :value [:bytes 4096])))))

   :no-memory
   (fn []
     ;; Several TiB, which the kernel refuses before it takes a page.
     (let [spec {:type :hash :key :u32 :value [:bytes 0x100000] :max-entries 0x400000}]
       (says (refusal (create spec)) "make :max-entries or the values smaller" "with :no-prealloc")
       (works (create (assoc spec :flags #{:no-prealloc} :max-entries 0x1000)))
       (works (create (assoc spec :max-entries 4)))))

   :name-too-long
   (fn []
     (with-open [m (hash-map-of 1)]
       (let [path (fn [n] (str (fixture/bpffs) "/" (str/join (repeat n "n"))))]
         (says (refusal (bpf/pin! m (path 256))) "longer than 255 bytes")
         (works (do (bpf/pin! m (path 255)) (bpf/unpin! m) nil)))
       (says (refusal (bpf/open (str "/" (str/join (repeat 2048 "n/")))))
         "the whole path is longer than 4095")))

   :process-files
   (fn []
     (with-open [m (hash-map-of 1)]
       (let [id (id-of m)
             operations {"create" #(hash-map-of 1) "clone" #(bpf/clone m) "open" #(bpf/open id)
                         "load" #(program :socket-filter)}
             run-all (fn []
                       (mapv (fn [[what f]] [what (try (f) (catch Exception e e))]) operations))
             close-all (fn [ran]
                         (doseq [[_ x] ran :when (instance? Closeable x)] (.close ^Closeable x)))]
         (close-all (run-all)) ; all is loaded
         (try (hash-map-of 0) (catch Exception _)) ; what explains errors too
         (let [ran (with-limit 7 3 run-all)]
           (doseq [[what x] ran]
             (is (and (= :EMFILE (:bpfmap/errno (ex-data x)))
                      (str/includes? (:bpfmap/hint (ex-data x)) "ulimit -n")) what)
             (is (some #{[:process-files (:bpfmap/hint (ex-data x))]} @*explained*)))
           (close-all ran))
         (doseq [[what f] operations]
           (testing what (works (f)))))))

   :arena-mapped-before
   (fn []
     (let [spec {:type :arena :max-entries 1 :flags #{:mmapable}}]
       (with-open [m (create spec)
                   fresh (create spec)]
         (.close ^Closeable (bpf/memory m))
         (says (refusal (bpf/freeze! m))
           "before its memory is mapped for writing for the first time")
         (works (do (bpf/freeze! fresh) nil)))))

   :mapped-by-handle
   (fn []
     (with-open [m (create {:type :array :value :u64 :max-entries 1 :flags #{:mmapable}})]
       (let [memory (bpf/memory m)]
         (says (refusal (bpf/freeze! m)) "(.close (memory m))")
         (.close ^Closeable (bpf/memory m))
         (is (mem/closed? memory))
         (works (do (bpf/freeze! m) nil)))))

   :mapped-by-others
   (fn []
     (with-open [m (create {:type :array :value :u64 :max-entries 1 :flags #{:mmapable}})
                 twin ^Closeable (bpf/clone m)]
       (let [memory (bpf/memory twin)]
         (says (refusal (bpf/freeze! m)) "unmap it first" this-pid)
         (mem/close memory)
         (works (do (bpf/freeze! m) nil)))))

   :freeze-of-kernel-fields
   (fn []
     (let [spec {:type :array :max-entries 1}]
       (with-open [m (create (assoc spec :value [:struct [:lock :spin-lock] [:n :u32]]))
                   without (create (assoc spec :value [:struct [:lock :u32] [:n :u32]]))]
         (says (refusal (bpf/freeze! m)) "spin locks, timers, kptrs")
         (works (do (bpf/freeze! without) nil)))))

   :create-lacks
   (fn []
     (doseq [spec @lacking-types]
       (is (not (str/blank? (refusal (create spec)))))))

   :stack-too-deep
   (fn []
     (let [most (parse-long (str/trim (slurp "/proc/sys/kernel/perf_event_max_stack")))
           spec (fn [n] {:type :stack-trace :max-entries 2 :value [:array :u64 n]})]
       (says (refusal (create (spec (inc most)))) "kernel.perf_event_max_stack")
       (works (create (spec most)))))

   :numa-node-missing
   (fn []
     (let [spec {:type :hash :key :u32 :value :u64 :max-entries 1}
           online (parse-long (re-find #"\d+" (slurp "/sys/devices/system/node/online")))]
       (says (refusal (create (assoc spec :numa-node 63))) "may have no node 63"
         "/sys/devices/system/node/online")
       (works (create (assoc spec :numa-node online)))))

   :btf-denied
   (fn []
     (let [types (fn [n] [[:struct {:name (str/join (repeat n "n"))} [:a :u32]]])
           longest (if (since/here? [:kernel :long-names-of-types]) 512 128)]
       (says (refusal (host/load-btf (types (inc longest))))
         (str "a name is too long (" longest " characters)"))
       (works (host/load-btf (types longest)))))

   :program-denied
   (fn []
     (says (refusal (program :tracing)) "the log, if there is one, has the reason")
     (is
      (some? (:bpfmap/log (fixture/caught #(prog/load {:type :socket-filter
                                                       :insns [[:mov64 :r0 0] [:ja -1]
                                                               [:exit]]})))))
     (works (program :socket-filter)))

   :link-stays-attached
   (fn []
     (with-open [p (program :raw-tracepoint)
                 link (prog/attach-raw-tracepoint p "sys_enter")]
       (says (refusal (kernel.link/detach (open-object/descriptor link) {:op :detach!}))
         "no process and no pin has it any more")))

   :test-run-input
   (fn []
     (with-open [packets (program :socket-filter)
                 raw (program :raw-tracepoint)]
       (says (refusal (prog/test-run packets {:data (vec (repeat 13 0))}))
         "data of 14 bytes or more")
       (works (prog/test-run packets {:data (vec (repeat 14 0))}))
       (says (refusal (prog/test-run raw {:data (vec (repeat 14 0))}))
         "a context and no data for raw tracepoints")
       (works (prog/test-run raw {:context (vec (repeat 64 0))}))))

   :kernel-lacks
   (fn []
     (with-open [p (program :kprobe)]
       (says (refusal (prog/test-run p)) "this kernel does not support it")))

   :create-breaks-rule
   (fn []
     (let [spec {:type :arena :max-entries 1 :flags #{:mmapable}}]
       (says (refusal (create (assoc spec :map-extra 4097)))
         "a rule of its map type that bpfmap does not check")
       (works (create (assoc spec :map-extra 0x7b4000000000)))))

   :struct-member-denied
   (fn []
     (with-struct-ops
       (fn [map-of value-of]
         (with-open [m ^Closeable (map-of #{})]
           (says (refusal (bpf/put! m 0 (assoc-in (value-of "m") [:data :owner] 1)))
             "only some are accepted")
           (works (do (bpf/put! m 0 (value-of "m")) nil))
           (bpf/delete! m 0)))))

   :read-only-file-system
   (fn []
     (with-mount "bpf" "mode=0700"
       (fn [dir]
         (with-open [m (hash-map-of 1)]
           (shell "mount" "-o" "remount,ro" dir)
           (says (refusal (bpf/pin! m (str dir "/x"))) "mounted read-only")
           (shell "mount" "-o" "remount,rw" dir)
           (works (do (bpf/pin! m (str dir "/x")) (bpf/unpin! m) nil))))))

   :symbolic-links
   (fn []
     (with-directory
       (fn [dir]
         (let [path (Path/of (str dir "/loop") (make-array String 0))]
           (Files/createSymbolicLink path path (make-array FileAttribute 0))
           (says (refusal (bpf/open (str path))) "form a circle")
           (Files/delete path)))))})

(def ^:private not-tried
  "Rows that nothing here can provoke, with the reason."
  (merge
   (zipmap [:memory-before-5-5 :statistics-before-5-8 :detach-before-5-9 :memlock-limit
            :links-before-5-8 :long-values-before-5-15 :unprivileged-bpf-disabled
            :operation-before-its-release]
           (repeat "for older kernels than those on which the tests run by themselves"))
   (zipmap [:opened-read-only :opened-write-only :alternative]
           (repeat
            "the handle refuses the operation before the system call; the row is for unknown cases"))
   (zipmap [:element-invalid :element-missing :descriptor-wrong :invalid :missing :exists
            :is-directory :struct-not-implementable]
           (repeat
            "known cases are refused before, or explained by a row above; this row is for the rest"))
   (zipmap [:inodes-without-lsm :inodes-unknown-lsm]
           (repeat "only a kernel without the BPF LSM answers so, and most have it"))
   (zipmap [:link-being-made :busy :storage-being-changed :interrupted :lock]
           (repeat "a race of some instructions in the kernel, or a signal in them"))
   {:silent-refusal "it takes a security module that refuses programs"
    :program-lacking "bpfmap.link-test and bpfmap.impl.kernel.lacks-test try it"
    :program-too-long "the log of a long loop has a better hint, which bpfmap.object-load-test reads; the row is for a million instructions"
    :arena-too-large "where pages have 4 KiB, the spec is refused; the row is for larger ones"
    :page-denied "the row is for a memory cgroup at its limit; bpfmap.impl.memory.mapping-test has the kernel refuse in another way"
    :user-namespace "bpfmap.impl.kernel.token-test sees it without a token, and that the same works with one"
    :unprivileged "every operation of this kernel that takes a capability is in the table of capabilities"
    :xdp-socket-without-ring "some kernels take such a socket"
    :system-files "it takes the limit of the whole machine, and root is above that"
    :no-space "what the kernel has no room for is a full map, or the log of a program, which have rows of their own"
    :no-device "the devices that a map holds have a row of their own"
    :out-of-range "of what bpfmap passes on, only the queue of a CPU is refused so, which has a row of its own"
    :unknown "for errnos that nothing is known of"}))

(def ^:private needs
  "What the trials of rows take, as rows of `bpfmap.since`."
  {:thread-without-pidfd [:map-type :task-storage]
   :thread-as-process [:kernel :pidfd-of-a-thread]
   :perf-memory-denied [:kernel :locked-memory-by-cgroup]
   :reference-gone [:map-type :task-storage]
   :reference-denied [:map-type :task-storage]
   :capabilities-missing [:map-type :task-storage]
   :key-descriptor-wrong [:map-type :task-storage]
   :address-taken [:map-type :arena]
   :arena-elsewhere [:map-type :arena]
   :address-space-full [:map-type :arena]
   :arena-mapped-before [:map-type :arena]
   :create-breaks-rule [:map-type :arena]
   :struct-linked [:flag :link]
   :no-memory [:kernel :maps-of-4-gib]
   :unpin-denied [:kernel :bpf-of-the-unprivileged]
   :freeze-of-kernel-fields [:kernel :locked-maps-are-not-frozen]})

(defn- lacking
  "Why a row cannot be tried on this kernel, or nil."
  [row]
  (cond
    (and (str/starts-with? (name row) "struct-")
         (not @has-struct-ops?)) "this kernel has no congestion control by programs"
    (and (= :create-lacks row)
         (empty? @lacking-types)) "this kernel lacks no type that has a spec here"
    (and (= :numa-node-missing row)
         (not
          (.exists (io/file "/sys/devices/system/node/online")))) "this kernel has no NUMA nodes"
    (needs row) (since/lacking (needs row))))

(defn- try-row [row trial]
  (recording
   (fn []
     (binding [*row* row]
       (testing row
         (try
           (trial)
           (catch Throwable e
             (is (nil? e) (str row " " (ex-message e))))))))))

(kernel-test hints-on-this-kernel
  (testing "each hint works on this kernel"
    (doseq [[row trial] (sort-by key trials)]
      (if-let [reason (lacking row)]
        (fixture/skip! (str (name row) ": " reason))
        (try-row row trial)))))

(kernel-test trial-for-every-row
  (testing "each row has a trial or a reason for none"
    (is (apply distinct? rows))
    (is (= #{} (set/difference (set rows) (set (keys trials)) (set (keys not-tried)))))
    (is (= #{} (set/difference (into (set (keys trials)) (keys not-tried)) (set rows))))
    (is (= #{} (set/intersection (set (keys trials)) (set (keys not-tried)))))))
