(ns ^:no-doc bpfmap.exec.watch
  "Implements the command `watch`: the changes of a map, as frames to reduce.

  A frame is one reading of the map, compared with the previous one:

  | key           | meaning                                                                           |
  |---------------|-----------------------------------------------------------------------------------|
  | `:map`        | `{:id :name :type :max-entries}`                                                  |
  | `:elapsed` `:interval` | seconds since the first frame, and since the previous one                |
  | `:entries` `:added` `:changed` `:removed` | number of all, added, changed and removed entries     |
  | `:rows`       | the entries that the options select: `{:key :value :change :per-second}`          |
  | `:status`     | the status of the map, see below; missing while nothing has happened to it        |
  | `:pin` `:other` | the path by which it was opened, and the id of the map that is pinned there now |

  `:change` is `:added`, `:changed` or `:removed`, or missing. `:per-second` has the structure of the
  value, with rates in place of integers. It is missing in the first frame. Entries are compared by
  their bytes.

  | `:status`       | meaning                                                                         |
  |-----------------|---------------------------------------------------------------------------------|
  | `:pin-removed`  | the pin of the map was removed                                                  |
  | `:pin-replaced` | another map is pinned at its path                                               |
  | `:followed`     | this map replaced the one that was watched                                      |
  | `:waiting`      | the map is gone, and no other has replaced it yet                               |
  | `:gone`         | the map is gone; this is the last frame                                         |

  The map is open only while it is read, so that a watch does not keep it alive. A handle given as
  `:ref` does."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.progress :as progress]
            [bpfmap.exec.query :as query]
            [bpfmap.exec.shown :as shown]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.impl.waiting :as waiting])
  (:import (clojure.lang ExceptionInfo IReduceInit)
           (java.io File)
           (java.nio.file Path)))

(set! *warn-on-reflection* true)

;; --- rates

(defn- activity
  "Returns the sum of the absolute rates of an entry."
  [rates]
  (cond
    (number? rates) (abs (double rates))
    (map? rates) (transduce (map activity) + 0.0 (vals rates))
    (vector? rates) (transduce (map activity) + 0.0 rates)
    :else 0.0))

;; --- frames

(defn compared
  "Returns the current entries as rows to reduce, compared with those before.

  Removed entries come last. Rows are made on demand, because most rows of a large map are
  dropped. Entries are bytes: `:key-out` and `:value-out` decode them, `:same` compares two
  values.

      (into [] (compared {7 1} {7 3} 2.0 {:key-out identity :value-out identity :same =}))
      ;=> [{:key 7 :value 3 :change :changed :per-second 1.0}]"
  [before now seconds {:keys [key-out value-out] same? :same}]
  (raw-entries/compared before now same?
                        (fn [change k old new]
                          (let [removed? (identical? :removed change)
                                value (value-out (if removed? old new))
                                rate (when (and change (not removed?))
                                       (raw-entries/rates (when (some? old) (value-out old))
                                                          value seconds))]
                            (cond-> {:key (key-out k) :value value}
                              (not (contains? #{nil :same} change)) (assoc :change change)
                              (some? rate) (assoc :per-second rate))))))

(defn- liveliness
  "Returns the default sort key of a row: by rate, then by change, then by key.

  The highest rate comes first, and changed rows come before unchanged ones."
  [{:keys [key change per-second]}]
  [(- (double (activity per-second))) (if change 0 1) key])

(defn- by-liveliness [[a b c] [d e f]]
  (let [by-rate (compare a d)
        by-change (compare b e)]
    (cond
      (not (zero? by-rate)) by-rate
      (not (zero? by-change)) by-change
      :else (query/order c f))))

(defn- chosen
  "Returns the rows that the options select, in their order."
  [{:keys [sort limit changed] :as options} rows]
  (let [rows (if changed (eduction (filter :change) rows) rows)]
    (if sort
      (query/rows options rows)
      (query/top limit liveliness by-liveliness
                 (eduction (query/selecting (dissoc options :limit)) rows)))))

(defn- with-fields
  "Returns options with the `:fields` of the rows of a frame."
  [m options]
  (assoc options :fields (fields/of-watched (bpf/spec m) (:cpus options))))

(defn- types-of
  "Returns the functions that decode the entries of an open map, for [[compared]].

  `:options` has the fields of its rows, `:shower` how hints show them."
  [m {:keys [cpus] :as options}]
  (input/check-dumpable m {})
  (input/check cpus (input/cpus-of m))
  (let [possible (input/cpus-of m)
        {:keys [value-out] :as types} (raw-entries/types (bpf/spec m) (count possible))
        value-out (if possible (comp (input/picker cpus possible) value-out) value-out)]
    (assoc types
           :options (with-fields m options)
           :shower (shown/shower options (bpf/spec m) m)
           :value-out value-out
           :same (if (and possible (not= :each cpus))
                    (fn [a b] (raw-entries/same-data? (value-out a) (value-out b)))
                    =))))

;; --- finding the map again

(def ^:private missing
  "The kinds of errors for a missing map."
  #{:not-found :not-a-map :not-bpffs})

(defn- try-open
  "Opens the map of a reference; nil for errors of some kinds."
  [options ref kinds]
  (try
    (input/open-typed (assoc options :ref ref) :read-only)
    (catch ExceptionInfo e
      (when-not (contains? kinds (:bpfmap/error (ex-data e)))
        (throw e)))))

(defn- id-of [m] (:id (bpf/info m)))

(defn- by-id
  "Opens a map by its id; nil if it no longer exists.

  A user who may open a pin may lack the permission."
  [options id]
  (try-open options {:id id} (conj missing :permission)))

(defn- look-at-pin
  "Opens the map `id` again, and returns it with the status of its pin."
  [{:keys [follow] :as options} path id]
  (let [here (try-open options {:path path} missing)
        other (some-> here id-of)]
    (cond
      (= id other) {:m here}
      (and here follow) {:m here :status :followed}
      :else (do
              (some-> here bpf/close)
              (if-let [m (by-id options id)]
                {:m m :status (if other :pin-replaced :pin-removed) :pin path :other other}
                {:status (if follow :waiting :gone) :pin path :other other})))))

(defn- look-at-name [{:keys [follow ref] :as options} id]
  (if-let [m (by-id options id)]
    {:m m}
    (if-not (and follow (:name ref))
      {:status :gone}
      (if-let [m (try-open options ref missing)]
        {:m m :status :followed}
        {:status :waiting}))))

(defn- look-at-handle
  "Returns a second handle of an open map, with the status of its pin."
  [{:keys [ref] :as options} pins]
  (let [path (first (remove #(bpf/pinned-at? ref %) pins))
        here (when path (try-open {} {:path path} missing))
        other (when here (with-open [^java.io.Closeable here here] (id-of here)))]
    (cond-> {:m (input/open-typed options :read-only)}
      path (assoc :status (if other :pin-replaced :pin-removed) :pin path :other other))))

(defn- looker
  "Returns a function that opens the map again: `{:m :status :pin :other}`.

  Its argument is the id of the map at the last reading, nil for the first. `:m` is missing if the
  map is gone."
  [{:keys [ref held-by] :as options}]
  (let [ref (cond
              (or (instance? Path ref) (instance? File ref)) {:path (str ref)}
              (int? ref) {:id ref}
              :else (input/one-map ref held-by))
        options (-> options (dissoc :held-by) (assoc :ref ref))
        first-look (fn [] {:m (input/open-typed options :read-only)})]
    (cond
      (bpf/bpf-map? ref) (let [pins (filterv #(bpf/pinned-at? ref %) (bpf/pinned-paths ref))]
                           (fn [_] (look-at-handle options pins)))
      (:path ref) (fn [id] (if id (look-at-pin options (:path ref) id) (first-look)))
      (and
       (map? ref) (some ref [:id :map-id :name])) (fn [id]
                                                    (if id (look-at-name options id) (first-look)))
      :else (fn [_] (first-look)))))

(defn- look
  "Reads the map once.

  Returns the frame, compared with the previous reading, and the state for the next reading. If the
  options have a `:view`, it is a reference to `:sort` and `:changed`, which replace the same
  options. The rows are then not shown by hints: the metadata of the frame has `:arranged`, a
  function of a view and rows, and `:showing`, a transducer."
  [{:keys [view] :as options} looker {:keys [id before taken types about began]} now]
  (let [{:keys [m status pin other]} (looker id)
        at (now) ; opening it is not part of the time
        apart (max 1e-3 (- (double at) (double (or taken at))))
        told (cond-> {:elapsed (if taken (- (double at) (double began)) 0.0) :interval apart}
               status (assoc :status status)
               pin (assoc :pin pin)
               other (assoc :other other))]
    (if-not m
      {:frame (merge {:map about} told {:entries 0 :added 0 :changed 0 :removed 0 :rows []})
       :next {:id id :taken at :about about :began began}}
      (with-open [^java.io.Closeable m m]
        (let [about (select-keys (bpf/info m) [:id :name :type :max-entries])
              same-map? (= id (:id about))
              types (if same-map? types (types-of m options))
              before (when same-map? before)
              entries (raw-entries/snapshot (eduction (progress/counting "entries")
                                                     (raw-entries/entries m)))
              counted (volatile! {})
              count-change (fn [{:keys [change] :as row}]
                             (when change (vswap! counted update change (fnil inc 0)))
                             row)
              showing (shown/showing (:shower types))
              arranged (fn [view rows] (chosen (merge (:options types) view) rows))
              rows (into []
                         (if view identity showing)
                         (arranged (some-> view deref)
                                   (eduction (map count-change)
                                             (compared before entries apart types))))
              changes @counted]
          {:frame (with-meta (merge {:map about} told
                                    {:entries (count entries)
                                     :added (:added changes 0) :changed (:changed changes 0)
                                     :removed (:removed changes 0) :rows rows})
                    (when view {:arranged arranged :showing showing}))
           :next {:id (:id about) :before entries :taken at :types types :about about
                  :began (or began at)}})))))

(defn- frames
  "Returns the frames of a map as something to reduce.

  There is one every `:interval` seconds, until `:seconds` are over, the map is gone, or the
  promise `stop` is delivered."
  [{:keys [interval seconds] :as options} stop]
  (let [now #(/ (- (System/nanoTime)) -1e9)]
    (reify IReduceInit
      (reduce [_ f init]
        (let [looker (looker options)]
          (loop [acc init state nil]
            (let [at (now)
                  {:keys [frame next]} (look options looker state now)
                  acc (f acc frame)
                  ends (when seconds (+ (double (:began next)) (double seconds)))
                  pause (long (* 1000 (- (+ (double at) (double interval)) (double (now)))))]
              (cond
                (reduced? acc) @acc
                (= :gone (:status frame)) acc
                (and ends (<= (double ends) (+ (double (now)) (max 0.0 (/ pause 1000.0))))) acc
                ;; Even if reading a map takes longer than the interval, other threads get their
                ;; turn.
                (not= ::not-yet (waiting/value stop (max 10 pause) ::not-yet :watch)) acc
                :else (recur acc next)))))))))

(defn watch
  "Returns frames of a map as something to reduce, one every `:interval` seconds.

  The map is open only while it is read. The reduction ends when the promise `stop` is delivered,
  or when the map is gone. With `:follow`, it continues with the map that replaces it at the same
  pin path or under the same name. Reducing throws `:interrupted` if the thread is interrupted.

      (reduce (fn [_ frame] (println (:changed frame))) nil (watch {:ref {:id 12} :interval 1.0 :seconds 10}))"
  ([options]
   (watch options (promise)))
  ([{:keys [cpus ref follow held-by] :as options} stop]
   (when (and follow held-by)
     (throw (arguments/refused "watch" :follow true ["cannot be combined with " :held-by])))
   (when (and follow
              (not (or (instance? Path ref)
                       (instance? File ref)
                       (and (map? ref) (or (:path ref) (:name ref))))))
     (throw (arguments/refused "watch" :follow true "requires a map given by its pin path or name"
              "an id is never used again")))
   (frames (assoc options :cpus (or cpus :sum)) stop)))
