(ns ^:no-doc bpfmap.impl.object.core
  "Resolves CO-RE relocations against the BTF of a kernel, and patches instructions.

      (def l (local (btf/parse (:btf object))))
      (resolve l (targets kernel-btf) relocation) ;=> {:value 2456 :was 0}
      (patch! code (:slot relocation) resolved (ByteOrder/nativeOrder))

  A relocation names a type of the object, the local type, and something in it. The types of the
  kernel that have its name and kind are the candidates. Each candidate that has the field, the
  enumerator or the whole type gives a value, and all of them must give the same.

  The rules are those of the kernel since Linux 5.17 and of libbpf. Names and kinds are compared
  without flavours: `struct task_struct___old` stands for `struct task_struct`."
  (:refer-clojure :exclude [resolve])
  (:require [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.btf.image :refer [malformed malformed-in]]
            [bpfmap.impl.btf.types :as types]
            [clojure.string :as str])
  (:import (java.nio ByteBuffer ByteOrder)
           (java.util HashMap)
           (java.util.concurrent ConcurrentHashMap)))

(set! *warn-on-reflection* true)

;; ---------------------------------------------------------------- types of both sides

;; A blob with what was read from it: `records` by id, `members` by the id of a struct, `ids` of
;; candidates by name and kind. `flavours` has the ids of types with a flavour by their essential
;; names. `module` is the name of the module, if it is one.
(deftype Side [blob ^ConcurrentHashMap records ^ConcurrentHashMap members ^ConcurrentHashMap ids
               flavours module])

(defn essential-name
  "Returns a name without its flavour.

      (essential-name \"task_struct___v5\") ;=> \"task_struct\""
  ^String [^String text]
  (loop [i (.lastIndexOf text "___")]
    (cond
      (<= i 0) text
      (and (not= \_ (.charAt text (dec i)))
           (< (+ i 3) (.length text))
           (not= \_ (.charAt text (+ i 3)))) (subs text 0 i)
      :else (recur (.lastIndexOf text "___" (dec i))))))

(defn- flavours-of [b]
  (reduce (fn [found id]
            (let [text (blob/name-of b id)
                  essential (essential-name text)]
              (cond-> found
                (not= text essential) (update essential (fnil conj []) id))))
          {} (blob/flavoured-ids b)))

(defn- side [b module]
  (Side. (blob/check b) (ConcurrentHashMap.) (ConcurrentHashMap.) (ConcurrentHashMap.)
         (delay (flavours-of b)) module))

(defn- record [^Side s id]
  (let [^ConcurrentHashMap records (.-records s)]
    (or (.get records id)
        (let [found (blob/record (.-blob s) id)]
          (.put records id found)
          found))))

(defn- behind
  "Returns the record of a type without its typedefs and qualifiers."
  [^Side s id]
  (record s (blob/resolve (.-blob s) id)))

(defn- size-of ^long [^Side s id]
  (or (blob/size-of (.-blob s) id)
      (throw (malformed [:type id] (str "must be a type that has a size, got "
                                        (types/c-text (.-blob s) id 0))))))

(defn- kind-class
  "Returns a kind, with one name for both kinds of enums."
  [kind]
  (if (= :enum64 kind) :enum kind))

(defn- composite? [{:keys [kind]}]
  (or (= :struct kind) (= :union kind)))

(defn- candidates
  "Returns the ids of the side's own types with an essential name and a kind."
  [^Side s name kind]
  (let [^ConcurrentHashMap ids (.-ids s)
        k [name kind]]
    (or (.get ids k)
        (let [b (.-blob s)
              found (filterv #(= kind (kind-class (blob/kind b %)))
                             (into (blob/own-ids-named b name) (get @(.-flavours s) name)))]
          (.put ids k found)
          found))))

;; ---------------------------------------------------------------- local and target

;; The types of an object, with the relocations that were resolved.
(deftype Local [^Side side ^ConcurrentHashMap resolved])

(defn local
  "Returns the types of an object, for [[resolve]].

  `b` is the BTF of the object, parsed. The result keeps the relocations that it resolved, and can
  be used by many threads.

      (local (btf/parse (:btf object)))"
  [b]
  (Local. (side b nil) (ConcurrentHashMap.)))

;; `modules` is a delay of sides, which are read if the kernel itself has no candidate.
(deftype Targets [^Side kernel modules])

(def ^:private latest
  "The side of the kernel that was used last.

  Reading its types again would cost much of the time of a relocation."
  (atom nil))

(defn- kernel-side [b]
  (let [^Side known @latest]
    (if (and known (identical? b (.-blob known)))
      known
      (reset! latest (side b nil)))))

(defn targets
  "Returns the types of a kernel, for [[resolve]].

  `kernel-btf` is the BTF of the kernel, parsed. `modules` is a delay of pairs: the name of a module
  and its BTF, parsed on the BTF of the kernel. It is needed only for names that the kernel itself
  does not have. For the running kernel see `bpfmap.impl.host.kernel-btf/targets`.

      (targets (bpfmap.host/kernel-btf))"
  ([kernel-btf]
   (targets kernel-btf (delay nil)))
  ([kernel-btf modules]
   (Targets. (kernel-side kernel-btf)
             (delay (mapv (fn [[module b]] (side b module)) @modules)))))

(defn- all-candidates
  "Returns pairs of a side and the ids of its candidates, if it has any."
  [^Targets targets name kind]
  (let [own (candidates (.-kernel targets) name kind)]
    (if (seq own)
      [[(.-kernel targets) own]]
      (for [module @(.-modules targets)
            :let [ids (candidates module name kind)]
            :when (seq ids)]
        [module ids]))))

;; ---------------------------------------------------------------- bounds

(def ^:private most-work
  "The largest number of parts that one relocation compares.

  Parts are members, parameters and enumerators.

  A hostile blob can describe, in a few lines, types whose parts double with every level. The
  largest type of a kernel needs some thousands."
  500000)

(def ^:private deepest 32)

;; A comparison of the local side with one target. `work` is the number of parts that may follow.
(deftype Run [^Side local ^Side target ^longs work])

(defn- spend! [^Run run id]
  (let [^longs work (.-work run)
        left (dec (aget work 0))]
    (aset work 0 left)
    (when (neg? left)
      (throw (malformed [:type id] (str "must be compared in at most " most-work " steps"))))))

(defn- check-depth [id depth]
  (when (< (long deepest) (long depth))
    (throw (malformed-in [:type id] (str "types must be nested at most " deepest " deep")))))

(defn- invalid
  "Returns the exception for a relocation that does not fit the object."
  ^Throwable [what constraint got]
  (error/error :invalid-value
               (str what " of a CO-RE relocation must be " constraint ", got " (error/printed got))
               {:bpfmap/hint "take relocations and BTF from the same object"}))

(def ^:private farthest
  "The first offset in bits that is too large: the kernel counts in 32 bits."
  0x100000000)

(defn- further
  "Returns an offset in bits increased by elements of a size in bytes."
  ^long [bits i size id]
  (let [end (+ (double bits) (* 8.0 (double i) (double size)))]
    (when-not (< end (double farthest))
      (throw (malformed-in [:type id] "a field must begin within 512 MiB")))
    (+ (long bits) (* 8 (long i) (long size)))))

;; ---------------------------------------------------------------- the local field

(def ^:private field-kinds
  #{:field-byte-offset :field-byte-size :field-exists :field-signed :field-lshift-u64
    :field-rshift-u64})

(def ^:private enumerator-kinds #{:enumval-exists :enumval-value})

(def ^:private type-kinds #{:type-id-target :type-exists :type-size :type-matches})

(def ^:private kinds (into #{:type-id-local} (concat field-kinds enumerator-kinds type-kinds)))

(def ^:private longest "The kernel takes 64 steps." 64)

(defn steps-of
  "Returns the numbers of an access string, or nil if it is malformed.

  It has 1 to 64 numbers of at most nine digits, with colons between them.

      (steps-of \"0:4:1\") ;=> [0 4 1]"
  [access]
  (when (string? access)
    (let [^String text access
          n (.length text)]
      (loop [i 0 number 0 digits 0 steps []]
        (let [c (if (< i n) (int (.charAt text i)) (int \:))]
          (cond
            (and (<= 48 c 57) (< digits 9)) (recur (inc i) (+ (* 10 number) (- c 48)) (inc digits)
                                                   steps)
            (not (and (= 58 c) (pos? digits) (< (count steps) (long longest)))) nil
            (= i n) (conj steps number)
            :else (recur (inc i) 0 0 (conj steps number))))))))

(defn- indices [access]
  (or (steps-of access)
      (throw (invalid "The access" (str "1 to " longest " numbers with colons between them")
                      access))))

(defn- flexible?
  "Returns true if an element beyond the length of an array can be meant.

  `step` is the step that led to the array. It must be the last member of its struct, and the array
  must have no length."
  [{:keys [last]} {n :count}]
  (and last (zero? (long n))))

;; A field is `{:steps [step …] :bits offset}`. A step is a member with a name, `{:name :member
;; :last}`, or an element, `{:index :type}`. Anonymous members add to the offset alone.

(defn- local-field [^Side s id access]
  (let [[root & more] (indices access)
        start (:id (behind s id))]
    (loop [id start
           more more
           steps [{:index root :type start}]
           bits (further 0 root (size-of s start) start)]
      (if-let [i (first more)]
        (let [{:keys [kind members element] n :count :as found} (behind s id)]
          (cond
            (composite? found)
            (let [{:keys [name type bit-offset] :as member} (get members i)]
              (when-not member
                (throw (invalid "The access" (str "an index of the " (count members)
                                                  " members of type " id) access)))
              (recur type (next more)
                     (cond-> steps
                       name (conj {:name name :member member :last (= i (dec (count members)))}))
                     (+ bits (long bit-offset))))

            (= :array kind)
            (let [element (:id (behind s element))]
              (when-not (or (< (long i) (long n)) (flexible? (peek steps) found))
                (throw (invalid "The access" (str "an index of the " n " elements of type " id)
                                access)))
              (recur element (next more)
                     (conj steps {:index i :type element})
                     (further bits i (size-of s element) element)))

            :else
            (throw (invalid "The access" (str "a path of members and elements, but type " id
                                              " is a " (name kind)) access))))
        {:steps steps :bits bits}))))

;; ---------------------------------------------------------------- the same field of a target

(defn- plain-integer?
  "Returns true unless an integer is a bit-field of old compilers."
  [{:keys [offset]}]
  (zero? (long offset)))

(defn- same-name?
  "Returns true if two names are equal without flavours."
  [a b]
  (= (essential-name (or a "")) (essential-name (or b ""))))

(defn- compatible-fields?
  "Returns true if a field of one type can be read as the other."
  [^Run run local-id target-id]
  (loop [local-id local-id target-id target-id depth 0]
    (check-depth local-id depth)
    (let [a (behind (.-local run) local-id)
          b (behind (.-target run) target-id)
          kind (kind-class (:kind a))]
      (cond
        (and (composite? a) (composite? b)) true
        (not= kind (kind-class (:kind b))) false
        :else (case kind
                (:ptr :float) true
                (:enum :fwd) (or (nil? (:name a)) (nil? (:name b)) (same-name? (:name a) (:name b)))
                :int (and (plain-integer? a) (plain-integer? b))
                :array (recur (:element a) (:element b) (inc depth))
                false)))))

(defn- named-members
  "Returns the members of a struct, as `[by-name anonymous]`.

  The largest structs have hundreds of members, and many relocations each."
  [^Side s {:keys [id members]}]
  (let [^ConcurrentHashMap known (.-members s)]
    (or (.get known id)
        (let [by-name (HashMap.)
              n (count members)]
          (dotimes [i n]
            (let [{:keys [name] :as member} (nth members i)]
              (when name
                (.putIfAbsent by-name name {:name name :member member :last (= i (dec n))}))))
          (let [found [by-name (filterv #(nil? (:name %)) members)]]
            (.put known id found)
            found)))))

(defn- find-member
  "Returns the member of a target type with the name of a local one, or nil.

  Looks into anonymous members. The result is the step, with the offset in bits under `:bits`."
  [^Run run {:keys [name member] :as step} id bits depth]
  (check-depth id depth)
  (spend! run id)
  (let [found (behind (.-target run) id)]
    (when (composite? found)
      (let [[^HashMap by-name anonymous] (named-members (.-target run) found)]
        (if-let [{{:keys [type bit-offset]} :member :as direct} (.get by-name name)]
          (when (compatible-fields? run (:type member) type)
            (assoc direct :bits (+ (long bits) (long bit-offset))))
          (some (fn [{:keys [type bit-offset]}]
                  (find-member run step type (+ (long bits) (long bit-offset))
                               (inc (long depth))))
                anonymous))))))

(defn- target-field
  "Returns the field of a target type that a local field means, or nil."
  [^Run run steps id]
  (let [^Side s (.-target run)]
    (loop [id id, steps (seq steps), done [], bits 0]
      (if-let [{:keys [name index] :as step} (first steps)]
        (cond
          name (when-let [found (find-member run step id bits 0)]
                 (recur (:type (:member found)) (next steps) (conj done found)
                        (long (:bits found))))
          (empty? done) (let [id (:id (behind s id))]
                          (recur id (next steps) [{:index index :type id}]
                                 (further bits index (size-of s id) id)))
          :else
          (let [{:keys [kind element] n :count :as found} (behind s id)]
            (when (and (= :array kind)
                       (or (< (long index) (long n)) (flexible? (peek done) found)))
              (let [element (:id (behind s element))]
                (recur element (next steps) (conj done {:index index :type element})
                       (further bits index (size-of s element) element))))))
        {:steps done :bits bits}))))

;; ---------------------------------------------------------------- the value of a field

(defn- innermost
  "Returns the id of the elements of an array, or of the type itself."
  [^Side s id]
  (loop [id id depth 0]
    (check-depth id depth)
    (let [{:keys [kind element id]} (behind s id)]
      (if (= :array kind) (recur element (inc depth)) id))))

(defn- bits-of
  "Returns the width of a bit-field, or nil for any other member.

  Old compilers store it in the type of the member."
  [{:keys [bits]} {:keys [kind size] own :bits}]
  (cond
    (pos? (long bits)) bits
    (and (= :int kind) (pos? (long own)) (not= own (* 8 (long size)))) own))

(defn- unit-of
  "Returns the bytes to load for a bit-field as `[offset size]`."
  [id bits width size]
  (let [bits (long bits) end (+ bits (long width))]
    (when-not (#{1 2 4 8 16} size)
      (throw (malformed-in [:type id]
                           (str "a bit-field must have a type of 1, 2, 4 or 8 bytes, got " size))))
    (loop [size (long size)]
      (let [at (* size (quot (quot bits 8) size))]
        (cond
          (<= end (* 8 (+ at size))) [at size]
          (<= 8 size) (throw (malformed-in [:type id]
                                           "a bit-field must lie in eight aligned bytes"))
          :else (recur (* 2 size)))))))

(defn- member-value [^Side s {:keys [steps bits]} kind]
  (let [{:keys [member]} (peek steps)
        {:keys [id] :as type} (behind s (:type member))
        bits (long bits)
        width (bits-of member type)
        [at size] (if width
                    (unit-of id bits width (:size type))
                    [(quot bits 8) (size-of s id)])
        at (long at) size (long size)
        width (long (or width (* 8 size)))
        field? (some? (bits-of member type))]
    (case kind
      :field-byte-offset (if field?
                           {:value at}
                           {:value at :was at :size (size-of s (innermost s id)) :type id})
      :field-byte-size (cond-> {:value size} (not field?) (assoc :was size))
      :field-signed (let [signed (if (:signed type) 1 0)]
                      {:value signed :was signed})
      :field-lshift-u64 (let [shift (if (= ByteOrder/BIG_ENDIAN (blob/byte-order (.-blob s)))
                                      (+ (* 8 (- 8 size)) (- bits (* 8 at)))
                                      (- 64 (- (+ bits width) (* 8 at))))]
                          (cond-> {:value shift} (not field?) (assoc :was shift)))
      :field-rshift-u64 {:value (- 64 width) :was (- 64 width)})))

(defn- field-value
  "Returns what a relocation asks of a field: `{:value :was :size :type}`.

  `:was` is missing if compilers differ in the value. `:size` is the number of bytes of a load or
  store, and `:type` their type."
  [^Side s {:keys [steps bits] :as field} kind]
  (let [{:keys [name type]} (peek steps)]
    (cond
      name (member-value s field kind)
      (= :field-byte-offset kind) (let [at (quot (long bits) 8)]
                                    {:value at :was at :type type
                                     :size (size-of s (innermost s type))})
      (= :field-byte-size kind) (let [size (size-of s type)]
                                  {:value size :was size})
      :else (throw (invalid "The access" (str "a path to a member for " kind)
                            (str/join ":" (map :index steps)))))))

(defn- resizable?
  "Returns true if a load or store can be made for the other size."
  [{a :kind :as from} {b :kind :as to}]
  (or (= :ptr a b)
      (and (= :int a b) (not (:signed from)) (not (:signed to)))))

(defn- field-text [{:keys [steps]}]
  (let [[{:keys [index]} & more] steps]
    (str (when (pos? (long index)) (str "[" index "]"))
         (str/replace (apply str (for [{:keys [name index]} more]
                                   (if name (str "." name) (str "[" index "]"))))
                      #"^\." ""))))

(defn- field-result
  "Returns the result for a field that one target has."
  [^Run run text {local-steps :steps :as field} found kind]
  (if (= :field-exists kind)
    {:value 1 :was 1}
    (let [{:keys [value] new-size :size new-type :type} (field-value (.-target run) found kind)
          {:keys [was size type]} (field-value (.-local run) field kind)]
      (cond-> {:value value}
        was (assoc :was was)
        (not= size new-size)
        (assoc :size new-size :was-size size)
        (and (not= size new-size)
             (not (and size new-size
                       (resizable? (behind (.-local run) type) (behind (.-target run) new-type)))))
        (assoc :misfit (str @text (when (next local-steps) (str " field " (field-text field)))
                            " has " (or new-size "a bit-field of other") " bytes on this kernel, and "
                            (or size "a bit-field") " in the object"))))))

;; ---------------------------------------------------------------- whole types

(declare compatible-types?)

(defn- compatible-prototypes? [^Run run a b depth]
  (let [params (:params a) others (:params b)]
    (and (= (count params) (count others))
         (every? true? (map (fn [p q]
                              (spend! run (:id a))
                              (compatible-types? run (:type p) (:type q) depth))
                            params others))
         (compatible-types? run (:return a) (:return b) depth))))

(defn- compatible-types?
  "Returns true if two types have the same kind.

  Compares the targets of pointers, and the parameters of functions, too."
  [^Run run local-id target-id depth]
  (let [a (behind (.-local run) local-id)
        b (behind (.-target run) target-id)
        kind (kind-class (:kind a))
        deeper (inc (long depth))]
    (check-depth local-id depth)
    (spend! run local-id)
    (and (= kind (kind-class (:kind b)))
         (case kind
           (:void :struct :union :enum :fwd) true
           :int (and (plain-integer? a) (plain-integer? b))
           :ptr (compatible-types? run (:type a) (:type b) deeper)
           :array (compatible-types? run (:element a) (:element b) deeper)
           :func-proto (compatible-prototypes? run a b deeper)
           false))))

(defn- matching-enums? [^Run run a b]
  (and (= (:size a) (:size b))
       (let [names (into #{} (map (fn [[text]] (essential-name (str text)))) (:values b))]
         (every? (fn [[text]]
                   (spend! run (:id a))
                   (names (essential-name (str text))))
                 (:values a)))))

(declare matching-types?)

(defn- matching-members?
  "Returns true if each local member has a member of the target that matches."
  [^Run run a b depth]
  (let [by-name (group-by #(essential-name (str (:name %))) (:members b))]
    (spend! run (:id a))
    (every? (fn [{:keys [name type]}]
              (some (fn [other]
                      (spend! run (:id a))
                      (matching-types? run type (:type other) false depth))
                    (by-name (essential-name (str name)))))
            (:members a))))

(defn- matching-types?
  "Returns true if two types match in names and layout.

  The target may have more members."
  [^Run run local-id target-id behind-pointer? depth]
  (let [{local-kind :kind :as a} (behind (.-local run) local-id)
        {target-kind :kind :as b} (behind (.-target run) target-id)
        same? (= (kind-class local-kind) (kind-class target-kind))
        deeper (inc (long depth))]
    (check-depth local-id depth)
    (spend! run local-id)
    (and (same-name? (:name a) (:name b))
         (case local-kind
           :void same?
           :fwd (if same?
                  (= (:union a) (:union b))
                  (and behind-pointer? (= target-kind (if (:union a) :union :struct))))
           (:struct :union) (cond
                              (not behind-pointer?) (and same? (matching-members? run a b deeper))
                              same? true
                              (= :fwd target-kind) (= (= :union local-kind) (:union b)))
           (:enum :enum64) (and same? (matching-enums? run a b))
           :int (and same? (= (:size a) (:size b)) (= (:signed a) (:signed b)))
           :ptr (and same? (matching-types? run (:type a) (:type b) true deeper))
           :array (and same? (= (:count a) (:count b))
                       (matching-types? run (:element a) (:element b) behind-pointer? deeper))
           :func-proto (and same?
                            (= (count (:params a)) (count (:params b)))
                            (every? true?
                                    (map (fn [p q]
                                           (boolean (matching-types? run (:type p) (:type q)
                                                                     behind-pointer? deeper)))
                                         (:params a) (:params b)))
                            (matching-types? run (:return a) (:return b) behind-pointer? deeper))
           false))))

(defn- type-result
  "Returns the result for a whole type that one candidate has, or nil."
  [^Run run local-id id kind]
  (when (if (= :type-matches kind)
          (matching-types? run local-id id false 0)
          (compatible-types? run local-id id 0))
    (case kind
      (:type-exists :type-matches) {:value 1 :was 1}
      :type-size {:value (size-of (.-target run) id) :was (size-of (.-local run) local-id)}
      :type-id-target (let [module (.-module ^Side (.-target run))]
                        (cond-> {:value id}
                          module (assoc :module module))))))

;; ---------------------------------------------------------------- enumerators

(defn- signed-value
  "Returns the value of an enumerator as the kernel reads it: 32 bits have a sign."
  [{:keys [kind]} value]
  (if (= :enum kind)
    (long (unchecked-int (long value)))
    (.longValue (biginteger value))))

(defn- local-enumerator [^Side s id access]
  (let [{:keys [values] :as found} (behind s id)
        [i & more] (indices access)]
    (when-not (= :enum (kind-class (:kind found)))
      (throw (invalid "The type" "an enum" (types/c-text (.-blob s) id 0))))
    (when (or more (<= (count values) (long i)))
      (throw (invalid "The access" (str "an index of the " (count values) " enumerators of type "
                                        id)
                      access)))
    (let [[text value] (values i)]
      {:name (str text) :value (signed-value found value)})))

(defn- enumerator-result [^Run run {local-value :value :keys [name]} id kind]
  (let [{:keys [values] :as found} (behind (.-target run) id)
        wanted (essential-name name)]
    (when-let [[_ value] (first (filter (fn [[text]]
                                          (spend! run id)
                                          (= wanted (essential-name (str text))))
                                        values))]
      (if (= :enumval-exists kind)
        {:value 1 :was 1}
        {:value (signed-value found value) :was local-value}))))

;; ---------------------------------------------------------------- all candidates

(defn- text-of [^Side s id]
  (essential-name (types/c-text (.-blob s) id 0)))

(defn- ambiguous ^Throwable [what text found]
  (error/error
   :ambiguous
   (str "All " what " " @text " of this kernel must give the same value, got "
        (error/list-of (for [{:keys [id side result]} (take 8 found)]
                         (str (:value result) " for type " id
                              (when-let [module (.-module ^Side side)] (str " of module " module))))
                       "and"))
   {:bpfmap/hint "declare the type with the fields that tell these types apart"}))

(defn- agreed
  "Returns the result of all candidates that have one; throws if they differ."
  [what text found]
  (when-let [{:keys [bits result]} (first found)]
    (when-not (every? #(and (= bits (:bits %)) (= (:value result) (:value (:result %)))) found)
      (throw (ambiguous what text found)))
    result))

(defn- missing-text
  "Returns the reason why a target does not have what a relocation asks for."
  [found-candidates text what]
  (if (empty? found-candidates)
    (str "this kernel has no " @text)
    (str @text " has no " what " on this kernel")))

(defn- for-candidates
  "Returns the results of all candidates: `{:side :id :bits :result}`."
  [^Side local found-candidates f]
  (reduce (fn [results [^Side s ids]]
            (reduce (fn [results id]
                      (if-let [found (f (Run. local s (long-array 1 most-work)) id)]
                        (conj results (assoc found :side s :id id))
                        results))
                    results ids))
          [] found-candidates))

(defn- resolve-field [^Side s found text id access kind]
  (let [field (local-field s id access)
        results (for-candidates
                 s found
                 (fn [^Run run target]
                   (when-let [at (target-field run (:steps field) target)]
                     {:bits (:bits at)
                      :result (field-result run text field at kind)})))]
    (or (agreed "types" text results)
        (if (= :field-exists kind)
          {:value 0 :was 1}
          {:poison (missing-text found text (str "field " (field-text field)))}))))

(defn- resolve-enumerator [^Side s found text id access kind]
  (let [enumerator (local-enumerator s id access)
        results (for-candidates s found
                                (fn [run target]
                                  (when-let [result (enumerator-result run enumerator target kind)]
                                    {:result result})))]
    (or (agreed "enums" text results)
        (if (= :enumval-exists kind)
          {:value 0 :was 1}
          {:poison (missing-text found text (str "enumerator " (essential-name (:name enumerator))))}))))

(defn- resolve-type [^Side s found text id access kind]
  (when-not (= [0] (indices access))
    (throw (invalid "The access" "0 for a whole type" access)))
  (or (agreed "types" text
              (for-candidates s found (fn [run target]
                                        (when-let [result (type-result run id target kind)]
                                          {:result result}))))
      (case kind
        (:type-exists :type-matches) {:value 0 :was 1}
        :type-size {:value 0 :was (size-of s id)}
        :type-id-target {:value 0})))

(defn- resolve-new [^Side s targets {:keys [kind type-id access]}]
  (let [b (.-blob s)]
    (when-not (kinds kind)
      (throw (invalid "The kind" (error/list-of (sort kinds)) kind)))
    (when-not (and (int? type-id) (<= 1 (long type-id) (blob/type-count b)))
      (throw (invalid "The type" (str "an id from 1 to " (blob/type-count b)) type-id)))
    (if (= :type-id-local kind)
      {:value type-id}
      (let [name (blob/name-of b type-id)
            _ (when-not name
                (throw (invalid "The type" "a type with a name" (types/c-text b type-id 0))))
            ;; Only errors and reasons need it.
            text (delay (text-of s type-id))
            found (all-candidates targets (essential-name name) (kind-class (blob/kind b type-id)))]
        (cond
          (field-kinds kind) (resolve-field s found text type-id access kind)
          (enumerator-kinds kind) (resolve-enumerator s found text type-id access kind)
          :else (resolve-type s found text type-id access kind))))))

(defn resolve
  "Resolves a CO-RE relocation of an object against the types of a kernel.

  `local` is a result of [[local]], `targets` of [[targets]], and `relocation` an element of `:core`
  of a program: `:kind`, `:type-id` and `:access` count.

  Returns `{:value n}` with what [[patch!]] needs to know, or `{:poison reason}` if the kernel does
  not have it: then the instruction must not run. What merely asks whether something exists has the
  value 0 instead. A result has also:

  | key         | meaning                                                                     |
  |-------------|-----------------------------------------------------------------------------|
  | `:was`      | the value that the compiler wrote; missing if compilers differ in it        |
  | `:size`, `:was-size` | the bytes of a load or store, if they differ                       |
  | `:misfit`   | the reason why a load or store cannot get this size                         |
  | `:module`   | the module that has the type of an id                                       |

  Throws `:ambiguous` if types of the kernel share the name and give different values,
  `:invalid-value` if the relocation does not fit the object, and `:malformed-btf`.

      (resolve l t {:kind :field-byte-offset :type-id 12 :access \"0:1\"}) ;=> {:value 2456 :was 8}
      (resolve l t {:kind :field-byte-offset :type-id 12 :access \"0:2\"})
      ;=> {:poison \"struct task_struct has no field gone on this kernel\"}"
  [^Local local targets {:keys [kind type-id access] :as relocation}]
  (let [^ConcurrentHashMap resolved (.-resolved local)
        ;; Each call for the running kernel has other targets, which share the kernel's side.
        k [(.-kernel ^Targets targets) type-id access kind]]
    (or (.get resolved k)
        (let [found (resolve-new (.-side local) targets relocation)]
          (.put resolved k found)
          found))))

;; ---------------------------------------------------------------- instructions

(def ^:private poison
  "The helper that a poisoned instruction calls.

  No kernel has it. The verifier rejects the call if it can be reached."
  0xbad2310)

(defn poison-helper?
  "Returns true for the number of the helper in a poisoned instruction.

      (poison-helper? 195896080) ;=> true"
  [n]
  (= poison n))

(defn- mismatch ^Throwable [slot what was got]
  (error/error :invalid-program
               (str "The " what " of the instruction at slot " slot " must be " was
                    ", which its CO-RE relocation says that the compiler wrote, got " got)
               {:bpfmap/path [slot]
                :bpfmap/hint "change instructions and :core together, or neither"}))

(defn- write-poison! [^ByteBuffer buffer slot]
  (let [at (* 8 (long slot))]
    (.putLong buffer (int at) 0)
    (.put buffer (int at) (unchecked-byte 0x85))
    (.putInt buffer (int (+ at 4)) (int poison))))

(def ^:private size-bits
  "The bits of an opcode for the bytes of a load or store."
  {4 0x00, 2 0x08, 1 0x10, 8 0x18})

(def ^:private wide-code 0x18)

(defn- check-was [slot what {:keys [was]} got]
  (when (and was (not= was got))
    (throw (mismatch slot what was got))))

(defn- patch-access!
  "Writes the offset, and the size, of a load or store."
  [^ByteBuffer buffer slot code {:keys [value size was-size] :as resolved}]
  (let [at (* 8 (long slot))]
    (check-was slot "offset" resolved (long (.getShort buffer (int (+ at 2)))))
    (when-not (<= 0 (long value) 0x7fff)
      (throw (error/error :invalid-program
                          (str "The offset of the instruction at slot " slot
                               " must be at most 32767, and the field is at " value)
                          {:bpfmap/path [slot]
                           :bpfmap/hint "read the field with bpf_core_read"})))
    (.putShort buffer (int (+ at 2)) (unchecked-short value))
    (when size
      (let [bytes (some (fn [[n bits]] (when (= bits (bit-and 0x18 (long code))) n)) size-bits)]
        (when-not (= bytes was-size)
          (throw (mismatch slot "size in bytes" was-size bytes)))
        (.put buffer (int at) (unchecked-byte (bit-or (bit-and (long code) 0xe7)
                                                      (long (size-bits size)))))))))

(defn patch!
  "Writes a resolved relocation into the instruction at a slot; returns the array.

  `code` are assembled instructions in `byte-order`, and `resolved` is a result of [[resolve]]. The
  value becomes the immediate of an arithmetic instruction or of the load of a constant, or the
  offset of a load or store. An instruction that must not run becomes a call of a helper that no
  kernel has.

  Throws `:invalid-program`, without a change, if the instruction takes no value, if it has another
  value than the compiler wrote, or if the value does not fit.

      (patch! code 3 {:value 2456 :was 8} (ByteOrder/nativeOrder))"
  ^bytes [^bytes code slot {:keys [value misfit] :as resolved} ^ByteOrder byte-order]
  (let [slot (long slot)
        slots (quot (alength code) 8)
        _ (when-not (< -1 slot slots)
            (throw (error/error :invalid-program
                                (str "The slot of a CO-RE relocation must be from 0 to "
                                     (dec slots) ", got " slot)
                                {:bpfmap/path [slot]})))
        buffer (.order (ByteBuffer/wrap code) byte-order)
        at (* 8 slot)
        opcode (bit-and 0xff (.get buffer (int at)))
        class (bit-and 7 opcode)
        access? (<= 1 class 3)
        source-bits (if (= ByteOrder/BIG_ENDIAN byte-order) 0x0f 0xf0)
        wide? (and (= opcode (long wide-code)) (< (inc slot) slots)
                   (zero? (.get buffer (int (+ at 8)))))]
    (cond
      (or (:poison resolved) (and misfit access?))
      (do (when wide? (write-poison! buffer (inc slot)))
          (write-poison! buffer slot))

      access? (patch-access! buffer slot opcode resolved)

      (and (or (= 4 class) (= 7 class)) (zero? (bit-and 8 opcode)))
      (do (check-was slot "immediate" resolved (long (.getInt buffer (int (+ at 4)))))
          (.putInt buffer (int (+ at 4)) (unchecked-int (long value))))

      (and wide? (zero? (bit-and source-bits (bit-and 0xff (.get buffer (inc at))))))
      (do (check-was slot "immediate" resolved
                     (bit-or (bit-and 0xffffffff (.getInt buffer (int (+ at 4))))
                             (bit-shift-left (long (.getInt buffer (int (+ at 12)))) 32)))
          (.putInt buffer (int (+ at 4)) (unchecked-int (long value)))
          (.putInt buffer (int (+ at 12)) (unchecked-int (bit-shift-right (long value) 32))))

      :else
      (throw (error/error :invalid-program
                          (format "The instruction at slot %d must be one that takes a value, got opcode 0x%02x"
                                  slot opcode)
                          {:bpfmap/path [slot]
                           :bpfmap/hint "change instructions and :core together, or neither"})))
    code))
