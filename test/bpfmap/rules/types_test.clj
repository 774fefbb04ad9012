(ns bpfmap.rules.types-test
  "Every row of the table of map types against the running kernel: what it grants is used, what it denies is refused by
  the kernel too, and its numbers are those that the kernel draws the line at."
  (:require [bpfmap.btf :as btf]
            [bpfmap.core :as bpf]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.comparing :as comparing]
            [bpfmap.impl.reference :as reference]
            [bpfmap.impl.store :as store]
            [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.btf :as sys.btf]
            [bpfmap.impl.sys.maps :as maps]
            [bpfmap.impl.sys.probes :as probes]
            [bpfmap.linux :as linux :refer [held pack said]]
            [bpfmap.objects :as objects]
            [bpfmap.programs :as programs]
            [bpfmap.rules :as rules]
            [bpfmap.spec :as spec]
            [clojure.java.io :as io]
            [clojure.set :as set]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (bpfmap.impl.store BpfMap)
           (bpfmap.sys Bytes Codec Fd)
           (clojure.lang ExceptionInfo)
           (java.io Closeable)
           (java.lang.foreign Arena)))

(set! *warn-on-reflection* true)

;; ---------------------------------------------------------------- how each type is used

(def ^:private inner {:type :array :key :u32 :value :u64 :max-entries 1})

(defn- cpus [n] (vec (repeat (count (feature/possible-cpus)) n)))

(defn- the [& fds] (mapv #(hash-map :fd (:fd %)) fds))

(defn- closing [& makes]
  (fn [] (mapv #(%) makes)))

(defn- inner-maps [] (mapv bpf/create [inner inner]))

(defn- targets [] (mapv programs/tail-target [1 2]))

(defn- cookie? [_ read] (and (= [:socket-cookie] (keys read)) (pos? (long (:socket-cookie read)))))

(defn- counted-cgroup
  "A cgroup whose storage in a map a program counts in; the program is attached, so the storage is there."
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
  "How the storage of a cgroup is used, with values like these. Nobody sends from the cgroup, so the count stays."
  [type key-size values]
  {:spec {:type type :key-size key-size :value :u64}
   :fill (fn [m] (let [cgroup (counted-cgroup m)
                       k (if (= 8 key-size)
                           (:id cgroup)
                           {:cgroup-id (:id cgroup) :attach-type (linux/constant "BPF_CGROUP_INET_EGRESS")})]
                   (bpf/replace! m k (first values))
                   (assoc cgroup :keys [k nil])))
   :values values
   :none (if (= 8 key-size) 1 {:cgroup-id 1 :attach-type 0})})

(def ^:private plain {:keys [0 1] :values [10 20]})

(def ^:private per-cpu {:keys [0 1] :values [(cpus 10) (cpus 20)]})

(defn- numbers [type & {:as more}]
  (assoc plain :spec (merge {:type type :key :u32 :value :u64 :max-entries 2} more) :none 5))

(defn- local-storage [type objects]
  {:spec {:type type :value :u64 :flags #{:no-prealloc}} :objects objects :keys the :values [10 20]})

(def ^:private uses
  "A row for each map type, or for each of its forms.

  `:spec` is that of the map, `:keys` and `:values` are two of each, which differ: both are data, or functions of the
  `:objects` that are made first. `:none` is a key that is not there. What is put reads as equal unless `:reads` tells,
  `(reads put read)`. `:fill` puts the first value under the first key where user space cannot, and returns what to close,
  with the `:keys`."
  [(numbers :hash)
   (numbers :hash :flags #{:no-prealloc})
   (assoc (numbers :array) :none 2)
   {:spec {:type :prog-array :max-entries 2} :objects targets
    :keys [0 1] :values identity :none 2 :reads (fn [_ read] (pos? (long (:program-id read))))}
   {:spec {:type :perf-event-array :max-entries 2} :objects (closing #(objects/perf-event 0) #(objects/perf-event 0))
    :keys [0 1] :values #(apply the %)}
   (merge (numbers :percpu-hash) per-cpu)
   (merge (numbers :percpu-array) per-cpu {:none 2})
   {:spec {:type :stack-trace :value [:array :u64 16] :max-entries 64}
    :fill (recorded :kernel)
    :values [nil nil] :none 64 :reads (fn [_ read] (and (vector? read) (every? #(not= 0 %) read) (seq read)))}
   {:spec {:type :stack-trace :flags #{:stack-build-id} :max-entries 64}
    :fill (recorded :user)
    :values [nil nil] :none 64 :reads (fn [_ [frame]] (and (= :valid (:status frame)) (pos? (long (:offset frame)))))}
   {:spec {:type :cgroup-array :max-entries 2} :objects (closing objects/cgroup objects/cgroup)
    :keys [0 1] :values (fn [[a b]] [(:path a) {:fd (:fd b)}])}
   (numbers :lru-hash :max-entries 4096)
   (numbers :lru-hash :max-entries 4096 :flags #{:no-common-lru})
   (merge (numbers :lru-percpu-hash :max-entries 4096) per-cpu)
   {:spec {:type :lpm-trie :key [:prefix :ipv4] :value :u64 :max-entries 2 :flags #{:no-prealloc}}
    :keys ["10.0.0.0/8" "192.168.0.0/16"] :values [10 20] :none "11.0.0.0/8"}
   {:spec {:type :array-of-maps :max-entries 2 :inner-map inner} :objects inner-maps
    :keys [0 1] :values identity :none 2 :reads (fn [put read] (= {:map-id (:id (bpf/info put))} read))}
   {:spec {:type :hash-of-maps :key :u64 :max-entries 2 :inner-map inner} :objects inner-maps
    :keys [7 8] :values identity :none 9 :reads (fn [put read] (= {:map-id (:id (bpf/info put))} read))}
   {:spec {:type :devmap :max-entries 2} :keys [0 1] :values [1 1] :none 2}
   {:spec {:type :devmap :value-size 8 :max-entries 2} :keys [0 1] :values [{:ifindex 1} {:ifindex 1 :program nil}] :none 2
    :reads (fn [put read] (= {:ifindex (:ifindex put) :program nil} read))}
   {:spec {:type :sockmap :max-entries 2} :objects (closing objects/tcp-connection objects/udp-socket)
    :keys [0 1] :values #(apply the %) :none 2 :reads cookie?}
   {:spec {:type :sockmap :value-size 4 :max-entries 2} :objects (closing objects/tcp-listener objects/unix-pair)
    :keys [0 1] :values #(apply the %)}
   {:spec {:type :cpumap :max-entries 2} :keys [0 1] :values [64 128] :none 2}
   {:spec {:type :cpumap :value-size 8 :max-entries 2} :keys [0 1] :values [{:qsize 64} {:qsize 128 :program nil}] :none 2
    :reads (fn [put read] (= {:qsize (:qsize put) :program nil} read))}
   {:spec {:type :xskmap :max-entries 2} :objects (closing objects/xdp-socket objects/xdp-socket)
    :keys [0 1] :values #(apply the %)}
   {:spec {:type :sockhash :key :u64 :max-entries 2} :objects (closing objects/tcp-connection objects/udp-socket)
    :keys [7 8] :values #(apply the %) :none 9 :reads cookie?}
   {:spec {:type :sockhash :key :u64 :value-size 4 :max-entries 2} :objects (closing objects/tcp-listener objects/unix-pair)
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
   (assoc (local-storage :sk-storage (closing objects/tcp-connection objects/udp-socket)) :keys #(apply the %))
   {:spec {:type :devmap-hash :max-entries 2} :keys [7 8] :values [1 1] :none 9}
   {:spec {:type :devmap-hash :value-size 8 :max-entries 2} :keys [7 8] :values [{:ifindex 1} {:ifindex 1}] :none 9
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
   {:spec {:type :insn-array :max-entries 2}}
   (numbers :rhash :flags #{:no-prealloc})])

(def ^:private left-out
  "Types that are tested elsewhere, for what they are: the value of one is a struct of the kernel's."
  #{:struct-ops})

(defn- here? [{{:keys [type]} :spec}]
  (:supported? (feature/map-type type)))

(defn- row-of [{{:keys [type]} :spec}]
  (rules/types type))

(kernel-test every-type-of-the-table-is-here-and-those-newer-than-the-kernel-are-refused-with-their-release
  (is (= (set (keys rules/types)) (into left-out (map (comp :type :spec)) uses)))
  (doseq [{:keys [spec] :as use} uses]
    (if (here? use)
      (is (store/bpf-map? (doto (bpf/create spec) (bpf/close))) (str spec))
      (let [{:keys [message] :bpfmap/keys [error]} (error-of (bpf/create spec))]
        (is (= :not-supported error))
        (is (str/includes? message (str " has no map type " (:type spec) ", which came with Linux " (:since (row-of use)))))))))

;; ---------------------------------------------------------------- what is granted

(defn- used
  "Calls f with a new map, in which the first value is under the first key, if anything can be put there, and with what
  it is used with: the use with `:keys` and `:values` as data, and `:same?`."
  [{:keys [spec objects fill values reads] :as use} f]
  (let [objects (when objects (objects))
        of-objects #(if (fn? %) (% objects) %)
        {:keys [ops]} (row-of use)]
    (try
      (with-open [m ^Closeable (bpf/create spec)
                  filled ^Closeable (if fill (fill m) (held {} (constantly nil)))]
        (let [[k :as ks] (of-objects (or (:keys filled) (:keys use)))
              [v :as vs] (of-objects values)]
          (when (and (not fill) (contains? ops :put!))
            (bpf/put! m k v))
          (f m (assoc use :keys ks :values vs :same? (or reads =)))))
      (finally (run! (fn [^Closeable object] (.close object)) objects)))))

(defn- keys-by-walking [m]
  (vec (take 100 (take-while some? (iterate #(bpf/next-key m %) (bpf/next-key m))))))

(def ^:private deletes-blindly
  "Types whose delete tells not whether anything was there."
  #{:devmap :cpumap :xskmap})

(defn- slots?
  "Whether next-key goes through all indices, filled or not."
  [{:keys [spec] :as use}]
  (let [{:keys [every-index? index?]} (row-of use)]
    (or every-index? (and index? (not= :stack-trace (:type spec))))))

(def ^:private granted
  "What each operation must do: `(check m use)`, of a map in which the first value is under the first key."
  (let [reads? (fn [m use] (nil? (rules/alternative (:type (:spec use)) :lookup (:value-size (bpf/spec m)))))
        there (fn [m {:keys [same?] :as use} k v]
                (when (reads? m use)
                  (is (same? v (bpf/lookup m k)))))
        gone (fn [m use k]
               (when (reads? m use)
                 (is (= ::gone (bpf/lookup m k ::gone)))
                 (is (false? (bpf/has-key? m k)))))]
    {:put! (fn [m {[k] :keys [v v2] :values :as use}]
             (is (identical? m (bpf/put! m k v2)))
             (there m use k v2)
             (is (= 1 (bpf/put-all! m [[k v]])))
             (there m use k v))
     :insert! (fn [m {[k k2] :keys [v v2] :values :as use}]
                (let [every? (boolean (:every-index? (row-of use)))]
                  (is (false? (bpf/insert! m k v2)))
                  (there m use k v)
                  (is (= (not every?) (bpf/insert! m k2 v2)))
                  (when-not every? (there m use k2 v2))))
     :replace! (fn [m {[k k2] :keys [_ v2] :values :as use}]
                 (is (true? (bpf/replace! m k v2)))
                 (there m use k v2)
                 (when k2
                   (is (= (boolean (:every-index? (row-of use))) (bpf/replace! m k2 v2)))
                   (when-not (:every-index? (row-of use)) (gone m use k2))))
     :delete! (fn [m {[k k2] :keys :keys [spec none] :as use}]
                (is (true? (bpf/delete! m k)))
                (gone m use k)
                (is (= (contains? deletes-blindly (:type spec)) (bpf/delete! m k)))
                (when (and none (not (deletes-blindly (:type spec))))
                  (is (false? (bpf/delete! m none))))
                (is (= (if (deletes-blindly (:type spec)) 1 0) (bpf/delete-all! m [(or k2 k)]))))
     :take! (fn [m {[k] :keys [v] :values :keys [same? none] :as use}]
              (is (same? v (bpf/take! m k)))
              (gone m use k)
              (is (= [nil ::gone] [(bpf/take! m k) (bpf/take! m none ::gone)])))
     :lookup (fn [m {[k k2] :keys [v] :values :keys [same? none] :as use}]
               (is (same? v (bpf/lookup m k)))
               (is (= [(bpf/lookup m k) (m k) (get m k)] (repeat 3 (bpf/lookup m k ::gone))))
               (is (true? (bpf/has-key? m k)))
               (when (and k2 (not (:every-index? (row-of use)))) (gone m use k2))
               (when none (gone m use none))
               (is (= {k (bpf/lookup m k)} (bpf/lookup-all m (cond-> [k] none (conj none))))))
     :next-key (fn [m {[k] :keys :as use}]
                 (is (= (if (slots? use) (range (:max-entries (bpf/spec m))) [k])
                        (keys-by-walking m))))
     :reduce (fn [m {[k] :keys [v] :values :keys [same? spec] :as use}]
               (let [all (into {} m)]
                 (is (same? v (all k)))
                 (is (= (if (:every-index? (row-of use)) (:max-entries spec) 1) (count all)))
                 (is (= all (bpf/snapshot m) (into {} (bpf/entries m)) (reduce-kv assoc {} m) (into {} (seq m))))
                 (is (= (count all) (bpf/count-entries m)))))
     :drain! (fn [m {[k] :keys [v] :values :keys [same?] :as use}]
               (when-not k (bpf/push! m v))
               (let [all (bpf/drain! m)]
                 (is (if k (and (= [k] (keys all)) (same? v (all k))) (= [v] all)))
                 (is (empty? (bpf/drain! m)))
                 (when (and k (reads? m use)) (gone m use k))))
     :push! (fn [m {[v] :values}]
              (is (identical? m (bpf/push! m v))))
     :peek (fn [m {[v] :values}]
             (is (nil? (bpf/peek m)))
             (bpf/push! m v)
             (is (= [v v] [(bpf/peek m) (bpf/peek m)])))
     :pop! (fn [m {[v] :values}]
             (bpf/push! m v)
             (is (= [v ::gone] [(bpf/pop! m) (bpf/pop! m ::gone)])))
     :might-contain? (fn [m {[v] :values}]
                       (is (false? (bpf/might-contain? m v)))
                       (bpf/push! m v)
                       (is (true? (bpf/might-contain? m v))))}))

(defn- grants? [{{:keys [type]} :spec :as use} op]
  (and (contains? (:ops (row-of use)) op)
       (nil? (rules/alternative type op (:value-size (spec/complete (:spec use) (comparing/machine)))))))

(kernel-test e10-every-operation-that-a-row-grants-does-what-it-says
  (is (= (set (keys granted)) rules/operations))
  (let [before (fixture/open-descriptors)]
    (doseq [use uses :when (here? use)
            [op check] granted :when (grants? use op)]
      (testing (str (:spec use) " " op)
        (used use check)))
    (is (= before (fixture/open-descriptors)))))

;; ---------------------------------------------------------------- what is denied

(def ^:private asked
  "Each operation as the library is asked for it, and whatever else is made of it."
  {:lookup [(fn [m k _] (bpf/lookup m k)) (fn [m k _] (m k)) (fn [m k _] (bpf/has-key? m k)) (fn [m k _] (bpf/lookup-all m [k]))]
   :put! [(fn [m k v] (bpf/put! m k v)) (fn [m k v] (bpf/put-all! m [[k v]])) (fn [m _ _] (bpf/put-all! m {}))]
   :insert! [(fn [m k v] (bpf/insert! m k v))]
   :replace! [(fn [m k v] (bpf/replace! m k v))]
   :delete! [(fn [m k _] (bpf/delete! m k)) (fn [m k _] (bpf/delete-all! m [k]))]
   :take! [(fn [m k _] (bpf/take! m k))]
   :next-key [(fn [m _ _] (bpf/next-key m)) (fn [m k _] (bpf/next-key m k))]
   :reduce [(fn [m _ _] (into {} m)) (fn [m _ _] (seq m)) (fn [m _ _] (reduce-kv assoc {} m)) (fn [m _ _] (bpf/snapshot m))
            (fn [m _ _] (into {} (bpf/entries m))) (fn [m _ _] (bpf/count-entries m))]
   :drain! [(fn [m _ _] (bpf/drain! m)) (fn [m _ _] (bpf/drain! m conj []))]
   :push! [(fn [m _ v] (bpf/push! m v))]
   :pop! [(fn [m _ _] (bpf/pop! m))]
   :peek [(fn [m _ _] (bpf/peek m))]
   :might-contain? [(fn [m _ v] (bpf/might-contain? m v))]})

(kernel-test e11-what-a-type-lacks-is-refused-by-its-name-with-the-alternative
  (doseq [{:keys [spec] :as use} uses :when (here? use)]
    (used use
          (fn [m {[k] :keys [v] :values}]
            (doseq [op rules/operations :when (not (grants? use op))
                    ask (asked op)
                    :let [{:keys [message] :bpfmap/keys [error map] said-op :bpfmap/op} (error-of (ask m k v))]]
              (testing (str spec " " op)
                (is (= :not-supported error))
                (is (= op (rules/ability said-op)))
                (is (= (:type spec) (:type map)))
                (is (str/includes? message (str "a map of type " (:type spec) " has no ")))
                (is (str/includes? message (name said-op)))
                (is (str/includes? message (rules/alternative (:type spec) op (:value-size (bpf/spec m)))))))))))

(defn- encoded
  "The bytes of a key or a value, or no bytes where the map has none; eight zeros for what a codec has not."
  [^Codec codec x]
  (if (or (nil? codec) (nil? x))
    (byte-array 4096)
    (with-open [arena (Arena/ofConfined)]
      (let [memory (.allocate arena (max 4096 (.size codec)) 8)]
        (.encode codec x memory 0)
        (Bytes/copyOut memory 0 (int (max 4096 (.size codec))))))))

(def ^:private raw
  "Each operation as the kernel is asked for it: one command or several, of which all would have to be answered.
  What works without keys passes none."
  {:lookup [{:op :lookup}]
   :put! [{:op :update :flags 0}]
   :insert! [{:op :update :flags 1}]
   :replace! [{:op :update :flags 2}]
   :delete! [{:op :delete}]
   :take! [{:op :lookup-and-delete}]
   :next-key [{:op :next-key}]
   :reduce [{:op :next-key} {:op :lookup}]
   :drain! [{:op :lookup-and-delete}]
   :push! [{:op :update :flags 0 :keyless? true}]
   :pop! [{:op :lookup-and-delete :keyless? true}]
   :peek [{:op :lookup :keyless? true}]
   :might-contain? [{:op :lookup :keyless? true}]})

(def ^:private refusals
  "How the kernel refuses an operation: EFAULT for the key that is not given, ENOSPC for values too small for a cookie."
  #{:EINVAL :ENOTSUPP :EOPNOTSUPP :EFAULT :ENOSPC})

(defn- answer
  "What the kernel says to an operation: the first refusal of its commands, or what the last one says."
  [^BpfMap m op k v]
  (let [held (reference/holding)
        bridge (.-bridge m)
        facts {:op op}]
    (try
      (let [k (encoded (.-key-codec m) (if (and bridge k) (reference/key-in bridge held k facts) k))
            v (encoded (.-value-codec m) (if (and bridge v) (reference/value-in bridge held v facts) v))
            answers (for [{:keys [op flags keyless?]} (raw op)]
                      (said (probes/operate op (store/descriptor m) {:key (when-not keyless? k) :value v :flags flags} facts)))]
        (or (first (filter refusals answers)) (last answers)))
      (finally (reference/let-go held)))))

(def ^:private denied-though-the-kernel-answers
  "What a row denies and the kernel does not refuse: what it says to that, with a key that is not there where there are two,
  and why it is denied. "
  {[:devmap :insert!] [:EEXIST "an empty slot counts as there: nothing can be inserted"]
   [:devmap :replace!] [:ok "an empty slot counts as there: what is not there is \"replaced\""]
   [:cpumap :insert!] [:EEXIST "as :devmap"]
   [:cpumap :replace!] [:ok "as :devmap"]
   [:devmap-hash :replace!] [:ok "the flag is not looked at: what is not there is \"replaced\""]
   [:cgroup-storage :put!] [:ok "only what is there is written, else ENOENT: that is replace!"]
   [:percpu-cgroup-storage :put!] [:ok "as :cgroup-storage"]
   [:queue :might-contain?] [:ENOENT "the same command is peek"]
   [:stack :might-contain?] [:ENOENT "the same command is peek"]
   [:bloom-filter :peek] [:ENOENT "the same command is might-contain?"]})

(kernel-test e11-what-a-row-denies-the-kernel-denies-too
  (let [before (fixture/open-descriptors)
        excepted (atom #{})]
    (doseq [{{:keys [type]} :spec :as use} uses :when (here? use)
            op rules/operations :when (not (grants? use op))]
      (used use
            (fn [m {[k k2] :keys [v v2] :values}]
              (let [writes? (#{:insert! :replace!} op)
                    found (answer m op (if writes? (or k2 k) k) (if writes? (or v2 v) v))]
                (if-let [[expected] (denied-though-the-kernel-answers [type op])]
                  (do (swap! excepted conj [type op])
                      (is (= expected found) (str (:spec use) " " op)))
                  (is (refusals found) (str (:spec use) " " op)))))))
    (is (= (set (keys denied-though-the-kernel-answers)) @excepted))
    (is (= before (fixture/open-descriptors)))))
