(ns ^:no-doc bpfmap.impl.kernel.netlink
  "Reads the XDP programs and the filters of tc of network devices, from rtnetlink.

  Sources: linux/rtnetlink.h, linux/if_link.h, linux/pkt_cls.h, linux/pkt_sched.h. Everything is
  about the network namespace of the calling thread, and in the byte order of the machine."
  (:require [bpfmap.impl.kernel.call :as call]
            [clojure.string :as str])
  (:import (bpfmap.sys ErrnoException Netlink)
           (java.nio ByteBuffer ByteOrder)
           (java.nio.charset StandardCharsets)))

(set! *warn-on-reflection* true)

;; --- messages

(def ^:private ^:const header-size "Bytes of struct nlmsghdr." 16)
(def ^:private ^:const dump-flags "NLM_F_REQUEST and NLM_F_DUMP." 0x301)

(defn- request
  "Returns a request for a list: a header, and bytes with numbers at offsets."
  ^bytes [type size numbers]
  (let [buffer (.order (ByteBuffer/allocate (+ header-size (long size))) (ByteOrder/nativeOrder))]
    (.putInt buffer 0 (.capacity buffer))
    (.putShort buffer 4 (short type))
    (.putShort buffer 6 (short dump-flags))
    (doseq [[at n] numbers]
      (.putInt buffer (int (+ header-size (long at))) (unchecked-int n)))
    (.array buffer)))

(defn- slice ^ByteBuffer [^ByteBuffer buffer from size]
  (.order (.slice buffer (int from) (int size)) (ByteOrder/nativeOrder)))

(defn- aligned ^long [n]
  (bit-and (+ (long n) 3) -4))

(defn- u32 [^ByteBuffer buffer at]
  (bit-and 0xffffffff (long (.getInt buffer (int at)))))

(defn- u16 ^long [^ByteBuffer buffer at]
  (bit-and 0xffff (long (.getShort buffer (int at)))))

(defn- messages
  "Returns the contents of the messages of an answer, without their headers."
  [^bytes answer]
  (let [buffer (.order (ByteBuffer/wrap answer) (ByteOrder/nativeOrder))
        n (.capacity buffer)]
    (loop [at 0 found []]
      (if (< n (+ at header-size))
        found
        (let [length (long (u32 buffer at))]
          (if (or (< length header-size) (< n (+ at length)))
            found
            (recur (+ at (aligned length))
                   (conj found (slice buffer (+ at header-size) (- length header-size))))))))))

(defn- attributes
  "Returns the attributes behind `from` bytes, by number.

  The last one of a number counts."
  [^ByteBuffer buffer from]
  (let [n (.capacity buffer)]
    (loop [at (long from) found {}]
      (if (< n (+ at 4))
        found
        (let [length (u16 buffer at)
              type (bit-and 0x3fff (u16 buffer (+ at 2)))] ; without NLA_F_NESTED
          (if (or (< length 4) (< n (+ at length)))
            found
            (recur (+ at (aligned length))
                   (assoc found type (slice buffer (+ at 4) (- length 4))))))))))

(defn- number-in [^ByteBuffer buffer]
  (when (and buffer (<= 4 (.capacity buffer)))
    (u32 buffer 0)))

(defn- text-in [^ByteBuffer buffer]
  (when buffer
    (let [bytes (byte-array (.capacity buffer))]
      (.get buffer 0 bytes)
      (first (str/split (String. bytes StandardCharsets/UTF_8) #"\u0000")))))

(defn- dump
  "Returns the contents of the messages that the kernel sends for a request."
  [what request ctx]
  (try
    (messages (Netlink/dump request))
    (catch ErrnoException e
      (throw (call/failure (str "Listing " what) (.-outcome e) ctx)))
    (catch RuntimeException e
      (throw (call/in-context e ctx)))))

;; --- devices

(def ^:private ^:const get-link 18)
(def ^:private ^:const link-size "Bytes of struct ifinfomsg." 16)
(def ^:private ^:const xdp 43)

(def ^:private modes
  "Modes of XDP, with the attribute that has the id of the program."
  {:native 5 :generic 6 :offload 7})

(defn devices
  "Returns the network devices: `{:ifindex :name :xdp}`.

  `:xdp` has the programs as `{:mode :program-id}`.

      (devices {:op :list}) ;=> [{:ifindex 1 :name \"lo\" :xdp []}]"
  [ctx]
  (for [^ByteBuffer message (dump "the network devices" (request get-link link-size {}) ctx)
        :when (<= (long link-size) (.capacity message))
        :let [found (attributes message link-size)
              of-xdp (some-> (found xdp) (attributes 0))]]
    {:ifindex (u32 message 4)
     :name (text-in (found 3))
     :xdp (into []
                (keep (fn [[mode attribute]]
                        (when-let [id (number-in (get of-xdp attribute))]
                          {:mode mode :program-id id})))
                modes)}))

;; --- filters of tc

(def ^:private ^:const get-qdisc 38)
(def ^:private ^:const get-filter 46)
(def ^:private ^:const tc-size "Bytes of struct tcmsg." 20)
(def ^:private ^:const kind-attribute "TCA_KIND." 1)
(def ^:private ^:const options-attribute "TCA_OPTIONS." 2)
(def ^:private ^:const bpf-name "TCA_BPF_NAME." 7)
(def ^:private ^:const bpf-id "TCA_BPF_ID." 11)

(def ^:private directions
  "Parents of the filters of all packets: TC_H_CLSACT with a minor number."
  {:ingress 0xfffffff2 :egress 0xfffffff3})

(defn- queues
  "Returns the queueing disciplines of all devices: `{:ifindex :handle :kind}`."
  [ctx]
  (for [^ByteBuffer message (dump "the queueing disciplines" (request get-qdisc tc-size {}) ctx)
        :when (<= (long tc-size) (.capacity message))]
    {:ifindex (u32 message 4) :handle (u32 message 8)
     :kind (text-in ((attributes message tc-size) kind-attribute))}))

(defn- filters-of
  "Returns the programs that are filters of one parent on a device."
  [ifindex parent ctx]
  (for [^ByteBuffer message (dump "the filters of tc"
                                  (request get-filter tc-size {4 ifindex 12 parent}) ctx)
        :when (<= (long tc-size) (.capacity message))
        :let [found (attributes message tc-size)
              options (when (= "bpf" (text-in (found kind-attribute)))
                        (some-> (found options-attribute) (attributes 0)))
              id (number-in (get options bpf-id))]
        :when id]
    {:ifindex (u32 message 4) :handle (u32 message 8) :program-id id
     :priority (bit-shift-right (long (u32 message 16)) 16)
     :filter (text-in (options bpf-name))}))

(defn filters
  "Returns the programs that are filters of tc.

  Each is `{:ifindex :direction :priority :handle :filter :program-id}`. The direction is `:ingress`
  or `:egress`; a filter of another queueing discipline has the handle of that, `:parent`, instead.
  Programs that are actions of filters are left out.

      (filters {:op :list}) ;=> [{:ifindex 2 :direction :ingress :priority 1 :program-id 30 …}]"
  [ctx]
  (distinct
   (for [{:keys [ifindex handle kind]} (queues ctx)
         [place parent] (cond
                          (= "clsact" kind) (for [[direction parent] directions]
                                              [{:direction direction} parent])
                          (= "ingress" kind) [[{:direction :ingress} (:ingress directions)]]
                          (pos? (long handle)) [[{:parent handle} handle]])
         filter (filters-of ifindex parent ctx)]
     (into filter place))))
