(ns bpfmap.impl.object.externs-test
  "Values of the kernel's configuration, in the types that programs declare."
  (:require [bpfmap.fixture :refer [kernel-test]]
            [bpfmap.impl.kernel.config :as config]
            [bpfmap.impl.object.externs :as externs]
            [clojure.test :refer [are deftest is testing]])
  (:import (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

(deftest configuration-lines
  (testing "lines with values count"
    (is (= {"CONFIG_HZ" "250" "CONFIG_NAME" "\"a=b\"" "CONFIG_X" "m"}
           (config/parse (str "# a comment\nCONFIG_HZ=250\n# CONFIG_Y is not set\n"
                              "CONFIG_NAME=\"a=b\"\nCONFIG_X=m\n"))))))

(def ^:private tristate [:enum :u32 {:TRI_NO 0 :TRI_YES 1 :TRI_MODULE 2}])

(defn- number [^bytes bytes]
  (.getInt (.order (ByteBuffer/wrap bytes) (ByteOrder/nativeOrder))))

(deftest values-of-types
  (testing "a value is encoded for its type"
    (are [expected text type] (= expected (some-> (externs/encode-config text type) vec))
      [1] "y" :bool
      [0] "n" :bool
      nil "m" :bool
      [1] "1" :bool
      [109] "m" :char
      [97 98 0 0] "\"ab\"" [:string 4]
      [97 98 99 0] "\"abcdef\"" [:string 4]
      [0] "\"(none)\"" [:string 1]
      nil "\"ab\"" :u32
      nil "12" [:string 4]
      [-1] "255" :u8
      nil "256" :u8
      [-128] "-128" :s8
      nil "-129" :s8
      nil "-1" :u8
      nil "twelve" :u32)
    (are [expected text type] (= expected (number (externs/encode-config text type)))
      250 "250" :u32
      -2 "-2" :s32
      255 "0xff" :u32
      2 "m" tristate
      0 "n" tristate)))

(deftest layout-of-values
  (testing "values with the largest alignment come first"
    (is (= {:size 13 :offsets {"B" 0 "A" 8 "C" 12}}
           (externs/config-layout {"A" {:type :u32} "B" {:type :u64} "C" {:type :bool}})))))

(kernel-test virtual-values
  (testing "the version of the kernel is a value"
    (is (< 0x40000 (externs/kernel-version)))
    (is (= (externs/kernel-version)
           (number (externs/config-bytes "LINUX_KERNEL_VERSION" {:type :u32}))))
    (is (#{0 1} (first (externs/config-bytes "LINUX_HAS_BPF_COOKIE" {:type :bool}))))))
