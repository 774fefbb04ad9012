(ns bpfmap.spec
  "Map specs as data: checked against the rules of their type, and completed, before the kernel sees them.

  A spec is a plain map:

      {:name \"counts\" :type :hash :key :u32 :value :u64 :max-entries 1024}

  | key            | what it holds                                                        |
  |----------------|----------------------------------------------------------------------|
  | `:type`        | a name from `bpfmap.rules/types`, or a number; required              |
  | `:key` `:value`| a type (see `bpfmap.type`); or the size alone, as bytes:             |
  | `:key-size` `:value-size` | bytes                                                     |
  | `:types`       | names for types that `:key` and `:value` may use: a map              |
  | `:max-entries` | how many entries at most; required                                   |
  | `:name`        | any text; the kernel keeps 15 of its letters, digits, `_` and `.`    |
  | `:flags`       | a set of names from `bpfmap.rules/flags`, and of numbers (bits)      |
  | `:numa-node`   | the node to allocate on; sets the flag `:numa-node`                  |
  | `:contents`    | entries to put before anybody sees the map: a map, or pairs          |
  | `:freeze`      | true: nobody can change it from user space afterwards               |"
  (:require [bpfmap.error :as error]
            [bpfmap.rules :as rules]
            [bpfmap.type :as type]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def ^:private spec-keys
  [:type :key :value :key-size :value-size :types :max-entries :name :flags :numa-node :contents :freeze])

(defn kernel-name
  "The name that the kernel keeps of a full name: its letters, digits, `_` and `.`, the first 15 of them.

      (kernel-name \"my-flows by address\") ;=> \"myflowsbyaddres\""
  [full-name]
  (let [kept (str/replace (str full-name) #"[^A-Za-z0-9_.]" "")]
    (subs kept 0 (min 15 (count kept)))))

(def ^:private constant-sections
  "Data sections that programs take for constant; user space freezes them once filled."
  [".rodata" ".kconfig"])

(defn frozen-by-name?
  "Whether a map of this name is frozen once it is filled: `.rodata` and `.kconfig` sections are.

      (frozen-by-name? \".rodata.str\") ;=> true"
  [full-name]
  (boolean (some #(str/starts-with? (str full-name) %) constant-sections)))

(defn- problem [path message]
  {:path path :message message})

(defn- unknown-key-problems [spec]
  (for [k (keys spec) :when (not (some #{k} spec-keys))]
    (problem [k] (str "unknown key " (pr-str k) "; a spec has " (error/list-of spec-keys)))))

(defn- type-problems [{:keys [type]}]
  (cond
    (nil? type) [(problem [:type] "a spec needs :type, such as :hash or :array")]
    (keyword? type) (when-not (rules/types type)
                      [(problem [:type] (str "unknown map type " type "; the types are "
                                             (error/list-of (sort (keys rules/types)))))])
    (not (and (int? type) (<= 0 type 0xffffffff)))
    [(problem [:type] (str "a map type is a name or a number, not " (pr-str (error/shown type))))]))

(defn- side-problems
  "What is wrong with the key or the value: its type, its size, both together, the rule of the map type."
  [spec side size-key]
  (let [value-type (side spec)
        given (size-key spec)
        types (when (map? (:types spec)) (:types spec))
        bad-type (when value-type (type/problem value-type types [side]))
        actual (if (and value-type (not bad-type)) (type/size value-type types) given)
        [least most] (size-key (rules/types (:type spec)))]
    (cond
      bad-type [(problem [side] bad-type)]
      (nil? actual) (when-not (= 0 most)
                      [(problem [side] (str "a spec needs " side ", a type such as :u32, or " size-key ", in bytes"))])
      (not (and (int? actual) (<= 0 actual 0xffffffff)))
      [(problem [size-key] (str "a size is a number of bytes, not " (pr-str (error/shown actual))))]
      (and given (not= given actual))
      [(problem [size-key] (str size-key " is " given ", but " side " " (pr-str value-type) " has " actual " bytes"))]
      (and least (not (<= least actual most)))
      [(problem [(if value-type side size-key)]
                (str "the " (name side) " of " (:type spec) " maps has "
                     (if (= least most) least (str "at least " least)) " bytes, not " actual))])))

(defn- max-entries-problems [{:keys [type max-entries]}]
  (let [[least most] (:max-entries (rules/types type) [0 0xffffffff])]
    (cond
      (and (nil? max-entries) (pos? (long least)))
      [(problem [:max-entries] "a spec needs :max-entries, the number of entries it can hold")]
      (not (or (nil? max-entries) (and (int? max-entries) (<= least max-entries most))))
      [(problem [:max-entries] (str ":max-entries is a number from " least " to " most ", not "
                                    (pr-str (error/shown max-entries))))])))

(defn- flag-problems [{:keys [type flags numa-node]}]
  (let [allowed (:flags (rules/types type))]
    (if-not (or (nil? flags) (set? flags) (sequential? flags))
      [(problem [:flags] (str ":flags is a set of names, not " (pr-str (error/shown flags))))]
      (concat
       (for [flag flags
             :let [what (cond
                          (and (keyword? flag) (not (rules/flags flag)))
                          (str "unknown flag " flag "; the flags are " (error/list-of (sort (keys rules/flags))))
                          (and (keyword? flag) allowed (not (allowed flag)))
                          (str type " maps do not take " flag "; they take " (error/list-of (sort allowed)))
                          (not (or (keyword? flag) (and (int? flag) (<= 1 flag 0xffffffff))))
                          (str "a flag is a name or a bit, not " (pr-str (error/shown flag))))]
             :when what]
         (problem [:flags] what))
       (when (not (or (nil? numa-node) (and (int? numa-node) (<= 0 numa-node 0xffff))))
         [(problem [:numa-node] (str ":numa-node is the number of a node, not " (pr-str (error/shown numa-node))))])
       (when (and (nil? numa-node) (some #{:numa-node} (when (coll? flags) flags)))
         [(problem [:numa-node] "the flag :numa-node goes with the number of a node in :numa-node")])))))

(defn- other-problems [{:keys [name contents freeze flags types]}]
  (concat
   (when-not (or (nil? types) (and (map? types) (every? keyword? (keys types))))
     [(problem [:types] (str ":types is a map of keywords to types, not " (pr-str (error/shown types))))])
   (when-not (or (nil? name) (string? name))
     [(problem [:name] (str ":name is a text, not " (pr-str (error/shown name))))])
   (when-not (or (nil? contents) (map? contents)
                 (and (sequential? contents) (every? #(and (vector? %) (= 2 (count %))) contents)))
     [(problem [:contents] ":contents is a map, or a sequence of [key value] pairs")])
   (when-not (contains? #{nil true false} freeze)
     [(problem [:freeze] (str ":freeze is true or false, not " (pr-str (error/shown freeze))))])
   (when (and (coll? flags) (some #{:rdonly} flags) (or (seq contents) freeze))
     [(problem [:flags] "a map created :rdonly cannot be filled or frozen through its own descriptor")])))

(defn problems
  "Everything that is wrong with a spec: a sequence of `{:path :message}`, empty for a good one.

      (problems {:type :array :key :u64 :value :u64 :max-entries 1})
      ;=> ({:path [:key] :message \"the key of :array maps has 4 bytes, not 8\"})"
  [spec]
  (if-not (and (map? spec) (every? keyword? (keys spec)))
    [(problem [] (str "a spec is a map with keywords as its keys, not " (pr-str (error/shown spec))))]
    (concat (unknown-key-problems spec)
            (type-problems spec)
            (side-problems spec :key :key-size)
            (side-problems spec :value :value-size)
            (max-entries-problems spec)
            (flag-problems spec)
            (other-problems spec))))

(defn complete
  "Checks a spec and fills in what follows from it: sizes, the flag set, the names of numbers.

  Returns a new spec in which `:type :key :value :key-size :value-size
  :max-entries :flags` are all there. Throws `:invalid-spec` with every problem under
  `:bpfmap/problems`, before anything is created.

      (complete {:type 1 :key :u32 :value-size 2 :max-entries 8})
      ;=> {:type :hash, :key :u32, :key-size 4, :value [:bytes 2], :value-size 2, …}"
  [spec]
  (let [spec (cond-> spec
               (and (map? spec) (every? keyword? (keys spec))) (update :type #(if (int? %) (rules/type-name %) %)))]
    (when-let [found (seq (problems spec))]
      (throw (error/error :invalid-spec "The map spec cannot be used"
                          {:bpfmap/op :create
                           :bpfmap/path (:path (first found))
                           :bpfmap/problems (vec found)
                           :bpfmap/hint (str/join "; " (map :message found))})))
    (let [{:keys [key value key-size value-size types flags numa-node]} spec
          key-size (long (or key-size (if key (type/size key types) 0)))
          value-size (long (or value-size (if value (type/size value types) 0)))]
      (assoc spec
             :key-size key-size
             :value-size value-size
             :key (or key (when (pos? key-size) [:bytes key-size]))
             :value (or value (when (pos? value-size) [:bytes value-size]))
             :max-entries (:max-entries spec 0)
             :flags (cond-> (rules/flag-set (rules/flag-word flags))
                      numa-node (conj :numa-node))))))
