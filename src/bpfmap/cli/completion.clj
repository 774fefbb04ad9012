(ns ^:no-doc bpfmap.cli.completion
  "Completion scripts of shells, for commands, options and maps.

  Everything that does not change is in the script. At the first TAB that may complete a map, the
  script calls `bpfmap list` for names and ids, and caches them for five seconds, because starting a
  JVM takes a moment. It calls `bpfmap completion SHELL COMMAND REF` in the same way for the fields
  of the map on the line. The shell itself completes pins and files."
  (:require [bpfmap.cli.flags :as flags]
            [bpfmap.core :as bpf]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.features :as features]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.map-info :as map-info]
            [bpfmap.exec.options :refer [kind-of options]]
            [bpfmap.exec.program-info :as program-info]
            [bpfmap.exec.programs :as programs]
            [bpfmap.exec.query :as query]
            [bpfmap.exec.saved-file :as saved-file]
            [bpfmap.exec.tail :as tail]
            [bpfmap.exec.top :as top]
            [bpfmap.impl.display.hints :as hints]
            [bpfmap.impl.map-types :as map-types]
            [clojure.java.io :as io]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn- flag-words
  "Returns the long options of a command."
  [command]
  (for [[_ option] (concat (flags/tool-options command) flags/general-options)]
    (first (str/split option #" "))))

(def ^:private fields-of
  "The fields of the rows of commands, if they are the same for every map."
  {"list" map-info/list-fields
   "features" features/row-fields
   "prog list" program-info/program-fields
   "top" top/top-fields
   "prog top" programs/top-fields
   "link list" program-info/link-fields})

(def ^:private fields-of-map
  "Functions from a map's spec to the fields of a command's rows, by command."
  {"dump" #(fields/of-entries % nil)
   "get" #(fields/of-entries % nil)
   "hist" #(fields/of-entries % :sum)
   "watch" #(fields/of-watched % :sum)
   "diff" #(fields/of-changes % % nil true)
   "put" #(fields/of-entries (dissoc % :key) :sum)})

(def ^:private most-bytes
  "The largest file that is read, in bytes.

  Reading a larger one would take longer than a user who pressed TAB waits."
  (* 4 1024 1024))

(defn- spec-of [{:keys [file] :as source}]
  (if file
    (when (<= (.length (io/file file)) (long most-bytes))
      (saved-file/completed (:spec (saved-file/read-file file))))
    (with-open [m (input/open-typed {:ref source} :read-only)]
      (bpf/spec m))))

(defn- struct-lines
  "Returns the names of the structs that events of a map can have."
  [source]
  (try
    (with-open [m (input/open {:ref source} :read-only)]
      (distinct (map first (tail/structs (:id (bpf/info m))))))
    (catch Exception _ nil)))

(defn- path-lines
  "Returns the fields of rows as lines.

  Fields of a key or value are listed without their side too, if that is unambiguous."
  [row-field]
  (let [paths (fields/paths row-field)
        alone (for [path paths
                    :let [[side & names] (query/path-of path)]
                    :when (and (seq names) (#{"key" "value"} side))
                    :let [name (fields/path-text names)]
                    :when (= (query/path-of path)
                             (first (fields/find-path row-field (query/path-of name))))]
                name)]
    (distinct (concat alone paths))))

(defn- field-lines
  "Returns the fields that a command accepts for a map or file.

  Returns nil on any error, because TAB must not print one."
  [command source]
  (try
    (some-> (fields-of-map command) (apply [(spec-of source)]) path-lines)
    (catch Exception _ nil)))

(defn- event-field-lines
  "Returns the fields that `tail` accepts for a map and a type of its events."
  [source event-type]
  (try
    (with-open [m (input/open {:ref source} :read-only)]
      (let [info (bpf/info m)]
        (path-lines (tail/fields-of info (tail/type-of-events info {:value-type event-type})))))
    (catch Exception _ nil)))

(defn- field-names [command]
  (some-> (fields-of (:name command)) :fields (->> (map first))))

(def ^:private first-words
  "The first words of all commands."
  (distinct (map #(first (str/split (:name %) #" ")) commands/commands)))

(defn- second-words
  "Returns the commands of a family with their second words, as `[word command]`."
  [family]
  (for [{:keys [name] :as command} commands/commands
        :let [[word more] (str/split name #" ")]
        :when (and more (= family word))]
    [more command]))

(defn- family-text
  "Returns the line about a word that begins several commands."
  [family]
  (str "Commands: " (str/join ", " (map first (second-words family)))))

(def ^:private families (str/join "|" (sort commands/families)))

(defn- what-of
  "Returns the kind of completion for an option or argument of a command.

  One of `ref` for maps, `ref-prog` and `ref-link`, `file`, words after a `=`, `fields-` with a kind
  for the fields of the map on the line, `hints` for FIELD=HINT without the fields, or an empty
  string."
  [command k]
  (let [words #(if (seq %) (str "=" (str/join " " %)) "")
        names (field-names command)
        kind (kind-of command k)]
    (case (if (and (or (fields-of-map (:name command)) (= "tail" (:name command)))
                   (#{:column :where :field :hint} kind))
            :of-map
            kind)
      :of-map (str "fields-" (name kind))
      :column (words (concat names (map #(str "-" %) names)))
      :columns (words names)
      :where (words (map #(str % "=") names))
      (:ref :source) "ref"
      :program-ref "ref-prog"
      :link-ref "ref-link"
      :hint "hints"
      (:path :input :types) "file"
      :event-type "fields-type"
      :from (words ["oldest" "now"])
      :cpus (words ["each" "sum" "all"])
      :slots (words ["log2" "bcc" "bpftrace"])
      :shell (words ["bash" "zsh" "fish"])
      (case k
        :command (words first-words)
        :type (words (sort (map name (keys map-types/types))))
        ""))))

(def ^:private ^:const most-places "Arguments of a command that takes any number of them." 6)

(defn- places
  "Returns the kinds of completion of a command's arguments."
  [{:keys [args several] :as command}]
  (let [kinds (map #(what-of command %) args)]
    (if several
      (take most-places (concat kinds (repeat (last kinds))))
      kinds)))

(defn- values
  "Returns the options of a command whose values are maps, files or words."
  [command]
  (for [k (:options command) :let [what (what-of command k)] :when (seq what)]
    [(str "--" (name k)) what]))

(defn- taking
  "Returns the options that have a value."
  []
  (for [[k {:keys [takes]}] options :when takes] (str "--" (name k))))

(defn- one-quoted [text]
  (str "'" (str/replace text "'" "'\\''") "'"))

(def ^:private plain-names
  "The command that keeps only names without special characters.

  Other names may contain `$(…)`, which completion would run."
  "env LC_ALL=C grep -E '^[A-Za-z0-9_.-]+$'")

(def ^:private names-function
  "The shell function that sets a variable to the ids and names of objects.

  They are maps, programs or links. It caches them for five seconds. It must not run in a subshell."
  (str "_bpfmap_look() {\n"
       "  local now; now=$(date +%s)\n"
       "  if [ \"${_bpfmap_of:-}\" != \"$1\" ] || [ $((now - _bpfmap_at)) -gt 5 ]; then\n"
       "    case $1 in\n"
       "      ref-prog) _bpfmap_known=$(bpfmap prog list --csv --columns id,name 2>/dev/null) ;;\n"
       "      ref-link) _bpfmap_known=$(bpfmap link list --csv --columns id 2>/dev/null) ;;\n"
       "      *) _bpfmap_known=$(bpfmap list --csv --columns id,name 2>/dev/null) ;;\n"
       "    esac\n"
       "    _bpfmap_known=$(printf '%s\\n' \"$_bpfmap_known\" | tail -n +2 | tr -d '\\r' | tr ',' "
       "'\\n' | " plain-names " | sort -u)\n"
       "    _bpfmap_of=$1 _bpfmap_at=$now\n"
       "  fi\n"
       "}\n"))

(def ^:private plain-paths
  "The command that keeps only field paths without special characters."
  "env LC_ALL=C grep -E '^[A-Za-z0-9_./-]+$'")

(def ^:private hint-names "The names of hints, in one word of a shell."
  (str/join " " (map name (keys hints/table))))

(def ^:private not-shown
  "A pattern of the fields of rows that are not of the key or value."
  "^(change|per-second|old|new)([.]|$)")

(defn- fields-functions
  "Returns shell functions for the fields of a command's rows.

  One sets a variable to the fields of COMMAND, REF and the TYPE of events, and caches them for five
  seconds; its last argument is what is completed. The other prints them as an option takes them."
  [shell]
  (str "_bpfmap_look_into() {\n"
       "  local now of=${3#[\"'\"]}; now=$(date +%s); of=${of%[\"'\"]}\n"
       "  if [ \"$1\" != tail ] || [ \"$4\" = fields-type ]; then of=\n"
       "  elif [ -z \"$of\" ]; then _bpfmap_paths= _bpfmap_into=; return; fi\n"
       "  if [ \"${_bpfmap_into:-}\" != \"$1 $2 $of\" ] || "
       "[ $((now - _bpfmap_into_at)) -gt 5 ]; then\n"
       "    _bpfmap_paths=\n"
       "    if [ -n \"$2\" ]; then _bpfmap_paths=$(bpfmap completion " shell
       " \"$1\" \"$2\" ${of:+\"$of\"} 2>/dev/null | " plain-paths "); fi\n"
       "    _bpfmap_into=\"$1 $2 $of\" _bpfmap_into_at=$now\n"
       "  fi\n"
       "}\n"
       "_bpfmap_fields() {\n"
       "  if [ -n \"$_bpfmap_paths\" ]; then\n"
       "    case $1 in\n"
       "      fields-where) printf '%s\\n' \"$_bpfmap_paths\" | sed 's/$/=/' ;;\n"
       "      fields-column) printf '%s\\n' \"$_bpfmap_paths\" | sed 'p;s/^/-/' ;;\n"
       "      fields-hint) printf '%s\\n' \"$_bpfmap_paths\" | grep -vE '" not-shown
       "' | sed 's/$/=/' ;;\n"
       "      *) printf '%s\\n' \"$_bpfmap_paths\" ;;\n"
       "    esac\n"
       "  fi\n"
       "}\n"))

(defn- bash-cases [f]
  (str/join (for [{:keys [name] :as command} commands/commands]
              (str "    " (one-quoted name) ") " (f command) " ;;\n"))))

(defn- bash []
  (str "# bash completion of bpfmap; source it, or put it into /etc/bash_completion.d\n"
       names-function
       (fields-functions "bash")
       "_bpfmap() {\n"
       "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command= place=0 "
       "i what= flags= ref= of=\n"
       "  COMPREPLY=()\n"
       ;; Bash cuts words at an equals sign.
       "  if [[ $word == = && ${COMP_WORDS[COMP_CWORD-2]:-} == --as ]]; then\n"
       "    COMPREPLY=($(compgen -W '" hint-names "')); return\n"
       "  elif [[ $before == = && ${COMP_WORDS[COMP_CWORD-3]:-} == --as ]]; then\n"
       "    COMPREPLY=($(compgen -W '" hint-names "' -- \"$word\")); return\n"
       "  elif [[ $before == --as && $word == *=* ]]; then\n"
       "    COMPREPLY=($(compgen -P \"${word%%=*}=\" -W '" hint-names "' -- \"${word#*=}\"))\n"
       "    return\n"
       "  fi\n"
       "  for ((i = 1; i < ${#COMP_WORDS[@]}; i++)); do\n"
       "    if ((i == COMP_CWORD)); then continue; fi\n"
       "    case ${COMP_WORDS[i]} in\n"
       "      --value-type) ((i++)); of=${COMP_WORDS[i]:-} ;;\n"
       "      " (str/join "|" (taking)) ") ((i++)) ;;\n"
       "      -*) ;;\n"
       "      '') ;;\n"
       "      *) case $command in\n"
       "           '') command=${COMP_WORDS[i]}; continue ;;\n"
       "           " families ") command=\"$command ${COMP_WORDS[i]}\"; continue ;;\n"
       "         esac\n"
       "         if [ -z \"$ref\" ]; then ref=${COMP_WORDS[i]}; fi\n"
       "         if ((i < COMP_CWORD)); then ((place++)); fi ;;\n"
       "    esac\n"
       "  done\n"
       "  case $command in\n"
       "    '') what=(" (one-quoted (what-of nil :command)) ") ;;\n"
       (str/join (for [family (sort commands/families)]
                   (str "    " family ") what=("
                        (one-quoted (str "=" (str/join " " (map first (second-words family)))))
                        ") ;;\n")))
       (bash-cases (fn [{:keys [] :as command}]
                     (str "flags=" (one-quoted (str/join " " (flag-words command)))
                          " what=("  (str/join " " (map one-quoted (places command))) ")")))
       "  esac\n"
       "  what=${what[$place]:-}\n"
       "  case $command$before in\n"
       (str/join (for [{:keys [name] :as command} commands/commands
                       [option what] (values command)]
                   (str "    " (one-quoted (str name option)) ") flags= what=" (one-quoted what) " ;;\n")))
       "    *) case $before in " (str/join "|" (taking)) ") return ;; esac ;;\n"
       "  esac\n"
       "  if [[ $word == -* && -n $flags ]]; then COMPREPLY=($(compgen -W \"$flags\" -- "
       "\"$word\")); return; fi\n"
       "  case $what in\n"
       "    =*) COMPREPLY=($(compgen -W \"${what#=}\" -- \"$word\")) ;;\n"
       "    fields-*) _bpfmap_look_into \"$command\" \"$ref\" \"$of\" \"$what\"\n"
       "      case $what in fields-where|fields-hint) compopt -o nospace ;; esac\n"
       "      COMPREPLY=($(compgen -W \"$(_bpfmap_fields \"$what\")\" -- \"$word\")) ;;\n"
       "    ref*) case $word in\n"
       "           */*|.*) compopt -o filenames; COMPREPLY=($(compgen -f -- \"$word\")) ;;\n"
       "           *) _bpfmap_look \"$what\"; COMPREPLY=($(compgen -W \"$_bpfmap_known\" -- \"$word\")) ;;\n"
       "         esac ;;\n"
       "    file) compopt -o filenames; COMPREPLY=($(compgen -f -- \"$word\")) ;;\n"
       "  esac\n"
       "}\n"
       "complete -F _bpfmap bpfmap\n"))

(defn- zsh-word [text]
  (str/replace text #"[\\\[\]:']" #(str "\\" %)))

(defn- zsh-action [what]
  (cond
    (str/starts-with? what "ref") (str " _bpfmap_refs " what)
    (= "file" what) "_files"
    (or (= "hints" what) (str/starts-with? what "fields-")) (str " _bpfmap_of_line " what)
    (str/starts-with? what "=") (str "(" (subs what 1) ")")
    :else ""))

(defn- zsh-argument-lines [{:keys [args optional several] :as command}]
  (concat
   (for [[_ option doc & {:keys [id]}] (concat (flags/tool-options command)
                                               flags/general-options)
         :let [[flag takes] (str/split option #" ")]]
     (str (when (:many (options id)) "*") flag "[" (zsh-word doc) "]"
          (when takes (str ":" takes ":" (zsh-action (what-of command id))))))
   (for [[i k] (map-indexed vector args)]
     (str (cond
            (= k several) "*:"
            (contains? optional k) (str (inc (long i)) "::")
            :else (str (inc (long i)) ":"))
          (:takes (options k)) ":"
          (zsh-action (what-of command k))))))

(defn- zsh []
  (str "#compdef bpfmap\n"
       "# zsh completion of bpfmap; put it as _bpfmap into a directory of $fpath\n"
       names-function
       (fields-functions "zsh")
       "_bpfmap_of_line() {\n"
       "  local i ref= of=\n"
       "  if [[ $1 == *hint* && $PREFIX == *=* ]]; then\n"
       "    compset -P '*='; compadd -- " hint-names "; return\n"
       "  fi\n"
       "  if [[ $1 == hints ]]; then return; fi\n"
       "  for ((i = 2; i <= $#words; i++)); do\n"
       "    case $words[i] in\n"
       "      (--value-type) ((i++)); of=$words[i] ;;\n"
       "      (" (str/join "|" (taking)) ") ((i++)) ;;\n"
       "      (-*|'') ;;\n"
       "      (*) if [[ -z $ref && $i -ne $CURRENT ]]; then ref=$words[i]; fi ;;\n"
       "    esac\n"
       "  done\n"
       "  _bpfmap_look_into \"$command\" \"$ref\" \"$of\" $1\n"
       "  if [[ $1 == fields-where || $1 == fields-hint ]]; then compadd -S '' -- ${(f)\"$(_bpfmap_fields $1)\"}\n"
       "  else compadd -- ${(f)\"$(_bpfmap_fields $1)\"}; fi\n"
       "}\n"
       "_bpfmap_refs() {\n"
       "  if [[ $PREFIX == */* || $PREFIX == .* ]]; then _files; else _bpfmap_look $1; compadd -- "
       "${(f)_bpfmap_known}; fi\n"
       "}\n"
       "_bpfmap() {\n"
       "  local -a commands\n"
       "  commands=("
       (str/join " "
                 (for [word first-words]
                   (one-quoted (str word ":"
                                    (zsh-word (or (:doc (commands/command-named word))
                                                  (family-text word)))))))
       ")\n"
       "  if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
       "  local command=$words[2]\n"
       "  shift words; (( CURRENT-- ))\n"
       "  case $command in\n"
       (str/join (for [family (sort commands/families)]
                   (str "    " family ") commands=("
                        (str/join " " (for [[word {:keys [doc]}] (second-words family)]
                                        (one-quoted (str word ":" (zsh-word doc)))))
                        ")\n"
                        "      if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
                        "      command=\"$command $words[2]\"; shift words; (( CURRENT-- )) ;;\n")))
       "  esac\n"
       "  case $command in\n"
       (str/join (for [{:keys [name] :as command} commands/commands]
                   (str "    " (one-quoted name) ") _arguments "
                        (str/join " " (map one-quoted (zsh-argument-lines command))) " ;;\n")))
       "  esac\n"
       "}\n"
       "if [ \"$funcstack[1]\" = _bpfmap ]; then _bpfmap \"$@\"; else compdef _bpfmap bpfmap; fi\n"))

(defn- fish-words [what]
  (cond
    (str/starts-with? what "ref") (str " -a '(__bpfmap_refs " what ")'")
    (= "file" what) " -a '(__fish_complete_path)'"
    (or (= "hints" what) (str/starts-with? what "fields-"))
    (str " -a '(__bpfmap_fields " what ")'")
    (str/starts-with? what "=") (str " -a " (one-quoted (subs what 1)))
    :else ""))

(defn- fish []
  (str "# fish completion of bpfmap; put it as bpfmap.fish into ~/.config/fish/completions\n"
       "function __bpfmap_refs\n"
       "  set -l now (date +%s)\n"
       "  if test \"$__bpfmap_of\" != $argv[1]; or test (math $now - $__bpfmap_at) -gt 5\n"
       "    set -l words list --csv --columns id,name\n"
       "    switch $argv[1]\n"
       "      case ref-prog; set words prog list --csv --columns id,name\n"
       "      case ref-link; set words link list --csv --columns id\n"
       "    end\n"
       "    set -g __bpfmap_known (bpfmap $words 2>/dev/null | tail -n +2 | "
       "tr -d '\\r' | tr ',' '\\n' | " plain-names " | sort -u)\n"
       "    set -g __bpfmap_of $argv[1]\n"
       "    set -g __bpfmap_at $now\n"
       "  end\n"
       "  printf '%s\\n' $__bpfmap_known\n"
       "end\n"
       "function __bpfmap_words\n"
       "  set -l command; set -l ref; set -l of; set -l skip no\n"
       "  for word in (commandline $argv[1])[2..-1]\n"
       "    if test $skip = type; set of $word; set skip no; continue; end\n"
       "    if test $skip = yes; set skip no; continue; end\n"
       "    switch \"$word\"\n"
       "      case --value-type; set skip type\n"
       "      case " (str/join " " (taking)) "; set skip yes\n"
       "      case '-*' ''\n"
       "      case '*'\n"
       "        if test -z \"$command\"; set command $word\n"
       "        else if contains -- \"$command\" " (str/join " " (sort commands/families))
       "; set command \"$command $word\"\n"
       "        else if test -z \"$ref\"; set ref $word; end\n"
       "    end\n"
       "  end\n"
       "  printf '%s\\n' \"$command\" \"$ref\" \"$of\"\n"
       "end\n"
       "function __bpfmap_is\n"
       "  set -l words (__bpfmap_words -opc)\n"
       "  test \"$words[1]\" = \"$argv[1]\"\n"
       "end\n"
       "function __bpfmap_fields\n"
       "  set -l token (commandline -ct)\n"
       "  if string match -q -- '*hint*' $argv[1]; and string match -q -- '*=*' \"$token\"\n"
       "    printf '%s\\n' (string replace -r -- '=.*' = \"$token\"){"
       (str/replace hint-names " " ",") "}\n"
       "    return\n"
       "  end\n"
       "  if test $argv[1] = hints; return; end\n"
       "  set -l words (__bpfmap_words -op)\n"
       "  set -l command $words[1]; set -l ref $words[2]; set -l of $words[3]\n"
       "  if test \"$command\" != tail; or test $argv[1] = fields-type; set of\n"
       "  else if test -z \"$of\"; return; end\n"
       "  set -l now (date +%s)\n"
       "  if test \"$__bpfmap_into\" != \"$command $ref $of\"; or test (math $now - $__bpfmap_into_at) "
       "-gt 5\n"
       "    set -g __bpfmap_paths\n"
       "    if test -n \"$ref\"\n"
       "      set -g __bpfmap_paths (bpfmap completion fish $command $ref $of 2>/dev/null | "
       plain-paths ")\n"
       "    end\n"
       "    set -g __bpfmap_into \"$command $ref $of\"\n"
       "    set -g __bpfmap_into_at $now\n"
       "  end\n"
       "  if test (count $__bpfmap_paths) -gt 0\n"
       "    switch $argv[1]\n"
       "      case fields-where; printf '%s=\\n' $__bpfmap_paths\n"
       "      case fields-hint; printf '%s=\\n' (string match -rv -- '" not-shown
       "' $__bpfmap_paths)\n"
       "      case fields-column; printf '%s\\n' $__bpfmap_paths; string replace -r -- '^' - "
       "$__bpfmap_paths\n"
       "      case '*'; printf '%s\\n' $__bpfmap_paths\n"
       "    end\n"
       "  end\n"
       "end\n"
       ;; Fish reads a word that begins with a dash as an option, even after an option with a value.
       "function __bpfmap_falling\n"
       "  set -l words (commandline -opc)\n"
       "  test \"$words[-1]\" = $argv[1]; and string match -q -- '-*' (commandline -ct)\n"
       "end\n"
       "complete -c bpfmap -f\n"
       (str/join
        (for [family (sort commands/families)]
          (str "complete -c bpfmap -n __fish_use_subcommand -a " family " -d '"
               (family-text family) "'\n")))
       (str/join
        (for [{:keys [name doc] :as command} commands/commands
              :let [on (str "__bpfmap_is \"" name "\"")
                    there (str "-n " (one-quoted on))
                    args (set (places command))
                    ref (some #(when (str/starts-with? % "ref") %) args)
                    [word more] (str/split name #" ")]]
          (str (if more
                 (str "complete -c bpfmap -n '__bpfmap_is " word "' -a " more)
                 (str "complete -c bpfmap -n __fish_use_subcommand -a " name))
               " -d " (one-quoted doc) "\n"
               (when ref (str "complete -c bpfmap " there (fish-words ref) " -F\n"))
               (when (and (args "file") (not ref))
                 (str "complete -c bpfmap " there " -F\n"))
               (str/join (for [what args :when (str/starts-with? what "=")]
                           (str "complete -c bpfmap " there " -a " (one-quoted (subs what 1))
                                "\n")))
               (str/join (for [[_ option doc &
                                {:keys [id]}] (concat (flags/tool-options command)
                                                      flags/general-options)
                               :let [[flag takes] (str/split option #" ")]]
                           (str "complete -c bpfmap " there " -l " (subs flag 2) (when takes " -x")
                                " -d " (one-quoted doc)
                                (fish-words (what-of command id)) "\n"
                                (when (= :column (:kind (options id)))
                                  (str "complete -c bpfmap -n "
                                       (one-quoted
                                        (str on "; and __bpfmap_falling " flag))
                                       (fish-words (what-of command id)) "\n"))))))))))

(defn- script [shell]
  (str/split-lines (case shell :bash (bash) :zsh (zsh) :fish (fish))))

(defn completion
  "Returns the completion script of a shell.

  With a command and a map, returns the fields that the command takes for this map, one per line;
  with `tail`, the fields of events of a type, or the structs for its events. The scripts call that.

      (completion {:shell :bash} {})"
  [{:keys [shell command listed listed-type]} _request]
  {:as-text true
   :lines (cond
            (nil? command) (script shell)
            (nil? listed) nil
            (and (= "tail" command) listed-type) (event-field-lines listed listed-type)
            (= "tail" command) (struct-lines listed)
            :else (field-lines command listed))})
