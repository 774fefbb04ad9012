(ns bpfmap.cli.views.kernel
  "How people see types, and what the kernel has. See `bpfmap.cli.views` for what a view is."
  (:require [bpfmap.cli.output :as output]
            [clojure.pprint :as pprint]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

;; --- types

(defn- type-lines [type]
  (binding [pprint/*print-right-margin* 78]
    (str/split-lines (with-out-str (pprint/pprint type)))))

(defn- side-lines [side {:keys [type c size]}]
  (when type
    (concat ["" (str (name side) ", " (output/plural size "byte" "bytes") ", in C and as a type of bpfmap")]
            (map #(str "  " %) c)
            [""]
            (map #(str "  " %) (type-lines type)))))

(defn types
  "The types of keys and values, in C and as data."
  [{:keys [key value untyped] {:keys [id name type]} :map} _options]
  {:lines (concat [(str "map " id (when (seq name) (str " (" (output/cell name) ")")) ", " (output/cell type))]
                  (side-lines :key key)
                  (side-lines :value value))
   :closing (when untyped [untyped])})

;; --- features

(defn- wrapped
  "Words as lines of a width."
  [words width]
  (reduce (fn [lines word]
            (let [line (peek lines)]
              (if (and line (<= (+ (count line) 1 (count word)) (long width)))
                (conj (pop lines) (str line " " word))
                (conj lines word))))
          [] words))

(defn- summary-lines
  "What of some features is here, what not, and what cannot be told."
  [title rows]
  (let [names (fn [here] (map #(output/cell (:name %)) (filter #(= here (:here %)) rows)))]
    (concat ["" title]
            (for [[label here] [["here" true] ["not here" false] ["cannot be told" nil]]
                  :let [lines (wrapped (names here) 60)]
                  [i line] (map-indexed vector lines)]
              (str "  " (if (zero? (long i)) label "") (.repeat " " (- 16 (count (if (zero? (long i)) label "")))) line)))))

(defn features
  "What the kernel has, in words; or the rows that were asked for."
  [rows {:keys [where]}]
  (let [rows (if (coll? rows) rows (into [] rows))
        columns [{:title "FEATURE" :of :feature} {:title "OF" :of :of} {:title "NAME" :of :name :least 10}
                 {:title "HERE" :of #(case (:here %) true "yes" false "no" "?") :csv :here} {:title "SINCE" :of :since}
                 {:title "WHY" :of :why :least 8 :rank 1}]
        of-feature (fn [feature] (filter #(= feature (:feature %)) rows))]
    (if where
      {:columns columns :rows rows :closing [(output/plural (count rows) "feature" "features")]}
      {:csv-columns columns :rows rows
       :lines (concat [(str "Linux " (:kernel (meta rows)))]
                      (summary-lines "Map types" (of-feature :map-type))
                      (summary-lines "Flags of element operations" (of-feature :element-flag))
                      (summary-lines "Program types" (of-feature :program-type)))
       :closing [(str (count rows) " questions were asked; what a map type can do: --where 'of=hash'")]})))
