(ns ^:no-doc bpfmap.cli.command-line
  "Parses the arguments of the command line into options, and prints help."
  (:require [bpfmap.cli.flags :as flags]
            [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.bpftool :as bpftool]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.options :refer [kind-of options]]
            [bpfmap.exec.output :as output]
            [bpfmap.impl.nearest :as nearest]
            [clojure.string :as str]
            [clojure.tools.cli :as cli]))

(set! *warn-on-reflection* true)

;; --- usage errors

(defn wrong-usage
  "Throws a usage error that ends with the help command for `command`."
  [command & message]
  (let [message (str/join message)]
    (throw (error/error :usage (str message (if (str/ends-with? message "?") " See `" "; see `")
                                    (str/join " " (remove nil? ["bpfmap help" (:name command)]))
                                    "`")
                        {}))))

(defn- unknown
  "Throws the usage error for an unknown name, with the nearest ones."
  [command what word names]
  (wrong-usage command "Unknown " what " " (pr-str word)
               (some->> (nearest/did-you-mean word names) (str ": "))))

(defn in-words
  "Returns a `:usage` error of `bpfmap.exec` in the words of the command line.

  Returns any other error as it is."
  [e]
  (let [{:keys [command missing] :as about} (:bpfmap/usage (ex-data e))
        {:keys [args] :as row} (some-> command commands/command-named)
        positional? (set args)
        word (fn [k] (if (positional? k) (:takes (options k)) (str "--" (name k))))]
    (if-not about
      e
      (try
        (cond
          (and missing (every? positional? missing))
          (wrong-usage row command " requires "
                       (str/join " " (map #(if (some #{%} missing)
                                             (:takes (options %))
                                             (flags/argument-word (dissoc row :several) %))
                                          args)))

          missing (wrong-usage row command " requires "
                               (str/join " or " (map #(if (positional? %)
                                                        (:takes (options %))
                                                        (flags/option-text %))
                                                     missing)))
          :else (wrong-usage row (arguments/statement word about)
                             (some->> (:bpfmap/hint (ex-data e)) (str ": "))))
        (catch Exception worded worded)))))

(defn- members
  "Returns the names of the commands that begin with a word."
  [family]
  (filter #(str/starts-with? % (str family " ")) (map :name commands/commands)))

(defn- check-member
  "Throws a usage error if a name is only the first word of commands."
  [name]
  (when (commands/families name)
    (wrong-usage {:name name} name " requires one more word: "
                 (error/list-of (map #(subs % (inc (count name))) (members name))))))

(defn find-command
  "Returns the row of a command, or of the command for a word of bpftool.

  Throws a usage error with the nearest names, or with what stands for a command of bpftool, for an
  unknown command. `more` are the words that follow."
  ([name] (find-command name nil))
  ([name more]
   (check-member name)
   (or (commands/command-named (get bpftool/aliases name name))
       (some->> (bpftool/pointer (concat (str/split name #" ") more)) (wrong-usage nil))
       (let [family (first (str/split name #" "))]
         (unknown nil "command" name (if (commands/families family)
                                       (members family)
                                       (concat (remove #(str/includes? % " ")
                                                       (map :name commands/commands))
                                               commands/families)))))))

;; --- the command line

(def ^:private ^:const shield
  "A prefix for negative numbers, so that tools.cli does not take them for options."
  "\u0000")

(defn- unshielded [x]
  (cond
    (string? x) (str/replace x shield "")
    (vector? x) (mapv unshielded x)
    :else x))

(defn- wrong-option
  "Throws the usage error for a message of tools.cli."
  [command message options]
  (let [[_ unknown-one] (re-matches #"(?s)Unknown option: \"(.*)\"" message)
        [_ without-value] (re-matches #"Missing required argument for \"(.*)\"" message)]
    (cond
      unknown-one (unknown command "option" unknown-one
                           (map #(first (str/split (second %) #" ")) options))
      without-value (wrong-usage command without-value " requires a value")
      :else (wrong-usage command message))))

(defn- parsed [command args options & more]
  (let [shielded (map #(if (re-find #"^-[0-9]" %) (str shield %) %) args)
        {:keys [errors] :as parsed} (apply cli/parse-opts shielded options more)]
    (when errors
      (wrong-option command (unshielded (first errors)) options))
    (-> parsed
        (update :arguments unshielded)
        (update :options update-vals unshielded))))

(defn- joined
  "Returns positional arguments, with the two words of a command as one text."
  [args given]
  (let [i (dec (count args))
        [word more] (drop i given)]
    (if (and more (= :command (peek args)) (commands/families word))
      (concat (take i given) [(str word " " more)] (drop (+ i 2) given))
      given)))

(defn- by-place
  "Returns the positional arguments as options.

  The last one of some commands can be repeated, and is a vector then."
  [{:keys [name args several] :as command} given]
  (when (and (< (count args) (count given)) (not several))
    (wrong-usage command "Unexpected argument " (pr-str (nth given (count args))) ": " name
                 " takes "
                 (if (seq args)
                   (str "only " (str/join " " (map #(flags/argument-word command %) args)))
                   "no arguments")
                 (when (and (some #{:ref} args) (#{"id" "name" "pinned"} (first given)))
                   (str ", and REF has no " (pr-str (first given)) " before it"))))
  (let [n (dec (count args))]
    (cond-> (zipmap args given)
      (< (count args) (count given)) (assoc several (vec (drop n given))))))

(def ^:private formats [:edn :json :csv])

(defn- command-words
  "Returns the name of the command, the words behind it, and options before it.

  The name has two words if the first one is the name of a family."
  [words]
  (let [split #(parsed nil % flags/general-options :in-order true)
        {[name & words] :arguments general :options} (split words)]
    (if-not (commands/families name)
      [name words general]
      (let [{[member & words] :arguments more :options} (split words)]
        [(str/join " " (remove nil? [name member])) words (merge general more)]))))

(defn request
  "Parses a command line into `{:command :options :format :verbose :version}`.

  `:options` are the unchecked options of the command. `:format` is nil for output that people
  read.

      (request [\"show\" \"12\" \"--edn\"]) ;=> {:command {:name \"show\" …} :options {:ref \"12\"} :format :edn}"
  [words]
  (let
   [[name words general] (command-words words)
    ;; `prog --help` is a question about all commands that begin with this word.
    asked? (and (:help general) (commands/families name))
    command (when-not asked? (some-> name (find-command words)))
    {:keys [arguments options]} (parsed command words
                                        (into (if command (flags/tool-options command) [])
                                              flags/general-options))
    command (or command (when-not asked? (commands/command-named "overview")))
    all (merge options general)
    format (filter all formats)
    shown (select-keys all [:verbose])]
    (cond
      (:version all) {:version true}
      (:help all) (merge shown
                         {:command (commands/command-named "help")
                          :options (when name {:command name})})
      (next format) (wrong-usage command
                                 (str/join " and " (map #(str "--" (clojure.core/name %)) format))
                                 " cannot be combined")
      :else (merge shown
                   {:command command
                    :format (first format)
                    :options (merge (select-keys options (:options command))
                                    (by-place command (joined (:args command) arguments)))}))))

;; --- help

(def ref-texts
  "The line about REF, by the kind of the argument."
  {:ref (str "REF is a map's id, its pin path (which contains a slash) or its name. In a\n"
             "name, * and ? stand for any characters.")
   :program-ref "REF is a program's id, its pin path (which contains a slash) or its name."
   :link-ref "REF is a link's id, or its pin path (which contains a slash)."})

(def ^:private exit-text
  "Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted by Ctrl-C.")

(defn- with-arguments
  "Returns a command and its arguments, as the list of commands shows them.

  Two optional arguments share their brackets; more are only in the command's own help."
  [{:keys [name args optional several] :as command}]
  (let [required (map #(flags/argument-word command %) (remove (set optional) args))
        more (map #(cond-> (:takes (options %)) (= several %) (str " ..."))
                  (filter (set optional) args))]
    (str/join " " (concat [name] required
                          (when (<= 1 (count more) 2) [(str "[" (str/join " " more) "]")])))))

(defn usage
  "Returns the line about how a command is called.

      (usage (commands/command-named \"show\")) ;=> \"bpfmap show [OPTION ...] REF ...\""
  [{:keys [name args] :as command}]
  (str/join " " (concat ["bpfmap" name]
                        (when (seq (flags/tool-options command)) ["[OPTION ...]"])
                        (map #(flags/argument-word command %) args))))

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
            (option-lines flags/general-options)
            ["" (:ref ref-texts) exit-text
             "Words of bpftool work too:" (str (error/list-of (keys bpftool/aliases) "and") ".")])))

(defn- family-help [family]
  (let [rows (map commands/command-named (members family))]
    (concat [(str "Usage: bpfmap " family " COMMAND [ARGUMENT ...] [OPTION ...]") ""]
            (indented (output/fields (for [row rows] [(with-arguments row) (:doc row)])))
            ["" (str "See `bpfmap help " (:name (first rows)) "` for the help of a command")])))

(defn- named-text
  "Returns a value for a name as NAME=VALUE."
  [x]
  (let [[name value] (first x)]
    (str name "=" (if (string? value) value (pr-str value)))))

(defn- shell-word
  "Returns a value as a word for the shell.

  Conditions are always quoted, because `>` and `~` have a meaning in the shell."
  [k x]
  (let [named? (#{:values :refs :targets :event-types} (:kind (options k)))
        text (cond
               named? (named-text x)
               (or (string? x) (keyword? x)) (output/cell x)
               :else (pr-str x))
        text (if (coll? x) (str/replace text #"(?<=[\[{ ]):" "") text)]
    (if (and (not= :where k) (re-matches #"[A-Za-z0-9_./:,=+@%-]+" text))
      text
      (str "'" (str/replace text "'" "'\\''") "'"))))

(defn example-lines
  "Returns an options map as a command line, broken into lines if it is long.

      (example-lines (commands/command-named \"show\") {:ref \"flows\"}) ;=> [\"bpfmap show flows\"]"
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
  (let [own (flags/tool-options command)]
    (concat [(str "Usage: " (usage command)) "" (str doc ".")]
            (when text (cons "" text))
            (when (seq own) (list* "" "Options" (option-lines own)))
            ["" "General options"]
            (option-lines flags/general-options)
            (when examples
              (list* "" "Examples" (indented (mapcat #(example-lines command %) examples))))
            (when (some #{:ref} args) ["" (ref-texts (kind-of command :ref))]))))

(defn help
  "Returns the text of `bpfmap help`, or the help of a command.

      (help {:command \"dump\"} {})"
  [{:keys [command]} _request]
  {:as-text true
   :lines (cond
            (nil? command) (general-help)
            (commands/families command) (family-help command)
            :else (command-help (find-command command)))})
