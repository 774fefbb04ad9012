(ns bpfmap.bench.report
  "Measured slices to a table, and the table to a page."
  (:require [clojure.java.io :as io]
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
  "The medians of a round's pairs; of those alone during which nobody else took the processor, where there are any."
  [pairs]
  (medians (or (seq (filter undisturbed? pairs)) pairs)))

(defn summary
  "What a row comes to, from its rounds, each of which is a sequence of pairs of slices.

  A pair is `{:c ns :jvm ns :bytes b :disturbance x}`, per operation; the last
  is wall time over processor time. The `:ratio` is that of the medians
  of the rounds; `:low` and `:high` are the extremes of the rounds' own ratios, `:undisturbed` is a share of 1."
  [row rounds]
  (let [pairs (apply concat rounds)
        rounds (map round rounds)
        ratios (map #(/ (:jvm %) (:c %)) rounds)
        {:keys [c jvm bytes]} (medians rounds)]
    (assoc (dissoc row :slice)
           :c c :jvm jvm :bytes bytes
           :ratio (/ jvm c) :low (reduce min ratios) :high (reduce max ratios)
           :undisturbed (/ (count (filter undisturbed? pairs)) (double (count pairs))))))

;; --- text

(defn- nanoseconds [x]
  (format (if (< x 100) "%.1f" "%.0f") x))

(defn- bytes-shown [x]
  (cond
    (< x 0.05) "0"
    (< x 10) (format "%.1f" x)
    :else (format "%.0f" x)))

(def ^:private columns
  "Heading, how a summary is shown under it, and whether that is a number."
  [["operation" :operation false]
   ["way" :way false]
   ["C, ns" #(nanoseconds (:c %)) true]
   ["bpfmap, ns" #(nanoseconds (:jvm %)) true]
   ["ratio" #(format "%.2f" (:ratio %)) true]
   ["min–max" #(format "%.2f–%.2f" (:low %) (:high %)) true]
   ["bytes" #(bytes-shown (:bytes %)) true]])

(defn table
  "The lines of a table in Markdown, aligned to be read as it is."
  [summaries]
  (let [cells (cons (map first columns)
                    (for [s summaries]
                      (for [[_ show] columns] (show s))))
        widths (apply map (fn [& column] (reduce max (map count column))) cells)
        line (fn [row]
               (str "| "
                    (str/join " | " (map (fn [cell width [_ _ number?]]
                                           (format (str "%" (when-not number? "-") width "s") cell))
                                         row widths columns))
                    " |"))
        rule (str "|"
                  (str/join "|" (map (fn [width [_ _ number?]]
                                       (str (str/join (repeat (inc width) "-")) (if number? ":" "-")))
                                     widths columns))
                  "|")]
    (list* (line (first cells)) rule (map line (rest cells)))))

(defn verdicts
  "One line for each row that has a target: whether it was met."
  [summaries]
  (for [{:keys [operation way ratio bytes target]} summaries :when target]
    (format "%s, %s: %.3f × C (at most %.2f), %s bytes (at most %d): %s"
            operation way ratio (:ratio target) (bytes-shown bytes) (:bytes target)
            (if (and (<= ratio (:ratio target)) (< bytes (+ (:bytes target) 0.05))) "met" "MISSED"))))

(defn machine
  "What and when it is measured on, as pairs of a name and a text. The load is that before the measurement."
  []
  (let [cpuinfo (try (Files/readString (Path/of "/proc/cpuinfo" (make-array String 0)))
                     (catch java.io.IOException _ ""))
        load (.getSystemLoadAverage (ManagementFactory/getOperatingSystemMXBean))]
    [["date" (str (LocalDate/now ZoneOffset/UTC))]
     ["processor" (str (or (second (re-find #"model name\s*:\s*(.+)" cpuinfo)) (System/getProperty "os.arch"))
                       ", " (.availableProcessors (Runtime/getRuntime)) " of them")]
     ["kernel" (str (System/getProperty "os.name") " " (System/getProperty "os.version"))]
     ["JDK" (str (System/getProperty "java.vm.name") " " (System/getProperty "java.vm.version"))]
     ["load by others" (format "%.1f" load)]]))

(defn lines
  "The lines of a report: facts, which are pairs of a name and a text, the table, and the verdicts."
  [facts summaries]
  (let [share (median (map :undisturbed summaries))]
    (concat (for [[name text] (concat facts [["undisturbed slices" (format "%.0f %%" (* 100 share))]])]
              (str "- " name ": " text))
            [""]
            (table summaries)
            (when-let [verdicts (seq (verdicts summaries))]
              (cons "" (map #(str "- " %) verdicts))))))

;; --- the page

(def ^:private begin "<!-- measured: bin/clj -M:bench --write replaces what follows -->")
(def ^:private end "<!-- /measured -->")

(defn write
  "Puts lines between the markers of a page, in place of what stood there.

  Throws an ex-info with a message for the user where the page lacks the markers."
  [file lines]
  (let [text (slurp (io/file file))
        from (str/index-of text begin)
        to (str/index-of text end)]
    (when-not (and from to (< from to))
      (throw (ex-info (str file " lacks the lines " begin " and " end) {})))
    (spit (io/file file)
          (str (subs text 0 (+ from (count begin))) "\n\n"
               (str/join "\n" lines) "\n\n"
               (subs text to)))))
