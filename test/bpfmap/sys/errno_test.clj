(ns bpfmap.sys.errno-test
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.impl.errno :as errno]
            [clojure.test :refer [deftest is testing]])
  (:import (bpfmap.sys Errno)))

(set! *warn-on-reflection* true)

(deftest names-match-header
  (testing "every errno that the C header names has this name, and no other number has one"
    (let [named (into {} (keep #(when-let [s (Errno/name %)] [s %])) (range -10 1000))
          ;; Internal to the kernel: no header that user space sees has it.
          internal #{"ENOTSUPP"}
          header (fixture/c-values ["errno.h"] (keys named))]
      (is (= 132 (count named)))
      (is (= 524 (named "ENOTSUPP")))
      (is (= [:EPERM :ENOTSUPP -1 4242] (map errno/errno-name [1 524 -1 4242])))
      (if-not header
        (fixture/skip! "no C compiler to compare the names with")
        (is (= (apply dissoc named internal) header))))))
