(ns bpfmap.spec-test
  (:require [bpfmap.fixture :refer [error-of]]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.spec :as spec]
            [clojure.string :as str]
            [clojure.test :refer [are deftest is testing]]
            [clojure.test.check.clojure-test :refer [defspec]]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop]))

(set! *warn-on-reflection* true)

(def ^:private good {:type :hash :key :u32 :value :u64 :max-entries 8})

(deftest valid-spec-completed
  (testing "completes a valid spec"
    (is (= {:type :hash :key :u32 :key-size 4 :value :u64 :value-size 8 :max-entries 8 :flags #{}}
           (spec/complete good)))
    (is (= {:type :array :key :u32 :key-size 4 :value [:bytes 6] :value-size 6 :max-entries 1
            :flags #{:mmapable}}
           (spec/complete {:type 2 :key-size 4 :value-size 6 :max-entries 1 :flags [1024]})))
    (is (= #{:numa-node :no-prealloc}
           (:flags (spec/complete (assoc good :numa-node 0 :flags #{:no-prealloc})))))))

(deftest completing-is-idempotent
  (testing "completing a spec twice changes nothing"
    (is (= (spec/complete good) (spec/complete (spec/complete good))))))

(deftest s9-broken-rule-named
  (testing "every error names the broken rule"
    (are [change path words]
         (let [{:keys [message] :bpfmap/keys [error op] found :bpfmap/path}
               (error-of (spec/complete (merge good change)))]
           (and (= :invalid-spec error)
                (= :create op)
                (= path found)
                (str/includes? message words)))
      {:type nil} [:type] ":type is required, such as :hash or :array"
      {:type :hsah} [:type]
      "unknown map type :hsah; did you mean :hash? See bpfmap.spec for all"
      {:type "hash"} [:type] ":type must be a name or a number, got \"hash\""
      {:type -1} [:type] ":type must be a name or a number, got -1"
      {:max-entries nil} [:max-entries]
      ":max-entries is required (the number of entries it can hold)"
      {:max-entries 0} [:max-entries] ":max-entries must be an integer from 1 to 4294967295, got 0"
      {:max-entries 4294967296} [:max-entries] "from 1 to 4294967295"
      {:max-entries 1.5} [:max-entries] "from 1 to 4294967295, got 1.5"
      {:key nil} [:key] ":key or :key-size is required (a type such as :u32, or a size in bytes)"
      {:value nil} [:value] ":value or :value-size is required"
      {:key :u33} [:key] "unknown type :u33; did you mean :u32?"
      {:key-size 8} [:key-size] ":key-size must be 4, the size of :key :u32, got 8"
      {:key nil :key-size "4"} [:key-size] ":key-size must be a number of bytes, got \"4\""
      {:key nil :key-size 0} [:key-size] "the key of :hash maps must have at least 1 byte, got 0"
      {:type :array :key :u64} [:key] "the key of :array maps must have 4 bytes, got 8"
      {:type :array :flags #{:no-prealloc}} [:flags]
      ":array maps do not accept the flag :no-prealloc; accepted: "
      {:flags #{:mmapable}} [:flags] ":hash maps do not accept the flag :mmapable"
      {:flags #{:fast}} [:flags]
      "unknown flag :fast; see bpfmap.spec for all flags"
      {:flags :no-prealloc} [:flags] ":flags must be a set of names, got :no-prealloc"
      {:flags #{"x"}} [:flags] "a flag must be a name or a bit, got \"x\""
      {:flags #{:numa-node}} [:numa-node] "requires the number of a node"
      {:numa-node -1} [:numa-node] ":numa-node must be the number of a node, got -1"
      {:name :counts} [:name] ":name must be a string, got :counts"
      {:contents [1 2]} [:contents] ":contents must be a map or a sequence of [key value] pairs"
      {:type :ringbuf :key nil :value nil :max-entries nil} [:max-entries]
      ":max-entries is required (its size in bytes)"
      {:freeze 1} [:freeze] ":freeze must be true or false, got 1"
      {:freeze true :value [:struct [:lock :spin-lock] [:n :u32]]} [:freeze]
      "cannot be frozen if its values have fields owned by the kernel"
      {:freeze true :value [:array [:struct [:t :timer]] 2]} [:freeze]
      "cannot be frozen if its values have fields owned by the kernel"
      {:flags #{:rdonly} :contents {1 1}} [:flags] "cannot be filled"
      {:pining :by-name} [:pining]
      "unknown key :pining; did you mean :pinning? See bpfmap.spec for all keys")))

(def ^:private congestion-control {:type :struct-ops :struct-ops "tcp_congestion_ops"})

(deftest struct-ops-value
  (testing "leaves the values of a struct_ops map to the kernel"
    (let [completed (spec/complete congestion-control)]
      (is (= {:type :struct-ops :struct-ops "tcp_congestion_ops" :key :u32 :key-size 4 :value nil
              :value-size 0 :max-entries 1 :flags #{}}
             completed (spec/complete completed)
             (spec/complete (assoc congestion-control :type 26))))
      (is (= 256 (:value-size (spec/complete (assoc congestion-control :value-size 256))))))
    (are [spec path words] (let [problem (first (spec/problems spec))]
                             (and (= path (:path problem))
                                  (str/includes? (:message problem) words)))
      {:type :struct-ops} [:struct-ops]
      ":struct-ops maps require :struct-ops, the name of a kernel struct"
      (assoc good :struct-ops "x") [:struct-ops] ":hash maps do not accept :struct-ops"
      (assoc congestion-control :struct-ops :tcp) [:struct-ops]
      "must be the name of a kernel struct, got :tcp"
      (assoc congestion-control :struct-ops "struct x") [:struct-ops] "got \"struct x\""
      (assoc congestion-control :struct-ops "") [:struct-ops] "got \"\""
      (assoc congestion-control :max-entries 2) [:max-entries]
      ":max-entries of :struct-ops maps must be 1, got 2"
      (assoc congestion-control :key :u64) [:key] "must have 4 bytes, got 8"
      (assoc congestion-control :freeze true) [:freeze] "cannot be frozen")))

(deftest struct-ops-compared
  (testing "compares structs if both sides have one"
    (let [info (assoc (spec/complete congestion-control) :value-size 256)]
      (are [change info diff] (= diff (spec/diff info (merge congestion-control change) nil))
        {} info nil
        {} (dissoc info :struct-ops) nil
        {:value-size 256} info nil
        {:value-size 128} info {:value-size {:spec 128 :map 256}}
        {:struct-ops "x"} info {:struct-ops {:spec "x" :map "tcp_congestion_ops"}}
        {:struct-ops "x"} (dissoc info :struct-ops) nil))))

(deftest all-problems-reported
  (testing "reports all problems at once"
    (let [{:keys [message]
           :bpfmap/keys [problems]} (error-of
                                      (spec/complete {:type :array :key :u64
                                                      :flags #{:no-prealloc}}))]
      (is (= [[:key] [:value] [:max-entries] [:flags]] (map :path problems)))
      (is (every? #(str/includes? message (:message %)) problems)))))

(deftest spec-not-a-map
  (testing "rejects a spec that is not a map"
    (is (= [[]] (map :path (spec/problems (sorted-map "type" :hash)))))
    (is (str/includes? (:message (error-of (spec/complete [:type :hash])))
                       "a spec must be a map with keywords as keys, got [:type :hash]"))))

(def ^:private anything
  (gen/recursive-gen gen/container-type gen/simple-type-printable))

(def ^:private almost-specs
  (gen/let [type (gen/elements [:hash :array :lpm-trie 1 99 nil :x])
            change (gen/map (gen/elements [:key :value :key-size :value-size :max-entries :flags
                                           :name :contents :freeze :numa-node])
                            anything {:max-elements 3})]
    (merge good {:type type} change)))

(defspec any-spec-or-error 500
  (prop/for-all [given (gen/one-of [almost-specs anything])]
                (try
                  (map? (spec/complete given))
                  (catch clojure.lang.ExceptionInfo e
                    (= :invalid-spec (:bpfmap/error (ex-data e)))))))

(defspec s4-valid-kernel-names 300
  (prop/for-all [full gen/string]
                (let [short (spec/kernel-name full)]
                  (and (re-matches #"[A-Za-z0-9_.]{0,15}" short)
                       (= short (spec/kernel-name short))))))

(deftest s4-kernel-name-is-shortened
  (testing "filters and truncates names"
    (are [full short] (= short (spec/kernel-name full))
      "counts" "counts"
      "my-flows by address" "myflowsbyaddres"
      "größe" "gre"
      "" ""
      nil "")))

(deftest s7-frozen-sections
  (testing "recognizes constant data sections by name"
    (are [name frozen?] (= frozen? (spec/frozen-by-name? name))
      ".rodata" true ".rodata.str" true ".kconfig" true ".kconfig2" false ".kconfig.x" false
      ".rodata2" false ".data" false "my.rodata" false nil false)))

(deftest docstring-lists-names
  (testing "the docstring of the namespace lists all map types and all flags"
    (let [listed (set (re-seq #"`(:[a-z-]+)`" (:doc (meta (the-ns 'bpfmap.spec)))))]
      (doseq [k (concat (keys map-types/types) (keys map-types/flags))]
        (is (contains? listed [(str "`" k "`") (str k)]) (str k))))))
