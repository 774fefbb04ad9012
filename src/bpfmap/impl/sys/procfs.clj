(ns bpfmap.impl.sys.procfs
  "What the kernel says in files rather than in system calls, in /proc and /sys."
  (:require [clojure.string :as str])
  (:import (java.nio.file Files Path)))

(set! *warn-on-reflection* true)

(defn- path ^Path [s]
  (Path/of s (make-array String 0)))

(defn- read-file
  "The text of a file, nil where it cannot be read.

  `Files/readString`, not `slurp`: the kernel's seq files answer a FileInputStream's
  question for the bytes available with EINVAL."
  [file]
  (try
    (Files/readString (path file))
    (catch java.io.IOException _ nil)
    (catch SecurityException _ nil)))

(defn bytes-of
  "The bytes of a file; throws an IOException where it cannot be read."
  ^bytes [file]
  (Files/readAllBytes (path file)))

(defn- colon-lines
  "Lines of `name: value` as a map of strings."
  [text]
  (into {}
        (keep #(let [[k v] (str/split % #":\s*" 2)]
                 (when v [k (str/trim v)])))
        (some-> text str/split-lines)))

(defn fdinfo
  "What `/proc/thread-self/fdinfo` says about a descriptor, as a map of strings; empty where it cannot be read.

      (get (fdinfo 7) \"frozen\") ;=> \"0\""
  [descriptor]
  (colon-lines (read-file (str "/proc/thread-self/fdinfo/" descriptor))))

(def ^:private capability-bits
  "Source: linux/capability.h."
  {"CAP_NET_ADMIN" 12, "CAP_SYS_ADMIN" 21, "CAP_PERFMON" 38, "CAP_BPF" 39})

(defn missing-capabilities
  "Which of the named capabilities the calling thread lacks; nil where that cannot be read.

  CAP_SYS_ADMIN stands in for the narrower ones, as it does in the kernel.

      (missing-capabilities [\"CAP_BPF\"]) ;=> ()"
  [names]
  (when-let [effective (get (colon-lines (read-file "/proc/thread-self/status")) "CapEff")]
    (let [bits (java.lang.Long/parseUnsignedLong effective 16)
          held? #(bit-test bits (capability-bits %))]
      (if (held? "CAP_SYS_ADMIN") () (remove held? names)))))

(defn kernel-release
  "The kernel's release as `uname -r` prints it; nil where that cannot be read.

      (kernel-release) ;=> \"6.18.44\""
  []
  (some-> (read-file "/proc/sys/kernel/osrelease") str/trim))

(defn unprivileged-bpf-disabled
  "The sysctl kernel.unprivileged_bpf_disabled as a number; nil where there is none."
  []
  (some-> (read-file "/proc/sys/kernel/unprivileged_bpf_disabled") str/trim parse-long))

(def ^:private ^:const at-pagesz "Source: linux/auxvec.h, AT_PAGESZ." 6)

(defn page-size
  "Bytes of a page of memory, as the kernel told this process when it began; 4096 where that cannot be read.

      (page-size) ;=> 4096"
  []
  (let [^java.nio.LongBuffer words
        (try
          (.asLongBuffer (.order (java.nio.ByteBuffer/wrap (bytes-of "/proc/self/auxv")) (java.nio.ByteOrder/nativeOrder)))
          (catch java.io.IOException _ (java.nio.LongBuffer/allocate 0)))]
    (loop [i 0]
      (cond
        (< (.limit words) (+ i 2)) 4096
        (= at-pagesz (.get words (int i))) (.get words (int (inc i)))
        :else (recur (+ i 2))))))
