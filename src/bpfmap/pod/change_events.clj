(ns ^:no-doc bpfmap.pod.change-events
  "Watches a map: reads its entries at an interval and reports the changes as events.

  | key         | meaning                                                                       |
  |-------------|-------------------------------------------------------------------------------|
  | `:at`       | the time of the reading, in milliseconds since 1970                           |
  | `:entries`  | all entries, in the first event; it has no other keys                         |
  | `:added`    | entries with new keys                                                         |
  | `:changed`  | key to `[before after]`                                                       |
  | `:removed`  | entries whose key is gone, with their last value                              |
  | `:unpinned` | paths that were pins of the map and no longer are: removed, or another map's  |

  Empty keys are omitted. Without changes there is no event. A change that is undone between two
  readings is not reported."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.impl.options :as options]
            [bpfmap.impl.waiting :as waiting]
            [bpfmap.pod.handles :as handles])
  (:import (java.io Closeable)
           (java.util.concurrent CountDownLatch)))

(set! *warn-on-reflection* true)

(def ^:private ^:const default-interval "Seconds between two readings." 1.0)
(def ^:private ^:const longest-interval "Seconds of a day." 86400)

;; A watch of a map: closing it ends it. `first-entries` was read when it began, `pins` are the
;; paths that held the map then.
(deftype Watch [m interval first-entries pins ^CountDownLatch ended]
  Closeable
  (close [_] (.countDown ended))

  handles/Openable
  (tag [_] 'bpfmap/watch)
  (facts [_] (select-keys (bpf-map/identity-of m) [:id :name])))

(defn- invalid [path message hint]
  (error/error :invalid-value message {:bpfmap/op :watch :bpfmap/path path :bpfmap/hint hint}))

(defn- checked-interval [options]
  (let [interval (get (options/check :watch options) :interval default-interval)]
    (when-not (and (number? interval) (<= 0.001 (double interval) (double longest-interval)))
      (throw (invalid [:interval]
                      (str ":interval must be a number of seconds from 0.001 to " longest-interval
                           ", got " (error/printed interval))
                      nil)))
    (double interval)))

(defn start
  "Starts to watch a map, and reads it once.

  A map that cannot be watched throws now. `:interval` is the time between two readings in seconds
  (default: 1). Throws the errors of `bpfmap.core/snapshot`, and `:invalid-value` for invalid
  options.

      (start m {:interval 0.1})"
  ^Watch [m options]
  (let [interval (checked-interval options)]
    (Watch. m interval (bpf/snapshot m) (filterv #(bpf/pinned-at? m %) (bpf/pinned-paths m))
            (CountDownLatch. 1))))

(defn watch?
  "Returns true if x is a watch, running or ended."
  [x]
  (instance? Watch x))

(defn changes
  "Returns the differences of two snapshots as an event without time, or nil.

      (changes {1 10, 2 20} {1 11, 3 30}) ;=> {:added {3 30}, :changed {1 [10 11]}, :removed {2 20}}"
  [before after]
  (not-empty
   (reduce (fn [found [change k old new]]
             (case change
               :added (assoc-in found [:added k] new)
               :changed (assoc-in found [:changed k] [old new])
               :removed (assoc-in found [:removed k] old)))
           {}
           (eduction (remove nil?)
                     (raw-entries/compared before after raw-entries/same-data?
                                           (fn [change k old new]
                                             (when-not (identical? :same change)
                                               [change k old new])))))))

(defn- event [ctx]
  (assoc ctx :at (System/currentTimeMillis)))

(defn run
  "Calls f with each event until the watch or its map is closed.

  Returns nil. Throws the errors of reading the map.

      (run watch println)"
  [^Watch watch f]
  (let [^CountDownLatch ended (.-ended watch)]
    (f (event {:entries (.-first-entries watch)}))
    (try
      (loop [before (.-first-entries watch) pins (.-pins watch)]
        (when-not (waiting/ended? ended (* 1000 (double (.-interval watch))) :watch)
          (let [after (bpf/snapshot (.-m watch))
                unpinned (not-empty (into [] (remove #(bpf/pinned-at? (.-m watch) %)) pins))
                news (cond-> (changes before after) unpinned (assoc :unpinned unpinned))]
            (some-> news event f)
            (recur after (remove (set unpinned) pins)))))
      (catch clojure.lang.ExceptionInfo e
        (when-not (= :closed (:bpfmap/error (ex-data e)))
          (throw e))))))
