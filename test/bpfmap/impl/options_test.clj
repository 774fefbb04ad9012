(ns bpfmap.impl.options-test
  (:require [bpfmap.fixture :refer [error-of]]
            [bpfmap.impl.options :as options]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]))

(set! *warn-on-reflection* true)

(deftest every-row
  (testing "each operation rejects unknown options, bad values and anything but a map"
    (doseq [[op known] @#'options/options-of]
      (is (nil? (options/check op nil)))
      (is (= {} (options/check op {})))
      (doseq [odd [5 [:lock] "x"]]
        (is (= [:invalid-value op [] (str "Options must be a map, got " (pr-str odd))]
               ((juxt :bpfmap/error :bpfmap/op :bpfmap/path :message)
                (error-of (options/check op odd))))))
      (doseq [k [:no-such "lock" nil]]
        (let [{:keys [message] :bpfmap/keys [error hint path]}
              (error-of (options/check op (sorted-map k 1)))]
          (is (= [:invalid-value [k]] [error path]))
          (is (str/starts-with? message (str "Unknown option " (pr-str k) ": ")))
          (is (every? #(str/includes? hint (str %)) (keys known)))))
      (doseq [[k [_ text]] known :when text]
        (is (str/starts-with? (:message (error-of (options/check op {k ::odd})))
                              (str k " must be " text ", got :bpfmap.impl.options-test/odd")))))))

(deftest hints
  (testing "the hint lists the options of the function"
    (are [op options message] (= message (:message (error-of (options/check op options))))
      :take! {:lok true} "Unknown option :lok: take! takes :lock"
      :list {:breif true} "Unknown option :breif: maps takes :brief"
      :put! {:lock 1} ":lock must be true or false, got 1"
      :create {:pin "/x"} "Unknown option :pin: create takes :pin-path and :mapped"
      :create {:via :memory} "Unknown option :via: use {:mapped true}"
      :open {:via :memory} "Unknown option :via: use {:mapped true}"
      :take! {:via :memory} "Unknown option :via: take! takes :lock")))
