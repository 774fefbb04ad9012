(ns bpfmap.cli.views.entry
  "How people see one entry, and what was done to it or its map. See `bpfmap.cli.views` for what a view is."
  (:require [bpfmap.cli.output :as output]))

(set! *warn-on-reflection* true)

(defn- map-text [{:keys [id name]}]
  (str "map " id (when (seq name) (str " (" (output/cell name) ")"))))

(defn entry
  "A value alone, since its key is known; where there is none, that is said and the exit code is 1."
  [found _options]
  (cond
    (nil? found) {:lines [] :notes ["there is no such entry"] :exit 1}
    (contains? found :might-contain?) {:lines [(if (:might-contain? found) "maybe" "no")]}
    :else {:lines [(output/element-cell (:value found))]}))

(defn put
  "What was written, and what was there before."
  [{:keys [key value before written?] :as done} _options]
  (cond
    (not written?) {:lines []
                    :notes [(str "nothing was written: the key is " (if (nil? before) "not there" "there already"))]
                    :exit 1}
    (contains? done :key) {:lines [(str (output/element-cell key) "  " (output/element-cell value)
                                        (if (nil? before) "  (new)" (str "  (was " (output/element-cell before) ")")))]}
    :else {:lines [(output/element-cell value)]}))

(defn deleted
  "What was deleted; where nothing was there, that is said and the exit code is 1."
  [{:keys [key before deleted?]} _options]
  (if deleted?
    {:lines [(str (output/element-cell key) (when (some? before) (str "  (was " (output/element-cell before) ")")))]}
    {:lines [] :notes ["there is no such entry"] :exit 1}))

(defn pinned
  "A map and its pin."
  [{:keys [path from untyped] :as info} _options]
  {:lines [(str (map-text info) " is pinned at " (output/cell path) (when from (str ", and no longer at " (output/cell from))))]
   :notes (when untyped [untyped])})

(defn unpinned
  "A map whose pin is gone."
  [{:keys [path] :as info} _options]
  {:lines [(str (map-text info) " is not pinned at " (output/cell path) " any more")]})

(defn frozen
  "A map that cannot be changed any more."
  [info _options]
  {:lines [(str (map-text info) " is frozen")]})

(defn saved
  "A map that was written to a file."
  [{:keys [map file entries]} _options]
  {:lines [(str (output/plural entries "entry" "entries") " of " (map-text map)
                (if (= 1 entries) " is" " are") " saved in " (output/cell file))]})

(defn- entries-text [n]
  (output/plural n "entry" "entries"))

(defn restored
  "A map that was made or filled from a file: what it has now. If that is not all, it is said, and the exit code is 1."
  [{:keys [map path entries changed missing skipped deleted]} _options]
  (let [whole? (= 0 missing changed)]
    {:lines [(str (if whole?
                    (str (entries-text (- (long entries) (long skipped))) " written into " (map-text map))
                    (str entries " of " (entries-text (+ (long entries) (long changed) (long missing))) " are in " (map-text map)))
                  (when path (str ", pinned at " (output/cell path)))
                  (when (pos? (long skipped)) (str ", " skipped " there already"))
                  (when (pos? (long deleted)) (str ", " deleted " deleted")))]
     :notes (remove nil?
                    [(when (pos? (long missing))
                       (str (entries-text missing) (if (= 1 missing) " is" " are")
                            " not in the map: it evicts entries to make room, or somebody deleted "
                            (if (= 1 missing) "it" "them")))
                     (when (pos? (long changed))
                       (str (entries-text changed) (if (= 1 changed) " has" " have") " another value by now: somebody writes to the map"))])
     :exit (if (pos? (long missing)) 1 0)}))
