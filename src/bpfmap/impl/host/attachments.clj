(ns ^:no-doc bpfmap.impl.host.attachments
  "Lists programs that are attached without a link.

  The kernel reports them in several ways. Each way is tried only if the host has programs of a type that it can find. The kernel reports
  attachments with a link in the same ways; those are recognised by the list of links."
  (:require [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.link :as kernel.link]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.kernel.netlink :as netlink]
            [bpfmap.impl.kernel.perf :as perf]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.link.attach-types :as attach-types]
            [bpfmap.impl.link.targets :as targets])
  (:import (clojure.lang ExceptionInfo)
           (java.io IOException)))

(set! *warn-on-reflection* true)

(def ^:private ctx {:op :list})

(defn- or-none
  "Returns the result of f; an empty vector if it must not or cannot be read."
  [f]
  (try
    (f)
    (catch ExceptionInfo _ [])
    (catch IOException _ [])))

(defn- queried
  "Returns the programs of a target and an attach type.

  Empty if the kernel refuses to list them."
  [target attach-type]
  (or-none #(:programs (let [found (kernel.link/attached target (attach-types/numbers attach-type)
                                                         ctx)]
                         (when (map? found) found)))))

;; --- perf events

(defn- of-events
  "Returns the programs on perf events that processes have open.

  The processes are under `:held`."
  []
  (->> (or-none procfs/processes)
       (mapcat (fn [pid]
                 (or-none (fn []
                            (when-let [found (seq (perf/attached-to-events pid ctx))]
                              (let [process {:pid pid :command (procfs/command pid)}]
                                (map #(assoc % :type :perf-event :process process) found)))))))
       (group-by #(dissoc % :process))
       (map (fn [[attachment all]] (assoc attachment :held (into [] (comp (map :process) (distinct))
                                                                 all))))))

;; --- cgroups

(defn- of-cgroups
  "Returns the programs of all cgroups for some attach types."
  [attach-types]
  (let [{:keys [root paths]} (or-none procfs/cgroups)]
    (for [[id path] (sort-by val paths)
          found (or-none (fn []
                           (let [fd (call/open-file (str root path) true ctx)]
                             (try
                               (into []
                                     (mapcat (fn [attach-type]
                                               (map #(assoc % :attach-type attach-type)
                                                    (queried fd attach-type))))
                                     attach-types)
                               (finally (call/close fd))))))]
      {:type :cgroup :cgroup-id id :path path
       :attach-type (:attach-type found) :program-id (:program-id found)})))

;; --- networks

(defn- of-devices
  "Returns the XDP programs of devices."
  [devices]
  (for [{:keys [ifindex name xdp]} devices, program xdp]
    (assoc program :type :xdp :ifindex ifindex :device name)))

(defn- of-hooks
  "Returns the programs of the hooks of devices that have no link."
  [devices]
  (for [{:keys [ifindex name]} devices
        [type attach-type] [[:tcx :tcx-ingress] [:tcx :tcx-egress]
                            [:netkit :netkit-primary] [:netkit :netkit-peer]]
        {:keys [program-id link-id]} (queried ifindex attach-type)
        :when (nil? link-id)]
    {:type type :ifindex ifindex :device name :attach-type attach-type :program-id program-id}))

(defn- of-filters
  "Returns the programs that are filters of devices."
  [devices]
  (let [names (into {} (map (juxt :ifindex :name)) devices)]
    (for [{:keys [ifindex] :as found} (or-none #(doall (netlink/filters ctx)))]
      (assoc found :type :tc :device (names ifindex)))))

(defn- devices []
  (or-none #(doall (netlink/devices ctx))))

(defn- of-namespace
  "Returns the flow dissector of the network namespace of the thread."
  []
  (or-none (fn []
             (let [file "/proc/thread-self/ns/net"
                   fd (call/open-file file true ctx)]
               (try
                 (let [ino (procfs/namespace-number file)]
                   (mapv (fn [{:keys [program-id]}]
                           {:type :netns :netns-ino ino :attach-type :flow-dissector
                            :program-id program-id})
                         (queried fd :flow-dissector)))
                 (finally (call/close fd)))))))

(defn- of-sockmaps
  "Returns the programs of all maps of sockets."
  []
  (for [{:keys [id type]} (or-none #(holders/maps {:brief true}))
        :when (#{:sockmap :sockhash} type)
        found (or-none (fn []
                         (let [fd (kernel.map/open-id id :read-write ctx)]
                           (try
                             (into []
                                   (mapcat (fn [attach-type]
                                             (map #(assoc % :attach-type attach-type)
                                                  (queried fd attach-type))))
                                   [:sk-skb-stream-parser :sk-skb-stream-verdict :sk-skb-verdict
                                    :sk-msg-verdict])
                             (finally (call/close fd))))))]
    {:type :sockmap :map-id id :attach-type (:attach-type found) :program-id (:program-id found)}))

;; --- without those of links

(def ^:private identity-keys
  "The keys that an attachment and the info of its link have in common."
  [:type :program-id :event :tracepoint :function :path :offset :return :cgroup-id :attach-type
   :ifindex :netns-ino :map-id])

(defn- same [{:keys [type] :as info}]
  (into {} (remove (comp nil? val))
        (select-keys info (if (= :cgroup type) (remove #{:path} identity-keys) identity-keys))))

(defn- without-links
  "Returns the attachments that are not those of a link.

  As many as there are links to the same target are left out."
  [attachments links]
  (let [left (volatile! (frequencies (map same links)))]
    (into []
          (remove (fn [attachment]
                    (let [k (same attachment)
                          n (long (get @left k 0))]
                      (when (pos? n)
                        (vswap! left assoc k (dec n))
                        true))))
          attachments)))

(def ^:private ways
  "Functions that find attachments of programs of some types.

  They are called with the types that the host has."
  [{:of #{:kprobe :tracepoint} :find (fn [_] (of-events))}
   {:of (set (keys targets/cgroup-programs))
    :find (fn [types] (of-cgroups (mapcat targets/cgroup-programs types)))}
   {:of #{:xdp} :find (fn [_] (of-devices (devices)))}
   {:of #{:sched-cls}
    :find (fn [_] (let [devices (devices)] (concat (of-hooks devices) (of-filters devices))))}
   {:of #{:flow-dissector} :find (fn [_] (of-namespace))}
   {:of #{:sk-skb :sk-msg} :find (fn [_] (of-sockmaps))}])

(defn attachments
  "Returns the programs that are attached without a link.

  See `bpfmap.host/attachments`. `programs` and `links` are the infos of those of the host."
  [programs links]
  (let [types (into #{} (map :type) programs)
        found (mapcat (fn [{:keys [of find]}]
                        (when-let [here (seq (filter of types))]
                          (find here)))
                      ways)]
    (without-links found links)))
