;; Finds the fullest maps of the host, and their owners:
;;
;;     bin/clj -M:exec examples/fullest.clj
;;     bin/clj -M:exec examples/fullest.clj 3        the first three
;;
;; Arrays are left out, because all of their entries always exist. LRU maps are left out too, because they evict entries.

(require '[bpfmap.exec :as exec]
         '[bpfmap.impl.map-types :as map-types]
         '[clojure.pprint :refer [print-table]])

(defn fullness
  "Returns how full a map is in percent, or nil for a map that is always full or never full."
  [{:keys [type entries max-entries]}]
  (let [{:keys [every-index full]} (map-types/types type)]
    (when (and entries (pos? max-entries) (seq full) (not every-index))
      (quot (* 100 entries) max-entries))))

(let [[limit] *command-line-args*]
  (->> (exec/list {:count true})
       (keep (fn [row]
               (when-let [percent (fullness row)]
                 (assoc row :percent percent))))
       (sort-by (juxt (comp - :percent) :id))
       (take (parse-long (or limit "10")))
       (map (fn [row] (update row :held #(mapv :command %))))
       (print-table [:percent :id :type :name :entries :max-entries :held])))
