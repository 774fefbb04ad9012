(ns bpfmap.bench.start
  "Measures how long the command line takes to start, as whole processes beside Clojure's own.

      bin/clj -M:bench:bench-start            and into doc/performance.md
      bin/clj -M:bench:bench-start --print    printed only

  Needs JDK 24 or later, for the AOT cache."
  (:require [bpfmap.bench.page :as page]
            [bpfmap.bench.report :as report]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (java.io File)
           (java.lang ProcessBuilder$Redirect)
           (java.nio.file Files)
           (java.nio.file.attribute FileAttribute)))

(set! *warn-on-reflection* true)

(def ^:private rounds 21)

(def ^:private java (str (System/getProperty "java.home") "/bin/java"))

(def ^:private clojure-alone
  (str/join File/pathSeparator
            (filter #(re-find #"/(clojure|spec\.alpha|core\.specs\.alpha)-[\d.]+\.jar$" %)
                    (str/split (System/getProperty "java.class.path") #":"))))

(def ^:private one ["-cp" clojure-alone "clojure.main" "-e" "1"])

(def ^:private options
  "Those of bin/bpfmap."
  ["-XX:+UseSerialGC" "-XX:TieredStopAtLevel=1" "-XX:-UsePerfData" "-Xlog:disable"])

(defn- milliseconds
  "Runs a command to its end, and says how long that took."
  [command]
  (let [builder (doto (ProcessBuilder. ^java.util.List command)
                  (.redirectOutput ProcessBuilder$Redirect/DISCARD)
                  (.redirectError ProcessBuilder$Redirect/DISCARD))
        begun (System/nanoTime)
        exit (.waitFor (.start builder))]
    (when-not (zero? exit)
      (throw (ex-info (str (str/join " " command) " exited with " exit) {})))
    (/ (- (System/nanoTime) begun) 1e6)))

(defn- with-cache
  "Makes an AOT cache for `clojure.main -e 1` with some options; returns the command that uses it."
  [dir name options]
  (let [conf (str (io/file dir (str name ".conf")))
        cache (str (io/file dir (str name ".aot")))]
    (milliseconds (concat [java] options ["-XX:AOTMode=record" (str "-XX:AOTConfiguration=" conf)]
                          one))
    (milliseconds (concat [java] options
                          ["-XX:AOTMode=create" (str "-XX:AOTConfiguration=" conf)
                           (str "-XX:AOTCache=" cache)]
                          (take 2 one)))
    (concat [java] options [(str "-XX:AOTCache=" cache)] one)))

(defn- measured
  "The times of each command, which are run in turn, as they come."
  [commands]
  (reduce (fn [times [name command]] (update times name (fnil conj []) (milliseconds command)))
          {} (apply concat (repeat rounds commands))))

(defn- lines [dir]
  (let [commands [["clojure.main -e 1" (with-cache dir "plain" [])]
                  ["clojure.main -e 1, with the same options" (with-cache dir "same" options)]
                  ["bin/bpfmap --version" ["bin/bpfmap" "--version"]]
                  ["bin/bpfmap list" ["bin/bpfmap" "list"]]]
        ;; Compiles, makes the cache, and has the files in memory
        _ (run! (comp milliseconds second) commands)
        times (measured commands)
        of (fn [name] (report/median (times name)))
        least (fn [name] (reduce min (times name)))]
    (report/table
     [["process" identity]
      ["median, ms" #(format "%.0f" (of %)) true]
      ["least, ms" #(format "%.0f" (least %)) true]
      ["median × clojure.main -e 1" #(format "%.2f" (/ (of %) (of (ffirst commands)))) true]
      ["× with the same options" #(format "%.2f" (/ (of %) (of (first (second commands))))) true]]
     (map first commands))))

(defn -main
  "Measures and prints a table."
  [& args]
  (let [dir (.toFile (Files/createTempDirectory "bpfmap-start" (make-array FileAttribute 0)))]
    (try
      (let [lines (concat (report/facts (report/machine)) [(str "- rounds: " rounds)] [""]
                          (lines dir))]
        (run! println lines)
        (when (empty? args)
          (page/write "bin/clj -M:bench:bench-start" lines)))
      (finally
        (run! #(.delete ^File %) (reverse (file-seq dir))))))
  (shutdown-agents))
