(ns bpfmap.bench.lifecycle
  "Measures what opening, creating and listing maps costs beside the same in C by bare bpf(2), in
  the same run.

      bin/clj -M:bench:bench-lifecycle            and into doc/performance.md
      bin/clj -M:bench:bench-lifecycle --print    printed only

  Needs the right to make BPF maps and to open them by id (run it as root), and a C compiler.
  Slices of C and of the JVM alternate; the table has the medians of all. Time is processor time
  of the one thread that works."
  (:require [bpfmap.bench.page :as page]
            [bpfmap.bench.processor :as processor]
            [bpfmap.bench.report :as report]
            [bpfmap.core :as bpf]
            [bpfmap.exec.host :as exec.host]
            [clojure.java.io :as io])
  (:import (java.io BufferedReader Closeable File Writer)
           (java.lang ProcessBuilder$Redirect)
           (java.lang.management ManagementFactory ThreadMXBean)
           (java.nio.file Files)
           (java.nio.file.attribute FileAttribute)
           (java.util.concurrent ExecutorService Future)))

(set! *warn-on-reflection* true)

(def ^:private slices 15)

(def ^:private listed 5000)

(def ^:private untyped {:name "bench" :type :hash :key-size 4 :value-size 8 :max-entries 8})

(def ^:private typed {:name "bench" :type :hash :key :u32 :value :u64 :max-entries 8})

(def ^:private columns
  "Columns that the infos of the maps have."
  (mapv vector ["id" "type" "name" "key-size" "value-size" "max-entries"]))

(defn- rows
  "What is measured: name, name in C, operations of a slice, what to do."
  [plain with-types]
  (let [plain-id (:id (bpf/info plain))
        typed-id (:id (bpf/info with-types))]
    [["open by id, without types" "open" 2000 #(bpf/close (bpf/open plain-id))]
     ["open by id, `:u32` to `:u64`" "open-typed" 2000 #(bpf/close (bpf/open typed-id))]
     ["create, without types" "create" 1000 #(bpf/close (bpf/create untyped))]
     ["create, `:u32` to `:u64`" "create-typed" 500 #(bpf/close (bpf/create typed))]
     [(format "list of %,d maps, what their infos say" listed) "list" 1
      #(count (exec.host/list-maps {:columns columns}))]
     [(format "list of %,d maps, all columns" listed) "list" 1 #(count (exec.host/list-maps {}))]]))

(defn- compiled
  "The program of bench/lifecycle.c."
  ^File [dir]
  (let [program (io/file dir "lifecycle")
        process (.start
                 (doto
                  (ProcessBuilder.
                   ^java.util.List (vector (or (System/getenv "CC") "cc") "-O2" "-Wall"
                                           "-o" (str program) "bench/lifecycle.c"))
                   (.redirectError ProcessBuilder$Redirect/INHERIT)))]
    (when-not (zero? (.waitFor process))
      (throw (ex-info "bench/lifecycle.c could not be compiled; the compiler's words are above"
                      {})))
    program))

(defn- c-slice [^Writer requests ^BufferedReader answers operation n]
  (.write requests (str operation " " n "\n"))
  (.flush requests)
  (or (some-> (.readLine answers) parse-long)
      (throw (ex-info (str "the baseline ended at " operation "; its words are above") {}))))

(defn- jvm-slice [executor n f]
  (let [thread ^ThreadMXBean (ManagementFactory/getThreadMXBean)]
    (.get ^Future (.submit ^ExecutorService executor
                           ^Callable (fn []
                                       (let [begun (.getCurrentThreadCpuTime thread)]
                                         (dotimes [_ n] (f))
                                         (- (.getCurrentThreadCpuTime thread) begun)))))))

(defn- measured [executor requests answers [name in-c n f]]
  (binding [*out* *err*] (println "bench:" name))
  (let [until (+ (System/nanoTime) 5000000000)]
    (while (< (System/nanoTime) until) (jvm-slice executor n f)))
  (let [pairs (vec (repeatedly slices
                               #(vector (c-slice requests answers in-c n)
                                        (jvm-slice executor n f))))
        per #(/ (report/median (map % pairs)) n)]
    {:name name :c (per first) :jvm (per second)
     :ratio (report/median (map (fn [[c jvm]] (/ (double jvm) c)) pairs))}))

(defn- microseconds [ns] (report/number-shown (/ ns 1000.0)))

(defn- measure []
  (let [dir (.toFile (Files/createTempDirectory "bpfmap-bench" (make-array FileAttribute 0)))]
    (try
      (with-open [plain ^Closeable (bpf/create untyped)
                  with-types ^Closeable (bpf/create typed)]
        (let [cpu (first (processor/allowed))
              ids (map (comp :id bpf/info) [plain with-types])
              process (.start
                       (doto
                        (ProcessBuilder. ^java.util.List (mapv str (list* (compiled dir) cpu ids)))
                         (.redirectError ProcessBuilder$Redirect/INHERIT)))
              [executor] (processor/threads 1 [cpu])
              rows (rows plain with-types)]
          (with-open [requests ^Writer (io/writer (.getOutputStream process))
                      answers ^BufferedReader (io/reader (.getInputStream process))]
            (let [one #(measured executor requests answers %)
                  few (mapv one (take 4 rows))
                  maps (vec (repeatedly listed #(bpf/create untyped)))]
              (try
                (into few (map one) (drop 4 rows))
                (finally (run! bpf/close maps)))))))
      (finally
        (run! #(.delete ^File %) (reverse (file-seq dir)))))))

(defn -main
  "Measures and prints a table."
  [& args]
  (let [facts (report/facts (report/machine))
        lines (concat facts [(str "- slices: " slices " of each") ""]
                      (report/table [["what" :name]
                                     ["C, µs" (comp microseconds :c) true]
                                     ["bpfmap, µs" (comp microseconds :jvm) true]
                                     ["ratio" #(format "%.1f" (:ratio %)) true]]
                                    (measure)))]
    (run! println lines)
    (when (empty? args)
      (page/write "bin/clj -M:bench:bench-lifecycle" lines)))
  (shutdown-agents))
