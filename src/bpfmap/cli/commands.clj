(ns bpfmap.cli.commands
  "The commands that read: `list`, `show` and `dump`.

  A command takes its arguments and options and returns what `bpfmap.cli` prints:

  | key        | what it holds                                                 |
  |------------|---------------------------------------------------------------|
  | `:value`   | the data, for --edn and --json                                |
  | `:lines`   | the same for people: lines, as a delay                        |
  | `:closing` | what people read below them, on stderr: lines                 |
  | `:notes`   | what everybody must know of the data, on stderr: lines        |
  | `:exit`    | the exit code, when it is not 0                               |"
  (:require [bpfmap.cli.output :as output]
            [bpfmap.core :as bpf]
            [bpfmap.host :as host]
            [clojure.string :as str])
  (:import (java.nio.file Path)))

(set! *warn-on-reflection* true)

;; --- references

(defn- absolute
  "A path as the user means it: bin/bpfmap changes the directory, and says from which."
  [path]
  (let [directory (System/getProperty "bpfmap.directory" "")]
    (str (.resolve (Path/of directory (make-array String 0)) ^String path))))

(defn reference
  "What the user's REF means to `bpfmap.core/open`: digits are an id, a text with a slash is a path, any other a name.

      (reference \"12\")              ;=> {:id 12}
      (reference \"/sys/fs/bpf/flows\") ;=> {:path \"/sys/fs/bpf/flows\"}
      (reference \"counts\")          ;=> {:name \"counts\"}"
  [text]
  (cond
    (re-matches #"[0-9]+" text) {:id (or (parse-long text) (bigint text))}
    (str/includes? text "/") {:path (absolute text)}
    :else {:name text}))

(defn- open ^java.io.Closeable [ref options]
  (bpf/open (reference ref) (assoc options :access :read-only)))

;; --- list and show

(defn- flag-text [flags]
  (when (seq flags)
    (str/join "," (map (fn [flag] (if (number? flag) (format "0x%x" flag) (output/cell flag)))
                       (sort-by str flags)))))

(def ^:private first-fields
  "What comes first of what the kernel says; the rest follows by name."
  [:id :type :name :key :key-size :value :value-size :max-entries :flags :frozen? :memlock])

(defn- ordered
  "The same map, with its keys in the order in which people look for them."
  [info]
  (apply array-map (mapcat #(find info %)
                           (concat (filter #(contains? info %) first-fields)
                                   (sort (remove (set first-fields) (keys info)))))))

(defn- list-columns
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

(defn list-maps
  "What the kernel says of every map on the host.

      (:value (list-maps [] {})) ;=> [{:id 12, :type :hash, …}]"
  [_args _options]
  (let [maps (host/maps)]
    {:value (mapv ordered maps)
     :lines (delay (output/table (list-columns maps) maps))
     :closing (when (empty? maps) ["no map is on this host"])
     :notes (for [{:keys [id message]} (:skipped (meta maps))]
              (str "map " id " is left out: " message))}))

(defn- shown-field [[field x]]
  (case field
    :flags [field (flag-text x)]
    :frozen? ["frozen" (if x "yes" "no")]
    [field x]))

(defn show
  "What the kernel says of one map.

      (:value (show [\"counts\"] {})) ;=> {:id 12, :type :hash, …}"
  [[ref] _options]
  (with-open [m (open ref nil)]
    (let [info (ordered (bpf/info m))]
      {:value info
       :lines (delay (output/fields (map shown-field info)))})))

;; --- dump

(defn dump
  "The entries of a map, in the kernel's order. `:key` and `:value` of the options are the types to read by.

      (:value (dump [\"counts\"] {:key :u32 :value :u64})) ;=> [{:key 7, :value 42}]"
  [[ref] options]
  (with-open [m (open ref (select-keys options [:key :value]))]
    (let [entries (reduce-kv (fn [entries k v] (conj entries {:key k :value v})) [] m)]
      {:value entries
       :lines (delay (output/table [{:title "KEY" :of :key} {:title "VALUE" :of :value}] entries))
       :closing [(output/plural (count entries) "entry" "entries")]})))
