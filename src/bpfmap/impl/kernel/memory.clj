(ns ^:no-doc bpfmap.impl.kernel.memory
  "Maps the memory of a map into this process, and writes whole values to it."
  (:require [bpfmap.impl.codec.error :as codec.error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.procfs :as procfs]
            [clojure.string :as str])
  (:import (bpfmap.sys Abi CallBuffer Codec Fd MappedMemory)
           (java.io IOException)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(def ^:private read-only-errnos
  "Outcomes of mmap for memory that can be mapped for reading only.

  EPERM: the map is frozen. EACCES: the map is writable by programs only. Source:
  kernel/bpf/syscall.c, bpf_map_mmap."
  #{(- Abi/EPERM) (- Abi/EACCES)})

(defn- map-simulated
  "Returns the memory of a simulated map, read-only if it is not writable."
  ^MappedMemory [^Fd fd size writable?]
  (let [simulated (.simulated fd)]
    (or (.map simulated 0 (long size) (boolean writable?))
        (.map simulated 0 (long size) false))))

(defn- map-of-kernel
  "Returns the mapped memory of a map, read-only if it is not writable.

  `address` is where to map it, 0 for anywhere."
  ^MappedMemory [^Fd fd size address writable? ctx]
  (try
    (let [size (long size)
          address (long address)
          writable (if writable? (MappedMemory/map fd size true address) (long (- Abi/EPERM)))
          read-only? (contains? read-only-errnos writable)
          mapped (if read-only? (MappedMemory/map fd size false address) writable)]
      (if (neg? mapped)
        (throw (call/failure "Mapping the memory" mapped (assoc ctx :fd fd)))
        (MappedMemory/own mapped size read-only?)))
    (catch RuntimeException e
      (throw (call/in-context e ctx)))))

(defn mmap
  "Returns the mapped memory of a map, read-only if it is not writable.

  `address` is where to map it, 0 for anywhere. Needs Linux 5.5, and 6.9 for an arena."
  ^MappedMemory [^Fd fd size address writable? ctx]
  (if (call/simulated? fd)
    (map-simulated fd size writable?)
    (map-of-kernel fd size address writable? ctx)))

(defn populate
  "Makes the kernel allocate the missing pages of a part of a mapping."
  [^MappedMemory region ^MemorySegment part ctx]
  (let [outcome (.populate region part (long (call/page-size)))]
    (when (neg? outcome)
      (throw (call/failure "Allocating pages of the memory" outcome ctx)))))

(defn encode-whole
  "Writes a value into memory after all of it has been encoded.

  If it cannot be encoded, nothing is written."
  [^Codec codec value ^MemorySegment memory offset]
  (let [size (.size codec)
        s (CallBuffer/take (+ CallBuffer/KEY size))]
    (try
      (.encode codec value (.-memory s) CallBuffer/KEY)
      (MemorySegment/copy (.-memory s) CallBuffer/KEY memory (long offset) size)
      (finally (.give s)))))

(defn call-with-encoded
  "Calls f with the memory, the offset and the size of an encoded value.

  The memory is valid during the call."
  [^Codec codec value f]
  (let [size (.size codec)
        s (CallBuffer/take (+ CallBuffer/KEY size))]
    (try
      (.encode codec value (.-memory s) CallBuffer/KEY)
      (f (.-memory s) CallBuffer/KEY size)
      (finally (.give s)))))

(defn encode-each
  "Writes values into memory, `stride` bytes apart, after all have been encoded.

  The bytes between the values stay as they are."
  [^Codec codec values ^MemorySegment memory offset stride]
  (let [size (.size codec)
        n (count values)
        s (CallBuffer/take (+ CallBuffer/KEY (* n size)))]
    (try
      (reduce (fn [^long i value]
                (try
                  (.encode codec value (.-memory s) (+ CallBuffer/KEY (* i size)))
                  (catch RuntimeException e
                    (throw (codec.error/deeper e [] i))))
                (inc i))
              0 values)
      (dotimes [i n]
        (MemorySegment/copy (.-memory s) (+ CallBuffer/KEY (* i size)) memory
                            (+ (long offset) (* i (long stride))) size))
      (finally (.give s)))))

(defn- maps-writable?
  "Returns true if a process has the memory of any BPF map mapped for writing.

  Returns false if that cannot be read."
  [pid]
  (try
    (boolean (re-find #"(?m)^\S+ rw.s .*anon_inode:bpf-map"
                      (String. (procfs/read-bytes (str "/proc/" pid "/maps")))))
    (catch IOException _ false)))

(defn writers
  "Returns the processes that have memory of any BPF map mapped for writing.

  As a text, `\"4711 (agent)\"`; nil if there are none. The kernel does not report which map it
  is."
  []
  (try
    (let [own (.pid (java.lang.ProcessHandle/current))]
      (some->> (procfs/processes)
               (filter maps-writable?)
               (map #(if (= own %)
                       (str % " (this one)")
                       (str % " (" (try (procfs/command %) (catch IOException _ "gone")) ")")))
               seq
               (str/join ", ")))
    (catch IOException _ nil)))
