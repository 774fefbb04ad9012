(ns bpfmap.bench.measure
  "Measures rows: slices of C and of the JVM in turn, many short ones."
  (:require [bpfmap.bench.baseline :as baseline]
            [bpfmap.bench.processor :as processor]
            [bpfmap.bench.raw :as raw]
            [bpfmap.bench.report :as report]
            [bpfmap.bench.rows :as rows])
  (:import (com.sun.management ThreadMXBean)
           (java.lang.management ManagementFactory)
           (java.util.concurrent CountDownLatch ExecutorService Future)
           (javax.management ObjectName)))

(set! *warn-on-reflection* true)

;; --- one slice

(def ^:private warm-up-part 4) ; as WARM_UP in bench/baseline.c

(defn- allocated
  "Bytes that a slice of so many operations allocates."
  [^ThreadMXBean thread run count first]
  (let [bytes (.getCurrentThreadAllocatedBytes thread)]
    (run count first)
    (- (.getCurrentThreadAllocatedBytes thread) bytes)))

(defn- work
  "One thread's part of a slice: processor and wall time in nanoseconds, bytes allocated, and the
  sum."
  [subject {:keys [slice count batch] restores? :restores} first ^CountDownLatch not-ready]
  (let [thread ^ThreadMXBean (ManagementFactory/getThreadMXBean)
        run (slice (assoc subject :batch batch))
        restore (if restores? (raw/update-arrays subject) (fn [_ _]))]
    (run (quot count warm-up-part) first) ; measured are only warm caches
    (restore (quot count warm-up-part) first)
    ;; Spinning, not sleeping: when the last is ready, all have a processor and begin at once.
    (.countDown not-ready)
    (while (pos? (.getCount not-ready)) (Thread/onSpinWait))
    (let [of-calling (allocated thread run 0 first)
          bytes (.getCurrentThreadAllocatedBytes thread)
          wall (System/nanoTime)
          cpu (.getCurrentThreadCpuTime thread)
          sum (run count first)
          done {:cpu (- (.getCurrentThreadCpuTime thread) cpu)
                :wall (- (System/nanoTime) wall)
                :bytes (- (.getCurrentThreadAllocatedBytes thread) bytes of-calling)
                :sum sum}]
      (restore count first)
      done)))

(defn- jvm-slice
  "Makes one slice of a row on as many executors as it has threads; returns what [[work]] does,
  added up."
  [executors subject {:keys [threads count entries] :as row} first]
  (let [not-ready (CountDownLatch. threads)
        part (fn [i executor]
               (.submit ^ExecutorService executor
                        ^Callable (fn []
                                    (work subject row (rem (+ first (* i count)) entries)
                                          not-ready))))]
    (->> (mapv part (range threads) executors)
         (map (fn [^Future part] (.get part)))
         (apply merge-with +))))

(defn- pair
  "The `i`th slice of C and of the JVM, as `bpfmap.bench.report` takes them; which comes first
  alternates."
  [c executors subject {:keys [operation way threads count entries] :as row} i]
  (let [first (rem (* i threads count) entries)
        ask-c #(baseline/slice c row first)
        ask-jvm #(jvm-slice executors subject row first)
        [in-c in-jvm] (if (even? i)
                        (let [x (ask-c)] [x (ask-jvm)])
                        (let [x (ask-jvm)] [(ask-c) x]))
        per-operation #(/ % (double (* threads count)))]
    (when-not (or (= (:sum in-c) (:sum in-jvm))
                  (= "into {}" operation)) ; which counts what it has read
      (throw (ex-info (str operation ", " (name way) ": C and bpfmap did not do the same work, "
                           (:sum in-c) " is not " (:sum in-jvm))
                      {})))
    {:c (per-operation (:cpu in-c))
     :jvm (per-operation (:cpu in-jvm))
     :bytes (per-operation (:bytes in-jvm))
     :disturbance (reduce max (map #(/ (:wall %) (double (max 1 (:cpu %)))) [in-c in-jvm]))}))

;; --- native memory

(defn native-memory
  "Bytes of native memory that the program has allocated through the foreign function API, as the
  JVM's own accounts have it (`-XX:NativeMemoryTracking=summary`, category Other); nil where they
  are off."
  []
  (let [report (.invoke (ManagementFactory/getPlatformMBeanServer)
                        (ObjectName. "com.sun.management:type=DiagnosticCommand")
                        "vmNativeMemory"
                        (object-array [(into-array String ["summary" "scale=B"])])
                        (into-array String ["[Ljava.lang.String;"]))]
    (some-> (second (re-find #"Other \(reserved=(\d+)" (str report))) parse-long)))

(defn garbage-collection
  "Milliseconds that the garbage collectors of this JVM have taken until now."
  []
  (reduce + (map #(.getCollectionTime ^java.lang.management.GarbageCollectorMXBean %)
                 (ManagementFactory/getGarbageCollectorMXBeans))))

;; --- all rows

(def ^:private warm-up-ns 5e8)
(def ^:private warm-up-entries 1000)

(defn- warm-up
  "Short slices, so that the JIT compiles each loop as a whole, not only from its middle on; then
  full ones."
  [executors subject row]
  (let [row (rows/sized row subject)
        begun (System/nanoTime)]
    (loop []
      (jvm-slice executors subject (update row :count min 200) 0)
      (when (< (- (System/nanoTime) begun) warm-up-ns) (recur)))
    (dotimes [_ 2]
      (jvm-slice executors subject row 0))))

(defn- with-subject [kind entries f]
  (let [subject (rows/subject kind entries)]
    (try
      (f subject)
      (finally (rows/close subject)))))

(defn- row-measured [c executors subject rounds {:keys [slices] :as row}]
  (let [row (rows/sized row subject)
        before (native-memory)
        ;; Unmeasured: this map's memory, and the branches of its sizes
        _ (pair c executors subject row 0)
        pairs (mapv #(pair c executors subject row %) (range (* slices rounds)))
        after (native-memory)]
    (assoc (report/summary row (partition slices pairs))
           :native (when before (- after before)))))

(defn measure
  "Measures the rows of kinds of maps, at each of the sizes and on each of the numbers of threads;
  returns their summaries (see `bpfmap.bench.report/summary`).

  A round alternates slices of C and of the JVM, each of a few milliseconds: the median of many
  short ones is little disturbed by what else the machine does. All rows are warmed up on a small
  map before any is measured, so that the JIT compiles the code they share for every type of key
  and value, as it has to in a service. `wanted?` says which rows; `progress` is called with a
  line of text now and then."
  [{:keys [kinds sizes threads rounds progress] wanted? :wanted}]
  (with-open [c (baseline/start (processor/allowed))]
    (let [executors (processor/threads (reduce max threads) (processor/allowed))
          rows-of (fn [kind entries ts] (filter wanted? (mapcat #(rows/rows kind entries %) ts)))]
      (progress "warming up")
      (doseq [kind kinds
              :let [rows (rows-of kind warm-up-entries [(reduce max threads)])]
              :when (seq rows)]
        (with-subject kind warm-up-entries
          (fn [subject] (run! #(warm-up executors subject %) rows))))
      (vec
       (mapcat (fn [[kind entries]]
                 (let [rows (rows-of kind entries threads)]
                   (when (seq rows)
                     (progress (str (:title kind) ", " entries " entries, " (count rows) " rows"))
                     (with-subject kind entries
                       (fn [subject]
                         (baseline/use-map c subject)
                         (mapv #(row-measured c executors subject rounds %) rows))))))
               (for [kind kinds, entries sizes] [kind entries]))))))
