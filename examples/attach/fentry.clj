;; Prints each TCP connection that a process opens. Needs trampolines of BPF: kernels with
;; CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS.
;;
;;     bin/clj -M:exec examples/attach/fentry.clj          until Ctrl-C
;;     bin/clj -M:exec examples/attach/fentry.clj 10       for 10 seconds

(require '[bpfmap.events :as events]
         '[bpfmap.link :as link]
         '[bpfmap.object :as object])

(def event
  [:struct [:source :ipv4] [:target :ipv4] [:source-port :port] [:target-port :port] [:rtt :u32]
   [:comm [:string 16]]])

(let [[seconds] *command-line-args*
      options (cond-> {:type event} seconds (assoc :seconds (parse-long seconds)))]
  (with-open [network (object/load (object/read "examples/attach/network.o")
                                   {:only ["connecting"]})
              reader (events/reader (get-in network [:maps "events"]) options)
              _ (link/attach (get-in network [:programs "connecting"]))]
    (println (format "%-16s %-15s %-6s -> %-15s %-6s" "Comm" "Source" "Port" "Target" "Port"))
    (run! (fn [{:keys [comm source source-port target target-port]}]
            (println (format "%-16s %-15s %-6d -> %-15s %-6d"
                             comm source source-port target target-port)))
          reader)))
