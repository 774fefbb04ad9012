(ns ^:no-doc bpfmap.exec.selection
  "Selects maps by patterns of their names, and by the processes that have them open."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.map.whole-names :as whole-names]
            [clojure.string :as str])
  (:import (java.util.regex Pattern)))

(set! *warn-on-reflection* true)

;; --- patterns

(defn- regex
  "Returns the regular expression of a pattern with `*` and `?`."
  ^Pattern [text]
  (re-pattern (str/join (map #(case % "*" ".*" "?" "." (Pattern/quote %))
                             (re-seq #"[*?]|[^*?]+" text)))))

(defn- matcher
  "Returns a predicate for texts that match a pattern as a whole."
  [text]
  (let [pattern (regex text)]
    (fn [x] (boolean (and x (re-matches pattern x))))))

(defn named
  "Returns a predicate for maps whose name matches a pattern.

  The whole name, or the name that the kernel keeps.

      ((named \"flow_*\") {:name \"flow_errors\"}) ;=> true"
  [pattern]
  (let [match? (matcher pattern)]
    (fn [{:keys [name kernel-name]}]
      (or (match? name) (match? kernel-name)))))

(def ^:private ^:const longest-command "Characters of a command's name that the kernel keeps." 15)

(defn held-by
  "Returns a predicate for processes with a pid or a command.

  The command can be a pattern.

      ((held-by \"agent\") {:pid 4711 :command \"agent\"}) ;=> true"
  [text]
  (let [pid (when (re-matches #"[0-9]{1,10}" text) (parse-long text))
        whole? (not (re-find #"[*?]" text))
        match? (matcher (if whole?
                          (subs text 0 (min (long longest-command) (count text)))
                          text))]
    (fn [process]
      (or (and pid (= pid (:pid process)))
          (match? (:command process))))))

;; --- maps of the host

(defn host-maps
  "Returns the infos of the maps of the host, with whole names."
  []
  (let [namer (whole-names/namer (delay (holders/programs {:brief true}))
                                 (delay (holders/pins-by-id :map)))]
    (mapv #(whole-names/with-whole-name % namer) (holders/maps {:brief true}))))

(defn matching
  "Returns the maps among `maps` whose names match a pattern.

  Throws `:not-found` if there are none."
  [pattern maps]
  (or (not-empty (filterv (named pattern) maps))
      (throw (error/error :not-found (str "No map has a name like " (pr-str pattern))
                          {:bpfmap/op :open}))))

(defn only-one
  "Returns the id of the only map whose name matches a pattern.

  Throws `:not-found`, and `:ambiguous` with the maps as `:bpfmap/candidates`."
  [pattern]
  (let [found (matching pattern (host-maps))]
    (if (next found)
      (let [held (holders/held-maps)
            pinned (holders/pins-by-id :map)]
        (throw (error/error :ambiguous
                            (str (count found) " maps have a name like " (pr-str pattern))
                            {:bpfmap/op :open
                             :bpfmap/candidates (for [{:keys [id name type]} found]
                                                  {:id id :name name :type type
                                                   :pinned (get pinned id [])
                                                   :held (get-in held [id :holders] [])})
                             :bpfmap/hint "this command takes one map; use its id or name"})))
      (:id (first found)))))

(defn held-ids
  "Returns the set of the ids of maps that a process has open.

  The process is given as for [[held-by]]."
  [text]
  (let [holder? (held-by text)]
    (into #{}
          (keep (fn [[id {:keys [holders]}]] (when (some holder? holders) id)))
          (holders/held-maps))))
