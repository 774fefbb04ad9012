(ns ^:no-doc bpfmap.impl.map.references
  "Resolves references in keys and values to numbers of descriptors.

  References are the maps, programs, sockets, tasks, cgroups and files that some map types store
  or are keyed by. A reference is resolved for the time of one call. All descriptors that this
  needs are acquired in a scope, and released after the call."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.codec.error :refer [misfit]]
            [bpfmap.impl.codec.map-codecs :as map-codecs]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.open-object :as open-object]
            [bpfmap.impl.type.node :as node])
  (:import (bpfmap.sys Fd)
           (java.util ArrayList)))

(set! *warn-on-reflection* true)

;; Destructuring an open map would look up its keys in the kernel: test for plain maps first.

;; --- scopes

(defn- acquire-number
  "Returns the number of a descriptor, in use until `scope` is released."
  [^ArrayList scope ^Fd fd]
  (let [number (.acquire fd)]
    (.add scope #(.release fd))
    number))

(defn- acquire-opened
  "Returns the number of a descriptor that is closed when `scope` is released."
  [^ArrayList scope ^Fd fd]
  (.add scope #(call/close fd))
  (acquire-number scope fd))

(defn release-all!
  "Releases all descriptors of `scope`, and closes those opened for it."
  [^ArrayList scope]
  (doseq [end (reverse scope)] (end))
  (.clear scope))

;; --- references to numbers

(defn- descriptor-number? [n] (and (int? n) (<= 0 (long n) 0x7fffffff)))

(defn- id? [n] (and (int? n) (<= 0 (long n) 0xffffffff)))

(defn- pid? [n] (and (int? n) (<= 1 (long n) 0x7fffffff)))

(defn- only?
  "Returns true if x is a plain map with exactly these keys.

  An open map is not: looking for a key in it would be a system call."
  [x & ks]
  (and (map? x) (= (set ks) (set (keys x)))))

(defn- fd-number
  "Returns the number of `{:fd n}` or `{:pid p :fd n}`, or nil for anything else.

  The former is a descriptor of this process, the latter one of another process."
  [scope x ctx]
  (cond
    (only? x :fd) (when (descriptor-number? (:fd x)) (call/check-fd-number (:fd x) (:op ctx)))
    (only? x :pid :fd) (let [{:keys [pid fd]} x]
                         (when (and (pid? pid) (descriptor-number? fd))
                           (acquire-opened scope (call/descriptor-of-process pid fd ctx))))))

(defn- open-object-number
  "Returns the number of an open object of the wanted kind, or nil.

  The error for a closed object names this object, not the map to which it is written."
  [scope wanted x]
  (when (and (satisfies? open-object/OpenObject x) (= wanted (open-object/kind x)))
    (try
      (acquire-number scope (open-object/descriptor x))
      (catch RuntimeException e
        (throw (error/error :closed (str "The " (name wanted) " given is closed: " x)
                            {:bpfmap/path [:value]
                             :bpfmap/hint "it was closed before or during this call; open it again"}
                            e))))))

(defn- id-number
  "Returns the number of an object given as a map of the key k and its id, or nil."
  [scope x k object open ctx]
  (when (and (only? x k) (id? (k x)))
    (acquire-opened scope (open (k x) (assoc ctx :reference (str object " " (k x)))))))

(defn- map-number [scope x ctx]
  (or (open-object-number scope :map x)
      (id-number scope x :map-id "map" #(kernel.map/open-id %1 :read-write %2) ctx)
      (fd-number scope x ctx)))

(defn- program-number [scope x ctx]
  (or (open-object-number scope :program x)
      (id-number scope x :program-id "program" #(call/open-id :program %1 %2) ctx)
      (fd-number scope x ctx)))

(defn- resolve-program-field
  "Returns a value with an optional program, with its number."
  [scope x ctx]
  (cond
    (int? x) x
    (not (error/named-map? x)) nil
    (nil? (:program x)) (assoc x :program 0)
    :else (when-let [number (program-number scope (:program x) ctx)]
            (assoc x :program number))))

(defn- task-number [scope x ctx]
  (cond
    (pid? x) (acquire-opened scope (call/pidfd x false ctx))
    (only? x :pid) (when (pid? (:pid x)) (acquire-opened scope (call/pidfd (:pid x) false ctx)))
    (only? x :tid) (when (pid? (:tid x)) (acquire-opened scope (call/pidfd (:tid x) true ctx)))
    :else (fd-number scope x ctx)))

(defn- file-resolver [directory?]
  (fn [scope x ctx]
    (if (paths/path? x)
      (acquire-opened scope (call/open-file (call/path-text x (:op ctx)) directory? ctx))
      (fd-number scope x ctx))))

(def ^:private kinds
  "The resolving function and the description of each kind of reference."
  (let [fd "{:fd n}, a descriptor of this process, or {:pid p :fd n}, one of another's"]
    {:map [map-number "an open map, {:map-id n} or {:fd n}"]
     :program [program-number "a loaded program, {:program-id n} or {:fd n}"]
     :program-field [resolve-program-field
                     "a map with :program, a loaded program or {:program-id n}, which may be left out"]
     :socket [fd-number (str "a socket: " fd)]
     :xdp-socket [fd-number (str "an AF_XDP socket: " fd)]
     :perf-event [fd-number (str "a perf event: " fd)]
     :cgroup [(file-resolver true) "a cgroup: the path of its directory, or {:fd n}"]
     :inode [(file-resolver false) "a file: its path, or {:fd n}"]
     :task [task-number
            "a task: a process id, {:pid n}, {:tid n} for one thread, or {:fd n}, a pidfd"]}))

(defn- resolver
  "Returns a function of scope, reference and ctx that returns the codec's input."
  [kind path]
  (let [[resolve expected] (kinds kind)]
    (fn [scope x ctx]
      (or (resolve scope x ctx)
          (throw (misfit kind path x (str "it must be " expected)
                         (str (error/printed x) " is not a reference of this kind")))))))

(defn- functions-resolver
  "Returns the [[resolver]] of a struct_ops value, which has programs as functions.

  nil stands for no program."
  [spec]
  (let [resolve (into {}
                      (for [name (map-codecs/functions (node/node-of spec :value))]
                        [name (resolver :program [:value :data name])]))]
    (fn [scope x ctx]
      (if (and (error/named-map? x) (error/named-map? (:data x)))
        (update x :data #(reduce-kv (fn [data name resolve]
                                      (if (contains? data name)
                                        (update data name
                                                (fn [program]
                                                  (if (nil? program)
                                                    0
                                                    (resolve scope program ctx))))
                                        data))
                                    % resolve))
        x))))

(deftype Resolvers [key value])

(defn resolvers
  "Returns the resolvers of key and value of a completed spec's map, or nil.

  nil if neither is a reference."
  ^Resolvers [{:keys [type] :as spec}]
  (let [{:keys [key value]} (:refers (map-types/types type))
        as-is (fn [_ x _] x)]
    (when (or (:in key) (:in value))
      (Resolvers. (if (:in key) (resolver (:in key) [:key]) as-is)
                  (cond
                    (= :functions (:in value)) (functions-resolver spec)
                    (:in value) (resolver (:in value) [:value])
                    :else as-is)))))

(defn new-scope
  "Returns a new scope for one call.
  Pass it to [[release-all!]] afterwards."
  ^ArrayList []
  (ArrayList. 2))

(defn resolve-key
  "Returns a key as its codec takes it."
  [^Resolvers b scope k ctx]
  ((.-key b) scope k ctx))

(defn resolve-value
  "Returns a value as its codec takes it."
  [^Resolvers b scope v ctx]
  ((.-value b) scope v ctx))
