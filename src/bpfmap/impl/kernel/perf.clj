(ns ^:no-doc bpfmap.impl.kernel.perf
  "Opens perf events, and stores them in the slots of perf event arrays.

  A perf event array has a slot for each CPU, with the perf event to whose buffer programs on that
  CPU write. The kernel empties the slots that were filled through a descriptor when that is closed,
  unless the map has the flag BPF_F_PRESERVE_ELEMS. Source: kernel/bpf/arraymap.c,
  perf_event_fd_array_release."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.events :as kernel.events]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.procfs :as procfs]
            [clojure.string :as str])
  (:import (bpfmap.sys Abi Attr Bytes EventSource Fd FileSyscalls MappedMemory
                       OverwritablePerfBuffer PerfBuffer PerfEvents PossibleCpus)
           (java.io IOException)
           (java.nio.charset StandardCharsets)))

(set! *warn-on-reflection* true)

(def types
  "Types of perf events by name: `enum perf_type_id` in linux/perf_event.h."
  {:hardware 0 :software 1 :tracepoint 2 :raw 4})

(defn event-type
  "Returns the number of a type of perf events, such as \"uprobe\"; nil if missing."
  [name]
  (try
    (parse-long (str/trim (String. (procfs/read-bytes
                                    (str "/sys/bus/event_source/devices/" name "/type")))))
    (catch IOException _ nil)))

(defn online-cpus
  "Returns the numbers of the CPUs that are online now, ascending."
  []
  (let [file "/sys/devices/system/cpu/online"]
    (try
      (vec (PossibleCpus/parse (String. (procfs/read-bytes file))))
      (catch IOException e
        (throw (procfs/unreadable file e nil))))))

;; --- perf events on which programs run

(defn open
  "Opens a perf event; returns its descriptor, or the negated errno.

  | key                    | meaning                                                          |
  |------------------------|------------------------------------------------------------------|
  | `:type` `:config`      | numbers                                                          |
  | `:text` `:path`        | the function or the path of a probe                              |
  | `:config2`             | the offset of a probe                                            |
  | `:samples`             | run after so many events, or with `:frequency` so often a second |
  | `:pid` `:cpu`          | -1 for all                                                       |"
  [{:keys [type config text path config2 samples frequency pid cpu]}]
  (let [outcome (PerfEvents/open (int type) (long config)
                                 (cond
                                   text (.getBytes ^String text StandardCharsets/UTF_8)
                                   path (paths/bytes-of path))
                                 0 (long (or config2 0)) (long (or samples 0)) (boolean frequency)
                                 (int pid) (int cpu))]
    (if (neg? outcome) outcome (Fd/own outcome))))

(defn set-program
  "Attaches a program to a perf event without a link.

  Returns 0 or the negated errno. The program is detached when the event is closed."
  [^Fd event ^Fd program]
  (PerfEvents/setProgram event program))

;; --- own perf events

(defn- open-event
  "Opens a perf event for programs on a CPU; returns nil if the CPU is offline."
  ^Fd [cpu {:keys [wakeup-events wakeup-bytes overwrite]} ctx]
  (let [outcome (PerfBuffer/open (int cpu) (long (or wakeup-bytes wakeup-events 1))
                                 (some? wakeup-bytes) (boolean overwrite))]
    (cond
      (= outcome (- Abi/ENODEV)) nil
      (neg? outcome) (throw (call/failure (str "Opening a perf event on CPU " cpu) outcome
                                          (assoc ctx :perf :event)))
      :else (Fd/own outcome))))

(defn- map-event
  "Returns the mapped buffer of a perf event, with `pages` of data."
  ^MappedMemory [event pages writable? ctx]
  (kernel.events/map-part event 0 (* (inc (long pages)) (long (call/page-size))) writable?
                          (assoc ctx :perf :memory)))

(defn buffer
  "Opens the buffer of a CPU; returns nil if the CPU is offline.

  With `:overwrite` it keeps the newest events. The kernel does so if the memory is mapped
  read-only. Programs cannot write to it before [[store]]."
  ^EventSource [cpu {:keys [pages overwrite] :as options} ctx]
  (when-let [event (open-event cpu options ctx)]
    (try
      (let [memory (map-event event pages (not overwrite) ctx)
            page (long (call/page-size))]
        (if overwrite
          (OverwritablePerfBuffer. memory page event (int cpu))
          (PerfBuffer. memory page event (int cpu) false)))
      (catch Throwable e
        (call/close event)
        (throw e)))))

(defn store
  "Stores the perf event of a buffer in the slot of its CPU, and enables it."
  [map-fd ^EventSource buffer ctx]
  (let [event (.pollable buffer)]
    (call/command (str "Storing the perf event of CPU " (.cpu buffer)) ctx Abi/BPF_MAP_UPDATE_ELEM
                  (fn [^Attr attr]
                    (.fd attr Abi/ELEM_MAP_FD map-fd)
                    (Bytes/put32 (.buffer attr Abi/ELEM_KEY 4) 0 (.cpu buffer) false)
                    (Bytes/put32 (.buffer attr Abi/ELEM_VALUE 4) 0 (.use attr event) false)
                    (.int64 attr Abi/ELEM_FLAGS 0))
                  (fn [_ _ _]))
    (let [outcome (PerfBuffer/enable event)]
      (when (neg? outcome)
        (throw (call/failure (str "Enabling the perf event of CPU " (.cpu buffer)) outcome ctx))))))

(defn clear
  "Empties the slot of a CPU."
  [map-fd cpu ctx]
  (call/command (str "Emptying the slot of CPU " cpu) ctx Abi/BPF_MAP_DELETE_ELEM
                (fn [^Attr attr]
                  (.fd attr Abi/ELEM_MAP_FD map-fd)
                  (Bytes/put32 (.buffer attr Abi/ELEM_KEY 4) 0 (long cpu) false))
                (fn [_ _ _])
                #{(- Abi/ENOENT)}))

;; --- perf events of other processes

(def ^:private perf-link "anon_inode:[perf_event]")

(defn- ascii ^bytes [^String s]
  (.getBytes s StandardCharsets/US_ASCII))

(defn- for-programs?
  "Returns true unless programs surely cannot write to a perf event.

  Since Linux 7.2 its fdinfo has its attributes."
  [pid number]
  (let [text (try
               (String. (procfs/read-bytes (str "/proc/" pid "/fdinfo/" number)))
               (catch IOException _ nil))
        attribute #(some-> (procfs/field text (str "perf_event_attr." %)) (str/split #"\s") first
                           Long/decode)
        type (attribute "type")
        config (attribute "config")]
    (or (nil? type) (nil? config)
        (and (= Abi/PERF_TYPE_SOFTWARE type) (= Abi/PERF_COUNT_SW_BPF_OUTPUT config)))))

(defn- perf-event?
  "Returns true if a descriptor of a process is a perf event."
  [pid number]
  (let [link (FileSyscalls/link (ascii (str "/proc/" pid "/fd/" number)))]
    (and link (= perf-link (String. ^bytes link StandardCharsets/ISO_8859_1)))))

(defn- descriptors
  "Returns the descriptors of a process as numbers, ascending.

  Throws an IOException if they cannot be read."
  [pid]
  (sort (keep parse-long (procfs/list-names (str "/proc/" pid "/fd/")))))

(defn event-numbers
  "Returns the descriptors of a process that are perf events, as numbers.

  Throws an IOException if they cannot be read."
  [pid]
  (into [] (filter #(and (perf-event? pid %) (for-programs? pid %))) (descriptors pid)))

(def ^:private attached-kinds
  "Values of `enum bpf_task_fd_type` in linux/bpf.h, with the key of the text."
  {1 [{:event :tracepoint} :tracepoint]
   2 [{:event :kprobe} :function]
   3 [{:event :kprobe :return true} :function]
   4 [{:event :uprobe} :path]
   5 [{:event :uprobe :return true} :path]})

(def ^:private text-room "Bytes of the longest text, with its NUL: a path." 4096)

(defn- attached-to-event
  "Returns what runs on a perf event of a process, or nil.

  See [[attached-to-events]]."
  [pid number ctx]
  (call/command (str "Querying descriptor " number " of process " pid) ctx Abi/BPF_TASK_FD_QUERY
                (fn [^Attr attr]
                  (doto attr
                    (.int32 Abi/TASK_PID (long pid))
                    (.int32 Abi/TASK_FD (long number))
                    (.int32 Abi/TASK_BUF_LEN (long text-room))
                    ;; The kernel writes only if the attribute reaches to these.
                    (.int64 Abi/TASK_PROBE_ADDR 0))
                  (.buffer attr Abi/TASK_BUF text-room))
                (fn [outcome ^Attr attr text]
                  (when (zero? (long outcome))
                    (when-let [[info k] (attached-kinds (.int32 attr Abi/TASK_FD_TYPE))]
                      (let [offset (.int64 attr Abi/TASK_PROBE_OFFSET)
                            address (.int64 attr Abi/TASK_PROBE_ADDR)
                            name (not-empty (call/text text 0 text-room))]
                        (cond-> (assoc info :program-id
                                       (.int32 attr Abi/TASK_PROG_ID))
                          name (assoc k name)
                          (not (zero? offset)) (assoc :offset offset)
                          (not (zero? address)) (assoc :address address))))))
                neg?))

(defn attached-to-events
  "Returns what runs on the perf events that a process has open.

  Each is `{:event :program-id}` with the target, as in the info of a link: `:tracepoint`,
  `:function`, `:path`, `:offset`, `:address` and `:return`. The kernel reports none for programs of
  type `:perf-event`. Throws an IOException if the descriptors cannot be read. Needs Linux 4.18."
  [pid ctx]
  (into [] (comp (filter #(perf-event? pid %)) (keep #(attached-to-event pid % ctx)))
        (descriptors pid)))

(defn- has-program?
  "Returns true if a program is attached to a perf event of another process.

  Programs run on such an event, and do not write to it. Source: kernel/trace/bpf_trace.c,
  bpf_get_perf_event_info: without a program it returns ENOENT."
  [pid number ctx]
  (call/command (str "Querying descriptor " number " of process " pid) ctx Abi/BPF_TASK_FD_QUERY
                (fn [^Attr attr]
                  (doto attr
                    (.int32 Abi/TASK_PID (long pid))
                    (.int32 Abi/TASK_FD (long number))))
                (fn [outcome _ _] (contains? #{0 (- Abi/EOPNOTSUPP)} outcome))
                neg?))

(defn- mapped-buffers
  "Returns the size in pages of each buffer that a process has mapped with a mode.

  Only a buffer that is mapped \"rw\" is read in order. The kernel overwrites one that is mapped \"r-\"."
  [pid mode]
  (let [page (long (call/page-size))
        hex #(Long/parseUnsignedLong % 16)]
    (into []
          (comp (map (fn [[_ from to]]
                       (dec (quot (- (long (hex to)) (long (hex from))) page))))
                (filter pos?))
          (re-seq (re-pattern (str "(?m)^([0-9a-f]+)-([0-9a-f]+) " mode
                                   "-s 0+ .*anon_inode:\\[perf_event\\]"))
                  (String. (procfs/read-bytes (str "/proc/" pid "/maps")))))))

(defn- follow-event
  "Returns the buffer of a perf event of another process, read-only.

  `pages` are sizes to try: the kernel requires the size that the owner has mapped, but does not
  report it. Returns nil if the owner has not mapped this event."
  ^PerfBuffer [event pages now? ctx]
  (loop [[n & more] pages]
    (when n
      (let [page (long (call/page-size))
            size (* (inc (long n)) page)
            address (MappedMemory/map ^Fd event size false 0)]
        (cond
          (nat-int? address)
          (PerfBuffer. (MappedMemory/own address size true) page nil -1 (boolean now?))
          (= address (- Abi/EINVAL))
          (recur more)
          :else
          (throw (call/failure "Mapping a perf event of another process" address
                               (assoc ctx :perf :memory))))))))

(defn- unmapped-error ^Throwable [pid events buffers {:keys [map] :as ctx}]
  (error/error :not-supported
               (str "The perf events of map " (error/id-and-name map)
                    " cannot be told from others")
               {:bpfmap/op (:op ctx) :bpfmap/map map
                :bpfmap/hint (str "process " pid " has " events " perf events without a program, and "
                                  buffers " buffers of perf events; mapping an event that has no "
                                  "buffer would give it one")}))

(defn- overwritten-error ^Throwable [pid {:keys [map] :as ctx}]
  (error/error :not-supported
               (str "The perf events of map " (error/id-and-name map) " cannot be peeked at")
               {:bpfmap/op (:op ctx) :bpfmap/map map
                :bpfmap/hint (str "process " pid " has mapped its buffers read-only, so programs "
                                  "overwrite them, as with :overwrite; only that process can read "
                                  "them")}))

(defn buffers-of-process
  "Returns the buffers of all perf events of a process to which programs can write.

  They are mapped read-only. Their CPUs are unknown. Duplicating a descriptor of another process
  requires the right to trace it. Nobody waits for these descriptors: that would take the
  notification away from their owner.

  Mapping a perf event that its owner has not mapped would give it a buffer, and change what it
  does. So there must not be more such events than buffers; else `:not-supported` is thrown, as for
  buffers that are overwritten."
  [pid now? ctx]
  (let [buffers (mapped-buffers pid "rw")
        numbers (into [] (remove #(has-program? pid % ctx)) (event-numbers pid))]
    (when (< (count buffers) (count numbers))
      (throw (if (seq (mapped-buffers pid "r-"))
               (overwritten-error pid ctx)
               (unmapped-error pid (count numbers) (count buffers) ctx))))
    (reduce (fn [found number]
              (try
                (let [event (call/descriptor-of-process pid number ctx)]
                  (try
                    (let [buffer (follow-event event (distinct buffers) now? ctx)]
                      (cond-> found buffer (conj buffer)))
                    ;; The mapping keeps the perf event.
                    (finally (call/close event))))
                (catch Throwable e
                  (run! #(.close ^PerfBuffer %) found)
                  (throw e))))
            []
            numbers)))
