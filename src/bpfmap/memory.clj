(ns bpfmap.memory
  "The memory of array and arena maps: bytes, typed views, atomic numbers and a program's
  variables, without a system call.

      (require '[bpfmap.core :as bpf] '[bpfmap.memory :as mem])

      (with-open [m (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1024 :flags #{:mmapable}})
                  memory (bpf/memory m)]
        (let [counts (mem/elements m)]
          (mem/add! counts 7 42)
          (nth counts 7)           ;=> 42
          (m 7)                    ;=> 42, by a system call: it is the same memory
          (reduce + counts)))      ;=> 42

  `(bpf/memory m)` maps the memory of a map and returns it as a byte view. A map has one mapping
  for each open handle, however many ask for it; closing it unmaps it at once, for all of them. It
  outlives its map's handle. Memory that nobody closed is unmapped by the garbage collector, once
  no view, slice or buffer of it is left.

  | what                                  | reads as it is now                                                        |
  |---------------------------------------|---------------------------------------------------------------------------|
  | memory, and a `slice` of it           | bytes 0 to 255: `nth get count reduce seq`; streams, buffers, channels     |
  | a view of an array, and `elements`    | elements: `nth get count reduce seq`, `clojure.core.reducers/fold`         |
  | a view of a struct or union           | fields: `(:field view)`, `(get view :field)`                               |
  | any view                              | `@view`, the whole value as data                                           |

  What is read is read when it is asked for, and may have changed by the next time; `seq` and `@`
  copy. doc/memory.md says what threads and BPF programs see of each other's writes.

  Errors: `:out-of-range` for what lies beyond the end or before the beginning; `:read-only` where
  the map is frozen, created `:rdonly-prog`, or opened read-only; `:closed` once the memory is
  unmapped, never a fault; `:invalid-value` for what does not fit a type, before anything is
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
  "Returns whether x is memory of a map, mapped or unmapped.

      (memory? (bpf/memory m)) ;=> true"
  [x] (bytes/memory? x))

(defn size
  "Returns how many bytes memory has, or a view. As `count` of memory, but with 64 bits.

      (size memory) ;=> 8192"
  [x]
  (if (view/view? x)
    (layout/size-of (view/shape-of x))
    (.byteSize ^MemorySegment (.-segment (bytes/check x :size)))))

(defn read-only?
  "Returns whether memory can only be read.

      (read-only? memory) ;=> false"
  [memory] (not (bytes/writable? (bytes/check memory :read-only?))))

(defn closed?
  "Returns whether memory is unmapped.

      (closed? memory) ;=> false"
  [memory] (bytes/closed? (bytes/check memory :closed?)))

(defn close
  "Unmaps memory, at once and for everybody who has it; closing twice is fine. Returns nil.
  `with-open` does it too.

  Accesses of other threads complete before, or throw `:closed`. Then, unless others have it
  mapped, `freeze!` works. Throws `:not-supported` for a slice, and `:busy` when a thread is in
  the middle of reading a file or socket into a buffer of it, or of writing from one, and is so
  for a second.

      (close memory)"
  [memory] (bytes/close (bytes/check memory :close)))

(defn slice
  "Returns a part of memory: from an offset, so many bytes or all that follow. It is mapped as
  long as the whole is.

      (slice memory 16 8) ;=> #<bpf-memory map 12 (counts), 8 bytes at 16 of 8192: 2a 00 00 00 00 00 00 00>"
  ([memory offset] (bytes/slice (bytes/check memory :slice) offset nil))
  ([memory offset size] (bytes/slice (bytes/check memory :slice) offset size)))

(defn snapshot
  "Returns a copy of what is in memory now: an immutable byte view, equal to others by content. Up
  to 2 GiB.

      (snapshot (slice memory 0 4)) ;=> #bpfmap/bytes \"2a 00 00 00\""
  [memory] (bytes/snapshot (bytes/check memory :snapshot)))

(defn fill!
  "Writes one byte, -128 to 255, everywhere; returns the memory.

      (fill! (slice memory 0 64) 0)"
  [memory x] (bytes/fill (bytes/check memory :fill!) x))

(defn populate!
  "Has the kernel allocate all pages of an arena's memory, or of a slice of it, that are not there
  yet; returns the memory.

  A page of an arena is allocated when it is first read or written to, and where the kernel cannot
  do that, it ends the process. This throws `:no-memory` instead. The memory of an array is there
  from the beginning.

      (populate! (slice memory 0 65536))"
  [memory] (bytes/populate (bytes/check memory :populate!)))

(defn copy-to
  "Copies into a primitive array, and returns it: bytes of memory, or numbers of an array view.

  `from` is an offset in bytes, or the index of an element; `start` and `n` are those of the
  array, which is filled unless they are given. Bytes of memory go as they are, to an array of any
  primitive type but boolean, in this machine's byte order. Elements of a view go to an array
  whose elements have their size, as they are (an unsigned one may come out negative), or to one
  of longs, or for floating-point numbers doubles, converted. An element that is aligned is copied
  in one piece.

      (copy-to memory (byte-array 16))
      (copy-to counts 0 numbers 0 512)   ; elements 0 to 511, into a long array"
  ([x array] (copy-to x 0 array 0 nil))
  ([x from array] (copy-to x from array 0 nil))
  ([x from array start n]
   (if (view/array-view? x)
     (view/copy-to x from array start n)
     (bytes/copy-to (bytes/check x :copy-to) from array start n))))

(defn copy-from
  "Copies a primitive array into memory, or its elements into an array view; returns what was
  written to.

  Arguments are those of [[copy-to]]. Memory takes a byte view too. A view takes an array whose
  elements have the size of its own, as they are; `write!` takes and checks any numbers.

      (copy-from memory 8 (byte-array [1 2 3]))
      (copy-from counts (long-array 1024))"
  ([x array] (copy-from x 0 array 0 nil))
  ([x from array] (copy-from x from array 0 nil))
  ([x from array start n]
   (if (view/array-view? x)
     (view/copy-from x from array start n)
     (bytes/copy-from (bytes/check x :copy-from) from array start n))))

(defn byte-buffer
  "Returns a `java.nio.ByteBuffer` over memory, in this machine's byte order; read-only where the
  memory is. Up to 2 GiB.

  Once the memory is unmapped, it throws `IllegalStateException`.

      (.getLong (byte-buffer memory) 8) ;=> 42"
  ^ByteBuffer [memory] (bytes/byte-buffer (bytes/check memory :byte-buffer)))

(defn segment
  "Returns the `java.lang.foreign.MemorySegment` of memory, for Java code; read-only where the
  memory is.

  Once the memory is unmapped, it throws `IllegalStateException`.

      (.byteSize (segment memory)) ;=> 8192"
  ^MemorySegment [memory] (.-segment (bytes/check memory :segment)))

(defn input-stream
  "Returns an `InputStream` of memory, from its beginning; so does `clojure.java.io/input-stream`,
  and `reader` a reader.

  It can be marked and reset, and skipped in. At the end it reads -1. Closing it leaves the memory
  mapped.

      (slurp (input-stream (slice memory 0 16)))"
  ^InputStream [memory] (bytes/input-stream (bytes/check memory :input-stream)))

(defn output-stream
  "Returns an `OutputStream` that writes to memory, from its beginning; so does
  `clojure.java.io/output-stream`.

  A write that does not fit throws `:out-of-range` and writes nothing. Closing it leaves the
  memory mapped.

      (with-open [out (output-stream memory)] (clojure.java.io/copy \"hello\" out))"
  ^OutputStream [memory] (bytes/output-stream (bytes/check memory :output-stream)))

(defn channel
  "Returns a `SeekableByteChannel` over memory, at position 0. It writes as much as fits, and
  throws `:out-of-range` where nothing does; it cannot be truncated.

      (.size (channel memory)) ;=> 8192"
  ^SeekableByteChannel [memory] (bytes/channel (bytes/check memory :channel)))

;; --- views

(defn view
  "Returns a view of memory through a type of `bpfmap.type`, at an offset in bytes, 0 unless
  given. `types` names types it may use.

  The type must fit between the offset and the end of the memory. Nothing is read yet. Throws
  `:invalid-spec` for a malformed type.

      (view memory [:array :u64 1024])
      (view memory [:struct [:packets :u64] [:bytes :u64]] 64) ;=> #<bpf-view {:packets :bytes} at 64 of map 12 (counts): {…}>"
  ([memory type] (view memory type 0 nil))
  ([memory type offset] (view memory type offset nil))
  ([memory type offset types] (view/over (bytes/check memory :view) (layout/shape type types) offset
                                         :view)))

(defn elements
  "Returns a view of the values of an open array map, by index, where they lie: eight bytes apart,
  or a multiple of that.

  Maps the memory as `(bpf/memory m)` does, which is what to close in the end. Throws what that
  throws.

      (nth (elements m) 7) ;=> 42"
  [m]
  (let [^Memory memory (mapped/memory m)
        {:keys [value types max-entries] :as spec} (bpf-map/spec-of m)]
    (when-not value
      (throw (error/error :not-supported
                          (str "There are no elements in the memory of "
                               (bytes/described (.-source memory)))
                          (bytes/data (.-source memory) :elements
                                       {:bpfmap/hint "it is no array; look at its memory with view"}))))
    (view/over memory (layout/strided value types max-entries (mapping/stride spec)) 0 :elements)))

(defn at
  "Returns a view of a part: of an element by its index, of a field by its name, or of what a
  vector of them leads to.

      (at counts 7)                 ;=> #<bpf-view :u64 at 56 of map 12 (counts): 42>
      (at flows [7 :packets])       ;=> #<bpf-view :u64 at 112 of map 13 (flows): 1>"
  [view path] (view/at view path :at))

(defn write!
  "Writes a value over what is viewed, or over a part of it; returns the view of that.

  The whole value is checked and encoded first, as that of a map is: nothing is written of one
  that does not fit. An aligned number of up to eight bytes is written in one piece, anything else
  in several. A bit-field is read, changed and written with its neighbours.

      (write! counts 7 42)
      (write! flows [7 :packets] 1)
      (write! (at flows 7) {:packets 1 :bytes 60})"
  ([view x]
   (if (satisfies? view/Writable view)
     (view/write view x)
     (view/check view :write!)))
  ([view path x]
   (if (instance? bpfmap.impl.memory.view.Elsewhere view) ; faster than satisfies?, for views
     (view/write-part view path x)
     (view/write (view/at view path :write!) x))))

(defn ->array
  "Returns the numbers of an array view in a new array: of longs, or for floating-point numbers of
  doubles. See [[copy-to]].

      (vec (->array (view memory [:array :u32 3]))) ;=> [42 0 0]"
  [view]
  (if (view/array-view? view)
    (view/->array view)
    (throw (error/error :invalid-value (str "Not a view of an array: " (pr-str (error/shown view)))
                        {:bpfmap/op :->array}))))

(defn variables
  "Returns the variables of a program's data section (`.bss`, `.data`, `.rodata`), as a map of
  name to a view.

  The section is an open map: an array with a single value, whose BTF names its variables. A
  variable is read as any view is, `@v`, and written by `write!`; constants are read-only. Where
  the section can be mapped, as by `(bpf/memory m)`, that is all in memory, and the memory is what
  to close in the end. Where it cannot, variables are read and written by system calls: writing
  one then reads the whole section and writes it back, so that what programs write to the others
  meanwhile is lost, and there are no atomic operations. Throws `:not-supported` for a map that is
  no data section, or whose BTF cannot be read.

      @(:packets (variables bss))            ;=> 42
      (write! (:enabled (variables data)) true)"
  [m] (variables/variables m))

;; --- atomic: the functions themselves, for one that only calls another would cost as much as
;; they do

(def ^{:arglists '([view] [view path])} get-acquire
  "Returns a number, and with it whatever was written before it was written by [[set-release!]] or
  one of the operations below.

  As all that follow it takes a view of an integer, or a view and the path to one, of 4 or 8
  bytes, aligned to its size, in this processor's byte order. Throws `:invalid-value` for any
  other.

      (get-acquire counts 7) ;=> 42"
  atomic/get-acquire)

(def ^{:arglists '([view x] [view path x])} set-release!
  "Writes a number after everything that this thread wrote before; returns the view of it.

      (set-release! ring :head 64)"
  atomic/set-release!)

(def ^{:arglists '([view n] [view path n])} add!
  "Adds to a number in one step, whoever else does; returns the view of it. It wraps around at its
  width. What is added may be negative.

      @(add! counts 7 1) ;=> 43"
  atomic/add!)

(def ^{:arglists '([view x] [view path x])} exchange!
  "Writes a number and returns the one before, in one step.

      (exchange! counts 7 0) ;=> 42"
  atomic/exchange!)

(def ^{:arglists '([view expected x] [view path expected x])} compare-and-set!
  "Writes a number if the expected one is there, in one step; returns whether it was.

      (compare-and-set! (at state :owner) 0 7) ;=> true"
  atomic/compare-and-set!)

(def ^{:arglists '([view mask] [view path mask])} bit-or!
  "Sets the bits of a mask in one step; returns the view.

      @(bit-or! flags 4) ;=> 5"
  atomic/bit-or!)

(def ^{:arglists '([view mask] [view path mask])} bit-and!
  "Clears the bits that a mask has not, in one step; returns the view.

      @(bit-and! flags -5) ;=> 1"
  atomic/bit-and!)

(def ^{:arglists '([view mask] [view path mask])} bit-xor!
  "Turns the bits of a mask around in one step; returns the view.

      @(bit-xor! flags 1) ;=> 0"
  atomic/bit-xor!)

(def ^{:arglists '([view n] [view path n])} fetch-add!
  "As [[add!]], but returns the number before.

      (fetch-add! counts 7 1) ;=> 42"
  atomic/fetch-add!)

(def ^{:arglists '([view mask] [view path mask])} fetch-or!
  "As [[bit-or!]], but returns the number before.

      (fetch-or! flags 4) ;=> 1"
  atomic/fetch-or!)

(def ^{:arglists '([view mask] [view path mask])} fetch-and!
  "As [[bit-and!]], but returns the number before.

      (fetch-and! flags -5) ;=> 5"
  atomic/fetch-and!)

(def ^{:arglists '([view mask] [view path mask])} fetch-xor!
  "As [[bit-xor!]], but returns the number before.

      (fetch-xor! flags 1) ;=> 1"
  atomic/fetch-xor!)
