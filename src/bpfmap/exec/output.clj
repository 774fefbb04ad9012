(ns ^:no-doc bpfmap.exec.output
  "Prints results: columns, tables cut to a width, EDN, JSON and CSV."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.exec.column-tree :as column-tree]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.wording :as wording]
            [bpfmap.impl.display.amount :as amount]
            [bpfmap.impl.edn-text :refer [edn-text]]
            [bpfmap.impl.escape :as escape]
            [bpfmap.impl.map-types :as map-types]
            [clojure.string :as str])
  (:import (clojure.lang IReduceInit)
           (java.io PrintWriter StringWriter Writer)
           (java.util LinkedHashMap)))

(set! *warn-on-reflection* true)

;; --- for people

;; Any program can write to a map. Its contents must not control the terminal: see
;; bpfmap.impl.escape.

(defn- human
  "Returns a value in Clojure's notation for people.

  Integers have no suffix, bytes are hexadecimal in angle brackets."
  [x]
  (cond
    (integer? x) (str x)
    (bytes/byte-view? x) (str "<" x ">")
    (and (map? x) (not (record? x))) (str "{"
                                          (str/join ", "
                                                    (for [[k v] x] (str (human k) " " (human v))))
                                          "}")
    (vector? x) (str "[" (str/join " " (map human x)) "]")
    :else (edn-text x)))

(defn cell
  "Returns a value as the text of a table's cell; nil as `-`.

  The text has one line and no control characters. Strings have no quotes, keywords no colons,
  bytes are hexadecimal.

      (cell :lru-hash)                 ;=> \"lru-hash\"
      (cell nil)                       ;=> \"-\"
      (cell (bytes/->bytes [10 255]))  ;=> \"0a ff\""
  [x]
  (cond
    (or (integer? x) (bytes/byte-view? x)) (str x)
    (or (nil? x) (= "" x)) "-"
    (string? x) (escape/escape-text x)
    (keyword? x) (escape/escape-text (subs (str x) 1))
    :else (human x)))

(def ^:private odd-text
  "Texts that could be misread without quotes: blank ones, quoted ones, bytes."
  #"(?s)-?|[\"#<].*|\s.*|.*\s|.*[\x00-\x1f\x7f-\x9f].*")

(defn element-cell
  "Returns a key or value as the text of a cell that `get` and `put` accept.

  Like [[cell]], but texts that could be misread are quoted.

      (element-cell \"curl\") ;=> \"curl\"
      (element-cell \"\")     ;=> \"\\\"\\\"\""
  [x]
  (if (and (string? x) (re-matches odd-text x))
    (edn-text x)
    (cell x)))

(defn- pad ^String [^String text width align]
  (let [blanks (.repeat " " (- (long width) (count text)))]
    (if (= :right align) (str blanks text) (str text blanks))))

(defn- lay-out
  "Returns columns with the texts of their cells, their width and alignment.

  `:texts` is an array, and its first text the heading."
  [columns rows]
  (let [rows (object-array rows)
        n (alength rows)]
    (for [{:keys [title of align] of-value :cell :or {of-value cell} :as column} columns
          :let [title (escape/escape-text title)
                texts (object-array (inc n))]]
      ;; A loop over an array, as in print-columns: in a JVM that was just started, a list of
      ;; thousands of maps would pay for the compilation of each further function.
      (loop [i 0
             width (max (long (:at-least column 0)) (.length title))
             numbers? (pos? n)]
        (if (< i n)
          (let [value (of (aget rows i))
                ^String text (of-value value)]
            (aset texts (inc i) text)
            (recur (inc i) (max width (.length text))
                   (boolean (and numbers? (number? value)))))
          (let [align (or align (when numbers? :right))]
            (aset texts 0 title)
            (cond-> (assoc column :texts texts :width width :align align)
              (= :right align) (dissoc :least)))))))) ; a cut number would be another number

(defn- whole-numbers
  "Returns the two ends of a cut text without parts of a cut number."
  [before after text]
  (let [missing (subs text (count before) (- (count text) (count after)))
        digit? #(and % (Character/isLetterOrDigit (char %)))
        number-cut? (fn [edge inside]
                      (and edge inside (Character/isDigit (char edge)) (digit? inside)))]
    [(if (number-cut? (last before) (first missing)) (str/replace before #"\d+$" "") before)
     (if (number-cut? (first after) (last missing)) (str/replace after #"^\d+" "") after)]))

(defn- cut
  "Returns a text cut to a width, with an ellipsis in place of the missing part.

  Cuts at the end, at the beginning, before the last six characters, or before the number in
  brackets. A number is never shown in part."
  [text width side]
  (let [n (count text) width (long width)
        tail (if (and (= :middle side) (< width n))
               (max 6 (count (re-find #"\[\d+\](?: \+\d+)?$" text)))
               0)]
    (cond
      (<= n width) text
      (= :left side) (str "…" (second (whole-numbers "" (subs text (inc (- n width))) text)))
      (and (= :middle side) (< (inc tail) width))
      (let [[before after] (whole-numbers (subs text 0 (- width tail 1)) (subs text (- n tail))
                                          text)]
        (str before "…" after))
      :else (str (first (whole-numbers (subs text 0 (max 0 (dec width))) "" text)) "…"))))

(defn- print-columns
  "Returns the lines of columns, without trailing blanks."
  [columns]
  (let [texts (object-array (map :texts columns))
        widths (long-array (map :width columns))
        right (boolean-array (map #(= :right (:align %)) columns))
        sides (object-array (map :cut-at columns))
        out (StringBuilder.)
        line (fn [^long row]
               (.setLength out 0)
               (dotimes [i (alength texts)]
                 (let [width (aget widths i)
                       ^String text (aget ^objects (aget texts i) row)
                       ^String text (if (<= (.length text) width)
                                      text
                                      (cut text width (aget sides i)))
                       missing (int (max 0 (- width (.length text))))]
                   (when (pos? i) (.append out "  "))
                   (if (aget right i)
                     (-> out (.repeat 32 missing) (.append text))
                     (-> out (.append text) (.repeat 32 missing)))))
               (loop [end (.length out)]
                 (if (and (pos? end) (= \space (.charAt out (dec end))))
                   (recur (dec end))
                   (.substring out 0 end))))]
    (mapv line (range (if (zero? (alength texts)) 0 (alength ^objects (aget texts 0)))))))

(defn table
  "Returns the lines of a table: a heading, and one line for each row.

  `columns` is a sequence of `{:title text, :of function-of-a-row}`. `:cell` converts values to
  text, by default [[cell]]. A column is aligned right with `:align :right`, or if all its values
  are numbers.

      (table [{:title \"ID\" :of :id} {:title \"NAME\" :of :name}] [{:id 12 :name \"counts\"}])
      ;=> [\"ID  NAME\"
           \"12  counts\"]"
  [columns rows]
  (print-columns (lay-out columns rows)))

(defn- total [widths]
  (+ (reduce + widths) (* 2 (dec (count widths)))))

(defn- silent?
  "Returns true if a column that can be omitted is empty."
  [{:keys [rank texts]}]
  (and rank (every? #{"-"} (rest texts))))

(defn- without-least
  "Returns the columns without the highest `:rank`; nil if none can be omitted."
  [columns]
  (when-let [ranks (seq (keep :rank columns))]
    (let [most (apply max ranks)]
      (remove #(= most (:rank %)) columns))))

(defn- narrowed
  "Returns columns cut until they fit, the widest first."
  [columns width]
  (loop [columns (vec columns)]
    (let [over (- (long (total (map :width columns))) (long width))
          room (fn [{:keys [least width]}] (if least (- (long width) (long least)) 0))
          widest (apply max-key #(if (pos? (long (room (columns %)))) (:width (columns %)) -1)
                        (range (count columns)))]
      (if (or (<= over 0) (not (pos? (long (room (columns widest))))))
        columns
        (recur (update-in columns [widest :width] dec))))))

(defn fitted
  "Returns a table for a screen width: `{:lines :left-out :widths}`.

  `:left-out` has the titles of omitted columns, `:widths` the full width of each column by title.
  A column is at least `:at-least` wide.

  A column with a `:rank` can be omitted: empty ones first, then the highest rank. A column with a
  `:least` width can be cut to it, at the end or as `:cut-at` says: `:left` or `:middle`.

      (fitted [{:title \"ID\" :of :id} {:title \"NAME\" :of :name :least 4}] [{:id 12 :name \"counts\"}] 8)
      ;=> {:lines [\"ID  NAME\" \"12  cou…\"], :left-out [], :widths {\"ID\" 2, \"NAME\" 6}}"
  [columns rows width]
  (let [columns (lay-out columns rows)
        smallest (fn [{:keys [least width]}] (if least (min (long least) (long width)) width))]
    (loop [kept (cond->> columns
                  (< (long width) (long (total (map :width columns)))) (remove silent?))]
      (let [fewer (when (< (long width) (long (total (map smallest kept)))) (without-least kept))]
        (if fewer
          (recur fewer)
          {:lines (print-columns (narrowed kept width))
           :left-out (mapv :title (remove (set kept) columns))
           :widths (into {} (map (juxt :title :width)) columns)})))))

(defn fields
  "Returns the lines of `[name value]` pairs, with aligned values.

      (fields [[:id 12] [:name \"counts\"]]) ;=> [\"id    12\" \"name  counts\"]"
  [pairs]
  (let [width (transduce (map (comp count cell first)) max 0 pairs)]
    (mapv (fn [[k v]] (str (pad (cell k) width :left) "  " (cell v))) pairs)))

(def format-1dp
  "Returns a number with one digit after the point.

  See `bpfmap.impl.display.amount`."
  amount/format-1dp)

(def human-size
  "Returns a number of bytes in units of 1024; see `bpfmap.impl.display.amount`."
  amount/human-size)

(defn holder-text
  "Returns a process that holds a map as text.

      (holder-text {:pid 4711 :command \"agent\"}) ;=> \"agent[4711]\""
  [{:keys [command pid]}]
  (str command "[" pid "]"))

(defn user-text
  "Returns a program, or a map that a program uses, as text.

      (user-text {:id 30 :name \"count\"}) ;=> \"count[30]\""
  [{:keys [name id]}]
  (str name "[" id "]"))

(defn full-text
  "Returns how full a map is as text.

  An LRU map is marked: it evicts entries before it is full, so that it stays nearly full.

      (full-text {:type :lru-hash :full 97.7}) ;=> \"lru 97.7%\""
  [{:keys [type full]}]
  (when full
    (str (when (:evicts (map-types/types type)) "lru ") (format-1dp full) "%")))

;; --- for programs

(defn- print-elements
  "Prints a vector with one element per line, with `print-one`.

  A reducible is printed without brackets, anything else on one line."
  [x print-one]
  (cond
    (and (vector? x) (seq x))
    (do (print "[")
        (print-one (first x))
        (doseq [element (rest x)]
          (print ",\n ")
          (print-one element))
        (println "]"))

    (and (instance? IReduceInit x) (not (coll? x)) (not (bytes/byte-view? x)))
    (run! (fn [element]
            (print-one element)
            (newline)) x)

    :else
    (do (print-one x)
        (newline))))

(defn print-edn
  "Prints a value as EDN on *out*.

  The elements of a vector, and the records of a reducible, are printed one per line.

      (print-edn [{:id 12}])"
  [x]
  (print-elements x #(print (edn-text %))))

(def ^:private safe-integer
  "The largest integer that every reader of JSON keeps: 2^53-1.

  RFC 7493 (I-JSON) encodes larger integers as strings."
  9007199254740991)

(defn json-value
  "Returns a value for JSON.

  Byte views become hexadecimal strings, sets sorted arrays, names strings. Integers beyond
  2^53-1, which JavaScript and jq would round, become strings.

      (json-value {:frozen true, :flags #{:mmapable :inner-map}})
      ;=> {\"frozen\" true, \"flags\" [\"inner-map\" \"mmapable\"]}"
  [x]
  (cond
    (map? x) (reduce-kv (fn [^LinkedHashMap object k v] ; which keeps the order of the keys
                          (let [name (if (and (vector? k) (every? #(or (keyword? %) (int? %)) k))
                                       ;; a field's offset
                                       (fields/path-text (map fields/name-of k))
                                       (json-value k))]
                            (doto object
                              (.put (if (string? name) name (pr-str name))
                                    (json-value v)))))
                        (LinkedHashMap.) x)
    (set? x) (sort-by str (map json-value x))
    (sequential? x) (mapv json-value x)
    (keyword? x) (subs (str x) 1)
    (or (bytes/byte-view? x) (symbol? x) (char? x)) (str x)
    (and (float? x) (not (Double/isFinite x))) (str x) ; "NaN", "Infinity": JSON has no such numbers
    (and (integer? x) (not (<= (- safe-integer) x safe-integer))) (str x)
    :else x))

(defn print-json
  "Prints a value as JSON on *out*.

  The elements of a vector, and the records of a reducible, are printed one per line.

      (print-json [{:id 12}])"
  [x]
  (let [text (requiring-resolve 'clojure.data.json/write-str)]
    ;; The JSON library does not escape DEL. Unsafe characters occur only in texts, and JSON has the
    ;; same escapes.
    (print-elements x #(print (escape/escape (text (json-value %) :escape-slash false))))))

(defn print-records
  "Prints the records of a reducible in a format for programs, one per line.

  Flushes after each record.

      (print-records :json [{:id 12} {:id 13}])"
  [format xs]
  (let [print-one (case format
                    :edn print-edn
                    :json print-json)]
    (run! (fn [x]
            (print-one x)
            (flush))
          xs)))

;; --- columns of rows

(def ^:private most-columns
  "The number of fields up to which a struct gets several columns."
  12)

(defn- collect
  "Adds the fields of a value to the fields found so far.

  ::plain marks a value that is not a map."
  [^LinkedHashMap found x]
  (cond
    (nil? x) nil
    (and (map? x) (seq x))
    (reduce-kv (fn [_ k v]
                 (let [below (or (.get found k)
                                 (let [below (LinkedHashMap.)] (.put found k below) below))]
                   (collect below v)))
               nil x)
    :else (.put found ::plain true))
  found)

(defn- leaves
  "Returns the paths of the fields found.

  Fields in vectors stay together, and so do fields that some rows have as plain values."
  [path ^LinkedHashMap found]
  (if (or (.isEmpty found) (.containsKey found ::plain))
    [path]
    (mapcat (fn [[k below]] (leaves (conj path k) below)) found)))

(defn- tree-leaves
  "Returns the paths of the fields of a tree."
  [path {:keys [fields]}]
  (if fields
    (mapcat (fn [[k tree]] (tree-leaves (conj path k) tree)) fields)
    [path]))

(defn- side-leaves
  "Returns the paths of the fields of one side, from its rows or its tree."
  [side rows trees]
  (if (seq rows)
    (leaves [side] (reduce (fn [found row] (collect found (get row side))) (LinkedHashMap.) rows))
    (tree-leaves [side] (get trees side))))

(defn field-name
  "Returns the name of a field for a title.

      (field-name :tx-bytes) ;=> \"tx-bytes\""
  [k]
  (if (keyword? k) (subs (str k) 1) (str k)))

(defn- title
  "Returns the title of a path, without the side unless the title would clash."
  [[side & names] clashes?]
  (cond
    (empty? names) (str/upper-case (name side))
    clashes? (fields/path-text (map field-name (cons side names)))
    :else (fields/path-text (map field-name names))))

(defn columns
  "Returns the columns for the sides of rows, such as `[:key :value]`.

  Without rows, they come from `trees`, by side (see `bpfmap.exec.column-tree`). The title of a
  field includes the side if the name is also a side, or one of `others`, the other fields of the
  rows.

      (map :title (columns [:key :value] [{:key {:src \"10.0.0.1\"} :value 3}])) ;=> (\"src\" \"VALUE\")"
  ([sides rows] (columns sides rows nil))
  ([sides rows trees] (columns sides rows trees nil))
  ([sides rows trees others]
   (let [of-side (into {} (for [side sides
                                :let [paths (side-leaves side rows trees)]]
                            [side (if (<= (count paths) (long most-columns)) paths [[side]])]))
         paths (mapcat of-side sides)
         clashes (into #{} (comp (filter (fn [[_ n]] (< 1 (long n)))) (map key))
                       (frequencies (map #(title % false) paths)))
         taken (into #{"key" "value"} others)
         clashes? (fn [[_ name] plain]
                    (or (clashes plain) (and name (taken (str/lower-case (field-name name))))))]
     (map-indexed (fn [i path]
                    (let [plain (title path false)]
                      (cond-> {:title (if (clashes? path plain) (title path true) plain)
                               :of #(get-in % path) :cell element-cell
                               :side (first path) :path path
                               :least (if (next path) 12 16)}
                        (pos? (long i)) (assoc :rank i))))
                  paths))))

(defn csv-columns
  "Returns CSV columns for the sides of rows, with their trees.

      (csv-columns [:key] {:key {:leaves 1}}) ;=> ({:title \"key\" :of :key :tree {:leaves 1}})"
  [sides trees]
  (for [side sides]
    {:title (name side) :of side :tree (get trees side column-tree/leaf)}))

;; --- a result

(defn- complain-lines
  "Prints lines of text on stderr, with control characters escaped."
  [text]
  (binding [*out* *err*]
    (println (escape/escape-lines text))
    (flush)))

(defn complain
  "Prints one line on stderr, with control characters escaped.

  The message can contain names from anywhere."
  [& message]
  (complain-lines (escape/escape (str/join message))))

(defn- print-line [line]
  (doto ^Writer *out*
    (.write (escape/escape line))
    (.write "\n")))

(defn- print-csv [columns rows]
  ((requiring-resolve 'bpfmap.exec.csv/print-rows) columns rows))

(defn- print-table
  "Prints a table, cut to the width of the terminal if there is one.

  Returns lines about omitted columns. Rows of a reducible are printed as they come, without
  alignment."
  [columns rows width]
  (if (coll? rows)
    (if width
      (let [{:keys [lines left-out]} (fitted columns rows width)]
        (run! print-line lines)
        (when-let [named (seq (remove str/blank? left-out))]
          [(str "no room for " (str/join ", " named))
           "use --csv, --edn or a wider terminal"]))
      (run! print-line (table columns rows)))
    (run! (fn [row]
            (print-line (str/join "  "
                                  (map (fn [{:keys [of] own :cell}] ((or own cell) (of row)))
                                       columns)))) rows)))

(defn- print-sections
  "Prints sections, each below a heading and apart by an empty line.

  Returns lines about omitted columns."
  [sections width]
  (first
   (reduce (fn [[left-out first?] {:keys [heading columns rows lines]}]
             (when-not first? (print-line ""))
             (print-line heading)
             (if columns
               [(or (print-table columns rows width) left-out) false]
               (do (run! print-line lines)
                   [left-out false])))
           [nil true] sections)))

(defn print-result
  "Prints the result of a command and returns the exit code.

  `format` is nil for people, whose terminal may have a `width`. The `:lines` of a view can be a
  function of it."
  [value {:keys [columns csv-columns rows lines sections closing notes exit] text? :as-text
           :as view}
   format width]
  ;; A system call for each line would be slow.
  (let [left-out (binding [*flush-on-newline* false]
                   (case (if text? nil format)
                     :edn (print-edn (:value view value))
                     :json (print-json (:value view value))
                     :csv (print-csv (or csv-columns columns) rows)
                     (cond
                       columns (print-table columns rows width)
                       sections (print-sections sections width)
                       :else (run! (if text? println print-line)
                                   (if (fn? lines) (lines width) lines)))))]
    (flush)
    (run! #(complain "bpfmap: " %) notes)
    (when-not format
      (run! complain (concat left-out (remove nil? closing))))
    (or exit 0)))

;; --- errors

(defn- root-cause ^Throwable [^Throwable e]
  (if-let [cause (ex-cause e)] (recur cause) e))

(defn- candidate-columns
  "Returns the columns for the maps that a name may refer to.

  There is a column of pins only if a map has one."
  [candidates]
  (for [of [:id :type :name
            (when (some (comp seq :pinned) candidates) #(str/join " " (:pinned %)))
            #(str/join " " (map (fn [{:keys [command pid]}] (str command "[" pid "]")) (:held %)))]
        :when of]
    {:title "" :of of}))

(defn print-failure
  "Prints an error on stderr and returns the exit code.

  With `verbose`, prints its data too."
  [^Throwable e verbose]
  (let [{:bpfmap/keys [error candidates problems] :as data} (ex-data e)]
    (complain-lines (str "bpfmap: " (if error
                                      ;; The verifier's message has several lines.
                                      (wording/worded (ex-message e))
                                      (escape/escape
                                       (str "This is a bug in bpfmap: " (root-cause e)
                                            "; --verbose prints the stack trace")))))
    (run! #(complain "  " %) (rest (table (candidate-columns candidates) candidates)))
    (doseq [{:keys [line message]} problems :when line]
      (complain "  line " line ": " message))
    (when verbose
      (if error
        (complain-lines (str/trim-newline (with-out-str (print-edn data))))
        (let [trace (StringWriter.)]
          (.printStackTrace e (PrintWriter. trace true))
          (binding [*out* *err*]
            ;; Its lines begin with a tab
            (print (str/replace (escape/escape-lines (str trace)) "\\u0009" "\t"))
            (flush)))))
    (if (= :usage error) 2 1)))
