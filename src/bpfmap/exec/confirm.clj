(ns ^:no-doc bpfmap.exec.confirm
  "Requires confirmation before a command changes a map that others use: `:yes`, or a yes on the
  terminal.

  A map is in use by others if another process has it open or a program uses it. Pins do not count."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
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

(defn- other-users
  "Returns the other users of a map as text, or nil if there are none."
  [id]
  (let [this (.pid (ProcessHandle/current))
        held (remove #(= this (:pid %)) (get-in (holders/held-maps) [id :holders]))
        used (get (map-info/users) id)]
    (not-empty
     (str/join " and "
               (remove nil? [(counted "process" (map #(str (:command %) "[" (:pid %) "]") held))
                             (counted "program" (map #(str (:name %) "[" (:id %) "]") used))])))))

(defn check
  "Throws `:not-confirmed` if others use a map and `:yes` is not true.

  `:bpfmap/question` of the error is the question for the user.

      (check m {:yes true} \"Put an entry into it?\")"
  [m {:keys [yes]} question]
  (when-not yes
    (let [{:keys [id name type] :as info} (bpf/info m)]
      (when-let [others (other-users id)]
        (throw (error/error :not-confirmed
                            (str "Map " (error/id-and-name info) " is in use by " others)
                            {:bpfmap/map {:id id :name name :type type}
                             :bpfmap/question question
                             :bpfmap/hint "pass :yes (--yes) to change it anyway"}))))))
