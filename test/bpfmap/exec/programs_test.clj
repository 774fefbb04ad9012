(ns bpfmap.exec.programs-test
  "The commands about programs and links, as functions and as command lines."
  (:require [bpfmap.cli.calling :refer [bpfmap edn-of lines-of read-edn refused words]]
            [bpfmap.cli.live-commands :as live-commands]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.output :as output]
            [bpfmap.exec.program-info :as program-info]
            [bpfmap.exec.views :as views]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.link :as link]
            [bpfmap.prog :as prog]
            [clojure.data.json :as json]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.io Closeable)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(def ^:private this-pid (.pid (ProcessHandle/current)))

(def ^:private counter
  "The name of the program, which no other run of these tests has at the same time."
  (str "t_cnt_" this-pid))

(def ^:private counting
  "Adds one to the value of key 0 of an array."
  (fn [m]
    [[:ld-map-value :r1 m 0]
     [:mov64 :r2 1]
     [:atomic-add64 [:r1 0] :r2]
     [:mov64 :r0 0]
     [:exit]]))

(defn- with-another-counter
  "Calls f with a map, a program that counts into it, and its attachment to a tracepoint."
  [f]
  (with-open [m ^Closeable (bpf/create {:name "t_calls" :type :array :key :u32 :value :u64
                                        :max-entries 1 :flags #{:mmapable}})
              p ^Closeable (prog/load {:type :raw-tracepoint :name counter
                                       :insns (counting m)})
              a ^Closeable (prog/attach-raw-tracepoint p "sys_enter")]
    (f m p a)))

(defn- id-of [x] (:id (prog/info x)))

(defn- with-counter
  "Does the same as [[with-another-counter]], when the kernel has freed the programs before it."
  [f]
  (fixture/eventually (fn [] (not-any? #(= counter (:name %)) (host/programs {:brief true}))))
  (with-another-counter f))

(defn- held-here
  "Returns a row without other holders: a process that lists objects holds each for a moment."
  [row]
  (cond-> row
    (:held row) (update :held (partial filterv #(= this-pid (:pid %))))))

(defn- without-statistics
  "Returns a row without what other processes change by listing or measuring programs."
  [row]
  (held-here (dissoc row :run-count :run-time-ns)))

;; --- prog list and show

(kernel-test program-rows
  (testing "prog list has the maps, links, holders and pins of programs"
    (with-counter
     (fn [m p a]
       (let [pin (fixture/new-pin)
             this {:pid this-pid :command (procfs/command this-pid)}
             expected {:id (id-of p) :type :raw-tracepoint :name counter
                       :tag (:tag (prog/info p))
                       :maps [{:id (:id (bpf/info m)) :name "t_calls" :type :array}]
                       :links [{:id (id-of a) :type :raw-tracepoint :attached-to "sys_enter"}]
                       :pinned [pin] :held [this]}
             row (fn []
                   (without-statistics
                    (first (exec/prog-list {:where (str "id=" (id-of p))}))))
             show (fn [ref] (without-statistics (exec/prog-show {:ref ref})))]
         (prog/pin! p pin)
         (try
           (is (= expected (select-keys (row) (keys expected))))
           (is (pos-int? (:memlock (row))))
           (is (= (row) (show (id-of p)) (show pin) (show counter) (show p)))
           (is (= [:id :type :name :tag :maps :links :memlock :pinned :held]
                  (take 9 (keys (row)))))
           (testing "conditions and columns"
             (is (= [{:name counter :memlock (:memlock (row))}]
                    (exec/prog-list {:where ["maps.name=t_calls" "links.attached-to=sys_enter"
                                             "type=raw-tracepoint" (str "held.pid=" this-pid)
                                             (str "pinned=" pin)]
                                     :columns "name,memory"})))
             (is (= [(:id expected)]
                    (into [] (map :id)
                          (exec/prog-list {:where (str "name=" counter) :stream true}))))
             (is (= ":columns must be a whole column, such as maps, got \"maps.name\""
                    (:message (error-of (exec/prog-list {:columns "maps.name"}))))))
           (testing "as a table"
             (let [[heading line :as lines] (lines-of "prog" "list" "--where" (str "name=" counter))]
               (is (= 2 (count lines)))
               (is (= (words "ID TYPE NAME TAG MEMORY MAPS ATTACHED TO HELD BY PINNED")
                      (remove #{"RUNS" "TIME"} (words heading))))
               (is (str/includes? line (str "t_calls[" (:id (bpf/info m))
                                            "]  raw-tracepoint sys_enter[" (id-of a) "]  ")))
               (is (str/ends-with? line pin))))
           (testing "as data"
             (is (= (row)
                    (without-statistics
                     (first (edn-of "prog" "list" "--where" (str "name=" counter))))
                    (without-statistics (edn-of "prog" "show" counter))))
             (let [lines (set (lines-of "prog" "show" counter))]
               (is (contains? lines (str "maps            t_calls[" (:id (bpf/info m)) "]")))
               (is (contains? lines (str "attached-to     raw-tracepoint sys_enter[" (id-of a)
                                         "]"))))
             (is (str/starts-with? (:out (bpfmap "prog" "list" "--csv" "--columns" "id,name"))
                                   "id,name\n")))
           (finally (.delete (io/file pin)))))))))

(kernel-test program-references
  (testing "errors about references to programs"
    (with-counter
     (fn [_ _ _]
       (is (= [1 (str "bpfmap: No program named \"t_ct_" this-pid "\": did you mean " counter "?")]
              (refused "prog" "show" (str "t_ct_" this-pid))))
       (with-another-counter
        (fn [_ _ _]
          (let [[exit line] (refused "prog" "dump" counter)]
            (is (= 1 exit))
            (is (re-matches (re-pattern (str "bpfmap: 2 programs are named \"" counter
                                              "\": use an id: \\d+ or \\d+"))
                            line)))))))
    (let [pin (fixture/new-pin)]
      (with-open [m ^Closeable (bpf/create {:type :array :value :u64 :max-entries 1})]
        (bpf/pin! m pin)
        (is (= [1 (str "bpfmap: " pin " is not a program: it is a map")]
               (refused "prog" "show" pin)))
        (is (= [1 (str "bpfmap: " pin " is not a link: it is a map")]
               (refused "link" "show" pin)))
        (bpf/unpin! m)))))

;; --- prog dump

(kernel-test q2-dumped-program
  (testing "prog dump prints assembly with the names of maps, and data"
    (with-counter
     (fn [m p _]
       (let [reference {:map "t_calls" :id (:id (bpf/info m))}]
         (is (= {:name counter :type :raw-tracepoint
                 :insns [[:ld-map-value :r1 reference 0]
                         [:mov64 :r2 1]
                         [:atomic-add64 [:r1 0] :r2]
                         [:mov64 :r0 0]
                         [:exit]]}
                (exec/prog-dump {:ref (id-of p)})
                (edn-of "prog" "dump" (id-of p))))
         (is (= [(str counter ":")
                 (str "   0: r1 = &map t_calls[" (:id reference) "]")
                 "   2: r2 = 1"
                 "   3: lock *(u64 *)(r1 + 0) += r2"
                 "   4: r0 = 0"
                 "   5: exit"]
                (lines-of "prog" "dump" counter))))))))

(defn- assembled
  "Returns the text of llvm-mc for lines with bytes; nil if it is not installed."
  [lines]
  (when (fixture/executable "llvm-mc")
    (let [file (java.io.File/createTempFile "bpfmap" ".txt")]
      (try
        (spit file (str/join "\n" lines))
        (:out (fixture/run ["llvm-mc" "--disassemble" (str file)]))
        (finally (.delete file))))))

(kernel-test dumped-machine-code
  (testing "prog dump --jited prints bytes that a disassembler reads"
    (with-open [p ^Closeable (prog/load {:type :socket-filter :name counter
                                         :insns [[:mov64 :r0 0] [:exit]]})]
      (let [[heading & lines] (lines-of "prog" "dump" (id-of p) "--jited")
            size (:jited-bytes (prog/info p))]
        (is (re-matches (re-pattern (str "# " counter ": " size " bytes at 0x[0-9a-f]+")) heading))
        (is (every? #(re-matches #"(0x[0-9a-f]{2} )+ *# +[0-9a-f]+" %) lines))
        (is (= size (count (re-seq #"0x[0-9a-f]{2}" (str/join " " lines)))))
        (when-let [text (and (= "amd64" (System/getProperty "os.arch"))
                             (assembled (cons heading lines)))]
          ;; The function returns, or jumps to the code that does it in its place. Some kernels add
          ;; a trap against straight-line speculation.
          (is (re-find #"leave\s+(retq|jmp\s+\S+)\s*(int3\s*)?$" text))))
      (is (= (prog/machine-code p) (exec/prog-dump {:ref p :jited true})))
      (is (= (:address (prog/machine-code p))
             (:address (edn-of "prog" "dump" (id-of p) "--jited"))))))
  (testing "source lines are comments before their code"
    (is (= ["# f: 4 bytes at 0xffffffffc0000000"
            (str "0x01" (apply str (repeat 76 " ")) "#    0")
            "# a = 1; @ a.c:3"
            (str "0x02 0x03 0x04" (apply str (repeat 66 " ")) "#    1")]
           (:lines (views/program {:name "f" :address 18446744072635809792N
                                   :code [1 2 3 4]
                                   :lines [{:offset 1 :file "a.c" :line 3 :text "  a = 1;"}
                                           {:offset 2 :file "a.c" :line 3 :text "  a = 1;"}]}
                                  nil))))))

;; --- prog top

(defn- calls!
  "Makes some system calls."
  [n]
  (dotimes [_ n] (procfs/kernel-release) (.exists (io/file "/proc/self"))))

(kernel-test q1-top-frames
  (testing "prog top measures the programs of the host while it runs"
    (with-counter
     (fn [m p _]
       (let [own (fn [{:keys [rows]}] (first (filter #(= (id-of p) (:id %)) rows)))
             frames (reduce (fn [frames frame]
                              (let [frames (conj frames frame)]
                                (if (= 3 (count frames)) (reduced frames) (do (calls! 50) frames))))
                            [] (exec/prog-top {:interval 0.05}))
             [a b c] (map own frames)]
         (is (= 3 (count frames)))
         (is (= [:id :type :name :runs-per-second :average-ns :cpu-percent :runs :time-ns]
                (keys b)))
         (is (<= 50 (- (:runs b) (:runs a))))
         (is (<= (:runs b) (:runs c)))
         (is (pos? (:average-ns b)))
         (is (pos? (:runs-per-second b)))
         (is (< 0.04 (:interval (second frames)) 5))
         (is (< (:elapsed (first frames)) (:elapsed (second frames))))
         (testing "a program that did not run has no average"
           (with-open [idle ^Closeable (prog/load {:type :socket-filter :name "t_idle"
                                                   :insns [[:mov64 :r0 0] [:exit]]})]
             (let [[[row]] (into [] (map :rows)
                                 (exec/prog-top {:seconds 0.05
                                                 :where (str "id=" (id-of idle))}))]
               (is (= {:id (id-of idle) :type :socket-filter :name "t_idle" :runs-per-second 0.0
                       :cpu-percent 0.0 :runs 0 :time-ns 0}
                      row))
               (is (= ["socket-filter" "t_idle" "-" "-" "-" "0" "-"]
                      (rest (words (last (output/table @#'live-commands/program-columns
                                                      [row])))))))))
         (testing "and no longer"
           (is (= 0 (fixture/open-statistics)))
           (is (pos? (m 0))))
         (testing "sorts by the use of the processor, or as wanted"
           (doseq [{:keys [rows]} frames]
             (is (= rows (reverse (sort-by :cpu-percent (reverse rows))))))
           (is (= [[{:name counter}]]
                  (into [] (map (fn [{:keys [rows]}] (map #(select-keys % [:name]) rows)))
                        (exec/prog-top {:seconds 0.05 :where (str "name=" counter) :sort "-runs/s"
                                        :limit 1})))))
         (is (= "#bpfmap.exec/prog-top {:interval 1.0, :seconds 2}"
                (pr-str (exec/prog-top {:seconds 2})))))))))

(kernel-test top-command
  (testing "prog top prints a frame at every interval"
    (with-counter
     (fn [_ p _]
       (let [{:keys [exit out err]} (bpfmap "prog" "top" "--seconds" "0.3" "--interval" "0.1"
                                            "--where" (str "name=" counter))]
         (is (= [0 ""] [exit err]))
         ;; On a busy machine a reading takes longer than the interval.
         (is (<= 1 (count (re-seq #"(?m)^\d+ programs?, 1 ran$" out)) 3))
         (is (re-find (re-pattern (str "(?m)^" (id-of p) "  raw-tracepoint  " counter " +"
                                       "[0-9.]+ +[0-9.]+[nu]s +[0-9.]+% +\\d+ +[0-9.]+[num]s$"))
                      out)))
       (is (= 2 (count (into [] (exec/prog-top {:rounds 2 :interval 0.01})))))
       (is (re-find #"(?m)^\d\d:\d\d:\d\d, every 0.1 s, measuring for [0-9.]+ s$"
                    (:out (bpfmap "prog" "top" "--once" "--interval" "0.1"))))
       (let [{:keys [out]} (bpfmap "prog" "top" "--seconds" "0.1" "--json")]
         (is (= #{"elapsed" "interval" "programs" "rows"}
                (set (keys (json/read-str out))))))
       (is (= [2 "bpfmap: Unknown field memlock: the fields are id, type, name, runs-per-second, average-ns, cpu-percent, runs, time-ns"]
              (refused "prog" "top" "--sort" "memlock")))))
    (testing "requires a capability"
      (is (str/includes? (second (fixture/unprivileged #(refused "prog" "top" "--seconds" "1")))
                         "needs CAP_SYS_ADMIN")))))

;; --- links

(defn- cgroup-path []
  (:path (first (filter #(= "cgroup2" (:type %)) (procfs/mounts)))))

(kernel-test link-rows
  (testing "link list has the target, program, holders and pins of links"
    (with-counter
     (fn [_ p a]
       (let [pin (fixture/new-pin)
             expected {:id (id-of a) :type :raw-tracepoint :attached-to "sys_enter"
                       :program {:id (id-of p) :name counter :type :raw-tracepoint}
                       :pinned [pin]
                       :held [{:pid this-pid :command (procfs/command this-pid)}]
                       :tracepoint "sys_enter"}]
         (prog/pin! a pin)
         (try
           (is (= expected (held-here (first (exec/link-list {:where (str "id=" (id-of a))})))))
           (is (= expected (held-here (exec/link-show {:ref (id-of a)}))
                  (held-here (exec/link-show {:ref pin})) (held-here (exec/link-show {:ref a}))
                  (held-here (edn-of "link" "show" pin))))
           (is (= [{:attached-to "sys_enter" :program (:program expected)}]
                  (exec/link-list {:where [(str "program.name=" counter) "attached-to~^sys"]
                                   :columns "attached-to,program"})))
           (let [[heading line] (lines-of "link" "list" "--where" (str "pinned=" pin))]
             (is (= (words "ID TYPE ATTACHED TO PROGRAM HELD BY PINNED") (words heading)))
             (is (= (words (str (id-of a) " raw-tracepoint sys_enter " counter "[" (id-of p) "] "
                                (procfs/command this-pid) "[" this-pid "] " pin))
                    (words line))))
           (testing "a raw tracepoint is not detached"
             (is (= [1 (str "bpfmap: Link " (id-of a) " of type raw-tracepoint cannot be detached: "
                            "the kernel detaches it when no process and no pin has it any more; it "
                            "is held by 1 process (" (procfs/command this-pid) "[" this-pid
                            "]) and pinned at " pin)]
                    (refused "link" "detach" (id-of a) "--yes"))))
           (finally (.delete (io/file pin)))))))))

(kernel-test ^{:needs [[:kernel :links-of-perf-events] [:kernel :info-of-perf-events]]}
             links-name-their-perf-event
  (testing "link list names the clock or counter of a link"
    (with-open [p ^Closeable (prog/load {:type :perf-event :name "t_clock"
                                         :insns [[:mov64 :r0 0] [:exit]]})
                _ ^Closeable (link/attach p {:perf-event {:event :page-faults :period 1000}
                                             :cpu 0})]
      (is (= ["perf-event software page-faults"]
             (map :attached-to (exec/link-list {:where "program.name=t_clock"}))))
      (is (= "perf-event software page-faults"
             (second (re-find #"perf-event +(perf-event .*?)  " (:out (bpfmap "link" "list"
                                                                              "--where"
                                                                              "program.name=t_clock"))))))))
  (testing "numbers without a name are printed"
    (are [type config text] (= text (program-info/attached-to {:type :perf-event :event :perf-event
                                                               :event-type type :config config}
                                                              (delay nil)))
      0 1 "perf-event hardware instructions"
      4 0x1c2 "perf-event raw 0x1c2"
      1 99 "perf-event software 0x63"
      6 0 "perf-event software cpu-clock"
      7 1 "perf-event software task-clock"
      7 0 "perf-event type 7 0x0"
      9 -1 "perf-event type 9 0xffffffffffffffff")))

(kernel-test q3-detached-link
  (testing "link detach detaches the link of another owner, if that is confirmed"
    (if-not (cgroup-path)
      (fixture/skip! "no cgroup2 file system is mounted")
      (with-open [p ^Closeable (prog/load {:type :cgroup-sock :name "t_allow"
                                           :insns [[:mov64 :r0 1] [:exit]]})
                  link ^Closeable (link/attach p {:cgroup (cgroup-path)
                                                  :attach-type :cgroup-inet-sock-create})]
        (let [[{:keys [id attached-to]}] (exec/link-list {:where "program.name=t_allow"})
              pin (fixture/new-pin)
              attached? #(contains? (exec/link-show {:ref id}) :cgroup-id)]
          (is (re-matches #"cgroup-inet-sock-create cgroup /.+" attached-to))
          (is (attached?))
          (testing "a pin counts as an owner"
            (link/pin! link pin)
            (try
              (is (= [1 (str "bpfmap: Link " id " (cgroup " attached-to ") is pinned at " pin
                             ": pass --yes to detach it anyway")]
                     (refused "link" "detach" id)))
              (is (attached?))
              (is (= [(str "link " id " (cgroup) is detached from " attached-to)]
                     (lines-of "link" "detach" id "--yes")))
              (is (not (attached?)))
              (finally (.delete (io/file pin))))))))))

;; --- targets as text

(deftest target-texts
  (testing "the target of each type of link as text"
    (are [info text] (= text (program-info/attached-to info (delay nil)))
      {:type :raw-tracepoint :tracepoint "sys_enter"} "sys_enter"
      {:type :tracing :attach-type :trace-fentry :target-btf-id 7} "trace-fentry"
      {:type :tracing :target-obj-id 118 :target-btf-id 7} "function of program 118"
      {:type :cgroup :attach-type :cgroup-inet-ingress :cgroup-id 12}
      "cgroup-inet-ingress cgroup 12"
      {:type :iter :target "bpf_map_elem" :map-id 12} "bpf_map_elem map 12"
      {:type :netns :attach-type :sk-lookup :netns-ino 4026531833} "sk-lookup netns 4026531833"
      {:type :xdp :ifindex 1} "lo"
      {:type :tcx :ifindex 2000000000 :attach-type :tcx-ingress} "interface 2000000000 tcx-ingress"
      {:type :perf-event :event :tracepoint :tracepoint "sched_switch"} "sched_switch"
      {:type :perf-event :event :kprobe :function "do_unlinkat" :offset 0} "kprobe do_unlinkat"
      {:type :perf-event :event :uprobe :path "/bin/bash" :offset 4096} "uprobe /bin/bash+0x1000"
      {:type :perf-event :event :uprobe :path "/bin/bash" :offset 8 :return true}
      "uretprobe /bin/bash+0x8"
      {:type :perf-event :event :kprobe :function "vfs_read" :return true} "kretprobe vfs_read"
      {:type :kprobe-multi :functions 3} "3 functions"
      {:type :uprobe-multi :path "/bin/bash" :functions 2} "/bin/bash 2 functions"
      {:type :netfilter :family :ipv4 :hook :local-in} "ipv4 local-in"
      {:type :struct-ops :map-id 5} "map 5"
      {:type 99} nil
      {:type :xdp} nil)))
