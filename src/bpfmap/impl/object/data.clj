(ns ^:no-doc bpfmap.impl.object.data
  "Reads the variables of an object, and the maps that its sections of data become.

  A variable comes from the BTF; where there is none, from the symbols, as bytes."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.types :as types]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.object.context :as context]
            [bpfmap.impl.object.malformed :refer [malformed]])
  (:import (bpfmap.sys Codec)
           (clojure.lang ExceptionInfo)
           (java.lang.foreign MemorySegment)
           (java.nio ByteBuffer ByteOrder)
           (java.util Arrays Map$Entry TreeMap)))

(set! *warn-on-reflection* true)

;; --- values

(def ^:private most-values
  "The largest number of numbers and texts in the values of all variables.

  More values stay bytes."
  200000)

(def ^:private most-zeros
  "The largest number of decoded bytes of variables in sections of zeros."
  0x100000)

(def ^:private longest-zeros "The bytes of the largest such variable." 4096)

(defn- parts
  "Returns the number of numbers and texts in a value of a type.

  It is very large for types that are nested deeply."
  ^double [type ^long depth]
  (let [kind (when (vector? type) (first type))]
    (cond
      (< 32 depth) 1e12
      (= :array kind) (+ 1.0 (* (double (nth type 2)) (parts (nth type 1) (inc depth))))
      (#{:struct :union} kind) (reduce (fn [^double n member]
                                         (if (vector? member)
                                           (+ n (parts (second member) (inc depth)))
                                           n))
                                       1.0 (rest type))
      (= :typedef kind) (parts (nth type 2) (inc depth))
      :else 1.0)))

(def ^:private ordered
  "Types whose bytes have an order, without a suffix."
  #{:u16 :u32 :u64 :u128 :s16 :s32 :s64 :s128 :f32 :f64})

(defn- in-order
  "Returns a type for bytes of the other byte order, or nil if there is none."
  [type suffix]
  (let [deeper #(in-order % suffix)
        member (fn [[name type & more]]
                 (when-let [type (deeper type)]
                   (into [name type] more)))]
    (cond
      (ordered type) (keyword (str (name type) suffix))
      (= :ptr type) (keyword (str "u64" suffix))
      (keyword? type) type
      :else
      (case (first type)
        :ptr (keyword (str "u64" suffix))
        (:string :c-string :bytes :pad) type
        :array (when-let [element (deeper (nth type 1))]
                 (assoc type 1 element))
        :typedef (deeper (nth type 2))
        :enum (assoc type 1 (deeper (nth type 1)))
        (:struct :union) (let [members (mapv #(if (map? %) % (member %)) (rest type))]
                           (when (every? some? members)
                             (into [(first type)] members)))
        nil))))

(defn- decode
  "Returns bytes as a value of a type, or as a byte view if they cannot be decoded."
  [{:keys [^ByteOrder order budget]} type weight ^bytes array]
  (let [n (if (< (long weight) 10000) (parts type 0) 1e12)
        type (if (= order (ByteOrder/nativeOrder))
               type
               (in-order type (if (= ByteOrder/BIG_ENDIAN order) "be" "le")))]
    (or (when (and type (<= n (double @budget)))
          (vswap! budget - n)
          (try
            (let [^Codec codec (codec/codec type)]
              (when (= (.size codec) (alength array))
                {:value (.decode codec (MemorySegment/ofArray array) 0)}))
            (catch ExceptionInfo _ nil)))
        {:value (bytes/wrap array)})))

(defn decoder
  "Returns a context whose values are decoded with one limit for all."
  [ctx]
  (assoc ctx :budget (volatile! most-values) :zeros (volatile! most-zeros)))

(defn- zero-bytes
  "Returns the bytes of a variable that is zero, or nil if it is too large."
  [{:keys [zeros]} size]
  (when (<= (long size) (min (long longest-zeros) (long @zeros)))
    (vswap! zeros - size)
    (byte-array size)))

(defn value-of
  "Returns bytes of the object as a value of a type of its BTF.

  A value that is too large or that has no type is a byte view."
  [ctx id array]
  (if-let [[type weight] (context/type-of ctx id)]
    (:value (decode ctx type weight array))
    (bytes/wrap array)))

;; --- variables

(defn- of-btf
  "Returns the variables that the BTF has for a section.

  A variable is `{:name :offset :size :id :target :linkage}`."
  [ctx {:keys [name size] :as section}]
  (when (identical? section (context/section-named ctx name))
    (for [{:keys [type offset] bytes :size} (:vars (get (context/data-sections ctx) name))
          :let [{:keys [kind linkage] target :type text :name} (context/record ctx type)]
          :when (and (= :var kind) text (not= :extern linkage))]
      (do (when-not (<= 0 (long offset) (- (long size) (long bytes)))
            (throw (malformed [:section name :variable text]
                              (str "it has " (error/plural bytes "byte") " at offset " offset
                                   ", and the section has " (error/plural size "byte")))))
          {:name text :offset offset :size bytes :id type :target target :linkage linkage}))))

(defn- of-symbols
  "Returns the variables of a section that only the symbols have."
  [{:keys [symbols-by-section]} {:keys [index size]} ^TreeMap taken]
  (for [{:keys [name type value binding] bytes :size} (symbols-by-section index)
        :when (and (= :object type) (seq name)
                   (pos? (long bytes))
                   (<= 0 (long value) (- (long size) (long bytes))))
        :let [^Map$Entry before (.floorEntry taken value)
              [_ end] (when before (.getValue before))
              after (.ceilingKey taken value)]
        :when (and (or (nil? end) (<= (long end) (long value)))
                   (or (nil? after) (<= (+ (long value) (long bytes)) (long after))))]
    (do (.put taken value [name (+ (long value) (long bytes))])
        {:name name :offset value :size bytes :linkage (if (= :local binding) :static :global)})))

(defn- check-overlap [section variables]
  (reduce (fn [^long end {:keys [name offset size]}]
            (when (< (long offset) end)
              (throw (malformed [:section (:name section) :variable name]
                                (str "it overlaps the variable before it, at offset " offset))))
            (+ (long offset) (long size)))
          0 variables))

(defn- in-section
  "Returns the variables of a section, in the order of their places."
  [ctx section]
  (let [known (sort-by (juxt :offset :size) (of-btf ctx section))
        _ (check-overlap section known)
        taken (TreeMap.)]
    (doseq [{:keys [name offset size]} known :when (pos? (long size))]
      (.put taken offset [name (+ (long offset) (long size))]))
    (sort-by (juxt :offset :size) (concat known (doall (of-symbols ctx section taken))))))

(defn- described
  "Returns a variable as a user sees it."
  [ctx section ^bytes contents {:keys [offset size id target linkage] :as variable}]
  (let [[type weight] (or (when target (context/type-of ctx target)) [[:bytes size] 1])
        at (int offset)
        array (cond
                (context/zeros? section) (zero-bytes ctx size)
                :else (Arrays/copyOfRange contents at (int (+ at (long size)))))
        tags (when id (context/tags ctx id))]
    (cond-> {:section (:name section) :type type :offset offset :size size}
      (= :static linkage) (assoc :linkage :static)
      id (assoc :btf-id id)
      tags (assoc :tags tags)
      array (merge (decode ctx type weight array))
      true (with-meta {::name (:name variable)}))))

(defn- uncovered
  "Returns the bytes of a section outside of its variables, as a byte view.

  Returns nil if all of them are zero."
  [^bytes contents variables]
  (let [rest (aclone contents)]
    (doseq [{:keys [offset size]} variables]
      (Arrays/fill rest (int offset) (int (+ (long offset) (long size))) (byte 0)))
    (when-not (every? zero? rest)
      (bytes/wrap rest))))

(defn- section-map
  "Returns the spec of the map that a section becomes."
  [ctx {:keys [name size] :as section} ^bytes contents variables]
  (when (< 0xffffffff (long size))
    (throw (malformed [:section name] (str "it has " size " bytes, and a map has at most 4 GiB"))))
  (let [datasec (when (identical? section (context/section-named ctx name))
                  (get (context/data-sections ctx) name))
        [type] (when datasec (context/type-of ctx (:id datasec)))
        constant? (context/read-only? section)
        percpu? (context/percpu? section)
        ;; libbpf makes these mappable too.
        mapped? (some #(and (:id %) (not= :static (:linkage %))) variables)
        rest (when-not (context/zeros? section) (uncovered contents variables))
        flags (cond-> #{}
                (and mapped? (not percpu?)) (conj :mmapable)
                constant? (conj :rdonly-prog))]
    (cond-> {:name name :type (if percpu? :percpu-array :array) :key :u32 :max-entries 1}
      (and type (not= :bytes (first type))) (assoc :value type)
      (not (and type (not= :bytes (first type)))) (assoc :value-size size)
      (seq flags) (assoc :flags flags)
      constant? (assoc :freeze true)
      rest (assoc :contents {0 rest}))))

(defn variables
  "Reads the variables and the maps of the sections of data.

  Returns `{:variables {name variable} :maps {name spec} :places {index tree}}`. A tree has, for the
  section of an index, offset to the name and the end of the variable there."
  [{:keys [sections symbols] :as ctx}]
  (let [ctx (assoc ctx :symbols-by-section (group-by :section symbols))
        unique (context/distinct-names)
        unique-map (context/distinct-names)]
    (reduce
     (fn [found {:keys [index name] :as section}]
       (let [contents (context/contents ctx section)
             tree (TreeMap.)
             variables (in-section ctx section)
             named (vec (for [{:keys [offset size] text :name :as variable} variables]
                          (let [unique-name (unique text offset (str name "+" offset))]
                            (when (pos? (long size))
                              (.put tree offset [unique-name (+ (long offset) (long size))]))
                            [unique-name (described ctx section contents variable)])))]
         (cond-> (-> found
                     (update :variables into named)
                     (assoc-in [:places index] tree))
           (not (context/arena? section))
           (update :maps assoc (unique-map name index)
                   (section-map ctx section contents variables)))))
     {:variables {} :maps {} :places {}}
     (filter context/data? sections))))

(defn reference
  "Returns how an instruction refers to a place in a section of data.

  The result is a reference, and an offset in what it names.

      (reference places section 12) ;=> [{:variable \"count\"} 4]"
  [places {:keys [index name]} offset]
  (let [^TreeMap tree (places index)
        ^Map$Entry entry (when tree (.floorEntry tree offset))
        [variable end] (when entry (.getValue entry))]
    (if (and variable (< (long offset) (long end)))
      [{:variable variable} (- (long offset) (long (.getKey entry)))]
      [{:section name} offset])))

;; --- pointers

(defn- pointed
  "Returns how a pointer in data refers to what it points to, or nil."
  [{:keys [sections map-names function-names places]} {:keys [section value]} addend]
  (let [target (when-not (= 0 section) (get sections section))
        offset (+' (long value) (long addend))
        place [section offset]]
    (when (and target (<= 0 offset 0xffffffff))
      (cond
        (map-names place) {:map (map-names place)}
        (function-names place) {:function (function-names place)}
        :else (let [[reference more] (reference places target offset)]
                (cond-> reference
                  (pos? (long more)) (assoc :offset more)))))))

(defn- pointers-in
  "Returns the pointers of a section: offset to reference."
  [{:keys [order] :as ctx} section]
  (let [^bytes contents (context/contents ctx section)
        buffer (.order (ByteBuffer/wrap contents) order)]
    (into {}
          (for [[offset {:keys [symbol addend]}] (context/relocations ctx section)
                :when (<= (+ (long offset) 8) (alength contents))
                :let [found (pointed ctx symbol (or addend (.getLong buffer (int offset))))]
                :when found]
            [offset found]))))

(defn with-pointers
  "Returns the variables, with the pointers in them under `:pointers`.

  They are `{offset reference}`.

  The context has the names of maps and functions by their places, under `:map-names` and
  `:function-names`, and the places of variables under `:places`."
  [{:keys [sections tables] :as ctx} variables]
  (let [pointers (into {}
                       (for [{:keys [index name] :as section} sections
                             :when (and (tables index) (context/data? section))]
                         [name (into (sorted-map) (pointers-in ctx section))]))]
    (if (empty? pointers)
      variables
      (update-vals variables
                   (fn [{:keys [section offset size] :as variable}]
                     (let [inside (when-let [of-section (pointers section)]
                                    (subseq of-section >= offset < (+ (long offset) (long size))))]
                       (cond-> variable
                         (seq inside)
                         (assoc :pointers
                                (into {} (map (fn [[at found]] [(- (long at) (long offset)) found]))
                                      inside)))))))))

;; --- what the kernel has

(defn- externs
  "Returns the symbols that the object does not define, by name."
  [{:keys [symbols]}]
  (into {}
        (comp (filter #(and (= 0 (:section %)) (seq (:name %)) (not= :section (:type %))))
              (map (juxt :name identity)))
        symbols))

(defn- untyped?
  "Returns true for `const void`, the type of a variable that has an address only."
  [ctx id]
  (= :void (:kind (context/record ctx (blob/resolve (:btf ctx) id)))))

(defn- ksym
  "Returns a declaration of `.ksyms` as a user sees it, or nil for something else."
  [{:keys [btf] :as ctx} id weak?]
  (let [{:keys [kind type]} (context/record ctx id)]
    (when (#{:func :var} kind)
      (cond-> {:kind (if (= :func kind) :function :variable) :btf-id id}
        (and (= :var kind) (not (untyped? ctx type))) (assoc :type (types/c-text btf type 0))
        weak? (assoc :weak true)))))

(defn kernel-symbols
  "Returns the declarations of an object that the kernel defines.

  The result is `{:kconfig {name declaration} :ksyms {name declaration}}`. A symbol that is declared without BTF has the kind `:unknown`."
  [ctx]
  (let [externs (externs ctx)
        declared (fn [section] (for [{:keys [type size]} (:vars (get (context/data-sections ctx)
                                                                     section))
                                     :let [text (:name (context/record ctx type))]
                                     :when text]
                                 [text type size (= :weak (:binding (externs text)))]))
        kconfig (into {} (for [[text id size weak?] (declared ".kconfig")
                               :let [{:keys [kind type]} (context/record ctx id)]
                               :when (= :var kind)
                               :let [[of-var] (or (context/type-of ctx type) [[:bytes size]])]]
                           [text (cond-> {:type of-var :btf-id id}
                                   weak? (assoc :weak true))]))
        ksyms (into {} (for [[text id _ weak?] (declared ".ksyms")
                             :let [found (ksym ctx id weak?)]
                             :when found]
                         [text found]))]
    {:kconfig kconfig
     :ksyms (into ksyms (for [[text {:keys [binding]}] externs
                              :when (not (or (kconfig text) (ksyms text)))]
                          [text (cond-> {:kind :unknown}
                                  (= :weak binding) (assoc :weak true))]))}))
