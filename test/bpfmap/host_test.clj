(ns bpfmap.host-test
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.lifecycle :as lifecycle]
            [clojure.string :as str]
            [clojure.test :refer [is]])
  (:import (java.io Closeable)
           (java.util.concurrent.atomic AtomicBoolean)))

(set! *warn-on-reflection* true)

(def ^:private spec {:name "t_host" :type :array :key :u32 :value :u64 :max-entries 1})

(kernel-test all-maps-are-listed-by-ascending-id
  (with-open [a ^Closeable (bpf/create spec)
              b ^Closeable (bpf/create (assoc spec :type :hash))]
    (let [maps (host/maps)
          ids (map :id maps)]
      (is (vector? maps))
      (is (= ids (sort ids)))
      (doseq [m [a b]]
        (is (= [(dissoc (bpf/info m) :key :value)] (filter #(= (:id (bpf/info m)) (:id %)) maps)))))))

(kernel-test maps-that-vanish-meanwhile-are-skipped-and-said
  (let [over (AtomicBoolean.)
        churns (doall (repeatedly 4 (fn [] (fixture/thread #(while (not (.get over))
                                                              (bpf/close (bpf/create spec)))))))
        deadline (+ (System/nanoTime) 20000000000)]
    (try
      (let [skipped (first (filter #(or (seq %) (< deadline (System/nanoTime)))
                                   (repeatedly #(:skipped (meta (host/maps))))))]
        (is (seq skipped) "one vanished between being named and being opened")
        (is (every? #(= :not-found (:error %)) skipped))
        (is (every? #(str/includes? (:message %) "no map has that id") skipped)))
      (finally
        (.set over true)
        (run! fixture/join churns)))))

(kernel-test without-the-capability-the-list-says-which-is-missing
  (let [{:keys [message] :bpfmap/keys [error op]} (fixture/unprivileged #(error-of (host/maps)))]
    (is (= [:permission :list] [error op]))
    (is (str/includes? message "list needs CAP_SYS_ADMIN"))))

(kernel-test listing-leaves-no-descriptor-open
  (with-open [_ ^Closeable (bpf/create spec)]
    (let [before (fixture/open-descriptors)]
      (dotimes [_ 20] (lifecycle/infos :list (fn [_ _])))
      (is (= before (fixture/open-descriptors))))))
