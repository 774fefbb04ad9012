(ns bpfmap.prog
  "Loads small BPF programs, which are data, for tests, tools and experiments.

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

  The instructions are described in `bpfmap.asm`. This is an assembler, not a compiler; the verifier
  of the kernel checks the program."
  (:refer-clojure :exclude [load])
  (:require [bpfmap.asm :as asm]
            [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.prog :as prog]
            [bpfmap.impl.link.attach-types :as attach-types]
            [bpfmap.impl.link.link :as link]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.references :as references]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.options :as options]
            [bpfmap.impl.prog.instructions :as instructions]
            [bpfmap.impl.prog.program :as program]
            [bpfmap.spec :as spec])
  (:import (bpfmap.impl.link.link Link)
           (bpfmap.impl.prog.program Program)
           (bpfmap.sys Fd)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(def types
  "Program types by name: the kernel's `enum bpf_prog_type`, source linux/bpf.h."
  prog/types)

(def attach-types
  "Attach types by name: the kernel's `enum bpf_attach_type`, source linux/bpf.h."
  attach-types/numbers)

(defn- invalid [path message hint]
  (error/error :invalid-program message {:bpfmap/op :load :bpfmap/path path :bpfmap/hint hint}))

(defn- whole? [x most]
  (and (int? x) (<= 0 (long x) (long most))))

(def ^:private keys-of-a-program
  #{:type :name :license :insns :expected-attach-type :attach-btf-id})

(defn- check [program]
  (when-not (map? program)
    (throw (invalid [] (str "A program must be a map with :type and :insns, got "
                            (error/printed program))
                    nil)))
  (doseq [k (keys program)]
    (when-not (keys-of-a-program k)
      (throw (invalid [(error/shown k)] (str "Unknown key " (error/printed k))
                      (nearest/suggestion k (sort keys-of-a-program)
                                          "bpfmap.prog/load for all keys")))))
  (let [{:keys [type name license expected-attach-type attach-btf-id]} program]
    (when-not (or (types type) (whole? type 0xffff))
      (throw (invalid [:type] (str "Unknown program type " (error/printed type))
                      (nearest/suggestion type (sort (keys types))
                                          "bpfmap.prog/types for all names"))))
    (doseq [[k text] [[:name name] [:license license]]]
      (when-not (or (nil? text) (string? text))
        (throw (invalid [k] (str k " must be a string, got " (error/printed text)) nil))))
    (when-not (or (nil? expected-attach-type)
                  (attach-types expected-attach-type)
                  (whole? expected-attach-type 0xffffffff))
      (throw (invalid [:expected-attach-type]
                      (str "Unknown attach type " (error/printed expected-attach-type))
                      (nearest/suggestion expected-attach-type (sort (keys attach-types))
                                          "bpfmap.prog/attach-types for all names"))))
    (when-not (or (nil? attach-btf-id) (whole? attach-btf-id 0xffffffff))
      (throw (invalid [:attach-btf-id]
                      (str ":attach-btf-id must be the id of a type in the kernel's BTF, got "
                           (error/printed attach-btf-id))
                      nil)))))

(defn- descriptor-of [ref]
  (if (bpf-map/bpf-map? ref)
    (bpf-map/descriptor ref)
    (throw (invalid [:insns] (str "A map in an instruction must be an open map, got "
                                  (error/printed ref))
                    nil))))

(defn load
  "Assembles a program and loads it into the kernel; returns it open.

  | key                     | meaning                                                          |
  |-------------------------|------------------------------------------------------------------|
  | `:type`                 | a name from [[types]], or a number                               |
  | `:insns`                | instructions, see `bpfmap.asm`; they may contain open maps       |
  | `:name`                 | any string; the kernel keeps 15 of its letters, digits, `_`, `.` |
  | `:license`              | default: \"GPL\"; some helpers are for GPL programs only         |
  | `:expected-attach-type` | a name from [[attach-types]], or a number. Needs Linux 4.17      |
  | `:attach-btf-id`        | a type's id in the kernel's BTF. Needs Linux 5.5                 |

  Some types require the last two: a tracing program the function to trace; a struct_ops program its
  struct, and the index of the member in it.

  The program holds its maps: closing a map does not free it. The kernel frees the program when it
  is closed and not attached.

  Throws `:invalid-program` for instructions that cannot be assembled, `:program-rejected` with the
  verifier's log under `:bpfmap/log` if the kernel rejects the program, `:not-supported` for a type
  that this kernel lacks, with the release or the kernel option that has it, `:closed` for a closed
  map, and `:permission` without CAP_BPF and, for tracing programs, CAP_PERFMON, for network programs
  CAP_NET_ADMIN.

      (load {:type :socket-filter :insns [[:mov64 :r0 0] [:exit]]})"
  ^Program [program]
  (check program)
  (let [{:keys [type name license insns expected-attach-type attach-btf-id]} program
        {:keys [bytes relocations functions]} (asm/assemble insns)
        relocations (mapv #(assoc % :fd (descriptor-of (:ref %))) relocations)
        {:keys [fd]} (prog/load {:type (types type type)
                                 :name (spec/kernel-name name)
                                 :license (or license "GPL")
                                 :insns bytes
                                 :relocations relocations
                                 :functions functions
                                 :patch! asm/patch-map-fd!
                                 :expected-attach-type (attach-types
                                                        expected-attach-type expected-attach-type)
                                 :attach-btf-id attach-btf-id}
                                {:op :load :program-type (if (keyword? type)
                                                           type
                                                           (prog/type-name type))})]
    (Program. fd type (spec/kernel-name name)
              (when expected-attach-type {:attach-type expected-attach-type}))))

(defn- check-program [program op]
  (when-not (program/program? program)
    (throw (error/error :invalid-value (str "The program must be a result of load or open, got "
                                            (error/printed program))
                        {:bpfmap/op op}))))

;; --- programs that exist

(defn- adopt
  "Returns a program for a descriptor that was just opened."
  ^Program [fd ctx]
  (try
    (let [{:keys [type name]} (prog/info fd ctx)]
      (Program. fd type name nil))
    (catch Throwable e
      (call/close fd)
      (throw e))))

(defn open
  "Opens an existing program by id, pin path or `{:fd …}`, like [[load]].

  `{:id n}`, `{:program-id n}` and `{:path p}` are accepted too. A descriptor is duplicated; the
  caller still owns the original.

  Throws `:not-found`; `:not-a-program` for a pinned map or link, which the hint names;
  `:invalid-value` for an invalid reference; `:not-bpffs` for a path on another file system. Opening
  by id needs Linux 4.13 and CAP_SYS_ADMIN; by path, Linux 4.4 and the file's permission.

      (open {:program-id 12})
      (open \"/sys/fs/bpf/filter\")"
  ^Program [ref]
  (call/open-reference :program ref adopt))

(defn- descriptor ^Fd [object op]
  (cond
    (instance? Program object) (.-fd ^Program object)
    (link/link? object) (link/descriptor object op)
    :else (throw (error/error :invalid-value
                              (str "The argument must be an open program or link, got "
                                   (error/printed object))
                              {:bpfmap/op op}))))

(defn info
  "Returns the current state of an open program or link from the kernel.

  | key of a program    | meaning                                                                   |
  |---------------------|---------------------------------------------------------------------------|
  | `:id` `:name` `:tag`| the tag is a hash of the instructions, in hexadecimal                     |
  | `:type`             | a name from [[types]], or the number if it has none                       |
  | `:map-ids`          | the ids of the maps that it uses                                          |
  | `:load-time`        | when it was loaded, in nanoseconds of the boot clock                      |
  | `:uid`              | the id of the user who loaded it                                          |
  | `:gpl-compatible`   | true if its license lets it call all helpers                              |
  | `:memlock`          | the memory that the kernel charges for it, in bytes                       |
  | `:xlated-bytes` `:jited-bytes` | the size after the verifier, and of the machine code; with CAP_BPF |
  | `:verified-insns`   | the number of instructions that the verifier processed. Linux 5.16        |
  | `:run-time-ns` `:run-count` | run statistics, counted while [[enable-statistics!]] or the sysctl kernel.bpf_stats_enabled wants them. Linux 5.1 |
  | `:recursion-misses` | how often it did not run because it was running. Linux 5.12               |
  | `:btf-id` `:ifindex` | as numbers                                                               |
  | `:attach-btf-id` `:attach-btf-obj-id` | what it attaches to, as numbers. Linux 6.0              |

  Keys that do not apply, and counters that are zero, are missing. For a link, returns the same as
  `bpfmap.link/info`. Throws `:closed`. Needs Linux 4.13; 5.8 for a link.

      (:map-ids (info p)) ;=> [12]"
  [program]
  (let [fd (descriptor program :info)]
    (if (instance? Program program)
      (prog/info fd {:op :info :object :program})
      (link/info program))))

(defn pin!
  "Pins a program or a link at a path on a BPF file system; returns it.

  The pin keeps it alive after the process ends. A pinned link stays attached. Removing the file
  removes the pin. A path may be a string, a `java.io.File` or a `java.nio.file.Path`.

  Throws `:exists` if the target exists, `:not-bpffs` for a path on another file system,
  `:not-found` for a missing directory, `:invalid-value` for an empty path or a name with a dot,
  `:closed`. Needs Linux 4.4; 5.7 for a link.

      (pin! p \"/sys/fs/bpf/filter\")"
  [program path]
  (let [fd (descriptor program :pin!)
        path (call/path-text path :pin!)]
    (call/pin fd path {:op :pin! :path path :object :program})
    program))

;; --- what a program does

(defn instructions
  "Returns the instructions of an open program as data, as the kernel runs them.

  They are the instructions after the verifier, which inlines some calls, replaces others, and
  removes dead code. The result is a function for `bpfmap.asm/disassemble`:

  | key          | meaning                                                                        |
  |--------------|--------------------------------------------------------------------------------|
  | `:name`      | the name of the function in the program's BTF, or else the program's           |
  | `:type`      | a name from [[types]], or the number if it has none                            |
  | `:insns`     | the instructions, see `bpfmap.asm`                                             |
  | `:lines`     | source lines, as of `bpfmap.object/read`, if the program was loaded with them  |
  | `:functions` | name to function, if the program has more than one and BTF that names them     |

  References are names: `{:map \"flows\" :id 12}` for a map, with `:variable` and an offset in it for
  the address of a variable that the map's BTF names, `{:function name}` for a function of the
  program, a helper's name from `bpfmap.asm/helpers`, `{:kfunc name}` and `{:ksym name}` for other
  functions of the kernel. Their names are `?` if the kernel hides the addresses of its symbols
  (sysctl kernel.kptr_restrict). Instructions that only the kernel itself can make are `:insn`.

  Throws `:permission` without CAP_BPF, `:closed`, `:invalid-value` for anything that is not an
  open program. Needs Linux 4.13; 5.0 for source lines.

      (:insns (instructions p)) ;=> [[:mov64 :r0 0] [:exit]]
      (print (bpfmap.asm/disassemble (instructions p)))"
  [program]
  (check-program program :instructions)
  (instructions/instructions (descriptor program :instructions) {:op :instructions}))

(defn machine-code
  "Returns the machine code that the kernel made of an open program, by function.

  | key          | meaning                                                                        |
  |--------------|--------------------------------------------------------------------------------|
  | `:name`      | the name of the function in the program's BTF, or else the program's           |
  | `:type`      | a name from [[types]], or the number if it has none                            |
  | `:address`   | where the code is in the kernel, as in /proc/kallsyms. Linux 4.18              |
  | `:code`      | the bytes of the code, as a byte view                                          |
  | `:lines`     | source lines: `{:offset :file :line :column :text}`, the offset in bytes of `:code`. Linux 5.0 |
  | `:functions` | name to function, if the program has more than one                             |

  bpfmap does not disassemble the code of processors: see `prog dump --jited`.

  Throws `:not-found` if the kernel interprets the program, or without CAP_BPF, `:permission` if the
  kernel hides its addresses from this process (sysctl kernel.kptr_restrict, or no CAP_SYSLOG),
  `:closed`, `:invalid-value` for anything that is not an open program. Needs Linux 4.13.

      (count (:code (machine-code p))) ;=> 165"
  [program]
  (check-program program :machine-code)
  (instructions/machine-code (descriptor program :machine-code) {:op :machine-code}))

;; A descriptor with which the kernel measures.
(deftype Statistics [^Fd fd]
  Closeable
  (close [_] (call/close fd))
  Object
  (toString [_] (str "#<bpf-statistics" (when (.isClosed fd) " closed") ">")))

(defmethod print-method Statistics [s ^java.io.Writer w] (.write w (str s)))

(defn enable-statistics!
  "Makes the kernel measure the runs of all programs until the result is closed.

  While it is open, `:run-time-ns` and `:run-count` of [[info]] increase. Measuring costs each run
  some tens of nanoseconds. The kernel stops when no process has such a descriptor any more, also
  when this process is killed.

  Throws `:permission` without CAP_SYS_ADMIN, and `:not-supported` before Linux 5.8.

      (with-open [_ (enable-statistics!)]
        (test-run p)
        (:run-count (info p))) ;=> 1"
  ^Closeable []
  (Statistics. (prog/enable-statistics {:op :enable-statistics!})))

;; --- running and attaching

(defn test-run
  "Runs a loaded program without attaching it; returns the result.

  | option    | meaning                                                                 |
  |-----------|-------------------------------------------------------------------------|
  | `:data`   | the packet, as bytes; 14 or more for packet programs. Not for raw tracepoints |
  | `:context`| the context, as bytes: for a raw tracepoint its arguments, eight bytes each |
  | `:repeat` | the number of runs, default: 1                                          |

  Returns `{:return n :duration ns :data bytes}`: the program's r0 as 32 unsigned bits, the mean
  duration of one run in nanoseconds, and the packet afterwards.

  Throws `:invalid-value` for input that the program type does not accept, `:interrupted` if a
  signal ended the run, `:not-supported` for types that cannot be run this way. Needs Linux 4.12;
  5.10 for raw tracepoints.

      (:return (test-run p {:data (byte-array 14)})) ;=> 0"
  ([program] (test-run program nil))
  ([^Program program options]
   (check-program program :test-run)
   (options/check :test-run options)
   (try
     (let [{:keys [data context repeat]} options]
       (update (prog/test-run (.-fd program)
                              {:data (some-> data bytes/->array)
                               :context (some-> context bytes/->array)
                               :repeat repeat}
                              {:op :test-run})
               :data #(some-> % bytes/wrap)))
     (catch clojure.lang.ExceptionInfo e
       (throw (call/in-context e {:op :test-run}))))))

(defn attach-raw-tracepoint
  "Attaches a program of type `:raw-tracepoint`; returns the link.

  Does the same as `bpfmap.link/attach` with the target `{:raw-tracepoint tracepoint}`. Closing the
  link detaches the program. Keep a reference: the garbage collector closes links and programs
  without one. `tracepoint` is a name such as \"sys_enter\", as in
  /sys/kernel/tracing/available_events without the part before the colon.

  Throws `:not-found` for a name that this kernel lacks, `:invalid-value` for a program of another
  type, `:permission` without CAP_PERFMON. Needs Linux 4.17.

      (with-open [_ (attach-raw-tracepoint p \"sys_enter\")] (Thread/sleep 1000))"
  ^Link [program tracepoint]
  (check-program program :attach-raw-tracepoint)
  ;; Commands that only list programs load this namespace too, and start without the other.
  ((requiring-resolve 'bpfmap.impl.link.attach/attach)
   program {:raw-tracepoint tracepoint} nil {:op :attach-raw-tracepoint}))
