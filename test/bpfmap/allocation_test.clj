(ns ^:volume bpfmap.allocation-test
  "What operations allocate: nothing where bytes are the caller's, and nothing that grows with the
  map."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (bpfmap.sys Abi CallBuffer Elements Fd)
           (com.sun.management ThreadMXBean)
           (java.io Closeable)
           (java.lang.management ManagementFactory)))

(set! *warn-on-reflection* true)

(def ^:private n 2000)

(defn- allocated
  "Bytes that this thread allocates while f runs n times."
  [f]
  (let [thread ^ThreadMXBean (ManagementFactory/getThreadMXBean)
        before (.getCurrentThreadAllocatedBytes thread)]
    (f n)
    (- (.getCurrentThreadAllocatedBytes thread) before)))

(defn- least
  "The least that f allocates for each of its calls, beyond what a loop does. It is called until
  that is what is expected, or for quite some time: the JVM has to compile it first, and compiles
  beside much else."
  [expected f]
  (let [empty-loop (reduce min (repeatedly 10 #(allocated (fn [^long n] (dotimes [_ n])))))
        once #(/ (- (allocated f) empty-loop) (double n))]
    (reduce (fn [least _]
              (let [least (min least (once))]
                (if (<= least expected) (reduced least) least)))
            ##Inf (range 500))))

(def ^:private of-the-jdk
  "Bytes of the object that the JDK makes to check the memory that takes errno, where its compiler
  does not remove it."
  40)

(defn- as-expected?
  "Whether so many bytes are the expected ones, or some more objects of the JDK's, one for each of
  up to three system calls."
  [expected bytes]
  (some #(< (abs (- bytes (+ expected (* % of-the-jdk)))) 0.5) (range 4)))

(defmacro ^:private allocates
  "Asserts what each evaluation of a form allocates, in bytes, but for what the JDK may."
  [expected form]
  `(let [bytes# (least ~expected (fn [^long n#] (dotimes [_# n#] ~form)))]
     (is (as-expected? ~(double expected) bytes#) (str ~(pr-str form) ": " bytes# " bytes"))))

(kernel-test ^{:needs [[:jvm :c2]]} raw-operations
  (testing "raw element operations allocate nothing"
    (doseq [[type size] {:hash 8
                         :percpu-hash (* 8
                                         (count
                                          (bpf-map/cpus-of
                                           (bpf/create {:type :percpu-hash :key :u32 :value :u64
                                                        :max-entries 1}))))}]
      (with-open [m ^Closeable (bpf/create {:type type :key-size 4 :value-size 8 :max-entries 64})]
        (let [^Fd fd (bpf-map/descriptor m)
              elements (Elements. fd 4 size)
              k (byte-array [1 0 0 0])
              missing (byte-array [2 0 0 0])
              v (byte-array size)]
          (testing (str type ", with byte arrays")
            (allocates 0 (.update elements k v Abi/BPF_ANY))
            (allocates 0 (.lookup elements k v Abi/BPF_ANY))
            (allocates 0 (.lookup elements missing v Abi/BPF_ANY))
            (allocates 0
              (do (.lookupAndDelete elements k v Abi/BPF_ANY)
                  (.update elements k v Abi/BPF_ANY)))
            (allocates 0
              (do (.delete elements k)
                  (.delete elements k)
                  (.update elements k v Abi/BPF_ANY))))
          (testing (str type ", in place")
            (let [^CallBuffer s (.take elements)]
              (allocates 0 (.update elements s Abi/BPF_ANY))
              (allocates 0 (.lookup elements s Abi/BPF_ANY))
              (allocates 0 (do (.nextKey elements s true) (.nextKey elements s false)))
              (allocates 0 (do (.delete elements s) (.update elements s Abi/BPF_ANY)))
              (.give s))))))))

(kernel-test ^{:needs [[:jvm :c2]]} typed-ops-allocation
  (testing "typed element operations allocate only what they return"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 64})]
      ;; Too large for the JVM's cache of small numbers
      (let [k (identity 100000) v (identity 1000000)]
        (allocates 0 (bpf/put! m k v))
        (allocates 24 (bpf/lookup m k)) ; a Long
        (allocates 0 (bpf/lookup m 7))
        (allocates 0 (do (bpf/delete! m k) (bpf/insert! m k v)))))))

;; --- a million entries in a small heap

(def ^:private reading-a-million
  "The program of a JVM of its own: reads a map by its id, more than once, and says how much
  native memory that took at most."
  (str "(require '[bpfmap.core :as bpf])"
       "(defn foreign []"
       "  (let [report (str (.invoke "
       "(java.lang.management.ManagementFactory/getPlatformMBeanServer)"
       "                             (javax.management.ObjectName. "
       "\"com.sun.management:type=DiagnosticCommand\")"
       "                             \"vmNativeMemory\" (object-array [(into-array String "
       "[\"summary\" \"scale=B\"])])"
       "                             (into-array String [\"[Ljava.lang.String;\"])))]"
       "    (parse-long (second (re-find #\"Other \\(reserved=(\\d+)\" report)))))"
       "(def before (foreign))"
       "(with-open [m (bpf/open (parse-long (System/getProperty \"map\")) {:access :read-only})]"
       "  (let [most (volatile! 0)"
       "        read-all #(reduce (fn [^long n e]"
       "                            (when (zero? (rem n 100000)) (vswap! most max (- (foreign) "
       "before)))"
       "                            (+ n 1 (* 0 (long (val e)))))"
       "                          0 m)]"
       "    (println (read-all) (read-all) (bpf/count-entries m))"
       "    (println @most)))"))

(kernel-test million-entry-reduce
  (testing "reduces a million entries in a 64 MB heap, with native memory bounded by the chunk"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 1000000})]
      (doseq [part (partition-all 100000 (range 1000000))]
        (bpf/put-all! m (map (fn [k] [k k]) part)))
      (let [{:keys [exit out err]} (fixture/run [(str (System/getProperty "java.home") "/bin/java")
                                                 "--enable-native-access=ALL-UNNAMED" "-Xmx64m"
                                                 "-XX:NativeMemoryTracking=summary"
                                                 (str "-Dmap=" (:id (bpf/info m)))
                                                 "-cp" (System/getProperty "java.class.path")
                                                 "clojure.main" "-e" reading-a-million])
            [counts most] (take-last 2 (str/split-lines out))]
        (is (= [0 "" "1000000 1000000 1000000"] [exit err counts]))
        (is (< (parse-long most) (* 512 1024))
            "a chunk and what opening the map took, of 12 MB that the entries have")))))
