(ns ^:no-doc bpfmap.exec.arguments
  "Checks the options of a command and converts them to data. They come as text from a shell, as
  symbols from -X, or as data from a program.

  Invalid options throw `:usage`. `:bpfmap/usage` has the details, one of:

      {:command \"dump\" :option :limit :given \"x\" :problem \"must be a non-negative integer\"}
      {:command \"put\" :option :insert :given true :problem [\"cannot be combined with \" :replace]}
      {:command \"dump\" :missing [:ref]}
      {:command \"dump\" :unknown :limt}"
  (:require [bpfmap.error :as error]
            [bpfmap.exec.options :refer [function-name kind-of options]]
            [bpfmap.exec.reducible :as reducible]
            [bpfmap.impl.edn :as edn]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.nearest :as nearest]
            [clojure.string :as str]
            [clojure.walk :as walk])
  (:import (clojure.lang ExceptionInfo IReduceInit)
           (java.io File)
           (java.nio.file Path)))

(set! *warn-on-reflection* true)

;; --- from text to data

(defn- text
  "Returns the text of a string, symbol or keyword; nil for anything else."
  [x]
  (cond
    (string? x) x
    (symbol? x) (str x)
    (keyword? x) (subs (str x) 1)))

(defn with-keywords
  "Returns a form with its symbols replaced by keywords.

  A shell passes symbols. Objects such as an open map stay as they are.

      (with-keywords '{src 1}) ;=> {:src 1}"
  [form]
  (walk/postwalk #(if (symbol? %) (keyword %) %) form))

(defn- edn-of
  "Returns the only EDN form of a text, with keywords for symbols, or not-edn."
  [text not-edn]
  (try
    (with-keywords (edn/read-text text))
    (catch ExceptionInfo _ not-edn)))

(defn- number [x]
  (if-let [text (text x)]
    (let [x (edn-of text nil)] (when (number? x) x))
    (when (number? x) x)))

(defn- read-path
  "Returns a path as text for `bpfmap.core/open`.

  A relative path is resolved against the system property bpfmap.directory, if it is set."
  [x]
  (let [path (or (text x) (when (or (instance? File x) (instance? Path x)) (str x)))]
    (when-not (str/blank? path)
      (let [directory (System/getProperty "bpfmap.directory" "")]
        (if (or (= "" directory) (str/starts-with? path "/"))
          path
          (paths/child directory path))))))

(defn ref-of
  "Returns the reference to a map that `bpfmap.core/open` takes.

  Digits are an id, a text with a slash is a path, any other text a name. A row of `list` refers
  to its map. Open maps and references stay as they are.

      (ref-of \"12\") ;=> {:id 12}"
  [x]
  (if-let [text (text x)]
    (cond
      (= "" text) nil
      (re-matches #"[0-9]+" text) {:id (or (parse-long text) (bigint text))}
      (str/includes? text "/") (some->> (read-path text) (hash-map :path))
      :else {:name text})
    (if (and (map? x) (:id x)) {:id (:id x)} x)))

(defn- map-ref-of
  "Returns the reference to a map, or a pattern of names as `{:glob text}`.

  Names of maps have no `*` and no `?`."
  [x]
  (let [text (text x)]
    (if (and text (re-find #"[*?]" text) (not (str/includes? text "/")))
      {:glob text}
      (ref-of x))))

(defn- read-source
  "Returns the reference to a map, or the file of a saved map.

  The name of a file ends in .edn. Pins cannot have such a name: the kernel allows no dots."
  [x]
  (if (some-> (text x) (str/ends-with? ".edn"))
    (some->> (read-path x) (hash-map :file))
    (map-ref-of x)))

(defn- type-problem
  "Returns the problem of a type, or nil."
  [type]
  (some-> ((requiring-resolve 'bpfmap.type/problem) type)
          (str/replace #"^\[\]: " "")))

(defn- read-type
  "Returns a type, from EDN with symbols for keywords.

  Text that is not EDN stays text, which is not a type."
  [x]
  (if (or (string? x) (symbol? x))
    (edn-of (str x) (str x))
    (with-keywords x)))

(defn- read-event-type
  "Returns a type, or the name of a struct as text.

  A keyword that is no type is a name, too. So is `struct NAME`."
  [x]
  (let [type (read-type x)]
    (cond
      (string? type) (or (second (re-matches #"(?:struct\s+)?([A-Za-z_][A-Za-z0-9_]*)" type)) type)
      (and (keyword? type) (type-problem type)) (name type)
      :else type)))

(defn- event-type-problem
  "Returns the problem of a type, or of the name of a struct; or nil."
  [type]
  (if (string? type)
    (when-not (re-matches #"[A-Za-z_][A-Za-z0-9_]*" type)
      "it is neither a type nor the name of a struct")
    (type-problem type)))

(defn- valid-event-type
  "Returns a type, or the name of a struct as text; nil for anything else."
  [x]
  (let [type (read-event-type x)]
    (when-not (event-type-problem type) type)))

(defn- parts
  "Splits a text at its commas, except in double quotes."
  [text]
  (str/split text #",(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)" -1))

(defn- read-names [x]
  (let [names (if-let [text (text x)] (map str/trim (str/split text #",")) (when (coll? x) x))]
    (when (and (seq names) (every? (comp seq text) names))
      (mapv (comp keyword text) names))))

(defn- read-flags
  "Returns flags by name, also in the kernel's spelling.

  Numbers of flags without a name stay."
  [x]
  (when-let [names (read-names (if (coll? x) (map #(if (int? %) (str %) %) x) x))]
    (mapv #(or (parse-long (name %))
               (keyword ((requiring-resolve 'bpfmap.exec.fields/kernel-name) (name %)))) names)))

(defn- read-columns
  "Returns columns as paths."
  [x]
  (let [columns (if-let [text (text x)] (parts text) (when (coll? x) x))
        paths (map (requiring-resolve 'bpfmap.impl.field-path/path-of) columns)]
    (when (and (seq paths) (every? some? paths))
      (vec paths))))

(defn- read-map-type
  "Returns a map type by name, also in the kernel's spelling, or its number."
  [x]
  (let [x (if (string? x) (edn-of x nil) x)]
    (cond
      (int? x) x
      (ident? x) (keyword ((requiring-resolve 'bpfmap.exec.fields/kernel-name) (name x))))))

(defn- read-named
  "Returns a function that reads NAME=VALUE, or a map, as a map by name.

  `of-text` reads a value from text, `of-data` one of a map."
  [of-text of-data]
  (fn [x]
    (let [[_ name value] (some->> (text x) (re-matches #"(?s)([^=]+)=(.*)"))
          all (cond
                name {name (of-text value)}
                (map? x) (into {} (map (fn [[k v]] [(text k) (of-data v)])) x))]
      (when (and (seq all) (every? some? (keys all)) (every? some? (vals all)))
        all))))

(defn- read-target
  "Returns the target of a program; nil for anything but a map."
  [x]
  (let [target (if (string? x) (edn-of x nil) (with-keywords x))]
    (when (map? target) target)))

(def kinds
  "The kinds of options.

  `:read` converts a value to data, and returns nil or throws for an invalid one. `:expects` is
  the constraint. `:problem` returns the hint for an invalid value, or nil. `:as` is the kind's
  name in babashka.cli."
  {:flag {:read #(let [x (if (string? %) (edn-of % nil) %)] (when (boolean? x) x))
          :expects "must be true or false" :as :boolean}
   :edn {:read #(if-let [text (text %)] (edn-of text nil) %) :expects "must be one EDN form"
         :as :edn}
   :text {:read text :expects "must be a string" :as :string}
   :process {:read #(if (pos-int? %) (str %) (text %)) :expects "must be a pid or a command"
             :as :string}
   :path {:read read-path :expects "must be a path" :as :string}
   :types {:read #(if (contains? #{"none" "bpftrace"} (text %)) (text %) (read-path %))
           :expects "must be a path, bpftrace or none" :as :string}
   :input {:read #(if (= "-" (text %)) "-" (read-path %)) :expects "must be a path or -"
           :as :string}
   :ref {:read map-ref-of :expects "must be an id, a pin path or a name" :as :string}
   :program-ref {:read ref-of :expects "must be an id, a pin path or a name" :as :string}
   :link-ref {:read #(let [ref (ref-of %)] (when-not (and (map? ref) (:name ref)) ref))
              :expects "must be an id or a pin path" :as :string}
   :source {:read read-source
            :expects "must be an id, a pin path, a name or a file (NAME.edn)" :as :string}
   :field {:read #((requiring-resolve 'bpfmap.impl.field-path/path-of) %)
           :expects "must be the name of a field" :as :string}
   :shell {:read #(#{:bash :zsh :fish} (some-> (text %) keyword))
           :expects "must be bash, zsh or fish" :as :keyword}
   :values {:read (read-named identity identity) :expects "must be NAME=VALUE" :as :string}
   :refs {:read (read-named ref-of ref-of)
          :expects "must be NAME=REF, with an id, a pin path or a name" :as :string}
   :targets {:read (read-named read-target read-target)
             :expects "must be NAME=TARGET, such as count={xdp \"eth0\"}" :as :string}
   :event-types {:read (read-named valid-event-type valid-event-type)
                 :expects "must be NAME=TYPE, with a type or the name of a struct" :as :string}
   :slots {:read #(#{:log2 :bcc :bpftrace} (some-> (text %) keyword))
           :expects "must be log2, bcc or bpftrace" :as :keyword}
   :count {:read #(let [n (number %)] (when (and (int? n) (pos? (long n))) n))
           :expects "must be a positive integer" :as :long}
   :type {:read read-type :expects "must be a type" :problem type-problem :as :edn}
   :event-type {:read read-event-type :expects "must be a type or the name of a struct"
                :problem event-type-problem :as :edn}
   :from {:read #(#{:oldest :now} (some-> (text %) keyword))
          :expects "must be oldest or now" :as :keyword}
   :where {:read #((requiring-resolve 'bpfmap.exec.query/condition) (if (symbol? %) (str %) %))
           :as :string}
   :hint {:read #((requiring-resolve 'bpfmap.exec.hints/option) %) :as :string}
   :cpus {:read #(let [which (edn-of (or (text %) (str %)) nil)]
                   (when (or (contains? #{:each :sum :all} which) (and (int? which) (<= 0 which)))
                     which))
          :expects "must be each, sum, all or the number of a CPU" :as :keyword}
   :element {:read identity :as :string}
   :column {:read #((requiring-resolve 'bpfmap.exec.query/column) %)
            :expects "must be the name of a column" :as :string}
   :flags {:read read-flags :expects "must be names separated by commas" :as :string}
   :columns {:read read-columns :expects "must be names separated by commas" :as :string}
   :map-type {:read read-map-type :expects "must be the name of a map type" :as :keyword}
   :whole {:read #(let [n (number %)] (when (and (int? n) (<= 0 (long n))) n))
           :expects "must be a non-negative integer" :as :long}
   :positive {:read #(let [n (number %)] (when (and n (< 0 n 1e9)) n))
              :expects "must be a positive number" :as :double}})

;; --- a whole map of options

(defn- usage-error [message about]
  (error/error :usage message {:bpfmap/usage about}))

(defn statement
  "Returns the sentence about an invalid option.

  `word` converts the keyword of an option to text.

      (statement str {:option :limit :given \"x\" :problem \"must be a positive integer\"})
      ;=> \":limit must be a positive integer, got \\\"x\\\"\""
  [word {:keys [option given problem]}]
  (let [problem (if (string? problem)
                  problem
                  (str/join (map #(if (keyword? %) (word %) %) problem)))]
    (str (word option) " " problem
         (when (str/starts-with? problem "must ") (str ", got " (error/printed given))))))

(defn refused
  "Returns the `:usage` exception for an invalid option.

  `problem` continues a sentence that begins with the option: a text, or a vector of texts and
  keywords of options. The value follows if it begins with must. `command` may be nil: [[perform]]
  adds it.

      (throw (refused \"dump\" :limit \"x\" \"must be a non-negative integer\"))
      (throw (refused \"put\" :insert true [\"cannot be combined with \" :replace]))"
  ([command option given problem] (refused command option given problem nil))
  ([command option given problem hint]
   (let [about {:command command :option option :given (error/shown given) :problem problem}]
     (error/error :usage (statement str about) {:bpfmap/usage about :bpfmap/hint hint}))))

(defn rounds
  "Returns the number of readings after which a command ends, or nil.

  It is `:rounds`, or 1 for `:once`.

      (rounds \"top\" {:once true}) ;=> 1"
  [command {:keys [once rounds]}]
  (when (and once rounds)
    (throw (refused command :once true ["cannot be combined with " :rounds])))
  (if once 1 rounds))

(defn missing-option
  "Returns the `:usage` exception for a missing option.

      (throw (missing-option \"put\" :value))
      (throw (missing-option \"restore\" :pin :into)) ; one of them is required"
  [command & options]
  (usage-error (str (function-name command) " requires " (str/join " or " options))
               {:command command :missing options}))

(defn- coerce
  "Returns the data of one option; throws `:usage` for an invalid value."
  [{:keys [name] :as command} option x]
  (let [{:keys [read expects problem]} (kinds (kind-of command option))
        data (try
               (read x)
               (catch ExceptionInfo e
                 (throw (refused name option x (ex-message e) (:hint (ex-data e))))))
        hint (when problem (problem data))]
    (when (or hint (nil? data))
      (throw (refused name option x expects hint)))
    data))

(defn- coerce-all
  "Returns the data of an option, as a vector if it can be repeated.

  The last argument of some commands can be a vector too."
  [command option x]
  (cond
    (and (= option (:several command)) (vector? x) (seq x))
    (mapv #(coerce command option %) x)

    (:many (options option))
    (mapv #(coerce command option %)
          (if (and (sequential? x) (every? #(or (string? %) (sequential? %) (map? %)) x)) x [x]))

    :else (coerce command option x)))

(defn required
  "Returns the required arguments and options of a command.

      (required {:args [:ref :key] :optional #{:key} :needs [:pin]}) ;=> (:ref :pin)"
  [{:keys [args optional needs]}]
  (concat (remove (set optional) args) needs))

(defn checked
  "Returns the options of a command as checked data, with the defaults.

  Nil values count as missing.

      (checked dump {:ref \"12\" :limit \"5\"}) ;=> {:ref {:id 12} :limit 5}"
  [{:keys [name args defaults] :as command} given]
  (when-not (or (nil? given) (map? given))
    (throw (usage-error (str "Options must be a map, got " (error/printed given))
                        {:command name :problem "must be a map"})))
  (let [known (set (concat args (:options command)))
        given (into {} (remove (comp nil? val)) given)]
    (doseq [k (keys given)]
      (when-not (known k)
        (throw (error/error :usage (str "Unknown option " (error/printed k))
                            {:bpfmap/usage {:command name :unknown (error/shown k)}
                             :bpfmap/hint (or (nearest/did-you-mean k (sort known))
                                              (str "(doc bpfmap.exec/" (function-name name)
                                                   ") lists the options"))}))))
    (doseq [k (required command)]
      (when-not (contains? given k)
        (throw (missing-option name k))))
    (with-meta (into (or defaults {}) (map (fn [[k x]] [k (coerce-all command k x)])) given)
      {:given given})))

(defn- printable
  "Returns the value of an option for printing.

  An open map is printed as its identity, conditions and columns as they were given."
  [options-given k x]
  (cond
    (contains? #{:where :column :columns :field :hint} (:kind (options k))) (get options-given k x)
    (or (instance? File x) (instance? Path x)) {:path (str x)}
    ;; The class of open maps is loaded only with the code that opens them. An open map prints as
    ;; its identity.
    (and (contains? #{:ref :source} (:kind (options k)))
         ((requiring-resolve 'bpfmap.impl.map.bpf-map/bpf-map?) x))
    ((requiring-resolve 'bpfmap.impl.map.bpf-map/identity-of) x)
    :else x))

(defn- to-print
  "Returns the options of a command for printing, in its order."
  [{:keys [args] :as command} checked]
  (into (array-map)
        (for [k (concat args (:options command)) :when (contains? checked k)]
          [k (printable (:given (meta checked)) k (checked k))])))

(defn- streamed
  "Returns a result for the caller.

  If it reduces, or with `:stream`, this is a reducible that prints as the command and its
  options."
  [{:keys [name] :as command} {:keys [stream] :as options} result]
  (cond
    (and stream (coll? result))
    (reducible/reducible (function-name name) (to-print command options)
                         (with-meta (reify IReduceInit (reduce [_ f init] (reduce f init result)))
                           (meta result)))
    (and (instance? IReduceInit result) (not (coll? result)))
    (reducible/reducible (function-name name) (to-print command options) result)
    :else result))

(def ^:private own-operations
  "The operations of the library that errors of a command may name.

  Other operations are steps of a command, such as the lookup before `put`."
  {"get" #{:lookup :peek :might-contain?}
   "put" #{:put! :insert! :replace! :push! :put-all!}
   "delete" #{:delete!}
   "take" #{:take! :pop!}
   "dump" #{:reduce :next-key :snapshot :entries :count-entries}})

(defn- about-command
  "Returns an error with the name of the command, instead of a step of it."
  [e {:keys [name]}]
  (let [{:bpfmap/keys [op usage] :as data} (ex-data e)
        start (when op (str (clojure.core/name op) " on map "))]
    (cond
      usage (ex-info (ex-message e) (update-in data [:bpfmap/usage :command] #(or % name)) e)
      (and start (str/starts-with? (ex-message e) start) (not (get-in own-operations [name op])))
      (ex-info (str name " on map " (subs (ex-message e) (count start)))
               (assoc data :bpfmap/op (keyword (function-name name)))
               e)
      :else e)))

(defn call-as
  "Calls f, and names the command in errors.

      (call-as (commands/command-named \"put\") #(bpf/lookup m 7)) ; throws: put on map 12 failed …"
  [command f]
  (try
    (f)
    (catch ExceptionInfo e
      (throw (about-command e command)))))

(defn perform
  "Runs a command with checked options and returns its result."
  [command options]
  (call-as command
    #(streamed command options ((requiring-resolve (:fn command)) options))))

(def formats
  "The formats of `:print`."
  [:table :edn :json :csv])

(def ^:private libraries
  "The library that a format requires, and one of its namespaces."
  {:json '[org.clojure/data.json clojure.data.json]
   :csv '[org.clojure/data.csv clojure.data.csv]})

(defn- check-library
  "Throws `:usage` if the library of a format is not on the class path."
  [format]
  (when-let [[library ns-name] (libraries format)]
    (try
      (require ns-name)
      (catch java.io.FileNotFoundException e
        (throw (error/error :usage
                            (str ":print " format " requires " library
                                 ", which is not on the class path")
                            {:bpfmap/hint (str "add it to deps.edn, or use the alias :exec in a "
                                               "checkout of bpfmap (bin/clj -X:exec)")}
                            e))))))

(defn- print-as
  "Prints a result as the command line does and returns it.

  Loads the printing code on demand."
  [{:keys [view] rows? :rows} options format value]
  (check-library format)
  (when (and (= :csv format) (not rows?))
    (throw (usage-error ":print :csv requires a command that returns rows" {})))
  (let [print-result (requiring-resolve 'bpfmap.exec.output/print-result)]
    (if view
      (print-result value ((requiring-resolve view) value options)
                    (when-not (= :table format) format) nil)
      ;; The command line draws the result, which is returned as data here.
      (print-result value {} (if (= :table format) :edn format) nil)))
  value)

(defn over
  "Merges options over defaults.

  Options that are not a map stay as they are, for [[checked]] to reject.

      (over {:print :table} {:limit 5}) ;=> {:print :table :limit 5}"
  [defaults given]
  (if (or (nil? given) (map? given)) (merge defaults given) given))

(defn call
  "Runs a command and returns its result.

  With `:print`, prints it too, in one of the [[formats]]. Throws `:usage` for invalid options
  before anything else.

      (call (commands/command-named \"show\") {:ref \"counts\"}) ;=> {:id 12, :type :hash, …}"
  [command given]
  (let [format (when (map? given) (some-> (:print given) text keyword))
        options (checked command (if (map? given) (dissoc given :print) given))]
    (when (and (:print given) (not (some #{format} formats)))
      (throw (usage-error (str ":print must be " (error/list-of formats) ", got "
                               (error/printed (:print given))) {})))
    (cond->> (perform command options)
      format (print-as command options format))))
