(ns ^:volume bpfmap.impl.map.drain-test
  "Draining a map: the taken and the remaining entries are all entries that were put, whatever
  happens at the same time."
  (:require [bpfmap.core :as bpf]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.linux :as linux]
            [bpfmap.programs :as programs]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)
           (java.util Random)
           (java.util.concurrent.atomic AtomicBoolean)))

(set! *warn-on-reflection* true)

(def ^:private pair [:struct [:a :u64] [:b :u64]])
(defn- pair-of [n] {:a n :b (- 1000000000 (long n))})
(defn- cpus [n] (vec (repeat (count (feature/possible-cpus)) n)))

(def ^:private keyed
  "Maps with keys that can be drained one by one: the spec but for `:max-entries`, and a value for
  i, whose key is i."
  [{:spec {:type :hash :key :u32 :value pair} :value pair-of}
   {:spec {:type :hash :key :u32 :value pair :flags #{:no-prealloc}} :value pair-of}
   ;; What need not decode is not taken by chunks
   {:spec {:type :hash :key :u32 :value [:via :u64 inc dec]} :value identity}
   {:spec {:type :percpu-hash :key :u64 :value :u32} :value cpus}
   {:spec {:type :lru-hash :key :u32 :value pair} :value pair-of}
   {:spec {:type :lru-percpu-hash :key :u32 :value :u64} :value cpus}])

(defn- entries [{:keys [value]} ks]
  (into {} (map (juxt identity value)) ks))

(defn- with-map [{:keys [spec]} f]
  (with-open [m ^Closeable (bpf/create (assoc spec :max-entries 8192))] ; a lru evicts nothing
    (f m)))

;; ---------------------------------------------------------------- the types

(kernel-test b8-covered-types
  (testing "these tests cover every type that can be drained"
    (is (= (set (for [[type {:keys [ops]}] map-types/types
                      :when (and (ops :drain!) (:supported (feature/map-type type)))] type))
           (into #{:queue :stack :stack-trace :hash-of-maps} (map (comp :type :spec)) keyed)))))

(kernel-test ^{:needs [[:operation :hash :take!]]} b8-drain-takes-everything
  (testing "drains all entries"
    (doseq [{:keys [spec] :as form} keyed
            n [0 1 1000]]
      (testing [spec n]
        (with-map form
          (fn [m]
            (doseq [drain [bpf/drain! #(bpf/drain-into! % conj {})]]
              (bpf/put-all! m (entries form (range n)))
              (is (= (entries form (range n)) (drain m)))
              (is (= [{} 0 {}] [(into {} m) (bpf/count-entries m) (drain m)])))))))
    (doseq [[type order] {:queue identity :stack reverse}]
      (testing type
        (with-open [m ^Closeable (bpf/create {:type type :value pair :max-entries 1000})]
          (doseq [drain [bpf/drain! #(bpf/drain-into! % conj [])]]
            (dotimes [i 1000] (bpf/push! m (pair-of i)))
            (is (= (map pair-of (order (range 1000))) (drain m)))
            (is (= [] (drain m)))))))))

;; ---------------------------------------------------------------- a function that throws

(kernel-test ^{:needs [[:operation :hash :take!]]} b8-throwing-function
  (testing "if the function throws, the map keeps the entries not passed to it"
    (doseq [{:keys [spec] :as form} keyed
            n [1 2 500 999 1000]]
      (testing [spec n]
        (with-map form
          (fn [m]
            (let [all (entries form (range 1000))
                  given (volatile! [])
                  f (fn [_ entry]
                      (vswap! given conj entry)
                      (when (= n (count @given)) (throw (IllegalStateException. "mine"))))]
              (bpf/put-all! m all)
              (is (= [IllegalStateException "mine"]
                     ((juxt :class :message) (error-of (bpf/drain-into! m f nil)))))
              (is (= n (count @given)))
              (is (= (- 1000 n) (bpf/count-entries m)))
              (is (= all (into (into {} m) @given)) "together they are all")
              (vreset! given [])
              (is (= (- 1000 n) (count (bpf/drain-into! m conj [])))
                  "and the rest can be drained"))))))
    (doseq [type [:queue :stack]
            n [1 50 100]]
      (testing [type n]
        (with-open [m ^Closeable (bpf/create {:type type :value :u64 :max-entries 100
                                              :contents (range 100)})]
          (let [given (volatile! [])]
            (is (= "mine" (:message (error-of (bpf/drain-into! m (fn [_ v]
                                                                   (when (= n
                                                                            (count
                                                                             (vswap! given conj v)))
                                                                     (throw
                                                                      (IllegalStateException.
                                                                       "mine"))))
                                                               nil)))))
            (is (= n (count @given)))
            (is (= (range 100) (sort (concat @given (bpf/drain! m)))))))))))

(kernel-test ^{:needs [[:operation :hash :take!]]} b7-b8-reduced-stops-drain
  (testing "a reduced value stops the drain and keeps the rest"
    (doseq [{:keys [spec] :as form} keyed]
      (testing spec
        (with-map form
          (fn [m]
            (bpf/put-all! m (entries form (range 100)))
            (let [taken (bpf/drain-into! m
                                         (fn [acc e]
                                           (let [acc (conj acc e)]
                                             (if (= 30 (count acc)) (reduced acc) acc))) {})]
              (is (= 30 (count taken)))
              (is (= (entries form (range 100)) (merge taken (into {} m))))
              (is (= 70 (bpf/count-entries m))))))))
    (with-open [m ^Closeable (bpf/create {:type :queue :value :u64 :max-entries 9
                                          :contents (range 9)})]
      (is (= 3 (bpf/drain-into! m (fn [acc v] (if (= 2 v) (reduced (+ acc v)) (+ acc v))) 0)))
      (is (= (range 3 9) (bpf/drain! m))))))

(kernel-test ^{:needs [[:operation :stack-trace :drain!]]} b8-drain-recorded-stacks
  (testing "drains recorded stacks one by one"
    (with-open [m ^Closeable (bpf/create {:type :stack-trace :max-entries 256})]
      (programs/record-stacks m)
      (dotimes [_ 20] (programs/record-stacks m))
      (let [all (into {} m)
            given (volatile! {})]
        (is (seq all))
        (error-of (bpf/drain-into! m
                                   (fn [_ e]
                                     (vswap! given conj e)
                                     (throw (IllegalStateException. "mine"))) nil))
        (is (= 1 (count @given)))
        (is (= all (merge @given (into {} m))))
        (is (= (apply dissoc all (keys @given)) (bpf/drain! m)))
        (is (= {} (into {} m)))))))

(kernel-test ^{:needs [[:operation :hash-of-maps :drain!]]} b8-drain-maps-of-maps
  (testing "drains a map of maps as a whole or not at all"
    (let [inner {:type :array :value :u64 :max-entries 1}]
      (with-open [m ^Closeable (bpf/create {:type :hash-of-maps :key :u32 :max-entries 8
                                            :inner-map inner})
                  i ^Closeable (bpf/create inner)]
        (bpf/put-all! m {1 i, 2 i})
        (let [{:keys [message] :bpfmap/keys [error op]} (error-of (bpf/drain-into! m conj []))]
          (is (= [:not-supported :drain-into!] [error op]))
          (is (str/includes? message
                             "a map of type :hash-of-maps must be drained as a whole, because the kernel cannot take a single entry"))
          (is (str/includes? message "(drain! m)")))
        (let [reference {:map-id (:id (bpf/info i))}]
          (is (= {1 reference, 2 reference} (bpf/drain! m)))
          (is (= {} (into {} m))))))))

;; ---------------------------------------------------------------- errors on the way

(def ^:private small
  "A type that does not decode numbers above 1000."
  [:via :u64 identity #(if (< 1000 (long %)) (throw (ex-info "too many" {})) %)])

(kernel-test ^{:needs [[:operation :hash :take!]]} b8-undecodable-entries
  (testing "keeps undecodable entries and attaches the taken ones to the error"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 100})]
      (bpf/put-all! m (assoc (zipmap (range 50) (range)) 7 5000))
      (with-open [o ^Closeable (bpf/open (:id (bpf/info m)) {:value small})]
        (let [{:bpfmap/keys [error op entries]} (error-of (bpf/drain! o))]
          (is (= [:invalid-value :drain!] [error op]))
          (is (= (assoc (zipmap (range 50) (range)) 7 5000) (merge entries (into {} m)))
              "nothing is lost")
          (is (= 50 (+ (count entries) (bpf/count-entries m))))
          (is (= 5000 (m 7))))))))

(kernel-test b8-close-during-drain
  (testing "closing the map during a drain loses nothing"
    (let [n 20000
          closed (volatile! 0)]
      (doseq [type [:hash :queue]
              _ (range 10)]
        (with-open [m ^Closeable (bpf/create {:type type :key-size (if (= :queue type) 0 4)
                                              :value :u32 :max-entries n})]
          (if (= :queue type)
            (dotimes [i n] (bpf/push! m i))
            (bpf/put-all! m
                          (eduction (map (fn [i] [(bpf/->bytes (linux/pack :u32 i)) i]))
                                    (range n))))
          (let [c (bpf/clone m)
                taken (promise)
                drainer (fixture/thread #(deliver taken
                                                  (try {:all (bpf/drain! c)}
                                                       (catch Exception e (ex-data e)))))]
            (Thread/sleep 0 (int (rand-int 999999)))
            (bpf/close c)
            (fixture/join drainer)
            (let [{:keys [all] :bpfmap/keys [error entries op]} @taken
                  in-values #(if (map? %) (vals %) %)
                  left (if (= :queue type) (bpf/drain! m) (into {} m))]
              (when-not all
                (vswap! closed inc)
                (is (= [:closed :drain!] [error op])))
              (is (= (range n) (sort (concat (in-values (or all entries)) (in-values left)))))))))
      (is (pos? (long @closed)) "some were closed in time"))))

(kernel-test ^{:needs [[:operation :hash :take!]]} b8-drain-of-frozen-map
  (testing "a rejected drain takes nothing"
    (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 4
                                          :contents {1 1} :freeze true})]
      (doseq [drain [#(bpf/drain! m) #(bpf/drain-into! m conj [])]]
        (let [{:bpfmap/keys [error entries]} (error-of (drain))]
          (is (= :permission error))
          (is (empty? entries))))
      (is (= {1 1} (into {} m))))))

;; ---------------------------------------------------------------- while others write

(kernel-test ^{:needs [[:operation :hash :take!]]} b8-put-during-drain
  (testing "entries that the function adds are drained whole or kept"
    (doseq [{:keys [spec] :as form} keyed]
      (testing spec
        (with-map form
          (fn [m]
            (bpf/put-all! m (entries form (range 500)))
            (let [taken (bpf/drain-into! m (fn [acc [k _ :as e]]
                                             (when (< k 1000)
                                               (bpf/put! m (+ 1000 k) ((:value form) (+ 1000 k))))
                                             (conj acc e))
                                         [])]
              (is (= (count taken) (count (distinct (map first taken)))))
              (is (= (entries form (concat (range 500) (range 1000 1500)))
                     (merge (into {} taken) (into {} m)))))))))))

(kernel-test ^{:needs [[:operation :hash :take!]]} b8-concurrent-drains
  (testing "concurrent drains take each entry once"
    (doseq [{:keys [spec] :as form} keyed]
      (testing spec
        (with-map form
          (fn [m]
            (bpf/put-all! m (entries form (range 4000)))
            (let [taken (fixture/in-threads 4
                          (fn [i]
                            (seq (if (even? i)
                                   (bpf/drain! m)
                                   (bpf/drain-into! m conj [])))))]
              (is (= 4000 (reduce + (map count taken))))
              (is (= (entries form (range 4000)) (into {} cat taken)))
              (is (nil? (seq m))))))))))

(defn- while-putting
  "Calls f while two threads put entries into a map of the keys from 0 to n-1: one puts keys that
  are new, the other those that f took out already. Returns what f returned, and how many entries
  each put, as `[result new again]`."
  [m n f]
  (let [over (AtomicBoolean.)
        most 200000
        put-new (fn []
                  (loop [i 0]
                    (if (and (< i most) (not (.get over)))
                      (do (bpf/put! m (+ n i) (pair-of (+ n i)))
                          (recur (inc i)))
                      i)))
        put-again (fn []
                    (let [random (Random.)]
                      (loop [i 0 done 0]
                        (if (and (< i most) (not (.get over)))
                          (let [k (.nextInt random (int n))]
                            (recur (inc i) (if (bpf/insert! m k (pair-of k)) (inc done) done)))
                          done))))
        counts (mapv (fn [put] (let [done (promise)] [(fixture/thread #(deliver done (put))) done]))
                     [put-new put-again])]
    (try
      (into [(f)] (do (.set over true) (map (fn [[_ done]] @done) counts)))
      (finally
        (.set over true)
        (run! (comp fixture/join first) counts)))))

(kernel-test ^{:needs [[:operation :hash :take!]]} b8-concurrent-writers
  (testing "draining a million entries during writes loses none"
    (let [n 1000000]
      (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value pair :max-entries (* 2 n)
                                            :flags #{:no-prealloc}})]
        (doseq [[case drain] [["as a whole" (fn [] (bpf/drain! m))]
                              ["with a function"
                               (fn [] (persistent! (bpf/drain-into! m conj! (transient {}))))]]]
          (testing case
            (is (= n (bpf/put-all! m (eduction (map (juxt identity pair-of)) (range n)))))
            (let [[taken added again] (while-putting m n drain)
                  left (into {} m)]
              (is (and (pos? added) (pos? again)) "they did write")
              (is (= (+ n added again) (+ (count taken) (count left)))
                  "nothing is lost, and nothing is there twice")
              (is (every? (fn [[k v]] (= (pair-of k) v)) taken) "each is whole")
              (is (every? (fn [[k v]] (= (pair-of k) v)) left))
              (is (every? #(contains? taken %) (range n))
                  "all entries from the beginning were taken")
              (is (every? #(or (contains? taken %) (contains? left %)) (range n (+ n added)))))
            (bpf/drain! m)))))))
