(ns bpfmap.cli.views
  "How people see what a command returned. A view is a map:

  | key        | what it holds                                                                   |
  |------------|---------------------------------------------------------------------------------|
  | `:columns` `:rows` | a table, as `bpfmap.cli.output/table` takes it                          |
  | `:lines`   | instead of a table: lines                                                       |
  | `:text?`   | true where the lines are all there is, whatever the format                      |
  | `:closing` | what people read below, on stderr: lines                                        |
  | `:notes`   | what everybody must know of the data, on stderr: lines                          |
  | `:value`   | the data for --edn and --json, where it is not what the command returned        |
  | `:exit`    | the exit code, when it is not 0                                                 |"
  (:require [bpfmap.cli.output :as output]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn- flag-text [flags]
  (when (seq flags)
    (str/join "," (map (fn [flag] (if (number? flag) (format "0x%x" flag) (output/cell flag)))
                       (sort-by str flags)))))

(defn- map-columns
  "The columns of `list`: that of frozen maps only where there is one, and the one that may be long last, so that a
  narrow terminal need not wrap the rows in which it is not."
  [maps]
  (remove nil? [{:title "ID" :of :id}
                {:title "TYPE" :of :type}
                {:title "NAME" :of :name}
                {:title "KEY" :of :key-size}
                {:title "VALUE" :of :value-size}
                {:title "MAX" :of :max-entries}
                {:title "MEMORY" :of #(some-> (:memlock %) output/human-size) :align :right}
                (when (some :frozen? maps)
                  {:title "FROZEN" :of #(if (:frozen? %) "yes" "no")})
                {:title "FLAGS" :of (comp flag-text :flags)}]))

(defn maps
  "The table of `list`."
  [maps _options]
  {:columns (map-columns maps)
   :rows maps
   :closing (when (empty? maps) ["no map is on this host"])
   :notes (for [{:keys [id message]} (:skipped (meta maps))]
            (str "map " id " is left out: " message))})

(defn- shown-field [[field x]]
  (case field
    :flags [field (flag-text x)]
    :frozen? ["frozen" (if x "yes" "no")]
    [field x]))

(defn fields
  "One thing's fields, a line each."
  [info _options]
  {:lines (output/fields (map shown-field info))})

(defn entries
  "The table of `dump`."
  [entries _options]
  {:columns [{:title "KEY" :of :key} {:title "VALUE" :of :value}]
   :rows entries
   :closing [(output/plural (count entries) "entry" "entries")]})
