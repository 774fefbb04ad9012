(ns ^:no-doc bpfmap.impl.host.iterator
  "Runs a program for every object of a kind in the kernel, and reduces its output.

  The programs are assembled from instructions. Offsets of fields are from the BTF of the running
  kernel. Source: Documentation/bpf/bpf_iterators.rst."
  (:require [bpfmap.asm :as asm]
            [bpfmap.btf :as btf]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.host.kernel-btf :as kernel-btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.config :as config]
            [bpfmap.impl.kernel.lacks :as lacks]
            [bpfmap.impl.kernel.prog :as kernel.prog]
            [bpfmap.impl.link.attach :as attach]
            [bpfmap.impl.link.attach-types :as attach-types]
            [bpfmap.impl.link.link :as link]
            [bpfmap.impl.link.output :as output]
            [bpfmap.impl.open-object :as open-object]
            [bpfmap.impl.prog.program])
  (:import (bpfmap.impl.prog.program Program)
           (java.io Closeable)))

(set! *warn-on-reflection* true)

(defn function-id
  "Returns the BTF id of a function of the running kernel; nil if it has none.

      (function-id \"bpf_map_sum_elem_count\") ;=> 65080"
  [name]
  (btf/type-id (kernel-btf/running-kernel) :func name))

(defn- member-offset
  "Returns the offset of a member in bytes, or nil.

  Members of members without a name count too."
  [b id member]
  (some (fn [{:keys [name type bit-offset]}]
          (let [at (quot (long bit-offset) 8)]
            (if name
              (when (= member name) at)
              (let [inner (blob/resolve b type)]
                (when (#{:struct :union} (blob/kind b inner))
                  (some-> (member-offset b inner member) (+ at)))))))
        (:members (blob/record b id))))

(defn offset
  "Returns the offset in bytes of a field of a struct of the running kernel.

  Throws `:not-supported` if this kernel does not have it.

      (offset \"bpf_map\" \"id\") ;=> 92"
  ^long [struct member]
  (let [b (kernel-btf/running-kernel)]
    (or (some-> (btf/type-id b :struct struct) (#(member-offset b % member)))
        (throw (error/error :not-supported
                            (str "The kernel has no field " member " in struct " struct)
                            {:bpfmap/hint "structs of the kernel differ between releases"})))))

(defn object-of
  "Returns instructions that load the object of a context in :r6 into a register.

  The last run of a pass has none, and they jump to `:out`. `member` is the name of the
  object in the context of the iterator.

      (object-of \"task\" \"task\" :r7) ;=> [[:ldxdw :r7 [:r6 8]] [:jeq :r7 0 :out]]"
  [kind member register]
  [[:ldxdw register [:r6 (offset (str "bpf_iter__" kind) member)]]
   [:jeq register 0 :out]])

(defn write-out
  "Returns instructions that write the bytes at an address to the output.

  `address` are instructions that load it into :r2. The context is in :r6.

      (write-out \"task\" [[:mov64 :r2 :r8]] 16)"
  [kind address size]
  (concat [[:ldxdw :r1 [:r6 (offset (str "bpf_iter__" kind) "meta")]]
           [:ldxdw :r1 [:r1 (offset "bpf_iter_meta" "seq")]]]
          address
          [[:mov64 :r3 size]
           [:call :seq-write]]))

(defn stack-address
  "Returns instructions that load an address on the stack into a register.

      (stack-address :r2 -8) ;=> [[:mov64 :r2 :r10] [:add64 :r2 -8]]"
  [register at]
  [[:mov64 register :r10] [:add64 register at]])

(defn whole-program
  "Returns the instructions of an iterator, with its context in :r6.

      (whole-program [[:mov64 :r7 0]]) ;=> [[:mov64 :r6 :r1] [:mov64 :r7 0] :out [:mov64 :r0 0] [:exit]]"
  [insns]
  (concat [[:mov64 :r6 :r1]] insns [:out [:mov64 :r0 0] [:exit]]))

(defn- load-program
  "Loads an iterator whose function has a BTF id; returns the open program."
  ^Program [id insns]
  (let [{:keys [bytes relocations functions]} (asm/assemble insns)
        {:keys [fd]}
        (kernel.prog/load {:type (kernel.prog/types :tracing) :name "bpfmap_iterator"
                           :license "GPL" :insns bytes
                           :relocations (mapv #(assoc % :fd (open-object/descriptor (:ref %)))
                                              relocations)
                           :functions functions :patch! asm/patch-map-fd!
                           :expected-attach-type (attach-types/numbers :trace-iter)
                           :attach-btf-id id}
                          {:op :load :program-type :tracing})]
    (Program. fd :tracing "bpfmap_iterator" {:attach-type :trace-iter})))

(defn reduce-records
  "Reduces the records that a program writes for each object of a kind.

  `target` has further keys of a target, see `bpfmap.link/targets`, and `types` maps names in the
  type of a record to types. Nothing stays loaded. Throws `:not-supported` if the kernel has no such
  iterator, and the errors of loading and attaching."
  [{:keys [kind insns target type types]} f init]
  (let [function (str "bpf_iter_" kind)
        id (or (function-id function)
               (throw (error/error :not-supported (str "The kernel has no iterator " kind)
                                   {:bpfmap/hint
                                    (or (lacks/explain (str "iterators over " kind)
                                                       (lacks/iterators kind)
                                                       {:release (call/kernel-release)
                                                        :options (config/options)})
                                        (str "its BTF has no function " function))})))]
    (with-open [^Closeable p (load-program id (whole-program insns))
                ^Closeable l (attach/attach p (assoc target :iter kind) nil)]
      (reduce f init (output/records l (link/descriptor l :records) type types)))))

;; --- entries of maps

(defn entry-counts
  "Returns the number of elements of each map by id, in one read.

  The number is 0 for types whose elements the kernel does not count. Returns nil before Linux 6.6.
  Source: bpf_map_sum_elem_count in kernel/bpf/map_iter.c.

      (get (entry-counts) 12) ;=> 1024"
  []
  (when-let [kfunc (function-id "bpf_map_sum_elem_count")]
    (persistent!
     (reduce-records {:kind "bpf_map"
                      :insns (concat (object-of "bpf_map" "map" :r7)
                                     [[:ldxw :r1 [:r7 (offset "bpf_map" "id")]]
                                      [:stxdw [:r10 -16] :r1]
                                      [:mov64 :r1 :r7]
                                      [:call-btf kfunc]
                                      [:stxdw [:r10 -8] :r0]]
                                     (write-out "bpf_map" (stack-address :r2 -16) 16))
                      :type [:struct [:id :u64] [:entries :s64]]}
                     ;; A sum of counters that change during the read can be negative.
                     (fn [all {:keys [id entries]}] (assoc! all id (max 0 (long entries))))
                     (transient {})))))
