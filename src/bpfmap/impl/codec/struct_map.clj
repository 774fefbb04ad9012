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
    (when (.field struct k)
      (thunk k struct)))

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

(defmacro ^:private thunk-of-word
  "Returns the lookup of a field in the word `word` of structs of one type.

  The value is shifted out of the word. That is all but for negative numbers, which may stand for
  numbers above 2^63-1, and for structs of another type that come to the same place in code."
  [word k struct field]
  `(let [left# (.left ~field)
         right# (.right ~field)
         mask# (.mask ~field)]
     (reify ILookupThunk
       (get [this# x#]
         (if (instance? StructMap x#)
           (let [^StructMap x# x#]
             (if (identical? ~struct (.-struct x#))
               (let [n# (-> (~word x#)
                            (bit-shift-left left#)
                            (bit-shift-right right#)
                            (bit-and mask#))]
                 (if (neg? n#)
                   (.valAt x# ~k nil)
                   n#))
               (.valAt x# ~k nil)))
           this#)))))

(defn- thunk
  "Returns the lookup of a keyword for a place in code, such as `(:pid event)`.

  It is quick for the struct that comes to this place first."
  [k ^StructWords struct]
  (let [field (.field struct k)]
    (case (.word field)
      0 (thunk-of-word .-a k struct field)
      1 (thunk-of-word .-b k struct field)
      2 (thunk-of-word .-c k struct field)
      3 (thunk-of-word .-d k struct field)
      (reify ILookupThunk
        (get [this x]
          (if (instance? StructMap x)
            (.valAt ^StructMap x k nil)
            this))))))

(defmethod print-method StructMap [^StructMap m writer]
  (print-method (.plain m) writer))

(defmethod print-dup StructMap [^StructMap m writer]
  (print-dup (.plain m) writer))

(def maker
  "Makes the maps of a `StructWords`."
  (reify StructWords$Maker
    (make [_ struct a b c d]
      (StructMap. struct a b c d))))
