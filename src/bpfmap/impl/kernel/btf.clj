(ns ^:no-doc bpfmap.impl.kernel.btf
  "The commands of bpf(2) on BTF objects."
  (:refer-clojure :exclude [load])
  (:require [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.rules :as rules])
  (:import (bpfmap.sys Abi Attr Bytes Fd Info)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(defn load
  "Loads a blob into the kernel; returns its descriptor. Needs Linux 4.18. `token` is the
  descriptor of a BPF token, or nil."
  ^Fd [^bytes blob ^Fd token ctx]
  (call/command "Loading the BTF" ctx Abi/BPF_BTF_LOAD
               (fn [^Attr attr]
                 (.bytes attr Abi/BTF_LOAD_BTF blob)
                 (.int32 attr Abi/BTF_LOAD_BTF_SIZE (alength blob))
                 (when token
                   (.int32 attr Abi/BTF_LOAD_BTF_FLAGS (rules/flag-word [:token-fd]))
                   (.fd attr Abi/BTF_LOAD_BTF_TOKEN_FD token)))
               call/own))

(defn- by-id ^Fd [id ctx]
  ;; Ids take capabilities, whatever the map was opened by.
  (call/command (str "Opening BTF " id) (-> ctx (dissoc :path) (assoc :op :btf-by-id))
               Abi/BPF_BTF_GET_FD_BY_ID
               (fn [^Attr attr] (.int32 attr Abi/ID_START_ID id))
               call/own))

(def ^:private info-size
  "Bytes. Before Linux 5.11 the struct has 16, without name and :kernel?: that of the kernel
  itself is no object there."
  32)

(def ^:private longest-name "Bytes; the kernel names modules, and they have shorter names." 64)

(defn- info
  "What the kernel says of a BTF object, having copied up to `room` bytes of it: `{:size :name
  :kernel? :bytes}`."
  [^Fd fd room ctx]
  (call/info
   "Reading the BTF" fd info-size ctx
   (fn [^Attr attr memory]
     (let [copy (.spare attr (long room))
           text (.spare attr longest-name)]
       (Bytes/put64 memory Info/BTF_BTF (.address ^MemorySegment copy) false)
       (Bytes/put32 memory Info/BTF_BTF_SIZE (long room) false)
       (Bytes/put64 memory Info/BTF_NAME (.address ^MemorySegment text) false)
       (Bytes/put32 memory Info/BTF_NAME_LEN longest-name false)
       [copy text]))
   (fn [memory [copy text]]
     (let [size (call/u32 memory Info/BTF_BTF_SIZE)]
       {:size size
        :name (call/text text 0 longest-name)
        :kernel? (not (zero? (long (call/u32 memory Info/BTF_KERNEL_BTF))))
        :bytes (Bytes/copyOut copy 0 (int (min (long room) (long size))))}))))

(defn blob
  "The blob of a BTF object by its id: `{:bytes byte-array :name text :kernel? boolean}`. Needs
  CAP_SYS_ADMIN.

  That of the kernel itself, named vmlinux, or of a module is `:kernel?`."
  [id ctx]
  (let [fd (by-id id ctx)]
    (try
      (let [{:keys [size]} (info fd 0 ctx)]
        (select-keys (info fd size ctx) [:bytes :name :kernel?]))
      (finally (call/close fd)))))
