(ns ^:no-doc bpfmap.impl.codec.map-codecs
  "Codecs of a map's keys and values: per-CPU values, references, struct_ops."
  (:refer-clojure :exclude [key])
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.codec.error :refer [deeper misfit]]
            [bpfmap.impl.codec.scalar :as scalar]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.type.node :as node])
  (:import (bpfmap.bytes ByteView)
           (bpfmap.sys Bytes Codec Padding TypeCodec)
           (clojure.lang PersistentVector)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

;; --- struct_ops

(defn- bare
  "Returns a node without its typedefs."
  [{:keys [typedef target] :as node}]
  (if typedef (recur target) node))

(defn- function? [node]
  (let [{:keys [kind target]} (bare node)]
    (and (= :pointer kind) (= "function" target))))

(defn functions
  "Returns the names of the members of a value's `:data` that are functions.

  There are none for a type without `:data`.

      (functions [:struct [:common :u64] [:data [:struct [:init [:ptr \"function\"]] [:flags :u32]]]] nil) ;=> [:init]"
  [node]
  (let [data (some #(when (= :data (:name %)) (bare (:node %)))
                   (:members (bare node)))]
    (into [] (comp (filter #(and (:name %) (function? (:node %)))) (map :name)) (:members data))))

(defn- filled
  "Returns a struct's value with zeros for missing members.

  A union must be complete or missing."
  [node zeros given]
  (let [{:keys [kind members]} (bare node)]
    (if (and (= :struct kind) (map? given))
      (reduce (fn [value {:keys [name node]}]
                (let [names (if name [name] (node/member-names node))
                      missing (select-keys zeros (remove #(contains? value %) names))]
                  (cond
                    (and
                     name (contains?
                           value name)) (update value name #(filled node (get zeros name) %))
                    (and (= :union (:kind node)) (< (count missing) (count names))) value
                    (and (nil? name) (= :struct (:kind node))) (filled node zeros value)
                    :else (into value missing))))
              (into {} given) ; keys of a sorted map may not compare with names
              members)
      given)))

(defn codec
  "Returns the codec of a struct_ops value, around the codec of its type.

      (.encode (codec (bpfmap.impl.codec/codec type) type nil) {:data {:name \"mine\" :ssthresh 7}} memory 0)"
  ^Codec [^Codec of-type node]
  (let [names (functions node)
        zeros (delay (.decode of-type (MemorySegment/ofArray (byte-array (.size of-type))) 0))
        referring (fn [data name] (update data name #(when-not (= 0 %) {:program-id %})))]
    (reify Codec
      (size [_] (.size of-type))
      (total [_] (.total of-type))
      (encode [_ value memory offset] (.encode of-type (filled node @zeros value) memory offset))
      (decode [_ memory offset]
        (cond-> (.decode of-type memory offset)
          (seq names) (update :data #(reduce referring % names)))))))

;; --- keys and values

(defn- slack-of
  "Returns the padding between the values of two CPUs, or nil if there is none."
  ^Padding [^long size]
  (when (< size (map-types/stride size))
    (Padding. (map-types/stride size) (long-array [(* 8 size) (* 8 (map-types/stride size))]))))

(defn- write-one
  "Writes the value of one CPU and the padding after it.

  A byte view can contain the padding too."
  [^Codec of-one value memory offset]
  (let [size (.size of-one)
        stride (map-types/stride size)
        offset (long offset)]
    (if (and (instance? ByteView value) (= stride (count value)))
      (Bytes/copyIn (.-array ^ByteView value) memory offset)
      (do (.encode of-one value memory offset)
          (Bytes/zero memory (+ offset size) (- stride size))))))

(defn- per-cpu
  "Returns the codec of a vector of n values, one for each CPU in order.

  The kernel stores the padding between two values as it is written. If it is not zero, the value of
  that CPU is read as a byte view, up to the next value."
  ^Codec [of-one type n]
  (let [n (long n)
        of-one (TypeCodec/of of-one)
        stride (map-types/stride (.size of-one))
        size (* n stride)
        slack (slack-of (.size of-one))
        with-slack (fn [values memory offset]
                     (reduce (fn [values ^long i]
                               (let [at (+ (long offset) (* i stride))]
                                 (if (.isZero ^Padding slack memory at)
                                   values
                                   (assoc values i
                                          (bytes/wrap (Bytes/copyOut memory at (int stride)))))))
                             values (range n)))]
    (reify Codec
      (size [_] size)
      (total [_] (.total of-one))
      (encode [_ value memory offset]
        (when-not (scalar/view-written? value size type [:value] memory offset)
          (let [given (when (sequential? value) (bounded-count (inc n) value))] ; it may be infinite
            (when-not (= n given)
              (throw (misfit type [:value] value
                             (str "it must be a vector of " n " values, one for each possible CPU; "
                                  "{:cpus :all} writes one value for every CPU")
                             (str (error/printed value)
                                  (cond
                                    (nil? given) " is not a vector"
                                    (< n (long given)) (str " has more than "
                                                            (error/plural n "value"))
                                    :else (str " has " (error/plural given "value"))))))))
          (reduce (fn [^long i x]
                    (try
                      (write-one of-one x memory (+ offset (* i stride)))
                      (catch RuntimeException e
                        (throw (deeper e [:value] i))))
                    (inc i))
                  0 value)))
      (decode [_ memory offset]
        (let [values (.decodeRow of-one n stride memory offset)
              values (if (<= n 32)
                       (PersistentVector/adopt values)
                       (vec values))]
          (if slack
            (with-slack values memory offset)
            values))))))

(defn of-one-cpu
  "Returns a codec of a per-CPU value for the i-th of n CPUs only.

  It writes zeros for all others.

      (.size (of-one-cpu {:type :percpu-hash :value :u32} 2 0)) ;=> 16"
  ^Codec [spec n i]
  (let [of-one ^Codec (codec/of-node (node/node-of spec :value) [:value])
        stride (map-types/stride (.size of-one))
        size (* (long n) stride)
        at (* (long i) stride)]
    (reify Codec
      (size [_] size)
      (total [_] (.total of-one))
      (encode [_ value memory offset]
        (Bytes/zero memory offset size)
        (write-one of-one value memory (+ offset at)))
      (decode [_ memory offset]
        (.decode of-one memory (+ offset at))))))

(defn- reading
  "Returns a codec that applies a function to values that are read."
  ^Codec [^Codec codec f]
  (reify Codec
    (size [_] (.size codec))
    (total [_] (.total codec))
    (encode [_ value memory offset] (.encode codec value memory offset))
    (decode [_ memory offset] (f (.decode codec memory offset)))))

(def ^:private read-as
  "Returns the function for numbers and stacks that the kernel returns."
  {:map-id (fn [id] {:map-id id})
   :program-id (fn [id] {:program-id id})
   ;; Values of four bytes have no field for a program.
   :program-field (fn [x]
                    (if (map? x)
                      (update x :program #(when-not (= 0 %) {:program-id %}))
                      x))
   :socket-cookie (fn [cookie] {:socket-cookie cookie})
   :stack (fn [frames] (into [] (take-while #(not (or (= 0 %) (= :empty (:status %))))) frames))})

(defn key
  "Returns the codec of a completed spec's keys; nil for a map without keys."
  ^Codec [spec]
  (some-> (node/node-of spec :key) (codec/key-of-node [:key])))

(defn value
  "Returns the codec of a completed spec's values; nil for a map without values.

  A per-CPU value has a stride for each of the possible CPUs.

      (.size (value {:type :percpu-hash :value :u32} 2)) ;=> 16"
  ^Codec [{:keys [type] :as spec} possible-cpus]
  (when-let [node (node/node-of spec :value)]
    (let [{:keys [refers] per-cpu? :per-cpu} (map-types/types type)
          read-as (read-as (:out (:value refers)))]
      (cond-> (codec/of-node node (if per-cpu? [] [:value]))
        (= :functions (:out (:value refers))) (codec node)
        read-as (reading read-as)
        per-cpu? (per-cpu value possible-cpus)))))
