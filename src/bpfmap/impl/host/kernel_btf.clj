(ns ^:no-doc bpfmap.impl.host.kernel-btf
  "Where the BTF of the running kernel is: in files, and in objects by id."
  (:require [bpfmap.btf :as btf]
            [bpfmap.error :as error]
            [bpfmap.impl.kernel.btf :as sys.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.kernel.token :as token])
  (:import (bpfmap.sys Fd)
           (java.io Closeable IOException)))

(set! *warn-on-reflection* true)

(def ^:private directory "/sys/kernel/btf/")

(defn- file [op name]
  (let [path (str directory name)]
    (try
      (procfs/bytes-of path)
      (catch IOException e
        (throw (error/error :not-found (str "There is no BTF of " name)
                            {:bpfmap/op op :bpfmap/file path
                             :bpfmap/hint (str "the kernel shows none: it has no such module, "
                                               "or was built without CONFIG_DEBUG_INFO_BTF")}
                            e))))))

(defn kernel
  "The BTF of the kernel, for an operation."
  ([] (kernel :kernel-btf))
  ([op] (btf/parse (file op "vmlinux"))))

(defn module
  "The BTF of a module, on that of the kernel."
  [module]
  (when-not (and (string? module) (re-matches #"[A-Za-z0-9_]+" module) (not= "vmlinux" module))
    (throw (error/error :invalid-value
                        (str "Not the name of a module: " (pr-str (error/shown module)))
                        {:bpfmap/op :module-btf})))
  (btf/parse (file :module-btf module) (kernel)))

(defn by-id
  "The BTF object of an id; a module's is on that of the kernel."
  [id]
  (when-not (and (int? id) (<= 0 (long id) 0xffffffff))
    (throw (error/error :invalid-value (str "Not an id: " (pr-str (error/shown id)))
                        {:bpfmap/op :btf-by-id})))
  (let [{:keys [bytes name kernel?]} (sys.btf/blob id {:op :btf-by-id})]
    (if (and kernel? (not= "vmlinux" name))
      (btf/parse bytes (kernel))
      (btf/parse bytes))))

;; A BTF object in the kernel, owned here.
(deftype Loaded [^Fd fd]
  Closeable
  (close [_] (call/close fd))
  Object
  (toString [_] (str "#<bpf-btf" (when (.isClosed fd) " closed") ">")))

(defmethod print-method Loaded [loaded ^java.io.Writer w]
  (.write w (str loaded)))

(defn load-types
  "Types as a BTF object of the kernel."
  ^Closeable [types named]
  (when-not (sequential? types)
    (throw (error/error :invalid-value
                        (str "The types must be a sequence, got " (pr-str (error/shown types)))
                        {:bpfmap/op :load-btf})))
  (let [{:keys [bytes]} (btf/->btf types named)
        ctx {:op :load-btf}]
    (Loaded. (token/allowing ctx #(sys.btf/load bytes % ctx)))))
