(ns bpfmap.english
  "Finds and counts odd constructions in English text: pages, docstrings, help and messages.

      (english/hits (slurp \"README.md\")) ;=> [{:line 12 :hit \"that of\" :text \"…\"} …]
      (english/rate (slurp \"README.md\")) ;=> 1.7"
  (:require [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def odd
  "The constructions to avoid. Each has a plain form: \"what is read\" is \"the result\", \"is no
  number\" is \"is not a number\", \"5 unless given\" is \"default: 5\", \"those that match\" is
  \"rows that match\"."
  (re-pattern (str "(?i)" (str/join "|" ["\\bwhat (?:is|has|was|goes|it)\\b"
                                         "\\bis no [a-z]+"
                                         "unless given"
                                         "whoever"
                                         "\\banew\\b"
                                         "\\bthat of\\b"
                                         "\\bthose (?:of|that)\\b"
                                         "\\bmeanwhile\\b"]))))

(def ^:const budget
  "The number of hits allowed in 1,000 words."
  3.0)

(defn prose
  "Returns the text of a Markdown page with its code blocks blanked out. Line numbers stay the
  same."
  [page]
  (str/replace page #"(?ms)^```.*?^```" #(apply str (repeat (count (filter #{\newline} %)) "\n"))))

(defn word-count
  "Returns the number of words in a text."
  [text]
  (count (re-seq #"[A-Za-z][\w'-]*" text)))

(defn- line-of [text index]
  (inc (count (filter #{\newline} (subs text 0 index)))))

(defn hits
  "Returns the odd constructions in a text, in order: `[{:line :hit :text} …]`. A construction may
  span two lines."
  [text]
  (let [flat (str/replace text "\n" " ")
        lines (str/split-lines text)
        matcher (re-matcher odd flat)]
    (loop [found []]
      (if (.find matcher)
        (let [line (line-of text (.start matcher))]
          (recur (conj found {:line line :hit (.group matcher) :text (nth lines (dec line))})))
        found))))

(defn rate
  "Returns the number of odd constructions per 1,000 words of a text."
  [text]
  (/ (* 1000.0 (count (hits text))) (max 1 (word-count text))))

;; --- sources

(def ^:private token
  "Regular expressions, strings, characters and comments of Clojure code. Only strings have a
  group."
  #"(?s)#\"[^\"\\]*+(?:\\.[^\"\\]*+)*+\"|(\"[^\"\\]*+(?:\\.[^\"\\]*+)*+\")|\\.|;[^\n]*+")

(defn strings
  "Returns the string literals of Clojure code, in order: `[{:line :text} …]`.

      (strings \"(str \\\"a b\\\" x)\") ;=> [{:line 1 :text \"a b\"}]"
  [code]
  (let [matcher (re-matcher token code)]
    (loop [found []]
      (if (.find matcher)
        (recur (if-let [literal (.group matcher 1)]
                 (conj found {:line (line-of code (.start matcher))
                              :text (subs literal 1 (dec (count literal)))})
                 found))
        found))))

(def ^:private no-verb
  "Words that end in s, but that are not the verb of a first line."
  #{"As" "Is" "Its" "This" "Whose" "Names" "Types" "Kinds" "Options" "Maps" "Rows" "Words" "Flags"
    "Classes" "Facts" "Values" "Keys" "Fields" "Always" "Unless" "Besides" "Perhaps"})

(def ^:private no-beginning
  "Words that the first line of no docstring begins with."
  #{"What" "Whether" "How" "Whose" "Where" "That" "As" "Is" "This" "Its" "Who" "Why" "When" "Which"
    "Whatever" "Whoever"})

(defn first-line-problem
  "Returns what is wrong with the first line of a docstring, or nil. `verb?` is true if the line
  must begin with a verb, as for functions and macros.

      (first-line-problem \"What it has\" true) ;=> \"must begin with a verb in the third person\""
  [doc verb?]
  (let [[line] (str/split-lines (str doc))
        word (first (re-seq #"[\w'-]+" (str line)))]
    (cond
      (< 80 (count line)) "must have at most 80 columns"
      (not (re-find #"[.:]$" line)) "must be one sentence that ends with a full stop or a colon"
      (re-find #"(?<!\b(?:e\.g|i\.e|etc|vs))[.?!] +[A-Z]" line) "must be one sentence"
      (contains? no-beginning word) (str "must not begin with " word)
      (and verb? (or (contains? no-verb word) (not (str/ends-with? (str word) "s"))))
      "must begin with a verb in the third person")))
