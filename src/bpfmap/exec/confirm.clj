(ns ^:no-doc bpfmap.exec.confirm
  "Requires confirmation before a command changes a map, or detaches a link, that others use: `:yes`,
  or a yes on the terminal.

  A map is in use by others if another process has it open or a program uses it. Pins do not count."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.map-info :as map-info]
            [bpfmap.impl.host.holders :as holders]
            [clojure.string :as str])
  (:import (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(defn- counted
  "Returns the number of users and the first five names; nil if there are none."
  [word names]
  (let [n (count names)]
    (when (pos? n)
      (str n " " word (when (< 1 n) (if (= "process" word) "es" "s"))
           " (" (str/join ", " (take 5 names)) (when (< 5 n) ", …") ")"))))

(defn other-holders
  "Returns the other processes that have an object open, and do not let go soon.

      (other-holders {:map-id 12}) ;=> [{:pid 4711 :command \"agent\" :fds [5]}]"
  [ref]
  (let [this (.pid (ProcessHandle/current))]
    (holders/settled #(remove (fn [{:keys [pid]}] (= this pid)) (holders/holders ref)) :confirm)))

(defn- other-users
  "Returns the other users of a map as text, or nil if there are none."
  [id]
  (let [held (other-holders {:map-id id})
        used (get (map-info/users (holders/programs {:brief true})) id)]
    (not-empty
     (str/join " and "
               (remove nil? [(counted "process" (map #(str (:command %) "[" (:pid %) "]") held))
                             (counted "program" (map #(str (:name %) "[" (:id %) "]") used))])))))

(defn- not-confirmed
  "Returns the error for a change that others would notice."
  [message object question hint]
  (error/error :not-confirmed message (assoc object
                                             :bpfmap/question question
                                             :bpfmap/hint hint)))

(defn check
  "Throws `:not-confirmed` if others use a map and `:yes` is not true.

  `:bpfmap/question` of the error is the question for the user.

      (check m {:yes true} \"Put an entry into it?\")"
  [m {:keys [yes]} question]
  (when-not yes
    (let [{:keys [id name type] :as info} (bpf/info m)]
      (when-let [others (other-users id)]
        (throw (not-confirmed (str "Map " (error/id-and-name info) " is in use by " others)
                              {:bpfmap/map {:id id :name name :type type}}
                              question
                              "pass :yes (--yes) to change it anyway"))))))

;; --- links

(defn owners
  "Returns the processes and pins that keep a link as text, or nil.

      (owners [{:pid 4711 :command \"agent\"}] []) ;=> \"held by 1 process (agent[4711])\""
  [held pinned]
  (not-empty
   (str/join " and "
             (remove nil?
                     [(some->> (counted "process" (map #(str (:command %) "[" (:pid %) "]") held))
                               (str "held by "))
                      (when (seq pinned)
                        (str "pinned at " (str/join ", " (take 5 pinned))))]))))

(defn check-link
  "Throws `:not-confirmed` if others keep a link, and `:yes` is not true.

  A pin counts: somebody wanted the link to stay.

      (check-link {:id 7 :type :xdp :held [] :pinned []} {}) ;=> nil"
  [{:keys [id type attached-to held pinned]} {:keys [yes]}]
  (when-not yes
    (let [held (when (seq held) (other-holders {:link-id id}))]
      (when-let [others (owners held pinned)]
        (throw (not-confirmed (str "Link " id " (" (fields/name-of type)
                                   (when attached-to (str " " attached-to)) ") is " others)
                              {:bpfmap/link {:id id :type type}}
                              "Detach it?"
                              "pass :yes (--yes) to detach it anyway"))))))
