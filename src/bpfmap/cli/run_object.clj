(ns ^:no-doc bpfmap.cli.run-object
  "Runs the command `run`: events as lines, or a live summary, until a signal ends it."
  (:require [bpfmap.cli.interactive :as interactive]
            [bpfmap.cli.terminal :as terminal]
            [bpfmap.error :as error]
            [bpfmap.exec.output :as output]
            [bpfmap.exec.progress :as progress]
            [bpfmap.exec.run :as run]
            [bpfmap.exec.tail :as tail]
            [bpfmap.exec.views :as views]))

(set! *warn-on-reflection* true)

(defn- titles [{:keys [object elapsed programs]}]
  [(str (output/cell object) ": " (error/plural (count (filter :attached-to programs))
                                                 "program is" "programs are")
        " attached since " (output/format-1dp elapsed) " s; stop with Ctrl-C")
   ""])

(defn- screen-lines
  "Returns the lines of a summary for a screen."
  [summary {:keys [width height]}]
  (take (dec (long height))
        (concat (titles summary) (views/run-summary summary (dec (long width))))))

(defn- untyped-notes
  "Returns notes about rings whose events cannot be printed."
  [{:keys [maps]}]
  (for [{:keys [id name untyped]} maps :when untyped]
    (str "the type of the events of " (output/cell name) " is unknown: bpfmap tail " id
         " --value-type TYPE prints them")))

(defn- print-lines [lines]
  (run! println lines)
  (flush))

(defn- event-printers
  "Returns a function from the row of an event to its lines.

  If several maps have events, each line begins with the name of its map."
  [types {:keys [maps]}]
  (let [infos (into {} (map (juxt :name identity)) maps)
        width (terminal/width)
        many? (next types)
        printers (into {} (for [[name type] types
                                :let [info (infos name)]]
                            [name (views/event-printer
                                   {:map info :type type :fields (tail/fields-of info type)}
                                   (when-not many? width))]))]
    (fn [{:keys [map] :as row}]
      (cond->> ((printers map) row)
        many? (mapv #(str (output/cell map) "  " %))))))

(defn- lost-text [{:keys [map lost]}]
  (when lost
    (str (error/plural lost "event of " "events of ") (output/cell map)
         (if (= 1 lost) " was" " were") " lost, because a buffer was full")))

(defn- printing
  "Returns a function that prints a row: summaries and events.

  If there are events, only the first and the last summary are printed."
  []
  (let [printers (volatile! nil)
        events? (volatile! false)
        print-summary (fn [row] (print-lines (concat (views/run-summary row nil) [""])))]
    (fn [{:keys [status elapsed] :as row}]
      (cond
        (= :running status)
        (let [{:keys [types]} (meta row)]
          (print-lines (titles row))
          (print-summary row)
          (run! #(output/complain "bpfmap: " %) (untyped-notes row))
          (vreset! printers (when (seq types) (event-printers types row))))

        (nil? elapsed)
        (if-let [text (lost-text row)]
          (output/complain "bpfmap: " text)
          (do (vreset! events? true)
              (print-lines (@printers row))))

        (or (nil? @printers) (= :ended status))
        (do (when @events? (print-lines [""]))
            (print-summary row))))))

(defn- drawn?
  "Returns true if the summaries of a run are drawn: it has no events."
  [row]
  (empty? (:types (meta row))))

(defn run
  "Runs an object until `:seconds` or Ctrl-C.

  On a terminal, an object without events has a live summary."
  [options {:keys [format]}]
  (let [screen? (and (nil? format) (interactive/terminal?))
        {:keys [signal result height]}
        (interactive/run
         "run"
         (fn [stop show]
           (let [rows (run/run options stop)
                 print-row (printing)]
             (if format
               (output/print-records format rows)
               (reduce (fn [_ row]
                         (if (and screen? (drawn? row))
                           (do (show row) row)
                           (do (when screen? (progress/end))
                               (print-row row)
                               nil)))
                       nil rows))))
         screen-lines
         screen?)]
    {:as-text true
     ;; The last screen stays visible above the prompt.
     :lines (when (and result height)
              (screen-lines result {:width (or (terminal/width) 80) :height height}))
     :notes (some-> result untyped-notes)
     :exit (interactive/exit-code signal)}))
