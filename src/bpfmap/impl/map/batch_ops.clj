(ns ^:no-doc bpfmap.impl.map.batch-ops
  "Operations on many elements of an open map at once."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.element :as element]
            [bpfmap.impl.map.bpf-map :as bpf-map :refer [with-error-context]]
            [bpfmap.impl.map.element-ops :as element-ops]
            [bpfmap.impl.map.references :as references]
            [bpfmap.impl.rules :as rules])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.sys Bytes Codec)
           (clojure.lang ExceptionInfo IKVReduce IReduce IReduceInit Seqable)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(defn- row [^BpfMap m]
  (rules/types (:type (bpf-map/identity-of m))))

(defn- not-many [^BpfMap m op what x]
  (error/error :invalid-value (str "Not " what ": " (pr-str (error/shown x)))
               {:bpfmap/op op :bpfmap/map (bpf-map/identity-of m)}))

;; ---------------------------------------------------------------- writing and deleting

(defn- finished
  "How many were done; throws where the kernel ended it, with that number."
  [^BpfMap m op [done outcome] total]
  (if (zero? (long outcome))
    done
    (let [e (element/failure m op outcome)]
      (throw (ex-info (str (ex-message e) "; " done " of " total " were done")
                      (assoc (ex-data e) :bpfmap/done done)
                      e)))))

(defn- pair [m op entry]
  (if (and (or (vector? entry) (map-entry? entry)) (= 2 (count entry)))
    entry
    (throw (not-many m op "an entry, a pair of key and value" entry))))

(defn- indexed
  "Runs f; an error of its says which of the things given it is about."
  [i f]
  (try
    (f)
    (catch ExceptionInfo e
      (throw (ex-info (str "Number " i ": " (ex-message e)) (assoc (ex-data e) :bpfmap/index i)
                      e)))))

(defn- check-reducible [m op xs]
  (when-not (or (nil? xs) (coll? xs) (instance? IReduceInit xs) (instance? Iterable xs))
    (throw (not-many m op "a collection" xs))))

(defn- held-keys
  "How many of the keys written the map holds: each once, and in a map that evicts, only those
  that are still there."
  [^BpfMap m bulk]
  (let [{:keys [evicts order]} (row m)]
    (element/present bulk (= :prefix order) (when evicts (.-elements m)))))

(defn put-all!
  "Writes all entries; returns how many of their keys the map holds afterwards. Nothing is written
  unless all can be encoded."
  [^BpfMap m entries options]
  (with-error-context [m :put-all!]
    (let [flags (element-ops/check-options m :put-all! options)
          key-codec (.-key-codec m)
          value-codec (.-value-codec m)
          bridge (.-bridge m)
          ctx {:op :put-all! :map (bpf-map/identity-of m)}
          held (references/holding)]
      (check-reducible m :put-all! entries)
      (with-open [bulk (element/bulk (bpf-map/descriptor m) key-codec value-codec)]
        (try
          (reduce (fn [^long i entry]
                    (indexed i (fn []
                                 (let [[k v] (pair m :put-all! entry)
                                       v (element-ops/repeat-for-cpus m v options)]
                                   (if bridge
                                     (element/collect bulk key-codec value-codec
                                                 (references/key-in bridge held k ctx)
                                                 (references/value-in bridge held v ctx))
                                     (element/collect bulk key-codec value-codec k v)))))
                    (inc i))
                  0 entries)
          (finished m :put-all!
                    (element/write-bulk bulk (.-elements m) (contains? (:batch (row m)) :write)
                                        flags)
                    (.size bulk))
          (held-keys m bulk)
          (finally (references/release-all! held)))))))

(defn delete-all!
  "Deletes all keys; returns how many were there."
  [^BpfMap m ks]
  (with-error-context [m :delete-all!]
    (let [key-codec (.-key-codec m)
          bridge (.-bridge m)
          held (references/holding)]
      (check-reducible m :delete-all! ks)
      (with-open [bulk (element/bulk (bpf-map/descriptor m) key-codec nil)]
        (try
          (reduce (fn [^long i k]
                    (when-not (element-ops/out-of-range-index? m k)
                      (indexed i
                               #(let [k
                                      (if bridge (bpf-map/key-in m :delete-all! held k ::absent) k)]
                                  (when-not (identical? ::absent k)
                                    (element/collect bulk key-codec nil k nil)))))
                    (inc i))
                  0 ks)
          (let [done (finished m :delete-all!
                               (element/delete-bulk bulk (.-elements m)
                                               (contains? (:batch (row m)) :delete)
                                               (element-ops/not-there m))
                               (.size bulk))]
            ;; A slot that is named twice is deleted twice, as far as the kernel says.
            (if (:index? (row m)) (element/present bulk false nil) done))
          (finally (references/release-all! held)))))))

(defn lookup-all
  "The entries of those keys that are there, as a map."
  [^BpfMap m ks options]
  (with-error-context [m :lookup-all]
    (check-reducible m :lookup-all ks)
    (element-ops/check-options m :lookup-all options)
    (persistent!
     (reduce (fn [acc k]
               (let [v (element-ops/lookup m k ::absent options)]
                 (if (identical? ::absent v) acc (assoc! acc k v))))
             (transient {}) ks))))

;; ---------------------------------------------------------------- reading everything

(defn- reading
  "The options of a fold over a map, checked, and the function from a value to what they ask for."
  [m op options]
  [{:flags (element-ops/check-options m op options)} (element-ops/cpu-value m options)])

(deftype Entries [m fold-options of-value]
  IReduceInit
  (reduce [_ f init]
    (bpf-map/reduce-entries m (fn [acc k v] (f acc (element/entry k (of-value v)))) init
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
  "All entries as something to reduce, read anew each time."
  [^BpfMap m options]
  (bpf-map/check-allowed m :entries)
  (let [[fold-options of-value] (reading m :entries options)]
    (Entries. m fold-options of-value)))

(defn snapshot
  "All entries as a map."
  [^BpfMap m options]
  (bpf-map/check-allowed m :snapshot)
  (let [[fold-options of-value] (reading m :snapshot options)
        all (bpf-map/snapshot-of m {} fold-options)]
    (if (= identity of-value)
      all
      (update-vals all of-value))))

(defn count-entries
  "How many entries there are."
  [^BpfMap m]
  (with-error-context [m :count-entries]
    (if (:every-index (row m))
      (:max-entries (bpf-map/spec-of m))
      (bpf-map/fold m :count-entries element/count-step 0 nil))))

;; ---------------------------------------------------------------- draining

(defn- with-taken
  "Runs f; what an error finds taken already is in it, whatever it is, since it is no longer in
  the map."
  [^BpfMap m taken f]
  (try
    (f)
    (catch Throwable e
      (let [e (call/in-context e {:op :drain! :map (bpf-map/identity-of m)})]
        (throw (ex-info (ex-message e) (assoc (ex-data e) :bpfmap/entries (persistent! @taken))
                        e))))))

(defn- drain-chunks
  "Takes everything with a system call for each chunk of entries. No function of the user's runs
  between taking and keeping."
  [^BpfMap m flags]
  (let [key-codec (.-key-codec m)
        value-codec (.-value-codec m)
        taken (volatile! (transient {}))]
    (with-taken m taken
      (fn []
        (element/fold-chunks
         (element/batches (bpf-map/descriptor m) (.size ^Codec key-codec) (.size ^Codec value-codec)
                     (assoc (bpf-map/reading m) :flags flags :taking true))
         (element/entry-step key-codec value-codec (fn [_ k v] (vswap! taken assoc! k v) nil))
         nil
         (fn [outcome first? _]
           (if (and first? (element/no-batches? outcome))
             (vreset! taken nil)
             (throw (bpf-map/broken-off m :drain! outcome nil)))))
        (some-> @taken persistent!)))))

(defn- drain-each
  "Takes entries one by one and reduces over them with `(step acc key value raw)`, each handed on
  before the next is taken. Entries are taken by the bytes of their keys, `raw`."
  [^BpfMap m op step init flags]
  (let [key-codec (.-key-codec m)
        value-codec (.-value-codec m)
        take-out (fn [codec k]
                   (element/take-out (.-elements m) codec value-codec k ::gone flags m op))]
    (if (nil? key-codec)
      ;; As many as there can be: somebody may push as fast as this pops.
      (loop [acc init n (long (:max-entries (bpf-map/spec-of m)))]
        (let [v (if (zero? n) ::gone (take-out nil nil))]
          (if (identical? ::gone v)
            acc
            (let [acc (step acc nil v nil)]
              (if (reduced? acc) (unreduced acc) (recur acc (dec n)))))))
      (bpf-map/fold m op
                  (element/key-step key-codec (fn [acc k raw]
                                           (let [v (take-out element/raw-key raw)]
                                             (if (identical? ::gone v) acc (step acc k v raw)))))
                  init nil))))

(defn- add-taken
  "Adds an entry to what was taken. A key that is there already, as functions of the user's may
  make one of several, is kept as its bytes."
  [taken k v ^MemorySegment raw]
  (assoc! taken
          (if (identical? ::none (get taken k ::none))
            k
            (bytes/wrap (Bytes/copyOut raw 0 (int (.byteSize raw)))))
          v))

(defn drain!
  "Takes everything: a map of entries; of a map without keys, a vector of values."
  [^BpfMap m options]
  (with-error-context [m :drain!]
    (let [flags (element-ops/check-options m :drain! options)
          keyless? (nil? (.-key-codec m))
          {:keys [batch]} (row m)]
      ;; What cannot be decoded must not be taken, so only types that decode anything are taken in
      ;; chunks.
      (or (when (and (contains? batch :take)
                     (.total ^Codec (.-key-codec m))
                     (.total ^Codec (.-value-codec m)))
            (drain-chunks m flags))
          (let [taken (volatile! (transient (if keyless? [] {})))]
            (with-taken m taken
              (fn []
                (drain-each m :drain!
                            (fn [_ k v raw]
                              (vswap! taken #(if keyless? (conj! % v) (add-taken % k v raw)))
                              nil) nil flags)
                (persistent! @taken))))))))

(defn drain-into!
  "Takes entries one by one and reduces over them with `(f acc entry)`; of a map without keys,
  over values."
  [^BpfMap m f init options]
  (with-error-context [m :drain-into!]
    (let [flags (element-ops/check-options m :drain-into! options)]
      (when (= :whole (:drains (row m)))
        (bpf-map/refuse m :drain-into! :not-supported
                      (str "a map of type " (:type (bpf-map/identity-of m))
                           " is drained as a whole, since the kernel takes no single entry "
                           "and its value in one step: (drain! m)")))
      (drain-each m :drain-into! (if (nil? (.-key-codec m))
                      (fn [acc _ v _] (f acc v))
                      (fn [acc k v _] (f acc (element/entry k v))))
                  init flags))))
