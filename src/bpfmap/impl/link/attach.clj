(ns ^:no-doc bpfmap.impl.link.attach
  "Attaches programs: turns a target into what the kernel takes, and makes the link.

  `bpfmap.impl.link.targets` has the table of kinds; here is a function for each form of link."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.errno :as errno]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.link :as kernel.link]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.perf :as kernel.perf]
            [bpfmap.impl.kernel.tracefs :as tracefs]
            [bpfmap.impl.link.attach-types :as attach-types]
            [bpfmap.impl.link.functions :as functions]
            [bpfmap.impl.link.link :as link]
            [bpfmap.impl.link.targets :as targets]
            [bpfmap.impl.link.usdt :as usdt]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.open-object :as open-object]
            [bpfmap.impl.prog.program :as program]
            [clojure.string :as str])
  (:import (bpfmap.sys Fd)))

(set! *warn-on-reflection* true)

;; `request` is what all functions below take: {:program :target :kind :row :options :ctx}, with
;; the descriptor of the program, and `:type`, `:attach-type`, `:descriptions` and `:of-program` of
;; the program if they are known.

(defn- refused
  "Returns the exception for an errno.

  The table of targets explains it, or else that of errnos."
  ^Throwable [{:keys [kind target options ctx hints]} what outcome]
  (let [errno (errno/errno-name (- (long outcome)))
        [error hint] (or (some-> (get hints errno) force)
                         (targets/refusal kind errno {:release (call/kernel-release)
                                                      :options options}))]
    (if error
      (error/error error (str what " failed with " (if (keyword? errno) (name errno) errno))
                   {:bpfmap/op (:op ctx)
                    :bpfmap/errno errno
                    :bpfmap/errno-code (- (long outcome))
                    :bpfmap/target (error/shown target)
                    :bpfmap/hint hint})
      (call/failure what outcome ctx))))

(defn- create
  "Makes a link of the kernel; returns its descriptor."
  ^Fd [{:keys [program target ctx] :as request} link]
  (let [outcome (kernel.link/create (assoc link :program program) ctx)]
    (if (instance? Fd outcome)
      outcome
      (throw (refused request (str "Attaching to " (link/target-text target)) outcome)))))

(defn- flag-word [& names]
  (reduce bit-or 0 (map kernel.link/flags names)))

(defn- attach-number [k] (attach-types/numbers k))

;; --- tracing

(defn- raw-tracepoint [{:keys [target options kind] :as request}]
  [(create request {:form :raw-tracepoint
                    :values {:name (kind target) :cookie (:cookie options)}})])

(defn- check-security-module
  "Throws `:not-supported` if hooks of the BPF LSM are known to have no effect.

  The kernel attaches programs to them anyway, but never runs them."
  [{:keys [target ctx]}]
  (when-let [modules (call/security-modules)]
    (when-not (contains? modules "bpf")
      (throw (error/error :not-supported "The BPF LSM is not active in this kernel"
                          {:bpfmap/op (:op ctx)
                           :bpfmap/target (error/shown target)
                           :bpfmap/hint (str "the program would never run; boot the kernel with "
                                             "bpf in lsm=, which is "
                                             (str/join "," (sort modules)))})))))

(defn- tracing
  "Attaches a program that was loaded for its function.

  Without a cookie it is done as before Linux 5.19. So it is for a tracepoint with a cookie: before
  Linux 6.10, BPF_LINK_CREATE ignores the cookie, while BPF_RAW_TRACEPOINT_OPEN refuses it."
  [{:keys [options row type kind of-program] :as request}]
  (let [cookie (:cookie options)]
    (when (= :lsm kind)
      (check-security-module request))
    [(create (assoc request :hints
                    (let [again (if of-program
                                  (str "the kernel attaches a program to a function of another "
                                       "program once; load it again")
                                  "this kernel attaches such a program once; load it again")]
                      ;; ENOENT on 5.10, where it is so for functions of the kernel too
                      (cond-> {:ENOENT [:not-supported again]}
                        (and of-program (nil? cookie)) (assoc :EINVAL [:not-supported again]))))
             (if (and cookie (not= :tp-btf kind))
               {:form :tracing
                :attach-type (attach-number (first (get-in row [:programs type])))
                :values {:cookie cookie}}
               {:form :raw-tracepoint :values {:cookie cookie}}))]))

;; --- functions of other programs

(defn- with-program
  "Calls f with the descriptor of a program, which is open or opened by its id."
  [{:keys [program-id] :as x} ctx f]
  (cond
    (program/program? x)
    (f (program/descriptor x))

    program-id
    (let [fd (call/open-id :program program-id (assoc ctx :object :program))]
      (try
        (f fd)
        (finally (call/close fd))))

    :else
    (throw (targets/invalid [:program] (str ":program must be an open program, or "
                                            "{:program-id n}, got " (error/printed x)) nil))))

(defn- program-of-load
  "Returns the program that a program was loaded for; nil if it is unknown.

  The result is for [[with-program]]."
  [{:keys [program id]}]
  (when program
    (if (.isClosed (program/descriptor program)) {:program-id id} program)))

(defn- replacement
  "Attaches a program in place of a function of another program.

  The kernel keeps the other program of the load for the first attachment only. For any other, it
  takes program and function with BPF_LINK_CREATE, from Linux 5.10 on. Source:
  bpf_tracing_prog_attach in kernel/bpf/syscall.c."
  [{:keys [program target of-program ctx] :as request}]
  (let [attach-to (fn [other]
                    (with-program
                      other ctx
                      (fn [fd]
                        (let [id (requiring-resolve 'bpfmap.impl.prog.function/id-of)]
                          [(create request
                                   {:form :tracing
                                    :attach-type 0
                                    :target fd
                                    :values {:function (id fd (:freplace target) ctx
                                                           {:bpfmap/target
                                                            (error/shown target)})}})]))))
        other (program-of-load of-program)]
    (if-some [given (:program target)]
      (attach-to given)
      (let [link {:form :raw-tracepoint :program program}
            outcome (kernel.link/create link ctx)]
        (cond
          (instance? Fd outcome) [outcome]
          ;; ENOENT on 5.10
          (and other (#{:EINVAL :ENOENT} (errno/errno-name (- (long outcome))))) (attach-to other)
          :else (throw (refused request (str "Attaching to " (link/target-text target))
                                outcome)))))))

(defn- opened
  "Calls f with a descriptor of a file, directory or number; closes it afterwards."
  [x {:keys [op] :as ctx} f]
  (let [^Fd fd (if (and (map? x) (:fd x))
                 (call/duplicate-number (:fd x) ctx)
                 (call/open-file (call/path-text x op) true ctx))]
    (try
      (f fd)
      (finally (call/close fd)))))

(defn- iter [{:keys [target ctx] :as request}]
  (let [{:keys [map cgroup order pid tid]} target
        make (fn [words]
               [(create request {:form :iter
                                 :attach-type (attach-number :trace-iter)
                                 :values {:iterator words}})])]
    (cond
      map (if (and (satisfies? open-object/OpenObject map) (= :map (open-object/kind map)))
            (make [(open-object/descriptor map)])
            (throw (targets/invalid [:map] (str ":map must be an open map, got "
                                                (error/printed map)) nil)))
      cgroup (opened cgroup ctx #(make [(targets/orders (or order :descendants-pre)) %]))
      tid (make [tid])
      pid (make [0 pid])
      :else (make nil))))

;; --- perf events

(defn- close-all [fds]
  (run! call/close fds))

(defn- each-or-none
  "Returns `(mapv f xs)`, with the descriptors closed if one of the calls throws."
  [f xs]
  (reduce (fn [made x]
            (try
              (conj made (f x))
              (catch Throwable e
                (close-all made)
                (throw e))))
          [] xs))

(defn- link-of-event
  "Returns the link of a program and a perf event; nil if there are no such links.

  The kernel keeps the event for the link. Before Linux 5.15 the program belongs to the event."
  [{:keys [program] :as request} event cookie]
  (let [link {:form :perf-event :target event :attach-type (attach-number :perf-event)
              :values {:cookie cookie}}
        outcome (kernel.link/create (assoc link :program program) (:ctx request))]
    (cond
      (instance? Fd outcome)
      outcome

      (and (= :EINVAL (errno/errno-name (- (long outcome))))
           (nil? cookie)
           (zero? (long (kernel.perf/set-program event program))))
      nil

      :else
      (throw (refused request (str "Attaching to " (link/target-text (:target request))) outcome)))))

(defn- tracepoint-id [{:keys [target kind ctx]}]
  (let [[category name] (str/split (kind target) #"[/:]")]
    (tracefs/with-root
     (fn [root]
       (or (tracefs/tracepoint-id root category name)
           (when-let [option (and (= "syscalls" category)
                                  (not (tracefs/category? root category))
                                  "CONFIG_FTRACE_SYSCALLS")]
             (throw (error/error :not-supported "This kernel has no tracepoints of system calls"
                                 {:bpfmap/op (:op ctx)
                                  :bpfmap/target (error/shown target)
                                  :bpfmap/hint (str "it must be built with " option "; "
                                                    "raw_syscalls/sys_enter and sys_exit are "
                                                    "tracepoints of all system calls")})))
           (throw (error/error :not-found (str "No tracepoint " (error/printed (kind target)))
                               {:bpfmap/op (:op ctx)
                                :bpfmap/target (error/shown target)
                                :bpfmap/hint
                                (nearest/suggestion (str category "/" name)
                                                    (functions/similar
                                                     (str category "/" name)
                                                     (tracefs/tracepoints root))
                                                    (str "/sys/kernel/tracing/available_events "
                                                         "for all tracepoints"))}))))
     ctx)))

(defn- event-number [{:keys [type event]}]
  (let [[number names] (if (int? type) [type {}] (targets/event-types type))]
    (when-not number
      (throw (targets/invalid [:perf-event :type]
                              (str ":type must be a number or " (error/list-of
                                                                 (keys targets/event-types))
                                   ", got " (error/printed type)) nil)))
    [number
     (cond
       (and (int? event) (<= 0 (long event))) event
       (names event) (names event)
       :else (throw (targets/invalid [:perf-event :event]
                                     (str ":event must be a number"
                                          (when (seq names) " or the name of an event")
                                          ", got " (error/printed event))
                                     (when (seq names)
                                       (nearest/alternatives event (sort (keys names)))))))]))

(defn- perf-event-specs
  "Returns the perf events of a clock or counter: for each CPU, or for a thread."
  [{:keys [target]}]
  (let [{:keys [pid cpu] event :perf-event} target
        {:keys [period frequency]} event]
    (doseq [k (keys event) :when (not (#{:type :event :period :frequency} k))]
      (throw (targets/invalid [:perf-event k] (str "Unknown key " (error/printed k)
                                                   " of a perf event")
                              (nearest/alternatives k [:type :event :period :frequency]))))
    (doseq [[k n] {:period period :frequency frequency}
            :when (not (or (nil? n) (pos-int? n)))]
      (throw (targets/invalid [:perf-event k] (str k " must be a positive integer, got "
                                                   (error/printed n)) nil)))
    (when (= (some? period) (some? frequency))
      (throw (targets/invalid [:perf-event] "A perf event must have :period or :frequency"
                              (str ":period is a number of events, :frequency a number of samples "
                                   "a second"))))
    (let [[type config] (event-number (merge {:type :software :event :cpu-clock} event))]
      (for [cpu (cond
                  cpu [cpu]
                  pid [-1]
                  :else (kernel.perf/online-cpus))]
        {:type type :config config :samples (or frequency period) :frequency (some? frequency)
         :pid (or pid -1) :cpu cpu}))))

(defn- probe-type
  "Returns the number of the type of perf events that are probes."
  [probe {:keys [kind ctx target]}]
  (or (kernel.perf/event-type probe)
      (throw (error/error :not-supported (str "This kernel has no " probe "s")
                          {:bpfmap/op (:op ctx)
                           :bpfmap/target (error/shown target)
                           :bpfmap/hint (str "it must be built with "
                                             (get-in targets/kinds [kind :config])
                                             ", and be Linux 4.17 or newer")}))))

(defn- kprobe-spec
  [{:keys [target] :as request} function]
  {:type (probe-type "kprobe" request)
   :config (if (:return target) 1 0)
   :text function
   :config2 (:offset target 0)
   :pid -1 :cpu 0})

(defn- spec-of-place
  "Returns the perf event of a place in a file.
  `counter` is the offset of a reference counter, or nil."
  [path offset counter {:keys [target] :as request}]
  (let [{:keys [return pid]} target]
    {:type (probe-type "uprobe" request)
     :config (bit-or (if return 1 0) (bit-shift-left (long (or counter 0)) 32))
     :path path
     :config2 offset
     :pid (or pid -1)
     :cpu (if pid -1 0)}))

(defn- uprobe-spec [{:keys [target ctx] :as request}]
  (let [{:keys [uprobe symbol offset counter]} target
        path (functions/executable uprobe ctx)]
    (spec-of-place path
                   (first (functions/offsets path [(or symbol offset)]
                                             (if symbol (or offset 0) 0) ctx))
                   counter request)))

(defn- event-specs
  "Returns the perf events of a target."
  [{:keys [kind target] :as request}]
  (case kind
    :tracepoint [{:type (kernel.perf/types :tracepoint) :config (tracepoint-id request)
                  :samples 1 :pid -1 :cpu 0}]
    :perf-event (perf-event-specs request)
    :kprobe [(kprobe-spec request (kind target))]
    :ksyscall [(kprobe-spec request (functions/of-system-call (kind target)))]
    :uprobe [(uprobe-spec request)]))

(defn- function-hints
  "Returns the meaning of errnos for a function that may not exist."
  [{:keys [kind]} names]
  (let [missing (delay [:not-found (functions/missing (first names))])]
    (case kind
      (:kprobe :ksyscall) {:ENOENT missing}
      :kprobe-multi {:ESRCH (delay [:not-found (functions/missing
                                                (or (functions/first-missing names)
                                                    (first names)))])
                     :ENOENT missing}
      nil)))

(defn- links-of-events
  "Opens perf events with a program; returns their links, or the events.

  A spec is one of `bpfmap.impl.kernel.perf/open`, with the `:cookie` of its link."
  [{:keys [target] :as request} specs]
  (let [events (each-or-none
                (fn [spec]
                  (let [outcome (kernel.perf/open spec)]
                    (if (instance? Fd outcome)
                      outcome
                      (throw (refused (assoc-in request [:ctx :perf] :event)
                                      (str "Opening the perf event of " (link/target-text target))
                                      outcome)))))
                specs)
        links (try
                (each-or-none (fn [[event {:keys [cookie]}]]
                                (or (link-of-event request event cookie) event))
                              (map vector events specs))
                (catch Throwable e
                  (close-all events)
                  (throw e)))]
    (if (= links events)
      (with-meta events {:events true})
      (do (close-all events) ; a link keeps its event
          links))))

(defn- perf-event [{:keys [options] :as request}]
  (let [specs (event-specs request)]
    (links-of-events (assoc request :hints (function-hints request (keep :text specs)))
                     (map #(assoc % :cookie (:cookie options)) specs))))

;; --- many functions

(defn- multi-cookies [cookie n]
  (cond
    (nil? cookie) nil
    (sequential? cookie) (do (when-not (= n (count cookie))
                               (throw (targets/invalid [:cookie]
                                                       (str ":cookie must have one value for each "
                                                            "of the " n " functions, got "
                                                            (count cookie)) nil)))
                             cookie)
    :else (repeat n cookie)))

(defn- kprobe-multi [{:keys [target kind options ctx] :as request}]
  (let [{:keys [return session]} target
        names (functions/matching (kind target) ctx)
        request (assoc request :hints (function-hints request names))]
    [(create request
             {:form :kprobe-multi
              :attach-type (attach-number (if session :trace-kprobe-session :trace-kprobe-multi))
              :values {:flags (if return (flag-word :kprobe-return) 0)
                       :count (count names)
                       :functions names
                       :cookies (multi-cookies (:cookie options) (count names))}})]))

(defn- uprobe-multi [{:keys [target options ctx] :as request}]
  (let [{:keys [uprobe-multi symbols return session pid]} target
        path (functions/executable uprobe-multi ctx)
        offsets (functions/offsets path (or symbols (:offsets target)) 0 ctx)]
    [(create request
             {:form :uprobe-multi
              :attach-type (attach-number (if session :trace-uprobe-session :trace-uprobe-multi))
              :values {:path (paths/c-string path)
                       :offsets offsets
                       :count (count offsets)
                       :cookies (multi-cookies (:cookie options) (count offsets))
                       :flags (if return (flag-word :uprobe-return) 0)
                       :pid pid}})]))

;; --- probes of programs

(defn- many-places
  "Makes one link of the kernel for all places of a probe."
  [{:keys [target] :as request} path places]
  [(create request
           {:form :uprobe-multi
            :attach-type (attach-number :trace-uprobe-multi)
            :values {:path (paths/c-string path)
                     :offsets (map :offset places)
                     :counters (when (some :semaphore places)
                                 (map #(:semaphore % 0) places))
                     :cookies (when (every? :cookie places) (map :cookie places))
                     :count (count places)
                     :flags 0
                     :pid (:pid target)}})])

(defn- usdt-probe
  "Attaches a program to all places of a probe.

  If the program reads the arguments, describes them to it first."
  [{:keys [program target options attach-type descriptions ctx] :as request}]
  (when-not descriptions
    (usdt/check-describable program ctx))
  (let [path (functions/executable (:usdt target) ctx)
        found (usdt/places path target ctx)
        [places lease] (if descriptions
                         (usdt/describe! descriptions path found target options ctx)
                         [(map #(assoc % :cookie (:cookie options)) found) nil])]
    (try
      (vary-meta
       (if (= :trace-uprobe-multi attach-type)
         (many-places request path places)
         (links-of-events request
                          (map (fn [{:keys [offset semaphore cookie]}]
                                 (assoc (spec-of-place path offset semaphore request)
                                        :cookie cookie))
                               places)))
       assoc :lease lease)
      (catch Throwable e
        (some-> lease link/release!)
        (throw e)))))

;; --- networks and cgroups

(defn interface-index
  "Returns the index of an interface in the network namespace of the thread."
  [interface {:keys [op] :as ctx}]
  (if (int? interface)
    interface
    (let [outcome (call/interface-index interface)]
      (cond
        (nat-int? outcome) outcome
        (= :ENODEV (errno/errno-name (- (long outcome))))
        (throw (error/error :not-found (str "No network interface " (error/printed interface))
                            {:bpfmap/op op
                             :bpfmap/hint (nearest/alternatives interface
                                                                (call/interface-names))}))
        :else (throw (call/failure (str "Looking up the interface " interface) outcome ctx))))))

(defn- relative
  "Returns the flags and the number or descriptor for the neighbour of a link."
  [x path]
  (let [id? #(and (int? %) (<= 0 (long %) 0xffffffff))]
    (cond
      (= :all x) [0 nil]
      (link/link? x) [(flag-word :link) (link/descriptor x :attach)]
      (program/program? x) [0 (program/descriptor x)]
      (and (map? x) (= [:link-id] (keys x)) (id? (:link-id x)))
      [(flag-word :id :link) (:link-id x)]
      (and (map? x) (= [:program-id] (keys x)) (id? (:program-id x)))
      [(flag-word :id) (:program-id x)]
      :else (throw (targets/invalid path
                                    (str (first path) " must be :all, an open link or program, "
                                         "{:link-id n} or {:program-id n}, got "
                                         (error/printed x))
                                    nil)))))

(defn- order
  "Returns the flags and the fields for the place among other programs."
  [{:keys [before after revision]}]
  (let [[flag [flags neighbour]] (cond
                                   (some? before) [(flag-word :before) (relative before [:before])]
                                   (some? after) [(flag-word :after) (relative after [:after])]
                                   :else [0 [0 nil]])]
    {:flags (bit-or (long flag) (long flags))
     :values {:relative neighbour :revision revision}}))

(defn- device [{:keys [kind target row options type ctx] :as request}]
  (let [interface (if (= :xdp kind) (:xdp target) (:interface target))
        attach-type (or (get-in row [:attach-types (kind target)])
                        (first (get-in row [:programs type])))
        {:keys [flags values]} (order options)]
    [(create (assoc request :hints
                    {:ENODEV [:not-found (str "the network interface " (error/printed interface)
                                              " does not exist (any more)")]})
             {:form (if (:order row) :ordered :plain)
              :target (interface-index interface ctx)
              :attach-type (attach-number attach-type)
              :flags (if (:order row) flags (targets/xdp-modes (:mode target) 0))
              :values values})]))

(defn- chosen-attach-type
  "Returns the attach type of a program that has a choice.

  From the target, or from the definition of the program, or the only one of its type."
  [{:keys [kind target row type attach-type]}]
  (let [possible (get-in row [:programs type])
        given (or (:attach-type target) attach-type
                  (when (= 1 (count possible)) (first possible))
                  (when (= :cgroup-sock type) :cgroup-inet-sock-create))]
    (when-not (some #{given} possible)
      (throw (targets/invalid [:attach-type]
                              (str "A target " kind " of a program of type " type
                                   " must have an :attach-type of the program, got "
                                   (error/printed given))
                              (nearest/alternatives given possible))))
    given))

(defn- cgroup [{:keys [target options ctx] :as request}]
  (let [attach-type (chosen-attach-type request)
        {:keys [flags values]} (order options)]
    (when (= :lsm-cgroup attach-type)
      (check-security-module request))
    (opened (:cgroup target) ctx
            (fn [fd]
              [(create request {:form :ordered :target fd :attach-type (attach-number attach-type)
                                :flags flags :values values})]))))

(defn- netns [{:keys [kind target row type ctx] :as request}]
  (let [place (kind target)]
    (opened (if (= :self place) "/proc/thread-self/ns/net" place) ctx
            (fn [fd]
              [(create (assoc request :hints
                              {:EINVAL [:invalid-value (str (error/printed place)
                                                            " must be a network namespace")]})
                       {:form :plain :target fd
                        :attach-type (attach-number (first (get-in row [:programs type])))})]))))

(defn- netfilter [{:keys [target] :as request}]
  (let [{:keys [netfilter hook priority defragment]} target]
    [(create request {:form :netfilter
                      :attach-type (attach-number :netfilter)
                      :values {:family (kernel.link/families netfilter)
                               :hook (kernel.link/hooks hook)
                               :priority (or priority 0)
                               :flags (if defragment (flag-word :defragment) 0)}})]))

(defn- open-map
  "Returns the descriptor of an open map in a target."
  ^Fd [kind x]
  (if (and (satisfies? open-object/OpenObject x) (= :map (open-object/kind x)))
    (open-object/descriptor x)
    (throw (targets/invalid [kind] (str kind " must be an open map, got " (error/printed x)) nil))))

(defn- sockmap [{:keys [target] :as request}]
  [(create request {:form :plain :target (open-map :sockmap (:sockmap target))
                    :attach-type (attach-number (chosen-attach-type request))})])

(defn- struct-ops [request]
  [(create request {:form :plain :attach-type (attach-number :struct-ops)})])

;; --- attaching

(def ^:private makers
  "Functions of a request that return the descriptors of a new link, by form."
  {:raw-tracepoint raw-tracepoint, :tracing tracing, :replacement replacement, :iter iter
   :perf-event perf-event
   :kprobe-multi kprobe-multi, :uprobe-multi uprobe-multi, :usdt usdt-probe
   :device device, :cgroup cgroup
   :netns netns, :netfilter netfilter, :sockmap sockmap, :struct-ops struct-ops})

(defn- make
  "Makes the link of a request that was checked."
  [{:keys [row target ctx] :as request}]
  (try
    (let [fds ((makers (:form row)) request)
          {:keys [events lease]} (meta fds)]
      (if events
        (link/of-events fds target lease)
        (link/of fds target lease)))
    (catch RuntimeException e
      (throw (call/in-context e ctx)))))

(defn- without-target
  "Returns the exception for a program that needs a target."
  ^Throwable [program]
  (let [{:keys [section] :as definition} (program/definition program)]
    (error/error :invalid-value
                 (if section
                   (str "The section " (error/printed section) " has no complete target")
                   "The program has no section that has a target")
                 {:bpfmap/op :attach
                  :bpfmap/hint (if-let [example (targets/example definition)]
                                 (str "give a target such as " example)
                                 "give a target; bpfmap.link/targets has all kinds")})))

(defn target-of
  "Returns the target in the section of a program, as data; nil if it has none."
  [program]
  (targets/of-section (program/definition program)))

(defn attach
  "Attaches a program to a target; returns the link."
  ([program target options] (attach program target options {:op :attach}))
  ([program target options ctx]
   (let [target (targets/check (or target (target-of program) (throw (without-target program))))
         kind (targets/kind-of target)]
     (targets/check-program kind (program/type-of program))
     (targets/check-options kind options)
     (make {:program (program/descriptor program)
            :type (program/type-of program)
            :attach-type (:attach-type (program/definition program))
            :descriptions (:usdt (program/definition program))
            :of-program (:of-program (program/definition program))
            :target target
            :kind kind
            :row (targets/kinds kind)
            :options options
            :ctx (assoc ctx :program-type (program/type-of program))}))))

(defn attach-map
  "Registers the struct of functions in a map; returns the link."
  [m options]
  (targets/check-options :struct-ops options)
  (make {:program (open-object/descriptor m)
         :target {:struct-ops m}
         :kind :struct-ops
         :row (targets/kinds :struct-ops)
         :ctx {:op :attach}}))

;; --- what is attached

(defn attached
  "Returns the programs of a device or cgroup in order: `{:revision :programs}`."
  [target]
  (let [ctx {:op :attached}
        target (targets/check target)
        kind (targets/kind-of target)
        row (targets/kinds kind)
        query (fn [place attach-type]
                (let [outcome (kernel.link/attached place (attach-number attach-type) ctx)]
                  (if (map? outcome)
                    outcome
                    (throw (refused {:kind kind :target target :ctx ctx}
                                    (str "Reading what is attached to " (error/printed target))
                                    outcome)))))]
    (try
      (case kind
        (:tcx :netkit) (query (interface-index (:interface target) ctx)
                              (get-in row [:attach-types (kind target)]))
        :cgroup (let [attach-type (:attach-type target)]
                  (when-not (attach-number attach-type)
                    (throw (targets/invalid [:attach-type]
                                            (str "A target :cgroup must have an :attach-type here, "
                                                 "got " (error/printed target))
                                            (nearest/suggestion
                                             attach-type (sort (mapcat val (:programs row)))
                                             "bpfmap.prog/attach-types for all names"))))
                  (opened (:cgroup target) ctx #(query % attach-type)))
        (throw (error/error :not-supported (str "The kernel has no list of programs for " kind)
                            {:bpfmap/op :attached
                             :bpfmap/hint "it has one for :tcx, :netkit and :cgroup"})))
      (catch RuntimeException e
        (throw (call/in-context e ctx))))))
