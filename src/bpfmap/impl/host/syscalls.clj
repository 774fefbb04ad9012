(ns ^:no-doc bpfmap.impl.host.syscalls
  "Names system calls by number.
  The numbers differ between architectures."
  (:require [clojure.edn :as edn]
            [clojure.java.io :as io]))

(set! *warn-on-reflection* true)

(def ^:private tables
  "Architecture, as the JVM's `os.arch` names it, to number to name.

  Read on demand."
  (delay (edn/read-string (slurp (io/resource "bpfmap/syscalls.edn")))))

(defn syscall-name
  "Returns the name of a system call's number; `syscall_N` if it is not known.

  `arch` is a value of `os.arch`: amd64, aarch64 or riscv64; default: this machine's.

      (syscall-name 0 \"amd64\")    ;=> \"read\"
      (syscall-name 63 \"aarch64\") ;=> \"read\"
      (syscall-name 9999)         ;=> \"syscall_9999\""
  ([number] (syscall-name number (System/getProperty "os.arch")))
  ([number arch] (get-in @tables [arch number] (str "syscall_" number))))
