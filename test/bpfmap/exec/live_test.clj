(ns bpfmap.exec.live-test
  "What changes between two looks at a map: rates, marks, frames; and the command line's `watch` and `diff`."
  (:require [bpfmap.cli.calling :refer [bpfmap id-of read-edn]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.live :as live]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [clojure.data.json :as json]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(deftest rates-have-the-shape-of-the-value
  (are [before now seconds rates] (= rates (live/rates before now seconds))
    10 30 2.0 10.0
    nil 30 2.0 15.0
    30 10 2.0 -10.0
    {:packets 1 :comm "a"} {:packets 3 :comm "b"} 1.0 {:packets 2.0}
    nil {:packets 3} 1.0 {:packets 3.0}
    {:a {:b 1}} {:a {:b 2}} 1.0 {:a {:b 1.0}}
    [1 2] [2 4] 1.0 [1.0 2.0]
    0 18446744073709551615N 1.0 18446744073709552000.0
    18446744073709551614N 18446744073709551615N 1.0 1.0
    "a" "b" 1.0 nil
    {:comm "a"} {:comm "b"} 1.0 nil
    [] [] 1.0 nil
    ["a"] ["b"] 1.0 nil))

(deftest entries-are-marked-by-what-became-of-them
  (is (= #{{:key 1 :value 5 :per-second 0.0} {:key 2 :value 9 :mark :changed :per-second 4.0}
           {:key 3 :value 1 :mark :new :per-second 1.0} {:key 4 :value 7 :mark :gone}}
         (into #{} (live/compared {1 5, 2 5, 4 7} {1 5, 2 9, 3 1} 1.0))))
  (is (= [{:key 1 :value 5}] (into [] (live/compared nil {1 5} 1.0))) "the first look compares with nothing"))

(defn- counts ^Closeable [contents]
  (bpf/create {:name "live" :type :hash :key :u32 :value :u64 :max-entries 64 :contents contents}))

(defn- changing
  "The first n frames of a map, before the second and later of which f is called with their number."
  [m options n f]
  (reduce (fn [frames frame]
            (let [frames (conj frames frame)]
              (if (= n (count frames))
                (reduced frames)
                (do (f (count frames)) frames))))
          [] (exec/watch (assoc options :ref (id-of m)))))

(kernel-test frames-tell-what-came-changed-and-went
  (with-open [m (counts {1 10, 2 20, 3 30})]
    (let [[first-one second-one] (changing m {:interval 0.05} 2 (fn [_]
                                                                  (bpf/put! m 2 25)
                                                                  (bpf/put! m 4 1)
                                                                  (bpf/delete! m 3)))]
      (is (= [3 0 0 0] ((juxt :entries :new :changed :gone) first-one)))
      (is (= {:id (id-of m) :name "live" :type :hash :max-entries 64} (:map first-one)))
      (is (= [3 1 1 1] ((juxt :entries :new :changed :gone) second-one)))
      (is (= [[2 :changed] [4 :new] [3 :gone] [1 nil]] (map (juxt :key :mark) (:rows second-one)))
          "the liveliest first, then what changed, then the rest")
      (is (pos? (:interval second-one)))
      (is (= 0.0 (:elapsed first-one))))))

(kernel-test rows-are-those-that-were-asked-for
  (with-open [m (counts {1 10, 2 20, 3 30})]
    (let [rows (fn [options] (map :key (:rows (second (changing m (assoc options :interval 0.01) 2 (fn [_] (bpf/put! m 2 99)))))))]
      (is (= [2] (rows {:changed true})))
      (is (= [3 2] (rows {:where "value>20" :sort "value"})))
      (bpf/put! m 2 20)
      (is (= [2 1] (rows {:limit 2}))))))

(kernel-test per-cpu-values-are-added-up-or-apart
  (with-open [m ^Closeable (bpf/create {:type :percpu-array :key :u32 :value :u64 :max-entries 1})]
    (bpf/put! m 0 3 {:cpus :all})
    (let [cpus (count (m 0))
          value (fn [options] (:value (first (:rows (first (changing m options 1 nil))))))]
      (is (= (* 3 cpus) (value {})))
      (is (= (repeat cpus 3) (value {:cpus "each"})))
      (is (= 3 (value {:cpus 0}))))))

(kernel-test a-watch-ends-when-it-is-told-and-closes-the-map
  (with-open [m (counts {1 10})]
    (let [before (fixture/settled-descriptors)]
      (is (= 3 (reduce (fn [n _] (inc n)) 0 (exec/watch {:ref (id-of m) :interval 0.1 :seconds 0.25}))))
      (is (= 1 (reduce (fn [n _] (reduced (inc n))) 0 (exec/watch {:ref (id-of m)}))))
      (is (= before (fixture/open-descriptors))))))

;; --- on the command line

(kernel-test without-a-terminal-frames-are-printed-one-after-the-other
  (with-open [m (counts {1 10})]
    (let [{:keys [exit out err]} (bpfmap "watch" (id-of m) "--interval" "0.1" "--seconds" "0.15")]
      (is (= [0 ""] [exit err]))
      (is (= 2 (count (re-seq #"(?m)^Map \d+ live \(hash\): 1 of 64 entries$" out))))
      (is (re-find #"every 0\.1 s: the first look; Ctrl-C ends it" out))
      (is (re-find #"every 0\.1 s: 0 changed, 0 new, 0 gone; Ctrl-C ends it" out)))
    (doseq [[format read] {"--edn" read-edn, "--json" #(json/read-str % :key-fn keyword)}]
      (let [lines (str/split-lines (:out (bpfmap "watch" (id-of m) "--interval" "0.1" "--seconds" "0.15" format)))]
        (is (= [1 1] (map (comp :entries read) lines)))))))

(kernel-test a-map-is-held-against-itself-a-while-later
  (with-open [m (counts {1 10, 2 20, 3 30})]
    (let [diff (future (exec/diff {:old (id-of m) :seconds 0.5}))]
      (Thread/sleep 250)
      (bpf/put! m 2 25)
      (bpf/delete! m 3)
      (bpf/put! m 4 1)
      (let [rows @diff]
        (is (= [[:changed 2 20 25] [:removed 3 30 nil] [:added 4 nil 1]] (map (juxt :change :key :old :new) rows)))
        (is (= {:added 1 :changed 1 :removed 1 :same 1} (select-keys (meta rows) [:added :changed :removed :same])))
        (is (< 2.0 (:per-second (first rows)) 10.1))))))

(kernel-test a-map-is-held-against-another
  (with-open [a (counts {1 10, 2 20})
              b (counts {1 10, 2 25, 3 1})]
    (is (= [{:change :changed :key 2 :old 20 :new 25} {:change :added :key 3 :new 1}]
           (exec/diff {:old (id-of a) :new (id-of b)})))
    (is (= {:exit 0
            :out "   KEY  OLD  NEW\n*    2  20    25\n+    3  -      1\n"
            :err "1 added, 1 changed, 0 removed, 1 the same\n"}
           (bpfmap "diff" (id-of a) (id-of b))))
    (is (= [3] (map :key (exec/diff {:old (id-of a) :new (id-of b) :where "change=added"}))))))
