(ns ^:no-doc bpfmap.impl.kernel.prog
  "Commands of bpf(2) on programs."
  (:refer-clojure :exclude [load])
  (:require [bpfmap.impl.btf.writer :as btf.writer]
            [bpfmap.impl.kernel.btf :as kernel.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.config :as config]
            [bpfmap.impl.kernel.lacks :as lacks]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.link.attach-types :as attach-types]
            [bpfmap.impl.prog.verifier-log :as verifier-log]
            [clojure.set :as set]
            [clojure.string :as str])
  (:import (bpfmap.sys Abi Attr Bytes Fd Info)
           (clojure.lang ExceptionInfo)
           (java.lang.foreign MemorySegment)
           (java.nio ByteBuffer ByteOrder)
           (java.util HexFormat)))

(set! *warn-on-reflection* true)

;; --- names

(def types
  "Numbers of program types by name: `enum bpf_prog_type` in linux/bpf.h."
  (zipmap [:socket-filter :kprobe :sched-cls :sched-act :tracepoint :xdp :perf-event :cgroup-skb
           :cgroup-sock
           :lwt-in :lwt-out :lwt-xmit :sock-ops :sk-skb :cgroup-device :sk-msg :raw-tracepoint
           :cgroup-sock-addr
           :lwt-seg6local :lirc-mode2 :sk-reuseport :flow-dissector :cgroup-sysctl
           :raw-tracepoint-writable
           :cgroup-sockopt :tracing :struct-ops :ext :lsm :sk-lookup :syscall :netfilter]
          (rest (range))))

(def ^:private number->type (set/map-invert types))

(defn type-name
  "Returns the name of a program type's number, or the number if it has none."
  [number]
  (number->type number number))

;; --- loading

(def ^:const max-attempts
  "The number of attempts to load a program while EAGAIN is returned.

  The verifier returns EAGAIN when a signal is pending. 16 attempts were not enough for a program
  of two instructions, under signals every few microseconds."
  1000)

(def ^:private attempts
  "Levels and sizes of the verifier's log, by attempt, for each `:log`.

  Sizes are in bytes. Without a `:log`, there is no log before there is an error. Level 1 has
  everything, and 4 the reason for a rejection and the statistics alone (Linux 5.2). Before Linux
  5.15 the kernel accepts at most the largest size here (UINT_MAX >> 8).

  The last attempt is for a log that is too long even then. Before Linux 6.4 it lacks its end, and
  with it the reason. It is not made if a log has its end."
  (let [whole [[1 0x10000] [1 0xffffff]]
        brief [4 0x10000]]
    {nil (conj (into [[0 0]] whole) brief)
     :stats (conj (into [[4 0x10000]] whole) brief)
     :full (conj whole [0 0] brief)}))

(def ^:private flags
  "Flags of programs by name."
  {:sleepable Abi/BPF_F_SLEEPABLE :xdp-has-frags Abi/BPF_F_XDP_HAS_FRAGS})

(defn- function-btf
  "Returns BTF of a program with n further functions.

  The kernel requires it for a function that is passed to a helper: its linkage must be static. It
  does not compare parameters of static functions with the code. Source: check_ld_imm in
  kernel/bpf/verifier.c."
  ^bytes [n]
  (btf.writer/blob
   (into [{:kind :int :name "int" :size 4 :bits 32 :signed true}
          {:kind :func-proto :return 1}]
         (map (fn [i] {:kind :func :name (if (zero? i) "main" (str "callback" i))
                       :type 2 :linkage :static}))
         (range (inc n)))))

(defn- function-info
  "Returns an array of `struct bpf_func_info` for the functions at some slots."
  ^bytes [slots]
  (let [buffer (doto (ByteBuffer/allocate (* 8 (count slots))) (.order (ByteOrder/nativeOrder)))]
    (doseq [[i slot] (map-indexed vector slots)]
      (.putInt buffer (int slot))
      (.putInt buffer (int (+ 3 i)))) ; ids of types begin at 1, and two precede the functions
    (.array buffer)))

(defn- records!
  "Sets the fields of an array of records: the size of one, the bytes, the number."
  [^Attr attr ^bytes records size size-field records-field count-field]
  (doto attr
    (.int32 size-field size)
    (.bytes records-field records)
    (.int32 count-field (quot (alength records) (int size)))))

(defn- fd-array!
  "Sets the array of descriptors that calls refer to by index; index 0 is not used."
  [^Attr attr fds]
  (let [numbers (doto (ByteBuffer/allocate (* 4 (inc (count fds))))
                  (.order (ByteOrder/nativeOrder))
                  (.putInt 0))]
    (doseq [fd fds]
      (.putInt numbers (.use attr fd)))
    (.bytes attr Abi/PROG_LOAD_FD_ARRAY (.array numbers))))

(defn- fill!
  "Sets the fields of an attribute that say what a program is."
  [^Attr attr {:keys [type name license ^bytes insns relocations btf func-info ^bytes line-info
                      patch! expected-attach-type attach-btf-id attach-btf attach-program fd-array
                      kernel-version]
               flag-names :flags}]
  (let [insns (reduce (fn [bytes {:keys [slot fd]}]
                        (patch! bytes slot (.use attr fd)))
                      (aclone insns)
                      relocations)]
    (doto attr
      (.int32 Abi/PROG_LOAD_PROG_TYPE type)
      (.int32 Abi/PROG_LOAD_INSN_CNT (quot (alength ^bytes insns) 8))
      (.bytes Abi/PROG_LOAD_INSNS insns)
      (.string Abi/PROG_LOAD_LICENSE license)))
  (when kernel-version (.int32 attr Abi/PROG_LOAD_KERN_VERSION kernel-version))
  (when (seq flag-names)
    (.int32 attr Abi/PROG_LOAD_PROG_FLAGS (reduce bit-or (map flags flag-names))))
  (when (seq name) (.name attr Abi/PROG_LOAD_PROG_NAME name))
  (when btf
    (.fd attr Abi/PROG_LOAD_PROG_BTF_FD btf)
    (records! attr func-info 8 Abi/PROG_LOAD_FUNC_INFO_REC_SIZE Abi/PROG_LOAD_FUNC_INFO
              Abi/PROG_LOAD_FUNC_INFO_CNT)
    (when (and line-info (pos? (alength line-info)))
      (records! attr line-info 16 Abi/PROG_LOAD_LINE_INFO_REC_SIZE Abi/PROG_LOAD_LINE_INFO
                Abi/PROG_LOAD_LINE_INFO_CNT)))
  (when expected-attach-type
    (.int32 attr Abi/PROG_LOAD_EXPECTED_ATTACH_TYPE expected-attach-type))
  (when attach-btf-id (.int32 attr Abi/PROG_LOAD_ATTACH_BTF_ID attach-btf-id))
  (when attach-btf (.fd attr Abi/PROG_LOAD_ATTACH_BTF_OBJ_FD attach-btf))
  (when attach-program (.fd attr Abi/PROG_LOAD_ATTACH_PROG_FD attach-program))
  (when (seq fd-array) (fd-array! attr fd-array)))

(defn- action [{:keys [title]}]
  (if title (str "Loading program " title) "Loading the program"))

(defn- load-once
  "Returns `{:fd descriptor :log text}`, or `{:refused exception :log text}`.

  A log of size 0 is not requested."
  [program [log-level log-size] ctx]
  (let [log (volatile! nil)
        log? (pos? (long log-size))]
    (try
      {:fd (call/command (action program) ctx Abi/BPF_PROG_LOAD
                         (fn [^Attr attr]
                           (fill! attr program)
                           (when log?
                             (.int32 attr Abi/PROG_LOAD_LOG_LEVEL log-level)
                             (.int32 attr Abi/PROG_LOAD_LOG_SIZE log-size)
                             (.buffer attr Abi/PROG_LOAD_LOG_BUF log-size)))
                         (fn [outcome attr ^MemorySegment memory]
                           (when log? (vreset! log (call/text memory 0 log-size)))
                           (when (neg? (long outcome))
                             (throw (call/failure (action program) outcome ctx)))
                           (call/own-fd outcome attr memory))
                         neg?)
       :log @log}
      (catch ExceptionInfo e
        {:refused e :log @log}))))

(defn- silent?
  "Returns true if a log has no reason: no text but statistics of no instruction."
  [log]
  (every? #(re-matches #"|func#\d+ @\d+|processed 0 insns .*" %) (str/split-lines (str/trim log))))

(def ^:private smallest
  "Instructions of the smallest program: it returns 0."
  (let [code [0xb7 0 0 0 0 0 0 0, 0x95 0 0 0 0 0 0 0]]
    (byte-array (map unchecked-byte code))))

(defn- loads?
  "Returns true if the kernel loads a program; closes it at once."
  [program ctx]
  (let [{:keys [fd]} (load-once program [0 0] ctx)]
    (some-> fd call/close)
    (some? fd)))

(defn- refuses-such?
  "Returns true if the kernel refuses the smallest program of a kind.

  It must accept a socket filter. What replaces a function has no smallest program: it must have the types of the function."
  [{:keys [type] :as program} ctx]
  (let [nothing {:insns smallest :license "GPL"}]
    (and (loads? (assoc nothing :type (types :socket-filter)) ctx)
         (or (= (types :ext) type)
             (not (loads? (merge nothing (select-keys program [:type :expected-attach-type
                                                               :attach-btf-id :attach-btf]))
                          ctx))))))

(defn- lacking
  "Returns a delay of the text for what this kernel lacks for a program, or of nil."
  [{:keys [type expected-attach-type] :as program} ctx]
  (delay
    (lacks/of-program {:type (type-name type)
                       :attach-type (some-> expected-attach-type attach-types/name-of)}
                      {:release (procfs/kernel-release)
                       :options (config/options)
                       :refuses-such #(refuses-such? program ctx)
                       :lockdown procfs/lockdown})))

(defn- refusal
  "Returns the exception for a program that the kernel refused.

  A log without a reason is a fact too: the verifier did not come to the instructions."
  ^Throwable [program ^ExceptionInfo e log ctx]
  (let [{:bpfmap/keys [error errno-code]} (ex-data e)]
    (if (and (= :program-rejected error) log (silent? log))
      (call/failure (action program) (- (long errno-code))
                    (assoc ctx :silent true :lacks (lacking program ctx)))
      (verifier-log/explained e log (assoc (select-keys program [:line :poison])
                                           :type (:program-type ctx)
                                           :release (call/kernel-release))))))

(defn- has-end?
  "Returns true if a log ends with the verifier's statistics."
  [log]
  (let [log (str log)]
    (some? (:insns (verifier-log/stats (subs log (max 0 (- (count log) 4096))))))))

(defn- load-with-btf
  "Does the same as [[load]], with the BTF of a program that needs it loaded."
  [program ctx]
  (loop [program program, attempts (attempts (:log program)), interrupted 1, reason nil, before nil]
    (let [{:keys [refused log] :as loaded} (load-once program (first attempts) ctx)
          {:bpfmap/keys [error errno]} (when refused (ex-data refused))
          [level] (first attempts)
          ;; Level 4 is EINVAL before Linux 5.2.
          known? (and reason (or (= :ENOSPC errno) (and before (= 4 level))))
          reason (if known? reason refused)
          log (if (str/blank? log) (or before log) log)
          last? (nil? (nnext attempts))]
      (cond
        (nil? refused)
        loaded

        (and (= :EAGAIN errno) (< interrupted max-attempts))
        (recur program attempts (inc interrupted) nil before)

        (and (= :E2BIG errno) (seq (:name program)))
        (recur (dissoc program :name) attempts interrupted nil before)

        ;; ENOSPC: the log is longer than its buffer.
        (and (next attempts)
             (or (= :ENOSPC errno) (and (= :program-rejected error) (not= 1 level)))
             (not (and last? (has-end? log))))
        (recur program (rest attempts) interrupted reason log)

        ;; A log longer than all buffers hides the errno of the attempt without a log.
        :else
        (throw (refusal program reason log ctx))))))

(defn load
  "Loads an assembled program; returns `{:fd descriptor :log text}`.

  If the kernel rejects it, loads it again to get the verifier's log. Before Linux 4.15 programs
  have no names: after E2BIG it is loaded without a name. A program with `:functions` gets BTF,
  which needs Linux 5.0, unless it has `:btf`, the descriptor of an own, with `:func-info` and
  `:line-info`.

  With `:log` `:stats` or `:full`, the result has the statistics or the whole log of a program that
  loads. `:line` and `:poison` are functions of a slot, see `verifier-log/explained`."
  [{:keys [functions btf] :as program} ctx]
  (if (or btf (empty? functions))
    (load-with-btf program ctx)
    (let [btf (kernel.btf/load (function-btf (count functions)) nil ctx)]
      (try
        (load-with-btf (assoc program :btf btf :func-info (function-info (cons 0 functions))) ctx)
        (finally (call/close btf))))))

;; --- info

(def ^:private info-size 228)

(def ^:private initial-map-room
  "Ids of maps in the first read.
  The verifier allows no more in one program.

  More may be bound to it later."
  64)

(defn- name-of
  "Returns the name of a number, or the number if it has none."
  [number->name number] (number->name number number))

(defn- read-info
  "Returns the program's info with up to `room` ids of maps.

  `:map-count` is the number of all its maps."
  [^Fd fd room ctx]
  (call/info
   "Reading the program's info" fd info-size ctx
   (fn [^Attr attr memory]
     (let [map-ids (.spare attr (* 4 (long room)))]
       (Bytes/put64 memory Info/PROG_MAP_IDS (.address ^MemorySegment map-ids) false)
       (Bytes/put32 memory Info/PROG_NR_MAP_IDS (long room) false)
       map-ids))
   (fn [^MemorySegment memory map-ids]
     (let [map-count (long (call/u32 memory Info/PROG_NR_MAP_IDS))
           optional {:ifindex (call/u32 memory Info/PROG_IFINDEX)
                     :btf-id (call/u32 memory Info/PROG_BTF_ID)
                     :attach-btf-obj-id (call/u32 memory Info/PROG_ATTACH_BTF_OBJ_ID)
                     :attach-btf-id (call/u32 memory Info/PROG_ATTACH_BTF_ID)
                     :xlated-bytes (call/u32 memory Info/PROG_XLATED_PROG_LEN)
                     :jited-bytes (call/u32 memory Info/PROG_JITED_PROG_LEN)
                     :verified-insns (call/u32 memory Info/PROG_VERIFIED_INSNS)
                     :run-time-ns (Bytes/get64 memory Info/PROG_RUN_TIME_NS false)
                     :run-count (Bytes/get64 memory Info/PROG_RUN_CNT false)
                     :recursion-misses (Bytes/get64 memory Info/PROG_RECURSION_MISSES false)}]
       (into {:id (call/u32 memory Info/PROG_ID)
              :type (name-of number->type (call/u32 memory Info/PROG_TYPE))
              :name (call/text memory Info/PROG_NAME (inc Abi/NAME_LENGTH))
              :tag (.formatHex (HexFormat/of) (Bytes/copyOut memory Info/PROG_TAG 8))
              :load-time (Bytes/get64 memory Info/PROG_LOAD_TIME false)
              :uid (call/u32 memory Info/PROG_CREATED_BY_UID)
              :gpl-compatible (odd? (long (call/u32 memory Info/PROG_GPL_COMPATIBLE)))
              :map-count map-count
              :map-ids (mapv #(call/u32 map-ids (* 4 (long %)))
                             (range (min (long room) map-count)))}
             (remove (comp zero? val))
             optional)))))

(defn brief-info
  "Returns the kernel's data about an open program, without its `:memlock`.

  Fields that are zero because they do not apply are left out."
  [^Fd fd ctx]
  (loop [room initial-map-room]
    (let [{:keys [map-count] :as info} (read-info fd room ctx)]
      (if (< (long room) (long map-count))
        (recur map-count)
        (dissoc info :map-count)))))

(defn info
  "Returns the kernel's data about an open program, with a name for its type.

  `:memlock` is read from /proc, and missing if that cannot be read."
  [^Fd fd ctx]
  (let [info (brief-info fd ctx)
        text (try
               (call/fdinfo-text fd)
               (catch RuntimeException e (throw (call/in-context e ctx))))
        memlock (some-> text (procfs/field "memlock") parse-long)]
    (cond-> info
      memlock (assoc :memlock memlock))))

;; --- instructions

(def ^:private ^:const function-record "Bytes of `struct bpf_func_info`." 8)
(def ^:private ^:const line-record "Bytes of `struct bpf_line_info`." 16)

(defn- sizes
  "Returns the sizes of the parts of a program, for [[read-parts]].

  All are 0 for a process without CAP_BPF."
  [^Fd fd ctx]
  (call/info "Reading the program's info" fd info-size ctx nil
             (fn [memory _]
               {:bytes (call/u32 memory Info/PROG_XLATED_PROG_LEN)
                :functions (call/u32 memory Info/PROG_NR_FUNC_INFO)
                :lines (call/u32 memory Info/PROG_NR_LINE_INFO)
                :code (call/u32 memory Info/PROG_JITED_PROG_LEN)
                :symbols (call/u32 memory Info/PROG_NR_JITED_KSYMS)
                :lengths (call/u32 memory Info/PROG_NR_JITED_FUNC_LENS)
                :code-lines (call/u32 memory Info/PROG_NR_JITED_LINE_INFO)})))

(def ^:private parts
  "Parts of a program that the kernel writes, as `[buffer count element-size]`.

  Each is an offset in `struct bpf_prog_info`: of the address of a buffer, and of two numbers. The
  count of code and instructions is in bytes. Some elements have a fixed size."
  {:bytes [Info/PROG_XLATED_PROG_INSNS Info/PROG_XLATED_PROG_LEN nil]
   :functions [Info/PROG_FUNC_INFO Info/PROG_NR_FUNC_INFO Info/PROG_FUNC_INFO_REC_SIZE]
   :lines [Info/PROG_LINE_INFO Info/PROG_NR_LINE_INFO Info/PROG_LINE_INFO_REC_SIZE]
   :code [Info/PROG_JITED_PROG_INSNS Info/PROG_JITED_PROG_LEN nil]
   :symbols [Info/PROG_JITED_KSYMS Info/PROG_NR_JITED_KSYMS nil]
   :lengths [Info/PROG_JITED_FUNC_LENS Info/PROG_NR_JITED_FUNC_LENS nil]
   :code-lines [Info/PROG_JITED_LINE_INFO Info/PROG_NR_JITED_LINE_INFO
                Info/PROG_JITED_LINE_INFO_REC_SIZE]})

(def ^:private element-sizes
  "The bytes of an element of each part of a program."
  {:bytes 1 :code 1 :functions function-record :lines line-record :symbols 8 :lengths 4
   :code-lines 8})

(defn- read-parts
  "Returns some parts of a program as buffers, by name.

  A part that is empty, or that the kernel hides from this process, is left out: then the kernel
  clears the address of the buffer."
  [^Fd fd sizes wanted ctx]
  (call/info
   "Reading the program's info" fd info-size ctx
   (fn [^Attr attr memory]
     (into {}
           (for [part wanted
                 :let [n (long (sizes part))
                       [at count-at size-at] (parts part)
                       size (long (element-sizes part))]
                 :when (pos? n)]
             (let [^MemorySegment buffer (.spare attr (* n size))]
               (Bytes/put32 memory count-at n false)
               (when size-at (Bytes/put32 memory size-at size false))
               (Bytes/put64 memory at (.address buffer) false)
               [part buffer]))))
   (fn [memory buffers]
     (into {}
           (for [[part buffer] buffers
                 :when (not (zero? (Bytes/get64 memory (first (parts part)) false)))]
             [part (Bytes/copyOut buffer 0 (int (* (long (sizes part))
                                                   (long (element-sizes part)))))])))))

(defn- elements
  "Returns `(f buffer offset)` of each element of a part; nil if it was not read."
  [found part f]
  (when-let [^bytes octets (found part)]
    (let [buffer (.order (ByteBuffer/wrap octets) (ByteOrder/nativeOrder))
          size (long (element-sizes part))]
      (mapv #(f buffer (* size (long %))) (range (quot (alength octets) size))))))

(defn- u32-at [^ByteBuffer buffer at]
  (bit-and 0xffffffff (long (.getInt buffer (int at)))))

(defn- u64-at [^ByteBuffer buffer at]
  (.getLong buffer (int at)))

(defn- functions-of [found]
  (elements found :functions
            (fn [buffer at] {:slot (u32-at buffer at) :type-id (u32-at buffer (+ 4 (long at)))})))

(defn- lines-of [found]
  (elements found :lines
            (fn [buffer at]
              (let [word #(long (u32-at buffer (+ (long at) (* 4 (long %)))))]
                {:slot (word 0) :file (word 1) :text (word 2)
                 :line (bit-shift-right (word 3) 10)
                 :column (bit-and 0x3ff (word 3))}))))

(defn instructions
  "Returns the instructions of an open program, as the kernel runs them.

  The result is `{:insns array :functions [{:slot :type-id}] :lines [{:slot :file :text :line :column}]}`,
  where texts are offsets in the strings of the BTF. The array is empty if the kernel hides the
  instructions. Functions and lines need Linux 5.0."
  [^Fd fd ctx]
  (let [found (read-parts fd (sizes fd ctx) [:bytes :functions :lines] ctx)]
    {:insns (or (:bytes found) (byte-array 0))
     :functions (functions-of found)
     :lines (lines-of found)}))

(defn machine-code
  "Returns the machine code of an open program.

  The result is `{:code array :addresses [n] :lengths [n] :functions [{:slot :type-id}] :lines
  [{:slot :file :text :line :column}] :line-addresses [n]}`. The code of the functions is in one
  array, one function behind the other. The array is empty without machine code, and if the kernel
  hides it; then the addresses are hidden too. Addresses and lengths need Linux 4.18."
  [^Fd fd ctx]
  (let [{:keys [code] :as sizes} (sizes fd ctx)
        found (read-parts fd sizes (keys (dissoc parts :bytes)) ctx)]
    {:code (or (:code found) (byte-array 0))
     :size code
     :addresses (elements found :symbols u64-at)
     :lengths (elements found :lengths u32-at)
     :functions (functions-of found)
     :lines (lines-of found)
     :line-addresses (elements found :code-lines u64-at)}))

;; --- statistics

(defn enable-statistics
  "Makes the kernel measure programs until the returned descriptor is closed.

  Needs Linux 5.8."
  ^Fd [ctx]
  (call/command "Enabling the statistics of programs" ctx Abi/BPF_ENABLE_STATS
                (fn [^Attr attr] (.int32 attr Abi/ENABLE_STATS_TYPE Abi/BPF_STATS_RUN_TIME))
                call/own-fd))

;; --- running

(defn test-run
  "Runs a program without attaching it.

  A run that a signal interrupted is restarted only if it is a single one."
  [^Fd fd {:keys [^bytes data ^bytes context repeat]} ctx]
  (let [room (+ 256 (if data (alength data) 0)) ; a program may make the packet longer
        run (fn []
              (with-open [attr (Attr.)]
                (.fd attr Abi/TEST_PROG_FD fd)
                (let [out (when data
                            (.int32 attr Abi/TEST_DATA_SIZE_IN (alength data))
                            (.bytes attr Abi/TEST_DATA_IN data)
                            (.int32 attr Abi/TEST_DATA_SIZE_OUT room)
                            (.buffer attr Abi/TEST_DATA_OUT room))]
                  (when context
                    (.int32 attr Abi/TEST_CTX_SIZE_IN (alength context))
                    (.bytes attr Abi/TEST_CTX_IN context))
                  (when repeat
                    (.int32 attr Abi/TEST_REPEAT repeat))
                  (let [outcome (.callOnce attr Abi/BPF_PROG_TEST_RUN)]
                    (if (neg? outcome)
                      outcome
                      {:return (.int32 attr Abi/TEST_RETVAL)
                       :duration (.int32 attr Abi/TEST_DURATION)
                       :data (when out
                               (Bytes/copyOut out 0
                                              (min room
                                                   (.int32 attr Abi/TEST_DATA_SIZE_OUT))))})))))]
    (loop [attempt 1]
      (let [outcome (try (run) (catch RuntimeException e (throw (call/in-context e ctx))))]
        (cond
          (map? outcome) outcome
          (and (= outcome (- Abi/EINTR))
               (= 1 (or repeat 1))
               (< attempt max-attempts)) (recur (inc attempt))
          :else (throw (call/failure "Running the program" outcome ctx)))))))
