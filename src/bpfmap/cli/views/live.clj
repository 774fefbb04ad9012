(ns bpfmap.cli.views.live
  "How people see what changes, and histograms. See `bpfmap.cli.views` for what a view is."
  (:require [bpfmap.cli.output :as output]
            [bpfmap.cli.spread :as spread]
            [bpfmap.cli.tree :as tree]
            [bpfmap.exec.fields :as fields]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn rate-text
  "A rate as people read it, nil as nothing.

      (rate-text 1234.56) ;=> \"1234.6\""
  [x]
  (when (some? x)
    (output/tenths x)))

(def marks
  "What stands before an entry that came, changed or went."
  {:new "+" :added "+" :changed "*" :gone "-" :removed "-"})

(defn numeric-paths
  "The ways to the numbers in rates."
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
  "How a table names the rates on a path, which `--where` and `--sort` take too."
  [path]
  (let [names (mapv spread/field-name path)]
    (fields/path-text (conj (pop names) (str (peek names) "/s")))))

(defn rate-columns
  "Columns for the rates on these paths; the numbers of a scalar value are PER-SECOND."
  [paths]
  (for [[i path] (map-indexed vector paths)]
    {:title (if (seq path) (rate-title path) "PER-SECOND")
     :of #(or (rate-cell (get-in (:per-second %) path)) "")
     :path (into [:per-second] path)
     :align :right :rank (+ 0.5 i)}))

(defn entry-columns
  "Columns of rows with a key, a value and rates where there are any: the mark, key, value, and rates on these paths."
  [rows rate-paths]
  (let [fields (spread/columns [:key :value] rows nil ["mark" "change" "per-second"])]
    (concat [{:title "" :of #(marks (:mark %) " ")}]
            fields
            (rate-columns rate-paths))))

;; --- diff

(defn- side-columns [rows trees]
  (concat
   [{:title "" :of #(marks (:change %) " ")}]
   (map #(dissoc % :rank) (spread/columns [:key] rows trees ["mark" "change" "old" "new" "per-second"]))
   [{:title "OLD" :of #(if (contains? % :old) (:old %) "") :least 16}
    {:title "NEW" :of #(if (contains? % :new) (:new %) "") :least 16}]))

(defn- csv-columns [{:keys [key value]} per-second?]
  (let [rates (when per-second? (if value (tree/rates value) tree/leaf))]
    (cond-> [{:title "change" :of :change}
             {:title "key" :of :key :tree key}
             {:title "old" :of :old :tree value}
             {:title "new" :of :new :tree value}]
      rates (conj {:title "per-second" :of :per-second :tree rates}))))

(defn diff
  "The table of `diff`."
  [rows {:keys [new]}]
  (let [{:keys [spec cpus same added changed removed]} (meta rows)
        trees (when spec (tree/of-entries spec cpus))
        rows (if (coll? rows) rows (into [] rows))
        paths (distinct (mapcat #(numeric-paths [] (:per-second %)) rows))]
    {:columns (concat (side-columns rows trees) (rate-columns paths))
     :csv-columns (csv-columns trees (nil? new))
     :rows rows
     :closing [(str added " added, " changed " changed, " removed " removed, " same " the same"
                    (when (< (count rows) (+ (long added) (long changed) (long removed)))
                      (str "; " (output/plural (count rows) "row is" "rows are") " shown")))]}))

;; --- histograms

(def ^:private ^:const bar-width 40)

(defn- bar [n most]
  (let [stars (if (pos? most) (long (Math/round (double (/ (* (long bar-width) (bigint n)) most)))) 0)
        stars (if (and (zero? stars) (pos? n)) 1 stars)]
    (str "|" (.repeat "*" stars) (.repeat " " (- (long bar-width) stars)) "|")))

(defn- bucket-text [{:keys [from to]}]
  (if (nil? from) ["" "< 0"] [(str from) (str to)]))

(defn histogram-lines
  "A histogram as BPF tools draw it."
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
     [(str (at-left (at-right unit (quot (+ left right 4 (count unit)) 2)) (+ left 4 right)) " : " (at-left "count" counts) " distribution")]
     (for [[[from to] {n :count}] (map vector ends buckets)]
       (str (at-right from left) (if (= "" from) "    " " -> ") (at-left to right) " : " (at-left (str n) counts) " " (bar n most))))))

(defn histograms
  "Histograms, one below the other, as BPF tools draw them. One of a field has its name as the heading of the numbers."
  [histograms {:keys [unit field]}]
  (let [histograms (if (coll? histograms) histograms (into [] histograms))
        shown (if field (map #(assoc % :title nil) histograms) histograms)
        unit (or unit (when field (fields/path-text field)) "value")]
    {:lines (mapcat identity (interpose [""] (map #(histogram-lines % unit) shown)))
     :rows (for [{:keys [title buckets]} histograms bucket buckets] (assoc bucket :title title))
     :csv-columns [{:title "TITLE" :of :title} {:title "FROM" :of :from} {:title "TO" :of :to} {:title "COUNT" :of :count}]
     :closing [(if (seq histograms)
                 (str (output/plural (reduce +' (map :total histograms)) "count" "counts") " in "
                      (output/plural (count histograms) "histogram" "histograms"))
                 "nothing was counted yet")]}))
