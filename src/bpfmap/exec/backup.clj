(ns ^:no-doc bpfmap.exec.backup
  "Implements the commands `save` and `restore`, which write a map to a file and read it back.

  `bpfmap.exec.saved-file` describes the file."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.confirm :as confirm]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.progress :as progress]
            [bpfmap.exec.saved-file :as saved-file]
            [bpfmap.impl.edn-text :refer [edn-text]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.raw-entries :as raw-entries])
  (:import (java.io BufferedWriter IOException)
           (java.net InetAddress)
           (java.util ArrayList HashSet Map)))

(set! *warn-on-reflection* true)

;; --- maps that cannot be restored

(def ^:private not-restored
  "The reasons why values cannot be restored, by their kind in the kernel."
  {:socket-cookie "the kernel returns only the cookies of sockets, by which no socket can be found"
   :functions "restoring its value would register it with the kernel"})

(defn- why-unsavable
  "Returns the reason why the contents of a map cannot be restored, or nil."
  [m]
  (let [{:keys [type value-size]} (bpf/spec m)
        {:keys [ops refers]} (input/row-of m)]
    (or (map-types/alternative type :reduce value-size)
        (when-not (:reduce ops) "the kernel cannot list its entries")
        (not-restored (get-in refers [:value :out]))
        (when-not (:put! ops)
          (str "they cannot be restored: " (map-types/alternative type :put! value-size))))))

(defn- unsavable ^Throwable [m why]
  (error/error :not-supported
               (str "The contents of map " (error/id-and-name (bpf/info m)) ", "
                    (name (:type (bpf/spec m)))
                    ", cannot be saved")
               {:bpfmap/op :save :bpfmap/map (select-keys (bpf/info m) [:id :name :type])
                :bpfmap/hint why}))

(defn- check-savable [m]
  (when-let [why (why-unsavable m)]
    (throw (unsavable m why))))

(defn- spec-to-save
  "Returns the spec of a map for a file.

  Throws `:not-supported` if it contains functions."
  [m]
  (let [spec (cond-> (bpf/spec m) (:frozen (bpf/info m)) (assoc :freeze true))]
    (when (some fn? (tree-seq coll? seq spec))
      (throw (unsavable m
                        "its types contain functions ([:via …]); give --key-type or --value-type without them")))
    spec))

;; --- maps of maps

(defn- inner-ids
  "Returns the ids of the maps in a map of maps, each once."
  [m]
  (into [] (comp (map (comp :map-id val)) (distinct)) m))

(defn- open-inner
  "Opens an inner map.

  Throws `:not-found` if the map was freed."
  ^java.io.Closeable [id]
  (let [m (bpf/open {:id id} {:access :read-only})]
    (try
      (check-savable m)
      m
      (catch Throwable e
        (bpf/close m)
        (throw e)))))

(defn- with-template
  "Returns the spec of a map of maps with the spec of its inner maps.

  The kernel reports that spec only through a map that is in it."
  [spec m ids]
  (cond
    (:inner-map spec) spec
    (empty? ids) (throw (unsavable m
                                   "it is empty, so the spec of its inner maps is unknown"))
    :else (with-open [inner (open-inner (first ids))]
            (assoc spec :inner-map (dissoc (spec-to-save inner) :name :freeze :pinning)))))

;; --- writing

(defn- write-line [^BufferedWriter writer text]
  (.write writer ^String text)
  (.newLine writer))

(defn- host-name []
  (try (.getHostName (InetAddress/getLocalHost)) (catch IOException _ nil)))

(defn- write-entries
  "Writes entries as the lines of a vector and returns their number."
  [writer entries]
  (let [written (volatile! 0)]
    (write-line writer "[")
    (run! (fn [[k v]]
            (vswap! written inc)
            (write-line writer (str "[" (edn-text k) " " (edn-text v) "]")))
          entries)
    (.write ^BufferedWriter writer "]")
    @written))

(defn- write-inner
  "Writes the maps of a map of maps, by id."
  [^BufferedWriter writer ids]
  (.write writer "\n :inner {")
  (doseq [id ids]
    (with-open [m (open-inner id)]
      (write-line writer "")
      (.write writer (str id " {:spec " (edn-text (spec-to-save m)) "\n :entries "))
      (write-entries writer m)
      (.write writer "}")))
  (.write writer "}"))

(defn- write-map
  "Writes a map as EDN and returns the number of its entries."
  [^BufferedWriter writer m]
  (let [spec (spec-to-save m)
        ids (when (:inner (input/row-of m)) (inner-ids m))
        spec (if ids (with-template spec m ids) spec)
        host (host-name)]
    (write-line writer (str "{:bpfmap/saved " (if ids 2 1) "\n :at " (edn-text (java.util.Date.))
                            (when host (str "\n :host " (edn-text host)))))
    (.write writer (str " :spec " (edn-text spec) "\n :entries "))
    (let [written (write-entries writer
                                 (eduction (if ids (filter (comp (set ids) :map-id val)) identity)
                                           (progress/counting "entries") m))]
      (when ids (write-inner writer ids))
      (write-line writer "}")
      written)))

(defn save
  "Writes the spec and entries of a map to a file.

  The inner maps of a map of maps are saved too. Throws `:not-supported` for a map whose contents
  cannot be restored.

      (save {:ref {:name \"flows\"} :file \"/root/flows.edn\"}) ;=> {:file \"/root/flows.edn\", :map {…}, :entries 20}"
  [{:keys [file] :as options}]
  (with-open [m (input/open-typed options :read-only)]
    (check-savable m)
    (let [saved (volatile! 0)]
      (saved-file/write-whole file (fn [writer] (vreset! saved (write-map writer m))))
      {:file (call/path-text file :save) :map (select-keys (bpf/info m) [:id :name :type])
       :entries @saved})))

;; --- restoring

(defn- check-cpus
  "Throws `:incompatible` if the values are for a different number of CPUs."
  [m entries]
  (when-let [cpus (input/cpus-of m)]
    (when-let [other (some (fn [[_ v]] (when-not (= (count cpus) (when (vector? v) (count v))) v))
                           entries)]
      (throw (error/error :incompatible "The saved map does not fit this host"
                          {:bpfmap/op :restore
                           :bpfmap/hint (str "its values have "
                                             (if (vector? other) (count other) "no")
                                             " CPUs, and this host has "
                                             (count cpus) " possible CPUs")})))))

(defn- against
  "Compares the entries of a map with saved entries, as bytes.

  Returns `{:same #{keys} :changed n :missing n :strangers [keys]}`. Values count only if
  `values?`."
  [m ^Map saved values?]
  (let [same (HashSet.)
        strangers (ArrayList.)
        changed (volatile! 0)]
    (run! (fn [[k v]]
            (let [was (.get saved k)]
              (cond
                (nil? was) (.add strangers k)
                (or (not values?) (= was v)) (.add same k)
                :else (vswap! changed inc))))
          (eduction (progress/counting "entries compared") (raw-entries/entries m)))
    {:same same :changed @changed :missing (- (.size saved) (.size same) (long @changed))
     :strangers strangers}))

(defn- put-inner
  "Creates the inner maps of saved entries and puts them.

  Some hundred at a time, because each takes a descriptor. A map with several entries is created
  once."
  [m entries inner]
  (doseq [ids (partition-all 256 (distinct (map (comp :map-id second) entries)))]
    (let [made (volatile! {})]
      (try
        (doseq [id ids :let [{:keys [spec entries]} (get inner id)]]
          (vswap! made assoc id (bpf/create (assoc (dissoc spec :pinning) :contents entries))))
        (bpf/put-all! m (for [[k {:keys [map-id]}] entries :when (contains? @made map-id)]
                          [k (get @made map-id)]))
        (finally (run! bpf/close (vals @made)))))))

(defn- check-inner
  "Throws `:not-saved` for an entry whose map is not in the file."
  [file entries inner]
  (doseq [[k v] entries :when (not (contains? inner (:map-id v)))]
    (throw (error/error :not-saved (str file " is not a saved map")
                        {:bpfmap/op :restore :bpfmap/file file
                         :bpfmap/hint (str "the entry of " (edn-text k) " is " (edn-text v)
                                           ", which :inner does not have")}))))

(defn- written
  "Returns entries that report their number while they are written."
  [entries]
  (eduction (progress/counting "entries written") entries))

(defn- write-entries-into
  "Writes entries into a map, given as data and as bytes."
  [m entries in-bytes {:keys [inner]}]
  (cond
    inner (put-inner m entries inner)
    ;; A reference is written as a descriptor, which has no bytes.
    (get-in (input/row-of m) [:refers :value :in]) (bpf/put-all! m (written entries))
    :else (with-open [twin (raw-entries/open-raw m)]
            (bpf/put-all! twin (written in-bytes)))))

(defn- outcome
  "Returns the result of a restore: the entries of the map, and the actions."
  [m saved values? skipped deleted]
  (let [{:keys [same changed missing]} (against m saved values?)]
    {:map (select-keys (bpf/info m) [:id :name :type])
     :entries (count same) :changed changed :missing missing :skipped skipped :deleted deleted}))

(defn- into-existing
  "Writes saved entries into an existing map, without its existing entries.

  With `:exact`, first deletes entries that were not saved."
  [{:keys [into exact file] :as options} {:keys [spec entries inner] :as saved}]
  (with-open [m (input/open (assoc options :ref into) :read-write)]
    (when-let [difference (not-empty (select-keys (bpf/spec-diff m (saved-file/completed spec))
                                                  [:type :key-size :value-size]))]
      (throw (error/error :incompatible
                          (str "The saved map does not match map "
                               (error/id-and-name (bpf/info m)))
                          {:bpfmap/op :restore :bpfmap/diff difference
                           :bpfmap/hint (str "they differ: " (pr-str difference))})))
    (when inner (check-inner file entries inner))
    (check-cpus m entries)
    (let [in-bytes (saved-file/in-bytes (saved-file/completed spec) entries)
          by-key (raw-entries/snapshot in-bytes)]
      (confirm/check m options "Write the saved entries into it?")
      (let [{:keys [^HashSet same strangers]} (against m by-key true)
            ;; The maps in a map of maps are new maps, so their ids cannot be compared.
            same (if inner (HashSet.) same)
            other? (fn [[k]] (not (.contains ^HashSet same k)))
            deleted (if (and exact (seq strangers))
                      (with-open [twin (raw-entries/open-raw m)] (bpf/delete-all! twin strangers))
                      0)]
        (write-entries-into m
                            (keep (fn [[entry raw]] (when (other? raw) entry))
                                  (map vector entries in-bytes))
                            (filter other? in-bytes)
                            saved)
        (outcome m by-key (nil? inner) (count same) deleted)))))

(defn- made
  "Returns a new, open map made from a file, whose entries are given as bytes too.

  It is filled and frozen after its creation."
  ^java.io.Closeable [file {:keys [spec entries inner] :as saved} in-bytes]
  (when inner (check-inner file entries inner))
  (let [m (bpf/create (dissoc spec :pinning :freeze))]
    (try
      (check-cpus m entries)
      (write-entries-into m entries in-bytes saved)
      (when (:freeze spec) (bpf/freeze! m))
      m
      (catch Throwable e
        (bpf/close m)
        (throw e)))))

(defn restore
  "Restores a map from a file.

  With `:pin`, creates the map and pins it. With `:into`, writes the entries into an existing map.
  Skips entries that exist already.

  The result describes the map afterwards. `:entries` is the number of saved entries in it,
  `:missing` of those that it evicted or others deleted, `:changed` of those with a different
  value. `:skipped` entries existed before, `:deleted` ones were not in the file.

      (restore {:file \"/root/flows.edn\" :pin \"/sys/fs/bpf/flows\"})
      ;=> {:map {:id 12 …}, :path \"/sys/fs/bpf/flows\", :entries 20, :changed 0, :missing 0, :skipped 0, :deleted 0}"
  [{:keys [file pin into exact] :as options}]
  (when (= (some? pin) (some? into))
    (throw (if pin
             (arguments/refused "restore" :into into ["cannot be combined with " :pin])
             (arguments/missing-option "restore" :pin :into))))
  (when (and exact pin)
    (throw (arguments/refused "restore" :exact exact ["requires " :into])))
  (let [{:keys [spec entries inner] :as saved} (saved-file/read-file file)]
    (if into
      (into-existing options saved)
      (let [in-bytes (saved-file/in-bytes (saved-file/completed spec) entries)]
        (with-open [m (made file saved in-bytes)]
          (bpf/pin! m pin)
          (assoc (outcome m (raw-entries/snapshot in-bytes) (nil? inner) 0 0)
                 :path (bpf/pinned-path m)))))))
