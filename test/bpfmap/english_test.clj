(ns bpfmap.english-test
  "Pages, docstrings and messages are in plain English: few odd constructions, and short lines."
  (:require [bpfmap.cli.main :as main]
            [bpfmap.english :as english]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.options :as options]
            [bpfmap.fixture :as fixture]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io File)))

(set! *warn-on-reflection* true)

(deftest counter-finds-hits
  (testing "the counter finds the phrases that it searches for"
    (is (= [] (english/hits "It returns the value, or nil if there is none.")))
    (is (= [{:line 2 :hit "that of" :text "that"} {:line 4 :hit "What is" :text "What is read"}]
           (english/hits "The type is\nthat\nof the map.\nWhat is read")))
    (testing "code blocks of a page do not count"
      (is (= [5] (map :line (english/hits (english/prose "a\n```\nwhat is it\n```\nwhoever\n"))))))
    (is (= 250.0 (english/rate "not what it says")))))

(defn- pages []
  (for [^File file (concat (map io/file ["README.md" "CHANGELOG.md" "CONTRIBUTING.md"])
                           (sort (.listFiles (io/file "doc"))))
        :when (str/ends-with? (.getName file) ".md")]
    file))

(deftest pages-within-budget
  (testing "every page stays within the budget of phrases"
    (is (< 10 (count (pages))))
    (doseq [page (pages)
            :let [text (english/prose (slurp page))]
            :when (<= 300 (english/word-count text))]
      (is (<= (english/rate text) english/budget)
          (str "\n" (str/join "\n" (for [{:keys [line hit text]} (english/hits text)]
                                     (str page ":" line ": \"" hit "\" in: " text))))))))

(deftest short-page-lines
  (testing "every line of the pages is short enough"
    (doseq [^File page (pages)
            [n line] (map-indexed vector (str/split-lines (english/prose (slurp page))))
            ;; Rows of tables and lines that are one link cannot be broken.
            :when (not (re-find #"^(\||<!--)|^\s*\S*$" line))]
      (is (>= 100 (count line)) (str page ":" (inc n))))))

(defn- anchors
  "Returns the anchors of a page's headings, as GitHub makes them."
  [page]
  (set (for [[_ heading] (re-seq #"(?m)^#+ (.*)$" (english/prose (slurp page)))]
         (-> (str/lower-case heading)
             (str/replace #"[^\p{L}\p{N} _-]" "")
             (str/replace " " "-")))))

(deftest links-resolve
  (testing "every link of the pages resolves"
    (doseq [^File page (pages)
            [_ target anchor] (re-seq #"\]\(([^)#\s]*)(?:#([^)\s]*))?\)"
                                      (english/prose (slurp page)))
            :when (not (str/starts-with? target "http"))
            :let [file
                  (if (= "" target)
                    page
                    (io/file (.getParentFile (.getAbsoluteFile page)) target))]]
      (testing (str page ": " target "#" anchor)
        (is (.exists ^File file))
        (when anchor
          (is (contains? (anchors file) anchor)))))))

(deftest cljdoc-has-all-pages
  (testing "cljdoc.edn lists every page"
    (is (= (set (map #(.getPath ^File %) (pages)))
           (set (keep :file
                      (filter map?
                              (tree-seq coll? seq (edn/read-string (slurp "doc/cljdoc.edn"))))))))))

;; --- docstrings and messages

(defn- sources
  "Returns the namespaces of src with their files: `[{:ns :file :folder} …]`."
  []
  (for [^File file (sort (file-seq (io/file "src")))
        :when (str/ends-with? (.getName file) ".clj")
        :let [[_ ns-name] (re-find #"\(ns (?:\^\S+ )?(\S+)" (slurp file))]
        :when (and ns-name (not (fixture/lacking (symbol ns-name))))]
    {:ns (symbol ns-name) :file file :folder (.getParent file)}))

(defn- documented
  "Returns the documented vars of a namespace, private ones too, and the namespace itself."
  [ns-name]
  (require ns-name)
  (into [(the-ns ns-name)]
        ;; What deftype and proxy make has no docstring of its own.
        (remove #(re-find #"^(->|map->)[A-Z]|\.proxy\$" (name (symbol %))))
        (filter #(:doc (meta %)) (sort-by #(:line (meta %)) (vals (ns-interns ns-name))))))

(defn- function? [v]
  (or (:macro (meta v)) (fn? @v) (instance? clojure.lang.MultiFn @v)))

(deftest first-line-checker
  (testing "the checker of first lines accepts verbs and rejects everything else"
    (doseq [line ["Returns true if it does." "Opens a map, then:"
                  "Throws `:busy`, e.g. for arenas."]]
      (is (nil? (english/first-line-problem line true)) line))
    (doseq [line ["What it has." "Whether it does." "The kernel's name." "A map." "Names of fields."
                  "Returns true if it does" "Returns x. Throws y."
                  (str "Returns " (apply str (repeat 80 "x")) ".")]]
      (is (some? (english/first-line-problem line true)) line))
    (is (nil? (english/first-line-problem "Names of fields, by number." false)))
    (is (some? (english/first-line-problem "How fields are named." false)))))

(deftest docstring-first-lines
  (testing "the first line of every docstring is a short sentence, of functions with a verb"
    (let [nss (map :ns (sources))]
      (is (< 100 (count nss)))
      (doseq [ns-name nss
              v (rest (documented ns-name))
              :let [{:keys [doc line file]} (meta v)]]
        (is (nil? (english/first-line-problem doc (function? v)))
            (str file ":" line ": " (symbol v) ": " (first (str/split-lines doc))))))))

(defn- docstrings
  "Returns the docstrings below a folder: `[{:file :line :text} …]`."
  [{:keys [ns file]}]
  (for [v (documented ns)]
    {:file file :line (:line (meta v) 1) :text (:doc (meta v))}))

(defn- messages
  "Returns the string literals of a file that are text, and no docstring."
  [{:keys [ns file]}]
  (let [docs (set (map (comp :doc meta) (documented ns)))]
    (for [{:keys [text] :as string} (english/strings (slurp file))
          :when (and (str/includes? text " ")
                     (not (docs (edn/read-string (str \" text \")))))]
      (assoc string :file file))))

(defn- check-budget
  "Asserts that texts of one folder stay within the budget."
  [folder texts]
  (let [odd (for [{:keys [file line text]} texts
                  found (english/hits text)]
              (str file ":" (+ (long line) (long (:line found)) -1) ": \"" (:hit found) "\" in: "
                   (str/trim (:text found))))
        words (reduce + (map (comp english/word-count :text) texts))]
    (is (<= (/ (* 1000.0 (count odd)) (max 1 words)) english/budget)
        (str "\n" folder ": " (count odd) " in " words " words\n" (str/join "\n" odd)))))

(deftest strings-finds-literals
  (testing "the scanner finds strings, and skips characters, comments and regular expressions"
    (is (= [{:line 1 :text "a b"} {:line 3 :text "c \\\" d"}]
           (english/strings "(str \"a b\" \\\" #\"no\" ; \"no\"\n\n \"c \\\" d\")")))))

(deftest docstrings-within-budget
  (testing "the docstrings of every folder stay within the budget of phrases"
    (doseq [[folder files] (group-by :folder (sources))]
      (check-budget folder (mapcat docstrings files)))))

(deftest messages-within-budget
  (testing "the messages of every folder stay within the budget of phrases"
    (doseq [[folder files] (group-by :folder (sources))]
      (check-budget folder (mapcat messages files)))))

(deftest public-names-only
  (testing "messages and public docstrings name no internal namespace"
    (doseq [{:keys [ns file] :as source} (sources)]
      (doseq [{:keys [line text]} (messages source)]
        (is (not (re-find #"bpfmap\.impl" text)) (str file ":" line))
        (testing "nor do messages name a page, which the jar lacks"
          (is (not (re-find #"\bdoc/[a-z-]+\.md" text)) (str file ":" line))))
      (when-not (:no-doc (meta (the-ns ns)))
        (doseq [v (documented ns) :when (not (:private (meta v)))
                :let [{:keys [doc line]} (meta v)]]
          (is (not (str/includes? doc "bpfmap.impl")) (str file ":" line)))))))

;; --- help of the command line

(def ^:private imperatives
  "The verbs with which commands and flags may begin. A new one is added here on purpose."
  #{"Change" "Continue" "Count" "Create" "Delete" "Detach" "Dump" "Hold" "List" "Load" "Look" "Make" "Move" "Pin"
    "Print" "Remove" "Restore" "Save" "Serve" "Show" "Start" "Take" "Watch" "Write"})

(defn- first-word [text]
  (re-find #"^\S+" text))

(deftest command-lines
  (testing "the line of a command begins with an imperative verb and is short"
    (doseq [{:keys [name doc]} commands/commands]
      (testing name
        (is (contains? imperatives (first-word doc)) doc)
        (is (<= (count doc) 60) doc)
        (is (not (str/ends-with? doc ".")) doc)))))

(deftest option-lines
  (testing "the line of a flag begins with an imperative verb, any other names the value"
    (doseq [[owner k doc] (concat (for [[k {:keys [doc]}] options/options] ["options" k doc])
                                  (for [{:keys [name docs]} commands/commands, [k doc] docs]
                                    [name k doc]))
            :let [word (first-word doc)]]
      (testing (str owner " " k ": " doc)
        (is (re-find #"^[A-Z]" word))
        (is (not (str/ends-with? doc ".")))
        (is (= (nil? (:takes (options/options k))) (contains? imperatives word)))
        (is (not (contains? #{"A" "An" "The" "Only" "By" "What" "How" "If" "As" "This" "These"}
                            word)))))))

(deftest help-within-budget
  (testing "the help of all commands stays within the budget of phrases"
    (check-budget "help" (for [name (cons nil (map :name commands/commands))]
                           {:file (str "bpfmap help " name) :line 1
                            :text (with-out-str (main/run (into ["help"] (when name [name]))))}))))
