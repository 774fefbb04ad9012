(ns bpfmap.test-runner-test
  "The exit code of a run of tests."
  (:require [bpfmap.test-runner :as runner]
            [clojure.test :refer [are deftest testing]]))

(set! *warn-on-reflection* true)

(deftest skips-and-ci
  (testing "a skipped test fails the run only if CI is set, and not to false"
    (are [ci fails?] (= fails? (#'runner/skips-fail? ci))
      nil false
      "" false
      "false" false
      "true" true
      "1" true)))
