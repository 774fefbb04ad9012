(ns ^:no-doc bpfmap.exec.arguments
  "What a command is given, as data that is known to be good: text from a shell, symbols from -X,
  or data from a program.

  What is wrong throws `:usage`, with what it is about under `:bpfmap/usage`:

      {:command \"dump\" :option :limit :given \"x\" :problem \"N is a whole number from 0\"}
      {:command \"dump\" :missing [:ref]}
      {:command \"dump\" :unknown :limt}"
  (:require [bpfmap.error :as error]
            [bpfmap.exec.options :refer [options]]
            [bpfmap.exec.reducible :as reducible]
            [bpfmap.impl.edn :as edn]
            [bpfmap.impl.kernel.paths :as paths]
            [clojure.string :as str]
            [clojure.walk :as walk])
  (:import (clojure.lang ExceptionInfo IReduceInit)
           (java.io File)
           (java.nio.file Path)))

(set! *warn-on-reflection* true)

;; --- from text to data

(defn- text
  "What was given as text, where it is text or a name."
  [x]
  (cond
    (string? x) x
    (symbol? x) (str x)
    (keyword? x) (subs (str x) 1)))

(defn with-keywords
  "A form in which symbols do for keywords, as a shell gives them. What is no plain collection,
  such as an open map, stays.

      (with-keywords '{src 1}) ;=> {:src 1}"
  [form]
  (walk/postwalk #(if (symbol? %) (keyword %) %) form))

(defn- edn-of
  "The one form that a text is, where symbols do for keywords, as in `{src 1}`; not-edn for a text
  that is none."
  [text not-edn]
  (try
    (with-keywords (edn/read-text text))
    (catch ExceptionInfo _ not-edn)))

(defn- number [x]
  (if-let [text (text x)]
    (let [x (edn-of text nil)] (when (number? x) x))
    (when (number? x) x)))

(defn- read-path
  "A path as the user means it, as text that `bpfmap.core/open` takes. A relative one is meant
  from the system property bpfmap.directory, if that is set."
  [x]
  (let [path (or (text x) (when (or (instance? File x) (instance? Path x)) (str x)))]
    (when-not (str/blank? path)
      (let [directory (System/getProperty "bpfmap.directory" "")]
        (if (or (= "" directory) (str/starts-with? path "/"))
          path
          (paths/child directory path))))))

(defn ref-of
  "Returns what names a map, as `bpfmap.core/open` takes it: digits are an id, a text with a slash
  is a path, any other a name. A row of `list` is the map that it is about; an open map, and what
  `bpfmap.core/open` takes, is what it is.

      (ref-of \"12\") ;=> {:id 12}"
  [x]
  (if-let [text (text x)]
    (cond
      (= "" text) nil
      (re-matches #"[0-9]+" text) {:id (or (parse-long text) (bigint text))}
      (str/includes? text "/") (some->> (read-path text) (hash-map :path))
      :else {:name text})
    (if (and (map? x) (:id x)) {:id (:id x)} x)))

(defn- read-source
  "What names a map, or the file of a saved one, whose name ends in .edn: the kernel takes no dot
  in the name of a pin."
  [x]
  (if (some-> (text x) (str/ends-with? ".edn"))
    (some->> (read-path x) (hash-map :file))
    (ref-of x)))

(defn- type-problem
  "What is wrong with a type; nil for a good one. The path of what is wrong as a whole is empty,
  and left out."
  [type]
  (some-> ((requiring-resolve 'bpfmap.type/problem) type)
          (str/replace #"^\[\]: " "")))

(defn- read-type
  "A type: EDN, where a symbol does for a keyword. Text that is no EDN stays text, which is no
  type."
  [x]
  (if (or (string? x) (symbol? x))
    (edn-of (str x) (str x))
    (with-keywords x)))

(defn- parts
  "Returns what stands between the commas of a text, of which those in double quotes do not count."
  [text]
  (str/split text #",(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)" -1))

(defn- read-names [x]
  (let [names (if-let [text (text x)] (map str/trim (str/split text #",")) (when (coll? x) x))]
    (when (and (seq names) (every? (comp seq text) names))
      (mapv (comp keyword text) names))))

(defn- read-flags
  "Flags by name, also as the kernel spells them; numbers of flags that have no name stay."
  [x]
  (when-let [names (read-names (if (coll? x) (map #(if (int? %) (str %) %) x) x))]
    (mapv #(or (parse-long (name %))
               (keyword ((requiring-resolve 'bpfmap.exec.fields/kernel-name) (name %)))) names)))

(defn- read-columns
  "Columns as paths."
  [x]
  (let [columns (if-let [text (text x)] (parts text) (when (coll? x) x))
        paths (map (requiring-resolve 'bpfmap.exec.query/path-of) columns)]
    (when (and (seq paths) (every? some? paths))
      (vec paths))))

(defn- read-map-type
  "A map type by name, also as the kernel spells it, or by number."
  [x]
  (let [x (if (string? x) (edn-of x nil) x)]
    (cond
      (int? x) x
      (ident? x) (keyword ((requiring-resolve 'bpfmap.exec.fields/kernel-name) (name x))))))

(def kinds
  "How an option of a kind becomes data: `:read` returns nil for what is none, and what it is
  stands in `:expects`, after the word of the option; or it throws, or `:problem` says what is
  wrong with what was read. `:as` is the kind's name in babashka.cli."
  {:flag {:read #(let [x (if (string? %) (edn-of % nil) %)] (when (boolean? x) x))
          :expects "is true or false" :as :boolean}
   :edn {:read #(if-let [text (text %)] (edn-of text nil) %) :expects "is one form" :as :edn}
   :text {:read text :expects "is a text" :as :string}
   :path {:read read-path :expects "is a path" :as :string}
   :ref {:read ref-of :expects "is an id, a pin path or a name" :as :string}
   :source {:read read-source
            :expects "is an id, a pin path, a name, or a file whose name ends in .edn" :as :string}
   :field {:read #((requiring-resolve 'bpfmap.exec.query/path-of) %)
           :expects "is the name of a field" :as :string}
   :shell {:read #(#{:bash :zsh :fish} (some-> (text %) keyword)) :expects "is bash, zsh or fish"
           :as :keyword}
   :slots {:read #(#{:log2 :bcc :bpftrace} (some-> (text %) keyword))
           :expects "is log2, bcc or bpftrace" :as :keyword}
   :count {:read #(let [n (number %)] (when (and (int? n) (pos? (long n))) n))
           :expects "is a whole number from 1" :as :long}
   :type {:read read-type :problem type-problem :as :edn}
   :where {:read #((requiring-resolve 'bpfmap.exec.query/condition) (if (symbol? %) (str %) %))
           :as :string}
   :cpus {:read #(let [which (edn-of (or (text %) (str %)) nil)]
                   (when (or (contains? #{:each :sum :all} which) (and (int? which) (<= 0 which)))
                     which))
          :expects "is each, sum, all or the number of a CPU" :as :keyword}
   :element {:read identity :as :string}
   :column {:read #((requiring-resolve 'bpfmap.exec.query/column) %)
            :expects "is the name of a column" :as :string}
   :flags {:read read-flags :expects "is names with commas between them" :as :string}
   :columns {:read read-columns :expects "is names with commas between them" :as :string}
   :map-type {:read read-map-type :expects "is the name of a map type" :as :keyword}
   :whole {:read #(let [n (number %)] (when (and (int? n) (<= 0 (long n))) n))
           :expects "is a whole number from 0" :as :long}
   :positive {:read #(let [n (number %)] (when (and n (< 0 n 1e9)) n))
              :expects "is a number above 0" :as :double}})

;; --- a whole map of options

(defn- usage-error [message about]
  (error/error :usage message {:bpfmap/usage about}))

(defn refused
  "The `:usage` exception for an option that a command does not take as it was given. The command
  may be nil where it is not known; [[call]] adds it.

      (throw (refused \"dump\" :limit \"x\" \"N is a whole number from 0\"))"
  [command option given problem]
  (usage-error (str option " " (pr-str (error/shown given)) ": " problem)
               {:command command :option option :given (error/shown given) :problem problem}))

(defn missing-option
  "The `:usage` exception for an option that a command needs.

      (throw (lacking \"put\" :value))
      (throw (lacking \"restore\" :pin :into)) ; one of them"
  [command & options]
  (usage-error (str command " needs " (str/join " or " options))
               {:command command :missing options}))

(defn- coerce
  "The data of one option; throws `:usage` for what is none."
  [{:keys [name]} option x]
  (let [{:keys [takes kind]} (options option)
        {:keys [read expects problem]} (kinds kind)
        [data wrong] (try
                       [(read x)]
                       (catch ExceptionInfo e [nil (ex-message e)]))
        problem (cond
                  wrong wrong
                  problem (problem data)
                  (nil? data) (str/join " " (remove nil? [takes expects])))]
    (when problem
      (throw (refused name option x problem)))
    data))

(defn- coerce-all
  "The data of an option, each of them where there may be many."
  [command option x]
  (if (:many (options option))
    (mapv #(coerce command option %)
          (if (and (sequential? x) (every? #(or (string? %) (sequential? %)) x)) x [x]))
    (coerce command option x)))

(defn required
  "The options that a command must be given: its arguments by place, and what else it needs.

      (required {:args [:ref :key] :optional #{:key} :needs [:pin]}) ;=> (:ref :pin)"
  [{:keys [args optional needs]}]
  (concat (remove (set optional) args) needs))

(defn checked
  "The options map of a command as data, with its defaults; nil values count as not given.

      (checked dump {:ref \"12\" :limit \"5\"}) ;=> {:ref {:id 12} :limit 5}"
  [{:keys [name args defaults] :as command} given]
  (when-not (or (nil? given) (map? given))
    (throw (usage-error (str "Options are a map, not " (pr-str (error/shown given)))
                        {:command name :problem "options are a map"})))
  (let [known (set (concat args (:options command)))
        given (into {} (remove (comp nil? val)) given)]
    (doseq [k (keys given)]
      (when-not (known k)
        (throw (usage-error (str "Unknown option " (pr-str (error/shown k)) ": " name " takes "
                                 (if (seq known) (error/list-of (sort known)) "none"))
                            {:command name :unknown (error/shown k)}))))
    (doseq [k (required command)]
      (when-not (contains? given k)
        (throw (missing-option name k))))
    (with-meta (into (or defaults {}) (map (fn [[k x]] [k (coerce-all command k x)])) given)
      {:given given})))

(defn- printable
  "Returns an option as it is printed: an open map as what it is, conditions and columns as they
  were given."
  [options-given k x]
  (cond
    (contains? #{:where :column :columns :field} (:kind (options k))) (get options-given k x)
    (or (instance? File x) (instance? Path x)) {:path (str x)}
    ;; An open map is loaded with what opens maps, and has its own way to be shown.
    (and (contains? #{:ref :source} (:kind (options k)))
         ((requiring-resolve 'bpfmap.core/bpf-map?) x))
    ((requiring-resolve 'bpfmap.impl.map.bpf-map/identity-of) x)
    :else x))

(defn- to-print
  "Returns the options of a command as they are printed, in its order."
  [{:keys [args] :as command} checked]
  (into (array-map)
        (for [k (concat args (:options command)) :when (contains? checked k)]
          [k (printable (:given (meta checked)) k (checked k))])))

(defn- streamed
  "Returns a result as it is given to the caller: rows to reduce, if it is reduced or `:stream`
  asks for it, which print as the command and its options."
  [{:keys [name] :as command} {:keys [stream] :as options} result]
  (cond
    (and stream (coll? result))
    (reducible/reducible name (to-print command options)
                         (with-meta (reify IReduceInit (reduce [_ f init] (reduce f init result)))
                           (meta result)))
    (and (instance? IReduceInit result) (not (coll? result)))
    (reducible/reducible name (to-print command options) result)
    :else result))

(defn perform
  "Does what a command is for with options that were checked, and returns data."
  [command options]
  (try
    (streamed command options ((requiring-resolve (:fn command)) options))
    (catch ExceptionInfo e
      (throw (if (:bpfmap/usage (ex-data e))
               (ex-info (ex-message e)
                        (update-in (ex-data e) [:bpfmap/usage :command] #(or % (:name command))) e)
               e)))))

(def formats
  "How `:print` prints what a command returned."
  [:table :edn :json :csv])

(def ^:private libraries
  "What an output needs on the class path: its library, and a namespace of it."
  {:json '[org.clojure/data.json clojure.data.json]
   :csv '[org.clojure/data.csv clojure.data.csv]})

(defn- check-library
  "Throws `:usage` if the library that an output needs is not there, with where to get it."
  [format]
  (when-let [[library ns-name] (libraries format)]
    (try
      (require ns-name)
      (catch java.io.FileNotFoundException e
        (throw (error/error :usage
                            (str ":print " format " needs " library
                                 ", which is not on the class path")
                            {:bpfmap/hint (str
                                           "in a checkout of bpfmap start with the alias :exec "
                                           "(bin/clj -X:exec); elsewhere add "
                                               library " to an alias of deps.edn")}
                            e))))))

(defn- print-as
  "Prints what a command returned as the command line does, which is loaded for it; returns it."
  [{:keys [rows? view]} options format value]
  (check-library format)
  (when (and (= :csv format) (not rows?))
    (throw (usage-error ":print :csv is for commands that return rows" {})))
  (let [print-result (requiring-resolve 'bpfmap.exec.output/print-result)]
    (if view
      (print-result value ((requiring-resolve view) value options)
                    (when-not (= :table format) format) nil)
      ;; What the command line draws is data here.
      (print-result value {} (if (= :table format) :edn format) nil)))
  value)

(defn over
  "Options given over those that stand for them; what are no options stays as it is, to be refused.

      (over {:print :table} {:limit 5}) ;=> {:print :table :limit 5}"
  [defaults given]
  (if (or (nil? given) (map? given)) (merge defaults given) given))

(defn call
  "Does what a command is for, and returns data; with `:print` prints it too, as one of
  [[formats]]. Throws `:usage` for bad options before anything else.

      (call (commands/command-named \"show\") {:ref \"counts\"}) ;=> {:id 12, :type :hash, …}"
  [command given]
  (let [format (when (map? given) (some-> (:print given) text keyword))
        options (checked command (if (map? given) (dissoc given :print) given))]
    (when (and (:print given) (not (some #{format} formats)))
      (throw (usage-error (str ":print is " (error/list-of formats) ", not "
                               (pr-str (error/shown (:print given)))) {})))
    (cond->> (perform command options)
      format (print-as command options format))))
