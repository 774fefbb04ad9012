(ns bpfmap.impl.host.pressure-test
  "How full maps are: the kernel's counts against a walk over the entries."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.host.iterator :as iterator]
            [bpfmap.impl.host.pressure :as pressure]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.batch-ops :as batch-ops]
            [bpfmap.since :as since]
            [clojure.test :refer [deftest is testing use-fixtures]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

;; An emulated machine takes longer to read a map than a list waits.
(use-fixtures :each
  (fn [f]
    (if (= 1 fixture/slowness)
      (f)
      (with-redefs [pressure/reading-time fixture/patience]
        (f)))))

(def ^:private inner {:type :array :key :u32 :value :u64 :max-entries 1})

(defn- hash-like
  "Specs of all types that the kernel counts, each with a value."
  []
  (let [cpus (vec (repeat (count (call/possible-cpus)) 1))
        spec {:name "t_pressure" :key :u32 :value :u64 :max-entries 600}]
    (for [[type flags value] [[:hash #{} 1]
                              [:hash #{:no-prealloc} 1]
                              [:percpu-hash #{} cpus]
                              [:percpu-hash #{:no-prealloc} cpus]
                              [:lru-hash #{} 1]
                              [:lru-hash #{:no-common-lru} 1]
                              [:lru-percpu-hash #{} cpus]
                              [:hash-of-maps #{} nil]]]
      [(cond-> (assoc spec :type type :flags flags)
         (= :hash-of-maps type) (-> (dissoc :value) (assoc :inner-map inner)))
       value])))

(defn- row-of [m rows]
  (let [{:keys [id]} (bpf/info m)]
    (first (filter #(= id (:id %)) rows))))

(defn- counted
  "The entries of a map in three lists that count them."
  [m]
  (map #(:entries (row-of m %))
       [(host/pressure)
        (exec/list {:columns [:id :entries :full]})
        (exec/list {:columns [:id :entries] :count true})]))

(kernel-test l6-counts-equal-a-walk
  (testing "the number of entries of every hash-like type at rest equals a walk"
    (with-open [held ^Closeable (bpf/create inner)]
      (doseq [[spec value] (hash-like)
              :let [value (or value held)
                    evicts (:evicts (map-types/types (:type spec)))]]
        (testing (pr-str (:type spec) (:flags spec))
          (with-open [m ^Closeable (bpf/create spec)]
            (doseq [change [(fn [])
                            #(bpf/put-all! m (for [i (range 500)] [i value]))
                            #(bpf/delete-all! m (range 0 500 3))
                            #(bpf/put-all! m (for [i (range (if evicts 3000 600))] [i value]))]]
              (change)
              (let [n (reduce (fn [n _] (inc (long n))) 0 m)]
                (when (since/has? [:kernel :counts-of-elements])
                  (is (= n (get (pressure/kernel-counts) (:id (bpf/info m)))) "by the kernel")
                  (is (= [n n n] (counted m))))
                (with-redefs [pressure/kernel-counts (constantly nil)]
                  (is (= [n n n] (counted m)) "by reading the map"))))))))))

(kernel-test l6-types-without-counts
  (testing "maps that the kernel does not count are read, and arrays are never full"
    (with-open [trie ^Closeable (bpf/create {:type :lpm-trie :key [:prefix :ipv4] :value :u32
                                             :max-entries 8 :flags #{:no-prealloc}
                                             :contents {"10.0.0.0/8" 1, "10.1.0.0/16" 2}})
                array ^Closeable (bpf/create {:type :array :value :u32 :max-entries 8})
                queue ^Closeable (bpf/create {:type :queue :value :u32 :max-entries 8})]
      (let [rows (host/pressure)]
        (is (= {:type :lpm-trie :entries 2 :max-entries 8 :full 25.0}
               (select-keys (row-of trie rows) [:type :entries :max-entries :full])))
        (is (nil? (row-of array rows)))
        (is (nil? (row-of queue rows))))
      (is (= [8 nil] ((juxt :entries :full) (row-of array (exec/list {:sort "full"}))))
          "an array in a list"))))

(kernel-test l6-list-and-show-full
  (testing "list selects and sorts by FULL, and counts large maps only then"
    (with-open [large ^Closeable (bpf/create {:name "t_full" :type :hash :key :u32
                                              :value [:bytes 4096] :max-entries 2000
                                              :flags #{:no-prealloc}})
                small ^Closeable (bpf/create {:name "t_full" :type :lru-hash :key :u32 :value :u32
                                              :max-entries 64})]
      (bpf/put-all! large (for [i (range 1950)] [i (byte-array 4096)]))
      (bpf/put! small 1 1)
      (is (= [nil nil] ((juxt :entries :full) (row-of large (exec/list {:where "name=t_full"})))))
      (is (= [1 1.6] ((juxt :entries :full) (row-of small (exec/list {:where "name=t_full"})))))
      (is (= [97.5 1.6] (map :full (exec/list {:where "name=t_full" :sort "-full"}))))
      (is (= [(:id (bpf/info large))]
             (map :id (exec/list {:where ["name=t_full" "full>90"]}))))
      (is (= [{:entries 1950 :full 97.5}]
             (exec/list {:where ["name=t_full" "full>90"] :columns [:entries :full]})))
      (is (= [1950 97.5] ((juxt :entries :full) (exec/show {:ref large}))))
      (is (= [1 1.6] ((juxt :entries :full) (exec/show {:ref small})))))))

(kernel-test l6-bound-in-time
  (testing "counting by reading ends at a deadline without a number"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u32 :max-entries 8
                                          :contents {1 1}})]
      (is (= 1 (batch-ops/count-entries m (pressure/deadline 10000))))
      (is (nil? (batch-ops/count-entries m (pressure/deadline -1)))))))

(deftest full-in-percent
  (testing "a share of the maximum, to a tenth"
    (is (= [97.7 0.0 100.0 0.1]
           (map #(pressure/full {:type :hash :max-entries 1024} %) [1000 0 1024 1])))
    (is (= [nil nil nil]
           [(pressure/full {:type :hash :max-entries 1024} nil)
            (pressure/full {:type :array :max-entries 1024} 1024)
            (pressure/full {:type :task-storage :max-entries 0} 3)]))))

(kernel-test l6-missing-in-the-kernel
  (testing "what this kernel does not have is an error that names it"
    (is (= [:not-supported "The kernel has no field nope in struct bpf_map"]
           (let [{:keys [message] :as e} (error-of (iterator/offset "bpf_map" "nope"))]
             [(:bpfmap/error e) (first (re-find #"^(The kernel has no field nope in struct bpf_map)"
                                                message))])))
    (is (= :not-supported
           (:bpfmap/error (error-of (iterator/reduce-records
                                     {:kind "nope" :insns [] :type :u64} conj [])))))))
