(ns ^:no-doc bpfmap.metrics.page.cells
  "What both pages show of a map: its name, how full it is, and its owners."
  (:require [bpfmap.exec.output :as output]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.metrics.page.picture :as picture]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn limit-of
  "Returns the parameter `limit` as a number within bounds.

      (limit-of \"50\" 200 2000) ;=> 50"
  [text default most]
  (let [n (when (and text (re-matches #"[0-9]{1,6}" text)) (parse-long text))]
    (if (and n (pos? (long n))) (min (long n) (long most)) default)))

(defn fullness-level
  "Returns the class of a bar: `high` from 90 percent on, or `evicts`.

      (fullness-level {:type :hash :full 97.7}) ;=> \"high\""
  [{:keys [type full]}]
  (cond
    (nil? full) nil
    (:evicts (map-types/types type)) "evicts"
    (<= 90.0 (double full)) "high"))

(defn fullness
  "Returns how full a map is as a bar and a text; nil if it has no fullness."
  [{:keys [full fill max-entries] :as row}]
  (cond
    full [[:span {:class "text"} (output/full-text row)]
          (picture/bar full "Full" (fullness-level row))]
    fill (let [percent (/ (Math/round (/ (* 1000.0 (long fill)) (long max-entries))) 10.0)]
           [[:span {:class "text"} (output/human-size fill)]
            (picture/bar percent "Ring in use" nil)])))

(defn- several
  "Returns the first texts, and how many are left out."
  [texts]
  (when (seq texts)
    (str (str/join ", " (map output/cell (take 3 texts)))
         (when (< 3 (count texts)) (str " +" (- (count texts) 3))))))

(defn map-name
  "Returns the name of a map for people, or its id."
  [{:keys [id name]}]
  (if (str/blank? name) (str "map " id) (output/cell name)))

(defn owners-text
  "Returns the holders, programs and pins of a map, each as a text."
  [{:keys [held used-by pinned]}]
  [(several (map output/holder-text held))
   (several (map output/user-text used-by))
   (several pinned)])
