(ns ^:no-doc bpfmap.exec.confirm
  "What changes a map that others use is done only when it was said to be meant: by `:yes`, or
  when asked.

  A map is another's when another process has it open or a program uses it. One that is only
  pinned, or held by this process alone, is nobody else's."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.host :as host]
            [clojure.string :as str])
  (:import (java.lang ProcessHandle)))

(set! *warn-on-reflection* true)

(defn- named [n one many names]
  (when (pos? (long n))
    (str (if (= 1 n) one (str n " " many)) ": " (str/join ", " (take 5 names))
         (when (< 5 (long n)) ", …"))))

(defn- other-users
  "Who else has a map, in words; nil for nobody."
  [id]
  (let [this (.pid (ProcessHandle/current))
        held (remove #(= this (:pid %)) (get (host/holders) id))
        used (get (host/users) id)]
    (not-empty
     (str/join "; and "
               (remove nil? [(named (count held) "a process has it open" "processes have it open"
                                    (map #(str (:command %) "[" (:pid %) "]") held))
                             (named (count used) "a program uses it" "programs use it"
                                    (map #(str (not-empty (:name %)) "[" (:id %) "]") used))])))))

(defn check
  "Throws `:not-confirmed` if a map is another's and the options do not say `:yes`. Under
  `:bpfmap/question` is what to ask.

      (check m {:yes true} \"Put an entry into it?\")"
  [m {:keys [yes]} question]
  (when-not yes
    (let [{:keys [id name type] :as info} (bpf/info m)
          what (str "Map " (error/id-and-name info) " is not yours alone")]
      (when-let [others (other-users id)]
        (throw (error/error :not-confirmed (str what ": " others)
                            {:bpfmap/map {:id id :name name :type type}
                             :bpfmap/question question
                             :bpfmap/hint "give :yes (--yes) if this is meant"}))))))
