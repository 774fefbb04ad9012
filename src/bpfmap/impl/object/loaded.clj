(ns ^:no-doc bpfmap.impl.object.loaded
  "The open object: its maps, programs and variables, which are closed together."
  (:require [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.mapped :as mapped]
            [bpfmap.impl.memory.bytes :as memory.bytes]
            [bpfmap.impl.memory.layout :as layout]
            [bpfmap.impl.memory.variables :as variables]
            [bpfmap.impl.memory.view :as view]
            [bpfmap.impl.object.undo :as undo])
  (:import (clojure.lang ILookup)
           (java.io Closeable)
           (java.util Deque)
           (java.util.concurrent.atomic AtomicBoolean)))

(set! *warn-on-reflection* true)

;; --- the open object

;; `facts` is a map of what can be looked up, except :variables, a delay of a map of views. `undo`
;; gives back everything the object owns.
(deftype LoadedObject [facts variables ^Deque undo ^AtomicBoolean closed]
  ILookup
  (valAt [this k] (.valAt this k nil))
  (valAt [_ k not-found]
    (if (= :variables k)
      @variables
      (get facts k not-found)))
  Closeable
  (close [_]
    (when (.compareAndSet closed false true)
      (when-let [failed (locking undo (undo/all! undo))]
        (throw failed))))
  Object
  (toString [_]
    (str "#<bpf-object " (:name facts "without a name") ", " (count (:maps facts)) " maps, "
         (count (:programs facts)) " programs" (when (.get closed) ", closed") ">")))

(defmethod print-method LoadedObject [o ^java.io.Writer w] (.write w (str o)))

;; --- variables

(defn- variable-view
  "Returns a view of a variable, or a variable that is read by system calls.

  `memory` is the memory of the map, or nil if it cannot be mapped."
  [m memory name {:keys [type offset]}]
  (let [layout (layout/of-type type nil)]
    (if memory
      (view/over memory layout offset :load)
      (variables/variable m name {:offset offset :layout (delay layout)}))))

(defn- memory-of
  "Returns the mapped memory of a map, or nil.

  It is unmapped with the object if the object owns the map."
  [^Deque undo m owned?]
  (when-let [memory (mapped/memory-or-nil m)]
    (when owned?
      (.push undo #(memory.bytes/close memory)))
    memory))

(defn- views [object undo maps-of-sections owned?]
  (let [memories (volatile! {})]
    (into {}
          (for [[name {:keys [section size] :as variable}] (:variables object)
                :let [m (maps-of-sections section)]
                ;; A variable of each CPU has no place of its own.
                :when (and m (pos? (long size)) (nil? (bpf-map/cpus-of m)))]
            (let [memory (if (contains? @memories section)
                           (@memories section)
                           (let [memory (memory-of undo m (owned? m))]
                             (vswap! memories assoc section memory)
                             memory))]
              [name (variable-view m memory name variable)])))))

(defn loaded
  "Returns an open object.

  `facts` is what can be looked up. `maps-of-sections` has the open map of each section of data, and
  `owned?` returns true for a map that is closed with the object."
  ^Closeable [object facts maps-of-sections owned? ^Deque undo]
  (LoadedObject. facts
                 (delay (locking undo (views object undo maps-of-sections owned?)))
                 undo
                 (AtomicBoolean.)))
