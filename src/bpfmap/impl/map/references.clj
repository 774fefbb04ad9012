(ns ^:no-doc bpfmap.impl.map.references
  "What map types store or are keyed by as descriptors: maps, programs, sockets, tasks, cgroups,
  files.

  A reference is resolved to a descriptor's number for the time of one call. What it took to
  get the number is in use until the call is over, and what was opened for it is closed then."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.codec.element :as element]
            [bpfmap.impl.codec.error :refer [misfit]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.rules :as rules]
            [bpfmap.impl.type.node :as node])
  (:import (bpfmap.sys Fd)
           (java.util ArrayList)))

(set! *warn-on-reflection* true)

(defprotocol Open
  "Something open of this library that has a descriptor."
  (descriptor ^bpfmap.sys.Fd [x] "Its descriptor.")
  (kind [x] "Its kind: `:map`, `:program` or `:link`.")
  (id [x] "Its id."))

;; An open map is looked up by `get`: only plain maps may be destructured here.

;; --- numbers in use

(defn- in-use
  "The number of a descriptor, in use until `held` is let go."
  [^ArrayList held ^Fd fd]
  (let [number (.acquire fd)]
    (.add held #(.release fd))
    number))

(defn- owned
  "The number of a descriptor opened for this, which is closed when `held` is let go."
  [^ArrayList held ^Fd fd]
  (.add held #(call/close fd))
  (in-use held fd))

(defn release-all!
  "Ends the use of everything that was resolved into `held`."
  [^ArrayList held]
  (doseq [end (reverse held)] (end))
  (.clear held))

;; --- from data to a number

(defn- descriptor-number? [n] (and (int? n) (<= 0 (long n) 0x7fffffff)))

(defn- id? [n] (and (int? n) (<= 0 (long n) 0xffffffff)))

(defn- process-number? [n] (and (int? n) (<= 1 (long n) 0x7fffffff)))

(defn- only?
  "Whether x is data with just these keys. An open map is none: to look for a key in it is to ask
  the kernel."
  [x & ks]
  (and (map? x) (= (set ks) (set (keys x)))))

(defn- of-fd
  "`{:fd n}`, a descriptor of this process, or `{:pid p :fd n}`, one of another's: the number, or
  nil for anything else."
  [held x ctx]
  (cond
    (only? x :fd) (when (descriptor-number? (:fd x)) (call/callers-number (:fd x) (:op ctx)))
    (only? x :pid :fd) (let [{:keys [pid fd]} x]
                         (when (and (process-number? pid) (descriptor-number? fd))
                           (owned held (call/descriptor-of-process pid fd ctx))))))

(defn- of-open
  "The number of an open object of the kind wanted. That one which is closed is named, not the map
  that was to hold it."
  [held wanted x]
  (when (and (satisfies? Open x) (= wanted (kind x)))
    (try
      (in-use held (descriptor x))
      (catch RuntimeException e
        (throw (error/error :closed (str "The " (name wanted) " given is closed: " x)
                            {:bpfmap/path [:value]
                             :bpfmap/hint "it was closed before or during this call; open it again"}
                            e))))))

(defn- of-id
  "The number of an object given by its id alone, under the key k."
  [held x k object open ctx]
  (when (and (only? x k) (id? (k x)))
    (owned held (open (k x) (assoc ctx :reference (str object " " (k x)))))))

(defn- of-map [held x ctx]
  (or (of-open held :map x)
      (of-id held x :map-id "map" #(map/by-id %1 :read-write %2) ctx)
      (of-fd held x ctx)))

(defn- of-program [held x ctx]
  (or (of-open held :program x)
      (of-id held x :program-id "program" #(call/by-id :program %1 %2) ctx)
      (of-fd held x ctx)))

(defn- of-program-field
  "A value with a program in it that may be left out."
  [held x ctx]
  (cond
    (int? x) x
    (not (error/named-map? x)) nil
    (nil? (:program x)) (assoc x :program 0)
    :else (when-let [number (of-program held (:program x) ctx)]
            (assoc x :program number))))

(defn- of-task [held x ctx]
  (cond
    (process-number? x) (owned held (call/pidfd x false ctx))
    (only? x :pid) (when (process-number? (:pid x)) (owned held (call/pidfd (:pid x) false ctx)))
    (only? x :tid) (when (process-number? (:tid x)) (owned held (call/pidfd (:tid x) true ctx)))
    :else (of-fd held x ctx)))

(defn- of-file [directory?]
  (fn [held x ctx]
    (if (paths/path? x)
      (owned held (call/open-file (call/path-text x (:op ctx)) directory? ctx))
      (of-fd held x ctx))))

(def ^:private kinds
  "How a reference of a kind becomes a number, and what it may be, in words."
  (let [fd "{:fd n}, a descriptor of this process, or {:pid p :fd n}, one of another's"]
    {:map [of-map "an open map, {:map-id n} or {:fd n}"]
     :program [of-program "a loaded program, {:program-id n} or {:fd n}"]
     :program-field [of-program-field
                     "a map with :program, a loaded program or {:program-id n}, which may be left out"]
     :socket [of-fd (str "a socket: " fd)]
     :xdp-socket [of-fd (str "an AF_XDP socket: " fd)]
     :perf-event [of-fd (str "a perf event: " fd)]
     :cgroup [(of-file true) "a cgroup: the path of its directory, or {:fd n}"]
     :inode [(of-file false) "a file: its path, or {:fd n}"]
     :task [of-task
            "a task: a process id, {:pid n}, {:tid n} for one thread, or {:fd n}, a pidfd"]}))

(defn- resolver
  "A function of `held`, a reference and facts to what the codec takes."
  [kind path]
  (let [[resolve expected] (kinds kind)]
    (fn [held x ctx]
      (or (resolve held x ctx)
          (throw (misfit kind path x (str "it takes " expected)
                         (str (pr-str (error/shown x)) " is no reference of this kind")))))))

(defn- functions-resolver
  "As [[resolver]], for the programs that a struct_ops value has where the kernel's struct has
  functions; nil stands for none."
  [spec]
  (let [resolve (into {}
                      (for [name (element/functions (node/node-of spec :value))]
                        [name (resolver :program [:value :data name])]))]
    (fn [held x ctx]
      (if (and (error/named-map? x) (error/named-map? (:data x)))
        (update x :data #(reduce-kv (fn [data name resolve]
                                      (if (contains? data name)
                                        (update data name
                                                (fn [program]
                                                  (if (nil? program) 0 (resolve held program ctx))))
                                        data))
                                    % resolve))
        x))))

(deftype Bridge [key value])

(defn bridge
  "How the references in keys and values of a completed spec's map are resolved; nil for a type
  that has none."
  ^Bridge [{:keys [type] :as spec}]
  (let [{:keys [key value]} (:refers (rules/types type))
        as-is (fn [_ x _] x)]
    (when (or (:in key) (:in value))
      (Bridge. (if (:in key) (resolver (:in key) [:key]) as-is)
               (cond
                 (= :functions (:in value)) (functions-resolver spec)
                 (:in value) (resolver (:in value) [:value])
                 :else as-is)))))

(defn holding
  "A new place for what is in use during a call; give it to [[let-go]] afterwards."
  ^ArrayList []
  (ArrayList. 2))

(defn key-in
  "A key as its codec takes it."
  [^Bridge b held k ctx]
  ((.-key b) held k ctx))

(defn value-in
  "A value as its codec takes it."
  [^Bridge b held v ctx]
  ((.-value b) held v ctx))
