(ns bpfmap.impl.refusals
  "What a handle refuses before the kernel is asked: what the map's type lacks, and what the way forbids in which it was opened."
  (:require [bpfmap.rules :as rules]))

(set! *warn-on-reflection* true)

(def ^:private reads #{:lookup :take! :next-key :reduce :drain! :pop! :peek :might-contain?})
(def ^:private writes #{:put! :insert! :replace! :delete! :take! :drain! :push! :pop!})

(defn of
  "The operations that a map of this type, opened this way, never does: op to [kind hint]; nil for none."
  [type value-size access]
  (let [barred (case access
                 :read-only (map #(vector % [:read-only "the map was opened read-only; open it with {:access :read-write}"])
                                 (conj writes :freeze!))
                 :write-only (map #(vector % [:write-only
                                              "the map was opened write-only; open it with {:access :read-write}"])
                                  reads)
                 nil)
        lacking (for [op (conj rules/operations :freeze!)
                      :let [instead (rules/alternative type op value-size)]
                      :when instead]
                  [op [:not-supported instead]])
        refused (into {} cat [barred lacking])]
    (not-empty (into refused (keep (fn [op] (some->> (refused (rules/ability op)) (vector op))))
                     rules/made-of-others))))
