(ns bpfmap.impl.map.misfits-test
  "Maps that store other objects, or are keyed by them: errors for values that do not fit."
  (:require [bpfmap.core :as bpf]
            [bpfmap.feature :as feature]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.objects :as objects]
            [bpfmap.programs :as programs]
            [bpfmap.since :as since]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io Closeable)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(def ^:private inner {:name "t_inner" :type :array :key :u32 :value :u64 :max-entries 1})

(def ^:private array-of-maps {:type :array-of-maps :max-entries 600 :inner-map inner})

(defn- inner-map
  "A map to be held, with a number in it."
  ^Closeable [n]
  (bpf/create (assoc inner :contents {0 n})))

(def ^:private this-pid (.pid (ProcessHandle/current)))

(def ^:private in-words "The kind of an error and its message." (juxt :bpfmap/error :message))

(def ^:private an-open-map "it must be an open map, {:map-id n} or {:fd n}")
(def ^:private a-program "it must be a loaded program, {:program-id n} or {:fd n}")

(def ^:private misfits
  "What is put where: the spec, the objects needed, the entry as a function of them, and what is
  said."
  (let [maps array-of-maps
        progs {:type :prog-array :max-entries 2}
        sockets {:type :sockmap :max-entries 2}
        storage (fn [type] {:type type :value :u32 :flags #{:no-prealloc}})
        object (fn [k] (fn [o] [k {:fd (:fd o)}]))
        keyed (fn [o] [{:fd (:fd o)} 1])]
    [;; not even a reference
     [maps [] (constantly [0 7]) :invalid-value
      ["[:value]: 7 is not a reference of this kind" an-open-map]]
     [maps [] (constantly [0 nil]) :invalid-value [an-open-map]]
     [maps [] (constantly [0 {:map-id -1}]) :invalid-value [an-open-map]]
     [maps [] (constantly [0 {:map-id 1 :fd 1}]) :invalid-value [an-open-map]]
     [maps [#(programs/tail-target 1)] (fn [p] [0 p]) :invalid-value
      ["#<bpf-program :socket-filter" an-open-map]]
     [progs [#(inner-map 1)] (fn [m] [0 m]) :invalid-value ["#<bpf-map" a-program]]
     [progs [] (constantly [0 {:fd -1}]) :invalid-value [a-program]]
     [sockets [] (constantly [0 {:socket-cookie 3}]) :invalid-value
      ["{:socket-cookie 3}" "it must be a socket: {:fd n}, a descriptor of this process"]]
     [{:type :xskmap :max-entries 2} [] (constantly [0 "x"]) :invalid-value
      ["it must be an AF_XDP socket: {:fd n}"]]
     [{:type :perf-event-array} [] (constantly [0 {}]) :invalid-value
      ["it must be a perf event: {:fd n}"]]
     [{:type :cgroup-array :max-entries 2} [] (constantly [0 :x]) :invalid-value
      ["it must be a cgroup: the path of its directory, or {:fd n}"]]
     [(storage :inode-storage) [] (constantly [7 1]) :invalid-value
      ["[:key]: 7" "it must be a file: its path, or {:fd n}"]]
     [(storage :task-storage) [] (constantly ["x" 1]) :invalid-value
      ["it must be a task: a process id, {:pid n}, {:tid n} for one thread"]]
     [(storage :task-storage) [] (constantly [{:pid 0} 1]) :invalid-value ["it must be a task"]]
     [(storage :sk-storage) [] (constantly [7 1]) :invalid-value ["it must be a socket"]]
     [{:type :devmap :value-size 8 :max-entries 1} [] (constantly [0 7]) :invalid-value
      ["is not a [:struct [:ifindex :u32]"]]
     [{:type :devmap :value-size 8 :max-entries 1} [] (constantly [0 {:ifindex 1 :program 7}])
      :invalid-value
      ["it must be a map with :program, a loaded program or {:program-id n}, which may be left out"]]
     ;; closed
     [maps [#(doto (inner-map 1) (bpf/close))] (fn [m] [0 m]) :closed
      ["The map given is closed: #<bpf-map" "open it again"]]
     [progs [#(doto (programs/tail-target 1) (.close))] (fn [p] [0 p]) :closed
      ["The program given is closed: #<bpf-program"]]
     [maps [] (constantly [0 {:fd 99999}]) :invalid-value
      ["EBADF" "the given descriptor is not open, or is of another kind"]]
     [sockets [] (constantly [0 {:fd 99999}]) :invalid-value
      ["the given descriptor is not open, or is of another kind; the socket must be"]]
     ;; of another kind
     [maps [objects/file] (object 0) :incompatible
      ["EINVAL" "the value must be a map that matches the :inner-map"]]
     [progs [objects/file] (object 0) :incompatible
      ["EINVAL" "the value must be a program of the same type"]]
     [sockets [objects/file] (object 0) :incompatible
      ["ENOTSOCK" "the socket must be of this map's kind"]]
     [{:type :xskmap :max-entries 2} [objects/tcp-listener] (object 0) :incompatible
      ["EOPNOTSUPP" "the socket must be an AF_XDP socket"]]
     [{:type :perf-event-array} [objects/file] (object 0) :invalid-value
      ["EBADF" "a perf event that programs can write to"]]
     [{:type :cgroup-array :max-entries 2} [objects/file] (object 0) :invalid-value
      ["EBADF" "a cgroup of a cgroup2 hierarchy"]]
     [{:type :cgroup-array :max-entries 2} [objects/file] (fn [f] [0 (:path f)]) :invalid-value
      ["a cgroup of a cgroup2 hierarchy"]]
     [{:type :cgroup-array :max-entries 2} [] (constantly [0 "/"]) :invalid-value
      ["a cgroup of a cgroup2 hierarchy"]]
     [(storage :task-storage) [objects/file] keyed :invalid-value
      ["EBADF" "not open, or is of another kind; the descriptor must be a pidfd"]]
     [(storage :cgrp-storage) [objects/file] keyed :invalid-value
      ["EBADF" "a cgroup of a cgroup2 hierarchy"]]
     [(storage :sk-storage) [objects/file] keyed :invalid-value
      ["ENOTSOCK" "of another kind; the socket must be"]]
     [(storage :inode-storage) [] (constantly [{:fd 99999} 1]) :invalid-value
      ["EBADF" "the descriptor must be of a file"]]
     ;; of the right kind, but not as the map wants it
     [sockets [objects/unbound-socket] (object 0) :incompatible
      ["EOPNOTSUPP" "TCP listening or established, UDP bound"]]
     [{:type :reuseport-sockarray :max-entries 2} [objects/tcp-listener] (object 0) :incompatible
      ["EINVAL" "or in a reuseport group"]]
     [{:type :devmap :max-entries 2} [] (constantly [0 0x7ffffff0]) :incompatible
      ["EINVAL" "the interface of that index"]]
     [{:type :devmap-hash :max-entries 2} [] (constantly [7 0x7ffffff0]) :incompatible
      ["EINVAL" "the interface of that index"]]
     [{:type :devmap :value-size 8 :max-entries 2} [#(programs/tail-target 1)]
      (fn [p] [0 {:ifindex 1 :program p}]) :incompatible
      ["EINVAL" "a program must be an XDP program made for this kind of map"]]
     [{:type :cpumap :value-size 8} [#(programs/tail-target 1)] (fn [p] [0 {:qsize 8 :program p}])
      :incompatible
      ["a program must be an XDP program made for CPU maps"]]
     [{:type :cpumap} [] (constantly [0 20000]) :invalid-value ["EOVERFLOW" "at most 16384 places"]]
     ;; not there
     [maps [] (constantly [0 {:map-id 0x7ffffff0}]) :not-found
      ["map 2147483632 does not exist (any more)"]]
     [progs [] (constantly [0 {:program-id 0x7ffffff0}]) :not-found
      ["program 2147483632 does not exist (any more)"]]
     [{:type :cgroup-array :max-entries 2} [] (constantly [0 "/no/such/cgroup"]) :not-found
      ["/no/such/cgroup does not exist"]]
     [sockets [] (constantly [0 {:pid this-pid :fd 99999}]) :not-found
      ["descriptor 99999 of process"]]
     [sockets [] (constantly [0 {:pid 0x7ffffff0 :fd 1}]) :not-found
      ["process 2147483632 does not exist (any more)"]]
     ;; beyond the end
     [maps [#(inner-map 1)] (fn [m] [600 m]) :out-of-range ["from 0 to 599"]]
     [progs [#(programs/tail-target 1)] (fn [p] [2 p]) :out-of-range ["from 0 to 1"]]
     [sockets [objects/tcp-listener] (object 2) :out-of-range ["from 0 to 1"]]
     [{:type :xskmap :max-entries 2} [objects/xdp-socket] (object 2) :out-of-range ["from 0 to 1"]]
     [{:type :reuseport-sockarray :max-entries 2} [#(objects/reuseport-socket :udp)] (object 2)
      :out-of-range
      ["from 0 to 1"]]
     [{:type :perf-event-array :max-entries 1} [#(objects/perf-event 0)] (object 1) :out-of-range
      ["from 0 to 0"]]
     [{:type :cgroup-array :max-entries 2} [objects/cgroup] (fn [c] [2 (:path c)]) :out-of-range
      ["from 0 to 1"]]
     [{:type :devmap :max-entries 2} [] (constantly [2 1]) :out-of-range ["from 0 to 1"]]
     [{:type :cpumap} [] (constantly [(count (feature/possible-cpus)) 8]) :out-of-range
      ["the index must be from 0"]]]))

(defn- with-misfit
  "Calls `(f m key value)` with a map and what does not fit into it."
  [[spec makes entry] f]
  (let [objects (mapv #(%) makes)]
    (try
      (with-open [m ^Closeable (bpf/create spec)]
        (let [[k v] (apply entry objects)]
          (f m k v)))
      (finally (run! (fn [^Closeable object] (.close object)) objects)))))

(kernel-test e10-misfits-name-expected
  (testing "rejects values that do not fit and names the accepted ones"
    (let [before (fixture/settled-descriptors)]
      (doseq [[spec _ _ kind words :as misfit] misfits :when (since/has? [:map-type (:type spec)])
              write [bpf/put! (fn [m k v] (bpf/put-all! m [[k v]]))]]
        (with-misfit misfit
          (fn [m k v]
            (testing [(:type spec) k v]
              (let [{:keys [message] :bpfmap/keys [error op map]} (error-of (write m k v))]
                (is (= kind error))
                (is (#{:put! :put-all!} op))
                (is (= (:type spec) (:type map)) "the error names the map that was asked")
                (doseq [text words]
                  (is (str/includes? message text))))))))
      (is (= before (fixture/open-descriptors))))))

(kernel-test e10-wrong-key-rejected
  (testing "reads and deletes also reject a wrong key"
    (let [keyed (filter (comp :no-prealloc :flags first) misfits)]
      (is (< 6 (count keyed)))
      (doseq [[spec _ _ kind words :as misfit] keyed :when (since/has? [:map-type (:type spec)])
              f [bpf/lookup bpf/delete! bpf/has-key? #(bpf/lookup-all %1 [%2])
                 #(bpf/delete-all! %1 [%2])]]
        (with-misfit misfit
          (fn [m k _]
            (testing [(:type spec) k]
              (let [[error message] (in-words (error-of (f m k)))]
                (is (= kind error))
                (doseq [text words]
                  (is (str/includes? message text)))))))))))

(kernel-test e9-program-types
  (testing "all programs of one map have the same type"
    (with-open [m ^Closeable (bpf/create {:type :prog-array :max-entries 2})
                one (programs/tail-target 1)
                other (programs/tail-target 1 :xdp)]
      (bpf/put! m 0 one)
      (let [[error message] (in-words (error-of (bpf/put! m 1 other)))]
        (is (= :incompatible error))
        (is (str/includes? message
                           "a program of the same type as the first program stored in the map"))))))

(kernel-test e10-reuseport-socket
  (testing "a socket is in a reuseport array at most once"
    (with-open [m ^Closeable (bpf/create {:type :reuseport-sockarray :max-entries 2})
                socket (objects/reuseport-socket :tcp)]
      (bpf/put! m 0 {:fd (:fd socket)})
      (let [[error message] (in-words (error-of (bpf/put! m 1 {:fd (:fd socket)})))]
        (is (= :busy error))
        (is (str/includes? message "the socket is already in this map or another of its kind")))
      (is (true? (bpf/delete! m 0)))
      (bpf/put! m 1 {:fd (:fd socket)})
      (is (= [1] (keys (into {} m)))))))

(kernel-test may-not-open-referenced
  (testing "the error names the object that the process may not open"
    (with-open [maps ^Closeable (bpf/create array-of-maps)
                a (inner-map 1)
                other (objects/others-process)]
      (doseq [[m k v
               words] [[maps 0 {:map-id (:id (bpf/info a))}
                        (str "is not allowed to open map " (:id (bpf/info a))
                             "; an id requires CAP_SYS_ADMIN")]
                       [maps 0 {:pid (:pid other) :fd 0}
                        (str "is not allowed to open descriptor 0 of process " (:pid other) ";")]]
              :let [[error message] (in-words (fixture/unprivileged #(error-of (bpf/put! m k v))))]]
        (is (= :permission error))
        (is (str/includes? message words)))
      (is (= {} (into {} maps))))))
