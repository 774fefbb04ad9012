;; Prints the round-trip time of TCP connections of a cgroup, whenever the kernel measures it.
;;
;;     bin/clj -M:exec examples/attach/tcprtt_sockops.clj                          all processes
;;     bin/clj -M:exec examples/attach/tcprtt_sockops.clj /sys/fs/cgroup/app 10    for 10 seconds

(require '[bpfmap.events :as events]
         '[bpfmap.link :as link]
         '[bpfmap.object :as object])

(def event
  [:struct [:source :ipv4] [:target :ipv4] [:source-port :port] [:target-port :port] [:rtt :u32]
   [:comm [:string 16]]])

(let [[cgroup seconds] *command-line-args*
      options (cond-> {:type event} seconds (assoc :seconds (parse-long seconds)))]
  (with-open [network (object/load (object/read "examples/attach/network.o") {:only ["measuring"]})
              reader (events/reader (get-in network [:maps "events"]) options)
              _ (link/attach (get-in network [:programs "measuring"])
                             {:cgroup (or cgroup "/sys/fs/cgroup")})]
    (println (format "%-15s %-6s -> %-15s %-6s %-6s" "Source" "Port" "Target" "Port" "RTT"))
    (run! (fn [{:keys [source source-port target target-port rtt]}]
            (println (format "%-15s %-6d -> %-15s %-6d %.3f ms"
                             source source-port target target-port (/ rtt 1e3))))
          reader)))
