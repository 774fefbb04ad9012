(ns bpfmap.impl.host.syscalls-test
  "Names and numbers of system calls, against C headers and by hand."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.impl.host.syscalls :as syscalls]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.procfs :as procfs]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.set :as set]
            [clojure.string :as str]
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

(def ^:private choices
  "What the asm/unistd.h of architectures defines before it includes asm-generic/unistd.h, and
  the calls that it adds. Source: arch/*/include/uapi/asm/unistd.h of Linux 6.6 to 6.18."
  {"aarch64" {:wants ["RENAMEAT" "NEW_STAT" "SET_GET_RLIMIT" "MEMFD_SECRET"]}
   "riscv64" {:wants ["NEW_STAT" "SET_GET_RLIMIT" "MEMFD_SECRET"]
              :added {258 "riscv_hwprobe" 259 "riscv_flush_icache"}}})

(defn- constant [name] (str "__NR_" name))

(defn- header-numbers
  "Returns the numbers of system calls in a header, by name; nil without a C compiler."
  [header names]
  (some-> (fixture/c-values header (map constant names))
          (update-keys #(subs % (count "__NR_")))))

(deftest numbers-of-the-generic-table
  (testing "arm64 and riscv64 have the numbers of asm-generic/unistd.h, on any machine"
    (doseq [[arch {:keys [wants added]}] choices
            :let [table (reduce dissoc (@tables arch) (keys added))
                  header (concat (map #(str "#define __ARCH_WANT_" %) wants)
                                 ["asm-generic/unistd.h"])
                  numbers (header-numbers header (vals table))]]
      (is (= (or added {}) (select-keys (@tables arch) (keys added))) arch)
      (if (nil? numbers)
        (fixture/skip! "there is no C compiler")
        (do (is (< 300 (count numbers)) arch)
            ;; The installed header may be older than the table and lack its newest calls.
            (is (= (select-keys (set/map-invert table) (keys numbers)) numbers) arch)
            (is (< 440 (apply max (vals numbers))) arch))))))

(deftest numbers-shared-by-architectures
  (testing "from 424 on, which is Linux 5.1, all architectures have the same numbers"
    (let [newer #(into (sorted-map) (filter (fn [[number]] (<= 424 number))) (@tables %))]
      (is (<= 46 (count (newer "amd64"))))
      (is (= (newer "amd64") (newer "aarch64") (newer "riscv64"))))))

(deftest numbers-of-this-machine
  (testing "the table of this machine has the numbers of its C header, and all of them"
    (let [table (@tables (System/getProperty "os.arch"))
          numbers (when table (header-numbers ["asm/unistd.h"] (vals table)))]
      (cond
        (nil? table) (fixture/skip! "the table has no numbers for this machine")
        (nil? numbers) (fixture/skip! "there is no C compiler")
        :else (do (is (< 300 (count numbers)))
                  (is (= (select-keys (set/map-invert table) (keys numbers)) numbers)))))))

(deftest numbers-of-the-java-core
  (testing "the numbers in Abi.java are in the tables of all architectures"
    (let [text (slurp "java/bpfmap/sys/Abi.java")
          found (concat
                 (for [[_ name x86 generic]
                       (re-seq #"SYS_([A-Z0-9_]+) = number\((\d+), (\d+)\);" text)]
                   [name x86 generic])
                 (for [[_ name number] (re-seq #"SYS_([A-Z0-9_]+) = (\d+);" text)]
                   [name number number]))]
      (is (= (count (re-seq #"\bSYS_[A-Z0-9_]+ =" text)) (count found)))
      (is (< 20 (count found)))
      (doseq [[name x86 generic] found
              [arch number] {"amd64" x86 "aarch64" generic "riscv64" generic}]
        (is (= (str/lower-case name) (syscalls/syscall-name (parse-long number) arch)) arch)))))
