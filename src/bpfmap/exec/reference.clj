(ns bpfmap.exec.reference
  "The map that a command is about: opened by what names it."
  (:require [bpfmap.core :as bpf])
  (:import (java.nio.file Path)))

(set! *warn-on-reflection* true)

(defn absolute
  "A path as the user means it: bin/bpfmap changes the directory, and says from which.

      (absolute \"./flows\") ;=> \"/sys/fs/bpf/flows\""
  [path]
  (let [directory (System/getProperty "bpfmap.directory" "")]
    (str (.resolve (Path/of directory (make-array String 0)) (str path)))))

(defn open
  "Opens the map that the `:ref` of a command's options names, with their types. Whoever opens it closes it.

      (with-open [m (open {:ref {:name \"counts\"} :key-type :u32} :read-only)] (bpf/info m))"
  ^java.io.Closeable [{:keys [ref key-type value-type]} access]
  (bpf/open (if (and (map? ref) (:path ref)) (update ref :path absolute) ref)
            (cond-> {:access access}
              key-type (assoc :key key-type)
              value-type (assoc :value value-type))))
