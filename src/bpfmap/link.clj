(ns bpfmap.link
  "Attaches loaded programs, and works with links: the attachments of the kernel.

      (with-open [p (prog/load {:type :raw-tracepoint :insns [[:mov64 :r0 0] [:exit]]})
                  l (attach p {:raw-tracepoint \"sys_enter\"})]
        (info l)) ;=> {:id 12 :type :raw-tracepoint :program-id 7 :tracepoint \"sys_enter\"}

  A target is data: a map with one key that is its kind, such as `{:tracepoint
  \"sched/sched_switch\"}` or `{:tcx :ingress :interface \"eth0\"}`. [[targets]] has all kinds. A link
  is closed with `.close` or `with-open`; then the program is detached, unless the link is pinned.
  Keep a reference: the garbage collector closes links without one. If the process ends, also by
  SIGKILL, its links end too.

  An open link is compared by identity, printed without a system call, and `datafy` returns its
  [[info]]. Links need Linux 5.7, and their ids 5.8; each kind needs the release in [[targets]]."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.errno :as errno]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.link :as kernel.link]
            [bpfmap.impl.kernel.prog :as kernel.prog]
            [bpfmap.impl.link.attach :as attach]
            [bpfmap.impl.link.functions :as functions]
            [bpfmap.impl.link.link :as link]
            [bpfmap.impl.link.output :as output]
            [bpfmap.impl.link.targets :as targets]
            [bpfmap.impl.link.usdt :as usdt]
            [bpfmap.impl.open-object :as open-object]
            [bpfmap.impl.prog.program :as program])
  (:import (bpfmap.impl.link.link Link)
           (bpfmap.impl.link.output Output)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(def targets
  "Kinds of targets as data, by the key that is the kind.

  | key         | meaning                                                             |
  |-------------|---------------------------------------------------------------------|
  | `:meaning`  | a text                                                              |
  | `:value`    | the constraint of the value of the kind's key, as a text            |
  | `:keys`     | further keys, each with its constraint                              |
  | `:required` | those of them that are required                                     |
  | `:programs` | the types of programs that have such targets                        |
  | `:sections` | the names of sections whose programs have such targets              |
  | `:since`    | the first Linux release with links of this kind                     |
  | `:config`   | the option of the kernel that it requires, if many kernels lack it  |
  | `:cookie` `:order` | the first Linux release with `:cookie`, and with `:before`, `:after` and `:revision` |

      (:since (:tcx targets)) ;=> \"6.6\""
  (update-vals targets/kinds
               (fn [{:keys [value programs sections required] more :keys :as row}]
                 (into {:value (second value)
                        :programs (vec (keys programs))
                        :sections (vec (sort (keys sections)))}
                       (remove (comp nil? val))
                       (assoc (select-keys row [:meaning :since :config :cookie :order])
                              :keys (some-> more (update-vals second))
                              :required required)))))

(defn probes
  "Returns the USDT probes of a program or shared library.

  The file is a path, or a name as in a target `:usdt`. The probes have the order of the file. One
  that the compiler has copied is there once for each of its places:

  | key                  | meaning                                                     |
  |----------------------|-------------------------------------------------------------|
  | `:provider` `:name`  | the names of the probe                                      |
  | `:arguments`         | the operands that have its arguments, as the compiler wrote them |
  | `:offset`            | the place in the file                                       |
  | `:semaphore`         | the place of its semaphore in the file, if it has one       |

  Throws `:not-found` for a file that does not exist, `:invalid-value` for one that is not a 64-bit
  ELF file.

      (probes \"libc\")
      ;=> [{:provider \"libc\" :name \"setjmp\" :arguments \"8@%rdi -4@%esi 8@%rax\" :offset 248304}]"
  [file]
  (let [ctx {:op :probes}]
    (mapv #(select-keys % [:provider :name :arguments :offset :semaphore])
          (usdt/probes (functions/executable file ctx) ctx))))

(defn- open-map? [x]
  (and (satisfies? open-object/OpenObject x) (= :map (open-object/kind x))))

(defn target
  "Returns the target in the section of a program, as data; nil if it has none.

  Programs of an object have a section. Sections such as \"xdp\" have no interface; then the target
  must be given to [[attach]].

      (target p) ;=> {:kprobe \"do_unlinkat\" :return true}"
  [program]
  (when-not (program/program? program)
    (throw (error/error :invalid-value (str "The program must be an open program, got "
                                            (error/printed program))
                        {:bpfmap/op :target})))
  (attach/target-of program))

(defn attach
  "Attaches a program to a target; returns the link.

  Without a target, attaches it to the [[target]] of its section. Of a struct_ops, attach the open
  map that has the struct as its value: `(attach m)`.

  | option           | meaning                                                               |
  |------------------|-----------------------------------------------------------------------|
  | `:cookie`        | an unsigned 64-bit integer, which the program reads with the helper   |
  |                  | get-attach-cookie; of many functions also a vector, one for each      |
  | `:before` `:after` | an open link or program, `{:link-id n}`, `{:program-id n}`, or `:all` |
  | `:revision`      | attach only if nothing was attached or detached since [[attached]]    |
  |                  | returned this revision                                                |

  If attaching fails half-way, such as on one of several CPUs, nothing stays attached.

  Throws `:invalid-value` for a target or program that does not fit; `:not-found` for a function,
  tracepoint, interface, cgroup or file that does not exist, with near names; `:not-supported` for
  what this kernel lacks, with the release or the option of the kernel that has it; `:busy` and
  `:exists` for a hook that is taken; `:permission`, for tracing without CAP_PERFMON.

      (attach p)
      (attach p {:uprobe \"libc\" :symbol \"malloc\"} {:cookie 7})
      (attach p {:tcx :ingress :interface \"eth0\"} {:before :all})"
  (^Link [program] (attach program nil nil))
  (^Link [program target] (attach program target nil))
  (^Link [program target options]
   (cond
     (program/program? program)
     (attach/attach program target options)

     (and (open-map? program)
          (or (nil? target) (and (map? target) (identical? program (:struct-ops target)))))
     (attach/attach-map program options)

     :else
     (throw (error/error :invalid-value
                         (str "The program must be an open program"
                              (when-not (open-map? program) " or the map of a struct_ops")
                              ", got " (error/printed program))
                         {:bpfmap/op :attach})))))

;; --- links that exist

(defn- adopt
  "Returns a link for a descriptor that was just opened."
  ^Link [fd ctx]
  (try
    (link/of [fd] (dissoc (kernel.link/info fd ctx) :program-id))
    (catch Throwable e
      (call/close fd)
      (throw e))))

(defn open
  "Opens an existing link by id, pin path or `{:fd …}`.

  `{:id n}`, `{:link-id n}` and `{:path p}` are accepted too. A descriptor is duplicated; the caller
  still owns the original. While it is open here, a link of another process does not end.

  Throws `:not-found`; `:not-a-link` for a pinned map or program, which the hint names;
  `:invalid-value` for an invalid reference; `:not-bpffs` for a path on another file system. Opening
  by id needs Linux 5.8 and CAP_SYS_ADMIN; by path, Linux 5.7 and the file's permission.

      (open {:link-id 12})
      (open \"/sys/fs/bpf/link\")"
  ^Link [ref]
  (call/open-reference :link ref adopt))

(defn link?
  "Returns true for an open or closed link.

      (link? l) ;=> true"
  [x]
  (link/link? x))

(defn- check-link ^Link [x op]
  (if (link/link? x)
    x
    (throw (error/error :invalid-value (str "The link must be a result of attach or open, got "
                                            (error/printed x))
                        {:bpfmap/op op}))))

(defn info
  "Returns the current state of an open link from the kernel.

  The keys are those of `bpfmap.host/links`. A link of a perf event on several CPUs consists of one
  link of the kernel for each, whose ids are in `:ids`; the rest is that of the first. A device that
  was removed has no `:ifindex` any more. Throws `:closed`, and `:not-supported` before Linux 5.15
  for links of perf events. Needs Linux 5.8.

      (info l) ;=> {:id 12 :type :xdp :program-id 7 :ifindex 2}"
  [link]
  (link/info (check-link link :info)))

(defn attached
  "Returns the programs of a hook in the order of their runs, with its revision.

  The target is one of kind `:tcx`, `:netkit` or `:cgroup`, this with `:attach-type`. Programs that
  are attached without a link have no `:link-id`. `:revision` is for the option of [[attach]]; it is
  0 if the kernel has none. Throws `:not-found` for an interface or cgroup that does not exist,
  `:not-supported` for other targets. Needs Linux 6.6, 4.15 for cgroups.

      (attached {:tcx :ingress :interface \"eth0\"})
      ;=> {:revision 3 :programs [{:program-id 7 :link-id 12}]}"
  [target]
  (attach/attached target))

(defn- type-of-program
  "Returns the type of the program of a link; nil if it cannot be read."
  [program-id]
  (try
    (let [ctx {:op :update! :object :program}
          fd (call/open-id :program program-id ctx)]
      (try
        (:type (kernel.prog/info fd ctx))
        (finally (call/close fd))))
    (catch clojure.lang.ExceptionInfo _ nil)))

(defn- update-refusal
  "Returns the meaning of an errno of an update; nil if it has none.

  The meaning is `[error hint]`."
  [errno {:keys [type program-id]} new-type]
  (let [old-type (when program-id (type-of-program program-id))]
    (case errno
      :ENOLINK [:not-found (str "the link was detached, or its "
                                (case type
                                  (:xdp :tcx :netkit) "network interface"
                                  :cgroup "cgroup"
                                  :netns "network namespace"
                                  "target")
                                " was removed; close it")]
      :EPERM [:incompatible "the link was changed by somebody else meanwhile"]
      (:EINVAL :EOPNOTSUPP :ENOTSUPP)
      (cond
        (#{:raw-tracepoint :tracing :perf-event :kprobe-multi :uprobe-multi :iter :netfilter} type)
        [:not-supported (str "the kernel never replaces the program of a link of type " type
                             "; attach the new program, then close this link")]
        (and old-type (not= old-type new-type))
        [:invalid-value (str "the link has a program of type " old-type
                             ", and the new one must have the same type, got " new-type)]
        :else
        [:invalid-value (str "the new program must be loaded for the same attach type as the one "
                             "that it replaces")])
      nil)))

(defn- update-error
  "Returns the exception for a link and a program whose update was refused."
  ^Throwable [link fd program-type outcome]
  (let [ctx {:op :update! :object :link}
        errno (errno/errno-name (- (long outcome)))
        [error hint] (update-refusal errno (kernel.link/info fd ctx) program-type)]
    (if error
      (error/error error (str "Updating " link " failed with "
                              (if (keyword? errno) (name errno) errno))
                   {:bpfmap/op :update! :bpfmap/errno errno
                    :bpfmap/errno-code (- (long outcome)) :bpfmap/hint hint})
      (call/failure (str "Updating " link) outcome ctx))))

(defn update!
  "Replaces the program of a link, without a moment in between; returns the link.

  Of a struct_ops, the other map. Packets and calls that are being handled still use the old
  program. The new program must have the same type. Works for links of types `:xdp`, `:tcx`,
  `:netkit`, `:cgroup`, `:netns`, `:sockmap` and `:struct-ops`.

  Throws `:not-supported` for other links, and the hint tells what to do; `:invalid-value` for a
  program of another type; `:not-found` if the device, cgroup or network namespace is gone;
  `:closed`. Needs Linux 5.7.

      (update! l new-program)"
  [link program]
  (let [fd (link/descriptor (check-link link :update!) :update!)
        map? (open-map? program)]
    (when-not (or map? (program/program? program))
      (throw (error/error :invalid-value (str "The program must be an open program, got "
                                              (error/printed program))
                          {:bpfmap/op :update!})))
    (let [outcome (kernel.link/update-program fd (open-object/descriptor program) {:op :update!})]
      (when (neg? (long outcome))
        (throw (update-error link fd
                             (if map? :struct-ops (program/type-of program))
                             outcome)))
      link)))

(defn detach!
  "Detaches the program of a link, which stays open; returns the link.

  Works for links of types `:xdp`, `:tcx`, `:netkit`, `:cgroup`, `:netns`, `:netfilter`, `:sockmap`
  and `:struct-ops`, also for pinned ones and those of other processes: they are detached for all.
  The kernel ends a link of another type only when it is closed by all and has no pin.

  Throws `:not-supported` for these, `:closed`. Needs Linux 5.9.

      (detach! (open {:link-id 12}))"
  [link]
  (kernel.link/detach (link/descriptor (check-link link :detach!) :detach!)
                      {:op :detach! :object :link})
  link)

(defn pin!
  "Pins a link at a path on a BPF file system; returns it.

  The program stays attached until the file is removed, also when the link is closed and the process
  has ended. A path may be a string, a `java.io.File` or a `java.nio.file.Path`.

  Throws `:exists` if the target exists, `:not-bpffs` for a path on another file system,
  `:not-found` for a missing directory, `:invalid-value` for an empty path or a name with a dot,
  `:not-supported` for a link of several CPUs, `:closed`. Needs Linux 5.7.

      (pin! l \"/sys/fs/bpf/link\")"
  [link path]
  (let [fd (link/descriptor (check-link link :pin!) :pin!)
        path (call/path-text path :pin!)]
    (call/pin fd path {:op :pin! :path path :object :link})
    (link/pinned! link)
    link))

;; --- iterators

(defn- iterator-descriptor [link op]
  (let [fd (link/descriptor (check-link link op) op)
        {:keys [type]} (kernel.link/info fd {:op op :object :link})]
    (when-not (= :iter type)
      (throw (error/error :invalid-value (str "The link must be of an iterator, got one of type "
                                              type)
                          {:bpfmap/op op})))
    fd))

(defn lines
  "Returns the lines that an iterator prints, as something to `reduce`.

  Each reduction is a pass of its own, from the first object of the kernel to the last, which sees
  the objects as they are when it comes to them. Ends early by `reduced`. Nothing is read before,
  and nothing is kept. A line longer than 1 MiB comes in parts.

  Throws `:invalid-value` for a link of another type, `:closed`. Needs Linux 5.8.

      (with-open [l (attach p {:iter \"task\"})]
        (into [] (take 3) (lines l))) ;=> [\"1 systemd\" \"2 kthreadd\" \"3 rcu_gp\"]"
  ^Output [link]
  (output/lines link (iterator-descriptor link :lines)))

(defn records
  "Returns the records that an iterator writes, decoded, as something to `reduce`.

  Does the same as [[lines]] for programs that write structs with the helper seq-write. The type is
  data as in `bpfmap.type`. Throws `:invalid-value` for a type whose size does not divide the output.

      (into [] (records l [:struct [:id :u32] [:entries :u32]])) ;=> [{:id 12 :entries 1024}]"
  ^Output [link type]
  (output/records link (iterator-descriptor link :records) type nil))

(defn close
  "Closes a link.
  Idempotent.

      (close l)"
  [link]
  (.close ^Closeable (check-link link :close)))
