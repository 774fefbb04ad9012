(ns ^:no-doc bpfmap.exec.diff
  "Implements the command `diff`: differences between two readings of a map, two maps, or a map
  and a saved map.

  Entries are compared by their bytes. So keys that differ only in padding are two keys, and a NaN
  equals itself. If the types of two maps differ, or values of several CPUs are combined, entries
  are compared as decoded data."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.progress :as progress]
            [bpfmap.exec.query :as query]
            [bpfmap.exec.shown :as shown]
            [bpfmap.exec.saved-file :as saved-file]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.impl.waiting :as waiting])
  (:import (clojure.lang ExceptionInfo)
           (java.util HashMap)))

(set! *warn-on-reflection* true)

(defn- file-of
  "Returns the file of a source, or nil for a map."
  [source]
  (when (map? source) (:file source)))

(defn- combined
  "Returns the reading of a source with values as `--cpus` selects them."
  [{:keys [value-out] :as read} {:keys [per-cpu]} which possible]
  (input/check which (when per-cpu possible))
  (let [combine (if per-cpu (input/picker which possible) identity)]
    (assoc read :value-out (comp combine value-out) :combined
           (and per-cpu (not (contains? #{nil :each :all} which))))))

(defn- of-file [file {:keys [cpus] :as options}]
  (let [{:keys [entries inner] saved :spec} (saved-file/read-file file)
        spec (saved-file/completed saved)
        {:keys [per-cpu] :as row} (input/row-of-type (:type spec))
        n (when per-cpu (count (second (first entries))))]
    (combined (assoc (raw-entries/types spec n) :spec spec :inner inner
                     :shower (shown/shower options spec nil) :entries
                     (raw-entries/snapshot (saved-file/in-bytes spec entries))
                     :cpus (when (contains? #{nil :each :all} cpus) n))
              row cpus (range (or n 0)))))

(defn- of-map [source {:keys [cpus] :as options}]
  (with-open [m (input/open-typed (assoc options :ref source) :read-only)]
    (input/check-dumpable m {})
    (let [spec (bpf/spec m)
          shower (shown/shower options spec m) ; invalid hints throw before entries are read
          possible (input/cpus-of m)]
      (combined (assoc (raw-entries/types spec (count possible)) :spec spec :cpus
                       (input/cpus-apart m cpus)
                       :shower shower
                       :entries (raw-entries/snapshot
                                 (eduction (progress/counting "entries")
                                           (raw-entries/entries m))))
                (input/row-of m) cpus possible))))

(defn- read-source
  "Returns the entries of a map or file as bytes, and how to decode them.

  The result is `{:spec :cpus :entries :key-out :value-out}`."
  [source options]
  (if-let [file (file-of source)] (of-file file options) (of-map source options)))

;; --- the maps in a map of maps

(defn- content
  "Returns the contents of a map as data that is equal for interchangeable maps."
  [spec entries]
  [(select-keys spec [:type :key-size :value-size :max-entries :flags])
   (raw-entries/snapshot entries)])

(defn- content-of-map
  "Returns the content of a map; nil if it was freed or cannot be iterated."
  [id]
  (try
    (with-open [m (bpf/open {:id id} {:access :read-only})]
      (content (bpf/spec m) (raw-entries/entries m)))
    (catch ExceptionInfo e
      (when-not (contains? #{:not-found :not-supported} (:bpfmap/error (ex-data e)))
        (throw e)))))

(defn- content-of-saved [{:keys [spec entries]}]
  (let [spec (saved-file/completed spec)]
    (content spec (saved-file/in-bytes spec entries))))

(defn- same-inner?
  "Returns a predicate that compares two inner maps, by id or by contents."
  [old new]
  (let [content-in (fn [{:keys [inner]}]
                     (memoize (fn [id]
                                (if inner
                                  (some-> (get inner id) content-of-saved)
                                  (content-of-map id)))))
        old-content (content-in old)
        new-content (content-in new)]
    (fn [{a :map-id} {b :map-id}]
      (or (and (= a b) (not (:inner old)) (not (:inner new)))
          (when-let [content (old-content a)]
            (= content (new-content b)))))))

;; --- comparing

(defn- bytes-type? [type]
  (and (vector? type) (= :bytes (first type))))

(defn- same-layout?
  "Returns true if the bytes of two sources have the same meaning.

  Their types are the same, or at least one has no types."
  [a b]
  (every? (fn [[side size]]
            (and (= (size a) (size b))
                 (or (= (side a) (side b)) (some bytes-type? [(side a) (side b)]))))
          {:key :key-size, :value :value-size}))

(defn- read-as-data
  "Returns the entries of a source with decoded keys and values."
  [{:keys [entries key-out value-out] :as source}]
  (let [all (HashMap.)]
    (run! (fn [[k v]] (.put all (key-out k) (value-out v))) entries)
    (assoc source :entries all :key-out identity :value-out identity)))

(defn- compared
  "Returns the differences of two readings as `{:rows :same}`.

  Rows have `:per-second` if the seconds between the readings are given."
  [old new seconds]
  (let [by-bytes? (same-layout? (:spec old) (:spec new))
        [old new] (if by-bytes? [old new] (map read-as-data [old new]))
        same (volatile! 0)
        of-old (:value-out old)
        of-new (:value-out new)
        inner? (fn [{:keys [spec]}] (:inner (input/row-of-type (:type spec))))
        same? (cond
                (and (inner? old) (inner? new)) (let [same? (same-inner? old new)]
                                                  (fn [a b] (same? (of-old a) (of-new b))))
                (and by-bytes? (not (:combined old))) =
                :else (fn [a b] (raw-entries/same-data? (of-old a) (of-new b))))
        row (fn [change k a b]
              (if (identical? :same change)
                (do (vswap! same inc) nil)
                (let [removed? (identical? :removed change)
                      was (when-not (identical? :added change) (of-old a))
                      is (when-not removed? (of-new b))]
                  (cond-> {:change change :key ((:key-out (if removed? old new)) k)}
                    (some? was) (assoc :old was)
                    (not removed?) (assoc :new is)
                    (and seconds (not removed?)) (assoc :per-second
                                                        (raw-entries/rates was is seconds))))))]
    {:rows (into [] (remove nil?)
                 (raw-entries/compared (:entries old) (:entries new) same? row))
     :same @same}))

(defn- showing
  "Returns a transducer that shows differences by the hints of each source."
  [{old :shower} {new :shower}]
  (if-not (or old new)
    (map identity)
    (map (fn [{:keys [change] :as row}]
           (let [of-old ((:row old) row)
                 of-new ((:row new) row)]
             (cond-> (assoc row :key (:key (if (= :removed change) of-old of-new)))
               (contains? row :old) (assoc :old (:old of-old))
               (contains? row :new) (assoc :new (:new of-new))))))))

(defn diff
  "Returns the differences between two readings.

  `:old` and `:new` are maps, or files of saved maps, whose names end in .edn. Without `:new`,
  `:old` is read twice, `:seconds` apart. The metadata has the numbers of `:added`, `:changed`,
  `:removed` and `:same` entries, before conditions. Throws `:interrupted` if the thread is
  interrupted while it waits.

      (diff {:old {:name \"flows\"} :seconds 1}) ;=> [{:change :changed, :key 7, :old 1, :new 3, :per-second 2.0}]"
  [{:keys [old new seconds cpus] :as options}]
  (when (and new seconds)
    (throw (arguments/refused "diff" :seconds seconds ["cannot be combined with " :new])))
  (when (and (nil? new) (file-of old))
    (throw (arguments/refused "diff" :old (file-of old) ["requires " :new " if it is a file"])))
  (let [seconds (or seconds 1.0)
        before (read-source old options)
        with-fields (fn [after]
                      (let [options (assoc options :fields
                                           (fields/of-changes
                                            (:spec before) (:spec after) cpus (nil? new)))]
                        (query/check options)
                        options))
        _ (when-not new (with-fields before)) ; invalid options throw before the wait
        began (System/nanoTime)
        _ (when-not new (waiting/sleep (* 1000 (double seconds)) :diff))
        apart (/ (- (System/nanoTime) began) 1e9)
        after (read-source (or new old) options)
        options (with-fields after)
        {:keys [rows same]} (compared before after (when-not new apart))
        counts (frequencies (map :change rows))]
    (with-meta (into [] (showing before after)
                     (query/rows (update options :sort #(or % {:path ["key"]})) rows))
      (merge {:added 0 :changed 0 :removed 0 :same same
              :collapsed (:collapsed (:shower after))}
             counts
             (select-keys after [:spec :cpus])))))
