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
