(ns ^:no-doc bpfmap.metrics.page.markup
  "Writes HTML and SVG from data.

  The data is vectors: `[:a {:href \"/\"} \"all maps\"]`, and sequences of them. Every text and every value of an attribute
  is escaped. [[written]] marks the results of [[html]] for use inside other data; nothing else is
  taken as markup. The result is XML too, so that an XML parser can read it."
  (:require [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def ^:private void
  "Elements without content."
  #{:br :col :input :link :meta :circle :line :path :polyline :rect})

(defn- append-escaped
  "Appends a text with the characters of markup as references.

  Characters that XML does not allow become U+FFFD."
  [^StringBuilder out ^String s]
  (let [n (.length s)]
    (loop [i 0]
      (when (< i n)
        (let [c (.codePointAt s i)]
          (case c
            38 (.append out "&amp;")
            60 (.append out "&lt;")
            62 (.append out "&gt;")
            34 (.append out "&quot;")
            39 (.append out "&#39;")
            (if (or (<= 0x20 c 0xd7ff) (<= 0xe000 c 0xfffd) (<= 0x10000 c) (= 9 c) (= 10 c))
              (.appendCodePoint out c)
              (.append out "\ufffd")))
          (recur (+ i (Character/charCount c))))))))

;; Markup that [[html]] has written.
(deftype ^:private Written [^String text])

(defn written
  "Returns texts that [[html]] returned as data, which is not escaped again."
  [texts]
  (Written. (str/join texts)))

(defn- append-node [^StringBuilder out x]
  (cond
    (nil? x) nil
    (instance? Written x) (.append out (.-text ^Written x))
    (and (vector? x) (keyword? (first x)))
    (let [[tag & more] x
          attributes (when (map? (first more)) (first more))
          children (if attributes (rest more) more)
          tag-name (name tag)]
      (.append out "<")
      (.append out tag-name)
      (doseq [[k v] attributes :when (some? v)]
        (.append out " ")
        (.append out (name k))
        (.append out "=\"")
        (append-escaped out (str v))
        (.append out "\""))
      (if (void tag)
        (.append out "/>")
        (do
          (.append out ">")
          (run! #(append-node out %) children)
          (.append out "</")
          (.append out tag-name)
          (.append out ">"))))
    (sequential? x) (run! #(append-node out %) x)
    :else (append-escaped out (str x))))

(defn html
  "Returns data as the text of HTML.

      (html [:td {:class \"name\"} \"<b>\"]) ;=> \"<td class=\\\"name\\\">&lt;b&gt;</td>\""
  ^String [x]
  (let [out (StringBuilder.)]
    (append-node out x)
    (str out)))

(defn url
  "Returns a path with the parameters of a query; nil and empty ones are left out.

      (url \"/maps/12\" {:sort \"-bytes\" :where \"src=10.0.0.1\"})
      ;=> \"/maps/12?sort=-bytes&where=src%3D10.0.0.1\""
  [path params]
  (let [encode #(java.net.URLEncoder/encode (str %) java.nio.charset.StandardCharsets/UTF_8)
        query (str/join "&" (for [[k v] params :when (not (str/blank? (str v)))]
                              (str (name k) "=" (encode v))))]
    (if (= "" query) path (str path "?" query))))

(defn params
  "Returns the parameters of the query of a URL, as text by keyword.

  `known` are the parameters; others are ignored. A malformed one is left out.

      (params \"sort=-bytes&x=1\" [:sort]) ;=> {:sort \"-bytes\"}"
  [query known]
  (let [decode #(try
                  (java.net.URLDecoder/decode ^String % java.nio.charset.StandardCharsets/UTF_8)
                  (catch IllegalArgumentException _ nil))]
    (into {}
          (for [part (str/split (or query "") #"&")
                :let [[k v] (str/split part #"=" 2)
                      k (some #(when (= (name %) k) %) known)
                      v (when (and k v) (decode v))]
                :when (not (str/blank? v))]
            [k v]))))
