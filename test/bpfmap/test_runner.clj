(ns bpfmap.test-runner
  "Runs the tests and closes with one line: `N passed, N failed, N skipped`, counted in tests.

      bin/clj -M:test                       all of them
      bin/clj -M:test core codec            the namespaces whose name contains a word
      bin/clj -M:test core-test/e1-missing  the tests of those namespaces whose name
                                            contains the word behind the slash
      bin/clj -M:test --needs core          lists what the tests there need of a kernel, and
                                            does not run them

  Exits with 1 when a test failed, when none ran, or, if the environment
  variable CI is set and not \"false\", when one was skipped. Warns of a test
  that passed without an assertion.

  A run of all of them also fails when a promised behaviour has no test, and
  writes doc/conformance.md when none failed and none was skipped.

  If the property bpfmap.results names a file, appends a line of EDN for each
  namespace: its name, how many tests passed, the names of those that failed,
  and of those that were skipped with the reason."
  (:require [bpfmap.conformance :as conformance]
            [bpfmap.fixture :as fixture]
            [bpfmap.since :as since]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :as t]
            [clojure.test.check.clojure-test :as check])
  (:import (java.io File)))

(set! *warn-on-reflection* true)

(defn- parse-word
  "Returns [namespace-word test-word] of an argument; test-word is nil without a slash."
  [word]
  (str/split word #"/" 2))

(defn- test-words
  "Returns the words that select tests of a namespace, or nil if the namespace is not asked for.
  The empty string selects every test."
  [ns-name words]
  (if (empty? words)
    [""]
    (seq (for [[ns-word test-word] (map parse-word words)
               :when (str/includes? ns-name ns-word)]
           (or test-word "")))))

(defn- namespaces
  "Returns [namespace test-words] for each namespace that the arguments ask for."
  [words]
  (let [root (io/file "test")]
    (for [^File file (sort (file-seq root))
          :let [path (str (.relativize (.toPath root) (.toPath file)))]
          :when (str/ends-with? path "_test.clj")
          :let [ns-name (-> path
                            (str/replace #"\.clj$" "")
                            (str/replace "/" ".")
                            (str/replace "_" "-"))
                selected (test-words ns-name words)]
          :when selected]
      [(symbol ns-name) selected])))

(def ^:private slow "Seconds above which a test's time is said." 3.0)

(defn- seconds-since [begun]
  (/ (- (System/nanoTime) (long begun)) 1e9))

(defn- run-namespace
  "Runs the tests of a namespace whose name contains one of the words.
  Returns var to :passed, :failed or :skipped."
  [ns words]
  (let [outcomes (atom {})
        current (atom nil)
        begun (atom nil)
        assertions (atom 0)
        failed! (fn [] (swap! outcomes assoc (or @current ns) :failed))
        report t/report]
    (binding [check/*report-completion* false
              t/report (fn [m]
                         (case (:type m)
                           :begin-test-var (do (reset! current (:var m))
                                               (reset! assertions 0)
                                               (reset! begun (System/nanoTime))
                                               (swap! outcomes assoc (:var m) :passed))
                           :end-test-var (let [seconds (seconds-since @begun)]
                                           (when (and (zero? @assertions)
                                                      (not (@fixture/skips (:var m))))
                                             (println "WARNING" (:name (meta (:var m)))
                                                      "has no assertion"))
                                           (when (< slow seconds)
                                             (println
                                              (format "  %.1f s %s" seconds
                                                      (:name (meta (:var m)))))))
                           :pass (swap! assertions inc)
                           (:fail :error) (do (swap! assertions inc) (failed!))
                           nil)
                         (report m))]
      (if (= [""] words)
        (t/test-ns ns)
        (let [selected? (fn [test] (some #(str/includes? (name (symbol test)) %) words))
              tests (filter #(and (:test (meta %)) (selected? %)) (vals (ns-interns ns)))]
          (t/test-vars (sort-by (comp :line meta) tests)))))
    (into {}
          (map (fn [[test outcome]]
                 [test (if (and (= :passed outcome) (@fixture/skips test)) :skipped outcome)]))
          @outcomes)))

(defn- leave-out!
  "Has some tests of a namespace not run: those that are marked :volume if the property
  bpfmap.volume is \"false\", and those that need no kernel if bpfmap.kernel is \"only\"."
  [ns]
  (let [off? (fn [property value] (= value (System/getProperty property)))
        out? (fn [{:keys [volume kernel]}]
               (or (and volume (off? "bpfmap.volume" "false"))
                   (and (not kernel) (off? "bpfmap.kernel" "only"))))]
    (doseq [test (vals (ns-interns ns)) :when (out? (meta test))]
      (alter-meta! test dissoc :test))))

(defn- run-if-possible
  "Runs the tests of a namespace; one whose library is missing counts as one test that was skipped."
  [ns words]
  (if-let [reason (fixture/lacking ns)]
    (let [stand-in (with-meta ns {:name ns})]
      (swap! fixture/skips assoc stand-in reason)
      {stand-in :skipped})
    (do (require ns)
        (leave-out! ns)
        (run-namespace ns words))))

(def ^:private conformance-page "doc/conformance.md")

(defn- skips-fail?
  "Returns true if a skipped test fails the run, by the value of the environment variable CI."
  [ci]
  (not (contains? #{nil "" "false"} ci)))

(defn- host []
  (let [[release arch] (str/split (str/trim (:out (fixture/run ["uname" "-rm"]))) #" ")]
    {:release release :arch arch :jdk (.feature (Runtime/version))}))

(defn- promises
  "What the outcomes of all tests say of the promised behaviours: further outcomes. Writes the
  page that lists them."
  [outcomes]
  (let [outcomes (update-keys outcomes symbol)
        {:keys [failures warnings]} (conformance/judge @conformance/promised outcomes)]
    (doseq [warning warnings]
      (println "WARNING" warning))
    (when (and (empty? failures) (every? #{:passed} (vals outcomes)))
      (let [text (conformance/page @conformance/promised outcomes (host))]
        (when-not (= text (when (.exists (io/file conformance-page)) (slurp conformance-page)))
          (spit conformance-page text)
          (println "Wrote" conformance-page))))
    (zipmap failures (repeat :failed))))

(defn- test-name [test]
  (str (:name (meta test))))

(defn- result
  "Returns the outcomes of a namespace as data."
  [ns outcomes seconds]
  (let [tests (fn [outcome] (keep (fn [[test o]] (when (= outcome o) test)) outcomes))]
    (array-map :namespace ns
               :passed (count (tests :passed))
               :failed (vec (sort (map test-name (tests :failed))))
               :skipped (into (sorted-map)
                              (map (juxt test-name @fixture/skips))
                              (tests :skipped))
               :seconds (Math/round (double seconds)))))

(defn- print-result
  "Prints the line of a namespace, and appends its result to the file that bpfmap.results names."
  [{:keys [namespace passed failed skipped] :as result} seconds]
  (println (format "  %s: %d passed, %d failed, %d skipped, %.1f s"
                   namespace passed (count failed) (count skipped) seconds))
  (flush)
  (when-let [file (System/getProperty "bpfmap.results")]
    (spit file (str (pr-str result) "\n") :append true)))

(defn- run
  "Runs the tests that the arguments ask for; returns var to outcome."
  [words]
  (into {}
        (mapcat (fn [[ns selected]]
                  (let [begun (System/nanoTime)
                        outcomes (run-if-possible ns selected)
                        seconds (seconds-since begun)]
                    (print-result (result ns outcomes seconds) seconds)
                    outcomes)))
        (namespaces words)))

(defn- print-needs
  "Prints the tests that need a kernel feature, with the first release that has it."
  [words]
  (doseq [[ns] (namespaces words) :when (not (fixture/lacking ns))]
    (require ns)
    (doseq [test (sort-by (comp :line meta) (vals (ns-interns ns)))
            row (:needs (meta test))]
      (println (format "%-5s  %-45s  %s" (or (since/since row) "-") row (symbol test))))))

(defn- run-all
  "Runs the tests that the words select, prints the closing lines and exits."
  [words]
  (let [outcomes (run words)
        _ (println)
        outcomes (if (empty? words) (merge outcomes (promises outcomes)) outcomes)
        {:keys [passed failed skipped]
         :or {passed 0 failed 0 skipped 0}} (frequencies (vals outcomes))]
    (doseq [[test reason] @fixture/skips]
      (println "SKIPPED" (str (:name (meta test)) ":") reason))
    (doseq [[test outcome] outcomes :when (= :failed outcome)]
      (println "FAILED" (str test)))
    (println (format "%d passed, %d failed, %d skipped" passed failed skipped))
    (flush)
    (shutdown-agents)
    (System/exit (if (or (pos? failed)
                         (zero? (+ passed skipped))
                         (and (skips-fail? (System/getenv "CI")) (pos? skipped)))
                   1
                   0))))

(defn -main [& words]
  (if (= "--needs" (first words))
    (print-needs (rest words))
    (run-all words)))
