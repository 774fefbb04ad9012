(ns bpfmap.rules-test
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.rules :as rules]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop]))

(set! *warn-on-reflection* true)

(defn- c-name [prefix k]
  (str prefix (str/replace (str/upper-case (name k)) "-" "_")))

(deftest numbers-are-those-of-the-header
  (let [types (into {} (map (fn [[k row]] [(c-name "BPF_MAP_TYPE_" k) (:number row)])) rules/types)
        flags (into {} (map (fn [[k row]] [(c-name "BPF_F_" k) (bit-shift-left 1 (:bit row))])) rules/flags)
        ours (merge types flags)
        header (fixture/c-values ["linux/bpf.h"] (keys ours))]
    (if-not header
      (fixture/skip! "no C compiler to compare the map types and flags with")
      (do
        (is (= (select-keys ours (keys header)) header))
        (is (< 40 (count header)) "the header knows most of them")))))

(deftest every-type-has-a-number-of-its-own
  (is (= (range 1 36) (sort (map :number (vals rules/types)))))
  (is (= (range 20) (sort (map :bit (vals rules/flags))))))

(deftest names-and-numbers
  (are [number name] (and (= name (rules/type-name number)) (= number (rules/type-number name)))
    1 :hash 2 :array 33 :arena 99 99)
  (is (nil? (rules/type-number :nonsense))))

(defspec flag-words-survive 200
  (prop/for-all [word (gen/choose 0 0xffffffff)]
    (= word (rules/flag-word (rules/flag-set word)))))

(deftest unknown-bits-stay-numbers
  (is (= #{:no-prealloc 0x40000000} (rules/flag-set 0x40000001))))

(deftest releases-compare-as-numbers
  (are [release version newer?] (= newer? (rules/at-least? release version))
    "6.18.44-fc-v769" "5.14" true
    "5.4.0-150-generic" "5.14" false
    "5.14" "5.14" true
    "6.2.0" "6.18" false
    "7.0-rc1" "6.18" true))

(deftest denied-operations-name-the-alternative
  (is (str/includes? (rules/alternative :array :delete!) "put! a zero value"))
  (is (nil? (rules/alternative :hash :delete!)))
  (is (str/includes? (rules/alternative :percpu-hash :lookup) ":array and :hash maps only"))
  (is (str/includes? (rules/alternative 99 :lookup) ":array and :hash maps only")))
