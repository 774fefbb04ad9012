(ns ^:no-doc bpfmap.exec.top
  "Implements the command `top`: how full the maps of the host are and how fast they change, as
  frames to reduce.

  A frame is one reading of the maps, compared with the previous one:

  | key                    | meaning                                                                |
  |------------------------|------------------------------------------------------------------------|
  | `:elapsed` `:interval` | seconds since the first reading, and since the previous one            |
  | `:maps`                | the number of maps that the options select                             |
  | `:rows`                | maps: `:id :type :name :entries :max-entries :full :entries-per-second :changes-per-second :held` |

  `:entries-per-second` is the growth of the number of entries, which may be negative. It is missing
  if the number is not known, see `bpfmap.impl.host.pressure`. `:changes-per-second` counts entries
  that were added, removed or have another value, each once for an interval. It is missing for large
  maps: a reading compares maps of at most 64 KiB, 16 MiB in all, for at most 250 ms."
  (:require [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.map-info :as map-info]
            [bpfmap.exec.query :as query]
            [bpfmap.exec.selection :as selection]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.host.pressure :as pressure]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.impl.map.whole-names :as whole-names]
            [bpfmap.impl.waiting :as waiting])
  (:import (clojure.lang ExceptionInfo IReduceInit)
           (java.io Closeable)
           (java.util Map Map$Entry)))

(set! *warn-on-reflection* true)

(def top-fields
  "The fields of a row of `top`.

  Headings of the table are aliases. See `bpfmap.exec.fields`."
  (let [of-list (into {} (:fields map-info/list-fields))
        number {:kind :number}]
    (fields/row (concat (for [k ["id" "type" "name" "kernel-name" "entries" "max-entries" "full"]]
                          [k (of-list k)])
                        [["entries-per-second" number]
                         ["changes-per-second" number]
                         ["held" (of-list "held")]])
                {"max" "max-entries" "entries/s" "entries-per-second"
                 "changes/s" "changes-per-second" "held-by" "held"})))

;; --- one reading

(def ^:private counting-time "Milliseconds for counting what the kernel does not count." 250)
(def ^:private comparing-time "Milliseconds for reading the contents of small maps." 250)
(def ^:private most-bytes "The largest map, in bytes, whose contents are compared." (* 64 1024))
(def ^:private all-bytes "The bytes of all maps whose contents are compared." (* 16 1024 1024))

(defn- bytes-of
  "Returns the size of the keys and values of a full map."
  ^long [{:keys [type key-size value-size max-entries]} cpus]
  (* (long max-entries)
     (+ (long key-size)
        (if (:per-cpu (map-types/types type))
          (* (long cpus) (long (map-types/stride value-size)))
          (long value-size)))))

(defn- contents
  "Returns the entries of a map as bytes; nil if it cannot be read."
  [id]
  (try
    (with-open [^Closeable m (lifecycle/open id {:access :read-only})]
      (raw-entries/snapshot (raw-entries/entries m)))
    (catch ExceptionInfo _ nil)))

(defn- small-contents
  "Returns the contents of small maps by id, within bounds of time and memory.

  `before` has those of the previous reading, whose maps come first, because only they can be
  compared."
  [infos before]
  (let [until (pressure/deadline comparing-time)
        cpus (count (call/possible-cpus))]
    (loop [[{:keys [id type] :as info} & more] (sort-by (comp not #(contains? before %) :id) infos)
           room (long all-bytes)
           found {}]
      (cond
        (or (nil? info) (pos? (- (System/nanoTime) until))) found
        (not (contains? (:ops (map-types/types type)) :reduce)) (recur more room found)
        :else (let [size (bytes-of info cpus)]
                (if (or (< (long most-bytes) size) (< room size))
                  (recur more room found)
                  (if-let [entries (contents id)]
                    (recur more (- room size) (assoc found id entries))
                    (recur more room found))))))))

(defn- counted
  "Returns the infos of the selected maps, with `:entries` if these are known."
  [selected?]
  (let [own (holders/own-objects) ; the scan opens the maps
        counts (pressure/kernel-counts)
        until (pressure/deadline counting-time)]
    (into [] (remove nil?)
          (holders/maps
           {:brief true
            :row (fn [scanner info]
                   (when (selected? info own)
                     (let [n (when (pressure/has-fullness? (:type info))
                               (pressure/entries scanner info counts until))]
                       (cond-> info n (assoc :entries n)))))}))))

(defn- reading
  "Reads the maps once: `{:at :maps :contents}`."
  [selected? clock before]
  (let [maps (counted selected?)]
    {:at (clock) :maps maps :contents (small-contents maps (:contents before))}))

;; --- comparing

(defn changes
  "Returns the number of entries that are in only one of two snapshots, or differ.

      (changes {7 1} {7 2, 8 1}) ;=> 2"
  ^long [^Map before ^Map now]
  (let [[same kept] (reduce (fn [[same kept] ^Map$Entry e]
                              (let [old (.get before (.getKey e))]
                                [(if (= old (.getValue e)) (inc (long same)) same)
                                 (if (nil? old) kept (inc (long kept)))]))
                            [0 0] (.entrySet now))]
    (+ (- (.size now) (long same))
       (- (.size before) (long kept)))))

(defn- rounded [x]
  (/ (Math/round (* 1000.0 (double x))) 1000.0))

(defn- row
  "Returns the row of a map, from its info now and the entries before."
  [{:keys [id entries] :as info} entries-before before now seconds held]
  (let [old (get before id)
        new (get now id)]
    (apply array-map
           (mapcat (fn [[k x]] (when (some? x) [k x]))
                   [[:id id] [:type (:type info)] [:name (:name info)]
                    [:kernel-name (:kernel-name info)]
                    [:entries entries] [:max-entries (:max-entries info)]
                    [:full (pressure/full info entries)]
                    [:entries-per-second
                     (when (and entries entries-before)
                       (rounded (/ (- (long entries) (long entries-before)) seconds)))]
                    [:changes-per-second
                     (when (and old new) (rounded (/ (changes old new) seconds)))]
                    [:held (get held id [])]]))))

(defn- liveliness
  "Returns the default sort key of a row: the fastest first, then the fullest."
  [{:keys [entries-per-second changes-per-second full id]}]
  [(- (max (abs (double (or entries-per-second 0.0))) (double (or changes-per-second 0.0))))
   (- (double (or full 0.0)))
   id])

(defn arranged
  "Returns the rows that `:where` and `:limit` select, in the order of `:sort`.

  By default, the fastest come first, and then the fullest.

      (arranged {:sort (query/column \"-full\")} [{:id 12 :full 1.0} {:id 13 :full 97.7}])"
  [{:keys [sort limit where]} rows]
  (let [selected (query/rows {:fields top-fields :where where :sort sort} rows)]
    (cond->> (if sort selected (sort-by liveliness selected))
      limit (take limit)
      true vec)))

(defn- holders-of
  "Returns the processes that hold each map, by map id."
  [own]
  (update-vals (holders/held-maps own) :holders))

;; --- frames

(defn- frame
  "Returns the frame for two readings."
  [options names held begun before now]
  (let [seconds (max 1e-3 (- (double (:at now)) (double (:at before))))
        entries (into {} (map (juxt :id :entries)) (:maps before))]
    {:elapsed (rounded (- (double (:at now)) (double (:at begun))))
     :interval (rounded seconds)
     :maps (count (:maps now))
     :rows (arranged options
                     (for [{:keys [id] :as info} (:maps now)]
                       (row (merge info (names id)) (entries id) (:contents before)
                            (:contents now) seconds held)))}))

(defn- selection
  "Returns a predicate for the maps that `:name` and `:held-by` select.

  Its arguments are the info of a map, and what this process had open before it opened the map.

  They are selected when it is called first: whole names and holders are read once, and again for a
  map that was not there. `:names` and `:held` of the atom have them."
  [{:keys [name held-by]} state]
  (let [named? (if name (selection/named name) (constantly true))
        holder? (if held-by (selection/held-by held-by) (constantly true))
        look (fn [own]
               (let [namer (whole-names/namer (delay (holders/programs {:brief true}))
                                              (delay (holders/pins-by-id :map)))
                     infos (holders/maps {:brief true})]
                 (reset! state {:names (into {}
                                             (map (fn [{:keys [id] :as info}]
                                                    [id (select-keys
                                                         (whole-names/with-whole-name info namer)
                                                         [:name :kernel-name])]))
                                             infos)
                                :held (holders-of own)})))]
    (fn [{:keys [id]} own]
      (when-not (contains? (:names @state) id)
        (look own))
      (let [{:keys [names held]} @state]
        (and (named? (names id))
             (or (nil? held-by) (boolean (some holder? (get held id)))))))))

(defn top
  "Returns frames of the maps of the host, as something to reduce.

  There is one every `:interval` seconds, the first after one interval. The reduction ends after
  `:seconds` or `:rounds` frames (`:once`: one), or when the promise `stop` is delivered.

      (reduce (fn [_ frame] (println (first (:rows frame)))) nil (top {:interval 1.0 :rounds 10}))"
  ([options] (top options (promise)))
  ([{:keys [interval seconds] :as options} stop]
   (query/check (assoc options :fields top-fields))
   (let [most (arguments/rounds "top" options)
         clock #(/ (- (System/nanoTime)) -1e9)]
     (reify IReduceInit
       (reduce [_ f init]
         (let [state (atom nil)
               selected? (selection options state)
               begun (reading selected? clock nil)
               ends (when seconds (+ (double (:at begun)) (double seconds)))
               wait (fn [before]
                      (let [due (cond-> (+ (double (:at before)) (double interval))
                                  ends (min (double ends)))
                            pause (long (Math/ceil (* 1000 (- due (double (clock))))))]
                        (= ::over (waiting/value stop (max 10 pause) ::over :top))))]
           (loop [acc init before begun n 1]
             (if-not (wait before)
               acc ; stopped
               (let [now (reading selected? clock before)
                     {:keys [names held]} @state
                     acc (f acc (frame options names held begun before now))]
                 (cond
                   (reduced? acc) @acc
                   (= n most) acc
                   (and ends (<= (double ends) (double (clock)))) acc
                   :else (recur acc now (inc n))))))))))))
