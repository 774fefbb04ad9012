(ns bpfmap.feature
  "Reports the BPF features of the running kernel, by probing.

  A probe creates the smallest map or program that needs the feature, and frees it again. It needs
  only bpf(2). Its result is `{:supported true}`, `{:supported false}`, or `{:supported nil :why
  message}` if it is inconclusive or failed for another reason, such as a missing capability. Only
  the first two are cached.

  | question                                       | function          |
  |------------------------------------------------|-------------------|
  | a map type                                     | [[map-type]]      |
  | a create flag on a map type                    | [[map-flag]]      |
  | an operation on a map type                     | [[operation]]     |
  | a flag of element operations                   | [[element-flag]]  |
  | writes that depend on whether the key exists   | [[conditional-write]] |
  | a program type                                 | [[program-type]]  |
  | a helper in programs of a type                 | [[helper]]        |
  | all of these but the helpers                   | [[report]]        |

  Arguments are names, or numbers of the kernel. Any other argument throws `:invalid-value`."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.errno :as errno]
            [bpfmap.impl.feature.probe :as probe]
            [bpfmap.impl.isa :as isa]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.prog :as prog]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.nearest :as nearest]
            [clojure.set :as set]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

;; --- answers

(def ^:private answers "Results of probes that cannot change, by question." (atom {}))

(defn- remembered [question ask]
  (or (get @answers question)
      (let [answer (ask)]
        (when (some? (:supported answer))
          (swap! answers assoc question answer))
        answer)))

;; --- arguments

(defn- invalid [what x constraint hint]
  (error/error :invalid-value
               (str "The " what " must be " constraint ", got " (error/printed x))
               {:bpfmap/op :feature :bpfmap/hint hint}))

(defn- number-to? [x most]
  (and (int? x) (<= 0 (long x) (long most))))

(defn- named
  "Returns the name of an argument in a table, or its number if it has none.

  The number is at most `most`."
  [x table number->name most what constraint place]
  (let [known (if (number-to? x most) (number->name x) x)]
    (if (or (number-to? known most) (and (keyword? known) (contains? table known)))
      known
      (throw (invalid what x constraint (nearest/suggestion x (sort (keys table)) place))))))

(defn- checked-type [type]
  (named type map-types/types map-types/type-name 0xffffffff
         "map type" "a name or a number" "bpfmap.spec for all map types"))

(defn- checked-flag [flag]
  (named flag map-types/flags
         #(let [names (map-types/flag-set %)] (when-not (next names) (first names)))
         0xffffffff
         "create flag" "a name or a power of two" "bpfmap.spec for all flags"))

(def ^:private number->program-type (set/map-invert prog/types))

(defn- checked-program-type [type]
  (named type prog/types #(number->program-type % %) 0xffffffff
         "program type" "a name or a number" "bpfmap.prog/types for all names"))

(defn- checked-helper
  "Returns the number of a helper."
  [helper]
  (let [number (if (keyword? helper) (isa/helpers helper) helper)]
    (if (number-to? number 0x7fffffff)
      number
      (throw (invalid "helper" helper "a name or a number"
                      (nearest/suggestion helper (sort (keys isa/helpers))
                                          "bpfmap.asm/helpers for all names"))))))

(defn- checked-name [x names what]
  (if (contains? names x)
    x
    (throw (invalid what x (error/list-of (sort names)) (nearest/did-you-mean x (sort names))))))

;; --- maps

(defn map-type
  "Returns the support of a map type, by name or number.

      (map-type :hash) ;=> {:supported true}"
  [type]
  (let [type (checked-type type)]
    (remembered [:map-type type] #(probe/try-map type nil))))

(defn map-flag
  "Returns the support of a create flag on a map type, by name or number.

  The number of a flag is its value, a power of two. For a type that the kernel lacks, returns the
  same as [[map-type]].

      (map-flag :array :mmapable) ;=> {:supported true}"
  [type flag]
  (let [type (checked-type type)
        flag (checked-flag flag)
        type-answer (map-type type)]
    (if (:supported type-answer)
      (remembered [:map-flag type flag] #(probe/try-map type flag))
      type-answer)))

(defn operation
  "Returns the support of an operation on maps of a type, by name or number.

  Operations are `:lookup :update :delete :next-key :lookup-and-delete :freeze`, and in one system
  call for many elements `:lookup-batch :lookup-and-delete-batch :update-batch :delete-batch`.

  An operation with restrictions counts as supported: a queue's `:lookup` reads its head, an array
  of programs takes descriptors and returns ids. Operations of `:struct-ops` maps are not probed.
  For a type that the kernel lacks, returns the same as [[map-type]].

      (operation :hash :lookup-batch) ;=> {:supported true}
      (operation :array :delete)      ;=> {:supported false}"
  [type op]
  (let [type (checked-type type)
        op (checked-name op probe/operations "operation")
        type-answer (map-type type)]
    (if (:supported type-answer)
      (remembered [:operation type op] #(probe/try-operation type op))
      type-answer)))

(defn element-flag
  "Returns the support of a flag of element operations.

  | flag        | effect                                                     | since |
  |-------------|------------------------------------------------------------|-------|
  | `:lock`     | holds the value's spin lock, on types that may have one    | 5.1   |
  | `:cpu`      | the value of one CPU, on per-CPU types                     | 7.0   |
  | `:all-cpus` | one value written for all CPUs, on per-CPU types           | 7.0   |

      (element-flag :lock) ;=> {:supported true}"
  [flag]
  (let [flag (checked-name flag probe/element-flags "flag of element operations")]
    (remembered [:element-flag flag] #(probe/try-element-flag flag))))

(defn conditional-write
  "Returns the support of writes that depend on the key, on maps of a type.

  `insert!` and `replace!` need the kernel to check that the key exists. Before 6.13, except in
  stable releases that have the fix, a trie is written in any case. From 7.0 on, so is a per-CPU
  hash if only the value of one CPU is written. `flag` asks for this case: `:cpu`, a flag of
  [[element-flag]]. Only hash types and tries can be probed; others are inconclusive. A type or a
  flag that the kernel lacks is not supported.

      (conditional-write :hash)             ;=> {:supported true}
      (conditional-write :percpu-hash :cpu) ;=> {:supported false}"
  ([type] (conditional-write type nil))
  ([type flag]
   (let [type (checked-type type)
         flag (when (some? flag)
                (checked-name flag probe/element-flags "flag of element operations"))
         answers (cond-> [(map-type type)] flag (conj (element-flag flag)))]
     (if (every? :supported answers)
       (remembered [:conditional-write type flag] #(probe/try-conditional-write type flag))
       (first (remove :supported answers))))))

;; --- programs

(defn program-type
  "Returns the support of a program type, by name or number.

  Needs CAP_BPF, and for most types CAP_PERFMON or CAP_NET_ADMIN too. The kernel checks capabilities
  before the type, and a security module may deny some types: the result is then inconclusive.

      (program-type :xdp) ;=> {:supported true}"
  [type]
  (let [type (checked-program-type type)]
    (remembered [:program-type type] #(probe/try-type type (prog/types type type)))))

(defn helper
  "Returns the support of a helper function in programs of a type.

  Names or numbers are accepted. The type is probed with its most common attach type: for
  `:cgroup-sock-addr` programs, which may call more helpers at some hooks than at others, with
  IPv4's bind. For `:tracing`, `:lsm`, `:ext` and `:struct-ops` programs the result is inconclusive,
  because their helpers depend on the function or struct that they are loaded for. The license of
  the probe is GPL.

  A thread without CAP_BPF and CAP_PERFMON (for `:probe-write-user`, CAP_SYS_ADMIN) never gets
  `{:supported false}`, because the kernel hides helpers from it. For a program type that the kernel
  lacks, returns the same as [[program-type]].

      (helper :xdp :redirect-map) ;=> {:supported true}
      (helper :xdp :get-stackid)  ;=> {:supported false}"
  [program-type helper]
  (let [type (checked-program-type program-type)
        number (checked-helper helper)
        type-answer (bpfmap.feature/program-type type)]
    (if (:supported type-answer)
      (remembered [:helper type number] #(probe/try-helper type (prog/types type type) number))
      type-answer)))

;; --- all of it

(defn report
  "Returns all features of this kernel, as data, except the helpers.

      {:kernel \"6.18.44\"
       :map-types {:hash {:supported true} …}
       :map-flags {:hash {:no-prealloc {:supported true} …} …}
       :operations {:hash {:lookup {:supported true} …} …}
       :element-flags {:lock {:supported true} …}
       :program-types {:xdp {:supported true} …}}

  `:map-flags` and `:operations` are of the map types that the kernel has. `:kernel` is nil if /proc
  cannot be read.

  The first call creates about 1,000 small maps and 32 programs, one after the other: less than a
  second on Linux 6.18. Later calls only repeat inconclusive probes. Helpers are left out because
  there are 211 for each program type, and each probe is a program to verify; use [[helper]] and
  `bpfmap.asm/helpers` for the helpers of one type.

      (:program-types (report))"
  []
  (let [answers (fn [ask names] (into {} (map (juxt identity ask)) names))
        map-types (answers map-type (keys map-types/types))
        present (filter #(:supported (map-types %)) (keys map-types/types))]
    {:kernel (call/kernel-release)
     :map-types map-types
     :map-flags (answers (fn [type] (answers #(map-flag type %) (keys map-types/flags))) present)
     :operations (answers (fn [type] (answers #(operation type %) probe/operations)) present)
     :element-flags (answers element-flag probe/element-flags)
     :program-types (answers program-type (keys prog/types))}))

;; --- for errors

(defn- since [row]
  (if row
    (str ", which was added in Linux " (:since row))
    ", which bpfmap does not support either"))

(defn- lacks-type [type release]
  (let [row (map-types/types type)]
    (str "this kernel (" release ") lacks the map type " type (since row)
         (when (and row release (map-types/at-least? release (:since row)))
           (str "; " (errno/left-out type (call/security-modules)))))))

(defn unsupported
  "Returns the hint about a missing feature that a completed spec needs, or nil.

  It is called after the kernel returned EINVAL."
  [{:keys [type flags]}]
  (let [release (call/kernel-release)
        lacking (filter #(false? (:supported (map-flag type %))) flags)]
    (cond
      (false? (:supported (map-type type)))
      (lacks-type type release)
      (seq lacking)
      (str "this kernel (" release ") does not accept "
           (str/join "; nor "
                     (map #(str % " on " type " maps" (since (map-types/flags %))) lacking))))))

(defn possible-cpus
  "Returns the numbers of the CPUs that may ever be online, ascending.

  A per-CPU map has a value for each. Throws `:kernel` if the kernel's list cannot be read; that is
  not cached.

      (possible-cpus) ;=> [0 1]"
  []
  (try
    (call/possible-cpus)
    (catch Exception e
      (throw (error/error :kernel "The list of possible CPUs cannot be read"
                          {:bpfmap/op :possible-cpus :bpfmap/hint (ex-message e)} e)))))
