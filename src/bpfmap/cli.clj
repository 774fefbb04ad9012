(ns bpfmap.cli
  "The command line: `bin/bpfmap`, or `clojure -M:cli`.

  One table has the commands; parsing, help and usage errors are read from it.
  What a command needs is loaded when it is called."
  (:require [bpfmap.cli.output :as output]
            [clojure.edn :as edn]
            [clojure.string :as str]
            [clojure.tools.cli :as cli]
            [clojure.walk :as walk])
  (:import (java.io BufferedWriter FileDescriptor FileOutputStream IOException OutputStreamWriter PrintWriter Writer)
           (java.nio.charset StandardCharsets)))

(set! *warn-on-reflection* true)

(def version
  "The version of bpfmap that this command line belongs to."
  "0.1.0")

;; --- the commands, as data

(defn- read-type
  "A type as the user writes it: EDN, where a symbol does for a keyword. Text that is not EDN stays text."
  [text]
  (try
    (let [[type & more] (edn/read-string (str "[" text "\n]"))]
      (if more
        text
        (walk/postwalk #(if (symbol? %) (keyword %) %) type)))
    (catch RuntimeException _ text)))

(defn- type-problem
  "What is wrong with a type; nil for a good one. The path of what is wrong as a whole is empty, and left out."
  [type]
  (some-> ((requiring-resolve 'bpfmap.type/problem) type)
          (str/replace #"^\[\]: " "")))

(defn- type-option [side]
  [nil (str "--" side " TYPE") (str "Read the " side "s as this type")
   :parse-fn read-type
   :validate [(complement type-problem) type-problem]])

(def ^:private general-options
  [[nil "--edn" "Print the data as EDN"]
   [nil "--json" "Print the data as JSON"]
   [nil "--verbose" "When something fails, print the error's data too"]
   ["-h" "--help" "Print what a command does and takes"]
   [nil "--version" "Print the version"]])

(def commands
  "Every command: its name, the names of its arguments (`[NAME]` may be missing), its options as tools.cli has them, a
  line and a text about it, and the function that it calls with the arguments and the options."
  [{:name "list"
    :doc "All maps on this host"
    :text ["MEMORY is what the kernel charges for the map; FROZEN shows when a map is."
           "Needs CAP_SYS_ADMIN."]
    :fn 'bpfmap.cli.commands/list-maps}
   {:name "show" :args ["REF"]
    :doc "Everything the kernel says of one map"
    :fn 'bpfmap.cli.commands/show}
   {:name "dump" :args ["REF"] :options [(type-option "key") (type-option "value")]
    :doc "The entries of a map"
    :text ["They are read by the types that the map's BTF tells; where it has none, bytes"
           "are printed in hexadecimal. A TYPE given here goes before: u32, s64be, ipv4,"
           "'[string 16]', '[struct [pid u32] [cpu u32]]' and so on, as in a map spec."]
    :fn 'bpfmap.cli.commands/dump}
   {:name "demo"
    :options [[nil "--seconds N" "How long to count, 5 unless given"
               :parse-fn #(or (parse-double %) %)
               :validate [#(and (number? %) (< 0 % 1e9)) "N is a number above 0"]]]
    :doc "Count the host's system calls, live, in a map of this library"
    :text ["Loads a BPF program that counts them by number. PER-SECOND is the rate of the"
           "last second while it runs, and of the whole time when it ends. Ctrl-C ends it"
           "sooner. Nothing stays in the kernel. Needs CAP_BPF and CAP_PERFMON."]
    :fn 'bpfmap.cli.demo/demo}
   {:name "help" :args ["[COMMAND]"]
    :doc "This text, or that of a command"
    :fn 'bpfmap.cli/help}])

(defn- command-named [name]
  (some #(when (= name (:name %)) %) commands))

;; --- help

(def ^:private ref-text
  "REF is a map's id, its pin path (with a slash in it) or its name.")

(def ^:private exit-text
  "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 ended with Ctrl-C.")

(defn- usage [{:keys [name args options]}]
  (str/join " " (concat ["bpfmap" name] (when options ["[OPTION ...]"]) args)))

(defn- indented [lines]
  (map #(str "  " %) lines))

(defn- option-lines [options]
  (str/split-lines (:summary (cli/parse-opts [] options))))

(defn- general-help []
  (concat ["bpfmap: eBPF maps as data" "" "Usage: bpfmap COMMAND [ARGUMENT ...] [OPTION ...]" "" "Commands"]
          (indented (output/fields (for [{:keys [name args doc]} commands]
                                     [(str/join " " (cons name args)) doc])))
          ["" "Options of every command"]
          (option-lines general-options)
          ["" ref-text exit-text]))

(defn- command-help [{:keys [args options doc text] :as command}]
  (concat [(str "Usage: " (usage command)) "" (str doc ".")]
          text
          (when options (cons "" (cons "Options" (option-lines options))))
          ["" "Options of every command"]
          (option-lines general-options)
          (when (some #{"REF"} args) ["" ref-text])))

;; --- arguments

(defn- wrong-usage
  "Throws what `run` prints as a usage error. `command` is where the user finds help."
  [command message]
  (throw (ex-info (str message "; see `" (str/join " " (remove nil? ["bpfmap help" (:name command)])) "`")
                  {:bpfmap/error :usage})))

(defn- find-command [name]
  (or (command-named name)
      (wrong-usage nil (str "There is no command " (pr-str name) "; the commands are "
                            (str/join ", " (map :name commands))))))

(defn help
  "The text of `bpfmap help`, or that of a command.

      (help [\"dump\"] {})"
  [[name] _options]
  {:lines (delay (if name (command-help (find-command name)) (general-help)))})

(defn- parsed [command args options & more]
  (let [{:keys [errors] :as parsed} (apply cli/parse-opts args options more)]
    (when errors
      ;; What is wrong says itself; that it failed to validate does not help.
      (wrong-usage command (str/replace (first errors) #"^Failed to validate \"(.*?)\":\s+" "$1: ")))
    parsed))

(defn- check-arguments [{:keys [name args] :as command} given]
  (let [needed (count (remove #(str/starts-with? % "[") args))]
    (cond
      (< (count given) needed)
      (wrong-usage command (str name " needs " (str/join " " args)))
      (< (count args) (count given))
      (wrong-usage command (str name " takes " (if (seq args) (str "only " (str/join " " args)) "no argument")
                                ", not also " (pr-str (nth given (count args))))))))

(defn- request
  "What the arguments ask for: `{:command :args :options}`, where the command may be missing."
  [args]
  (let [{[name & args] :arguments general :options} (parsed nil args general-options :in-order true)
        command (some-> name find-command)
        {:keys [arguments options]} (parsed command args (concat (:options command) general-options))
        options (merge options general)]
    (cond
      (:version options) {:options options}
      (:help options) {:command (command-named "help") :args (when command [name]) :options (dissoc options :edn :json)}
      (nil? command) (wrong-usage nil "No command was given")
      (and (:edn options) (:json options)) (wrong-usage command "--edn and --json exclude each other")
      :else (do (check-arguments command arguments)
                {:command command :args arguments :options options}))))

;; --- running

(defn- complain [& message]
  (binding [*out* *err*]
    (println (str/join message))
    (flush)))

(defn- print-result [{:keys [value lines closing notes exit]} {:keys [edn json]}]
  (binding [*flush-on-newline* false] ; a system call for each line would take its time
    (cond
      (and edn value) (output/print-edn value)
      (and json value) (output/print-json value)
      :else (run! println @lines)))
  (flush)
  (run! #(complain "bpfmap: " %) notes)
  (when-not (or edn json)
    (run! complain closing))
  (or exit 0))

(defn- root-cause ^Throwable [^Throwable e]
  (if-let [cause (ex-cause e)] (recur cause) e))

(def ^:private candidate-columns
  [{:title "" :of :id} {:title "" :of :type} {:title "" :of :name}])

(defn- print-failure [^Throwable e verbose]
  (let [{:bpfmap/keys [error candidates] :as data} (ex-data e)]
    (complain "bpfmap: " (if error
                           (ex-message e)
                           (str "This is a bug in bpfmap: " (root-cause e) "; --verbose says where")))
    (run! complain (indented (rest (output/table candidate-columns candidates))))
    (when verbose
      (if error
        (complain (str/trim-newline (with-out-str (output/print-edn data))))
        (.printStackTrace e (PrintWriter. ^Writer *err* true))))
    (if (= :usage error) 2 1)))

(defn run
  "Does what the arguments ask for, with *out* and *err*; returns the exit code.

  An IOException is thrown on: it is the output that cannot be written.

      (run [\"list\" \"--edn\"]) ;=> 0"
  [args]
  (try
    (let [{:keys [command args options]} (request args)]
      (if (:version options)
        (do (println "bpfmap" version) 0)
        (print-result ((requiring-resolve (:fn command)) args options) options)))
    (catch IOException e
      (throw e))
    (catch Throwable e
      (flush)
      (print-failure e (some #{"--verbose"} args)))))

(defn- run-safely
  "Runs with an *out* that reports what cannot be written, which System/out would pass over."
  [args]
  (with-open [out (BufferedWriter. (OutputStreamWriter. (FileOutputStream. FileDescriptor/out)
                                                        StandardCharsets/UTF_8))]
    (binding [*out* out]
      (let [exit (run args)]
        (flush)
        exit))))

(defn -main
  "Runs, and exits with 0 when done, 1 when it failed, 2 for wrong usage."
  [& args]
  (System/exit
   (try
     (run-safely args)
     (catch IOException e
       (if (= "Broken pipe" (ex-message e))
         141 ; as any program that SIGPIPE ends: the reader has seen enough
         (do (complain "bpfmap: The output cannot be written: " (ex-message e))
             1))))))
