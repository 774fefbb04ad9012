(ns ^:no-doc bpfmap.impl.memory.mapping
  "Manages the mapping of an open map: at most one, made on demand.

  All users of a handle share it. It is made again after it was closed."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.kernel.memory :as kernel.memory]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.memory.bytes :as memory.bytes])
  (:import (bpfmap.impl.memory.bytes Memory)
           (bpfmap.sys Fd MappedMemory)
           (clojure.lang ExceptionInfo)
           (java.lang.foreign MemorySegment)
           (java.util.concurrent.atomic AtomicBoolean AtomicLong AtomicReference)))

(set! *warn-on-reflection* true)

;; `current` is the memory that was mapped last, if any. `through` is the same memory if the map's
;; own operations use it, which `wanted` requests. `taken` is true if a caller got it, who then has
;; to close it. `address` is the address of an arena, which has to stay the same.
(deftype Mapping [^Fd fd identity spec access
                  ^AtomicReference current ^AtomicReference through ^AtomicBoolean wanted
                  ^AtomicBoolean taken
                  ^AtomicLong address])

(defn mapping
  "Returns the [[Mapping]] of an open map; nil for a type without memory to map."
  ^Mapping [fd {:keys [type] :as identity} spec access]
  (when (= :mmapable (:mmap (map-types/types type)))
    (Mapping. fd identity spec access
              (AtomicReference.) (AtomicReference.) (AtomicBoolean.) (AtomicBoolean.)
              (AtomicLong. (.longValue ^Number (:map-extra spec 0))))))

(defn refusal
  "Returns why the memory of a map cannot be mapped, as `[kind hint]`, or nil."
  [{:keys [type flags]} access]
  (let [{:keys [mmap]} (map-types/types type)]
    (cond
      (= :always mmap)
      [:not-supported
       "its memory is a ring of records, which makes sense only to who reads them in order"]
      (nil? mmap)
      [:not-supported (str "a map of type " type " has no memory to map; maps of type "
                           (error/list-of (sort (for [[type row] map-types/types
                                                      :when (= :mmapable (:mmap row))] type)))
                           " have")]
      (not (contains? flags :mmapable))
      [:not-supported
       "it was created without :flags #{:mmapable}, and cannot be given that afterwards"]
      ;; A thread that touches a page that no program has allocated gets a SIGSEGV, which the JVM
      ;; does not survive.
      (contains? flags :segv-on-fault)
      [:not-supported
       (str
        "an arena created :segv-on-fault kills the process that reads a page of it which no "
        "program has "
        "allocated; create it without")]
      (= :write-only access)
      [:write-only "the map was opened write-only; open it with {:access :read-write}"])))

(defn stride
  "Returns the bytes from one element of an array to the next.

  Source: Documentation/bpf/map_array.rst."
  ^long [{:keys [value-size]}]
  (map-types/stride (long value-size)))

(defn- size [{:keys [type max-entries] :as spec}]
  (if (= :arena type)
    (* (long max-entries) (long (call/page-size)))
    (* (long max-entries) (stride spec))))

(defn- mapped
  "Returns the memory if it is mapped now."
  ^Memory [^Mapping mapping]
  (let [memory (.get ^AtomicReference (.-current mapping))]
    (when (and memory (not (memory.bytes/closed? memory)))
      memory)))

(defn- for-mapping
  "Calls f with a descriptor that the kernel can map.

  The kernel maps no read-only descriptor, not even for reading (mm/mmap.c, do_mmap, clears
  VM_SHARED; then bpf_map_mmap rejects it). For such a handle another descriptor is opened for the
  call."
  [^Mapping mapping ctx f]
  (if (= :read-only (.-access mapping))
    (let [fd (try
               (kernel.map/open-id (:id (.-identity mapping)) :read-write ctx)
               (catch ExceptionInfo e
                 (throw (error/error (:bpfmap/error (ex-data e))
                                     (str "Another descriptor of map " (:id (.-identity mapping))
                                          " cannot be opened")
                                     (assoc (ex-data e) :bpfmap/hint
                                            (str
                                             "the kernel cannot map a read-only descriptor, and "
                                             "opening "
                                             "another requires CAP_SYS_ADMIN; open the map with "
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
                            #(kernel.memory/mmap % (size spec) (if arena? (.get address) 0)
                                                 writable?
                                                 ctx))]
    (when arena?
      (.set address (.address ^MemorySegment (.segment ^MappedMemory region))))
    (memory.bytes/whole region identity arena?)))

(defn- ensured
  "Returns the memory, and maps it if necessary."
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
  "Returns the memory of an open map, for a caller who closes it."
  ^Memory [^Mapping mapping]
  (doto ^Fd (.-fd mapping) .acquire .release) ; throws if it is closed
  (.set ^AtomicBoolean (.-taken mapping) true)
  (ensured mapping))

(defn go-through
  "Makes the map's own operations use its memory while it is mapped; maps it now."
  [^Mapping mapping]
  (.set ^AtomicBoolean (.-wanted mapping) true)
  (.set ^AtomicReference (.-through mapping) (ensured mapping)))

(defn through
  "Returns the memory that the map's own operations use now.

  Returns nil if they make system calls."
  ^Memory [^Mapping mapping]
  (when-some [^Memory memory (.get ^AtomicReference (.-through mapping))]
    (when-not (or (memory.bytes/closed? memory) (.isClosed ^Fd (.-fd mapping)))
      memory)))

(defn like
  "Makes a second handle of the same map use memory if the first does."
  [^Mapping mapping ^Mapping first]
  (when (and first (.get ^AtomicBoolean (.-wanted first)))
    (go-through mapping)))

(defn release!
  "Ends the handle's use of its memory: unmaps it, unless a caller got it."
  [^Mapping mapping]
  (when mapping
    (locking mapping
      (let [memory (mapped mapping)]
        (.set ^AtomicReference (.-through mapping) nil)
        (.set ^AtomicReference (.-current mapping) nil)
        (when (and memory (not (.get ^AtomicBoolean (.-taken mapping))))
          (memory.bytes/close memory))))))

(defn explaining
  "Returns ctx with facts that explain why a map cannot be frozen.

  They are the processes that have its memory mapped for writing."
  [^Mapping mapping ctx]
  (if mapping
    (assoc ctx
           :type (:type (.-spec mapping))
           :mapped-here (delay (boolean (some-> (mapped mapping) memory.bytes/writable?)))
           :writers (delay (kernel.memory/writers)))
    ctx))

(defn while-unmapped
  "Calls f while memory that only the map's own operations use is unmapped.

  Maps it again afterwards. Memory that a caller got stays mapped."
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
