(ns bpfmap.cli.watch
  "The command `watch`: live on a terminal, elsewhere frame after frame."
  (:require [bpfmap.cli.live :as live]
            [bpfmap.cli.output :as output]
            [bpfmap.cli.terminal :as terminal]
            [bpfmap.cli.views.live :as views]
            [bpfmap.exec.live :as exec.live])
  (:import (java.time LocalTime)
           (java.time.format DateTimeFormatter)))

(set! *warn-on-reflection* true)

(defn- status-text
  "What became of the map of a frame, in words; nil while nothing has."
  [{:keys [status pin other] {:keys [id name]} :map} {:keys [ref follow]}]
  (let [pin (some-> pin output/cell)
        other (str "map " other)]
    (case status
      nil nil
      :pin-replaced (str pin " is " other " now" (when-not follow "; --follow goes on with that"))
      :pin-removed (str "nothing is pinned at " pin " any more")
      :followed (str "this map took the place of the one before")
      :waiting (str "map " id " is gone; waiting for one " (if-let [path (:path ref)] (str "at " (output/cell path)) (str "named " (output/cell name))))
      :gone (str "map " id " is gone: no process, program or pin has it any more"
                 (when (and pin (not= "map " other)) (str "; " pin " is " other " now"))))))

(defn- seconds-text
  "A number of seconds with all of its digits, and one behind the point at least."
  [seconds]
  (let [n (bigdec (double seconds))]
    (.toPlainString (if (< (.scale n) 1) (.setScale n 1) n))))

(defn- titles
  "What stands above the table."
  [{:keys [entries new changed gone elapsed] {:keys [id name type max-entries]} :map :as frame} options]
  (concat
   [(str "Map " id (when (seq name) (str " " (output/cell name))) " (" (output/cell type) "): " entries " of " max-entries " entries")
    (str (.format (LocalTime/now) (DateTimeFormatter/ofPattern "HH:mm:ss")) ", every " (seconds-text (:interval options)) " s: "
         (if (zero? (double elapsed))
           "the first look"
           (str changed " changed, " new " new, " gone " gone"))
         "; Ctrl-C ends it")]
   (some-> (status-text frame options) vector)
   [""]))

(defn- with-paths
  "The ways to the numbers that have moved since it began: what once did keeps its column."
  [paths rows]
  (into paths (comp (filter :mark)
                    (mapcat #(views/numeric-paths [] (:per-second %)))
                    (remove (set paths))
                    (distinct))
        rows))

(defn- steady
  "Columns no narrower than they were, so that the table does not shake."
  [columns widths]
  (map (fn [{:keys [title] :as column}] (assoc column :at-least (get widths title 0))) columns))

(defn- frame-lines
  "A function of a frame and the size of the screen to lines; what changed stands out."
  [options]
  (let [seen (volatile! {:paths [] :widths {}})]
    (fn [{:keys [rows] :as frame} {:keys [width height]}]
      (let [heading (titles frame options)
            shown (take (max 0 (- (long height) (count heading) 1)) rows)
            {:keys [paths widths]} (vswap! seen update :paths with-paths rows)
            columns (steady (views/entry-columns shown paths) widths)
            {:keys [lines widths]} (output/fitted columns shown (dec (long width)))]
        (vswap! seen update :widths #(merge-with max % widths))
        (concat heading
                (take 1 lines)
                (map (fn [{:keys [mark]} line] (if mark {:style :bold :text line} line)) shown (rest lines)))))))

(defn- print-frame
  "A frame for people who read no terminal: what changed since the last."
  [{:keys [rows elapsed] :as frame} options]
  (run! println (butlast (titles frame options)))
  (let [shown (if (zero? (double elapsed)) rows (filter :mark rows))]
    (run! println (output/table (views/entry-columns shown (with-paths [] shown)) shown))
    (println)
    (flush)))

(def ^:private most-lines "No screen has more: what is below it need not be put in order." 500)

(defn watch
  "Shows what changes in a map until `:seconds` are over, the map is gone, or Ctrl-C."
  [{:keys [limit] :as options} {:keys [format]}]
  (let [drawn? (and (nil? format) (live/terminal?))
        options (cond-> options
                  (and drawn? (nil? limit)) (assoc :limit most-lines))
        lines-of (frame-lines options)
        last-frame (volatile! nil)
        {:keys [signal result height]}
        (live/run (fn [stop show]
                    (let [frames (eduction (map #(vreset! last-frame %)) (exec.live/watch options stop))]
                      (cond
                        drawn? (reduce (fn [_ frame] (show frame) frame) nil frames)
                        format (output/print-records format frames)
                        :else (run! #(print-frame % options) frames))))
                  lines-of
                  drawn?)
        gone? (= :gone (:status @last-frame))]
    {:text? true
     ;; What was on the screen last stays below the prompt, as far as there is room for it.
     :lines (when (and drawn? result height)
              (map #(:text % %) (lines-of result {:width (or (terminal/width) 80) :height (- (long height) 1)})))
     :notes (when gone? [(status-text @last-frame options)])
     :exit (if gone? 1 (live/exit-code signal))}))
