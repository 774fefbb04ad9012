;; Registers a scheduler for all processes, as struct_ops. Needs Linux 6.12 with
;; CONFIG_SCHED_CLASS_EXT. The kernel takes it away at the end, also of a process that is killed.
;;
;;     bin/clj -M:exec examples/attach/sched_ext.clj          until Ctrl-C
;;     bin/clj -M:exec examples/attach/sched_ext.clj 10       for 10 seconds

(require '[bpfmap.link :as link]
         '[bpfmap.object :as object]
         '[clojure.string :as str])

(let [[seconds] *command-line-args*]
  (with-open [scheduler (object/load (object/read "examples/attach/scheduler.o"))
              _ (link/attach (get-in scheduler [:maps "minimal"]))]
    (println "the scheduler is" (str/trim (slurp "/sys/kernel/sched_ext/root/ops")))
    (Thread/sleep (if seconds (* 1000 (parse-long seconds)) Long/MAX_VALUE))))
