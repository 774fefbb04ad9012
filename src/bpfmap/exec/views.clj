(ns ^:no-doc bpfmap.exec.views
  "Renders results for people: a table, a text or a tree for each command."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.exec.column-tree :as column-tree]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.listing :as listing]
            [bpfmap.exec.map-info :as map-info]
            [bpfmap.exec.output :as output]
            [bpfmap.exec.program-info :as program-info]
            [bpfmap.exec.wording :as wording]
            [bpfmap.impl.edn-text :refer [edn-text]]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.type :as type]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

;; --- entries

(defn- printable-text
  "Returns bytes as ASCII, with a point for everything else."
  [octets]
  (apply str (map #(if (< 31 (long %) 127) (char %) \.) octets)))

(defn- ascii
  "Returns bytes as text between bars, as `hexdump -C` does; nil for anything else."
  [x]
  (when (bytes/byte-view? x)
    (str "|" (printable-text x) "|")))

(defn- map-text [{:keys [id name]}]
  (str "map " id (when (seq name) (str " (" (output/cell name) ")"))))

(defn entry
  "Renders the value of an entry.

  If it does not exist, the exit code is 1."
  [found _options]
  (cond
    (nil? found) {:lines [] :notes ["no such entry"] :exit 1}
    (contains? found :might-contain) {:lines [(if (:might-contain found) "maybe" "no")]}
    :else {:lines [(str/join "  " (remove nil? [(output/element-cell (:value found))
                                                (ascii (:value found))]))]}))

(defn- entries-text [n]
  (error/plural n "entry" "entries"))

(defn- written
  "Renders entries that were written from a file.

  If the map evicted some, the exit code is 1."
  [{:keys [map written skipped missing entries repeated]} {:keys [insert]}]
  {:lines [(str (entries-text written) " written into " (map-text map)
                (when (pos? (long skipped))
                  (str ", " skipped (if insert " already there" " not there")))
                (when entries (str "; it has " (entries-text entries))))]
   :notes (cond-> []
            repeated
            (conj (str (entries-text repeated) " had the key of a later one, which was written"))
            (pos? (long missing))
            (conj (str (entries-text missing) (if (= 1 missing) " is" " are")
                       " missing: the map evicted " (if (= 1 missing) "it" "them")
                       ", or another user of the map deleted " (if (= 1 missing) "it" "them"))))
   :exit (if (pos? (long missing)) 1 0)})

(defn- put-one [{:keys [key value before written] :as done}]
  (cond
    (not written) {:lines []
                   :notes [(str "nothing written: the key "
                                (if (nil? before) "does not exist" "already exists"))]
                   :exit 1}
    (contains? done :key) {:lines [(str (output/element-cell key) "  " (output/element-cell value)
                                        (if (nil? before)
                                          "  (new)"
                                          (str "  (was " (output/element-cell before) ")")))]}
    :else {:lines [(output/element-cell value)]}))

(defn put
  "Renders a written entry with the previous value, or those of a file."
  [{:keys [file] :as done} options]
  (if file (written done options) (put-one done)))

(defn deleted
  "Renders a deleted entry.

  If it did not exist, the exit code is 1."
  [{:keys [key before] deleted? :deleted} _options]
  (if deleted?
    {:lines [(str (output/element-cell key)
                  (when (some? before) (str "  (was " (output/element-cell before) ")")))]}
    {:lines [] :notes ["no such entry"] :exit 1}))

(defn cleared
  "Renders a map whose entries were deleted.

  If it has entries again, the exit code is 1."
  [{:keys [map entries] n :deleted} _options]
  {:lines [(str (error/plural n "entry" "entries") " of " (map-text map) " deleted")]
   :notes (when (and entries (pos? (long entries)))
            [(str "the map has " (error/plural entries "entry" "entries")
                  ": other users of the map wrote " (if (= 1 entries) "it" "them") " meanwhile")])
   :exit (if (and entries (pos? (long entries))) 1 0)})

(defn pinned
  "Renders a map and its pin."
  [{:keys [path from untyped] :as info} _options]
  {:lines [(str (map-text info) " is pinned at " (output/cell path)
                (when from (str ", no longer at " (output/cell from))))]
   :notes (when untyped [untyped])})

(defn unpinned
  "Renders a map whose pin was removed."
  [{:keys [path] :as info} _options]
  {:lines [(str (map-text info) " is no longer pinned at " (output/cell path))]})

(defn frozen
  "Renders a frozen map."
  [info _options]
  {:lines [(str (map-text info) " is frozen")]})

(defn saved
  "Renders a map that was saved to a file."
  [{:keys [map file entries]} _options]
  {:lines [(str (error/plural entries "entry" "entries") " of " (map-text map)
                (if (= 1 entries) " is" " are") " saved in " (output/cell file))]})

(defn restored
  "Renders a restored map with its number of entries.

  If some are missing, the exit code is 1."
  [{:keys [map path entries changed missing skipped deleted]} _options]
  (let [whole? (= 0 missing changed)]
    {:lines [(str (if whole?
                    (str (entries-text (- (long entries) (long skipped))) " written into "
                         (map-text map))
                    (str entries " of "
                         (entries-text (+ (long entries) (long changed) (long missing))) " are in "
                         (map-text map)))
                  (when path (str ", pinned at " (output/cell path)))
                  (when (pos? (long skipped)) (str ", " skipped " already there"))
                  (when (pos? (long deleted)) (str ", " deleted " deleted")))]
     :notes (remove nil?
                    [(when (pos? (long missing))
                       (str (entries-text missing) (if (= 1 missing) " is" " are")
                            " missing: the map evicted " (if (= 1 missing) "it" "them")
                            ", or another user of the map deleted " (if (= 1 missing) "it" "them")))
                     (when (pos? (long changed))
                       (str (entries-text changed) (if (= 1 changed) " has" " have")
                            " a different value: another user of the map changed "
                            (if (= 1 changed) "it" "them")))])
     :exit (if (pos? (long missing)) 1 0)}))

;; --- features and types

;; --- types

(defn- type-lines [type]
  ;; Loaded on demand, because no other view needs it.
  (with-bindings {(requiring-resolve 'clojure.pprint/*print-right-margin*) 78}
    (str/split-lines (with-out-str ((requiring-resolve 'clojure.pprint/pprint) type)))))

(defn- side-lines [side {:keys [type c size]}]
  (when type
    (concat [""
             (str (name side) ", " (error/plural size "byte")
                  ", in C and as a type of bpfmap")]
            (map #(str "  " %) c)
            [""]
            (map #(str "  " %) (type-lines type)))))

(defn- template-lines
  "Returns the lines of a file of hints, with the type of each field in a comment."
  [template]
  (let [[[map-name fields]] (seq template)
        {:keys [types]} (meta template)
        names (map edn-text (keys fields))
        width (transduce (map count) max 0 names)]
    (concat [(str "{" (edn-text map-name))]
            (for [[start name path] (map vector (cons " {" (repeat "  ")) names (keys fields))]
              (str start name (.repeat " " (- width (count name))) " nil ; "
                   (output/cell (types path))))
            [(if (seq fields) " }}" " {}}")])))

(defn types
  "Renders the types of keys and values, in C and as data, or a file of hints."
  [{:keys [key value untyped types-from saved] {:keys [id name type]} :map :as found}
   {:keys [template]}]
  (cond
    template
    {:lines (template-lines found)}
    saved
    {:lines [(str "the types of maps named " (output/cell name)
                  (when (:owner saved) (str ", of " (output/cell (:owner saved)) ","))
                  " are saved in " (output/cell (:file saved)))]}
    :else
    {:lines (concat [(str "map " id (when (seq name) (str " (" (output/cell name) ")")) ", "
                          (output/cell type))]
                    (side-lines :key key)
                    (side-lines :value value))
     :closing (when untyped
                [(cond-> untyped
                   types-from (str "; these types are "
                                   (if (= "bpftrace" types-from)
                                     "those that bpftrace writes"
                                     (str "from " (output/cell types-from)))))])}))

;; --- features

(defn- wrapped
  "Returns words as lines of a width."
  [words width]
  (reduce (fn [lines word]
            (let [line (peek lines)]
              (if (and line (<= (+ (count line) 1 (count word)) (long width)))
                (conj (pop lines) (str line " " word))
                (conj lines word))))
          [] words))

(defn- summary-lines
  "Returns the lines of a group of features.

  They are grouped as supported, not supported and unknown."
  [title rows]
  (let [names (fn [here] (map #(output/cell (:name %)) (filter #(= here (:here %)) rows)))]
    (concat ["" title]
            (for [[label here] [["supported" true] ["not supported" false] ["unknown" nil]]
                  :let [lines (wrapped (names here) 60)]
                  [i line] (map-indexed vector lines)]
              (str "  " (if (zero? (long i)) label "")
                   (.repeat " " (- 16 (count (if (zero? (long i)) label "")))) line)))))

(defn features
  "Renders features as a summary, or as a table if there is a condition."
  [rows {:keys [where]}]
  (let [rows (if (coll? rows) rows (into [] rows))
        columns [{:title "FEATURE" :of :feature} {:title "OF" :of :of}
                 {:title "NAME" :of :name :least 10}
                 {:title "HERE" :of #(case (:here %) true "yes" false "no" "?") :csv :here}
                 {:title "SINCE" :of :since}
                 {:title "WHY" :of :why :least 8 :rank 1}]
        of-feature (fn [feature] (filter #(= feature (:feature %)) rows))]
    (if where
      {:columns columns :rows rows :closing [(error/plural (count rows) "feature")]}
      {:csv-columns columns :rows rows
       :lines (concat [(str "Linux " (:kernel (meta rows)))]
                      (summary-lines "Map types" (of-feature :map-type))
                      (summary-lines "Flags of element operations" (of-feature :element-flag))
                      (summary-lines "Program types" (of-feature :program-type)))
       :closing [(str (count rows)
                      " features probed; --where 'of=hash' lists the features of a map type")]})))

;; --- live commands

(defn rate-text
  "Returns a rate as text, or nil.

      (rate-text 1234.56) ;=> \"1234.6\""
  [x]
  (when (some? x)
    (output/format-1dp x)))

(def marks
  "The marks of added, changed and removed entries."
  {:added "+" :changed "*" :removed "-"})

(defn numeric-paths
  "Returns the paths of the numbers in rates."
  [path rates]
  (cond
    (map? rates) (mapcat (fn [[k x]] (numeric-paths (conj path k) x)) rates)
    (nil? rates) nil
    :else [path]))

(defn- rate-cell [x]
  (cond
    (number? x) (rate-text x)
    (vector? x) (str/join " " (map #(if (number? %) (rate-text %) (output/cell %)) x))))

(defn- rate-title
  "Returns the title of the rates at a path, which `--where` and `--sort` accept."
  [path]
  (let [names (mapv output/field-name path)]
    (fields/path-text (conj (pop names) (str (peek names) "/s")))))

(defn rate-columns
  "Returns columns for the rates at some paths.

  The rate of a scalar value is PER-SECOND."
  [paths]
  (for [[i path] (map-indexed vector paths)]
    {:title (if (seq path) (rate-title path) "PER-SECOND")
     :of #(or (rate-cell (get-in (:per-second %) path)) "")
     :path (into [:per-second] path)
     :align :right :rank (+ 0.5 i)}))

(defn entry-columns
  "Returns the columns of watched rows: mark, key, value, rates at some paths."
  [rows rate-paths]
  (let [fields (output/columns [:key :value] rows nil ["change" "per-second"])]
    (concat [{:title "" :of #(marks (:change %) " ")}]
            fields
            (rate-columns rate-paths))))

;; --- diff

(defn- side-columns [rows trees]
  (concat
   [{:title "" :of #(marks (:change %) " ")}]
   (map #(dissoc % :rank)
        (output/columns [:key] rows trees ["change" "old" "new" "per-second"]))
   [{:title "OLD" :of #(if (contains? % :old) (:old %) "") :least 16}
    {:title "NEW" :of #(if (contains? % :new) (:new %) "") :least 16}]))

(defn- csv-columns
  "Returns the columns of differences.

  `raw` is the tree of values, which rates have."
  [{:keys [key value]} raw per-second?]
  (let [rates (when per-second? (if raw (column-tree/rates raw) column-tree/leaf))]
    (cond-> [{:title "change" :of :change}
             {:title "key" :of :key :tree key}
             {:title "old" :of :old :tree value}
             {:title "new" :of :new :tree value}]
      rates (conj {:title "per-second" :of :per-second :tree rates}))))

(defn diff
  "Renders the rows of `diff` as a table."
  [rows {:keys [new]}]
  (let [{:keys [spec cpus collapsed same added changed removed]} (meta rows)
        raw (when spec (column-tree/of-entries spec cpus))
        trees (when spec (column-tree/with-collapsed raw collapsed))
        rows (if (coll? rows) rows (into [] rows))
        paths (distinct (mapcat #(numeric-paths [] (:per-second %)) rows))]
    {:columns (concat (side-columns rows trees) (rate-columns paths))
     :csv-columns (csv-columns trees (:value raw) (nil? new))
     :rows rows
     :closing [(str added " added, " changed " changed, " removed " removed, " same " the same"
                    (when (< (count rows) (+ (long added) (long changed) (long removed)))
                      (str "; " (error/plural (count rows) "row is" "rows are") " shown")))]}))

;; --- histograms

(def ^:private ^:const bar-width 40)

(defn- bar [n most]
  (let [stars (if (pos? most)
                (long (Math/round (double (/ (* (long bar-width) (bigint n)) most))))
                0)
        stars (if (and (zero? stars) (pos? n)) 1 stars)]
    (str "|" (.repeat "*" stars) (.repeat " " (- (long bar-width) stars)) "|")))

(defn- bucket-text [{:keys [from to]}]
  (if (nil? from) ["" "< 0"] [(str from) (str to)]))

(defn histogram-lines
  "Returns the lines of a histogram, as BPF tools draw it."
  [{:keys [title buckets]} unit]
  (let [ends (map bucket-text buckets)
        most (transduce (map :count) max 0 buckets)
        width (fn [texts least] (transduce (map count) max least texts))
        left (width (map first ends) 6)
        right (width (map second ends) 6)
        counts (width (map (comp str :count) buckets) 5)
        at-right (fn [text n] (str (.repeat " " (- (long n) (count text))) text))
        at-left (fn [text n] (str text (.repeat " " (- (long n) (count text)))))]
    (concat
     (when (some? title) [(output/element-cell title)])
     [(str (at-left (at-right unit (quot (+ left right 4 (count unit)) 2)) (+ left 4 right)) " : "
           (at-left "count" counts) " distribution")]
     (for [[[from to] {n :count}] (map vector ends buckets)]
       (str (at-right from left) (if (= "" from) "    " " -> ") (at-left to right) " : "
            (at-left (str n) counts) " " (bar n most))))))

(defn histograms
  "Renders histograms one below the other.

  The heading of the numbers is the unit or the field."
  [histograms {:keys [unit field]}]
  (let [histograms (if (coll? histograms) histograms (into [] histograms))
        shown (if field (map #(assoc % :title nil) histograms) histograms)
        unit (or unit (when field (fields/path-text field)) "value")]
    {:lines (mapcat identity (interpose [""] (map #(histogram-lines % unit) shown)))
     :rows (for [{:keys [title buckets]} histograms bucket buckets] (assoc bucket :title title))
     :csv-columns [{:title "TITLE" :of :title} {:title "FROM" :of :from} {:title "TO" :of :to}
                   {:title "COUNT" :of :count}]
     :closing [(if (seq histograms)
                 (str (error/plural (reduce +' (map :total histograms)) "count") " in "
                      (error/plural (count histograms) "histogram"))
                 "no counts yet")]}))

;; --- lists and maps

(defn- some-of
  "Returns the text of the first value and the number of other values, or nil."
  [text values]
  (when (seq values)
    (str (text (first values)) (when (next values) (str " +" (dec (count values)))))))

(defn flag-text
  "Returns create flags by name, unknown ones as numbers.

      (flag-text #{:mmapable 1073741824}) ;=> \"0x40000000,mmapable\""
  [flags]
  (when (seq flags)
    (str/join "," (map (fn [flag] (if (number? flag) (format "0x%x" flag) (output/cell flag)))
                       (sort-by str flags)))))

(defn holders-text
  "Returns the processes that hold a row's map as the text of one cell.

      (holders-text {:held [{:pid 4711 :command \"agent\"}]}) ;=> \"agent[4711]\""
  [{:keys [held]}]
  (some-of output/holder-text held))

(defn- all-of [text] #(not-empty (str/join " " (map text %))))

(defn- skipped-notes
  "Returns warnings for objects that could not be read.

  Omits objects that disappeared while the list was made."
  [found place]
  (for [{:keys [error message] :as skipped} (:skipped (meta found)) :when (not= :not-found error)]
    (str (place skipped) " is omitted: " message)))

(def ^:private map-columns
  "The columns of `list`.

  A narrow terminal omits the highest ranks first."
  [{:key :id :title "ID" :of :id}
   {:key :type :title "TYPE" :of :type :least 11}
   {:key :name :title "NAME" :of :name :least 15}
   {:key :key-size :title "KEY" :of :key-size :rank 4}
   {:key :value-size :title "VALUE" :of :value-size :rank 4}
   {:key :entries :title "ENTRIES" :of :entries :align :right}
   {:key :max-entries :title "MAX" :of :max-entries}
   {:key :full :title "FULL" :of output/full-text :csv :full :align :right}
   {:key :memlock :title "MEMORY" :of #(some-> (:memlock %) output/human-size) :csv :memlock
    :align :right}
   {:key :frozen :title "FROZEN" :of #(when (some? (:frozen %)) (if (:frozen %) "yes" "no"))
    :csv :frozen :rank 5}
   {:key :fill :title "FILL" :of #(some-> (:fill %) output/human-size) :csv :fill :align :right}
   {:key :held :title "HELD BY" :of holders-text :csv :held
    :least 14 :cut-at :middle}
   {:key :used-by :title "USED BY" :of #(some-of output/user-text (:used-by %)) :csv :used-by
    :least 14 :cut-at :middle :rank 2}
   {:key :outer :title "OUTER" :of #(some-of output/user-text (:outer %)) :csv :outer
    :least 14 :cut-at :middle}
   {:key :pinned :title "PINNED" :of #(some-of identity (:pinned %)) :csv :pinned
    :least 12 :cut-at :left :rank 1}
   {:key :flags :title "FLAGS" :of (comp flag-text :flags) :csv :flags :least 8 :rank 3}])

(defn- listed
  "Returns the view of a list of objects.

  The columns are those of the options, or else all of `table` that are `used?`. CSV always has all fields. A field without a column of its own gets a plain one."
  [rows {:keys [columns]} {:keys [command fields table none place] used? :used}]
  (let [column-of (fn [k]
                    (or (some #(when (= k (:key %)) (dissoc % :rank)) table)
                        {:key k :title (str/upper-case (fields/name-of k)) :of k}))
        named (fn [{:keys [key] :as column}] (assoc column :name (fields/name-of key)))
        chosen (map #(column-of (listing/column command fields %)) columns)]
    {:columns (if columns chosen (filter #(used? (:key %)) table))
     :csv-columns (map named
                       (or (seq chosen)
                           (map (comp column-of keyword first) (:fields fields))))
     :rows rows
     :closing (when (and (empty? rows) (nil? columns)) [none])
     :notes (skipped-notes rows #(str place " " (:id %)))}))

(defn- count-lines
  "Renders a number alone."
  [{n :count}]
  {:lines [(str n)] :rows [{:count n}] :csv-columns [{:title "count" :of :count}]})

(defn maps
  "Renders the rows of `list` as a table, or their number.

  FROZEN is a column only if a map is frozen, FILL only if a map is a ring, FULL only if a map can
  be full and was counted, OUTER only if the options name it. CSV always has all columns."
  [maps {:keys [total] :as options}]
  (if total
    (count-lines maps)
    (listed maps options
            {:command "list" :fields map-info/list-fields :table map-columns
             :used (fn [k] (or (not (#{:frozen :fill :full :outer} k)) (some k maps)))
             :none "no maps" :place "map"})))

(defn- overview-table
  "Returns the lines of a table of maps below a heading; nil without rows."
  [heading columns rows width]
  (when (seq rows)
    (list* "" heading
           (map #(str "  " %)
                (rest (if width
                        (:lines (output/fitted columns rows (- (long width) 2)))
                        (output/table columns rows)))))))

(def ^:private next-commands
  "Commands to go on with, by whether the user may list maps."
  {true [["bpfmap list --sort -full" "all maps, the fullest first"]
         ["bpfmap top" "all maps, live"]
         ["bpfmap show REF" "everything about a map, by its id, name or pin"]
         ["bpfmap dump REF" "the entries of a map"]
         ["bpfmap help" "all commands"]]
   false [["sudo bpfmap" "this overview, as root"]
          ["bpfmap tree" "the pins that this user can see"]
          ["bpfmap features" "what this kernel supports, as far as this user can tell"]
          ["bpfmap inspect FILE" "the maps and programs of a compiled object"]
          ["bpfmap help" "all commands"]]})

(defn- next-lines
  "Returns the lines of commands; without their explanations if these have no room."
  [commands width]
  (let [lines (output/fields commands)]
    (map #(str "  " %)
         (if (and width (some #(< (- (long width) 2) (count %)) lines))
           (mapcat (fn [[command explanation]]
                     (into [command] (map #(str "  " %) (wrapped (str/split explanation #" ")
                                                                 (- (long width) 4)))))
                   commands)
           lines))))

(defn overview
  "Renders the overview of the host, with commands to go on with.

  The lines are a function of the width of the terminal, or nil."
  [{:keys [kernel maps memory programs links largest fullest fastest reason pins]} _options]
  (let [named {:title "" :of #(str (output/cell (:name %)) "[" (:id %) "]") :least 12
               :cut-at :middle}
        held {:title "" :of holders-text :least 8 :cut-at :middle :rank 1}
        titles (if maps
                 [(str "Linux " kernel ": " (error/plural maps "map") " with "
                       (output/human-size memory)
                       (when programs (str ", " (error/plural programs "program")))
                       (when links (str ", " (error/plural links "link"))))]
                 [(str "Linux " kernel ": " reason)
                  (str (if pins (error/plural pins "pin") "no pins") " visible")])
        table (fn [heading of rows width]
                (overview-table heading [named {:title "" :of of :align :right} held] rows width))]
    {:lines
     (fn [width]
       (concat
        (if width (mapcat #(wrapped (str/split % #" ") width) titles) titles)
        (table "Largest maps" #(some-> (:memlock %) output/human-size) largest width)
        (table "Fullest maps" output/full-text fullest width)
        (table "Fastest maps, changes/s" (comp rate-text :changes-per-second) fastest width)
        ["" "Commands to go on with"]
        (next-lines (next-commands (some? maps)) width)))}))


(defn- link-text
  "Returns a link of a program as text, or an attachment without a link.

      (link-text {:id 7 :type :raw-tracepoint :attached-to \"sys_enter\"})
      ;=> \"raw-tracepoint sys_enter[7]\""
  [{:keys [id type attached-to]}]
  (str (output/cell type) (when attached-to (str " " attached-to)) (when id (str "[" id "]"))))

(defn nanoseconds-text
  "Returns a duration in nanoseconds as text, with a unit; nil for nil.

      (nanoseconds-text 1500) ;=> \"1.5us\""
  [n]
  (when n
    (condp > (abs (double n))
      1e3 (str (Math/round (double n)) "ns")
      1e6 (str (output/format-1dp (/ n 1e3)) "us")
      1e9 (str (output/format-1dp (/ n 1e6)) "ms")
      (str (output/format-1dp (/ n 1e9)) "s"))))

(def ^:private program-columns
  "The columns of `prog list`.

  A narrow terminal omits the highest ranks first."
  [{:key :id :title "ID" :of :id}
   {:key :type :title "TYPE" :of :type :least 11}
   {:key :name :title "NAME" :of :name :least 15}
   {:key :tag :title "TAG" :of :tag :rank 5}
   {:key :run-count :title "RUNS" :of :run-count :align :right}
   {:key :run-time-ns :title "TIME" :of (comp nanoseconds-text :run-time-ns) :csv :run-time-ns
    :align :right}
   {:key :memlock :title "MEMORY" :of #(some-> (:memlock %) output/human-size) :csv :memlock
    :align :right :rank 4}
   {:key :maps :title "MAPS" :of #(some-of output/user-text (:maps %)) :csv :maps
    :least 14 :cut-at :middle :rank 2}
   {:key :links :title "ATTACHED TO" :of #(some-of link-text (:links %)) :csv :links
    :least 14 :cut-at :middle}
   {:key :held :title "HELD BY" :of holders-text :csv :held
    :least 14 :cut-at :middle}
   {:key :pinned :title "PINNED" :of #(some-of identity (:pinned %)) :csv :pinned
    :least 12 :cut-at :left :rank 1}])

(defn programs
  "Renders the rows of `prog list` as a table.

  RUNS and TIME are columns only if a program was measured."
  [rows options]
  (listed rows options
          {:command "prog list" :fields program-info/program-fields :table program-columns
           :used (fn [k] (or (not (#{:run-count :run-time-ns} k)) (some k rows)))
           :none "no programs" :place "program"}))

(def ^:private link-columns
  "The columns of `link list`."
  [{:key :id :title "ID" :of :id}
   {:key :type :title "TYPE" :of :type :least 11}
   {:key :attached-to :title "ATTACHED TO" :of :attached-to :least 16 :cut-at :middle}
   {:key :program :title "PROGRAM" :of #(some-> (:program %) output/user-text) :csv :program
    :least 14 :cut-at :middle}
   {:key :held :title "HELD BY" :of holders-text :csv :held
    :least 14 :cut-at :middle}
   {:key :pinned :title "PINNED" :of #(some-of identity (:pinned %)) :csv :pinned
    :least 12 :cut-at :left :rank 1}])

(defn links
  "Renders the rows of `link list` as a table."
  [rows options]
  (listed rows options
          {:command "link list" :fields program-info/link-fields :table link-columns
           :used any? :none "no links" :place "link"}))

(def ^:private held-columns
  "The columns of `holds`."
  [{:key :kind :title "KIND" :of :kind}
   {:key :id :title "ID" :of :id}
   {:key :type :title "TYPE" :of :type :least 11}
   {:key :name :title "NAME" :of :name :least 15}
   {:key :memlock :title "MEMORY" :of #(some-> (:memlock %) output/human-size) :csv :memlock
    :align :right :rank 2}
   {:key :ends :title "ENDS" :of #(if (:ends %) "yes" "no") :csv :ends}
   {:key :held :title "HELD BY" :of holders-text :csv :held :least 14 :cut-at :middle}
   {:key :pinned :title "PINNED" :of #(some-of identity (:pinned %)) :csv :pinned
    :least 12 :cut-at :left :rank 1}])

(defn held-objects
  "Renders the rows of `holds` as a table."
  [rows options]
  (listed rows options
          {:command "holds" :fields program-info/held-fields :table held-columns
           :used any? :none "no maps, programs or links" :place "object"}))

(defn detached
  "Renders a link that was detached."
  [{:keys [id type attached-to]} _options]
  {:lines [(str "link " id " (" (output/cell type) ") is detached"
                (when attached-to (str " from " (output/cell attached-to))))]})

;; --- code

(def ^:private code-width "The number of bytes in a line of machine code." 16)

(defn- code-rows
  "Returns the lines of code between two offsets, with the offset of each line.

  Assemblers read such lines: bytes in hexadecimal, and comments from a # on."
  [code from to]
  (let [shown (for [at (range from to code-width)]
                [at (str/join " " (for [i (range at (min (long to) (+ (long at)
                                                                      (long code-width))))]
                                    (format "0x%02x" (bit-and 0xff (long (nth code i))))))])]
    (for [[at octets] shown]
      (str octets (.repeat " " (- (* 5 (long code-width)) (count octets))) "# "
           (format "%4x" at)))))

(defn- function-code
  "Returns the machine code of a function as lines, with source lines as comments."
  [{:keys [name address code lines]}]
  (let [size (count code)
        blocks (->> lines
                    (remove #(= 0 (:line %)))
                    (partition-by (juxt :file :line :text))
                    (map first)
                    (sort-by :offset))
        starts (map :offset blocks)
        ends (concat (rest starts) [size])]
    (concat
     [(str "# " (output/cell name) ": " (error/plural size "byte")
           (when address (str " at 0x" (.toString (biginteger address) 16))))]
     (code-rows code 0 (if (seq starts) (first starts) size))
     (mapcat (fn [{:keys [file line text]} from to]
               (cons (str "# " (output/cell (str/trim text)) " @ " (output/cell file) ":" line)
                     (code-rows code from to)))
             blocks starts ends))))

(defn- machine-code
  "Renders the machine code of a program, and then of its other functions."
  [{:keys [functions] :as program}]
  {:lines (mapcat function-code (cons program (vals functions)))})

(defn assembly
  "Renders the instructions of a program, and then of its other functions."
  [{:keys [functions] :as program} _options]
  ;; The assembler is loaded on demand, because no other command needs it.
  (let [text (requiring-resolve 'bpfmap.asm/disassemble)]
    {:lines (mapcat (comp str/split-lines text) (cons program (vals functions)))}))

(defn program
  "Renders a program as assembly, or its machine code as bytes in hexadecimal."
  [found options]
  (if (:code found) (machine-code found) (assembly found options)))

;; --- one object

(defn- shown-field [[field x]]
  (case field
    :flags [field (flag-text x)]
    :frozen ["frozen" (if x "yes" "no")]
    :held ["held" ((all-of output/holder-text) x)]
    :used-by ["used-by" ((all-of output/user-text) x)]
    :outer ["outer" ((all-of output/user-text) x)]
    :maps [field ((all-of output/user-text) x)]
    :links ["attached-to" ((all-of link-text) x)]
    :program [field (output/user-text x)]
    :pinned [field (not-empty (str/join " " x))]
    [field x]))

(defn fields
  "Renders the fields of one object, one per line."
  [info _options]
  {:lines (output/fields (for [[field :as shown] info]
                           (if (= :full field)
                             [field (output/full-text info)]
                             (shown-field shown))))})

;; --- several maps

(defn- heading [{:keys [type] :as m}]
  (str (map-text m) ", " (output/cell type)))

(defn- failures
  "Returns the notes and the exit code for maps that could not be read."
  [maps]
  (let [failed (filter :error maps)]
    {:notes (for [{:keys [id message] :as m} failed
                  :let [message (wording/worded message)]]
              (if (or (nil? id) (str/includes? message (str "map " id)))
                message
                (str (map-text m) ": " message)))
     :exit (if (seq failed) 1 0)}))

(defn map-fields
  "Renders the fields of one map, or of several, each below a heading."
  [shown options]
  (if (map? shown)
    (fields shown options)
    (assoc (failures shown)
           :sections (for [m shown :when (not (:error m))]
                       {:heading (heading m) :lines (:lines (fields m options))}))))

;; --- tree

(defn- directories
  "Returns pins as nested maps, from names to pins or to the maps of directories."
  [pins root]
  (reduce (fn [tree {:keys [path] :as pin}]
            (assoc-in tree (remove str/blank? (str/split (subs path (count root)) #"/")) pin))
          (sorted-map) pins))

(defn- pin? [x] (contains? x :path))

(defn- drawn
  "Returns the lines of nested directories: `[text pin]`."
  [prefix tree]
  (let [n (count tree)]
    (mapcat (fn [i [name x]]
              (let [last? (= i (dec n))
                    line (str prefix (if last? "└── " "├── ") (output/cell name))]
                (if (pin? x)
                  [[line x]]
                  (cons [line nil]
                        (drawn (str prefix (if last? "    " "│   ")) (into (sorted-map) x))))))
            (range) tree)))

(defn- common-root
  "Returns the deepest directory that contains all pins."
  [pins]
  (let [parts (map #(butlast (str/split (:path %) #"/")) pins)
        shared (fn [a b] (map first (take-while (fn [[x y]] (= x y)) (map vector a b))))]
    (str/join "/" (reduce shared parts))))

(defn tree
  "Renders pins as a tree of directories."
  [pins {:keys [directory]}]
  (let [unseen (skipped-notes pins :path)
        root (or (when (seq pins) (common-root pins)) directory)
        lines (when (seq pins) (cons [(output/cell root) nil] (drawn "" (directories pins root))))
        width (transduce (comp (filter second) (map (comp count first))) max 0 lines)]
    {:lines (for [[text {:keys [kind id type name]}] lines]
              (if kind
                (str/trimr (str text (.repeat " " (- (long width) (count text))) "  "
                                (clojure.core/name kind) " " id " " (output/cell type) " "
                                (when (seq name) (output/cell name))))
                text))
     :closing [(cond
                 (seq pins) (error/plural (count pins) "pin")
                 (seq unseen) "no pins visible: permission denied; run as root"
                 :else "no pins")]
     :notes unseen
     :exit (if (and (empty? pins) (seq unseen)) 1 0)}))

;; --- dump

(defn- address-text
  "Returns the addresses of a stack in hexadecimal, or the symbols that hints show.

      (address-text [255]) ;=> \"0xff\""
  [addresses]
  (str/join (if (some string? addresses) "; " " ")
            (map #(if (integer? %) (str "0x" (.toString (biginteger %) 16)) (output/cell %))
                 addresses)))

(defn- of-stacks
  "Returns columns whose values are stacks."
  [columns]
  (map (fn [{:keys [side] :as column}]
         (cond-> column (= :value side) (assoc :of (comp address-text :value))))
       columns))

(defn- trees-of
  "Returns the trees of keys and values, or nil.

  The metadata has `:spec` and `:cpus`, and the tree of the keys of an `:outer` map."
  [{:keys [spec cpus collapsed outer]}]
  (when spec
    (cond-> (column-tree/with-collapsed (column-tree/of-entries spec cpus) collapsed)
      outer (assoc :outer outer))))

(defn- entry-table
  "Renders the entries of a map as a table."
  [entries {:keys [keys inner]}]
  (let [sides (cond-> (if keys [:key] [:key :value])
                inner (->> (cons :outer) vec))
        {:keys [type untyped] :as about} (meta entries)]
    (if (vector? entries)
      {:columns (cond-> (output/columns sides entries (trees-of about))
                  (= :stack-trace type) of-stacks
                  (and (not keys) (seq entries) (every? (comp bytes/byte-view? :value) entries))
                  ;; Without a title, because options cannot name it.
                  (concat [{:title "" :of (comp ascii :value) :rank 99}]))
       :csv-columns (output/csv-columns sides (trees-of about))
       :rows entries
       :closing (cond-> [(error/plural (count entries) "entry" "entries")]
                  (and untyped (seq entries))
                  (conj (str "shown as bytes: " untyped "; set --key-type and --value-type")))}
      {:columns (for [side sides]
                  {:title (str/upper-case (name side)) :of side :cell output/element-cell})
       ;; A stream opens its map when it is reduced. The types are unknown before.
       :csv-columns (delay (output/csv-columns sides (trees-of (some-> (:about about) deref))))
       :rows entries})))

(defn- tables
  "Renders the entries of several maps as tables, each below a heading.

  In CSV, keys and values are one column each, since maps have different fields."
  [maps {:keys [keys inner] :as options}]
  (let [read (remove :error maps)]
    (assoc (failures maps)
           :sections (for [{m :map entries :entries} read
                           :let [{:keys [columns rows closing]} (entry-table entries options)]]
                       {:heading (str (heading m) ": " (str/join "; " closing))
                        :columns columns :rows rows})
           :rows (for [{{:keys [id name]} :map entries :entries} read, entry entries]
                   (assoc entry :id id :name name))
           :csv-columns (for [k (-> [:id :name]
                                    (cond-> inner (conj :outer))
                                    (conj :key)
                                    (cond-> (not keys) (conj :value)))]
                          {:title (name k) :of k}))))

(defn- counts
  "Renders the numbers of entries of several maps."
  [maps]
  (assoc (failures maps)
         :columns [{:title "ID" :of (comp :id :map)} {:title "NAME" :of (comp :name :map)}
                   {:title "COUNT" :of :count}]
         :rows (remove :error maps)))

(defn entries
  "Renders the entries of a map, or of several, as tables, or their numbers."
  [found {:keys [count] :as options}]
  (cond
    (and count (map? found)) (count-lines found)
    count (counts found)
    (and (vector? found) (some #(or (:map %) (:error %)) found)) (tables found options)
    :else (entry-table found options)))

;; --- events

(def ^:private least-number "The width of a column of numbers, before there is a longer one." 6)
(def ^:private least-text "The width of a column of anything else, before there is a longer one." 8)

(def ^:private most-extra "The number of bytes beyond its type that the line of an event shows." 16)

(defn- hexadecimal [octets]
  (str/join " " (map #(format "%02x" (bit-and 0xff (long %))) octets)))

(defn- bytes-line
  "Returns the line of an event without a type.

  It has the size, the bytes in hexadecimal, and the bytes as text. With a width, cuts both to it."
  [view width]
  (let [size (count view)
        room (if width (max 1 (quot (- (long width) 14) 4)) size)
        shown (min size (long room))
        octets (map #(bit-and 0xff (long %)) (take shown view))
        cut (if (< shown size) "…" "")]
    (str (.repeat " " (max 0 (- 5 (count (str size))))) size "  "
         (hexadecimal octets) cut
         "  |" (printable-text octets) cut "|")))

(defn- event-columns
  "Returns the columns of typed events."
  [{:keys [type fields collapsed] {map-type :type} :map}]
  (let [trees (-> (column-tree/of-entries {:type :ringbuf :value type} nil)
                  (column-tree/with-collapsed collapsed))
        number? (fn [path]
                  (= :number (:kind (second (fields/find-path fields (map fields/name-of path))))))]
    (concat
     (when (= :perf-event-array map-type)
       [{:title "CPU" :of :cpu :width 3 :right true}])
     (for [{:keys [title path of]} (output/columns [:value] nil trees ["value"])
           :let [right? (number? path)]]
       {:title title :right right?
        ;; An event of another length than its type may have its value below a key.
        :of (fn [{:keys [value] :as row}]
              (if (and (map? value) (contains? value :bpfmap/value))
                (:bpfmap/value value)
                (of row)))
        :width (max (count title) (long (if right? least-number least-text)))}))))

(defn- beyond-type
  "Returns a text if an event is longer or shorter than its type, or nil."
  [value]
  (when (map? value)
    (let [{:bpfmap/keys [extra missing]} value]
      (str (when missing (str "  (" (error/plural missing "byte") " missing)"))
           (when extra
             (let [shown (take most-extra extra)]
               (str "  (" (error/plural (count extra) "more byte") ": "
                    (hexadecimal shown) (when (< (count shown) (count extra)) " …") ")")))))))

(defn- laid-out
  "Returns texts as a line, and the widths of its columns: at least `widths`."
  [columns widths texts]
  (let [widths (mapv #(max (long %1) (count %2)) widths texts)]
    [(str/trimr
      (str/join "  " (map (fn [{right? :right} width text]
                            (let [blanks (.repeat " " (- (long width) (count text)))]
                              (if right? (str blanks text) (str text blanks))))
                          columns widths texts)))
     widths]))

(defn- event-lines
  "Returns a transducer from the rows of events to lines.

  The first line is a heading. A column gets wider when an event needs it."
  [about width]
  (let [state (volatile! nil)]
    (mapcat
     (fn [{:keys [value error] :as row}]
       (let [first? (nil? @state)
             {:keys [columns]}
             (or @state
                 (vreset! state (let [columns (when (:type @about) (vec (event-columns @about)))]
                                  {:columns columns :widths (mapv :width columns)})))
             line (fn [texts]
                    (let [[line widths] (laid-out columns (:widths @state) texts)]
                      (vswap! state assoc :widths widths)
                      line))
             heading (when first?
                       [(if columns (line (map :title columns)) "BYTES  DATA")])]
         (concat
          heading
          (cond
            (not (contains? row :value)) nil
            error [(str (bytes-line value width) "  (" error ")")]
            columns [(str (line (mapv (fn [{:keys [of]}] (output/element-cell (of row))) columns))
                          (beyond-type value))]
            :else [(bytes-line value width)])))))))

(defn- plain-row
  "Returns the row of an event for CSV.

  The keys of an event of another length than its type become `:extra` and `:missing` of the row."
  [{:keys [value] :as row}]
  (let [{:bpfmap/keys [extra missing]} (when (map? value) value)]
    (if (or extra missing)
      (assoc row
             :value (if (contains? value :bpfmap/value)
                      (:bpfmap/value value)
                      (dissoc value :bpfmap/extra :bpfmap/missing))
             :extra extra
             :missing missing)
      row)))

(defn- flushing
  "Returns a reducible that flushes *out* after each step."
  [xs]
  (reify clojure.lang.IReduceInit
    (reduce [_ f init]
      (reduce (fn [acc x]
                (let [acc (f acc x)]
                  (flush)
                  acc))
              init xs))))

(defn events
  "Renders a reducible of events: a line for each, printed as soon as it is there.

  `about` is the atom with the facts about the map, `width` the width of the terminal, or nil."
  ([rows _options] (events rows (:about (meta rows)) nil))
  ([rows about width]
   {:value (flushing rows)
    :rows (flushing (eduction (map plain-row) rows))
    :lines (flushing (eduction (event-lines about width) rows))
    :csv-columns
    (delay
      (let [{:keys [type collapsed] {map-type :type} :map} @about]
        (concat (when (= :perf-event-array map-type) [{:title "cpu" :of :cpu}])
                (output/csv-columns [:value]
                                    ;; A short event lacks fields.
                                    (when type
                                      (-> {:type :ringbuf :value type}
                                          (column-tree/of-entries nil)
                                          (column-tree/with-collapsed collapsed)
                                          (update :value assoc :partial true))))
                (for [k [:extra :missing :error :lost :missed :status]]
                  {:title (name k) :of k}))))}))

;; --- objects

(defn- type-text
  "Returns a type in a few words, as the command line writes types; nil for nil.

  A text, which is a type as C spells it, stays as it is.

      (type-text [:array :u8 16]) ;=> \"[array u8 16]\""
  [type]
  (if (string? type)
    type
    (some-> type type/summary (str/replace #":(?=[a-zA-Z])" ""))))

(def ^:private most-text "The number of characters of the longest value in a table." 60)

(defn- cut-text [text]
  (if (< (long most-text) (count text)) (str (subs text 0 (dec (long most-text))) "…") text))

(defn- size-or-type [type size]
  (or (type-text type) (when size (error/plural size "byte"))))

(def ^:private object-map-columns
  [{:title "NAME" :of :name}
   {:title "TYPE" :of :type}
   {:title "KEY" :of #(size-or-type (:key %) (:key-size %))}
   {:title "VALUE" :of #(size-or-type (or (:value %) (:record-type %)) (:value-size %))}
   {:title "MAX" :of :max-entries :align :right}
   {:title "FLAGS" :of (comp flag-text :flags)}])

(defn- instruction-count [{:keys [insns]}]
  (count (remove keyword? insns)))

(def ^:private object-program-columns
  [{:title "NAME" :of :name}
   {:title "SECTION" :of :section}
   {:title "TYPE" :of :type}
   {:title "INSTRUCTIONS" :of instruction-count}])

(def ^:private object-variable-columns
  [{:title "NAME" :of :name}
   {:title "SECTION" :of :section}
   {:title "TYPE" :of #(size-or-type (:type %) (:size %))}
   {:title "VALUE" :of (fn [{:keys [value] :as variable}]
                         (if (contains? variable :value)
                           (cut-text (output/element-cell value))
                           "all zero"))
    :cell identity}])

(def ^:private object-extern-columns
  [{:title "NAME" :of :name}
   {:title "KIND" :of :kind}
   {:title "TYPE" :of (comp type-text :type)}
   {:title "MISSING" :of #(if (:weak %) "allowed" "refused")}])

(defn- relocation-text
  "Returns the part of a type that a CO-RE relocation asks for.

      (relocation-text {:type \"struct task_struct\" :path [:links 1 :next]})
      ;=> \"struct task_struct.links[1].next\""
  [{:keys [type path enumerator]}]
  (str type
       (str/join (map #(if (keyword? %) (str "." (name %)) (str "[" % "]")) path))
       (when enumerator (str " " enumerator))))

(def ^:private questions
  "Kinds of relocations whose value is the answer to a question, 0 or 1."
  #{:field-exists :type-exists :type-matches :enumval-exists})

(defn- relocation-rows
  "Returns the CO-RE relocations of an object, grouped.

  Without a kernel to compare with, they have no `:here`."
  [{:keys [programs functions relocations]}]
  (->> (or relocations
           (mapcat :core (concat (vals programs) (vals functions))))
       (group-by (juxt relocation-text :kind :satisfied :value))
       (sort-by (fn [[[what kind]]] [what (str kind)]))
       (map (fn [[[what kind satisfied value] all]]
              {:what what :kind kind :count (count all)
               :here (cond
                       (nil? satisfied) nil
                       (not satisfied) "missing"
                       (questions kind) (if (= 0 value) "no" "yes")
                       :else value)}))))

(def ^:private relocation-columns
  [{:title "OF THE KERNEL" :of :what}
   {:title "READS" :of :kind}
   {:title "TIMES" :of :count}
   {:title "HERE" :of :here :align :right}])

(defn- unsatisfied-text
  "Returns the line about relocations without a value on this kernel, or nil."
  [{:keys [relocations]}]
  (when relocations
    (let [n (count (remove :satisfied relocations))]
      (str "this kernel satisfies "
           (if (zero? n) "all" (- (count relocations) n)) " of "
           (error/plural (count relocations) "relocation")))))

(defn- titled
  "Returns the lines of a table under a title; nil without rows."
  [title columns rows]
  (when (seq rows)
    (concat ["" title] (map #(str "  " %) (output/table columns rows)))))

(defn- by-name
  "Returns named parts of an object as rows, in the order of their names."
  [parts]
  (for [[name part] (sort-by key parts)] (assoc part :name name)))

(defn object
  "Renders an object as tables of its parts, or one of its programs as assembly."
  [{:keys [maps programs functions variables kconfig ksyms license byte-order btf]
    object-name :name :as object}
   {:keys [program] :as options}]
  (if program
    (assembly object options)
    {:lines (concat
             [(str (output/cell object-name) ": " (name byte-order) ", "
                   (if (seq license) (str "license " (output/cell license)) "no license") ", "
                   (if btf
                     (str "BTF of " (error/plural (count btf) "byte"))
                     "no BTF"))]
             (titled "Maps" object-map-columns (by-name maps))
             (titled "Programs" object-program-columns (by-name programs))
             (titled "Functions" (remove #(= "TYPE" (:title %)) object-program-columns)
                     (by-name functions))
             (titled "Variables" object-variable-columns
                     (sort-by (juxt :section :offset) (by-name variables)))
             (titled "Kernel configuration" (remove #(= "KIND" (:title %)) object-extern-columns)
                     (by-name kconfig))
             (titled "Kernel symbols" object-extern-columns (by-name ksyms))
             (titled "CO-RE relocations" relocation-columns (relocation-rows object)))
     :closing [(str (error/plural (count maps) "map") ", "
                    (error/plural (count programs) "program") ", "
                    (error/plural (count variables) "variable"))
               (unsatisfied-text object)]}))

;; --- a run

(def ^:private run-program-columns
  [{:title "ID" :of :id}
   {:title "TYPE" :of :type}
   {:title "NAME" :of :name :least 15}
   {:title "ATTACHED TO" :of :attached-to :least 20}
   {:title "MISSES" :of :recursion-misses :align :right}])

(def ^:private run-map-columns
  [{:title "ID" :of :id}
   {:title "TYPE" :of :type}
   {:title "NAME" :of :name :least 15}
   {:title "ENTRIES" :of :entries :align :right}
   {:title "MAX" :of :max-entries :align :right}
   {:title "FILL" :of #(some-> (:fill %) output/human-size) :align :right}])

(def ^:private run-variable-columns
  [{:title "NAME" :of :name :least 15}
   {:title "VALUE" :of (comp output/element-cell :value) :cell identity :least 20}])

(defn run-summary
  "Returns the lines of a summary of `run`, for a width; nil for any width.

      (run-summary {:programs [] :maps [] :variables {}} 80) ;=> ()"
  [{:keys [programs maps variables]} width]
  (let [columns (fn [key columns rows] (if (some key rows) columns (butlast columns)))]
    (rest
     (mapcat (fn [[columns rows]]
               (when (seq rows)
                 (cons "" (if width
                            (:lines (output/fitted columns rows width))
                            (output/table columns rows)))))
             [[(columns :recursion-misses run-program-columns programs) programs]
              [(columns :fill run-map-columns maps) maps]
              [run-variable-columns (for [[name value] variables] {:name name :value value})]]))))

(defn event-printer
  "Returns a function from the row of an event of a map to its lines.

  `about` has the `:map`, the `:type` of its events and the `:fields` of the rows. The first lines
  begin with a heading."
  [about width]
  (let [step ((event-lines (atom about) width) conj)]
    (fn [row] (step [] row))))
