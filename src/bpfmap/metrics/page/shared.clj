(ns ^:no-doc bpfmap.metrics.page.shared
  "Readings that several clients share, made on demand.

  A reading has no thread of its own. The first client that needs a newer one makes it, and the
  others wait for it. So nothing is read when nobody looks, and once per interval when many do."
  (:import (java.util.concurrent.locks ReentrantLock)))

(set! *warn-on-reflection* true)

(def ^:private share
  "The rest after a reading, in times as long as it took."
  10)

(def ^:private longest-rest "Nanoseconds after which there is a reading all the same."
  (* 30 1000 1000 1000))

(defn source
  "Returns a source of readings: `(read-next before)` returns the next one.

  A reading is data; `before` is the previous one, or nil. `interval` is in milliseconds.

      (source 2000 (fn [before] {:n (inc (:n before 0))}))"
  [interval read-next]
  {:interval interval :read read-next :lock (ReentrantLock. true)
   :state (atom {:number 0 :due 0 :reading nil})})

(defn- due? [{:keys [due number]}]
  (or (zero? (long number)) (<= 0 (- (System/nanoTime) (long due)))))

(defn current
  "Returns `[number reading]` of a source; makes a new one if the last is too old.

      (current (source 2000 (fn [_] {:n 1}))) ;=> [1 {:n 1}]"
  [{:keys [interval ^ReentrantLock lock state] read-next :read}]
  (when (due? @state)
    (.lock lock)
    (try
      (when (due? @state)
        (let [begun (System/nanoTime)
              reading (read-next (:reading @state))
              ended (System/nanoTime)]
          (reset! state {:number (inc (long (:number @state)))
                         :reading reading
                         :due (+ begun (max (* 1000000 (long interval))
                                            (min (* (long share) (- ended begun))
                                                 (long longest-rest))))})))
      (finally (.unlock lock))))
  ((juxt :number :reading) @state))

(defn wait
  "Returns the milliseconds until a source may have a newer reading, at least 10."
  ^long [{:keys [state]}]
  (max 10 (inc (quot (- (long (:due @state)) (System/nanoTime)) 1000000))))

(defn readings
  "Returns the number of readings that a source has made."
  [{:keys [state]}]
  (:number @state))

;; --- sources by key

(defn table
  "Returns a table of at most `most` sources, which are made by `(make key)`.

  [[release]] and [[sweep]] forget a source nobody has used for `idle` milliseconds."
  [most idle make]
  {:most most :idle idle :make make :entries (atom {})})

(defn- unused? [now idle {:keys [users used]}]
  (and (zero? (long users)) (<= (* 1000000 (long idle)) (- (long now) (long used)))))

(defn sweep
  "Forgets the sources of a table that nobody has used for a while."
  [{:keys [entries idle]}]
  (let [now (System/nanoTime)]
    (swap! entries (fn [all] (into {} (remove (fn [[_ entry]] (unused? now idle entry))) all)))
    nil))

(defn- with-room
  "Returns the entries without the one that nobody has used for the longest time.

  Returns them as they are if there is room, or if all are in use."
  [all most]
  (if (< (count all) (long most))
    all
    (if-let [free (seq (filter (fn [[_ {:keys [users]}]] (zero? (long users))) all))]
      (dissoc all (key (apply min-key (fn [[_ {:keys [used]}]] (long used)) free)))
      all)))

(defn acquire
  "Returns the source of a key, in use until [[release]]; nil if there is no place."
  [{:keys [entries most make] :as table} k]
  (sweep table)
  (let [new-source (delay (make k))
        all (swap! entries
                   (fn [all]
                     (let [all (if (contains? all k) all (with-room all most))]
                       (if (or (contains? all k) (< (count all) (long most)))
                         (-> all
                             (update-in [k :source] #(or % @new-source))
                             (update-in [k :users] (fnil inc 0))
                             (assoc-in [k :used] (System/nanoTime)))
                         all))))]
    (get-in all [k :source])))

(defn release
  "Ends a use of the source of a key."
  [{:keys [entries]} k]
  (swap! entries (fn [all]
                   (if (contains? all k)
                     (-> all
                         (update-in [k :users] dec)
                         (assoc-in [k :used] (System/nanoTime)))
                     all)))
  nil)

;; --- the readings of a map

(def interval "Milliseconds between two readings of a map." 2000)
(def samples "The number of readings that a history has." 60)

(defn want
  "Notes the keys of rows that clients see, so that their rates are kept."
  [{:keys [wanted n]} keys]
  (when wanted
    (swap! wanted into (map (fn [k] [k n])) keys))
  nil)
