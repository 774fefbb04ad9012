(ns bpfmap.impl.events.perf-test
  "Perf event arrays: own readers, and looking at those of other processes."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.events :as events]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.kernel.events :as kernel.events]
            [bpfmap.impl.kernel.perf :as kernel.perf]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.pump :as pump]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]])
  (:import (bpfmap.sys CorruptEventsException EventSource$Handler Fd OverwritablePerfBuffer
                       PerfBuffer)
           (java.io BufferedWriter Closeable)
           (java.lang.foreign ValueLayout)
           (java.nio.file Files Path)
           (java.util.concurrent.atomic AtomicBoolean AtomicLong)))

(set! *warn-on-reflection* true)

(defn- array
  (^Closeable [] (array {}))
  (^Closeable [more]
   (bpf/create (merge {:type :perf-event-array :name "samples"
                       :max-entries (inc (long (reduce max (kernel.perf/online-cpus))))}
                      more))))

(defn- counter ^Closeable []
  (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1}))

(defn- cpus [] (kernel.perf/online-cpus))

(def ^:private numbers [:array :u64 2])

(defmacro ^:private with-array
  "Runs body with a perf event array `m`, a counter `n` and a program `p` that sends 16 bytes."
  [& body]
  `(with-open [~'m (array)
               ~'n (counter)
               ~'p (pump/perf-output ~'m ~'n 16)]
     ~@body))

(defn- send-on [cpu p n]
  (pump/on-cpu cpu #(pump/run p n)))

(kernel-test events-and-cpus
  (testing "events arrive typed, as bytes, and with their CPU"
    (with-array
      (let [cpu (first (cpus))]
        (is (= -2 (send-on cpu p 1)) "ENOENT: without a reader")
        (with-open [r (events/reader m {:type numbers :timeout 0.05})]
          (is (= (str "#<bpf-events " (:id (bpf/info m)) " (samples)>") (pr-str r)))
          (is (= [] (into [] r)))
          (is (= 0 (send-on cpu p 3)))
          (let [events (into [] r)]
            (is (= [2 3 4] (map first events)))
            (is (every? pump/intact? events)))
          (is (= {:events 3 :bytes (* 3 20) :discarded 0 :lost 0 :fill 0
                  :capacity (* 64 4096 (count (cpus)))}
                 (events/stats r))))
        (is (= -2 (send-on cpu p 1)) "the reader has emptied the slots")
        (with-open [r (events/reader m {:timeout 0.05 :pages 1 :with-cpu true})]
          (doseq [cpu (cpus)] (send-on cpu p 1))
          (let [events (into [] r)]
            (is (= (cpus) (sort (map first events))))
            (is (every? #(= 20 (count (second %))) events) "four bytes are added")
            (is (every? bytes/byte-view? (map second events))))
          (is (= (* 4096 (count (cpus))) (:capacity (events/stats r)))))))))

(kernel-test padded-events
  (testing "bytes that the kernel adds are no part of a typed event"
    (with-open [m (array) n (counter)]
      (doseq [size [8 9 12 13 15 16 20 24]]
        (with-open [p (pump/perf-output m n size)
                    typed (events/reader m {:type [:array :u8 size] :timeout 0.02})]
          (is (= 0 (pump/run p)))
          (is (= [size] (map count (into [] typed))) (str size))))
      (with-open [p (pump/perf-output m n 24)
                  r (events/reader m {:type [:struct [:n :u64]] :timeout 0.02})]
        (pump/run p)
        (let [[{:keys [n] :bpfmap/keys [extra]}] (into [] r)]
          (is (some? n))
          (is (= 20 (count extra)) "an event that is longer says so"))))))

(kernel-test n15-wrapped
  (testing "events that cross the end of the buffer are whole"
    (doseq [size [16 40 200 488]]
      (with-open [m (array)
                  n (counter)
                  p (pump/perf-output m n size)
                  r (events/reader m {:type [:array :u64 (quot (long size) 8)] :pages 1})]
        (let [seen (volatile! 0)
              each (quot 3500 (+ (long size) 16))]
          (dotimes [_ 100]
            (is (= 0 (send-on (first (cpus)) p each)))
            (events/drain! r (fn [[i :as event]]
                               (when (and (= i (inc @seen)) (pump/intact? event))
                                 (vswap! seen inc)))))
          (is (= (* 100 each) @seen)))))))

(kernel-test events-in-place
  (testing "events are read in place, also those that cross the end of the buffer"
    (with-array
      (with-open [r (events/reader m {:raw true :pages 1 :timeout 0})]
        (dotimes [_ 20]
          (send-on (first (cpus)) p 50)
          (is (= (repeat 50 true)
                 (reduce (fn [found event]
                           (conj found (pump/intact? [(events/raw-long event 0)
                                                      (events/raw-long event 8)])))
                         [] r))))))))

(kernel-test n14-lost
  (testing "lost events are counted as often as the program was refused, and reported"
    (with-array
      (let [cpu (first (cpus))
            reported (atom [])]
        (with-open [r (events/reader m {:type numbers :pages 1 :timeout 0.02
                                        :on-lost #(swap! reported conj %)})]
          (let [accepted (count (take-while zero? (repeatedly #(send-on cpu p 1))))]
            (is (= 127 accepted) "records of 32 bytes; 8 bytes have to stay free")
            (is (= -28 (send-on cpu p 6)) "ENOSPC")
            (is (= 4064 (:fill (events/stats r))))
            (is (= accepted (count (into [] r))))
            (is (= [0 []] [(:lost (events/stats r)) @reported]) "the kernel reports it later")
            (is (= 0 (send-on cpu p 1)))
            (is (= 1 (count (into [] r))))
            (is (= [7 [7]] [(:lost (events/stats r)) @reported]))
            (is (= (+ 1 7 accepted) (n 0)))))))))

(kernel-test ^{:volume true :needs [[:kernel :atomic-fetch]]} numbered-events-of-all-cpus
  (testing "nothing is lost, doubled or reordered within a CPU while all CPUs send"
    (with-open [m (array)]
      (let [each 20000
            counters (mapv (fn [_] (counter)) (cpus))
            programs (mapv #(pump/perf-output m % 16) counters)
            seen (mapv (fn [_] (AtomicLong.)) (cpus))
            index (zipmap (cpus) (range))
            bad (atom [])
            ;; A buffer has room for 8,192 events. On a busy machine the reader may not run for
            ;; a while.
            send-all (fn [cpu p ^AtomicLong seen]
                       (loop [sent 0]
                         (cond
                           (= sent each) sent
                           (< (- sent (.get seen)) 4000) (do (pump/run p 100) (recur (+ sent 100)))
                           :else (do (Thread/sleep 1) (recur sent)))))]
        (try
          (with-open [r (events/reader m {:type numbers :with-cpu true
                                           :timeout (quot (long fixture/patience) 1000)})]
            (let [producers (mapv (fn [cpu p seen]
                                    (fixture/thread
                                     (fn [] (pump/on-cpu cpu #(send-all cpu p seen)))))
                                  (cpus) programs seen)]
              (reduce (fn [total [cpu [i :as event]]]
                        (let [^AtomicLong last (seen (index cpu))]
                          (when-not (and (pump/intact? event) (= i (inc (.get last))))
                            (swap! bad conj [cpu i (.get last)]))
                          (.set last (long i)))
                        (if (= total (* (long each) (count (cpus))))
                          (reduced total)
                          (inc (long total))))
                      1 r)
              (run! fixture/join producers)
              (is (= [] @bad))
              (is (= (repeat (count (cpus)) each) (map #(.get ^AtomicLong %) seen)))
              (is (= 0 (:lost (events/stats r))))))
          (finally
            (run! #(.close ^Closeable %) (concat programs counters))))))))

(kernel-test slow-functions-are-fair
  (testing "a slow function gets events of all CPUs, not only of the first"
    (with-array
      (with-open [r (events/reader m {:type numbers :with-cpu true :seconds 60})]
        (doseq [cpu (cpus)]
          (send-on cpu p 1000))
        (is (= (set (cpus))
               (reduce (fn [served [cpu _]]
                         (Thread/sleep 15)
                         (let [served (conj served cpu)]
                           (if (= served (set (cpus))) (reduced served) served)))
                       #{} r)))
        (is (< (:events (events/stats r)) 200))))))

(kernel-test wakeups
  (testing "a waiting reader is woken by each event, or after some; none waits for long"
    (with-array
      (let [cpu (first (cpus))]
        (doseq [options [{} {:wakeup-events 1000} {:wakeup-bytes 100000}]]
          (with-open [r (events/reader m (merge {:type numbers} options))]
            (let [got (promise)
                  _ (fixture/thread #(deliver got (events/poll! r 20)))]
              (Thread/sleep 150)
              (let [sent (System/nanoTime)]
                (send-on cpu p 1)
                (is (some? (deref got fixture/patience nil)))
                (is (< (- (System/nanoTime) sent) 1.5e10))))))))))

(kernel-test events-without-wake-up
  (testing "events of which the kernel does not wake the reader are read without waiting"
    (with-array
      (with-open [r (events/reader m {:type numbers :wakeup-events 1000})]
        (is (nil? (events/poll! r 0)))
        (send-on (first (cpus)) p 3)
        (is (= 1 (first (events/poll! r 0))))
        (events/flush! r)
        (is (= [2 3] (map first (into [] r))) "a flush returns them, and ends")
        (is (nil? (events/poll! r 0)))))))

(kernel-test closing-while-waiting
  (testing "closing a reader from another thread ends a reduce that waits"
    (with-array
      (let [r (events/reader m {:type numbers})
            got (promise)
            thread (fixture/thread #(deliver got (into [] r)))]
        (send-on (first (cpus)) p 2)
        (Thread/sleep 100)
        (let [started (System/nanoTime)]
          (.close ^Closeable r)
          (is (= 2 (count (deref got fixture/patience nil))))
          (is (< (- (System/nanoTime) started) 3e10)))
        (fixture/join thread)
        (is (= :closed (:bpfmap/error (error-of (into [] r)))))))))

(kernel-test invalid-options
  (testing "options that make no sense are refused"
    (with-array
      (are [options words]
           (let [{:keys [message] :bpfmap/keys [error]} (error-of (events/reader m options))]
             (and (= :invalid-value error) (str/includes? message words)))
        {:pages 3} ":pages must be a power of two"
        {:wakeup-events 0} ":wakeup-events must be a positive 32-bit integer, got 0"
        {:pages 2 :wakeup-bytes 8192}
        (str ":wakeup-bytes must be less than the 8192 bytes of a buffer, got 8192: the kernel would "
             "lose events before it wakes the reader; use fewer bytes, or more :pages")
        {:wakeup-events 2 :wakeup-bytes 2} ":wakeup-events and :wakeup-bytes exclude each other"
        {:with-cpu true :raw true} ":with-cpu and :raw exclude each other"
        {:from :now} "Unknown option :from")
      (with-open [ring (bpf/create {:type :ringbuf :max-entries 4096})]
        (is (str/includes? (:message (error-of (events/reader ring {:with-cpu true})))
                           ":with-cpu must be left out for a ring buffer"))
        (is (= :invalid-value (:bpfmap/error (error-of (events/reader [m ring])))))
        (is (= :invalid-value (:bpfmap/error (error-of (events/reader [m m]))))))
      (with-open [handle (bpf/open (:id (bpf/info m)) {:access :read-only})]
        (let [{:keys [message] :bpfmap/keys [error]} (error-of (events/reader handle))]
          (is (= :read-only error))
          (is (str/includes? message "a reader stores perf events in it; use peek"))))
      (bpf/freeze! m)
      (let [{:keys [message] :bpfmap/keys [error]} (error-of (events/reader m))]
        (is (= :permission error))
        (is (str/includes? message "the map is frozen"))))))

;; --- slots

(defn- mapped-events
  "How many mappings of perf events this process has."
  []
  (count (re-seq #"\[perf_event\]"
                 (Files/readString (Path/of "/proc/self/maps" (make-array String 0))))))

(defn- used-slots
  "The CPUs on which a program finds a perf event."
  [p]
  (filterv #(not= -2 (send-on % p 1)) (cpus)))

(kernel-test n17-occupied
  (testing "a map that has a reader is refused, and left as it is"
    (with-array
      (with-open [first-one (events/reader m {:type numbers :timeout 0.02})]
        (let [{:keys [message] :bpfmap/keys [error op holders] :as data}
              (error-of (events/reader m))
              own (.pid (java.lang.ProcessHandle/current))]
          (is (= [:busy :reader] [error op]))
          (is (= (cpus) (:bpfmap/cpus data)))
          (is (= [own] (map :pid holders)))
          (is (str/includes? message (str own " (this process) has it open, and perf events")))
          (is (str/includes? message "use peek, which takes nothing, or {:steal true}")))
        (send-on (first (cpus)) p 1)
        (is (= 1 (count (into [] first-one))) "it still gets all events"))
      (is (= [] (used-slots p)))
      (testing "unless it is stolen, which empties the slots afterwards"
        (with-open [first-one (events/reader m {:type numbers :timeout 0.02})]
          (with-open [thief (events/reader m {:type numbers :timeout 0.02 :steal true})]
            (send-on (first (cpus)) p 1)
            (is (= [0 1] [(count (into [] first-one)) (count (into [] thief))])))
          (is (= [] (used-slots p)))))))
  (testing "one slot in use is enough"
    (with-array
      (let [event (PerfBuffer/open (int (last (cpus))) 1 false false)]
        (is (pos? event))
        (try
          (bpf/put! m (last (cpus)) {:fd event})
          (let [before (fixture/settled-descriptors)
                {:keys [message] :bpfmap/keys [error] :as data} (error-of (events/reader m))]
            (is (= [:busy [(last (cpus))]] [error (:bpfmap/cpus data)]))
            (is (str/includes? message (str "has a reader, on CPU " (last (cpus)) ":")))
            (is (= before (fixture/open-descriptors))))
          (finally
            (fixture/syscall "close" event)))))))

(kernel-test n22-pause
  (with-array
    (let [cpu (first (cpus))
          handle (bpf/clone m)
          r (events/reader handle {:type numbers :timeout 0.02})]
      (bpf/close handle)
      (testing "a paused reader gets what was sent before, and programs get ENOENT"
        (is (= 0 (send-on cpu p 2)))
        (is (true? (events/pause! r)))
        (is (false? (events/pause! r)))
        (is (= -2 (send-on cpu p 1)))
        (is (= [] (used-slots p)))
        (is (= [1 2] (map first (into [] r)))))
      (testing "then it gets events again"
        (let [sent (long (n 0))]
          (is (true? (events/resume! r)))
          (is (false? (events/resume! r)))
          (is (= 0 (send-on cpu p 1)))
          (is (= [(inc sent)] (map first (into [] r))))))
      (testing "also while another thread waits"
        (let [got (promise)
              thread (fixture/thread #(deliver got (events/poll! r 20)))]
          (events/pause! r)
          (events/resume! r)
          (send-on cpu p 1)
          (is (some? (deref got fixture/patience nil)))
          (fixture/join thread)))
      (testing "it does not take the slots of a reader that came meanwhile, nor empty them"
        (events/pause! r)
        (with-open [other (events/reader m {:type numbers :timeout 0.02})]
          (let [{:keys [message] :bpfmap/keys [error op]} (error-of (events/resume! r))]
            (is (= [:busy :resume!] [error op]))
            (is (str/includes? message "has a reader, on CPU")))
          (.close ^Closeable r)
          (send-on cpu p 1)
          (is (= 1 (count (into [] other))))
          (doseq [f [events/pause! events/resume!]]
            (is (= :closed (:bpfmap/error (error-of (f r))))))))
      (is (= [] (used-slots p))))
    (testing "a peek has no buffers to take out"
      (with-open [_ (events/reader m)
                  peek (events/peek m)]
        (is (re-find #"^The peek of map \d+ \(samples\) cannot be paused: "
                     (:message (error-of (events/pause! peek)))))))))

(kernel-test slots-are-given-back
  (testing "closing a reader empties its slots, whatever happened to the handle of the map"
    (with-array
      (let [handle (bpf/clone m)]
        (with-open [r (events/reader handle {:type numbers :timeout 0.02})]
          (bpf/close handle)
          (is (= (cpus) (used-slots p)))
          (is (= (count (cpus)) (count (into [] r)))))
        (is (= [] (used-slots p))))))
  (testing "also in a map that keeps its elements"
    (with-open [m (array {:flags #{:preserve-elems}})
                n (counter)
                p (pump/perf-output m n 16)]
      (.close ^Closeable (events/reader m))
      (is (= [] (used-slots p)))))
  (testing "and a reader that fails half-way gives everything back"
    (with-array
      (let [store kernel.perf/store
            before (fixture/settled-descriptors)
            mappings mapped-events
            mapped (mappings)]
        (doseq [flags [#{} #{:preserve-elems}]]
          (with-open [m (array {:flags flags})
                      p (pump/perf-output m n 16)]
            (let [calls (atom 0)]
              (with-redefs [kernel.perf/store (fn [& args]
                                                (when (= 2 (swap! calls inc))
                                                  (throw (ex-info "no" {})))
                                                (apply store args))]
                (is (= "no" (:message (error-of (events/reader m))))))
              (is (= [] (used-slots p))))))
        (is (= [before mapped] [(fixture/open-descriptors) (mappings)]))))))

(kernel-test n16-offline
  (testing "a CPU that is offline is skipped"
    (with-array
      (with-redefs [kernel.perf/buffer (let [buffer kernel.perf/buffer]
                                         (fn [cpu options ctx]
                                           (when-not (= cpu (last (cpus)))
                                             (buffer cpu options ctx))))]
        (with-open [_ (events/reader m)]
          (is (= (butlast (cpus)) (seq (used-slots p))))))))
  (testing "and CPUs beyond the end of the map have no buffer"
    (with-open [m (array {:max-entries 1})
                n (counter)
                p (pump/perf-output m n 16)
                r (events/reader m {:timeout 0.02})]
      (is (= 0 (send-on 0 p 1)))
      (is (= 1 (count (into [] r))))
      (is (= (* 64 4096) (:capacity (events/stats r)))))))

;; Only in a virtual machine of its own, since every process loses the CPU:
;; script/kernel-matrix 6.12 -- env BPFMAP_OFFLINE_CPU=1 bin/test perf-test/n16
(when (System/getenv "BPFMAP_OFFLINE_CPU")
  (kernel-test n16-goes-offline
    (let [set-online! #(spit (str "/sys/devices/system/cpu/cpu" %1 "/online") %2)
          options {:type numbers :with-cpu true :timeout 2}
          cpu (last (cpus))
          other (first (cpus))
          sent-by (fn [r] (sort (map first (into [] r))))]
      (with-array
        (try
          (with-open [r (events/reader m options)]
            (testing "events that were sent before a CPU went offline are read"
              (is (= 0 (send-on cpu p 2)))
              (set-online! cpu 0)
              (is (= 0 (send-on other p 1)))
              (is (= [other cpu cpu] (sent-by r))))
            (testing "the program gets EOPNOTSUPP when it is back, and the other CPU goes on"
              (set-online! cpu 1)
              (is (= -95 (send-on cpu p 1)))
              (is (= 0 (send-on other p 1)))
              (is (= [other] (sent-by r)))
              (is (= 0 (:lost (events/stats r))) "the kernel does not count them")))
          (testing "another reader has a buffer again"
            (with-open [r (events/reader m options)]
              (is (= 0 (send-on cpu p 1)))
              (is (= [cpu] (sent-by r)))))
          (testing "a reader that was opened meanwhile has none"
            (set-online! cpu 0)
            (with-open [r (events/reader m options)]
              (set-online! cpu 1)
              (is (= -2 (send-on cpu p 1)))
              (is (= [] (sent-by r)))))
          (finally (set-online! cpu 1)))))))

(kernel-test ^:volume open-and-close
  (testing "a thousand readers leave no descriptor and no mapping behind"
    (with-array
      (let [mappings mapped-events
            round (fn []
                    (with-open [r (events/reader m {:type numbers :pages 1})]
                      (pump/run p)
                      (events/drain! r identity)))]
        (dotimes [_ 10] (round))
        (let [before (fixture/settled-descriptors)
              mapped (mappings)]
          (dotimes [_ 1000] (round))
          (is (= [before mapped] [(fixture/open-descriptors) (mappings)]))
          (is (= [] (used-slots p))))))))

;; --- corrupt buffers

(kernel-test n11-corrupt-records
  (testing "positions and records that no kernel writes are an error, never a wild read"
    (let [page 4096
          check (fn [head & puts]
                  ;; Mapped memory of the right size to which the test can write: that of a map.
                  (with-open [m (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1024
                                             :flags #{:mmapable}})
                              pages (kernel.events/map-part (bpf-map/descriptor m) 0 (* 2 page)
                                                            true {})]
                    (let [memory (.segment pages)
                          _ (doseq [[offset x] puts]
                              (.set memory ValueLayout/JAVA_INT (long (+ page (long offset)))
                                    (unchecked-int (long x))))
                          _ (.set memory ValueLayout/JAVA_LONG 1024 (long head))
                          source (PerfBuffer. pages page nil 0 false)]
                      (try
                        [(.drain source (reify EventSource$Handler (accept [_ _] true))
                                 (AtomicBoolean.) 100)
                         (.get memory ValueLayout/JAVA_LONG 1032)]
                        (catch CorruptEventsException e
                          (ex-message e))))))
          tail -3064 ; the position of the reader, from the data on
          size #(bit-shift-left (long %) 16)]
      (is (= [1 24] (check 24 [0 9] [4 (size 24)] [8 12])))
      (is (= [0 16] (check 16 [0 77] [4 (size 16)])) "an unknown record is skipped")
      (is (= [2 48] (check 48 [0 9] [4 (size 24)] [8 7] [24 9] [28 (size 24)] [32 12]))
          "an event shorter than its record")
      (is (= [3 (+ 4072 72)] (check (+ 4072 72) [tail 4072]
                                    [4072 9] [4076 (size 24)] [4080 12]
                                    [0 9] [4 (size 24)] [8 12] [24 9] [28 (size 24)] [32 12]))
          "an event ends where the data ends")
      (is (= [2 (+ 4088 48)] (check (+ 4088 48) [tail 4088]
                                    [4088 9] [4092 (size 24)] [0 12]
                                    [16 9] [20 (size 24)] [24 12]))
          "a header is the last of the data")
      (are [head puts words] (str/includes? (str (apply check head puts)) words)
        -8 [] "the producer's position 18446744073709551608 is not within 4096 bytes"
        4104 [] "the producer's position 4104 is not within 4096 bytes"
        13 [] "position 0 and the producer's position 13 are not both multiples of 8"
        48 [[0 9] [4 (size 24)] [8 12] [24 9] [28 0]] "the record at position 24 has type 9 and 0"
        4096 [[tail 4088] [4088 9] [4092 (size 8)]] "position 4088 has type 9 and 8 bytes"
        4096 [[tail 4088] [4088 9] [4092 (size 16)]] "position 4088 has type 9 and 16 bytes"
        24 [[0 9] [4 0]] "the record at position 0 has type 9 and 0 bytes"
        24 [[0 9] [4 (size 20)]] "has type 9 and 20 bytes"
        24 [[0 9] [4 (size 32)] [8 12]] "has type 9 and 32 bytes; there are 24 bytes"
        24 [[0 9] [4 (size 24)] [8 13]] "has type 9 and 24 bytes"
        24 [[0 9] [4 (size 24)] [8 -1]] "has type 9 and 24 bytes"
        24 [[0 2] [4 (size 16)]] "has type 2 and 16 bytes"
        24 [[0 77] [4 (size 4)]] "has type 77 and 4 bytes"))))

;; --- buffers that overwrite

(def ^:private record-size "Bytes of a record with an event of 16 bytes." 32)

(kernel-test n23-keeps-the-newest
  (with-array
    (let [cpu (first (cpus))
          page (long fixture/page-size)
          room (quot page (long record-size))
          capacity (* page (count (cpus)))
          numbers-of #(mapv first %)]
      (with-open [r (events/reader m {:type numbers :pages 1 :overwrite true :timeout 0.02})]
        (testing "programs are never refused, and the newest events come in their order"
          (is (= [] (into [] r)))
          (dotimes [_ 3] (send-on cpu p 1))
          (is (= {:events 0 :fill (* 3 (long record-size)) :capacity capacity}
                 (select-keys (events/stats r) [:events :fill :capacity])))
          (is (= [1 2 3] (numbers-of (into [] r))))
          (let [more (* 3 room)]
            (is (= 0 (send-on cpu p more)))
            (is (= page (:fill (events/stats r))))
            (let [got (into [] r)]
              (is (every? pump/intact? got))
              (is (= (range (- (+ 4 more) room) (+ 4 more)) (numbers-of got))))
            (is (= {:events (+ 3 room) :bytes (* 20 (+ 3 room)) :discarded 0 :lost 0 :overtaken 1
                    :missed (* 2 page) :fill 0 :capacity capacity}
                   (events/stats r)))))
        (testing "what a reduced leaves stays, also if its place is overwritten"
          (let [n (long (n 0))]
            (send-on cpu p 5)
            (is (= [(+ n 1) (+ n 2)] (numbers-of (into [] (take 2) r))))
            (send-on cpu p (* 2 room))
            (is (= [(+ n 3) (+ n 4) (+ n 5)] (take 3 (numbers-of (into [] r)))))
            (is (= [] (into [] r)))))
        (testing "a waiting reader is woken, and a pause and close work as for other buffers"
          (let [got (promise)
                thread (fixture/thread #(deliver got (events/poll! r 60)))]
            (send-on cpu p 1)
            (is (= (n 0) (first (deref got fixture/patience nil))))
            (fixture/join thread))
          (is (true? (events/pause! r)))
          (is (= -2 (send-on cpu p 1)))
          (is (true? (events/resume! r)))
          (is (= 0 (send-on cpu p 1)))
          (is (= [(n 0)] (numbers-of (into [] r))))))
      (testing "with :raw and :with-cpu"
        (with-open [r (events/reader m {:raw true :pages 1 :overwrite true :timeout 0.02})]
          (send-on cpu p (* 2 room))
          (is (= (range (- (inc (long (n 0))) room) (inc (long (n 0))))
                 (reduce (fn [ns event] (conj ns (events/raw-long event 0))) [] r))))
        (with-open [r (events/reader m {:type numbers :with-cpu true :overwrite true
                                        :timeout 0.02})]
          (send-on cpu p 1)
          (is (= [[cpu (n 0)]] (map (fn [[cpu [n]]] [cpu n]) (into [] r)))))))))

(kernel-test n23-overwritten-at-full-speed
  (testing "while a program overwrites at full speed, no event is torn, doubled or out of order"
    (with-array
      (let [cpu (last (cpus))]
        (doseq [pages [1 64 128]]
          (with-open [r (events/reader m {:type numbers :pages pages :overwrite true})]
            (let [before (long (n 0))
                  _ (send-on cpu p 30000) ; more than 128 pages have room for
                  producer (fixture/thread
                            #(do
                               (pump/on-cpu cpu (fn []
                                                  (dotimes [_ 50] (pump/run p 2000))
                                                  ;; Refused while the reader pauses a buffer.
                                                  (fixture/eventually (fn [] (= 0 (pump/run p))))))
                               (events/flush! r)))
                  [wrong last-one seen]
                  (reduce (fn [[wrong before seen] [i :as event]]
                            [(if (and (pump/intact? event) (< (long before) (long i)))
                               wrong
                               (conj wrong [before event]))
                             i (inc (long seen))])
                          [[] before 0] r)
                  {:keys [events lost overtaken missed]} (events/stats r)]
              (fixture/join producer)
              (is (= [] wrong))
              (is (= seen events))
              (is (= (n 0) last-one) "the newest is there")
              (is (< 0 (long overtaken)))
              (is (<= (- (* 30000 32) (* (long pages) (long fixture/page-size))) (long missed)))
              ;; Reports of lost events can be overwritten as well.
              (is (<= (+ (long events) (long lost)) (- (long (n 0)) before))))))))))

(kernel-test n23-corrupt-records
  (testing "positions and records that no kernel writes are an error, never a wild read"
    (let [page 4096
          data 0x80000
          check (fn [head & puts]
                  ;; Mapped memory of the right size to which the test can write: that of a map.
                  (with-open [m (bpf/create {:type :array :key :u32 :value :u64
                                             :max-entries (quot (+ page data) 8)
                                             :flags #{:mmapable}})
                              pages (kernel.events/map-part (bpf-map/descriptor m) 0 (+ page data)
                                                            true {})]
                    (let [memory (.segment pages)
                          source (OverwritablePerfBuffer. pages page nil 0)
                          seen (atom [])]
                      (doseq [[before-end x] puts]
                        (.set memory ValueLayout/JAVA_INT (long (+ page data (long before-end)))
                              (unchecked-int (long x))))
                      (.set memory ValueLayout/JAVA_LONG 1024 (long head))
                      (try
                        (.drain source (reify EventSource$Handler
                                         (accept [_ event] (swap! seen conj (.length event)) true))
                                (AtomicBoolean.) 100)
                        @seen
                        (catch CorruptEventsException e
                          (ex-message e))))))
          size #(bit-shift-left (long %) 16)]
      (is (= [] (check 0)))
      (is (= [12] (check -24 [-24 9] [-20 (size 24)] [-16 12])))
      (is (= [] (check -24 [-24 9] [-20 (size 32)] [-16 12])) "a record that is not whole")
      (is (= [12 7] (check -48 [-48 9] [-44 (size 24)] [-40 7] [-24 9] [-20 (size 24)] [-16 12])))
      (are [head puts words] (str/includes? (str (apply check head puts)) words)
        8 [] "the kernel's position 8 is not before the last one, 0"
        -13 [] "or not a multiple of 8"
        -24 [[-24 9] [-20 0]] "has type 9 and 0 bytes"
        -24 [[-24 9] [-20 (size 20)]] "has type 9 and 20 bytes"
        -24 [[-24 9] [-20 (size 24)] [-16 13]] "has 24 bytes and an event of 13"
        -24 [[-24 9] [-20 (size 24)] [-16 -1]] "has 24 bytes and an event of 4294967295"
        -24 [[-24 2] [-20 (size 16)]] "has type 2 and 16 bytes"
        -8 [[-8 9] [-4 (size 8)]] "has 8 bytes and an event of 4294967295"))))

;; --- readers of other processes

(defn- reader-elsewhere
  "Starts a process that reads a map when it is told to, and prints how many events it got."
  ^Process [m options]
  (pump/in-jvm '(require '[bpfmap.core :as bpf] '[bpfmap.events :as events])
               `(let [~'r (events/reader (bpf/open ~(:id (bpf/info m))) ~options)]
                  (println "ready")
                  (while (read-line)
                    (println (events/drain! ~'r identity) (:lost (events/stats ~'r)))))))

(defn- told
  "What the process prints after it was told to read."
  [^Process process]
  (doto ^BufferedWriter (.outputWriter process) (.write "read\n") .flush)
  (.readLine (.inputReader process)))

(kernel-test n18-peek
  (testing "the buffers of another process are looked at without taking anything"
    (with-array
      (let [cpu (first (cpus))
            other (reader-elsewhere m {:pages 2})]
        (try
          (let [{:keys [message] :bpfmap/keys [error holders]} (error-of (events/reader m))]
            (is (= :busy error))
            (is (= [(.pid other)] (map :pid holders)))
            (is (str/includes? message (str (.pid other) " (java) has it open, and perf events"))))
          (send-on cpu p 5)
          (with-open [peek (events/peek m {:type numbers :timeout 0.1})
                      from-now (events/peek m {:type numbers :timeout 0.1 :from :now})]
            (is (= [1 2 3 4 5] (map first (into [] peek))))
            (is (= [] (into [] from-now)))
            (send-on cpu p 2)
            (is (= [6 7] (map first (into [] peek)) (map first (into [] from-now))))
            (is (= {:events 7 :overtaken 0 :missed 0}
                   (select-keys (events/stats peek) [:events :overtaken :missed])))
            (is (= "7 0" (told other)) "the owner gets all")
            (send-on cpu p 3)
            (is (= "3 0" (told other)))
            (send-on cpu p 1)
            (is (= [11] (map first (into [] peek))) "what the owner has read is skipped")
            (is (= {:events 8 :overtaken 1 :missed (* 3 32)}
                   (select-keys (events/stats peek) [:events :overtaken :missed])))
            (is (= "1 0" (told other))))
          (with-open [peek (events/peek m {:with-cpu true :timeout 0.1})]
            (send-on cpu p 1)
            (is (= [nil] (map first (into [] peek))) "the kernel does not report the CPU"))
          (testing "not without the right to trace its owner"
            (let [{:keys [message] :bpfmap/keys [error]}
                  (fixture/unprivileged ["CAP_BPF" "CAP_PERFMON"]
                                        #(error-of (events/peek m)))]
              (is (#{:permission :not-found} error))
              (is (string? message))))
          (finally
            (.destroyForcibly other)
            (.waitFor other)))
        (let [{:keys [message] :bpfmap/keys [error]} (error-of (events/peek m))]
          (is (= :not-found error))
          (is (str/includes? message "has no reader to peek at")))
        (is (= [] (used-slots p)) "the slots of a process that was killed are empty")
        (with-open [r (events/reader m {:type numbers :timeout 0.02})]
          (send-on cpu p 1)
          (is (= 1 (count (into [] r)))))))))

(kernel-test ^:volume n18-peek-after-the-owner
  (testing "events that the owner has read are seen until the kernel may overwrite them"
    (with-array
      (let [cpu (first (cpus))
            other (reader-elsewhere m {:pages 64})]
        (try
          (with-open [peek (events/peek m {:type numbers :timeout 0.1})]
            (send-on cpu p 3)
            (is (= "3 0" (told other)))
            (send-on cpu p 1)
            (is (= [1 2 3 4] (map first (into [] peek))))
            (is (= {:events 4 :overtaken 0 :missed 0}
                   (select-keys (events/stats peek) [:events :overtaken :missed])))
            (testing "which are 64 KiB of 256"
              (is (= "1 0" (told other)))
              (send-on cpu p 2048)
              (is (= "2048 0" (told other)))
              (is (= (range 5 2053) (map first (into [] peek))))
              (send-on cpu p 2049)
              (is (= "2049 0" (told other)))
              (is (= [] (into [] peek)))
              (is (= {:overtaken 1 :missed (* 32 2049)}
                     (select-keys (events/stats peek) [:overtaken :missed])))))
          (finally
            (.destroyForcibly other)
            (.waitFor other)))))))

(kernel-test peek-at-full-speed
  (testing "no event that is looked at is torn, however fast its owner reads"
    (with-array
      (let [cpu (first (cpus))
            going (volatile! true)
            owner (events/reader m {:type numbers :pages 2})
            threads [(fixture/thread (fn []
                                       (pump/on-cpu cpu #(while @going (pump/run p 500)))))
                     (fixture/thread (fn []
                                       (while @going
                                         (events/drain! owner identity)
                                         (Thread/onSpinWait))))]]
        (try
          (with-open [peek (events/peek m {:type numbers :seconds 2})]
            (let [torn (reduce (fn [n event]
                                 (if (pump/intact? event)
                                   n
                                   (inc (long n))))
                               0 peek)
                  {:keys [events]} (events/stats peek)]
              (is (= 0 torn))
              (is (pos? (long events)))))
          (finally
            (vreset! going false)
            (run! fixture/join threads)
            (.close ^Closeable owner)))))))

(kernel-test peek-needs-one-array
  (testing "perf events of a process with several arrays cannot be told apart"
    (with-open [m (array)
                other (array)
                _ (events/reader m)]
      (is (some? other))
      (let [{:keys [message] :bpfmap/keys [error]} (error-of (events/peek m))]
        (is (= :not-supported error))
        (is (str/includes? message "cannot be told from others"))
        (is (str/includes? message "the kernel does not report which perf event is in which"))))))

(kernel-test peek-maps-no-other-event
  (testing "a perf event that its owner has not mapped does not get a buffer"
    (with-array
      (with-open [_ (events/reader m)]
        (let [spare (#'kernel.perf/open-event (first (cpus)) nil {})
              mapped (mapped-events)]
          (try
            (let [{:keys [message] :bpfmap/keys [error hint]} (error-of (events/peek m))]
              (is (= :not-supported error))
              (is (str/includes? message "cannot be told from others"))
              (is (str/includes? hint (str "has " (inc (count (cpus))) " perf events without a "
                                           "program, and " (count (cpus)) " buffers")))
              (is (= mapped (mapped-events))))
            (finally (.close ^Fd spare))))
        (with-open [peek (events/peek m {:timeout 0})]
          (is (= [] (into [] peek))))))))

(kernel-test peek-at-overwritten-buffers
  (testing "buffers that their owner has programs overwrite are refused with this reason"
    (with-array
      (with-open [_ (events/reader m {:overwrite true})]
        (let [{:keys [message] :bpfmap/keys [error hint]} (error-of (events/peek m))]
          (is (= :not-supported error))
          (is (str/ends-with? message (str " cannot be peeked at: " hint)))
          (is (re-find #"^process \d+ has mapped its buffers read-only, so programs overwrite them"
                       hint)))))))
