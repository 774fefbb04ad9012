(ns bpfmap.impl.memory.mapping-test
  "The one mapping of an open map: who gets it, where it is, what holds it, and which maps have
  none."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.memory.bytes :as bytes]
            [bpfmap.memory :as mem]
            [bpfmap.since :as since]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (bpfmap.sys MappedMemory)
           (java.io Closeable)
           (java.lang.foreign Arena ValueLayout)
           (java.nio.file Files Path)))

(set! *warn-on-reflection* true)

(defn- an-array
  (^Closeable [] (an-array nil))
  (^Closeable [change]
   (bpf/create (merge {:name "t_mapping" :type :array :key :u32 :value :u64 :max-entries 512
                       :flags #{:mmapable}} change))))

(defn- an-arena ^Closeable [change]
  (bpf/create (merge {:name "t_arena" :type :arena :max-entries 4 :flags #{:mmapable}} change)))

(defn- pages
  "Returns the size of n pages in bytes."
  ^long [n]
  (* (long n) (long (call/page-size))))

(defn- mappings
  "Where this process has the memory of BPF maps mapped: addresses with `rw` or `r-`."
  []
  (set (map (fn [[_ from to mode]]
              [(Long/parseUnsignedLong from 16) (Long/parseUnsignedLong to 16) mode])
            (re-seq #"(?m)^([0-9a-f]+)-([0-9a-f]+) (r[w-]).* anon_inode:bpf-map$"
                    (Files/readString (Path/of "/proc/self/maps" (make-array String 0)))))))

(defn- address ^long [memory]
  (.address (mem/segment memory)))

(kernel-test m6-concurrent-first-calls
  (testing "concurrent first calls get the same mapping"
    (let [size (pages 77) ; no other mapping of this process has it
          of-that-size (fn []
                         (count (filter (fn [[from to]]
                                          (= size (- (long to) (long from))))
                                        (mappings))))]
      (dotimes [_ 20]
        (with-open [m (an-array {:max-entries (quot size 8)})]
          (let [memories (fixture/in-threads 16 (fn [_] (bpf/memory m)))]
            (is (= 1 (count (distinct (map #(System/identityHashCode %) memories)))))
            (is (= 1 (of-that-size)))
            (is (identical? (first memories) (bpf/memory m)))
            (mem/close (first memories))
            (is (= 0 (of-that-size)))))))))

(kernel-test m6-mapping-outlives-handle
  (testing "the mapping stays valid after the handle is closed"
    (let [m (an-array {:contents {1 7}})
          memory (bpf/memory m)
          v (mem/elements m)]
      (bpf/close m)
      (is (= 7 (v 1)))
      (mem/add! v 1 1)
      (is (= [8 8] [(v 1) (memory 8)]))
      (is (= :closed (:bpfmap/error (error-of (bpf/memory m))))
          "but a closed handle gives none any more")
      (is (= :closed (:bpfmap/error (error-of (mem/elements m)))))
      (mem/close memory)
      (is (= :closed (:bpfmap/error (error-of (v 1))))))))

(kernel-test m5-closed-memory-mapped-again
  (testing "closed memory is mapped again on request"
    (with-open [m (an-array {:contents {1 7}})]
      (let [first-time (bpf/memory m)]
        (mem/close first-time)
        (let [second-time (bpf/memory m)]
          (is (not (identical? first-time second-time)))
          (is (= [7 true false]
                 [(second-time 8) (mem/closed? first-time) (mem/closed? second-time)]))
          (mem/close first-time)
          (is (= 7 (second-time 8)) "closing the first one again leaves the second")
          (mem/close second-time))))))

(kernel-test m5-freeze-while-mapped
  (testing "freeze! reports what holds the memory"
    (with-open [m (an-array)
                twin (bpf/clone m)]
      (let [memory (bpf/memory m)]
        (testing "this handle"
          (let [{:keys [message] :bpfmap/keys [error errno op]} (error-of (bpf/freeze! m))]
            (is (= [:busy :EBUSY :freeze!] [error errno op]))
            (is
             (=
              (str
               "Freezing the map failed with EBUSY: this handle has its memory mapped for writing; "
               "close it first: "
               "(.close (memory m))")
              message))))
        (testing "another one of this process"
          (is
           (re-find
            (re-pattern
             (str
              "the map's memory is mapped writable; unmap it first; processes with writable memory "
              "of this map or another: .*" (.pid (java.lang.ProcessHandle/current))
              " \\(this one\\)"))
            (:message (error-of (bpf/freeze! twin))))))
        (mem/close memory))
      (testing "nobody any more"
        (is (identical? twin (bpf/freeze! twin)))
        (is (:frozen (bpf/info m))))
      (testing "a mapping for reading is in nobody's way"
        (let [memory (bpf/memory m)]
          (is (mem/read-only? memory))
          (is (identical? m (bpf/freeze! m)))
          (mem/close memory))))))

(kernel-test m3-read-only-map-mapping
  (testing "a map that cannot be written is mapped for reading"
    (doseq [[what change] {"frozen" {:freeze true}
                           "only read by programs" {:flags #{:mmapable :rdonly-prog}}}]
      (testing what
        (with-open [m (an-array (merge {:contents {1 7}} change))]
          (let [memory (bpf/memory m)]
            (is (mem/read-only? memory))
            (is (= #{"r-"}
                   (set (keep (fn [[from _ mode]] (when (= from (address memory)) mode))
                              (mappings)))))
            (is (= 7 (memory 8)))
            (is (str/includes? (pr-str memory) ", read-only"))
            (when (= "only read by programs" what)
              (bpf/put! m 1 8)
              (is (= 8 (memory 8)) "what system calls may write is seen"))
            (mem/close memory)))))))

(kernel-test m3-read-only-handle
  (testing "a read-only handle maps for reading"
    (with-open [m (an-array {:contents {1 7}})
                reader (bpf/open (:id (bpf/info m)) {:access :read-only})]
      (let [before (fixture/settled-descriptors)
            memory (bpf/memory reader)]
        (is (= [true 7] [(mem/read-only? memory) (memory 8)]))
        (is (= :read-only (:bpfmap/error (error-of (mem/fill! memory 0)))))
        (bpf/put! m 1 8)
        (is (= 8 (memory 8)))
        (bpf/freeze! m)
        (mem/close memory)
        (is (<= (fixture/open-descriptors) before)
            "the descriptor that was mapped is closed again")))
    (testing "which takes the right to open another descriptor of the map"
      (with-open [m (an-array)
                  reader (bpf/open (:id (bpf/info m)) {:access :read-only})]
        (let [{:keys [message]
               :bpfmap/keys [error op
                             errno]} (fixture/unprivileged #(error-of (bpf/memory reader)))]
          (is (= [:permission :memory :EPERM] [error op errno]))
          (is (= (str "Another descriptor of map " (:id (bpf/info m))
                      " cannot be opened: the kernel cannot map a read-only descriptor, and "
                      "opening "
                      "another requires CAP_SYS_ADMIN; open the map with {:access :read-write}")
                 message)))))))

(kernel-test maps-without-memory
  (testing "reports why a map has no memory to map"
    (doseq [[spec hint] [[{:type :hash :key :u32 :value :u64 :max-entries 1}
                          "a map of type :hash has no memory to map; maps of type :arena or :array have"]
                         [{:type :percpu-array :key :u32 :value :u64 :max-entries 1}
                          "a map of type :percpu-array has no memory to map; maps of type :arena or :array have"]
                         [{:type :array :key :u32 :value :u64 :max-entries 1}
                          "create the map with :flags #{:mmapable}; an existing map cannot get the flag"]
                         [{:type :ringbuf :max-entries 4096}
                          "its memory is a ring buffer, whose records must be read in order"]
                         [{:type :arena :max-entries 1 :flags #{:mmapable :segv-on-fault}}
                          (str
                           "an arena created :segv-on-fault kills the process that reads a page of "
                           "it which no program has allocated; "
                           "create it without")]]
            :when (since/has? [:map-type (:type spec)])]
      (with-open [m (bpf/create (assoc spec :name "t_none"))]
        (let [{:keys [message] :bpfmap/keys [error op map]} (error-of (bpf/memory m))]
          (is (= [:not-supported :memory (select-keys (bpf/info m) [:id :name :type])]
                 [error op map]))
          (is (= (str "The memory of map " (:id (bpf/info m)) " (t_none) cannot be mapped: " hint)
                 message)))))
    (with-open [m (an-array)
                writer (bpf/open (:id (bpf/info m)) {:access :write-only})]
      (is (= :write-only (:bpfmap/error (error-of (bpf/memory writer))))))
    (with-open [m (an-array {:value [:struct [:lock :spin-lock] [:n :u32]]})]
      (let [{:keys [message] :bpfmap/keys [error errno]} (error-of (bpf/memory m))]
        (is (= [:not-supported :ENOTSUPP] [error errno]))
        (is
         (=
          (str
           "Mapping the memory failed with ENOTSUPP: the kernel does not map values with fields "
           "that it owns, such as a spin lock or a timer")
          message))))
    (is (= :invalid-value (:bpfmap/error (error-of (bpf/memory 7)))))))

(def ^:private rlimit-as 9)

(defn- with-address-space
  "Calls f while this process can have `kilobytes` more of address space, and no more."
  [kilobytes f]
  (with-open [arena (Arena/ofConfined)]
    (let [limits (.allocate arena 16 8) ; struct rlimit64: soft, hard
          call (fn [new old] (is (= 0 (fixture/syscall "prlimit64" 0 rlimit-as new old))))]
      (call 0 (.address limits))
      (let [before (.get limits ValueLayout/JAVA_LONG 0)]
        (.set limits ValueLayout/JAVA_LONG 0
              (* 1024 (+ (long kilobytes) (long (fixture/status "VmSize")))))
        (try
          (call (.address limits) 0)
          (f)
          (finally
            (.set limits ValueLayout/JAVA_LONG 0 before)
            (call (.address limits) 0)))))))

(kernel-test ^{:needs [[:map-type :arena]]} no-address-space
  (testing "reports a lack of address space"
    (with-open [m (an-arena {:max-entries (quot 0x100000000 (pages 1))})] ; 4 GiB
      (let
       [{:keys [message] :bpfmap/keys [error errno]} (with-address-space 2000000
                                                       #(error-of (bpf/memory m)))]
        (is (= [:no-memory :ENOMEM] [error errno]))
        (is
         (=
          (str
           "Mapping the memory failed with ENOMEM: this process has no address space left; "
           "check its limit (ulimit -v) and the sysctl vm.max_map_count")
          message)))
      (mem/close (bpf/memory m)))))

;; --- arenas

(def ^:private a-place
  "An address that nothing else has: between the heap and the libraries, aligned to 4 GiB."
  0x7c0000000000)

(kernel-test ^{:needs [[:map-type :arena]]} m7-arena-address
  (testing "an arena is mapped at the address in its map-extra"
    (with-open [m (an-arena {:map-extra a-place})]
      (let [memory (bpf/memory m)]
        (is (= [a-place (pages 4)] [(address memory) (mem/size memory)]))
        (mem/write! (mem/view memory :u64 (- (pages 4) 8)) 7)
        (is (= 7 (memory (- (pages 4) 8))))
        (testing "another handle of the same process cannot map it there too"
          (with-open [twin (bpf/clone m)]
            (let [{:keys [message] :bpfmap/keys [error errno]} (error-of (bpf/memory twin))]
              (is (= [:busy :EEXIST] [error errno]))
              (is
               (re-find
                #"the address is taken in this process, by the same arena mapped through another handle or by something else" message)))))
        (testing "after closing it can, and finds the same contents"
          (mem/close memory)
          (with-open [twin (bpf/clone m)]
            (let [again (bpf/memory twin)]
              (is (= [a-place 7] [(address again) (again (- (pages 4) 8))]))
              (mem/close again))))))))

(kernel-test ^{:needs [[:map-type :arena]]} m7-arena-keeps-address
  (testing "an arena without an address stays where it was first mapped"
    (with-open [m (an-arena nil)]
      (let [memory (bpf/memory m)
            place (address memory)]
        (mem/write! (mem/view memory :u64) 7)
        (mem/close memory)
        (let [again (bpf/memory m)]
          (is (= [place 7] [(address again) (again 0)]))
          (mem/close again)))
      (testing "which another handle does not know"
        (with-open [twin (bpf/clone m)]
          (let [{:keys [message] :bpfmap/keys [error]} (error-of (bpf/memory twin))]
            (is (= :busy error))
            (is
             (re-find
              #"another process or handle has mapped the arena, which has the same address in all of them" message))))))))

(kernel-test ^{:needs [[:map-type :arena]]} m7-arena-replaces-nothing
  (testing "mapping an arena never replaces another mapping"
    (with-open [other (an-array)]
      (let [taken (bpf/memory other)]
        (mem/fill! taken 7)
        (with-open [m (an-arena {:max-entries 1 :map-extra (address taken)})]
          (is (= [:busy :EEXIST] ((juxt :bpfmap/error :bpfmap/errno) (error-of (bpf/memory m)))))
          (is (every? #{7} taken)))
        (mem/close taken)))))

(defn- resident
  "How many bytes of mapped memory this process has pages for."
  [memory]
  (* 1024
     (parse-long (second (re-find (re-pattern (str "(?s)\\b" (Long/toHexString (address memory))
                                                   "-.*?\\nRss: +(\\d+) kB"))
                                  (Files/readString
                                   (Path/of "/proc/self/smaps" (make-array String 0))))))))

(kernel-test ^{:needs [[:map-type :arena]]} printing-arena-no-page
  (testing "printing an arena allocates no page"
    (with-open [m (an-arena nil)]
      (let [memory (bpf/memory m)
            v (mem/view memory [:array :u64 4] 8)]
        (is (= (str "#<bpf-memory map " (:id (bpf/info m)) " (t_arena), " (pages 4) " bytes at 0>")
               (pr-str memory)))
        (is (= (str "#<bpf-view [:array :u64 4] at 8 of map " (:id (bpf/info m)) " (t_arena)>")
               (pr-str v)))
        (is (= 0 (resident memory)))
        (is (= 0 (v 0)))
        (is (= (pages 1) (resident memory)) "as reading does")
        (mem/close memory)))))

(kernel-test ^{:needs [[:map-type :arena]]} populate-arena
  (testing "populate! allocates the pages of an arena"
    (with-open [m (an-arena nil)]
      (let [memory (bpf/memory m)]
        (is (identical? memory (mem/populate! memory)))
        (is (= (pages 4) (resident memory)))
        (mem/close memory)
        (is (= [:closed :populate!]
               ((juxt :bpfmap/error :bpfmap/op) (error-of (mem/populate! memory)))))))
    (testing "of a slice, only its own"
      (with-open [m (an-arena nil)]
        (let [memory (bpf/memory m)]
          (mem/populate! (mem/slice memory (dec (pages 1)) 2))
          (is (= (pages 2) (resident memory)))
          (mem/populate! (mem/slice memory (pages 3) 0))
          (is (= (pages 2) (resident memory)))
          (mem/close memory))))
    (testing "memory that is there, or is read-only, stays as it is"
      (with-open [m (an-array {:contents {1 7} :freeze true})
                  memory ^Closeable (bpf/memory m)]
        (is (= 7 ((mem/populate! memory) 8)))))
    (testing "what the kernel refuses to allocate is an error, not the end"
      ;; As it refuses here, it does for a cgroup at its limit: the fault handler of the arena
      ;; answers with SIGSEGV.
      (with-open [m (an-arena {:flags #{:mmapable :segv-on-fault}})
                  region (MappedMemory/own
                          (MappedMemory/map (bpf-map/descriptor m) (pages 4) true 0)
                          (pages 4) false)]
        (let [{:keys [message]
               :bpfmap/keys [error
                             errno]} (error-of
                                       (mem/populate!
                                        (bytes/whole region (bpf-map/identity-of m) true)))]
          (is (= [:no-memory :EFAULT] [error errno]))
          (is (str/starts-with? message
                                (str
                                 "Allocating pages of the memory failed with EFAULT: the kernel "
                                 "cannot allocate one of the pages, and "
                                 "reading it would end this process"))))))))

(kernel-test ^{:needs [[:map-type :arena]]} m5-arena-freeze-before-map
  (testing "an arena can only be frozen before its first mapping"
    (with-open [m (an-arena nil)]
      (mem/close (bpf/memory m))
      (is
       (=
        "Freezing the map failed with EBUSY: an arena can only be frozen before its memory is mapped for writing for the first time"
        (:message (error-of (bpf/freeze! m))))))
    (with-open [m (an-arena {:freeze true})]
      (let [memory (bpf/memory m)]
        (is (mem/read-only? memory))
        (is (= 0 (memory 0)))
        (mem/close memory)))))
