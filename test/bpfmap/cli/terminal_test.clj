(ns ^:volume bpfmap.cli.terminal-test
  "The command line on a terminal: `list`, `hist` and `watch` at 80 and 200 columns, Ctrl-C, a new
  size, keys, questions, progress."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private script (str (.getAbsolutePath (io/file "bin/bpfmap"))))

;; --- a terminal of the tests' own

(def ^:private ^:dynamic *socket* nil)

(def ^:private sockets
  "A server of its own for each terminal: one that ends is not asked again."
  (map #(str "bpfmap-test-" (.pid (java.lang.ProcessHandle/current)) "-" %) (range)))

(def ^:private used (atom 0))

(defn- tmux [& args]
  (fixture/run (into ["tmux" "-L" *socket* "-f" "/dev/null"] (map str) args)
               :env {"LC_ALL" "C.UTF-8" "SHELL" "/bin/bash"}))

(defn- screen
  "Returns the lines on the terminal, without empty lines at its end."
  []
  (str/split-lines (:out (tmux "capture-pane" "-p" "-t" "it"))))

(defn- wait-for
  "Waits until the lines on the terminal are as they should be, at most as long as [[fixture/eventually]] does;
  returns them."
  [as-wanted?]
  (let [last-one (atom nil)]
    (fixture/eventually #(as-wanted? (reset! last-one (screen))))
    (is (as-wanted? @last-one) (str/join "\n" @last-one))
    @last-one))

(defn- press [key]
  (tmux "send-keys" "-t" "it" key))

(defn- type-line [text]
  (tmux "send-keys" "-t" "it" "-l" text)
  (press "Enter"))

(defn- line? [pattern] (fn [lines] (some #(re-find pattern %) lines)))

(defmacro ^:private on-terminal
  "Runs body with a terminal of so many columns and lines, in which a shell waits whose $bpfmap is
  the command."
  [[width height] & body]
  `(if-not (fixture/executable "tmux")
     (fixture/skip! "there is no tmux to make a terminal")
     (binding [*socket* (nth sockets (swap! used inc))]
       (try
         (tmux "new-session" "-d" "-s" "it" "-x" ~width "-y" ~height
               (str "bpfmap=" script " PS1='$ ' exec bash --norc --noprofile"))
         (wait-for (line? #"^\$"))
         ~@body
         (finally (tmux "kill-server"))))))

(defn- clear
  "Clears the terminal, and waits until it is."
  []
  (type-line "clear")
  (wait-for #(re-matches #"\$ ?" (str/join %))))

(defn- run-line
  "Types a command line, waits for its end, and returns its output."
  [line]
  (clear)
  (type-line (str line "; echo ended $?"))
  (let [lines (wait-for (line? #"^ended \d+"))]
    (take-while #(not (str/starts-with? % "ended")) (drop-while #(str/starts-with? % "$") lines))))

(defn- flows ^Closeable []
  (bpf/create {:name "terminal_flows" :type :hash :max-entries 100
               :key [:struct [:src :ipv4] [:port :port]]
               :value [:struct [:packets :u64] [:bytes :u64] [:comm [:string 32]]]
               :contents (into {} (for [i (range 60)]
                                    [{:src (str "10.0.0." i) :port (+ 1000 i)}
                                     {:packets i :bytes (* i i i)
                                      :comm (str "a-process-of-some-name-" i)}]))}))

;; --- output that is printed once

(kernel-test output-fits-the-terminal
  (testing "the output fits the width of the terminal"
    (with-open [m (flows)]
      (let [id (:id (bpf/info m))]
        (doseq [width [80 200]]
          (on-terminal [width 40]
            (testing (str width " columns")
              (let [[heading & rows] (run-line (str "$bpfmap list --where name=terminal_flows"))
                    row (first rows)]
                (is (str/includes? heading "ENTRIES"))
                (is (str/includes? row (str id "  hash")))
                (is (= (+ (str/index-of heading "NAME")) (str/index-of row "terminal_flows"))
                    "columns stand under each other")
                (is (= (if (= 80 width) 1 0)
                       (count (filter #(str/starts-with? % "no room for ") rows)))))
              (let [[heading &
                     rows] (run-line (str "$bpfmap dump " id " --sort -bytes --limit 20"))]
                (is (= 20 (count (filter #(str/starts-with? % "10.0.0.") rows)))
                    "a row is a line: nothing wraps")
                (is (str/includes? heading "packets"))
                (is (str/includes? (first rows) "a-process-of-some-name-59")))
              (when (= 80 width)
                (let [lines (run-line (str "$bpfmap hist " id " --field bytes"))]
                  (is (apply = (map #(str/index-of % "|") (filter #(str/includes? % "|") lines))))
                  (is (< 5 (count (filter #(re-find #"\|\*+ *\|$" %) lines)))))))))))))

;; --- what takes its time

(kernel-test progress-of-slow-command
  (testing "reports progress if a command takes more than a second"
    (with-open [m ^Closeable (bpf/create {:name "terminal_large" :type :array :value :u64
                                          :max-entries 1000000})]
      (on-terminal [80 10]
        (type-line (str "$bpfmap dump " (:id (bpf/info m))
                        " --stream --json > /dev/null; echo ended $?"))
        (wait-for (line? #"^dump: \d+ entries, \d+ s$"))
        (is (not-any? #(re-find #"^dump:" %) (wait-for (line? #"^ended 0")))
            "and wipes it away")
        (clear)
        (type-line (str "$bpfmap dump " (:id (bpf/info m)) " > /dev/null; echo ended $?"))
        (wait-for (line? #"^dump: \d+ s$")) ; while it prints
        (is (some #{"1000000 entries"} (wait-for (line? #"^ended 0")))
            "before a note is printed")
        (clear)
        (type-line (str "$bpfmap top --once --interval 2 --json > /dev/null; echo ended $?"))
        (wait-for (line? #"^top: \d+ s$"))
        (is (not-any? #(re-find #"^top:" %) (wait-for (line? #"^ended 0")))
            "live commands whose output goes elsewhere")))))

;; --- live tables

(kernel-test live-watch-on-terminal
  (testing "a watch is live and restores the terminal"
    (with-open [m (flows)]
      (let [id (:id (bpf/info m))
            key {:src "10.0.0.7" :port 1007}]
        (doseq [width [80 200]]
          (on-terminal [width 20]
            (testing (str width " columns")
              (type-line "before=$(stty -g)")
              (clear)
              (type-line (str "$bpfmap watch " id
                              " --interval 0.2; echo ended $?; [ \"$before\" = \"$(stty -g)\" ] && "
                              "echo same"))
              (wait-for (line? #"^Map \d+ terminal_flows \(hash\): 60 of 100 entries"))
              (let [changing (future (dotimes [i 200]
                                       (bpf/put! m key
                                                 {:packets (* 10 i) :bytes (* 1000 i)
                                                  :comm "changing"})
                                       (Thread/sleep 50)))
                    lines (wait-for (line? #"^\*  10\.0\.0\.7 +1007 .*changing"))]
                (is (<= (count lines) 20))
                (is (every? #(< (count %) width) lines))
                (is (re-find #"^\*  10\.0\.0\.7" (nth lines 4)) "the liveliest entry comes first")
                (is (str/includes? (nth lines 3) "packets/s"))
                (tmux "resize-window" "-t" "it" "-x" 60 "-y" 12)
                (let [lines (wait-for #(and (<= (count %) 12)
                                            (every? (fn [l] (< (count l) 60)) %)
                                            ((line? #"^\*  10\.0\.0\.7") %)))]
                  (is (re-find #"^Map" (first lines)) "the frame is drawn for the new size"))
                (press "C-c")
                (let [lines (wait-for (line? #"^same"))]
                  (is (some #{"ended 130"} lines))
                  (is (some #(re-find #"^\*  10\.0\.0\.7" %) lines) "the last table stays"))
                (future-cancel changing)))))))))

;; --- keys

(kernel-test keys-sort-top
  (testing "keys choose the order of top, and end it"
    (let [own (str "k" (Long/toString (.pid (java.lang.ProcessHandle/current)) 36))
          of (fn [name n]
               (bpf/create {:name (str own name) :type :hash :key :u32 :value :u64 :max-entries 10
                            :contents (zipmap (range n) (range))}))]
      (with-open [low ^Closeable (of "_low" 1)
                  high ^Closeable (of "_high" 9)
                  middle ^Closeable (of "_mid" 5)]
        (on-terminal [100 20]
          (type-line "before=$(stty -g)")
          (clear)
          (type-line (str "$bpfmap top --name '" own "_*' --sort -entries --interval 0.2;"
                          " echo ended $?; [ \"$before\" = \"$(stty -g)\" ] && echo same"))
          (let [names (fn [lines]
                        (keep #(second (re-find (re-pattern (str own "_(\\w+)")) %)) lines))
                sorted (fn [text order]
                         (wait-for #(and (str/includes? (str (first %)) (str "; sorted by " text))
                                         (= order (names %)))))]
            (sorted "ENTRIES, descending" ["high" "mid" "low"])
            (press "r")
            (sorted "ENTRIES, ascending" ["low" "mid" "high"])
            (press "<")
            (sorted "NAME, ascending" ["high" "low" "mid"])
            (press "Right")
            (press ">")
            (press "Right")
            (sorted "FULL, descending" ["high" "mid" "low"])
            (press "x") ; not a key of top
            (press "h")
            (wait-for (line? #"^  space +pause"))
            (press "x")
            (sorted "FULL, descending" ["high" "mid" "low"])
            (press "q")
            (let [lines (wait-for (line? #"^same"))]
              (is (some #{"ended 0"} lines))
              (is (= ["high" "mid" "low"] (names lines)) "the last table stays"))))))))

(kernel-test keys-of-watch
  (testing "keys of watch choose the order, show changed entries only, and pause"
    (with-open [m ^Closeable (bpf/create {:name "watched_keys" :type :hash :key :u32
                                          :value [:struct [:n :u64] [:turn :u64]]
                                          :max-entries 10
                                          :contents {1 {:n 30 :turn 1}
                                                     2 {:n 10 :turn 3}
                                                     3 {:n 20 :turn 2}}})]
      (on-terminal [100 20]
        (type-line (str "$bpfmap watch " (:id (bpf/info m)) " --as n=size --interval 0.2"))
        (let [rows (fn [lines] (keep #(second (re-find #"^.  +(\d) .*B " %)) lines))
              sorted (fn [text order]
                       (wait-for #(and (str/ends-with? (str (first %)) (str "; sorted by " text))
                                       (= order (rows %)))))]
          (sorted "change" ["1" "2" "3"])
          (wait-for (line? #"keys: h help, q quit$"))
          (press ">")
          (sorted "KEY, descending" ["3" "2" "1"])
          (press ">")
          (sorted "n, descending" ["1" "3" "2"])
          (press "Right")
          (sorted "turn, descending" ["2" "3" "1"])
          (press "r")
          (sorted "turn, ascending" ["1" "3" "2"])
          (press "Space")
          (sorted "turn, ascending, paused" ["1" "3" "2"])
          (bpf/put! m 2 {:n 11 :turn 0})
          (press "r")
          (sorted "turn, descending, paused" ["2" "3" "1"])
          (press "p")
          (sorted "turn, descending" ["3" "1" "2"])
          (press "c")
          (sorted "turn, descending, changed only" [])
          (press "?")
          (wait-for (line? #"^  c +changed entries only"))
          (press "h")
          (sorted "turn, descending, changed only" [])
          (press "q")
          (wait-for (line? #"^\$")))))))

;; --- questions

(kernel-test confirm-others-map
  (testing "asks before it changes a map that another process uses"
    (let [command [script "demo" "--seconds" "100" "--edn"]
          process (.start (doto (ProcessBuilder. ^java.util.List command)
                            (.redirectOutput (io/file "/dev/null"))
                            (.redirectError (io/file "/dev/null"))))
          pid (.pid process)
          its-map (fn [] (some (fn [{:keys [id held]}] (when (some #(= pid (:pid %)) held) id))
                               ((requiring-resolve
                                 'bpfmap.exec/list) {:where "name=bpfmap_demo"})))]
      (try
        (let [id (fixture/eventually its-map)
              put (str "$bpfmap put " id " 100000 1")]
          (is (some? id))
          (with-open [m ^Closeable (bpf/open id)]
            (on-terminal [160 20]
              (type-line put)
              (let [lines (wait-for (line? #"Write an entry of it\? \[y/N\]"))]
                (is
                 (some
                  #(re-find (re-pattern (str "is in use by 2 processes \\(.*\\["
                                             pid
                                             "\\].*\\) and 1 program \\(bpfmap_demo\\[\\d+\\]\\)"))
                            %)
                  lines))
                (is (nil? (m 100000))))
              (type-line "n")
              (wait-for (line? #"^bpfmap: Nothing was changed"))
              (is (nil? (m 100000)))
              (clear)
              (type-line put)
              (wait-for (line? #"Write an entry of it\? \[y/N\]"))
              (type-line "yes")
              (wait-for (line? #"^100000  1  \(new\)"))
              (is (= 1 (m 100000)))
              (is (some #(str/includes? % "is in use by") (run-line (str put " < /dev/null")))
                  "without a terminal it is an error")
              (is (some #(str/includes? % "100000  2  (was 1)")
                        (run-line (str "$bpfmap put " id " 100000 2 --yes")))))))
        (finally (.destroy process))))))

;; --- an editor

(kernel-test edits-in-editor
  (testing "edit runs the editor of the environment, and writes what it saved"
    (with-open [m ^Closeable (bpf/create {:name "terminal_edit" :type :hash :key :u32 :value :u32
                                          :max-entries 1 :contents {7 1}})]
      (on-terminal [200 20]
        (let [line (str "$bpfmap edit " (:id (bpf/info m)) " 7 --yes --key-type u32"
                        " --value-type u32")]
          (is (some #{"7  5  (was 1)"}
                    (run-line (str "VISUAL= EDITOR=\"sed -i 's/:value 1/:value 5/'\" " line))))
          (is (= 5 (m 7)))
          (is (some #{"bpfmap: the editor ended with exit code 1; nothing was written"}
                    (run-line (str "VISUAL=false EDITOR=true " line))))
          (is (some #(str/includes? % "edit requires a terminal")
                    (run-line (str line " < /dev/null"))))
          (is (= 5 (m 7))))))))
