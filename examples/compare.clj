;; Compares what was saved of a map on two hosts:
;;
;;     one#    bpfmap save routes /tmp/one.edn
;;     two#    bpfmap save routes /tmp/two.edn
;;     bin/clj -M:exec examples/compare.clj one.edn two.edn
;;
;; Exits with 0 where they have the same entries, and with 1 where not.

(require '[bpfmap.exec :as exec])

(let [[one two] *command-line-args*
      rows (exec/diff {:old one :new two})
      {:keys [added removed changed]} (group-by :change rows)]
  (doseq [[title rows show] [["only in the first" removed (juxt :key :old)]
                             ["only in the second" added (juxt :key :new)]
                             ["different" changed (juxt :key :old :new)]]
          :when (seq rows)]
    (println (str title ":"))
    (doseq [row rows]
      (apply println " " (show row))))
  (println (:same (meta rows)) "the same")
  (flush)
  (System/exit (if (empty? rows) 0 1)))
