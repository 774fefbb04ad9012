(ns bpfmap.impl.map.keyless-test
  "Maps without keys: queues, stacks and bloom filters."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.since :as since]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private job [:struct [:pid :u32] [:name [:string 8]]])

(defn- job-of [i] {:pid i :name (str "job" i)})

(defn- open ^Closeable [type & {:as more}]
  (bpf/create (merge {:type type :value job :max-entries 3} more)))

(kernel-test e4-queue-and-stack
  (testing "a queue returns the oldest value and a stack the newest"
    (doseq [[type order] {:queue [1 2 3] :stack [3 2 1]}]
      (testing type
        (with-open [m (open type)]
          (doseq [i [1 2 3]]
            (is (identical? m (bpf/push! m (job-of i)))))
          (is (= (job-of (first order)) (bpf/peek m) (bpf/peek m :none)) "which stays")
          (is (= (map job-of order) (repeatedly 3 #(bpf/pop! m)))))))))

(kernel-test e4-empty-queue-default
  (testing "an empty queue or stack returns the default"
    (doseq [type [:queue :stack]]
      (testing type
        (with-open [m (open type)]
          (is (= [nil nil :none :none]
                 [(bpf/pop! m) (bpf/peek m) (bpf/pop! m :none) (bpf/peek m :none)]))
          (is (= [] (bpf/drain! m)))
          (bpf/push! m (job-of 0))
          (bpf/pop! m)
          (is (= [nil :none] [(bpf/pop! m) (bpf/peek m :none)])
              "also when it was not always empty"))))))

(kernel-test e4-full-queue-or-overwrite
  (testing "a full queue throws :map-full or drops its oldest value on request"
    (doseq [[type left] {:queue [2 3 4] :stack [4 3 2]}]
      (testing type
        (with-open [m (open type :contents (map job-of [1 2 3]))]
          (let [{:keys [message]
                 :bpfmap/keys [error errno op map]} (error-of (bpf/push! m (job-of 4)))]
            (is (= [:map-full :E2BIG :push! type] [error errno op (:type map)]))
            (is (str/includes? message
                               "the map is full with 3 values; pop! some, or push! with {:overwrite true}")))
          (is (= :map-full (:bpfmap/error (error-of (bpf/push! m (job-of 4) {:overwrite false})))))
          (is (identical? m (bpf/push! m (job-of 4) {:overwrite true})))
          (is (= (map job-of left) (bpf/drain! m)))
          (bpf/push! m (job-of 9) {:overwrite true})
          (is (= [(job-of 9)] (bpf/drain! m)) "where there is room nothing is dropped"))))))

(kernel-test ^{:needs [[:map-type :bloom-filter]]} e4-bloom-filter-results
  (testing "a Bloom filter returns no or maybe"
    (with-open [m ^Closeable (bpf/create {:type :bloom-filter :value :ipv4 :max-entries 1000
                                          :map-extra 4})]
      (let [put (map #(str "10.0." (quot % 256) "." (mod % 256)) (range 1000))
            others (map #(str "10.1." (quot % 256) "." (mod % 256)) (range 1000))]
        (is (not-any? #(bpf/might-contain? m %) put) "nothing is in it yet: that is certain")
        (doseq [address put] (is (identical? m (bpf/push! m address))))
        (is (every? #(true? (bpf/might-contain? m %)) put) "values in it may be in it")
        (let [maybe (count (filter #(bpf/might-contain? m %) others))]
          (is (< maybe 500) "and most other values are known to be missing"))
        (bpf/push! m (first put))
        (dotimes [i 3000] (bpf/push! m (str "10.9." (quot i 256) "." (mod i 256))))
        (is (every? #(bpf/might-contain? m %) put) "it is never full, but knows less and less")))
    (testing "as many hash functions as it may have"
      (doseq [n [0 1 15]]
        (with-open [m ^Closeable (bpf/create {:type :bloom-filter :value :u32 :max-entries 10
                                              :map-extra n})]
          (bpf/push! m 7)
          (is (true? (bpf/might-contain? m 7)))))
      (is
       (str/includes? (:message (error-of (bpf/create {:type :bloom-filter :value :u32
                                                       :max-entries 10 :map-extra 16})))
                      ":map-extra of :bloom-filter maps must be at most 15 (the number of hash functions, 0 for the kernel's choice), got 16")))))

(kernel-test e4-keys-rejected
  (testing "keyless maps reject keys"
    (doseq [type [:queue :stack :bloom-filter] :when (since/has? [:map-type type])]
      (testing type
        (is (str/includes? (:message (error-of (open type :key :u32)))
                           (str type " maps have no key")))
        (is (str/includes? (:message (error-of (open type :contents {1 (job-of 1)})))
                           (str ":contents of " type " maps must be a sequence of values")))
        (with-open [m (open type)]
          (is (= [0 nil] ((juxt :key-size :key) (bpf/spec m))))
          (doseq [ask [#(bpf/lookup m 0) #(m 0) #(bpf/has-key? m 0) #(bpf/put! m 0 (job-of 1))
                       #(bpf/insert! m 0 (job-of 1))
                       #(bpf/replace! m 0 (job-of 1)) #(bpf/delete! m 0) #(bpf/take! m 0)
                       #(bpf/next-key m) #(seq m)
                       #(bpf/put-all! m {0 (job-of 1)}) #(bpf/delete-all! m [0])
                       #(bpf/lookup-all m [0]) #(bpf/snapshot m)
                       #(bpf/count-entries m)]
                  :let [{:keys [message] :bpfmap/keys [error]} (error-of (ask))]]
            (is (= :not-supported error))
            (is (re-find #"use push!, pop! and peek|use push! and might-contain\?" message))))))))

(kernel-test e4-misfits-before-kernel
  (testing "rejects values that do not fit before any system call"
    (doseq [type [:queue :stack :bloom-filter] :when (since/has? [:map-type type])]
      (testing type
        (with-open [m (open type)]
          (doseq [[v path] [[nil [:value]] [7 [:value]] [{:pid 1} [:value :name]]
                            [{:pid -1 :name ""} [:value :pid]] [{:pid 1 :name "" :x 1} [:value :x]]]
                  f (if (= :bloom-filter type)
                      [#(bpf/push! m %) #(bpf/might-contain? m %)]
                      [#(bpf/push! m %) #(bpf/push! m % {:overwrite true})])]
            (is (= [:invalid-value path] ((juxt :bpfmap/error :bpfmap/path) (error-of (f v))))))
          (when-not (= :bloom-filter type)
            (is (nil? (bpf/peek m)) "nothing was pushed"))
          (is (= :invalid-value (:bpfmap/error (error-of (bpf/push! m (job-of 1) {:lock true}))))
              "there are no locks either"))))))

(kernel-test e4-concurrent-pops
  (testing "concurrent threads pop each value once"
    (doseq [type [:queue :stack]]
      (testing type
        (with-open [m ^Closeable (bpf/create {:type type :value :u64 :max-entries 100000})]
          (let [popped (fixture/in-threads 4 (fn [i]
                                               (if (even? i)
                                                 (dotimes [n 10000] (bpf/push! m (+ (* i 10000) n)))
                                                 (vec (repeatedly 5000 #(bpf/pop! m))))))]
            (is (= (concat (range 10000) (range 20000 30000))
                   (sort (concat (remove nil? (apply concat (filter vector? popped)))
                                 (bpf/drain! m)))))))))))
