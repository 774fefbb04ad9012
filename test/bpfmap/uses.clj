(ns bpfmap.uses
  "How each map type is used, as data: a spec, two keys, two values, and what it takes to have
  them. And how the kernel itself is asked for what an operation does, past the rules of the
  library."
  (:require [bpfmap.core :as bpf]
            [bpfmap.feature :as feature]
            [bpfmap.impl.kernel.probe :as probe]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.impl.map.references :as references]
            [bpfmap.linux :as linux :refer [held said]]
            [bpfmap.objects :as objects]
            [bpfmap.programs :as programs]
            [bpfmap.since :as since]
            [bpfmap.spec :as spec])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.sys Bytes Codec)
           (java.io Closeable)
           (java.lang.foreign Arena)))

(set! *warn-on-reflection* true)

(def inner {:type :array :key :u32 :value :u64 :max-entries 1})

(defn- cpus [n] (vec (repeat (count (feature/possible-cpus)) n)))

(defn- two-cpus
  "The indices of two CPUs, or of the only one: a map has no more entries than there are CPUs."
  []
  (vec (take 2 (range (count (feature/possible-cpus))))))

(defn- the [& fds] (mapv #(hash-map :fd (:fd %)) fds))

(defn- closing [& makes]
  (fn [] (mapv #(%) makes)))

(defn- stream-sockets
  "A TCP listener and a pair of Unix sockets, or a UDP socket where maps do not take those yet."
  []
  [(objects/tcp-listener)
   (if (since/here? [:kernel :sockmap-of-unix-sockets]) (objects/unix-pair) (objects/udp-socket))])

(defn- inner-maps [] (mapv bpf/create [inner inner]))

(defn- targets [] (mapv programs/tail-target [1 2]))

(defn- cookie? [_ read] (and (= [:socket-cookie] (keys read)) (pos? (long (:socket-cookie read)))))

(defn- counted-cgroup
  "A cgroup whose storage in a map a program counts in; the program is attached, so the storage is
  there."
  [m]
  (let [cgroup (objects/cgroup)
        program (programs/storage-counter m)
        attachment (programs/attach-to-cgroup program cgroup)]
    (held {:id (:id cgroup)}
          #(run! (fn [^Closeable x] (.close x)) [attachment program cgroup]))))

(defn- recorded
  "Records one stack in a map, whose id is the key."
  [where]
  (fn [m]
    (let [[k & more] (programs/record-stacks m where)]
      (bpf/delete-all! m more)
      (held {:keys [k nil]} (constantly nil)))))

(defn- storage-of-cgroup
  "How the storage of a cgroup is used, with values like these. Nobody sends from the cgroup, so
  the count stays."
  [type key-size values]
  {:spec {:type type :key-size key-size :value :u64}
   :fill (fn [m] (let [cgroup (counted-cgroup m)
                       k (if (= 8 key-size)
                           (:id cgroup)
                           {:cgroup-id (:id cgroup)
                            :attach-type (linux/constant "BPF_CGROUP_INET_EGRESS")})]
                   (bpf/replace! m k (first values))
                   (assoc cgroup :keys [k nil])))
   :values values
   :none (if (= 8 key-size) 1 {:cgroup-id 1 :attach-type 0})})

(def ^:private plain {:keys [0 1] :values [10 20]})

(def ^:private per-cpu {:keys [0 1] :values [(cpus 10) (cpus 20)]})

(defn- numbers [type & {:as more}]
  (assoc plain :spec (merge {:type type :key :u32 :value :u64 :max-entries 2} more) :none 5))

(defn- local-storage [type objects]
  {:spec {:type type :value :u64 :flags #{:no-prealloc}} :objects objects :keys the
   :values [10 20]})

(def uses
  "A row for each map type, or for each of its forms.

  `:spec` is that of the map, `:keys` and `:values` are two of each, which differ: both are data,
  or functions of the `:objects` that are made first. `:none` is a key that is not there. What is
  put reads as equal unless `:reads` tells, `(reads put read)`. `:fill` puts the first value under
  the first key where user space cannot, and returns what to close, with the `:keys`."
  [(numbers :hash)
   (numbers :hash :flags #{:no-prealloc})
   (assoc (numbers :array) :none 2)
   {:spec {:type :prog-array :max-entries 2} :objects targets
    :keys [0 1] :values identity :none 2 :reads (fn [_ read] (pos? (long (:program-id read))))}
   {:spec {:type :perf-event-array :max-entries 2}
    :objects (closing #(objects/perf-event 0) #(objects/perf-event 0))
    :keys [0 1] :values #(apply the %)}
   (merge (numbers :percpu-hash) per-cpu)
   (merge (numbers :percpu-array) per-cpu {:none 2})
   {:spec {:type :stack-trace :value [:array :u64 16] :max-entries 64}
    :fill (recorded :kernel)
    :values [nil nil] :none 64
    :reads (fn [_ read] (and (vector? read) (every? #(not= 0 %) read) (seq read)))}
   {:spec {:type :stack-trace :flags #{:stack-build-id} :max-entries 64}
    :fill (recorded :user)
    :values [nil nil] :none 64
    :reads (fn [_ [frame]] (and (= :valid (:status frame)) (pos? (long (:offset frame)))))}
   {:spec {:type :cgroup-array :max-entries 2} :objects (closing objects/cgroup objects/cgroup)
    :keys [0 1] :values (fn [[a b]] [(:path a) {:fd (:fd b)}])}
   (numbers :lru-hash :max-entries 4096)
   (numbers :lru-hash :max-entries 4096 :flags #{:no-common-lru})
   (merge (numbers :lru-percpu-hash :max-entries 4096) per-cpu)
   {:spec {:type :lpm-trie :key [:prefix :ipv4] :value :u64 :max-entries 2 :flags #{:no-prealloc}}
    :keys ["10.0.0.0/8" "192.168.0.0/16"] :values [10 20] :none "11.0.0.0/8"}
   {:spec {:type :array-of-maps :max-entries 2 :inner-map inner} :objects inner-maps
    :keys [0 1] :values identity :none 2
    :reads (fn [put read] (= {:map-id (:id (bpf/info put))} read))}
   {:spec {:type :hash-of-maps :key :u64 :max-entries 2 :inner-map inner} :objects inner-maps
    :keys [7 8] :values identity :none 9
    :reads (fn [put read] (= {:map-id (:id (bpf/info put))} read))}
   {:spec {:type :devmap :max-entries 2} :keys [0 1] :values [1 1] :none 2}
   {:spec {:type :devmap :value-size 8 :max-entries 2} :keys [0 1]
    :values [{:ifindex 1} {:ifindex 1 :program nil}] :none 2
    :reads (fn [put read] (= {:ifindex (:ifindex put) :program nil} read))}
   {:spec {:type :sockmap :max-entries 2}
    :objects (closing objects/tcp-connection objects/udp-socket)
    :keys [0 1] :values #(apply the %) :none 2 :reads cookie?}
   {:spec {:type :sockmap :value-size 4 :max-entries 2} :objects stream-sockets
    :keys [0 1] :values #(apply the %)}
   {:spec {:type :cpumap :max-entries 2} :keys (two-cpus) :values [64 128] :none 2}
   {:spec {:type :cpumap :value-size 8 :max-entries 2} :keys (two-cpus)
    :values [{:qsize 64} {:qsize 128 :program nil}] :none 2
    :reads (fn [put read] (= {:qsize (:qsize put) :program nil} read))}
   {:spec {:type :xskmap :max-entries 2} :objects (closing objects/xdp-socket objects/xdp-socket)
    :keys [0 1] :values #(apply the %)}
   {:spec {:type :sockhash :key :u64 :max-entries 2}
    :objects (closing objects/tcp-connection objects/udp-socket)
    :keys [7 8] :values #(apply the %) :none 9 :reads cookie?}
   {:spec {:type :sockhash :key :u64 :value-size 4 :max-entries 2} :objects stream-sockets
    :keys [7 8] :values #(apply the %)}
   (storage-of-cgroup :cgroup-storage 8 [10 20])
   (storage-of-cgroup :cgroup-storage 16 [10 20])
   {:spec {:type :reuseport-sockarray :max-entries 2}
    :objects (closing #(objects/reuseport-socket :tcp) #(objects/reuseport-socket :udp))
    :keys [0 1] :values #(apply the %) :none 2 :reads cookie?}
   {:spec {:type :reuseport-sockarray :value-size 4 :max-entries 2}
    :objects (closing #(objects/reuseport-socket :tcp) #(objects/reuseport-socket :udp))
    :keys [0 1] :values #(apply the %)}
   (storage-of-cgroup :percpu-cgroup-storage 8 [(cpus 10) (cpus 20)])
   (storage-of-cgroup :percpu-cgroup-storage 16 [(cpus 10) (cpus 20)])
   {:spec {:type :queue :value :u64 :max-entries 2} :values [10 20]}
   {:spec {:type :stack :value :u64 :max-entries 2} :values [10 20]}
   (assoc (local-storage :sk-storage (closing objects/tcp-connection objects/udp-socket)) :keys
          #(apply the %))
   {:spec {:type :devmap-hash :max-entries 2} :keys [7 8] :values [1 1] :none 9}
   {:spec {:type :devmap-hash :value-size 8 :max-entries 2} :keys [7 8]
    :values [{:ifindex 1} {:ifindex 1}] :none 9
    :reads (fn [put read] (= {:ifindex (:ifindex put) :program nil} read))}
   {:spec {:type :ringbuf :max-entries 4096}}
   (assoc (local-storage :inode-storage (closing objects/file objects/file))
          :keys (fn [[a b]] [(:path a) {:fd (:fd b)}]))
   (assoc (local-storage :task-storage (closing objects/this-process objects/child-process))
          :keys (fn [[a b]] [{:fd (:fd a)} (:pid b)]))
   {:spec {:type :bloom-filter :value :u64 :max-entries 100} :values [10 20]}
   {:spec {:type :user-ringbuf :max-entries 4096}}
   (assoc (local-storage :cgrp-storage (closing objects/cgroup objects/cgroup))
          :keys (fn [[a b]] [(:path a) {:fd (:fd b)}]))
   {:spec {:type :arena :max-entries 1 :flags #{:mmapable}}}
   {:spec {:type :insn-array :max-entries 2} :keys [0 1] :none 2
    ;; The kernel sets the others
    :values (mapv #(hash-map :orig-off % :xlated-off 0 :jitted-off 0 :pad 0) [1 2])}
   (numbers :rhash :flags #{:no-prealloc})])

(def left-out
  "Types that are tested elsewhere, for what they are: the value of one is a struct of the
  kernel's."
  #{:struct-ops})

(defn here?
  "Whether this kernel has the type of a use, and can use it: 5.10 creates storages of inodes that
  it then cannot find."
  [{{:keys [type]} :spec}]
  (and (:supported (feature/map-type type))
       (or (not= :inode-storage type) (since/has? [:lsm "bpf"]))))

(defn row-of [{{:keys [type]} :spec}]
  (map-types/types type))

(defn used
  "Calls f with a new map, in which the first value is under the first key, if anything can be put
  there, and with what it is used with: the use with `:keys` and `:values` as data, and `:same`."
  [{:keys [spec objects fill values reads] :as use} f]
  (let [objects (when objects (objects))
        of-objects #(if (fn? %) (% objects) %)
        {:keys [ops]} (row-of use)]
    (try
      (with-open [m ^Closeable (bpf/create spec)
                  ^Closeable filled (if fill (fill m) (held {} (constantly nil)))]
        (let [[k :as ks] (of-objects (or (:keys filled) (:keys use)))
              [v :as vs] (of-objects values)]
          (when (and (not fill) (contains? ops :put!))
            (bpf/put! m k v))
          (f m (assoc use :keys ks :values vs :same (or reads =)))))
      (finally (run! (fn [^Closeable object] (.close object)) objects)))))

(defn has?
  "Whether this kernel has an operation that the row grants; if it has not, the skip names the row."
  [{{:keys [type]} :spec :as use} op]
  (apply since/has? (cond-> [[:operation type op]]
                      (and (:conditional-since (row-of use))
                           (#{:insert! :replace!} op)) (conj [:conditional type]))))

(defn grants?
  "Whether the row grants an operation: the kernel need not have it yet, see [[has?]]."
  [{{:keys [type]} :spec :as use} op]
  (and (contains? (:ops (row-of use)) op)
       (let [{:keys [value-size]} (spec/complete (:spec use) (lifecycle/machine))]
         (nil? (map-types/alternative type op value-size)))))

;; ---------------------------------------------------------------- past the rules

(defn- encoded
  "The bytes of a key or a value, or no bytes where the map has none; eight zeros for what a codec
  has not."
  [^Codec codec x]
  (if (or (nil? codec) (nil? x))
    (byte-array 4096)
    (with-open [arena (Arena/ofConfined)]
      (let [memory (.allocate arena (max 4096 (.size codec)) 8)]
        (.encode codec x memory 0)
        (Bytes/copyOut memory 0 (int (max 4096 (.size codec))))))))

(def ^:private raw
  "Each operation as the kernel is asked for it: one command or several, of which all would have
  to be answered. What works without keys passes none."
  {:lookup [{:op :lookup}]
   :put! [{:op :update :flags 0}]
   :insert! [{:op :update :flags 1}]
   :replace! [{:op :update :flags 2}]
   :delete! [{:op :delete}]
   :take! [{:op :lookup-and-delete}]
   :next-key [{:op :next-key}]
   :reduce [{:op :next-key} {:op :lookup}]
   :drain! [{:op :lookup-and-delete}]
   :push! [{:op :update :flags 0 :keyless true}]
   :pop! [{:op :lookup-and-delete :keyless true}]
   :peek [{:op :lookup :keyless true}]
   :might-contain? [{:op :lookup :keyless true}]})

(def refusals
  "How the kernel refuses an operation: EFAULT for the key that is not given, ENOSPC for values
  too small for a cookie."
  #{:EINVAL :ENOTSUPP :EOPNOTSUPP :EFAULT :ENOSPC})

(defn answer
  "What the kernel says to an operation: the first refusal of its commands, or what the last one
  says."
  [^BpfMap m op k v]
  (let [held (references/new-scope)
        resolvers (.-resolvers m)
        facts {:op op}]
    (try
      (let [k (encoded (.-key-codec m)
                       (if (and resolvers k) (references/resolve-key resolvers held k facts) k))
            v (encoded (.-value-codec m)
                       (if (and resolvers v) (references/resolve-value resolvers held v facts) v))
            answers (for [{:keys [op flags] keyless? :keyless} (raw op)]
                      (said (probe/operate op (bpf-map/descriptor m)
                                           {:key (when-not keyless? k) :value v :flags flags}
                                           facts)))]
        (or (first (filter refusals answers)) (last answers)))
      (finally (references/release-all! held)))))
