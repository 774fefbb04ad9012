(ns ^:no-doc bpfmap.exec.held-objects
  "Implements the command `holds`: what a process has open."
  (:require [bpfmap.error :as error]
            [bpfmap.exec.host :as host]
            [bpfmap.exec.links :as links]
            [bpfmap.exec.listing :as listing]
            [bpfmap.exec.program-info :as program-info]
            [bpfmap.exec.programs :as programs]
            [bpfmap.exec.selection :as selection]))

(set! *warn-on-reflection* true)

(defn- objects
  "Returns the maps, programs and links of the host, with references, by kind."
  []
  (let [columns (fn [& names] {:columns (map vector names)})]
    {:map (host/list-maps (columns "id" "type" "name" "memlock" "held" "pinned" "outer"))
     :program (programs/list-programs
               (columns "id" "type" "name" "memlock" "maps" "held" "pinned"))
     :link (links/list-links (columns "id" "type" "attached-to" "program" "held" "pinned"))}))

(defn- remaining
  "Returns a predicate of kind and row: true if the processes do not end it.

  A pin or another process keeps a link, a program or a map. A link keeps its program, a program its
  maps, and a map of maps its inner maps. What nobody has, such as a program of a network interface
  without a link, stays."
  [{maps :map programs :program links :link} holder?]
  (let [kept? (fn [{:keys [held pinned]}]
                (or (seq pinned) (empty? held) (not-every? holder? held)))
        by-links (into #{} (comp (filter kept?) (keep (comp :id :program))) links)
        ;; A program without a holder has a link or a pin, or is attached without a link.
        kept-programs (filter #(or (by-links (:id %))
                                   (and (kept? %)
                                        (or (seq (:held %)) (seq (:pinned %))
                                            (not-any? (comp #{(:id %)} :id :program) links))))
                              programs)
        program-ids (into #{} (map :id) kept-programs)
        by-programs (into #{} (comp (mapcat :maps) (map :id)) kept-programs)
        used (into #{} (comp (mapcat :maps) (map :id)) programs)
        kept-map? (fn [{:keys [id held pinned outer] :as m}]
                    (or (by-programs id)
                        (and (kept? m)
                             (or (seq held) (seq pinned) (not (or (used id) (seq outer)))))))
        map-ids (into #{} (comp (filter kept-map?) (map :id)) maps)]
    (fn [kind {:keys [id outer] :as row}]
      (boolean (case kind
                 :link (kept? row)
                 :program (program-ids id)
                 :map (or (map-ids id) (some map-ids (map :id outer))))))))

(defn holds
  "Returns the maps, programs and links that the processes `:process` have open.

  The `:name` of a link is what it is attached to. `:held` has all holders of an object, `:pinned`
  its pins. `:ends` is true if the object ends with the processes, because no other process, pin or
  object keeps it. Throws `:not-found` if there are none.

      (holds {:process \"agent\"}) ;=> [{:kind :map, :id 12, :type :hash, :name \"flows\", :memlock 8192, :ends true, :held [{:pid 4711 :command \"agent\"}], :pinned []} …]"
  [{:keys [process] :as options}]
  (let [plan (listing/plan "holds" program-info/held-fields options)
        holder? (selection/held-by process)
        all (objects)
        remains? (remaining all holder?)
        row (fn [kind]
              (fn [{:keys [id type name attached-to memlock held pinned] :as object}]
                (into (array-map :kind kind :id id :type type)
                      (remove (comp nil? val))
                      (array-map :name (or name attached-to) :memlock memlock
                                 :ends (not (remains? kind object)) :held held
                                 :pinned pinned))))
        held (into []
                   (mapcat (fn [kind]
                             (eduction (filter #(some holder? (:held %))) (map (row kind))
                                       (all kind))))
                   [:map :program :link])]
    (when (empty? held)
      (throw (error/error :not-found
                          (str "No process " (error/shown process)
                               " has a map, program or link open")
                          {:bpfmap/op :holds})))
    (listing/rows plan held)))
