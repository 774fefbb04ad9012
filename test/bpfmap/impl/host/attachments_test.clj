(ns bpfmap.impl.host.attachments-test
  "Programs that are attached without a link, against what bpftool lists."
  (:require [bpfmap.cli.calling :refer [lines-of]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.perf :as perf]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.kernel.tracefs :as tracefs]
            [bpfmap.impl.link.functions :as functions]
            [bpfmap.link :as link]
            [bpfmap.links :as links]
            [bpfmap.objects :as objects]
            [bpfmap.prog :as prog]
            [bpfmap.programs :as programs]
            [bpfmap.since :as since]
            [clojure.data.json :as json]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (bpfmap.impl.prog.program Program)
           (java.io Closeable)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(def ^:private this-process
  {:pid (.pid (ProcessHandle/current)) :command (procfs/command (.pid (ProcessHandle/current)))})

(defn- program
  "A program of a type that returns n."
  ^Closeable [type n]
  (prog/load {:type type :name "t_attached" :insns [[:mov64 :r0 n] [:exit]]}))

(defn- id-of [x] (:id (prog/info x)))

(defn- found
  "The attachments of a program without their program and type."
  [p]
  (let [id (id-of p)]
    (into [] (comp (filter #(= id (:program-id %))) (map #(dissoc % :program-id)))
          (host/attachments))))

(defn- run-tool
  "Runs a command that must succeed; returns its output."
  [& words]
  (let [{:keys [exit out err]} (fixture/run (vec words))]
    (when-not (zero? (long exit))
      (throw (ex-info (str (str/join " " words) " failed: " err) {})))
    out))

(defn- bpftool-json [& words]
  (let [text (apply run-tool "bpftool" "-j" words)]
    (if (str/blank? text) [] (json/read-str text :key-fn keyword))))

(defmacro ^:private with-pin
  "Pins a program while the body runs."
  [[path p] & body]
  `(let [~path (fixture/new-pin)]
     (prog/pin! ~p ~path)
     (try
       ~@body
       (finally (io/delete-file ~path)))))

;; --- perf events

(defn- on-event
  "Calls f while a program is on a perf event without a link."
  [event p f]
  (let [event (perf/open (merge {:samples 0 :pid -1 :cpu 0} event))]
    (try
      (is (zero? (long (perf/set-program event (.-fd ^Program p)))))
      (f)
      (finally (call/close event)))))

(defn- tracepoint [name]
  {:type (perf/types :tracepoint)
   :config (tracefs/with-root #(tracefs/tracepoint-id % "sched" name) {:op :attach})})

(def ^:private bash-main
  "The offset of a function of bash.

  Anywhere else than at an instruction, a probe would change the program for all who run it."
  (delay (first (functions/offsets "/bin/bash" ["main"] 0 {:op :attach}))))

(kernel-test programs-on-perf-events
  (testing "programs on perf events without a link, as bpftool perf lists them"
    (with-open [p (program :tracepoint 0)
                q (program :kprobe 0)]
      (on-event (tracepoint "sched_switch") p
        (fn []
          (on-event {:type (perf/event-type "uprobe") :config 0 :path "/bin/bash"
                     :config2 @bash-main :cpu 0} q
            (fn []
              (is (= [{:type :perf-event :event :tracepoint :tracepoint "sched_switch"
                       :held [this-process]}]
                     (found p)))
              (let [[{:keys [type event path offset held]} & more] (found q)]
                (is (= [:perf-event :uprobe @bash-main [this-process] nil]
                       [type event offset held more]))
                (is (str/ends-with? path "bash")))
              (when (fixture/executable "bpftool")
                (let [ids (set (map id-of [p q]))]
                  (is (= #{[(id-of p) "tracepoint" "sched_switch" nil]
                           [(id-of q) "uprobe" (:path (first (found q)))
                            @bash-main]}
                         (into #{} (comp (filter #(ids (:prog_id %)))
                                         (map (fn [{:keys [prog_id fd_type] :as row}]
                                                [prog_id fd_type
                                                 (or (:tracepoint row) (:filename row))
                                                 (:offset row)])))
                               (bpftool-json "perf" "show"))))))
              (testing "in the lists"
                (let [row {:type :perf-event :attached-to "sched_switch"}]
                  (is (= [row] (:links (exec/prog-show {:ref p}))))
                  (is (= [(assoc row :program {:id (id-of p) :name "t_attached" :type :tracepoint}
                                 :held [this-process] :pinned []
                                 :event :tracepoint :tracepoint "sched_switch")]
                         (exec/link-list {:where (str "program.id=" (id-of p))}))))
                (is (re-find #"^ID +TYPE[^\n]*\n *- +perf-event +sched_switch +t_attached\["
                             (str/join "\n" (lines-of "link" "list" "--where"
                                                      (str "program.id=" (id-of p)))))))))))
      (testing "until the event is closed"
        (is (= [] (found p) (found q))))
      (since/needing [[:kernel :links-of-perf-events]]
        (testing "a link is no attachment without one"
          (with-open [_ ^Closeable (link/attach p {:tracepoint "sched/sched_switch"})]
            (is (= [] (found p)))
            (on-event (tracepoint "sched_wakeup") p
              #(is (= ["sched_wakeup"] (map :tracepoint (found p)))))))))))

;; --- cgroups

(kernel-test programs-of-cgroups
  (testing "programs of cgroups without a link, as bpftool cgroup lists them"
    (with-open [cgroup (objects/cgroup)
                p (program :cgroup-skb 1)]
      (with-open [_ (programs/attach-to-cgroup p cgroup)]
        (let [[{:keys [path] :as row} & more] (found p)]
          (is (nil? more))
          (is (= {:type :cgroup :cgroup-id (:id cgroup) :attach-type :cgroup-inet-egress}
                 (dissoc row :path)))
          (is (str/ends-with? (:path cgroup) path))
          (is (= [{:type :cgroup :attached-to (str "cgroup-inet-egress cgroup " path)}]
                 (:links (exec/prog-show {:ref p}))))
          (when (and (fixture/executable "bpftool")
                     (since/has? [:kernel :attach-flags-of-programs]))
            (is (= [[(id-of p) "cgroup_inet_egress"]]
                   (map (juxt :id :attach_type) (bpftool-json "cgroup" "show" (:path cgroup))))))))
      (is (= [] (found p)))
      (testing "a link is no attachment without one"
        (with-open [_ ^Closeable (link/attach p {:cgroup (:path cgroup)
                                                 :attach-type :cgroup-inet-egress})]
          (is (= [] (found p))))))))

;; --- networks

(kernel-test programs-of-devices
  (testing "XDP programs and filters of tc without a link, as bpftool net lists them"
    (if-not (and (fixture/executable "ip") (fixture/executable "tc"))
      (fixture/skip! "ip and tc are not installed")
      (with-open [p (program :xdp 2)
                  q (program :sched-cls 0)]
        (with-pin [xdp-pin p]
          (with-pin [tc-pin q]
            (links/in-network-namespace
             (fn []
               (run-tool "ip" "link" "set" "dev" "v1" "xdpgeneric" "pinned" xdp-pin)
               (run-tool "tc" "qdisc" "add" "dev" "v0" "clsact")
               (run-tool "tc" "filter" "add" "dev" "v0" "ingress" "prio" "7" "bpf" "da" "pinned"
                         tc-pin)
               (run-tool "tc" "filter" "add" "dev" "v0" "egress" "bpf" "da" "pinned" tc-pin)
               (let [[{:keys [ifindex] :as xdp} & more] (found p)]
                 (is (= {:type :xdp :device "v1" :mode :generic} (dissoc xdp :ifindex)))
                 (is (nil? more))
                 (is (pos-int? ifindex))
                 (is (= "v1 generic" (:attached-to (first (:links (exec/prog-show {:ref p}))))))
                 (let [[egress ingress & more] (sort-by (comp str :direction) (found q))]
                   (is (nil? more))
                   (is (= [[:tc :ingress 7] [:tc :egress true]]
                          [((juxt :type :direction :priority) ingress)
                           ((juxt :type :direction (comp pos? :priority)) egress)]))
                   (is (= (:ifindex ingress) (:ifindex egress)))
                   (is (= #{"v0 ingress priority 7" (str "v0 egress priority " (:priority egress))}
                          (into #{} (map :attached-to) (:links (exec/prog-show {:ref q}))))))
                 (when (fixture/executable "bpftool")
                   (let [[{:keys [xdp tc]}] (bpftool-json "net" "show")]
                     (is (= [[(id-of p) ifindex]]
                            (map (juxt #(or (:id %) (:id (first (:multi_attachments %)))) :ifindex)
                                 xdp)))
                     (is (= 2 (count (filter #(= (id-of q) (:id %)) tc)))))))
               (since/needing [[:target :tcx]]
                 (testing "a link is no attachment without one"
                   (with-open [r (program :xdp 2)
                               s (program :sched-cls 0)
                               _ ^Closeable (link/attach r {:xdp "v0"})
                               _ ^Closeable (link/attach s {:tcx :egress :interface "v1"})]
                     (is (= [] (found r) (found s))))))))
            (is (= [] (found p) (found q)) "in another network namespace")))))))

(defn- listed
  "The rows of `link list` for a program, as what they are attached to."
  [p]
  (for [row (exec/link-list {}) :when (= (id-of p) (:id (:program row)))]
    ((juxt :id :type :attached-to) row)))

(kernel-test programs-of-hooks
  (testing "programs of tcx and netkit, and flow dissectors, without a link"
    (links/in-network-namespace
     (fn []
       (let [index #(parse-long (str/trim (run-tool "bash" "-c" (str "ip -o link show dev " %
                                                                     " | cut -d: -f1"))))
             netkit? (and (since/here? [:target :netkit]) (links/add-netkit))]
         (doseq [[device type attach-type direction]
                 (cond-> (when (since/has? [:target :tcx])
                           [["v1" :tcx :tcx-ingress "ingress"] ["v1" :tcx :tcx-egress "egress"]])
                   netkit? (conj ["kit0" :netkit :netkit-primary "primary"]))]
           (testing attach-type
             (with-open [p (program :sched-cls -1)
                         q (program :sched-cls -1)
                         _ (programs/attach-without-link p (index device)
                                                         (prog/attach-types attach-type))
                         _ ^Closeable (link/attach q {type (keyword direction)
                                                      :interface device})]
               (is (= [{:type type :ifindex (index device) :device device
                        :attach-type attach-type}]
                      (found p)))
               (is (= [] (found q)) "the other one has a link")
               (is (= [[nil type (str device " " (name attach-type))]] (listed p)))
               (is (= [[(:id (first (filter #(= (id-of q) (:program-id %)) (host/links))))
                        type (str device " " (name attach-type))]]
                      (listed q))
                   "the device is one of this network namespace")
               (when (fixture/executable "bpftool")
                 ;; An old bpftool lists no hooks.
                 (let [[{:keys [tc]}] (bpftool-json "net" "show")
                       shown (filter #(#{(id-of p) (id-of q)} (:prog_id %)) tc)]
                   (when (seq shown)
                     (is (= #{(id-of p) (id-of q)} (set (map :prog_id shown))))))))
             (is (= 0 (count (filter #(= device (:device %)) (host/attachments)))))))
         (with-open [p (program :flow-dissector 0)
                     _ (programs/attach-without-link p 0 (prog/attach-types :flow-dissector))]
           (is (= [{:type :netns :attach-type :flow-dissector}]
                  (map #(dissoc % :netns-ino) (found p))))
           (is (= [[nil :netns]] (map butlast (listed p))))
           (when (fixture/executable "bpftool")
             ;; As JSON, it is malformed in bpftool 7.1.
             (is (re-find (re-pattern (str "(?m)^flow_dissector:\\s+id " (id-of p) "\\b"))
                          (run-tool "bpftool" "net" "show"))))))))))

(kernel-test ^{:needs [[:kernel :programs-of-sockmaps]]} programs-of-socket-maps
  (testing "programs of maps of sockets without a link"
    (if-not (fixture/executable "bpftool")
      (fixture/skip! "bpftool is not installed")
      (with-open [m (bpf/create {:name "t_socks" :type :sockmap :max-entries 4})
                  p (program :sk-msg 1)]
        (with-pin [pin p]
          (run-tool "bpftool" "prog" "attach" "pinned" pin "sk_msg_verdict" "id"
                    (str (:id (bpf/info m)))))
        (is (= [{:type :sockmap :map-id (:id (bpf/info m)) :attach-type :sk-msg-verdict}]
               (found p)))))))
