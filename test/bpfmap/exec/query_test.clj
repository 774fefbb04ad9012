(ns bpfmap.exec.query-test
  "Conditions and orders on rows, without a kernel."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.query :as query]
            [bpfmap.fixture :as fixture]
            [bpfmap.impl.nearest :as nearest]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop]))

(set! *warn-on-reflection* true)

(defn- chosen [rows & conditions]
  (query/rows {:where (mapv query/condition conditions)} rows))

(def ^:private flows
  [{:key {:src "10.0.0.1" :port 443} :value {:packets 10 :bytes 1000 :state :NEW}}
   {:key {:src "10.0.0.2" :port 80} :value {:packets 200 :bytes 90 :state :OLD}}
   {:key {:src "10.1.0.1" :port 53} :value {:packets 3 :bytes 18446744073709551615N :state :NEW}}])

(defn- ports [& conditions]
  (map (comp :port :key) (apply chosen flows conditions)))

(deftest condition-in-text
  (testing "a condition in text is a field, an operator and a value"
    (are [condition found] (= found (ports condition))
      "packets>10" [80]
      "packets>=10" [443 80]
      "packets<10" [53]
      "packets<=10" [443 53]
      "packets=10" [443]
      "packets=0xa" [443]
      "packets=10.0" [443]
      "packets!=10" [80 53]
      "src=10.0.0.1" [443]
      "src~^10\\.0\\." [443 80]
      "src!~^10\\.0\\." [53]
      "state=NEW" [443 53]
      "key.port>79" [443 80]
      "value.bytes>18446744073709551614" [53]
      " packets > 10 " [80]
      "src>10.0.0.9" [53]
      "src<10.0.0.10" [443 80]
      "packets==10" [443]
      "packets>0.01K" [80]
      "packets>=0.2KB" [80]
      "bytes<1k" [443 80]
      "bytes<1kB" [80]
      "bytes>=15Ei" [53]
      "bytes>15.9E" [53]
      "src==10.0.0.1" [443]
      "src=\"10.0.0.1\"" [443]
      "src='10.0.0.1'" [443]
      "src==\"10.0.0.1\"" [443]
      "src=10.0.0.0/24" [443 80]
      "src=10.0.0.7/24" [443 80]
      "src=10.0.0.0/9" [443 80 53]
      "src!=10.0.0.0/24" [53]
      "src=10.0.0.1/32" [443]
      "src=~^10\\.0" [443 80]
      "\"packets\">10" [80]
      "value.\"packets\">10" [80]
      "packets=nil" []
      "packets!=-" [443 80 53]
      "key={:src \"10.0.0.2\" :port 80}" [80]
      "key={src \"10.0.0.2\" port 80}" [80])))

(deftest incomparable-values
  (testing "a comparison of different kinds is an error with a hint"
    (are [condition message] (= message (:message (fixture/error-of (ports condition))))
      "packets=ten" "packets must be compared with a number, such as 10, 0x1f, 64K or 5ms, got ten"
      "packets>1%" "packets must be compared with a number, such as 10, 0x1f, 64K or 5ms, got 1%"
      "packets>1q" "packets must be compared with a number, such as 10, 0x1f, 64K or 5ms, got 1q"
      "packets>1m" "packets must be compared with a number, such as 10, 0x1f, 64K or 5ms, got 1m"
      "packets>10.0.0.1"
      "packets must be compared with a number, such as 10, 0x1f, 64K or 5ms, got 10.0.0.1"
      "key=443" "key must be compared with a map in EDN, got 443"
      "key>443" "key has no order: > is for numbers, names, addresses, text and bytes"
      [:= :packets true]
      "packets must be compared with a number, such as 10, 0x1f, 64K or 5ms, got true")
    (are [condition message hint]
         (= [message hint]
            ((juxt :message :hint) (fixture/error-of (query/condition condition))))
      "packets=>5" "must have one operator: = == != < <= > >= ~ =~ or !~"
      "put a value that begins with an operator in double quotes"
      "packets===5" "must have one operator: = == != < <= > >= ~ =~ or !~"
      "put a value that begins with an operator in double quotes"
      "packets>1 && bytes>2" "must be one condition"
      "repeat --where, or use '[:or [:= a 1] [:> b 2]]'"
      "packets>1 or bytes>2" "must be one condition"
      "repeat --where, or use '[:or [:= a 1] [:> b 2]]'")))

(deftest condition-as-data
  (testing "conditions as data can be combined with and, or and not"
    (are [condition found] (= found (ports condition))
      [:> :packets 10] [80]
      [:= "key.src" "10.0.0.1"] [443]
      [:= [:key :src] "10.0.0.1"] [443]
      [:= 'state :OLD] [80]
      [:= 'state 'OLD] [80]
      "[:= state OLD]" [80]
      "[:= src \"10.0.0.2\"]" [80]
      [:not= :port 53] [443 80]
      [:or [:= :port 53] [:> :packets 100]] [80 53]
      [:and [:> :port 50] [:< :port 100]] [80 53]
      [:not [:matches :src "^10\\.0"]] [53]
      [:matches :src #"2$"] [80]
      "[:or [:= port 53] [:= :port 80]]" [80 53]
      [:and] [443 80 53]
      [:or] [])))

(deftest fields-used-by-query
  (testing "finds the fields that conditions and a sort order use"
    (let [of (fields/row [["id" {:kind :number}] ["memlock" {:kind :number}] ["name" {:kind :text}]
                          ["held" {:kind :list :of (fields/row [["pid" {:kind :number}]])}]]
                         {"memory" "memlock" "held-by" "held"})
          used (fn [order & conditions]
                 (query/fields-used {:where (mapv query/condition conditions)
                                     :sort (some-> order query/column) :fields of}))]
      (are [expected order conditions] (= expected (apply used order conditions))
        #{} nil []
        #{"id"} "-id" []
        #{"memlock"} "memory" []
        #{"held"} nil ["held-by.pid=1"]
        #{"id" "memlock" "name"} "name" ["id>1" "memory<5"])
      (testing "in conditions of conditions"
        (is (= #{"id" "name" "memlock"}
               (query/fields-used {:fields of
                                   :where [[:or [:> ["id"] "1"]
                                            [:not
                                             [:and [:= ["name"] "x"] [:> ["memory"] "2"]]]]]}))))
      (testing "of rows whose fields are not known, as they are written"
        (is (= #{"a" "b"}
               (query/fields-used {:where [(query/condition "a.x=1")]
                                   :sort (query/column "b")})))))))

(deftest several-conditions
  (testing "a row must match all conditions"
    (is (= [443] (ports "packets>5" "bytes>100")))
    (is (= [443 80 53] (ports)))))

(deftest condition-on-a-list
  (testing "a condition on a list matches if one item matches"
    (let [rows [{:id 1 :held [{:pid 7 :command "agent"} {:pid 8 :command "java"}]
                 :pinned ["/sys/fs/bpf/a"] :flags #{:mmapable}}
                {:id 2 :held [] :pinned [] :flags #{}}]]
      (are [condition ids] (= ids (map :id (chosen rows condition)))
        "held.command=java" [1]
        "held.1.command=java" [1]
        "held.0.command=java" []
        "held.pid>7" [1]
        "held=java" [1]
        "held=8" [1]
        "held=java[8]" [1]
        "held~^java" [1]
        "held~^java.8.$" [1]
        "held=bash" []
        "held!=java" [2]
        "held.command!=java" [2]
        "held=-" [2]
        "held=nil" [2]
        "pinned~/bpf/" [1]
        "flags=mmapable" [1]
        "flags=-" [2]))))

(deftest field-name-precedence
  (testing "looks up a name in the columns first, then the value, then the key"
    (is (= [5] (query/values-at {:packets 5 :value {:packets 6} :key {:packets 7}} ["packets"])))
    (is (= [6] (query/values-at {:value {:packets 6} :key {:packets 7}} ["packets"])))
    (is (= [7] (query/values-at {:value {:bytes 6} :key {:packets 7}} ["packets"])))
    (is (= [3 4] (query/values-at {:value [{:n 3} {:n 4}]} ["n"])))
    (is (= [true] (query/values-at {:frozen true} ["frozen"])))))

(deftest bytes-in-hexadecimal
  (testing "conditions compare bytes in hexadecimal"
    (let [rows [{:key (bytes/->bytes [1 2]) :value true}
                {:key (bytes/->bytes [10 255]) :value false}]]
      (are [condition values] (= values (map :value (chosen rows condition)))
        "key=01 02" [true]
        "key=0aff" [false]
        "key>01 02" [false]
        "key~^0a" [false]
        "value=yes" [true]
        "value=false" [false]))))

(deftest unknown-fields
  (testing "an unknown field is an error that lists the fields"
    (is
     (=
      "Unknown field foo: the fields are key.src, key.port, value.packets, value.bytes, value.state"
      (:message (fixture/error-of (ports "foo=1")))))
    (is (= :usage
           (:bpfmap/error (fixture/error-of (query/rows {:sort (query/column "foo")} flows)))))
    (is (= [] (chosen [] "foo=1")) "of no rows nobody knows")))

(deftest malformed-conditions
  (testing "a malformed condition is an error with the reason"
    (are [condition message hint]
         (= [message hint]
            ((juxt :message :hint) (fixture/error-of (query/condition condition))))
      "a~(" "must have a valid regular expression" "Unclosed group"
      [:= :a] "must have a field and a value after :=" nil
      [:not] "must have one condition after :not" nil
      [:= {} 1] "must have a field after :=" nil
      [:= "a..b" 1] "must have a field after :=" nil)
    (doseq [condition ["" "bytes" "bytes 1000" ">5" "[" "[:foo :a 1]" "[]" [:eval "(+ 1 2)"] nil 7
                       {:a 1}]]
      (testing (pr-str condition)
        (let [{:keys [message hint]} (fixture/error-of (query/condition condition))]
          (is (= "must be a condition" message))
          (is (str/starts-with? hint "such as 'bytes>1000'")))))))

(deftest no-evaluation
  (testing "never evaluates a condition"
    (is (= [] (chosen [{:key 1 :value "x"}] "value=#=(System/exit 1)")))
    (are [text] (= :usage (:bpfmap/error (fixture/error-of (chosen [{:key 1 :value {:a 1}}] text))))
      "key=#=(System/exit 1)"
      "key=(+ 0 1)"
      "value={:a #=(System/exit 1)}"
      "value=#=(System/exit 1)")))

(deftest sort-by-any-column
  (testing "sorts rows by any column"
    (let [by (fn [column] (map (comp :port :key) (query/rows {:sort (query/column column)} flows)))]
      (is (= [80 443 53] (by "bytes")))
      (is (= [53 443 80] (by "-bytes") (by :-bytes) (by '-value.bytes)))
      (is (= [443 80 53] (by "src")))
      (is (= [53 443]
             (map (comp :port :key) (query/rows {:sort (query/column "-bytes") :limit 2} flows))))
      (is (nil? (query/column "")))
      (is (nil? (query/column "-")))
      (is (nil? (query/column 7))))))

(deftest limit-stops-reading
  (testing "a limit stops the reading"
    (let [read (volatile! 0)]
      (is (= [0 1 2]
             (map :key
                  (query/rows {:limit 3}
                              (eduction (map (fn [i] (vswap! read inc) {:key i})) (range 100))))))
      (is (= 3 @read)))
    (is (= [] (query/rows {:limit 0} flows)))))

(deftest limit-of-sorted-rows
  (testing "a limit keeps the first rows in sorted order"
    (let [xs (shuffle (mapcat #(repeat 3 %) (range 50)))
          rows (map-indexed (fn [i x] {:id i :n x}) xs)]
      (doseq [n [0 1 7 150 1000 nil]
              column ["n" "-n"]
              :let [all (sort-by :n (if (= "n" column) compare #(compare %2 %1)) rows)]]
        (is (= (if n (take n all) all)
               (query/rows {:sort (query/column column) :limit n} rows)))))))

(def ^:private anything
  (gen/one-of [gen/small-integer gen/large-integer gen/size-bounded-bigint gen/double
               gen/string-ascii gen/keyword gen/boolean
               (gen/return nil) gen/char-ascii (gen/fmap bytes/wrap gen/bytes)
               (gen/vector gen/small-integer)
               (gen/map gen/keyword gen/small-integer)]))

(defspec total-order-of-values 300
  (prop/for-all [[a b c] (gen/tuple anything anything anything)]
                (and (= (Integer/signum (query/order a b)) (- (Integer/signum (query/order b a))))
                     (zero? (query/order a a))
                     (or (pos? (query/order a b))
                         (pos? (query/order b c))
                         (not (pos? (query/order a c)))))))

;; --- fields that are known

(def ^:private typed
  "The fields of entries whose key and value have one of each kind."
  (fields/of-entries
   {:type :hash
    :key [:struct [:src :ipv4] [:dst :ipv6] [:route [:prefix :ipv4]] [:mac :mac]]
    :value [:struct [:n :u64] [:ok :bool] [:state [:enum :u32 {:NEW 1 :OLD 2}]] [:comm [:string 16]]
            [:raw [:bytes 2]]
            [:c :char] [:delta_us :u64] [:at :ktime] [:counts [:array :u32 2]]
            [:parts [:array [:struct [:p :u8] [:q :u8]] 2]] [:inner [:struct [:n2 :u8]]]
            [:both [:struct [:x :u8] [:y :u8]]]]}
   nil))

(def ^:private typed-rows
  [{:key {:src "10.0.0.1" :dst "2001:db8::1" :route "10.0.0.0/8" :mac "00:1b:21:0a:0b:0c"}
    :value {:n 1500 :ok true :state :NEW :comm "curl" :raw (bytes/->bytes [1 2]) :c \a
            :delta_us 3000 :at 5000000 :counts [1 2] :parts [{:p 1 :q 2} {:p 3 :q 4}]
            :inner {:n2 1} :both {:x 1 :y 2}}}
   {:key {:src "10.0.1.1" :dst "2001:db8:1::1"
          :route {:prefixlen 8 :data (bytes/->bytes [11 1 2 3])} :mac "00:1b:21:0a:0b:0d"}
    :value {:n 2000 :ok false :state 7 :comm (bytes/->bytes (repeat 16 65))
            :raw (bytes/->bytes [10 255]) :c \b :delta_us 1000 :at 1 :counts [3 4]
            :parts [{:p 5 :q 6} {:p 7 :q 8}]
            :inner {:n2 2} :both {:x 3 :y 4}}}])

(defn- typed-found [condition]
  (mapv #({1500 1 2000 2} (:n (:value %)))
        (query/rows {:where [(query/condition condition)] :fields typed} typed-rows)))

(deftest typed-field-comparison
  (testing "compares a field according to its type"
    (are [condition found] (= found (typed-found condition))
      "n>1.6K" [2] ; 1638
      "n>1.6KB" [2]
      "n<2kB" [1]
      "n>=1Ki" [1 2]
      "n=0x5dc" [1]
      "VALUE.N=1500" [1]
      "N=1500" [1]
      "ok=true" [1]
      "ok=no" [2]
      "state=NEW" [1]
      "state=1" [1]
      "state=7" [2]
      "state=OLD" []
      "state>=OLD" [2]
      "state<2" [1]
      "state!=1" [2]
      "comm=curl" [1]
      "comm==\"curl\"" [1]
      "comm~^cu" [1]
      "raw=0102" [1]
      "raw>01 02" [2]
      "c=a" [1]
      "delta_us>2ms" [1]
      "delta_us=1ms" [2]
      "delta_us>=1000us" [1 2]
      "at>1ms" [1]
      "at=1ns" [2]
      "src=10.0.0.0/24" [1]
      "src=10.0.0.0/16" [1 2]
      "dst=2001:db8::/48" [1]
      "dst=2001:0db8:0:0:0:0:0:1" [1]
      "route=10.0.0.0/8" [1]
      "route=10.1.2.3" [1]
      "route=11.0.0.0/8" [2]
      "route=11.9.9.9" [2]
      "mac=00:1B:21:0A:0B:0C" [1]
      "counts=4" [2]
      "counts>1" [1 2]
      "counts.0=1" [1]
      "parts=7" [2]
      "parts.p=3" [1]
      "parts.1.p=3" [1]
      "parts.0.p=3" []
      "parts={p 5 q 6}" [2]
      "inner=2" [2]
      "both={x 3 y 4}" [2]
      "n=nil" []
      [:= :state :NEW] [1]
      [:= :state 'NEW] [1]
      [:= [:value :n] 1500] [1]
      [:= :both {:x 1 :y 2}] [1])))

(deftest typed-field-errors
  (testing "reports an invalid comparison even if there are no rows"
    (are [condition message] (= [message message]
                                (for [rows [typed-rows []]]
                                  (:message
                                   (fixture/error-of
                                     (query/rows {:where [(query/condition condition)]
                                                  :fields typed}
                                                 rows)))))
      "n=many" "value.n must be compared with a number, such as 10, 0x1f, 64K or 5ms, got many"
      "ok=maybe" "value.ok must be compared with true or false, got maybe"
      "ok>false" "value.ok has no order: > is for numbers, names, addresses, text and bytes"
      "state=NEWW"
      "value.state must be compared with one of its names or their numbers, got NEWW: did you mean NEW?"
      "state=xyzzy"
      "value.state must be compared with one of its names or their numbers, got xyzzy: the names are NEW, OLD"
      "src=curl"
      "key.src must be compared with an address or a prefix, such as 10.0.0.1 or 10.0.0.0/24, got curl"
      "src=::1"
      "key.src must be compared with an address or a prefix, such as 10.0.0.1 or 10.0.0.0/24, got ::1"
      "src=10.0.0"
      "key.src must be compared with an address or a prefix, such as 10.0.0.1 or 10.0.0.0/24, got 10.0.0"
      "dst=10.0.0.1"
      "key.dst must be compared with an address or a prefix, such as 2001:db8::1 or 2001:db8::/32, got 10.0.0.1"
      "mac=7" "key.mac must be compared with a MAC address, such as 00:1b:21:0a:0b:0c, got 7"
      "raw=xyz" "value.raw must be compared with bytes in hexadecimal, such as '01 00', got xyz"
      "both=3"
      "value.both must be compared with a map in EDN, got 3: name a field of it, such as value.both.x or value.both.y"
      "counts=x" "value.counts must be compared with a number, such as 10, 0x1f, 64K or 5ms, got x"
      [:= :comm 5] "value.comm must be compared with text, got 5"
      "stat=1" "Unknown field stat: did you mean value.state?"
      "xyzzy=1"
      (str
       "Unknown field xyzzy: the fields are key.src, key.dst, key.route, key.mac, value.n, "
       "value.ok, value.state, value.comm, … (19 in all; --edn shows them)"))
    (is (= "Unknown field portt: did you mean key.port?"
           (:message (fixture/error-of (query/rows {:sort (query/column "portt")
                                                    :fields (fields/of-entries
                                                             {:type :hash
                                                              :key [:struct [:port :port]]
                                                              :value :u8} nil)}
                                                   [])))))))

(deftest kernel-spelling-of-names
  (testing "accepts names in the spelling of the kernel"
    (let [rows [{:type :percpu-hash :flags #{:no-prealloc}} {:type :hash :flags #{}}]]
      (are [condition n] (= n (count (chosen rows condition)))
        "type=percpu-hash" 1
        "type=percpu_hash" 1
        "type=BPF_MAP_TYPE_PERCPU_HASH" 1
        "type=PERCPU_HASH" 1
        "flags=no_prealloc" 1
        "flags=BPF_F_NO_PREALLOC" 1
        "type!=percpu_hash" 1))
    (is (= [] (chosen [{:state :NEW_ONE}] "state=new_one")) "names of other programs stay as they are")))

(deftest odd-field-names
  (testing "a field name can have any character"
    (let [rows [{:key 1
                 :value {(keyword "pick.turn") 5 :pick {:turn 6 :other 7} (keyword "a b") 8
                         (keyword "a=b") 9 (keyword "q\"t") 10}}]
          fields (fields/row [["key" {:kind :number}]
                              ["value"
                               (fields/row (into [["pick"
                                                   (fields/row
                                                    [["turn" {:kind :number}]
                                                     ["other" {:kind :number}]])]]
                                                 (for [k ["pick.turn" "a b" "a=b" "q\"t"]]
                                                   [k {:kind :number}])))]])]
      (doseq [fields [nil fields]
              [path n] {"pick.turn" 5, "value.pick.turn" 5, "\"pick.turn\"" 5
                        "value.\"pick.turn\"" 5, "\"pick\".\"turn\"" 6, "value.\"pick\".turn" 6
                        "pick.other" 7, "\"a b\"" 8, "value.\"a b\"" 8, "\"a=b\"" 9
                        "\"q\\\"t\"" 10}]
        (testing path
          (is (= 1
                 (count (query/rows {:where [(query/condition (str path "=" n))] :fields fields}
                                    rows))))
          (is (= 1
                 (count (query/rows {:where [(query/condition [:= path n])] :fields fields} rows))))
          (is (= 0
                 (count (query/rows {:where [(query/condition (str path "=" (inc n)))]
                                     :fields fields} rows))))
          (is (= [n] (query/values-at (first rows) (query/real-path fields (query/path-of path)))))
          (is (= 1
                 (count (query/rows {:sort (query/column (str "-" path)) :fields fields} rows))))))
      (is (= #{"key" "value.pick.turn" "value.pick.other" "value.\"pick.turn\"" "value.\"a b\""
               "value.\"a=b\"" "value.\"q\\\"t\""}
             (set (fields/paths fields)))))))

(defspec path-text-round-trip 300
  (prop/for-all [path
                 (gen/not-empty
                  (gen/vector (gen/such-that #(not (str/blank? %)) (gen/not-empty gen/string))))]
                (= path (query/path-of (fields/path-text path)))))

(deftest nan-sorts-last
  (testing "sorts NaN last"
    (let [rows (map (fn [x] {:value x}) [3.0 ##NaN 1.0 ##Inf 5 ##NaN -2.5 nil 4])
          by (fn [column] (map (comp str :value) (query/rows {:sort (query/column column)} rows)))]
      (is (= ["" "-2.5" "1.0" "3.0" "4" "5" "Infinity" "NaN" "NaN"] (by "value")))
      (is (= ["Infinity" "5" "4" "3.0" "1.0" "-2.5" "NaN" "NaN" ""] (by "-value"))))
    (is (= ["NaN"] (map (comp str :value) (chosen [{:value ##NaN} {:value 1.0}] "value=NaN"))))
    (is (= [1.0] (map :value (chosen [{:value ##NaN} {:value 1.0}] "value>0"))))))

(deftest address-order
  (testing "sorts addresses by their numbers"
    (let [rows (map (fn [x] {:key x :value 1}) ["10.0.0.10" "9.0.0.1" "10.0.0.9" "100.0.0.1"])]
      (is (= ["9.0.0.1" "10.0.0.9" "10.0.0.10" "100.0.0.1"]
             (map :key
                  (query/rows {:sort (query/column "key")
                               :fields (fields/of-entries {:type :hash :key :ipv4 :value :u8} nil)}
                              rows)))))))

(deftest nearest-names
  (testing "suggests only the nearest names"
    (are [word near]
         (= near
            (nearest/nearest word ["memlock" "max-entries" "key-size" "entries" "name" "type"]))
      "memlok" ["memlock"]
      "max_entries" ["max-entries"]
      "entrys" ["entries"]
      "xyzzy" []
      "nam" ["name"]
      "tpye" ["type"]
      "key" ["key-size"]
      "NAMES" ["name"]
      "" [])))
