(ns ^:no-doc bpfmap.exec.demo
  "The command `demo`: a BPF program counts the system calls of the host in a map, or sends an event
  for each process that begins or ends a program.

  The program in the kernel writes to the map while this process reads it. Nothing is pinned, so
  everything is freed when the process ends."
  (:require [bpfmap.core :as bpf]
            [bpfmap.events :as events]
            [bpfmap.impl.host.syscalls :as syscalls]
            [bpfmap.impl.waiting :as waiting]
            [bpfmap.prog :as prog])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(def map-spec
  "The spec of the demo's map, from the number of a system call to its count."
  {:name "bpfmap_demo" :type :hash :key :u32 :value :u64 :max-entries 512})

;; --- the kernel's side

(defn- look-up
  "Returns instructions that look up the key at r10-4.

  They set r0 to the address of its value, or to 0 if the key does not exist."
  [m]
  [[:lddw :r1 m]
   [:mov64 :r2 :r10]
   [:add64 :r2 -4]
   [:call :map-lookup-elem]])

(defn- instructions
  "Returns the instructions of the program at the raw tracepoint sys_enter.

  Its arguments are the registers and the number of the call."
  [m]
  [[:ldxdw :r6 [:r1 8]]
   [:stxw [:r10 -4] :r6]
   (look-up m)
   [:jne :r0 0 :count]
   ;; The first call of this number: insert 1, unless another CPU just did.
   [:stdw [:r10 -16] 1]
   [:lddw :r1 m]
   [:mov64 :r2 :r10]
   [:add64 :r2 -4]
   [:mov64 :r3 :r10]
   [:add64 :r3 -16]
   [:mov64 :r4 1] ; BPF_NOEXIST
   [:call :map-update-elem]
   [:jeq :r0 0 :end]
   (look-up m)
   [:jeq :r0 0 :end] ; only when the map is full
   :count
   [:mov64 :r1 1]
   [:atomic-add64 [:r0 0] :r1]
   :end
   [:mov64 :r0 0]
   [:exit]])

;; --- counts as data

(defn calls
  "Returns the counted calls, most frequent first.

  Each is `{:number :name :count :per-second}`. The rate is computed from the `earlier` counts and
  the seconds in between.

      (calls {39 30} {39 10} 2.0) ;=> [{:number 39, :name \"getpid\", :count 30, :per-second 10.0}]"
  [counts earlier seconds]
  (->> (for [[number n] counts]
         {:number number
          :name (syscalls/syscall-name number)
          :count n
          :per-second (/ (Math/round (double (/ (* 1000 (- n (earlier number 0))) seconds)))
                         1000.0)})
       (sort-by (juxt (comp - :count) :number))
       vec))

(defn total
  "Returns the number of counted calls.

      (total {39 30, 1 2}) ;=> 32"
  [counts]
  (reduce + (vals counts)))

;; --- one run

(def ^:private frame-millis 250)

(def ^:private window-seconds
  "The live table shows the rates of about the last second."
  1.0)

(defn- with-sample
  "Adds a sample to `[[elapsed counts] …]`, and drops samples before the window."
  [samples [elapsed :as sample]]
  (let [behind? (fn [[t]] (<= window-seconds (- elapsed t)))]
    (loop [samples (conj samples sample)]
      (if (behind? (second samples))
        (recur (subvec samples 1))
        samples))))

(defn- watch
  "Waits for `stop` or until the seconds are over; returns the elapsed seconds.

  Calls `show` repeatedly, if given."
  [m seconds stop show]
  (let [began (System/nanoTime)
        elapsed #(/ (- (System/nanoTime) began) 1e9)]
    (loop [samples [[0.0 {}]]]
      (let [now (elapsed)
            left (long (Math/ceil (* 1000 (- seconds now))))]
        (cond
          (or (not (pos? left)) (realized? stop))
          now

          show
          (let [counts (into {} m)]
            (show {:samples samples :counts counts :elapsed now :seconds seconds})
            (waiting/value stop (min left frame-millis) nil :demo)
            (recur (with-sample samples [now counts])))

          :else
          (do (waiting/value stop left nil :demo)
              (recur samples)))))))

(defn observe
  "Counts until `stop` is delivered or the seconds are over.

  Returns `{:map :elapsed :counts :missed}`. The map is closed. The program misses a call if another
  thread makes it on the same processor while the program runs there, as some kernels let it."
  [seconds stop show]
  (with-open [^Closeable m (bpf/create map-spec)
              ^Closeable program (prog/load {:type :raw-tracepoint
                                             :name (:name map-spec)
                                             :insns (instructions m)})]
    (let [info (select-keys (bpf/info m) [:id :type :name])
          elapsed (with-open [^Closeable _ (prog/attach-raw-tracepoint program "sys_enter")]
                    (watch m seconds stop (when show #(show (assoc % :map info)))))]
      ;; The counts are final now, because the program is detached.
      {:map info :elapsed elapsed :counts (into {} m)
       :missed (:recursion-misses (prog/info program))})))

(defn result
  "Returns the result of a run as data.

  It has `:missed` if the program did not see all calls."
  [{:keys [elapsed counts missed] :as run}]
  (cond-> {:map (:map run) :seconds elapsed :total (total counts) :calls (calls counts {} elapsed)}
    missed (assoc :missed missed)))

;; --- events

(def ring-spec
  "The spec of the ring buffer of `demo` with `:events`."
  {:name "bpfmap_demo" :type :ringbuf :max-entries 262144})

(def event-type
  "The type of an event: a process started a program, or ended."
  [:struct
   [:kind [:enum :u32 {:exec 1 :exit 2}]]
   [:pid :u32]
   [:uid :u32]
   [:comm [:string 16]]])

(defn- sending
  "Returns the instructions of the program at the tracepoint of a kind of event."
  [m kind]
  [[:call :get-current-pid-tgid]
   [:mov64 :r6 :r0]
   [:rsh64 :r6 32] ; the process
   (when (= 2 kind)
     ;; The tracepoint is called for each thread. One of them has the number of the process.
     [[:mov32 :r0 :r0]
      [:jne :r0 :r6 :end]])
   [:stw [:r10 -28] kind]
   [:stxw [:r10 -24] :r6]
   [:call :get-current-uid-gid]
   [:stxw [:r10 -20] :r0]
   [:mov64 :r1 :r10]
   [:add64 :r1 -16]
   [:mov64 :r2 16]
   [:call :get-current-comm]
   [:lddw :r1 m]
   [:mov64 :r2 :r10]
   [:add64 :r2 -28]
   [:mov64 :r3 28]
   [:mov64 :r4 0]
   [:call :ringbuf-output]
   :end
   [:mov64 :r0 0]
   [:exit]])

(defn- sender ^Closeable [m kind]
  (prog/load {:type :raw-tracepoint :name (:name ring-spec) :insns (sending m kind)}))

(defn with-events
  "Calls f with the options of `tail` for the events of this host.

  Returns its result. The programs are attached during the call."
  [seconds f]
  (with-open [^Closeable m (bpf/create ring-spec)
              ^Closeable exec (sender m 1)
              ^Closeable exit (sender m 2)
              ^Closeable _ (prog/attach-raw-tracepoint exec "sched_process_exec")
              ^Closeable _ (prog/attach-raw-tracepoint exit "sched_process_exit")]
    (f {:ref m :value-type event-type :seconds seconds})))

(defn- read-events
  "Returns the events of some seconds as rows.

  The options are those of `tail`."
  [{:keys [ref value-type seconds]}]
  (with-open [^Closeable r (events/reader ref {:type value-type})]
    (let [begun (System/nanoTime)]
      (loop [rows []]
        (let [left (- (double seconds) (/ (- (System/nanoTime) begun) 1e9))
              event (when (pos? left) (events/poll! r left))]
          (if event (recur (conj rows {:value event})) rows))))))

(defn demo
  "Counts the system calls of the host for some seconds.

  With `:events`, returns an event for each program that was started and each process that ended.

      (demo {:seconds 1.0})
      ;=> {:map {:id 12, …}, :seconds 1.0, :total 4711, :calls [{:number 0, :name \"read\", :count 1200, …} …]}
      (demo {:seconds 1.0 :events true})
      ;=> [{:value {:kind :exec, :pid 4711, :uid 0, :comm \"ls\"}} …]"
  [{:keys [seconds events]}]
  (if events
    (with-events seconds read-events)
    (result (observe seconds (promise) nil))))
