(ns ^:volume bpfmap.sys.fd-test
  "Lifetime, threads and signals: what a service depends on for months."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.prog :as prog]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (bpfmap.sys ClosedFdException Fd)
           (java.io Closeable FileInputStream)
           (java.util.concurrent Executors Future ThreadLocalRandom)
           (java.util.concurrent.atomic AtomicBoolean AtomicLong)))

(set! *warn-on-reflection* true)

(def ^:private spec {:type :hash :key :u32 :value :u64 :max-entries 16})

(defn- create ^Closeable [change] (bpf/create (merge spec change)))

(defn- outcome
  "What a call answers, or the kind of its error."
  [f]
  (try (f) (catch clojure.lang.ExceptionInfo e (:bpfmap/error (ex-data e)))))

(defn- work
  "Calls at random on an array of 16 in which k has the value k + n, until it is closed or `calls`
  were made. Returns how many were made; throws for an answer that is not this map's."
  [m n calls]
  (let [random (ThreadLocalRandom/current)]
    (loop [i 0]
      (if (= i calls)
        i
        (let [k (.nextInt random 16)
              right (+ k n)
              [answer expected] (case (.nextInt random 5)
                                  0 [(outcome #(bpf/put! m k right)) #{m}]
                                  1 [(outcome #(bpf/insert! m k right)) #{false}]
                                  2 [(outcome #(bpf/next-key m k)) #{(when (< k 15) (inc k))}]
                                  3 [(outcome
                                      #(reduce-kv (fn [_ k v] (or (= v (+ k n)) (reduced :wrong)))
                                                  true m)) #{true}]
                                  [(outcome #(m k)) #{right}])]
          (cond
            (= :closed answer) (inc i)
            (contains? expected answer) (recur (inc i))
            :else (throw (ex-info "a call reached something else than its map"
                                  {:answer answer :n n}))))))))

(kernel-test l1-million-calls
  (testing "a million calls are safe while maps are closed and descriptors reused"
    (let [total (AtomicLong.)
          over (AtomicBoolean.)
          ;; An array, because a lookup in a hash map may miss a key whose value is replaced
          ;; meanwhile.
          create-array (fn [n]
                         (create {:type :array
                                  :contents (into {} (map (juxt identity #(+ n %))) (range 16))}))
          ;; Decoys take the numbers that a close gives back: maps of the same shape with other
          ;; values, and files.
          decoys (doall
                  (for [_ (range 2)]
                    (fixture/thread
                      (fn []
                        (while (not (.get over))
                          (if (zero? (.nextInt (ThreadLocalRandom/current) 2))
                            (with-open [m ^Closeable (create-array 1000000)]
                              (bpf/put! m 3 1000001))
                            (with-open [_ (FileInputStream. "/dev/null")])))))))]
      (try
        (loop [round 0]
          (when (< (.get total) 1000000)
            (let [n (* 100 round)
                  m (create-array n)
                  closer (fixture/thread (fn []
                                           (let
                                            [until (+ (.get total)
                                                      (.nextInt (ThreadLocalRandom/current) 20000))
                                             deadline (+ (System/nanoTime) 50000000)]
                                             (while
                                              (and (< (.get total) until)
                                                   (< (System/nanoTime) deadline))
                                               (Thread/onSpinWait)))
                                           (bpf/close m)))]
              (fixture/in-threads 16 (fn [_]
                                       (loop []
                                         (let [made (long (work m n 100))]
                                           (.addAndGet total made)
                                           (when (= 100 made)
                                             (recur))))))
              (fixture/join closer))
            (recur (inc round))))
        (finally
          (.set over true)
          (run! fixture/join decoys)))
      (is (<= 1000000 (.get total))))))

(kernel-test l1-close-during-call
  (testing "a running call keeps its descriptor and close does not wait"
    (let [m (create nil)
          fd ^Fd (.-fd ^bpfmap.impl.map.bpf_map.BpfMap m)
          number (.acquire fd)
          file (io/file "/proc/self/fd" (str number))
          link #(str (java.nio.file.Files/readSymbolicLink (.toPath file)))]
      (is (= "anon_inode:bpf-map" (link)))
      (bpf/close m)
      (is (= "anon_inode:bpf-map" (link)) "a call in flight still has it")
      (is (thrown? ClosedFdException (.acquire fd)))
      (is (= :closed (:bpfmap/error (error-of (m 1)))))
      (.release fd)
      (is (not= "anon_inode:bpf-map" (try (link) (catch java.io.IOException _ "gone"))))
      (is (str/includes? (str fd) "(closed)")))))

(kernel-test l2-closing-twice
  (testing "closing a map twice is not an error"
    (let [m (create nil)
          before (fixture/settled-descriptors)]
      (bpf/close m)
      (with-open [other (create nil)]
        (bpf/close m)
        (is (nil? (other 1)) "the second close did not close another's descriptor"))
      (is (= (dec before) (fixture/open-descriptors))))))

(kernel-test l2-calls-on-closed-map
  (testing "every operation on a closed map throws :closed"
    (let [m (create {:name "t_closed"})
          id (:id (bpf/info m))]
      (bpf/close m)
      (doseq [[op f] {:lookup #(m 1) :put! #(bpf/put! m 1 1) :insert! #(bpf/insert! m 1 1)
                      :replace! #(bpf/replace! m 1 1)
                      :delete! #(bpf/delete! m 1) :take! #(bpf/take! m 1)
                      :next-key #(bpf/next-key m) :reduce #(seq m)
                      :info #(bpf/info m) :freeze! #(bpf/freeze! m) :clone #(bpf/clone m)
                      :pin! #(bpf/pin! m (fixture/new-pin))
                      :load #(prog/load {:type :socket-filter
                                         :insns [[:lddw :r1 m] [:mov64 :r0 0] [:exit]]})}]
        (let [{:keys [message] :bpfmap/keys [error map] found :bpfmap/op} (error-of (f))]
          (is (= [:closed op] [error found]))
          (when (not= :load op)
            (is (= {:id id :name "t_closed" :type :hash} map))
            (is (= (str "Map " id
                        " (t_closed) is closed: it was closed before or during this call; open it "
                        "again") message)))))
      (is (= {:name "t_closed"} (select-keys (bpf/spec m) [:name]))
          "what needs no kernel still answers"))))

(kernel-test l2-many-maps-leave-nothing
  (testing "a hundred thousand maps leave descriptors and memory unchanged"
    (let [{[descriptors descriptors-after] :descriptors
           [kilobytes kilobytes-after :as resident] :kilobytes}
          (fixture/kept-by-rounds []
                                  '(with-open
                                    [m (bpf/create {:type :hash :key :u32 :value :u64
                                                    :max-entries 1})]
                                     (bpf/put! m 1 1)
                                     (m 1)))]
      (is (= descriptors descriptors-after))
      (is (< (- kilobytes-after kilobytes) 16384)
          (str "resident kB before and after: " resident)))))

(kernel-test l2-descriptors-after-failures
  (testing "failures leave no descriptor open"
    (let [before (fixture/settled-descriptors)]
      (dotimes [_ 200]
        (outcome #(create {:contents {1 1 2 2} :max-entries 1}))
        (outcome #(create {:type 4242 :key-size 4 :value-size 4 :key nil :value nil}))
        (outcome #(bpf/open 0x7ffffff0))
        (outcome #(bpf/open "/dev/null"))
        (outcome #(prog/load {:type :socket-filter :insns [[:exit]]}))
        (with-open [m (create nil)]
          (outcome #(bpf/open (:id (bpf/info m)) {:key :u64}))
          (outcome #(reduce (fn [_ _] (throw (IllegalStateException.))) nil m))))
      (is (= before (fixture/open-descriptors))))))

(kernel-test l3-unreachable-map
  (testing "the collector closes a map that was not closed"
    (let [before (fixture/settled-descriptors)]
      (dotimes [_ 500] (create nil))
      (is (< (+ before 100) (fixture/open-descriptors)))
      (fixture/eventually (fn []
                            (System/gc)
                            (Thread/sleep 50)
                            (<= (fixture/settled-descriptors) before)))
      (is (= before (fixture/open-descriptors))))))

(kernel-test l3-map-in-use-kept
  (testing "a map in use is not collected during a call"
    (let [over (AtomicBoolean.)
          collector (fixture/thread #(while (not (.get over)) (System/gc)))]
      (try
        (is (every? true?
                    (fixture/in-threads 4 (fn [i]
                                            (every? true?
                                                    (repeatedly
                                                     300
                                                     #(= {1 i}
                                                         (into {} (create {:contents {1 i}})))))))))
        (finally
          (.set over true)
          (fixture/join collector))))))

(kernel-test l5-virtual-threads
  (testing "virtual threads can call maps"
    ;; Each thread has its own key: a lookup beside the replacement of its key may miss it.
    (with-open [m (create {:max-entries 20000})
                executor (Executors/newVirtualThreadPerTaskExecutor)]
      (let [answers (mapv (fn [i]
                            (.submit executor ^Callable (fn []
                                                          (bpf/put! m i i)
                                                          (Thread/yield)
                                                          (= i (m i)))))
                          (range 20000))]
        (is (every? true? (map #(.get ^Future %) answers)))
        (is (= 20000 (count (seq m))))))))

(def ^:private sigurg
  "A signal that is ignored unless somebody asks for it, but interrupts once there is a handler."
  23)

(defn- under-signals
  "Calls f on a thread that is sent a signal every few microseconds; returns [result signals]."
  [f]
  (let [old (sun.misc.Signal/handle (sun.misc.Signal. "URG")
                                    (reify sun.misc.SignalHandler (handle [_ _])))
        tid (promise)
        over (AtomicBoolean.)
        sent (AtomicLong.)
        sender (fixture/thread (fn []
                                 (let [pid (.pid (java.lang.ProcessHandle/current))
                                       tid @tid]
                                   (while (not (.get over))
                                     (when (zero? (long (fixture/syscall "tgkill" pid tid sigurg)))
                                       (.incrementAndGet sent))))))]
    (try
      [(first (fixture/in-threads 1 (fn [_]
                                      (deliver tid (fixture/syscall "gettid"))
                                      (f))))
       (.get sent)]
      (finally
        (.set over true)
        (fixture/join sender)
        (sun.misc.Signal/handle (sun.misc.Signal. "URG") old)))))

(kernel-test l5-signals-during-calls
  (testing "signals do not break calls"
    (with-open [m (create nil)]
      (let [[answers sent] (under-signals
                            (fn []
                              (dotimes [i 100000] (bpf/put! m (mod i 16) i))
                              (dotimes [_ 50]
                                (with-open
                                 [p ^Closeable (prog/load
                                                {:type :socket-filter
                                                 :insns [[:mov64 :r0 3] [:exit]]})]
                                  (assert (= 3
                                             (:return (prog/test-run p {:data (byte-array 14)}))))))
                              (into {} m)))]
        (is (= 16 (count answers)))
        (is (< 100 sent))))))

(kernel-test l5-interrupted-test-run
  (testing "a test run that a signal ends throws :interrupted"
    (with-open [p ^Closeable (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
      (let [[{:keys [message] :bpfmap/keys [error errno]} _]
            (under-signals #(error-of (prog/test-run p
                                                     {:data (byte-array 14) :repeat 0x7fffffff})))]
        (is (= [:interrupted :EINTR] [error errno]))
        (is (str/includes? message "a signal interrupted the call"))))))

(deftest negative-descriptor
  (testing "rejects a negative descriptor"
    (is (thrown-with-msg? IllegalArgumentException #"not a file descriptor: -9" (Fd/own -9)))))
