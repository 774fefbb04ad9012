(ns ^:no-doc bpfmap.impl.events.emitter
  "Writes records to simulated ring buffers, in place of a program."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.events :as kernel.events]
            [bpfmap.impl.kernel.memory :as kernel.memory]
            [bpfmap.impl.map.bpf-map :as bpf-map :refer [with-error-context]]
            [bpfmap.impl.options :as options]
            [bpfmap.impl.type.node :as node])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(defn- check-ring [^BpfMap m]
  (let [{:keys [type] :as identity} (bpf-map/identity-of m)]
    (when-not (and (= :ringbuf type) (call/simulated? (.-fd m)))
      (throw (error/error :not-supported
                          (str "Map " (error/id-and-name identity)
                               " must be a simulated ring buffer")
                          {:bpfmap/op :emit! :bpfmap/map identity
                           :bpfmap/hint (str "create it by (bpfmap.sim/create {:type :ringbuf …}); "
                                             "only programs write to a ring of the kernel")})))
    (call/check-open (.-fd m) {:op :emit! :map identity})))

(defn- check-bytes [m x]
  (when-not (or (bytes? x) (bytes/byte-view? x))
    (throw (error/error :invalid-value (str "A record must be bytes, got " (error/printed x))
                        {:bpfmap/op :emit! :bpfmap/map (bpf-map/identity-of m)
                         :bpfmap/hint (str "give its type as {:type t}, or as :record-type of the "
                                           "spec")}))))

(defn emit!
  "Writes a record to a simulated ring buffer; returns false if there is no room."
  [^BpfMap m x options]
  (bpf-map/check-open-map m :emit!)
  (check-ring m)
  (options/check :emit! options)
  (let [{:keys [record-type types]} (bpf-map/spec-of m)
        type (get options :type record-type)]
    (with-error-context [m :emit!]
      (if (or (nil? type) (bytes? x) (bytes/byte-view? x))
        (do (check-bytes m x)
            (let [record (bytes/->array x)]
              (kernel.events/emit (.-fd m) (MemorySegment/ofArray ^bytes record) 0
                                  (alength ^bytes record))))
        (kernel.memory/call-with-encoded
         (codec/of-node (node/node type (get options :types types) [:type]) [:value])
         x
         (fn [memory offset size]
           (kernel.events/emit (.-fd m) memory offset size)))))))
