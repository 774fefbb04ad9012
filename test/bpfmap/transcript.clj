(ns bpfmap.transcript
  "Transcripts of a REPL in Markdown: evaluated again, and compared with what they say was printed.

  In a fenced block of Clojure a line that begins with `user=> ` begins a form; what follows the
  form is its output. To print a page again:

      (transcript/rewrite! \"doc/map-types.md\")"
  (:require [clojure.main :as main]
            [clojure.pprint :as pprint]
            [clojure.string :as str])
  (:import (java.io PushbackReader StringReader StringWriter)))

(set! *warn-on-reflection* true)

(def ^:private prompt "user=> ")

(def ^:private ^:const width "Columns; a longer result is printed over several lines." 100)

(defn- complete? [text]
  (try
    (binding [*read-eval* false]
      (read (PushbackReader. (StringReader. text))))
    true
    (catch RuntimeException e
      (if (str/includes? (str (ex-message e)) "EOF") false (throw e)))))

(defn- split-form
  "The text of the form that begins a step, and the lines that it printed."
  [lines]
  (loop [n 1]
    (let [text (str/join "\n" (take n lines))]
      (if (or (complete? text) (= n (count lines)))
        [text (drop n lines)]
        (recur (inc n))))))

(defn- printed
  "What a REPL prints for a form: the lines it writes, its result, its error."
  [text]
  (let [out (StringWriter.)]
    (binding [*out* out]
      (try
        (let [result (eval (read-string text))]
          (when-not (var? result)
            (let [line (pr-str result)]
              (if (< (count line) width)
                (println line)
                (binding [pprint/*print-right-margin* width] (pprint/pprint result))))))
        (catch Throwable e
          (set! *e e)
          (print (main/err->msg (ex-info "" {:clojure.error/phase :execution} e))))))
    (remove str/blank? (str/split-lines (str out)))))

(defn- steps
  "The lines of a block, cut before every prompt."
  [lines]
  (reduce (fn [steps line]
            (if (or (str/starts-with? line prompt) (empty? steps))
              (conj steps [line])
              (conj (pop steps) (conj (peek steps) line))))
          [] lines))

(defn- again
  "The lines of a step, with what its form prints now."
  [[line & more :as step]]
  (if (str/starts-with? line prompt)
    (let [[form _] (split-form (cons (subs line (count prompt)) more))]
      (concat (str/split-lines (str prompt form)) (printed form)))
    step))

(defn evaluate
  "Returns the text of a page with every transcript printed again, all in one namespace."
  [text]
  (let [home (create-ns (gensym "transcript"))]
    (try
      (binding [*ns* home *print-length* nil *e nil]
        (refer 'clojure.core :exclude '[peek pop!])
        (loop [lines (str/split-lines text) inside? false block [] out []]
          (let [[line & more] lines]
            (cond
              (nil? line) (str (str/join "\n" out) "\n")
              (and (not inside?) (= "```clojure" line)) (recur more true [] (conj out line))
              (and inside? (= "```" line)) (recur more false []
                                                  (conj (into out (mapcat again) (steps block))
                                                        line))
              inside? (recur more true (conj block line) out)
              :else (recur more false [] (conj out line))))))
      (finally (remove-ns (ns-name home))))))

(defn rewrite!
  "Prints a page's transcripts again."
  [file]
  (spit file (evaluate (slurp file))))

(defn comparable
  "A page without what differs from run to run: ids, and where in the sources an error was made."
  [text]
  (-> text
      (str/replace #"(bpf-map |:map-id |:program-id |:id |[mM]ap |cookie )\d+" "$1N")
      (str/replace #"\d+ types, \d+ bytes" "N types, N bytes")
      (str/replace #"at .*\(.*:\d+\)\." "at PLACE.")
      (str/replace #" +\n" "\n")))
