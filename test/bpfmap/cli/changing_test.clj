(ns bpfmap.cli.changing-test
  "Entries read and written by typed keys, maps created and pinned, and confirmation for maps of
  others."
  (:require [bpfmap.cli.calling :refer [bpfmap edn-of id-of json-of lines-of refused]]
            [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.confirm :as confirm]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.views :as views]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.link :as link]
            [bpfmap.links :as links]
            [bpfmap.prog :as prog]
            [bpfmap.pump :as pump]
            [bpfmap.since :as since]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn- a-map ^Closeable [spec]
  (bpf/create (merge {:name "changing" :type :hash :max-entries 8} spec)))

;; --- keys and values as they are typed

(kernel-test edn-text-or-byte-keys
  (testing "a key is given as EDN, text or bytes"
    (with-open [flows (a-map {:key [:struct [:src :ipv4] [:port :port]] :value :u64
                              :contents {{:src "10.0.0.1" :port 443} 7}})
                hosts (a-map {:key :ipv4 :value :u64 :contents {"10.0.0.1" 7}})
                nets (a-map {:type :lpm-trie :key [:prefix :ipv4] :value :u64 :flags #{:no-prealloc}
                             :contents {"10.0.0.0/8" 7}})
                names (a-map {:key [:string 8] :value :u64 :contents {"a b" 7, "7" 7, ":x" 7}})
                macs (a-map {:key :mac :value :u64 :contents {"00:1b:21:0a:0b:0c" 7}})
                states (a-map {:key [:enum :u32 {:NEW 1}] :value :u64 :contents {:NEW 7}})
                chars (a-map {:key :char :value :u64 :contents {\A 7}})
                bools (a-map {:key :bool :value :u64 :contents {true 7}})
                raw (a-map {:key-size 4 :value :u64 :contents {[1 2 3 255] 7}})
                one (a-map {:key-size 1 :value :u64 :contents {[16] 7}})
                numbers (a-map {:key :u32 :value :u64 :contents {255 7}})]
      (are [m key] (= ["7"] (lines-of "get" (id-of m) key))
        flows "{:src \"10.0.0.1\" :port 443}"
        flows "{src \"10.0.0.1\", port 443}"
        flows "{src \"10.0.0.1\" port 0x1bb}"
        flows "0a 00 00 01 01 bb 00 00"
        flows "0a:00:00:01:01:bb:00:00"
        flows "0x0a00000101bb0000"
        hosts "10.0.0.1"
        hosts "\"10.0.0.1\""
        nets "10.1.2.3"
        nets "10.0.0.0/8"
        names "a b"
        names "7"
        names ":x"
        names "\"a b\""
        macs "00:1b:21:0a:0b:0c"
        states "NEW"
        states ":NEW"
        states "1"
        chars "A"
        chars "\\A"
        bools "true"
        raw "01 02 03 ff"
        raw "010203ff"
        raw "0x010203FF"
        raw "#bpfmap/bytes \"01 02 03 ff\""
        raw "[1 2 3 255]"
        one "10"
        numbers "255"
        numbers "0xff"
        numbers "ff 00 00 00"))))

(kernel-test fields-as-pairs
  (testing "a struct can be FIELD=VALUE pairs, each value written as its type"
    (with-open [m (a-map {:key [:struct [:src :ipv4] [:port :port]]
                          :value [:struct [:n :u64] [:comm [:string 8]]
                                  [:state [:enum :u32 {:NEW 1}]]
                                  [:pos [:struct [:x :s8] [:to [:array :u8 2]] [:b :u8]]]]})]
      (let [id (id-of m)
            full {:n 7 :comm "a b" :state :NEW :pos {:x -1 :to [1 2] :b 3}}]
        (are [value] (= full (:value (exec/put {:yes true :ref id :key "src=10.0.0.1 port=443" :value value})))
          "n=7 comm=\"a b\" state=NEW pos.x=-1 pos.to=[1 2] pos.b=3"
          "  state=1  n=0x7\tcomm=\"a b\" pos={x -1 to [1 2] b 3} "
          "comm=\"a b\" n=7 state=NEW pos={\"x\":-1,\"to\":[1,2],\"b\":3}"
          "comm=\"a b\" n=7 state=NEW pos.x=-1 pos.to=[1,2] pos.\"b\"=3"
          "{\"n\":7,\"comm\":\"a b\",\"state\":\"NEW\",\"pos\":{\"x\":-1,\"to\":[1,2],\"b\":3}}")
        (is (= "" (:comm (:value (exec/put {:yes true :ref id :key "port=443 src=10.0.0.1"
                                            :value (str "n=7 comm= state=NEW "
                                                        "pos.x=1 pos.to=[1 2] pos.b=3")})))))
        (are [value code pattern]
             (let [[exit line] (refused "put" "--yes" id "src=10.0.0.1 port=443" value)]
               (and (= code exit) (re-find pattern line)))
          "n=1 comm=x" 1 #"the field (state|pos) is missing"
          "nn=1" 2 #"VALUE must name fields of the type, got \"nn\": nn is not a field: did you mean n\?"
          "n=1 n=2" 2 #"VALUE must have each field once, got \"n\""
          "pos.to.1=2" 2 #"VALUE must have whole arrays, got \"pos.to.1\": write them in brackets"
          "n.x=2" 2 #"got \"n.x\": x is not a field: what is before it has no fields"
          "n=" 2 #"VALUE must be EDN, JSON or hexadecimal bytes, got \"n=\": it is empty"
          "n=1 pos.to=[1" 2 #"got \"pos.to=\[1\": EOF"
          "n=1 rest" 2 #"VALUE must be FIELD=VALUE pairs, EDN, JSON or hexadecimal bytes")
        (is (= 1 (bpf/count-entries m))))))
  (testing "a name can have dots, as a static variable has"
    (are [text] (= {:pos {:a.b 3 :a {:b 4}}}
                   (input/typed {:type :hash
                                 :value [:struct [:pos [:struct [:a.b :u8]
                                                        [:a [:struct [:b :u8]]]]]]}
                                :value text identity))
      "pos={a.b 3 a {b 4}}"
      "pos.a.b=3 pos.\"a\".\"b\"=4"
      "pos.\"a.b\"=3 pos.a={b 4}")))

(kernel-test json-for-each-cpu
  (testing "the values of the CPUs can be EDN or JSON, also of texts"
    (with-open [structs (a-map {:type :percpu-hash :key :u32 :value [:struct [:rx :u64]]})
                texts (a-map {:type :percpu-hash :key :u32 :value [:string 8]})
                arrays (a-map {:type :percpu-hash :key :u32 :value [:array :u32 2]})]
      (let [cpus (count (call/possible-cpus))
            all (fn [x] (str "[" (str/join "," (repeat cpus x)) "]"))]
        (are [m text value] (= (vec (repeat cpus value))
                               (:value (exec/put {:yes true :ref (id-of m) :key 1 :value text})))
          structs (all "{\"rx\":1}") {:rx 1}
          structs (all "{rx 1}") {:rx 1}
          texts (all "\"a/b\"") "a/b"
          texts (all "\"a\\/b\"") "a/b"
          arrays (all "[1,2]") [1 2])
        (is (= (vec (repeat cpus [1 2]))
               (:value (exec/put {:yes true :ref (id-of arrays) :key 1 :value "[1 2]" :cpus :all}))))
        (is (= (vec (repeat cpus {:rx 3}))
               (:value (exec/put {:yes true :ref (id-of structs) :key 1 :value "rx=3" :cpus :all}))))))))

(kernel-test exec-keys-as-data
  (testing "the exec functions also accept keys as data"
    (with-open [m (a-map {:key [:struct [:src :ipv4] [:port :port]] :value :u64
                          :contents {{:src "10.0.0.1" :port 443} 7}})]
      (are [key] (= 7 (:value (exec/get {:ref (id-of m) :key key})))
        {:src "10.0.0.1" :port 443}
        '{src "10.0.0.1" port 443}
        "{src \"10.0.0.1\" port 443}"
        (bpf/->bytes "0a 00 00 01 01 bb 00 00"))
      (is (= 7 (:value (exec/get {:ref (bpf/info m) :key {:src "10.0.0.1" :port 443}}))
             (:value (exec/get {:ref m :key {:src "10.0.0.1" :port 443}}))
             (:value (exec/get {:ref {:id (id-of m)} :key {:src "10.0.0.1" :port 443}}))
             (:value (exec/get {:ref (symbol (str (id-of m))) :key {:src "10.0.0.1" :port 443}})))
          "and any reference, an open map, or the info of one"))))

(kernel-test malformed-keys
  (testing "reports a key that cannot be read"
    (with-open [m (a-map {:key [:struct [:src :ipv4] [:port :port]] :value :u64})
                raw (a-map {:key-size 4 :value-size 8})]
      (are [ref key code pattern] (let [[exit line] (refused "get" ref key)]
                                    (is (= code exit))
                                    (is (re-find pattern line)))
        (id-of m) "{src" 2 #"KEY must be FIELD=VALUE pairs, EDN, JSON or hexadecimal bytes, got \"\{src\": EOF"
        (id-of m) "" 2 #"KEY must be FIELD=VALUE pairs, EDN, JSON or hexadecimal bytes, got \"\": it is empty"
        (id-of m) "1 2" 2 #"there is more than one form"
        (id-of m) "#foo 1" 2 #"the tag #foo is unknown"
        (id-of m) "7" 1 #"key: 7 is not a \[struct"
        (id-of m) "{src \"10.0.0\" port 1}" 1 #"key\.src: \"10\.0\.0\" is not a ipv4"
        (id-of m) "{src \"10.0.0.1\"}" 1 #"the field port is missing"
        (id-of m) "0a 00" 2 #"KEY must be FIELD=VALUE pairs, EDN, JSON or hexadecimal bytes, got \"0a 00\""
        (id-of raw) "01 02" 1 #"it must have 4 bytes, got 2"
        (id-of raw) "xyz" 1 #"must be pairs of hexadecimal digits"))))

;; --- one entry

(kernel-test put-get-take-delete
  (testing "writes, reads, takes and deletes an entry"
    (with-open [m (a-map {:key :u32 :value :u64})]
      (let [id (id-of m)]
        (is (= ["7  42  (new)"] (lines-of "put" id "7" "42")))
        (is (= ["7  43  (was 42)"] (lines-of "put" id "7" "43")))
        (is (= {:map {:id id :name "changing" :type :hash} :key 7 :before 43 :written true
                :value 44} (edn-of "put" id "7" "44")))
        (is (= {"key" 7 "value" 44} (json-of "get" id "7")))
        (if (since/has? [:operation :hash :take!])
          (do (is (= ["44"] (lines-of "take" id "7")))
              (is (= [1 "bpfmap: no such entry"] (refused "take" id "7"))))
          (let [[exit line] (refused "take" id "7")]
            (is (= 1 exit))
            (is (str/includes? line "it needs Linux 5.14, this is "))
            (is (= ["7  (was 44)"] (lines-of "delete" id "7")))))
        (is (= [1 "bpfmap: no such entry"] (refused "get" id "7")))
        (is (= [1 "bpfmap: no such entry"] (refused "delete" id "7")))
        (bpf/put! m 7 1)
        (is (= ["7  (was 1)"] (lines-of "delete" id "7")))
        (is (nil? (exec/get {:ref id :key 7})))))))

;; --- one field

(kernel-test ^{:needs [[:kernel :floats]]} put-one-field
  (testing "changes one field and leaves the others"
    (with-open [m (a-map {:key :u32
                          :value [:struct [:a :u32] [:u [:union [:x :u32]
                                                         [:y [:struct [:lo :u16] [:hi :u16]]]]]
                                  [:b [:array :u8 3]] [:f :f64]]
                          :contents {1 {:a 1 :u {:x 70000} :b [1 2 3] :f ##NaN}}})]
      (let [id (id-of m)
            put (fn [field x]
                  (dissoc (:value (exec/put {:yes true :ref id :key 1 :value x :field field})) :f))]
        (is (= {:a 5 :u {:x 70000 :y {:lo 4464 :hi 1}} :b [1 2 3]} (put "a" "5")))
        (is (= {:a 5 :u {:x 332144 :y {:lo 4464 :hi 5}} :b [1 2 3]} (put "u.y.hi" 5)))
        (is (= {:a 5 :u {:x 7 :y {:lo 7 :hi 0}} :b [1 2 3]} (put [:u :x] "7")))
        (is (= {:a 5 :u {:x 7 :y {:lo 7 :hi 0}} :b [1 2 9]} (put "value.b.2" "0x9")))
        (is (= {:a 5 :u {:x 1 :y {:lo 1 :hi 0}} :b [1 2 9]} (put "u.y.lo" 1)))
        (is (= {:a 5 :u {:x 2 :y {:lo 2 :hi 0}} :b [4 5 6]} (do (put "u.y" "lo=2 hi=0")
                                                                (put "b" "[4 5 6]"))))
        (is (= [1 "bpfmap: nothing written: the key does not exist"]
               (refused "put" "--yes" id "2" "9" "--field" "a")))
        (are [args code pattern] (let [[exit line] (apply refused "put" id "1" args)]
                                   (and (= code exit) (re-find pattern line)))
          ["9" "--field" "b.3"] 2 #"--field must name fields of the type, got \"b.3\": 3 must be an index from 0 to 2"
          ["9" "--field" "aa"] 2 #"got \"aa\": aa is not a field: did you mean a\?"
          ["9" "--field" "a.x"] 2 #"got \"a.x\": x is not a field"
          ["x" "--field" "a"] 1 #"value.a: x is not a u32"
          ["9" "--field" "a" "--insert"] 2 #"--insert cannot be combined with --field"
          ["9" "--field" "a" "--replace"] 2 #"--replace cannot be combined with --field"
          ["9" "--field" "a" "--lock"] 2
          #"--lock cannot be combined with --field: the lock of a value is held anyway"
          ["--field" "a"] 2 #"put requires REF \[KEY\] VALUE"
          ["9" "--field" "a" "--cpus" "0"] 1 #"The map is not a per-CPU map"))))
  (testing "values without fields and maps without keys"
    (with-open [numbers (a-map {:key :u32 :value :u64 :contents {1 1}})
                q (a-map {:type :queue :value :u32})]
      (is (re-find #"--field cannot be used with values without fields"
                   (second (refused "put" "--yes" (id-of numbers) "1" "2" "--field" "a"))))
      (is (re-find #"--field cannot be used with a map that has no keys"
                   (second (refused "put" "--yes" (id-of q) "1" "2" "--field" "a")))))))

(kernel-test put-field-of-cpus
  (testing "a field of one CPU or of all; which one must be given"
    (with-open [m (a-map {:type :percpu-hash :key :u32 :value [:struct [:a :u32] [:b :u32]]})]
      (bpf/put! m 1 {:a 1 :b 2} {:cpus :all})
      (let [id (id-of m)
            others (repeat (dec (count (call/possible-cpus))) {:a 1 :b 2})]
        (is (= (into [{:a 5 :b 2}] others)
               (:value (exec/put {:yes true :ref id :key 1 :value 5 :field "a" :cpus 0}))))
        (is (= (into [{:a 5 :b 6}] (map #(assoc % :b 6)) others)
               (:value (exec/put {:yes true :ref id :key 1 :value 6 :field "b" :cpus :all}))))
        (is (= [2 (str "bpfmap: --field of a per-CPU map requires --cpus: give all, or the number of"
                       " a CPU; see `bpfmap help put`")]
               (refused "put" "--yes" id "1" "6" "--field" "b")))
        (is (re-find #"Unknown CPU 9999"
                     (second (refused "put" "--yes" id "1" "6" "--field" "b" "--cpus" "9999"))))))))

(kernel-test u1-put-field-under-lock
  (testing "holds the lock of the value, unless it is in a struct where the kernel does not find it"
    (doseq [[value-type value field changed options]
            [[[:struct [:lock :spin-lock] [:b :u32] [:c :u32]] {:b 2 :c 3} "b" {:b 6 :c 3}
              [{:lock true}]]
             [[:struct [:a [:struct [:lock :spin-lock] [:b :u32]]] [:c :u32]] {:a {:b 2} :c 3} "a.b"
              {:a {:b 6} :c 3}
              (when (since/here? [:kernel :locks-in-structs]) [{:lock true}])]]]
      (with-open [m (a-map {:key :u32 :value value-type :contents {1 value}})]
        (let [given (atom [])]
          (with-redefs [bpf/replace! (let [replace! bpf/replace!]
                                       (fn [m k v & options]
                                         (swap! given conj options)
                                         (apply replace! m k v options)))]
            (is (= changed
                   (:value (exec/put {:yes true :ref (id-of m) :key 1 :value 6 :field field})))))
          (is (= [options] @given)))))))

(kernel-test u1-put-field-of-changing-value
  (testing "a value that changes between two reads is read again, and never overwritten"
    (with-open [m (a-map {:key :u32 :value [:struct [:a :u32] [:n :u32]]
                          :contents {1 {:a 1 :n 0}}})]
      (let [reads (atom 0)
            lookup bpf/lookup
            changing-until (fn [most]
                             (fn [from k & more]
                               (when (< (swap! reads inc) (long most))
                                 (bpf/put! m k (update (lookup m k) :n inc)))
                               (apply lookup from k more)))]
        (with-redefs [bpf/lookup (changing-until 4)]
          (is (= {:a 9 :n 3} (:value (exec/put {:yes true :ref m :key 1 :value 9 :field "a"})))))
        (with-redefs [bpf/lookup (changing-until 1e9)]
          (let [{:bpfmap/keys [error hint]}
                (fixture/error-of
                 (exec/put {:yes true :ref m :key 1 :value 10 :field "a"}))]
            (is (= :busy error))
            (is (= "stop what writes it, or put the whole value" hint))))
        (is (= 9 (:a (bpf/lookup m 1))))))))

;; --- clear

(kernel-test clear-deletes-all
  (testing "deletes all entries, and counts what is left, for each type that can"
    (with-open [inner (a-map {:type :array :key :u32 :value :u64 :max-entries 1})
                p (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
      (doseq [[spec entries left]
              [[{:type :hash :key :u32 :value :u64 :max-entries 9000}
                (for [i (range 9000)] [i i]) 0]
               [{:type :percpu-hash :key :u32 :value :u64}
                [[1 (vec (repeat (count (call/possible-cpus)) 1))]] 0]
               [{:type :lru-hash :key :u32 :value :u64} [[1 1] [2 2]] 0]
               [{:type :lpm-trie :key [:prefix :ipv4] :value :u64 :flags #{:no-prealloc}}
                [["10.0.0.0/8" 1] ["10.1.0.0/16" 1]] 0]
               [{:type :hash-of-maps :key :u32 :inner-map {:type :array :key :u32 :value :u64
                                                           :max-entries 1}}
                [[1 inner] [2 inner]] 0]
               [{:type :array-of-maps :inner-map {:type :array :key :u32 :value :u64
                                                  :max-entries 1}}
                [[1 inner]] 0]
               [{:type :prog-array} [[1 p]] 0]
               [{:type :devmap :value :u32} [[1 1]] 0]]]
        (testing (:type spec)
          (with-open [m (a-map spec)]
            (bpf/put-all! m entries)
            (is (= {:map {:id (id-of m) :name "changing" :type (:type spec)}
                    :deleted (count entries) :entries left}
                   (exec/clear {:ref m :yes true})))
            (is (= 0 (:deleted (exec/clear {:ref m :yes true})))))))
      (doseq [type [:queue :stack]]
        (testing type
          (with-open [m (a-map {:type type :value :u64})]
            (bpf/push! m 1)
            (bpf/push! m 2)
            (is (= {:map {:id (id-of m) :name "changing" :type type} :deleted 2}
                   (exec/clear {:ref m})))
            (is (nil? (bpf/peek m)))))))))

(kernel-test clear-refuses
  (testing "a map whose entries cannot all be deleted is named, with the reason"
    (doseq [[spec reason]
            [[{:type :array :value :u64} "every index of an array always exists"]
             [{:type :percpu-array :value :u64} "every index of an array always exists"]
             [{:type :bloom-filter :value :u64} "it can only tell whether a value may be in it"]
             [{:type :ringbuf :max-entries 4096} "it has no entries"]
             [{:type :task-storage :key :u32 :value :u64 :max-entries 0 :flags #{:no-prealloc}}
              "the kernel cannot list it"]]
            :when (since/has? [:map-type (:type spec)])]
      (testing (:type spec)
        (with-open [m (a-map spec)]
          (let [[exit line] (refused "clear" (id-of m))]
            (is (= 1 exit))
            (is (str/starts-with? line (str "bpfmap: Map " (id-of m) " (changing), "
                                            (name (:type spec)) ", cannot be cleared: " reason)))))))))

(kernel-test clear-prints-and-asks
  (testing "prints the number, and asks if others use the map"
    (with-open [m (a-map {:key :u32 :value :u64 :contents {1 1, 2 2}})]
      (is (= [(str "2 entries of map " (id-of m) " (changing) deleted")]
             (lines-of "clear" (id-of m))))
      (is (= {"map" {"id" (id-of m) "name" "changing" "type" "hash"} "deleted" 0 "entries" 0}
             (json-of "clear" (id-of m))))
      (bpf/put! m 1 1)
      (with-open [_ (prog/load {:type :socket-filter
                                :insns [[:lddw :r1 m] [:mov64 :r0 0] [:exit]]})]
        (let [[exit line] (refused "clear" (id-of m))]
          (is (= 1 exit))
          (is (str/includes? line "is in use by 1 program")))
        (is (= 1 (bpf/count-entries m)) "nothing was deleted")
        (is (= 1 (:deleted (exec/clear {:ref m :yes true}))))))
    (testing "entries that others wrote meanwhile"
      (is (= {:lines ["3 entries of map 12 (flows) deleted"]
              :notes ["the map has 1 entry: other users of the map wrote it meanwhile"]
              :exit 1}
             (views/cleared {:map {:id 12 :name "flows"} :deleted 3 :entries 1} {}))))))

(kernel-test negative-numbers
  (testing "a negative number is not parsed as an option"
    (with-open [m (a-map {:key :s32 :value :s64 :contents {-1 -10}})]
      (is (= ["-10"] (lines-of "get" (id-of m) "-1")))
      (is (= ["-2  -20  (new)"] (lines-of "put" (id-of m) "-2" "-20")))
      (is (= [{:key -2 :value -20}]
             (edn-of "dump" (id-of m) "--where" "key<-1" "--sort" "-value"))))))

(kernel-test insert-and-replace
  (testing "--insert and --replace write only if the key is absent or present"
    (with-open [m (a-map {:key :u32 :value :u64 :contents {1 10}})]
      (let [id (id-of m)]
        (is (= [1 "bpfmap: nothing written: the key already exists"]
               (refused "put" id "1" "11" "--insert")))
        (is (= [1 "bpfmap: nothing written: the key does not exist"]
               (refused "put" id "2" "11" "--replace")))
        (is (= {1 10} (bpf/snapshot m)))
        (is (= ["2  11  (new)"] (lines-of "put" id "2" "11" "--insert")))
        (is (= [2 "bpfmap: --insert cannot be combined with --replace; see `bpfmap help put`"]
               (refused "put" id "2" "11" "--insert" "--replace")))))))

(kernel-test whole-per-cpu-value
  (testing "a per-CPU value is written whole or the same for all CPUs"
    (with-open [m (a-map {:type :percpu-hash :key :u32 :value :u64})]
      (let [id (id-of m)
            cpus (do (bpf/put! m 1 5 {:cpus :all}) (count (m 1)))]
        (is (= (vec (repeat cpus 7)) (:value (exec/put {:ref id :key 1 :value 7 :cpus :all}))))
        (is (= [(str (* 7 cpus))] (lines-of "get" id "1" "--cpus" "sum")))
        (is (= ["7"] (lines-of "get" id "1" "--cpus" "0")))
        (is (= [{:key 1 :value (* 7 cpus)}] (edn-of "dump" id "--cpus" "sum")))
        (is (= [{:key 1 :value (vec (repeat cpus 7))}] (edn-of "dump" id)))
        (is (re-find #"it must be a vector of \d+ values, one for each possible CPU"
                     (second (refused "put" id "1" "7"))))
        (is (re-find #"Unknown CPU 9999" (second (refused "dump" id "--cpus" "9999"))))
        (is (= 2 (first (refused "put" id "1" "7" "--cpus" "sum"))))))))

(kernel-test queue-peek-push-take
  (testing "peeks at, pushes to and takes from a queue"
    (with-open [q (a-map {:type :queue :value-size 4 :contents [[1 0 0 0]]})]
      (let [id (id-of q)]
        (is (= ["01 00 00 00  |....|"] (lines-of "get" id)))
        (is (= ["7"] (lines-of "put" id "7" "--value-type" "u32")))
        (is (= ["1"] (lines-of "take" id "--value-type" "u32")))
        (is (= ["07 00 00 00  |....|"] (lines-of "take" id)))
        (is (= [1 "bpfmap: no such entry"] (refused "take" id)))
        (is (= [2
                "bpfmap: KEY cannot be used with a map that has no keys: give only the value; see `bpfmap help put`"]
               (refused "put" id "1" "2")))
        (is (re-find #"`get` prints its next value, `take` removes it"
                     (second (refused "dump" id))))))))

(kernel-test listed-is-not-in-use
  (testing "a process that lists maps has each of them open for a moment, and does not count"
    (with-open [m (a-map {:key :u32 :value :u64})
                p ^Closeable (links/loaded :raw-tracepoint [[:mov64 :r0 0] [:exit]])
                l ^Closeable (link/attach p {:raw-tracepoint "sys_enter"})]
      (let [lister (pump/in-jvm '(require '[bpfmap.host :as host])
                                '(println "ready")
                                '(while true (host/maps) (host/links)))]
        (try
          (dotimes [_ 5]
            (is (= "" (:err (bpfmap "put" (id-of m) "1" "1")))))
          (is (= [] (remove nil? (repeatedly 5 #(try
                                                   (confirm/check-link
                                                    {:id (:id (link/info l)) :type :raw-tracepoint
                                                     :held (host/holders l) :pinned []}
                                                    {})
                                                   (catch Exception e (ex-message e)))))))
          (finally (.destroyForcibly lister)))))))

(kernel-test ^{:needs [[:map-type :bloom-filter]]} bloom-filters
  (testing "a Bloom filter returns maybe or no"
    (with-open [f (a-map {:type :bloom-filter :value :ipv4})]
      (is (= ["10.0.0.1"] (lines-of "put" (id-of f) "10.0.0.1")))
      (is (= ["maybe"] (lines-of "get" (id-of f) "10.0.0.1")))
      (is (= ["no"] (lines-of "get" (id-of f) "10.0.0.2"))))))

(kernel-test put-program-or-map
  (testing "stores a program or a map by its reference"
    (with-open [jumps ^Closeable (bpf/create {:type :prog-array :max-entries 2})
                p ^Closeable (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
      (let [program (:id (prog/info p))]
        (is (= [(str "1  {:program-id " program "}  (new)")]
               (lines-of "put" (id-of jumps) "1" (str "{:program-id " program "}"))))
        (is (= [{:key 1 :value {:program-id program}}] (edn-of "dump" (id-of jumps))))))))

;; --- maps and pins

(kernel-test create-pin-and-unpin
  (testing "creates a pinned map, adds a pin and unpins it"
    (let [path (fixture/new-pin)
          copy (fixture/new-pin)]
      (is (re-matches #"map \d+ \(pin\d+\) is pinned at .*"
                      (first (lines-of "create" path "--type" "lru-hash" "--key-type" "ipv4"
                                       "--value-type" "[struct [n u64]]"
                                       "--max-entries" "16" "--flags" "no-common-lru"))))
      (with-open [m ^Closeable (bpf/open path)]
        (is (= {:type :lru-hash :key :ipv4 :value [:struct [:n :u64]] :max-entries 16
                :flags #{:no-common-lru}}
               (select-keys (bpf/spec m) [:type :key :value :max-entries :flags])))
        (is (= "copied"
               (:name (exec/create {:path copy :like path :max-entries 4 :name "copied"}))))
        (with-open [c ^Closeable (bpf/open copy)]
          (is (= (assoc (bpf/spec m) :max-entries 4 :name "copied") (bpf/spec c))))
        (is (= [{:path copy} {:path path}]
               (map #(select-keys % [:path])
                    (sort-by #(not= copy (:path %))
                             (filter #(#{path copy} (:path %)) (exec/tree {}))))))
        (is (str/includes? (str/join "\n" (lines-of "tree" (fixture/bpffs)))
                           (str "map " (id-of m) " lru-hash"))))
      (is (re-find #"is no longer pinned at" (first (lines-of "unpin" copy))))
      (is (re-find #"is no longer pinned at" (first (lines-of "unpin" path))))
      (is (re-find #"the file \S+ does not exist" (second (refused "unpin" path)))))))

(kernel-test pin-and-move-pin
  (testing "adds a pin by default and moves one only on request"
    (let [[a b c] (repeatedly fixture/new-pin)
          there? #(.exists (java.io.File. ^String %))]
      (with-open [m (a-map {:key :u32 :value :u64})
                  program ^Closeable (prog/load {:type :socket-filter :name "uses_it"
                                                 :insns [[:lddw :r1 m] [:mov64 :r0 0] [:exit]]})]
        (bpf/pin! m a)
        (is (= [(str "map " (id-of m) " (changing) is pinned at " b)] (lines-of "pin" a b)))
        (is (= [true true] (map there? [a b]))
            "a map in use gets another pin without a question, and keeps the first")
        (is (re-find #"EEXIST.* exists already" (second (refused "pin" a b))))
        (let [[exit line] (refused "pin" a c "--move")]
          (is (= 1 exit))
          (is (re-find #"is in use by 1 program \(uses_it\[\d+\]\)" line)))
        (is (= [true true false] (map there? [a b c])))
        (is (= [(str "map " (id-of m) " (changing) is pinned at " c ", no longer at " a)]
               (lines-of "pin" a c "--move" "--yes")))
        (is (= [false true true] (map there? [a b c])))
        (is (= [2 "bpfmap: --move requires the path of a pin as REF; see `bpfmap help pin`"]
               (refused "pin" (id-of m) a "--move")))
        (.close program)
        (is (= {:path b :from c}
               (select-keys (do (exec/unpin {:path b}) (exec/pin {:ref c :path b :move true}))
                            [:path :from]))
            "a map that nobody else has moves without a question")
        (exec/unpin {:path b})))))

(kernel-test edn-option-for-spec
  (testing "reads further parts of a spec from an EDN option"
    (let [path (fixture/new-pin)]
      (exec/create {:path path :spec {:type :hash-of-maps :key :u32 :max-entries 2
                                      :inner-map {:type :array :value :u32 :max-entries 1}}})
      (is (= :hash-of-maps (:type (exec/show {:ref path}))))
      (exec/unpin {:path path})
      (is (= [2
              "bpfmap: --spec must be a map with keyword keys, such as {map-extra 3}, got [1]; see `bpfmap help create`"]
             (refused "create" path "--spec" "[1]")))
      (is (re-find #"--type is required" (second (refused "create" path))))
      (is (re-find #"unknown map type"
                   (str/lower-case (second (refused "create" path "--type" "hsh"))))))))

(kernel-test ^{:needs [[:map-type :cgrp-storage]]} errors-name-the-command
  (testing "an error of a read names the command that reads, not another one"
    (with-open [m (bpf/create {:name "changing" :type :cgrp-storage :key :u32 :value :u64
                               :flags #{:no-prealloc}})]
      (doseq [[command & more] [["put" "1"] ["delete"] ["get"]]
              :let [[exit message] (apply refused command (id-of m) "/tmp" more)]]
        (is (= 1 exit))
        (is (str/starts-with? message (str "bpfmap: " command " on map " (id-of m)
                                           " (changing) failed with EBADF")))))))

(kernel-test keys-of-the-map-type
  (testing "get and take want a key exactly if the map has keys"
    (with-open [hash (a-map {:key :u32 :value :u64})
                queue (a-map {:type :queue :value :u64})]
      (doseq [command ["get" "take"]]
        (is (= [2 (str "bpfmap: " command " requires REF KEY; see `bpfmap help " command "`")]
               (refused command (id-of hash))))
        (is (= [2 (str "bpfmap: KEY cannot be used with a map that has no keys; see `bpfmap help "
                       command "`")]
               (refused command (id-of queue) "1" "--value-type" "u64")))))))

(kernel-test frozen-map-rejects-writes
  (testing "a frozen map rejects writes"
    (with-open [m (a-map {:type :array :value :u32 :max-entries 1})]
      (is (= [(str "map " (id-of m) " (changing) is frozen")] (lines-of "freeze" (id-of m))))
      (is (re-find #"frozen" (second (refused "put" (id-of m) "0" "1")))))))

;; --- maps that others use

(kernel-test confirm-map-in-use
  (testing "changes a map that a program uses only after confirmation"
    (with-open [m (a-map {:key :u32 :value :u64 :contents {1 10}})
                _ ^Closeable (prog/load {:type :socket-filter :name "uses_it"
                                         :insns [[:lddw :r1 m] [:mov64 :r0 0] [:exit]]})]
      (let [id (str (id-of m))
            path (fixture/new-pin)]
        (bpf/pin! m path)
        (doseq [args [["put" id "1" "11"] ["put" id "2" "11" "--insert"] ["delete" id "1"]
                      ["take" id "1"] ["freeze" id] ["unpin" path]]
                :let [[exit line] (apply refused args)]]
          (is (= 1 exit))
          (is
           (re-matches
            #"bpfmap: Map \d+ \(changing\) is in use by 1 program \(uses_it\[\d+\]\): pass --yes to change it anyway"
            line)))
        (is (= {1 10} (bpf/snapshot m)))
        (is (= ["10"] (lines-of "get" id "1")) "reading asks nobody")
        (is (= ["1  11  (was 10)"] (lines-of "put" id "1" "11" "--yes")))
        (is (= ["1  (was 11)"] (lines-of "delete" id "1" "--yes")))
        (is (= :not-confirmed
               (:bpfmap/error (fixture/error-of (exec/put {:ref id :key 1 :value 1})))))
        (is (:written (exec/put {:ref id :key 1 :value 1 :yes true})))
        (is (re-find #"is no longer pinned" (first (lines-of "unpin" path "--yes"))))))))

(kernel-test ^{:needs [[:map-type :task-storage] [:map-type :cgrp-storage]]} errors-name-command
  (testing "an error about an operation names the command, not one of its steps"
    (doseq [[type key] [[:sk-storage "{:fd 0}"] [:task-storage "{:fd 0}"] [:cgrp-storage "{:fd 0}"]]
            [command & more] [["put" key "2"] ["put" key "2" "--replace"] ["put" key "2" "--insert"]
                              ["delete" key] ["get" key] ["take" key] ["hist"] ["clear"]]]
      (with-open [m ^Closeable (bpf/create {:type type :key :s32 :value :u32
                                            :flags [:no-prealloc]})]
        (let [{:keys [exit err]} (apply bpfmap command (id-of m)
                                        (cond-> (vec more)
                                          (#{"put" "delete" "take" "clear"} command)
                                          (conj "--yes")))
              [_ named] (re-find #"^bpfmap: ([a-z]+)(?: --[a-z]+)? on map " err)]
          (is (= 1 exit) (str type " " command))
          (is (contains? #{nil command} named) err)
          (when (#{"put" "delete" "get"} command)
            (is (= command named) err)))
        (is (= [:put :delete]
               (map :bpfmap/op
                    [(error-of (exec/put {:ref m :key {:fd 0} :value 2 :yes true}))
                     (error-of (exec/delete {:ref m :key {:fd 0} :yes true}))])))))))
