(ns bpfmap.exec.wording-test
  "Messages of the library in the words of a command line."
  (:require [bpfmap.exec.wording :as wording]
            [bpfmap.impl.map-types :as map-types]
            [clojure.test :refer [are deftest is testing]]))

(set! *warn-on-reflection* true)

(deftest message-in-cli-words
  (testing "rewords a message in terms of commands and options"
    (are [message words] (= words (wording/worded message))
      "does not match the spec: :type is :array, the spec has :hash; :key-size is 4, the spec has 8"
      "does not match the spec: type is array, the spec has hash; key-size is 4, the spec has 8"
      "[:key :port]: 70000 is not a :port: it must be an integer from 0 to 65535"
      "key.port: 70000 is not a port: it must be an integer from 0 to 65535"
      "[:value 3 :b]: x" "value.3.b: x"
      "The map spec is invalid: :type and :max-entries are required"
      "The map spec is invalid: --type and --max-entries are required"
      "#<bpf-map 12 :hash \"flows\" :u32 -> :u64> has no buckets" "map 12 (flows) has no buckets"
      "give :yes (--yes) if this is meant" "give --yes if this is meant"
      "{:cpus :all} writes one value for every CPU" "--cpus all writes one value for every CPU"
      "There is no map named \":hash nil\"" "There is no map named \":hash nil\""
      "The default is 10:20:30 at /a:b" "The default is 10:20:30 at /a:b")))

(deftest hint-becomes-a-command
  (testing "rewords every suggested alternative as a command"
    (doseq [[type {:keys [instead]}] map-types/types
            [_ hint] instead
            :let [words (wording/worded hint)]]
      (is (not (re-find #"\b[a-z-]+[!?](?!\w)|(?<![\w\"']):[a-z]|\{:" words))
          (str type ": " words)))))
