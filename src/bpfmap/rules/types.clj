(ns bpfmap.rules.types
  "A row of rules for every map type.

  Sources: the numbers and first releases are those of the UAPI header
  `linux/bpf.h` and of the kernel's history. What sizes, flags and operations a
  type takes was measured with system calls on Linux 6.18, and of `:insn-array` and
  `:rhash`, which that kernel lacks, on 7.2."
  (:require [clojure.set :as set]))

(set! *warn-on-reflection* true)

;; ---------------------------------------------------------------- what rows share

(def ^:private reading #{:lookup :next-key :reduce})
(def ^:private any-way #{:put! :insert! :replace!})
(def ^:private hash-ops (set/union reading any-way #{:delete! :take! :drain!}))
(def ^:private slot-ops (set/union reading #{:put! :delete!}))

(def ^:private access #{:numa-node :rdonly :wronly})
(def ^:private for-programs #{:rdonly-prog :wronly-prog})

(def ^:private largest 0xffffffff)
(def ^:private any-size [1 largest])
(def ^:private per-cpu-size
  "A value of a per-CPU map at most: PCPU_MIN_UNIT_SIZE."
  [1 32768])

(def ^:private index
  {:key-size [4 4] :key :u32 :max-entries any-size})

(def ^:private always-there
  "Why an array's entries do not go away."
  {:delete! "every index of an array always exists; put! a zero value instead"
   :take! "every index of an array always exists; lookup, then put! a zero value"
   :drain! "every index of an array always exists; snapshot it, then put-all! zeros"})

(def ^:private of-slots
  {:insert! "the kernel only overwrites here; put! it, after has-key? if that matters"
   :replace! "the kernel only overwrites here; put! it, after has-key? if that matters"
   :take! "the kernel does not do both in one step here; lookup, then delete!"
   :drain! "the kernel does not read and delete in one step here; snapshot, then delete-all!"})

(def ^:private write-only-slots
  {:lookup "the kernel does not tell what is in it; next-key gives the indices"
   :reduce "the kernel does not tell what is in it; next-key gives the indices"})

(def ^:private keyless
  {:key-size [0 0] :value-size any-size :max-entries any-size
   :flags (into access for-programs) :btf :none :freeze? true
   :ops #{:push! :pop! :peek :drain!}
   :full #{:E2BIG}
   :instead {:else "it has no keys; use push!, pop! and peek"}})

(def ^:private storage-size
  "A value that hangs on an object: 64 KiB less the kernel's own header, which has 128 bytes on 6.18."
  [1 65535])

(def ^:private local-storage
  "Memory that hangs on a kernel object, and goes with it."
  {:key-size [4 4] :key :u32 :value-size storage-size :max-entries [0 0]
   :flags #{:no-prealloc :clone} :requires #{:no-prealloc} :btf :required :freeze? true :lock? true
   :ops (conj any-way :lookup :delete!)
   :instead {:take! "the kernel does not do both in one step here; lookup, then delete!"
             :drain! "the kernel cannot list it; lookup and delete! the objects that you know"
             :next-key "the kernel cannot list it; look up the objects that you know"
             :reduce "the kernel cannot list it; look up the objects that you know"}})

(def ^:private sockets
  {:values {4 :u32, 8 :u64} :reads-at 8
   :refers {:value {:in :socket :out :socket-cookie}}
   :ops (into reading (conj any-way :delete!))
   :instead (select-keys of-slots [:take! :drain!])})

(def ^:private cgroup-local
  {:keys {8 :u64, 16 [:struct [:cgroup-id :u64] [:attach-type :u32]]} :max-entries [0 0]
   :flags (into access for-programs) :freeze? true
   :long-values-since "5.15" ; bpf_cgroup_storage_map_alloc in kernel/bpf/local_storage.c
   ;; cgroup_storage_get_next_key there took the head of the list for one more element. Seen on 5.10; stable releases have the fix.
   :names-absent? true
   :ops (conj reading :replace!)
   ;; The kernel writes with BPF_ANY too, but only what is there.
   :instead {:put! "the kernel makes an element for each cgroup that a program is attached to; replace! changes it"
             :insert! "the kernel makes an element for each cgroup that a program is attached to; replace! changes it"
             :delete! "an element goes when its program is detached from the cgroup"
             :take! "an element goes when its program is detached from the cgroup"
             :drain! "an element goes when its program is detached from the cgroup"}})

(def ^:private buffer
  {:entries "its size in bytes" :key-size [0 0] :value-size [0 0] :btf :none :freeze? true :ops #{} :max-entries any-size
   :instead {:else "it has no entries; programs and user space share its memory"}})

(def ^:private array-row
  (merge index
         {:batch-since "5.6" :value-size any-size :freeze? true :every-index? true :full #{:E2BIG}
          :ops (into reading any-way) :batch #{:read :write} :instead always-there}))

(def ^:private lru
  "What is never full. Lists for each CPU have the same number of entries: htab_map_alloc in kernel/bpf/hashtab.c."
  {:full #{} :evicts? true :rounded {:no-common-lru :cpus}})

(def ^:private hash-row
  {:key-size any-size :value-size any-size :max-entries any-size :freeze? true :full #{:E2BIG}
   :ops hash-ops :batch #{:read :take :write :delete} :batch-since "5.6"})

(def ^:private slots
  (merge index
         {:values {4 :u32} :flags access :freeze? true :ops slot-ops :full #{:E2BIG} :instead of-slots :index? true}))

;; ---------------------------------------------------------------- the rows

(def types
  "Map types by name.

  | key                                   | what it holds                                                        |
  |---------------------------------------|----------------------------------------------------------------------|
  | `:number` `:since`                    | the kernel's number, and the first Linux release that has it         |
  | `:key-size` `:value-size` `:max-entries` | `[least most]`, or a set; bytes and entries                       |
  | `:key` `:keys` `:values`              | the types that are taken where none is given; the latter by size     |
  | `:entries`                            | what `:max-entries` is, where it is not the number of entries        |
  | `:rounded`                            | how `:max-entries` is completed, by the flag that asks for it, nil for always: to powers of two of `:pages`, to a multiple of the `:cpus` |
  | `:clamped`                            | what `:max-entries` is cut to: `:cpus`                               |
  | `:flags` `:requires` `:added`         | create flags accepted, needed, and added by the kernel               |
  | `:btf`                                | `:none`, `:required`, `:index` where keys must be plain integers, `:value` where only the value has a type, `:kernel` where that is a struct of the kernel's: a spec needs `:struct-ops` |
  | `:ops` `:instead`                     | what user space can do with elements, and what to do instead         |
  | `:ops-since`                          | the first releases of operations that came later than the type       |
  | `:conditional-since`                  | the first release whose inserts and replacements look whether the key exists, where older ones do not |
  | `:batch`                              | which of `:read :take :write :delete` the kernel does many at a time |
  | `:batch-since`                        | since when it does                                                   |
  | `:per-cpu?`                           | a value for each possible CPU, on strides of eight bytes             |
  | `:refers`                             | keys or values that are descriptors going in; what comes out         |
  | `:full`                               | how the kernel says that there is no room, or no such index          |
  | `:every-index?`                       | every index exists always                                            |
  | `:one-index?`                         | 0 is the only index, and the kernel's delete does not look at the key |
  | `:index?`                             | keys are indices, and a slot may be empty                            |
  | `:more-places?`                       | it has room for a power of two of keys, though it reports less       |
  | `:value-multiple`                     | what value sizes are multiples of, in bytes, by the flag that makes them so, nil for all others |
  | `:element` `:elements`                | of a value that is an array: the type of an element, by flag in the same way, and how many there are where nothing is said |
  | `:evicts?`                            | the oldest entries make room for new ones                                    |
  | `:order`                              | `:index` or `:prefix`, where keys that come and go are gone through in an order that can be told from them |
  | `:reads-at`                           | the value size that reading needs                                    |
  | `:lock?`                              | values may have a `:spin-lock`                                       |
  | `:long-values-since`                  | the first release whose values may be longer than a page             |
  | `:names-absent?`                      | older kernels name a key that is not there as the one after the last |
  | `:inner?`                             | holds maps: a spec needs `:inner-map`                                |
  | `:not-inside?`                        | cannot be the inner map of another                                   |
  | `:freeze?` `:mmap`                    | whether it can be frozen; `:always` or the flag that lets it be mapped |
  | `:extra` `:most-extra`                | what `:map-extra` is, and its largest number                         |"
  {:hash
   (merge hash-row {:number 1 :since "3.19" :lock? true :flags (into access (into for-programs [:no-prealloc :zero-seed]))})

   :array
   (merge array-row {:number 2 :since "3.19" :btf :index :lock? true :mmap :mmapable
                     :flags (into access (into for-programs [:mmapable :inner-map]))})

   :prog-array
   (merge slots {:number 3 :since "4.2" :refers {:value {:in :program :out :program-id}} :not-inside? true})

   :perf-event-array
   (merge slots {:number 4 :since "4.3" :btf :none :clamped :cpus
                 :refers {:value {:in :perf-event}}
                 :flags (conj access :preserve-elems)
                 :ops #{:put! :delete! :next-key}
                 :instead (merge of-slots write-only-slots)})

   :percpu-hash
   (merge hash-row {:number 5 :since "4.6" :value-size per-cpu-size :per-cpu? true
                    :flags (into for-programs [:no-prealloc :rdonly :wronly :zero-seed])})

   :percpu-array
   (merge array-row {:number 6 :since "4.6" :batch-since "5.13" :btf :index :value-size per-cpu-size :per-cpu? true
                     :flags (into for-programs [:rdonly :wronly])})

   :stack-trace
   (merge index {:number 7 :since "4.6" :btf :none :freeze? true :index? true :order :index
                 :value-size [8 20971520] ; as many frames as the sysctl kernel.perf_event_max_stack may ever allow
                 :value-multiple {nil 8, :stack-build-id 32}
                 :elements 127 ; perf_event_max_stack, unless somebody changed that sysctl
                 :element {nil :u64
                           :stack-build-id [:struct [:status [:enum :s32 {:empty 0 :valid 1 :ip 2}]] [:build-id [:bytes 20]] [:offset :u64]]}
                 ;; The kernel rounds up, and does not say so: stack_map_alloc in kernel/bpf/stackmap.c.
                 :more-places? true
                 :flags (conj access :stack-build-id)
                 :refers {:value {:out :stack}}
                 :ops (conj reading :delete! :take! :drain!)
                 :ops-since {:take! "6.18" :drain! "6.18"}
                 :instead {:put! "only a program's bpf_get_stackid fills it"
                           :insert! "only a program's bpf_get_stackid fills it"
                           :replace! "only a program's bpf_get_stackid fills it"}})

   :cgroup-array
   (merge slots {:number 8 :since "4.8" :btf :none
                 :refers {:value {:in :cgroup}}
                 :ops #{:put! :delete! :next-key}
                 :instead (merge of-slots write-only-slots)})

   :lru-hash
   (merge hash-row lru {:number 9 :since "4.10" :flags (into access (into for-programs [:no-common-lru :zero-seed]))})

   :lru-percpu-hash
   (merge hash-row lru {:number 10 :since "4.10" :value-size per-cpu-size :per-cpu? true
                        :flags (into for-programs [:no-common-lru :rdonly :wronly :zero-seed])})

   :lpm-trie
   (merge hash-row {:number 11 :since "4.11" :key-size [5 260] :full #{:ENOSPC} :order :prefix
                    :flags (into access (conj for-programs :no-prealloc)) :requires #{:no-prealloc}
                    :ops (disj hash-ops :take! :drain!) :batch #{:read :write :delete} :batch-since "5.13"
                    ;; trie_update_elem in kernel/bpf/lpm_trie.c, or a stable release that has its fix.
                    :conditional-since "6.13"
                    :instead (select-keys of-slots [:take! :drain!])})

   :array-of-maps
   (merge slots {:number 12 :since "4.12" :btf :none :inner? true :not-inside? true
                 :refers {:value {:in :map :out :map-id}}
                 :batch #{:read :write} :batch-since "5.19"
                 ;; Measured there. Older kernels try an empty slot again and again, and give up with EINTR.
                 :batch-read-since "6.18"})

   :hash-of-maps
   (merge hash-row {:number 13 :since "4.12" :btf :none :inner? true :not-inside? true :value-size nil :values {4 :u32}
                    :refers {:value {:in :map :out :map-id}}
                    :flags (into access (into for-programs [:no-prealloc :zero-seed]))
                    :ops (disj hash-ops :take!) :ops-since {:drain! "5.19"} :batch-since "5.19"
                    :drains :whole ; by batches, which cannot be stopped half-way
                    :instead (select-keys of-slots [:take!])})

   :devmap
   (merge slots {:number 14 :since "4.14" :btf :none :added #{:rdonly-prog}
                 :values {4 :u32, 8 [:struct [:ifindex :u32] [:program :u32]]}
                 :refers {:value {:in :program-field :out :program-field}}
                 ;; The kernel takes every index for one that exists, though it may be empty: it refuses to insert
                 ;; and replaces what is not there. What would lie is denied.
                 :instead of-slots})

   :sockmap
   (merge slots sockets {:number 15 :since "4.14" :btf :none})

   :cpumap
   (merge slots {:number 16 :since "4.15" :btf :none :clamped :cpus
                 :values {4 :u32, 8 [:struct [:qsize :u32] [:program :u32]]}
                 :refers {:value {:in :program-field :out :program-field}}
                 :flags #{:numa-node} ; and as :devmap
                 :instead of-slots})

   :xskmap
   (merge slots {:number 17 :since "4.18" :btf :none
                 :refers {:value {:in :xdp-socket}}
                 :ops (conj any-way :delete! :next-key)
                 :instead (merge (select-keys of-slots [:take! :drain!]) write-only-slots)})

   :sockhash
   (merge sockets {:number 18 :since "4.18" :btf :none :key-size [1 512] :max-entries any-size :freeze? true
                   :full #{:E2BIG} :flags access})

   :cgroup-storage
   (merge cgroup-local {:number 19 :since "4.19" :value-size storage-size :lock? true :not-inside? true})

   :reuseport-sockarray
   (merge slots sockets {:number 20 :since "4.19" :flags (into access for-programs)})

   :percpu-cgroup-storage
   (merge cgroup-local {:number 21 :since "4.20" :value-size per-cpu-size :per-cpu? true :not-inside? true})

   :queue
   (merge keyless {:number 22 :since "4.20"})

   :stack
   (merge keyless {:number 23 :since "4.20"})

   :sk-storage
   (merge local-storage {:number 24 :since "5.2" :refers {:key {:in :socket}}})

   :devmap-hash
   (merge hash-row {:number 25 :since "5.4" :btf :none :added #{:rdonly-prog} :key-size [4 4] :key :u32
                    :value-size nil :values {4 :u32, 8 [:struct [:ifindex :u32] [:program :u32]]}
                    :refers {:value {:in :program-field :out :program-field}}
                    :flags access :batch #{} :batch-since nil
                    ;; The kernel "replaces" what is not there too.
                    :ops (disj hash-ops :replace! :take! :drain!)
                    :instead (select-keys of-slots [:replace! :take! :drain!])})

   :struct-ops
   (merge index
          {:number 26 :since "5.6" :btf :kernel :value-size any-size :max-entries [1 1] :every-index? true :one-index? true
           :flags #{:link :vtype-btf-obj-fd} :not-inside? true
           :refers {:value {:in :functions :out :functions}}
           :ops slot-ops
           :instead (merge (select-keys of-slots [:take! :drain!])
                           {:freeze! "its value is registered once, and cannot be changed"
                            :insert! "writing registers the value, once in the life of the map; put! it"
                            :replace! "what is registered cannot be changed; delete! it, and put! the new value into a new map"})})

   :ringbuf
   (merge buffer {:number 27 :since "5.8" :rounded {nil :pages} :max-entries [1 0x80000000] :flags #{:numa-node :rb-overwrite} :mmap :always})

   :inode-storage
   (merge local-storage {:number 28 :since "5.10" :refers {:key {:in :inode}}})

   :task-storage
   (merge local-storage {:number 29 :since "5.11" :refers {:key {:in :task}}})

   :bloom-filter
   (merge keyless {:number 30 :since "5.16" :btf :value :flags (into access (conj for-programs :zero-seed))
                   :full #{} :extra "how many hash functions, 0 for the kernel's choice, at most 15" :most-extra 15
                   :ops #{:push! :might-contain?}
                   :instead {:else "it only knows whether a value may be in it; use push! and might-contain?"}})

   :user-ringbuf
   (merge buffer {:number 31 :since "6.1" :rounded {nil :pages} :max-entries [1 0x80000000] :flags #{:numa-node} :mmap :always})

   :cgrp-storage
   (merge local-storage {:number 32 :since "6.2" :refers {:key {:in :cgroup}}})

   :arena
   (merge buffer {:number 33 :since "6.9" :entries "its size in pages" :flags #{:mmapable :segv-on-fault :no-user-conv} :requires #{:mmapable}
                  :max-entries [1 0x100000] ; pages of 4 KiB: 4 GiB
                  :mmap :mmapable :extra "the address at which it is mapped"})

   :insn-array
   (merge index {:number 34 :since "6.19" :btf :none :flags #{} :added #{:rdonly-prog} :full #{:E2BIG} :every-index? true :not-inside? true
                 :freeze? true ; a program takes only one that is frozen: bpf_insn_array_init in kernel/bpf/bpf_insn_array.c
                 :values {16 [:struct [:orig-off :u32] [:xlated-off :u32] [:jitted-off :u32] [:pad :u32]]}
                 :ops (into reading any-way)
                 :instead always-there})

   :rhash
   (merge hash-row {:number 35 :since "7.2" :key-size [1 65535] :max-entries [1 0x80000000] :lock? true
                    :flags (into access (conj for-programs :no-prealloc)) :requires #{:no-prealloc}
                    :extra "how many entries to make room for at first, at most 65535" :most-extra 65535})})
