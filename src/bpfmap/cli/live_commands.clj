(ns ^:no-doc bpfmap.cli.live-commands
  "Runs the commands that continue until they are stopped: `watch` and `demo`."
  (:require [bpfmap.cli.interactive :as interactive]
            [bpfmap.cli.terminal :as terminal]
            [bpfmap.core :as bpf]
            [bpfmap.exec.demo :as demo]
            [bpfmap.exec.output :as output]
            [bpfmap.exec.views :as views]
            [bpfmap.exec.watch :as exec.watch]
            [bpfmap.impl.waiting :as waiting])
  (:import (clojure.lang ExceptionInfo)
           (java.io Closeable)
           (java.time LocalTime)
           (java.time.format DateTimeFormatter)))

(set! *warn-on-reflection* true)

;; --- watch

(defn- status-text
  "Returns the status of a frame's map as text, or nil."
  [{:keys [status pin other] {:keys [id name]} :map} {:keys [ref follow]}]
  (let [pin (some-> pin output/cell)
        other (str "map " other)]
    (case status
      nil nil
      :pin-replaced (str pin " is now " other (when-not follow "; --follow continues with it"))
      :pin-removed (str "the pin " pin " was removed")
      :followed "this map took the place of the one before"
      :waiting (str "map " id " no longer exists; waiting for a map "
                    (if-let [path (:path ref)]
                      (str "at " (output/cell path))
                      (str "named " (output/cell name))))
      :gone (str "map " id " no longer exists"
                 (when (and pin (not= "map " other)) (str "; " pin " is now " other))))))

(defn- seconds-text
  "Returns a number of seconds with all digits, at least one after the point."
  [seconds]
  (let [n (bigdec (double seconds))]
    (.toPlainString (if (< (.scale n) 1) (.setScale n 1) n))))

(defn- titles
  "Returns the lines above the table."
  [{:keys [entries added changed removed elapsed] {:keys [id name type max-entries]} :map :as frame}
   options]
  (concat
   [(str "Map " id (when (seq name) (str " " (output/cell name))) " (" (output/cell type) "): "
         entries " of " max-entries " entries")
    (str (.format (LocalTime/now) (DateTimeFormatter/ofPattern "HH:mm:ss")) ", every "
         (seconds-text (:interval options)) " s: "
         (if (zero? (double elapsed))
           "first reading"
           (str added " added, " changed " changed, " removed " removed"))
         "; stop with Ctrl-C")]
   (some-> (status-text frame options) vector)
   [""]))

(defn- with-paths
  "Returns the paths of rates, including the paths in changed rows.

  A path keeps its column."
  [paths rows]
  (into paths (comp (filter :change)
                    (mapcat #(views/numeric-paths [] (:per-second %)))
                    (remove (set paths))
                    (distinct))
        rows))

(defn- steady
  "Returns columns at least as wide as before, so that the table does not move."
  [columns widths]
  (map (fn [{:keys [title] :as column}] (assoc column :at-least (get widths title 0))) columns))

(defn- frame-lines
  "Returns a function from a frame and a screen size to lines.

  Changed rows are bold."
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
                (map (fn [{:keys [change]} line] (if change {:style :bold :text line} line)) shown
                     (rest lines)))))))

(defn- print-frame
  "Prints a frame without a terminal: the entries that changed."
  [{:keys [rows elapsed] :as frame} options]
  (run! println (butlast (titles frame options)))
  (let [shown (if (zero? (double elapsed)) rows (filter :change rows))]
    (run! println (output/table (views/entry-columns shown (with-paths [] shown)) shown))
    (println)
    (flush)))

(def ^:private most-lines
  "The number of rows that are sorted for a terminal.

  No screen shows more."
  500)

(defn watch
  "Shows the changes of a map until `:seconds`, its end, or Ctrl-C."
  [{:keys [limit] :as options} {:keys [format]}]
  (let [drawn? (and (nil? format) (interactive/terminal?))
        options (cond-> options
                  (and drawn? (nil? limit)) (assoc :limit most-lines))
        lines-of (frame-lines options)
        last-frame (volatile! nil)
        {:keys [signal result height]}
        (interactive/run (fn [stop show]
                           (let [frames (eduction (map #(vreset! last-frame %))
                                                  (exec.watch/watch options stop))]
                             (cond
                               drawn? (reduce (fn [_ frame] (show frame) frame) nil frames)
                               format (output/print-records format frames)
                               :else (run! #(print-frame % options) frames))))
                         lines-of
                         drawn?)
        gone? (= :gone (:status @last-frame))]
    {:text? true
     ;; The last screen stays visible above the prompt.
     :lines (when (and drawn? result height)
              (map #(:text % %)
                   (lines-of result {:width (or (terminal/width) 80) :height (- (long height) 1)})))
     :notes (when gone? [(status-text @last-frame options)])
     :exit (if gone? 1 (interactive/exit-code signal))}))

;; --- demo

(def ^:private columns
  [{:title "NR" :of :number}
   {:title "NAME" :of :name}
   {:title "COUNT" :of :count :align :right}
   {:title "PER-SECOND" :of (comp output/format-1dp :per-second) :align :right}])

;; --- the live table

(defn- frame
  "Returns the lines of the live table of `demo`, for a screen of a height."
  [{:keys [samples counts elapsed seconds] {:keys [id]} :map} {:keys [height]}]
  (let [[before earlier] (first samples)
        title [(str "System calls of this host, counted in BPF map " id " (hash)")
               (str (output/format-1dp elapsed) " of " (output/format-1dp seconds) " s: "
                    (demo/total counts) " calls of "
                    (output/plural (count counts) "kind" "kinds") "; stop with Ctrl-C")
               ""]
        room (max 0 (- height (count title) 1))]
    (into title
          (output/table columns
                        (take room (demo/calls counts earlier (max 0.1 (- elapsed before))))))))

;; --- one run

(defn- gone?
  "Returns true if the kernel has freed a map.

  Waits up to two seconds: the kernel frees it shortly after the last program that uses it."
  [id]
  (loop [attempts 100]
    (let [answer (try
                   (.close ^Closeable (bpf/open id {:access :read-only}))
                   (catch ExceptionInfo e (:bpfmap/error (ex-data e))))]
      (cond
        (= :not-found answer) true
        (and (nil? answer) (pos? attempts)) (do (waiting/sleep 20 :demo) (recur (dec attempts)))
        :else false))))

(defn- view
  "Returns the view of the end of a run.

  On a screen, it has only the rows that fit."
  [{:keys [elapsed] {:keys [id type name]} :map :as run} signal height]
  (let [{:keys [total calls] :as value} (demo/result run)
        ;; Heading, closing lines, the shell's prompt
        shown (if height (take (max 1 (- height 4)) calls) calls)]
    {:value value
     :columns columns :rows shown
     :closing [(str "Counted " total " system calls of "
                    (output/plural (count calls) "kind" "kinds")
                    " in " (output/format-1dp elapsed) " s"
                    (when (< (count shown) (count calls))
                      (str "; the top " (count shown) " are above")))
               (str "BPF map " id " (" (clojure.core/name type) ", " name ") "
                    (if (gone? id) "no longer exists" "is being freed by the kernel"))]
     :exit (interactive/exit-code signal)}))

(defn demo
  "Counts the system calls of the host for `:seconds`, or until Ctrl-C.

  On a terminal, shows them live.

      (:value (demo {:seconds 1.0} {:format :edn}))
      ;=> {:map {:id 12, …}, :seconds 1.0, :total 4711, :calls [{:number 0, :name \"read\", :count 1200, …} …]}"
  [{:keys [seconds]} {:keys [format]}]
  (let [drawn? (and (nil? format) (interactive/terminal?))
        {:keys [result signal height]} (interactive/run #(demo/observe seconds %1 %2) frame drawn?)]
    (view result signal height)))
