(ns bpfmap.exec.listing-test
  (:require [bpfmap.exec.listing :as listing]
            [clojure.test :refer [deftest is testing]]))

(set! *warn-on-reflection* true)

(deftest keys-in-order
  (testing "a row has the leading keys first and the others by name, whatever their order before"
    (let [order (listing/order [:id :name :held :pinned])
          info {:map-extra 1 :name "m" :btf-id 2 :ifindex 3 :id 4 :btf-key-type-id 5}]
      (dotimes [_ 20]
        (is (= [[:id 4] [:name "m"] [:held []] [:btf-id 2] [:btf-key-type-id 5] [:ifindex 3]
                [:map-extra 1]]
               (seq (listing/ordered order (into (array-map) (shuffle (seq info))) {:held []})))))
      (is (= {} (listing/ordered order {} nil)))
      (is (= [[:id nil]] (seq (listing/ordered order {:id nil} nil)))))))
