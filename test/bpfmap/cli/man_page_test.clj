(ns bpfmap.cli.man-page-test
  "The manual page is made from the table of commands, and man reads it without a warning."
  (:require [bpfmap.cli.man-page :as man-page]
            [bpfmap.exec.commands :as commands]
            [bpfmap.fixture :as fixture]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]]))

(set! *warn-on-reflection* true)

(def ^:private file "doc/bpfmap.1")

(deftest page-is-made-from-the-table
  (testing "to write it again: (spit \"doc/bpfmap.1\" (bpfmap.cli.man-page/page))"
    (is (= (man-page/page) (slurp file))))
  (testing "it has all commands"
    (let [page (slurp file)]
      (doseq [{:keys [name]} commands/commands]
        (is (str/includes? page (str ".SS \"bpfmap " (str/replace name "-" "\\-"))) name)))))

(deftest page-is-plain-roff
  (testing "every line is a known request or begins with neither a point nor a quote"
    (doseq [line (str/split-lines (slurp file))]
      (is (or (re-find #"^\.(TH|SH|SS|TP|PP|nf|fi|RS|RE|\\\")( |$)" line)
              (re-find #"^[^.']" line))
          line)
      (is (re-matches #"\p{ASCII}*" line)))))

(deftest man-reads-it
  (if-not (and (fixture/executable "man") (fixture/executable "groff"))
    (println "  man is not there: its warnings are not looked at")
    (let [{:keys [exit out err]}
          (fixture/run ["man" "--warnings" "-E" "ascii" "-l" file]
                       :env {"MANWIDTH" "80" "LC_ALL" "C" "MANPAGER" "cat"})]
      (is (= [0 ""] [exit err]))
      (is (re-find #"(?m)^ +--limit N$" out))
      (is (re-find #"(?m)^ +bpfmap dump flows --where 'bytes>1M' --sort -bytes --limit 10$" out)))))
