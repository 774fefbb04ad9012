(ns ^:volume bpfmap.doc-test
  "The guide's transcripts are evaluated again, and its tables are made from the rules."
  (:require [bpfmap.cli.calling :refer [bpfmap]]
            [bpfmap.cli.command-line :as command-line]
            [bpfmap.console :as console]
            [bpfmap.display :as display]
            [bpfmap.exec :as exec]
            [bpfmap.exec.arguments :as exec-arguments]
            [bpfmap.exec.bpftool :as bpftool]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.demo :as demo]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.pod-client :as pod-client]
            [bpfmap.transcript :as transcript]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(def ^:private guide "doc/map-types.md")

(def ^:private columns
  [["type" #(str "`" (:type %) "`")]
   ["Linux" :since]
   ["operations" (fn [{:keys [ops ops-since]}]
                   (str/join " "
                             (for [op [:lookup :put! :insert! :replace! :delete! :take! :next-key
                                       :reduce :drain! :push! :pop! :peek
                                       :might-contain?]
                                   :when (ops op)]
                               (cond-> (name op)
                                 (get ops-since op) (str " (" (get ops-since op) ")")))))]
   ["batch" (fn [{:keys [batch batch-since]}]
              (str (str/join " "
                             (filter (set (map name batch)) ["read" "take" "write" "delete"]))
                   (when (seq batch) (str " (" batch-since ")"))))]
   ["flags" (fn [{:keys [flags requires]}]
              (str/join " " (for [flag (sort-by #(:bit (map-types/flags %)) flags)]
                              (if (contains? requires flag)
                                (str "**" (name flag) "**")
                                (name flag)))))]])

(defn type-table
  "The table of the guide: a row for each type, by number. Flags that a type needs are bold."
  []
  (let [line (fn [cells] (str "| " (str/join " | " cells) " |"))]
    (str/join "\n" (concat [(line (map first columns)) (line (repeat (count columns) "---"))]
                           (for [[type row] (sort-by (comp :number val) map-types/types)]
                             (line (map (fn [[_ cell]] (cell (assoc row :type type))) columns)))))))

(defn with-table
  "Returns a page with its table generated again."
  [text]
  (str/replace text #"(?s)(<!-- types: [^>]*-->\n).*(<!-- end -->)"
               (fn [[_ before after]] (str before (type-table) "\n" after))))

(deftest guide-table-is-generated
  (testing "the table of the guide equals the generated one"
    (is (= (with-table (slurp guide)) (slurp guide)))))

(defn evaluated
  "A page with its transcripts evaluated, on the BPF file system of the tests instead of
  /sys/fs/bpf."
  [text]
  (-> (str/replace text "/sys/fs/bpf" (fixture/bpffs))
      transcript/evaluate
      (str/replace (fixture/bpffs) "/sys/fs/bpf")))

(defn- differing
  "Returns the lines of a page that are not what was printed, up to ten pairs, from the first that
  differs."
  [page printed]
  (let [n (max (count page) (count printed))
        padded (fn [lines] (take n (concat lines (repeat :missing))))]
    (vec (take 10 (remove (fn [[a b]] (= a b)) (map vector (padded page) (padded printed)))))))

(defn- with-own-names
  "Returns a page with other names, of the same length, for maps, programs and files.

  A page that finds a map by its name must not find the map of another process, such as of a second
  run of the tests."
  [text names]
  (let [letters (repeatedly 3 #(char (+ 97 (rand-int 26))))]
    (reduce (fn [text name]
              (str/replace text (re-pattern (str "\\b" name "\\b"))
                           (apply str (subs name 0 (- (count name) 3)) letters)))
            text names)))

(kernel-test guide-transcripts
  (testing "the transcripts of the guide print what they show"
    (doseq [[page least] {guide 40, "doc/pins.md" 15, "doc/memory.md" 40, "doc/types.md" 30
                          "doc/errors.md" 3, "doc/events.md" 40, "doc/testing.md" 15, "doc/plots.md" 12,
                          "README.md" 7}]
      (let [before (do (fixture/bpffs) (fixture/settled-descriptors))
            text (slurp page)]
        (is (< least (count (re-seq #"(?m)^user=> " text))))
        (is (= [] (differing (str/split-lines (transcript/comparable text))
                             (str/split-lines (transcript/comparable (evaluated text))))))
        (is (<= (fixture/open-descriptors) before))))))

(kernel-test objects-page-transcripts
  (testing "the transcripts of the page about objects print what they show"
    (let [text (slurp "doc/objects.md")]
      (is (< 20 (count (re-seq #"(?m)^user=> " text))))
      (is (= [] (differing (str/split-lines (transcript/comparable text))
                           (str/split-lines (transcript/comparable
                                             (transcript/evaluate text)))))))))

(kernel-test pod-page-transcripts
  (testing "the transcripts of the pod page print what they show"
    (let [text (with-own-names (slurp "doc/pod.md") ["totals"])]
      (is (< 20 (count (re-seq #"(?m)^user=> " text))))
      (try
        (is (= [] (differing (str/split-lines (transcript/comparable text))
                             (str/split-lines (transcript/comparable (transcript/evaluate text))))))
        (finally
          (is (= [0] (pod-client/stop-loaded))))))))

;; --- the page about exploring a host

(def ^:private exploring "doc/explore.md")

(defn with-hints
  "Returns the page with its table of hints generated again."
  [text]
  (str/replace text #"(?s)(<!-- hints: [^>]*-->\n).*?(<!-- end -->)"
               (fn [[_ before after]]
                 (str before
                      "| hint | shows | fields |\n|---|---|---|\n"
                      (str/join (for [[hint {:keys [meaning of]}] display/hints]
                                  (str "| `" (name hint) "` | " meaning " | " of " |\n")))
                      after))))

(deftest hints-table-is-generated
  (testing "the table of hints equals the generated one"
    (let [text (slurp exploring)]
      (is (< 5000 (count text)))
      (is (= (with-hints text) text)))))

(defn with-bpftool
  "Returns the page with its table of bpftool's commands generated again."
  [text]
  (str/replace text #"(?s)(<!-- bpftool: [^>]*-->\n).*?(<!-- end bpftool -->)"
               (fn [[_ before after]] (str before (bpftool/markdown) after))))

(deftest bpftool-table-is-generated
  (testing "the table of bpftool's commands equals the generated one"
    (let [text (slurp exploring)]
      (is (str/includes? text "| `map lookup` | `get REF KEY`, also `lookup` |"))
      (is (= (with-bpftool text) text)))))

(defn- compared
  "Lines of a page, whatever differs from run to run left out."
  [text]
  (str/split-lines (transcript/comparable (console/comparable text))))

(kernel-test exploring-page-commands
  (testing "the commands of the exploring page print the shown output"
    (let [text (with-own-names (slurp exploring) ["bpfmap-doc-flows" "connection_errors_total"])
          saved (io/file (re-find #"/tmp/bpfmap-doc-[a-z]+\.edn" text))
          ^java.io.File demo (io/file (fixture/bpffs) "demo")]
      (is (< 40 (count (re-seq #"(?m)^\$ bpfmap " text))))
      (try
        (.mkdir demo)
        (is (= [] (differing (compared text) (compared (console/evaluate text)))))
        (is (= [] (differing (compared text) (compared (transcript/evaluate text)))))
        (finally
          (run! #(.delete ^java.io.File %) (reverse (file-seq demo)))
          (io/delete-file saved true))))))

;; --- the page about programs

(defn- own-demo-id
  "Returns the id of the program that `demo` runs in this process."
  []
  (first (for [{:keys [id held]} (exec/prog-list {:where "name=bpfmap_demo"})
               :when (some #(= (.pid (ProcessHandle/current)) (:pid %)) held)]
           id)))

(defn- with-demo
  "Calls f with the id of a program of `demo` while it runs."
  [f]
  (let [stop (promise)
        shown (promise)
        running (future (demo/observe 600.0 stop (fn [_] (deliver shown true))))]
    (try
      (is (true? (deref shown fixture/patience :late)))
      (f (own-demo-id))
      (finally
        (deliver stop true)
        (deref running fixture/patience nil)))))

(defn- without-numbers
  "Lines of a page without numbers and times, which differ from run to run and kernel to kernel."
  [text]
  (str/split-lines (-> (console/comparable text)
                       transcript/comparable
                       (str/replace #"\b\d+(\.\d+)?(ns|us|ms|s|%)?(?![\w])" "N")
                       (str/replace #"\bN:N:N\b" "N")
                       (str/replace "N program," "N programs,")
                       (str/replace #" +" " "))))

(kernel-test programs-page-commands
  (testing "the commands of the page about programs print the shown output"
    (let [text (with-own-names (slurp "doc/programs.md") ["accept_all"])]
      (with-demo
       (fn [id]
         ;; Another process can run the demo too.
         (let [text (-> text
                        (str/replace "name=bpfmap_demo" (str "id=" id))
                        (str/replace #"(prog (?:show|dump)) bpfmap_demo" (str "$1 " id)))]
           (is (= [] (differing (without-numbers text)
                                (without-numbers (console/evaluate text))))))))
      (is (= [] (differing (without-numbers text) (without-numbers (transcript/evaluate text))))))))

;; --- the README's two commands

(kernel-test readme-commands
  (testing "the commands of the README print the shown output"
    (let [text (slurp "README.md")
          pin (io/file (fixture/bpffs) "flows")]
      (testing "a map is made, listed and read"
        (is (= 4 (count (re-seq #"(?m)^\$ bin/bpfmap (create|put|list|dump) " text))))
        (try
          (is (= [] (differing (compared text) (compared (console/evaluate text)))))
          (finally (.delete ^java.io.File pin))))
      (testing "demo prints a table of this form, whatever this host calls"
        (let [[_ block] (re-find #"(?s)\$ bin/bpfmap demo --seconds 3\n(.*?)```" text)
              {:keys [exit out err]} (bpfmap "demo" "--seconds" "1")
              form (fn [s]
                     (distinct
                      (for [line (str/split-lines s) :when (not= "…" line)]
                        (condp re-find line
                          #"^ +NR  NAME +COUNT  PER-SECOND$" :header
                          #"^ *\d+  \w+ +\d+ +\d+\.\d$" :row
                          #"^Counted \d+ system calls of \d+ kinds in \d+\.\d s$" :total
                          #"^BPF map \d+ \(hash, bpfmap_demo\) no longer exists$" :map
                          line))))]
          (is (= 0 exit) err)
          (is (= [:header :row :total :map] (form block) (form (str out err)))))))))

;; --- command lines anywhere

(def ^:private pages
  (delay (into ["README.md"] (filter #(str/ends-with? % ".md"))
               (sort (map str (.listFiles (io/file "doc")))))))

(defn- help-examples
  "The command lines that `bpfmap help` has as examples, each on one line."
  []
  (for [{:keys [name]} commands/commands
        :let [[_ examples] (re-find #"(?s)\nExamples\n(.*?)(\n\n|$)" (:out (bpfmap "help" name)))]
        :when examples
        line (str/split-lines (str/replace examples #" \\\n +" " "))
        :let [[_ command] (re-matches #"  bpfmap (.*)" line)]
        :when command]
    command))

(deftest command-lines-parse
  (testing "every command line in the docs parses"
    (let [all (concat (mapcat #(console/commands (slurp %)) @pages) (help-examples))]
      (is (< 70 (count all)))
      (doseq [line all]
        (testing line
          (let [{:keys [command options]} (command-line/request (console/words line))]
            (is (map? (exec-arguments/checked command options)))))))))

(deftest pipelines-are-run
  (testing "every pipeline of the pages with bpfmap is in a transcript that the tests run"
    (is (= {} (into {} (for [page @pages
                             :let [found (console/pipelines (slurp page))]
                             :when (seq found)]
                         [page found])))))
  (testing "a pipeline elsewhere is found"
    (is (= ["$ bpfmap list --json | jq ."]
           (console/pipelines "```text\n$ bpfmap list --json | jq .\n```\n")))
    (is (= ["$ echo 1 | bpfmap put a --file -"]
           (console/pipelines "```console\n$ echo 1 | bpfmap put a --file -\n```\n")))
    (is (= [] (console/pipelines (str "```console\n$ bpfmap list --json | jq .\n"
                                      "$ printf 'a' | bpfmap put a --file -\n```\n"))))))

(deftest quoted-conditions
  (testing "every condition in the docs is quoted"
    (doseq [file (concat @pages
                         (filter #(re-find #"\.clj$" %)
                                 (map str (mapcat #(file-seq (io/file %)) ["src" "examples"]))))
            found (re-seq #"--where (?!')[^\s`]+" (slurp file))]
      (is (contains? #{"--where TERM" "--where again"} found) (str file ": " found)))
    (doseq [found (re-seq #"--where (?!')\S+"
                          (str/join "\n"
                                    (map #(:out (bpfmap "help" (:name %))) commands/commands)))]
      (is (= "--where TERM" found)))))

(deftest shell-features-rejected
  (testing "rejects a command line that needs more of a shell than splitting words"
    (is (= ["dump" "x" "--where" "entries>=2" ""]
           (console/words "dump x --where 'entries>=2' \"\"")))
    (is (re-find #"makes files"
                 (:message (fixture/error-of (console/words "list --where entries>=2")))))
    (is (re-find #"does not take"
                 (:message (fixture/error-of (console/words "list --where 'x")))))))
