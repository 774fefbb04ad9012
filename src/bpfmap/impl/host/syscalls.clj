(ns ^:no-doc bpfmap.impl.host.syscalls
  "Names system calls by number, and the kernel's functions of them.
  The numbers and the functions differ between architectures."
  (:require [bpfmap.impl.map-types :as map-types]
            [clojure.edn :as edn]
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

(def ^:private wrappers
  "Architecture to a prefix of kernel functions, and the release that brought them.

  They are the functions of system calls, and take the registers of the caller. Source: the uses of
  ARCH_HAS_SYSCALL_WRAPPER and each asm/syscall_wrapper.h."
  {"amd64" ["__x64_sys_" "4.17"]
   "aarch64" ["__arm64_sys_" "4.19"]
   "riscv64" ["__riscv_sys_" "6.6"]})

(defn wrapper
  "Returns the prefix of functions that take registers; nil if there are none.

      (wrapper \"aarch64\" \"6.12.1\") ;=> \"__arm64_sys_\"
      (wrapper \"riscv64\" \"6.1.0\")  ;=> nil"
  [arch release]
  (when-let [[prefix since] (wrappers arch)]
    (when (and release (map-types/at-least? release since))
      prefix)))

(defn syscall-function
  "Returns the name of the kernel's function of a system call.

      (syscall-function \"bpf\" \"amd64\" \"6.18.0\") ;=> \"__x64_sys_bpf\""
  [call arch release]
  (str (or (wrapper arch release) "sys_") call))
