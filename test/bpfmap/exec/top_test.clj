(ns bpfmap.exec.top-test
  "How full the maps of the host are and how fast they change, as frames."
  (:require [bpfmap.cli.calling :refer [bpfmap id-of refused]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.query :as query]
            [bpfmap.exec.top :as top]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [clojure.data.json :as json]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.io Closeable)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(def ^:private own
  "What the names of this process's maps begin with: others may run the same tests."
  (str "p" (Long/toString (.pid (ProcessHandle/current)) 36)))

(deftest compared-snapshots
  (are [before now n] (= n (top/changes before now))
    {} {} 0
    {7 1} {7 1} 0
    {7 1} {7 2} 1
    {7 1} {7 2, 8 1} 2
    {7 1, 9 1} {7 1, 8 1} 2
    {7 1, 9 1} {} 2))

(deftest orders
  (let [rows [{:id 1 :full 10.0 :entries-per-second 0.0 :changes-per-second 5.0}
              {:id 2 :full 90.0 :entries-per-second 0.0 :changes-per-second 0.0}
              {:id 3 :full 20.0 :entries-per-second -7.0}
              {:id 4}]]
    (is (= [3 1 2 4] (map :id (top/arranged {} rows))) "the fastest, then the fullest")
    (is (= [2 3 1 4] (map :id (top/arranged {:sort (query/column "-full")} rows))))))

(kernel-test frames-of-top
  (let [spec {:type :hash :key :u32 :value :u64 :max-entries 10}]
    (with-open [growing ^Closeable (bpf/create (assoc spec :name (str own "_grow")))
                counting ^Closeable (bpf/create {:name (str own "_count") :type :array :value :u64
                                                 :max-entries 4})
                still ^Closeable (bpf/create (assoc spec :name (str own "_still")
                                                    :contents (zipmap (range 9) (range))))
                large ^Closeable (bpf/create {:name (str own "_large") :type :array
                                              :value [:array :u8 1024] :max-entries 1024})]
      (let [frames (volatile! [])
            options {:name (str own "_*") :interval 0.05 :rounds 3}]
        (run! (fn [frame]
                (let [n (count (vswap! frames conj frame))]
                  (bpf/put! growing n 1)
                  (bpf/put! counting 0 n)
                  (bpf/put! counting 3 n)))
              (exec/top options))
        (let [[a b c] @frames
              row (fn [frame m] (first (filter #(= (id-of m) (:id %)) (:rows frame))))]
          (is (= 3 (count @frames)))
          (is (= [4 4 4] (map :maps @frames)))
          (is (< 0.0 (:elapsed a) (:elapsed b) (:elapsed c)))
          (is (= [0 1 2] (map #(:entries (row % growing)) @frames)))
          (is (= [0.0 10.0 20.0] (map #(:full (row % growing)) @frames)))
          (testing "rates are of the interval"
            (doseq [frame [b c]
                    :let [once (/ (Math/round (/ 1000.0 (double (:interval frame)))) 1000.0)
                          near (fn [expected x] (< (abs (- (double expected) (double x)))
                                                   (* 0.02 (double expected))))]]
              (is (near once (:entries-per-second (row frame growing))))
              (is (near once (:changes-per-second (row frame growing))))
              (is (near (* 2 once) (:changes-per-second (row frame counting))))
              (is (= [0.0 0.0] ((juxt :entries-per-second :changes-per-second)
                                (row frame still))))
              (is (= (id-of counting) (:id (first (:rows frame)))) "the fastest")))
          (testing "an array is never full, and a large map is not compared"
            (is (= {:id (id-of large) :type :array :name (str own "_large") :max-entries 1024}
                   (dissoc (row c large) :held))))
          (is (some #{(.pid (ProcessHandle/current))} (map :pid (:held (row a still)))))))
      (testing "conditions, order and limit"
        (let [rows (fn [options]
                     (:rows (first (into [] (exec/top (merge {:name (str own "_*") :once true
                                                              :interval 0.01}
                                                             options))))))]
          (is (= [(id-of still)] (map :id (rows {:where "full>80"}))))
          (is (= [(id-of still)] (map :id (rows {:where "full>80%"}))))
          (is (= [(id-of still)] (map :id (rows {:sort "-full" :limit 1}))))
          (is (= 4 (count (rows {:held-by (str (.pid (ProcessHandle/current)))}))))
          (is (= [] (rows {:held-by "no_such_command"})))))
      (testing "on the command line"
        (let [words ["top" "--once" "--interval" "0.01" "--name" (str own "_*")]
              {:keys [exit out err]} (apply bpfmap words)]
          (is (= [0 ""] [exit err]))
          (is (re-find #"^4 maps, 0 changed\n\d\d:\d\d:\d\d, every 0.01 s\n" out))
          (is (re-find (re-pattern (str "(?m)^ *" (id-of still) "  hash +" own
                                        "_still +9 +10 +90.0% +0.0 +0.0  "))
                       out))
          (is (= [4 4] (map (comp count :rows)
                            (edn/read-string
                             (str "[" (:out (apply bpfmap "--edn" "top" "--rounds" "2"
                                                   (drop 2 words))) "]")))))
          (is (= 4 (get (json/read-str (:out (apply bpfmap "--json" words))) "maps"))))))))

(kernel-test holders-without-the-reading-itself
  (testing "top holds no map that it reads"
    (let [pin (fixture/new-pin)
          frames (volatile! [])]
      (try
        (run! (fn [frame]
                (when (= 1 (count (vswap! frames conj frame)))
                  (with-open [m ^Closeable (bpf/create {:name (str own "_pinned") :type :hash
                                                        :key :u32 :value :u64
                                                        :max-entries 1})]
                    (bpf/pin! m pin))))
              (exec/top {:name (str own "_pinned") :interval 0.05 :rounds 2}))
        (is (= [[] [[]]] (map #(map :held (:rows %)) @frames)))
        (finally (io/delete-file pin true))))))

(kernel-test top-ends
  (testing "after some seconds, by reduced, and by the promise"
    (is (< 0 (count (into [] (exec/top {:seconds 0.2 :interval 0.05 :name own})))))
    (is (= 1 (count (into [] (take 1) (exec/top {:interval 0.01 :name own})))))
    (is (= [] (into [] (top/top {:interval 100.0 :name own} (doto (promise) (deliver :stop))))))))

(deftest refused-options
  (is (= [2 "bpfmap: --once cannot be combined with --rounds; see `bpfmap help top`"]
         (refused "top" "--once" "--rounds" "2")))
  (is (str/includes? (:message (error-of (exec/top {:sort "nope"}))) "Unknown field nope")))
