(ns bpfmap.exec.live
  "The command `watch`: what changes in a map while it runs, as frames to reduce.

  A frame is what is in the map at one time, held against the time before:

  | key           | what it holds                                                                     |
  |---------------|-----------------------------------------------------------------------------------|
  | `:map`        | `{:id :name :type :max-entries}`                                                  |
  | `:elapsed` `:interval` | seconds since the first frame, and since the one before                  |
  | `:entries` `:new` `:changed` `:gone` | how many there are, and how many came, changed and went    |
  | `:rows`       | the entries that the options ask for: `{:key :value :mark :per-second}`           |

  `:mark` is `:new`, `:changed` or `:gone`, or missing. `:per-second` has the shape of the value, with rates where that
  has integers; it is missing in the first frame."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.reading :as reading]
            [bpfmap.exec.reference :as reference]
            [bpfmap.exec.where :as where])
  (:import (clojure.lang IReduceInit)
           (java.util HashMap Map)))

(set! *warn-on-reflection* true)

;; --- rates

(defn- rounded
  "A rate to the thousandth, as far as a double has those."
  ^double [^double x]
  (if (< (abs x) 1e12) (/ (Math/round (* 1000 x)) 1000.0) x))

(defn rates
  "How fast the integers of a value went up, in so many seconds: a value of rates, nil where there is none. What was not
  there before counts from 0.

      (rates {:packets 10 :comm \"a\"} {:packets 30 :comm \"a\"} 2.0) ;=> {:packets 10.0}"
  [before now seconds]
  (cond
    (integer? now) (when (or (nil? before) (integer? before))
                     (rounded (/ (double (- (bigint now) (bigint (or before 0)))) (double seconds))))
    (map? now) (not-empty (into (empty now) (keep (fn [[k x]] (when-some [rate (rates (when (map? before) (get before k)) x seconds)]
                                                                [k rate])))
                                now))
    (vector? now) (when (seq now)
                    (let [all (map-indexed (fn [i x] (rates (when (vector? before) (nth before i nil)) x seconds)) now)]
                      (when (every? some? all) (vec all))))))

(defn- activity
  "How much goes on in an entry: the sum of its rates, whichever way they go."
  [rates]
  (cond
    (number? rates) (abs (double rates))
    (map? rates) (transduce (map activity) + 0.0 (vals rates))
    (vector? rates) (transduce (map activity) + 0.0 rates)
    :else 0.0))

;; --- frames

(defn compared
  "The entries of now as rows to reduce, held against those before, if there were any; and those that went. None is made
  before it is asked for: of a large map most are not kept.

      (into [] (compared {7 1} {7 3} 2.0)) ;=> [{:key 7 :value 3 :mark :changed :per-second 1.0}]"
  [^Map before ^Map now seconds]
  (let [row (fn [[k v]]
              (let [earlier (.getOrDefault before k ::none)
                    new? (identical? ::none earlier)
                    rate (rates (when-not new? earlier) v seconds)]
                (cond-> {:key k :value v}
                  new? (assoc :mark :new)
                  (and (not new?) (not= earlier v)) (assoc :mark :changed)
                  (some? rate) (assoc :per-second rate))))]
    (if (nil? before)
      (eduction (map (fn [[k v]] {:key k :value v})) now)
      (eduction cat [(eduction (map row) now)
                     (eduction (remove (fn [[k _]] (.containsKey now k)))
                               (map (fn [[k v]] {:key k :value v :mark :gone}))
                               before)]))))

(defn- liveliness
  "What rows are ordered by unless the options say: the liveliest first; then what changed, then by key."
  [{:keys [key mark per-second]}]
  [(- (double (activity per-second))) (if mark 0 1) key])

(defn- by-liveliness [[a b c] [d e f]]
  (let [by-rate (compare a d)
        by-mark (compare b e)]
    (cond
      (not (zero? by-rate)) by-rate
      (not (zero? by-mark)) by-mark
      :else (where/order c f))))

(defn- chosen
  "The rows that the options ask for, in the order that they ask for."
  [{:keys [sort limit changed] :as options} rows]
  (let [rows (if changed (eduction (filter :mark) rows) rows)]
    (if sort
      (where/rows options rows)
      (where/top limit liveliness by-liveliness (eduction (where/selecting (dissoc options :limit)) rows)))))

(defn- snapshot
  "The entries of a map, in one of Java's: it is made for each frame, and no one else sees it."
  ^Map [m options]
  (let [all (HashMap.)]
    (run! (fn [{:keys [key value]}] (.put all key value)) (reading/entries m options))
    all))

(defn- with-fields
  "Returns options with the `:fields` of the rows of a frame."
  [m options]
  (let [{:keys [fields]} (:fields (reading/with-fields m options))
        value (second (first (filter #(= "value" (first %)) fields)))]
    (assoc options :fields (fields/row (conj fields
                                             ["mark" {:kind :name :names {"new" nil "changed" nil "gone" nil}}]
                                             ["per-second" (fields/of-rates value)])))))

(defn frames
  "The frames of an open map as something to reduce: every `:interval` seconds one, until `:seconds` are over or the promise
  `stop` is delivered.

      (reduce (fn [_ frame] (reduced frame)) nil (frames m {:interval 1.0} (promise)))"
  [m {:keys [interval seconds] :as options} stop]
  (let [about (select-keys (bpf/info m) [:id :name :type :max-entries])
        options (with-fields m options)
        now #(/ (- (System/nanoTime)) -1e9)]
    (reify IReduceInit
      (reduce [_ f init]
        (let [begun (now)
              ends (when seconds (+ begun (double seconds)))]
          (loop [acc init before nil taken begun]
            (let [at (now)
                  entries (snapshot m options)
                  apart (max 1e-3 (- at (double taken)))
                  counted (volatile! {})
                  count-mark (fn [{:keys [mark] :as row}]
                               (when mark (vswap! counted update mark (fnil inc 0)))
                               row)
                  rows (chosen options (eduction (map count-mark) (compared before entries apart)))
                  marks @counted
                  acc (f acc {:map about
                              :elapsed (if before (- at begun) 0.0) :interval apart
                              :entries (count entries)
                              :new (:new marks 0) :changed (:changed marks 0) :gone (:gone marks 0)
                              :rows rows})
                  pause (long (* 1000 (- (+ at (double interval)) (now))))]
              (cond
                (reduced? acc) @acc
                (and ends (<= (double ends) (+ (now) (max 0.0 (/ pause 1000.0))))) acc
                ;; Even when a map takes longer to read than the interval, others get their turn.
                (not= ::not-yet (deref stop (max 10 pause) ::not-yet)) acc
                :else (recur acc entries at)))))))))

(defn watch
  "Frames of a map, every `:interval` seconds one, as something to reduce. The map is open meanwhile, and not otherwise.
  It ends when the promise `stop` is delivered, if there is one.

      (reduce (fn [_ frame] (println (:changed frame))) nil (watch {:ref {:id 12} :interval 1.0 :seconds 10}))"
  ([options]
   (watch options (promise)))
  ([{:keys [cpus] :as options} stop]
   (reify IReduceInit
     (reduce [_ f init]
       (with-open [m (reference/open options :read-only)]
         (reduce f init (frames m (assoc options :cpus (or cpus :sum)) stop)))))))
