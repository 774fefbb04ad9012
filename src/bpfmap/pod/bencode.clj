(ns ^:no-doc bpfmap.pod.bencode
  "Bencode, the format of the messages between a pod and its client.

  Texts, integers, lists, and dictionaries with texts as keys: `d2:op8:describee` is `{\"op\"
  \"describe\"}`.

  Reading is strict and bounded. What is no bencode is refused at its first wrong byte, where a
  reader that takes anything for a digit would wait for the rest of a message that never was one;
  and a length that is only claimed takes no memory."
  (:require [bpfmap.error :as error])
  (:import (java.io ByteArrayOutputStream InputStream OutputStream)
           (java.nio ByteBuffer)
           (java.nio.charset CharacterCodingException StandardCharsets)
           (java.util Arrays Comparator)))

(set! *warn-on-reflection* true)

(def ^:const most-bytes
  "The longest message that is read, in bytes: 256 MiB."
  (* 256 1024 1024))

(def ^:private ^:const deepest "How many lists and dictionaries may stand within one another." 64)

(defn- refuse [message]
  (throw (error/error :invalid-message message nil)))

;; --- reading

;; What one message is read from; `left` holds how many bytes it may still have.
(deftype Source [^InputStream in ^longs left])

(defn- taking
  "Takes n bytes off those that the message may still have."
  [^Source source ^long n]
  (let [^longs left (.-left source)
        remaining (- (aget left 0) n)]
    (when (neg? remaining)
      (refuse (str "The message is longer than " most-bytes " bytes")))
    (aset left 0 remaining)))

(defn- ended [] (refuse "The input ends within a message"))

(defn- byte-of
  "The next byte."
  ^long [^Source source]
  (taking source 1)
  (let [b (.read ^InputStream (.-in source))]
    (if (neg? b) (ended) b)))

(defn- bytes-of
  "The next n bytes."
  ^bytes [^Source source ^long n]
  (taking source n)
  (let [bytes (.readNBytes ^InputStream (.-in source) (int n))]
    (if (= (alength bytes) n) bytes (ended))))

(defn- shown [^long b]
  (if (< 32 b 127) (str "`" (char b) "`") (str "byte " b)))

(defn- digit? [^long b] (<= 48 b 57))

(defn- number
  "The number that stands before a byte that ends it; `sign` is \"\" or \"-\". `first` is its
  first digit, read before."
  ^long [source sign first end]
  (loop [digits (StringBuilder. ^String sign) b (long first)]
    (cond
      (digit? b) (if (< (.length digits) 20) ; no 64 bits have more
                   (recur (.append digits (char b)) (byte-of source))
                   (refuse "Not bencode: a number that does not fit into 64 bits"))
      (not= b (int end)) (refuse (str "Not bencode: " (shown b) " within a number"))
      (re-matches #"-?|-0|-?0.+"
                  digits) (refuse (str "Not bencode: a number that is written "
                                       (pr-str (str digits))))
      :else (or (parse-long (str digits))
                (refuse "Not bencode: a number that does not fit into 64 bits")))))

(defn- integer [source]
  (let [b (byte-of source)]
    (if (= b (int \-))
      (number source "-" (byte-of source) \e)
      (number source "" b \e))))

(defn- text [source first]
  (let [bytes (bytes-of source (number source "" first \:))]
    (try
      (str (.decode (.newDecoder StandardCharsets/UTF_8) (ByteBuffer/wrap bytes)))
      (catch CharacterCodingException _
        (refuse "A text in the message is not UTF-8")))))

(declare value)

(defn- items
  "What stands up to the `e` that ends a list or a dictionary."
  [source depth]
  (when (< (long deepest) (long depth))
    (refuse (str "Not bencode that a pod takes: more than " deepest
                 " lists or dictionaries within one another")))
  (loop [found (transient [])]
    (let [b (byte-of source)]
      (if (= b (int \e))
        (persistent! found)
        (recur (conj! found (value source b depth)))))))

(defn- dictionary [source depth]
  (let [found (items source depth)]
    (when (odd? (count found))
      (refuse "Not bencode: a dictionary with a key that has no value"))
    (when-not (every? string? (take-nth 2 found))
      (refuse "Not bencode: a dictionary with a key that is no text"))
    (apply hash-map found)))

(defn- value [source b depth]
  (case (char b)
    \d (dictionary source (inc (long depth)))
    \l (items source (inc (long depth)))
    \i (integer source)
    (text source b)))

(defn read-message
  "Reads the next message, a dictionary: a map from text to texts, integers, vectors and maps. Nil
  where the input ends.

  Throws `:invalid-message` for anything else, also for input that ends within a message; what
  follows in the input cannot be read then.

      (read-message in) ;=> {\"op\" \"describe\"}"
  [^InputStream in]
  (let [b (.read in)]
    (cond
      (neg? b) nil
      (= b (int \d)) (value (Source. in (long-array [(dec most-bytes)])) b 0)
      :else (refuse (str "Not bencode: a message begins with `d`, not " (shown b))))))

;; --- writing

(defn- utf-8 ^bytes [^String s]
  (.getBytes s StandardCharsets/UTF_8))

(defn- write-bytes [^ByteArrayOutputStream out ^bytes bytes]
  (doto out
    (.writeBytes (utf-8 (str (alength bytes) ":")))
    (.writeBytes bytes)))

(def ^:private ^Comparator by-bytes "The order of keys: that of their bytes."
  (reify Comparator
    (compare [_ a b] (Arrays/compareUnsigned ^bytes a ^bytes b))))

(defn- write-value [^ByteArrayOutputStream out x]
  (cond
    (string? x) (write-bytes out (utf-8 x))
    (int? x) (.writeBytes out (utf-8 (str "i" x "e")))
    (map? x) (do (.write out (int \d))
                 (doseq [[k v] (sort-by first by-bytes (map (fn [[k v]] [(utf-8 k) v]) x))]
                   (write-bytes out k)
                   (write-value out v))
                 (.write out (int \e)))
    (sequential? x) (do (.write out (int \l))
                        (run! #(write-value out %) x)
                        (.write out (int \e)))
    :else (throw (error/error :invalid-value
                              (str "Nothing that bencode has: " (pr-str (error/shown x))) nil))))

(defn write-message
  "Writes a message, a map from text to texts, integers, sequences and maps, in one piece, and
  flushes.

      (write-message out {\"id\" \"1\" \"status\" [\"done\"]})"
  [^OutputStream out message]
  (let [bytes (ByteArrayOutputStream. 256)]
    (write-value bytes message)
    (.writeTo bytes out)
    (.flush out)))
