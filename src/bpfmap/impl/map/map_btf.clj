(ns ^:no-doc bpfmap.impl.map.map-btf
  "Types on their way to the kernel and back: a map is created with BTF, and opened with the types
  that its BTF tells."
  (:require [bpfmap.btf :as btf]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.types :as types]
            [bpfmap.impl.btf.writer :as writer]
            [bpfmap.impl.cache :as cache]
            [bpfmap.impl.kernel.btf :as sys.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.impl.map.struct-ops :as struct-ops]
            [bpfmap.impl.rules :as rules]
            [bpfmap.impl.type.node :as node]
            [bpfmap.spec :as spec])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

;; --- to the kernel

(defn- says-something? [type]
  (not (and (vector? type) (= :bytes (first type)))))

(defn- index-type
  "Returns the node of the key that the kernel is given for an array: it accepts only integers."
  [key]
  (if (= :integer (:kind key)) key (node/node :u32 nil [])))

(defn- with-variable
  "Adds a variable of a map's name to BTF records, in the section .maps, as libbpf loads it: the
  kernel itself keeps 15 characters of a name. See `bpfmap.impl.map.naming`."
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

(defn- written
  "Returns the BTF of the nodes of a key and a value, `{:bytes :ids}`, with the variable of a map's
  whole name if that is not nil."
  [nodes named variable]
  (let [{:keys [records ids]} (cond-> (types/records-of-nodes nodes named)
                                variable (with-variable variable))]
    {:bytes (writer/blob records) :ids ids}))

(defn- variable-of
  "The whole name of a spec that the kernel would cut, if a variable can have it."
  [{:keys [whole-name]}]
  (when (and (string? whole-name)
             (< 15 (count whole-name))
             (re-matches #"[A-Za-z_][A-Za-z0-9_]{0,510}" whole-name))
    whole-name))

(defn- btf-of
  "The BTF of a spec, where its type takes any and its key or value says more than bytes, or its
  name is to be kept; nil otherwise."
  [{:keys [type key value types] :as spec} variable]
  (let [{:keys [btf]} (rules/types type)
        node #(node/node-of spec %)]
    (case btf
      :none nil
      :required (written [(node :key) (node :value)] types variable)
      :value (when (or variable (says-something? value))
               (written [nil (node :value)] types variable))
      ;; The kernel looks the value's type up in its own BTF, and yet wants some BTF object with it.
      :kernel (assoc (btf/->btf [:u32] nil) :ids [0 0])
      (when (and key value (or variable (some says-something? [key value])))
        (written [(cond-> (node :key) (= :index btf) index-type) (node :value)] types
                 variable)))))

(defn with-btf
  "A completed spec that carries its BTF, which is made when it is first needed. The spec may get
  other names, not other types."
  [spec]
  (vary-meta spec assoc ::btf (delay (btf-of spec nil))))

(defn- kept-btf
  "The BTF that a spec carries; nil if it has none, or if making it failed, perhaps for want of
  memory that there is now."
  [spec]
  (when-let [btf (::btf (meta spec))]
    (try @btf (catch Throwable _ nil))))

(def ^:private btf-refused
  "How the kernel refuses BTF: a kind that it does not know, a name, a map type that takes none."
  #{:EINVAL :ENOTSUPP :EOPNOTSUPP :E2BIG})

(defn- refused? [e]
  (btf-refused (:bpfmap/errno (ex-data e))))

(defn- loaded
  "The BTF of a spec in the kernel: `{:fd :ids}`, `{:untyped reason}` where there can be none, nil
  where none is needed."
  [spec ctx]
  (try
    (let [load (fn [variable]
                 (when-let [{:keys [bytes ids]} (or (when-not variable (kept-btf spec))
                                                  (btf-of spec variable))]
                   {:fd (sys.btf/load bytes (:token spec) ctx) :ids ids}))]
      (if-let [variable (variable-of spec)]
        (try
          (load variable)
          (catch ExceptionInfo e
            (if (refused? e) (load nil) (throw e)))) ; before Linux 5.2 there are no variables
        (load nil)))
    (catch ExceptionInfo e
      ;; EPERM as well: where unprivileged users may create maps, they may still load no BTF.
      (let [{:bpfmap/keys [error errno]} (ex-data e)]
        (cond
          ;; Where the map needs its types, what was lacking for them is the reason, not their
          ;; absence.
          (or (refused? e)
              (and (= :EPERM errno) (not= :required (:btf (rules/types (:type spec))))))
          {:untyped (str "the kernel did not take the types as BTF (" (name errno) ")")}

          (= :invalid-value error) {:untyped (ex-message e)} ; too large to be written as BTF
          :else (throw e))))))

(defn create-with-btf
  "Creates a map from a completed spec, with BTF if that can be; returns `{:fd :untyped}`, the
  latter why it has none.

  The one retry without BTF follows a failure that BTF can cause, and no other."
  [spec ctx]
  ;; What this kernel lacks is found out only if all else fails
  (let [without (dissoc ctx :unsupported)
        {btf :fd :keys [ids untyped]} (loaded spec without)]
    (if-not btf
      {:fd (map/create spec ctx) :untyped untyped}
      (try
        {:fd (map/create (assoc spec :btf {:fd btf :key (first ids) :value (second ids)})
                          without)}
        (catch ExceptionInfo e
          (if (refused? e)
            {:fd (map/create spec ctx)
             :untyped (str "the kernel refused the types of key and value for this map ("
                           (name (:bpfmap/errno (ex-data e))) ")")}
            (throw e)))
        (finally (call/close btf))))))

;; --- back

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
(deftype ^:private Told [key value ^long read-at])

(def ^:private told-types
  "Types of maps that were opened, by the ids of BTF object, key type and value type.

  A BTF object never changes, but its id comes round: the kernel counts up to 2^31, and then
  begins with ids that are free. Nobody makes so many objects within [[holds-for]], so what was
  read no longer ago is still what the id stands for."
  (cache/cache))

(def ^:private holds-for
  "Nanoseconds for which the types of a BTF id hold."
  60000000000)

(def ^:private heaviest-kept
  "Members of the largest type that is kept. A hostile program's BTF may have more, as may a few
  sections of variables."
  1000)

(defn- read-types
  "The types that a BTF object has under two ids; the key's is 0 for a data section or a bloom
  filter, which have a value alone."
  [btf-id key-id value-id map-type ctx]
  (let [blob (btf/parse (:bytes (sys.btf/blob btf-id ctx)))
        weigh (fn [id] (types/weighed-type-of blob id))
        [key key-weight] (if (= 0 key-id) [(:key (rules/types map-type)) 0] (weigh key-id))
        [value value-weight] (weigh value-id)]
    [(Told. (some-> key (node/node nil [:key])) (node/node value nil [:value]) (System/nanoTime))
     (+ (long key-weight) (long value-weight))]))

(defn- told
  "As [[read-types]], from a cache if it was read within [[holds-for]]."
  ^Told [{:keys [btf-id btf-key-type-id btf-value-type-id type]} ctx]
  (let [key-id (or btf-key-type-id 0)
        k (TypeIds. btf-id key-id btf-value-type-id type)
        ^Told known (cache/known told-types k)]
    (if (and known (< (- (System/nanoTime) (.-read-at known)) (long holds-for)))
      known
      (let [[types weight] (read-types btf-id key-id btf-value-type-id type ctx)]
        (when (<= (long weight) (long heaviest-kept))
          (cache/keep! told-types 128 k types))
        types))))

(defn- from-btf
  "Returns the nodes of key and value in a map's BTF, or `{:untyped reason}` if it cannot be read.
  With `:struct-ops` for a struct of the kernel's."
  [{:keys [btf-id btf-value-type-id btf-vmlinux-value-type-id] :as info} ctx]
  (when (or (and btf-id btf-value-type-id) btf-vmlinux-value-type-id)
    (try
      (if btf-vmlinux-value-type-id
        (let [{:keys [value] :as found} (struct-ops/told info ctx)]
          (cond-> found value (assoc :value (node/node value nil [:value]))))
        (let [told (told info ctx)]
          {:key (.-key told) :value (.-value told)}))
      (catch ExceptionInfo e
        (if (#{:malformed-btf :permission :not-found} (:bpfmap/error (ex-data e)))
          {:untyped (ex-message e)}
          (throw e))))))

(def ^:private types-of-bytes (cache/cache))

(defn- bytes-type
  "A `[:bytes n]`, the same object for the same size; nil for 0."
  [n]
  (when (pos? (long n))
    (cache/through types-of-bytes 256 n #(vector :bytes n))))

(defn bytes-types
  "Returns the types of a map whose key and value are read as bytes, as [[types-of]] does.

  What refers to other objects is references all the same."
  [{:keys [type key-size value-size flags]}]
  {:key (bytes-type key-size)
   :value (or (when (:values (rules/types type)) (spec/value-default type value-size flags))
              (bytes-type value-size))})

(defn- given
  "Returns the node of the type that an option gives for one side, or nil."
  [side size {:keys [types] :as options} info op]
  (when-let [{given-size :size given :type :as node} (some-> (side options)
                                                              (node/node types [side]))]
    (when (not= size given-size)
      (throw (error/error :incompatible
                          (str "The " (name side) " of map " (:id info) " cannot be a "
                               (pr-str (error/shown given)))
                          {:bpfmap/op op
                           :bpfmap/map (select-keys info [:id :name :type])
                           :bpfmap/path [side]
                           :bpfmap/hint (str "it has " size " bytes, and the type has "
                                             given-size)})))
    node))

(defn types-of
  "Returns the types of a map just opened: those in the options, else those of its BTF, else bytes.

  The result is `{:key :value}` and carries their nodes, with `:types` of the options, with
  `:struct-ops` where the value is a struct of the kernel's, and with `:untyped`, a reason, where
  there is BTF that cannot be used."
  [{:keys [type flags key-size value-size] :as info} options {:keys [op] :as ctx}]
  (let [given-key (given :key key-size options info op)
        given-value (given :value value-size options info op)
        told (when-not (and given-key given-value) (from-btf info ctx))
        fitting (fn [size node] (when (= size (:size node)) node))
        key (or given-key (fitting key-size (:key told)))
        default (delay (spec/value-default type value-size flags))
        told-value (fitting value-size (:value told))
        ;; What refers to other objects reads as references, whatever anybody calls its type.
        value (when-not (and (:values (rules/types type)) @default)
                (or (when (:struct-ops told) told-value) given-value told-value))]
    (cond-> {:key (or (:type key) (rules/key-type type key-size) (bytes-type key-size))
             :value (or (:type value) @default (bytes-type value-size))}
      (contains? options :types) (assoc :types (:types options))
      (or key value) (node/carrying key value)
      (:struct-ops told) (assoc :struct-ops (:struct-ops told))
      (:untyped told) (assoc :untyped (:untyped told)))))
