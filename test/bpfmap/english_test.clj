(ns bpfmap.english-test
  "The pages are in plain English: few odd constructions, and short lines."
  (:require [bpfmap.english :as english]
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
  (for [^File file (concat [(io/file "README.md") (io/file "CHANGELOG.md")]
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
