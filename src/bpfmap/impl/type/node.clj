(ns ^:no-doc bpfmap.impl.type.node
  "Parses types, which are data, into nodes: checks and lays out every type.

  Members are placed as C places them on this machine. A node is a map with `:kind :size :align
  :type`, sizes in bytes, and the keys of its kind: `:signed :order` of integers, `:values` and
  `:names` of an enum, `:element :count` of an array, `:members` of a struct or union, `:family` and
  `:layout`, a struct's node, of a prefix. A member has `:name` (nil if anonymous), `:node`,
  `:offset` in bytes, and as a bit-field `:bits` and `:bit-offset`.

  The layout follows the System V ABI of x86-64, which arm64 and riscv64 share except for unnamed
  bit-fields."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.nearest :as nearest])
  (:import (clojure.lang ExceptionInfo)
           (java.util HashSet)))

(set! *warn-on-reflection* true)

(def largest-size
  "The largest size in bytes: the kernel's interface has 32-bit sizes."
  0xffffffff)

(def ^:private deepest 64)

;; ---------------------------------------------------------------- scalars

(defn- integer-rows []
  (for [bits [8 16 32 64 128]
        signed? [false true]
        order (if (= 8 bits) [nil] [nil :be :le])]
    [(keyword (str (if signed? "s" "u") bits (some-> order name)))
     {:kind :integer :size (quot bits 8) :align (quot bits 8) :signed signed? :order order}]))

(defn- float-rows []
  (for [bits [32 64]
        order [nil :be :le]]
    [(keyword (str "f" bits (some-> order name)))
     {:kind :float :size (quot bits 8) :align (quot bits 8) :order order}]))

(def private-types
  "Fields owned by the kernel, which are not shown and are written as zero.

  Name to its struct in C, and its layout. Source: linux/bpf.h and the BTF of Linux 6.18."
  {:spin-lock     {:c-name "bpf_spin_lock" :size 4 :align 4}
   :res-spin-lock {:c-name "bpf_res_spin_lock" :size 4 :align 4}
   :timer         {:c-name "bpf_timer" :size 16 :align 8}
   :wq            {:c-name "bpf_wq" :size 16 :align 8}
   :task-work     {:c-name "bpf_task_work" :size 8 :align 8}
   :list-head     {:c-name "bpf_list_head" :size 16 :align 8}
   :list-node     {:c-name "bpf_list_node" :size 24 :align 8}
   :rb-root       {:c-name "bpf_rb_root" :size 16 :align 8}
   :rb-node       {:c-name "bpf_rb_node" :size 32 :align 8}
   :refcount      {:c-name "bpf_refcount" :size 4 :align 4}
   :dynptr        {:c-name "bpf_dynptr" :size 16 :align 8}
   ;; A pointer with a type tag of its own rather than a struct.
   :kptr          {:c-name "void *" :size 8 :align 8}})

(def scalars
  "All types that are a keyword: name to node, without its `:type`."
  (into (sorted-map)
        (concat (integer-rows)
                (float-rows)
                (for [[k row] private-types] [k (assoc row :kind :private)])
                [[:bool {:kind :bool :size 1 :align 1}]
                 [:char {:kind :char :size 1 :align 1}]
                 [:ptr {:kind :pointer :size 8 :align 8}]
                 [:ipv4 {:kind :ipv4 :size 4 :align 4}]
                 [:ipv6 {:kind :ipv6 :size 16 :align 4}]
                 [:mac {:kind :mac :size 6 :align 1}]
                 [:port {:kind :integer :size 2 :align 2 :signed false :order :be}]
                 [:ktime {:kind :integer :size 8 :align 8 :signed false :order nil}]])))

;; ---------------------------------------------------------------- errors

(defn- malformed ^Throwable [path message]
  (error/error :invalid-spec (str path ": " message) {:bpfmap/path path}))

(defmacro ^:private require-that
  "Throws unless ok? is true.

  A macro, because a message can contain a whole type and must be made only on demand."
  [ok? path & message]
  `(when-not ~ok?
     (throw (malformed ~path (str ~@message)))))

(defn- shown [x]
  (error/printed x))

(declare node*)

;; ---------------------------------------------------------------- layout

(defn round-up
  "Returns the first multiple of `to` that is not below n.

      (round-up 5 4) ;=> 8"
  ^long [^long n ^long to]
  (* to (quot (+ n (dec to)) to)))

(defn- place-bits
  "Returns the offset of a bit-field in bits.

  It follows the previous member, unless it would straddle a unit of its type."
  ^long [packed? cursor {:keys [node bits]}]
  (let [unit (* 8 (long (:size node)))
        cursor (long cursor)]
    (cond
      (zero? (long bits)) (round-up cursor (* 8 (long (:align node)))) ; packed or not
      packed? cursor
      (= (quot cursor unit) (quot (+ cursor (dec (long bits))) unit)) cursor
      :else (round-up cursor (* 8 (long (:align node)))))))

(defn- own-alignment
  "Returns the alignment that a member requires of its struct.

  Unnamed bit-fields require none."
  ^long [packed? {:keys [node bits name options]}]
  (max (long (:align options 1))
       (if (or packed? (and bits (nil? name))) 1 (long (:align node)))))

(defn- place
  "Returns a member with its offset, and the next free bit behind it."
  [packed? cursor {:keys [node bits options] :as member}]
  (let [{:keys [offset bit-offset]} options]
    (if bits
      (let [at (or bit-offset (some-> offset (* 8)) (place-bits packed? cursor member))]
        [(assoc member :bit-offset at :offset (quot (long at) 8)) (+ (long at) (long bits))])
      (let [at (or offset (round-up (quot (+ (long cursor) 7) 8) (own-alignment packed? member)))]
        [(assoc member :offset at) (* 8 (+ (long at) (long (:size node))))]))))

(defn member-names
  "Returns the names of all fields of a struct or union.

  Fields of anonymous members are included."
  [{:keys [members]}]
  (mapcat (fn [{:keys [name node]}] (if name [name] (member-names node))) members))

(defn- repeated
  "Returns the first name that occurs twice, or nil."
  [names]
  (let [seen (HashSet.)]
    (some #(when-not (.add seen %) %) names)))

(defn- place-all
  "Returns members with their offsets, and the bits that they take together.

  Returns nil if a member has an `:at`, in bits, and its offset differs."
  [kind packed? members]
  (reduce (fn [[placed ^long end] member]
            (let
             [[{:keys [at bits bit-offset offset] :as member} behind] (place packed?
                                                                             (if (= :union kind)
                                                                               0
                                                                               end) member)]
              (if (and at (not (== (long at) (long (if bits bit-offset (* 8 (long offset)))))))
                (reduced nil)
                [(conj placed member) (max end (long behind))])))
          [[] 0]
          members))

(defn- of-placed
  "Returns the node of a struct or union from members with offsets.

  The last argument is the number of bits that they use."
  [[placed end] kind {:keys [packed align size name]} path]
  (let [alignment (long (reduce (fn [^long most member] (max most (own-alignment packed member)))
                                (long (or align 1)) placed))
        natural (round-up (quot (+ (long end) 7) 8) alignment)
        node (cond-> {:kind kind :size (or size natural) :align alignment
                      ;; Unnamed bit-fields only reserve space.
                      :members (into []
                                     (remove #(or (= :pad (:kind (:node %)))
                                                  (and (:bits %) (nil? (:name %))))) placed)}
               name (assoc :c-name name))]
    (require-that (<= natural (long (or size natural))) path
                  ":size must be at least " natural ", the size of its members, got " size)
    (require-that (<= natural (long largest-size)) path "it has more than " largest-size " bytes")
    (when-let [twice (repeated (member-names node))]
      (throw (malformed path (str "two members have the name " twice))))
    node))

(defn of-members
  "Returns the node of a struct or union from its members, or nil.

  Members are in order: `{:name :node :options}`, with `:bits` for a bit-field, and with `:at`, the
  required offset in bits, if it is known. Returns nil if the offset of a member differs from its
  `:at`. Throws `:invalid-spec` if the members do not fit the `:size`, or share a name."
  [kind members {:keys [packed] :as options} path]
  (some-> (place-all kind packed members)
          (of-placed kind options path)))

(defn of-array
  "Returns the node of an array of n elements.

  Throws `:invalid-spec` if it is too large."
  [element n path]
  (let [size (*' (long (:size element)) (long n))]
    (require-that (<= size largest-size) path "it has more than " largest-size " bytes")
    {:kind :array :size size :align (:align element) :element element :count n}))

;; ---------------------------------------------------------------- compounds

(defn- power-of-two? [n]
  (and (int? n) (pos? (long n)) (zero? (bit-and (long n) (dec (long n))))))

(def ^:private member-options #{:offset :bit-offset :align})
(def ^:private struct-options #{:packed :align :size :name})

(defn- check-options [options allowed path]
  (require-that (or (nil? options) (map? options)) path
                "options of a type must be a map, got " (shown options))
  (doseq [[k v] options]
    (require-that (allowed k) path "unknown option " (shown k) "; "
                  (nearest/alternatives k (sort allowed)))
    (case k
      :align (require-that (power-of-two? v) path ":align must be a power of two, got " (shown v))
      (:offset :bit-offset :size) (require-that (and (int? v) (<= 0 (long v) (long largest-size)))
                                                path
                                                k " must be an integer from 0, got " (shown v))
      :packed (require-that (boolean? v) path ":packed must be true or false, got " (shown v))
      :name (require-that (string? v) path ":name must be a string, got " (shown v)))))

(defn- bits-member [[_ base n :as type] name context path]
  (require-that (= 3 (count type)) path "a bit-field must be [:bits type n], got " (shown type))
  (let [node (node* base context path)]
    (require-that (and (#{:integer :bool :enum} (:kind node))
                       (nil? (:order node))
                       (<= (long (:size node)) 8)) path
                  "the type of a bit-field must be an integer type of this machine's byte order, a bool or an enum, of up to 8 bytes, got "
                  (shown base))
    (require-that (and (int? n)
                       (<= (if name 1 0) (long n)
                           (if (= :bool (:kind node)) 1 (* 8 (long (:size node)))))) path
                  "a bit-field of " (shown base) " must have 1 to "
                  (if (= :bool (:kind node)) 1 (* 8 (long (:size node)))) " bits, got " (shown n))
    {:node node :bits n}))

(defn- member [form context path]
  (require-that (and (vector? form) (<= 2 (count form) 3)) path
                "a member must be [name type] or [name type options], got " (shown form))
  (let [[name type options] (if (and (= :pad (first form)) (int? (second form)))
                              [nil form nil]
                              form)
        path (if name (conj path (if (keyword? name) name (error/shown name))) path)
        bits? (and (vector? type) (= :bits (first type)))]
    (require-that (or (nil? name) (keyword? name)) path
                  "a member's name must be a keyword or nil, got "
                  (shown name))
    (require-that (not= :bpfmap/padding name) path
                  "no member can be named :bpfmap/padding: unused bits are read under that name")
    (require-that (or (nil? options) (map? options)) path "a member's options must be a map, got "
                  (shown options))
    (check-options options member-options path)
    (require-that (or bits? (nil? (:bit-offset options))) path
                  ":bit-offset is for bit-fields; use :offset")
    (let [placed (merge {:name name :options options}
                        (if bits?
                          (bits-member type name context path)
                          {:node (node* type context path)}))]
      (require-that (or name bits? (#{:struct :union :pad} (:kind (:node placed)))) path
                    "a member without a name must be a struct, a union, a bit-field or [:pad n], got "
                    (shown type))
      placed)))

(defn check-overlap
  "Throws `:invalid-spec` if members of a struct overlap because of their options.

  Writing one of them would change the other."
  [{:keys [members]} path]
  (reduce (fn [[^long end before] {:keys [name node offset bits bit-offset]}]
            (let [start (long (if bits bit-offset (* 8 (long offset))))
                  size (long (or bits (* 8 (long (:size node)))))]
              (require-that (or (zero? size) (<= end start)) path (or name "a member")
                            " overlaps " (or before "another member"))
              (if (< end (+ start size)) [(+ start size) name] [end before])))
          [0 nil]
          (sort-by #(or (:bit-offset %) (* 8 (long (:offset %)))) members)))

(defn- compound [[kind & more] context path]
  (let [[options forms] (if (map? (first more)) [(first more) (rest more)] [nil more])]
    (check-options options struct-options path)
    (let [node (of-members kind (mapv #(member % context path) forms) options path)]
      (when (= :struct kind) (check-overlap node path))
      node)))

(defn- array [[_ element n :as type] context path]
  (require-that (= 3 (count type)) path "an array must be [:array type n], got " (shown type))
  (require-that (and (int? n) (<= 0 (long n) (long largest-size))) path
                "the count of an array must be an integer from 0, got " (shown n))
  (of-array (node* element context (conj path :element)) n path))

(defn- enum [[_ base values options :as type] context path]
  (require-that (and (<= 3 (count type) 4) (map? values)) path
                "an enum must be [:enum type {name number}], got " (shown type))
  (check-options options #{:name} path)
  (let [node (node* base context path)
        bits (* 8 (long (:size node)))
        [low high] (if (:signed node)
                     [(- (.pow (biginteger 2) (dec bits))) (dec (.pow (biginteger 2) (dec bits)))]
                     [0 (dec (.pow (biginteger 2) bits))])]
    (require-that (and (= :integer (:kind node)) (<= (long (:size node)) 8)) path
                  "the type of an enum must be an integer type of up to 8 bytes, got " (shown base))
    (doseq [[k v] values]
      (require-that (keyword? k) path "the names of an enum must be keywords, got " (shown k))
      (require-that (and (integer? v) (<= low v high)) path k " does not fit " (shown base) ": "
                    (shown v)))
    (assoc node :kind :enum :base node :values values :c-name (:name options)
           ;; Number to name; the first of equal numbers counts.
           :names
           (reduce-kv (fn [names k v] (if (contains? names v) names (assoc names v k))) {}
                      values))))

(defn- sized [kind least]
  (fn [[head n :as type] _ path]
    (require-that (and (= 2 (count type)) (int? n) (<= (long least) (long n) (long largest-size)))
                  path
                  "[" head " n] must have one size from " least " to " largest-size ", got "
                  (shown type))
    {:kind kind :size n :align 1}))

(defn- typedef [[_ name target :as type] context path]
  (require-that (and (= 3 (count type)) (string? name)) path
                "a typedef must be [:typedef \"name\" type], got " (shown type))
  (let [node (node* target context path)]
    (assoc node :typedef name :target node)))

(defn- via [[_ target encode decode :as type] context path]
  (require-that (and (= 4 (count type)) (ifn? encode) (ifn? decode)) path
                "it must be [:via type encode decode] with two functions, got " (shown type))
  (let [node (node* target context path)]
    (assoc (select-keys node [:size :align]) :kind :via :target node :encode encode :decode
           decode)))

(defn- prefix [[_ family :as type] _ path]
  (require-that (and (= 2 (count type)) (keyword? family) (#{:ipv4 :ipv6} family)) path
                "a prefix must be [:prefix :ipv4] or [:prefix :ipv6], got " (shown type))
  ;; struct bpf_lpm_trie_key of linux/bpf.h, whose data are the bytes of an address.
  (let [data [:bytes (:size (scalars family))]
        layout (compound [:struct [:prefixlen :u32] [:data data]] {:depth 0} path)]
    (assoc (select-keys layout [:size :align]) :kind :prefix :family family :layout
           (assoc layout :type type))))

(defn- pointer [[_ target :as type] _ path]
  (require-that (= 2 (count type)) path "a pointer must be :ptr or [:ptr type], got " (shown type))
  {:kind :pointer :size 8 :align 8 :target target})

(def ^:private compounds
  {:struct compound :union compound :array array :enum enum :typedef typedef :via via :ptr pointer
   :prefix prefix
   :bytes (sized :bytes 1) :string (sized :string 1) :pad (sized :pad 0)
   :c-string (fn [type context path] (assoc ((sized :string 1) type context path) :terminated true))
   :bits (fn [_ _ path]
           (throw (malformed path "[:bits type n] must be a member of a struct or union")))})

(defn- named [type {:keys [types within] :as context} path]
  (require-that (contains? types type) path
                "unknown type " type "; "
                (nearest/suggestion type (concat (sort (keys types)) (keys scalars))
                                    "bpfmap.type for all types"))
  (require-that (not (contains? within type)) path "the named type " type " contains itself")
  (node* (types type) (update context :within (fnil conj #{}) type) path))

(defn- node* [type {:keys [depth] :as context} path]
  (require-that (< (long depth) (long deepest)) path "types are nested more than " deepest " deep")
  (let [context (update context :depth inc)]
    (assoc (cond
             (keyword? type) (or (scalars type) (named type context path))
             (and
              (vector? type) (compounds (first type))) ((compounds (first type)) type context path)
             :else
             (throw (malformed path
                               (str "a type must be a keyword such as :u32 or a vector that starts "
                                    "with a keyword such as :struct, got " (shown type) "; "
                                    (nearest/suggestion
                                     (when (vector? type) (first type))
                                     (sort (keys compounds))
                                     "bpfmap.type for all types")))))
           :type type)))

(defn node
  "Returns the node of a type; throws `:invalid-spec` for a malformed one.

  The error has the path of the invalid part. `types` maps names to types; `path` is the path of the
  type itself.

      (select-keys (node [:struct [:a :u8] [:b :u32]] nil []) [:size :align])
      ;=> {:size 8, :align 4}"
  [type types path]
  (require-that (or (nil? types) (and (map? types) (every? keyword? (keys types)))) path
                "named types must be a map of keywords to types, got " (shown types))
  (node* type {:types (some->> types (into {})) :depth 0} path))

;; ---------------------------------------------------------------- the nodes of a map spec

(deftype ^:private Parsed [type types node problem])

(defn- parsed ^Parsed [spec side]
  (let [type (side spec)
        types (when (map? (:types spec)) (:types spec))]
    (try
      (Parsed. type (:types spec) (node type types [side]) nil)
      (catch ExceptionInfo e
        (if (:bpfmap/error (ex-data e))
          (Parsed. type (:types spec) nil (ex-message e))
          (throw e))))))

(defn- carried
  "Returns the parsed type of a spec's :key or :value from its metadata, or nil.

  It counts only for the very type from which it was parsed, because the spec may have been
  changed since."
  ^Parsed [spec side]
  (let [^Parsed parsed (get (::parsed (meta spec)) side)]
    (when (and parsed
               (identical? (.-type parsed) (side spec))
               (identical? (.-types parsed) (:types spec)))
      parsed)))

(defn with-nodes
  "Returns a spec with the nodes of its :key and :value in its metadata.

  Each type is parsed once. Malformed types are kept with their problem; see [[side-problem]].

      (node-of (with-nodes {:key :u32 :value :u64}) :key)"
  [spec]
  (reduce (fn [spec side]
            (if (or (nil? (side spec)) (carried spec side))
              spec
              (vary-meta spec assoc-in [::parsed side] (parsed spec side))))
          spec
          [:key :value]))

(defn carrying
  "Returns a spec that carries the nodes of its :key and its :value.

  A node is nil if that type has not been parsed yet.

      (carrying {:key :u32} (node :u32 nil [:key]) nil)"
  [{:keys [key value types] :as spec} key-node value-node]
  (with-meta spec
    (assoc (meta spec) ::parsed {:key (when key-node (Parsed. key types key-node nil))
                                 :value (when value-node (Parsed. value types value-node nil))})))

(defn side-problem
  "Returns why the :key or :value of a spec is not a type, as a sentence, or nil.

      (side-problem {:key :u33} :key) ;=> \"[:key]: unknown type :u33; …\""
  [spec side]
  (when (some? (side spec))
    (.-problem ^Parsed (or (carried spec side) (parsed spec side)))))

(defn node-of
  "Returns the node of a spec's :key or :value, or nil if it has none.

  Parses the type unless the spec carries its node. Throws `:invalid-spec` for a malformed type.

      (:size (node-of {:key :u32} :key)) ;=> 4"
  [{:keys [types] :as spec} side]
  (when-some [type (side spec)]
    (let [parsed (carried spec side)]
      (or (when parsed (.-node ^Parsed parsed))
          (node type types [side])))))
