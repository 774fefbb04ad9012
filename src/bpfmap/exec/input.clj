(ns ^:no-doc bpfmap.exec.input
  "Reads references, keys and values that a person wrote, and the CPUs they are for."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.progress :as progress]
            [bpfmap.exec.selection :as selection]
            [bpfmap.impl.edn :as edn]
            [bpfmap.impl.field-path :as field-path]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.type.node :as node]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.io Closeable StringReader)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

;; --- references

(defn- with-table
  "Returns an error about a name without the candidates in its text.

  The command line prints them as a table."
  [e]
  (let [{:bpfmap/keys [error candidates hint] :as data} (ex-data e)]
    (error/error error (str/replace (ex-message e) (str ": " hint) "")
                 (assoc data :bpfmap/hint
                        (if (= :ambiguous error)
                          (str (count candidates) " maps have the name; use an id")
                          (str "the kernel stores only " (pr-str (:name (first candidates)))
                               ", and no map has the full name in its BTF or as a pin; use an id")))
                 e)))

(defn one-map
  "Returns a reference to one map: the id of the only map that matches a pattern.

  With `holder`, also the id of the only map with a name that such a process has open. Any other
  reference stays as it is.

      (one-map {:glob \"flow_*\"})         ;=> {:id 12}
      (one-map {:name \"flows\"} \"agent\") ;=> {:id 12}"
  ([ref] (one-map ref nil))
  ([ref holder]
   (if-let [pattern (when (and (map? ref) (not (bpf/bpf-map? ref)))
                      (or (:glob ref) (when holder (:name ref))))]
     {:id (selection/only-one pattern holder)}
     ref)))

(defn- untyped-sides
  "Returns the sides of a map without BTF that have no type, from its info."
  [{:keys [btf-id] :as info}]
  (when (or (nil? btf-id) (= 0 btf-id))
    (filter #(let [type (get info %)] (and (vector? type) (= :bytes (first type))))
            [:key :value])))

(defn types-from
  "Returns the types for an open map that has none of its own, or nil.

  As `{:key :value :from}`; see `bpfmap.exec.remembered`.

      (types-from m {}) ;=> {:value :u64, :from \"/root/.config/bpfmap/types.edn\"}"
  [m {:keys [types key-type value-type]}]
  (let [info (bpf/info m)
        untyped? (cond-> (set (untyped-sides info))
                   key-type (disj :key)
                   value-type (disj :value))
        found (when (seq untyped?)
                ((requiring-resolve 'bpfmap.exec.remembered/find-types) info types))
        found (into {} (filter (fn [[k]] (or (= :from k) (untyped? k)))) found)]
    (when (or (:key found) (:value found))
      found)))

(defn why-untyped
  "Returns the reason why an open map has no types of its own, or nil.

  Takes what `bpf/info` returns. If a file has types for the map that are not used, says why.

      (why-untyped (bpf/info m) {}) ;=> \"the map has no BTF\""
  [{:keys [untyped btf-id] :as info} {:keys [types]}]
  (or untyped
      (when (contains? #{nil 0} btf-id)
        (let [reason ((requiring-resolve 'bpfmap.exec.remembered/why-unused) info types)]
          (cond-> "the map has no BTF" reason (str ", and " reason))))))

(defn open
  "Opens the map of the option `:ref`, with its types.

  A pattern must match one map only. The caller closes it. For an open map, returns a second handle.

      (with-open [m (open {:ref {:name \"counts\"} :key-type :u32} :read-only)] (bpf/info m))"
  ^java.io.Closeable [{:keys [ref held-by key-type value-type]} access]
  (try
    (if (bpf/bpf-map? ref)
      (bpf/clone ref)
      (bpf/open (one-map ref held-by)
                (cond-> {:access access}
                  key-type (assoc :key key-type)
                  value-type (assoc :value value-type))))
    (catch ExceptionInfo e
      (throw (if (and (:bpfmap/candidates (ex-data e)) (:bpfmap/hint (ex-data e)) (:name ref))
               (with-table e)
               e)))))

;; --- several maps

(defn several?
  "Returns true if options select any number of maps, and not one.

      (several? {:ref {:glob \"flow_*\"}}) ;=> true"
  [{:keys [ref held-by]}]
  (boolean (or held-by (vector? ref) (and (map? ref) (not (bpf/bpf-map? ref)) (:glob ref)))))

(defn- identity-of-ref
  "Returns the id, name and type of the map of a reference."
  [ref]
  (with-open [m (open {:ref ref} :read-only)]
    (select-keys (bpf/info m) [:id :name :type])))

(defn- error-or
  "Returns the result of f, or a row with the error that it throws.

  The row gets `:error` and `:message`."
  [row f]
  (try
    (f)
    (catch ExceptionInfo e
      (with-meta (assoc row :error (:bpfmap/error (ex-data e)) :message (ex-message e))
        {:exception e}))))

(defn selected
  "Returns the maps that options select, each once: `{:id :name :type}`.

  They are in the order of the references, and those of a pattern in the order of their ids. Without
  `:ref`, they are all maps of the holder. Throws `:not-found` if the only reference or pattern has
  no map, or if none of the maps has the holder. One of several that has no map is a row
  `{:ref :error :message}`.

      (selected {:ref [{:id 12} {:glob \"flow_*\"}]}) ;=> [{:id 12 :name \"counts\" :type :hash} …]"
  [{:keys [ref held-by]}]
  (let [refs (cond (nil? ref) [{:glob "*"}] (vector? ref) ref :else [ref])
        all (delay (selection/host-maps))
        ;; Of several maps with a name, the process may have only one open.
        pattern (fn [ref]
                  (when (and (map? ref) (not (bpf/bpf-map? ref)))
                    (or (:glob ref) (when held-by (:name ref)))))
        maps-of (fn [ref]
                  (if-let [pattern (pattern ref)]
                    (map #(select-keys % [:id :name :type]) (selection/matching pattern @all))
                    [(identity-of-ref ref)]))
        found (into []
                    (comp (mapcat (fn [ref]
                                    (if (next refs)
                                      (let [x (error-or {:ref ref} #(maps-of ref))]
                                        (if (map? x) [x] x))
                                      (maps-of ref))))
                          (distinct))
                    refs)
        held (if held-by
               (filterv (some-fn :error (comp (selection/held-ids held-by) :id)) found)
               found)]
    (if (seq held)
      held
      (throw (error/error :not-found
                          (str "No process " (error/shown held-by) " has "
                               (cond (nil? ref) "a map" (next found) "one of these maps"
                                     :else "this map")
                               " open")
                          {:bpfmap/op :open})))))

(defn for-each
  "Returns a vector of `(f options m)` for the maps that options select.

  `m` is the map's `{:id :name :type}`, and `:ref` of the options refers to it. An error about one
  map is its element, `(assoc m :error kind :message text)`, and one about a reference
  `{:ref :error :message}`. Throws a usage error that all maps have, such as an unknown field."
  [options f]
  (let [found (binding [progress/*note* nil] ; or a note for each of all maps of the host
                (mapv (fn [{:keys [id error] :as m}]
                        (if error
                          m
                          (error-or m #(f (-> options (dissoc :held-by) (assoc :ref {:id id}))
                                          m))))
                      (selected options)))
        of-maps (remove (every-pred :ref :error) found)]
    (if (and (seq of-maps) (every? #(= :usage (:error %)) of-maps))
      (throw (:exception (meta (first of-maps))))
      found)))

(defn open-typed
  "Opens the map of the option `:ref`, as [[open]] does, with remembered types.

  A map without BTF has the types that `:types` leads to, unless `:key-type` or `:value-type` are
  given. See `bpfmap.exec.remembered`.

      (with-open [m (open-typed {:ref {:name \"counts\"}} :read-only)] (bpf/info m))"
  ^java.io.Closeable [{:keys [ref] :as options} access]
  (let [m (open options access)]
    (if (bpf/bpf-map? ref)
      m
      (let [{:keys [key value]} (try
                                  (types-from m options)
                                  (catch Throwable e
                                    (bpf/close m)
                                    (throw e)))]
        (if-not (or key value)
          m
          (with-open [^Closeable _ m]
            (open (cond-> (assoc options :ref (if (or (:name ref) (:glob ref))
                                            {:id (:id (bpf/info m))}
                                            ref))
                    key (assoc :key-type key)
                    value (assoc :value-type value))
                  access)))))))

(defn row-of-type
  "Returns the row of a map type in `bpfmap.impl.map-types/types`.

      (:per-cpu (row-of-type :percpu-hash)) ;=> true"
  [type]
  (map-types/types type))

(defn row-of
  "Returns the row of an open map's type in `bpfmap.impl.map-types/types`.

      (:per-cpu (row-of m)) ;=> true"
  [m]
  (row-of-type (:type (bpf/spec m))))

;; --- CPUs

(defn- merged
  "Merges several values into one.

  Adds numbers, and merges maps and vectors field by field. Equal values stay, different ones
  become a vector."
  [values]
  (let [[x] values]
    (cond
      (every? integer? values) (reduce +' values)
      (every? float? values) (reduce + values)
      (every? map? values) (into (empty x) (map (fn [k] [k (merged (map #(get % k) values))]))
                                 (keys x))
      (and
       (every?
        vector? values) (apply = (map count values))) (apply mapv (fn [& xs] (merged xs)) values)
      (apply = values) x
      :else (vec values))))

(defn cpus-of
  "Returns the possible CPUs of a per-CPU map; nil for any other map.

      (cpus-of m) ;=> [0 1]"
  [m]
  (bpf-map/cpus-of m))

(defn cpus-apart
  "Returns the number of CPUs whose values `which` keeps apart, or nil.

      (cpus-apart m :sum) ;=> nil"
  [m which]
  (when (contains? #{nil :each :all} which)
    (some-> (cpus-of m) count)))

(defn check
  "Throws `:invalid-value` for the number of a CPU if a map is not a per-CPU map.

      (check 0 [0 1]) ;=> nil"
  [which possible]
  (when (and (int? which) (nil? possible))
    (throw (error/error :invalid-value "The map is not a per-CPU map"
                        {:bpfmap/hint "each key has one value"}))))

(defn combiner
  "Returns a function that combines the value of a per-CPU map.

  For nil or `:each`, it returns the value; for `:sum`, the value with its numbers added.

      ((combiner :sum) [{:packets 1 :name \"a\"} {:packets 2 :name \"a\"}]) ;=> {:packets 3 :name \"a\"}"
  [which]
  (if (= :sum which) merged identity))

(defn picker
  "Returns a function that selects from the value of a per-CPU map.

  `which` is the number of one of the `possible` CPUs, or as for [[combiner]].

      ((picker 1 [0 1]) [10 20]) ;=> 20"
  [which possible]
  (if (int? which)
    (let [i (.indexOf ^java.util.List (vec possible) which)]
      (when (neg? i)
        (throw (error/error :invalid-value (str "Unknown CPU " which)
                            {:bpfmap/hint (str "the possible CPUs are "
                                               (error/list-of possible "and"))})))
      #(nth % i))
    (combiner which)))

;; --- keys and values

(defn- node-of
  "Returns the checked type of a side of a spec, or nil."
  [{:keys [types] :as spec} side]
  (if-some [nodes (::nodes (meta spec))]
    @(nodes side)
    (when-some [type (get spec side)]
      (node/node type types [side]))))

(defn for-many
  "Returns a spec whose types are checked once, for many keys and values.

      (for-many {:key :u32 :value :u64}) ;=> {:key :u32, :value :u64}"
  [spec]
  (vary-meta spec assoc ::nodes
             (into {} (for [side [:key :value]] [side (delay (node-of spec side))]))))

;; --- bytes

(defn- hex-bytes
  "Returns the given number of bytes of a text in hexadecimal; nil for other text.

  The bytes are separated, as in `0a 00 00 00` or `0a:00:00:00`. If `plain?` is true, 0x0a000000 and
  0a000000 are accepted too."
  [text size plain?]
  (when (re-matches (if plain?
                      #"(?i)(0x)?([0-9a-f]{2})+|[0-9a-f]{2}([ :][0-9a-f]{2})*"
                      #"(?i)[0-9a-f]{2}([ :][0-9a-f]{2})+") text)
    (let [found (bytes/->bytes text)]
      (when (= size (count found)) found))))

(defn- plain-hex?
  "Returns true if undelimited hexadecimal bytes of a type are unambiguous."
  [{:keys [kind]}]
  (contains? #{:string :c-string :ipv4 :ipv6 :mac :prefix :struct :union :array :bytes :bool} kind))

;; --- data of a type, from EDN and JSON

(defn- member-nodes
  "Returns the members of a struct or union by name, anonymous ones flattened."
  [{:keys [members]}]
  (into {} (mapcat (fn [{:keys [name node]}] (if name [[name node]] (member-nodes node)))) members))

(defn- number-of [text]
  (let [x (try (edn/read-text text) (catch ExceptionInfo _ nil))]
    (when (number? x) x)))

(def ^:private odd-numbers
  {"NaN" ##NaN "Infinity" ##Inf "-Infinity" ##-Inf "Inf" ##Inf "-Inf" ##-Inf})

(defn- as-name [x]
  (cond (string? x) x (keyword? x) (subs (str x) 1) (symbol? x) (str x)))

(declare coerced)

(defn- coerced-map [node x]
  (let [nodes (member-nodes node)]
    (into {} (map (fn [[k v]]
                    (let [k (if-let [name (as-name k)] (keyword name) k)
                          member (nodes k)]
                      [k (cond
                           member (coerced member v)
                           (and (= :bpfmap/padding k) (string? v)) (bytes/->bytes v)
                           :else v)])))
          x)))

(defn- coerced
  "Converts EDN or JSON data to the data that the codec of a type takes.

  Anything else stays as it is."
  [{:keys [kind size element values] :as node} x]
  (let [text (as-name x)
        raw (when (and (string? x) (not= :bytes kind)) (hex-bytes x size (plain-hex? node)))]
    (case kind
      (:integer :pointer) (or raw (when (string? x) (number-of x)) x)
      :float (or raw (odd-numbers text) (when (string? x) (number-of x)) x)
      :bool (or raw (case text "true" true "false" false nil) x)
      :char (cond
              (and text (= 1 (count text))) (first text)
              (and (int? x) (<= 0 (long x) 9)) (first (str x))
              :else x)
      :enum (or raw
                (when text
                  (if (contains? values (keyword text))
                    (keyword text)
                    (or (number-of text) (keyword text))))
                x)
      (:string :c-string) (or raw text x)
      (:ipv4 :ipv6 :mac) (or raw text x)
      :prefix (cond
                (map? x) (into {}
                               (map (fn [[k v]]
                                      [(if-let [name (as-name k)] (keyword name) k)
                                       (if (string? v) (bytes/->bytes v) v)])) x)
                :else (or raw text x))
      :bytes (if (string? x) (or (hex-bytes x size true) x) x)
      (:struct :union) (cond raw raw (map? x) (coerced-map node x) :else x)
      :array (cond raw raw (sequential? x) (mapv #(coerced element %) x) :else x)
      (:private :pad) (when-not (= "null" text) (or raw x)) ; nil, as in JSON
      (or raw x))))

;; --- text

(defn- readable
  "Returns a text as EDN: bytes in angle brackets get their tag."
  [text]
  (str/replace text #"\"(?:[^\"\\]|\\.)*\"|\\.[a-z0-9]*|<((?:[0-9a-f]{2})(?: [0-9a-f]{2})*)>"
               (fn [[found hex]] (if hex (str "#bpfmap/bytes \"" hex "\"") found))))

(defn- json-form
  "Returns the data of a text in JSON, or none; also without a JSON library."
  [text none]
  (if-let [read-str (try (requiring-resolve 'clojure.data.json/read-str)
                         (catch Exception _ nil))]
    (try
      (slurp (edn/bounded-reader (StringReader. text))) ; throws for text that is nested too deep
      (read-str text)
      (catch Exception _ none))
    none))

(defn- json-object?
  "Returns true if a text may have a JSON object.

  EDN would read `{\"a\":1}` as well, with a keyword :1."
  [text]
  (re-find #"[\[{,]\s*\"(?:[^\"\\]|\\.)*\"\s*:" text))

(defn- accepted
  "Returns what the text of a type, which may be nil, must be."
  [{:keys [kind]}]
  (str "must be " (when (#{:struct :union} kind) "FIELD=VALUE pairs, ")
       "EDN, JSON or hexadecimal bytes"))

(defn- form-of
  "Returns the one form of a text in EDN or JSON, with keywords for symbols.

  Throws `:usage` for any other text, with what a type accepts."
  [node side text]
  (let [object (if (json-object? text) (json-form text ::none) ::none)]
    (if-not (= ::none object)
      object
      (try
        (arguments/with-keywords (edn/read-text (readable text)))
        (catch ExceptionInfo e
          (let [form (if (re-find #"^\s*[\[\"]" text) (json-form text ::none) ::none)]
            (if (= ::none form)
              (throw (arguments/refused nil side text (accepted node)
                       (:bpfmap/problem (ex-data e) (ex-message e))))
              form)))))))

(defn- quoted? [text]
  (and (str/starts-with? text "\"") (str/ends-with? text "\"") (< 1 (count text))))

(defn- tagged? [text] (str/starts-with? text "#bpfmap/bytes"))

;; --- fields

(defn- no-such-field [side given reason]
  (arguments/refused nil side given "must name fields of the type" reason))

(defn field-of
  "Returns the field of a type at a path of names, as `{:keys :node}`.

  `given` is the path as text. A number in the path is the index of an array. Throws `:usage` for an
  unknown field.

      (field-of node :value [\"stats\" \"rx\"] \"stats.rx\") ;=> {:keys [:stats :rx], :node {…}}"
  [node side path given]
  (loop [{:keys [kind element] n :count :as node} node
         path path
         found []]
    (let [[word & more] path
          behind (with-meta (vec more) (meta path))
          nodes (when (#{:struct :union} kind) (member-nodes node))
          ;; A name can have dots, unless it is in quotes.
          whole (when-not (:exact (meta path)) (keyword (str/join "." path)))
          index (some-> word parse-long)]
      (cond
        (nil? word) {:keys found :node node}
        (get nodes whole) {:keys (conj found whole) :node (nodes whole)}
        (get nodes (keyword word)) (recur (nodes (keyword word)) behind (conj found (keyword word)))
        (and (= :array kind) index (< -1 index (long n))) (recur element behind (conj found index))
        nodes (throw (no-such-field side given
                       (str given " is not a field: "
                            (nearest/alternatives given (map name (keys nodes))))))
        (= :array kind) (throw (no-such-field side given
                                 (str word " must be an index from 0 to " (dec (long n)))))
        :else (throw (no-such-field side given
                       (str word " is not a field: what is before it has no fields")))))))

(def ^:private pair-start
  "Matches the name of a FIELD=VALUE pair, and the equals sign."
  #"\s*((?:\"(?:[^\"\\]|\\.)*\"|[^\s=\"\[\]{}()<>#\\])+)=")

(defn- end-of-value
  "Returns the index behind the value of a pair that starts at an index.

  It ends before a blank that is in no quotes and no brackets."
  [^String text start]
  (let [n (count text)]
    (loop [i (long start) depth 0 in-quotes? false]
      (if (= i n)
        n
        (let [c (.charAt text i)]
          (cond
            in-quotes? (recur (if (= c \\) (min n (+ i 2)) (inc i)) depth (not= c \"))
            (= c \") (recur (inc i) depth true)
            (#{\[ \{ \( \<} c) (recur (inc i) (inc depth) false)
            (#{\] \} \) \>} c) (recur (inc i) (dec depth) false)
            (and (Character/isWhitespace c) (<= depth 0)) i
            :else (recur (inc i) depth false)))))))

(defn- pairs-of
  "Returns FIELD=VALUE pairs as pairs of texts; nil for any other text."
  [text]
  (loop [start 0 found []]
    (if (str/blank? (subs text start))
      (not-empty found)
      (let [m (doto (re-matcher pair-start text) (.region start (count text)))]
        (when (.lookingAt m)
          (let [end (end-of-value text (.end m))]
            (recur (long end) (conj found [(.group m 1) (subs text (.end m) end)]))))))))

(declare text->data)

(defn- part->data
  "Converts the text of a field; an error has the name of the field too."
  [node side given text]
  (try
    (text->data node side text)
    (catch ExceptionInfo e
      (let [{:bpfmap/keys [usage hint]} (ex-data e)]
        (throw (if usage
                 (arguments/refused nil side (str given "=" text) (:problem usage) hint)
                 e))))))

(defn- pairs->data
  "Converts FIELD=VALUE pairs to the data of a struct or union."
  [node side pairs]
  (reduce (fn [data [given text]]
            (let [path (or (field-path/path-of given)
                           (throw (arguments/refused nil side given "must have names before =")))
                  {:keys [keys node]} (field-of node side path given)]
              (cond
                (some int? keys)
                (throw (arguments/refused nil side given "must have whole arrays"
                         "write them in brackets, such as slots=[0 1]"))
                (not= ::none (get-in data keys ::none))
                (throw (arguments/refused nil side given "must have each field once"))
                :else (assoc-in data keys (part->data node side given text)))))
          {} pairs))

;; --- text of a type

(defn- text->data
  "Converts a text to a value of a type.

  Texts, addresses and prefixes are the text itself unless it is in quotes; a struct or union can be
  FIELD=VALUE pairs. Anything else is hexadecimal bytes, EDN or JSON."
  [{:keys [kind size values] :as node} side text]
  (when-not (and (contains? #{:private :pad} kind) (= "-" text)) ; nil, as in a table
    (or
     (case kind
       (:string :c-string :ipv4 :ipv6 :mac :prefix)
       (cond
         (or (quoted? text) (tagged? text)) (coerced node (form-of node side text))
         (and (= :prefix kind) (str/starts-with? text "{")) (coerced node (form-of node side text))
         :else (or (hex-bytes text size true) text))

       :bytes
       (or (hex-bytes text size true)
           (if (re-find #"^[\[#\"]" text)
             (coerced node (form-of node side text))
             (bytes/->bytes text)))

       :char
       (cond
         (= 1 (count text)) (first text)
         :else (coerced node (form-of node side text)))

       :enum
       (when (contains? values (keyword text)) (keyword text))

       :float
       (odd-numbers text)

       (:struct :union)
       (some->> (pairs-of text) (pairs->data node side))

       nil)
     (hex-bytes text size (and (plain-hex? node) (not (#{"true" "false"} text))))
     (coerced node (form-of node side text)))))

(defn- per-cpu?
  "Returns true if the values of a side are separate for each CPU."
  [{:keys [type]} side]
  (and (= :value side) (:per-cpu (row-of-type type))))

(defn- of-cpus?
  "Returns true if data has a value for each CPU, and is not one value of an array."
  [{:keys [kind]} x]
  (and (sequential? x)
       (or (not (#{:array :bytes} kind)) (not-any? number? x))))

(defn- all-coerced
  "Converts data of one side; each value of a vector with the values of CPUs."
  [spec side node x]
  (if (and (per-cpu? spec side) (of-cpus? node x))
    (mapv #(coerced node %) x)
    (coerced node x)))

(defn- checked-bytes
  "Calls f; adds a hint to its error about a key or value of an unknown type."
  [f]
  (try
    (f)
    (catch ExceptionInfo e
      (let [{:bpfmap/keys [error hint] :as data} (ex-data e)]
        (throw (if (and (= :invalid-value error) (nil? hint))
                 (error/error error (ex-message e)
                              (assoc data :bpfmap/hint
                                     "its type is unknown; set --key-type and --value-type"))
                 e))))))

(defn- side->data
  "Converts a text to the data of one side; in brackets, to the values of the CPUs."
  [spec side node text]
  (if (and (per-cpu? spec side) (str/starts-with? text "[") (not= :char (:kind node)))
    (all-coerced spec side node (form-of node side text))
    (let [convert #(text->data node side text)]
      (if (= :bytes (:kind node)) (checked-bytes convert) (convert)))))

;; --- references

(defn- referred
  "Returns the kind of object that an element refers to, or nil.

  One of `:map` and `:program`."
  [{:keys [type]} side]
  (#{:map :program} (get-in (map-types/types type) [:refers side :in])))

(defn- of-references?
  "Returns true if keys or values of a map are written as references."
  [{:keys [type]} side]
  (contains? (get-in (map-types/types type) [:refers side]) :in))

(defn program-named
  "Returns the reference to the only program with a name.

  The kernel keeps 15 characters of a name. Throws `:not-found` and `:ambiguous`.

      (program-named \"count_packets\") ;=> {:program-id 30}"
  [name]
  (let [programs ((requiring-resolve 'bpfmap.host/programs) {:brief true})
        found (filter #(= name (:name %)) programs)]
    (case (count found)
      0 (throw (error/error :not-found (str "No program named " (pr-str name))
                            {:bpfmap/hint (nearest/did-you-mean
                                           name (distinct (remove str/blank?
                                                                  (map :name programs))))}))
      1 {:program-id (:id (first found))}
      (throw (error/error :ambiguous
                          (str (count found) " programs are named " (pr-str name))
                          {:bpfmap/hint (str "use an id: "
                                             (error/list-of (map :id found)))})))))

(defn- reference
  "Returns a map or program, given by id, pin or name, for an element.

  Opened objects go through `keep`."
  [kind side x keep]
  (let [named (if (= :map kind)
                #(keep (bpf/open {:name %} {:access :read-write}))
                program-named)
        pinned (if (= :map kind)
                 #(keep (bpf/open % {:access :read-write}))
                 #(keep ((requiring-resolve 'bpfmap.prog/open) %)))
        by-id (fn [id] {(if (= :map kind) :map-id :program-id) id})
        text (as-name x)]
    (cond
      (int? x) (by-id x)
      (nil? text) (if (and (map? x) (not (bpf/bpf-map? x)))
                    (into {} (map (fn [[k v]] [(if-let [name (as-name k)] (keyword name) k) v])) x)
                    x)
      (re-matches #"[0-9]{1,10}" text) (by-id (parse-long text))
      (str/starts-with? text "{") (let [form (form-of nil side text)]
                                    (if (map? form) (reference kind side form keep) form))
      (str/includes? text "/") (pinned (:path (arguments/ref-of text)))
      (str/blank? text) (form-of nil side text)
      :else (named text))))

(defn- raw-text
  "Returns the bytes of a text that is not UTF-8, padded to the size of its type.

  Throws `:usage` if the type is not a text. Returns nil for UTF-8. See
  `bpfmap.impl.kernel.paths/argument`."
  [side text kind size]
  (when (re-find #"[\ud800-\udfff]" text) ; a lone one: a pair is one character
    (let [bytes (paths/exact-bytes text)]
      (if (and (#{:string :c-string :bytes} kind)
               bytes (<= (alength bytes) (long size)))
        (bytes/->bytes (Arrays/copyOf bytes (int size)))
        (throw (arguments/refused nil side (paths/text (or bytes (byte-array 0)))
                 "must be UTF-8" "give all bytes in hexadecimal"))))))

(defn typed
  "Converts a text to the key or value of a map with this spec.

  It accepts the output of `dump`: tables, EDN and JSON. Data stays as it is, except that strings
  and symbols become names. Hexadecimal bytes of any type become a byte view. Objects opened for a
  reference go through `keep`, a function that returns its argument.

      (typed {:key :ipv4} :key \"10.0.0.1\" identity) ;=> \"10.0.0.1\"
      (typed {:key :u32} :key \"7\" identity)         ;=> 7
      (typed {:key :u32} :key \"07 00 00 00\" identity) ;=> #bpfmap/bytes \"07 00 00 00\""
  [spec side x keep]
  (let [text (cond (string? x) x (symbol? x) (str x))
        kind (referred spec side)]
    (cond
      kind (reference kind side x keep)
      (nil? text) (if (and (coll? x) (not (of-references? spec side)) (node-of spec side))
                    (all-coerced spec side (node-of spec side) (arguments/with-keywords x))
                    x)
      (of-references? spec side) (if (re-find #"[/]" text) text (form-of nil side text))
      :else (if-let [node (node-of spec side)]
              (or (raw-text side text (:kind node) (:size node))
                  (side->data spec side node text))
              (form-of nil side text)))))

;; --- one field of a value

(defn- overlapping
  "Returns the names of fields that share memory with a field of a type."
  [{:keys [kind members]} k]
  (let [names (fn [{:keys [name node]}] (if name [name] (keys (member-nodes node))))
        [same others] ((juxt filter remove) #(some #{k} (names %)) members)]
    (concat (when (= :union kind) (mapcat names others))
            (mapcat (fn [{:keys [name node]}] (when-not name (overlapping node k))) same))))

(defn- with-part
  "Returns a value with another part at a path of keys.

  A union keeps only the member that changes, because the codec takes one."
  [{:keys [element] :as node} x [k & more] part]
  (cond
    (nil? k) part
    (int? k) (assoc x k (with-part element (get x k) more part))
    :else (assoc (apply dissoc x (overlapping node k))
                 k (with-part ((member-nodes node) k) (get x k) more part))))

(defn field-changer
  "Returns a function that changes one field of a value of a map with this spec.

  `path` is the path of the field, which can begin with value, and `x` its new value: text or data.
  Throws `:usage` for an unknown field, and if the values have no fields.

      ((field-changer {:value [:struct [:rx :u64] [:tx :u64]]} [\"rx\"] \"5\") {:rx 1 :tx 2})
      ;=> {:rx 5, :tx 2}"
  [spec path x]
  (let [{:keys [kind] :as node} (when-not (of-references? spec :value) (node-of spec :value))
        given (field-path/path-text path)
        [word & more] path]
    (when-not (#{:struct :union :array} kind)
      (throw (arguments/refused "put" :field given "cannot be used with values without fields")))
    (let [path (if (and more (= "value" word) (not (contains? (member-nodes node) :value)))
                 (with-meta (vec more) (meta path))
                 path)
          {:keys [keys] field :node} (field-of node :field path given)
          text (cond (string? x) x (symbol? x) (str x))
          part (cond
                 text (text->data field :value text)
                 (coll? x) (coerced field (arguments/with-keywords x))
                 :else x)]
      (fn [value]
        (with-part node value keys part)))))

;; --- arguments of an open map

(defn side-of
  "Returns the side of a spec that types an argument.

  A bloom filter has no keys: its argument is a value.

      (side-of {:type :hash :key :u32 :value :u64} :key) ;=> :key"
  [spec side]
  (if (and (= :key side) (nil? (:key spec))) :value side))

(defn column-reader
  "Returns the reader of a column of a table: `{:keys :read :whole}`.

  `path` is the path of the field in the key or value, `name` the name of the column. `:read`
  converts a cell of the field, `:whole` one that has the whole key or value. The values of a
  per-CPU map have the CPU first, unless `cpus` is given. Throws `:usage` for an unknown field.

      ((:read (column-reader {:key :u32} :key [] \"key\" nil)) \"7\") ;=> 7"
  [spec side path name cpus]
  (let [node (when-not (of-references? spec side) (node-of spec side))
        cpu (when (and (per-cpu? spec side) (nil? cpus)) (some-> (first path) parse-long))
        below (if cpu (with-meta (vec (rest path)) (meta path)) path)
        whole #(typed spec side % identity)]
    (cond
      (and node (seq path))
      (let [{:keys [keys node]} (field-of node side below name)]
        {:keys (if cpu (into [cpu] keys) keys) :read #(text->data node side %) :whole whole})
      (empty? path) {:keys [] :read whole :whole whole}
      :else {:keys (mapv keyword path) :read #(form-of nil side %) :whole whole})))

(defn call-typed
  "Opens the map of the options and calls f with it and converted arguments.

  Converts the given keys and values among `sides`. The third argument of f is a function that keeps
  an object open until f has returned."
  [options access sides f]
  (with-open [m (open-typed options access)]
    (let [spec (bpf/spec m)
          opened (volatile! [])
          keep-open (fn [^Closeable x] (vswap! opened conj x) x)]
      (try
        (f m
           (into {} (map (fn [[side x]] [side (typed spec (side-of spec side) x keep-open)]))
                 (select-keys options sides))
           keep-open)
        (finally (run! #(.close ^Closeable %) @opened))))))

(defn check-key
  "Throws `:usage` if a key is missing, or given for a map without keys.

      (check-key m \"take\" {:key 7})"
  [m command {:keys [key] :as typed}]
  (let [{:keys [ops]} (row-of m)]
    (cond
      (and (some? key) (:pop! ops))
      (throw (arguments/refused command :key key "cannot be used with a map that has no keys"))

      (and (not (contains? typed :key)) (some ops [:lookup :might-contain?]))
      (throw (arguments/missing-option command :key)))))

;; --- maps whose entries can be read

(def ^:private instead
  "The alternatives to a dump, by operation of the map type, best first."
  [[:next-key ":keys (--keys) lists the indices in use"]
   [:peek "`get` prints its next value, `take` removes it"]
   [:might-contain? "`get` reports whether it may contain a value"]
   [:lookup "`get` looks up an object that you know"]])

(defn check-dumpable
  "Throws `:not-supported` if a map cannot be iterated.

  The error has the reason and an alternative.

      (check-dumpable m {:keys true})"
  [m {:keys [keys]}]
  (let [{:keys [id name type value-size] :as info} (bpf/info m)
        {:keys [ops]} (row-of m)
        why (map-types/alternative type :reduce value-size)]
    (when (and why (not (and keys (:next-key ops))))
      (throw (error/error :not-supported
                          (str "The entries of map " (error/id-and-name info) ", "
                               (clojure.core/name type)
                               ", cannot be read")
                          {:bpfmap/op :dump :bpfmap/map {:id id :name name :type type}
                           :bpfmap/hint (str/join "; " (remove nil? [(first (str/split why #"; "))
                                                                     (some (fn [[op hint]]
                                                                             (when
                                                                              (contains? ops op)
                                                                               hint))
                                                                           instead)]))})))))
