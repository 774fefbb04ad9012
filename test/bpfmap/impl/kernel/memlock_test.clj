(ns bpfmap.impl.kernel.memlock-test
  "RLIMIT_MEMLOCK, to which kernels before 5.11 charge maps and programs: it is raised when it is
  reached, and never before."
  (:require [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.map-types :as map-types]
            [clojure.edn :as edn]
            [clojure.test :refer [deftest is testing]])
  (:import (java.nio.file Files Path)))

(set! *warn-on-reflection* true)

(def ^:private limit
  "Code for the limit of the process, soft and hard, as the kernel writes it."
  '(vec (rest (re-find #"Max locked memory +(\S+) +(\S+)" (java.nio.file.Files/readString
                                                           (java.nio.file.Path/of
                                                            "/proc/self/limits"
                                                            (make-array String 0)))))))

(defn- in-a-process
  "What code returns in a JVM of its own, with a limit of locked memory of KiB, soft and hard."
  [soft hard code]
  (let [{:keys [exit out err]}
        (fixture/run (into ["sh" "-c" (str "ulimit -Sl " soft "; ulimit -Hl " hard "; exec \"$@\"")
                            "sh"]
                           (fixture/java "-e" (pr-str `(prn ~code)))))]
    (when-not (zero? exit)
      (throw (ex-info (str "the process failed: " err) {})))
    (edn/read-string out)))

(def ^:private much
  "Code that makes maps of more than a MiB; it returns the limit before them, after the first
  small one, and at the end."
  `(do (require '[bpfmap.core :as ~'bpf])
       (eval '(let [~'spec {:type :array :value [:bytes 4096] :max-entries 64}
                    ~'before ~limit
                    ~'few (bpf/create (assoc ~'spec :max-entries 1))
                    ~'then ~limit
                    ~'maps (mapv (fn [~'_] (bpf/create ~'spec)) (range 8))]
                [~'before ~'then (count ~'maps) ~limit]))))

(defn- may-raise?
  "Whether this process may raise hard limits."
  []
  (bit-test (Long/parseUnsignedLong (second (re-find #"CapEff:\s+(\S+)"
                                                     (Files/readString
                                                      (Path/of
                                                       "/proc/self/status" (make-array String 0)))))
                                    16)
    24)) ; CAP_SYS_RESOURCE of linux/capability.h

(def ^:private unlimited ["unlimited" "unlimited"])

(kernel-test raise-memlock
  (testing "raises the memlock limit only if the kernel charges memory to it"
    (let [charged? (map-types/charges-memlock? (call/kernel-release))
          [before then maps after] (in-a-process 64 64 much)]
      (is (= [["65536" "65536"] ["65536" "65536"] 8] [before then maps]))
      (is (= (if charged? unlimited ["65536" "65536"]) after)))))

(deftest charging-kernels
  (testing "recognizes the kernels that charge memory to the limit"
    (is (= [true true false false false]
           (map map-types/charges-memlock?
                ["4.19.0" "5.10.0-32-cloud-amd64" "5.11.0" "6.18.44" nil])))))

(kernel-test ^:volume highest-limit
  (testing "raises the limit as far as the process may"
    (is (= (if (may-raise?) [true true unlimited] [false false ["131072" "131072"]])
           (in-a-process 64 128 `(do (require 'bpfmap.impl.kernel.call)
                                     [(bpfmap.sys.MemlockLimit/raise)
                                      (bpfmap.sys.MemlockLimit/raise) ~limit]))))))
