(ns bpfmap.link-rounds
  "Attaches and detaches each kind of link many times, and looks at what is left.

      bin/clj -M:test:link-rounds 1000                  as root; ten minutes
      bin/clj -M:test:link-rounds 1000 kprobe fentry    only these kinds

  Prints as EDN, by kind, the milliseconds that it took, and the descriptors, perf events and links
  that were left; ends with 1 if there are any."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.fixture :as fixture]
            [bpfmap.host :as host]
            [bpfmap.link :as link]
            [bpfmap.links :as links :refer [eventually? loaded]]
            [bpfmap.object :as object]
            [bpfmap.objects :as objects]
            [bpfmap.probed :as probed]
            [bpfmap.prog :as prog]
            [bpfmap.programs :as programs]
            [bpfmap.since :as since]
            [clojure.java.io :as io]
            [clojure.pprint :as pprint]
            [clojure.string :as str])
  (:import (java.io Closeable)
           (java.lang AutoCloseable)
           (java.nio.file Files)))

(set! *warn-on-reflection* true)

(defn- of-function
  "Loads a program for a function of the kernel, which does nothing."
  [type attach-type function]
  (loaded type [[:mov64 :r0 0] [:exit]] :expected-attach-type attach-type
          :attach-btf-id (links/btf-id :func function)))

(defn- congestion-control
  "Returns a map with a congestion control that a link can register, and what it consists of."
  []
  (let [struct-type (programs/struct-ops-type "tcp_congestion_ops")
        fd (programs/create-struct-ops struct-type #{:link})
        control (programs/congestion-control struct-type "bpf_t_rounds")
        m (bpf/open {:fd (.acquire fd)})]
    (.release fd)
    (programs/register fd control)
    [m control fd]))

(defn- replacement
  "Returns a program that replaces a function of another one, and what it consists of."
  []
  (let [o (object/read "test/objects/packets-el.o")
        replaced (object/load o)
        other (get-in replaced [:programs "count"])]
    (try
      (let [x (object/load (update-in o [:programs "count"]
                                      #(-> % (dissoc :attach-type)
                                           (assoc :type :ext :section "freplace/count"
                                                  :target "count")))
                           {:attach-to {"count" other}})]
        [(get-in x [:programs "count"]) x replaced])
      (catch Throwable e
        (.close ^Closeable replaced)
        (throw e)))))

(defn- round-kinds
  "Kinds of links for rounds, each with a function that loads its program, and a target.

  The targets are in a network namespace of [[links/in-network-namespace]]. `traced` is a program
  with a probe at two places, `sockets` a sockmap; `netkit?` is true if there is a device kit0. A
  function may return a vector of what is to be closed instead, and the target may be a function
  of it that returns program and target."
  [cgroup traced sockets netkit?]
  (let [nothing [[:mov64 :r0 0] [:exit]]]
    {:raw-tracepoint [#(loaded :raw-tracepoint nothing) {:raw-tracepoint "sched_switch"}]
     :tp-btf [#(loaded :tracing nothing :expected-attach-type :trace-raw-tp
                       :attach-btf-id (links/btf-id :typedef "btf_trace_sched_switch"))
              {:tp-btf "sched_switch"}]
     :tracepoint [#(loaded :tracepoint nothing) {:tracepoint "sched/sched_switch"}]
     :kprobe [#(loaded :kprobe nothing) {:kprobe "vfs_fsync"}]
     :ksyscall [#(loaded :kprobe nothing) {:ksyscall "sync"}]
     :kprobe-multi [#(loaded :kprobe nothing :expected-attach-type :trace-kprobe-multi)
                    {:kprobe-multi ["vfs_fsync" "vfs_statx"]}]
     :uprobe [#(loaded :kprobe nothing) {:uprobe "/bin/bash" :symbol "main"}]
     :uprobe-multi [#(loaded :kprobe nothing :expected-attach-type :trace-uprobe-multi)
                    {:uprobe-multi "/bin/bash" :symbols ["main" "readline"]}]
     :usdt [#(loaded :kprobe nothing) {:usdt (:path traced) :provider "p" :name "n"}]
     :perf-event [#(loaded :perf-event nothing) {:perf-event {:frequency 1}}]
     :fentry [#(of-function :tracing :trace-fentry "vfs_fsync") {:fentry "vfs_fsync"}]
     :fexit [#(of-function :tracing :trace-fexit "vfs_fsync") {:fexit "vfs_fsync"}]
     :fmod-ret [#(of-function :tracing :modify-return "security_file_open")
                {:fmod-ret "security_file_open"}]
     :lsm [#(of-function :lsm :lsm-mac "bpf_lsm_file_open") {:lsm "file_open"}]
     :freplace [replacement (fn [[p]] [p {:freplace "count"}])]
     :iter [#(links/iterator "task" nothing) {:iter "task"}]
     :xdp [#(loaded :xdp [[:mov64 :r0 2] [:exit]]) {:xdp "v1"}]
     :tcx [#(loaded :sched-cls [[:mov64 :r0 -1] [:exit]]) {:tcx :ingress :interface "v1"}]
     :netkit [#(if netkit?
                 (loaded :sched-cls [[:mov64 :r0 -1] [:exit]])
                 (throw (error/error :not-supported "This kernel has no netkit devices" {})))
              {:netkit :primary :interface "kit0"}]
     :cgroup [#(loaded :cgroup-device [[:mov64 :r0 1] [:exit]]) {:cgroup (:path cgroup)}]
     :sk-lookup [#(loaded :sk-lookup [[:mov64 :r0 1] [:exit]] :expected-attach-type :sk-lookup)
                 {:sk-lookup :self}]
     :flow-dissector [#(loaded :flow-dissector nothing) {:flow-dissector :self}]
     :netfilter [#(loaded :netfilter [[:mov64 :r0 1] [:exit]] :expected-attach-type :netfilter)
                 {:netfilter :ipv4 :hook :forward}]
     :sockmap [#(loaded :sk-skb [[:mov64 :r0 1] [:exit]]
                        :expected-attach-type :sk-skb-stream-verdict)
               {:sockmap sockets}]
     :struct-ops [congestion-control (fn [[m]] [m {:struct-ops m}])]}))

(defn- opened
  "Loads the program of a kind and attaches it once; nil if this kernel cannot.

  Returns `{:kind :program :target :close}`."
  [[kind [load target]]]
  (try
    (let [x (load)
          close (if (vector? x) x [x])
          [program target] (if (fn? target) (target x) [x target])]
      (try
        (.close ^Closeable (link/attach program target))
        {:kind kind :program program :target target :close close}
        (catch Throwable e
          (run! #(.close ^AutoCloseable %) close)
          (throw e))))
    (catch clojure.lang.ExceptionInfo e
      (when-not (= :not-supported (:bpfmap/error (ex-data e)))
        (throw e)))))

(defn- perf-events
  "The number of perf events that this process has open."
  []
  (count (filter #(try
                    (str/includes? (str (Files/readSymbolicLink (.toPath ^java.io.File %)))
                                   "perf_event")
                    (catch java.io.IOException _ false))
                 (.listFiles (io/file "/proc/self/fd")))))

(defn- attach-again
  "Attaches a program to a target that it was attached to until just now.

  Whoever lists the links of the host may still have the link open that was closed here."
  ^Closeable [program target]
  (let [refusal (atom nil)]
    (or (fixture/eventually
         #(try
            (link/attach program target)
            (catch clojure.lang.ExceptionInfo e
              (when-not (#{:busy :exists} (:bpfmap/error (ex-data e)))
                (throw e))
              (reset! refusal e)
              nil)))
        (throw @refusal))))

(defn rounds
  "Attaches and detaches n times each kind of link, or some kinds; returns by kind the milliseconds
  that it took, and the descriptors, perf events and links that were left."
  [n & [only]]
  (links/in-network-namespace
   (fn []
     (with-open [cgroup (objects/cgroup)
                 traced (probed/program [{:provider "p" :name "n" :arguments ""}
                                         {:provider "p" :name "n" :arguments "8@%rax"}])
                 sockets (bpf/create {:type :sockmap :key :u32 :value :u64 :max-entries 1})]
       (let [kinds (volatile! [])]
         (try
           (doseq [[kind :as row] (round-kinds cgroup traced sockets (links/add-netkit))
                   :when (and (or (nil? only) (only kind)) (since/here? [:target kind]))]
             (some->> (opened row) (vswap! kinds conj)))
           (let [before [(fixture/settled-descriptors) (perf-events)]]
             (into {}
                   (for [{:keys [kind program target]} @kinds]
                     (let [begun (System/nanoTime)]
                       (dotimes [_ n]
                         (.close (attach-again program target)))
                       (let [ended (System/nanoTime)
                             k (if (= :struct-ops kind) :map-id :program-id)
                             id (:id (if (= :map-id k) (bpf/info program) (prog/info program)))
                             gone? #(not-any? #{id} (map k (host/links)))]
                         [kind {:millis (quot (- ended begun) 1000000)
                                :left (map - [(fixture/open-descriptors) (perf-events)] before)
                                :no-link (eventually? gone?)}])))))
           (finally
             (run! #(.close ^AutoCloseable %) (mapcat :close @kinds)))))))))

(defn -main
  "Makes the given number of rounds of each kind, or of some, and prints what was left."
  [& [n & kinds]]
  ;; A network namespace of the tests is for two minutes at most.
  (let [batch 20
        founds (vec (repeatedly (quot (+ (long (or (some-> n parse-long) 1000)) (dec batch)) batch)
                                #(rounds batch (some->> (seq kinds) (map keyword) set))))
        found (apply merge-with
                     (fn [a b] {:millis (+ (:millis a) (:millis b))
                                :left (mapv + (:left a) (:left b))
                                :no-link (and (:no-link a) (:no-link b))})
                     founds)]
    (pprint/pprint found)
    (shutdown-agents)
    (System/exit (if (every? #(= {:left [0 0] :no-link true} (dissoc % :millis)) (vals found))
                   0 1))))
