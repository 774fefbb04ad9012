(ns bpfmap.exec.run-test
  "The command `run`, as a function, as a command line and as a process.

  The object counts the system calls of one process, and sends an event for each tenth."
  (:require [bpfmap.btf :as btf]
            [bpfmap.cli.calling :refer [bpfmap refused]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.run :as run]
            [bpfmap.exec.views :as views]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.btf.writer :as writer]
            [bpfmap.impl.kernel.perf :as kernel.perf]
            [bpfmap.link :as link]
            [bpfmap.object :as object]
            [bpfmap.prog :as prog]
            [clojure.data.json :as json]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing use-fixtures]])
  (:import (java.io Closeable File)
           (java.lang ProcessHandle)
           (java.util List)
           (java.util.concurrent TimeUnit)))

(set! *warn-on-reflection* true)

(def ^:private calls "test/objects/calls-el.o")
(def ^:private packets "test/objects/packets-el.o")
(def ^:private this-pid (.pid (ProcessHandle/current)))

(defn- calls!
  "Makes some system calls."
  [n]
  (dotimes [_ n] (.exists (io/file "/proc/self"))))

(defn- gone?
  "Returns true if the kernel has none of the programs any more, soon or later."
  [ids]
  (boolean (fixture/eventually
            #(not-any? (into #{} (map :id) (host/programs {:brief true})) ids))))

;; --- rows

(kernel-test q4-rows-of-a-run
  (testing "a run has summaries and the events in between, and leaves nothing behind"
    (let [before (fixture/settled-descriptors)
          rows (into []
                     (map (fn [row] (calls! 20) row))
                     (exec/run {:file calls :seconds 0.6 :interval 0.2
                                :var {"only" this-pid "step" "5"}}))
          [first-row] rows
          summaries (filter :elapsed rows)
          events (filter :value rows)]
      (is (= [:running :ended] (keep :status rows)))
      (is (= [:status :object :elapsed :programs :maps :variables] (keys first-row)))
      ;; The first, the last, and one each 0.2 s, of which a slow machine may miss some.
      (is (<= 2 (count summaries) 5))
      (is (= "calls-el" (:object first-row)))
      (is (= [{:name "on_enter" :type :raw-tracepoint
               :attached-to "raw-tracepoint sys_enter"}]
             (map #(dissoc % :id) (:programs first-row))))
      (is (= [[".bss" :array] [".rodata" :array] ["events" :ringbuf] ["pids" :hash]]
             (map (juxt :name :type) (:maps first-row))))
      (is (= 1 (:entries (last (:maps (last rows))))))
      (is (nat-int? (:fill (nth (:maps first-row) 2))))
      (is (= ["calls"] (keys (:variables first-row))) "constants are left out")
      (is (< 40 (get-in (last rows) [:variables "calls"])))
      (is (seq events))
      (is (every? #{{:map "events" :pid this-pid}}
                  (map #(assoc (select-keys % [:map]) :pid (:pid (:value %))) events)))
      (is (every? zero? (map #(rem (:count (:value %)) 5) events)))
      (is (gone? (map :id (:programs first-row))))
      (is (= before (fixture/settled-descriptors))))))

(def ^:private probe-source
  "int runs = 0;
   __attribute__((section(\"kprobe/htab_map_update_elem\"), used)) int on_update(void *context) {
     return __sync_fetch_and_add(&runs, 1), 0;
   }
   char _license[] __attribute__((section(\"license\"))) = \"GPL\";")

(defn- lines-of [summary]
  (str/join "\n" (views/run-summary summary 80)))

(kernel-test ^{:needs [[:kernel :misses-of-kprobes]]} runs-that-a-program-missed
  (testing "a summary shows how often a program did not run, if it did not"
    (let [program {:name "on_update" :id 7 :type :kprobe :attached-to "kprobe f"}]
      (is (not (str/includes? (lines-of {:programs [program]}) "MISSES")))
      (is (str/includes? (lines-of {:programs [(assoc program :recursion-misses 31)]})
                         "ATTACHED TO  MISSES\n 7  kprobe  on_update  kprobe f         31")))
    (cond
      (nil? (kernel.perf/event-type "kprobe")) nil ; link-test has what such a kernel answers
      (nil? (fixture/executable "clang")) (fixture/skip! "there is no clang to compile an object")
      :else
      (let [source (io/file (fixture/temporary-directory) "probe.c")
            object (str/replace (str source) #"c$" "o")]
        (try
          (spit source probe-source)
          (is (= 0 (:exit (fixture/run [(fixture/executable "clang") "-target" "bpf" "-g" "-O2" "-c"
                                        (str source) "-o" object]))))
          (with-open [m (bpf/create {:type :hash :key :u32 :value :u32 :max-entries 4})]
            (let [rows (into [] (map (fn [row]
                                       (when (= :running (:status row))
                                         (dotimes [k 3] (bpf/put! m k k)))
                                       row))
                             (exec/run {:file object :seconds 0.1}))]
              ;; No program of a probe runs while the kernel writes a map for a process.
              (is (<= 3 (:recursion-misses (first (:programs (last rows))) 0)))))
          (finally (io/delete-file object true)
                   (io/delete-file source true)))))))

(kernel-test q4-run-ends-early
  (testing "a reduction that ends early takes everything away"
    (let [[row] (into [] (take 1) (exec/run {:file calls}))]
      (is (= :running (:status row)))
      (is (gone? (map :id (:programs row)))))))

(kernel-test targets-and-maps
  (testing ":target sets the target of a program, :map an existing map"
    (with-open [m ^Closeable (bpf/create {:name "t_pids" :type :hash :key :u32 :value :u64
                                          :max-entries 16})]
      (let [options {:file calls :seconds 0.2 :var {"only" this-pid}
                     :target {"on_enter" {:raw-tracepoint "sys_exit"}} :map {"pids" m}}
            [row] (into [] (take 1) (exec/run options))]
        (is (= "raw-tracepoint sys_exit" (:attached-to (first (:programs row)))))
        (is (= (:id (bpf/info m)) (:id (last (:maps row)))))
        (is (pos? (get m this-pid 0)) "the map stays")
        (is (= "#bpfmap.exec/run {:file \"test/objects/calls-el.o\", :only [\"on_enter\"], :interval 1.0}"
               (pr-str (exec/run {:file calls :only ["on_enter"]}))))))))

(kernel-test k10-q4-histogram-of-a-run
  (testing "a histogram of system calls, which is read while the run goes on"
    (let [before (fixture/settled-descriptors)
          read-histogram (fn [{:keys [maps]}]
                           (when-let [{:keys [id]} (first (filter #(= "latencies" (:name %))
                                                                  maps))]
                             (first (exec/hist {:ref id}))))
          rows (into []
                     (map (fn [row] (calls! 50) (assoc row :histogram (read-histogram row))))
                     (exec/run {:file "test/objects/latency-el.o" :seconds 0.6 :interval 0.2
                                :var {"only" this-pid}}))
          histograms (keep :histogram (rest rows))]
      (is (= ["tracepoint raw_syscalls/sys_enter" "tracepoint raw_syscalls/sys_exit"]
             (map :attached-to (:programs (first rows)))))
      (is (seq histograms))
      (is (= #{:log2} (set (map :kind histograms))))
      (is (<= 50 (:total (last histograms))))
      (is (apply <= (map :total histograms)))
      (is (gone? (map :id (:programs (first rows)))))
      (is (= before (fixture/settled-descriptors))))))

;; --- failures

(kernel-test given-types-of-events
  (testing "the events of a map have the type that is given"
    (doseq [[type key] [["[struct [process u32] [calls u32]]" :process]
                        [[:struct [:process :u32] [:calls :u32]] :process]
                        ["event" :pid]
                        [:event :pid]]]
      (let [values (into []
                         (comp (map (fn [row] (calls! 20) row)) (keep :value))
                         (exec/run {:file calls :seconds 0.4 :interval 0.2 :event {"events" type}
                                    :var {"only" this-pid "step" "5"}}))]
        (is (seq values))
        (is (= #{this-pid} (into #{} (map key) values)) (pr-str type))))))

(kernel-test q4-failure-undoes-everything
  (testing "if a program cannot be attached, what was attached before is detached"
    (let [before (fixture/settled-descriptors)
          programs #(into #{} (map :id) (exec/prog-list {:where (str "held.pid=" this-pid)}))
          there (programs)
          {:keys [message] :bpfmap/keys [error]}
          (error-of (into [] (exec/run {:file calls :only ["on_enter" "misplaced"]})))]
      (is (= :not-found error))
      (is (str/starts-with? message "Program misplaced cannot be attached: Attaching to "))
      (is (str/includes? message "no raw tracepoint has that name"))
      (is (str/includes? message ":only (--only) selects the programs to run"))
      (is (= there (programs)))
      (is (= before (fixture/settled-descriptors))))))

(kernel-test run-errors
  (testing "each error of a run says what to do"
    (doseq [[words code message]
            [[[packets] 1
              "No program of packets-el says what it attaches to: give a target with --target, such as 'count={xdp \"eth0\"}'; bpfmap.link/targets has all kinds"]
             [[packets "--target" "count={xdp \"no_such\"}"] 1
              "Program count cannot be attached: No network interface \"no_such\""]
             [[packets "--target" "count=xdp"] 2
              "--target must be NAME=TARGET, such as count={xdp \"eth0\"}, got \"count=xdp\""]
             [[packets "--target" "cont={xdp \"lo\"}"] 2
              "--target must name a program of the object, got \"cont\": did you mean count?"]
             [[calls "--only" "on_entr"] 2
              "--only must name a program of the object, got \"on_entr\": did you mean on_enter?"]
             [[calls "--var" "onyl=1"] 2
              "--var must name a variable of the object, got \"onyl\": did you mean only?"]
             [[calls "--var" "only=x"] 2
              "--var must fit the variable, which has the type u32, got \"only=x\""]
             [[calls "--var" "only"] 2 "--var must be NAME=VALUE, got \"only\""]
             [[calls "--event" "event=u32"] 2
              "--event must name a ring buffer or perf event array of the object, got \"event\": did you mean events?"]
             [[calls "--event" "pids=u32"] 2
              "--event must name a ring buffer or perf event array of the object, got \"pids\": use events"]
             [[calls "--event" "events=evnt"] 2
              "--event must have a type, or the name of a struct of the object, got \"events=evnt\": did you mean event?"]
             [[calls "--event" "events"] 2
              "--event must be NAME=TYPE, with a type or the name of a struct, got \"events\""]
             [[calls "--entries" "pid=1"] 2
              "--entries must name a map of the object, got \"pid\": did you mean pids?"]
             [[calls "--entries" "pids=0"] 2
              "--entries must have a number of entries from 1 to 4294967295, got \"pids=0\""]
             [[calls "--pin" "/sys/fs/bpf"] 2
              "--pin is for maps that the object pins by name, and it pins none"]
             [[calls "--map" "pids=no_such_map"] 1 "No map named \"no_such_map\""]
             [[calls "--map" "pid=1"] 2
              "--map must name a map of the object, got \"pid\": did you mean pids?"]
             [["/nowhere/x.o"] 1 "Cannot read the object \"/nowhere/x.o\": there is no such file"]]]
      (testing words
        (let [[exit line] (apply refused "run" words)]
          (is (= code exit))
          (is (str/starts-with? line (str "bpfmap: " message)) line)))))
  (testing "the number of entries of a map, which some tools set when they start"
    (let [without (update-in (object/read calls) [:maps "pids"] dissoc :max-entries)]
      (with-redefs [object/read (constantly without)]
        (is (= [1 (str "bpfmap: The object has no number of entries for map pids: give it with "
                       "--entries, such as pids=1024")]
               (refused "run" calls)))
        (let [[row] (into [] (take 1) (exec/run {:file calls :entries {"pids" 77}}))]
          (is (= 77 (some #(when (= "pids" (:name %)) (:max-entries %)) (:maps row))))))))
  (testing "a map of another type"
    (let [pin (fixture/new-pin)]
      (with-open [m (bpf/create {:name "t_other" :type :array :key :u32 :value :u32 :max-entries 4})]
        (bpf/pin! m pin)
        (try
          (is (= [1 (str "bpfmap: The map given for pids does not match its spec: type is array, "
                         "the object has hash; value-size is 4, the object has 8")]
                 (refused "run" calls "--map" (str "pids=" pin))))
          (finally (.delete (io/file pin)))))))
  (testing "an object with nothing to run"
    (is (= "maps has no program to run: bpfmap inspect shows the parts of an object"
           (:message (error-of (#'run/check-attached {:name "maps"} {} []))))))
  (testing "without privileges"
    (is (re-find #"CAP_BPF|EPERM" (second (fixture/unprivileged #(refused "run" calls)))))))

(deftest type-of-events
  (testing "the struct that is named like a map, and not the map's own definition"
    (let [b (btf/parse (writer/blob [{:kind :int :name "int" :size 4 :bits 32}
                                     {:kind :struct :name "event" :size 4
                                      :members [{:name "pid" :type 1 :bit-offset 0 :bits 0}]}
                                     {:kind :struct :name "" :size 4
                                      :members [{:name "type" :type 1 :bit-offset 0 :bits 0}]}
                                     {:kind :var :name "events" :type 3 :linkage :global}
                                     {:kind :var :name "others" :type 3 :linkage :global}]))]
      (is (= [:struct {:name "event"} [:pid :u32]] (#'run/event-type b "events" {})))
      (is (= :u64 (#'run/event-type b "events" {:record-type :u64})))
      (is (nil? (#'run/event-type b "others" {}))))))

;; --- the command line

(kernel-test printed-run
  (testing "the command prints the first and the last summary, and events"
    (let [{:keys [exit out err]} (bpfmap "run" calls "--seconds" "0.5" "--var"
                                         (str "only=" this-pid) "--var" "step=1")
          lines (str/split-lines out)]
      (is (= [0 ""] [exit err]))
      (is (= "calls-el: 1 program is attached since 0.0 s; stop with Ctrl-C" (first lines)))
      (is (= 2 (count (filter #(re-find #"raw-tracepoint  on_enter  raw-tracepoint sys_enter$" %)
                              lines))))
      (is (= 1 (count (filter #(re-matches #" +pid +count" %) lines))))
      (is (some #(re-matches (re-pattern (str " +" this-pid " +\\d+")) %) lines))
      (is (= 2 (count (filter #(re-matches #"calls  \d+" %) lines))))))
  (testing "as data, a row on each line"
    (doseq [[format read] {"--edn" edn/read-string
                           "--json" #(update (json/read-str % :key-fn keyword) :status keyword)}]
      (let [{:keys [out]} (bpfmap "run" calls format "--seconds" "0.2" "--var"
                                  (str "only=" this-pid))
            rows (map read (str/split-lines out))]
        (is (= [:running :ended] [(:status (first rows)) (:status (last rows))]))))))

;; --- two runs at once

(defn- called
  "Returns the number of calls that the last summary of a run has."
  [rows]
  (get-in (last rows) [:variables "calls"]))

(kernel-test q4-two-runs-at-once
  (testing "two runs of one object have maps and programs of their own"
    (let [before (fixture/settled-descriptors)
          other (volatile! nil)
          options {:file calls :var {"only" this-pid "step" "0"}}
          rows (into []
                     (map (fn [{:keys [status] :as row}]
                            (when (= :running status)
                              (vreset! other (into [] (map (fn [row] (calls! 20) row))
                                                   (exec/run (assoc options :seconds 0.1)))))
                            (calls! 20)
                            row))
                     (exec/run (assoc options :seconds 0.3 :interval 0.1)))
          ids (fn [k rows] (set (map :id (k (first rows)))))]
      (doseq [k [:programs :maps]]
        (is (seq (ids k rows)))
        (is (not-any? (ids k rows) (ids k @other)) "each has its own"))
      (is (< 19 (called @other) (called rows)) "the first goes on when the second has ended")
      (is (gone? (concat (ids :programs rows) (ids :programs @other))))
      (is (= before (fixture/settled-descriptors)))))
  (testing "runs that begin at the same time share a map that the object pins, which stays"
    (let [pinning (assoc-in (object/read calls) [:maps "pids" :pinning] :by-name)
          pin (io/file (fixture/new-pin))
          directory (str pin "_runs")
          begun (java.util.concurrent.CyclicBarrier. 2)]
      (with-redefs [object/read (constantly pinning)]
        (.mkdir (io/file directory))
        (try
          (dotimes [round 10]
            (let [run (fn []
                        (.await begun)
                        (into [] (map (fn [row] (calls! 20) row))
                              (exec/run {:file calls :seconds 0.05 :pin directory
                                         :var {"only" this-pid "step" "0"}})))
                  results (mapv deref [(future (run)) (future (run))])
                  id-of #(some (fn [{:keys [id name]}] (when (= "pids" name) id))
                               (:maps (first %)))]
              (is (apply = (map id-of results)) "one map")
              (is (every? #(< 19 (called %)) results) "each counts in its own variable")
              (with-open [m ^Closeable (bpf/open (str directory "/pids"))]
                (is (= (id-of (first results)) (:id (bpf/info m))))
                (is (<= (apply max (map called results)) (get m this-pid 0))))
              (is (.delete (io/file directory "pids")) (str "the pin of round " round))))
          (finally
            (.delete (io/file directory "pids"))
            (.delete (io/file directory))))))))

;; --- a process

(def ^:private script (str (.getAbsolutePath (io/file "bin/bpfmap"))))

;; The first call may compile, which takes as long as a process is waited for.
(use-fixtures :once (fn [tests] (fixture/run [script "--version"]) (tests)))

(defn- nothing-left?
  "Returns true if the kernel has none of the programs, maps and links of a summary any more."
  [{:keys [programs maps]}]
  (let [program-ids (set (map :id programs))
        map-ids (set (map :id maps))]
    (and (seq program-ids)
         (seq map-ids)
         (gone? program-ids)
         (fixture/eventually #(not-any? map-ids (map :id (host/maps {:brief true}))))
         (fixture/eventually #(not-any? program-ids (map :program-id (host/links)))))))

(defn- with-run
  "Starts a run of the object in a process, calls `(f process out)` and returns its result.

  `out` is the file with its output, or nil if the output is a pipe. Whoever runs the tests may
  ignore signals, and so would the process: it has the default actions."
  [options pipe? f]
  (let [out (when-not pipe? (File/createTempFile "bpfmap" ".out"))
        ^List command (into ["env" "--default-signal" script "run" calls "--edn"] options)
        process (.start (doto (ProcessBuilder. command)
                          (.redirectError (File. "/dev/null"))
                          (cond-> out (.redirectOutput out))))]
    (try
      (f process out)
      (finally
        (.destroyForcibly process)
        (.waitFor process)
        (some-> out .delete)))))

(defn- signal! [^Process process signal]
  (fixture/run ["sh" "-c" (str "kill -" signal " " (.pid process))]))

(defn- rows-of
  "Returns the rows in a file, without one that was cut off."
  [out]
  (map edn/read-string (re-seq #".*\n" (slurp out))))

(defn- signalled-run
  "Runs the object in a process, and sends it a signal after its first row.

  Returns its exit code and its rows."
  [signal]
  (with-run ["--interval" "0.2"] false
    (fn [^Process process out]
      (is (fixture/eventually #(or (seq (rows-of out)) (not (.isAlive process)))))
      (signal! process signal)
      (is (.waitFor process (* 2 (long fixture/patience)) TimeUnit/MILLISECONDS))
      {:exit (.exitValue process) :rows (rows-of out)})))

(kernel-test q4-signal-ends-run
  (testing "a signal ends a run with its last row; after SIGKILL the kernel takes everything away"
    (doseq [[signal code] {"HUP" 129, "INT" 130, "TERM" 143}]
      (testing signal
        (let [{:keys [exit rows]} (signalled-run signal)]
          (is (= code exit))
          (is (= [:running :ended] (map :status [(first rows) (last rows)])))
          (is (nothing-left? (first rows))))))
    (let [{:keys [exit rows]} (signalled-run "KILL")]
      (is (= 137 exit))
      (is (nothing-left? (first rows))))))

(kernel-test q4-closed-pipe-ends-run
  (testing "a run ends if the reader of its output goes away, also if it has nothing to print"
    (with-run ["--interval" "3600" "--var" "step=0"] true
      (fn [^Process process _]
        (let [reader (io/reader (.getInputStream process))
              row (edn/read-string (.readLine ^java.io.BufferedReader reader))]
          (is (= :running (:status row)))
          (is (.isAlive process))
          (.close ^Closeable reader)
          (is (.waitFor process (* 2 (long fixture/patience)) TimeUnit/MILLISECONDS))
          (is (= 141 (.exitValue process)))
          (is (nothing-left? row)))))))

(kernel-test q4-signal-during-load
  (testing "a run that is stopped before everything is attached attaches nothing more, and has no row"
    (let [before (fixture/settled-descriptors)
          options {:file "test/objects/latency-el.o"}
          attach link/attach]
      (is (= [] (into [] (run/run options (doto (promise) (deliver "INT"))))))
      (let [stop (promise)
            attached (atom [])]
        (with-redefs [link/attach (fn [program & more]
                                    (deliver stop "INT")
                                    (swap! attached conj (:id (prog/info program)))
                                    (apply attach program more))]
          (is (= [] (into [] (run/run options stop)))))
        (is (= 1 (count (distinct @attached))) "the object has two programs")
        (is (gone? @attached)))
      (is (= before (fixture/settled-descriptors)))))
  (testing "as a process, as soon as it has a map"
    (with-run [] false
      (fn [^Process process out]
        (let [ids (fn []
                    (into #{} (keep (fn [{:keys [id held]}]
                                      (when (some #(= (.pid process) (:pid %)) held) id)))
                          (exec/list {:columns "id,held"})))
              maps (volatile! #{})]
          (is (fixture/eventually #(or (seq (vreset! maps (ids))) (not (.isAlive process)))))
          (signal! process "INT")
          (is (.waitFor process (* 2 (long fixture/patience)) TimeUnit/MILLISECONDS))
          (is (= 130 (.exitValue process)))
          (is (contains? #{[] [:running :ended]} (keep :status (rows-of out))))
          (is (fixture/eventually #(not-any? @maps (map :id (host/maps {:brief true}))))))))))

;; --- instructions with source lines

(kernel-test q2-dump-with-source-lines
  (testing "prog dump has the source lines of a loaded object, and the names of its functions"
    ;; The program does not use the bloom filter, which kernels before 5.16 do not have.
    (with-open [^Closeable loaded (object/load (update (object/read "test/objects/flows-el.o")
                                                       :maps dissoc "known")
                                               {:only ["count_packets"]})]
      (let [program (get-in loaded [:programs "count_packets"])
            {:keys [name lines functions]} (exec/prog-dump {:ref program})
            text (:out (bpfmap "prog" "dump" (:id (exec/prog-show {:ref program}))))]
        (is (= "count_packets" name))
        (is (some #(str/includes? (:text %) "map_lookup(&flows, &key)") lines))
        (is (every? #(str/ends-with? (:file %) "flows.bpf.c") lines))
        (is (seq functions))
        (is (re-find #"(?m)^; struct flow \*flow = map_lookup\(&flows, &key\); @ .*flows.bpf.c:\d+$"
                     text))
        (is (re-find #"(?m)^ +\d+: r1 = map flows\[\d+\]$" text))
        (doseq [function (keys functions)]
          (is (str/includes? text (str "\n" function ":\n"))))))))
