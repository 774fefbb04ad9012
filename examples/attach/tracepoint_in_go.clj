;; Sends the number 123 whenever a file is opened, with a program as data, and prints the events.
;;
;;     bin/clj -M:exec examples/attach/tracepoint_in_go.clj          until Ctrl-C
;;     bin/clj -M:exec examples/attach/tracepoint_in_go.clj 10       for 10 seconds

(require '[bpfmap.core :as bpf]
         '[bpfmap.events :as events]
         '[bpfmap.link :as link]
         '[bpfmap.prog :as prog])

(let [[seconds] *command-line-args*]
  (with-open [buffers (bpf/create {:name "events" :type :perf-event-array})
              p (prog/load {:type :tracepoint :name "send_number"
                            :insns [[:stw [:r10 -8] 123]
                                    [:lddw :r2 buffers]
                                    [:lddw :r3 0xffffffff] ; the buffer of this CPU
                                    [:mov64 :r4 :r10]
                                    [:add64 :r4 -8]
                                    [:mov64 :r5 4]
                                    [:call :perf-event-output]
                                    [:mov64 :r0 0]
                                    [:exit]]})
              reader (events/reader buffers (cond-> {:type :u32 :with-cpu true}
                                              seconds (assoc :seconds (parse-long seconds))))
              _ (link/attach p {:tracepoint "syscalls/sys_enter_openat"})]
    (run! (fn [[cpu number]] (println "event on CPU" (str cpu ":") number))
          reader)))
