(ns ^:no-doc bpfmap.impl.map.struct-ops
  "The structs of the kernel that programs can implement, as its BTF tells them.

  For each there is a `struct bpf_struct_ops_…` around it, which is what the map holds."
  (:require [bpfmap.btf :as btf]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.host.kernel-btf :as kernel-btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.probe :as probe]
            [bpfmap.impl.spec :as spec]
            [bpfmap.impl.type.node :as node]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(def ^:private prefix "bpf_struct_ops_")

(defn- implemented
  "The name of the struct that a type is the wrapper of; nil for any other type. Not all that have
  the prefix are wrappers."
  [b id]
  (let [name (when (= :struct (blob/kind b id)) (blob/name-of b id))]
    (when (and name (str/starts-with? name prefix))
      (let [data (some #(when (= "data" (:name %)) (blob/name-of b (:type %)))
                       (:members (blob/record b id)))]
        (when (= name (str prefix data)) data)))))

(defn- names
  "The names of all structs that programs can implement. It goes through the whole BTF: a tenth of
  a second."
  [b]
  (sort (distinct (keep #(implemented b %) (range 1 (inc (blob/type-count b)))))))

(defn- wrapper
  "The id of the wrapper of a struct; throws `:not-found` with the names that there are."
  [b name]
  (or (some #(when (= name (implemented b %)) %) (blob/ids-named b (str prefix name) :struct))
      (throw (error/error :not-found
                          (str "This kernel has no struct " name " that programs can implement")
                          {:bpfmap/path [:struct-ops]
                           :bpfmap/hint (str
                                         "the names are in the kernel's BTF, those of the structs "
                                         prefix "… without that; here "
                                             (if-let [names (seq (names b))]
                                               (error/list-of names)
                                               "there are none"))}))))

(defn completed
  "A completed spec with the type and size of its values, and as `:value-type` the id of that type
  in the kernel's BTF."
  [{:keys [struct-ops value-size flags] :as spec} ctx]
  (when (:vtype-btf-obj-fd flags)
    (throw (error/error :not-supported "A struct of a kernel module cannot be implemented from here"
                        {:bpfmap/op :create :bpfmap/path [:flags] :bpfmap/map (:map ctx)
                         :bpfmap/hint "types are looked up in the BTF of the kernel itself; leave :vtype-btf-obj-fd out"})))
  (try
    (let [b (kernel-btf/kernel :create)
          id (wrapper b struct-ops)
          size (blob/size-of b id)]
      (when-not (contains? #{0 size} value-size)
        (throw (spec/refusal [{:path [:value]
                                :message (str "the struct " prefix struct-ops " of this kernel has "
                                              size " bytes, not " value-size
                                              "; leave :value and :value-size out")}])))
      (node/with-nodes (assoc spec :value (btf/type-of b id) :value-size size :value-type id)))
    (catch ExceptionInfo e
      (throw (call/in-context e ctx)))))

(defn told
  "The type of the values of a map that exists: `{:value :struct-ops}`, or `{:untyped reason}`."
  [{:keys [btf-vmlinux-value-type-id flags]} ctx]
  (if (:vtype-btf-obj-fd flags)
    {:untyped "its values are a struct of a kernel module, whose BTF is not looked up"}
    (let [b (kernel-btf/kernel (:op ctx))]
      {:value (btf/type-of b btf-vmlinux-value-type-id)
       :struct-ops (implemented b btf-vmlinux-value-type-id)})))

(def ^:private two-instructions
  "r0 = 0; exit, as bytes: little-endian, as the processors that bpfmap knows are."
  (byte-array (map unchecked-byte [0xb7 0 0 0 0 0 0 0, 0x95 0 0 0 0 0 0 0])))

(defn reading-kernel-btf
  "Calls `create`, which creates a map of the type. Where the kernel answers ENOTSUPP, a program
  is loaded, closed, and `create` called again: Linux 5.10 reads its own BTF with the first
  program, and has no structs until then."
  [create ctx]
  (try
    (create)
    (catch ExceptionInfo e
      (if (and (= :ENOTSUPP (:bpfmap/errno (ex-data e)))
               ;; A socket filter
               (nat-int? (:outcome (probe/load-program {:type 1 :insns two-instructions} ctx))))
        (create)
        (throw e)))))
