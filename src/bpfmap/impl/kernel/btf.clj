(ns ^:no-doc bpfmap.impl.kernel.btf
  "Commands of bpf(2) on BTF objects."
  (:refer-clojure :exclude [load])
  (:require [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.map-types :as map-types])
  (:import (bpfmap.sys Abi Attr Bytes Fd Info)
           (clojure.lang ExceptionInfo)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(defn load
  "Loads BTF into the kernel; returns its descriptor.
  Needs Linux 4.18.

  `token` is the descriptor of a BPF token, or nil."
  ^Fd [^bytes blob ^Fd token ctx]
  (call/command "Loading the BTF" ctx Abi/BPF_BTF_LOAD
                (fn [^Attr attr]
                  (.bytes attr Abi/BTF_LOAD_BTF blob)
                  (.int32 attr Abi/BTF_LOAD_BTF_SIZE (alength blob))
                  (when token
                    (.int32 attr Abi/BTF_LOAD_BTF_FLAGS (map-types/flag-word [:token-fd]))
                    (.fd attr Abi/BTF_LOAD_BTF_TOKEN_FD token)))
                call/own-fd))

(defn refused?
  "Returns true if the kernel rejected BTF as such.

  The reason is a kind or a name that it does not know, or the map type."
  [e]
  (contains? #{:EINVAL :ENOTSUPP :EOPNOTSUPP :E2BIG} (:bpfmap/errno (ex-data e))))

(defn- open-id ^Fd [id ctx]
  ;; Opening by id requires capabilities, even if the map was opened by path.
  (call/command (str "Opening BTF " id) (-> ctx (dissoc :path) (assoc :op :btf-by-id))
                Abi/BPF_BTF_GET_FD_BY_ID
                (fn [^Attr attr] (.int32 attr Abi/ID_START_ID id))
                call/own-fd))

(def ^:private info-size
  "Bytes.
  Before Linux 5.11 the struct has 16, without `:name` and `:kernel`.

  Those kernels have no BTF object for the kernel itself."
  32)

(def ^:private name-room "Bytes.
  Only modules have names, and theirs are shorter." 64)

(defn- info
  "Returns `{:size :name :kernel :bytes}` of a BTF object.

  `:bytes` has at most `room` bytes of it."
  [^Fd fd room ctx]
  (call/info
   "Reading the BTF" fd info-size ctx
   (fn [^Attr attr memory]
     (let [copy (.spare attr (long room))
           text (.spare attr name-room)]
       (Bytes/put64 memory Info/BTF_BTF (.address ^MemorySegment copy) false)
       (Bytes/put32 memory Info/BTF_BTF_SIZE (long room) false)
       (Bytes/put64 memory Info/BTF_NAME (.address ^MemorySegment text) false)
       (Bytes/put32 memory Info/BTF_NAME_LEN name-room false)
       [copy text]))
   (fn [memory [copy text]]
     (let [size (call/u32 memory Info/BTF_BTF_SIZE)]
       {:size size
        :name (call/text text 0 name-room)
        :kernel (not (zero? (long (call/u32 memory Info/BTF_KERNEL_BTF))))
        :bytes (Bytes/copyOut copy 0 (int (min (long room) (long size))))}))))

(defn blob
  "Returns a BTF object by its id: `{:bytes array :name text :kernel boolean}`.

  `:kernel` is true for the kernel, which is named vmlinux, and for its modules. Needs
  CAP_SYS_ADMIN."
  [id ctx]
  (let [fd (open-id id ctx)]
    (try
      (let [{:keys [size]} (info fd 0 ctx)]
        (select-keys (info fd size ctx) [:bytes :name :kernel]))
      (finally (call/close fd)))))

(defn open-named
  "Opens the BTF object of the kernel or of a module by its name; or returns nil.

  Needs Linux 5.11 and CAP_SYS_ADMIN."
  ^Fd [name ctx]
  (some (fn [id]
          (when-let [fd (try
                          (open-id id ctx)
                          (catch ExceptionInfo e
                            ;; Gone since the ids were read.
                            (when-not (= :ENOENT (:bpfmap/errno (ex-data e)))
                              (throw e))))]
            (let [found? (try
                           (let [found (info fd 0 ctx)]
                             (and (:kernel found) (= name (:name found))))
                           (catch Throwable e
                             (call/close fd)
                             (throw e)))]
              (if found?
                fd
                (do (call/close fd) nil)))))
        (call/ids :btf ctx)))
