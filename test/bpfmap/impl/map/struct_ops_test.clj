(ns bpfmap.impl.map.struct-ops-test
  "Structs of the kernel implemented by programs: a TCP congestion control that comes and goes."
  (:require [bpfmap.btf :as btf]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.kernel.probe :as probe]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.linux :as linux]
            [bpfmap.prog :as prog]
            [bpfmap.programs :as programs]
            [bpfmap.since :as since]
            [bpfmap.uses :as uses]
            [clojure.set :as set]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]])
  (:import (java.io Closeable)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(def ^:private spec {:name "t_cc" :type :struct-ops :struct-ops "tcp_congestion_ops"})

(defn- create
  (^Closeable [] (bpf/create spec))
  (^Closeable [change] (bpf/create (merge spec change))))

(defn- op
  "A program that stands for a member of tcp_congestion_ops and returns n."
  ^Closeable [member n]
  (let [{:keys [id members]} (programs/struct-ops-type "tcp_congestion_ops")]
    (prog/load {:type :struct-ops :name member :insns [[:mov64 :r0 n] [:exit]]
                :attach-btf-id id :expected-attach-type (:index (members member))})))

(defn- unique
  "A name for a congestion control that nothing else on this host has."
  [suffix]
  (str "bpfmap" suffix "_" (mod (.pid (ProcessHandle/current)) 10000000)))

(defn- registered? [name]
  (contains? (set (str/split (slurp "/proc/sys/net/ipv4/tcp_available_congestion_control") #"\s+"))
             name))

(defn- in-common
  "A value in which the kernel's own fields are `fields`; they stand at its top where the kernel
  has no struct for them."
  [value fields]
  (if (since/here? [:kernel :struct-ops-common])
    (assoc value :common fields)
    (merge value fields)))

(defn- common [value]
  (or (:common value) (select-keys value [:refcnt :state])))

(defn- state [m] (:state (common (m 0))))

(defmacro ^:private struct-ops-test
  "A kernel-test that is skipped where congestion control cannot be implemented by programs."
  [name & body]
  `(kernel-test ~name
     (if (programs/struct-ops-type "tcp_congestion_ops")
       (do ~@body)
       (fixture/skip! "this kernel has no congestion control by programs"))))

(defmacro ^:private with-programs
  "Runs body with `ssthresh`, `cong-avoid` and `undo-cwnd` loaded, and unregisters what it put
  into the map `m`."
  [[m] & body]
  `(with-open [~'ssthresh (op "ssthresh" 2)
               ~'cong-avoid (op "cong_avoid" 0)
               ~'undo-cwnd (op "undo_cwnd" 10)]
     (try
       ~@body
       (finally (bpf/delete! ~m 0)))))

(struct-ops-test register-struct
  (testing "put! registers a struct and delete! unregisters it"
    (let [name (unique "a")]
      (with-open [m (create)]
        (with-programs [m]
          (is (= :BPF_STRUCT_OPS_STATE_INIT (state m)))
          (is (= #{nil} (set (map (:data (m 0)) [:ssthresh :cong_avoid :undo_cwnd :init]))))
          (is (= "" (get-in (m 0) [:data :name])))
          (is (not (registered? name)))
          (is (= m
                 (bpf/put! m 0
                           {:data {:name name :ssthresh ssthresh
                                   :cong_avoid {:program-id (:id (prog/info cong-avoid))}
                                   :undo_cwnd undo-cwnd :init nil}})))
          (is (registered? name))
          (let [{:keys [data] :as value} (m 0)]
            (is (= {:refcnt {:refs {:counter 1}} :state :BPF_STRUCT_OPS_STATE_INUSE}
                   (common value)))
            (is (= {:name name :init nil :flags 0
                    :ssthresh {:program-id (:id (prog/info ssthresh))}
                    :cong_avoid {:program-id (:id (prog/info cong-avoid))}
                    :undo_cwnd {:program-id (:id (prog/info undo-cwnd))}}
                   (select-keys data [:name :init :flags :ssthresh :cong_avoid :undo_cwnd])))
            (with-open [p ^Closeable (prog/open (:ssthresh data))]
              (is (= "ssthresh" (:name (prog/info p))) "a reference that was read can be opened")))
          (is (= {0 (m 0)} (into {} m) (bpf/snapshot m) (bpf/lookup-all m [0 1])))
          (is (= [1 0 nil nil false]
                 [(bpf/count-entries m) (bpf/next-key m) (bpf/next-key m 0) (m 1)
                  (bpf/has-key? m 1)]))
          (testing "of another key, which the kernel would not look at"
            (is (= [false 0] [(bpf/delete! m 1) (bpf/delete-all! m [1 4294967295])]))
            (is (= [:key] (:bpfmap/path (error-of (bpf/delete! m -1)))))
            (is (registered? name)))
          (is (true? (bpf/delete! m 0)))
          (is (not (registered? name)))
          (is (= :BPF_STRUCT_OPS_STATE_TOBEFREE (state m)))
          (is (= [false 0] [(bpf/delete! m 0) (bpf/delete-all! m [0])])
              "it is not there any more"))))))

(struct-ops-test kernel-errors-explained
  (testing "explains why the kernel rejects a struct"
    (let [name (unique "b")]
      (with-open [m (create)
                  other (create)]
        (with-programs [m]
          (let [value {:data {:name name :ssthresh ssthresh :cong_avoid cong-avoid
                              :undo_cwnd undo-cwnd}}]
            (are [k value error words]
                 (let [{:keys [message] found :bpfmap/error
                        op :bpfmap/op} (error-of (bpf/put! m k value))]
                   (and (= [error :put!] [found op]) (str/includes? message words)))
              0 {:data {:name name}} :incompatible
              "tcp_congestion_ops: :name, :ssthresh, :undo_cwnd"
              0 (assoc-in value [:data :init] ssthresh) :incompatible
              "the index of the member as :expected-attach-type"
              0 (in-common value {:state 1}) :incompatible
              "no counters or links, such as :common"
              0 (assoc-in value [:data :owner] 1) :incompatible "only some are accepted"
              1 value :out-of-range "from 0 to 0"
              0 (assoc-in value [:data :init] 7) :invalid-value
              "[:value :data :init]: 7 is not a reference of this kind: it must be a loaded program"
              0 (assoc-in value [:data :init] m) :invalid-value "it must be a loaded program"
              0 (assoc-in value [:data :init] {:program-id 0x7fffffff}) :not-found
              "program 2147483647 does not exist (any more)"
              0 (assoc-in value [:data :start] ssthresh) :invalid-value ":start is not a field"
              0 (assoc-in value [:data :name] "a name beyond fifteen bytes") :invalid-value
              "[:value :data :name]")
            (is (= :BPF_STRUCT_OPS_STATE_INIT (state m)) "nothing was registered")
            (bpf/put! m 0 value)
            (testing "a second time"
              (let [{:keys [message]
                     :bpfmap/keys [error]} (error-of
                                             (bpf/put! m 0
                                                       (assoc-in
                                                        value [:data :name] (unique "c"))))]
                (is (= :busy error))
                (is (str/includes? message "registers one value in its life"))))
            (testing "a name that is taken"
              (doseq [write [#(bpf/put! other 0 value) #(bpf/put-all! other {0 value})
                             #(bpf/create (assoc spec :contents {0 value}))]
                      :let [{:keys [message] :bpfmap/keys [error]} (error-of (write))]]
                (is (= :exists error))
                (is (str/includes? message "the kernel has a registered struct with this name")))))
          (bpf/delete! m 0)
          (is (= :busy (:bpfmap/error (error-of (bpf/put! m 0 {:data {:name name}}))))
              "never again"))
        (testing "operations that the type lacks"
          (are [expr words] (let [{:keys [message] :bpfmap/keys [error]} (error-of expr)]
                              (and (= :not-supported error) (str/includes? message words)))
            (bpf/insert! m 0 {}) "put! it"
            (bpf/replace! m 0 {}) "into a new map"
            (bpf/take! m 0) "lookup, then delete!"
            (bpf/drain! m) "snapshot, then delete-all!"
            (bpf/push! m {}) "use put!"
            (bpf/freeze! m) "has no freeze!; its value is registered once"))))))

(struct-ops-test e11-denied-operations
  (testing "the kernel rejects what the rules deny for struct_ops"
    (let [{:keys [ops instead]} (map-types/types :struct-ops)
          commands {:insert! [:update 1], :replace! [:update 2], :take! [:lookup-and-delete]
                    :drain! [:lookup-and-delete]
                    :push! [:update 0 :keyless], :pop! [:lookup-and-delete 0 :keyless]
                    :peek [:lookup 0 :keyless]
                    :might-contain? [:lookup 0 :keyless]}]
      (is (= #{:lookup :put! :delete! :next-key :reduce} ops) "which other tests here use")
      (is (= (set/difference map-types/operations ops) (set (keys commands))))
      (with-open [m (create)]
        (doseq [[op [command flags keyless]] commands
                :let [asked
                      {:key (when-not keyless (byte-array 4)) :value (byte-array 4096)
                       :flags flags}]]
          (is (contains? uses/refusals
                         (linux/said (probe/operate command (bpf-map/descriptor m) asked {:op op})))
              op))
        (is (= :ENOTSUPP
               (linux/said (probe/operate :freeze (bpf-map/descriptor m) {} {:op :freeze!}))))
        (is (contains? instead :freeze!))
        (doseq [op [:lookup-batch :lookup-and-delete-batch :update-batch :delete-batch]]
          (is (= :ENOTSUPP (linux/said (probe/operate op (bpf-map/descriptor m) {} {:op op}))) op))
        (is (= :BPF_STRUCT_OPS_STATE_INIT (state m)) "and nothing came of it")))))

(struct-ops-test ^{:needs [[:flag :link]]} map-for-links-ready
  (testing "a map for links becomes ready and cannot be deleted"
    (let [name (unique "d")]
      (with-open [ssthresh (op "ssthresh" 2)
                  cong-avoid (op "cong_avoid" 0)
                  undo-cwnd (op "undo_cwnd" 10)]
        (let [value {:data {:name name :ssthresh ssthresh :cong_avoid cong-avoid
                            :undo_cwnd undo-cwnd}}]
          (with-open [m (create {:flags #{:link} :contents {0 value}})]
            (is (= :BPF_STRUCT_OPS_STATE_READY (state m)))
            (is (not (registered? name)) "a link would register it")
            (is (= :busy (:bpfmap/error (error-of (bpf/put! m 0 value)))))
            (let [{:keys [message] :bpfmap/keys [error]} (error-of (bpf/delete! m 0))]
              (is (= :not-supported error))
              (is (str/includes? message "close the link")))))))))

(struct-ops-test opened-map-types
  (testing "an opened map has the types of the kernel BTF"
    (let [pin (fixture/new-pin)
          name (unique "e")]
      (with-open [m (create)]
        (bpf/pin! m pin)
        (try
          (with-programs [m]
            (bpf/put! m 0
                      {:data {:name name :ssthresh ssthresh :cong_avoid cong-avoid
                              :undo_cwnd undo-cwnd}})
            (doseq [ref [(:id (bpf/info m)) pin]]
              (with-open [o ^Closeable (bpf/open ref)]
                (is (= (m 0) (o 0)))
                (is (= (bpf/spec m) (bpf/spec o)))
                (is (nil? (:untyped (bpf/info o))))))
            (with-open [raw ^Closeable (bpf/open pin {:value [:bytes (:value-size (bpf/spec m))]})]
              (is (= (m 0) (raw 0)) "references stay references, whatever one calls the type"))
            (with-open [o ^Closeable (bpf/open pin)]
              (is (true? (bpf/delete! o 0)))
              (is (not (registered? name)))))
          (with-open [again ^Closeable (bpf/create (bpf/spec m))]
            (is (= :BPF_STRUCT_OPS_STATE_INIT (state again)) "its spec makes a map like it"))
          (finally (bpf/unpin! m)))))))

(struct-ops-test spec-types-from-kernel
  (testing "the spec gets its types from the kernel"
    (with-open [m (create)]
      (let [{:keys [value value-size struct-ops] :as completed} (bpf/spec m)
            {:keys [btf-vmlinux-value-type-id] :as info} (bpf/info m)]
        (is (= "tcp_congestion_ops" struct-ops (:struct-ops info)))
        (is (= value (btf/type-of (host/kernel-btf) btf-vmlinux-value-type-id)))
        (is (= value-size (:value-size info)))
        (is (not (contains? completed :value-type)))
        (is (nil? (bpf/spec-diff m spec)))
        (is (nil? (bpf/spec-diff info completed)))
        (is (= [:struct-ops] (keys (bpf/spec-diff m (assoc spec :struct-ops "bpf_dummy_ops")))))))))

(struct-ops-test pinned-by-name
  (testing "a map pinned by name requires the same struct"
    (let [spec (assoc spec :name "t_cc_by_name" :pinning :by-name)
          options {:pin-path (fixture/bpffs)}]
      (with-open [m ^Closeable (bpf/create spec options)]
        (try
          (with-open [same ^Closeable (bpf/create spec options)]
            (is (= (:id (bpf/info m)) (:id (bpf/info same)))))
          (when (programs/struct-ops-type "bpf_dummy_ops")
            (is (= {:spec "bpf_dummy_ops" :map "tcp_congestion_ops"}
                   (:struct-ops
                    (:bpfmap/diff
                     (error-of (bpf/create (assoc spec :struct-ops "bpf_dummy_ops") options)))))))
          (finally (bpf/unpin! m)))))))

(struct-ops-test spec-cannot-be-created
  (testing "rejects specs that cannot be created"
    (are [change error words]
         (let [{:keys [message] found :bpfmap/error :bpfmap/keys [op]} (error-of (create change))]
           (and (= [error :create] [found op]) (str/includes? message words)))
      {:struct-ops "tcp_ops"} :not-found
      "use the name of a struct bpf_struct_ops_… in the kernel's BTF, without the prefix; here "
      ;; The kernel has a struct bpf_struct_ops_map, which is something else.
      {:struct-ops "map"} :not-found "no struct map that programs can implement"
      {:value-size 8} :invalid-spec
      (str "has " (:value-size (programs/struct-ops-type "tcp_congestion_ops")) " bytes, not 8")
      {:value :u64} :invalid-spec "leave :value and :value-size out"
      {:flags #{:vtype-btf-obj-fd}} :not-supported "leave :vtype-btf-obj-fd out"
      {:freeze true} :invalid-spec "cannot be frozen"
      {:contents {0 {:data {:init "x"}}}} :invalid-value
      "In :contents, the entry of 0: [:value :data :init]"
      {:contents {0 {:data {:nme "x"}}}} :invalid-value "[:value :data :nme]: :nme is not a field"
      {:contents {0 {:data {:name "x"}}}} :incompatible "tcp_congestion_ops: :name")))

(struct-ops-test no-descriptor-left-open
  (testing "struct_ops operations leave no descriptor open"
    (let [once (fn [name]
                 (with-open [m (create)]
                   (with-programs [m]
                     (bpf/put! m 0
                               {:data {:name name :ssthresh ssthresh
                                       :cong_avoid {:program-id (:id (prog/info cong-avoid))}
                                       :undo_cwnd undo-cwnd}})
                     (error-of (bpf/put! m 0
                                         {:data {:cong_avoid {:program-id (:id
                                                                           (prog/info cong-avoid))}
                                                 :init 7}}))
                     (with-open [o ^Closeable (bpf/open (:id (bpf/info m)))]
                       (state o))))
                 (error-of (create {:struct-ops "tcp_ops"}))
                 (error-of (create {:contents {0 {:data {:name "x"}}}})))]
      (once (unique "f"))
      (let [before (fixture/settled-descriptors)]
        (once (unique "f"))
        (is (= before (fixture/open-descriptors)))))))
