;; The code that runs in the client of a pod: macros, callbacks and tag readers. The pod sends each
;; form of this file as the code of a var of the namespace above it, and Babashka evaluates it.

(ns pod.bpfmap.core
  (:refer-clojure :exclude [with-open])
  (:require [babashka.pods]))

(defn read-bytes
  "Reads #bpfmap/bytes: bytes without a type, as a tagged literal that the pod accepts again."
  [hex]
  (tagged-literal 'bpfmap/bytes hex))

(defn read-map
  "Reads #bpfmap/map: the handle of an open map.

  Its :form has the map's :id, :type and :name."
  [form]
  (tagged-literal 'bpfmap/map form))

(defn read-program
  "Reads #bpfmap/program: the handle of an open program."
  [form]
  (tagged-literal 'bpfmap/program form))

(defn read-link
  "Reads #bpfmap/link: the handle of an attached program's link."
  [form]
  (tagged-literal 'bpfmap/link form))

(defn read-watch
  "Reads #bpfmap/watch: the handle of a watch of a map."
  [form]
  (tagged-literal 'bpfmap/watch form))

(defn read-reader
  "Reads #bpfmap/reader: the handle of a reader of events."
  [form]
  (tagged-literal 'bpfmap/reader form))

(defn read-writer
  "Reads #bpfmap/writer: the handle of a writer to a user ring buffer."
  [form]
  (tagged-literal 'bpfmap/writer form))

(defn read-subscription
  "Reads #bpfmap/subscription: the handle of a subscription to the events of a reader."
  [form]
  (tagged-literal 'bpfmap/subscription form))

(defn bpf-map?
  "Returns true if x is the handle of a map, open or closed."
  [x]
  (and (tagged-literal? x) (= 'bpfmap/map (:tag x))))

(defn byte-seq
  "Returns the bytes of #bpfmap/bytes as a vector of integers from 0 to 255."
  [bytes]
  (mapv #(Integer/parseInt % 16) (re-seq #"[0-9a-f]{2}" (:form bytes))))

(defmacro with-open
  "Evaluates body with names bound to open objects, and closes them in reverse order.

  The objects are anything that `close` takes: maps, programs, links, watches, readers,
  subscriptions and writers.

      (with-open [m (create {:type :hash :key :u32 :value :u64 :max-entries 8})]
        (put! m 7 42)
        (lookup m 7)) ;=> 42"
  [bindings & body]
  (when-not (and (vector? bindings) (even? (count bindings)) (every? simple-symbol? (take-nth 2 bindings)))
    (throw (ex-info "The bindings of with-open must be a vector of names and expressions" {:bpfmap/error :invalid-value})))
  (if-let [[name open & more] (seq bindings)]
    (list 'clojure.core/let [name open]
          (list 'try
                (list* 'pod.bpfmap.core/with-open (vec more) body)
                (list 'finally (list 'pod.bpfmap.core/close name))))
    (list* 'do body)))

(defn watch
  "Calls f with the changes of a map, until the returned watch or the map is closed.

  The first event has all `:entries`. Later events have `:added` and `:removed` entries, and
  `:changed` from a key to `[before after]`. Each has the time of the reading, `:at`, in milliseconds
  since 1970. Without changes there is no event. `:unpinned` has the pins of the handle's map that
  were removed or replaced by another map.

  | option      | meaning                                                                         |
  |-------------|---------------------------------------------------------------------------------|
  | `:interval` | seconds between two readings of the map (default: 1)                            |
  | `:on-error` | function of the `ex-info` that ended the watch (default: prints it)             |
  | `:on-done`  | function without arguments, called when the watch ended because it was closed   |

  The functions run on a thread of their own and can use the pod. Exceptions of f are printed. At
  most 1024 events are queued. Beyond that the oldest are dropped, and the next event has their
  number under `:dropped`. Read the map again then, with `snapshot`. Throws the errors of `snapshot`,
  and `:invalid-value` for invalid options.

      (def w (watch m {:interval 0.1} (fn [event] (prn (:changed event)))))
      (close w)"
  ([m f] (watch m {} f))
  ([m options f]
   (let [complain (fn [message e]
                    (binding [*out* *err*]
                      (println message (ex-message e))))
         w (watch-start m (dissoc options :on-error :on-done))
         most-waiting 1024
         state (atom {:waiting (sorted-map), :number 0, :dropped 0, :running false})
         add (fn [{:keys [waiting number] :as state} item]
               (let [full (and (:event item) (<= most-waiting (count waiting)))]
                 (cond-> (assoc state
                                :waiting (assoc (if full (dissoc waiting (ffirst waiting)) waiting) number item)
                                :number (inc number)
                                :running true)
                   full (update :dropped inc))))
         take-one (fn [{:keys [waiting] :as state}]
                    (if-let [[number {:keys [event]}] (first waiting)]
                      (cond-> (assoc state :waiting (dissoc waiting number))
                        event (assoc :dropped 0))
                      (assoc state :running false)))
         turn (agent nil)
         run (fn [_]
               (loop []
                 (let [[{:keys [waiting dropped]}] (swap-vals! state take-one)]
                   (when-let [[_ {:keys [call event]}] (first waiting)]
                     (try
                       (cond
                         (nil? event) (call)
                         (pos? dropped) (call (assoc event :dropped dropped))
                         :else (call event))
                       (catch Throwable e
                         (complain "What a watch calls failed:" e)))
                     (recur)))))
         in-turn (fn [item]
                   (let [[before] (swap-vals! state add item)]
                     (when-not (:running before)
                       (send-off turn run))))]
     (babashka.pods/invoke
      "pod.bpfmap.core" 'pod.bpfmap.core/watch-events [w]
      {:handlers {:success (fn [event] (in-turn {:call f :event event}))
                  :error (fn [{:keys [ex-message ex-data]}]
                           (let [on-error (or (:on-error options) (fn [e] (complain "A watch ended:" e)))]
                             (in-turn {:call (fn [] (on-error (ex-info ex-message ex-data)))})))
                  :done (fn [] (in-turn {:call (or (:on-done options) (fn []))}))}})
     w)))

(ns pod.bpfmap.events
  (:refer-clojure :exclude [peek])
  (:require [babashka.pods]))

(defn subscribe
  "Calls f with each event of a reader, until the returned subscription or the reader is closed.

  | option      | meaning                                                                         |
  |-------------|---------------------------------------------------------------------------------|
  | `:on-error` | function of the `ex-info` of an event that cannot be decoded, or of the error that ended the subscription (default: prints it) |
  | `:on-lost`  | function of a map: `{:lost n}` events that found no room in a perf event array, or `{:missed bytes :overtaken n}` of a peek that was overtaken |
  | `:on-done`  | function without arguments, called when the subscription ended because it or the reader was closed |

  The functions run on a thread of their own and can use the pod. Exceptions of f are printed. If f
  is slow, the pod stops reading after 1024 events that wait for it: the rest stays in the ring.

      (def r (reader m {:type [:struct [:pid :u32]]}))
      (def s (subscribe r (fn [event] (prn (:pid event)))))
      (close s)"
  ([r f] (subscribe r {} f))
  ([r options f]
   (let [complain (fn [message e]
                    (binding [*out* *err*]
                      (println message (ex-message e))))
         s (subscribe-start r)
         on-error (or (:on-error options) (fn [e] (complain "An event, or the subscription, failed:" e)))
         calling (fn [call & args]
                   (try
                     (apply call args)
                     (catch Throwable e
                       (complain "A function of a subscription failed:" e))))
         turn (agent nil)
         take-message (fn [{:keys [events error] :as message}]
                        (cond
                          error (calling on-error (ex-info (:ex-message error) (:ex-data error)))
                          events (do (run! (fn [event] (calling f event)) events)
                                     (try
                                       (subscribe-more s (count events))
                                       (catch Throwable _ nil))) ; the pod has ended
                          (:on-lost options) (calling (:on-lost options) message)))
         in-turn (fn [call] (send-off turn (fn [_] (call) nil)))]
     (babashka.pods/invoke
      "pod.bpfmap.core" 'pod.bpfmap.events/subscribe-events [s]
      {:handlers {:success (fn [message] (in-turn (fn [] (take-message message))))
                  :error (fn [{:keys [ex-message ex-data]}]
                           (in-turn (fn [] (calling on-error (ex-info ex-message ex-data)))))
                  :done (fn [] (in-turn (fn [] (calling (or (:on-done options) (fn []))))))}})
     s)))
