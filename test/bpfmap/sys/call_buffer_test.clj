(ns bpfmap.sys.call-buffer-test
  (:require [clojure.test :refer [deftest is testing]])
  (:import (bpfmap.sys CallBuffer)))

(set! *warn-on-reflection* true)

(deftest call-buffers-not-shared
  (testing "concurrent calls never share a call buffer, and large ones are not kept"
    ;; In a thread of its own: on this one a test may have left a buffer in use.
    @(future
       (let [a (CallBuffer/take 100)
             b (CallBuffer/take 100)]
         (is (not= (.address (.-memory a)) (.address (.-memory b)))
             "a call inside another's preparation gets its own")
         (.give b)
         (.give a)
         (testing "and is used again"
           (let [c (CallBuffer/take 100)]
             (is (= (.address (.-memory a)) (.address (.-memory c))))
             (.give c)))
         (testing "but a large one is not kept"
           (let [large (CallBuffer/take 1000000)]
             (is (<= 1000000 (.byteSize (.-memory large))))
             (.give large)
             (is (not (.isAlive (.scope (.-memory large)))))))))))
