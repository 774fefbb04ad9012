(ns bpfmap.bytes-test
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.fixture :refer [error-of]]
            [clojure.edn :as edn]
            [clojure.pprint :as pprint]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop]))

(set! *warn-on-reflection* true)

(def ^:private byte-arrays gen/bytes)

(defspec equal-bytes-equal-views 200
  (prop/for-all [a byte-arrays b byte-arrays]
                (let [x (bytes/->bytes a) y (bytes/->bytes b)]
                  (and (= x (bytes/->bytes (aclone ^bytes a)))
                       (= (hash x) (hash (bytes/->bytes (vec a))))
                       (= (= (seq a) (seq b)) (= x y))
                       (= (= x y) (zero? (compare x y)))))))

(defspec printing-round-trip 200
  (prop/for-all [a byte-arrays]
                (let [x (bytes/->bytes a)]
                  (and (= x (eval (read-string (pr-str x)))
                          (first (eval (read-string (pr-str [x])))))
                       (= x (edn/read-string {:readers {'bpfmap/bytes bytes/->bytes}} (pr-str x)))
                       (= x (binding [*print-dup* true] (read-string (pr-str x))))
                       (= x (bytes/->bytes (str x)))))))

(defspec view-is-a-collection 200
  (prop/for-all [a byte-arrays]
                (let [x (bytes/->bytes a)
                      expected (mapv #(bit-and 0xff %) a)]
                  (and (= expected (vec x) (into [] x) (mapv #(nth x %) (range (count x))))
                       (= (count expected) (count x))
                       (= (reduce + 0 expected) (reduce + x) (reduce + 0 x))
                       (= (seq expected) (seq x))))))

(deftest view-copies-its-bytes
  (testing "a view copies its bytes"
    (let [array (byte-array [1 2])
          view (bytes/->bytes array)]
      (aset array 0 (byte 9))
      (is (= [1 2] (vec view)))
      (aset (bytes/->array view) 0 (byte 9))
      (is (= [1 2] (vec view))))))

(deftest indices-out-of-range
  (testing "an index outside the view returns the default or throws"
    (let [view (bytes/->bytes [1 2])]
      (is (= :none (nth view 2 :none) (nth view -1 :none)))
      (is (thrown? IndexOutOfBoundsException (nth view 2)))
      (is (= 2 (get view 1)))
      (is (nil? (get view 2)))
      (is (nil? (get view 99999999999)))
      (is (nil? (get view :a))))))

(deftest unsigned-sort-order
  (testing "sorts views as unsigned bytes from left to right"
    (is (= ["" "00" "00 ff" "7f" "80"]
           (map str (sort (map bytes/->bytes ["80" "7f" "" "00 ff" "00"])))))))

(deftest reduce-stops-at-reduced
  (testing "reduce stops at a reduced value"
    (is (= 1 (reduce (fn [_ x] (reduced x)) nil (bytes/->bytes [1 2 3]))))))

(deftest hexadecimal-formats
  (testing "reads hexadecimal in every common notation"
    (is (= #{(bytes/->bytes [10 0 255])}
           (into #{} (map bytes/->bytes)
                 ["0a00ff" "0A 00 FF" "0a:00:ff" "0x0a00ff" "0x0a 0x00 0xff"])))))

(deftest values-not-bytes
  (testing "rejects values that are not bytes and reports the value"
    (testing "an odd digit"
      (let [{:keys [message] :bpfmap/keys [error]} (error-of (bytes/->bytes "0a0"))]
        (is (= :invalid-value error))
        (is (str/includes? message "Bytes must be pairs of hexadecimal digits"))))
    (testing "an element out of range"
      (is (str/includes? (:message (error-of (bytes/->bytes [256])))
                         "Bytes must be integers from -128 to 255, got ")))
    (testing "something else"
      (is (str/includes? (:message (error-of (bytes/->bytes 7))) "Bytes must be a byte array")))))

(deftest print-length-limits
  (testing "printing honours *print-length*"
    (is (= "#bpfmap/bytes \"00 00 …\""
           (binding [*print-length* 2] (pr-str (bytes/->bytes (byte-array 1000))))))
    (is (= "#bpfmap/bytes \"01\"\n" (with-out-str (pprint/pprint (bytes/->bytes [1])))))))
