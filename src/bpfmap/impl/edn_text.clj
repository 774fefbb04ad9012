(ns ^:no-doc bpfmap.impl.edn-text
  "Prints data as EDN that reads back as the same data.

  Names of fields and of enums come from the BTF of other programs. A keyword that EDN has no
  literal for is printed as `#bpfmap/keyword \"a b\"`, and control characters are printed as
  `\\uXXXX`, so that text from outside cannot control a terminal. [[readers]] has the functions of
  the tags."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.impl.escape :as escape])
  (:import (clojure.lang Keyword)))

(set! *warn-on-reflection* true)

(def ^:private plain-name
  "Matches the name or namespace of a keyword that every EDN reader accepts."
  "[A-Za-z0-9*!_?$%&=<>|+-](?:[A-Za-z0-9.*!_?$%&=<>|'#+-]|:(?!:))*+(?<![.:])")

(def ^:private plain-keyword
  (re-pattern (str ":(?:" plain-name "/)?(?![0-9])" plain-name)))

(defn- ->keyword
  "Returns the keyword of a `#bpfmap/keyword`.

  Its form is a text, or a vector of namespace and name."
  [x]
  (cond
    (string? x) (keyword x)
    (and (vector? x)
         (= 2 (count x))
         (every? #(or (nil? %) (string? %)) x)
         (string? (second x))) (apply keyword x)
    :else (throw
           (IllegalArgumentException. (str "#bpfmap/keyword takes a text, or [namespace name], got "
                                           (pr-str x))))))

(def readers
  "Functions of the tags of bpfmap, for `clojure.edn/read`.

  The tags are `#bpfmap/bytes` and `#bpfmap/keyword`."
  {'bpfmap/bytes bytes/->bytes
   'bpfmap/keyword ->keyword})

(defn- keyword-text [k]
  (let [text (str k)
        whole (subs text 1)
        same? (= k (keyword whole))]
    (if (and same? (re-matches plain-keyword text))
      text
      (str "#bpfmap/keyword "
           (escape/escape-edn (pr-str (if same? whole [(namespace k) (name k)])))))))

(declare write)

(defn- write-all [^StringBuilder out open xs close between write-one]
  (.append out ^String open)
  (reduce (fn [first? x]
            (when-not first? (.append out ^String between))
            (write-one out x)
            false)
          true xs)
  (.append out ^String close))

(defn- write-entry [^StringBuilder out entry]
  (write out (key entry))
  (.append out " ")
  (write out (val entry)))

(defn- write [^StringBuilder out x]
  (cond
    (instance? Keyword x) (.append out ^String (keyword-text x))
    (instance? Long x) (.append out (str x))
    (and (map? x) (not (record? x))) (write-all out "{" x "}" ", " write-entry)
    (vector? x) (write-all out "[" x "]" " " write)
    (set? x) (write-all out "#{" x "}" " " write)
    (seq? x) (write-all out "(" x ")" " " write)
    :else (.append out ^String (escape/escape-edn (pr-str x)))))

(defn edn-text
  "Returns data as EDN on one line that reads back with [[readers]].

      (edn-text {:a 1, (keyword \"b c\") \"\\u001b\"}) ;=> \"{:a 1, #bpfmap/keyword \\\"b c\\\" \\\"\\\\u001b\\\"}\""
  ^String [x]
  (binding [*print-namespace-maps* false, *print-length* nil, *print-level* nil, *print-meta* false
            *print-readably* true]
    (let [out (StringBuilder.)]
      (write out x)
      (str out))))
