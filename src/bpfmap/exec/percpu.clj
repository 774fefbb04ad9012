(ns bpfmap.exec.percpu
  "What is made of a value that there is for each CPU."
  (:require [bpfmap.error :as error]))

(set! *warn-on-reflection* true)

(defn- merged
  "Several values as one: integers added, maps and vectors field by field; what is the same everywhere stays, and what
  is not becomes a vector."
  [values]
  (let [[x] values]
    (cond
      (every? integer? values) (reduce +' values)
      (every? float? values) (reduce + values)
      (every? map? values) (into (empty x) (map (fn [k] [k (merged (map #(get % k) values))])) (keys x))
      (and (every? vector? values) (apply = (map count values))) (apply mapv (fn [& xs] (merged xs)) values)
      (apply = values) x
      :else (vec values))))

(defn check
  "Throws `:invalid-value` if the value of one CPU is asked for of a map that has one value for each key.

      (check 0 [0 1]) ;=> nil"
  [which possible]
  (when (and (int? which) (nil? possible))
    (throw (error/error :invalid-value "This is no per-CPU map" {:bpfmap/hint "each key has one value"}))))

(defn combiner
  "A function from the value of a per-CPU map to what `which` says: nil or `:each` as it is, `:sum` with its numbers added.

      ((combiner :sum) [{:packets 1 :name \"a\"} {:packets 2 :name \"a\"}]) ;=> {:packets 3 :name \"a\"}"
  [which]
  (if (= :sum which) merged identity))

(defn picker
  "A function from the value of a per-CPU map, with one for each of the `possible` CPUs, to what `which` says: as
  [[combiner]], or the value of the CPU of this number.

      ((picker 1 [0 1]) [10 20]) ;=> 20"
  [which possible]
  (if (int? which)
    (let [i (.indexOf ^java.util.List (vec possible) which)]
      (when (neg? i)
        (throw (error/error :invalid-value (str "There is no CPU " which)
                            {:bpfmap/hint (str "the possible CPUs are " (error/list-of possible))})))
      #(nth % i))
    (combiner which)))
