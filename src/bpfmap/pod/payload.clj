(ns ^:no-doc bpfmap.pod.payload
  "Converts arguments and results of calls to and from EDN, with tags for other values.

  | tag                  | stands for                                            |
  |----------------------|-------------------------------------------------------|
  | `#bpfmap/bytes`      | a byte view                                           |
  | `#bpfmap/map` …      | an open object, see `bpfmap.pod.handles`              |

  Reading never evaluates code and accepts only these tags and the tags of EDN. A value that could
  not be read back as the same value is rejected."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.edn :as edn]
            [bpfmap.pod.handles :as handles]
            [clojure.string :as str])
  (:import (bpfmap.impl.map.batch_ops Entries)
           (clojure.lang ExceptionInfo)
           (java.io StringWriter Writer)))

(set! *warn-on-reflection* true)

;; --- reading

(defn- unreadable
  ([message hint] (unreadable message hint nil))
  ([message hint cause]
   (error/error :invalid-value message {:bpfmap/hint hint} cause)))

(defn- unknown-tag [tag _]
  (throw (if (= 'object tag)
           (unreadable "The arguments must be data"
                       "send no functions, arrays or other objects; use (->bytes …) for bytes")
           (unreadable (str "Unknown tag in the arguments: #" tag)
                       (str "use #bpfmap/bytes, "
                            (str/join ", " (map #(str "#" %) handles/tags)) ", #inst and #uuid")))))

(defn- read-edn [text readers]
  (try
    (edn/read-text text {:readers readers :default unknown-tag})
    (catch ExceptionInfo e
      (throw (if-let [problem (:bpfmap/problem (ex-data e))]
               (unreadable "The arguments must be EDN" problem e)
               e)))))

(defn- read-with
  "Returns arguments as a vector. `object` resolves the tag and form of a handle."
  [object text]
  (let [args (read-edn text (into {} (map (fn [tag] [tag #(object tag %)])) handles/tags))]
    ;; Some clients send nil for a call without arguments.
    (when-not (or (nil? args) (sequential? args))
      (throw (unreadable "The arguments of a call must be a vector" nil)))
    (vec args)))

(defn read-args
  "Returns the arguments of a call as a vector, with handles resolved.

  A closed handle throws `:closed`, or becomes `when-closed` if that is given. Throws `:not-found`
  for a handle of another pod, and `:invalid-value` for text that is not EDN or has unknown tags.

      (read-args table \"[#bpfmap/map {:handle 1 …} 7]\") ;=> [m 7]"
  ([table text] (read-with #(handles/object table %1 %2) text))
  ([table text when-closed] (read-with #(handles/object table %1 %2 when-closed) text)))

;; --- writing

(declare write-value)

(defn- write-all [^Writer w table open close between write xs]
  (.write w ^String open)
  (loop [xs (seq xs) first? true]
    (when xs
      (when-not first? (.write w ^String between))
      (write w table (first xs))
      (recur (next xs) false)))
  (.write w ^String close))

(defn- write-entry [^Writer w table [k v]]
  (write-value w table k)
  (.write w " ")
  (write-value w table v))

(defn- unwritable [x]
  (error/error :not-supported
               (str "The result must be data, got " (error/printed x)) nil))

(defn- name-readable?
  "Returns true if a keyword or symbol can be read back.

  Names from elsewhere can contain any text."
  [x]
  (re-matches #"[^\s,;\"'`~@^\\(){}\[\]]+" (str x)))

(defn- write-value [^Writer w table x]
  (cond
    (or (keyword? x) (symbol? x)) (if (name-readable? x)
                                    (print-method x w)
                                    (throw (unwritable (str x))))
    (or (nil? x)
        (boolean? x)
        (number? x)
        (string? x)
        (char? x)
        (inst? x)
        (uuid? x)
        (bytes/byte-view? x)) (print-method x w)
    (handles/openable? x) (print-method (handles/handle table x) w)
    (map? x) (write-all w table "{" "}" ", " write-entry x)
    (set? x) (write-all w table "#{" "}" " " write-value x)
    (or (sequential? x) (instance? Entries x)) (do (when-let [skipped (:skipped (meta x))]
                                                     (.write w "^{:skipped ")
                                                     (write-value w table skipped)
                                                     (.write w "} "))
                                                   (write-all w table "[" "]" " " write-value x))
    :else (throw (unwritable x))))

(defn write
  "Returns a result as EDN text.

  Objects become handles. The metadata `:skipped` of a list stays. Throws `:not-supported` for
  objects that are not data.

      (write table {:name \"counts\"}) ;=> \"{:name \\\"counts\\\"}\""
  [table x]
  (binding [*print-length* nil, *print-level* nil, *print-dup* false, *print-meta* false
            *print-readably* true
            *print-namespace-maps* false]
    (let [w (StringWriter.)]
      (write-value w table x)
      (str w))))
