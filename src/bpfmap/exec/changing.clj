(ns ^:no-doc bpfmap.exec.changing
  "Implements the commands that change entries: `put`, `delete`, `take`, `clear` and `freeze`. For a
  map in use by others they require confirmation, see `bpfmap.exec.confirm`."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.confirm :as confirm]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.progress :as progress]
            [bpfmap.impl.map-types :as map-types]))

(set! *warn-on-reflection* true)

(defn- ops-of [m]
  (:ops (input/row-of m)))

(defn- same-map [m]
  (select-keys (bpf/info m) [:id :name :type]))

(defn- before
  "Returns the value of a key before a change, if the map type has lookup."
  [m key]
  (when (:lookup (ops-of m))
    (bpf/lookup m key)))

;; --- put

(defn- way
  "Returns the function that writes, and its options."
  [{:keys [insert replace cpus lock]}]
  (when (and insert replace)
    (throw (arguments/refused "put" :insert true ["cannot be combined with " :replace])))
  (when (contains? #{:each :sum} cpus)
    (throw (arguments/refused "put" :cpus cpus "must be all or the number of a CPU")))
  [(cond insert bpf/insert! replace bpf/replace! :else bpf/put!)
   (not-empty (cond-> {}
                lock (assoc :lock true)
                (= :all cpus) (assoc :cpus :all)
                (int? cpus) (assoc :cpu cpus)))])

(defn- put-keyed [m {:keys [key value]} options]
  (let [[write write-options] (way options)
        earlier (before m key)
        written (if write-options (write m key value write-options) (write m key value))]
    {:map (same-map m) :key key :before earlier :written (boolean written)
     :value (if (:lookup (ops-of m)) (bpf/lookup m key) value)}))

(defn put
  "Writes the value of a key and returns the previous value.

  For a queue, stack or bloom filter, pushes a value, which can be given as the key.

      (put {:ref {:name \"counts\"} :key 7 :value 42})
      ;=> {:map {:id 12, …}, :key 7, :before 41, :written true, :value 42}"
  [{:keys [key value] :as options}]
  (way options)
  (let [keyless? (with-open [m (input/open options :read-only)]
                   (contains? (ops-of m) :push!))
        options (if (and keyless? (nil? value))
                  (-> options (dissoc :key) (assoc :value key))
                  options)]
    (cond
      (and keyless? (some? (:key options)))
      (throw (arguments/refused "put" :key key "cannot be used with a map that has no keys"
               "give only the value"))
      (nil? (:value options))
      (throw (arguments/missing-option "put" :value)))
    (input/call-typed options :read-write [:key :value]
      (fn [m {:keys [value] :as typed}]
        (confirm/check m options (if keyless? "Push a value into it?" "Write an entry of it?"))
        (if keyless?
          (do (bpf/push! m value)
              {:map (same-map m) :value value :written true})
          (put-keyed m typed options))))))

;; --- delete and take

(defn delete
  "Deletes a key and returns its value.

      (delete {:ref {:name \"counts\"} :key 7}) ;=> {:map {:id 12, …}, :key 7, :before 42, :deleted true}"
  [options]
  (input/call-typed options :read-write [:key]
    (fn [m {:keys [key]}]
      (confirm/check m options "Delete an entry of it?")
      (let [earlier (when (:delete! (ops-of m)) (before m key))]
        {:map (same-map m) :key key :before earlier :deleted (bpf/delete! m key)}))))

(defn take-entry
  "Looks up and deletes the entry of a key in one operation.

  For a queue or stack without a key, pops the next value. Returns nil if there is no entry.

      (take-entry {:ref {:name \"counts\"} :key 7}) ;=> {:key 7, :value 42}"
  [options]
  (input/call-typed options :read-write [:key]
    (fn [m {:keys [key]}]
      (confirm/check m options "Take an entry out of it?")
      (let [pops? (:pop! (ops-of m))
            v (if pops? (bpf/pop! m ::none) (bpf/take! m key ::none))]
        (when-not (= ::none v)
          (cond-> {:value v} (not pops?) (assoc :key key)))))))

;; --- clear

(defn- check-clearable
  "Throws `:not-supported` if the entries of a map cannot all be deleted.

  The error has the reason."
  [m]
  (let [{:keys [ops]} (input/row-of m)
        {:keys [id name type value-size] :as info} (bpf/info m)
        missing (cond
                  (:pop! ops) nil
                  (not (:delete! ops)) :delete!
                  (not (or (:next-key ops) (:reduce ops))) :reduce)]
    (when missing
      (throw (error/error :not-supported
                          (str "Map " (error/id-and-name info) ", " (clojure.core/name type)
                               ", cannot be cleared")
                          {:bpfmap/op :clear :bpfmap/map {:id id :name name :type type}
                           :bpfmap/hint (map-types/alternative type missing value-size)})))))

(def ^:private keys-at-a-time "The number of keys that `clear` deletes in one step." 4096)

(defn- all-keys
  "Returns the keys of a map to reduce, each once."
  [m]
  (let [{:keys [ops]} (input/row-of m)
        {:keys [type max-entries]} (bpf/spec m)]
    (if (:reduce ops)
      (eduction (map key) m)
      ;; Others may add keys as fast as they are read.
      (into []
            (take (map-types/most-keys type max-entries))
            (take-while some? (iterate #(bpf/next-key m %) (bpf/next-key m)))))))

(defn- delete-all [m]
  (if (:pop! (ops-of m))
    (bpf/drain-into! m (fn [n _] (inc (long n))) 0)
    (transduce (comp (progress/counting "entries") (partition-all keys-at-a-time))
               (completing (fn [n ks] (+ (long n) (long (bpf/delete-all! m ks)))))
               0 (all-keys m))))

(defn clear
  "Deletes all entries of a map; returns how many, and how many it has afterwards.

  Entries that others add meanwhile stay. Without `:entries`, the kernel cannot count them.

      (clear {:ref {:name \"flows\"}}) ;=> {:map {:id 12, …}, :deleted 1024, :entries 0}"
  [options]
  (with-open [m (input/open options :read-write)]
    (check-clearable m)
    (confirm/check m options "Delete all of its entries?")
    (let [n (delete-all m)]
      (cond-> {:map (same-map m) :deleted n}
        (:reduce (ops-of m)) (assoc :entries (bpf/count-entries m))))))

;; --- freeze

(defn freeze
  "Makes a map read-only for user space, permanently.

      (freeze {:ref {:name \"limits\"}}) ;=> {:id 12, :name \"limits\", :type :array, :frozen true}"
  [options]
  (with-open [m (input/open options :read-write)]
    (confirm/check m options "Freeze it, for good and for every process?")
    (bpf/freeze! m)
    (select-keys (bpf/info m) [:id :name :type :frozen])))
