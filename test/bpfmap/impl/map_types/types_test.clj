(ns bpfmap.impl.map-types.types-test
  "What the table of map types says of creating, against the running kernel: its numbers are those
  that the kernel draws the line at."
  (:require [bpfmap.btf :as btf]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :refer [error-of kernel-test]]
            [bpfmap.impl.kernel.btf :as sys.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.impl.kernel.probe :as probe]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.linux :as linux :refer [said]]
            [bpfmap.since :as since]
            [bpfmap.spec :as spec]
            [bpfmap.uses :refer [here? inner row-of used uses]]
            [clojure.set :as set]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (bpfmap.sys Fd)
           (clojure.lang ExceptionInfo)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(def ^:private facts {:op :create})

(defn- own-bytes
  "A type of n bytes that BTF can tell."
  [n]
  ({4 :u32 8 :u64} n [:struct [:bytes [:bytes n]]]))

(defn- raw-create
  "Creates a map with what is in a spec and nothing else, `:btf` the types of key and value; calls
  f with its descriptor. The name of an errno where the kernel refuses; else what f returns, `:ok`
  without f."
  ([spec] (raw-create spec (constantly :ok)))
  ([{:keys [btf] :as spec} f]
   (let [{:keys [bytes ids]} (when btf (btf/->btf btf nil))
         ^Fd blob (when bytes (sys.btf/load bytes nil facts))]
     (try
       (let [fd (map/create (assoc spec :btf
                                   (when blob {:fd blob :key (first ids) :value (second ids)}))
                            facts)]
         (try (f fd) (finally (call/close fd))))
       (catch ExceptionInfo e
         (or (:bpfmap/errno (ex-data e)) (throw e)))
       (finally (some-> blob call/close))))))

(defn- bare
  "The spec of a use as the kernel needs it at least, with changes: with BTF where that is
  required."
  [{:keys [spec] :as use} & {:as changes}]
  (let [spec (-> (spec/complete spec (lifecycle/machine))
                 (select-keys [:type :key-size :value-size :max-entries :flags])
                 (assoc :name nil)
                 (merge changes))]
    (cond-> spec
      (and (= :required (:btf (row-of use))) (not (contains? changes :btf)))
      (assoc :btf [(own-bytes (:key-size spec)) (own-bytes (max 1 (long (:value-size spec))))]))))

(defn- try-spec
  "What the kernel says to a spec of [[bare]], given a map to hold where it holds maps."
  ([use spec] (try-spec use spec (constantly :ok)))
  ([use spec f]
   (if (:inner (row-of use))
     (with-open [template ^Closeable (bpf/create inner)]
       (raw-create (assoc spec :inner-map (bpf-map/descriptor template)) f))
     (raw-create spec f))))

(def ^:private vague
  "Limits that are no limits of the type: as many as there is memory for, or far more than a test
  should ask for."
  #{0xffffffff 0x80000000})

(defn- inside-and-outside
  "Numbers just inside and just outside of a rule of a row: `[inside outside]`."
  [rule]
  (let [inside (if (set? rule)
                 rule
                 (into #{(first rule)} (remove vague) [(second rule)]))]
    [inside (into #{}
                  (remove #(or (neg? (long %))
                               (if (set? rule)
                                 (rule %)
                                 (<= (long (first rule)) (long %) (long (second rule))))))
                  (mapcat (fn [n] [(dec (long n)) (inc (long n))]) inside))]))

(def ^:private limit-of-the-machine
  "Rules whose upper end is loose in the row, since it is the machine's or the kernel's build:
  what it is here."
  {[:stack-trace
    :value-size] #(let [frames
                        (parse-long (str/trim (slurp "/proc/sys/kernel/perf_event_max_stack")))]
                    (* frames (if (contains? (:flags %) :stack-build-id) 32 8)))
   ;; Everything up to a header whose size user space does not know; see the test below.
   [:local-storage :value-size] (constantly 32768)
   [:cgroup-storage :value-size] (constantly 32768)})

(defn- longest
  "The longest value, which on older kernels is a page."
  [type most]
  (if (since/has? [:long-values type])
    most
    (min most (call/page-size))))

(defn- local-storage? [use] (= :required (:btf (row-of use))))

(defn- up-to-a-header? [{:keys [spec] :as use}]
  (or (local-storage? use) (= :cgroup-storage (:type spec))))

(defn- rule-for [{:keys [spec] :as use} column]
  (let [row (row-of use)
        rule (or (column row) (set (keys (({:key-size :keys, :value-size :values} column) row))))
        limit (limit-of-the-machine [(if (local-storage? use) :local-storage (:type spec)) column])]
    (cond-> rule
      limit (assoc 1 (limit spec))
      (and (= :value-size column) (:long-values-since row)) (update 1 #(longest (:type spec) %)))))

(kernel-test element-size-limits
  (testing "accepts key and value sizes exactly within the limits of the row"
    (doseq [use uses :when (here? use)
            column [:key-size :value-size]
            :let [[inside outside] (inside-and-outside (rule-for use column))
                  step (map-types/value-multiple (:type (:spec use)) (:flags (:spec use)))
                  outside
                  (cond->> outside
                    (and (= :value-size column) (up-to-a-header? use)) (filter #(< (long %) 32768)))
                  try-size #(try-spec use (bare use column %))]]
      (testing (str (:spec use) " " column)
        (doseq [n inside :when (or (= :key-size column) (zero? (rem (long n) (long step))))]
          (is (= :ok (try-size n)) n))
        (doseq [n outside]
          (is (contains? (cond-> #{:EINVAL :E2BIG}
                           (not (since/here? [:kernel :sizes-of-per-cpu-values])) (conj :ENOMEM))
                         (try-size n))
              n))
        (when (and (= :value-size column) (< 1 (long step)))
          (is (= :EINVAL (try-size (+ (long step) 4)))))))))

(kernel-test storage-value-limit
  (testing "a storage accepts values of almost the limit of the row"
    (doseq [use uses :when (and (here? use) (up-to-a-header? use))
            :let [most (second (:value-size (row-of use)))]]
      (is (= :E2BIG (try-spec use (bare use :value-size (inc (long most))))))
      (when (since/has? [:long-values (:type (:spec use))])
        (is (= :ok (try-spec use (bare use :value-size (- (long most) 255)))))))))

(kernel-test max-entries-limits
  (testing "accepts entry counts exactly down to the limits of the row"
    (doseq [{:keys [spec] :as use} uses :when (here? use)
            :let [{[least most] :max-entries :keys [rounded clamped]} (row-of use)
                  page (long (call/page-size))
                  ;; 4 GiB; the row is for the smallest pages.
                  most (if (= :arena (:type spec)) (quot 0x100000000 page) most)
                  try-entries #(try-spec use (bare use :max-entries %))]]
      (testing spec
        (cond
          (= 0 most) (is (= [:ok :EINVAL] (map try-entries [0 1])))
          (contains? rounded
                     nil) (is (= [:ok :ok :EINVAL :EINVAL :EINVAL :EINVAL]
                                 (map try-entries [page (* 4 page) least (dec page) (* 3 page)
                                                   (inc (long most))])))
          :else
          (do (is (= :ok (try-entries least)))
              (is (= :EINVAL (try-entries 0)))
              (when-not (or (vague most) clamped)
                (is (= [:ok :E2BIG] (map try-entries [most (inc (long most))]))))))))))

(def ^:private companions
  "What a flag needs beside it to be accepted."
  {:numa-node (constantly {:numa-node 0})
   :stack-build-id (constantly {:value-size 32})})

(def ^:private clashes
  "Flags that the kernel takes alone, and not together."
  #{#{:no-common-lru :numa-node}})

(kernel-test accepted-flags
  (testing "accepts exactly the flags of the row"
    (doseq [use uses :when (here? use)
            [flag {:keys [since]}] map-types/flags
            :let [row (row-of use)
                  given (conj (set (:flags (:spec use))) flag)
                  spec (bare use (merge {:flags given} ((companions flag (constantly nil)))))
                  found (try-spec use spec)]]
      (testing (str (:spec use) " " flag)
        (if (and (contains? (:flags row) flag)
                 (not-any? #(set/subset? % given) clashes)
                 (map-types/at-least? (call/kernel-release) since))
          (is (= :ok found))
          (is (#{:EINVAL :ENOTSUPP :EBADF :EPERM} found)))
        (is (= (and (contains? (set/union (:flags row) (:added row)) flag)
                    (not-any? #(set/subset? % given) clashes))
               (not-any? #(#{[:flags] [:numa-node]} (:path %))
                         (spec/problems (merge (dissoc (:spec use) :value-size :value)
                                               {:flags given
                                                :numa-node (when (= :numa-node flag) 0)})))))))))

(kernel-test required-flags
  (testing "required flags are required and added flags are added"
    (doseq [{:keys [spec] :as use} uses :when (here? use)
            :let [{:keys [requires added]} (row-of use)]]
      (testing spec
        (when-not (contains? (:flags spec) :stack-build-id) ; without it the value would be too long
          (is (= (empty? requires) (= :ok (try-spec use (bare use :flags #{}))))))
        (doseq [flag requires]
          (is (= :EINVAL (try-spec use (bare use :flags (disj (set (:flags spec)) flag)))))
          (is (str/includes? (:message (error-of (bpf/create (update spec :flags disj flag))))
                             (str "maps require the flag " flag))))
        (is (= (into (set (:flags spec)) added)
               (try-spec use (bare use) #(:flags (map/info % facts)))))
        (doseq [flag added]
          (is (= :EINVAL (try-spec use (bare use :flags #{flag})))
              "the kernel adds it, and does not take it")
          (with-open [m ^Closeable (bpf/create (update spec :flags (fnil conj #{}) flag))]
            (is (= #{} (:flags (bpf/spec m))))
            (is (= #{flag} (:flags (bpf/info m))))))))))

(kernel-test s8-btf-by-row
  (testing "accepts BTF exactly if the row grants it"
    (doseq [{:keys [spec] :as use} uses :when (here? use)
            :let [{:keys [btf]} (row-of use)
                  {:keys [key value key-size value-size]} (spec/complete spec (lifecycle/machine))
                  kept #(:btf-id (map/info % facts))
                  with-types (fn [types] (try-spec use (bare use :btf types) kept))]]
      (testing spec
        (with-open [m ^Closeable (bpf/create spec)]
          (is (= (not= :none btf) (some? (:btf-id (bpf/info m)))))
          (is (nil? (:untyped (bpf/info m)))))
        (case btf
          :none (is (#{:EINVAL
                       :ENOTSUPP} (with-types [(own-bytes (max 4 (long key-size)))
                                               (own-bytes (max 4 (long value-size)))])))
          :required (do (is (= :EINVAL (with-types nil)))
                        (is (int? (with-types [:u32 value])))
                        (is (= :EINVAL (with-types [[:struct [:fd :u32]] value]))))
          :index (do (is (int? (with-types [:u32 value])))
                     (is (= :EINVAL (with-types [[:struct [:index :u32]] value]))))
          :value (do (is (int? (with-types [nil value])))
                     (is (= :EINVAL (with-types [:u32 value]))))
          nil (do (is (int? (with-types [key value])))
                  ;; The key of a cgroup's storage is a number, or one certain struct.
                  (when-not (:keys (row-of use))
                    (is (int? (with-types [[:struct [:bytes [:bytes key-size]]] value]))
                        "any key"))))))))

(def ^:private batches
  {:read :lookup-batch, :take :lookup-and-delete-batch, :write :update-batch
   :delete :delete-batch})

(kernel-test batches-and-freezing
  (testing "batches and freezing work exactly if the row grants them"
    (doseq [{:keys [spec] :as use} uses :when (here? use)
            :let [{:keys [batch batch-read-since] freeze? :freeze} (row-of use)
                  ask (fn [op] (try-spec use (bare use) #(said (probe/operate op % {} facts))))]]
      (testing spec
        (doseq [[name op] batches
                :let [granted? (and (contains? batch name) (since/has? [:batch (:type spec)]))]]
          (is (= granted? (= :ok (ask op))) op))
        (is (= (if freeze? :ok :ENOTSUPP) (ask :freeze)))
        (is (or (nil? batch-read-since) (contains? batch :read)))))))

(def ^:private locked [:struct [:lock :spin-lock] [:n :u32]])

(kernel-test spin-lock-by-row
  (testing "accepts a spin lock exactly if the row grants it"
    (doseq [{:keys [spec] :as use} uses :when (here? use)
            :let [{:keys [values] lock? :lock} (row-of use)
                  key (:key (spec/complete spec (lifecycle/machine)))]]
      (testing spec
        (is (= (boolean lock?) (= :ok (try-spec use (bare use :value-size 8 :btf [key locked])))))
        (when-not (or values (= [0 0] (:value-size (row-of use))))
          (is (= (boolean lock?)
                 (not-any? #(str/includes? (:message %) "cannot have a :spin-lock")
                           (spec/problems (assoc spec :value locked))))))))))

(kernel-test mmap-by-row
  (testing "maps memory exactly if the row grants it"
    (doseq [{:keys [spec] :as use} uses :when (here? use)
            :let [{:keys [mmap flags requires]} (row-of use)
                  maps? (fn [flags]
                          (try-spec use (bare use :flags flags)
                                    (fn [^Fd fd]
                                      (let [number (.acquire fd)]
                                        (try
                                          (linux/maps-page? number (call/page-size))
                                          (finally (.release fd)))))))]]
      (testing spec
        (when-not (contains? requires :mmapable)
          (is (= (= :always mmap) (maps? (:flags spec #{}))) "without the flag"))
        (when (contains? flags :mmapable)
          (is (= :mmapable mmap))
          (is (true? (maps? (conj (set (:flags spec)) :mmapable)))))))))

(kernel-test s1-inner-maps-by-row
  (testing "maps of maps require an inner map of an allowed type"
    (doseq [{:keys [spec] :as use} uses :when (here? use)
            :let [{:keys [not-inside] inner? :inner} (row-of use)
                  outer
                  {:type :array-of-maps :key-size 4 :value-size 4 :max-entries 1 :flags #{}
                   :name nil}]]
      (testing spec
        (is (= (boolean inner?) (not= :ok (raw-create (bare use)))) "without an inner map")
        (is (= (if not-inside #{:EINVAL :ENOTSUPP} #{:ok})
               (conj (if not-inside #{:EINVAL :ENOTSUPP} #{})
                     (try-spec use (bare use) #(raw-create (assoc outer :inner-map %))))))
        (if not-inside
          (is
           (str/includes?
            (:message (error-of (bpf/create {:type :array-of-maps :max-entries 1 :inner-map spec})))
            (str "a map cannot hold " (:type spec) " maps")))
          (is (nil? (bpf/close (bpf/create {:type :array-of-maps :max-entries 1
                                            :inner-map spec})))))))))

(kernel-test s10-full-map-or-bad-index
  (testing "the errors for a full map and a bad index match the row"
    (doseq [{:keys [spec] :as use} uses
            :let [{:keys [full every-index ops] index? :index} (row-of use)]
            :when (and (here? use) full (some ops [:put! :push!]))]
      (testing spec
        (used (assoc-in use [:spec :max-entries] 1)
              (fn [m {[_ k2] :keys [v v2] :values}]
                ;; A machine with one CPU has no second key for the map of CPUs.
                (let [key (if (or index? every-index) 1 k2)
                      refused #(let [{:bpfmap/keys [error errno]} (error-of (bpf/put! m key v2))]
                                 [error (contains? full errno)])]
                  (cond
                    (ops :push!) (if (seq full)
                                   (do (bpf/push! m v)
                                       (let
                                        [{:bpfmap/keys [error errno]} (error-of (bpf/push! m v2))]
                                         (is (= [:map-full true] [error (contains? full errno)]))))
                                   (dotimes [_ 10] (bpf/push! m v)))
                    (or index? every-index) (is (= [:out-of-range true] (refused)))
                    (empty? full) (dotimes [i 5000] (bpf/put! m i v2))
                    :else (is (= [:map-full true] (refused)))))))))))
