(ns ^:no-doc bpfmap.impl.map.map-btf
  "Converts types of maps to BTF and back.

  A map is created with the BTF of its types, and opened with the types of its BTF."
  (:require [bpfmap.btf :as btf]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.types :as types]
            [bpfmap.impl.btf.writer :as writer]
            [bpfmap.impl.cache :as cache]
            [bpfmap.impl.kernel.btf :as kernel.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.struct-ops :as struct-ops]
            [bpfmap.impl.type.node :as node]
            [bpfmap.spec :as spec])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

;; --- types to BTF

(defn- informative? [type]
  (not (and (vector? type) (= :bytes (first type)))))

(defn- index-type
  "Returns the node to use in BTF for the key of an array.

  The kernel requires an integer, whatever the index means."
  [key]
  (if (= :integer (:kind key)) key (node/node :u32 nil [])))

(defn- add-variable
  "Adds a variable with a map's whole name to BTF records, in the section .maps.

  libbpf loads maps like this. The kernel itself keeps 15 characters of a name. See
  `bpfmap.impl.map.find-by-name`."
  [{:keys [records ids]} name]
  (let [n (count records)
        pointers (map (fn [id] {:kind :ptr :type id}) ids)
        members (map-indexed (fn [i field]
                               {:name field :type (+ n 1 i) :bit-offset (* 64 i) :bits 0})
                             ["key" "value"])]
    {:ids ids
     :records (into records
                    (concat pointers
                            [{:kind :struct :size 16 :members (vec members)}
                             {:kind :var :name name :type (+ n 3) :linkage :global}
                             {:kind :datasec :name ".maps" :size 16
                              :vars [{:type (+ n 4) :offset 0 :size 16}]}]))}))

(defn- write-btf
  "Returns the BTF of the nodes of key and value: `{:bytes :ids}`.

  With the variable of a map's whole name, if `variable` is not nil."
  [nodes named variable]
  (let [{:keys [records ids]} (cond-> (types/records-of-nodes nodes named)
                                variable (add-variable variable))]
    {:bytes (writer/blob records) :ids ids}))

(defn- variable-of
  "Returns the name of a spec if the kernel would cut it, else nil.

  Also nil if a variable cannot have the name."
  [{:keys [name]}]
  (when (and (string? name)
             (< 15 (count name))
             (re-matches #"[A-Za-z_][A-Za-z0-9_]{0,510}" name))
    name))

(defn- btf-of
  "Returns the BTF of a spec; nil if none is possible or useful.

  It is useful if key or value are more than bytes, or if the whole name has to be kept."
  [{:keys [type key value types] :as spec} variable]
  (let [{:keys [btf]} (map-types/types type)
        node #(node/node-of spec %)]
    (case btf
      :none nil
      :required (write-btf [(node :key) (node :value)] types variable)
      :value (when (or variable (informative? value))
               (write-btf [nil (node :value)] types variable))
      ;; The kernel looks up the value's type in its own BTF, but requires a BTF object as well.
      :kernel (assoc (btf/->btf [:u32] nil) :ids [0 0])
      (when (and key value (or variable (some informative? [key value])))
        (write-btf [(cond-> (node :key) (= :index btf) index-type) (node :value)] types
                   variable)))))

(defn with-btf
  "Returns a completed spec with its BTF as metadata, made on demand.

  The name of the spec may be changed, its types may not."
  [spec]
  (vary-meta spec assoc ::btf (delay (btf-of spec nil))))

(defn- btf-with
  "Returns the BTF of a spec with a variable.

  If `variable` is nil, returns the BTF that the spec carries. The carried one is made again
  if making it failed: memory may be available now."
  [spec variable]
  (if-let [carried (when-not variable (::btf (meta spec)))]
    (try @carried (catch Throwable _ (btf-of spec nil)))
    (btf-of spec variable)))

(defn- load-btf
  "Loads the BTF of a spec: `{:fd :ids}`, `{:untyped reason}` or nil.

  `:untyped` means that the map has to be created without BTF, nil that it needs none."
  [spec ctx]
  (try
    (let [load (fn [variable]
                 (when-let [{:keys [bytes ids]} (btf-with spec variable)]
                   {:fd (kernel.btf/load bytes (:token spec) ctx) :ids ids}))]
      (if-let [variable (variable-of spec)]
        (try
          (load variable)
          (catch ExceptionInfo e
            ;; Before Linux 5.2 there are no variables.
            (if (kernel.btf/refused? e) (load nil) (throw e))))
        (load nil)))
    (catch ExceptionInfo e
      ;; EPERM as well: unprivileged users who may create maps still may not load BTF.
      (let [{:bpfmap/keys [error errno]} (ex-data e)]
        (cond
          ;; If the map requires its types, the user needs the reason why they were rejected, not
          ;; an error about their absence.
          (or (kernel.btf/refused? e)
              (and (= :EPERM errno) (not= :required (:btf (map-types/types (:type spec))))))
          {:untyped (str "the kernel rejected the types as BTF (" (name errno) ")")}

          (= :invalid-value error) {:untyped (ex-message e)} ; too large to be written as BTF
          :else (throw e))))))

(defn- with-ids
  "Returns a given BTF object with the ids that the map type takes, or nil."
  [{[key value :as ids] :ids :as btf} {:keys [type]}]
  (case (:btf (map-types/types type))
    :none nil
    :value (assoc btf :ids [0 value])
    :kernel (assoc btf :ids [0 0])
    (when (some pos? ids) (assoc btf :ids [key value]))))

(defn create-with-btf
  "Creates a map from a completed spec, with BTF if possible: `{:fd :untyped}`.

  `:untyped` is the reason for having no BTF. Retries without BTF once, and only after a failure
  that BTF can cause. `:btf` of the context is a BTF object to use, `{:fd :ids}`; its owner closes
  it."
  [spec {given :btf :as ctx}]
  ;; The probes for what this kernel lacks run only if everything else fails.
  (let [without (dissoc ctx :unsupported)
        {btf :fd :keys [ids untyped]} (if given (with-ids given spec) (load-btf spec without))
        untyped-spec (cond-> spec (:name spec) (update :name spec/kernel-name))]
    (if-not btf
      {:fd (kernel.map/create untyped-spec ctx) :untyped untyped}
      (try
        {:fd (kernel.map/create (assoc untyped-spec :btf
                                       {:fd btf :key (first ids) :value (second ids)})
                                without)}
        (catch ExceptionInfo e
          (if (kernel.btf/refused? e)
            {:fd (kernel.map/create untyped-spec ctx)
             :untyped (str "the kernel rejected the types of key and value for this map ("
                           (name (:bpfmap/errno (ex-data e))) ")")}
            (throw e)))
        (finally (when-not given (call/close btf)))))))

;; --- BTF to types

(deftype ^:private TypeIds [^long btf-id ^long key-id ^long value-id map-type]
  Object
  (hashCode [_]
    (unchecked-int (+ btf-id (* 31 (+ key-id (* 31 value-id))))))
  (equals [_ other]
    (and (instance? TypeIds other)
         (let [^TypeIds other other]
           (and (= btf-id (.-btf-id other))
                (= key-id (.-key-id other))
                (= value-id (.-value-id other))
                (= map-type (.-map-type other)))))))

;; The nodes of key and value, and when they were read.
(deftype ^:private BtfTypes [key value ^long read-at])

(def ^:private types-cache
  "Types of opened maps by the ids of BTF object, key type and value type.

  A BTF object never changes, but its id may be reused: the kernel counts up to 2^31, and then
  starts again with free ids. Nobody makes so many objects within [[max-age-ns]], so a younger
  entry is still valid."
  (cache/cache))

(def ^:private max-age-ns
  "Nanoseconds for which the types of a BTF id are valid."
  60000000000)

(def ^:private max-cached-weight
  "Members of the largest type that is cached.

  The BTF of a hostile program may have more, and so may a few sections of variables."
  1000)

(defn- read-types
  "Returns the types in a BTF object under two ids, and their weight.

  The key's id is 0 for a data section or a bloom filter, which have a value only."
  [btf-id key-id value-id map-type ctx]
  (let [blob (btf/parse (:bytes (kernel.btf/blob btf-id ctx)))
        weigh (fn [id] (types/weighed-type-of blob id))
        [key key-weight] (if (= 0 key-id) [(:key (map-types/types map-type)) 0] (weigh key-id))
        [value value-weight] (weigh value-id)]
    [(BtfTypes. (some-> key (node/node nil [:key])) (node/node value nil [:value])
                (System/nanoTime))
     (+ (long key-weight) (long value-weight))]))

(defn- cached-types
  "Returns the same as [[read-types]], from a cache within [[max-age-ns]]."
  ^BtfTypes [{:keys [btf-id btf-key-type-id btf-value-type-id type]} ctx]
  (let [key-id (or btf-key-type-id 0)
        k (TypeIds. btf-id key-id btf-value-type-id type)
        ^BtfTypes known (cache/known types-cache k)]
    (if (and known (< (- (System/nanoTime) (.-read-at known)) (long max-age-ns)))
      known
      (let [[types weight] (read-types btf-id key-id btf-value-type-id type ctx)]
        (when (<= (long weight) (long max-cached-weight))
          (cache/keep! types-cache 128 k types))
        types))))

(defn- from-btf
  "Returns the nodes of key and value in a map's BTF, or `{:untyped reason}`.

  For a struct of the kernel also has `:struct-ops`."
  [{:keys [btf-id btf-value-type-id btf-vmlinux-value-type-id] :as info} ctx]
  (when (or (and btf-id btf-value-type-id) btf-vmlinux-value-type-id)
    (try
      (if btf-vmlinux-value-type-id
        (let [{:keys [value] :as found} (struct-ops/value-type info ctx)]
          (cond-> found value (assoc :value (node/node value nil [:value]))))
        (let [types (cached-types info ctx)]
          {:key (.-key types) :value (.-value types)}))
      (catch ExceptionInfo e
        (if (#{:malformed-btf :permission :not-found} (:bpfmap/error (ex-data e)))
          {:untyped (ex-message e)}
          (throw e))))))

(defn- from-simulated
  "Returns the nodes of key and value of a simulated map, or nil."
  [{:keys [fd]}]
  (when-let [spec (some-> fd kernel.map/simulated-spec)]
    {:key (node/node-of spec :key) :value (node/node-of spec :value)}))

(def ^:private types-of-bytes (cache/cache))

(defn- bytes-type
  "Returns a `[:bytes n]`, the same object for the same size; nil for 0."
  [n]
  (when (pos? (long n))
    (cache/through types-of-bytes 256 n #(vector :bytes n))))

(defn bytes-types
  "Returns the types of a map read as bytes, as [[types-of]] does.

  References to other objects are references all the same."
  [{:keys [type key-size value-size flags]}]
  {:key (bytes-type key-size)
   :value (or (when (:values (map-types/types type)) (spec/value-default type value-size flags))
              (bytes-type value-size))})

(defn- given-node
  "Returns the node of the type in an option for key or value, or nil."
  [side size {:keys [types] :as options} info op]
  (when-let [{given-size :size given :type :as node} (some-> (side options)
                                                             (node/node types [side]))]
    (when (not= size given-size)
      (throw (error/error :incompatible
                          (str "The " (name side) " of map " (:id info) " cannot be a "
                               (error/printed given))
                          {:bpfmap/op op
                           :bpfmap/map (select-keys info [:id :name :type])
                           :bpfmap/path [side]
                           :bpfmap/hint (str "it has " size " bytes, and the type has "
                                             given-size)})))
    node))

(defn types-of
  "Returns the types of an opened map: from options, else from BTF, else bytes.

  As `{:key :value}` with their nodes as metadata, with `:types` of the options, with `:struct-ops`
  if the value is a struct of the kernel, and with `:untyped`, a reason, if there is BTF that
  cannot be used."
  [{:keys [type flags key-size value-size] :as info} options {:keys [op] :as ctx}]
  (let [given-key (given-node :key key-size options info op)
        given-value (given-node :value value-size options info op)
        btf-types (when-not (and given-key given-value)
                    (or (from-simulated ctx) (from-btf info ctx)))
        fitting (fn [size node] (when (= size (:size node)) node))
        key (or given-key (fitting key-size (:key btf-types)))
        default (delay (spec/value-default type value-size flags))
        btf-value (fitting value-size (:value btf-types))
        ;; References stay references, whatever type an option or the BTF names.
        value (when-not (and (:values (map-types/types type)) @default)
                (or (when (:struct-ops btf-types) btf-value) given-value btf-value))]
    (cond-> {:key (or (:type key) (map-types/key-type type key-size) (bytes-type key-size))
             :value (or (:type value) @default (bytes-type value-size))}
      (contains? options :types) (assoc :types (:types options))
      (or key value) (node/carrying key value)
      (:struct-ops btf-types) (assoc :struct-ops (:struct-ops btf-types))
      (:untyped btf-types) (assoc :untyped (:untyped btf-types)))))
