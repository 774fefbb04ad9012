(ns ^:volume bpfmap.contributing-test
  "CONTRIBUTING.md names files, definitions and tests that exist."
  (:require [bpfmap.test-runner :as runner]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]]))

(set! *warn-on-reflection* true)

(def ^:private page (delay (slurp "CONTRIBUTING.md")))

(def ^:private text
  "The page as one line, without its blocks of code."
  (delay (str/replace (str/replace @page #"(?ms)^```.*?^```" "") #"\s+" " ")))

(defn- spans
  "Returns the code spans of a text."
  [text]
  (map second (re-seq #"`([^`]+)`" text)))

(def ^:private path
  "A path in the checkout, as a code span has it."
  #"\.?[\w-]+(?:/[\w.-]+)*/?(?:\.(?:clj|edn|md|yml))?")

(defn- path?
  "Returns true if a code span is a path: it has a slash or ends as a file."
  [span]
  (and (re-matches path span)
       (or (str/ends-with? span "/")
           (re-find #"\.(clj|edn|md)$|^(bin|script|\.ci|resources)/" span))))

(deftest paths-exist
  (testing "every path of the page exists"
    (let [paths (filter path? (spans @text))]
      (is (< 40 (count paths)))
      (doseq [path paths]
        (is (.exists (io/file path)) path)
        (is (= (str/ends-with? path "/") (.isDirectory (io/file path))) path)))))

(deftest definitions-exist
  (testing "where the page says `name` in `file`, the file defines the name"
    (let [found (for [[_ names file] (re-seq #"((?:`[^` ]+`(?:, | and )?)+) in `([^`]+\.clj)`"
                                             @text)
                      name (spans names)]
                  [name file])]
      (is (< 12 (count found)))
      (doseq [[name file] found]
        (is (re-find (re-pattern (str "\\((?:def[a-z-]*|kernel-test|deftest) (?:\\^\\S+ )*"
                                      (java.util.regex.Pattern/quote name) "\\s"))
                     (slurp file))
            (str name " in " file))))))

(deftest test-commands-select-tests
  (testing "every word of a bin/test command selects tests"
    (let [commands (filter #(re-find #"^bin/test " %)
                           (concat (spans @text) (re-seq #"(?m)^bin/test [^\s#]+" @page)))]
      (is (< 6 (count commands)))
      (doseq [command commands
              word (rest (str/split command #" "))
              :let [[_ test-word] (str/split word #"/" 2)
                    selected (map first (@#'runner/namespaces [word]))]]
        (is (seq selected) command)
        (when test-word
          (is (some (fn [ns]
                      (str/includes? (slurp (str "test/" (str/replace (munge (str ns)) "." "/")
                                                 ".clj"))
                                     (str "-test " test-word)))
                    selected)
              word))))))
