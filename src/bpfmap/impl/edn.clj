(ns ^:no-doc bpfmap.impl.edn
  "Reads EDN from outside: the command line, saved files, messages to the pod.

  Reading never evaluates anything. The known tags are `#bpfmap/bytes`, `#bpfmap/keyword`, `#inst`,
  `#uuid` and the tags of the caller. Reading is bounded: at most [[deepest]] nested collections,
  and [[longest-token]] characters in a number or name. Anything else throws `:invalid-edn`. All EDN
  that bpfmap reads is read here."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.edn-text :as edn-text]
            [clojure.edn :as edn]
            [clojure.string :as str])
  (:import (clojure.lang EdnReader$ReaderException ExceptionInfo LineNumberingPushbackReader)
           (java.io BufferedReader FilterReader PushbackReader Reader StringReader)))

(set! *warn-on-reflection* true)

(def ^:const deepest
  "The largest depth of nested collections: 100."
  100)

(def ^:const longest-token
  "The most characters of a number, keyword or symbol: 65,536.

  Strings have no limit."
  65536)

(defn- invalid
  ([problem] (invalid problem nil))
  ([problem cause]
   (error/error :invalid-edn (str "Not EDN that bpfmap reads: " problem) {:bpfmap/problem problem}
                cause)))

;; --- the bounds

;; Indexes of the state of a scan. The mode is one of those below.
(def ^:private ^:const mode 0)
(def ^:private ^:const depth 1)
(def ^:private ^:const token 2)

(def ^:private ^:const normal 0)
(def ^:private ^:const in-string 1)
(def ^:private ^:const in-escape 2)
(def ^:private ^:const in-character 3)
(def ^:private ^:const in-comment 4)

(defn- scan-normal
  "Takes note of a character outside strings and comments."
  [^ints state ^long c]
  (let [token-ends #(aset state token (int 0))]
    (case c
      34 (do (token-ends) (aset state mode (int in-string)))
      59 (do (token-ends) (aset state mode (int in-comment)))
      92 (aset state mode (int in-character))
      (40 91 123) (let [d (inc (aget state depth))]
                    (token-ends)
                    (when (< (long deepest) d)
                      (throw (invalid (str "more than " deepest
                                           " collections within one another"))))
                    (aset state depth (int d)))
      (41 93 125) (do (token-ends) (aset state depth (int (max 0 (dec (aget state depth))))))
      (if (or (= c 44) (Character/isWhitespace (int c)))
        (token-ends)
        (let [n (inc (aget state token))]
          (when (or (< c 32) (= c 127))
            (throw (invalid (format "the control character \\u%04x" c))))
          (when (< (long longest-token) n)
            (throw (invalid (str "a number or name of more than " longest-token " characters"))))
          (aset state token (int n)))))))

(defn- scan
  "Holds n characters against the bounds, and keeps in `state` where that left off."
  [^ints state ^chars chars offset n]
  (let [end (+ (long offset) (long n))]
    (loop [i (long offset)]
      (when (< i end)
        (let [c (long (int (aget chars i)))]
          (case (aget state mode)
            0 (scan-normal state c)
            1 (case c
                34 (aset state mode (int normal))
                92 (aset state mode (int in-escape))
                nil)
            2 (aset state mode (int in-string))
            3 (aset state mode (int normal))
            4 (when (or (= c 10) (= c 13)) (aset state mode (int normal))))
          (recur (inc i)))))))

(defn bounded-reader
  "Returns a PushbackReader of EDN within the bounds, for [[read-form]].

  Reading from it throws `:invalid-edn` beyond the bounds. Closing it closes the reader below.

      (read-form (bounded-reader (StringReader. \"[1 2]\")) {}) ;=> [1 2]"
  ^PushbackReader [^Reader below]
  (let [state (int-array 3)
        guard (proxy [FilterReader] [below]
                (read
                  ([] (throw (UnsupportedOperationException.))) ; a BufferedReader fills its buffer
                  ([chars offset length]
                   (let [n (.read below ^chars chars (int offset) (int length))]
                     (when (pos? n) (scan state chars offset n))
                     n))))]
    (PushbackReader. (BufferedReader. guard))))

;; --- reading

(defn- unknown-tag [tag _]
  (throw (invalid (str "the tag #" tag " is unknown"))))

(defn- unwrapped
  "Returns the exception that a RuntimeException of the reader wraps, or itself.

  A reader that counts lines wraps every exception, and others that of a tag's function."
  [^RuntimeException e]
  (let [cause (ex-cause e)]
    (if (or (instance? EdnReader$ReaderException e) (:bpfmap/error (ex-data cause)))
      cause
      e)))

(defn read-form
  "Reads and returns the next form of a [[bounded-reader]].

  | option     | meaning                                                     |
  |------------|-------------------------------------------------------------|
  | `:readers` | functions of tags besides the usual ones                    |
  | `:default` | a function of an unknown tag and its form; default: throws   |
  | `:eof`     | the result at the end; default: throws                      |

  Throws `:invalid-edn`, and `:no-memory` if the form does not fit into the JVM's heap. An
  IOException is rethrown.

      (read-form (bounded-reader (StringReader. \"\")) {:eof nil}) ;=> nil"
  [^PushbackReader reader {:keys [readers default] :as options}]
  (try
    (edn/read (assoc options :readers (merge edn-text/readers readers) :default
                     (or default unknown-tag))
              reader)
    (catch ExceptionInfo e
      (throw (if (:bpfmap/error (ex-data e)) e (invalid (ex-message e) e))))
    (catch RuntimeException e
      (let [e (unwrapped e)]
        (throw (if (:bpfmap/error (ex-data e))
                 e
                 (invalid (or (ex-message e) (str (class e))) e)))))
    (catch StackOverflowError e
      (throw (invalid "tags or metadata nested too deep" e)))
    (catch OutOfMemoryError e
      (throw (error/error :no-memory "The text needs more memory than the JVM may use"
                          {:bpfmap/hint "give it more with the JVM's option -Xmx"} e)))))

(defn- at-line
  "Returns an exception of [[read-form]] with the line at which the reader stopped.

  It stays as it is if the text has one line, and beyond the bounds, which are checked ahead."
  ^Throwable [^PushbackReader reader e]
  (let [{:bpfmap/keys [problem]} (ex-data e)]
    (if (and problem (ex-cause e) (instance? LineNumberingPushbackReader reader))
      (invalid (str "line " (.getLineNumber ^LineNumberingPushbackReader reader) ": " problem)
               (ex-cause e))
      e)))

(defn read-forms
  "Reads all forms of a text, as a vector, with the options of [[read-form]].

      (read-forms \"1 :a\") ;=> [1 :a]"
  ([text] (read-forms text {}))
  ([text options]
   (let [reader (cond-> (bounded-reader (StringReader. text))
                  (str/includes? text "\n") (LineNumberingPushbackReader.))
         end (Object.)
         read-next #(try
                      (read-form reader (assoc options :eof end))
                      (catch ExceptionInfo e
                        (throw (at-line reader e))))]
     (loop [forms []]
       (let [form (read-next)]
         (if (identical? end form) forms (recur (conj forms form))))))))

(defn read-text
  "Reads a text that has exactly one form, and returns the form.

  The options are the same as of [[read-form]]. Throws `:invalid-edn` for a text without a form, or
  with more than one.

      (read-text \"{:src 1}\") ;=> {:src 1}"
  ([text] (read-text text {}))
  ([text options]
   (let [forms (read-forms text options)]
     (case (count forms)
       0 (throw (invalid "it is empty"))
       1 (first forms)
       (throw (invalid "there is more than one form"))))))
