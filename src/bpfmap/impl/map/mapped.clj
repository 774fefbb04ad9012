(ns ^:no-doc bpfmap.impl.map.mapped
  "Maps the memory of an open map, for callers and for the map's own operations."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.map.bpf-map :as bpf-map :refer [with-error-context]]
            [bpfmap.impl.memory.bytes]
            [bpfmap.impl.memory.mapping :as mapping])
  (:import (bpfmap.impl.map.bpf_map BpfMap)))

(set! *warn-on-reflection* true)

(defn- refuse [^BpfMap m [kind hint]]
  (let [identity (bpf-map/identity-of m)]
    (throw (error/error kind
                        (str "The memory of map " (error/id-and-name identity) " cannot be mapped")
                        {:bpfmap/op :memory :bpfmap/map identity :bpfmap/hint hint}))))

(defn- check-mappable [^BpfMap m]
  (when-let [refusal (mapping/refusal (.-spec m) (.-access m))]
    (refuse m refusal)))

(defn memory
  "Returns the memory of a map, mapped."
  [^BpfMap m]
  (with-error-context [m :memory]
    (check-mappable m)
    (mapping/memory (.-mapping m))))

(defn memory-or-nil
  "Returns the memory of a map, mapped; nil if it cannot be mapped."
  [^BpfMap m]
  (when-not (mapping/refusal (.-spec m) (.-access m))
    (try
      (memory m)
      (catch clojure.lang.ExceptionInfo e
        (when-not (= :not-supported (:bpfmap/error (ex-data e)))
          (throw e))))))

(defn through-memory
  "Makes `get`, `put!` and `reduce` of a map use its memory."
  [^BpfMap m]
  (with-error-context [m :memory]
    (check-mappable m)
    (when-not (.-fast-path m)
      (refuse m
              [:not-supported
               (str "it has no elements that could be read and written there; (memory m) "
                    "returns its memory")]))
    (mapping/go-through (.-mapping m)))
  m)
