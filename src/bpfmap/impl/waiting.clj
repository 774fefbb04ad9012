(ns ^:no-doc bpfmap.impl.waiting
  "Waits that throw an error as data if the thread is interrupted.

  The interrupt status of the thread stays set. All waits of threads of the caller are in this
  namespace. Only [[result]] and [[beside]] wait in spite of an interrupt."
  (:require [bpfmap.error :as error])
  (:import (java.util.concurrent CountDownLatch ExecutionException Future FutureTask TimeUnit)))

(set! *warn-on-reflection* true)

(defn interrupted
  "Returns the error of an operation whose wait was interrupted.

  It sets the interrupt status of the thread again."
  ^Throwable [op cause]
  (.interrupt (Thread/currentThread))
  (error/error :interrupted (str (name op) " has not finished: the thread was interrupted")
               {:bpfmap/op op} cause))

(defmacro ^:private waiting [op & body]
  `(try
     ~@body
     (catch InterruptedException e#
       (throw (interrupted ~op e#)))))

(defn sleep
  "Waits for some milliseconds; throws `:interrupted`.

      (sleep 20 :diff)"
  [millis op]
  (waiting op (Thread/sleep (long millis))))

(defn value
  "Returns the value of a promise, or `none` after some milliseconds.

  Throws `:interrupted`.

      (value (promise) 20 nil :watch) ;=> nil"
  ([promise op]
   (waiting op (deref promise)))
  ([promise millis none op]
   (waiting op (deref promise millis none))))

(defn ended?
  "Returns true if a latch is down within some milliseconds.

  Throws `:interrupted`.

      (ended? (CountDownLatch. 0) 20 :watch) ;=> true"
  [^CountDownLatch latch millis op]
  (waiting op (.await latch (long millis) TimeUnit/MILLISECONDS)))

(defn result
  "Returns the result of a future; throws its exception.

  Waits in spite of interrupts.

      (result (doto (FutureTask. (fn [] 1)) (.run))) ;=> 1"
  [^Future future]
  (loop [interrupted? false]
    (let [x (try
              (.get future)
              (catch InterruptedException _ ::interrupted)
              (catch ExecutionException e
                (when interrupted? (.interrupt (Thread/currentThread)))
                (throw (ex-cause e))))]
      (if (identical? ::interrupted x)
        (recur true)
        (do (when interrupted? (.interrupt (Thread/currentThread)))
            x)))))

(defn beside
  "Returns `[(f) (g)]`; calls f on another thread while g runs on this one.

  Returns when both have ended, in spite of interrupts. Throws the exception of g, or else of f.

      (beside #(holders) #(maps))"
  [f g]
  (let [task (FutureTask. ^Callable (bound-fn* f))]
    (doto (Thread. task "bpfmap-beside")
      (.setDaemon true)
      (.start))
    (let [y (try
              (g)
              (catch Throwable e
                (try (result task) (catch Throwable _))
                (throw e)))]
      [(result task) y])))
