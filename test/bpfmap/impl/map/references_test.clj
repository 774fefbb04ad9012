(ns ^:volume bpfmap.impl.map.references-test
  "Maps that store other objects: references that are written and read."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of eventually kernel-test]]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.prog :as prog]
            [bpfmap.programs :as programs]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(def ^:private inner {:name "t_inner" :type :array :key :u32 :value :u64 :max-entries 1})

(def ^:private outers
  [{:type :array-of-maps :max-entries 600 :inner-map inner}
   {:type :hash-of-maps :key :u32 :max-entries 600 :inner-map inner}])

(defn- inner-map
  "A map to be held, with a number in it."
  ^Closeable [n]
  (bpf/create (assoc inner :contents {0 n})))

(defn- number-in [reference]
  (with-open [m ^Closeable (bpf/open reference)] (m 0)))

(def ^:private this-pid (.pid (ProcessHandle/current)))

(def ^:private in-words "The kind of an error and its message." (juxt :bpfmap/error :message))

;; --- maps of maps

(kernel-test e8-inner-map-references
  (testing "stores an open map and returns a reference that opens it"
    (doseq [spec outers]
      (testing (:type spec)
        (with-open [m ^Closeable (bpf/create spec)
                    a (inner-map 41)
                    b (inner-map 42)]
          (let [id (:id (bpf/info a))
                before (fixture/settled-descriptors)]
            (is (identical? m (bpf/put! m 3 a)))
            (is (= {:map-id id} (m 3) (get m 3) (bpf/lookup m 3)))
            (is (= {3 {:map-id id}} (into {} m) (bpf/snapshot m) (bpf/lookup-all m [3 4]))
                "empty slots are passed over")
            (is (= 1 (bpf/count-entries m)))
            (with-open [again ^Closeable (bpf/open (m 3))]
              (is (= 41 (again 0)))
              (bpf/put! again 0 43)
              (is (= 43 (a 0)) "it is the same map"))
            (bpf/put! m 4 (m 3))
            (is (= {3 {:map-id id}, 4 {:map-id id}} (into {} m)))
            (is (= 1 (bpf/put-all! m {3 b})))
            (is (= 42 (number-in (m 3))))
            (let [number (.acquire (bpf-map/descriptor a))]
              (try
                (bpf/put! m 5 {:fd number})
                (bpf/put! m 6 {:pid this-pid :fd number})
                (finally (.release (bpf-map/descriptor a)))))
            (is (= [43 43] (map (comp number-in m) [5 6])))
            (is (= before (fixture/open-descriptors)))
            (bpf/close b)
            (is (= 42 (number-in (m 3))) "the map that holds it keeps it")
            (is (true? (bpf/delete! m 3)))
            (is (false? (bpf/delete! m 3)))
            (is (= #{4 5 6} (set (keys (into {} m)))))))))))

(kernel-test e8-released-map-not-found
  (testing "a reference to a released map throws :not-found"
    (doseq [spec outers]
      (with-open [m ^Closeable (bpf/create spec)]
        (with-open [a (inner-map 1)] (bpf/put! m 3 a))
        (let [reference (m 3)]
          (bpf/delete! m 3)
          (let [[error message] (eventually #(try
                                               (bpf/close (bpf/open reference))
                                               (catch clojure.lang.ExceptionInfo e
                                                 [(:bpfmap/error (ex-data e)) (ex-message e)])))]
            (is (= :not-found error))
            (is (str/includes? message "no map has that id (any more)")))
          (let [[error message] (in-words (error-of (bpf/put! m 3 reference)))]
            (is (= :not-found error))
            (is (str/includes? message
                               (str "map " (:map-id reference) " does not exist (any more)")))))))))

(kernel-test e8-vanishing-inner-maps
  (testing "inner maps that disappear do not end the iteration"
    (doseq [spec outers
            reader [:batches :keys]]
      (testing [(:type spec) reader]
        (with-open [m ^Closeable (bpf/create spec)]
          (let [ks (range 0 600 3) ; more than a walk reads at a time
                maps (mapv inner-map ks)]
            (try
              (bpf/put-all! m (zipmap ks maps))
              (finally (run! bpf/close maps)))
            (let [deleted (volatile! nil)
                  step (fn [seen k v]
                         ;; At the first entry, other entries disappear, later ones too.
                         (when-not @deleted
                           (vreset! deleted (set (filter #(and (not= k %) (zero? (mod % 4))) ks)))
                           (is (= (count @deleted) (bpf/delete-all! m @deleted))))
                         (assoc seen k v))
                  seen (bpf-map/reduce-entries m step {} {:reader reader})
                  stayed (set (remove @deleted ks))]
              (is (< 40 (count @deleted)))
              (is (every? (set (keys seen)) stayed) "what stays is seen")
              (is (every? #(pos? (long (:map-id %))) (vals seen)))
              (is (= stayed (set (keys (into {} m))))))))))))

(kernel-test e8-slots-change
  (testing "slots that others change do not disturb the iteration"
    (with-open [m ^Closeable (bpf/create (first outers))
                a (inner-map 1)]
      (let [stable (set (range 1 600 3))
            stop (atom false)]
        (doseq [k stable] (bpf/put! m k a))
        (let [churn (fixture/thread #(while (not @stop)
                                       (doseq [k (range 0 600 3)] (bpf/put! m k a))
                                       (doseq [k (range 0 600 3)] (bpf/delete! m k))))]
          (try
            (dotimes [_ 20]
              (doseq [reader [:batches :keys]
                      :let [seen
                            (bpf-map/reduce-entries m (fn [acc k _] (conj acc k)) []
                                                    {:reader reader})]]
                (is (every? (set seen) stable))
                (is (apply distinct? seen))))
            (finally (reset! stop true) (fixture/join churn))))))))

(kernel-test e8-incompatible-map
  (testing "rejects an incompatible inner map and lists the required properties"
    (doseq [spec outers
            other [(assoc inner :max-entries 2) (assoc inner :value :u32)
                   (assoc inner :flags #{:mmapable})
                   {:type :hash :key :u32 :value :u64 :max-entries 1}]]
      (with-open [m ^Closeable (bpf/create spec)
                  wrong ^Closeable (bpf/create other)]
        (doseq [write (cond-> [bpf/put! (fn [m k v] (bpf/put-all! m {k v}))]
                        (= :hash-of-maps (:type spec)) (conj bpf/insert!))]
          (let [[error message] (in-words (error-of (write m 3 wrong)))]
            (is (= :incompatible error))
            (is (str/includes? message
                               "the value must be a map that matches the :inner-map of the spec: type, key-size"))))
        (is (= {} (into {} m)))))
    (testing "arrays of any length, where both say so"
      (let [inner (assoc inner :flags #{:inner-map})]
        (with-open [m ^Closeable (bpf/create {:type :array-of-maps :max-entries 1 :inner-map inner})
                    longer ^Closeable (bpf/create (assoc inner :max-entries 9))]
          (bpf/put! m 0 longer)
          (is (= 1 (bpf/count-entries m))))))))

(kernel-test put-without-reopening
  (testing "stores an open map without opening it again"
    (testing "whatever its keys are"
      (with-open [m ^Closeable (bpf/create {:type :hash-of-maps :key :u32 :max-entries 2
                                            :inner-map {:type :hash :key [:string 8] :value :u32
                                                        :max-entries 2}})
                  a ^Closeable (bpf/create {:type :hash :key [:string 8] :value :u32
                                            :max-entries 2})
                  write-only ^Closeable (bpf/open (:id (bpf/info a)) {:access :write-only})]
        (bpf/put! m 1 a)
        (bpf/put! m 2 write-only)
        (is (= (m 1) (m 2) {:map-id (:id (bpf/info a))}))))))

;; --- programs

(kernel-test e9-program-array
  (testing "stores a program, returns its id and runs it by a tail call"
    (with-open [m ^Closeable (bpf/create {:type :prog-array :max-entries 4})
                target (programs/tail-target 42)
                other (programs/tail-target 7)
                caller (programs/tail-caller m 2)]
      (let [run #(:return (prog/test-run caller {:data (byte-array 14)}))
            id (:id (prog/info target))
            before (fixture/settled-descriptors)]
        (is (= 1 (run)) "nothing is there")
        (bpf/put! m 2 target)
        (is (= 42 (run)))
        (is (= {:program-id id} (m 2)))
        (is (= {2 {:program-id id}} (into {} m)))
        (with-open [again ^Closeable (prog/open (m 2))]
          (is (= id (:id (prog/info again))))
          (bpf/put! m 3 again))
        (bpf/put! m 2 other)
        (is (= 7 (run)))
        (bpf/put! m 2 (m 3))
        (is (= 42 (run)) "a reference goes back in")
        (is (true? (bpf/delete! m 2)))
        (is (false? (bpf/delete! m 2)))
        (is (= 1 (run)))
        (is (= before (fixture/open-descriptors)))))))
