(ns bpfmap.sim
  "Creates maps that are kept in this process, for tests without a kernel.

      (require '[bpfmap.core :as bpf] '[bpfmap.sim :as sim])

      (with-open [m (sim/create {:type :hash :key :u32 :value :u64 :max-entries 2})]
        (bpf/put! m 7 42)
        (into {} m))   ;=> {7 42}

  A simulated map is an open map of `bpfmap.core`: it has the same interfaces, types, codecs, rules
  and errors, because only the system call is replaced. It needs neither Linux nor privileges. No
  program can use it, no other process sees it, and it cannot be pinned. doc/testing.md shows the
  test of a service, and lists the differences from maps of the kernel."
  (:require [bpfmap.impl.events.emitter :as emitter]
            [bpfmap.impl.map.lifecycle :as lifecycle])
  (:import (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn create
  "Creates a simulated map from a spec and returns it open.

  Takes the specs of `bpfmap.core/create`, for the types `:hash`, `:percpu-hash`, `:lru-hash`,
  `:lru-percpu-hash`, `:rhash`, `:array`, `:percpu-array`, `:lpm-trie`, `:queue`, `:stack`,
  `:bloom-filter`, `:array-of-maps`, `:hash-of-maps` and `:ringbuf`. The map lives
  until it is closed and no map of maps holds it; until then, `(bpfmap.core/open {:map-id id})` opens it too. `bpfmap.core/info`
  has `:simulated true` for it.

  Options:

  - `:cpus`: the number of CPUs, each with a value in a per-CPU map; default: 2
  - `:mapped` and `:pin-path`: as for `bpfmap.core/create`; a spec with `:pinning` is refused

  Throws `:invalid-spec` and `:invalid-value` as `bpfmap.core/create` does, and `:not-supported` for
  any other type, for `:pinning` and for the flag `:rb-overwrite`.

      (create {:type :percpu-array :value :u64 :max-entries 8} {:cpus 4})"
  (^Closeable [spec] (lifecycle/simulate spec nil))
  (^Closeable [spec options] (lifecycle/simulate spec options)))

(defn emit!
  "Writes a record to a simulated ring buffer, in place of a BPF program.

  `record` is a value of the type, or bytes: a byte array or a byte view. Returns true, or false if
  the ring has no room, in which case a program drops the record. A reader of `bpfmap.events` reads
  what was emitted.

  Options:

  - `:type`: the type of the record; default: `:record-type` of the spec
  - `:types`: named types that it uses

  Throws `:invalid-value` for a record that does not fit, `:not-supported` for any other map, and
  `:closed`.

      (emit! ring {:pid 7} {:type [:struct [:pid :u32]]}) ;=> true"
  ([ring record] (emitter/emit! ring record nil))
  ([ring record options] (emitter/emit! ring record options)))
