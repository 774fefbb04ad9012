(ns bpfmap.core
  "eBPF maps as Clojure data: create, open, read, change and pin them.

      (require '[bpfmap.core :as bpf])

      (with-open [m (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 1024})]
        (bpf/put! m 7 42)
        (m 7)          ;=> 42
        (into {} m))   ;=> {7 42}

  An open map is an identity with collection manners: `get`, calling it, `reduce`, `reduce-kv`,
  `into`, `seq` and `with-open` work; it is not counted, and printing or comparing it never asks
  the kernel. Any number of threads may use it. Per-CPU values are vectors, one element for each
  possible CPU. What a map refers to (maps, programs) goes in open and comes out as a reference
  that can be opened, `{:map-id 12}`. doc/map-types.md has each type.

  Options, a trailing map: `:lock true` holds the value's spin lock, `:cpu n` is about one CPU's
  value, `:cpus :all` writes one value for every CPU, `:overwrite true` pushes to a full map too.
  doc/options.md says which function takes which.

  Errors are `ex-info` with `:bpfmap/error`, see `bpfmap.error`. Any operation may throw
  `:closed`; any that asks the kernel `:permission` and `:kernel`; one that the map's type lacks
  `:not-supported`, with what to do instead; odd options and arguments `:invalid-value`."
  (:refer-clojure :exclude [clone peek pop!])
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
  "Creates a map from a spec and returns it open; with `:pinning :by-name`, opens the one that is
  pinned already.

  The spec is checked as data first (see `bpfmap.spec` for its keys), then the map is created,
  filled with `:contents`, and frozen if `:freeze` is true or its name is that of a constant data
  section (`.rodata`, `.rodata.…` or `.kconfig`); and pinned, last. The map lives until it is
  closed, unless it is pinned or a program uses it. By name means below `:pin-path` of the
  options, /sys/fs/bpf unless given. A map found there is used as it is, and not filled again;
  `:incompatible` with every difference under `:bpfmap/diff` says that it is another one. `:via`
  is as in [[open]]. Throws `:invalid-spec` with everything that is wrong under
  `:bpfmap/problems`, `:invalid-value` for a bad entry of `:contents` (nothing is created then),
  `:not-supported` for a type or flag that this kernel lacks, `:map-full`, `:out-of-range`,
  `:no-memory`, `:permission` without CAP_BPF and without a BPF token. Kernels before 5.11 charge
  maps to RLIMIT_MEMLOCK: where that is reached, bpfmap raises it for this process.

      (create {:name \"counts\" :type :hash :key :u32 :value :u64 :max-entries 1024})
      (create {:name \"flows\" :type :lru-hash … :pinning :by-name} {:pin-path \"/sys/fs/bpf/agent\"})"
  (^Closeable [spec] (lifecycle/create spec nil))
  (^Closeable [spec options] (lifecycle/create spec options)))

(defn open
  "Opens a map that exists: by id, by pin path, by `{:name …}`, by `{:fd …}`, or by a reference,
  `{:map-id …}`.

  A name must be that of one map only. Of a name that the kernel shortens (see
  `bpfmap.spec/kernel-name`), the whole name must be that of the map's variable in its BTF, as
  libbpf loads it, or the file name of a pin of the map. A descriptor is duplicated: yours stays
  yours.

  Options: `:access` (`:read-write`, `:read-only`, `:write-only`); the types `:key` and `:value`,
  else those of the map's BTF, or bytes; `:via :memory`, with which `get`, `put!` and `reduce` of
  an `:mmapable` array do without system calls (doc/memory.md).

  Throws `:not-found` and `:ambiguous` (with `:bpfmap/candidates`, a sequence of `{:id :name :type
  :pinned :held}`, of maps that may be meant by a name), `:not-a-map` for a pinned program or
  link, `:incompatible` for a type of another size, `:invalid-value` for a bad reference or
  option. Opening by id or name needs Linux 4.13 and CAP_SYS_ADMIN; by path, Linux 4.4 and the
  file's permission.

      (open 12), (open \"/sys/fs/bpf/flows\" {:access :read-only})
      (open {:name \"counts\"} {:key :u32 :value :u64})"
  (^Closeable [ref] (lifecycle/open ref nil))
  (^Closeable [ref options] (lifecycle/open ref options)))

(defn close
  "Closes the handle; closing twice is fine. Returns nil.

  Never waits: calls in flight on other threads complete, and the last of them gives the
  descriptor back. The map itself goes once nothing holds it.

      (close m)"
  [m] (bpf-map/close m))

(defn clone
  "Returns a second handle of the same map, which outlives the first and is not pinned.

      (with-open [m2 (clone m)] (m2 7))"
  ^Closeable [m] (lifecycle/clone m))

(defn info
  "Returns what the kernel says of the map now, as a map in the shape of a spec.

  Beside the spec's keys: `:id`, `:frozen`, `:memlock` (bytes charged to the map; both from
  fdinfo, absent where /proc cannot be read; `:id` is nil before Linux 4.13), and where they are
  not zero `:btf-id` with the ids of the types in it, `:ifindex`, `:map-extra`. `:untyped` says
  why the map got no BTF for its types, or why its BTF cannot be used. Flags of the descriptor
  (`:rdonly`, `:wronly`) are not among `:flags`.

      (:memlock (info m)) ;=> 16864"
  [m] (lifecycle/info m))

(defn spec
  "Returns the completed spec of the map; `(create (spec m))` makes a map like it.

  A map that was created here keeps its full name, one that was opened has the kernel's. The
  kernel does not say what a map of maps was made to hold: the `:inner-map` of one that was opened
  is the spec of a map in it, and missing if it is empty or may not be read. Nor does it say on
  which NUMA node a map is.

      (:max-entries (spec m)) ;=> 1024"
  [m] (lifecycle/spec m))

(defn freeze!
  "Makes the map unchangeable from user space, for good and for every process; returns the map.

  Programs still write to it. Freezing a frozen map is fine. Throws `:busy` while somebody has its
  memory mapped writable, `:read-only` through such a handle. Needs Linux 5.2.

      (freeze! m)"
  [m] (lifecycle/freeze! m))

;; --- pins

(defn pin!
  "Pins the map at a path below a BPF file system, so that it outlives the process; returns the map.

  A map may have any number of pins: one that it has already stays, and [[move-pin!]] moves it.
  Pinning at a path where this handle pinned the map before is fine. A path may be a string, a
  `java.io.File` or a `java.nio.file.Path`; doc/pins.md says how names are written that are not
  UTF-8. Throws `:exists` for a target that exists, `:not-bpffs` for a path on another file
  system, `:not-found` for a missing directory, `:invalid-value` for an empty path or a name with
  a dot, `:permission`. Needs Linux 4.4.

      (pin! m \"/sys/fs/bpf/counts\")"
  [m path] (lifecycle/pin! m path))

(defn move-pin!
  "Moves a pin of the map to another path, in one step; returns the map.

  Without `from`, it moves the only pin that this handle knows: where it pinned the map, or opened
  it from. Whoever knows the map by the old path does not find it there any more. Throws `:exists`
  for a target that exists, `:not-found` if the handle has no pin or the map is not pinned at
  `from`, `:ambiguous` if the handle has several, `:invalid-value` for a path on another mount or
  a name with a dot, `:permission`. Needs Linux 4.4.

      (move-pin! m \"/sys/fs/bpf/counts\" \"/sys/fs/bpf/counts_old\")"
  ([m to] (lifecycle/move-pin! m nil to))
  ([m from to] (lifecycle/move-pin! m from to)))

(defn unpin!
  "Removes the pins that this handle knows, or the pin of the map at a path; returns the map.

  A handle knows where it pinned the map and where it was opened from. Of these, a pin that is
  gone, or that holds another map by now, is left alone. A path that is given must be a pin of the
  map, or `:not-found` is thrown. Throws `:permission` if a pin cannot be removed.

      (unpin! m)
      (unpin! m \"/sys/fs/bpf/counts\")"
  ([m] (lifecycle/unpin! m))
  ([m path] (lifecycle/unpin! m path)))

(defn pinned-paths
  "Returns the pins that this handle knows as strings, the latest last: where it pinned its map,
  or opened it from.

      (pinned-paths m) ;=> [\"/sys/fs/bpf/counts\" \"/sys/fs/bpf/agent/counts\"]"
  [m] @(bpf-map/pins-of m))

(defn pinned-at?
  "Returns true if what is pinned at a path is this map, and false if nothing is, or something else.

  Others may remove a pin, and pin another map in its place: an agent that starts anew does. A
  handle stays with the map that it was opened for, and keeps it alive. Throws `:permission` if
  the pin cannot be looked at, `:invalid-value` for a bad path. Needs Linux 4.13.

      (pinned-at? m \"/sys/fs/bpf/counts\") ;=> true"
  [m path] (lifecycle/pinned-at? m path))

(defn pinned-path
  "Returns where this handle last pinned its map, or opened it from, as a string; nil if nowhere.

      (pinned-path m) ;=> \"/sys/fs/bpf/counts\""
  [m] (last @(bpf-map/pins-of m)))

;; --- elements

(defn lookup
  "Returns the value of a key, or nil, or not-found. One system call. Options: `:lock`, `:cpu`.

  `(get m k)` and `(m k)` are the same. An index beyond an array's end is a missing key, and so is
  a task or file that is gone. While others replace values in a hash map, the kernel may miss a
  key that is there all the time (doc/design.md, facts about the kernel).

      (lookup m 8 :none)           ;=> :none
      (lookup m 7 nil {:cpu 0})    ;=> 21"
  ([m k] (bpf-map/lookup m k nil))
  ([m k not-found] (bpf-map/lookup m k not-found))
  ([m k not-found options] (element-ops/lookup m k not-found options)))

(defn has-key?
  "Returns whether the map has the key. One system call, as [[lookup]].

      (has-key? m 7) ;=> true"
  [m k] (not (identical? m (bpf-map/lookup m k m))))

(defn put!
  "Writes the entry, whether or not the key exists; returns the map. One system call. Options:
  `:lock`, `:cpu`, `:cpus`.

  A hash map's value is replaced as a whole, an array's in place: a reader of a long one may see
  part of each. Throws `:invalid-value` for a key or value that does not fit its type (before the
  kernel is asked), `:map-full`, `:out-of-range` for an index, `:permission` on a frozen map,
  `:read-only` through such a handle, `:not-found` for a task or file that is gone.

      (put! m 7 42)
      (put! per-cpu 7 1 {:cpus :all})"
  ([m k v] (element-ops/write m :put! element/any k v nil) m)
  ([m k v options] (element-ops/write m :put! element/any k v options) m))

(defn insert!
  "Writes the entry if its key does not exist, as an array's always does; returns whether it did.
  As [[put!]] otherwise.

  With `:cpu` the values of the other CPUs are zeros. Throws `:not-supported` for an `:lpm-trie`
  on kernels that would write in any case: those before 6.13, but for stable releases that have
  its fix.

      (insert! m 7 42) ;=> false"
  ([m k v] (element-ops/write m :insert! element/no-exist k v nil))
  ([m k v options] (element-ops/write m :insert! element/no-exist k v options)))

(defn replace!
  "Writes the entry if its key exists; returns whether it did. As [[put!]] otherwise.

  Throws `:not-supported` for an `:lpm-trie` as [[insert!]] does; and with `:cpu`, but for a
  `:percpu-array` from Linux 7.0 on: kernels either do not write the value of one CPU alone, or do
  not look whether the key exists when they do.

      (replace! m 9 1) ;=> false"
  ([m k v] (element-ops/write m :replace! element/exist k v nil))
  ([m k v options] (element-ops/write m :replace! element/exist k v options)))

(defn delete!
  "Deletes the key; returns whether it was there. One system call.

  Of `:devmap`, `:cpumap` and `:xskmap` slots the kernel does not say, and the answer is true.
  Throws `:permission` on a frozen map, `:read-only` through such a handle.

      (delete! m 7) ;=> true"
  [m k] (element-ops/delete! m k))

(defn take!
  "Returns the value of a key and deletes it in the same step; nil, or not-found, when it is
  missing. Options: `:lock`.

  No write of another is lost between the two. A value that its `[:via …]` type cannot decode is
  not deleted: it is looked up and decoded first, in a call of its own. Needs Linux 5.14 for hash
  maps, 6.18 for `:stack-trace`. Throws what [[lookup]] and [[delete!]] throw.

      (take! m 7) ;=> 42"
  ([m k] (element-ops/take! m k nil nil))
  ([m k not-found] (element-ops/take! m k not-found nil))
  ([m k not-found options] (element-ops/take! m k not-found options)))

(defn next-key
  "Returns the key after k in the kernel's order, or the first one; nil after the last.

  The kernel answers for a key that does not exist (any more) with the first one: a loop over
  next-key need not end while others delete. `reduce` does better.

      (next-key m)   ;=> 7
      (next-key m 7) ;=> nil"
  ([m] (element-ops/next-key m nil true))
  ([m k] (element-ops/next-key m k false)))

;; --- maps without keys

(defn push!
  "Adds a value to a queue, a stack or a bloom filter; returns the map. Options: `:overwrite`.

  Throws `:map-full`, unless the oldest value may go; a bloom filter is never full.

      (push! q {:pid 7})"
  ([m v] (element-ops/push! m v nil))
  ([m v options] (element-ops/push! m v options)))

(defn pop!
  "Returns the next value of a queue or stack and removes it; nil, or not-found, when there is none.

      (pop! q :empty) ;=> {:pid 7}"
  ([m] (element-ops/pop! m nil))
  ([m not-found] (element-ops/pop! m not-found)))

(defn peek
  "Returns the next value of a queue or stack, which stays; nil, or not-found, when there is none.

      (peek q :empty) ;=> :empty"
  ([m] (element-ops/peek m nil))
  ([m not-found] (element-ops/peek m not-found)))

(defn might-contain?
  "Returns whether a value may be in a bloom filter: false is certain, true is likely.

      (might-contain? seen \"10.0.0.1\") ;=> false"
  [m v] (element-ops/might-contain? m v))

;; --- many at once

(defn put-all!
  "Writes all entries, of a map or pairs; returns how many of their keys the map holds afterwards.
  Options: `:lock`, `:cpus`.

  A key that is given twice counts once. A map that evicts (`:lru-hash`, `:lru-percpu-hash`) is
  asked for each key after the writing: one that was evicted, by the entries after it or by
  others, does not count.

  Many with each system call where kernel and type have batches, else one by one. All entries are
  encoded first, in memory as large as they are: `:invalid-value` (with `:bpfmap/index`) means
  that nothing was written. Any other error says under `:bpfmap/done` how many of the entries
  were, from the first on.

      (put-all! m {1 10, 2 20}) ;=> 2"
  ([m entries] (batch-ops/put-all! m entries nil))
  ([m entries options] (batch-ops/put-all! m entries options)))

(defn delete-all!
  "Deletes all keys of a collection; returns how many were there, by the kernel's answers. Errors
  are those of [[put-all!]].

  A key that is given twice, or that others delete meanwhile, counts once or not at all.

      (delete-all! m [1 2 3]) ;=> 2"
  [m ks] (batch-ops/delete-all! m ks))

(defn lookup-all
  "Returns the entries of those keys that are there, as a map; a system call for each. Options:
  `:lock`, `:cpu`.

      (lookup-all m [1 2 3]) ;=> {1 10, 2 20}"
  ([m ks] (batch-ops/lookup-all m ks nil))
  ([m ks options] (batch-ops/lookup-all m ks options)))

(defn entries
  "Returns all entries as something to `reduce`, `reduce-kv`, `into` or `seq`, as the map itself
  is. Options: `:lock`, `:cpu`.

  Each reduction reads the map anew, by chunks, and holds none of it. Deleting what one sees is
  safe. What others write meanwhile is seen or not; a key that stays is seen once, but for what
  the kernel loses where it has no batches or no lock (doc/design.md). It may throw
  `:iteration-aborted`, with what it came to under `:bpfmap/so-far`.

      (into {} (entries per-cpu {:cpu 0})) ;=> {7 21}"
  ([m] (batch-ops/entries m nil))
  ([m options] (batch-ops/entries m options)))

(defn snapshot
  "Returns all entries as a map, in memory as large as they are. Options and errors are those of
  [[entries]].

      (snapshot m) ;=> {1 10, 2 20}"
  ([m] (batch-ops/snapshot m nil))
  ([m options] (batch-ops/snapshot m options)))

(defn count-entries
  "Returns how many entries there are, by reading all of them; of an array, without asking, its
  size.

      (count-entries m) ;=> 2"
  [m] (batch-ops/count-entries m))

(defn drain!
  "Takes all entries out of the map and returns them as a map, or the values of a queue or stack
  as a vector. Options: `:lock`.

  Many are taken with each system call if the kernel supports it. An error has the entries taken
  so far under `:bpfmap/entries`. Entries that others add during the call are taken or left, whole.
  If the process is killed, the entries that this call has taken are lost. Hash maps need Linux 5.6
  (5.14 with a `[:via …]` type), `:stack-trace` 6.18.

      (drain! m) ;=> {1 10, 2 20}"
  ([m] (batch-ops/drain! m nil))
  ([m options] (batch-ops/drain! m options)))

(defn drain-into!
  "Reduces over entries (values of a queue or stack) and takes each out of the map just before f
  gets it. Options: `:lock`.

  If f throws or returns a `reduced`, the entries that it did not get are still in the map. Entries
  that others add during the call are taken or left, whole. If the process is killed, at most the
  entry that f was about to get is lost. Needs Linux 5.14, 6.18 for `:stack-trace`.

      (drain-into! m (fn [sum [_ v]] (+ sum v)) 0) ;=> 30"
  ([m f init] (batch-ops/drain-into! m f init nil))
  ([m f init options] (batch-ops/drain-into! m f init options)))

(defn memory
  "Returns the memory of an array or arena, mapped: bytes, for `bpfmap.memory`, streams and
  buffers. Close it in the end.

  Throws `:not-supported` for a map without the flag `:mmapable`, `:busy` for an arena whose place
  is taken.

      (with-open [mem (memory m)] (reduce + mem)) ;=> 42"
  ^Closeable [m] (mapped/memory m))

(defn spec-diff
  "Returns where a spec and a map differ, as `{key {:spec x :map y}}`; nil where the map can be
  used for the spec.

  Compared is what the kernel reports: type, sizes, entries, flags, map-extra, `:freeze`. `m` is
  open, or what `info` returned.

      (spec-diff {:type :hash :key :u32 :value :u64 :max-entries 8} m) ;=> {:max-entries {:spec 8, :map 1024}}"
  [spec m] (lifecycle/difference spec m))

(defn compatible?
  "Returns whether a map can be used for a spec; see [[spec-diff]].

      (compatible? (spec m) m) ;=> true"
  [spec m] (nil? (lifecycle/difference spec m)))

(defn ->bytes
  "Makes an immutable byte view of a byte array, a hexadecimal string or integers: a key or value
  without a type.

  Throws `:invalid-value` for anything else. Views are equal by content; see `bpfmap.bytes`.

      (->bytes \"0a 00 00 00\") ;=> #bpfmap/bytes \"0a 00 00 00\""
  [x] (bytes/->bytes x))

(defn bpf-map?
  "Returns whether x is a map of this library, open or closed.

      (bpf-map? m) ;=> true"
  [x] (bpf-map/bpf-map? x))
