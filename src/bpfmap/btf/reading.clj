(ns bpfmap.btf.reading
  "From BTF to types as data: what a program's author wrote in C, in the words of `bpfmap.type`."
  (:require [bpfmap.btf.blob :as blob]
            [bpfmap.btf.image :refer [malformed]]
            [bpfmap.btf.semantic :as semantic]
            [bpfmap.type.node :as node])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

;; Every function here returns the node of a type, with the type itself under :type, :weight, how many members it has
;; at all levels, and :depth, its levels.

(def ^:private heaviest
  "A hostile blob can describe, in a few lines, a type that doubles with every level. The kernel's largest have some thousands."
  100000)

(def ^:private deepest 64)

(declare of-id)

(defn- weighed
  "A node with what it weighs, given the nodes it is made of."
  [node id parts]
  (let [weight (reduce + 1 (map :weight parts))
        depth (inc (long (reduce max 0 (map :depth parts))))]
    (when (< (long heaviest) (long weight))
      (throw (malformed [:type id] (str "the type has more than " heaviest " members"))))
    (when (< (long deepest) depth)
      (throw (malformed [:type id] (str "types are nested more than " deepest " deep"))))
    (assoc node :weight weight :depth depth)))

(def ^:private scalars
  (into {} (map (fn [[k row]] [k (assoc row :type k :weight 1 :depth 1)])) node/scalars))

(defn- leaf
  "The node of a type that has no parts in the blob."
  [type]
  (or (scalars type)
      (assoc (node/node type nil []) :weight 1 :depth 1)))

(defn- integer [{:keys [size bits signed? char? bool? name]}]
  (cond-> (leaf (cond
                  bool? :bool
                  (and (= 1 size) (or char? (= "char" name))) :char
                  :else (keyword (str (if signed? "s" "u") (* 8 (long size))))))
    ;; Old compilers say the width of a bit-field here, and not in the member.
    (< (long bits) (* 8 (long size))) (assoc :own-bits bits)))

(defn- floating [{:keys [size]}]
  (leaf (case (long size)
          4 :f32
          8 :f64
          [:bytes size]))) ; half floats and the long doubles of C

(defn- c-text
  "How C spells a type, for the target of a pointer, which is not read any further."
  [b id depth]
  (let [kind (if (< (long depth) 8) (blob/kind b id) :deep)
        name #(or (blob/name-of b id) "{…}")
        behind #(c-text b (% (blob/record b id)) (inc (long depth)))]
    (case kind
      :void "void"
      (:struct :union :enum) (str (clojure.core/name kind) " " (name))
      :enum64 (str "enum " (name))
      :fwd (str (if (:union? (blob/record b id)) "union " "struct ") (name))
      (:const :volatile :restrict :type-tag) (behind :type)
      :ptr (str (behind :type) " *")
      :array (str (behind :element) "[]")
      :func-proto "function"
      :deep "…"
      (name))))

(defn- pointer
  "A pointer reads as its address, unless a tag says that it is the kernel's."
  [{b :blob} {:keys [type]}]
  (if (and (= :type-tag (blob/kind b type))
           (#{"kptr" "kptr_untrusted" "percpu_kptr" "uptr"} (blob/name-of b type)))
    (leaf :kptr)
    (let [text (c-text b type 0)]
      (if (= "void" text)
        (leaf :ptr)
        (assoc (leaf :ptr) :type [:ptr text] :target text)))))

(defn- placed
  "Members that say where they are."
  [members]
  (map (fn [{:keys [bits bit-offset] :as member}]
         (assoc member :options (if bits {:bit-offset bit-offset} {:offset (quot (long bit-offset) 8)})))
       members))

(defn- form
  "A struct or union as data, from members as nodes."
  [kind options members]
  (into (if (seq options) [kind options] [kind])
        (map (fn [{:keys [name node bits options]}]
               (cond-> [name (if bits [:bits (:type node) bits] (:type node))]
                 options (conj options))))
        members))

(defn- own-layout
  "The node whose members lie where C puts them by itself, if that is where the blob says; else with the places said."
  [kind {:keys [id name size]} members]
  (let [attempt (fn [options members]
                  (try
                    (when-let [node (node/of-members kind members (cond-> options name (assoc :name name)) [])]
                      ;; Only places that are said can overlap.
                      (when (and (= :struct kind) (some :options members)) (node/check-overlap node []))
                      (let [options (cond-> options
                                      (< (long (:size node)) (long size)) (assoc :size size)
                                      name (assoc :name name))]
                        (when (<= (long (:size node)) (long size))
                          (assoc node :size size :type (form kind options members)))))
                    (catch ExceptionInfo e
                      (when-not (= :invalid-spec (:bpfmap/error (ex-data e))) (throw e)))))
        members (mapv #(assoc % :at (:bit-offset %)) members)
        free (mapv #(dissoc % :bit-offset) members)]
    (weighed (or (attempt nil free)
                 (attempt {:packed true} free)
                 (attempt {:packed true} (placed members))
                 (throw (malformed [:type id] (str "the members of the " (clojure.core/name kind)
                                                   " do not fit in its " size " bytes, share a name, or overlap"))))
             id
             (map :node members))))

(defn- member-of [context {:keys [name type bit-offset bits]}]
  (let [{:keys [own-bits] :as node} (of-id context type)
        bits (if (zero? (long bits)) own-bits bits)
        ;; C has bools of one bit alone; of more bits, they are a number.
        node (cond
               (nil? bits) node
               (and (< 1 (long bits)) (= :bool (:kind node))) (leaf :u8)
               (and (= [:integer 16] ((juxt :kind :size) node)) (nil? (:order node)))
               (leaf (if (:signed? node) :s64 :u64))
               :else node)]
    (cond-> {:name (some-> name keyword) :node node :bit-offset bit-offset}
      bits (assoc :bits bits))))

(defn- check-member
  "What C lets nobody write, a blob may say all the same."
  [id {:keys [name node bits] :as member}]
  (let [{:keys [kind size order]} node]
    (when-not (if bits
                (and (#{:integer :bool :enum} kind) (nil? order)
                     (<= (if name 1 0) (long bits) (min 64 (* 8 (long size)))))
                (or name (#{:struct :union} kind)))
      (throw (malformed [:type id] (if bits
                                     (str bits " bits of a " (clojure.core/name kind) " are no bit-field")
                                     (str "a " (clojure.core/name kind) " without a name is no member")))))
    member))

(defn- prefix
  "The node of a prefix of addresses, for a struct with the name and the very members that one is written with."
  [kind {:keys [name size]} members]
  (when-let [family (when (= :struct kind) (semantic/by-prefix-struct name))]
    (let [node (leaf [:prefix family])]
      (when (and (= size (:size node))
                 (= (map (fn [{:keys [name node offset]}] [name (:type node) (* 8 (long offset)) nil])
                         (:members (:layout node)))
                    (map (fn [{:keys [name node bit-offset bits]}] [name (:type node) bit-offset bits])
                         members)))
        node))))

(defn- compound [context kind {:keys [id name size members] :as record}]
  (if-let [private (some (fn [[k row]] (when (and (= name (:c-name row)) (= size (:size row))) k)) node/private-types)]
    (leaf private)
    (let [members (mapv #(check-member id (member-of context %)) members)]
      (or (prefix kind record members)
          (own-layout kind record members)))))

(defn- enum [{:keys [size signed? values name]}]
  (let [base (keyword (str (if signed? "s" "u") (* 8 (long size))))
        type (cond-> [:enum base (apply array-map (mapcat (fn [[k v]] [(keyword k) v]) values))]
               name (conj {:name name}))]
    (leaf type)))

(def ^:private marked-elements (set (vals semantic/element-typedefs)))

(defn- bare
  "A node behind typedefs, but for those that mark the element of an array."
  [{:keys [type typedef target] :as node}]
  (if (and typedef (not (marked-elements typedef)))
    (recur target)
    node))

(defn- array [context {:keys [id element count]}]
  (let [node (of-id context element)
        {:keys [type typedef target]} (bare node)]
    (cond
      (and (= :char type) (pos? (long count))) (leaf [:string count])
      (and (= :u8 type) (pos? (long count))) (leaf [:bytes count])
      :else
      (let [element (if (marked-elements typedef) target node)
            array (node/of-array element count [])]
        (weighed (assoc array :type [:array (:type element) count]) id [element])))))

(defn- meaning
  "The node of the type that a typedef's name stands for, if the size says so too."
  [b {:keys [id name]}]
  (when-let [type (semantic/by-typedef name)]
    (let [node (leaf type)]
      (when (= (:size node) (blob/size-of b id)) node))))

(defn- typedef [{b :blob :as context} {:keys [id name type] :as record}]
  (or
    (meaning b record)
    (let [target (of-id context type)]
      (when-not name
        (throw (malformed [:type id] "a typedef has no name")))
      (if (and (semantic/plain-typedefs name) (keyword? (:type target)))
        target
        (weighed (assoc target :typedef name :type [:typedef name (:type target)] :target target) id [target])))))

(defn- variable
  "An entry of a data section as a member: its name, node and place. What is declared of a type without size has no bytes."
  [{b :blob :as context} id {:keys [type offset]}]
  (let [{:keys [kind name linkage] target :type} (blob/record b type)]
    (when-not (and name (or (= :var kind) (and (= :func kind) (= :extern linkage))))
      (throw (malformed [:type id] "a data section holds something else than variables")))
    {:name (keyword name)
     :node (if (and (= :extern linkage) (or (= :func kind) (nil? (blob/size-of b target))))
             (leaf [:array :u8 0])
             (of-id context target))
     :extern? (= :extern linkage)
     :bit-offset (* 8 (long offset))}))

(defn- laid-out
  "Variables that a loader has yet to place, as libbpf does it: those of the largest alignment first, then by size and name."
  [variables]
  (first
   (reduce (fn [[placed ^long end] {{:keys [size align]} :node :as variable}]
             (let [at (node/round-up end align)]
               [(conj placed (assoc variable :bit-offset (* 8 at))) (+ at (long size))]))
           [[] 0]
           (sort-by (fn [{:keys [node name]}] [(- (long (:align node))) (:size node) name]) variables))))

(defn- told-apart
  "Variables in the order of their places, whose names differ: `seen`, and `seen#4` for the one at offset 4.

  Each file of a program may have its own `static seen`. In a C identifier there is no `#`."
  [variables]
  (first
   (reduce (fn [[members names] {:keys [name bit-offset] :as variable}]
             (let [offset (quot (long bit-offset) 8)
                   name (if (names name)
                          (keyword (str (clojure.core/name name) "#" offset))
                          name)]
               [(conj members (assoc variable :name name)) (conj names name)]))
           [[] #{}]
           (sort-by :bit-offset variables))))

(defn- section
  "A data section as a struct of its variables, each at its place.

  A section that has only declarations, such as `.ksyms`, has no place in an object: its size is 0."
  [context {:keys [id name size vars] :as record}]
  (let [variables (mapv #(variable context id %) vars)]
    (cond
      (pos? (long size)) (own-layout :struct record (told-apart variables))
      (every? :extern? variables)
      (let [members (laid-out variables)
            end (reduce (fn [^long end {:keys [node bit-offset]}]
                          (max end (+ (quot (long bit-offset) 8) (long (:size node)))))
                        0 members)]
        (own-layout :struct (assoc record :size end) (told-apart members)))
      :else
      (throw (malformed [:type id] (str "the size of section " name " is 0, since its variables have no places yet")
                        "read it with parse-object, which finds the places in the object")))))

(defn- of-record [context {:keys [id kind type] :as record}]
  (case kind
    :int (integer record)
    :float (floating record)
    :ptr (pointer context record)
    :array (array context record)
    (:struct :union) (compound context kind record)
    (:enum :enum64) (enum record)
    :typedef (typedef context record)
    (:const :volatile :restrict :type-tag :var) (of-id context type)
    :datasec (section context record)
    (throw (malformed [:type id] (str "a " (name kind) " has no value, so it is not the type of one")))))

(defn- of-id
  "The node of an id. Many members share a type, so each is read once."
  [{b :blob :keys [within known] :as context} id]
  (or (get @known id)
      (do
        (when (or (contains? within id) (< 128 (count within)))
          (throw (malformed [:type id] (if (contains? within id)
                                         "the type contains itself"
                                         "types lead through more than 128 others"))))
        (let [node (of-record (update context :within conj id) (blob/record b id))]
          (vswap! known assoc id node)
          node))))

(defn weighed-type-of
  "As [[type-of]], with how many members the type has at all levels: `[type weight]`."
  [b id]
  (try
    ((juxt :type :weight) (of-id {:blob b :within #{} :known (volatile! {})} id))
    (catch ExceptionInfo e
      ;; What no type of ours can say: an integer of three bytes, an enum with a value too large for it.
      (throw (if (= :invalid-spec (:bpfmap/error (ex-data e)))
               (malformed [:type id] (ex-message e))
               e)))))

(defn type-of
  "The type of an id of a blob, in the words of `bpfmap.type`.

  Throws `:malformed-btf` for one that has no value (`void`, a function), that
  contains itself, or does not fit in its size."
  [b id]
  (first (weighed-type-of b id)))
