(ns ^:no-doc bpfmap.impl.cache
  "Bounded caches of data derived from types, specs and BTF objects.

  They make opening and creating many maps faster. Types are compared by identity: two enums may be
  equal and have their names in another order, which decides the name that a number reads as."
  (:import (java.util.concurrent ConcurrentHashMap)))

(set! *warn-on-reflection* true)

(deftype Key [a b c others ^int hash]
  Object
  (hashCode [_] hash)
  (equals [_ other]
    (and (instance? Key other)
         (let [^Key other other]
           (and (identical? a (.-a other))
                (identical? b (.-b other))
                (identical? c (.-c other))
                (= others (.-others other)))))))

(defn by-identity
  "Returns a key that compares three objects by identity, and the rest by value.

      (by-identity type-of-key type-of-value types [:hash 4 8])"
  ^Key [a b c others]
  (Key. a b c others
        (unchecked-int (+ (hash others)
                          (* 31 (System/identityHashCode a))
                          (* 37 (System/identityHashCode b))
                          (* 41 (System/identityHashCode c))))))

(defn cache
  "Returns an empty cache for [[through]]."
  ^ConcurrentHashMap []
  (ConcurrentHashMap.))

(defn known
  "Returns the value of a key, or nil.

      (known (cache) :u32) ;=> nil"
  [^ConcurrentHashMap c k]
  (.get c k))

(defn keep!
  "Stores a value under a key.

  A cache that has `limit` entries is emptied first.

      (keep! (cache) 100 :u32 4) ;=> nil"
  [^ConcurrentHashMap c limit k value]
  (when (<= (long limit) (.size c))
    (.clear c))
  (.put c k value)
  nil)

(defn through
  "Returns the value of a key; calls `make` for a missing value and stores it.

  See [[keep!]]. If `make` throws, nothing is stored.

      (through (cache) 100 :u32 #(codec :u32))"
  [c limit k make]
  (or (known c k)
      (let [made (make)]
        (keep! c limit k made)
        made)))
