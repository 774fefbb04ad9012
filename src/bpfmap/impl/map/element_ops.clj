(ns ^:no-doc bpfmap.impl.map.element-ops
  "Operations on one element of an open map, and the options that they take."
  (:refer-clojure :exclude [peek pop!])
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.codec.element :as codec-element]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.element :as element]
            [bpfmap.impl.map.bpf-map :as bpf-map :refer [with-entry with-error-context with-key]]
            [bpfmap.impl.memory.fast-path :as fast-path :refer [or-fallback]]
            [bpfmap.impl.options :as options]
            [bpfmap.impl.rules :as rules]
            [bpfmap.impl.spec :as spec]
            [bpfmap.impl.type.node :as node])
  (:import (bpfmap.impl.map.bpf_map BpfMap)))

(set! *warn-on-reflection* true)

;; ---------------------------------------------------------------- options

(defn- invalid [^BpfMap m op path message hint]
  (error/error :invalid-value message
               {:bpfmap/op op :bpfmap/map (bpf-map/identity-of m) :bpfmap/path path
                :bpfmap/hint hint}))

(defn- check-lock [^BpfMap m op lock]
  (let [{:keys [value type] :as spec} (bpf-map/spec-of m)]
    (when (and lock (not (spec/locked-value? spec)))
      (throw (invalid m op [:lock]
                      (str "Values of this map have no lock: " (pr-str (error/shown value)))
                      (if (:lock? (rules/types type))
                        "a value to be locked has a field of type :spin-lock; open the map with the type of its values"
                        (str "a map of type " type " has no spin locks")))))))

(defn- check-cpu [^BpfMap m op {:keys [cpu] :as options}]
  (let [possible (bpf-map/cpus-of m)]
    (when-not possible
      (throw (invalid m op [(if (contains? options :cpu) :cpu :cpus)] "This is no per-CPU map"
                      "each key has one value")))
    (when (and (contains? options :cpu) (contains? options :cpus))
      (throw (invalid m op [:cpu] ":cpu and :cpus exclude each other" nil)))
    (when (and (contains? options :cpu) (not (some #{cpu} possible)))
      (throw (invalid m op [:cpu] (str "There is no CPU " (pr-str (error/shown cpu)))
                      (str "the possible CPUs are " (error/list-of possible "and")))))))

(defn check-options
  "Throws for options that an operation does not take, or that do not fit the map; returns the
  flags that they ask for."
  [^BpfMap m op options]
  (if (nil? options)
    element/any
    (do
      (options/check op options)
      (when (contains? options :lock) (check-lock m op (:lock options)))
      (when (or (contains? options :cpu) (contains? options :cpus)) (check-cpu m op options))
      (if (:lock options) element/lock element/any))))

(defn cpu-value
  "A function from a per-CPU value to what the options ask for: all of it, or that of one CPU."
  [^BpfMap m options]
  (if (contains? options :cpu)
    (let [i (.indexOf ^java.util.List (bpf-map/cpus-of m) (:cpu options))]
      #(nth % i))
    identity))

(defn repeat-for-cpus
  "A value as it is written: with `{:cpus :all}` the same for every CPU."
  [^BpfMap m v options]
  (if (:cpus options)
    (vec (repeat (count (bpf-map/cpus-of m)) v))
    v))

;; ---------------------------------------------------------------- elements

(defn lookup
  "The value of a key, or not-found, as the options ask."
  [^BpfMap m k not-found options]
  (with-error-context [m :lookup]
    (let [flags (check-options m :lookup options)
          found (with-key [m :lookup k ::absent]
                  (element/lookup (.-elements m) (.-key-codec m) (.-value-codec m) k ::absent flags
                                  m :lookup))]
      (if (identical? ::absent found)
        not-found
        ((cpu-value m options) found)))))

(defn take!
  "The value of a key, which is deleted in the same step; or not-found."
  [^BpfMap m k not-found options]
  (with-error-context [m :take!]
    (let [flags (check-options m :take! options)]
      (element/take-out (.-elements m) (.-key-codec m) (.-value-codec m) k not-found flags m
                        :take!))))

(defn- write-cpu-alone
  "Writes the value of one CPU by BPF_F_CPU, with the flags given."
  [^BpfMap m op k v flags cpu]
  (let [{:keys [value-size key-size] :as spec} (bpf-map/spec-of m)]
    (element/write (element/elements (bpf-map/descriptor m) key-size value-size) (.-key-codec m)
              (codec/of-node (node/node-of spec :value) [:value])
              k v (bit-or (long flags) (element/cpu cpu)) m op)))

(defn- feature
  "The answer of `bpfmap.feature`, which loads an assembler, for the tries."
  [question & args]
  (:supported (apply (requiring-resolve (symbol "bpfmap.feature" (name question))) args)))

(defn- write-cpu
  "Writes the value of one CPU. A key that is new has zeros for the others, which the kernel need
  not be able to do by itself. For one that exists it must be: reading all, changing one and
  writing all would undo what programs write to the others meanwhile.

  With BPF_F_CPU kernels do not look whether the key exists (seen on 7.2): there is no writing one
  CPU's value of a key only if it is there."
  [^BpfMap m op k v flags cpu]
  (let [{:keys [type] :as spec} (bpf-map/spec-of m)
        cpus (bpf-map/cpus-of m)
        instead "; write a whole vector, or {:cpus :all}"]
    (cond
      (element/only-new? flags)
      (element/write (.-elements m) (.-key-codec m)
                     (codec-element/of-one-cpu spec (count cpus)
                                               (.indexOf ^java.util.List cpus cpu)) k v flags m op)

      (not (feature :element-flag :cpu))
      (bpf-map/refuse m op :not-supported
                    (str "this kernel (" (call/kernel-release)
                         ") does not write the value of one CPU alone (BPF_F_CPU), which came with "
                         "Linux "
                         (:since (:cpu rules/element-flags))
                         "; writing those of all CPUs for it would undo what programs count on the "
                         "others "
                         "meanwhile" instead))

      (or (= element/any flags) (:every-index (bpf-map/row-of m)))
      (write-cpu-alone m op k v element/any cpu)

      (feature :conditional-write type :cpu)
      (write-cpu-alone m op k v flags cpu)

      :else
      (bpf-map/refuse m op :not-supported
                    (str "this kernel (" (call/kernel-release)
                         ") does not look whether the key exists when it writes the value of one "
                         "CPU alone "
                         "(BPF_F_CPU): it would make the entry" instead
                         ", or put! it if it may be made")))))

(defn- write-plain [^BpfMap m op flags k v]
  (with-entry [m op k v]
    (element/write (.-elements m) (.-key-codec m) (.-value-codec m) k v flags m op)))

(defn- write-with [^BpfMap m op flags k v options]
  (let [flags (bit-or (long flags) (long (check-options m op options)))
        v (repeat-for-cpus m v options)]
    (if (contains? options :cpu)
      (write-cpu m op k v flags (:cpu options))
      (write-plain m op flags k v))))

(defn write
  "Writes an entry under `any`, `no-exist` or `exist`; whether it was written."
  [^BpfMap m op flags k v options]
  (with-error-context [m op]
    (if (nil? options)
      (or-fallback (fast-path/write (when (identical? :put! op) (.-direct m)) k v)
        (write-plain m op flags k v))
      (write-with m op flags k v options))))

(defn not-there
  "The answers of a delete that mean that nothing is there: an empty slot, an index beyond the
  end, a struct_ops value that was unregistered before."
  [^BpfMap m]
  (let [{:keys [index? one-index]} (bpf-map/row-of m)]
    (cond
      index? element/empty-slot
      one-index element/not-registered
      :else #{})))

(defn out-of-range-index?
  "Whether a key is an index beyond the only one, which the kernel would take for it in a delete."
  [^BpfMap m k]
  (and (:one-index (bpf-map/row-of m))
       (if (bytes/byte-view? k)
         (and (= 4 (count k)) (not-every? zero? k))
         (and (int? k) (<= 1 (long k) 0xffffffff)))))

(defn delete!
  "Deletes a key; whether it was there."
  [^BpfMap m k]
  (with-error-context [m :delete!]
    (if (out-of-range-index? m k)
      false
      (with-key [m :delete! k false]
        (element/delete (.-elements m) (.-key-codec m) k not-there m :delete!)))))

(defn- absent?
  "Returns true if the kernel has no element under a key that it named."
  [^BpfMap m k]
  (identical? ::absent
              (element/lookup (.-elements m) (.-key-codec m) element/raw-key k ::absent element/any
                              m :next-key)))

(defn next-key
  "The key after k in the kernel's order, or the first one; nil after the last."
  [^BpfMap m k first?]
  (with-error-context [m :next-key]
    (let [found (element/next-key (.-elements m) (.-key-codec m) k first? m :next-key)]
      (when-not (and (some? found) (:names-absent? (bpf-map/row-of m)) (absent? m found))
        found))))

;; ---------------------------------------------------------------- maps without keys

(defn push!
  "Adds a value; to a full map too, if the oldest may go."
  [^BpfMap m v options]
  (with-error-context [m :push!]
    (check-options m :push! options)
    (element/write (.-elements m) nil (.-value-codec m) nil v
                   (if (:overwrite options) element/exist element/any) m :push!))
  m)

(defn pop!
  "The next value, which is removed; or not-found."
  [^BpfMap m not-found]
  (with-error-context [m :pop!]
    (element/take-out (.-elements m) nil (.-value-codec m) nil not-found element/any m :pop!)))

(defn peek
  "The next value, which stays; or not-found."
  [^BpfMap m not-found]
  (with-error-context [m :peek]
    (element/lookup (.-elements m) nil (.-value-codec m) nil not-found element/any m :peek)))

(defn might-contain?
  "Whether a value may be in a bloom filter."
  [^BpfMap m v]
  (with-error-context [m :might-contain?]
    (element/contained? (.-elements m) (.-value-codec m) v m :might-contain?)))
