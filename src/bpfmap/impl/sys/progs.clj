(ns bpfmap.impl.sys.progs
  "The commands of bpf(2) on programs."
  (:refer-clojure :exclude [load])
  (:require [bpfmap.asm :as asm]
            [bpfmap.impl.sys :as sys]
            [clojure.string :as str])
  (:import (bpfmap.sys Abi Attr Bytes Fd)
           (clojure.lang ExceptionInfo)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(def ^:private ^:const attempts
  "The verifier gives up with EAGAIN when a signal is pending; it is asked again this often."
  16)

(def ^:private log-sizes
  "Bytes for the verifier's log, by attempt: none until there is a refusal to explain. Before Linux 5.15 the kernel
  takes at most the last (UINT_MAX >> 8)."
  [0 0x10000 0xffffff])

(defn- load-once
  "The program's descriptor, or `{:refused exception :log text}`. A log of size 0 is not asked for."
  [{:keys [type name license ^bytes insns relocations]} log-size facts]
  (let [log (volatile! nil)]
    (try
      (sys/command "Loading the program" facts Abi/BPF_PROG_LOAD
                   (fn [^Attr attr]
                     (let [insns (reduce (fn [bytes {:keys [slot fd]}]
                                           (asm/patch-map-fd! bytes slot (.use attr fd)))
                                         (aclone insns)
                                         relocations)]
                       (doto attr
                         (.int32 Abi/PROG_LOAD_PROG_TYPE type)
                         (.int32 Abi/PROG_LOAD_INSN_CNT (quot (alength ^bytes insns) 8))
                         (.bytes Abi/PROG_LOAD_INSNS insns)
                         (.string Abi/PROG_LOAD_LICENSE license)))
                     (when (seq name)
                       (.name attr Abi/PROG_LOAD_PROG_NAME name))
                     (when (pos? (long log-size))
                       (.int32 attr Abi/PROG_LOAD_LOG_LEVEL 1)
                       (.int32 attr Abi/PROG_LOAD_LOG_SIZE log-size)
                       (.buffer attr Abi/PROG_LOAD_LOG_BUF log-size)))
                   (fn [outcome attr ^MemorySegment memory]
                     (when (neg? (long outcome))
                       (when (pos? (long log-size))
                         (vreset! log (sys/text memory 0 log-size)))
                       (throw (sys/failure "Loading the program" outcome facts)))
                     (sys/own outcome attr memory))
                   neg?)
      (catch ExceptionInfo e
        {:refused e :log @log}))))

(defn- with-log [^Throwable e log]
  (let [lines (some-> log str/trim not-empty str/split-lines)]
    (if lines
      (ex-info (str (ex-message e) "\n" (str/join "\n" (take-last 6 lines)))
               (assoc (ex-data e) :bpfmap/log log)
               e)
      e)))

(defn load
  "Loads an assembled program; returns its descriptor. A refused one is asked for its log."
  ^Fd [program facts]
  (loop [log-sizes log-sizes attempt 1]
    (let [{:keys [refused log] :as loaded} (load-once program (first log-sizes) facts)
          {:bpfmap/keys [error errno]} (when refused (ex-data refused))]
      (cond
        (nil? refused)
        loaded

        (and (= :EAGAIN errno) (< attempt attempts))
        (recur log-sizes (inc attempt))

        ;; ENOSPC: the log is longer than its buffer.
        (and (next log-sizes)
             (or (= :ENOSPC errno) (and (= :program-rejected error) (nil? log))))
        (recur (rest log-sizes) attempt)

        :else
        (throw (with-log refused log))))))

(defn by-id
  "Opens a program by its id; returns its descriptor."
  ^Fd [id facts]
  (sys/command (str "Opening program " id) facts Abi/BPF_PROG_GET_FD_BY_ID
               (fn [^Attr attr] (.int32 attr Abi/ID_START_ID id))
               sys/own))

(defn test-run
  "Runs a program without attaching it. A run that a signal ended is begun again only if it was a single one."
  [^Fd fd {:keys [^bytes data ^bytes context repeat]} facts]
  (let [room (+ 256 (if data (alength data) 0)) ; a program may make the packet longer
        run (fn []
              (with-open [attr (Attr.)]
                (.fd attr Abi/TEST_PROG_FD fd)
                (let [out (when data
                            (.int32 attr Abi/TEST_DATA_SIZE_IN (alength data))
                            (.bytes attr Abi/TEST_DATA_IN data)
                            (.int32 attr Abi/TEST_DATA_SIZE_OUT room)
                            (.buffer attr Abi/TEST_DATA_OUT room))]
                  (when context
                    (.int32 attr Abi/TEST_CTX_SIZE_IN (alength context))
                    (.bytes attr Abi/TEST_CTX_IN context))
                  (when repeat
                    (.int32 attr Abi/TEST_REPEAT repeat))
                  (let [outcome (.callOnce attr Abi/BPF_PROG_TEST_RUN)]
                    (if (neg? outcome)
                      outcome
                      {:return (.int32 attr Abi/TEST_RETVAL)
                       :duration (.int32 attr Abi/TEST_DURATION)
                       :data (when out
                               (Bytes/copyOut out 0 (min room (.int32 attr Abi/TEST_DATA_SIZE_OUT))))})))))]
    (loop [attempt 1]
      (let [outcome (try (run) (catch RuntimeException e (throw (sys/in-context e facts))))]
        (cond
          (map? outcome) outcome
          (and (= outcome (- Abi/EINTR)) (= 1 (or repeat 1)) (< attempt attempts)) (recur (inc attempt))
          :else (throw (sys/failure "Running the program" outcome facts)))))))

(defn open-raw-tracepoint
  "Attaches a program to a raw tracepoint; returns the descriptor of the attachment."
  ^Fd [^Fd fd tracepoint facts]
  (sys/command (str "Attaching to the raw tracepoint " tracepoint) facts Abi/BPF_RAW_TRACEPOINT_OPEN
               (fn [^Attr attr]
                 (.string attr Abi/RAW_TRACEPOINT_NAME tracepoint)
                 (.fd attr Abi/RAW_TRACEPOINT_PROG_FD fd))
               sys/own))
