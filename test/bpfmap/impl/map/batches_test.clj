(ns bpfmap.impl.map.batches-test
  "Many elements with one system call, on every map type whose kernel side has it: what is read,
  taken, written and deleted, and how much of it, down to the last batch that is not full; and the
  same calls where the kernel has no batches."
  (:require [bpfmap.core :as bpf]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.element :as element]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.linux :as linux]
            [bpfmap.programs :as programs]
            [bpfmap.since :as since]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.sys Codec Fd Reader)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

;; ---------------------------------------------------------------- types with batches

(def ^:private inner {:type :array :value :u64 :max-entries 1})

(defn- cpus [n] (vec (repeat (count (feature/possible-cpus)) n)))

(defn- prefix
  "The i-th of 65536 prefixes; longer and shorter ones in turn, so that some cover others."
  [i]
  (str "10." (quot i 256) "." (mod i 256) "." (if (even? i) "0/24" "7/32")))

(def ^:private n
  "How many entries a map is tried with: not a power of two, and no multiple of a chunk below."
  1003)

(def ^:private forms
  "Forms of maps: the spec but for `:max-entries`, the i-th key, and a value for i; `:keep` makes
  what values are made of, and `:read` is how a value reads. `:room` is how many more entries a
  map has room for than it needs, lest it evict any."
  (let [plain {:key identity :value identity}]
    [(assoc plain :spec {:type :hash :key :u32 :value :u64})
     (assoc plain :spec {:type :hash :key :u32 :value :u64 :flags #{:no-prealloc}})
     {:spec {:type :hash :key-size 5 :value-size 3}
      :key #(bpf/->bytes [1 2 3 (quot % 256) (mod % 256)]) :value #(bpf/->bytes [(mod % 256) 0 7])}
     (assoc plain :spec {:type :array :value :u64})
     {:spec {:type :array :value [:bytes 5]} :key identity
      :value #(bpf/->bytes [(mod % 256) 2 3 4 (quot % 256)])}
     {:spec {:type :percpu-hash :key :u64 :value :u32} :key identity :value cpus}
     {:spec {:type :percpu-array :value [:bytes 5]} :key identity
      :value #(cpus (bpf/->bytes [(mod % 256) 2 3 4 (quot % 256)]))}
     (assoc plain :spec {:type :lru-hash :key :u32 :value :u64} :room 4096)
     (assoc plain :spec {:type :lru-hash :key :u32 :value :u64 :flags #{:no-common-lru}} :room 4096)
     {:spec {:type :lru-percpu-hash :key :u32 :value :u64} :key identity :value cpus :room 4096}
     (assoc plain :spec {:type :rhash :key :u32 :value :u64 :flags #{:no-prealloc}})
     {:spec {:type :lpm-trie :key [:prefix :ipv4] :value :u32 :flags #{:no-prealloc}} :key prefix
      :value identity}
     {:spec {:type :array-of-maps :inner-map inner} :keep true :few 43}
     {:spec {:type :hash-of-maps :key :u64 :inner-map inner} :keep true :few 43}]))

(defn- batch [{{:keys [type]} :spec}] (:batch (map-types/types type)))

(defn- array? [{{:keys [type]} :spec}] (:every-index (map-types/types type)))

(defn- with-form
  "Calls f with a form that has `:n`, how many entries to try, and `:entries`, a function from i
  to the i-th entry as a pair."
  [{:keys [key value few] keep? :keep :as form} f]
  (if keep?
    (let [held (mapv (fn [_] (bpf/create inner)) (range 3))
          ids (mapv #(hash-map :map-id (:id (bpf/info %))) held)]
      (try
        (f (assoc form :n few :entry (fn [i] [i (held (mod i 3))]) :read (zipmap held ids)))
        (finally (run! bpf/close held))))
    (f (assoc form :n n :entry (juxt key value) :read identity))))

(defn- with-map
  "Calls f with a map for n entries, empty or as an array is."
  [{:keys [spec room] :or {room 0}} n f]
  (with-open [m ^Closeable (bpf/create (assoc spec :max-entries (+ (long n) (long room))))]
    (f m)))

(defn- all
  "The first n entries as they read."
  [{:keys [entry read]} n]
  (into {} (map (fn [i] (update (entry i) 1 read))) (range n)))

(defn- here
  "Returns the forms of types that this kernel has."
  []
  (filter #(since/has? [:map-type (:type (:spec %))]) forms))

(defn- granted [ability]
  (filter #(and (contains? (batch %) ability) (since/has? [:batch (:type (:spec %))])) forms))

(kernel-test b1-covered-types
  (testing "these tests cover every type that has batches"
    (is (= (set (for [[type {:keys [batch]}] map-types/types
                      :when (and (seq batch) (:supported (feature/map-type type)))] type))
           (set (map (comp :type :spec) (here)))
           (set (map (comp :type :spec) (filter #(contains? (batch %) :read) (here))))))))

(defn- chunks
  "Reads a map by chunks that begin with `size` entries: `{:sizes how many came each time :entries
  [[key value] …]}`."
  [^BpfMap m size options]
  (let [sizes (volatile! [])
        key-codec ^Codec (.-key-codec m)
        value-codec ^Codec (.-value-codec m)
        step (element/entry-step key-codec value-codec (fn [acc k v] (conj acc [k v])))]
    {:entries (element/fold-chunks (element/batch-reader (bpf-map/descriptor m) (.size key-codec)
                                                         (.size value-codec)
                                                         (merge (bpf-map/reader-options m)
                                                                {:chunk size} options))
                                   (fn [acc reader n] (vswap! sizes conj n) (step acc reader n))
                                   []
                                   (fn [outcome _ _] (throw (element/failure m :reduce outcome))))
     :sizes @sizes}))

;; An iteration of a map that the kernel is resizing in the background misses entries.

(defn- resizes? [m]
  (:resizes (map-types/types (:type (bpf/spec m)))))

(defn- fill
  "Does `put-all!`, and waits until iterations are complete."
  [m entries]
  (let [done (bpf/put-all! m entries)]
    (when (resizes? m)
      (is (fixture/eventually (fn []
                                (every? #(= (count entries) %)
                                        (repeatedly 5 (fn []
                                                        (Thread/sleep 5)
                                                        (count (into [] (map key) m)))))))))
    done))

(defn- taken-chunks
  "Takes entries as [[chunks]] does; again while there are some, if the map is resized meanwhile."
  [m size]
  (if (resizes? m)
    (loop [taken {:sizes [] :entries []} idle 0]
      (let [{:keys [sizes entries]} (chunks m size {:delete true})]
        (cond
          (seq entries) (recur (-> taken (update :sizes into sizes)
                                   (update :entries into entries))
                               0)
          (< idle 5) (do (Thread/sleep 5) (recur taken (inc idle)))
          :else taken)))
    (chunks m size {:delete true})))

(defn- exactly
  "Asserts that the entries read are the entries of a map, each once."
  [expected entries]
  (is (= (count expected) (count entries)))
  (is (= expected (into {} entries))))

(kernel-test b1-read-batch-sizes
  (testing "reads all entries in batches of any size"
    (doseq [form (granted :read)]
      (with-form form
        (fn [{:keys [n entry] :as form}]
          (with-map form n
            (fn [m]
              (fill m (map entry (range n)))
              (doseq [size [1 2 7 100 (dec n) n (inc n) (* 2 n) nil]]
                (testing [(:spec form) size]
                  (let [{:keys [sizes entries]} (chunks m size nil)]
                    (exactly (all form n) entries)
                    (is (= n (reduce + sizes)))
                    (when (and size (array? form))
                      (is (= (remove zero? (concat (repeat (quot n size) size) [(rem n size)]))
                             sizes))))))
              (is (= (all form n) (into {} m) (bpf/snapshot m)))
              (is (= n (bpf/count-entries m))))))))))

(kernel-test b1-take-batch-sizes
  (testing "takes all entries in batches of any size and leaves none"
    (doseq [form (granted :take)]
      (with-form form
        (fn [{:keys [n entry] :as form}]
          (with-map form n
            (fn [m]
              (doseq [size [1 7 (dec n) n (inc n) nil]]
                (testing [(:spec form) size]
                  (fill m (map entry (range n)))
                  (let [{:keys [sizes entries]} (taken-chunks m size)]
                    (exactly (all form n) entries)
                    (is (= n (reduce + sizes)))
                    (is (nil? (seq m))))))
              (fill m (map entry (range n)))
              (is (= (all form n) (bpf/drain! m)))
              (is (= [{} 0] [(bpf/drain! m) (bpf/count-entries m)])))))))))

(kernel-test b1-partial-write-progress
  (testing "a write that fails reports exactly how many entries were written"
    (doseq [form (granted :write)]
      (testing (:spec form)
        (with-form form
          (fn [{:keys [n entry] :as form}]
            (with-map form n
              (fn [m]
                (is (= n (fill m (map entry (range n)))))
                (is (= (all form n) (into {} m)))
                (is (= n (bpf/put-all! m (all form n))) "over existing entries")
                (is (= (all form n) (into {} m)))))
            (when-not (:room form)
              (doseq [fits [0 1 (quot n 2) (dec n)]]
                ;; A map has at least one place, in which something else is when none is to fit.
                (with-map form (max 1 fits)
                  (fn [m]
                    (let [keyed? (not (or (array? form) (= :array-of-maps (:type (:spec form)))))
                          other (when (and keyed? (zero? fits)) (entry n))
                          _ (when other (bpf/put-all! m [other]))
                          ;; An array's only index is 0
                          given (if (or keyed? (pos? fits)) (range n) (range 1 n))
                          {:keys [message]
                           :bpfmap/keys [error done]} (error-of (bpf/put-all! m (map entry given)))]
                      (is (= [(if keyed? :map-full :out-of-range) fits] [error done]))
                      (is (str/includes? message (str "; " fits " of " (count given) " were done")))
                      (when (pos? fits)
                        (is (= (all form fits) (into {} m)) "the first of them, and no other"))
                      (when other
                        (is (= [(first other)] (keys (into {} m))))))))))))))))

(kernel-test b1-delete-missing-keys
  (testing "deletion continues after missing keys and counts the deleted"
    (doseq [form (granted :delete)]
      (testing (:spec form)
        (with-form form
          (fn [{:keys [n entry] :as form}]
            (with-map form n
              (fn [m]
                (let [key (comp first entry)
                      put #(bpf/put-all! m (map entry %))]
                  (put (remove #(zero? (mod % 3)) (range n)))
                  (is (= (count (remove #(zero? (mod % 3)) (range n)))
                         (bpf/delete-all! m (map key (range n)))))
                  (is (= {} (into {} m)))
                  (put (range n))
                  (is (= n (bpf/delete-all! m (map key (range n)))))
                  (put (range n))
                  (is (= 5 (bpf/delete-all! m (map key [3 1 4 1 5 9 (+ n 5) 3])))
                      "a key given twice is in the result once")
                  (is (= (apply dissoc (all form n) (map key [3 1 4 5 9])) (into {} m))))))))))))

(kernel-test b1-more-than-one-syscall
  (testing "writes and deletes more entries than fit in one call"
    (let [n 150001] ; one call takes 65536
      (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u32 :max-entries n})]
        (is (= n (bpf/put-all! m (map (juxt identity inc) (range n)))))
        (is (= n (bpf/count-entries m)))
        (is (= 150000 (m 149999)))
        (let
         [{:bpfmap/keys [error done]} (error-of
                                        (bpf/put-all! m
                                                      (map (juxt identity identity)
                                                           (range 10 (+ n 10)))))]
          (is (= [:map-full (- n 10)] [error done])))
        (is (= (- n 100000) (bpf/delete-all! m (range 100000 (+ n 100000)))) "that many there were")
        (is (= (set (range 100000)) (set (keys (into {} m)))))))))

(kernel-test ^{:needs [[:operation :hash :take!]]} b1-b4-syscalls-per-batch
  (testing "uses one system call per batch, or one per entry without batches"
    (let [n 1000
          [lookup update delete take-out read-many take-many write-many delete-many] [1 2 3 21 24 25
                                                                                      26 27]
          entries (zipmap (range n) (repeat 1))]
      (doseq [[type
               made-of] {:hash {:put [write-many 1] :read [read-many 1] :take [take-many 1]
                                :delete [delete-many 1]}
                         :devmap-hash {:put [update n] :read [lookup (* 2 n)] :delete [delete n]}}
              :let [commands (fn [[number times] f]
                               (is (= times (get (programs/commands-made f) number))
                                   (str type " " number)))]]
        (with-open [m ^Closeable (bpf/create {:type type :key :u32 :value :u32 :max-entries n})]
          (commands (:put made-of) #(bpf/put-all! m entries))
          (commands (:read made-of) #(into {} m))
          (commands (:read made-of) #(bpf/count-entries m))
          (commands (:delete made-of) #(do (bpf/put-all! m entries) (bpf/delete-all! m (range n))))
          (when (:take made-of)
            (commands (:take made-of) #(do (bpf/put-all! m entries) (bpf/drain! m)))
            (commands [take-out n]
                      #(do (bpf/put-all! m entries) (bpf/drain-into! m (fn [_ _]) nil))))))
      (testing "and with none where there is nothing to do, or nothing that fits"
        (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u32 :max-entries n})]
          (is (= {}
                 (programs/commands-made #(do (bpf/put-all! m [])
                                              (bpf/delete-all! m [])
                                              (bpf/lookup-all m [])
                                              (error-of (bpf/put-all! m [[1 1] [2 -1]]))
                                              (error-of (bpf/delete-all! m [1 :x])))))))))))

(kernel-test b2-small-batch-grows
  (testing "grows a batch smaller than a bucket and continues at the same cursor"
    ;; Two places for each bucket on average, and some with many more; a map of more buckets than
    ;; entries has few full ones.
    (doseq [[type flags max-entries n] [[:hash #{} 4096 4096] [:hash #{:no-prealloc} 65536 60000]
                                        [:percpu-hash #{} 4096 4000]
                                        [:lru-hash #{} 65536 8000] [:hash #{:zero-seed} 1024 1024]]
            options [nil {:delete true}]]
      (testing [type flags options]
        (with-open [m ^Closeable (bpf/create {:type type :key :u32 :value-size 8 :flags flags
                                              :max-entries max-entries})]
          (let [value (cond-> (bpf/->bytes (range 8))
                        (= :percpu-hash type) (->> (repeat (count (feature/possible-cpus))) vec))]
            (bpf/put-all! m (for [i (range n)] [i value]))
            (let [{:keys [sizes entries]} (chunks m 1 options)]
              (is (< 1 (apply max sizes)) "it began with one, and had to grow")
              (is (= (range n) (sort (map first entries))) "each is seen once"))))))))

;; ---------------------------------------------------------------- a batch that fails

(defn- number-of [^Fd fd]
  (let [number (.acquire fd)]
    (.release fd)
    number))

(defn- become
  "Makes the descriptor `fd` one of the same file as `other`, as if another handle had been opened
  under its number."
  [fd other]
  (linux/call "dup3" (number-of other) (number-of fd) (linux/constant "O_CLOEXEC")))

(kernel-test b3-failed-batch-cursor
  (testing "a failed batch keeps the cursor"
    (doseq [{:keys [spec]
             :as form} (filter #(#{:hash :array :lpm-trie :percpu-hash} (:type (:spec %))) forms)
            :when (since/has? [:batch (:type spec)])
            taking? (if (contains? (batch form) :take) [false true] [false])]
      (testing [spec taking?]
        (with-form form
          (fn [{:keys [n entry] :as form}]
            (with-map form n
              (fn [^BpfMap m]
                (fill m (map entry (range n)))
                (let [id (:id (bpf/info m))
                      key-codec ^Codec (.-key-codec m)
                      value-codec ^Codec (.-value-codec m)
                      step (element/entry-step key-codec value-codec
                                               (fn [acc k v] (conj acc [k v])))]
                  (with-open [usable ^Fd (map/open-id id :read-write {:op :open})
                              ;; The kernel refuses every reading of it.
                              unusable ^Fd (map/open-id id :write-only {:op :open})
                              fd ^Fd (call/duplicate unusable {:op :open})
                              reader ^Reader (element/batch-reader
                                              fd (.size key-codec) (.size value-codec)
                                              (merge (bpf-map/reader-options m)
                                                     {:chunk 100 :delete taking?}))]
                    (is (= [:EPERM :EPERM] (repeatedly 2 #(linux/said (.read reader))))
                        "at the first call")
                    (is (= n (bpf/count-entries m)) "nothing was taken")
                    (let [entries (loop [entries []]
                                    (become fd usable)
                                    (let [found (.read reader)
                                          entries (step entries reader found)]
                                      (become fd unusable)
                                      (if (zero? found)
                                        entries
                                        ;; Between any two, but after the last, when there is
                                        ;; nothing to ask for any more.
                                        (do
                                          (is (contains? #{:EPERM :ok} (linux/said (.read reader))))
                                          (recur entries)))))]
                      (exactly (all form n) entries)
                      (is (= (if taking? 0 n) (bpf/count-entries m))))))))))))))

;; ---------------------------------------------------------------- without batches

(kernel-test b4-without-batches
  (testing "the same functions work entry by entry without batches"
    (doseq [{:keys [spec few] :as form} (here)]
      (testing spec
        ;; As on an older kernel
        (with-redefs [map-types/types (update map-types/types (:type spec) dissoc :batch)]
          (with-form (cond-> form few (assoc :few 7))
            (fn [{:keys [n entry] :as form}]
              (let [{:keys [ops]} (map-types/types (:type spec))
                    key (comp first entry)]
                (with-map form n
                  (fn [m]
                    (is (= n (fill m (map entry (range n)))))
                    (is (= (all form n) (into {} m) (bpf/snapshot m) (into {} (bpf/entries m))
                           (into {} (seq m))))
                    (is (= n (bpf/count-entries m)))
                    (when-not (:index (map-types/types (:type spec)))
                      (is (= (select-keys (all form n) (map key [0 3 5]))
                             (bpf/lookup-all m (map key [0 3 (+ n 4096) 5])))))
                    (when (ops :delete!)
                      (is (= 3 (bpf/delete-all! m (map key [3 1 (+ n 9) 3 4]))))
                      (is (= (apply dissoc (all form n) (map key [3 1 4])) (into {} m))))
                    (when (and (ops :drain!)
                               (not (:drains (map-types/types (:type spec))))
                               (since/has? [:operation (:type spec) :drain!]))
                      (fill m (map entry (range n)))
                      (is (= (all form n) (bpf/drain! m)))
                      (is (= [{} 0] [(into {} m) (bpf/count-entries m)])))))
                (when (and (contains? (set ops) :delete!)
                           (not (:room form))
                           (not (:index (map-types/types (:type spec)))))
                  (with-map form 5
                    (fn [m]
                      (let
                       [{:bpfmap/keys [error done]} (error-of
                                                      (fill m (map entry (range n))))]
                        (is (= [:map-full 5] [error done]))
                        (is (= (all form 5) (into {} m)))))))))))))))

(kernel-test b4-empty-input
  (testing "does nothing for empty input"
    (doseq [{:keys [spec room]} (concat (here)
                                        [{:spec {:type :devmap-hash}} {:spec {:type :prog-array}}
                                         {:spec {:type :sockhash :key :u32}}])
            :let [{:keys [ops every-index]} (map-types/types (:type spec))]]
      (testing spec
        (with-open [m ^Closeable (bpf/create (assoc spec :max-entries (+ 2 (long (or room 0)))))]
          (doseq [nothing [nil [] {} #{} () (map identity []) (eduction (map identity) [])]]
            (is (= 0 (bpf/put-all! m nothing)))
            (is (= {} (bpf/lookup-all m nothing)))
            (when (ops :delete!) (is (= 0 (bpf/delete-all! m nothing)))))
          (when-not every-index
            (is (= {} (into {} m) (bpf/snapshot m)))
            (is (= 0 (bpf/count-entries m)))
            (is (nil? (seq (bpf/entries m)))))
          (when (and (ops :drain!) (since/has? [:operation (:type spec) :drain!]))
            (is (= {} (bpf/drain! m)))
            (when-not (:drains (map-types/types (:type spec)))
              (is (= :init (bpf/drain-into! m (fn [_ _] :called) :init))))))))))
