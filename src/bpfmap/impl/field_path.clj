(ns ^:no-doc bpfmap.impl.field-path
  "Converts the path of a field from text to names, and back.

  A path in text has dots between its names. A name in double quotes may have any character."
  (:require [clojure.string :as str]))

(set! *warn-on-reflection* true)

;; --- from text

(defn- segments
  "Returns the names of a path in text; nil if it is malformed.

  If one is in quotes, the path is `:exact`: its metadata says so."
  [text]
  (let [exact? (str/includes? text "\"")
        part #"\"((?:[^\"\\]|\\.)*)\"|([^.\"]+)"]
    (loop [rest-of text found []]
      (let [m (re-matcher part rest-of)]
        (when (.lookingAt m)
          (let [name (if-let [quoted (.group m 1)] (str/replace quoted #"\\(.)" "$1") (.group m 2))
                behind (subs rest-of (.end m))]
            (cond
              (str/blank? name) nil
              (= "" behind) (cond-> (conj found name) exact? (with-meta {:exact true}))
              (str/starts-with? behind ".") (recur (subs behind 1) (conj found name))
              :else nil)))))))

(defn path-of
  "Returns a field as a path of names; nil if it is not a field.

      (path-of \"value.packets\")         ;=> [\"value\" \"packets\"]
      (path-of \"value.\\\"pick.turn\\\"\") ;=> [\"value\" \"pick.turn\"]"
  [field]
  (let [path (cond
               (keyword? field) (let [text (subs (str field) 1)]
                                  (or (segments text) ^:exact [text]))
               (symbol? field) (path-of (str field))
               (string? field) (segments field)
               (and (sequential? field)
                    (every? #(or (keyword? %) (string? %) (symbol? %) (int? %)) field))
               (with-meta (mapv #(if (keyword? %) (subs (str %) 1) (str %)) field) {:exact true}))]
    (when (and (seq path) (not-any? str/blank? path))
      path)))

;; --- to text

(defn quoted
  "Returns a name for a path, in double quotes if necessary.

  Names of letters, digits, _, - and / need no quotes.

      (quoted \"src\")       ;=> \"src\"
      (quoted \"pick.turn\") ;=> \"\\\"pick.turn\\\"\""
  [name]
  (if (re-matches #"[\p{L}\p{N}_/?$@:][\p{L}\p{N}_/?$@:-]*" name)
    name
    (str \" (str/escape name {\" "\\\"" \\ "\\\\"}) \")))

(defn path-text
  "Returns a path as text that means it.

      (path-text [\"value\" \"pick.turn\"]) ;=> \"value.\\\"pick.turn\\\"\""
  [path]
  (str/join "." (map quoted path)))
