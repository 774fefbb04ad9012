(ns ^:no-doc bpfmap.impl.map.batch-ops
  "Operations on many elements of an open map."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.element :as kernel.element]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map :refer [with-error-context]]
            [bpfmap.impl.map.references :as references])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.sys Bytes Codec)
           (clojure.lang ExceptionInfo IKVReduce IReduce IReduceInit Seqable)
           (java.lang.foreign MemorySegment)
           (java.util.concurrent.locks LockSupport)))

(set! *warn-on-reflection* true)

(defn- row [^BpfMap m]
  (map-types/types (:type (bpf-map/identity-of m))))

(defn- invalid [^BpfMap m op what x]
  (error/error :invalid-value (str what ", got " (error/printed x))
               {:bpfmap/op op :bpfmap/map (bpf-map/identity-of m)}))

;; --- writing and deleting

(defn- done-or-throw
  "Returns the number of elements done; adds it to the error if the kernel failed."
  [^BpfMap m op [done outcome] total]
  (if (zero? (long outcome))
    done
    (let [e (kernel.element/failure m op outcome)]
      (throw (ex-info (str (ex-message e) "; " done " of " total " were done")
                      (assoc (ex-data e) :bpfmap/done done)
                      e)))))

(defn- check-entry [m op entry]
  (if (and (or (vector? entry) (map-entry? entry)) (= 2 (count entry)))
    entry
    (throw (invalid m op "An entry must be a pair of key and value" entry))))

(defn- with-index
  "Runs f.
  If f throws, adds the index of the argument to the error."
  [i f]
  (try
    (f)
    (catch ExceptionInfo e
      (throw (ex-info (str "Number " i ": " (ex-message e)) (assoc (ex-data e) :bpfmap/index i)
                      e)))))

(defn- check-reducible [m op xs]
  (when-not (or (nil? xs) (coll? xs) (instance? IReduceInit xs) (instance? Iterable xs))
    (throw (invalid m op "The argument must be a collection" xs))))

(defn- count-written-keys
  "Returns how many of the written keys the map contains, each counted once.

  In a map that evicts, only the keys that are still present count."
  [^BpfMap m writer]
  (let [{:keys [evicts order]} (row m)]
    (kernel.element/count-present writer (= :prefix order) (when evicts (.-elements m)))))

(defn put-all!
  "Writes all entries; returns how many of their keys the map then contains.

  Writes nothing if an entry cannot be encoded."
  [^BpfMap m entries options]
  (with-error-context [m :put-all!]
    (let [flags (bpf-map/check-options m :put-all! options)
          key-codec (.-key-codec m)
          value-codec (.-value-codec m)
          resolvers (.-resolvers m)
          ctx {:op :put-all! :map (bpf-map/identity-of m)}
          scope (references/new-scope)]
      (check-reducible m :put-all! entries)
      (with-open [writer (kernel.element/batch-writer (bpf-map/descriptor m) key-codec value-codec)]
        (try
          (reduce (fn [^long i entry]
                    (with-index i (fn []
                                    (let [[k v] (check-entry m :put-all! entry)
                                          v (bpf-map/repeat-for-cpus m v options)]
                                      (if resolvers
                                        (kernel.element/add writer key-codec value-codec
                                                            (references/resolve-key
                                                             resolvers scope k ctx)
                                                            (references/resolve-value
                                                             resolvers scope v ctx))
                                        (kernel.element/add writer key-codec value-codec k v)))))
                    (inc i))
                  0 entries)
          (done-or-throw m :put-all!
                         (kernel.element/write-all writer (.-elements m)
                                                   (contains? (:batch (row m)) :write)
                                                   flags)
                         (.size writer))
          (count-written-keys m writer)
          (finally (references/release-all! scope)))))))

(defn delete-all!
  "Deletes all keys; returns how many existed."
  [^BpfMap m ks]
  (with-error-context [m :delete-all!]
    (let [key-codec (.-key-codec m)
          resolvers (.-resolvers m)
          scope (references/new-scope)]
      (check-reducible m :delete-all! ks)
      (with-open [writer (kernel.element/batch-writer (bpf-map/descriptor m) key-codec nil)]
        (try
          (reduce (fn [^long i k]
                    (when-not (bpf-map/out-of-range-index? m k)
                      (with-index i
                        #(let [k
                               (if resolvers
                                 (bpf-map/resolve-key m :delete-all! scope k ::absent)
                                 k)]
                           (when-not (identical? ::absent k)
                             (kernel.element/add writer key-codec nil k nil)))))
                    (inc i))
                  0 ks)
          (let [done (done-or-throw m :delete-all!
                                    (kernel.element/delete-all writer (.-elements m)
                                                               (contains? (:batch (row m)) :delete)
                                                               (bpf-map/missing-errnos m))
                                    (.size writer))]
            ;; The kernel reports two deletions of a slot that is given twice.
            (if (:index (row m)) (kernel.element/count-present writer false nil) done))
          (finally (references/release-all! scope)))))))

(defn lookup-all
  "Returns the entries of the keys that exist, as a map."
  [^BpfMap m ks options]
  (with-error-context [m :lookup-all]
    (check-reducible m :lookup-all ks)
    (bpf-map/check-options m :lookup-all options)
    (persistent!
     (reduce (fn [acc k]
               (let [v (bpf-map/lookup m k ::absent options)]
                 (if (identical? ::absent v) acc (assoc! acc k v))))
             (transient {}) ks))))

;; --- reading everything

(defn- reading-options
  "Checks options; returns those for the fold, and a function for each value."
  [m op options]
  [{:flags (bpf-map/check-options m op options)} (bpf-map/cpu-value m options)])

(deftype Entries [m fold-options of-value]
  IReduceInit
  (reduce [_ f init]
    (bpf-map/reduce-entries m (fn [acc k v] (f acc (kernel.element/entry k (of-value v)))) init
                            fold-options))
  IReduce
  (reduce [this f]
    (reduce f (seq this)))
  IKVReduce
  (kvreduce [_ f init]
    (bpf-map/reduce-entries m (fn [acc k v] (f acc k (of-value v))) init fold-options))
  Seqable
  (seq [this]
    (seq (into [] this)))
  Object
  (toString [_]
    (str "#<entries of " m ">")))

(defmethod print-method Entries [entries ^java.io.Writer w]
  (.write w (str entries)))

(defn entries
  "Returns all entries as a reducible, read again by every reduction."
  [^BpfMap m options]
  (bpf-map/check-allowed m :entries)
  (let [[fold-options of-value] (reading-options m :entries options)]
    (Entries. m fold-options of-value)))

(defn snapshot
  "Returns all entries as a map."
  [^BpfMap m options]
  (bpf-map/check-allowed m :snapshot)
  (let [[fold-options of-value] (reading-options m :snapshot options)
        all (bpf-map/snapshot-of m {} fold-options)]
    (if (= identity of-value)
      all
      (update-vals all of-value))))

(defn count-entries
  "Returns the number of entries.

  With a deadline, a time of `System/nanoTime`, returns nil if counting takes longer."
  ([^BpfMap m] (count-entries m nil))
  ([^BpfMap m deadline]
   (with-error-context [m :count-entries]
     (if (:every-index (row m))
       (:max-entries (bpf-map/spec-of m))
       (bpf-map/fold m :count-entries
                     (if deadline
                       (kernel.element/count-step-until deadline)
                       kernel.element/count-step)
                     0 nil)))))

;; --- draining

(def ^:private most-passes
  "The largest number of iterations that drain a map while others add entries."
  64)

(defn- take-all
  "Calls `(pass acc)`, which takes entries and returns acc, until all are taken.

  `(taken)` returns how many were taken so far.
  An iteration misses entries while the kernel resizes the map (`:resizes` of its type). Such a map
  is iterated again until two passes, 2 ms apart, take nothing. A pass stops all with a `reduced`."
  [^BpfMap m taken pass init]
  (loop [acc init passes 1 idle 0]
    (let [before (long (taken))
          acc (pass acc)]
      (cond
        (or (reduced? acc) (not (:resizes (row m))) (= most-passes passes)) (unreduced acc)
        (< before (long (taken))) (recur acc (inc passes) 0)
        (= 1 idle) acc
        :else (do (LockSupport/parkNanos 2000000)
                  (recur acc (inc passes) 1))))))

(defn- with-taken-in-error
  "Runs f.
  If f throws, adds the entries already removed from the map to the error."
  [^BpfMap m taken f]
  (try
    (f)
    (catch Throwable e
      (let [e (call/in-context e {:op :drain! :map (bpf-map/identity-of m)})]
        (throw (ex-info (ex-message e) (assoc (ex-data e) :bpfmap/entries (persistent! @taken))
                        e))))))

(defn- drain-chunks
  "Takes everything with a system call for each chunk of entries.

  No function of the caller runs between taking and keeping an entry. Returns nil if the kernel
  has no batches."
  [^BpfMap m flags]
  (let [key-codec (.-key-codec m)
        value-codec (.-value-codec m)
        taken (volatile! (transient {}))]
    (with-taken-in-error m taken
      (fn []
        (take-all
         m #(count @taken)
         (fn [_]
           (kernel.element/fold-chunks
            (kernel.element/batch-reader (bpf-map/descriptor m) (.size ^Codec key-codec)
                                         (.size ^Codec value-codec)
                                         (assoc (bpf-map/reader-options m)
                                                :flags flags :delete true))
            (kernel.element/entry-step key-codec value-codec
                                       (fn [_ k v] (vswap! taken assoc! k v) nil))
            nil
            (fn [outcome first? _]
              (if (and first? (kernel.element/no-batches? outcome))
                (vreset! taken nil)
                (throw (bpf-map/reader-failure m :drain! outcome nil))))))
         nil)
        (some-> @taken persistent!)))))

(defn- drain-each
  "Takes entries one by one and reduces over them with `(step acc key value raw)`.

  An entry is passed on before the next is taken. Entries are taken by the bytes of their keys,
  `raw`."
  [^BpfMap m op step init flags]
  (let [key-codec (.-key-codec m)
        value-codec (.-value-codec m)
        take-out (fn [codec k]
                   (kernel.element/lookup-and-delete (.-elements m) codec value-codec k ::gone flags
                                                     m op))]
    (if (nil? key-codec)
      ;; At most max-entries, because others may push as fast as this pops.
      (loop [acc init n (long (:max-entries (bpf-map/spec-of m)))]
        (let [v (if (zero? n) ::gone (take-out nil nil))]
          (if (identical? ::gone v)
            acc
            (let [acc (step acc nil v nil)]
              (if (reduced? acc) (unreduced acc) (recur acc (dec n)))))))
      (let [taken (volatile! 0)
            key-step (kernel.element/key-step
                      key-codec
                      (fn [acc k raw]
                        (let [v (take-out kernel.element/raw-key-codec raw)]
                          (if (identical? ::gone v)
                            acc
                            (let [acc (do (vswap! taken inc) (step acc k v raw))]
                              ;; the fold removes one reduced
                              (if (reduced? acc) (reduced acc) acc))))))]
        (take-all m #(deref taken) #(bpf-map/fold m op key-step % nil) init)))))

(defn- add-taken
  "Adds an entry to the taken ones.

  Codecs of the caller may decode several keys to the same data. Such a key is added as its bytes."
  [taken k v ^MemorySegment raw]
  (assoc! taken
          (if (identical? ::none (get taken k ::none))
            k
            (bytes/wrap (Bytes/copyOut raw 0 (int (.byteSize raw)))))
          v))

(defn drain!
  "Takes everything: a map of entries, or a vector of values without keys."
  [^BpfMap m options]
  (with-error-context [m :drain!]
    (let [flags (bpf-map/check-options m :drain! options)
          keyless? (nil? (.-key-codec m))
          {:keys [batch]} (row m)]
      ;; An entry that cannot be decoded must not be taken, so only types that decode any bytes
      ;; are taken in chunks.
      (or (when (and (contains? batch :take)
                     (.total ^Codec (.-key-codec m))
                     (.total ^Codec (.-value-codec m)))
            (drain-chunks m flags))
          (let [taken (volatile! (transient (if keyless? [] {})))]
            (with-taken-in-error m taken
              (fn []
                (drain-each m :drain!
                            (fn [_ k v raw]
                              (vswap! taken #(if keyless? (conj! % v) (add-taken % k v raw)))
                              nil) nil flags)
                (persistent! @taken))))))))

(defn drain-into!
  "Takes entries one by one and reduces over them with `(f acc entry)`.

  Without keys, reduces over values."
  [^BpfMap m f init options]
  (with-error-context [m :drain-into!]
    (let [flags (bpf-map/check-options m :drain-into! options)]
      (when (= :whole (:drains (row m)))
        (bpf-map/refuse m :drain-into! :not-supported
                        (str "a map of type " (:type (bpf-map/identity-of m))
                             " must be drained as a whole, because the kernel cannot take a single entry "
                             "with its value in one step; use (drain! m)")))
      (drain-each m :drain-into!
                  (if (nil? (.-key-codec m))
                    (fn [acc _ v _] (f acc v))
                    (fn [acc k v _] (f acc (kernel.element/entry k v))))
                  init flags))))
