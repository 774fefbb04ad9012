(ns bpfmap.sim-test
  "Simulated maps hold to the models that hold the kernel's maps, and answer like them command for
  command."
  (:require [bpfmap.core :as bpf]
            [bpfmap.events :as events]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.model :as model]
            [bpfmap.model-test :as model-test]
            [bpfmap.model-types-test :as models]
            [bpfmap.sim :as sim]
            [clojure.set :as set]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]]
            [clojure.test.check :as check]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (clojure.lang ExceptionInfo)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

;; --- models

(defn- holds [model]
  (model/holds (assoc model :create #(sim/create % {:cpus 3})) :trials 20))

(def ^:private per-cpu-values (gen/vector models/value 3))

(def ^:private keyed-models
  {"hash" models/hash-model
   "per-CPU hash" (-> models/hash-model
                      (assoc-in [:spec :type] :percpu-hash)
                      (assoc :command (model/key-commands models/small-key per-cpu-values)))
   "LRU hash" models/lru-model
   "LRU per-CPU hash" (-> models/lru-model
                          (assoc-in [:spec :type] :lru-percpu-hash)
                          (assoc :command (model/key-commands models/small-key per-cpu-values)))
   "many entries" (models/with-many models/hash-model models/small-key models/value)
   "array" model-test/array-model
   "per-CPU array" (-> model-test/array-model
                       (assoc-in [:spec :type] :percpu-array)
                       (assoc :init (vec (repeat 5 [0 0 0]))
                              :command (model/key-commands (gen/choose 0 5) per-cpu-values)))
   "LPM trie" models/lpm-model})

(deftest simulated-maps-hold-to-models
  (doseq [[case model] keyed-models]
    (testing case
      (is (set/subset? #{[:put! :done] [:lookup :data]} (holds model))))))

(deftest simulated-queues-hold-to-models
  (testing "a queue returns the oldest value first, a stack the newest"
    (is (contains? (holds (models/keyless-model :queue first #(subvec % 1) identity))
                   [:push! :map-full]))
    (is (contains? (holds (models/keyless-model :stack peek pop reverse)) [:push! :map-full]))))

(deftest simulated-maps-of-maps
  (testing "maps of maps return the maps that were put, which can be opened by their ids"
    (let [inner-spec {:name "t_inner" :type :array :key :u32 :value :u64 :max-entries 1}
          inner (vec (repeatedly 3 #(sim/create inner-spec)))]
      (try
        (is (contains? (holds (models/hash-of-maps-model inner-spec inner)) [:lookup :data]))
        (is (contains? (holds (models/array-of-maps-model inner-spec inner)) [:lookup :data]))
        (finally (run! bpf/close inner))))))

;; --- the kernel, command for command

(defn- answer
  "Returns what a command returns: of the map, of an error its data and message, else the result."
  [operations m [op & args]]
  (try
    (let [result (apply (operations op) m args)]
      (if (bpf/bpf-map? result) :the-map result))
    (catch ExceptionInfo e
      (let [named (str "map " (:id (:bpfmap/map (ex-data e))) " ")]
        (-> (ex-data e)
            (dissoc :bpfmap/map)
            (assoc :message (str/replace (ex-message e) named "map ID ")))))))

(def ^:private more-operations
  {:put-cpus! (fn [m k v] (bpf/put! m k v {:cpus :all}))
   :lookup-cpu (fn [m k cpu] (bpf/lookup m k :none {:cpu cpu}))
   :put-all! bpf/put-all!
   :delete-all! bpf/delete-all!
   :lookup-all bpf/lookup-all
   :snapshot bpf/snapshot
   :count-entries bpf/count-entries
   :drain! bpf/drain!
   :drain-into! (fn [m] (bpf/drain-into! m (fn [n _] (inc n)) 0))
   :push! bpf/push!
   :push-over! (fn [m v] (bpf/push! m v {:overwrite true}))
   :pop! bpf/pop!
   :peek bpf/peek
   :might-contain? bpf/might-contain?
   :freeze! bpf/freeze!
   :spec bpf/spec
   :info (fn [m] (dissoc (bpf/info m) :id :memlock :simulated :untyped
                         :btf-id :btf-key-type-id :btf-value-type-id))})

(defn- commands
  "A generator of commands for every kind of map; an operation that the type lacks is refused."
  [k v]
  (gen/frequency
   [[12 (model/key-commands k v)]
    [2 (gen/tuple (gen/return :put-all!) (gen/map k v {:max-elements 4}))]
    [1 (gen/tuple (gen/return :delete-all!) (gen/vector k 0 4))]
    [1 (gen/tuple (gen/return :lookup-all) (gen/vector k 0 4))]
    [4 (gen/tuple (gen/elements [:push! :push-over! :might-contain?]) v)]
    [2 (gen/tuple (gen/elements [:pop! :peek]))]
    [1 (gen/tuple (gen/return :put-cpus!) k v)]
    [1 (gen/tuple (gen/return :lookup-cpu) k (gen/choose 0 1))]
    [2 (gen/tuple (gen/elements [:snapshot :count-entries :drain! :drain-into! :spec :info]))]]))

(defn- ordered? [{:keys [type]}]
  (not (re-find #"hash" (name type))))

(defn- comparable?
  "Returns true for a command whose answer does not depend on the order of a hash."
  [spec [op]]
  (or (ordered? spec) (not= :next-key op)))

(defn- differences
  "Returns the commands that a map of the kernel and a simulated one answer differently."
  [spec cpus commands]
  (let [operations (merge model/operations more-operations)]
    (with-open [kernel ^Closeable (bpf/create spec)
                simulated ^Closeable (sim/create spec {:cpus cpus})]
      (vec (for [command commands
                 :when (comparable? spec command)
                 :let [expected (answer operations kernel command)
                       found (answer operations simulated command)]
                 :when (not= expected found)]
             {:command command :kernel expected :simulated found})))))

(defn- specs
  "Specs of every type that is simulated, each with generators of keys and values.

  The generators also make what does not fit. No map evicts."
  [cpus]
  (let [k (gen/frequency [[20 (gen/choose 0 7)] [1 (gen/elements [-1 "x" 0xffffffff])]])
        v (gen/frequency [[20 (gen/choose 0 1000)] [1 (gen/elements [-1 nil])]])
        vs (gen/frequency [[20 (gen/vector (gen/choose 0 9) cpus)] [1 v]])
        prefix (gen/elements ["0.0.0.0/0" "10.0.0.0/8" "10.1.0.0/16" "10.1.2.0/24" "10.1.2.3/32"
                              "10.128.0.0/9" "11.0.0.0/8" "x"])]
    [[{:type :hash :key :u32 :value :u64 :max-entries 5} k v]
     [{:type :hash :key :u32 :value :u64 :max-entries 5 :flags #{:no-prealloc}} k v]
     [{:type :percpu-hash :key :u32 :value :u32 :max-entries 5} k vs]
     [{:type :lru-hash :key :u32 :value :u64 :max-entries 4096} k v]
     [{:type :lru-percpu-hash :key :u32 :value :u64 :max-entries 4096} k vs]
     [{:type :array :key :u32 :value [:struct [:a :u8] [:b :u16]] :max-entries 5}
      k (gen/let [a (gen/choose 0 255) b (gen/choose 0 65536)] {:a a :b b})]
     [{:type :percpu-array :key :u32 :value :u16 :max-entries 5} k vs]
     [{:type :lpm-trie :key [:prefix :ipv4] :value :u64 :max-entries 4 :flags #{:no-prealloc}}
      prefix v]
     [{:type :queue :value :u64 :max-entries 3} k v]
     [{:type :stack :value :u64 :max-entries 3} k v]
     [{:type :bloom-filter :value :u64 :max-entries 1000} k v]]))

;; A simulated map has all that came with a release: it is compared with kernels that have it too.
(kernel-test ^{:needs [[:operation :stack-trace :take!] [:conditional :lpm-trie]
                       [:map-type :bloom-filter]]}
  simulated-like-kernel
  (testing "a simulated map answers as one of the kernel, with the same errors"
    (let [cpus (count (feature/possible-cpus))]
      (doseq [[spec k v] (specs cpus)
              frozen [false true]
              :let [commands (cond->> (gen/vector (commands k v) 0 40)
                               frozen (gen/fmap (fn [commands]
                                                  (let [[before after] (split-at 20 commands)]
                                                    (concat before [[:freeze!]] after)))))]]
        (testing spec
          (let [{:keys [pass? shrunk seed]} (check/quick-check
                                             (fixture/trials 8)
                                             (prop/for-all [commands commands]
                                                  (= [] (differences spec cpus commands))))]
            (is pass? (str "seed " seed ": "
                           (some->> shrunk :smallest first
                                    (differences spec cpus) pr-str)))))))))

;; Each is refused, and the data of the error has the same operation, path and hint.
(kernel-test refused-like-kernel
  (testing "a spec or an option that create rejects is rejected alike"
    (let [hash {:name "t_sim" :type :hash :key :u32 :value :u64 :max-entries 4}
          array {:type :array :value :u64 :max-entries 4}
          data (fn [create spec options]
                 (try
                   (bpf/close (create spec options))
                   (catch ExceptionInfo e
                     (assoc (ex-data e) :message (str/replace (ex-message e) #"map \d+" "map ID")))))
          comparable #(-> %
                          (update :bpfmap/map dissoc :id)
                          ;; The options that it recommends have :cpus.
                          (cond-> (str/starts-with? (str (:message %)) "Unknown option")
                            (dissoc :message :bpfmap/hint)))]
      (doseq [[spec options]
              [[nil nil] [7 nil] [{} nil] [(assoc hash :type :hsh) nil] [(assoc hash :x 1) nil]
               [(dissoc hash :key) nil] [(assoc hash :key :u33) nil]
               [(assoc hash :max-entries 0) nil]
               [(assoc hash :max-entries "x") nil] [(assoc hash :flags #{:mmapable}) nil]
               [(assoc hash :flags #{:nope}) nil] [(assoc hash :name 7) nil]
               [(assoc hash :contents {1 -1}) nil] [(assoc hash :contents {"x" 1}) nil]
               [(assoc hash :contents (zipmap (range 5) (range))) nil]
               [(assoc hash :contents 7) nil] [(assoc hash :freeze 7) nil]
               [(assoc array :contents {4 1}) nil] [(assoc array :key :u64) nil]
               [{:type :lpm-trie :key [:prefix :ipv4] :value :u32 :max-entries 4 :flags #{}} nil]
               [{:type :queue :key :u32 :value :u32 :max-entries 4} nil]
               [{:type :queue :value :u32 :max-entries 1 :contents [1 2]} nil]
               [{:type :ringbuf :max-entries 0} nil]
               [{:type :ringbuf :value :u32 :max-entries 1} nil]
               [{:type :array-of-maps :max-entries 1} nil]
               [{:type :array-of-maps :max-entries 1 :inner-map (dissoc hash :key)} nil]
               [{:type :array-of-maps :max-entries 1
                 :inner-map {:type :array-of-maps :max-entries 1 :inner-map hash}} nil]
               [hash 7] [hash {:typ 1}] [hash {:mapped 7}] [hash {:pin-path 7}]
               [hash {:mapped true}] [array {:mapped true}]]
              :let [expected (data bpf/create spec options)]]
        (testing [spec options]
          (is (some? (:bpfmap/error expected)))
          (is (= (comparable expected) (comparable (data sim/create spec options)))))))))

(kernel-test takes-the-options-of-create
  (testing "options of create that change nothing are accepted"
    (doseq [create [bpf/create sim/create]]
      (with-open [m ^Closeable (create {:type :array :value :u64 :max-entries 4 :flags #{:mmapable}}
                                       {:mapped true :pin-path "/nowhere"})]
        (bpf/put! m 1 7)
        (is (= 7 (m 1)))))))

;; --- handles, memory, refusals

(defn- error-of [f]
  (try (f) nil (catch ExceptionInfo e (assoc (ex-data e) :message (ex-message e)))))

(defn- kind-and-message [f]
  ((juxt :bpfmap/error :message) (error-of f)))

(deftest simulated-handles
  (testing "a clone outlives its original, a closed handle is refused"
    (let [m (sim/create {:name "t_sim" :type :hash :key :u32 :value :u64 :max-entries 4
                         :contents {1 10}})
          id (:id (bpf/info m))
          copy (bpf/clone m)]
      (bpf/close m)
      (is (= :closed (:bpfmap/error (error-of #(bpf/lookup m 1)))))
      (with-open [opened ^Closeable (bpf/open {:map-id id})]
        (is (= {1 10} (into {} copy) (into {} opened))))
      (is (= {:simulated true :name "t_sim" :frozen false}
             (select-keys (bpf/info copy) [:simulated :name :frozen])))
      (is (nil? (bpf/spec-diff copy (bpf/spec copy))))
      (bpf/close copy)
      (is (= :closed (:bpfmap/error (error-of #(bpf/clone copy)))))))
  (testing "an inner map lives as long as a map holds it"
    (let [inner-spec {:type :hash :key :u32 :value :u64 :max-entries 4}]
      (with-open [outer ^Closeable (sim/create {:type :array-of-maps :max-entries 2
                                                :inner-map inner-spec})]
        (with-open [inner ^Closeable (sim/create inner-spec)]
          (bpf/put! inner 1 10)
          (bpf/put! outer 0 inner))
        (with-open [inner ^Closeable (bpf/open (outer 0))]
          (is (= {1 10} (into {} inner))))
        (with-open [other ^Closeable (sim/create (assoc inner-spec :value :u32))]
          (is (= :incompatible (:bpfmap/error (error-of #(bpf/put! outer 1 other))))))))))

(deftest simulated-one-cpu
  (testing "the value of one CPU is written alone"
    (with-open [m ^Closeable (sim/create {:type :percpu-array :value :u64 :max-entries 2}
                                         {:cpus 3})]
      (bpf/put! m 0 [1 2 3])
      (bpf/put! m 0 7 {:cpu 1})
      (is (= [1 7 3] (m 0))))))

(deftest simulated-memory
  (testing "the memory of an array is that of its elements, and prevents freezing"
    (with-open [m ^Closeable (sim/create {:type :array :value :u32 :max-entries 4
                                          :flags #{:mmapable}})]
      (with-open [mem ^Closeable (bpf/memory m)]
        (bpf/put! m 2 7)
        (is (= 7 (nth (into [] mem) 16)) "the third element of 8 bytes each")
        (is (= :busy (:bpfmap/error (error-of #(bpf/freeze! (bpf/clone m)))))))
      (bpf/freeze! m)
      (is (= 7 (m 2)))
      (is (= :permission (:bpfmap/error (error-of #(bpf/put! m 2 8))))))))

(def ^:private record [:struct [:pid :u32] [:n :u64]])

(deftest simulated-ring
  (with-open [ring ^Closeable (sim/create {:name "t_ring" :type :ringbuf :max-entries 4096
                                           :record-type record})]
    (testing "a reader reads the emitted records, across the end of the ring too"
      (with-open [r ^Closeable (events/reader ring {:type record})]
        (is (= :busy (:bpfmap/error (error-of #(events/reader ring)))))
        (dotimes [i 1000]
          (is (true? (sim/emit! ring {:pid i :n (* 2 i)})))
          (is (= {:pid i :n (* 2 i)} (events/poll! r))))
        (testing "which come while it waits"
          (let [later (future (Thread/sleep 50) (sim/emit! ring {:pid 7 :n 8}))]
            (is (= [{:pid 7 :n 8}] (into [] (take 1) r)))
            (is (true? @later))))))
    (testing "bytes of any length are read as they are"
      (with-open [r ^Closeable (events/reader ring)]
        (doseq [n (range 0 2000 37) :let [record (bpf/->bytes (repeat n (mod n 100)))]]
          (sim/emit! ring record)
          (is (= record (events/poll! r))))))
    (testing "a ring without room takes no record"
      (is (= 170 (count (take-while true? (repeatedly #(sim/emit! ring {:pid 1 :n 1}))))))
      (with-open [r ^Closeable (events/reader ring {:type record :timeout 0})]
        (is (= {{:pid 1 :n 1} 170} (frequencies r)))))
    (testing "what is not a record is refused"
      (is (= [:invalid-value (str "A record must be bytes, got 7: give its type as {:type t}, or as "
                                  ":record-type of the spec")]
             (kind-and-message #(sim/emit! ring 7 {:type nil}))))
      (is (= :invalid-value (:bpfmap/error (error-of #(sim/emit! ring {:pid -1 :n 1})))))
      (is (= "Unknown option :typ" (first (str/split (:message (error-of
                                                                #(sim/emit! ring 7 {:typ 1})))
                                                     #":(?= )")))))))

(deftest only-simulated-rings
  (testing "emit! writes to simulated ring buffers only"
    (with-open [m ^Closeable (sim/create {:name "t_sim" :type :array :value :u32 :max-entries 4})]
      (is (= [:not-supported
              (str "Map " (:id (bpf/info m)) " (t_sim) must be a simulated ring buffer: create it by "
                   "(bpfmap.sim/create {:type :ringbuf …}); only programs write to a ring of the "
                   "kernel")]
             (kind-and-message #(sim/emit! m (byte-array 1)))))))
  (testing "a closed ring takes none"
    (let [ring (sim/create {:name "t_ring" :type :ringbuf :max-entries 4096})]
      (bpf/close ring)
      (is (= :closed (:bpfmap/error (error-of #(sim/emit! ring (byte-array 1)))))))))

(deftest simulated-refusals
  (testing "what needs the kernel is refused with the reason"
    (with-open [m ^Closeable (sim/create {:name "t_sim" :type :hash :key :u32 :value :u64
                                          :max-entries 4})]
      (is (= [:not-supported
              (str "pin! on map " (:id (bpf/info m)) " (t_sim) is refused: the map is simulated in "
                   "this process, and only the kernel can do this with a map of its own")]
             (kind-and-message #(bpf/pin! m "/sys/fs/bpf/t_sim"))))
      (is (false? (bpf/pinned-at? m "/sys/fs/bpf/t_sim")))
      (is (= :not-found (:bpfmap/error (error-of #(bpf/unpin! m "/sys/fs/bpf/t_sim")))))))
  (testing "specs and options that cannot be simulated"
    (is (= [:not-supported
            (str "A map of type :devmap cannot be simulated: the types that can be are :array, "
                 ":array-of-maps, :bloom-filter, :hash, :hash-of-maps, :lpm-trie, :lru-hash, "
                 ":lru-percpu-hash, :percpu-array, :percpu-hash, :queue, :rhash, :ringbuf and :stack")]
           (kind-and-message #(sim/create {:type :devmap :value :u32 :max-entries 4}))))
    (is (= [:not-supported
            (str "A map that is pinned by name cannot be simulated: leave out :pinning; a pin holds "
                 "a map of the kernel")]
           (kind-and-message #(sim/create {:name "t" :type :hash :key :u32 :value :u64
                                           :max-entries 4 :pinning :by-name}))))
    (is (= [:not-supported
            (str "A ring buffer with the flag :rb-overwrite cannot be simulated: leave out the flag; "
                 "a full ring then takes no record")]
           (kind-and-message #(sim/create {:type :ringbuf :max-entries 4096
                                           :flags #{:rb-overwrite}}))))
    (is (= ":cpus must be an integer from 1 to 8192, got 0"
           (:message (error-of #(sim/create {:type :hash :key :u32 :value :u64 :max-entries 4}
                                            {:cpus 0})))))
    (is (= :invalid-spec (:bpfmap/error (error-of #(sim/create {:type :hash})))))))
