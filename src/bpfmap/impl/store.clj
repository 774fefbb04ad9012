(ns bpfmap.impl.store
  "The open map: one descriptor, its codecs, and Clojure's collection interfaces over it.

  Nothing here prints, compares or counts by asking the kernel: a map is an
  identity, not a value."
  (:refer-clojure :exclude [clone])
  (:require [bpfmap.codec :as codec]
            [bpfmap.error :as error]
            [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.elements :as el]
            [bpfmap.impl.sys.maps :as maps]
            [bpfmap.rules :as rules]
            [bpfmap.type :as type])
  (:import (bpfmap.sys Fd)
           (clojure.lang ArityException IFn IKVReduce ILookup IReduce IReduceInit Seqable)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(declare lookup reduce-entries)

(defn- described [identity op]
  (str (name op) " on map " (:id identity) (when (seq (:name identity)) (str " (" (:name identity) ")"))))

;; `identity` is {:id :name :type}. `refusals` maps the operations that this handle never does to [kind hint]; nil where
;; it does them all, so that the common case costs nothing. `pin` is an atom with the pinned path.
(deftype BpfMap [^Fd fd identity spec access refusals elements key-codec value-codec pin]
  el/Origin
  (failure [_ op outcome]
    (sys/failure (described identity op) outcome
                 {:op op
                  :map identity
                  :fd fd
                  :type (:type identity)
                  :max-entries (:max-entries spec)
                  :access access
                  :alternative (rules/alternative (:type identity) op)}))

  ILookup
  (valAt [this k] (lookup this k nil))
  (valAt [this k not-found] (lookup this k not-found))

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
    (reduce-entries this (fn [acc k v] (f acc (el/entry k v))) init))

  IReduce
  (reduce [this f]
    (reduce f (seq this)))

  IKVReduce
  (kvreduce [this f init]
    (reduce-entries this f init))

  Seqable
  (seq [this]
    (seq (persistent! (reduce-entries this (fn [acc k v] (conj! acc (el/entry k v))) (transient [])))))

  Closeable
  (close [_] (sys/close fd))

  Object
  (toString [_]
    (str "#<bpf-map " (:id identity) " " (:type identity) " " (pr-str (:name identity))
         " " (type/summary (:key spec)) " -> " (type/summary (:value spec))
         (when (.isClosed fd) " closed") ">")))

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

;; --- what a handle refuses, before the kernel is asked

(def ^:private reads #{:lookup :take! :next-key :reduce})
(def ^:private writes #{:put! :insert! :replace! :delete! :take!})

(defn- refusals
  "The operations that a map of this type, opened this way, never does: op to [kind hint]; nil for none."
  [type access]
  (let [barred (case access
                 :read-only (map #(vector % [:read-only "the map was opened read-only; open it with {:access :read-write}"])
                                 (conj writes :freeze!))
                 :write-only (map #(vector % [:write-only
                                              "the map was opened write-only; open it with {:access :read-write}"])
                                  reads)
                 nil)
        lacking (for [op (into reads writes)
                      :let [instead (rules/alternative type op)]
                      :when instead]
                  [op [:not-supported instead]])]
    (not-empty (into {} cat [barred lacking]))))

(defn- refuse [^BpfMap m op [kind hint]]
  (throw (error/error kind (str (described (.-identity m) op) " is refused")
                      {:bpfmap/op op :bpfmap/map (.-identity m) :bpfmap/hint hint})))

(defn check-open-map
  "Throws `:invalid-value` for anything that is no map of this library."
  [x op]
  (when-not (instance? BpfMap x)
    (throw (error/error :invalid-value (str "Not an open map: " (pr-str (error/shown x)))
                        {:bpfmap/op op :bpfmap/hint "it takes what create, open or clone returned"}))))

(defmacro ^:private operating
  "Runs an operation unless this handle refuses it; errors thrown get the operation and the map."
  [[m op] & body]
  `(do
     (check-open-map ~m ~op)
     (when-some [refusals# (.-refusals ~m)]
       (when-some [refusal# (get refusals# ~op)]
         (refuse ~m ~op refusal#)))
     (try
       ~@body
       (catch RuntimeException e#
         (throw (sys/in-context e# {:op ~op :map (.-identity ~m)}))))))

;; --- elements

(defn lookup
  "The value of a key, or not-found."
  [^BpfMap m k not-found]
  (operating [m :lookup]
    (el/lookup (.-elements m) (.-key-codec m) (.-value-codec m) k not-found m :lookup)))

(defn take!
  "The value of a key, which is deleted in the same step; or not-found."
  [^BpfMap m k not-found]
  (operating [m :take!]
    (el/take-out (.-elements m) (.-key-codec m) (.-value-codec m) k not-found m :take!)))

(defn put!
  "Writes an entry, whether or not the key exists."
  [^BpfMap m k v]
  (operating [m :put!]
    (el/write (.-elements m) (.-key-codec m) (.-value-codec m) k v el/any m :put!))
  m)

(defn insert!
  "Writes an entry whose key does not exist; whether it was written."
  [^BpfMap m k v]
  (operating [m :insert!]
    (el/write (.-elements m) (.-key-codec m) (.-value-codec m) k v el/no-exist m :insert!)))

(defn replace!
  "Writes an entry whose key exists; whether it was written."
  [^BpfMap m k v]
  (operating [m :replace!]
    (el/write (.-elements m) (.-key-codec m) (.-value-codec m) k v el/exist m :replace!)))

(defn delete!
  "Deletes a key; whether it was there."
  [^BpfMap m k]
  (operating [m :delete!]
    (el/delete (.-elements m) (.-key-codec m) k m :delete!)))

(defn next-key
  "The key after k in the kernel's order, or the first one; nil after the last."
  [^BpfMap m k first?]
  (operating [m :next-key]
    (el/next-key (.-elements m) (.-key-codec m) k first? m :next-key)))

(defn reduce-entries
  "Reduces over all entries with `(step acc key value)`; `reader` is `:batches` or `:walk`."
  ([m step init] (reduce-entries m step init :batches))
  ([^BpfMap m step init reader]
   (operating [m :reduce]
     (let [{:keys [key-size value-size max-entries]} (.-spec m)
           refused (fn [outcome first?]
                     (cond
                       (and first? (= :batches reader) (el/no-batches? outcome))
                       (reduce-entries m step init :walk)
                       (el/aborted? outcome)
                       (throw (error/error :iteration-aborted
                                           (str (described (.-identity m) :reduce) " was aborted")
                                           {:bpfmap/op :reduce :bpfmap/map (.-identity m)
                                            :bpfmap/hint (str "others delete keys faster than they can be followed; "
                                                              "try again, or on a kernel with batches (5.6)")}))
                       :else (throw (el/failure m :reduce outcome))))]
       (el/reduce-chunks (case reader
                           :batches (el/batches (.-fd m) key-size value-size max-entries)
                           :walk (el/walk (.-elements m) key-size value-size max-entries))
                         (.-key-codec m) (.-value-codec m) step init refused)))))

;; --- making and reading a handle

(defn handle
  "An open map of a descriptor, its identity and its spec. Elements are usable where the type's layout is known."
  ^BpfMap [fd {:keys [id type key-size value-size]} spec access path]
  (let [known? (:elements (rules/types type))]
    (BpfMap. fd {:id id :name (str (:name spec)) :type type} spec access
             (refusals type access)
             (when known? (el/elements fd key-size value-size))
             (when known? (codec/codec (:key spec) (:types spec) [:key]))
             (when known? (codec/codec (:value spec) (:types spec) [:value]))
             (atom path))))

(defn clone
  "A second handle of the same map: own lifetime, not pinned."
  [^BpfMap m]
  (operating [m :clone]
    (let [fd (sys/duplicate (.-fd m) {:op :clone :map (.-identity m)})]
      (handle fd (merge (.-spec m) (.-identity m)) (.-spec m) (.-access m) nil))))

(defn info
  "What the kernel says of the map now, with the types of key and value."
  [^BpfMap m]
  (operating [m :info]
    (merge (select-keys (.-spec m) [:key :value :untyped])
           (maps/info (.-fd m) {:op :info :map (.-identity m)}))))

(defn freeze!
  "Freezes the map. One that is frozen already stays so."
  [^BpfMap m]
  (operating [m :freeze!]
    (when-not (:frozen? (maps/info (.-fd m) {:op :freeze! :map (.-identity m)}))
      (maps/freeze (.-fd m) {:op :freeze! :map (.-identity m)})))
  m)

(defn spec-of
  "The spec of the map."
  [^BpfMap m]
  (check-open-map m :spec)
  (dissoc (.-spec m) :untyped))

(defn identity-of
  "What the map is, for errors: `{:id :name :type}`."
  [^BpfMap m]
  (.-identity m))

(defn pin-of
  "The atom that holds where this handle is pinned, or nil."
  [^BpfMap m]
  (check-open-map m :pinned-path)
  (.-pin m))

(defn close
  "Closes the handle."
  [^BpfMap m]
  (check-open-map m :close)
  (sys/close (.-fd m)))
