(ns bpfmap.impl.lifecycle
  "How an open map comes to be: created from a spec, or opened by what names it."
  (:require [bpfmap.codec.element :as element]
            [bpfmap.error :as error]
            [bpfmap.impl.cache :as cache]
            [bpfmap.impl.comparing :as comparing]
            [bpfmap.impl.handle :as handle]
            [bpfmap.impl.many :as many]
            [bpfmap.impl.mapped :as mapped]
            [bpfmap.impl.operations :as operations]
            [bpfmap.impl.pinning :as pinning]
            [bpfmap.impl.reference :as reference]
            [bpfmap.impl.store :as store]
            [bpfmap.impl.struct-ops :as struct-ops]
            [bpfmap.impl.sys :as sys]
            [bpfmap.impl.sys.elements :as el]
            [bpfmap.impl.sys.maps :as maps]
            [bpfmap.impl.sys.objects :as objects]
            [bpfmap.impl.token :as token]
            [bpfmap.impl.typing :as typing]
            [bpfmap.rules :as rules]
            [bpfmap.spec :as spec]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.io File)
           (java.nio.file Path)))

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

(defn- keyless? [{:keys [type]}]
  (contains? (:ops (rules/types type)) :push!))

(defn- check-contents
  "Throws for the first entry of a completed spec's :contents that does not fit, before anything is created."
  [{:keys [type contents] :as spec} facts]
  (when (seq contents)
    (let [key-codec (element/key spec)
          value-codec (element/value spec (when (:per-cpu? (rules/types type)) (count (sys/possible-cpus))))
          bridge (reference/bridge spec)
          held (reference/holding)]
      (try
        (doseq [[k v] (if (keyless? spec) (map-indexed vector contents) contents)]
          (naming-entry k
            (when key-codec (el/check key-codec (if bridge (reference/key-in bridge held k facts) k)))
            (el/check value-codec (if bridge (reference/value-in bridge held v facts) v))))
        (finally (reference/let-go held))))))

(defn- fill
  "Puts the :contents of a spec into its new map."
  [m {:keys [contents] :as spec}]
  (if (keyless? spec)
    (doseq [[i v] (map-indexed vector contents)]
      (naming-entry i (operations/push! m v nil)))
    (try
      (many/put-all! m contents nil)
      (catch ExceptionInfo e
        (let [i (or (:bpfmap/index (ex-data e)) (:bpfmap/done (ex-data e)))]
          (naming-entry (when i (first (nth (seq contents) i))) (throw e)))))))

(defn- create-bare
  "Creates a map from a completed spec and returns `{:fd :untyped}`: nothing is in it yet."
  [{:keys [name inner-map token struct-ops] :as spec} facts]
  (let [template (some-> inner-map (assoc :token token) (create-bare facts) :fd)
        create #(typing/create-with-btf (assoc spec :name (spec/kernel-name name) :whole-name name :inner-map template)
                                        (assoc facts :unsupported (delay ((requiring-resolve 'bpfmap.feature/unsupported) spec))))]
    (try
      (if struct-ops
        (struct-ops/reading-kernel-btf create facts)
        (create))
      (finally (some-> template sys/close)))))

(def ^:private access-of-flags
  {:rdonly :read-only, :wronly :write-only})

(defn- access-of
  "The access of a descriptor that the flags of a spec ask for."
  [{:keys [flags]}]
  (or (some access-of-flags flags) :read-write))

(defn- kept
  "What an open map keeps of the completed spec that it is for."
  [spec]
  (dissoc spec :contents :freeze :value-type))

(defn- create-new
  "Creates a map from a completed spec: filled, frozen, in this order."
  [{:keys [name contents freeze] :as spec} facts]
  (check-contents spec facts)
  (let [{:keys [fd untyped]} (token/allowing facts #(create-bare (assoc spec :token %) facts))]
    (owning fd
      (let [m (handle/make fd (assoc (select-keys spec [:type :value-size]) :id (maps/id-of fd facts))
                           (cond-> (kept spec) untyped (assoc :untyped untyped)) (access-of spec) nil)]
        (when (seq contents)
          (fill m spec))
        (when (or freeze (spec/frozen-by-name? name))
          (maps/freeze fd (assoc facts :op :freeze!)))
        m))))

(declare open-path)

(defn- reuse
  "The map that is pinned at a path, as one of a spec's; throws `:incompatible` with all that differs."
  [spec path facts]
  (let [m (open-path path {:access (access-of spec)})]
    (owning (store/descriptor m)
      (let [info (handle/info m)]
        (when-let [difference (spec/diff (dissoc spec :value-type) info nil)]
          (throw (pinning/incompatible path difference facts)))
        (handle/make (store/descriptor m) info (kept spec) (access-of spec) path)))))

(defn- create-pinned
  "Creates a map and pins it, at last; nil where somebody was faster."
  [spec path facts]
  (let [m (create-new spec facts)]
    (try
      (owning (store/descriptor m) (pinning/pin! m path))
      (catch ExceptionInfo e
        (when-not (= :exists (:bpfmap/error (ex-data e)))
          (throw e))))))

(def ^:private ^:const races
  "How often to begin anew when others pin and unpin the same name meanwhile."
  16)

(defn- named
  "The map pinned under the name of a spec, if it can be used for it; else a new one, pinned there."
  [{:keys [name] :as spec} dir facts]
  (let [path (str dir "/" name)
        found (fn []
                (try
                  (reuse spec path facts)
                  (catch ExceptionInfo e
                    (when-not (= :not-found (:bpfmap/error (ex-data e)))
                      (throw e)))))]
    (or (some (fn [_] (or (found) (create-pinned spec path facts))) (range races))
        (throw (pinning/unusable path)))))

(defn- check-via [op via]
  (when-not (= :memory via)
    (throw (error/error :invalid-value (str ":via is :memory, not " (pr-str (error/shown via)))
                        {:bpfmap/op op :bpfmap/path [:via]
                         :bpfmap/hint "without it, elements are read and written by system calls"}))))

(defn- via
  "A map just made or opened, set up as the option `:via` asks."
  [{:keys [via]} m]
  (when via
    (owning (store/descriptor m) (mapped/through-memory m)))
  m)

(defn- check-create-options [options]
  (when-not (or (nil? options) (map? options))
    (throw (error/error :invalid-value (str "Options are a map, not " (pr-str (error/shown options))) {:bpfmap/op :create})))
  (doseq [[k v] options]
    (case k
      :pin-path (objects/path-text v :create)
      :via (check-via :create v)
      (throw (error/error :invalid-value (str "Unknown option " (pr-str (error/shown k)))
                          {:bpfmap/op :create :bpfmap/path [(error/shown k)] :bpfmap/hint "create takes :pin-path and :via"})))))

(def ^:private completed-specs (cache/cache))

(def ^:private same-specs
  "Completed specs by the spec itself, the same object: a program often has one for many maps."
  (cache/cache))

(defn- completed-once
  "Returns `[completed reusable?]`: the completed spec, which carries its BTF, and whether it may be kept.

  Specs of the same types that differ in name alone are completed once."
  [spec]
  (let [complete #(typing/with-btf (spec/complete % (comparing/machine)))
        {:keys [name key value types]} (when (error/named-map? spec) spec)
        plain? #(or (keyword? %) (int? %) (boolean? %))]
    (if (and (error/named-map? spec)
             (or (nil? name) (string? name))
             (every? (fn [[k x]]
                       (case k
                         (:name :key :value :types) true
                         (:contents :inner-map :pinning :struct-ops) false
                         :flags (and (set? x) (every? plain? x))
                         (plain? x)))
                     spec))
      [(cond-> (cache/through completed-specs 128
                              (cache/by-identity key value types
                                                 (dissoc spec :name :key :value :types))
                              #(complete (dissoc spec :name)))
         name (assoc :name name))
       true]
      [(complete spec) false])))

(defn- completed
  "Returns the completed spec, by the spec's identity if it was completed before.

  Only what never changes is kept so."
  [spec]
  (let [k (cache/by-identity spec nil nil nil)]
    (or (cache/known same-specs k)
        (let [[completed reusable?] (completed-once spec)]
          (when reusable? (cache/keep! same-specs 128 k completed))
          completed))))

(defn create
  "Creates a map from a spec, or opens the one that is pinned under its name."
  [spec options]
  (check-create-options options)
  (let [spec (completed spec)
        {:keys [name type numa-node]} spec
        facts (cond-> {:op :create :type type :map (if name {:name name :type type} {:type type})}
                numa-node (assoc :numa-node numa-node))
        spec (if (:struct-ops spec) (struct-ops/completed spec facts) spec)]
    (try
      (via options (if (= :by-name (:pinning spec))
                     (named spec (:pin-path options "/sys/fs/bpf") facts)
                     (create-new spec facts)))
      (catch ExceptionInfo e
        ;; What it took, opening, freezing, pinning, was done for this.
        (throw (if (= :create (:bpfmap/op (ex-data e)))
                 e
                 (ex-info (ex-message e) (assoc (ex-data e) :bpfmap/op :create) e)))))))

;; --- open

(defn- invalid-option [path message hint]
  (error/error :invalid-value message {:bpfmap/op :open :bpfmap/path path :bpfmap/hint hint}))

(defn check-options
  "Throws `:invalid-value` for options that open does not take."
  [options]
  (when-not (or (nil? options) (map? options))
    (throw (invalid-option [] (str "Options are a map, not " (pr-str (error/shown options))) nil)))
  (doseq [[k v] options]
    (when-not (#{:access :key :value :types :via} k)
      (throw (invalid-option [k] (str "Unknown option " (pr-str k)) "open takes :access, :key, :value, :types and :via")))
    (when (= :via k)
      (check-via :open v))
    (when (and (= :access k) (not (maps/access-flags v)))
      (throw (invalid-option [k] (str "Unknown access " (pr-str (error/shown v)))
                             (str "it is " (error/list-of (keys maps/access-flags))))))))

(defn- spec-told
  "Returns the spec of an open map, of its info and the types of key and value.

  The kernel does not report on which NUMA node a map is, so its spec does not either."
  [{:keys [name type key-size value-size max-entries flags map-extra]}
   {:keys [key value struct-ops untyped]}
   options]
  (let [{:keys [added extra]} (rules/types type)]
    (cond-> {:name name :type type :key-size key-size :value-size value-size
             :max-entries max-entries
             :flags (if (= #{} flags) flags (reduce disj flags (conj added :numa-node)))
             :key key :value value}
      (and extra map-extra) (assoc :map-extra map-extra)
      (contains? options :types) (assoc :types (:types options))
      struct-ops (assoc :struct-ops struct-ops)
      untyped (assoc :untyped untyped))))

(defn- adopt
  "A handle of a descriptor just opened."
  [fd access options path facts]
  (owning fd
    (let [info (maps/info fd facts nil)
          spec (spec-told info (typing/types-of info options facts) options)]
      (via options (handle/make fd info spec access path)))))

(defn- entry-count
  "Returns how many entries an open map has; nil if they cannot be read.

  Without types: counting needs none."
  [fd info]
  (try
    (let [spec (spec-told info (typing/bytes-types info) nil)]
      (many/count-entries (handle/make fd info spec :read-only nil)))
    (catch ExceptionInfo _ nil)))

(defn infos
  "What the kernel says of every map, by ascending id; calls `skipped` with the error of each that cannot be opened. With
  `brief?`, without :memlock and :frozen?, which are in a file for each map.

  With `more`, each map is what `(more info count-entries)` makes of its info, while the map is open:
  `(count-entries)` is how many entries it has, nil if they cannot be read."
  ([op skipped] (infos op skipped false))
  ([op skipped brief?] (infos op skipped brief? nil))
  ([op skipped brief? more]
   (let [facts {:op op}
         info (fn [id]
                (try
                  (let [fd (maps/by-id id :read-only facts)]
                    (try
                      (let [info (if brief? (maps/info fd facts nil) (maps/info fd facts))]
                        (if more (more info #(entry-count fd info)) info))
                      (finally (sys/close fd))))
                  (catch ExceptionInfo e
                    (skipped id e)
                    nil)))]
     (loop [ids (seq (objects/ids :map facts)) found (transient [])]
       (if ids
         (let [one (info (first ids))]
           (recur (next ids) (if one (conj! found one) found)))
         (persistent! found))))))

(defn- access
  "The access that options ask for: a descriptor that the kernel opens has just that."
  [options]
  (:access options :read-write))

(defn- whole-number [ref n most]
  (if (and (int? n) (<= 0 n most))
    n
    (throw (invalid-option [] (str "Not a map: " (pr-str (error/shown ref)))
                           "ids and descriptors are numbers from 0, an id to 4294967295 and a descriptor to 2147483647"))))

(defn- open-path
  [file options]
  (let [path (objects/path-text file :open)
        facts {:op :open :path path}
        fd (try
             (maps/by-path path (access options) facts)
             (catch ExceptionInfo e
               (if (and (= :not-found (:bpfmap/error (ex-data e))) (not (str/includes? path "/")))
                 (throw (error/error :not-found (str "There is no file " path)
                                     (assoc (ex-data e) :bpfmap/hint (str "to open a map by its name: (open {:name " (pr-str path) "})"))))
                 (throw e))))]
    (adopt fd (access options) options path facts)))

(defn- open-id [id options]
  (let [facts {:op :open}]
    (adopt (maps/by-id id (access options) facts) (access options) options nil facts)))

(defn open
  "Opens a map by id, pin path or `{:fd …}`. See `bpfmap.impl.naming` for names."
  [ref options]
  (check-options options)
  (cond
    (int? ref) (open-id (whole-number ref ref 0xffffffff) options)
    (or (string? ref) (instance? Path ref) (instance? File ref)) (open-path ref options)
    (and (map? ref) (= 1 (count ref)))
    (let [[kind x] (first ref)]
      (case kind
        (:id :map-id) (open-id (whole-number ref x 0xffffffff) options)
        :path (open-path x options)
        :fd (let [facts {:op :open}
                  fd (objects/of-number :map (whole-number ref x 0x7fffffff) facts)]
              (owning fd
                (adopt fd (or (sys/access fd) (access options)) options nil facts)))
        (throw (invalid-option [kind] (str "Unknown reference " (pr-str (error/shown ref)))
                               "it is {:id n}, {:map-id n}, {:path p}, {:name n} or {:fd n}"))))
    :else (throw (invalid-option [] (str "Not a map: " (pr-str (error/shown ref)))
                                 "open takes an id, a pin path, {:name n} or {:fd n}"))))
