;; Compares the saved maps of two hosts:
;;
;;     one#    bpfmap save routes /tmp/one.edn
;;     two#    bpfmap save routes /tmp/two.edn
;;     bin/clj -M:exec examples/compare.clj one.edn two.edn
;;
;; The exit code is 0 if they have the same entries, and 1 otherwise.

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
