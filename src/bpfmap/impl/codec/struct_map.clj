(ns ^:no-doc bpfmap.impl.codec.struct-map
  "Defines the map of a small struct's fields that keeps the bytes of the struct.

  A field is decoded each time it is looked up. Such a map equals the array map with the same
  fields, has the same hash, prints the same, and has its keys in the same order. Every change of it
  is an array map."
  (:import (bpfmap.sys StructWords StructWords$Maker)
           (clojure.lang IEditableCollection IFn IHashEq IKVReduce IKeywordLookup ILookup
                         ILookupThunk IMapIterable IObj IPersistentMap MapEntry MapEquivalence
                         PersistentArrayMap)
           (java.util Map)))

(set! *warn-on-reflection* true)

;; `plain` returns the array map with the same fields. Java calls `writeReplace` for what it
;; serializes instead.
(definterface Plain
  (^clojure.lang.PersistentArrayMap plain [])
  (writeReplace []))

(declare thunk)

(deftype StructMap [^StructWords struct ^long a ^long b ^long c ^long d]
  Plain
  (plain [_]
    (let [n (.count struct)
          entries (object-array (* 2 n))]
      (dotimes [i n]
        (let [field (.field struct (int i))]
          (aset entries (* 2 i) (.name field))
          (aset entries (inc (* 2 i)) (.decode field a b c d))))
      (PersistentArrayMap. entries)))
  (writeReplace [this] (.plain this))

  ILookup
  (valAt [this k] (.valAt this k nil))
  (valAt [_ k not-found]
    (let [field (.field struct k)]
      (if (nil? field) not-found (.decode field a b c d))))

  IKeywordLookup
  (getLookupThunk [_ k]
    (let [index (.index struct k)]
      (when-not (neg? index)
        (thunk k index))))

  IFn
  (invoke [this k] (.valAt this k nil))
  (invoke [this k not-found] (.valAt this k not-found))
  (applyTo [this args] (.applyTo (.plain this) args))

  IPersistentMap
  (count [_] (.count struct))
  (containsKey [_ k] (some? (.field struct k)))
  (entryAt [_ k]
    (when-let [field (.field struct k)]
      (MapEntry/create k (.decode field a b c d))))
  (assoc [this k v] (.assoc (.plain this) k v))
  (assocEx [this k v] (.assocEx (.plain this) k v))
  (without [this k] (.without (.plain this) k))
  (cons [this x] (.cons (.plain this) x))
  (empty [_] {})
  (seq [this] (.seq (.plain this)))
  (iterator [this] (.iterator (.plain this)))
  (equiv [this other] (.equiv (.plain this) other))

  IKVReduce
  (kvreduce [this f init] (.kvreduce (.plain this) f init))

  IMapIterable
  (keyIterator [this] (.keyIterator (.plain this)))
  (valIterator [this] (.valIterator (.plain this)))

  IEditableCollection
  (asTransient [this] (.asTransient (.plain this)))

  IObj
  (meta [_] nil)
  (withMeta [this m] (if (nil? m) this (.withMeta (.plain this) m)))

  MapEquivalence
  IHashEq
  (hasheq [this] (.hasheq (.plain this)))

  Map
  (size [this] (.count this))
  (isEmpty [this] (zero? (.count this)))
  (containsValue [this x] (.containsValue (.plain this) x))
  (get [this k] (.valAt this k nil))
  (keySet [this] (.keySet (.plain this)))
  (values [this] (.values (.plain this)))
  (entrySet [this] (.entrySet (.plain this)))
  (put [_ _ _] (throw (UnsupportedOperationException.)))
  (putAll [_ _] (throw (UnsupportedOperationException.)))
  (remove [_ _] (throw (UnsupportedOperationException.)))
  (clear [_] (throw (UnsupportedOperationException.)))

  java.io.Serializable
  Object
  (hashCode [this] (.hashCode (.plain this)))
  (equals [this other] (.equals (.plain this) other))
  (toString [this] (.toString (.plain this))))

(defn- thunk
  "Returns the lookup of a keyword for a place in code, such as `(:pid event)`.

  Structs of several types come to one place, and their common fields are mostly at one index."
  [k index]
  (let [index (int index)]
    (reify ILookupThunk
      (get [this x]
        (if (instance? StructMap x)
          (let [^StructMap x x
                field (.field ^StructWords (.-struct x) index k)]
            (if (nil? field)
              (.valAt x k nil)
              (.decode field (.-a x) (.-b x) (.-c x) (.-d x))))
          this)))))

(defmethod print-method StructMap [^StructMap m writer]
  (print-method (.plain m) writer))

(defmethod print-dup StructMap [^StructMap m writer]
  (print-dup (.plain m) writer))

(def maker
  "Makes the maps of a `StructWords`."
  (reify StructWords$Maker
    (make [_ struct a b c d]
      (StructMap. struct a b c d))))
