(ns bpfmap.host
  "Everything of BPF on this host: maps, programs and links by id, what is pinned, who holds it,
  and the kernel's types.

  The host goes on meanwhile. What vanishes or cannot be opened is left out of
  a list; the vector's metadata has `:skipped`, a vector that says of each what
  it was, the `:error` (as `:bpfmap/error`) and the `:message`."
  (:require [bpfmap.impl.host.explore :as explore]
            [bpfmap.impl.host.inventory :as inventory]
            [bpfmap.impl.host.kernel-btf :as kernel-btf]
            [bpfmap.impl.options :as options]))

(set! *warn-on-reflection* true)

;; --- by id

(defn maps
  "Returns what the kernel says of every map on the host, as `bpfmap.core/info` does, by ascending
  id.

  A map that vanishes meanwhile or cannot be opened is left out; the vector's metadata has
  `:skipped`, a vector of `{:id :error :message}`. With the option `:brief` the maps have no
  `:memlock` and no `:frozen`, which the kernel tells in a file for each map. Needs CAP_SYS_ADMIN
  and Linux 4.13; throws `:permission` without, and `:invalid-value` for other options.

      (map :name (maps))               ;=> (\"counts\" \"flows\")
      (map :name (maps {:brief true})) ;=> (\"counts\" \"flows\")"
  ([] (inventory/maps))
  ([options] (inventory/maps (:brief (options/check :list options) false))))

(defn programs
  "Returns what the kernel says of every program on the host, as `bpfmap.prog/info` does, by
  ascending id.

  Those left out are in the metadata, `:skipped`, as `{:id :error :message}`. Needs
  CAP_SYS_ADMIN and Linux 4.13; throws `:permission` without.

      (map :type (programs)) ;=> (:cgroup-device :tracing)"
  []
  (inventory/programs))

(defn links
  "Returns what the kernel says of every link on the host, by ascending id: what holds programs
  where they run.

  | key           | what it holds                                                                   |
  |---------------|---------------------------------------------------------------------------------|
  | `:id`         | the link's                                                                      |
  | `:type`       | as below, or the number where it has no name here                               |
  | `:program-id` | the program's                                                                   |
  | `:tracepoint` | the name of a raw tracepoint                                                    |
  | `:target`     | what an iterator goes through, such as \"task\"                                 |
  | `:map-id`     | the map of an iterator, a sockmap or a struct_ops                               |
  | `:attach-type`| a name from `bpfmap.prog/attach-types`, or a number                             |
  | `:target-obj-id` `:target-btf-id` | of a tracing link: the BTF object (or the program) and the function in it |
  | `:cgroup-id` `:netns-ino` `:ifindex` | the cgroup, network namespace or device                  |

  Types are `:raw-tracepoint`, `:tracing`, `:cgroup`, `:iter`, `:netns`, `:xdp`, `:perf-event`,
  `:kprobe-multi`, `:struct-ops`, `:netfilter`, `:tcx`, `:uprobe-multi`, `:netkit` and `:sockmap`.

  What does not apply is left out. Those that are left out as a whole are in the metadata,
  `:skipped`, as `{:id :error :message}`. Programs attached without a link are in no list. Needs
  CAP_SYS_ADMIN and Linux 5.8; throws `:permission`, `:not-supported`.

      (first (links)) ;=> {:id 1 :type :iter :program-id 2 :target \"bpf_map\"}"
  []
  (inventory/links))

;; --- pins

(defn pins
  "Returns everything that is pinned: a vector of `{:path :kind :id :name :type}`, by path.

  `:kind` is `:map`, `:program` or `:link`; a link has no `:name`. It looks
  through every BPF file system that is mounted in this mount namespace, or only
  through what is in and below a directory; what another mount hides is not
  seen. A file system that is mounted at two places is seen at both. Symbolic
  links are not followed, but one may lead to the directory given.

  What vanishes meanwhile or cannot be opened is left out; it is in the metadata, `:skipped`, as
  `{:path :error :message}`. Throws `:not-bpffs` for a directory with no BPF file
  system in or below it, `:not-found` and `:permission` for one that cannot be read,
  `:invalid-value` for an empty path. Needs Linux 4.13 and the permission of each file.

      (pins)                   ;=> [{:path \"/sys/fs/bpf/counts\" :kind :map :id 12 :name \"counts\" :type :hash}]
      (pins \"/sys/fs/bpf/net\") ;=> []"
  ([] (inventory/pins))
  ([directory] (inventory/pins directory)))

;; --- who uses what

(defn holders
  "Returns the processes that have an object open: a vector of `{:pid :command :fds}`, by
  ascending pid.

  `ref` is a map's id, `{:map-id n}`, `{:program-id n}`, `{:link-id n}`, or an open
  map, program or attachment; this process is then among the holders.
  `:command` is the name of the process as the kernel keeps it, at most 15
  bytes; `:fds` the numbers of its descriptors. A process that holds a map
  through a program, a link or an outer map only is not among them; nor are
  pins, which are no process's.

  It reads /proc, and so sees the processes of its pid namespace. Those that
  end meanwhile, or that this user may not look into, are left out; they are in
  the metadata, `:skipped`, as `{:pid :error :message}`. For an id that nothing
  has, the answer is empty. Throws `:invalid-value` for what is no reference,
  `:closed` for a closed program or attachment.

  Without a reference, it is every process that holds anything, with what it holds under `:holds`,
  in one pass over /proc.

      (holders 12) ;=> [{:pid 4711 :command \"java\" :fds [7 9]}]
      (holders)    ;=> [{:pid 4711 :command \"java\" :holds [{:kind :map :id 12}]}]"
  ([] (inventory/all-holders))
  ([ref] (inventory/holders ref)))

(defn programs-using
  "Returns those of [[programs]] that use a map, given as an open map, its id, or `{:map-id n}`.

  A program names the maps that its instructions do, and those bound to it; a map within another
  is not among them. Programs that cannot be opened are in the metadata, `:skipped`. Throws
  `:invalid-value` for what is no map, `:permission` without CAP_SYS_ADMIN. Needs Linux 4.15.

      (map :name (programs-using 12)) ;=> (\"count_packets\")"
  [ref]
  (inventory/programs-using ref))

;; --- going from one to the next

(defn explore
  "Returns what there is on the host, `{:maps :programs :links :pins}`, as data that
  `clojure.datafy` goes on from.

  `nav` leads from a map to its `:entries` (all of them) and the programs it is `:used-by`, from
  an entry whose value names an inner map or a program to that, from a program's `:map-ids` to the
  maps, from a link or pin to what it holds. `datafy` of a map, of one of these or of an open one,
  has the first 100 entries. Nothing stays open. What cannot be read is `{:error :message}`. Needs
  what [[maps]] needs.

      (require '[clojure.datafy :refer [datafy nav]])
      (let [maps (:maps (explore))]
        (:entries (datafy (nav maps 0 (maps 0))))) ;=> [[7 42]]"
  []
  (explore/host))

;; --- BTF

(defn kernel-btf
  "Returns the BTF of the running kernel, for `bpfmap.btf/type-named` and its like.

  It is read anew each time: some megabytes, and some milliseconds. Throws
  `:not-found` on a kernel without it. Needs Linux 5.4, no privileges.

      (btf/type-named (kernel-btf) \"timespec64\")
      ;=> [:struct {:name \"timespec64\"} [:tv_sec [:typedef \"time64_t\" :s64]] [:tv_nsec :s64]]"
  []
  (kernel-btf/kernel))

(defn module-btf
  "Returns the BTF of a loaded kernel module, which continues that of the kernel.

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
  "Loads types into the kernel as a BTF object; returns it open, as a `java.io.Closeable`.

  Maps do this by themselves. `named` gives names to types that the others may
  use. The object goes when it is closed and nothing uses it. Throws
  `:invalid-spec` for a malformed type, `:invalid-value` for BTF that this kernel refuses,
  `:permission` without CAP_BPF and without a BPF token. Needs Linux 4.18.

      (with-open [b (load-btf [[:struct {:name \"flow\"} [:src :ipv4]]])] b)"
  ([types] (load-btf types nil))
  ([types named] (kernel-btf/load-types types named)))
