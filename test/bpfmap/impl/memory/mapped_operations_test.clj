(ns bpfmap.impl.memory.mapped-operations-test
  "A map opened `{:mapped true}` answers as any other does, without a system call for what lies in
  its memory."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.memory :as mem]
            [bpfmap.prog :as prog]
            [bpfmap.since :as since]
            [clojure.string :as str]
            [clojure.test :refer [is testing]]
            [clojure.test.check :as check]
            [clojure.test.check.generators :as gen]
            [clojure.test.check.properties :as prop])
  (:import (java.io Closeable)
           (java.nio.file Files Path)))

(set! *warn-on-reflection* true)

(def ^:private spec
  {:name "t_direct" :type :array :key :u32 :value [:struct [:n :u64] [:name [:string 5]]]
   :max-entries 8 :flags #{:mmapable}})

(defn- create
  (^Closeable [options] (create nil options))
  (^Closeable [change options] (bpf/create (merge spec change) options)))

(def ^:private through {:mapped true})

;; --- the same results

(def ^:private a-key
  (gen/one-of [(gen/choose 0 7)
               (gen/elements [8 4294967295 4294967296 -1 nil :a "7" 1.0 3N (int 3)])]))

(def ^:private a-value
  (gen/one-of [(gen/let [n (gen/choose 0 1000) name (gen/elements ["" "ab" "abcd"])]
                 {:n n :name name})
               (gen/elements [{:n -1 :name ""} {:n 1 :name "abcde"} {:n 1} nil 7
                              {:n 18446744073709551615N :name "x"}])]))

(def ^:private a-number
  (gen/elements [0 1 255 65536 4294967295 4294967296 9223372036854775807 9223372036854775808N
                 18446744073709551615N
                 18446744073709551616N -1 (int 7) 7N 1.5 "7" nil]))

(defn- commands [a-value]
  (gen/vector (gen/one-of [(gen/tuple (gen/elements [:get :call :lookup :has-key? :next-key
                                                     :delete!]) a-key)
                           (gen/tuple (gen/elements [:put! :insert! :replace!]) a-key a-value)
                           (gen/tuple (gen/elements [:reduce :seq :reduce-kv :snapshot :count
                                                     :entries :reduced :throwing]))
                           (gen/tuple (gen/return :put-all!)
                                      (gen/map (gen/choose 0 8) a-value {:max-elements 3}))
                           (gen/tuple (gen/return :lookup-all) (gen/vector (gen/choose 0 9) 0 3))])
              1 25))

(defn- perform [m [op k v]]
  (let [outcome (try
                  (case op
                    :get (get m k :none)
                    :call (m k)
                    :lookup (bpf/lookup m k :none)
                    :has-key? (bpf/has-key? m k)
                    :next-key (bpf/next-key m k), :delete! (bpf/delete! m k)
                    :put! (identical? m (bpf/put! m k v))
                    :insert! (bpf/insert! m k v)
                    :replace! (bpf/replace! m k v)
                    :reduce (into {} m)
                    :seq (vec (seq m))
                    :reduce-kv (reduce-kv (fn [acc k v] (conj acc [k v])) [] m)
                    :snapshot (bpf/snapshot m)
                    :count (bpf/count-entries m)
                    :entries (into [] (map key) (bpf/entries m))
                    :reduced (reduce (fn [n [k _]] (if (= 3 k) (reduced [:stopped n]) (inc n))) 0 m)
                    :throwing (reduce (fn [_ _] (throw (IllegalStateException. "mine"))) nil m)
                    :put-all! (bpf/put-all! m k), :lookup-all (bpf/lookup-all m k))
                  (catch clojure.lang.ExceptionInfo e
                    [(ex-message e) (update (ex-data e) :bpfmap/map dissoc :id)])
                  (catch Exception e
                    [(class e) (ex-message e)]))]
    (if (string? (first (when (vector? outcome) outcome)))
      (update outcome 0 str/replace #"map \d+" "map N")
      outcome)))

(kernel-test m1-memory-like-system-calls
  (testing "a map through memory returns the same as through system calls"
    (doseq [[change a-value] [[nil a-value] [{:value :u64} a-number] [{:value :s32} a-number]
                              [{:value :u16be} a-number]]]
      (let [holds? (fn [commands]
                     (with-open [direct (create change through)
                                 ordinary (create change nil)]
                       (every? (fn [command]
                                 (= (perform ordinary command) (perform direct command)))
                               commands)))
            {:keys [pass?] :as result} (check/quick-check
                                        (fixture/trials 100)
                                        (prop/for-all [commands (commands a-value)]
                                                      (holds? commands)))]
        (is pass? (pr-str change (select-keys result [:seed :shrunk])))))))

(kernel-test keys-of-any-type
  (testing "keys can have any type"
    (doseq [[t in out] [[[:enum :u32 {:rx 0 :tx 1}] [:rx :tx 5 0] [:rx :tx nil nil]]
                        [:u32be [0x01000000 0 7] [0x01000000 0 nil]]
                        [:ipv4 ["1.0.0.0" "0.0.0.0" "7.0.0.0"] nil]]]
      (with-open [direct (create {:key t :max-entries 2} through)
                  ordinary (create {:key t :max-entries 2} nil)]
        (doseq [k in]
          (is (= (perform ordinary [:put! k {:n 7 :name "x"}])
                 (perform direct [:put! k {:n 7 :name "x"}])) [t k])
          (is (= (perform ordinary [:get k]) (perform direct [:get k])) [t k]))
        (is (= (into {} ordinary) (into {} direct)) out)))))

;; --- without system calls

(defn- calls-of
  "How many calls of bpf(2) this thread makes while f runs: a program at the tracepoint of system
  calls counts them."
  [f]
  (with-open [counts (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1
                                  :flags #{:mmapable}})
              p ^Closeable (prog/load {:type :raw-tracepoint
                                       :insns [[:mov64 :r6 :r1]
                                               [:call :get-current-pid-tgid]
                                               ;; Gettid
                                               [:jne32 :r0 (fixture/syscall "gettid") :out]
                                               [:ldxdw :r7 [:r6 8]] ; the number of the call
                                               [:jne :r7 (fixture/syscall-number "bpf") :out]
                                               [:ld-map-value :r1 counts 0]
                                               [:mov64 :r2 1]
                                               [:atomic-add64 [:r1 0] :r2]
                                               :out
                                               [:mov64 :r0 0]
                                               [:exit]]})]
    (let [n (mem/at (mem/elements counts) 0)]
      (with-open [_ ^Closeable (prog/attach-raw-tracepoint p "sys_enter")]
        (let [before @n]
          (f)
          (- @n before))))))

(kernel-test no-system-calls
  (testing "reads and writes elements without system calls"
    (with-open [direct (create through)
                ordinary (create nil)]
      (let [work (fn [m]
                   (dotimes [i 100]
                     (bpf/put! m (mod i 8) {:n i :name "x"})
                     (get m (mod i 8))
                     (m (mod i 8)))
                   (into {} m))]
        (is (= (work direct) (work ordinary)))
        (is (= 0 (calls-of #(work direct))))
        (is (<= 300 (calls-of #(work ordinary)))))
      (testing "except for values that are not in memory"
        (is (= 1 (calls-of #(direct 8))) "an index beyond the end")
        (is (= 1 (calls-of #(bpf/next-key direct))))))))

;; --- the life of the mapping

(kernel-test private-mapping-closed
  (testing "closes the mapping with the map unless somebody requested the memory"
    (let [pages 75 ; a size that no other mapping of this process has
          address #(Long/parseUnsignedLong % 16)
          mapped (fn []
                   (count (filter (fn [[_ from to]]
                                    (= (* pages fixture/page-size) (- (address to) (address from))))
                                  (re-seq #"(?m)^([0-9a-f]+)-([0-9a-f]+) .* anon_inode:bpf-map$"
                                          (Files/readString
                                           (Path/of "/proc/self/maps" (make-array String 0)))))))]
      (let [m (create {:max-entries (* pages (quot fixture/page-size 16))} through)]
        (bpf/put! m 1 {:n 1 :name ""})
        (is (= 1 (mapped)))
        (bpf/close m)
        (is (= 0 (mapped)) "it goes with the map")
        (is (= :closed (:bpfmap/error (error-of (m 1)))))
        (is (= :closed (:bpfmap/error (error-of (bpf/put! m 1 {:n 1 :name ""})))))
        (is (= :closed (:bpfmap/error (error-of (into {} m))))))
      (let [m (create through)
            memory (bpf/memory m)]
        (bpf/put! m 1 {:n 7 :name ""})
        (bpf/close m)
        (is (= 7 @(mem/view memory :u64 16)) "but not while somebody has it")
        (is (= :closed (:bpfmap/error (error-of (m 1)))))
        (mem/close memory)))))

(kernel-test unmapped-memory
  (testing "uses system calls again after the memory is unmapped"
    (with-open [m (create through)]
      (bpf/put! m 1 {:n 7 :name "a"})
      (mem/close (bpf/memory m))
      (is (= {:n 7 :name "a"} (m 1)))
      (is (= 1 (calls-of #(m 1))))
      (bpf/put! m 1 {:n 8 :name "b"})
      (is (= {:n 8 :name "b"} (get (into {} m) 1)))
      (testing "until it is mapped again"
        (with-open [memory ^Closeable (bpf/memory m)]
          (is (= 8 @(mem/view memory :u64 16)))
          (is (= 0 (calls-of #(m 1)))))))))

(kernel-test m5-freeze-remaps-memory
  (testing "freezing unmaps the memory and maps it again for reading"
    (testing "unmaps its memory for the moment, and reads it afterwards"
      (with-open [m (create through)]
        (bpf/put! m 1 {:n 7 :name "a"})
        (is (identical? m (bpf/freeze! m)))
        (is (= {:n 7 :name "a"} (m 1)))
        (is (= 0 (calls-of #(m 1))))
        (is (= [:permission :put!]
               ((juxt :bpfmap/error :bpfmap/op) (error-of (bpf/put! m 1 {:n 8 :name ""})))))))
    (testing "but leaves it mapped where somebody has it"
      (with-open [m (create through)]
        (let [memory (bpf/memory m)]
          (is (re-find #"this handle has its memory mapped for writing; close it first"
                       (:message (error-of (bpf/freeze! m)))))
          (is (= 0 (memory 0)))
          (mem/close memory)
          (bpf/freeze! m)
          (is (= 0 (:n (m 1)))))))))

(kernel-test contents-and-freeze
  (testing "writes the contents and freezes before mapping"
    (with-open [m (create {:contents {1 {:n 7 :name "a"}} :freeze true} through)]
      (is (= {:n 7 :name "a"} (m 1)))
      (is (= 0 (calls-of #(m 1))))
      (is (= :permission (:bpfmap/error (error-of (bpf/put! m 1 {:n 7 :name "a"}))))))))

(kernel-test clones-use-memory-too
  (testing "clones and opened maps also use the memory"
    (with-open [m (create through)
                twin (bpf/clone m)
                opened (bpf/open (:id (bpf/info m)) through)
                reader (bpf/open (:id (bpf/info m)) {:mapped true :access :read-only})]
      (bpf/put! twin 1 {:n 7 :name "a"})
      (doseq [x [m twin opened reader]]
        (is (= {:n 7 :name "a"} (x 1)))
        (is (= 0 (calls-of #(x 1)))))
      (is (= :read-only (:bpfmap/error (error-of (bpf/put! reader 1 {:n 8 :name ""})))))
      (testing "but a clone of an ordinary one does not"
        (with-open [ordinary (create nil)
                    twin (bpf/clone ordinary)]
          (is (= 1 (calls-of #(twin 1)))))))))

(kernel-test pinned-by-name
  (testing "a map pinned by name uses the memory if found or created"
    (let [options {:mapped true :pin-path (fixture/bpffs)}
          change {:name "t_direct_pin" :pinning :by-name}]
      (with-open [made (create change options)
                  found (create change options)]
        (bpf/put! made 1 {:n 7 :name "a"})
        (is (= (:id (bpf/info made)) (:id (bpf/info found))))
        (is (= [0 0] [(calls-of #(made 1)) (calls-of #(found 1))]))
        (is (= 7 (:n (found 1))))
        (bpf/unpin! made)))))

(kernel-test maps-without-memory
  (testing "rejects the memory option for maps that cannot be mapped"
    (let [before (fixture/settled-descriptors)]
      (doseq [[spec hint] [[{:type :hash :key :u32 :value :u64 :max-entries 1}
                            "a map of type :hash has no memory to map; maps of type :arena or :array have"]
                           [{:type :array :key :u32 :value :u64 :max-entries 1}
                            "create the map with :flags #{:mmapable}; an existing map cannot get the flag"]
                           [{:type :arena :max-entries 1 :flags #{:mmapable}}
                            "it has no elements that could be read and written there; (memory m) returns its memory"]]
              :when (since/has? [:map-type (:type spec)])]
        (let [{:keys [message] :bpfmap/keys [error op]} (error-of (bpf/create spec through))]
          (is (= [:not-supported :create] [error op]))
          (is (str/ends-with? message (str "cannot be mapped: " hint)))))
      (is (<= (fixture/open-descriptors) before) "the map that was made is gone again"))
    (doseq [f [#(bpf/create spec {:mapped :memory}) #(bpf/open 1 {:mapped nil})]]
      (let [{:keys [message] :bpfmap/keys [error path]} (error-of (f))]
        (is (= [:invalid-value [:mapped]] [error path]))
        (is (re-find #"^:mapped must be true or false, got " message))))
    (with-open [m (bpf/create spec {:mapped false})]
      (is (= 1 (calls-of #(bpf/lookup m 0)))))))
