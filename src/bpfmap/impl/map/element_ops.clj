(ns ^:no-doc bpfmap.impl.map.element-ops
  "Operations on one element of an open map, but for `lookup`.

  That is in bpfmap.impl.map.bpf-map, with the options of operations."
  (:refer-clojure :exclude [peek pop!])
  (:require [bpfmap.impl.codec :as codec]
            [bpfmap.impl.codec.map-codecs :as map-codecs]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.element :as kernel.element]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map :refer [with-entry with-error-context with-key]]
            [bpfmap.impl.memory.mapping :as mapping :refer [or-fallback]]
            [bpfmap.impl.type.node :as node])
  (:import (bpfmap.impl.map.bpf_map BpfMap)))

(set! *warn-on-reflection* true)

;; --- elements

(defn take!
  "Returns the value of a key and deletes the key in the same step; or not-found."
  [^BpfMap m k not-found options]
  (with-error-context [m :take!]
    (let [flags (bpf-map/check-options m :take! options)]
      (kernel.element/lookup-and-delete (.-elements m) (.-key-codec m) (.-value-codec m) k not-found
                                        flags m
                                        :take!))))

(defn- write-cpu-alone
  "Writes the value of one CPU by BPF_F_CPU, with the flags given."
  [^BpfMap m op k v flags cpu]
  (let [{:keys [value-size key-size] :as spec} (bpf-map/spec-of m)]
    (kernel.element/write (kernel.element/elements (bpf-map/descriptor m) key-size value-size)
                          (.-key-codec m)
                          (codec/of-node (node/node-of spec :value) [:value])
                          k v (bit-or (long flags) (kernel.element/cpu cpu)) m op)))

(defn- feature-supported?
  "Returns true if `bpfmap.feature` reports support.
  Loads an assembler on demand.

  A simulated map has the flag for one CPU, and like the latest kernel that was measured, does not
  check that the key exists then."
  [^BpfMap m question & args]
  (if (call/simulated? (bpf-map/descriptor m))
    (= :element-flag question)
    (:supported (apply (requiring-resolve (symbol "bpfmap.feature" (name question))) args))))

(defn- write-cpu
  "Writes the value of one CPU.

  A new key gets zeros for the other CPUs, for which the kernel needs no support. For a key that
  exists, it does: reading all values, changing one and writing all would undo the writes of
  programs to the others.

  With BPF_F_CPU kernels do not look whether the key exists (measured on 7.2), so the value of one
  CPU cannot be written only if the key exists."
  [^BpfMap m op k v flags cpu]
  (let [{:keys [type] :as spec} (bpf-map/spec-of m)
        cpus (bpf-map/cpus-of m)
        instead "; write a whole vector, or {:cpus :all}"]
    (cond
      (kernel.element/only-new? flags)
      (kernel.element/write (.-elements m) (.-key-codec m)
                            (map-codecs/of-one-cpu spec (count cpus)
                                                   (.indexOf ^java.util.List cpus cpu)) k v flags
                            m op)

      (not (feature-supported? m :element-flag :cpu))
      (bpf-map/refuse m op :not-supported
                      (str "this kernel (" (call/kernel-release)
                           ") does not write the value of one CPU alone (BPF_F_CPU), which came "
                           "with Linux " (:since (:cpu map-types/element-flags))
                           "; writing the values of all CPUs instead would undo the writes of "
                           "programs on the others" instead))

      (or (= kernel.element/any flags) (:every-index (bpf-map/row-of m)))
      (write-cpu-alone m op k v kernel.element/any cpu)

      (feature-supported? m :conditional-write type :cpu)
      (write-cpu-alone m op k v flags cpu)

      :else
      (bpf-map/refuse m op :not-supported
                      (str "this kernel (" (call/kernel-release)
                           ") does not check that the key exists when it writes the value of one "
                           "CPU alone "
                           "(BPF_F_CPU): it would make the entry" instead
                           ", or put! it if it may be made")))))

(defn- write-plain [^BpfMap m op flags k v]
  (with-entry [m op k v]
    (kernel.element/write (.-elements m) (.-key-codec m) (.-value-codec m) k v flags m op)))

(defn- write-with [^BpfMap m op flags k v options]
  (let [flags (bit-or (long flags) (long (bpf-map/check-options m op options)))
        v (bpf-map/repeat-for-cpus m v options)]
    (if (contains? options :cpu)
      (write-cpu m op k v flags (:cpu options))
      (write-plain m op flags k v))))

(defn write
  "Writes an entry under `any`, `no-exist` or `exist`; returns true if written."
  [^BpfMap m op flags k v options]
  (with-error-context [m op]
    (if (nil? options)
      (or-fallback (mapping/write (when (identical? :put! op) (.-fast-path m)) k v)
        (write-plain m op flags k v))
      (write-with m op flags k v options))))

(defn delete!
  "Deletes a key; returns true if it existed."
  [^BpfMap m k]
  (with-error-context [m :delete!]
    (if (bpf-map/out-of-range-index? m k)
      false
      (with-key [m :delete! k false]
        (kernel.element/delete (.-elements m) (.-key-codec m) k bpf-map/missing-errnos m
                               :delete!)))))

(defn- absent?
  "Returns true if the kernel has no element under a key that it returned."
  [^BpfMap m k]
  (identical? ::absent
              (kernel.element/lookup (.-elements m) (.-key-codec m) kernel.element/raw-key-codec k
                                     ::absent kernel.element/any
                                     m :next-key)))

(defn next-key
  "Returns the key after k in the kernel's order, or the first key.

  Returns nil after the last key."
  [^BpfMap m k first?]
  (with-error-context [m :next-key]
    (let [found (kernel.element/next-key (.-elements m) (.-key-codec m) k first? m :next-key)]
      (when-not (and (some? found) (:names-absent (bpf-map/row-of m)) (absent? m found))
        found))))

;; --- maps without keys

(defn push!
  "Pushes a value.
  With `:overwrite`, a full map drops its oldest value."
  [^BpfMap m v options]
  (with-error-context [m :push!]
    (bpf-map/check-options m :push! options)
    (kernel.element/write (.-elements m) nil (.-value-codec m) nil v
                          (if (:overwrite options) kernel.element/exist kernel.element/any) m
                          :push!))
  m)

(defn pop!
  "Returns and removes the next value; or returns not-found."
  [^BpfMap m not-found]
  (with-error-context [m :pop!]
    (kernel.element/lookup-and-delete (.-elements m) nil (.-value-codec m) nil not-found
                                      kernel.element/any m :pop!)))

(defn peek
  "Returns the next value without removing it, or not-found."
  [^BpfMap m not-found]
  (with-error-context [m :peek]
    (kernel.element/lookup (.-elements m) nil (.-value-codec m) nil not-found kernel.element/any m
                           :peek)))

(defn might-contain?
  "Returns true if a value may be in a bloom filter."
  [^BpfMap m v]
  (with-error-context [m :might-contain?]
    (kernel.element/might-contain? (.-elements m) (.-value-codec m) v m :might-contain?)))
