(ns bpfmap.bench.memory
  "Measures what memory costs beside the same work in C on the same array, mapped by both, in the
  same run.

      bin/clj -M:bench:bench-memory                 all rows
      bin/clj -M:bench:bench-memory --rounds 31     more rounds than the usual 15
      bin/clj -M:bench:bench-memory --write         also into doc/memory.md

  Needs the right to make BPF maps and to open them by id (run it as root), and a C compiler.
  Slices of C and of the JVM alternate; a round counts with the medians of its slices, and the
  table has the medians of all rounds. Time is processor time of the one thread that works, which
  keeps to the same processor on both sides. All rows are warmed up before any is measured, and
  with them views of other types, so that the JIT has seen what it sees in a service."
  (:require [bpfmap.bench.processor :as processor]
            [bpfmap.core :as bpf]
            [bpfmap.memory :as mem]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (com.sun.management ThreadMXBean)
           (java.io BufferedReader Closeable File Writer)
           (java.lang ProcessBuilder$Redirect)
           (java.lang.management ManagementFactory)
           (java.nio.file Files Path)
           (java.nio.file.attribute FileAttribute)
           (java.time LocalDate ZoneOffset)
           (java.util Arrays)
           (java.util.concurrent ExecutorService Future)))

(set! *warn-on-reflection* true)

(set! *unchecked-math* :warn-on-boxed)

(def ^:private ^:const entries 1000000)

;; ---------------------------------------------------------------- the work, as in bench/memory.c

(defmacro ^:private next-random [x]
  `(let [x# (long ~x)
         x# (bit-xor x# (bit-shift-left x# 13))
         x# (bit-xor x# (unsigned-bit-shift-right x# 7))]
     (bit-xor x# (bit-shift-left x# 17))))

(defmacro ^:private passes
  "A slice: sums an expression, which reads the whole array, until `count` entries are read."
  [expression]
  `(fn ^{:tag ~'long} [^{:tag ~'long} count# ^{:tag ~'long} _#]
     (loop [done# 0 total# 0]
       (if (< done# count#)
         (recur (+ done# entries) (+ total# (long ~expression)))
         total#))))

;; In the two that follow `x` is what the expression uses, in a local, as it is in a loop that
;; somebody writes.

(defmacro ^:private at-random
  "A slice: sums an expression over `count` pseudo-random indices."
  [x [i] expression]
  `(fn ^{:tag ~'long} [^{:tag ~'long} count# ^{:tag ~'long} seed#]
     (let [~x ~x]
       (loop [n# 0 random# seed# total# 0]
         (if (< n# count#)
           (let [random# (next-random random#)
                 ~i (inc (bit-and random# 65535))]
             (recur (inc n#) random# (+ total# (long ~expression))))
           total#)))))

(defmacro ^:private times
  "A slice: evaluates an expression `count` times; its sum is the count."
  [x expression]
  `(fn ^{:tag ~'long} [^{:tag ~'long} count# ^{:tag ~'long} _#]
     (let [~x ~x]
       (loop [n# 0]
         (when (< n# count#)
           ~expression
           (recur (inc n#)))))
     count#))

(def ^:private ^:const block 1024)

(defn- sum-in-loop ^long [^longs array ^long n]
  (loop [i 0 total 0]
    (if (< i n) (recur (inc i) (+ total (aget array i))) total)))

(defn- sum-in-stream
  "By vector instructions: the JIT finds them for this loop of the JDK's, and not for one over
  longs in Clojure."
  ^long [^longs array ^long n]
  (.getSum (.summaryStatistics (Arrays/stream array 0 n))))

(defmacro ^:private sum-of-blocks
  "The sum of a view's numbers by the bulk read, block by block into one array, each summed by a
  function."
  [view array sum]
  `(loop [from# 0 total# 0]
     (if (< from# entries)
       (let [n# (min block (- entries from#))]
         (mem/copy-to ~view from# ~array 0 n#)
         (recur (+ from# n#) (+ total# (~sum ~array n#))))
       total#)))

(defn- rows
  "What is measured: operation, way, the operation of C beside it, how many times a slice does it,
  the slice, and the target, a ratio."
  [m through-memory]
  (let [view (mem/elements m)
        counter (mem/at view 0)
        array (long-array block)
        checked (fn ^long [^long acc ^long x] (clojure.core/+ acc x))
        million (* 4 entries)]
    [["sum of 1,000,000 u64" "(reduce + view)" "sum" million (passes (reduce + view)) 3.0]
     ["sum of 1,000,000 u64" "reduce, a function of longs" "sum" million
      (passes (reduce checked 0 view)) 3.0]
     ["sum of 1,000,000 u64" "reduce, any function" "sum" million
      (passes (reduce (fn [acc x] (+ (long acc) (long x))) 0 view)) nil]
     ["sum of 1,000,000 u64" "copy-to, 1024 at a time, and a LongStream" "sum" million
      (passes (sum-of-blocks view array sum-in-stream)) 1.3]
     ["sum of 1,000,000 u64" "copy-to, 1024 at a time, and a loop" "sum" million
      (passes (sum-of-blocks view array sum-in-loop)) nil]
     ["sum of 1,000,000 u64" "->array, and a LongStream" "sum" million
      (passes (sum-in-stream (mem/->array view) entries)) nil]
     ["atomic add" "add! a view" "add" 1000000 (times counter (mem/add! counter 1)) 1.3]
     ["atomic add" "add! by index" "add" 500000 (times view (mem/add! view 0 1)) nil]
     ["read one element, in memory" "nth" "get" 500000 (at-random view [i] (nth view i)) nil]
     ["read one element, by bpf(2)" "nth" "lookup" 20000 (at-random view [i] (nth view i)) 0.05]
     ["read one element, by bpf(2)" "get-acquire" "lookup" 20000
      (at-random view [i] (mem/get-acquire view i)) nil]
     ["read one element, by bpf(2)" "get, {:mapped true}" "lookup" 20000
      (at-random through-memory [i] (get through-memory i)) nil]
     ["read one element, by bpf(2)" "get" "lookup" 20000 (at-random m [i] (get m i)) nil]]))

(defn- pollute
  "Uses memory as the rest of a program might: other types, other functions."
  [m]
  (let [memory (bpf/memory m)]
    (dotimes [_ 200]
      (doseq [t [:u8 :s16 :u32 :u64be :f32 :f64 :bool [:struct [:a :u32] [:b :u32]] [:bytes 8]]]
        (let [v (mem/view (mem/slice memory 8 8000) [:array t 900])]
          (reduce (fn [_ x] x) nil v)
          (nth v 7)
          (dotimes [i 50] (mem/write! v i (nth v i)))))
      (let [v (mem/view (mem/slice memory 8 8000) [:array :u32 1000])]
        (doseq [f [+ max
                   (fn ^long [^long a ^long b] (bit-xor a b))
                   (fn ^long [^long a ^long b] (max a b))
                   (fn [^long a ^long b] (min a b))]]
          (reduce f 0 v))
        (mem/add! v 3 0)
        (mem/get-acquire v 3)
        (reduce max 0 (mem/slice memory 0 1000))))))

;; ---------------------------------------------------------------- both sides

(defn- compiled
  "Compiles bench/memory.c into a directory; returns the program."
  [^File dir]
  (let [source (io/file dir "memory.c")
        program (io/file dir "memory")
        cc (or (not-empty (System/getenv "CC")) "cc")]
    (with-open [text (io/input-stream (io/resource "memory.c"))]
      (io/copy text source))
    (let
     [process (.start
               (doto
                (ProcessBuilder.
                 ^java.util.List (vector cc "-O2" "-Wall" "-pthread" "-o" (str program)
                                         (str source)))
                 (.redirectError ProcessBuilder$Redirect/INHERIT)))]
      (when-not (zero? (.waitFor process))
        (throw (ex-info (str "`" cc "` could not compile bench/memory.c; its own words are above")
                        {}))))
    program))

(defrecord ^:private Baseline [^Process process ^BufferedReader answers ^Writer requests dir]
  Closeable
  (close [_]
    (.close requests)
    (.waitFor process)
    (run! #(.delete ^File %) (reverse (file-seq dir)))))

(defn- start ^Baseline [map-id cpu]
  (let [dir (.toFile (Files/createTempDirectory "bpfmap-bench" (make-array FileAttribute 0)))
        process (.start
                 (doto
                  (ProcessBuilder. ^java.util.List (mapv str [(compiled dir) map-id entries cpu]))
                   (.redirectError ProcessBuilder$Redirect/INHERIT)))]
    (->Baseline process (io/reader (.getInputStream process)) (io/writer (.getOutputStream process))
                dir)))

(defn- c-slice
  "Nanoseconds and the sum of a slice of C."
  [{:keys [^BufferedReader answers ^Writer requests]} operation n seed]
  (.write requests (str operation " " n " " seed "\n"))
  (.flush requests)
  (if-let [answer (.readLine answers)]
    (mapv parse-long (str/split answer #" "))
    (throw (ex-info (str "the baseline ended at " operation "; its own words are above") {}))))

(defn- jvm-slice
  "Nanoseconds and the sum of a slice of the JVM."
  [executor slice n seed]
  (let [thread ^ThreadMXBean (ManagementFactory/getThreadMXBean)]
    (.get ^Future (.submit ^ExecutorService executor
                           ^Callable (fn []
                                       ;; Measured are only warm caches
                                       (slice (quot (long n) 4) seed)
                                       (let [begun (.getCurrentThreadCpuTime thread)
                                             sum (slice n seed)]
                                         [(- (.getCurrentThreadCpuTime thread) begun) sum]))))))

(defn- median [xs]
  (let [sorted (vec (sort xs))
        n (count sorted)]
    (/ (+ (double (sorted (quot (dec n) 2))) (double (sorted (quot n 2)))) 2)))

(def ^:private ^:const slices "How many slices of each side make a round." 9)

(defn- one-round
  "The medians of a round, in nanoseconds for each operation: `[c jvm]`."
  [c executor [operation way in-c n slice] round]
  (let [pairs (for [i (clojure.core/range slices)
                    :let [seed (+ 1 (long i) (* 100 (long round)))
                          ask-c #(c-slice c in-c n seed)
                          ask-jvm #(jvm-slice executor slice n seed)
                          [[c-ns c-sum] [jvm-ns jvm-sum]] (if (even? (long i))
                                                            (let [x (ask-c)] [x (ask-jvm)])
                                                            (let [x (ask-jvm)] [(ask-c) x]))]]
                (do
                  (when-not (= c-sum jvm-sum)
                    (throw (ex-info (str operation ", " way
                                         ": C and bpfmap did not do the same work, " c-sum
                                         " is not " jvm-sum) {})))
                  [c-ns jvm-ns]))
        pairs (vec pairs)
        per-operation #(/ (double (median %)) (double n))]
    [(per-operation (map first pairs)) (per-operation (map second pairs))]))

(defn- measured
  "A row with its figures."
  [c executor row rounds]
  (let [results (mapv #(one-round c executor row %) (clojure.core/range rounds))
        ratios (map (fn [[c jvm]] (/ (double jvm) (double c))) results)
        in-c (median (map first results))
        in-jvm (median (map second results))]
    {:row row :c in-c :jvm in-jvm :ratio (/ (double in-jvm) (double in-c)) :low (reduce min ratios)
     :high (reduce max ratios)}))

(defn- warm-up [executor [_ _ _ n slice]]
  (let [until (clojure.core/+ (System/nanoTime) 1500000000)]
    (loop [seed 1]
      (when (< (System/nanoTime) until)
        (jvm-slice executor slice (quot (long n) 20) seed)
        (recur (inc seed))))
    (dotimes [i 2] (jvm-slice executor slice n (inc i)))))

(defn- measure [rounds]
  (with-open [m ^Closeable (bpf/create {:name "t_bench" :type :array :key :u32 :value :u64
                                        :max-entries entries :flags #{:mmapable}})
              through-memory ^Closeable (bpf/open (:id (bpf/info m)) {:mapped true})
              memory ^Closeable (bpf/memory m)
              c ^Closeable (start (:id (bpf/info m)) (first (processor/allowed)))]
    (mem/copy-from (mem/elements m) (long-array (clojure.core/range 0 (* 3 entries) 3)))
    (let [executor (first (processor/threads 1 (processor/allowed)))
          rows (rows m through-memory)
          say #(binding [*out* *err*] (println "bench:" %))]
      (say "warming up")
      (.get ^Future (.submit ^ExecutorService executor ^Callable (fn [] (pollute m))))
      (run! #(warm-up executor %) rows)
      (mapv (fn [[operation way :as row]]
              (say (str operation ", " way))
              (measured c executor row rounds))
            rows))))

;; ---------------------------------------------------------------- text

(defn- number-text [x]
  (let [x (double x)]
    (String/format java.util.Locale/ROOT (cond (< x 1) "%.3f" (< x 100) "%.2f" :else "%.0f")
                   (object-array [x]))))

(defn- lines [rounds results load]
  (let [text (fn [file pattern]
               (second (re-find pattern (Files/readString (Path/of file (make-array String 0))))))]
    (concat
     [(str "- date: " (LocalDate/now ZoneOffset/UTC))
      (str "- processor: " (text "/proc/cpuinfo" #"model name\s*:\s*(.+)") ", "
           (.availableProcessors (Runtime/getRuntime)) " of them")
      (str "- kernel: Linux " (System/getProperty "os.version"))
      (str "- JDK: " (System/getProperty "java.vm.name") " " (System/getProperty "java.vm.version"))
      (str "- load by others: " (String/format java.util.Locale/ROOT "%.1f" (object-array [load])))
      (str "- rounds: " rounds ", each of " slices " slices of C and as many of bpfmap")
      ""
      "| operation | way | C, ns | bpfmap, ns | ratio | min–max | at most |"
      "|---|---|---:|---:|---:|---:|---:|"]
     (for [{[operation way _ _ _ target] :row :keys [c jvm ratio low high]} results]
       (str "| "
            (str/join " | "
                      [operation (str "`" way "`") (number-text c) (number-text jvm)
                       (number-text ratio)
                       (str (number-text low) "–" (number-text high))
                       (if target
                         (str target (if (<= (double ratio) (double target)) ", met" ", MISSED"))
                         "")])
            " |")))))

(def ^:private page "doc/memory.md")
(def ^:private begin
  "<!-- measured: bin/clj -M:bench:bench-memory --write replaces what follows -->")
(def ^:private end "<!-- /measured -->")

(defn- write [lines]
  (let [text (slurp page)
        from (str/index-of text begin)
        to (str/index-of text end)]
    (when-not (and from to)
      (throw (ex-info (str page " lacks the lines " begin " and " end) {})))
    (spit page
          (str (subs text 0 (clojure.core/+ (long from) (count begin))) "\n\n" (str/join "\n" lines)
               "\n\n" (subs text to)))))

(defn -main
  "Runs the benchmark and prints its table; see the namespace for the options."
  [& args]
  (let [options (set args)
        rounds (if (options "--rounds")
                 (parse-long (second (drop-while #(not= "--rounds" %) args)))
                 15)
        load (.getSystemLoadAverage (ManagementFactory/getOperatingSystemMXBean))
        lines (lines rounds (measure rounds) load)]
    (run! println lines)
    (when (options "--write") (write lines)))
  (shutdown-agents))
