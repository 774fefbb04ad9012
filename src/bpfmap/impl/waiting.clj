(ns ^:no-doc bpfmap.impl.waiting
  "Waits that throw an error as data if the thread is interrupted.

  The interrupt status of the thread stays set. All waits of threads of the caller are in this
  namespace."
  (:require [bpfmap.error :as error])
  (:import (java.util.concurrent CountDownLatch TimeUnit)))

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
