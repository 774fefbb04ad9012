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

(defn holds
  "Returns the maps, programs and links that the processes `:process` have open.

  The `:name` of a link is what it is attached to. `:held` has all holders of an object. Throws
  `:not-found` if there are none.

      (holds {:process \"agent\"}) ;=> [{:kind :map, :id 12, :type :hash, :name \"flows\", :memlock 8192, :held [{:pid 4711, :command \"agent\"}]} …]"
  [{:keys [process] :as options}]
  (let [plan (listing/plan "holds" program-info/held-fields options)
        holder? (selection/held-by process)
        columns (fn [& names] {:columns (map vector names)})
        row (fn [kind]
              (fn [{:keys [id type name attached-to memlock held]}]
                (into (array-map :kind kind :id id :type type)
                      (remove (comp nil? val))
                      (array-map :name (or name attached-to) :memlock memlock :held held))))
        held (into []
                   (mapcat (fn [[kind objects]]
                             (eduction (filter #(some holder? (:held %))) (map (row kind))
                                       objects)))
                   [[:map (host/list-maps (columns "id" "type" "name" "memlock" "held"))]
                    [:program (programs/list-programs
                               (columns "id" "type" "name" "memlock" "held"))]
                    [:link (links/list-links (columns "id" "type" "attached-to" "held"))]])]
    (when (empty? held)
      (throw (error/error :not-found
                          (str "No process " (error/shown process)
                               " has a map, program or link open")
                          {:bpfmap/op :holds})))
    (listing/rows plan held)))
