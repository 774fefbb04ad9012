(ns bpfmap.host
  "What there is on this host, beyond the one map in hand."
  (:require [bpfmap.impl.kernel-types :as kernel-types]
            [bpfmap.impl.lifecycle :as lifecycle]))

(set! *warn-on-reflection* true)

(defn maps
  "Returns what the kernel says of every map on the host, as `bpfmap.core/info` does, by ascending id.

  A map that vanishes meanwhile or cannot be opened is left out; the vector's
  metadata has `:skipped`, a vector of `{:id :error :message}`. Needs CAP_SYS_ADMIN
  and Linux 4.13; throws `:permission` without.

      (map :name (maps)) ;=> (\"counts\" \"flows\")"
  []
  (let [skipped (volatile! [])
        infos (lifecycle/infos :list (fn [id e]
                                       (vswap! skipped conj {:id id
                                                             :error (:bpfmap/error (ex-data e))
                                                             :message (ex-message e)})))]
    (with-meta infos {:skipped @skipped})))

(defn kernel-btf
  "Returns the BTF of the running kernel, for `bpfmap.btf/type-named` and its like.

  It is read anew each time: some megabytes, and some milliseconds. Throws
  `:not-found` on a kernel without it. Needs Linux 5.4, no privileges.

      (btf/type-named (kernel-btf) \"timespec64\")
      ;=> [:struct {:name \"timespec64\"} [:tv_sec [:typedef \"time64_t\" :s64]] [:tv_nsec :s64]]"
  []
  (kernel-types/kernel))

(defn module-btf
  "Returns the BTF of a loaded kernel module, which continues that of the kernel.

  Throws `:not-found` for a module that is not loaded or has none. Needs Linux 5.11.

      (btf/type-named (module-btf \"nf_conntrack\") \"nf_conn\")"
  [module]
  (kernel-types/module module))

(defn btf-by-id
  "Returns the BTF object of an id, such as the `:btf-id` of a map's info.

  Throws `:not-found`, and `:permission` without CAP_SYS_ADMIN. Needs Linux 4.18.

      (btf/type-of (btf-by-id (:btf-id (bpf/info m))) (:btf-value-type-id (bpf/info m)))"
  [id]
  (kernel-types/by-id id))

(defn load-btf
  "Loads types into the kernel as a BTF object; returns it open, as a `java.io.Closeable`.

  Maps do this by themselves. `named` gives names to types that the others may
  use. The object goes when it is closed and nothing uses it. Throws
  `:invalid-spec` for a malformed type, `:invalid-value` for BTF that this kernel refuses,
  `:permission` without CAP_BPF. Needs Linux 4.18.

      (with-open [b (load-btf [[:struct {:name \"flow\"} [:src :ipv4]]])] b)"
  ([types] (load-btf types nil))
  ([types named] (kernel-types/load-types types named)))
