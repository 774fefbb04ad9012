(ns bpfmap.impl.token
  "BPF tokens: a BPF file system that an administrator delegated to a container lets it create maps without CAP_BPF.

  Since Linux 6.9. The file system is the one at /sys/fs/bpf, or where the environment variable
  LIBBPF_BPF_TOKEN_PATH says, as libbpf has it; empty, that variable turns tokens off."
  (:require [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.maps :as maps]
            [bpfmap.impl.sys.paths :as paths]
            [bpfmap.impl.sys.procfs :as procfs])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(defn- token-path []
  (if-let [path (procfs/environment "LIBBPF_BPF_TOKEN_PATH")]
    (not-empty (paths/text path))
    "/sys/fs/bpf"))

(defn- token
  "The descriptor of a token from the delegated file system; nil where there is none to be had."
  [facts]
  (when-let [path (token-path)]
    (try
      (let [dir (sys/open-file path true facts)]
        (try
          (maps/token dir facts)
          (finally (sys/close dir))))
      (catch ExceptionInfo _ nil))))

(defn allowing
  "Calls f with nil, and again with a token where it fails for want of permission and there is a token."
  [facts f]
  (try
    (f nil)
    (catch ExceptionInfo e
      (if-let [token (when (= :EPERM (:bpfmap/errno (ex-data e))) (token facts))]
        (try
          (f token)
          (finally (sys/close token)))
        (throw e)))))
