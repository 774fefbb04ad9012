(ns bpfmap.host
  "What there is on this host, beyond the one map in hand."
  (:require [bpfmap.impl.lifecycle :as lifecycle]))

(set! *warn-on-reflection* true)

(defn maps
  "Returns what the kernel says of every map on the host, as `bpfmap.core/info` does, by ascending id.

  A map that vanishes meanwhile or cannot be opened is left out; the vector's
  metadata has `:skipped`, a vector of `{:id :error :message}`. Needs CAP_SYS_ADMIN
  and Linux 4.13; throws `:permission` without.

      (map :name (maps)) ;=> (\"counts\" \"flows\")"
  []
  (let [skipped (volatile! [])
        infos (lifecycle/infos :list (fn [id e]
                                       (vswap! skipped conj {:id id
                                                             :error (:bpfmap/error (ex-data e))
                                                             :message (ex-message e)})))]
    (with-meta infos {:skipped @skipped})))
