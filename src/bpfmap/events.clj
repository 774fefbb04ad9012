(ns bpfmap.events
  "Reads events that BPF programs send, and sends records to programs.

  Programs send events through ring buffers and perf event arrays; they receive records through user
  ring buffers.

      (require '[bpfmap.core :as bpf] '[bpfmap.events :as events])

      (with-open [m (bpf/open \"/sys/fs/bpf/execs\")
                  r (events/reader m {:type [:struct [:pid :u32] [:comm [:string 16]]]})]
        (into [] (take 2) r)) ;=> [{:pid 4711, :comm \"ls\"} {:pid 4712, :comm \"cat\"}]

  A reader is reducible: `reduce`, `transduce`, `into` and `run!` get one event after another, and
  wait for the next. It ends when the reader is closed, by a `reduced` such as of `(take n)`, after
  `:timeout` seconds without an event, or after `:seconds` in all. A reduce that ends leaves the
  next event where it is.

  One thread at a time uses a reader. Any thread may close it. Errors are `ex-info` with
  `:bpfmap/error`, see `bpfmap.error`. doc/events.md is the guide."
  (:refer-clojure :exclude [peek])
  (:require [bpfmap.error :as error]
            [bpfmap.impl.events.perf :as perf]
            [bpfmap.impl.events.reader :as reader]
            [bpfmap.impl.events.ring :as ring]
            [bpfmap.impl.events.writer :as writer]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.options :as options])
  (:import (bpfmap.impl.events.reader EventReader)
           (bpfmap.impl.events.writer EventWriter)
           (bpfmap.sys EventSource RawEvent)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn- invalid [op message hint]
  (error/error :invalid-value message {:bpfmap/op op :bpfmap/hint hint}))

(defn- maps-of
  "Returns the maps of an argument that is one or several, and their type."
  [m-or-ms op]
  (let [ms (if (sequential? m-or-ms) (vec m-or-ms) [m-or-ms])]
    (when (empty? ms)
      (throw (invalid op "There must be at least one map" nil)))
    (doseq [m ms]
      (bpf-map/check-open-map m op))
    (let [types (distinct (map #(:type (bpf-map/identity-of %)) ms))]
      (doseq [m ms :when (not (map-types/event-types (:type (bpf-map/identity-of m))))]
        (bpf-map/refuse m op :not-supported
                        (str "events come from maps of type :ringbuf and :perf-event-array, not "
                             (:type (bpf-map/identity-of m)))))
      (when-not (apply distinct? (map #(:id (bpf-map/identity-of %)) ms))
        (throw (invalid op "The maps must differ, got one of them twice" nil)))
      (when (or (next types) (and (next ms) (= [:perf-event-array] types)))
        (throw (invalid op "Several maps must be ring buffers"
                        "use one reader for each perf event array")))
      [ms (first types)])))

(defn- value-type
  "Returns the options with the value type of a ring as default type.

  The values of a perf event array are not events."
  [m {:keys [type] :as options}]
  (cond-> options
    (and (nil? type) (= :ringbuf (:type (bpf-map/identity-of m))))
    (assoc :type (:value (bpf-map/spec-of m)))))

(defn- check-together
  "Throws `:invalid-value` for options that do not fit together, or not the map."
  [map-type options op]
  (doseq [[a b] [[:wakeup-events :wakeup-bytes] [:with-cpu :raw] [:type :raw]]
          :when (and (options a) (options b))]
    (throw (invalid op (str a " and " b " exclude each other") "leave out one")))
  (when-not (= :perf-event-array map-type)
    (doseq [option [:with-cpu :pages :wakeup-events :wakeup-bytes :overwrite]
            :when (options option)]
      (throw (invalid op (str option " must be left out for a ring buffer")
                      "only the buffers of a perf event array belong to a CPU")))))

(defn- open-perf ^Closeable [kind identities {:keys [sources] :as opened} options]
  (reader/open kind identities sources options (dissoc opened :sources)))

(defn reader
  "Opens a reader of the events of ring buffers, or of a perf event array.

  `m-or-ms` is an open `:ringbuf` map, a vector of several, or one `:perf-event-array` map.

  | option           | meaning                                                                  |
  |------------------|--------------------------------------------------------------------------|
  | `:type`          | a type of `bpfmap.type`; a function of the event's byte view that returns one or nil; nil for byte views. Default: the value type of the map. Not with `:raw` |
  | `:types`         | named types, for `:type`                                                 |
  | `:raw`           | true: events are read in place, see [[raw-long]]                         |
  | `:timeout`       | seconds without an event after which a reduce ends                       |
  | `:seconds`       | seconds after which a reduce ends                                        |
  | `:on-error`      | a function of the error of an event that cannot be decoded               |
  | `:on-lost`       | a function of the number of records that the kernel lost                 |
  | `:steal`         | true: read a map that may have another reader                            |
  | `:pages`         | pages of each CPU's buffer of a perf event array, a power of two, default: 64 |
  | `:wakeup-events` | events of a CPU of a perf event array after which the kernel wakes the reader, default: 1 |
  | `:wakeup-bytes`  | the same in bytes, instead of `:wakeup-events`                           |
  | `:with-cpu`      | true: each event of a perf event array is `[cpu event]`                  |
  | `:overwrite`     | true: the buffers of a perf event array keep the newest events, see below |

  If an event is longer than its type, its remaining bytes are under `:bpfmap/extra`. If it is
  shorter, it has the complete fields, and the number of missing bytes under `:bpfmap/missing`. If
  an event cannot be decoded, `:on-error` is called with an error that has the bytes under
  `:bpfmap/bytes`, and the reader continues. Without `:on-error` the error is thrown, with the
  result so far under `:bpfmap/so-far`, and the next reduce begins with the next event.

  A perf event array has a buffer for each CPU that is online when it is opened. Events of one CPU
  come in their order, those of several CPUs do not. The kernel adds up to seven bytes to an event:
  they are part of a byte view, but not of a typed event. With `:wakeup-events` or `:wakeup-bytes`, a
  wait ends after at most 100 ms, so no event is delayed for longer. The buffers are in the map until
  the reader is closed. With `:steal`, they replace the buffers of another reader, which then gets no
  more events, even after this one is closed.

  With `:overwrite`, programs never find a buffer full: they overwrite the oldest events, and the
  reader gets those that are left, in their order. [[stats]] has `:overtaken` and `:missed`, as for a
  [[peek]]. If more than the size of a buffer less 192 KiB is new, the reader pauses the buffer while
  it copies it, for some milliseconds. Programs get the error ENOSPC meanwhile, and their events are
  counted under `:lost`. Needs Linux 4.7.

  Each event goes to one reader only. If another process has the map open or mapped, or this process
  has a reader of it, `:busy` is thrown, with the processes under `:bpfmap/holders`. Throws
  `:not-supported` for other types of maps, `:read-only` for a map opened read-only, `:permission`
  for a frozen ring, `:invalid-spec` for a malformed type. Needs Linux 5.8 for ring buffers.

      (reader m {:type [:struct [:pid :u32] [:comm [:string 16]]] :timeout 5})"
  (^Closeable [m-or-ms] (reader m-or-ms nil))
  (^Closeable [m-or-ms options]
   (options/check :reader options)
   (let [[[m :as ms] type] (maps-of m-or-ms :reader)
         identities (map bpf-map/identity-of ms)
         _ (check-together type (or options {}) :reader)
         options (value-type m options)]
     (if (= :perf-event-array type)
       (open-perf :reader identities (perf/consuming m options :reader) options)
       (let [{:keys [sources release]} (ring/consuming ms options)]
         (reader/open :reader identities sources options {:on-close release}))))))

(defn peek
  "Opens a reader that takes nothing: it copies records, and follows the ring.

  The owner of the ring does not notice. The mappings are read-only, and nothing waits for the peek.
  It is woken for each event while the owner keeps up, and looks by time otherwise: every 0.8 to 50
  ms while events come, up to a second if the ring has been quiet for long. If the producer
  overwrites a record before it is copied, the peek skips it and counts it: see [[stats]] for
  `:overtaken` and `:missed`.

  The options are the same as for [[reader]], except `:steal`, `:pages`, `:wakeup-events` and
  `:wakeup-bytes`; and `:from`: `:oldest` (default) begins with the oldest record that is still in
  the ring, `:now` with the next one.

  Of a perf event array it reads the buffers of the process that has a reader. Events that this
  reader has read are seen if they are in the last part of the buffer, which is its size less 192
  KiB: 64 KiB of the 64 pages that are usual. Of a smaller buffer, an event is seen only until its
  reader has read it, which makes the peek a sample. The CPU of an event is unknown. Throws
  `:not-found` if no process has a reader, `:not-supported` if that process has several perf event
  arrays open, `:permission` without the right to trace it. Needs Linux 5.6.

      (with-open [r (peek m {:timeout 1})] (into [] r))"
  (^Closeable [m-or-ms] (peek m-or-ms nil))
  (^Closeable [m-or-ms options]
   (options/check :peek options)
   (let [[[m :as ms] type] (maps-of m-or-ms :peek)
         identities (map bpf-map/identity-of ms)
         _ (check-together type (or options {}) :peek)
         options (value-type m options)]
     (if (= :perf-event-array type)
       (open-perf :peek identities (perf/following m options :peek) options)
       (reader/open :peek identities (ring/following ms options :peek) options nil)))))

(defn- check-function [f op]
  (when-not (ifn? f)
    (throw (invalid op (str "f must be a function, got " (error/printed f))
                    "it is called with each event"))))

(defn- check-reader ^EventReader [r op]
  (when-not (instance? EventReader r)
    (throw (invalid op (str "The argument must be a reader, got " (error/printed r))
                    "pass a result of reader or peek")))
  r)

(defn poll!
  "Returns the next event; nil after some seconds without one.

  Waits without end for nil seconds; does not wait for 0. Returns nil if the reader is closed
  meanwhile. Throws `:closed`, `:busy` if another call uses the reader, and `:not-supported` for a
  reader with `:raw`.

      (poll! r 0.5) ;=> {:pid 4711, :comm \"ls\"}"
  ([r] (poll! r nil))
  ([r seconds]
   (check-reader r :poll!)
   (options/check :reader {:seconds seconds})
   (when (reader/raw? r)
     (throw (error/error :not-supported "An event in place ends with the call that gets it"
                         {:bpfmap/op :poll!
                          :bpfmap/hint (str "poll! would return it afterwards; use reduce, run! or "
                                            "drain!, or a reader without :raw")})))
   (reader/poll r seconds)))

(defn drain!
  "Calls f with each event that is there now, and returns without waiting.

  Returns the number of events.

      (drain! r println) ;=> 2"
  [r f]
  (check-reader r :drain!)
  (check-function f :drain!)
  (reader/drain r f))

(defn flush!
  "Ends the wait of a reader: its call returns after the events that are there now.

  Any thread may call it; returns nil at once. The call in progress returns as after its `:timeout`:
  a reduce its result so far, `poll!` nil if there is no event. If no call is in progress, this
  applies to the next one. A flush counts until a call has got all events, so `poll!` returns them
  one by one before it returns nil. A subscription looks for events at once, and continues.
  [[drain!]] does not wait, and leaves the flush to the next call. Throws `:closed`.

      (future (flush! r))
      (into [] r) ;=> [{:pid 4711, :comm \"ls\"}]"
  [r]
  (check-reader r :flush!)
  (reader/request-flush r))

(defn pause!
  "Takes the buffers of a reader out of its perf event array; returns true.

  Programs get the error ENOENT for each event until [[resume!]]. The events that are in the buffers
  can still be read. Any thread may call it. Returns false if the reader is paused. Throws
  `:not-supported` for ring buffers and peeks, and `:closed`.

      (pause! r) ;=> true"
  [r]
  (check-reader r :pause!)
  (reader/pause-or-resume r :pause :pause!))

(defn resume!
  "Stores the buffers of a paused reader in its perf event array; returns true.

  Returns false if the reader is not paused. Throws `:busy` if the array has got another reader
  meanwhile, unless this one was opened with `:steal true`, and the same errors as [[pause!]].

      (resume! r) ;=> true"
  [r]
  (check-reader r :resume!)
  (reader/pause-or-resume r :resume :resume!))

(defn subscribe
  "Calls f with each event on a thread of its own until it is closed.

  Returns the subscription. The thread is a platform thread and a daemon. It ends when the
  subscription or the reader is closed; after closing the subscription, the reader can be used
  again. The options are `:on-error` and `:on-lost`, as for [[reader]]. `:on-error` gets what f
  throws, too; without it, an exception ends the subscription and goes to the thread's handler of
  uncaught exceptions.

      (with-open [_ (subscribe r println)] (read-line))"
  (^Closeable [r f] (subscribe r f nil))
  (^Closeable [r f options]
   (check-reader r :subscribe)
   (check-function f :subscribe)
   (options/check :subscribe options)
   (reader/subscribe r f options)))

(defn stats
  "Returns the counters of a reader, or the state of a ring with any reader.

  | key          | meaning                                                                     |
  |--------------|-----------------------------------------------------------------------------|
  | `:events` `:bytes` | delivered events, and the bytes in them                               |
  | `:discarded` | records that the program discarded                                          |
  | `:lost`      | records of a perf event array that found no room. A ring does not count them |
  | `:fill` `:capacity` | bytes in use now, headers included, and the size                     |
  | `:busy`      | if the next record is reserved but not committed: its `:position`, and for how many `:seconds` that has been seen. A program that was killed never commits it |
  | `:overtaken` `:missed` | of a peek, and with `:overwrite`: how often the producer was faster, and the bytes skipped |

  For a map, there are only `:fill`, `:capacity` and `:busy`. Nothing is consumed. A closed reader
  has its counters only. While a call uses a reader, the counters of a ring may lag by the events of
  its current pass over the ring. A [[writer]] has `:events`, `:bytes`, `:discarded`, `:fill`, `:capacity`,
  and `:reserved`, the number of reservations that are neither committed nor discarded.

      (stats r) ;=> {:events 2, :bytes 40, :discarded 0, :lost 0, :fill 0, :capacity 4096}
      (stats m) ;=> {:fill 48, :capacity 4096}"
  [r-or-m]
  (cond
    (instance? EventReader r-or-m)
    (reader/stats r-or-m)

    (instance? EventWriter r-or-m)
    (writer/stats r-or-m)

    (and (bpf-map/bpf-map? r-or-m) (= :user-ringbuf (:type (bpf-map/identity-of r-or-m))))
    (with-open [^EventSource source (first (ring/following [r-or-m] {:from :now} :stats))]
      {:fill (.fill source) :capacity (.capacity source)})

    :else
    (with-open [^EventReader r (peek r-or-m)]
      (select-keys (reader/stats r) [:fill :capacity :busy]))))

;; --- events in place
;; Inlined: a call through a var takes as long as the rest of the loop.

(defn- in-place
  "Returns the :inline function of a method of RawEvent."
  [method]
  (fn [event & args]
    (let [e (with-meta (gensym "event") {:tag `RawEvent})]
      `(let [~e ~event] (~method ~e ~@args)))))

(defn raw-length
  "Returns the number of bytes of an event in place.

  With the option `:raw true`, events are not decoded and not copied: the function gets the same
  object for each event, which reads the event in the ring. It is valid only during the call, and on
  the thread of the call. Afterwards it shows the next event, or throws `IllegalStateException` if
  there is none; on another thread it throws that always. Reading it allocates nothing.

      (reduce (fn [n event] (+ n (raw-length event))) 0 r)"
  {:inline (in-place '.length)}
  ^long [event]
  (.length ^RawEvent event))

(defn raw-byte
  "Returns the signed byte at an offset of an event in place.

  Throws `IndexOutOfBoundsException` beyond the end of the event, as do all of these.

      (raw-byte event 0)"
  {:inline (in-place '.int8)}
  ^long [event ^long offset]
  (.int8 ^RawEvent event offset))

(defn raw-short
  "Returns the signed number of two bytes at an offset of an event in place.

      (raw-short event 2)"
  {:inline (in-place '.int16)}
  ^long [event ^long offset]
  (.int16 ^RawEvent event offset))

(defn raw-int
  "Returns the signed number of four bytes at an offset of an event in place.

      (raw-int event 4)"
  {:inline (in-place '.int32)}
  ^long [event ^long offset]
  (.int32 ^RawEvent event offset))

(defn raw-long
  "Returns the number of eight bytes at an offset of an event in place.

  In the byte order of this machine; see [[raw-length]].

      (run! (fn [event] (.add adder (raw-long event 8))) r)"
  {:inline (in-place '.int64)}
  ^long [event ^long offset]
  (.int64 ^RawEvent event offset))

(defn raw-copy!
  "Copies bytes from an offset of an event in place to an array.

  Returns the number of bytes copied.

      (raw-copy! event 0 buffer) ;=> 64"
  {:inline (in-place '.copyTo)}
  ^long [event ^long offset ^bytes array]
  (.copyTo ^RawEvent event offset array))

;; --- user ring buffers

(defn writer
  "Opens a writer of records to a user ring buffer, from which programs drain them.

  `m` is an open `:user-ringbuf` map.

  | option   | meaning                                                                          |
  |----------|----------------------------------------------------------------------------------|
  | `:type`  | a type of `bpfmap.type`, or nil for records that are bytes. Default: the value type of the map |
  | `:types` | named types, for `:type`                                                         |
  | `:steal` | true: write to a ring that may have another writer                               |

  Any number of threads may use a writer. Two writers of a ring would destroy each other's records:
  if this process has one, or another process has the map open and a ring of its size mapped for
  writing, `:busy` is thrown, with the processes under `:bpfmap/holders`. Reservations that a writer
  left when it ended are discarded. `close` discards the reservations of this one.

  Throws `:not-supported` for other types of maps, `:read-only` or `:write-only` for a map that was
  opened so, `:permission` for a frozen map, `:corrupt` for a ring that programs cannot drain any
  more, `:invalid-spec` for a malformed type. Needs Linux 6.1.

      (with-open [w (writer m {:type [:struct [:command :u32] [:pid :u32]]})]
        (send! w {:command 1 :pid 4711})) ;=> true"
  (^Closeable [m] (writer m nil))
  (^Closeable [m options]
   (bpf-map/check-open-map m :writer)
   (options/check :writer options)
   (when-not (= :user-ringbuf (:type (bpf-map/identity-of m)))
     (bpf-map/refuse m :writer :not-supported
                     (str "records go to maps of type :user-ringbuf, not "
                          (:type (bpf-map/identity-of m)))))
   (bpf-map/with-error-context [m :writer]
     (writer/open m options))))

(defn send!
  "Sends a value, or bytes if the writer has no type; returns true.

  Programs see the record at once and whole. If the ring is full, throws `:map-full`, with
  `:timeout` after so many seconds without room. Throws `:invalid-value` for a value that does not
  fit the type, and for a record longer than the ring, or of 16 MiB and more; `:closed`; `:corrupt`
  if another process has written to the ring; `:interrupted`. Then nothing has been sent.

      (send! w {:command 1 :pid 4711})               ;=> true
      (send! w {:command 1 :pid 4711} {:timeout 0.5}) ;=> true"
  ([w x] (send! w x nil))
  ([w x options]
   (writer/check w :send!)
   (options/check :send! options)
   (writer/send! w x options)))

(defn reserve
  "Reserves a record to write in place; returns its memory, filled with zeros.

  `size` is in bytes, default: the size of the writer's type. The memory is that of `bpfmap.memory`:
  `write!`, views, `copy-from` and `byte-buffer` write to it. Then pass it to [[commit!]] or
  [[discard!]]; closing it discards it. Afterwards any access to it throws `:closed`.

  Programs get no later records until the reservation ends. A reservation that is lost is discarded
  by the garbage collector. Use `with-open`, which discards it unless it was committed.

  Throws the same errors as [[send!]], and `:timeout` has the same meaning.

      (with-open [memory (reserve w 8)]
        (mem/write! (mem/view memory [:struct [:command :u32] [:pid :u32]]) {:command 1 :pid 4711})
        (commit! memory)) ;=> true"
  (^Closeable [w] (reserve w nil nil))
  (^Closeable [w size] (reserve w size nil))
  (^Closeable [w size options]
   (writer/check w :reserve)
   (options/check :reserve options)
   (writer/reserve w size options)))

(defn commit!
  "Hands a reserved record to the programs; returns true.

  `memory` is a result of [[reserve]]. Returns false if it was committed or discarded before, or its
  writer was closed.

      (commit! memory) ;=> true"
  [memory]
  (writer/end-reservation memory :commit!))

(defn discard!
  "Discards a reserved record; returns true.

  Programs do not see it. Returns false if it was committed or discarded before.

      (discard! memory) ;=> true"
  [memory]
  (writer/end-reservation memory :discard!))
