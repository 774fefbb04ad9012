(ns bpfmap.core
  "Creates, opens, reads, changes and pins eBPF maps as Clojure data.

      (require '[bpfmap.core :as bpf])

      (with-open [m (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 1024})]
        (bpf/put! m 7 42)
        (m 7)          ;=> 42
        (into {} m))   ;=> {7 42}

  An open map can be used like a collection, but is compared by identity: `get`, calling it,
  `reduce`, `reduce-kv`, `into`, `seq` and `with-open` work. It has no `count`, and printing or
  comparing it makes no system call. Any number of threads may use it. Per-CPU values are vectors
  with one element for each possible CPU. Objects that a map refers to (maps, programs) are stored
  as open handles and read as references that can be opened, such as `{:map-id 12}`.
  doc/map-types.md has each type.

  Options are a trailing map: `:lock true` holds the value's spin lock, `:cpu n` reads or writes the
  value of one CPU, `:cpus :all` writes one value for every CPU, `:overwrite true` pushes to a full
  map too. doc/options.md lists the options of every function.

  Errors are `ex-info` with `:bpfmap/error`, see `bpfmap.error`. Any function may throw `:closed`,
  and `:invalid-value` for an invalid option or argument. Functions that call the kernel may throw
  `:permission` and `:kernel`. An operation that the map's type lacks throws `:not-supported` and
  names an alternative."
  (:refer-clojure :exclude [peek pop!])
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.impl.kernel.element :as element]
            [bpfmap.impl.map.batch-ops :as batch-ops]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.element-ops :as element-ops]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.impl.map.mapped :as mapped]
            [clojure.core.protocols :as protocols])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

;; The data that clojure.datafy shows is made by a namespace that is loaded on first use.
(extend-type BpfMap
  protocols/Datafiable
  (datafy [m] ((requiring-resolve 'bpfmap.impl.host.explore/of-map) m)))

(defn create
  "Creates a map from a spec and returns it open.

  With `:pinning :by-name`, opens the map that is pinned already, if there is one.

  The spec is checked first (see `bpfmap.spec` for its keys). Then the map is created, filled with
  `:contents`, frozen if `:freeze` is true or if its name means a constant data section
  (`.rodata`, `.rodata.…` or `.kconfig`), and pinned, in this order. The map lives until it is
  closed, unless it is pinned or a program uses it.

  `:pinning :by-name` pins below the option `:pin-path`, default: /sys/fs/bpf. A map found there is
  used as it is, and not filled again. If it does not match the spec, `:incompatible` is thrown with
  every difference under `:bpfmap/diff`. For the option `:mapped` see [[open]].

  Throws `:invalid-spec` with all problems under `:bpfmap/problems`, `:invalid-value` for an invalid
  entry of `:contents` (nothing is created then), `:not-supported` for a type or flag that this
  kernel lacks, `:map-full`, `:out-of-range`, `:no-memory`, and `:permission` without CAP_BPF and
  without a BPF token. Kernels before 5.11 charge maps to RLIMIT_MEMLOCK; bpfmap raises the limit of
  this process if it is reached.

      (create {:name \"counts\" :type :hash :key :u32 :value :u64 :max-entries 1024})
      (create {:name \"flows\" :type :lru-hash … :pinning :by-name}
              {:pin-path \"/sys/fs/bpf/agent\"})"
  (^Closeable [spec] (lifecycle/create spec nil))
  (^Closeable [spec options] (lifecycle/create spec options)))

(defn open
  "Opens an existing map by id, pin path, name, descriptor or reference.

  `ref` is an id, a pin path, `{:name …}`, `{:fd …}` or `{:map-id …}`. A name must match only one
  map. If the kernel shortens the name (see `bpfmap.spec/kernel-name`), the full name must match
  the map's variable in its BTF, as libbpf loads it, or the file name of a pin of the map. A
  descriptor is duplicated; the caller still owns the original.

  Options:

  - `:access`: `:read-write`, `:read-only` or `:write-only`
  - `:key` and `:value`, or `:key-type` and `:value-type`: types; default: the types of the map's BTF, or bytes
  - `:mapped true`: `get`, `put!` and `reduce` of an `:mmapable` array make no system calls
  (doc/memory.md)

  Throws `:not-found`, `:ambiguous` if a name matches several maps (with `:bpfmap/candidates`, a
  sequence of `{:id :name :type :pinned :held}`), `:not-a-map` for a pinned program or link,
  `:incompatible` for a type of another size, and `:invalid-value` for an invalid reference or
  option. Opening by id or name needs Linux 4.13 and CAP_SYS_ADMIN; by path, Linux 4.4 and the
  file's permission.

      (open 12), (open \"/sys/fs/bpf/flows\" {:access :read-only})
      (open {:name \"counts\"} {:key :u32 :value :u64})"
  (^Closeable [ref] (lifecycle/open ref nil))
  (^Closeable [ref options] (lifecycle/open ref options)))

(defn close
  "Closes the handle and returns nil; closing it twice is allowed.

  It never waits: calls in progress on other threads complete, and the last of them closes the
  descriptor. The kernel frees the map once nothing holds it.

      (close m)"
  [m] (bpf-map/close m))

(defn clone
  "Returns a second handle of the same map, which outlives the first.

  The new handle has no pins.

      (with-open [m2 (clone m)] (m2 7))"
  ^Closeable [m] (lifecycle/clone m))

(defn info
  "Returns the current state of the map from the kernel, in the shape of a spec.

  Beside the spec's keys, it has `:id` (nil before Linux 4.13), `:frozen` and `:memlock` (bytes
  charged to the map; both read from fdinfo, and missing if /proc cannot be read). It has `:btf-id`
  with the ids of the types in it, `:ifindex` and `:map-extra` unless they are zero. `:untyped` is
  the reason why the map got no BTF for its types, or why its BTF cannot be used. Flags of the
  descriptor (`:rdonly`, `:wronly`) are not among `:flags`.

      (:memlock (info m)) ;=> 16864"
  [m] (lifecycle/info m))

(defn spec
  "Returns the completed spec of the map; `(create (spec m))` makes a map like it.

  A map created by this handle keeps its full name; an opened map has the name that the kernel
  keeps. The kernel does not report the inner spec of a map of maps: for an opened map, `:inner-map`
  is the spec of a map in it, and missing if it is empty or cannot be read. The kernel does not
  report the NUMA node either.

      (:max-entries (spec m)) ;=> 1024"
  [m] (lifecycle/spec m))

(defn freeze!
  "Makes the map read-only for user space, in every process and for good.

  Returns the map. Programs can still write to it. Freezing a frozen map is allowed. Throws `:busy`
  while its memory is mapped writable, `:read-only` if the handle is read-only. Needs Linux 5.2.

      (freeze! m)"
  [m] (lifecycle/freeze! m))

;; --- pins

(defn pin!
  "Pins the map at a path on a BPF file system, and returns the map.

  The pin keeps the map alive after the process ends. A map may have any number of pins: existing
  pins stay, and [[move-pin!]] moves one. Pinning at a path where this handle pinned the map before
  is allowed. A path may be a string, a `java.io.File` or a `java.nio.file.Path`; doc/pins.md
  describes names that are not UTF-8. Throws `:exists` if the target exists, `:not-bpffs` for a path
  on another file system, `:not-found` for a missing directory, `:invalid-value` for an empty path
  or a name with a dot, `:permission`. Needs Linux 4.4.

      (pin! m \"/sys/fs/bpf/counts\")"
  [m path] (lifecycle/pin! m path))

(defn move-pin!
  "Moves a pin of the map to another path atomically, and returns the map.

  Default for `from`: the only pin that this handle knows, which is where it pinned the map or
  opened it from. The old path is gone afterwards. Throws `:exists` if the target exists,
  `:not-found` if the handle has no pin or the map is not pinned at `from`, `:ambiguous` if the
  handle has several, `:invalid-value` for a path on another mount or a name with a dot,
  `:permission`. Needs Linux 4.4.

      (move-pin! m \"/sys/fs/bpf/counts\" \"/sys/fs/bpf/counts_old\")"
  ([m to] (lifecycle/move-pin! m nil to))
  ([m from to] (lifecycle/move-pin! m from to)))

(defn unpin!
  "Removes the pins that this handle knows, or the given one, and returns the map.

  A handle knows where it pinned the map and where it was opened from. Of these pins, it leaves
  alone a pin that is gone or that holds another map by now. A given path must be a pin of the map;
  otherwise `:not-found` is thrown. Throws `:permission` if a pin cannot be removed.

      (unpin! m)
      (unpin! m \"/sys/fs/bpf/counts\")"
  ([m] (lifecycle/unpin! m))
  ([m path] (lifecycle/unpin! m path)))

(defn pinned-paths
  "Returns the pins that this handle knows as strings, the latest last.

  A handle knows where it pinned its map and where it was opened from.

      (pinned-paths m) ;=> [\"/sys/fs/bpf/counts\" \"/sys/fs/bpf/agent/counts\"]"
  [m] @(bpf-map/pins-of m))

(defn pinned-at?
  "Returns true if the object pinned at a path is this map.

  Returns false if nothing or another object is pinned there: another process may have removed the
  pin and pinned another map in its place, as an agent does when it restarts. A handle stays with
  the map that it was opened for, and keeps it alive. Throws `:permission` if the pin cannot be
  read, `:invalid-value` for an invalid path. Needs Linux 4.13.

      (pinned-at? m \"/sys/fs/bpf/counts\") ;=> true"
  [m path] (lifecycle/pinned-at? m path))

(defn pinned-path
  "Returns the path where this handle last pinned or opened its map, or nil.

      (pinned-path m) ;=> \"/sys/fs/bpf/counts\""
  [m] (last @(bpf-map/pins-of m)))

;; --- elements

(defn lookup
  "Returns the value of a key, or not-found, by default nil.

  Makes one system call. Options: `:lock`, `:cpu`. `(get m k)` and `(m k)` are the same. An index
  beyond an array's end counts as a missing key, and so does a task or file that is gone. While
  other processes replace values in a hash map, the kernel may miss a key that is there all the time
  (doc/design.md, facts about the kernel).

      (lookup m 8 :none)           ;=> :none
      (lookup m 7 nil {:cpu 0})    ;=> 21"
  ([m k] (bpf-map/lookup m k nil))
  ([m k not-found] (bpf-map/lookup m k not-found))
  ([m k not-found options] (bpf-map/lookup m k not-found options)))

(defn has-key?
  "Returns true if the map has the key.

  Makes one system call, like [[lookup]].

      (has-key? m 7) ;=> true"
  [m k] (not (identical? m (bpf-map/lookup m k m))))

(defn put!
  "Writes an entry, whether or not its key exists, and returns the map.

  Makes one system call. Options: `:lock`, `:cpu`, `:cpus`. A hash map's value is replaced as a
  whole, an array's is written in place: a concurrent reader of a long one may see part of each.
  Throws `:invalid-value` for a key or value that does not fit its type (before the system call),
  `:map-full`, `:out-of-range` for an index, `:permission` on a frozen map, `:read-only` if the
  handle is read-only, `:not-found` for a task or file that is gone.

      (put! m 7 42)
      (put! per-cpu 7 1 {:cpus :all})"
  ([m k v] (element-ops/write m :put! element/any k v nil) m)
  ([m k v options] (element-ops/write m :put! element/any k v options) m))

(defn insert!
  "Writes an entry if its key does not exist; returns true if it was written.

  Every index of an array exists already. With `:cpu`, the values of the other CPUs are zeros.
  Takes the options of [[put!]] and throws the same errors. Throws `:not-supported` for an
  `:lpm-trie` on kernels that would overwrite an existing key: kernels before 6.13, except stable
  releases that have the fix.

      (insert! m 7 42) ;=> false"
  ([m k v] (element-ops/write m :insert! element/no-exist k v nil))
  ([m k v options] (element-ops/write m :insert! element/no-exist k v options)))

(defn replace!
  "Writes an entry if its key exists; returns true if it was written.

  Takes the options of [[put!]] and throws the same errors. Throws `:not-supported` for an
  `:lpm-trie` like [[insert!]]. With `:cpu`, throws `:not-supported` except for a `:percpu-array`
  from Linux 7.0 on: other kernels either do not write the value of one CPU alone, or do not check
  that the key exists when they do.

      (replace! m 9 1) ;=> false"
  ([m k v] (element-ops/write m :replace! element/exist k v nil))
  ([m k v options] (element-ops/write m :replace! element/exist k v options)))

(defn delete!
  "Deletes a key; returns true if it was there.

  Makes one system call. The kernel does not report whether slots of `:devmap`, `:cpumap` and
  `:xskmap` were empty, so the result is true for these. Throws `:permission` on a frozen map,
  `:read-only` if the handle is read-only.

      (delete! m 7) ;=> true"
  [m k] (element-ops/delete! m k))

(defn take!
  "Returns the value of a key and deletes the key atomically.

  Returns not-found, by default nil, if the key is missing. Options: `:lock`. No concurrent write is
  lost between the two steps. A value that its `[:via …]` type cannot decode is not deleted: it is
  first looked up and decoded, in a separate call. Needs Linux 5.14 for hash maps, 6.18 for
  `:stack-trace`. Throws the errors of [[lookup]] and [[delete!]].

      (take! m 7) ;=> 42"
  ([m k] (element-ops/take! m k nil nil))
  ([m k not-found] (element-ops/take! m k not-found nil))
  ([m k not-found options] (element-ops/take! m k not-found options)))

(defn next-key
  "Returns the key after k in the kernel's order, or nil after the last.

  Without k, returns the first key. For a key that does not exist (any more), the kernel returns the
  first key: a loop over next-key may never end while other processes delete keys. Prefer `reduce`.

      (next-key m)   ;=> 7
      (next-key m 7) ;=> nil"
  ([m] (element-ops/next-key m nil true))
  ([m k] (element-ops/next-key m k false)))

;; --- maps without keys

(defn push!
  "Pushes a value to a queue, stack or bloom filter, and returns the map.

  Options: `:overwrite`. Throws `:map-full`; with `:overwrite`, a full map drops its oldest value
  instead. A bloom filter is never full.

      (push! q {:pid 7})"
  ([m v] (element-ops/push! m v nil))
  ([m v options] (element-ops/push! m v options)))

(defn pop!
  "Removes and returns the next value of a queue or stack.

  Returns not-found, by default nil, if it is empty.

      (pop! q :empty) ;=> {:pid 7}"
  ([m] (element-ops/pop! m nil))
  ([m not-found] (element-ops/pop! m not-found)))

(defn peek
  "Returns the next value of a queue or stack without removing it.

  Returns not-found, by default nil, if it is empty.

      (peek q :empty) ;=> :empty"
  ([m] (element-ops/peek m nil))
  ([m not-found] (element-ops/peek m not-found)))

(defn might-contain?
  "Returns true if a value may be in a bloom filter.

  False is certain, true is likely.

      (might-contain? seen \"10.0.0.1\") ;=> false"
  [m v] (element-ops/might-contain? m v))

;; --- many at once

(defn put-all!
  "Writes all entries and returns the number of their keys in the map afterwards.

  `entries` is a map or a sequence of pairs. Options: `:lock`, `:cpus`. A key that occurs twice
  counts once. A map that evicts (`:lru-hash`, `:lru-percpu-hash`) is asked for each key after
  writing: an entry that was evicted, by later entries or by other writers, does not count.

  Writes in batches if the kernel and the map type support them, else one by one. All entries are
  encoded first, in memory as large as they are: if that throws `:invalid-value` (with
  `:bpfmap/index`), nothing was written. Any other error has under `:bpfmap/done` the number of
  entries written, counted from the first.

      (put-all! m {1 10, 2 20}) ;=> 2"
  ([m entries] (batch-ops/put-all! m entries nil))
  ([m entries options] (batch-ops/put-all! m entries options)))

(defn delete-all!
  "Deletes all keys of a collection; returns the number that the kernel deleted.

  Throws the errors of [[put-all!]]. A key that occurs twice counts once. A key that another process
  deletes at the same time counts once or not at all.

      (delete-all! m [1 2 3]) ;=> 2"
  [m ks] (batch-ops/delete-all! m ks))

(defn lookup-all
  "Returns the entries of the given keys that exist, as a map.

  Makes one system call per key. Options: `:lock`, `:cpu`.

      (lookup-all m [1 2 3]) ;=> {1 10, 2 20}"
  ([m ks] (batch-ops/lookup-all m ks nil))
  ([m ks options] (batch-ops/lookup-all m ks options)))

(defn entries
  "Returns all entries as a reducible, like the map itself, but with options.

  It works with `reduce`, `reduce-kv`, `into` and `seq`. Options: `:lock`, `:cpu`. Each reduction
  reads the map again, by chunks, and keeps none of it. Deleting keys while iterating is safe.
  Entries that others write during the iteration are seen or not. A key that stays is seen once,
  except for losses by kernels without batches or locks (doc/design.md). May throw
  `:iteration-aborted`, with the result so far under `:bpfmap/so-far`.

      (into {} (entries per-cpu {:cpu 0})) ;=> {7 21}"
  ([m] (batch-ops/entries m nil))
  ([m options] (batch-ops/entries m options)))

(defn snapshot
  "Returns all entries as a map, in memory as large as they are.

  Takes the options of [[entries]] and throws the same errors.

      (snapshot m) ;=> {1 10, 2 20}"
  ([m] (batch-ops/snapshot m nil))
  ([m options] (batch-ops/snapshot m options)))

(defn count-entries
  "Returns the number of entries, by reading all of them.

  The number of entries of an array is its size, and needs no system call.

      (count-entries m) ;=> 2"
  [m] (batch-ops/count-entries m))

(defn drain!
  "Takes all entries out of the map and returns them as a map.

  The values of a queue or stack are returned as a vector. Options: `:lock`. Many entries are taken
  with each system call if the kernel supports it. An error has the entries taken so far under
  `:bpfmap/entries`. Entries that others add during the call are taken or left, whole. If the
  process is killed, the entries that this call has taken are lost. Hash maps need Linux 5.6 (5.14
  with a `[:via …]` type), `:stack-trace` 6.18.

      (drain! m) ;=> {1 10, 2 20}"
  ([m] (batch-ops/drain! m nil))
  ([m options] (batch-ops/drain! m options)))

(defn drain-into!
  "Reduces over entries and takes each out of the map just before f gets it.

  A queue or stack is reduced over its values. Options: `:lock`. If f throws or returns a `reduced`,
  the entries that it did not get are still in the map. Entries that others add during the call are
  taken or left, whole. If the process is killed, at most the entry that f was about to get is lost.
  Needs Linux 5.14, 6.18 for `:stack-trace`.

      (drain-into! m (fn [sum [_ v]] (+ sum v)) 0) ;=> 30"
  ([m f init] (batch-ops/drain-into! m f init nil))
  ([m f init options] (batch-ops/drain-into! m f init options)))

(defn memory
  "Returns the memory of an array or arena, mapped into this process.

  The result is used with `bpfmap.memory`, as streams and as buffers. The caller must close it.
  Throws `:not-supported` for a map without the flag `:mmapable`, `:busy` for an arena whose address
  is taken.

      (with-open [mem (memory m)] (reduce + mem)) ;=> 42"
  ^Closeable [m] (mapped/memory m))

(defn spec-diff
  "Returns the differences of a map and a spec, or nil if the map matches.

  The result is `{key {:spec x :map y}}`; nil means that the map can be used for the spec. It
  compares what the kernel reports: type, sizes, entries, flags, map-extra and `:freeze`. `m` is an
  open map or a result of [[info]].

      (spec-diff m {:type :hash :key :u32 :value :u64 :max-entries 8})
      ;=> {:max-entries {:spec 8, :map 1024}}"
  [m spec] (lifecycle/difference m spec))

(defn compatible?
  "Returns true if a map can be used for a spec; see [[spec-diff]].

      (compatible? m (spec m)) ;=> true"
  [m spec] (nil? (lifecycle/difference m spec)))

(defn ->bytes
  "Makes an immutable byte view of a byte array, a hexadecimal string or integers.

  Views are keys and values without a type; they are equal by content, see `bpfmap.bytes`. Throws
  `:invalid-value` for anything else.

      (->bytes \"0a 00 00 00\") ;=> #bpfmap/bytes \"0a 00 00 00\""
  [x] (bytes/->bytes x))

(defn bpf-map?
  "Returns true if x is a map of this library, open or closed.

      (bpf-map? m) ;=> true"
  [x] (bpf-map/bpf-map? x))
