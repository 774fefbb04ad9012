;; Counts the calls of a system call on each CPU, and prints the numbers every second. Needs
;; CONFIG_KPROBES.
;;
;;     bin/clj -M:exec examples/attach/kprobe_percpu.clj                 execve, until Ctrl-C
;;     bin/clj -M:exec examples/attach/kprobe_percpu.clj openat 10       openat, for 10 seconds

(require '[bpfmap.core :as bpf]
         '[bpfmap.link :as link]
         '[bpfmap.prog :as prog])

(let [[call seconds] *command-line-args*
      call (or call "execve")]
  (with-open [calls (bpf/create {:name "calls" :type :percpu-array :key :u32 :value :u64
                                 :max-entries 1})
              p (prog/load {:type :kprobe :name "count_calls"
                            :insns [[:stw [:r10 -4] 0]
                                    [:lddw :r1 calls]
                                    [:mov64 :r2 :r10]
                                    [:add64 :r2 -4]
                                    [:call :map-lookup-elem] ; the value of this CPU
                                    [:jeq :r0 0 :out]
                                    [:ldxdw :r1 [:r0 0]]
                                    [:add64 :r1 1]
                                    [:stxdw [:r0 0] :r1]
                                    :out
                                    [:mov64 :r0 0]
                                    [:exit]]})
              _ (link/attach p {:ksyscall call})]
    (doseq [_ (range (if seconds (parse-long seconds) Long/MAX_VALUE))]
      (Thread/sleep 1000)
      (doseq [[cpu n] (map-indexed vector (calls 0))]
        (println call "called" n "times on CPU" cpu)))))
