(ns ^:no-doc bpfmap.impl.display.amount
  "Prints numbers and sizes rounded, for people."
  (:import (java.math RoundingMode)))

(set! *warn-on-reflection* true)

(defn format-1dp
  "Returns a number with one digit after the point.

  Half a tenth is rounded away from zero. Java's Formatter takes longer to load than this command
  takes, and decimal numbers take longer than the rest of a table of thousands of rows.

      (format-1dp 16.46) ;=> \"16.5\""
  [x]
  (let [x (double x)]
    (if (< (abs x) 1e15)
      (let [tenths (Math/round (* 10 (abs x)))]
        (str (when (and (neg? x) (pos? tenths)) "-") (quot tenths 10) "." (rem tenths 10)))
      (.toPlainString (.setScale (BigDecimal/valueOf x) 1 RoundingMode/HALF_UP)))))

(defn human-size
  "Returns a number of bytes in units of 1024.

      (human-size 512)   ;=> \"512\"
      (human-size 16864) ;=> \"16.5K\""
  [n]
  (if (and (< -1024 n) (< n 1024))
    (str n)
    (loop [x (/ n 1024.0) units ["K" "M" "G" "T" "P" "E"]]
      ;; 1023.95 and more would round to 1024.0.
      (if (and (<= 1023.95 (abs x)) (next units))
        (recur (/ x 1024) (rest units))
        (str (format-1dp x) (first units))))))
