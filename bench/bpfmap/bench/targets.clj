(ns bpfmap.bench.targets
  "How fast bpfmap means to be, as data, and whether it was."
  (:require [bpfmap.bench.report :as report]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def ^:private elements #{"lookup, hit" "lookup, miss" "update" "delete"})
(def ^:private scalars #{"hash 4→8" "array 4→8"})
(def ^:private structs #{"hash 16→32 struct"})

(defn- rows-with [& {:as wanted}]
  (fn [row] (every? (fn [[k one-of]] (contains? one-of (k row))) wanted)))

(defn- beside-walk
  "How many times faster than next key and lookup in C the row is; nil where that was not measured."
  [{:keys [jvm] :as row} all]
  (some (fn [other]
          (when (and (= "next key and lookup" (:operation other))
                     (= (map row [:map :entries :threads]) (map other [:map :entries :threads])))
            (/ (:c other) jvm)))
        all))

(defn- beside-one-thread
  "By how much the ratio to C is larger on two threads than on one; nil where one of them was not
  measured."
  [{:keys [ratio] :as row} all]
  (some (fn [other]
          (when (and (= 1 (:threads other))
                     (= (map row [:map :entries :operation :way])
                        (map other [:map :entries :operation :way])))
            (/ ratio (:ratio other))))
        all))

(def ^:private targets
  "What is meant, which rows it is about, the number of a row, and its bound. A number may be nil,
  of rows that say nothing."
  [{:what "raw lookup, update, delete: ratio"
    :rows (rows-with :way #{:arrays :in-place} :operation elements :threads #{1})
    :at-most 1.05}
   {:what "typed scalar lookup, update, delete: ratio"
    :rows (rows-with :way #{:typed} :operation elements :map scalars :threads #{1})
    :at-most 1.15}
   {:what "typed struct of four fields: ratio"
    :rows (rows-with :way #{:typed} :operation elements :map structs :threads #{1})
    :at-most 1.35}
   {:what "reduce, raw: ratio to batches in C"
    :rows (rows-with :way #{:reader} :operation #{"reduce"} :threads #{1})
    :at-most 1.15}
   {:what "reduce, typed scalar: ratio to batches in C"
    :rows (rows-with :way #{:typed} :operation #{"reduce"} :map scalars :threads #{1})
    :at-most 1.15}
   {:what "reduce, typed struct: ratio to batches in C"
    :rows (rows-with :way #{:typed} :operation #{"reduce"} :map structs :threads #{1})
    :at-most 1.6}
   {:what "reduce of a hash, raw or scalar: times faster than next key and lookup in C"
    :rows (rows-with :way #{:reader :views :typed} :operation #{"reduce"} :map #{"hash 4→8"}
                     :threads #{1})
    :number beside-walk
    :at-least 2.5}
   {:what "two threads: growth of the ratio"
    :rows (rows-with :way #{:arrays :in-place :typed :reader} :operation (conj elements "reduce")
                     :threads #{2})
    :number beside-one-thread
    :at-most 1.10}
   {:what "raw elements: bytes allocated"
    :rows (rows-with :way #{:arrays :in-place} :operation (conj elements "take"))
    :number (fn [{:keys [bytes]} _] (if (< bytes 0.05) 0.0 bytes))
    :at-most 0.0}])

(defn- judged
  [{:keys [what rows number at-most at-least] :or {number (fn [row _] (:ratio row))}} summaries]
  (let [numbers (for [row (filter rows summaries)
                      :let [x (number row summaries)]
                      :when x]
                  [x row])
        good? (if at-most #(<= (first %) at-most) #(<= at-least (first %)))
        [worst row] (first (sort-by first (if at-most > <) numbers))]
    (when (seq numbers)
      {:what what
       :bound (if at-most (format "at most %.2f" at-most) (format "at least %.2f" at-least))
       :median (report/median (map first numbers))
       :worst worst
       :where (str/join ", " (if (:entries row)
                               [(:map row) (:operation row) (report/number-shown (:entries row))]
                               [(:name row)]))
       :met (count (filter good? numbers))
       :of (count numbers)
       :good (good? [(report/median (map first numbers))])})))

(defn- table-of
  "Returns the lines of a table of targets and of the rows that they are about."
  [targets rows]
  (report/table [["target" :what]
                 ["bound" :bound]
                 ["median" #(format "%.2f" (:median %)) true]
                 ["" #(if (:good %) "met" "MISSED")]
                 ["worst" #(format "%.2f" (:worst %)) true]
                 ["where" :where]
                 ["rows that meet it" #(str (:met %) " of " (:of %)) true]]
                (keep #(judged % rows) targets)))

(defn table
  "The lines of a table that says of each target whether the median of its rows meets it, and how
  many rows do."
  [summaries]
  (table-of targets summaries))

(def ^:private event-targets
  "The same for events."
  [{:what "events of a ring in place: ratio"
    :rows (rows-with :kind #{:raw})
    :at-most 1.15}
   {:what "events of a perf event array in place: ratio"
    :rows (rows-with :kind #{:perf})
    :at-most 1.15}
   {:what "events as maps of four fields: ratio"
    :rows (rows-with :kind #{:typed})
    :at-most 2.0}
   {:what "events in place: bytes allocated for each"
    :rows (rows-with :kind #{:raw :perf})
    :number (fn [{:keys [bytes]} _] (if (< bytes 0.05) 0.0 bytes))
    :at-most 0.0}
   {:what "a producer at full speed: refused beyond what C lets it refuse, %"
    :rows (rows-with :kind #{:live})
    :number (fn [{:keys [beyond]} _] (* 100.0 beyond))
    :at-most 1.0}
   {:what "a reader without events: share of a processor, %"
    :rows (rows-with :kind #{:idle})
    :number (fn [{:keys [percent]} _] percent)
    :at-most 0.1}])

(defn events-table
  "Returns the lines of a table of the targets for events, as [[table]] does."
  [rows]
  (table-of event-targets rows))
