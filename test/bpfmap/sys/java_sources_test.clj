(ns bpfmap.sys.java-sources-test
  "The comments of the Java code are in plain English, the tests of the core are named after its
  classes, and nothing of the core is public without need."
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
              :when (not= "java_sources" tested)]
        (is (classes (class-name (str tested))) (str file))))))

(defn- public-members
  "Returns the names of the public methods, constructors and fields in a source of the core.

  Without overrides, which cannot be less visible."
  [source]
  (map second
       (re-seq #"(?m)^    public (?:[\w\[\]<>, ]+ )?(\w+)(?:\(| =|;)"
               (str/replace source #"@Override\n    public" "@Override"))))

(deftest core-members-needed
  (testing "the core has no public member that neither Clojure nor bpfmap.maps uses"
    (let [clojure (map slurp
                       (for [dir ["src" "test" "bench" "dev"], ^File file (file-seq (io/file dir))
                             :when (str/ends-with? (.getName file) ".clj")]
                         file))
          facade (map slurp (.listFiles (io/file "java/bpfmap/maps")))]
      (doseq [^File file (.listFiles (io/file "java/bpfmap/sys"))
              :let [class (str/replace (.getName file) ".java" "")
                    mentions
                    (fn [texts] (filter #(re-find (re-pattern (str "\\b" class "\\b")) %) texts))
                    in-clojure (mentions clojure)
                    in-facade (mentions facade)]
              member (public-members (slurp file))
              :let [new? (= class member)
                    call (re-pattern (if new?
                                       (str "\\(" class "\\.[\\s)]")
                                       (str "\\b" class "/" member "\\b|\\(\\.-?" member "\\b")))
                    java-call
                    (re-pattern (if new? (str "new " class "\\b") (str "\\b" member "\\b")))]]
        (is (or (some #(re-find call %) in-clojure)
                (some #(re-find java-call %) in-facade))
            (str class "." member " is public"))))))

(deftest package-names
  (testing "no Clojure namespace has the name of a Java package, whose classes would be mixed"
    (let [packages (set (for [^File file (sources)]
                          (second (re-find #"(?m)^package ([\w.]+);" (slurp file)))))]
      (is (= #{"bpfmap.sys" "bpfmap.maps"} packages))
      (doseq [package packages, suffix ["" ".clj" ".cljc"]]
        (is (not (.exists (io/file (str "src/" (str/replace package "." "/") suffix)))))))))
