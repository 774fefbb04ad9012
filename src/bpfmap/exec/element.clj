(ns bpfmap.exec.element
  "Keys and values as a user gives them: data, or text that the map's types turn into data."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.reference :as reference]
            [bpfmap.impl.edn :as edn]
            [bpfmap.impl.sys.paths :as paths]
            [bpfmap.rules :as rules]
            [bpfmap.type.node :as node]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.util Arrays)))

(set! *warn-on-reflection* true)

(defn- node-of [{:keys [types] :as spec} side]
  (when-some [type (get spec side)]
    (node/node type types [side])))

(defn- of-references?
  "Whether keys or values of a map go in as references, whatever type they have."
  [{:keys [type]} side]
  (contains? (get-in (rules/types type) [:refers side]) :in))

(defn- of-path?
  "Whether a text is the path of what a map refers to."
  [spec side text]
  (and (of-references? spec side) (str/includes? text "/")))

(def ^:private as-text
  "Kinds of types whose values are texts, which need no quotes."
  #{:ipv4 :ipv6 :mac :prefix :string})

(defn- quoted? [text]
  (and (str/starts-with? text "\"") (str/ends-with? text "\"") (< 1 (count text))))

(defn- hex-bytes
  "The bytes of a text such as `0a 00 00 00` or `0a:00:00:00`, if it has so many; of one such as 0x0a000000 too if `plain?`."
  [text size plain?]
  (when (re-matches (if plain? #"(?i)0x([0-9a-f]{2})+|[0-9a-f]{2}([ :]?[0-9a-f]{2})*" #"(?i)[0-9a-f]{2}([ :][0-9a-f]{2})+") text)
    (let [found (bytes/->bytes text)]
      (when (= size (count found)) found))))

(defn- edn-of
  "The one form that a text is; symbols do for keywords. Throws `:usage` for any other text."
  [side text]
  (try
    (arguments/with-keywords (edn/read-text text))
    (catch ExceptionInfo e
      (throw (arguments/refused nil side text (str "neither EDN nor bytes in hexadecimal: "
                                                   (:bpfmap/problem (ex-data e) (ex-message e))))))))

(defn- raw-text
  "The bytes of a text that is not UTF-8, for a type of texts, padded to its size; see `bpfmap.impl.sys.paths/argument`. Throws
  `:usage` for any other type. Nil for a text that is UTF-8."
  [side text kind size]
  (when (re-find #"[\ud800-\udfff]" text) ; a lone one: a pair is one character
    (let [bytes (paths/exact-bytes text)]
      (if (and (#{:string :c-string :bytes} kind) ; the map is opened again with bytes for them
               bytes (<= (alength bytes) (long size)))
        (bytes/->bytes (Arrays/copyOf bytes (int size)))
        (throw (arguments/refused nil side (paths/text (or bytes (byte-array 0)))
                                  "it is not UTF-8; give the bytes of all of it in hexadecimal"))))))

(defn typed
  "What a text is as the key or value of a map with this spec; data stays as it is. Bytes in hexadecimal, which any type
  takes, come as a byte view.

      (typed {:key :ipv4} :key \"10.0.0.1\") ;=> \"10.0.0.1\"
      (typed {:key :u32} :key \"7\")         ;=> 7
      (typed {:key :u32} :key \"07 00 00 00\") ;=> #bpfmap/bytes \"07 00 00 00\""
  [spec side x]
  (let [text (cond (string? x) x (symbol? x) (str x))
        {:keys [kind size]} (when text (node-of spec side))]
    (cond
      (nil? text) (if (coll? x) (arguments/with-keywords x) x)
      (of-path? spec side text) text
      (raw-text side text kind size) (raw-text side text kind size)
      (of-references? spec side) (edn-of side text)
      (= :bytes kind) (or (hex-bytes text size true)
                          (if (re-find #"^[\[#\"]" text) (edn-of side text) (bytes/->bytes text)))
      (as-text kind) (if (quoted? text) (edn-of side text) text)
      (and (= :char kind) (= 1 (count text))) (first text)
      :else (or (hex-bytes text size (contains? #{:struct :union :array} kind))
                (edn-of side text)))))

(defn- mistyped?
  "Whether bytes were given for a type of another kind."
  [spec side x]
  (and (bytes/byte-view? x) (not= :bytes (:kind (node-of spec side)))))

(defn- side-of
  "The side of a spec that types what was given: a bloom filter has no keys, and is asked for values."
  [spec side]
  (if (and (= :key side) (nil? (:key spec))) :value side))

(defn call-typed
  "Opens the map of a command's options, makes data of those of its `sides` that are given, and calls f with the map and them.

  Where bytes were given for a key or value that has a type, the map is opened with
  bytes for that type."
  [options access sides f]
  (let [given (select-keys options sides)
        attempt (fn [options]
                  (with-open [m (reference/open options access)]
                    (let [spec (bpf/spec m)
                          data (into {} (map (fn [[side x]] [side (typed spec (side-of spec side) x)])) given)
                          raw (filter #(mistyped? spec (side-of spec %) (data %)) (keys data))]
                      (if (seq raw)
                        [::again (into {} (map (fn [side] [({:key :key-type :value :value-type} (side-of spec side))
                                                           [:bytes (count (data side))]])) raw)]
                        (f m data)))))
        result (attempt options)]
    (if (and (vector? result) (= ::again (first result)))
      (attempt (merge options (second result)))
      result)))
