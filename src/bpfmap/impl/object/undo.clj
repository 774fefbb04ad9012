(ns ^:no-doc bpfmap.impl.object.undo
  "A stack of functions that give back what was made."
  (:import (java.util ArrayDeque Deque)))

(set! *warn-on-reflection* true)

(defn stack
  "Returns an empty stack of functions that give back what was made."
  ^Deque []
  (ArrayDeque.))

(defn push!
  "Adds a function that gives something back; returns x.

      (push! undo m #(.close m))"
  [^Deque undo x f]
  (.push undo f)
  x)

(defn all!
  "Calls all functions of a stack, the last one first.

  Returns the first exception that one of them threw, or nil."
  [^Deque undo]
  (loop [failed nil]
    (if-let [f (.poll undo)]
      (recur (try
               (f)
               failed
               (catch Throwable e
                 (or failed e))))
      failed)))
