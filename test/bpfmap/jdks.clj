(ns bpfmap.jdks
  "Records the results of tests on other JDKs, and writes doc/jdks.md.

  script/jdk-matrix runs the tests on each JDK, and calls [[-main]] there. doc/jdks.edn keeps the
  newest run of each JDK:

      {26 {:version \"26.0.2\", :vendor \"Debian\", :release \"6.18.44\", :date \"2026-11-30\",
           :commit \"1a2b3c4\", :namespaces 130, :passed 900, :failed [\"core-test/e1\"],
           :skipped {\"core-test/e2\" \"the reason\"}, :selected [\"core-test\"]}}

  `:selected` has the namespaces of a run that had only some, and `:partial` is true if they were
  not kept."
  (:require [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (java.time LocalDate)))

(set! *warn-on-reflection* true)

(def ^:private data-file "doc/jdks.edn")
(def ^:private page-file "doc/jdks.md")

(def ^:private heading
  "# JDKs

This page shows on which JDKs the tests ran. `script/jdk-matrix` writes it: see
[Contributing](../CONTRIBUTING.md#run-tests-on-other-jdks). Do not edit it. A run has all tests that
are not marked `^:volume`, or those of the namespaces that are listed below.

| JDK | version | vendor | kernel | date | namespaces | passed | failed | skipped |
|---|---|---|---|---|---|---|---|---|
")

(defn- row [[jdk {:keys [version vendor release date namespaces passed failed skipped]}]]
  (str "| " (str/join " | " [jdk version vendor release date namespaces passed (count failed)
                             (count skipped)])
       " |\n"))

(def ^:private columns 100)

(defn- wrapped
  "Returns a list item of words, in lines that are not too long."
  [words]
  (str/join "\n  " (reduce (fn [lines word]
                             (let [line (str (peek lines) " " word)]
                               (if (< (- columns 2) (count line))
                                 (conj lines word)
                                 (conj (pop lines) line))))
                           ["-"]
                           words)))

(defn- notes [[jdk {:keys [failed skipped selected] partial? :partial}]]
  (when (or (seq failed) (seq skipped) (seq selected) partial?)
    (str "\n## JDK " jdk "\n\n"
         (when partial? "- ran some namespaces only, whose names were not kept\n")
         (when (seq selected)
           (str (wrapped (into ["ran" "only:"]
                               (concat (map #(str "`" % "`,") (butlast selected))
                                       [(str "`" (last selected) "`")])))
                "\n"))
         (str/join (for [test failed] (str "- failed: `" test "`\n")))
         (str/join (for [[test reason] (sort skipped)]
                     (str "- skipped: `" test "`: " reason "\n"))))))

(defn page
  "Returns the text of doc/jdks.md."
  [data]
  (let [data (sort data)]
    (str heading (str/join (map row data)) (str/join (keep notes data)))))

(defn- text
  "Returns the data as EDN with a line for each JDK."
  [data]
  (str "{" (str/join "\n " (for [[jdk run] (sort data)] (str jdk " " (pr-str run)))) "}\n"))

(defn- run-of
  "Returns the sums of the results of namespaces, and their names if they are not all."
  [results whole?]
  (let [short-name #(str/replace-first (str %) "bpfmap." "")
        of (fn [namespace test] (str (short-name namespace) "/" test))]
    {:selected (when-not whole? (vec (sort (map (comp short-name :namespace) results))))
     :namespaces (count results)
     :passed (reduce + (map :passed results))
     :failed (vec (for [{:keys [namespace failed]} results, test failed] (of namespace test)))
     :skipped (into (sorted-map)
                    (for [{:keys [namespace skipped]} results, [test reason] skipped]
                      [(of namespace test) reason]))}))

(defn -main
  "Records the results of a file, for the JDK that runs this; `extent` is whole or selected. Exits
  with 1 if a test failed."
  [commit file extent]
  (let [results (map edn/read-string (remove str/blank? (str/split-lines (slurp file))))
        {:keys [failed passed skipped namespaces] :as run} (run-of results (= "whole" extent))
        about (array-map :version (System/getProperty "java.version")
                         :vendor (System/getProperty "java.vendor")
                         :release (System/getProperty "os.version")
                         :date (str (LocalDate/now))
                         :commit commit)
        jdk (.feature (Runtime/version))
        data (assoc (if (.exists (io/file data-file)) (edn/read-string (slurp data-file)) {})
                    jdk (into about run))]
    (spit data-file (text data))
    (spit page-file (page data))
    (println (format "JDK %d: %d passed, %d failed, %d skipped, of %d namespaces"
                     jdk passed (count failed) (count skipped) namespaces))
    (System/exit (if (and (seq results) (empty? failed)) 0 1))))
