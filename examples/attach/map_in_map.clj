;; Makes an array of arrays of different sizes, and prints the arrays that the kernel has in it.
;;
;;     bin/clj -M:exec examples/attach/map_in_map.clj

(require '[bpfmap.core :as bpf])

(let [inner {:name "inner" :type :array :key :u32 :value :u32 :max-entries 1 :flags #{:inner-map}}]
  (with-open [outer (bpf/create {:name "outer" :type :array-of-maps :key :u32 :max-entries 5
                                 :inner-map inner})]
    (doseq [i (range 5)
            :let [size (inc (rand-int 50))]]
      (with-open [m (bpf/create (assoc inner
                                       :max-entries size
                                       :contents (zipmap (range size) (repeat 0xcafe))))]
        (bpf/put! outer i m))) ; the outer map keeps it
    (doseq [[i {:keys [map-id]}] (sort-by key (into {} outer))]
      (with-open [m (bpf/open map-id)]
        (let [{:keys [id name type max-entries]} (bpf/info m)]
          (println "outer key" i "inner map" id name type "with" max-entries "entries, each"
                   (first (distinct (vals (into {} m))))))))))
