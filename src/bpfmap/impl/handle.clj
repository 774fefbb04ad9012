(ns bpfmap.impl.handle
  "A handle of a map that there is: made of its descriptor and its spec, cloned, asked for what the kernel says, and frozen."
  (:refer-clojure :exclude [clone])
  (:require [bpfmap.codec.element :as element]
            [bpfmap.impl.cache :as cache]
            [bpfmap.impl.memory.direct :as direct]
            [bpfmap.impl.memory.mapping :as mapping]
            [bpfmap.impl.reference :as reference]
            [bpfmap.impl.store :as store :refer [operating]]
            [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.elements :as el]
            [bpfmap.impl.sys.maps :as maps]
            [bpfmap.rules :as rules])
  (:import (bpfmap.impl.store BpfMap)
           (bpfmap.sys Codec)))

(set! *warn-on-reflection* true)

(defn- written-blindly
  "What a kernel that does not look whether the key exists refuses, where the rules know such kernels: op to [kind hint].

  A stable release may have the fix, so the kernel is tried. Where it cannot be, nothing is promised."
  [type]
  (when-let [since (:conditional-since (rules/types type))]
    (let [release (sys/kernel-release)]
      (when-not (or (some-> release (rules/at-least? since))
                    (:supported? ((requiring-resolve 'bpfmap.feature/conditional-write) type)))
        (let [hint (str "before Linux " since " the kernel does not look whether the key exists, and this is " release
                        "; put! writes in any case")]
          {:insert! [:not-supported hint] :replace! [:not-supported hint]})))))

(defn- refusals
  "What a handle refuses, by the name of each operation: those that are made of others too, so that asking is one step."
  [type value-size access]
  (when-some [refused (merge (written-blindly type) (rules/refusals type value-size access))]
    (into refused (keep (fn [op] (some->> (refused (rules/ability op)) (vector op)))) rules/made-of-others)))

(deftype ^:private Parts [refusals key-codec value-codec bridge cpus row])

(defn- parts-of
  "What a handle is made of, as far as types, sizes and access decide it."
  ^Parts [spec type value-size access]
  (let [{:keys [ops per-cpu?] :as row} (rules/types type)
        cpus (when per-cpu? (sys/possible-cpus))]
    (Parts. (refusals type value-size access)
            (when (seq ops) (element/key spec))
            (when (seq ops) (element/value spec (count cpus)))
            (reference/bridge spec)
            cpus
            row)))

(deftype ^:private PartsKey [key value types spec-type type access
                             ^long key-bytes ^long value-bytes value-size]
  Object
  (hashCode [_]
    (unchecked-int (+ (System/identityHashCode key) (* 31 (System/identityHashCode value))
                      (.hashCode ^Object type) key-bytes (* 31 value-bytes))))
  (equals [_ other]
    (and (instance? PartsKey other)
         (let [^PartsKey other other]
           (and (identical? key (.-key other))
                (identical? value (.-value other))
                (identical? types (.-types other))
                (= key-bytes (.-key-bytes other))
                (= value-bytes (.-value-bytes other))
                (= type (.-type other))
                (= spec-type (.-spec-type other))
                (= access (.-access other))
                (= value-size (.-value-size other)))))))

(defn- bytes-of
  "The n of a `[:bytes n]`, which means the same whichever object it is; -1 for any other type."
  ^long [type]
  (if (and (vector? type) (= 2 (count type)) (= :bytes (nth type 0)) (int? (nth type 1)))
    (long (nth type 1))
    -1))

(def ^:private made-parts (cache/cache))

(defn- parts
  "As [[parts-of]], from a cache. What a probe of the kernel decides is not cached."
  ^Parts [{:keys [key value types] :as spec} type value-size access]
  (if (:conditional-since (rules/types type))
    (parts-of spec type value-size access)
    (let [key-bytes (bytes-of key)
          value-bytes (bytes-of value)]
      (cache/through made-parts 128
                     (PartsKey. (when (neg? key-bytes) key) (when (neg? value-bytes) value) types
                                (:type spec) type access key-bytes value-bytes value-size)
                     #(parts-of spec type value-size access)))))

(defn make
  "An open map of a descriptor, its identity and its spec. Elements are usable where the type's layout is known."
  ^BpfMap [fd {:keys [id type value-size]} spec access path]
  (let [parts (parts spec type value-size access)
        key-codec (.-key-codec parts)
        value-codec (.-value-codec parts)
        identity {:id id :name (str (:name spec)) :type type}
        mapping (mapping/mapping fd identity spec access)]
    (BpfMap. fd identity spec access
             (.-refusals parts)
             (when (seq (:ops (.-row parts)))
               (el/elements fd
                            (if key-codec (.size ^Codec key-codec) 0)
                            (if value-codec (.size ^Codec value-codec) 0)))
             key-codec value-codec (.-bridge parts) (.-cpus parts)
             (atom (if path [path] [])) (.-row parts) mapping
             (when (and mapping value-codec) (direct/layout mapping key-codec value-codec spec)))))

(defn clone
  "A second handle of the same map: own lifetime, not pinned."
  [^BpfMap m]
  (operating [m :clone]
    (let [fd (sys/duplicate (.-fd m) {:op :clone :map (.-identity m)})
          twin (make fd (merge (.-spec m) (.-identity m)) (.-spec m) (.-access m) nil)]
      (mapping/like (.-mapping twin) (.-mapping m))
      twin)))

(defn info
  "What the kernel says of the map now, with the types of key and value."
  [^BpfMap m]
  (operating [m :info]
    (merge (into {} (filter (comp some? val)) (select-keys (.-spec m) [:key :value :struct-ops :untyped]))
           (maps/info (.-fd m) {:op :info :map (.-identity m)}))))

(defn freeze!
  "Freezes the map. One that is frozen already stays so."
  [^BpfMap m]
  (operating [m :freeze!]
    (when-not (:frozen? (maps/info (.-fd m) {:op :freeze! :map (.-identity m)}))
      (let [facts (mapping/explaining (.-mapping m) {:op :freeze! :map (.-identity m)})]
        (mapping/while-unmapped (.-mapping m) #(maps/freeze (.-fd m) facts)))))
  m)
