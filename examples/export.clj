;; Exports a map to a JSON file every minute, until the script is ended:
;;
;;     bin/clj -M:exec examples/export.clj flows /var/lib/flows.json
;;     bin/clj -M:exec examples/export.clj flows /var/lib/flows.json 10 6     every 10 seconds, 6 times
;;
;; The file is replaced atomically, so a reader never sees a partial export.

(require '[bpfmap.exec :as exec])

(import '(java.nio.file CopyOption Files Path StandardCopyOption))

(defn export
  "Writes the entries of a map to a file as JSON. Returns the number of entries."
  [ref file]
  (let [rows (volatile! nil)
        text (with-out-str (vreset! rows (exec/dump {:ref ref :print :json})))
        target (Path/of file (make-array String 0))
        beside (.resolveSibling target (str (.getFileName target) ".part"))]
    (Files/writeString beside text (make-array java.nio.file.OpenOption 0))
    (Files/move beside target (into-array CopyOption [StandardCopyOption/ATOMIC_MOVE]))
    (count @rows)))

(let [[ref file every times] *command-line-args*
      pause (* 1000 (parse-long (or every "60")))]
  (loop [left (parse-long (or times "1000000000"))]
    (println (str (java.time.Instant/now)) (export ref file) "entries")
    (when (< 1 left)
      (Thread/sleep pause)
      (recur (dec left)))))
