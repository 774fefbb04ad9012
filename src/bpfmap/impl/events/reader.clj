(ns ^:no-doc bpfmap.impl.events.reader
  "Defines the reader of events: its sources, who may use it, and how it waits.

  One call at a time uses a reader. `close` wakes that call, and the last to leave gives the
  sources back. The loops over events do not check whether their memory is mapped, so this alone
  keeps it mapped: only a thread that is the reader's user reads events, and only a thread that has
  become its last user gives the sources back."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.events.typed :as typed]
            [bpfmap.impl.kernel.events :as kernel.events]
            [bpfmap.impl.waiting :as waiting])
  (:import (bpfmap.impl.events.typed Decoder)
           (bpfmap.sys CorruptEventsException EventSource EventSource$Handler Waiter)
           (clojure.lang ExceptionInfo IReduce ITransientCollection Reduced)
           (java.io Closeable)
           (java.util.concurrent CountDownLatch TimeUnit)
           (java.util.concurrent.atomic AtomicBoolean AtomicInteger AtomicReference)
           (java.util.concurrent.locks LockSupport)))

(set! *warn-on-reflection* true)

(declare reduce-events close)

;; `kind` is :reader or :peek. `identities` are the {:id :name :type} of the maps. `sources` is an
;; array. `waiter` is nil if the sources cannot be waited for. `hooks` are functions of the sources'
;; kind: `:on-close` is called when all has been given back, `:pause` and `:resume` change whether
;; programs can send. `halt` ends the call in progress: closing the reader or subscription sets it.
;; `flush` ends it after a pass.
;; `user` is the thread whose call uses the reader, or nil; after the end, it is the last user.
;; `ended` is down when everything has been given back. `stalls` has the busy record of each source,
;; by index: [position nanos-since]. `turn` counts passes: each begins with another source, or the
;; first one could keep the others waiting. `pace` is of a peek at perf events: `[seen since]`, the
;; number of events that were seen or missed, and the nanoseconds when a wait first found it.
(deftype EventReader [kind identities ^objects sources ^Waiter waiter ^Decoder decoder
                      options hooks
                      ^AtomicBoolean closed ^AtomicBoolean halt ^AtomicBoolean flush
                      ^AtomicReference user
                      ^CountDownLatch ended ^AtomicReference stalls ^AtomicInteger turn
                      ^AtomicReference pace]
  IReduce
  (reduce [this f]
    (let [result (reduce-events this
                                (fn [acc event] (if (identical? ::none acc) event (f acc event)))
                                ::none)]
      (if (identical? ::none result) (f) result)))
  (reduce [this f init]
    (reduce-events this f init))

  Closeable
  (close [this] (close this))

  Object
  (toString [_]
    (str "#<bpf-" (if (= :peek kind) "peek" "events")
         (apply str (map #(str " " (error/id-and-name %)) identities))
         (when (.get closed) " closed") ">")))

(defmethod print-method EventReader [r ^java.io.Writer w]
  (.write w (str r)))

;; --- who may use it

(defn- described [^EventReader r]
  (str (if (= :peek (.-kind r)) "The peek" "The reader") " of map "
       (error/list-of (map error/id-and-name (.-identities r)) "and")))

(defn- context [^EventReader r op]
  {:op op :map (first (.-identities r))})

(defn closed-error
  "Returns the error of a call on a reader that is closed."
  ^Throwable [^EventReader r op]
  (error/error :closed (str (described r) " is closed")
               {:bpfmap/op op :bpfmap/map (first (.-identities r))
                :bpfmap/hint "it was closed before this call; open another"}))

(defn- in-use-error ^Throwable [^EventReader r op ^Thread other]
  (error/error :busy (str (described r) " is in use")
               {:bpfmap/op op :bpfmap/map (first (.-identities r))
                :bpfmap/hint (if (identical? other (Thread/currentThread))
                               (str "this thread is inside another call on it; finish that call, "
                                    "or use the events there")
                               (str "the thread \"" (some-> other .getName) "\" reads it; one "
                                    "thread at a time may, and hands events on to others"))}))

(defn closed?
  "Returns true if a reader was closed; a call may still be in progress."
  [^EventReader r]
  (.get ^AtomicBoolean (.-closed r)))

(defn- close-all
  "Closes each of a sequence, also if closing another one throws."
  [[^java.lang.AutoCloseable x & more]]
  (when x
    (try
      (.close x)
      (finally (close-all more)))))

(defn- end-if-unused
  "Gives everything back if a reader is closed and has no user.

  The thread becomes its user first, and stays it. A thread that only finds the reader closed after
  it has left must not do this: another one may have become its user before it was closed."
  [^EventReader r]
  (when (and (closed? r)
             (.compareAndSet ^AtomicReference (.-user r) nil (Thread/currentThread)))
    (try
      (try
        (close-all (cond->> (.-sources r) (.-waiter r) (cons (.-waiter r))))
        (finally ((:on-close (.-hooks r)))))
      (finally (.countDown ^CountDownLatch (.-ended r))))))

(defn- leave [^EventReader r]
  (.set ^AtomicReference (.-user r) nil)
  (end-if-unused r))

(defn- enter-as
  "Makes a thread the only user of a reader, or throws."
  [^EventReader r ^Thread thread op]
  (let [^AtomicReference user (.-user r)]
    (when-not (.compareAndSet user nil thread)
      (throw (if (closed? r) (closed-error r op) (in-use-error r op (.get user)))))
    (when (closed? r)
      (leave r)
      (throw (closed-error r op)))))

(defn- using
  "Calls f as the only user of a reader."
  [^EventReader r op f]
  (enter-as r (Thread/currentThread) op)
  (try
    (f)
    (finally (leave r))))

(def ^:private patience-millis
  "The milliseconds that `close` waits for a function of the caller's to return."
  1000)

(defn- wake [^EventReader r ^Thread user]
  (some-> ^Waiter (.-waiter r) .wake)
  (LockSupport/unpark user))

(defn- halt [^EventReader r ^Thread user]
  (.set ^AtomicBoolean (.-halt r) true)
  (wake r user))

(defn- await-end
  "Waits until a latch is down, a second is over, or the thread is interrupted."
  [^CountDownLatch latch]
  (try
    (.await latch patience-millis TimeUnit/MILLISECONDS)
    (catch InterruptedException _
      (.interrupt (Thread/currentThread)))))

(defn close
  "Closes a reader: wakes the call that waits, and waits until it has left.

  Idempotent. If the function of that call takes longer than a second, it closes the reader when it
  leaves."
  [^EventReader r]
  (let [^AtomicReference user (.-user r)
        this (Thread/currentThread)]
    (.set ^AtomicBoolean (.-closed r) true)
    (let [other (.get user)]
      (halt r other)
      (end-if-unused r)
      ;; The call of this very thread gives everything back.
      (when-not (identical? this other)
        (await-end (.-ended r))))
    nil))

(defn- check-open [^EventReader r op]
  (when (closed? r)
    (throw (closed-error r op))))

(defn request-flush
  "Ends the wait of the call in progress, or else of the next one.

  That call makes one more pass over what is there, and returns."
  [^EventReader r]
  (check-open r :flush!)
  (.set ^AtomicBoolean (.-flush r) true)
  (wake r (.get ^AtomicReference (.-user r)))
  nil)

(defn pause-or-resume
  "Calls the hook `:pause` or `:resume` of a reader; throws if it has none."
  [^EventReader r hook op]
  (check-open r op)
  (let [f (hook (.-hooks r))]
    (when-not f
      (throw (error/error :not-supported (str (described r) " cannot be paused")
                          {:bpfmap/op op :bpfmap/map (first (.-identities r))
                           :bpfmap/hint (str "only the buffers of a perf event array belong to "
                                             "their reader; use a map that the program checks "
                                             "before it sends")})))
    (let [changed (f op)]
      (when (= :closed changed)
        (throw (closed-error r op)))
      changed)))

(defn raw?
  "Returns true if events are read in place."
  [^EventReader r]
  (boolean (:raw (.-options r))))

;; --- waiting

(def ^:private slice-nanos
  "The longest wait without a look at the sources, while events come.

  A record that is committed with BPF_RB_NO_WAKEUP wakes nobody, and neither does an interrupt."
  100000000)

(def ^:private longest-slice
  "The longest wait without a look at sources that have been quiet for long."
  1000000000)

(def ^:private spins
  "The number of looks at a busy record before the reader sleeps."
  64)

(def ^:private longest-pause
  "The most nanoseconds between two looks of a peek that nobody wakes."
  50000000)

(defn- backoff
  "Returns the nanoseconds of the n-th sleep in a row, from 50 us to `most`."
  ^long [^long n ^long most]
  (min most (bit-shift-left 50000 (min 30 n))))

(defn- some-source? [^EventReader r pred]
  (let [^objects sources (.-sources r)]
    (loop [i 0]
      (cond
        (= i (alength sources)) false
        (pred (aget sources i)) true
        :else (recur (inc i))))))

(defn slice
  "Returns the longest wait, at least `shortest`, after some quiet nanoseconds.

  Nobody is woken for nothing as long as events wake the reader: then an eighth of the quiet time is
  enough. `by-time` is true if a look without a wake-up found the last events."
  ^long [^long shortest ^long quiet by-time]
  (if by-time
    shortest
    (max shortest (min (long longest-slice) (quot quiet 8)))))

(defn pause
  "Returns the nanoseconds until a peek looks again, after `idle` looks in a row.

  A ring keeps its records for a while. The owner of small perf buffers reads an event at once, and
  then it can be overwritten. So a peek at these looks often while events come: after a 128th of the
  time since the last one. `seen` is the number of events that were seen or overtaken, and `pace` a
  reference to the last such number and its time, `[seen nanos]`; nil for a ring."
  ^long [^long idle ^long seen ^AtomicReference pace ^long now]
  (if (nil? pace)
    (backoff (+ 4 idle) longest-pause)
    (let [[before since] (.get pace)]
      (if (= seen before)
        (max 50000 (min (long longest-pause) (quot (- now (long since)) 128)))
        (do (.set pace [seen now])
            50000)))))

(defn- pause-of
  "Returns the nanoseconds until a peek that nobody wakes looks again."
  ^long [^EventReader r ^long idle]
  (pause idle
         (areduce ^objects (.-sources r) i n 0
                  (let [^EventSource source (aget ^objects (.-sources r) i)]
                    (+ n (.events source) (.overtaken source))))
         (when (:padded (.-hooks r)) (.-pace r))
         (System/nanoTime)))

(declare busy-record)

(defn- wait-in-kernel
  "Waits for an event or a wake-up; returns true if the time was over."
  [^EventReader r ^long nanos op]
  (not (kernel.events/wait (.-waiter r) nanos (context r op))))

(defn- wait
  "Waits until events may be there, at most some nanoseconds.

  Returns true if events would have ended the wait, but the time did. `idle` counts waits in a row,
  `quiet` is the time since the last event. A busy record keeps its ring readable, so that epoll
  would return at once. A peek cannot rely on wake-ups: the kernel wakes only if the owner of the
  ring had read everything. A virtual thread does not take the edges of a peek, so it would be
  awake without end."
  [^EventReader r nanos idle quiet by-time op]
  (cond
    (.isInterrupted (Thread/currentThread)) (throw (waiting/interrupted op nil))

    (some-source? r #(.isBusy ^EventSource %))
    (do (if (< (long idle) (long spins))
          (Thread/onSpinWait)
          (do (busy-record r)
              (LockSupport/parkNanos
               r (min (long nanos) (backoff (- (long idle) (long spins)) 10000000)))))
        false)

    (or (nil? (.-waiter r))
        (and (= :peek (.-kind r)) (.isVirtual (Thread/currentThread))))
    (do (LockSupport/parkNanos r (min (long nanos) (pause-of r idle)))
        false)

    (= :peek (.-kind r))
    (wait-in-kernel r (min (long nanos) (slice (pause-of r idle) quiet by-time)) op)

    :else
    (let [{:keys [wakeup-events wakeup-bytes]} (.-options r)]
      (wait-in-kernel r (min (long nanos) (slice slice-nanos quiet
                                          (or by-time wakeup-events wakeup-bytes)))
                      op))))

;; --- handlers

(defn- lost-of ^long [^EventReader r]
  (let [^objects sources (.-sources r)]
    (loop [i 0 n 0]
      (if (= i (alength sources))
        n
        (recur (inc i) (+ n (.lost ^EventSource (aget sources i))))))))

(definterface Sink
  (^Object result [])
  (^boolean done []))

(defn- of-function?
  "Returns true if a throwable is a failure of a function, and not of the JVM.

  A failed `assert` or `:pre` is an Error."
  [e]
  (or (instance? Exception e) (instance? AssertionError e)))

(defn- guarded
  "Returns a decoder that turns exceptions into errors with the bytes of the event.

  `on-error` gets them, and the event is `::none`. Without it they are thrown. A `try` that is not
  the last expression of a method is compiled to a closure, so this cannot be part of a sink."
  ^Decoder [^EventReader r ^Decoder decoder on-error op]
  (reify Decoder
    (struct [_] (.struct decoder))
    (decode [_ event]
      (try
        (.decode decoder event)
        (catch Throwable e
          (when-not (of-function? e)
            (throw e))
          (let [e (typed/failed e event op (first (.-identities r)))]
            (if on-error
              (do (on-error e) ::none)
              (throw e))))))))

(defmacro ^:private fold
  "Calls f with the result so far and an event; returns false if it is `reduced`."
  [f event acc stopped]
  `(let [x# (~f ~acc ~event)]
     (if (reduced? x#)
       (do (set! ~acc (.deref ^Reduced x#)) (set! ~stopped true) false)
       (do (when-not (identical? x# ~acc) (set! ~acc x#)) true))))

;; Calls f with the result so far and an event.
(deftype ^:private Folding [^Decoder decoder f
                            ^:unsynchronized-mutable acc
                            ^:unsynchronized-mutable stopped]
  Sink
  (result [_] acc)
  (done [_] (.booleanValue ^Boolean stopped))
  EventSource$Handler
  (struct [_] (.struct decoder))
  (acceptStruct [_ value]
    (fold f value acc stopped))
  (accept [this event]
    (let [value (.decode decoder event)]
      (or (identical? ::none value)
          (.acceptStruct this value)))))

;; Calls f with an event, and counts the events that cannot be decoded.
(deftype ^:private Each [^Decoder decoder f ^:unsynchronized-mutable ^long failed]
  Sink
  (result [_] failed)
  (done [_] false)
  EventSource$Handler
  (struct [_] (.struct decoder))
  (acceptStruct [_ value]
    (f value)
    true)
  (accept [_ event]
    (let [value (.decode decoder event)]
      (if (identical? ::none value)
        (set! failed (unchecked-inc failed))
        (f value))
      true)))

;; The same with events that are read in place.
(deftype ^:private RawFolding [f ^:unsynchronized-mutable acc ^:unsynchronized-mutable stopped]
  Sink
  (result [_] acc)
  (done [_] (.booleanValue ^Boolean stopped))
  EventSource$Handler
  (accept [_ event]
    (fold f event acc stopped)))

;; The same for a function that is called for its effect, and with nothing to keep.
(deftype ^:private RawEach [f]
  Sink
  (result [_] 0)
  (done [_] false)
  EventSource$Handler
  (accept [_ event]
    (f event)
    true))

(defn- for-each
  "Returns a sink that calls f with each event.

  Its result is the number of events that cannot be decoded."
  [^EventReader r f {:keys [raw on-error]} op]
  (if raw
    (RawEach. f)
    (Each. (guarded r (.-decoder r) on-error op) f 0)))

(defn- folding
  "Returns a sink that reduces with f."
  [^EventReader r f init {:keys [raw on-error]} op]
  (if raw
    (RawFolding. f init false)
    (Folding. (guarded r (.-decoder r) on-error op) f init false)))

;; --- passes

(defn- corrupt-error ^Throwable [^CorruptEventsException e ^EventReader r op]
  (error/error :corrupt (str "The ring of map "
                             (error/list-of (map error/id-and-name (.-identities r)))
                             " is corrupt: " (ex-message e))
               {:bpfmap/op op :bpfmap/map (first (.-identities r))
                :bpfmap/position (.-position e)
                :bpfmap/hint "another process has written to it; create it again"}
               e))

(defn- pass
  "Makes one pass over all sources, and returns the number of events."
  ^long [^EventReader r ^EventSource$Handler sink ^long limit op]
  (let [^objects sources (.-sources r)
        size (alength sources)
        ^AtomicBoolean halt (.-halt r)
        first-one (Integer/toUnsignedLong (.getAndIncrement ^AtomicInteger (.-turn r)))]
    (try
      (loop [i 0 n 0]
        (if (or (= i size) (<= limit n) (.get halt) (.done ^Sink sink))
          n
          (let [^EventSource source (aget sources (rem (+ first-one i) size))]
            (recur (inc i) (+ n (.drain source sink halt (int (- limit n))))))))
      (catch CorruptEventsException e
        (throw (corrupt-error e r op))))))

(defn- report-lost
  "Calls `on-lost` with the records lost since `before`; returns the new number."
  ^long [^EventReader r on-lost ^long before]
  (if on-lost
    (let [now (lost-of r)]
      (when (< before now)
        (on-lost (- now before)))
      now)
    before))

(defn- with-so-far
  "Adds the result so far to an error that this library throws out of a reduce."
  ^Throwable [^ExceptionInfo e ^Sink sink]
  (if (:bpfmap/error (ex-data e))
    (let [so-far (.result sink)]
      (doto ^Throwable (ex-info (ex-message e)
                     (assoc (ex-data e) :bpfmap/so-far (if (instance? ITransientCollection so-far)
                                                         (persistent! so-far)
                                                         so-far))
                     (ex-cause e))
        (.setStackTrace (.getStackTrace e))))
    e))

(defn- nanos [seconds]
  (when seconds (long (min 9e18 (* 1e9 (double seconds))))))

(def ^:private most-events
  "The largest limit of a pass."
  0x7fffffff)

(def ^:private first-limit 64)

(defn- next-limit
  "Returns the limit of the pass after one that took some nanoseconds."
  ^long [^long limit ^long nanos]
  (cond
    (< 10000000 nanos) (max 1 (quot limit 2))
    (< nanos 1000000) (min (* 2 limit) (long most-events))
    :else limit))

(defn- flushed?
  "Returns true if a flush was requested, and takes it back.

  The waiter is reset afterwards: a flush that comes in between is seen before the next wait."
  [^EventReader r]
  (let [flushed (.getAndSet ^AtomicBoolean (.-flush r) false)]
    (when flushed
      (some-> ^Waiter (.-waiter r) .reset))
    flushed))

(defn- last-pass
  "Makes a pass over everything that is there now.

  If it ends early, the flush is still due: the next call makes it."
  ^long [^EventReader r ^Sink sink op]
  (let [complete (volatile! false)]
    (try
      (let [n (pass r sink most-events op)]
        (vreset! complete (not (.done sink)))
        n)
      (finally
        (when-not @complete
          (.set ^AtomicBoolean (.-flush r) true))))))

(defn- run
  "Makes passes until the sink is done, the reader is halted, or time is over.

  `timeout` is in seconds without an event, `seconds` in all. The limit of a pass follows the time
  that passes take: the clock is read often if the function is slow, and rarely if it is fast.
  A flush makes one pass without a limit the last one. A subscription only looks at once.
  `by-time` is true if the last wait that brought events ended by its time, and not by a wake-up."
  [^EventReader r ^Sink sink {:keys [timeout seconds on-lost]} op]
  (let [begun (System/nanoTime)
        timeout (nanos timeout)
        seconds (nanos seconds)
        ^AtomicBoolean flush (.-flush r)
        ^AtomicBoolean halt (.-halt r)]
    (loop [last-event begun, started begun, idle 0, limit (long first-limit), lost (lost-of r)
           late false, by-time false]
      (let [flushed (and (flushed? r) (not= :subscribe op))
            n (if flushed (last-pass r sink op) (pass r sink limit op))
            lost (report-lost r on-lost lost)
            now (System/nanoTime)
            left (min (if seconds (- (long seconds) (- now begun)) Long/MAX_VALUE)
                      (if (and timeout (zero? n))
                        (- (long timeout) (- now last-event))
                        Long/MAX_VALUE))]
        (when-not (or flushed (.done sink) (.get halt) (not (pos? left)))
          (if (pos? n)
            (recur now now 0 (next-limit limit (- now started)) lost
                   false (if (pos? idle) late by-time))
            (let [late (and (not (.get flush))
                            (wait r left idle (- now last-event) by-time op))]
              (recur last-event (System/nanoTime) (inc idle) limit lost late by-time))))))))

(defn- run-to-result
  "Runs a sink and returns its result; an error has the result so far."
  [r ^Sink sink options op]
  (try
    (run r sink options op)
    (.result sink)
    (catch ExceptionInfo e
      (throw (with-so-far e sink)))))

(defn reduce-events
  "Reduces over events until the reader is closed, reduced, or out of time."
  [^EventReader r f init]
  (let [options (.-options r)]
    (using r :reduce #(run-to-result r (folding r f init options :reduce) options :reduce))))

(defn poll
  "Returns the next event; nil after some seconds or if the reader is closed."
  [^EventReader r seconds]
  (using r :poll!
         #(let [options (.-options r)
                sink (folding r (fn [_ event] (reduced event)) nil options :poll!)]
            (run r sink (assoc options :timeout nil :seconds seconds) :poll!)
            (.result ^Sink sink))))

(defn drain
  "Calls f with each event that is there now; returns the number of calls."
  [^EventReader r f]
  (using r :drain!
         #(let [options (.-options r)
                sink (for-each r f options :drain!)
                lost (lost-of r)]
            (let [n (pass r sink most-events :drain!)]
              (report-lost r (:on-lost options) lost)
              (- n (long (.result ^Sink sink)))))))

;; --- subscriptions

;; `ended` is down when the thread has left the reader.
(deftype Subscription [^EventReader r ^Thread thread ^CountDownLatch ended]
  Closeable
  (close [_]
    (when-not (zero? (.getCount ended))
      (locking ended ; or it may halt the next user
        (when (identical? thread (.get ^AtomicReference (.-user r)))
          (halt r thread)))
      (when-not (identical? thread (Thread/currentThread))
        (await-end ended))))
  Object
  (toString [_]
    (str "#<bpf-subscription to " r (when (zero? (.getCount ended)) " ended") ">")))

(defmethod print-method Subscription [s ^java.io.Writer w]
  (.write w (str s)))

(defn- leave-subscription
  "Ends the use of a reader by its subscription; the reader can be used again."
  [^EventReader r ended]
  (let [^AtomicBoolean halt (.-halt r)]
    (locking ended
      (when-let [^Waiter waiter (.-waiter r)]
        (.reset waiter))
      (.set halt false)
      (when (closed? r)
        (.set halt true))
      (leave r))))

(defn- deliver-events
  "Calls f with each event until the reader or the subscription is closed.

  What `on-error` throws ends it, and is not passed to `on-error` again."
  [^EventReader r f {:keys [on-error] :as options}]
  (let [its-own (volatile! nil)
        on-error (when on-error
                   (fn [e]
                     (try
                       (on-error e)
                       (catch Exception thrown
                         (vreset! its-own thrown)
                         (throw thrown)))))
        step (if on-error
               (fn [event]
                 (try
                   (f event)
                   (catch Throwable e
                     (if (of-function? e) (on-error e) (throw e)))))
               f)
        options (assoc (dissoc options :timeout :seconds) :on-error on-error)]
    (try
      (run r (for-each r step options :subscribe) options :subscribe)
      (catch Exception e
        (if (and on-error (not (identical? e @its-own)))
          (on-error e)
          (throw e))))))

(defn subscribe
  "Calls f with each event on a new platform thread; returns the subscription."
  ^Subscription [^EventReader r f options]
  (let [ended (CountDownLatch. 1)
        options (merge (.-options r) options)
        thread (.unstarted (doto (Thread/ofPlatform)
                             (.name (str "bpfmap-events-" (:id (first (.-identities r)))))
                             (.daemon true))
                           (fn []
                             (try
                               (deliver-events r f options)
                               (finally
                                 (leave-subscription r ended)
                                 (.countDown ended)))))]
    (enter-as r thread :subscribe)
    (try
      (.start thread)
      (catch Throwable e
        (leave r)
        (throw e)))
    (Subscription. r thread ended)))

;; --- making one

(defn open
  "Returns a reader over sources, which it owns.

  `options` are the caller's. `:padded` is true if the kernel may lengthen events. `:on-close` is
  called once when all is given back. `:pause` and `:resume` are functions of the operation, which
  return true if they changed anything. If this throws, the sources are closed."
  ^EventReader [kind identities sources {:keys [type types raw with-cpu] :as options}
                {:keys [padded on-close] :as hooks}]
  (try
    (let [decoder (when-not raw
                    (cond-> (typed/decoder type types padded) with-cpu typed/with-cpu))
          fds (mapv #(.pollable ^EventSource %) sources)
          waiter (when (every? some? fds)
                   (kernel.events/waiter fds (= :peek kind)
                                         {:op kind :map (first identities)}))]
      (EventReader. kind (vec identities) (object-array sources) waiter decoder options
                    (update hooks :on-close #(or % (constantly nil)))
                    (AtomicBoolean.) (AtomicBoolean.) (AtomicBoolean.) (AtomicReference.)
                    (CountDownLatch. 1) (AtomicReference. {}) (AtomicInteger.)
                    (AtomicReference. [-1 0])))
    (catch Throwable e
      (doseq [^EventSource source sources]
        (.close source))
      (when on-close (on-close))
      (throw e))))

;; --- statistics

(defn- sum [^EventReader r f]
  (reduce + 0 (map f (.-sources r))))

(defn- busy-record
  "Returns `{:position :seconds}` of the record that is busy longest, or nil.

  The seconds count from the first time that a wait or a call of [[stats]] saw it."
  [^EventReader r]
  (let [now (System/nanoTime)
        ^AtomicReference stalls (.-stalls r)
        before (.get stalls)
        current (into {}
                      (keep-indexed (fn [i ^EventSource source]
                                      (let [position (.busyPosition source)]
                                        (when-not (neg? position)
                                          (let [[old-position :as old] (before i)]
                                            [i (if (= old-position position)
                                                 old
                                                 [position now])])))))
                      (.-sources r))]
    (.set stalls current)
    (when-let [[position since] (first (sort-by second (vals current)))]
      {:position position :seconds (/ (- now (long since)) 1e9)})))

(defn stats
  "Returns the counters of a reader and, while it is open, its sources' state."
  [^EventReader r]
  (let [counters {:events (sum r #(.events ^EventSource %))
                  :bytes (sum r #(.bytes ^EventSource %))
                  :discarded (sum r #(.discarded ^EventSource %))
                  :lost (sum r #(.lost ^EventSource %))}
        counters (cond-> counters
                   (or (= :peek (.-kind r)) (:overwrite (.-options r)))
                   (assoc :overtaken (sum r #(.overtaken ^EventSource %))
                          :missed (sum r #(.missed ^EventSource %))))]
    (try
      (let [busy (busy-record r)]
        (cond-> (assoc counters
                       :fill (sum r #(.fill ^EventSource %))
                       :capacity (sum r #(.capacity ^EventSource %)))
          busy (assoc :busy busy)))
      (catch IllegalStateException e
        ;; The memory was unmapped meanwhile.
        (if (closed? r) counters (throw e))))))

(defn loss
  "Returns a row about the events lost between two results of [[stats]], or nil.

      (loss {:lost 1} {:lost 3}) ;=> {:lost 2}"
  [before now]
  (let [more (fn [k] (- (long (k now 0)) (long (k before 0))))
        lost (more :lost)
        overtaken (more :overtaken)]
    (cond-> nil
      (pos? lost) (assoc :lost lost)
      (pos? overtaken) (assoc :missed (more :missed) :overtaken overtaken))))
