(ns bpfmap.impl.host.local-storage-test
  "Local storages of tasks, cgroups and sockets, listed by iterators."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.links :as links]
            [bpfmap.linux :as linux]
            [bpfmap.objects :as objects]
            [bpfmap.since :as since]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(def ^:private spec {:name "t_storage" :key :u32 :value :u64 :flags #{:no-prealloc}})

(def ^:private this-pid (.pid (ProcessHandle/current)))

(kernel-test ^{:needs [[:map-type :task-storage]]} l7-task-storage
  (testing "values of tasks, by thread id"
    (with-open [m ^Closeable (bpf/create (assoc spec :type :task-storage
                                                :value [:struct [:started :u64] [:n :u32]]))
                child (objects/child-process)]
      (is (= [] (host/local-storage m)))
      (bpf/put! m this-pid {:started 7 :n 8})
      (bpf/put! m (:pid child) {:started 9 :n 10})
      (let [expected {this-pid {:started 7 :n 8}, (:pid child) {:started 9 :n 10}}]
        (is (= expected (into {} (host/local-storage m))))
        (is (= expected (into {} (map (juxt :key :value)) (exec/dump {:ref m}))))
        (is (= [{:key this-pid}] (exec/dump {:ref m :keys true :where "started<9"}))))
      (when (since/has? [:kernel :pidfd-of-a-thread])
        (let [tid (linux/call "gettid")]
          (bpf/put! m {:tid tid} {:started 11 :n 12})
          (is (= {:started 11 :n 12} (get (into {} (host/local-storage m)) tid)))))
      (bpf/delete! m (:pid child))
      (is (not (contains? (into {} (host/local-storage m)) (:pid child)))))))

(kernel-test ^{:needs [[:map-type :cgrp-storage]]} l7-cgroup-storage
  (testing "values of cgroups, by the id of the cgroup"
    (with-open [m ^Closeable (bpf/create (assoc spec :type :cgrp-storage))
                a (objects/cgroup)
                b (objects/cgroup)]
      (bpf/put! m (:path a) 18446744073709551615)
      (bpf/put! m (:path b) 2)
      (is (= {(:id a) 18446744073709551615, (:id b) 2} (into {} (host/local-storage m))))
      (is (= #{(:id a) (:id b)} (set (map :key (exec/dump {:ref m})))))
      (testing "the number is shown as a path"
        (is (= #{(.getName (io/file (:path a))) (.getName (io/file (:path b)))}
               (into #{} (map #(.getName (io/file (:key %)))) (exec/dump {:ref m :as "key=cgroup"}))))))))

(kernel-test l7-socket-storage
  (testing "values of sockets, by the cookie of the socket"
    (with-open [m ^Closeable (bpf/create (assoc spec :type :sk-storage))
                a (objects/udp-socket)
                b (objects/udp-socket)]
      (bpf/put! m {:fd (:fd a)} 1)
      (bpf/put! m {:fd (:fd b)} 2)
      (cond
        (not (since/here? [:kernel :cookies-in-tracing]))
        (let [{:keys [message] :bpfmap/keys [error]} (error-of (host/local-storage m))]
          (is (= :not-supported error))
          (is (str/includes? message "entries of socket storages need Linux 5.12, this is ")))

        (links/map-iterators?)
        (let [entries (host/local-storage m)]
          (is (= [1 2] (sort (map second entries))))
          (is (= 2 (count (set (map first entries)))))
          (is (every? pos? (map first entries)))
          (is (= (set entries) (set (map (juxt :key :value) (exec/dump {:ref m})))) "again"))
        :else
        (is (= :not-supported (:bpfmap/error (error-of (host/local-storage m)))))))))

(kernel-test l7-other-maps
  (testing "other maps are rejected"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u32 :max-entries 1})]
      (doseq [x [m 7 nil]]
        (let [{:keys [message] :as e} (error-of (host/local-storage x))]
          (is (= :invalid-value (:bpfmap/error e)))
          (is (str/includes? message "must be an open local storage of tasks, cgroups or sockets")))))))
