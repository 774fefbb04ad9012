;; Counts the packets that an interface receives, by their IPv4 source address, and prints the map
;; every second.
;;
;;     bin/clj -M:exec examples/attach/xdp.clj eth0          until Ctrl-C
;;     bin/clj -M:exec examples/attach/xdp.clj eth0 10       for 10 seconds

(require '[bpfmap.core :as bpf]
         '[bpfmap.link :as link]
         '[bpfmap.object :as object])

(let [[interface seconds] *command-line-args*]
  (with-open [network (object/load (object/read "examples/attach/network.o") {:only ["receiving"]})
              sources (bpf/open (:id (bpf/info (get-in network [:maps "sources"])))
                                {:key-type :ipv4 :value-type :u32}) ; the object has numbers
              _ (link/attach (get-in network [:programs "receiving"]) {:xdp interface})]
    (doseq [_ (range (if seconds (parse-long seconds) Long/MAX_VALUE))]
      (Thread/sleep 1000)
      (println "map contents:")
      (doseq [[source n] (sort-by val > (into {} sources))]
        (println " " source "=>" n)))))
