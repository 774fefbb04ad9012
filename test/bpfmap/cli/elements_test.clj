(ns bpfmap.cli.elements-test
  "What `dump` prints of a key or value, as a table, EDN or JSON, is what `get`, `put`, `delete`
  and `take` take for it."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.cli.calling :refer [bpfmap edn-of id-of refused]]
            [bpfmap.core :as bpf]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.output :as output]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.codec :as codec]
            [bpfmap.prog :as prog]
            [bpfmap.since :as since]
            [bpfmap.type :as type]
            [bpfmap.types :as types]
            [clojure.data.json :as json]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.io Closeable)
           (java.util Random)))

(set! *warn-on-reflection* true)

;; --- every type, without a kernel

(def ^:private a-byte
  (gen/frequency [[6 (gen/return 0)]
                  [4 (gen/elements [34 35 45 48 49 58 60 92 97 98])]
                  [2 (gen/elements [0x7f 0x80 0xff 0xf8 0xf0 0xc0 1 2])]
                  [2 (gen/choose 0 255)]]))

(defn- printed-forms
  "A value as `dump` prints it: in a table, as EDN, as JSON."
  [value]
  {:table (output/element-cell value)
   :edn (str/trim-newline (with-out-str (output/print-edn value)))
   :json (str/trim-newline (with-out-str (output/print-json value)))})

(defn- misread
  "The forms of bytes under a type that are not read back, with what they became."
  [type view]
  (let [c (codec/codec type nil [:key])
        value (types/decoded c view)]
    (into {} (for [[form text] (printed-forms value)
                   :let [again (try
                                 (types/encoded c
                                                (input/typed
                                                 {:type :hash :key type} :key text identity))
                                 (catch Exception e (ex-message e)))]
                   :when (not= view again)]
               [form [text again]]))))

(defn- owned-by-kernel?
  "Returns true for a type such as `:refcount`, whose value is nil and is never written."
  [type]
  (nil? (types/decoded (codec/codec type)
                       (bytes/->bytes (byte-array (type/size type))))))

(def ^:private type-and-bytes
  (gen/let [type (gen/such-that #(and (pos? (long (type/size %))) (not (owned-by-kernel? %)))
                                (gen/one-of [types/a-type types/any-type]) 100)
            view (gen/fmap bytes/->bytes (gen/vector a-byte (type/size type)))]
    [type view]))

(defspec printed-bytes-read-back 400
  (prop/for-all [[type view] type-and-bytes]
                (let [found (misread type view)]
                  (when (seq found) (prn type found))
                  (= {} found))))

;; --- on the kernel, by the command line

(def ^:private key-types
  [:u8 :s8 :u16 :s32 :u64 :s64 :u128 :u32be :f32 :f64 :bool :char :ptr :ipv4 :ipv6 :mac :port :ktime
   [:prefix :ipv4] [:prefix :ipv6] [:string 1] [:string 4] [:c-string 4] [:bytes 1] [:bytes 5]
   [:enum :u32 {:D0 0 :D1 1}] [:array :u16 3] [:array :char 3] [:array :bool 2]
   [:struct [:proto :u8] [:addr :u32]] [:struct [:a [:bits :u32 5]] [:b [:bits :u32 7]]]
   [:struct [:comm [:string 4]] [:x :f32] [:to [:prefix :ipv4]]]
   [:union [:n :u32] [:b [:array :u8 4]]]])

(defn- random-keys [^Random random size]
  (let [likely [0 0 0 0 0x7f 0x80 0xff 0xf8 45 34 35 48 97 98 1 2]]
    (vec (distinct (repeatedly 5 #(bytes/->bytes (repeatedly size (fn [] (if (.nextBoolean random)
                                                                           (nth likely
                                                                                (.nextInt
                                                                                 random
                                                                                 (count likely)))
                                                                           (.nextInt
                                                                            random 256))))))))))

(defn- table-keys
  "The keys of the table of a dump whose values are numbers, by value; nil if they have columns of
  their own."
  [out]
  (let [[heading & lines] (str/split-lines out)]
    (when (re-find #"^ *KEY +VALUE$" heading)
      (into {} (for [line lines
                     :let [[_ key n] (re-matches #"\s*(.*?)\s+(\d+)" line)]]
                 [(parse-long n) key])))))

(kernel-test dumped-keys-find-entries
  (testing "every dumped key finds its entry"
    (let [random (Random. 7)
          found (volatile! 0)]
      (doseq [key-type key-types
              :let [size (type/size key-type)
                    raw-keys (random-keys random size)]]
        (with-open [^Closeable m (bpf/create {:name "dumped" :type :hash :key-size size :value :u32
                                              :max-entries 64})]
          (doseq [[i k] (map-indexed vector raw-keys)] (bpf/put! m k i))
          (let [id (id-of m)
                typed ["--key-type" (pr-str key-type) "--value-type" "u32"]
                dumped (fn [& more]
                         (let [{:keys [exit out err]} (apply bpfmap "dump" id (concat typed more))]
                           (is (= 0 exit) err)
                           out))
                forms (concat (for [{:keys [key value]} (apply edn-of "dump" id typed)]
                                [value (str/trim-newline (with-out-str (output/print-edn key)))])
                              (for [{:strs [key value]} (json/read-str (dumped "--json"))]
                                [value (json/write-str key :escape-slash false)])
                              (table-keys (dumped)))]
            (is (<= (* 2 (count raw-keys)) (count forms)))
            (doseq [[value text] forms
                    :let [{:keys [exit out err]}
                          (apply bpfmap "get" (concat typed [id "--" text]))]]
              (testing (str (pr-str key-type) " " text)
                (is (= [0 (str value "\n")] [exit out]) err)
                (vswap! found inc)))
            ;; Each asks who has the map, which takes its time
            (doseq [[i k] (take 2 (map-indexed vector raw-keys))
                    :let [text
                          (some (fn [[value text]] (when (= i value) text)) (drop (mod i 2) forms))
                          command (if (or (even? i) (not (since/has? [:operation :hash :take!])))
                                    "delete"
                                    "take")]]
              (testing (str command " " (pr-str key-type) " " text)
                (is (= 0 (:exit (apply bpfmap command (concat typed [id "--" text])))))
                (is (not (bpf/has-key? m k))))))))
      (is (< 250 @found)))))

(kernel-test key-notations
  (testing "accepts keys as bytes, hexadecimal, EDN or JSON"
    (with-open [^Closeable texts (bpf/create {:name "texts" :type :hash :key [:string 4] :value :u64
                                              :max-entries 4})
                ^Closeable nets (bpf/create {:name "nets" :type :lpm-trie :key [:prefix :ipv4]
                                             :value :u64 :max-entries 4 :flags #{:no-prealloc}})
                ^Closeable hosts (bpf/create {:name "hosts" :type :hash
                                              :key [:struct [:ip :ipv4] [:mac :mac]] :value :u64
                                              :max-entries 4})]
      (are [m key value] (and (= 0 (:exit (bpfmap "put" (id-of m) key value)))
                              (= (str value "\n") (:out (bpfmap "get" (id-of m) key))))
        texts "abcd" 1
        texts "61 62 63 00" 2
        texts "0x61620000" 3
        nets "{:prefixlen 8, :data #bpfmap/bytes \"0a 01 02 03\"}" 4
        nets "{:prefixlen 8, :data <0a 01 02 03>}" 5
        nets "{\"prefixlen\":8,\"data\":\"0a 01 02 03\"}" 6
        nets "08 00 00 00 0a 01 02 03" 7
        nets "0x080000000a010203" 8
        hosts "{ip \"10.0.0.1\" mac \"00:1b:21:0a:0b:0c\"}" 9
        hosts "{\"ip\":\"10.0.0.1\",\"mac\":\"00:1b:21:0a:0b:0c\"}" 10
        hosts "0a 00 00 01 00 1b 21 0a 0b 0c 00 00" 11
        hosts "{ip \"0a 00 00 01\" mac \"00 1b 21 0a 0b 0c\"}" 12)
      (is (= "2\n" (:out (bpfmap "get" (id-of texts) "abc"))))
      (is (= "12\n"
             (:out (bpfmap "get" (id-of hosts) "{ip \"10.0.0.1\" mac \"00:1b:21:0a:0b:0c\"}")))))))

(kernel-test map-or-program-value
  (testing "a map or program value is given by id, pin or name"
    (with-open [^Closeable inner (bpf/create {:name "el_inner" :type :array :value :u8
                                              :max-entries 1})
                ^Closeable outer (bpf/create {:name "el_outer" :type :array-of-maps :max-entries 8
                                              :inner-map {:type :array :value :u8 :max-entries 1}})
                ^Closeable program (prog/load {:type :socket-filter :name "el_prog"
                                               :insns [[:mov64 :r0 0] [:exit]]})
                ^Closeable programs (bpf/create {:name "el_programs" :type :prog-array
                                                 :max-entries 8})]
      (let [pin (fixture/new-pin)
            program-pin (fixture/new-pin)
            program-id (:id (prog/info program))]
        (bpf/pin! inner pin)
        (prog/pin! program program-pin)
        (try
          (doseq [[i value] (map-indexed vector
                                         [(id-of inner) pin "el_inner"
                                          (str "{:map-id " (id-of inner) "}")
                                          (str "{\"map-id\":" (id-of inner) "}")])]
            (is (= 0 (:exit (bpfmap "put" (id-of outer) i value))) value)
            (is (= {:map-id (id-of inner)} (:value (edn-of "get" (id-of outer) i))) value))
          (doseq [[i value] (map-indexed vector
                                         [program-id program-pin "el_prog"
                                          (str "{:program-id " program-id "}")])]
            (is (= 0 (:exit (bpfmap "put" (id-of programs) i value))) value)
            (is (= {:program-id program-id} (:value (edn-of "get" (id-of programs) i))) value))
          (is (= [1 "bpfmap: No map named \"el_none\""]
                 (refused "put" (id-of outer) 0 "el_none")))
          (is (= [1 "bpfmap: No program named \"el_none\""]
                 (refused "put" (id-of programs) 0 "el_none")))
          (finally
            (bpf/unpin! inner)
            (.delete (java.io.File. ^String program-pin))))))))
