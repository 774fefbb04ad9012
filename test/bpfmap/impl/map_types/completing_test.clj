(ns bpfmap.impl.map-types.completing-test
  "Specs that say less than the kernel needs, or another size than it takes, and what becomes of
  them."
  (:require [bpfmap.core :as bpf]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.since :as since]
            [bpfmap.uses :refer [inner]]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(kernel-test s1-map-of-maps-template
  (testing "a map of maps has 4-byte values and closes its template"
    (doseq [spec [{:type :array-of-maps :max-entries 2}
                  {:type :hash-of-maps :key :u64 :max-entries 2}]
            :let [spec (assoc spec :inner-map (assoc inner :contents {0 5} :freeze true))
                  before (fixture/settled-descriptors)]]
      (testing spec
        (doseq [more [{} {:value-size 0} {:value-size 4} {:value :u32}]]
          (with-open [m ^Closeable (bpf/create (merge spec more))]
            (is (= [4 4 :u32]
                   [(:value-size (bpf/spec m)) (:value-size (bpf/info m)) (:value (bpf/spec m))]))
            (is (= {} (into {} m)) "the template is in no slot")
            (is (= (inc before) (fixture/open-descriptors)) "and not open")
            (with-open [again ^Closeable (bpf/create (bpf/spec m))]
              (is (nil? (bpf/spec-diff again (bpf/spec m)))))))
        (is (= before (fixture/open-descriptors)))
        (doseq [[more words] [[{:value-size 8} "must have 4 bytes, got 8"]
                              [{:value :u64} "must have 4 bytes, got 8"]
                              [{:inner-map nil} "require :inner-map, the spec of the maps in them"]
                              [{:inner-map {:type :hash}}
                               "in :inner-map, :key or :key-size is required"]
                              [{:inner-map (assoc inner :name "x" :pinning :by-name)}
                               "is a template, and cannot be pinned"]]]
          (let [{:keys [message] :bpfmap/keys [error]} (error-of (bpf/create (merge spec more)))]
            (is (= :invalid-spec error))
            (is (str/includes? message words))))))))

(kernel-test s2-entries-limited-by-cpus
  (testing "perf event arrays and CPU maps are limited to the possible CPUs"
    (let [n (count (feature/possible-cpus))]
      (doseq [[type
               values] {:perf-event-array [{} {:key-size 0 :value-size 0}
                                           {:key-size 4 :value-size 4} {:key :u32 :value :u32}]
                        :cpumap [{} {:value-size 4} {:value-size 8}]}
              sizes values
              [asked found] [[nil n] [0 n] [(+ n 1000) n] [:percpu n] [1 1]]]
        (testing [type sizes asked]
          (with-open [m ^Closeable (bpf/create (merge {:type type} sizes
                                                      (when asked {:max-entries asked})))]
            (is (= found (:max-entries (bpf/spec m)) (:max-entries (bpf/info m))))
            (is (= [4 (if (= 8 (:value-size sizes)) 8 4)]
                   ((juxt :key-size :value-size) (bpf/info m)))))))
      (is (str/includes? (:message (error-of (bpf/create {:type :perf-event-array :value-size 8})))
                         "must have 4 bytes, got 8")))))

(kernel-test s3-ring-buffer-size-rounded
  (testing "rounds the size of a ring buffer up in the spec"
    (let [page (long (call/page-size))]
      (doseq [type [:ringbuf :user-ringbuf] :when (since/has? [:map-type type])
              [asked found] [[1 page] [(dec page) page] [page page] [(inc page) (* 2 page)]
                             [(* 3 page) (* 4 page)] [(* 4 page) (* 4 page)]]]
        (with-open [m ^Closeable (bpf/create {:type type :max-entries asked})]
          (is (= found (:max-entries (bpf/spec m)) (:max-entries (bpf/info m))) [type asked])
          (is (bpf/compatible? m {:type type :max-entries asked}))))
      (doseq [n [0 -1 0x80000001 nil]]
        (is (= :invalid-spec
               (:bpfmap/error (error-of (bpf/create {:type :ringbuf :max-entries n})))) n)))))
