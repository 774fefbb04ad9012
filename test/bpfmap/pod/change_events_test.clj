(ns bpfmap.pod.change-events-test
  "A watch: what changes, and how it ends."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.pod.change-events :as change-events]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io Closeable)
           (java.util.concurrent LinkedBlockingQueue TimeUnit)))

(set! *warn-on-reflection* true)

(def ^:private small
  {:name "pod_watch" :type :hash :key :u32 :value :u64 :max-entries 64 :contents {1 10, 2 20}})

(deftest snapshot-changes
  (testing "changes are added, changed or removed entries"
    (is (= {:added {3 30} :changed {1 [10 11]} :removed {2 20}}
           (change-events/changes {1 10, 2 20, 4 40} {1 11, 3 30, 4 40})))
    (is (= {:changed {1 [nil false]}} (change-events/changes {1 nil} {1 false})))
    (is (= {:added {1 nil}} (change-events/changes {} {1 nil})))
    (is (nil? (change-events/changes {1 10} {1 10})))
    (is (nil? (change-events/changes {1 {:f ##NaN}} {1 {:f ##NaN}})))))

(defn- watching
  "Calls f with a map, its watch, and a function that takes the next event; returns how the watch
  ended."
  [interval f]
  (let [events (LinkedBlockingQueue.)
        ended (promise)]
    (with-open [m ^Closeable (bpf/create small)
                w (change-events/start m {:interval interval})]
      (fixture/thread (fn []
                        (deliver ended (try
                                         (change-events/run w #(.put events %))
                                         (catch Throwable e e)))))
      (f m w #(.poll events (long fixture/patience) TimeUnit/MILLISECONDS))
      (.close w)
      (deref ended fixture/patience :not-ended))))

(kernel-test events-since-the-last
  (testing "an event has the changes since the previous one"
    (is (nil? (watching 0.005 (fn [m _ event]
                                (let [{:keys [at] :as first} (event)]
                                  (is (= {:entries {1 10, 2 20}} (dissoc first :at)))
                                  (is (< (- (System/currentTimeMillis) 60000) at
                                         (inc (System/currentTimeMillis)))))
                                (bpf/put! m 1 11)
                                (is (= {:changed {1 [10 11]}} (dissoc (event) :at)))
                                (bpf/delete! m 2)
                                (is (= {:removed {2 20}} (dissoc (event) :at)))
                                (bpf/put! m 3 30)
                                (is (= {:added {3 30}} (dissoc (event) :at)))))))))

(kernel-test removed-pin-reported-once
  (testing "reports a removed pin once"
    (let [pin (fixture/new-pin)
          events (LinkedBlockingQueue.)]
      (with-open [m ^Closeable (bpf/create small)
                  other ^Closeable (bpf/create small)]
        (bpf/pin! m pin)
        (with-open [w (change-events/start m {:interval 0.005})]
          (let [ended (future (change-events/run w #(.put events %)))
                event #(dissoc (.poll events (long fixture/patience) TimeUnit/MILLISECONDS) :at)]
            (is (:entries (event)))
            (.delete (java.io.File. ^String pin))
            (bpf/pin! other pin)
            (is (= {:unpinned [pin]} (event)))
            (bpf/put! m 1 11)
            (is (= {:changed {1 [10 11]}} (event)))
            (.close w)
            (is (nil? @ended))))
        (bpf/unpin! other)))))

(kernel-test close-ends-at-once
  (testing "closing ends the watch regardless of its interval"
    (is (nil? (watching 86400 (fn [_ _ event] (is (:entries (event)))))))))

(kernel-test closed-map-ends-watch
  (testing "closing the map ends the watch"
    (is (nil? (watching 0.005 (fn [m w event]
                                (event)
                                (bpf/close m)
                                (is (change-events/watch? w))))))))

(kernel-test unwatchable-rejected
  (testing "rejects what cannot be watched at once"
    (with-open [q ^Closeable (bpf/create {:type :queue :value :u32 :max-entries 4})
                m ^Closeable (bpf/create small)]
      (is (= :not-supported (:bpfmap/error (error-of (change-events/start q nil)))))
      (is (= :invalid-value (:bpfmap/error (error-of (change-events/start {:name "x"} nil)))))
      (is (= "Unknown option :intervall: did you mean :interval?"
             (:message (error-of (change-events/start m {:intervall 3})))))
      (doseq [bad [0 -1 0.0001 86401 ##NaN nil "1" :second]]
        (is (= (str ":interval must be a number of seconds from 0.001 to 86400, got " (pr-str bad))
               (:message (error-of (change-events/start m {:interval bad}))))))
      (is (= "Options must be a map, got 5" (:message (error-of (change-events/start m 5))))))))
