(ns bpfmap.soak.actions
  "What the soak does, as a table: each action is done by several threads at once, on maps that
  others use, close and change.

  An action is a function of the world, `{:maps :names :pins :ids}`: the maps by kind, each an
  atom with an open handle that anybody may close and replace; their names; a directory for pins,
  on a BPF file system; a counter. It may throw what it throws."
  (:require [bpfmap.btf :as btf]
            [bpfmap.core :as bpf]
            [bpfmap.events :as events]
            [bpfmap.host :as host]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.prog :as prog])
  (:import (clojure.lang ExceptionInfo)
           (java.io Closeable)
           (java.util.concurrent ThreadLocalRandom)
           (java.util.concurrent.atomic AtomicLong)))

(set! *warn-on-reflection* true)

(defn- random
  "A number from 0 to below n."
  ^long [^long n]
  (.nextLong (ThreadLocalRandom/current) n))

(def ^:private flow [:struct [:src :ipv4] [:port :u16be] [:protocol :u8]])
(def ^:private traffic [:struct [:packets :u64] [:bytes :u64] [:first :u64] [:last :u64]])
(def ^:private odd-throws
  "A type whose values cannot be decoded when they are odd."
  [:via :u64 identity (fn [n] (if (odd? (long n)) (throw (ex-info "odd" {})) n))])

(def specs
  "The maps, by kind. They are small, so that they are full now and then."
  {:scalar {:type :hash :key :u32 :value :u64 :max-entries 500}
   :struct {:type :hash :key flow :value traffic :max-entries 500}
   :bytes {:type :hash :key-size 4 :value-size 100 :max-entries 500 :flags #{:no-prealloc}}
   :lru {:type :lru-hash :key :u32 :value :u64 :max-entries 500}
   :array {:type :array :key :u32 :value :u64 :max-entries 500}
   :per-cpu {:type :percpu-hash :key :u32 :value :u64 :max-entries 500}
   :trie {:type :lpm-trie :key [:prefix :ipv4] :value :u64 :max-entries 500 :flags #{:no-prealloc}}
   :queue {:type :queue :value :u64 :max-entries 100}
   :bloom {:type :bloom-filter :value :u64 :max-entries 500}})

(def ^:private cpus (delay (count (call/possible-cpus))))

(def ^:private keys-and-values
  "Kind to a random key and a random value."
  {:scalar [#(random 600) #(random 1000000)]
   :struct [#(hash-map :src (str "10.0.0." (random 250)) :port (random 4) :protocol 6)
            #(hash-map :packets (random 1000) :bytes (random 1000000) :first 1 :last 2)]
   :bytes [#(byte-array [0 0 (random 3) (unchecked-byte (random 256))])
           #(byte-array 100 (byte (random 100)))]
   :lru [#(random 2000) #(random 1000000)]
   :array [#(random 600) #(random 1000000)]
   :per-cpu [#(random 600) #(vec (repeatedly @cpus (fn [] (random 1000))))]
   :trie [#(str "10." (random 4) "." (random 250) ".0/" (+ 8 (random 17))) #(random 1000000)]})

(def ^:private keyed (vec (keys keys-and-values)))

(defn- handle [{:keys [maps]} kind]
  @(maps kind))

(defn- on-any
  "An action on a map with keys: calls f with the map, a key and a value."
  [f]
  (fn [world]
    (let [kind (keyed (random (count keyed)))
          [k v] (keys-and-values kind)]
      (f (handle world kind) (k) (v)))))

(defn- of-kind [kind f]
  (fn [world] (f (handle world kind))))

(defn- some-entries
  "Some random entries of a kind of map, and the map."
  [world]
  (let [kind (keyed (random (count keyed)))
        [k v] (keys-and-values kind)]
    [(handle world kind) (repeatedly (random 200) (fn [] [(k) (v)]))]))

(defn- reopen
  "Closes a handle under everybody's hands, and opens the map again by another way."
  [{:keys [maps]}]
  (let [kind (nth (keys specs) (random (count specs)))
        slot (maps kind)
        ^Closeable old @slot
        fresh (bpf/open (:id (bpf/info old)) (select-keys (specs kind) [:key :value]))]
    (if (compare-and-set! slot old fresh)
      (.close old)
      (.close ^Closeable fresh))))

(defn- create-and-use [_]
  (let [spec (specs (keyed (random (count keyed))))]
    (with-open [m (bpf/create (assoc spec :max-entries 16))]
      (bpf/info m)
      (into {} m)
      (with-open [other (bpf/clone m)]
        (bpf/spec other)))))

(defn- pin-and-open [{:keys [pins ^AtomicLong ids]}]
  (let [path (str pins "/p" (.incrementAndGet ids))]
    (with-open [m (bpf/create (specs :scalar))]
      (bpf/pin! m path)
      (with-open [other (bpf/open path {:access :read-only})]
        (bpf/pinned-path other)
        (bpf/lookup other 1))
      (bpf/pin! m (str path "b"))
      (bpf/unpin! m))))

(defn- with-ring
  "Calls f with a ring buffer and a function that sends n events of four bytes."
  [f]
  (with-open [m (bpf/create {:type :ringbuf :max-entries 4096})
              program (prog/load {:type :socket-filter
                                  :insns [[:stw [:r10 -4] 7]
                                          [:lddw :r1 m]
                                          [:mov64 :r2 :r10]
                                          [:add64 :r2 -4]
                                          [:mov64 :r3 4]
                                          [:mov64 :r4 0]
                                          [:call :ringbuf-output]
                                          [:mov64 :r0 0]
                                          [:exit]]})]
    (f m (fn [n] (prog/test-run program {:data (byte-array 14) :repeat n})))))

(defn- read-events [_]
  (with-ring
    (fn [m send!]
      (with-open [reader (events/reader m {:type :u32 :timeout 0.001 :steal true})
                  peek (events/peek m {:timeout 0})]
        (send! (inc (random 300)))
        (into [] (take (random 100)) reader)
        (events/stats m)
        (into [] (take 10) peek)
        (with-open [_ (events/subscribe reader (fn [_]))]
          (send! 10))
        (events/drain! reader identity)
        (events/poll! reader 0)))))

(defn- close-waiting-reader [_]
  (with-ring
    (fn [m send!]
      (let [reader (events/reader m {:steal true})
            reading (future
                      ;; It may be closed before this begins.
                      (try (count (into [] reader)) (catch ExceptionInfo _)))]
        (send! 5)
        (.close ^Closeable reader)
        @reading))))

(def ^:private failures
  "What must fail, each in its own way."
  [(fn [world] (bpf/put! (handle world :scalar) -1 0))
   (fn [world] (bpf/put! (handle world :scalar) 1 "one"))
   (fn [world] (bpf/put! (handle world :struct) {:src "10.0.0.1"} {}))
   (fn [world] (bpf/push! (handle world :scalar) 1))
   (fn [world] (bpf/lookup (handle world :scalar) 1 nil {:unknown true}))
   (fn [_] (bpf/open 0x7ffffff0))
   (fn [_] (bpf/open "/no/such/pin"))
   (fn [_] (bpf/create {:type :hash :key :u32}))
   (fn [_] (with-open [m (bpf/create (specs :scalar))] (bpf/pin! m "/tmp/not-a-bpf-file-system")))
   (fn [_] (with-open [m (bpf/create (specs :scalar))] (.close ^Closeable m) (bpf/lookup m 1)))
   (fn [_] (with-open [m (bpf/create (specs :scalar))] (bpf/freeze! m) (bpf/put! m 1 1)))
   (fn [world]
     (with-open [m (bpf/open (:id (bpf/info (handle world :scalar))) {:access :read-only})]
       (bpf/put! m 1 1)))
   (fn [world]
     (with-open [m (bpf/open (:id (bpf/info (handle world :scalar))) {:key :u32 :value odd-throws})]
       (into {} m)))
   (fn [world]
     (reduce (fn [_ _] (throw (ex-info "the user's" {:bpfmap/error :the-user's}))) nil
             (handle world :lru)))
   (fn [_]
     (with-ring (fn [m send!]
                  (with-open [r (events/reader m {:type odd-throws :timeout 0 :steal true})]
                    (send! 3)
                    (into [] r)))))
   (fn [_] (prog/load {:type :socket-filter :insns [[:mov64 :r0 :r9] [:exit]]}))])

(def actions
  "Name to how often it is done beside the others, and the action."
  {:lookup [40 (on-any (fn [m k _] (bpf/lookup m k)))]
   :call [10 (on-any (fn [m k _] (m k :none)))]
   :has-key? [5 (on-any (fn [m k _] (bpf/has-key? m k)))]
   :put! [40 (on-any (fn [m k v] (bpf/put! m k v)))]
   :insert! [10 (on-any (fn [m k v] (bpf/insert! m k v)))]
   :replace! [10 (on-any (fn [m k v] (bpf/replace! m k v)))]
   :delete! [30 (on-any (fn [m k _] (bpf/delete! m k)))]
   :take! [10 (on-any (fn [m k _] (bpf/take! m k)))]
   :next-key [10 (on-any (fn [m k _] (bpf/next-key m) (bpf/next-key m k)))]
   :put-all! [2 (fn [world] (let [[m entries] (some-entries world)] (bpf/put-all! m entries)))]
   :delete-all! [2
                 (fn [world]
                   (let [[m entries] (some-entries world)]
                     (bpf/delete-all! m (map first entries))))]
   :lookup-all [1
                (fn [world]
                  (let [[m entries] (some-entries world)] (bpf/lookup-all m (map first entries))))]
   :reduce [3 (on-any (fn [m _ _] (reduce (fn [^long n _] (inc n)) 0 m)))]
   :reduce-in-part [2
                    (on-any (fn [m _ _]
                              (reduce (fn [n entry] (if (< (random 10) 1) (reduced entry) n)) nil
                                      m)))]
   :reduce-deleting [1
                     (of-kind :scalar
                              (fn [m]
                                (reduce-kv (fn [n k _] (when (< (random 10) 1) (bpf/delete! m k)) n)
                                           0 m)))]
   :into [2 (on-any (fn [m _ _] (into {} m)))]
   :seq [1 (on-any (fn [m _ _] (first m)))]
   :snapshot [1 (on-any (fn [m _ _] (bpf/snapshot m)))]
   :entries [1 (of-kind :per-cpu (fn [m] (into [] (bpf/entries m {:cpu 0}))))]
   :count-entries [2 (on-any (fn [m _ _] (bpf/count-entries m)))]
   :drain! [1 (on-any (fn [m _ _] (bpf/drain! m)))]
   :push! [10 (of-kind :queue (fn [m] (bpf/push! m (random 100))))]
   :pop! [8 (of-kind :queue (fn [m] (bpf/pop! m)))]
   :peek [3 (of-kind :queue (fn [m] (bpf/peek m)))]
   :bloom [5
           (of-kind :bloom
                    (fn [m] (bpf/push! m (random 1000)) (bpf/might-contain? m (random 1000))))]
   :info [3 (on-any (fn [m _ _] (bpf/info m) (bpf/spec m) (str m)))]
   :reopen [3 reopen]
   :create [2 create-and-use]
   ;; Nobody closes it: the collector does
   :leak [1 (fn [_] (bpf/create {:type :array :key :u32 :value :u32 :max-entries 1}))]
   :pin! [1 pin-and-open]
   :open-by-name [1
                  (fn [{:keys [names]}]
                    (with-open [m ^Closeable (bpf/open {:name (names :array)})] (bpf/info m)))]
   :events [2 read-events]
   :close-reader [1 close-waiting-reader]
   :leak-reader [1 (fn [_] (with-ring (fn [m _] (events/reader m {:steal true}))))]
   :list [1 (fn [_] (count (host/maps)))]
   :program [1
             (fn [_]
               (with-open [p ^Closeable (prog/load {:type :socket-filter
                                                    :insns [[:mov64 :r0 7] [:exit]]})]
                 (prog/test-run p {:data (byte-array 14)})))]
   :btf [1 (fn [_] (btf/parse (:bytes (btf/->btf [flow traffic] nil))))]
   :failure [5 (fn [world] ((failures (random (count failures))) world))]})

(def ^:private wheel
  (vec (mapcat (fn [[name [weight _]]] (repeat weight name)) actions)))

(defn choose
  "The name of an action, at random."
  []
  (wheel (random (count wheel))))

(defn perform
  "Does an action in the world. Throws what it throws."
  [world name]
  ((second (actions name)) world))
