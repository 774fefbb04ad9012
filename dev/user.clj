(ns user
  "What a REPL of the project begins with: bin/clj -M:dev, as root.

      (maps)                 a table of all maps
      (explore)              the host as data that nav leads on from
      (scratch)              a map to try things on
      (reload)               what has changed in src, loaded again"
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.feature :as feature]
            [bpfmap.host :as host]
            [bpfmap.prog :as prog]
            [bpfmap.type :as type]
            [clojure.datafy :refer [datafy nav]]
            [clojure.pprint :refer [pprint print-table]]
            [clojure.repl :refer [apropos dir doc find-doc source]])
  (:import (java.io File)))

(set! *warn-on-reflection* true)

(defn maps
  "Prints a table of all maps, or of those for which the conditions hold, such as \"type=hash\"."
  [& conditions]
  (print-table [:id :type :name :entries :max-entries :memlock :held]
               (for [row (exec/list {:where (seq conditions)})]
                 (update row :held #(mapv (fn [{:keys [command pid]}] (str command "[" pid "]")) %)))))

(defn explore
  "The host as data that `nav` leads on from."
  []
  (host/explore))

(defn scratch
  "A new hash map to try things on; close it afterwards."
  []
  (bpf/create {:name "scratch" :type :hash :key :u32 :value :u64 :max-entries 1024 :contents {7 42}}))

(defonce ^:private loaded-at (atom (System/currentTimeMillis)))

(defn reload
  "Loads what has changed in src since it was loaded, and returns the files. The Java core needs a new JVM."
  []
  (let [before @loaded-at
        changed (filter #(and (.endsWith (.getName ^File %) ".clj") (< (long before) (.lastModified ^File %)))
                        (file-seq (File. "src")))]
    (reset! loaded-at (System/currentTimeMillis))
    (run! #(load-file (str %)) changed)
    (mapv str changed)))

(println "(maps) (explore) (scratch) (reload); bpf host exec prog type feature are at hand, (doc bpf/open) tells more")
