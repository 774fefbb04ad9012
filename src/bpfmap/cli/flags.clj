(ns ^:no-doc bpfmap.cli.flags
  "The options and arguments of a command as words of the command line, for parsing, help and
  completion."
  (:require [bpfmap.exec.options :refer [doc-of options]]))

(set! *warn-on-reflection* true)

(def general-options
  "The options of every command, for tools.cli."
  [[nil "--edn" "Print the data as EDN"]
   [nil "--json" "Print the data as JSON"]
   [nil "--verbose" "Print the data of an error too"]
   ["-h" "--help" "Print the help of a command"]
   [nil "--version" "Print the version"]])

(def ^:private csv-option
  [nil "--csv" "Print the rows as CSV, with a header line"])

(defn option-text
  "Returns an option as the usage line shows it.

      (option-text :limit) ;=> \"--limit N\""
  [k]
  (let [{:keys [takes]} (options k)]
    (str "--" (name k) (when takes (str " " takes)))))

(defn- default-text [x]
  (if (and (double? x) (== x (long x))) (str (long x)) (str x)))

(defn- tool-option
  "Returns an option of the table for tools.cli.

  `bpfmap.exec.arguments/checked` converts its text to data."
  [{:keys [defaults] :as command} k]
  (let [{many? :many} (options k)
        required? (some #{k} (:needs command))]
    (cond-> [nil (option-text k)
             (str (doc-of command k)
                  (cond
                    required? " (required)"
                    (contains? defaults k) (str " (default: " (default-text (defaults k)) ")")))
             :id k]
      many? (conj :multi true :update-fn (fnil conj [])))))

(defn tool-options
  "Returns the options of a command for tools.cli, without the general options."
  [{rows? :rows :as command}]
  (cond-> (mapv #(tool-option command %) (:options command))
    rows? (conj csv-option)))

(defn argument-word
  "Returns an argument as the usage line shows it.

      (argument-word {:optional #{:command}} :command) ;=> \"[COMMAND]\""
  [{:keys [optional several]} k]
  (let [word (cond-> (:takes (options k))
               (= k several) (str " ..."))]
    (if (contains? optional k) (str "[" word "]") word)))
