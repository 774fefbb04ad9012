(ns bpfmap.cli.completion-test
  "What a shell completes, asked of the shells themselves."
  (:require [bpfmap.cli.calling :refer [bpfmap id-of]]
            [bpfmap.cli.repl :as repl]
            [bpfmap.core :as bpf]
            [bpfmap.exec.commands :as commands]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.io Closeable File)))

(set! *warn-on-reflection* true)

(def ^:private maps
  "What `bpfmap list` would say, as a function of the shell, by shell."
  (let [posix (str "bpfmap() { case $1 in "
                   "list) printf 'id,name\\r\\n12,flows\\r\\n13,counts\\r\\n14,\\r\\n' ;; "
                   "prog) printf 'id,name\\r\\n30,packets\\r\\n' ;; "
                   "link) printf 'id\\r\\n7\\r\\n' ;; esac; }")]
    {"bash" posix
     "zsh" posix
     "fish" (str "function bpfmap; switch $argv[1]; "
                 "case list; printf 'id,name\\r\\n12,flows\\r\\n13,counts\\r\\n14,\\r\\n'; "
                 "case prog; printf 'id,name\\r\\n30,packets\\r\\n'; "
                 "case link; printf 'id\\r\\n7\\r\\n'; end; end")}))

(def ^:private ask
  "How a shell is asked what it completes a line to, by shell: a script, in which the words are a
  list and SCRIPT the file."
  {"bash" (fn [words file]
            (str "source " file "\ncompopt() { :; }\nCOMP_WORDS=(" (str/join " " (map pr-str words))
                 ")\n"
                 "COMP_CWORD=$((${#COMP_WORDS[@]}-1))\n_bpfmap\nprintf '%s\\n' "
                 "\"${COMPREPLY[@]}\"\n"))
   "fish" (fn [words file]
            (str "source " file "\ncomplete -C " (pr-str (str/join " " words))
                 " | string split -f1 \\t\n"))})

(def ^:dynamic *says*
  "Returns a shell function in place of the command; by default the one of `maps`."
  nil)

(defn- completed
  "What a shell completes words to, the last of which is being typed."
  [shell & words]
  (let [file (File/createTempFile "bpfmap" ".sh")
        asking (File/createTempFile "bpfmap" ".sh")]
    (try
      (spit file (:out (bpfmap "completion" shell)))
      (spit asking (str (or *says* (maps shell)) "\n" ((ask shell) (cons "bpfmap" words) file)))
      (let [{:keys [out err]} (fixture/run [shell (str asking)])]
        (is (= "" err))
        (set (remove str/blank? (str/split-lines out))))
      (finally
        (.delete file)
        (.delete asking)))))

(deftest shells-complete-words
  (testing "shells complete commands, options, maps and choices"
    (doseq [shell ["bash" "fish"]]
      (if-not (fixture/executable shell)
        (fixture/skip! (str "there is no " shell))
        (are [words found] (= found (apply completed shell words))
          [""] (set (map #(first (str/split (:name %) #" ")) commands/commands))
          ["un"] #{"unpin"}
          ["prog" ""] #{"list" "show" "dump" "top"}
          ["li"] #{"list" "link"}
          ["link" "d"] #{"detach"}
          ["prog" "show" "pa"] #{"packets"}
          ["prog" "show" "fl"] #{}
          ["link" "show" "7"] #{"7"}
          ["prog" "top" "--int"] #{"--interval"}
          ["prog" "list" "--where" "meml"] #{"memlock="}
          ["link" "list" "--columns" "att"] #{"attached-to" "attach-type"}
          ["dump" "fl"] #{"flows"}
          ["dump" "1"] #{"12" "13" "14"}
          ["dump" "flows" "--wh"] #{"--where"}
          ["restore" "--into" "c"] #{"counts"}
          ["completion" "z"] #{"zsh"}
          ["hist" "flows" "--slots" "b"] #{"bcc" "bpftrace"}
          ["create" "/x" "--type" "lpm"] #{"lpm-trie"}
          ["help" "wa"] #{"watch"}
          ["list" "--sort" "meml"] #{"memlock"}
          ["list" "--sort" "-meml"] #{"-memlock"}
          ["dump" "flows" "--limit" "-meml"] #{}
          ["list" "-meml"] #{}
          ["list" "--columns" "max"] #{"max-entries"}
          ["list" "--where" "froz"] #{"frozen="}
          ["features" "--sort" "sin"] #{"since"})))))

(def ^:private flow-spec
  {:name "complete" :type :hash :max-entries 8
   :key [:struct [:src :ipv4] [:port :u16be]]
   :value [:struct [:bytes :u64] [:port :u16] [:tx [:struct [:errors :u32]]] [:comm [:string 8]]]})

(defn- field-lines [command ref]
  (let [{:keys [exit out err]} (bpfmap "completion" "bash" command ref)]
    (is (= [0 ""] [exit err]))
    (remove str/blank? (str/split-lines out))))

(kernel-test fields-of-a-map
  (testing "the completion command prints the fields of a map"
    (with-open [^Closeable m (bpf/create flow-spec)]
      (let [own ["src" "bytes" "port" "tx.errors" "comm"]
            whole ["key.src" "key.port" "value.bytes" "value.port" "value.tx.errors" "value.comm"]]
        (is (= (concat own whole) (field-lines "dump" (id-of m)) (field-lines "hist" (id-of m))))
        (is (= (concat own whole
                       ["change" "per-second.bytes" "per-second.port" "per-second.tx.errors"])
               (field-lines "watch" (id-of m))))
        (is (= ["src" "port" "change" "key.src" "key.port" "old.bytes" "old.port" "old.tx.errors"
                "old.comm" "new.bytes" "new.port"
                "new.tx.errors" "new.comm" "per-second.bytes" "per-second.port"
                "per-second.tx.errors"]
               (field-lines "diff" (id-of m))))
        (doseq [command ["dump" "watch" "diff"] field (field-lines command (id-of m))]
          (is (= 0 (:exit (apply bpfmap (concat [command (id-of m) "--sort" field]
                                                (case command
                                                  "watch" ["--seconds" "0.001"]
                                                  "diff" ["--seconds" "0.001"]
                                                  nil)))))
              [command field])))
      (let [file (File/createTempFile "bpfmap" ".edn")]
        (try
          (bpfmap "save" (id-of m) (str file))
          (is (= (field-lines "diff" (id-of m)) (field-lines "diff" (str file))))
          (finally (.delete file)))))
    (doseq [[command ref] [["dump" "no-such-map"] ["dump" "4294967295"] ["diff" "/nowhere/a.edn"]
                           ["watch" "/etc/passwd"]
                           ["show" "1"] ["nope" "1"]]]
      (is (= [] (field-lines command ref))))))

(kernel-test fields-in-shells
  (testing "shells complete the fields of the map on the command line"
    (with-open [^Closeable m (bpf/create flow-spec)]
      (let [id (str (id-of m))
            answers (File/createTempFile "bpfmap" ".txt")]
        (try
          (doseq [shell ["bash" "fish"]]
            (if-not (fixture/executable shell)
              (fixture/skip! (str "there is no " shell))
              (are [words found] (let [[command] words]
                                   (spit answers
                                         (str (:out (bpfmap "completion" shell command id))
                                              "odd$(touch /nowhere)\n"))
                                   (binding [*says* (case shell
                                                      "bash" (str
                                                              "bpfmap() { if [ \"$*\" = "
                                                              "'completion bash " command " " id
                                                              "' ]; then cat " answers
                                                              "; else return 1; fi; }")
                                                      "fish" (str
                                                              "function bpfmap; if test \"$argv\" "
                                                              "= 'completion fish " command " " id
                                                              "'; cat " answers
                                                              "; else; return 1; end; end"))]
                                     (= found
                                        (apply completed shell (map #(if (= :id %) id %) words)))))
                ["dump" :id "--where" "by"] #{"bytes="}
                ["dump" :id "--sort" "by"] #{"bytes"}
                ["dump" :id "--sort" "-by"] #{"-bytes"}
                ["dump" :id "--limit" "5" "--where" "key."] #{"key.src=" "key.port="}
                ["dump" :id "--where" "bytes>5" "--sort" "value.t"] #{"value.tx.errors"}
                ["watch" :id "--sort" "-per"]
                #{"-per-second.bytes" "-per-second.port" "-per-second.tx.errors"}
                ["watch" "--interval" "5" :id "--where" "ch"] #{"change="}
                ["diff" :id "--where" "old.b"] #{"old.bytes="}
                ["hist" :id "--field" "by"] #{"bytes"}
                ["hist" :id "--bucket" "po"] #{"port"}
                ["dump" :id "--as" "by"] #{"bytes="}
                ["dump" :id "--as" "src=ipv"] #{"src=ipv4" "src=ipv4-host" "src=ipv6"}
                ["watch" :id "--as" "ch"] #{}
                ["get" :id "--as" "value.t"] #{"value.tx.errors="}
                ["tail" :id "--as" "sr"] #{}
                ["tail" :id "--as" "src=ma"] #{"src=mac"}
                ["dump" :id "--where" "odd"] #{}
                ["dump" "nope" "--where" "by"] #{}
                ["dump" "--where" "by"] #{})))
          (finally (.delete answers)))))))

(kernel-test fields-of-events
  (testing "shells complete the fields of events of the type on the command line"
    (with-open [^Closeable m (bpf/create {:name "c_ring" :type :ringbuf :max-entries 4096})]
      (let [id (str (id-of m))
            lines #(str/split-lines (:out (bpfmap "completion" % "tail" id
                                                  "[struct [pid u32] [comm [string 16]]]")))
            answers (File/createTempFile "bpfmap" ".txt")]
        (try
          (is (= ["pid" "comm" "value.pid" "value.comm"] (lines "zsh")))
          (is (= "" (:out (bpfmap "completion" "bash" "tail" id "no_such_struct"))))
          (doseq [shell ["bash" "fish"]]
            (if-not (fixture/executable shell)
              (fixture/skip! (str "there is no " shell))
              (binding [*says* (case shell
                                 "bash" (str "bpfmap() { if [ \"$*\" = 'completion bash tail " id
                                             " event' ]; then cat " answers "; else return 1; fi; }")
                                 "fish" (str "function bpfmap; if test \"$argv\" = "
                                             "'completion fish tail " id " event'; cat " answers
                                             "; else; return 1; end; end"))]
                (spit answers (str/join "\n" (conj (lines shell) "")))
                (are [words found] (= found (apply completed shell words))
                  ["tail" id "--value-type" "event" "--where" "co"] #{"comm="}
                  ["tail" "--value-type" "event" id "--as" "pi"] #{"pid="}
                  ["tail" id "--where" "co"] #{}
                  ["tail" id "--value-type" "pi"] #{}))))
          (finally (.delete answers)))))))

(deftest bash-argument-position
  (testing "bash completes by the position of the argument"
    (are [words found] (= found (apply completed "bash" words))
      ["dump" "--limit" "5" "fl"] #{"flows"}
      ["dump" "flows" "--limit" ""] #{}
      ["dump" "flows" "c"] #{"counts"}
      ["hist" "flows" "c"] #{}
      ["get" "flows" ""] #{}
      ["diff" "flows" "c"] #{"counts"}
      ["save" "flows" "/etc/hostn"] #{"/etc/hostname"}
      ["show" "/etc/hostn"] #{"/etc/hostname"}
      ;; Bash cuts words at an equals sign.
      ["dump" "flows" "--as" "src" "=" "ma"] #{"mac"})
    (is (contains? (completed "bash" "dump" "flows" "--as" "src" "=") "cgroup"))))

(deftest zsh-loads-the-script
  (testing "zsh loads the completion script"
    (if-not (fixture/executable "zsh")
      (fixture/skip! "there is no zsh")
      (let [file (File/createTempFile "bpfmap" ".zsh")]
        (try
          (spit file (:out (bpfmap "completion" "zsh")))
          (let [{:keys [exit out err]}
                (fixture/run ["zsh" "-f" "-c" (str "autoload -U compinit; compinit -D; source " file
                                                   "; print -r -- $_comps[bpfmap]; whence -w "
                                                   "_bpfmap _bpfmap_refs")])]
            (is (= [0 "" "_bpfmap\n_bpfmap: function\n_bpfmap_refs: function\n"] [exit err out])))
          (let [asking (str "zmodload zsh/zpty\n"
                            "zpty z zsh -f -i\n"
                            "zpty -w z 'PS1=\"> \"; autoload -U compinit; compinit -D; "
                            (str/replace (maps "zsh") "'" "\"")
                            "; source " file "; echo rea\"\"dy'\n"
                            "zpty -r z line '*ready*'\n"
                            "zpty -w -n z $'bpfmap dump fl\\t'\n"
                            "zpty -r z line '*flows*'\n"
                            "print -r -- $line\n"
                            "zpty -d z\n")]
            (is (str/includes? (:out (fixture/run ["timeout" "60" "zsh" "-f" "-c" asking]))
                               "bpfmap dump flows") "TAB completes"))
          (finally (.delete file)))))))

(deftest zsh-completes-fields
  (testing "zsh completes the fields of the map on the command line"
    (if-not (fixture/executable "zsh")
      (fixture/skip! "there is no zsh")
      (let [file (File/createTempFile "bpfmap" ".zsh")]
        (try
          (spit file (:out (bpfmap "completion" "zsh")))
          (let
           [stub "bpfmap() { if [ \"$*\" = \"completion zsh dump 12\" ]; then printf \"bytes\\nsrc\\n\"; fi; }"
            asking (str "zmodload zsh/zpty\n"
                        "zpty z zsh -f -i\n"
                        "zpty -w z 'PS1=\"> \"; autoload -U compinit; compinit -D; " stub
                        "; source " file "; echo rea\"\"dy'\n"
                        "zpty -r z line '*ready*'\n"
                        "zpty -w -n z $'bpfmap dump 12 --where by\\t'\n"
                        "zpty -r z line '*bytes=*'\n"
                        "print -r -- $line\n"
                        "zpty -w -n z $'5 --sort sr\\t'\n"
                        "zpty -r z line '*src*'\n"
                        "print -r -- $line\n"
                        "zpty -d z\n")
            {:keys [out]} (fixture/run ["timeout" "60" "zsh" "-f" "-c" asking])]
            (is (str/includes? out "bpfmap dump 12 --where bytes="))
            (is (str/includes? out "5 --sort src")))
          (finally (.delete file)))))))

(deftest repl-completes-names
  (testing "the REPL completes names"
    (are [word names] (= names (repl/completions word 'bpfmap.cli.completion-test))
      "fixture/execu" ["fixture/executable"]
      "(fixture/execu" ["(fixture/executable"]
      "#'commands/comm" ["#'commands/command-named" "#'commands/commands"]
      "clojure.string/triml" ["clojure.string/triml"]
      "fixtu" ["fixture/"]
      "no-such-name" []
      "" nil)))
