(ns bpfmap.impl.kernel.link-test
  "What the kernel says of links. The library itself makes raw tracepoint links only; the others
  are made here by hand."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.link :as link]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.kernel.prog :as progs]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.links :as links]
            [bpfmap.prog :as prog]
            [bpfmap.since :as since]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (bpfmap.impl.prog.program Program)
           (bpfmap.sys Attr Bytes Fd)
           (java.io Closeable)
           (java.lang.foreign Arena)
           (java.nio.file Files LinkOption Path)))

(set! *warn-on-reflection* true)

(deftest numbers-match-c-header
  (testing "link and attach types match the kernel header"
    (doseq [[prefix names] {"BPF_LINK_TYPE_" link/types, "BPF_PROG_TYPE_" progs/types
                            "BPF_" prog/attach-types}
            :let [in-c #(str prefix (str/replace (str/upper-case (name %)) "-" "_"))
                  header (fixture/c-values ["linux/bpf.h"] (map in-c (keys names)))]]
      (if-not header
        (fixture/skip! "no C compiler to compare the numbers with")
        (do
          (is (< 5 (count header)) (str "the header knows some of " prefix))
          (doseq [[k number] names :when (contains? header (in-c k))]
            (is (= number (header (in-c k))) (str k))))))))

;; --- links made by hand

(def ^:private link-create 28)

(defn- owned ^Fd [outcome]
  (when (neg? (long outcome))
    (throw (ex-info (str "the kernel returned " outcome) {})))
  (Fd/own outcome))

(defn- link
  "Makes a link of a program with BPF_LINK_CREATE; `fields` are those of the attribute, offset to
  value."
  ^Fd [^Program program fields]
  (with-open [attr (Attr.)]
    (.fd attr 0 (.-fd program))
    (doseq [[offset value] fields] (.int32 attr offset value))
    (owned (.call attr link-create))))

(defn- directory ^Fd [path]
  (with-open [arena (Arena/ofConfined)]
    (owned (fixture/syscall "openat" -100
                            (.address (.allocateFrom arena (str path))) 0))))

(defn- inode [path]
  (Files/getAttribute (Path/of path (make-array String 0)) "unix:ino" (make-array LinkOption 0)))

(defn- function-id
  "The id of a function in the kernel's BTF."
  [function]
  (let [btf (host/kernel-btf)]
    (first (filter #(= :func (blob/kind btf %)) (blob/ids-named btf function)))))

(def ^:private nothing [[:mov64 :r0 0] [:exit]])

(defn- loaded ^Program [type & {:as more}]
  (prog/load (merge {:type type :insns nothing} more)))

(defn- checked-link
  "Asserts what the kernel says of a link, beside its id and its program's; and that the listing
  says the same."
  [^Fd fd program expected]
  (try
    (let [info (link/info fd {:op :info})]
      (is (= :link (call/kind fd)))
      (is (= (assoc expected :program-id (:id (prog/info program))) (dissoc info :id)))
      (is (= [info] (filter #(= (:id info) (:id %)) (host/links)))))
    (finally (call/close fd))))

(kernel-test raw-tracepoint-link
  (testing "the link of a raw tracepoint reports its name"
    (with-open [p (loaded :raw-tracepoint)
                a ^Closeable (prog/attach-raw-tracepoint p "sys_enter")]
      (is (= {:type :raw-tracepoint :tracepoint "sys_enter" :program-id (:id (prog/info p))}
             (dissoc (prog/info a) :id)))
      (is (= [(prog/info a)] (filter #(= (:id (prog/info a)) (:id %)) (host/links)))))))

(kernel-test iterator-link-target
  (testing "the link of an iterator reports its target"
    (with-open [p (loaded :tracing :expected-attach-type :trace-iter :attach-btf-id
                          (function-id "bpf_iter_bpf_map"))]
      (since/needing [[:kernel :attach-btf-of-programs]]
        (is (= (function-id "bpf_iter_bpf_map") (:attach-btf-id (prog/info p))))
        (is (pos-int? (:attach-btf-obj-id (prog/info p)))))
      (checked-link (link p {8 (prog/attach-types :trace-iter)}) p
                    {:type :iter :target "bpf_map"}))))

(kernel-test map-iterator-link
  (testing "an iterator over a map is listed as a link"
    (when (links/map-iterators?)
      (with-open [m (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1})
                  p (loaded :tracing :expected-attach-type :trace-iter :attach-btf-id
                            (function-id "bpf_iter_bpf_map_elem"))
                  attr (Attr.)]
        (.fd attr 0 (.-fd p))
        (.int32 attr 8 (prog/attach-types :trace-iter))
        (let [info (.buffer attr 16 16)] ; union bpf_iter_link_info
          (Bytes/put32 info 0 (.use attr (bpf-map/descriptor m)) false)
          (.int32 attr 24 16))
        (checked-link (owned (.call attr link-create)) p
                      {:type :iter :target "bpf_map_elem" :map-id (:id (bpf/info m))})))))

(kernel-test network-namespace-link
  (testing "the link of a network namespace reports its inode"
    (with-open [p (loaded :flow-dissector)
                ns (directory "/proc/self/ns/net")]
      (checked-link (link p {4 (.acquire ns) 8 (prog/attach-types :flow-dissector)}) p
                    {:type :netns :netns-ino (inode "/proc/self/ns/net")
                     :attach-type :flow-dissector})
      (.release ns))))

(kernel-test ^{:needs [[:kernel :tcx-links]]} network-device-link
  (testing "the link of a device reports its index"
    ;; TCX_NEXT: as if it were not there
    (with-open [p (prog/load {:type :sched-cls :insns [[:mov64 :r0 -1] [:exit]]})]
      (checked-link (link p {4 1 8 (prog/attach-types :tcx-ingress)}) p
                    {:type :tcx :ifindex 1 :attach-type :tcx-ingress}))))

(kernel-test cgroup-link-id
  (testing "the link of a cgroup reports its id"
    (if-let [path (:path (first (filter #(= "cgroup2" (:type %)) (procfs/mounts))))]
      ;; Allows every request
      (with-open [p (prog/load {:type :cgroup-sock :insns [[:mov64 :r0 1] [:exit]]})
                  cgroup (directory path)]
        (checked-link (link p {4 (.acquire cgroup) 8 (prog/attach-types :cgroup-inet-sock-create)})
                      p
                      {:type :cgroup :cgroup-id (inode path) :attach-type :cgroup-inet-sock-create})
        (.release cgroup))
      (fixture/skip! "no cgroup2 file system is mounted"))))
