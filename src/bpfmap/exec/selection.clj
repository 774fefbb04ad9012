(ns ^:no-doc bpfmap.exec.selection
  "Selects maps by patterns of their names, and by the processes that have them open."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.map.whole-names :as whole-names]))

(set! *warn-on-reflection* true)

;; --- patterns

(defn named
  "Returns a predicate for maps whose name matches a pattern.

  The whole name, or the name that the kernel keeps.

      ((named \"flow_*\") {:name \"flow_errors\"}) ;=> true"
  [pattern]
  (let [match? (whole-names/matcher pattern)]
    (fn [{:keys [name kernel-name]}]
      (or (match? name) (match? kernel-name)))))

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
        match? (whole-names/matcher (if whole?
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

(defn held-ids
  "Returns the set of the ids of maps that a process has open.

  The process is given as for [[held-by]]."
  [text]
  (let [holder? (held-by text)]
    (into #{}
          (keep (fn [[id {:keys [holders]}]] (when (some holder? holders) id)))
          (holders/held-maps))))

(defn only-one
  "Returns the id of the only map whose name matches a pattern.

  With `holder`, the only one that such a process has open. Throws `:not-found`, and `:ambiguous`
  with the maps as `:bpfmap/candidates`."
  ([pattern] (only-one pattern nil))
  ([pattern holder]
   (let [named (matching pattern (host-maps))
         found (if holder (filter (comp (held-ids holder) :id) named) named)]
     (cond
       (empty? found)
       (throw (error/error :not-found (str "No process " (error/shown holder) " has a map named "
                                           (pr-str pattern) " open")
                           {:bpfmap/op :open}))
       (next found)
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
       :else (:id (first found))))))
