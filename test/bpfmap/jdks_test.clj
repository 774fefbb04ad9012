(ns bpfmap.jdks-test
  "The page of results on other JDKs, and the command that runs them."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.jdks :as jdks]
            [clojure.edn :as edn]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]]))

(set! *warn-on-reflection* true)

(deftest page-of-results
  (testing "the page has a row for each JDK, failures and skips"
    (let [lines (str/split-lines
                 (jdks/page {26 {:version "26.0.2" :vendor "Debian" :release "6.18.44"
                                 :date "2026-11-30" :commit "1a2b3c4" :namespaces 2 :passed 20
                                 :failed ["core-test/reads"] :skipped {"core-test/takes" "row a"}}
                             27 {:version "27" :vendor "Debian" :release "6.18.44"
                                 :date "2026-11-30" :commit "1a2b3c4" :namespaces 2 :passed 22
                                 :failed [] :skipped {} :selected ["core-test" "memory-test"]}
                             28 {:version "28" :vendor "Debian" :release "6.18.44"
                                 :date "2026-11-30" :commit "1a2b3c4" :namespaces 2 :passed 22
                                 :failed [] :skipped {} :partial true}
                             25 {:version "25.0.3" :vendor "Temurin" :release "6.18.44"
                                 :date "2026-11-30" :commit "1a2b3c4" :namespaces 2 :passed 22
                                 :failed [] :skipped {}}}))]
      (is (= ["| 25 | 25.0.3 | Temurin | 6.18.44 | 2026-11-30 | 2 | 22 | 0 | 0 |"
              "| 26 | 26.0.2 | Debian | 6.18.44 | 2026-11-30 | 2 | 20 | 1 | 1 |"
              "| 27 | 27 | Debian | 6.18.44 | 2026-11-30 | 2 | 22 | 0 | 0 |"
              "| 28 | 28 | Debian | 6.18.44 | 2026-11-30 | 2 | 22 | 0 | 0 |"]
             (filter #(re-find #"^\| \d" %) lines)))
      (is (= ["## JDK 26" "- failed: `core-test/reads`" "- skipped: `core-test/takes`: row a"
              "## JDK 27" "- ran only: `core-test`, `memory-test`"
              "## JDK 28" "- ran some namespaces only, whose names were not kept"]
             (filter #(re-find #"^(## J|- )" %) lines))))))

(deftest page-is-current
  (testing "doc/jdks.md is the page of doc/jdks.edn"
    (is (= (jdks/page (edn/read-string (slurp "doc/jdks.edn"))) (slurp "doc/jdks.md")))))

(deftest command-line
  (testing "the command prints its help, and rejects a folder without a JDK"
    (let [{:keys [exit out]} (fixture/run ["script/jdk-matrix" "--help"])]
      (is (= 0 exit))
      (is (str/includes? out "script/jdk-matrix JAVA_HOME...")))
    (let [{:keys [exit err]} (fixture/run ["script/jdk-matrix" "/no/such/jdk"])]
      (is (= [1 "jdk-matrix: there is no JDK in /no/such/jdk\n"] [exit err])))))
