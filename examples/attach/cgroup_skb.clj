;; Counts the packets that the processes of a cgroup send, and prints the number every second.
;;
;;     bin/clj -M:exec examples/attach/cgroup_skb.clj                           all processes
;;     bin/clj -M:exec examples/attach/cgroup_skb.clj /sys/fs/cgroup/app 10     for 10 seconds

(require '[bpfmap.core :as bpf]
         '[bpfmap.link :as link]
         '[bpfmap.prog :as prog])

(let [[cgroup seconds] *command-line-args*]
  (with-open [packets (bpf/create {:name "packets" :type :array :key :u32 :value :u64
                                   :max-entries 1})
              p (prog/load {:type :cgroup-skb :name "count_packets"
                            :insns [[:ld-map-value :r1 packets 0]
                                    [:mov64 :r2 1]
                                    [:atomic-add64 [:r1 0] :r2]
                                    [:mov64 :r0 1] ; let it pass
                                    [:exit]]})
              _ (link/attach p {:cgroup (or cgroup "/sys/fs/cgroup")
                                :attach-type :cgroup-inet-egress})]
    (doseq [_ (range (if seconds (parse-long seconds) Long/MAX_VALUE))]
      (Thread/sleep 1000)
      (println "number of packets:" (packets 0)))))
