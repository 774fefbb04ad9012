(ns ^:no-doc bpfmap.impl.events.perf
  "Opens the buffers of a perf event array: own ones, or those of another process to look at.

  A slot of the array has one perf event. Storing another one takes the events of that CPU away from
  its reader. When that one is taken out, the slot is empty."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.kernel.perf :as kernel.perf]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.prog :as prog])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.sys EventSource)
           (clojure.lang ExceptionInfo)
           (java.io Closeable IOException)))

(set! *warn-on-reflection* true)

(def ^:private default-pages 64)

;; --- slots

(def ^:private empty-slot
  "Result of the helper for a slot without a perf event: -ENOENT, as 32 bits."
  0xfffffffe)

(defn- occupied
  "Returns the CPUs, of those given, whose slots have a perf event; nil if unknown.

  The kernel reads slots for programs only. So this runs one, for which it needs Linux 5.10 and
  CAP_PERFMON."
  [m cpus]
  (try
    (with-open [probe ^Closeable (prog/load {:type :raw-tracepoint
                                             :insns [[:ldxdw :r2 [:r1 0]]
                                                     [:lddw :r1 m]
                                                     [:call :perf-event-read]
                                                     [:exit]]})]
      (filterv (fn [cpu]
                 (let [context (concat (map #(bit-and 0xff (bit-shift-right (long cpu) (long %)))
                                            [0 8])
                                       (repeat 6 0))]
                   (not= empty-slot (:return (prog/test-run probe {:context context})))))
               cpus))
    (catch ExceptionInfo e
      (when-not (#{:permission :not-supported :program-rejected :invalid-value}
                 (:bpfmap/error (ex-data e)))
        (throw e)))))

(defn- perf-events? [{:keys [pid]}]
  (try
    (boolean (seq (kernel.perf/event-numbers pid)))
    (catch IOException _ false)))

(defn- owners
  "Returns the processes that have a perf event array open, and perf events.

  This one counts only with descriptors of perf events, too."
  [m]
  (filterv perf-events? (holders/holders m)))

(defn- this-process? [{:keys [pid]}]
  (= pid (.pid (java.lang.ProcessHandle/current))))

(defn- busy-error ^Throwable [m who cpus op]
  (let [identity (bpf-map/identity-of m)]
    (error/error
     :busy
     (str "Map " (error/id-and-name identity) " has a reader"
          (when (seq cpus)
            (str ", on CPU" (when (next cpus) "s") " " (error/list-of cpus "and"))))
     {:bpfmap/op op
      :bpfmap/map identity
      :bpfmap/holders (vec who)
      :bpfmap/cpus (vec cpus)
      :bpfmap/hint
      (str (if (empty? who)
             "no process that has it open has perf events, but its slots are in use"
             (str (error/list-of (for [{:keys [pid command] :as p} who]
                                   (if (this-process? p)
                                     (str pid " (this process)")
                                     (str pid " (" command ")")))
                                 "and")
                  (if (next who) " have" " has") " it open, and perf events"))
           "; another reader would take the events away for good, also after it is closed; use "
           "peek, which takes nothing, or {:steal true}")})))

(defn- check-unused
  "Throws `:busy` if a slot of the CPUs has a perf event."
  [m cpus op]
  (let [in-use (occupied m cpus)
        who (delay (owners m))]
    (cond
      (seq in-use) (throw (busy-error m @who in-use op))
      (and (nil? in-use) (seq (remove this-process? @who)))
      (throw (busy-error m (vec (remove this-process? @who)) nil op)))))

;; --- consuming

(defn- check-access [^BpfMap m]
  (when (= :read-only (.-access m))
    (let [identity (bpf-map/identity-of m)]
      (throw (error/error :read-only (str "Map " (error/id-and-name identity)
                                          " was opened read-only")
                          {:bpfmap/op :reader :bpfmap/map identity
                           :bpfmap/hint (str "a reader stores perf events in it; use peek, or open "
                                             "it with {:access :read-write}")})))))

(defn- own-descriptor
  "Returns `[fd empties?]`: a descriptor for storing perf events.

  `empties?` is true if closing it empties their slots.

  Opened by id it is a file of its own: the kernel empties the slots that were filled through it,
  and no others. A duplicate is the same file as the handle's."
  [m ctx]
  (try
    [(kernel.map/open-id (:id (bpf-map/identity-of m)) :read-write ctx)
     (not (contains? (:flags (bpf-map/spec-of m)) :preserve-elems))]
    (catch ExceptionInfo e
      (if (#{:permission :not-supported} (:bpfmap/error (ex-data e)))
        [(call/duplicate (bpf-map/descriptor m) ctx) false]
        (throw e)))))

(defn- close-buffers [buffers]
  (run! #(.close ^EventSource %) buffers))

(defn- open-buffers
  "Returns the buffers of the CPUs that are online."
  [cpus options ctx]
  (reduce (fn [opened cpu]
            (try
              (let [buffer (kernel.perf/buffer cpu options ctx)]
                (cond-> opened buffer (conj buffer)))
              (catch Throwable e
                (close-buffers opened)
                (throw e))))
          [] cpus))

(defn- store-all
  "Stores the perf events of buffers in the map.

  Returns a function that takes them out again. If one cannot be stored, takes out those before it."
  [m buffers ctx]
  (let [[fd empties?] (own-descriptor m ctx)
        stored (volatile! [])
        take-out (fn []
                   (try
                     (when-not empties?
                       (doseq [cpu @stored]
                         (kernel.perf/clear fd cpu ctx)))
                     (finally (call/close fd))))]
    (try
      (doseq [^EventSource buffer buffers]
        (kernel.perf/store fd buffer ctx)
        (vswap! stored conj (.cpu buffer)))
      take-out
      (catch Throwable e
        (take-out)
        (throw e)))))

(def ^:private opening
  "The lock of opening.

  Without it, two readers of this process could both find the slots empty."
  (Object.))

(defn- stored-buffers
  "Stores the perf events of buffers in the map; returns hooks of their reader.

  `m` is a handle of the reader's own, which `:on-close` closes. `check` throws if somebody else
  uses the slots. A paused reader has no perf event in the map; its buffers stay mapped."
  [m buffers check ctx]
  (let [slots (Object.)
        take-out (volatile! (store-all m buffers ctx)) ; nil while paused
        closed (volatile! false)
        pause (fn []
                (when-let [f @take-out]
                  (vreset! take-out nil)
                  (f)
                  true))]
    {:pause (fn [_]
              (locking slots
                (if @closed :closed (boolean (pause)))))
     :resume (fn [op]
               (locking opening
                 (locking slots
                   (cond
                     @closed :closed
                     @take-out false
                     :else (do (check op)
                               (vreset! take-out (store-all m buffers (assoc ctx :op op)))
                               true)))))
     :on-close (fn []
                 (locking slots
                   (vreset! closed true)
                   (try
                     (pause)
                     (finally (.close ^Closeable m)))))}))

(defn- check-watermark
  "Throws `:invalid-value` if a buffer is too small to hold `:wakeup-bytes`."
  [{:keys [pages wakeup-bytes]} op]
  (let [size (* (long pages) (long (call/page-size)))]
    (when (and wakeup-bytes (<= size (long wakeup-bytes)))
      (throw (error/error :invalid-value
                          (str ":wakeup-bytes must be less than the " size " bytes of a buffer, got "
                               wakeup-bytes)
                          {:bpfmap/op op
                           :bpfmap/hint (str "the kernel would lose events before it wakes the "
                                             "reader; use fewer bytes, or more :pages")})))))

(defn consuming
  "Opens the buffers of the CPUs that are online, and stores them in the map.

  Returns `{:sources :padded}` and hooks for `bpfmap.impl.events.reader/open`."
  [m {:keys [steal] :as options} op]
  (check-access m)
  (let [options (update options :pages #(or % default-pages))
        _ (check-watermark options op)
        ctx {:op op :map (bpf-map/identity-of m) :type :perf-event-array
             :fd (bpf-map/descriptor m)}
        slots (long (:max-entries (bpf-map/spec-of m)))
        cpus (filterv #(< (long %) slots) (kernel.perf/online-cpus))]
    (call/check-open (:fd ctx) ctx)
    (locking opening
      (let [m (lifecycle/clone m)
            check (if steal (constantly nil) #(check-unused m cpus %))]
        (try
          (check op)
          (let [buffers (open-buffers cpus options ctx)]
            (try
              (assoc (stored-buffers m buffers check (assoc ctx :fd (bpf-map/descriptor m)))
                     :sources buffers :padded true)
              (catch Throwable e
                (close-buffers buffers)
                (throw e))))
          (catch Throwable e
            (.close ^Closeable m)
            (throw e)))))))

;; --- looking at the buffers of others

(defn- perf-arrays-of
  "Returns the ids of the perf event arrays that a process has open."
  [{:keys [pid]} ctx]
  (filterv (fn [id]
             (try
               (let [fd (kernel.map/open-id id :read-only ctx)]
                 (try
                   (= :perf-event-array (:type (kernel.map/info fd ctx nil)))
                   (finally (call/close fd))))
               (catch ExceptionInfo _ false)))
           (holders/maps-of-process pid)))

(defn- no-owner-error ^Throwable [m op]
  (let [identity (bpf-map/identity-of m)]
    (error/error :not-found (str "Map " (error/id-and-name identity) " has no reader to peek at")
                 {:bpfmap/op op :bpfmap/map identity
                  :bpfmap/hint (str "no process that has it open has perf events; events of a perf "
                                    "event array are in the buffers of its reader, so open a reader")})))

(defn- ambiguous-error ^Throwable [m {:keys [pid command]} arrays op]
  (let [identity (bpf-map/identity-of m)]
    (error/error :not-supported (str "The perf events of map " (error/id-and-name identity)
                                     " cannot be told from others")
                 {:bpfmap/op op :bpfmap/map identity
                  :bpfmap/hint (str "process " pid " (" command ") has the perf event arrays "
                                    (error/list-of arrays "and")
                                    " open, and the kernel does not report which perf event is in "
                                    "which")})))

(defn following
  "Opens the buffers that other processes have of a perf event array, read-only.

  Returns the same as [[consuming]]."
  [m {:keys [from]} op]
  (let [ctx {:op op :map (bpf-map/identity-of m) :type :perf-event-array}
        who (owners m)]
    (when (empty? who)
      (throw (no-owner-error m op)))
    (doseq [process who]
      (let [arrays (perf-arrays-of process ctx)]
        (when (next arrays)
          (throw (ambiguous-error m process arrays op)))))
    (let [buffers (reduce (fn [found {:keys [pid]}]
                            (try
                              (into found
                                    (kernel.perf/buffers-of-process pid (= :now from) ctx))
                              (catch Throwable e
                                (close-buffers found)
                                (throw e))))
                          [] who)]
      (when (empty? buffers)
        (throw (no-owner-error m op)))
      {:sources buffers :padded true})))
