(ns ^:volume bpfmap.impl.kernel.token-test
  "Maps created with a BPF token, by this library in a user namespace in which it has no
  capability of its own."
  (:require [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.objects :as objects]
            [clojure.edn :as edn]
            [clojure.string :as str]
            [clojure.test :refer [is testing]]))

(set! *warn-on-reflection* true)

(defn- in-there
  "What code evaluates to in a JVM in there, where `dir` is a delegated BPF file system and
  `variable` is LIBBPF_BPF_TOKEN_PATH; not set where that is nil. `(said x)` is x, or of what it
  throws the kind and the message."
  [dir variable code]
  (let [{:keys [exit out err]}
        (objects/run-delegated
         dir (concat ["env" "-u" "LIBBPF_BPF_TOKEN_PATH"]
                     (when variable [(str "LIBBPF_BPF_TOKEN_PATH=" variable)])
                     [(str (System/getProperty "java.home") "/bin/java")
                      "--enable-native-access=ALL-UNNAMED"
                      "-XX:TieredStopAtLevel=1" "-cp" (System/getProperty "java.class.path")
                      "clojure.main" "-e"
                      (str "(require '[bpfmap.core :as bpf] '[bpfmap.host :as host])"
                           "(defmacro said [x] `(try ~x (catch Exception e# [(:bpfmap/error "
                           "(ex-data e#)) (ex-message e#)])))"
                           "(prn " code ")")]))]
    (is (= [0 ""] [exit err]))
    (edn/read-string (last (str/split-lines out)))))

(defmacro ^:private token-test
  "A kernel-test with a new directory to mount on; skipped where no token can be had."
  [name [dir :as binding] & body]
  (assert (and (vector? binding) (seq body)) (str name " needs [dir] and a body"))
  `(kernel-test ~name
     (cond
       (not (map-types/at-least? (call/kernel-release)
                                 "6.9")) (fixture/skip! "BPF tokens are of Linux 6.9")
       (nil? (objects/run-delegated "/" ["true"])) (fixture/skip! "no C compiler")
       :else (let [~dir (str (fixture/temporary-directory))]
               (try ~@body (finally (.delete (java.io.File. ~dir))))))))

(def ^:private specs
  "Maps of all sorts, typed, with what else is created on the way."
  [{:type :hash :key :ipv4 :value [:struct [:packets :u64] [:bytes :u64]] :max-entries 8
    :contents {"10.0.0.1" {:packets 1 :bytes 2}}}
   {:type :array :value :u64 :max-entries 2 :contents {1 5} :freeze true}
   {:type :hash-of-maps :key :u32 :max-entries 2
    :inner-map {:type :array :value :u64 :max-entries 1}}
   {:type :percpu-array :value :u32 :max-entries 1}
   {:type :lpm-trie :key [:prefix :ipv4] :value :u32 :max-entries 4 :flags #{:no-prealloc}
    :contents {"10.0.0.0/8" 1}}
   {:type :ringbuf :max-entries 4096}])

(defn- creating
  "Code that creates the map of each spec and says what the kernel knows of it, and what is in it
  where it was filled."
  [specs]
  (str "(mapv (fn [spec] (said (with-open [m (bpf/create spec)]"
       " (conj ((juxt :type (comp some? :btf-id) :untyped) (bpf/info m)) (:flags (bpf/spec m)) "
       "(when (:contents spec) (into {} m))))))"
       " '" (pr-str specs) ")"))

(def ^:private by-name
  "Code that creates a map by its name in `dir`, and again: whether it is the same, and what is in
  it."
  (str
   "(said (let [spec {:name \"t_tok\" :type :hash :key :u32 :value :u64 :max-entries 4 :pinning "
   ":by-name :contents {1 10}}"
   "            options {:pin-path dir}]"
   " (with-open [m (bpf/create spec options)] (bpf/put! m 1 11)"
   "  (with-open [n (bpf/create spec options)] [(apply = (map (comp :id bpf/info) [m n])) "
   "(into {} n)]))))"))

(token-test p3-create-with-token [dir]
  (testing "a token allows typed and pinned maps in a user namespace"
    (is (= [[[:hash true nil #{} {"10.0.0.1" {:packets 1 :bytes 2}}]
             [:array true nil #{} {0 0, 1 5}]
             [:hash-of-maps false nil #{} nil]
             [:percpu-array true nil #{} nil]
             [:lpm-trie true nil #{:no-prealloc} {"10.0.0.0/8" 1}]
             [:ringbuf false nil #{} nil]]
            [true {1 11}]]
           (in-there dir dir
             (str "[" (creating specs) "(let [dir " (pr-str dir) "]" by-name ")]"))))))

(def ^:private loading
  "Code that loads types into the kernel by themselves."
  "(said (with-open [b (host/load-btf [[:struct {:name \"flow\"} [:src :ipv4]]])] (str b)))")

(token-test load-btf-with-token [dir]
  (testing "a token allows loading types alone"
    (is (= "#<bpf-btf>" (in-there dir dir loading)))
    (let [[error message] (in-there dir "" loading)]
      (is (= :permission error))
      (is (str/includes? message "set LIBBPF_BPF_TOKEN_PATH to it")))))

(token-test default-token-path [_]
  (testing "finds a token at the usual mount point"
    (is (= [:hash true] (take 2 (first (in-there "/sys/fs/bpf" nil (creating specs))))))))

(token-test s10-missing-token-explained [dir]
  (testing "without a token the error explains namespace capabilities"
    (doseq [[error message] (in-there dir "" (creating (take 2 specs)))]
      (is (= :permission error))
      (is (str/includes? (str message) "this process is in a user namespace"))
      (is (str/includes? (str message)
                         "set LIBBPF_BPF_TOKEN_PATH to it, default: /sys/fs/bpf")))))
