(ns bpfmap.feature-test
  (:require [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.sys :as sys]
            [bpfmap.rules :as rules]
            [clojure.string :as str]
            [clojure.test :refer [is testing]]))

(set! *warn-on-reflection* true)

(defn- newer? [row]
  (not (rules/at-least? (sys/kernel-release) (:since row))))

(kernel-test types-are-found-out-by-trying
  (let [before (fixture/open-descriptors)]
    (doseq [[type row] rules/types
            :let [{:keys [supported? why]} (feature/map-type type)]]
      (testing type
        (if (nil? supported?)
          (is (re-find #"it needs (BTF|an inner map)" why))
          ;; A kernel may have more than its release says, never less.
          (is (or supported? (newer? row))))))
    (is (= before (fixture/open-descriptors))))
  (is (= {:supported? false} (feature/map-type 4242)))
  (testing "by number as by name"
    (doseq [[type {:keys [number]}] rules/types]
      (is (= (feature/map-type type) (feature/map-type number)) (str type))))
  (doseq [x [nil {} "hash" :no-such-type -1 1e9]]
    (is (= :invalid-value (:bpfmap/error (fixture/error-of (feature/map-type x)))) (pr-str x)))
  (is (str/includes? (:message (fixture/error-of (feature/map-flag :hash :fast))) "Not a create flag: :fast")))

(kernel-test flags-are-found-out-by-trying
  (is (= {:supported? true} (feature/map-flag :hash :no-prealloc)))
  (is (= {:supported? true} (feature/map-flag :array :mmapable) (feature/map-flag 2 1024)))
  (is (= {:supported? true} (feature/map-flag :stack-trace :stack-build-id)))
  (is (= {:supported? false} (feature/map-flag :hash 0x40000000)))
  (is (= {:supported? false} (feature/map-flag :hash :mmapable)))
  (is (= {:supported? false} (feature/map-flag 4242 :mmapable))))

(kernel-test s11-a-missing-capability-is-not-remembered-as-unsupported
  ;; A pair that no other test asks for, so that the first answer is the one without the capability.
  (let [{:keys [supported? why]} (fixture/unprivileged #(feature/map-flag :array :numa-node))]
    (is (nil? supported?))
    (is (str/includes? why "CAP_BPF")))
  (let [{:keys [supported? why]} (fixture/unprivileged #(feature/map-type :xskmap))]
    ;; Remembered, if another test asked with the capability before.
    (is (or supported? (str/includes? why "CAP_BPF"))))
  (is (= {:supported? true} (feature/map-type :xskmap) (feature/map-flag :array :wronly-prog))))

(kernel-test what-is-lacking-is-said-with-the-release-that-brought-it
  (is (nil? (feature/unsupported {:type :hash :flags #{:no-prealloc}})))
  (is (str/includes? (feature/unsupported {:type 4242 :flags #{}})
                     "has no map type 4242, which bpfmap does not know either"))
  (is (str/includes? (feature/unsupported {:type :hash :flags #{:no-prealloc 0x20000000 0x40000000}})
                     "does not take"))
  (when (newer? (:rhash rules/types))
    (is (str/includes? (feature/unsupported {:type :rhash :flags #{}}) "has no map type :rhash, which came with Linux 7.2"))))
