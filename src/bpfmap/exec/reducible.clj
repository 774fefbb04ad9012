(ns ^:no-doc bpfmap.exec.reducible
  "Results that are reduced instead of held in memory: `watch`, and rows with `:stream`.

  Each reduction runs the command again. Printing a result shows the command and its options,
  `datafy` returns them as data. Neither opens a map:

      (exec/watch {:ref \"flows\"})          ; prints #bpfmap.exec/watch {:ref {:name \"flows\"}, :interval 1.0}
      (datafy (exec/watch {:ref \"flows\"})) ;=> {:command \"watch\", :options {:ref {:name \"flows\"}, :interval 1.0}}"
  (:require [clojure.core.protocols :as protocols])
  (:import (clojure.lang IObj IReduce IReduceInit)
           (java.io Writer)))

(set! *warn-on-reflection* true)

;; `rows` is the reducible of the rows.
(deftype Reducible [command options ^IReduceInit rows metadata]
  IReduce
  (reduce [_ f]
    (let [result (.reduce rows (fn [acc x] (if (identical? ::none acc) x (f acc x))) ::none)]
      (if (identical? ::none result) (f) result)))
  (reduce [_ f init]
    (.reduce rows f init))

  IObj
  (meta [_] metadata)
  (withMeta [_ m] (Reducible. command options rows m))

  protocols/Datafiable
  (datafy [_] {:command command :options options})

  Object
  (toString [_] (str "#bpfmap.exec/" command " " (pr-str options))))

(defmethod print-method Reducible [^Reducible x ^Writer w]
  (.write w (str "#bpfmap.exec/" (.-command x) " "))
  (print-method (.-options x) w))

(defn reducible
  "Returns a reducible that prints as a command and its options.

  The metadata of the rows stays.

      (reducible \"watch\" {:ref {:id 12}} rows) ; prints #bpfmap.exec/watch {:ref {:id 12}}"
  [command options rows]
  (Reducible. command options rows (meta rows)))
