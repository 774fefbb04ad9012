(ns bpfmap.impl.host.syscalls-test
  "Names of system calls, against the C header of this machine and by hand."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.impl.host.syscalls :as syscalls]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.procfs :as procfs]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.test :refer [are deftest is testing]]))

(set! *warn-on-reflection* true)

(def ^:private tables
  (delay (edn/read-string (slurp (io/resource "bpfmap/syscalls.edn")))))

(deftest names-by-architecture
  (testing "system calls have the names of their architecture"
    (are [number arch name] (= name (syscalls/syscall-name number arch))
      0 "amd64" "read"
      63 "aarch64" "read"
      63 "riscv64" "read"
      321 "amd64" "bpf"
      280 "aarch64" "bpf"
      280 "riscv64" "bpf")))

(deftest unknown-syscall-number
  (testing "an unknown system call is named by its number"
    (is (= "syscall_9999" (syscalls/syscall-name 9999)))
    (is (= "syscall_0" (syscalls/syscall-name 0 "no-such-machine")))
    (is (= "syscall_4294967295" (syscalls/syscall-name 0xffffffff)))))

(deftest default-architecture
  (testing "the default architecture is the architecture of this machine"
    (is (= (syscalls/syscall-name 1 (System/getProperty "os.arch"))
           (syscalls/syscall-name 1)))))

(deftest unique-names-per-table
  (testing "each table has every name once"
    (doseq [[arch table] @tables]
      (is (< 300 (count table)) arch)
      (is (apply distinct? (vals table)) arch)
      (is (every? #(re-matches #"[a-z0-9_]+" %) (vals table)) arch))))

(deftest functions-of-system-calls
  (testing "a system call's function has its architecture's prefix since its release"
    (are [function arch release] (= function (syscalls/syscall-function "bpf" arch release))
      "sys_bpf" "amd64" "4.16.1"
      "__x64_sys_bpf" "amd64" "4.17.0"
      "sys_bpf" "aarch64" "4.18.20"
      "__arm64_sys_bpf" "aarch64" "4.19"
      "sys_bpf" "riscv64" "6.5.13"
      "__riscv_sys_bpf" "riscv64" "6.6.0-rc1"
      "sys_bpf" "no-such-machine" "6.18"
      "sys_bpf" "amd64" nil)))

(fixture/kernel-test function-of-this-kernel
  (testing "this kernel has the function of its system call"
    (let [function (syscalls/syscall-function "bpf" (System/getProperty "os.arch")
                                              (call/kernel-release))]
      (is (re-find (re-pattern (str "(?m)^[0-9a-f]+ [tTwW] " function "$"))
                   (String. (procfs/read-bytes "/proc/kallsyms")))
          function))))

(deftest names-match-c-header
  (testing "the names match the C header"
    (let [table (@tables (System/getProperty "os.arch"))
          constant #(str "__NR_" %)
          ;; The C library's headers may be older than the table and lack its newest calls.
          values (fixture/c-values ["asm/unistd.h"] (map constant (vals table)))]
      (cond
        (nil? values) (fixture/skip! "there is no C compiler")
        (nil? table) (fixture/skip! "the table has no numbers for this machine")
        :else
        (do (is (< 300 (count values)))
            (doseq [[number name] table
                    :let [value (values (constant name))]
                    :when value]
              (is (= number value) name)))))))
