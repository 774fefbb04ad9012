;; Prints the process and its name whenever a system call is made. Needs CONFIG_KPROBES.
;;
;;     bin/clj -M:exec examples/attach/ringbuffer.clj                 execve, until Ctrl-C
;;     bin/clj -M:exec examples/attach/ringbuffer.clj openat 10       openat, for 10 seconds

(require '[bpfmap.core :as bpf]
         '[bpfmap.events :as events]
         '[bpfmap.link :as link]
         '[bpfmap.prog :as prog])

(let [[call seconds] *command-line-args*
      call (or call "execve")
      event [:struct [:pid :u32] [:comm [:string 16]]]
      options (cond-> {:type event} seconds (assoc :seconds (parse-long seconds)))]
  (with-open [ring (bpf/create {:name "events" :type :ringbuf :max-entries 65536})
              p (prog/load {:type :kprobe :name "send_calls"
                            :insns [[:call :get-current-pid-tgid]
                                    [:rsh64 :r0 32]
                                    [:stxw [:r10 -20] :r0]
                                    [:mov64 :r1 :r10]
                                    [:add64 :r1 -16]
                                    [:mov64 :r2 16]
                                    [:call :get-current-comm]
                                    [:lddw :r1 ring]
                                    [:mov64 :r2 :r10]
                                    [:add64 :r2 -20]
                                    [:mov64 :r3 20]
                                    [:mov64 :r4 0]
                                    [:call :ringbuf-output]
                                    [:mov64 :r0 0]
                                    [:exit]]})
              reader (events/reader ring options)
              _ (link/attach p {:ksyscall call})]
    (run! (fn [{:keys [pid comm]}] (println "pid" pid "comm" comm))
          reader)))
