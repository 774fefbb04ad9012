(ns ^:no-doc bpfmap.impl.host.local-storage
  "Reads all values of a local storage of tasks, cgroups or sockets.

  The kernel has no commands for that. An iterator over the objects gets the value of each. Helpers
  and iterators: source kernel/bpf/bpf_task_storage.c, bpf_cgrp_storage.c and
  net/core/bpf_sk_storage.c."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.host.iterator :as iterator]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.lacks :as lacks]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.map.bpf-map :as bpf-map]))

(set! *warn-on-reflection* true)

(defn- getting
  "Returns instructions that get the value of the object in :r7 into :r8.

  They jump to `:out` if it has none."
  [m helper]
  [[:lddw :r1 m]
   [:mov64 :r2 :r7]
   [:mov64 :r3 0]
   [:mov64 :r4 0]
   [:call helper]
   [:jeq :r0 0 :out]
   [:mov64 :r8 :r0]])

(defn- cgroup-root
  "Returns the path at which the cgroup2 file system is mounted."
  []
  (or (some #(when (= "cgroup2" (:type %)) (:path %)) (procfs/mounts))
      (throw (error/error :not-supported "No cgroup2 file system is mounted"
                          {:bpfmap/hint "mount -t cgroup2 none DIRECTORY"}))))

(def ^:private kinds
  "The iterators over the objects of map types, by map type.

  `:value` returns instructions that load the address of the value into :r8, `:key` those that
  load the number of the object into :r0."
  {:task-storage
   {:kind "task" :member "task"
    :value #(getting % :task-storage-get)
    :key (fn [] [[:ldxw :r0 [:r7 (iterator/offset "task_struct" "pid")]]])
    :target (fn [_])}

   :cgrp-storage
   {:kind "cgroup" :member "cgroup"
    :value #(getting % :cgrp-storage-get)
    :key (fn [] [[:ldxdw :r0 [:r7 (iterator/offset "cgroup" "kn")]]
                 [:ldxdw :r0 [:r0 (iterator/offset "kernfs_node" "id")]]])
    :target (fn [_] {:cgroup (cgroup-root)})}

   :sk-storage
   {:kind "bpf_sk_storage_map" :member "sk"
    :since "5.12" ; bpf_get_socket_cookie in programs of iterators
    :value (fn [_] [[:ldxdw :r8 [:r6 (iterator/offset "bpf_iter__bpf_sk_storage_map" "value")]]
                    [:jeq :r8 0 :out]])
    :key (fn [] [[:mov64 :r1 :r7] [:call :get-socket-cookie]])
    :target (fn [m] {:map m})}})

(defn- check-release [row]
  (when-let [why (lacks/explain "entries of socket storages" row
                                {:release (call/kernel-release)})]
    (throw (error/error :not-supported "The local storage cannot be read"
                        {:bpfmap/op :local-storage :bpfmap/hint why}))))

(defn reduce-entries
  "Reduces over the entries of an open local storage with `(f acc [key value])`.

  The key is a number: the id of the thread, the id of the cgroup, or the cookie of the socket."
  [m f init]
  (let [{:keys [type value types value-size]} (bpf-map/spec-of m)
        {:keys [kind member target] of-value :value of-key :key :as row} (kinds type)]
    (check-release row)
    (iterator/reduce-records
     {:kind kind
      :insns (concat (iterator/object-of kind member :r7)
                     (of-value m)
                     (of-key)
                     [[:stxdw [:r10 -8] :r0]]
                     (iterator/write-out kind (iterator/stack-address :r2 -8) 8)
                     (iterator/write-out kind [[:mov64 :r2 :r8]] value-size))
      :target (target m)
      :type [:struct {:packed true} [:key :u64] [:value value]]
      :types types}
     (fn [acc {:keys [key value]}] (f acc [key value]))
     init)))

(defn entries
  "Returns the entries of an open local storage, as pairs of a number and a value.

      (entries m) ;=> [[4711 {:started 12}]]"
  [m]
  (when-not (and (bpf-map/bpf-map? m) (kinds (:type (bpf-map/identity-of m))))
    (throw (error/error :invalid-value
                        (str "The map must be an open local storage of tasks, cgroups or sockets"
                             ", got " (error/printed m))
                        {:bpfmap/op :local-storage
                         :bpfmap/hint (str "the kernel has no iterator over inodes; other types of "
                                           "maps can be reduced")})))
  (reduce-entries m conj []))
