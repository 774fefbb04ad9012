(ns bpfmap.impl.map.element-ops-test
  "Operations on single elements where the map type gives keys or values a meaning of their own:
  prefixes, CPUs, and the objects that a storage hangs on."
  (:require [bpfmap.core :as bpf]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.linux :as linux :refer [said]]
            [bpfmap.objects :as objects]
            [bpfmap.programs :as programs]
            [bpfmap.since :as since]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (bpfmap.sys Abi Elements)
           (java.io Closeable)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(def ^:private in-words "The kind of an error and its message." (juxt :bpfmap/error :message))

;; --- longest prefix

(def ^:private routes
  {:ipv4 {"0.0.0.0/0" 0, "10.0.0.0/8" 8, "10.1.0.0/16" 16, "10.1.2.3/32" 32}
   :ipv6 {"::/0" 0, "2001:db8::/32" 32, "2001:db8:1::/48" 48, "2001:db8:1::7/128" 128}})

(def ^:private longest
  "Keys to the route that is found."
  {:ipv4 {"10.1.2.3/32" 32, "10.1.2.4/32" 16, "10.1.2.3/24" 16, "10.2.0.0/16" 8, "10.0.0.0/8" 8
          "10.0.0.0/7" 0, "192.168.0.1/32" 0
          "10.1.2.3" 32, "10.9.9.9" 8}
   :ipv6 {"2001:db8:1::7/128" 128, "2001:db8:1::8/128" 48, "2001:db8:2::/48" 32, "2001:db8::/31" 0
          "::1/128" 0
          "2001:db8:1::7" 128, "2001:db9::1" 0}})

(kernel-test e5-longest-prefix-lookup
  (testing "finds the longest matching prefix and deletes exact ones"
    (doseq [[address entries] routes]
      (testing address
        (with-open [m ^Closeable (bpf/create {:type :lpm-trie :key [:prefix address] :value :u32
                                              :max-entries 8
                                              :flags #{:no-prealloc} :contents entries})]
          (is (= entries (into {} m) (bpf/snapshot m)) "prefixes come out as they went in")
          (is (= (longest address) (into {} (map (fn [k] [k (m k)])) (keys (longest address)))))
          (let [[everything wide narrow host] (keys entries)
                keys-by-walking (take 20
                                      (take-while some?
                                                  (iterate #(bpf/next-key m %) (bpf/next-key m))))]
            (is (= (sort (keys entries)) (sort keys-by-walking)))
            (testing "deleting is exact"
              (is (false? (bpf/delete! m (str (first (str/split host #"/")) "/31"))))
              (is (true? (bpf/delete! m narrow)))
              (is (= (entries wide) (m narrow)) "the next longest covers it now"))
            (testing "inserting and replacing are exact too"
              (since/needing [[:conditional :lpm-trie]]
                (is (true? (bpf/insert! m narrow 99)))
                (is (false? (bpf/insert! m narrow 98)))
                (is (false? (bpf/replace! m (str (first (str/split narrow #"/")) "/20") 97)))
                (is (= 99 (m narrow))))
              (bpf/put! m narrow 99))
            (is (= 4 (bpf/delete-all! m (conj (keys entries) (str/replace everything "/0" "/3"))))
                "the existing keys")
            (is (nil? (m host)))
            (is (nil? (m everything)))))))
    (testing "a text that is not a prefix"
      (with-open [m ^Closeable (bpf/create {:type :lpm-trie :key [:prefix :ipv4] :value :u32
                                            :max-entries 8 :flags #{:no-prealloc}})]
        (doseq [k ["10.0.0.0/33" "10.0.0/8" "::1/128" "10.0.0.0/" "" nil 7 {}]]
          (is (= :invalid-value (:bpfmap/error (error-of (bpf/put! m k 1)))) (pr-str k)))))))

;; --- a value for each CPU

(defn- stored
  "The bytes of a value as the kernel has them."
  [m k-bytes size]
  (let [value (byte-array size)]
    (is (= :ok (said (.lookup (Elements. (bpf-map/descriptor m) 4 size) k-bytes value 0))))
    (vec value)))

(def ^:private per-cpu-types [:percpu-hash :percpu-array :lru-percpu-hash])

(kernel-test e7-per-cpu-stride
  (testing "per-CPU values are padded to a stride of 8 bytes"
    (let [n (count (feature/possible-cpus))]
      (doseq [type per-cpu-types
              size [1 3 5 8 12 13]
              :let [value (mapv (fn [cpu] (bpf/->bytes (repeat size (inc cpu)))) (range n))
                    stride (* 8 (quot (+ size 7) 8))]]
        (testing [type size]
          (with-open [m ^Closeable (bpf/create {:type type :key :u32 :value-size size
                                                :max-entries 4})]
            (bpf/put! m 1 value)
            (is (= value (m 1) ((into {} m) 1)))
            (is (= (mapcat (fn [cpu] (concat (repeat size (inc cpu)) (repeat (- stride size) 0)))
                           (range n))
                   (stored m (linux/pack :u32 1) (* n stride))))))))))

(kernel-test e7-wrong-cpu-count
  (testing "rejects a value for a different number of CPUs"
    (let [n (count (feature/possible-cpus))]
      (doseq [type per-cpu-types
              write [bpf/put! bpf/insert! bpf/replace! (fn [m k v] (bpf/put-all! m {k v}))]]
        (with-open [m ^Closeable (bpf/create {:type type :key :u32 :value :u64 :max-entries 4})]
          (bpf/put! m 1 (vec (range n)))
          (doseq [v [[] (range (dec n)) (range (inc n)) (range) 7 nil {} "xy" #{1 2}]]
            (let [[error message] (in-words (error-of (write m 1 v)))]
              (is (= :invalid-value error))
              (is (str/includes? message
                                 (str "it must be a vector of " n
                                      " values, one for each possible CPU")))))
          (is (= [:value 1] (:bpfmap/path (error-of (write m 1 (assoc (vec (range n)) 1 :x)))))
              "the CPU whose value does not fit")
          (is (= (range n) (m 1))))))))

(kernel-test e7-one-cpu-or-all
  (testing "reads the value of one CPU and writes one value for all"
    (let [cpus (feature/possible-cpus)]
      (doseq [type per-cpu-types]
        (testing type
          (with-open [m ^Closeable (bpf/create {:type type :key :u32 :value :u64
                                                ;; So that none is evicted
                                                :max-entries (if (= :lru-percpu-hash type)
                                                               4096
                                                               2)})]
            (bpf/put! m 1 (vec cpus))
            (doseq [cpu cpus]
              (is (= cpu (bpf/lookup m 1 nil {:cpu cpu})))
              (is (= {1 cpu} (bpf/lookup-all m [1] {:cpu cpu})))
              (is (= cpu
                     (get (bpf/snapshot m {:cpu cpu}) 1)
                     (get (into {} (bpf/entries m {:cpu cpu})) 1)
                     (reduce-kv (fn [acc k v] (if (= 1 k) v acc)) nil (bpf/entries m {:cpu cpu})))))
            (is (= ::gone (bpf/lookup m 7 ::gone {:cpu 0})))
            (is (identical? m (bpf/put! m 1 7 {:cpus :all})))
            (is (= (map (constantly 7) cpus) (m 1)))
            (is (true? (bpf/replace! m 1 8 {:cpus :all})))
            (is (= (map (constantly 8) cpus) (m 1)))
            (is (= 2 (bpf/put-all! m {0 5, 1 6} {:cpus :all})))
            (is (= {0 (map (constantly 5) cpus), 1 (map (constantly 6) cpus)} (into {} m)))
            (doseq [[options words] [[{:cpu 9999} "Unknown CPU 9999"]
                                     [{:cpu -1} "Unknown CPU -1"]
                                     [{:cpu :all} "Unknown CPU :all"]
                                     [{:cpus 1} ":cpus must be :all, got 1"]
                                     [{:cpu 0 :cpus :all} "cannot be combined with"]]]
              (let [[error message] (in-words (error-of (bpf/put! m 1 7 options)))]
                (is (= :invalid-value error))
                (is (str/includes? message words)))))))
      (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 2})]
        (doseq [f [#(bpf/lookup m 1 nil {:cpu 0}) #(bpf/put! m 1 1 {:cpu 0})
                   #(bpf/put! m 1 1 {:cpus :all}) #(bpf/snapshot m {:cpu 0})]]
          (is (= [:invalid-value "The map is not a per-CPU map: each key has one value"]
                 (in-words (error-of (f))))))))))

(kernel-test e7-write-one-cpu-only
  (testing "writes the value of one CPU or rejects the option"
    (let [n (count (feature/possible-cpus))]
      (doseq [type per-cpu-types]
        (with-open [m ^Closeable (bpf/create {:type type :key :u32 :value :u64 :max-entries 2})]
          (bpf/put! m 1 1 {:cpus :all})
          (if (:supported (feature/element-flag :cpu))
            (do (bpf/put! m 1 9 {:cpu 0})
                (is (= (assoc (vec (repeat n 1)) 0 9) (m 1)))
                (bpf/put! m 0 8 {:cpu (dec n)})
                (is (= (assoc (vec (repeat n 0)) (dec n) 8) (m 0))
                    "a key that is new has zeros for the others"))
            (doseq [write [bpf/put! bpf/replace!]]
              (let [[error message] (in-words (error-of (write m 1 9 {:cpu 0})))]
                (is (= :not-supported error))
                (is (str/includes? message
                                   "does not write the value of one CPU alone (BPF_F_CPU), which came with Linux 7.0"))
                (is (not (str/includes? message "has no put!")))
                (is (str/includes? message "write a whole vector, or {:cpus :all}")))
              (is (= (repeat n 1) (m 1))))))))))

(kernel-test e7-replace-one-cpu
  (testing "replacing the value of one CPU does not create the key"
    (when-not (:supported (feature/element-flag :cpu))
      (with-open [m ^Closeable (bpf/create {:type :percpu-hash :key :u32 :value :u64
                                            :max-entries 2})]
        (is (= :not-supported (:bpfmap/error (error-of (bpf/replace! m 1 9 {:cpu 0})))))
        (is (= {} (into {} m)))))
    (when (:supported (feature/element-flag :cpu))
      (doseq [type [:percpu-hash :lru-percpu-hash]
              :when (false? (:supported (feature/conditional-write type :cpu)))]
        (with-open [m ^Closeable (bpf/create {:type type :key :u32 :value :u64 :max-entries 2
                                              :contents {1 (vec
                                                            (repeat (count (feature/possible-cpus))
                                                                    3))}})]
          (doseq [k [1 2]]
            (let [[error message] (in-words (error-of (bpf/replace! m k 9 {:cpu 0})))]
              (is (= :not-supported error))
              (is (str/includes? message
                                 "does not check that the key exists when it writes the value of one CPU alone (BPF_F_CPU): it would make the entry"))))
          (is (= #{[3]} (set (map distinct (vals (into {} m))))))))
      (with-open [m ^Closeable (bpf/create {:type :percpu-array :value :u64 :max-entries 1})]
        (is (true? (bpf/replace! m 0 9 {:cpu 0})) "every index of an array exists")
        (is (= 9 (bpf/lookup m 0 nil {:cpu 0})))
        (is (= :out-of-range (:bpfmap/error (error-of (bpf/replace! m 1 9 {:cpu 0})))))))))

(kernel-test e2-write-results
  (testing "every write returns what happened"
    (let [cpus (count (feature/possible-cpus))
          all (fn [n] (vec (repeat cpus n)))]
      (doseq [[type more] [[:hash nil] [:hash {:flags #{:no-prealloc}}] [:array nil]
                           [:percpu-hash nil] [:percpu-array nil] [:lru-hash {:max-entries 64}]
                           [:lru-percpu-hash {:max-entries 64}] [:rhash {:flags #{:no-prealloc}}]
                           [:lpm-trie {:key [:prefix :ipv4] :flags #{:no-prealloc}}]]
              :when (:supported (feature/map-type type))
              :let [per-cpu? (some? (some #{type} per-cpu-types))
                    array? (contains? #{:array :percpu-array} type)
                    [k other] (if (= :lpm-trie type) ["10.0.0.0/8" "10.0.0.0/9"] [0 1])]
              options (if per-cpu? [nil {:cpu 0} {:cpu (dec cpus)} {:cpus :all}] [nil])
              there? (if array? [true] [true false])
              [op write] {:insert! bpf/insert! :replace! bpf/replace! :put! bpf/put!}]
        (testing [type more options op (if there? "there" "not there")]
          ;; Room, since some kernels want more than they keep
          (with-open [m ^Closeable (bpf/create (merge {:type type :key :u32 :value :u64
                                                       :max-entries 4} more))]
            (doseq [k (cond-> [other] there? (conj k))]
              (bpf/put! m k (if per-cpu? (all 5) 5)))
            (let [before (into {} m)
                  given (if (and per-cpu? (nil? options)) (all 9) 9)
                  written (cond
                            (contains? options :cpu) (assoc (get before k (all 0)) (:cpu options) 9)
                            per-cpu? (all 9)
                            :else 9)
                  answer (try (write m k given options)
                              (catch clojure.lang.ExceptionInfo e (:bpfmap/error (ex-data e))))
                  after (into {} m)]
              (cond
                (or (true? answer) (identical? m answer))
                (do (is (= (assoc before k written) after))
                    (is (case op :insert! (not there?) :replace! there? :put! true)))

                (false? answer)
                (do (is (= before after))
                    (is (case op :insert! there? :replace! (not there?) :put! false)))

                :else
                (do (is (= before after))
                    (is (= :not-supported answer))
                    (is (or (contains? options :cpu) (= :lpm-trie type))
                        "only these are not to be had everywhere"))))))))))

(kernel-test e7-new-key-one-cpu
  (testing "a new key has zeros for the other CPUs"
    (let [cpus (feature/possible-cpus)]
      (doseq [type [:percpu-hash :lru-percpu-hash]
              cpu cpus]
        (with-open [m ^Closeable (bpf/create {:type type :key :u32
                                              :value [:struct [:n :u64] [:name [:string 5]]]
                                              :max-entries 64})]
          (is (true? (bpf/insert! m 1 {:n 9 :name "nine"} {:cpu cpu})))
          (is (= (mapv #(if (= cpu %) {:n 9 :name "nine"} {:n 0 :name ""}) cpus) (m 1)))
          (is (= 9 (:n (bpf/lookup m 1 nil {:cpu cpu}))))
          (is (false? (bpf/insert! m 1 {:n 7 :name ""} {:cpu cpu})) "it exists now")
          (is (= 9 (:n (nth (m 1) (.indexOf ^java.util.List cpus cpu)))))
          (is (= [:value :n]
                 (:bpfmap/path (error-of (bpf/insert! m 2 {:n -1 :name ""} {:cpu cpu})))))
          (is (= [1] (keys (bpf/snapshot m))))))
      (with-open [m ^Closeable (bpf/create {:type :percpu-array :value :u64 :max-entries 1})]
        (is (false? (bpf/insert! m 0 1 {:cpu 0})) "every index of an array exists")
        (is (= [(mapv (constantly 0) cpus)] (map val m)))))))

;; --- what storages hang on

(defn- storage ^Closeable [type]
  (bpf/create {:type type :value :u64 :flags #{:no-prealloc}}))

(def ^:private this-pid (.pid (ProcessHandle/current)))

;; A filter refuses the flag as kernels before 6.9 do.
(kernel-test ^{:needs [[:map-type :task-storage]]} threads-before-linux-6-9
  (testing "before Linux 6.9 opens a leading thread as its process and rejects other threads"
    (let [ready (promise)
          done (promise)
          thread (fixture/thread #(do (deliver ready (linux/call "gettid")) @done))
          worker (deref ready fixture/patience nil)]
      (try
        (linux/on-a-kernel-that-refuses
         [{:call Abi/SYS_PIDFD_OPEN :arguments {1 0200} :errno 22}]
         (fn []
           (with-open [m (storage :task-storage)
                       ^Closeable child (objects/child-process)]
             (doseq [pid [this-pid (:pid child)]]
               (is (true? (bpf/insert! m {:tid pid} 1)) "the thread that leads its process")
               (is (= 1 (m {:pid pid}) (m pid))))
             (is (= [:not-supported :EINVAL]
                    ((juxt :bpfmap/error :bpfmap/errno) (error-of (bpf/put! m {:tid worker} 1)))))
             (is (str/includes? (:message (error-of (bpf/put! m {:tid worker} 1)))
                                (str "thread " worker
                                     " is not the first thread of its process, and a pidfd of such "
                                     "a "
                                     "thread needs Linux 6.9, this is ")))
             (is (str/includes? (:message (error-of (bpf/put! m {:tid 0x7ffffff0} 1)))
                                "thread 2147483632 does not exist (any more)")))))
        (finally
          (deliver done true)
          (fixture/join thread))))))

(kernel-test e10-object-references
  (testing "an object is referenced in every supported way"
    (doseq [[type make make-other ways]
            [[:task-storage objects/this-process objects/child-process
              (fn [{:keys [fd pid]}] [pid {:pid pid} {:tid pid} {:fd fd} {:pid this-pid :fd fd}])]
             [:task-storage objects/child-process objects/child-process
              (fn [{:keys [fd pid]}] [pid {:pid pid} {:tid pid} {:fd fd} {:pid this-pid :fd fd}])]
             [:inode-storage objects/file objects/file
              (fn [{:keys [fd ^String path]}]
                [path (java.io.File. path) (.toPath (java.io.File. path)) {:fd fd}
                 {:pid this-pid :fd fd}])]
             [:cgrp-storage objects/cgroup objects/cgroup
              (fn [{:keys [fd ^String path]}]
                [path (java.io.File. path) (.toPath (java.io.File. path)) {:fd fd}
                 {:pid this-pid :fd fd}])]
             [:sk-storage objects/tcp-connection objects/tcp-listener
              (fn [{:keys [fd]}] [{:fd fd} {:pid this-pid :fd fd}])]
             [:sk-storage objects/unix-pair objects/unix-pair
              (fn [{:keys [fd]}] [{:fd fd} {:pid this-pid :fd fd}])]]
            :when (since/has? [:map-type type])]
      (testing [type make]
        (with-open [m (storage type)
                    object ^Closeable (make)
                    other ^Closeable (make-other)]
          (let [ways (ways object)
                before (fixture/settled-descriptors)]
            (doseq [[i k] (map-indexed vector ways)]
              (testing (pr-str k)
                (is (nil? (bpf/lookup m k)))
                (is (true? (bpf/insert! m k i)))
                (is (false? (bpf/insert! m k 99)))
                (is (= (repeat (count ways) i) (map m ways)) "it is the same object by every name")
                (is (true? (bpf/replace! m k (+ 10 i))))
                (is (= 1 (bpf/put-all! m [[k (+ 20 i)]])))
                (is (= {k (+ 20 i)} (bpf/lookup-all m [k])))
                (is (nil? (bpf/lookup m {:fd (:fd other)})) "and no other")
                (is (= (if (even? i) [true false] [1 0])
                       (if (even? i)
                         [(bpf/delete! m k) (bpf/delete! m k)]
                         [(bpf/delete-all! m [k]) (bpf/delete-all! m [k])])))))
            (is (= before (fixture/open-descriptors)))))))))

(kernel-test ^{:needs [[:map-type :task-storage]
                       [:kernel :pidfd-of-a-thread]]} e10-storage-of-a-thread
  (testing "a thread has its own storage"
    (with-open [m (storage :task-storage)]
      (let [tid (promise)
            go (promise)
            thread (fixture/thread #(do (deliver tid (linux/call "gettid")) @go))]
        (try
          (bpf/put! m this-pid 1)
          (bpf/put! m {:tid @tid} 2)
          (is (= [1 2] [(m this-pid) (m {:tid @tid})]))
          (is (= ::gone (bpf/lookup m @tid ::gone)) "as a process it is none, for whatever reads")
          (let [[error message] (in-words (error-of (bpf/put! m @tid 3)))]
            (is (= :not-found error))
            (is (str/includes? message (str "process " @tid)))
            (is (str/includes? message "{:tid n}")))
          (finally (deliver go true) (fixture/join thread)))))))

(kernel-test e10-vanished-objects
  (testing "an object that is gone is a missing key to reads and an error to writes"
    (let [gone-pid (with-open [child (objects/child-process)] (:pid child))
          gone-path (with-open [file (objects/file)] (:path file))
          gone-cgroup (with-open [cgroup (objects/cgroup)] (:path cgroup))]
      (doseq [[type ks
               words] [[:task-storage [gone-pid {:pid gone-pid}]
                        (str "process " gone-pid " does not exist (any more)")]
                       [:task-storage [{:tid gone-pid}]
                        (str "thread " gone-pid " does not exist (any more)")]
                       [:task-storage [{:pid gone-pid :fd 3}]
                        (str "process " gone-pid " does not exist (any more)")]
                       [:task-storage [{:pid this-pid :fd 99999}]
                        (str "descriptor 99999 of process " this-pid " does not exist")]
                       [:inode-storage [gone-path (str gone-path "/x")]
                        (str "failed with ENOENT: " gone-path)]
                       [:cgrp-storage [gone-cgroup] (str gone-cgroup " does not exist (any more)")]]
              :when (since/has? [:map-type type])
              k ks]
        (testing [type k]
          (with-open [m (storage type)]
            (is (= [nil ::gone false false]
                   [(m k) (bpf/lookup m k ::gone) (bpf/has-key? m k) (bpf/delete! m k)]))
            (is (= [{} 0] [(bpf/lookup-all m [k]) (bpf/delete-all! m [k])]))
            (doseq [write [bpf/put! bpf/insert! bpf/replace! (fn [m k v] (bpf/put-all! m [[k v]]))]]
              (let [[error message] (in-words (error-of (write m k 1)))]
                (is (= :not-found error))
                (is (str/includes? message words))))))))))

(kernel-test e10-cgroup-storage-counts
  (testing "reads and replaces the counters in the storage of a cgroup"
    (doseq [[type key-size value] [[:cgroup-storage 8 identity] [:cgroup-storage 16 identity]
                                   [:percpu-cgroup-storage 8 #(apply + %)]
                                   [:percpu-cgroup-storage 16 #(apply + %)]]]
      (testing [type key-size]
        (with-open [m ^Closeable (bpf/create {:type type :key-size key-size :value :u64})
                    cgroup (objects/cgroup)
                    program (programs/storage-counter m)]
          (let [k (if (= 8 key-size)
                    (:id cgroup)
                    {:cgroup-id (:id cgroup)
                     :attach-type (linux/constant "BPF_CGROUP_INET_EGRESS")})]
            (is (nil? (m k)))
            (with-open [_ (programs/attach-to-cgroup program cgroup)]
              (is (= 0 (value (m k))))
              (dotimes [_ 2] (programs/send-from cgroup))
              (is (= 2 (value (m k)) (value ((into {} m) k))))
              (is (= [k] (keys (bpf/snapshot m))))
              (if (= identity value)
                (is (true? (bpf/replace! m k 40)))
                (is (true? (bpf/replace! m k 40 {:cpus :all}))))
              (programs/send-from cgroup)
              (is (= (inc (if (= identity value) 40 (* 40 (count (feature/possible-cpus)))))
                     (value (m k)))))))))))

(kernel-test ^{:needs [[:operation :stack-trace :drain!]]} e10-stack-actual-length
  (testing "a stack has its actual length"
    (with-open [m ^Closeable (bpf/create {:type :stack-trace :max-entries 64})]
      (let [ids (programs/record-stacks m)]
        (is (= 1016 (:value-size (bpf/info m))))
        (is (seq ids))
        (doseq [id ids :let [stack (m id)]]
          (is (< 1 (count stack) 128))
          (is (not-any? zero? stack)))
        (is (= (set ids) (set (keys (into {} m)))))
        (is (= (select-keys (into {} m) ids) (bpf/drain! m)))
        (is (= {} (into {} m)))))))

(kernel-test closed-connection
  (testing "a closed connection is removed from the map"
    (with-open [m ^Closeable (bpf/create {:type :sockmap :max-entries 4})]
      (with-open [connection (objects/tcp-connection)]
        (bpf/put! m 1 {:fd (:fd connection)})
        (bpf/put! m 2 {:pid this-pid :fd (:server connection)})
        (is (= #{1 2} (set (keys (into {} m)))))
        (is (apply not= (vals (into {} m))) "each end has a cookie of its own"))
      (is (= {} (into {} m))))))

(kernel-test devices-and-cpus
  (testing "device and CPU entries return a reference to their program"
    (with-open [m ^Closeable (bpf/create {:type :cpumap :value-size 8})]
      (bpf/put! m 0 {:qsize 64})
      (is (= {0 {:qsize 64 :program nil}} (into {} m)))
      (bpf/put! m 0 (m 0))
      (is (= {:qsize 64 :program nil} (m 0)) "a value that was read can be written")
      (is (= [:invalid-value :incompatible]
             [(:bpfmap/error (error-of (bpf/put! m 0 {:qsize 64 :program 7})))
              (with-open [p ^Closeable (programs/tail-target 1)]
                (:bpfmap/error (error-of (bpf/put! m 0 {:qsize 64 :program p}))))])))))

(kernel-test ^{:needs [[:map-type :task-storage]]} no-descriptor-left-open
  (testing "element operations leave no descriptor open"
    (let [once (fn []
                 (with-open [m (storage :task-storage)
                             child (objects/child-process)]
                   (bpf/put! m (:pid child) 1)
                   (bpf/put! m {:pid this-pid :fd (:fd child)} 1)
                   (m {:tid (:pid child)})
                   (bpf/delete! m 0x7ffffffe)
                   (error-of (bpf/put! m {:pid (:pid child) :fd 9999} 1))
                   (error-of (bpf/put! m (:pid child) :x))
                   (error-of (bpf/put-all! m [[(:pid child) 1] [this-pid 1] [0x7ffffffe 1]]))))]
      (once)
      (let [before (fixture/settled-descriptors)]
        (dotimes [_ 5] (once))
        (is (= before (fixture/open-descriptors)))))))

(kernel-test ^{:needs [[:map-type :task-storage]]} storage-deleted-meanwhile
  (testing "a storage can be written while the last one of its owner is deleted"
    ;; The kernel answers EAGAIN then, in about 1 of 10,000 writes.
    (with-open [a ^Closeable (bpf/create {:type :task-storage :value :u64 :flags #{:no-prealloc}})
                b ^Closeable (bpf/create {:type :task-storage :value :u64 :flags #{:no-prealloc}})]
      (let [owner {:pid (.pid (ProcessHandle/current))}]
        (is (= [2000 2000 2000 2000]
               (fixture/in-threads
                4
                (fn [i]
                  (let [m ([a b] (rem (long i) 2))]
                    (count (for [_ (range 2000)]
                             (do (bpf/put! m owner 1)
                                 (bpf/delete! m owner)))))))))))))
