(ns bpfmap.attach-examples-test
  "The scripts of examples/attach: each runs until it prints what was provoked."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.links :as links]
            [bpfmap.objects :as objects]
            [bpfmap.since :as since]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [is testing]])
  (:import (java.io File StringWriter)
           (java.net InetSocketAddress StandardProtocolFamily)
           (java.nio ByteBuffer)
           (java.nio.channels ServerSocketChannel SocketChannel)))

(set! *warn-on-reflection* true)

(def ^:private limit "Nanoseconds after which a script is stopped." 60000000000)

(defn- script-file ^File [name]
  (io/file "examples" "attach" (str name ".clj")))

(defn- load-script
  "Evaluates a script with arguments, in a namespace of its own."
  [name args out]
  (binding [*out* out
            *ns* (create-ns (gensym "example"))
            *command-line-args* (map str args)]
    (refer-clojure)
    (load-file (str (script-file name)))))

(defn- run-until
  "Runs a script until its output matches, while `provoke` is called; returns the output.

  If the script throws, returns the error as a map."
  [pattern name args provoke]
  (let [out (StringWriter.)
        end (promise)
        thread (fixture/thread
                 (fn []
                   (deliver end (try
                                  (load-script name args out)
                                  nil
                                  (catch Throwable e e)))))
        began (System/nanoTime)]
    (loop []
      (when-not (or (re-find pattern (str out))
                    (realized? end)
                    (< (long limit) (- (System/nanoTime) began)))
        (provoke)
        (Thread/sleep 20)
        (recur)))
    (.interrupt ^Thread thread)
    (fixture/join thread)
    (let [^Throwable e @end
          causes (take-while some? (iterate #(.getCause ^Throwable %) e))]
      (if (re-find pattern (str out))
        (str out)
        (assoc (or (some #(when (:bpfmap/error (ex-data %)) (ex-data %)) causes) {})
               :message (some ex-message (reverse causes)) :out (str out))))))

(defn- connect
  "Opens a TCP connection over loopback, sends a byte both ways, and closes it.

  The sockets are those of IPv4. A `java.net.Socket` is one of IPv6 also for 127.0.0.1, which the
  program that measures leaves out."
  []
  (with-open [server (ServerSocketChannel/open StandardProtocolFamily/INET)]
    (.bind server (InetSocketAddress. "127.0.0.1" 0))
    (with-open [client (SocketChannel/open StandardProtocolFamily/INET)]
      (.connect client (.getLocalAddress server))
      (with-open [accepted (.accept server)]
        (doseq [[^SocketChannel from ^SocketChannel to] [[client accepted] [accepted client]]]
          (.write from (ByteBuffer/wrap (byte-array 1)))
          (.read to (ByteBuffer/allocate 1)))))))

(defn- execute [] (fixture/run ["/bin/true"]))

;; --- here

(kernel-test maps-in-a-map
  (testing "prints the inner maps"
    (let [out (run-until #"outer key 4 .*\n" "map_in_map" [] (fn []))]
      (is (= (range 5)
             (map #(parse-long (second %))
                  (re-seq #"outer key (\d) inner map \d+ inner :array with \d+ entries, each 51966"
                          out)))))))

(kernel-test tracepoints
  (testing "counts pages, with a program in C"
    (is (string? (run-until #"(?m)^[1-9]\d* pages$" "tracepoint_in_c" []
                            #(byte-array 100000)))))
  (testing "prints events, with a program as data"
    (is (string? (run-until #"(?m)^event on CPU \d+: 123$" "tracepoint_in_go" []
                            #(fixture/run ["cat" "/dev/null"]))))))

(kernel-test returned-lines
  (testing "prints what a function returns"
    (is (string? (run-until #"getenv of process \d+ returned" "uretprobe" ["libc" "getenv"]
                            #(fixture/run ["env" "HOME=/here" "bash" "-c" "cd"]))))))

(kernel-test packets-of-a-cgroup
  (testing "counts packets of a cgroup"
    (with-open [cgroup (objects/cgroup)]
      (is (string? (run-until #"number of packets: [1-9]" "cgroup_skb" [(:path cgroup)]
                              #(fixture/run ["bash" "-c" (str "echo $$ >$0/cgroup.procs && "
                                                              "echo x >/dev/udp/127.0.0.1/9")
                                             (:path cgroup)])))))))

(kernel-test packets-of-an-interface
  (if-not (fixture/executable "ip")
    (fixture/skip! "ip is not installed")
    (links/in-network-namespace
     (fn []
       (testing "counts packets in both directions"
         (since/needing [[:target :tcx]]
           (is (string? (run-until #"packets: [1-9]\d* ingress, [1-9]\d* egress" "tcx" ["lo"]
                                   connect)))))
       (testing "counts packets by source"
         (is (string? (run-until #"(?m)^  127.0.0.1 => [1-9]" "xdp" ["lo"] connect))))
       (testing "an error names the interface"
         (is (= :not-found (:bpfmap/error (run-until #"packets" "tcx" ["nope0"] (fn []))))))))))

(kernel-test round-trip-times-of-a-cgroup
  (testing "prints round-trip times"
    (let [root (str/replace (:path (with-open [cgroup (objects/cgroup)] cgroup)) #"/[^/]*$" "")]
      (is (string? (run-until #"(?m)^127.0.0.1 +\d+ +-> 127.0.0.1 +\d+ +\d+\.\d+ ms$"
                              "tcprtt_sockops" [root] connect))))))

;; --- on kernels with kprobes, trampolines and sched_ext

(defn- works-or-unsupported
  "Checks that a script prints what was provoked, or that the error names what the kernel lacks."
  [pattern lacking name args provoke]
  (testing name
    (let [outcome (run-until pattern name args provoke)]
      (if (string? outcome)
        (is (re-find pattern outcome))
        (do
          (is (= :not-supported (:bpfmap/error outcome)))
          (is (str/includes? (str (:message outcome)) lacking) (str outcome)))))))

(kernel-test calls-by-kprobes
  (works-or-unsupported #"execve called [1-9]\d* times" "CONFIG_KPROBE" "kprobe" [] execute)
  (works-or-unsupported #"execve called [1-9]\d* times on CPU \d" "CONFIG_KPROBE" "kprobe_percpu"
                        [] execute)
  (works-or-unsupported #"pid \d+ comm .+\n" "CONFIG_KPROBE" "ringbuffer" [] execute))

(kernel-test calls-in-a-pinned-map
  (let [pin (io/file (fixture/new-pin))
        directory (str (.getParent pin))]
    (try
      (works-or-unsupported #"execve called [1-9]\d* times" "CONFIG_KPROBE" "kprobepin"
                            ["execve" 600 directory] execute)
      (testing "the map stays"
        (with-open [m (bpf/open (str directory "/ex_calls"))]
          (is (= "ex_calls" (:name (bpf/info m))))))
      (finally (io/delete-file (str directory "/ex_calls") true)))))

(kernel-test connections-by-trampolines
  (works-or-unsupported #"(?m)127.0.0.1 +\d+ +-> 127.0.0.1 +\d+ *$" "trampolines" "fentry" []
                        connect)
  (works-or-unsupported #"(?m)127.0.0.1 +\d+ +-> 127.0.0.1 +\d+ +\d+\.\d+ ms$" "trampolines"
                        "tcprtt" [] connect))

(kernel-test scheduler
  (works-or-unsupported #"the scheduler is minimal" "no struct sched_ext_ops" "sched_ext" []
                        (fn [])))
