;; The code that runs in the client of a pod: macros, callbacks and tag readers. The pod sends each
;; form of this file as the code of a var of pod.bpfmap.core, and Babashka evaluates it.

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

(defn read-attachment
  "Reads #bpfmap/attachment: the handle of an attachment of a program."
  [form]
  (tagged-literal 'bpfmap/attachment form))

(defn read-watch
  "Reads #bpfmap/watch: the handle of a watch of a map."
  [form]
  (tagged-literal 'bpfmap/watch form))

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

  The objects are anything that `close` takes: maps, programs, attachments and watches.

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
