(ns ^:no-doc bpfmap.impl.events.perf
  "Opens the sources of a perf event array: one for each online CPU.

  Each function returns a vector of `bpfmap.sys.EventSource`, which the caller closes."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.map.bpf-map :as bpf-map]))

(set! *warn-on-reflection* true)

(defn consuming
  "Returns the sources that consume a perf event array."
  [m _options op]
  (throw (error/error :not-supported "Perf event arrays cannot be read yet"
                      {:bpfmap/op op :bpfmap/map (bpf-map/identity-of m)})))

(defn following
  "Returns sources that copy what the perf events of another process have."
  [m _options op]
  (throw (error/error :not-supported "Perf event arrays cannot be read yet"
                      {:bpfmap/op op :bpfmap/map (bpf-map/identity-of m)})))
