(ns bpfmap.impl.comparing
  "Specs held against maps that exist."
  (:require [bpfmap.error :as error]
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
  (let [info (cond
               (store/bpf-map? m) (store/info m)
               (and (map? m) (:type m)) m
               :else (throw (error/error :invalid-value (str "Neither an open map nor its info: " (pr-str (error/shown m)))
                                         {:bpfmap/op :spec-diff})))]
    (spec/diff spec info (machine))))
