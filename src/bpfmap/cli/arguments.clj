(ns bpfmap.cli.arguments
  "From the words of a command line to a command and its options, by the table of commands."
  (:require [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.options :refer [doc-of options]]
            [clojure.string :as str]
            [clojure.tools.cli :as cli]))

(set! *warn-on-reflection* true)

;; --- options as tools.cli has them

(def general-options
  "The options of every command, as tools.cli has them."
  [[nil "--edn" "Print the data as EDN"]
   [nil "--json" "Print the data as JSON"]
   [nil "--verbose" "When something fails, print the error's data too"]
   ["-h" "--help" "Print what a command does and takes"]
   [nil "--version" "Print the version"]])

(def ^:private csv-option
  [nil "--csv" "Print the rows as CSV, with a line of names"])

(defn- option-text [k]
  (let [{:keys [takes]} (options k)]
    (str "--" (name k) (when takes (str " " takes)))))

(defn- default-text [x]
  (if (and (double? x) (== x (long x))) (str (long x)) (str x)))

(defn- tool-option
  "An option of the table as tools.cli has it. Its text becomes data later, as that of `bpfmap.exec` does."
  [{:keys [defaults] :as command} k]
  (let [{:keys [many?]} (options k)
        needed? (some #{k} (:needs command))]
    (cond-> [nil (option-text k) (str (doc-of command k) (cond
                                            needed? "; needed"
                                            (contains? defaults k) (str "; " (default-text (defaults k)) " unless given")))
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
          (some (set missing) args) (wrong-usage row command " needs " (str/join " " (map word args)))
          missing (wrong-usage row command " needs " (str/join " or " (map option-text missing)))
          (some #{option} args) (wrong-usage row (:takes (options option)) " " (pr-str given) ": " problem)
          :else (wrong-usage row "--" (name option) " " (if (and (string? given) (str/blank? given)) (pr-str given) given) ": " problem))
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
                 (if (seq args) (str "only " (str/join " " (map #(argument-word command %) args))) "no argument")
                 ", not also " (pr-str (nth given (count args)))))
  (zipmap args given))

(def ^:private formats [:edn :json :csv])

(defn request
  "What the words ask for: `{:command :options :format :verbose :version}`; `:options` are those of the command, not yet
  checked, and `:format` is nil where people read.

      (request [\"show\" \"12\" \"--edn\"]) ;=> {:command {:name \"show\" …} :options {:ref \"12\"} :format :edn}"
  [words]
  (let [{[name & words] :arguments general :options} (parsed nil words general-options :in-order true)
        command (some-> name find-command)
        {:keys [arguments options]} (parsed command words (into (if command (tool-options command) []) general-options))
        all (merge options general)
        format (filter all formats)
        flags (select-keys all [:verbose])]
    (cond
      (:version all) {:version true}
      (:help all) (merge flags {:command (commands/command-named "help") :options (when command {:command name})})
      (nil? command) (wrong-usage nil "No command was given")
      (next format) (wrong-usage command (str/join " and " (map #(str "--" (clojure.core/name %)) format)) " exclude each other")
      :else (merge flags
                   {:command command
                    :format (first format)
                    :options (merge (select-keys options (:options command)) (by-place command arguments))}))))
