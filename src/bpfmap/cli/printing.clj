(ns bpfmap.cli.printing
  "Prints what a command returned, as people read it or in a format for programs; and errors."
  (:require [bpfmap.cli.output :as output]
            [bpfmap.cli.wording :as wording]
            [bpfmap.impl.escape :as escape]
            [clojure.string :as str])
  (:import (java.io PrintWriter StringWriter Writer)))

(set! *warn-on-reflection* true)

(defn- complain-lines
  "Prints lines of text on stderr, without what could steer the terminal."
  [text]
  (binding [*out* *err*]
    (println (escape/escape-lines text))
    (flush)))

(defn complain
  "Prints one line on stderr. What it says may come from anywhere, and must not steer the terminal or make a second line."
  [& message]
  (complain-lines (escape/escape (str/join message))))

(defn- print-line [line]
  (doto ^Writer *out*
    (.write (escape/escape line))
    (.write "\n")))

(defn- print-csv [columns rows]
  ((requiring-resolve 'bpfmap.cli.csv/print-rows) columns rows))

(defn- print-table
  "Prints a table for people, cut to the terminal if there is one; returns lines about what is left out. Rows that only
  reduce are printed as they come, and are not aligned."
  [columns rows width]
  (if (coll? rows)
    (if width
      (let [{:keys [lines left-out]} (output/fitted columns rows width)]
        (run! print-line lines)
        (when (seq left-out)
          [(str "no room for " (str/join ", " left-out)) "--csv, --edn or a wider terminal shows them"]))
      (run! print-line (output/table columns rows)))
    (run! (fn [row] (print-line (str/join "  " (map (fn [{:keys [of cell]}] ((or cell output/cell) (of row))) columns)))) rows)))

(defn print-result
  "Prints what a command returned and how it is seen, in a format or for people, whose terminal may have a width; returns
  the exit code."
  [value {:keys [columns csv-columns rows lines text? closing notes exit] :as view} format width]
  (let [left-out (binding [*flush-on-newline* false] ; a system call for each line would take its time
                   (case (if text? nil format)
                     :edn (output/print-edn (:value view value))
                     :json (output/print-json (:value view value))
                     :csv (print-csv (or csv-columns columns) rows)
                     (if columns
                       (print-table columns rows width)
                       (run! (if text? println print-line) lines))))]
    (flush)
    (run! #(complain "bpfmap: " %) notes)
    (when-not format
      (run! complain (concat left-out (remove nil? closing))))
    (or exit 0)))

;; --- errors

(defn- root-cause ^Throwable [^Throwable e]
  (if-let [cause (ex-cause e)] (recur cause) e))

(defn- candidate-columns
  "The columns of maps that a name may mean; that of their pins if any has one."
  [candidates]
  (for [of [:id :type :name
            (when (some (comp seq :pinned) candidates) #(str/join " " (:pinned %)))
            #(str/join " " (map (fn [{:keys [command pid]}] (str command "[" pid "]")) (:held %)))]
        :when of]
    {:title "" :of of}))

(defn print-failure
  "Prints an error on stderr: a line, and with `verbose` its data; returns the exit code."
  [^Throwable e verbose]
  (let [{:bpfmap/keys [error candidates] :as data} (ex-data e)]
    (complain-lines (str "bpfmap: " (if error
                                      (wording/worded (ex-message e)) ; the verifier's has several lines
                                      (escape/escape (str "This is a bug in bpfmap: " (root-cause e) "; --verbose says where")))))
    (run! #(complain "  " %) (rest (output/table (candidate-columns candidates) candidates)))
    (when verbose
      (if error
        (complain-lines (str/trim-newline (with-out-str (output/print-edn data))))
        (let [trace (StringWriter.)]
          (.printStackTrace e (PrintWriter. trace true))
          (binding [*out* *err*]
            (print (str/replace (escape/escape-lines (str trace)) "\\u0009" "\t")) ; its lines begin with a tab
            (flush)))))
    (if (= :usage error) 2 1)))
