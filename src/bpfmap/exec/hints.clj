(ns ^:no-doc bpfmap.exec.hints
  "Shows the fields of rows by the options `:as` and `:hints`: see `bpfmap.display`.

  Conditions and `:sort` see rows before that. Hints are checked against the types of the map, before
  its entries are read."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.display.hints :as hints]
            [bpfmap.impl.display.host :as display.host]
            [bpfmap.impl.edn :as edn]
            [bpfmap.impl.field-path :as field-path]
            [bpfmap.impl.user-file :as user-file]
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

(defn- read-file
  "Returns the hints in a file for a map's name, as `[path hint]` pairs."
  [file map-name]
  (let [content (user-file/text-in {:file file :what "the file of hints" :most largest-file})
        by-map (try
                 (edn/read-text content)
                 (catch ExceptionInfo e
                   (throw (malformed file (str "EDN (" (:bpfmap/problem (ex-data e)) ")")))))]
    (when-not (and (map? by-map)
                   (every? #(or (string? %) (ident? %)) (keys by-map))
                   (every? map? (vals by-map)))
      (throw (malformed file "a map of names of maps to maps of fields to hints")))
    (for [[name given] by-map
          :when (= map-name (if (string? name) name (clojure.core/name name)))
          [field hint] given
          :when (some? hint)] ; a field of a template that was left open
      (try
        (pair field hint)
        (catch ExceptionInfo e
          (throw (error/error :usage
                              (str "A hint " (ex-message e) ", got " (error/printed [field hint]))
                              {:bpfmap/file file :bpfmap/hint (:hint (ex-data e))}
                              e)))))))

(defn template
  "Returns a file of hints for a spec as data, with every field and without a hint.

  The metadata has the types of the fields as texts, under `:types`.

      (template {:name \"counts\" :key :u32 :value :u64}) ;=> {\"counts\" {\"key\" nil, \"value\" nil}}"
  [{:keys [name] :as spec}]
  (let [fields (hints/fields (hints/sides spec))]
    (with-meta {(or name "") (apply array-map (mapcat (fn [[path]] [path nil]) fields))}
      {:types (into {} (map (fn [[path node]] [path (hints/type-text node)])) fields)})))

;; --- rows

(defn- compiled
  "Returns hints as functions; throws `:usage` for hints that do not fit.

  A hint of the options replaces one of the file for the same field."
  [of-options of-file sides context]
  (try
    (let [place (fn [[path]] (take 2 (hints/find-field sides path)))
          taken (set (map place of-options))]
      (hints/compile (concat (remove (comp taken place) of-file) of-options) sides context))
    (catch ExceptionInfo e
      (let [{:bpfmap/keys [hint path]} (ex-data e)
            message (ex-message e)]
        (throw (error/error :usage
                            (cond-> message hint (subs 0 (- (count message) (count hint) 2)))
                            {:bpfmap/path path :bpfmap/hint hint}
                            e))))))

(defn shower
  "Returns what shows rows of a map by the hints of options; nil if it has none.

  The result is `{:row function :collapsed paths :places …}`. `:row` shows the `:key`, `:value`,
  `:old` and `:new` of a row, `:collapsed` has the paths of arrays that are shown as one value.
  `btf` is a delay with the BTF of the map, or nil. Throws `:usage` for hints that do not fit the
  spec.

      ((:row (shower options (bpf/spec m) nil)) {:key 16777343}) ;=> {:key \"127.0.0.1\"}"
  [{:keys [as hints]} {map-name :name :as spec} btf]
  (let [of-options (mapcat identity as)
        of-file (when hints (read-file hints map-name))]
    (when (or (seq of-options) (seq of-file))
      (let [compiled (compiled of-options of-file (hints/sides spec)
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
