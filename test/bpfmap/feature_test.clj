(ns bpfmap.feature-test
  "What probes say of the running kernel, held against measurements, its release and bpftool."
  (:require [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.isa :as isa]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.prog :as prog]
            [clojure.set :as set]
            [clojure.string :as str]
            [clojure.test :refer [is testing]]))

(set! *warn-on-reflection* true)

(defn- newer? [row]
  (not (map-types/at-least? (call/kernel-release) (:since row))))

(kernel-test map-types-by-probing
  (testing "detects map types by probing"
    (let [before (fixture/settled-descriptors)]
      (doseq [[type row] map-types/types
              :let [{:keys [supported why]} (feature/map-type type)]]
        (testing type
          (is (nil? why))
          ;; A kernel may have more than its release says, never less.
          (is (or supported (newer? row)))))
      (is (= before (fixture/open-descriptors))))
    (is (= {:supported false} (feature/map-type 4242)))
    (testing "by number as by name"
      (doseq [[type {:keys [number]}] map-types/types]
        (is (= (feature/map-type type) (feature/map-type number)) (str type))))
    (doseq [x [nil {} "hash" :no-such-type -1 1e9]]
      (is (= :invalid-value (:bpfmap/error (fixture/error-of (feature/map-type x)))) (pr-str x)))
    (is (str/includes? (:message (fixture/error-of (feature/map-flag :hash :fast)))
                       "The create flag must be a name or a power of two, got :fast: see bpfmap.spec for all flags"))))

(kernel-test map-flags-by-probing
  (testing "detects map flags by probing"
    (is (= {:supported true} (feature/map-flag :hash :no-prealloc)))
    (is (= {:supported true} (feature/map-flag :array :mmapable) (feature/map-flag 2 1024)))
    (is (= {:supported true} (feature/map-flag :stack-trace :stack-build-id)))
    (testing "flags that come with a descriptor"
      (when (map-types/at-least? (call/kernel-release) "6.9")
        (is (= {:supported true} (feature/map-flag :hash :token-fd)
               (feature/map-flag :struct-ops :vtype-btf-obj-fd)))
        (is (= {:supported false} (feature/map-flag :hash :vtype-btf-obj-fd)))))
    (testing "a number that is not a single flag"
      (doseq [x [0 3 -1]]
        (is (str/starts-with? (:message (fixture/error-of (feature/map-flag :hash x)))
                              (str "The create flag must be a name or a power of two, got " x)))))
    (is (= {:supported false} (feature/map-flag :hash 0x40000000)))
    (is (= {:supported false} (feature/map-flag :hash :mmapable)))
    (is (= {:supported false} (feature/map-flag 4242 :mmapable)))))

;; --- operations

(def ^:private operation-letters
  {\L :lookup \U :update \D :delete \N :next-key \X :lookup-and-delete \F :freeze
   \l :lookup-batch \u :update-batch \d :delete-batch \x :lookup-and-delete-batch})

(def ^:private measured-operations
  "The operations of each type, as measured on Linux 6.18 with programs in C. Of the last two,
  which are newer, as in the kernel's sources."
  {:hash                  "LUDNXF ludx"
   :array                 "LUN  F lu"
   :prog-array            "LUDN F"
   :perf-event-array      " UDN F"
   :percpu-hash           "LUDNXF ludx"
   :percpu-array          "LUN  F lu"
   :stack-trace           "L DNXF"
   :cgroup-array          " UDN F"
   :lru-hash              "LUDNXF ludx"
   :lru-percpu-hash       "LUDNXF ludx"
   :lpm-trie              "LUDN F lud"
   :array-of-maps         "LUDN F lu"
   :hash-of-maps          "LUDN F ludx"
   :devmap                "LUDN F"
   :sockmap               "LUDN F"
   :cpumap                "LUDN F"
   :xskmap                " UDN F"
   :sockhash              "LUDN F"
   :cgroup-storage        "LU N F"
   :reuseport-sockarray   "LUDN F"
   :percpu-cgroup-storage "LU N F"
   :queue                 "LU  XF"
   :stack                 "LU  XF"
   :sk-storage            "LUD  F"
   :devmap-hash           "LUDN F"
   :ringbuf               "     F"
   :inode-storage         "LUD  F"
   :task-storage          "LUD  F"
   :bloom-filter          "LU   F"
   :user-ringbuf          "     F"
   :cgrp-storage          "LUD  F"
   :arena                 "     F"
   :insn-array            "LU N F"
   :rhash                 "LUDNXF ludx"})

(kernel-test operations-as-measured
  (testing "the detected operations match the measured ones"
    (is (= (disj (set (keys map-types/types)) :struct-ops) (set (keys measured-operations))))
    (let [before (fixture/settled-descriptors)
          release (call/kernel-release)
          answered (for [[type letters] measured-operations
                         :when (:supported (feature/map-type type))
                         :let [measured (set (keep operation-letters letters))
                               answers
                               (into {} (map (juxt identity #(feature/operation type %)))
                                     (vals operation-letters))
                               found
                               (set (keep (fn [[op {:keys [supported]}]] (when supported op))
                                          answers))]]
                     (testing type
                       (is (every? (comp some? :supported) (vals answers)))
                       ;; Kernels gain operations and lose none.
                       (when (map-types/at-least? release "6.18")
                         (is (set/superset? found measured)))
                       (when-not (map-types/at-least? release "6.19")
                         (is (set/superset? measured found)))
                       (count answers)))]
      (is (< 100 (reduce + answered)))
      (is (= before (fixture/open-descriptors))))))

(kernel-test unknown-operations
  (testing "handles operations by number and of unknown types"
    (is (= {:supported true} (feature/operation 1 :lookup) (feature/operation :hash :delete)))
    (is (= {:supported false} (feature/operation 2 :delete)))
    (is (= {:supported false} (feature/operation 4242 :lookup)))
    (when (:supported (feature/map-type :struct-ops))
      (is (re-find #"struct of the kernel" (:why (feature/operation :struct-ops :lookup)))))
    (doseq [op [nil 1 "lookup" :put! {}]]
      (is (re-find #"The operation must be .*:delete, .* or :update-batch, got "
                   (:message (fixture/error-of (feature/operation :hash op))))))))

(def ^:private flags-of-element-operations {:lock "5.1" :cpu "7.0" :all-cpus "7.0"})

(kernel-test element-flags-by-probing
  (testing "detects element flags by probing"
    (let [before (fixture/settled-descriptors)]
      (doseq [[flag since] flags-of-element-operations
              :let [{:keys [supported]} (feature/element-flag flag)]]
        (is (boolean? supported) (str flag))
        (is (or supported (newer? {:since since})) (str flag)))
      (is (= before (fixture/open-descriptors))))
    (when (map-types/at-least? (call/kernel-release) "5.1")
      (is (= {:supported true} (feature/element-flag :lock))))
    (when-not (map-types/at-least? (call/kernel-release) "6.19")
      (is (= {:supported false} (feature/element-flag :cpu) (feature/element-flag :all-cpus))))
    (is (str/includes? (:message (fixture/error-of (feature/element-flag :exist)))
                       "The flag of element operations must be :all-cpus, :cpu or :lock, got :exist"))))

;; --- programs

(def ^:private targeted
  "Program types that are loaded for one function or struct."
  #{:tracing :lsm :ext :struct-ops})

(kernel-test program-types-by-probing
  (testing "detects program types by probing"
    (let [before (fixture/settled-descriptors)]
      (doseq [[type number] prog/types
              :let [{:keys [supported why] :as answer} (feature/program-type type)]]
        (testing type
          (is (if (nil? supported) (string? why) (nil? why)))
          (when (some? supported)
            (is (= answer (feature/program-type number))))))
      (is (= before (fixture/open-descriptors))))
    ;; No configuration of a kernel with BPF lacks these.
    (is (= {:supported true} (feature/program-type :socket-filter) (feature/program-type 1)))
    (when (map-types/at-least? (call/kernel-release) "5.14")
      (is (= {:supported true} (feature/program-type :syscall))))
    (is (= {:supported false} (feature/program-type 4242) (feature/program-type 0)))
    (doseq [x [nil {} "xdp" :no-such-type -1 1e9]]
      (is (= :invalid-value (:bpfmap/error (fixture/error-of (feature/program-type x))))
          (pr-str x)))))

(kernel-test helpers-by-verifier-log
  (testing "detects helpers from the log of the verifier"
    (let [before (fixture/settled-descriptors)
          plain (filter #(:supported (feature/program-type %)) (remove targeted (keys prog/types)))]
      (is (< 10 (count plain)))
      (doseq [type plain]
        (is (= {:supported true} (feature/helper type :map-lookup-elem) (feature/helper type 1))
            (str type))
        (is (= {:supported false} (feature/helper type 999999) (feature/helper type 0)) (str type)))
      (is (= before (fixture/open-descriptors))))
    (testing "the same helper, other types"
      (is (= {:supported true} (feature/helper :raw-tracepoint :get-stackid)
             (feature/helper :xdp :redirect-map)))
      (is (= {:supported false} (feature/helper :xdp :get-stackid)
             (feature/helper :socket-filter :redirect-map))))
    (testing "helpers of programs for one function or struct"
      (doseq [type targeted :let [{:keys [supported why]} (feature/program-type type)]]
        (if supported
          (is (re-find #"not probed: " (:why (feature/helper type :map-lookup-elem))))
          (is (= why (:why (feature/helper type :map-lookup-elem)))))))
    (is (= {:supported false} (feature/helper 4242 :map-lookup-elem)))
    (doseq [x [nil {} "loop" :no-such-helper -1 1e9 0x80000000]]
      (is (= :invalid-value (:bpfmap/error (fixture/error-of (feature/helper :xdp x))))
          (pr-str x)))))

(kernel-test agrees-with-the-verifier
  (testing "program types and helpers agree with what the verifier loads"
    (doseq [[type helper] [[:socket-filter :ktime-get-ns]
                           [:xdp :get-smp-processor-id]
                           [:raw-tracepoint :get-current-pid-tgid]]]
      (with-open [p ^java.io.Closeable (prog/load {:type type
                                                   :insns [[:call helper] [:mov64 :r0 0] [:exit]]})]
        (is (some? p))
        (is (= {:supported true} (feature/program-type type) (feature/helper type helper)))))
    (let [insns [[:call :get-stackid] [:mov64 :r0 0] [:exit]]]
      (is (= :program-rejected
             (:bpfmap/error (fixture/error-of (prog/load {:type :xdp :insns insns}))))))))

;; --- bpftool

(defn- kebab [name]
  (keyword (str/replace name "_" "-")))

(defn- bpftool-says
  "What bpftool found: `{:map_type {name available?} :program_type … :helpers {program-type
  #{name}}}`."
  [text]
  (let [available (fn [what] (into {} (map (fn [[_ name answer]] [(kebab name) (= "is" answer)]))
                                   (re-seq
                                    (re-pattern (str "eBPF " what " (\\w+) (is NOT|is) available"))
                                    text)))]
    {:map-types (available "map_type")
     :program-types (available "program_type")
     :helpers (into {}
                    (map (fn [[_ type lines]]
                           [(kebab type)
                            (into #{} (map (comp kebab second)) (re-seq #"- bpf_(\w+)" lines))]))
                    (re-seq #"helpers supported for program type (\w+):\n((?:\t- .*\n)*)" text))}))

(kernel-test agrees-with-bpftool
  (testing "bpftool detects the same features"
    (if-let [bpftool (fixture/executable "bpftool")]
      (let [{:keys [map-types program-types
                    helpers]} (bpftool-says (:out (fixture/run [bpftool "feature" "probe"])))]
        (is (< 20 (count map-types)))
        (is (< 20 (count program-types)))
        (doseq [[type available?] map-types]
          (is (= {:supported available?} (feature/map-type type)) (str type)))
        (doseq [[type available?] program-types
                :let [{:keys [supported]} (feature/program-type type)]]
          ;; bpftool loads these for a function, and takes any refusal but one for a no.
          (when-not (and (targeted type) (not available?))
            (is (= available? supported) (str type))))
        (doseq [type [:socket-filter :xdp :raw-tracepoint]
                :let [listed (helpers type)
                      ours
                      (into #{} (filter #(:supported (feature/helper type %))) (keys isa/helpers))
                      ;; A bpftool older than the kernel knows fewer helpers by name.
                      named (reduce into #{} (vals helpers))]]
          (is (< 30 (count ours) (count isa/helpers))) ; 39 on 5.10, more than 50 from 6.1 on
          (is (set/subset? (set/intersection ours named) listed) (str type))
          ;; One that does not understand the verifier's newer words lists all helpers for all
          ;; types.
          (when-not (contains? (helpers :xdp) :get-stackid)
            (is (= (set/intersection ours named) listed) (str type)))))
      (fixture/skip! "no bpftool to compare with"))))

;; --- the whole

(kernel-test report-has-all-answers
  (testing "the report has an answer to every probe"
    (let [before (fixture/settled-descriptors)
          report (feature/report)
          present (set (filter #(:supported (feature/map-type %)) (keys map-types/types)))]
      (is (= before (fixture/open-descriptors)))
      (is (= #{:kernel :map-types :map-flags :operations :element-flags :program-types}
             (set (keys report))))
      (is (= (call/kernel-release) (:kernel report)))
      (is (= (set (keys map-types/types)) (set (keys (:map-types report)))))
      (is (= (set (keys prog/types)) (set (keys (:program-types report)))))
      (is (= present (set (keys (:map-flags report))) (set (keys (:operations report)))))
      (is (= (feature/map-flag :array :mmapable) (get-in report [:map-flags :array :mmapable])))
      (is (= (feature/operation :array :delete) (get-in report [:operations :array :delete])))
      (is (= (feature/element-flag :lock) (get-in report [:element-flags :lock])))
      (doseq [answer (filter #(and (map? %) (contains? % :supported)) (tree-seq map? vals report))]
        (is (or (contains? #{{:supported true} {:supported false}} answer)
                (and (nil? (:supported answer)) (string? (:why answer))))))
      (testing "is data, and the same again"
        (is (= report (read-string (pr-str report)) (feature/report)))))))

(kernel-test flags-by-type
  (testing "each type accepts the flags that the rules list"
    ;; :token-fd is for every type; a flag that is newer than the kernel cannot be held against it.
    (let [asked (for [[flag row] map-types/flags :when (not (or (= :token-fd flag) (newer? row)))]
                  flag)]
      (doseq [[type {:keys [flags]}] map-types/types
              :when (and flags
                         (map-types/at-least? (call/kernel-release) "6.18")
                         (:supported (feature/map-type type)))]
        (is (= (set/intersection flags (set asked))
               (into #{} (filter #(:supported (feature/map-flag type %))) asked))
            (str type))))))

;; --- what a probe cannot find out

(defn- forgotten
  "Calls f as if nothing had been asked yet."
  [f]
  (with-redefs-fn {#'feature/answers (atom {})} f))

(kernel-test s11-capability-not-cached
  (testing "does not cache a missing capability as unsupported"
    (forgotten
     (fn []
       (doseq [[question ask] {"a map type" #(feature/map-type :xskmap)
                               "a map type with BTF" #(feature/map-type :sk-storage)
                               "a map type with an inner map" #(feature/map-type :array-of-maps)
                               "a flag" #(feature/map-flag :array :numa-node)
                               "an operation" #(feature/operation :hash :lookup)
                               "a flag of operations" #(feature/element-flag :lock)
                               "a program type" #(feature/program-type :kprobe)
                               "a helper" #(feature/helper :raw-tracepoint :get-stackid)}
               :let [before (fixture/settled-descriptors)
                     {:keys [supported why] :as answer} (fixture/unprivileged ask)]]
         (testing question
           (is (= #{:supported :why} (set (keys answer))))
           (is (nil? supported))
           (is (str/includes? (str why) "CAP_BPF"))
           (is (= before (fixture/open-descriptors)))
           (is (= {:supported true} (ask)))
           (testing "is remembered"
             (is (= {:supported true} (fixture/unprivileged ask))))))))
    (testing "what fails after the type was found"
      (forgotten
       (fn []
         (feature/map-type :array)
         (feature/program-type :xdp)
         (doseq [ask [#(feature/operation :array :delete) #(feature/helper :xdp :get-stackid)]]
           (is (str/includes? (str (:why (fixture/unprivileged ask))) "CAP_BPF"))
           (is (= {:supported false} (ask)))))))))

(kernel-test unsupported-with-release
  (testing "an unsupported feature is reported with the release that added it"
    (is (nil? (feature/unsupported {:type :hash :flags #{:no-prealloc}})))
    (is (str/includes? (feature/unsupported {:type 4242 :flags #{}})
                       "lacks the map type 4242, which bpfmap does not support either"))
    (is (str/includes? (feature/unsupported {:type :hash
                                             :flags #{:no-prealloc 0x20000000 0x40000000}})
                       "does not accept"))
    (when (newer? (:rhash map-types/types))
      (is (str/includes? (feature/unsupported {:type :rhash :flags #{}})
                         "lacks the map type :rhash, which was added in Linux 7.2")))))
