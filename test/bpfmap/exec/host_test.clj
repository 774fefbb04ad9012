(ns bpfmap.exec.host-test
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec.host :as exec.host]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn- listed-entries
  "The entries of a map in `list`, with all columns and with some."
  [m]
  (let [{:keys [id]} (bpf/info m)]
    (for [columns [nil [["id"] ["entries"]]]]
      (:entries (first (filter #(= id (:id %)) (exec.host/list-maps {:columns columns})))))))

(kernel-test list-counts-entries
  (let [spec {:name "t_listed" :type :hash :key :u32 :value :u64 :max-entries 64}]
    (doseq [[n changes key-of value-of]
            [[0 {}]
             [3 {}]
             [64 {}]
             [9000 {:max-entries 12000}] ; more than one call returns
             [3 {:type :lru-hash}]
             [3 {:type :percpu-hash :value :u16}
              identity #(vec (repeat (count (call/possible-cpus)) %))]
             [3 {:key [:array :u8 300] :value [:array :u8 4000]}
              #(vec (repeat 300 %)) #(vec (repeat 4000 %))]
             [3 {:type :lpm-trie :key [:prefix :ipv4] :flags #{:no-prealloc}}
              #(str "10.0.0." % "/32")]]]
      (testing (pr-str n changes)
        (with-open [m ^Closeable (bpf/create (merge spec changes))]
          (bpf/put-all! m (for [i (range n)]
                            [((or key-of identity) i) ((or value-of identity) i)]))
          (is (= [n n] (listed-entries m))))))
    (with-open [array ^Closeable (bpf/create (assoc spec :type :array))
                queue ^Closeable (bpf/create {:type :queue :value :u32 :max-entries 4})]
      (bpf/push! queue 1)
      (is (= [64 64] (listed-entries array)))
      (is (= [nil nil] (listed-entries queue)) "cannot be counted"))))

(kernel-test list-has-memory-and-holders
  (let [spec {:type :hash :key :u32 :value :u64 :max-entries 64}
        pin (fixture/new-pin)
        row (fn [id options] (first (filter #(= id (:id %)) (exec.host/list-maps options))))
        this (.pid (java.lang.ProcessHandle/current))]
    (with-open [held ^Closeable (bpf/create (assoc spec :freeze true))]
      (let [pinned (with-open [m ^Closeable (bpf/create spec)] (bpf/info (bpf/pin! m pin)))
            held (bpf/info held)]
        (doseq [[pids info] [[[this] held] [[] pinned]]]
          (testing (pr-str pids)
            ;; The list opens each map meanwhile, which does not make this process a holder.
            (dotimes [_ 5]
              (let [found (row (:id info) {})]
                (is (= (dissoc info :key :value :types) (select-keys found (keys info))))
                (is (= pids (map :pid (:held found))))))
            (testing "with some columns"
              (is (= (select-keys info [:memlock :id])
                     (row (:id info) {:columns [["memlock"] ["id"]]}))))))
        (with-open [m ^Closeable (bpf/open pin)]
          (bpf/unpin! m))))))
