(ns bpfmap.bench
  "Measures bpfmap beside the same work in C, on the same map, in the same run.

      bin/clj -M:bench                        all rows
      bin/clj -M:bench --only \"lookup, hit\"   the operations whose name contains this
      bin/clj -M:bench --rounds 31            more rounds than the usual 11
      bin/clj -M:bench --write                also into doc/performance.md

  Needs the right to make BPF maps and to open them by id (run it as root), and
  a C compiler. `bpfmap.bench.rows` says what is measured, doc/performance.md
  how to read it."
  (:require [bpfmap.bench.baseline :as baseline]
            [bpfmap.bench.loops :as loops]
            [bpfmap.bench.processor :as processor]
            [bpfmap.bench.report :as report]
            [bpfmap.bench.rows :as rows]
            [bpfmap.core :as bpf]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (com.sun.management ThreadMXBean)
           (java.io Closeable)
           (java.lang.management ManagementFactory)
           (java.util.concurrent CountDownLatch ExecutorService Future)))

(set! *warn-on-reflection* true)

;; --- one slice

(def ^:private warm-up-part 4) ; as WARM_UP in bench/baseline.c

(defn- work
  "One thread's part of a slice: processor and wall time in nanoseconds, bytes allocated, and the sum."
  [slice count seed ^CountDownLatch not-ready]
  (let [thread ^ThreadMXBean (ManagementFactory/getThreadMXBean)]
    (slice (quot count warm-up-part) seed) ; measured are only warm caches
    ;; Spinning, not sleeping: when the last is ready, all have a processor and begin at once.
    (.countDown not-ready)
    (while (pos? (.getCount not-ready)) (Thread/onSpinWait))
    (let [bytes (.getCurrentThreadAllocatedBytes thread)
          wall (System/nanoTime)
          cpu (.getCurrentThreadCpuTime thread)
          sum (slice count seed)]
      {:cpu (- (.getCurrentThreadCpuTime thread) cpu)
       :wall (- (System/nanoTime) wall)
       :bytes (- (.getCurrentThreadAllocatedBytes thread) bytes)
       :sum sum})))

(defn- jvm-slice
  "Makes one slice of a row on as many executors as it has threads; returns what [[work]] does, added up."
  [executors subject {:keys [threads count slice]} seed]
  (let [not-ready (CountDownLatch. threads)
        part (fn [i executor]
               (.submit ^ExecutorService executor ^Callable (fn [] (work (slice subject) count (+ seed i) not-ready))))]
    (->> (mapv part (range threads) executors)
         (map (fn [^Future part] (.get part)))
         (apply merge-with +))))

(defn- pair
  "A slice of C and one of the JVM, as `bpfmap.bench.report` takes them; which comes first alternates."
  [c executors subject {:keys [operation way threads count] :as row} seed]
  (let [ask-c #(baseline/slice c row seed)
        ask-jvm #(jvm-slice executors subject row seed)
        [in-c in-jvm] (if (even? seed)
                        (let [x (ask-c)] [x (ask-jvm)])
                        (let [x (ask-jvm)] [(ask-c) x]))
        per-operation #(/ % (double (* threads count)))]
    (when-not (= (:sum in-c) (:sum in-jvm))
      (throw (ex-info (str operation ", " way ": C and bpfmap did not do the same work, "
                           (:sum in-c) " is not " (:sum in-jvm))
                      {})))
    {:c (per-operation (:cpu in-c))
     :jvm (per-operation (:cpu in-jvm))
     :bytes (per-operation (:bytes in-jvm))
     :disturbance (reduce max (map #(/ (:wall %) (double (:cpu %))) [in-c in-jvm]))}))

;; --- all rows

(def ^:private warm-up-ns 1e9)

(defn- warm-up
  "Short slices, so that the JIT compiles each loop as a whole, not only from its middle on; then two full ones."
  [executors subject row]
  (let [begun (System/nanoTime)]
    (loop [seed 1]
      (when (< (- (System/nanoTime) begun) warm-up-ns)
        (jvm-slice executors subject (assoc row :count 200) seed)
        (recur (inc seed))))
    (dotimes [seed 2]
      (jvm-slice executors subject row (inc seed)))))

(def slices
  "How many slices of each side make a round."
  9)

(defn measure
  "Measures rows in so many rounds each; returns their summaries (see `bpfmap.bench.report/summary`).

  A round alternates [[slices]] of C and of the JVM, each of a few milliseconds: the median of many short ones is
  little disturbed by what else the machine does. All rows are warmed up before any is measured, so that the JIT
  compiles the code they share for every type of key and value, as it has to in a service. `progress` is called
  with a line of text now and then."
  [rows rounds progress]
  (with-open [^Closeable m (bpf/create rows/spec)
              ^Closeable untyped (bpf/open (:id (bpf/info m)) {:key [:bytes 4] :value [:bytes 8]})
              c (baseline/start (:id (bpf/info m)) loops/entries (processor/allowed))]
    (let [executors (processor/threads (reduce max (map :threads rows)) (processor/allowed))
          subject (rows/subject m untyped)]
      (progress (str "warming up " (count rows) " rows"))
      (run! #(warm-up executors subject %) rows)
      (mapv (fn [row]
              (progress (str (:operation row) ", " (:way row)))
              (->> (range 1 (inc (* slices rounds)))
                   (map #(pair c executors subject row %))
                   (partition slices)
                   (report/summary row)))
            rows))))

;; --- the command

(defn- positive [text]
  (let [n (parse-long text)]
    (when (and n (pos? n)) n)))

(def ^:private options
  "Option to the key it sets, and what reads its argument, nil where it takes none."
  {"--rounds" [:rounds positive]
   "--only" [:only identity]
   "--write" [:write nil]})

(defn- parse [args]
  (loop [[arg & more] args parsed {:rounds 11}]
    (if-not arg
      parsed
      (let [[k reader :as option] (options arg)
            value (if reader (some-> (first more) reader) true)]
        (when-not (and option value)
          (throw (ex-info (str "unclear: " (str/join " " (take 2 (cons arg more)))
                               "; it takes --rounds N, --only TEXT, --write")
                          {})))
        (recur (if reader (rest more) more) (assoc parsed k value))))))

(defn- chosen [{:keys [only]}]
  (or (seq (filter #(or (nil? only) (str/includes? (:operation %) only)) rows/rows))
      (throw (ex-info (str "no operation's name contains " (pr-str only)) {}))))

(def ^:private page "doc/performance.md")

(defn- command-line [args]
  (str/join " " (cons "bin/clj -M:bench" (map #(if (str/includes? % " ") (pr-str %) %) args))))

(defn -main
  "Runs the benchmark and prints its table; see the namespace for the options."
  [& args]
  (try
    (let [{:keys [rounds write] :as options} (parse args)
          facts (report/machine)
          progress (fn [text] (binding [*out* *err*] (println "bench:" text)))
          summaries (measure (chosen options) rounds progress)
          rounds-text (str rounds ", each of " slices " slices of C and as many of bpfmap")
          lines (report/lines (concat [["command" (str "`" (command-line args) "`")]]
                                      facts
                                      [["rounds" rounds-text]])
                              summaries)]
      (run! println lines)
      (when write
        (report/write page lines)))
    (catch ExceptionInfo e
      (binding [*out* *err*] (println "bench:" (ex-message e)))
      (System/exit 1)))
  (shutdown-agents))
