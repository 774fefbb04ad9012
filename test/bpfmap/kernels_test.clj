(ns bpfmap.kernels-test
  "The page of results on other kernels, and the command that runs them."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.kernels :as kernels]
            [clojure.edn :as edn]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]]))

(set! *warn-on-reflection* true)

(def ^:private data
  {"6.1" '{bpfmap.core-test {:release "6.1.0-57" :date "2026-11-29" :commit "1a2b3c4"
                             :passed 24 :failed [] :skipped {"takes" "row a; row b"} :seconds 60}}
   "5.10" '{bpfmap.core-test {:release "5.10.0-32" :date "2026-11-29" :commit "1a2b3c4"
                              :passed 20 :failed ["reads"] :skipped {} :seconds 60}
            bpfmap.btf-test {:release "5.10.0-32" :date "2026-11-30" :commit "1a2b3c4"
                             :not-ended true}}})

(deftest page-of-results
  (testing "the page has sums, a cell for each kernel and namespace, failures and skips"
    (let [lines (set (str/split-lines (kernels/page data)))]
      (doseq [line ["| 5.10 | 5.10.0-32 | 2026-11-29 to 2026-11-30 | 2 | 20 | 1 | 0 | 1 |"
                    "| 6.1 | 6.1.0-57 | 2026-11-29 | 1 | 24 | 0 | 1 | 0 |"
                    "| namespace | 5.10 | 6.1 |"
                    "| `core-test` | 20, **1 failed** | 24, 1 skipped |"
                    "| `btf-test` | did not end |  |"
                    "- `bpfmap.btf-test`: did not end"
                    "- `bpfmap.core-test`: `reads`"
                    "| row b | `bpfmap.core-test/takes` |"]]
        (is (contains? lines line))))))

(deftest page-is-current
  (testing "doc/kernels.md is the page of doc/kernels.edn"
    (is (= (kernels/page (edn/read-string (slurp "doc/kernels.edn"))) (slurp "doc/kernels.md")))))

(deftest command-line
  (testing "the command prints its help, and rejects an unknown kernel"
    (let [{:keys [exit out]} (fixture/run ["script/kernel-matrix" "--help"])]
      (is (= 0 exit))
      (is (str/includes? out "script/kernel-matrix 5.10 6.1 6.12 7.2")))
    (let [{:keys [exit err]} (fixture/run ["script/kernel-matrix" "4.19"])]
      (is (= [1 (str "kernel-matrix: unknown kernel 4.19; the kernels are 5.10 6.1 6.12 6.12-arm64 "
                     "6.12-arm64-16k 6.12-riscv64 7.2 7.2-arm64-16k\n")]
             [exit err])))))

(deftest order-of-kernels
  (testing "x86-64 comes first, by release, then the other processors"
    (is (re-find #"(?m)^\| namespace \| 5\.10 \| 6\.12 \| 6\.12-arm64 \| 6\.12-arm64-16k \|$"
                 (kernels/page (zipmap ["6.12-arm64-16k" "6.12-arm64" "6.12" "5.10"]
                                       (repeat (data "6.1"))))))))
