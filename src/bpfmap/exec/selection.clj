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

(defn for-name
  "Returns the pairs of a map by names and patterns that are for a map's info.

  A long name is for the map whose name the kernel shortened from it. The pair with the map's own
  name is first. `whole-name` is a function from the info to the whole name, or to nil if that is
  not certain.

      (for-name {\"fl*\" 1 \"flows\" 2} {:name \"flows\"} (constantly nil)) ;=> ([\"flows\" 2] [\"fl*\" 1])"
  [by-name {:keys [name] :as info} whole-name]
  (let [text #(if (string? %) % (clojure.core/name %))
        names (map text (keys by-name))
        pattern? #(re-find #"[*?]" %)
        long? #(and (not= % name) (whole-names/shortens-to? % name))
        whole (when (some (some-fn pattern? long?) names) (whole-name info))
        own? #(or (= % name) (if whole (= % whole) (long? %)))
        match? #(and (pattern? %) (some (matcher %) (remove nil? [name whole])))]
    (concat (filter (comp own? text key) by-name)
            (filter (comp match? text key) by-name))))

(defn whole-name
  "Returns the whole name of a map of the host, or nil if it is not certain.

      (whole-name {:id 12 :name \"connection_erro\"}) ;=> \"connection_errors_total\""
  [info]
  ((whole-names/namer (delay (holders/programs {:brief true})) (delay (holders/pins-by-id :map)))
   info))

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
