;; Counts the pages that the kernel allocates, with a program in C, and prints the number every
;; second.
;;
;;     bin/clj -M:exec examples/attach/tracepoint_in_c.clj          until Ctrl-C
;;     bin/clj -M:exec examples/attach/tracepoint_in_c.clj 10       for 10 seconds

(require '[bpfmap.link :as link]
         '[bpfmap.object :as object])

(let [[seconds] *command-line-args*]
  (with-open [pages (object/load (object/read "examples/attach/pages.o"))
              ;; The name of the section has the target.
              _ (link/attach (get-in pages [:programs "allocating"]))]
    (doseq [_ (range (if seconds (parse-long seconds) Long/MAX_VALUE))]
      (Thread/sleep 1000)
      (println @(get-in pages [:variables "allocations"]) "pages"))))
