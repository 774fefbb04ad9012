(ns user
  "What a REPL of the project begins with: bin/clj -M:dev, as root.

      (maps)                 a table of all maps
      (explore)              the host as data that nav leads on from
      (scratch)              a map to try things on
      (reload)               reloads what changed in src, and what depends on it"
  (:require [bpfmap.core :as bpf]
            [bpfmap.display :as display]
            [bpfmap.exec :as exec]
            [bpfmap.feature :as feature]
            [bpfmap.host :as host]
            [bpfmap.prog :as prog]
            [bpfmap.type :as type]
            [clojure.datafy :refer [datafy nav]]
            [clojure.pprint :refer [pprint print-table]]
            [clojure.repl :refer [apropos dir doc find-doc source]]
            [clojure.tools.namespace.dir :as dir]
            [clojure.tools.namespace.reload :as reload]
            [clojure.tools.namespace.track :as track]))

(set! *warn-on-reflection* true)

(defn maps
  "Prints a table of all maps, or of those for which the conditions hold, such as \"type=hash\"."
  [& conditions]
  (print-table [:id :type :name :entries :max-entries :memlock :held]
               (for [row (exec/list {:where (seq conditions)})]
                 (update row :held
                         #(mapv (fn [{:keys [command pid]}] (str command "[" pid "]")) %)))))

(defn explore
  "The host as data that `nav` leads on from."
  []
  (host/explore))

(defn scratch
  "A new hash map to try things on; close it afterwards."
  []
  (bpf/create {:name "scratch" :type :hash :key :u32 :value :u64 :max-entries 1024
               :contents {7 42}}))

(defn- scan [tracker]
  (dir/scan-dirs tracker ["src"]))

(defonce ^:private tracker
  (atom (dissoc (scan (track/tracker)) ::track/load ::track/unload)))

(defn reload
  "Reloads the loaded namespaces that changed and those that depend on them, in dependency order.

  Returns the reloaded namespaces. Rethrows the error of a namespace that does not load; the next
  call goes on with it. An open map belongs to the namespaces as they were: open it again. Changed
  Java needs a new JVM."
  []
  (let [loaded (loaded-libs)
        scanned (-> (scan @tracker)
                    (update ::track/load #(filterv loaded %))
                    (update ::track/unload #(filterv loaded %)))
        after (reset! tracker (reload/track-reload scanned))]
    (if-let [error (::reload/error after)]
      (throw error)
      (::track/load scanned))))

(println
 "(maps) (explore) (scratch) (reload); bpf host exec prog type feature display are at hand, (doc bpf/open) tells more")
