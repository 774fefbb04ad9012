(ns bpfmap.impl.probe.maps
  "Probes of map types, create flags, operations and element flags: the smallest map that will do, and one call."
  (:require [bpfmap.btf :as btf]
            [bpfmap.impl.probe :as probe]
            [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.btf :as sys.btf]
            [bpfmap.impl.sys.maps :as maps]
            [bpfmap.impl.sys.probes :as probes]
            [bpfmap.rules :as rules])
  (:import (clojure.lang ExceptionInfo)
           (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

;; --- the smallest maps

(def ^:private nobodys
  "A descriptor that no process has: it is above the highest limit of open files. The kernel refuses it with EBADF, once it
  has looked whether there is anything to do with it. A negative number will not do: socket maps answer EINVAL."
  0x7fffffff)

(def ^:private local-storage
  "What hangs on sockets, inodes, tasks and cgroups; the key is a descriptor of one."
  {:max-entries 0 :flags #{:no-prealloc} :needs :types :key nobodys})

(def ^:private smallest
  "Where the smallest map of a type is not one entry of four bytes each.

  Besides the keys of a spec: `:needs`, what must be made first; `:known-by`, errno values that only a kernel with the
  type gives; `:key` and `:value`, what an operation is tried with where 0 would not do: a number in the
  first four bytes. `:max-entries` may be a function, of what this machine is like."
  {:prog-array {:value nobodys}
   :perf-event-array {:value nobodys}
   :stack-trace {:value-size 8}
   :cgroup-array {:value nobodys}
   :lpm-trie {:key-size 8 :flags #{:no-prealloc}}
   :array-of-maps {:needs :inner-map :value nobodys}
   :hash-of-maps {:needs :inner-map :value nobodys}
   :sockmap {:value nobodys}
   :xskmap {:value nobodys}
   :sockhash {:value nobodys}
   :cgroup-storage {:key-size 8 :max-entries 0}
   :reuseport-sockarray {:value nobodys}
   :percpu-cgroup-storage {:key-size 8 :max-entries 0}
   :queue {:key-size 0}
   :stack {:key-size 0}
   :sk-storage local-storage
   :devmap-hash {:value 1} ; the loopback device, which every network namespace has as its first
   ;; Its value is a struct of the kernel's. The kernel answers ENOTSUPP to the id of a type that is no such
   ;; struct (kernel/bpf/bpf_struct_ops.c), and E2BIG before 5.6, when the attribute had no field for it.
   :struct-ops {:value-type 1 :known-by #{:ENOTSUPP} :unknown-by #{:E2BIG}}
   :ringbuf {:key-size 0 :value-size 0 :max-entries sys/page-size}
   :inode-storage local-storage
   :task-storage local-storage
   :bloom-filter {:key-size 0}
   :user-ringbuf {:key-size 0 :value-size 0 :max-entries sys/page-size}
   :cgrp-storage local-storage
   :arena {:key-size 0 :value-size 0 :flags #{:mmapable}}
   :insn-array {:value-size 16}
   :rhash {:flags #{:no-prealloc}}})

(def ^:private companions
  "What must be in a spec for a flag to be looked at. Where that is a descriptor, EBADF comes only from a kernel that looks."
  {:stack-build-id {:value-size 32} ; struct bpf_stack_build_id
   :token-fd {:token nobodys :known-by #{:EBADF}}
   :vtype-btf-obj-fd {:value-type-btf nobodys :known-by #{:EBADF}}})

(defn- spec-of
  "The spec of the smallest map of a type, with a flag unless that is nil."
  [type flag]
  (let [spec (merge {:key-size 4 :value-size 4 :max-entries 1 :flags #{} :known-by #{} :unknown-by #{}}
                    (smallest type)
                    {:type type})
        spec (update spec :max-entries #(if (fn? %) (%) %))
        {:keys [known-by] :as companion} (companions flag)]
    (-> (merge spec (dissoc companion :known-by))
        (update :known-by into known-by)
        (cond-> flag (update :flags conj flag)))))

(def ^:private facts {:op :create})

(def ^:private array {:type :array :key-size 4 :value-size 4 :max-entries 1 :flags #{}})

(defn- with-btf
  "Creates a map with BTF for its key and value; returns its descriptor."
  [spec key value]
  (let [{:keys [bytes ids]} (btf/->btf [key value] nil)
        blob (sys.btf/load bytes nil facts)]
    (try
      (maps/create (assoc spec :btf {:fd blob :key (first ids) :value (second ids)}) facts)
      (finally (sys/close blob)))))

(defn- create
  "Creates the map of a spec, and before it what it `:needs`; returns its descriptor."
  [{:keys [needs] :as spec}]
  (case needs
    nil (maps/create spec facts)
    :types (with-btf spec :s32 :u32)
    :inner-map (let [inner (maps/create array facts)]
                 (try
                   (maps/create (assoc spec :inner-map inner) facts)
                   (finally (sys/close inner))))))

(defn try-map
  "Whether the kernel has a map type, or takes a flag on it unless that is nil."
  [type flag]
  (let [{:keys [known-by unknown-by] :as spec} (spec-of type flag)]
    (probe/of-creation known-by unknown-by #(create spec))))

;; --- operations

(def operations
  "What [[try-operation]] can ask for."
  probes/operations)

(def ^:private ambiguous
  "Operations whose EINVAL does not mean that the type lacks them, but that there is no such element.
  Source: sock_map_delete_elem in net/core/sock_map.c; it came with the type."
  {[:sockmap :delete] #{:EINVAL}})

(def ^:private value-room
  "Bytes for a value. The kernel moves one of eight bytes for each possible CPU, and is never built for more than 8192."
  (* 8 8192))

(defn- bytes-of
  "A byte array of a size that begins with a number of four bytes; nil for size 0."
  [size number]
  (when (pos? (long size))
    (.array (.putInt (.order (ByteBuffer/allocate (int size)) (ByteOrder/nativeOrder)) (int number)))))

(defn- operate [fd op {:keys [key-size key value]} flags]
  (probes/operate op fd
                  {:key (bytes-of key-size (or key 0)) :value (bytes-of value-room (or value 0)) :flags flags}
                  facts))

(defn- with-map
  "Calls `f` with the descriptor that `make` returns, and closes it; a refusal to make it says nothing of what was asked."
  [make f]
  (try
    (let [fd (make)]
      (try (f fd) (finally (sys/close fd))))
    (catch ExceptionInfo e
      (probe/inconclusive (ex-message e)))))

(defn try-operation
  "Whether the kernel has an operation on a map type that it has."
  [type op]
  (let [spec (spec-of type nil)]
    (cond
      (not (rules/types type))
      (probe/inconclusive (str "bpfmap does not know what a map of type " type " is like"))

      (= :struct-ops type)
      (probe/inconclusive "a map of type :struct-ops has the type of a struct of the kernel, and is not probed further")

      :else
      (with-map #(create spec)
        #(probe/of-operation (ambiguous [type op]) (operate % op spec nil) facts)))))

;; --- flags of operations

(def element-flags
  "What [[try-element-flag]] can ask for."
  (set (keys probes/element-flags)))

(def ^:private locked
  "A value that the kernel can lock."
  [:struct [:lock :spin-lock] [:n :u32]])

(defn try-conditional-write
  "Whether the kernel looks whether the key exists before a write that depends on it, on maps of a type, with a flag of
  [[element-flags]] beside it unless that is nil. It is tried with BPF_EXIST and a key that does not exist."
  [type flag]
  (let [spec (spec-of type nil)
        bits (bit-or (long (:value (rules/element-flags :exist)))
                     (long (if flag (:bits (probes/element-flags flag)) 0)))]
    (with-map #(create spec)
      #(let [outcome (operate % :update spec bits)
             errno (probe/errno-of outcome)]
         (cond
           (= :ENOENT errno) probe/supported
           (nil? errno) probe/unsupported
           :else (probe/why "The probe" outcome facts))))))

(defn try-element-flag
  "Whether the kernel has a flag of element operations."
  [flag]
  (let [{:keys [op bits]} (probes/element-flags flag)
        make (if (= :lock flag)
               #(with-btf (assoc array :value-size 8) :u32 locked)
               #(maps/create (assoc array :type :percpu-array :value-size 8) facts))]
    (with-map make
      #(probe/of-operation nil (operate % op array bits) facts))))
