;; Finds the fullest maps of the host, and their owners:
;;
;;     bin/clj -M:exec examples/fullest.clj
;;     bin/clj -M:exec examples/fullest.clj 3        the first three
;;
;; Arrays are left out, because all of their entries always exist. LRU maps are left out too, because they evict entries.

(require '[bpfmap.exec :as exec]
         '[clojure.pprint :refer [print-table]])

(let [[limit] *command-line-args*]
  (->> (exec/list {:where ["full>=0" "type!~lru"] :sort "-full" :limit (or limit 10)})
       (map (fn [row] (update row :held #(mapv :command %))))
       (print-table [:full :id :type :name :entries :max-entries :held])))
