(ns ^:no-doc bpfmap.impl.events.writer
  "Writes records to a user ring buffer, whole or in place, and waits for room.

  The ring has one producer's position and no lock between processes, so two writers of one ring
  destroy each other's records. The threads of one writer take turns."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.events.ring :as ring]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.events :as kernel.events]
            [bpfmap.impl.kernel.memory :as kernel.memory]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.memory.bytes :as memory.bytes]
            [bpfmap.impl.type.node :as node]
            [bpfmap.impl.waiting :as waiting])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.impl.memory.bytes Memory)
           (bpfmap.sys ClosedFdException Codec CorruptEventsException UserRingBuffer
                       UserRingBuffer$Reservation Waiter)
           (java.io Closeable)
           (java.lang.foreign MemorySegment)
           (java.util Set)
           (java.util.concurrent ConcurrentHashMap)))

(set! *warn-on-reflection* true)

(declare close)

;; `codec` is nil if records are bytes. `waiters` has the Waiter of each thread that waits for room.
;; `release` gives the place as the ring's writer back.
(deftype EventWriter [identity ^UserRingBuffer ring ^Codec codec ^Set waiters release]
  Closeable
  (close [this] (close this))
  Object
  (toString [_]
    (str "#<bpf-event-writer of map " (error/id-and-name identity)
         (when (.isClosed ring) " closed") ">")))

(defmethod print-method EventWriter [w ^java.io.Writer out]
  (.write out (str w)))

(defn check
  "Returns x if it is a writer; else throws `:invalid-value`."
  ^EventWriter [x op]
  (if (instance? EventWriter x)
    x
    (throw (error/error :invalid-value (str "The argument must be a writer, got "
                                            (error/printed x))
                        {:bpfmap/op op :bpfmap/hint "pass a result of writer"}))))

;; --- errors

(defn- data [^EventWriter w op more]
  (merge {:bpfmap/op op :bpfmap/map (.-identity w)} more))

(defn- described [^EventWriter w]
  (str "map " (error/id-and-name (.-identity w))))

(defn- closed-error ^Throwable [w op]
  (error/error :closed (str "The writer of " (described w) " is closed")
               (data w op {:bpfmap/hint "it was closed before or during this call; open another"})))

(defn corrupt-error
  "Returns the error of positions or headers that are invalid."
  ^Throwable [^CorruptEventsException e identity op]
  (error/error :corrupt (str "The ring of map " (error/id-and-name identity) " is corrupt: "
                             (ex-message e))
               {:bpfmap/op op :bpfmap/map identity
                :bpfmap/position (.-position e)
                :bpfmap/hint "another process has written to it; create the map again"}
               e))

(defn- full-error ^Throwable [^EventWriter w op seconds]
  (let [^UserRingBuffer ring (.-ring w)]
    (error/error :map-full (str (name op) " on " (described w) " found no room"
                                (when (and seconds (pos? (double seconds)))
                                  (str " for " seconds " s")))
                 (data w op
                       {:bpfmap/hint
                        (str (.fill ring) " of " (.capacity ring)
                             " bytes are in use until a program drains the ring"
                             (when (pos? (.reserved ring))
                               ", and a reservation keeps those behind it from being drained")
                             (if seconds "" "; wait with {:timeout seconds}"))}))))

(defn- size-error ^Throwable [^EventWriter w op size]
  (let [longest (.longest ^UserRingBuffer (.-ring w))]
    (error/error :invalid-value
                 (if (integer? size)
                   (str "A record must have at most " longest " bytes, got " size)
                   (str "The size of a record must be a non-negative integer, got "
                        (error/printed size)))
                 (data w op {:bpfmap/hint
                             (str "the ring has " (.capacity ^UserRingBuffer (.-ring w))
                                  " bytes, 8 of each record are its header, and programs get "
                                  "records of less than 16 MiB only")}))))

(defn- check-size ^long [^EventWriter w op size]
  (if (and (int? size) (<= 0 (long size) (.longest ^UserRingBuffer (.-ring w))))
    (long size)
    (throw (size-error w op size))))

(defmacro ^:private with-ring-errors [[w op] & body]
  `(try
     ~@body
     (catch ClosedFdException _#
       (throw (closed-error ~w ~op)))
     (catch CorruptEventsException e#
       (throw (corrupt-error e# (.-identity ~w) ~op)))))

;; --- waiting for room

(def ^:private slice-nanos
  "The longest wait without another attempt.

  A program that drains with BPF_RB_NO_WAKEUP wakes nobody."
  50000000)

(defn- until-room
  "Returns the first result of `attempt` that is not nil; nil after some seconds.

  The descriptor is writable as long as a single byte is free. So the wait is edge-triggered: it
  ends when a program has drained the ring."
  [^EventWriter w op seconds attempt]
  (let [until (+ (System/nanoTime) (long (min 4e18 (* 1e9 (double seconds)))))
        ctx {:op op :map (.-identity w)}
        ^Set waiters (.-waiters w)]
    (with-open [^Waiter waiter (kernel.events/room-waiter (.pollable ^UserRingBuffer (.-ring w))
                                                          ctx)]
      (.add waiters waiter)
      (try
        (loop []
          (let [left (- until (System/nanoTime))]
            (when (.isInterrupted (Thread/currentThread))
              (throw (waiting/interrupted op nil)))
            (if-some [result (attempt)]
              result
              (when (pos? left)
                (kernel.events/wait waiter (min left (long slice-nanos)) ctx)
                (recur)))))
        (finally (.remove waiters waiter))))))

(defn- with-room
  "Returns the result of `attempt`, which is nil if there is no room.

  Waits for room up to some seconds; throws `:map-full`."
  [^EventWriter w op {:keys [timeout]} attempt]
  (with-ring-errors [w op]
    (if-some [result (or (attempt)
                         (when (and timeout (pos? (double timeout)))
                           (until-room w op timeout attempt)))]
      result
      (throw (full-error w op timeout)))))

;; --- whole records

(defn- send-segment [^EventWriter w options segment offset size]
  (with-room w :send! options
    #(when (.send ^UserRingBuffer (.-ring w) segment (long offset) (long size)) true)))

(defn- send-value [^EventWriter w value options]
  (let [^Codec codec (.-codec w)]
    (check-size w :send! (.size codec))
    (try
      (kernel.memory/call-with-encoded codec value
                                       (fn [memory offset size]
                                         (send-segment w options memory offset size)))
      (catch RuntimeException e
        (throw (call/in-context e {:op :send! :map (.-identity w)}))))))

(defn- send-bytes [^EventWriter w x options]
  (when-not (or (bytes? x) (bytes/byte-view? x))
    (throw (error/error :invalid-value (str "A record must be bytes, got " (error/printed x))
                        (data w :send! {:bpfmap/hint
                                        "a writer with a :type takes values of that type"}))))
  (let [^bytes array (bytes/->array x)]
    (check-size w :send! (alength array))
    (send-segment w options (MemorySegment/ofArray array) 0 (alength array))))

(defn send!
  "Sends a value, or bytes if the writer has no type; returns true."
  [^EventWriter w x options]
  (if (.-codec w)
    (send-value w x options)
    (send-bytes w x options)))

;; --- records in place

(defn- reservation-memory ^Memory [^EventWriter w ^UserRingBuffer$Reservation reservation]
  (memory.bytes/reserved (.take reservation) (.-identity w) reservation))

(defn reserve
  "Reserves a record; returns its memory. `size` is nil for the size of the type."
  ^Memory [^EventWriter w size options]
  (let [size (if-some [codec (.-codec w)]
               (or size (.size ^Codec codec))
               (or size
                   (throw (error/error :invalid-value "The size of the record is missing"
                                       (data w :reserve
                                             {:bpfmap/hint
                                              (str "pass it in bytes; only a writer with a :type "
                                                   "has a default")})))))
        size (check-size w :reserve size)]
    (reservation-memory w (with-room w :reserve options
                            #(.reserve ^UserRingBuffer (.-ring w) size)))))

(defn end-reservation
  "Commits or discards the reservation of some memory; returns true.

  Returns false if it has ended before."
  [memory op]
  (let [reservation (when (memory.bytes/memory? memory)
                      (memory.bytes/owner-of memory))]
    (when-not (instance? UserRingBuffer$Reservation reservation)
      (throw (error/error :invalid-value (str "The argument must be the memory of a reservation, "
                                              "got " (error/printed memory))
                          {:bpfmap/op op :bpfmap/hint "pass a result of reserve"})))
    (try
      (if (= :commit! op)
        (.commit ^UserRingBuffer$Reservation reservation)
        (.discard ^UserRingBuffer$Reservation reservation))
      (catch IllegalStateException _
        (throw (memory.bytes/busy-error memory op))))))

;; --- opening and closing

(defn open
  "Opens the writer of a user ring buffer."
  ^EventWriter [^BpfMap m {:keys [types] :as options}]
  (let [identity (bpf-map/identity-of m)
        {:keys [max-entries value]} (bpf-map/spec-of m)
        type (get options :type value)
        codec (when (some? type)
                (codec/of-node (node/node type types [:type]) [:value]))
        ctx {:op :writer :map identity :type :user-ringbuf :fd (bpf-map/descriptor m)}]
    (when-not (= :read-write (.-access m))
      (bpf-map/refuse m :writer (.-access m)
                      "a writer maps the ring; open it with {:access :read-write}"))
    (let [release (ring/claim m options :writer)]
      (try
        (let [ring (kernel.events/user-ring-buffer (bpf-map/descriptor m) max-entries ctx)]
          (try
            (.recover ring)
            (EventWriter. identity ring codec (ConcurrentHashMap/newKeySet) release)
            (catch CorruptEventsException e
              (.close ring)
              (throw (corrupt-error e identity :writer)))
            (catch Throwable e
              (.close ring)
              (throw e))))
        (catch Throwable e
          (release)
          (throw e))))))

(defn close
  "Closes a writer and discards its reservations.

  Wakes the threads that wait for room."
  [^EventWriter w]
  (try
    (.close ^UserRingBuffer (.-ring w))
    (catch IllegalStateException _
      (throw (error/error :busy (str "The writer of " (described w) " cannot be closed now")
                          (data w :close
                                {:bpfmap/hint (str "a thread reads a file or socket into the memory "
                                                   "of a reservation, or writes from it; end that, "
                                                   "then close again")})))))
  (doseq [waiter (.-waiters w)]
    (.wake ^Waiter waiter))
  ((.-release w))
  nil)

(defn stats
  "Returns the counters of a writer and, while it is open, the state of its ring."
  [^EventWriter w]
  (let [^UserRingBuffer ring (.-ring w)]
    (cond-> {:events (.sent ring) :bytes (.bytes ring) :discarded (.discarded ring)
             :capacity (.capacity ring)}
      (not (.isClosed ring)) (assoc :fill (.fill ring) :reserved (.reserved ring)))))
