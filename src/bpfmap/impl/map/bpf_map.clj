(ns ^:no-doc bpfmap.impl.map.bpf-map
  "The open map: one descriptor, its codecs, and Clojure's collection interfaces over it.

  Nothing here prints, compares or counts by asking the kernel: a map is an
  identity, not a value."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.element :as element]
            [bpfmap.impl.map.references :as references]
            [bpfmap.impl.memory.fast-path :as fast-path :refer [or-fallback]]
            [bpfmap.impl.memory.mapping :as mapping]
            [bpfmap.impl.rules :as rules]
            [bpfmap.type :as type])
  (:import (bpfmap.sys Codec Fd)
           (clojure.lang ArityException ExceptionInfo IFn IKVReduce ILookup IReduce
                         IReduceInit ITransientAssociative2 ITransientCollection Seqable)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(declare close lookup not-transient reduce-entries snapshot-of)

(defn described
  "An operation on a map, as an error's message begins."
  [identity op]
  (str (name op) " on map " (error/id-and-name identity)))

(defn- kept
  "What a map keeps, in a few words: `\" :u32 -> :u64\"`; references by their kind."
  [{:keys [type key value]}]
  (let [{:keys [refers]} (rules/types type)
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
  [^Fd fd identity spec access refusals elements key-codec value-codec bridge cpus pins row mapping
   direct]
  element/Origin
  (failure [_ op outcome]
    (call/failure (described identity op) outcome
                 {:op op
                  :map identity
                  :fd fd
                  :type (:type identity)
                  :max-entries (:max-entries spec)
                  :access access
                  :alternative (rules/alternative (:type identity) op (:value-size spec))}))

  references/Open
  (descriptor [_] fd)
  (kind [_] :map)
  (id [_] (:id identity))

  ILookup
  (valAt [this k] (lookup this k nil))
  (valAt [this k not-found] (lookup this k not-found))

  ;; For `contains?`, `find` and `select-keys`, which take nothing else that is not a collection
  ;; or a java.util.Map. Those would be counted, compared and printed by asking the kernel.
  ITransientAssociative2
  (containsKey [this k] (not (identical? this (lookup this k this))))
  (entryAt [this k]
    (let [v (lookup this k this)]
      (when-not (identical? this v) (element/entry k v))))
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
         (kept spec) (when (.isClosed fd) " closed") ">")))

(defmethod print-method BpfMap [m ^java.io.Writer w]
  (.write w (str m)))

(defn bpf-map?
  "True for a map opened by this library, also once it is closed."
  [x]
  (instance? BpfMap x))

(defn descriptor
  "The descriptor of an open map, for the other effects namespaces."
  ^Fd [^BpfMap m]
  (.-fd m))

(defn row-of
  "What the rules say of the map's type: its row of `bpfmap.impl.rules`."
  [^BpfMap m]
  (.-row m))

(defn cpus-of
  "The possible CPUs of a per-CPU map, ascending; nil for any other."
  [^BpfMap m]
  (.-cpus m))

;; --- what a handle refuses, before the kernel is asked

(defn refuse
  "Throws the refusal of an operation, before the kernel is asked."
  [^BpfMap m op kind hint]
  (throw (error/error kind (str (described (.-identity m) op) " is refused")
                      {:bpfmap/op op :bpfmap/map (.-identity m) :bpfmap/hint hint})))

(defn check-open-map
  "Throws `:invalid-value` for anything that is no map of this library."
  [x op]
  (when-not (instance? BpfMap x)
    (throw (error/error :invalid-value (str "Not an open map: " (pr-str (error/shown x)))
                        {:bpfmap/op op
                         :bpfmap/hint "it takes what create, open or clone returned"}))))

(defn check-allowed
  "Throws unless this handle does an operation."
  [^BpfMap m op]
  (check-open-map m op)
  (when-some [[kind hint] (get (.-refusals m) op)]
    (refuse m op kind (cond->> hint
                        (= :not-supported kind) (str "a map of type " (:type (.-identity m))
                                                     " has no " (name op) "; ")))))

(defn failed
  "What an operation throws when its body threw: an error as data, with the operation and the map."
  ^Throwable [e op ^BpfMap m]
  (call/in-context e {:op op :map (.-identity m)}))

(defmacro with-error-context
  "Runs an operation unless this handle refuses it; errors thrown get the operation and the map.
  Short, for the JIT."
  [[m op] & body]
  `(do
     (check-allowed ~m ~op)
     (try
       ~@body
       (catch RuntimeException e#
         (throw (failed e# ~op ~m))))))

(defn- not-there?
  "Whether an error says that what a reference names does not exist."
  [e]
  (= :not-found (:bpfmap/error (ex-data e))))

(defn key-in
  "A key as its codec takes it, its reference resolved into `held`; `absent` where it names what
  does not exist (any more)."
  [^BpfMap m op held k absent]
  (try
    (references/key-in (.-bridge m) held k {:op op :map (.-identity m)})
    (catch ExceptionInfo e
      (if (not-there? e) absent (throw e)))))

(defn via-key
  "Calls f with a key whose reference is resolved; `absent` where it names what does not exist
  (any more)."
  [^BpfMap m op k absent f]
  (let [held (references/holding)]
    (try
      (let [resolved (key-in m op held k ::absent)]
        (if (identical? ::absent resolved) absent (f resolved)))
      (finally (references/release-all! held)))))

(defn via-entry
  "Calls f with a key and a value whose references are resolved."
  [^BpfMap m op k v f]
  (let [held (references/holding)
        ctx {:op op :map (.-identity m)}]
    (try
      (f (references/key-in (.-bridge m) held k ctx)
         (references/value-in (.-bridge m) held v ctx))
      (finally (references/release-all! held)))))

(defmacro with-key
  "Runs body with the key k as its codec takes it; see [[via-key]]. Costs nothing where keys are
  no references."
  [[m op k absent] body]
  `(if (nil? (.-bridge ~(vary-meta m assoc :tag `BpfMap)))
     ~body
     (via-key ~m ~op ~k ~absent (fn [~k] ~body))))

(defmacro with-entry
  "Runs body with the key k and the value v as their codecs take them. Costs nothing where they
  are no references."
  [[m op k v] body]
  `(if (nil? (.-bridge ~(vary-meta m assoc :tag `BpfMap)))
     ~body
     (via-entry ~m ~op ~k ~v (fn [~k ~v] ~body))))

;; --- reading: what the collection interfaces need; the rest is in bpfmap.impl.map.element-ops
;; and bpfmap.impl.map.batch-ops

(defn lookup
  "The value of a key, or not-found."
  [^BpfMap m k not-found]
  (with-error-context [m :lookup]
    (or-fallback (fast-path/lookup (.-direct m) k)
      (with-key [m :lookup k not-found]
        (element/lookup (.-elements m) (.-key-codec m) (.-value-codec m) k not-found element/any m
                        :lookup)))))

(defn- not-transient
  "Throws: a map is no transient collection, though it can be asked for a key as one can."
  [^BpfMap m]
  (throw (error/error :not-supported
                      (str "Map " (error/id-and-name (.-identity m))
                           " is not a transient collection")
                      {:bpfmap/map (.-identity m)
                       :bpfmap/hint "use put! or put-all! to write, and snapshot to read all entries as a map"})))

(defn- aborted
  "The exception for a reading that others threw back to the beginning too often, with what it
  came to. Nobody goes on with that, so that of a transient is made persistent."
  [^BpfMap m op so-far]
  (error/error :iteration-aborted (str (described (.-identity m) op) " was aborted")
               {:bpfmap/op op
                :bpfmap/map (.-identity m)
                :bpfmap/so-far (if (and (instance? ITransientCollection so-far)
                                        (not (instance? BpfMap so-far)))
                                  (persistent! so-far)
                                  so-far)
                :bpfmap/hint (str
                              "others delete keys faster than they can be followed; what was seen "
                              "until then is under "
                                  ":bpfmap/so-far; try again")}))

(defn- batches?
  "Whether the kernel reads this map many entries at a time, as far as the rules know."
  [^BpfMap m]
  (let [{:keys [batch batch-read-since]} (rules/types (:type (.-identity m)))]
    (and (contains? batch :read)
         (or (nil? batch-read-since)
             (some-> (call/kernel-release) (rules/at-least? batch-read-since))))))

(defn broken-off
  "The exception for a reader that answered with an error, with what it came to."
  [^BpfMap m op outcome so-far]
  (if (element/aborted? outcome)
    (aborted m op so-far)
    (element/failure m op outcome)))

(defn reading
  "How a map is read, for the readers of `bpfmap.impl.kernel.element`."
  [^BpfMap m]
  (let [{:keys [type]} (.-identity m)]
    {:max-entries (rules/most-keys type (:max-entries (.-spec m)))
     :order (:order (rules/types type))
     :keys-stay (rules/by-index? type)
     :flags element/any}))

(defn fold
  "Folds a step of `bpfmap.impl.kernel.element` over the chunks of a map.

  Of `options`, `:reader` is `:batches`, `:walk`, or nil for the better one; `:flags` are those of
  every lookup, `:chunk` is how many entries to read at a time."
  [^BpfMap m op step init {:keys [reader] :as options}]
  (let [key-size (.size ^Codec (.-key-codec m))
        value-size (.size ^Codec (.-value-codec m))
        reader (or reader (if (batches? m) :batches :walk))
        how (merge (reading m) options)]
    (element/fold-chunks (case reader
                      :batches (element/batches (.-fd m) key-size value-size how)
                      :walk (element/walk (.-elements m) key-size value-size how))
                    step init
                    (fn [outcome first? acc]
                      (if (and first? (= :batches reader) (element/no-batches? outcome))
                        (fold m op step init (assoc options :reader :walk))
                        (throw (broken-off m op outcome acc)))))))

(defn reduce-entries
  "Reduces over all entries with `(step acc key value)`, or with `:pairs` `(step acc entry)`;
  other options are those of [[fold]]."
  [^BpfMap m step init {:keys [pairs] :as options}]
  (with-error-context [m :reduce]
    (or-fallback (fast-path/reduce-entries (when (empty? (dissoc options :pairs)) (.-direct m))
                                         (if pairs
                                           (fn [acc k v] (step acc (element/entry k v)))
                                           step)
                                         init)
      (fold m :reduce
            ((if pairs element/pair-step element/entry-step) (.-key-codec m) (.-value-codec m) step)
            init options))))

(defn snapshot-of
  "All entries, put into an empty collection."
  [m empty-coll options]
  (persistent! (reduce-entries m conj! (transient empty-coll) (assoc options :pairs true))))

;; --- what a handle knows

(defn spec-of
  "The spec of the map."
  [^BpfMap m]
  (check-open-map m :spec)
  (dissoc (.-spec m) :untyped))

(defn identity-of
  "What the map is, for errors: `{:id :name :type}`."
  [^BpfMap m]
  (.-identity m))

(defn pins-of
  "The atom that holds the paths at which this handle pinned the map or opened it, the latest last."
  [^BpfMap m]
  (check-open-map m :pinned-path)
  (.-pins m))

(defn close
  "Closes the handle."
  [^BpfMap m]
  (check-open-map m :close)
  (call/close (.-fd m))
  (mapping/release! (.-mapping m)))
