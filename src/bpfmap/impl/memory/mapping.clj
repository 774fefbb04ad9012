(ns ^:no-doc bpfmap.impl.memory.mapping
  "The one mapping of an open map: made when it is first asked for, whoever asks, and again after
  it was closed."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.impl.kernel.memory :as memory]
            [bpfmap.impl.memory.bytes :as bytes]
            [bpfmap.impl.rules :as rules])
  (:import (bpfmap.impl.memory.bytes Memory)
           (bpfmap.sys Fd MappedMemory)
           (clojure.lang ExceptionInfo)
           (java.lang.foreign MemorySegment)
           (java.util.concurrent.atomic AtomicBoolean AtomicLong AtomicReference)))

(set! *warn-on-reflection* true)

;; `current` holds the memory that was mapped last, if any. `through` holds it where the map's own
;; operations go through it, as they do once that is `wanted`. `taken` says that somebody was
;; given it, who then has to close it. `address` is where an arena was, and has to be again.
(deftype Mapping [^Fd fd identity spec access
                  ^AtomicReference current ^AtomicReference through ^AtomicBoolean wanted
                  ^AtomicBoolean taken
                  ^AtomicLong address])

(defn mapping
  "The place for the mapping of an open map; nil for a type that has no memory to map."
  ^Mapping [fd {:keys [type] :as identity} spec access]
  (when (= :mmapable (:mmap (rules/types type)))
    (Mapping. fd identity spec access
              (AtomicReference.) (AtomicReference.) (AtomicBoolean.) (AtomicBoolean.)
              (AtomicLong. (.longValue ^Number (:map-extra spec 0))))))

(defn refusal
  "Why a map has no memory to map, as `[kind hint]`; nil where it has."
  [{:keys [type flags]} access]
  (let [{:keys [mmap]} (rules/types type)]
    (cond
      (= :always mmap)
      [:not-supported
       "its memory is a ring of records, which makes sense only to who reads them in order"]
      (nil? mmap)
      [:not-supported (str "a map of type " type " has no memory to map; those of type "
                           (error/list-of (sort (for [[type row] rules/types
                                                      :when (= :mmapable (:mmap row))] type)))
                           " have")]
      (not (contains? flags :mmapable))
      [:not-supported
       "it was created without :flags #{:mmapable}, and cannot be given that afterwards"]
      ;; There a thread that touches a page that no program has allocated is sent a SIGSEGV, which
      ;; the JVM does not survive.
      (contains? flags :segv-on-fault)
      [:not-supported
       (str
        "an arena created :segv-on-fault kills the process that reads a page of it which no "
        "program has "
            "allocated; create it without")]
      (= :write-only access)
      [:write-only "the map was opened write-only; open it with {:access :read-write}"])))

(defn stride
  "How far apart the elements of an array lie, in bytes: Documentation/bpf/map_array.rst."
  ^long [{:keys [value-size]}]
  (rules/stride (long value-size)))

(defn- size [{:keys [type max-entries] :as spec}]
  (if (= :arena type)
    (* (long max-entries) (long (call/page-size)))
    (* (long max-entries) (stride spec))))

(defn- mapped
  "The memory if it is mapped now."
  ^Memory [^Mapping mapping]
  (let [memory (.get ^AtomicReference (.-current mapping))]
    (when (and memory (not (bytes/closed? memory)))
      memory)))

(defn- for-mapping
  "Calls f with a descriptor that the kernel maps. It maps none that is for reading alone, not
  even for reading (mm/mmap.c, do_mmap, which clears VM_SHARED; then bpf_map_mmap refuses): for
  that, another descriptor is opened for the moment."
  [^Mapping mapping ctx f]
  (if (= :read-only (.-access mapping))
    (let [fd (try
               (map/by-id (:id (.-identity mapping)) :read-write ctx)
               (catch ExceptionInfo e
                 (throw (error/error (:bpfmap/error (ex-data e))
                                     (str "Another descriptor of map " (:id (.-identity mapping))
                                          " cannot be opened")
                                     (assoc (ex-data e) :bpfmap/hint
                                            (str
                                             "the kernel maps no descriptor that is for reading "
                                             "alone, and opening "
                                                 "another takes CAP_SYS_ADMIN; open the map with "
                                                 "{:access :read-write}"))))))]
      (try
        (f fd)
        (finally (call/close fd))))
    (f (.-fd mapping))))

(defn- map-now ^Memory [^Mapping mapping]
  (let [{:keys [type] :as spec} (.-spec mapping)
        identity (.-identity mapping)
        arena? (= :arena type)
        ^AtomicLong address (.-address mapping)
        ctx {:op :memory :map identity :type type :access (.-access mapping)}
        writable? (not= :read-only (.-access mapping))
        region (for-mapping mapping ctx
                            #(memory/map-memory % (size spec) (if arena? (.get address) 0) writable?
                                                ctx))]
    (when arena?
      (.set address (.address ^MemorySegment (.segment ^MappedMemory region))))
    (bytes/whole region identity arena?)))

(defn- ensured
  "The memory, mapped now if it is not."
  ^Memory [^Mapping mapping]
  (or (mapped mapping)
      (locking mapping
        (or (mapped mapping)
            (let [memory (map-now mapping)]
              (.set ^AtomicReference (.-current mapping) memory)
              (when (.get ^AtomicBoolean (.-wanted mapping))
                (.set ^AtomicReference (.-through mapping) memory))
              memory)))))

(defn memory
  "The memory of an open map, for somebody who closes it."
  ^Memory [^Mapping mapping]
  (doto ^Fd (.-fd mapping) .acquire .release) ; which throws for a closed one
  (.set ^AtomicBoolean (.-taken mapping) true)
  (ensured mapping))

(defn go-through
  "Maps the memory for the map's own operations, which go through it from now on while it is
  mapped."
  [^Mapping mapping]
  (.set ^AtomicBoolean (.-wanted mapping) true)
  (.set ^AtomicReference (.-through mapping) (ensured mapping)))

(defn through
  "The memory that the map's own operations go through now; nil where they take the system call."
  ^Memory [^Mapping mapping]
  (when-some [^Memory memory (.get ^AtomicReference (.-through mapping))]
    (when-not (or (bytes/closed? memory) (.isClosed ^Fd (.-fd mapping)))
      memory)))

(defn like
  "Has a second handle of the same map do as the first does."
  [^Mapping mapping ^Mapping first]
  (when (and first (.get ^AtomicBoolean (.-wanted first)))
    (go-through mapping)))

(defn release!
  "Ends what the handle itself has to do with its memory: unmaps it, unless somebody was given it."
  [^Mapping mapping]
  (when mapping
    (locking mapping
      (let [memory (mapped mapping)]
        (.set ^AtomicReference (.-through mapping) nil)
        (.set ^AtomicReference (.-current mapping) nil)
        (when (and memory (not (.get ^AtomicBoolean (.-taken mapping))))
          (bytes/close memory))))))

(defn explaining
  "Facts that explain why a map cannot be frozen now: who has its memory mapped for writing."
  [^Mapping mapping ctx]
  (if mapping
    (assoc ctx
           :type (:type (.-spec mapping))
           :mapped-here (delay (boolean (some-> (mapped mapping) bytes/writable?)))
           :writers (delay (memory/writers)))
    ctx))

(defn while-unmapped
  "Calls f. Memory that serves only the map's own operations is unmapped before, and mapped again
  after; what somebody was given stays."
  [^Mapping mapping f]
  (if (and mapping
           (.get ^AtomicBoolean (.-wanted mapping))
           (not (.get ^AtomicBoolean (.-taken mapping))))
    (locking mapping
      (release! mapping)
      (try
        (f)
        (finally (go-through mapping))))
    (f)))
