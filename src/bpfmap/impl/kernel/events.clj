(ns ^:no-doc bpfmap.impl.kernel.events
  "Maps ring buffers, and makes epoll descriptors and eventfds to wait for them.

  A ring buffer of S bytes is a file of a consumer page, a producer page, and its data twice. Only
  the consumer page can be mapped for writing. Source: kernel/bpf/ringbuf.c, ringbuf_map_mmap_kern."
  (:require [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.procfs :as procfs])
  (:import (bpfmap.sys Abi Fd Fdinfo MappedMemory RingBuffer RingFollower SimulatedMap
                       UserRingBuffer Waiter)
           (java.io IOException)))

(set! *warn-on-reflection* true)

(defn- map-part-of-kernel
  "Returns a mapped part of a map of the kernel."
  ^MappedMemory [^Fd fd offset size writable? ctx]
  (try
    (let [address (MappedMemory/map fd (long offset) (long size) (boolean writable?) 0)]
      (if (neg? address)
        (throw (call/failure "Mapping the memory" address (assoc ctx :fd fd)))
        (MappedMemory/own address (long size) (not writable?))))
    (catch RuntimeException e
      (throw (call/in-context e ctx)))))

(defn map-part
  "Returns a mapped part of a descriptor's memory.

  `offset` and `size` are in bytes."
  ^MappedMemory [^Fd fd offset size writable? ctx]
  (if-let [^SimulatedMap simulated (.simulated fd)]
    (or (.map simulated (long offset) (long size) (boolean writable?))
        (throw (call/failure "Mapping the memory" (- Abi/EPERM) (assoc ctx :fd fd))))
    (map-part-of-kernel fd offset size writable? ctx)))

(defn- pollable
  "Returns a new descriptor to wait for; nil for a simulated map.

  A reader of a simulated map looks for events by time."
  [fd ctx]
  (when-not (call/simulated? fd)
    (call/duplicate fd ctx)))

(defn- with-pages
  "Returns `(f consumer-page producer-pages)`, with both parts of a ring mapped.

  `writable` is the part to write to: `:consumer`, `:producer`, or nil for none. If f throws, both
  are unmapped again."
  [fd size writable ctx f]
  (let [page (long (call/page-size))
        consumer (map-part fd 0 page (= :consumer writable) ctx)]
    (try
      (let [producer (map-part fd page (+ page (* 2 (long size))) (= :producer writable) ctx)]
        (try
          (f consumer producer)
          (catch Throwable e
            (.close producer)
            (throw e))))
      (catch Throwable e
        (.close consumer)
        (throw e)))))

(defn ring-buffer
  "Returns the source that consumes a ring buffer of `size` bytes.

  Closing the source leaves `fd` open."
  ^RingBuffer [fd size ctx]
  (with-pages fd size :consumer ctx
    (fn [consumer producer]
      (RingBuffer. consumer producer size (pollable fd ctx)))))

(defn ring-follower
  "Returns a source that copies what it reads from a ring buffer of `size` bytes.

  With `:overwrites`, the ring overwrites its oldest records. With `:now`, it begins with the next
  record. With `:consume`, it gives places back. Closing the source leaves `fd` open."
  ^RingFollower [fd size {:keys [overwrites now consume]} ctx]
  (with-pages fd size (when consume :consumer) ctx
    (fn [consumer producer]
      (RingFollower. consumer producer size (boolean overwrites) (boolean now)
                     (pollable fd ctx)))))

(defn emit
  "Writes a record to a simulated ring buffer, as a program does.

  Returns false if there is no room."
  [^Fd fd memory offset size]
  (.emit ^SimulatedMap (.simulated fd) memory (long offset) (int size)))

(defn user-ring-buffer
  "Returns what writes to a user ring buffer of `size` bytes.

  Closing it leaves `fd` open."
  ^UserRingBuffer [fd size ctx]
  (with-pages fd size :producer ctx
    (fn [consumer producer]
      (UserRingBuffer. consumer producer size (call/duplicate fd ctx)))))

(defn ring-fill
  "Returns the bytes in use in a ring of `size` bytes, headers included.

  Reads the positions through a read-only mapping. `fd` must have been opened for reading and
  writing: the kernel maps no other."
  [fd size ctx]
  (let [page (long (call/page-size))]
    (with-open [memory (map-part fd 0 (* 2 page) false ctx)]
      (RingBuffer/fill memory page (long size)))))

(defn- own-fd ^Fd [outcome action ctx]
  (if (neg? (long outcome))
    (throw (call/failure action outcome ctx))
    (Fd/own outcome)))

(defn- check-added [outcome ctx]
  (when (neg? (long outcome))
    (throw (call/failure "Adding a descriptor to epoll" outcome ctx))))

(defn- new-waiter
  "Returns an epoll set with an eventfd that ends a wait, after `(add waiter)`.

  If `add` throws, both are closed."
  ^Waiter [add ctx]
  (try
    (let [epoll (own-fd (Waiter/createEpoll) "Creating an epoll descriptor" ctx)]
      (try
        (let [eventfd (own-fd (Waiter/createEventfd) "Creating an eventfd" ctx)]
          (try
            (let [waiter (Waiter/own epoll eventfd)]
              (check-added (.addEventfd waiter) ctx)
              (add waiter)
              waiter)
            (catch Throwable e
              (call/close eventfd)
              (throw e))))
        (catch Throwable e
          (call/close epoll)
          (throw e))))
    (catch RuntimeException e
      (throw (call/in-context e ctx)))))

(defn waiter
  "Returns an epoll set of descriptors to read from.

  It has an eventfd that ends a wait. With `edges?`, only something new ends a wait, and not what
  others leave unread."
  ^Waiter [fds edges? ctx]
  (new-waiter (fn [^Waiter waiter]
                (doseq [fd fds]
                  (check-added (if edges? (.addEdges waiter fd) (.add waiter fd)) ctx)))
              ctx))

(defn room-waiter
  "Returns an epoll set of a user ring buffer to write to.

  It has an eventfd that ends a wait."
  ^Waiter [fd ctx]
  (new-waiter (fn [^Waiter waiter]
                (check-added (.addForRoom waiter fd) ctx))
              ctx))

(defn wait
  "Waits until a descriptor is readable, it is woken, or some nanoseconds are over.

  Returns false if the time is over."
  [^Waiter waiter nanos ctx]
  (let [outcome (.await waiter (long nanos))]
    (when (neg? outcome)
      (throw (call/failure "Waiting for events" outcome ctx)))
    (pos? outcome)))

(defn readable
  "Returns a waiter for something to read from a descriptor, such as a terminal.

  `number` is the number of the descriptor, which stays open. [[end-wait]] ends the wait."
  ^Waiter [number ctx]
  (let [fd (call/duplicate-number number ctx)]
    (try
      ;; The set keeps what it waits for until the last descriptor of it is closed.
      (waiter [fd] false ctx)
      (finally (call/close fd)))))

(defn closing
  "Returns a waiter for the end of a pipe: its reader closes it.

  As [[readable]]. Returns nil if it is not a pipe."
  ^Waiter [number ctx]
  (when (procfs/pipe? number)
    (readable number ctx)))

(defn end-wait
  "Ends a wait of another thread, and every later one."
  [^Waiter waiter]
  (.wake waiter))

(defn- ring-mappings
  "Returns the number of rings of a size that a process has mapped.

  `writable?` is true for those that it has mapped for writing only."
  [pid ^long size writable?]
  (let [page (long (call/page-size))
        bytes (+ page (* 2 size))]
    (count
     (for [[_ from to mode offset]
           (re-seq #"(?m)^([0-9a-f]+)-([0-9a-f]+) r(.)-s ([0-9a-f]+) .*anon_inode:bpf-map"
                   (String. (procfs/read-bytes (str "/proc/" pid "/maps"))))
           :when (and (= page (Long/parseLong offset 16))
                      (or (not writable?) (= "w" mode))
                      (= bytes (- (Long/parseUnsignedLong to 16)
                                  (Long/parseUnsignedLong from 16))))]
       from))))

(defn writes-ring?
  "Returns true if a process has a user ring buffer of a size mapped for writing.

  Returns true as well if that cannot be read."
  [pid size]
  (try
    (pos? (long (ring-mappings pid size true)))
    (catch IOException _ true)))

(defn mapped-without-descriptor
  "Returns the processes that may have a ring mapped that they do not have open.

  A mapping keeps a map after its descriptor was closed, and the kernel does not report the map of a
  mapping. So a process counts if it has more rings of that size mapped than maps open. With
  `writable?`, only rings that it has mapped for writing count, which are user ring buffers."
  [size id writable?]
  (try
    (into []
          (keep (fn [pid]
                  (try
                    (let [mapped (long (ring-mappings pid size writable?))]
                      (when (pos? mapped)
                        (let [open (into #{}
                                         (keep (fn [^Fdinfo object]
                                                 (when (= "map" (.-kind object)) (.-id object))))
                                         (procfs/objects pid))]
                          (when (and (not (contains? open id))
                                     (< (count open) mapped))
                            {:pid pid :command (procfs/command pid)}))))
                    (catch IOException _ nil))))
          (procfs/processes))
    (catch IOException _ [])))
