(ns bpfmap.memory
  "Reads and writes the memory of array and arena maps without system calls.

  Memory is accessed as bytes, through typed views, atomically, or as variables of a program.

      (require '[bpfmap.core :as bpf] '[bpfmap.memory :as mem])

      (with-open [m (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1024 :flags #{:mmapable}})
                  memory (bpf/memory m)]
        (let [counts (mem/elements m)]
          (mem/add! counts 7 42)
          (nth counts 7)           ;=> 42
          (m 7)                    ;=> 42, by a system call: it is the same memory
          (reduce + counts)))      ;=> 42

  `(bpf/memory m)` maps the memory of a map and returns it as a byte view. Each open handle has one
  mapping, which all callers share; closing it unmaps it at once, for all of them. It outlives the
  handle. The garbage collector unmaps memory that was not closed, once no view, slice or buffer of
  it is left.

  | object                                | reads the current                                                         |
  |---------------------------------------|---------------------------------------------------------------------------|
  | memory, and a `slice` of it           | bytes 0 to 255: `nth get count reduce seq`; streams, buffers, channels     |
  | a view of an array, and `elements`    | elements: `nth get count reduce seq`, `clojure.core.reducers/fold`         |
  | a view of a struct or union           | fields: `(:field view)`, `(get view :field)`                               |
  | any view                              | `@view`, the whole value as data                                           |

  Every access reads the memory again, so a value may change between two reads; `seq` and `@` copy.
  doc/memory.md describes how threads and BPF programs see each other's writes.

  Errors: `:out-of-range` for an offset or index outside the memory; `:read-only` if the map is
  frozen, created with `:rdonly-prog`, or opened read-only; `:closed` once the memory is unmapped,
  never a fault; `:invalid-value` for a value that does not fit its type, before anything is
  written. Needs Linux 5.5, for arenas 6.9."
  (:refer-clojure :exclude [compare-and-set!])
  (:require [bpfmap.error :as error]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.mapped :as mapped]
            [bpfmap.impl.memory.atomic :as atomic]
            [bpfmap.impl.memory.bytes :as bytes]
            [bpfmap.impl.memory.layout :as layout]
            [bpfmap.impl.memory.mapping :as mapping]
            [bpfmap.impl.memory.variables :as variables]
            [bpfmap.impl.memory.view :as view])
  (:import (bpfmap.impl.memory.bytes Memory)
           (java.io InputStream OutputStream)
           (java.lang.foreign MemorySegment)
           (java.nio ByteBuffer)
           (java.nio.channels SeekableByteChannel)))

(set! *warn-on-reflection* true)

;; --- memory

(defn memory?
  "Returns true if x is memory of a map, mapped or unmapped.

      (memory? (bpf/memory m)) ;=> true"
  [x] (bytes/memory? x))

(defn size
  "Returns the size of memory or a view in bytes.

  Like `count` of memory, but with 64 bits.

      (size memory) ;=> 8192"
  [x]
  (if (view/view? x)
    (layout/size-of (view/layout-of x))
    (.byteSize ^MemorySegment (.-segment (bytes/check x :size)))))

(defn read-only?
  "Returns true if memory can only be read.

      (read-only? memory) ;=> false"
  [memory] (not (bytes/writable? (bytes/check memory :read-only?))))

(defn closed?
  "Returns true if memory is unmapped.

      (closed? memory) ;=> false"
  [memory] (bytes/closed? (bytes/check memory :closed?)))

(defn close
  "Unmaps memory for all its users at once; closing it twice is allowed.

  Returns nil. `with-open` calls it too. Accesses of other threads complete first, or throw
  `:closed`. Afterwards `freeze!` works, unless others have the memory mapped. Throws
  `:not-supported` for a slice, and `:busy` if a thread is reading a file or socket into a buffer of
  the memory, or writing from one, for more than a second.

      (close memory)"
  [memory] (bytes/close (bytes/check memory :close)))

(defn slice
  "Returns a part of memory, from an offset, with a size or up to the end.

  It stays mapped as long as the whole memory.

      (slice memory 16 8) ;=> #<bpf-memory map 12 (counts), 8 bytes at 16 of 8192: 2a 00 00 00 00 00 00 00>"
  ([memory offset] (bytes/slice (bytes/check memory :slice) offset nil))
  ([memory offset size] (bytes/slice (bytes/check memory :slice) offset size)))

(defn snapshot
  "Returns a copy of memory as an immutable byte view, which is equal by content.

  The size is at most 2 GiB.

      (snapshot (slice memory 0 4)) ;=> #bpfmap/bytes \"2a 00 00 00\""
  [memory] (bytes/snapshot (bytes/check memory :snapshot)))

(defn fill!
  "Writes one byte, -128 to 255, to every position; returns the memory.

      (fill! (slice memory 0 64) 0)"
  [memory x] (bytes/fill (bytes/check memory :fill!) x))

(defn populate!
  "Allocates all pages of an arena's memory, or of a slice; returns the memory.

  The kernel allocates a page of an arena when it is first read or written, and ends the process if
  it cannot. This function throws `:no-memory` instead. The memory of an array is always allocated.

      (populate! (slice memory 0 65536))"
  [memory] (bytes/populate (bytes/check memory :populate!)))

(defn copy-to
  "Copies bytes of memory, or numbers of an array view, into a primitive array.

  Returns the array. `from` is an offset in bytes, or the index of an element. `start` and `n` are a
  range of the array, default: the whole array. Bytes of memory are copied unchanged to an array of
  any primitive type except boolean, in this machine's byte order. Elements of a view are copied
  unchanged to an array whose elements have their size (an unsigned one may become negative), or
  converted to longs, or to doubles for floating-point numbers. An aligned element is copied in one
  piece.

      (copy-to memory (byte-array 16))
      (copy-to counts 0 numbers 0 512)   ; elements 0 to 511, into a long array"
  ([x array] (copy-to x 0 array 0 nil))
  ([x from array] (copy-to x from array 0 nil))
  ([x from array start n]
   (if (view/array-view? x)
     (view/copy-to x from array start n)
     (bytes/copy-to (bytes/check x :copy-to) from array start n))))

(defn copy-from
  "Copies a primitive array into memory or into an array view, and returns that.

  The arguments are the same as in [[copy-to]]. Memory accepts a byte view too. A view accepts an
  array whose elements have the size of its own, and copies them unchanged; `write!` accepts and
  checks any numbers.

      (copy-from memory 8 (byte-array [1 2 3]))
      (copy-from counts (long-array 1024))"
  ([x array] (copy-from x 0 array 0 nil))
  ([x from array] (copy-from x from array 0 nil))
  ([x from array start n]
   (if (view/array-view? x)
     (view/copy-from x from array start n)
     (bytes/copy-from (bytes/check x :copy-from) from array start n))))

(defn byte-buffer
  "Returns a `java.nio.ByteBuffer` over memory, in this machine's byte order.

  It is read-only if the memory is. The size is at most 2 GiB. Once the memory is unmapped, it
  throws `IllegalStateException`.

      (.getLong (byte-buffer memory) 8) ;=> 42"
  ^ByteBuffer [memory] (bytes/byte-buffer (bytes/check memory :byte-buffer)))

(defn segment
  "Returns the `java.lang.foreign.MemorySegment` of memory, for Java code.

  It is read-only if the memory is. Once the memory is unmapped, it throws `IllegalStateException`.

      (.byteSize (segment memory)) ;=> 8192"
  ^MemorySegment [memory] (.-segment (bytes/check memory :segment)))

(defn input-stream
  "Returns an `InputStream` of memory, from its beginning.

  `clojure.java.io/input-stream` returns the same, and `reader` a reader. The stream supports mark,
  reset and skip. At the end it reads -1. Closing it leaves the memory mapped.

      (slurp (input-stream (slice memory 0 16)))"
  ^InputStream [memory] (bytes/input-stream (bytes/check memory :input-stream)))

(defn output-stream
  "Returns an `OutputStream` that writes to memory, from its beginning.

  `clojure.java.io/output-stream` returns the same. A write that does not fit throws `:out-of-range`
  and writes nothing. Closing it leaves the memory mapped.

      (with-open [out (output-stream memory)] (clojure.java.io/copy \"hello\" out))"
  ^OutputStream [memory] (bytes/output-stream (bytes/check memory :output-stream)))

(defn channel
  "Returns a `SeekableByteChannel` over memory, at position 0.

  It writes as much as fits, and throws `:out-of-range` if nothing fits. It cannot be truncated.

      (.size (channel memory)) ;=> 8192"
  ^SeekableByteChannel [memory] (bytes/channel (bytes/check memory :channel)))

;; --- views

(defn view
  "Returns a view of memory through a type of `bpfmap.type`, at an offset in bytes.

  Default offset: 0. `types` has named types. The type must fit between the offset and the end of
  the memory. Creating a view reads nothing. Throws `:invalid-spec` for a malformed type.

      (view memory [:array :u64 1024])
      (view memory [:struct [:packets :u64] [:bytes :u64]] 64)
      ;=> #<bpf-view {:packets :bytes} at 64 of map 12 (counts): {…}>"
  ([memory type] (view memory type 0 nil))
  ([memory type offset] (view memory type offset nil))
  ([memory type offset types]
   (view/over (bytes/check memory :view) (layout/of-type type types) offset :view)))

(defn elements
  "Returns a view of the values of an open array map, by index.

  Values are eight bytes apart, or a multiple of eight. The memory is mapped as by `(bpf/memory m)`;
  the caller must close that memory. Throws the same errors.

      (nth (elements m) 7) ;=> 42"
  [m]
  (let [^Memory memory (mapped/memory m)
        {:keys [value types max-entries] :as spec} (bpf-map/spec-of m)]
    (when-not value
      (throw (error/error :not-supported
                          (str "There are no elements in the memory of "
                               (bytes/described (.-source memory)))
                          (bytes/data (.-source memory) :elements
                                      {:bpfmap/hint "it is not an array; use view for its memory"}))))
    (view/over memory (layout/strided value types max-entries (mapping/stride spec)) 0 :elements)))

(defn at
  "Returns a view of an element by its index, of a field by its name, or by a path.

      (at counts 7)                 ;=> #<bpf-view :u64 at 56 of map 12 (counts): 42>
      (at flows [7 :packets])       ;=> #<bpf-view :u64 at 112 of map 13 (flows): 1>"
  [view path] (view/at view path :at))

(defn write!
  "Writes a value to a view, or to a part of it; returns the view of that.

  The whole value is checked and encoded first, like a value of a map: a value that does not fit
  writes nothing. An aligned number of up to eight bytes is written in one piece, anything else in
  several. A bit-field is read, changed and written with its neighbours.

      (write! counts 7 42)
      (write! flows [7 :packets] 1)
      (write! (at flows 7) {:packets 1 :bytes 60})"
  ([view x]
   (if (satisfies? view/Writable view)
     (view/write view x)
     (view/check view :write!)))
  ([view path x]
   ;; Faster than satisfies?, for views.
   (if (instance? bpfmap.impl.memory.view.WritableBySyscall view)
     (view/write-part view path x)
     (view/write (view/at view path :write!) x))))

(defn ->array
  "Returns the numbers of an array view in a new array of longs or doubles.

  Floating-point numbers are returned as doubles. See [[copy-to]].

      (vec (->array (view memory [:array :u32 3]))) ;=> [42 0 0]"
  [view]
  (if (view/array-view? view)
    (view/->array view)
    (throw (error/error :invalid-value (str "The view must be a view of an array, got "
                                            (error/printed view))
                        {:bpfmap/op :->array}))))

(defn variables
  "Returns the variables of a program's data section as a map of name to view.

  Data sections are `.bss`, `.data` and `.rodata`: an open array map with a single value, whose BTF
  names the variables. A variable is read like any view, `@v`, and written by `write!`; constants
  are read-only. If the section can be mapped, as by `(bpf/memory m)`, this needs no system calls,
  and the caller must close the memory. Otherwise variables are read and written by system calls:
  writing one reads the whole section and writes it back, so that concurrent writes of programs to
  other variables are lost, and there are no atomic operations. Throws `:not-supported` if the map
  is not a data section, or its BTF cannot be read.

      @(:packets (variables bss))            ;=> 42
      (write! (:enabled (variables data)) true)"
  [m] (variables/variables m))

;; --- atomic: the functions themselves, for one that only calls another would cost as much as
;; they do

(def ^{:arglists '([view] [view path])} get-acquire
  "Returns a number with acquire ordering, see [[set-release!]].

  Everything that was written before the number was written by [[set-release!]], or by an atomic
  operation below, is visible afterwards. Like all operations below, it accepts a view of an
  integer, or a view and the path to one, of 4 or 8 bytes, aligned to its size, in this processor's
  byte order. Throws `:invalid-value` for any other.

      (get-acquire counts 7) ;=> 42"
  atomic/get-acquire)

(def ^{:arglists '([view x] [view path x])} set-release!
  "Writes a number after all earlier writes of this thread; returns the view of it.

      (set-release! ring :head 64)"
  atomic/set-release!)

(def ^{:arglists '([view n] [view path n])} add!
  "Adds to a number atomically; returns the view of it.

  The number wraps around at its width. The summand may be negative.

      @(add! counts 7 1) ;=> 43"
  atomic/add!)

(def ^{:arglists '([view x] [view path x])} exchange!
  "Writes a number and returns the previous one, atomically.

      (exchange! counts 7 0) ;=> 42"
  atomic/exchange!)

(def ^{:arglists '([view expected x] [view path expected x])} compare-and-set!
  "Writes a number if it has the expected value, atomically; returns true if so.

      (compare-and-set! (at state :owner) 0 7) ;=> true"
  atomic/compare-and-set!)

(def ^{:arglists '([view mask] [view path mask])} bit-or!
  "Sets the bits of a mask atomically; returns the view.

      @(bit-or! flags 4) ;=> 5"
  atomic/bit-or!)

(def ^{:arglists '([view mask] [view path mask])} bit-and!
  "Clears the bits that are not in a mask, atomically; returns the view.

      @(bit-and! flags -5) ;=> 1"
  atomic/bit-and!)

(def ^{:arglists '([view mask] [view path mask])} bit-xor!
  "Inverts the bits of a mask atomically; returns the view.

      @(bit-xor! flags 1) ;=> 0"
  atomic/bit-xor!)

(def ^{:arglists '([view n] [view path n])} fetch-add!
  "Adds to a number atomically, like [[add!]]; returns the previous number.

      (fetch-add! counts 7 1) ;=> 42"
  atomic/fetch-add!)

(def ^{:arglists '([view mask] [view path mask])} fetch-or!
  "Sets the bits of a mask atomically, like [[bit-or!]]; returns the old number.

      (fetch-or! flags 4) ;=> 1"
  atomic/fetch-or!)

(def ^{:arglists '([view mask] [view path mask])} fetch-and!
  "Clears bits atomically, like [[bit-and!]]; returns the previous number.

      (fetch-and! flags -5) ;=> 5"
  atomic/fetch-and!)

(def ^{:arglists '([view mask] [view path mask])} fetch-xor!
  "Inverts bits atomically, like [[bit-xor!]]; returns the previous number.

      (fetch-xor! flags 1) ;=> 1"
  atomic/fetch-xor!)
