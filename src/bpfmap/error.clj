(ns bpfmap.error
  "The shape of every error this library throws.

  An error is an `ex-info` whose data is EDN and nothing else, so that it can
  be logged, sent and compared. Its keys:

  | key                  | what it holds                                         |
  |----------------------|-------------------------------------------------------|
  | `:bpfmap/error`      | the kind, a keyword such as `:map-full`: test for this |
  | `:bpfmap/op`         | what was asked, e.g. `:put!`                          |
  | `:bpfmap/errno`      | the kernel's answer by name, e.g. `:E2BIG`            |
  | `:bpfmap/errno-code` | the same as a number                                  |
  | `:bpfmap/map`        | `{:id :name :type}` of the map concerned              |
  | `:bpfmap/path`       | where in the given data, e.g. `[:value]`              |
  | `:bpfmap/file`       | the file concerned, e.g. a pin path                   |
  | `:bpfmap/hint`       | what is wrong and how to mend it                      |

  Kinds may be added; a kind that exists keeps its meaning."
  (:require [bpfmap.impl.escape :as escape]
            [clojure.string :as str])
  (:import (clojure.lang RT)))

(set! *warn-on-reflection* true)

;; Nearly every namespace requires this one before it imports a class of the Java core. Without this check, what is missing
;; would be the first class that somebody imports.
(when-not (.getResource (RT/baseLoader) "bpfmap/sys/Codec.class")
  (throw (ex-info (str "The Java core of bpfmap is not compiled: run bin/clj -T:build javac in its checkout, "
                       "or clojure -X:deps prep in a project that depends on it")
                  {:bpfmap/error :not-supported})))

(defn- cut [text]
  (if (< 200 (count text)) (str (subs text 0 200) "…") text))

(defn shown
  "Makes a value safe for error data: EDN scalars and collections stay, all else becomes a string.

  What is this library's own is the text that it prints as, anything else the
  name of its class. Collections are cut at 16 elements and strings at 200
  characters, so that an error about a large value stays readable.

      (shown [1 (Object.)]) ;=> [1 \"java.lang.Object\"]"
  [x]
  (cond
    (string? x) (cut x)
    (or (nil? x) (boolean? x) (number? x) (keyword? x) (symbol? x) (char? x)
        (uuid? x) (inst? x)) x
    (map? x) (into {} (map (fn [[k v]] [(shown k) (shown v)])) (take 16 x))
    (set? x) (into #{} (map shown) (take 16 x))
    (or (sequential? x)) (into [] (map shown) (take 16 x))
    (bytes? x) (str "byte[" (alength ^bytes x) "]")
    (str/starts-with? (.getName (class x)) "bpfmap.") (cut (str x))
    :else (.getName (class x))))

(defn error
  "Makes the exception of a kind, with a message for people and data for programs.

  `data` may use any of the keys of this namespace's table; nil values are left
  out. The hint, when there is one, ends the message too: a person who sees only the message
  sees all of it. Control characters in it are escaped, since names from anywhere may be in it.

      (throw (error :invalid-spec \"A spec needs :type\" {:bpfmap/path [:type]}))"
  (^Throwable [kind message data]
   (error kind message data nil))
  (^Throwable [kind message data cause]
   (let [data (into {:bpfmap/error kind} (remove (comp nil? val)) data)
         hint (:bpfmap/hint data)]
     (ex-info (escape/escape (cond-> message hint (str ": " hint))) data cause))))

(defn id-and-name
  "A map as messages name it, after the word: its id, and its name if it has one. Before Linux 4.13 maps have no ids.

      (id-and-name {:id 12 :name \"counts\"}) ;=> \"12 (counts)\""
  [{:keys [id name]}]
  (cond
    (seq name) (str id (when id " ") "(" name ")")
    id (str id)
    :else "without an id"))

(defn named-map?
  "Whether x is a map whose keys are all keywords, so that looking one up is safe: a sorted map may have keys that do not compare.

      (named-map? {:lock true}) ;=> true"
  [x]
  (and (map? x) (every? keyword? (keys x))))

(defn list-of
  "Joins names for a message: `:a, :b or :c`.

      (list-of [:a :b :c]) ;=> \":a, :b or :c\""
  [xs]
  (let [xs (map str xs)]
    (if (next xs)
      (str (str/join ", " (butlast xs)) " or " (last xs))
      (str (first xs)))))
