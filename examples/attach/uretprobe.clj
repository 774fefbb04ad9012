;; Prints what functions of programs return: the lines that shells read.
;;
;;     bin/clj -M:exec examples/attach/uretprobe.clj                            until Ctrl-C
;;     bin/clj -M:exec examples/attach/uretprobe.clj /bin/bash readline 10      for 10 seconds

(require '[bpfmap.core :as bpf]
         '[bpfmap.events :as events]
         '[bpfmap.link :as link]
         '[bpfmap.prog :as prog])

(def result-register
  "The offset of the register of results in struct pt_regs."
  ({"amd64" 80 "aarch64" 0 "riscv64" 80} (System/getProperty "os.arch")))

(let [[file function seconds] *command-line-args*
      file (or file "/bin/bash")
      function (or function "readline")
      event [:struct [:pid :u32] [:line [:string 80]]]]
  (with-open [ring (bpf/create {:name "events" :type :ringbuf :max-entries 65536})
              p (prog/load {:type :kprobe :name "send_result"
                            :insns (concat
                                    [[:ldxdw :r6 [:r1 result-register]]
                                     [:call :get-current-pid-tgid]
                                     [:rsh64 :r0 32]
                                     [:stxw [:r10 -84] :r0]]
                                    (for [at (range -80 0 8)] [:stdw [:r10 at] 0])
                                    [[:mov64 :r1 :r10]
                                     [:add64 :r1 -80]
                                     [:mov64 :r2 80]
                                     [:mov64 :r3 :r6]
                                     [:call :probe-read-user-str]
                                     [:lddw :r1 ring]
                                     [:mov64 :r2 :r10]
                                     [:add64 :r2 -84]
                                     [:mov64 :r3 84]
                                     [:mov64 :r4 0]
                                     [:call :ringbuf-output]
                                     [:mov64 :r0 0]
                                     [:exit]])})
              reader (events/reader ring (cond-> {:type event}
                                           seconds (assoc :seconds (parse-long seconds))))
              _ (link/attach p {:uprobe file :symbol function :return true})]
    (println "listening for events")
    (run! (fn [{:keys [pid line]}]
            (println (str file ":" function) "of process" pid "returned" line))
          reader)))
