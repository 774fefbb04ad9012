(ns bpfmap.sys.attr-test
  "The attributes of commands share the thread's memory with element operations, and neither sees
  what the other left."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :refer [kernel-test]]
            [clojure.test :refer [deftest is testing]])
  (:import (bpfmap.sys Abi Attr Bytes Native)
           (java.io Closeable)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(def ^:private all-fields (range 0 168 4))

(defn- values [^Attr attr]
  (mapv #(.int32 attr (int %)) all-fields))

(defn- filled
  "An attribute with a value in each field, and a buffer of the value."
  ^MemorySegment [^Attr attr value size]
  (doseq [offset all-fields] (.int32 attr (int offset) (long value)))
  (let [buffer (.spare attr size)]
    (.fill buffer (unchecked-byte value))
    buffer))

(defn- of? [^MemorySegment buffer value]
  (every? #(= (bit-and 0xff (long value)) (Bytes/getU8 buffer %)) (range (.byteSize buffer))))

(deftest attribute-starts-zeroed
  (testing "an attribute starts with zeros"
    (dotimes [_ 3]
      (with-open [attr (Attr.)]
        (is (every? zero? (values attr)))
        (doseq [size [1 7 4000 100000]]
          (is (of? (.spare attr size) 0) size)
          (filled attr 0x7f7f7f7f size))))))

(deftest separate-memory
  (testing "attributes in use at once do not share memory"
    (doseq [in [(fn [f] (f)) (fn [f] (.join (.start (Thread/ofVirtual) ^Runnable f)))]
            :let [seen (promise)]]
      (in (fn []
            (deliver seen
                     (with-open [a (Attr.)]
                       (let [of-a [(filled a 1 100) (filled a 1 3800) (filled a 1 500)]]
                         (with-open [b (Attr.)]
                           (let [of-b [(filled b 2 100) (filled b 2 5000)]]
                             (with-open [c (Attr.)]
                               (filled c 3 300)
                               (Native/syscall Abi/SYS_CLOSE -1 0 0 0 0))
                             [(set (values a)) (set (values b)) (every? #(of? % 1) of-a)
                              (every? #(of? % 2) of-b)])))))))
      (is (= [#{1} #{2} true true] @seen)))))

(deftest attribute-closed-twice
  (testing "closing an attribute twice returns its memory once"
    (let [seen (promise)]
      (.join (.start (Thread/ofVirtual)
                     #(let [a (Attr.)]
                        (.close a)
                        (.close a)
                        (with-open [b (Attr.) c (Attr.)]
                          (filled b 1 10)
                          (filled c 2 10)
                          (deliver seen [(set (values b)) (set (values c))])))))
      (is (= [#{1} #{2}] @seen)))))

(kernel-test nested-operations
  (testing "element operations between commands use their own attribute"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 8})
                other ^Closeable (bpf/create {:type :array :key :u32 :value :u64 :max-entries 8})]
      (let [commands [(fn [] (with-open [attr (Attr.)] (filled attr 0x7f7f7f7f 64)))
                      #(bpf/info m)
                      #(bpf/close (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 8
                                               :name "attr"}))
                      #(bpf/close (bpf/open (:id (bpf/info m))))
                      #(bpf/put! other 1 2)
                      #(get m 7)
                      #(bpf/snapshot m)]
            operations [#(do (bpf/put! m 1 1) (get m 1))
                        #(bpf/insert! m 1 5)
                        #(bpf/replace! m 1 1)
                        #(bpf/next-key m 9)
                        #(get other 1)
                        #(do (bpf/put! m 2 2) (bpf/delete! m 2))]
            run #(mapv (fn [f] (f)) operations)]
        (bpf/put! other 1 2)
        (let [expected (run)]
          (doseq [command commands operation (range (count operations))]
            (command)
            (is (= (expected operation) ((operations operation)))))
          (testing "in a command, as a codec that reads another map would"
            (with-open [attr (Attr.)]
              (let [buffer (filled attr 0x7f 1000)]
                (is (= expected (run)))
                (is (= #{0x7f} (set (values attr))))
                (is (of? buffer 0x7f))))))))))
