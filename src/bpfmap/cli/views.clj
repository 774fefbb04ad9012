(ns bpfmap.cli.views
  "How people see what a command returned: what is there, and what is in a map. A view is a map:

  | key        | what it holds                                                                   |
  |------------|---------------------------------------------------------------------------------|
  | `:columns` `:rows` | a table, as `bpfmap.cli.output/fitted` takes it; rows may be reducible  |
  | `:lines`   | instead of a table: lines; `:csv-columns` and `:rows` are then for --csv        |
  | `:text?`   | true where the lines are all there is, whatever the format                      |
  | `:closing` | what people read below, on stderr: lines                                        |
  | `:notes`   | what everybody must know of the data, on stderr: lines                          |
  | `:value`   | the data for --edn and --json, where it is not what the command returned        |
  | `:exit`    | the exit code, when it is not 0                                                 |"
  (:require [bpfmap.cli.output :as output]
            [bpfmap.cli.spread :as spread]
            [bpfmap.cli.tree :as tree]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.host :as host]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn- some-of
  "The first few of what there is, in one cell; nil for nothing."
  [texts]
  (when (seq texts)
    (str (first texts) (when (next texts) (str " +" (dec (count texts)))))))

(defn flag-text
  "Create flags by name, the unknown ones as numbers.

      (flag-text #{:mmapable 1073741824}) ;=> \"0x40000000,mmapable\""
  [flags]
  (when (seq flags)
    (str/join "," (map (fn [flag] (if (number? flag) (format "0x%x" flag) (output/cell flag)))
                       (sort-by str flags)))))

(defn holder-text
  "A process that holds a map.

      (holder-text {:pid 4711 :command \"agent\"}) ;=> \"agent[4711]\""
  [{:keys [command pid]}]
  (str command "[" pid "]"))

(defn user-text
  "A program that uses a map.

      (user-text {:id 30 :name \"count\"}) ;=> \"count[30]\""
  [{:keys [name id]}]
  (str name "[" id "]"))

(defn- all-of [text] #(not-empty (str/join " " (map text %))))

(defn- left-out
  "Notes about what a list has not, but for what went while it was made, which it rightly has not."
  [found place]
  (for [{:keys [error message] :as skipped} (:skipped (meta found)) :when (not= :not-found error)]
    (str (place skipped) " is left out: " message)))

(def ^:private map-columns
  "The columns of `list`. A narrow terminal leaves out the highest ranks first."
  [{:key :id :title "ID" :of :id}
   {:key :type :title "TYPE" :of :type :least 11}
   {:key :name :title "NAME" :of :name :least 15}
   {:key :key-size :title "KEY" :of :key-size :rank 4}
   {:key :value-size :title "VALUE" :of :value-size :rank 4}
   {:key :entries :title "ENTRIES" :of :entries :align :right}
   {:key :max-entries :title "MAX" :of :max-entries}
   {:key :memlock :title "MEMORY" :of #(some-> (:memlock %) output/human-size) :csv :memlock :align :right}
   {:key :frozen? :title "FROZEN" :of #(when (some? (:frozen? %)) (if (:frozen? %) "yes" "no")) :csv :frozen? :rank 5}
   {:key :held :title "HELD BY" :of #(some-of (map holder-text (:held %))) :csv :held
    :least 14 :cut-at :middle}
   {:key :used-by :title "USED BY" :of #(some-of (map user-text (:used-by %))) :csv :used-by
    :least 14 :cut-at :middle :rank 2}
   {:key :pinned :title "PINNED" :of #(some-of (:pinned %)) :csv :pinned
    :least 12 :cut-at :left :rank 1}
   {:key :flags :title "FLAGS" :of (comp flag-text :flags) :csv :flags :least 8 :rank 3}])

(defn- column-of
  "The column of a key of the rows; one that the table has none for shows what is there."
  [k]
  (or (some #(when (= k (:key %)) (dissoc % :rank)) map-columns)
      {:key k :title (str/upper-case (fields/name-of k)) :of k}))

(defn- named
  "A column as data has it: by the name of the field."
  [{:keys [key] :as column}]
  (assoc column :name (fields/name-of key)))

(defn maps
  "The table of `list`; that maps are frozen is a column only if one is. As data it has every column, whatever is in it."
  [maps {:keys [columns]}]
  (let [chosen (map (comp column-of host/column) columns)]
    {:columns (cond
                columns chosen
                (some :frozen? maps) map-columns
                :else (remove #(= :frozen? (:key %)) map-columns))
     :csv-columns (map named (or (seq chosen) (map (comp column-of host/column vector first) (:fields host/list-fields))))
     :rows maps
     :closing (when (and (empty? maps) (nil? columns)) ["no map"])
     :notes (left-out maps #(str "map " (:id %)))}))

(defn- shown-field [[field x]]
  (case field
    :flags [field (flag-text x)]
    :frozen? ["frozen" (if x "yes" "no")]
    :held ["held" ((all-of holder-text) x)]
    :used-by ["used-by" ((all-of user-text) x)]
    :pinned [field (not-empty (str/join " " x))]
    [field x]))

(defn fields
  "One thing's fields, a line each."
  [info _options]
  {:lines (output/fields (map shown-field info))})

;; --- tree

(defn- directories
  "Pins as nested maps: name to a pin, or to what is in the directory of that name."
  [pins root]
  (reduce (fn [tree {:keys [path] :as pin}]
            (assoc-in tree (remove str/blank? (str/split (subs path (count root)) #"/")) pin))
          (sorted-map) pins))

(defn- pin? [x] (contains? x :path))

(defn- drawn
  "The lines of nested directories: `[text pin]`."
  [prefix tree]
  (let [n (count tree)]
    (mapcat (fn [i [name x]]
              (let [last? (= i (dec n))
                    line (str prefix (if last? "└── " "├── ") (output/cell name))]
                (if (pin? x)
                  [[line x]]
                  (cons [line nil] (drawn (str prefix (if last? "    " "│   ")) (into (sorted-map) x))))))
            (range) tree)))

(defn- common-root
  "The directory that all pins are below."
  [pins]
  (let [parts (map #(butlast (str/split (:path %) #"/")) pins)
        shared (fn [a b] (map first (take-while (fn [[x y]] (= x y)) (map vector a b))))]
    (str/join "/" (reduce shared parts))))

(defn tree
  "The pins drawn as a tree of directories."
  [pins {:keys [directory]}]
  (let [unseen (left-out pins :path)
        root (or (when (seq pins) (common-root pins)) directory)
        lines (when (seq pins) (cons [(output/cell root) nil] (drawn "" (directories pins root))))
        width (transduce (comp (filter second) (map (comp count first))) max 0 lines)]
    {:lines (for [[text {:keys [kind id type name]}] lines]
              (if kind
                (str/trimr (str text (.repeat " " (- (long width) (count text))) "  "
                                (clojure.core/name kind) " " id " " (output/cell type) " " (when (seq name) (output/cell name))))
                text))
     :closing [(cond
                 (seq pins) (output/plural (count pins) "pin" "pins")
                 (seq unseen) "no pin can be seen: this user may not look into them; try as root"
                 :else "nothing is pinned")]
     :notes unseen
     :exit (if (and (empty? pins) (seq unseen)) 1 0)}))

;; --- dump

(defn- address-text
  "Addresses as people know them.

      (address-text [255]) ;=> \"0xff\""
  [addresses]
  (str/join " " (map #(if (integer? %) (str "0x" (.toString (biginteger %) 16)) (output/cell %)) addresses)))

(defn- of-stacks
  "Columns whose values are stacks."
  [columns]
  (map (fn [{:keys [side] :as column}]
         (cond-> column (= :value side) (assoc :of (comp address-text :value))))
       columns))

(defn- trees-of
  "The trees of the keys and values of a map, of which `:spec` and `:cpus` are known; nil of one that is not."
  [{:keys [spec cpus]}]
  (when spec (tree/of-entries spec cpus)))

(defn entries
  "The table of `dump`."
  [entries {:keys [keys]}]
  (let [sides (if keys [:key] [:key :value])
        {:keys [type untyped] :as about} (meta entries)]
    (if (vector? entries)
      {:columns (cond-> (spread/columns sides entries (trees-of about)) (= :stack-trace type) of-stacks)
       :csv-columns (spread/csv-columns sides (trees-of about))
       :rows entries
       :closing (cond-> [(output/plural (count entries) "entry" "entries")]
                  (and untyped (seq entries))
                  (conj (str "shown as bytes: " untyped "; --key-type and --value-type say it")))}
      {:columns (for [side sides] {:title (str/upper-case (name side)) :of side :cell output/element-cell})
       ;; A stream opens its map when it is reduced, and knows only then what is in it.
       :csv-columns (delay (spread/csv-columns sides (trees-of (some-> (:about about) deref))))
       :rows entries})))
