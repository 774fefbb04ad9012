(ns bpfmap.plot-test
  "Pictures as data: each spec is one of Vega-Lite by its schema, with the values that were given."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.plot :as plot]
            [bpfmap.sim :as sim]
            [clojure.data.json :as json]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (com.networknt.schema InputFormat JsonSchema JsonSchemaFactory SchemaValidatorsConfig
                                 SpecVersion$VersionFlag)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private vega-lite
  (delay
    (.getSchema (JsonSchemaFactory/getInstance SpecVersion$VersionFlag/V7)
                ^String (slurp (io/resource (str "META-INF/resources/webjars/vega-lite/5.23.0/"
                                                 "vega-lite-schema.json")))
                ;; Else it would unfold all references, which does not end.
                (.build (.preloadJsonSchema (SchemaValidatorsConfig/builder) false)))))

(defn- problems
  "Returns what the schema of Vega-Lite has against a spec."
  [spec]
  (into #{} (map str) (.validate ^JsonSchema @vega-lite ^String (json/write-str spec)
                                 InputFormat/JSON)))

(defn- valid? [spec]
  (= #{} (problems spec)))

(deftest schema-finds-faults
  (testing "the schema finds specs that are none of Vega-Lite"
    (let [spec (plot/top {"a" 1})]
      (is (valid? spec))
      (are [broken] (seq (problems broken))
        (assoc-in spec [:mark :type] "barr")
        (assoc-in spec [:encoding :x :type] "quantity")
        (assoc-in spec [:encoding :z] {:field "value"})
        (dissoc spec :data :mark)))))

(deftest histograms
  (let [reads {:title "read" :kind :log2 :total 13
               :buckets [{:from 4 :to 7 :count 12} {:from 8 :to 15 :count 1}]}
        writes {:title "write" :kind :log2 :total 2 :buckets [{:from 0 :to 1 :count 2}]}]
    (testing "a bar for each bucket"
      (let [spec (plot/histogram reads {:unit "usecs" :title "Latency" :height 200})]
        (is (valid? spec))
        (is (= [{:title "read" :bucket "4–7" :count 12} {:title "read" :bucket "8–15" :count 1}]
               (get-in spec [:data :values])))
        (is (= ["Latency" 200 600 "usecs"]
               [(:title spec) (:height spec) (:width spec) (get-in spec [:encoding :x :title])]))
        (is (nil? (get-in spec [:encoding :row])))))
    (testing "several below each other, with the buckets in order"
      (let [spec (plot/histogram [reads writes])]
        (is (valid? spec))
        (is (= ["0–1" "4–7" "8–15"] (get-in spec [:encoding :x :sort])))
        (is (= ["read" "write"] (get-in spec [:encoding :row :sort])))))
    (testing "buckets without a limit, of one number, and with limits in text"
      (are [bucket text] (= text (-> (plot/histogram [{:buckets [(assoc bucket :count 1)]}])
                                     :data :values first :bucket))
        {:from nil :to -1} "up to -1"
        {:from 9 :to nil} "from 9"
        {:from 3 :to 3} "3"
        {:from "1 ms" :to "2 ms"} "1 ms–2 ms"))))

(deftest heat-maps
  (testing "what was counted between two samples, also after a reset"
    (let [counts (fn [& ns] [{:title nil
                              :buckets (map-indexed (fn [i n] {:from i :to i :count n}) ns)}])
          spec (plot/heat-map [[0 (counts 5 0)] [1 (counts 7 1)] [3.5 (counts 7 4)]
                               [4 (counts 2 4)]])]
      (is (valid? spec))
      (is (= [{:from 0 :to 1 :bucket "0" :count 2} {:from 0 :to 1 :bucket "1" :count 1}
              {:from 1 :to 3.5 :bucket "1" :count 3} {:from 3.5 :to 4 :bucket "0" :count 2}]
             (get-in spec [:data :values])))
      (is (= ["1" "0"] (get-in spec [:encoding :y :sort]))))
    (is (valid? (plot/heat-map [])))))

(deftest odd-numbers
  (let [large 18446744073709551615N]
    (testing "unsigned integers of 64 bits"
      (let [spec (plot/heat-map [[0 []] [1 [{:buckets [{:from 0 :to 1 :count large}]}]]])]
        (is (valid? spec))
        (is (= [large] (map :count (get-in spec [:data :values]))))))
    (testing "numbers that JSON does not have are left out"
      (let [spec (plot/top {"a" ##NaN "b" 2.0 "c" ##Inf "d" large "e" ##-Inf "f" -5})]
        (is (valid? spec))
        (is (= ["d" "b" "f"] (map :key (get-in spec [:data :values])))))
      (let [spec (plot/rates [{:elapsed 1.0 :rows [{:key 1 :per-second ##NaN}
                                                   {:key 2 :per-second 5.0}]}])]
        (is (valid? spec))
        (is (= ["2"] (map :key (get-in spec [:data :values])))))
      (is (str/includes? (:message (error-of (plot/heat-map [[##NaN []]])))
                         "must be [seconds histograms]")))))

(deftest largest-entries
  (testing "the largest first, with the numbers of all CPUs added"
    (are [values entries options] (let [spec (plot/top entries options)]
                                    (and (valid? spec)
                                         (= values (map (juxt :key :value)
                                                        (get-in spec [:data :values])))))
      [["b" 3] ["a" 1]] {"a" 1 "b" 3} nil
      [["b" 3]] {"a" 1 "b" 3} {:limit 1}
      [["a" 5]] [["a" [2 3]]] nil
      [["a" 7]] [["a" {:rx {:bytes 7}}]] {:field "rx.bytes"}
      [["a" 9]] [["a" [{:bytes 4} {:bytes 5}]]] {:field :bytes}
      [["a" 2]] [["a" {:slots [1 2]}]] {:field [:slots 1]}
      [["src=10.0.0.1 port=443" 8]] [{:key {:src "10.0.0.1" :port 443} :value 8}] nil
      [["[1 [2 x]]" 18446744073709551615N]] [[[1 [2 :x]] 18446744073709551615N]] nil
      [] [] nil)))

(kernel-test rates-of-a-watched-map
  (testing "the frames of watch as lines, of the entries that changed most"
    (with-open [^Closeable m (bpf/create {:name "t_plot" :type :hash :key :u32
                                          :value [:struct [:n :u64] [:bytes :u64]]
                                          :max-entries 8})]
      (dotimes [k 4] (bpf/put! m k {:n 0 :bytes 0}))
      (let [frames (transduce (map (fn [frame]
                                     (dotimes [k 4]
                                       (let [v (m k)]
                                         (bpf/put! m k (update v :bytes + (* 1000 (inc k))))))
                                     frame))
                              conj []
                              (exec/watch {:ref m :interval 0.2 :seconds 0.9}))
            spec (plot/rates frames {:field :bytes :limit 2})]
        (is (valid? spec))
        (is (= ["3" "2"] (get-in spec [:encoding :color :sort])))
        (is (= #{"3" "2"} (set (map :key (get-in spec [:data :values])))))
        (is (every? pos? (map :rate (filter #(= "3" (:key %)) (get-in spec [:data :values])))))
        (is (str/includes? (:message (error-of (plot/rates frames)))
                           "give one of its fields as :field, such as :n"))))))

(deftest maps-as-entries
  (testing "an open map is a collection of its entries"
    (with-open [^Closeable m (sim/create {:name "t_plot" :type :percpu-hash :key :ipv4
                                          :value :u64 :max-entries 4})]
      (bpf/put! m "10.0.0.1" [1 2])
      (is (= [{:key "10.0.0.1" :value 3}] (get-in (plot/top m) [:data :values]))))))

(deftest refused-arguments
  (are [words expr] (let [{:keys [message] :bpfmap/keys [error]} (error-of expr)]
                      (and (is (= :invalid-value error))
                           (is (str/includes? message words))))
    "Histograms must be those of exec/hist, got 7" (plot/histogram 7)
    "Histograms must be those of exec/hist, got [{}]" (plot/histogram [{}])
    "A sample must be [seconds histograms], got [nil []]" (plot/heat-map [[nil []]])
    "The value must have a number, got \"x\"" (plot/top {"a" "x"})
    "give one of its fields as :field, such as :n" (plot/top {"a" {:n 1}})
    "The field bytes must have a number, got {:n 1}" (plot/top {"a" {:n 1}} {:field :bytes})
    "A field must be a name or a path, got 7" (plot/top {"a" 1} {:field 7})
    "Unknown option :fild" (plot/top {"a" 1} {:fild :n})
    ":limit must be a positive 32-bit integer, got 0" (plot/rates [] {:limit 0})
    ":title must be a string, got 1" (plot/histogram [] {:title 1})))

(defspec any-entries 60
  (prop/for-all [entries (gen/vector (gen/tuple gen/any-printable-equatable
                                                (gen/one-of [gen/large-integer gen/ratio
                                                             gen/size-bounded-bigint])) 0 20)]
                (let [spec (plot/top entries)]
                  (and (= (min 10 (count entries)) (count (get-in spec [:data :values])))
                       (valid? (update-in spec [:data :values]
                                          (partial mapv #(update % :value double))))))))
