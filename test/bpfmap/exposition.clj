(ns bpfmap.exposition
  "Reads the text formats of Prometheus and OpenMetrics, and checks their rules."
  (:require [clojure.string :as str]
            [clojure.test :refer [is]]))

(set! *warn-on-reflection* true)

(def ^:private sample-line
  #"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*=\"(?:[^\"\\\n]|\\[\\n\"])*\",?)*)\})? (\S+)")

(defn- number [text]
  (case text "+Inf" ##Inf "-Inf" ##-Inf "NaN" ##NaN (Double/parseDouble text)))

(defn- unescaped [text]
  (str/replace text #"\\(.)" (fn [[_ c]] (if (= "n" c) "\n" c))))

(defn- labels [text]
  (into (sorted-map)
        (map (fn [[_ k v]] [k (unescaped v)]))
        (re-seq #"([a-zA-Z_][a-zA-Z0-9_]*)=\"((?:[^\"\\]|\\.)*)\"" (or text ""))))

(defn- family-of
  "The family that a sample belongs to."
  [families sample]
  (or (when (families sample) sample)
      (some (fn [suffix]
              (when (str/ends-with? sample suffix)
                (let [base (subs sample 0 (- (count sample) (count suffix)))]
                  (when (families base) base))))
            ["_total" "_bucket" "_count" "_sum" "_created"])))

(defn- check-histogram [family samples]
  (doseq [[_ group] (group-by #(dissoc (:labels %) "le") samples)
          :let [buckets (filter #(= (str family "_bucket") (:name %)) group)
                counts (map :value buckets)
                bounds (map #(number (get-in % [:labels "le"])) buckets)
                total (some #(when (= (str family "_count") (:name %)) (:value %)) group)]]
    (is (apply < bounds) family)
    (is (= ##Inf (last bounds)) family)
    (is (or (nil? (next counts)) (apply <= counts)) (str family " is cumulative"))
    (is (= total (last counts)) family)))

(defn read-text
  "Samples by name, `{:labels :value}` each, of a text; the rules are checked."
  [text open-metrics?]
  (let [lines (if (= "" text) [] (str/split-lines text))
        lines (if open-metrics?
                (do (is (= "# EOF" (last lines))) (butlast lines))
                lines)
        families (atom {})
        order (atom [])
        samples (doall
                 (for [line lines
                       :let [[_ kind family more] (re-matches #"# (TYPE|HELP|UNIT) (\S+) (.*)" line)
                             [_ sample label-text value]
                             (when-not kind (re-matches sample-line line))]
                       :when (cond
                               kind (do (is (nil? (get-in @families [family kind])) line)
                                        (swap! families assoc-in [family kind] more)
                                        false)
                               sample true
                               :else (is false (str "not a line of the format: " line)))]
                   (let [family (family-of @families sample)]
                     (when-not family (is false (str "no TYPE before " line)))
                     (when-not (= family (peek @order)) (swap! order conj family))
                     {:name sample :family family :labels (labels label-text)
                      :value (number value)})))]
    (is (or (empty? @order) (apply distinct? @order)) "a family is in one place")
    (is (every? #(and (get % "TYPE") (seq (get % "HELP"))) (vals @families)))
    (is (every? (fn [[_ n]] (= 1 n)) (frequencies (map (juxt :name :labels) samples)))
        "a series is there once")
    (doseq [[family group] (group-by :family samples)]
      (case (get-in @families [family "TYPE"])
        "histogram" (check-histogram family group)
        "counter" (is (every? #(str/ends-with? (:name %) "_total") group))
        nil))
    (group-by :name (map #(dissoc % :family) samples))))

(defn values-of
  "The values of the samples of a name by their labels."
  [samples name]
  (into {} (map (juxt :labels :value)) (get samples name)))
