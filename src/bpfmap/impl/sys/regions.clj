(ns bpfmap.impl.sys.regions
  "The memory of a map in this process: mapped, unmapped, and written in one go."
  (:require [bpfmap.codec.misfit :as misfit]
            [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.procfs :as procfs]
            [clojure.string :as str])
  (:import (bpfmap.sys Abi Codec Fd Region Scratch)
           (java.io IOException)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(def ^:private no-writing
  "How the kernel refuses to map for writing what can be mapped for reading: a frozen map; one that programs only read.
  Source: kernel/bpf/syscall.c, bpf_map_mmap."
  #{(- Abi/EPERM) (- Abi/EACCES)})

(defn map-memory
  "Maps the memory of a map, for reading alone where it cannot be written, or is not to be. `address` is where to, 0 for anywhere.

  Needs Linux 5.5, and 6.9 for an arena."
  ^Region [^Fd fd size address writable? facts]
  (try
    (let [size (long size)
          address (long address)
          writable (if writable? (Region/map fd size true address) (long (- Abi/EPERM)))
          read-only? (contains? no-writing writable)
          mapped (if read-only? (Region/map fd size false address) writable)]
      (if (neg? mapped)
        (throw (sys/failure "Mapping the memory" mapped (assoc facts :fd fd)))
        (Region/own mapped size read-only?)))
    (catch RuntimeException e
      (throw (sys/in-context e facts)))))

(defn populate
  "Has the kernel make the pages of a part of a mapping that are not there yet."
  [^Region region ^MemorySegment part facts]
  (let [outcome (.populate region part (long (sys/page-size)))]
    (when (neg? outcome)
      (throw (sys/failure "Allocating pages of the memory" outcome facts)))))

(defn encode-whole
  "Writes a value into memory once all of it is known to fit: nothing is written of one that does not."
  [^Codec codec value ^MemorySegment memory offset]
  (let [size (.size codec)
        s (Scratch/take (+ Scratch/KEY size))]
    (try
      (.encode codec value (.-memory s) Scratch/KEY)
      (MemorySegment/copy (.-memory s) Scratch/KEY memory (long offset) size)
      (finally (.give s)))))

(defn encode-each
  "Writes values into memory, `stride` bytes apart, once all of them are known to fit. What lies between them stays."
  [^Codec codec values ^MemorySegment memory offset stride]
  (let [size (.size codec)
        n (count values)
        s (Scratch/take (+ Scratch/KEY (* n size)))]
    (try
      (reduce (fn [^long i value]
                (try
                  (.encode codec value (.-memory s) (+ Scratch/KEY (* i size)))
                  (catch RuntimeException e
                    (throw (misfit/deeper e [] i))))
                (inc i))
              0 values)
      (dotimes [i n]
        (MemorySegment/copy (.-memory s) (+ Scratch/KEY (* i size)) memory (+ (long offset) (* i (long stride))) size))
      (finally (.give s)))))

(defn- maps-writable?
  "Whether a process has the memory of some BPF map mapped for writing; false where that cannot be read."
  [pid]
  (try
    (boolean (re-find #"(?m)^\S+ rw.s .*anon_inode:bpf-map" (String. (procfs/bytes-of (str "/proc/" pid "/maps")))))
    (catch IOException _ false)))

(defn writers
  "The processes that have the memory of a BPF map, whichever, mapped for writing, in words: `\"4711 (agent)\"`; nil where
  none is seen.

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
