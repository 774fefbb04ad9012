(ns bpfmap.exec.where
  "Which rows, and in which order: a small language of conditions on the fields of rows, as text or as data.

      bytes>1000      src=10.0.0.1      name~^cali      type!=array      value.packets<=7
      [:> :bytes 1000]    [:or [:= :src \"10.0.0.1\"] [:matches :comm \"^ssh\"]]    [:not [:= :frozen true]]

  | in text      | as data             | holds where                                                       |
  |--------------|---------------------|-------------------------------------------------------------------|
  | `f=x` `f!=x` | `[:= f x]` `[:not= f x]` | the field is x                                               |
  | `f<x` `f<=x` `f>x` `f>=x` | `[:< f x]` … | numbers by size, texts by alphabet, bytes from left to right |
  | `f~x` `f!~x` | `[:matches f x]` `[:not [:matches f x]]` | the regular expression x is found in the field's text |
  |              | `[:and c …]` `[:or c …]` `[:not c]` | as it says                                        |

  A field is a column, or a path with dots into it: `key.src`, `value.0.packets`, `held.command`. Of the fields of an
  entry's key and value the last part does, the value's first: `bytes`. Of a vector or set without an index it is each of
  its elements, and a condition holds where it does for one of them; nothing at all is `nil`. What is compared
  with a number is read as one; bytes are written in hexadecimal. Nothing is evaluated."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [clojure.edn :as edn]
            [clojure.string :as str])
  (:import (java.util Comparator PriorityQueue)
           (java.util.regex Pattern PatternSyntaxException)))

(set! *warn-on-reflection* true)

;; --- fields

(defn path-of
  "A field as the names on the way to it; nil for what is no field.

      (path-of \"value.packets\") ;=> [\"value\" \"packets\"]"
  [field]
  (let [path (cond
               (keyword? field) (path-of (subs (str field) 1))
               (symbol? field) (path-of (str field))
               (string? field) (str/split field #"\." -1)
               (and (sequential? field) (every? #(or (keyword? %) (string? %) (symbol? %) (int? %)) field))
               (mapv #(if (or (int? %) (string? %)) (str %) (name %)) field))]
    (when (and (seq path) (not-any? str/blank? path))
      path)))

(defn- names-of
  "What a name on a path may be called in a map, and its number as an index; made once for each path."
  [name]
  {:keys [(keyword name) (keyword (str name "?")) name (parse-long name)]
   :index (when (re-matches #"[0-9]{1,9}" name) (parse-long name))})

(defn- step
  "What a map or vector has under a name; ::absent where it has not."
  [x {:keys [keys index]}]
  (cond
    (map? x) (reduce (fn [_ k]
                       (let [found (get x k ::absent)]
                         (if (identical? ::absent found) found (reduced found))))
                     ::absent keys)
    (and index (vector? x)) (nth x index ::absent)
    :else ::absent))

(defn- many? [x] (or (vector? x) (set? x) (seq? x)))

(defn- follow
  "All that is at a path, through every element where there are many."
  [x path]
  (if-let [[names & more] (seq path)]
    (let [found (step x names)]
      (cond
        (not (identical? ::absent found)) (follow found more)
        (many? x) (mapcat #(follow % path) x)
        :else nil))
    (cond
      (not (many? x)) [x]
      (seq x) (mapcat #(follow % nil) x)
      :else [nil])))

(defn- getter
  "A function from a row to all that it has at a path, see [[values-at]]."
  [path]
  (let [path (mapv names-of path)]
    (fn [row]
      (or (seq (follow row path))
          (seq (follow (:value row) path))
          (seq (follow (:key row) path))))))

(defn values-at
  "All that a row has at a path: of an entry, also what its value or else its key has there. Nil where it has none.

      (values-at {:key 7 :value {:packets 3}} [\"packets\"]) ;=> (3)"
  [row path]
  ((getter path) row))

(defn- leaf-paths [prefix x]
  (if (and (map? x) (seq x))
    (mapcat (fn [[k v]] (leaf-paths (conj prefix (if (keyword? k) (str/replace (subs (str k) 1) #"\?$" "") (str k))) v)) x)
    [(str/join "." prefix)]))

(defn- check-field
  "Throws `:usage` where a row has no such field, nor could have: on the way to it is neither nil nor an empty vector."
  [row path]
  (when-not (or (values-at row path)
                (some #(some nil? (values-at row (take % path))) (range 1 (count path))))
    (throw (error/error :usage (str "There is no field " (str/join "." path) "; the fields are "
                                    (str/join ", " (distinct (leaf-paths [] row))))
                        {}))))

;; --- comparing

(defn- rank [x]
  (cond
    (nil? x) 0
    (boolean? x) 1
    (number? x) 2
    (or (string? x) (ident? x) (char? x)) 3
    (bytes/byte-view? x) 4
    :else 5))

(defn- text-of [x]
  (cond
    (string? x) x
    (keyword? x) (subs (str x) 1)
    (or (number? x) (boolean? x) (char? x) (symbol? x) (bytes/byte-view? x)) (str x)
    :else (pr-str x)))

(defn- order-of-any [a b]
  (let [by-rank (compare (rank a) (rank b))]
    (cond
      (not (zero? by-rank)) by-rank
      (contains? #{0 1 2 4} (rank a)) (compare a b)
      :else (compare (text-of a) (text-of b)))))

(defn order
  "Compares any two fields: nothing, false and true, numbers, texts, bytes, and all else by what it prints as.

      (sort order [\"b\" 10 9 nil \"a\"]) ;=> (nil 9 10 \"a\" \"b\")"
  [a b]
  (if (and (number? a) (number? b))
    (compare a b)
    (order-of-any a b)))

(defn- edn [text]
  (try
    (edn/read-string {:readers {'bpfmap/bytes bytes/->bytes}} text)
    (catch RuntimeException _ ::none)))

(defn- like
  "What was given to compare with, as it must be to be compared with a field; ::none where it cannot be."
  [given x]
  (if-not (string? given)
    (cond
      (symbol? given) (like (str given) x)
      (and (keyword? given) (not (keyword? x))) (text-of given)
      :else given)
    (cond
      (nil? x) (when-not (contains? #{"nil" "-" ""} given) ::none)
      (boolean? x) (get {"true" true "yes" true "false" false "no" false} given ::none)
      (number? x) (let [n (edn given)] (if (number? n) n ::none))
      (bytes/byte-view? x) (try (bytes/->bytes given) (catch Exception _ ::none))
      (or (string? x) (ident? x) (char? x)) given
      :else (edn given))))

(defn- same? [x given]
  (cond
    (identical? ::none given) false
    (and (number? x) (number? given)) (== x given)
    (and (string? given) (or (ident? x) (char? x))) (= (text-of x) given)
    :else (= x given)))

(defn- ordered? [holds? x given]
  (and (not (identical? ::none given)) (= (rank x) (rank given)) (some? x)
       (holds? (order x given))))

(def ^:private tests
  "Operator to a function of what was given, that makes a test of a field."
  {:= (fn [given] #(same? % (like given %)))
   :< (fn [given] #(ordered? neg? % (like given %)))
   :<= (fn [given] #(ordered? (complement pos?) % (like given %)))
   :> (fn [given] #(ordered? pos? % (like given %)))
   :>= (fn [given] #(ordered? (complement neg?) % (like given %)))
   :matches (fn [given]
              (let [pattern (if (instance? Pattern given) given (Pattern/compile (text-of given)))]
                #(and (some? %) (re-find pattern (text-of %)))))})

;; --- conditions

(def ^:private in-text
  {"=" :=, "!=" :not=, "<" :<, "<=" :<=, ">" :>, ">=" :>=, "~" :matches, "!~" :not-matches})

(defn- parse-text
  "A condition given as text, as data; nil for what is none."
  [text]
  (if (str/starts-with? (str/triml text) "[")
    (let [data (edn text)] (when (vector? data) data))
    (let [[_ field op given] (re-matches #"(?s)\s*([^=<>!~\s]+)\s*(!=|<=|>=|!~|=|<|>|~)\s*(.*?)\s*" text)]
      (when field
        [(in-text op) field given]))))

(defn- checked
  "A condition as data whose fields are paths; throws an exception that says what is wrong."
  [condition]
  (let [wrong #(throw (ex-info (str/join %&) {}))
        [op & more] (when (vector? condition) condition)]
    (case op
      (:and :or) (into [op] (map checked) more)
      :not (if (= 1 (count more)) [:not (checked (first more))] (wrong ":not takes one condition"))
      :not= [:not (checked (assoc condition 0 :=))]
      :not-matches [:not (checked (assoc condition 0 :matches))]
      (:= :< :<= :> :>= :matches)
      (let [[field given] more
            path (path-of field)]
        (when-not (= 2 (count more)) (wrong (str op " takes a field and what to compare it with")))
        (when-not path (wrong (pr-str (error/shown field)) " is no field"))
        (when (= :matches op)
          (try
            (re-pattern (if (instance? Pattern given) given (text-of given)))
            (catch PatternSyntaxException e
              (wrong "the regular expression " (pr-str (text-of given)) " is not well formed: " (.getDescription e)))))
        [op path given])
      (wrong "a condition is like bytes>1000, src=10.0.0.1, name~^cali or [:or [:> :bytes 1000] [:= :src \"10.0.0.1\"]]"))))

(defn condition
  "A condition as checked data; throws an exception whose message says what is wrong with it.

      (condition \"bytes>1000\") ;=> [:> [\"bytes\"] \"1000\"]"
  [x]
  (checked (if (string? x) (parse-text x) x)))

(defn- fields-of [[op & more]]
  (if (contains? #{:and :or :not} op)
    (mapcat fields-of more)
    [(first more)]))

(defn- test-of [[op & more]]
  (case op
    :and (let [tests (mapv test-of more)] (fn [row] (every? #(% row) tests)))
    :or (let [tests (mapv test-of more)] (fn [row] (boolean (some #(% row) tests))))
    :not (complement (test-of (first more)))
    (let [[path given] more
          values (getter path)
          holds? ((tests op) given)]
      (fn [row] (boolean (some holds? (values row)))))))

;; --- rows

(defn selecting
  "A transducer that lets pass the rows for which all of `:where` hold, and no more than `:limit`.

      (into [] (selecting {:where [[:> [\"value\"] \"5\"]]}) [{:key 1 :value 9} {:key 2 :value 3}])
      ;=> [{:key 1 :value 9}]"
  [{:keys [where limit]}]
  (let [fields (mapcat fields-of where)
        tests (mapv test-of where)
        checked? (volatile! false)
        passes? (fn [row]
                  (when-not @checked? ; all rows of a command have the same fields
                    (run! #(check-field row %) fields)
                    (vreset! checked? true))
                  (every? #(% row) tests))]
    (cond
      (and where limit) (comp (filter passes?) (take limit))
      where (filter passes?)
      limit (take limit)
      :else (map identity))))

(defn column
  "What to sort by, as data: `{:path :descending?}`; nil for what is no column.

      (column \"-bytes\") ;=> {:path [\"bytes\"] :descending? true}"
  [x]
  (let [text (cond (string? x) x (keyword? x) (subs (str x) 1) (symbol? x) (str x))
        descending? (boolean (some-> text (str/starts-with? "-")))
        path (path-of (if text (if descending? (subs text 1) text) x))]
    (when path
      {:path path :descending? descending?})))

(defn- worst-first
  "An order of `[key number row]` in which what comes last in `order` comes first, and of equals the later."
  [order]
  (fn [[a i] [b j]]
    (let [by-key (long (order b a))]
      (if (zero? by-key) (compare j i) by-key))))

(defn top
  "The first n of what is reducible in an order of what `(f row)` is, or all in that order where n is nil. Of a million rows
  no more than n are kept, and each is looked into once.

      (top 2 identity compare [3 1 2]) ;=> [1 2]"
  [n f order reducible]
  (let [worst-first (worst-first order)
        kept (PriorityQueue. 11 ^Comparator worst-first)
        most (long (or n Long/MAX_VALUE))]
    (reduce (fn [^long i row]
              (.add kept [(f row) i row])
              (when (< most (.size kept)) (.poll kept))
              (inc i))
            0 reducible)
    (loop [rows ()]
      (if-let [[_ _ row] (.poll kept)]
        (recur (conj rows row))
        (vec rows)))))

(defn rows
  "The rows of something reducible that the options ask for, as a vector: `:where`, `:sort`, `:limit`.

      (rows {:sort (column \"id\") :limit 1} [{:id 2} {:id 1}]) ;=> [{:id 1}]"
  [{:keys [sort limit] :as options} reducible]
  (if-let [{:keys [path descending?]} sort]
    (let [values (getter path)
          checked? (volatile! false)]
      (top limit
           (fn [row]
             (when-not @checked?
               (check-field row path)
               (vreset! checked? true))
             (first (values row)))
           (if descending? #(order %2 %1) order)
           (eduction (selecting (dissoc options :limit)) reducible)))
    (into [] (selecting options) reducible)))
