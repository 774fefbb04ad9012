(ns ^:no-doc bpfmap.impl.kernel.token
  "BPF tokens: a BPF file system that an administrator delegated to a container lets it create
  maps without CAP_BPF.

  Since Linux 6.9. The file system is the one at /sys/fs/bpf, or where the environment variable
  LIBBPF_BPF_TOKEN_PATH says, as libbpf has it; empty, that variable turns tokens off."
  (:require [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.procfs :as procfs])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(defn- token-path []
  (if-let [path (procfs/environment "LIBBPF_BPF_TOKEN_PATH")]
    (not-empty (paths/text path))
    "/sys/fs/bpf"))

(defn- token
  "The descriptor of a token from the delegated file system; nil where there is none to be had."
  [ctx]
  (when-let [path (token-path)]
    (try
      (let [dir (call/open-file path true ctx)]
        (try
          (map/token dir ctx)
          (finally (call/close dir))))
      (catch ExceptionInfo _ nil))))

(defn allowing
  "Calls f with nil, and again with a token where it fails for want of permission and there is a
  token."
  [ctx f]
  (try
    (f nil)
    (catch ExceptionInfo e
      (if-let [token (when (= :EPERM (:bpfmap/errno (ex-data e))) (token ctx))]
        (try
          (f token)
          (finally (call/close token)))
        (throw e)))))
