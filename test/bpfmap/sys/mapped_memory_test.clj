(ns ^:volume bpfmap.sys.mapped-memory-test
  "A mapped range goes when it is closed, or when nobody can reach it; an access to it never
  faults."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.memory :as mem]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (bpfmap.sys MappedMemory)
           (java.io Closeable)
           (java.lang.foreign MemorySegment ValueLayout)
           (java.nio ByteBuffer)
           (java.nio.channels Pipe Pipe$SinkChannel)
           (java.nio.file Files Path)
           (java.util.concurrent ThreadLocalRandom)
           (java.util.concurrent.atomic AtomicBoolean AtomicLong AtomicReference)))

(set! *warn-on-reflection* true)

(defn- mapped
  "How many BPF maps of so many pages this process has mapped. Each test has a size of its own,
  since others may leave mappings to the collector."
  [pages]
  (count (filter (fn [[_ from to]]
                   (= (* (long fixture/page-size) (long pages))
                      (- (Long/parseUnsignedLong to 16) (Long/parseUnsignedLong from 16))))
                 (re-seq #"(?m)^([0-9a-f]+)-([0-9a-f]+) .* anon_inode:bpf-map$"
                         (Files/readString (Path/of "/proc/self/maps" (make-array String 0)))))))

(defn- an-array
  "An array of 512 entries, or of so many pages."
  (^Closeable [change]
   (bpf/create (merge {:type :array :key :u32 :value :u64 :max-entries 512 :flags #{:mmapable}}
                      change)))
  (^Closeable [change pages]
   (an-array (merge change {:max-entries (* (quot (long fixture/page-size) 8) (long pages))}))))

(defn- settled [condition]
  (fixture/eventually (fn []
                        (System/gc)
                        (Thread/sleep 50)
                        (condition))))

(deftest invalid-range-rejected
  (testing "rejects a range that is not valid"
    (is (thrown-with-msg? IllegalArgumentException #"not a mapped range: 8 bytes at -22"
                          (MappedMemory/own -22 8 false)))
    (is (thrown-with-msg? IllegalArgumentException #"not a mapped range: 0 bytes"
                          (MappedMemory/own 4096 0 false)))))

(kernel-test l2-many-ranges-leave-nothing
  (testing "a hundred thousand mappings leave the process unchanged"
    (let [{[descriptors descriptors-after] :descriptors
           [kilobytes kilobytes-after :as resident] :kilobytes
           mappings :mappings}
          (fixture/kept-by-rounds '[m
                                    (bpf/create {:type :array :key :u32 :value :u64 :max-entries 512
                                                 :flags #{:mmapable}})]
                                  '(with-open [memory (bpf/memory m)]
                                     (memory 0)))]
      (is (= descriptors descriptors-after))
      (is (= [0 0] mappings))
      (is (< (- kilobytes-after kilobytes) 16384)
          (str "resident kB before and after: " resident)))))

(kernel-test l3-unreachable-range
  (testing "the collector unmaps a range that was not closed"
    (with-open [m (an-array nil 62)]
      (dotimes [_ 200]
        (with-open [twin (bpf/clone m)]
          (is (= 0 ((bpf/memory twin) 0)))))
      (is (< 100 (mapped 62)))
      (is (settled #(= 0 (mapped 62)))))))

(kernel-test l3-derived-objects
  (testing "objects derived from a range keep it mapped"
    (let [keep-only (fn [make]
                      (with-open [m (an-array {:contents {1 77}} 63)]
                        (make (bpf/memory m))))]
      (doseq [[what make read] [["a slice" #(mem/slice % 8 8) #(% 0)]
                                ["a view" #(mem/view % :u64 8) deref]
                                ["a buffer" mem/byte-buffer #(.getLong ^ByteBuffer % 8)]
                                ["a slice of a buffer" #(.slice ^ByteBuffer (mem/byte-buffer %))
                                 #(.get ^ByteBuffer % 8)]
                                ["a segment" #(.asSlice ^MemorySegment (mem/segment %) 8)
                                 #(.get ^MemorySegment % ValueLayout/JAVA_LONG 0)]
                                ["a stream" mem/input-stream
                                 #(last (.readNBytes ^java.io.InputStream % 9))]]]
        (testing what
          (let [holder (object-array [(keep-only make)])]
            (dotimes [_ 5] (System/gc) (Thread/sleep 20))
            (is (= 1 (mapped 63)))
            (is (= 77 (read (aget holder 0))))
            (aset holder 0 nil)
            (is (settled #(= 0 (mapped 63))))))))))

(kernel-test range-in-use-kept
  (testing "a range is not unmapped while the kernel reads into it"
    (with-open [m (an-array nil)]
      (let [memory (bpf/memory m)
            pipe (Pipe/open)
            buffer (mem/byte-buffer (mem/slice memory 0 8))
            reader (fixture/thread #(.read (.source pipe) ^ByteBuffer buffer))
            waiting? #(str/includes? (str/join (map str (.getStackTrace ^Thread reader))) "read0")]
        (while (not (waiting?)) (Thread/sleep 1))
        (testing "closing it waits a while, then reports the reason, and changes nothing"
          (let [{:keys [message] :bpfmap/keys [error op map]} (error-of (mem/close memory))]
            (is (= [:busy :close (select-keys (bpf/info m) [:id :name :type])] [error op map]))
            (is
             (re-find
              #"^The memory of map \d+ cannot be unmapped now: a thread reads a file or socket into a buffer of it" message))
            (is (not (mem/closed? memory)))
            (is (= 0 (memory 0)))))
        (testing "once the kernel is done, it is closed"
          (.write ^Pipe$SinkChannel (.sink pipe) (ByteBuffer/wrap (byte-array [1 2 3])))
          (fixture/join reader)
          (is (= [1 2 3 0] (seq (mem/slice memory 0 4))))
          (mem/close memory)
          (is (mem/closed? memory)))
        (testing "and a buffer of it is refused by the next read"
          (is (thrown? IllegalStateException (.read (.source pipe) (.clear buffer)))))
        (.close (.sink pipe))
        (.close (.source pipe))))))

;; --- closing under way

(def ^:private ^:const entries 512)

(defn- right
  "What lies at every index of the maps of these tests."
  ^long [^long i]
  (+ 0x001010101010101 (* i 0x100000001)))

(defn- contents []
  (into {} (map (juxt identity right)) (range entries)))

(def ^:private expected-sum (reduce + (map right (range entries))))

(defn- outcome [f]
  (try
    (f)
    (catch clojure.lang.ExceptionInfo e (:bpfmap/error (ex-data e)))
    (catch IllegalStateException e (if (= "Already closed" (ex-message e)) :closed (throw e)))))

(defn- access
  "One access to memory by a way chosen at random; returns whether the memory was open. Throws for
  a number that is not this map's."
  [memory view]
  (let [random (ThreadLocalRandom/current)
        i (.nextInt random entries)
        x (right i)
        [answer allowed]
        (case (.nextInt random 16)
          0 [(outcome #(reduce + view)) #{expected-sum}]
          1 [(outcome #(reduce (fn ^long [^long acc ^long x] (unchecked-add acc x)) 0 view))
             #{expected-sum}]
          2 [(outcome #(vec (mem/copy-to view i (long-array 1)))) #{[x]}]
          3 [(outcome #(mem/get-acquire view i)) #{x}]
          4 [(outcome #(mem/fetch-add! view i 0)) #{x :read-only}]
          5 [(outcome #(do (mem/write! view i x) :written)) #{:written :read-only}]
          6 [(outcome #(mem/compare-and-set! view i x x)) #{true :read-only}]
          7 [(outcome #(.getLong (mem/byte-buffer memory) (* 8 i))) #{x}]
          8 [(outcome #(.get (mem/segment memory) ValueLayout/JAVA_LONG_UNALIGNED (* 8 i))) #{x}]
          9 [(outcome #(with-open [in (mem/input-stream memory)]
                         (.skip in (* 8 i))
                         (.getLong (.order (ByteBuffer/wrap (.readNBytes in 8))
                                           (java.nio.ByteOrder/nativeOrder)))))
             #{x}]
          10 [(outcome #(memory (+ 8 (* 8 i) -8))) #{(bit-and 0xff x)}]
          11 [(outcome #(do (mem/copy-from view i (long-array [x])) :written))
              #{:written :read-only}]
          [(outcome #(nth view i)) #{x}])]
    (cond
      (= :closed answer) false
      (contains? allowed answer) true
      :else (throw (ex-info "an access reached something else than its map"
                            {:answer answer :index i :expected x})))))

(defn- accessing
  "Accesses on eight threads to whatever memory `current` holds, until there were so many and
  `enough?` says so, or it has lasted too long. Returns how many were refused as closed."
  [^AtomicReference current total enough?]
  (let [done (AtomicLong.)
        refused (AtomicLong.)
        deadline (+ (System/nanoTime) (* 2000000 (long fixture/patience)))]
    (fixture/in-threads 8 (fn [_]
                            (loop []
                              (when-not (and (<= (long total) (.get done))
                                             (or (enough?) (< deadline (System/nanoTime))))
                                (dotimes [_ 100]
                                  (let [[memory view] (.get current)]
                                    (when-not (access memory view)
                                      (.incrementAndGet refused)
                                      (Thread/yield))))
                                (.addAndGet done 100)
                                (recur)))))
    (.get refused)))

(defmacro ^:private noting
  "Returns a function that runs body and records its exceptions."
  [failure & body]
  `(fn []
     (try
       ~@body
       (catch Throwable e#
         (.set ~failure e#)))))

(defn- mapped-again
  "The memory of a map, and a view of its elements."
  [m]
  (let [memory (bpf/memory m)]
    [memory (mem/view memory [:array :u64 entries])]))

(kernel-test m5-access-while-closing
  (testing "accesses are safe while memory is closed and replaced"
    ;; The decoys are mapped where the memory was a moment ago: an access that came too late would
    ;; read their numbers.
    (with-open [m (an-array {:contents (contents)})
                decoy (an-array nil)]
      (let [current (AtomicReference. (mapped-again m))
            over (AtomicBoolean.)
            closes (AtomicLong.)
            places (atom {:same 0 :other 0})
            failure (AtomicReference.)
            address #(.address (mem/segment %))
            closer (fixture/thread
                     (noting failure
                       (while (not (.get over))
                         (Thread/sleep 0 (.nextInt (ThreadLocalRandom/current) 999999))
                         (let [[memory _] (.get current)
                               place (address memory)]
                           (mem/close memory)
                           (with-open [other ^Closeable (bpf/memory decoy)]
                             (swap! places update (if (= place (address other)) :same :other) inc)
                             (Thread/yield)
                             (.set current (mapped-again m))
                             (.incrementAndGet closes))))))]
        (try
          (let [refused (accessing current 10000000 #(< 100 (.get closes)))]
            (is (nil? (.get failure)))
            (is (< 100 (.get closes)) "it was closed under way")
            (is (< 0 (long refused)) "and accesses met it")
            (is (< 0 (long (:same @places))) (str "the decoys lay where it had been: " @places)))
          (finally
            (.set over true)
            (fixture/join closer)
            (mem/close (first (.get current)))))))))

(kernel-test m5-access-while-freezing
  (testing "accesses are safe while maps are frozen between mappings"
    (let [new-map #(an-array {:contents (contents)})
          current (AtomicReference.)
          over (AtomicBoolean.)
          frozen (AtomicLong.)
          failure (AtomicReference.)
          show (fn [m] (.set current (mapped-again m)))
          freezer (let [first-map (new-map)]
                    (show first-map)
                    (fixture/thread
                      (noting failure
                        (loop [m first-map]
                          (let [[memory _] (.get current)]
                            (Thread/sleep 0 (.nextInt (ThreadLocalRandom/current) 999999))
                            (assert (= :busy (outcome #(bpf/freeze! m))) "it is mapped writable")
                            (mem/close memory)
                            (bpf/freeze! m)
                            (.incrementAndGet frozen)
                            (show m) ; read-only by now
                            (Thread/sleep 0 (.nextInt (ThreadLocalRandom/current) 500000))
                            (assert (mem/read-only? (first (.get current))))
                            (if (.get over)
                              (bpf/close m)
                              (let [next-map (new-map)
                                    [read-only _] (.get current)]
                                (show next-map)
                                (bpf/close m)
                                (mem/close read-only)
                                (recur next-map))))))))]
      (try
        (accessing current 1000000 #(or (.get failure) (< 50 (.get frozen))))
        (is (nil? (.get failure)))
        (is (< 50 (.get frozen)))
        (finally
          (.set over true)
          (fixture/join freezer)
          (mem/close (first (.get current))))))))
