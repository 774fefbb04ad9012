(ns bpfmap.cli.printing
  "Prints what a command returned, as people read it or in a format for programs; and errors."
  (:require [bpfmap.cli.output :as output]
            [clojure.string :as str])
  (:import (java.io PrintWriter Writer)))

(set! *warn-on-reflection* true)

(defn complain
  "A line on stderr."
  [& message]
  (binding [*out* *err*]
    (println (str/join message))
    (flush)))

(defn- print-csv [columns rows]
  ((requiring-resolve 'bpfmap.cli.csv/print-rows) columns rows))

(defn print-result
  "Prints what a command returned and how it is seen, in a format or for people; returns the exit code."
  [value {:keys [columns rows lines text? closing notes exit] :as view} format]
  (binding [*flush-on-newline* false] ; a system call for each line would take its time
    (case (if text? nil format)
      :edn (output/print-edn (:value view value))
      :json (output/print-json (:value view value))
      :csv (print-csv columns rows)
      (run! println (if columns (output/table columns rows) lines))))
  (flush)
  (run! #(complain "bpfmap: " %) notes)
  (when-not format
    (run! complain closing))
  (or exit 0))

;; --- errors

(defn- root-cause ^Throwable [^Throwable e]
  (if-let [cause (ex-cause e)] (recur cause) e))

(def ^:private candidate-columns
  [{:title "" :of :id} {:title "" :of :type} {:title "" :of :name}])

(defn print-failure
  "Prints an error on stderr: a line, and with `verbose` its data; returns the exit code."
  [^Throwable e verbose]
  (let [{:bpfmap/keys [error candidates] :as data} (ex-data e)]
    (complain "bpfmap: " (if error
                           (ex-message e)
                           (str "This is a bug in bpfmap: " (root-cause e) "; --verbose says where")))
    (run! #(complain "  " %) (rest (output/table candidate-columns candidates)))
    (when verbose
      (if error
        (complain (str/trim-newline (with-out-str (output/print-edn data))))
        (.printStackTrace e (PrintWriter. ^Writer *err* true))))
    (if (= :usage error) 2 1)))
