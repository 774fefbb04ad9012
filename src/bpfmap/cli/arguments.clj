(ns ^:no-doc bpfmap.cli.arguments
  "Parses the arguments of the command line into options, and prints help."
  (:require [bpfmap.error :as error]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.options :refer [doc-of options]]
            [bpfmap.exec.output :as output]
            [clojure.string :as str]
            [clojure.tools.cli :as cli]))

(set! *warn-on-reflection* true)

;; --- arguments

;; --- options as tools.cli has them

(def general-options
  "The options of every command, as tools.cli has them."
  [[nil "--edn" "Print the data as EDN"]
   [nil "--json" "Print the data as JSON"]
   [nil "--verbose" "Print the data of an error too"]
   ["-h" "--help" "Print the help of a command"]
   [nil "--version" "Print the version"]])

(def ^:private csv-option
  [nil "--csv" "Print the rows as CSV, with a header line"])

(defn- option-text [k]
  (let [{:keys [takes]} (options k)]
    (str "--" (name k) (when takes (str " " takes)))))

(defn- default-text [x]
  (if (and (double? x) (== x (long x))) (str (long x)) (str x)))

(defn- tool-option
  "An option of the table as tools.cli has it. Its text becomes data later, as that of
  `bpfmap.exec` does."
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
  "The options of a command alone, as tools.cli has them."
  [{:keys [rows?] :as command}]
  (cond-> (mapv #(tool-option command %) (:options command))
    rows? (conj csv-option)))

(defn argument-word
  "An argument as usage shows it.

      (argument-word {:optional #{:command}} :command) ;=> \"[COMMAND]\""
  [{:keys [optional]} k]
  (let [word (:takes (options k))]
    (if (contains? optional k) (str "[" word "]") word)))

;; --- what is wrong, in the words of a command line

(defn wrong-usage
  "Throws what `run` prints as a usage error. `command` is where the user finds help."
  [command & message]
  (throw (error/error :usage (str (str/join message) "; see `"
                                  (str/join " " (remove nil? ["bpfmap help" (:name command)])) "`")
                      {})))

(defn in-words
  "A `:usage` error of `bpfmap.exec` as a command line says it; any other as it is."
  [e]
  (let [{:keys [command option given problem missing] :as about} (:bpfmap/usage (ex-data e))
        {:keys [args] :as row} (some-> command commands/command-named)
        word (fn [k] (if (some #{k} args) (argument-word row k) (option-text k)))]
    (if-not about
      e
      (try
        (cond
          (some (set missing) args) (wrong-usage row command " needs "
                                                 (str/join " " (map word args)))
          missing (wrong-usage row command " needs " (str/join " or " (map option-text missing)))
          (some #{option} args) (wrong-usage row (:takes (options option)) " " (pr-str given) ": "
                                             problem)
          :else (wrong-usage row "--" (name option) " "
                             (if (and (string? given) (str/blank? given)) (pr-str given) given) ": "
                             problem))
        (catch Exception worded worded)))))

(defn- closest
  "The command that may have been meant; nil where none is like it."
  [word]
  (let [word (subs word 0 (min 20 (count word)))
        names (map :name commands/commands)]
    (or (first (filter #(and (seq word) (str/starts-with? % word)) names))
        (let [best (apply min-key #(fields/distance word %) names)]
          (when (<= (long (fields/distance word best)) 2) best)))))

(defn find-command
  "The row of a command; throws a usage error where there is none."
  [name]
  (or (commands/command-named name)
      (wrong-usage nil "There is no command " (pr-str name)
                   (when-let [like (closest name)] (str "; the nearest is " like)))))

;; --- the command line

(def ^:private ^:const shield
  "Put before a negative number, which tools.cli would take for an option."
  "\u0000")

(defn- unshielded [x]
  (cond
    (string? x) (str/replace x shield "")
    (vector? x) (mapv unshielded x)
    :else x))

(defn- parsed [command args options & more]
  (let [shielded (map #(if (re-find #"^-[0-9]" %) (str shield %) %) args)
        {:keys [errors] :as parsed} (apply cli/parse-opts shielded options more)]
    (when errors
      (wrong-usage command (unshielded (first errors))))
    (-> parsed
        (update :arguments unshielded)
        (update :options update-vals unshielded))))

(defn- by-place
  "The arguments that stand for themselves, as options."
  [{:keys [name args] :as command} given]
  (when (< (count args) (count given))
    (wrong-usage command name " takes "
                 (if (seq args)
                   (str "only " (str/join " " (map #(argument-word command %) args)))
                   "no argument")
                 ", not also " (pr-str (nth given (count args)))))
  (zipmap args given))

(def ^:private formats [:edn :json :csv])

(defn request
  "What the words ask for: `{:command :options :format :verbose :version}`; `:options` are those
  of the command, not yet checked, and `:format` is nil where people read.

      (request [\"show\" \"12\" \"--edn\"]) ;=> {:command {:name \"show\" …} :options {:ref \"12\"} :format :edn}"
  [words]
  (let
    [{[name & words] :arguments general :options} (parsed nil words general-options :in-order true)
     command (some-> name find-command)
     {:keys [arguments options]} (parsed command words
                                         (into (if command (tool-options command) [])
                                               general-options))
     all (merge options general)
     format (filter all formats)
     flags (select-keys all [:verbose])]
    (cond
      (:version all) {:version true}
      (:help all) (merge flags
                         {:command (commands/command-named "help")
                          :options (when command {:command name})})
      (nil? command) (wrong-usage nil "No command was given")
      (next format) (wrong-usage command
                                 (str/join " and " (map #(str "--" (clojure.core/name %)) format))
                                 " exclude each other")
      :else (merge flags
                   {:command command
                    :format (first format)
                    :options (merge (select-keys options (:options command))
                                    (by-place command arguments))}))))

;; --- help

(def ^:private ref-text
  "REF is a map's id, its pin path (which contains a slash) or its name.")

(def ^:private exit-text
  "Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted by Ctrl-C.")

(defn- with-arguments
  "Returns a command and its arguments, as the list of commands shows them. Several optional
  arguments are only in the command's own help."
  [{:keys [name args optional] :as command}]
  (let [shown (if (< 1 (count optional)) (remove optional args) args)]
    (str/join " " (cons name (map #(argument-word command %) shown)))))

(defn- usage [{:keys [name args] :as command}]
  (str/join " " (concat ["bpfmap" name]
                        (when (seq (tool-options command)) ["[OPTION ...]"])
                        (map #(argument-word command %) args))))

(defn- indented [lines]
  (map #(str "  " %) lines))

(defn- option-lines [options]
  (str/split-lines (:summary (cli/parse-opts [] options))))

(defn- general-help []
  (let [lines (zipmap commands/commands
                      (output/fields (for [command commands/commands]
                                       [(with-arguments command) (:doc command)])))]
    (concat ["bpfmap: inspect and change eBPF maps" ""
             "Usage: bpfmap COMMAND [ARGUMENT ...] [OPTION ...]"]
            (mapcat (fn [group]
                      (concat ["" (:group (first group))] (indented (map lines group))))
                    (partition-by :group commands/commands))
            ["" "General options"]
            (option-lines general-options)
            ["" ref-text exit-text])))

(defn- shell-word
  "A value as a word of the shell that means it. A condition is always in quotes, for `>` and `~`
  would do something else without."
  [k x]
  (let [text (if (or (string? x) (keyword? x)) (output/cell x) (pr-str x))
        text (if (coll? x) (str/replace text #"(?<=[\[{ ]):" "") text)]
    (if (and (not= :where k) (re-matches #"[A-Za-z0-9_./:,=+@%-]+" text))
      text
      (str "'" (str/replace text "'" "'\\''") "'"))))

(defn- example-lines
  "An options map as a command line, continued where it would be too long."
  [{:keys [name args]} example]
  (reduce (fn [lines part]
            (let [line (peek lines)]
              (if (< (+ (count line) (count part)) 74)
                (conj (pop lines) (str line " " part))
                (conj (pop lines) (str line " \\") (str "    " part)))))
          [(str/join " "
                     (concat ["bpfmap" name]
                             (keep (fn [k] (when-some [x (k example)] (shell-word k x))) args)))]
          (for [[k x] example :when (not (some #{k} args))
                one (if (:many (options k)) x [x])]
            (str "--" (clojure.core/name k)
                 (when (:takes (options k)) (str " " (shell-word k one)))))))

(defn- command-help [{:keys [args doc text examples] :as command}]
  (let [own (tool-options command)]
    (concat [(str "Usage: " (usage command)) "" (str doc ".")]
            (when text (cons "" text))
            (when (seq own) (list* "" "Options" (option-lines own)))
            ["" "General options"]
            (option-lines general-options)
            (when examples
              (list* "" "Examples" (indented (mapcat #(example-lines command %) examples))))
            (when (some #{:ref} args) ["" ref-text]))))

(defn help
  "The text of `bpfmap help`, or that of a command.

      (help {:command \"dump\"} {})"
  [{:keys [command]} _request]
  {:text? true
   :lines (if command (command-help (find-command command)) (general-help))})
