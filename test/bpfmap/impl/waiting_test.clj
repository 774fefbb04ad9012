(ns bpfmap.impl.waiting-test
  (:require [bpfmap.impl.waiting :as waiting]
            [clojure.test :refer [deftest is testing]]))

(set! *warn-on-reflection* true)

(def ^:private ^:dynamic *scope* nil)

(deftest beside-returns-both
  (let [here (Thread/currentThread)
        [[other scope] this] (binding [*scope* :mine]
                               (waiting/beside (fn [] [(Thread/currentThread) *scope*])
                                               #(Thread/currentThread)))]
    (is (= here this))
    (is (not= here other))
    (is (= :mine scope) "with the bindings of the caller")))

(deftest beside-throws
  (let [error #(throw (ex-info % {}))
        ended (atom 0)
        ends #(do (Thread/sleep 20) (swap! ended inc))]
    (is (thrown-with-msg? Exception #"^f$" (waiting/beside #(error "f") ends)))
    (is (thrown-with-msg? Exception #"^g$" (waiting/beside ends #(error "g"))))
    (is (thrown-with-msg? Exception #"^g$" (waiting/beside #(error "f") #(error "g"))))
    (is (= 2 @ended) "after both have ended")))

(deftest beside-in-spite-of-interrupt
  (testing "an interrupt does not end the wait, and is kept"
    (let [[both kept?] (do (.interrupt (Thread/currentThread))
                           [(waiting/beside #(do (Thread/sleep 200) 1) (constantly 2))
                            (Thread/interrupted)])]
      (is (= [1 2] both))
      (is kept?))))
