(ns ^:no-doc bpfmap.impl.spec
  "What is wrong with a map spec, as data: every rule of a spec that can be told without the
  kernel."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.rules :as rules]
            [bpfmap.impl.type.node :as node]
            [bpfmap.type :as type]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(def spec-keys
  "Every key that a spec may have."
  [:type :key :value :key-size :value-size :types :max-entries :name :flags :numa-node :map-extra
   :inner-map :pinning
   :struct-ops :contents :freeze])

(defn- problem [path message]
  {:path path :message message})

(defn- unknown-keys [spec]
  (for [k (keys spec) :when (not (some #{k} spec-keys))]
    (problem [k] (str "unknown key " (pr-str k) "; a spec has " (error/list-of spec-keys)))))

(defn- of-type [{:keys [type]}]
  (cond
    (nil? type) [(problem [:type] "a spec needs :type, such as :hash or :array")]
    (keyword? type) (when-not (rules/types type)
                      [(problem [:type] (str "unknown map type " type "; the types are "
                                             (error/list-of (sort (keys rules/types)))))])
    (not (and (int? type) (<= 0 type 0xffffffff)))
    [(problem [:type] (str "a map type is a name or a number, not " (pr-str (error/shown type))))]))

;; --- key and value

(defn- allowed?
  "Whether a rule allows a number: `[least most]`, a set, or nil for any."
  [rule n]
  (cond
    (nil? rule) true
    (set? rule) (contains? rule n)
    :else (<= (long (first rule)) (long n) (long (second rule)))))

(defn- rule-text
  "A rule in words, as the number at hand breaks it."
  [rule n]
  (cond
    (set? rule) (error/list-of (sort rule))
    (= (first rule) (second rule)) (str (first rule))
    (< (long n) (long (first rule))) (str "at least " (first rule))
    :else (str "at most " (second rule))))

(defn- of-kernel?
  "Whether a spec leaves its values to the BTF of the kernel, which is read only when the map is
  created."
  [{:keys [type]} side]
  (and (= :value side) (= :kernel (:btf (rules/types type)))))

(defn- side
  "What is wrong with the key or the value: its type, its size, both together, the rule of the map
  type."
  [spec side size-key]
  (let [value-type (side spec)
        given (size-key spec)
        types (when (map? (:types spec)) (:types spec))
        row (rules/types (:type spec))
        bad-type (when value-type (type/problem value-type types [side]))
        actual (if (and value-type (not bad-type)) (type/size value-type types) given)
        rule (or (size-key row)
                 (some-> (({:value-size :values, :key-size :keys} size-key) row) keys set))
        multiple (if (= :value-size size-key) (rules/value-multiple (:type spec) (:flags spec)) 1)]
    (cond
      bad-type [(problem [side] bad-type)]
      (nil? actual) (when-not (or (= [0 0] rule) (of-kernel? spec side))
                      [(problem [side]
                                (str "a spec needs " side ", a type such as :u32, or " size-key
                                     ", in bytes"))])
      (not (and (int? actual) (<= 0 actual 0xffffffff)))
      [(problem [size-key] (str "a size is a number of bytes, not " (pr-str (error/shown actual))))]
      (and given (not= given actual))
      [(problem [size-key]
                (str size-key " is " (pr-str (error/shown given)) ", but " side " "
                     (pr-str value-type) " has " actual " bytes"))]
      (not (allowed? rule actual))
      [(problem [(if value-type side size-key)]
                (if (= [0 0] rule)
                  (str (:type spec) " maps have no " (name side))
                  (str "the " (name side) " of " (:type spec) " maps has " (rule-text rule actual)
                       " bytes, not " actual)))]
      (not (zero? (rem (long actual) (long multiple))))
      [(problem [(if value-type side size-key)]
                (str "the value of these " (:type spec) " maps is a multiple of " multiple
                     " bytes, not " actual))])))

(defn- has-private?
  "Whether a field that the kernel keeps for itself lies anywhere in a type: one of the name, or
  nil for any."
  [{:keys [kind type members element target] :as node} name]
  (case kind
    :private (or (nil? name) (= name type))
    (:struct :union) (boolean (some #(has-private? (:node %) name) members))
    :array (has-private? element name)
    :via (recur target name)
    false))

(defn private-value?
  "Whether values of this type have a field that the kernel keeps for itself, of a name or, nil,
  any; false for what is no type.

      (private-value? [:struct [:lock :spin-lock] [:n :u64]] nil :spin-lock) ;=> true"
  [value types name]
  (try
    (boolean (and value (has-private? (node/node value types []) name)))
    (catch ExceptionInfo _ false)))

(defn locked-value?
  "Whether values of this type have a spin lock; false for what is no type.

      (locked-value? [:struct [:lock :spin-lock] [:n :u64]] nil) ;=> true"
  [value types]
  (private-value? value types :spin-lock))

(defn- types-that
  "The names of the map types whose row says so."
  [k]
  (sort (for [[type row] rules/types :when (k row)] type)))

(defn- spin-lock [{:keys [type value types]}]
  (let [row (rules/types type)]
    (when (and row (not (:lock? row)) (map? (or types {})) (locked-value? value types))
      [(problem [:value] (str "values of " type " maps have no :spin-lock; those of "
                              (error/list-of (types-that :lock?)) " maps may"))])))

;; --- the rest

(defn- max-entries [{:keys [type max-entries]}]
  (let [{[least most] :max-entries :keys [entries]
         :or {entries "the number of entries it can hold"}}
        (merge {:max-entries [0 0xffffffff]} (rules/types type))]
    (cond
      (and (nil? max-entries) (pos? (long least)))
      [(problem [:max-entries] (str "a spec needs :max-entries, " entries))]
      (not (or (nil? max-entries) (and (int? max-entries) (<= least max-entries most))))
      [(problem [:max-entries] (if (= least most)
                                 (str ":max-entries of " type " maps is " least ", not "
                                      (pr-str (error/shown max-entries)))
                                 (str ":max-entries is a number from " least " to " most ", not "
                                      (pr-str (error/shown max-entries)))))])))

(defn- flag [type allowed flag]
  (cond
    (and (keyword? flag) (not (rules/flags flag)))
    (str "unknown flag " flag "; the flags are " (error/list-of (sort (keys rules/flags))))
    (and (keyword? flag) allowed (not (allowed flag)))
    (str type " maps do not take " flag
         (if (seq allowed)
           (str "; they take " (error/list-of (sort allowed)))
           "; they take no flags"))
    (not (or (keyword? flag) (and (int? flag) (<= 1 flag 0xffffffff))))
    (str "a flag is a name or a bit, not " (pr-str (error/shown flag)))))

(defn- flags [{:keys [type flags numa-node]}]
  (let [{allowed :flags :keys [requires added]} (rules/types type)]
    (if-not (or (nil? flags) (set? flags) (sequential? flags))
      [(problem [:flags] (str ":flags is a set of names, not " (pr-str (error/shown flags))))]
      (concat
       (keep #(some->> (flag type (some-> allowed (into added)) %) (problem [:flags])) flags)
       (for [missing (sort requires) :when (not (rules/has-flag? flags missing))]
         (problem [:flags] (str type " maps need the flag " missing)))
       (when (and numa-node allowed (not (allowed :numa-node)))
         [(problem [:numa-node] (str type " maps cannot be placed on a node"))])
       (when (and (or numa-node (rules/has-flag? flags :numa-node))
                  (rules/has-flag? flags :no-common-lru))
         [(problem [:numa-node]
                   "a map of :no-common-lru has a list for each CPU, and cannot be placed on a node")])
       (when (not (or (nil? numa-node) (and (int? numa-node) (<= 0 numa-node 0xffff))))
         [(problem [:numa-node]
                   (str ":numa-node is the number of a node, not "
                        (pr-str (error/shown numa-node))))])
       (when (and (nil? numa-node) (rules/has-flag? flags :numa-node))
         [(problem [:numa-node]
                   "the flag :numa-node goes with the number of a node in :numa-node")])))))

(defn- map-extra [{:keys [type map-extra]}]
  (let [{:keys [extra most-extra] :as row} (rules/types type)]
    (cond
      (or (nil? map-extra) (= 0 map-extra)) nil
      (not (and (integer? map-extra) (<= 0 map-extra 18446744073709551615N)))
      [(problem [:map-extra]
                (str ":map-extra is a number of 64 bits, not " (pr-str (error/shown map-extra))))]
      (and row (nil? extra))
      [(problem [:map-extra] (str type " maps take no :map-extra"))]
      (and most-extra (< most-extra map-extra))
      [(problem [:map-extra] (str ":map-extra of " type " maps is " extra ", not " map-extra))])))

(declare problems)

(defn- inner-map [{:keys [type inner-map]}]
  (let [{:keys [inner?] :as row} (rules/types type)
        of-inner (rules/types (:type inner-map))]
    (cond
      (and inner? (nil? inner-map))
      [(problem [:inner-map]
                (str type " maps need :inner-map, the spec of the maps that they hold"))]
      (nil? inner-map) nil
      (and row (not inner?))
      [(problem [:inner-map]
                (str type " maps hold no maps; :inner-map is for "
                     (error/list-of (types-that :inner?))))]
      :else
      (concat
       (map #(-> %
                 (update :path (partial into [:inner-map]))
                 (update :message (partial str "in :inner-map, "))) (problems inner-map))
       (when (:pinning inner-map)
         [(problem [:inner-map :pinning] "an inner map is a template here, and is not pinned")])
       (when (:not-inside of-inner)
         [(problem [:inner-map :type] (str "a map cannot hold " (:type inner-map) " maps"))])))))

(defn- struct-ops [{:keys [type struct-ops]}]
  (let [row (rules/types type)
        of-kernel? (= :kernel (:btf row))]
    (cond
      (and (nil? struct-ops) (not of-kernel?)) nil
      (nil? struct-ops)
      [(problem [:struct-ops]
                (str type
                     " maps need :struct-ops, the name of the kernel's struct, such as "
                     "\"tcp_congestion_ops\""))]
      (not (and (string? struct-ops) (re-matches #"[A-Za-z_][A-Za-z0-9_]{0,126}" struct-ops)))
      [(problem [:struct-ops]
                (str ":struct-ops is the name of a struct of the kernel's, not "
                     (pr-str (error/shown struct-ops))))]
      (and row (not of-kernel?))
      [(problem [:struct-ops]
                (str type
                     " maps hold no struct of the kernel's; :struct-ops is for :struct-ops maps"))])))

(defn- pinning [{:keys [pinning name]}]
  (cond
    (nil? pinning) nil
    (not= :by-name
          pinning) [(problem [:pinning]
                             (str ":pinning is :by-name, not " (pr-str (error/shown pinning))))]
    (not (and (string? name) (re-matches #"[^./\u0000]{1,255}" name)))
    [(problem [:name]
              "a map pinned by name needs a :name that can be a file's on a BPF file system: no dots, no slashes")]))

(defn- pairs? [contents]
  (or (map? contents)
      (and (sequential? contents) (every? #(and (vector? %) (= 2 (count %))) contents))))

(defn- other [{:keys [type name contents freeze flags value types]}]
  (let [{:keys [ops] freezes? :freeze? :as row} (rules/types type)]
    (concat
     (when-not (or (nil? types) (and (map? types) (every? keyword? (keys types))))
       [(problem [:types]
                 (str ":types is a map of keywords to types, not " (pr-str (error/shown types))))])
     (when-not (or (nil? name) (string? name))
       [(problem [:name] (str ":name is a text, not " (pr-str (error/shown name))))])
     (cond
       (nil? contents) nil
       (and row (not (or (ops :put!) (ops :push!))))
       [(problem [:contents] (str type " maps cannot be filled from here"))]
       (and row (ops :push!))
       (when-not (sequential? contents)
         [(problem [:contents] (str ":contents of " type " maps is a sequence of values"))])
       (not (pairs? contents))
       [(problem [:contents] ":contents is a map, or a sequence of [key value] pairs")])
     (when-not (contains? #{nil true false} freeze)
       [(problem [:freeze] (str ":freeze is true or false, not " (pr-str (error/shown freeze))))])
     (when (and (true? freeze) row (not freezes?))
       [(problem [:freeze] (str type " maps cannot be frozen"))])
     (when (and (true? freeze) (map? (or types {})) (private-value? value types nil))
       [(problem [:freeze]
                 "a map cannot be frozen whose values have fields that the kernel keeps for itself, such as a :spin-lock")])
     (when (and (coll? flags) (some #{:rdonly} flags) (or (seq contents) freeze))
       [(problem [:flags]
                 "a map created :rdonly cannot be filled or frozen through its own descriptor")]))))

(defn problems
  "Everything that is wrong with a spec whose defaults are filled in: a sequence of `{:path
  :message}`."
  [spec]
  (if-not (error/named-map? spec)
    [(problem []
              (str "a spec is a map with keywords as its keys, not " (pr-str (error/shown spec))))]
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
  "The exception for a spec with problems: all of them, said at once."
  ^Throwable [problems]
  (error/error :invalid-spec "The map spec cannot be used"
               {:bpfmap/op :create
                :bpfmap/path (:path (first problems))
                :bpfmap/problems (vec problems)
                :bpfmap/hint (str/join "; " (map :message problems))}))
