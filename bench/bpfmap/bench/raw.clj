(ns bpfmap.bench.raw
  "Slices of the Java core: bytes, and nothing allocated.

  Each function takes a subject (see `bpfmap.bench.rows/subject`) on the thread that will run it."
  (:require [bpfmap.bench.loops :refer [in-order in-scratch low low-byte one-if passes]]
            [bpfmap.bench.shapes :refer [buffer shaped]])
  (:import (bpfmap.sys Abi BatchReader BatchWriter Bytes CallBuffer Elements KeyOrder)
           (java.util.function IntPredicate)))

(set! *warn-on-reflection* true)

(set! *unchecked-math* :warn-on-boxed)

;; --- the caller's byte arrays

(defmacro ^:private with-arrays
  "A slice by shape, with arrays of a key and a value and buffers over them, and what a subject
  holds."
  [subject slice]
  `(let [{:keys [~'shape ~'order ~'entries ~'key-size ~'value-size ~'cpus]} ~subject
         ~(vary-meta 'elements assoc :tag `Elements) (:elements ~subject)
         ~'entries (long ~'entries)
         ~'cpus (long ~'cpus)
         ~'key (byte-array ~'key-size)
         ~'key-buffer (buffer ~'key)
         ~'value (byte-array ~'value-size)
         ~'value-buffer (buffer ~'value)]
     (shaped ~'shape ~slice)))

(defn lookup-arrays [subject]
  (with-arrays subject
    (in-order [n order]
      (do (put-key key-buffer n)
          (if (zero? (.lookup elements key value Abi/BPF_ANY))
            (low (aget value low-byte))
            0)))))

(defn miss-arrays [subject]
  (with-arrays subject
    (in-order [n order]
      (do (put-key key-buffer (+ n entries))
          (one-if (neg? (.lookup elements key value Abi/BPF_ANY)))))))

(defn update-arrays [subject]
  (with-arrays subject
    (in-order [n order]
      (do (put-key key-buffer n)
          (put-value value-buffer n)
          (one-if (zero? (.update elements key value Abi/BPF_ANY)))))))

(defn delete-arrays [subject]
  (with-arrays subject
    (in-order [n order]
      (do (put-key key-buffer n)
          (one-if (zero? (.delete elements key)))))))

(defn take-arrays [subject]
  (with-arrays subject
    (in-order [n order]
      (do (put-key key-buffer n)
          (if (zero? (.lookupAndDelete elements key value Abi/BPF_ANY))
            (low (aget value low-byte))
            0)))))

;; --- in place

(defmacro ^:private in-place
  "A slice by shape that writes into the memory of a CallBuffer, and what a subject holds."
  [subject slice]
  `(let [{:keys [~'shape ~'order ~'entries ~'key-size ~'cpus]} ~subject
         ~(vary-meta 'elements assoc :tag `Elements) (:elements ~subject)
         ~'entries (long ~'entries)
         ~'key-size (long ~'key-size)
         ~'cpus (long ~'cpus)
         ~'value-at (.valueOffset ~'elements)]
     (in-scratch [~'s ~'elements]
       (let [~'memory (.-memory ~'s)]
         (shaped ~'shape ~slice)))))

(defn lookup-in-place [subject]
  (in-place subject
    (in-order [n order]
      (do (set-key memory CallBuffer/KEY n)
          (if (zero? (.lookup elements s Abi/BPF_ANY))
            (low (Bytes/get64 memory value-at false))
            0)))))

(defn miss-in-place [subject]
  (in-place subject
    (in-order [n order]
      (do (set-key memory CallBuffer/KEY (+ n entries))
          (one-if (neg? (.lookup elements s Abi/BPF_ANY)))))))

(defn update-in-place [subject]
  (in-place subject
    (in-order [n order]
      (do (set-key memory CallBuffer/KEY n)
          (set-value memory value-at n)
          (one-if (zero? (.update elements s Abi/BPF_ANY)))))))

(defn delete-in-place [subject]
  (in-place subject
    (in-order [n order]
      (do (set-key memory CallBuffer/KEY n)
          (one-if (zero? (.delete elements s)))))))

(defn take-in-place [subject]
  (in-place subject
    (in-order [n order]
      (do (set-key memory CallBuffer/KEY n)
          (if (zero? (.lookupAndDelete elements s Abi/BPF_ANY))
            (low (Bytes/get64 memory value-at false))
            0)))))

(defn walk-in-place
  "The next key, and its lookup, from the beginning."
  [subject]
  (in-place subject
    (fn ^long [^long count ^long _first]
      (loop [i 0 sum 0]
        (if (< i count)
          (do (.nextKey elements s (zero? i))
              (.copyFrom (.asSlice memory CallBuffer/KEY key-size)
                         (.asSlice memory value-at key-size))
              (.lookup elements s Abi/BPF_ANY)
              (recur (inc i) (+ sum (low (Bytes/get64 memory value-at false)))))
          sum)))))

;; --- many at a time

(defn batch-reader
  "The whole map, so many entries with each call."
  [{:keys [fd entries key-size value-size ^long batch]}]
  (let [stride (long value-size)]
    (passes entries
            (with-open [reader (BatchReader. fd Abi/BPF_MAP_LOOKUP_BATCH key-size stride entries 0
                                             KeyOrder/NONE batch)]
              (loop [sum 0]
                (let [n (.read reader)]
                  (if (zero? n)
                    sum
                    (let [values (.values reader)
                          sum (long (loop [i 0 sum sum]
                                      (if (< i n)
                                        (recur (inc i)
                                               (+ sum
                                                  (low (Bytes/get64 values (* stride i) false))))
                                        sum)))]
                      (recur sum)))))))))

(defn- collected
  "A slice that collects keys, and values too, with `collect`, and has all of them written or
  deleted by `finish`; returns the count."
  [{:keys [fd order entries key-size value-size]} values? collect finish]
  (let [order (ints order)
        entries (long entries)]
    (fn ^long [^long count ^long first]
      (with-open [bulk (BatchWriter. fd key-size (if values? value-size 0))]
        (dotimes [i count]
          (collect bulk (.add bulk) (aget order (rem (+ first i) entries))))
        (when-not (and (zero? (long (finish bulk))) (= count (.completed bulk)))
          (throw (ex-info "the batch was not completed" {:completed (.completed bulk)})))
        count))))

(defn write-batch [{:keys [shape key-size value-size cpus elements] :as subject}]
  (let [key-size (long key-size) value-size (long value-size) cpus (long cpus)]
    (collected subject true
               (shaped shape
                       (fn [^BatchWriter bulk ^long i ^long n]
                         (let [ks (.keys bulk) vs (.values bulk)]
                           (set-key ks (* i key-size) n)
                           (set-value vs (* i value-size) n))))
               (fn [^BatchWriter bulk] (.writeAll bulk ^Elements elements true Abi/BPF_ANY)))))

(defn- no-key-missing
  "No errno but ENOENT means that a key is missing."
  ^IntPredicate []
  (reify IntPredicate (test [_ _] false)))

(defn delete-batch [{:keys [shape key-size elements] :as subject}]
  (let [key-size (long key-size) cpus 0]
    (collected subject false
               (shaped shape
                       (fn [^BatchWriter bulk ^long i ^long n]
                         (let [ks (.keys bulk)]
                           (set-key ks (* i key-size) n))))
               (fn [^BatchWriter bulk]
                 (.deleteAll bulk ^Elements elements true (no-key-missing))))))
