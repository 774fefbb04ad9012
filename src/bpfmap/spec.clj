(ns bpfmap.spec
  "Map specs as data: checked against the rules of their type, and completed, before the kernel
  sees them.

  A spec is a plain map:

      {:name \"counts\" :type :hash :key :u32 :value :u64 :max-entries 1024}

  | key            | what it holds                                                        |
  |----------------|----------------------------------------------------------------------|
  | `:type`        | a name from `bpfmap.impl.rules/types`, or a number; required              |
  | `:key` `:value`| a type (see `bpfmap.type`); or the size alone, as bytes:             |
  | `:key-size` `:value-size` | bytes                                                     |
  | `:types`       | names for types that `:key` and `:value` may use: a map              |
  | `:max-entries` | how many entries at most; `:percpu` for one for each possible CPU    |
  | `:name`        | any text; the kernel keeps 15 of its letters, digits, `_` and `.`    |
  | `:flags`       | a set of names from `bpfmap.impl.rules/flags`, and of numbers (bits)      |
  | `:numa-node`   | the node to allocate on; sets the flag `:numa-node`                  |
  | `:map-extra`   | a number whose meaning is the type's: see `bpfmap.impl.rules`       |
  | `:inner-map`   | the spec of the maps that a map of maps holds; a template            |
  | `:struct-ops`  | the name of the kernel's struct that a map of this type implements, such as \"tcp_congestion_ops\" |
  | `:pinning`     | `:by-name`: use the map pinned under this name, or create it and pin it |
  | `:contents`    | entries to put before anybody sees the map: a map, or pairs; values for a queue |
  | `:freeze`      | true: nobody can change it from user space afterwards                |

  Where a type leaves no choice, its row of rules fills it in: an index is a
  `:u32`, a map of maps has values of four bytes, a ring buffer's size is
  rounded up to a power of two of pages, a perf event array has no more entries
  than there are CPUs. The values of a struct_ops map are typed when it is
  created, by the BTF of the kernel; see `bpfmap.impl.codec.element`."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.rules :as rules]
            [bpfmap.impl.spec :as spec]
            [bpfmap.type :as type]
            [clojure.set :as set]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn kernel-name
  "The name that the kernel keeps of a full name: its letters, digits, `_` and `.`, the first 15
  of them.

      (kernel-name \"my-flows by address\") ;=> \"myflowsbyaddres\""
  [full-name]
  (let [kept (str/replace (str full-name) #"[^A-Za-z0-9_.]" "")]
    (subs kept 0 (min 15 (count kept)))))

(defn frozen-by-name?
  "Returns true if a map of this name is frozen once it is filled: the data sections `.rodata`,
  `.rodata.…` and `.kconfig`, which programs take for constant.

      (frozen-by-name? \".rodata.str\") ;=> true"
  [full-name]
  (let [full-name (str full-name)]
    (or (contains? #{".rodata" ".kconfig"} full-name)
        (str/starts-with? full-name ".rodata."))))

;; --- what follows from the rules

(defn value-default
  "The type of the values of a map type, by their size in bytes, where they have a type of their
  own; else nil.

      (value-default :devmap 4 #{}) ;=> :u32"
  [type value-size flags]
  (let [{:keys [values reads-at element elements]} (rules/types type)
        given (when-not (= 0 value-size) value-size)]
    (cond
      values
      (values (or given reads-at (apply min (keys values))))
      element
      (let [element (rules/by-flag element flags)
            size (type/size element)]
        (cond
          (nil? given) [:array element elements]
          (and
           (int?
            given) (pos?
                    (long
                     given)) (zero?
                              (rem
                               (long given) size))) [:array element (quot (long given) size)])))))

(defn- with-types
  "Fills in the types of keys and values that leave no choice; a size of 0 says none there."
  [{:keys [type key key-size value value-size flags] :as spec}]
  (let [row (rules/types type)
        types (when (map? (:types spec)) (:types spec))
        size (cond
               (nil? value) value-size
               (nil? (type/problem value types [])) (type/size value types))
        key-type (when (nil? key) (rules/key-type type key-size))
        value-type (when (or (nil? value) (:values row))
                     (value-default type size flags))]
    (cond-> spec
      key-type (-> (assoc :key key-type) (dissoc :key-size))
      value-type (assoc :value value-type)
      (and (= 0 value-size) (or value-type (= :kernel (:btf row)))) (dissoc :value-size))))

(def ^:private roundings
  "How a number of entries is rounded, by what a row calls it: the fact of the machine that it
  takes, the largest number for which there is such a size, and the function of both."
  {:pages [:page-size 0x80000000
           (fn [n page] (loop [size (long page)] (if (<= (long n) size) size (recur (* 2 size)))))]
   ;; Upwards where that is a number of 32 bits, else downwards.
   :cpus [:possible-cpus 0xffffffff (fn [n cpus]
                                      (let [down (- (long n) (rem (long n) (long cpus)))
                                            up (if (= down n) down (+ down (long cpus)))]
                                        (if (<= up 0xffffffff) up down)))]})

(defn- rounded
  "A number of entries as the kernel takes it for a spec."
  [n {:keys [type flags]} facts]
  (let [[fact most round] (roundings (rules/by-flag (:rounded (rules/types type)) flags))]
    (if (and fact (fact facts) (int? n) (<= 1 n most))
      (round n (fact facts))
      n)))

(defn- with-entries
  "Completes `:max-entries`, as far as the facts of the machine allow."
  [{:keys [type max-entries] :as spec} {:keys [possible-cpus] :as facts}]
  (let [{:keys [clamped] [least most] :max-entries} (rules/types type)
        n (cond
            (and (= :percpu max-entries) possible-cpus) possible-cpus
            (and clamped possible-cpus (or (nil? max-entries) (and (int? max-entries)
                                                                   (or (= 0 max-entries)
                                                                       (< possible-cpus
                                                                          max-entries)))))
            possible-cpus
            (and (nil? max-entries) least (= least most)) least
            :else (rounded max-entries spec facts))]
    (cond-> spec
      n (assoc :max-entries n))))

(defn- with-defaults [spec facts]
  (if (error/named-map? spec)
    (cond-> (-> spec
                (update :type #(if (int? %) (rules/type-name %) %))
                with-types
                (with-entries facts))
      (map? (:inner-map spec)) (update :inner-map with-defaults facts))
    spec))

(defn problems
  "Everything that is wrong with a spec: a sequence of `{:path :message}`, empty for a good one.

      (problems {:type :array :key :u64 :value :u64 :max-entries 1})
      ;=> ({:path [:key] :message \"the key of :array maps has 4 bytes, not 8\"})"
  [spec]
  (spec/problems (with-defaults spec nil)))

(defn complete
  "Checks a spec and fills in what follows from it: sizes, the flag set, the names of numbers.

  `facts` are those of the machine, `{:possible-cpus n :page-size bytes}`; without them, what
  depends on them stays as it is. Returns a new spec in which `:type :key :value :key-size
  :value-size :max-entries :flags` are all there, but for the value of a struct_ops map, which
  only the kernel knows. Throws `:invalid-spec` with every problem under `:bpfmap/problems`,
  before anything is created.

      (complete {:type 1 :key :u32 :value-size 2 :max-entries 8})
      ;=> {:type :hash, :key :u32, :key-size 4, :value [:bytes 2], :value-size 2, …}"
  ([spec] (complete spec nil))
  ([spec facts]
   (let [spec (with-defaults spec (when (error/named-map? facts) facts))]
     (when-let [found (seq (spec/problems spec))]
       (throw (spec/refusal found)))
     (let [{:keys [key value key-size value-size types flags numa-node inner-map]} spec
           key-size (long (or key-size (if key (type/size key types) 0)))
           value-size (long (or value-size (if value (type/size value types) 0)))]
       (cond-> (assoc spec
                      :key-size key-size
                      :value-size value-size
                      :key (or key (when (pos? key-size) [:bytes key-size]))
                      :value (or value (when (pos? value-size) [:bytes value-size]))
                      :max-entries (:max-entries spec 0)
                      ;; A spec made of what the kernel says has what it adds; it does not take
                      ;; that back.
                      :flags (cond-> (set/difference (rules/flag-set (rules/flag-word flags))
                                                     (:added (rules/types (:type spec))))
                               numa-node (conj :numa-node)))
         inner-map (assoc :inner-map (complete inner-map facts)))))))

;; --- comparing

(def ^:private compared
  [:type :key-size :value-size :max-entries :flags :map-extra :struct-ops :freeze])

(def ^:private per-descriptor
  "Flags that say how a descriptor may be used, and are no property of the map."
  #{:rdonly :wronly})

(defn- comparable
  "What a spec and what the kernel reports have in common."
  [{:keys [type freeze frozen] :as spec}]
  (-> spec
      (assoc :freeze (boolean (or freeze frozen)))
      (update :flags #(set/difference (set %) per-descriptor (:added (rules/types type) #{})))
      (update :map-extra #(or % 0))))

(defn- told?
  "Whether both a completed spec and what is known of a map say something under a key."
  [wanted found k]
  (case k
    :value-size (not (and (:struct-ops wanted) (zero? (long (:value-size wanted)))))
    :struct-ops (and (:struct-ops wanted) (:struct-ops found))
    ;; One that is frozen will do where nothing is said; where /proc cannot be read, nobody knows.
    :freeze (and (:freeze wanted) (some? (:frozen found)))
    true))

(defn- complete-to-compare
  "As [[complete]]. Of an opened map of maps the kernel does not say what it was made to hold, and
  that is not compared."
  [spec facts]
  (complete (if (and (error/named-map? spec)
                     (nil? (:inner-map spec))
                     (:inner? (rules/types (:type (with-defaults spec nil)))))
              (assoc spec :inner-map {:type :array :value-size 4 :max-entries 1})
              spec)
            facts))

(defn diff
  "Returns where an existing map and a spec differ, as key to `{:spec x :map y}`; nil if the map
  can be used for the spec.

  `info` is what the kernel reports. The spec is completed first, so sizes are compared as the
  kernel rounds them; flags of a descriptor and those that the kernel adds do not count, nor do
  types of the same size. A map that is not frozen differs from a spec that asks for it.

      (diff info {:type :hash :key :u32 :value :u64 :max-entries 8} nil)
      ;=> {:max-entries {:spec 8, :map 16}}"
  [info spec facts]
  (when-not (and (error/named-map? info) (:type info))
    (throw (error/error :invalid-value
                        (str "Not what the kernel says of a map: " (pr-str (error/shown info)))
                        {:bpfmap/op :spec-diff})))
  (let [wanted (comparable (complete-to-compare spec facts))
        ;; On which node a map is, the kernel does not tell, and a spec that names none takes any.
        anywhere #(cond-> % (not (:numa-node wanted)) (update :flags disj :numa-node))
        wanted (anywhere wanted)
        found (anywhere (comparable info))]
    (not-empty
     (into {}
           (for [k compared
                 :when (and (not= (k wanted) (k found)) (told? wanted found k))]
             [k {:spec (k wanted) :map (k found)}])))))
