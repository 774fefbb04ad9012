(ns ^:no-doc bpfmap.exec.hints
  "Shows the fields of rows by the options `:as` and `:hints`: see `bpfmap.display`.

  Conditions and `:sort` see rows before that. Hints are checked against the types of the map, before
  its entries are read."
  (:require [bpfmap.error :as error]
            [bpfmap.exec.progress :as progress]
            [bpfmap.impl.display.hints :as hints]
            [bpfmap.impl.display.host :as display.host]
            [bpfmap.impl.edn :as edn]
            [bpfmap.impl.field-path :as field-path]
            [bpfmap.impl.map.whole-names :as whole-names]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.user-file :as user-file]
            [clojure.string :as str]
            [clojure.walk :as walk])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

;; --- hints as text and as data

(defn- with-keywords [form]
  (walk/postwalk #(if (symbol? %) (keyword %) %) form))

(defn- invalid
  "Throws an exception about an option: `problem` begins with must."
  [problem hint]
  (throw (ex-info problem {:hint hint})))

(defn- pair
  "Returns a field and a hint as checked `[path hint]`."
  [field hint]
  (let [hint (with-keywords hint)
        path (or (field-path/path-of field)
                 (invalid "must have a field before =" "such as src=ipv4"))]
    (try
      (hints/parse hint)
      (catch ExceptionInfo e
        (let [{:bpfmap/keys [hint]} (ex-data e)]
          (if (re-find #"^Unknown" (ex-message e))
            (invalid "must have a hint that exists" hint)
            (invalid "must have a hint with its parameter" (ex-message e))))))
    [path hint]))

(defn- parse-text [text]
  (let [[_ field hint] (re-matches #"(?s)\s*((?:\"(?:[^\"\\]|\\.)*\"|[^=\"])+?)\s*=\s*(.+?)\s*" text)]
    (when-not field
      (invalid "must be FIELD=HINT" "such as src=ipv4 or 'flags=[flags {SYN 1 ACK 2}]'"))
    (pair field (if (re-find #"^[\[{(\"#]" hint)
                  (try
                    (edn/read-text hint)
                    (catch ExceptionInfo _
                      (invalid "must have a hint in EDN after =" "such as 'flags=[flags {SYN 1}]'")))
                  (keyword hint)))))

(defn option
  "Returns the option `:as` as `[path hint]` pairs; throws for a malformed one.

  It is text, `src=ipv4`, or a map of fields to hints. The exception's message is the constraint,
  `:hint` of its data the hint.

      (option \"src=ipv4\") ;=> [[[\"src\"] :ipv4]]"
  [x]
  (cond
    (string? x) [(parse-text x)]
    (ident? x) [(parse-text (subs (str (symbol x)) 0))]
    (map? x) (mapv (fn [[field hint]] (pair field hint)) x)
    :else (invalid "must be FIELD=HINT, or a map of fields to hints" "such as {:src :ipv4}")))

;; --- a file of hints

(def ^:private largest-file "The largest file of hints, in bytes." (* 4 1024 1024))

(defn- malformed [file problem]
  (error/error :usage (str "The file of hints " (error/printed file) " must be " problem)
               {:bpfmap/file file
                :bpfmap/hint "such as {\"flows\" {src ipv4, value.ts ktime}}"}))

(defn- checked-pair
  "Does the same as [[pair]] for a hint of a file."
  [file map-name field hint]
  (try
    (pair field hint)
    (catch ExceptionInfo e
      (throw (error/error :usage
                          (str "The file of hints " (error/printed file) " " (ex-message e)
                               " for the field " (error/printed field) " of "
                               (error/printed map-name) ", got " (error/printed hint))
                          {:bpfmap/file file :bpfmap/hint (:hint (ex-data e))}
                          e)))))

(defn- read-file
  "Returns the checked hints in a file: `[path hint]` pairs by names of maps."
  [file]
  (let [content (user-file/text-in {:file file :what "the file of hints" :most largest-file})
        by-map (try
                 (edn/read-text content)
                 (catch ExceptionInfo e
                   (throw (malformed file (str "EDN (" (:bpfmap/problem (ex-data e)) ")")))))]
    (when-not (and (map? by-map)
                   (every? #(or (string? %) (ident? %)) (keys by-map))
                   (every? map? (vals by-map)))
      (throw (malformed file "a map of names of maps to maps of fields to hints")))
    (into {}
          (for [[map-name given] by-map]
            [map-name (vec (for [[field hint] given
                                 :when (some? hint)] ; a field of a template that was left open
                             (checked-pair file map-name field hint)))]))))

(defn- note-without-hints
  "Reports that a file has no hints for a map, as for a name that is misspelt."
  [file map-name by-map]
  (let [near (nearest/nearest (str map-name) (map #(if (string? %) % (name %)) (keys by-map)))]
    (progress/note (str "the file of hints " (error/shown file) " has nothing for "
                        (if (seq map-name)
                          (str "the map " (error/shown map-name))
                          "a map without a name")
                        (when (seq near) (str ", but for " (error/list-of near)))))))

(defn- of-file
  "Returns the hints in a file for a map as layers.

  The first is for its name, the second for patterns."
  [file {map-name :name :as info} whole-name]
  (when file
    (let [by-map (read-file file)
          found (whole-names/for-name by-map info whole-name)
          pattern? (fn [[name]] (re-find #"[*?]" (str name)))]
      (when (empty? found)
        (note-without-hints file map-name by-map))
      (for [layer [(remove pattern? found) (filter pattern? found)]
            :when (seq layer)]
        {:pairs (mapcat val layer)
         :file file}))))

(defn template
  "Returns a file of hints for a spec as data, with every field and without a hint.

  The metadata has the types of the fields as texts, under `:types`.

      (template {:name \"counts\" :key :u32 :value :u64}) ;=> {\"counts\" {\"key\" nil, \"value\" nil}}"
  [{:keys [name] :as spec}]
  (let [fields (hints/fields (hints/sides spec))]
    (with-meta {(or name "") (apply array-map (mapcat (fn [[path]] [path nil]) fields))}
      {:types (into {} (map (fn [[path node]] [path (hints/type-text node)])) fields)})))

;; --- rows

(defn- without-types
  "Returns the reason why the fields of a map are unknown, or nil."
  [{:keys [key value btf-id]}]
  (when (and (contains? #{nil 0} btf-id) (some #(and (vector? %) (= :bytes (first %))) [key value]))
    "the map has no types: set --key-type and --value-type"))

(defn- compiled-layer
  "Returns hints of a layer as functions; throws `:usage` for those that misfit."
  [{:keys [pairs file]} sides {:keys [id] map-name :name :as info} context]
  (try
    (hints/compile pairs sides context)
    (catch ExceptionInfo e
      (let [{:bpfmap/keys [hint path]} (ex-data e)
            message (cond-> (ex-message e)
                      hint (as-> text (subs text 0 (- (count text) (count hint) 2))))
            hint (str/join "; " (remove nil? [hint (when (str/starts-with? message "Unknown field")
                                                     (without-types info))]))]
        (throw (error/error :usage
                            (str (when file
                                   (str "The file of hints " (error/printed file) " does not fit "
                                        (if id
                                          (str "map " (error/id-and-name info))
                                          (str "the map " (error/shown map-name)))
                                        ": "))
                                 message)
                            (cond-> {:bpfmap/path path} (seq hint) (assoc :bpfmap/hint hint))
                            e))))))

(defn- compiled
  "Returns layers of hints as functions.

  A hint of a layer replaces the hints of later layers for its field."
  [layers sides info context]
  (first
   (reduce (fn [[found taken] layer]
             (let [free (fn [[path]]
                          (not (contains? taken (try
                                                  (vec (take 2 (hints/find-field sides path)))
                                                  (catch ExceptionInfo _ nil)))))
                   places (compiled-layer (update layer :pairs #(filter free %)) sides info
                                          context)]
               [(merge-with into found (update-vals places vec))
                (into taken (for [[side places] places, {:keys [keys]} places] [side keys]))]))
           [{} #{}]
           layers)))

(defn shower
  "Returns what shows rows of a map by the hints of options; nil if it has none.

  The result is `{:row function :collapsed paths :places …}`. `:row` shows the `:key`, `:value`,
  `:old` and `:new` of a row, `:collapsed` has the paths of arrays that are shown as one value.
  `info` is the info of the map, or a spec. The context has a delay with its BTF under `:btf`, and
  under `:whole-name` a function from the info to the whole name, or to nil. Throws `:usage`
  for hints that do not fit the spec, and for a file with a hint that is wrong for every map.

      ((:row (shower options (bpf/spec m) (bpf/info m) {})) {:key 16777343}) ;=> {:key \"127.0.0.1\"}"
  [{:keys [as hints]} spec info {:keys [btf whole-name] :or {whole-name (constantly nil)}}]
  (let [layers (cond->> (of-file hints info whole-name)
                 (seq as) (cons {:pairs (mapcat identity as)}))]
    (when (some (comp seq :pairs) layers)
      (let [compiled (compiled layers (hints/sides spec) info
                               {:host (display.host/resolvers)
                                :types (:types spec)
                                :enum-in (fn [name]
                                           (some-> (force btf) (display.host/enum-in name)))})
            show (fn [row k side entry]
                   (if (contains? row k)
                     (assoc row k (hints/show-side (side compiled) (get row k) entry))
                     row))]
        {:places compiled
         :collapsed (for [[side places] compiled
                          {:keys [keys] collapses? :collapses} places :when collapses?]
                      (into [side] keys))
         :row (fn [{:keys [key old new] :as row}]
                (-> row
                    (show :key :key row)
                    (show :value :value row)
                    (show :old :value {:key key :value old})
                    (show :new :value {:key key :value new})))}))))
