(ns bpfmap.object-load-test
  "Objects in the running kernel: what is loaded, what edits change, and what is left after errors.

  The objects in test/objects are compiled by script/objects."
  (:require [bpfmap.asm :as asm]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.kernel.btf :as kernel.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.object.externs :as externs]
            [bpfmap.impl.prog.program :as program]
            [bpfmap.memory :as mem]
            [bpfmap.object :as object]
            [bpfmap.linux :as linux]
            [bpfmap.prog :as prog]
            [bpfmap.since :as since]
            [clojure.datafy :as datafy]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]])
  (:import (bpfmap.sys Abi)
           (java.io Closeable File)
           (java.nio ByteOrder)))

(set! *warn-on-reflection* true)

(defn- read-object [object order]
  (object/read (str "test/objects/" object "-" order ".o")))

(def ^:private native
  (if (= ByteOrder/BIG_ENDIAN (ByteOrder/nativeOrder)) "eb" "el"))

(def ^:private packets (delay (read-object "packets" native)))
(def ^:private newer (delay (read-object "newer" native)))
(def ^:private rejected (delay (read-object "rejected" native)))

(defn- without-known
  "The object without its bloom filter, which no program uses, if this kernel has none."
  [o]
  (if (since/has? [:map-type :bloom-filter])
    (update-in o [:maps "known"] dissoc :pinning)
    (update o :maps dissoc "known")))

(defn- flows
  "An object with most of what clang puts into one, without programs that no kernel of a test needs
  to run: its tail call leads from XDP to tc, which the kernel refuses. What this kernel lacks is
  left out."
  []
  (cond-> (-> (read-object "flows" native)
              (update :programs dissoc "on_unlink" "untyped")
              (update-in [:maps "jumps"] dissoc :contents)
              without-known)
    (not (since/has? [:kernel :callbacks])) (update :programs dissoc "classify")))

(defn- variable [x name] @(get-in x [:variables name]))

(defn- run [x name]
  (:return (prog/test-run (get-in x [:programs name]) {:data (byte-array 64)})))

;; --- what is loaded

(kernel-test loads-and-runs
  (testing "maps, programs and variables of a loaded object are open and live"
    (with-open [x (object/load @packets)]
      (is (= "#<bpf-object packets-el, 3 maps, 1 programs>"
             (str/replace (pr-str x) "-eb" "-el")))
      (is (= #{"sizes" ".bss" ".rodata"} (set (keys (:maps x)))))
      (is (= 2 (run x "count")))
      (is (= 1 (variable x "packets")))
      (is (= {64 1} (into {} (get-in x [:maps "sizes"]))))
      (mem/write! (get-in x [:variables "packets"]) 41)
      (run x "count")
      (is (= 42 (variable x "packets")))
      (is (= :read-only (:bpfmap/error (error-of (mem/write! (get-in x [:variables "step"]) 2)))))
      (testing "the program keeps what the object says of it"
        (is (= {:name "count" :section "xdp" :attach-type :xdp}
               (program/definition (get-in x [:programs "count"])))))
      (is (nil? (:no-such-key x)))
      (is (= :none (get x :no-such-key :none))))))

(kernel-test btf-that-the-kernel-refuses
  (testing "an object whose BTF the kernel refuses is loaded without it; its maps keep their types"
    (linux/on-a-kernel-that-refuses
     [{:arguments {0 Abi/BPF_BTF_LOAD} :errno 22}]
     (fn []
       (with-open [^Closeable x (object/load (read-object "packets" "el"))]
         (is (nil? (:btf-id (prog/info (get-in x [:programs "count"])))))
         (is (= [:u32 :u64] ((juxt :key :value) (bpf/info (get-in x [:maps "sizes"]))))))))))

(kernel-test loads-everything-of-clang
  (testing "sections, inner maps, callbacks, kconfig, weak symbols and CO-RE load together"
    (with-open [x (object/load (flows) {:log :stats})]
      (is (= #{"count_packets" "pass"} (disj (set (keys (:programs x))) "classify")))
      (is (= #{0 2} (set (keys (get-in x [:maps "rows"])))))
      (is (= [100 "hello" true :OPEN {:ip 7 :port 443 :pad 0} 3 9]
             (mapv #(variable x %) ["limit" "greeting" "verbose" "state" "peer" "seen" "own"])))
      (is (= 2 (run x "count_packets")))
      (is (= [[{:ip 1 :port 443 :pad 0} {:packets 1 :bytes 0 :state :NEW}]]
             (into [] (get-in x [:maps "flows"]))))
      (since/needing [[:kernel :callbacks]]
        (is (= (+ (* 5 (int \e)) 100 1) (run x "classify"))
            "a callback, a weak function, a constant and a string"))
      (is (pos? (get-in x [:stats "count_packets" :insns])))
      (testing "the kernel has the names that libbpf gives"
        (is (= "flows_el.rodata"
               (str/replace (:name (bpf/info (get-in x [:maps ".rodata"]))) "_eb" "_el")))
        (is (= ".data.own" (:name (bpf/info (get-in x [:maps ".data.own"]))))))
      (is (:frozen (bpf/info (get-in x [:maps ".rodata.str1.1"]))))
      (testing "the BTF of the object has the types of its maps"
        (is (apply = (map #(:btf-id (bpf/info (get-in x [:maps %]))) ["flows" ".bss" "totals"])))))
    (testing "a value of the kernel's configuration, and the whole log"
      (with-open [x (object/load (-> @packets
                                     (assoc-in [:kconfig "LINUX_KERNEL_VERSION"] {:type :u32})
                                     (assoc-in [:programs "count" :insns]
                                               [[:ld-map-value :r1 {:kconfig "LINUX_KERNEL_VERSION"}
                                                 0]
                                                [:ldxw :r0 [:r1 0]] [:rsh64 :r0 8] [:exit]])
                                     (update-in [:programs "count"] dissoc :lines :core))
                                 {:log :full})]
        (is (str/includes? (get-in x [:logs "count"]) "processed"))
        (is (contains? (:maps x) ".kconfig"))
        (let [[_ major minor] (re-find #"(\d+)\.(\d+)" (call/kernel-release))]
          (is (= (+ (* 256 (parse-long major)) (parse-long minor)) (run x "count"))))))))

(kernel-test ^{:needs [[:map-type :arena] [:flag :link]]} arenas-and-struct-ops
  (testing "arena variables, exception callbacks and struct_ops maps are loaded"
    (let [o (assoc-in (read-object "newer" native) [:maps "own_cc" :contents 0 :flags] 0)]
      (with-open [x (object/load o)]
        (is (= #{"arena" "own_cc"} (set (keys (:maps x)))) "spare_cc has :autoload false")
        (is (= 8 (variable x "in_arena")))
        (prog/test-run (get-in x [:programs "compute"]) {:context (byte-array 64)})
        (is (= 1 (variable x "zero_in_arena")))
        (is (= #{:ssthresh :cong_avoid :undo_cwnd :flags :name}
               (set (keys (get-in x [:struct-ops "own_cc" :data])))))
        (is (= :BPF_STRUCT_OPS_STATE_READY
               (get-in (get-in x [:maps "own_cc" 0]) [:common :state])))
        (is (= {:section "struct_ops/ssthresh" :name "ssthresh" :target "ssthresh"}
               (program/definition (get-in x [:programs "ssthresh"])))))
      (testing "a struct that the kernel does not have, or without this member"
        (is (str/includes? (:message (error-of (object/load
                                                (assoc-in o [:maps "own_cc" :struct-ops]
                                                          "tcp_congestion_opps"))))
                           "must have one member"))
        (let [alone (update o :maps dissoc "spare_cc")]
          (is (= [:not-found [:maps "own_cc" :struct-ops]]
                 ((juxt :bpfmap/error :bpfmap/path)
                  (error-of (object/load (assoc-in alone [:maps "own_cc" :struct-ops] "no_ops"))))))
          (is (str/includes? (:message
                              (error-of (object/load (assoc-in alone [:maps "own_cc" :contents 0]
                                                               {:sstresh {:program "ssthresh"}}))))
                             "has no member sstresh: did you mean ssthresh?"))
          (is (str/includes? (:message
                              (error-of (object/load (update-in alone [:maps "own_cc"]
                                                                dissoc :contents)
                                                     {:only ["ssthresh"]})))
                             "must be a member of a struct_ops map of the object")))))))

(kernel-test functions-of-modules
  (testing "a function of a module is called through the array of descriptors"
    (is (nil? (kernel.btf/open-named "no_such_module" {:op :load})))
    (if-not (externs/type-id "bpf_rcu_read_lock" :func)
      (fixture/skip! "the kernel has no function to call")
      ;; The kernel itself stands for a module, which the verifier notices.
      (with-redefs [externs/find-type (fn [name kind] {:id (externs/type-id name kind)
                                                       :module "vmlinux"})]
        (let [descriptors (fixture/open-descriptors)
              o (-> @packets
                    (assoc-in [:ksyms "bpf_rcu_read_lock"] {:kind :function})
                    (update-in [:programs "count"] dissoc :lines :core)
                    (assoc-in [:programs "count" :insns]
                              [[:call {:kfunc "bpf_rcu_read_lock"}] [:mov64 :r0 0] [:exit]]))]
          (is (str/includes? (:bpfmap/log (error-of (object/load o))) "not a module BTF"))
          (is (= descriptors (fixture/open-descriptors))))))))

(kernel-test variables-of-each-cpu
  (testing "a section of per-CPU variables is filled for every CPU"
    (let [o (-> @packets
                (assoc-in [:maps ".percpu"] {:name ".percpu" :type :percpu-array :key :u32
                                             :max-entries 1 :value [:struct [:n :u32]]})
                (assoc-in [:variables "n"] {:section ".percpu" :offset 0 :size 4 :type :u32
                                            :value 7}))]
      (with-open [x (object/load o)]
        (is (= #{{:n 7}} (set (get-in x [:maps ".percpu" 0]))))
        (is (nil? (get-in x [:variables "n"])))))))

(kernel-test o9-two-statics-of-one-name
  (testing "static variables of one name in two functions stay two variables"
    (with-open [x (object/load @rejected)]
      (is (= 11 (run x "accepted")))
      (is (= 13 (run x "accepted")))
      (is (= {"first.calls" 3 "second.calls" 12}
             (update-vals (select-keys (:variables x) ["first.calls" "second.calls"]) deref))))))

;; --- edits

(kernel-test edits-are-loaded
  (testing "changed constants, sizes and left-out programs are what is loaded"
    (with-open [x (object/load (-> @packets
                                   (assoc-in [:variables "step" :value] 10)
                                   (assoc-in [:variables "packets" :value] 100)
                                   (update-in [:maps "sizes" :max-entries] * 2)))]
      (run x "count")
      (is (= 101 (variable x "packets")))
      (is (= {60 1} (into {} (get-in x [:maps "sizes"]))))
      (is (= 2048 (:max-entries (bpf/info (get-in x [:maps "sizes"]))))))
    (testing "contents that are data, and instructions with an open map"
      (with-open [m (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1 :contents {0 7}})
                  x (object/load (-> @packets
                                     (assoc-in [:maps "sizes" :contents] {1 2})
                                     (assoc-in [:programs "count" :insns]
                                               [[:ld-map-value :r1 m 0] [:ldxdw :r0 [:r1 0]]
                                                [:exit]])
                                     (update-in [:programs "count"] dissoc :lines :core)))]
        (is (= 7 (run x "count")))
        (is (= {1 2} (into {} (get-in x [:maps "sizes"]))))))
    (testing "o4: an object that was changed and changed back"
      (let [back (-> @packets
                     (update-in [:maps "sizes" :max-entries] inc)
                     (update-in [:maps "sizes" :max-entries] dec))
            tag (fn [o] (with-open [x (object/load o)]
                          (:tag (prog/info (get-in x [:programs "count"])))))]
        (is (= (tag @packets) (tag back)))))))

(kernel-test o10-autoload-false
  (testing "a program with :autoload false is left out, with the maps that only it needs"
    (let [o (assoc-in @packets [:programs "count" :autoload] false)]
      (with-open [x (object/load o)]
        (is (= {} (:programs x) (:maps x))))
      (testing ":only loads it"
        (with-open [x (object/load o {:only #{"count"}})]
          (is (= ["count"] (keys (:programs x)))))))
    (testing "a map that a loaded program needs stays"
      (with-open [x (object/load (assoc-in @rejected [:maps "unused"] {:type :array :key :u32
                                                                       :value :u32
                                                                       :max-entries 1}))]
        (is (= #{"unused" ".data"} (set (keys (:maps x)))))))
    (testing "a map with :autoload false must not be used"
      (let [{:keys [message]} (error-of (object/load (assoc-in @packets [:maps "sizes" :autoload]
                                                               false)))]
        (is (str/includes? message "map sizes was not created, because its :autoload is false"))))))

(kernel-test given-maps
  (testing "maps of the caller are used, and stay open"
    (with-open [sizes (bpf/create (get-in @packets [:maps "sizes"]))]
      (with-open [x (object/load @packets {:maps {"sizes" sizes}})]
        (is (identical? sizes (get-in x [:maps "sizes"])))
        (run x "count"))
      (is (= {64 1} (into {} sizes)))
      (testing "a constant changes, and the map stays"
        (with-open [x (object/load (assoc-in @packets [:variables "step" :value] 10)
                                   {:maps {"sizes" sizes}})]
          (run x "count"))
        (is (= {64 1 60 1} (into {} sizes))))
      (testing "a section of the caller"
        (with-open [data (bpf/create {:type :array :key :u32 :value [:struct [:packets :u64]]
                                      :max-entries 1 :flags #{:mmapable}
                                      :contents {0 {:packets 5}}})]
          (with-open [x (object/load @packets {:maps {".bss" data}})]
            (run x "count")
            (is (= 6 (variable x "packets"))))
          (is (= {:packets 6} (data 0))))))))

(kernel-test pins-by-name
  (testing "a map with :pinning is pinned, used again, and unpinned if loading fails"
    (let [dir (io/file (fixture/bpffs) "objects")
          o (assoc-in @packets [:maps "sizes" :pinning] :by-name)
          options {:pin-path (str dir)}
          pinned #(set (.list ^File dir))]
      (.mkdir dir)
      (try
        (testing "a failure removes the pin"
          (error-of (object/load (assoc-in o [:programs "count" :insns] [[:mov64 :r0 :r5] [:exit]])
                                 options))
          (is (= #{} (pinned))))
        (with-open [x (object/load o options)]
          (run x "count"))
        (is (= #{"sizes"} (pinned)))
        (testing "a failure leaves a pin that was there"
          (error-of (object/load (assoc-in o [:programs "count" :insns] [[:mov64 :r0 :r5] [:exit]])
                                 options))
          (is (= #{"sizes"} (pinned))))
        (with-open [x (object/load o options)]
          (run x "count")
          (is (= {64 2} (into {} (get-in x [:maps "sizes"])))))
        (testing "a pinned map of another shape"
          (let [{:bpfmap/keys [error path]} (error-of (object/load
                                                       (update-in o [:maps "sizes" :max-entries]
                                                                  inc)
                                                       options))]
            (is (= [:incompatible [:maps "sizes"]] [error path]))))
        (finally
          (run! #(.delete ^File %) (reverse (file-seq dir))))))))

(kernel-test tail-calls
  (testing "an array of programs holds those that are loaded"
    (let [o (-> (read-object "flows" native)
                (update :programs select-keys ["pass" "count_packets"])
                (assoc-in [:maps "jumps" :contents] {0 {:program "pass"}
                                                     1 {:program "count_packets"}})
                without-known)]
      (with-open [x (object/load o)]
        (is (= #{0 1} (set (keys (get-in x [:maps "jumps"])))))
        (run x "pass")
        (is (= 1 (variable x "count_packets.turn")) "the tail call leads there"))
      (testing "slots of other programs stay empty"
        (with-open [x (object/load o {:only ["pass"]})]
          (is (= #{0} (set (keys (get-in x [:maps "jumps"]))))))))))

;; --- closing, sharing, failures

(kernel-test closing
  (testing "closing gives back programs, maps and memory, and views throw afterwards"
    (let [descriptors (fixture/settled-descriptors)
          mapped (fixture/mapped-maps)
          x (object/load @packets)
          view (get-in x [:variables "packets"])
          m (get-in x [:maps "sizes"])]
      (is (= 0 @view))
      (.close ^Closeable x)
      (.close ^Closeable x)
      (is (= [descriptors mapped] [(fixture/open-descriptors) (fixture/mapped-maps)]))
      (is (str/includes? (pr-str x) "closed"))
      (is (= :closed (:bpfmap/error (error-of @view))))
      (is (= :closed (:bpfmap/error (error-of (m 1)))))
      (is (= :closed (:bpfmap/error (error-of (:variables (doto (object/load @packets)
                                                            Closeable/.close)))))))))

(kernel-test o7-failures-leave-nothing
  (testing "whichever system call fails, nothing is left: no descriptor, mapping, pin or map"
    (let [dir (io/file (fixture/bpffs) "failing")
          unique (str "fail" (System/nanoTime))
          o (-> (flows)
                (assoc-in [:maps "stacks" :pinning] :by-name)
                (assoc-in [:maps "flows" :name] unique)
                (assoc-in [:maps "jumps" :contents] {0 {:program "pass"}}))
          command call/command
          load #(object/load o {:pin-path (str dir)})]
      (.mkdir dir)
      (try
        (.close ^Closeable (load)) ; what is cached is cached from here on
        (run! #(.delete ^File %) (.listFiles dir))
        (let [state #(vector (fixture/open-descriptors) (fixture/mapped-maps) (vec (.list dir)))
              before (do (fixture/settled-descriptors) (state))
              failing (fn [n]
                        (let [calls (atom 0)]
                          (with-redefs [call/command
                                        (fn [& args]
                                          (if (= n (swap! calls inc))
                                            (throw (ex-info "injected" {:bpfmap/error :injected}))
                                            (apply command args)))]
                            (try
                              (.close ^Closeable (load))
                              :loaded
                              (catch Exception e
                                (ex-message e))))))
              outcomes (loop [n 1 outcomes []]
                         (let [outcome (failing n)]
                           (when (not= :loaded outcome)
                             (is (= before (state)) (str "after a failure of call " n)))
                           (if (or (= :loaded outcome) (= 200 n))
                             outcomes
                             (recur (inc n) (conj outcomes outcome)))))]
          (is (< 15 (count outcomes)))
          (is (every? #(str/includes? % "injected") outcomes))
          (testing "the kernel frees maps of programs a little later"
            (let [left? #(some (fn [{:keys [name]}] (= (subs unique 0 15) name)) (host/maps))]
              (is (fixture/eventually (complement left?))))))
        (finally
          (run! #(.delete ^File %) (reverse (file-seq dir))))))))

(kernel-test o8-two-loads-at-once
  (testing "one value is loaded by several threads at once"
    (let [loads (doall (repeatedly 4 #(future (object/load @packets))))
          objects (mapv deref loads)]
      (try
        (doseq [[i x] (map-indexed vector objects)]
          (dotimes [_ (inc i)] (run x "count")))
        (is (= [1 2 3 4] (map #(variable % "packets") objects)))
        (finally (run! #(.close ^Closeable %) objects))))))

(kernel-test o11-foreign-byte-order
  (testing "an object of the other byte order is read, and not loaded"
    (let [other ({"el" "eb" "eb" "el"} native)
          {:keys [message] :bpfmap/keys [error path]}
          (error-of (object/load (read-object "packets" other)))]
      (is (= [:not-supported [:byte-order]] [error path]))
      (is (re-find #"The object is (big|little)-endian, and this machine is" message)))))

(kernel-test shown-as-data
  (testing "datafy shows an object as data"
    (with-open [x (object/load @packets)]
      (run x "count")
      (let [data (datafy/datafy x)]
        (is (= "packets" (subs (:name data) 0 7)))
        (is (= 1 (get-in data [:variables "packets"])))
        (is (= 1024 (get-in data [:maps "sizes" :max-entries])))
        (is (= :xdp (get-in data [:programs "count" :type])))))))

;; --- what is refused before the kernel sees it

(kernel-test bad-values
  (testing "a value that cannot be loaded is refused with its place"
    (are [path words edited]
         (let [{:keys [message] found :bpfmap/path} (error-of (object/load edited))]
           (and (is (= path found)) (is (str/includes? message words))))
      [] "An object must be a result of read, got \"packets.bpf.o\": read the file first"
      "packets.bpf.o"
      [:functions] ":functions must be a map of names, got [1]" (assoc @packets :functions [1])
      [:maps :sizes] "A name of :maps must be a string, got :sizes"
      (assoc-in @packets [:maps :sizes] {})
      [:maps "x"] "A part of an object must be a map, got 7" (assoc-in @packets [:maps "x"] 7)
      [:license] ":license must be a string, got :GPL" (assoc @packets :license :GPL)
      [:maps "sizes" :max-entries] ":max-entries is required"
      (update-in @packets [:maps "sizes"] dissoc :max-entries)
      [:maps "sizes" :tpye] "unknown key :tpye; did you mean :type?"
      (assoc-in @packets [:maps "sizes" :tpye] :hash)
      [:maps "sizes" :type] "The spec of map sizes is invalid: :type is required"
      (update-in @packets [:maps "sizes"] dissoc :type)
      [:licence] "Unknown key :licence: did you mean :license? See bpfmap.object/read"
      (assoc @packets :licence "GPL")
      [:variables "step" :vlaue] "Unknown key :vlaue of step: did you mean :value?"
      (assoc-in @packets [:variables "step" :vlaue] 7)
      [:programs "count" :autolaod] "Unknown key :autolaod of count: did you mean :autoload?"
      (assoc-in @packets [:programs "count" :autolaod] false)
      [:variables "step" :value] "Value of step: -1 is not a "
      (assoc-in @packets [:variables "step" :value] -1)
      [:variables "step" :value] "A value of bytes must have 4, got 2"
      (assoc-in @packets [:variables "step" :value] (byte-array 2))
      [:variables "step" :type] "The type must have 4 bytes, got 8"
      (assoc-in @packets [:variables "step" :type] :u64)
      [:variables "step"] "A variable must lie in its section of 4 bytes, got 4 bytes at offset 4"
      (assoc-in @packets [:variables "step" :offset] 4)
      [:programs "count" :type] "The program count must have a type; its section \"else\" is not known"
      (update-in @packets [:programs "count"] #(-> % (dissoc :type) (assoc :section "else")))
      [:programs "count" :type] "Unknown program type :xpd: did you mean :xdp?"
      (assoc-in @packets [:programs "count" :type] :xpd)
      [:programs "count" :attach-type] "Unknown attach type :xpd: did you mean :xdp"
      (assoc-in @packets [:programs "count" :attach-type] :xpd)
      [:programs "count" :flags] "must be :sleepable or :xdp-has-frags, got :sleepy"
      (assoc-in @packets [:programs "count" :flags] #{:sleepy})
      [:programs "count" :flags] ":flags of count must be a set, got 7"
      (assoc-in @packets [:programs "count" :flags] 7)
      [:programs "count" :flags] "must be :sleepable or :xdp-has-frags, got nil"
      (assoc-in @packets [:programs "count" :flags] [nil])
      [:programs "count" :tags] ":tags of count must be a vector, got 7"
      (assoc-in @packets [:programs "count" :tags] 7)
      [:programs "count" :section] ":section of count must be a string, got :xdp"
      (assoc-in @packets [:programs "count" :section] :xdp)
      [:programs "count" :target] ":target of count must be a string, got 7"
      (assoc-in @packets [:programs "count" :target] 7)
      [:programs "count" :lines] ":lines of count must be a vector of maps, each with the number"
      (assoc-in @packets [:programs "count" :lines] 7)
      [:programs "count" :lines] "of a slot as its :slot, got [{:slot 4294967296}]"
      (assoc-in @packets [:programs "count" :lines] [{:slot 0x100000000}])
      [:programs "count" :core] "of a slot as its :slot, got [{}]"
      (assoc-in @packets [:programs "count" :core] [{}])
      [:programs "count" :btf-id] "must be an integer from 0 to 2147483647, got -1"
      (assoc-in @packets [:programs "count" :btf-id] -1)
      [:variables "packets" :size] "must be an integer from 0 to 2147483647, got \"8\""
      (assoc-in @packets [:variables "packets" :size] "8")
      [:variables "packets" :section] ":section of packets must be a string, got nil"
      (assoc-in @packets [:variables "packets" :section] nil)
      [:variables "packets"] "must lie in its section of 8 bytes, got 8 bytes at offset 4096"
      (update-in @packets [:variables "packets"] assoc :offset 4096 :value nil)
      [:variables "packets" :type] "The type of packets must have at most 8 bytes, got 16"
      (update-in @packets [:variables "packets"] assoc :type [:bytes 16] :value nil)
      [:variables "packets" :type] "a type must be a keyword such as :u32"
      (update-in @packets [:variables "packets"] assoc :type 7 :value nil)
      [:maps ".bss" :contents] ":contents of .bss must be {0 value}, got 7"
      (assoc-in @packets [:maps ".bss" :contents] 7)
      [:maps ".bss" :type] "section must be of type :array or :percpu-array, got :hash"
      (update-in @packets [:maps ".bss"] #(-> % (assoc :type :hash) (dissoc :flags)))
      [:byte-order] ":byte-order must be :little-endian or :big-endian, got 7"
      (assoc @packets :byte-order 7)
      [:programs "count" :slot 0] "The name of a ksym must be a string, got nil"
      (assoc-in @packets [:programs "count" :insns] [[:lddw :r1 {:ksym nil}] [:exit]])
      [:programs "count" :insns 0] "unknown instruction :mov; did you mean"
      (assoc-in @packets [:programs "count" :insns] [[:mov :r0 1] [:exit]])
      [:programs "count" :insns] "must be functions of the object, got a label"
      (assoc-in @packets [:programs "count" :insns]
                [[:call-local :f] [:exit] :f [:mov64 :r0 0] [:exit]])
      [:programs "count" :slot 1] "The object has no function helo: did you mean hello?"
      (-> @packets
          (assoc-in [:functions "hello"] {:insns [[:mov64 :r0 0] [:exit]]})
          (assoc-in [:programs "count" :insns]
                    [[:mov64 :r1 1] [:call {:function "helo"}] [:exit]]))
      [:programs "count" :slot 0] "The object has no map \"size\": did you mean sizes?"
      (assoc-in @packets [:programs "count" :insns] [[:lddw :r1 {:map "size"}] [:exit]])
      [:programs "count" :slot 0] "The object has no variable \"stop\": did you mean step?"
      (assoc-in @packets [:programs "count" :insns] [[:ld-map-value :r1 {:variable "stop"} 0] [:exit]])
      [:programs "count" :slot 0] "The object has no kconfig \"CONFIG_HZ\": it has none"
      (assoc-in @packets [:programs "count" :insns]
                [[:ld-map-value :r1 {:kconfig "CONFIG_HZ"} 0] [:exit]])
      [:programs "count" :slot 0] "must refer to a part of the object or to an open map, got \"sizes\""
      (assoc-in @packets [:programs "count" :insns] [[:lddw :r1 "sizes"] [:exit]])
      [:maps "rows" :contents 0] "The object has no map \"fist\": did you mean first?"
      (assoc-in (flows) [:maps "rows" :contents 0 :map] "fist"))
    (testing "of struct_ops maps and arenas"
      (are [path words f]
           (let [{:keys [message] found :bpfmap/path} (error-of (object/load (f @newer)))]
             (and (is (= path found)) (is (str/includes? (str message) words))))
        [:maps "own_cc" :contents] "must be {0 {member value …}}, got {0 7}"
        #(assoc-in % [:maps "own_cc" :contents] {0 7})
        [:variables "in_arena" :offset] "must be an integer from 0 to 2147483647, got nil"
        #(assoc-in % [:variables "in_arena" :offset] nil)))
    (since/needing [[:map-type :arena] [:flag :link]]
      (testing "an arena without an address gets one"
        (with-open [x (object/load (assoc-in @newer [:maps "arena" :map-extra] nil))]
          (is (get-in x [:variables "in_arena"])))))
    (testing "a qualified key is the user's own"
      (with-open [x (object/load (assoc-in @packets [:programs "count" ::owner] :me))]
        (is (= 2 (run x "count")))))
    (testing "no license is the empty license"
      (with-open [x (object/load (assoc @packets :license nil))]
        (is (= 2 (run x "count")))))
    (testing "more functions than the kernel takes"
      (let [o (reduce (fn [o i]
                        (assoc-in o [:functions (str "f" i)]
                                  {:insns [[:call {:function (str "f" (inc i))}] [:exit]]}))
                      (assoc-in @packets [:programs "count" :insns]
                                [[:call {:function "f0"}] [:exit]])
                      (range 300))]
        (is (str/includes? (:message (error-of (object/load o)))
                           "A program must have at most 256 functions"))))))

(kernel-test bad-options
  (testing "options are checked"
    (are [path words options]
         (let [{:keys [message] found :bpfmap/path} (error-of (object/load @packets options))]
           (and (is (= path found)) (is (str/includes? message words))))
      [:ony] "Unknown option :ony: did you mean :only?" {:ony ["count"]}
      [:only] "The object has no program \"cuont\": did you mean count?" {:only ["cuont"]}
      [:only] ":only must be a collection of program names, got \"count\"" {:only "count"}
      [:log] ":log must be :stats or :full, got :all" {:log :all}
      [:maps "size"] "The object has no map \"size\": did you mean sizes?" {:maps {"size" 1}}
      [:maps "sizes"] "The map for sizes must be an open map, got 1" {:maps {"sizes" 1}}
      [:maps "java.lang.Object"] "The object has no map" {:maps {(Object.) 1}}
      [:attach-to "cuont"] "The object has no program \"cuont\": did you mean count?"
      {:attach-to {"cuont" 1}}
      [:attach-to "count"] "The target must be an open program, got 1" {:attach-to {"count" 1}}
      [:kernel-btf] "a BTF blob" {:kernel-btf "vmlinux"})
    (with-open [x (object/load @packets)]
      (is (str/includes? (:message (error-of (object/load @packets {:attach-to (:programs x)})))
                         "must be of type :ext or :tracing and have a :target, got type :xdp")))
    (with-open [m (bpf/create {:type :hash :key :u32 :value :u32 :max-entries 1})]
      (let [{:keys [message] :bpfmap/keys [error diff]}
            (error-of (object/load @packets {:maps {"sizes" m}}))]
        (is (= :incompatible error))
        (is (= {:value-size {:spec 8 :map 4}} diff))
        (is (str/includes? message ":value-size is 4, the object has 8"))))))

;; --- what the kernel refuses

(defn- refusal [name]
  (error-of (object/load @rejected {:only [name]})))

(defn- refused-with
  "Asserts that the kernel refuses a program with a reason, and that the error has the rest."
  [name reason line hint]
  (let [{:keys [message] :bpfmap/keys [error path log source] :as found} (refusal name)]
    (is (= [:program-rejected [:programs name]] [error path]))
    (is (re-find reason (:bpfmap/reason found)))
    (is (re-find reason message))
    ;; Before Linux 6.4, a log that is too long has no instruction.
    (when-not (and (= "too_long" name) (not (since/has? [:kernel :ends-of-logs])))
      (is (str/includes? (:text source) line))
      (is (str/includes? message (str "rejected.bpf.c:" (:line source) ": "))))
    (is (str/includes? message (str "\nhint: " (:bpfmap/hint found))))
    (is (str/includes? (:bpfmap/hint found) hint))
    (is (str/includes? log "processed"))))

(kernel-test ^:volume too-many-instructions
  (testing "the error has the hint for a program whose check takes a million instructions"
    (refused-with "too_long" #"too large" "i < 2000000" "at most a million instructions")))

(kernel-test rejected-programs
  (testing "the error has the reason, the source line, a hint and the log"
    (refused-with "null_check" #"map_value_or_null" "return *count;"
                  "compare the pointer with NULL")
    (refused-with "endless" #"infinite loop|back-edge" "result" "the loop has no bound")
    (refused-with "address" #"invalid mem access" "return *(volatile int *)result;"
                  "bpf_probe_read_kernel")
    (refused-with "helper" #"helper|unknown func" "store_bytes"
                  "programs of type :xdp cannot call bpf_skb_store_bytes")
    (testing "o6: a field that this kernel does not have"
      (let [{:keys [message] :bpfmap/keys [reason slot]} (refusal "field")]
        (is (= "struct task_struct has no field no_such_field on this kernel" reason))
        (is (int? slot))
        (is (str/includes? message "bpf_core_field_exists"))))
    (testing "a kernel without trampolines refuses without a log, and no capability is blamed"
      (when-let [message (try
                           (.close (object/load @rejected {:only ["traced"]}))
                           (catch Exception e (ex-message e)))]
        (is (str/includes? message "this kernel has no trampolines"))
        (is (not (str/includes? message "CAP_")))))
    (testing "a function that this kernel does not have"
      (let [{:keys [message] :bpfmap/keys [error path]} (refusal "target")]
        (is (= [:not-found [:programs "target" :target]] [error path]))
        (is (str/includes? message "This kernel has no function vfs_reed: did you mean vfs_read?"))))))

(kernel-test missing-in-kernel
  (testing "what the object needs and this kernel does not have is named"
    (are [path words edited]
         (let [{:keys [message] found :bpfmap/path} (error-of (object/load edited))]
           (and (is (= path found)) (is (str/includes? message words))))
      [:programs "count" :slot 0] "This kernel has no function bpf_no_such_function"
      (-> @packets
          (assoc-in [:ksyms "bpf_no_such_function"] {:kind :function})
          (assoc-in [:programs "count" :insns] [[:call {:kfunc "bpf_no_such_function"}] [:exit]]))
      [:programs "count" :slot 0] "This kernel has no variable no_such_symbol: declare it __weak"
      (-> @packets
          (assoc-in [:ksyms "no_such_symbol"] {:kind :variable})
          (assoc-in [:programs "count" :insns]
                    [[:lddw :r0 {:ksym "no_such_symbol"}] [:exit]]))
      [:kconfig "CONFIG_NO_SUCH"] "This kernel does not define CONFIG_NO_SUCH: declare it __weak"
      (-> @packets
          (assoc-in [:kconfig "CONFIG_NO_SUCH"] {:type :bool})
          (assoc-in [:programs "count" :insns]
                    [[:ld-map-value :r1 {:kconfig "CONFIG_NO_SUCH"} 0] [:mov64 :r0 0] [:exit]]))
      [:kconfig "LINUX_KERNEL_VERSION"] "The value of LINUX_KERNEL_VERSION must be of type [:string 8]"
      (-> @packets
          (assoc-in [:kconfig "LINUX_KERNEL_VERSION"] {:type [:string 8]})
          (assoc-in [:programs "count" :insns]
                    [[:ld-map-value :r1 {:kconfig "LINUX_KERNEL_VERSION"} 0] [:mov64 :r0 0] [:exit]]))
      [:programs "count" :target] "A program of attach type :trace-fentry must have a target"
      (update-in @packets [:programs "count"] assoc :type :tracing :attach-type :trace-fentry)
      [:programs "count" :target] "This kernel has no tracepoint sys_entre: did you mean sys_enter?"
      (update-in @packets [:programs "count"] assoc :type :tracing :attach-type :trace-raw-tp
                 :target "sys_entre")
      [:programs "count" :target] "The program count replaces a function of another program"
      (update-in @packets [:programs "count"] #(-> % (dissoc :attach-type) (assoc :type :ext))))
    (testing "weak declarations are 0, and their calls must not be reached"
      (let [o (-> @packets
                  (assoc-in [:ksyms "bpf_no_such_function"] {:kind :function :weak true})
                  (assoc-in [:ksyms "no_such_symbol"] {:kind :variable :weak true})
                  (assoc-in [:kconfig "CONFIG_NO_SUCH"] {:type :u32 :weak true})
                  (update-in [:programs "count"] dissoc :lines :core))
            insns [[:lddw :r0 {:ksym "no_such_symbol"}]
                   [:lddw :r1 {:kfunc "bpf_no_such_function"}]
                   [:add64 :r0 :r1]
                   [:ld-map-value :r2 {:kconfig "CONFIG_NO_SUCH"} 0]
                   [:ldxw :r2 [:r2 0]]
                   [:add64 :r0 :r2]
                   [:jeq :r1 0 :out]
                   [:call {:kfunc "bpf_no_such_function"}]
                   :out
                   [:exit]]]
        (with-open [x (object/load (assoc-in o [:programs "count" :insns] insns))]
          (is (= 0 (run x "count"))))
        (is (str/includes? (:message (error-of (object/load
                                                (assoc-in o [:programs "count" :insns]
                                                          (remove #{[:jeq :r1 0 :out]} insns)))))
                           "this kernel has no function bpf_no_such_function"))))
    (testing "a target that is an open program has no such function"
      (with-open [p (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})
                  x (object/load @packets)]
        (let [o (update-in @packets [:programs "count"]
                           #(-> % (dissoc :attach-type) (assoc :type :ext :target "cuont")))
              failed (fn [target] (:message (error-of (object/load
                                                       o {:attach-to {"count" target}}))))]
          (is (str/includes? (failed p) "has no function cuont: it was loaded without BTF"))
          (is (str/includes? (failed (get-in x [:programs "count"]))
                             "has no function cuont: did you mean count?")))))))
