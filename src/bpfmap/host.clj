(ns bpfmap.host
  "Lists the BPF objects of this host: maps, programs and links by id, pins, and users.

  It also reads the kernel's types. Objects may disappear while a list is made. A list leaves out
  objects that disappear or cannot be opened, and has them in its metadata: `:skipped` is a vector
  of maps with the `:error` (as `:bpfmap/error`) and the `:message` of each."
  (:require [bpfmap.impl.host.attachments :as attachments]
            [bpfmap.impl.host.explore :as explore]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.host.kernel-btf :as kernel-btf]
            [bpfmap.impl.host.local-storage :as local-storage]
            [bpfmap.impl.host.pressure :as pressure]
            [bpfmap.impl.options :as options]))

(set! *warn-on-reflection* true)

;; --- by id

(defn maps
  "Returns the info of every map on the host, by ascending id.

  The infos are the same as from `bpfmap.core/info`. Maps that disappear or cannot be opened are
  left out; the vector's metadata has `:skipped`, a vector of `{:id :error :message}`. With the
  option `:brief` the maps have no `:memlock` and no `:frozen`, which are read from a file for
  each map. Needs CAP_SYS_ADMIN and Linux 4.13; throws `:permission` without, and `:invalid-value`
  for other options.

      (map :name (maps))               ;=> (\"counts\" \"flows\")
      (map :name (maps {:brief true})) ;=> (\"counts\" \"flows\")"
  ([] (holders/maps))
  ([options] (holders/maps (options/check :list options))))

(defn pressure
  "Returns how full the maps of this host are, by ascending id.

  | key            | meaning                                                                   |
  |----------------|---------------------------------------------------------------------------|
  | `:id` `:type` `:name` `:max-entries` | as in [[maps]]                                      |
  | `:entries`     | the number of entries; missing if it could not be counted in time         |
  | `:full`        | the same in percent of `:max-entries`, to a tenth; missing likewise       |

  Maps without a meaningful number are left out: arrays, all of whose entries always exist, rings,
  queues and local storages. A map of a type that evicts entries (`:lru-hash`,
  `:lru-percpu-hash`) stays nearly full. From Linux 6.6, with BTF of the kernel, CAP_BPF and
  CAP_PERFMON, the kernel counts the entries of all hash maps in one read, which takes a
  few microseconds for each. Other maps are read, for at most a second in all. Needs what [[maps]]
  needs, and throws the same errors.

      (filter #(< 90 (:full % 0)) (pressure))
      ;=> ({:id 12 :type :hash :name \"flows\" :entries 1000 :max-entries 1024 :full 97.7})"
  []
  (pressure/pressure))

(defn local-storage
  "Returns all entries of an open local storage: a vector of `[key value]`.

  The kernel has no command to list the values that programs attach to objects. A BPF program, run
  for each object, reads them here. The key is a number:

  | type            | key                                           | needs      |
  |-----------------|-----------------------------------------------|------------|
  | `:task-storage` | the id of the thread; of a process's first thread, its pid | Linux 5.11 |
  | `:cgrp-storage` | the id of the cgroup, as in `/sys/fs/cgroup` (inode number) | Linux 6.2  |
  | `:sk-storage`   | the cookie of the socket                      | Linux 5.12 |

  Thread ids are those of the initial pid namespace. Objects that begin or end during the call are
  read or not. Throws `:invalid-value` for other maps, `:closed`, `:not-supported` without the
  iterator or BTF of the kernel, `:permission` without CAP_BPF and CAP_PERFMON, and
  `:program-rejected` for values with fields that programs must not copy, such as spin locks.

      (into {} (local-storage m)) ;=> {4711 {:started 12}}"
  [m]
  (local-storage/entries m))

(defn programs
  "Returns the info of every program on the host, by ascending id.

  The infos are the same as from `bpfmap.prog/info`. With the option `:brief` they have no
  `:memlock`, which is read from a file for each program. Programs that are left out are in the
  metadata, `:skipped`, as `{:id :error :message}`. Needs CAP_SYS_ADMIN and Linux 4.13; throws
  `:permission` without, and `:invalid-value` for other options.

      (map :type (programs))               ;=> (:cgroup-device :tracing)
      (map :type (programs {:brief true})) ;=> (:cgroup-device :tracing)"
  ([] (holders/programs))
  ([options] (holders/programs (options/check :list options))))

(defn links
  "Returns the info of every link on the host, by ascending id.

  A link attaches a program.

  | key           | meaning                                                                         |
  |---------------|---------------------------------------------------------------------------------|
  | `:id`         | the id of the link                                                              |
  | `:type`       | a name as below, or the number if it has none                                   |
  | `:program-id` | the id of the program                                                           |
  | `:event`      | of `:perf-event`: `:tracepoint`, `:kprobe`, `:uprobe` or `:perf-event`          |
  | `:tracepoint` | the name of a tracepoint, raw or not, without its category                      |
  | `:function` `:address` | of a kprobe: the function and its address                              |
  | `:path`       | of uprobes: the program or library                                              |
  | `:offset`     | of a probe: in the function of a kprobe, in the file of a uprobe                |
  | `:functions`  | of links of many functions: their number                                        |
  | `:return`     | true if the program runs when functions return                                  |
  | `:missed`     | how often a kprobe did not run, because another ran on the CPU                  |
  | `:cookie`     | the cookie, unless it is 0                                                      |
  | `:event-type` `:config` | of a clock or counter: its numbers in linux/perf_event.h              |
  | `:target`     | the objects of an iterator, such as \"task\"                                      |
  | `:map-id`     | the map of an iterator, a sockmap or a struct_ops                               |
  | `:attach-type`| a name from `bpfmap.prog/attach-types`, or a number                             |
  | `:target-obj-id` `:target-btf-id` | of a tracing link: the BTF object (or the program) and the function in it |
  | `:cgroup-id` `:netns-ino` `:ifindex` | the cgroup, network namespace or device                  |
  | `:family` `:hook` `:priority` | of a link of netfilter                                          |

  Types are `:raw-tracepoint`, `:tracing`, `:cgroup`, `:iter`, `:netns`, `:xdp`, `:perf-event`,
  `:kprobe-multi`, `:struct-ops`, `:netfilter`, `:tcx`, `:uprobe-multi`, `:netkit` and `:sockmap`.

  Keys that do not apply, and those that the kernel does not report, are missing: before Linux 6.6
  those of perf events and of netfilter are. Links that are left out are in the metadata, `:skipped`, as
  `{:id :error :message}`. [[attachments]] has programs attached without a link. Needs CAP_SYS_ADMIN and
  Linux 5.8; throws `:permission`, `:not-supported`.

      (first (links)) ;=> {:id 1 :type :iter :program-id 2 :target \"bpf_map\"}"
  []
  (holders/links))

(defn attachments
  "Returns programs that are attached without a link, with the keys of [[links]].

  They have no `:id`. The kernel detaches such a program when somebody removes it, when its perf
  event is closed, or when its cgroup, device or map is gone.

  | `:type`       | found by                                                                       |
  |---------------|--------------------------------------------------------------------------------|
  | `:perf-event` | the perf events that processes have open: kprobes, uprobes and tracepoints, with the processes under `:held` |
  | `:cgroup`     | all cgroups, with the `:path` of the cgroup below the root                     |
  | `:xdp`        | the network devices: `:device`, the name, and the `:mode`: `:native`, `:generic` or `:offload` |
  | `:tc`         | the filters of tc: `:device`, `:direction` (or `:parent`), `:priority`, `:handle`, `:filter` |
  | `:tcx` `:netkit` | the hooks of network devices, with the `:device`                            |
  | `:netns`      | the flow dissector                                                             |
  | `:sockmap`    | the maps of sockets. Linux 5.18                                                |

  It finds the devices and the flow dissector of the thread's network namespace, and the processes of
  the pid namespace. The kernel does not report programs of sockets, nor programs on clocks and
  counters (type `:perf-event`). Attachments that this process must not read are left out. If one
  program has a link and another attachment to the same target, one of them is left out. Needs
  CAP_SYS_ADMIN and Linux 4.18; throws `:permission` without.

      (attachments) ;=> [{:type :cgroup :cgroup-id 4 :path \"/app\" :attach-type :cgroup-device :program-id 12}]"
  []
  (attachments/attachments (holders/programs {:brief true}) (holders/links-or-none)))

;; --- pins

(defn pins
  "Returns all pins: a vector of `{:path :kind :id :name :type}`, by path.

  `:kind` is `:map`, `:program` or `:link`; a link has no `:name`. Searches every BPF file system
  that is mounted in this mount namespace, or only a directory and its subdirectories. Pins hidden
  by another mount are not found. A file system that is mounted at two places is listed at both.
  Symbolic links are not followed, except if the given directory is one.

  Pins that disappear or cannot be opened are left out; they are in the metadata, `:skipped`, as
  `{:path :error :message}`. Throws `:not-bpffs` for a directory with no BPF file system in or below
  it, `:not-found` and `:permission` for a directory that cannot be read, `:invalid-value` for an
  empty path. Needs Linux 4.13 and the permission of each file.

      (pins)                   ;=> [{:path \"/sys/fs/bpf/counts\" :kind :map :id 12 :name \"counts\" :type :hash}]
      (pins \"/sys/fs/bpf/net\") ;=> []"
  ([] (holders/pins))
  ([directory] (holders/pins directory)))

;; --- who uses what

(defn holders
  "Returns the processes that have an object open, by ascending pid.

  The result is a vector of `{:pid :command :fds}`. `ref` is a map's id, `{:map-id n}`,
  `{:program-id n}`, `{:link-id n}`, or an open map, program or link; this process is then
  among the holders. `:command` is the name of the process in the kernel, at most 15 bytes; `:fds`
  are the numbers of its descriptors. Processes that hold a map only through a program, a link or an
  outer map are not included; nor are pins, which belong to no process.

  It reads /proc, and so finds the processes of its pid namespace. Processes that end in between, or
  whose descriptors this user is not allowed to read, are left out; they are in the metadata,
  `:skipped`, as `{:pid :error :message}`. An id without an object returns an empty vector. Throws
  `:invalid-value` for an invalid reference, `:closed` for a closed program or link.

  Without a reference, returns every process that holds an object, with its objects under `:holds`,
  in one pass over /proc.

      (holders 12) ;=> [{:pid 4711 :command \"java\" :fds [7 9]}]
      (holders)    ;=> [{:pid 4711 :command \"java\" :holds [{:kind :map :id 12}]}]"
  ([] (holders/all-holders))
  ([ref] (holders/holders ref)))

(defn programs-using
  "Returns the [[programs]] that use a map.

  `ref` is an open map, its id, or `{:map-id n}`. A program uses the maps in its instructions and
  the maps bound to it; a map inside another map is not included. Programs that cannot be opened are
  in the metadata, `:skipped`. Throws `:invalid-value` for an invalid reference, `:permission`
  without CAP_SYS_ADMIN. Needs Linux 4.15.

      (map :name (programs-using 12)) ;=> (\"count_packets\")"
  [ref]
  (holders/programs-using ref))

;; --- going from one to the next

(defn explore
  "Returns `{:maps :programs :links :pins}` of the host, for `clojure.datafy`.

  `nav` leads from a map to its `:entries` (all of them) and the programs it is `:used-by`, from an
  entry whose value names an inner map or a program to that object, from a program's `:map-ids` to
  the maps, from a link or pin to its object. `datafy` of a map, listed or open, has the first 100
  entries. Nothing stays open. Objects that cannot be read are `{:error :message}`. Needs the same
  privileges as [[maps]].

      (require '[clojure.datafy :refer [datafy nav]])
      (let [maps (:maps (explore))]
        (:entries (datafy (nav maps 0 (maps 0))))) ;=> [[7 42]]"
  []
  (explore/host))

;; --- BTF

(defn kernel-btf
  "Returns the BTF of the running kernel, such as for `bpfmap.btf/type-named`.

  Each call reads it again: some megabytes, and some milliseconds. Throws `:not-found` on a kernel
  without it. Needs Linux 5.4, no privileges.

      (btf/type-named (kernel-btf) \"timespec64\")
      ;=> [:struct {:name \"timespec64\"} [:tv_sec [:typedef \"time64_t\" :s64]] [:tv_nsec :s64]]"
  []
  (kernel-btf/kernel))

(defn module-btf
  "Returns the BTF of a loaded kernel module, which continues the kernel's BTF.

  Throws `:not-found` for a module that is not loaded or has none. Needs Linux 5.11.

      (btf/type-named (module-btf \"nf_conntrack\") \"nf_conn\")"
  [module]
  (kernel-btf/module module))

(defn btf-by-id
  "Returns the BTF object of an id, such as the `:btf-id` of a map's info.

  Throws `:not-found`, and `:permission` without CAP_SYS_ADMIN. Needs Linux 4.18.

      (btf/type-of (btf-by-id (:btf-id (bpf/info m))) (:btf-value-type-id (bpf/info m)))"
  [id]
  (kernel-btf/by-id id))

(defn load-btf
  "Loads types into the kernel as a BTF object; returns it open, as a `Closeable`.

  Maps load their types by themselves. `named` has named types that the others may use. The kernel
  frees the object when it is closed and unused. Throws `:invalid-spec` for a malformed type,
  `:invalid-value` for BTF that this kernel rejects, `:permission` without CAP_BPF and without a BPF
  token. Needs Linux 4.18.

      (with-open [b (load-btf [[:struct {:name \"flow\"} [:src :ipv4]]])] b)"
  ([types] (load-btf types nil))
  ([types named] (kernel-btf/load-types types named)))
