(ns ^:no-doc bpfmap.impl.kernel.memory
  "The memory of a map in this process: mapped, unmapped, and written in one go."
  (:require [bpfmap.impl.codec.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.procfs :as procfs]
            [clojure.string :as str])
  (:import (bpfmap.sys Abi CallBuffer Codec Fd MappedMemory)
           (java.io IOException)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(def ^:private no-writing
  "How the kernel refuses to map for writing what can be mapped for reading: a frozen map; one
  that programs only read. Source: kernel/bpf/syscall.c, bpf_map_mmap."
  #{(- Abi/EPERM) (- Abi/EACCES)})

(defn map-memory
  "Maps the memory of a map, for reading alone where it cannot be written, or is not to be.
  `address` is where to, 0 for anywhere.

  Needs Linux 5.5, and 6.9 for an arena."
  ^MappedMemory [^Fd fd size address writable? ctx]
  (try
    (let [size (long size)
          address (long address)
          writable (if writable? (MappedMemory/map fd size true address) (long (- Abi/EPERM)))
          read-only? (contains? no-writing writable)
          mapped (if read-only? (MappedMemory/map fd size false address) writable)]
      (if (neg? mapped)
        (throw (call/failure "Mapping the memory" mapped (assoc ctx :fd fd)))
        (MappedMemory/own mapped size read-only?)))
    (catch RuntimeException e
      (throw (call/in-context e ctx)))))

(defn populate
  "Has the kernel make the pages of a part of a mapping that are not there yet."
  [^MappedMemory region ^MemorySegment part ctx]
  (let [outcome (.populate region part (long (call/page-size)))]
    (when (neg? outcome)
      (throw (call/failure "Allocating pages of the memory" outcome ctx)))))

(defn encode-whole
  "Writes a value into memory once all of it is known to fit: nothing is written of one that does
  not."
  [^Codec codec value ^MemorySegment memory offset]
  (let [size (.size codec)
        s (CallBuffer/take (+ CallBuffer/KEY size))]
    (try
      (.encode codec value (.-memory s) CallBuffer/KEY)
      (MemorySegment/copy (.-memory s) CallBuffer/KEY memory (long offset) size)
      (finally (.give s)))))

(defn encode-each
  "Writes values into memory, `stride` bytes apart, once all of them are known to fit. What lies
  between them stays."
  [^Codec codec values ^MemorySegment memory offset stride]
  (let [size (.size codec)
        n (count values)
        s (CallBuffer/take (+ CallBuffer/KEY (* n size)))]
    (try
      (reduce (fn [^long i value]
                (try
                  (.encode codec value (.-memory s) (+ CallBuffer/KEY (* i size)))
                  (catch RuntimeException e
                    (throw (error/deeper e [] i))))
                (inc i))
              0 values)
      (dotimes [i n]
        (MemorySegment/copy (.-memory s) (+ CallBuffer/KEY (* i size)) memory
                            (+ (long offset) (* i (long stride))) size))
      (finally (.give s)))))

(defn- maps-writable?
  "Whether a process has the memory of some BPF map mapped for writing; false where that cannot be
  read."
  [pid]
  (try
    (boolean (re-find #"(?m)^\S+ rw.s .*anon_inode:bpf-map"
                      (String. (procfs/bytes-of (str "/proc/" pid "/maps")))))
    (catch IOException _ false)))

(defn writers
  "The processes that have the memory of a BPF map, whichever, mapped for writing, in words:
  `\"4711 (agent)\"`; nil where none is seen.

  The kernel does not tell which map it is."
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
