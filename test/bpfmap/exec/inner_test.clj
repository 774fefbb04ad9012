(ns bpfmap.exec.inner-test
  "Inner maps: their entries below the outer key, and the outer maps of a map."
  (:require [bpfmap.cli.calling :refer [bpfmap edn-of id-of json-of refused]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.fixture :refer [kernel-test]]
            [bpfmap.impl.host.outer-maps :as outer-maps]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private inner
  {:type :hash :key :u32 :value [:struct [:n :u64] [:m :u32]] :max-entries 16})

(defn- with-tenants
  "Calls f with an open map of maps: two inner maps with entries, and one without."
  [f]
  (with-open [outer ^Closeable (bpf/create {:name "tenants_t" :type :hash-of-maps :key [:string 8]
                                            :max-entries 4 :inner-map inner})]
    (doseq [[tenant entries] {"blue" {1 {:n 1 :m 2}, 2 {:n 10 :m 2}} "red" {7 {:n 5 :m 5}}
                              "none" {}}]
      (with-open [m ^Closeable (bpf/create (assoc inner :name (str "t_" tenant)
                                                  :contents entries))]
        (bpf/put! outer tenant m)))
    (f outer)))

(defn- sorted [rows] (sort-by (juxt :outer :key) rows))

(def ^:private all
  [{:outer "blue" :key 1 :value {:n 1 :m 2}} {:outer "blue" :key 2 :value {:n 10 :m 2}}
   {:outer "red" :key 7 :value {:n 5 :m 5}}])

(kernel-test entries-of-inner-maps
  (with-tenants
   (fn [outer]
     (let [id (id-of outer)
           dump #(->> (merge {:ref id :inner true :outer-type [:string 8]} %)
                      exec/dump
                      (into [])
                      sorted)
           words ["dump" id "--inner" "--outer-type" "[string 8]"]]
       (is (= all (dump {}) (dump {:ref outer}) (dump {:stream true})
              (sorted (apply edn-of words))))
       (is (= (take 2 all) (dump {:where "outer=blue"})))
       (is (= [(second all)] (dump {:where "n>5"})))
       (is (= 2 (:count (exec/dump {:ref id :inner true :count true :where "n>2"}))))
       (is (= [{:outer "red" :key 7}] (dump {:keys true :where "outer=red"})))
       (is (= [{"outer" "red" "key" 7 "value" {"n" 5 "m" 5}}]
              (apply json-of (conj words "--where" "outer=red"))))
       (is (= ["OUTER  KEY   n  m" "blue     2  10  2" "red      7   5  5"]
              (str/split-lines (:out (apply bpfmap (conj words "--where" "n>2" "--sort" "key")))))
           "sorted by key")
       (is (= ["outer,key,value.n,value.m" "red,7,5,5"]
              (str/split-lines (:out (apply bpfmap (conj words "--where" "outer=red" "--csv"))))))
       (testing "types and hints are for the inner maps"
         (is (= #{16777216 33554432 117440512}
                (set (map :key (exec/dump {:ref id :inner true :key-type :u32be})))))
         (is (= ["0x1" "0xa" "0x5"]
                (map (comp :n :value) (dump {:as {:n :hex}})))))
       (testing "the key of the outer map has no type of its own"
         (is (= "62 6c 75 65 00 00 00 00"
                (str (:outer (first (sort-by (comp str :outer)
                                             (exec/dump {:ref id :inner true}))))))))
       (testing "an array of maps has empty places"
         (with-open [rows ^Closeable (bpf/create {:type :array-of-maps :max-entries 4
                                                  :inner-map inner})
                     m ^Closeable (bpf/create (assoc inner :contents {3 {:n 3 :m 3}}))]
           (bpf/put! rows 2 m)
           (is (= [{:outer 2 :key 3 :value {:n 3 :m 3}}]
                  (exec/dump {:ref rows :inner true :outer-type :u32})))))
       (testing "a map of maps without inner maps has no entries"
         (with-open [none ^Closeable (bpf/create {:type :hash-of-maps :key :u32 :max-entries 4
                                                  :inner-map inner})]
           (is (= [] (exec/dump {:ref none :inner true})))))))))

(kernel-test refused-inner
  (with-open [m ^Closeable (bpf/create inner)]
    (is (= [2 (str "bpfmap: --inner requires a map of maps: map " (id-of m)
                   " is of type hash; see `bpfmap help dump`")]
           (refused "dump" (id-of m) "--inner")))
    (is (= [2 "bpfmap: --outer-type requires --inner; see `bpfmap help dump`"]
           (refused "dump" (id-of m) "--outer-type" "u32"))))
  (with-open [rings ^Closeable (bpf/create {:type :array-of-maps :max-entries 1
                                            :inner-map {:type :ringbuf :max-entries 4096}})
              ring ^Closeable (bpf/create {:type :ringbuf :max-entries 4096})]
    (bpf/put! rings 0 ring)
    (let [[exit message] (refused "dump" (id-of rings) "--inner")]
      (is (= 1 exit))
      (is (str/includes? message (str "The entries of map " (id-of ring)))))))

(kernel-test outer-maps-of-a-map
  (with-tenants
   (fn [outer]
     (let [holder {:id (id-of outer) :name "tenants_t" :type :hash-of-maps}
           inner-ids (sort (map (comp :map-id val) outer))]
       (is (= 3 (count inner-ids)))
       (is (= (repeat 3 [holder]) (map (outer-maps/outer-maps) inner-ids)))
       (testing "show has them, and list if they are named"
         (doseq [id inner-ids]
           (is (= [holder] (:outer (exec/show {:ref id})))))
         (is (re-find (re-pattern (str "(?m)^outer +tenants_t\\[" (:id holder) "\\]$"))
                      (:out (bpfmap "show" (first inner-ids)))))
         (is (= inner-ids (map :id (exec/list {:where [:= :outer.id (:id holder)]
                                               :columns "id"}))))
         (is (= {:id (first inner-ids) :outer [holder]}
                (first (exec/list {:columns "id,outer" :where [:= :id (first inner-ids)]}))))
         (is (not (contains? (first (exec/list {:where [:= :id (first inner-ids)]})) :outer)))
         (is (not (contains? (exec/show {:ref outer}) :outer))))))))
