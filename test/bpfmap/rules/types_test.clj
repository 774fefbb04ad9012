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
                  ^Closeable filled (if fill (fill m) (held {} (constantly nil)))]
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

;; ---------------------------------------------------------------- what a row says of creating

(def ^:private facts {:op :create})

(defn- own-bytes
  "A type of n bytes that BTF can tell."
  [n]
  ({4 :u32 8 :u64} n [:struct [:bytes [:bytes n]]]))

(defn- raw-create
  "Creates a map with what is in a spec and nothing else, `:btf` the types of key and value; calls f with its descriptor.
  The name of an errno where the kernel refuses; else what f returns, `:ok` without f."
  ([spec] (raw-create spec (constantly :ok)))
  ([{:keys [btf] :as spec} f]
   (let [{:keys [bytes ids]} (when btf (btf/->btf btf nil))
         ^Fd blob (when bytes (sys.btf/load bytes nil facts))]
     (try
       (let [fd (maps/create (assoc spec :btf (when blob {:fd blob :key (first ids) :value (second ids)})) facts)]
         (try (f fd) (finally (sys/close fd))))
       (catch ExceptionInfo e
         (or (:bpfmap/errno (ex-data e)) (throw e)))
       (finally (some-> blob sys/close))))))

(defn- bare
  "The spec of a use as the kernel needs it at least, with changes: with BTF where that is required."
  [{:keys [spec] :as use} & {:as changes}]
  (let [spec (-> (spec/complete spec (comparing/machine))
                 (select-keys [:type :key-size :value-size :max-entries :flags])
                 (assoc :name nil)
                 (merge changes))]
    (cond-> spec
      (and (= :required (:btf (row-of use))) (not (contains? changes :btf)))
      (assoc :btf [(own-bytes (:key-size spec)) (own-bytes (max 1 (long (:value-size spec))))]))))

(defn- try-spec
  "What the kernel says to a spec of [[bare]], given a map to hold where it holds maps."
  ([use spec] (try-spec use spec (constantly :ok)))
  ([use spec f]
   (if (:inner? (row-of use))
     (with-open [template ^Closeable (bpf/create inner)]
       (raw-create (assoc spec :inner-map (store/descriptor template)) f))
     (raw-create spec f))))

(def ^:private vague
  "Limits that are no limits of the type: as many as there is memory for, or far more than a test should ask for."
  #{0xffffffff 0x80000000})

(defn- inside-and-outside
  "Numbers just inside and just outside of a rule of a row: `[inside outside]`."
  [rule]
  (let [inside (if (set? rule)
                 rule
                 (into #{(first rule)} (remove vague) [(second rule)]))]
    [inside (into #{}
                  (remove #(or (neg? (long %))
                               (if (set? rule) (rule %) (<= (long (first rule)) (long %) (long (second rule))))))
                  (mapcat (fn [n] [(dec (long n)) (inc (long n))]) inside))]))

(def ^:private limit-of-the-machine
  "Rules whose upper end is loose in the row, since it is the machine's or the kernel's build: what it is here."
  {[:stack-trace :value-size] #(let [frames (parse-long (str/trim (slurp "/proc/sys/kernel/perf_event_max_stack")))]
                                 (* frames (if (contains? (:flags %) :stack-build-id) 32 8)))
   ;; Everything up to a header whose size is no business of user space; see the test below.
   [:local-storage :value-size] (constantly 32768)
   [:cgroup-storage :value-size] (constantly 32768)})

(defn- local-storage? [use] (= :required (:btf (row-of use))))

(defn- up-to-a-header? [{:keys [spec] :as use}]
  (or (local-storage? use) (= :cgroup-storage (:type spec))))

(defn- rule-for [{:keys [spec] :as use} column]
  (let [row (row-of use)
        rule (or (column row) (set (keys (({:key-size :keys, :value-size :values} column) row))))]
    (if-let [limit (limit-of-the-machine [(if (local-storage? use) :local-storage (:type spec)) column])]
      [(first rule) (limit spec)]
      rule)))

(kernel-test sizes-of-keys-and-values-are-accepted-up-to-the-limits-of-the-row-and-not-beyond
  (doseq [use uses :when (here? use)
          column [:key-size :value-size]
          :let [[inside outside] (inside-and-outside (rule-for use column))
                step (rules/value-multiple (:type (:spec use)) (:flags (:spec use)))
                outside (cond->> outside (and (= :value-size column) (up-to-a-header? use)) (filter #(< (long %) 32768)))
                try-size #(try-spec use (bare use column %))]]
    (testing (str (:spec use) " " column)
      (doseq [n inside :when (or (= :key-size column) (zero? (rem (long n) (long step))))]
        (is (= :ok (try-size n)) n))
      (doseq [n outside]
        (is (#{:EINVAL :E2BIG} (try-size n)) n))
      (when (and (= :value-size column) (< 1 (long step)))
        (is (= :EINVAL (try-size (+ (long step) 4))))))))

(kernel-test a-storage-takes-values-of-almost-as-much-as-the-row-says
  (doseq [use uses :when (and (here? use) (up-to-a-header? use))
          :let [most (second (:value-size (row-of use)))]]
    (is (= :E2BIG (try-spec use (bare use :value-size (inc (long most))))))
    (is (= :ok (try-spec use (bare use :value-size (- (long most) 255)))))))

(kernel-test numbers-of-entries-are-accepted-down-to-the-limits-of-the-row-and-not-beyond
  (doseq [{:keys [spec] :as use} uses :when (here? use)
          :let [{[least most] :max-entries :keys [rounded clamped]} (row-of use)
                try-entries #(try-spec use (bare use :max-entries %))]]
    (testing spec
      (cond
        (= 0 most) (is (= [:ok :EINVAL] (map try-entries [0 1])))
        (contains? rounded nil) (is (= [:ok :ok :EINVAL :EINVAL :EINVAL :EINVAL] (map try-entries [4096 16384 least 4095 12288 (inc (long most))])))
        :else
        (do (is (= :ok (try-entries least)))
            (is (= :EINVAL (try-entries 0)))
            (when-not (or (vague most) clamped)
              (is (= [:ok :E2BIG] (map try-entries [most (inc (long most))])))))))))

(def ^:private companions
  "What a flag needs beside it to be accepted."
  {:numa-node (constantly {:numa-node 0})
   :stack-build-id (constantly {:value-size 32})})

(def ^:private clashes
  "Flags that the kernel takes alone, and not together."
  #{#{:no-common-lru :numa-node}})

(kernel-test each-flag-of-the-row-is-accepted-and-each-other-refused
  (doseq [use uses :when (here? use)
          [flag {:keys [since]}] rules/flags
          :let [row (row-of use)
                given (conj (set (:flags (:spec use))) flag)
                spec (bare use (merge {:flags given} ((companions flag (constantly nil)))))
                found (try-spec use spec)]]
    (testing (str (:spec use) " " flag)
      (if (and (contains? (:flags row) flag)
               (not-any? #(set/subset? % given) clashes)
               (rules/at-least? (sys/kernel-release) since))
        (is (= :ok found))
        (is (#{:EINVAL :ENOTSUPP :EBADF :EPERM} found)))
      (is (= (and (contains? (set/union (:flags row) (:added row)) flag) (not-any? #(set/subset? % given) clashes))
             (not-any? #(#{[:flags] [:numa-node]} (:path %))
                       (spec/problems (merge (dissoc (:spec use) :value-size :value)
                                             {:flags given :numa-node (when (= :numa-node flag) 0)}))))))))

(kernel-test a-flag-that-is-required-is-required-and-one-that-is-added-is-added
  (doseq [{:keys [spec] :as use} uses :when (here? use)
          :let [{:keys [requires added]} (row-of use)]]
    (testing spec
      (when-not (contains? (:flags spec) :stack-build-id) ; without it the value would be too long
        (is (= (empty? requires) (= :ok (try-spec use (bare use :flags #{}))))))
      (doseq [flag requires]
        (is (= :EINVAL (try-spec use (bare use :flags (disj (set (:flags spec)) flag)))))
        (is (str/includes? (:message (error-of (bpf/create (update spec :flags disj flag)))) (str "maps need the flag " flag))))
      (is (= (into (set (:flags spec)) added)
             (try-spec use (bare use) #(:flags (maps/info % facts)))))
      (doseq [flag added]
        (is (= :EINVAL (try-spec use (bare use :flags #{flag}))) "the kernel adds it, and does not take it")
        (with-open [m ^Closeable (bpf/create (update spec :flags (fnil conj #{}) flag))]
          (is (= #{} (:flags (bpf/spec m))))
          (is (= #{flag} (:flags (bpf/info m)))))))))

(kernel-test s8-the-types-of-a-map-are-kept-as-btf-where-the-row-says-so-and-refused-where-not
  (doseq [{:keys [spec] :as use} uses :when (here? use)
          :let [{:keys [btf]} (row-of use)
                {:keys [key value key-size value-size]} (spec/complete spec (comparing/machine))
                kept #(:btf-id (maps/info % facts))
                with-types (fn [types] (try-spec use (bare use :btf types) kept))]]
    (testing spec
      (with-open [m ^Closeable (bpf/create spec)]
        (is (= (not= :none btf) (some? (:btf-id (bpf/info m)))))
        (is (nil? (:untyped (bpf/info m)))))
      (case btf
        :none (is (#{:EINVAL :ENOTSUPP} (with-types [(own-bytes (max 4 (long key-size))) (own-bytes (max 4 (long value-size)))])))
        :required (do (is (= :EINVAL (with-types nil)))
                      (is (int? (with-types [:u32 value])))
                      (is (= :EINVAL (with-types [[:struct [:fd :u32]] value]))))
        :index (do (is (int? (with-types [:u32 value])))
                   (is (= :EINVAL (with-types [[:struct [:index :u32]] value]))))
        :value (do (is (int? (with-types [nil value])))
                   (is (= :EINVAL (with-types [:u32 value]))))
        nil (do (is (int? (with-types [key value])))
                ;; That of a cgroup's storage is a number, or one certain struct.
                (when-not (:keys (row-of use))
                  (is (int? (with-types [[:struct [:bytes [:bytes key-size]]] value])) "any key")))))))

(def ^:private batches
  {:read :lookup-batch, :take :lookup-and-delete-batch, :write :update-batch, :delete :delete-batch})

(kernel-test batches-and-freezing-are-there-where-the-row-says-so
  (doseq [{:keys [spec] :as use} uses :when (here? use)
          :let [{:keys [batch freeze? batch-read-since]} (row-of use)
                ask (fn [op] (try-spec use (bare use) #(said (probes/operate op % {} facts))))]]
    (testing spec
      (doseq [[name op] batches
              :let [granted? (contains? batch name)]]
        (is (= granted? (= :ok (ask op))) op))
      (is (= (if freeze? :ok :ENOTSUPP) (ask :freeze)))
      (is (or (nil? batch-read-since) (contains? batch :read))))))

(def ^:private locked [:struct [:lock :spin-lock] [:n :u32]])

(kernel-test a-spin-lock-is-accepted-where-the-row-says-so
  (doseq [{:keys [spec] :as use} uses :when (here? use)
          :let [{:keys [lock? values]} (row-of use)
                key (:key (spec/complete spec (comparing/machine)))]]
    (testing spec
      (is (= (boolean lock?) (= :ok (try-spec use (bare use :value-size 8 :btf [key locked])))))
      (when-not (or values (= [0 0] (:value-size (row-of use))))
        (is (= (boolean lock?)
               (not-any? #(str/includes? (:message %) "have no :spin-lock") (spec/problems (assoc spec :value locked)))))))))

(kernel-test memory-is-mapped-where-the-row-says-so
  (doseq [{:keys [spec] :as use} uses :when (here? use)
          :let [{:keys [mmap flags requires]} (row-of use)
                maps? (fn [flags]
                        (try-spec use (bare use :flags flags)
                                  (fn [^Fd fd]
                                    (let [number (.acquire fd)]
                                      (try
                                        (linux/maps-page? number (sys/page-size))
                                        (finally (.release fd)))))))]]
    (testing spec
      (when-not (contains? requires :mmapable)
        (is (= (= :always mmap) (maps? (:flags spec #{}))) "without the flag"))
      (when (contains? flags :mmapable)
        (is (= :mmapable mmap))
        (is (true? (maps? (conj (set (:flags spec)) :mmapable))))))))

(kernel-test s1-maps-of-maps-need-a-map-to-hold-and-hold-those-that-the-row-says
  (doseq [{:keys [spec] :as use} uses :when (here? use)
          :let [{:keys [inner? not-inside?]} (row-of use)
                outer {:type :array-of-maps :key-size 4 :value-size 4 :max-entries 1 :flags #{} :name nil}]]
    (testing spec
      (is (= (boolean inner?) (not= :ok (raw-create (bare use)))) "without an inner map")
      (is (= (if not-inside? #{:EINVAL :ENOTSUPP} #{:ok})
             (conj (if not-inside? #{:EINVAL :ENOTSUPP} #{})
                   (try-spec use (bare use) #(raw-create (assoc outer :inner-map %))))))
      (if not-inside?
        (is (str/includes? (:message (error-of (bpf/create {:type :array-of-maps :max-entries 1 :inner-map spec})))
                           (str "a map cannot hold " (:type spec) " maps")))
        (is (nil? (bpf/close (bpf/create {:type :array-of-maps :max-entries 1 :inner-map spec}))))))))

(kernel-test s10-a-full-map-and-an-index-beyond-the-end-are-refused-as-the-row-says
  (doseq [{:keys [spec fill] :as use} uses
          :let [{:keys [full index? every-index? ops]} (row-of use)]
          :when (and (here? use) full (some ops [:put! :push!]))]
    (testing spec
      (used (assoc-in use [:spec :max-entries] 1)
            (fn [m {[_ k2] :keys [v v2] :values}]
              (let [refused #(let [{:bpfmap/keys [error errno]} (error-of (bpf/put! m k2 v2))]
                               [error (contains? full errno)])]
                (cond
                  (ops :push!) (if (seq full)
                                 (do (bpf/push! m v)
                                     (let [{:bpfmap/keys [error errno]} (error-of (bpf/push! m v2))]
                                       (is (= [:map-full true] [error (contains? full errno)]))))
                                 (dotimes [_ 10] (bpf/push! m v)))
                  (or index? every-index?) (is (= [:out-of-range true] (refused)))
                  (empty? full) (dotimes [i 5000] (bpf/put! m i v2))
                  :else (is (= [:map-full true] (refused))))))))))

;; ---------------------------------------------------------------- how specs are completed

(kernel-test s1-a-map-of-maps-has-values-of-four-bytes-and-its-template-is-gone
  (doseq [spec [{:type :array-of-maps :max-entries 2} {:type :hash-of-maps :key :u64 :max-entries 2}]
          :let [spec (assoc spec :inner-map (assoc inner :contents {0 5} :freeze true))
                before (fixture/open-descriptors)]]
    (testing spec
      (doseq [more [{} {:value-size 0} {:value-size 4} {:value :u32}]]
        (with-open [m ^Closeable (bpf/create (merge spec more))]
          (is (= [4 4 :u32] [(:value-size (bpf/spec m)) (:value-size (bpf/info m)) (:value (bpf/spec m))]))
          (is (= {} (into {} m)) "the template is in no slot")
          (is (= (inc before) (fixture/open-descriptors)) "and not open")
          (with-open [again ^Closeable (bpf/create (bpf/spec m))]
            (is (nil? (bpf/spec-diff (bpf/spec m) again))))))
      (is (= before (fixture/open-descriptors)))
      (doseq [[more words] [[{:value-size 8} "has 4 bytes, not 8"]
                            [{:value :u64} "has 4 bytes, not 8"]
                            [{:inner-map nil} "need :inner-map"]
                            [{:inner-map {:type :hash}} "in :inner-map, a spec needs :key"]
                            [{:inner-map (assoc inner :name "x" :pinning :by-name)} "is a template here, and is not pinned"]]]
        (let [{:keys [message] :bpfmap/keys [error]} (error-of (bpf/create (merge spec more)))]
          (is (= :invalid-spec error))
          (is (str/includes? message words)))))))

(kernel-test s2-perf-event-arrays-and-cpumaps-have-as-many-entries-as-there-may-be-cpus
  (let [n (count (feature/possible-cpus))]
    (doseq [[type values] {:perf-event-array [{} {:key-size 0 :value-size 0} {:key-size 4 :value-size 4} {:key :u32 :value :u32}]
                           :cpumap [{} {:value-size 4} {:value-size 8}]}
            sizes values
            [asked found] [[nil n] [0 n] [(+ n 1000) n] [:percpu n] [1 1]]]
      (testing [type sizes asked]
        (with-open [m ^Closeable (bpf/create (merge {:type type} sizes (when asked {:max-entries asked})))]
          (is (= found (:max-entries (bpf/spec m)) (:max-entries (bpf/info m))))
          (is (= [4 (if (= 8 (:value-size sizes)) 8 4)] ((juxt :key-size :value-size) (bpf/info m)))))))
    (is (str/includes? (:message (error-of (bpf/create {:type :perf-event-array :value-size 8}))) "has 4 bytes, not 8"))))

(kernel-test s3-the-size-of-a-ring-buffer-is-rounded-up-and-the-spec-says-so
  (let [page (long (sys/page-size))]
    (doseq [type [:ringbuf :user-ringbuf]
            [asked found] [[1 page] [(dec page) page] [page page] [(inc page) (* 2 page)]
                           [(* 3 page) (* 4 page)] [(* 4 page) (* 4 page)]]]
      (with-open [m ^Closeable (bpf/create {:type type :max-entries asked})]
        (is (= found (:max-entries (bpf/spec m)) (:max-entries (bpf/info m))) [type asked])
        (is (bpf/compatible? {:type type :max-entries asked} m))))
    (doseq [n [0 -1 0x80000001 nil]]
      (is (= :invalid-spec (:bpfmap/error (error-of (bpf/create {:type :ringbuf :max-entries n})))) n))))

(kernel-test e3-odd-keys-and-values-are-answered-or-refused-as-data-by-every-type
  (let [before (fixture/open-descriptors)
        seen (volatile! #{})]
    (doseq [use uses :when (here? use)]
      (used use
            (fn [m {[k] :keys [v] :values}]
              (let [odd [nil -1 4294967295 1e9 1/2 "" "x" :x 'y \c true [] [nil] {} {:fd -1} {:fd "x"} {:pid 0x7ffffff0} {:tid -1}
                         {:pid 1 :fd -1} {:map-id -1} {:program-id nil} {:ifindex 1 :program m} {:program {}} {1 2}
                         (sorted-map "a" 1) #{} (Object.) (byte-array 3) identity m]]
                (doseq [op rules/operations
                        ask (asked op)
                        [k v] (concat (for [x odd] [x v]) (for [x odd] [k x]))]
                  (let [outcome (try (ask m k v) :answer (catch Throwable e (or (:bpfmap/error (ex-data e)) e)))]
                    (vswap! seen conj outcome)
                    (when-not (keyword? outcome)
                      (is (= :answer outcome) (pr-str (:spec use) op k v)))))))))
    (is (set/subset? #{:answer :invalid-value :not-supported :not-found :incompatible} @seen))
    (is (= before (fixture/open-descriptors)))))
