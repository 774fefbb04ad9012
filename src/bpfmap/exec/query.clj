(ns ^:no-doc bpfmap.exec.query
  "Selects and sorts rows: conditions on the fields of rows, as text or as data.

      bytes>1M      src=10.0.0.0/24      name~^cali      type!=percpu_hash      value.packets<=7      comm==\"my tool\"
      [:> :bytes 1000]    [:or [:= :src \"10.0.0.1\"] [:matches :comm \"^ssh\"]]    [:not [:= :frozen true]]

  | in text                   | as data             | holds if                                             |
  |---------------------------|---------------------|------------------------------------------------------|
  | `f=x` `f==x` `f!=x`       | `[:= f x]` `[:not= f x]` | the field is x                                  |
  | `f<x` `f<=x` `f>x` `f>=x` | `[:< f x]` …        | it is smaller or larger                              |
  | `f~x` `f=~x` `f!~x`       | `[:matches f x]` `[:not [:matches f x]]` | the regular expression x is found in the field's text |
  |                           | `[:and c …]` `[:or c …]` `[:not c]` | all, one or none of the conditions hold |

  A field is a name, or a path with dots: `key.src`, `value.0.packets`, `held.command`. A field of
  an entry's value, or else of its key, is found by its name alone: `bytes`. A name that contains a
  dot takes precedence over a path. In double quotes, a name may have any character, and each
  segment of a path with quotes is one name: `value.\"pick.turn\"`, `\"pick\".turn`.

  The operand depends on the field:

  | the field is        | the operand is                                                                          |
  |---------------------|-----------------------------------------------------------------------------------------|
  | a number            | a number, also as 0x1f; with K, M, G, T, P or E (or Ki, Mi …) a multiple of 1024, with KB, MB … of 1000; with ns, us, ms, s, min, h or d a time, in nanoseconds or in the unit that the field's name ends in, such as `_us` |
  | a name (an enum, a map type, a flag) | the name, or its number; also the kernel's spelling, `percpu_hash`; for a change also `+`, `*` or `-` |
  | an address or a prefix | an address, or a prefix that contains the address                                    |
  | text                | text; in quotes, it may have any character                                              |
  | bytes               | bytes in hexadecimal                                                                    |
  | a list              | one of its elements, or a field of an element: `held=agent`, `held=4711`                |
  | missing             | `-` or `nil`                                                                            |

  An unknown field, or any other operand, is an error that lists the possible ones. Nothing is
  evaluated."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.exec.fields :as fields]
            [bpfmap.impl.codec.scalar :as scalar]
            [bpfmap.impl.edn :as edn]
            [bpfmap.impl.field-path :as field-path]
            [bpfmap.impl.nearest :as nearest]
            [clojure.string :as str]
            [clojure.walk :as walk])
  (:import (java.util Arrays Comparator PriorityQueue)
           (java.util.regex Pattern PatternSyntaxException)))

(set! *warn-on-reflection* true)

;; --- paths

(def path-of
  "Returns a field as a path of names; see `bpfmap.impl.field-path`."
  field-path/path-of)

(defn- names-of
  "Returns the keys and the index that a name on a path can stand for."
  [name]
  {:keys [(keyword name) (keyword (str name "?")) name (parse-long name)]
   :index (when (re-matches #"[0-9]{1,9}" name) (parse-long name))})

(defn- ways
  "Returns the ways to follow a path from one place: `[names ways]` pairs.

  Longer names come first, so that a whole name wins over a path. In an exact path each segment is
  one name."
  [path exact?]
  (when (seq path)
    (mapv (fn [n] [(names-of (str/join "." (take n path))) (ways (drop n path) exact?)])
          (if exact? [1] (range (count path) 0 -1)))))

(defn- step
  "Returns the value of a map or vector under a name; ::absent if there is none."
  [x {:keys [keys index]}]
  (cond
    (map? x) (reduce (fn [_ k]
                       (let [found (get x k ::absent)]
                         (if (identical? ::absent found) found (reduced found))))
                     ::absent keys)
    (and index (vector? x)) (nth x index ::absent)
    :else ::absent))

(defn- many? [x] (or (vector? x) (set? x) (seq? x)))

(defn- follow
  "Returns all values at a path, in every element of lists; nil if there are none."
  [x ways]
  (if ways
    (or (some (fn [[names more]]
                (let [found (step x names)]
                  (when-not (identical? ::absent found)
                    (seq (follow found more)))))
              ways)
        (when (many? x) (seq (mapcat #(follow % ways) x))))
    (cond
      (not (many? x)) [x]
      (seq x) (mapcat #(follow % nil) x)
      :else [nil])))

(defn getter
  "Returns a function from a row to all its values at a path.

  Faster than [[values-at]] for many rows.

      ((getter [\"packets\"]) {:key 7 :value {:packets 3}}) ;=> (3)"
  [path]
  (let [ways (ways path (:exact (meta path)))]
    (fn [row]
      (or (seq (follow row ways))
          (seq (follow (:value row) ways))
          (seq (follow (:key row) ways))))))

(defn values-at
  "Returns all values of a row at a path; nil if there are none.

  For an entry, the path can also begin in its value, or else in its key.

      (values-at {:key 7 :value {:packets 3}} [\"packets\"]) ;=> (3)"
  [row path]
  ((getter path) row))

(def ^:private ^:const most-listed "The number of names that a hint lists." 8)

(defn- name-hint
  "Returns the hint for an unknown name: the nearest names, or the first names."
  [word plural names]
  (or (nearest/did-you-mean word names)
      (str "the " plural " are " (str/join ", " (take most-listed names))
           (when (< most-listed (count names))
             (str ", … (" (count names) " in all; --edn shows them)")))))

(defn- no-field
  "Returns the `:usage` error for an unknown field."
  [path names]
  (error/error :usage (str "Unknown field " (fields/path-text path))
               {:bpfmap/hint (name-hint (str/join "." path) "fields" names)}))

(defn real-path
  "Returns a path with the real names of the fields of rows.

  If the fields are unknown, returns the path as it is. Throws `:usage` with the nearest names for
  an unknown field.

      (real-path (fields/row [[\"memlock\" {:kind :number}]] {\"memory\" \"memlock\"}) [\"memory\"]) ;=> [\"memlock\"]"
  [row-field path]
  (if row-field
    (or (some-> (first (fields/find-path row-field path)) (with-meta {:exact true}))
        (throw (no-field path (fields/paths row-field))))
    path))

(defn- leaf-paths [prefix x]
  (if (and (map? x) (seq x))
    (mapcat (fn [[k v]] (leaf-paths (conj prefix (fields/name-of k)) v)) x)
    [(fields/path-text prefix)]))

(defn- check-field
  "Throws `:usage` if a row cannot have a field.

  A nil or an empty list on the way to it hides the field."
  [row path]
  (when-not (or (values-at row path)
                (some #(some nil? (values-at row (take % path))) (range 1 (count path))))
    (throw (no-field path (distinct (leaf-paths [] row))))))

;; --- order

(defn- not-a-number? [x] (and (float? x) (Double/isNaN (double x))))

(defn- rank [x]
  (cond
    (nil? x) 0
    (boolean? x) 1
    (not-a-number? x) 3
    (number? x) 2
    (or (string? x) (ident? x) (char? x)) 4
    (bytes/byte-view? x) 5
    :else 6))

(defn- text-of [x]
  (cond
    (string? x) x
    (keyword? x) (subs (str x) 1)
    (or (number? x) (boolean? x) (char? x) (symbol? x) (bytes/byte-view? x)) (str x)
    :else (pr-str x)))

(defn- finite? [x] (or (not (float? x)) (Double/isFinite (double x))))

(defn- order-of-numbers
  "Compares numbers exactly, without converting integers to doubles."
  [a b]
  (if (and (not= (float? a) (float? b)) (finite? a) (finite? b) (not (ratio? a)) (not (ratio? b)))
    (compare (bigdec a) (bigdec b))
    (compare a b)))

(defn- order-of-any [a b]
  (let [by-rank (compare (rank a) (rank b))]
    (cond
      (not (zero? by-rank)) by-rank
      (= 2 (rank a)) (order-of-numbers a b)
      (= 3 (rank a)) 0
      (contains? #{0 1 5} (rank a)) (compare a b)
      :else (compare (text-of a) (text-of b)))))

(defn order
  "Compares any two values of fields.

  The order is: nil, booleans, numbers, NaN, texts, bytes, and anything else by its printed form.

      (sort order [\"b\" 10 9 nil \"a\"]) ;=> (nil 9 10 \"a\" \"b\")"
  [a b]
  (if (and (int? a) (int? b))
    (compare a b)
    (order-of-any a b)))

(defn- falling
  "Compares in descending order, with NaN as the last number."
  [a b]
  (if (or (not-a-number? a) (not-a-number? b))
    (if (and (number? a) (number? b)) (order a b) (order b a))
    (order b a)))

;; --- operands

(def ^:private sizes
  (into {"" 1 "B" 1}
        (mapcat (fn [[i letter]]
                  (let [binary (.pow (biginteger 1024) (int (inc (long i))))
                        decimal (.pow (biginteger 1000) (int (inc (long i))))
                        letters (cond-> [letter] (not= "M" letter) (conj (str/lower-case letter)))]
                    (for [letter letters
                          [unit factor] {letter binary, (str letter "i") binary
                                         (str letter "iB") binary, (str letter "B") decimal}]
                      [unit (bigint factor)]))))
        (map-indexed vector ["K" "M" "G" "T" "P" "E"])))

(def ^:private times
  "The units of time in nanoseconds."
  (let [second 1000000000N]
    {"ns" 1N "us" 1000N "µs" 1000N "μs" 1000N "ms" 1000000N "s" second "sec" second
     "min" (* 60 second) "h" (* 3600 second)
     "d" (* 86400 second)}))

(defn- time-of-name
  "Returns the nanoseconds of a field's unit, by the end of its name (default: 1)."
  [name]
  (condp re-find (str name)
    #"(?i)(^|[_. -])(us|usecs?|micros|microseconds)$" 1000N
    #"(?i)(^|[_. -])(ms|msecs?|millis|milliseconds)$" 1000000N
    #"(?i)((^|[_. -])(secs?|seconds)|[_. -]s)$" 1000000000N
    1N))

(def ^:private plain-number
  #"(?x) ([+-]?) (?: 0[xX]([0-9a-fA-F]+) | ((?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?) \s* ([a-zA-Zµμ]*|%) )")

(defn- number-of
  "Returns the number in a text, for a field of a name, or nil."
  [text field-name]
  (let [text (str/trim text)]
    (or (case text
          ("NaN" "##NaN") ##NaN
          ("Infinity" "Inf" "##Inf") ##Inf
          ("-Infinity" "-Inf" "##-Inf") ##-Inf
          nil)
        (when-let [[_ sign hex digits unit] (when (<= (count text) 400)
                                              (re-matches plain-number text))]
          (let [signed #(if (= "-" sign) (- %) %)
                exponent (some-> digits (->> (re-find #"[eE]([+-]?\d+)$")) second parse-long)]
            (cond
              hex (signed (let [n (BigInteger. ^String hex 16)]
                            (if (< (.bitLength n) 64) (.longValue n) (bigint n))))
              (< 400 (abs (long (or exponent 0)))) nil
              :else
              (when-let [factor (or (sizes unit)
                                    (when (and (= "%" unit) (= "full" field-name)) 1)
                                    (some-> (times unit) (/ (time-of-name field-name))))]
                (let [plain? (and (= 1 factor) (re-find #"[.eE]" digits))
                      n (* (bigdec (str/replace digits #"\.$" "")) (bigdec 1))]
                  (signed (if plain?
                            (Double/parseDouble digits)
                            (let [n (* (rationalize n) factor)]
                              (if (integer? n)
                                (if (<= n Long/MAX_VALUE) (long n) (bigint n))
                                (double n)))))))))))))

(defn- network-of
  "Returns the address or prefix in a text or in data; nil if it is neither.

  The result is `{:address array :bits n :whole}`."
  [x]
  (cond
    (string? x)
    (when-let [[_ address digits] (re-matches #"([0-9a-fA-F:.]{2,45})(?:/(\d{1,3}))?" x)]
      (when-let [^bytes array (or (scalar/ipv4-bytes address)
                                  (when (str/includes? address ":") (scalar/ipv6-bytes address)))]
        (let [most (* 8 (alength array))
              n (if digits (parse-long digits) most)]
          (when (<= (long n) most)
            {:address array :bits n :whole (nil? digits)}))))

    (and (map? x) (int? (:prefixlen x)) (bytes/byte-view? (:data x)))
    (let [array (bytes/->array (:data x))]
      {:address array :bits (min (long (:prefixlen x)) (* 8 (alength array))) :whole false})))

(defn- leading
  "Returns the first n bits of an address as a number."
  [^bytes array n]
  (.shiftRight (BigInteger. 1 array) (int (- (* 8 (alength array)) (long n)))))

(defn- same-network?
  "Returns true if two addresses are equal, or one is in the prefix of the other.

  Two prefixes must be equal."
  [x given]
  (let [^bytes a (:address x) ^bytes b (:address given)]
    (and (= (alength a) (alength b))
         (or (:whole x) (:whole given) (= (:bits x) (:bits given)))
         (let [n (min (long (:bits x)) (long (:bits given)))]
           (= (leading a n) (leading b n))))))

(defn- mac-of [text]
  (when (re-matches #"(?i)[0-9a-f]{2}([:-][0-9a-f]{2}){5}" text)
    (str/replace (str/lower-case text) "-" ":")))

(defn- edn [text]
  (try
    (edn/read-text text)
    (catch Exception _ ::none)))

(defn- edn-map [text]
  (when (re-find #"^\s*\{" text)
    (let [x (edn text)]
      (when (map? x)
        (walk/postwalk #(if (symbol? %) (keyword %) %) x)))))

(def ^:private missing #{"nil" "null" "-" "" "none"})

(defn- given-text
  "Returns the operand of a condition as text; nil for other data."
  [given]
  (cond
    (string? given) given
    (ident? given) (text-of given)
    (char? given) (str given)))

(def ^:private kernel-style #"[a-z0-9]+(-[a-z0-9]+)*")

(defn- name-like?
  "Returns true if a name equals the operand, also in the kernel's spelling."
  [name given]
  (or (= name given)
      (and (re-matches kernel-style name) (= name (fields/kernel-name given)))))

(defn- operands
  "Returns the operand of a condition as each kind it can be, on demand.

  The result is a map from kinds to delays."
  [given field-name]
  (let [text (given-text given)]
    {:number (delay (cond (number? given) given text (number-of text field-name)))
     :boolean (delay (cond (boolean? given) given
                           text ({"true" true "yes" true "false" false "no" false} text)))
     :text (delay text)
     :network (delay (some-> text network-of))
     :mac (delay (some-> text mac-of))
     :bytes (delay (cond (bytes/byte-view? given) given
                         text (try
                                (bytes/->bytes
                                 (if-let [[_ inside] (re-matches #"#bpfmap/bytes \"(.*)\"" text)]
                                   inside
                                   text))
                                (catch Exception _ nil))))
     :map (delay (cond (map? given) given text (edn-map text)))
     :missing (or (nil? given) (contains? missing text))
     :given given}))

(defn- compared
  "Returns true if an order holds between two comparable values."
  [op n]
  (let [n (long n)]
    (case op := (zero? n) :< (neg? n) :<= (<= n 0) :> (pos? n) :>= (<= 0 n))))

(defn- numbers-compared [op x given]
  (cond
    (and (not-a-number? x) (not-a-number? given)) (contains? #{:= :<= :>=} op)
    (or (not-a-number? x) (not-a-number? given)) false
    :else (compared op (order-of-numbers x given))))

(declare test-value)

(defn- leaves [x]
  (cond
    (map? x) (mapcat leaves (vals x))
    (many? x) (mapcat leaves x)
    :else [x]))

(defn- shown-as
  "Returns a process or program as in a table: its name, and its id in brackets."
  [{:keys [command pid name id]}]
  (cond
    (and command pid) (str command "[" pid "]")
    (and name id) (str name "[" id "]")))

(defn- test-name
  "Compares a name with the operand, by itself or by its number.

  Names have an order only if they have numbers."
  [op x names operands]
  (let [x-number (if (number? x) x (get names (fields/name-of x)))
        text @(:text operands)
        given-number (or @(:number operands)
                         (when text
                           (or (get names text)
                               (some (fn [[name n]] (when (name-like? name text) n)) names))))
        equal? (or (and text (not (number? x)) (name-like? (text-of x) text))
                   (and x-number
                        given-number
                        (zero? (long (order-of-numbers x-number given-number)))))]
    (cond
      (= := op) (if (or equal? text given-number) (boolean equal?) ::misfit)
      (and x-number given-number) (compared op (order-of-numbers x-number given-number))
      (and text (not (number? x))) (compared op (compare (text-of x) text))
      :else ::misfit)))

(defn- test-text [op ^String x {:keys [text network mac]} kind]
  (let [given @text
        nets (when (and (not= :text kind) @network) [(network-of x) @network])]
    (cond
      (and (first nets) (second nets))
      (let [[a b] nets]
        (if (= := op)
          (same-network? a b)
          (compared op (Arrays/compareUnsigned ^bytes (:address a) ^bytes (:address b)))))
      (and (not= :text kind) @mac (mac-of x)) (compared op (compare (mac-of x) @mac))
      (nil? given) ::misfit
      (and (= "" x) (= := op) (contains? missing given)) true
      :else (compared op (compare x given)))))

(defn- test-value
  "Returns the result of a condition for one value of a field.

  The result is ::misfit if the two cannot be compared."
  [op operands {:keys [kind names] member? :member} x]
  (let [with (fn [k f]
               (if-some [given @(k operands)] (f given) (if (:missing operands) false ::misfit)))]
    (cond
      (nil? x) (and (= := op) (:missing operands))
      (boolean? x) (with :boolean #(if (= := op) (= x %) ::misfit))
      (or names (ident? x)) (test-name op x names operands)
      (number? x) (with :number #(numbers-compared op x %))
      (string? x) (test-text op x operands kind)
      (char? x) (with :text
                      #(if (= 1 (count %)) (compared op (compare (str x) %)) (= (pr-str x) %)))
      (bytes/byte-view? x) (if-some [given @(:bytes operands)]
                             (compared op (compare x given))
                             ;; Invalid text is read as bytes.
                             (if (contains? #{:bytes :any nil} kind)
                               (if (:missing operands) false ::misfit)
                               false))
      (map? x) (cond
                 @(:map operands) (if (= := op) (= x @(:map operands)) ::misfit)
                 (network-of x) (with :network
                                      #(if (= := op) (same-network? (network-of x) %) ::misfit))
                 ;; A list is matched by its elements, and a value with a single field, such as a
                 ;; reference, by that field.
                 (and (= := op) (or member? (shown-as x) (= 1 (count x))))
                 (let [found (map #(test-value op operands nil %) (leaves x))]
                   (cond
                     (or (some true? found) (= (shown-as x) @(:text operands))) true
                     (every? #{::misfit} found) ::misfit
                     :else false))
                 :else ::misfit)
      :else (= x (:given operands)))))

(defn- matcher
  "Returns a test for a regular expression."
  [given]
  (let [pattern (if (instance? Pattern given) given (Pattern/compile (text-of given)))
        found? #(re-find pattern (text-of %))]
    (fn [x]
      (boolean
       (cond
         (nil? x) false
         (map? x) (or (some-> (shown-as x) found?)
                      (some found? (remove nil? (leaves x)))
                      (found? x))
         :else (found? x))))))

;; --- checking operands

(def ^:private right
  "The operands that a field of a kind can be compared with, for messages."
  {:number "a number, such as 10, 0x1f, 64K or 5ms"
   :boolean "true or false"
   :text "text"
   :char "one character"
   :mac "a MAC address, such as 00:1b:21:0a:0b:0c"
   :bytes "bytes in hexadecimal, such as '01 00'"
   :struct "a map in EDN"})

(defn- kind-of-value [x]
  (cond
    (boolean? x) :boolean
    (number? x) :number
    (string? x) :text
    (ident? x) :name
    (char? x) :char
    (bytes/byte-view? x) :bytes
    (map? x) :struct
    :else :any))

(defn- mismatch
  "Returns the `:usage` error for an operand of the wrong kind."
  [path op given {:keys [kind names family] :as field}]
  (let [inside (when (seq (:fields field)) (fields/paths (fields/row [[(peek (vec path)) field]])))
        whole (fields/path-text path)
        examples (if (= :ipv6 family) ["2001:db8::1" "2001:db8::/32"] ["10.0.0.1" "10.0.0.0/24"])]
    (error/error
     :usage
     (if (and (contains? #{:< :<= :> :>=} op) (contains? #{:boolean :struct} kind))
       (str whole " has no order: " (name op) " is for numbers, names, addresses, text and bytes")
       (str whole " must be compared with "
            (case kind
              (:address :prefix) (str "an address or a prefix, such as " (first examples) " or "
                                      (second examples))
              :name (if (seq names) "one of its names or their numbers" "a name")
              (right kind "something of its own kind"))
            ", got " (if (= "" given) "\"\"" (text-of (error/shown given)))))
     {:bpfmap/hint
      (case kind
        :struct (when (seq inside)
                  (str "name a field of it, such as "
                       (error/list-of (take 3
                                            (map #(str whole
                                                       (subs %
                                                             (count
                                                              (fields/quoted (peek (vec path))))))
                                                 inside)))))
        :name (when (seq names)
                (name-hint (fields/kernel-name (text-of given)) "names" (sort (keys names))))
        nil)})))

(defn- check-kind
  "Throws `:usage` if the operand cannot be compared with a field or its elements."
  [path op given {:keys [kind of names fields] :as field}]
  (let [{missing? :missing :as operands} (operands given (peek (vec path)))
        fits? (fn [k] (some? @(k operands)))
        unordered? (contains? #{:< :<= :> :>=} op)]
    (when-not (or (= :matches op) (and missing? (= := op)))
      (case kind
        :list (if (= :struct (:kind of))
                (when unordered? (throw (mismatch path op given of)))
                (check-kind path op given of))
        (:any :text) (when (and (= :text kind) (not (fits? :text)))
                       (throw (mismatch path op given field)))
        :number (when-not (fits? :number) (throw (mismatch path op given field)))
        :boolean (when (or unordered? (not (fits? :boolean)))
                   (throw (mismatch path op given field)))
        :char (when-not (fits? :text) (throw (mismatch path op given field)))
        :bytes (when-not (fits? :bytes) (throw (mismatch path op given field)))
        (:address :prefix) (let [{:keys [^bytes address]} @(:network operands)]
                             (when-not (or (and address (or (nil? (:family field))
                                                            (= (alength address)
                                                               ({:ipv4 4
                                                                 :ipv6 16} (:family field)))))
                                           (fits? :map) (bytes/byte-view? given)
                                           (and (fits? :bytes)
                                                (not (fits? :network))
                                                (string? given)
                                                (re-find #"[ :x]" given)
                                                (not= :ipv6 (:family field))))
                               (throw (mismatch path op given field))))
        :mac (when-not (or (fits? :mac) (fits? :bytes)) (throw (mismatch path op given field)))
        :name (when-not (or (fits? :number)
                            (and (fits? :text)
                                 (or (empty? names)
                                     (some #(name-like? % @(:text operands)) (keys names)))))
                (throw (mismatch path op given field)))
        :struct (when-not (or (fits? :map)
                              (and (not unordered?) (= 1 (count fields))))
                  (throw (mismatch path op given field)))))))

;; --- conditions

(def ^:private in-text
  {"=" :=, "==" :=, "!=" :not=, "<" :<, "<=" :<=, ">" :>, ">=" :>=, "~" :matches, "=~" :matches
   "!~" :not-matches})

(defn- invalid
  "Throws an exception about a condition: `problem` begins with must."
  [problem hint]
  (throw (ex-info problem {:hint hint})))

(defn- value-text
  "Returns the value after an operator, without its quotes.

  Throws if there seem to be several conditions."
  [text op]
  (let [[_ double-quoted] (re-matches #"(?s)\"((?:[^\"\\]|\\.)*)\"" text)
        [_ single-quoted] (re-matches #"(?s)'([^']*)'" text)]
    (cond
      double-quoted (let [x (edn text)] (if (string? x) x double-quoted))
      single-quoted single-quoted
      (contains? #{:matches :not-matches} op) text
      (re-find #"^[=<>!~]" text)
      (invalid "must have one operator: = == != < <= > >= ~ =~ or !~"
               "put a value that begins with an operator in double quotes")

      (and (re-find #"\s(&&|\|\||(?i:and|or))\s" text) (re-find #"[=<>~]" text))
      (invalid "must be one condition" "repeat --where, or use '[:or [:= a 1] [:> b 2]]'")

      :else text)))

(defn- parse-text
  "Parses a condition given as text; nil if it is not a condition."
  [text]
  (if (str/starts-with? (str/triml text) "[")
    (let [data (edn text)] (when (vector? data) data))
    (let [[_ field op
           given] (re-matches
                   #"(?s)\s*((?:\"(?:[^\"\\]|\\.)*\"|[^=<>!~\s\"]|\s+(?=[^=<>!~\s]))+)\s*(!=|<=|>=|!~|==|=~|=|<|>|~)\s*(.*?)\s*" text)]
      (when field
        [(in-text op) field (value-text given (in-text op))]))))

(defn- checked
  "Returns a condition as data whose fields are paths; throws for a malformed one."
  [condition]
  (let [[op & more] (when (vector? condition) condition)]
    (case op
      (:and :or) (into [op] (map checked) more)
      :not (if (= 1 (count more))
             [:not (checked (first more))]
             (invalid "must have one condition after :not" nil))
      :not= [:not (checked (assoc condition 0 :=))]
      :not-matches [:not (checked (assoc condition 0 :matches))]
      :== (checked (assoc condition 0 :=))
      (:= :< :<= :> :>= :matches)
      (let [[field given] more
            path (path-of field)]
        (when-not (= 2 (count more)) (invalid (str "must have a field and a value after " op) nil))
        (when-not path (invalid (str "must have a field after " op) nil))
        (when (= :matches op)
          (try
            (re-pattern (if (instance? Pattern given) given (text-of given)))
            (catch PatternSyntaxException e
              (invalid "must have a valid regular expression" (.getDescription e)))))
        [op path given])
      (invalid "must be a condition"
               "such as 'bytes>1000', src=10.0.0.1, name~^cali or '[:or [:> :bytes 1000] [:= :src \"10.0.0.1\"]]'"))))

(defn condition
  "Returns a condition as checked data.

  Throws an exception for a malformed one: its message is the constraint, `:hint` of its data the
  hint.

      (condition \"bytes>1000\") ;=> [:> [\"bytes\"] \"1000\"]"
  [x]
  (checked (if (string? x) (parse-text x) x)))

(defn- resolved
  "Returns a condition with real paths and with the field of each.

  Throws `:usage` for an unknown field, or for an operand of the wrong kind. If the fields of rows
  are unknown, the paths stay."
  [row-field [op & more]]
  (if (contains? #{:and :or :not} op)
    (into [op] (map #(resolved row-field %)) more)
    (let [[path given] more]
      (if row-field
        (let [real (real-path row-field path)
              [_ {:keys [shown] :as field}] (fields/find-path row-field path)
              given (get shown given given)]
          (check-kind real op given field)
          [op real given field])
        [op path given nil]))))

(defn- leaf-conditions [[op & more :as condition]]
  (if (contains? #{:and :or :not} op)
    (mapcat leaf-conditions more)
    [condition]))

(defn- element-field
  "Returns the field of the values at a path: for a list, its elements."
  [field]
  (if (= :list (:kind field)) (recur (assoc (:of field) :member true)) field))

(defn- test-of
  "Returns a test for rows.

  Calls `note` for each comparison of a value."
  [[op & more :as condition] note]
  (case op
    :and (let [tests (mapv #(test-of % note) more)] (fn [row] (every? #(% row) tests)))
    :or (let [tests (mapv #(test-of % note) more)] (fn [row] (boolean (some #(% row) tests))))
    :not (complement (test-of (first more) note))
    :matches (let [[path given] more
                   values (getter path)
                   holds? (matcher given)]
               (fn [row] (boolean (some holds? (values row)))))
    (let [[path given field] more
          values (getter path)
          element (element-field field)
          operands (operands given (peek (vec path)))
          holds? (fn [x]
                   (let [found (test-value op operands element x)]
                     (when-not (nil? x) (note condition x found))
                     (true? found)))]
      (fn [row] (boolean (some holds? (or (values row) (when field [nil]))))))))

;; --- rows

(defn- misfits
  "Returns `[note check]`.

  `note` records comparisons; `check` throws if a condition only met values of the wrong kind."
  []
  (let [seen (volatile! {})]
    [(fn [condition x found]
       (when-not (true? (get @seen condition))
         (vswap! seen assoc condition (if (= ::misfit found) [x] true))))
     (fn []
       (doseq [[[op path given field] met] @seen :when (vector? met)]
         (when (contains? #{nil :any} (:kind field))
           (throw (mismatch path op given {:kind (kind-of-value (first met))})))))]))

(defn- checking-fields
  "Returns a transducer that checks the fields of conditions against the first row."
  [paths]
  (fn [rf]
    (let [checked? (volatile! false)]
      (fn
        ([] (rf))
        ([acc] (rf acc))
        ([acc row]
         (when-not @checked?
           (run! #(check-field row %) paths)
           (vreset! checked? true))
         (rf acc row))))))

(defn fields-used
  "Returns the first names of the fields that `:where` and `:sort` use, as a set.

  See [[selecting]] for `:fields`.

      (fields-used {:where [[:> [\"held\" \"pid\"] \"1\"]] :sort (column \"-id\")}) ;=> #{\"held\" \"id\"}"
  [{:keys [where sort] row-field :fields}]
  (into (if sort #{(first (real-path row-field (:path sort)))} #{})
        (map (comp first second))
        (mapcat #(leaf-conditions (resolved row-field %)) where)))

(defn selecting
  "Returns a transducer for the rows that meet all `:where`, at most `:limit`.

  `:fields` are the fields of the rows, if they are known: see `bpfmap.exec.fields`.

  An unknown field, or an operand of the wrong kind, throws `:usage`: before the first row if the
  fields are known, otherwise at the end.

      (into [] (selecting {:where [[:> [\"value\"] \"5\"]]}) [{:key 1 :value 9} {:key 2 :value 3}])
      ;=> [{:key 1 :value 9}]"
  [{:keys [where limit] row-field :fields}]
  (let [conditions (mapv #(resolved row-field %) where)
        passing (fn [rf]
                  (let [[note check] (misfits)
                        tests (mapv #(test-of % note) conditions)]
                    (fn
                      ([] (rf))
                      ([acc] (check) (rf acc))
                      ([acc row] (if (every? #(% row) tests) (rf acc row) acc)))))
        passing (if row-field
                  passing
                  (comp (checking-fields (map second (mapcat leaf-conditions conditions)))
                        passing))]
    (cond
      (and where limit) (comp passing (take limit))
      where passing
      limit (take limit)
      :else (map identity))))

(defn check
  "Throws `:usage` for invalid `:where` or `:sort` of rows with these `:fields`.

      (check {:where [[:= [\"id\"] \"7\"]] :fields (fields/row [[\"id\" {:kind :number}]])}) ;=> nil"
  [{:keys [where sort] row-field :fields}]
  (run! #(resolved row-field %) where)
  (when sort (real-path row-field (:path sort)))
  nil)

(defn column
  "Returns a column to sort by as `{:path :descending}`; nil if it is malformed.

      (column \"-bytes\") ;=> {:path [\"bytes\"] :descending true}"
  [x]
  (let [text (cond (string? x) x (keyword? x) (subs (str x) 1) (symbol? x) (str x))
        descending? (boolean (some-> text (str/starts-with? "-")))
        path (path-of (if text (if descending? (subs text 1) text) x))]
    (when path
      {:path path :descending descending?})))

(defn- worst-first
  "Returns the reverse of an order for `[key number row]`.

  Among equal keys, later rows come first."
  [order]
  (fn [[a i] [b j]]
    (let [by-key (long (order b a))]
      (if (zero? by-key) (compare j i) by-key))))

(defn top
  "Returns the first n rows in the order of their keys, `(f row)`.

  Returns all rows if n is nil. Keeps at most n rows in memory and calls f once per row.

      (top 2 identity compare [3 1 2]) ;=> [1 2]"
  [n f order reducible]
  (let [worst-first (worst-first order)
        kept (PriorityQueue. 11 ^Comparator worst-first)
        most (long (or n Long/MAX_VALUE))]
    (reduce (fn [^long i row]
              (.add kept [(f row) i row])
              (when (< most (.size kept)) (.poll kept))
              (inc i))
            0 reducible)
    (loop [rows ()]
      (if-let [[_ _ row] (.poll kept)]
        (recur (conj rows row))
        (vec rows)))))

(defn- sort-key
  "Returns a function from the value of a field to its sort key.

  Addresses are sorted by their bytes."
  [{:keys [kind]}]
  (if (contains? #{:address :prefix} kind)
    (fn [x]
      (if-let [{:keys [^bytes address bits]} (network-of x)]
        (bytes/wrap (byte-array (concat address [(unchecked-byte (long bits))])))
        x))
    identity))

(defn rows
  "Returns the rows that `:where`, `:sort` and `:limit` select, as a vector.

  NaN comes last in both directions. See [[selecting]] for `:fields`.

      (rows {:sort (column \"id\") :limit 1} [{:id 2} {:id 1}]) ;=> [{:id 1}]"
  [{:keys [sort limit] row-field :fields :as options} reducible]
  (if-let [{:keys [path] descending? :descending} sort]
    (let [path (real-path row-field path)
          key-of (sort-key (when row-field
                             (element-field (second (fields/find-path row-field path)))))
          values (getter path)
          checked? (volatile! (some? row-field))]
      (top limit
           (fn [row]
             (when-not @checked?
               (check-field row path)
               (vreset! checked? true))
             (key-of (first (values row))))
           (if descending? falling order)
           (eduction (selecting (dissoc options :limit)) reducible)))
    (into [] (selecting options) reducible)))
