(ns bpfmap.impl.elf.symbols-test
  "Symbols of this machine's C library and of files that are malformed."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.impl.elf.symbols :as symbols]
            [clojure.java.io :as io]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io RandomAccessFile)
           (java.nio.file Files Path)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

(defn- reader
  "Returns a function that reads a file, as `symbols/open` takes it."
  [path]
  (fn [offset size]
    (with-open [file (RandomAccessFile. (str path) "r")]
      (let [bytes (byte-array (max 0 (min (long size) (- (.length file) (long offset)))))]
        (.seek file offset)
        (.readFully file bytes)
        bytes))))

(defn- in-bytes [^bytes all]
  (fn [offset size]
    (let [from (min (alength all) (long offset))]
      (Arrays/copyOfRange all (int from) (int (min (alength all) (+ from (long size))))))))

(def ^:private libc
  "The path of the C library of this process."
  (delay (some #(re-find #"/\S+/libc\.so\.6|/\S+/ld-musl\S+" %)
               (Files/readAllLines (Path/of "/proc/self/maps" (make-array String 0))))))

(deftest name-to-address-and-back
  (testing "a function of the C library is found by its name, and its name by its address"
    (let [elf (symbols/open (reader @libc))
          name-of (symbols/address->function elf)]
      (doseq [name ["malloc" "getpid" "qsort" "strtol"]
              :let [address (symbols/function->address elf name)]]
        (testing name
          (is (pos? (long address)))
          (is (= {:name name :offset 0} (name-of address)))
          (is (= {:name name :offset 1} (name-of (inc (long address)))))
          (is (= address (symbols/offset->address elf (symbols/address->offset elf address))))))
      (is (nil? (symbols/function->address elf "no_such_function")))
      (is (nil? (name-of 0)))
      (is (nil? (symbols/address->offset elf -1))))))

(deftest agrees-with-readelf
  (testing "build id and addresses are those of readelf"
    (if-not (fixture/executable "readelf")
      (fixture/skip! "readelf is not installed")
      (let [elf (symbols/open (reader @libc))
            {:keys [out]} (fixture/run ["readelf" "-n" "-W" "--dyn-syms" @libc])]
        (is (= (second (re-find #"Build ID: ([0-9a-f]+)" out)) (symbols/build-id elf)))
        (doseq [[_ address name] (take 200 (re-seq
                                       #"(?m)([0-9a-f]{16}) +\d+ FUNC +GLOBAL +DEFAULT +\d+ (\w+)@@"
                                       out))
                :when (not (re-find (re-pattern (str "FUNC .* " name "@\\w")) out))]
          (is (= (Long/parseLong address 16) (symbols/function->address elf name)) name))))))

(deftest other-files
  (testing "a file that is not a 64-bit ELF file has no symbols"
    (is (nil? (symbols/open (in-bytes (byte-array 0)))))
    (is (nil? (symbols/open (in-bytes (.getBytes "#!/bin/sh\necho a script that is longer than a header of ELF\n")))))
    (is (nil? (symbols/open (in-bytes (byte-array 64)))))))

(deftest malformed-files
  (testing "headers with any bytes throw nothing"
    (let [^bytes whole ((reader @libc) 0 (.length (io/file @libc)))
          random (java.util.Random. 7)]
      (dotimes [_ 60]
        (let [bytes (Arrays/copyOf whole 4096)]
          (dotimes [_ 20]
            (aset bytes (+ 5 (.nextInt random 600)) (unchecked-byte (.nextInt random))))
          (let [elf (symbols/open (in-bytes bytes))]
            (symbols/build-id elf)
            (is (nil? ((symbols/address->function elf) 64)))
            (symbols/function->address elf "malloc")
            (symbols/offset->address elf 64)))))))
