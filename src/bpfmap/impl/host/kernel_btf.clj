(ns ^:no-doc bpfmap.impl.host.kernel-btf
  "Reads the BTF of the running kernel: from files, and from objects by id."
  (:require [bpfmap.btf :as btf]
            [bpfmap.error :as error]
            [bpfmap.impl.kernel.btf :as kernel.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.kernel.token :as token])
  (:import (bpfmap.sys Fd)
           (java.io Closeable File IOException)))

(set! *warn-on-reflection* true)

(def ^:private directory "/sys/kernel/btf/")

(defn- read-file [op name]
  (let [path (str directory name)]
    (try
      (procfs/read-bytes path)
      (catch IOException e
        (when (.exists (File. path))
          (throw (procfs/unreadable path e op)))
        (throw (error/error :not-found (str "The kernel has no BTF of " name)
                            {:bpfmap/op op :bpfmap/file path
                             :bpfmap/hint (str "it has no such module, "
                                               "or was built without CONFIG_DEBUG_INFO_BTF")}
                            e))))))

(defn present?
  "Returns true if the kernel has its BTF in a file."
  []
  (.exists (File. (str directory "vmlinux"))))

(defn kernel
  "Returns the BTF of the kernel."
  ([] (kernel :kernel-btf))
  ([op] (btf/parse (read-file op "vmlinux"))))

(defn module
  "Returns the BTF of a module, based on the BTF of the kernel."
  [module]
  (when-not (and (string? module) (re-matches #"[A-Za-z0-9_]+" module) (not= "vmlinux" module))
    (throw (error/error :invalid-value
                        (str "The name of a module must be letters, digits and `_`, got "
                             (error/printed module))
                        {:bpfmap/op :module-btf})))
  (btf/parse (read-file :module-btf module) (kernel)))

(defn by-id
  "Returns the BTF object with an id.
  A module's is based on the kernel's."
  [id]
  (when-not (and (int? id) (<= 0 (long id) 0xffffffff))
    (throw (error/error :invalid-value (str "An id must be an integer from 0 to 4294967295, got "
                                            (error/printed id))
                        {:bpfmap/op :btf-by-id})))
  (let [{:keys [bytes name] kernel? :kernel} (kernel.btf/blob id {:op :btf-by-id})]
    (if (and kernel? (not= "vmlinux" name))
      (btf/parse bytes (kernel))
      (btf/parse bytes))))

;; --- for CO-RE

(defn- module-names []
  (sort (remove #{"vmlinux"} (.list (File. ^String directory)))))

(defn- modules
  "Returns pairs of the name and the BTF of each module.

  Leaves out a module that disappears before it is read."
  [kernel-btf]
  (into []
        (keep (fn [module]
                (when-let [bytes (try
                                   (procfs/read-bytes (str directory module))
                                   (catch IOException _ nil))]
                  [module (btf/parse bytes kernel-btf)])))
        (module-names)))

(def ^:private running "The BTF of the kernel, once it was needed." (atom nil))

(defn running-kernel
  "Returns the BTF of the kernel, which is read once."
  []
  (or @running
      (locking running
        (or @running
            (reset! running (kernel))))))

(def ^:private known-modules "The names of modules, and their BTF." (atom nil))

(defn running-modules
  "Returns pairs of the name and the BTF of each module.

  They are read again when other modules are there."
  []
  (let [names (vec (module-names))
        {:keys [found] known :names} @known-modules]
    (if (= names known)
      found
      (:found (reset! known-modules {:names names :found (modules (running-kernel))})))))

(defn targets
  "Returns the types of the running kernel for `bpfmap.impl.object.core/resolve`.

  Reads the BTF of the kernel once. Reads the modules only when the kernel does not have a name."
  []
  (let [b (running-kernel)]
    ;; Most programs that use maps do not need CO-RE.
    ((requiring-resolve 'bpfmap.impl.object.core/targets) b (delay (running-modules)))))

;; --- loading

;; A BTF object in the kernel. Owns its descriptor.
(deftype LoadedBtf [^Fd fd]
  Closeable
  (close [_] (call/close fd))
  Object
  (toString [_] (str "#<bpf-btf" (when (.isClosed fd) " closed") ">")))

(defmethod print-method LoadedBtf [x ^java.io.Writer w]
  (.write w (str x)))

(defn load-types
  "Loads types into the kernel as a BTF object; returns it, to be closed."
  ^Closeable [types named]
  (when-not (sequential? types)
    (throw (error/error :invalid-value
                        (str "The types must be a sequence, got " (error/printed types))
                        {:bpfmap/op :load-btf})))
  (let [{:keys [bytes]} (btf/->btf types named)
        ctx {:op :load-btf}]
    (LoadedBtf. (token/with-token ctx #(kernel.btf/load bytes % ctx)))))
