(ns ^:no-doc bpfmap.impl.type.c
  "Writes a type as a declaration in C, as in a header."
  (:require [bpfmap.impl.type.node :as node]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def ^:private private-names
  (into {}
        (map (fn [[k {:keys [c-name]}]]
               [k (if (str/includes? c-name "*") c-name (str "struct " c-name))]))
        node/private-types))

(defn- integer-name [{:keys [size signed order]}]
  (if (= 16 size)
    (str (when-not signed "unsigned ") "__int128")
    (str "__" (if (and order (not signed)) (name order) (if signed "s" "u")) (* 8 (long size)))))

(defn- scalar
  "Returns the name of a scalar in C, and a remark if C has no exact equivalent."
  [type]
  (let [{:keys [kind size signed order] :as node} (node/scalars type)]
    (case kind
      :integer (cond
                 (= :port type) ["__be16" "a port"]
                 (= :ktime type) ["__u64" "nanoseconds of the kernel's clock"]
                 (and order (or signed (= 16 size))) [(integer-name node)
                                                      (if (= :be order)
                                                        "big-endian"
                                                        "little-endian")]
                 :else [(integer-name node)])
      :float [({4 "float" 8 "double"} size)
              (when order (if (= :be order) "big-endian" "little-endian"))]
      :bool ["bool"]
      :char ["char"]
      :pointer ["void *"]
      :ipv4 ["__be32" "an IPv4 address"]
      :ipv6 ["struct in6_addr"]
      :mac ["__u8" "a MAC address" "[6]"]
      :private [(private-names type)])))

(declare declared)

(defn identifier
  "Returns the name of a field as a valid C identifier.

      (identifier :tx-bytes) ;=> \"tx_bytes\""
  [k]
  (let [text (str/replace (name k) #"[^A-Za-z0-9_]" "_")]
    (if (re-find #"^[0-9]" text) (str "_" text) text)))

(defn- attributes [{:keys [packed align]}]
  (str (when packed " __attribute__((packed))")
       (when align (str " __attribute__((aligned(" align ")))"))))

(defn- spaced [c-type declarator]
  (str c-type (when-not (or (str/blank? declarator) (str/ends-with? c-type "*")) " ") declarator))

(defn- remark [text]
  (when text (str " /* " text " */")))

(defn- ended
  "Returns a declaration with its end, before the remark if there is one."
  [lines attributes at]
  (let [[line note] (str/split (peek lines) #" /\* " 2)]
    (conj (pop lines) (str line attributes ";" (when note (str " /* " note)) (remark at)))))

(defn- member
  "Returns the lines of a member of a struct or union."
  [types [name type options]]
  (let [bits (when (and (vector? type) (= :bits (first type))) type)
        declarator (if name (identifier name) "")
        lines (if bits
                (let [[_ base n] bits]
                  (declared types base (str declarator (when name " ") ": " n)))
                (declared types type declarator))
        at (or (some->> (:offset options) (str "at byte "))
               (some->> (:bit-offset options) (str "at bit ")))]
    (ended lines (attributes options) at)))

(defn- pad
  "Returns unused bytes as a member."
  [n i]
  (str "__u8 _pad" i "[" n "];"))

(defn- members [types forms]
  (map-indexed (fn [i [name n :as form]]
                 (if (and (= :pad name) (int? n))
                   (if (pos? n) [(pad n i)] [])
                   (member types form)))
               forms))

(defn- compound [types [kind & more] declarator]
  (let [[options forms] (if (map? (first more)) [(first more) (rest more)] [nil more])
        head (str (name kind) (some->> (:name options) (str " ")) " {")
        tail (str "}" (attributes options))]
    (-> [head]
        (into (map #(str "    " %)) (mapcat identity (members types forms)))
        (conj (str (spaced tail declarator)
                   (remark (some->> (:size options) (str "bytes in all: "))))))))

(defn- enumeration
  "Returns the lines of an enum.

  In C an enum has four bytes. An enum of another size becomes its integer, with the names as a
  remark."
  [types [_ base values options] declarator]
  (let [constants (str/join ", " (for [[k v] (sort-by val values)] (str (identifier k) " = " v)))]
    (if (= 4 (:size (node/node base types [])))
      [(spaced (str "enum" (some->> (:name options) (str " ")) " { " constants " }") declarator)]
      (let [[line] (declared types base declarator)]
        [(str line (remark (str "enum" (some->> (:name options) (str " ")) ": " constants)))]))))

(defn- declared
  "Returns the lines of a declaration, given the texts around the declarator.

  A remark is at the end of the last line."
  [types type declarator]
  (if (keyword? type)
    (if (node/scalars type)
      (let [[c-name note suffix] (scalar type)]
        [(str (spaced c-name (str declarator suffix)) (remark note))])
      (declared types (get types type) declarator))
    (let [[head a b] type]
      (case head
        (:struct :union) (compound types type declarator)
        :enum (enumeration types type declarator)
        :array (declared types a (str declarator "[" b "]"))
        :bytes [(str "__u8 " declarator "[" a "]")]
        (:string :c-string) [(str "char " declarator "[" a "]")]
        :pad [(str "__u8 " declarator "[" a "]")]
        :prefix (compound types [:struct [:prefixlen :u32] [:data [:bytes ({:ipv4 4 :ipv6 16} a)]]]
                          declarator)
        :ptr [(spaced (if (string? a) (str a " *") "void *") declarator)]
        :typedef [(spaced a declarator)]
        :via (declared types a declarator)))))

(defn declaration
  "Returns the lines that declare a name of a type in C.

  `types` are the named types that the type may use.

      (declaration [:struct {:name \"flow\"} [:src :ipv4] [:port :port]] \"key\" nil)
      ;=> [\"struct flow {\" \"    __be32 src; /* an IPv4 address */\" \"    __be16 port; /* a port */\" \"} key;\"]"
  [type name types]
  (node/node type types [])
  (ended (declared types type name) "" nil))
