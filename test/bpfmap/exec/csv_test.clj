(ns bpfmap.exec.csv-test
  "Comma-separated values say everything: what is read back by the rules of bpfmap.exec.csv is the
  same data."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.cli.calling :refer [bpfmap edn-of id-of lines-of]]
            [bpfmap.core :as bpf]
            [bpfmap.exec.column-tree :as column-tree]
            [bpfmap.exec.csv :as csv]
            [bpfmap.exec.output :as output]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.edn-text :as edn-text]
            [bpfmap.impl.type.node :as node]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.data.csv :as data.csv]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.io Closeable)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

;; --- a reader, from the rules alone

(defn- parse
  "RFC 4180: rows of cells, `\"` doubled within quotes."
  [text]
  (loop [[c & more] text, quoted? false, cell [], row [], rows []]
    (cond
      (nil? c) (if (or (seq cell) (seq row)) (conj rows (conj row (apply str cell))) rows)
      quoted? (cond
                (not= \" c) (recur more true (conj cell c) row rows)
                (= \" (first more)) (recur (rest more) true (conj cell \") row rows)
                :else (recur more false cell row rows))
      (= \" c) (recur more true cell row rows)
      (= \, c) (recur more false [] (conj row (apply str cell)) rows)
      (= \newline c) (recur more false [] [] (conj rows (conj row (apply str cell))))
      :else (recur more false (conj cell c) row rows))))

(defn- read-cell
  "The data of a cell. Only of a name it has to be known that the column has names."
  [text names?]
  (cond
    (= "" text) nil
    (contains? #{"NaN" "Infinity" "-Infinity"} text) (Double/parseDouble text)
    (contains? #{"true" "false"} text) (parse-boolean text)
    (re-matches #"-?[0-9]+" text) (edn/read-string (if (parse-long text) text (str text "N")))
    (re-matches #"-?[0-9]+\.[0-9]+(E-?[0-9]+)?" text) (parse-double text)
    (re-matches #"0x[0-9a-f]{2}|[0-9a-f]{2}( [0-9a-f]{2})+" text) (bytes/->bytes text)
    (contains? (set "\"[{#\\") (first text)) (edn/read-string {:readers edn-text/readers} text)
    names? (keyword text)
    :else text))

(declare gather)

(defn- gather-fields [{:keys [fields]} cells names?]
  (let [[x cells] (reduce (fn [[found cells] [k tree]]
                            (let [[x cells] (gather tree cells (get names? k))]
                              [(assoc found k x) cells]))
                          [{} cells] fields)]
    [x cells]))

(defn- gather
  "The value in the columns of a tree, and the cells that are left."
  [{:keys [fields of leaves] :as tree} cells names?]
  (let [[mine others] (split-at leaves cells)]
    (cond
      (not (or fields of)) [(read-cell (first mine) names?) others]
      (every? #{""} mine) [nil others]
      fields [(first (gather-fields tree mine names?)) others]
      :else (let [parts (partition (:leaves of) mine)
                  n (count (reverse (drop-while #(every? #{""} %) (reverse parts))))]
              [(mapv #(first (gather of % (get names? :of))) (take n parts)) others]))))

(defn- gather-side
  "The key or value in the columns of a tree: a collection in the first of them is all of it."
  [{:keys [fields of leaves] :as tree} cells names?]
  (let [whole (when (or fields of) (read-cell (first cells) false))]
    (if (coll? whole)
      [whole (drop leaves cells)]
      (gather tree cells names?))))

(defn- names-of
  "Where enums are in a node: true, or nested as its fields are."
  [{:keys [kind members element]}]
  (case kind
    :enum true
    :array {:of (names-of element)}
    (:struct :union) (into {} (mapcat (fn [{:keys [name node bits]}]
                                        (cond name [[name (names-of node)]]
                                              bits nil
                                              :else (names-of node))))
                           members)
    nil))

(defn- same?
  "Equal, and of doubles the same bits."
  [a b]
  (cond
    (and (float? a) (float? b)) (.equals (Double/valueOf (double a)) (Double/valueOf (double b)))
    (and (map? a) (map? b)) (and (= (set (keys a)) (set (keys b)))
                                 (every? (fn [[k v]] (same? v (get b k))) a))
    (and (vector? a) (vector? b)) (and (= (count a) (count b)) (every? true? (map same? a b)))
    :else (= a b)))

(defn- printed [columns rows]
  (with-out-str (csv/print-rows columns rows)))

(defn- read-back
  "Rows of one column `x` with a tree, printed and read by two readers, which agree."
  [tree names? xs]
  (let [text (printed [{:title "X" :of :x :tree tree}] (map #(hash-map :x %) xs))
        [heading & rows :as all] (parse text)]
    (is (= all (map vec (data.csv/read-csv text))))
    (is (= (count heading) (:leaves tree)))
    (is (apply distinct? heading))
    (map #(first (gather-side tree % names?)) rows)))

;; --- every type, every value

(def ^:private typed-bytes
  (gen/let [t types/a-type
            size (gen/return (type/size t))
            all (gen/vector (gen/vector (gen/frequency [[3 (gen/choose 0 255)] [1 (gen/return 0)]])
                                        size) 0 4)]
    [t (map #(byte-array (map unchecked-byte %)) all)]))

(defspec typed-values-round-trip 400
  (prop/for-all [[t arrays] typed-bytes]
                (let [c (codec/codec t)
                      tree (:value (column-tree/of-entries {:type :hash :value t} nil))
                      xs (map #(.decode c (MemorySegment/ofArray ^bytes %) 0) arrays)]
                  (every? true?
                          (map same? xs (read-back tree (names-of (node/node t nil [])) xs))))))

(def ^:private any-text
  (gen/fmap str/join
            (gen/vector (gen/one-of [gen/char
                                     (gen/elements ["\u001b" "\u202e" "\"" "\\" "\\u000a" "\n" ","
                                                    "-" "=" " " ":" "0" "a" "é" "😀"])]))))

(def ^:private any-data
  (gen/recursive-gen #(gen/one-of [(gen/vector %) (gen/map (gen/fmap keyword any-text) %)])
                     (gen/one-of [any-text gen/large-integer gen/size-bounded-bigint gen/double
                                  gen/boolean gen/char
                                  (gen/fmap bytes/wrap (gen/not-empty gen/bytes))
                                  (gen/return nil)])))

(defn- normal
  "Integers as a reader has them."
  [x]
  (cond (integer? x) (if (<= Long/MIN_VALUE x Long/MAX_VALUE) (long x) (bigint x))
        (map? x) (update-vals x normal)
        (vector? x) (mapv normal x)
        :else x))

(defspec any-data-round-trips 500
  (prop/for-all [x any-data]
                (same? (normal x) (normal (first (read-back column-tree/leaf false [x]))))))

(defspec names-in-cells 300
  (prop/for-all [text any-text]
                (let [k (keyword text)]
                  (= [k] (read-back column-tree/leaf true [k])))))

(def ^:private misfits
  "Values that a tree of `{:a, :b {:c}, :d [2]}` need not have room for."
  (let [leaf (gen/one-of [(gen/return nil) gen/small-integer any-text (gen/return [])
                          (gen/return [1]) (gen/return {:x 1})])]
    (gen/one-of [(gen/let [a leaf c leaf d (gen/vector leaf 0 4)]
                   {:a a :b {:c c} :d d})
                 (gen/map (gen/elements [:a :b :c :bpfmap/padding]) leaf)])))

(defspec misfits-round-trip 500
  (prop/for-all [x misfits]
                (let [tree {:fields [[:a column-tree/leaf]
                                     [:b {:fields [[:c column-tree/leaf]] :leaves 1}]
                                     [:d {:of column-tree/leaf :count 2 :leaves 2}]]
                            :leaves 4}]
                  (= [x] (read-back tree nil [x])))))

(deftest distinct-cells
  (testing "different values have different cells"
    (are [x text] (= text (csv/cell x))
      nil ""
      "" "\"\""
      "-" "-"
      "two\nlines" "\"two\\nlines\""
      "two\\u000alines" "two\\u000alines"
      "\u001b" "\"\\u001b\""
      "\\a" "\"\\\\a\""
      \a "\\a"
      "12" "\"12\""
      12 "12"
      18446744073709551615N "18446744073709551615"
      "true" "\"true\""
      true "true"
      "10.0.0.1" "10.0.0.1"
      "::1" "::1"
      "0a ff" "\"0a ff\""
      (bytes/->bytes [10 255]) "0a ff"
      (bytes/->bytes [10]) "0x0a"
      "=1+1" "\"=1+1\""
      "-1+1" "\"-1+1\""
      " a" "\" a\""
      ##NaN "NaN"
      "NaN" "\"NaN\""
      ##-Inf "-Infinity"
      :NEW "NEW"
      (keyword "a b") "a b"
      (keyword "7") "#bpfmap/keyword \"7\""
      [1 "a"] "[1 \"a\"]")))

(deftest quoted-field-names
  (testing "quotes unusual field names"
    (is (= "x.a,\"x.\"\"pick.turn\"\"\",\"x.\"\"b c\"\"\"\n1,2,3\n"
           (printed [{:title "X" :of :x
                      :tree (:value (column-tree/of-entries {:type :hash
                                                             :value [:struct [:a :u8]
                                                                     [(keyword "pick.turn") :u8]
                                                                     [(keyword "b c") :u8]]} nil))}]
                    [{:x {:a 1 (keyword "pick.turn") 2 (keyword "b c") 3}}])))))

;; --- on the command line

(defn- csv-entries
  "The entries of an open map as the command line prints them as comma-separated values, read back."
  [m & args]
  (let [spec (bpf/spec m)
        trees (column-tree/of-entries spec
                                      (when (str/includes? (str (:type spec)) "percpu")
                                        (count (val (first (bpf/snapshot m))))))
        names (fn [side] (let [n (names-of (node/node (side spec) (:types spec) []))]
                           (if (and (= :value side) (str/includes? (str (:type spec)) "percpu"))
                             {:of n}
                             n)))
        {:keys [exit out]} (apply bpfmap "dump" (id-of m) "--csv" args)]
    (is (= 0 exit))
    (for [row (rest (parse out))
          :let [[k cells] (gather-side (:key trees) row (names :key))
                [v none] (gather-side (:value trees) cells (names :value))]]
      (do (is (empty? none))
          [k v]))))

(kernel-test ^{:needs [[:kernel :floats]]} dump-csv-every-map
  (testing "dump prints the same data as CSV for every kind of map"
    (doseq [spec [{:type :hash :key [:struct [:src :ipv4] [:comm [:string 8]]]
                   :value [:struct [:n :u64] [:state [:enum :u32 {:NEW 0 :OLD 1}]]
                           [:a [:array [:struct [:x :u8] [:y :f32]] 2]]]
                   :contents {{:src "10.0.0.1" :comm ""} {:n 18446744073709551615N :state :OLD
                                                          :a [{:x 1 :y 0.5} {:x 2 :y ##Inf}]}
                              {:src "10.0.0.2" :comm "-"} {:n 0 :state 7
                                                           :a [{:x 0 :y -0.0} {:x 0 :y 0.0}]}
                              {:src "10.0.0.3" :comm "a\nb"} {:n 1 :state :NEW
                                                              :a [{:x 0 :y 0.0} {:x 0 :y 0.0}]}}}
                  {:type :lru-hash :key [:string 8] :value :bool
                   :contents {"\\u000a" true, "\n" false}}
                  {:type :array :value [:struct [:b [:bytes 2]] [:c :char] [:e [:array :u8 0]]]
                   :contents {1 {:b [1 2] :c \" :e []}}}
                  {:type :lpm-trie :key [:prefix :ipv6] :value :mac :flags #{:no-prealloc}
                   :contents {"2001:db8::/32" "02:00:00:00:00:01"}}
                  {:type :hash :key-size 3 :value-size 1 :contents {[1 2 3] [4]}}
                  {:type :percpu-hash :key :u32 :value [:struct [:n :u32] [:comm [:string 4]]]}]]
      (with-open [^Closeable m (bpf/create (assoc spec :max-entries 8 :name "csv"))]
        (when (= :percpu-hash (:type spec)) (bpf/put! m 1 {:n 5 :comm ""} {:cpus :all}))
        (testing spec
          (is (= (bpf/snapshot m) (into {} (csv-entries m))))
          (is (= (bpf/snapshot m) (into {} (csv-entries m "--stream"))))
          (is (= (set (map (juxt :key :value) (edn-of "dump" (id-of m))))
                 (set (csv-entries m)))))))))

(kernel-test columns-from-types
  (testing "the columns depend only on the types"
    (let [heading (fn [m & args] (first (apply lines-of "dump" (id-of m) "--csv" args)))]
      (with-open [^Closeable m (bpf/create {:type :hash :key [:struct [:a :u8] [:b [:array :u8 2]]]
                                            :value :u64 :max-entries 4})
                  ^Closeable stacks (bpf/create {:type :stack-trace :value-size 1016
                                                 :max-entries 4})
                  ^Closeable per-cpu (bpf/create {:type :percpu-hash :key :u8 :value :u8
                                                  :max-entries 4})]
        (is (= "key.a,key.b.0,key.b.1,value" (heading m) (heading m "--stream")))
        (is (= "key.a,key.b.0,key.b.1" (heading m "--keys") (heading m "--keys" "--stream")))
        (is (= (str/join "," (cons "key" (map #(str "value." %) (range 127)))) (heading stacks)))
        (is (= "key,value" (heading per-cpu "--cpus" "sum") (heading per-cpu "--cpus" "0")))
        (bpf/put! m {:a 1 :b [2 3]} 4)
        (is (= "key.a,key.b.0,key.b.1,value" (heading m)))
        (is (= ["change,key.a,key.b.0,key.b.1,old,new" "added,1,2,3,,4"]
               (with-open
                [^Closeable empty-one (bpf/create {:type :hash
                                                   :key [:struct [:a :u8] [:b [:array :u8 2]]]
                                                   :value :u64 :max-entries 4})]
                 (lines-of "diff" (id-of empty-one) (id-of m) "--csv"))))
        (is (= ["change,key.a,key.b.0,key.b.1,old,new,per-second"]
               (lines-of "diff" (id-of m) "--seconds" "0.01" "--csv")))
        (is (= ["a  b  VALUE"] (lines-of "dump" (id-of m) "--where" "value=5")))))))

(deftest stack-frames-round-trip
  (testing "stacks of any depth keep their frames"
    (let [tree (:value (column-tree/of-entries {:type :stack-trace :value [:array :u64 132]} nil))
          stacks [(vec (range 1 79)) (vec (range 1 133)) [] [18446744073709551615N]]]
      (is (= stacks (read-back tree nil stacks))))))

(deftest streamed-rows
  (testing "prints each row as it arrives"
    (let [kept (volatile! 0)
          tree {:fields [[:a column-tree/leaf] [:b column-tree/leaf]] :leaves 2}
          out (java.io.StringWriter.)]
      (binding [*out* out]
        (csv/print-rows [{:title "X" :of :x :tree tree}]
                        (eduction (map (fn [i]
                                         (vswap! kept max (- i (count (str/split-lines (str out)))))
                                         {:x {:a i :b i}}))
                                  (range 2000))))
      (is (<= @kept 1) "a row is out before the next one is read"))))

(deftest table-columns
  (testing "a table has the fields of all rows"
    (let [titles (fn [rows] (map :title (output/columns [:key :value] rows)))]
      (is (= ["a" "b" "VALUE"] (titles [{:key {:a 1} :value 1} {:key {:a 1 :b 2} :value 1}])))
      (is (= ["KEY" "VALUE"] (titles [{:key {:a 1} :value 1} {:key (bytes/->bytes [1]) :value 1}])))
      (is (= ["KEY" "ifindex" "program.program-id"]
             (titles [{:key 1 :value {:ifindex 1 :program nil}}
                      {:key 2 :value {:ifindex 1 :program {:program-id 7}}}]))))))

(defn- read-rows
  "Rows of cells that are not spread over columns, by the names above them."
  [text]
  (let [[names & rows] (parse text)]
    (for [row rows]
      (zipmap names (map #(read-cell % false) row)))))

(defn- without-names
  "Data with texts for names, of which a cell does not say that they are names."
  [x]
  (if (keyword? x) (subs (str x) 1) x))

(defn- same-rows
  "Rows as data by the names of the columns of their table."
  [rows]
  (for [row rows]
    (into {} (map (fn [[k v]] [(str/replace (subs (str k) 1) "?" "") (without-names v)])) row)))

(kernel-test list-features-hist-csv
  (testing "list, features and hist print the same data as CSV"
    (with-open [^Closeable m (bpf/create {:name "csv" :type :hash :key :u32 :value :u32
                                          :max-entries 8 :flags #{:no-prealloc}})]
      (bpf/put-all! m {0 5, 1 7})
      (let [pins [(str (fixture/new-pin) "_a b,c") (str (fixture/new-pin) "_\"quoted\"")]]
        (try
          (run! #(bpf/pin! m %) pins)
          (let [terms ["--where" (str "id=" (id-of m))]
                [row :as rows] (apply edn-of "list" terms)
                [found] (read-rows (:out (apply bpfmap "list" "--csv" terms)))]
            (is (= 1 (count rows)))
            (is (= 2 (count (:pinned row))))
            (is (seq (:held row)))
            (is (= #{:no-prealloc} (:flags row)))
            (is (= (select-keys (first (same-rows rows)) (keys found))
                   (into {} (remove (comp nil? val)) found)))
            (is (every? #(contains? found %) ["held" "used-by" "pinned" "flags"])))
          (finally (run! #(io/delete-file % true) pins))))
      (is (= [[nil 0 1 5] [nil 2 3 7]]
             (map (juxt #(% "title") #(% "from") #(% "to") #(% "count"))
                  (read-rows (:out (bpfmap "hist" (id-of m) "--csv")))))))
    (let [rows (edn-of "features" "--where" "feature=operation" "--where" "of=hash")]
      (is (= (same-rows (map #(merge {:since nil :why nil} %) rows))
             (read-rows (:out (bpfmap "features" "--where" "feature=operation" "--where" "of=hash"
                                      "--csv"))))))))
