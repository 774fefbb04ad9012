(ns bpfmap.exec.diff
  "The command `diff`: what is other between two times, two maps, or a map and what was saved of one."
  (:require [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.live :as live]
            [bpfmap.exec.reading :as reading]
            [bpfmap.exec.reference :as reference]
            [bpfmap.exec.saving :as saving]
            [bpfmap.exec.where :as where]))

(set! *warn-on-reflection* true)

(defn- file-of
  "The file of a saved map; nil for a map. An open one is not asked for a key."
  [source]
  (when (map? source) (:file source)))

(defn- entries-of
  "The entries of a map that is there or was saved, as a map."
  [source {:keys [cpus] :as options}]
  (if-let [file (file-of source)]
    (into {} (:entries (saving/read-file file)))
    (with-open [m (reference/open (assoc options :ref source) :read-only)]
      (into {} (map (juxt :key :value)) (reading/entries m {:cpus cpus})))))

(defn difference
  "Rows of what is other in the second of two maps of entries: `{:change :key :old :new}`, with `:per-second` where seconds
  lie between them.

      (difference {1 1, 2 2} {1 1, 2 5, 3 3} nil)
      ;=> [{:change :changed :key 2 :old 2 :new 5} {:change :added :key 3 :new 3}]"
  [old new seconds]
  (into (into [] (for [[k v] new
                       :let [before (get old k ::none)
                             added? (= ::none before)]
                       :when (not= before v)]
                   (cond-> {:change (if added? :added :changed) :key k}
                     (not added?) (assoc :old before)
                     true (assoc :new v)
                     seconds (assoc :per-second (live/rates (when-not added? before) v seconds)))))
        (for [[k v] old :when (not (contains? new k))]
          {:change :removed :key k :old v})))

(defn diff
  "What is other in `:new` than in `:old`, or in `:old` itself `:seconds` later; each a map or the file of a saved one, whose
  name ends in .edn. The metadata says how many are the `:same`.

      (diff {:old {:name \"flows\"} :seconds 1}) ;=> [{:change :changed, :key 7, :old 1, :new 3, :per-second 2.0}]"
  [{:keys [old new seconds] :as options}]
  (when (and new seconds)
    (throw (arguments/refused "diff" :seconds seconds "it is for one map, and two were given")))
  (when (and (nil? new) (file-of old))
    (throw (arguments/refused "diff" :old (file-of old) "a file does not change: give a map as NEW")))
  (let [seconds (or seconds 1.0)
        before (entries-of old options)
        began (System/nanoTime)
        _ (when-not new (Thread/sleep (long (* 1000 (double seconds)))))
        apart (/ (- (System/nanoTime) began) 1e9)
        after (entries-of (or new old) options)
        rows (difference before after (when-not new apart))]
    (with-meta (if (:sort options)
                 (where/rows options rows)
                 (where/rows (assoc options :sort {:path ["key"]}) rows))
      {:same (- (count after) (count (remove #(= :removed (:change %)) rows)))})))
