(ns bpfmap.unsupported-machine-test
  "Machines that bpfmap does not support are refused in one line, by functions and by commands."
  (:require [bpfmap.fixture :as fixture]
            [clojure.edn :as edn]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (bpfmap.sys Native)
           (java.nio ByteOrder)))

(set! *warn-on-reflection* true)

(deftest refused-machines
  (testing "a machine is refused with the first reason"
    (are [os arch order address-size reason]
         (= reason (Native/refusal os arch order address-size))
      "Linux" "amd64" ByteOrder/LITTLE_ENDIAN 8 nil
      "Linux" "aarch64" ByteOrder/LITTLE_ENDIAN 8 nil
      "Linux" "riscv64" ByteOrder/LITTLE_ENDIAN 8 nil
      "Linux" "aarch64" ByteOrder/BIG_ENDIAN 8
      "big-endian processors are not supported; this one is aarch64"
      "Linux" "s390x" ByteOrder/BIG_ENDIAN 8
      "big-endian processors are not supported; this one is s390x"
      "Linux" "i386" ByteOrder/LITTLE_ENDIAN 4
      "32-bit JVMs are not supported; this one is for i386"
      "Linux" "amd64" ByteOrder/LITTLE_ENDIAN 4
      "32-bit JVMs are not supported; this one is for amd64"
      "Linux" "loongarch64" ByteOrder/LITTLE_ENDIAN 8
      (str "the system call numbers of this processor are not known: loongarch64 "
           "(known: amd64, aarch64, riscv64)")
      "Mac OS X" "aarch64" ByteOrder/LITTLE_ENDIAN 8
      "BPF maps live in the Linux kernel; this is Mac OS X"))
  (testing "this machine is not refused"
    (is (nil? (Native/unavailable)))))

(def ^:private command-lines
  "Command lines that call the kernel first."
  ["overview" "list" "show 1" "holds 1" "tree" "features" "types 1" "dump 1" "get 1 2" "hist 1"
   "watch 1" "top" "tail 1" "diff 1" "put 1 2 3" "edit 1" "delete 1 2" "take 1 2" "clear 1"
   "create /sys/fs/bpf/unsupported --type array --key-size 4 --value-size 4 --max-entries 1"
   "pin 1 /sys/fs/bpf/unsupported" "unpin /sys/fs/bpf/unsupported" "freeze 1"
   "save 1 /dev/null" "prog list" "prog show 1" "prog dump 1" "prog top" "link list"
   "link show 1" "link detach 1" "demo"])

(def ^:private calls
  "Functions that call the kernel, with an argument."
  '[[bpfmap.core/open 1]
    [bpfmap.core/open "/sys/fs/bpf/unsupported"]
    [bpfmap.core/create {:type :array :key :u32 :value :u32 :max-entries 1}]
    [bpfmap.host/maps {}]
    [bpfmap.host/pins "/sys/fs/bpf"]
    [bpfmap.prog/open 1]
    [bpfmap.prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]}]
    [bpfmap.link/open 1]])

(def ^:private refusal
  (str "The kernel cannot be called: the system call numbers of this processor are not known: "
       "s390x (known: amd64, aarch64, riscv64)"))

(deftest unknown-processor
  (testing "functions and commands give the reason in one line, and help is printed as always"
    (let [code `(do
                  (require 'bpfmap.cli.main)
                  (prn (vec (for [line# ~command-lines]
                              (let [err# (java.io.StringWriter.)]
                                [line#
                                 (binding [~'*out* (java.io.StringWriter.) ~'*err* err#]
                                   (bpfmap.cli.main/run (clojure.string/split line# #" ")))
                                 (str err#)]))))
                  (prn (vec (for [call# '~calls]
                              (try
                                ((requiring-resolve (first call#)) (second call#))
                                (catch clojure.lang.ExceptionInfo e#
                                  [(:bpfmap/error (ex-data e#)) (ex-message e#)])))))
                  (prn (bpfmap.cli.main/run ["help"]))
                  (shutdown-agents))
          {:keys [exit out err]}
          (fixture/run [(str (System/getProperty "java.home") "/bin/java")
                        "-XX:TieredStopAtLevel=1" "-XX:+UseSerialGC"
                        "--enable-native-access=ALL-UNNAMED" "-Dos.arch=s390x"
                        "-cp" (System/getProperty "java.class.path")
                        "clojure.main" "-e" (str/replace (pr-str code) "clojure.core/*" "*")])]
      (is (= [0 ""] [exit err]))
      (let [[commands functions] (mapv edn/read-string (take 2 (str/split-lines out)))]
        (doseq [[line exit err] commands]
          (is (= [1 (str "bpfmap: " refusal "\n")] [exit err]) line))
        (doseq [[call outcome] (map vector calls functions)]
          (is (= [:not-supported refusal] outcome) call)))
      (is (str/includes? out "Usage: bpfmap COMMAND"))
      (is (str/ends-with? out "\n0\n")))))
