(ns ^:volume bpfmap.soak-test
  "The soak, for some seconds: whatever is done at random, no exception is none of bpfmap's."
  (:require [bpfmap.fixture :as fixture :refer [kernel-test]]
            [clojure.string :as str]
            [clojure.test :refer [is testing]]))

(set! *warn-on-reflection* true)

(kernel-test random-operations
  (testing "random concurrent operations throw only errors as data"
    (let [{:keys [exit out err]} (fixture/run ["bin/clj" "-M:soak" "0.1"])]
      (is (= [0 ""] [exit err]))
      (is
       (re-find
        #"minute +operations +errors +descriptors +resident +heap +foreign +native\n +0\.1 +[\d,]+ +[\d,]+ +\d+ +[\d.]+" out))
      (is (every? #(str/includes? out %) ["closed " "invalid-value " "not-found " "the-user's "]))
      (is (str/includes? out "All errors were bpfmap's own.")))))
