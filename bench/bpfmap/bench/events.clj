(ns bpfmap.bench.events
  "Measures the reading of events beside the same protocols in C, in the same run.

      bin/clj -M:bench:bench-events            and into doc/performance.md
      bin/clj -M:bench:bench-events --print    printed only

  Needs the right to load BPF programs (run it as root), and a C compiler. A program fills the ring
  or the buffer, and then one side reads it; only the reading is measured, as processor time of its
  thread. C and the JVM take turns. The table has medians."
  (:require [bpfmap.bench.page :as page]
            [bpfmap.bench.processor :as processor]
            [bpfmap.bench.report :as report]
            [bpfmap.bench.targets :as targets]
            [bpfmap.core :as bpf]
            [bpfmap.events :as events]
            [bpfmap.prog :as prog]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (clojure.lang IDeref IFn)
           (com.sun.management ThreadMXBean)
           (java.io BufferedReader Closeable File Writer)
           (java.lang ProcessBuilder$Redirect)
           (java.lang.management ManagementFactory)
           (java.nio.file Files)
           (java.nio.file.attribute FileAttribute)
           (java.util.concurrent Callable ExecutorService Future)))

(set! *warn-on-reflection* true)

(def ^:private rounds 41)

(def ^:private warm-up-rounds 20)

(def ^:private warm-up-passes
  "Passes over few events before those: as in a service, the loop is compiled as a whole."
  20000)

(def ^:private ring-size (bit-shift-left 1 23))

(def ^:private live-ring-size (bit-shift-left 1 20))

(def ^:private live-rounds 21)

(def ^:private live-warm-up-rounds
  "Until a waiting reader is compiled again, it loses events to the compiler's two threads."
  10)

(def ^:private live-events 1000000)

(def ^:private no-wakeup 1) ; BPF_RB_NO_WAKEUP, source linux/bpf.h

(def ^:private four-fields [:struct [:pid :u32] [:cpu :u32] [:bytes :u64] [:number :u64]])

;; --- what sends

(defn- program
  "Loads a program that sends an event of `size` bytes each time it runs.

  It counts events in the array `counts`: those that were sent, and those for which the ring had no
  room. An event ends with its number, if it has the size of [[four-fields]]; otherwise it begins
  with it."
  ^Closeable [ring counts size flags]
  (let [place (if (= 24 size) 16 0)]
    (prog/load {:type :socket-filter
                :insns (list [:stw [:r10 -4] 0]
                             [:lddw :r1 counts]
                             [:mov64 :r2 :r10]
                             [:add64 :r2 -4]
                             [:call :map-lookup-elem]
                             [:jeq :r0 0 :end]
                             [:mov64 :r7 :r0]
                             [:lddw :r1 ring]
                             [:mov64 :r2 size]
                             [:mov64 :r3 0]
                             [:call :ringbuf-reserve]
                             [:jeq :r0 0 :full]
                             (when (= 24 size)
                               (list [:stw [:r0 0] 4711]
                                     [:stw [:r0 4] 1]
                                     [:stdw [:r0 8] 100000]))
                             [:ldxdw :r1 [:r7 0]]
                             [:add64 :r1 1]
                             [:stxdw [:r7 0] :r1]
                             [:stxdw [:r0 place] :r1]
                             [:mov64 :r1 :r0]
                             [:mov64 :r2 flags]
                             [:call :ringbuf-submit]
                             [:ja :end]
                             :full
                             [:ldxdw :r1 [:r7 8]]
                             [:add64 :r1 1]
                             [:stxdw [:r7 8] :r1]
                             :end
                             [:mov64 :r0 0]
                             [:exit])})))

(defn- perf-program
  "Loads a program that sends an event of `size` bytes to a perf event array each time it runs.

  It counts and numbers events as [[program]] does."
  ^Closeable [perf counts size]
  (let [size (long size)]
    (prog/load {:type :socket-filter
                :insns (list [:mov64 :r6 :r1]
                             [:stw [:r10 -4] 0]
                             [:lddw :r1 counts]
                             [:mov64 :r2 :r10]
                             [:add64 :r2 -4]
                             [:call :map-lookup-elem]
                             [:jeq :r0 0 :end]
                             [:mov64 :r7 :r0]
                             (for [offset (range 0 size 8)]
                               [:stdw [:r10 (- offset size 8)] 0])
                             [:ldxdw :r1 [:r7 0]]
                             [:add64 :r1 1]
                             [:stxdw [:r7 0] :r1]
                             [:stxdw [:r10 (- (- size) 8)] :r1]
                             [:mov64 :r1 :r6]
                             [:lddw :r2 perf]
                             [:lddw :r3 0xffffffff] ; BPF_F_CURRENT_CPU
                             [:mov64 :r4 :r10]
                             [:add64 :r4 (- (- size) 8)]
                             [:mov64 :r5 size]
                             [:call :perf-event-output]
                             :end
                             [:mov64 :r0 0]
                             [:exit])})))

(defn- run-program [program times]
  (prog/test-run program {:data (byte-array 14) :repeat times}))

(defn- counts-map ^Closeable []
  (bpf/create {:type :array :key :u32 :value [:struct [:sent :u64] [:refused :u64]]
               :max-entries 1}))

(defn- ring ^Closeable [size]
  (bpf/create {:name "bench" :type :ringbuf :max-entries size}))

;; --- C

(defn- compiled
  "Compiles bench/events.c into a directory; returns the program."
  ^File [dir]
  (let [program (io/file dir "events")
        process (.start
                 (doto (ProcessBuilder.
                        ^java.util.List (vector (or (System/getenv "CC") "cc") "-O2" "-Wall"
                                         "-o" (str program) "bench/events.c"))
                   (.redirectError ProcessBuilder$Redirect/INHERIT)))]
    (when-not (zero? (.waitFor process))
      (throw (ex-info "bench/events.c could not be compiled; the compiler's messages are above"
                      {})))
    program))

(defrecord ^:private Peer [^Process process ^BufferedReader answers ^Writer requests]
  Closeable
  (close [_]
    (.close requests)
    (.waitFor process)))

(defn start
  "Starts a program that reads the ring as bench/events.c does."
  ^Closeable [program cpu m]
  (let [process (.start (doto (ProcessBuilder.
                               ^java.util.List (mapv str [program cpu (:id (bpf/info m))]))
                          (.redirectError ProcessBuilder$Redirect/INHERIT)))]
    (->Peer process (io/reader (.getInputStream process)) (io/writer (.getOutputStream process)))))

(defn- ask
  "Has a peer read the ring; returns `{:cpu :events :sum}`."
  [{:keys [^BufferedReader answers ^Writer requests]} what argument]
  (.write requests (str what " " argument "\n"))
  (.flush requests)
  (if-let [answer (.readLine answers)]
    (zipmap [:cpu :events :sum] (map parse-long (str/split answer #" ")))
    (throw (ex-info (str "the program ended at " what "; its messages are above") {}))))

;; --- the JVM

;; Both add up the numbers of events. A field of theirs spares an object for each sum.

(deftype ^:private RawSum [^:unsynchronized-mutable ^long sum]
  IFn
  (invoke [_ event]
    (set! sum (unchecked-add sum (events/raw-long event 0)))
    nil)
  (invoke [this _ event] (.invoke this event))
  IDeref
  (deref [_] sum))

(deftype ^:private FieldSum [^:unsynchronized-mutable ^long sum]
  IFn
  (invoke [_ event]
    (set! sum (unchecked-add sum (long (:number event))))
    nil)
  (invoke [this _ event] (.invoke this event))
  IDeref
  (deref [_] sum))

(defn- on
  "Calls f on the thread of an executor, and returns a future of its result."
  ^Future [^ExecutorService executor f]
  (.submit executor ^Callable f))

(defn- measured
  "Calls f; returns the processor time and the bytes allocated by this thread, and f's sum."
  [way r f]
  (let [thread ^ThreadMXBean (ManagementFactory/getThreadMXBean)
        bytes (.getCurrentThreadAllocatedBytes thread)
        begun (.getCurrentThreadCpuTime thread)]
    (way r f)
    (let [cpu (- (.getCurrentThreadCpuTime thread) begun)]
      {:cpu cpu :bytes (- (.getCurrentThreadAllocatedBytes thread) bytes) :sum @f})))

(defn- reduce-all [r f]
  (reduce f nil r))

;; --- rows

(def ^:private rows
  "What is read: `:events` of `:size` bytes at once."
  (vec (concat
        (for [[way f] [["drain!" events/drain!] ["reduce" reduce-all]]
              [size n] [[8 200000] [64 100000] [512 15000]]]
          {:name (str "in place, `" way "`, " size " bytes") :kind :raw :size size :events n
           :in-c "raw" :way f :sink #(->RawSum 0) :options {:raw true :timeout 0}})
        (for [[way f] [["drain!" events/drain!] ["reduce" reduce-all]]]
          {:name (str "a map of four fields, `" way "`") :kind :typed :size 24 :events 150000
           :in-c "fields" :way f :sink #(->FieldSum 0)
           :options {:type four-fields :timeout 0}}))))

(def ^:private perf-rows
  "The same of a perf event array."
  (vec (for [[way f] [["drain!" events/drain!] ["reduce" reduce-all]]
             [size n] [[8 100000] [64 40000]]]
         {:name (str "a perf event array in place, `" way "`, " size " bytes") :kind :perf
          :size size :events n :in-c "raw" :way f :sink #(->RawSum 0)
          :options {:raw true :timeout 0 :pages 1024 :wakeup-events (bit-shift-left 1 30)}})))

(defn- progress [text]
  (binding [*out* *err*] (println "bench:" text)))

(defn- check-same [c jvm n]
  (when-not (and (= n (:events c)) (= (:sum c) (:sum jvm)))
    (throw (ex-info (str "C and bpfmap did not read the same: " (pr-str c jvm)) {}))))

(defn- with-counts
  "Calls f with a ring, its counts and a program that sends to it."
  [ring-size event-size flags f]
  (with-open [m (ring ring-size)
              counts (counts-map)
              p (program m counts event-size flags)]
    (f m counts p)))

(defn- alternating
  "Measures a row: C and the JVM take turns. Returns it with `:c`, `:jvm`, `:ratio` and `:bytes`.

  `c-program` and `jvm-program` fill what each side reads."
  [executor counts peer r [c-program jvm-program] {:keys [events in-c way sink] :as row}]
  (let [fill #(do (bpf/put! counts 0 {:sent 0 :refused 0})
                  (.get (on executor (fn [] (run-program % events)))))
        of-peer #(do (fill c-program) (ask peer in-c 0))
        of-jvm #(do (fill jvm-program) (.get (on executor (fn [] (measured way r (sink))))))
        _ (.get (on executor #(dotimes [_ warm-up-passes]
                                (run-program jvm-program 50)
                                (way r (sink)))))
        _ (dotimes [_ warm-up-rounds] (of-jvm))
        pairs (vec (for [i (range rounds)
                         :let [first-c (when (even? i) (of-peer))
                               jvm (of-jvm)
                               c (or first-c (of-peer))]]
                     (do (check-same c jvm events)
                         [c jvm])))
        per-event #(/ (report/median %) (double events))]
    (assoc row
           :c (per-event (map (comp :cpu first) pairs))
           :jvm (per-event (map (comp :cpu second) pairs))
           :bytes (per-event (map (comp :bytes second) pairs))
           :ratio (report/median (map (fn [[c jvm]] (/ (double (:cpu jvm)) (:cpu c)))
                                      pairs)))))

(defn- measured-row
  "Measures a row of [[rows]]: both sides read the same ring."
  [peer-program cpu executor {:keys [size options] :as row}]
  (progress (:name row))
  (with-counts ring-size size no-wakeup
    (fn [m counts p]
      (with-open [peer ^Closeable (start peer-program cpu m)
                  r ^Closeable (events/reader m (assoc options :steal true))]
        (alternating executor counts peer r [p p] row)))))

(defn- perf-array ^Closeable []
  (bpf/create {:name "bench" :type :perf-event-array
               :max-entries (inc (long (reduce max (processor/allowed))))}))

(defn- measured-perf-row
  "Measures a row of [[perf-rows]]: a perf event array has one reader, so each side has its own."
  [peer-program cpu executor {:keys [size options] :as row}]
  (progress (:name row))
  (with-open [counts (counts-map)
              of-c (perf-array)
              of-jvm (perf-array)
              c-program (perf-program of-c counts size)
              jvm-program (perf-program of-jvm counts size)
              peer ^Closeable (start peer-program cpu of-c)
              r ^Closeable (events/reader of-jvm options)]
    (ask peer "raw" 0) ; now it has stored its buffer
    (alternating executor counts peer r [c-program jvm-program] row)))

;; --- a producer at full speed

(def ^:private quiet-millis 300)

(defn- live-round
  "Runs the program on one processor while `read-all` reads on another one.

  Returns the share of events that the ring refused, and the reader's time per event."
  [counts p producer read-all]
  (bpf/put! counts 0 {:sent 0 :refused 0})
  (let [producing (on producer #(run-program p live-events))
        {:keys [cpu]} (read-all)
        {:keys [sent refused]} (do (.get producing) (counts 0))]
    {:refused (/ refused (double (+ sent refused))) :time (/ cpu (double sent))}))

(defn- live
  "Returns the medians of [[live-round]] for C and for the JVM."
  [peer-program cpus [consumer producer]]
  (progress "a producer at full speed")
  (with-counts live-ring-size 64 0
    (fn [m counts p]
      (with-open [peer ^Closeable (start peer-program (first cpus) m)
                  r ^Closeable (events/reader m {:raw true :timeout (/ quiet-millis 1e3)
                                                 :steal true})]
        (let [of-c #(live-round counts p producer (fn [] (ask peer "live" quiet-millis)))
              of-jvm #(live-round counts p producer
                                  (fn [] (.get (on consumer (fn [] (measured reduce-all r
                                                                            (->RawSum 0)))))))
              _ (dotimes [_ live-warm-up-rounds] (of-jvm))
              pairs (vec (repeatedly live-rounds #(vector (of-c) (of-jvm))))
              medians (fn [side] (into {} (for [k [:refused :time]]
                                            [k (report/median (map (comp k side) pairs))])))]
          [(assoc (medians first) :reader "C") (assoc (medians second) :reader "bpfmap")])))))

;; --- readers without events

(def ^:private idle-seconds 5)

(def ^:private settling-seconds
  "Seconds before that: a reader looks less often the longer no event comes."
  10)

(defn- idle
  "Returns the share of a processor that a reader takes that waits, as a percentage."
  [open]
  (with-open [m (ring 4096)
              r ^Closeable (open m {:type :u64})]
    (let [beans ^ThreadMXBean (ManagementFactory/getThreadMXBean)
          thread (.start (doto (Thread/ofPlatform) (.daemon true)) #(reduce-all r (fn [_ _])))
          time #(.getThreadCpuTime beans (.threadId ^Thread thread))
          _ (Thread/sleep (* 1000 (long settling-seconds)))
          begun (long (time))]
      (Thread/sleep (* 1000 (long idle-seconds)))
      (/ (- (long (time)) begun) (* 1e7 (long idle-seconds))))))

;; --- the report

(defn- lines [machine measured-rows live idle]
  (concat
   (report/facts (concat machine [["rounds" (str rounds " of each side")]]))
   [""]
   (targets/events-table (concat measured-rows idle
                                 [(assoc (second live) :kind :live :name "64 bytes"
                                         :beyond (- (:refused (second live))
                                                    (:refused (first live))))]))
   [""]
   (report/table [["what" :name]
                  ["C, ns" (comp report/number-shown :c) true]
                  ["bpfmap, ns" (comp report/number-shown :jvm) true]
                  ["ratio" #(format "%.2f" (:ratio %)) true]
                  ["bytes allocated" (comp report/number-shown :bytes) true]]
                 measured-rows)
   ["" (format "A program that sends %,d events of 64 bytes at full speed, to a ring of %,d bytes:"
               live-events live-ring-size)
    ""]
   (report/table [["reader" :reader]
                  ["refused" #(format "%.2f %%" (* 100.0 (:refused %))) true]
                  ["ns for each event" (comp report/number-shown :time) true]]
                 live)
   ["" "A reader that waits, without events:" ""]
   (report/table [["" :name] ["share of a processor" #(format "%.3f %%" (:percent %)) true]] idle)))

(defn measure-rows
  "Measures all rows beside a program that reads as bench/events.c does."
  [peer-program]
  (let [cpu (first (processor/allowed))
        [executor] (processor/threads 1 [cpu])]
    (into (mapv #(measured-row peer-program cpu executor %) rows)
          (map #(measured-perf-row peer-program cpu executor %))
          perf-rows)))

(defn- measure []
  (let [dir (.toFile (Files/createTempDirectory "bpfmap-bench" (make-array FileAttribute 0)))
        machine (report/machine)]
    (try
      (let [program (compiled dir)
            cpus (processor/allowed)
            measured-rows (measure-rows program)
            live (live program cpus (processor/threads 2 cpus))
            _ (progress "readers without events")
            idle [{:name "`reader`" :kind :idle :percent (idle events/reader)}
                  {:name "`peek`" :kind :idle :percent (idle events/peek)}]]
        (lines machine measured-rows live idle))
      (finally
        (run! #(.delete ^File %) (reverse (file-seq dir)))))))

(defn -main
  "Measures and prints tables."
  [& args]
  (let [lines (measure)]
    (run! println lines)
    (when (empty? args)
      (page/write "bin/clj -M:bench:bench-events" lines)))
  (shutdown-agents))
