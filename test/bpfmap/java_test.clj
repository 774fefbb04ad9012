(ns bpfmap.java-test
  "The package bpfmap.maps, as Java programs use it, against the kernel; and the page about it."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.map-types :as map-types]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (bpfmap.maps BpfMap BpfMapException MapInfo MapSpec MapType)
           (bpfmap.sys KeyOrder)
           (java.io Closeable)
           (java.lang.foreign Arena MemorySegment ValueLayout)
           (java.lang.reflect Field Method)
           (java.nio ByteBuffer ByteOrder)
           (java.nio.file Path)
           (java.util Map NoSuchElementException)
           (java.util.concurrent.atomic AtomicBoolean)
           (java.util.function BiConsumer)))

(set! *warn-on-reflection* true)

(defn- u32 ^bytes [n]
  (.array (.putInt (.order (ByteBuffer/allocate 4) (ByteOrder/nativeOrder)) (int n))))

(defn- u64 ^bytes [n]
  (.array (.putLong (.order (ByteBuffer/allocate 8) (ByteOrder/nativeOrder)) (long n))))

(defn- number [^bytes bytes]
  (when bytes
    (let [buffer (.order (ByteBuffer/wrap bytes) (ByteOrder/nativeOrder))]
      (if (= 4 (alength bytes)) (.getInt buffer) (.getLong buffer)))))

(defn- spec ^MapSpec [type entries]
  (MapSpec/of type 4 8 entries))

(defn- create ^BpfMap [type entries] (BpfMap/create (spec type entries)))

(defn- path ^Path [text] (Path/of text (make-array String 0)))

(defn- entries [^BpfMap m]
  (let [found (volatile! [])]
    (.forEach m (reify BiConsumer
                  (accept [_ k v] (vswap! found conj [(number k) (number v)]))))
    @found))

(defn- error
  "Returns the exception of a call, as data for the façade's own, else its class."
  [f]
  (try
    (f)
    (catch BpfMapException e
      (is (str/starts-with? (ex-message e)
                            (str (.operation e) " failed with " (.errnoName e) ": ")))
      [(.operation e) (.errnoName e) (.errno e)])
    (catch Exception e (class e))))

;; --- tables

(defn- fact [^MapType type method]
  (.invoke (doto ^Method (.getDeclaredMethod MapType method (make-array Class 0))
             (.setAccessible true))
           type (object-array 0)))

(deftest types-match-rows
  (testing "the map types and their facts are the same as in the rows"
    (is (= (set (map #(str/replace (str/upper-case (name %)) "-" "_") (keys map-types/types)))
           (set (map str (MapType/values)))))
    (doseq [^MapType type (MapType/values)
            :let [row-name (keyword (str/replace (str/lower-case (str type)) "_" "-"))
                  {:keys [number per-cpu order evicts batch batch-read-since]}
                  (map-types/types row-name)]]
      (is (= number (.number type)) type)
      (is (= type (MapType/of (.number type))))
      (is (= (boolean per-cpu) (.isPerCpu type)) type)
      (is (= (boolean (map-types/by-index? row-name)) (fact type "isByIndex")) type)
      (is (= ({:index KeyOrder/INDEX :prefix KeyOrder/PREFIX} order KeyOrder/NONE)
             (fact type "order"))
          type)
      (is (= (boolean (and (:read batch) (nil? batch-read-since))) (fact type "hasBatches"))
          type)
      (is (= (contains? batch :write) (fact type "hasWriteBatches")) type)
      (is (= (contains? batch :delete) (fact type "hasDeleteBatches")) type)
      (is (= (boolean evicts) (fact type "evicts")) type))
    (is (nil? (MapType/of 0)))
    (is (nil? (MapType/of 4242)))))

(deftest flags-match-rows
  (testing "the create flags are the same as in the rows"
    (let [flags (for [^Field f (.getDeclaredFields MapSpec)
                      :when (re-matches #"[A-Z_]+" (.getName f))]
                  [(.getName f) (.get f nil)])]
      (is (= 7 (count flags)))
      (doseq [[flag bit] flags]
        (is (= (map-types/flag-word [(keyword (str/replace (str/lower-case flag) "_" "-"))]) bit)
            flag)))))

(deftest invalid-specs
  (testing "an invalid spec is rejected before the kernel sees it"
    (is (thrown-with-msg? IllegalArgumentException
                          #"keySize must be a non-negative integer, got -1"
                          (MapSpec/of MapType/HASH -1 8 1)))
    (is (thrown-with-msg? IllegalArgumentException #"name must be at most 15 .* got \"a b\""
                          (.withName (spec MapType/HASH 1) "a b")))
    (is (thrown? NullPointerException (MapSpec/of nil 4 8 1)))))

;; --- elements

(kernel-test ^{:needs [[:operation :hash :take!]]} elements
  (testing "the element operations return what the kernel did"
    (with-open [m (create MapType/HASH 2)]
      (is (nil? (.lookup m (u32 1))))
      (is (nil? (.nextKey m nil)))
      (is (false? (.replace m (u32 1) (u64 1))))
      (is (true? (.insert m (u32 1) (u64 10))))
      (is (false? (.insert m (u32 1) (u64 11))))
      (is (true? (.replace m (u32 1) (u64 12))))
      (is (= 12 (number (.lookup m (u32 1)))))
      (.put m (u32 2) (u64 20))
      (is (= {1 12, 2 20} (into {} (entries m))))
      (is (= #{1 2} (set (take-while some? (rest (iterate #(number (.nextKey m (some-> % u32)))
                                                          nil))))))
      (is (= 12 (number (.take m (u32 1)))))
      (is (nil? (.take m (u32 1))))
      (is (true? (.delete m (u32 2))))
      (is (false? (.delete m (u32 2))))
      (is (= [] (entries m))))))

(kernel-test elements-in-memory
  (testing "memory segments, native or not, are read and written like arrays"
    (with-open [m (create MapType/HASH 2), arena (Arena/ofConfined)]
      (doseq [allocate [#(.allocate arena (long %)) #(MemorySegment/ofArray (byte-array %))]
              :let [k ^MemorySegment (allocate 4)
                    v ^MemorySegment (allocate 8)]]
        (.set k ValueLayout/JAVA_INT_UNALIGNED 0 (int 3))
        (.set v ValueLayout/JAVA_LONG_UNALIGNED 0 33)
        (.put m k v)
        (.fill v 0)
        (is (true? (.lookup m k v)))
        (is (= 33 (.get v ValueLayout/JAVA_LONG_UNALIGNED 0)))
        (.delete m (u32 3))
        (is (false? (.lookup m k v)))
        (is (= IllegalArgumentException (error #(.put m v v)) (error #(.lookup m k k))))))))

(kernel-test queues
  (testing "a map without keys has keys of zero bytes"
    (with-open [m (BpfMap/create (MapSpec/of MapType/QUEUE 0 8 2))]
      (let [none (byte-array 0)]
        (is (nil? (.lookup m none)))
        (.put m none (u64 1))
        (.put m none (u64 2))
        (is (= [1 1 2 nil] (mapv number [(.lookup m none) (.take m none) (.take m none)
                                         (.take m none)])))
        (is (= UnsupportedOperationException (error #(.cursor m))))))))

(kernel-test per-cpu-values
  (testing "a value of a per-CPU map has a part for each possible CPU"
    (with-open [m (BpfMap/create (MapSpec/of MapType/PERCPU_ARRAY 4 4 2))]
      (is (zero? (mod (.valueSize m) 8)))
      (is (= 4 (.valueSize (.info m))))
      (let [value (byte-array (take (.valueSize m) (cycle [1 2 3 4 0 0 0 0])))]
        (.put m (u32 1) value)
        (is (= (seq value) (seq (.lookup m (u32 1)))))))))

;; --- errors

(kernel-test errors
  (testing "an error has the operation, the errno and its name"
    (with-open [m (create MapType/HASH 1), array (create MapType/ARRAY 2)]
      (.put m (u32 1) (u64 1))
      (is (= ["put" "E2BIG" 7] (error #(.put m (u32 2) (u64 2)))))
      (is (= ["insert" "E2BIG" 7] (error #(.insert m (u32 2) (u64 2)))))
      (is (= ["put" "E2BIG" 7] (error #(.put array (u32 2) (u64 2)))))
      (is (= ["delete" "EINVAL" 22] (error #(.delete array (u32 0)))))
      (is (= ["create" "EINVAL" 22] (error #(create MapType/HASH 0))))
      (is (= ["open" "ENOENT" 2] (error #(BpfMap/open (path (fixture/new-pin))))))
      (is (= ["openById" "ENOENT" 2] (error #(BpfMap/openById 0x7ffffff0))))
      (is (= IllegalArgumentException
             (error #(.lookup m (u64 1)))
             (error #(.put m (u32 1) (u32 1)))
             (error #(.nextKey m (u64 1)))))
      (is (= UnsupportedOperationException (error #(.memory array)))))))

(kernel-test closing
  (testing "closing twice is fine and every call on a closed map throws IllegalStateException"
    (let [before (fixture/settled-descriptors)
          m (create MapType/HASH 2)
          cursor (.cursor m)
          pin (path (fixture/new-pin))]
      (is (not (.isClosed m)))
      (.close m)
      (with-open [other (create MapType/HASH 2)]
        (.close m)
        (is (nil? (.lookup other (u32 1)))))
      (is (.isClosed m))
      (is (str/ends-with? (str m) ", closed]"))
      (doseq [f [#(.lookup m (u32 1)) #(.put m (u32 1) (u64 1)) #(.insert m (u32 1) (u64 1))
                 #(.replace m (u32 1) (u64 1)) #(.delete m (u32 1)) #(.take m (u32 1))
                 #(.nextKey m nil) #(.info m) #(.freeze m) #(.pin m pin)
                 #(entries m) #(.next cursor)]]
        (is (isa? (error f) IllegalStateException)))
      (.close cursor)
      (.close cursor)
      (is (= before (fixture/open-descriptors))))))

;; --- iteration

(kernel-test cursors
  (testing "a cursor gives each entry once, by batches and by keys"
    (doseq [[type n] {MapType/HASH 5000, MapType/ARRAY 3000, MapType/LRU_HASH 100}
            :let [expected (into {} (map (juxt identity #(* 3 (long %)))) (range n))]]
      (with-open [m (create type (if (= type MapType/LRU_HASH) 10000 n))]
        (doseq [[k v] expected] (.put m (u32 k) (u64 v)))
        (let [found (entries m)]
          (is (= n (count found)) (str type))
          (is (= expected (into {} found))))))
    (with-open [m (BpfMap/create (.withFlags (MapSpec/of MapType/DEVMAP_HASH 4 4 8) 0))]
      (is (= [] (entries m)) "a type without batches"))
    (with-open [m (create MapType/HASH 2), cursor (.cursor m)]
      (is (= NoSuchElementException (error #(.key cursor))))
      (is (false? (.next cursor)))
      (is (false? (.next cursor)))
      (is (= NoSuchElementException (error #(.value cursor)))))
    (with-open [m (create MapType/HASH 2), cursor (.cursor m)]
      (.put m (u32 1) (u64 2))
      (is (true? (.next cursor)))
      (is (= [1 2] [(.get (.key cursor) ValueLayout/JAVA_INT_UNALIGNED 0)
                    (.get (.value cursor) ValueLayout/JAVA_LONG_UNALIGNED 0)]))
      (is (.isReadOnly (.key cursor)))
      (.close cursor)
      (is (= IllegalStateException (error #(.next cursor)))))))

(defn- trie-key ^bytes [n]
  (.array (doto (.order (ByteBuffer/allocate 8) (ByteOrder/nativeOrder))
            (.putInt 32)
            (.order ByteOrder/BIG_ENDIAN)
            (.putInt (int n)))))

(kernel-test iteration-during-deletion
  (testing "entries that stay are seen while another thread deletes and inserts the others"
    ;; The kernel itself can miss a prefix of a trie while another is written, about once in a
    ;; hundred runs of this test: each is seen by one of the iterations.
    (doseq [[^MapSpec made key together] [[(spec MapType/HASH 4096) u32 1]
                                          [(.withFlags (MapSpec/of MapType/LPM_TRIE 8 8 4096)
                                                       MapSpec/NO_PREALLOC)
                                           trie-key
                                           20]]]
      (with-open [m (BpfMap/create made)]
        (doseq [i (range 2000)] (.put m ^bytes (key i) (u64 i)))
        (let [over (AtomicBoolean.)
              deleter (fixture/thread
                        (fn []
                          (loop [i 1]
                            (when-not (.get over)
                              (.delete m ^bytes (key i))
                              (.put m ^bytes (key i) (u64 i))
                              (recur (long (mod (+ i 2) 2000)))))))
              stay (set (range 0 2000 2))]
          (try
            (doseq [several (partition together (repeatedly 20 #(map second (entries m))))
                    :let [found (apply concat several)]]
              (is (= stay (set (filter even? found))) (str made))
              (is (every? #(<= 0 (long %) 1999) found)))
            (finally
              (.set over true)
              (fixture/join deleter))))))))

(kernel-test deletion-by-iteration
  (testing "an iteration may delete every entry that it is at"
    (with-open [m (create MapType/HASH 3000)]
      (doseq [i (range 3000)] (.put m (u32 i) (u64 i)))
      (let [seen (volatile! #{})]
        (.forEach m (reify BiConsumer
                      (accept [_ k _] (vswap! seen conj (number k)) (.delete m ^bytes k))))
        (is (= (set (range 3000)) @seen))
        (is (= [] (entries m)))))))

;; --- many elements

(defn- pairs [f ns]
  (map #(Map/entry (u32 %) (u64 (f %))) ns))

(kernel-test many-elements
  (testing "putAll and deleteAll return what the map contains, and which keys existed"
    (doseq [type [MapType/HASH MapType/ARRAY MapType/LRU_HASH]]
      (testing (str type)
        (with-open [m (create type 3000)]
          (is (= 1000 (.putAll m (pairs inc (range 1000)))))
          (is (= 3 (.putAll m (pairs #(* 2 (long %)) [1 2 3 2 1]))) "each key counts once")
          (is (= 0 (.putAll m []) (.deleteAll m [])))
          (is (= [1 2 4 6 5] (map #(number (.lookup m (u32 %))) (range 5))))
          (if (= MapType/ARRAY type)
            (is (= ["deleteAll" "EINVAL" 22] (error #(.deleteAll m [(u32 1)]))))
            (do (is (= 999 (.deleteAll m (map u32 (range 1 4000)))))
                (is (= 0 (.deleteAll m [(u32 1)])))
                (is (= [[0 1]] (entries m))))))))))

(kernel-test many-elements-of-any-size
  (testing "per-CPU values and prefixes are written and deleted like others"
    (with-open [m (BpfMap/create (MapSpec/of MapType/PERCPU_HASH 4 4 10))]
      (let [value (byte-array (take (.valueSize m) (cycle [1 2 3 4 0 0 0 0])))]
        (is (= 2 (.putAll m [(Map/entry (u32 1) value) (Map/entry (u32 2) value)])))
        (is (= (seq value) (seq (.lookup m (u32 2)))))
        (is (= 1 (.deleteAll m [(u32 2) (u32 3)])))))
    (with-open [m (BpfMap/create (.withFlags (MapSpec/of MapType/LPM_TRIE 8 8 100)
                                             MapSpec/NO_PREALLOC))]
      (is (= 50 (.putAll m (map #(Map/entry (trie-key %) (u64 %)) (range 50)))))
      (is (= 50 (.deleteAll m (map trie-key (range 60))))))
    (with-open [m (create MapType/LRU_HASH 100)]
      (is (> 1000 (.putAll m (pairs identity (range 1000)))) "an LRU map drops entries"))))

(kernel-test many-elements-refused
  (testing "nothing is written if one is invalid; a failure tells how many were done"
    (with-open [m (create MapType/HASH 5)]
      (is (= IllegalArgumentException
             (error #(.putAll m [(Map/entry (u32 1) (u64 1)) (Map/entry (u32 2) (u32 1))]))
             (error #(.putAll m [(Map/entry (u32 1) (u64 1)) (Map/entry (u64 2) (u64 1))]))
             (error #(.deleteAll m [(u64 1)]))))
      (is (= NullPointerException (error #(.deleteAll m [nil]))))
      (is (= [] (entries m)))
      (let [^BpfMapException e (is (thrown-with-msg? BpfMapException #"; 5 of 9 were done$"
                                                     (.putAll m (pairs inc (range 9)))))]
        (is (= ["putAll" "E2BIG" 5] [(.operation e) (.errnoName e) (.completed e)])))
      (is (= 5 (count (entries m))))
      (let [closed (doto (create MapType/HASH 5) .close)]
        (is (isa? (error #(.putAll closed (pairs inc [1]))) IllegalStateException))
        (is (isa? (error #(.deleteAll closed [(u32 1)])) IllegalStateException))))))

;; --- maps of maps

(kernel-test inner-maps
  (testing "a map of maps takes maps like its template, and returns them"
    (with-open [inner (create MapType/HASH 4)
                other (create MapType/HASH 8)]
      (.put inner (u32 7) (u64 70))
      (doseq [type [MapType/ARRAY_OF_MAPS MapType/HASH_OF_MAPS]]
        (with-open [outer (BpfMap/createOfMaps (MapSpec/of type 4 4 2) inner)]
          (is (nil? (.lookupMap outer (u32 1))))
          (.put outer (u32 1) inner)
          (with-open [found (.lookupMap outer (u32 1))]
            (is (= (.info inner) (.info found)))
            (is (= 70 (number (.lookup found (u32 7))))))
          (is (= (.id (.info inner)) (number (.lookup outer (u32 1)))))
          (.delete outer (u32 1))
          (is (nil? (.lookupMap outer (u32 1))))
          (with-open [array (create MapType/ARRAY 4)]
            (is (= ["put" "EINVAL" 22] (error #(.put outer (u32 1) array)))))
          (let [closed (doto (create MapType/HASH 4) .close)]
            (is (isa? (error #(.put outer (u32 1) closed)) IllegalStateException)))))
      (is (= UnsupportedOperationException
             (error #(.lookupMap inner (u32 7)))
             (error #(.put inner (u32 7) other))))
      (is (= ["create" "EINVAL" 22]
             (error #(BpfMap/create (MapSpec/of MapType/HASH_OF_MAPS 4 4 2))))
          "a map of maps has a template"))))

;; --- ids, pins, memory

(kernel-test opened-maps
  (testing "a map opened by its id or its pin is the same map"
    (with-open [m (BpfMap/create (.withName (spec MapType/HASH 4) "t_java"))]
      (let [info (.info m)
            pin (fixture/new-pin)
            accented (str (fixture/new-pin) "é")]
        (is (= (MapInfo. (.id info) MapType/HASH 1 4 8 4 0 "t_java") info))
        (is (= (str "BpfMap[HASH, id " (.id info) ", t_java]") (str m)))
        (.pin m (path pin))
        (is (= ["pin" "EEXIST" 17] (error #(.pin m (path pin)))))
        (.put m (u32 1) (u64 5))
        (with-open [by-id (BpfMap/openById (.id info)), by-pin (BpfMap/open (path pin))
                    of-clojure ^Closeable (bpf/open pin {:key :u32 :value :u64})]
          (is (= info (.info by-id) (.info by-pin)))
          (is (= 5 (number (.lookup by-id (u32 1))) (number (.lookup by-pin (u32 1)))
                 (get of-clojure 1))))
        (with-open [other (create MapType/HASH 4)]
          (is (= IllegalArgumentException (error #(.unpin other (path pin)))))
          (is (.exists (io/file pin))))
        (.unpin m (path pin))
        (is (not (.exists (io/file pin))))
        (is (= ["unpin" "ENOENT" 2] (error #(.unpin m (path pin)))))
        (when (= "UTF-8" (System/getProperty "sun.jnu.encoding"))
          (.pin m (path accented))
          (with-open [again ^Closeable (bpf/open accented)]
            (is (= (.id info) (:id (bpf/info again)))))
          (.unpin m (path accented)))))))

(kernel-test memory-of-arrays
  (testing "the memory of an array is the map's, until the map is closed"
    (let [m (BpfMap/create (.withFlags (MapSpec/of MapType/ARRAY 4 4 100) MapSpec/MMAPABLE))
          memory (.memory m)]
      (is (= 800 (.byteSize memory)))
      (is (identical? memory (.memory m)))
      (.set memory ValueLayout/JAVA_INT (* 7 (.memoryStride m)) (int 70))
      (is (= 70 (number (.lookup m (u32 7)))))
      (.put m (u32 8) (u32 80))
      (is (= 80 (.get memory ValueLayout/JAVA_INT (* 8 (.memoryStride m)))))
      (is (= ["freeze" "EBUSY" 16] (error #(.freeze m))))
      (.close m)
      (is (= IllegalStateException (error #(.get memory ValueLayout/JAVA_INT 0))))
      (is (isa? (error #(.memory m)) IllegalStateException)))))

(kernel-test frozen-maps
  (testing "a frozen map rejects writes, and its memory is read-only"
    (with-open [m (BpfMap/create (.withFlags (spec MapType/ARRAY 4) MapSpec/MMAPABLE))]
      (.put m (u32 1) (u64 9))
      (.freeze m)
      (is (= ["put" "EPERM" 1] (error #(.put m (u32 1) (u64 1)))))
      (is (.isReadOnly (.memory m)))
      (is (= 9 (.get (.memory m) ValueLayout/JAVA_LONG 8))))))

(kernel-test accesses-while-closing
  (testing "memory that one thread uses while another closes the map never faults"
    (dotimes [_ 50]
      (let [m (BpfMap/create (.withFlags (spec MapType/ARRAY 512) MapSpec/MMAPABLE))
            memory (.memory m)
            reader (future (try
                             (loop [] (.get memory ValueLayout/JAVA_LONG 8) (recur))
                             (catch IllegalStateException _ :closed)))]
        (Thread/sleep 1)
        (.close m)
        (is (= :closed (deref reader fixture/patience :late)))))))

;; --- the page

(defn- block [page language]
  (second (re-find (re-pattern (str "(?s)```" language "\n(.*?)```")) page)))

(kernel-test ^:volume page-example
  (testing "the example of doc/java.md compiles without a warning and prints what the page shows"
    (let [page (slurp "doc/java.md")
          dir (fixture/temporary-directory)
          tool #(str (System/getProperty "java.home") "/bin/" %)
          classes (-> BpfMap .getProtectionDomain .getCodeSource .getLocation .getPath)]
      (try
        (spit (io/file dir "Counts.java") (block page "java"))
        (let [{:keys [exit out err]} (fixture/run [(tool "javac") "--release" "22" "-Xlint:all"
                                                   "-Werror" "-cp" classes "Counts.java"]
                                                  :dir dir)]
          (is (= [0 "" ""] [exit out err])))
        (let [{:keys [exit out err]} (fixture/run [(tool "java")
                                                   "--enable-native-access=ALL-UNNAMED"
                                                   "-cp" (str classes ":.") "Counts"]
                                                  :dir dir)]
          (is (= [0 ""] [exit err]))
          (is (= (block page "text") out)))
        (is (str/includes? (block page "sh") "Counts.java"))
        (finally (run! #(.delete ^java.io.File %) (reverse (file-seq dir))))))))
