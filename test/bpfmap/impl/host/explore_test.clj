(ns bpfmap.impl.host.explore-test
  "From the host to its maps, their entries, and the maps and programs in them; and how handles
  print meanwhile."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.prog :as prog]
            [clojure.datafy :refer [datafy nav]]
            [clojure.pprint :as pprint]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn- go
  "Follows keys through what `nav` leads to, as a browser of data does."
  [x & ks]
  (reduce (fn [x k] (let [x (datafy x)] (nav x k (get x k)))) x ks))

(defn- index-of [pred xs]
  (first (keep-indexed (fn [i x] (when (pred x) i)) xs)))

(kernel-test datafy-map-with-entries
  (testing "datafy of a map returns its info and first entries"
    (with-open [^Closeable m (bpf/create {:name "explore_many" :type :hash :key :u32 :value :u64
                                          :max-entries 500
                                          :contents (zipmap (range 300) (range 300))})]
      (let [before (fixture/settled-descriptors)
            {:keys [entries] :as data} (datafy m)]
        (is (= (bpf/info m) (dissoc data :entries :used-by)))
        (is (= 100 (count entries)))
        (is (= (bpf/snapshot m) (into {} (nav data :entries entries))) "all of them")
        (is (= before (fixture/open-descriptors)))))))

(kernel-test types-of-handle
  (testing "navigation uses the types of the handle"
    (with-open [^Closeable m (bpf/create {:type :hash :key-size 8 :value-size 4 :max-entries 1
                                          :contents {(repeat 8 65) [1 0 0 0]}})
                ^Closeable typed (bpf/open (:id (bpf/info m))
                                           {:key [:string 8] :value :count :types {:count :u32}})]
      (is (= 1 (go typed :entries 0 1)))
      (is (= [[(bpf/->bytes (repeat 8 65)) (bpf/->bytes [1 0 0 0])]] (go m :entries))))))

(kernel-test host-to-inner-map
  (testing "navigates from the host to a map within a map"
    (let [inner {:name "explore_inner" :type :hash :key :u32 :value :u64 :max-entries 4}]
      (with-open [^Closeable outer (bpf/create {:name "explore_outer" :type :hash-of-maps :key :u32
                                                :max-entries 4 :inner-map inner})
                  ^Closeable in (bpf/create (assoc inner :contents {1 10}))]
        (bpf/put! outer 7 in)
        (let [h (host/explore)
              id (:id (bpf/info outer))
              at (index-of #(= id (:id %)) (:maps h))
              found (go h :maps at)]
          (is (= "explore_outer" (:name (datafy found))))
          (is (= [[(bpf/->bytes [7 0 0 0]) {:map-id (:id (bpf/info in))}]]
                 (:entries (datafy found)))
              "the kernel keeps no types of such a map")
          (is (= "explore_inner" (:name (go found :entries 0 1))))
          (is (= [[1 10]] (go found :entries 0 1 :entries))))))))

(kernel-test nav-map-to-programs
  (testing "navigates from a map to its programs and back"
    (with-open [^Closeable m (bpf/create {:name "explore_used" :type :array :key :u32 :value :u64
                                          :max-entries 1})
                ^Closeable jumps (bpf/create {:type :prog-array :max-entries 1})
                ^Closeable program (prog/load {:type :socket-filter :name "explore_prog"
                                               :insns [[:lddw :r1 m] [:mov64 :r0 0] [:exit]]})]
      (bpf/put! jumps 0 program)
      (is (= ["explore_prog"] (map :name (:used-by (datafy m)))))
      (is (= "explore_used" (:name (go m :used-by 0 :map-ids 0))))
      (is (= "explore_prog" (:name (go jumps :entries 0 1))) "a program in a slot")
      (is (= "explore_used" (:name (go jumps :entries 0 1 :map-ids 0)))))))

(kernel-test pin-to-object
  (testing "navigates from a pin to its object"
    (with-open [^Closeable m (bpf/create {:name "explore_pin" :type :hash :key :u32 :value :u64
                                          :max-entries 4 :contents {1 2}})]
      (let [path (fixture/new-pin)]
        (bpf/pin! m path)
        (try
          (let [h (host/explore)
                at (index-of #(= path (:path %)) (:pins h))]
            (is (= [[1 2]] (go h :pins at :id :entries))))
          (finally (bpf/unpin! m)))))))

(kernel-test nav-to-vanished-map
  (testing "navigating to an object that is gone returns data"
    (let [row (with-open [^Closeable m (bpf/create {:name "explore_gone" :type :hash :key :u32
                                                    :value :u64 :max-entries 4})]
                (let [h (host/explore)
                      id (:id (bpf/info m))]
                  (nav (:maps h) 0 (first (filter #(= id (:id %)) (:maps h))))))]
      (Thread/sleep 100)
      (is (= :not-found (:error (go row :entries)))))))

(kernel-test datafy-queue-no-entries
  (testing "datafy of a queue has no entries and takes none"
    (with-open [^Closeable q (bpf/create {:type :queue :value :u32 :max-entries 2 :contents [1]})]
      (is (not (contains? (datafy q) :entries)))
      (is (= 1 (bpf/peek q)) "looking took nothing"))))

(kernel-test handle-printing
  (testing "prints a handle on one line without reading the map"
    (let [m (bpf/create {:name "explore_print" :type :hash :key :u32 :value :u64 :max-entries 4
                         :contents {1 2}})
          line (pr-str m)]
      (try
        (is (re-matches #"#<bpf-map \d+ :hash \"explore_print\" :u32 -> :u64>" line))
        (is (= (str line "\n") (with-out-str (pprint/pprint m))))
        (is (= (str "{:m " line "}\n") (with-out-str (pprint/pprint {:m m}))))
        (is (= line (str m) (binding [*print-length* 0 *print-level* 0] (pr-str m))))
        (finally (bpf/close m)))
      (is (= (str (subs line 0 (dec (count line))) " closed>") (pr-str m)
             (str/trim (with-out-str (pprint/pprint m))))
          "a closed one can still be printed: the kernel is not asked"))))

(kernel-test rows-for-print-table
  (testing "rows can be printed with print-table"
    (with-open [^Closeable m (bpf/create {:name "explore_table" :type :hash :key :u32 :value :u64
                                          :max-entries 4})]
      (let [printed (with-out-str (pprint/print-table [:id :type :name :max-entries] (host/maps)))]
        (is (re-find (re-pattern (str "\\| *" (:id (bpf/info m))
                                      " \\| *:hash \\| *explore_table \\| *4 \\|")) printed))))))
