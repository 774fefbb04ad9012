(ns bpfmap.objects-test
  "What the kernel answers when maps are given the objects that they hold or are keyed by."
  (:require [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.map-btf :as map-btf]
            [bpfmap.linux :as linux :refer [held pack said unpack]]
            [bpfmap.objects :as objects]
            [bpfmap.since :as since]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (bpfmap.sys Elements Fd)
           (java.io Closeable File)))

(set! *warn-on-reflection* true)

(deftest constants-match-headers
  (testing "constants match the headers"
    (let [ours linux/constants
          header (fixture/c-values ["sys/socket.h" "sys/syscall.h" "sys/mman.h" "fcntl.h"
                                    "linux/perf_event.h" "linux/bpf.h"
                                    "sys/prctl.h" "linux/seccomp.h" "linux/if_xdp.h" "linux/sched.h"]
                                   (keys ours))]
      (if header
        (is (= ours header))
        (fixture/skip! "no C compiler to compare the constants with")))))

;; --- a map and its elements, without the library's own rules

(def ^:private local-storage
  "What a local storage is created with."
  {:key :u32 :value :u64 :value-size 8 :max-entries 0 :flags #{:no-prealloc}})

(defn- create ^Closeable [type & {:as more}]
  (let [{:keys [key-size value-size] :as spec}
        (merge {:type type :key-size 4 :value-size 4 :max-entries 4 :flags #{} :name nil} more)
        ^Fd fd (if (:key spec)
                 (:fd (map-btf/create-with-btf spec {:op :create}))
                 (map/create spec {:op :create}))]
    (held {:elements (Elements. fd key-size value-size) :key-size key-size :value-size value-size}
          #(.close fd))))

(defn- number-type [size]
  ({4 :u32 8 :u64} size))

(defn- put [{:keys [^Elements elements key-size value-size]} k v & [flags]]
  (said (.update elements (pack (number-type key-size) k) (pack (number-type value-size) v)
                 (or flags 0))))

(defn- look
  "The value as a number, or the name of an errno."
  [{:keys [^Elements elements key-size value-size]} k]
  (let [value (byte-array value-size)
        answer (said (.lookup elements (pack (number-type key-size) k) value 0))]
    (if (= :ok answer) (unpack (number-type value-size) value) answer)))

(defn- delete [{:keys [^Elements elements key-size]} k]
  (said (.delete elements (pack (number-type key-size) k))))

(def ^:private noexist 1)

;; --- sockets

(kernel-test accepted-socket-kinds
  (testing "a sockmap and a sockhash accept connected, listening and UDP sockets"
    (doseq [type [:sockmap :sockhash]
            make (cond-> [objects/tcp-connection objects/tcp-listener objects/udp-socket]
                   (since/has? [:kernel :sockmap-of-unix-sockets]) (conj objects/unix-pair))]
      (testing (str type " " make)
        (with-open [m (create type :value-size 8)
                    socket ^Closeable (make)]
          (is (= :ENOENT (look m 1)))
          (is (= :ok (put m 1 (:fd socket))))
          (is (= :EEXIST (put m 1 (:fd socket) noexist)))
          (is (pos? (long (look m 1))) "the value that is read is not the descriptor but the socket's cookie")
          (is (= :ok (delete m 1)))
          (is (= :ENOENT (look m 1)))
          (is (= ({:sockmap :EINVAL :sockhash :ENOENT} type) (delete m 1))))))))

(kernel-test cookie-of-each-end
  (testing "both ends of a connection have their own cookie"
    (with-open [m (create :sockmap :value-size 8)
                c ^Closeable (objects/tcp-connection)]
      (is (= [:ok :ok] [(put m 0 (:fd c)) (put m 1 (:server c))]))
      (is (not= (look m 0) (look m 1))))))

(kernel-test rejected-sockets
  (testing "a sockmap rejects other sockets and files"
    (with-open [m (create :sockmap :value-size 8)
                unbound (objects/unbound-socket)
                file (objects/file)]
      (is (= :EOPNOTSUPP (put m 0 (:fd unbound))))
      (is (= :ENOTSOCK (put m 0 (:fd file))))
      (is (= :EBADF (put m 0 100000))))))

(kernel-test four-byte-socket-values
  (testing "a socket map with 4-byte values cannot be read"
    (doseq [[type make] {:sockmap objects/tcp-connection
                         :sockhash objects/tcp-connection
                         :reuseport-sockarray #(objects/reuseport-socket :tcp)}]
      (with-open [m (create type)
                  socket ^Closeable (make)]
        (is (= :ok (put m 0 (:fd socket))) type)
        (is (= :ENOSPC (look m 0)) type)))))

(kernel-test closed-connection
  (testing "a closed connection is removed from its sockmap"
    (with-open [m (create :sockmap :value-size 8)]
      (with-open [c (objects/tcp-connection)]
        (is (= :ok (put m 0 (:fd c)))))
      (is (= :ENOENT (look m 0))))))

(kernel-test reuseport-sockarray
  (testing "a reuseport array accepts each socket once and only with the option"
    (doseq [protocol [:tcp :udp]]
      (testing protocol
        (with-open [m (create :reuseport-sockarray :value-size 8)
                    socket (objects/reuseport-socket protocol)]
          (is (= :ok (put m 0 (:fd socket))))
          (is (= :EBUSY (put m 1 (:fd socket))))
          (is (= :EEXIST (put m 0 (:fd socket) noexist)))
          (is (pos? (long (look m 0))))
          (is (= :ok (delete m 0)))
          (is (= :ENOENT (delete m 0)))
          (is (= :ok (put m 1 (:fd socket))) "taken out of one place, it goes into another"))))
    (with-open [m (create :reuseport-sockarray :value-size 8)
                listener (objects/tcp-listener)]
      (is (= :EINVAL (put m 0 (:fd listener))) "without SO_REUSEPORT"))))

(kernel-test xskmap-accepts-af-xdp
  (testing "an xskmap accepts AF_XDP sockets and cannot be read"
    (with-open [m (create :xskmap)
                one (objects/xdp-socket)
                other (objects/xdp-socket)
                listener (objects/tcp-listener)]
      (is (= :ok (put m 0 (:fd one))))
      (is (= :ok (put m 0 (:fd one) noexist)) "the socket that is there already counts as put")
      (is (= :EEXIST (put m 0 (:fd other) noexist)))
      (is (= :EOPNOTSUPP (put m 1 (:fd listener))))
      (is (= :EOPNOTSUPP (look m 0)))
      (is (= [:ok :ok] [(delete m 0) (delete m 0)]) "deleting does not report whether the entry existed"))))

;; --- perf events, devices, processors

(kernel-test perf-event-array
  (testing "a perf event array accepts perf events and cannot be read"
    (with-open [m (create :perf-event-array)
                event (objects/perf-event 0)
                file (objects/file)]
      (is (= :ok (put m 0 (:fd event))))
      (is (= :EINVAL (put m 0 (:fd event) noexist)))
      (is (= :EBADF (put m 1 (:fd file))))
      (is (= :ENOTSUPP (look m 0)))
      (is (= [:ok :ENOENT] [(delete m 0) (delete m 0)])))))

(kernel-test devmap-interface-indices
  (testing "a devmap holds interface indices"
    (let [lo (.getIndex (java.net.NetworkInterface/getByName "lo"))]
      (doseq [type [:devmap :devmap-hash]]
        (testing type
          (with-open [m (create type)]
            (is (= :EINVAL (put m 1 0x7ffffff0)) "no interface has the index")
            (is (= :ok (put m 1 lo)))
            (is (= :EEXIST (put m 1 lo noexist)))
            (is (= lo (look m 1)))
            (is (= [:ok ({:devmap :ok :devmap-hash :ENOENT} type)] [(delete m 1) (delete m 1)]))
            (is (= :ENOENT (look m 1)))))))))

(kernel-test cpumap-queue-sizes
  (testing "a cpumap holds queue sizes by CPU"
    (with-open [m (create :cpumap)]
      (is (= :ok (put m 0 192)))
      (is (= :EEXIST (put m 0 192 noexist)))
      (is (= 192 (look m 0)))
      (is (= [:ok :ok] [(delete m 0) (delete m 0)]))
      (is (= :ENOENT (look m 0))))))

;; --- cgroups

(kernel-test cgroup-array-of-cgroups
  (testing "a cgroup array accepts cgroups and cannot be read"
    (with-open [m (create :cgroup-array)
                cgroup (objects/cgroup)
                file (objects/file)]
      (is (= :ok (put m 0 (:fd cgroup))))
      (is (= :EBADF (put m 1 (:fd file))))
      (is (= :ENOTSUPP (look m 0)))
      (is (= [:ok :ENOENT] [(delete m 0) (delete m 0)])))))

(kernel-test closed-cgroup-is-gone
  (testing "closing a cgroup removes it"
    (let [cgroup (objects/cgroup)]
      (is (.isDirectory (io/file (:path cgroup))))
      (is (pos? (long (:id cgroup))))
      (is (= "" (slurp (io/file (:path cgroup) "cgroup.procs"))))
      (.close cgroup)
      (.close cgroup)
      (is (not (.exists (io/file (:path cgroup))))))))

;; --- local storages

(kernel-test storage-by-descriptor
  (testing "a local storage has descriptors as keys"
    (doseq [[type make refused] [[:sk-storage objects/tcp-connection :ENOTSOCK]
                                 [:sk-storage objects/udp-socket :ENOTSOCK]
                                 [:task-storage objects/this-process :EBADF]
                                 [:task-storage objects/child-process :EBADF]
                                 [:inode-storage objects/file nil]
                                 [:cgrp-storage objects/cgroup :EBADF]]
            :when (since/has? [:map-type type])]
      (testing (str type " " make)
        (with-open [m (create type local-storage)
                    object ^Closeable (make)
                    file (objects/file)]
          (is (= :ENOENT (look m (:fd object))))
          (is (= :ok (put m (:fd object) 7)))
          (is (= :EEXIST (put m (:fd object) 8 noexist)))
          (is (= 7 (look m (:fd object))))
          (when refused
            (is (= [refused refused refused]
                   [(put m (:fd file) 7) (look m (:fd file)) (delete m (:fd file))])))
          (is (= :EBADF (look m 100000)))
          (is (= [:ok :ENOENT] [(delete m (:fd object)) (delete m (:fd object))]))
          (is (= :ENOENT (look m (:fd object)))))))))

(kernel-test ^{:needs [[:map-type :task-storage]]} storage-of-object
  (testing "a storage belongs to the object and not to the descriptor"
    (with-open [m (create :task-storage local-storage)
                one (objects/this-process)
                other (objects/this-process)
                child (objects/child-process)]
      (is (not= (:fd one) (:fd other)))
      (is (= :ok (put m (:fd one) 7)))
      (is (= [7 7 :ENOENT] (map #(look m (:fd %)) [one other child]))))))

;; --- tokens

(defmacro ^:private in-directory
  "Runs body with a new directory to mount on; skips the test where no token can be had."
  [[dir] & body]
  `(cond
     (not (map-types/at-least? (call/kernel-release)
                               "6.9")) (fixture/skip! "BPF tokens are of Linux 6.9")
     (nil? (objects/run-delegated "/" ["true"])) (fixture/skip! "no C compiler")
     :else (let [~dir (fixture/temporary-directory)]
             (try ~@body (finally (.delete ~dir))))))

(kernel-test token-replaces-capability
  (testing "a token replaces the capability that a user namespace lacks"
    (in-directory [dir]
      (is (= {:uid 0 :without -1 :token 0 :with 0} (objects/try-token dir)) "-1 is EPERM"))))

(kernel-test delegated-command
  (testing "a delegated command runs alone with its file system"
    (in-directory [dir]
      (let [script (str "stat -f -c %T " dir "; echo $1 >&2; exit 7")
            {:keys [exit out err]} (objects/run-delegated dir ["sh" "-c" script "sh" "to stderr"])]
        (is (= [7 "bpf_fs\n" "to stderr\n"] [exit out err])))
      (is (empty? (.list ^File dir)) "outside it is an empty directory")
      (let [{:keys [exit err]} (objects/run-delegated dir ["/no/such/command"])]
        (is (= [125 "delegated: /no/such/command: No such file or directory\n"] [exit err])))
      (let [{:keys [exit err]} (objects/run-delegated (str dir "/none") ["true"])]
        (is (= 125 exit))
        (is (str/includes? err "No such file or directory"))))))

(kernel-test delegated-library
  (testing "the library runs there and lacks the capability"
    (in-directory [dir]
      (let [{:keys [exit out err]}
            (objects/run-delegated dir (fixture/java
                                        "-e"
                                        ;; Some maps may be made by anybody, where a sysctl allows
                                        ;; it; BTF may not.
                                        (str "(require '[bpfmap.host :as host])"
                                             "(try (host/load-btf [:u32])"
                                             " (catch Exception e (prn (:bpfmap/error (ex-data "
                                             "e)))))")))]
        (is (= [0 ":permission\n" ""] [exit out err]))))))

;; --- lifetime

(def ^:private makers
  [objects/tcp-listener objects/udp-socket objects/unbound-socket objects/tcp-connection
   objects/unix-pair
   #(objects/reuseport-socket :tcp) #(objects/reuseport-socket :udp) objects/xdp-socket
   #(objects/perf-event 0)
   objects/file objects/this-process objects/child-process objects/cgroup])

(kernel-test objects-closed-once
  (testing "closing an object twice closes it once"
    (let [once (fn [make]
                 (let [object ^Closeable (make)]
                   (is (str/includes? (pr-str object) ":fd"))
                   (.close object)
                   (.close object)))]
      (run! once makers) ; whatever the JVM opens at the first time
      (let [before (fixture/settled-descriptors)]
        (run! once makers)
        (is (= before (fixture/open-descriptors)))))))
