(ns ^:no-doc bpfmap.pod.bencode
  "Reads and writes bencode, the format of the messages between a pod and its client.

  It has strings, integers, lists, and dictionaries with strings as keys: `d2:op8:describee` is
  `{\"op\" \"describe\"}`.

  Reading is strict and bounded. Invalid input is rejected at its first wrong byte. A lenient reader
  would wait for the rest of a message that never comes. A length alone allocates no memory."
  (:require [bpfmap.error :as error])
  (:import (java.io ByteArrayOutputStream InputStream OutputStream)
           (java.nio ByteBuffer)
           (java.nio.charset CharacterCodingException StandardCharsets)
           (java.util Arrays Comparator)))

(set! *warn-on-reflection* true)

(def ^:const most-bytes
  "The size limit of a message: 256 MiB."
  (* 256 1024 1024))

(def ^:private ^:const deepest "The maximum depth of lists and dictionaries." 64)

(defn- refuse [message]
  (throw (error/error :invalid-message message nil)))

;; --- reading

;; The source of one message. `left` is the number of bytes that it may still have.
(deftype Source [^InputStream in ^longs left])

(defn- taking
  "Reduces the number of bytes that the message may still have by n."
  [^Source source ^long n]
  (let [^longs left (.-left source)
        remaining (- (aget left 0) n)]
    (when (neg? remaining)
      (refuse (str "The message is longer than " most-bytes " bytes")))
    (aset left 0 remaining)))

(defn- ended [] (refuse "The input ends within a message"))

(defn- byte-of
  "Returns the next byte."
  ^long [^Source source]
  (taking source 1)
  (let [b (.read ^InputStream (.-in source))]
    (if (neg? b) (ended) b)))

(defn- bytes-of
  "Returns the next n bytes."
  ^bytes [^Source source ^long n]
  (taking source n)
  (let [bytes (.readNBytes ^InputStream (.-in source) (int n))]
    (if (= (alength bytes) n) bytes (ended))))

(defn- shown [^long b]
  (if (< 32 b 127) (str "`" (char b) "`") (str "byte " b)))

(defn- digit? [^long b] (<= 48 b 57))

(defn- number
  "Returns the number before the byte `end`.

  `sign` is \"\" or \"-\". `first` is its first digit, read before."
  ^long [source sign first end]
  (loop [digits (StringBuilder. ^String sign) b (long first)]
    (cond
      (digit? b) (if (< (.length digits) 20) ; no 64-bit number is longer
                   (recur (.append digits (char b)) (byte-of source))
                   (refuse "Invalid bencode: a number must fit into 64 bits"))
      (not= b (int end)) (refuse (str "Invalid bencode: " (shown b) " within a number"))
      (re-matches #"-?|-0|-?0.+"
                  digits) (refuse (str "Invalid bencode: a number that is written "
                                       (pr-str (str digits))))
      :else (or (parse-long (str digits))
                (refuse "Invalid bencode: a number must fit into 64 bits")))))

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
        (refuse "The strings of a message must be UTF-8")))))

(declare value)

(defn- items
  "Returns the items of a list or dictionary, up to its `e`."
  [source depth]
  (when (< (long deepest) (long depth))
    (refuse (str "Invalid bencode: more than " deepest
                 " lists or dictionaries within one another")))
  (loop [found (transient [])]
    (let [b (byte-of source)]
      (if (= b (int \e))
        (persistent! found)
        (recur (conj! found (value source b depth)))))))

(defn- dictionary [source depth]
  (let [found (items source depth)]
    (when (odd? (count found))
      (refuse "Invalid bencode: every key of a dictionary must have a value"))
    (when-not (every? string? (take-nth 2 found))
      (refuse "Invalid bencode: every key of a dictionary must be a string"))
    (apply hash-map found)))

(defn- value [source b depth]
  (case (char b)
    \d (dictionary source (inc (long depth)))
    \l (items source (inc (long depth)))
    \i (integer source)
    (text source b)))

(defn read-message
  "Reads the next message, a dictionary; nil at the end of the input.

  Returns a map from strings to strings, integers, vectors and maps. Throws `:invalid-message` for
  anything else, and for an incomplete message. The rest of the input cannot be read then.

      (read-message in) ;=> {\"op\" \"describe\"}"
  [^InputStream in]
  (let [b (.read in)]
    (cond
      (neg? b) nil
      (= b (int \d)) (value (Source. in (long-array [(dec most-bytes)])) b 0)
      :else (refuse (str "Invalid bencode: a message must begin with `d`, got " (shown b))))))

;; --- writing

(defn- utf-8 ^bytes [^String s]
  (.getBytes s StandardCharsets/UTF_8))

(defn- write-bytes [^ByteArrayOutputStream out ^bytes bytes]
  (doto out
    (.writeBytes (utf-8 (str (alength bytes) ":")))
    (.writeBytes bytes)))

(def ^:private ^Comparator by-bytes "The order of keys: by their bytes."
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
                              (str "Nothing that bencode has: " (error/printed x)) nil))))

(defn write-message
  "Writes a message in one piece and flushes.

  A message is a map from strings to strings, integers, sequences and maps.

      (write-message out {\"id\" \"1\" \"status\" [\"done\"]})"
  [^OutputStream out message]
  (let [bytes (ByteArrayOutputStream. 256)]
    (write-value bytes message)
    (.writeTo bytes out)
    (.flush out)))
