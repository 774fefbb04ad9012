(ns ^:no-doc bpfmap.pod.watch
  "What changes in a map, told as it does: the entries are read again and again, and what is not
  as it was is an event.

  | key        | what it holds                                                               |
  |------------|-----------------------------------------------------------------------------|
  | `:at`      | when the map was read, in milliseconds since 1970                           |
  | `:entries` | all entries, in the first event; it has nothing else                        |
  | `:added`   | entries whose key was not there                                             |
  | `:changed` | key to `[before after]`                                                     |
  | `:removed` | entries whose key is gone, with the last value seen                         |
  | `:unpinned` | paths of the handle's pins that were the map's, and are not any more: nothing is pinned there, or another map |

  What does not apply is left out, and where nothing has changed there is no event. What comes and
  goes between two readings is not seen."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.impl.options :as options]
            [bpfmap.impl.waiting :as waiting])
  (:import (java.io Closeable)
           (java.util.concurrent CountDownLatch)))

(set! *warn-on-reflection* true)

(def ^:private ^:const default-interval "Seconds between two readings." 1.0)
(def ^:private ^:const longest-interval "Seconds of a day." 86400)

;; A watch of a map: closing it ends it. `first-entries` was read when it began, `pins` are the
;; paths that held the map then.
(deftype Watch [m interval first-entries pins ^CountDownLatch ended]
  Closeable
  (close [_] (.countDown ended)))

(defn- invalid [path message hint]
  (error/error :invalid-value message {:bpfmap/op :watch :bpfmap/path path :bpfmap/hint hint}))

(defn- checked-interval [options]
  (let [interval (get (options/check :watch options) :interval default-interval)]
    (when-not (and (number? interval) (<= 0.001 (double interval) (double longest-interval)))
      (throw (invalid [:interval]
                      (str ":interval must be a number of seconds from 0.001 to " longest-interval
                           ", got " (pr-str (error/shown interval)))
                      nil)))
    (double interval)))

(defn start
  "Begins to watch a map: reads it once, so that what cannot be watched says so at once.

  `:interval` of the options is the time between two readings in seconds; default: 1. Throws what `bpfmap.core/snapshot` does, and `:invalid-value` for odd options.

      (start m {:interval 0.1})"
  ^Watch [m options]
  (let [interval (checked-interval options)]
    (Watch. m interval (bpf/snapshot m) (filterv #(bpf/pinned-at? m %) (bpf/pinned-paths m))
            (CountDownLatch. 1))))

(defn watch?
  "Whether x is a watch, under way or ended."
  [x]
  (instance? Watch x))

(defn map-of
  "What the map of a watch is: `{:id :name :type}`."
  [^Watch watch]
  (bpf-map/identity-of (.-m watch)))

(defn changes
  "What differs between two snapshots, as an event without its time; nil where nothing does.

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
                         (when-not (identical? :same change) [change k old new])))))))

(defn- event [ctx]
  (assoc ctx :at (System/currentTimeMillis)))

(defn run
  "Calls f with each event until the watch or its map is closed; returns nil. Throws what reading
  the map throws.

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
