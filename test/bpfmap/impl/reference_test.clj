(ns bpfmap.impl.reference-test
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.prog :as prog]
            [clojure.string :as str]
            [clojure.test :refer [are is]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private inner {:type :hash :key :u32 :value :u32 :max-entries 1})

(defn- create ^Closeable [type & {:as more}]
  (bpf/create (merge {:type type :max-entries 4} more)))

(kernel-test what-is-open-goes-in-and-a-reference-comes-out
  (with-open [m ^Closeable (bpf/create inner)
              p ^Closeable (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})
              of-maps (create :array-of-maps :inner-map inner)
              of-programs (create :prog-array)]
    (bpf/put! of-maps 0 m)
    (bpf/put! of-maps 1 {:map-id (:id (bpf/info m))})
    (is (= {:map-id (:id (bpf/info m))} (of-maps 0) (of-maps 1)))
    (bpf/put! of-programs 0 p)
    (bpf/put! of-programs 1 {:program-id (:id (prog/info p))})
    (is (= {:program-id (:id (prog/info p))} (of-programs 0) (of-programs 1)))))

(kernel-test what-is-no-such-thing-is-refused
  (with-open [m ^Closeable (bpf/create inner)
              p ^Closeable (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})
              of-maps (create :array-of-maps :inner-map inner)
              of-programs (create :prog-array)
              devices (create :devmap :value-size 8)]
    (let [before (fixture/open-descriptors)]
      (are [map value error words] (let [{:keys [message] found :bpfmap/error :bpfmap/keys [op]} (error-of (bpf/put! map 0 value))]
                                     (and (= [error :put!] [found op]) (str/includes? message words)))
        of-programs m :invalid-value "[:value]: \"#<bpf-map"
        of-maps p :invalid-value "it takes an open map, {:map-id n} or {:fd n}"
        devices m :invalid-value "it takes a map with :program"
        devices (sorted-map "program" 1) :invalid-value "it takes a map with :program"
        of-programs {:program-id 0x7fffffff} :not-found "there is no program 2147483647 (any more)"
        of-maps {:map-id 0x7fffffff} :not-found "there is no map 2147483647 (any more)")
      (is (= before (fixture/open-descriptors))))))
