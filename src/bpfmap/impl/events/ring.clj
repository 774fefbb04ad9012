(ns ^:no-doc bpfmap.impl.events.ring
  "Opens ring buffers for a reader, and refuses rings that somebody else may read.

  Each record of a ring goes to one reader. A second one takes events away from the first, which
  does not notice."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.events :as kernel.events]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.map.bpf-map :as bpf-map])
  (:import (bpfmap.sys EventSource)
           (java.lang.ref WeakReference)
           (java.util.concurrent ConcurrentHashMap)))

(set! *warn-on-reflection* true)

(defn- overwrites? [m]
  (contains? (:flags (bpf-map/spec-of m)) :rb-overwrite))

;; --- other readers

(def ^:private readers-here
  "The rings that this process reads or writes: id to a WeakReference to a token.

  The reader or writer has the token. If it becomes unreachable without `close`, it gives its
  mappings to the collector, and has to leave its place here as well."
  (ConcurrentHashMap.))

(defn- register!
  "Returns a function that ends a registration; nil if the ring has a reader here."
  [id]
  (let [^ConcurrentHashMap readers readers-here
        token (Object.)
        reference (WeakReference. token)]
    (loop []
      (let [^WeakReference other (.putIfAbsent readers id reference)]
        (cond
          (nil? other) (fn [] (.remove readers id reference) token)
          (.get other) nil
          :else (do (.remove readers id other) (recur)))))))

(defn- other-holders
  "Returns the processes other than this one that have a ring open or mapped.

  If only a writer is of interest: those that have it open and a ring of its size mapped for
  writing, or that may have it mapped."
  [{:keys [id type]} size]
  (let [own (.pid (java.lang.ProcessHandle/current))
        user-ring? (= :user-ringbuf type)]
    (into [] (remove #(= own (:pid %)))
          (into (cond->> (holders/holders {:map-id id})
                  user-ring? (filterv #(kernel.events/writes-ring? (:pid %) size)))
                (kernel.events/mapped-without-descriptor size id user-ring?)))))

(def ^:private roles
  "The exclusive roles at a ring, by the operation that takes them.

  `:hold` and `:why` are the beginning and the end of the hint about other processes, `:here` is
  the hint about this one."
  {:reader {:who "reader" :hold "hold" :holds "holds"
            :why (str "it, and each event goes to one reader only; use peek, which takes nothing, "
                      "or {:steal true}")
            :here (str "each event goes to one reader only; close that reader, hand its events on, "
                       "or use {:steal true}")}
   :writer {:who "writer" :hold "have" :holds "has"
            :why (str "it mapped for writing, and two writers destroy each other's records; end "
                      "that, or use {:steal true}")
            :here (str "two writers destroy each other's records; share that writer, which several "
                       "threads may use, or close it")}})

(defn- busy-error ^Throwable [identity who op]
  (let [{:keys [hold holds why] role :who} (roles op)]
    (error/error :busy (str "Map " (error/id-and-name identity) " may have another " role)
                 {:bpfmap/op op
                  :bpfmap/map identity
                  :bpfmap/holders who
                  :bpfmap/hint
                  (str (error/list-of (for [{:keys [pid command]} who] (str pid " (" command ")"))
                                      "and")
                       " " (if (next who) hold holds) " " why)})))

(defn- own-error ^Throwable [identity op]
  (let [{:keys [here] role :who} (roles op)]
    (error/error :busy (str "Map " (error/id-and-name identity) " has a " role " in this process")
                 {:bpfmap/op op :bpfmap/map identity :bpfmap/hint here})))

(defn claim
  "Returns a function that ends this process's claim to a ring; throws `:busy`.

  `op` is `:reader` or `:writer`. With `:steal`, claims nothing and does not throw."
  [m {:keys [steal]} op]
  (let [{:keys [id] :as identity} (bpf-map/identity-of m)]
    (call/check-open (bpf-map/descriptor m) {:op op :map identity})
    (if steal
      (constantly nil)
      (let [unregister (or (register! id) (throw (own-error identity op)))]
        (try
          (when-let [who (when-not (call/simulated? (bpf-map/descriptor m))
                           (let [size (:max-entries (bpf-map/spec-of m))]
                             (seq (holders/settled #(other-holders identity size) op))))]
            (throw (busy-error identity (vec who) op)))
          unregister
          (catch Throwable e
            (unregister)
            (throw e)))))))

;; --- opening

(defn- check-not-read-only [m]
  (when (= :read-only (.-access ^bpfmap.impl.map.bpf_map.BpfMap m))
    (throw (error/error :read-only
                        (str "Map " (error/id-and-name (bpf-map/identity-of m))
                             " was opened read-only")
                        {:bpfmap/op :reader :bpfmap/map (bpf-map/identity-of m)
                         :bpfmap/hint (str "a reader gives the places of events back, which is "
                                           "writing; use peek, or open it with "
                                           "{:access :read-write}")}))))

(defn- frozen-error
  "Returns the error for a frozen ring; any other exception unchanged."
  ^Throwable [^Throwable e m ctx]
  (if (and (= :EPERM (:bpfmap/errno (ex-data e)))
           (:frozen (kernel.map/info (bpf-map/descriptor m) ctx)))
    (error/error :permission (str "Map " (error/id-and-name (bpf-map/identity-of m)) " is frozen")
                 (assoc (ex-data e) :bpfmap/hint
                        (str "nobody can give the places of its events back any more; peek still "
                             "reads it"))
                 e)
    e))

(defn- consume-one
  "Opens a ring to consume it; returns `{:source :release}`."
  [m options]
  (check-not-read-only m)
  (let [size (:max-entries (bpf-map/spec-of m))
        ctx {:op :reader :map (bpf-map/identity-of m) :type :ringbuf}
        release (claim m options :reader)]
    (try
      {:source (if (overwrites? m)
                 (kernel.events/ring-follower (bpf-map/descriptor m) size
                                              {:overwrites true :consume true} ctx)
                 (kernel.events/ring-buffer (bpf-map/descriptor m) size ctx))
       :release release}
      (catch Throwable e
        (release)
        (throw (frozen-error e m ctx))))))

(defn fill
  "Returns the bytes in use in a ring buffer or user ring buffer, given its info.

  Consumes nothing. Opens the map by its id, because only a descriptor for reading and writing can
  be mapped."
  [{:keys [id max-entries] :as info} op]
  (let [ctx {:op op :map (select-keys info [:id :name :type])}
        fd (kernel.map/open-id id :read-write ctx)]
    (try
      (kernel.events/ring-fill fd max-entries ctx)
      (finally (call/close fd)))))

(defn- follow-one
  "Opens a ring to copy its records and the next ones; returns `{:source}`.

  The kernel maps no descriptor that was opened for one access only, not even for reading. For such
  a handle another descriptor is opened for the call."
  [m {:keys [from]} op]
  (let [{:keys [id] :as identity} (bpf-map/identity-of m)
        size (:max-entries (bpf-map/spec-of m))
        ctx {:op op :map identity :type :ringbuf}
        open (fn [fd]
               {:source (kernel.events/ring-follower fd size {:overwrites (overwrites? m)
                                                              :now (= :now from)} ctx)})]
    (if (= :read-write (.-access ^bpfmap.impl.map.bpf_map.BpfMap m))
      (open (bpf-map/descriptor m))
      (let [fd (kernel.map/open-id id :read-write ctx)]
        (try
          (open fd)
          (finally (call/close fd)))))))

(defn- open-all
  "Returns the results of f for each map; if one throws, closes the others."
  [ms f]
  (reduce (fn [opened m]
            (try
              (conj opened (f m))
              (catch Throwable e
                (doseq [{:keys [^EventSource source release]} opened]
                  (.close source)
                  (when release (release)))
                (throw e))))
          [] ms))

(defn consuming
  "Opens rings to consume them; returns `{:sources :release}`.

  Throws `:busy` if somebody else may read one. `release` gives their places back, when the sources
  are closed."
  [ms options]
  (let [opened (open-all ms #(consume-one % options))]
    {:sources (mapv :source opened)
     :release (fn [] (doseq [{:keys [release]} opened] (release)))}))

(defn following
  "Opens rings to copy their records and the next ones; returns the sources."
  [ms options op]
  (mapv :source (open-all ms #(follow-one % options op))))
