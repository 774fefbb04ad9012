(ns bpfmap.link-test
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.elf.symbols :as symbols]
            [bpfmap.impl.kernel.link :as kernel.link]
            [bpfmap.impl.kernel.perf :as kernel.perf]
            [bpfmap.impl.kernel.tracefs :as tracefs]
            [bpfmap.impl.link.functions :as functions]
            [bpfmap.impl.link.targets :as targets]
            [bpfmap.impl.prog.program :as program]
            [bpfmap.link :as link]
            [bpfmap.link-rounds :as link-rounds]
            [bpfmap.links :as links :refer [counter counting eventually? loaded]]
            [bpfmap.linux :as linux]
            [bpfmap.object :as object]
            [bpfmap.objects :as objects]
            [bpfmap.probed :as probed]
            [bpfmap.prog :as prog]
            [bpfmap.programs :as programs]
            [bpfmap.since :as since]
            [bpfmap.transcript :as transcript]
            [clojure.data.json :as json]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (bpfmap.impl.prog.program Program)
           (java.io Closeable)
           (java.nio.file Files LinkOption Path)))

(set! *warn-on-reflection* true)

;; --- targets as data

(deftest target-checks
  (testing "rejects targets before any system call"
    (are [target words]
         (let [{:keys [message] :bpfmap/keys [error op]} (error-of (targets/check target))]
           (and (= [:invalid-value :attach] [error op]) (str/includes? message words)))
      nil "A target must be a map such as {:tracepoint \"sched/sched_switch\"}, got nil"
      "sched/sched_switch" "A target must be a map such as"
      {"tracepoint" 1} "A target must be a map such as"
      {} "A target must have one kind, got {}: bpfmap.link/targets has all kinds"
      {:tracepont "a/b"} "did you mean :tracepoint?"
      {:xdp "lo" :kprobe "f"} "A target must have one kind, got :xdp and :kprobe"
      {:tracepoint "sched_switch"} ":tracepoint must be \"category/name\", got \"sched_switch\""
      {:tcx :ingres :interface "lo"} ":tcx must be :ingress or :egress, got :ingres"
      {:tcx :ingress} "A target :tcx must have :interface, got {:tcx :ingress}"
      {:tcx :ingress :interfac "lo"} "Unknown key :interfac of a target :tcx: did you mean :interface?"
      {:xdp ""} ":xdp must be the name of a network interface, or its index, got \"\""
      {:xdp "lo" :mode :fast} ":mode must be :generic, :native or :offload, got :fast"
      {:kprobe "f" :offset -1} ":offset must be an integer from 0 to 9223372036854775807, got -1"
      {:kprobe "f" :return 1} ":return must be true or false, got 1"
      {:kprobe-multi []} ":kprobe-multi must be a name, a pattern such as \"vfs_*\", or a vector of names"
      {:uprobe "/bin/bash" :pid 0} ":pid must be an integer from 1 to 2147483647, got 0"
      {:netfilter :ipv4} "A target :netfilter must have :hook"
      {:netfilter :ipv4 :hook :input} ":hook must be :prerouting, :local-in, :forward, :local-out or :postrouting"
      {:cgroup nil} ":cgroup must be the path of a directory, or {:fd n}, got nil"
      {:sk-lookup :mine} ":sk-lookup must be :self, the path of a network namespace, or {:fd n}, got :mine"
      {:perf-event :cpu-clock} ":perf-event must be a map such as {:type :software"
      {:iter "task" :order :up} ":order must be")
    (testing "and returns the others as they are"
      (are [target] (= target (targets/check target))
        {:cgroup "/sys/fs/cgroup" :attach-type :cgroup-inet-egress}
        {:cgroup (io/file "/sys/fs/cgroup")}
        {:iter "cgroup" :cgroup "/sys/fs/cgroup" :order :self}
        {:kprobe-multi "vfs_*" :return true}
        {:uprobe "libc" :symbol "malloc" :return true :pid 7}
        {:netfilter :ipv6 :hook :local-in :priority -128 :defragment true}))))

(deftest option-checks
  (testing "rejects options that a kind of target does not have"
    (are [kind options words]
         (let [{:keys [message]
                :bpfmap/keys [error]} (error-of (targets/check-options kind options))]
           (and (= :invalid-value error) (str/includes? message words)))
      :kprobe {:cooky 1} "Unknown option :cooky: did you mean :cookie?"
      :kprobe [] "Options must be a map, got []"
      :xdp {:cookie 1} "A target :xdp must not have the option :cookie"
      :kprobe {:cookie -1} ":cookie must be an unsigned 64-bit integer, got -1"
      :kprobe {:before :all} "A target :kprobe must not have the option :before: the kernel orders only the programs of :tcx, :netkit and :cgroup"
      :tcx {:before :all :after :all} "Options must have :before or :after, not both"
      :tcx {:revision 0} ":revision must be a positive integer, got 0: bpfmap.link/attached returns")))

(deftest targets-of-sections
  (testing "a section says the target, if it says it all"
    (are [section text target] (= target (targets/of-section {:section section :target text}))
      "kprobe/do_unlinkat" "do_unlinkat" {:kprobe "do_unlinkat"}
      "kprobe/do_unlinkat+0x10" "do_unlinkat+0x10" {:kprobe "do_unlinkat" :offset 16}
      "kretprobe/do_unlinkat" "do_unlinkat" {:kprobe "do_unlinkat" :return true}
      "kprobe.multi/vfs_*" "vfs_*" {:kprobe-multi "vfs_*"}
      "ksyscall/unlink" "unlink" {:ksyscall "unlink"}
      "uprobe//bin/bash:readline" "/bin/bash:readline" {:uprobe "/bin/bash" :symbol "readline"}
      "uretprobe/libc.so.6:malloc+8" "libc.so.6:malloc+8"
      {:uprobe "libc.so.6" :symbol "malloc" :offset 8 :return true}
      "uprobe//bin/bash:0x4000" "/bin/bash:0x4000" {:uprobe "/bin/bash" :offset 0x4000}
      "kprobe/f+99999999999999999999" "f+99999999999999999999"
      {:kprobe "f" :offset Long/MAX_VALUE}
      "uprobe/libc:0xffffffffffffffffff" "libc:0xffffffffffffffffff"
      {:uprobe "libc" :offset Long/MAX_VALUE}
      "uprobe.multi.s/libc:mem*" "libc:mem*" {:uprobe-multi "libc" :symbols "mem*"}
      "tp/sched/sched_switch" "sched/sched_switch" {:tracepoint "sched/sched_switch"}
      "raw_tp/sys_enter" "sys_enter" {:raw-tracepoint "sys_enter"}
      "?tp_btf/sched_switch" "sched_switch" {:tp-btf "sched_switch"}
      "fentry.s/vfs_read" "vfs_read" {:fentry "vfs_read"}
      "fmod_ret/security_file_open" "security_file_open" {:fmod-ret "security_file_open"}
      "lsm/file_open" "file_open" {:lsm "file_open"}
      "iter.s/task" "task" {:iter "task"}
      "kprobe" nil nil
      "uprobe/readline" "readline" nil
      "xdp" nil nil
      "xdp/eth0" nil nil
      "tcx/ingress" nil nil
      "cgroup_skb/egress" nil nil
      ".text" nil nil
      nil nil nil)
    (testing "each target of a section passes the checks"
      (doseq [section ["kprobe/f" "uprobe//bin/bash:f" "tp/a/b" "raw_tp/x" "iter/task" "lsm/x"]
              :let [[_ text] (str/split section #"/" 2)]]
        (is (targets/check (targets/of-section {:section section :target text})) section)))))

(deftest refusals-by-kind
  (testing "explains an errno by the kind of target and the release"
    (are [kind errno facts error words]
         (let [[found hint] (targets/refusal kind errno (merge {:release "6.18.44"} facts))]
           (and (= error found) (str/includes? (str hint) words)))
      :tcx :EINVAL {:release "6.1.0"} :not-supported "links of :tcx need Linux 6.6, this is 6.1.0"
      :kprobe-multi :EINVAL {:release "5.10.0"} :not-supported "links of :kprobe-multi need Linux 5.18"
      :raw-tracepoint :E2BIG {:release "6.1.0" :options {:cookie 1}} :not-supported
      "cookies of :raw-tracepoint need Linux 6.10, this is 6.1.0"
      :cgroup :EINVAL {:release "6.12.0" :options {:before :all}} :not-supported
      "orders of :cgroup need Linux 6.17, this is 6.12.0"
      :cgroup :EINVAL {:release "6.12.0"} :invalid-value "loaded for the attach type"
      :cgroup :E2BIG {} :busy "its largest number of programs, 64"
      :cgroup :EPERM {} :permission "without allowing others"
      :kprobe :EINVAL {} :invalid-value "the kernel does not allow a probe there"
      :kprobe :EILSEQ {} :invalid-value ":offset must be the start of an instruction"
      :kprobe :EADDRNOTAVAIL {} :ambiguous "several functions have that name"
      :kprobe :EOPNOTSUPP {} :not-supported "CONFIG_KPROBE_EVENTS"
      :ksyscall :EINVAL {} :invalid-value "does not allow a probe on that function"
      :uprobe :EINVAL {} :invalid-value "at that offset of the file"
      :uprobe :ENOTSUPP {} :not-supported "cannot probe the instruction"
      :uprobe-multi :EBADF {} :invalid-value "a file that can be executed or mapped"
      :perf-event :ENOENT {} :not-supported "this machine does not count that event"
      :perf-event :ENODEV {} :not-found "the CPU of :cpu is not online"
      :lsm :EBUSY {} :busy "its largest number of programs"
      :xdp :EBUSY {} :busy "has an XDP program already; close its link, or update! it"
      :xdp :EEXIST {} :busy "in another mode"
      :xdp :EOPNOTSUPP {} :not-supported "use :mode :generic"
      :xdp :EINVAL {} :incompatible "its packets may be longer than a page"
      :tcx :EEXIST {} :exists "this program is attached there already"
      :tcx :ERANGE {} :busy "its largest number of programs, 64"
      :tcx :ESTALE {:options {:revision 3}} :busy "attached or detached since :revision 3"
      :netkit :EACCES {} :invalid-value "the primary device of the pair"
      :sk-lookup :E2BIG {} :busy "its largest number of programs, 64"
      :flow-dissector :E2BIG {} :busy "has a flow dissector already"
      :flow-dissector :EEXIST {} :busy "attached without a link"
      :netfilter :EBUSY {} :busy "use another :priority"
      :netfilter :ERANGE {} :invalid-value "with :defragment it must be more than -400"
      :netfilter :EAFNOSUPPORT {} :not-supported "no netfilter for that family"
      :sockmap :EBUSY {} :busy "has a program with this attach type already"
      :struct-ops :EEXIST {} :exists "a struct with the same name is registered already"
      :iter :EBUSY {} nil "")))

(deftest table-is-complete
  (testing "every kind has what functions read"
    (doseq [[kind {:keys [meaning value form since programs sections] :as row}] targets/kinds]
      (is (and (string? meaning) (ifn? (first value)) (string? (second value)) form since) kind)
      (is (map? sections) kind)
      (is (or (= :struct-ops kind) (every? (set (keys prog/types)) (keys programs))) kind)
      (doseq [attach-type (mapcat val programs) :when (not (contains? #{nil :none} attach-type))]
        (is (prog/attach-types attach-type) (str kind " " attach-type)))
      (is (every? #(and (vector? %) (string? (second %))) (vals (:refusals row))) kind))
    (is (= (keys targets/kinds) (keys link/targets)))
    (is (= "6.6" (:since (:tcx link/targets))))
    (is (= {:interface "the name of a network interface, or its index"}
           (:keys (:tcx link/targets))))))

(deftest numbers-of-perf-events
  (testing "names of events match the C header"
    (doseq [[prefix names] {"PERF_COUNT_SW_" targets/software-events
                            "PERF_COUNT_HW_" targets/hardware-events}
            :let [in-c #(str prefix
                             (case %
                               :stalled-cycles-frontend "STALLED_CYCLES_FRONTEND"
                               :stalled-cycles-backend "STALLED_CYCLES_BACKEND"
                               :branch-instructions "BRANCH_INSTRUCTIONS"
                               (str/upper-case (str/replace (name %) "-" "_"))))
                  header (fixture/c-values ["linux/perf_event.h"] (map in-c (keys names)))]]
      (if-not header
        (fixture/skip! "no C compiler to compare the numbers with")
        (doseq [[k number] names :when (contains? header (in-c k))]
          (is (= number (header (in-c k))) (str k)))))))

;; --- the page

(def ^:private page "doc/links.md")

(defn- target-table
  "The table of the page: a row for each kind of target."
  []
  (let [line (fn [cells] (str "| " (str/join " | " cells) " |"))
        code #(str "`" % "`")]
    (str/join
     "\n"
     (concat [(line ["kind" "attaches to" "further keys" "program types" "since"])
              (line (repeat 5 "---"))]
             (for [[kind {:keys [meaning programs since config required] :as row}] link/targets]
               (line [(code kind)
                      meaning
                      (str/join " " (for [k (keys (:keys row))]
                                      (str (code k) (when (some #{k} required) " (required)"))))
                      (str/join " " (map code programs))
                      (str since (when config (str ", " config)))]))))))

(defn- with-table
  "Returns a page with its table generated again."
  [text]
  (str/replace text #"(?s)(<!-- targets: [^>]*-->\n).*?(<!-- end -->)"
               (fn [[_ before after]] (str before (target-table) "\n" after))))

(deftest page-table
  (testing "the table of the page equals the generated one"
    (is (= (with-table (slurp page)) (slurp page)))))

(def ^:private server
  "The probes of the server of the page."
  [{:provider "server" :name "request" :arguments "4@%edi -8@8(%rsp)"}
   {:provider "server" :name "request" :arguments "4@$7 -8@$-2"}
   {:provider "server" :name "stopped" :arguments "" :semaphore true}])

(defn- evaluated
  "The page with its transcripts evaluated in a network namespace, with a cgroup, a BPF file system
  and a program of the test."
  [text]
  (links/in-network-namespace
   (fn []
     (with-open [cgroup (objects/cgroup)
                 traced (probed/program server)]
       (-> (str/replace text "/sys/fs/cgroup/demo" (:path cgroup))
           (str/replace "/sys/fs/bpf" (fixture/bpffs))
           (str/replace "/usr/local/bin/server" (:path traced))
           transcript/evaluate
           (str/replace (:path traced) "/usr/local/bin/server")
           (str/replace (fixture/bpffs) "/sys/fs/bpf")
           (str/replace (:path cgroup) "/sys/fs/cgroup/demo"))))))

(kernel-test ^{:needs [[:target :tcx] [:map-type :arena]]} page-transcripts
  (testing "the transcripts of the page print what they show"
    (let [text (cond-> (slurp page)
                 ;; The server is a program for x86-64.
                 (not (fixture/x86-64?)) (str/replace #"(?s)## USDT probes.*?(?=## )" ""))]
      (is (< 40 (count (re-seq #"(?m)^user=> " text))))
      (is (= [] (remove (fn [[a b]] (= a b))
                        (map vector
                             (str/split-lines (transcript/comparable text))
                             (str/split-lines (transcript/comparable (evaluated text))))))))))

;; --- each kind: attach, run, info, close

(defn- moves?
  "Returns true if the counter moves while f is called again and again."
  [m f]
  (let [before (m 0)]
    (boolean (fixture/eventually (fn [] (f) (< before (m 0)))))))

(defn- stands-still?
  "Returns true if the counter has the same value before and after f, soon after a link was closed."
  [m f]
  (eventually? #(let [before (m 0)]
                  (f)
                  (Thread/sleep 20)
                  (= before (m 0)))))

(defn- info-of-kind
  "The info of a link without what differs from run to run."
  [link]
  (dissoc (link/info link) :id :ids :program-id))

(defn- check-kind
  "Asserts that a program attaches to a target, runs when f is called, reports its target, is
  listed, and does not run any more when the link is closed."
  [{:keys [program target options provoke info]}]
  (with-open [m (counter)
              ^Program p (program m)]
    (let [l (link/attach p target options)]
      (testing (pr-str target)
        (is (moves? m provoke) "it runs")
        (is (= (:id (prog/info p)) (:program-id (link/info l))))
        (is (= info (select-keys (link/info l) (keys info))))
        (is (= [(dissoc (link/info l) :ids)]
               (filter #(= (:id (link/info l)) (:id %)) (host/links)))
            "it is listed")
        (is (str/includes? (str l) (name (first (keys target)))))
        (is (not (str/includes? (str l) "\\\"")) "an open map in a target prints as it does alone")
        (.close ^Closeable l)
        (.close ^Closeable l)
        (is (str/ends-with? (str l) " closed>"))
        (is (stands-still? m provoke) "it does not run any more")
        (is (= :closed (:bpfmap/error (error-of (link/info l)))))))))

(def ^:private with-perf-info
  "Whether this kernel reports what links of perf events are attached to."
  (delay (since/here? [:kernel :info-of-perf-events])))

(defn- perf-info [info]
  (if @with-perf-info (assoc info :type :perf-event) {:type :perf-event}))

(kernel-test k1-tracepoints
  (testing "tracepoints of every kind run programs while their link is open"
    (let [switch #(Thread/sleep 1)]
      (check-kind {:program #(loaded :raw-tracepoint (counting % 0))
                   :target {:raw-tracepoint "sched_switch"}
                   :provoke switch
                   :info {:type :raw-tracepoint :tracepoint "sched_switch"}})
      (check-kind {:program #(loaded :tracing (counting % 0) :expected-attach-type :trace-raw-tp
                                     :attach-btf-id (links/btf-id :typedef "btf_trace_sched_switch"))
                   :target {:tp-btf "sched_switch"}
                   :provoke switch
                   :info {:type :raw-tracepoint :tracepoint "sched_switch"}})
      (since/needing [[:kernel :links-of-perf-events]]
        (doseq [name ["sched/sched_switch" "sched:sched_switch"]]
          (check-kind {:program #(loaded :tracepoint (counting % 0))
                       :target {:tracepoint name}
                       :provoke switch
                       :info (perf-info {:event :tracepoint :tracepoint "sched_switch"})}))))))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k1-uprobes
  (testing "functions of a library run programs in every process"
    (check-kind {:program #(loaded :kprobe (counting % 0))
                 :target {:uprobe "libc" :symbol "malloc"}
                 :provoke links/run-child
                 :info (perf-info {:event :uprobe})})
    (check-kind {:program #(loaded :kprobe (counting % 0))
                 :target {:uprobe "libc.so.6" :symbol "malloc" :return true}
                 :provoke links/run-child
                 :info (perf-info {:event :uprobe :return true})})
    (testing "the path and the offset of a probe are reported"
      (with-open [p (loaded :kprobe [[:mov64 :r0 0] [:exit]])
                  l (link/attach p {:uprobe "/bin/bash" :symbol "main" :offset 4})]
        (when @with-perf-info
          (is (str/ends-with? (:path (link/info l)) "/bash"))
          (with-open [exact (link/attach p {:uprobe (:path (link/info l))
                                            :offset (:offset (link/info l))})]
            (is (= (info-of-kind l) (info-of-kind exact)))))))
    (testing "only in one process"
      (with-open [m (counter)
                  p (loaded :kprobe (counting m 0))
                  child (objects/child-process)
                  _ (link/attach p {:uprobe "libc" :symbol "malloc" :pid (:pid child)})]
        (is (stands-still? m links/run-child))))))

(kernel-test ^{:needs [[:target :uprobe-multi]]} k1-uprobes-of-many-functions
  (testing "many functions of a library run one program"
    (let [program #(loaded :kprobe (counting % 0) :expected-attach-type :trace-uprobe-multi)]
      (check-kind {:program program
                   :target {:uprobe-multi "libc" :symbols ["malloc" "free"]}
                   :provoke links/run-child
                   :info {:type :uprobe-multi}})
      (check-kind {:program program
                   :target {:uprobe-multi "libc" :symbols "mallo?" :return true}
                   :provoke links/run-child
                   :info {:type :uprobe-multi}}))))

(kernel-test ^{:needs [[:kernel :uprobe-sessions]]} k1-uprobe-sessions
  (testing "one link runs a program when functions begin, and when they return"
    ;; A file of its own: other processes run bash too.
    (let [file (java.io.File/createTempFile "bpfmap" ".bash")
          bash (str file)]
      (try
        (io/copy (io/file "/bin/bash") file)
        (.setExecutable file true)
        (doseq [[result runs] {0 2, 1 1}]
          (with-open [m (counter)
                      calls (counter)
                      p (loaded :kprobe (counting m result)
                                :expected-attach-type :trace-uprobe-session)
                      entry (loaded :kprobe (counting calls 0))
                      l (link/attach p {:uprobe-multi bash :symbols ["xmalloc"] :session true})
                      _ (link/attach entry {:uprobe bash :symbol "xmalloc"})]
            (is (= {:type :uprobe-multi :functions 1} (select-keys (link/info l)
                                                                   [:type :functions])))
            (fixture/run [bash "-c" "true"])
            (is (pos? (calls 0)))
            (is (= (* runs (calls 0)) (m 0)) (str "result " result))))
        (finally (io/delete-file file true))))
    (with-open [p (loaded :kprobe [[:mov64 :r0 0] [:exit]])]
      (let [{:keys [message] :bpfmap/keys [error]}
            (error-of (link/attach p {:uprobe-multi "/bin/bash" :symbols ["main"] :session true}))]
        (is (= :invalid-value error))
        (is (str/includes? message ":trace-uprobe-multi or :trace-uprobe-session"))))))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k1-k8-hardware-counters
  (testing "a counter of the processor runs a program, or the error says that there is none"
    (let [target {:perf-event {:type :hardware :event :instructions :period 100000}}]
      (with-open [m (counter)
                  p (loaded :perf-event (counting m 0))]
        (if-let [{:keys [message] :bpfmap/keys [error]} (error-of (.close ^Closeable
                                                                          (link/attach p target)))]
          (do
            (is (= :not-supported error))
            (is (str/includes? message (str "this machine does not count that event; virtual "
                                            "machines often have no hardware counters"))))
          (with-open [_ (link/attach p target)]
            (is (moves? m #(links/spin 20)))))))))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k1-clocks
  (testing "a clock runs a program on every CPU, on one, or for one thread"
    (doseq [target [{:perf-event {:frequency 999}}
                    {:perf-event {:type :software :event :cpu-clock :period 1000000} :cpu 0}
                    {:perf-event {:type :software :event :task-clock :frequency 999}
                     :pid (linux/call "gettid")}]]
      (check-kind {:program #(loaded :perf-event (counting % 0))
                   :target target
                   :provoke #(links/spin 20)
                   :info (perf-info {:event :perf-event})}))
    (testing "a link of several CPUs has an id for each"
      (with-open [p (loaded :perf-event [[:mov64 :r0 0] [:exit]])
                  l (link/attach p {:perf-event {:frequency 1}})]
        (when (< 1 (count (:ids (link/info l))))
          (is (apply distinct? (:ids (link/info l))))
          (is (= :not-supported (:bpfmap/error (error-of (link/pin! l (fixture/new-pin))))))
          (is (str/includes? (:message (error-of (link/pin! l (fixture/new-pin))))
                             "attach with :cpu to have one link for each CPU")))))))

(kernel-test k1-iterators
  (testing "an iterator runs its program for each object, when it is read"
    (with-open [m (counter)
                p (links/iterator "task" (counting m 0))
                l (link/attach p {:iter "task"})]
      (is (stands-still? m (constantly nil)))
      (is (= [] (into [] (link/lines l))))
      (is (< 10 (m 0)))
      (is (= {:type :iter :target "task"} (info-of-kind l)))
      (is (= [(link/info l)] (filter #(= (:id (link/info l)) (:id %)) (host/links)))))))

(kernel-test k1-network-devices
  (testing "packets of an interface run programs"
    (links/in-network-namespace
     (fn []
       (let [arrive #(links/send-udp "10.9.9.2")]
         (doseq [[target type] [[{:xdp "v1"} :xdp] [{:xdp "v1" :mode :generic} :xdp]
                                [{:xdp "v1" :mode :native} :xdp]]]
           (check-kind {:program #(loaded type (counting % 2))
                        :target target
                        :provoke arrive
                        :info {:type :xdp}}))
         (since/needing [[:target :tcx]]
           (doseq [[target attach-type] [[{:tcx :ingress :interface "v1"} :tcx-ingress]
                                         [{:tcx :egress :interface "v0"} :tcx-egress]]]
             (check-kind {:program #(loaded :sched-cls (counting % -1))
                          :target target
                          :provoke arrive
                          :info {:type :tcx :attach-type attach-type}}))))))))

(kernel-test k1-network-namespaces
  (testing "packets and lookups in a network namespace run programs"
    (links/in-network-namespace
     (fn []
       (let [inode (Files/getAttribute (Path/of "/proc/thread-self/ns/net" (make-array String 0))
                                       "unix:ino" (make-array LinkOption 0))
             to-itself #(links/send-udp "127.0.0.1")]
         (doseq [place [:self "/proc/thread-self/ns/net"]]
           (check-kind {:program #(loaded :sk-lookup (counting % 1)
                                          :expected-attach-type :sk-lookup)
                        :target {:sk-lookup place}
                        :provoke to-itself
                        :info {:type :netns :netns-ino inode :attach-type :sk-lookup}}))
         (check-kind {:program #(loaded :flow-dissector (counting % 0))
                      :target {:flow-dissector :self}
                      :provoke links/send-raw
                      :info {:type :netns :netns-ino inode :attach-type :flow-dissector}})
         (since/needing [[:target :netfilter]]
           (check-kind {:program #(loaded :netfilter (counting % 1)
                                          :expected-attach-type :netfilter)
                        :target {:netfilter :ipv4 :hook :local-out :priority -128}
                        :provoke to-itself
                        :info {:type :netfilter :family :ipv4 :hook :local-out
                               :priority -128}})))))))

(kernel-test k1-cgroups
  (testing "what processes of a cgroup do runs programs"
    (with-open [cgroup (objects/cgroup)]
      (doseq [[type attach-type given?]
              [[:cgroup-skb :cgroup-inet-egress true]
               [:cgroup-skb :cgroup-inet-ingress true]
               [:cgroup-sock :cgroup-inet-sock-create false]
               [:cgroup-sock :cgroup-inet-sock-release true]
               [:cgroup-sock-addr :cgroup-inet4-connect true]
               [:cgroup-device :cgroup-device false]
               [:cgroup-sysctl :cgroup-sysctl false]
               [:sock-ops :cgroup-sock-ops false]]]
        (check-kind {:program #(loaded type (counting % 1) :expected-attach-type attach-type)
                     :target (cond-> {:cgroup (:path cgroup)}
                               given? (assoc :attach-type attach-type))
                     :provoke #(links/provoke-in-cgroup cgroup)
                     :info {:type :cgroup :cgroup-id (:id cgroup) :attach-type attach-type}})))))

(kernel-test ^{:needs [[:target :sockmap]]} k1-sockmaps
  (testing "data of the sockets in a map runs programs"
    (with-open [sockets (bpf/create {:type :sockmap :key :u32 :value :u64 :max-entries 2})
                connection (objects/tcp-connection)]
      ;; A socket gets the programs that the map has when it is stored.
      (let [send! #(do (bpf/delete! sockets 0)
                       (bpf/put! sockets 0 {:fd (:server connection)})
                       (linux/call "write" (:fd connection) (byte-array 4) 4))]
        (check-kind {:program #(loaded :sk-skb (counting % 1)
                                       :expected-attach-type :sk-skb-stream-verdict)
                     :target {:sockmap sockets}
                     :provoke send!
                     :info {:type :sockmap :map-id (:id (bpf/info sockets))
                            :attach-type :sk-skb-stream-verdict}}))
      (with-open [p (loaded :sk-skb [[:mov64 :r0 1] [:exit]])]
        (is (str/includes? (:message (error-of (link/attach p {:sockmap sockets})))
                           "must have an :attach-type of the program, got nil"))
        (is (str/includes? (:message (error-of (link/attach p {:sockmap 7
                                                               :attach-type :sk-skb-verdict})))
                           ":sockmap must be an open map, got 7"))))))

(kernel-test ^{:needs [[:order :cgroup]]} k5-order-in-cgroups
  (testing "programs of a cgroup run in the given order"
    (with-open [cgroup (objects/cgroup)
                ^Program a (loaded :cgroup-device [[:mov64 :r0 1] [:exit]])
                ^Program b (loaded :cgroup-device [[:mov64 :r0 1] [:exit]])]
      (let [target {:cgroup (:path cgroup)}
            listed {:cgroup (:path cgroup) :attach-type :cgroup-device}]
        (with-open [_ (link/attach a target)
                    _ (link/attach b target {:before :all})]
          (is (= (map (comp :id prog/info) [b a])
                 (map :program-id (:programs (link/attached listed))))))
        (is (str/includes? (:message (error-of (link/attached target)))
                           "A target :cgroup must have an :attach-type here"))
        (let [{:keys [message] :bpfmap/keys [error op]} (error-of (link/attached {:xdp "lo"}))]
          (is (= [:not-supported :attached] [error op]))
          (is (str/includes? message "it has one for :tcx, :netkit and :cgroup")))))))

(kernel-test ^{:needs [[:target :struct-ops]]} k1-struct-ops
  (testing "a struct of functions is registered while its link is open"
    (let [struct-type (programs/struct-ops-type "tcp_congestion_ops")
          registered? #(str/includes? (slurp "/proc/sys/net/ipv4/tcp_available_congestion_control")
                                      "bpf_t_link")]
      (with-open [fd (programs/create-struct-ops struct-type #{:link})
                  control (programs/congestion-control struct-type "bpf_t_link")]
        (with-open [m (bpf/open {:fd (.acquire fd)})]
          (.release fd)
          (testing "not before it has its value"
            (let [{:keys [message] :bpfmap/keys [error]} (error-of (link/attach m))]
              (is (= :invalid-value error))
              (is (str/includes? message "and have its value, which is put! at index 0"))))
          (programs/register fd control)
          (is (not (registered?)))
          (with-open [l (link/attach m)]
            (is (registered?))
            (is (= {:type :struct-ops :map-id (:id (bpf/info m))} (info-of-kind l))))
          (is (not (registered?)))
          (with-open [l (link/attach m {:struct-ops m})]
            (is (registered?))
            (is (identical? l (link/detach! l)))
            (is (not (registered?)))))))))

;; --- cookies and order

(kernel-test ^{:needs [[:cookie :tracepoint]]} k4-cookies
  (testing "a program reads the cookie of its link"
    (let [cookie 0xfedcba9876543210
          check (fn [type target provoke & more]
                  (with-open [m (counter)
                              ^Program p (apply loaded type (links/storing-cookie m) more)
                              l (link/attach p target {:cookie cookie})]
                    (is (eventually? #(do (provoke) (= cookie (m 0)))) (str target))
                    (when (:cookie (link/info l))
                      (is (= (unchecked-long cookie) (:cookie (link/info l)))))))]
      (check :tracepoint {:tracepoint "sched/sched_switch"} #(Thread/sleep 1))
      (check :kprobe {:uprobe "libc" :symbol "malloc"} links/run-child)
      (check :perf-event {:perf-event {:frequency 999} :cpu 0} #(links/spin 20))
      (when (since/has? [:target :uprobe-multi])
        (check :kprobe {:uprobe-multi "libc" :symbols ["malloc" "free"]} links/run-child
               :expected-attach-type :trace-uprobe-multi))
      (when (since/has? [:cookie :raw-tracepoint] [:cookie :tp-btf])
        (check :raw-tracepoint {:raw-tracepoint "sched_switch"} #(Thread/sleep 1))
        (check :tracing {:tp-btf "sched_switch"} #(Thread/sleep 1)
               :expected-attach-type :trace-raw-tp
               :attach-btf-id (links/btf-id :typedef "btf_trace_sched_switch"))))))

(kernel-test ^{:needs [[:target :tcx]]} k5-order-and-revision
  (testing "programs of an interface run in the given order"
    (links/in-network-namespace
     (fn []
       (let [target {:tcx :ingress :interface "v1"}
             program #(loaded :sched-cls [[:mov64 :r0 -1] [:exit]])
             ids #(mapv :program-id (:programs (link/attached target)))]
         (with-open [^Program a (program) ^Program b (program) ^Program c (program)
                     ^Program d (program) ^Program e (program)]
           (let [id-of #(:id (prog/info %))
                 [ia ib ic id ie] (map id-of [a b c d e])]
             (with-open [la (link/attach a target)
                         _ (link/attach b target {:before la})
                         _ (link/attach c target {:after {:program-id ib}})
                         _ (link/attach d target {:after :all})
                         le (link/attach e target {:before {:link-id (:id (link/info la))}})]
               (is (= [ib ic ie ia id] (ids)))
               (is (= (:id (link/info le)) (:link-id (get-in (link/attached target)
                                                             [:programs 2]))))
               (let [{:keys [revision]} (link/attached target)]
                 (.close ^Closeable le)
                 (testing "a revision that is old is refused"
                   (let [{:keys [message] :bpfmap/keys [error]}
                         (error-of (link/attach e target {:revision revision}))]
                     (is (= :busy error))
                     (is (str/includes? message
                                        (str "since :revision " revision
                                             "; read it again with bpfmap.link/attached")))))
                 (with-open [_ (link/attach e target {:revision (:revision (link/attached target))
                                                      :before :all})]
                   (is (= [ie ib ic ia id] (ids)))))
               (are [options kind words]
                    (let [{:keys [message]
                           :bpfmap/keys [error]} (error-of (link/attach e target options))]
                      (and (= kind error) (str/includes? message words)))
                 {:before le} :closed "closed"
                 {:before {:program-id ie}} :not-found
                 "the program or link of :before or :after is not attached there"
                 {:before 7} :invalid-value
                 ":before must be :all, an open link or program, {:link-id n} or {:program-id n}, got 7")
               (is (= [:exists] [(:bpfmap/error (error-of (link/attach a target)))]))))
           (is (eventually? #(= [] (ids))))))))))

;; --- links as objects

(kernel-test k1-same-as-bpftool
  (testing "bpftool lists the same links"
    (if-let [bpftool (fixture/executable "bpftool")]
      (with-open [cgroup (objects/cgroup)
                  raw (loaded :raw-tracepoint [[:mov64 :r0 0] [:exit]])
                  tasks (links/iterator "task" [[:mov64 :r0 0] [:exit]])
                  device (loaded :cgroup-device [[:mov64 :r0 1] [:exit]])
                  lookup (loaded :sk-lookup [[:mov64 :r0 1] [:exit]]
                                 :expected-attach-type :sk-lookup)
                  a (link/attach raw {:raw-tracepoint "sched_switch"})
                  b (link/attach tasks {:iter "task"})
                  c (link/attach device {:cgroup (:path cgroup)})
                  d (link/attach lookup {:sk-lookup :self})]
        (let [{:keys [out]} (fixture/run [bpftool "--json" "link" "list"])
              ours (mapv link/info [a b c d])
              theirs (into {} (map (juxt :id identity)) (json/read-str out :key-fn keyword))]
          (doseq [{:keys [id type program-id tracepoint target cgroup-id netns-ino]} ours
                  :let [found (theirs id)]]
            (is (= (str/replace (name type) "-" "_") (:type found)))
            (is (= program-id (:prog_id found)))
            (is (= [tracepoint target cgroup-id netns-ino]
                   ((juxt :tp_name :target_name :cgroup_id :netns_ino) found))))))
      (fixture/skip! "no bpftool to compare the links with"))))

(kernel-test k2-pinned-links
  (testing "a pinned link outlives its handle, and can be opened"
    (let [path (fixture/new-pin)
          before (fixture/settled-descriptors)]
      (with-open [m (counter)]
        (with-open [p (loaded :raw-tracepoint (counting m 0))
                    l (link/attach p {:raw-tracepoint "sched_switch"})]
          (is (identical? l (link/pin! l path)))
          (is (= :exists (:bpfmap/error (error-of (link/pin! l path))))))
        (is (moves? m #(Thread/sleep 1)))
        (let [info (with-open [l (link/open path)] (link/info l))
              number (fn [l] (some (fn [{:keys [pid fds]}]
                                     (when (= pid (.pid (java.lang.ProcessHandle/current)))
                                       (first fds)))
                                   (host/holders l)))]
          (with-open [again (link/open (:id info))]
            (is (= (str "#<bpf-link {:id " (:id info)
                        ", :type :raw-tracepoint, :tracepoint \"sched_switch\"}>")
                   (pr-str again)))
            (doseq [ref [{:link-id (:id info)} {:id (:id info)} {:path path} (io/file path)
                         (Path/of path (make-array String 0)) {:fd (number again)}]]
              (with-open [same (link/open ref)]
                (is (= info (link/info same) (clojure.core.protocols/datafy same)) (pr-str ref))
                (is (not= same again)))))
          (.delete (io/file path))
          (is (stands-still? m #(Thread/sleep 1)))
          (are [ref kind words]
               (let [{:keys [message] :bpfmap/keys [error op]} (error-of (link/open ref))]
                 (and (= [kind :open] [error op]) (str/includes? message words)))
            path :not-found (str "the file " path " does not exist")
            (:id info) :not-found "no link has that id (any more)"
            {:name "x"} :invalid-value "it must be {:id n}, {:link-id n}, {:path p} or {:fd n}"
            {:id -1} :invalid-value "an id must be an integer from 0 to 4294967295"
            nil :invalid-value "Invalid reference to a link: nil"
            "/proc/self/comm" :not-bpffs "so it cannot be a pin")
          (bpf/pin! m path)
          (is (str/includes? (:message (error-of (link/open path))) "is not a link: it is a map"))
          (is (= :not-a-link (:bpfmap/error (error-of (link/open path)))))
          (.delete (io/file path))))
      (is (= before (fixture/open-descriptors))))))

(kernel-test k3-updates
  (testing "replaces the program of a link, or says why not"
    (links/in-network-namespace
     (fn []
       (with-open [m (counter)
                   p (loaded :xdp [[:mov64 :r0 2] [:exit]])
                   q (loaded :xdp (counting m 2))
                   other (loaded :socket-filter [[:mov64 :r0 0] [:exit]])
                   raw (loaded :raw-tracepoint [[:mov64 :r0 0] [:exit]])
                   l (link/attach p {:xdp "v1"})
                   fixed (link/attach raw {:raw-tracepoint "sched_switch"})]
         (is (identical? l (link/update! l q)))
         (is (= (:id (prog/info q)) (:program-id (link/info l))))
         (is (moves? m #(links/send-udp "10.9.9.2")))
         (are [l p kind words]
              (let [{:keys [message] :bpfmap/keys [error op]} (error-of (link/update! l p))]
                (and (= [kind :update!] [error op]) (str/includes? message words)))
           l other :invalid-value
           "the link has a program of type :xdp, and the new one must have the same type, got :socket-filter"
           fixed raw :not-supported
           "the kernel never replaces the program of a link of type :raw-tracepoint; attach the new program, then close this link"
           l m :invalid-value "got :struct-ops"
           l 7 :invalid-value "The program must be an open program, got 7"
           7 p :invalid-value "The link must be a result of attach or open, got 7")
         (when (since/has? [:target :netfilter])
           (with-open [a (loaded :netfilter [[:mov64 :r0 1] [:exit]]
                                 :expected-attach-type :netfilter)
                       hook (link/attach a {:netfilter :ipv4 :hook :forward})]
             (is (str/includes? (:message (error-of (link/update! hook a)))
                                "never replaces the program of a link of type :netfilter"))
             (is (identical? hook (link/detach! hook)))))
         (testing "detaches, or says why not"
           (is (identical? l (link/detach! l)))
           (is (nil? (:ifindex (link/info l))))
           (is (stands-still? m #(links/send-udp "10.9.9.2")))
           (let [{:keys [message] :bpfmap/keys [error op]} (error-of (link/detach! fixed))]
             (is (= [:not-supported :detach!] [error op]))
             (is (str/includes? message "it is detached when no process and no pin has it any more")))
           (let [{:keys [message] :bpfmap/keys [error]} (error-of (link/update! l p))]
             (is (= :not-found error))
             (is (str/includes? message "the link was detached, or its network interface was removed"))))
         (testing "a device that is renamed keeps its links, one that is removed does not"
           (with-open [gone (link/attach p {:xdp "v1"})]
             (let [{:keys [ifindex] :as info} (link/info gone)
                   ip (fixture/executable "ip")]
               (is (pos-int? ifindex))
               (doseq [words [["set" "v1" "down"] ["set" "v1" "name" "w1"] ["set" "w1" "up"]]]
                 (fixture/run (into [ip "link"] words)))
               (is (= info (link/info gone)))
               (is (= :busy (:bpfmap/error (error-of (link/attach p {:xdp "w1"})))))
               (fixture/run [ip "link" "del" "v0"]))
             (is (nil? (:ifindex (link/info gone))))
             (is (= :not-found (:bpfmap/error (error-of (link/update! gone q)))))
             (let [{:keys [message] :bpfmap/keys [error]} (error-of (link/attach p {:xdp "v1"}))]
               (is (= :not-found error))
               (is (str/includes? message "No network interface \"v1\"")))))
         (doseq [f [#(link/update! l q) #(link/detach! l) #(link/info l) #(link/lines l)
                    #(link/pin! l (fixture/new-pin))]]
           (.close ^Closeable l)
           (is (= :closed (:bpfmap/error (error-of (f)))))))))))

(kernel-test ^{:needs [[:target :tcx]]} k2-k3-targets-that-are-gone
  (testing "a link whose target was removed says so, also after it was opened from its pin"
    (let [gone? (fn [l program words]
                  (try
                    (link/update! l program)
                    false
                    (catch clojure.lang.ExceptionInfo e
                      (and (= :not-found (:bpfmap/error (ex-data e)))
                           (str/includes? (ex-message e) words)))))]
      (links/in-network-namespace
       (fn []
         (with-open [p (loaded :sched-cls [[:mov64 :r0 -1] [:exit]])
                     l (link/attach p {:tcx :ingress :interface "v1"})]
           (let [path (fixture/new-pin)]
             (link/pin! l path)
             (fixture/run [(fixture/executable "ip") "link" "del" "v0"])
             (with-open [again (link/open path)]
               (is (nil? (:ifindex (link/info again))))
               (is (gone? again p "the link was detached, or its network interface was removed"))
               (is (str/includes? (:message (error-of (link/attached {:tcx :ingress
                                                                      :interface "v1"})))
                                  "No network interface \"v1\"")))
             (.delete (io/file path))
             (is (= :not-found (:bpfmap/error (error-of (link/open path)))))))))
      (with-open [p (loaded :cgroup-device [[:mov64 :r0 1] [:exit]])
                  ^Closeable cgroup (objects/cgroup)
                  l (link/attach p {:cgroup (:path cgroup)})]
        (.close cgroup)
        (is (eventually? #(gone? l p "the link was detached, or its cgroup was removed")))
        (is (str/includes? (:message (error-of (link/attach p {:cgroup (:path cgroup)})))
                           "does not exist (any more)"))))))

;; --- iterators

(kernel-test k7-values-without-sense
  (testing "values that no kernel can have are refused as any others are"
    (with-open [probe (loaded :kprobe [[:mov64 :r0 0] [:exit]])
                p (links/iterator "task" [[:mov64 :r0 0] [:exit]])
                l (link/attach p {:iter "task"})
                gone (link/attach p {:iter "task"})]
      (link/close gone)
      (are [words x] (let [{:keys [message] :bpfmap/keys [error]} (error-of x)]
                       (and (is (#{:invalid-value :closed} error))
                            (is (str/includes? message words))))
        "The end of an offset must be at most 9223372036854775807"
        (link/attach probe {:uprobe "libc" :symbol "malloc" :offset Long/MAX_VALUE})
        "A path must be a string, a File or a Path, got 7" (link/open {:path 7})
        "A path must not have half a character" (link/attach probe {:uprobe "\ud800" :symbol "f"})
        "must have an :attach-type here, got {:cgroup \"/tmp\", :attach-type :cgroup-devise}"
        (link/attached {:cgroup "/tmp" :attach-type :cgroup-devise})
        "did you mean :cgroup-device?"
        (link/attached {:cgroup "/tmp" :attach-type :cgroup-devise})
        "The type of a record must have at least one byte, got [:array :u32 0]"
        (link/records l [:array :u32 0])
        "The link is closed" (link/info gone)
        "The link is closed" (link/detach! gone)
        "The link is closed" (link/pin! gone "/sys/fs/bpf/gone")))))

(kernel-test k6-lines-of-iterators
  (testing "reduces what an iterator prints, each time anew"
    (with-open [p (links/iterator "task" (links/seq-writing (links/text "a line\n ")))
                l (link/attach p {:iter "task"})]
      (let [before (fixture/settled-descriptors)
            n (count (into [] (link/lines l)))]
        (is (< 10 n))
        (is (= ["a line" " a line" " a line"] (into [] (take 3) (link/lines l))))
        (is (= " " (reduce (fn [_ line] line) nil (link/lines l))) "the last line has no newline")
        (is (= 1 (reduce (fn [_ _] (reduced 1)) 0 (link/lines l))))
        (is (= "a line" (reduce (fn [acc _] acc) (link/lines l))))
        (is (= (str "#<lines of " l ">") (pr-str (link/lines l))))
        (is (thrown? IllegalStateException
                     (reduce (fn [_ _] (throw (IllegalStateException.))) nil (link/lines l))))
        (is (= before (fixture/open-descriptors)) "no pass leaves a descriptor open"))
      (testing "as records of a type"
        (let [records (into [] (take 2) (link/records l [:struct [:a [:string 6]] [:b :u16]]))]
          (is (= [{:a "a line" :b 0x200a} {:a "a line" :b 0x200a}] records)))
        (let [{:keys [message]
               :bpfmap/keys [error]} (error-of (into [] (link/records l [:array :u8 4097])))]
          (is (= :invalid-value error))
          (is (str/includes? message "The type must have the size of a record of the iterator")))))
    (testing "only of iterators"
      (with-open [p (loaded :raw-tracepoint [[:mov64 :r0 0] [:exit]])
                  l (link/attach p {:raw-tracepoint "sched_switch"})]
        (let [{:keys [message] :bpfmap/keys [error op]} (error-of (link/lines l))]
          (is (= [:invalid-value :lines] [error op]))
          (is (str/includes? message "The link must be of an iterator, got one of type :raw-tracepoint")))))
    (testing "an iterator over one map, one process or the cgroups below one"
      (when (links/map-iterators?)
        (with-open [m (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 8
                                   :contents {1 10 2 20 3 30}})
                    p (links/iterator "bpf_map_elem"
                                      ;; Behind the map, its key
                                      (assoc-in (links/seq-writing (links/text "element\n")) [0 2 1]
                                                16))
                    l (link/attach p {:iter "bpf_map_elem" :map m})]
          (is (= 3 (count (into [] (link/lines l)))))
          (is (= {:type :iter :target "bpf_map_elem" :map-id (:id (bpf/info m))} (info-of-kind l)))
          (with-open [queue (bpf/create {:type :queue :value :u64 :max-entries 2})]
            (are [target words] (let [{:keys [message]
                                       :bpfmap/keys [error]} (error-of (link/attach p target))]
                                  (and (= :invalid-value error) (str/includes? message words)))
              {:iter "bpf_map_elem" :map 7} ":map must be an open map, got 7"
              {:iter "bpf_map_elem"} "this iterator requires :map, the open map"
              {:iter "bpf_map_elem" :map queue} "this iterator does not accept the map"))))
      (when (since/has? [:kernel :iterators-of-one-task])
        (with-open [p (links/iterator "task" (links/seq-writing (links/text "a task\n\n")))
                    one (link/attach p {:iter "task" :tid (linux/call "gettid")})
                    process (link/attach p {:iter "task"
                                            :pid (.pid (java.lang.ProcessHandle/current))})]
          (is (= 2 (count (into [] (link/lines one)))))
          (is (< 4 (count (into [] (link/lines process)))))))
      (when (since/has? [:kernel :iterators-of-cgroups])
        (with-open [cgroup (objects/cgroup)
                    p (links/iterator "cgroup" (links/seq-writing (links/text "cgroup!\n")))
                    below (link/attach p {:iter "cgroup" :cgroup (:path cgroup)})
                    above (link/attach p {:iter "cgroup" :cgroup (:path cgroup)
                                          :order :ancestors-up})]
          (is (= 1 (count (into [] (link/lines below)))))
          (is (< 1 (count (into [] (link/lines above)))))
          (is (= {:type :iter :target "cgroup"} (info-of-kind below))))))))

;; --- refusals

(kernel-test k7-refusals
  (testing "each refusal has a message that says what to do"
    (with-open [raw (loaded :raw-tracepoint [[:mov64 :r0 0] [:exit]])
                point (loaded :tracepoint [[:mov64 :r0 0] [:exit]])
                probe (loaded :kprobe [[:mov64 :r0 0] [:exit]])
                many (loaded :kprobe [[:mov64 :r0 0] [:exit]]
                             :expected-attach-type (when (since/here? [:target :uprobe-multi])
                                                     :trace-uprobe-multi))
                clock (loaded :perf-event [[:mov64 :r0 0] [:exit]])
                tc (loaded :sched-cls [[:mov64 :r0 -1] [:exit]])
                packets (loaded :cgroup-skb [[:mov64 :r0 1] [:exit]])
                lookup (loaded :sk-lookup [[:mov64 :r0 1] [:exit]] :expected-attach-type :sk-lookup)
                tasks (links/iterator "task" [[:mov64 :r0 0] [:exit]])
                m (counter)]
      (let [before (fixture/settled-descriptors)]
        (are [program target kind words]
             (let [{:keys [message]
                    :bpfmap/keys [error op]} (error-of (link/attach program target))]
               (and (= [kind :attach] [error op]) (str/includes? message words)))
          7 nil :invalid-value "The program must be an open program or the map of a struct_ops, got 7"
          m {:xdp "lo"} :invalid-value "The program must be an open program, got \"#<bpf-map"
          raw nil :invalid-value
          "The program has no section that has a target: give a target; bpfmap.link/targets has all kinds"
          raw {:xdp "lo"} :invalid-value
          "A program for a target :xdp must be of type :xdp, got one of type :raw-tracepoint: targets of this program are :raw-tracepoint"
          raw {:struct-ops m} :invalid-value
          "A program cannot have a target :struct-ops: attach the open map that has the struct as"
          raw {:raw-tracepoint "sched_swich"} :not-found "no raw tracepoint has that name"
          point {:tracepoint "sched/sched_swich"} :not-found
          "No tracepoint \"sched/sched_swich\": did you mean sched/sched_switch?"
          probe {:uprobe "/nope/bash" :symbol "main"} :not-found
          "The program or library /nope/bash does not exist"
          probe {:uprobe "/tmp" :symbol "main"} :invalid-value "/tmp is not a file"
          probe {:uprobe "libnope" :symbol "main"} :not-found
          "No shared library \"libnope\": it is in none of the directories of /etc/ld.so.conf"
          probe {:uprobe "nope-command" :symbol "main"} :not-found
          "No program \"nope-command\": it is in no directory of PATH"
          probe {:uprobe "/etc/passwd" :symbol "main"} :invalid-value
          "/etc/passwd is not a 64-bit ELF file"
          probe {:uprobe "bash" :symbol "readlin"} :not-found
          "has no function \"readlin\": did you mean readline?"
          probe {:uprobe "bash"} :invalid-value "A target :uprobe must have :symbol or :offset"
         ;; The kernel would change the table of names there, for all processes.
         probe {:uprobe "/bin/sh" :offset 4096} :invalid-value
         "must be in its code, got 4096: its code is at "
         probe {:uprobe "libc" :symbol "malloc" :offset 1000000000} :invalid-value
         "elsewhere a probe changes data of all processes that use the file"
         many {:uprobe-multi "libc" :offsets [64]} :invalid-value "must be in its code, got 64"
          probe {:uprobe "/bin/true" :symbol "main"} :not-found
          "its symbols are stripped; give :offset, an offset in the file"
          many {:uprobe-multi "libc"} :invalid-value
          "A target :uprobe-multi must have :symbols or :offsets"
          many {:uprobe-multi "libc" :symbols "no_such_*"} :not-found "fits \"no_such_*\""
          clock {:perf-event {:type :softwar :frequency 1}} :invalid-value
          ":type must be a number or :software, :hardware or :raw, got :softwar"
          clock {:perf-event {:event :cpu-clok :frequency 1}} :invalid-value "did you mean :cpu-clock?"
          clock {:perf-event {:event :cpu-clock}} :invalid-value
          "A perf event must have :period or :frequency"
          clock {:perf-event {:frequency 0}} :invalid-value ":frequency must be a positive integer, got 0"
          clock {:perf-event {:hertz 1}} :invalid-value "Unknown key :hertz of a perf event"
          clock {:perf-event {:frequency 1} :cpu 4096} :invalid-value "failed with"
          clock {:perf-event {:frequency 1} :pid 0x7ffffff0} :not-found
          "the process of :pid does not exist"
          tc {:tcx :ingress :interface "l0"} :not-found
          "No network interface \"l0\": did you mean lo?"
          packets {:cgroup "/nope" :attach-type :cgroup-inet-egress} :not-found
          "/nope does not exist (any more)"
          packets {:cgroup "/tmp" :attach-type :cgroup-inet-egress} :invalid-value
          "the directory must be a cgroup of a cgroup2 hierarchy"
          packets {:cgroup "/tmp"} :invalid-value
          "must have an :attach-type of the program, got nil: use :cgroup-inet-ingress or :cgroup-inet-egress"
          lookup {:sk-lookup "/proc/self/ns/mnt"} :invalid-value
          "\"/proc/self/ns/mnt\" must be a network namespace"
          tasks {:iter "task" :order :up} :invalid-value ":order must be")
        (testing "cookies of many functions"
          (let [{:keys [message] :bpfmap/keys [error]}
                (error-of (link/attach many {:uprobe-multi "libc" :symbols ["malloc" "free"]}
                                       {:cookie [1 2 3]}))]
            (is (= :invalid-value error))
            (is (str/includes? message ":cookie must have one value for each of the 2 functions"))))
        (testing "several functions with one name"
          (with-redefs [symbols/functions-named
                        (fn [_ _] [{:name "f" :offset 64 :local true :old false}
                                   {:name "f" :offset 128 :local true :old false}])]
            (let [{:keys [message] :bpfmap/keys [error]}
                  (error-of (link/attach probe {:uprobe "libc" :symbol "f"}))]
              (is (= :ambiguous error))
              (is (str/includes? message "give one of their offsets as :offset: 64 or 128")))))
        (testing "tracefs that cannot be mounted"
          (with-redefs-fn {#'tracefs/mount-points []}
            #(linux/on-a-kernel-that-refuses
              [{:call 430 :errno 38}] ; fsopen, ENOSYS
              (fn []
                (let [{:keys [message] :bpfmap/keys [error]}
                      (error-of (link/attach point {:tracepoint "sched/sched_switch"}))]
                  (is (= :not-supported error))
                  (is (str/includes? message "tracefs is not mounted, and cannot be mounted: mount "))))))
          (with-redefs-fn {#'tracefs/mount-points []}
            #(.close ^Closeable (link/attach point {:tracepoint "sched/sched_switch"}))))
        (is (str/includes? (:message (error-of (link/close 7)))
                           "The link must be a result of attach or open, got 7"))
        (is (= before (fixture/open-descriptors)))))))

(deftest preferred-functions
  (testing "a name means the global function and its default version"
    (are [functions offsets] (= offsets (map :offset (symbols/preferred functions)))
      [{:offset 1 :local true :old false} {:offset 2 :local false :old false}] [2]
      [{:offset 1 :local false :old true} {:offset 2 :local false :old false}] [2]
      [{:offset 1 :local false :old false} {:offset 1 :local false :old false}] [1]
      [{:offset 2 :local true :old false} {:offset 1 :local true :old false}] [1 2]
      [{:offset 1 :local false :old true}] [1]
      [] [])))

;; --- what not every kernel has

(defn- lacks?
  "Asserts that f throws `:not-supported` with the words; returns true."
  [words f]
  (let [{:keys [message] :bpfmap/keys [error]} (error-of (f))]
    (is (= :not-supported error) message)
    (is (str/includes? (str message) words))
    true))

(def ^:private read-a-file #(slurp "/etc/passwd"))

(kernel-test ^{:needs [[:kernel :links-of-perf-events]]} k8-kprobes
  (testing "kernel functions run programs, or the kernel option is named"
    (with-open [p (loaded :kprobe [[:mov64 :r0 0] [:exit]])]
      (if (nil? (kernel.perf/event-type "kprobe"))
        (lacks? "it must be built with CONFIG_KPROBE_EVENTS" #(link/attach p {:kprobe "vfs_read"}))
        (do
          (doseq [target [{:kprobe "vfs_read"} {:kprobe "vfs_read" :return true}]]
            (check-kind {:program #(loaded :kprobe (counting % 0))
                         :target target
                         :provoke read-a-file
                         :info (perf-info (merge {:event :kprobe :function "vfs_read"}
                                                 (select-keys target [:return])))}))
          (check-kind {:program #(loaded :kprobe (counting % 0))
                       :target {:ksyscall "gettid"}
                       :provoke #(linux/call "gettid")
                       :info (perf-info {:event :kprobe})})
          (are [target kind words]
               (let [{:keys [message] :bpfmap/keys [error]} (error-of (link/attach p target))]
                 (and (= kind error) (str/includes? message words)))
            {:kprobe "vfs_raed"} :not-found
            "this kernel has no function vfs_raed; functions differ between releases"
            {:kprobe "vfs_raed"} :not-found "did you mean vfs_read?"
            {:kprobe "vfs_read" :offset 100000} :invalid-value ":offset"))))))

(defn- without-fprobe?
  "Returns true if the kernel cannot attach a program for :trace-kprobe-multi, for want of an option."
  [program]
  (try
    (.close ^Closeable (link/attach program {:kprobe-multi ["vfs_read"]}))
    false
    (catch clojure.lang.ExceptionInfo e
      (lacks? "this kernel is built without CONFIG_FPROBE" #(throw e)))))

(kernel-test ^{:needs [[:target :kprobe-multi]]} k8-kprobes-of-many-functions
  (testing "many kernel functions run one program, or the kernel option is named"
    (let [program #(loaded :kprobe (counting % 0) :expected-attach-type :trace-kprobe-multi)
          works? (with-open [m (counter) ^Program p (program m)]
                   (not (without-fprobe? p)))]
      (when works?
        (doseq [target [{:kprobe-multi ["vfs_read" "vfs_write"]}
                        {:kprobe-multi "vfs_rea?" :return true}]]
          (check-kind {:program program
                       :target target
                       :provoke read-a-file
                       :info {:type :kprobe-multi}}))
        (with-open [p (loaded :kprobe [[:mov64 :r0 0] [:exit]]
                              :expected-attach-type :trace-kprobe-multi)]
          (are [target kind words]
               (let [{:keys [message] :bpfmap/keys [error]} (error-of (link/attach p target))]
                 (and (= kind error) (str/includes? message words)))
            {:kprobe-multi ["vfs_read" "vfs_raed"]} :not-found "did you mean vfs_read?"
            {:kprobe-multi "no_such_*"} :not-found "No kernel function fits \"no_such_*\""))))))

(kernel-test ^{:needs [[:kernel :kprobe-sessions]]} k1-k8-kprobe-sessions
  (testing "one link runs a program when kernel functions begin, and when they return"
    ;; A system call that other processes do not make.
    (let [call! #(linux/call "sched_get_priority_max" 0)
          function (functions/of-system-call "sched_get_priority_max")
          loaded-for (fn [m result attach-type]
                       (loaded :kprobe (counting m result) :expected-attach-type attach-type))]
      (doseq [[result runs] {0 2, 1 1}]
        (with-open [m (counter)
                    calls (counter)
                    ^Program p (loaded-for m result :trace-kprobe-session)
                    ^Program entry (loaded-for calls 0 :trace-kprobe-multi)]
          (if (without-fprobe? entry)
            (lacks? "this kernel is built without CONFIG_FPROBE"
                    #(link/attach p {:kprobe-multi [function] :session true}))
            (with-open [l (link/attach p {:kprobe-multi [function] :session true})
                        _ (link/attach entry {:kprobe-multi [function]})]
              (is (= {:type :kprobe-multi :functions 1} (select-keys (link/info l)
                                                                     [:type :functions])))
              (dotimes [_ 20] (call!))
              (is (<= 20 (calls 0)))
              (is (= (* runs (calls 0)) (m 0)) (str "result " result))
              (testing "a program for entries only is refused"
                (let [{:keys [message] :bpfmap/keys [error]}
                      (error-of (link/attach entry {:kprobe-multi [function] :session true}))]
                  (is (= :invalid-value error))
                  (is (str/includes? message ":trace-kprobe-session")))))))))))

(kernel-test k8-trampolines
  (testing "typed kernel functions run programs, or the load says that the kernel lacks them"
    (let [traced (fn [type attach-type function]
                   (fn [m]
                     (loaded type (counting m 0) :expected-attach-type attach-type
                             :attach-btf-id (links/btf-id :func function))))
          works? (with-open [m (counter)]
                   (try
                     (.close ^Closeable ((traced :tracing :trace-fentry "vfs_read") m))
                     true
                     (catch clojure.lang.ExceptionInfo e
                       (is (not (str/includes? (ex-message e) "needs CAP_")))
                       false)))]
      (when works?
        (doseq [[target attach-type] {{:fentry "vfs_read"} :trace-fentry
                                      {:fexit "vfs_read"} :trace-fexit}]
          (check-kind {:program (traced :tracing attach-type "vfs_read")
                       :target target
                       :provoke read-a-file
                       :info (cond-> {:type :tracing :attach-type attach-type}
                               (since/here? [:kernel :targets-of-tracing])
                               (assoc :target-btf-id (links/btf-id :func "vfs_read")))}))
        (when (since/has? [:cookie :fentry])
          (with-open [m (counter)
                      ^Program p (loaded :tracing (links/storing-cookie m)
                                         :expected-attach-type :trace-fentry
                                         :attach-btf-id (links/btf-id :func "vfs_read"))
                      _ (link/attach p {:fentry "vfs_read"} {:cookie 77})]
            (is (eventually? #(do (read-a-file) (= 77 (m 0)))))))
        (check-kind {:program (traced :tracing :modify-return "security_file_open")
                     :target {:fmod-ret "security_file_open"}
                     :provoke read-a-file
                     :info {:type :tracing :attach-type :modify-return}})
        (when (since/here? [:lsm "bpf"])
          (check-kind {:program (traced :lsm :lsm-mac "bpf_lsm_file_open")
                       :target {:lsm "file_open"}
                       :provoke read-a-file
                       :info {:type :tracing :attach-type :lsm-mac}}))))))

(defn- unless-refused
  "Returns the result of f, which loads a program for a kernel function or another program's.
  Returns nil if this kernel refuses such programs, after it checked the error."
  [f]
  (try
    (f)
    (catch clojure.lang.ExceptionInfo e
      (is (= :not-supported (:bpfmap/error (ex-data e))))
      (is (str/includes? (ex-message e)
                         "this kernel has no trampolines: it refuses all programs at functions"))
      (is (str/includes? (ex-message e) "built with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS"))
      (is (not (str/includes? (ex-message e) "CAP_")))
      nil)))

(kernel-test k8-replaced-functions
  (testing "a program runs in place of another program's function while its link is open"
    (let [o (object/read "test/objects/packets-el.o")
          replacement (update-in o [:programs "count"]
                                 #(-> % (dissoc :attach-type)
                                      (assoc :type :ext :section "freplace/count" :target "count")))
          packets (fn [x] @(get-in x [:variables "packets"]))
          run-once (fn [x] (prog/test-run (get-in x [:programs "count"]) {:data (byte-array 64)}))]
      (with-open [x (object/load o)]
        (when-let [loaded (unless-refused
                           #(object/load replacement
                                         {:attach-to {"count" (get-in x [:programs "count"])}}))]
          (with-open [^Closeable y loaded]
            (let [p (get-in y [:programs "count"])]
              (is (= {:freplace "count"} (link/target p)))
              (run-once x)
              (with-open [l (link/attach p)]
                (run-once x)
                (is (= [1 1] (map packets [x y])) "the other program runs in its place")
                (is (= (cond-> {:type :tracing :program-id (:id (prog/info p))}
                         (since/here? [:kernel :targets-of-tracing])
                         (assoc :target-obj-id (:id (prog/info (get-in x [:programs "count"])))))
                       (select-keys (link/info l) [:type :program-id :target-obj-id :attach-type])))
                (is (= [(link/info l)] (filter #(= (:id (link/info l)) (:id %)) (host/links))))
                (let [{:keys [message] :bpfmap/keys [error]}
                      (error-of (link/attach p {:freplace "count"} {:cookie 1}))]
                  (is (= :invalid-value error))
                  (is (str/includes? message "must not have the option :cookie"))))
              (let [runs-again? (fn []
                                  (eventually? #(let [before (packets x)]
                                                  (run-once x)
                                                  (< (long before) (long (packets x))))))
                    replaces? (fn [target]
                                (with-open [_ ^Closeable (link/attach p target)]
                                  (let [before (mapv packets [x y])]
                                    (run-once x)
                                    (= (mapv + [0 1] before) (mapv packets [x y])))))
                    function {:freplace "count"}
                    other (get-in x [:programs "count"])]
                (is (runs-again?) "the function runs again")
                (testing "and again, with the program of the load or another one"
                  (doseq [target [function
                                  (assoc function :program other)
                                  (assoc function :program {:program-id (:id (prog/info other))})]]
                    (is (replaces? target))
                    (is (runs-again?)))
                  (with-open [z (object/load o)]
                    (let [third (get-in z [:programs "count"])
                          before (packets z)]
                      (with-open [l (link/attach p (assoc function :program third))]
                        (run-once z)
                        (is (= before (packets z)))
                        (when (since/has? [:kernel :targets-of-tracing])
                          (is (= (:id (prog/info third)) (:target-obj-id (link/info l)))))
                        (testing "two at once"
                          (is (replaces? function)))
                        (is (= :busy (:bpfmap/error
                                      (error-of (link/attach p (assoc function
                                                                      :program third))))))))))
                (testing "after the program of the load was closed, while it is open elsewhere"
                  (with-open [^Closeable again (prog/open {:program-id (:id (prog/info other))})]
                    (.close ^Closeable other)
                    (is (with-open [_ ^Closeable (link/attach p function)]
                          (let [before (packets y)]
                            (prog/test-run again {:data (byte-array 64)})
                            (= (inc (long before)) (packets y))))))
                  (let [{:keys [message] :bpfmap/keys [error]}
                        (error-of (eventually?
                                   #(not (.close ^Closeable (link/attach p function)))))]
                    (is (= :not-found error))
                    (is (str/includes? message "does not exist")))))
              (testing "a function or program that does not fit"
                (with-open [filter (prog/load {:type :socket-filter
                                               :insns [[:mov64 :r0 0] [:exit]]})
                            z (object/load o)]
                  (are [target error words]
                       (let [found (error-of (link/attach p target))]
                         (and (= error (:bpfmap/error found))
                              (str/includes? (:message found) words)))
                    {:freplace "count" :program filter} :not-found
                    "has no function count: it was loaded without BTF"
                    {:freplace "cuont" :program (get-in z [:programs "count"])} :not-found
                    "did you mean count?"
                    {:freplace "count" :program 7} :invalid-value
                    ":program must be an open program, or {:program-id n}, got 7")))
              (testing "a copy that was opened by its id does not know its program"
                (with-open [^Closeable copy (prog/open {:program-id (:id (prog/info p))})]
                  (let [{:keys [message] :bpfmap/keys [error]}
                        (error-of (link/attach copy {:freplace "count"}))]
                    (is (= :invalid-value error))
                    (is (str/includes? message "give the other one as :program"))))))))))))

(kernel-test k8-functions-of-programs
  (testing "a program at another program's function attaches once, and then must be loaded again"
    (let [o (object/read "test/objects/packets-el.o")
          traced (update-in o [:programs "count"]
                            #(-> % (dissoc :lines :core)
                                 (assoc :type :tracing :attach-type :trace-fexit
                                        :section "fexit/count" :target "count"
                                        :insns [[:mov64 :r0 0] [:exit]])))]
      (with-open [x (object/load o)]
        (when-let [loaded (unless-refused
                           #(object/load traced
                                         {:attach-to {"count" (get-in x [:programs "count"])}}))]
          (with-open [^Closeable y loaded]
            (let [p (get-in y [:programs "count"])]
              (.close ^Closeable (link/attach p))
              (let [{:keys [message] :bpfmap/keys [error]} (error-of (link/attach p))]
                (is (= :not-supported error))
                (is (str/includes? message "once; load it again"))))))))))

(kernel-test ^{:needs [[:kernel :lsm-cgroups]]} k8-security-hooks-of-a-cgroup
  (testing "a hook of the BPF LSM runs programs for the processes of a cgroup"
    (let [program (fn [m]
                    (loaded :lsm (counting m 1) :expected-attach-type :lsm-cgroup
                            :attach-btf-id (links/btf-id :func "bpf_lsm_socket_connect")))]
      (with-open [m (counter)
                  cgroup (objects/cgroup)]
        (when-let [^Closeable p (unless-refused #(program m))]
          (.close p)
          (since/needing [[:lsm "bpf"]]
            (doseq [target [{:cgroup (:path cgroup)}
                            {:cgroup (:path cgroup) :attach-type :lsm-cgroup}]]
              (check-kind {:program program
                           :target target
                           :provoke #(links/provoke-in-cgroup cgroup)
                           :info {:type :cgroup :cgroup-id (:id cgroup)
                                  :attach-type :lsm-cgroup}}))))))))

(kernel-test ^{:needs [[:target :netkit]]} k8-netkit
  (testing "packets of a netkit device run programs, or the kernel option is named"
    (links/in-network-namespace
     (fn []
       (let [program #(loaded :sched-cls (counting % -1))]
         (with-open [m (counter) ^Program p (program m)]
           (if (links/add-netkit)
             (do
               (check-kind {:program program
                            :target {:netkit :primary :interface "kit0"}
                            :provoke #(links/send-udp "10.9.8.2")
                            :info {:type :netkit :attach-type :netkit-primary}})
               (let [{:keys [message] :bpfmap/keys [error]}
                     (error-of (link/attach p {:netkit :primary :interface "v0"}))]
                 (is (= :invalid-value error))
                 (is (str/includes? message "the interface must be a netkit device"))))
             (lacks? "this kernel is built without CONFIG_NETKIT"
                     #(link/attach p {:netkit :primary :interface "v0"})))))))))

;; --- ownership

(kernel-test k9-nothing-left-half-way
  (testing "an attachment that fails half-way leaves nothing"
    (with-open [p (loaded :perf-event [[:mov64 :r0 0] [:exit]])]
      (let [before (fixture/settled-descriptors)
            opened (atom 0)
            open @#'kernel.perf/open]
        (with-redefs [kernel.perf/open (fn [spec]
                                         (if (= 2 (swap! opened inc)) -24 (open spec)))]
          (is (= :too-many-files
                 (:bpfmap/error (error-of (link/attach p {:perf-event {:frequency 1}}))))))
        (let [made (atom 0)
              create @#'kernel.link/create]
          (with-redefs [kernel.link/create (fn [link ctx]
                                             (if (= 2 (swap! made inc)) -12 (create link ctx)))]
            (is (= :no-memory
                   (:bpfmap/error (error-of (link/attach p {:perf-event {:frequency 1}})))))))
        (is (= before (fixture/open-descriptors)))
        (is (eventually? #(not-any? #{(:id (prog/info p))} (map :program-id (host/links)))))))))

(kernel-test k9-before-links-of-perf-events
  (testing "a kernel without links of perf events runs the program for as long as it is attached"
    (with-open [m (counter)
                p (loaded :tracepoint (counting m 0))
                clock (loaded :perf-event (counting m 0))]
      (linux/on-a-kernel-that-refuses
       [{:errno 22 :arguments {0 28}}]
       (fn []
         (let [before (fixture/settled-descriptors)]
           (doseq [[program target provoke] [[p {:tracepoint "sched/sched_switch"} #(Thread/sleep 1)]
                                             [clock {:perf-event {:frequency 999}}
                                              #(links/spin 20)]]]
             (with-open [l (link/attach program target)]
               (is (moves? m provoke))
               (doseq [f [#(link/info l) #(link/pin! l "/sys/fs/bpf/x") #(link/update! l p)]]
                 (let [{:keys [message] :bpfmap/keys [error]} (error-of (f))]
                   (is (= :not-supported error))
                   (is (str/includes? message "links of perf events need Linux 5.15")))))
             (is (stands-still? m provoke)))
           (is (= before (fixture/open-descriptors)))))))))

(kernel-test k9-privileges
  (testing "attaching without a privilege names it"
    (with-open [p (loaded :tracepoint [[:mov64 :r0 0] [:exit]])]
      (let [{:keys [message] :bpfmap/keys [error]}
            (fixture/unprivileged #(error-of (link/attach p {:perf-event {:frequency 1}})))]
        (is (= :invalid-value error) message))
      (with-open [clock (loaded :perf-event [[:mov64 :r0 0] [:exit]])]
        (let [{:keys [message] :bpfmap/keys [error]}
              (fixture/unprivileged #(error-of (link/attach clock {:perf-event {:frequency 1}})))]
          (is (= :permission error))
          (is (str/includes? message "CAP_PERFMON")))))))

(kernel-test ^:volume k9-rounds
  (testing "attaching and detaching many times leaves no descriptor, perf event or link"
    (doseq [[kind found] (link-rounds/rounds 12)]
      (is (= {:left [0 0] :no-link true} (dissoc found :millis)) (str kind " " found)))))

(def ^:private story
  "Code of a process that attaches what the page attaches, prints the ids of the programs, and waits.

  It evaluates `args`: the paths of a pinned program, a cgroup and a program with probes, or nil."
  '(do
     (require '[bpfmap.link :as link] '[bpfmap.object :as object] '[bpfmap.prog :as prog])
     (defn of [file & options]
       (object/load (object/read (str "test/objects/" file "-el.o")) (apply hash-map options)))
     (defn loaded [type r0 & more]
       (prog/load (merge {:type type :name "t_killed" :insns [[:mov64 :r0 r0] [:exit]]}
                         (apply hash-map more))))
     (def latency (of "latency"))
     (def attachments
       (concat
        (map (fn [p] [p nil]) (vals (:programs latency)))
        [[(prog/open (:pinned args)) {:raw-tracepoint "sched_switch"}]
         [(loaded :kprobe 0) {:uprobe "/bin/bash" :symbol "main"}]
         [(loaded :perf-event 0) {:perf-event {:frequency 1}}]
         [(loaded :xdp 2) {:xdp "v1"}]
         [(loaded :sched-cls -1) {:tcx :ingress :interface "v1"}]
         [(loaded :cgroup-device 1) {:cgroup (:cgroup args)}]
         [(loaded :tracing 0 :expected-attach-type :trace-iter :attach-btf-id (:iterator args))
          {:iter "task"}]]
        (when-let [path (:traced args)]
          [[(get (:programs (of "usdt")) "any_probe")
            {:usdt path :provider "server" :name "request"}]])))
     (def links (mapv (fn [[p target]] (link/attach p target)) attachments))
     (def newer (of "newer"))
     (def control (link/attach (get (:maps newer) "own_cc")))
     (prn (mapv (comp :id prog/info first) attachments))
     (flush)
     (Thread/sleep 600000)))

(kernel-test ^{:needs [[:target :tcx] [:map-type :arena]]} k9-killed-processes
  (testing "a process that is killed leaves no link, program or registered struct"
    (with-open [cgroup (objects/cgroup)
                traced (probed/program server)
                m (counter)
                p (loaded :raw-tracepoint (counting m 0) :name "t_killed")]
      (let [path (fixture/new-pin)
            _ (prog/pin! p path)
            code (pr-str `(do (def ~'args ~{:pinned path
                                            :cgroup (:path cgroup)
                                            :iterator (links/btf-id :func "bpf_iter_task")
                                            :traced (when (fixture/x86-64?) (:path traced))})
                              ~story))
            registered? #(str/includes?
                          (slurp "/proc/sys/net/ipv4/tcp_available_congestion_control") "own_cc")
            held #(:programs (link/attached {:cgroup (:path cgroup) :attach-type :cgroup-device}))
            ^java.util.List command
            [(str (System/getProperty "java.home") "/bin/java")
             "--enable-native-access=ALL-UNNAMED" "-XX:TieredStopAtLevel=1"
             "-cp" (System/getProperty "java.class.path") "clojure.main" "-e" code]
            ^Process process (links/in-network-namespace #(.start (ProcessBuilder. command)))]
        (try
          (let [ids (set (edn/read-string (.readLine ^java.io.BufferedReader
                                                     (io/reader (.getInputStream process)))))
                linked #(some ids (map :program-id (host/links)))
                others (disj ids (:id (prog/info p)))
                there #(some others (map :id (host/programs {:brief true})))]
            (is (<= 9 (count ids)))
            (is (moves? m #(Thread/sleep 1)))
            (is (linked))
            (is (registered?))
            (is (seq (held)))
            (.destroyForcibly process)
            (.waitFor process)
            (is (eventually? (complement linked)))
            (is (eventually? (complement there)))
            (is (eventually? (complement registered?)))
            (is (empty? (held)))
            (is (stands-still? m #(Thread/sleep 1))))
          (finally
            (.destroyForcibly process)
            (.waitFor process)
            (.delete (io/file path))))))))

;; --- programs of objects

(kernel-test k10-attached-by-section
  (testing "a program of an object attaches to the target of its section"
    (let [of-section (fn ^Program [^Program p section text & {:as more}]
                       (Program. (program/descriptor p) (program/type-of p) "t_section"
                                 (merge {:name "t_section" :section section :target text} more)))]
      (with-open [m (counter)
                  raw (loaded :raw-tracepoint (counting m 0))
                  ^Program p (of-section raw "raw_tp/sched_switch" "sched_switch")]
        (is (= {:raw-tracepoint "sched_switch"} (link/target p)))
        (with-open [l (link/attach p)]
          (is (moves? m #(Thread/sleep 1)))
          (is (= "#<bpf-link {:raw-tracepoint \"sched_switch\"}>" (str l)))))
      (testing "as object/load says"
        (with-open [x (object/load (object/read "test/objects/packets-el.o"))]
          (let [p (get-in x [:programs "count"])]
            (is (nil? (link/target p)))
            (is (str/includes? (:message (error-of (link/attach p)))
                               "The section \"xdp\" has no complete target")))))
      (with-open [raw (loaded :xdp [[:mov64 :r0 2] [:exit]])
                  ^Program p (of-section raw "xdp" nil :attach-type :xdp)]
        (is (nil? (link/target p)))
        (let [{:keys [message] :bpfmap/keys [error]} (error-of (link/attach p))]
          (is (= :invalid-value error))
          (is (str/includes? message (str "The section \"xdp\" has no complete target: give a "
                                          "target such as {:xdp \"eth0\"}")))))
      (with-open [cgroup (objects/cgroup)
                  m (counter)
                  p (loaded :cgroup-skb (counting m 1)
                            :expected-attach-type :cgroup-inet-egress)
                  _ (link/attach p {:cgroup (:path cgroup)})]
        (is (moves? m #(links/provoke-in-cgroup cgroup)) "its attach type is known"))
      (with-open [raw (loaded :raw-tracepoint [[:mov64 :r0 0] [:exit]])
                  ^Program p (of-section raw "struct_ops/ssthresh" "ssthresh")]
        (is (str/includes? (:message (error-of (link/attach p)))
                           "in place of the program m, the open map of the struct")))
      (is (str/includes? (:message (error-of (link/target 7)))
                         "The program must be an open program, got 7")))))
