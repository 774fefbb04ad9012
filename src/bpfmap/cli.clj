(ns bpfmap.cli
  "The command line: `bin/bpfmap`, or `clojure -M:cli`.

  The table `bpfmap.exec.commands` has the commands; parsing, help, completion
  and usage errors are read from it. What a command needs is loaded when it is called."
  (:require [bpfmap.cli.arguments :as arguments]
            [bpfmap.cli.printing :as printing]
            [bpfmap.exec.arguments :as exec.arguments])
  (:import (java.io BufferedWriter FileDescriptor FileOutputStream IOException OutputStreamWriter)
           (java.nio.charset StandardCharsets)))

(set! *warn-on-reflection* true)

(def version
  "The version of bpfmap that this command line belongs to."
  "0.1.0")

(defn- perform
  "Does what was asked for, and prints it; returns the exit code."
  [{:keys [command options format] :as request}]
  (try
    (let [checked (exec.arguments/checked command options)
          value (if (:run command)
                  ((requiring-resolve (:run command)) checked request)
                  ((requiring-resolve (:fn command)) checked))
          view (if (:run command) value ((requiring-resolve (:view command)) value checked))]
      (printing/print-result value view format))
    (catch clojure.lang.ExceptionInfo e
      (throw (arguments/in-words e)))))

(defn run
  "Does what the words of a command line ask for, with *out* and *err*; returns the exit code.

  An IOException is thrown on: it is the output that cannot be written.

      (run [\"list\" \"--edn\"]) ;=> 0"
  [words]
  (try
    (let [request (arguments/request words)]
      (if (:version request)
        (do (println "bpfmap" version) 0)
        (perform request)))
    (catch IOException e
      (throw e))
    (catch Throwable e
      (flush)
      (printing/print-failure e (some #{"--verbose"} words)))))

(defn- run-safely
  "Runs with an *out* that reports what cannot be written, which System/out would pass over."
  [words]
  (with-open [out (BufferedWriter. (OutputStreamWriter. (FileOutputStream. FileDescriptor/out)
                                                        StandardCharsets/UTF_8))]
    (binding [*out* out]
      (let [exit (run words)]
        (flush)
        exit))))

(defn -main
  "Runs, and exits with 0 when done, 1 when it failed, 2 for wrong usage."
  [& words]
  (System/exit
   (try
     (run-safely words)
     (catch IOException e
       (if (= "Broken pipe" (ex-message e))
         141 ; as any program that SIGPIPE ends: the reader has seen enough
         (do (printing/complain "bpfmap: The output cannot be written: " (ex-message e))
             1))))))
