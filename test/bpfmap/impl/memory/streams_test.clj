(ns bpfmap.impl.memory.streams-test
  "Memory behind Java's interfaces: the contracts of streams and channels, and what
  clojure.java.io makes of them."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :refer [error-of kernel-test]]
            [bpfmap.memory :as mem]
            [clojure.java.io :as io]
            [clojure.test :refer [is testing]])
  (:import (java.io ByteArrayOutputStream Closeable IOException)
           (java.nio ByteBuffer)
           (java.nio.channels Channels ClosedChannelException FileChannel)
           (java.nio.file OpenOption StandardOpenOption)))

(set! *warn-on-reflection* true)

(defn- an-array
  "A map of 32 bytes, 0 to 31, or frozen."
  (^Closeable [] (an-array nil))
  (^Closeable [change]
   (bpf/create (merge {:name "t_streams" :type :array :key :u32 :value [:bytes 8] :max-entries 4
                       :flags #{:mmapable}
                       :contents (into {} (map (fn [i] [i (range (* 8 i) (* 8 (inc i)))]))
                                       (range 4))}
                      change))))

(defn- bytes-of ^bytes [& xs] (byte-array xs))

(kernel-test m2-input-stream-end
  (testing "an input stream ends at the end of the memory"
    (with-open [m (an-array)
                memory ^Closeable (bpf/memory m)]
      (let [in (mem/input-stream memory)]
        (is (= [0 1 32] [(.read in) (.read in) (+ 2 (.available in))]))
        (is (= 0 (.read in (byte-array 5) 2 0)) "nothing asked for, nothing read")
        (let [array (byte-array 5)]
          (is (= 3 (.read in array 1 3)))
          (is (= [0 2 3 4 0] (seq array))))
        (is (= [5 0 0] [(.skip in 5) (.skip in 0) (.skip in -3)]))
        (is (= 10 (.read in)))
        (testing "a read at the end returns the remaining bytes, and the next one none"
          (is (= 15 (.skip in 15)))
          (is (= 6 (.available in)))
          (let [array (byte-array 10)]
            (is (= 6 (.read in array)))
            (is (= [26 31 0] [(aget array 0) (aget array 5) (aget array 6)])))
          (is (= [-1 -1 0 0 0]
                 [(.read in) (.read in (byte-array 3)) (.read in (byte-array 0)) (.available in)
                  (.skip in 9)]))
          (is (= 0 (count (.readAllBytes in)))))
        (testing "it can be marked and reset"
          (is (.markSupported in))
          (.reset in)
          (is (= 0 (.read in)) "without a mark, to the beginning")
          (.mark in 0)
          (.readNBytes in 20)
          (.reset in)
          (is (= 1 (.read in))))
        (testing "odd arguments are refused as Java's streams do"
          (is (thrown? IndexOutOfBoundsException (.read in (byte-array 4) 2 3)))
          (is (thrown? IndexOutOfBoundsException (.read in (byte-array 4) -1 2)))
          (is (thrown? NullPointerException (.read in nil 0 1))))
        (testing "closing it leaves the memory mapped"
          (.close in)
          (is (thrown-with-msg? IOException #"the stream is closed" (.read in)))
          (is (thrown? IOException (.available in)))
          (is (= 31 (memory 31)))))
      (testing "a stream of a slice is of the slice"
        (is (= [8 9 10] (seq (.readAllBytes (mem/input-stream (mem/slice memory 8 3))))))))))

(kernel-test m2-all-or-nothing-output
  (testing "an output stream writes everything or nothing"
    (with-open [m (an-array)
                memory ^Closeable (bpf/memory m)]
      (let [out (mem/output-stream memory)]
        (.write out 300)
        (.write out (bytes-of 1 2 3))
        (.write out (bytes-of 7 8 9) 1 1)
        (.flush out)
        (is (= [44 1 2 3 8 5] (take 6 memory)) "300 is written as its low byte")
        (let [{:keys [message] :bpfmap/keys [error op]} (error-of (.write out (byte-array 28)))]
          (is (= [:out-of-range :write] [error op]))
          (is
           (re-find
            #"^No room for 28 more bytes in the memory of map \d+ \(t_streams\): memory does not grow$" message)))
        (is (= [5 6] [(memory 5) (memory 6)]) "nothing of it was written")
        (.write out (byte-array 27))
        (is (re-find #"No room for 1 more byte in" (:message (error-of (.write out 1)))))
        (.write out (byte-array 0))
        (is (thrown? IndexOutOfBoundsException (.write out (byte-array 4) 2 3)))
        (.close out)
        (is (thrown? IOException (.write out 1)))
        (is (not (mem/closed? memory)))))))

(kernel-test channel-at-any-position
  (testing "a channel reads and writes at any position"
    (with-open [m (an-array)
                memory ^Closeable (bpf/memory m)]
      (let [channel (mem/channel memory)
            read-some (fn [n]
                        (let [buffer (ByteBuffer/allocate n)]
                          [(.read channel buffer) (take (.position buffer) (.array buffer))]))]
        (is (= [32 0 true] [(.size channel) (.position channel) (.isOpen channel)]))
        (is (= [4 [0 1 2 3]] (read-some 4)))
        (is (= [0 []] (read-some 0)))
        (is (identical? channel (.position channel 30)))
        (is (= [2 [30 31]] (read-some 9)))
        (is (= [-1 []] (read-some 1)))
        (is (= [0 []] (read-some 0)) "which is not the end, for nothing was asked for")
        (.position channel 1000)
        (is (= [-1 []] (read-some 1)) "a position beyond the end is none that is wrong")
        (testing "it writes as much as fits"
          (.position channel 29)
          (let [buffer (ByteBuffer/wrap (bytes-of 1 2 3 4 5))]
            (is (= 3 (.write channel buffer)))
            (is (= 2 (.remaining buffer)))
            (is (= [1 2 3] (seq (mem/slice memory 29))))
            (is (= :out-of-range (:bpfmap/error (error-of (.write channel buffer)))))
            (is (= 0 (.write channel (ByteBuffer/allocate 0))))))
        (testing "its size stays"
          (is (identical? channel (.truncate channel 40)))
          (.position channel 35)
          (.truncate channel 33)
          (is (= 33 (.position channel)))
          (let [{:keys [message] :bpfmap/keys [error]} (error-of (.truncate channel 31))]
            (is (= :not-supported error))
            (is (re-find #"cannot be cut to 31 bytes: a map keeps its size" message)))
          (is (= :out-of-range (:bpfmap/error (error-of (.position channel -1))))))
        (testing "files go in and out"
          (let [file (java.io.File/createTempFile "bpfmap" ".bytes")
                options (into-array OpenOption [StandardOpenOption/READ StandardOpenOption/WRITE])]
            (try
              (with-open [on-disk (FileChannel/open (.toPath file) options)]
                (is (= 32 (.transferFrom on-disk (.position channel 0) 0 32)))
                (mem/fill! memory 0)
                (is (= 32 (.transferTo on-disk 0 32 (.position channel 0)))))
              (is (= [0 1 2 3] (take 4 memory)))
              (finally (.delete file)))))
        (testing "a closed one refuses everything"
          (.close channel)
          (is (not (.isOpen channel)))
          (is (thrown? ClosedChannelException (.position channel)))
          (is (thrown? ClosedChannelException (read-some 1)))
          (is (= 0 (memory 0)))))
      (testing "what the JDK makes of a channel"
        (is (= 32 (count (.readAllBytes (Channels/newInputStream (mem/channel memory))))))))))

(kernel-test clojure-java-io-memory
  (testing "clojure.java.io accepts memory"
    (with-open [m (an-array)
                memory ^Closeable (bpf/memory m)]
      (with-open [out (io/output-stream memory)]
        (io/copy "Zwölf Boxkämpfer" out :encoding "UTF-8"))
      (is (= "Zwölf Boxkämpfer" (slurp (mem/slice memory 0 18))))
      (with-open [reader (io/reader (mem/slice memory 0 18))]
        (is (= "Zwölf Boxkämpfer" (.readLine ^java.io.BufferedReader reader))))
      (let [bytes (ByteArrayOutputStream.)]
        (io/copy (io/input-stream memory) bytes)
        (is (= (map unchecked-byte memory) (seq (.toByteArray bytes)))))
      (with-open [writer (io/writer (mem/slice memory 20))]
        (.write writer "hi"))
      (is (= [104 105] (seq (mem/slice memory 20 2))))
      (spit memory "there")
      (is (= "there" (slurp (mem/slice memory 0 5)))))))

(kernel-test m3-read-only-streams
  (testing "streams and channels reject writes to read-only memory"
    (with-open [m (an-array {:freeze true})
                memory ^Closeable (bpf/memory m)]
      (is (= [:read-only :output-stream]
             ((juxt :bpfmap/error :bpfmap/op) (error-of (mem/output-stream memory)))))
      (is (= :read-only (:bpfmap/error (error-of (io/output-stream memory)))))
      (let [channel (mem/channel memory)]
        (is (= 8 (.read channel (ByteBuffer/allocate 8))))
        (is (= :read-only (:bpfmap/error (error-of (.write channel (ByteBuffer/allocate 1))))))))))

(kernel-test m5-closed-memory-streams
  (testing "streams and channels of closed memory throw"
    (with-open [m (an-array)]
      (let [memory (bpf/memory m)
            in (mem/input-stream memory)
            ended (doto (mem/input-stream memory) .readAllBytes)
            out (mem/output-stream memory)
            full (doto (mem/output-stream memory) (.write (byte-array 32)))
            channel (mem/channel memory)]
        (mem/close memory)
        (doseq [[what f] {"read" #(.read in), "read into" #(.read in (byte-array 3))
                          "available" #(.available in), "skip" #(.skip in 1)
                          "at the end" #(.read ended)
                          "write" #(.write out 1), "write all" #(.write out (byte-array 3))
                          "where nothing fits" #(.write full 1)
                          "channel" #(.read channel (ByteBuffer/allocate 1))
                          "size" #(.size channel)
                          "channel, write" #(.write channel (ByteBuffer/allocate 1))}]
          (testing what
            (is (= :closed (:bpfmap/error (error-of (f)))))))
        (is (not (.isOpen channel)))
        (is (nil? (.close in)) "closing them is fine")
        (is (nil? (.close channel)))))))
