(ns bpfmap.impl.kernel.object-test
  "Infos of kernels whose structs are shorter or longer than the library's, and kernels that have
  no infos at all."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test new-pin]]
            [bpfmap.impl.errno :as errno]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.open-object :as open-object]
            [bpfmap.linux :as linux]
            [bpfmap.prog :as prog]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (bpfmap.sys Abi Attr Bytes Info)
           (java.io Closeable)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(def ^:private longest
  "More bytes than any info of any kernel has; the kernel takes up to a page."
  4096)

(defn- raw-info
  "The bytes of an info of `size` bytes, after `fill` has set fields."
  [fd size fill]
  (call/info "Reading an info" fd size {:op :info}
             (fn [attr memory] (fill attr memory))
             (fn [memory _] (vec (Bytes/copyOut memory 0 (int size))))))

(def ^:private xlated-insns "Where struct bpf_prog_info has the address for its instructions." 32)

(def ^:private from-here
  "Byte from which no kernel has fields, and 4 bytes before the end of a longest info."
  4000)

;; The kernel looks at what a longer request holds behind its own struct just as an older one does
;; at fields that came later.
(kernel-test longer-info-retried
  (testing "asks again with a shorter info if the kernel rejects a longer one"
    (with-open [m ^Closeable (bpf/create {:name "short" :type :hash :key :u32 :value :u64
                                          :max-entries 3})
                p ^Closeable (prog/load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})]
      (doseq [x [m p]
              :let [fd (open-object/descriptor x)
                    plain (raw-info fd longest (constantly nil))]]
        (testing "one field"
          (is (= plain
                 (raw-info fd longest
                           (fn [_ ^MemorySegment memory] (Bytes/put32 memory from-here 7 false))))))
        (testing "several, as a pointer and its length"
          (is (= plain (raw-info fd longest (fn [^Attr attr ^MemorySegment memory]
                                              (Bytes/put64
                                               memory from-here (.address (.spare attr 8)) false)
                                              (Bytes/put32 memory (+ from-here 8) 8 false)
                                              (Bytes/put32 memory (+ from-here 40) 1 false))))))
        (testing "what the kernel has is kept"
          (is (= (take 232 plain) (raw-info fd 232 (constantly nil))))
          (is (some pos? plain))))
      (testing "a request that is refused for another reason stays refused"
        (is (= :EFAULT (:bpfmap/errno (error-of (raw-info (open-object/descriptor p) 228
                                                          (fn [_ ^MemorySegment memory]
                                                            (Bytes/put32
                                                             memory Info/PROG_XLATED_PROG_LEN 16
                                                             false)
                                                            (Bytes/put64
                                                             memory xlated-insns 1 false)))))))))))

(deftest kind-from-fdinfo
  (testing "recognizes the kind of a descriptor in old and new fdinfo"
    (is (= :map (procfs/kind {"map_type" "1"})
           (procfs/kind {"map_type" "3" "owner_prog_type" "1" "map_id" "7"})))
    (is (= :program (procfs/kind {"prog_type" "1" "prog_jited" "1"})))
    (is (= :link (procfs/kind {"link_type" "iter" "link_id" "3" "prog_id" "4" "map_id" "5"})))
    (is (nil? (procfs/kind {"pos" "0"})))))

;; ---------------------------------------------------------------- kernels before 4.13

(def ^:private before-4-13
  "What Linux 4.12 refuses: infos, BTF, and names of maps, which lie behind the fields that it has."
  [{:arguments {0 Abi/BPF_OBJ_GET_INFO_BY_FD} :errno 22}
   {:arguments {0 Abi/BPF_BTF_LOAD} :errno 22}
   {:arguments {0 Abi/BPF_MAP_GET_FD_BY_ID} :errno 22}
   {:arguments {0 Abi/BPF_MAP_GET_NEXT_ID} :errno 22}
   {:arguments {0 Abi/BPF_MAP_CREATE} :longer-than Abi/MAP_CREATE_MAP_NAME :errno 7}
   {:arguments {0 Abi/BPF_PROG_LOAD} :longer-than Abi/PROG_LOAD_PROG_NAME :errno 7}])

(def ^:private spec
  {:name "oldest" :type :hash :key :u32 :value :u64 :max-entries 3 :contents {1 10}})

(kernel-test kernel-without-map-info
  (testing "creates, uses and pins a map on a kernel without infos"
    (let [path (new-pin)]
      (linux/on-a-kernel-that-refuses
       before-4-13
       (fn []
         (testing "the filter is there"
           (is (= :EINVAL (:bpfmap/errno (error-of (bpf/open 1))))))
         (with-open [m ^Closeable (bpf/create spec)]
           (is (= "#<bpf-map :hash \"oldest\" :u32 -> :u64>" (str m)))
           (is (= {1 10} (into {} m)))
           (is (true? (bpf/insert! m 2 20)))
           (is (= {:type :hash :key-size 4 :value-size 8 :max-entries 3 :flags #{} :id nil :name ""}
                  (select-keys (bpf/info m)
                               [:type :key-size :value-size :max-entries :flags :id :name])))
           (is (str/starts-with? (:untyped (bpf/info m))
                                 "the kernel rejected the types as BTF"))
           (is (str/starts-with? (:message (error-of (bpf/put-all! m {3 30 4 40})))
                                 "put-all! on map (oldest) failed with E2BIG"))
           (bpf/pin! m path)
           (with-open [opened ^Closeable (bpf/open path {:key :u32 :value :u64})]
             (is (= {1 10 2 20 3 30} (into {} opened)))
             (is (= [:hash nil] ((juxt :type :id) (bpf/info opened)))))
           (is
            (str/includes? (:message (error-of (bpf/create (assoc spec :max-entries 0xffffffff))))
                           "failed with E2BIG"))
           (bpf/unpin! m))
         (with-open [p ^Closeable (prog/load {:type :socket-filter :name "oldest"
                                              :insns [[:mov64 :r0 3] [:exit]]})]
           (is (= 3 (:return (prog/test-run p {:data (byte-array 14)})))))))
      (testing "and only there"
        (with-open [m ^Closeable (bpf/create spec)]
          (is (int? (:id (bpf/info m)))))))))

(kernel-test info-kernel-release
  (testing "an operation that needs infos names the release that added them"
    (doseq [[command what] [[Abi/BPF_OBJ_GET_INFO_BY_FD :info] [Abi/BPF_MAP_GET_NEXT_ID :list]]]
      (is (contains? map-types/commands what))
      (is (= "it needs Linux 4.13, this is 4.12.1"
             (:bpfmap/hint (errno/explain 22 {:op what :release "4.12.1"}))) command))))
