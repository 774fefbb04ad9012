(ns bpfmap.impl.pinning
  "How a map's names in the file system come and go."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.store :as store]
            [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.maps :as maps]
            [bpfmap.impl.sys.objects :as objects]
            [bpfmap.impl.sys.paths :as paths]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(defn- pinned-there?
  "Whether a path still holds this map. Somebody may have removed the pin, and pinned another map at the path."
  [m path op]
  (try
    (let [fd (maps/by-path path :read-only {:op op :path path})]
      (try
        (= (:id (store/identity-of m)) (:id (maps/info fd {:op op})))
        (finally (sys/close fd))))
    (catch ExceptionInfo e
      (if (#{:not-found :not-a-map :not-bpffs} (:bpfmap/error (ex-data e)))
        false
        (throw e)))))

(defn pinned-at?
  "Returns true if the pin at a path is this map."
  [m file]
  (store/check-open-map m :pinned-at?)
  (pinned-there? m (objects/path-text file :pinned-at?) :open)) ; it opens what is there, and may fail as that does

(defn incompatible
  "The exception for a pinned map that a spec cannot use, with every difference."
  ^Throwable [path difference facts]
  (error/error :incompatible (str "The map pinned at " (paths/printed path) " is not the one of the spec")
               {:bpfmap/op (:op facts)
                :bpfmap/file path
                :bpfmap/diff difference
                :bpfmap/hint (str/join "; " (for [[k {:keys [spec map]}] (sort-by key difference)]
                                              (str k " is " (pr-str map) ", the spec has " (pr-str spec))))}))

(defn unusable
  "The exception for a path at which there is neither a map to open nor room for a pin, time and again."
  ^Throwable [path]
  (if (= :link (paths/type-of path false))
    (error/error :exists (str (paths/printed path) " is a symbolic link to nothing")
                 {:bpfmap/file path :bpfmap/hint "nothing can be pinned in its place; remove it"})
    (error/error :busy (str "The pin " (paths/printed path) " comes and goes")
                 {:bpfmap/file path :bpfmap/hint "others create and remove it at the same time; try again"})))

(defn- without [pins path]
  (into [] (remove #{path}) pins))

(defn pin!
  "Pins the map at a path, in addition to the pins that it has."
  [m file]
  (store/check-open-map m :pin!)
  (let [path (objects/path-text file :pin!)
        pins (store/pins-of m)]
    (locking pins
      (when-not (and (some #{path} @pins) (pinned-there? m path :pin!))
        (objects/pin (store/descriptor m) path {:op :pin! :path path :map (store/identity-of m)}))
      (swap! pins #(conj (without % path) path))))
  m)

(defn- not-a-pin
  "The exception for a path that is not a pin of the map."
  [m path op]
  (error/error :not-found (str (paths/printed path) " is not a pin of map " (error/id-and-name (store/identity-of m)))
               {:bpfmap/op op :bpfmap/file path :bpfmap/map (store/identity-of m)
                :bpfmap/hint "nothing is there, or something else is pinned there"}))

(defn- only-pin
  "Returns the one pin that the handle knows; throws `:not-found` or `:ambiguous` if there is none or more than one."
  [m pins]
  (let [refuse (fn [kind message hint]
                 (throw (error/error kind message {:bpfmap/op :move-pin! :bpfmap/map (store/identity-of m) :bpfmap/hint hint})))]
    (case (count pins)
      0 (refuse :not-found (str "This handle has no pin of map " (error/id-and-name (store/identity-of m)))
                "give the path of the pin to move, (move-pin! m from to)")
      1 (first pins)
      (refuse :ambiguous (str "This handle has " (count pins) " pins of map " (error/id-and-name (store/identity-of m)))
              (str "give the one to move, (move-pin! m from to): " (str/join ", " (map paths/printed pins)))))))

(defn move-pin!
  "Moves a pin of the map to another path, in one step; that of the handle if `from` is nil."
  [m from to]
  (store/check-open-map m :move-pin!)
  (let [from (when from (objects/path-text from :move-pin!))
        to (objects/path-text to :move-pin!)
        pins (store/pins-of m)]
    (objects/check-pin-path to :move-pin!)
    (locking pins
      (let [from (or from (only-pin m @pins))]
        (when-not (pinned-there? m from :move-pin!)
          (throw (not-a-pin m from :move-pin!)))
        (when-not (= from to)
          (sys/rename from to {:op :move-pin! :path to :from from :map (store/identity-of m)}))
        (swap! pins #(conj (-> % (without from) (without to)) to)))))
  m)

(defn- remove-pin
  "Removes a pin if it still holds the map; returns true if it did."
  [m path]
  (when (pinned-there? m path :unpin!)
    (sys/remove-file path "Removing the pin" {:op :unpin! :path path :map (store/identity-of m)})))

(defn unpin!
  "Removes the pins that the handle knows and that still hold the map; or the one at a path."
  ([m]
   (store/check-open-map m :unpin!)
   (let [pins (store/pins-of m)]
     (locking pins
       (doseq [path @pins]
         (remove-pin m path)
         (swap! pins without path))))
   m)
  ([m file]
   (store/check-open-map m :unpin!)
   (let [path (objects/path-text file :unpin!)
         pins (store/pins-of m)]
     (locking pins
       (when-not (remove-pin m path)
         (throw (not-a-pin m path :unpin!)))
       (swap! pins without path)))
   m))
