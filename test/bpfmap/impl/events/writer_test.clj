(ns bpfmap.impl.events.writer-test
  "User ring buffers, drained by programs of the kernel."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.events :as events]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.kernel.events :as kernel.events]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.memory :as mem]
            [bpfmap.pump :as pump]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (bpfmap.sys MappedMemory)
           (java.io Closeable)
           (java.lang.foreign MemorySegment ValueLayout)
           (java.lang.management ManagementFactory)))

(set! *warn-on-reflection* true)

(defn- ring
  (^Closeable [] (ring 4096))
  (^Closeable [size] (bpf/create {:type :user-ringbuf :name "commands" :max-entries size})))

(defn- queue ^Closeable [value]
  (bpf/create {:type :queue :value value :max-entries 1000}))

(defn- drained [out]
  (vec (bpf/drain! out)))

(defmacro ^:private with-ring
  "Runs body with a ring `m`, a queue `out`, a program `p` that drains, and a writer `w`."
  [type & body]
  `(with-open [~'m (ring)
               ~'out (queue ~type)
               ~'p (pump/draining ~'m ~'out)
               ~'w (events/writer ~'m {:type ~type})]
     ~@body))

;; --- sending

(kernel-test ^{:needs [[:map-type :user-ringbuf]]} n19-values
  (testing "programs get values and bytes, in order and whole"
    (with-ring [:struct [:command :u32] [:pid :u32]]
      (is (= 0 (pump/run p)) "of an empty ring")
      (is (true? (events/send! w {:command 1 :pid 7})))
      (is (true? (events/send! w {:command 2 :pid 8} {:timeout 1})))
      (is (= {:events 2 :bytes 16 :discarded 0 :fill 32 :capacity 4096 :reserved 0}
             (events/stats w)))
      (is (= {:fill 32 :capacity 4096} (events/stats m)))
      (is (= 2 (pump/run p)))
      (is (= [{:command 1 :pid 7} {:command 2 :pid 8}] (drained out)))
      (is (= 0 (:fill (events/stats w)))))
    (with-open [m (ring)
                out (queue :u64)
                p (pump/draining m out)
                w (events/writer m)]
      (events/send! w (byte-array [1 0 0 0 0 0 0 0 9 9 9]))
      (events/send! w (bytes/wrap (byte-array 8 (byte 2))))
      (events/send! w (byte-array 0))
      (is (= 3 (pump/run p)))
      (is (= [1 0x0202020202020202] (drained out)) "the third has no eight bytes"))))

(kernel-test ^{:needs [[:map-type :user-ringbuf]]} writer-prints
  (testing "a writer prints the map and whether it is closed"
    (with-open [m (ring)]
      (let [w (events/writer m)
            id (:id (bpf/info m))]
        (is (= (str "#<bpf-event-writer of map " id " (commands)>") (pr-str w)))
        (.close w)
        (.close w)
        (is (= (str "#<bpf-event-writer of map " id " (commands) closed>") (pr-str w)))
        (is (= {:events 0 :bytes 0 :discarded 0 :capacity 4096} (events/stats w)))))))

(kernel-test ^{:needs [[:map-type :user-ringbuf]]} invalid-records
  (testing "a record that does not fit is refused before the kernel can see it"
    (with-ring :u64
      (is (str/includes? (:message (error-of (events/send! w -1)))
                         "[:value]: -1 is not a :u64"))
      (is (= [:invalid-value :send!]
             ((juxt :bpfmap/error :bpfmap/op) (error-of (events/send! w "x")))))
      (doseq [size [4089 4096 0x1000000 (bit-shift-left 1 40) -1 1.5 (bigint 7)]]
        (let [{:keys [message] :bpfmap/keys [error]} (error-of (events/reserve w size))]
          (is (= :invalid-value error))
          (is (str/includes? message (if (integer? size)
                                       (str "at most 4088 bytes, got " size)
                                       "must be a non-negative integer, got 1.5")))))
      (is (= 0 (:fill (events/stats w))))
      (is (= 0 (pump/run p))))
    (with-open [m (ring) w (events/writer m)]
      (is (str/includes? (:message (error-of (events/send! w (byte-array 4089))))
                         "A record must have at most 4088 bytes, got 4089: the ring has 4096"))
      (is (str/includes? (:message (error-of (events/send! w 5))) "A record must be bytes, got 5"))
      (is (str/includes? (:message (error-of (events/reserve w)))
                         "The size of the record is missing: pass it in bytes"))
      (is (str/includes? (:message (error-of (events/send! 7 5)))
                         "The argument must be a writer, got 7"))
      (is (str/includes? (:message (error-of (events/send! w (byte-array 1) {:timeout "1"})))
                         ":timeout must be a number of seconds"))
      (is (str/includes? (:message (error-of (events/commit! (byte-array 1))))
                         "must be the memory of a reservation, got \"byte[1]\""))
      (is (true? (events/send! w (byte-array 4088))) "the longest"))))

(kernel-test ^{:needs [[:map-type :user-ringbuf]]} longest-record
  (testing "no record is longer than the kernel passes to programs"
    (with-open [m (ring 0x2000000)
                out (queue :u64)
                p (pump/draining m out)
                w (events/writer m)]
      (is (str/includes? (:message (error-of (events/send! w (byte-array 0x1000000))))
                         "A record must have at most 16777215 bytes, got 16777216"))
      (is (true? (events/send! w (byte-array 0xffffff))))
      (is (= 1 (pump/run p))))))

(kernel-test ^{:needs [[:map-type :user-ringbuf]]} not-a-user-ring
  (testing "other maps, and handles that cannot write, are refused"
    (with-open [m (bpf/create {:type :ringbuf :max-entries 4096})]
      (let [{:keys [message] :bpfmap/keys [error]} (error-of (events/writer m))]
        (is (= :not-supported error))
        (is (str/includes? message "records go to maps of type :user-ringbuf, not :ringbuf"))))
    (is (= :invalid-value (:bpfmap/error (error-of (events/writer 12)))))
    (with-open [m (ring)]
      (doseq [access [:read-only :write-only]]
        (with-open [handle (bpf/open (:id (bpf/info m)) {:access access})]
          (let [{:keys [message] :bpfmap/keys [error]} (error-of (events/writer handle))]
            (is (= access error))
            (is (str/includes? message "open it with {:access :read-write}")))))
      (is (= :invalid-spec (:bpfmap/error (error-of (events/writer m {:type :nope})))))
      (let [closed (bpf/clone m)]
        (bpf/close closed)
        (is (= :closed (:bpfmap/error (error-of (events/writer closed))))))
      (with-open [w (events/writer m)]
        (is (some? w) "the errors before left nothing behind")))))

(kernel-test ^{:needs [[:map-type :user-ringbuf]]} frozen-ring
  (testing "a frozen ring cannot be written to"
    (with-open [m (ring)]
      (bpf/freeze! m)
      (let [before (fixture/mapped-maps)
            {:keys [message] :bpfmap/keys [error]} (error-of (events/writer m))]
        (is (= :permission error))
        (is (str/includes? message "the map is frozen"))
        (is (= before (fixture/mapped-maps)))))))

;; --- full rings

(kernel-test ^{:needs [[:map-type :user-ringbuf]]} n19-full
  (testing "a ring is filled to its last byte, then :map-full"
    (with-ring :u64
      (dotimes [i 256] (events/send! w i))
      (is (= 4096 (:fill (events/stats w))))
      (let [{:keys [message] :bpfmap/keys [error op]} (error-of (events/send! w 256))]
        (is (= [:map-full :send!] [error op]))
        (is (str/includes? message "send! on map"))
        (is (str/includes? message "4096 of 4096 bytes are in use until a program drains")))
      (let [started (System/nanoTime)
            {:keys [message] :bpfmap/keys [error]} (error-of (events/send! w 256 {:timeout 0.12}))]
        (is (= :map-full error))
        (is (str/includes? message "found no room for 0.12 s"))
        (is (<= 120e6 (- (System/nanoTime) started) (* 1e6 (long fixture/patience)))))
      (is (= 256 (pump/run p)))
      (is (= (range 256) (drained out)))
      (is (true? (events/send! w 256))))))

(defn- later [millis f]
  (fixture/thread (fn [] (Thread/sleep (long millis)) (f))))

(kernel-test ^{:needs [[:map-type :user-ringbuf]]} waits-for-room
  (testing "a drain wakes threads that wait for room, platform and virtual"
    (with-ring :u64
      (doseq [start [#(Thread/startVirtualThread %) fixture/thread]]
        (dotimes [i 256] (events/send! w i))
        (let [done (promise)
              started (System/nanoTime)]
          (start (fn []
                   (deliver done (try
                                   [(events/send! w 1000 {:timeout 60})
                                    (- (System/nanoTime) started)]
                                   (catch Throwable e e)))))
          (Thread/sleep 100)
          (is (not (realized? done)))
          (is (= 256 (pump/run p)))
          (let [[sent nanos] (deref done fixture/patience nil)]
            (is (true? sent))
            (is (< 90e6 nanos (* 1e6 (long fixture/patience)))))
          (is (= 1 (pump/run p)))
          (is (= 1000 (last (drained out)))))))
    (testing "and one that waits for more than a byte does not spin"
      (with-open [m (ring) w (events/writer m)]
        (events/send! w (byte-array 4000))
        (let [cpu #(.getCurrentThreadCpuTime (ManagementFactory/getThreadMXBean))
              before (long (cpu))]
          (is (= :map-full
                 (:bpfmap/error (error-of (events/send! w (byte-array 1000) {:timeout 0.5})))))
          (is (< (- (long (cpu)) before) (* fixture/slowness 100e6))))))))

(kernel-test ^{:needs [[:map-type :user-ringbuf]]} waiting-ends
  (testing "closing the writer or an interrupt ends a wait for room"
    (with-open [m (ring)]
      (let [w (events/writer m)
            _ (events/send! w (byte-array 4088))
            closing (later 50 #(.close w))]
        (let [{:keys [message] :bpfmap/keys [error]}
              (error-of (events/send! w (byte-array 8) {:timeout 60}))]
          (is (= :closed error))
          (is (str/includes? message "The writer of map")))
        (fixture/join closing))
      (with-open [w (events/writer m)]
        (let [thread (Thread/currentThread)]
          (later 50 #(.interrupt thread))
          ;; Not error-of: an assertion in between would clear the interrupt.
          (is (= [:interrupted true]
                 (try
                   (events/send! w (byte-array 8) {:timeout 60})
                   (catch clojure.lang.ExceptionInfo e
                     [(:bpfmap/error (ex-data e)) (Thread/interrupted)])))))))))

;; --- in place

(kernel-test ^{:volume true :needs [[:map-type :user-ringbuf]]} n19-reservations
  (testing "a reservation keeps those behind it back, and is invalid after it ended"
    (with-ring :u64
      (let [memory (events/reserve w)
            view (mem/view memory :u64)
            buffer (mem/byte-buffer memory)
            part (mem/slice memory 0 4)
            id (:id (bpf/info m))]
        (is (= (str "#<bpf-memory a reservation of map " id
                    " (commands), 8 bytes at 0: 00 00 00 00 00 00 00 00>")
               (pr-str memory)))
        (is (= 1 (:reserved (events/stats w))))
        (events/send! w 2)
        (is (= 0 (pump/run p)) "the record behind it has to wait")
        (mem/write! view 1)
        (is (str/includes? (:message (error-of (events/commit! part)))
                           "must be the memory of a reservation"))
        (is (= :not-supported (:bpfmap/error (error-of (mem/close part)))))
        (is (true? (events/commit! memory)))
        (is (false? (events/commit! memory)))
        (is (false? (events/discard! memory)))
        (let [{:keys [message] :bpfmap/keys [error]} (error-of (nth memory 0))]
          (is (= :closed error))
          (is (str/includes? message "it was committed or discarded")))
        (is (= :closed (:bpfmap/error (error-of (mem/write! view 3)))))
        (is (= :closed (:bpfmap/error (error-of @view))))
        (is (thrown? IllegalStateException (.put buffer 0 (byte 1))))
        (is (thrown? IllegalStateException
                     (.set (mem/segment memory) ValueLayout/JAVA_BYTE 0 (byte 1))))
        (is (= 2 (pump/run p)))
        (is (= [1 2] (drained out)))))
    (testing "and is discarded by discard! and by with-open"
      (with-ring :u64
        (events/discard! (events/reserve w 100))
        (with-open [_ (events/reserve w)])
        (is (= :map-full (:bpfmap/error (error-of (with-open [_ (events/reserve w 3000)]
                                                    (events/reserve w 3000))))))
        (with-open [memory (events/reserve w)]
          (mem/copy-from memory (byte-array [5 0 0 0 0 0 0 0]))
          (events/commit! memory))
        (is (= 1 (pump/run p)) "discarded records are not counted")
        (is (= [5] (drained out)))
        (is (= {:events 1 :bytes 8 :discarded 3 :reserved 0}
               (select-keys (events/stats w) [:events :bytes :discarded :reserved])))))
    (testing "by closing the writer"
      (with-open [m (ring)]
        (let [w (events/writer m)
              memory (events/reserve w 16)]
          (.close w)
          (is (= :closed (:bpfmap/error (error-of (nth memory 0)))))
          (is (false? (events/commit! memory)))
          (is (= :closed (:bpfmap/error (error-of (events/reserve w 16))))))))
    (testing "and by the garbage collector"
      (with-open [m (ring) w (events/writer m)]
        (events/reserve w 16)
        (first (filter (fn [_]
                         (System/gc)
                         (Thread/sleep 20)
                         (zero? (long (:reserved (events/stats w)))))
                       (range 200)))
        (is (= [0 1] ((juxt :reserved :discarded) (events/stats w))))))))

;; --- several threads

(kernel-test ^{:needs [[:map-type :user-ringbuf]]} n20-threads
  (testing "records of several threads do not mix, and each thread's stay in order"
    (let [threads 4
          ;; Emulated processors take turns, and the ring is soon full.
          each (quot 3000 (min 10 (long fixture/slowness)))]
      (with-open [m (ring)
                  out (bpf/create {:type :queue :value [:array :u64 4] :max-entries 100000})
                  p (pump/draining m out)
                  w (events/writer m {:type [:array :u64 4]})]
        (let [pumping (volatile! true)
              pumped (promise)
              _ (fixture/thread
                 (fn []
                   (deliver pumped
                            (try
                              (loop [n 0]
                                (let [going @pumping
                                      drained (long (pump/run p))]
                                  (cond
                                    (neg? drained) drained
                                    (or going (pos? drained)) (recur (+ n drained))
                                    :else n)))
                              (catch Throwable e e)))))]
          (try
            (fixture/in-threads
             threads
             (fn [t]
               (dotimes [i each]
                 (let [record [t i (* 31 (long i)) (- i)]
                       record (mapv #(bit-and 0xffffffff (long %)) record)]
                   (case (int (mod i 3))
                     0 (events/send! w record {:timeout 60})
                     1 (with-open [memory (events/reserve w nil {:timeout 60})]
                         (mem/write! (mem/view memory [:array :u64 4]) record)
                         (events/commit! memory))
                     2 (do (events/discard! (events/reserve w 40 {:timeout 60}))
                           (events/send! w record {:timeout 60})))))))
            (finally (vreset! pumping false)))
          (is (= (* threads each) (deref pumped fixture/patience :late)))
          (let [records (drained out)]
            (is (every? (fn [[_ i square minus]]
                          (and (= square (* 31 (long i)))
                               (= minus (bit-and 0xffffffff (- (long i))))))
                        records))
            (is (= (into {} (map (fn [t] [t (range each)])) (range threads))
                   (update-vals (group-by first records) #(map second %))))))))))

;; --- other writers

(kernel-test ^{:needs [[:map-type :user-ringbuf]]} second-writer
  (testing "a second writer of this process is refused, and stealing makes the first one notice"
    (with-ring :u64
      (let [{:keys [message] :bpfmap/keys [error]} (error-of (events/writer m))]
        (is (= :busy error))
        (is (str/includes? message "has a writer in this process: two writers destroy")))
      (events/send! w 1)
      (with-open [thief (events/writer m {:type :u64 :steal true})]
        (events/send! thief 2)
        (is (= 2 (pump/run p)))
        (is (= [1 2] (drained out)))
        (let [{:keys [message] :bpfmap/keys [error]} (error-of (events/send! w 3))]
          (is (= :corrupt error))
          (is (str/includes? message "this writer left it at 16: there is another writer")))
        (events/send! thief 4)
        (is (= 1 (pump/run p)))))
    (with-open [m (ring)]
      (.close (events/writer m))
      (.close (events/writer m)))
    (testing "and one that was not closed is forgotten"
      (with-open [m (ring)]
        ((fn [] (events/writer m) nil))
        (let [writer (fn []
                       (System/gc)
                       (Thread/sleep 20)
                       (try
                         (events/writer m)
                         (catch clojure.lang.ExceptionInfo _ nil)))]
          (with-open [w ^Closeable (first (keep (fn [_] (writer)) (range 200)))]
            (is (some? w))))))))

(kernel-test ^{:volume true :needs [[:map-type :user-ringbuf]]} writer-elsewhere
  (testing "a writer of another process is respected, and what it left is cleaned up"
    (with-open [m (ring)
                out (queue :u64)
                p (pump/draining m out)]
      (let [other (pump/in-jvm '(require '[bpfmap.core :as bpf] '[bpfmap.events :as events])
                          `(let [~'w (events/writer (bpf/open ~(:id (bpf/info m))) {:type :u64})]
                             (events/send! ~'w 1)
                             (def ~'memory (events/reserve ~'w))
                             (events/send! ~'w 3)
                             (println "ready")
                             @(promise)))]
        (try
          (let [{:keys [message] :bpfmap/keys [error holders]} (error-of (events/writer m))]
            (is (= :busy error))
            (is (= [(.pid other)] (map :pid holders)))
            (is (str/includes? message "may have another writer"))
            (is (str/includes? message (str (.pid other) " (java) has it mapped for writing"))))
          (is (= 1 (pump/run p)))
          (is (= 0 (pump/run p)) "its reservation blocks the ring")
          (finally
            (.destroyForcibly other)
            (.waitFor other)))
        (is (= 0 (pump/run p)) "also after it was killed")
        (with-open [w (events/writer m {:type :u64})]
          (events/send! w 4)
          (is (= 2 (pump/run p)))
          (is (= [1 3 4] (drained out))))))))

;; --- corrupt rings

(defn- producer-pages
  "The memory that anybody who may open the ring can write to."
  ^MappedMemory [m]
  (let [size (:max-entries (bpf/spec m))]
    (kernel.events/map-part (bpf-map/descriptor m) 4096 (+ 4096 (* 2 (long size))) true {})))

(defn- put-long [^MappedMemory memory offset x]
  (.set ^MemorySegment (.segment memory) ValueLayout/JAVA_LONG (long offset) (long x)))

(defn- put-int [^MappedMemory memory offset x]
  (.set ^MemorySegment (.segment memory) ValueLayout/JAVA_INT (long offset) (unchecked-int x)))

(kernel-test ^{:needs [[:map-type :user-ringbuf]]} n11-corrupt-positions
  (testing "a position that somebody else wrote is an error, and nothing is written"
    (with-ring :u64
      (with-open [pages (producer-pages m)]
        (events/send! w 1)
        (doseq [position [20 0 24 4096 8192 -8 Long/MIN_VALUE Long/MAX_VALUE]]
          (put-long pages 0 position)
          (let [{:keys [message] :bpfmap/keys [error]} (error-of (events/send! w 2))]
            (is (= :corrupt error))
            (is (str/includes? message (Long/toUnsignedString position))))
          (is (= :corrupt (:bpfmap/error (error-of (events/reserve w))))))
        (put-long pages 0 20)
        (is (= -22 (pump/run p)) "EINVAL: the position is not a multiple of eight")
        (put-long pages 0 16)
        (events/send! w 2)
        (is (= 2 (pump/run p)))
        (is (= [1 2] (drained out))))))
  (testing "a writer refuses to open a ring that programs cannot drain"
    (with-open [m (ring)
                out (queue :u64)
                p (pump/draining m out)]
      (with-open [pages (producer-pages m)]
        (doseq [[position header errno words]
                [[20 8 -22 "the producer's position 20 are not both multiples of 8"]
                 [4104 8 nil "the producer's position 4104 is not within"]
                 [-8 8 nil "the producer's position 18446744073709551608 is not within"]
                 [16 100 -22 "the record at position 0 has 100 bytes"]
                 [4096 0x0fffffff -22 "the record at position 0 has 268435455 bytes"]]]
          (put-int pages 4096 header)
          (put-long pages 0 position)
          (when errno (is (= errno (pump/run p))))
          (let [mapped (fixture/mapped-maps)
                {:keys [message] :bpfmap/keys [error op]} (error-of (events/writer m))]
            (is (= [:corrupt :writer] [error op]))
            (is (str/includes? message words))
            (is (= mapped (fixture/mapped-maps)))))
        (put-long pages 0 0)
        (with-open [w (events/writer m {:type :u64})]
          (events/send! w 7)
          (is (= 1 (pump/run p))))))))

;; --- lifetime

(kernel-test ^{:volume true :needs [[:map-type :user-ringbuf]]} open-and-close
  (testing "a thousand writers leave no descriptor and no mapping behind"
    (with-open [m (ring)]
      ;; Without :steal, each would look through the descriptors of all processes.
      (let [round (fn []
                    (with-open [w (events/writer m {:type :u64 :steal true})]
                      (events/reserve w)
                      (when (= 4096 (:fill (events/stats w))) (throw (ex-info "full" {})))))]
        (with-open [out (queue :u64) p (pump/draining m out)]
          (dotimes [_ 10] (round) (pump/run p))
          (let [descriptors (fixture/settled-descriptors)
                mapped (fixture/mapped-maps)]
            (dotimes [_ 1000] (round) (pump/run p))
            (is (= [descriptors mapped] [(fixture/open-descriptors) (fixture/mapped-maps)]))))))))

(kernel-test ^{:needs [[:map-type :user-ringbuf]]} outlives-the-handle
  (testing "a writer works after the handle of its map was closed"
    (with-open [m (ring)
                out (queue :u64)
                p (pump/draining m out)]
      (let [handle (bpf/clone m)]
        (with-open [w (events/writer handle {:type :u64})]
          (bpf/close handle)
          (events/send! w 1)
          (is (= 1 (pump/run p))))))))
