(ns bpfmap.link-rounds
  "Attaches and detaches each kind of link many times, and looks at what is left.

      bin/clj -M:test:link-rounds 1000        as root; ten minutes

  Prints as EDN, by kind, the milliseconds that it took, and the descriptors, perf events and links
  that were left; ends with 1 if there are any."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.host :as host]
            [bpfmap.link :as link]
            [bpfmap.links :as links :refer [eventually? loaded]]
            [bpfmap.objects :as objects]
            [bpfmap.probed :as probed]
            [bpfmap.prog :as prog]
            [bpfmap.since :as since]
            [clojure.java.io :as io]
            [clojure.pprint :as pprint]
            [clojure.string :as str])
  (:import (java.io Closeable)
           (java.nio.file Files)))

(set! *warn-on-reflection* true)

(defn- round-kinds
  "Kinds of links for rounds, each with a function that loads its program, and a target.

  The targets are in a network namespace of [[links/in-network-namespace]]. `traced` is a program
  with a probe at two places."
  [cgroup traced]
  (let [nothing [[:mov64 :r0 0] [:exit]]]
    {:raw-tracepoint [#(loaded :raw-tracepoint nothing) {:raw-tracepoint "sched_switch"}]
     :tp-btf [#(loaded :tracing nothing :expected-attach-type :trace-raw-tp
                       :attach-btf-id (links/btf-id :typedef "btf_trace_sched_switch"))
              {:tp-btf "sched_switch"}]
     :tracepoint [#(loaded :tracepoint nothing) {:tracepoint "sched/sched_switch"}]
     :uprobe [#(loaded :kprobe nothing) {:uprobe "/bin/bash" :symbol "main"}]
     :uprobe-multi [#(loaded :kprobe nothing :expected-attach-type :trace-uprobe-multi)
                    {:uprobe-multi "/bin/bash" :symbols ["main" "readline"]}]
     :usdt [#(loaded :kprobe nothing) {:usdt (:path traced) :provider "p" :name "n"}]
     :perf-event [#(loaded :perf-event nothing) {:perf-event {:frequency 1}}]
     :iter [#(links/iterator "task" nothing) {:iter "task"}]
     :xdp [#(loaded :xdp [[:mov64 :r0 2] [:exit]]) {:xdp "v1"}]
     :tcx [#(loaded :sched-cls [[:mov64 :r0 -1] [:exit]]) {:tcx :ingress :interface "v1"}]
     :cgroup [#(loaded :cgroup-device [[:mov64 :r0 1] [:exit]]) {:cgroup (:path cgroup)}]
     :sk-lookup [#(loaded :sk-lookup [[:mov64 :r0 1] [:exit]] :expected-attach-type :sk-lookup)
                 {:sk-lookup :self}]
     :flow-dissector [#(loaded :flow-dissector nothing) {:flow-dissector :self}]
     :netfilter [#(loaded :netfilter [[:mov64 :r0 1] [:exit]] :expected-attach-type :netfilter)
                 {:netfilter :ipv4 :hook :forward}]}))

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
  (loop [tries 12000]
    (let [l (try
              (link/attach program target)
              (catch clojure.lang.ExceptionInfo e
                (when-not (and (pos? tries) (#{:busy :exists} (:bpfmap/error (ex-data e))))
                  (throw e))))]
      (or l (do (Thread/sleep 5) (recur (dec tries)))))))

(defn rounds
  "Attaches and detaches n times each kind of link; returns by kind the milliseconds that it took,
  and the descriptors, perf events and links that were left."
  [n]
  (links/in-network-namespace
   (fn []
     (with-open [cgroup (objects/cgroup)
                 traced (probed/program [{:provider "p" :name "n" :arguments ""}
                                         {:provider "p" :name "n" :arguments "8@%rax"}])]
       (let [here (filterv #(since/here? [:target (key %)]) (round-kinds cgroup traced))
             programs (mapv (fn [[_ [program]]] (program)) here)]
         (try
           (doseq [[[_ [_ target]] program] (map vector here programs)]
             (.close ^Closeable (link/attach program target)))
           (let [before [(fixture/settled-descriptors) (perf-events)]]
             (into {}
                   (for [[[kind [_ target]] program] (map vector here programs)]
                     (let [begun (System/nanoTime)]
                       (dotimes [_ n]
                         (.close (attach-again program target)))
                       (let [ended (System/nanoTime)
                             id (:id (prog/info program))
                             gone? #(not-any? #{id} (map :program-id (host/links)))]
                         [kind {:millis (quot (- ended begun) 1000000)
                                :left (map - [(fixture/open-descriptors) (perf-events)] before)
                                :no-link (eventually? gone?)}])))))
           (finally (run! #(.close ^Closeable %) programs))))))))

(defn -main
  "Makes the given number of rounds of each kind, and prints what was left."
  [& [n]]
  ;; A network namespace of the tests is for two minutes at most.
  (let [batch 20
        founds (vec (repeatedly (quot (+ (long (or (some-> n parse-long) 1000)) (dec batch)) batch)
                                #(rounds batch)))
        found (apply merge-with
                     (fn [a b] {:millis (+ (:millis a) (:millis b))
                                :left (mapv + (:left a) (:left b))
                                :no-link (and (:no-link a) (:no-link b))})
                     founds)]
    (pprint/pprint found)
    (shutdown-agents)
    (System/exit (if (every? #(= {:left [0 0] :no-link true} (dissoc % :millis)) (vals found))
                   0 1))))
