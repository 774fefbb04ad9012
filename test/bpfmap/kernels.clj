(ns bpfmap.kernels
  "Records the results of tests on other kernels, and writes doc/kernels.md.

  script/kernel-matrix runs the tests, and calls [[-main]] for each kernel. doc/kernels.edn keeps
  the newest result of each kernel and namespace:

      {\"6.1\" {bpfmap.core-test {:release \"6.1.0-57-cloud-amd64\", :date \"2026-11-30\",
                               :commit \"1a2b3c4\", :passed 24, :failed [\"e1-missing-key\"],
                               :skipped {\"d5-drains\" \"the reason\"}, :seconds 65}}}

  `:not-ended` stands in place of the outcomes if the namespace did not end in time."
  (:require [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (java.time LocalDate)))

(set! *warn-on-reflection* true)

(def ^:private data-file "doc/kernels.edn")
(def ^:private page-file "doc/kernels.md")

(def ^:private heading
  "# Kernels

This page shows the results of the kernel tests on other kernels than the one that bpfmap is
developed on. `script/kernel-matrix` writes it: see [Contributing](../CONTRIBUTING.md). Do not edit
it. The kernels are Debian's, in virtual machines with two processors that qemu emulates. A name
such as `6.12-arm64-16k` has the processor, x86-64 if there is none, and the size of a page, 4 KiB
if there is none.
")

(defn- version
  "Returns what kernels are ordered by: those of x86-64 by release, then those of other processors."
  [name]
  (let [[release & machine] (str/split name #"-")]
    (into (mapv parse-long (str/split release #"\.")) machine)))

(defn- add
  "Returns the sums of a kernel's results."
  [results]
  {:passed (reduce + (keep :passed results))
   :failed (reduce + (map #(count (:failed %)) results))
   :skipped (reduce + (map #(count (:skipped %)) results))
   :not-ended (count (filter :not-ended results))})

(defn- span
  "Returns the first and the last of some texts as one text."
  [texts]
  (let [texts (sort (distinct texts))]
    (if (next texts)
      (str (first texts) " to " (last texts))
      (str (first texts)))))

(defn- summary-row [[kernel results]]
  (let [{:keys [passed failed skipped not-ended]} (add (vals results))]
    (str "| " (str/join " | " [kernel (span (map :release (vals results)))
                               (span (map :date (vals results))) (count results)
                               passed failed skipped not-ended])
         " |\n")))

(defn- cell [{:keys [passed failed skipped not-ended] :as result}]
  (cond
    (nil? result) ""
    not-ended "did not end"
    :else (str/join ", " (cond-> [(str passed)]
                           (seq failed) (conj (str "**" (count failed) " failed**"))
                           (seq skipped) (conj (str (count skipped) " skipped"))))))

(defn- table [data kernels]
  (str "| namespace | " (str/join " | " kernels) " |\n"
       "|---|" (str/join (repeat (count kernels) "---|")) "\n"
       (str/join
        (for [ns (sort (distinct (mapcat keys (vals data))))]
          (str "| `" (str/replace-first (name ns) "bpfmap." "") "` | "
               (str/join " | " (map #(cell (get-in data [% ns])) kernels)) " |\n")))))

(defn- skips
  "Returns the rows of a kernel's skipped tests: a row for each reason."
  [results]
  (let [by-reason (reduce (fn [acc [reason test]] (update acc reason (fnil conj (sorted-set)) test))
                          (sorted-map)
                          (for [[ns {:keys [skipped]}] results
                                [test reasons] skipped
                                reason (str/split reasons #"; ")]
                            [reason (str (name ns) "/" test)]))]
    (str "| reason | tests |\n|---|---|\n"
         (str/join (for [[reason tests] by-reason]
                     (str "| " reason " | " (str/join "<br>" (map #(str "`" % "`") tests))
                          " |\n"))))))

(defn- failures [results]
  (str/join (for [[ns {:keys [failed not-ended]}] (sort results)
                  test (if not-ended ["did not end"] failed)]
              (str "- `" (name ns) "`: " (if not-ended test (str "`" test "`")) "\n"))))

(defn- section [[kernel results]]
  (let [failed (failures results)]
    (str "\n## " kernel "\n\n"
         (if (= "" failed) "No test failed.\n" (str "Failed:\n\n" failed))
         (if (some (comp seq :skipped) (vals results))
           (str "\nSkipped, in whole or in part:\n\n" (skips results))
           "\nNo test was skipped.\n"))))

(defn page
  "Returns the text of doc/kernels.md."
  [data]
  (let [data (into (sorted-map-by #(compare (version %1) (version %2))) data)]
    (str heading
         "\n| kernel | release | date | namespaces | passed | failed | skipped | did not end |\n"
         "|---|---|---|---|---|---|---|---|\n"
         (str/join (map summary-row data))
         "\nEach cell has the number of passed tests. An empty cell was not run.\n\n"
         (table data (keys data))
         (str/join (map section data)))))

(defn- text
  "Returns the data as EDN with a line for each result."
  [data]
  (str "{" (str/join "\n\n "
                     (for [[kernel results] (sort-by (comp version key) data)]
                       (str (pr-str kernel) "\n {"
                            (str/join "\n  " (for [[ns result] (sort results)]
                                               (str ns " " (pr-str result))))
                            "}")))
       "}\n"))

(defn- stamped
  "Returns the results of a file by namespace, with the release, the date and the commit."
  [file release commit]
  (into {}
        (for [line (str/split-lines (slurp file))
              :when (not (str/blank? line))
              :let [{:keys [namespace] :as result} (edn/read-string line)]]
          [namespace (into (array-map :release release :date (str (LocalDate/now)) :commit commit)
                           (dissoc result :namespace))])))

(defn -main
  "Records the results of a file. Exits with 1 if a test failed or did not end."
  [kernel release commit file]
  (let [results (stamped file release commit)
        data (cond-> (if (.exists (io/file data-file)) (edn/read-string (slurp data-file)) {})
               (seq results) (update kernel merge results))
        {:keys [passed failed skipped not-ended]} (add (vals results))]
    (spit data-file (text data))
    (spit page-file (page data))
    (println (format "%s: %d passed, %d failed, %d skipped, %d did not end, of %d namespaces"
                     kernel passed failed skipped not-ended (count results)))
    (System/exit (if (pos? (+ (long failed) (long not-ended) (if (empty? results) 1 0))) 1 0))))
