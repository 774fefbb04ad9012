(ns ^:no-doc bpfmap.exec.entry-file
  "Reads entries for a map from a file or standard input: EDN, JSON or CSV, as `dump` prints them.

  | format | contents                                                                          |
  |--------|-----------------------------------------------------------------------------------|
  | EDN    | rows `{:key … :value …}` or pairs `[key value]`, in a vector or one after another, |
  |        | or one map of keys to values                                                      |
  | JSON   | rows `{\"key\": …, \"value\": …}`, in an array or one on each line                      |
  | CSV    | a header line with the columns of `dump --csv`, and a line for each entry         |

  The end of the file's name chooses the format, or else the contents. All rows are converted and
  checked before one is written."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.progress :as progress]
            [bpfmap.exec.saved-file :as saved-file]
            [bpfmap.exec.wording :as wording]
            [bpfmap.impl.edn :as edn]
            [bpfmap.impl.field-path :as field-path]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.spec :as spec]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo LineNumberingPushbackReader)
           (java.io StringReader)))

(set! *warn-on-reflection* true)

(def ^:private most-problems "The number of problems that an error lists." 20)

(defn- unreadable
  "Returns the exception for a file that has no rows."
  [file hint]
  (error/error :invalid-value (str (error/shown file) " has no entries that can be read")
               {:bpfmap/op :put :bpfmap/file file :bpfmap/hint hint}))

;; --- EDN

(defn- skip-blanks
  "Skips blanks, commas and comments, and returns the next character, or -1."
  [^LineNumberingPushbackReader reader]
  (loop [comment? false]
    (let [c (.read reader)]
      (cond
        (neg? c) c
        (= 10 c) (recur false)
        comment? (recur true)
        (= (int \;) c) (recur true)
        (or (Character/isWhitespace c) (= (int \,) c)) (recur false)
        :else (do (.unread reader c) c)))))

(defn- row-keys? [x]
  (and (map? x) (seq x) (every? #{:key :value} (keys x))))

(defn- edn-row
  "Returns a form as a row, or a map as rows."
  [line form]
  (let [form (arguments/with-keywords form)]
    (cond
      (row-keys? form) [(assoc form :line line)]
      (and (vector? form) (= 2 (count form))) [{:line line :key (form 0) :value (form 1)}]
      (and (map? form) (not (:bpfmap/saved form)))
      (for [[k v] form] {:line line :key k :value v})
      :else [{:line line
              :problem (if (:bpfmap/saved form)
                         "it is a saved map: use restore --into"
                         (str "it must be {:key … :value …} or [key value], got "
                              (error/printed form)))}])))

(defn- edn-rows [text]
  ;; Throws for text that is nested too deep, or has too long a name.
  (slurp (edn/bounded-reader (StringReader. text)))
  (let [reader (LineNumberingPushbackReader. (StringReader. text))
        first-char (skip-blanks reader)
        in-vector? (= (int \[) first-char)
        ends? #(or (neg? (long %)) (and in-vector? (= (int \]) %)))]
    (when in-vector? (.read reader))
    (loop [rows []]
      (let [c (skip-blanks reader)
            line (.getLineNumber reader)]
        (if (ends? c)
          (if (and in-vector? (neg? (long c)))
            (conj rows {:line line :problem "the vector has no end"})
            rows)
          (let [form (try
                       (edn/read-form reader {})
                       (catch ExceptionInfo e e))]
            (if (instance? Throwable form)
              ;; What follows cannot be told apart.
              (conj rows {:line line
                          :problem (str/replace (:bpfmap/problem (ex-data form) (ex-message form))
                                                #"^java\.lang\.\w+: " "")})
              (recur (into rows (edn-row line form))))))))))

;; --- JSON

(defn- json-texts
  "Returns the values of a text, or of the array in it, as `[line text]` pairs."
  [^String text]
  (let [n (count text)
        start (- n (count (str/triml text)))
        in-array? (and (< start n) (= \[ (.charAt text start)))
        outer (if in-array? 1 0)]
    (loop [i start line (long (inc (count (filter #{\newline} (subs text 0 start)))))
           depth 0 in-string? false begin nil found []]
      (if (= i n)
        (cond-> found begin (conj [(second begin) (subs text (first begin))]))
        (let [c (.charAt text i)
              line (if (= \newline c) (inc line) line)
              next-i (inc i)
              end #(conj found [(second begin) (subs text (first begin) %)])]
          (cond
            in-string? (recur (if (= \\ c) (min n (inc next-i)) next-i) line depth
                              (not= \" c) begin found)
            (or (= \{ c) (= \[ c))
            (recur next-i line (inc depth) false
                   (or begin (when (= depth outer) [i line])) found)
            (or (= \} c) (= \] c))
            (if (and begin (= (dec depth) outer))
              (recur next-i line (dec depth) false nil (end next-i))
              (recur next-i line (dec depth) false begin found))
            (and (= depth outer) (or (= \, c) (Character/isWhitespace c)))
            (if begin
              (recur next-i line depth false nil (end i))
              (recur next-i line depth false nil found))
            :else (recur next-i line depth (= \" c) (or begin (when (= depth outer) [i line]))
                         found)))))))

(defn- json-rows [text]
  (let [read-str (requiring-resolve 'clojure.data.json/read-str)]
    (for [[line part] (json-texts text)]
      (let [row (try
                  (slurp (edn/bounded-reader (StringReader. part)))
                  (read-str part)
                  (catch Exception e e))]
        (cond
          (instance? Exception row) {:line line :problem "it is not JSON"}
          (and (map? row) (seq row) (every? #{"key" "value"} (keys row)))
          (assoc (update-keys row keyword) :line line)
          :else {:line line :problem (str "it must be {\"key\": …, \"value\": …}, got "
                                          (error/printed row))})))))

;; --- CSV

(defn- column
  "Returns the reader of a column: `{:side :keys :read}`, or `:problem`."
  [m options name]
  (let [[word & more :as path] (field-path/path-of name)
        side (#{:key :value} (keyword word))]
    (if-not side
      {:problem (str "the header must have columns such as key, key.src and value.rx, got "
                     (error/printed name))}
      (try
        (assoc (input/column-reader (bpf/spec m) side (with-meta (vec more) (meta path)) name
                                    (:cpus options))
               :side side)
        (catch ExceptionInfo e
          {:problem (ex-message e)})))))

(defn- vectors
  "Returns nested maps with vectors for maps whose keys are indices."
  [x]
  (if (and (map? x) (seq x) (not (contains? x ::leaf)))
    (if (every? int? (keys x))
      (mapv vectors (vals (into (sorted-map) x)))
      (update-vals x vectors))
    (::leaf x)))

(defn- csv-side
  "Returns the key or value in the cells of a row; nil if all of them are empty."
  [cells]
  (let [[[{:keys [keys whole]} cell] & more] cells]
    (if (and more (re-find #"^[\[{]" cell) (every? (comp #{""} second) more))
      (whole cell)
      (if (and (nil? more) (empty? keys))
        (when-not (= "" cell) ((:read (ffirst cells)) cell))
        (vectors (reduce (fn [data [{:keys [keys read]} cell]]
                           (if (= "" cell) data (assoc-in data keys {::leaf (read cell)})))
                         {} cells))))))

(defn- csv-row [columns line cells]
  (if-not (= (count cells) (count columns))
    {:line line :problem (str "it must have " (count columns) " cells, got " (count cells))}
    (try
      (into {:line line}
            (for [[side pairs] (group-by (comp :side first) (map vector columns cells))]
              [side (csv-side pairs)]))
      (catch ExceptionInfo e
        {:line line :problem (ex-message e)}))))

(defn- csv-rows [m options text]
  (let [[header & records] (try
                             ((requiring-resolve 'clojure.data.csv/read-csv) text)
                             (catch Exception _ nil))
        columns (map #(column m options %) header)
        newlines (fn [cells] (reduce + 1 (map #(count (filter #{\newline} %)) cells)))]
    (if-let [problem (some :problem columns)]
      (throw (unreadable (:file options) problem))
      (for [[line cells] (map vector (reductions + (inc 1) (map newlines records)) records)
            :when (not= [""] cells)]
        (csv-row columns line cells)))))

;; --- formats

(defn- format-of
  "Returns the format of a file, by the end of its name or by its contents."
  [file text]
  (or (case (some->> file (re-find #"(?i)\.([a-z]+)$") second str/lower-case)
        "edn" :edn
        ("json" "jsonl" "ndjson") :json
        "csv" :csv
        nil)
      (let [start (str/triml (subs text 0 (min 65536 (count text))))]
        (cond
          (re-find #"^\[?\s*\{\s*\"(?:[^\"\\]|\\.)*\"\s*:" start) :json
          (re-find #"^[\[{;]" start) :edn
          :else :csv))))

;; --- checking

(defn- converted
  "Returns a row with the data of its key and value, or with its `:problem`.

  `check` throws for data that does not fit the types."
  [spec keep check {:keys [problem line] :as row}]
  (if problem
    row
    (try
      (let [side-of (fn [side] (if (= :key side) (input/side-of spec :key) :value))
            typed (into {:line line}
                        (for [side [:key :value] :when (some? (get row side))]
                          [side (input/typed spec (side-of side) (get row side) keep)]))]
        (assoc typed :id (check typed)))
      (catch ExceptionInfo e
        {:line line :problem (ex-message e)}))))

(defn encoders
  "Returns the functions that encode keys and values of an open map.

  As `{:key-in :value-in}`. Returns nil for a map without keys, and for one whose keys or values are other objects.

      ((:key-in (encoders m)) 7) ;=> #bpfmap/bytes \"07 00 00 00\""
  [m]
  (let [{:keys [type] :as spec} (bpf/spec m)
        {:keys [ops refers]} (input/row-of-type type)]
    (when-not (or (contains? ops :push!) refers)
      (raw-entries/types (spec/complete (dissoc spec :pinning))
                         (some-> (input/cpus-of m) count)))))

(defn- checker
  "Returns a function that throws for a row that the map cannot hold.

  It returns what the row's key is the same by: its bytes, or its data."
  [m {:keys [cpus]}]
  (let [keyless? (contains? (:ops (input/row-of m)) :push!)
        possible (some-> (input/cpus-of m) count)
        value-of (if (and possible (= :all cpus)) #(vec (repeat possible %)) identity)
        {:keys [key-in value-in]} (encoders m)
        missing (fn [side] (throw (error/error :invalid-value (str "the " (name side)
                                                                   " is missing") {})))]
    (fn [{:keys [key value]}]
      (when (and (nil? key) (not keyless?)) (missing :key))
      (when (nil? value) (missing :value))
      (if key-in
        (do (value-in (value-of value)) (key-in key))
        key))))

(defn- refuse-problems [file rows]
  (let [problems (for [{:keys [line problem]} rows :when problem]
                   {:line line :message (wording/worded problem)})
        n (count problems)]
    (when (pos? n)
      (throw (error/error :invalid-value
                          (str (if (= 1 n) "1 entry" (str n " entries")) " of " (count rows) " in "
                               (error/shown file) " cannot be written, and nothing was")
                          {:bpfmap/op :put :bpfmap/file file
                           :bpfmap/problems (vec (take most-problems problems))})))))

(defn rows-of
  "Returns the entries in a text as checked rows for an open map; see [[rows]].

  `file` names the text in errors and chooses the format.

      (rows-of m {:file \"x.edn\"} \"[7 42]\" identity) ;=> [{:line 1, :key 7, :value 42, …}]"
  [m {:keys [file] :as options} text keep]
  (let [found (try
                (case (format-of file text)
                  :edn (edn-rows text)
                  :json (json-rows text)
                  :csv (csv-rows m options text))
                (catch ExceptionInfo e
                  (throw (if-let [problem (:bpfmap/problem (ex-data e))]
                           (unreadable file problem)
                           e))))
        check (checker m options)
        all (into [] (comp (map #(converted (bpf/spec m) keep check %))
                           (progress/counting "entries read"))
                  found)]
    (refuse-problems file all)
    all))

(defn rows
  "Returns the entries in a file as checked rows for an open map.

  A row is `{:line :key :value :id}`; `:id` is equal for equal keys.

  `file` is a path, or - for standard input. Objects that are opened for references go through
  `keep`. Throws `:invalid-value` if any row cannot be written; `:bpfmap/problems` lists them by
  line, at most 20.

      (rows m {:file \"flows.csv\"} identity) ;=> [{:line 2, :key 7, :value 42, …}]"
  [m {:keys [file] :as options} keep]
  (let [all (rows-of m options (saved-file/file-text file :put) keep)]
    (when (empty? all)
      (throw (unreadable file "it is empty")))
    all))
