(ns ^:no-doc bpfmap.impl.map.struct-ops
  "Finds the structs that programs can implement in the BTF of the kernel.

  A map holds the wrapper of such a struct, a `struct bpf_struct_ops_…`."
  (:require [bpfmap.btf :as btf]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.host.kernel-btf :as kernel-btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.config :as config]
            [bpfmap.impl.kernel.lacks :as lacks]
            [bpfmap.impl.kernel.probe :as kernel.probe]
            [bpfmap.impl.spec :as spec]
            [bpfmap.impl.type.node :as node]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(def ^:private prefix "bpf_struct_ops_")

(defn- wrapped-struct
  "Returns the name of the struct that a type wraps; nil for any other type.

  Not all types with the prefix are wrappers."
  [b id]
  (let [name (when (= :struct (blob/kind b id)) (blob/name-of b id))]
    (when (and name (str/starts-with? name prefix))
      (let [data (some #(when (= "data" (:name %)) (blob/name-of b (:type %)))
                       (:members (blob/record b id)))]
        (when (= name (str prefix data)) data)))))

(defn- names
  "Returns the names of all structs that programs can implement.

  Reads the whole BTF, which takes a tenth of a second."
  [b]
  (sort (distinct (keep #(wrapped-struct b %) (range 1 (inc (blob/type-count b)))))))

(defn- wrapper
  "Returns the id of the wrapper of a struct; throws `:not-found` with all names.

  Throws `:not-supported` for one that other kernels are known to have."
  [b name]
  (or (some #(when (= name (wrapped-struct b %)) %) (blob/ids-named b (str prefix name) :struct))
      (let [lacking (lacks/explain (str "programs that implement " name) (lacks/structs name)
                                   {:release (call/kernel-release) :options (config/options)})]
        (throw (error/error (if lacking :not-supported :not-found)
                            (str "This kernel has no struct " name " that programs can implement")
                            {:bpfmap/path [:struct-ops]
                             :bpfmap/hint (or lacking
                                              (str
                                               "use the name of a struct " prefix
                                               "… in the kernel's BTF, without the prefix; here "
                                               (if-let [names (seq (names b))]
                                                 (error/list-of names)
                                                 "there are none")))})))))

(defn complete
  "Returns a completed spec with the type and size of its values.

  `:value-type` is the id of that type in the kernel's BTF."
  [{:keys [struct-ops value-size flags] :as spec} ctx]
  (when (:vtype-btf-obj-fd flags)
    (throw (error/error :not-supported "A struct of a kernel module cannot be implemented from here"
                        {:bpfmap/op :create :bpfmap/path [:flags] :bpfmap/map (:map ctx)
                         :bpfmap/hint (str
                                       "leave :vtype-btf-obj-fd out: types are looked up in the "
                                       "BTF of the kernel itself")})))
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

(defn value-type
  "Returns the type of the values of an existing map, or why it is unknown.

  As `{:value :struct-ops}` or `{:untyped reason}`."
  [{:keys [btf-vmlinux-value-type-id flags]} ctx]
  (if (:vtype-btf-obj-fd flags)
    {:untyped "its values are a struct of a kernel module, whose BTF is not looked up"}
    (let [b (kernel-btf/kernel (:op ctx))]
      {:value (btf/type-of b btf-vmlinux-value-type-id)
       :struct-ops (wrapped-struct b btf-vmlinux-value-type-id)})))

(def ^:private return-zero
  "Instructions of a program that returns 0, as bytes: r0 = 0; exit.

  Little-endian, as all supported processors."
  (byte-array (map unchecked-byte [0xb7 0 0 0 0 0 0 0, 0x95 0 0 0 0 0 0 0])))

(defn with-kernel-btf
  "Calls `create`, which creates a map of this type.

  After ENOTSUPP loads a program, closes it, and calls `create` again: Linux 5.10 reads its own
  BTF with the first program, and has no structs until then."
  [create ctx]
  (try
    (create)
    (catch ExceptionInfo e
      (if (and (= :ENOTSUPP (:bpfmap/errno (ex-data e)))
               ;; Type 1 is a socket filter.

               (nat-int? (:outcome (kernel.probe/load-program {:type 1 :insns return-zero} ctx))))
        (create)
        (throw e)))))
