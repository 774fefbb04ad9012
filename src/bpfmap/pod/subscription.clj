(ns ^:no-doc bpfmap.pod.subscription
  "Sends the events of a reader to the client of a pod, never more than the client has room for.

  The client allows a number of events, and more after it has used some. Until then nothing is read:
  the events stay in the ring, which is the buffer. A ring that gets full meanwhile has no room for
  new events, and a peek that gets behind skips some; both are reported.

  The client gets messages:

  | key         | meaning                                                                        |
  |-------------|--------------------------------------------------------------------------------|
  | `:events`   | a vector of events                                                             |
  | `:lost`     | the number of events that found no room in a buffer of a perf event array      |
  | `:missed` `:overtaken` | of a peek: bytes that were skipped, and how often                   |
  | `:error`    | `{:ex-message :ex-data}` of an event that cannot be decoded                    |"
  (:require [bpfmap.error :as error]
            [bpfmap.events :as events]
            [bpfmap.impl.events.reader :as reader]
            [bpfmap.pod.handles :as handles])
  (:import (bpfmap.impl.events.reader EventReader)
           (clojure.lang ExceptionInfo)
           (java.io Closeable)
           (java.util.concurrent CountDownLatch Semaphore TimeUnit)))

(set! *warn-on-reflection* true)

(def ^:private ^:const window
  "The events that a client may have before it has used any."
  1024)

(def ^:private ^:const most-at-once "The largest number of events in a message." 64)

(def ^:private slice
  "The seconds between two checks for a closed subscription."
  0.1)

;; `room` has a permit for each event that the client has room for.
(deftype Subscription [^EventReader reader ^Semaphore room ^CountDownLatch ended]
  Closeable
  (close [_] (.countDown ended))

  handles/Openable
  (tag [_] 'bpfmap/subscription)
  (facts [_] (handles/facts reader)))

(defn start
  "Starts a subscription to the events of a reader.

      (start reader)"
  ^Subscription [reader]
  (when-not (instance? EventReader reader)
    (throw (error/error :invalid-value (str "The argument must be a reader, got "
                                            (error/printed reader))
                        {:bpfmap/op :subscribe
                         :bpfmap/hint "pass a result of reader or peek"})))
  (Subscription. reader (Semaphore. window) (CountDownLatch. 1)))

(defn subscription?
  "Returns true if x is a subscription, running or ended."
  [x]
  (instance? Subscription x))

(defn allow
  "Allows n more events."
  [^Subscription subscription n]
  (.release ^Semaphore (.-room subscription) (int n))
  nil)

(defn endless?
  "Returns true if x may keep a call waiting until it is closed."
  [x]
  (or (subscription? x) (instance? EventReader x)))

(defn- ended? [^Subscription subscription]
  (zero? (.getCount ^CountDownLatch (.-ended subscription))))

(defn- next-event
  "Returns the next event, or ::none after some seconds.

  Returns ::closed for a closed reader, and the exception of an event that cannot be decoded."
  [reader seconds]
  (try
    (let [event (events/poll! reader seconds)]
      (if (nil? event) ::none event))
    (catch ExceptionInfo e
      (cond
        (= :closed (:bpfmap/error (ex-data e))) ::closed
        (:bpfmap/bytes (ex-data e)) e
        :else (throw e)))))

(defn- event? [x]
  (not (or (#{::none ::closed} x) (instance? ExceptionInfo x))))

(defn- batch
  "Returns at most n events that are there now: `[events end]`.

  Waits a slice for the first one. `end` is the reason why there are no more: see [[next-event]]; nil if there are n."
  [reader n]
  (loop [found []]
    (if (= n (count found))
      [found nil]
      (let [x (next-event reader (if (seq found) 0 slice))]
        (if (event? x) (recur (conj found x)) [found x])))))

(defn- error-message [^Throwable e]
  {:error {:ex-message (ex-message e)
           :ex-data (dissoc (ex-data e) :bpfmap/so-far)}})

(defn run
  "Calls `emit` with each message until the subscription or its reader is closed."
  [^Subscription subscription emit]
  (let [^Semaphore room (.-room subscription)
        reader (.-reader subscription)]
    (loop [seen (events/stats reader)]
      (when-not (ended? subscription)
        (if-not (.tryAcquire room 1 100 TimeUnit/MILLISECONDS)
          (recur seen)
          (let [more (min (long (dec most-at-once)) (.availablePermits room))
                n (if (.tryAcquire room more) (inc more) 1)
                [found end] (batch reader n)
                now (if (= ::closed end) seen (events/stats reader))]
            (some-> (reader/loss seen now) emit)
            (when (seq found) (emit {:events found}))
            (when (instance? Throwable end) (emit (error-message end)))
            (.release room (- n (count found)))
            (when-not (= ::closed end) (recur now))))))))
