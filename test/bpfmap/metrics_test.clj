(ns bpfmap.metrics-test
  "Metrics of maps: from a config to the text that Prometheus reads."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.exposition :as exposition]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.metrics :as metrics]
            [bpfmap.metrics.collecting :as collecting]
            [bpfmap.metrics.config :as config]
            [bpfmap.prog :as prog]
            [bpfmap.since :as since]
            [clojure.edn :as edn]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (io.prometheus.metrics.expositionformats ExpositionFormatWriter ExpositionFormats)
           (io.prometheus.metrics.model.registry MultiCollector PrometheusRegistry)
           (io.prometheus.metrics.model.snapshots
            HistogramSnapshot HistogramSnapshot$HistogramDataPointSnapshot MetricSnapshot
            MetricSnapshots)
           (java.io ByteArrayOutputStream Closeable File)
           (java.nio.file Files)))

(set! *warn-on-reflection* true)

(defn- text
  "A collection in one of the text formats."
  [^MultiCollector c open-metrics?]
  (let [out (ByteArrayOutputStream.)
        formats (ExpositionFormats/init)
        ^ExpositionFormatWriter writer (if open-metrics?
                                         (.getOpenMetricsTextFormatWriter formats)
                                         (.getPrometheusTextFormatWriter formats))]
    (.write writer out (.collect c))
    (str out)))

(defn- scrape [c]
  (exposition/read-text (text c false) false))

(defn- scraped
  "The values of a metric, by labels, after one reading of a config."
  [config name]
  (with-open [c ^Closeable (metrics/collector (merge {:host false} config))]
    (exposition/values-of (scrape c) name)))

(defn- hash-map-of ^Closeable [key value entries]
  (doto (bpf/create {:type :hash :key key :value value :max-entries 4096})
    (bpf/put-all! entries)))

;; --- configs

(defn- messages [config]
  (map :message (metrics/problems config)))

(deftest all-problems-at-once
  (testing "all problems of a config are found at once, each with its place"
    (is (= ["the config has an unknown key :hst: did you mean :host?"
            "metric hits has an unknown key :lables: did you mean :labels?"
            (str "metric hits :type must be :counter, :gauge or :histogram, got :cuonter: did you "
                 "mean :counter?")
            "metric hits :map must be an id, a pin path or a name, got {:x 1}"
            "metric number 2 must be a map, got 3"
            "metric a b :name must have letters, digits, _ and :, got \"a b\""
            "metric a b :type is required"
            "metric a b :map is required"]
           (messages {:hst 1
                      :metrics [{:name "hits" :type :cuonter :lables {} :map {:x 1}} 3
                                {:name "a b"}]})))))

(deftest problem-messages
  (testing "each rule of a metric has its message"
    (doseq [[metric message]
            [[{:type :counter} "metric m :name must end in _total for a counter, got \"m\": write m_total, or use :type :gauge for a number that can fall"]
             [{:name "m_total"} "metric m_total :name must not end in _total for a gauge, got \"m_total\""]
             [{:name "bpfmap_m"} "metric bpfmap_m :name must not begin with bpfmap_, as the metrics of the exporter do, got \"bpfmap_m\""]
             [{:help 3} "metric m :help must be a string, got 3"]
             [{:where ["a"]} "metric m :where 0 must be a condition, got \"a\": such as 'bytes>1000', src=10.0.0.1, name~^cali or '[:or [:> :bytes 1000] [:= :src \"10.0.0.1\"]]'"]
             [{:as {:src :ipv5}} "metric m :as :src must have a hint that exists, got {:src :ipv5}: did you mean ipv4 or ipv6?"]
             [{:cpus :all} "metric m :cpus must be each, sum or the number of a CPU, got :all"]
             [{:scale 0} "metric m :scale must be a positive number, got 0"]
             [{:limit 0} "metric m :limit must be a positive integer, got 0"]
             [{:value 3} "metric m :value must be the name of a field, got 3"]
             [{:key-type :u33} "metric m :key-type must be a type, got :u33: unknown type :u33; did you mean :u32? See bpfmap.type for all types"]
             [{:labels [:src]} "metric m :labels must be a map of names to fields, got [:src]: such as {:port :port}"]
             [{:labels {"a-b" :src}} "metric m :labels must have letters, digits and _ in names of labels, got \"a-b\""]
             [{:labels {:__x :src}} "metric m :labels must have no name of a label that begins with __, got :__x"]
             [{:labels {:x {:names {}}}} "metric m :labels :x must have :field: such as {:field :port}"]
             [{:labels {:x {:field :a :unknown :drop}}} "metric m :labels :x :unknown requires :names"]
             [{:labels {:x {:field :a :match "("}}} "metric m :labels :x :match must be a valid regular expression, got \"(\": Unclosed group"]
             [{:labels {:x {:field :a :names {0 1}}}} "metric m :labels :x :names must have strings as values, got 1"]
             [{:labels {:cpu :a} :cpus :each} "metric m :labels cpu is the label that :cpus :each adds: use another name"]
             [{:labels {:le :a} :type :histogram} "metric m :labels le is the label of the buckets of a histogram: use another name"]
             [{:bucket :slot} "metric m :bucket is only for a histogram"]
             [{:type :histogram :value :a} "metric m :value must not be given for a histogram: use :bucket"]
             [{:type :histogram :bounds [1 1]} "metric m :bounds must be a vector of numbers in ascending order, got [1 1]"]
             [{:type :histogram :bounds [1 2] :linear 5} "metric m :bounds cannot be combined with :linear"]
             [{:type :histogram :slots :exp2 :linear 5} "metric m :linear cannot be combined with :slots :exp2"]
             [{:type :histogram :slots :limit} "metric m :slots requires :bounds if it is :limit"]
             [{:type :histogram :slots :log3} "metric m :slots must be :log2, :exp2, :exp2zero, :bcc, :bpftrace or :limit, got :log3: did you mean :log2?"]
             [{:type :histogram :first 5 :last 3} "metric m :last must be at least 5, which is :first, got 3"]
             [{:type :histogram :last 1001} "metric m :last must be an integer from 0 to 1000, got 1001"]
             [{:type :histogram :sum -1} "metric m :sum must be the number of a bucket, or the field that has the sum, got -1"]
             [{:type :histogram :form :old} "metric m :form must be :classic, :native or :both, got :old"]]]
      (is (= [message] (messages {:metrics [(merge {:name "m" :type :gauge :map "m"} metric)]}))
          (pr-str metric)))
    (testing "two metrics with a name, or with a name among their samples"
      (doseq [[a b message]
              [["m" "m" "m :name must be given once, got \"m\": use labels to tell series apart"]
               ["h" "h_max_total" nil]
               ["m_total" "m" "m :name must not have \"m\" among its samples, as metric m_total has, got \"m\": use another name"]
               ["m" "m_total" "m_total :name must not have \"m\" among its samples, as metric m has, got \"m_total\": use another name"]]]
        (is (= (if message [(str "metric " message)] [])
               (messages {:metrics (for [n [a b]]
                                     {:name n :map "a"
                                      :type (if (str/ends-with? n "_total") :counter :gauge)})}))))
      (is (some #{"metric h_count :name must not have \"h_count\" among its samples, as metric h has, got \"h_count\": use another name"}
                (messages {:metrics [{:name "h" :type :histogram :map "a"}
                                     {:name "h_count" :type :histogram :map "a"}]}))))
    (testing "each hint on its own"
      (is (= ["metric m :as :src must have a hint that exists, got {:src :ipv5}: did you mean ipv4 or ipv6?"
              "metric m :as :ts must have a hint that exists, got {:ts :ktim}: did you mean ktime or ktime-boot?"]
             (messages {:metrics [{:name "m" :type :gauge :map "m" :as {:src :ipv5 :ts :ktim}}]}))))
    (doseq [[config message]
            [[3 "the config must be a map, got 3"]
             [{} "the config :metrics is required, unless :host is given"]
             [{:metrics {}} "the config :metrics must be a vector of metrics, got {}"]
             [{:metrics [] :limit -1} ":limit must be a positive integer, got -1"]
             [{:host {:mps true}} ":host has an unknown key :mps: did you mean :maps?"]
             [{:host {:maps {:where ["typ=hash"]}}}
              ":host :maps :where 0 cannot be used: Unknown field typ: did you mean type, used-by.type or outer.type?"]
             [{:host {:programs 5}} ":host :programs must be true, false or a map with :where, got 5"]
             [{:host :maps} ":host must be true, false or a map with :maps and :programs, got :maps"]
             [{:metrics [] :http {:port 70000}} ":http :port must be an integer from 0 to 65535, got 70000"]
             [{:metrics [] :http {:page "all"}} ":http :page must be true, false or :all, got \"all\""]
             [{:metrics [] :http {:tls {:keystore "a"}}} ":http :tls :password-file is required"]
             [{:metrics [] :http {:basic-auth 3}} ":http :basic-auth must be a map, got 3"]]
            :let [[found & more] (messages config)]]
      (is (str/includes? (str found) (str/replace message #"^the config (?=:)" "")) (pr-str config))
      (is (nil? more)))))

(def ^:private documented
  "The metrics in the table of examples, in doc/metrics.md."
  (delay (for [[_ cell] (re-seq #"`(\{:name [^`]*\})`" (slurp "doc/metrics.md"))]
           (edn/read-string cell))))

(deftest documented-configs
  (testing "the configs in the page are valid"
    (is (< 40 (count @documented)))
    (doseq [metric @documented]
      (is (= [] (messages {:metrics [metric]}))))
    (doseq [[_ block] (re-seq #"(?s)```clojure\n(\{:(?:metrics|http).*?)```" (slurp "doc/metrics.md"))]
      (is (= [] (messages (merge {:metrics []} (edn/read-string block))))))
    (is (every? (set (keys config/slot-numberings))
                (map (comp keyword second)
                     (re-seq #"(?m)^\| `:(log2|exp2|exp2zero|bcc|bpftrace|limit)` \|"
                             (slurp "doc/metrics.md")))))))

(deftest collector-of-invalid-config
  (testing "a collector for an invalid config throws all problems"
    (let [{:keys [message] :bpfmap/keys [error problems path]}
          (error-of (metrics/collector {:metrics [{:name "m" :type :gauge} {:name "n"}]}))]
      (is (= [:invalid-value [:metrics 0 :map]] [error path]))
      (is (= "The config of metrics is invalid: metric m :map is required; metric n :type is required; metric n :map is required"
             message))
      (is (= 3 (count problems))))))

(kernel-test types-are-checked
  (testing "a check compares metrics with the types of the maps"
    (with-open [m (hash-map-of [:struct [:src :u32] [:slot :u32]]
                               [:struct [:packets :u64] [:comm [:string 8]] [:a [:array :u32 4]]]
                               {})]
      (doseq [[metric message]
              [[{:value :packts} "Unknown field packts: did you mean value.packets?"]
               [{} "The field value must be a number for a metric, got [struct [packets u64] [comm [string 8]] [a [array u32 4]]]: name one of its fields, such as value.packets"]
               [{:value :comm} "The field comm must be a number for a metric, got [string 8]"]
               [{:value :src} "The field src must be in the value"]
               [{:value :packets :labels {:x :y}} "Unknown field y: the fields are key.src, key.slot, value.packets, value.comm, value.a"]
               [{:value :packets :labels {:src :src} :as {:slot :hex}} "The hint for slot must be for the field of a label"]
               [{:value :packets :labels {:src :comm} :as {:comm :ipv4}} "The field comm must be 4 bytes in network byte order for the hint ipv4, got [string 8]"]
               [{:value :packets :where ["packets>x"]} "value.packets must be compared with a number, such as 10, 0x1f, 64K or 5ms, got x"]
               [{:value :packets :where ["packets>"]} "value.packets must be compared with a number, such as 10, 0x1f, 64K or 5ms, got \"\""]
               [{:value :packets :cpus :each} "The map is not a per-CPU map: leave :cpus out"]
               [{:value :packets :cpus 0} "The map is not a per-CPU map: each key has one value"]
               [{:type :histogram :bucket :slot} "The histogram must have :last, the number of its last bucket: such as :last 26"]
               [{:type :histogram :bucket :packets :last 3} "The field packets must be in the key, or an array of counts: such as :bucket \"key.slot\" or \"value.slots\""]]
              :let [config {:metrics [(merge {:name "m" :type :gauge :map m} metric)]}
                    {:keys [problems missing]} (metrics/check config)]]
        (is (= [] missing))
        (is (= [[[:metrics 0] (str "metric m: " message)]] (map (juxt :path :message) problems))
            (pr-str metric)))
      (testing "all at once: those of the config, and all of each metric that can be compared"
        (is (= ["metric n has an unknown key :lable: did you mean :labels?"
                "metric m: Unknown field packts: did you mean value.packets?"
                "metric m: Unknown field yy" "metric m: Unknown field z"
                "metric m: Unknown field srcc: did you mean key.src?"]
               (map #(str/replace (:message %) #": the fields are.*" "")
                    (:problems (metrics/check
                                {:metrics [{:name "n" :type :gauge :map m :lable {}}
                                           {:name "m" :type :gauge :map m :value :packts
                                            :labels {:x :yy :z :z} :as {:slot :hex}
                                            :where ["packets>1" "srcc=1"]}]}))))))
      (is (= {:problems [] :missing []}
             (metrics/check {:metrics [{:name "m" :type :gauge :map m :value :packets}]})))
      (is (= {:problems [] :missing ["No map named \"t_no_such_map\": it may come later"]}
             (metrics/check {:metrics [{:name "m" :type :gauge :map "t_no_such_map"}]}))
          "a map that does not exist is no problem")
      (is (= [nil] (map #(re-find #"later" %)
                        (:missing (metrics/check {:metrics [{:name "m" :type :gauge
                                                             :map 2147483647}]}))))
          "an id is not used again")
      (is (= ["metric number 1 :name must have letters, digits, _ and :, got 3"]
             (map :message (:problems (metrics/check {:metrics [{:name 3 :type :gauge
                                                                 :map m}]}))))))))

(kernel-test maps-without-types
  (testing "for a map without BTF, the check names the types to give"
    (with-open [m ^Closeable (bpf/create {:type :hash :key-size 4 :value-size 8 :max-entries 2})]
      (let [problems (fn [metric]
                       (map :message (:problems (metrics/check
                                                 {:metrics [(merge {:name "m" :type :gauge
                                                                    :map {:id (:id (bpf/info m))}}
                                                                   metric)]}))))]
        (is (= ["metric m: The field value must be a number for a metric, got [bytes 8]: give :value-type, such as :u64"]
               (problems {})))
        (is (= ["metric m: Unknown field src: the fields are key, value; give :key-type and :value-type if the map has no BTF"
                "metric m: Unknown field n: the fields are key, value; give :key-type and :value-type if the map has no BTF"]
               (problems {:value :src :labels {:n :n}})))
        (is (= ["metric m: Unknown field src: the fields are key, value; give :key-type if the map has no BTF"]
               (problems {:value-type :u64 :labels {:src :src}})))
        (is (= [] (problems {:key-type [:struct [:src :u32]] :value-type :u64
                             :labels {:src :src}})))))))

;; --- the examples of ebpf_exporter

(defn- struct-of [& members] (into [:struct] (map vec) (partition 2 members)))

(def ^:private u8-slots (struct-of :op :u8 :bucket :u8))
(def ^:private of-cpu [:percpu-array :u32 :u64])

(def ^:private exporter-maps
  "The maps of the examples of ebpf_exporter: type, key and value, by name.

  The kernel rejects BTF with a struct for the key of an array, so such a map has sizes only."
  {"accept_latency_seconds" [:hash (struct-of :port :u16 :bucket :u64) :u64]
   "bio_latency_seconds" [:hash (struct-of :dev :u32 :op :u8 :bucket :u64) :u64]
   "bpf_jit_pages_currently_allocated" [:array :u32 :u64]
   "page_cache_ops_total" [:hash :u8 :u64]
   "cephfs_latency_seconds" [:hash u8-slots :u64]
   "cfs_throttling_seconds" [:lru-hash (struct-of :cgroup :u32 :bucket :u32) :u64]
   "cgroup_rstat_flush_total" of-cpu
   "cgroup_rstat_locked_total" [:percpu-hash (struct-of :contended :u8 :yield :u8 :level :u16) :u64]
   "cgroup_rstat_map_errors_total" of-cpu
   "cgroup_rstat_lock_wait_seconds" [:percpu-array 4 8]
   "cgroup_rstat_lock_hold_seconds" [:percpu-array 4 8]
   "cgroup_rstat_flush_latency_seconds" [:percpu-hash (struct-of :level :u16 :bucket :u16) :u64]
   "cgroup_sched_migrations_total" [:lru-hash :u64 :u64]
   "cgroup_sched_migrations_not_match_total" [:lru-hash :u64 :u64]
   "cgroup_cgrp_storage_sched_migrations_total" [:lru-hash :u64 :u64]
   "cgroup_cgrp_storage_sched_migrations_not_match_total" [:lru-hash :u64 :u64]
   "ext4_latency_seconds" [:hash u8-slots :u64]
   "icmp4_received_packets_total" [:hash (struct-of :addr :u32) :u64]
   "icmp6_received_packets_total" [:hash (struct-of :addr [:array :u8 16]) :u64]
   "inet_frags_total" [:lru-hash (struct-of :ifindex :u32 :ip_version :u8) :u64]
   "kfree_skb_total" [:hash (struct-of :eth_proto :u16 :ip_proto :u16 :port :u16 :reason :u16) :u64]
   "mark_page_accessed_total" [:lru-hash (struct-of :kstack [:array :u64 20]) :u64]
   "llc_references_total" [:hash :u32 :u64]
   "llc_misses_total" [:hash :u32 :u64]
   "pci_user_read_config_ops_total"
   [:lru-hash (struct-of :vendor :u32 :device :u32 :class :u8 :subclass :u16) :u64]
   "softirqs_total" of-cpu
   "raw_timer_starts_total" [:hash :u64 :u64]
   "mm_shrink_slab_events_total" [:lru-hash 16 8]
   "shrink_node_latency_seconds" [:array :u32 :u64]
   "softirq_wait_seconds" of-cpu
   "softirq_runtime_seconds" of-cpu
   "softirq_raised_total" of-cpu
   "softirq_serviced_total" of-cpu
   "softirq_entry_latency_seconds" [:percpu-hash (struct-of :kind :u32 :bucket :u64) :u64]
   "softirq_service_latency_seconds" [:percpu-hash (struct-of :kind :u32 :bucket :u64) :u64]
   "syscalls_total" [:hash :u64 :u64]
   "syscall_errors_total" [:hash :u64 :u64]
   "tcp_retransmit_ipv4_packets_total"
   [:lru-hash (struct-of :saddr :u32 :daddr :u32 :main_port :u16 :type :u8) :u64]
   "tcp_retransmit_ipv6_packets_total"
   [:lru-hash (struct-of :saddr [:array :u8 16] :daddr [:array :u8 16] :main_port :u16 :type :u8)
    :u64]
   "tcp_syn_backlog" [:hash :u64 :u64]
   "tcp_window_clamps_total" [:array :u32 :u64]
   "timer_starts_total" [:hash :u64 :u64]
   "udp_fail_queue_rcv_skbs_total" [:hash :u16 :u64]
   "unix_accept_latency_seconds"
   [:hash (struct-of :addr [:enum :u32 {:DBUS_SOCK_ADDR 0 :JOURNAL_SOCK_ADDR 1 :MYSQLD_SOCK_ADDR 2}]
                     :bucket :u64) :u64]
   "unix_socket_backlog" [:hash (struct-of :addr [:enum :u32 {:DOCKER_SOCK_ADDR 0}] :bucket :u64) :u64]
   "libc_malloc_calls_total" [:hash :u64 :u64]
   "python_module_imports_total" [:lru-hash (struct-of :module [:string 128]) :u64]
   "xdp_incoming_packets_total" [:lru-hash (struct-of :eth_type :u16 :proto :u16 :port :u16) :u64]
   "xfs_latency_seconds" [:hash u8-slots :u64]})

(defn- exporter-map
  "Creates the map of an example. The keys and values of a map without BTF have sizes only."
  ^Closeable [map-name key-types]
  (let [[type key value] (or key-types (exporter-maps map-name))]
    (bpf/create (merge {:type type :name map-name :max-entries 64}
                       (if (int? key)
                         {:key-size key :value-size value}
                         {:key key :value value})))))

(kernel-test configs-of-exporter-examples
  (testing "the configs in the table fit the maps of the examples, and read them"
    (is (= (set (keys exporter-maps)) (set (map :map @documented))))
    (doseq [{map-name :map metric-name :name :as metric} @documented
            :when (or (not= "kfree_skb_total" map-name)
                      (since/has? [:kernel :drop-reasons]))
            key-types (if (= "tcp_syn_backlog" map-name) ; of two examples
                        [[:hash (if (:bucket metric) (struct-of :bucket :u64) :u64) :u64]]
                        [nil])]
      (is (= metric-name map-name))
      (with-open [m (exporter-map map-name key-types)]
        (let [metric (assoc metric :map {:id (:id (bpf/info m))})]
          (is (= {:problems [] :missing []} (metrics/check {:metrics [metric]})) metric-name)
          (with-open [c ^Closeable (metrics/collector {:host false :metrics [metric]})]
            (is (= [1.0] (vals (exposition/values-of (scrape c) "bpfmap_up"))) metric-name)))))))

;; --- counters and gauges

(kernel-test x2-labels-from-fields
  (testing "labels are fields by hints, names and patterns, and equal labels are added up"
    (with-open [m (hash-map-of [:struct [:src :u32] [:port :u16] [:op :u16]]
                               [:struct [:packets :u64] [:bytes :u64]]
                               {{:src 0x0100000a :port 53 :op 0} {:packets 1 :bytes 100}
                                {:src 0x0100000a :port 80 :op 1} {:packets 2 :bytes 200}
                                {:src 0x0200000a :port 443 :op 9} {:packets 4 :bytes 400}})]
      (doseq [[metric expected]
              [[{:labels {:src :src} :as {:src :ipv4}} {{"src" "10.0.0.1"} 3.0, {"src" "10.0.0.2"} 4.0}]
               [{} {{} 7.0}]
               [{:value :bytes :scale 1/100} {{} 7.0}]
               [{:value :bytes :scale 1e-3} {{} 0.7}]
               [{:value :bytes :scale 1.1} {{} 770.0}]
               [{:labels {:port :port} :value :packets :scale 3} {{"port" "53"} 3.0, {"port" "80"} 6.0
                                                                  {"port" "443"} 12.0}]
               [{:where ["port<100"]} {{} 3.0}]
               [{:where ["port<100" "packets>1"] :labels {:p :port}} {{"p" "80"} 2.0}]
               [{:labels {:op {:field :op :names {0 "read" 1 "write"}}}}
                {{"op" "read"} 1.0, {"op" "write"} 2.0, {"op" "9"} 4.0}]
               [{:labels {:op {:field :op :names {0 "read"} :unknown "unknown:%s"}}}
                {{"op" "read"} 1.0, {"op" "unknown:1"} 2.0, {"op" "unknown:9"} 4.0}]
               [{:labels {:op {:field :op :names {0 "read"} :unknown :drop}}} {{"op" "read"} 1.0}]
               [{:labels {:p {:field :port :match ["^([48]).*$" "5"]}}}
                {{"p" "8"} 2.0, {"p" "4"} 4.0, {"p" "5"} 1.0}]
               [{:labels {:p {:field :port :match "^5.*"}}} {{"p" "53"} 1.0}]
               [{:labels {:bytes :value.bytes :z :key.op}}
                {{"bytes" "100" "z" "0"} 1.0, {"bytes" "200" "z" "1"} 2.0, {"bytes" "400" "z" "9"} 4.0}]]]
        (is (= expected (scraped {:metrics [(merge {:name "m" :type :gauge :map m :value :packets}
                                                   metric)]} "m"))
            (pr-str metric)))
      (testing "also at the second reading, when keys are known"
        (with-open [c ^Closeable (metrics/collector
                                  {:host false
                                   :metrics [{:name "m_total" :type :counter :map m :value :packets
                                              :labels {:src :src} :as {:src :ipv4}}
                                             {:name "n" :type :gauge :map m :value :bytes}]})]
          (scrape c)
          (bpf/put! m {:src 0x0100000a :port 53 :op 0} {:packets 10 :bytes 0})
          (bpf/delete! m {:src 0x0200000a :port 443 :op 9})
          (bpf/put! m {:src 0x0300000a :port 53 :op 0} {:packets 5 :bytes 1})
          (let [samples (scrape c)]
            (is (= {{"src" "10.0.0.1"} 12.0, {"src" "10.0.0.3"} 5.0}
                   (exposition/values-of samples "m_total")))
            (is (= {{} 201.0} (exposition/values-of samples "n")))))))))

(kernel-test label-texts
  (testing "label values of every kind are valid texts"
    (with-open [m (hash-map-of [:struct [:comm [:string 8]] [:b :bool] [:a [:array :u64 3]]
                                [:e [:enum :u32 {:read 0 :write 1}]]]
                               :u32
                               {{:comm "a\"b\\c\n" :b true :a [1 2 0] :e :write} 1})]
      (is (= {{"comm" "a\"b\\c\n" "b" "true" "a" "1\n2\n0" "e" "write"} 1.0}
             (scraped {:metrics [{:name "m" :type :gauge :map m
                                  :labels {:comm :comm :b :b :a :a :e :e}}]} "m")))
      (testing "a stack ends at its first trailing zero"
        (is (= {{"a" "0x1|0x2"} 1.0}
               (update-keys (scraped {:metrics [{:name "m" :type :gauge :map m
                                                 :as {:a :hex} :labels {:a :a}}]} "m")
                            #(update % "a" str/replace "\n" "|"))))))))

(kernel-test per-cpu-values
  (testing "values of CPUs are added up, kept apart or selected"
    (let [cpus (call/possible-cpus)]
      (with-open [m ^Closeable (bpf/create {:type :percpu-hash :key :u32
                                            :value [:struct [:n :u64] [:slots [:array :u32 3]]]
                                            :max-entries 8})]
        (bpf/put! m 7 (vec (for [i (range (count cpus))] {:n (inc i) :slots [i 0 1]})))
        (let [metric {:name "m" :type :gauge :map m :value :n :labels {:k :key}}
              all (reduce + (range 1 (inc (count cpus))))]
          (is (= {{"k" "7"} (double all)} (scraped {:metrics [metric]} "m")))
          (is (= {{"k" "7"} 1.0} (scraped {:metrics [(assoc metric :cpus (first cpus))]} "m")))
          (is (= (into {} (map-indexed (fn [i cpu] [{"k" "7" "cpu" (str cpu)} (inc (double i))]) cpus))
                 (scraped {:metrics [(assoc metric :cpus :each)]} "m")))
          (is (= {{"k" "7"} (double all)}
                 (scraped {:metrics [(assoc metric :where [(str "n=" all)])]} "m"))
              "conditions see the sum")
          (is (= {{"le" "1.0"} (double (reduce + (range (count cpus))))
                  {"le" "3.0"} (double (reduce + (range (count cpus))))
                  {"le" "7.0"} (double (+ (count cpus) (long (reduce + (range (count cpus))))))
                  {"le" "+Inf"} (double (+ (count cpus) (long (reduce + (range (count cpus))))))}
                 (scraped {:metrics [{:name "m" :type :histogram :map m}]} "m_bucket")))
          (is (= ["metric m: Labels of a per-CPU map must be fields of the key: or select a CPU with :cpus"]
                 (map :message (:problems (metrics/check
                                           {:metrics [(assoc metric :labels {:n :n})]}))))))))))

(kernel-test x4-large-and-negative-numbers
  (testing "u64 values are doubles, and negative counters are left out and counted"
    (with-open [m (hash-map-of :u32 :u64 {1 18446744073709551615N})
                s (hash-map-of :u32 :s64 {1 -5, 2 7})]
      (with-open [c ^Closeable (metrics/collector
                                {:host false
                                 :metrics [{:name "a_total" :type :counter :map m}
                                           {:name "b_total" :type :counter :map s :labels {:k :key}}
                                           {:name "c" :type :gauge :map s}]})]
        (let [samples (scrape c)]
          (is (= {{} 1.8446744073709552E19} (exposition/values-of samples "a_total")))
          (is (= {{"k" "2"} 7.0} (exposition/values-of samples "b_total")))
          (is (= {{} 2.0} (exposition/values-of samples "c")))
          (is (= {{"metric" "a_total"} 0.0, {"metric" "b_total"} 1.0, {"metric" "c"} 0.0}
                 (exposition/values-of samples "bpfmap_metric_invalid_entries"))))))))

(kernel-test limit-of-series
  (testing "a metric keeps the series that it has, and reports the entries that it leaves out"
    (with-open [m (hash-map-of :u32 :u32 (into {} (for [i (range 10)] [i 1])))]
      (with-open [c ^Closeable (metrics/collector
                                {:host false :limit 4
                                 :metrics [{:name "m" :type :gauge :map m :labels {:k :key}}
                                           {:name "n" :type :gauge :map m :labels {:k :key}
                                            :limit 100}]})]
        (let [dropped #(get (exposition/values-of % "bpfmap_metric_dropped_entries") {"metric" %2})
              first-scrape (scrape c)
              kept (set (keys (exposition/values-of first-scrape "m")))]
          (is (= [4 6.0 10 0.0]
                 [(count kept) (dropped first-scrape "m")
                  (count (exposition/values-of first-scrape "n")) (dropped first-scrape "n")]))
          (bpf/put-all! m (for [i (range 100 200)] [i 1]))
          (is (= [kept 106.0] (let [samples (scrape c)]
                                [(set (keys (exposition/values-of samples "m")))
                                 (dropped samples "m")])))
          (bpf/delete-all! m (concat (range 10) (range 103 200)))
          (scrape c) ; at its end, the series of deleted keys are forgotten
          (is (= [{{"k" "100"} 1.0, {"k" "101"} 1.0, {"k" "102"} 1.0} 0.0]
                 (let [samples (scrape c)]
                   [(exposition/values-of samples "m") (dropped samples "m")]))))))))

;; --- histograms

(kernel-test buckets-in-keys
  (testing "buckets are numbers in keys, by every numbering, with a sum"
    (let [key [:struct [:op :u32] [:slot :u32]]]
      (with-open [m (hash-map-of key :u64 {{:op 1 :slot 0} 2, {:op 1 :slot 2} 3
                                           {:op 1 :slot 4} 1000
                                           {:op 2 :slot 3} 1})]
        (doseq [[metric buckets sum]
                [[{:last 3 :sum 4} [[1.0 2.0] [3.0 2.0] [7.0 5.0] [15.0 5.0] [##Inf 5.0]] 1000.0]
                 [{:last 3 :sum 4 :slots :exp2 :scale 1e-6}
                  [[1e-6 2.0] [2e-6 2.0] [4e-6 5.0] [8e-6 5.0] [##Inf 5.0]] 1e-3]
                 [{:last 3 :sum 4 :scale 1e-6}
                  [[1e-6 2.0] [3e-6 2.0] [7e-6 5.0] [1.5e-5 5.0] [##Inf 5.0]] 1e-3]
                 [{:sum 4 :bounds [1 10 16] :scale 1.5e-6}
                  [[1.5e-6 2.0] [1.5e-5 2.0] [2.4e-5 5.0] [##Inf 5.0]] 1.5e-3]
                 [{:last 2 :sum 4 :linear 0.1} [[0.1 2.0] [0.2 2.0] [0.3 5.0] [##Inf 5.0]] 1000.0]
                 [{:last 2 :sum 4 :slots :exp2zero} 
                  [[0.0 2.0] [1.0 2.0] [2.0 5.0] [##Inf 5.0]] 1000.0]
                 [{:last 2 :sum 4 :slots :bcc} [[0.0 2.0] [1.0 2.0] [3.0 5.0] [##Inf 5.0]] 1000.0]
                 [{:last 2 :sum 4 :slots :bpftrace} 
                  [[-1.0 2.0] [0.0 2.0] [1.0 5.0] [##Inf 5.0]] 1000.0]
                 [{:last 2 :sum 4 :linear 50}
                  [[49.0 2.0] [99.0 2.0] [149.0 5.0] [##Inf 5.0]] 1000.0]
                 [{:sum 4 :bounds [10 20 30]} [[10.0 2.0] [20.0 2.0] [30.0 5.0] [##Inf 5.0]] 1000.0]
                 [{:slots :limit :bounds [0 2] :sum 4} [[0.0 2.0] [2.0 5.0] [##Inf 5.0]] 1000.0]
                 [{:last 2} [[1.0 2.0] [3.0 2.0] [7.0 5.0] [##Inf 1005.0]] nil]
                 [{:first 1 :last 2 :sum 4} [[3.0 2.0] [7.0 5.0] [##Inf 5.0]] 1000.0]]]
          (with-open [c ^Closeable (metrics/collector
                                    {:host false
                                     :metrics [(merge {:name "m" :type :histogram :map m
                                                       :bucket :slot :labels {:op :op}} metric)]})]
            (let [samples (scrape c)
                  of-op (fn [name] (filter #(= "1" (get-in % [:labels "op"])) (get samples name)))]
              (is (= buckets (sort (for [{:keys [labels value]} (of-op "m_bucket")
                                         :let [le (get labels "le")]]
                                     [(if (= "+Inf" le) ##Inf (parse-double le)) value])))
                  (pr-str metric))
              (is (= [(second (last buckets))] (map :value (of-op "m_count"))))
              (is (= (if sum [sum] []) (map :value (of-op "m_sum"))) (pr-str metric)))))))))

(kernel-test buckets-in-values
  (testing "buckets are an array of counts in the value, with a field for the sum"
    (with-open [m (hash-map-of :u32 [:struct [:slots [:array :u32 4]] [:total :u64]]
                               {1 {:slots [1 0 2 4] :total 99}})]
      (with-open [c ^Closeable (metrics/collector
                                {:host false
                                 :metrics [{:name "m" :type :histogram :map m :labels {:k :key}
                                            :sum :total :scale 2}]})]
        (let [samples (scrape c)]
          (is (= {{"k" "1" "le" "2.0"} 1.0, {"k" "1" "le" "6.0"} 1.0, {"k" "1" "le" "14.0"} 3.0
                  {"k" "1" "le" "30.0"} 7.0, {"k" "1" "le" "+Inf"} 7.0}
                 (exposition/values-of samples "m_bucket")))
          (is (= {{"k" "1"} 198.0} (exposition/values-of samples "m_sum"))))))))

(kernel-test numbers-of-buckets-that-are-odd
  (testing "any number of a bucket is counted, in the first bucket or above the last"
    (with-open [m (hash-map-of :u64 :u64 {0 1, 2 3, 9223372036854775808N 5
                                          18446744073709551615N 7})
                s (hash-map-of :s64 :u64 {-9223372036854775808 1, -1 1, 1 2
                                          9223372036854775807 9})]
      (doseq [[m metric buckets]
              [[m {:last 1} [1.0 1.0 16.0]] [m {:last 2 :first 1} [1.0 4.0 16.0]]
               [m {:slots :limit :bounds [0 5]} [1.0 4.0 16.0]]
               [s {:last 1} [2.0 4.0 13.0]] [s {:slots :limit :bounds [-5 5]} [1.0 4.0 13.0]]]]
        (is (= buckets
               (sort (vals (scraped {:metrics [(merge {:name "h" :type :histogram :map m} metric)]}
                                    "h_bucket"))))
            (pr-str metric))))))

(kernel-test one-map-does-not-hide-others
  (testing "a pattern that needs too much stack takes down the metrics of its map only"
    (with-open [m (hash-map-of :u32 [:struct [:text [:string 30000]] [:n :u64]]
                               {1 {:text (str/join (repeat 29000 "a")) :n 1}})
                other (hash-map-of :u32 :u64 {1 5})]
      (let [told (atom [])]
        (with-open [c ^Closeable (metrics/collector
                                  {:host false
                                   :metrics [{:name "m" :type :gauge :map m :value :n
                                              :labels {:t {:field :text :match "^(a|b)*$"}}}
                                             {:name "n" :type :gauge :map other}]}
                                  {:on-change #(swap! told conj (:message %))})]
          (let [samples (scrape c)]
            (is (= {{} 5.0} (exposition/values-of samples "n")))
            (is (= #{0.0 1.0} (set (vals (exposition/values-of samples "bpfmap_up")))))
            (is (= ["Reading failed: java.lang.StackOverflowError"] @told))))))))

(defn- native-point ^HistogramSnapshot$HistogramDataPointSnapshot [^MultiCollector c]
  (let [^MetricSnapshots found (.collect c)
        ^HistogramSnapshot h (first (filter #(instance? HistogramSnapshot %) found))]
    (first (.getDataPoints h))))

(defn- native-buckets [buckets]
  (into {} (map (fn [^io.prometheus.metrics.model.snapshots.NativeHistogramBucket b]
                  [(.getBucketIndex b) (.getCount b)]))
        buckets))

(kernel-test native-histograms
  (testing "native buckets are the buckets of the map, and zeros are counted apart"
    (with-open [m (hash-map-of :u32 :u64 {0 5, 1 1, 3 2, 9 4})]
      (doseq [[metric zeros expected]
              [[{:last 8 :slots :exp2} 0 {0 5, 1 1, 3 2, 9 4}]
               [{:last 8 :slots :exp2zero} 5 {0 1, 2 2, 8 4}]
               [{:last 3 :slots :exp2 :scale 1/1024} 0 {-10 5, -9 1, -7 2, -6 4}]
               [{:last 2 :slots :exp2 :form :both} 0 {0 5, 1 1, 3 6}]]]
        (with-open [c ^Closeable (metrics/collector
                                  {:host false
                                   :metrics [(merge {:name "m" :type :histogram :map m :form :native}
                                                    metric)]})]
          (let [point (native-point c)]
            (is (= [0 zeros expected]
                   [(.getNativeSchema point) (.getNativeZeroCount point)
                    (native-buckets (.getNativeBucketsForPositiveValues point))])
                (pr-str metric))
            (is (= (= :both (:form metric)) (.hasClassicHistogramData point)))
            (is (= 12 (.getCount point)))
            (let [out (ByteArrayOutputStream.)]
              (.write (.getPrometheusProtobufWriter (ExpositionFormats/init)) out
                      (.collect ^MultiCollector c))
              (is (pos? (.size out)) "in the format that has native histograms"))))))))

;; --- maps that come and go

(kernel-test x3-maps-are-followed
  (testing "a map may come later, be replaced under its pin and go away, and bpfmap_up tells"
    (let [path (fixture/new-pin)
          told (atom [])
          spec {:type :hash :key :u32 :value :u64 :max-entries 8}
          name (str "t_follow" (mod (System/nanoTime) 100000))]
      (with-open [c ^Closeable (metrics/collector
                                {:host false
                                 :metrics [{:name "m" :type :gauge :map path :labels {:k :key}}
                                           {:name "n" :type :gauge :map name}]}
                                {:on-change #(swap! told conj (select-keys % [:map :up]))})]
        (let [look (fn []
                     (let [samples (scrape c)]
                       (mapv #(exposition/values-of samples %) ["bpfmap_up" "m" "n"])))
              up (fn [a b] {{"map" path} a, {"map" name} b})]
          (is (= [(up 0.0 0.0) {} {}] (look)))
          (with-open [m ^Closeable (bpf/create spec)]
            (bpf/put! m 1 10)
            (bpf/pin! m path)
            (is (= [(up 1.0 0.0) {{"k" "1"} 10.0} {}] (look)))
            (bpf/unpin! m path))
          (with-open [m ^Closeable (bpf/create (assoc spec :value :u32))]
            (bpf/put! m 2 20)
            (bpf/pin! m path)
            (is (= [(up 1.0 0.0) {{"k" "2"} 20.0} {}] (look)) "another map, of another type")
            (bpf/unpin! m path))
          (is (= [(up 0.0 0.0) {} {}] (look)) "the map is gone")
          (with-open [m ^Closeable (bpf/create (assoc spec :name name))]
            (bpf/put! m 1 1)
            (is (= [(up 0.0 1.0) {} {{} 1.0}] (look))))
          (is (= [(up 0.0 0.0) {} {}] (look)) "the collector does not keep it alive")
          (with-open [m ^Closeable (bpf/create (assoc spec :name name))]
            (bpf/put! m 1 2)
            (is (= [(up 0.0 1.0) {} {{} 2.0}] (look)))
            (testing "a map whose types do not fit is not up"
              (with-open [other ^Closeable (bpf/create (assoc spec :value [:string 8]))]
                (bpf/pin! other path)
                (is (= [(up 0.0 1.0) {} {{} 2.0}] (look)))
                (bpf/unpin! other path)))))
        (is (= [[path false] [name false] [path true] [path false] [name true] [name false]
                [name true] [path false]]
               (map (juxt :map :up) @told)))))))

(defn- measuring?
  "True if this process has a descriptor for which the kernel measures programs."
  []
  (boolean (some #(try
                    (= "anon_inode:bpf-stats" (str (Files/readSymbolicLink (.toPath ^File %))))
                    (catch java.io.IOException _ false))
                 (.listFiles (File. "/proc/self/fd")))))

(kernel-test x5-nothing-stays-open
  (testing "scrapes leave no descriptor open, and programs are measured only by an open collector"
    (with-open [m (hash-map-of :u32 :u64 {1 1})]
      (is (not (measuring?)))
      (with-open [_ ^Closeable (metrics/collector {:host {:maps true}})]
        (is (not (measuring?))))
      (with-open [_ ^Closeable (metrics/collector {:host {:programs true}})]
        (is (measuring?)))
      (is (not (measuring?)))
      (with-open [c ^Closeable (metrics/collector
                                {:metrics [{:name "m" :type :gauge :map {:id (:id (bpf/info m))}}
                                           {:name "n" :type :gauge :map m}]})]
        (scrape c)
        (let [before (fixture/settled-descriptors)]
          (dotimes [_ 5] (scrape c))
          (is (= before (fixture/open-descriptors))))))))

(kernel-test concurrent-scrapes
  (testing "scrapes of several threads each see whole readings"
    (with-open [m (hash-map-of :u32 :u64 (into {} (for [i (range 500)] [i 1])))]
      (with-open [c ^Closeable (metrics/collector
                                {:host false
                                 :metrics [{:name "m" :type :gauge :map m}
                                           {:name "n" :type :gauge :map m :labels {:k :key}}]})]
        (is (= (repeat 4 (repeat 10 [{{} 500.0} 500]))
               (fixture/in-threads
                4 (fn [_]
                    (doall (repeatedly 10 #(let [samples (scrape c)]
                                             [(exposition/values-of samples "m")
                                              (count (get samples "n"))])))))))))))

(deftest waiting-scrapes-share-a-reading
  (testing "threads that wait are all answered by the next call, which began after they came"
    (let [calls (atom 0)
          begun (promise)
          go-on (promise)
          shared (collecting/sharing (fn []
                                       (let [n (swap! calls inc)]
                                         (deliver begun true)
                                         @go-on
                                         n)))
          results (repeatedly 11 promise)
          threads (for [result results] (delay (fixture/thread #(deliver result (shared)))))]
      @(first threads)
      @begun
      (run! deref (rest threads))
      (is (fixture/eventually #(every? (fn [t] (= Thread$State/BLOCKED (.getState ^Thread @t)))
                                       (rest threads)))
          "the others wait")
      (deliver go-on true)
      (is (= (cons 1 (repeat 10 2)) (map #(deref % fixture/patience :late) results)))
      (is (= 3 (shared)) "a result that nobody waited for is not used again")))
  (testing "a call that fails is not shared"
    (let [shared (collecting/sharing (let [n (atom 0)]
                                       #(if (= 1 (swap! n inc)) (throw (ex-info "no" {})) @n)))]
      (is (= "no" (:message (error-of (shared)))))
      (is (= 2 (shared))))))

;; --- the host

(def ^:private prefix
  "The beginning of names that no other test and no other run uses."
  (str "t" (mod (System/nanoTime) 1000000000) "_"))

(kernel-test host-metrics
  (testing "the entries of maps and the fill of rings are metrics, selected by conditions"
    (with-open [m ^Closeable (bpf/create {:type :hash :name (str prefix "m") :key :u32 :value :u64
                                          :max-entries 8})
                ring ^Closeable (bpf/create {:type :ringbuf :name (str prefix "r")
                                             :max-entries 4096})]
      (bpf/put-all! m {1 1, 2 2})
      (let [{:keys [id]} (bpf/info m)
            labels {"id" (str id) "name" (str prefix "m") "type" "hash"}]
        (with-open [c ^Closeable (metrics/collector
                                  {:metrics []
                                   :host {:maps {:where [(str "name~^" prefix)]} :programs false}})]
          (let [samples (scrape c)]
            (is (= {labels 2.0} (exposition/values-of samples "bpfmap_map_entries")))
            (is (= {labels 8.0} (exposition/values-of samples "bpfmap_map_max_entries")))
            (is (= {labels 0.25} (exposition/values-of samples "bpfmap_map_pressure_ratio")))
            (is (= [0.0] (vals (exposition/values-of samples "bpfmap_ring_used_bytes"))))
            (is (= [4096.0] (vals (exposition/values-of samples "bpfmap_ring_size_bytes"))))
            (is (= nil (get samples "bpfmap_program_runs_total")))))
        (with-open [c ^Closeable (metrics/collector
                                  {:host {:maps {:where [(str "name~^" prefix) "full>50"]}}})]
          (is (= {} (exposition/values-of (scrape c) "bpfmap_map_entries"))))
        (is (some? ring))))))

(kernel-test run-time-of-programs
  (testing "the kernel measures programs while a collector is open"
    (with-open [p ^Closeable (prog/load {:type :socket-filter :name (str prefix "p")
                                         :insns [[:mov64 :r0 0] [:exit]]})]
      (let [{:keys [id]} (prog/info p)
            runs (fn [c] (get (exposition/values-of (scrape c) "bpfmap_program_runs_total")
                              {"id" (str id) "name" (str prefix "p") "type" "socket-filter"}))]
        (with-open [c ^Closeable (metrics/collector
                                  {:host {:programs {:where [(str "name=" prefix "p")]}}})]
          (let [before (double (runs c))]
            (prog/test-run p {:data (byte-array 64) :repeat 10})
            (is (<= (+ before 10) (double (runs c))))
            (is (pos? (double (first (vals (exposition/values-of
                                            (scrape c) "bpfmap_program_run_time_seconds_total"))))))))))))

(kernel-test host-without-privileges
  (testing "a host that cannot be read is reported once, and the scrape answers"
    (let [told (atom [])]
      (with-open [c ^Closeable (metrics/collector {:host {:maps true}}
                                                  {:on-change #(swap! told conj %)})]
        (is (= [nil nil] (fixture/unprivileged
                          (fn [] (mapv (fn [_] (get (scrape c) "bpfmap_map_entries")) (range 2))))))
        (is (= [[false true]]
               (for [{:keys [up message]} @told]
                 [up (str/starts-with? message "No metrics of the host: ")])))))))

;; --- services

(kernel-test registered-once
  (testing "a registry rejects a name that it has, and nothing stays registered"
    (with-open [m (hash-map-of :u32 :u64 {1 3})]
      (let [registry (PrometheusRegistry.)
            config {:host false :metrics [{:name "m" :type :gauge :map m}]}]
        (with-open [c ^Closeable (metrics/register! registry config)]
          (is (thrown-with-msg? IllegalArgumentException #"bpfmap_up|m"
                                (metrics/register! registry config)))
          (is (= 1 (count (filter #(= "m" (.getPrometheusName
                                           (.getMetadata ^MetricSnapshot %)))
                                  (.scrape registry)))))
          (is (= "#<collector of 1 metrics>" (str c) (pr-str c)))
          (is (= [{:labels {} :value 3.0}]
                 (some #(when (= "m" (:name %)) (:samples %)) (metrics/samples c)))))
        (is (= 0 (.size (.scrape registry))) "a closed collector has no metrics")))))

(kernel-test samples-as-data
  (testing "samples are the same as data, histograms with cumulative counts"
    (with-open [m (hash-map-of :u32 :u64 {0 1, 2 3, 4 50})]
      (with-open [c ^Closeable (metrics/collector
                                {:host false
                                 :metrics [{:name "h" :type :histogram :map m :last 2 :sum 4}]})]
        (is (= {:name "h" :type :histogram :help (str "From the map " (:id (bpf/info m)) ".")
                :samples [{:labels {} :count 4 :sum 50.0
                           :buckets [[1.0 1] [3.0 1] [7.0 4] [##Inf 4]]}]}
               (first (metrics/samples c))))
        (.close c)
        (is (= [] (metrics/samples c)))))))

;; --- the formats

(kernel-test x1-valid-text
  (testing "promtool and the rules of both formats accept all that is exposed"
    (with-open [m (hash-map-of [:struct [:comm [:string 16]] [:slot :u32]] :u64
                               {{:comm "a\"\\\n" :slot 1} 3, {:comm "é\u0001\t" :slot 2} 5
                                {:comm (bytes/->bytes "ff fe 00 00 00 00 00 00 00 00 00 00 00 00 00 00")
                                 :slot 3} 7})
                ring ^Closeable (bpf/create {:type :ringbuf :max-entries 4096})
                c ^Closeable (metrics/collector
                              {:host {:maps {:where ["type=ringbuf"]} :programs true}
                               :metrics [{:name "m_total" :type :counter :map m :labels {:comm :comm}}
                                         {:name "g" :type :gauge :map m :help "A \\ and\na line"}
                                         {:name "h_seconds" :type :histogram :map m :bucket :slot
                                          :last 3 :sum 4 :labels {:comm :comm}}
                                         {:name "later" :type :gauge :map "t_no_such_map"}]})]
      (is (some? ring) "so that there is one")
      (let [plain (text c false)
            samples (exposition/read-text plain false)
            open (exposition/read-text (text c true) true)]
        (is (= (set (keys samples)) (set (keys open))))
        (is (= {{"comm" "a\"\\\n"} 3.0, {"comm" "é\u0001\t"} 5.0
                {"comm" "ff fe 00 00 00 00 00 00 00 00 00 00 00 00 00 00"} 7.0}
               (exposition/values-of samples "m_total")))
        (when-let [promtool (fixture/executable "promtool")]
          (let [file (File/createTempFile "bpfmap" ".prom")]
            (try
              (spit file plain)
              (let [{:keys [exit out err]} (fixture/run ["sh" "-c" (str promtool " check metrics < " file)])]
                (is (= [0 "" ""] [exit out err])))
              (finally (.delete file)))))))))
