(ns bpfmap.impl.map.locked-test
  "Values with a spin lock: read and written whole under it, one or many at a time."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.objects :as objects]
            [bpfmap.programs :as programs]
            [bpfmap.since :as since]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)
           (java.util.concurrent.atomic AtomicBoolean)))

(set! *warn-on-reflection* true)

(def ^:private words
  "How many words a value has: copying so many takes long enough to be disturbed."
  500)

(def ^:private locked [:struct [:before :u32] [:lock :spin-lock] [:all [:array :u64 words]]])

(defn- value-of [n] {:before (mod n 1000) :all (vec (repeat words n))})

(defn- whole? [{:keys [before all]}]
  (and (apply = all) (= before (mod (first all) 1000))))

(def ^:private held
  "With true."
  {:lock true})

(def ^:private forms
  "The types whose values may have a lock: a spec, and a function that calls f with a map and two
  of its keys."
  (let [two (fn [spec ks] (fn [f] (with-open [m ^Closeable (bpf/create spec)] (f m ks))))
        storage (fn [type make ks]
                  (fn [f]
                    (with-open
                     [m ^Closeable (bpf/create {:type type :value locked :flags #{:no-prealloc}})
                      a ^Closeable (make)
                      b ^Closeable (make)]
                      (f m (mapv ks [a b])))))]
    {:hash (two {:type :hash :key :u32 :value locked :max-entries 4} [7 8])
     :rhash (two {:type :rhash :key :u32 :value locked :max-entries 4 :flags #{:no-prealloc}} [7 8])
     :array (two {:type :array :value locked :max-entries 2} [0 1])
     :sk-storage (storage :sk-storage objects/tcp-connection #(select-keys % [:fd]))
     :inode-storage (storage :inode-storage objects/file :path)
     :task-storage (storage :task-storage objects/child-process :pid)
     :cgrp-storage (storage :cgrp-storage objects/cgroup :path)
     :cgroup-storage (fn [f]
                       (with-open
                        [m ^Closeable (bpf/create {:type :cgroup-storage :key-size 8
                                                   :value (into [:struct [:n :u64]]
                                                                (rest locked))})
                         program (programs/storage-counter m)]
                         (let [cgroups (vec (repeatedly 2 objects/cgroup))
                               attachments (mapv #(programs/attach-to-cgroup program %) cgroups)]
                           (try
                             (f m (mapv :id cgroups))
                             (finally (run! (fn [^Closeable x] (.close x))
                                            (concat attachments cgroups)))))))}))

(defn- putting
  "The value as the type has it, and the operation that writes it. Programs count in the first
  member of a cgroup storage."
  [type]
  (if (= :cgroup-storage type)
    [(fn [n] (assoc (value-of n) :n n)) bpf/replace!]
    [value-of bpf/put!]))

(kernel-test e6-every-lock-type
  (testing "every type with locks reads and writes under the lock"
    (is (= (set (keys forms))
           (set (for [[type {lock? :lock}] map-types/types :when lock?] type))))
    (doseq [[type with-map] forms :when (since/has? [:map-type type])]
      (testing type
        (with-map
          (fn [m [k k2]]
            (let [[value put!] (putting type)
                  {:keys [ops]} (map-types/types type)]
              (put! m k (value 5) held)
              (is (= (value 5) (bpf/lookup m k nil held) (m k)))
              (is (= {k (value 5)} (bpf/lookup-all m [k] held)))
              (is (true? (bpf/replace! m k (value 6) held)))
              (is (= (value 6) (bpf/lookup m k nil held)))
              (when (ops :put!)
                (is (= 2 (bpf/put-all! m [[k (value 7)] [k2 (value 8)]] held)))
                (is (= [(value 7) (value 8)] (map #(bpf/lookup m % nil held) [k k2]))))
              (when (ops :reduce)
                (is (= (value (if (ops :put!) 7 6)) (get (bpf/snapshot m held) k)
                       (get (into {} (bpf/entries m held)) k))))
              (testing "and the lock is not in the value"
                (is (not (re-find #":lock" (pr-str (m k)))))
                (is (= [:invalid-value :lock]
                       ((juxt :bpfmap/error (comp last :bpfmap/path))
                        (error-of (put! m k (assoc (value 1) :lock 0))))))))))))))

(kernel-test e6-lock-in-a-struct
  (testing "a lock in a struct of the value works, or the error names the release that finds it"
    (with-open [m ^Closeable (bpf/create {:type :array :value [:struct [:n :u64] [:inside locked]]
                                          :max-entries 1})]
      (let [value (fn [n] {:n n :inside (value-of n)})]
        (bpf/put! m 0 (value 1))
        (if (since/here? [:kernel :locks-in-structs])
          (do (bpf/put! m 0 (value 2) held)
              (is (= (value 2) (bpf/lookup m 0 nil held))))
          (doseq [f [#(bpf/put! m 0 (value 2) held) #(bpf/replace! m 0 (value 2) held)
                     #(bpf/lookup m 0 nil held) #(bpf/put-all! m {0 (value 2)} held)
                     #(bpf/lookup-all m [0] held) #(bpf/snapshot m held)]]
            (let [{:keys [message] :bpfmap/keys [error]} (error-of (f))]
              (is (= :not-supported error) message)
              (is (str/includes? message (str "the lock is in a struct of the value, where kernels "
                                              "find it from Linux 6.11 on, this is "
                                              (call/kernel-release)))))
            (is (= (value 1) (m 0)) "nothing was written")))))))

(kernel-test e6-lock-word-reads-zero
  (testing "the lock word reads as zero in raw bytes"
    (with-open [m ^Closeable (bpf/create {:type :array :value locked :max-entries 1})]
      (bpf/put! m 0 (value-of 0x01010101) held)
      (with-open [raw ^Closeable (bpf/open (:id (bpf/info m))
                                           {:value [:bytes (:value-size (bpf/spec m))]})]
        (is (= [0 0 0 0] (map #(nth (raw 0) %) (range 4 8))))))))

(defn- while-writing
  "Calls f while two threads write values under the lock to the keys of a map."
  [m ks value write! f]
  (let [over (AtomicBoolean.)
        writers (mapv (fn [i]
                        (fixture/thread #(loop [n (long i)]
                                           (when-not (.get over)
                                             (write! m (nth ks (mod n (count ks))) (value n))
                                             (recur (+ n 2))))))
                      [1 2])]
    (try
      (f)
      (finally
        (.set over true)
        (run! fixture/join writers)))))

(kernel-test e6-whole-locked-values
  (testing "a value read under the lock is never half-written"
    (doseq [[type with-map] forms :when (since/has? [:map-type type])]
      (testing type
        (with-map
          (fn [m ks]
            (let [[value put!] (putting type)]
              ;; So that it is there, and written in place from now on
              (doseq [k ks] (put! m k (value 0) held))
              (while-writing m ks value #(bpf/replace! %1 %2 %3 held)
                             (fn []
                               (dotimes [i (fixture/trials 1000)]
                                 (is (whole? (bpf/lookup m (nth ks (mod i 2)) nil held)))))))))))))

(kernel-test e6-locked-batches
  (testing "reads and writes many values under the lock"
    (doseq [spec [{:type :hash :key :u32 :value locked :max-entries 64}
                  {:type :array :value locked :max-entries 64}]]
      (testing spec
        (with-open [m ^Closeable (bpf/create spec)]
          (let [ks (vec (range 64))
                all (fn [n] (zipmap ks (repeat (value-of n))))]
            (is (= 64 (bpf/put-all! m (all 0) held)))
            (while-writing m ks value-of (fn [m _ v] (bpf/put-all! m (zipmap ks (repeat v)) held))
                           (fn []
                             (dotimes [_ (fixture/trials 60)]
                               (doseq [read [#(bpf/snapshot m held) #(into {} (bpf/entries m held))
                                             #(bpf/lookup-all m ks held)
                                             #(bpf-map/reduce-entries
                                               m assoc {} {:reader :keys :flags 4})]
                                       :let [entries (read)]]
                                 (is (= 64 (count entries)))
                                 (is (every? whole? (vals entries)))))))
            (when (= :hash (:type spec))
              (let [taken (if (since/has? [:operation :hash :take!])
                            (bpf/take! m 0 nil held)
                            (let [value (m 0)] (bpf/delete! m 0) value))
                    drained (bpf/drain! m held)]
                (is (every? whole? (cons taken (vals drained))))
                (is (= 63 (count drained)))
                (is (nil? (seq m))))
              (bpf/put-all! m (all 3) held)
              (since/needing [[:operation :hash :take!]]
                (is (= (all 3) (bpf/drain-into! m conj {} held)))))))))))

(kernel-test e6-lock-flag-without-lock
  (testing "rejects the lock flag if the value has no lock"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 4})
                q ^Closeable (bpf/create {:type :percpu-hash :key :u32 :value :u64 :max-entries 4})]
      (doseq [[map
               hint] [[m
                       "open the map with a value type that has a :spin-lock"]
                      [q "a map of type :percpu-hash has no spin locks"]]
              ask [#(bpf/lookup map 1 nil held) #(bpf/put! map 1 1 held) #(bpf/insert! map 1 1 held)
                   #(bpf/replace! map 1 1 held)
                   #(bpf/take! map 1 nil held) #(bpf/put-all! map {1 1} held)
                   #(bpf/lookup-all map [1] held) #(bpf/entries map held)
                   #(bpf/snapshot map held) #(bpf/drain! map held)
                   #(bpf/drain-into! map conj {} held)]]
        (let [{:keys [message] :bpfmap/keys [error path]} (error-of (ask))]
          (is (= [:invalid-value [:lock]] [error path]))
          (is (str/includes? message "Values of this map have no lock: :u64"))
          (is (str/includes? message hint))))
      (is (str/includes? (:message (error-of (bpf/lookup m 1 nil {:lock 1})))
                         ":lock must be true or false, got 1"))
      (is (nil? (bpf/lookup m 1 nil {:lock false}))))))

(kernel-test ^{:needs [[:kernel :locked-maps-are-not-frozen]]} e6-freeze-with-locks
  (testing "a map with locks cannot be frozen"
    (with-open [m ^Closeable (bpf/create {:type :array :value locked :max-entries 1})]
      (let [{:keys [message] :bpfmap/keys [error op]} (error-of (bpf/freeze! m))]
        (is (= [:not-supported :freeze!] [error op]))
        (is (str/includes? message
                           "values have fields owned by the kernel, such as spin locks"))))))
