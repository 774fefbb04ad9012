(ns bpfmap.cli.completion
  "Scripts that have a shell complete commands, options and maps, made from the table of commands.

  What does not change is in the script. Names and ids of maps are asked of `bpfmap list` at the first TAB after it could
  be one, and kept for five seconds, since starting a JVM takes a moment; pins and files are the shell's own."
  (:require [bpfmap.cli.arguments :as arguments]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.host :as host]
            [bpfmap.exec.options :refer [options]]
            [bpfmap.exec.types :as types]
            [bpfmap.rules :as rules]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn- flag-words
  "The long options of a command."
  [command]
  (for [[_ option] (concat (arguments/tool-options command) arguments/general-options)]
    (first (str/split option #" "))))

(def ^:private fields-of
  "The fields of the rows of commands, if they are the same for every map."
  {"list" host/list-fields "features" types/features-fields})

(defn- field-names [command]
  (some-> (fields-of (:name command)) :fields (->> (map first))))

(defn- what-of
  "What completes an option or argument of a command: `ref`, `file`, words after a `=`, or nothing that anybody knows."
  [command k]
  (let [words #(if (seq %) (str "=" (str/join " " %)) "")
        names (field-names command)]
    (case (:kind (options k))
      :column (words (concat names (map #(str "-" %) names)))
      :columns (words names)
      :where (words (map #(str % "=") names))
      (:ref :source) "ref"
      :path "file"
      :cpus (words ["each" "sum" "all"])
      :slots (words ["log2" "bcc" "bpftrace"])
      :shell (words ["bash" "zsh" "fish"])
      (case k
        :command (words (map :name commands/commands))
        :type (words (sort (map name (keys rules/types))))
        ""))))

(defn- places [{:keys [args] :as command}]
  (map #(what-of command %) args))

(defn- values
  "Options of a command that take a map or a file."
  [command]
  (for [k (:options command) :let [what (what-of command k)] :when (seq what)]
    [(str "--" (name k)) what]))

(defn- taking
  "Options that take a value."
  []
  (for [[k {:keys [takes]}] options :when takes] (str "--" (name k))))

(defn- one-quoted [text]
  (str "'" (str/replace text "'" "'\\''") "'"))

(def ^:private plain-names
  "The command that lets through names a shell takes as they are. Others may hold `$(…)`, which completion would run."
  "env LC_ALL=C grep -E '^[A-Za-z0-9_.-]+$'")

(def ^:private names-function
  "A function of sh that puts the ids and names of maps into a variable, and keeps them for five seconds. Not in a subshell."
  (str "_bpfmap_look() {\n"
       "  local now; now=$(date +%s)\n"
       "  if [ -z \"${_bpfmap_at:-}\" ] || [ $((now - _bpfmap_at)) -gt 5 ]; then\n"
       "    _bpfmap_known=$(bpfmap list --csv --columns id,name 2>/dev/null | tail -n +2 | tr -d '\\r' | tr ',' '\\n' | " plain-names " | sort -u)\n"
       "    _bpfmap_at=$now\n"
       "  fi\n"
       "}\n"))

(defn- bash-cases [f]
  (str/join (for [{:keys [name] :as command} commands/commands]
              (str "    " name ") " (f command) " ;;\n"))))

(defn- bash []
  (str "# bash completion of bpfmap; source it, or put it into /etc/bash_completion.d\n"
       names-function
       "_bpfmap() {\n"
       "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command= place=0 i what= flags=\n"
       "  COMPREPLY=()\n"
       "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
       "    case ${COMP_WORDS[i]} in\n"
       "      " (str/join "|" (taking)) ") ((i++)) ;;\n"
       "      -*) ;;\n"
       "      *) if [ -z \"$command\" ]; then command=${COMP_WORDS[i]}; else ((place++)); fi ;;\n"
       "    esac\n"
       "  done\n"
       "  case $command in\n"
       "    '') what=(" (one-quoted (what-of nil :command)) ") ;;\n"
       (bash-cases (fn [{:keys [] :as command}]
                     (str "flags=" (one-quoted (str/join " " (flag-words command)))
                          " what=("  (str/join " " (map one-quoted (places command))) ")")))
       "  esac\n"
       "  what=${what[$place]:-}\n"
       "  case $command$before in\n"
       (str/join (for [{:keys [name] :as command} commands/commands
                       [option what] (values command)]
                   (str "    " name option ") what=" (one-quoted what) " ;;\n")))
       "    *) case $before in " (str/join "|" (taking)) ") return ;; esac ;;\n"
       "  esac\n"
       "  case $word in -*) COMPREPLY=($(compgen -W \"$flags\" -- \"$word\")); return ;; esac\n"
       "  case $what in\n"
       "    =*) COMPREPLY=($(compgen -W \"${what#=}\" -- \"$word\")) ;;\n"
       "    ref) case $word in\n"
       "           */*|.*) compopt -o filenames; COMPREPLY=($(compgen -f -- \"$word\")) ;;\n"
       "           *) _bpfmap_look; COMPREPLY=($(compgen -W \"$_bpfmap_known\" -- \"$word\")) ;;\n"
       "         esac ;;\n"
       "    file) compopt -o filenames; COMPREPLY=($(compgen -f -- \"$word\")) ;;\n"
       "  esac\n"
       "}\n"
       "complete -F _bpfmap bpfmap\n"))

(defn- zsh-word [text]
  (str/replace text #"[\\\[\]:']" #(str "\\" %)))

(defn- zsh-action [what]
  (cond
    (= "ref" what) "_bpfmap_refs"
    (= "file" what) "_files"
    (str/starts-with? what "=") (str "(" (subs what 1) ")")
    :else ""))

(defn- zsh-argument-lines [{:keys [args optional] :as command}]
  (concat
   (for [[_ option doc & {:keys [id]}] (concat (arguments/tool-options command) arguments/general-options)
         :let [[flag takes] (str/split option #" ")]]
     (str (when (:many? (options id)) "*") flag "[" (zsh-word doc) "]"
          (when takes (str ":" takes ":" (zsh-action (what-of command id))))))
   (for [[i k] (map-indexed vector args)]
     (str (inc (long i)) (if (contains? optional k) "::" ":") (:takes (options k)) ":" (zsh-action (what-of command k))))))

(defn- zsh []
  (str "#compdef bpfmap\n"
       "# zsh completion of bpfmap; put it as _bpfmap into a directory of $fpath\n"
       names-function
       "_bpfmap_refs() {\n"
       "  if [[ $PREFIX == */* || $PREFIX == .* ]]; then _files; else _bpfmap_look; compadd -- ${(f)_bpfmap_known}; fi\n"
       "}\n"
       "_bpfmap() {\n"
       "  local -a commands\n"
       "  commands=(" (str/join " " (for [{:keys [name doc]} commands/commands] (one-quoted (str name ":" (zsh-word doc))))) ")\n"
       "  if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
       "  local command=$words[2]\n"
       "  shift words; (( CURRENT-- ))\n"
       "  case $command in\n"
       (str/join (for [{:keys [name] :as command} commands/commands]
                   (str "    " name ") _arguments " (str/join " " (map one-quoted (zsh-argument-lines command))) " ;;\n")))
       "  esac\n"
       "}\n"
       "if [ \"$funcstack[1]\" = _bpfmap ]; then _bpfmap \"$@\"; else compdef _bpfmap bpfmap; fi\n"))

(defn- fish-words [what]
  (cond
    (= "ref" what) " -a '(__bpfmap_maps)'"
    (= "file" what) " -a '(__fish_complete_path)'"
    (str/starts-with? what "=") (str " -a " (one-quoted (subs what 1)))
    :else ""))

(defn- fish []
  (str "# fish completion of bpfmap; put it as bpfmap.fish into ~/.config/fish/completions\n"
       "function __bpfmap_maps\n"
       "  set -l now (date +%s)\n"
       "  if not set -q __bpfmap_at; or test (math $now - $__bpfmap_at) -gt 5\n"
       "    set -g __bpfmap_known (bpfmap list --csv --columns id,name 2>/dev/null | tail -n +2 | tr -d '\\r' | tr ',' '\\n' | " plain-names " | sort -u)\n"
       "    set -g __bpfmap_at $now\n"
       "  end\n"
       "  printf '%s\\n' $__bpfmap_known\n"
       "end\n"
       "complete -c bpfmap -f\n"
       (str/join
        (for [{:keys [name doc] :as command} commands/commands
              :let [there (str "-n " (one-quoted (str "__fish_seen_subcommand_from " name)))
                    args (set (places command))]]
          (str "complete -c bpfmap -n __fish_use_subcommand -a " name " -d " (one-quoted doc) "\n"
               (when (args "ref") (str "complete -c bpfmap " there " -a '(__bpfmap_maps)' -F\n"))
               (when (and (args "file") (not (args "ref"))) (str "complete -c bpfmap " there " -F\n"))
               (str/join (for [what args :when (str/starts-with? what "=")]
                           (str "complete -c bpfmap " there " -a " (one-quoted (subs what 1)) "\n")))
               (str/join (for [[_ option doc & {:keys [id]}] (concat (arguments/tool-options command) arguments/general-options)
                               :let [[flag takes] (str/split option #" ")]]
                           (str "complete -c bpfmap " there " -l " (subs flag 2) (when takes " -x") " -d " (one-quoted doc)
                                (fish-words (what-of command id)) "\n"))))))))

(defn completion
  "The completion script of a shell.

      (completion {:shell :bash} {})"
  [{:keys [shell]} _request]
  {:text? true
   :lines (str/split-lines (case shell :bash (bash) :zsh (zsh) :fish (fish)))})
