(ns bpfmap.sys.possible-cpus-test
  (:require [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (bpfmap.sys PossibleCpus)))

(set! *warn-on-reflection* true)

(deftest l4-parsed-cpu-lists
  (testing "parses lists of CPUs"
    (are [text cpus] (= cpus (vec (PossibleCpus/parse text)))
      "0" [0]
      "0-3\n" [0 1 2 3]
      "0,3-4" [0 3 4]
      "0-1,8-9,63" [0 1 8 9 63])))

(deftest l4-malformed-cpu-list
  (testing "rejects a malformed list of CPUs and names it"
    (doseq [text ["" "\n" "a" "0-" "-1" "3-1" "0,0" "1,0" "0-3-5" "0,,1" "0 1" "65536" "99999999999"
                  "0x1" "٣"]]
      (is (str/includes? (ex-message (try (PossibleCpus/parse text)
                                          (catch IllegalArgumentException e e)))
                         (str "not a list of CPUs such as 0-3 or 0,2-4: \"" (str/trim text) "\""))
          text))))

(defspec l4-any-printed-cpu-list 200
  (prop/for-all [cpus (gen/fmap (comp vec sort) (gen/set (gen/choose 0 300) {:min-elements 1}))]
                (let [runs (reduce (fn [runs cpu]
                                     (if (= cpu (some-> (peek runs) second inc))
                                       (conj (pop runs) [(first (peek runs)) cpu])
                                       (conj runs [cpu cpu])))
                                   [] cpus)
                      text (str/join "," (map (fn [[a b]] (if (= a b) a (str a "-" b))) runs))]
                  (= cpus (vec (PossibleCpus/parse text))))))

(deftest l4-possible-cpus-of-kernel
  (testing "returns the possible CPUs of the kernel"
    (if-let [missing (fixture/kernel-missing)]
      (fixture/skip! missing)
      (do
        (is (= (vec (PossibleCpus/possible)) (feature/possible-cpus)))
        (is (<= (.availableProcessors (Runtime/getRuntime)) (count (feature/possible-cpus))))))))
