(ns bpfmap.prog-test
  (:require [bpfmap.asm :as asm]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.prog :as progs]
            [bpfmap.impl.prog.instructions :as instructions]
            [bpfmap.object :as object]
            [bpfmap.prog :as prog]
            [bpfmap.since :as since]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.io Closeable)
           (java.nio.file Files OpenOption Path)))

(set! *warn-on-reflection* true)

(def ^:private packet (byte-array 14))

(defn- returned
  "What a packet program returns for an empty packet."
  [insns]
  (with-open [p ^Closeable (prog/load {:type :socket-filter :insns insns})]
    (:return (prog/test-run p {:data packet}))))

(def ^:private counting
  "Adds one to the value of key 0 of an array."
  (fn [m]
    [[:stw [:r10 -4] 0]
     [:lddw :r1 m]
     [:mov64 :r2 :r10]
     [:add64 :r2 -4]
     [:call :map-lookup-elem]
     [:jeq :r0 0 :out]
     [:mov64 :r1 1]
     [:atomic-add64 [:r0 0] :r1]
     :out
     [:mov64 :r0 0]
     [:exit]]))

(defn- counter ^Closeable []
  (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1}))

(kernel-test counting-program
  (testing "a program counts into a map"
    (with-open [m (counter)
                p ^Closeable (prog/load {:type :socket-filter :name "count it"
                                         :insns (counting m)})]
      (is (= 0 (m 0)))
      (let [{:keys [return duration data]} (prog/test-run p {:data packet :repeat 1000})]
        (is (= 0 return))
        (is (nat-int? duration))
        (is (= 14 (count data))))
      (is (= 1000 (m 0)))
      (is (= "#<bpf-program :socket-filter \"countit\">" (pr-str p))))))

(kernel-test program-holds-its-maps
  (testing "a program keeps its maps alive"
    (let [m (counter)
          same ^Closeable (bpf/clone m)]
      (with-open [p ^Closeable (prog/load {:type :socket-filter :insns (counting m)})]
        (bpf/close m)
        (prog/test-run p {:data packet})
        (with-open [same same]
          (is (= 1 (same 0))))))))

(kernel-test direct-map-value
  (testing "a program addresses the value of a map directly"
    (with-open [m (counter)]
      (is (= 0 (returned [[:ld-map-value :r1 m 0] [:stdw [:r1 0] 77] [:mov64 :r0 0] [:exit]])))
      (is (= 77 (m 0))))))

(deftest log-without-end
  (testing "a log that lacks its end, as before Linux 6.4, is read again without the instructions"
    (let [rejected (ex-info "Loading failed" {:bpfmap/error :program-rejected :bpfmap/errno :E2BIG
                                              :bpfmap/errno-code 7})
          too-long (ex-info "Loading failed" {:bpfmap/error :io :bpfmap/errno :ENOSPC
                                              :bpfmap/errno-code 28})
          end "BPF program is too large. Processed 1000001 insn\nprocessed 1000001 insns (limit 1000000)"
          error-on (fn [kernel log-option]
                     (let [seen (atom [])]
                       (with-redefs-fn {#'progs/load-once
                                        (fn [_ [level size] _]
                                          (swap! seen conj [level size])
                                          (cond
                                            (= 0 level) {:refused rejected :log nil}
                                            (= 1 level) {:refused too-long
                                                         :log (str "7: (bf) r4 = r" (kernel 1))}
                                            :else {:refused rejected :log (kernel 4)}))}
                         #(let [e (error-of (progs/load {:log log-option} {:op :load}))]
                            [(:bpfmap/errno e) (:bpfmap/reason e) (:bpfmap/slot e) @seen]))))
          reason "BPF program is too large. Processed 1000001 insn"]
      (testing "Linux 5.2 to 6.3"
        (is (= [:E2BIG reason nil [[0 0] [1 0x10000] [1 0xffffff] [4 0x10000]]]
               (error-on {1 "" 4 end} nil)))
        (is (= [:E2BIG reason nil [[1 0x10000] [1 0xffffff] [0 0] [4 0x10000]]]
               (error-on {1 "" 4 end} :full))))
      (testing "newer kernels, whose logs have the end"
        (is (= [:E2BIG reason 7 [[0 0] [1 0x10000] [1 0xffffff]]]
               (error-on {1 (str "3\n" end) 4 end} nil)))
        (is (= [:E2BIG reason 7 [[1 0x10000] [1 0xffffff] [0 0]]]
               (error-on {1 (str "3\n" end) 4 end} :full)))))))

(kernel-test ^{:needs [[:kernel :callbacks]]} callback-of-helper
  (testing "a helper calls functions of the program"
    (with-open [m (bpf/create {:type :array :key :u32 :value :u64 :max-entries 5
                               :contents {0 1, 1 20, 4 300}})]
      (is (= 321 (returned [[:stdw [:r10 -8] 0]
                            [:lddw :r1 m]
                            [:ld-func :r2 :add]
                            [:mov64 :r3 :r10]
                            [:add64 :r3 -8]
                            [:mov64 :r4 0]
                            [:call :for-each-map-elem]
                            [:ldxdw :r0 [:r10 -8]]
                            [:exit]
                            :add ; of the map, the key, the value and the context
                            [:ldxdw :r3 [:r3 0]]
                            [:ldxdw :r0 [:r4 0]]
                            [:add64 :r0 :r3]
                            [:stxdw [:r4 0] :r0]
                            [:mov64 :r0 0]
                            [:exit]]))))
    (let [descriptors (fixture/settled-descriptors)]
      (is (= :program-rejected
             (:bpfmap/error (error-of (returned [[:ld-func :r2 :bad] [:exit]
                                                 :bad [:mov64 :r0 :r5] [:exit]])))))
      (is (= descriptors (fixture/open-descriptors)) "the BTF of the program is closed"))))

(kernel-test raw-tracepoint
  (testing "runs and attaches a raw tracepoint program"
    (with-open [m (counter)
                p ^Closeable (prog/load {:type :raw-tracepoint :insns (counting m)})]
      (prog/test-run p)
      (is (= 1 (m 0)))
      (with-open [a ^Closeable (prog/attach-raw-tracepoint p "sys_enter")]
        (is (= "#<bpf-link {:raw-tracepoint \"sys_enter\"}>" (pr-str a)))
        (dotimes [_ 100] (fixture/open-descriptors)))
      (let [counted (m 0)]
        (is (< 100 counted))
        (Thread/sleep 20)
        (is (= counted (m 0)) "a closed attachment counts no more"))
      (testing "arguments come as the context"
        (with-open [m (counter)
                    p ^Closeable (prog/load {:type :raw-tracepoint
                                             :insns [[:ldxdw :r3 [:r1 8]]
                                                     [:ld-map-value :r2 m 0]
                                                     [:stxdw [:r2 0] :r3]
                                                     [:mov64 :r0 0]
                                                     [:exit]]})]
          (prog/test-run p {:context [1 0 0 0 0 0 0 0, 42 0 0 0 0 0 0 0]})
          (is (= 42 (m 0))))))))

(kernel-test verifier-log-in-error
  (testing "the error of a rejected program has the verifier log"
    (let [{:keys [message] :bpfmap/keys [error errno log op]}
          (error-of (prog/load {:type :socket-filter :insns [[:mov64 :r0 :r5] [:exit]]}))]
      (is (= [:program-rejected :load] [error op]))
      (is (keyword? errno))
      (is (str/includes? log "R5 !read_ok"))
      (is (str/includes? message "Loading the program failed with EACCES: R5 !read_ok"))
      (is (str/includes? message "R5 !read_ok")))
    (testing "also a log that is longer than its first buffer"
      (let [{:bpfmap/keys [error log]}
            (error-of (prog/load {:type :socket-filter
                                  :insns [(repeat 6000 [:mov64 :r0 1]) [:stxdw [:r10 0] :r0]
                                          [:exit]]}))]
        (is (= :program-rejected error))
        (is (< 65536 (count log)))
        (is (str/includes? log "invalid"))))))

(kernel-test invalid-program-rejected
  (testing "rejects invalid programs before any system call"
    (are [program words]
         (let [{:keys [message] :bpfmap/keys [error]} (error-of (prog/load program))]
           (and (= :invalid-program error) (str/includes? message words)))
      {:type :socket_filter :insns [[:exit]]}
      "Unknown program type :socket_filter: did you mean :socket-filter? See bpfmap.prog/types"
      {:insns [[:exit]]} "Unknown program type nil"
      {:type :xdp :instructions []}
      "Unknown key :instructions: see bpfmap.prog/load for all keys"
      {:type :xdp :insns [[:exit]] :expected-attach-type :trace_iter}
      "Unknown attach type :trace_iter: did you mean :trace-iter?"
      {:type :xdp :insns [[:exit]] :expected-attach-type -1} "Unknown attach type -1"
      {:type :tracing :insns [[:exit]] :attach-btf-id :vfs_read}
      ":attach-btf-id must be the id of a type in the kernel's BTF, got :vfs_read"
      {:type :tracing :insns [[:exit]] :attach-btf-id 4294967296}
      ":attach-btf-id must be the id of a type in the kernel's BTF, got 4294967296"
      {:type :xdp :name :x :insns [[:exit]]} ":name must be a string, got :x"
      {:type :xdp :license 1 :insns [[:exit]]} ":license must be a string, got 1"
      {:type :xdp :insns []} "a program must have an instruction"
      {:type :xdp :insns [[:lddw :r1 "counts"] [:exit]]}
      "A map in an instruction must be an open map, got \"counts\"")))

(kernel-test unsupported-test-runs
  (testing "rejects test runs that the program type does not support"
    (with-open [p ^Closeable (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
      (are [options kind words]
           (let [{:keys [message] :bpfmap/keys [error op]} (error-of (prog/test-run p options))]
             (and (= kind error) (= :test-run op) (str/includes? message words)))
        {:data [1 2 3]} :invalid-value "data of 14 bytes or more for packet programs"
        {:data "xyz"} :invalid-value "hexadecimal"
        {:repeat 0} :invalid-value ":repeat must be a positive 32-bit integer, got 0"
        {:input 1} :invalid-value
        "Unknown option :input: use :context, :data or :repeat"))
    (testing "a type without test runs"
      (with-open [p ^Closeable (prog/load {:type :kprobe :insns [[:mov64 :r0 0] [:exit]]})]
        (is (= :not-supported (:bpfmap/error (error-of (prog/test-run p)))))))
    (testing "a closed program"
      (let [p (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
        (.close ^Closeable p)
        (.close ^Closeable p)
        (is (= "#<bpf-program :socket-filter \"\" closed>" (pr-str p)))
        (is (= :closed (:bpfmap/error (error-of (prog/test-run p {:data packet})))))))))

(kernel-test bad-attachments
  (testing "rejects attachments that are not possible"
    (with-open [filter ^Closeable (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})
                raw ^Closeable (prog/load {:type :raw-tracepoint :insns [[:mov64 :r0 0] [:exit]]})]
      (are [program tracepoint kind words]
           (let [{:keys [message]
                  :bpfmap/keys [error]} (error-of (prog/attach-raw-tracepoint program tracepoint))]
             (and (= kind error) (str/includes? message words)))
        filter "sys_enter" :invalid-value
        "must be of type :raw-tracepoint or :raw-tracepoint-writable, got one of type :socket-filter"
        raw "no_such_tracepoint" :not-found "no raw tracepoint has that name"
        raw "" :invalid-value ":raw-tracepoint must be a string that is not empty, got \"\""
        raw :sys_enter :invalid-value
        ":raw-tracepoint must be a string that is not empty, got :sys_enter"))))

;; --- programs that exist

(defn- boot-clock
  "Nanoseconds since the boot: CLOCK_BOOTTIME, which /proc/uptime shows in hundredths of seconds."
  []
  (let [text (Files/readString (Path/of "/proc/uptime" (make-array String 0)))]
    (* 10000000 (parse-long (str/replace (re-find #"^[0-9.]+" text) "." "")))))

(kernel-test info-of-a-program
  (testing "returns the info of a program"
    (with-open [m (counter)
                other (counter)]
      (let [before (boot-clock)]
        (with-open [p (prog/load {:type :socket-filter :name "t_info"
                                  :insns (cons [:lddw :r3 other] (counting m))})
                    again (prog/load {:type :socket-filter :license "Proprietary"
                                      :insns (cons [:lddw :r3 other] (counting m))})]
          (let [{:keys [id tag load-time xlated-bytes verified-insns] :as info} (prog/info p)]
            (is (= {:type :socket-filter :name "t_info" :uid 0 :gpl-compatible true}
                   (select-keys info [:type :name :uid :gpl-compatible])))
            (is (= #{(:id (bpf/info m)) (:id (bpf/info other))} (set (:map-ids info))))
            (is (vector? (:map-ids info)))
            (is (pos-int? id))
            (is (re-matches #"[0-9a-f]{16}" tag))
            (is (<= before load-time (+ 10000000 (boot-clock))))
            (is (zero? (mod xlated-bytes 8)))
            (since/needing [[:kernel :verified-insns]]
              (is (pos-int? verified-insns)))
            (is (not-any? #{:btf-id :ifindex :attach-btf-id} (keys info))
                "what does not apply is left out")
            (is (= [info] (filter #(= id (:id %)) (host/programs))))
            (is (= [tag false ""] ((juxt :tag :gpl-compatible :name) (prog/info again)))
                "the tag is the hash of the instructions")))))))

(kernel-test run-statistics
  (testing "reports run statistics while the kernel collects them"
    (let [sysctl (io/file "/proc/sys/kernel/bpf_stats_enabled")
          write #(Files/writeString (.toPath sysctl) (str %) (make-array OpenOption 0))
          was (when (.exists sysctl) (Files/readString (.toPath sysctl)))]
      (with-open [m (counter)
                  p (prog/load {:type :raw-tracepoint :insns (counting m)})]
        (is (not-any? #{:run-count :run-time-ns} (keys (prog/info p))) "it has not run")
        (if was
          (try
            (write "1\n")
            (prog/test-run p)
            (with-open [_ ^Closeable (prog/attach-raw-tracepoint p "sys_enter")]
              (dotimes [_ 100] (fixture/open-descriptors)))
            (let [{:keys [run-count run-time-ns]} (prog/info p)]
              (is (< 100 run-count))
              (is (< run-count run-time-ns)))
            (finally (write was)))
          (fixture/skip! "the kernel has no bpf_stats_enabled"))))))

(kernel-test many-map-ids
  (testing "reads all map ids of a program"
    (with-redefs-fn {#'progs/initial-map-room 1}
      #(with-open [a (counter) b (counter) c (counter)
                   p (prog/load {:type :socket-filter
                                 :insns [[:lddw :r1 a] [:lddw :r1 b] [:lddw :r1 c] [:mov64 :r0 0]
                                         [:exit]]})]
         (is (= (map (comp :id bpf/info) [a b c]) (:map-ids (prog/info p))))))))

(defn- own-descriptor
  "The number of a descriptor of an open object. Somebody else on the host may have the object
  open too, for a moment."
  [x]
  (some (fn [{:keys [pid fds]}] (when (= pid (.pid (java.lang.ProcessHandle/current))) (first fds)))
        (host/holders x)))

(kernel-test program-references
  (testing "opens a program by every kind of reference"
    (let [path (fixture/new-pin)
          before (fixture/settled-descriptors)]
      (with-open [p (prog/load {:type :socket-filter :name "t_open"
                                :insns [[:mov64 :r0 7] [:exit]]})]
        (prog/pin! p path)
        (let [;; Another process may have the kernel count runs.
              lasting #(dissoc (prog/info %) :run-count :run-time-ns)
              {:keys [id] :as info} (lasting p)
              number (own-descriptor p)]
          (doseq [ref [{:program-id id} {:id id} id path {:path path} (io/file path)
                       (Path/of path (make-array String 0))
                       {:fd number}]]
            (with-open [same ^Closeable (prog/open ref)]
              (is (= info (lasting same)) (pr-str ref))
              (is (= 7 (:return (prog/test-run same {:data packet}))))
              (is (= "#<bpf-program :socket-filter \"t_open\">" (pr-str same)))))
          (is (= info (lasting p)) "the descriptor that was duplicated is still open")))
      (.delete (io/file path))
      (is (= before (fixture/open-descriptors))))))

(kernel-test pins-outlive-handles
  (testing "a pin outlives its program and attachment"
    (let [program-path (fixture/new-pin)
          attachment-path (fixture/new-pin)]
      (with-open [m (counter)]
        (try
          (with-open [p (prog/load {:type :raw-tracepoint :insns (counting m)})
                      a (prog/attach-raw-tracepoint p "sys_enter")]
            (prog/pin! p program-path)
            (prog/pin! a attachment-path))
          (with-open [p (prog/open program-path)]
            (is (= [(:id (bpf/info m))] (:map-ids (prog/info p)))))
          (let [counted (m 0)]
            (dotimes [_ 100] (fixture/open-descriptors))
            (is (< (+ 100 counted) (m 0)) "a pinned attachment stays attached"))
          (finally
            (.delete (io/file program-path))
            (.delete (io/file attachment-path))))))))

(kernel-test unopenable-programs
  (testing "rejects references that are not programs"
    (let [map-path (fixture/new-pin)
          link-path (fixture/new-pin)
          before (fixture/settled-descriptors)]
      (with-open [m (counter)
                  p (prog/load {:type :raw-tracepoint :insns [[:mov64 :r0 0] [:exit]]})
                  a (prog/attach-raw-tracepoint p "sys_enter")]
        (bpf/pin! m map-path)
        (prog/pin! a link-path)
        (are [ref kind words]
             (let [{:keys [message] :bpfmap/keys [error op]} (error-of (prog/open ref))]
               (and (= [kind :open] [error op]) (str/includes? message words)))
          map-path :not-a-program (str map-path " is not a program: it is a map")
          link-path :not-a-program (str link-path " is not a program: it is a link")
          {:fd (own-descriptor m)} :not-a-program "is not a program: it is a map"
          {:fd 0} :not-a-program "Descriptor 0 is not a program: it is something else"
          0x7ffffff0 :not-found "no program has that id"
          (str map-path "x") :not-found (str "the file " map-path "x does not exist")
          "/proc/self/comm" :not-bpffs "so it cannot be a pin"
          "" :invalid-value "A path must not be empty, got "
          -1 :invalid-value "an id must be an integer from 0 to 4294967295, a descriptor from 0"
          {:id "3"} :invalid-value
          "an id must be an integer from 0 to 4294967295, a descriptor from 0"
          {:name "x"} :invalid-value "it must be {:id n}, {:program-id n}, {:path p} or {:fd n}"
          {:id 1 :fd 2} :invalid-value "it must be an id, a pin path, {:program-id n} or {:fd n}"
          nil :invalid-value "Invalid reference to a program: nil")
        (is (= [:permission :open]
               ((juxt :bpfmap/error :bpfmap/op) (fixture/unprivileged #(error-of (prog/open 1)))))))
      (.delete (io/file map-path))
      (.delete (io/file link-path))
      (is (= before (fixture/open-descriptors))))))

(kernel-test pin-and-info-errors
  (testing "rejects invalid pins and infos"
    (with-open [m (counter)
                p (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
      (let [path (fixture/new-pin)]
        (prog/pin! p path)
        (are [expr kind words] (let [{:keys [message] :bpfmap/keys [error]} (error-of expr)]
                                 (and (= kind error) (str/includes? message words)))
          (prog/pin! p path) :exists "exists already"
          (prog/pin! p "/tmp/t_pin") :not-bpffs "/tmp/t_pin is not on a BPF file system"
          (prog/pin! p (str path ".x")) :invalid-value "must not have a dot"
          (prog/pin! p (str (fixture/bpffs) "/none/x")) :not-found "does not exist"
          (prog/pin! p nil) :invalid-value "A path must be a string, a File or a Path, got nil"
          (prog/pin! m path) :invalid-value
          "The argument must be an open program or link, got \"#<bpf-map"
          (prog/info m) :invalid-value
          "The argument must be an open program or link, got \"#<bpf-map")
        (.delete (io/file path))))
    (let [p (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
      (.close ^Closeable p)
      (is (= :closed (:bpfmap/error (error-of (prog/info p)))))
      (is (= :closed (:bpfmap/error (error-of (prog/pin! p (fixture/new-pin)))))))))

(kernel-test s10-load-names-capability
  (testing "loading a program names the missing capability"
    (let [{:keys [message] :bpfmap/keys [error]}
          (fixture/unprivileged #(error-of (prog/load {:type :raw-tracepoint
                                                       :insns [[:mov64 :r0 0] [:exit]]})))]
      (is (= :permission error))
      (is (str/includes? message "loading a program needs CAP_BPF and CAP_PERFMON")))))

;; --- instructions

(kernel-test q2-instructions-with-names
  (testing "the instructions of a program name its maps, and the functions that it calls"
    (with-open [m (bpf/create {:name "t_named" :type :array :key :u32 :value :u64 :max-entries 1
                               :flags #{:mmapable}})
                p ^Closeable (prog/load {:type :socket-filter :name "t_names"
                                         :insns [[:ld-map-value :r1 m 0]
                                                 [:lddw :r2 m]
                                                 [:call :ktime-get-ns]
                                                 [:call-local :f]
                                                 [:exit]
                                                 :f
                                                 [:lddw :r0 0x1122334455667788]
                                                 [:exit]]})]
      (let [reference {:map "t_named" :id (:id (bpf/info m))}
            {:keys [name type insns lines functions]} (prog/instructions p)]
        (is (= ["t_names" :socket-filter nil nil] [name type lines functions]))
        (is (= [[:ld-map-value :r1 reference 0]
                [:lddw :r2 reference]
                [:call :ktime-get-ns]
                [:call-local :L7]
                [:exit]
                :L7
                [:lddw :r0 0x1122334455667788]
                [:exit]]
               insns))
        (is (str/includes? (asm/disassemble (prog/instructions p))
                           (str "r1 = &map t_named[" (:id reference) "]\n   2: r2 = map t_named["
                                (:id reference) "]\n   4: call bpf_ktime_get_ns\n"
                                "   5: call L7\n")))))))

(kernel-test ^{:needs [[:kernel :loops]]} q2-functions-of-a-program
  (testing "functions are separate if the BTF of the program has their names"
    (with-open [p ^Closeable (prog/load {:type :socket-filter :name "t_functions"
                                         :insns [[:mov64 :r1 3]
                                                 [:ld-func :r2 :callback]
                                                 [:mov64 :r3 0]
                                                 [:mov64 :r4 0]
                                                 [:call :loop]
                                                 [:exit]
                                                 :callback
                                                 [:mov64 :r0 0]
                                                 [:exit]]})]
      (let [{:keys [name insns functions]} (prog/instructions p)]
        (is (= "main" name))
        (is (some #{[:lddw :r2 {:function "callback1"}]} insns))
        (is (= {"callback1" {:name "callback1" :insns [[:mov64 :r0 0] [:exit]]}} functions))))))

(defn- with-calls
  "Calls f with the program of test/objects/calls-el.o, and its maps."
  [f]
  (with-open [loaded ^Closeable (object/load (object/read "test/objects/calls-el.o"))]
    (f (get-in loaded [:programs "on_enter"]) (:maps loaded))))

(kernel-test q2-named-variables
  (testing "the address of a variable has its name, if the BTF of the map has it"
    (with-calls
     (fn [p maps]
       (let [reference (fn [section map-name variable]
                         {:map map-name :id (:id (bpf/info (maps section))) :variable variable})
             program (prog/instructions p)
             addresses (filter #(= :ld-map-value (first %)) (remove keyword? (:insns program)))
             operands (into #{} (map #(subvec % 2)) addresses)]
         (is (= #{[(reference ".bss" "calls_el.bss" "calls") 0]
                  [(reference ".rodata" "calls_el.rodata" "only") 0]
                  [(reference ".rodata" "calls_el.rodata" "step") 0]}
                operands))
         (is (re-find #"r1 = &calls in map calls_el.bss\[\d+\]\n" (asm/disassemble program)))))))
  (testing "an offset in it is shown, and one that belongs to no variable counts from the map"
    (let [at #'instructions/in-map
          facts {:name "x.bss" :variables [{:name "a" :offset 0 :size 4}
                                           {:name "b" :offset 8 :size 8}]}]
      (is (= [{:map "x.bss" :id 7 :variable "a"} 3] (at 7 facts 3)))
      (is (= [{:map "x.bss" :id 7} 4] (at 7 facts 4)))
      (is (= [{:map "x.bss" :id 7 :variable "b"} 7] (at 7 facts 15)))
      (is (= [{:map "x.bss" :id 7} 16] (at 7 facts 16)))
      (is (= "f:\n   0: r1 = &b + 7 in map x.bss[7]\n"
             (asm/disassemble {:name "f"
                               :insns [[:ld-map-value :r1 {:map "x.bss" :id 7 :variable "b"}
                                        7]]}))))))

;; --- machine code

(defn- with-callback
  "Returns a program that passes a function to a helper, for each element of a map."
  [m]
  {:type :socket-filter :name "t_parts"
   :insns [[:lddw :r1 m]
           [:ld-func :r2 :f]
           [:mov64 :r3 0]
           [:mov64 :r4 0]
           [:call :for-each-map-elem]
           [:mov64 :r0 0]
           [:exit]
           :f
           [:mov64 :r0 0]
           [:exit]]})

(kernel-test machine-code-of-functions
  (testing "the machine code of a program has the bytes, the address and the lines of functions"
    (with-calls
     (fn [p _]
       (let [{:keys [name type address code lines functions]} (prog/machine-code p)]
         (is (= ["on_enter" :raw-tracepoint nil] [name type functions]))
         (is (= (:jited-bytes (prog/info p)) (count code)))
         (is (pos? address))
         (is (= #{:offset :file :line :column :text} (set (keys (first lines)))))
         (is (= (map :offset lines) (sort (map :offset lines))))
         (is (some #(= "calls++;" (str/trim (:text %))) lines))
         (testing "at the address that the kernel lists"
           (let [symbol (str "bpf_prog_" (:tag (prog/info p)) "_on_enter")
                 kallsyms (Path/of "/proc/kallsyms" (make-array String 0))
                 [_ listed] (re-find (re-pattern (str "(?m)^([0-9a-f]+) \\S " symbol "\\b"))
                                     (String. (Files/readAllBytes kallsyms)))]
             ;; Without net.core.bpf_jit_kallsyms the kernel lists no programs.
             (is (contains? #{nil (Long/toHexString (unchecked-long address))} listed)))))))
    (testing "and of other functions"
      (let [check (fn [names program]
                    (let [{:keys [name functions] :as main} (prog/machine-code program)
                          all (cons main (vals functions))]
                      (is (= names (cons name (keys functions)) (map :name all)))
                      (is (= (:jited-bytes (prog/info program))
                             (reduce + (map (comp count :code) all))))
                      (is (apply distinct? (map :address all)))))]
        (with-open [p ^Closeable (prog/load {:type :socket-filter :name "t_local"
                                             :insns [[:call-local :f]
                                                     [:exit]
                                                     :f
                                                     [:mov64 :r0 0]
                                                     [:exit]]})]
          (check ["t_local" "L1"] p))
        (since/needing [[:kernel :callbacks]]
          (with-open [m (bpf/create {:type :array :key :u32 :value :u32 :max-entries 1})
                      p ^Closeable (prog/load (with-callback m))]
            (check ["main" "callback1"] p)))))))

(kernel-test callbacks-before-5-13
  (testing "the error of a program that passes a function to a helper names the release"
    (with-open [m (bpf/create {:type :array :key :u32 :value :u32 :max-entries 1})]
      (if (since/here? [:kernel :callbacks])
        (with-open [p ^Closeable (prog/load (with-callback m))]
          (is (pos-int? (:id (prog/info p)))))
        (let [{:keys [message] :bpfmap/keys [error]} (error-of (prog/load (with-callback m)))]
          (is (= :not-supported error) message)
          (is (str/includes? message (str "functions that are passed to helpers need Linux 5.13, "
                                          "this is " (call/kernel-release)))))))))

(kernel-test machine-code-errors
  (testing "the error says why machine code cannot be read"
    (with-open [p ^Closeable (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
      (since/needing [[:kernel :bpf-of-the-unprivileged]]
        (is (= [:not-found (str "The program has no machine code that this process can read: the "
                                "kernel interprets programs if its JIT compiler is off "
                                "(net.core.bpf_jit_enable); reading machine code requires CAP_BPF")]
               ((juxt :bpfmap/error :message)
                (fixture/unprivileged #(error-of (prog/machine-code p))))))))
    (is (= [:permission (str "The kernel hides the machine code of the program: reading it requires "
                             "CAP_SYSLOG, and fails if addresses of the kernel are hidden "
                             "(kernel.kptr_restrict) or constants are blinded "
                             "(net.core.bpf_jit_harden)")]
           ((juxt :bpfmap/error :message)
            (error-of (#'instructions/check-code {:code (byte-array 0) :size 165}
                                                 {:op :machine-code})))))
    (is (= "The program must be a result of load or open, got 7"
           (:message (error-of (prog/machine-code 7)))))))

(kernel-test instructions-errors
  (testing "the error says why instructions cannot be read"
    (with-open [p ^Closeable (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
      (since/needing [[:kernel :bpf-of-the-unprivileged]]
        (is (= [:permission (str "The kernel hides the instructions of the program: reading them "
                                 "requires CAP_BPF, and CAP_SYSLOG if constants are blinded "
                                 "(net.core.bpf_jit_harden)")]
               ((juxt :bpfmap/error :message)
                (fixture/unprivileged #(error-of (prog/instructions p))))))))
    (let [p (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
      (.close ^Closeable p)
      (is (= :closed (:bpfmap/error (error-of (prog/instructions p))))))
    (is (= "The program must be a result of load or open, got 7"
           (:message (error-of (prog/instructions 7)))))))

;; --- statistics

(kernel-test q1-statistics-while-open
  (testing "runs are counted while the statistics are open"
    (with-open [p ^Closeable (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
      (let [run #(prog/test-run p {:data packet})
            counted #(:run-count (prog/info p) 0)]
        (is (= 0 (fixture/open-statistics)))
        (with-open [s ^Closeable (prog/enable-statistics!)]
          (is (= "#<bpf-statistics>" (str s)))
          (is (= 1 (fixture/open-statistics)))
          (run)
          (is (= 1 (counted)))
          (is (pos-int? (:run-time-ns (prog/info p))))
          (.close s)
          (is (= "#<bpf-statistics closed>" (pr-str s))))
        (is (= 0 (fixture/open-statistics)))
        (let [{:keys [message] :bpfmap/keys [error]}
              (fixture/unprivileged #(error-of (prog/enable-statistics!)))]
          (is (= :permission error))
          (is (str/includes? message "enable-statistics! needs CAP_SYS_ADMIN")))))))
