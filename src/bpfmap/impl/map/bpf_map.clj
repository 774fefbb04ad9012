(ns ^:no-doc bpfmap.impl.map.bpf-map
  "Defines the open map: a descriptor, its codecs, and collection interfaces.

  An open map can be used like a collection, but is compared by identity. Printing and comparing
  make no system call, and there is no `count`."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.element :as kernel.element]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.references :as references]
            [bpfmap.impl.memory.mapping :as mapping :refer [or-fallback]]
            [bpfmap.impl.open-object :as open-object]
            [bpfmap.impl.options :as options]
            [bpfmap.impl.spec :as spec]
            [bpfmap.type :as type])
  (:import (bpfmap.sys Codec Fd)
           (clojure.lang ArityException ExceptionInfo IFn IKVReduce ILookup IReduce
                         IReduceInit ITransientAssociative2 ITransientCollection Seqable)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(declare close lookup not-transient reduce-entries snapshot-of)

(defn describe
  "Returns the beginning of the message of an error of an operation on a map."
  [identity op]
  (str (name op) " on map " (error/id-and-name identity)))

(defn- contents-summary
  "Returns the types of key and value in short, as `\" :u32 -> :u64\"`.

  References have the name of their kind."
  [{:keys [type key value]}]
  (let [{:keys [refers]} (map-types/types type)
        in-words (fn [side type]
                   (let [kind (get-in refers [side :in])]
                     (if (contains? #{nil :program-field} kind) (type/summary type) kind)))]
    (str (when key (str " " (in-words :key key) " ->"))
         (when value (str " " (in-words :value value))))))

;; `identity` is {:id :name :type}. `refusals` maps the operations that this handle never does to
;; [kind hint]. `elements` is nil where a type's layout is not known, `bridge` where neither key
;; nor value is a reference, `cpus` where values are not per-CPU. `pins` is an atom with the paths
;; of the pins, the latest last, `row` what the rules say of the type. `mapping` is nil where a
;; map has no memory to map, `direct` where its elements are not in it.
(deftype BpfMap
         [^Fd fd identity spec access refusals elements key-codec value-codec resolvers cpus pins
          row
          mapping
          fast-path]
  kernel.element/Origin
  (failure [_ op outcome]
    (call/failure (describe identity op) outcome
                  {:op op
                   :map identity
                   :fd fd
                   :type (:type identity)
                   :max-entries (:max-entries spec)
                   :access access
                   :alternative (map-types/alternative (:type identity) op (:value-size spec))}))

  open-object/OpenObject
  (descriptor [_] fd)
  (kind [_] :map)
  (id [_] (:id identity))

  ILookup
  (valAt [this k] (lookup this k nil))
  (valAt [this k not-found] (lookup this k not-found))

  ;; For `contains?`, `find` and `select-keys`. The alternatives are a collection or a
  ;; java.util.Map, which Clojure would count, compare and print by reading the map.
  ITransientAssociative2
  (containsKey [this k] (not (identical? this (lookup this k this))))
  (entryAt [this k]
    (let [v (lookup this k this)]
      (when-not (identical? this v) (kernel.element/entry k v))))
  (assoc [this _ _] (not-transient this))
  (conj [this _] (not-transient this))
  (persistent [this] (not-transient this))

  IFn
  (invoke [this k] (lookup this k nil))
  (invoke [this k not-found] (lookup this k not-found))
  (invoke [_] (throw (ArityException. 0 "BpfMap")))
  (invoke [_ _ _ _] (throw (ArityException. 3 "BpfMap")))
  (run [_] (throw (ArityException. 0 "BpfMap")))
  (call [_] (throw (ArityException. 0 "BpfMap")))
  (applyTo [this args]
    (case (int (bounded-count 3 args))
      1 (lookup this (first args) nil)
      2 (lookup this (first args) (second args))
      (throw (ArityException. (bounded-count 20 args) "BpfMap"))))

  IReduceInit
  (reduce [this f init]
    (reduce-entries this f init {:pairs true}))

  IReduce
  (reduce [this f]
    (reduce f (seq this)))

  IKVReduce
  (kvreduce [this f init]
    (reduce-entries this f init nil))

  Seqable
  (seq [this]
    (seq (snapshot-of this [] nil)))

  Closeable
  (close [this] (close this))

  Object
  (toString [_]
    (str "#<bpf-map " (when-let [id (:id identity)] (str id " ")) (:type identity) " "
         (pr-str (:name identity))
         (contents-summary spec) (when (.isClosed fd) " closed") ">")))

(defmethod print-method BpfMap [m ^java.io.Writer w]
  (.write w (str m)))

(defn bpf-map?
  "Returns true if x is a map opened by this library, open or closed."
  [x]
  (instance? BpfMap x))

(defn descriptor
  "Returns the descriptor of an open map."
  ^Fd [^BpfMap m]
  (.-fd m))

(defn row-of
  "Returns the row of the map's type in `bpfmap.impl.map-types`."
  [^BpfMap m]
  (.-row m))

(defn cpus-of
  "Returns the possible CPUs of a per-CPU map, ascending; nil for any other map."
  [^BpfMap m]
  (.-cpus m))

(defn identity-of
  "Returns `{:id :name :type}` of the map, for errors."
  [^BpfMap m]
  (.-identity m))

;; --- checks before a system call, and errors

(defn refuse
  "Throws the refusal of an operation."
  [^BpfMap m op kind hint]
  (throw (error/error kind (str (describe (.-identity m) op) " is refused")
                      {:bpfmap/op op :bpfmap/map (.-identity m) :bpfmap/hint hint})))

(defn check-open-map
  "Throws `:invalid-value` if x is not a map of this library."
  [x op]
  (when-not (instance? BpfMap x)
    (throw (error/error :invalid-value (str "The argument must be an open map, got "
                                            (error/printed x))
                        {:bpfmap/op op
                         :bpfmap/hint "pass a result of create, open or clone"}))))

(defn spec-of
  "Returns the spec of the map."
  [^BpfMap m]
  (check-open-map m :spec)
  (dissoc (.-spec m) :untyped))

(defn check-allowed
  "Throws if this handle refuses an operation."
  [^BpfMap m op]
  (check-open-map m op)
  (when-some [[kind hint] (get (.-refusals m) op)]
    (refuse m op kind (cond->> hint
                        (= :not-supported kind) (str "a map of type " (:type (.-identity m))
                                                     " has no " (name op) "; ")))))

(defn add-context
  "Returns the exception with the operation and the map, as an error as data."
  ^Throwable [e op ^BpfMap m]
  (call/in-context e {:op op :map (.-identity m)}))

(defmacro with-error-context
  "Runs an operation unless it is refused; adds operation and map to errors.

  Kept short for the JIT."
  [[m op] & body]
  `(do
     (check-allowed ~m ~op)
     (try
       ~@body
       (catch RuntimeException e#
         (throw (add-context e# ~op ~m))))))

(defn- not-found?
  "Returns true if an error means that the object of a reference does not exist."
  [e]
  (= :not-found (:bpfmap/error (ex-data e))))

(defn resolve-key
  "Returns a key as its codec takes it, with its reference resolved into `scope`.

  Returns `absent` if the reference names an object that does not exist (any more)."
  [^BpfMap m op scope k absent]
  (try
    (references/resolve-key (.-resolvers m) scope k {:op op :map (.-identity m)})
    (catch ExceptionInfo e
      (if (not-found? e) absent (throw e)))))

(defn call-with-key
  "Calls f with a key whose reference is resolved.

  Returns `absent` if the reference names an object that does not exist (any more)."
  [^BpfMap m op k absent f]
  (let [scope (references/new-scope)]
    (try
      (let [resolved (resolve-key m op scope k ::absent)]
        (if (identical? ::absent resolved) absent (f resolved)))
      (finally (references/release-all! scope)))))

(defn call-with-entry
  "Calls f with a key and a value whose references are resolved."
  [^BpfMap m op k v f]
  (let [scope (references/new-scope)
        ctx {:op op :map (.-identity m)}]
    (try
      (f (references/resolve-key (.-resolvers m) scope k ctx)
         (references/resolve-value (.-resolvers m) scope v ctx))
      (finally (references/release-all! scope)))))

(defmacro with-key
  "Runs body with the key k as its codec takes it; see [[call-with-key]].

  Without references in keys it expands to body and a nil check."
  [[m op k absent] body]
  `(if (nil? (.-resolvers ~(vary-meta m assoc :tag `BpfMap)))
     ~body
     (call-with-key ~m ~op ~k ~absent (fn [~k] ~body))))

(defmacro with-entry
  "Runs body with the key k and the value v as their codecs take them.

  Without references it expands to body and a nil check."
  [[m op k v] body]
  `(if (nil? (.-resolvers ~(vary-meta m assoc :tag `BpfMap)))
     ~body
     (call-with-entry ~m ~op ~k ~v (fn [~k ~v] ~body))))

;; --- options of operations

(defn- invalid [^BpfMap m op path message hint]
  (error/error :invalid-value message
               {:bpfmap/op op :bpfmap/map (identity-of m) :bpfmap/path path
                :bpfmap/hint hint}))

(defn- unseen-lock?
  "Returns true if values of a map have a lock that this kernel does not find."
  [^BpfMap m]
  (and (spec/nested-lock? (spec-of m))
       (not (call/simulated? (.-fd m)))
       (some-> (call/kernel-release) (map-types/at-least? spec/locks-in-structs-since) not)))

(defn locked?
  "Returns true if the values of a map have a lock that this kernel finds."
  [^BpfMap m]
  (and (spec/locked-value? (spec-of m)) (not (unseen-lock? m))))

(defn- check-lock [^BpfMap m op lock]
  (when lock
    (let [{:keys [value type] :as spec} (spec-of m)]
      (when-not (spec/locked-value? spec)
        (throw (invalid m op [:lock]
                        (str "Values of this map have no lock: " (error/printed value))
                        (if (:lock (map-types/types type))
                          "open the map with a value type that has a :spin-lock"
                          (str "a map of type " type " has no spin locks")))))
      (when (unseen-lock? m)
        (throw (error/error :not-supported
                            (str "This kernel does not find the lock of this map's values: "
                                 (error/printed value))
                            {:bpfmap/op op :bpfmap/map (identity-of m) :bpfmap/path [:lock]
                             :bpfmap/hint (str "the lock is in a struct of the value, where kernels "
                                               "find it from Linux " spec/locks-in-structs-since
                                               " on, this is " (call/kernel-release))}))))))

(defn- check-cpu [^BpfMap m op {:keys [cpu] :as options}]
  (let [possible (cpus-of m)]
    (when-not possible
      (throw (invalid m op [(if (contains? options :cpu) :cpu :cpus)] "The map is not a per-CPU map"
                      "each key has one value")))
    (when (and (contains? options :cpu) (contains? options :cpus))
      (throw (invalid m op [:cpu] ":cpu cannot be combined with :cpus" nil)))
    (when (and (contains? options :cpu) (not (some #{cpu} possible)))
      (throw (invalid m op [:cpu] (str "Unknown CPU " (error/printed cpu))
                      (str "the possible CPUs are " (error/list-of possible "and")))))))

(defn check-options
  "Returns the flags for options.

  Throws for options that the operation does not have, or that do not fit the map."
  [^BpfMap m op options]
  (if (nil? options)
    kernel.element/any
    (do
      (options/check op options)
      (when (contains? options :lock) (check-lock m op (:lock options)))
      (when (or (contains? options :cpu) (contains? options :cpus)) (check-cpu m op options))
      (if (:lock options) kernel.element/lock kernel.element/any))))

(defn cpu-value
  "Returns a function from a per-CPU value to the part that the options select.

  The value of one CPU, or the whole vector."
  [^BpfMap m options]
  (if (contains? options :cpu)
    (let [i (.indexOf ^java.util.List (cpus-of m) (:cpu options))]
      #(nth % i))
    identity))

(defn repeat-for-cpus
  "Returns the value to write: with `{:cpus :all}`, v for every CPU."
  [^BpfMap m v options]
  (if (:cpus options)
    (vec (repeat (count (cpus-of m)) v))
    v))

;; --- deletes

(defn missing-errnos
  "Returns the outcomes of a delete that mean the same as a missing key.

  An empty slot, an index beyond the end, or a struct_ops value that was unregistered before."
  [^BpfMap m]
  (let [{:keys [one-index] index? :index} (row-of m)]
    (cond
      index? kernel.element/empty-slot-errnos
      one-index kernel.element/unregistered-errnos
      :else #{})))

(defn out-of-range-index?
  "Returns true if a key is another index than the only one of the map.

  In a delete, the kernel ignores the index."
  [^BpfMap m k]
  (and (:one-index (row-of m))
       (if (bytes/byte-view? k)
         (and (= 4 (count k)) (not-every? zero? k))
         (and (int? k) (<= 1 (long k) 0xffffffff)))))

;; --- reading, for the collection interfaces
;; Other operations are in bpfmap.impl.map.element-ops and bpfmap.impl.map.batch-ops.

(defn lookup
  "Returns the value of a key, or not-found."
  ([^BpfMap m k not-found]
   (with-error-context [m :lookup]
     (or-fallback (mapping/lookup (.-fast-path m) k)
       (with-key [m :lookup k not-found]
         (kernel.element/lookup (.-elements m) (.-key-codec m) (.-value-codec m) k not-found
                                kernel.element/any m :lookup)))))
  ([^BpfMap m k not-found options]
   (with-error-context [m :lookup]
     (let [flags (check-options m :lookup options)
           found (with-key [m :lookup k ::absent]
                   (kernel.element/lookup (.-elements m) (.-key-codec m) (.-value-codec m) k
                                          ::absent flags m :lookup))]
       (if (identical? ::absent found)
         not-found
         ((cpu-value m options) found))))))

(defn- not-transient
  "Throws `:not-supported`: a map only looks like a transient collection."
  [^BpfMap m]
  (throw (error/error :not-supported
                      (str "Map " (error/id-and-name (.-identity m))
                           " is not a transient collection")
                      {:bpfmap/map (.-identity m)
                       :bpfmap/hint (str "use put! or put-all! to write, and snapshot to read all "
                                         "entries as a map")})))

(defn- iteration-aborted
  "Returns the exception for a reader that was restarted too often.

  It has the result so far. Nobody continues with that, so a transient is made persistent."
  [^BpfMap m op so-far]
  (error/error :iteration-aborted (str (describe (.-identity m) op) " was aborted")
               {:bpfmap/op op
                :bpfmap/map (.-identity m)
                :bpfmap/so-far (if (and (instance? ITransientCollection so-far)
                                        (not (instance? BpfMap so-far)))
                                 (persistent! so-far)
                                 so-far)
                :bpfmap/hint (str
                              "others delete keys faster than they can be read; the result so "
                              "far is under :bpfmap/so-far; try again")}))

(defn- batches?
  "Returns true if the kernel reads this map in batches, according to the rules."
  [^BpfMap m]
  (let [{:keys [batch batch-read-since]} (map-types/types (:type (.-identity m)))]
    (and (contains? batch :read)
         (or (nil? batch-read-since)
             (call/simulated? (.-fd m))
             (some-> (call/kernel-release) (map-types/at-least? batch-read-since))))))

(defn reader-failure
  "Returns the exception for a failed reader, with the result so far."
  [^BpfMap m op outcome so-far]
  (if (kernel.element/aborted? outcome)
    (iteration-aborted m op so-far)
    (kernel.element/failure m op outcome)))

(defn reader-options
  "Returns the options of a map for the readers of `bpfmap.impl.kernel.element`."
  [^BpfMap m]
  (let [{:keys [type]} (.-identity m)]
    {:max-entries (map-types/most-keys type (:max-entries (.-spec m)))
     :order (:order (map-types/types type))
     :index-keys (map-types/by-index? type)
     :flags kernel.element/any}))

(defn fold
  "Folds a chunk step of `bpfmap.impl.kernel.element` over a map.

  Options: `:reader`, one of `:batches` and `:keys` (default: the faster one); `:flags` of every
  lookup; `:chunk`, the number of entries to read at a time."
  [^BpfMap m op step init {:keys [reader] :as options}]
  (let [key-size (.size ^Codec (.-key-codec m))
        value-size (.size ^Codec (.-value-codec m))
        reader (or reader (if (batches? m) :batches :keys))
        how (merge (reader-options m) options)]
    (kernel.element/fold-chunks (case reader
                                  :batches (kernel.element/batch-reader
                                            (.-fd m) key-size value-size how)
                                  :keys (kernel.element/key-iterator
                                         (.-elements m) key-size value-size how))
                                step init
                                (fn [outcome first? acc]
                                  (if (and first?
                                           (= :batches reader)
                                           (kernel.element/no-batches? outcome))
                                    (fold m op step init (assoc options :reader :keys))
                                    (throw (reader-failure m op outcome acc)))))))

(defn reduce-entries
  "Reduces over all entries with `(step acc key value)`.

  With `:pairs`, with `(step acc entry)`. Other options are passed to [[fold]]."
  [^BpfMap m step init {:keys [pairs] :as options}]
  (with-error-context [m :reduce]
    (or-fallback (mapping/reduce-entries (when (empty? (dissoc options :pairs)) (.-fast-path m))
                                         (if pairs
                                           (fn [acc k v] (step acc (kernel.element/entry k v)))
                                           step)
                                         init)
      (fold m :reduce
            ((if
              pairs kernel.element/pair-step kernel.element/entry-step) (.-key-codec m)
                                                                        (.-value-codec m) step)
            init options))))

(defn snapshot-of
  "Returns all entries in an empty collection."
  [m empty-coll options]
  (persistent! (reduce-entries m conj! (transient empty-coll) (assoc options :pairs true))))

;; --- properties of a handle

(defn pins-of
  "Returns the atom with the paths at which this handle pinned or opened the map.

  The latest is the last."
  [^BpfMap m]
  (check-open-map m :pinned-path)
  (.-pins m))

(defn close
  "Closes the handle."
  [^BpfMap m]
  (check-open-map m :close)
  (call/close (.-fd m))
  (mapping/release! (.-mapping m)))
