;; Blocks an address in a map of a firewall, by typed key:
;;
;;     bin/clj -M:exec examples/block.clj blocked 192.0.2.7
;;     bin/clj -M:exec examples/block.clj blocked 192.0.2.0/24
;;
;; The map is keyed by addresses, or by prefixes, and its values are numbers: this writes a 1. It says what was there
;; before. Since the map is the firewall's, :yes says that changing it is meant.

(require '[bpfmap.core :as bpf]
         '[bpfmap.exec :as exec])

(let [[ref address] *command-line-args*
      {:keys [key before]} (exec/put {:ref ref
                                      :key address
                                      :value 1
                                      :key-type (when-not (:btf-id (exec/show {:ref ref})) :ipv4)
                                      :yes true})]
  (println key (if before (str "was blocked already, by " before) "is blocked now"))
  ;; What the program will find: the longest prefix that fits, or the address itself.
  (with-open [m (bpf/open (:id (exec/show {:ref ref})) {:access :read-only})]
    (println "the map has" (bpf/count-entries m) "addresses")))
