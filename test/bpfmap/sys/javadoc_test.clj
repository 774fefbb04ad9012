(ns bpfmap.sys.javadoc-test
  "The comments of the Java core are in plain English, and its tests are named after its classes."
  (:require [bpfmap.english :as english]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io File)))

(set! *warn-on-reflection* true)

(defn- sources []
  (for [^File file (file-seq (io/file "java"))
        :when (str/ends-with? (.getName file) ".java")]
    file))

(defn- javadocs
  "Returns the Javadoc comments of a source as text, without the asterisks."
  [file]
  (for [[_ text] (re-seq #"(?s)/\*\*(.*?)\*/" (slurp file))]
    (str/trim (str/replace text #"(?m)^[ \t]*\* ?" ""))))

(deftest first-words
  (testing "no Javadoc begins with a question word, and each first sentence ends"
    (doseq [file (sources), text (javadocs file)]
      (is (not (re-find #"^(What|Whether|How|Whose|Where|That|As|Who|Says|Tells|Has)\b" text))
          (str file ": " text))
      (is (re-find #"^[A-Z{@]" text) (str file ": " text))
      (is (or (str/starts-with? text "@") (re-find #"\.(\s|$)" text)) (str file ": " text)))))

(deftest plain-comments
  (testing "the comments stay within the budget of odd constructions"
    (let [text (str/join "\n" (mapcat (fn [file]
                                        (concat (javadocs file)
                                                (map second (re-seq #"// (.*)" (slurp file)))))
                                      (sources)))]
      (is (< 1000 (english/word-count text)))
      (is (<= (english/rate text) english/budget)
          (str/join "\n" (map (juxt :hit :text) (english/hits text)))))))

(deftest tests-named-after-classes
  (testing "each test of the core is named after the class that it tests"
    (let [class-name #(str/join (map str/capitalize (str/split % #"_")))
          classes (set (map #(str/replace (.getName ^File %) ".java" "") (sources)))]
      (doseq [^File file (.listFiles (io/file "test/bpfmap/sys"))
              :let [[_ tested] (re-matches #"(.*)_test\.clj" (.getName file))]
              :when (not= "javadoc" tested)]
        (is (classes (class-name (str tested))) (str file))))))
