(ns bpfmap.impl.codec.struct-map-test
  "The map of a small struct equals the array map with the same fields, whatever is done with both."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.type.node :as node]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.data :as data]
            [clojure.data.json :as json]
            [clojure.pprint :as pprint]
            [clojure.set :as set]
            [clojure.test :refer [deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop]
            [clojure.walk :as walk])
  (:import (bpfmap.impl.codec.struct_map StructMap)
           (clojure.lang IDrop IFn PersistentArrayMap)
           (java.io ByteArrayInputStream ByteArrayOutputStream ObjectInputStream ObjectOutputStream)
           (java.util HashMap Map)))

(set! *warn-on-reflection* true)

;; --- structs of at most 32 bytes, and their values

(def ^:private integers
  (vec (for [[t {:keys [kind size]}] type/scalars :when (and (= :integer kind) (<= size 8))] t)))

(def ^:private other-types
  [:bool :char :f32 :f64 :ipv4 :mac [:string 5] [:bytes 3] [:array :u16 3] :u128
   [:enum :u32 {:a 0 :b 1}] [:struct [:x :u16] [:y :s8]] [:union [:x :u32] [:y :u8]]])

(def ^:private struct-type
  "Structs of 1 to 32 bytes, most of them of integers only."
  (gen/such-that
   #(<= 1 (long (type/size %)) 32)
   (gen/let [packed gen/boolean
             fields (gen/vector (gen/elements integers) 1 6)
             other (gen/frequency [[6 (gen/return nil)] [1 (gen/elements other-types)]])]
     (into [:struct {:packed packed}]
           (map-indexed (fn [i t] [(keyword (nth ["pid" "my/cpu" "c" "d" "e" "f" "g"] i)) t]))
           (cond-> fields other (conj other))))
   100))

(defn- a-byte [n]
  (gen/vector (gen/frequency [[3 (gen/elements [0 0 1 0x7f 0x80 0xff])] [2 (gen/choose 0 255)]])
              n))

(defn- without-padding
  "Returns bytes with zeros where no member is."
  [{:keys [members]} view]
  (let [used (into #{} (mapcat (fn [{:keys [offset node]}]
                                 (range offset (+ (long offset) (long (:size node))))))
                   members)]
    (bytes/->bytes (map-indexed (fn [i x] (if (used i) x 0)) view))))

(def ^:private struct-bytes
  (gen/let [t struct-type
            view (a-byte (type/size t))]
    [t (without-padding (node/node t nil []) view)]))

(defn- by-fields
  "Returns the array map of a struct, from the codec of each member alone."
  [t view]
  (let [array (bytes/->array view)]
    (apply array-map
           (mapcat (fn [{:keys [name offset node]}]
                     (let [end (+ (long offset) (long (:size node)))
                           part (java.util.Arrays/copyOfRange array (int offset) (int end))]
                       [name (types/decoded (codec/of-node node []) (bytes/wrap part))]))
                   (:members (node/node t nil []))))))

(defn- small [t view]
  (types/decoded (codec/codec t) view))

(defn- of-integers? [t]
  (every? (comp (set integers) second) (drop 2 t)))

(defn- nan?
  "Returns true if a value contains a NaN, which equals nothing."
  [x]
  (boolean (some #(and (double? %) (Double/isNaN %)) (tree-seq coll? seq x))))

(defspec small-struct-fields 1500
  (prop/for-all [[t view] struct-bytes]
                (let [m (small t view)
                      expected (by-fields t view)]
                  (and (case [(of-integers? t) (:packed (second t))]
                         [true false] (instance? StructMap m)
                         [true true] true ; it depends on where the words are
                         (instance? PersistentArrayMap m))
                       (= (pr-str expected) (pr-str m))
                       (= (keys expected) (keys m))
                       (= (nan? expected) (not= expected m) (not= m expected))
                       (= view (types/encoded (codec/codec t) m))))))

;; --- whatever is done with both

(defn- serialized
  "Returns a value through Java's serialization."
  [x]
  (let [out (ByteArrayOutputStream.)]
    (with-open [objects (ObjectOutputStream. out)]
      (.writeObject objects x))
    (.readObject (ObjectInputStream. (ByteArrayInputStream. (.toByteArray out))))))

(defn- jsonable [m]
  (update-vals m #(if (or (nan? %) (instance? Double %) (bytes/byte-view? %)) (str %) %)))

(defn- instance-of-map? [x]
  (and (instance? Map x) (instance? IFn x) (instance? Iterable x)))

(defn- entries-of [^Map m]
  (mapv (fn [^java.util.Map$Entry e] [(.getKey e) (.getValue e)]) (.entrySet m)))

(def ^:private reads
  "Functions of a map, a key that it may have and a number, that return data."
  {:get (fn [m k n] [(get m k) (get m k n) (get m n n) (get m "pid" n) (get m nil) (get m 'pid n)])
   :invoke (fn [m k n] [(m k) (m k n) (apply m [k]) (apply m [k n])])
   :arity (fn [m k n] (apply m [k n n]))
   :keyword (fn [m k n] [(:pid m) (:pid m n) (:my/cpu m n) (:c m) (:none m n) (k m) (k m n)])
   :destructuring (fn [{:keys [pid c d] :my/keys [cpu] :or {d 7} :as all} _ _] [pid c d cpu all])
   :arguments (fn [m _ _] ((fn [& {:keys [pid c]}] [pid c]) m))
   :contains (fn [m k n] [(contains? m k) (contains? m n) (contains? m nil)])
   :find (fn [m k n] [(find m k) (find m n) (some-> (find m k) key)])
   :seq (fn [m _ _] [(seq m) (keys m) (vals m) (map key m) (first m) (rest m) (count m)])
   :drop (fn [m _ n] [(drop n m) (nthrest m (mod n 4)) (nth (seq m) 0)])
   :iterator (fn [m _ _] [(iterator-seq (.iterator ^Iterable m)) (vec (eduction (map val) m))
                          (iterator-seq (.iterator ^Iterable (keys m)))
                          (iterator-seq (.iterator ^Iterable (vals m)))])
   :reduce (fn [m _ _] [(reduce conj [] m) (reduce (fn [a b] [a b]) m)
                        (transduce (map val) conj m) (into [] (take 2) m)])
   :reduce-kv (fn [m _ _] [(reduce-kv conj [] m)
                           (reduce-kv (fn [_ k v] (reduced [k v])) nil m)])
   :predicates (fn [m _ _] (mapv #(% m) [map? coll? associative? counted? ifn? seqable? record?
                                         sorted? reversible? empty? vector? sequential? fn?
                                         instance-of-map?]))
   :hash (fn [m _ _] [(hash m) (.hashCode ^Object m)])
   :in-collections (fn [m k _] [(get {m k} m) (get (into {} m) k) (contains? #{m} m)
                                (count (set [m (serialized m)])) (frequencies [m m])
                                (group-by k [m]) (sort-by str [m]) (distinct [m m])
                                (.get (HashMap. ^Map (hash-map m 1)) m)])
   :printed (fn [m _ n]
              [(pr-str m) (str m) (print-str m)
               (binding [*print-namespace-maps* true] (pr-str m))
               (binding [*print-length* (mod n 4)] (pr-str m))
               (binding [*print-level* (mod n 3)] (pr-str [[m]]))
               (binding [*print-meta* true] (pr-str (with-meta m {:n n})))
               (binding [*print-dup* true] (pr-str m))
               (with-out-str (pprint/pprint m))
               (binding [pprint/*print-right-margin* 20] (with-out-str (pprint/pprint [m])))
               (with-out-str (pprint/print-table [m]))
               (json/write-str (jsonable m))])
   :java (fn [^Map m k n]
           [(.get m k) (.get m n) (.getOrDefault m k n) (.getOrDefault m n n) (.size m) (.isEmpty m)
            (.containsKey m k) (.containsValue m (get m k)) (.containsValue m n)
            (vec (.keySet m)) (vec (.values m)) (entries-of m) (into {} (HashMap. ^Map m))
            (let [seen (atom [])]
              (.forEach m (reify java.util.function.BiConsumer
                            (accept [_ a b] (swap! seen conj [a b]))))
              @seen)])
   :java-put (fn [^Map m k n] (.put m k n))
   :java-remove (fn [^Map m k _] (.remove m k))
   :java-clear (fn [^Map m _ _] (.clear m))
   :java-put-all (fn [^Map m _ _] (.putAll m {1 2}))
   :meta (fn [m _ n] [(meta m) (meta (with-meta m {:n n})) (meta (with-meta m nil))
                      (meta (vary-meta m assoc :n n))])
   :serialized (fn [m _ _] (serialized m))
   :diff (fn [m k n] (data/diff (assoc m k n) m))
   :compare (fn [m _ _] (compare m {}))
   :deref (fn [m _ _] (deref m))
   :nth (fn [m _ _] (nth m 0))
   :name (fn [m _ _] (name m))})

(def ^:private changes
  "Functions of a map, a key that it may have and a number, that return a map."
  {:same (fn [m _ _] m)
   :assoc (fn [m k n] (assoc m k n))
   :assoc-many (fn [m k n] (assoc m k n :x 1 "text" 2 n nil))
   :assoc-in (fn [m _ n] (assoc-in m [:deep :x] n))
   :dissoc (fn [m k n] (dissoc m k n))
   :update (fn [m k n] (update m k (fn [old] [old n])))
   :merge (fn [m k n] (merge m {k n} nil {:y n}))
   :merge-into (fn [m k n] (merge {k n :z 1} m))
   :merge-with (fn [m k n] (merge-with vector m {k n}))
   :conj (fn [m k n] (conj m [k n] {:y 2} (first {:z 3})))
   :into (fn [m k n] (into m [[k n]]))
   :into-new (fn [m _ _] (into {} m))
   :select-keys (fn [m k _] (select-keys m [k :pid :none]))
   :rename (fn [m k _] (set/rename-keys m {k :renamed}))
   :transient (fn [m k n] (persistent! (dissoc! (assoc! (transient m) k n :t 1) :c)))
   :with-meta (fn [m _ n] (with-meta m {:n n}))
   :empty (fn [m k n] (assoc (empty m) k n))
   :walk (fn [m _ n] (walk/postwalk #(if (integer? %) (+ % n) %) m))
   :keywordize (fn [m _ _] (walk/keywordize-keys (walk/stringify-keys m)))
   :update-vals (fn [m _ n] (update-vals m #(vector % n)))
   :update-keys (fn [m _ n] (update-keys m #(vector % n)))
   :filter (fn [m k _] (into {} (remove (comp #{k} key)) m))
   :zipmap (fn [m _ _] (zipmap (keys m) (vals m)))
   :reduce-kv (fn [m _ n] (reduce-kv (fn [acc k v] (assoc acc k [v n])) m m))})

(defn- outcome
  "Returns what f returns or throws, as data."
  [f]
  (try
    (f)
    (catch Throwable e
      [::thrown (class e)]))) ; messages name the class of the map

(defn- same?
  "Returns true if two results are equal both ways, print the same, and have the same hash."
  [a b]
  (and (= (pr-str a) (pr-str b))
       (or (nan? a)
           (and (= a b) (= b a) (.equals ^Object a b) (.equals ^Object b a)
                (= (hash a) (hash b)) (= (.hashCode ^Object a) (.hashCode ^Object b))))))

(def ^:private operations
  (gen/vector (gen/tuple (gen/elements (keys changes)) (gen/elements (keys reads))
                         (gen/elements [:pid :my/cpu :c :d :none]) (gen/choose 0 5))
              1 12))

(defspec random-operations 400
  (prop/for-all [[t view] struct-bytes
                 operations operations]
                (let [m (small t view)]
                  (loop [a m, b (by-fields t view), [[change read k n] & more] operations]
                    (let [look #(outcome (fn [] ((reads read) % k n)))]
                      (cond
                        (not (and (same? a b) (same? (look a) (look b)) (same? (look m) (look m))))
                        false
                        (nil? change) true
                        :else
                        (let [f (changes change)
                              [a2 b2] [(outcome #(f a k n)) (outcome #(f b k n))]
                              ;; A change of the small map itself, and of the result so far.
                              same (same? (outcome #(f m k n))
                                          (outcome #(f (by-fields t view) k n)))]
                          (cond
                            (not same) false
                            (not (map? b2)) (same? a2 b2)
                            :else (recur a2 b2 more)))))))))

(deftest each-operation
  (testing "each operation gives the same with the small map and with the array map"
    (let [t [:struct {:packed true}
             [:pid :u32] [:my/cpu :s16be] [:c :u8] [:d :u8] [:e :u64]]
          view (bytes/->bytes (concat [1 2 3 4 0xff 0xfe 9 200] (repeat 8 0xff)))
          plain (by-fields t view)]
      (is (instance? StructMap (small t view)))
      (is (instance? PersistentArrayMap plain))
      (doseq [[op f] (concat reads changes), k [:pid :my/cpu :e :none], n [0 1 2 3]]
        (is (same? (outcome #(f plain k n)) (outcome #(f (small t view) k n))) [op k n])))))

(deftest same-interfaces
  (testing "a small map has the interfaces of an array map"
    (is (= #{IDrop}
           (set/difference (set (filter #(.isInterface ^Class %) (supers PersistentArrayMap)))
                           (set (supers StructMap)))))))

(deftest lookups-of-several-structs
  (testing "one place of the code looks a keyword up in structs of several types"
    (let [look (fn [m] [(:x m) (:x m :none)])
          one (small [:struct [:x :u8] [:y :u8]] (bytes/->bytes [1 2]))
          two (small [:struct [:y :u8] [:x :u8]] (bytes/->bytes [3 4]))
          three (small [:struct [:y :u8]] (bytes/->bytes [5]))]
      (dotimes [_ 3]
        (is (= [[1 1] [4 4] [nil :none] [1 1] [7 7] [nil :none] [4 4]]
               (map look [one two three one {:x 7} nil two])))))))

(deftest places-of-each-field
  (testing "a place of the code finds the field of each struct: another word, size, sign or order"
    (let [look (fn [m] (:x m))
          numbered (fn [prefix n]
                     (for [i (range n)] [(keyword (str prefix i)) :u8]))
          maps (for [t integers, before [0 1 8 16 23], after [0 1]
                     :let [size (+ before (long (type/size t)) after)]
                     :when (<= size 32)
                     fill [0 1 0x7f 0x80 0xff]
                     :let [t (into [:struct {:packed true}]
                                   (concat (numbered "before" before) [[:x t]]
                                           (numbered "after" after)))
                           view (bytes/->bytes (repeat size fill))]]
                 [(small t view) (by-fields t view)])]
      (is (< 200 (count (filter #(instance? StructMap (first %)) maps))))
      (dotimes [_ 2]
        (doseq [[m expected] maps]
          (is (= (get expected :x) (look m)) expected))))))

(deftest one-shape
  (testing "structs of one shape share what describes them; structs of another shape do not"
    (let [words #(.words (codec/codec %))
          t [:struct [:x :u32] [:y :u32]]]
      (is (identical? (words t) (words [:struct [:x :u32] [:y :u32]])))
      (doseq [other [[:struct [:x :s32] [:y :u32]]
                     [:struct [:x :u32be] [:y :u32]]
                     [:struct [:y :u32] [:x :u32]]
                     [:struct [:x :u32] [:z :u32]]
                     [:struct [:x :u32] [:y :u32] [:z :u32]]]]
        (is (not (identical? (words t) (words other))) other)))))

(deftest unused-bits
  (testing "a struct with unused bits that are set is an array map with them"
    (let [t [:struct [:a :u8] [:b :u16]]]
      (is (= {:a 1 :b 0x0302} (small t (bytes/->bytes [1 0 2 3]))))
      (is (instance? StructMap (small t (bytes/->bytes [1 0 2 3]))))
      (is (= {:a 1 :b 0x0302 :bpfmap/padding (bytes/->bytes [9])}
             (small t (bytes/->bytes [1 9 2 3])))))))

(deftest other-structs
  (testing "structs of more than 32 bytes, and of other fields than integers, are array maps"
    (let [calls (atom 0)
          m (small [:struct [:a [:via :u8 identity (fn [x] (swap! calls inc) x)]]]
                   (bytes/->bytes [1]))]
      (is (= {:a 1} m))
      (is (= [1 1 1] [(:a m) (:a m) @calls])))
    (doseq [[n class] {1 StructMap, 4 StructMap, 5 PersistentArrayMap}]
      (is (instance? class (small (into [:struct] (map #(vector (keyword (str "f" %)) :u64))
                                        (range n))
                                  (byte-array (* 8 n))))))
    (is (instance? StructMap (small [:struct [:a :ktime] [:b :ptr] [:c :port]] (byte-array 24))))
    (testing "and so are structs with an integer across two words"
      (let [t [:struct {:packed true} [:a :u32] [:b :u64] [:c :u64]]
            m (small t (bytes/->bytes (range 20)))]
        (is (instance? PersistentArrayMap m))
        (is (= (by-fields t (bytes/->bytes (range 20))) m))))))
