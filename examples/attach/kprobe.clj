;; Counts the calls of a system call, and prints the number every second. Needs CONFIG_KPROBES.
;;
;;     bin/clj -M:exec examples/attach/kprobe.clj                 execve, until Ctrl-C
;;     bin/clj -M:exec examples/attach/kprobe.clj openat 10       openat, for 10 seconds

(require '[bpfmap.core :as bpf]
         '[bpfmap.link :as link]
         '[bpfmap.prog :as prog])

(let [[call seconds] *command-line-args*
      call (or call "execve")]
  (with-open [calls (bpf/create {:name "calls" :type :array :key :u32 :value :u64 :max-entries 1})
              p (prog/load {:type :kprobe :name "count_calls"
                            :insns [[:ld-map-value :r1 calls 0]
                                    [:mov64 :r2 1]
                                    [:atomic-add64 [:r1 0] :r2]
                                    [:mov64 :r0 0]
                                    [:exit]]})
              _ (link/attach p {:ksyscall call})]
    (doseq [_ (range (if seconds (parse-long seconds) Long/MAX_VALUE))]
      (Thread/sleep 1000)
      (println call "called" (calls 0) "times"))))
