(ns ^:no-doc bpfmap.impl.memory.mapping
  "Manages the mapping of an open map: at most one, made on demand. All users of a handle share it.
  It is made again after it was closed.

  The second half is the fast path: it reads and writes the elements of an array in the mapping,
  without a system call, for a map opened `{:mapped true}`. In all other cases it returns
  `::fallback`, and the caller makes the system call, so that the results are the same: an index
  beyond the end, a map that is closed or read-only, memory that was unmapped."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.kernel.memory :as kernel.memory]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.memory.bytes :as memory.bytes]
            [bpfmap.impl.memory.layout :as layout]
            [bpfmap.impl.type.node :as node])
  (:import (bpfmap.impl.memory.bytes Memory)
           (bpfmap.sys Bytes Codec Fd MappedMemory TypeCodec)
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
    (let [^Number address (or (:map-extra spec) 0)]
      (Mapping. fd identity spec access
                (AtomicReference.) (AtomicReference.) (AtomicBoolean.) (AtomicBoolean.)
                (AtomicLong. (.longValue address))))))

(defn refusal
  "Returns why the memory of a map cannot be mapped, as `[kind hint]`, or nil."
  [{:keys [type flags]} access]
  (let [{:keys [mmap]} (map-types/types type)]
    (cond
      (= :always mmap)
      [:not-supported
       "its memory is a ring buffer, whose records must be read in order"]
      (nil? mmap)
      [:not-supported (str "a map of type " type " has no memory to map; maps of type "
                           (error/list-of (sort (for [[type row] map-types/types
                                                      :when (= :mmapable (:mmap row))] type)))
                           " have")]
      (not (contains? flags :mmapable))
      [:not-supported
       "create the map with :flags #{:mmapable}; an existing map cannot get the flag"]
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

;; --- the fast path: elements of an array without a system call

(defmacro or-fallback
  "Returns the result of a call of the fast path, or of `ordinary`.

  Evaluates `ordinary` if the call returns `::fallback`, or if the map has no fast path.

      (or-fallback (lookup fast-path k) (by-system-call k))"
  [[f layout & args] ordinary]
  `(let [fast-path# ~layout
         answer# (if (nil? fast-path#) ::fallback (~f fast-path# ~@args))]
     (if (identical? ::fallback answer#) ~ordinary answer#)))

;; The place of the elements in the memory. `plain-key?` is true if a key is its index, `writes?` if
;; user space may write every byte of a value.
(deftype FastPath
         [^Mapping mapping ^Codec key-codec ^TypeCodec value-codec ^long entries ^long stride
          plain-key? writes?])

(defn fast-path
  "Returns the fast path to the elements of an array in its memory."
  ^FastPath [mapping key-codec value-codec {:keys [key max-entries] :as spec}]
  (FastPath. mapping key-codec (TypeCodec/of value-codec) max-entries (stride spec)
             (= :u32 key)
             (not (layout/kernel's? (node/node-of spec :value)))))

(defn- index
  "Returns the index of a key; -1 if it is beyond the end or not an index."
  ^long [^FastPath l k]
  (let [i (cond
            (not (.-plain-key? l))
            (let [four (MemorySegment/ofArray (byte-array 4))]
              (.encode ^Codec (.-key-codec l) k four 0)
              (Bytes/getU32 four 0 false))
            (int? k) (long k)
            :else -1)]
    (if (and (<= 0 i) (< i (.-entries l))) i -1)))

(defn- key-of
  "Returns the key of an index."
  [^FastPath l i]
  (if (.-plain-key? l)
    i
    (let [four (MemorySegment/ofArray (byte-array 4))]
      (Bytes/put32 four 0 i false)
      (.decode ^Codec (.-key-codec l) four 0))))

(defn- unless-unmapped
  "Returns `::fallback` if the memory was unmapped; else throws the exception."
  [^Memory memory op e]
  (let [failure (memory.bytes/failed (.-source memory) op e)]
    (if (identical? e failure) (throw e) ::fallback)))

(defn- value-at [^FastPath l ^Memory memory ^long i]
  (.decode ^TypeCodec (.-value-codec l) (.-segment memory) (* i (.-stride l))))

(defn lookup
  "Returns the value of a key, or `::fallback`."
  [^FastPath l k]
  (if-some [memory (through (.-mapping l))]
    (let [i (index l k)]
      (if (neg? i)
        ::fallback
        (try
          (value-at l memory i)
          (catch IllegalStateException e (unless-unmapped memory :lookup e)))))
    ::fallback))

(defn write
  "Writes the whole value of a key; returns true, or `::fallback`."
  [^FastPath l k v]
  (let [memory (when (.-writes? l) (through (.-mapping l)))]
    (if (or (nil? memory) (.isReadOnly ^MemorySegment (.-segment memory)))
      ::fallback
      (let [i (index l k)]
        (if (neg? i)
          ::fallback
          (try
            (let [at (* i (.-stride l))]
              (if (.isInteger ^TypeCodec (.-value-codec l))
                (.encode ^TypeCodec (.-value-codec l) v (.-segment memory) at)
                (kernel.memory/encode-whole (.-value-codec l) v (.-segment memory) at)))
            true
            (catch IllegalStateException e (unless-unmapped memory :put! e))))))))

(defn reduce-entries
  "Reduces over all entries with `(step acc key value)`, or returns `::fallback`."
  [^FastPath l step init]
  (if-some [memory (through (.-mapping l))]
    (memory.bytes/accessing [(.-source memory) :reduce]
      (loop [i 0 acc init]
        (cond
          (reduced? acc) (unreduced acc)
          (< i (.-entries l))
          (recur (inc i)
                 (step acc (key-of l i) (value-at l memory i)))
          :else acc)))
    ::fallback))
