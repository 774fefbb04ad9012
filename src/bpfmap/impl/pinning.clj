(ns bpfmap.impl.pinning
  "How a map's name in the file system comes and goes."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.store :as store]
            [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.maps :as maps]
            [bpfmap.impl.sys.objects :as objects]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.nio.file Files NoSuchFileException Path)))

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

(defn incompatible
  "The exception for a pinned map that a spec cannot use, with every difference."
  ^Throwable [path difference facts]
  (error/error :incompatible (str "The map pinned at " path " is not the one of the spec")
               {:bpfmap/op (:op facts)
                :bpfmap/file path
                :bpfmap/diff difference
                :bpfmap/hint (str/join "; " (for [[k {:keys [spec map]}] (sort-by key difference)]
                                              (str k " is " (pr-str map) ", the spec has " (pr-str spec))))}))

(defn unusable
  "The exception for a path at which there is neither a map to open nor room for a pin, time and again."
  ^Throwable [path]
  (let [file (Path/of path (make-array String 0))]
    (if (Files/isSymbolicLink file)
      (error/error :exists (str path " is a symbolic link to nothing")
                   {:bpfmap/file path :bpfmap/hint "nothing can be pinned in its place; remove it"})
      (error/error :busy (str "The pin " path " comes and goes")
                   {:bpfmap/file path :bpfmap/hint "others create and remove it at the same time; try again"}))))

(defn pin!
  "Pins the map at a path, or moves its pin there."
  [m file]
  (store/check-open-map m :pin!)
  (let [path (objects/path-text file :pin!)
        pin (store/pin-of m)
        facts {:op :pin! :path path :map (store/identity-of m)}]
    (locking pin
      (let [old (when-let [path @pin] (when (pinned-there? m path :pin!) path))]
        (cond
          (nil? old) (objects/pin (store/descriptor m) path facts)
          (not= old path) (sys/rename old path facts)))
      (reset! pin path)))
  m)

(defn unpin!
  "Removes the pin of this handle, if it has one that is still there and still holds the map."
  [m]
  (store/check-open-map m :unpin!)
  (let [pin (store/pin-of m)]
    (locking pin
      (when-let [path @pin]
        (try
          (when (pinned-there? m path :unpin!)
            (Files/delete (Path/of path (make-array String 0))))
          (catch NoSuchFileException _)
          (catch java.io.IOException e
            (throw (error/error :permission (str "Removing the pin " path " failed")
                                {:bpfmap/op :unpin! :bpfmap/file path :bpfmap/map (store/identity-of m)
                                 :bpfmap/hint (ex-message e)} e))))
        (reset! pin nil))))
  m)
