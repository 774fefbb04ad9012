(ns ^:no-doc bpfmap.exec.csv
  "Rows as comma-separated values (RFC 4180), with a header line, without loss.

  The columns follow from the types of the map, before any row is read. A field, or an element of an
  array, has a column of its own, named by its path, such as `value.packets` or `value.0`. So an
  empty map has the same columns as a full one, and no row has to be kept.

  | cell                         | meaning                                                                   |
  |------------------------------|---------------------------------------------------------------------------|
  | empty                        | nil, or an element that does not exist                                    |
  | `12` `-0.5` `NaN` `Infinity` | a number                                                                  |
  | `true` `false`               | a boolean                                                                 |
  | `0a ff` `0x0a`               | bytes in hexadecimal; a single byte has the `0x`                          |
  | `\\a` `\\space`                | a character                                                               |
  | begins with `\"` `[` `{` `#`  | EDN: a collection, an unusual name, or a text that would be read as something else |
  | anything else                | the text itself; in the column of an enum, the name                       |

  A key or value that does not fit its columns, such as one with bytes in its padding, is in the
  first of them as EDN, and the others are empty. So a collection in the first of several columns is
  the whole value. Otherwise a vector ends with its last non-empty column, and a map whose columns
  are all empty is nil."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.exec.column-tree :as column-tree]
            [bpfmap.impl.edn-text :refer [edn-text]]
            [clojure.data.csv :as csv]
            [clojure.string :as str])
  (:import (java.util.regex Pattern)))

(set! *warn-on-reflection* true)

;; --- cells

(def ^:private not-itself
  "Matches texts that must be written as EDN.

  They would be read as something else, or have an effect in a spreadsheet or on a terminal."
  (Pattern/compile
   (str/join "|" ["(?s)[\"\\\\#\\[{(=@].*" ; EDN, and the formulas of spreadsheets
                  "(?s)[+-].+"
                  "(?s)\\s.*|.*\\s"
                  "(?:[0-9]+\\.?[0-9]*|\\.[0-9]+)(?:[eE][+-]?[0-9]+)?[NM]?"
                  "0[xX][0-9a-fA-F]*"
                  "[0-9a-f]{2}(?: [0-9a-f]{2})+"
                  "true|false|nil|NaN|Infinity"
                  "(?s).*[\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}\\p{Cs}].*"])))

(defn- plain? [text]
  (not (or (= "" text) (.matches (.matcher ^Pattern not-itself text)))))

(defn- name-cell [k]
  (let [text (subs (str k) 1)]
    (if (and (plain? text) (= k (keyword text)))
      text
      (str "#bpfmap/keyword " (edn-text (if (= k (keyword text)) text [(namespace k) (name k)]))))))

(defn- number-cell [x]
  (if (and (float? x) (not (Double/isFinite (double x))))
    (str (double x))
    (str x)))

(defn- bytes-cell [x]
  (if (= 1 (count x)) (str "0x" x) (str x)))

(defn cell
  "Returns data as the text of a cell, from which it can be read back.

      (cell \"curl\")   ;=> \"curl\"
      (cell \"12\")     ;=> \"\\\"12\\\"\"
      (cell nil)      ;=> \"\""
  [x]
  (cond
    (nil? x) ""
    (number? x) (number-cell x)
    (string? x) (if (plain? x) x (edn-text x))
    (keyword? x) (name-cell x)
    (bytes/byte-view? x) (bytes-cell x)
    :else (edn-text x)))

;; --- columns

(defn- name-text
  "Returns a name on a path, in double quotes if a path could misread it."
  [k]
  (let [text (if (keyword? k) (subs (str k) 1) (str k))]
    (if (re-matches #"[\p{L}\p{N}_/?$@:][\p{L}\p{N}_/?$@:-]*" text)
      text
      (edn-text text))))

(defn- names
  "Returns the names of the CSV columns of a column of a table."
  [{:keys [title tree name]}]
  (let [name (or name (str/lower-case title))]
    (map (fn [path] (str/join "." (cons name (map name-text path))))
         (column-tree/paths (or tree column-tree/leaf)))))

(defn- nothing [n] (repeat n ""))

(declare spread)

(defn- all-spread
  "Returns the cells of several `[tree value]` pairs; nil if one does not fit."
  [pairs]
  (reduce (fn [cells [tree x]]
            (if-let [more (spread tree x)]
              (into cells more)
              (reduced nil)))
          [] pairs))

(defn- within
  "Returns the tree of a part, partial if the whole is."
  [tree partial?]
  (cond-> tree partial? (assoc :partial true)))

(defn- spread-map [{:keys [fields] partial? :partial} x]
  (when (and (map? x)
             (if partial?
               (every? (into #{} (map first) fields) (keys x))
               (and (= (count x) (count fields)) (every? (fn [[k]] (contains? x k)) fields))))
    (let [cells (all-spread (map (fn [[k tree]] [(within tree partial?) (get x k)]) fields))]
      (when-not (every? #{""} cells) cells))))

(defn- spread-vector [{:keys [of leaves] partial? :partial n :count} x]
  (when (and (vector? x) (<= 1 (count x) (long n)))
    (when-let [cells (all-spread (map vector (repeat (within of partial?)) x))]
      (when-not (every? #{""} (take-last (:leaves of) cells))
        (into cells (nothing (- (long leaves) (count cells))))))))

(defn- spread
  "Returns the cells of a value in the columns of a tree.

  Returns nil if the value cannot be read back from them. A map for a `:partial` tree can lack
  fields."
  [{:keys [fields of leaves] :as tree} x]
  (cond
    (nil? x) (nothing leaves)
    fields (spread-map tree x)
    of (spread-vector tree x)
    (and (coll? x) (seq x)) nil
    :else [(cell x)]))

(defn- collection?
  "Returns true if a cell is a collection.

  In the first of several columns that would be the whole value."
  [cell]
  (contains? #{\{ \[} (first cell)))

(defn- cells
  "Returns the cells of one column of a table in a row."
  [{:keys [of csv tree]} row]
  (let [x ((or csv of) row)]
    (if (or (:fields tree) (:of tree))
      (let [cells (spread tree x)]
        (if (or (nil? cells) (collection? (first cells)))
          (cons (cell x) (nothing (dec (long (:leaves tree)))))
          cells))
      [(cell x)])))

(defn print-rows
  "Prints rows on *out*, each as soon as it is read.

  `columns` can be a delay, for rows whose columns are known only during the reduction. A column
  with a `:tree` (see `bpfmap.exec.column-tree`) has a CSV column for each leaf.

      (print-rows [{:title \"KEY\" :of :key :tree {:fields [[:src {:leaves 1}] [:dst {:leaves 1}]] :leaves 2}}]
                  [{:key {:src 1 :dst 2}}]) ; prints key.src,key.dst and 1,2"
  [columns rows]
  (let [write #(csv/write-csv *out* [%])
        heading (delay (write (mapcat names (force columns))))]
    (run! (fn [row]
            @heading
            (write (mapcat #(cells % row) (force columns))))
          rows)
    @heading))
