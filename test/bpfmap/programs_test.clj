(ns bpfmap.programs-test
  "What the kernel puts into maps by itself, and what of it user space may touch."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.linux :as linux :refer [held pack said unpack]]
            [bpfmap.objects :as objects]
            [bpfmap.prog :as prog]
            [bpfmap.programs :as programs]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (bpfmap.sys Elements Fd)
           (java.io Closeable)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

;; --- a map and its elements, without the library's own rules

(defn- of-descriptor
  "A raw map: its elements, with values as large as the kernel writes them, and the same map
  opened for programs."
  ^Closeable [^Fd fd key-size value-size]
  (let [number (.acquire fd)
        ^Closeable opened (try
                            (bpf/open {:fd number})
                            (finally (.release fd)))]
    (held {:elements (Elements. fd key-size value-size) :value-size value-size :open opened}
          #(do (.close opened) (.close fd)))))

(defn- create ^Closeable [type & {:keys [room] :as more}]
  (let [spec (merge {:type type :key-size 4 :value-size 4 :max-entries 4 :flags #{} :name nil}
                    (dissoc more :room))]
    (of-descriptor (map/create spec {:op :create}) (:key-size spec) (or room (:value-size spec)))))

(defn- put [{:keys [^Elements elements]} k v & [flags]]
  (said (.update elements k v (or flags 0))))

(defn- look
  "The value as bytes, or the name of an errno."
  [{:keys [^Elements elements value-size]} k]
  (let [value (byte-array value-size)
        answer (said (.lookup elements k value 0))]
    (if (= :ok answer) value answer)))

(defn- delete [{:keys [^Elements elements]} ^bytes k]
  (said (.delete elements k)))

(defn- u32 [n] (pack :u32 n))

(def ^:private noexist 1)
(def ^:private exist 2)

;; --- storage of cgroups

(defn- counts
  "The numbers in a value, one for each processor where there are several; or the name of an errno."
  [m k]
  (let [value (look m k)]
    (if (bytes? value) (unpack [:array :u64 (quot (alength ^bytes value) 8)] value) value)))

(kernel-test cgroup-storage-lifetime
  (testing "a cgroup storage exists from attaching until its cgroup or program is gone"
    (doseq [[type cpus] [[:cgroup-storage 1] [:percpu-cgroup-storage (count (call/possible-cpus))]]
            key-size [8 16]]
      (testing (str type " with keys of " key-size " bytes")
        (with-open [m (create type :key-size key-size :value-size 8 :max-entries 0 :room (* 8 cpus))
                    cgroup (objects/cgroup)]
          (let [egress (linux/constant "BPF_CGROUP_INET_EGRESS")
                k (if (= 8 key-size)
                    (pack :u64 (:id cgroup))
                    (pack [:struct [:id :u64] [:attach-type :u32] [:pad 4]]
                          {:id (:id cgroup) :attach-type egress}))
                zero (byte-array (* 8 cpus))]
            (with-open [program (programs/storage-counter (:open m))]
              (is (= :ENOENT (counts m k)))
              (is (= :ENOENT (put m k zero)) "user space cannot make one")
              (with-open [_ (programs/attach-to-cgroup program cgroup)]
                (is (= 0 (apply + (counts m k))))
                (programs/send-from cgroup)
                (is (= 1 (apply + (counts m k))))
                (is (= [:ok :ok] [(put m k zero) (put m k zero exist)]))
                (is (= 0 (apply + (counts m k))))
                (is (= :EINVAL (put m k zero noexist)))
                (is (= :EINVAL (delete m k)))
                (programs/send-from cgroup)
                (is (= 1 (apply + (counts m k)))))
              (programs/send-from cgroup)
              (is (= 1 (apply + (counts m k)))
                  "a detached program counts no more, and its storage stays"))
            (is (= :ok (put m k zero)))))))))

(kernel-test deleted-cgroup
  (testing "a storage is removed with its cgroup"
    (with-open [m (create :cgroup-storage :key-size 8 :value-size 8 :max-entries 0)
                program (programs/storage-counter (:open m))]
      (let [id (with-open [cgroup (objects/cgroup)]
                 (with-open [_ (programs/attach-to-cgroup program cgroup)]
                   (is (= [0] (counts m (pack :u64 (:id cgroup))))))
                 (:id cgroup))
            gone? #(= :ENOENT (counts m (pack :u64 id)))]
        ;; The kernel releases a removed cgroup when it comes to it.
        (is (fixture/eventually gone?))))))

;; --- stacks

(kernel-test stacks-of-the-kernel
  (testing "records stacks of the kernel"
    (with-open [m (create :stack-trace :value-size (* 8 16) :max-entries 64)]
      (let [ids (programs/record-stacks (:open m))
            addresses (fn [id]
                        (take-while (complement zero?)
                                    (unpack [:array :u64 16] (look m (u32 id)))))]
        (is (seq ids))
        (is (every? #(< -1 % 64) ids))
        (doseq [id ids]
          (is (< 1 (count (addresses id))))
          (is (every? #(< 0xffff000000000000 %) (addresses id)) "addresses in the kernel"))
        (is (= :ENOENT (look m (u32 (first (remove (set ids) (range 64)))))))
        (is (= :EINVAL (put m (u32 (first ids)) (byte-array 128))) "user space cannot make one")
        (is (= [:ok :ENOENT] [(delete m (u32 (first ids))) (delete m (u32 (first ids)))]))))))

(kernel-test stacks-of-the-process
  (testing "records stacks of the process"
    (with-open [m (create :stack-trace :value-size (* 8 16) :max-entries 64)]
      (let [ids (programs/record-stacks (:open m) :user)]
        (is (seq ids))
        (doseq [id ids]
          (is (< 0 (first (unpack [:array :u64 16] (look m (u32 id)))) 0x0001000000000000)))))))

(kernel-test stacks-with-build-ids
  (testing "stacks with build ids have offsets into files"
    (with-open [m (create :stack-trace :value-size (* 32 16) :max-entries 64 :flags
                          #{:stack-build-id})]
      (let [ids (programs/record-stacks (:open m) :user)
            entries (mapcat #(unpack [:array [:struct [:status :s32] [:build-id [:bytes 20]]
                                              [:offset :u64]]
                                      16]
                                     (look m (u32 %)))
                            ids)
            ;; Compiled code has none, nor has the vDSO, which calls the kernel for the time if the
            ;; kernel does not trust the clock of the processor.
            valid (filter #(= 1 (:status %)) entries)]
        (is (seq ids))
        (is (seq valid) "the C library has a build id")
        (is (every? #(pos? (:offset %)) valid))
        (is (every? #(some (complement zero?) (:build-id %)) valid))))))

;; --- tail calls

(kernel-test tail-call-target
  (testing "a tail call runs the program in the map"
    (doseq [type [:socket-filter :raw-tracepoint]]
      (testing type
        (with-open [m (create :prog-array)
                    target (programs/tail-target 42 type)
                    caller (programs/tail-caller (:open m) 2 type)
                    other (programs/tail-target 0 :xdp)]
          (let [run #(:return (prog/test-run caller
                                             (when (= :socket-filter type)
                                               {:data (byte-array 14)})))
                put-program (fn [k program flags]
                              (let [fd (programs/descriptor program)
                                    number (.acquire fd)]
                                (try
                                  (put m (u32 k) (u32 number) flags)
                                  (finally (.release fd)))))]
            (is (= 1 (run)))
            (is (= :ENOENT (look m (u32 2))))
            (is (= :EINVAL (put-program 1 other 0)) "of another type than the caller")
            (is (= :EINVAL (put-program 2 target noexist)))
            (is (= :ok (put-program 2 target 0)))
            (is (= 42 (run)))
            (is (bytes? (look m (u32 2))) "the program's id")
            (is (= [:ok :ENOENT] [(delete m (u32 2)) (delete m (u32 2))]))
            (is (= 1 (run)))))))))

;; --- struct ops

(defn- available? [congestion-control]
  (str/includes? (slurp "/proc/sys/net/ipv4/tcp_available_congestion_control") congestion-control))

(defn- header
  "How many hold a struct_ops value, and its state."
  [m]
  (mapv (unpack [:struct [:refcnt :s32] [:state :u32]] (look m (u32 0))) [:refcnt :state]))

(def ^:private states "`enum bpf_struct_ops_state`." {:init 0 :in-use 1 :to-be-freed 2 :ready 3})

(defn- struct-ops ^Closeable [type flags]
  (of-descriptor (programs/create-struct-ops type flags) 4 (:value-size type)))

(kernel-test struct-ops-registered
  (testing "writing a struct_ops value registers it and deleting unregisters it"
    (if-let [type (programs/struct-ops-type "tcp_congestion_ops")]
      (let [unique (str "bpfmap_" (mod (.pid (ProcessHandle/current)) 10000000))
            k (u32 0)]
        (with-open [m (struct-ops type #{})
                    cc (programs/congestion-control type unique)]
          (is (= [0 (states :init)] (header m)))
          (is (= [:ENOENT :ENOENT] [(look m (u32 1)) (delete m k)]))
          (is (= :EINVAL (put m k (byte-array (:value-size type)))) "a value without a name")
          (is (not (available? unique)))
          (is (= :ok (put m k (:value cc))))
          (try
            (is (available? unique))
            (is (= [1 (states :in-use)] (header m)))
            (is (not= 0
                      (unpack :u64
                              (byte-array (take 8
                                                (drop (:offset ((:members type) "ssthresh"))
                                                      (look m k))))))
                "the program's id where its descriptor was")
            (is (= :EBUSY (put m k (:value cc))))
            (finally ; a registered one outlives its map
              (is (= :ok (delete m k)))))
          (is (not (available? unique)))
          (is (= [0 (states :to-be-freed)] (header m)))
          (is (= :EBUSY (put m k (:value cc))) "never again")))
      (fixture/skip! "this kernel has no congestion control by programs"))))

(kernel-test ^{:needs [[:flag :link]]} struct-ops-for-links
  (testing "writing a struct_ops value for links makes it ready"
    (if-let [type (programs/struct-ops-type "tcp_congestion_ops")]
      (with-open [m (struct-ops type #{:link})
                  cc (programs/congestion-control type "bpfmap_linked")]
        (is (= :EOPNOTSUPP (delete m (u32 0))))
        (is (= :ok (put m (u32 0) (:value cc))))
        (is (= [0 (states :ready)] (header m)))
        (is (not (available? "bpfmap_linked")) "a link would register it")
        (is (= :EBUSY (put m (u32 0) (:value cc))))
        (is (= :EOPNOTSUPP (delete m (u32 0)))))
      (fixture/skip! "this kernel has no congestion control by programs"))))

(kernel-test struct-without-ids
  (testing "a struct that programs cannot implement has no type ids"
    (is (nil? (programs/struct-ops-type "task_struct")))
    (is (nil? (programs/struct-ops-type "no_such_struct")))))

;; --- lifetime

(kernel-test no-descriptor-left-open
  (testing "the helper programs leave no descriptor open"
    (let [type (programs/struct-ops-type "tcp_congestion_ops")
          once (fn []
                 (with-open [m (create :stack-trace :value-size 128 :max-entries 64)]
                   (is (seq (programs/record-stacks (:open m)))))
                 (with-open [m (create :cgroup-storage :key-size 8 :value-size 8 :max-entries 0)
                             cgroup (objects/cgroup)
                             program (programs/storage-counter (:open m))
                             attachment (programs/attach-to-cgroup program cgroup)]
                   (.close attachment))
                 (when type
                   (with-open [_ (struct-ops type #{})
                               _ (programs/congestion-control type "bpfmap_none")])))]
      (once)
      (let [before (fixture/settled-descriptors)]
        (once)
        (is (= before (fixture/open-descriptors)))))))
