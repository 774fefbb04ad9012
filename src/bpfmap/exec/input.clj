(ns ^:no-doc bpfmap.exec.input
  "Reads references, keys and values that a person wrote, and the CPUs they are for."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.selection :as selection]
            [bpfmap.impl.edn :as edn]
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

  Any other reference stays as it is.

      (one-map {:glob \"flow_*\"}) ;=> {:id 12}"
  [ref]
  (if (and (map? ref) (:glob ref))
    {:id (selection/only-one (:glob ref))}
    ref))

(defn open
  "Opens the map of the option `:ref`, with its types.

  A pattern must match one map only. The caller closes it. For an open map, returns a second handle.

      (with-open [m (open {:ref {:name \"counts\"} :key-type :u32} :read-only)] (bpf/info m))"
  ^java.io.Closeable [{:keys [ref key-type value-type]} access]
  (try
    (if (bpf/bpf-map? ref)
      (bpf/clone ref)
      (bpf/open (one-map ref)
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

(defn selected
  "Returns the maps that options select, each once: `{:id :name :type}`.

  They are in the order of the references, and those of a pattern in the order of their ids. Throws
  `:not-found` if a reference or a pattern has no map, or if none of the maps has the holder.

      (selected {:ref [{:id 12} {:glob \"flow_*\"}]}) ;=> [{:id 12 :name \"counts\" :type :hash} …]"
  [{:keys [ref held-by]}]
  (let [refs (if (vector? ref) ref [ref])
        all (delay (selection/host-maps))
        found (into []
                    (comp (mapcat #(if (and (map? %) (:glob %))
                                     (selection/matching (:glob %) @all)
                                     [(identity-of-ref %)]))
                          (map #(select-keys % [:id :name :type]))
                          (distinct))
                    refs)
        held (if held-by
               (filterv (comp (selection/held-ids held-by) :id) found)
               found)]
    (if (seq held)
      held
      (throw (error/error :not-found
                          (str "No process " (error/shown held-by) " has "
                               (if (next found) "one of these maps" "this map") " open")
                          {:bpfmap/op :open})))))

(defn for-each
  "Returns a vector of `(f options m)` for the maps that options select.

  `m` is the map's `{:id :name :type}`, and `:ref` of the options refers to it. An error about one
  map is its element, `(assoc m :error kind :message text)`; usage errors are thrown."
  [options f]
  (mapv (fn [{:keys [id] :as m}]
          (try
            (f (-> options (dissoc :held-by) (assoc :ref {:id id})) m)
            (catch ExceptionInfo e
              (if (= :usage (:bpfmap/error (ex-data e)))
                (throw e)
                (assoc m :error (:bpfmap/error (ex-data e)) :message (ex-message e))))))
        (selected options)))

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

(defn- node-of [{:keys [types] :as spec} side]
  (when-some [type (get spec side)]
    (node/node type types [side])))

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
  "Returns the data of a text with a JSON object; nil for any other.

  Returns nil without a JSON library too. EDN would read `{\"a\":1}` as well, with a keyword :1."
  [text]
  (when (re-find #"[\[{,]\s*\"(?:[^\"\\]|\\.)*\"\s*:" text)
    (when-let [read-str (try (requiring-resolve 'clojure.data.json/read-str)
                             (catch Exception _ nil))]
      (try
        (slurp (edn/bounded-reader (StringReader. text))) ; throws for text that is nested too deep
        (read-str text)
        (catch Exception _ nil)))))

(defn- form-of
  "Returns the one form of a text in EDN or JSON, with keywords for symbols.

  Throws `:usage` for any other text."
  [side text]
  (or (json-form text)
      (try
        (arguments/with-keywords (edn/read-text (readable text)))
        (catch ExceptionInfo e
          (throw (arguments/refused nil side text "must be EDN or hexadecimal bytes"
                   (:bpfmap/problem (ex-data e) (ex-message e))))))))

(defn- quoted? [text]
  (and (str/starts-with? text "\"") (str/ends-with? text "\"") (< 1 (count text))))

(defn- tagged? [text] (str/starts-with? text "#bpfmap/bytes"))

(defn- text->data
  "Converts a text to a value of a type."
  [{:keys [kind size values] :as node} side text]
  (when-not (and (contains? #{:private :pad} kind) (= "-" text)) ; nil, as in a table
    (or
     (case kind
       (:string :c-string :ipv4 :ipv6 :mac :prefix)
       (cond
         (or (quoted? text) (tagged? text)) (coerced node (form-of side text))
         (and (= :prefix kind) (str/starts-with? text "{")) (coerced node (form-of side text))
         :else (or (hex-bytes text size true) text))

       :bytes
       (or (hex-bytes text size true)
           (if (re-find #"^[\[#\"]" text) (coerced node (form-of side text)) (bytes/->bytes text)))

       :char
       (cond
         (= 1 (count text)) (first text)
         :else (coerced node (form-of side text)))

       :enum
       (when (contains? values (keyword text)) (keyword text))

       :float
       (odd-numbers text)

       nil)
     (hex-bytes text size (and (plain-hex? node) (not (#{"true" "false"} text))))
     (coerced node (form-of side text)))))

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
      (str/starts-with? text "{") (let [form (form-of side text)]
                                    (if (map? form) (reference kind side form keep) form))
      (str/includes? text "/") (pinned (:path (arguments/ref-of text)))
      (str/blank? text) (form-of side text)
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
                    (coerced (node-of spec side) (arguments/with-keywords x))
                    x)
      (of-references? spec side) (if (re-find #"[/]" text) text (form-of side text))
      :else (if-let [node (node-of spec side)]
              (or (raw-text side text (:kind node) (:size node))
                  (text->data node side text))
              (form-of side text)))))

(defn- side-of
  "Returns the side of a spec that types an argument.

  A bloom filter has no keys: its argument is a value."
  [spec side]
  (if (and (= :key side) (nil? (:key spec))) :value side))

(defn call-typed
  "Opens the map of the options and calls f with it and converted arguments.

  Converts the given keys and values among `sides`."
  [options access sides f]
  (with-open [m (open options access)]
    (let [spec (bpf/spec m)
          opened (volatile! [])
          keep-open (fn [^Closeable x] (vswap! opened conj x) x)]
      (try
        (f m (into {} (map (fn [[side x]] [side (typed spec (side-of spec side) x keep-open)]))
                   (select-keys options sides)))
        (finally (run! #(.close ^Closeable %) @opened))))))

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
