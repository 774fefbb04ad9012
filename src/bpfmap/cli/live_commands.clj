(ns ^:no-doc bpfmap.cli.live-commands
  "Runs the commands that continue until they are stopped: `watch`, `top`, `prog top`, `tail` and
  `demo`."
  (:require [bpfmap.cli.interactive :as interactive]
            [bpfmap.cli.terminal :as terminal]
            [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.demo :as demo]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.output :as output]
            [bpfmap.exec.programs :as programs]
            [bpfmap.exec.progress :as progress]
            [bpfmap.exec.query :as query]
            [bpfmap.exec.tail :as exec.tail]
            [bpfmap.exec.top :as exec.top]
            [bpfmap.exec.views :as views]
            [bpfmap.exec.watch :as exec.watch]
            [bpfmap.impl.waiting :as waiting]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.io Closeable)
           (java.time LocalTime)
           (java.time.format DateTimeFormatter)))

(set! *warn-on-reflection* true)

;; --- watch

(def ^:private keys-text "The keys, for the lines above a table." "; keys: h help, q quit")

(defn- path-to
  "Returns the path that a column sorts by, or nil."
  [{:keys [by]}]
  (if (string? by) [by] by))

(defn moved
  "Returns the column to sort by after a key.

  `<` and `>` choose the column before and after it, the largest numbers first. `r` reverses the
  order, and any other key changes nothing. Columns without a field as `:by` cannot be chosen. It is
  a name, or a path of names.

      (moved [{:by \"id\"} {:by \"full\" :align :right}] (query/column \"id\") \">\")
      ;=> {:path [\"full\"] :descending true}"
  [columns column key]
  (let [choices (filterv :by columns)
        at (first (keep-indexed (fn [i choice] (when (= (path-to choice) (:path column)) i))
                                choices))
        chosen (fn [i]
                 (let [{:keys [align] :as choice} (choices (mod (long i) (count choices)))]
                   {:path (with-meta (path-to choice) {:exact true})
                    :descending (= :right align)}))]
    (case (when (seq choices) key)
      "<" (chosen (dec (long (or at 0))))
      ">" (chosen (if at (inc (long at)) 0))
      "r" (some-> column (update :descending not))
      column)))

(defn- sorted-by
  "Returns the column to sort by as text: its title, if it is in the table."
  [columns {:keys [path descending]}]
  (str (or (some (fn [{:keys [title] :as column}] (when (= path (path-to column)) title)) columns)
           (fields/path-text path))
       (if descending ", descending" ", ascending")))

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
  "Returns the lines above the table.

  `order` is its order as text, if there are keys."
  [{:keys [entries added changed removed elapsed] {:keys [id name type max-entries]} :map :as frame}
   options order]
  (concat
   [(str "Map " id (when (seq name) (str " " (output/cell name))) " (" (output/cell type) "): "
         entries " of " max-entries " entries" order)
    (str (.format (LocalTime/now) (DateTimeFormatter/ofPattern "HH:mm:ss")) ", every "
         (seconds-text (:interval options)) " s: "
         (if (zero? (double elapsed))
           "first reading"
           (str added " added, " changed " changed, " removed " removed"))
         (if order keys-text "; stop with Ctrl-C"))]
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

(defn- sortable
  "Returns the columns of a watch with the fields that they sort by.

  Rates and fields with a number in the first row begin with the largest."
  [columns [row]]
  (for [{:keys [path align] :as column} columns]
    (cond-> column
      path (assoc :by (mapv fields/name-of path)
                  :align (if (number? (get-in row path)) :right align)))))

(defn- order-text
  "Returns the order of a table as text, for the line above it."
  [columns {:keys [sort changed]} usual paused]
  (str "; sorted by " (if sort (sorted-by columns sort) usual)
       (when changed ", changed only")
       (when paused ", paused")))

(defn- frame-lines
  "Returns a function from a frame and a screen size to lines.

  Changed rows are bold. `view` is an atom with `:sort`, `:changed`, and the `:columns` of the last
  frame."
  [options view]
  (let [seen (volatile! {:paths [] :widths {}})]
    (fn [frame {:keys [width height paused]}]
      (let [{:keys [arranged showing]} (meta frame)
            rows (cond->> (:rows frame) arranged (arranged @view))
            heading-height (count (titles frame options ""))
            found (take (max 0 (- (long height) heading-height 1)) rows)
            shown (if showing (into [] showing found) found)
            {:keys [paths widths]} (vswap! seen update :paths with-paths rows)
            ;; A frame without rows keeps the columns.
            [sample raw] (:sample (if (seq shown) (vswap! seen assoc :sample [shown found]) @seen))
            columns (sortable (steady (views/entry-columns sample paths) widths) raw)
            {:keys [lines widths]} (output/fitted columns shown (dec (long width)))]
        (vswap! seen update :widths #(merge-with max % widths))
        (swap! view assoc :columns columns)
        (concat (titles frame options (order-text columns @view "change" paused))
                (take 1 lines)
                (map (fn [{:keys [change]} line] (if change {:style :bold :text line} line)) shown
                     (rest lines)))))))

(defn- print-frame
  "Prints a frame without a terminal: the entries that changed."
  [{:keys [rows elapsed] :as frame} options]
  (run! println (butlast (titles frame options nil)))
  (let [shown (if (zero? (double elapsed)) rows (filter :change rows))]
    (run! println (output/table (views/entry-columns shown (with-paths [] shown)) shown))
    (println)
    (flush)))

(def ^:private most-lines
  "The number of rows that are sorted for a terminal.

  No screen shows more."
  500)

(def ^:private sort-help
  [["< >" "sort by the column before or after; the arrows do the same"]
   ["r" "reverse the order"]])

(defn watch
  "Shows the changes of a map until `:seconds`, its end, or Ctrl-C."
  [{:keys [limit] :as options} {:keys [format]}]
  (let [drawn? (and (nil? format) (interactive/terminal?))
        view (atom (select-keys options [:sort :changed]))
        options (cond-> options
                  (and drawn? (nil? limit)) (assoc :limit most-lines)
                  drawn? (assoc :view view))
        lines-of (frame-lines options view)
        on-key (fn [key]
                 (let [before (dissoc @view :columns)
                       after (swap! view (fn [{:keys [columns] :as view}]
                                           (if (= "c" key)
                                             (update view :changed not)
                                             (update view :sort #(moved columns % key)))))]
                   (not= before (dissoc after :columns))))
        last-frame (volatile! nil)
        {:keys [signal result height]}
        (interactive/run "watch"
                         (fn [stop show]
                           (let [frames (eduction (map #(vreset! last-frame %))
                                                  (exec.watch/watch options stop))]
                             (cond
                               drawn? (reduce (fn [_ frame] (show frame) frame) nil frames)
                               format (output/print-records format frames)
                               :else (run! #(print-frame % options) frames))))
                         lines-of
                         drawn?
                         {:on-key on-key
                          :help (conj sort-help ["c" "changed entries only, or all"])})
        gone? (= :gone (:status @last-frame))]
    {:as-text true
     ;; The last screen stays visible above the prompt.
     :lines (when (and drawn? result height)
              (map #(:text % %)
                   (lines-of result {:width (or (terminal/width) 80) :height (- (long height) 1)})))
     :notes (when gone? [(status-text @last-frame options)])
     :exit (if gone? 1 (interactive/exit-code signal))}))

;; --- tables of programs and maps

(defn- clock-text [{:keys [interval]}]
  (str (.format (LocalTime/now) (DateTimeFormatter/ofPattern "HH:mm:ss")) ", every "
       (seconds-text interval) " s"))

(defn- heading
  "Returns the lines above a table, for a terminal if `drawn?`."
  [frame {:keys [titles columns usual]} column {:keys [seconds rounds once]} drawn? paused]
  (let [[what since] (titles frame)]
    [(str what (when drawn? (order-text columns {:sort column} usual paused)))
     (str since (cond
                 drawn? keys-text
                 (or seconds rounds once) ""
                 :else "; stop with Ctrl-C"))
     ""]))

(defn- top-lines
  "Returns a function from a frame and a screen size to lines.

  Rows for which `lively` is true are bold. `sorting` is a volatile with the column to sort by."
  [{:keys [columns lively arranged] :as table} options sorting]
  (let [seen (volatile! {})]
    (fn [frame {:keys [width height paused]}]
      (let [column @sorting
            above (heading frame table column options true paused)
            shown (take (max 0 (- (long height) (count above) 1))
                        (arranged (assoc options :sort column) (:rows frame)))
            {:keys [lines widths]} (output/fitted (steady columns @seen) shown
                                                  (dec (long width)))]
        (vswap! seen #(merge-with max % widths))
        (concat above
                (take 1 lines)
                (map (fn [row line] (if (lively row) {:style :bold :text line} line))
                     shown (rest lines)))))))

(defn- print-top
  "Prints a frame without a terminal."
  [frame {:keys [columns printed] :as table} options]
  (run! println (butlast (heading frame table nil options false false)))
  (run! println (output/table columns (filter printed (:rows frame))))
  (println)
  (flush))

(defn- run-top
  "Shows frames until they end, or until a signal.

  `(frames options stop)` returns the frames. On a terminal, they have all rows, since keys choose
  the order."
  [frames options {:keys [format]} {:keys [name columns] :as table}]
  (let [drawn? (and (nil? format) (interactive/terminal?))
        sorting (volatile! (:sort options))
        lines-of (top-lines table options sorting)
        on-key (fn [key]
                 (let [before @sorting]
                   (not= before (vreset! sorting (moved columns before key)))))
        {:keys [signal result height]}
        (interactive/run name
                         (fn [stop show]
                           (let [frames (frames (cond-> options drawn? (dissoc :sort :limit))
                                                stop)]
                             (cond
                               drawn? (reduce (fn [_ frame] (show frame) frame) nil frames)
                               format (output/print-records format frames)
                               :else (run! #(print-top % table options) frames))))
                         lines-of
                         drawn?
                         {:on-key on-key :help sort-help})]
    {:as-text true
     ;; The last screen stays visible above the prompt.
     :lines (when (and drawn? result height)
              (map #(:text % %)
                   (lines-of result {:width (or (terminal/width) 80) :height (- (long height) 1)})))
     :exit (interactive/exit-code signal)}))

;; --- prog top

(defn- ran?
  "Returns true if a program ran in the interval of its row."
  [{:keys [average-ns]}]
  (some? average-ns))

(def ^:private program-columns
  "The columns of `prog top`, with the fields that they sort by.

  Those of a program that did not run are empty."
  [{:title "ID" :of :id :by "id"}
   {:title "TYPE" :of :type :least 11 :rank 2 :by "type"}
   {:title "NAME" :of :name :least 15 :by "name"}
   {:title "RUNS/S" :of #(when (ran? %) (output/format-1dp (:runs-per-second %))) :align :right
    :by "runs-per-second"}
   {:title "AVERAGE" :of (comp views/nanoseconds-text :average-ns) :align :right
    :by "average-ns"}
   {:title "CPU" :of #(when (ran? %) (str (output/format-1dp (:cpu-percent %)) "%")) :align :right
    :by "cpu-percent"}
   {:title "RUNS" :of :runs :align :right :rank 1 :by "runs"}
   {:title "TIME" :of #(when (pos? (long (:runs %))) (views/nanoseconds-text (:time-ns %)))
    :align :right :rank 1 :by "time-ns"}])

(defn- program-titles [{:keys [programs elapsed rows]} options]
  [(str (error/plural programs "program") ", " (count (filter ran? rows)) " ran")
   (str (clock-text options) ", measuring for " (output/format-1dp elapsed) " s")])

(defn prog-top
  "Shows the run times of programs until `:seconds`, `:rounds` or Ctrl-C."
  [options request]
  (run-top programs/top (update options :sort #(or % (query/column "-cpu-percent"))) request
           {:name "prog top" :titles #(program-titles % options) :columns program-columns
            :arranged programs/arranged :lively ran? :printed ran?}))

;; --- top

(def ^:private map-columns
  "The columns of `top`, with the fields that they sort by."
  [{:title "ID" :of :id :by "id"}
   {:title "TYPE" :of :type :least 11 :rank 3 :by "type"}
   {:title "NAME" :of :name :least 15 :by "name"}
   {:title "ENTRIES" :of :entries :align :right :by "entries"}
   {:title "MAX" :of :max-entries :align :right :rank 1 :by "max-entries"}
   {:title "FULL" :of output/full-text :align :right :by "full"}
   {:title "ENTRIES/S" :of (comp views/rate-text :entries-per-second) :align :right
    :by "entries-per-second"}
   {:title "CHANGES/S" :of (comp views/rate-text :changes-per-second) :align :right
    :by "changes-per-second"}
   {:title "HELD BY" :of views/holders-text :least 14 :cut-at :middle :rank 2}])

(defn- changes? [{:keys [entries-per-second changes-per-second]}]
  (not (and (zero? (double (or entries-per-second 0.0)))
            (zero? (double (or changes-per-second 0.0))))))

(defn- map-titles [{:keys [maps rows]} options]
  [(str (error/plural maps "map") ", " (count (filter changes? rows)) " changed")
   (clock-text options)])

(defn top
  "Shows the maps of the host until `:seconds`, `:rounds` or Ctrl-C."
  [options request]
  (run-top exec.top/top options request
           {:name "top" :titles #(map-titles % options) :columns map-columns :usual "change"
            :arranged exec.top/arranged :lively changes? :printed any?}))

;; --- tail

(defn- map-text [{:keys [id name]}]
  (str "map " id (when (seq name) (str " (" (output/cell name) ")"))))

(defn- peek-note
  "Returns the note that events are copied, with the processes that have the map.

  Returns nil if they are taken, or if the user asked for copies."
  [{:keys [mode holders map]} {:keys [from]}]
  (when (and (= :peek mode) (nil? from))
    (str (map-text map)
         (if (seq holders)
           (str " is open in " (str/join ", " (clojure.core/map output/holder-text holders)) ":")
           " has another reader, or is frozen:")
         " events are copied and none is taken"
         (when (seq holders) "; --steal takes them")
         (when (= :perf-event-array (:type map))
           "; of a perf event array, events can be missed that the owner has read"))))

(defn- type-hint
  "Returns the hint for events without a type: structs of the size of an event."
  [{:keys [map]} size]
  (let [names (clojure.core/map first (exec.tail/structs-for map size))]
    (str "events are shown as bytes; "
         (if (seq names)
           (str "structs of " (error/plural size "byte")
                " in the programs that use the map: "
                (str/join ", " (take 10 (clojure.core/map output/cell names)))
                (when (next (drop 9 names)) " …")
                "; try --value-type " (output/cell (first names)))
           "set --value-type, such as '[struct [pid u32] [comm [string 16]]]'"))))

(defn- counting
  "Returns a transducer that counts rows in a volatile map.

  With `hint`, it prints a hint about types before the first event without a type."
  [counts about hint]
  (map (fn [{:keys [value error lost missed status] :as row}]
         (when (and hint (zero? (long (:events @counts))) (contains? row :value)
                    (nil? (:type @about)))
           (output/complain "bpfmap: " (type-hint @about (count value))))
         (vswap! counts (fn [counts]
                          (cond-> counts
                            (contains? row :value) (update :events inc)
                            error (update :errors inc)
                            lost (update :lost + lost)
                            missed (update :missed + missed)
                            status (assoc :status status))))
         row)))

(defn- loss-notes
  "Returns the notes about events that are not in the output."
  [{:keys [lost missed errors status]} about]
  (remove nil?
          [(when (pos? (long lost))
             (str (error/plural lost "event was" "events were")
                  " lost, because a buffer was full"))
           (when (pos? (long missed))
             (str (error/plural missed "byte") " of events were missed: they were "
                  (if (= :perf-event-array (:type (:map about)))
                    "read by the owner and could be overwritten"
                    "overwritten")
                  " before they were copied"))
           (when (pos? (long errors))
             (str (error/plural errors "event does" "events do") " not fit the type"))
           (when (= :gone status)
             (str (map-text (:map about)) " has ended: no process, program or pin refers to it"))]))

(defn- print-events
  "Prints events until `:limit`, `:seconds`, the end of the map, or Ctrl-C.

  Also ends if the reader of the output closes the pipe. Returns `{:notes :exit :count :map}`."
  [name options format]
  (let [state (atom {:signal nil :reader nil})
        close #(some-> ^Closeable (:reader @state) .close)
        stop (fn [name] #(do (swap! state assoc :signal name) (close)))
        counts (volatile! {:events 0 :errors 0 :lost 0 :missed 0})
        opened (fn [reader facts]
                 (some->> (peek-note facts options) (output/complain "bpfmap: "))
                 (when (:signal (swap! state assoc :reader reader))
                   (close)))
        rows (exec.tail/tail options opened)
        {:keys [about]} (meta rows)
        count-event (progress/counter "events")
        counted (eduction (map (fn [row] (count-event) row))
                          (counting counts about (nil? format)) rows)
        width (terminal/width)
        print-rows #(output/print-result nil (views/events counted about width) format width)]
    (interactive/handling
     (into {} (map (fn [name] [name (stop name)])) (keys interactive/numbers))
     #(terminal/until-closed (stop "PIPE")
        (fn [] (terminal/with-printing-progress name print-rows))))
    (let [{:keys [events status] :as counts} @counts
          {:keys [signal]} @state]
      {:count events
       :map (:map @about)
       :notes (loss-notes counts @about)
       :exit (if (= :gone status) 1 (interactive/exit-code signal))})))

(defn tail
  "Prints the events of a map until `:limit`, `:seconds`, its end, or Ctrl-C."
  [options {:keys [format]}]
  (let [{:keys [count notes exit]} (print-events "tail" options format)]
    {:as-text true
     :closing [(error/plural count "event")]
     :notes notes
     :exit exit}))

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
                    (error/plural (count counts) "kind") "; stop with Ctrl-C")
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

(defn- end-text
  "Returns the text about the end of the map of a demo."
  [{:keys [id type name]}]
  (str "BPF map " id " (" (clojure.core/name type) ", " name ") "
       (if (gone? id) "no longer exists" "is being freed by the kernel")))

(defn- view
  "Returns the view of the end of a run.

  On a screen, it has only the rows that fit."
  [{:keys [elapsed map] :as run} signal height]
  (let [{:keys [total calls missed] :as value} (demo/result run)
        ;; Heading, closing lines, the shell's prompt
        shown (if height (take (max 1 (- height 4)) calls) calls)]
    {:value value
     :columns columns :rows shown
     :closing [(str "Counted " total " system calls of "
                    (error/plural (count calls) "kind")
                    " in " (output/format-1dp elapsed) " s"
                    (when missed (str ", without " missed " that the program missed"))
                    (when (< (count shown) (count calls))
                      (str "; the top " (count shown) " are above")))
               (end-text map)]
     :exit (interactive/exit-code signal)}))

(defn- demo-events
  "Prints the events of this host for some seconds, or until Ctrl-C."
  [seconds format]
  (let [{:keys [count map notes exit]} (demo/with-events seconds #(print-events "demo" % format))]
    {:as-text true
     :notes notes
     :closing [(str (error/plural count "event") " of this host") (end-text map)]
     :exit exit}))

(defn demo
  "Counts the system calls of the host for `:seconds`, or until Ctrl-C.

  On a terminal, shows them live. With `:events`, prints events of the host.

      (:value (demo {:seconds 1.0} {:format :edn}))
      ;=> {:map {:id 12, …}, :seconds 1.0, :total 4711, :calls [{:number 0, :name \"read\", :count 1200, …} …]}"
  [{:keys [seconds events]} {:keys [format]}]
  (if events
    (demo-events seconds format)
    (let [drawn? (and (nil? format) (interactive/terminal?))
          {:keys [result signal height]}
          (interactive/run "demo" #(demo/observe seconds %1 %2) frame drawn?)]
      (view result signal height))))
