(ns bpfmap.impl.comparing
  "Specs held against maps that exist."
  (:require [bpfmap.impl.handle :as handle]
            [bpfmap.impl.store :as store]
            [bpfmap.impl.sys :as sys]
            [bpfmap.spec :as spec]))

(set! *warn-on-reflection* true)

(defn machine
  "The facts of this machine that a spec's completion depends on."
  []
  {:possible-cpus (count (sys/possible-cpus)) :page-size (sys/page-size)})

(defn difference
  "Where a spec and a map differ; nil where they do not. The map is open, or what its info said."
  [spec m]
  (spec/diff spec (if (store/bpf-map? m) (handle/info m) m) (machine)))
