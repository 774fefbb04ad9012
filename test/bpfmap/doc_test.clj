(ns bpfmap.doc-test
  "The guide's transcripts are evaluated again, and its tables are made from the rules."
  (:require [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.rules :as rules]
            [bpfmap.transcript :as transcript]
            [clojure.string :as str]
            [clojure.test :refer [deftest is]]))

(set! *warn-on-reflection* true)

(def ^:private guide "doc/map-types.md")

(def ^:private columns
  [["type" #(str "`" (:type %) "`")]
   ["Linux" :since]
   ["operations" (fn [{:keys [ops]}]
                   (str/join " " (for [op [:lookup :put! :insert! :replace! :delete! :take! :next-key :reduce :drain! :push! :pop! :peek
                                           :might-contain?]
                                       :when (ops op)]
                                   (name op))))]
   ["all at once" (fn [{:keys [batch]}] (str/join " " (filter (set (map name batch)) ["read" "take" "write" "delete"])))]
   ["flags" (fn [{:keys [flags requires]}]
              (str/join " " (for [flag (sort-by #(:bit (rules/flags %)) flags)]
                              (if (contains? requires flag) (str "**" (name flag) "**") (name flag)))))]])

(defn type-table
  "The table of the guide: a row for each type, by number. Flags that a type needs are bold."
  []
  (let [line (fn [cells] (str "| " (str/join " | " cells) " |"))]
    (str/join "\n" (concat [(line (map first columns)) (line (repeat (count columns) "---"))]
                           (for [[type row] (sort-by (comp :number val) rules/types)]
                             (line (map (fn [[_ cell]] (cell (assoc row :type type))) columns)))))))

(defn with-table
  "A page with its table made anew."
  [text]
  (str/replace text #"(?s)(<!-- types: [^>]*-->\n).*(<!-- end -->)"
               (fn [[_ before after]] (str before (type-table) "\n" after))))

(deftest the-table-of-the-guide-is-that-of-the-rules
  (is (= (with-table (slurp guide)) (slurp guide))))

(defn- evaluated
  "Evaluates the transcripts of a page again, and compares what they print, and what they leave open."
  [page at-least]
  (let [before (fixture/open-descriptors)
        text (slurp page)]
    (is (< at-least (count (re-seq #"(?m)^user=> " text))))
    (is (= (str/split-lines (transcript/comparable text))
           (str/split-lines (transcript/comparable (transcript/evaluate text)))))
    before))

(kernel-test the-guide's-transcripts-print-what-they-say
  (let [before (evaluated guide 40)]
    (is (= before (fixture/open-descriptors)))))

(kernel-test the-transcripts-of-the-page-on-memory-print-what-they-say
  (let [before (evaluated "doc/memory.md" 40)]
    (is (<= (fixture/open-descriptors) before))))
