;; Counts the calls of a system call in a pinned map, so that the next run continues to count. Needs
;; CONFIG_KPROBES.
;;
;;     bin/clj -M:exec examples/attach/kprobepin.clj                           execve, until Ctrl-C
;;     bin/clj -M:exec examples/attach/kprobepin.clj openat 10 /sys/fs/bpf/my  pinned there
;;
;; Remove the pin with: bin/bpfmap unpin /sys/fs/bpf/ex_calls

(require '[bpfmap.core :as bpf]
         '[bpfmap.link :as link]
         '[bpfmap.prog :as prog])

(let [[call seconds directory] *command-line-args*
      call (or call "execve")]
  (with-open [calls (bpf/create {:name "ex_calls" :type :array :key :u32 :value :u64 :max-entries 1
                                 :pinning :by-name}
                                {:pin-path (or directory "/sys/fs/bpf")})
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
