(ns bpfmap.bench.report
  "Measured slices to numbers, numbers to tables in Markdown."
  (:require [bpfmap.bench.rows :as rows]
            [clojure.string :as str])
  (:import (java.lang.management ManagementFactory)
           (java.nio.file Files Path)
           (java.time LocalDate ZoneOffset)))

(set! *warn-on-reflection* true)

;; --- numbers

(defn median
  "The middle one of some numbers, or the mean of the middle two.

      (median [3 1 2]) ;=> 2.0"
  [xs]
  (let [xs (vec (sort xs))
        n (count xs)]
    (/ (+ (double (nth xs (quot (dec n) 2))) (double (nth xs (quot n 2)))) 2)))

(defn- medians [ms]
  (into {} (map (fn [k] [k (median (map k ms))])) [:c :jvm :bytes]))

(defn- undisturbed? [{:keys [disturbance]}]
  (< disturbance 1.05))

(defn- round
  "The medians of a round's pairs; of those alone during which nobody else took the processor,
  where there are any."
  [pairs]
  (medians (or (seq (filter undisturbed? pairs)) pairs)))

(defn summary
  "What a row comes to, from its rounds, each of which is a sequence of pairs of slices.

  A pair is `{:c ns :jvm ns :bytes b :disturbance x}`, per operation; the last is wall time over
  processor time. The `:ratio` is the median of the rounds' own ratios, and `:low` and `:high` are
  the extremes of these; `:undisturbed` is a share of 1."
  [row rounds]
  (let [pairs (apply concat rounds)
        rounds (map round rounds)
        ratios (map #(/ (:jvm %) (:c %)) rounds)
        {:keys [c jvm bytes]} (medians rounds)]
    (assoc (dissoc row :slice)
           :c c :jvm jvm :bytes bytes
           :ratio (median ratios) :low (reduce min ratios) :high (reduce max ratios)
           :undisturbed (/ (count (filter undisturbed? pairs)) (double (count pairs))))))

;; --- tables

(defn number-shown
  "Nanoseconds, or bytes: as many digits as mean something.

      (number-shown 143.27) ;=> \"143\""
  [x]
  (cond
    (nil? x) "–"
    (< x 0.05) "0"
    (< x 100) (format "%.1f" (double x))
    :else (format "%,.0f" (double x))))

(defn table
  "The lines of a table in Markdown, aligned to be read as it is. A column is its heading, how a
  row is shown under it, and whether that is a number."
  [columns rows]
  (let [cells (cons (map first columns)
                    (for [row rows]
                      (for [[_ show] columns] (str (show row)))))
        widths (apply map (fn [& column] (reduce max 1 (map count column))) cells)
        line (fn [row]
               (str "| "
                    (str/join " | " (map (fn [cell width [_ _ number?]]
                                           (format (str "%" (when-not number? "-") width "s") cell))
                                         row widths columns))
                    " |"))
        rule (str "|"
                  (str/join "|" (map (fn [width [_ _ number?]]
                                       (str (str/join (repeat (inc width) "-"))
                                            (if number? ":" "-")))
                                     widths columns))
                  "|")]
    (list* (line (first cells)) rule (map line (rest cells)))))

(defn- ratio-shown [{:keys [ratio low high] :as measured}]
  (if measured
    (format "%.2f (%.2f–%.2f)" ratio low high)
    "–"))

(defn- size-shown [n]
  (format "%,d" n))

(defn- map-columns
  "The columns of the table of a map. A row there is `{:operation :way :threads :at}`: under the
  last are summaries by size."
  [sizes]
  (let [at-all (fn [shown k] (fn [{:keys [at]}] (str/join " / " (map #(shown (k (at %))) sizes))))]
    (concat [["operation" :operation]
             ["way" (comp rows/ways :way)]
             ["threads" :threads true]
             ["C, ns" (at-all number-shown :c) true]
             ["bpfmap, ns" (at-all number-shown :jvm) true]]
            (for [size sizes]
              [(str "ratio, " (size-shown size)) #(ratio-shown (get-in % [:at size])) true])
            [["bytes" #(number-shown (reduce max (map :bytes (vals (:at %))))) true]
             ["native, KiB" (fn [{:keys [at]}]
                              (let [known (keep :native (vals at))]
                                (if (seq known) (format "%,d" (quot (reduce max known) 1024)) "–")))
              true]])))

(defn map-tables
  "A heading and a table for each map, of summaries that belong to several maps, sizes and numbers
  of threads."
  [summaries]
  (let [sizes (sort (distinct (map :entries summaries)))]
    (for [of-map (partition-by :map summaries)
          line (concat [(str "### " (:map (first of-map)))
                        ""
                        (str "Times are for " (str/join " / " (map size-shown sizes)) " entries.")
                        ""]
                       (table (map-columns sizes)
                              (let [at (group-by (juxt :operation :way :threads) of-map)]
                                (for [k (distinct (map (juxt :operation :way :threads) of-map))]
                                  (assoc (zipmap [:operation :way :threads] k)
                                         :at (into {} (map (juxt :entries identity)) (at k))))))
                       [""])]
      line)))

;; --- the machine

(defn machine
  "What and when it is measured on, as pairs of a name and a text. The load is that before the
  measurement."
  []
  (let [cpuinfo (try (Files/readString (Path/of "/proc/cpuinfo" (make-array String 0)))
                     (catch java.io.IOException _ ""))
        load (.getSystemLoadAverage (ManagementFactory/getOperatingSystemMXBean))]
    [["date" (str (LocalDate/now ZoneOffset/UTC))]
     ["processor"
      (str (or (second (re-find #"model name\s*:\s*(.+)" cpuinfo)) (System/getProperty "os.arch"))
           ", " (.availableProcessors (Runtime/getRuntime)) " of them")]
     ["kernel" (str (System/getProperty "os.name") " " (System/getProperty "os.version"))]
     ["JDK" (str (System/getProperty "java.vm.name") " " (System/getProperty "java.vm.version"))]
     ["load by others" (format "%.1f" load)]]))

(defn facts
  "The lines of a list of pairs of a name and a text."
  [pairs]
  (for [[name text] pairs]
    (str "- " name ": " text)))
