(ns ^:no-doc bpfmap.impl.map-types
  "Map types as data, one row for each, and functions on rows."
  (:require [clojure.set :as set]))

(set! *warn-on-reflection* true)

;; --- the rows

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
  "The sizes of a value of a per-CPU map: at most PCPU_MIN_UNIT_SIZE."
  [1 32768])

(def ^:private index
  {:key-size [4 4] :key :u32 :max-entries any-size})

(def ^:private always-there
  "Alternatives for maps whose indices always exist."
  {:delete! "every index of an array always exists; put! a zero value instead"
   :take! "every index of an array always exists; lookup, then put! a zero value"
   :drain! "every index of an array always exists; snapshot it, then put-all! zeros"})

(def ^:private of-slots
  {:insert! "the kernel only overwrites here; put! it, after has-key? if that matters"
   :replace! "the kernel only overwrites here; put! it, after has-key? if that matters"
   :take! "the kernel does not do both in one step here; lookup, then delete!"
   :drain! "the kernel does not read and delete in one step here; snapshot, then delete-all!"})

(def ^:private write-only-slots
  {:lookup "the kernel does not return its values; next-key returns the indices"
   :reduce "the kernel does not return its values; next-key returns the indices"})

(def ^:private keyless
  {:key-size [0 0] :value-size any-size :max-entries any-size
   :flags (into access for-programs) :btf :none :freeze true
   :ops #{:push! :pop! :peek :drain!}
   :full #{:E2BIG}
   :instead {:else "it has no keys; use push!, pop! and peek"}})

(def ^:private storage-size
  "The sizes of a value that is attached to an object.

  At most 64 KiB minus the kernel's own header, which has 128 bytes on 6.18."
  [1 65535])

(def ^:private local-storage
  "Maps whose values are attached to kernel objects, and freed with them."
  {:key-size [4 4] :key :u32 :value-size storage-size :max-entries [0 0]
   :flags #{:no-prealloc :clone} :requires #{:no-prealloc} :btf :required :freeze true :lock true
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
   :flags (into access for-programs) :freeze true
   :long-values-since "5.15" ; bpf_cgroup_storage_map_alloc in kernel/bpf/local_storage.c
   ;; cgroup_storage_get_next_key there took the head of the list for one more element. Seen on
   ;; 5.10; stable releases have the fix.
   :names-absent true
   :ops (conj reading :replace!)
   ;; The kernel accepts BPF_ANY too, but only writes elements that exist.
   :instead {:put! "the kernel makes an element for each cgroup that a program is attached to; replace! changes it"
             :insert! "the kernel makes an element for each cgroup that a program is attached to; replace! changes it"
             :delete! "an element goes when its program is detached from the cgroup"
             :take! "an element goes when its program is detached from the cgroup"
             :drain! "an element goes when its program is detached from the cgroup"}})

(def ^:private buffer
  {:entries "its size in bytes" :key-size [0 0] :value-size [0 0] :btf :none :freeze true :ops #{}
   :max-entries any-size
   :instead {:else "it has no entries; programs and user space share its memory"}})

(def ^:private array-row
  (merge index
         {:batch-since "5.6" :value-size any-size :freeze true :every-index true :full #{:E2BIG}
          :ops (into reading any-way) :batch #{:read :write} :instead always-there}))

(def ^:private lru
  "Maps that are never full.

  Lists for each CPU have the same number of entries: htab_map_alloc in kernel/bpf/hashtab.c."
  {:full #{} :evicts true :rounded {:no-common-lru :cpus}})

(def ^:private hash-row
  {:key-size any-size :value-size any-size :max-entries any-size :freeze true :full #{:E2BIG}
   :ops hash-ops :batch #{:read :take :write :delete} :batch-since "5.6"})

(def ^:private slots
  (merge index
         {:values {4 :u32} :flags access :freeze true :ops slot-ops :full #{:E2BIG}
          :instead of-slots :index true}))

;; ---------------------------------------------------------------- the rows

(def types
  "Map types by name.

  | key                                   | meaning                                                              |
  |---------------------------------------|----------------------------------------------------------------------|
  | `:number` `:since`                    | the kernel's number, and the first Linux release that has it         |
  | `:key-size` `:value-size` `:max-entries` | `[least most]`, or a set; bytes and entries                       |
  | `:key` `:keys` `:values`              | the default types; the last two by size                              |
  | `:entries`                            | the meaning of `:max-entries`, if it is not the number of entries    |
  | `:rounded`                            | how `:max-entries` is rounded, by flag, nil for always: to powers of two of `:pages`, to a multiple of the `:cpus` |
  | `:clamped`                            | the limit that `:max-entries` is cut to: `:cpus`                     |
  | `:flags` `:requires` `:added`         | create flags accepted, required, and added by the kernel             |
  | `:btf`                                | `:none`, `:required`, `:index` if keys must be plain integers, `:value` if only the value has a type, `:kernel` if that is a kernel struct: a spec requires `:struct-ops` |
  | `:ops` `:instead`                     | the operations of user space on elements, and alternatives           |
  | `:ops-since`                          | the first releases of operations that came later than the type       |
  | `:conditional-since`                  | the first release whose inserts and replacements check that the key exists, if older ones do not |
  | `:batch`                              | the operations of `:read :take :write :delete` that have batches     |
  | `:batch-since`                        | the first release with batches                                       |
  | `:per-cpu`                           | a value for each possible CPU, on strides of eight bytes             |
  | `:refers`                             | keys or values that are written as descriptors; how they are read    |
  | `:full`                               | the errnos for a full map or an invalid index                        |
  | `:every-index`                       | every index exists always                                            |
  | `:one-index`                         | 0 is the only index, and the kernel's delete ignores the key         |
  | `:index`                              | keys are indices, and a slot may be empty                            |
  | `:more-places`                       | it can hold a power of two of keys, though it reports less           |
  | `:value-multiple`                     | the number that value sizes are multiples of, in bytes, by flag, nil for all others |
  | `:element` `:elements`                | of a value that is an array: the type of an element, by flag in the same way, and the default number of elements |
  | `:evicts`                            | the oldest entries make room for new ones                                    |
  | `:order`                              | `:index` or `:prefix`, if keys that change are iterated in an order that follows from them |
  | `:reads-at`                           | the value size that reading requires                                 |
  | `:lock`                               | values may have a `:spin-lock`                                       |
  | `:long-values-since`                  | the first release whose values may be longer than a page             |
  | `:names-absent`                       | older kernels return a missing key after the last one                |
  | `:inner`                              | holds maps: a spec requires `:inner-map`                             |
  | `:not-inside`                        | cannot be the inner map of another                                   |
  | `:freeze` `:mmap`                     | true if it can be frozen; `:always` or the flag with which it can be mapped |
  | `:extra` `:most-extra`                | the meaning of `:map-extra`, and its largest number                  |"
  {:hash
   (merge hash-row
          {:number 1 :since "3.19" :lock true
           :flags (into access (into for-programs [:no-prealloc :zero-seed]))})

   :array
   (merge array-row {:number 2 :since "3.19" :btf :index :lock true :mmap :mmapable
                     :flags (into access (into for-programs [:mmapable :inner-map]))})

   :prog-array
   (merge slots
          {:number 3 :since "4.2" :refers {:value {:in :program :out :program-id}}
           :not-inside true})

   :perf-event-array
   (merge slots {:number 4 :since "4.3" :btf :none :clamped :cpus
                 :refers {:value {:in :perf-event}}
                 :flags (conj access :preserve-elems)
                 :ops #{:put! :delete! :next-key}
                 :instead (merge of-slots write-only-slots)})

   :percpu-hash
   (merge hash-row {:number 5 :since "4.6" :value-size per-cpu-size :per-cpu true
                    :flags (into for-programs [:no-prealloc :rdonly :wronly :zero-seed])})

   :percpu-array
   (merge array-row
          {:number 6 :since "4.6" :batch-since "5.13" :btf :index :value-size per-cpu-size
           :per-cpu true
           :flags (into for-programs [:rdonly :wronly])})

   :stack-trace
   (merge index {:number 7 :since "4.6" :btf :none :freeze true :index true :order :index
                 ;; As many frames as the sysctl kernel.perf_event_max_stack may ever allow
                 :value-size [8 20971520]
                 :value-multiple {nil 8, :stack-build-id 32}
                 :elements 127 ; perf_event_max_stack, unless somebody changed that sysctl
                 :element {nil :u64
                           :stack-build-id [:struct [:status [:enum :s32 {:empty 0 :valid 1 :ip 2}]]
                                            [:build-id [:bytes 20]] [:offset :u64]]}
                 ;; The kernel rounds up, and does not say so: stack_map_alloc in
                 ;; kernel/bpf/stackmap.c.
                 :more-places true
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
   (merge hash-row lru
          {:number 9 :since "4.10"
           :flags (into access (into for-programs [:no-common-lru :zero-seed]))})

   :lru-percpu-hash
   (merge hash-row lru {:number 10 :since "4.10" :value-size per-cpu-size :per-cpu true
                        :flags (into for-programs [:no-common-lru :rdonly :wronly :zero-seed])})

   :lpm-trie
   (merge hash-row {:number 11 :since "4.11" :key-size [5 260] :full #{:ENOSPC} :order :prefix
                    :flags (into access (conj for-programs :no-prealloc)) :requires #{:no-prealloc}
                    :ops (disj hash-ops :take! :drain!) :batch #{:read :write :delete}
                    :batch-since "5.13"
                    ;; trie_update_elem in kernel/bpf/lpm_trie.c, or a stable release that has its
                    ;; fix.
                    :conditional-since "6.13"
                    :instead (select-keys of-slots [:take! :drain!])})

   :array-of-maps
   (merge slots {:number 12 :since "4.12" :btf :none :inner true :not-inside true
                 :refers {:value {:in :map :out :map-id}}
                 :batch #{:read :write} :batch-since "5.19"
                 ;; Measured there. Older kernels try an empty slot again and again, and give up
                 ;; with EINTR.
                 :batch-read-since "6.18"})

   :hash-of-maps
   (merge hash-row
          {:number 13 :since "4.12" :btf :none :inner true :not-inside true :value-size nil
           :values {4 :u32}
           :refers {:value {:in :map :out :map-id}}
           :flags (into access (into for-programs [:no-prealloc :zero-seed]))
           :ops (disj hash-ops :take!) :ops-since {:drain! "5.19"} :batch-since "5.19"
           :drains :whole ; by batches, which cannot be stopped half-way
           :instead (select-keys of-slots [:take!])})

   :devmap
   (merge slots {:number 14 :since "4.14" :btf :none :added #{:rdonly-prog}
                 :values {4 :u32, 8 [:struct [:ifindex :u32] [:program :u32]]}
                 :refers {:value {:in :program-field :out :program-field}}
                 ;; For the kernel every index exists, though it may be empty: an insert fails and a
                 ;; replacement writes an empty slot. Both would mislead, so they are denied.
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
   (merge sockets
          {:number 18 :since "4.18" :btf :none :key-size [1 512] :max-entries any-size :freeze true
           :full #{:E2BIG} :flags access})

   :cgroup-storage
   (merge cgroup-local
          {:number 19 :since "4.19" :value-size storage-size :lock true :not-inside true})

   :reuseport-sockarray
   (merge slots sockets {:number 20 :since "4.19" :flags (into access for-programs)})

   :percpu-cgroup-storage
   (merge cgroup-local
          {:number 21 :since "4.20" :value-size per-cpu-size :per-cpu true :not-inside true})

   :queue
   (merge keyless {:number 22 :since "4.20"})

   :stack
   (merge keyless {:number 23 :since "4.20"})

   :sk-storage
   (merge local-storage {:number 24 :since "5.2" :refers {:key {:in :socket}}})

   :devmap-hash
   (merge hash-row
          {:number 25 :since "5.4" :btf :none :added #{:rdonly-prog} :key-size [4 4] :key :u32
           :value-size nil :values {4 :u32, 8 [:struct [:ifindex :u32] [:program :u32]]}
           :refers {:value {:in :program-field :out :program-field}}
           :flags access :batch #{} :batch-since nil
           ;; The kernel "replaces" missing keys too.
           :ops (disj hash-ops :replace! :take! :drain!)
           :instead (select-keys of-slots [:replace! :take! :drain!])})

   :struct-ops
   (merge index
          {:number 26 :since "5.6" :btf :kernel :value-size any-size :max-entries [1 1]
           :every-index true :one-index true
           :flags #{:link :vtype-btf-obj-fd} :not-inside true
           :refers {:value {:in :functions :out :functions}}
           :ops slot-ops
           :instead (merge (select-keys of-slots [:take! :drain!])
                           {:freeze! "its value is registered once, and cannot be changed"
                            :insert! "writing registers the value, once in the life of the map; put! it"
                            :replace! "a registered value cannot be changed; delete! it, and put! the new value into a new map"})})

   :ringbuf
   (merge buffer
          {:number 27 :since "5.8" :rounded {nil :pages} :max-entries [1 0x80000000]
           :flags #{:numa-node :rb-overwrite} :mmap :always})

   :inode-storage
   (merge local-storage {:number 28 :since "5.10" :refers {:key {:in :inode}}})

   :task-storage
   (merge local-storage {:number 29 :since "5.11" :refers {:key {:in :task}}})

   :bloom-filter
   (merge keyless
          {:number 30 :since "5.16" :btf :value :flags (into access (conj for-programs :zero-seed))
           :full #{} :extra "the number of hash functions, 0 for the kernel's choice"
           :most-extra 15
           :ops #{:push! :might-contain?}
           :instead {:else "it can only tell whether a value may be in it; use push! and might-contain?"}})

   :user-ringbuf
   (merge buffer
          {:number 31 :since "6.1" :rounded {nil :pages} :max-entries [1 0x80000000]
           :flags #{:numa-node} :mmap :always})

   :cgrp-storage
   (merge local-storage {:number 32 :since "6.2" :refers {:key {:in :cgroup}}})

   :arena
   (merge buffer
          {:number 33 :since "6.9" :entries "its size in pages"
           :flags #{:mmapable :segv-on-fault :no-user-conv} :requires #{:mmapable}
           :max-entries [1 0x100000] ; 4 GiB in pages of 4 KiB; fewer where pages are larger
           :mmap :mmapable :extra "the address at which it is mapped"})

   :insn-array
   (merge index
          {:number 34 :since "6.19" :btf :none :flags #{} :added #{:rdonly-prog} :full #{:E2BIG}
           :every-index true :not-inside true
           ;; A program takes only one that is frozen: bpf_insn_array_init in
           ;; kernel/bpf/bpf_insn_array.c
           :freeze true
           :values {16 [:struct [:orig-off :u32] [:xlated-off :u32] [:jitted-off :u32] [:pad :u32]]}
           :ops (into reading any-way)
           :instead always-there})

   :rhash
   (merge hash-row
          {:number 35 :since "7.2" :key-size [1 65535] :max-entries [1 0x80000000] :lock true
           :resizes true ; in the background, which hides entries from iterations
           :flags (into access (conj for-programs :no-prealloc)) :requires #{:no-prealloc}
           :extra "the number of entries to allocate at first" :most-extra 65535})})

;; --- questions about rows

(def flags
  "Create flags by name.

  `:bit` is the position in `map_flags`, `:since` the first Linux release."
  {:no-prealloc      {:bit 0 :since "4.6"}
   :no-common-lru    {:bit 1 :since "4.10"}
   :numa-node        {:bit 2 :since "4.14"}
   :rdonly           {:bit 3 :since "4.15"}
   :wronly           {:bit 4 :since "4.15"}
   :stack-build-id   {:bit 5 :since "4.17"}
   :zero-seed        {:bit 6 :since "5.0"}
   :rdonly-prog      {:bit 7 :since "5.2"}
   :wronly-prog      {:bit 8 :since "5.2"}
   :clone            {:bit 9 :since "5.4"}
   :mmapable         {:bit 10 :since "5.5"}
   :preserve-elems   {:bit 11 :since "5.10"}
   :inner-map        {:bit 12 :since "5.10"}
   :link             {:bit 13 :since "6.4"}
   :path-fd          {:bit 14 :since "6.5"}
   :vtype-btf-obj-fd {:bit 15 :since "6.9"}
   :token-fd         {:bit 16 :since "6.9"}
   :segv-on-fault    {:bit 17 :since "6.9"}
   :no-user-conv     {:bit 18 :since "6.9"}
   :rb-overwrite     {:bit 19 :since "6.19"}})

(def element-flags
  "Flags of element operations by name.

  `:value` is the number in the kernel, `:since` the first Linux release, `:by` the function or
  option that sets it. A queue has no keys, and `:exist` has another meaning there."
  {:any      {:value 0 :since "3.19" :by "put!, push!"}
   :noexist  {:value 1 :since "3.19" :by "insert!"}
   :exist    {:value 2 :since "3.19" :by "replace!, and push! with {:overwrite true}"}
   :lock     {:value 4 :since "5.1" :by "{:lock true}"}
   :cpu      {:value 8 :since "7.0" :by "{:cpu n}"}
   :all-cpus {:value 16 :since "7.0" :by "{:cpus :all}"}})

(def commands
  "First Linux releases of commands that a running kernel may lack."
  {:freeze! "5.2"
   :take!   "5.14"
   :drain!  "5.14"
   :open    "4.13"
   :list    "4.13"
   :info    "4.13"})

(declare ability at-least?)

(defn since
  "Returns the first Linux release with an operation on maps of a type.

  Returns nil if the operation came with the type.

      (since :stack-trace :drain!) ;=> \"6.18\"
      (since :hash :take!)         ;=> \"5.14\""
  [type op]
  (let [op (ability op)]
    (or (get-in types [type :ops-since op]) (commands op))))

(defn since-text
  "Returns a hint if an operation on maps of a type needs a newer release, or nil.

      (since-text :stack-trace :take! \"6.12.4\") ;=> \"it needs Linux 6.18, this is 6.12.4\""
  [type op release]
  (when-let [needed (since type op)]
    (when (some-> release (at-least? needed) not)
      (str "it needs Linux " needed ", this is " release))))

(def operations
  "All operations on elements, by the names of their functions.

  `:reduce` is any function that reads all entries."
  #{:lookup :put! :insert! :replace! :delete! :take! :next-key :reduce :drain! :push! :pop! :peek
    :might-contain?})

(def reads
  "Operations that a write-only handle does not have."
  #{:lookup :take! :next-key :reduce :drain! :pop! :peek :might-contain?})

(def writes
  "Operations that a read-only handle does not have."
  #{:put! :insert! :replace! :delete! :take! :drain! :push! :pop! :freeze!})

(def ^:private number->type
  (into {} (map (fn [[type row]] [(:number row) type])) types))

(def ^:private bit->flag
  (into {} (map (fn [[flag row]] [(:bit row) flag])) flags))

(defn type-name
  "Returns the name of a map type's number, or the number if it has none.

      (type-name 1)  ;=> :hash
      (type-name 99) ;=> 99"
  [number]
  (number->type number number))

(defn type-number
  "Returns the number of a map type's name; nil for an unknown name.

  A number is returned unchanged.

      (type-number :hash) ;=> 1"
  [type]
  (if (keyword? type) (:number (types type)) type))

(defn flag-set
  "Returns the names of the bits of a flag word, as a set.

  A bit without a name is a number in the set.

      (flag-set 0x401)     ;=> #{:no-prealloc :mmapable}
      (flag-set (bit-shift-left 1 30)) ;=> #{1073741824}"
  [word]
  (loop [word (long word) set #{}]
    (if (zero? word)
      set
      (let [bit (Long/numberOfTrailingZeros word)]
        (recur (bit-and-not word (bit-shift-left 1 bit))
               (if (< bit 32) (conj set (bit->flag bit (bit-shift-left 1 bit))) set))))))

(defn flag-word
  "Returns the flag word of a collection of names and numbers.

      (flag-word #{:no-prealloc :mmapable}) ;=> 1025"
  [flags-given]
  (transduce (map #(if (keyword? %) (bit-shift-left 1 (:bit (flags %))) %))
             (completing bit-or) 0 flags-given))

(defn has-flag?
  "Returns true if a flag is among the given ones, by its name or as a bit.

  The given flags may be malformed.

      (has-flag? #{:no-prealloc} :no-prealloc) ;=> true
      (has-flag? [1] :no-prealloc)             ;=> true"
  [flags-given flag]
  (boolean (when (or (set? flags-given) (sequential? flags-given))
             (some #(or (= flag %)
                        (and (int? %) (<= 1 % 0xffffffff) (bit-test % (:bit (flags flag)))))
                   flags-given))))

(defn by-flag
  "Returns the value of the first key that is a given flag, or the value of nil.

      (by-flag {:stack-build-id 32, nil 8} #{:stack-build-id}) ;=> 32"
  [values flags-given]
  (get values (first (filter #(and % (has-flag? flags-given %)) (keys values)))))

(def ^:private abilities
  {:put-all! :put!, :delete-all! :delete!, :lookup-all :lookup, :snapshot :reduce
   :count-entries :reduce, :entries :reduce, :drain-into! :drain!})

(defn ability
  "Returns the operation of [[operations]] that another operation is made of.

      (ability :put-all!) ;=> :put!"
  [op]
  (abilities op op))

(def made-of-others
  "Operations that are made of one of [[operations]]; see [[ability]]."
  (set (keys abilities)))

(def ^:private keyed-instead
  "Alternatives on maps with keys for the operations of maps without keys."
  {:push! "it has keys; use put!"
   :pop! "it has keys; use take!"
   :peek "it has keys; use lookup"
   :might-contain? "it has keys; use has-key?"})

(defn alternative
  "Returns the alternative to an operation that a map lacks, or nil if it has it.

      (alternative :array :delete! 8) ;=> \"every index of an array always exists; …\""
  [type op value-size]
  (let [op (ability op)
        {:keys [ops instead reads-at] freeze? :freeze :as row} (types type)]
    (cond
      ;; It is not an operation on elements.
      (= :freeze! op) (when (and row (not freeze?))
                        (get instead op "maps of this type cannot be frozen"))
      (nil? row) "bpfmap does not know the layout of elements of this type"
      (not (ops op)) (or (get instead op) (:else instead) (keyed-instead op))
      (and reads-at (not= reads-at value-size) (#{:lookup :reduce} op))
      (str "the kernel returns the cookies of its sockets only if values have " reads-at
           " bytes"))))

(defn refusals
  "Returns the operations that a handle does not have: op to [kind hint].

  They depend on the map's type and value size, and on the access of the handle.

      (:freeze! (refusals :hash 8 :read-only)) ;=> [:read-only \"the map was opened read-only; …\"]"
  [type value-size access]
  (let [[barred hint] (case access
                        :read-only [writes
                                    "the map was opened read-only; open it with {:access :read-write}"]
                        :write-only [reads
                                     "the map was opened write-only; open it with {:access :read-write}"]
                        nil)]
    (into (into {} (map #(vector % [access hint])) barred)
          (keep #(when-let [instead (alternative type % value-size)]
                   [% [:not-supported instead]]))
          (conj operations :freeze!))))

(defn by-index?
  "Returns true if the keys of a map type are indices below its number of entries.

      (by-index? :array) ;=> true"
  [type]
  (let [{:keys [every-index] index? :index} (types type)]
    (boolean (or index? every-index))))

(defn key-type
  "Returns the type of the keys if the map type determines it, or nil.

  It may depend on their size in bytes, 0 or nil if it is not given.

      (key-type :array nil)         ;=> :u32
      (key-type :cgroup-storage 8)  ;=> :u64"
  [type key-size]
  (let [{:keys [key keys]} (types type)
        given (when-not (= 0 key-size) key-size)]
    (cond
      key (when (contains? #{nil 4} given) key)
      keys (keys (or given (apply min (clojure.core/keys keys)))))))

(defn most-keys
  "Returns the largest number of keys of a map of a type and size.

      (most-keys :hash 10)        ;=> 10
      (most-keys :stack-trace 10) ;=> 16"
  [type max-entries]
  (let [n (long max-entries)]
    (cond
      (zero? n) Long/MAX_VALUE ; as many as there are objects that the elements hang on
      (and (:more-places (types type)) (< 1 n)) (* 2 (Long/highestOneBit (dec n)))
      :else n)))

(defn value-multiple
  "Returns the number that value sizes of a map type are multiples of.

  It may depend on the flags.

      (value-multiple :stack-trace #{:stack-build-id}) ;=> 32"
  [type flags-given]
  (or (by-flag (:value-multiple (types type)) flags-given) 1))

(defn stride
  "Returns the distance between the values of two CPUs or array elements, in bytes.

  Source: Documentation/bpf/map_array.rst.

      (stride 5) ;=> 8"
  ^long [^long value-size]
  (bit-and (+ value-size 7) -8))

(def event-types
  "The types of maps through which programs send events."
  #{:ringbuf :perf-event-array})

(defn at-least?
  "Returns true if a kernel release, as from `uname -r`, has at least a version.

      (at-least? \"6.18.44-arch1\" \"5.14\") ;=> true"
  [release version]
  (let [numbers (fn [s] (mapv parse-long (re-seq #"\d+" (first (re-find #"^(\d+(\.\d+)?)" s)))))]
    (not (neg? (compare (numbers release) (numbers version))))))

(defn charges-memlock?
  "Returns true if a kernel release charges maps and programs to RLIMIT_MEMLOCK.

  These are the releases before 5.11.

      (charges-memlock? \"5.10.0-32-amd64\") ;=> true"
  [release]
  (boolean (some-> release (at-least? "5.11") not)))
