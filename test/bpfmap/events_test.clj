(ns bpfmap.events-test
  "Events of ring buffers, sent by programs of the kernel. A few states that no program can make
  are in files with the layout of a ring."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.events :as events]
            [bpfmap.fixture :as fixture :refer [error-of eventually kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.events.reader :as reader]
            [bpfmap.impl.kernel.events :as kernel.events]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.producer :as producer]
            [bpfmap.since :as since]
            [clojure.string :as str]
            [clojure.test :refer [is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (bpfmap.sys CorruptEventsException EventSource EventSource$Handler)
           (java.io BufferedReader Closeable InputStreamReader)
           (java.lang.foreign ValueLayout)
           (java.util.concurrent CountDownLatch TimeUnit)
           (java.util.concurrent.atomic AtomicBoolean AtomicLong AtomicReference)))

(set! *warn-on-reflection* true)

(defn- millis-of
  "The milliseconds that f takes."
  [f]
  (let [begun (System/nanoTime)]
    (f)
    (/ (- (System/nanoTime) begun) 1e6)))

(defn- elsewhere
  "Calls f on a thread of its own; returns a promise of `[:value x]` or `[:thrown e]`."
  [f]
  (let [result (promise)]
    (fixture/thread #(deliver result (try [:value (f)] (catch Throwable e [:thrown e]))))
    result))

(defn- waiting?
  "True if a thread of that name is in the kernel or parked: a reader that waits."
  [^Thread thread]
  (some #(re-find #"Waiter|LockSupport" (str %)) (.getStackTrace thread)))

(def ^:private pair [:struct [:a :u64] [:b :u64]])

;; --- delivery

(kernel-test n1-every-record-in-order
  (testing "two producers at full speed: every record once, in order and whole"
    (let [seconds (parse-long (or (System/getProperty "bpfmap.events.seconds") "2"))]
      (with-open [m (producer/ring 65536)
                  a (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1})
                  b (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1})
                  p (producer/numbering m a 1)
                  q (producer/numbering m b 2)
                  r (events/reader m {:type [:struct [:id :u64] [:n :u64] [:check :u64]]
                                      :timeout 0.5})]
        (let [stop (AtomicBoolean.)
              producers (mapv #(elsewhere (fn [] (while (not (.get stop)) (producer/run % 5000))))
                              [p q])
              fills (elsewhere (fn []
                                 (loop [wrong #{}]
                                   (if (.get stop)
                                     wrong
                                     (recur (into wrong
                                                  (comp (map #(:fill (events/stats %)))
                                                        (remove #(<= 0 (long %) 65536)))
                                                  [r m]))))))
              least 10000
              stopper (elsewhere (fn []
                                   (Thread/sleep (* 1000 (long seconds)))
                                   ;; Processors that are emulated take turns.
                                   (eventually #(< least (min (a 0) (b 0))))
                                   (.set stop true)))
              check (fn [seen {:keys [id n check]}]
                      (let [expected (long (seen id 0))]
                        (if (and (= n expected)
                                 (= check (bit-xor (long id)
                                                   (unchecked-multiply
                                                    (long n)
                                                    (long producer/check-factor)))))
                          (assoc seen id (inc expected))
                          (reduced (assoc seen :wrong [id n check expected])))))
              seen (loop [seen {}]
                     (let [over? (every? realized? producers)
                           seen (reduce check seen r)]
                       (if (or over? (:wrong seen)) seen (recur seen))))]
          (run! deref (conj producers stopper))
          (is (= {1 (a 0) 2 (b 0)} seen))
          (is (= [:value #{}] @fills) "never less than nothing, or more than there is room for")
          (is (< least (long (seen 1 0))))
          (is (= (+ (long (a 0)) (long (b 0))) (:events (events/stats r)))))))))

(kernel-test n1-discarded
  (testing "a discarded record is not delivered"
    (with-open [m (producer/ring)
                s (producer/sender m)
                discard (producer/reserving m :discard)
                r (events/reader m {:type pair :timeout 0})]
      (producer/run discard 3)
      (producer/send! s (producer/of-longs 1 2))
      (producer/run discard 2)
      (is (= [{:a 1 :b 2}] (into [] r)))
      (is (= 5 (:discarded (events/stats r))))
      (is (= 0 (:fill (events/stats r)))))))

(kernel-test ^{:needs [[:kernel :sleeping-programs]]} n1-busy
  (testing "a busy record and those behind it are delivered later, and the statistics show it"
    (with-open [m (producer/ring)
                s (producer/sender m)
                keeper (producer/keeping m)
                r (events/reader m {:type pair :timeout (quot (long fixture/patience) 1000)})]
      (let [page (producer/missing-page)
            running (elsewhere #(producer/keep-record keeper page))]
        (try
          (is (eventually #(:busy (events/stats r))))
          (producer/send! s (producer/of-longs 3 4))
          (is (nil? (events/poll! r 0)))
          (is (= 0 (events/drain! r identity)))
          (let [{:keys [position seconds]} (:busy (events/stats r))]
            (is (= 0 position))
            (is (< 0 seconds))
            (is (eventually #(< seconds (:seconds (:busy (events/stats r))))) "and grow")
            (is (= position (:position (:busy (events/stats m))))
                "as of a map that somebody else reads"))
          (is (not (realized? running)))
          (finally (.close page)))
        (is (= [{:a 7 :b 8} {:a 3 :b 4}] (into [] (take 2) r)))
        (is (= :value (first (deref running fixture/patience [:late]))))
        (is (nil? (:busy (events/stats r))))))))

(kernel-test n1-several-rings
  (testing "one reader of several rings, each in its order"
    (with-open [m (producer/ring)
                n (producer/ring (* 2 fixture/page-size))
                s (producer/sender m)
                t (producer/sender n)
                r (events/reader [m n] {:type pair :timeout 0.3})]
      (doseq [i (range 10)]
        (producer/send! s (producer/of-longs 1 i))
        (producer/send! t (producer/of-longs 2 i)))
      (let [all (into [] r)]
        (is (= 20 (count all)))
        (doseq [[_ events] (group-by :a all)]
          (is (= (range 10) (map :b events)))))
      (is (= {:capacity (* 3 fixture/page-size) :fill 0}
             (select-keys (events/stats r) [:capacity :fill])))
      (is (re-find #"^#<bpf-events \d+ \(events\) \d+ \(events\)>$" (pr-str r)))
      (testing "an event of either wakes the reader"
        (doseq [p [s t]]
          (let [got (elsewhere #(events/poll! r 60))]
            (Thread/sleep 150)
            (producer/send! p (producer/of-longs 5 5))
            (is (= [:value {:a 5 :b 5}] (deref got fixture/patience :late)))))))))

(kernel-test n2-outstanding-bytes
  (testing "a ring holds its size less 8 bytes; after reading, the producer goes on"
    (with-open [m (producer/ring)
                s (producer/sender m)
                r (events/reader m {:type :u64 :timeout 0})]
      (let [n (quot (- fixture/page-size 8) 16)] ; records of 16 bytes
        (is (= -11 (producer/send! s (producer/of-longs 7) (+ n 45))) "EAGAIN")
        (is (= {:fill (* 16 n) :capacity fixture/page-size} (events/stats m)))
        (is (= n (count (into [] r)))))
      (is (= 0 (:fill (events/stats m))))
      (doseq [_ (range (quot (* 3 fixture/page-size) 4096))] ; records across the end
        (producer/send! s (range 200) 10)
        (producer/send! s (producer/of-longs 9) 1)
        (let [seen (volatile! [])]
          (is (= 11 (events/drain! r #(vswap! seen conj %))))
          (is (= 9 (peek @seen))))))))

(defspec ring-like-a-model 30
  (prop/for-all [size (gen/elements [4096 8192 16384])
                 steps (gen/vector (gen/one-of
                                    [(gen/tuple (gen/return :send)
                                                (gen/vector (gen/choose 0 255) 0 480))
                                     (gen/tuple (gen/return :discard) (gen/choose 1 3))
                                     (gen/tuple (gen/return :take) (gen/choose 0 12))
                                     (gen/tuple (gen/return :drain) (gen/return nil))])
                                   1 60)]
    (if (fixture/kernel-missing)
      true
      (with-open [m (producer/ring size)
                  s (producer/sender m)
                  discard (producer/reserving m :discard)
                  r (events/reader m {:timeout 0 :steal true})]
        (let [bytes-of (fn [length] (bit-and (+ (long length) 15) -8))]
          (loop [[[step x] & more] steps
                 queue [] ; lengths, or nil for a discarded record
                 used (Long/valueOf 0)
                 sent []]
            (let [drop-front (fn [queue] (drop-while nil? queue))]
              (case step
                nil true
                :send (let [n (long (bytes-of (count x)))
                            fits? (<= (+ (long used) n) (dec (long size)))]
                        (and (= fits? (zero? (producer/send! s x)))
                             (if fits?
                               (recur more (conj queue (count x)) (+ (long used) n)
                                      (conj sent (vec x)))
                               (recur more queue used sent))))
                :discard (let [n (min (long x) (quot (- (dec (long size)) used) 24))]
                           (producer/run discard x)
                           (recur more (into queue (repeat n nil)) (+ used (* 24 n)) sent))
                :take (let [n (min (long x) (count sent))
                            got (if (zero? (long x))
                                  []
                                  (mapv vec (into [] (take x) r)))
                            ;; A reduce that takes fewer than it wants reads all.
                            all? (< n (long x))
                            left (if all?
                                   []
                                   (loop [n n queue queue]
                                     (if (zero? n)
                                       (vec queue)
                                       (recur (dec n) (rest (drop-front queue))))))]
                        (and (= (subvec sent 0 n) got)
                             (recur more left
                                    (reduce + 0 (map #(bytes-of (or % 16)) left))
                                    (subvec sent n))))
                :drain (let [seen (volatile! [])]
                         (and (= (count sent) (events/drain! r #(vswap! seen conj (vec %))))
                              (= sent @seen)
                              (recur more [] 0 [])))))))))))

;; --- stopping and waiting

(kernel-test n5-reduced-leaves-next
  (testing "a reduce that ends leaves the next event unread"
    (with-open [m (producer/ring)
                s (producer/sender m)
                r (events/reader m {:type :u64 :timeout 0})]
      (doseq [i (range 8)] (producer/send! s (producer/of-longs i)))
      (is (= [0 1] (into [] (take 2) r)))
      (is (= 2 (events/poll! r 0)))
      (is (= 12 (reduce (fn [acc x] (if (= x 5) (reduced (+ acc x)) (+ acc x))) 0 r)))
      (is (= [6 7] (into [] r)))
      (is (= 0 (transduce (map inc) + r)))
      (testing "without an initial value, the first event is it"
        (doseq [i [3 4 5]] (producer/send! s (producer/of-longs i)))
        (is (= 12 (reduce + r)))
        (is (= 0 (reduce + r))))
      (is (nil? (events/poll! r 0))))))

(kernel-test n5-times
  (testing "a reduce ends after :timeout seconds without an event, or :seconds in all"
    (with-open [m (producer/ring)
                s (producer/sender m)]
      (with-open [r (events/reader m {:type :u64 :timeout 0.2})]
        (is (< 190 (millis-of #(is (= [] (into [] r)))) fixture/patience)))
      (with-open [r (events/reader m {:type :u64 :seconds 0.3})]
        (let [stop (AtomicBoolean.)
              producing (elsewhere #(while (not (.get stop))
                                      (producer/send! s (producer/of-longs 1))
                                      (Thread/sleep 5)))
              n (volatile! 0)]
          (is (< 290 (millis-of #(vreset! n (count (into [] r)))) fixture/patience))
          (is (< 2 (long @n)))
          (.set stop true)
          @producing
          (testing "also if the function is slow"
            (producer/send! s (producer/of-longs 1) 250)
            (is (< 290 (millis-of #(run! (fn [_] (Thread/sleep 10)) r)) fixture/patience))))))))

(kernel-test n3-wake-ups
  (testing "records that wake nobody, or everybody, arrive in time"
    (doseq [[flags limit] [[0 80] [producer/force-wakeup 80] [producer/no-wakeup 400]]]
      (with-open [m (producer/ring)
                  s (producer/sender m flags)
                  r (events/reader m {:type :u64})]
        (let [delays (doall
                      (for [_ (range 5)]
                        (let [arrived (promise)
                              thread (fixture/thread #(deliver arrived [(events/poll! r 60)
                                                                        (System/nanoTime)]))]
                          (is (eventually #(waiting? thread)))
                          (Thread/sleep 20)
                          (let [sent (System/nanoTime)]
                            (producer/send! s (producer/of-longs 4))
                            (let [[x at] (deref arrived fixture/patience nil)]
                              (is (= 4 x))
                              (/ (- (long at) sent) 1e6))))))]
          ;; The median: the machine may be busy with something else.
          (is (< (nth (sort delays) 2) (* fixture/slowness (long limit))) (pr-str flags delays))
          (is (= 5 (:events (events/stats r)))))))))

(kernel-test n3-quiet-readers
  (testing "a reader that nobody needs to wake by time waits longer and longer"
    (is (= [100 100 125 1000 1000]
           (for [seconds [0 0.8 1 8 3600]]
             (quot (reader/slice 100000000 (long (* 1e9 (double seconds))) false) 1000000))))
    (is (= 100000000 (reader/slice 100000000 3600000000000 true))
        "but not if it found events without a wake-up"))
  (testing "and learns from the events whether the producer wakes it"
    (with-open [m (producer/ring)
                silent (producer/sender m producer/no-wakeup)
                forcing (producer/sender m producer/force-wakeup)
                waking (producer/sender m)]
      (let [looks (atom [])
            seen (atom [])
            hour 3600000000000
            until (fn [pred f] (eventually #(or (pred) (do (f) nil))))]
        (with-redefs [reader/slice (fn ^long [^long _ ^long _ by-time]
                                     (swap! looks conj (boolean by-time))
                                     (if by-time hour 1000000))]
          (with-open [r (events/reader m {:type :u64})
                      _ (events/subscribe r #(swap! seen conj %))]
            (is (until #(peek @looks) #(producer/send! silent (producer/of-longs 1)))
                "an event that woke nobody was found by time")
            ;; The first one: an event that woke nobody may have come after the look.
            (is (until #(some #{2} @seen) #(do (producer/send! forcing (producer/of-longs 3))
                                               (producer/send! waking (producer/of-longs 2))))
                "then an event wakes the reader")
            (is (until #(false? (peek @looks)) #(producer/send! waking (producer/of-longs 2)))
                "and it knows that")))))))

(kernel-test n8-peek-is-woken
  (testing "an event wakes a peek while the reader of the ring keeps up"
    (with-open [m (producer/ring)
                s (producer/sender m)
                r (events/reader m {:type :u64})
                p (events/peek m {:type :u64 :from :now})]
      (with-redefs [reader/slice (fn ^long [^long _ ^long _ _] 3600000000000)]
        (let [seen (promise)
              thread (fixture/thread #(deliver seen (events/poll! p)))]
          (is (eventually #(waiting? thread)))
          (eventually (fn []
                        (or (realized? seen)
                            (do (producer/send! s (producer/of-longs 7))
                                (events/drain! r identity)
                                nil))))
          (is (= 7 (deref seen 0 :asleep))))))))

(kernel-test peek-pauses
  (testing "a peek that nobody wakes looks at a ring at growing intervals, up to 50 ms"
    (is (= [800 1600 3200 6400 12800 25600 50000 50000]
           (for [idle (range 8)]
             (quot (reader/pause idle 0 nil 0) 1000)))))
  (testing "at perf buffers after a 128th of the time since the last event"
    (let [second 1000000000
          pace (AtomicReference. [-1 0])
          looks (fn [seen at] (reader/pause 0 seen pace at))]
      (is (= 50000 (looks 0 0)) "the first look")
      (is (= 50000 (looks 0 1000)) "at least 50 us")
      (is (= 7812500 (looks 0 second)))
      (is (= 50000000 (looks 0 (* 10 second))) "at most 50 ms")
      (is (= 50000 (looks 3 (* 10 second))) "events came")
      (is (= 7812500 (looks 3 (* 11 second))) "counted from those"))))

(kernel-test n21-flush
  (with-open [m (producer/ring)
              s (producer/sender m)
              r (events/reader m {:type :u64})]
    (testing "a waiting reduce returns what it has, and the reader goes on"
      (doseq [virtual [false true]]
        (let [result (promise)
              reduce! #(deliver result (into [] r))
              thread (if virtual (Thread/startVirtualThread reduce!) (fixture/thread reduce!))]
          (producer/send! s (producer/of-longs 1))
          (is (eventually #(waiting? thread)))
          (producer/send! s (producer/of-longs 2))
          (let [begun (System/nanoTime)]
            (is (nil? (events/flush! r)))
            (is (= [1 2] (deref result fixture/patience nil)))
            (is (< (/ (- (System/nanoTime) begun) 1e6) fixture/patience)))
          (fixture/join thread))))
    (testing "then a call waits again"
      (is (< 140 (millis-of #(is (nil? (events/poll! r 0.15)))) fixture/patience)))
    (testing "without a call in progress, it applies to the next; poll! returns all events first"
      (producer/send! s (producer/of-longs 3) 2)
      (events/flush! r)
      (is (= 3 (reduce (fn [_ event] (reduced event)) nil r)))
      (is (= [3 nil] [(events/poll! r 20) (events/poll! r 20)]))
      (is (< 140 (millis-of #(is (nil? (events/poll! r 0.15)))) fixture/patience)))
    (testing "a call that throws leaves it to the next"
      (producer/send! s (producer/of-longs 4) 2)
      (events/flush! r)
      (is (= "no" (:message (error-of (run! (fn [_] (throw (ex-info "no" {}))) r)))))
      (is (= [4] (into [] r))))
    (testing "a producer that sends without end does not keep it from ending"
      (with-open [sent (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1})
                  p (producer/numbering m sent 1)]
        (let [stop (AtomicBoolean.)
              sending (elsewhere #(while (not (.get stop)) (producer/run p 100)))]
          (events/flush! r)
          (is (int? (count (into [] r))))
          (.set stop true)
          @sending)))
    (testing "a subscription continues, and drain! leaves the flush to the next call"
      (events/drain! r identity)
      (let [seen (atom 0)]
        (with-open [_ (events/subscribe r (fn [_] (swap! seen inc)))]
          (events/flush! r)
          (producer/send! s (producer/of-longs 5))
          (is (eventually #(= 1 @seen)))
          (producer/send! s (producer/of-longs 5))
          (is (eventually #(= 2 @seen)))))
      (events/flush! r)
      (is (= 0 (events/drain! r identity)))
      (is (= [] (into [] r))))
    (testing "a peek ends too"
      (with-open [p (events/peek m {:type :u64 :from :now})]
        (let [result (elsewhere #(into [] p))]
          (producer/send! s (producer/of-longs 6))
          (Thread/sleep 50)
          (events/flush! p)
          (is (= :value (first (deref result fixture/patience nil)))))))
    (.close ^Closeable r)
    (is (re-find #"^The reader of map \d+ \(events\) is closed: it was closed before this call"
                 (:message (error-of (events/flush! r)))))))

(kernel-test n4-close-wakes
  (testing "close ends a waiting reduce at once, and leaves nothing behind"
    (let [descriptors (fixture/settled-descriptors)
          mappings (fixture/mapped-maps)
          m (producer/ring)
          id (:id (bpf/info m))
          delays
          (doall
           (for [_ (range 5)]
             (let [r (events/reader m {:type :u64 :steal true})
                   result (promise)
                   thread (fixture/thread #(deliver result [(into [] r) (System/nanoTime)]))]
               (is (eventually #(waiting? thread)))
               (let [begun (System/nanoTime)]
                 (.close ^Closeable r)
                 (let [[value at] (deref result fixture/patience nil)]
                   (is (= [] value))
                   (is (= mappings (fixture/mapped-maps)) "close waits for the thread")
                   (/ (- (long at) begun) 1e6))))))]
      (is (< (nth (sort delays) 2) (* fixture/slowness 100)) (pr-str delays))
      (.close ^Closeable m)
      (is (= descriptors (fixture/open-descriptors)))
      (is (eventually #(not-any? (fn [info] (= id (:id info))) (host/maps))) "the map is gone"))))

(kernel-test n4-close-twice-and-after
  (testing "a closed reader rejects calls; closing again is allowed"
    (with-open [m (producer/ring)]
      (let [r (events/reader m {:timeout 0})]
        (.close ^Closeable r)
        (.close ^Closeable r)
        (doseq [f [#(into [] r) #(events/poll! r 0) #(events/drain! r identity)
                   #(events/subscribe r identity)]]
          (is (re-find #"^The reader of map \d+ \(events\) is closed: it was closed before this call; open another$"
                       (:message (error-of (f))))))
        (is (= {:events 0 :bytes 0 :discarded 0 :lost 0} (events/stats r)))
        (is (str/ends-with? (pr-str r) " closed>"))))
    (testing "a reader can be closed by its own function, and during a slow one"
      (with-open [m (producer/ring)
                  s (producer/sender m)]
        (producer/send! s (producer/of-longs 1) 5)
        (let [r (events/reader m {:type :u64})]
          (is (= 1 (reduce (fn [n _] (.close ^Closeable r) (inc n)) 0 r)))
          (is (= :closed (:bpfmap/error (error-of (events/poll! r 0))))))
        (let [r (events/reader m {:type :u64})
              inside (promise)
              reducing (elsewhere #(reduce (fn [n _] (deliver inside true) (Thread/sleep 300)
                                             (inc (long n)))
                                           0 r))]
          @inside
          (.close ^Closeable r)
          (is (= [:value 1] @reducing)))))))

(kernel-test ^:volume n4-open-and-close-often
  (testing "a thousand readers leave descriptors, mappings and threads as they were"
    (with-open [m (producer/ring)
                s (producer/sender m)]
      (let [round (fn [i]
                    (with-open [^Closeable r (if (even? i)
                                               (events/reader m {:type :u64 :steal true})
                                               (events/peek m {:type :u64}))]
                      (producer/send! s (producer/of-longs i))
                      (events/poll! r 0)
                      (when (zero? (mod i 10))
                        (with-open [_ (events/subscribe r identity)]))))
            _ (run! round (range 20))
            descriptors (fixture/settled-descriptors)
            mappings (fixture/mapped-maps)
            threads (Thread/activeCount)]
        (run! round (range 1000))
        (is (= descriptors (fixture/open-descriptors)))
        (is (= mappings (fixture/mapped-maps)))
        (is (<= (Thread/activeCount) (+ threads 2)))))))

(kernel-test interrupted-wait
  (testing "an interrupt ends a wait with the result so far"
    (with-open [m (producer/ring)
                s (producer/sender m)
                r (events/reader m {:type :u64})]
      (producer/send! s (producer/of-longs 3) 2)
      (let [result (promise)
            thread (fixture/thread
                    ;; clojure.test itself loses the status of an interrupted thread
                    #(deliver result (try
                                       (into [] r)
                                       (catch Exception e
                                         [(assoc (ex-data e) :message (ex-message e))
                                          (.isInterrupted (Thread/currentThread))]))))]
        (is (eventually #(waiting? thread)))
        (.interrupt ^Thread thread)
        (let [[{:keys [message] :bpfmap/keys [error so-far]} interrupted?]
              (deref result fixture/patience nil)]
          (is (= [:interrupted [3 3] true] [error so-far interrupted?]))
          (is (= "reduce has not finished: the thread was interrupted" message)))))))

(kernel-test n4-ended-by-the-last-user
  (testing "a thread that has left does not end the reader under the next user"
    (with-open [m (producer/ring)
                s (producer/sender m)]
      (let [r (events/reader m {:type :u64 :timeout 0})
            capacity #(:capacity (events/stats r))
            inside (promise)
            proceed (promise)
            _ (producer/send! s (producer/of-longs 1) 2)
            reducing (elsewhere #(reduce (fn [n _] (deliver inside true) @proceed (inc (long n)))
                                         0 r))]
        @inside
        (let [closing (elsewhere #(.close ^Closeable r))]
          (is (eventually #(reader/closed? r)))
          ;; What remains for a thread that left before the reduce began, and goes on only now.
          (#'reader/end-if-unused r)
          (is (= fixture/page-size (capacity)))
          (deliver proceed true)
          (is (= [:value 1] @reducing))
          (is (= [:value nil] @closing))
          (is (nil? (capacity)))))))
  (testing "threads that read while another one closes get an error, and nothing else"
    (with-open [m (producer/ring)
                s (producer/sender m)]
      (producer/send! s (producer/of-longs 1) 100)
      (let [other (atom [])]
        (dotimes [i 30]
          ;; A peek: its memory is checked, so that a read after the end would throw.
          (let [p (events/peek m {:type :u64 :timeout 0})
                threads (vec (for [f [#(events/drain! p identity) #(events/drain! p identity)
                                      #(events/poll! p 0) #(do (events/stats p) (str p))]]
                               (fixture/thread
                                #(loop []
                                   (let [e (try (f) nil (catch Throwable e e))]
                                     (when-not (contains? #{nil :busy :closed}
                                                          (some-> e ex-data :bpfmap/error))
                                       (swap! other conj e))
                                     (when (and (some? e) (nil? (ex-data e)))
                                       (swap! other conj e))
                                     (when-not (reader/closed? p)
                                       (recur)))))))]
            (Thread/sleep (long (rem i 4)))
            (let [closers (mapv (fn [_] (fixture/thread #(.close ^Closeable p))) (range 2))]
              (run! fixture/join (into threads closers)))))
        (is (= [] @other))))))

(kernel-test closed-maps
  (testing "a reader goes on when the handle of its map is closed; that handle opens no other"
    (let [m (producer/ring)]
      (with-open [s (producer/sender m)
                  r (events/reader m {:type :u64 :timeout 0})]
        (.close ^Closeable m)
        (producer/send! s (producer/of-longs 3))
        (is (= [3] (into [] r)))
        (is (= fixture/page-size (:capacity (events/stats r))))
        (doseq [f [#(events/reader m) #(events/peek m) #(events/stats m)]]
          (is (re-find #"^Map \d+ \(events\) is closed: it was closed before or during this call; open it again$"
                       (:message (error-of (f))))))))))

;; --- one user

(kernel-test one-call-at-a-time
  (testing "a second call on a reader gets an error, from another thread and from inside"
    (with-open [m (producer/ring)
                s (producer/sender m)
                r (events/reader m {:type :u64 :timeout 0})
                waiting (events/reader m {:type :u64 :steal true})]
      (producer/send! s (producer/of-longs 1))
      (let [inside (volatile! nil)]
        (reduce (fn [_ _] (vreset! inside (error-of (into [] r)))) nil r)
        (is (= :busy (:bpfmap/error @inside)))
        (is (re-find #"^The reader of map \d+ \(events\) is in use: this thread is inside another call on it; finish that call, or use the events there$"
                     (:message @inside))))
      (let [thread (fixture/thread #(into [] waiting))]
        (.setName ^Thread thread "first")
        (is (eventually #(waiting? thread)))
        (is (re-find #"is in use: the thread \"first\" reads it; one thread at a time may, and hands events on to others$"
                     (:message (error-of (events/poll! waiting 0)))))
        (.close ^Closeable waiting)
        (fixture/join thread)))))

(kernel-test subscriptions
  (testing "a subscription has a thread of its own, until it or the reader is closed"
    (with-open [m (producer/ring)
                s (producer/sender m)
                r (events/reader m {:type :u64 :timeout 0})]
      (let [seen (atom [])
            threads (atom #{})]
        (with-open [subscription (events/subscribe r (fn [x]
                                                       (swap! threads conj (Thread/currentThread))
                                                       (swap! seen conj x)))]
          (doseq [i (range 5)] (producer/send! s (producer/of-longs i)))
          (is (eventually #(= 5 (count @seen))))
          (is (= (range 5) @seen))
          (is (= :busy (:bpfmap/error (error-of (events/poll! r 0)))))
          (is (re-find #"^#<bpf-subscription to #<bpf-events" (pr-str subscription))))
        (let [^Thread thread (first @threads)]
          (is (= 1 (count @threads)))
          (is (eventually #(not (.isAlive thread))))
          (is (.isDaemon thread))
          (is (not (.isVirtual thread))))
        (testing "then the reader can be used again"
          (producer/send! s (producer/of-longs 9))
          (is (= 9 (events/poll! r 1)))
          (is (< 90 (millis-of #(is (nil? (events/poll! r 0.1)))) fixture/patience) "which waits"))
        (testing "closing the reader ends it"
          (let [r (events/reader m {:type :u64 :steal true})
                subscription (events/subscribe r identity)]
            (.close ^Closeable r)
            (is (eventually #(str/ends-with? (pr-str subscription) "ended>")))
            (.close ^Closeable subscription)))
        (testing "its :on-error gets what the function throws"
          (let [errors (atom [])]
            (reset! seen [])
            (with-open [_ (events/subscribe r (fn [x] (if (odd? x)
                                                        (throw (ex-info "odd" {:x x}))
                                                        (swap! seen conj x)))
                                            {:on-error #(swap! errors conj (ex-message %))})]
              (doseq [i (range 4)] (producer/send! s (producer/of-longs i)))
              (is (eventually #(= [[0 2] ["odd" "odd"]] [@seen @errors]))))))
        (testing "also a failed assertion"
          (let [errors (atom [])]
            (with-open [_ (events/subscribe r (fn [x] (assert (odd? x)))
                                            {:on-error #(swap! errors conj (class %))})]
              (doseq [i (range 4)] (producer/send! s (producer/of-longs i)))
              (is (eventually #(= [AssertionError AssertionError] @errors))))))
        (testing "what :on-error throws ends the subscription, and is not passed to it"
          (let [handler (Thread/getDefaultUncaughtExceptionHandler)
                uncaught (promise)
                errors (atom [])]
            (try
              (Thread/setDefaultUncaughtExceptionHandler
               (reify Thread$UncaughtExceptionHandler
                 (uncaughtException [_ _ e] (deliver uncaught (ex-message e)))))
              (with-open [_ (events/subscribe r (fn [_] (throw (ex-info "no" {})))
                                              {:on-error (fn [e]
                                                           (swap! errors conj (ex-message e))
                                                           (throw (ex-info "neither" {})))})]
                (producer/send! s (producer/of-longs 1))
                (is (= "neither" (deref uncaught fixture/patience nil)))
                (is (= ["no"] @errors)))
              (finally (Thread/setDefaultUncaughtExceptionHandler handler)))))
        (testing "without it, an exception ends the subscription"
          (let [handler (Thread/getDefaultUncaughtExceptionHandler)
                uncaught (promise)]
            (try
              (Thread/setDefaultUncaughtExceptionHandler
               (reify Thread$UncaughtExceptionHandler
                 (uncaughtException [_ _ e] (deliver uncaught (ex-message e)))))
              (with-open [subscription (events/subscribe r (fn [_] (throw (ex-info "no" {}))))]
                (producer/send! s (producer/of-longs 1))
                (is (= "no" (deref uncaught fixture/patience nil)))
                (is (eventually #(str/ends-with? (pr-str subscription) "ended>"))))
              (finally (Thread/setDefaultUncaughtExceptionHandler handler)))
            (producer/send! s (producer/of-longs 2))
            (is (= 2 (events/poll! r 1)))))))))

(kernel-test ^:volume n7-virtual-threads
  (testing "100 virtual threads that wait for events do not delay an unrelated one"
    (let [rings (vec (repeatedly 100 producer/ring))
          ;; :steal, or each would look for other readers in all processes of the host.
          readers (mapv #(events/reader % {:type :u64 :steal true}) rings)
          ended (CountDownLatch. 100)]
      (try
        (doseq [r readers]
          (.start (Thread/ofVirtual) (fn []
                                       (try (into [] r)
                                            (finally (.countDown ended))))))
        (Thread/sleep 300)
        (let [ran (promise)
              begun (System/nanoTime)]
          (.start (Thread/ofVirtual) (fn [] (deliver ran (System/nanoTime))))
          ;; Waits that block their carriers take turns of 100 ms, 100 / cpus of them. A fifth of
          ;; that leaves time for a slow machine.
          (is (< (/ (- (long (deref ran fixture/patience Long/MAX_VALUE)) begun) 1e6)
                 (* fixture/slowness
                    (max 100 (quot 2000 (.availableProcessors (Runtime/getRuntime))))))))
        (testing "and get events"
          (doseq [m rings]
            (with-open [s (producer/sender m)]
              (producer/send! s (producer/of-longs 7))))
          (is (eventually (fn [] (every? #(= 1 (:events (events/stats %))) readers)))))
        (finally (run! #(.close ^Closeable %) readers)))
      (is (.await ended fixture/patience TimeUnit/MILLISECONDS))
      (run! #(.close ^Closeable %) rings))))

;; --- types

(kernel-test typed-events
  (testing "events longer or shorter than their type show what is known"
    (with-open [m (producer/ring)
                s (producer/sender m)]
      (let [decode (fn [options & all]
                     (with-open [r (events/reader m (assoc options :timeout 0))]
                       (doseq [x all] (producer/send! s x))
                       (into [] r)))
            type [:struct [:pid :u32] [:flags :u16] [:name [:string 4]]]
            [whole longer shorter cut tiny empty]
            (decode {:type type}
                    [1 0 0 0, 2 0, 97 98 0 0, 0 0] [1 0 0 0, 2 0, 97 98 0 0, 0 0, 5 6]
                    [1 0 0 0, 2 0] [1 0 0 0, 2 0, 97] [1 0] [])]
        (is (= {:pid 1 :flags 2 :name "ab"} whole))
        (is (= {:pid 1 :flags 2 :name "ab" :bpfmap/extra (bytes/->bytes [5 6])} longer))
        (is (= {:pid 1 :flags 2 :bpfmap/missing 6} shorter))
        (is (= {:pid 1 :flags 2 :bpfmap/missing 5 :bpfmap/extra (bytes/->bytes [97])} cut))
        (is (= {:bpfmap/missing 10 :bpfmap/extra (bytes/->bytes [1 0])} tiny))
        (is (= {:bpfmap/missing 12} empty))
        (testing "also if the value is not a map"
          (is (= [5
                  {:bpfmap/value 5 :bpfmap/extra (bytes/->bytes [1])}
                  {:bpfmap/missing 1 :bpfmap/extra (bytes/->bytes [5])}]
                 (decode {:type :u16} [5 0] [5 0 1] [5]))))
        (testing "bit-fields that are there"
          (is (= [{:a 5 :b 1 :bpfmap/missing 3}]
                 (decode {:type [:struct [:a [:bits :u32 4]] [:b [:bits :u32 4]]
                                 [:c [:bits :u32 24]]]}
                         [0x15]))))
        (testing "bytes, without a type"
          (is (= [(bytes/->bytes [1 2 3])] (decode {} [1 2 3]))))
        (testing "a function of the bytes chooses the type"
          (is (= [{:tag 1 :n 258} {:tag 2 :s "hi"} (bytes/->bytes [3 3])]
                 (decode {:type #(case (long (nth % 0))
                                   1 [:struct [:tag :u8] [:pad* [:pad 1]] [:n :u16]]
                                   2 [:struct [:tag :u8] [:s [:string 3]]]
                                   nil)}
                         [1 0 2 1] [2 104 105 0] [3 3]))))
        (testing "types by name"
          (is (= [{:n 7}] (decode {:type :event :types {:event [:struct [:n :u8]]}} [7]))))))))

(kernel-test undecodable-events
  (testing "an event that cannot be decoded does not lose the events behind it"
    (with-open [m (producer/ring)
                s (producer/sender m)]
      (let [type [:via :u64 identity #(if (= 13 %) (throw (ex-info "13" {})) %)]
            send-all #(doseq [i [1 2 13 3 13 4]] (producer/send! s (producer/of-longs i)))]
        (with-open [r (events/reader m {:type type :timeout 0})]
          (send-all)
          (let [{:keys [message] :bpfmap/keys [error bytes so-far map]} (error-of (into [] r))]
            (is (= [:invalid-value [1 2]] [error so-far]))
            (is (= (bytes/->bytes (producer/of-longs 13)) bytes))
            (is (= "events" (:name map)))
            (is (str/starts-with? message "An event of 8 bytes cannot be decoded: ")))
          (is (= [3] (:bpfmap/so-far (error-of (into [] r)))))
          (is (= [4] (into [] r)))
          (is (= 6 (:events (events/stats r)))))
        (let [errors (atom [])]
          (with-open [r (events/reader m {:type type :timeout 0
                                          :on-error #(swap! errors conj
                                                            (:bpfmap/bytes (ex-data %)))})]
            (send-all)
            (is (= [1 2 3 4] (into [] r)))
            (is (= (repeat 2 (bytes/->bytes (producer/of-longs 13))) @errors))
            (send-all)
            (is (= 4 (events/drain! r identity)))))
        (testing "a failed assertion of the type's function is such an error, too"
          (let [errors (atom [])
                type (fn [bytes] (assert (not= 13 (nth bytes 0))) :u64)]
            (with-open [r (events/reader m {:type type :timeout 0
                                            :on-error #(swap! errors conj (ex-message %))})]
              (send-all)
              (is (= [1 2 3 4] (into [] r)))
              (is (= 2 (count @errors)))
              (is (every? #(str/starts-with? % "An event of 8 bytes cannot be decoded: Assert failed")
                          @errors)))
            (with-open [r (events/reader m {:type type :timeout 0})]
              (send-all)
              (is (= [:invalid-value [1 2]]
                     ((juxt :bpfmap/error :bpfmap/so-far) (error-of (into [] r)))))
              (is (= [3] (:bpfmap/so-far (error-of (into [] r)))))
              (is (= [4] (into [] r))))))
        (testing "what the reducing function throws comes out as it is"
          (with-open [r (events/reader m {:type :u64 :timeout 0})]
            (send-all)
            (is (= {:x 2} (dissoc (error-of (run! #(when (= 2 %) (throw (ex-info "" {:x %}))) r))
                                  :message :class)))
            (is (= [13 3 13 4] (into [] r)))))))))

(kernel-test n6-events-in-place
  (testing "an event in place is read without a copy, and throws when it is over"
    (with-open [m (producer/ring)
                s (producer/sender m)
                r (events/reader m {:raw true :timeout 0})]
      (producer/send! s [1 0 0 0 255 255 255 255 2 0 254])
      (producer/send! s (producer/of-longs 77))
      (let [kept (volatile! nil)
            buffer (byte-array 4)]
        (is (= [[11 1 -1 2 -2 -4294967295 4 [-1 -1 -1 -1]] [8 77]]
               (reduce (fn [acc e]
                         (vreset! kept e)
                         (conj acc
                               (if (= 11 (events/raw-length e))
                                 [(events/raw-length e) (events/raw-int e 0) (events/raw-int e 4)
                                  (events/raw-short e 8) (events/raw-byte e 10)
                                  (events/raw-long e 0)
                                  (events/raw-copy! e 4 buffer) (vec buffer)]
                                 (do
                                   (doseq [f [#(events/raw-long e 1) #(events/raw-byte e 8)
                                              #(events/raw-int e -1)
                                              #(events/raw-copy! e 9 buffer)]]
                                     (is (thrown? IndexOutOfBoundsException (f))))
                                   [(events/raw-length e) (events/raw-long e 0)]))))
                       [] r)))
        (doseq [f [#(events/raw-length @kept) #(events/raw-byte @kept 0)
                   #(events/raw-copy! @kept 0 buffer)]]
          (is (thrown-with-msg? IllegalStateException #"the event is over" (f))))
        (is (= "an event that is over" (str @kept)))
        (is (= "An event in place ends with the call that gets it: poll! would return it afterwards; use reduce, run! or drain!, or a reader without :raw"
               (:message (error-of (events/poll! r 0)))))
        (testing "or when another thread uses it"
          (producer/send! s (producer/of-longs 78))
          (let [seen (reduce (fn [acc e]
                               (into acc (map #(deref (elsewhere %)))
                                     [#(events/raw-length e) #(events/raw-long e 0)
                                      #(events/raw-copy! e 0 buffer)]))
                             [] r)]
            (is (= 3 (count seen)))
            (doseq [[_ e] seen]
              (is (instance? IllegalStateException e))
              (is (re-find #"^the event belongs to the thread \".*\"; copy there what another thread uses$"
                           (ex-message e))))))))))

(kernel-test ^{:needs [[:jvm :c2]]} n6-no-allocation
  (testing "reading events in place allocates nothing for each event"
    (with-open [m (producer/ring 65536)
                s (producer/sender m)
                r (events/reader m {:raw true})]
      (let [sum (AtomicLong.)
            f (fn [e] (.addAndGet sum (events/raw-long e 0)) nil)
            bean ^com.sun.management.ThreadMXBean
            (java.lang.management.ManagementFactory/getThreadMXBean)
            drained (fn []
                      (producer/send! s (producer/of-longs 1) 4000)
                      (let [before (.getCurrentThreadAllocatedBytes bean)
                            n (long (events/drain! r f))]
                        (/ (double (- (.getCurrentThreadAllocatedBytes bean) before)) n)))]
        (is (= 4000 (do (producer/send! s (producer/of-longs 1) 4000) (events/drain! r f))))
        (is (eventually #(< (double (drained)) 1.0)) "bytes for each event")))))

;; --- foreign rings

(kernel-test n8-peek-changes-nothing
  (testing "a peek takes nothing, and its reader does not notice"
    (with-open [m (producer/ring)
                s (producer/sender m)
                r (events/reader m {:type :u64 :timeout 0})
                p (events/peek m {:type :u64 :timeout 0.2})]
      (doseq [i (range 5)] (producer/send! s (producer/of-longs i)))
      (is (= (range 5) (into [] p)))
      (is (= [0 1] (into [] (take 2) r)))
      (is (= {:fill 48 :capacity fixture/page-size} (events/stats m)))
      (testing "the history is still there until the ring has gone round"
        (with-open [all (events/peek m {:type :u64 :timeout 0})
                    none (events/peek m {:type :u64 :timeout 0 :from :now})]
          (is (= (range 5) (into [] all)))
          (is (= [] (into [] none)))
          (producer/send! s (producer/of-longs 5))
          (is (= [5] (into [] none)))))
      (is (= [2 3 4 5] (into [] r)))
      (is (= [5] (into [] p)) "what came since")
      (is (= {:events 6 :bytes 48 :discarded 0 :lost 0 :overtaken 0 :missed 0 :fill 0
              :capacity fixture/page-size}
             (events/stats p)))
      (is (re-find #"^#<bpf-peek \d+ \(events\)>$" (pr-str p)))
      (testing "the reader is woken as always"
        (let [got (elsewhere #(events/poll! r 60))]
          (Thread/sleep 100)
          (producer/send! s (producer/of-longs 6))
          (is (= [:value 6] (deref got fixture/patience :late)))))
      (testing "handles of one access only are enough"
        (doseq [access [:read-only :write-only]]
          (with-open [one (bpf/open (:id (bpf/info m)) {:access access})
                      p (events/peek one {:type :u64 :timeout 0})]
            (is (= (range 7) (into [] p)))
            (is (= {:fill 0 :capacity fixture/page-size} (events/stats one)))))))))

(kernel-test n9-never-torn
  (testing "a peek that is overtaken says so, and never delivers a torn record"
    (with-open [m (producer/ring)
                counter (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1})
                program (producer/numbering m counter 3)
                r (events/reader m {:raw true})
                p (events/peek m {:type [:struct [:id :u64] [:n :u64] [:check :u64]] :seconds 2})]
      (let [stop (AtomicBoolean.)
            producing (elsewhere #(while (not (.get stop)) (producer/run program 3000)))
            consuming (events/subscribe r (fn [_]))
            [seen wrong] (reduce (fn [[seen wrong last-n] {:keys [id n check]}]
                                   (let [n (long n)]
                                     [(inc (long seen))
                                      (if (and (= 3 id) (< (long last-n) n)
                                               (= check (bit-xor 3 (unchecked-multiply
                                                                    n
                                                                    (long producer/check-factor)))))
                                        wrong
                                        (inc (long wrong)))
                                      n]))
                                 [0 0 -1] p)
            {:keys [overtaken missed events]} (events/stats p)]
        (.set stop true)
        @producing
        (.close ^Closeable consuming)
        (is (= 0 wrong))
        (is (< (quot 1000 fixture/slowness) (long seen)))
        (is (= seen events))
        (is (< 0 (long overtaken)))
        (is (< (* 32 (long overtaken)) (long missed)))))))

(defn- holder
  "A process that holds what a path pins, until it is closed."
  ^Closeable [path]
  (let [command (fixture/java
                 "-e"
                 (str "(require '[bpfmap.core :as bpf])"
                      "(def m (bpf/open " (pr-str path) "))"
                      "(println :open) (flush) (read-line)"))
        process (.start (ProcessBuilder. ^java.util.List command))]
    (.readLine (BufferedReader. (InputStreamReader. (.getInputStream process))))
    (reify Closeable
      (close [_]
        (.destroyForcibly process)
        (.waitFor process)))))

(kernel-test ^:volume n10-other-holders
  (testing "a ring that somebody else has open is not consumed without consent"
    (let [path (fixture/new-pin)]
      (with-open [m (producer/ring)
                  s (producer/sender m)]
        (bpf/pin! m path)
        (try
          (with-open [_ (holder path)]
            (let [{:keys [message] :bpfmap/keys [error holders op]} (error-of (events/reader m))]
              (is (= [:busy :reader] [error op]))
              (is (= ["java"] (map :command holders)))
              (is (re-find #"^Map \d+ \(events\) may have another reader: \d+ \(java\) holds it, and each event goes to one reader only; use peek, which takes nothing, or \{:steal true\}$"
                           message)))
            (producer/send! s (producer/of-longs 1))
            (with-open [p (events/peek m {:type :u64 :timeout 0})]
              (is (= [1] (into [] p))))
            (with-open [r (events/reader m {:type :u64 :timeout 0 :steal true})]
              (is (= [1] (into [] r)))))
          (with-open [r (events/reader m {:timeout 0})]
            (is (= [] (into [] r)) "when it is gone"))
          (finally (bpf/unpin! m)))))))

(kernel-test n10-stolen-from-each-other
  (testing "with :steal, an event that one reader took is not read again by the other"
    (with-open [m (producer/ring)
                s (producer/sender m)
                r (events/reader m {:type :u64 :timeout 0})
                other (events/reader m {:type :u64 :timeout 0 :steal true})]
      (dotimes [i 300] ; 300 records of 24 bytes: more than the ring has, if none is taken
        (run! #(producer/send! s (producer/of-longs (+ (* 4 i) (long %)))) (range 4))
        (let [from (* 4 i)]
          (is (= [from (inc from)] (into [] (take 2) (if (even? i) r other))))
          (is (= [(+ 2 from) (+ 3 from)] (into [] (if (even? i) other r))))
          (is (= [] (into [] r)))
          (is (= 0 (:fill (events/stats m)))))))))

(kernel-test ^:volume n10-two-readers-here
  (testing "two readers of a ring in one process need consent as well"
    (with-open [m (producer/ring)
                other (bpf/clone m)]
      (with-open [_ (events/reader m)]
        (doseq [handle [m other]]
          (is (re-find #"^Map \d+ \(events\) has a reader in this process: each event goes to one reader only; close that reader, hand its events on, or use \{:steal true\}$"
                       (:message (error-of (events/reader handle))))))
        (with-open [_ (events/reader other {:steal true})]))
      (with-open [_ (events/reader other)])
      (testing "a failed open leaves the place free"
        (is (= :invalid-spec (:bpfmap/error (error-of (events/reader m {:type [:nope]})))))
        (with-open [_ (events/reader m)]))
      (testing "a reader that nobody closed gives it back to the collector"
        (events/reader m)
        (is (eventually #(do (System/gc)
                             (try (with-open [_ (events/reader m)] true)
                                  (catch clojure.lang.ExceptionInfo _ false)))))))))

;; --- files with the layout of a ring

(defn- drain-fake [{:keys [^EventSource source]}]
  (let [seen (volatile! [])]
    (.drain source
            (reify EventSource$Handler
              (accept [_ event]
                (vswap! seen conj (into [] (take 8) (.copyFrom event 0)))
                true))
            (AtomicBoolean.)
            Integer/MAX_VALUE)
    @seen))

(defmacro ^:private with-fake [[sym kind size positions] & body]
  `(let [~sym (producer/fake ~kind ~size ~positions)]
     (try
       ~@body
       (finally ((:close ~sym))))))

(def ^:private busy (bit-shift-left 1 31))
(def ^:private discarded (bit-shift-left 1 30))

(kernel-test n11-corrupt-positions
  (testing "positions and lengths that no kernel writes are errors, not wild reads"
    (doseq [[kind positions message]
            [[:consume {[:consumer 0] 64} #"position 0 is not within 4096 bytes after .* 64"]
             [:consume {[:producer 0] 4104} #"position 4104 is not within 4096 bytes"]
             [:consume {[:producer 0] -8} #"position 18446744073709551608 is not within"]
             [:consume {[:producer 0] 16 [:header 0] 0x3fffffff}
              #"position 0 has 1073741823 bytes, which is more than the 8 bytes up to"]
             [:consume {[:producer 0] 16 [:header 0] (bit-or discarded 9)} #"has 9 bytes"]
             [:follow {[:consumer 0] 9000 [:producer 0] 8192} #"consumer's position 9000"]
             [:follow {[:producer 0] 16 [:header 0] 0x3fffffff} #"has 1073741823 bytes"]
             [:follow {[:producer 0] 16 [:header 0] 9} #"has 9 bytes"]
             [:consume {[:consumer 0] 3 [:producer 0] 16}
              #"position 3 and the producer's position 16 are not both multiples of 8"]
             [:consume {[:producer 0] 13} #"position 0 and the producer's position 13 are not"]
             [:follow {[:consumer 0] 8195 [:producer 0] 8208} #"position 8195 and the producer's"]
             [:overwrite {[:consumer 0] 9 [:producer 0] 16} #"position 9 and the producer's"]]]
      (with-fake [fake kind 4096 positions]
        (is (thrown-with-msg? CorruptEventsException message (drain-fake fake))
            (pr-str kind positions))
        (is (thrown? CorruptEventsException (drain-fake fake)) "again")
        (is (int? (.busyPosition ^EventSource (:source fake)))))))
  (testing "a peek that is overtaken does not follow its owner to a misaligned position"
    (with-fake [fake :follow 4096 {[:consumer 0] 8192 [:producer 0] 8192}]
      ((:write fake) :consumer 0 16377)
      ((:write fake) :producer 0 16384)
      (is (= [] (drain-fake fake)))
      (is (= 8192 (.missed ^EventSource (:source fake)))))))

(defspec ring-of-random-content 60
  (prop/for-all [kind (gen/elements [:consume :follow :overwrite])
                 positions (gen/vector (gen/one-of [(gen/choose -20 9000)
                                                    (gen/fmap #(* 8 (long %)) (gen/choose 0 1100))
                                                    (gen/fmap unchecked-long gen/large-integer)])
                                       3)
                 headers (gen/vector (gen/tuple (gen/fmap #(* 8 (long %)) (gen/choose 0 511))
                                                (gen/one-of [(gen/choose 0 64)
                                                             (gen/choose 0 0xffffffff)]))
                                     0 40)]
    (with-fake [fake kind 4096 (into (zipmap [[:consumer 0] [:producer 0] [:producer 16]]
                                             positions)
                                     (map (fn [[at x]] [[:header at] x]))
                                     headers)]
      (dotimes [_ 3]
        (try
          (drain-fake fake)
          (catch CorruptEventsException _))
        (.busyPosition ^EventSource (:source fake))
        (.fill ^EventSource (:source fake)))
      true)))

(kernel-test positions-wrap
  (testing "positions beyond 32 and 63 bits, and records across the end"
    (doseq [start [0 4080 (- (bit-shift-left 1 32) 16) (- Long/MAX_VALUE 15)]]
      (doseq [kind [:consume :follow]]
        (with-fake [fake kind 4096 {[:consumer 0] start
                                    [:producer 0] (unchecked-add (long start) 48)
                                    [:header start] 8
                                    [:data (unchecked-add (long start) 8)] 1
                                    [:header (unchecked-add (long start) 16)] (bit-or discarded 8)
                                    [:header (unchecked-add (long start) 32)] 3
                                    [:data (unchecked-add (long start) 40)] 0x030201}]
          (is (= [[1 0 0 0 0 0 0 0] [1 2 3]] (drain-fake fake)) (str kind " " start))
          (is (= 1 (.discarded ^EventSource (:source fake))))
          (is (= (if (= :consume kind) (unchecked-add (long start) 48) start)
                 ((:read fake) :consumer))))))))

(kernel-test busy-record-that-never-commits
  (testing "a producer that died leaves a busy record: reported, and no obstacle for close"
    (doseq [kind [:consume :follow]]
      (with-fake [fake kind 4096 {[:producer 0] 32 [:header 0] 8 [:data 8] 1
                                  [:header 16] (bit-or busy 8)}]
        (is (= [[1 0 0 0 0 0 0 0]] (drain-fake fake)))
        (is (= [] (drain-fake fake)))
        (let [^EventSource source (:source fake)]
          (is (.isBusy source))
          (is (= 16 (.busyPosition source))))
        ((:write fake) :header 16 8)
        (is (= 1 (count (drain-fake fake))))
        (is (= -1 (.busyPosition ^EventSource (:source fake))))))))

(kernel-test n13-overwriting-ring
  (testing "a ring that overwrites: begins at its oldest whole record, and skips when overtaken"
    (with-fake [fake :overwrite 4096 {[:consumer 0] 0
                                      [:producer 0] 8192
                                      [:producer 16] 8160
                                      [:header 8160] 8 [:data 8168] 5
                                      [:header 8176] 8 [:data 8184] 6}]
      (let [^EventSource source (:source fake)]
        (is (= 32 (.fill source)))
        (is (= [[5 0 0 0 0 0 0 0] [6 0 0 0 0 0 0 0]] (drain-fake fake)))
        (is (= 8192 ((:read fake) :consumer)))
        ((:write fake) :producer 0 16384)
        ((:write fake) :producer 16 16368)
        ((:write fake) :header 16368 8)
        ((:write fake) :data 16376 7)
        (is (= [[7 0 0 0 0 0 0 0]] (drain-fake fake)))
        (is (= [1 (- 16368 8192)] [(.overtaken source) (.missed source)])))))
  (when (since/has? [:flag :rb-overwrite])
    (testing "of this kernel"
      (with-open [m (bpf/create {:type :ringbuf :max-entries 4096 :flags #{:rb-overwrite}})
                  s (producer/sender m)
                  r (events/reader m {:type :u64 :timeout 0})]
        (doseq [i (range 1000)] (producer/send! s (producer/of-longs i)))
        (let [all (into [] r)]
          (is (= 999 (peek all)))
          (is (< 200 (count all) 256))
          (is (= all (range (first all) 1000))))))))

(kernel-test n12-read-only-pages
  (testing "a store into the pages of a peek throws, and does not reach the page"
    (with-open [m (producer/ring)]
      (with-open [region (kernel.events/map-part (bpf-map/descriptor m) 0 4096 false {})]
        (is (thrown-with-msg? IllegalArgumentException #"read-only"
                              (.set (.segment region) ValueLayout/JAVA_LONG 0 7)))))))

;; --- arguments

(kernel-test invalid-arguments
  (testing "arguments that are not valid are named"
    (with-open [m (producer/ring)
                hash (bpf/create {:name "h" :type :hash :key :u32 :value :u32 :max-entries 1})]
      (doseq [[f message]
              {#(events/reader 5) "The argument must be an open map, got 5"
               #(events/reader []) "There must be at least one map"
               #(events/reader hash) "is refused: events come from maps of type :ringbuf and :perf-event-array, not :hash"
               #(events/peek hash) "is refused: events come from maps of type :ringbuf"
               #(events/stats hash) "events come from maps of type"
               #(events/reader [m hash]) "events come from maps of type"
               #(events/reader m {:timout 1}) "Unknown option :timout: did you mean :timeout?"
               #(events/reader m {:timeout -1}) ":timeout must be a number of seconds, 0 or more, got -1"
               #(events/reader m {:on-error 5}) ":on-error must be a function, got 5"
               #(events/reader m {:pages 3}) ":pages must be a power of two, in pages, got 3"
               #(events/reader m {:wakeup-events 0}) ":wakeup-events must be a positive 32-bit integer, got 0"
               #(events/reader m {:pages 2}) ":pages must be left out for a ring buffer: only the buffers of a perf event array belong to a CPU"
               #(events/reader m {:wakeup-bytes 9}) ":wakeup-bytes must be left out for a ring buffer"
               #(events/reader m {:raw true :type :u8}) ":type and :raw exclude each other: leave out one"
               #(events/reader [m m]) "The maps must differ, got one of them twice"
               #(events/peek m {:from 0}) ":from must be :oldest or :now, got 0"
               #(events/poll! m 1) "The argument must be a reader, got "
               #(events/drain! nil identity) "The argument must be a reader, got nil"
               #(events/subscribe m identity) "The argument must be a reader, got "
               #(events/flush! m) "The argument must be a reader, got "
               #(events/pause! 7) "The argument must be a reader, got 7"
               #(events/resume! nil) "The argument must be a reader, got nil"}]
        (is (str/includes? (:message (error-of (f))) message)))
      (with-open [r (events/reader m)]
        (doseq [f [events/pause! events/resume!]]
          (is (re-find #"^The reader of map \d+ \(events\) cannot be paused: only the buffers of a perf event array belong to their reader; use a map that the program checks before it sends$"
                       (:message (error-of (f r))))))
        (is (= ["f must be a function, got nil: it is called with each event"
                "f must be a function, got 5: it is called with each event"]
               [(:message (error-of (events/drain! r nil)))
                (:message (error-of (events/subscribe r 5)))]))
        (is (str/includes? (:message (error-of (events/poll! r -1)))
                           ":seconds must be a number of seconds, 0 or more, got -1")))
      (with-open [read-only (bpf/open (:id (bpf/info m)) {:access :read-only})]
        (is (re-find #"^Map \d+ \(events\) was opened read-only: a reader gives the places of events back, which is writing; use peek, or open it with \{:access :read-write\}$"
                     (:message (error-of (events/reader read-only))))))
      (bpf/freeze! m)
      (let [{:keys [message] :bpfmap/keys [error]} (error-of (events/reader m))]
        (is (= :permission error))
        (is (str/includes? message "frozen"))))))
