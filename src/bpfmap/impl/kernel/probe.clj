(ns ^:no-doc bpfmap.impl.kernel.probe
  "Makes bpf(2) commands for probes: the outcome is returned, and never thrown.

  An outcome is a non-negative number or a negated errno. Keys and values are bytes."
  (:require [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.map-types :as map-types])
  (:import (bpfmap.sys Abi Attr Fd)))

(set! *warn-on-reflection* true)

(def ^:private element-commands
  {:lookup Abi/BPF_MAP_LOOKUP_ELEM
   :update Abi/BPF_MAP_UPDATE_ELEM
   :delete Abi/BPF_MAP_DELETE_ELEM
   :next-key Abi/BPF_MAP_GET_NEXT_KEY
   :lookup-and-delete Abi/BPF_MAP_LOOKUP_AND_DELETE_ELEM})

(def ^:private batch-commands
  {:lookup-batch Abi/BPF_MAP_LOOKUP_BATCH
   :lookup-and-delete-batch Abi/BPF_MAP_LOOKUP_AND_DELETE_BATCH
   :update-batch Abi/BPF_MAP_UPDATE_BATCH
   :delete-batch Abi/BPF_MAP_DELETE_BATCH})

(def operations
  "The operations of [[operate]]."
  (-> (conj (set (keys element-commands)) :freeze) (into (keys batch-commands))))

(def element-flags
  "Flags of element operations: name to the operation that tests it, and its bits.

  The number of a CPU is in the upper 32 bits, so `:cpu` selects CPU 0."
  (into {} (for [[flag op] {:lock :lookup, :cpu :lookup, :all-cpus :update}]
             [flag {:op op :bits (:value (map-types/element-flags flag))}])))

(defn- call [command ctx fill]
  (call/command "Probing" ctx command fill (fn [outcome _ _] outcome) neg?))

(defn operate
  "Makes an operation on an open map; returns the outcome.

  `:key` and `:value` are byte arrays, the key nil for a map without keys; `:flags` are bits. A
  batch operation is made with no elements: the kernel checks first if the map type supports it."
  [op ^Fd fd {:keys [key value flags]} ctx]
  (cond
    (= :freeze op)
    (call Abi/BPF_MAP_FREEZE ctx (fn [^Attr attr] (.fd attr Abi/ELEM_MAP_FD fd)))

    (batch-commands op)
    (call (batch-commands op) ctx (fn [^Attr attr]
                                    (.int32 attr Abi/BATCH_COUNT 0)
                                    (.fd attr Abi/BATCH_MAP_FD fd)))

    :else
    (call (element-commands op) ctx (fn [^Attr attr]
                                      (.fd attr Abi/ELEM_MAP_FD fd)
                                      (when key (.bytes attr Abi/ELEM_KEY key))
                                        ;; Everything after a command's last field must be zero.
                                      (when-not (= :delete op) (.bytes attr Abi/ELEM_VALUE value))
                                      (when flags (.int64 attr Abi/ELEM_FLAGS flags))))))

(def ^:private ^:const log-size
  "Bytes.
  A program of a few instructions has a short log."
  0x10000)

(defn load-program
  "Loads a program and closes it: `{:outcome number :log text}`.

  `:kernel-version` is a `LINUX_VERSION_CODE`, `:attach-type` a number of `enum bpf_attach_type`."
  [{:keys [type ^bytes insns attach-type kernel-version sleepable]} ctx]
  (call/command "Probing" ctx Abi/BPF_PROG_LOAD
                (fn [^Attr attr]
                  (doto attr
                    (.int32 Abi/PROG_LOAD_PROG_TYPE type)
                    (.int32 Abi/PROG_LOAD_INSN_CNT (quot (alength insns) 8))
                    (.bytes Abi/PROG_LOAD_INSNS insns)
                    (.string Abi/PROG_LOAD_LICENSE "GPL")
                    (.int32 Abi/PROG_LOAD_LOG_LEVEL 1)
                    (.int32 Abi/PROG_LOAD_LOG_SIZE log-size))
                  (when kernel-version (.int32 attr Abi/PROG_LOAD_KERN_VERSION kernel-version))
                  (when sleepable (.int32 attr Abi/PROG_LOAD_PROG_FLAGS Abi/BPF_F_SLEEPABLE))
                  (when attach-type (.int32 attr Abi/PROG_LOAD_EXPECTED_ATTACH_TYPE attach-type))
                  (.buffer attr Abi/PROG_LOAD_LOG_BUF log-size))
                (fn [outcome attr memory]
                  (when-not (neg? (long outcome))
                    (call/close (call/own-fd outcome attr memory)))
                  {:outcome outcome :log (call/text memory 0 log-size)})
                neg?))
