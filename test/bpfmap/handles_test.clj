(ns bpfmap.handles-test
  "What a handle is made from, and what it tells of its map: specs, infos, names, and what is
  refused."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.map-types :as map-types]
            [clojure.edn :as edn]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]]))

(set! *warn-on-reflection* true)

(def ^:private hash-spec {:name "t_hash" :type :hash :key :u32 :value :u64 :max-entries 64})
(def ^:private array-spec {:name "t_array" :type :array :key :u32 :value :u32 :max-entries 4})

(defn- open-hash
  (^java.io.Closeable [] (open-hash nil))
  (^java.io.Closeable [change] (bpf/create (merge hash-spec change))))

(kernel-test info-extends-the-spec
  (testing "info has the keys of a spec and the keys that the kernel adds"
    (with-open [m (open-hash {:flags #{:no-prealloc}})]
      (let [info (bpf/info m)]
        (is (= (assoc hash-spec :flags #{:no-prealloc} :key-size 4 :value-size 8)
               (select-keys info
                            [:name :type :key :value :max-entries :flags :key-size :value-size])))
        (is (pos-int? (:id info)))
        (is (pos-int? (:memlock info)) "only fdinfo knows it")
        (is (false? (:frozen info)))
        (is (= info (edn/read-string (pr-str info))))))))

(kernel-test spec-recreates-the-map
  (testing "the spec of a map creates an equal map"
    (with-open [m (open-hash {:flags #{:no-prealloc}
                              :name "a long name-with more than the kernel takes"})
                same ^java.io.Closeable (bpf/create (bpf/spec m))]
      (is (= (bpf/spec m) (bpf/spec same)))
      (is (= (dissoc (bpf/info m) :id :btf-id :memlock)
             (dissoc (bpf/info same) :id :btf-id :memlock)))
      (with-open [opened ^java.io.Closeable (bpf/open (:id (bpf/info m)))
                  again ^java.io.Closeable (bpf/create (bpf/spec opened))]
        (is (= (dissoc (bpf/info opened) :id :btf-id :memlock)
               (dissoc (bpf/info again) :id :btf-id :memlock)))))))

(kernel-test s4-short-and-full-name
  (testing "the kernel has the shortened name and the spec the full one"
    (with-open [m (open-hash {:name "my-flows by address"})]
      (is (= "my-flows by address" (:name (bpf/spec m))))
      (is (= "myflowsbyaddres" (:name (bpf/info m))))
      (is (= :not-found (:bpfmap/error (error-of (bpf/open {:name "my-flows by address"}))))
          "nothing keeps such a name"))
    (with-open [m (open-hash {:name "my_flows_by_address"})]
      (is (= ["my_flows_by_address" "my_flows_by_add"] (map :name [(bpf/spec m) (bpf/info m)])))
      (with-open [same ^java.io.Closeable (bpf/open {:name "my_flows_by_address"})]
        (is (= (:id (bpf/info m)) (:id (bpf/info same))))))))

(kernel-test s6-bad-contents-entry
  (testing "an invalid entry of :contents is named and creates no map"
    (let [before (fixture/settled-descriptors)
          {:keys [message] :bpfmap/keys [error path op]}
          (error-of (open-hash {:contents [[1 10] [2 -1]]}))]
      (is (= [:invalid-value [:contents 2 :value] :create] [error path op]))
      (is (str/starts-with? message "In :contents, the entry of 2: [:value]: -1 is not a :u64"))
      (is (= [:contents "x" :key] (:bpfmap/path (error-of (open-hash {:contents {"x" 1}})))))
      (testing "one that only the kernel can refuse"
        (let [{:keys [message]
               :bpfmap/keys [error]} (error-of
                                       (open-hash {:max-entries 1 :contents [[1 1] [2 2]]}))]
          (is (= :map-full error))
          (is (str/starts-with? message "In :contents, the entry of 2: put-all! on map"))))
      (is (= before (fixture/open-descriptors))))))

(kernel-test contents-from-the-start
  (testing "a map has its :contents when it is created"
    (with-open [m (open-hash {:contents {1 10 2 20}})
                a ^java.io.Closeable (bpf/create (assoc array-spec :contents [[0 1] [1 2]]))]
      (is (= {1 10 2 20} (into {} m)))
      (is (= [[0 1] [1 2] [2 0] [3 0]] (seq a)))
      (is (not (contains? (bpf/spec m) :contents))))))

(kernel-test s7-frozen-map-rejects-writes
  (testing "a frozen map rejects writes and its info reports it"
    (doseq [change [{:name ".rodata"} {:name ".kconfig"} {:freeze true}]]
      (with-open [m (open-hash (merge {:contents {1 10}} change))]
        (is (true? (:frozen (bpf/info m))) change)
        (is (= {1 10} (into {} m)))
        (doseq [write [#(bpf/put! m 1 1) #(bpf/insert! m 2 1) #(bpf/replace! m 1 1)
                       #(bpf/delete! m 1) #(bpf/take! m 1)]]
          (let [{:keys [message] :bpfmap/keys [error errno]} (error-of (write))]
            (is (= [:permission :EPERM] [error errno]))
            (is (str/includes? message "the map is frozen"))))
        (is (= {1 10} (into {} m)))))
    (testing "afterwards"
      (with-open [m (open-hash)]
        (is (false? (:frozen (bpf/info m))))
        (is (identical? m (bpf/freeze! m)))
        (is (identical? m (bpf/freeze! m)) "twice is fine")
        (is (true? (:frozen (bpf/info m))))))))

(kernel-test s9-unsupported-create
  (testing "create names the feature that this kernel lacks"
    (let [{:keys [message]
           :bpfmap/keys [error
                         errno]} (error-of
                                   (bpf/create {:type 4242 :key-size 4 :value-size 4
                                                :max-entries 1}))]
      (is (= [:not-supported :EINVAL] [error errno]))
      (is (str/includes? message "lacks the map type 4242, which bpfmap does not support either")))
    (let [{:keys [message] :bpfmap/keys [error]} (error-of (open-hash {:flags #{0x40000000}}))]
      (is (= :not-supported error))
      (is (str/includes? message
                         "does not accept 1073741824 on :hash maps, which bpfmap does not support either")))
    (when-not (map-types/at-least? (call/kernel-release) (:since (:rb-overwrite map-types/flags)))
      (let [{:keys [message]
             :bpfmap/keys [error]} (error-of
                                     (bpf/create {:type :ringbuf :max-entries 4096
                                                  :flags #{:rb-overwrite}}))]
        (is (= :not-supported error))
        (is (str/includes? message
                           "does not accept :rb-overwrite on :ringbuf maps, which was added in Linux 6.19"))))
    (testing "what only the kernel can refuse"
      (is (str/includes? (:message (error-of (open-hash {:numa-node 77})))
                         "this machine may have no node 77;"))
      (is (= :invalid-spec
             (:bpfmap/error (error-of (bpf/create {:type :array :key :u32 :value-size 0xffffffff
                                                   :max-entries 1})))))
      (let [{:bpfmap/keys [error hint]} (error-of (open-hash {:max-entries 0xffffffff}))]
        (is (#{:no-memory :invalid-spec} error))
        (is (re-find #"smaller|larger" hint))))))

(kernel-test s9-s10-create-capability
  (testing "create names the missing capability"
    (let [{:keys [message]
           :bpfmap/keys [error errno]} (fixture/unprivileged #(error-of (open-hash)))]
      (is (= [:permission :EPERM] [error errno]))
      (is (str/includes? message "create needs CAP_BPF"))
      (is (str/includes? message "kernel.unprivileged_bpf_disabled is"))
      (is (not (str/includes? message "MEMLOCK"))))))

(kernel-test s10-open-names-capability
  (testing "opening by id or name reports the missing capability"
    (with-open [m (open-hash)]
      (let [id (:id (bpf/info m))]
        (doseq [ref [id {:name "t_hash"}]]
          (let [{:keys [message]
                 :bpfmap/keys [error]} (fixture/unprivileged #(error-of (bpf/open ref)))]
            (is (= :permission error))
            (is (str/includes? message "open needs CAP_SYS_ADMIN"))))))))

(kernel-test s12-spec-is-a-value
  (testing "a spec creates any number of maps and does not change"
    (let [spec (assoc hash-spec :contents {1 10} :flags #{:no-prealloc} :name "a-b c")
          copy (edn/read-string (pr-str spec))
          maps (fixture/in-threads 8 (fn [_] (bpf/create spec)))]
      (try
        (is (= 8 (count (set (map (comp :id bpf/info) maps)))))
        (is (every? #(= {1 10} (into {} %)) maps))
        (is (= copy spec))
        (finally (run! bpf/close maps))))))

(kernel-test bad-references
  (testing "rejects invalid options and references"
    (with-open [m (open-hash)]
      (let [id (:id (bpf/info m))]
        (are [ref options words]
             (let [{:keys [message] :bpfmap/keys [error op]} (error-of (bpf/open ref options))]
               (and (= :invalid-value error) (= :open op) (str/includes? message words)))
          id {:acess :read-only}
          "Unknown option :acess: did you mean :access?"
          id {:access :rdonly}
          ":access must be :read-write, :read-only or :write-only, got :rdonly"
          id [:access] "Options must be a map, got [:access]"
          :x nil "A map must be given by id, pin path, {:name n} or {:fd n}, got :x"
          -1 nil "The id of a map must be an integer from 0 to 4294967295, got -1"
          {:fd "1"} nil "A descriptor must be an integer from 0 to 2147483647, got \"1\""
          {:name ""} nil "The name of a map must have letters, digits, `_` or `.`, got \"\""
          {:name "-"} nil "The name of a map must have letters, digits, `_` or `.`, got \"-\""
          {:name nil} nil "The name of a map must have letters, digits, `_` or `.`, got nil"
          {:nmae "x"} nil "Unknown reference {:nmae \"x\"}"
          {:id 1 :name "x"} nil "A map must be given by id, pin path, {:name n} or {:fd n}, got "
          "" nil "A path must not be empty, got \"\""
          "/sys/fs/bpf/a\u0000b" nil "A path must not have a NUL character")
        (let [{:keys [message] :bpfmap/keys [error path]} (error-of (bpf/open id {:key :u64}))]
          (is (= [:incompatible [:key]] [error path]))
          (is (str/includes? message "it has 4 bytes, and the type has 8")))
        (is (= :invalid-spec (:bpfmap/error (error-of (bpf/open id {:value :u65})))))
        (doseq [[k other] {:key :key-type, :value :value-type}]
          (let [{:keys [message] :bpfmap/keys [error path]}
                (error-of (bpf/open id {k :u32 other :u32}))]
            (is (= [:invalid-value [other]] [error path]))
            (is (str/starts-with? message (str "Only one of " k " and " other))))
          (is (= [:incompatible [k]]
                 ((juxt :bpfmap/error :bpfmap/path)
                  (error-of (bpf/open id {other [:bytes 3]}))))))
        (with-open [named ^java.io.Closeable (bpf/open id {:key-type [:bytes 4]
                                                           :value-type [:array :u8 8]})]
          (is (= {:key [:bytes 4] :value [:array :u8 8]}
                 (select-keys (bpf/spec named) [:key :value :key-type :value-type]))))))))
