;; Blocks an address in the map of a firewall, by typed key:
;;
;;     bin/clj -M:exec examples/block.clj blocked 192.0.2.7
;;     bin/clj -M:exec examples/block.clj blocked 192.0.2.0/24
;;
;; The keys of the map are addresses or prefixes, and its values are numbers. The script writes a 1 and prints the previous
;; value. The map belongs to the firewall, so :yes confirms the change.

(require '[bpfmap.core :as bpf]
         '[bpfmap.exec :as exec])

(let [[ref address] *command-line-args*
      {:keys [key before]} (exec/put {:ref ref
                                      :key address
                                      :value 1
                                      :key-type (when-not (:btf-id (exec/show {:ref ref})) :ipv4)
                                      :yes true})]
  (println key (if before (str "was blocked already, by " before) "is blocked now"))
  ;; The program finds the longest prefix that matches, or the address itself.
  (with-open [m (bpf/open (:id (exec/show {:ref ref})) {:access :read-only})]
    (println "the map has" (bpf/count-entries m) "addresses")))
