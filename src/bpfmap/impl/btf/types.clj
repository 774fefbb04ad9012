(ns ^:no-doc bpfmap.impl.btf.types
  "Converts between types and BTF records, in both directions."
  (:require [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.image :refer [malformed malformed-in]]
            [bpfmap.impl.type.node :as node]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

;; --- types that C has no word for

(def ^:private byte-orders
  (into {}
        (for [order [:be :le] bits [16 32 64]]
          [(keyword (str "u" bits (name order))) (str "__" (name order) bits)])))

(def typedefs
  "Types to the names of their typedefs.

  `__be16` and similar names are the kernel's own, the others bpfmap's."
  (merge
   byte-orders
   {:ipv4 "bpfmap_ipv4" :ipv6 "bpfmap_ipv6" :mac "bpfmap_mac" :port "bpfmap_port"
    :ktime "bpfmap_ktime"}
   (into {} (for [k [:s16be :s16le :s32be :s32le :s64be :s64le :u128be :u128le :s128be :s128le
                     :f32be :f32le :f64be :f64le]]
              [k (str "bpfmap_" (name k))]))))

(def by-typedef
  "The types of bpfmap by the names of their typedefs."
  (into {} (map (fn [[k v]] [v k])) typedefs))

(def prefix-structs
  "The names of the structs of prefixes, by family of addresses."
  {:ipv4 "bpfmap_ipv4_prefix" :ipv6 "bpfmap_ipv6_prefix"})

(def by-prefix-struct
  "The families of addresses, by the names of the structs of their prefixes.

  A struct is a prefix only if it has the right members."
  (into {} (map (fn [[k v]] [v k])) prefix-structs))

(def element-typedefs
  "Typedefs of array elements that would otherwise be read as text or as bytes."
  {:char "bpfmap_char" :u8 "bpfmap_u8"})

(def plain-typedefs
  "Typedefs that only give the width of an integer, and are read as the integer."
  (into #{"size_t" "ssize_t" "bool" "uchar" "ushort" "uint" "ulong" "__kernel_size_t"}
        (for [bits [8 16 32 64 128]
              [before after] [["u" ""] ["s" ""] ["__u" ""] ["__s" ""] ["uint" "_t"] ["int" "_t"]
                              ["u_int" "_t"]]]
          (str before bits after))))

;; --- from BTF

;; Every function in this section returns the node of a type, with the type itself under :type, the
;; number of its members at all levels under :weight, and the number of its levels under :depth.

(def ^:private heaviest
  "The largest number of members of a type, at all levels.

  A hostile blob can describe, in a few lines, a type that doubles with every level. The largest
  types of the kernel have some thousands."
  100000)

(def ^:private deepest 64)

(declare of-id)

(defn- weighed
  "Returns a node with its weight, given the nodes it is made of."
  [node id parts]
  (let [weight (reduce + 1 (map :weight parts))
        depth (inc (long (reduce max 0 (map :depth parts))))]
    (when (< (long heaviest) (long weight))
      (throw (malformed-in [:type id] (str "the type must have at most " heaviest " members"))))
    (when (< (long deepest) depth)
      (throw (malformed-in [:type id] (str "types must be nested at most " deepest " deep"))))
    (assoc node :weight weight :depth depth)))

(def ^:private scalars
  (into {} (map (fn [[k row]] [k (assoc row :type k :weight 1 :depth 1)])) node/scalars))

(defn- leaf
  "Returns the node of a type without parts in the blob."
  [type]
  (or (scalars type)
      (assoc (node/node type nil []) :weight 1 :depth 1)))

(defn- integer [{:keys [size bits signed name] char? :char bool? :bool}]
  (cond-> (leaf (cond
                  bool? :bool
                  (and (= 1 size) (or char? (= "char" name))) :char
                  :else (keyword (str (if signed "s" "u") (* 8 (long size))))))
    ;; Old compilers store the width of a bit-field in its type, and not in the member.
    (< (long bits) (* 8 (long size))) (assoc :own-bits bits)))

(defn- floating [{:keys [size]}]
  (leaf (case (long size)
          4 :f32
          8 :f64
          [:bytes size]))) ; half floats and the long doubles of C

(defn c-text
  "Returns the C spelling of a type, for the target of a pointer.

  The target itself is not decoded.

      (c-text b 189 0) ;=> \"struct task_struct\""
  [b id depth]
  (let [kind (if (< (long depth) 8) (blob/kind b id) :deep)
        name #(or (blob/name-of b id) "{…}")
        behind #(c-text b (% (blob/record b id)) (inc (long depth)))]
    (case kind
      :void "void"
      (:struct :union :enum) (str (clojure.core/name kind) " " (name))
      :enum64 (str "enum " (name))
      :fwd (str (if (:union (blob/record b id)) "union " "struct ") (name))
      (:const :volatile :restrict :type-tag) (behind :type)
      :ptr (str (behind :type) " *")
      :array (str (behind :element) "[]")
      :func-proto "function"
      :deep "…"
      (name))))

(defn- pointer
  "Returns the node of a pointer, which is read as its address.

  The node is `:kptr` if a tag marks the pointer as the kernel's."
  [{b :blob} {:keys [type]}]
  (if (and (= :type-tag (blob/kind b type))
           (#{"kptr" "kptr_untrusted" "percpu_kptr" "uptr"} (blob/name-of b type)))
    (leaf :kptr)
    (let [text (c-text b type 0)]
      (if (= "void" text)
        (leaf :ptr)
        (assoc (leaf :ptr) :type [:ptr text] :target text)))))

(defn- placed
  "Returns members with options that give their offsets."
  [members]
  (map (fn [{:keys [bits bit-offset] :as member}]
         (assoc member :options
                (if bits {:bit-offset bit-offset} {:offset (quot (long bit-offset) 8)})))
       members))

(defn- form
  "Returns a struct or union as data, from members with nodes."
  [kind options members]
  (into (if (seq options) [kind options] [kind])
        (map (fn [{:keys [name node bits options]}]
               (cond-> [name (if bits [:bits (:type node) bits] (:type node))]
                 options (conj options))))
        members))

(defn- own-layout
  "Returns the node of a struct or union that has the blob's offsets and size.

  Members have explicit offsets only if the rules of C lead to others."
  [kind {:keys [id name size]} members]
  (let [attempt (fn [options members]
                  (try
                    (when-let [node (node/of-members kind members
                                                     (cond-> options name (assoc :name name)) [])]
                      ;; Only members with explicit offsets can overlap.
                      (when (and (= :struct kind) (some :options members))
                        (node/check-overlap node []))
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
                 (throw (malformed-in [:type id] (str "the members of the " (clojure.core/name kind)
                                                   " do not fit in its " size
                                                   " bytes, share a name, or overlap"))))
             id
             (map :node members))))

(defn- member-of [context {:keys [name type bit-offset bits]}]
  (let [{:keys [own-bits] :as node} (of-id context type)
        bits (if (zero? (long bits)) own-bits bits)
        ;; In C a bool has only one bit; with more bits it is a number.
        node (cond
               (nil? bits) node
               (and (< 1 (long bits)) (= :bool (:kind node))) (leaf :u8)
               (and (= [:integer 16] ((juxt :kind :size) node)) (nil? (:order node)))
               (leaf (if (:signed node) :s64 :u64))
               :else node)]
    (cond-> {:name (some-> name keyword) :node node :bit-offset bit-offset}
      bits (assoc :bits bits))))

(defn- check-member
  "Returns a member; throws for one that C does not allow but a blob can contain."
  [id {:keys [name node bits] :as member}]
  (let [{:keys [kind size order]} node]
    (when-not (if bits
                (and (#{:integer :bool :enum} kind) (nil? order)
                     (<= (if name 1 0) (long bits) (min 64 (* 8 (long size)))))
                (or name (#{:struct :union} kind)))
      (throw (malformed-in [:type id]
                           (if bits
                             (str "a bit-field must be of an integer, a bool or an enum, got "
                                  bits " bits of the kind " (clojure.core/name kind))
                             (str "a member of the kind " (clojure.core/name kind)
                                  " must have a name")))))
    member))

(defn- prefix
  "Returns the node of a prefix, for a struct that represents one, or nil.

  It represents one if it has the name and exactly the members of such a struct."
  [kind {:keys [name size]} members]
  (when-let [family (when (= :struct kind) (by-prefix-struct name))]
    (let [node (leaf [:prefix family])]
      (when (and (= size (:size node))
                 (= (map (fn [{:keys [name node offset]}]
                           [name (:type node) (* 8 (long offset)) nil])
                         (:members (:layout node)))
                    (map (fn [{:keys [name node bit-offset bits]}]
                           [name (:type node) bit-offset bits])
                         members)))
        node))))

(defn- compound [context kind {:keys [id name size members] :as record}]
  (if-let [private (some (fn [[k row]] (when (and (= name (:c-name row)) (= size (:size row))) k))
                         node/private-types)]
    (leaf private)
    (let [members (mapv #(check-member id (member-of context %)) members)]
      (or (prefix kind record members)
          (own-layout kind record members)))))

(defn- enum [{:keys [size signed values name]}]
  (let [base (keyword (str (if signed "s" "u") (* 8 (long size))))
        type (cond-> [:enum base (apply array-map (mapcat (fn [[k v]] [(keyword k) v]) values))]
               name (conj {:name name}))]
    (leaf type)))

(def ^:private marked-elements (set (vals element-typedefs)))

(defn- bare
  "Returns a node without its typedefs.

  Keeps typedefs that mark the element of an array."
  [{:keys [typedef target] :as node}]
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
  "Returns the node for a typedef of bpfmap, or nil if the sizes differ."
  [b {:keys [id name]}]
  (when-let [type (by-typedef name)]
    (let [node (leaf type)]
      (when (= (:size node) (blob/size-of b id)) node))))

(defn- typedef [{b :blob :as context} {:keys [id name type] :as record}]
  (or
   (meaning b record)
   (let [target (of-id context type)]
     (when-not name
       (throw (malformed-in [:type id] "a typedef must have a name")))
     (if (and (plain-typedefs name) (keyword? (:type target)))
       target
       (weighed (assoc target :typedef name :type [:typedef name (:type target)] :target target) id
                [target])))))

(defn- variable
  "Returns an entry of a data section as a member: its name, node and offset.

  A variable whose type has no size has no bytes."
  [{b :blob :as context} id {:keys [type offset]}]
  (let [{:keys [kind name linkage] target :type} (blob/record b type)]
    (when-not (and name (or (= :var kind) (and (= :func kind) (= :extern linkage))))
      (throw (malformed-in [:type id] "a data section must have only variables")))
    {:name (keyword name)
     :node (if (and (= :extern linkage) (or (= :func kind) (nil? (blob/size-of b target))))
             (leaf [:array :u8 0])
             (of-id context target))
     :extern (= :extern linkage)
     :bit-offset (* 8 (long offset))}))

(defn- laid-out
  "Returns variables without offsets, laid out as by libbpf.

  The variables of the largest alignment are first, then by size and name."
  [variables]
  (first
   (reduce (fn [[placed ^long end] {{:keys [size align]} :node :as variable}]
             (let [at (node/round-up end align)]
               [(conj placed (assoc variable :bit-offset (* 8 at))) (+ at (long size))]))
           [[] 0]
           (sort-by (fn [{:keys [node name]}] [(- (long (:align node))) (:size node) name])
                    variables))))

(defn- told-apart
  "Returns variables in the order of their offsets, with distinct names.

  A second `seen` at offset 4 is named `seen#4`. Each file of a program can have its own `static
  seen`. No C identifier contains `#`."
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
  "Returns a data section as a struct of its variables, each at its offset.

  A section with declarations only, such as `.ksyms`, has no offsets in an object, and the size 0."
  [context {:keys [id name size vars] :as record}]
  (let [variables (mapv #(variable context id %) vars)]
    (cond
      (pos? (long size)) (own-layout :struct record (told-apart variables))
      (every? :extern variables)
      (let [members (laid-out variables)
            end (reduce (fn [^long end {:keys [node bit-offset]}]
                          (max end (+ (quot (long bit-offset) 8) (long (:size node)))))
                        0 members)]
        (own-layout :struct (assoc record :size end) (told-apart members)))
      :else
      (throw (malformed-in [:type id]
                        (str "the section " name " must have a size, got 0")
                        "use bpfmap.btf/parse-object, which reads sizes and offsets from the object")))))

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
    (throw (malformed [:type id]
                      (str "must be a type with values, got the kind " (name kind))))))

(defn- of-id
  "Returns the node of an id.

  Many members share a type, so each is decoded once."
  [{b :blob :keys [within known] :as context} id]
  (or (get @known id)
      (do
        (when (or (contains? within id) (< 128 (count within)))
          (throw (malformed-in [:type id] (if (contains? within id)
                                         "the type must not contain itself"
                                         "types must be nested at most 128 deep"))))
        (let [node (of-record (update context :within conj id) (blob/record b id))]
          (vswap! known assoc id node)
          node))))

(defn reader
  "Returns a function of an id to the type and its weight.

  It is [[weighed-type-of]] for many types of a blob, and reads the parts that they share once.

      ((reader b) 12) ;=> [[:struct {:name \"flow\"} …] 3]"
  [b]
  (let [known (volatile! {})]
    (fn [id]
      (try
        ((juxt :type :weight) (of-id {:blob b :within #{} :known known} id))
        (catch ExceptionInfo e
          ;; What no type of ours can say: an integer of three bytes, an enum with a value too large
          ;; for it.
          (throw (if (= :invalid-spec (:bpfmap/error (ex-data e)))
                   (malformed-in [:type id] (ex-message e))
                   e)))))))

(defn weighed-type-of
  "Returns a type and its number of members at all levels: `[type weight]`.

  Otherwise like [[type-of]]."
  [b id]
  ((reader b) id))

(defn type-of
  "Returns the type of an id of a blob, as `bpfmap.type` describes it.

  Throws `:malformed-btf` for a type that has no value (`void`, a function), that contains itself,
  or that does not fit in its size."
  [b id]
  (first (weighed-type-of b id)))

;; --- to BTF

;; A writer is an atom `{:records [record …] :ids {source id}}`, with the types by name under
;; :named, and under :within the pointer targets that are being added. Ids count from 1.

(defn- add! [writer record]
  (count (:records (swap! writer update :records conj record))))

(defn- once!
  "Returns the id stored for a key; calls `make` for it if there is none."
  [writer key make]
  (or (get-in @writer [:ids key])
      (let [id (make)]
        (swap! writer assoc-in [:ids key] id)
        id)))

(defn identifier
  "Returns the C identifier of a name in the kernel.

  All characters except letters, digits and `_` become `_`.

      (identifier :tx-bytes) ;=> \"tx_bytes\""
  [k]
  (let [text (str/replace (name k) #"[^A-Za-z0-9_]" "_")]
    (if (re-find #"^[0-9]|^$" text) (str "_" text) text)))

(defn- distinct-identifiers
  "Returns identifiers for names, numbered if several are equal: a_b, a_b_2."
  [names]
  (first (reduce (fn [[identifiers used] k]
                   (let [text (some-> k identifier)
                         text (when text
                                (first (remove used
                                               (cons text
                                                     (map #(str text "_" %) (iterate inc 2))))))]
                     [(conj identifiers text) (conj used text)]))
                 [[] #{}]
                 names)))

(def ^:private integer-names
  {[1 false] "unsigned char" [1 true] "signed char" [2 false] "unsigned short" [2 true] "short"
   [4 false] "unsigned int"
   [4 true] "int" [8 false] "unsigned long long" [8 true] "long long" [16 false] "unsigned __int128"
   [16 true] "__int128"})

(defn- integer! [writer size signed?]
  (once! writer [:int size signed?]
         #(add! writer
                {:kind :int :name (integer-names [size signed?]) :size size :bits (* 8 (long size))
                 :offset 0
                 :signed signed? :char false :bool false})))

(defn- char! [writer]
  (once! writer :char #(add! writer {:kind :int :name "char" :size 1 :bits 8 :offset 0
                                     :signed true :char false :bool false})))

(defn- bool! [writer]
  (once! writer :bool #(add! writer {:kind :int :name "_Bool" :size 1 :bits 8 :offset 0
                                     :signed false :char false :bool true})))

(defn- float! [writer size]
  (once! writer [:float size]
         #(add! writer {:kind :float :name ({4 "float" 8 "double"} size) :size size})))

(defn- array! [writer element n]
  (let [index (integer! writer 4 false)]
    (once! writer [:array element n]
           #(add! writer {:kind :array :element element :index index :count n}))))

(defn- typedef! [writer name target]
  (once! writer [:typedef name target] #(add! writer {:kind :typedef :name name :type target})))

(declare type!)

(defn- pointer-to! [writer id]
  (once! writer [:ptr id] #(add! writer {:kind :ptr :type id})))

(def ^:private integers-by-name
  "The names of integers that compilers use, by size and sign."
  (into (into {} (map (fn [[k v]] [v k])) integer-names)
        {"short unsigned int" [2 false] "short int" [2 true]
         "long unsigned int" [8 false] "unsigned long" [8 false] "long int" [8 true] "long" [8 true]
         "long long unsigned int" [8 false] "long long int" [8 true]}))

(defn- text!
  "Returns the id of a type with a C name.

  The name is the target of a pointer, as `bpfmap.impl.btf.types` writes it. The id is 0, void, for
  a target without a name. Structs, unions and enums are declared, and not defined."
  [writer text]
  (let [[_ behind] (re-matches #"(?s)(.+) \*" text)
        [_ element] (re-matches #"(?s)(.+)\[\]" text)
        [_ kind tag] (re-matches #"(struct|union|enum) ([A-Za-z_][A-Za-z0-9_]*)" text)
        add-once! (fn [record] (once! writer [:text text] #(add! writer record)))]
    (cond
      (< 1000 (count text)) 0
      behind (pointer-to! writer (text! writer behind))
      element (let [id (text! writer element)] (if (= 0 id) 0 (array! writer id 0)))
      (= "enum" kind) (add-once! {:kind :enum :name tag :size 4 :signed false :values []})
      tag (add-once! {:kind :fwd :name tag :union (= "union" kind)})
      (= "function" text) (add-once! {:kind :func-proto :return 0 :params []})
      (= "char" text) (char! writer)
      (= "_Bool" text) (bool! writer)
      (= "float" text) (float! writer 4)
      (= "double" text) (float! writer 8)
      (integers-by-name text) (let [[size signed?] (integers-by-name text)]
                                (if (= text (integer-names [size signed?]))
                                  (integer! writer size signed?)
                                  (add-once! {:kind :int :name text :size size
                                              :bits (* 8 (long size)) :offset 0
                                              :signed signed? :char false :bool false})))
      ;; The type behind the name is unknown.
      (and (re-matches #"[A-Za-z_][A-Za-z0-9_]*" text) (not= "void" text)) (typedef! writer text 0)
      :else 0)))

(defn- target!
  "Returns the id of the target of a pointer: a type, or its spelling in C.

  A type that contains itself is only declared there if it has a tag; otherwise it becomes void."
  [writer target]
  (cond
    (nil? target) 0
    (string? target) (text! writer target)
    :else
    (let [{:keys [named within]} @writer]
      (if-let [{:keys [kind c-name typedef] :as node} (try (node/node target named [])
                                                           (catch ExceptionInfo _ nil))]
        (if (or (contains? within target) (< 16 (count within)))
          (if (and c-name (not typedef) (#{:struct :union} kind))
            (text! writer (str (name kind) " " (identifier c-name)))
            0)
          (do (swap! writer update :within (fnil conj #{}) target)
              (try
                (type! writer node)
                (finally (swap! writer update :within disj target)))))
        0))))

(defn- pointer! [writer target]
  (pointer-to! writer (target! writer target)))

(defn- struct! [writer key record]
  (once! writer key #(add! writer record)))

(defn- private! [writer {:keys [c-name size align]}]
  (if (= "void *" c-name)
    (pointer! writer nil)
    (let [word (if (= 4 align) (integer! writer 4 false) (integer! writer 8 false))
          one? (= size align)
          inside (if one? word (array! writer word (quot (long size) (long align))))]
      (struct! writer [:private c-name]
               {:kind :struct :name c-name :size size
                :members [{:name (if (str/ends-with? c-name "spin_lock") "val" "__opaque")
                           :type inside :bit-offset 0 :bits 0}]}))))

(defn- ipv6! [writer]
  (let [words (array! writer (integer! writer 4 false) 4)]
    (struct! writer :in6_addr {:kind :struct :name "in6_addr" :size 16
                               :members [{:name "s6_addr32" :type words :bit-offset 0 :bits 0}]})))

(defn- element!
  "Returns the id of the element of an array.

  A plain character or byte would be read as text or bytes, so it gets a typedef."
  [writer {:keys [type] :as node}]
  (if-let [name (element-typedefs type)]
    (typedef! writer name (type! writer node))
    (type! writer node)))

(defn- enum! [writer {:keys [size order base values c-name]}]
  (if order
    (type! writer base)
    (let [signed? (boolean (:signed base))
          record {:kind (if (= 8 size) :enum64 :enum) :size size :signed signed?
                  :values (mapv vector (distinct-identifiers (keys values)) (vals values))}]
      (once! writer [:enum record c-name]
             #(add! writer (cond-> record c-name (assoc :name (identifier c-name))))))))

(defn- members [writer {:keys [members]}]
  (mapv (fn [{:keys [node offset bits bit-offset]} name]
          (cond-> {:type (type! writer node)
                   :bit-offset (if bits bit-offset (* 8 (long offset)))
                   :bits (or bits 0)}
            name (assoc :name name)))
        members
        (distinct-identifiers (map :name members))))

(defn- compound! [writer {:keys [kind size c-name] :as node}]
  (let [members (vec (sort-by :bit-offset (members writer node)))] ; the kernel requires this order
    (struct! writer [kind c-name size members]
             (cond-> {:kind kind :size size :members members}
               c-name (assoc :name (identifier c-name))))))

(defn- plain!
  "Adds the C type of a node, without a typedef for its meaning; returns its id."
  [writer {:keys [kind size signed element count family layout] :as node}]
  (case kind
    :integer (integer! writer size (boolean signed))
    :float (float! writer size)
    :bool (bool! writer)
    :char (char! writer)
    :pointer (pointer! writer (:target node))
    :ipv4 (typedef! writer "__be32" (integer! writer 4 false))
    :ipv6 (ipv6! writer)
    :mac (array! writer (integer! writer 1 false) 6)
    :bytes (array! writer (integer! writer 1 false) size)
    :pad (array! writer (integer! writer 1 false) size)
    :string (array! writer (char! writer) size)
    :array (array! writer (element! writer element) count)
    :enum (enum! writer node)
    (:struct :union) (compound! writer node)
    :prefix (compound! writer (assoc layout :c-name (prefix-structs family)))
    :private (private! writer node)
    :via (type! writer (:target node))))

(defn- type!
  "Adds the type of a node and all types that it requires; returns its id."
  [writer {:keys [type typedef target] :as node}]
  (cond
    typedef (typedef! writer (identifier typedef) (type! writer target))
    (= :port type) (typedef! writer "bpfmap_port"
                             (typedef! writer "__be16" (integer! writer 2 false)))
    (typedefs type) (typedef! writer (typedefs type) (plain! writer node))
    :else (plain! writer node)))

(defn records-of-nodes
  "Returns the BTF records of types that were parsed to nodes, as [[records]] does."
  [nodes named]
  (let [writer (atom {:records [] :ids {} :named named})
        ids (mapv #(if % (type! writer %) 0) nodes)]
    {:records (:records @writer) :ids ids}))

(defn records
  "Returns BTF records for types, and the ids of the types.

  The result is `{:records [record …] :ids [id …]}`. A nil among the types has the id 0, void."
  [types named]
  (records-of-nodes (mapv #(some-> % (node/node named [])) types) named))
