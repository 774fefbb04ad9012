(ns bpfmap.cli.completion-test
  "What a shell completes, asked of the shells themselves."
  (:require [bpfmap.cli.calling :refer [bpfmap]]
            [bpfmap.cli.repl :as repl]
            [bpfmap.exec.commands :as commands]
            [bpfmap.fixture :as fixture]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is]])
  (:import (java.io File)))

(set! *warn-on-reflection* true)

(def ^:private maps
  "What `bpfmap list` would say, as a function of the shell, by shell."
  {"bash" "bpfmap() { printf 'id,name\\r\\n12,flows\\r\\n13,counts\\r\\n14,\\r\\n'; }"
   "zsh" "bpfmap() { printf 'id,name\\r\\n12,flows\\r\\n13,counts\\r\\n14,\\r\\n'; }"
   "fish" "function bpfmap; printf 'id,name\\r\\n12,flows\\r\\n13,counts\\r\\n14,\\r\\n'; end"})

(def ^:private ask
  "How a shell is asked what it completes a line to, by shell: a script, in which the words are a list and SCRIPT the file."
  {"bash" (fn [words file]
            (str "source " file "\ncompopt() { :; }\nCOMP_WORDS=(" (str/join " " (map pr-str words)) ")\n"
                 "COMP_CWORD=$((${#COMP_WORDS[@]}-1))\n_bpfmap\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"))
   "fish" (fn [words file]
            (str "source " file "\ncomplete -C " (pr-str (str/join " " words)) " | string split -f1 \\t\n"))})

(defn- completed
  "What a shell completes words to, the last of which is being typed."
  [shell & words]
  (let [file (File/createTempFile "bpfmap" ".sh")
        asking (File/createTempFile "bpfmap" ".sh")]
    (try
      (spit file (:out (bpfmap "completion" shell)))
      (spit asking (str (maps shell) "\n" ((ask shell) (cons "bpfmap" words) file)))
      (let [{:keys [out err]} (fixture/run [shell (str asking)])]
        (is (= "" err))
        (set (remove str/blank? (str/split-lines out))))
      (finally
        (.delete file)
        (.delete asking)))))

(deftest shells-complete-commands-options-maps-and-choices
  (doseq [shell ["bash" "fish"]]
    (if-not (fixture/executable shell)
      (fixture/skip! (str "there is no " shell))
      (are [words found] (= found (apply completed shell words))
        [""] (set (map :name commands/commands))
        ["un"] #{"unpin"}
        ["dump" "fl"] #{"flows"}
        ["dump" "1"] #{"12" "13" "14"}
        ["dump" "flows" "--wh"] #{"--where"}
        ["restore" "--into" "c"] #{"counts"}
        ["completion" "z"] #{"zsh"}
        ["hist" "flows" "--slots" "b"] #{"bcc" "bpftrace"}
        ["create" "/x" "--type" "lpm"] #{"lpm-trie"}
        ["help" "wa"] #{"watch"}
        ["list" "--sort" "meml"] #{"memlock"}
        ["list" "--columns" "max"] #{"max-entries"}
        ["list" "--where" "froz"] #{"frozen="}
        ["features" "--sort" "sin"] #{"since"}))))

(deftest bash-knows-which-argument-is-being-typed
  (are [words found] (= found (apply completed "bash" words))
    ["dump" "--limit" "5" "fl"] #{"flows"}
    ["dump" "flows" "--limit" ""] #{}
    ["dump" "flows" "c"] #{}
    ["get" "flows" ""] #{}
    ["diff" "flows" "c"] #{"counts"}
    ["save" "flows" "/etc/hostn"] #{"/etc/hostname"}
    ["show" "/etc/hostn"] #{"/etc/hostname"}))

(deftest zsh-takes-the-script
  (if-not (fixture/executable "zsh")
    (fixture/skip! "there is no zsh")
    (let [file (File/createTempFile "bpfmap" ".zsh")]
      (try
        (spit file (:out (bpfmap "completion" "zsh")))
        (let [{:keys [exit out err]}
              (fixture/run ["zsh" "-f" "-c" (str "autoload -U compinit; compinit -D; source " file
                                                 "; print -r -- $_comps[bpfmap]; whence -w _bpfmap _bpfmap_refs")])]
          (is (= [0 "" "_bpfmap\n_bpfmap: function\n_bpfmap_refs: function\n"] [exit err out])))
        (let [asking (str "zmodload zsh/zpty\n"
                          "zpty z zsh -f -i\n"
                          "zpty -w z 'PS1=\"> \"; autoload -U compinit; compinit -D; " (str/replace (maps "zsh") "'" "\"")
                          "; source " file "; echo rea\"\"dy'\n"
                          "zpty -r z line '*ready*'\n"
                          "zpty -w -n z $'bpfmap dump fl\\t'\n"
                          "zpty -r z line '*flows*'\n"
                          "print -r -- $line\n"
                          "zpty -d z\n")]
          (is (str/includes? (:out (fixture/run ["timeout" "60" "zsh" "-f" "-c" asking])) "bpfmap dump flows") "TAB completes"))
        (finally (.delete file))))))

(deftest the-repl-completes-names
  (are [word names] (= names (repl/completions word 'bpfmap.cli.completion-test))
    "fixture/execu" ["fixture/executable"]
    "(fixture/execu" ["(fixture/executable"]
    "#'commands/comm" ["#'commands/command-named" "#'commands/commands"]
    "clojure.string/triml" ["clojure.string/triml"]
    "fixtu" ["fixture/"]
    "no-such-name" []
    "" nil))
