(ns ^:volume bpfmap.model-types-test
  "The other map types against their models: what evicts, what has a value for each CPU, prefixes,
  queues, maps of maps; and the operations on many entries at once."
  (:require [bpfmap.core :as bpf]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :refer [kernel-test]]
            [bpfmap.model :as model]
            [clojure.set :as set]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]]
            [clojure.test.check.generators :as gen])
  (:import (clojure.lang ExceptionInfo)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(def small-key (gen/choose 0 9))
(def value (gen/choose 0 1000))
(def capacity 6)

(def hash-model
  {:spec {:name "t_model" :type :hash :key :u32 :value :u64 :max-entries capacity}
   :init {}
   :command (model/key-commands small-key value)
   :step (model/hash-step capacity)})

;; --- least recently used: a relation, because the kernel chooses the evicted keys

(defn- lru-step
  "What was in the map after the last command is known, so what does not write answers as a hash
  does. A write first finds a place, for which it may evict any entry, also the one that it is
  about: then it meets no such key any more."
  [state [op k v :as command]]
  (case op
    :put! [(assoc state k v) :done]
    :insert! [state (if (contains? state k) boolean? true?)]
    :replace! [state (if (contains? state k) boolean? false?)]
    ((model/hash-step ##Inf) state command)))

(defn- lru-settle
  "All that is there was put last with that value, what was just written is there, and the
  capacity holds."
  [state {:keys [contents answer] [op k v] :command}]
  (let [wrote? (or (= :put! op) (and (#{:insert! :replace!} op) (true? answer)))
        state (if wrote? (assoc state k v) state)]
    (when (and (<= (count contents) capacity)
               (set/subset? (set contents) (set state))
               (or (not wrote?) (contains? contents k))
               ;; nothing is evicted for the sake of what writes nothing
               (or (#{:put! :insert! :replace! :put-all!} op) (= contents state)))
      contents)))

(def lru-model
  (merge hash-model {:step lru-step :settle lru-settle}
         {:spec (assoc (:spec hash-model) :type :lru-hash)}))

(kernel-test lru-hash-keeps-latest
  (testing "an LRU hash holds the latest entries within its capacity"
    (doseq [flags [#{} #{:no-common-lru}]]
      (testing flags
        (is (= #{}
               (set/difference #{[:put! :done] [:insert! true] [:insert! false] [:replace! true]
                                 [:replace! false]
                                 [:lookup :none] [:lookup :data] [:take! :data] [:delete! true]}
                               (model/holds (assoc-in lru-model [:spec :flags] flags)))))))))

;; --- a value for each CPU

(kernel-test e7-per-cpu-hash-vectors
  (testing "a per-CPU hash behaves as a map to vectors"
    (let [vectors (gen/vector value (count (feature/possible-cpus)))]
      (doseq [flags [#{} #{:no-prealloc}]]
        (testing flags
          (is (contains? (model/holds (-> hash-model
                                          (update :spec merge {:type :percpu-hash :flags flags})
                                          (assoc :command (model/key-commands small-key vectors))))
                         [:put! :map-full])))))))

(kernel-test e7-per-cpu-array-vectors
  (testing "a per-CPU array behaves as a vector of vectors"
    (let [n (count (feature/possible-cpus))]
      (is (= #{}
             (set/difference #{[:put! :done] [:put! :out-of-range] [:insert! false] [:replace! true]
                               [:delete! :not-supported]}
                             (model/holds {:spec {:name "t_model" :type :percpu-array :value :u64
                                                  :max-entries 5}
                                           :init (vec (repeat 5 (vec (repeat n 0))))
                                           :command (model/key-commands
                                                     (gen/choose 0 5) (gen/vector value n))
                                           :step (model/array-step 5)
                                           :contents (fn [m] (mapv val (seq m)))})))))))

(kernel-test e7-lru-per-cpu-latest
  (testing "an LRU per-CPU hash holds the latest entries"
    (doseq [flags [#{} #{:no-common-lru}]]
      (testing flags
        (is (contains? (model/holds (-> lru-model
                                        (update :spec merge {:type :lru-percpu-hash :flags flags})
                                        (assoc :command
                                               (model/key-commands
                                                small-key
                                                (gen/vector
                                                 value (count (feature/possible-cpus)))))))
                       [:lookup :data]))))))

;; --- longest prefix

(defn- parsed
  "A prefix as its bits, a text of 0 and 1: one covers another when it begins it."
  [prefix]
  (let [[address length] (str/split prefix #"/")
        ;; A literal: nothing is looked up
        bits (->> (.getAddress (java.net.InetAddress/getByName address))
                  (map #(str/replace (format "%8s" (Long/toBinaryString (bit-and 0xff (long %))))
                                     " " "0"))
                  str/join)]
    (subs bits 0 (parse-long length))))

(defn- longest
  "The prefix in state that covers k and is longer than all others that do; or nil."
  [state k]
  (->> (keys state)
       (filter #(str/starts-with? (parsed k) (parsed %)))
       (sort-by (comp count parsed))
       last))

(defn- lpm-step [state [op k :as command]]
  (case op
    :lookup [state (get state (longest state k) :none)]
    :has-key? [state (some? (longest state k))]
    :take! [state :not-supported]
    ((model/hash-step capacity) state command)))

(def lpm-model
  (merge hash-model
         {:spec {:name "t_model" :type :lpm-trie :max-entries capacity :flags #{:no-prealloc}
                 :key [:prefix :ipv4] :value :u64}
          :step lpm-step
          :command (model/key-commands
                    (gen/elements ["0.0.0.0/0" "10.0.0.0/8" "10.0.0.0/9" "10.128.0.0/9"
                                   "10.1.0.0/16" "10.1.2.0/24"
                                   "10.1.2.3/32" "10.1.2.2/31" "11.0.0.0/8" "192.168.1.1/32"])
                    value)}))

(deftest prefix-model-longest
  (testing "the model of prefixes finds the longest match"
    (let [state {"0.0.0.0/0" 0 "10.0.0.0/8" 1 "10.1.2.2/31" 2}]
      (is (= ["10.1.2.2/31" "10.0.0.0/8" "0.0.0.0/0" nil]
             [(longest state "10.1.2.3/32") (longest state "10.1.2.0/24")
              (longest state "11.0.0.0/8")
              (longest (dissoc state "0.0.0.0/0") "11.0.0.0/8")])))))

;; An old kernel may take insert! and replace! for put! on this type, and refuse to replace a
;; value in a full map.
(kernel-test e5-lpm-trie-longest-match
  (testing "an LPM trie finds the longest prefix that covers the key"
    (is (= #{}
           (set/difference #{[:put! :map-full] [:insert! false] [:replace! false] [:lookup :data]
                             [:take! :not-supported]}
                           (model/holds lpm-model))))))

(kernel-test e5-lpm-trie-of-ipv6
  (testing "an LPM trie of IPv6 prefixes finds the longest prefix"
    (is (= #{} (set/difference #{[:put! :map-full] [:insert! false] [:lookup :data] [:delete! true]}
                               (model/holds (-> lpm-model
                                                (assoc-in [:spec :key] [:prefix :ipv6])
                                                (assoc :command (model/key-commands
                                                                 (gen/elements
                                                                  ["::/0" "2001:db8::/32"
                                                                   "2001:db8::/33"
                                                                   "2001:db8:8000::/33"
                                                                   "2001:db8:1::/48"
                                                                   "2001:db8:1::7/128"
                                                                   "2001:db8:1::6/127"
                                                                   "fe80::/10" "::1/128"
                                                                   "8000::/1"])
                                                                 value)))))))))

;; --- queues and stacks

(def ^:private push-and-pop
  {:push! (fn [m v] (if (identical? m (bpf/push! m v)) :done :not-the-map))
   :push-over! (fn [m v] (bpf/push! m v {:overwrite true}) :done)
   :pop!  (fn [m] (bpf/pop! m :none))
   :peek  (fn [m] (bpf/peek m :none))})

(defn keyless-model
  "`end` takes the next value to be popped from a vector of pushed values, `others` the rest.
  All there is can be read only by popping it; what was popped is pushed again, in the order that
  restores it."
  [type end others order]
  {:spec {:name "t_model" :type type :value :u64 :max-entries 4}
   :init []
   :operations push-and-pop
   :command (gen/frequency [[3 (gen/tuple (gen/return :push!) value)]
                            [1 (gen/tuple (gen/return :push-over!) value)]
                            [2 (gen/tuple (gen/elements [:pop! :peek]))]])
   :step (fn [state [op v]]
           (case op
             :push! (if (= 4 (count state)) [state :map-full] [(conj state v) :done])
             :push-over! [(conj (if (= 4 (count state)) (subvec state 1) state) v) :done]
             :pop! (if (empty? state) [state :none] [(others state) (end state)])
             :peek [state (if (empty? state) :none (end state))]))
   :contents (fn [m]
               (let [pushed (vec (order (take-while #(not= :none %)
                                                    (repeatedly #(bpf/pop! m :none)))))]
                 (run! #(bpf/push! m %) pushed)
                 pushed))})

(def ^:private every-push-and-pop
  #{[:push! :done] [:push! :map-full] [:push-over! :done] [:pop! :data] [:pop! :none] [:peek :data]
    [:peek :none]})

(kernel-test queue-oldest-first
  (testing "a queue returns the oldest value first"
    (is (= every-push-and-pop (model/holds (keyless-model :queue first #(subvec % 1) identity))))))

(kernel-test stack-newest-first
  (testing "a stack returns the newest value first"
    (is (= every-push-and-pop (model/holds (keyless-model :stack peek pop reverse))))))

;; --- maps of maps

(defn hash-of-maps-model
  "Values are numbers of `inner` maps: the map is given the open map, and what it gives back is
  opened to see which."
  [inner-spec inner]
  (let [numbers (zipmap (map (comp :id bpf/info) inner) (range))
        number-of (fn [reference]
                    (with-open [m ^Closeable (bpf/open reference)]
                      (numbers (:id (bpf/info m)))))
        numbered (fn [m] (update-vals (into {} m) number-of))]
    (merge hash-model
           {:spec (-> (:spec hash-model)
                      (dissoc :value)
                      (assoc :type :hash-of-maps :inner-map inner-spec))
            :command (model/key-commands small-key (gen/choose 0 (dec (count inner))))
            :contents numbered
            :step (fn [state [op :as command]]
                    (if (= :take! op)
                      [state :not-supported]
                      ((model/hash-step capacity) state command)))
            :operations {:lookup (fn [m k]
                                   (let [v (bpf/lookup m k :none)]
                                     (if (= :none v) v (number-of v))))
                         :put! (fn [m k n] (bpf/put! m k (inner n)) :done)
                         :insert! (fn [m k n] (bpf/insert! m k (inner n)))
                         :replace! (fn [m k n] (bpf/replace! m k (inner n)))
                         :entries (fn [m] (frequencies (for [[k v] (seq m)] [k (number-of v)])))
                         :reduce-kv (fn [m]
                                      (frequencies
                                       (reduce-kv (fn [acc k v] (conj acc [k (number-of v)])) []
                                                  m)))}})))

(def ^:private slots "How many an array of maps has." 5)

(defn array-of-maps-model
  "Is like [[hash-of-maps-model]]; the state has the filled slots."
  [inner-spec inner]
  (let [step (model/hash-step slots)]
    (-> (hash-of-maps-model inner-spec inner)
        (update :spec #(-> % (dissoc :key) (merge {:type :array-of-maps :max-entries slots})))
        (assoc :command (model/key-commands (gen/choose 0 slots) (gen/choose 0 (dec (count inner))))
               :step (fn [state [op i :as command]]
                       (case op
                         (:insert! :replace! :take!) [state :not-supported]
                         :put! (if (< i slots) (step state command) [state :out-of-range])
                         ;; It goes through all slots, filled or not, and starts again beyond the
                         ;; end.
                         :next-key [state
                                    (cond (or (= 1 (count command)) (= slots i)) 0
                                          (= i (dec slots)) nil
                                          :else (inc i))]
                         :walk [state (zipmap (range slots) (repeat 1))]
                         (step state command)))))))

(kernel-test e8-array-of-maps-slots
  (testing "an array of maps returns the maps in its slots"
    (let [inner-spec {:name "t_inner" :type :array :value :u64 :max-entries 1}
          inner (vec (repeatedly 3 #(bpf/create inner-spec)))]
      (try
        (is (= #{}
               (set/difference #{[:put! :done] [:put! :out-of-range] [:delete! true]
                                 [:delete! false] [:lookup :data] [:lookup :none]}
                               (model/holds (array-of-maps-model inner-spec inner) :trials 60))))
        (finally (run! bpf/close inner))))))

(kernel-test e8-hash-of-maps-values
  (testing "a hash of maps returns the maps that were put"
    (let [inner-spec {:name "t_inner" :type :array :key :u32 :value :u64 :max-entries 1}
          inner (vec (repeatedly 3 #(bpf/create inner-spec)))]
      (try
        ;; Few trials: the kernel waits for programs to let go of the old map at every write.
        (is (contains? (model/holds (hash-of-maps-model inner-spec inner) :trials 60)
                       [:put! :map-full]))
        (finally (run! bpf/close inner))))))

;; --- many at once

(def ^:private many
  "Writing and deleting answer how many; an error on the way says how many were done."
  {:put-all!    (fn [m entries]
                  (try
                    [:done (bpf/put-all! m entries)]
                    (catch ExceptionInfo e
                      [(:bpfmap/error (ex-data e)) (:bpfmap/done (ex-data e))])))
   :delete-all! bpf/delete-all!
   :lookup-all  bpf/lookup-all
   :drain!      bpf/drain!
   :snapshot    bpf/snapshot})

(defn- put-all [step state entries]
  (reduce (fn [[state [_ done]] [k v]]
            (let [[state answer] (step state [:put! k v])]
              (if (= :done answer)
                [state [:done (inc done)]]
                (reduced [state [answer done]]))))
          [state [:done 0]]
          entries))

(defn with-many
  "The model with the operations on many entries. Writing many is writing one after the other, up
  to the first failure."
  [{:keys [step] :as model} k v]
  (assoc model
         :operations many
         :command (gen/frequency [[2 (:command model)]
                                  [1
                                   (gen/one-of
                                    [(gen/tuple (gen/return :put-all!)
                                                (gen/map k v {:max-elements 4}))
                                     (gen/tuple (gen/return :delete-all!) (gen/vector k 0 4))
                                     (gen/tuple (gen/return :lookup-all) (gen/vector k 0 4))
                                     (gen/tuple (gen/elements [:snapshot :drain!]))])]])
         :step (fn [state [op x :as command]]
                 (case op
                   :put-all! (put-all step state x)
                   :delete-all! [(apply dissoc state x) (count (filter (set x) (keys state)))]
                   :lookup-all [state (select-keys state x)]
                   :snapshot [state state]
                   :drain! [{} state]
                   (step state command)))))

(kernel-test batches-like-single-calls
  (testing "batch operations equal single operations in sequence"
    (doseq [type [:hash :percpu-hash]
            :let [v (if (= :hash type) value (gen/vector value (count (feature/possible-cpus))))]]
      (testing type
        (is (= #{}
               (set/difference #{[:put-all! :data] [:delete-all! :data] [:lookup-all :data]
                                 [:snapshot :data]
                                 [:drain! :data]}
                               (model/holds (with-many (-> hash-model
                                                           (assoc-in [:spec :type] type)
                                                           (assoc :command
                                                                  (model/key-commands small-key v)))
                                              small-key v)))))))
    (testing :lru-hash
      (is (contains? (model/holds (with-many lru-model small-key value)) [:drain! :data])))))
