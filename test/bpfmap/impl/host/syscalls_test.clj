(ns bpfmap.impl.host.syscalls-test
  "Names of system calls, against the C header of this machine and by hand."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.impl.host.syscalls :as syscalls]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.test :refer [are deftest is]]))

(set! *warn-on-reflection* true)

(def ^:private tables
  (delay (edn/read-string (slurp (io/resource "bpfmap/syscalls.edn")))))

(deftest numbers-have-the-names-of-their-architecture
  (are [number arch name] (= name (syscalls/syscall-name number arch))
    0 "amd64" "read"
    63 "aarch64" "read"
    63 "riscv64" "read"
    321 "amd64" "bpf"
    280 "aarch64" "bpf"
    280 "riscv64" "bpf"))

(deftest an-unknown-number-is-named-by-itself
  (is (= "syscall_9999" (syscalls/syscall-name 9999)))
  (is (= "syscall_0" (syscalls/syscall-name 0 "no-such-machine")))
  (is (= "syscall_4294967295" (syscalls/syscall-name 0xffffffff))))

(deftest without-an-architecture-it-is-this-machine's
  (is (= (syscalls/syscall-name 1 (System/getProperty "os.arch"))
         (syscalls/syscall-name 1))))

(deftest each-table-names-every-number-once
  (doseq [[arch table] @tables]
    (is (< 300 (count table)) arch)
    (is (apply distinct? (vals table)) arch)
    (is (every? #(re-matches #"[a-z0-9_]+" %) (vals table)) arch)))

(deftest the-names-are-those-of-the-c-header
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
            (is (= number value) name))))))
