(ns bpfmap.impl.errno-test
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.impl.errno :as errno]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]))

(set! *warn-on-reflection* true)

(deftest errno-names-by-code
  (testing "an errno number converts to its name"
    (are [code name] (= name (errno/errno-name code))
      1 :EPERM 7 :E2BIG 524 :ENOTSUPP 9999 9999)))

(deftest every-c-library-errno
  (testing "every errno of the C library has its name"
    (let [names (remove #{:ENOTSUPP} (filter keyword? (map errno/errno-name (range 1 600))))]
      (is (= (concat (remove #{41 58} (range 1 134)) [524])
             (filter #(keyword? (errno/errno-name %)) (range 1 600))))
      (when-let [values (fixture/c-values ["errno.h"] (map name names))]
        (is (= values
               (into {} (map (juxt (comp name errno/errno-name) identity))
                     (remove #{41 58} (range 1 134)))))))))

(deftest older-type-left-out
  (testing "explains why an older map type is missing"
    (are [words type lsms] (str/includes? (errno/left-out type lsms) words)
      "this kernel is built without it" :xskmap nil
      "built without it (CONFIG_BPF_LSM)" :inode-storage nil
      "built without it (CONFIG_BPF_LSM)" :inode-storage #{"bpf"}
      "runs without the BPF LSM: /sys/kernel/security/lsm has lockdown, yama" :inode-storage
      #{"yama" "lockdown"})))

(def ^:private ok {:release "6.18.44" :missing nil :unprivileged-bpf-disabled 2})

(deftest s10-errno-explanations
  (testing "explains an errno by missing capabilities"
    (are [code facts kind words]
         (let [{:bpfmap/keys [error hint]} (errno/explain code (merge ok facts))]
           (and (= kind error) (str/includes? hint words)))
      1 {:op :put! :access :read-only} :read-only "opened read-only"
      1 {:op :lookup :access :write-only} :write-only "opened write-only"
      1 {:op :put! :frozen true} :permission "frozen"
      1 {:op :create :missing ["CAP_BPF"]} :permission
      "create needs CAP_BPF, and kernel.unprivileged_bpf_disabled is 2"
      1 {:op :load :missing ["CAP_BPF" "CAP_PERFMON"]} :permission
      "loading a program needs CAP_BPF and CAP_PERFMON"
      1 {:op :create :user-namespace true} :permission
      "set LIBBPF_BPF_TOKEN_PATH to it, default: /sys/fs/bpf"
      1 {:op :list :user-namespace true} :permission "is in a user namespace, such as a container's"
      1 {:op :create :release "5.4.0"} :permission
      "RLIMIT_MEMLOCK, and this process is not allowed to raise it"
      1 {:op :create :release "5.11.0"} :permission "security module"
      1 {:op :pin! :path "/tmp/x" :bpffs false} :not-bpffs "/tmp/x is not on a BPF file system"
      2 {:op :pin! :path "/sys/fs/bpf/x" :bpffs false :directory true} :not-bpffs
      "mount it with `mount -t bpf bpf /sys/fs/bpf`"
      2 {:op :pin! :path "/no/x" :bpffs false :directory false} :not-found
      "the directory of /no/x does not exist"
      13 {:op :open :path "/p"} :permission "the file mode of /p"
      7 {:op :put! :type :hash :max-entries 4} :map-full "the map is full with 4 entries"
      7 {:op :put! :type :array :max-entries 4} :out-of-range "from 0 to 3"
      7 {:op :put! :type :xskmap :max-entries 4} :out-of-range "from 0 to 3"
      28 {:op :put! :type :lpm-trie :max-entries 4} :map-full "the map is full with 4 entries"
      3 {:op :put! :reference "process 7"} :not-found "process 7 does not exist (any more)"
      22 {:op :put! :reference "process 7" :object :task} :not-found
      "a thread is {:tid n}, from Linux 6.9 on"
      22 {:op :put! :reference "thread 7" :object :task :thread true :release "6.1.0"}
      :not-supported
      "thread 7 is not the first thread of its process, and a pidfd of such a thread needs Linux 6.9, this is 6.1.0"
      3 {:op :put! :reference "thread 7" :object :task :thread true :release "6.1.0"} :not-found
      "thread 7 does not exist (any more)"
      9 {:op :put! :reference "descriptor 3 of process 7"} :not-found
      "descriptor 3 of process 7 does not exist"
      1 {:op :put! :reference "descriptor 3 of process 7"} :permission
      "is not allowed to open descriptor 3 of process 7; an id requires"
      9 {:op :lookup :type :task-storage} :invalid-value "must be a pidfd"
      9 {:op :put! :type :inode-storage} :invalid-value
      "of a file; if it is, this kernel may run without the BPF LSM: mount securityfs"
      9 {:op :put! :type :inode-storage :lsms #{"lockdown" "bpf"}} :invalid-value
      "not open, or is of another kind; the descriptor must be of a file"
      9 {:op :put! :type :inode-storage :lsms #{"lockdown" "yama"}} :not-supported
      "without the BPF LSM: /sys/kernel/security/lsm has lockdown, yama; boot it with bpf in lsm="
      105 {:op :put! :type :xskmap} :incompatible "an AF_XDP socket must have a receive ring"
      524 {:op :create :type :struct-ops} :not-supported "when the first program is loaded"
      524 {:op :take! :type :stack-trace :release "6.12.4"} :not-supported
      "it needs Linux 6.18, this is 6.12.4"
      524 {:op :drain! :type :stack-trace :release "6.1.0"} :not-supported
      "it needs Linux 6.18, this is 6.1.0"
      22 {:op :list :release "4.9.0"} :not-supported "it needs Linux 4.13, this is 4.9.0"
      9 {:op :put! :type :cgroup-array} :invalid-value "a cgroup of a cgroup2 hierarchy"
      16 {:op :put! :type :sockmap} :busy "the socket is already in this map"
      22 {:op :put! :type :hash-of-maps} :incompatible
      "a map that matches the :inner-map of the spec"
      12 {:op :put! :type :cpumap} :incompatible "made for CPU maps"
      19 {:op :put! :type :cpumap :max-entries 64} :out-of-range "the number of a possible CPU"
      22 {:op :create :type :stack-trace} :invalid-spec "kernel.perf_event_max_stack"
      7 {:op :create} :invalid-spec "larger than this kernel allows"
      7 {:op :create :type :arena} :invalid-spec "at most 4 GiB"
      1 {:op :create :release "5.10.0"} :permission "RLIMIT_MEMLOCK"
      1 {:op :create :release "5.10.0" :unlimited-memlock true} :permission "a security module"
      22 {:op :load-btf :release "5.10.0"} :invalid-value "a name is too long (128 characters)"
      22 {:op :load-btf :release "6.1.0"} :invalid-value "a name is too long (512 characters)"
      1 {:op :open :path "/p" :unprivileged true :unprivileged-bpf-disabled 2 :release "5.10.0"}
      :permission "kernel.unprivileged_bpf_disabled, which is 2"
      1 {:op :open :path "/p" :unprivileged true :unprivileged-bpf-disabled 0 :release "5.10.0"}
      :permission "the file mode of /p"
      1 {:op :open :path "/p" :unprivileged true :unprivileged-bpf-disabled 2 :release "6.1.0"}
      :permission "the file mode of /p"
      7 {:op :create :type :cgroup-storage :release "6.1.0"} :invalid-spec
      "larger than this kernel allows"
      7 {:op :create :type :cgroup-storage :release "5.10.0"} :not-supported
      "longer than a page need Linux 5.15, this is 5.10.0"
      12 {:op :create :type :hash} :no-memory ":no-prealloc"
      12 {:op :create :type :array} :no-memory "make :max-entries or the values smaller"
      36 {:op :pin! :path "/p"} :invalid-value "longer than 255 bytes"
      24 {:op :create} :too-many-files "ulimit -n"
      23 {:op :create} :too-many-files "fs.file-max"
      16 {:op :freeze!} :busy "mapped writable"
      16 {:op :put!} :busy "try again"
      22 {:op :delete! :alternative "put! a zero"} :not-supported "put! a zero"
      524 {:op :take! :type :hash :release "5.10.0"} :not-supported
      "it needs Linux 5.14, this is 5.10.0"
      22 {:op :freeze! :release "4.19"} :not-supported "it needs Linux 5.2, this is 4.19"
      22 {:op :create :unsupported "no such type"} :not-supported "no such type"
      22 {:op :create} :invalid-spec "a rule of its map type that bpfmap does not check"
      17 {:op :pin! :path "/p"} :exists "/p exists already"
      2 {:op :open :path "/p"} :not-found "the file /p does not exist"
      2 {:op :pin! :path "/p/q"} :not-found "the directory of /p/q"
      2 {:op :open} :not-found "no map has that id"
      2 {:op :open :object :program} :not-found "no program has that id"
      2 {:op :pins :path "/p"} :not-found "the directory lists it"
      13 {:op :pins :path "/p"} :permission "the file mode of /p"
      11 {:op :list :object :link} :busy "being created"
      22 {:op :list :object :link :release "5.4.0"} :not-supported "from Linux 5.8 on"
      18 {:op :pin! :path "/p"} :invalid-value "only move within one BPF file system"
      4 {:op :test-run} :interrupted "a signal"
      11 {:op :put! :type :task-storage} :busy "being created or deleted by somebody else"
      11 {:op :load} :interrupted "a signal"
      13 {:op :load} :program-rejected "verifier"
      95 {:op :lookup} :not-supported "this kernel does not support it"
      5 {:op :lookup} :kernel "please report")))

(deftest failure-is-error-data
  (testing "a failure has its facts as data"
    (let [e (errno/failure "put! on map 3" 7
                           {:op :put! :type :hash :max-entries 4
                            :map {:id 3 :name "x" :type :hash}})]
      (is (= {:bpfmap/error :map-full
              :bpfmap/op :put!
              :bpfmap/errno :E2BIG
              :bpfmap/errno-code 7
              :bpfmap/map {:id 3 :name "x" :type :hash}
              :bpfmap/hint "the map is full with 4 entries; delete some, or create it with more :max-entries"}
             (ex-data e)))
      (is
       (=
        "put! on map 3 failed with E2BIG: the map is full with 4 entries; delete some, or create it with more :max-entries"
        (ex-message e))))))

;; --- every operation and every errno that a user can provoke

(def ^:private operations
  [:create :open :clone :info :freeze! :pin! :move-pin! :unpin! :memory :populate! :lookup :put!
   :insert! :replace! :delete! :take!
   :next-key :push! :pop! :peek :might-contain? :put-all! :delete-all! :lookup-all :entries :drain!
   :drain-into! :reduce :list :pins
   :load :load-btf :btf-by-id :attach-raw-tracepoint :attach :attached :update!
   :detach! :lines :records :test-run])

(def ^:private provoked
  "What bpf(2), and the calls on paths and processes beside it, answer to what a user may do.
  EFAULT and EIO are answers to what this library itself would do wrong."
  {:EPERM 1 :ENOENT 2 :ESRCH 3 :EINTR 4 :ENXIO 6 :E2BIG 7 :EBADF 9 :EAGAIN 11 :ENOMEM 12 :EACCES 13
   :EBUSY 16 :EEXIST 17 :EXDEV 18
   :ENODEV 19 :ENOTDIR 20 :EISDIR 21 :EINVAL 22 :ENFILE 23 :EMFILE 24 :ENOSPC 28 :EROFS 30 :EDOM 33
   :ERANGE 34 :EDEADLK 35
   :ENAMETOOLONG 36 :ENOSYS 38 :ELOOP 40 :EOVERFLOW 75 :EOPNOTSUPP 95 :ETIMEDOUT 110 :EDQUOT 122
   :ENOTSUPP 524})

(deftest provoked-errnos
  (testing "every errno that can be provoked has an explanation"
    (doseq [op operations
            [errno code] (dissoc provoked :EXDEV)
            facts [{:type :hash :max-entries 4} {:type :array :max-entries 4}
                   {:type :sockmap :max-entries 4} {:path "/p"}
                   {:path "/p" :passes-modes true} {:unprivileged true}
                   {:reference "descriptor 7 in this process"}]
            :let [{:bpfmap/keys [error hint]} (errno/explain code (merge ok {:op op} facts))]]
      (is (keyword? error))
      (is (not (str/includes? hint "report")) (str op " " errno " " facts))
      (when (:unprivileged facts)
        (is (not (str/includes? hint "the process has the capabilities")) (str op " " errno)))
      (when (:passes-modes facts)
        (is (not (re-find #"the file mode of" hint)) (str op " " errno))))))
