(ns bpfmap.links
  "What the tests of links share: programs that count, network namespaces, and what makes each kind
  of program run."
  (:require [bpfmap.btf :as btf]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture]
            [bpfmap.host :as host]
            [bpfmap.linux :as linux :refer [call constant]]
            [bpfmap.objects :as objects]
            [bpfmap.prog :as prog]
            [clojure.string :as str]
            [clojure.test :as t])
  (:import (bpfmap.impl.prog.program Program)
           (java.io Closeable)
           (java.net DatagramPacket DatagramSocket InetAddress)))

(set! *warn-on-reflection* true)

;; --- programs that count

(defn loaded
  "Loads a program of a type with instructions, and other options of `prog/load`."
  ^Program [type insns & {:as more}]
  (prog/load (merge {:type type :insns insns} more)))

(defn eventually?
  "Returns true if f returns true within the time of [[fixture/eventually]].

  Whoever lists the links of the host has each of them open for a moment, and a link ends when
  nobody has it open."
  [f]
  (boolean (fixture/eventually f)))

(defn counter
  "An array of one number."
  ^Closeable []
  (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1}))

(defn counting
  "Instructions that add 1 to a [[counter]] and return n."
  [m n]
  [[:ld-map-value :r2 m 0]
   [:mov64 :r1 1]
   [:atomic-add64 [:r2 0] :r1]
   [:mov64 :r0 n]
   [:exit]])

(defn storing-cookie
  "Instructions that store the cookie of their link in a [[counter]]."
  [m]
  [[:call :get-attach-cookie]
   [:ld-map-value :r2 m 0]
   [:stxdw [:r2 0] :r0]
   [:mov64 :r0 0]
   [:exit]])

(def ^:private kernel-btf (delay (host/kernel-btf)))

(defn btf-id
  "The id of a function or a typedef in the kernel's BTF; nil if it has none."
  [kind name]
  (btf/type-id @kernel-btf kind name))

(defn seq-writing
  "Instructions of an iterator that write bytes, given as a number, for each object.

  The context is meta and object; meta has the seq_file first. The last call has no object."
  [number]
  [[:ldxdw :r3 [:r1 8]]
   [:jeq :r3 0 :out]
   [:ldxdw :r1 [:r1 0]]
   [:ldxdw :r1 [:r1 0]]
   [:lddw :r4 number]
   [:stxdw [:r10 -8] :r4]
   [:mov64 :r2 :r10]
   [:add64 :r2 -8]
   [:mov64 :r3 8]
   [:call :seq-write]
   :out
   [:mov64 :r0 0]
   [:exit]])

(defn iterator
  "A loaded program of an iterator over objects of a kind, such as \"task\"."
  ^Closeable [kind insns]
  (prog/load {:type :tracing :expected-attach-type :trace-iter
              :attach-btf-id (btf-id :func (str "bpf_iter_" kind))
              :insns insns}))

(defn map-iterators?
  "Returns true if this kernel has iterators over the values of maps and sockets.

  A kernel that is locked down refuses their programs; the error is checked."
  []
  (try
    (.close (iterator "bpf_map_elem" [[:mov64 :r0 0] [:exit]]))
    true
    (catch clojure.lang.ExceptionInfo e
      (let [{:bpfmap/keys [error hint]} (ex-data e)]
        (t/is (= :not-supported error))
        (t/is (str/includes? hint "this kernel refuses all programs of this iterator"))
        (t/is (not (str/includes? hint "CAP_")))
        false))))

(defn text
  "Eight characters as a number, for [[seq-writing]]."
  [^String s]
  (reduce (fn [n c] (bit-or (bit-shift-left (long n) 8) (int c))) 0 (reverse s)))

;; --- networks

(defn in-network-namespace
  "Calls f on a thread of its own in a new network namespace, and returns what it returns.

  It has `lo`, and the two ends v0 and v1 of a veth pair, with the network 10.9.9.0/24 at v0. It
  goes with the thread."
  [f]
  (let [result (promise)
        ip (fixture/executable "ip")]
    (fixture/join
     (fixture/thread
       (fn []
         (deliver result
                  (try
                    (call "unshare" (constant "CLONE_NEWNET"))
                    (doseq [words [["link" "set" "lo" "up"]
                                   ["link" "add" "v0" "type" "veth" "peer" "name" "v1"]
                                   ["addr" "add" "10.9.9.1/24" "dev" "v0"]
                                   ["link" "set" "v0" "up"]
                                   ["link" "set" "v1" "up"]]
                            :let [{:keys [exit err]} (fixture/run (into [ip] words))]]
                      (when-not (zero? (long exit))
                        (throw (ex-info (str "ip " words " failed: " err) {}))))
                    [:value (f)]
                    (catch Throwable e [:thrown e]))))))
    (let [[kind x] @result]
      (if (= :thrown kind) (throw x) x))))

(defn send-udp
  "Sends a packet of UDP to an address, from the network namespace of the thread."
  [^String address]
  (with-open [socket (DatagramSocket.)]
    (.send socket (DatagramPacket. (byte-array 8) 8 (InetAddress/getByName address) 9))))

(defn send-raw
  "Sends bytes as a packet of IPv4 through the loopback interface, without a protocol in between.

  The kernel dissects such packets, to find their headers."
  []
  (let [fd (call "socket" (constant "AF_PACKET")
                 (bit-or (constant "SOCK_RAW") (constant "SOCK_CLOEXEC")) 0x0008)] ; ETH_P_IP
    (try
      ;; struct sockaddr_ll: family, protocol, index; 20 bytes
      (let [address (byte-array 20)
            packet (byte-array 60)]
        (aset address 0 (byte 17))
        (aset address 2 (byte 8))
        (aset address 4 (byte 1))
        (aset packet 12 (byte 8))
        (aset packet 14 (unchecked-byte 0x45))
        (call "bind" fd address 20)
        (call "write" fd packet 60))
      (finally (linux/close fd)))))

(defn run-in-cgroup
  "Runs shell commands in a cgroup."
  [cgroup commands]
  (fixture/run ["bash" "-c" (str "echo $$ >\"$0/cgroup.procs\" && " commands) (:path cgroup)]))

(defn provoke-in-cgroup
  "Makes programs of a cgroup run: of sockets, packets, sysctls, devices."
  [cgroup]
  (with-open [receiver (objects/udp-socket)
              listener (objects/tcp-listener)]
    (run-in-cgroup cgroup (str "echo x >/dev/udp/127.0.0.1/" (:port receiver)
                               "; echo x >/dev/tcp/127.0.0.1/" (:port listener)
                               "; cat /proc/sys/kernel/osrelease >/dev/null"))))

(defn spin
  "Keeps a processor busy for some milliseconds."
  [millis]
  (let [end (+ (System/nanoTime) (* 1000000 (long millis)))]
    (while (< (System/nanoTime) end)
      (Thread/onSpinWait))))

(defn run-child
  "Runs a program that ends at once: it allocates memory, and calls what a program calls."
  []
  (fixture/run ["/bin/true"]))

(defn add-netkit
  "Adds a pair of netkit devices, kit0 and nk0, with the network 10.9.8.0/24 at kit0.

  Returns true, or false if this kernel has no such devices. Older versions of ip do not know them:
  the message RTM_NEWLINK is made by hand."
  []
  (let [attribute (fn [type ^bytes bytes]
                    (let [n (+ 4 (alength bytes))
                          padded (byte-array (bit-and (+ n 3) -4))]
                      (System/arraycopy (linux/pack :u16 n) 0 padded 0 2)
                      (System/arraycopy (linux/pack :u16 type) 0 padded 2 2)
                      (System/arraycopy bytes 0 padded 4 (alength bytes))
                      padded))
        text #(.getBytes (str % "\u0000") "US-ASCII")
        ;; IFLA_IFNAME; IFLA_LINKINFO with IFLA_INFO_KIND
        body (byte-array (mapcat seq [(byte-array 16)
                                      (attribute 3 (text "kit0"))
                                      (attribute 18 (attribute 1 (text "netkit")))]))
        header (linux/pack [:struct [:length :u32] [:type :u16] [:flags :u16] [:seq :u32]
                            [:pid :u32]]
                           ;; RTM_NEWLINK; a request that creates
                           {:length (+ 16 (alength body)) :type 16 :flags 0x601 :seq 1 :pid 0})
        message (byte-array (concat header body))
        fd (call "socket" 16 (bit-or (constant "SOCK_RAW") (constant "SOCK_CLOEXEC")) 0)]
    (try
      (call "write" fd message (alength message))
      (finally (linux/close fd)))
    (let [ip (fixture/executable "ip")
          {:keys [exit]} (fixture/run [ip "addr" "add" "10.9.8.1/24" "dev" "kit0"])]
      (when (zero? (long exit))
        (doseq [device ["kit0" "nk0"]] ; the kernel names the peer
          (fixture/run [ip "link" "set" device "up"])))
      (zero? (long exit)))))
