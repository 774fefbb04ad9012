(ns ^:no-doc bpfmap.pod.payload
  "What a call's arguments and results are between the pod and its client: EDN, with tags for what
  EDN has no word for.

  | tag                  | stands for                                            |
  |----------------------|-------------------------------------------------------|
  | `#bpfmap/bytes`      | a byte view                                           |
  | `#bpfmap/map` …      | what is open, see `bpfmap.pod.handles`                |

  Reading never evaluates anything, and knows no other tags than these and EDN's own. What cannot
  be written so that it is read as what it was is refused: nothing is sent that means something
  else."
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
           (unreadable "The arguments have something that is no data"
                       "functions, arrays and other objects stay with the client; bytes are written (->bytes …)")
           (unreadable (str "The arguments have a tag that the pod does not know: #" tag)
                       (str "it knows #bpfmap/bytes, "
                            (str/join ", " (map #(str "#" %) handles/tags)) ", #inst and #uuid")))))

(defn- read-edn [text readers]
  (try
    (edn/read-text text {:readers readers :default unknown-tag})
    (catch ExceptionInfo e
      (throw (if-let [problem (:bpfmap/problem (ex-data e))]
               (unreadable "The arguments are not EDN that the pod takes" problem e)
               e)))))

(defn- read-with
  "Arguments as a vector; `object` gives what the tag and the form of a handle stand for."
  [object text]
  (let [args (read-edn text (into {} (map (fn [tag] [tag #(object tag %)])) handles/tags))]
    ;; Nil: a client without arguments has no list of them
    (when-not (or (nil? args) (sequential? args))
      (throw (unreadable "The arguments of a call are a vector" nil)))
    (vec args)))

(defn read-args
  "The arguments of a call: a vector of what the text says, handles replaced by what they stand for.

  A handle that was closed throws `:closed`, unless `when-closed` is given, which then stands for
  it. Throws `:not-found` for a handle of another pod, `:invalid-value` for text that is not EDN
  or has other tags.

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
               (str "The result has something that a pod cannot send: " (pr-str (error/shown x)))
               {:bpfmap/hint "it is no data"}))

(defn- name-readable?
  "Whether a keyword or symbol is read as what it is: made of any text, as a name from elsewhere
  may be, it need not be."
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
  "A result as text. What is open gets a handle; the metadata `:skipped` of a list is kept. Throws
  `:not-supported` for what is no data.

      (write table {:name \"counts\"}) ;=> \"{:name \\\"counts\\\"}\""
  [table x]
  (binding [*print-length* nil, *print-level* nil, *print-dup* false, *print-meta* false
            *print-readably* true
            *print-namespace-maps* false]
    (let [w (StringWriter.)]
      (write-value w table x)
      (str w))))
