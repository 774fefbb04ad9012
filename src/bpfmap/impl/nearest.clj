(ns ^:no-doc bpfmap.impl.nearest
  "Suggests the names that a misspelt name may stand for."
  (:require [bpfmap.error :as error]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn distance
  "Returns the edit distance of two words.

  It counts insertions, deletions and replacements of letters, and swaps of neighbours.

      (distance \"bites\" \"bytes\") ;=> 1"
  [a b]
  (let [a (vec a) b (vec b)]
    (loop [i 0, before nil, row (vec (range (inc (count b))))]
      (if (= i (count a))
        (peek row)
        (recur (inc i)
               row
               (reduce (fn [next-row j]
                         (let [x (a i) y (b j)
                               d (min (inc (long (peek next-row)))
                                      (inc (long (row (inc (long j)))))
                                      (+ (long (row j)) (if (= x y) 0 1)))
                               swapped? (and (pos? i) (pos? (long j))
                                             (= x (b (dec (long j)))) (= y (a (dec i))))]
                           (conj next-row (if swapped?
                                            (min d (inc (long (before (dec (long j))))))
                                            d))))
                       [(inc i)]
                       (range (count b))))))))

(defn nearest
  "Returns the names that a word may stand for, at most three.

  Case, a leading colon, `_` and blanks do not count. The last segment of a name with dots is
  compared too. A name that begins with the word is as near as one with a single different letter.

      (nearest \"bites\" [\"bytes\" \"packets\"]) ;=> [\"bytes\"]"
  [word names]
  (let [fold #(-> (str %) (str/replace #"^:" "") (str/replace #"[_ ]" "-") str/lower-case)
        word (fold (subs (str word) 0 (min 40 (count (str word)))))
        most (if (< (count word) 5) 1 (max 2 (quot (count word) 3)))
        scored (for [name (distinct (seq names))
                     :let [folded (fold name)
                           short (str (last (str/split folded #"\.")))
                           d (min (long (distance word folded)) (long (distance word short)))
                           begins? (and (<= 2 (count word)) (str/starts-with? short word))]
                     :when (or begins? (and (<= d most) (< d (count word))))]
                 [(if begins? (min d 1) d) name])
        best (transduce (map first) min most scored)]
    (into [] (comp (filter #(= best (first %))) (map second) (take 3)) scored)))

(defn did-you-mean
  "Returns the question for a misspelt name, or nil if no name is near.

      (did-you-mean \"bites\" [\"bytes\" \"packets\"]) ;=> \"did you mean bytes?\""
  [word names]
  (when-let [near (seq (nearest word names))]
    (str "did you mean " (error/list-of near) "?")))

(def ^:private most-listed
  "The largest number of names in a hint."
  32)

(defn alternatives
  "Returns \"did you mean …?\" for a misspelt name, or else a hint with the names.

      (alternatives :lok [:lock :cpu])  ;=> \"did you mean :lock?\"
      (alternatives :path [:lock :cpu]) ;=> \"use :lock or :cpu\""
  [word names]
  (or (did-you-mean word names)
      (str "use " (error/list-of (take most-listed names)))))

(defn suggestion
  "Returns \"did you mean …?\" for a misspelt name, and where to find all names.

      (suggestion :hsah [:hash :array] \"bpfmap.spec for all map types\")
      ;=> \"did you mean :hash? See bpfmap.spec for all map types\""
  [word names place]
  (if-let [question (did-you-mean word names)]
    (str question " See " place)
    (str "see " place)))
