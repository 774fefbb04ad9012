(ns bpfmap.exec.bpftool-test
  "Words of bpftool: run as commands, or answered with the command that stands for them."
  (:require [bpfmap.cli.calling :refer [bpfmap edn-of id-of refused]]
            [bpfmap.cli.command-line :as command-line]
            [bpfmap.core :as bpf]
            [bpfmap.exec.bpftool :as bpftool]
            [bpfmap.exec.commands :as commands]
            [bpfmap.fixture :refer [kernel-test]]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private map-verbs
  "The verbs of `bpftool map help`, version 7.1."
  ["show" "list" "create" "dump" "update" "lookup" "getnext" "delete" "pin" "event_pipe" "peek"
   "push" "pop" "enqueue" "dequeue" "freeze"])

(deftest verbs-are-answered
  (testing "every verb about maps is a command here or is answered with one"
    (doseq [verb map-verbs]
      (let [[exit message] (refused "map" verb "id" "12")]
        (is (= 2 exit))
        (is (str/starts-with? message (str "bpfmap: bpftool's map " verb " is bpfmap ")))
        (is (not (str/includes? (:err (bpfmap verb)) "Unknown command")) verb))))
  (testing "every command that is named exists"
    (doseq [{:keys [here alias]} bpftool/table :when here]
      (let [[first-word second-word] (str/split here #" ")]
        (is (or (commands/command-named first-word)
                (commands/command-named (str first-word " " second-word)))
            here)
        (is (or (nil? alias) (= alias first-word)) here))))
  (testing "no word of bpftool hides a command of another meaning"
    (is (not-any? commands/command-named (keys bpftool/aliases)))))

(deftest answers
  (are [words message] (= [2 (str "bpfmap: " message "; see `bpfmap help`")] (apply refused words))
    ["map" "show"] "bpftool's map show is bpfmap list; bpfmap show REF has all about one map"
    ["getnext" "flows"]
    (str "bpftool's map getnext is bpfmap dump REF --keys; prints all keys; "
         "bpfmap.core/next-key returns one")
    ["prog" "tracelog"]
    "bpftool's prog tracelog has no command here; use cat /sys/kernel/tracing/trace_pipe"
    ["prog" "load" "x.o" "/sys/fs/bpf/x"]
    (str "bpftool's prog load is bpfmap run FILE; runs an object until Ctrl-C; "
         "bpfmap.object/load keeps it")
    ["btf" "dump" "map" "id" "12"] "bpftool's btf dump map is bpfmap types REF"
    ["net" "show"]
    "bpftool's net is bpfmap link list; has programs that are attached without a link too")
  (is (= [2 (str "bpfmap: Unexpected argument \"key\": get takes only REF [KEY], and REF has no "
                 "\"id\" before it; see `bpfmap help get`")]
         (refused "lookup" "id" "12" "key" "1")))
  (is (str/includes? (:out (bpfmap "help")) "Words of bpftool work too:\ndequeue, enqueue, "))
  (is (= "get" (:name (command-line/find-command "lookup"))))
  (is (str/starts-with? (:out (bpfmap "help" "lookup")) "Usage: bpfmap get ")))

(kernel-test words-run
  (testing "words of bpftool read and write maps and queues"
    (with-open [^Closeable m (bpf/create {:name "bpftool_words" :type :hash :key :u32 :value :u64
                                          :max-entries 4})
                ^Closeable q (bpf/create {:name "bpftool_queue" :type :queue :value :u32
                                          :max-entries 4})]
      (let [id (id-of m)
            queue [(id-of q) "--value-type" "u32"]]
        (is (= 0 (:exit (bpfmap "update" id "7" "42"))))
        (is (= {:key 7 :value 42} (edn-of "lookup" id "7")))
        (is (= [0 0] (map :exit [(apply bpfmap "push" (conj queue "1"))
                               (apply bpfmap "enqueue" (conj queue "2"))])))
        (is (= [{:value 1} {:value 1} {:value 2}]
               (map #(apply edn-of % queue) ["peek" "pop" "dequeue"])))))))
