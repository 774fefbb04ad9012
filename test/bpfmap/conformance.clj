(ns bpfmap.conformance
  "Which promised behaviour is held by which test: reads it from the names of tests and what
  became of them.

  The behaviours are data, in behaviours.edn. Outcomes are a map of test, as a
  symbol, to :passed, :failed or :skipped."
  (:require [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(def promised
  "The behaviours: `{:groups [{:group name :behaviours [[id sentence] …]} …] :pending #{id …}}`."
  (delay (edn/read-string (slurp (io/resource "bpfmap/behaviours.edn")))))

(defn- ids-of [promised]
  (mapcat #(map first (:behaviours %)) (:groups promised)))

(defn named
  "The ids with which the name of a test begins, of the groups that there are.

      (named promised 'bpfmap.core-test/b1-b2-all-is-read) ;=> [\"b1\" \"b2\"]"
  [promised test]
  (let [letters (str/join (distinct (map first (ids-of promised))))
        prefix (re-find (re-pattern (str "^(?:[" letters "]\\d+-)+")) (name test))]
    (if prefix
      (str/split prefix #"-")
      [])))

(defn- tests-by-id [promised outcomes]
  (reduce (fn [acc [test outcome]]
            (reduce #(assoc-in %1 [%2 test] outcome) acc (named promised test)))
          {}
          outcomes))

(defn judge
  "What the outcomes of a full run say of the behaviours, as texts: `:failures` fail it,
  `:warnings` are to be read.

  A behaviour needs a test that passed. One whose tests were skipped is not
  held either, but the skip is counted already, and where it happens is no
  fault of the tests."
  [promised outcomes]
  (let [tests (tests-by-id promised outcomes)
        ids (ids-of promised)
        sentence (into {} (mapcat :behaviours) (:groups promised))
        held? (fn [id] (some #{:passed} (vals (tests id))))
        unheld (remove (fn [id] (some #{:passed :skipped} (vals (tests id)))) ids)
        {pending true missing false} (group-by #(contains? (:pending promised) %) unheld)]
    {:failures (concat (for [id missing]
                         (str "behaviour " id " has no test that passed: " (sentence id)))
                       (for [[id id-tests] (sort tests) :when (not (sentence id))
                             test (sort (keys id-tests))]
                         (str test " names behaviour " id ", which there is not"))
                       (for [id (sort (:pending promised)) :when (not (sentence id))]
                         (str "behaviour " id " is pending, but there is none")))
     :warnings (concat (when (seq pending)
                         [(str "behaviours without a test: " (str/join " " pending))])
                       (when-let
                        [done (seq (filter #(and (held? %) (contains? (:pending promised) %))
                                           ids))]
                         [(str "no longer pending, so take them from behaviours.edn: "
                               (str/join " " done))]))}))

;; --- the page

(def ^:private heading
  "# Behaviours and their tests

This page lists the behaviours that bpfmap promises, and the tests for each. It is generated from
the names of the tests and `test/bpfmap/behaviours.edn`, at the end of a run of all tests in which
none failed and none was skipped. Do not edit it. The last column shows the kernel, the machine and
the JDK of that run.
")

(defn- row [id sentence tests place]
  (str "| " id " | " sentence " | "
       (if (seq tests)
         (str/join "<br>" (map #(str "`" % "`") (sort tests)))
         "none yet")
       " | " place " |\n"))

(defn page
  "The text of doc/conformance.md. `host` is `{:release :arch :jdk}`: what `uname -r` and `uname
  -m` print, and the JDK's feature version."
  [promised outcomes {:keys [release arch jdk]}]
  (let [tests (tests-by-id promised outcomes)
        place (str "Linux " (or (re-find #"^\d+\.\d+(?:\.\d+)?" release) release) " " arch ", JDK "
                   jdk)]
    (str heading
         (str/join
          (for [{:keys [group behaviours]} (:groups promised)]
            (str "\n## " group "\n\n| id | behaviour | tests | on |\n|---|---|---|---|\n"
                 (str/join
                  (for [[id sentence] behaviours
                        :let [passed
                              (for [[test outcome] (tests id) :when (= :passed outcome)] test)]]
                    (row id sentence passed (if (seq passed) place "-"))))))))))
