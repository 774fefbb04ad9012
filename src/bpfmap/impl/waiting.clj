(ns ^:no-doc bpfmap.impl.waiting
  "Waits that an interrupt ends with an error as data, and leaves the thread interrupted.

  Every wait on a thread of the user's is one of these."
  (:require [bpfmap.error :as error])
  (:import (java.util.concurrent CountDownLatch TimeUnit)))

(set! *warn-on-reflection* true)

(defn interrupted
  "The error of a wait that an interrupt ended, for an operation; interrupts the thread anew."
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
  "Waits for so many milliseconds. Throws `:interrupted`.

      (sleep 20 :diff)"
  [millis op]
  (waiting op (Thread/sleep (long millis))))

(defn value
  "The value of a promise; with a time in milliseconds, `none` when it is over. Throws
  `:interrupted`.

      (value (promise) 20 nil :watch) ;=> nil"
  ([promise op]
   (waiting op (deref promise)))
  ([promise millis none op]
   (waiting op (deref promise millis none))))

(defn ended?
  "Waits for a latch, for at most so many milliseconds; whether it is down. Throws `:interrupted`.

      (ended? (CountDownLatch. 0) 20 :watch) ;=> true"
  [^CountDownLatch latch millis op]
  (waiting op (.await latch (long millis) TimeUnit/MILLISECONDS)))
