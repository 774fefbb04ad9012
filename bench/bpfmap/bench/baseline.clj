(ns bpfmap.bench.baseline
  "The C side: compiles bench/baseline.c, and asks the process for slices."
  (:require [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (java.io BufferedReader Closeable File IOException Writer)
           (java.lang ProcessBuilder$Redirect)
           (java.nio.file Files)
           (java.nio.file.attribute FileAttribute)))

(set! *warn-on-reflection* true)

(defn- process ^Process [& command]
  (.start (doto (ProcessBuilder. ^java.util.List (mapv str command))
            (.redirectError ProcessBuilder$Redirect/INHERIT))))

(defn- compiler []
  (or (not-empty (System/getenv "CC")) "cc"))

(defn- compile-to [^File program]
  (let [source (io/file (.getParentFile program) "baseline.c")
        cc (compiler)]
    (with-open [text (io/input-stream (io/resource "baseline.c"))]
      (io/copy text source))
    (let [compiling (try
                      (process cc "-O2" "-Wall" "-pthread" "-o" program source)
                      (catch IOException _
                        (throw (ex-info (str "the baseline needs a C compiler, and there is no `" cc
                                             "`: install one, or name one in the environment "
                                             "variable CC")
                                        {}))))]
      (when-not (zero? (.waitFor ^Process compiling))
        (throw (ex-info (str "`" cc "` could not compile bench/baseline.c; its own words are above")
                        {}))))))

(defn- delete-all [^File dir]
  (run! #(.delete ^File %) (reverse (file-seq dir))))

(defrecord Baseline [^Process process ^BufferedReader answers ^Writer requests dir]
  Closeable
  (close [_]
    (try (.close requests) (catch IOException _)) ; it may have ended before
    (.waitFor process)
    (delete-all dir)))

(defn start
  "Compiles the baseline and starts it with the processors for its threads. Close what it returns.

  Throws an ex-info with a message for the user where there is no compiler, or it refuses."
  ^Closeable [processors]
  (let [dir (.toFile (Files/createTempDirectory "bpfmap-bench" (make-array FileAttribute 0)))
        program (io/file dir "baseline")]
    (try
      (compile-to program)
      (let [running ^Process (apply process program processors)]
        (->Baseline running (io/reader (.getInputStream running))
                    (io/writer (.getOutputStream running)) dir))
      (catch Throwable e
        (delete-all dir)
        (throw e)))))

(defn- ask
  "Writes a request and returns the words of the answer."
  [{:keys [^BufferedReader answers ^Writer requests]} & words]
  (let [answer (try
                 (.write requests (str (str/join " " words) "\n"))
                 (.flush requests)
                 (.readLine answers)
                 (catch IOException _))]
    (when-not answer
      (throw (ex-info (str "the baseline ended at " (pr-str (first words))
                           "; its own words are above") {})))
    (str/split answer #" ")))

(defn use-map
  "Has the baseline open the map of a subject, by its id."
  [c {:keys [id shape entries value-size]}]
  (ask c "map" id (name shape) entries value-size))

(defn slice
  "Has the baseline make one slice of a row from a place in the order of the keys on; returns
  `:cpu` and `:wall` in nanoseconds, and `:sum`."
  [c {:keys [in-c threads count batch]} first]
  (zipmap [:cpu :wall :sum] (map parse-long (ask c in-c threads count first batch))))
