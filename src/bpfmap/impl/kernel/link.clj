(ns ^:no-doc bpfmap.impl.kernel.link
  "Commands of bpf(2) on links, which attach a program to its hook."
  (:require [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.link.attach-types :as attach-types]
            [clojure.set :as set])
  (:import (bpfmap.sys Abi Attr Bytes Fd FileSyscalls Info)
           (java.lang.foreign Arena MemorySegment)
           (java.nio.charset StandardCharsets)))

(set! *warn-on-reflection* true)

(def types
  "Numbers of link types by name: `enum bpf_link_type` in linux/bpf.h."
  (zipmap [:raw-tracepoint :tracing :cgroup :iter :netns :xdp :perf-event :kprobe-multi :struct-ops
           :netfilter :tcx
           :uprobe-multi :netkit :sockmap]
          (rest (range))))

(def ^:private number->type (set/map-invert types))

;; --- info

(def ^:private info-size
  "Bytes of struct bpf_link_info.
  Before Linux 6.6 the kernel knows 48 of them."
  64)

(def ^:private device-and-attach-type
  "Fields at the offsets that links of network namespaces use for theirs."
  {:ifindex [:u32 Info/LINK_XDP_IFINDEX]
   :attach-type [:attach-type Info/LINK_NETNS_ATTACH_TYPE]})

(def ^:private details
  "Fields in the union of struct bpf_link_info, as `[kind offset]`, by link type."
  {:raw-tracepoint {:cookie [:u64 Info/LINK_RAW_TRACEPOINT_COOKIE]}
   :tracing {:attach-type [:tracing-type Info/LINK_TRACING_ATTACH_TYPE]
             :target-obj-id [:u32 Info/LINK_TRACING_TARGET_OBJ_ID]
             :target-btf-id [:u32 Info/LINK_TRACING_TARGET_BTF_ID]
             :cookie [:u64 Info/LINK_TRACING_COOKIE]}
   :cgroup {:cgroup-id [:u64 Info/LINK_CGROUP_CGROUP_ID]
            :attach-type [:attach-type Info/LINK_CGROUP_ATTACH_TYPE]}
   :iter {:map-id [:u32 Info/LINK_ITER_MAP_MAP_ID]}
   :netns {:netns-ino [:u32 Info/LINK_NETNS_NETNS_INO]
           :attach-type [:attach-type Info/LINK_NETNS_ATTACH_TYPE]}
   :xdp {:ifindex [:u32 Info/LINK_XDP_IFINDEX]}
   :perf-event {:event [:perf-type Info/LINK_PERF_EVENT_TYPE]}
   :kprobe-multi {:functions [:u32 Info/LINK_KPROBE_MULTI_COUNT]
                  :return [:flag Info/LINK_KPROBE_MULTI_FLAGS]
                  :missed [:u64 Info/LINK_KPROBE_MULTI_MISSED]}
   :uprobe-multi {:functions [:u32 Info/LINK_UPROBE_MULTI_COUNT]
                  :return [:flag Info/LINK_UPROBE_MULTI_FLAGS]
                  :pid [:u32 Info/LINK_UPROBE_MULTI_PID]}
   :netfilter {:family [:family Info/LINK_NETFILTER_PF]
               :hook [:hook Info/LINK_NETFILTER_HOOKNUM]
               :priority [:s32 Info/LINK_NETFILTER_PRIORITY]}
   ;; The fields below have the offsets of fields above; older headers do not define them.
   :struct-ops {:map-id [:u32 Info/LINK_XDP_IFINDEX]}
   :tcx device-and-attach-type
   :netkit device-and-attach-type
   :sockmap {:map-id [:u32 Info/LINK_XDP_IFINDEX]
             :attach-type [:attach-type Info/LINK_NETNS_ATTACH_TYPE]}})

(def ^:private perf-types
  "The probe or event of a perf event: `enum bpf_perf_event_type`, with `:return`."
  {1 [:uprobe false], 2 [:uprobe true], 3 [:kprobe false], 4 [:kprobe true]
   5 [:tracepoint false], 6 [:perf-event false]})

(def ^:private perf-details
  "Fields as in [[details]], by the `:event` of a link of a perf event."
  {:uprobe {:offset [:u32 Info/LINK_PERF_EVENT_UPROBE_OFFSET]
            :cookie [:u64 Info/LINK_PERF_EVENT_UPROBE_COOKIE]}
   :kprobe {:offset [:u32 Info/LINK_PERF_EVENT_KPROBE_OFFSET]
            :address [:u64 Info/LINK_PERF_EVENT_KPROBE_ADDR]
            :missed [:u64 Info/LINK_PERF_EVENT_KPROBE_MISSED]
            :cookie [:u64 Info/LINK_PERF_EVENT_KPROBE_COOKIE]}
   :tracepoint {:cookie [:u64 Info/LINK_PERF_EVENT_TRACEPOINT_COOKIE]}
   :perf-event {:event-type [:any-u32 Info/LINK_PERF_EVENT_EVENT_TYPE]
                :config [:any-u64 Info/LINK_PERF_EVENT_EVENT_CONFIG]
                :cookie [:u64 Info/LINK_PERF_EVENT_EVENT_COOKIE]}})

(def ^:private texts
  "The text in the info, as `[key offset offset-of-its-length]`.

  By link type, and by the `:event` of a link of a perf event."
  {:raw-tracepoint [:tracepoint Info/LINK_RAW_TRACEPOINT_TP_NAME
                    Info/LINK_RAW_TRACEPOINT_TP_NAME_LEN]
   :iter [:target Info/LINK_ITER_TARGET_NAME Info/LINK_ITER_TARGET_NAME_LEN]
   :uprobe-multi [:path Info/LINK_UPROBE_MULTI_PATH Info/LINK_UPROBE_MULTI_PATH_SIZE]
   :uprobe [:path Info/LINK_PERF_EVENT_UPROBE_FILE_NAME Info/LINK_PERF_EVENT_UPROBE_NAME_LEN]
   :kprobe [:function Info/LINK_PERF_EVENT_KPROBE_FUNC_NAME Info/LINK_PERF_EVENT_KPROBE_NAME_LEN]
   :tracepoint [:tracepoint Info/LINK_PERF_EVENT_TRACEPOINT_TP_NAME
                Info/LINK_PERF_EVENT_TRACEPOINT_NAME_LEN]})

(def ^:private text-room
  "Bytes of the longest text, with its NUL: a path."
  4096)

(def families
  "Protocol families of netfilter by name: linux/netfilter.h."
  {:ipv4 2 :ipv6 10})

(def hooks
  "Hooks of netfilter by name: `enum nf_inet_hooks` in linux/netfilter.h."
  {:prerouting 0 :local-in 1 :forward 2 :local-out 3 :postrouting 4})

(defn- named [names n]
  (get (set/map-invert names) n n))

(defn- field-value
  "Returns a field of the info; nil if it is zero because it does not apply."
  [memory [kind offset]]
  (let [n (if (#{:u64 :any-u64} kind) (Bytes/get64 memory offset false) (call/u32 memory offset))]
    (case kind
      :attach-type (attach-types/name-of n)
      ;; A program that replaces a function has none.
      :tracing-type (when-not (zero? (long n)) (attach-types/name-of n))
      :family (named families n)
      :hook (named hooks n)
      :s32 (unchecked-int n)
      :flag (when (odd? (long n)) true)
      :perf-type (first (perf-types n))
      (:any-u32 :any-u64) n
      (when-not (zero? (long n)) n))))

(defn- field-values [memory fields]
  (into {} (remove (comp nil? val)) (update-vals fields #(field-value memory %))))

(defn- read-fields
  "Returns all of the info except its text."
  [^Fd fd ctx]
  (call/info
   "Reading the link's info" fd info-size ctx
   (fn [_ _])
   (fn [memory _]
     (let [number (call/u32 memory Info/LINK_TYPE)
           type (number->type number number)
           [event return] (when (= :perf-event type)
                            (perf-types (call/u32 memory Info/LINK_PERF_EVENT_TYPE)))]
       (merge {:id (call/u32 memory Info/LINK_ID) :type type}
              (field-values memory {:program-id [:u32 Info/LINK_PROG_ID]})
              (field-values memory (details type))
              (field-values memory (perf-details event))
              (when return {:return true}))))))

(defn- read-text
  "Returns the text of the info; nil if it is empty.

  Must not be called for a link without a text: the kernel would store other data in place of the
  buffer's address."
  [^Fd fd [_ offset length-offset] ctx]
  (call/info
   "Reading the link's info" fd info-size ctx
   (fn [^Attr attr memory]
     (let [buffer (.spare attr text-room)]
       (Bytes/put64 memory offset (.address ^MemorySegment buffer) false)
       (Bytes/put32 memory length-offset text-room false)
       buffer))
   (fn [_ buffer]
     (not-empty (call/text buffer 0 text-room)))))

(defn info
  "Returns the kernel's data about an open link.
  Needs Linux 5.8.

  `:id`, `:type`, `:program-id`, and the fields of its type. Fields that are zero because they do
  not apply are left out."
  [^Fd fd ctx]
  (let [{:keys [type event] :as info} (read-fields fd ctx)
        [k :as row] (texts (or event type))
        text (when row (read-text fd row ctx))]
    (cond-> info text (assoc k text))))

;; --- making links

(def flags
  "Flags of links by name, for `:flags` of [[create]] and of its values."
  {:before Abi/BPF_F_BEFORE :after Abi/BPF_F_AFTER :id Abi/BPF_F_ID :link Abi/BPF_F_LINK
   :kprobe-return Abi/BPF_F_KPROBE_MULTI_RETURN :uprobe-return Abi/BPF_F_UPROBE_MULTI_RETURN
   :defragment Abi/BPF_F_NETFILTER_IP_DEFRAG})

(def ^:private fields
  "Fields of BPF_LINK_CREATE by the form of the link: key to `[kind offset]`.

  Those of a raw tracepoint belong to BPF_RAW_TRACEPOINT_OPEN."
  {:raw-tracepoint {:name [:text Abi/RAW_TRACEPOINT_NAME]
                    :cookie [:u64 Abi/RAW_TRACEPOINT_COOKIE]}
   :perf-event {:cookie [:u64 Abi/LINK_CREATE_PERF_EVENT_BPF_COOKIE]}
   :tracing {:cookie [:u64 Abi/LINK_CREATE_TRACING_COOKIE]
             :function [:u32 Abi/LINK_CREATE_TRACING_TARGET_BTF_ID]}
   :iter {:iterator [:iterator Abi/LINK_CREATE_ITER_INFO]}
   :kprobe-multi {:flags [:u32 Abi/LINK_CREATE_KPROBE_MULTI_FLAGS]
                  :count [:u32 Abi/LINK_CREATE_KPROBE_MULTI_CNT]
                  :functions [:texts Abi/LINK_CREATE_KPROBE_MULTI_SYMS]
                  :cookies [:u64s Abi/LINK_CREATE_KPROBE_MULTI_COOKIES]}
   :uprobe-multi {:path [:bytes Abi/LINK_CREATE_UPROBE_MULTI_PATH]
                  :offsets [:u64s Abi/LINK_CREATE_UPROBE_MULTI_OFFSETS]
                  :counters [:u64s Abi/LINK_CREATE_UPROBE_MULTI_REF_CTR_OFFSETS]
                  :cookies [:u64s Abi/LINK_CREATE_UPROBE_MULTI_COOKIES]
                  :count [:u32 Abi/LINK_CREATE_UPROBE_MULTI_CNT]
                  :flags [:u32 Abi/LINK_CREATE_UPROBE_MULTI_FLAGS]
                  :pid [:u32 Abi/LINK_CREATE_UPROBE_MULTI_PID]}
   :netfilter {:family [:u32 Abi/LINK_CREATE_NETFILTER_PF]
               :hook [:u32 Abi/LINK_CREATE_NETFILTER_HOOKNUM]
               :priority [:u32 Abi/LINK_CREATE_NETFILTER_PRIORITY]
               :flags [:u32 Abi/LINK_CREATE_NETFILTER_FLAGS]}
   ;; Of devices and cgroups
   :ordered {:relative [:number Abi/LINK_CREATE_TCX_RELATIVE_FD]
             :revision [:u64 Abi/LINK_CREATE_TCX_EXPECTED_REVISION]}
   :plain {}})

(def ^:private iterator-size "Bytes of union bpf_iter_link_info." 16)

(defn- set-number!
  "Sets a field of four bytes to a number, or to a descriptor that stays in use."
  [^Attr attr offset x]
  (if (instance? Fd x)
    (.fd attr offset x)
    (.int32 attr offset (long x))))

(defn- fill-iterator!
  "Sets the parameters of an iterator: words of four bytes, numbers or descriptors."
  [^Attr attr offset words]
  (let [memory (.buffer attr offset iterator-size)]
    (doseq [[i x] (map-indexed vector words)]
      (Bytes/put32 memory (* 4 (long i)) (long (if (instance? Fd x) (.use attr x) x)) false))
    (.int32 attr Abi/LINK_CREATE_ITER_INFO_LEN iterator-size)))

(defn- text-bytes ^bytes [^String text]
  (.getBytes (str text "\u0000") StandardCharsets/UTF_8))

(defn- fill-field!
  "Sets a field of the attribute to a value of its kind."
  [^Attr attr [kind offset] x]
  (case kind
    :u32 (.int32 attr offset (long x))
    :u64 (.int64 attr offset (unchecked-long x))
    :number (set-number! attr offset x)
    :text (.string attr offset x)
    :bytes (.bytes attr offset x)
    :u64s (let [memory (.buffer attr offset (* 8 (count x)))]
            (doseq [[i n] (map-indexed vector x)]
              (Bytes/put64 memory (* 8 (long i)) (unchecked-long n) false)))
    :texts (let [memory (.buffer attr offset (* 8 (count x)))]
             (doseq [[i text] (map-indexed vector x)
                     :let [bytes (text-bytes text)
                           copy (.spare attr (alength bytes))]]
               (Bytes/copyIn bytes copy 0)
               (Bytes/put64 memory (* 8 (long i)) (.address ^MemorySegment copy) false)))
    :iterator (fill-iterator! attr offset x)))

(defn- fill-fields! [attr form values]
  (doseq [[k x] values :when (some? x)]
    (fill-field! attr (get-in fields [form k]) x)))

(defn- fd-or-outcome
  "Returns a new descriptor as an `Fd`, or the negated errno."
  [outcome attr filled]
  (if (neg? (long outcome)) outcome (call/own-fd outcome attr filled)))

(defn create
  "Makes a link; returns its descriptor, or the negated errno.

  | key            | meaning                                                        |
  |----------------|----------------------------------------------------------------|
  | `:program`     | the descriptor of the program, or of the map of a struct_ops   |
  | `:form`        | a key of [[fields]]                                            |
  | `:attach-type` | a number; not for a raw tracepoint                             |
  | `:target`      | a descriptor, or the index of a device                         |
  | `:flags`       | a number                                                       |
  | `:values`      | the fields of the form                                         |"
  [{:keys [program form attach-type target flags values]} ctx]
  (if (= :raw-tracepoint form)
    (call/command "Attaching" ctx Abi/BPF_RAW_TRACEPOINT_OPEN
                  (fn [^Attr attr]
                    (.fd attr Abi/RAW_TRACEPOINT_PROG_FD program)
                    (fill-fields! attr form values))
                  fd-or-outcome
                  neg?)
    (call/command "Attaching" ctx Abi/BPF_LINK_CREATE
                  (fn [^Attr attr]
                    (.fd attr Abi/LINK_CREATE_PROG_FD program)
                    (when target
                      (set-number! attr Abi/LINK_CREATE_TARGET_FD target))
                    (.int32 attr Abi/LINK_CREATE_ATTACH_TYPE attach-type)
                    (.int32 attr Abi/LINK_CREATE_FLAGS (or flags 0))
                    (fill-fields! attr form values))
                  fd-or-outcome
                  neg?)))

(defn update-program
  "Replaces the program of a link; returns 0 or the negated errno.

  Of a struct_ops, replaces the map."
  [^Fd link ^Fd program ctx]
  (call/command "Updating" ctx Abi/BPF_LINK_UPDATE
                (fn [^Attr attr]
                  (.fd attr Abi/LINK_UPDATE_LINK_FD link)
                  (.fd attr Abi/LINK_UPDATE_NEW_PROG_FD program))
                (fn [outcome _ _] outcome)
                neg?))

(defn detach
  "Detaches a link from its target, also for all other processes that have it.

  The link stays until it is closed and not pinned. Needs Linux 5.9."
  [^Fd fd ctx]
  (call/command "Detaching the link" ctx Abi/BPF_LINK_DETACH
                (fn [^Attr attr] (.fd attr Abi/LINK_DETACH_LINK_FD fd))
                (constantly nil)))

(def ^:private most-attached
  "The largest number of programs of one hook: BPF_MPROG_MAX."
  64)

(defn- query
  "Reads what is attached, with ids of links and a revision if the kernel has them."
  [target attach-type links? ctx]
  (call/command "Querying" ctx Abi/BPF_PROG_QUERY
                (fn [^Attr attr]
                  (set-number! attr Abi/QUERY_TARGET_FD target)
                  (.int32 attr Abi/QUERY_ATTACH_TYPE attach-type)
                  (.int32 attr Abi/QUERY_PROG_CNT most-attached)
                  [(.buffer attr Abi/QUERY_PROG_IDS (* 4 (long most-attached)))
                   (if links?
                     (let [links (.buffer attr Abi/QUERY_LINK_IDS (* 4 (long most-attached)))]
                       ;; The kernel writes the revision only if the attribute reaches to it.
                       (.int64 attr Abi/QUERY_REVISION 0)
                       links)
                     (.spare attr (* 4 (long most-attached))))])
                (fn [outcome ^Attr attr [programs links]]
                  (if (neg? (long outcome))
                    outcome
                    {:revision (.int32 attr Abi/QUERY_REVISION)
                     :programs (mapv (fn [i]
                                       (let [at (* 4 (long i))
                                             link (call/u32 links at)]
                                         (cond-> {:program-id (call/u32 programs at)}
                                           (pos? (long link)) (assoc :link-id link))))
                                     (range (.int32 attr Abi/QUERY_PROG_CNT)))}))
                neg?))

(defn attached
  "Returns what is attached to a device or cgroup, or the negated errno.

  `{:revision n :programs [{:program-id n :link-id n} …]}` in the order in which they run. Before
  Linux 6.6 there are no ids of links, and the revision is 0, as for anything without an order."
  [target attach-type ctx]
  (let [found (query target attach-type true ctx)]
    (if (= found (- Abi/EINVAL))
      (query target attach-type false ctx)
      found)))

;; --- iterators

(defn- open-iterator
  "Begins a pass of an iterator; returns the descriptor to read it from."
  ^Fd [^Fd link ctx]
  (call/command "Opening the iterator" ctx Abi/BPF_ITER_CREATE
                (fn [^Attr attr] (.fd attr Abi/ITER_CREATE_LINK_FD link))
                call/own-fd))

(def ^:private chunk-size "Bytes of a read of an iterator." 0x10000)

(defn reduce-output
  "Reduces what an iterator prints in one pass, as byte arrays of at most 64 KiB.

  An iterator that ran for long without any output returns EAGAIN, and goes on at the next read."
  [^Fd link f init ctx]
  (let [iterator (open-iterator link ctx)]
    (try
      (with-open [arena (Arena/ofConfined)]
        (let [memory (.allocate arena (long chunk-size))]
          (loop [acc init]
            (let [n (FileSyscalls/read iterator memory)]
              (cond
                (= n (- Abi/EAGAIN)) (recur acc)
                (neg? n) (throw (call/failure "Reading the iterator" n ctx))
                (zero? n) acc
                :else (let [acc (f acc (Bytes/copyOut memory 0 (int n)))]
                        (if (reduced? acc) @acc (recur acc))))))))
      (finally (call/close iterator)))))
