(ns bpfmap.impl.lifecycle
  "How an open map comes to be, and how its name in the file system comes and goes."
  (:require [bpfmap.codec :as codec]
            [bpfmap.error :as error]
            [bpfmap.feature :as feature]
            [bpfmap.impl.store :as store]
            [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.elements :as el]
            [bpfmap.impl.sys.maps :as maps]
            [bpfmap.impl.typing :as typing]
            [bpfmap.spec :as spec]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.io File)
           (java.nio.file Files NoSuchFileException Path)))

(set! *warn-on-reflection* true)

(defmacro ^:private owning
  "Runs body; closes the descriptor if it throws."
  [fd & body]
  `(try
     ~@body
     (catch Throwable t#
       (sys/close ~fd)
       (throw t#))))

;; --- create

(defmacro ^:private naming-entry
  "Runs body; an error of it says which entry of :contents it is about."
  [k & body]
  `(try
     ~@body
     (catch ExceptionInfo e#
       (throw (ex-info (str "In :contents, the entry of " (pr-str (error/shown ~k)) ": " (ex-message e#))
                       (assoc (ex-data e#)
                              :bpfmap/op :create
                              :bpfmap/path (into [:contents (error/shown ~k)] (:bpfmap/path (ex-data e#))))
                       e#)))))

(defn create
  "Creates a map from a spec: checked, filled, frozen, in this order."
  [spec]
  (let [{:keys [name contents freeze flags key value types] :as spec} (spec/complete spec)
        facts {:op :create :map {:name name :type (:type spec)}}]
    (when (seq contents)
      (let [key-codec (codec/codec key types [:key])
            value-codec (codec/codec value types [:value])]
        (doseq [[k v] contents]
          (naming-entry k
            (el/check key-codec k)
            (el/check value-codec v)))))
    (let [{:keys [fd untyped]} (typing/create-with-btf (assoc spec :name (spec/kernel-name name))
                                                       (assoc facts :unsupported (delay (feature/unsupported spec))))]
      (owning fd
        (let [access (cond (flags :rdonly) :read-only (flags :wronly) :write-only :else :read-write)
              spec (cond-> (dissoc spec :contents :freeze) untyped (assoc :untyped untyped))
              m (store/handle fd (maps/info fd facts) spec access nil)]
          (doseq [[k v] contents]
            (naming-entry k (store/put! m k v)))
          (when (or freeze (spec/frozen-by-name? name))
            (maps/freeze fd facts))
          m)))))

;; --- open

(defn- invalid-option [path message hint]
  (error/error :invalid-value message {:bpfmap/op :open :bpfmap/path path :bpfmap/hint hint}))

(defn- check-options [options]
  (when-not (or (nil? options) (map? options))
    (throw (invalid-option [] (str "Options are a map, not " (pr-str (error/shown options))) nil)))
  (doseq [[k v] options]
    (when-not (#{:access :key :value :types} k)
      (throw (invalid-option [k] (str "Unknown option " (pr-str k)) "open takes :access, :key, :value and :types")))
    (when (and (= :access k) (not (maps/access-flags v)))
      (throw (invalid-option [k] (str "Unknown access " (pr-str (error/shown v)))
                             (str "it is " (error/list-of (keys maps/access-flags))))))))

(defn- adopt
  "A handle of a descriptor just opened. The kernel does not say on which NUMA node a map is, so its spec does not either."
  [fd options path facts]
  (owning fd
    (let [info (maps/info fd facts)
          spec (-> (select-keys info [:name :type :key-size :value-size :max-entries :flags])
                   (update :flags disj :numa-node)
                   (merge (select-keys options [:types]) (typing/types-of info options facts)))]
      (store/handle fd info spec (or (sys/access fd) (:access options :read-write)) path))))

(defn infos
  "What the kernel says of every map, by ascending id; calls `skipped` with the error of each that cannot be opened."
  [op skipped]
  (let [facts {:op op}
        info (fn [id]
               (try
                 (let [fd (maps/by-id id :read-only facts)]
                   (try
                     (maps/info fd facts)
                     (finally (sys/close fd))))
                 (catch ExceptionInfo e
                   (skipped id e)
                   nil)))]
    (->> (iterate #(maps/next-id % facts) (maps/next-id 0 facts))
         (take-while some?)
         (keep info)
         (into []))))

(defn- id-of-name
  "The id of the one map of a name. A map that cannot be looked at might be another one, unless it is gone."
  [name]
  (when (empty? (spec/kernel-name name))
    (throw (invalid-option [:name] (str "Not the name of a map: " (pr-str (error/shown name)))
                           "the kernel keeps letters, digits, `_` and `.` of a name, and here it keeps nothing")))
  (let [kernel-name (spec/kernel-name name)
        found (filter #(= kernel-name (:name %))
                      (infos :open (fn [_ e]
                                     (when-not (= :not-found (:bpfmap/error (ex-data e)))
                                       (throw e)))))
        refuse (fn [kind message hint]
                 (throw (error/error kind (str message " " (pr-str name))
                                     {:bpfmap/op :open
                                      :bpfmap/candidates (seq (map #(select-keys % [:id :name :type]) found))
                                      :bpfmap/hint hint})))]
    (case (count found)
      0 (refuse :not-found "There is no map named" "no map on this host has the name")
      1 (:id (first found))
      (refuse :ambiguous "There is more than one map named" (str "it is the name of maps " (str/join ", " (map :id found)) "; open one by its id")))))

(defn- path-text
  "A file's path as the kernel takes it; throws for one that it cannot take."
  [file op]
  (let [text (str file)
        refuse (fn [hint]
                 (throw (error/error :invalid-value (str "Not a pin path: " (pr-str text))
                                     {:bpfmap/op op :bpfmap/file text :bpfmap/hint hint})))]
    (cond
      (str/blank? text) (refuse "it is empty")
      (str/includes? text "\u0000") (refuse "it has a NUL character")
      :else text)))

(defn- whole-number [ref n]
  (if (and (int? n) (<= 0 n 0x7fffffff))
    n
    (throw (invalid-option [] (str "Not a map: " (pr-str (error/shown ref))) "ids and descriptors are numbers from 0"))))

(defn- open-path [file options]
  (let [path (path-text file :open)
        facts {:op :open :path path}
        fd (try
             (maps/by-path path (:access options :read-write) facts)
             (catch ExceptionInfo e
               (if (and (= :not-found (:bpfmap/error (ex-data e))) (not (str/includes? path "/")))
                 (throw (error/error :not-found (str "There is no file " path)
                                     (assoc (ex-data e) :bpfmap/hint (str "to open a map by its name: (open {:name " (pr-str path) "})"))))
                 (throw e))))]
    (adopt fd options path facts)))

(defn- open-id [id options]
  (let [facts {:op :open}]
    (adopt (maps/by-id id (:access options :read-write) facts) options nil facts)))

(defn open
  "Opens a map by id, pin path, `{:name …}` or `{:fd …}`."
  [ref options]
  (check-options options)
  (cond
    (int? ref) (open-id (whole-number ref ref) options)
    (or (string? ref) (instance? Path ref) (instance? File ref)) (open-path ref options)
    (and (map? ref) (= 1 (count ref)))
    (let [[kind x] (first ref)]
      (case kind
        :id (open-id (whole-number ref x) options)
        :path (open-path x options)
        :name (open-id (id-of-name x) options)
        :fd (let [facts {:op :open}]
              (adopt (maps/by-descriptor (whole-number ref x) facts) options nil facts))
        (throw (invalid-option [kind] (str "Unknown reference " (pr-str (error/shown ref)))
                               "it is {:id n}, {:path p}, {:name n} or {:fd n}"))))
    :else (throw (invalid-option [] (str "Not a map: " (pr-str (error/shown ref)))
                                 "open takes an id, a pin path, {:name n} or {:fd n}"))))

;; --- pins

(defn- check-pin-name [path]
  (let [last-part (str (.getFileName (Path/of path (make-array String 0))))]
    (when (str/includes? last-part ".")
      (throw (error/error :invalid-value (str "Cannot pin to " path)
                          {:bpfmap/op :pin! :bpfmap/file path
                           :bpfmap/hint "the BPF file system takes no dots in a name"})))))

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

(defn pin!
  "Pins the map at a path, or moves its pin there."
  [m file]
  (store/check-open-map m :pin!)
  (let [path (path-text file :pin!)
        pin (store/pin-of m)
        facts {:op :pin! :path path :map (store/identity-of m)}]
    (check-pin-name path)
    (locking pin
      (let [old (when-let [path @pin] (when (pinned-there? m path :pin!) path))]
        (cond
          (nil? old) (maps/pin (store/descriptor m) path facts)
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
