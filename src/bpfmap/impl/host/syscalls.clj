(ns ^:no-doc bpfmap.impl.host.syscalls
  "Names of system calls by number. The numbers are the kernel's, and differ from one architecture
  to the next."
  (:require [clojure.edn :as edn]
            [clojure.java.io :as io]))

(set! *warn-on-reflection* true)

(def ^:private tables
  "Architecture, as the JVM's `os.arch` names it, to number to name. Read when a name is first
  asked for."
  (delay (edn/read-string (slurp (io/resource "bpfmap/syscalls.edn")))))

(defn syscall-name
  "The name of a system call's number; `syscall_N` for one that is not known.

  `arch` is the JVM's name of an architecture; by default that of this machine.
  Known are amd64, aarch64 and riscv64.

      (syscall-name 0 \"amd64\")    ;=> \"read\"
      (syscall-name 63 \"aarch64\") ;=> \"read\"
      (syscall-name 9999)         ;=> \"syscall_9999\""
  ([number] (syscall-name number (System/getProperty "os.arch")))
  ([number arch] (get-in @tables [arch number] (str "syscall_" number))))
