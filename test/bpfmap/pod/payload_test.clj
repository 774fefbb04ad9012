(ns bpfmap.pod.payload-test
  "EDN between the pod and its client: a written value is read as the same value, or is rejected."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.fixture :refer [error-of]]
            [bpfmap.pod.handles :as handles]
            [bpfmap.pod.payload :as payload]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.test :refer [deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :refer [for-all]]))

(set! *warn-on-reflection* true)

(defn- through [x]
  (let [table (handles/table)]
    (first (payload/read-args table (str "[" (payload/write table x) "]")))))

(defspec typed-values-round-trip 200
  (for-all [value (gen/let [t types/a-type] (type/->generator t))]
           (= value (through value))))

(defspec any-data-round-trips 200
  (for-all [x (gen/recursive-gen #(gen/one-of [(gen/vector %) (gen/map % %) (gen/set %)])
                                 (gen/one-of [gen/small-integer gen/size-bounded-bigint gen/string
                                              gen/boolean gen/keyword
                                              gen/symbol gen/uuid gen/char (gen/return nil)
                                              (gen/fmap
                                               bytes/->bytes (gen/vector (gen/choose 0 255)))]))]
           (= x (through x))))

(deftest special-numbers
  (testing "NaN, infinities and decimals survive"
    (is (= [##Inf ##-Inf] (through [##Inf ##-Inf])))
    (is (NaN? (through ##NaN)))
    (is (= 0.1M (through 0.1M)))))

(deftest print-settings-ignored
  (testing "the print settings of the server do not affect the client"
    (binding [*print-length* 1, *print-level* 1, *print-readably* false
              *print-namespace-maps* true]
      (is (= [[1 2] {:a/b "c"}] (through [[1 2] {:a/b "c"}]))))))

(deftest metadata-of-skipped-objects
  (testing "keeps the metadata of omitted objects"
    (let [skipped [{:id 3 :error :permission :message "No \"x\""}]]
      (is (= {:skipped skipped} (meta (through (with-meta [1 2] {:skipped skipped :line 7})))))
      (is (nil? (meta (through (with-meta [1] {:line 7}))))))))

(deftest not-data-not-sent
  (testing "rejects values that are not data"
    (doseq [x [(Object.) (byte-array 2) inc (keyword "a b") (keyword "a}") (symbol "\"") (atom 1)]]
      (is (= :not-supported (:bpfmap/error (error-of (payload/write (handles/table) [x]))))
          (pr-str x)))
    (is (= "The result must be data, got \"java.lang.Object\""
           (:message (error-of (payload/write (handles/table) {:a (Object.)})))))))
