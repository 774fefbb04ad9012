(ns bpfmap.prog
  "Small BPF programs as data: the kernel's side of a map, for tests, tools and experiments.

      (with-open [m (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1})
                  p (load {:type :raw-tracepoint
                           :insns [[:stw [:r10 -4] 0]
                                   [:lddw :r1 m]
                                   [:mov64 :r2 :r10]
                                   [:add64 :r2 -4]
                                   [:call :map-lookup-elem]
                                   [:jeq :r0 0 :out]
                                   [:mov64 :r1 1]
                                   [:atomic-add64 [:r0 0] :r1]
                                   :out
                                   [:mov64 :r0 0]
                                   [:exit]]})]
        (test-run p)
        (m 0)) ;=> 1

  The instructions are those of `bpfmap.asm`. This is no compiler: what a
  program does is written out, and the verifier has the last word."
  (:refer-clojure :exclude [load])
  (:require [bpfmap.asm :as asm]
            [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.store :as store]
            [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.progs :as progs]
            [bpfmap.spec :as spec])
  (:import (bpfmap.sys Fd)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(def types
  "Program types by name: the kernel's `enum bpf_prog_type`, source linux/bpf.h."
  (zipmap [:socket-filter :kprobe :sched-cls :sched-act :tracepoint :xdp :perf-event :cgroup-skb :cgroup-sock
           :lwt-in :lwt-out :lwt-xmit :sock-ops :sk-skb :cgroup-device :sk-msg :raw-tracepoint :cgroup-sock-addr
           :lwt-seg6local :lirc-mode2 :sk-reuseport :flow-dissector :cgroup-sysctl :raw-tracepoint-writable
           :cgroup-sockopt :tracing :struct-ops :ext :lsm :sk-lookup :syscall :netfilter]
          (rest (range))))

;; A loaded program, and an attachment of one: each owns a descriptor, and goes when it is closed.
(deftype Program [^Fd fd type name]
  Closeable
  (close [_] (sys/close fd))
  Object
  (toString [_] (str "#<bpf-program " type " " (pr-str name) (when (.isClosed fd) " closed") ">")))

(deftype Attachment [^Fd fd target]
  Closeable
  (close [_] (sys/close fd))
  Object
  (toString [_] (str "#<bpf-attachment " (pr-str target) (when (.isClosed fd) " closed") ">")))

(defmethod print-method Program [p ^java.io.Writer w] (.write w (str p)))
(defmethod print-method Attachment [a ^java.io.Writer w] (.write w (str a)))

(defn- invalid [path message hint]
  (error/error :invalid-program message {:bpfmap/op :load :bpfmap/path path :bpfmap/hint hint}))

(defn- check [program]
  (when-not (map? program)
    (throw (invalid [] (str "A program is a map, not " (pr-str (error/shown program)))
                    "it has :type, :name, :license and :insns")))
  (doseq [k (keys program)]
    (when-not (#{:type :name :license :insns} k)
      (throw (invalid [k] (str "Unknown key " (pr-str k)) "a program has :type, :name, :license and :insns"))))
  (let [{:keys [type name license]} program]
    (when-not (or (types type) (and (int? type) (<= 0 type 0xffff)))
      (throw (invalid [:type] (str "Unknown program type " (pr-str (error/shown type)))
                      (str "it is a number, or " (error/list-of (sort (keys types)))))))
    (doseq [[k text] [[:name name] [:license license]]]
      (when-not (or (nil? text) (string? text))
        (throw (invalid [k] (str k " is a text, not " (pr-str (error/shown text))) nil))))))

(defn- descriptor-of [ref]
  (if (store/bpf-map? ref)
    (store/descriptor ref)
    (throw (invalid [:insns] (str "Not an open map: " (pr-str (error/shown ref)))
                    "an instruction that names a map takes one that create or open returned"))))

(defn load
  "Assembles a program and loads it into the kernel; returns it open.

  | key        | what it holds                                                    |
  |------------|------------------------------------------------------------------|
  | `:type`    | a name from [[types]], or a number                               |
  | `:insns`   | instructions, see `bpfmap.asm`; maps stand in them as themselves |
  | `:name`    | any text; the kernel keeps 15 of its letters, digits, `_`, `.`   |
  | `:license` | \"GPL\" unless given; some helpers are for GPL programs only       |

  The program holds its maps: closing them here does not take them from it.
  It goes when it is closed and nothing is attached.

  Throws `:invalid-program` for what cannot be assembled, and `:program-rejected` with the
  verifier's log under `:bpfmap/log` for what the kernel refuses; `:closed` for a
  closed map; `:permission` without CAP_BPF and, for tracing programs, CAP_PERFMON.

      (load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})"
  ^Program [program]
  (check program)
  (let [{:keys [type name license insns]} program
        {:keys [bytes relocations]} (asm/assemble insns)
        relocations (mapv #(assoc % :fd (descriptor-of (:ref %))) relocations)
        fd (progs/load {:type (types type type)
                        :name (spec/kernel-name name)
                        :license (or license "GPL")
                        :insns bytes
                        :relocations relocations}
                       {:op :load})]
    (Program. fd type (spec/kernel-name name))))

(defn- check-program [program op]
  (when-not (instance? Program program)
    (throw (error/error :invalid-value (str "Not a loaded program: " (pr-str (error/shown program)))
                        {:bpfmap/op op :bpfmap/hint "it takes what load returned"}))))

(defn- check-options [options]
  (let [refuse (fn [path message hint]
                 (throw (error/error :invalid-value message {:bpfmap/op :test-run :bpfmap/path path :bpfmap/hint hint})))]
    (when-not (or (nil? options) (map? options))
      (refuse [] (str "Options are a map, not " (pr-str (error/shown options))) nil))
    (doseq [k (keys options)]
      (when-not (#{:data :context :repeat} k)
        (refuse [(error/shown k)] (str "Unknown option " (pr-str (error/shown k))) "test-run takes :data, :context and :repeat")))
    (let [{:keys [repeat]} options]
      (when-not (or (nil? repeat) (and (int? repeat) (<= 1 repeat 0x7fffffff)))
        (refuse [:repeat] (str ":repeat is a number from 1, not " (pr-str (error/shown repeat))) nil)))))

(defn test-run
  "Runs a loaded program once, or `:repeat` times, without attaching it; returns what came out.

  | option    | what it is                                                              |
  |-----------|-------------------------------------------------------------------------|
  | `:data`   | the packet, as bytes; 14 or more for packet programs. Not for raw tracepoints |
  | `:context`| the context, as bytes: for a raw tracepoint its arguments, eight bytes each |
  | `:repeat` | how often, 1 unless given                                               |

  Returns `{:return n :duration ns :data bytes}`: the program's r0 as 32 unsigned bits, the mean
  duration of one run in nanoseconds, the packet afterwards.

  Throws `:invalid-value` for input that the program type does not take,
  `:interrupted` when a signal ended it part-way, `:not-supported` for types that
  cannot be run so. Needs Linux 4.12; 5.10 for raw tracepoints.

      (:return (test-run p {:data (byte-array 14)})) ;=> 0"
  ([program] (test-run program nil))
  ([^Program program options]
   (check-program program :test-run)
   (check-options options)
   (try
     (let [{:keys [data context repeat]} options]
       (update (progs/test-run (.-fd program)
                               {:data (some-> data bytes/->array)
                                :context (some-> context bytes/->array)
                                :repeat repeat}
                               {:op :test-run})
               :data #(some-> % bytes/wrap)))
     (catch clojure.lang.ExceptionInfo e
       (throw (sys/in-context e {:op :test-run}))))))

(defn attach-raw-tracepoint
  "Attaches a program of type `:raw-tracepoint`; returns the attachment. Closing it detaches.

  Hold on to it: an attachment, as a program, that nobody refers to is closed by
  the garbage collector.

  `tracepoint` is a name such as \"sys_enter\", as in
  /sys/kernel/tracing/available_events without the part before the colon.

  Throws `:not-found` for a name that this kernel lacks, `:invalid-value` for a program of another type,
  `:permission` without CAP_PERFMON. Needs Linux 4.17.

      (with-open [_ (attach-raw-tracepoint p \"sys_enter\")] (Thread/sleep 1000))"
  ^Attachment [^Program program tracepoint]
  (check-program program :attach-raw-tracepoint)
  (when-not (and (string? tracepoint) (re-matches #"[^\u0000]+" tracepoint))
    (throw (error/error :invalid-value (str "Not the name of a tracepoint: " (pr-str (error/shown tracepoint)))
                        {:bpfmap/op :attach-raw-tracepoint})))
  (Attachment. (progs/open-raw-tracepoint (.-fd program) tracepoint {:op :attach-raw-tracepoint})
               tracepoint))
