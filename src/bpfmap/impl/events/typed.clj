(ns ^:no-doc bpfmap.impl.events.typed
  "Decodes events: by a type, by a type for each event, or as bytes.

  An event may be longer or shorter than its type: a producer of another version, or a record of
  variable length. Then its value has the keys `:bpfmap/extra`, the bytes that no field has, and
  `:bpfmap/missing`, the number of bytes that the type has and the event lacks."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.cache :as cache]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.type.node :as node])
  (:import (bpfmap.sys RawEvent TypeCodec)
           (clojure.lang MultiFn Var)
           (java.util.concurrent ConcurrentHashMap)))

(set! *warn-on-reflection* true)

;; Events of the size of `struct` need no decoder if the source can read them as this struct.
(definterface Decoder
  (decode [^bpfmap.sys.RawEvent event])
  (^bpfmap.sys.StructWords struct []))

(defn- view
  "Returns the bytes of an event from an offset to its end."
  ([event] (view event 0))
  ([^RawEvent event from] (bytes/wrap (.copyFrom event (long from)))))

(def ^:private as-bytes
  (reify Decoder
    (struct [_])
    (decode [_ event]
      (view event))))

;; --- events that do not have the size of their type

(defn- with-rest
  "Adds the bytes from `from` to the end of the event to a value.

  A value that is not a map, or a map of other keys than fields, goes under `:bpfmap/value`."
  [value fields? event from]
  (assoc (if fields? value {:bpfmap/value value})
         :bpfmap/extra (view event from)))

(defn- fields? [{:keys [kind]}]
  (contains? #{:struct :union} kind))

(defn- ends-within?
  "Returns true if a member ends within the first n bytes of its struct."
  [n {:keys [node offset bits bit-offset]}]
  (if bits
    (<= (+ (long bit-offset) (long bits)) (* 8 (long n)))
    (<= (+ (long offset) (long (:size node))) (long n))))

(defn- prefix
  "Returns the node of a struct cut to the leading fields that n bytes hold.

  Returns nil if n bytes hold no field."
  [{:keys [kind members] :as node} n]
  (when (= :struct kind)
    (when-let [kept (seq (take-while #(ends-within? n %) members))]
      (let [end (reduce max 0 (map (fn [{:keys [node offset bits bit-offset]}]
                                     (if bits
                                       (quot (+ (long bit-offset) (long bits) 7) 8)
                                       (+ (long offset) (long (:size node)))))
                                   kept))]
        (assoc node :members (vec kept) :size end)))))

(defn- decode-short
  "Returns the value of an event that is shorter than its type.

  It has the leading fields that are there, and the rest of its bytes as `:bpfmap/extra`."
  [{:keys [size] :as node} codecs ^RawEvent event]
  (let [length (.length event)
        [codec end] (cache/through codecs 64 length
                                   #(let [part (prefix node length)]
                                      (if part
                                        [(codec/of-node part []) (:size part)]
                                        [nil 0])))
        value (if codec (.decode event codec 0) {})]
    (cond-> (assoc value :bpfmap/missing (- (long size) length))
      (< (long end) length) (with-rest true event end))))

(deftype ^:private Typed [^TypeCodec codec ^long size ^long slack node
                          ^ConcurrentHashMap short-codecs]
  Decoder
  (struct [_] (.words codec))
  (decode [_ event]
    (let [more (unchecked-subtract (.length event) size)]
      (cond
        (== 0 more) (.decode event codec 0)
        (neg? more) (decode-short node short-codecs event)
        (<= more slack) (.decode event codec 0)
        :else (with-rest (.decode event codec 0) (fields? node) event size)))))

(defn- typed ^Decoder [type types padded?]
  (let [{:keys [size] :as node} (node/node type types [:type])
        size (long size)]
    (Typed. (codec/of-node node []) size
            ;; A perf event pads its payload and the four bytes before it to a multiple of eight.
            (if padded? (- (bit-and (+ size 4 7) -8) (+ size 4)) 0)
            node (cache/cache))))

(defn- by-event
  "Returns a decoder that asks f for the type of each event."
  [f types padded?]
  (let [decoders (cache/cache)]
    (reify Decoder
      (struct [_])
      (decode [_ event]
        (let [raw (view event)
              type (f raw)]
          (if (nil? type)
            raw
            (.decode ^Decoder (cache/through decoders 256 type #(typed type types padded?))
                     event)))))))

(defn- function? [x]
  (or (fn? x) (instance? Var x) (instance? MultiFn x)))

(defn decoder
  "Returns the [[Decoder]] of a `:type`: a type, a function of the bytes, or nil.

  With `padded?`, the kernel may have added up to seven bytes to an event. Throws `:invalid-spec`
  for a malformed type."
  ^Decoder [type types padded?]
  (cond
    (nil? type) as-bytes
    (function? type) (by-event type types padded?)
    :else (typed type types padded?)))

(defn with-cpu
  "Returns a decoder that returns `[cpu event]`; the CPU is nil if it is unknown."
  ^Decoder [^Decoder decoder]
  (reify Decoder
    (struct [_])
    (decode [_ event]
      (let [cpu (.cpu event)]
        [(when-not (neg? cpu) cpu) (.decode decoder event)]))))

(defn failed
  "Returns the error of an event that cannot be decoded, with its bytes.

  The cause is the exception of a codec or of the user's function."
  ^Throwable [^Throwable e ^RawEvent event op identity]
  (let [kind (:bpfmap/error (ex-data e) :invalid-value)]
    (error/error kind
                 (str "An event of " (error/plural (.length event) "byte")
                      " cannot be decoded: " (ex-message e))
                 (assoc (dissoc (ex-data e) :bpfmap/hint :bpfmap/error)
                        :bpfmap/op op
                        :bpfmap/map identity
                        :bpfmap/bytes (view event))
                 e)))
