(ns ^:no-doc bpfmap.exec.tail
  "Implements the command `tail`: the events of a ring buffer or perf event array, as rows to reduce.

  A row is one of:

  | row                                  | meaning                                                    |
  |--------------------------------------|------------------------------------------------------------|
  | `{:value event}`                     | an event; of a perf event array with its `:cpu`, if known  |
  | `{:value bytes :error message}`      | an event that its type cannot decode                       |
  | `{:lost n}`                          | n events found no room in a buffer of a perf event array   |
  | `{:missed bytes :overtaken n}`       | the producer overwrote records before they were copied     |
  | `{:status :gone}`                    | nothing can send events any more; this is the last row     |

  A row about events that were lost or missed is where they would have been. Conditions and limits
  apply to events only. Padding between the fields of an event is left out, because programs rarely
  clear it.

  Each reduction opens the map and closes it. Until then, it keeps the map alive."
  (:require [bpfmap.btf :as btf]
            [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.events :as events]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.query :as query]
            [bpfmap.exec.shown :as shown]
            [bpfmap.host :as host]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.events.reader :as reader]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.type :as type])
  (:import (clojure.lang ExceptionInfo IReduceInit)
           (java.io Closeable)
           (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

;; --- the types of events
;; A ring has no BTF of its own. The programs that write to it have.

(defn- or-nothing
  "Calls f; returns nil for an error of this library, such as a missing permission."
  [f]
  (try
    (f)
    (catch ExceptionInfo e
      (when-not (:bpfmap/error (ex-data e))
        (throw e)))))

(defn- objects-of
  "Returns the BTF objects of the programs that use a map."
  [id]
  (into []
        (comp (keep :btf-id)
              (filter pos?)
              (distinct)
              (keep #(or-nothing (fn [] (host/btf-by-id %)))))
        (or-nothing #(host/programs-using id))))

(defn- structs-in
  "Returns the structs of a BTF object that have a name: `[name size]` pairs."
  [b]
  (for [id (range 1 (inc (long (blob/type-count b))))
        :let [kind (blob/kind b id)
              name (when (#{:struct :typedef} kind) (blob/name-of b id))]
        :when (and name
                   (or (= :struct kind)
                       (let [target (blob/resolve b id)]
                         (and (= :struct (blob/kind b target)) (nil? (blob/name-of b target))))))
        :let [size (or-nothing #(blob/size-of b id))]
        :when (and size (pos? (long size)))]
    [name size]))

(defn- of-kernel?
  "Returns a predicate for `[name size]` pairs of structs of the kernel.

  It compares names only: sizes differ if the program was compiled for another kernel."
  []
  (if-let [kernel (or-nothing host/kernel-btf)]
    (fn [[name]] (seq (blob/ids-named kernel name)))
    (constantly false)))

(defn structs
  "Returns the structs in the BTF of the programs that use a map.

  They are `[name size]` pairs, sorted by name. Structs of the kernel, which programs read, are
  omitted. `size?` selects them by their size.

      (structs 12) ;=> ([\"event\" 24] [\"key\" 8])"
  ([id] (structs id any?))
  ([id size?]
   (let [found (sort (into #{} (comp (mapcat structs-in) (filter (comp size? second)))
                           (objects-of id)))]
     (if (seq found)
       (remove (of-kernel?) found)
       ()))))

(defn structs-for
  "Returns the [[structs]] that an event of a size can have, for its map.

  The kernel lengthens a perf event, so that it and the four bytes before it are a multiple of 8.

      (structs-for {:id 12 :type :ringbuf} 24) ;=> ([\"event\" 24])"
  [{:keys [id type]} size]
  (structs id (if (= :perf-event-array type)
                #(= size (- (bit-and (+ (long %) 4 7) -8) 4))
                #(= size %))))

(defn- named
  "Returns the type of a name in the BTF of the programs that use a map.

  Throws `:usage` if none of them has it."
  [{:keys [id] :as identity} name]
  (let [objects (objects-of id)]
    (or (some #(btf/type-named % name) objects)
        (let [names (distinct (map first (mapcat structs-in objects)))]
          (throw (arguments/refused nil :value-type name
                   (str "must be a type, or the name of a struct in the BTF of the programs that use "
                        "map " (error/id-and-name identity))
                   (or (nearest/did-you-mean name (sort (concat names (map clojure.core/name
                                                                           (keys type/scalars)))))
                       (if (seq names)
                         (str "`bpfmap completion bash tail " id "` lists these structs; or write "
                              "the type as '[struct [pid u32]]'")
                         "there is no such BTF; write the type as '[struct [pid u32]]'"))))))))

(defn type-of-events
  "Returns the type of the events of a map, from its info, or nil.

  It is `:value-type`, which is a type or a name, or else the type that `types --save` saved."
  [info {:keys [value-type types]}]
  (cond
    (string? value-type) (named info value-type)
    value-type value-type
    :else (:value ((requiring-resolve 'bpfmap.exec.remembered/find-types) info types))))

;; --- opening

(defn- frozen? [m]
  (:frozen (bpf/info m)))

(defn- open-reader
  "Opens a reader of a map, or a peek if somebody else may read it.

  Returns `{:reader :mode :holders}`."
  [m {:keys [from steal]} options]
  (let [peek #(events/peek m (cond-> options from (assoc :from from)))]
    (if (or from (and (frozen? m) (not steal)))
      {:reader (peek) :mode :peek}
      (try
        {:reader (events/reader m (cond-> options steal (assoc :steal true))) :mode :consume}
        (catch ExceptionInfo e
          (when-not (= :busy (:bpfmap/error (ex-data e)))
            (throw e))
          {:reader (peek) :mode :peek :holders (:bpfmap/holders (ex-data e) [])})))))

(defn- check-has-events
  "Throws `:not-supported` for a map without events."
  [{:keys [type] :as info}]
  (when-not (map-types/event-types type)
    (throw (error/error :not-supported
                        (str "Map " (error/id-and-name info) " has no events")
                        {:bpfmap/op :tail :bpfmap/map (select-keys info [:id :name :type])
                         :bpfmap/hint (str "its type is " (name type) "; events come from maps of "
                                           "type ringbuf and perf-event-array")}))))

(defn- check-from [{:keys [type]} {:keys [from steal]}]
  (cond
    (and from steal)
    (throw (arguments/refused "tail" :from from ["cannot be combined with " :steal]
             "it reads copies, and takes nothing"))
    (and from (not= :ringbuf type))
    (throw (arguments/refused "tail" :from from "requires a ring buffer"
             "a perf event array keeps no events that were read"))))

(defn fields-of
  "Returns the fields of the rows of events; see `bpfmap.exec.fields`.

      (fields-of {:type :ringbuf} :u32)"
  [{map-type :type} type]
  (fields/row (cond-> [["value" (if type
                                  (fields/of-side {:type :ringbuf :value type} :value)
                                  {:kind :bytes})]]
                (= :perf-event-array map-type) (conj ["cpu" {:kind :number}]))))

;; --- the end of a map that is followed

(defn- holders-of [id]
  (or-nothing #(host/holders {:map-id id})))

(defn- alive? [{:keys [pid]}]
  (.isPresent (ProcessHandle/of pid)))

(defn- nested?
  "Returns true if the host has maps of maps.

  A program can use a map in one of them without having the map's id in its info."
  []
  (some #(#{:array-of-maps :hash-of-maps} (:type %)) (or-nothing #(host/maps {:brief true}))))

(defn- others?
  "Returns true if another process, a program or a pin refers to a map.

  Returns true as well if the processes cannot be read."
  [id]
  (let [own (.pid (ProcessHandle/current))
        holders (holders-of id)]
    (boolean (or (nil? holders)
                 (some #(not= own (:pid %)) holders)
                 (seq (or-nothing #(host/programs-using id)))
                 (some #(and (= :map (:kind %)) (= id (:id %))) (or-nothing host/pins))))))

(def ^:private longest-pause
  "The largest number of seconds between two checks for the end of a map."
  30.0)

(defn- end-watcher
  "Returns a function that returns true if nothing can send events to the map.

  It checks that seldom, because it has to read the files of each process. If a process that had the
  map open has ended, it checks at once. `own-fds` is the number of this process's descriptors of the map."
  [id holders own-fds]
  (let [state (volatile! {:holders holders :pause 2.0 :at (System/nanoTime)})
        watch? (= 1 own-fds)]
    (fn []
      (when watch?
        (let [{:keys [holders pause at]} @state
              now (System/nanoTime)
              ended? (not (every? alive? holders))]
          (when (or ended? (< (* 1e9 (double pause)) (- now (long at))))
            (vreset! state {:holders (filterv alive? holders)
                            :pause (min (double longest-pause) (* 2 (double pause)))
                            :at now})
            (and (not (others? id)) (not (nested?)))))))))

;; --- rows

(defn- without-padding
  "Returns the value of an event without the bytes between its fields."
  [x]
  (cond
    (map? x) (reduce-kv (fn [m k v]
                          (cond
                            (= :bpfmap/padding k) (dissoc m k)
                            (or (map? v) (vector? v)) (assoc m k (without-padding v))
                            :else m))
                        x x)
    (and (vector? x) (coll? (first x))) (mapv without-padding x)
    :else x))

(defn row
  "Returns the row of an event.

      (row {:pid 7}) ;=> {:value {:pid 7}}"
  [event]
  {:value (without-padding event)})

(defn row-with-cpu
  "Returns the row of an event of a perf event array, with its CPU if known.

      (row-with-cpu [1 {:pid 7}]) ;=> {:value {:pid 7}, :cpu 1}"
  [[cpu event]]
  (cond-> (row event)
    cpu (assoc :cpu cpu)))

(def ^:private slice
  "The largest number of seconds of a wait for one event."
  1.0)

(defn- next-event
  "Returns the next event of a reader, ::none after some seconds, or ::closed."
  [r seconds]
  (try
    (let [event (events/poll! r seconds)]
      (if (nil? event) ::none event))
    (catch ExceptionInfo e
      (if (= :closed (:bpfmap/error (ex-data e))) ::closed (throw e)))))

(defn- run
  "Passes rows to f until the time is over, or the reader or the map has ended.

  `of-event` converts an event to a row. `errors` is a volatile with the rows of events that cannot
  be decoded."
  [r {:keys [seconds]} {:keys [of-event errors] ended? :ended} f init]
  (let [begun (System/nanoTime)
        left #(if seconds (- (double seconds) (/ (- (System/nanoTime) begun) 1e9)) slice)
        step (fn [acc row] (if (or (reduced? acc) (nil? row)) acc (f acc row)))]
    (loop [acc init seen nil wait (double (left))]
      (if (or (reduced? acc) (not (pos? wait)))
        (unreduced acc)
        (let [event (next-event r (min (double slice) wait))
              now (when-not (= ::closed event) (events/stats r))
              undecoded @errors
              _ (vreset! errors [])
              acc (reduce step (step acc (when now (reader/loss seen now))) undecoded)]
          (cond
            (= ::closed event) (unreduced acc)
            (reduced? acc) @acc
            (not= ::none event) (recur (step acc (of-event event)) now (double (left)))
            (ended?) (unreduced (step acc {:status :gone}))
            :else (recur acc now (double (left)))))))))

(defn- selecting
  "Returns a transducer for the events that meet all `:where`, at most `:limit`.

  Other rows pass."
  [{:keys [where limit] :as options} fields]
  (if-not (or where limit)
    (map identity)
    (fn [rf]
      (let [selected ((query/selecting (assoc options :fields fields)) (completing rf))]
        (fn
          ([] (rf))
          ([acc] (rf (selected acc)))
          ([acc row] (if (contains? row :value) (selected acc row) (rf acc row))))))))

(defn- shower-of
  "Returns the shower of hints for events of a type; nil without hints.

  See `bpfmap.exec.hints`. The value of an event without a type is bytes of any number."
  [options m type]
  (when (shown/given? options)
    (if type
      (shown/shower options {:value type} m)
      (throw (arguments/refused "tail" (if (:as options) :as :hints)
               (or (:as options) (:hints options)) ["requires " :value-type]
               "events without a type have no fields")))))

(defn- tail-rows
  [{:keys [limit] :as options} told opened f init]
  (with-open [m (input/open (dissoc options :value-type) :read-write)]
    (let [{:keys [id] :as info} (bpf/info m)
          identity (select-keys info [:id :name :type])
          _ (check-has-events info)
          _ (check-from info options)
          type (type-of-events info options)
          fields (fields-of info type)
          _ (query/check (assoc options :fields fields))
          shower (shower-of options m type)
          errors (volatile! [])
          own-fds (holders/own-descriptors id)
          {:keys [reader mode holders]}
          (open-reader m options
                       {:type type
                        :with-cpu (= :perf-event-array (:type info))
                        :on-error (fn [e]
                                    (vswap! errors conj {:value (:bpfmap/bytes (ex-data e))
                                                         :error (ex-message e)}))})]
      (with-open [^Closeable r reader]
        (reset! told {:map identity :mode mode :holders holders :type type :fields fields
                      :collapsed (:collapsed shower)})
        (opened r @told)
        (if (and limit (zero? (long limit)))
          init
          (transduce (comp (selecting options fields) (shown/showing shower)) (completing f) init
                     (reify IReduceInit
                       (reduce [_ f init]
                         (run r options {:of-event (if (= :perf-event-array (:type info))
                                                     row-with-cpu
                                                     row)
                                         :errors errors
                                         :ended (end-watcher id holders own-fds)}
                              f init)))))))))

(defn tail
  "Returns the events of a map as something to reduce.

  If nobody else has the map open, its events are taken from it. Otherwise they are copied. With
  `:steal` they are always taken, with `:from` always copied. `opened` is called with the reader and
  the facts under `:about` of the metadata, an atom: `{:map :mode :holders :type :fields :collapsed}`, where
  `:mode` is `:consume` or `:peek`. Closing the reader ends the reduction.

      (into [] (tail {:ref {:name \"events\"} :value-type [:struct [:pid :u32]] :limit 2}))
      ;=> [{:value {:pid 4711}} {:value {:pid 4712}}]"
  ([options] (tail options (constantly nil)))
  ([options opened]
   (let [told (atom nil)]
     (with-meta (reify IReduceInit
                  (reduce [_ f init] (tail-rows options told opened f init)))
       {:about told}))))
