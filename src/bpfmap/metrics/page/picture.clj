(ns ^:no-doc bpfmap.metrics.page.picture
  "Draws bars, sparklines and heat maps as SVG, as data for `bpfmap.metrics.page.markup`.

  Colours come from the style sheet, by class. Each picture has a text for screen readers."
  (:require [bpfmap.exec.output :as output]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn- short-number
  "Returns a number with at most one digit after the point."
  [x]
  (let [x (double x)]
    (if (== x (Math/rint x))
      (str (bigint x))
      (output/format-1dp x))))

(defn bar
  "Returns a bar of a percentage, with its meaning as a label.

      (bar 97.7 \"Full\" nil) ;=> [:span {:role \"meter\" …} …]"
  [percent label level]
  (let [shown (max 0.0 (min 100.0 (double percent)))]
    [:span {:class (str "bar" (when level (str " " level))) :role "meter" :aria-label label
            :aria-valuemin 0 :aria-valuemax 100 :aria-valuenow (short-number percent)}
     [:svg {:viewBox "0 0 100 8" :preserveAspectRatio "none" :aria-hidden "true"
            :focusable "false"}
      [:rect {:class "track" :width 100 :height 8}]
      [:rect {:class "fill" :width (format "%.1f" shown) :height 8}]]]))

(defn sparkline
  "Returns a line through numbers, oldest first; nil ones are left out.

  `n` is the number of samples that fill the width. `what` says what it shows.

      (sparkline [1.0 4.0 2.0] 60 \"Rate of bytes\") ;=> [:svg …]"
  [numbers n what]
  (let [numbers (vec (take-last n numbers))
        known (remove nil? numbers)
        high (reduce max 0.0 known)
        low (reduce min 0.0 known)
        span (if (< low high) (- (double high) (double low)) 1.0)
        step (/ 200.0 (max 1 (dec (long n))))
        left (- 200.0 (* step (dec (count numbers))))
        point (fn [i x]
                (format "%.1f,%.1f" (+ left (* step (double i)))
                        (- 27.0 (* 24.0 (/ (- (double x) (double low)) span)))))
        points (keep-indexed (fn [i x] (when x (point i x))) numbers)]
    [:svg {:class "spark" :viewBox "0 0 200 30" :preserveAspectRatio "none" :role "img"
           :aria-label (if (seq known)
                         (str what ": now " (short-number (last known)) ", at most "
                              (short-number high))
                         (str what ": no numbers yet"))}
     (when (next points)
       [:polyline {:points (str/join " " points)}])]))

;; --- heat maps

(def ^:private levels "Shades of a heat map, besides the one for zero." 8)

(defn- level
  "Returns the shade of a count, on a logarithmic scale; 0 for no count."
  [n most]
  (let [n (double n)]
    (cond
      (<= n 0.0) 0
      (<= (double most) 1.0) levels
      :else (-> (/ (Math/log (inc n)) (Math/log (inc (double most))))
                (* (double levels)) Math/ceil long (max 1) (min (long levels))))))

(def ^:private row-height "Height of a bucket in pixels; the style sheet has it too." 14)

(defn heat-map
  "Returns the cells of a heat map: columns are samples, rows buckets.

  `columns` are vectors of counts by bucket, oldest first; `n` is the number of columns that fill
  the width.

      (heat-map [[0 5] [2 1]] 60 \"latency\") ;=> [:svg …]"
  [columns n what]
  (let [columns (vec (take-last n columns))
        rows (count (first columns))
        most (reduce max 0.0 (mapcat identity columns))
        width 10
        left (* width (- (long n) (count columns)))]
    [:svg {:class "cells" :viewBox (str "0 0 " (* width (long n)) " " (* (long row-height) rows))
           :width (* width (long n)) :height (* (long row-height) rows)
           :preserveAspectRatio "none" :role "img" :aria-label what}
     [:rect {:class "h0" :width (* width (long n)) :height (* (long row-height) rows)}]
     (for [[i counts] (map-indexed vector columns)
           [j x] (map-indexed vector counts)
           :let [shade (level x most)]
           :when (pos? (long shade))]
       [:rect {:class (str "h" shade)
               :x (+ left (* width (long i)))
               :y (* (long row-height) (- rows 1 (long j)))
               :width width :height row-height}])]))
