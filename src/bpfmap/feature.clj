(ns bpfmap.feature
  "What the running kernel has, found out by trying.

  A probe creates the smallest map that needs the feature. Its answer is
  `{:supported? true}`, `{:supported? false}`, or, when the try failed for a reason of its own such as a missing
  capability, `{:supported? nil :why message}`. Only the first two are remembered."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.maps :as maps]
            [bpfmap.rules :as rules]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def ^:private smallest
  "Where the smallest map of a type is not one entry of four bytes each."
  {:stack-trace {:value-size 8}
   :lpm-trie {:key-size 8 :flags #{:no-prealloc}}
   :cgroup-storage {:key-size 8 :max-entries 0}
   :percpu-cgroup-storage {:key-size 8 :max-entries 0}
   :queue {:key-size 0}
   :stack {:key-size 0}
   :bloom-filter {:key-size 0}
   :ringbuf {:key-size 0 :value-size 0 :max-entries 4096}
   :user-ringbuf {:key-size 0 :value-size 0 :max-entries 4096}
   :arena {:key-size 0 :value-size 0 :flags #{:mmapable}}
   :insn-array {:value-size 16}
   :rhash {:flags #{:no-prealloc}}})

(def ^:private not-probed
  "Types whose smallest map needs more than sizes."
  {:array-of-maps "it needs an inner map" :hash-of-maps "it needs an inner map"
   :sk-storage "it needs BTF" :inode-storage "it needs BTF" :task-storage "it needs BTF"
   :cgrp-storage "it needs BTF" :struct-ops "it needs BTF"})

(def ^:private answers (atom {}))

(def ^:private unsupported-errnos
  "How a kernel refuses a type or a flag that it does not know."
  #{:EINVAL :ENOTSUPP :EOPNOTSUPP})

(defn- try-map [spec]
  (try
    (sys/close (maps/create spec {:op :create}))
    {:supported? true}
    (catch clojure.lang.ExceptionInfo e
      (if (unsupported-errnos (:bpfmap/errno (ex-data e)))
        {:supported? false}
        {:supported? nil :why (ex-message e)}))))

(defn- remembered [question ask]
  (or (get @answers question)
      (let [answer (ask)]
        (when (some? (:supported? answer))
          (swap! answers assoc question answer))
        answer)))

(defn- smallest-map [type]
  (merge {:type type :key-size 4 :value-size 4 :max-entries 1 :flags #{}} (smallest type)))

(defn- invalid [what x hint]
  (error/error :invalid-value (str "Not " what ": " (pr-str (error/shown x)))
               {:bpfmap/op :feature :bpfmap/hint hint}))

(defn- number-of-32-bits? [x]
  (and (int? x) (<= 0 (long x) 0xffffffff)))

(defn- checked-type [type]
  (let [type (if (number-of-32-bits? type) (rules/type-name type) type)]
    (if (or (number-of-32-bits? type) (contains? rules/types type))
      type
      (throw (invalid "a map type" type "it is a name from bpfmap.rules/types, or a number")))))

(defn- checked-flag [flag]
  (let [flag (if (number-of-32-bits? flag) (first (rules/flag-set flag)) flag)]
    (if (or (number-of-32-bits? flag) (contains? rules/flags flag))
      flag
      (throw (invalid "a create flag" flag "it is a name from bpfmap.rules/flags, or a power of two")))))

(defn map-type
  "Whether this kernel has a map type, by name or number.

      (map-type :hash) ;=> {:supported? true}"
  [type]
  (let [type (checked-type type)]
    (if-let [why (not-probed type)]
      {:supported? nil :why (str type " is not probed: " why)}
      (remembered [type] #(try-map (smallest-map type))))))

(defn map-flag
  "Whether this kernel accepts a create flag on a map type; names, or numbers (of a flag its value, a power of two).

      (map-flag :array :mmapable) ;=> {:supported? true}"
  [type flag]
  (let [type (checked-type type)
        flag (checked-flag flag)
        type-answer (map-type type)]
    (if (:supported? type-answer)
      (remembered [type flag] #(try-map (cond-> (update (smallest-map type) :flags conj flag)
                                          (= :stack-build-id flag) (assoc :value-size 32)))) ; struct bpf_stack_build_id
      type-answer)))

(defn- since [row]
  (if row (str ", which came with Linux " (:since row)) ", which bpfmap does not know either"))

(defn unsupported
  "What this kernel lacks of a completed spec that it answered with EINVAL, as a hint; nil when nothing is known to be lacking."
  [{:keys [type flags]}]
  (let [release (sys/kernel-release)
        lacking (filter #(false? (:supported? (map-flag type %))) flags)]
    (cond
      (false? (:supported? (map-type type)))
      (str "this kernel (" release ") has no map type " type (since (rules/types type)))
      (seq lacking)
      (str "this kernel (" release ") does not take "
           (str/join "; nor " (map #(str % (since (rules/flags %))) lacking)) " on " type " maps"))))

(defn possible-cpus
  "The numbers of the CPUs that the kernel may ever bring up, ascending: a per-CPU map has a value for each.

  Throws `:kernel` when the kernel's list cannot be read; that is not remembered.

      (possible-cpus) ;=> [0 1]"
  []
  (try
    (sys/possible-cpus)
    (catch Exception e
      (throw (error/error :kernel "The list of possible CPUs cannot be read"
                          {:bpfmap/op :possible-cpus :bpfmap/hint (ex-message e)} e)))))

(defn element-flag
  "Whether this kernel has an element flag."
  [_flag]
  {:supported? false})
