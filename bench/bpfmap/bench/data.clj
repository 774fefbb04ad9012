(ns bpfmap.bench.data
  "Slices of `bpfmap.core`: byte views and typed data. The caller's own keys and values, made anew
  each time, are part of it.

  Each function takes a subject (see `bpfmap.bench.rows/subject`) on the thread that will run it."
  (:require [bpfmap.bench.loops :refer [in-order low low-of-view one-if passes times]]
            [bpfmap.bench.shapes :as shapes :refer [buffer shaped]]
            [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf])
  (:import (clojure.lang IFn$LO IReduceInit MapEntry)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(set! *unchecked-math* :warn-on-boxed)

;; --- byte views

(defmacro ^:private view
  "A new byte view of what the array holds now, as a caller would bring one."
  [array]
  `(bytes/wrap (aclone ~(vary-meta array assoc :tag 'bytes))))

(defmacro ^:private with-views
  "A slice by shape on a handle whose keys and values are byte views. `(value-view)` is what is
  written: a vector for a per-CPU map."
  [subject slice]
  `(let [{:keys [~'shape ~'order ~'entries ~'key-size ~'cpus ~'one-size] ~'m :views} ~subject
         ~'entries (long ~'entries)
         ~'cpus (long ~'cpus)
         ~'key (byte-array ~'key-size)
         ~'key-buffer (buffer ~'key)
         ~'value (byte-array ~'one-size)
         ~'value-buffer (buffer ~'value)]
     (shaped ~'shape ~slice)))

(defn lookup-views [subject]
  (with-views subject
    (in-order [n order]
      (do (put-key key-buffer n)
          (low-of-view (bpf/lookup m (view key)))))))

(defn miss-views [subject]
  (with-views subject
    (in-order [n order]
      (do (put-key key-buffer (+ n entries))
          (one-if (nil? (bpf/lookup m (view key))))))))

(defn update-views
  "Not for per-CPU values, which are vectors."
  [subject]
  (with-views subject
    (in-order [n order]
      (do (put-key key-buffer n)
          (put-value value-buffer n)
          (one-if (identical? m (bpf/put! m (view key) (view value))))))))

(defn delete-views [subject]
  (with-views subject
    (in-order [n order]
      (do (put-key key-buffer n)
          (one-if (bpf/delete! m (view key)))))))

(defn take-views [subject]
  (with-views subject
    (in-order [n order]
      (do (put-key key-buffer n)
          (low-of-view (bpf/take! m (view key)))))))

(defn reduce-views [{m :views :keys [entries]}]
  (passes entries (reduce (fn [^long sum entry] (+ sum (low-of-view (val entry)))) 0 m)))

;; --- typed data

(defmacro ^:private typed
  "A slice with functions from an index to a key and to a value, and one from a value to its
  number."
  [subject slice]
  `(let [{:keys [~'order ~'entries ~'of-value] ~'m :typed} ~subject
         ~'entries (long ~'entries)
         ~(with-meta 'key-of {:tag `IFn$LO}) (:key-of ~subject)
         ~(with-meta 'value-of {:tag `IFn$LO}) (:value-of ~subject)]
     ~slice))

(defn lookup-typed [subject]
  (typed subject
         (in-order [n order]
           (low (of-value (bpf/lookup m (.invokePrim key-of n)))))))

(defn miss-typed [subject]
  (typed subject
         (in-order [n order]
           (one-if (nil? (bpf/lookup m (.invokePrim key-of (+ n entries))))))))

(defn update-typed [subject]
  (typed subject
         (in-order [n order]
           (one-if (identical? m (bpf/put! m (.invokePrim key-of n) (.invokePrim value-of n)))))))

(defn delete-typed [subject]
  (typed subject
         (in-order [n order]
           (one-if (bpf/delete! m (.invokePrim key-of n))))))

(defn take-typed [subject]
  (typed subject
         (in-order [n order]
           (low (of-value (bpf/take! m (.invokePrim key-of n)))))))

(defn walk-typed
  "The next key, and its lookup, from the beginning."
  [subject]
  (typed subject
         (fn ^long [^long count ^long _first]
           (loop [i 0 k nil sum 0]
             (if (< i count)
               (let [k (if (zero? i) (bpf/next-key m) (bpf/next-key m k))]
                 (recur (inc i) k (+ sum (low (of-value (bpf/lookup m k))))))
               sum)))))

(defn reduce-typed [subject]
  (typed subject
         (passes entries (reduce (fn [^long sum entry] (+ sum (low (of-value (val entry))))) 0 m))))

(defn reduce-kv-typed [subject]
  (typed subject
         (passes entries (reduce-kv (fn [^long sum _ value] (+ sum (low (of-value value)))) 0 m))))

(defn into-typed
  "The entries as a persistent map; all that is read of it is how many there are."
  [subject]
  (typed subject
         (passes entries (count (into {} m)))))

(defmacro ^:private given
  "What a caller hands over as a collection: an expression of each of `count` indices in their
  order, from `first` on."
  [[n order count first] expression]
  `(let [order# (ints ~order)
         entries# (alength order#)
         count# (long ~count)
         first# (long ~first)]
     (reify IReduceInit
       (reduce [_# f# init#]
         (loop [i# 0 acc# init#]
           (if (< i# count#)
             (let [~n (long (aget order# (rem (+ first# i#) entries#)))]
               (recur (inc i#) (f# acc# ~expression)))
             acc#))))))

(defn put-all-typed [subject]
  (typed subject
         (fn ^long [^long count ^long first]
           (bpf/put-all! m (given [n order count first]
                                  (MapEntry/create (.invokePrim key-of n)
                                                   (.invokePrim value-of n)))))))

(defn delete-all-typed [subject]
  (typed subject
         (fn ^long [^long count ^long first]
           (bpf/delete-all! m (given [n order count first] (.invokePrim key-of n))))))

;; --- handles

(defn open-typed [{:keys [id]}]
  (times (with-open [_ ^Closeable (bpf/open id)] 1)))

(defn open-views [{:keys [id as-views]}]
  (times (with-open [_ ^Closeable (bpf/open id as-views)] 1)))

(defn create-typed [{:keys [spec]}]
  (times (with-open [_ ^Closeable (bpf/create spec)] 1)))

(defn create-views [{:keys [spec key-size one-size]}]
  (let [spec (-> spec (dissoc :key :value) (assoc :key-size key-size :value-size one-size))]
    (times (with-open [_ ^Closeable (bpf/create spec)] 1))))
