(ns ^:no-doc bpfmap.exec.changing
  "Implements the commands that change entries: `put`, `delete`, `take`, `clear` and `freeze`. For a
  map in use by others they require confirmation, see `bpfmap.exec.confirm`."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.confirm :as confirm]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.progress :as progress]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]))

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

(def ^:private most-tries "The number of times that a changing value is read again." 1000)

(defn- of-cpus
  "Returns a function that applies f to the values of all CPUs, or of one."
  [m cpus f]
  (let [possible (input/cpus-of m)]
    (input/check cpus possible)
    (cond
      (nil? possible) f
      (= :all cpus) #(mapv f %)
      (int? cpus) (do (input/picker cpus possible) ; throws for an unknown CPU
                      #(update % (.indexOf ^java.util.List possible cpus) f))
      :else (throw (arguments/refused "put" :field true
                     ["of a per-CPU map requires " :cpus] "give all, or the number of a CPU")))))

(defn- put-field
  "Changes one field of a value.

  Reads the value twice, and starts again if it changed. The kernel has no operation for that. A change by others between the last read and the write is
  lost."
  [m {:keys [key]} {:keys [field value cpus] :as options}]
  (let [lock (when (bpf-map/locked? m) {:lock true})
        change (of-cpus m cpus (input/field-changer (bpf/spec m) field value))
        read-it (if lock #(bpf/lookup m key nil lock) #(bpf/lookup m key))
        write-it (if lock #(bpf/replace! m key % lock) #(bpf/replace! m key %))]
    (confirm/check m options "Change a field of it?")
    (loop [n 1]
      (let [before (read-it)]
        (cond
          (nil? before) {:map (same-map m) :key key :before nil :written false}
          ;; Unlike =, equals is true for two NaN.
          (not (.equals ^Object before (read-it)))
          (if (< n (long most-tries))
            (recur (inc n))
            (throw (error/error :busy "The value changes faster than it can be read"
                                {:bpfmap/op :put :bpfmap/map (same-map m)
                                 :bpfmap/hint "stop what writes it, or put the whole value"})))
          :else (let [written (write-it (change before))]
                  {:map (same-map m) :key key :before before :written (boolean written)
                   :value (read-it)}))))))

(defn- check-field [{:keys [insert replace lock value]}]
  (doseq [[k x] {:insert insert :replace replace :lock lock} :when x]
    (throw (arguments/refused "put" k true ["cannot be combined with " :field]
             (when (= :lock k) "the lock of a value is held anyway"))))
  (when (nil? value)
    (throw (arguments/missing-option "put" :value))))

(defn- write-rows
  "Writes rows and returns how many the map has, and how many were skipped."
  [m rows {:keys [insert replace] :as options}]
  (let [[write write-options] (way options)
        pairs (eduction (progress/counting "entries written") (map (juxt :key :value)) rows)]
    (cond
      (contains? (ops-of m) :push!) (do (run! (fn [[_ v]] (bpf/push! m v)) pairs)
                                        {:written (count rows) :skipped 0 :missing 0})
      (or insert replace)
      (let [write (if write-options #(write m %1 %2 write-options) #(write m %1 %2))
            n (reduce (fn [n [k v]] (if (write k v) (inc (long n)) n)) 0 pairs)]
        {:written n :skipped (- (count rows) n) :missing 0})
      :else
      (let [n (if write-options (bpf/put-all! m pairs write-options) (bpf/put-all! m pairs))
            keys (count (into #{} (map :id) rows))
            repeated (- (count rows) keys)]
        (cond-> {:written n :skipped 0 :missing (- keys (long n))}
          (pos? repeated) (assoc :repeated repeated))))))

(defn- check-file [{:keys [key value field cpus]}]
  (doseq [[k x] {:key key :value value :field field} :when (some? x)]
    (throw (arguments/refused "put" k x ["cannot be combined with " :file])))
  (when (int? cpus)
    (throw (arguments/refused "put" :cpus cpus ["must be all with " :file]))))

(defn- put-file
  "Writes the entries in a file, all or, if one does not fit, none."
  [{:keys [file] :as options}]
  (check-file options)
  (input/call-typed options :read-write []
    (fn [m _ keep]
      (confirm/check m options "Write the entries of the file into it?")
      (let [rows ((requiring-resolve 'bpfmap.exec.entry-file/rows) m options keep)]
        (cond-> (merge {:map (same-map m) :file file :read (count rows)}
                       (write-rows m rows options))
          (:reduce (ops-of m)) (assoc :entries (bpf/count-entries m)))))))

(defn- put-whole
  "Writes a value, or pushes it to a map without keys."
  [keyless? options]
  (input/call-typed options :read-write [:key :value]
    (fn [m {:keys [value] :as typed} _]
      (confirm/check m options (if keyless? "Push a value into it?" "Write an entry of it?"))
      (if keyless?
        (do (bpf/push! m value)
            {:map (same-map m) :value value :written true})
        (put-keyed m typed options)))))

(defn- put-one
  "Writes one entry or one field, or pushes one value."
  [{:keys [key value field] :as options}]
  (when field (check-field options))
  (let [keyless? (with-open [m (input/open options :read-only)]
                   (contains? (ops-of m) :push!))
        options (if (and keyless? (nil? value))
                  (-> options (dissoc :key) (assoc :value key))
                  options)]
    (cond
      (and keyless? field)
      (throw (arguments/refused "put" :field true "cannot be used with a map that has no keys"))
      (and keyless? (some? (:key options)))
      (throw (arguments/refused "put" :key key "cannot be used with a map that has no keys"
               "give only the value"))
      (nil? (:value options))
      (throw (arguments/missing-option "put" :value)))
    (if field
      (input/call-typed options :read-write [:key]
        (fn [m typed _] (put-field m typed options)))
      (put-whole keyless? options))))

(defn put
  "Writes the value of a key and returns the previous value.

  With `:field`, changes only this field of the value. With `:file`, writes the entries in a file;
  the result has how many were `:read` and `:written`, how many had the key of a later one
  (`:repeated`), and how many `:entries` the map has then. For a queue, stack or bloom filter,
  pushes a value, which can be given as the key.

      (put {:ref {:name \"counts\"} :key 7 :value 42})
      ;=> {:map {:id 12, …}, :key 7, :before 41, :written true, :value 42}"
  [{:keys [key file] :as options}]
  (way options)
  (cond
    file (put-file options)
    (nil? key) (throw (arguments/missing-option "put" :key :file))
    :else (put-one options)))

;; --- delete and take

(defn delete
  "Deletes a key and returns its value.

      (delete {:ref {:name \"counts\"} :key 7}) ;=> {:map {:id 12, …}, :key 7, :before 42, :deleted true}"
  [options]
  (input/call-typed options :read-write [:key]
    (fn [m {:keys [key]} _]
      (confirm/check m options "Delete an entry of it?")
      (let [earlier (when (:delete! (ops-of m)) (before m key))]
        {:map (same-map m) :key key :before earlier :deleted (bpf/delete! m key)}))))

(defn take-entry
  "Looks up and deletes the entry of a key in one operation.

  For a queue or stack without a key, pops the next value. Returns nil if there is no entry.

      (take-entry {:ref {:name \"counts\"} :key 7}) ;=> {:key 7, :value 42}"
  [options]
  (input/call-typed options :read-write [:key]
    (fn [m {:keys [key] :as typed} _]
      (input/check-key m "take" typed)
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
    (bpf/drain-into! m ((progress/counting "entries") (fn [n _] (inc (long n)))) 0)
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
