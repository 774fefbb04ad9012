(ns bpfmap.exec.where-test
  "Conditions and orders on rows, without a kernel."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.exec.where :as where]
            [bpfmap.fixture :as fixture]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop]))

(set! *warn-on-reflection* true)

(defn- chosen [rows & conditions]
  (where/rows {:where (mapv where/condition conditions)} rows))

(def ^:private flows
  [{:key {:src "10.0.0.1" :port 443} :value {:packets 10 :bytes 1000 :state :NEW}}
   {:key {:src "10.0.0.2" :port 80} :value {:packets 200 :bytes 90 :state :OLD}}
   {:key {:src "10.1.0.1" :port 53} :value {:packets 3 :bytes 18446744073709551615N :state :NEW}}])

(defn- ports [& conditions]
  (map (comp :port :key) (apply chosen flows conditions)))

(deftest a-condition-in-text-is-a-field-an-operator-and-a-value
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
    "packets=ten" []
    "src>10.0.0.9" [53]
    "key={:src \"10.0.0.2\" :port 80}" [80]))

(deftest a-condition-as-data-can-be-put-together
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
    [:or] []))

(deftest all-of-several-conditions-hold
  (is (= [443] (ports "packets>5" "bytes>100")))
  (is (= [443 80 53] (ports))))

(deftest a-condition-on-many-holds-for-one-of-them
  (let [rows [{:id 1 :held [{:pid 7 :command "agent"} {:pid 8 :command "java"}] :pinned ["/sys/fs/bpf/a"] :flags #{:mmapable}}
              {:id 2 :held [] :pinned [] :flags #{}}]]
    (are [condition ids] (= ids (map :id (chosen rows condition)))
      "held.command=java" [1]
      "held.1.command=java" [1]
      "held.0.command=java" []
      "held.pid>7" [1]
      "held.command!=java" [2]
      "held=-" [2]
      "held=nil" [2]
      "pinned~/bpf/" [1]
      "flags=mmapable" [1]
      "flags=-" [2])))

(deftest what-a-row-has-under-the-same-name-is-the-column-first-then-the-value-then-the-key
  (is (= [5] (where/values-at {:packets 5 :value {:packets 6} :key {:packets 7}} ["packets"])))
  (is (= [6] (where/values-at {:value {:packets 6} :key {:packets 7}} ["packets"])))
  (is (= [7] (where/values-at {:value {:bytes 6} :key {:packets 7}} ["packets"])))
  (is (= [3 4] (where/values-at {:value [{:n 3} {:n 4}]} ["n"])))
  (is (= [true] (where/values-at {:frozen? true} ["frozen"]))))

(deftest bytes-are-written-in-hexadecimal
  (let [rows [{:key (bytes/->bytes [1 2]) :value true} {:key (bytes/->bytes [10 255]) :value false}]]
    (are [condition values] (= values (map :value (chosen rows condition)))
      "key=01 02" [true]
      "key=0aff" [false]
      "key>01 02" [false]
      "key~^0a" [false]
      "key=nonsense" []
      "value=yes" [true]
      "value=false" [false])))

(deftest a-field-that-there-is-not-is-said-with-those-that-there-are
  (is (= "There is no field foo; the fields are key.src, key.port, value.packets, value.bytes, value.state"
         (:message (fixture/error-of (ports "foo=1")))))
  (is (= :usage (:bpfmap/error (fixture/error-of (where/rows {:sort (where/column "foo")} flows)))))
  (is (= [] (chosen [] "foo=1")) "of no rows nobody knows"))

(deftest a-bad-condition-says-what-is-wrong
  (are [condition message] (= message (:message (fixture/error-of (where/condition condition))))
    "a~(" "the regular expression \"(\" is not well formed: Unclosed group"
    [:= :a] ":= takes a field and what to compare it with"
    [:not] ":not takes one condition"
    [:= {} 1] "{} is no field"
    [:= "a..b" 1] "\"a..b\" is no field")
  (doseq [condition ["" "bytes" "bytes 1000" ">5" "[" "[:foo :a 1]" "[]" [:eval "(+ 1 2)"] nil 7 {:a 1}]]
    (testing (pr-str condition)
      (is (re-find #"^a condition is like bytes>1000" (:message (fixture/error-of (where/condition condition))))))))

(deftest nothing-is-evaluated
  (are [text] (= [] (chosen [{:key 1 :value "x"}] text))
    "value=#=(System/exit 1)"
    "key=#=(System/exit 1)"
    "key=(+ 0 1)"))

(deftest rows-are-sorted-by-any-column
  (let [by (fn [column] (map (comp :port :key) (where/rows {:sort (where/column column)} flows)))]
    (is (= [80 443 53] (by "bytes")))
    (is (= [53 443 80] (by "-bytes") (by :-bytes) (by '-value.bytes)))
    (is (= [443 80 53] (by "src")))
    (is (= [53 443] (map (comp :port :key) (where/rows {:sort (where/column "-bytes") :limit 2} flows))))
    (is (nil? (where/column "")))
    (is (nil? (where/column "-")))
    (is (nil? (where/column 7)))))

(deftest a-limit-stops-the-reading
  (let [read (volatile! 0)]
    (is (= [0 1 2] (map :key (where/rows {:limit 3} (eduction (map (fn [i] (vswap! read inc) {:key i})) (range 100))))))
    (is (= 3 @read)))
  (is (= [] (where/rows {:limit 0} flows))))

(deftest the-first-few-are-those-of-all-in-order
  (let [xs (shuffle (mapcat #(repeat 3 %) (range 50)))
        rows (map-indexed (fn [i x] {:id i :n x}) xs)]
    (doseq [n [0 1 7 150 1000 nil]
            column ["n" "-n"]
            :let [all (sort-by :n (if (= "n" column) compare #(compare %2 %1)) rows)]]
      (is (= (if n (take n all) all) (where/rows {:sort (where/column column) :limit n} rows))))))

(def ^:private anything
  (gen/one-of [gen/small-integer gen/large-integer gen/size-bounded-bigint gen/double gen/string-ascii gen/keyword gen/boolean
               (gen/return nil) gen/char-ascii (gen/fmap bytes/wrap gen/bytes) (gen/vector gen/small-integer)
               (gen/map gen/keyword gen/small-integer)]))

(defspec any-two-fields-have-an-order 300
  (prop/for-all [[a b c] (gen/tuple anything anything anything)]
    (and (= (Integer/signum (where/order a b)) (- (Integer/signum (where/order b a))))
         (zero? (where/order a a))
         (or (pos? (where/order a b)) (pos? (where/order b c)) (not (pos? (where/order a c)))))))
