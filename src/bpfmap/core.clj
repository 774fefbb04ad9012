(ns bpfmap.core
  "eBPF maps as Clojure data: create, open, read, change and pin them.

      (require '[bpfmap.core :as bpf])

      (with-open [m (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 1024})]
        (bpf/put! m 7 42)
        (m 7)          ;=> 42
        (into {} m))   ;=> {7 42}

  An open map is an identity with collection manners: `get`, calling it,
  `reduce`, `reduce-kv`, `into`, `seq` and `with-open` work; it is not counted,
  and printing or comparing it never asks the kernel. It may be used from any
  number of threads. Closing it never waits: calls in flight end first, later
  ones throw `:closed`.

  Every error is an `ex-info` with `:bpfmap/error`; see `bpfmap.error`. Any
  operation may throw `:closed`; any that asks the kernel may throw
  `:permission` and `:kernel`, and `:not-supported` off Linux."
  (:refer-clojure :exclude [clone])
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.impl.lifecycle :as lifecycle]
            [bpfmap.impl.store :as store])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

;; --- handles

(defn create
  "Creates a map from a spec and returns it open.

  The spec is checked as data first (see `bpfmap.spec` for its keys), then the
  map is created, filled with `:contents`, and frozen if `:freeze` is true or its
  name is that of a constant data section (`.rodata…`, `.kconfig…`). The map lives until it is closed, unless
  it is pinned or a program uses it.

  Throws `:invalid-spec` with everything that is wrong under `:bpfmap/problems`,
  `:invalid-value` for a bad entry of `:contents` (nothing is created then),
  `:not-supported` for a type or flag that this kernel lacks, `:map-full`,
  `:out-of-range`, `:no-memory`, `:permission` without CAP_BPF.

      (create {:name \"counts\" :type :hash :key :u32 :value :u64 :max-entries 1024})"
  ^Closeable [spec]
  (lifecycle/create spec))

(defn open
  "Opens a map that exists: by id, by pin path, by `{:name …}`, or by `{:fd …}`.

  A name must be that of one map only; it is compared as the kernel keeps it
  (see `bpfmap.spec/kernel-name`). A descriptor is duplicated: yours stays yours.

  | option           | what it does                                                         |
  |------------------|----------------------------------------------------------------------|
  | `:access`        | `:read-write` (default), `:read-only` or `:write-only`               |
  | `:key` `:value`  | the types; without them keys and values are bytes                     |

  Throws `:not-found`, `:ambiguous` (with `:bpfmap/candidates`), `:not-a-map` for a
  pinned program or link, `:incompatible` for a type of another size,
  `:invalid-value` for a bad reference or option. Opening by id or name needs
  Linux 4.13 and CAP_SYS_ADMIN; by path, Linux 4.4 and the file's permission.

      (open 12)
      (open \"/sys/fs/bpf/flows\" {:access :read-only})
      (open {:name \"counts\"} {:key :u32 :value :u64})"
  (^Closeable [ref] (lifecycle/open ref nil))
  (^Closeable [ref options] (lifecycle/open ref options)))

(defn close
  "Closes the handle; closing twice is fine. Returns nil.

  Never waits: calls in flight on other threads complete, and the last of
  them gives the descriptor back. The map itself goes once nothing holds it.

      (close m)"
  [m]
  (store/close m))

(defn clone
  "Returns a second handle of the same map, which outlives the first and is not pinned.

      (with-open [m2 (clone m)] (m2 7))"
  ^Closeable [m]
  (store/clone m))

(defn info
  "Returns what the kernel says of the map now, as a map in the shape of a spec.

  Beside the spec's keys: `:id`, `:frozen?`, `:memlock` (bytes charged to the
  map; both from fdinfo, absent where /proc cannot be read), and where they are not
  zero `:btf-id` with the ids of the types in it, `:ifindex`, `:map-extra`.
  `:untyped` says why the map got no BTF for its types, or why its BTF cannot be used. Flags of the descriptor (`:rdonly`,
  `:wronly`) are not among `:flags`.

      (:memlock (info m)) ;=> 16864"
  [m]
  (store/info m))

(defn spec
  "Returns the completed spec of the map; `(create (spec m))` makes a map like it.

  A map that was created here keeps its full name, one that was opened has the
  kernel's.

      (:max-entries (spec m)) ;=> 1024"
  [m]
  (store/spec-of m))

(defn freeze!
  "Makes the map unchangeable from user space, for good and for every process; returns the map.

  Programs still write to it. Freezing a frozen map is fine. Throws `:busy`
  while somebody has its memory mapped writable, `:read-only` through such a
  handle. Needs Linux 5.2.

      (freeze! m)"
  [m]
  (store/freeze! m))

;; --- pins

(defn pin!
  "Pins the map at a path below a BPF file system, so that it outlives the process; returns the map.

  A map that this handle pinned before moves there, in one step. A
  path may be a string, a `java.io.File` or a `java.nio.file.Path`.

  Throws `:exists` for a target that exists, `:not-bpffs` for a path on
  another file system, `:not-found` for a missing directory, `:invalid-value` for an
  empty path or a name with a dot. Needs Linux 4.4.

      (pin! m \"/sys/fs/bpf/counts\")"
  [m path]
  (lifecycle/pin! m path))

(defn unpin!
  "Removes the pin of this handle; fine when there is none, or it is gone already. Returns the map.

  Throws `:permission` when the file cannot be removed.

      (unpin! m)"
  [m]
  (lifecycle/unpin! m))

(defn pinned-path
  "Returns where this handle pinned its map or opened it from, as a string; nil when nowhere.

      (pinned-path m) ;=> \"/sys/fs/bpf/counts\""
  [m]
  @(store/pin-of m))

;; --- elements

(defn lookup
  "Returns the value of a key, or nil, or not-found. One system call.

  `(get m k)` and `(m k)` are the same. An array's index beyond its end is a
  missing key. While others replace values in a hash map, the kernel may miss a
  key that is there all the time: it links the new entry before it unlinks the
  old one, and a reader may have passed the first and not yet reached the
  second (measured on 6.18 in C: 178 of 5,000,000 lookups, four writers). Throws `:invalid-value` for a key that does not fit its type,
  `:write-only` through such a handle, `:not-supported` on types whose elements
  bpfmap does not read yet.

      (lookup m 7)        ;=> 42
      (lookup m 8 :none)  ;=> :none"
  ([m k] (store/lookup m k nil))
  ([m k not-found] (store/lookup m k not-found)))

(defn has-key?
  "Returns whether the map has the key. One system call, as [[lookup]].

      (has-key? m 7) ;=> true"
  [m k]
  (not (identical? m (store/lookup m k m))))

(defn put!
  "Writes the entry, whether or not the key exists; returns the map. One system call.

  A hash map's value is replaced as a whole, an array's in place: a reader
  of a long one may see part of each. Throws `:invalid-value` for a key or value that does not fit
  its type (before the kernel is asked), `:map-full`, `:out-of-range` for an
  array's index, `:permission` on a frozen map, `:read-only` through such a handle.

      (put! m 7 42)"
  [m k v]
  (store/put! m k v))

(defn insert!
  "Writes the entry if its key does not exist; returns whether it did. One system call.

  Throws what [[put!]] throws. Every index of an array exists, so there the answer is false.

      (insert! m 7 42) ;=> false"
  [m k v]
  (store/insert! m k v))

(defn replace!
  "Writes the entry if its key exists; returns whether it did. One system call.

  Throws what [[put!]] throws.

      (replace! m 9 1) ;=> false"
  [m k v]
  (store/replace! m k v))

(defn delete!
  "Deletes the key; returns whether it was there. One system call.

  Throws `:not-supported` on arrays, whose indices always exist;
  `:permission` on a frozen map, `:read-only` through such a handle.

      (delete! m 7) ;=> true"
  [m k]
  (store/delete! m k))

(defn take!
  "Returns the value of a key and deletes it in the same step; nil, or not-found, when it is missing.

  No write of another is lost between the two. A value that its `[:via …]` type
  cannot decode is not deleted: it is looked up and decoded first, in a call
  of its own. Needs Linux 5.14 for hash maps. Throws what [[lookup]] and
  [[delete!]] throw.

      (take! m 7) ;=> 42"
  ([m k] (store/take! m k nil))
  ([m k not-found] (store/take! m k not-found)))

(defn next-key
  "Returns the key after k in the kernel's order, or the first one; nil after the last.

  The kernel answers for a key that does not exist (any more) with the first
  one: a loop over next-key need not end while others delete. `reduce` does better.

      (next-key m)   ;=> 7
      (next-key m 7) ;=> nil"
  ([m] (store/next-key m nil true))
  ([m k] (store/next-key m k false)))

;; --- values

(defn ->bytes
  "Makes an immutable byte view of a byte array, a hexadecimal string or integers: a key or value without a type.

  Throws `:invalid-value` for anything else. Views are equal by content; see `bpfmap.bytes`.

      (->bytes \"0a 00 00 00\") ;=> #bpfmap/bytes \"0a 00 00 00\""
  [x]
  (bytes/->bytes x))

(defn bpf-map?
  "Returns whether x is a map of this library, open or closed.

      (bpf-map? m) ;=> true"
  [x]
  (store/bpf-map? x))
