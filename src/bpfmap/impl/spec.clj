(ns ^:no-doc bpfmap.impl.spec
  "Checks map specs without the kernel, and returns every broken rule as data."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.type.node :as node]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def spec-keys
  "Every key that a spec may have."
  [:type :key :value :key-size :value-size :types :max-entries :name :flags :numa-node :map-extra
   :inner-map :pinning
   :struct-ops :contents :freeze :record-type :tags])

(defn- problem [path message]
  {:path path :message message})

(defn- unknown-keys [spec]
  (for [k (keys spec) :when (not (some #{k} spec-keys))]
    (problem [k]
             (str "unknown key " (pr-str k) "; "
                  (nearest/suggestion k spec-keys "bpfmap.spec for all keys")))))

(defn- of-type [{:keys [type]}]
  (cond
    (nil? type) [(problem [:type] ":type is required, such as :hash or :array")]
    (keyword? type) (when-not (map-types/types type)
                      [(problem [:type] (str "unknown map type " type "; "
                                             (nearest/suggestion
                                              type (sort (keys map-types/types))
                                              "bpfmap.spec for all map types")))])
    (not (and (int? type) (<= 0 type 0xffffffff)))
    [(problem [:type] (str ":type must be a name or a number, got " (error/printed type)))]))

;; --- key and value

(defn- allowed?
  "Returns true if a rule allows a number: `[least most]`, a set, or nil for any."
  [rule n]
  (cond
    (nil? rule) true
    (set? rule) (contains? rule n)
    :else (<= (long (first rule)) (long n) (long (second rule)))))

(defn- rule-text
  "Returns a rule on sizes in words, with the bound that n breaks."
  [rule n]
  (cond
    (set? rule) (str (error/list-of (sort rule)) " bytes")
    (= (first rule) (second rule)) (error/plural (first rule) "byte")
    (= [1 0] [(first rule) n]) "at least 1 byte"
    (< (long n) (long (first rule))) (str "at least " (error/plural (first rule) "byte"))
    :else (str "at most " (error/plural (second rule) "byte"))))

(defn- of-kernel?
  "Returns true if the BTF of the kernel determines the values.

  Only `create` reads it."
  [{:keys [type]} side]
  (and (= :value side) (= :kernel (:btf (map-types/types type)))))

(defn- side
  "Returns the problems of the key or the value of a spec.

  They are about the type, the size, both together, and the rule of the map type."
  [spec side size-key]
  (let [value-type (side spec)
        given (size-key spec)
        row (map-types/types (:type spec))
        bad-type (node/side-problem spec side)
        actual (if (and value-type (not bad-type)) (:size (node/node-of spec side)) given)
        rule (or (size-key row)
                 (some-> (({:value-size :values, :key-size :keys} size-key) row) keys set))
        multiple (if (= :value-size size-key)
                   (map-types/value-multiple (:type spec) (:flags spec))
                   1)]
    (cond
      bad-type [(problem [side] bad-type)]
      (nil? actual) (when-not (or (= [0 0] rule) (of-kernel? spec side))
                      [(problem [side]
                                (str side " or " size-key
                                     " is required (a type such as :u32, or a size in bytes)"))])
      (not (and (int? actual) (<= 0 actual 0xffffffff)))
      [(problem [size-key]
                (str size-key " must be a number of bytes, got " (error/printed actual)))]
      (and given (not= given actual))
      [(problem [size-key]
                (str size-key " must be " actual ", the size of " side " " (pr-str value-type)
                     ", got " (error/printed given)))]
      (not (allowed? rule actual))
      [(problem [(if value-type side size-key)]
                (if (= [0 0] rule)
                  (str (:type spec) " maps have no " (name side))
                  (str "the " (name side) " of " (:type spec) " maps must have "
                       (rule-text rule actual)
                       ", got " actual)))]
      (not (zero? (rem (long actual) (long multiple))))
      [(problem [(if value-type side size-key)]
                (str "the value of these " (:type spec) " maps must have a multiple of " multiple
                     " bytes, got " actual))])))

(defn- has-private?
  "Returns true if a type contains a field owned by the kernel.

  `name` is the name of the field, or nil for any."
  [{:keys [kind type members element target]} name]
  (case kind
    :private (or (nil? name) (= name type))
    (:struct :union) (boolean (some #(has-private? (:node %) name) members))
    :array (has-private? element name)
    :via (recur target name)
    false))

(defn private-value?
  "Returns true if values of a spec contain a field owned by the kernel.

  `name` is the name of the field, or nil for any. Returns false for an invalid type.

      (private-value? {:value [:struct [:lock :spin-lock] [:n :u64]]} :spin-lock) ;=> true"
  [spec name]
  (and (some? (:value spec))
       (nil? (node/side-problem spec :value))
       (has-private? (node/node-of spec :value) name)))

(defn locked-value?
  "Returns true if values of a spec have a spin lock; false for an invalid type.

      (locked-value? {:value [:struct [:lock :spin-lock] [:n :u64]]}) ;=> true"
  [spec]
  (private-value? spec :spin-lock))

(def locks-in-structs-since
  "The first Linux release that finds a lock in a struct of the value.

  Source: btf_find_field_one in kernel/bpf/btf.c."
  "6.11")

(defn nested-lock?
  "Returns true if values of a spec have locks in structs or arrays only.

      (nested-lock? {:value [:struct [:a [:struct [:lock :spin-lock]]]]}) ;=> true"
  [spec]
  (and (locked-value? spec)
       (not-any? (comp #{:spin-lock} :type :node) (:members (node/node-of spec :value)))))

(defn- types-that
  "Returns the names of the map types that have k in their row."
  [k]
  (sort (for [[type row] map-types/types :when (k row)] type)))

(defn- spin-lock [{:keys [type types] :as spec}]
  (let [row (map-types/types type)]
    (when (and row (not (:lock row)) (map? (or types {})) (locked-value? spec))
      [(problem [:value] (str "values of " type " maps cannot have a :spin-lock; only "
                              (error/list-of (types-that :lock)) " maps support it"))])))

;; --- the rest

(defn- max-entries [{:keys [type max-entries]}]
  (let [{[least most] :max-entries :keys [entries]
         :or {entries "the number of entries it can hold"}}
        (merge {:max-entries [0 0xffffffff]} (map-types/types type))]
    (cond
      (and (nil? max-entries) (pos? (long least)))
      [(problem [:max-entries] (str ":max-entries is required (" entries ")"))]
      (not (or (nil? max-entries) (and (int? max-entries) (<= least max-entries most))))
      [(problem [:max-entries] (if (= least most)
                                 (str ":max-entries of " type " maps must be " least ", got "
                                      (error/printed max-entries))
                                 (str ":max-entries must be an integer from " least " to " most
                                      ", got "
                                      (error/printed max-entries))))])))

(defn- flag [type allowed flag]
  (cond
    (and (keyword? flag) (not (map-types/flags flag)))
    (str "unknown flag " flag "; "
         (nearest/suggestion flag (sort (keys map-types/flags))
                             "bpfmap.spec for all flags"))
    (and (keyword? flag) allowed (not (allowed flag)))
    (str type " maps do not accept the flag " flag
         (if (seq allowed)
           (str "; accepted: " (str/join ", " (sort allowed)))
           "; they accept no flags"))
    (not (or (keyword? flag) (and (int? flag) (<= 1 flag 0xffffffff))))
    (str "a flag must be a name or a bit, got " (error/printed flag))))

(defn- flags [{:keys [type flags numa-node]}]
  (let [{allowed :flags :keys [requires added]} (map-types/types type)]
    (if-not (or (nil? flags) (set? flags) (sequential? flags))
      [(problem [:flags] (str ":flags must be a set of names, got " (error/printed flags)))]
      (concat
       (keep #(some->> (flag type (some-> allowed (into added)) %) (problem [:flags])) flags)
       (for [missing (sort requires) :when (not (map-types/has-flag? flags missing))]
         (problem [:flags] (str type " maps require the flag " missing)))
       (when (and numa-node allowed (not (allowed :numa-node)))
         [(problem [:numa-node] (str type " maps cannot be placed on a node"))])
       (when (and (or numa-node (map-types/has-flag? flags :numa-node))
                  (map-types/has-flag? flags :no-common-lru))
         [(problem [:numa-node]
                   "a map of :no-common-lru has a list for each CPU, and cannot be placed on a node")])
       (when (not (or (nil? numa-node) (and (int? numa-node) (<= 0 numa-node 0xffff))))
         [(problem [:numa-node]
                   (str ":numa-node must be the number of a node, got "
                        (error/printed numa-node)))])
       (when (and (nil? numa-node) (map-types/has-flag? flags :numa-node))
         [(problem [:numa-node]
                   "the flag :numa-node requires the number of a node in :numa-node")])))))

(defn- map-extra [{:keys [type map-extra]}]
  (let [{:keys [extra most-extra] :as row} (map-types/types type)]
    (cond
      (or (nil? map-extra) (= 0 map-extra)) nil
      (not (and (integer? map-extra) (<= 0 map-extra 18446744073709551615N)))
      [(problem [:map-extra]
                (str ":map-extra must be an unsigned 64-bit integer, got "
                     (error/printed map-extra)))]
      (and row (nil? extra))
      [(problem [:map-extra] (str type " maps do not accept :map-extra"))]
      (and most-extra (< most-extra map-extra))
      [(problem [:map-extra]
                (str ":map-extra of " type " maps must be at most " most-extra " (" extra
                     "), got " map-extra))])))

(declare problems)

(defn- inner-map [{:keys [type inner-map]}]
  (let [{inner? :inner :as row} (map-types/types type)
        of-inner (map-types/types (:type inner-map))]
    (cond
      (and inner? (nil? inner-map))
      [(problem [:inner-map]
                (str type " maps require :inner-map, the spec of the maps in them"))]
      (nil? inner-map) nil
      (and row (not inner?))
      [(problem [:inner-map]
                (str type " maps cannot hold maps; :inner-map is for "
                     (error/list-of (types-that :inner))))]
      :else
      (concat
       (map #(-> %
                 (update :path (partial into [:inner-map]))
                 (update :message (partial str "in :inner-map, "))) (problems inner-map))
       (when (:pinning inner-map)
         [(problem [:inner-map :pinning] "an inner map is a template, and cannot be pinned")])
       (when (:not-inside of-inner)
         [(problem [:inner-map :type] (str "a map cannot hold " (:type inner-map) " maps"))])))))

(defn- struct-ops [{:keys [type struct-ops]}]
  (let [row (map-types/types type)
        of-kernel? (= :kernel (:btf row))]
    (cond
      (and (nil? struct-ops) (not of-kernel?)) nil
      (nil? struct-ops)
      [(problem [:struct-ops]
                (str type
                     " maps require :struct-ops, the name of a kernel struct, such as "
                     "\"tcp_congestion_ops\""))]
      (not (and (string? struct-ops) (re-matches #"[A-Za-z_][A-Za-z0-9_]{0,126}" struct-ops)))
      [(problem [:struct-ops]
                (str ":struct-ops must be the name of a kernel struct, got "
                     (error/printed struct-ops)))]
      (and row (not of-kernel?))
      [(problem [:struct-ops]
                (str type
                     " maps do not accept :struct-ops; it is for :struct-ops maps"))])))

(defn- pinning [{:keys [pinning name]}]
  (cond
    (nil? pinning) nil
    (not= :by-name
          pinning) [(problem [:pinning]
                             (str ":pinning must be :by-name, got "
                                  (error/printed pinning)))]
    (not (and (string? name) (re-matches #"[^./\u0000]{1,255}" name)))
    [(problem [:name]
              ":name of a map pinned by name must be a valid file name without dots")]))

(defn- pairs? [contents]
  (or (map? contents)
      (and (sequential? contents) (every? #(and (vector? %) (= 2 (count %))) contents))))

(defn- descriptive
  "Returns the problems of keys that create does not use."
  [{:keys [record-type tags] :as spec}]
  (concat
   (when-let [bad-type (and record-type (map? (:types spec {}))
                            (node/side-problem spec :record-type))]
     [(problem [:record-type] bad-type)])
   (when-not (or (nil? tags) (and (sequential? tags) (every? string? tags)))
     [(problem [:tags] (str ":tags must be a sequence of strings, got "
                            (error/printed tags)))])))

(defn- other [{:keys [type name contents freeze flags types] :as spec}]
  (let [{:keys [ops] freezes? :freeze :as row} (map-types/types type)]
    (concat
     (descriptive spec)
     (when-not (or (nil? types) (and (map? types) (every? keyword? (keys types))))
       [(problem [:types]
                 (str ":types must be a map of keywords to types, got "
                      (error/printed types)))])
     (when-not (or (nil? name) (string? name))
       [(problem [:name] (str ":name must be a string, got " (error/printed name)))])
     (cond
       (nil? contents) nil
       (and row (not (or (ops :put!) (ops :push!))))
       [(problem [:contents] (str type " maps cannot be filled from user space"))]
       (and row (ops :push!))
       (when-not (sequential? contents)
         [(problem [:contents] (str ":contents of " type " maps must be a sequence of values"))])
       (not (pairs? contents))
       [(problem [:contents] ":contents must be a map or a sequence of [key value] pairs")])
     (when-not (contains? #{nil true false} freeze)
       [(problem [:freeze]
                 (str ":freeze must be true or false, got " (error/printed freeze)))])
     (when (and (true? freeze) row (not freezes?))
       [(problem [:freeze] (str type " maps cannot be frozen"))])
     (when (and (true? freeze) (map? (or types {})) (private-value? spec nil))
       [(problem [:freeze]
                 "a map cannot be frozen if its values have fields owned by the kernel, such as a :spin-lock")])
     (when (and (coll? flags) (some #{:rdonly} flags) (or (seq contents) freeze))
       [(problem [:flags]
                 "a map created with :rdonly cannot be filled or frozen through its own descriptor")]))))

(defn problems
  "Returns all problems of a spec whose defaults are filled in.

  The result is a sequence of `{:path :message}`."
  [spec]
  (if-not (error/named-map? spec)
    [(problem []
              (str "a spec must be a map with keywords as keys, got " (error/printed spec)))]
    (concat (unknown-keys spec)
            (of-type spec)
            (side spec :key :key-size)
            (side spec :value :value-size)
            (spin-lock spec)
            (max-entries spec)
            (flags spec)
            (map-extra spec)
            (inner-map spec)
            (struct-ops spec)
            (pinning spec)
            (other spec))))

(defn refusal
  "Returns the exception for a spec, with all its problems."
  ^Throwable [problems]
  (error/error :invalid-spec
               (str "The map spec is invalid: " (str/join "; " (map :message problems)))
               {:bpfmap/op :create
                :bpfmap/path (:path (first problems))
                :bpfmap/problems (vec problems)}))
