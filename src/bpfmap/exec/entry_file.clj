(ns ^:no-doc bpfmap.exec.entry-file
  "Reads entries for a map from a file or standard input: EDN, JSON or CSV, as `dump` prints them.

  | format | contents                                                                          |
  |--------|-----------------------------------------------------------------------------------|
  | EDN    | rows `{:key … :value …}` or pairs `[key value]`, in a vector or one after another, |
  |        | or maps of keys to values                                                         |
  | JSON   | rows `{\"key\": …, \"value\": …}`, in an array or one on each line                      |
  | CSV    | a header line with the columns of `dump --csv`, and a line for each entry         |

  The end of the file's name chooses the format, or else the contents. All rows are converted and
  checked before one is written."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.progress :as progress]
            [bpfmap.exec.wording :as wording]
            [bpfmap.impl.edn :as edn]
            [bpfmap.impl.field-path :as field-path]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.impl.user-file :as user-file]
            [bpfmap.spec :as spec]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo LineNumberingPushbackReader)
           (java.io StringReader)))

(set! *warn-on-reflection* true)

(def ^:private most-problems "The number of problems that an error lists." 20)

(defn- shown [file]
  (if (= "-" file) "standard input" (error/shown file)))

(defn- unreadable
  "Returns the exception for a file that has no rows."
  [file hint]
  (error/error :invalid-value (str (shown file) " has no entries that can be read")
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

(defn- pair? [x]
  (and (vector? x) (= 2 (count x))))

(defn- edn-row [line form]
  (cond
    (row-keys? form) (assoc form :line line)
    (pair? form) {:line line :key (form 0) :value (form 1)}
    :else {:line line :problem (str "it must be {:key … :value …} or [key value], got "
                                    (error/printed form))}))

(defn- rows-of-form
  "Returns the rows of a form outside of a vector: one, or those of a map."
  [line form]
  (cond
    (:bpfmap/saved form) [{:line line :problem "it is a saved map: use restore --into"}]
    (and (map? form) (not (row-keys? form))) (for [[k v] form] {:line line :key k :value v})
    :else [(edn-row line form)]))

(defn- rows-of-vector
  "Returns the rows of a text that is one vector.

  It has rows, or is the pair of one entry."
  [line forms]
  (let [elements (mapv second forms)]
    (if (and (pair? elements) (not-any? #(or (row-keys? %) (pair? %)) elements))
      [(edn-row line elements)]
      (map (fn [[line form]] (edn-row line form)) forms))))

(defn- read-edn
  "Reads forms up to the end of the text, or of the vector that they are in.

  Returns `{:forms [line form] pairs :wrong row}`. What follows a form that cannot be read cannot be
  told apart."
  [^LineNumberingPushbackReader reader in-vector? count-entry]
  (loop [forms (transient [])]
    (let [c (skip-blanks reader)
          line (.getLineNumber reader)
          ended (fn [problem]
                  {:forms (persistent! forms)
                   :wrong (when problem {:line line :problem problem})})]
      (cond
        (neg? (long c)) (ended (when in-vector? "the vector has no end"))
        (and in-vector? (= (int \]) c)) (do (.read reader) (ended nil))
        :else
        (let [form (try
                     (arguments/with-keywords (edn/read-form reader {:eof ::none}))
                     (catch ExceptionInfo e e))]
          (cond
            (= ::none form) (ended nil) ; a discarded form was the last
            (instance? Throwable form)
            (ended (:bpfmap/problem (ex-data form) (ex-message form)))
            :else (do (count-entry)
                      (recur (conj! forms [line form])))))))))

(defn- edn-rows [text]
  ;; Throws for text that is nested too deep, or has too long a name.
  (slurp (edn/bounded-reader (StringReader. text)))
  (let [reader (LineNumberingPushbackReader. (StringReader. text))
        starts? (= (int \[) (skip-blanks reader))
        line (.getLineNumber reader)
        count-entry (progress/counter "entries read")
        {:keys [forms wrong]} (when starts? (.read reader) (read-edn reader true count-entry))
        {more :forms then-wrong :wrong} (when-not wrong (read-edn reader false count-entry))
        one? (and starts? (empty? more))]
    (concat (cond
              one? (rows-of-vector line forms)
              starts? [(edn-row line (mapv second forms))])
            (mapcat (fn [[line form]] (rows-of-form line form)) more)
            (some-> (or wrong then-wrong) vector))))

;; --- JSON

(defn- json-end
  "Returns the index after the value that begins at i, or the length of the text."
  ^long [^String text ^long i]
  (let [n (count text)]
    (loop [i i depth 0 in-string? false]
      (if (<= n i)
        n
        (let [c (.charAt text i)]
          (cond
            in-string? (cond
                         (= \\ c) (recur (+ i 2) depth true)
                         (= \" c) (if (zero? depth) (inc i) (recur (inc i) depth false))
                         :else (recur (inc i) depth true))
            (= \" c) (recur (inc i) depth true)
            (or (= \{ c) (= \[ c)) (recur (inc i) (inc depth) false)
            (or (= \} c) (= \] c)) (cond
                                     (zero? depth) i
                                     (= 1 depth) (inc i)
                                     :else (recur (inc i) (dec depth) false))
            (and (zero? depth) (or (= \, c) (Character/isWhitespace c))) i
            :else (recur (inc i) depth false)))))))

(defn- json-texts
  "Returns the values of a text, or of the array in it.

  An element is `{:line :text}`, or has a `:problem` if it is not a value."
  [^String text]
  (let [n (count text)
        count-entry (progress/counter "entries read")
        stray (fn [c state]
                (cond
                  (or (= \, c) (and (= \] c) (= :value state))) "there is a comma too many"
                  (or (= \] c) (= \} c)) (str "there is a " c " too many")))]
    ;; `state` is `:start`, `:first` after the [ of an array, `:next` after a value in it, `:value`
    ;; after a comma, `:end` after the ], or `:rows` if there is no array.
    (loop [i 0 line 1 state :start found (transient [])]
      (let [c (when (< i n) (.charAt text i))
            wrong (fn [problem] (persistent! (conj! found {:line line :problem problem})))]
        (cond
          (nil? c) (if (contains? #{:first :value :next} state)
                     (wrong "the array has no end")
                     (persistent! found))
          (= \newline c) (recur (inc i) (inc line) state found)
          (Character/isWhitespace ^char c) (recur (inc i) line state found)
          (and (= :start state) (= \[ c)) (recur (inc i) line :first found)
          (and (= \, c) (= :next state)) (recur (inc i) line :value found)
          (and (= \] c) (contains? #{:first :next} state)) (recur (inc i) line :end found)
          (= :end state) (wrong "there must be nothing after the array")
          (= :next state) (wrong "there must be a comma between two rows")
          (stray c state) (wrong (stray c state))
          :else
          (let [end (json-end text i)
                part (subs text i end)]
            (count-entry)
            (recur end
                   (+ line (count (filter #{\newline} part)))
                   (if (contains? #{:first :value} state) :next :rows)
                   (conj! found {:line line :text part}))))))))

(defn- json-rows [text]
  (let [read-str (requiring-resolve 'clojure.data.json/read-str)]
    (for [{:keys [line problem]
           part :text} (json-texts text)]
      (if problem
        {:line line :problem problem}
        (let [row (try
                    (slurp (edn/bounded-reader (StringReader. part)))
                    (read-str part)
                    (catch Exception e e))]
          (cond
            (instance? Exception row) {:line line :problem "it is not JSON"}
            (and (map? row) (seq row) (every? #{"key" "value"} (keys row)))
            (assoc (update-keys row keyword) :line line)
            :else {:line line :problem (str "it must be {\"key\": …, \"value\": …}, got "
                                            (error/printed row))}))))))

;; --- CSV

(defn- column
  "Returns the reader of a column: `{:side :keys :read}`, or `:problem`."
  [m options name]
  (let [[word & more :as path] (field-path/path-of name)
        side (#{:key :value} (keyword word))]
    (if-not side
      {:problem (str "the header must have columns such as key, key.src and value.rx, got "
                     (error/printed name)
                     (when (re-find #"[;\t]" (str name))
                       ": separate the columns by commas"))}
      (try
        (assoc (input/column-reader (bpf/spec m) side (with-meta (vec more) (meta path)) name
                                    (:cpus options))
               :side side :name name)
        (catch ExceptionInfo e
          {:problem (ex-message e)})))))

(defn- overlap
  "Returns the problem of two columns that overlap, or nil."
  [columns]
  (let [places (map (fn [{:keys [side keys name]}] [(into [side] keys) name]) columns)
        within? (fn [a b] (= a (take (count a) b)))]
    (first (for [[i [path name]] (map-indexed vector places)
                 [j [other other-name]] (map-indexed vector places)
                 :when (and (not= i j) (within? path other))]
             (if (= path other)
               (str "the header must have each column once, got " name " twice")
               (str "the header must not have both " name " and " other-name))))))

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

(defn- csv-records
  "Returns the records of a text as `[line cells]` pairs.

  If a quote is wrong, the last pair has an exception instead of the cells."
  [text]
  (let [count-entry (progress/counter "entries read")
        newlines (fn [^String cell]
                   (loop [n 0 at (.indexOf cell 10)]
                     (if (neg? at) n (recur (inc n) (.indexOf cell 10 (inc at))))))
        lines (fn [cells] (reduce (fn [^long n cell] (+ n (long (newlines cell)))) 1 cells))]
    (loop [records (try (seq ((requiring-resolve 'clojure.data.csv/read-csv) text))
                        (catch Exception e e))
           line 1
           found (transient [])]
      (cond
        (nil? records) (persistent! found)
        (instance? Exception records) (persistent! (conj! found [line records]))
        :else (let [cells (first records)]
                (count-entry)
                (recur (try (next records) (catch Exception e e))
                       (+ line (long (lines cells)))
                       (conj! found [line cells])))))))

(defn- csv-problem [^Exception e]
  (if (instance? java.io.EOFException e)
    "a quoted cell has no end"
    "a quoted cell must end before a comma or the end of the line"))

(defn- csv-rows [m options text]
  (let [[[line header] & records] (remove (comp #{[""]} second) (csv-records text))
        columns (if (instance? Exception header)
                  [{:problem (str "line " line ": " (csv-problem header))}]
                  (map #(column m options %) header))]
    (if-let [problem (or (some :problem columns) (overlap columns))]
      (throw (unreadable (:file options) problem))
      (for [[line cells] records]
        (if (instance? Exception cells)
          {:line line :problem (csv-problem cells)}
          (csv-row columns line cells))))))

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
          (re-find #"^\[?[\s,]*\{\s*\"(?:[^\"\\]|\\.)*\"\s*:" start) :json
          (re-find #"^[\[{;#]" start) :edn
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
                          (str (error/plural n "entry" "entries") " of " (count rows) " in "
                               (shown file) " cannot be written, and nothing was")
                          {:bpfmap/op :put :bpfmap/file file
                           :bpfmap/problems (vec (take most-problems problems))})))))

(defn rows-of
  "Returns the entries in a text as checked rows for an open map; see [[rows]].

  `file` names the text in errors and chooses the format.

      (rows-of m {:file \"x.edn\"} \"[7 42]\" identity) ;=> [{:line 1, :key 7, :value 42, …}]"
  [m {:keys [file] :as options} text keep]
  (let [text (str/replace-first text #"^\ufeff" "") ; spreadsheets write a byte order mark
        found (try
                (case (if (str/blank? text) :none (format-of file text))
                  :none nil
                  :edn (edn-rows text)
                  :json (json-rows text)
                  :csv (csv-rows m options text))
                (catch ExceptionInfo e
                  (throw (if-let [problem (:bpfmap/problem (ex-data e))]
                           (unreadable file problem)
                           e))))
        check (checker m options)
        spec (input/for-many (bpf/spec m))
        all (into [] (comp (map #(converted spec keep check %))
                           (progress/counting "entries checked"))
                  found)]
    (refuse-problems file all)
    all))

(defn- text-of [file]
  (user-file/text-in (assoc (if (= "-" file)
                              {:in System/in :what "standard input"}
                              {:file file :what "the entries in"})
                            :op :put
                            :progress (progress/counter "bytes read"))))

(defn rows
  "Returns the entries in a file as checked rows for an open map.

  A row is `{:line :key :value :id}`; `:id` is equal for equal keys.

  `file` is a path, or - for standard input. Objects that are opened for references go through
  `keep`. Throws `:invalid-value` if any row cannot be written; `:bpfmap/problems` lists them by
  line, at most 20.

      (rows m {:file \"flows.csv\"} identity) ;=> [{:line 2, :key 7, :value 42, …}]"
  [m {:keys [file] :as options} keep]
  (let [all (rows-of m options (text-of file) keep)]
    (when (empty? all)
      (throw (unreadable file "it is empty")))
    all))
