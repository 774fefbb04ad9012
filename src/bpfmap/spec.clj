(ns bpfmap.spec
  "Checks map specs, which are data, and completes them before the kernel sees them.

  A spec is a plain map:

      {:name \"counts\" :type :hash :key :u32 :value :u64 :max-entries 1024}

  | key            | meaning                                                              |
  |----------------|----------------------------------------------------------------------|
  | `:type`        | the name of a map type, as below, or its number; required            |
  | `:key` `:value`| a type (see `bpfmap.type`); or instead of it the size, as bytes:     |
  | `:key-size` `:value-size` | bytes                                                     |
  | `:types`       | named types that `:key` and `:value` may use: a map                  |
  | `:max-entries` | the maximum number of entries; `:percpu`: one for each possible CPU  |
  | `:name`        | any string; the kernel keeps 15 of its letters, digits, `_` and `.`  |
  | `:flags`       | a set of names of create flags, as below, and of numbers (bits)      |
  | `:numa-node`   | the node to allocate on; sets the flag `:numa-node`                  |
  | `:map-extra`   | a number whose meaning depends on the type                           |
  | `:inner-map`   | the spec of the maps in a map of maps; a template                    |
  | `:struct-ops`  | the name of the kernel struct that a map of this type implements, such as \"tcp_congestion_ops\" |
  | `:pinning`     | `:by-name`: use the map pinned under this name, or create and pin it |
  | `:contents`    | entries to write before the map is pinned: a map or pairs; for a queue, values |
  | `:freeze`      | true: user space cannot change the map afterwards; false: it can, whatever the name |
  | `:record-type` | the type of the records of a ring buffer or perf event array; not used by create |
  | `:tags`        | strings of the source code (`btf_decl_tag`); not used by create      |

  Keys that the map type determines have defaults: an index is a `:u32`, a map of maps has values of
  four bytes, the size of a ring buffer is rounded up to a power of two of pages, and a perf event
  array has at most one entry per CPU. The BTF of the kernel determines the values of a struct_ops
  map when it is created.

  Map types, from the oldest: `:hash` `:array` `:prog-array` `:perf-event-array` `:percpu-hash`
  `:percpu-array` `:stack-trace` `:cgroup-array` `:lru-hash` `:lru-percpu-hash` `:lpm-trie`
  `:array-of-maps` `:hash-of-maps` `:devmap` `:sockmap` `:cpumap` `:xskmap` `:sockhash`
  `:cgroup-storage` `:reuseport-sockarray` `:percpu-cgroup-storage` `:queue` `:stack` `:sk-storage`
  `:devmap-hash` `:struct-ops` `:ringbuf` `:inode-storage` `:task-storage` `:bloom-filter`
  `:user-ringbuf` `:cgrp-storage` `:arena` `:insn-array` `:rhash`

  Create flags: `:no-prealloc` `:no-common-lru` `:numa-node` `:rdonly` `:wronly` `:stack-build-id`
  `:zero-seed` `:rdonly-prog` `:wronly-prog` `:clone` `:mmapable` `:preserve-elems` `:inner-map`
  `:link` `:path-fd` `:vtype-btf-obj-fd` `:token-fd` `:segv-on-fault` `:no-user-conv`
  `:rb-overwrite`

  The page doc/map-types.md describes each type, with the flags that it accepts."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.spec :as spec]
            [bpfmap.impl.type.node :as node]
            [bpfmap.type :as type]
            [clojure.set :as set]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn- name-character? [^long c]
  (or (<= 97 c 122) (<= 65 c 90) (<= 48 c 57) (= 95 c) (= 46 c))) ; a-z A-Z 0-9 _ .

(defn kernel-name
  "Returns the name that the kernel keeps of a full name.

  It has only the letters, digits, `_` and `.` of the name, and the first 15 of them.

      (kernel-name \"my-flows by address\") ;=> \"myflowsbyaddres\""
  [full-name]
  ;; A loop: creating a map takes a few microseconds, and a regular expression would be a
  ;; measurable part of them.
  (let [^String text (str full-name)
        kept (StringBuilder. 16)]
    (loop [i 0]
      (if (and (< i (.length text)) (< (.length kept) 15))
        (let [c (.charAt text (unchecked-int i))]
          (when (name-character? (int c)) (.append kept c))
          (recur (unchecked-inc i)))
        (.toString kept)))))

(defn frozen-by-name?
  "Returns true if a map of this name is frozen once it is filled.

  These are the data sections `.rodata`, `.rodata.…` and `.kconfig`, which programs read as
  constants.

      (frozen-by-name? \".rodata.str\") ;=> true"
  [full-name]
  (let [full-name (str full-name)]
    (or (contains? #{".rodata" ".kconfig"} full-name)
        (str/starts-with? full-name ".rodata."))))

;; --- what follows from the rules

(defn value-default
  "Returns the default type of the values of a map type, or nil.

  Only map types whose values have a fixed layout have a default. It may depend on the size in
  bytes.

      (value-default :devmap 4 #{}) ;=> :u32"
  [type value-size flags]
  (let [{:keys [values reads-at element elements]} (map-types/types type)
        given (when-not (= 0 value-size) value-size)]
    (cond
      values
      (values (or given reads-at (apply min (keys values))))
      element
      (let [element (map-types/by-flag element flags)
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
  "Adds the types of keys and values that the map type determines.

  A size of 0 means that there is none."
  [{:keys [type key key-size value value-size flags] :as spec}]
  (let [spec (node/with-nodes spec)
        row (map-types/types type)
        size (cond
               (nil? value) value-size
               (nil? (node/side-problem spec :value)) (:size (node/node-of spec :value)))
        key-type (when (nil? key) (map-types/key-type type key-size))
        value-type (when (or (nil? value) (:values row))
                     (value-default type size flags))]
    (cond-> spec
      key-type (-> (assoc :key key-type) (dissoc :key-size))
      value-type (assoc :value value-type)
      (and (= 0 value-size) (or value-type (= :kernel (:btf row)))) (dissoc :value-size)
      true node/with-nodes)))

(def ^:private roundings
  "Roundings of the number of entries, by name in a row of `map-types/types`.

  Each has the fact of the machine that it depends on, the largest number that can be rounded, and a
  function of both."
  {:pages [:page-size 0x80000000
           (fn [n page] (loop [size (long page)] (if (<= (long n) size) size (recur (* 2 size)))))]
   ;; Rounds up if the result fits 32 bits, else down.
   :cpus [:possible-cpus 0xffffffff (fn [n cpus]
                                      (let [down (- (long n) (rem (long n) (long cpus)))
                                            up (if (= down n) down (+ down (long cpus)))]
                                        (if (<= up 0xffffffff) up down)))]})

(defn- rounded
  "Returns a number of entries, rounded as the kernel rounds it for this spec."
  [n {:keys [type flags]} facts]
  (let [[fact most round] (roundings (map-types/by-flag (:rounded (map-types/types type)) flags))]
    (if (and fact (fact facts) (int? n) (<= 1 n most))
      (round n (fact facts))
      n)))

(defn- with-entries
  "Completes `:max-entries`, as far as the facts of the machine allow."
  [{:keys [type max-entries] :as spec} {:keys [possible-cpus] :as facts}]
  (let [{:keys [clamped] [least most] :max-entries} (map-types/types type)
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
                (update :type #(if (int? %) (map-types/type-name %) %))
                with-types
                (with-entries facts))
      (map? (:inner-map spec)) (update :inner-map with-defaults facts))
    spec))

(defn problems
  "Returns all problems of a spec, as `{:path :message}`; none for a valid one.

      (problems {:type :array :key :u64 :value :u64 :max-entries 1})
      ;=> ({:path [:key] :message \"the key of :array maps must have 4 bytes, got 8\"})"
  [spec]
  (spec/problems (with-defaults spec nil)))

(defn complete
  "Returns a checked spec with everything added that follows from it.

  Sizes, the flag set and the names of numbers are added. `facts` describe the machine,
  `{:possible-cpus n :page-size bytes}`; keys that depend on a missing fact stay as they are. The
  result has all of `:type :key :value :key-size :value-size :max-entries :flags`, except that only
  the kernel knows the value of a struct_ops map. Throws `:invalid-spec` with all problems under
  `:bpfmap/problems`.

      (complete {:type 1 :key :u32 :value-size 2 :max-entries 8})
      ;=> {:type :hash, :key :u32, :key-size 4, :value [:bytes 2], :value-size 2, …}"
  ([spec] (complete spec nil))
  ([spec facts]
   (let [spec (with-defaults spec (when (error/named-map? facts) facts))]
     (when-let [found (seq (spec/problems spec))]
       (throw (spec/refusal found)))
     (let [{:keys [key value key-size value-size flags numa-node inner-map]} spec
           size-of #(:size (node/node-of spec %) 0)
           key-size (long (or key-size (size-of :key)))
           value-size (long (or value-size (size-of :value)))]
       (cond-> (node/with-nodes
                 (assoc spec
                        :key-size key-size
                        :value-size value-size
                        :key (or key (when (pos? key-size) [:bytes key-size]))
                        :value (or value (when (pos? value-size) [:bytes value-size]))
                        :max-entries (:max-entries spec 0)
                        ;; A spec from the info of a map has keys that the kernel added, and still
                        ;; matches.
                        :flags (cond-> (set/difference
                                        (map-types/flag-set (map-types/flag-word flags))
                                        (:added (map-types/types (:type spec))))
                                 numa-node (conj :numa-node))))
         inner-map (assoc :inner-map (complete inner-map facts)))))))

;; --- comparing

(def ^:private compared
  [:type :key-size :value-size :max-entries :flags :map-extra :struct-ops :freeze])

(def ^:private per-descriptor
  "Flags that restrict a descriptor, and are not a property of the map."
  #{:rdonly :wronly})

(defn- comparable
  "Returns the part of a spec or info that can be compared."
  [{:keys [type freeze frozen] :as spec}]
  (-> spec
      (assoc :freeze (boolean (or freeze frozen)))
      (update :flags #(set/difference (set %) per-descriptor (:added (map-types/types type) #{})))
      (update :map-extra #(or % 0))))

(defn- comparable?
  "Returns true if both a completed spec and the info of a map have a key."
  [wanted found k]
  (case k
    :value-size (not (and (:struct-ops wanted) (zero? (long (:value-size wanted)))))
    :struct-ops (and (:struct-ops wanted) (:struct-ops found))
    ;; A frozen map matches a spec without :freeze. If /proc cannot be read, the state is unknown.
    :freeze (and (:freeze wanted) (some? (:frozen found)))
    true))

(defn- complete-to-compare
  "Returns a completed spec, like [[complete]].

  The kernel does not report the inner spec of a map of maps, so a missing `:inner-map` is allowed."
  [spec facts]
  (complete (if (and (error/named-map? spec)
                     (nil? (:inner-map spec))
                     (:inner (map-types/types (:type (with-defaults spec nil)))))
              (assoc spec :inner-map {:type :array :value-size 4 :max-entries 1})
              spec)
            facts))

(defn diff
  "Returns the differences of a spec and an existing map, or nil if it matches.

  The result is `{key {:spec x :map y}}`; nil means that the map can be used for the spec. `info` is
  the result of `bpfmap.core/info`. The spec is completed first, so sizes are compared as the kernel
  rounds them. Flags of a descriptor, flags that the kernel adds and types of the same size do not
  count as differences. A map that is not frozen differs from a spec with `:freeze`.

      (diff info {:type :hash :key :u32 :value :u64 :max-entries 8} nil)
      ;=> {:max-entries {:spec 8, :map 16}}"
  [info spec facts]
  (when-not (and (error/named-map? info) (:type info))
    (throw (error/error :invalid-value
                        (str "The first argument must be an open map or its info, got "
                             (error/printed info))
                        {:bpfmap/op :spec-diff})))
  (let [wanted (comparable (complete-to-compare spec facts))
        ;; The kernel does not report the node of a map, and a spec without a node matches any.
        anywhere #(cond-> % (not (:numa-node wanted)) (update :flags disj :numa-node))
        wanted (anywhere wanted)
        found (anywhere (comparable info))]
    (not-empty
     (into {}
           (for [k compared
                 :when (and (not= (k wanted) (k found)) (comparable? wanted found k))]
             [k {:spec (k wanted) :map (k found)}])))))
