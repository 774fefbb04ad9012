(ns bpfmap.bench.jmh
  "Measures what is inside the JVM, with JMH: bench/java.

      bin/clj -M:bench:bench-jmh              everything, and into doc/performance.md
      bin/clj -M:bench:bench-jmh decode       the benchmarks whose name matches, printed only

  Needs a kernel that tells its types, /sys/kernel/btf/vmlinux. doc/performance.md says how to
  read it."
  (:require [bpfmap.bench.page :as page]
            [bpfmap.bench.report :as report]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (java.io File)
           (javax.tools ToolProvider)))

(set! *warn-on-reflection* true)

(def ^:private classes "target/jmh")

(def ^:private shown
  "What the benchmarks are called in the table, and the yardstick of each."
  [["decodeU64" "decode a :u64" "decodeU64Yardstick" "box a long"]
   ["encodeU64" "encode a :u64"]
   ["decodeStruct" "decode a struct of four integers" "decodeStructYardstick" "make the same map"]
   ["encodeStruct" "encode a struct of four integers" "encodeStructYardstick"
    "look its four fields up"]
   ["decodeArrayOfEight" "decode an array of eight :u32"]
   ["decodeAddress" "decode an :ipv4"]
   ["takeAndGiveMemory" "memory for an element operation"]
   ["acquireAndRelease" "counting a call of a descriptor"]
   ["btfOpenAndFind" "the kernel's BTF: open it and look a type up"]
   ["btfSkBuff" "the kernel's BTF: decode struct sk_buff"]
   ["btfTaskStruct" "the kernel's BTF: decode struct task_struct"]])

(defn- compile-benchmarks
  "Compiles bench/java, for which JMH writes the loops."
  []
  (.mkdirs (io/file classes))
  (let [sources (filter #(str/ends-with? % ".java") (map str (file-seq (io/file "bench/java"))))
        exit (.run (ToolProvider/getSystemJavaCompiler) nil nil nil
                   (into-array String
                               (concat ["-d" classes "-classpath"
                                        (System/getProperty "java.class.path") "-proc:full"]
                                       sources)))]
    (when-not (zero? exit)
      (throw (ex-info "the benchmarks could not be compiled; javac's own words are above" {})))))

(defn- run-benchmarks
  "Runs JMH in a JVM of its own; returns its results as rows of texts."
  [pattern]
  (let [results (File/createTempFile "bpfmap-jmh" ".csv")
        command [(str (System/getProperty "java.home") "/bin/java")
                 "-cp" (str classes File/pathSeparator (System/getProperty "java.class.path"))
                 "org.openjdk.jmh.Main" (or pattern ".*InsideTheJvm.*")
                 "-f" "2" "-i" "5" "-r" "1" "-prof" "gc" "-rf" "csv" "-rff" (str results)
                 "-jvmArgs" "--enable-native-access=ALL-UNNAMED"]]
    (try
      (when-not (zero? (.waitFor (.start (.inheritIO (ProcessBuilder. ^java.util.List command)))))
        (throw (ex-info "JMH failed; its own words are above" {})))
      (mapv #(mapv (fn [cell] (str/replace cell "\"" "")) (str/split % #","))
            (rest (str/split-lines (slurp results))))
      (finally (.delete results)))))

(defn- numbers
  "Benchmark to `{:ns :error :bytes}`, from JMH's rows: name, mode, threads, samples, score,
  error, unit."
  [rows]
  (reduce (fn [acc [benchmark _ _ _ score error]]
            (let [[_ name kind] (re-matches #".*\.InsideTheJvm\.(\w+)(?::·?(.*))?" benchmark)]
              (cond
                (nil? name) acc
                (nil? kind) (update acc name assoc :ns (parse-double score) :error
                                    (parse-double error))
                (str/ends-with?
                 kind "alloc.rate.norm") (assoc-in acc [name :bytes] (parse-double score))
                :else acc)))
          {} rows))

(defn- lines [measured]
  (report/table
   [["what" :what]
    ["ns" #(report/number-shown (:ns %)) true]
    ["±" #(report/number-shown (:error %)) true]
    ["bytes" #(report/number-shown (:bytes %)) true]
    ["yardstick" #(or (:yardstick %) "–")]
    ["ns" #(report/number-shown (get-in % [:beside :ns])) true]
    ["bytes" #(report/number-shown (get-in % [:beside :bytes])) true]
    ["ratio" #(if (:beside %) (format "%.2f" (/ (:ns %) (get-in % [:beside :ns]))) "–") true]]
   (for [[name what beside yardstick] shown
         :when (measured name)]
     (assoc (measured name) :what what :yardstick yardstick :beside (some-> beside measured)))))

(defn -main
  "Compiles and runs the benchmarks, and prints a table."
  [& [pattern]]
  (try
    (compile-benchmarks)
    (let [lines (concat (report/facts (report/machine)) [""]
                        (lines (numbers (run-benchmarks pattern))))]
      (run! println lines)
      (when-not pattern
        (page/write "bin/clj -M:bench:bench-jmh" lines)))
    (catch clojure.lang.ExceptionInfo e
      (binding [*out* *err*] (println "bench:" (ex-message e)))
      (System/exit 1)))
  (shutdown-agents))
