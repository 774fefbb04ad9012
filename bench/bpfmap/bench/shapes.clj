(ns bpfmap.bench.shapes
  "The maps that everything is measured on, and how an index becomes a key and a value of each.

  A shape is said once for the compiler, as forms that write a key or a value into a byte buffer
  or into native memory; [[shaped]] then makes one slice of them for each shape, as
  bench/baseline.c does."
  (:require [clojure.walk :as walk])
  (:import (bpfmap.sys Bytes)
           (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

(set! *unchecked-math* :warn-on-boxed)

(def fields-of-key
  "A struct of 16 bytes."
  [:struct [:src :u32] [:dst :u32] [:ports :u32] [:protocol :u32]])
(def fields-of-value
  "A struct of 32 bytes."
  [:struct [:packets :u64] [:bytes :u64] [:first :u64] [:last :u64]])

(def maps
  "Every kind of map that is measured: what the report calls it, its shape, and its spec but for
  the number of entries."
  [{:title "hash 4→8" :shape :word :spec {:type :hash :key :u32 :value :u64}}
   {:title "hash 16→32 struct" :shape :fields
    :spec {:type :hash :key fields-of-key :value fields-of-value}}
   {:title "array 4→8" :shape :word :spec {:type :array :key :u32 :value :u64}}
   {:title "per-CPU hash 4→8" :shape :percpu :spec {:type :percpu-hash :key :u32 :value :u64}}
   {:title "LPM trie 8→8" :shape :prefix
    :spec {:type :lpm-trie :key [:prefix :ipv4] :value :u64 :flags #{:no-prealloc}}}])

;; --- the order of the keys

(defmacro next-random
  "Marsaglia's xorshift with 64 bits, as in bench/baseline.c.

      (next-random 1) ;=> 1082269761"
  [x]
  `(let [x# (long ~x)
         x# (bit-xor x# (bit-shift-left x# 13))
         x# (bit-xor x# (unsigned-bit-shift-right x# 7))]
     (bit-xor x# (bit-shift-left x# 17))))

(defn order
  "The numbers from 0 to n-1, shuffled as in bench/baseline.c."
  ^ints [^long n]
  (let [order (int-array (range n))]
    (loop [i (dec n) x 1]
      (when (pos? i)
        (let [x (next-random x)
              j (Long/remainderUnsigned x (inc i))
              other (aget order j)]
          (aset order j (aget order i))
          (aset order i other)
          (recur (dec i) x))))
    order))

;; --- keys and values as bytes

(defn buffer
  "A buffer over an array, in this machine's byte order."
  ^ByteBuffer [^bytes array]
  (.order (ByteBuffer/wrap array) (ByteOrder/nativeOrder)))

(defmacro put-word "Writes four bytes into a buffer." [b at n]
  `(.putInt ~(vary-meta b assoc :tag `ByteBuffer) (unchecked-int ~at) (unchecked-int ~n)))

(defmacro put-long "Writes eight bytes into a buffer." [b at n]
  `(.putLong ~(vary-meta b assoc :tag `ByteBuffer) (unchecked-int ~at) (long ~n)))

(defmacro set-word "Writes four bytes into native memory." [memory at n]
  `(Bytes/put32 ~memory ~at ~n false))

(defmacro set-long "Writes eight bytes into native memory." [memory at n]
  `(Bytes/put64 ~memory ~at ~n false))

(def ^:private keys-written
  "Shape to the bytes of a key, written by `w`, of the index n at `at` in `to`."
  {:word '[(w to at n)]
   :percpu '[(w to at n)]
   :fields '[(w to at n) (w to (+ at 4) (+ n 1)) (w to (+ at 8) (+ n 2)) (w to (+ at 12) (+ n 3))]
   :prefix '[(w to at 32) (w to (+ at 4) (Integer/reverseBytes (unchecked-int n)))]})

(def ^:private values-written
  "Shape to the words of a value, as above."
  {:word '[(w to at n)]
   :prefix '[(w to at n)]
   :percpu '[(dotimes [c cpus] (w to (+ at (* 8 c)) (+ n c)))]
   :fields '[(w to at n) (w to (+ at 8) (+ n 1)) (w to (+ at 16) (+ n 2))
             (w to (+ at 24) (+ n 3))]})

(defn- writing [forms w [_ to at n]]
  `(let [~'n (long ~n)]
     ~@(walk/postwalk-replace {'w w 'to to 'at at} forms)))

(defn- expanded
  "A form with what stands for the bytes of a shape in it replaced: `(put-key b n)`, `(put-value b
  n)` of a buffer, and `(set-key memory at n)`, `(set-value memory at n)` of native memory."
  [form shape]
  (walk/postwalk
   (fn [x]
     (if-not (seq? x)
       x
       (let [[op to at n] x]
         (case op
           put-key (writing (keys-written shape) `put-word [op to 0 at])
           put-value (writing (values-written shape) `put-long [op to 0 at])
           set-key (writing (keys-written shape) `set-word [op to at n])
           set-value (writing (values-written shape) `set-long [op to at n])
           x))))
   form))

(defmacro shaped
  "The form as compiled for the shape that a subject has. A local `cpus`, a long, says how many
  words a per-CPU value has."
  [shape form]
  `(case ~shape
     ~@(mapcat (fn [s] [s (expanded form s)]) (keys keys-written))))

;; --- keys and values as data

(defn prefix-text
  "The key of an LPM trie for an index."
  [^long n]
  (str (bit-and 0xff (bit-shift-right n 24)) "." (bit-and 0xff (bit-shift-right n 16)) "."
       (bit-and 0xff (bit-shift-right n 8)) "." (bit-and 0xff n) "/32"))

(defn key-of
  "A function from an index to the key as data. The texts of prefixes are made beforehand, up to
  twice the entries."
  [shape ^long entries]
  (case shape
    (:word :percpu) (fn [^long n] n)
    :fields (fn [^long n] {:src n :dst (+ n 1) :ports (+ n 2) :protocol (+ n 3)})
    :prefix (let [texts (object-array (map prefix-text (range (* 2 entries))))]
              (fn [^long n] (aget texts n)))))

(defn value-of
  "A function from an index to the value as data."
  [shape ^long cpus]
  (case shape
    (:word :prefix) (fn [^long n] n)
    :fields (fn [^long n] {:packets n :bytes (+ n 1) :first (+ n 2) :last (+ n 3)})
    :percpu (if (= 2 cpus)
              (fn [^long n] [n (+ n 1)])
              (fn [^long n] (into [] (map (fn [^long c] (+ n c))) (range cpus))))))

(def first-number
  "Shape to a function from a value as data to the number that came first in it."
  {:word identity :prefix identity :fields :packets :percpu #(nth % 0)})
