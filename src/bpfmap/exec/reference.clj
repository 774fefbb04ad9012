(ns bpfmap.exec.reference
  "The map that a command is about: opened by what names it."
  (:require [bpfmap.core :as bpf]))

(set! *warn-on-reflection* true)

(defn open
  "Opens the map that the `:ref` of a command's options names, with their types. Whoever opens it closes it.

      (with-open [m (open {:ref {:name \"counts\"} :key-type :u32} :read-only)] (bpf/info m))"
  ^java.io.Closeable [{:keys [ref key-type value-type]} access]
  (bpf/open ref
            (cond-> {:access access}
              key-type (assoc :key key-type)
              value-type (assoc :value value-type))))
