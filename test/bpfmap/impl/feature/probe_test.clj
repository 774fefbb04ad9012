(ns bpfmap.impl.feature.probe-test
  "How answers of the kernel are judged, without one."
  (:require [bpfmap.fixture :refer [kernel-test]]
            [bpfmap.impl.feature.probe :as probe]
            [clojure.test :refer [are deftest is testing]]))

(set! *warn-on-reflection* true)

(defn- refusing [errno]
  #(throw (ex-info "refused" {:bpfmap/error :kernel :bpfmap/errno errno})))

(deftest errnos-of-failed-create
  (testing "a rejected create means unsupported only for certain errnos"
    (are [answer errno] (= answer (probe/of-creation #{:EBADF} #{:E2BIG} (refusing errno)))
      {:supported false} :EINVAL
      {:supported false} :ENOTSUPP
      {:supported false} :EOPNOTSUPP
      {:supported true} :EBADF
      {:supported false} :E2BIG
      {:supported nil :why "refused"} :EPERM
      {:supported nil :why "refused"} :ENOMEM
      {:supported nil :why "refused"} nil)
    (testing "features known by an errno that means unsupported elsewhere"
      (is (= {:supported true} (probe/of-creation #{:ENOTSUPP} nil (refusing :ENOTSUPP)))))))

(deftest errnos-of-operations
  (testing "an operation that finds no element is supported"
    (are [supported? outcome]
         (= supported? (:supported (probe/of-operation nil outcome {:op :create})))
      true 0
      true -2 ; ENOENT
      true -9 ; EBADF
      true -7 ; E2BIG
      true -17 ; EEXIST
      true -28 ; ENOSPC
      false -22 ; EINVAL
      false -95 ; EOPNOTSUPP
      false -524 ; ENOTSUPP
      nil -1 ; EPERM
      nil -12 ; ENOMEM
      nil -24) ; EMFILE
    (is (= {:supported true} (probe/of-operation #{:EINVAL} -22 {:op :create})))
    (is (re-find #"failed with EPERM" (:why (probe/of-operation nil -1 {:op :create}))))))

(kernel-test unknown-type-not-probed
  (testing "does not probe operations of an unknown type"
    (is (= {:supported nil :why "bpfmap does not know what a map of type 4242 is like"}
           (probe/try-operation 4242 :lookup)))))
