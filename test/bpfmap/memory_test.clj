(ns bpfmap.memory-test
  "What memory is for: programs, threads and system calls that share it; sizes of more than 4 GiB;
  the examples of the docstrings."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.memory :as mem]
            [bpfmap.prog :as prog]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)
           (java.nio.file Files Path)
           (java.util.concurrent.atomic AtomicBoolean)))

(set! *warn-on-reflection* true)

(kernel-test m1-mapping-and-lookups
  (testing "a mapping and lookups show the same values at once"
    ;; One thread writes the even elements through memory and reads the odd ones by system call,
    ;; the other the reverse: each element only ever grows, and what a thread wrote it reads back
    ;; the other way at once.
    (with-open [m (bpf/create {:type :array :key :u32 :value :u64 :max-entries 64
                               :flags #{:mmapable}})]
      (let [v (mem/elements m)
            through-memory {:read #(nth v %) :write #(mem/write! v %1 %2)}
            by-system-call {:read #(m %) :write #(bpf/put! m %1 %2)}
            rounds 5000
            faults (fixture/in-threads
                     2 (fn [i]
                         (let [[mine theirs] (if (zero? (long i))
                                               [through-memory by-system-call]
                                               [by-system-call through-memory])
                               own (range i 64 2)
                               others (range (- 1 (long i)) 64 2)]
                           (loop [round 1 seen (zipmap others (repeat 0)) faults []]
                             (if (< rounds round)
                               faults
                               (let [k (nth own (mod round 32))
                                     _ ((:write mine) k round)
                                     k2 (nth others (mod round 32))
                                     x ((:read theirs) k2)]
                                 (recur (inc round)
                                        (assoc seen k2 x)
                                        (cond-> faults
                                          (not= round ((:read theirs) k)) (conj [:own k round])
                                          (< x (seen k2)) (conj [:back k2 x])))))))))]
        (is (= [[] []] faults))
        (is (= (mapv m (range 64)) @v (vals (sort (into {} m)))))
        (is (every? #(< (- rounds 32) % (inc rounds)) v)
            "each element was written in one of the last rounds")
        (mem/close (bpf/memory m))))))

;; --- sizes

(defn- available-memory
  "How many bytes of memory this host could give a process now."
  []
  (* 1024
     (parse-long (second (re-find #"MemAvailable:\s+(\d+)"
                                  (Files/readString
                                   (Path/of "/proc/meminfo" (make-array String 0))))))))

(def ^:private four-gib 0x100000000)

(kernel-test ^{:needs [[:map-type :arena]]} m4-arena-of-4-gib
  (testing "an arena of 4 GiB is accessible to its last word"
    ;; Sparse: a page is there once it is touched.
    (with-open [m (bpf/create {:name "t_large" :type :arena
                               :max-entries (quot four-gib (call/page-size))
                               :flags #{:mmapable} :map-extra 0x7a0000000000})]
      (let [memory (bpf/memory m)
            last-word (mem/view memory :u64 (- four-gib 8))]
        (is (= [four-gib 0x7a0000000000] [(mem/size memory) (.address (mem/segment memory))]))
        (doseq [at [0 0x7fffffff 0x80000000 0xffffffff]]
          (is (= 0 (memory at)))
          (mem/fill! (mem/slice memory at 1) 7)
          (is (= 7 (memory at) (get memory at)
                 (.read (doto (mem/input-stream memory) (.skip at))))))
        (mem/fill! (mem/slice memory (- four-gib 8)) 0)
        (mem/add! last-word 77)
        (is (= 77 @last-word (memory (- four-gib 8))))
        (is (= [:none nil] [(memory four-gib :none) (get memory four-gib)]))
        (doseq [f [#(memory four-gib) #(mem/view memory :u64 (- four-gib 7))
                   #(mem/slice memory 1 four-gib)
                   #(count memory) #(seq memory) #(mem/snapshot memory) #(mem/byte-buffer memory)]]
          (is (= :out-of-range (:bpfmap/error (error-of (f))))))
        (let [channel (mem/channel memory)]
          (.position channel (- four-gib 8))
          (is (= 8 (.read channel (java.nio.ByteBuffer/allocate 100)))))
        (mem/close memory)))))

(kernel-test ^:volume m4-array-over-4-gib
  (testing "an array of more than 4 GiB is accessible to its last element"
    ;; Not sparse: the kernel allocates and zeroes all of it.
    (let [n (+ 0x20000000 16)
          available (available-memory)]
      (if (< available (* 2 four-gib))
        (println "  no array of 4 GiB is made, since this host has" (quot available 1048576)
                 "MiB available; the arena of 4 GiB is tested all the same")
        (with-open [m (bpf/create {:name "t_large" :type :array :key :u32 :value :u64 :max-entries n
                                   :flags #{:mmapable}})]
          (let [memory (bpf/memory m)
                v (mem/elements m)
                end (* 8 n)]
            (is (= [(+ four-gib 128) n] [(mem/size memory) (count v)]))
            (bpf/put! m (dec n) 77)
            (mem/write! v (- n 2) 78)
            (is (= [77 78] [(v (dec n)) (m (- n 2))]))
            (is (= [77 0] [(memory (- end 8)) (memory (dec end))]))
            (is (= 155 (reduce + (mem/view memory [:array :u64 16] four-gib))))
            (is (= [78 77] (seq (mem/copy-to v (- n 2) (long-array 2)))))
            (is (= 78 @(mem/add! (mem/view memory :u64 (- end 8)) 1)))
            (is (str/starts-with? (pr-str (mem/at v (dec n)))
                                  (str "#<bpf-view :u64 at " (- end 8) " of map")))
            (doseq [f [#(memory end) #(nth v n) #(mem/view memory :u64 (- end 7)) #(mem/at v n)]]
              (is (= :out-of-range (:bpfmap/error (error-of (f))))))
            (is (nil? (m n)))
            (mem/close memory)))))))

;; --- programs

(defn- counting
  "A program that adds 1 to the u64 at 0 and the u32 at 8 of a map's only value, each in one step."
  [m]
  [[:ld-map-value :r1 m 0]
   [:mov64 :r2 1]
   [:atomic-add64 [:r1 0] :r2]
   [:atomic-add32 [:r1 8] :r2]
   [:mov64 :r0 0]
   [:exit]])

(kernel-test m9-no-increment-is-lost
  (testing "increments of a running program and eight threads are not lost"
    (with-open [m (bpf/create {:type :array :key :u32 :value [:struct [:wide :u64] [:narrow :u32]]
                               :max-entries 1 :flags #{:mmapable}})
                run ^Closeable (prog/load {:type :socket-filter :insns (counting m)})
                traced ^Closeable (prog/load {:type :raw-tracepoint
                                              :insns (into [[:mov64 :r6 :r1]
                                                            [:call :get-current-pid-tgid]
                                                            [:rsh64 :r0 32]
                                                            [:jne32 :r0
                                                             (.pid
                                                              (java.lang.ProcessHandle/current))
                                                             :out]
                                                            [:ldxdw :r7 [:r6 8]]
                                                            ;; Getuid, which nobody else here calls
                                                            [:jne :r7
                                                             (fixture/syscall-number "getuid")
                                                             :out]]
                                                           (concat (drop-last 2 (counting m))
                                                                   [:out [:mov64 :r0 0]
                                                                    [:exit]]))})]
      (let [v (mem/at (mem/elements m) 0)
            wide (mem/at v :wide)
            narrow (mem/at v :narrow)
            repeats (fixture/trials 1000000)
            adds (fixture/trials 200000)
            calls (fixture/trials 20000)
            stop (AtomicBoolean.)
            ;; Reads may not go back either.
            reader (fn []
                     (loop [before 0 backwards 0]
                       (let [now (long (mem/get-acquire wide))]
                         (if (.get stop)
                           backwards
                           (recur now (if (< now before) (inc backwards) backwards))))))
            backwards (promise)
            reading (fixture/thread #(deliver backwards (reader)))]
        (try
          (with-open [_ ^Closeable (prog/attach-raw-tracepoint traced "sys_enter")]
            (fixture/in-threads
              10 (fn [i]
                   (if (< (long i) 2)
                     (prog/test-run run {:data (byte-array 14) :repeat repeats})
                     (dotimes [k adds]
                       (mem/add! wide 1)
                       (mem/add! narrow 1)
                       (when (zero? (rem k (quot adds calls)))
                         (fixture/syscall "getuid")))))))
          (finally (.set stop true)))
        (fixture/join reading)
        ;; A kernel with preemption does not run a program on a processor where it runs already.
        (let [missed (:recursion-misses (prog/info traced) 0)
              total (+ (* 2 repeats) (* 8 adds) (* 8 calls))
              counted @wide]
          (is (<= (- total missed) counted total))
          (is (= {:wide counted :narrow counted} (m 0)))
          (is (= counted @narrow))
          (is (= 0 @backwards)))
        (mem/close (bpf/memory m))))))

;; --- the examples

(defn- examples
  "The lines of a docstring that say what a call returns: [call expected]."
  [doc]
  (for [line (str/split-lines doc)
        :let [[_ call expected] (re-find #"^ {6}(@?\(.*\))\s+;=> (.*)$" line)]
        :when call]
    [call expected]))

(kernel-test docstring-examples
  (testing "the docstring examples return what they show"
    (with-open [m (bpf/create {:name "counts" :type :array :key :u32 :value :u64 :max-entries 1024
                               :flags #{:mmapable}})
                flows (bpf/create {:name "flows" :type :array :key :u32
                                   :value [:struct [:packets :u64] [:bytes :u64]] :max-entries 16
                                   :flags #{:mmapable}})
                section (bpf/create {:type :array :key :u32
                                     :value [:struct [:packets :u64] [:state :u32] [:owner :u32]]
                                     :max-entries 1
                                     :flags #{:mmapable}})]
      (let [home (create-ns (gensym "examples"))
            memory (bpf/memory m)
            counts (mem/elements m)
            reset (fn []
                    (mem/fill! memory 0)
                    (mem/write! counts 7 42)
                    (mem/write! counts 1 42)
                    (mem/write! counts 2 42)
                    (bpf/put! flows 7 {:packets 1 :bytes 60})
                    (bpf/put! flows 4 {:packets 1 :bytes 60})
                    (bpf/put! section 0 {:packets 42 :state 0 :owner 0}))
            bindings {'m m, 'memory memory, 'counts counts, 'flows (mem/elements flows)
                      'bss section, 'data section
                      'state (mem/at (mem/elements section) 0), 'flags (mem/view memory :u32)}
            printed #(str/replace (pr-str %) #"map \d+" "map 12")
            tried (atom 0)]
        (binding [*ns* home]
          (refer 'clojure.core :exclude '[compare-and-set!])
          (require '[bpfmap.core :as bpf])
          (refer 'bpfmap.memory)
          (doseq [[k x] bindings] (intern home k x))
          (doseq [[sym v] (ns-publics 'bpfmap.memory)
                  [call expected] (examples (:doc (meta v)))]
            (reset)
            (case sym
              (bit-or! bit-xor! fetch-or! fetch-xor!) (mem/write! (bindings 'flags) 1)
              (bit-and! fetch-and!) (mem/write! (bindings 'flags) 5)
              snapshot (mem/write! counts 0 42)
              ->array (do (mem/fill! memory 0) (mem/write! (bindings 'flags) 42))
              nil)
            (swap! tried inc)
            (let [found (printed (eval (read-string call)))
                  expected (str/replace expected #"map \d+" "map 12")]
              (is (if (str/includes? expected "{…}")
                    (str/starts-with? found (first (str/split expected #"\{…")))
                    (= expected found))
                  (str sym ": " call)))))
        (is (< 15 @tried))
        (remove-ns (ns-name home))
        (run! #(mem/close (bpf/memory %)) [m flows section])))))
