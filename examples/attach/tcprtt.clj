;; Prints the round-trip time of each TCP connection that is closed. Needs trampolines of BPF:
;; kernels with CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS.
;;
;;     bin/clj -M:exec examples/attach/tcprtt.clj          until Ctrl-C
;;     bin/clj -M:exec examples/attach/tcprtt.clj 10       for 10 seconds

(require '[bpfmap.events :as events]
         '[bpfmap.link :as link]
         '[bpfmap.object :as object])

(def event
  [:struct [:source :ipv4] [:target :ipv4] [:source-port :port] [:target-port :port] [:rtt :u32]
   [:comm [:string 16]]])

(let [[seconds] *command-line-args*
      options (cond-> {:type event} seconds (assoc :seconds (parse-long seconds)))]
  (with-open [network (object/load (object/read "examples/attach/network.o") {:only ["closing"]})
              reader (events/reader (get-in network [:maps "events"]) options)
              _ (link/attach (get-in network [:programs "closing"]))]
    (println (format "%-15s %-6s -> %-15s %-6s %-6s" "Source" "Port" "Target" "Port" "RTT"))
    (run! (fn [{:keys [source source-port target target-port rtt]}]
            (println (format "%-15s %-6d -> %-15s %-6d %.3f ms"
                             source source-port target target-port (/ rtt 1e3))))
          reader)))
