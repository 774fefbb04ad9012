(ns ^:no-doc bpfmap.cli.main
  "Runs the command line: `bin/bpfmap`, or `clojure -M:cli`.

  Parsing, help, completion and usage errors are generated from the table `bpfmap.exec.commands`.
  The code of a command is loaded when the command is called."
  (:require [bpfmap.cli.command-line :as command-line]
            [bpfmap.cli.terminal :as terminal]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.output :as output]
            [bpfmap.exec.progress :as progress]
            [bpfmap.impl.kernel.procfs :as procfs]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.io BufferedWriter FileDescriptor FileOutputStream IOException
                    OutputStreamWriter PrintWriter)
           (java.nio.charset StandardCharsets)))

(set! *warn-on-reflection* true)

(defmacro ^:private read-version
  "Expands to the text of the resource bpfmap/version.

  So starting reads no file for it."
  []
  (str/trim (slurp (io/resource "bpfmap/version"))))

(def version
  "The version of bpfmap that this command line belongs to."
  (read-version))

(def ^:private runners
  "The functions of commands that only the command line runs.

  The arguments are options and the request. The result is a view."
  {"watch" 'bpfmap.cli.live-commands/watch
   "run" 'bpfmap.cli.run-object/run
   "top" 'bpfmap.cli.live-commands/top
   "prog top" 'bpfmap.cli.live-commands/prog-top
   "tail" 'bpfmap.cli.live-commands/tail
   "export" 'bpfmap.cli.export/export
   "edit" 'bpfmap.cli.edit/edit
   "demo" 'bpfmap.cli.live-commands/demo
   "repl" 'bpfmap.cli.repl/repl
   "completion" 'bpfmap.cli.completion/completion
   "help" 'bpfmap.cli.command-line/help})

(defn- runner [{:keys [name]}]
  (requiring-resolve (runners name)))

(defn- print-value
  "Prints the result of a command.

  Shows progress, unless the output is a terminal."
  [{:keys [name view]} value options format]
  (let [print-it #(output/print-result value ((requiring-resolve view) value options) format
                                       (terminal/width))]
    (terminal/with-printing-progress name print-it)))

(defn- perform
  "Runs a request, prints its result and returns the exit code."
  [{:keys [command options format] :as request}]
  (try
    (let [checked (arguments/checked command options)
          work (fn [options]
                 (terminal/with-progress (:name command)
                   #(arguments/perform command options)))]
      (if (:run command)
        (output/print-result nil
                             (arguments/call-as command #((runner command) checked request))
                             format (terminal/width))
        (print-value command (terminal/confirmed work checked) checked format)))
    (catch ExceptionInfo e
      (throw (command-line/in-words e)))))

(defn run
  "Runs a command line, given as words, and returns the exit code.

  Prints to *out* and *err*. Throws IOException if the output cannot be written.

      (run [\"list\" \"--edn\"]) ;=> 0"
  [words]
  (try
    (let [request (command-line/request words)]
      (if (:version request)
        (do (println "bpfmap" version) 0)
        ;; Each note once: a command that follows a map reads it again and again.
        (binding [progress/*note* (memoize #(output/complain "bpfmap: " %))]
          (perform request))))
    (catch IOException e
      (throw e))
    (catch Throwable e
      (flush)
      (output/print-failure e (some #{"--verbose"} words)))))

(defn- run-safely
  "Runs a command line with an *out* that throws on write errors.

  System/out ignores them."
  [words]
  (with-open [out (BufferedWriter. (OutputStreamWriter. (FileOutputStream. FileDescriptor/out)
                                                        StandardCharsets/UTF_8))]
    (binding [*out* out]
      (let [exit (run words)]
        (flush)
        exit))))

(defn -main
  "Runs a command line and exits with its exit code.

  Exit codes: 0 success, 1 failure, 2 wrong usage. Arguments are bytes and output is UTF-8, in
  every locale."
  [& words]
  ;; System/err has the encoding of the locale.
  (alter-var-root #'*err*
    (constantly
     (PrintWriter. (OutputStreamWriter. (FileOutputStream. FileDescriptor/err)
                                        StandardCharsets/UTF_8)
                   true)))
  (System/exit
   (try
     (run-safely (procfs/arguments words))
     (catch IOException e
       (if (= "Broken pipe" (ex-message e))
         141 ; the exit code of a process that SIGPIPE ends
         (do (output/complain "bpfmap: Cannot write the output: " (ex-message e))
             1))))))
