(ns bpfmap.core-test
  "Elements and collections on the running kernel."
  (:require [bpfmap.core :as bpf]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.programs :as programs]
            [bpfmap.since :as since]
            [clojure.pprint :as pprint]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]])
  (:import (com.sun.management ThreadMXBean)
           (java.lang.management ManagementFactory)
           (bpfmap.sys Elements)))

(set! *warn-on-reflection* true)

(def ^:private hash-spec {:name "t_hash" :type :hash :key :u32 :value :u64 :max-entries 64})
(def ^:private array-spec {:name "t_array" :type :array :key :u32 :value :u32 :max-entries 4})
(def ^:private raw-spec {:type :hash :key-size 3 :value-size 5 :max-entries 64})

(defn- open-hash
  (^java.io.Closeable [] (open-hash nil))
  (^java.io.Closeable [change] (bpf/create (merge hash-spec change))))

(defn- open-array ^java.io.Closeable [] (bpf/create array-spec))

;; --- elements

(kernel-test e1-missing-key
  (testing "a missing key returns the default"
    (with-open [m (open-hash)]
      (is (nil? (bpf/lookup m 1)))
      (is (= :none (bpf/lookup m 1 :none) (get m 1 :none) (m 1 :none)))
      (since/needing [[:operation :hash :take!]]
        (is (= [:none nil] [(bpf/take! m 1 :none) (bpf/take! m 1)])))
      (is (false? (bpf/has-key? m 1)))
      (is (false? (bpf/delete! m 1)))
      (is (nil? (bpf/next-key m)))
      (is (nil? (bpf/next-key m 1))))
    (testing "an index beyond an array"
      (with-open [a (open-array)]
        (is (= :none (a 4 :none)))
        (is (= 0 (a 3)))))))

(kernel-test e2-insert-and-replace
  (testing "insert! and replace! return whether they wrote"
    (with-open [m (open-hash)]
      (is (false? (bpf/replace! m 1 10)))
      (is (nil? (m 1)))
      (is (true? (bpf/insert! m 1 10)))
      (is (false? (bpf/insert! m 1 11)))
      (is (= 10 (m 1)))
      (is (true? (bpf/replace! m 1 12)))
      (is (= 12 (m 1))))
    (testing "every index of an array exists"
      (with-open [a (open-array)]
        (is (false? (bpf/insert! a 0 1)))
        (is (true? (bpf/replace! a 0 1)))
        (is (= 1 (a 0)))))))

(kernel-test e3-misfits-before-kernel
  (testing "rejects keys and values that do not fit before any system call"
    (with-open [m (open-hash)
                raw ^java.io.Closeable (bpf/create raw-spec)]
      (bpf/put! m 1 10)
      (are [expr path] (let [{found :bpfmap/path :bpfmap/keys [error op map]} (error-of expr)]
                         (and (= :invalid-value error)
                              (= path found)
                              (keyword? op)
                              (= (:id (bpf/info m)) (:id map))))
        (m -1) [:key]
        (m "1") [:key]
        (m nil) [:key]
        (bpf/put! m 1 -1) [:value]
        (bpf/put! m 4294967296 1) [:key]
        (bpf/insert! m 2 nil) [:value]
        (bpf/replace! m 1 1.5) [:value]
        (bpf/delete! m :k) [:key]
        (bpf/take! m -1) [:key]
        (bpf/next-key m nil) [:key])
      (is (= {1 10} (into {} m)) "nothing changed")
      (is (= {}
             (programs/commands-made #(doseq [f
                                              [(fn [] (m -1)) (fn [] (bpf/put! m 1 -1))
                                               (fn [] (bpf/delete! m :k))
                                               (fn [] (bpf/take! m -1))
                                               (fn [] (bpf/next-key m nil))]]
                                        (error-of (f)))))
          "the kernel was not even asked")
      (is (str/includes? (:message (error-of (bpf/put! raw [1 2] [1 2 3 4 5])))
                         "it must have 3 bytes, got 2"))
      (is (str/includes? (:message (error-of (bpf/put! raw [1 2 3] (byte-array 6))))
                         "it must have 5 bytes, got 6"))
      (is (empty? (seq raw))))))

(kernel-test untyped-elements
  (testing "keys and values without a type are byte views"
    (with-open [m ^java.io.Closeable (bpf/create raw-spec)]
      (bpf/put! m (byte-array [1 2 3]) [1 2 3 4 255])
      (is (= (bpf/->bytes "01 02 03 04 ff") (m [1 2 3]) (get m (bpf/->bytes "010203"))))
      (is (= (bpf/->bytes [1 2 3]) (bpf/next-key m)))
      (is (= {(bpf/->bytes [1 2 3]) (bpf/->bytes [1 2 3 4 -1])} (into {} m))))))

(kernel-test ^{:needs [[:operation :hash :take!]]} take-returns-and-deletes
  (testing "take! returns the value and deletes the entry"
    (with-open [m (open-hash)]
      (bpf/put! m 1 10)
      (is (= 10 (bpf/take! m 1)))
      (is (nil? (m 1))))))

(kernel-test above-long-max
  (testing "a u64 above Long/MAX_VALUE is read as the right number"
    (with-open [m (open-hash)]
      (bpf/put! m 1 18446744073709551615N)
      (is (= 18446744073709551615N (m 1))))))

(kernel-test large-keys-and-values
  (testing "large keys and values are written and read"
    (with-open [m ^java.io.Closeable (bpf/create {:type :hash :key-size 300 :value-size 300000
                                                  :max-entries 2})]
      (let [k (vec (range 44 (+ 44 256))) k (mapv #(mod % 128) (concat k (range 44)))
            v (byte-array 300000 (map unchecked-byte (range 300000)))]
        (bpf/put! m k v)
        (is (= (bpf/->bytes v) (m k)))
        (is (= [[(bpf/->bytes k) (bpf/->bytes v)]] (seq m)))
        (is (= (bpf/->bytes k) (bpf/next-key m)))))))

(kernel-test operations-arrays-lack
  (testing "an operation that arrays lack names the alternative"
    (with-open [a (open-array)]
      (let [{:keys [message] :bpfmap/keys [error op]} (error-of (bpf/delete! a 0))]
        (is (= [:not-supported :delete!] [error op]))
        (is (str/includes? message "put! a zero value instead")))
      (is (str/includes? (:message (error-of (bpf/take! a 0))) "lookup, then put! a zero value"))
      (let [{:keys [message] :bpfmap/keys [error]} (error-of (bpf/put! a 4 1))]
        (is (= :out-of-range error))
        (is (str/includes? message "from 0 to 3"))))))

(kernel-test s10-full-map
  (testing "a write to a full map throws :map-full"
    (with-open [m (open-hash {:max-entries 2})]
      (bpf/put! m 1 1)
      (bpf/put! m 2 2)
      (is (= m (bpf/put! m 2 3)) "an existing key still fits")
      (doseq [op [bpf/put! bpf/insert!]]
        (let [{:keys [message] :bpfmap/keys [error errno errno-code hint]} (error-of (op m 3 3))]
          (is (= [:map-full :E2BIG 7] [error errno errno-code]))
          (is (str/includes? message "the map is full with 2 entries"))
          (is (str/ends-with? message hint)))))))

(kernel-test unknown-map-type
  (testing "rejects element operations on a map of unknown type"
    (with-open [m (open-hash)]
      (let [fd (bpf-map/descriptor m)
            unknown (lifecycle/make-map fd (assoc (bpf/info m) :type 4242) (bpf/spec m) :read-write
                                        nil)]
        (doseq [f [#(unknown 0) #(bpf/put! unknown 0 0) #(bpf/delete! unknown 0)
                   #(bpf/take! unknown 0) #(bpf/next-key unknown)
                   #(seq unknown) #(into {} unknown) #(bpf/push! unknown 0) #(bpf/drain! unknown)
                   #(bpf/put-all! unknown {0 0})]]
          (let [{:keys [message] :bpfmap/keys [error map]} (error-of (f))]
            (is (= :not-supported error))
            (is (= 4242 (:type map)))
            (is (str/includes? message
                               "does not know the layout of elements of this type"))))))))

;; --- collections

(kernel-test reducible-every-way
  (testing "a map supports every Clojure way to reduce"
    (with-open [m (open-hash)]
      (dotimes [i 10] (bpf/put! m i (* i i)))
      (let [expected (into {} (map (juxt identity #(* % %))) (range 10))]
        (is (= expected (into {} m) (into {} (seq m))))
        (is (= (reduce + (vals expected))
               (reduce (fn [acc [_ v]] (+ acc v)) 0 m)
               (reduce-kv (fn [acc _ v] (+ acc v)) 0 m)
               (transduce (map val) + m)))
        (is (= (set (keys expected)) (set (map key m)) (set (keys (seq m)))))
        (is (= 10 (count (seq m))))
        (is (= {4 16} (into {} (filter (fn [[k _]] (= 4 k))) m)))
        (let [seen (atom #{})]
          (run! #(swap! seen conj (key %)) m)
          (is (= (set (range 10)) @seen)))
        (is (= expected
               (apply merge (reduce (fn [a b] (if (map? a) (conj a b) (conj {} a b))) m) [])))))))

(kernel-test b5-reduce-empty-map
  (testing "reducing an empty map returns the initial value"
    (with-open [m (open-hash)]
      (is (nil? (seq m)))
      (is (= {} (into {} m)))
      (is (= :init (reduce (fn [_ _] :called) :init m)))
      (is (= :no-args (reduce (fn ([] :no-args) ([_ _] :called)) m))))))

(kernel-test b7-reduce-stops-and-nests
  (testing "a reduction can stop early, nest and run in many threads"
    (with-open [m (open-hash)]
      (dotimes [i 50] (bpf/put! m i i))
      (doseq [reader [:batches :keys]
              :let [reduction (fn [f init] (bpf-map/reduce-entries m f init {:reader reader}))]]
        (testing reader
          (is (= 3 (reduction (fn [n _ _] (if (= 3 n) (reduced n) (inc n))) 0)))
          (is (= "mine"
                 (:message (error-of (reduction (fn [_ _ _] (throw (ex-info "mine" {}))) nil)))))
          (is (= 2500 (reduction (fn [n _ _] (reduction (fn [n _ _] (inc n)) n)) 0))
              "one within another")
          (is (= (repeat 8 (* 100 (reduce + (range 50))))
                 (fixture/in-threads 8
                   (fn [_]
                     (reduce (fn [n _] (reduction (fn [n _ v] (+ n v)) n)) 0
                             (range 100))))))))
      (is (= 3 (reduce (fn [n _] (if (= 3 n) (reduced n) (inc n))) 0 m)))
      (is (= :stop (reduce-kv (fn [_ _ _] (reduced :stop)) nil m))))))

(kernel-test ^:volume b7-reduce-returns-buffers
  (testing "a reduction that throws or stops returns its buffers"
    ;; Each holds 256 KiB while it runs: ten thousand that were kept would be gigabytes.
    (with-open [m (open-hash {:max-entries 100000})]
      (bpf/put! m 1 1)
      (let [throwing (fn [_ _] (throw (IllegalStateException.)))
            round #(do (try (reduce throwing nil m) (catch IllegalStateException _))
                       (reduce (fn [_ _] (reduced nil)) nil m))]
        (dotimes [_ 500] (round))
        (System/gc)
        (let [before (fixture/status "VmRSS")]
          (dotimes [_ 5000] (round))
          (System/gc)
          (let [after (fixture/status "VmRSS")]
            (is (< (- after before) 65536)
                (str "resident kB before " before ", after " after))))))))

(kernel-test ^:volume reduce-many-entries
  (testing "visits each of many entries once"
    (with-open [m (open-hash {:max-entries 100000})]
      (dotimes [i 50000] (bpf/put! m i i))
      (doseq [reader [:batches :keys]]
        (let [ks (bpf-map/reduce-entries m (fn [acc k _] (conj! acc k)) (transient [])
                                         {:reader reader})
              ks (persistent! ks)]
          (is (= 50000 (count ks)) reader)
          (is (= (range 50000) (sort ks)) reader))))))

(kernel-test b5-full-u8-keys
  (testing "a full hash of one-byte keys yields all 256 keys once"
    (with-open [m (open-hash {:key :u8 :max-entries 256})]
      (dotimes [i 256] (bpf/put! m i i))
      (doseq [reader [:batches :keys]]
        (is (= (range 256)
               (sort (bpf-map/reduce-entries m (fn [acc k _] (conj acc k)) []
                                             {:reader reader}))))))))

(kernel-test b5-delete-while-reducing
  (testing "deleting entries during a reduction skips none"
    (doseq [reader [:batches :keys]]
      (with-open [m (open-hash {:max-entries 2000})]
        (dotimes [i 1000] (bpf/put! m i i))
        (let [seen (bpf-map/reduce-entries m (fn [acc k _] (bpf/delete! m k) (conj acc k)) []
                                           {:reader reader})]
          (is (= (range 1000) (sort seen)) reader)
          (is (nil? (seq m))))))))

(kernel-test arrays-seen-in-order
  (testing "yields the entries of an array in order"
    (with-open [m ^java.io.Closeable (bpf/create (assoc array-spec :max-entries 5000))]
      (dotimes [i 5000] (bpf/put! m i (* 2 i)))
      (is (= (map (fn [i] [i (* 2 i)]) (range 5000)) (seq m)))
      (is (= (seq m)
             (bpf-map/reduce-entries m (fn [acc k v] (conj acc [k v])) [] {:reader :keys}))))))

(kernel-test next-key-visits-all
  (testing "iterating with next-key visits every key"
    (with-open [m (open-hash)]
      (dotimes [i 10] (bpf/put! m i i))
      (is (= (set (range 10))
             (set (take-while some? (iterate #(bpf/next-key m %) (bpf/next-key m)))))))))

(kernel-test map-is-an-identity
  (testing "a map is compared by identity"
    (with-open [m (open-hash)
                other (open-hash)]
      (is (not= m other))
      (is (= m m))
      (is (not (counted? m)))
      (is (not (map? m)))
      (is (= 1 (count (set [m m])))))))

(kernel-test printing-makes-no-syscall
  (testing "prints one line without a system call"
    (let [m (open-hash)
          id (:id (bpf/info m))
          text (str "#<bpf-map " id " :hash \"t_hash\" :u32 -> :u64>")]
      (is (= text (pr-str m) (str m)))
      (is (= (str text "\n") (with-out-str (pprint/pprint m))))
      (bpf/close m)
      (is (= (str/replace text ":u64>" ":u64 closed>") (pr-str m)) "also when closed"))))

(kernel-test not-an-open-map
  (testing "rejects anything that is not an open map as data"
    (doseq [x [nil 7 {} "counts" (Object.)]
            [op f] {:lookup #(bpf/lookup % 1) :put! #(bpf/put! % 1 1) :insert! #(bpf/insert! % 1 1)
                    :replace! #(bpf/replace! % 1 1)
                    :delete! #(bpf/delete! % 1) :take! #(bpf/take! % 1) :next-key bpf/next-key
                    :info bpf/info :spec bpf/spec
                    :freeze! bpf/freeze! :clone bpf/clone :pin! #(bpf/pin! % "/x")
                    :unpin! bpf/unpin!
                    :pinned-path bpf/pinned-path :has-key? #(bpf/has-key? % 1) :close bpf/close}]
      (let [{:keys [message] :bpfmap/keys [error]} (error-of (f x))]
        (is (= :invalid-value error) (str op))
        (is (str/starts-with? message "The argument must be an open map, got ") (str op))))))

(kernel-test wrong-argument-count
  (testing "a call with the wrong number of arguments throws an ArityException"
    (with-open [m (open-hash)]
      (bpf/put! m 1 2)
      (is (= 2 (apply m [1]) (apply m [1 :none])))
      (is (thrown? clojure.lang.ArityException (apply m [])))
      (is (thrown? clojure.lang.ArityException (apply m [1 2 3])))
      (is (thrown? clojure.lang.ArityException (m)))
      (is (thrown? clojure.lang.ArityException (m 1 2 3)))
      (is (thrown? clojure.lang.ArityException (.run ^Runnable m))))))

;; --- what a miss costs

(defn- allocated
  "The fewest bytes that this thread allocates in 10,000 calls of f, of up to 300 tries: compiling
  it takes some."
  [f]
  (let [^ThreadMXBean threads (ManagementFactory/getThreadMXBean)]
    (reduce (fn [fewest _]
              (let [before (.getCurrentThreadAllocatedBytes threads)]
                (dotimes [_ 10000] (f))
                (let [bytes (min (long fewest)
                                 (- (.getCurrentThreadAllocatedBytes threads) before))]
                  (if (< bytes 1000) (reduced bytes) bytes))))
            Long/MAX_VALUE (range 300))))

;; The JDK checks the memory that takes errno with an object of 40 bytes, which its compiler
;; removes in most JVMs and not in all.
(kernel-test ^{:needs [[:jvm :c2]]} e1-miss-allocation
  (testing "a lookup of a missing key allocates nothing"
    (with-open [raw ^java.io.Closeable (bpf/create raw-spec)]
      (let [elements (Elements. (bpf-map/descriptor raw) 3 5)
            k (byte-array 3)
            v (byte-array 5)
            view (bpf/->bytes k)]
        (is (= -2 (.lookup elements k v 0)) "ENOENT, as a number")
        (doseq [[case f] {"the lookup of the Java core" #(.lookup elements k v 0)
                          "its delete" #(.delete elements k)
                          "its take" #(.lookupAndDelete elements k v 0)
                          "a map of plain bytes" #(raw view :none)
                          "and its delete" #(bpf/delete! raw view)}]
          (let [for-each (/ (allocated f) 10000.0)]
            (is (or (> 0.1 for-each) (> 0.1 (abs (- for-each 40))))
                (str case ": " for-each " bytes"))))))))

;; --- as a collection

(kernel-test contains-and-find
  (testing "contains?, find and select-keys work on a map"
    (with-open [m (open-hash)]
      (bpf/put-all! m {1 10 2 20})
      (is (true? (contains? m 1)))
      (is (false? (contains? m 3)))
      (is (= [1 10] (find m 1)))
      (is (map-entry? (find m 1)))
      (is (nil? (find m 3)))
      (is (= {1 10 2 20} (select-keys m [1 2 3])))
      (testing "a key that does not fit is refused as by get"
        (is (= :invalid-value (:bpfmap/error (error-of (contains? m -1)))
               (:bpfmap/error (error-of (find m -1)))
               (:bpfmap/error (error-of (select-keys m [:x]))))))
      (testing "it is neither a collection nor a transient: it is compared by identity, and not counted"
        (is (= [false false false false] ((juxt coll? map? associative? counted?) m)))
        (is (not= m {1 10 2 20}))
        (is (not= {1 10 2 20} m))
        (is (instance? UnsupportedOperationException (try (count m) (catch Exception e e))))
        (doseq [f [#(assoc! m 1 2) #(conj! m [1 2]) #(persistent! m)]]
          (is (= [:not-supported
                  "use put! or put-all! to write, and snapshot to read all entries as a map"]
                 ((juxt :bpfmap/error :bpfmap/hint) (error-of (f))))))
        (is (= {1 10 2 20} (into {} m)))))
    (with-open [a (open-array)]
      (is (= [true false] [(contains? a 0) (contains? a 4)]))
      (is (= [0 0] (find a 0))))
    (with-open [q ^java.io.Closeable (bpf/create {:type :queue :value :u32 :max-entries 2})]
      (is (= :not-supported (:bpfmap/error (error-of (contains? q 1))))))))

;; --- counts

(kernel-test ^:volume put-all-count
  (testing "put-all! returns the number of distinct keys"
    (testing "a key that is given twice is there once"
      (with-open [m (open-hash)]
        (is (= 2 (bpf/put-all! m [[1 10] [2 20] [1 11]])))
        (is (= {1 11 2 20} (into {} m))))
      (with-open [a (open-array)]
        (is (= 1 (bpf/put-all! a [[0 1] [0 2]]))))
      (with-open [t ^java.io.Closeable (bpf/create {:type :lpm-trie :key [:prefix :ipv4] :value :u32
                                                    :max-entries 64
                                                    :flags #{:no-prealloc}})]
        (is (= 3
               (bpf/put-all! t
                             [["10.0.0.0/8" 1] [{:prefixlen 8 :data [10 1 2 3]} 2] ["10.0.0.0/9" 3]
                              ["10.128.0.0/9" 4]])))
        (is (= 3 (bpf/count-entries t)))
        (is (= 10
               (bpf/put-all! t (for [n (range 23 33), host [0 1] :when (or (zero? host) (< n 32))]
                                 [{:prefixlen n :data [172 16 0 host]} n]))))
        (is (= 13 (bpf/count-entries t)))))
    (testing "evicted keys are missing"
      (doseq [type [:lru-hash :lru-percpu-hash], flags [#{} #{:no-common-lru}], n [10 240 1000 5000]
              :let [value
                    (if (= :lru-hash type)
                      identity
                      #(vec (repeat (count (feature/possible-cpus)) %)))]]
        (with-open [m ^java.io.Closeable (bpf/create {:type type :key :u32 :value :u64
                                                      :max-entries 256 :flags flags})]
          (dotimes [_ 3] ; existing keys too
            (let [entries (for [i (range n)] [i (value i)])
                  written (bpf/put-all! m entries)]
              (is (= written (bpf/count-entries m) (count (bpf/lookup-all m (range n))))
                  [type flags n])))
          (bpf/put-all! m (for [i (range 10000 10100)] [i (value i)]))
          (let [mine (set (range n))
                written (bpf/put-all! m (for [i (range n)] [i (value i)]))]
            (is (= written (count (filter mine (keys (into {} m)))))))
          (let [ks (keys (into {} m))]
            (is (= (count ks) (bpf/delete-all! m (concat ks ks [999999]))))))))))

(kernel-test delete-all-count
  (testing "delete-all! counts a key once"
    (with-open [m (open-hash)]
      (bpf/put-all! m {1 1 2 2 3 3})
      (is (= 2 (bpf/delete-all! m [1 1 2 9 1]))))
    (testing "a slot too, of which the kernel does not say whether something was in it"
      (with-open [m ^java.io.Closeable (bpf/create {:type :devmap :max-entries 4})]
        (is (= 2 (bpf/delete-all! m [0 0 1 0])))))))
