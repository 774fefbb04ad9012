;; Counts the packets that an interface receives and sends, and prints the numbers every second.
;;
;;     bin/clj -M:exec examples/attach/tcx.clj eth0          until Ctrl-C
;;     bin/clj -M:exec examples/attach/tcx.clj eth0 10       for 10 seconds

(require '[bpfmap.core :as bpf]
         '[bpfmap.link :as link]
         '[bpfmap.prog :as prog])

(defn counter
  "Loads a program that counts packets in the number i of the value, and lets them pass."
  [packets i]
  (prog/load {:type :sched-cls :name "count_packets"
              :insns [[:ld-map-value :r1 packets (* 8 i)]
                      [:mov64 :r2 1]
                      [:atomic-add64 [:r1 0] :r2]
                      [:mov64 :r0 -1] ; TCX_NEXT
                      [:exit]]}))

(let [[interface seconds] *command-line-args*]
  (with-open [packets (bpf/create {:name "packets" :type :array :key :u32 :value [:array :u64 2]
                                   :max-entries 1})
              received (counter packets 0)
              sent (counter packets 1)
              _ (link/attach received {:tcx :ingress :interface interface})
              _ (link/attach sent {:tcx :egress :interface interface})]
    (doseq [_ (range (if seconds (parse-long seconds) Long/MAX_VALUE))]
      (Thread/sleep 1000)
      (let [[ingress egress] (packets 0)]
        (println "packets:" ingress "ingress," egress "egress")))))
