;; Finds the fullest maps on the host, and whose they are:
;;
;;     bin/clj -M:exec examples/fullest.clj
;;     bin/clj -M:exec examples/fullest.clj 3        the first three
;;
;; Arrays are left out, since all their entries are always there; so are maps that forget what is old when they are full.

(require '[bpfmap.exec :as exec]
         '[bpfmap.rules :as rules]
         '[clojure.pprint :refer [print-table]])

(defn fullness
  "How full a map is, in percent; nil where that says nothing."
  [{:keys [type entries max-entries]}]
  (let [{:keys [every-index? full]} (rules/types type)]
    (when (and entries (pos? max-entries) (seq full) (not every-index?))
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
