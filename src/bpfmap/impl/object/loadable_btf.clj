(ns ^:no-doc bpfmap.impl.object.loadable-btf
  "Makes the BTF of an object loadable, and the tables that go with instructions.

      (def l (loadable object (bpfmap.impl.feature.btf/supported)))
      (:bytes l)           ; for BPF_BTF_LOAD
      (func-info l parts)  ; for BPF_PROG_LOAD
      (line-info l parts)

  A compiler writes declarations and sections that the kernel rejects, and older kernels lack kinds
  of types. Both are replaced by types that the kernel takes. Ids of types never change, because
  instructions, functions and variables refer to them.

  Source of the rules: kernel/bpf/btf.c and libbpf, and what Linux 6.18 rejects."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.writer :as writer]
            [clojure.string :as str])
  (:import (java.nio ByteBuffer ByteOrder)
           (java.util HashMap)))

(set! *warn-on-reflection* true)

(def features
  "The features of BTF that kernels may lack, with the release that has each."
  (array-map :func "5.0"
             :datasec "5.2"
             :global-func "5.6"
             :float "5.13"
             :decl-tag "5.16"
             :type-tag "5.17"
             :enum64 "6.0"
             :optional-section "6.9"
             :attribute "6.15"))

;; An edit is `{:blob :records :appended}`: records by the ids of those that changed, and records
;; that follow the last one.

(defn- record [{:keys [blob records appended]} id]
  (let [last-id (blob/type-count blob)]
    (or (records id)
        (if (< last-id (long id))
          (nth appended (- (long id) last-id 1))
          (blob/record blob id)))))

(defn- change [edit id f & args]
  (assoc-in edit [:records id] (apply f (record edit id) args)))

(defn- append
  "Returns the edit with another record, and the id of this record."
  [{:keys [blob appended] :as edit} added]
  [(update edit :appended conj added)
   (+ (blob/type-count blob) (count appended) 1)])

(defn- ids-by-kind [b]
  (let [n (blob/type-count b)]
    (loop [id 1 found {}]
      (if (<= id n)
        (let [kind (blob/kind b id)]
          (recur (inc id)
                 ;; Most types are of kinds that need no change.
                 (case kind
                   (:int :ptr :array :struct :union :const :volatile :restrict :typedef :fwd) found
                   (update found kind (fnil conj []) id))))
        found))))

;; ---------------------------------------------------------------- what every kernel rejects

(def ^:private int-size "Bytes of an int." 4)

(defn- with-int
  "Returns the edit with the id of an int of four bytes under `:int`."
  [{:keys [blob int] :as edit}]
  (if int
    edit
    (if-let [found (first (filter #(= int-size (:size (blob/record blob %)))
                                  (blob/ids-named blob "int" :int)))]
      (assoc edit :int found)
      (let [[edit id] (append edit {:kind :int :name "int" :size int-size :bits 32 :signed true})]
        (assoc edit :int id)))))

(def ^:private dummy "The name of a variable that stands for functions." "dummy_ksym")

(defn- with-dummy
  "Returns the edit with the id of the variable for functions under `:dummy`."
  [edit]
  (if (:dummy edit)
    edit
    (let [edit (with-int edit)
          [edit id] (append edit {:kind :var :name dummy :type (:int edit) :linkage :global})]
      (assoc edit :dummy id))))

(defn- laid-out
  "Returns variables one behind the other, and the size of all."
  [variables]
  (reduce (fn [[placed at] {:keys [align size] :as variable}]
            (let [at (* (long align) (quot (+ (long at) (dec (long align))) (long align)))]
              [(conj placed (assoc variable :offset at)) (+ at (long size))]))
          [[] 0] variables))

(defn- align-of
  "Returns the alignment of a type, as in C."
  ^long [b id depth]
  (let [id (blob/resolve b id)
        {:keys [kind size element members]} (blob/record b id)
        deeper (inc (long depth))]
    (case kind
      :ptr 8
      (:int :float :enum :enum64) (Long/highestOneBit (max 1 (min 8 (long size))))
      :array (if (< deeper 32) (align-of b element deeper) 1)
      (:struct :union) (if (< deeper 8)
                         (reduce (fn [^long n {:keys [type]}] (max n (align-of b type deeper)))
                                 1 (take 1000 members))
                         1)
      1)))

(defn- kconfig
  "Lays out the variables of `.kconfig`, and makes them global.

  The order is by descending alignment, then size and name, as libbpf's."
  [{:keys [blob] :as edit} id]
  (let [{:keys [vars] :as section} (record edit id)
        variables (for [{:keys [type] :as variable} vars
                        :let [{:keys [name] target :type} (record edit type)]]
                    (assoc variable
                           :name (str name)
                           :size (or (blob/size-of blob target) 0)
                           :align (align-of blob target 0)))
        [placed size] (laid-out (sort-by (juxt (comp - :align) :size :name) variables))]
    (-> (reduce (fn [edit {:keys [type]}] (change edit type assoc :linkage :global))
                edit placed)
        (assoc-in [:records id] (assoc section :size size :vars placed))
        (assoc :kconfig {:size size :offsets (into {} (map (juxt :name :offset)) placed)}))))

(defn- ksyms
  "Makes the symbols of `.ksyms` variables of an int each.

  Their own types do not matter to the kernel, and some have no size. One variable stands for all
  functions."
  [edit id]
  (let [edit (with-int edit)
        {:keys [vars] :as section} (record edit id)
        [edit placed]
        (reduce (fn [[edit placed] {:keys [type]}]
                  (let [function? (= :func (:kind (record edit type)))
                        edit (if function? (with-dummy edit) edit)
                        entry {:type (if function? (:dummy edit) type)
                               :offset (* (long int-size) (count placed))
                               :size int-size}]
                    [(if function?
                       edit
                       (change edit type assoc :linkage :global :type (:int edit)))
                     (conj placed entry)]))
                [edit []] vars)]
    (assoc-in edit [:records id]
              (assoc section :size (* (long int-size) (count placed)) :vars placed))))

(defn- tidy
  "Returns variables in the order of their offsets.

  Leaves out variables that overlap or lie outside: a linker leaves entries of constants that it
  merged."
  [size vars]
  (first
   (reduce (fn [[kept end] {:keys [offset] bytes :size :as variable}]
             (let [next-end (+ (long offset) (long bytes))]
               (if (and (pos? (long bytes)) (<= (long end) (long offset)) (<= next-end (long size)))
                 [(conj kept variable) next-end]
                 [kept end])))
           [[] 0] (sort-by :offset vars))))

(defn- data-section
  "Orders the variables of a section.

  Lays them out if the object has no such section."
  [edit id]
  (let [{:keys [size vars] :as section} (record edit id)
        vars (filterv #(= :var (:kind (record edit (:type %)))) vars)
        [vars size] (if (zero? (long size))
                      (laid-out (map #(assoc % :align 8) vars))
                      [vars size])
        tidied (tidy size vars)
        edit (reduce (fn [edit {:keys [type]}]
                       (cond-> edit
                         (= :extern (:linkage (record edit type)))
                         (change type assoc :linkage :global)))
                     edit tidied)]
    (cond-> edit
      (not (and (= size (:size section)) (= tidied (:vars section))))
      (assoc-in [:records id] (assoc section :size (max 1 (long size)) :vars tidied)))))

(defn- with-names
  "Returns parameters with names, which the kernel requires of a function's."
  [params]
  (mapv (fn [{:keys [name type] :as param}]
          (cond-> param
            (and (nil? name) (not= 0 type)) (assoc :name dummy)))
        params))

(defn- function
  "Makes a declared function global, and a hidden one static; names all parameters.

  The verifier checks a global function for all arguments, and a static one where it is called."
  [edit hidden id]
  (let [{:keys [linkage type]} (record edit id)
        {:keys [params] :as proto} (record edit type)
        named (with-names params)]
    (cond-> edit
      (= :extern linkage) (change id assoc :linkage :global)
      (and (= :global linkage) (contains? hidden id)) (change id assoc :linkage :static)
      (not= named params) (assoc-in [:records type] (assoc proto :params named)))))

(defn- hidden-functions
  "Returns the ids of the functions that other objects cannot call."
  [{:keys [programs functions]}]
  (into #{}
        (comp (filter #(#{:hidden :internal} (:visibility %))) (keep :btf-id))
        (concat (vals programs) (vals functions))))

(defn- mended
  "Returns the edit of everything that no kernel takes."
  [b hidden {:keys [datasec func]}]
  (let [edit {:blob b :records {} :appended []}
        edit (reduce #(function %1 hidden %2) edit func)]
    (reduce (fn [edit id]
              (case (blob/name-of b id)
                ".kconfig" (kconfig edit id)
                ".ksyms" (ksyms edit id)
                (data-section edit id)))
            edit datasec)))

;; ---------------------------------------------------------------- what old kernels lack

(defn- byte-int [{:keys [name]}]
  (cond-> {:kind :int :size 1 :bits 8}
    name (assoc :name name)))

(defn- as-struct
  "Returns a data section as a struct of its variables."
  [edit {:keys [name size vars]}]
  {:kind :struct
   :name (str/replace (str name) #"[^A-Za-z0-9_]" "_")
   :size size
   :members (mapv (fn [{:keys [type offset]}]
                    {:name (:name (record edit type))
                     :type type
                     :bit-offset (* 8 (long offset))})
                  vars)})

(defn- without-sign
  "Returns an enum without its sign, with the values that it has then."
  [{:keys [values] :as enum}]
  (assoc enum :signed false
         :values (mapv (fn [[text value]] [text (bit-and 0xffffffff (long value))]) values)))

(defn- as-union [{:keys [name size values]} byte-id]
  (cond-> {:kind :union :size size
           :members (mapv (fn [[text]] {:name text :type byte-id :bit-offset 0}) values)}
    name (assoc :name name)))

(defn- replaced
  "Returns the edit with records replaced by a function of edit and record."
  [edit ids f]
  (reduce (fn [edit id] (assoc-in edit [:records id] (f edit (record edit id))))
          edit ids))

(def ^:private sanitizers
  "For each feature, a function that replaces what needs it.

  The arguments are the edit and the ids by kind. The order matters: names of variables are read
  before these become integers."
  [[:enum64
    (fn [edit {:keys [enum enum64]}]
      (let [[edit byte-id] (if (seq enum64)
                             (append edit (byte-int {:name "enum64_value"}))
                             [edit nil])
            edit (replaced edit enum64 (fn [_ found] (as-union found byte-id)))
            signed (filter #(:signed (record edit %)) enum)]
        (replaced edit signed (fn [_ found] (without-sign found)))))]
   [:attribute
    (fn [edit {:keys [decl-tag type-tag]}]
      (let [marked (filter #(:attribute (record edit %)) (concat decl-tag type-tag))]
        (replaced edit marked (fn [_ found] (dissoc found :attribute)))))]
   [:type-tag
    (fn [edit {:keys [type-tag]}]
      (replaced edit type-tag (fn [_ found] {:kind :const :type (:type found)})))]
   [:decl-tag
    (fn [edit {:keys [decl-tag]}] (replaced edit decl-tag (fn [_ found] (byte-int found))))]
   [:float
    (fn [edit {:keys [float]}]
      (replaced edit float (fn [_ found] {:kind :struct :size (:size found) :members []})))]
   ;; The same release took the names ?NAME and all other printable ones.
   [:optional-section
    (fn [edit {:keys [datasec]}]
      (let [named (filter #(:name (record edit %)) datasec)]
        (replaced edit named
                  (fn [_ found] (update found :name str/replace #"[^A-Za-z0-9_.]" "_")))))]
   [:datasec
    (fn [edit {:keys [datasec var]}]
      (-> edit
          (replaced datasec as-struct)
          (replaced var (fn [_ found] (byte-int found)))
          (update :appended (partial mapv (fn [{:keys [kind] :as added}]
                                            (if (= :var kind) (byte-int added) added))))))]
   [:global-func
    (fn [edit {:keys [func]}]
      (replaced edit func (fn [_ found] (assoc found :linkage :static))))]
   [:func
    (fn [edit {:keys [func func-proto]}]
      (-> edit
          (replaced func (fn [_ {:keys [name type]}] {:kind :typedef :name name :type type}))
          ;; An enum without values is a declaration.
          (replaced func-proto (fn [_ _] {:kind :enum :size 4 :values []}))))]])

(defn- sanitized [edit ids supported]
  (reduce (fn [edit [feature f]]
            (if (contains? supported feature) edit (f edit ids)))
          edit sanitizers))

;; ---------------------------------------------------------------- the whole

(defn- texts-of-lines [{:keys [programs functions]}]
  (into #{}
        (comp (mapcat :lines) (mapcat (juxt :file :text)) (filter string?))
        (concat (vals programs) (vals functions))))

(defn loadable
  "Returns the BTF of an object as the kernel takes it; nil if the object has none.

  `supported` is the set of [[features]] of the kernel. The result has the `:bytes`, and what the
  functions of this namespace need. If the object has values of the kernel's configuration,
  `:kconfig` has the layout of the map for them: `:size` in bytes, and `:offsets` by name.

  - Sizes and offsets of sections that the object does not have are filled in.
  - Declarations of the kernel's functions and variables become variables of the object.
  - Functions with hidden visibility become static.
  - Types that the kernel lacks become others of the same size.
  - File names and texts of source lines are added to the strings.

  Ids of types stay. Throws `:malformed-btf` and `:invalid-value`.

      (loadable o #{:func :datasec :global-func}) ; for Linux 5.10
      ;=> {:bytes … :kconfig {:size 4 :offsets {\"LINUX_KERNEL_VERSION\" 0}} …}"
  [{:keys [btf] :as object} supported]
  (when btf
    (let [b (blob/parse (bytes/->array btf))
          ids (ids-by-kind b)
          {:keys [records appended kconfig]} (-> (mended b (hidden-functions object) ids)
                                                 (sanitized ids supported))
          {:keys [bytes offsets]} (writer/edited b records appended (texts-of-lines object))]
      (cond-> {:bytes bytes
               :offsets offsets
               :functions (if (contains? supported :func) (set (:func ids)) #{})}
        kconfig (assoc :kconfig kconfig)))))

(defn func-info
  "Returns the types of the functions of a program, for BPF_PROG_LOAD; or nil.

  `parts` are `{:slot n :program p}` in ascending order: each function of the program with the slot
  at which it begins. Returns nil if a function has no type, or if the kernel has no types of
  functions. A record has eight bytes: the slot and the id.

      (func-info l [{:slot 0 :program p} {:slot 12 :program f}]) ; 16 bytes"
  ^bytes [{:keys [functions]} parts]
  (when (and (seq parts) (every? #(contains? functions (:btf-id (:program %))) parts))
    (let [buffer (.order (ByteBuffer/allocate (* 8 (count parts))) (ByteOrder/nativeOrder))]
      (doseq [{:keys [slot program]} parts]
        (.putInt buffer (int slot))
        (.putInt buffer (int (:btf-id program))))
      (.array buffer))))

(defn- ascending
  "Returns the source lines of a function in order, with one for its start.

  The kernel requires a line for the first instruction, and slots that increase."
  [lines]
  (let [sorted (sort-by :slot (filter #(nat-int? (:slot %)) lines))
        distinct-slots (map first (partition-by :slot sorted))
        start (or (first distinct-slots) {:file "" :text ""})]
    (if (= 0 (:slot start))
      distinct-slots
      (cons (assoc start :slot 0) distinct-slots))))

(defn- position
  "Returns the word of a line and a column: 22 and 10 bits."
  ^long [{:keys [line column]}]
  (let [within (fn [x most] (if (and (int? x) (<= 0 (long x) (long most))) (long x) 0))]
    (bit-or (bit-shift-left (long (within line 0x3fffff)) 10)
            (long (within column 0x3ff)))))

(defn line-info
  "Returns the source lines of a program, for BPF_PROG_LOAD; or nil.

  `parts` are as for [[func-info]]. Returns nil if no function has source lines, or if the kernel
  has no types of functions. A record has sixteen bytes: the slot, the offsets of the file's name
  and of the text, and the line with the column.

      (line-info l [{:slot 0 :program p}])"
  ^bytes [{:keys [functions ^HashMap offsets]} parts]
  (when (and (seq functions) (some #(seq (:lines (:program %))) parts))
    (let [records (into []
                        (mapcat (fn [{:keys [slot program]}]
                                  (map #(update % :slot + slot) (ascending (:lines program)))))
                        parts)
          buffer (.order (ByteBuffer/allocate (* 16 (count records))) (ByteOrder/nativeOrder))
          offset-of (fn [text] (int (or (.get offsets text) 0)))]
      (doseq [{:keys [slot file text] :as line} records]
        (.putInt buffer (int slot))
        (.putInt buffer (int (offset-of file)))
        (.putInt buffer (int (offset-of text)))
        (.putInt buffer (unchecked-int (position line))))
      (.array buffer))))
