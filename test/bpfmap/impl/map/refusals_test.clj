(ns bpfmap.impl.map.refusals-test
  "Calls that the running kernel refuses, and whether the errors about them are true: as root, and
  as a user without privileges."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.prog :as prog]
            [bpfmap.since :as since]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [are is testing]])
  (:import (java.io Closeable)
           (java.nio.file Files)
           (java.nio.file.attribute PosixFilePermissions)))

(set! *warn-on-reflection* true)

(defn- hash-map-there ^Closeable []
  (bpf/create {:name "t_refused" :type :hash :key :u32 :value :u64 :max-entries 4}))

(defn- open-to-all [path]
  (Files/setPosixFilePermissions (.toPath (io/file path))
                                 (PosixFilePermissions/fromString "rw-rw-rw-")))

(kernel-test not-a-descriptor
  (testing "a number that is not a descriptor throws :not-found"
    (are [call] (let [{:keys [message] :bpfmap/keys [error errno]} (error-of (call))]
                  (and (= [:not-found :EBADF] [error errno])
                       (str/includes? message "descriptor 100000 in this process does not exist")))
      #(bpf/open {:fd 100000})
      #(prog/open {:fd 100000}))))

(kernel-test ids-of-32-bits
  (testing "handles ids of 32 bits"
    (doseq [id [0x7fffffff 0x80000000 0xfffffffe 0xffffffff]]
      (is (= [:not-found :ENOENT] ((juxt :bpfmap/error :bpfmap/errno) (error-of (bpf/open id))))
          (str id))
      (is (= :not-found (:bpfmap/error (error-of (bpf/open {:map-id id})))))
      (is (= :not-found (:bpfmap/error (error-of (prog/open id)))))
      (is (= :not-found (:bpfmap/error (error-of (prog/open {:program-id id})))))
      (is (= :not-found (:bpfmap/error (error-of (host/btf-by-id id)))))
      (is (= [] (host/holders id) (host/holders {:program-id id}) (host/programs-using id)))
      (with-open [outer ^Closeable (bpf/create {:type :hash-of-maps :key :u32 :max-entries 2
                                                :inner-map {:type :array :value :u32
                                                            :max-entries 1}})]
        (is (= :not-found (:bpfmap/error (error-of (bpf/put! outer 1 {:map-id id})))))))
    (doseq [wrong [-1 0x100000000]]
      (is (= :invalid-value (:bpfmap/error (error-of (bpf/open wrong)))))
      (is (= :invalid-value (:bpfmap/error (error-of (prog/open wrong)))))
      (is (= :invalid-value (:bpfmap/error (error-of (host/holders wrong))))))
    (is (str/includes? (:message (error-of (bpf/open {:fd 0x80000000})))
                       "A descriptor must be an integer from 0 to 2147483647, got "))))

(kernel-test directory-instead-of-pin
  (testing "the error for a directory names it as one"
    (let [{:keys [message] :bpfmap/keys [error]} (error-of (bpf/open (fixture/bpffs)))]
      (is (= :not-a-map error))
      (is (= (str "Opening " (fixture/bpffs) " failed with EACCES: " (fixture/bpffs)
                  " is a directory") message)))
    (is (= :not-a-program (:bpfmap/error (error-of (prog/open (fixture/bpffs))))))))

(kernel-test unprivileged-user
  (testing "the errors without privileges name the missing capabilities"
    (let [path (fixture/new-pin)]
      (with-open [m (hash-map-there)]
        (bpf/pin! m path)
        (let [{:keys [id btf-id]} (bpf/info m)
              refused (fn [f] (fixture/unprivileged #(error-of (f))))]
          (testing "by id it takes a capability, and no file mode"
            (are [f words] (let [{:keys [message] :bpfmap/keys [error]} (refused f)]
                             (and (= :permission error)
                                  (str/includes? message words)
                                  (not (str/includes? message "file mode"))))
              #(bpf/open id) "open needs CAP_SYS_ADMIN"
              #(bpf/open {:name "t_refused"}) "CAP_SYS_ADMIN"
              #(host/maps) "list needs CAP_SYS_ADMIN"
              #(prog/open 1) "CAP_SYS_ADMIN"
              #(host/btf-by-id btf-id) "btf-by-id needs CAP_SYS_ADMIN"
              #(bpf/create {:type :hash :key :u32 :value :u32 :max-entries 1})
              "create needs CAP_BPF"
              #(host/load-btf [:u32]) "load-btf needs CAP_BPF"
              #(prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})
              "loading a program needs CAP_BPF"))
          (since/needing [[:kernel :bpf-of-the-unprivileged]]
            (testing "a pin that others may not open"
              (is (str/includes? (:message (refused #(bpf/open path)))
                                 (str "the file mode of " path))))
            (testing "one that they may open, but not remove or move, as the directory is sticky"
              (open-to-all path)
              (let [[untyped unpin move]
                    (fixture/unprivileged
                     #(with-open [again ^Closeable (bpf/open path)]
                        [(:untyped (bpf/info again))
                         (error-of (bpf/unpin! again))
                         (error-of (bpf/move-pin! again (str path "_moved")))]))
                    words "this user cannot write to the directory of "]
                (is (str/includes? untyped "btf-by-id needs CAP_SYS_ADMIN")
                    "its types take a capability of their own")
                (is (= [:permission :permission] (map :bpfmap/error [unpin move])))
                (is (str/starts-with? (:message unpin)
                                      (str "Removing the pin " path " failed with E")))
                (is (str/includes? (:message unpin) (str words path)))
                (is (str/starts-with? (:message move)
                                      (str "Moving " path " to " path "_moved failed with E")))
                (is (str/includes? (:message move) (str words path))))))
          (is (.exists (io/file path)))
          (bpf/unpin! m))))))

;; --- specs of existing maps

(def ^:private specs
  "A spec of each type that this kernel creates without another object."
  [{:type :hash :key :u32 :value :u64 :max-entries 4}
   {:type :hash :key :u32 :value :u64 :max-entries 4 :numa-node 0}
   {:type :hash :key :u8 :value :u8 :max-entries 4 :flags #{:no-prealloc :rdonly-prog}}
   {:type :array :value :u64 :max-entries 4 :flags #{:mmapable}}
   {:type :array :value :u64 :max-entries 4 :numa-node 0 :flags #{:inner-map}}
   {:type :percpu-hash :key :u32 :value :u64 :max-entries 4}
   {:type :percpu-array :value :u64 :max-entries 4}
   {:type :lru-hash :key :u32 :value :u64 :max-entries 5 :flags #{:no-common-lru}}
   {:type :lru-hash :key :u32 :value :u64 :max-entries 4 :numa-node 0}
   {:type :lru-percpu-hash :key :u32 :value :u64 :max-entries 4}
   {:type :lpm-trie :key [:prefix :ipv4] :value :u32 :max-entries 4 :flags #{:no-prealloc}}
   {:type :prog-array :max-entries 4} {:type :perf-event-array :max-entries 1}
   {:type :cgroup-array :max-entries 4}
   {:type :stack-trace :max-entries 4}
   {:type :array-of-maps :max-entries 4 :inner-map {:type :array :value :u32 :max-entries 2}}
   {:type :hash-of-maps :key :u32 :max-entries 4 :numa-node 0
    :inner-map {:type :hash :key :u8 :value :u8 :max-entries 2}}
   {:type :devmap :max-entries 4} {:type :devmap-hash :max-entries 4} {:type :cpumap}
   {:type :xskmap :max-entries 4}
   {:type :sockmap :max-entries 4} {:type :sockhash :key :u32 :max-entries 4}
   {:type :reuseport-sockarray :max-entries 4}
   {:type :cgroup-storage :value :u32} {:type :percpu-cgroup-storage :value :u32}
   {:type :queue :value :u32 :max-entries 4} {:type :stack :value :u32 :max-entries 4}
   {:type :sk-storage :value :u32 :flags #{:no-prealloc}}
   {:type :task-storage :value :u32 :flags #{:no-prealloc}}
   {:type :inode-storage :value :u32 :flags #{:no-prealloc}}
   {:type :cgrp-storage :value :u32 :flags #{:no-prealloc}}
   {:type :ringbuf :max-entries 4096} {:type :user-ringbuf :max-entries 4096}
   {:type :bloom-filter :value :u32 :max-entries 4 :map-extra 3}
   {:type :arena :max-entries 2 :flags #{:mmapable}}])

(kernel-test spec-fits-map
  (testing "the spec of a map fits it and creates another"
    (doseq [spec specs]
      (testing spec
        (try
          (with-open [m ^Closeable (bpf/create spec)
                      opened ^Closeable (bpf/open (:id (bpf/info m)))]
            (doseq [one [m opened], other [m opened]]
              (is (nil? (bpf/spec-diff other (bpf/spec one))))
              (is (bpf/compatible? (bpf/info other) (bpf/spec one))))
            (when-let [inner (:inner-map spec)]
              (is (nil? (:inner-map (bpf/spec opened))) "the spec of its inner maps is unknown if it is empty")
              (is (= :invalid-spec (:bpfmap/error (error-of (bpf/create (bpf/spec opened))))))
              (with-open [held ^Closeable (bpf/create inner)]
                (bpf/put! m 1 held))
              (is (= (select-keys inner [:type :max-entries])
                     (select-keys (:inner-map (bpf/spec opened)) [:type :max-entries]))))
            (doseq [from [m opened]]
              (with-open [again ^Closeable (bpf/create (bpf/spec from))]
                (is (= (dissoc (bpf/info m) :id :btf-id :memlock :key :value)
                       (cond-> (dissoc (bpf/info again) :id :btf-id :memlock :key :value)
                         ;; The node is not told
                         (:numa-node spec) (assoc :flags (:flags (bpf/info m)))))
                    "equal except for properties of each map, and types if the kernel stores none")
                (is (bpf/compatible? m (bpf/spec again))))))
          (catch clojure.lang.ExceptionInfo e
            (when-not (= [:not-supported :create] ((juxt :bpfmap/error :bpfmap/op) (ex-data e)))
              (throw e))))))))
