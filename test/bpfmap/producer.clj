(ns bpfmap.producer
  "Programs that send events, and files that look like a ring buffer.

  A program sends one record for each run of `bpfmap.prog/test-run`."
  (:require [bpfmap.asm :as asm]
            [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.prog :as kernel.prog]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.prog :as prog])
  (:import (bpfmap.sys Fd FileSyscalls MappedMemory RingBuffer RingFollower)
           (java.io Closeable File RandomAccessFile)
           (java.lang.foreign Arena MemorySegment ValueLayout)))

(set! *warn-on-reflection* true)

(def no-wakeup "BPF_RB_NO_WAKEUP, source linux/bpf.h." 1)
(def force-wakeup "BPF_RB_FORCE_WAKEUP." 2)

(defn ring
  "A ring buffer of so many bytes, or of the fewest."
  (^Closeable [] (ring fixture/page-size))
  (^Closeable [size] (bpf/create {:name "events" :type :ringbuf :max-entries size})))

(def ^:private room
  "Bytes of stack for a record."
  480)

(defn sender
  "A program that sends its packet as a record, see [[send!]]."
  (^Closeable [m] (sender m 0))
  (^Closeable [m flags]
   (prog/load {:type :socket-filter
               :insns [;; Before 6.3, helpers may not read stack that was never written.
                       (for [offset (range (- room) 0 8)] [:stdw [:r10 offset] 0])
                       [:mov64 :r6 :r1]
                       [:ldxw :r7 [:r1 0]] ; the length, without the 14 bytes of the link layer
                       [:jlt :r7 1 :send] ; not :jeq, from which older verifiers learn nothing
                       [:jgt :r7 room :end]
                       [:mov64 :r1 :r6]
                       [:mov64 :r2 0]
                       [:mov64 :r3 :r10]
                       [:add64 :r3 (- room)]
                       [:mov64 :r4 :r7]
                       [:call :skb-load-bytes]
                       :send
                       [:lddw :r1 m]
                       [:mov64 :r2 :r10]
                       [:add64 :r2 (- room)]
                       [:mov64 :r3 :r7]
                       [:mov64 :r4 flags]
                       [:call :ringbuf-output]
                       [:exit]
                       :end
                       [:mov64 :r0 1]
                       [:exit]]})))

(defn send!
  "Sends bytes, at most 480, as a record; returns what the helper returned, such as -11 for a full
  ring."
  ([program x] (send! program x 1))
  ([program x times]
   (let [payload (bytes/->array x)
         packet (byte-array (+ 14 (alength payload)))]
     (System/arraycopy payload 0 packet 14 (alength payload))
     (long (unchecked-int (:return (prog/test-run program {:data packet :repeat times})))))))

(defn of-longs
  "The bytes of numbers of eight bytes, in the order of this machine."
  ^bytes [& xs]
  (let [array (byte-array (* 8 (count xs)))
        memory (MemorySegment/ofArray array)]
    (doseq [[i x] (map-indexed vector xs)]
      (.set memory ValueLayout/JAVA_LONG_UNALIGNED (* 8 (long i)) (long x)))
    array))

(def check-factor "What a number is multiplied with for the third field of [[numbering]]." 1000003)

(defn numbering
  "A program that sends {id, n, n * check-factor ^ id}, three u64, where n counts the records that
  found room, in the array `counter`."
  ^Closeable [m counter id]
  (prog/load {:type :socket-filter
              :insns [[:stw [:r10 -4] 0]
                      [:lddw :r1 counter]
                      [:mov64 :r2 :r10]
                      [:add64 :r2 -4]
                      [:call :map-lookup-elem]
                      [:jeq :r0 0 :end]
                      [:mov64 :r6 :r0]
                      [:ldxdw :r7 [:r6 0]]
                      [:stdw [:r10 -32] id]
                      [:stxdw [:r10 -24] :r7]
                      [:mov64 :r1 :r7]
                      [:mul64 :r1 check-factor]
                      [:xor64 :r1 id]
                      [:stxdw [:r10 -16] :r1]
                      [:lddw :r1 m]
                      [:mov64 :r2 :r10]
                      [:add64 :r2 -32]
                      [:mov64 :r3 24]
                      [:mov64 :r4 0]
                      [:call :ringbuf-output]
                      [:jne :r0 0 :end]
                      [:add64 :r7 1]
                      [:stxdw [:r6 0] :r7]
                      :end
                      [:exit]]}))

(defn reserving
  "A program that reserves a record of 16 bytes, and then submits or discards it."
  ^Closeable [m how]
  (prog/load {:type :socket-filter
              :insns [[:lddw :r1 m]
                      [:mov64 :r2 16]
                      [:mov64 :r3 0]
                      [:call :ringbuf-reserve]
                      [:jeq :r0 0 :end]
                      [:stdw [:r0 0] 7]
                      [:stdw [:r0 8] 8]
                      [:mov64 :r1 :r0]
                      [:mov64 :r2 0]
                      [:call ({:submit :ringbuf-submit :discard :ringbuf-discard} how)]
                      :end
                      [:mov64 :r0 0]
                      [:exit]]}))

(deftype MissingPage [arena fd ^long address]
  Closeable
  (close [_] (fixture/syscall "close" fd)))

(defn missing-page
  "A page of this process that is not there until it is closed: who reads it waits for that.

  Source: linux/userfaultfd.h. The page belongs to an arena of its own, since reading a page of the
  heap would block the collector."
  ^MissingPage []
  (let [arena (Arena/ofAuto)
        memory (.allocate arena (* 3 (long fixture/page-size)) (long fixture/page-size))
        address (+ (.address memory) (long fixture/page-size))
        longs (fn [& xs]
                (let [m (.allocate arena 32 8)]
                  (doseq [[i x] (map-indexed vector xs)]
                    (.setAtIndex m ValueLayout/JAVA_LONG (long i) (long x)))
                  (.address m)))
        fd (fixture/syscall "userfaultfd" 0)
        request (fn [number & xs]
                  (assert (zero? (long (fixture/syscall "ioctl" fd number (apply longs xs))))))]
    (assert (not (neg? (long fd))))
    (request 0xc018aa3f 0xaa 0 0)                        ; UFFDIO_API
    (request 0xc020aa00 address fixture/page-size 1 0)   ; UFFDIO_REGISTER, missing pages
    (assert (zero? (long (fixture/syscall "madvise" address fixture/page-size 4)))) ; DONTNEED
    (MissingPage. arena fd address)))

(defn keeping
  "A program that reserves a record of 16 bytes, and submits it when a [[missing-page]] is there:
  it sleeps until then, and needs no CPU. Run it by [[keep-record]]."
  ^Closeable [m]
  (let [{:keys [bytes relocations]}
        (asm/assemble [[:ldxdw :r7 [:r1 0]]
                       [:lddw :r1 m]
                       [:mov64 :r2 16]
                       [:mov64 :r3 0]
                       [:call :ringbuf-reserve]
                       [:jeq :r0 0 :end]
                       [:mov64 :r6 :r0]
                       [:stdw [:r6 0] 7]
                       [:stdw [:r6 8] 8]
                       [:stdw [:r10 -8] 0]
                       [:mov64 :r1 :r10]
                       [:add64 :r1 -8]
                       [:mov64 :r2 8]
                       [:mov64 :r3 :r7]
                       [:call :copy-from-user]
                       [:mov64 :r1 :r6]
                       [:mov64 :r2 0]
                       [:call :ringbuf-submit]
                       :end
                       [:mov64 :r0 0]
                       [:exit]])
        {:keys [^Fd fd]} (kernel.prog/load
                          {:type (prog/types :syscall) :license "GPL" :flags #{:sleepable}
                           :insns bytes :patch! asm/patch-map-fd!
                           :relocations (mapv #(assoc % :fd (bpf-map/descriptor (:ref %)))
                                              relocations)}
                          {:op :load})
        number (.acquire fd)]
    (try
      (prog/open {:fd number})
      (finally (.release fd) (call/close fd)))))

(defn keep-record
  "Runs a program of [[keeping]], which returns when the page is there."
  [program ^MissingPage page]
  (prog/test-run program {:context (bytes/->bytes (for [i (range 8)]
                                                    (bit-and 0xff (bit-shift-right (.-address page)
                                                                                   (* 8 i)))))}))

(defn run
  "Runs a program that needs no packet, so many times."
  ([program] (run program 1))
  ([program times] (prog/test-run program {:data (byte-array 14) :repeat times})))

;; --- files that look like a ring

(defn- map-file ^MappedMemory [^Fd fd offset size writable?]
  (let [address (MappedMemory/map fd (long offset) (long size) (boolean writable?) 0)]
    (assert (pos? address))
    (MappedMemory/own address (long size) (not writable?))))

(defn fake
  "A file with the layout of a ring, all of which can be written here: `{:source :write :close}`.

  `kind` is :consume, :follow or :overwrite. `(write place offset value)` writes a number: at
  :consumer and :producer of eight bytes; at :header and :data, whose offset is a position, of four
  and eight. The kernel maps the data twice; here there is one copy, written twice."
  [kind size positions]
  (let [page (long (call/page-size))
        size (long size)
        file (File/createTempFile "bpfmap" ".ring" (File. "/dev/shm"))
        _ (with-open [f (RandomAccessFile. file "rw")] (.setLength f (+ page page size size)))
        fd (Fd/own (FileSyscalls/open (.getBytes (str file)) 2 0))
        all (map-file fd 0 (+ page page size size) true)
        memory (.segment all)
        put (fn [offset value n]
              (if (= 4 n)
                (.set memory ValueLayout/JAVA_INT (long offset) (unchecked-int value))
                (.set memory ValueLayout/JAVA_LONG (long offset) (long value))))
        write (fn [place offset value]
                (let [at (+ page page (bit-and (long offset) (dec size)))]
                  (case place
                    :consumer (put offset value 8)
                    :producer (put (+ page (long offset)) value 8)
                    (:header :data) (doseq [at [at (+ at size)]]
                                      (put at value (if (= :header place) 4 8))))))
        _ (doseq [[[place offset] value] positions] (write place offset value))
        consumer (map-file fd 0 page (not= :follow kind))
        producer (map-file fd page (+ page size size) false)
        source (case kind
                 :consume (RingBuffer. consumer producer size fd)
                 :follow (RingFollower. consumer producer size false false nil)
                 :overwrite (RingFollower. consumer producer size true false fd))]
    {:source source
     :write write
     :read (fn [place]
             (.get memory ValueLayout/JAVA_LONG (long ({:consumer 0 :producer page} place))))
     :close (fn []
              (.close ^bpfmap.sys.EventSource source)
              (.close fd)
              (.close all)
              (.delete file))}))
