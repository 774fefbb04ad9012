(ns ^:no-doc bpfmap.exec.fields
  "The fields that rows have, known before any row is read: their names, aliases and kinds.

  A field is a map:

  | key         | meaning                                                                        |
  |-------------|--------------------------------------------------------------------------------|
  | `:kind`     | `:number` `:boolean` `:text` `:char` `:name` `:address` `:prefix` `:mac` `:bytes` `:struct` `:list`, or `:any` if it cannot be told |
  | `:fields`   | of a struct: `[name field]` pairs, in order                                    |
  | `:aliases`  | of a struct: other names that a field has, as displayed: alias to name         |
  | `:unlisted` | of a struct: fields that a value has only sometimes, by name                   |
  | `:of`       | of a list: the field of each element                                           |
  | `:count`    | of an array: the number of elements                                            |
  | `:integer`  | of a number: true for an integer                                               |
  | `:names`    | of a name: the names that it can have, each with its number, or nil            |
  | `:shown`    | signs that a table shows for values, such as `+`: sign to value                |
  | `:family`   | of an address or prefix: `:ipv4` or `:ipv6`                                    |

  Names are texts. [[bpfmap.exec.query]] reads paths by them and checks conditions against them."
  (:require [bpfmap.impl.field-path :as field-path]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.type.node :as node]
            [clojure.string :as str]
            [clojure.walk :as walk]))

(set! *warn-on-reflection* true)

;; --- names

(defn name-of
  "Returns the name of a row's key, without a colon.

      (name-of :frozen) ;=> \"frozen\""
  [k]
  (if (keyword? k) (subs (str k) 1) (str k)))

(defn kernel-name
  "Returns the bpfmap name for a kernel name, such as BPF_MAP_TYPE_PERCPU_HASH.

      (kernel-name \"BPF_MAP_TYPE_PERCPU_HASH\") ;=> \"percpu-hash\"
      (kernel-name \"no_prealloc\")              ;=> \"no-prealloc\""
  [text]
  (-> (str/lower-case text)
      (str/replace #"^bpf_(map_type_|prog_type_|link_type_|f_)?" "")
      (str/replace "_" "-")))

;; --- paths as text

(def quoted
  "Returns a name for a path, quoted if necessary; see `bpfmap.impl.field-path`."
  field-path/quoted)

(def path-text
  "Returns a path as text that means it; see `bpfmap.impl.field-path`."
  field-path/path-text)

;; --- the field at a path

(def ^:private any {:kind :any})

(declare row)

(defn- exact
  "Returns the field of the longest prefix of a path: `[field number-of-segments]`."
  [{:keys [fields aliases unlisted]} path exact? fold]
  (let [same (fn [wanted name] (= (fold wanted) (fold name)))]
    (some (fn [n]
            (let [wanted (str/join "." (take n path))]
              (or (some (fn [[name field]] (when (same wanted name) [name field n])) fields)
                  (some (fn [[alias name]]
                          (when (same wanted alias)
                            (some (fn [[other field]] (when (= name other) [name field n]))
                                  fields)))
                        aliases)
                  (some (fn [[name field]] (when (same wanted name) [name field n])) unlisted))))
          (if exact? [1] (range (count path) 0 -1)))))

(defn- fold-case [text] (str/lower-case (str/replace text #"[ _]" "-")))

(defn- at
  "Returns every `[canonical-path field]` at a path.

  `folds` are functions that normalise names. The first one that finds a field counts."
  [{:keys [kind of] :as field} path exact? folds so-far]
  (cond
    (empty? path) [[so-far field]]
    (= :any kind) [[(into so-far path) any]]
    (= :list kind) (if (re-matches #"[0-9]{1,9}" (first path))
                     (at of (rest path) exact? folds (conj so-far (first path)))
                     (at of path exact? folds so-far))
    (= :struct kind) (when-let [[name field n] (some #(exact field path exact? %) folds)]
                       (at field (drop n path) exact? folds (conj so-far name)))
    :else nil))

(defn- rate-path
  "Returns the path of rates that a table shows as `bytes/s`; nil for other paths."
  [path]
  (when-let [[_ name] (some->> (peek (vec path)) (re-matches #"(?is)(.+)/s"))]
    (concat ["per-second"] (butlast path) [name])))

(defn find-path
  "Returns `[path field]` for a path in rows with these fields, or nil.

  The returned path has the real names. Fields of an entry's value, and then of its key, are found
  without their side; so is `bytes/s` among rates. Case does not matter unless both spellings
  exist.

      (find-path (row [[\"key\" {:kind :number}]]) [\"KEY\"]) ;=> [[\"key\"] {:kind :number}]"
  [row path]
  (let [by-name (into {} (:fields row))
        exact? (:exact (meta path))]
    (or (first (at row path exact? [identity fold-case] []))
        (some (fn [folds]
                (some (fn [side]
                        (when-let [field (by-name side)]
                          (first (at field path exact? folds [side]))))
                      ["value" "key"]))
              [[identity] [identity fold-case]])
        (when-let [rates (when (by-name "per-second") (rate-path path))]
          (first (at row rates exact? [identity fold-case] []))))))

(defn paths
  "Returns the paths of all leaf fields as texts, in order.

      (paths (row [[\"key\" {:kind :number}]])) ;=> (\"key\")"
  ([field] (map path-text (paths field [])))
  ([{:keys [kind fields of] :as field} so-far]
   (cond
     (and (= :struct kind)
          (seq fields)) (mapcat (fn [[name field]] (paths field (conj so-far name))) fields)
     (and (= :list kind) (= :struct (:kind of))) (cons so-far (paths of so-far))
     (empty? so-far) (when-not (= :any (:kind field)) [so-far])
     :else [so-far])))

;; --- from types

(defn of-node
  "Returns the field of a type's node.

      (of-node (node/node [:array :float 4] nil []))
      ;=> {:kind :list, :of {:kind :number}, :count 4}"
  [{:keys [kind members element family values size count]}]
  (case kind
    (:integer :pointer) {:kind :number :integer true}
    :float {:kind :number}
    :bool {:kind :boolean}
    :char {:kind :char}
    :enum {:kind :name :names (into {} (map (fn [[k n]] [(name-of k) n])) values)}
    :ipv4 {:kind :address :family :ipv4}
    :ipv6 {:kind :address :family :ipv6}
    :mac {:kind :mac}
    :prefix {:kind :prefix :family family}
    (:string :c-string) {:kind :text}
    :bytes {:kind :bytes :size size}
    :array {:kind :list :of (of-node element) :count count}
    (:struct :union)
    {:kind :struct
     :unlisted {"bpfmap/padding" {:kind :bytes}}
     :fields (into []
                   (mapcat (fn [{:keys [name node]}]
                             (cond
                               (#{:private :pad} (:kind node)) nil
                               name [[(subs (str name) 1) (of-node node)]]
                               :else (:fields (of-node node)))))
                   members)}
    any))

(defn row
  "Returns the field for rows, from `[name field]` pairs and aliases."
  ([fields] (row fields nil))
  ([fields aliases] {:kind :struct :fields fields :aliases aliases}))

(def ^:private of-references
  "Fields of keys and values that are read as references or stacks.

  By the value of `:refers` in the row of the map type."
  {:map-id (row [["map-id" {:kind :number}]])
   :program-id (row [["program-id" {:kind :number}]])
   :socket-cookie (row [["socket-cookie" {:kind :number}]])
   :stack {:kind :list :of any}
   :functions any
   :program-field any})

(defn of-side
  "Returns the field of the keys or values of a map, or nil if it has none.

      (of-side {:type :hash :key :u32} :key) ;=> {:kind :number}"
  [{:keys [type types] :as spec} side]
  (when-some [given (get spec side)]
    (let [refers (get-in map-types/types [type :refers side :out])]
      (or (of-references refers)
          (of-node (node/node given types [side]))))))

(defn of-entries
  "Returns the field for the entries of a map, `{:key :value}`.

  `cpus` is how per-CPU values are read: `:each` as a list, otherwise as one value.

      (paths (of-entries {:type :hash :key :u32 :value :u64} nil)) ;=> (\"key\" \"value\")"
  [{:keys [type] :as spec} cpus]
  (let [{:keys [per-cpu]} (map-types/types type)
        value (of-side spec :value)]
    (row (cond-> []
           (:key spec) (conj ["key" (of-side spec :key)])
           value (conj ["value"
                        (if (and per-cpu (contains? #{nil :each :all} cpus))
                          {:kind :list :of value}
                          value)])))))

(defn of-rates
  "Returns the field for the rates of a value, with the structure of the value."
  [{:keys [kind fields of] :as field}]
  (case kind
    :struct (row (into []
                       (keep (fn [[name field]] (when-let [rates (of-rates field)] [name rates])))
                       fields))
    :list (when-let [rates (of-rates of)] {:kind :list :of rates})
    :number {:kind :number}
    :any any
    (nil :boolean :text :char :name :address :prefix :mac :bytes) nil))

(defn- changes
  "Returns the field for the kind of a change, by its names and signs."
  []
  (let [signs {"+" "added" "*" "changed" "-" "removed"}]
    {:kind :name :names (zipmap (vals signs) (repeat nil)) :shown signs}))

(defn of-watched
  "Returns the field for the rows of `watch`.

  See [[of-entries]]."
  [spec cpus]
  (let [{:keys [fields]} (of-entries spec cpus)
        rates (some-> (into {} fields) (get "value") of-rates)]
    (row (cond-> (conj fields ["change" (changes)])
           rates (conj ["per-second" rates])))))

(defn- same-kind?
  "Returns true if two fields differ at most in the lengths of arrays."
  [a b]
  (apply = (walk/postwalk #(if (map? %) (dissoc % :count) %) [a b])))

(defn of-changes
  "Returns the field for the rows of `diff`.

  See [[of-entries]]. With `rates?`, rows have `:per-second`."
  [old-spec new-spec cpus rates?]
  (let [[before after] (map #(into {} (:fields (of-entries % cpus))) [old-spec new-spec])
        side (fn [k] (if (same-kind? (before k) (after k)) (after k) any))
        rates (when rates? (of-rates (side "value")))]
    (row (cond-> [["change" (changes)]
                  ["key" (side "key")]
                  ["old" (before "value" any)] ["new" (after "value" any)]]
           rates (conj ["per-second" rates])))))
