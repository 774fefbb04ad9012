(ns ^:volume bpfmap.impl.map.by-name-test
  "Maps pinned by name: made once, used by all who have the same spec, and complete before anybody
  sees them."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.since :as since]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)
           (java.nio.file Files)
           (java.nio.file.attribute FileAttribute)
           (java.util.concurrent.atomic AtomicBoolean)))

(set! *warn-on-reflection* true)

(def ^:private names (atom 0))

(defn- named
  "A spec pinned under a name that no other test has."
  [spec]
  (assoc spec :name (str "t_named" (swap! names inc)) :pinning :by-name))

(defn- here [] {:pin-path (fixture/bpffs)})

(defn- create ^Closeable [spec] (bpf/create spec (here)))

(defn- pin-file ^java.io.File [spec] (io/file (fixture/bpffs) (:name spec)))

(defn- id [m] (:id (bpf/info m)))

(def ^:private counts {:type :hash :key :u32 :value :u64 :max-entries 8})

;; ---------------------------------------------------------------- filled before it is seen

(kernel-test s5-never-half-filled
  (testing "a map opened by name is always filled and frozen"
    (let [n 20000
          contents (zipmap (range n) (range))]
      (dotimes [_ 5]
        (let [spec (named {:type :hash :key :u32 :value :u32 :max-entries n :contents contents
                           :freeze true})
              path (str (pin-file spec))
              found (promise)
              over (AtomicBoolean.)
              watcher (fixture/thread
                        #(loop []
                           (cond
                             (.exists (io/file path))
                             (deliver found (try
                                              (with-open [m ^Closeable (bpf/open path)]
                                                [(:frozen (bpf/info m)) (bpf/count-entries m)])
                                              (catch Exception e e)))
                             (not (.get over)) (recur))))]
          (try
            (with-open [m (create spec)]
              (is (= path (bpf/pinned-path m)))
              (is (= [true n] (deref found fixture/patience :never))
                  "as it was at the first moment at which it could be opened")
              (bpf/unpin! m))
            (finally
              (.set over true)
              (fixture/join watcher))))))))

(kernel-test s5-failed-fill-no-pin
  (testing "a map that cannot be filled leaves no pin and no map"
    (let [before (fixture/settled-descriptors)]
      (doseq [[spec
               words] [[(assoc counts :contents [[1 1] [2 -1]])
                        "the entry of 2: [:value]: -1 is not a :u64"]
                       ;; These only the kernel can refuse, when the map is there already.
                       [(assoc counts :max-entries 1 :contents [[1 1] [2 2]])
                        "the entry of 2: put-all! on map"]
                       [{:type :queue :value :u32 :max-entries 2 :contents [1 2 3]}
                        "the entry of 2: push! on map"]
                       [{:type :devmap :max-entries 2 :contents {0 1, 1 999999}}
                        "the entry of 1: put-all! on map"]]
              :let [spec (named spec)
                    {:keys [message]} (error-of (create spec))]]
        (is (str/includes? message words))
        (is (not (.exists (pin-file spec))) (str (:type spec))))
      (is (= before (fixture/open-descriptors)) "nor an open map"))))

;; ---------------------------------------------------------------- the same spec

(def ^:private same-again
  "Specs for which the kernel reports other values."
  [counts
   {:type :devmap :max-entries 4} ; gets the flag :rdonly-prog
   {:type :devmap-hash :max-entries 4}
   {:type :ringbuf :max-entries 5000} ; rounded up to pages
   {:type :user-ringbuf :max-entries 1}
   {:type :perf-event-array :max-entries 100000} ; cut to the CPUs
   {:type :cpumap}
   ;; Rounded up to a multiple of the CPUs
   {:type :lru-hash :key :u32 :value :u32 :max-entries 5 :flags #{:no-common-lru}}
   {:type :lru-percpu-hash :key :u32 :value :u32 :max-entries 5 :flags [2]}
   {:type :stack-trace :max-entries 5}
   {:type :bloom-filter :value :u32 :max-entries 5}
   {:type :arena :max-entries 3 :flags #{:mmapable}}
   {:type :array-of-maps :max-entries 2 :inner-map {:type :array :value :u32 :max-entries 1}}
   {:type :task-storage :value :u32 :flags #{:no-prealloc}}
   {:type :cgroup-storage :value :u32}
   {:type :lpm-trie :key [:prefix :ipv4] :value :u8 :max-entries 3 :flags #{:no-prealloc}}
   {:type :queue :value :u32 :max-entries 3}
   {:type :hash :key :u8 :value :u8 :max-entries 3 :numa-node 0}
   ;; Flags of a descriptor, which no map has
   {:type :array :value :u32 :max-entries 2 :flags #{:rdonly}}
   {:type :array :value :u32 :max-entries 2 :flags #{:wronly}}
   {:type :hash :key-size 3 :value-size 5 :max-entries 2}
   {:type :array :value [:struct [:lock :spin-lock] [:n :u32]] :max-entries 1}
   {:type :array :value :u32 :max-entries 1 :freeze true}])

(kernel-test p3-p5-reopen-same-spec
  (testing "the same spec opens the same map"
    (let [before (fixture/settled-descriptors)]
      (doseq [spec same-again :when (since/has? [:map-type (:type spec)]) :let [spec (named spec)]]
        (testing spec
          (with-open [m (create spec)
                      again (create spec)]
            (is (= (id m) (id again)))
            (is (= (bpf/spec m) (bpf/spec again)) "and it knows as much of it")
            (is (= (bpf/info m) (bpf/info again)))
            (is (= (str (pin-file spec)) (bpf/pinned-path again)))
            (is (= [nil true] [(bpf/spec-diff again spec) (bpf/compatible? again (bpf/spec m))]))
            (bpf/unpin! again)
            (is (not (.exists (pin-file spec))) "either handle may unpin it"))))
      (is (= before (fixture/open-descriptors))))))

(kernel-test p3-long-name-kept-whole
  (testing "keeps a long name although the kernel truncates it"
    (let [spec (assoc (named counts) :name "a-name-of-more-than-fifteen-bytes")]
      (with-open [m (create spec)
                  again (create spec)]
        (is (= (id m) (id again)))
        (is (= ["a-name-of-more-than-fifteen-bytes" "anameofmorethan"]
               [(:name (bpf/spec again)) (:name (bpf/info again))]))
        (bpf/unpin! m)))))

(kernel-test p4-existing-contents
  (testing "does not fill an existing map again"
    (let [spec (named (assoc counts :contents {1 10, 2 20}))]
      (with-open [m (create spec)]
        (is (= {1 10, 2 20} (into {} m)))
        (bpf/put! m 1 11)
        (bpf/delete! m 2)
        (bpf/put! m 3 30)
        (doseq [contents [{1 10, 2 20} {9 90} (zipmap (range 100) (range)) nil]]
          (with-open [again (create (assoc spec :contents contents))]
            (is (= {1 11, 3 30} (into {} again) (into {} m)) "the current entries")))
        (bpf/unpin! m)
        (with-open [fresh (create spec)]
          (is (= {1 10, 2 20} (into {} fresh)) "once it is gone, a new map is created")
          (bpf/unpin! fresh))))))

;; ---------------------------------------------------------------- another spec

(kernel-test p3-incompatible-spec
  (testing "rejects an incompatible spec and lists every difference"
    (let [spec (named counts)
          before (fixture/settled-descriptors)]
      (with-open [m (create spec)]
        (bpf/put! m 1 10)
        (doseq [[change diff words]
                [[{:max-entries 9} {:max-entries {:spec 9 :map 8}}
                  ":max-entries is 8, the spec has 9"]
                 [{:key :u64} {:key-size {:spec 8 :map 4}} ":key-size is 4, the spec has 8"]
                 [{:key :u64 :value :u32 :max-entries 9 :flags #{:no-prealloc}}
                  {:key-size {:spec 8 :map 4} :value-size {:spec 4 :map 8}
                   :max-entries {:spec 9 :map 8} :flags {:spec #{:no-prealloc} :map #{}}}
                  ":flags is #{}, the spec has #{:no-prealloc}; :key-size is 4, the spec has 8; :max-entries is 8, the spec has 9; :value-size is 8, the spec has 4"]
                 [{:type :lru-hash} {:type {:spec :lru-hash :map :hash}}
                  ":type is :hash, the spec has :lru-hash"]
                 [{:type :queue :key nil :freeze true}
                  {:type {:spec :queue :map :hash} :key-size {:spec 0 :map 4}
                   :freeze {:spec true :map false}}
                  ":freeze is false, the spec has true"]
                 [{:type :bloom-filter :key nil :map-extra 3}
                  {:type {:spec :bloom-filter :map :hash} :key-size {:spec 0 :map 4}
                   :map-extra {:spec 3 :map 0}}
                  ":map-extra is 0, the spec has 3"]]
                :let [{:keys [message] :bpfmap/keys [error op file] found :bpfmap/diff}
                      (error-of (create (merge spec change)))]]
          (testing change
            (is (= [:incompatible :create (str (pin-file spec))] [error op file]))
            (is (= diff found))
            (is (str/includes? message
                               (str "The map pinned at " (pin-file spec)
                                    " does not match the spec: ")))
            (is (str/includes? message words))))
        (is (= {1 10} (into {} m)) "and it is left alone")
        (is (.exists (pin-file spec)))
        (bpf/unpin! m))
      (is (= before (fixture/open-descriptors))))))

(kernel-test p3-other-file-at-path
  (testing "reports what exists at the path of the pin"
    (let [dir (fixture/bpffs)
          refused (fn [spec] ((juxt :bpfmap/error :bpfmap/op :message) (error-of (create spec))))
          dangling (named counts)
          directory (named counts)]
      (testing "a link to nothing"
        (Files/createSymbolicLink (.toPath (pin-file dangling)) (.toPath (io/file "/nowhere"))
                                  (make-array FileAttribute 0))
        (let [[error op message] (refused dangling)]
          (is (= [:exists :create] [error op]))
          (is (= (str (pin-file dangling)
                      " is a dangling symbolic link: remove it; nothing can be pinned in its "
                      "place") message)))
        (.delete (pin-file dangling)))
      (testing "a directory"
        (.mkdir (pin-file directory))
        (let [[error op message] (refused directory)]
          (is (= :create op))
          (is (contains? #{:not-bpffs :permission :not-a-map :kernel} error) message))
        (.delete (pin-file directory)))
      (testing "no directory for it"
        (doseq [[pin-path error words] [[(str dir "/nodir") :not-found "nodir/t_x does not exist"]
                                        ["/tmp" :not-bpffs "/tmp/t_x is not on a BPF file system"]]]
          (let [{:keys [message]
                 :as data} (error-of (bpf/create (assoc counts :name "t_x" :pinning :by-name)
                                                 {:pin-path pin-path}))]
            (is (= [error :create] ((juxt :bpfmap/error :bpfmap/op) data)))
            (is (str/includes? message words))))))))

;; ---------------------------------------------------------------- races

(kernel-test p3-concurrent-creates
  (testing "concurrent threads all open the map of the first"
    (dotimes [_ 30]
      (let [spec (named (assoc counts :contents {1 10}))
            maps (fixture/in-threads 8 (fn [_] (create spec)))]
        (try
          (is (= 1 (count (set (map id maps)))))
          (is (every? #(= {1 10} (into {} %)) maps))
          (is (every? #(= (str (pin-file spec)) (bpf/pinned-path %)) maps))
          (finally
            (bpf/unpin! (first maps))
            (run! bpf/close maps)))))))

(kernel-test p3-pin-comes-and-goes
  (testing "a pin that comes and goes yields a map or an error"
    (let [spec (named counts)
          over (AtomicBoolean.)
          remover (fixture/thread #(while (not (.get over)) (.delete (pin-file spec))))
          outcomes (try
                     (fixture/in-threads 4 (fn [_]
                                             (vec (repeatedly 100 #(try
                                                                     (with-open [m (create spec)]
                                                                       (bpf/put! m 1 1)
                                                                       (m 1))
                                                                     (catch
                                                                      clojure.lang.ExceptionInfo e
                                                                       (:bpfmap/error
                                                                        (ex-data e))))))))
                     (finally (.set over true)
                              (fixture/join remover)))]
      (is (= #{1} (disj (set (apply concat outcomes)) :busy)) "nothing but that")
      ;; Nobody has seen it give up; this is the message in that case.
      (is
       (=
        "The pin /sys/fs/bpf/x was created and removed repeatedly: others create and remove it at the same time; try again"
        (ex-message (lifecycle/unusable-path-error "/sys/fs/bpf/x"))))
      (.delete (pin-file spec)))))

(kernel-test p3-concurrent-processes
  (testing "concurrent processes all open the map of the first"
    (let [spec (named (assoc counts :contents {1 10}))
          rounds 20
          code (str "(require '[bpfmap.core :as bpf] '[clojure.java.io :as io])"
                    ;; They wait for each other, since JVMs start when they like.
                    "(spit (io/file (System/getProperty \"ready\") (str (.pid "
                    "(java.lang.ProcessHandle/current)))) \"\")"
                    "(while (> 3 (count (.list (io/file (System/getProperty \"ready\"))))) "
                    "(Thread/sleep 1))"
                    "(prn (vec (for [i (range " rounds ")]"
                    " (with-open [m (bpf/create (update (quote " (pr-str spec)
                    ") :name str \"_\" i) {:pin-path " (pr-str (fixture/bpffs)) "})]"
                    "  [(:id (bpf/info m)) (into {} m)]))))")
          ready (fixture/temporary-directory)
          java [(str (System/getProperty "java.home") "/bin/java")
                "--enable-native-access=ALL-UNNAMED" "-XX:TieredStopAtLevel=1"
                (str "-Dready=" ready) "-cp" (System/getProperty "java.class.path") "clojure.main"
                "-e" code]]
      (try
        (let [outputs (fixture/in-threads 3 (fn [_] (fixture/run java)))]
          (is (= ["" "" ""] (map :err outputs)))
          (let [found (map (comp edn/read-string :out) outputs)]
            (is (apply = found) "the same maps, each filled")
            (is (= rounds (count (set (map first (first found))))))
            (is (every? #(= {1 10} (second %)) (first found)))))
        (finally
          (dotimes [i rounds] (.delete (pin-file (update spec :name str "_" i))))
          (run! #(.delete ^java.io.File %) (reverse (file-seq ready))))))))
