(ns bpfmap.cli.help
  "The texts of `bpfmap help`, made from the table of commands."
  (:require [bpfmap.cli.arguments :as arguments]
            [bpfmap.cli.output :as output]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.options :refer [options]]
            [clojure.string :as str]
            [clojure.tools.cli :as cli]))

(set! *warn-on-reflection* true)

(def ^:private ref-text
  "REF is a map's id, its pin path (with a slash in it) or its name.")

(def ^:private exit-text
  "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 ended with Ctrl-C.")

(defn- with-arguments
  "Returns a command and its arguments, of the optional ones the first: its own help has the others."
  [{:keys [name args optional] :as command}]
  (let [[before [optional-one]] (split-with (complement (set optional)) args)]
    (str/join " " (cons name (map #(arguments/argument-word command %)
                                  (concat before (when optional-one [optional-one])))))))

(defn- usage [{:keys [name args] :as command}]
  (str/join " " (concat ["bpfmap" name]
                        (when (seq (arguments/tool-options command)) ["[OPTION ...]"])
                        (map #(arguments/argument-word command %) args))))

(defn- indented [lines]
  (map #(str "  " %) lines))

(defn- option-lines [options]
  (str/split-lines (:summary (cli/parse-opts [] options))))

(defn- general-help []
  (let [lines (zipmap commands/commands
                      (output/fields (for [command commands/commands] [(with-arguments command) (:doc command)])))]
    (concat ["bpfmap: eBPF maps as data" "" "Usage: bpfmap COMMAND [ARGUMENT ...] [OPTION ...]"]
            (mapcat (fn [group]
                      (concat ["" (:group (first group))] (indented (map lines group))))
                    (partition-by :group commands/commands))
            ["" "Options of every command"]
            (option-lines arguments/general-options)
            ["" ref-text exit-text])))

(defn- shell-word
  "A value as a word of the shell that means it. A condition is always in quotes, for `>` and `~` would do something else without."
  [k x]
  (let [text (if (or (string? x) (keyword? x)) (output/cell x) (pr-str x))
        text (if (coll? x) (str/replace text #"(?<=[\[ ]):" "") text)]
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
          [(str/join " " (concat ["bpfmap" name] (keep (fn [k] (when-some [x (k example)] (shell-word k x))) args)))]
          (for [[k x] example :when (not (some #{k} args))
                one (if (:many? (options k)) x [x])]
            (str "--" (clojure.core/name k) (when (:takes (options k)) (str " " (shell-word k one)))))))

(defn- command-help [{:keys [args doc text examples] :as command}]
  (let [own (arguments/tool-options command)]
    (concat [(str "Usage: " (usage command)) "" (str doc ".")]
            text
            (when (seq own) (list* "" "Options" (option-lines own)))
            ["" "Options of every command"]
            (option-lines arguments/general-options)
            (when examples (list* "" "Examples" (indented (mapcat #(example-lines command %) examples))))
            (when (some #{:ref} args) ["" ref-text]))))

(defn help
  "The text of `bpfmap help`, or that of a command.

      (help {:command \"dump\"} {})"
  [{:keys [command]} _request]
  {:text? true
   :lines (if command (command-help (arguments/find-command command)) (general-help))})
