(ns bpfmap.conformance-test
  "What a run of the tests says of the promised behaviours; and the sentences themselves."
  (:require [bpfmap.conformance :as conformance]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]))

(set! *warn-on-reflection* true)

(def ^:private promised
  {:groups [{:group "Elements"
             :behaviours [["e1" "A miss is an answer."] ["e2" "Inserting says whether it did."]]}
            {:group "Lifetime" :behaviours [["l1" "Closing is safe."]]}]
   :pending #{}})

(def ^:private held
  '{a-test/e1-e2-both :passed
    a-test/e1-again :passed
    b-test/l1-closing :passed
    b-test/no-id :passed})

(deftest ids-in-test-name
  (testing "the name of a test starts with the ids that it covers"
    (are [test ids] (= ids (conformance/named promised test))
      'a-test/e1-a-missing-key ["e1"]
      'a-test/e1-l12-e2-several ["e1" "l12" "e2"]
      'a-test/e2e-is-no-id []
      'a-test/e1 []
      'a-test/x86-is-no-group []
      'a-test/a-test-of-e1-things []
      'a.e1-test [])))

(deftest uncovered-behaviours
  (testing "every behaviour requires a test that passed"
    (is (= {:failures [] :warnings []} (conformance/judge promised held)))
    (testing "which failed"
      (is (= ["behaviour l1 has no test that passed: Closing is safe."]
             (:failures (conformance/judge promised (assoc held 'b-test/l1-closing :failed))))))
    (testing "which is not there"
      (is (= ["behaviour e2 has no test that passed: Inserting says whether it did."]
             (:failures (conformance/judge promised (dissoc held 'a-test/e1-e2-both))))))
    (testing "one that passed is enough"
      (is (empty? (:failures (conformance/judge promised (assoc held 'a-test/e1-more :failed))))))
    (testing "a skip is counted as a skip"
      (is (empty? (:failures (conformance/judge promised
                                                (assoc held 'b-test/l1-closing :skipped))))))))

(deftest pending-behaviours
  (testing "warns about pending behaviours"
    (let [pending (assoc promised :pending #{"l1" "e2"})]
      (is (= {:failures [] :warnings ["behaviours without a test: e2 l1"]}
             (conformance/judge pending '{a-test/e1-again :passed})))
      (is (= {:failures [] :warnings ["no longer pending, so take them from behaviours.edn: e2 l1"]}
             (conformance/judge pending held))))))

(deftest unknown-id-fails-run
  (testing "an unknown id fails the run"
    (is (= ["a-test/e1-e7-wrong names behaviour e7, which there is not"]
           (:failures (conformance/judge promised (assoc held 'a-test/e1-e7-wrong :passed)))))
    (is (= ["behaviour e9 is pending, but there is none"]
           (:failures (conformance/judge (assoc promised :pending #{"e9"}) held))))))

(deftest page-row-per-behaviour
  (testing "the page has a row for every behaviour"
    (let [text (conformance/page promised
                                 (assoc held 'b-test/e2-failed :failed 'b-test/l1-skipped :skipped)
                                 {:release "6.18.44-some-build" :arch "x86_64" :jdk 25})]
      (is (str/starts-with? text "# Behaviours and their tests\n"))
      (is (= ["## Elements"
              ""
              "| id | behaviour | tests | on |"
              "|---|---|---|---|"
              "| e1 | A miss is an answer. | `a-test/e1-again`<br>`a-test/e1-e2-both` | Linux 6.18.44 x86_64, JDK 25 |"
              "| e2 | Inserting says whether it did. | `a-test/e1-e2-both` | Linux 6.18.44 x86_64, JDK 25 |"
              ""
              "## Lifetime"
              ""
              "| id | behaviour | tests | on |"
              "|---|---|---|---|"
              "| l1 | Closing is safe. | `b-test/l1-closing` | Linux 6.18.44 x86_64, JDK 25 |"]
             (drop-while #(not= "## Elements" %) (str/split-lines text))))
      (is (str/includes? (conformance/page promised {} {:release "7.0-rc1" :arch "x86_64" :jdk 25})
                         "| l1 | Closing is safe. | none yet | - |")))))

(deftest page-ignores-test-order
  (testing "the page does not depend on the order of the tests"
    (let [host {:release "7.0-rc1" :arch "aarch64" :jdk 22}]
      (is (= (conformance/page promised (into (sorted-map) held) host)
             (conformance/page promised (into (sorted-map-by #(compare %2 %1)) held) host)))
      (is (str/includes? (conformance/page promised held host) "| Linux 7.0 aarch64, JDK 22 |")))))

(deftest promised-behaviours
  (testing "the file of behaviours is well formed"
    (let [{:keys [groups pending]} @conformance/promised
          behaviours (mapcat :behaviours groups)]
      (is (= ["Specs" "Pins" "Elements" "Bulk operations" "Memory" "Events" "Links"
              "Programs and runs" "Display hints" "Objects" "Lifetime" "Metrics"
              "Commands that change entries" "Whole host"]
             (map :group groups)))
      (is (= (concat (map #(str "s" %) (range 1 13)) (map #(str "p" %) (range 1 10))
                     (map #(str "e" %) (range 1 12))
                     (map #(str "b" %) (range 1 9)) (map #(str "m" %) (range 1 10))
                     (map #(str "n" %) (range 1 24)) (map #(str "k" %) (range 1 12))
                     (map #(str "q" %) (range 1 5))
                     (map #(str "v" %) (range 1 5)) (map #(str "o" %) (range 5 12))
                     (map #(str "l" %) (range 1 6)) (map #(str "x" %) (range 1 9))
                     (map #(str "u" %) (range 1 6)) ["l6" "l7"])
             (map first behaviours)))
      (is (set? pending))
      (doseq [[id sentence] behaviours]
        (is (and (str/ends-with? sentence ".") (not (re-find #"[|\n]" sentence))) id)))))
