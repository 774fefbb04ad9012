(ns ^:no-doc bpfmap.impl.kernel.token
  "BPF tokens, which permit a container to create maps without CAP_BPF.

  An administrator delegates a BPF file system to the container, and the container creates a token
  from it. Since Linux 6.9. The file system is the one at /sys/fs/bpf, or at the path in the
  environment variable LIBBPF_BPF_TOKEN_PATH, as in libbpf. An empty variable turns tokens off."
  (:require [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.procfs :as procfs])
  (:import (bpfmap.sys Abi Attr Fd)
           (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(defn- token-path []
  (if-let [path (procfs/environment "LIBBPF_BPF_TOKEN_PATH")]
    (not-empty (paths/text path))
    "/sys/fs/bpf"))

(defn- create-token
  "Creates a BPF token from the directory of a delegated BPF file system.

  Returns its descriptor. Requires Linux 6.9."
  ^Fd [^Fd dir ctx]
  (call/command "Creating a BPF token" ctx Abi/BPF_TOKEN_CREATE
                (fn [^Attr attr]
                  (.int32 attr Abi/TOKEN_CREATE_FLAGS 0)
                  (.fd attr Abi/TOKEN_CREATE_BPFFS_FD dir))
                call/own-fd))

(defn- open-token
  "Returns the descriptor of a token of the delegated file system, or nil."
  [ctx]
  (when-let [path (token-path)]
    (try
      (let [dir (call/open-file path true ctx)]
        (try
          (create-token dir ctx)
          (finally (call/close dir))))
      (catch ExceptionInfo _ nil))))

(defn with-token
  "Calls f with nil.
  After EPERM, calls it again with a token, if there is one."
  [ctx f]
  (try
    (f nil)
    (catch ExceptionInfo e
      (if-let [token (when (= :EPERM (:bpfmap/errno (ex-data e))) (open-token ctx))]
        (try
          (f token)
          (finally (call/close token)))
        (throw e)))))
