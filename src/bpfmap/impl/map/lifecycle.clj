(ns ^:no-doc bpfmap.impl.map.lifecycle
  "Creates, opens, clones, freezes, pins and compares open maps."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.cache :as cache]
            [bpfmap.impl.codec.element :as element]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.element :as el]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.token :as token]
            [bpfmap.impl.map.batch-ops :as batch-ops]
            [bpfmap.impl.map.bpf-map :as bpf-map :refer [with-error-context]]
            [bpfmap.impl.map.element-ops :as element-ops]
            [bpfmap.impl.map.map-btf :as map-btf]
            [bpfmap.impl.map.mapped :as mapped]
            [bpfmap.impl.map.naming :as naming]
            [bpfmap.impl.map.references :as references]
            [bpfmap.impl.map.struct-ops :as struct-ops]
            [bpfmap.impl.memory.fast-path :as fast-path]
            [bpfmap.impl.memory.mapping :as mapping]
            [bpfmap.impl.options :as options]
            [bpfmap.impl.rules :as rules]
            [bpfmap.spec :as spec]
            [clojure.string :as str])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.sys Codec)
           (clojure.lang ExceptionInfo)
           (java.io File)
           (java.nio.file Path)))

(set! *warn-on-reflection* true)

;; --- handles

(defn- written-blindly
  "What a kernel that does not look whether the key exists refuses, where the rules know such
  kernels: op to [kind hint].

  A stable release may have the fix, so the kernel is tried. Where it cannot be, nothing is
  promised."
  [type]
  (when-let [since (:conditional-since (rules/types type))]
    (let [release (call/kernel-release)]
      (when-not (or (some-> release (rules/at-least? since))
                    (:supported ((requiring-resolve 'bpfmap.feature/conditional-write) type)))
        (let [hint (str "before Linux " since
                        " the kernel does not look whether the key exists, and this is " release
                        "; put! writes in any case")]
          {:insert! [:not-supported hint] :replace! [:not-supported hint]})))))

(defn- refusals
  "What a handle refuses, by the name of each operation: those that are made of others too, so
  that asking is one step."
  [type value-size access]
  (when-some [refused (merge (written-blindly type) (rules/refusals type value-size access))]
    (into refused (keep (fn [op] (some->> (refused (rules/ability op)) (vector op))))
          rules/made-of-others)))

(deftype ^:private Parts [refusals key-codec value-codec bridge cpus row])

(defn- parts-of
  "What a handle is made of, as far as types, sizes and access decide it."
  ^Parts [spec type value-size access]
  (let [{:keys [ops per-cpu] :as row} (rules/types type)
        cpus (when per-cpu (call/possible-cpus))]
    (Parts. (refusals type value-size access)
            (when (seq ops) (element/key spec))
            (when (seq ops) (element/value spec (count cpus)))
            (references/bridge spec)
            cpus
            row)))

(deftype ^:private PartsKey [key value types spec-type type access
                             ^long key-bytes ^long value-bytes value-size]
  Object
  (hashCode [_]
    (unchecked-int (+ (System/identityHashCode key) (* 31 (System/identityHashCode value))
                      (.hashCode ^Object type) key-bytes (* 31 value-bytes))))
  (equals [_ other]
    (and (instance? PartsKey other)
         (let [^PartsKey other other]
           (and (identical? key (.-key other))
                (identical? value (.-value other))
                (identical? types (.-types other))
                (= key-bytes (.-key-bytes other))
                (= value-bytes (.-value-bytes other))
                (= type (.-type other))
                (= spec-type (.-spec-type other))
                (= access (.-access other))
                (= value-size (.-value-size other)))))))

(defn- bytes-of
  "The n of a `[:bytes n]`, which means the same whichever object it is; -1 for any other type."
  ^long [type]
  (if (and (vector? type) (= 2 (count type)) (= :bytes (nth type 0)) (int? (nth type 1)))
    (long (nth type 1))
    -1))

(def ^:private made-parts (cache/cache))

(defn- parts
  "As [[parts-of]], from a cache. What a probe of the kernel decides is not cached."
  ^Parts [{:keys [key value types] :as spec} type value-size access]
  (if (:conditional-since (rules/types type))
    (parts-of spec type value-size access)
    (let [key-bytes (bytes-of key)
          value-bytes (bytes-of value)]
      (cache/through made-parts 128
                     (PartsKey. (when (neg? key-bytes) key) (when (neg? value-bytes) value) types
                                (:type spec) type access key-bytes value-bytes value-size)
                     #(parts-of spec type value-size access)))))

(defn make
  "An open map of a descriptor, its identity and its spec. Elements are usable where the type's
  layout is known."
  ^BpfMap [fd {:keys [id type value-size]} spec access path]
  (let [parts (parts spec type value-size access)
        key-codec (.-key-codec parts)
        value-codec (.-value-codec parts)
        identity {:id id :name (str (:name spec)) :type type}
        mapping (mapping/mapping fd identity spec access)]
    (BpfMap. fd identity spec access
             (.-refusals parts)
             (when (seq (:ops (.-row parts)))
               (el/elements fd
                            (if key-codec (.size ^Codec key-codec) 0)
                            (if value-codec (.size ^Codec value-codec) 0)))
             key-codec value-codec (.-bridge parts) (.-cpus parts)
             (atom (if path [path] [])) (.-row parts) mapping
             (when (and mapping value-codec)
               (fast-path/layout mapping key-codec value-codec spec)))))

(defn clone
  "A second handle of the same map: own lifetime, not pinned."
  [^BpfMap m]
  (with-error-context [m :clone]
    (let [fd (call/duplicate (.-fd m) {:op :clone :map (.-identity m)})
          twin (make fd (merge (.-spec m) (.-identity m)) (.-spec m) (.-access m) nil)]
      (mapping/like (.-mapping twin) (.-mapping m))
      twin)))

(defn info
  "What the kernel says of the map now, with the types of key and value."
  [^BpfMap m]
  (with-error-context [m :info]
    (merge (into {} (filter (comp some? val))
                 (select-keys (.-spec m) [:key :value :struct-ops :untyped]))
           (map/info (.-fd m) {:op :info :map (.-identity m)}))))

(defn freeze!
  "Freezes the map. One that is frozen already stays so."
  [^BpfMap m]
  (with-error-context [m :freeze!]
    (when-not (:frozen (map/info (.-fd m) {:op :freeze! :map (.-identity m)}))
      (let [ctx (mapping/explaining (.-mapping m) {:op :freeze! :map (.-identity m)})]
        (mapping/while-unmapped (.-mapping m) #(map/freeze (.-fd m) ctx)))))
  m)

;; --- comparing with a spec

(defn machine
  "The facts of this machine that a spec's completion depends on."
  []
  {:possible-cpus (count (call/possible-cpus)) :page-size (call/page-size)})

(defn difference
  "Returns where a map and a spec differ, or nil. The map is open, or is what its info returned."
  [m spec]
  (spec/diff (if (bpf-map/bpf-map? m) (info m) m) spec (machine)))

;; --- pins

(defn- pinned-there?
  "Whether a path still holds this map. Somebody may have removed the pin, and pinned another map
  at the path."
  [m path op]
  (try
    (let [fd (map/by-path path :read-only {:op op :path path})]
      (try
        (= (:id (bpf-map/identity-of m)) (:id (map/info fd {:op op})))
        (finally (call/close fd))))
    (catch ExceptionInfo e
      (if (#{:not-found :not-a-map :not-bpffs} (:bpfmap/error (ex-data e)))
        false
        (throw e)))))

(defn pinned-at?
  "Returns true if the pin at a path is this map."
  [m file]
  (bpf-map/check-open-map m :pinned-at?)
  ;; It opens what is there, and may fail as that does
  (pinned-there? m (call/path-text file :pinned-at?) :open))

(defn incompatible
  "The exception for a pinned map that a spec cannot use, with every difference."
  ^Throwable [path difference ctx]
  (error/error :incompatible
               (str "The map pinned at " (paths/printed path) " is not the one of the spec")
               {:bpfmap/op (:op ctx)
                :bpfmap/file path
                :bpfmap/diff difference
                :bpfmap/hint (str/join "; " (for [[k {:keys [spec map]}] (sort-by key difference)]
                                              (str k " is " (pr-str map) ", the spec has "
                                                   (pr-str spec))))}))

(defn unusable
  "The exception for a path at which there is neither a map to open nor room for a pin, time and
  again."
  ^Throwable [path]
  (if (= :link (paths/type-of path false))
    (error/error :exists (str (paths/printed path) " is a symbolic link to nothing")
                 {:bpfmap/file path :bpfmap/hint "nothing can be pinned in its place; remove it"})
    (error/error :busy (str "The pin " (paths/printed path) " comes and goes")
                 {:bpfmap/file path
                  :bpfmap/hint "others create and remove it at the same time; try again"})))

(defn- without [pins path]
  (into [] (remove #{path}) pins))

(defn pin!
  "Pins the map at a path, in addition to the pins that it has."
  [m file]
  (bpf-map/check-open-map m :pin!)
  (let [path (call/path-text file :pin!)
        pins (bpf-map/pins-of m)]
    (locking pins
      (when-not (and (some #{path} @pins) (pinned-there? m path :pin!))
        (call/pin (bpf-map/descriptor m) path {:op :pin! :path path :map (bpf-map/identity-of m)}))
      (swap! pins #(conj (without % path) path))))
  m)

(defn- not-a-pin
  "The exception for a path that is not a pin of the map."
  [m path op]
  (error/error :not-found
               (str (paths/printed path) " is not a pin of map "
                    (error/id-and-name (bpf-map/identity-of m)))
               {:bpfmap/op op :bpfmap/file path :bpfmap/map (bpf-map/identity-of m)
                :bpfmap/hint "nothing is there, or something else is pinned there"}))

(defn- only-pin
  "Returns the one pin that the handle knows; throws `:not-found` or `:ambiguous` if there is none
  or more than one."
  [m pins]
  (let [refuse (fn [kind message hint]
                 (throw (error/error kind message
                                     {:bpfmap/op :move-pin! :bpfmap/map (bpf-map/identity-of m)
                                      :bpfmap/hint hint})))]
    (case (count pins)
      0 (refuse :not-found
                (str "This handle has no pin of map " (error/id-and-name (bpf-map/identity-of m)))
                "give the path of the pin to move, (move-pin! m from to)")
      1 (first pins)
      (refuse :ambiguous
              (str "This handle has " (count pins) " pins of map "
                   (error/id-and-name (bpf-map/identity-of m)))
              (str "give the one to move, (move-pin! m from to): "
                   (str/join ", " (map paths/printed pins)))))))

(defn move-pin!
  "Moves a pin of the map to another path, in one step; that of the handle if `from` is nil."
  [m from to]
  (bpf-map/check-open-map m :move-pin!)
  (let [from (when from (call/path-text from :move-pin!))
        to (call/path-text to :move-pin!)
        pins (bpf-map/pins-of m)]
    (call/check-pin-path to :move-pin!)
    (locking pins
      (let [from (or from (only-pin m @pins))]
        (when-not (pinned-there? m from :move-pin!)
          (throw (not-a-pin m from :move-pin!)))
        (when-not (= from to)
          (call/rename from to {:op :move-pin! :path to :from from :map (bpf-map/identity-of m)}))
        (swap! pins #(conj (-> % (without from) (without to)) to)))))
  m)

(defn- remove-pin
  "Removes a pin if it still holds the map; returns true if it did."
  [m path]
  (when (pinned-there? m path :unpin!)
    (call/remove-file path "Removing the pin"
                      {:op :unpin! :path path :map (bpf-map/identity-of m)})))

(defn unpin!
  "Removes the pins that the handle knows and that still hold the map; or the one at a path."
  ([m]
   (bpf-map/check-open-map m :unpin!)
   (let [pins (bpf-map/pins-of m)]
     (locking pins
       (doseq [path @pins]
         (remove-pin m path)
         (swap! pins without path))))
   m)
  ([m file]
   (bpf-map/check-open-map m :unpin!)
   (let [path (call/path-text file :unpin!)
         pins (bpf-map/pins-of m)]
     (locking pins
       (when-not (remove-pin m path)
         (throw (not-a-pin m path :unpin!)))
       (swap! pins without path)))
   m))

;; --- create and open

(defmacro ^:private owning
  "Runs body; closes the descriptor if it throws."
  [fd & body]
  `(try
     ~@body
     (catch Throwable t#
       (call/close ~fd)
       (throw t#))))

;; --- create

(defmacro ^:private naming-entry
  "Runs body; an error of it says which entry of :contents it is about."
  [k & body]
  `(try
     ~@body
     (catch ExceptionInfo e#
       (throw (ex-info (str "In :contents, the entry of " (pr-str (error/shown ~k)) ": "
                            (ex-message e#))
                       (assoc (ex-data e#)
                              :bpfmap/op :create
                              :bpfmap/path
                              (into [:contents (error/shown ~k)] (:bpfmap/path (ex-data e#))))
                       e#)))))

(defn- keyless? [{:keys [type]}]
  (contains? (:ops (rules/types type)) :push!))

(defn- check-contents
  "Throws for the first entry of a completed spec's :contents that does not fit, before anything
  is created."
  [{:keys [type contents] :as spec} ctx]
  (when (seq contents)
    (let [key-codec (element/key spec)
          value-codec (element/value spec
                                     (when (:per-cpu (rules/types type))
                                       (count (call/possible-cpus))))
          bridge (references/bridge spec)
          held (references/holding)]
      (try
        (doseq [[k v] (if (keyless? spec) (map-indexed vector contents) contents)]
          (naming-entry k
            (when key-codec
              (el/check key-codec (if bridge (references/key-in bridge held k ctx) k)))
            (el/check value-codec (if bridge (references/value-in bridge held v ctx) v))))
        (finally (references/release-all! held))))))

(defn- fill
  "Puts the :contents of a spec into its new map."
  [m {:keys [contents] :as spec}]
  (if (keyless? spec)
    (doseq [[i v] (map-indexed vector contents)]
      (naming-entry i (element-ops/push! m v nil)))
    (try
      (batch-ops/put-all! m contents nil)
      (catch ExceptionInfo e
        (let [i (or (:bpfmap/index (ex-data e)) (:bpfmap/done (ex-data e)))]
          (naming-entry (when i (first (nth (seq contents) i))) (throw e)))))))

(defn- create-bare
  "Creates a map from a completed spec and returns `{:fd :untyped}`: nothing is in it yet."
  [{:keys [name inner-map token struct-ops] :as spec} ctx]
  (let [template (some-> inner-map (assoc :token token) (create-bare ctx) :fd)
        create #(map-btf/create-with-btf (assoc spec :name (spec/kernel-name name) :whole-name name
                                                :inner-map template)
                                        (assoc ctx :unsupported
                                               (delay
                                                ((requiring-resolve
                                                  'bpfmap.feature/unsupported) spec))))]
    (try
      (if struct-ops
        (struct-ops/reading-kernel-btf create ctx)
        (create))
      (finally (some-> template call/close)))))

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
  [{:keys [name contents freeze] :as spec} ctx]
  (check-contents spec ctx)
  (let [{:keys [fd untyped]} (token/allowing ctx #(create-bare (assoc spec :token %) ctx))]
    (owning fd
      (let [m (make fd (assoc (select-keys spec [:type :value-size]) :id (map/id-of fd ctx))
                           (cond-> (kept spec) untyped (assoc :untyped untyped)) (access-of spec)
                           nil)]
        (when (seq contents)
          (fill m spec))
        (when (or freeze (spec/frozen-by-name? name))
          (map/freeze fd (assoc ctx :op :freeze!)))
        m))))

(declare open-path)

(defn- reuse
  "The map that is pinned at a path, as one of a spec's; throws `:incompatible` with all that
  differs."
  [spec path ctx]
  (let [m (open-path path {:access (access-of spec)})]
    (owning (bpf-map/descriptor m)
      (let [pinned (info m)]
        (when-let [difference (spec/diff pinned (dissoc spec :value-type) nil)]
          (throw (incompatible path difference ctx)))
        (make (bpf-map/descriptor m) pinned (kept spec) (access-of spec) path)))))

(defn- create-pinned
  "Creates a map and pins it, at last; nil where somebody was faster."
  [spec path ctx]
  (let [m (create-new spec ctx)]
    (try
      (owning (bpf-map/descriptor m) (pin! m path))
      (catch ExceptionInfo e
        (when-not (= :exists (:bpfmap/error (ex-data e)))
          (throw e))))))

(def ^:private ^:const races
  "How often to begin anew when others pin and unpin the same name meanwhile."
  16)

(defn- named
  "The map pinned under the name of a spec, if it can be used for it; else a new one, pinned there."
  [{:keys [name] :as spec} dir ctx]
  (let [path (str dir "/" name)
        found (fn []
                (try
                  (reuse spec path ctx)
                  (catch ExceptionInfo e
                    (when-not (= :not-found (:bpfmap/error (ex-data e)))
                      (throw e)))))]
    (or (some (fn [_] (or (found) (create-pinned spec path ctx))) (range races))
        (throw (unusable path)))))

(defn- mapped-if-asked
  "Returns a map that was just created or opened; with `:mapped true`, set up to use its memory."
  [{:keys [mapped]} m]
  (when mapped
    (owning (bpf-map/descriptor m) (mapped/through-memory m)))
  m)

(def ^:private completed-specs (cache/cache))

(def ^:private same-specs
  "Completed specs by the spec itself, the same object: a program often has one for many maps."
  (cache/cache))

(defn- completed-once
  "Returns `[completed reusable?]`: the completed spec, which carries its BTF, and whether it may
  be kept.

  Specs of the same types that differ in name alone are completed once."
  [spec]
  (let [complete #(map-btf/with-btf (spec/complete % (machine)))
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
  (options/check :create options)
  (when (contains? options :pin-path)
    (call/path-text (:pin-path options) :create))
  (let [spec (completed spec)
        {:keys [name type numa-node]} spec
        ctx (cond-> {:op :create :type type :map (if name {:name name :type type} {:type type})}
                numa-node (assoc :numa-node numa-node))
        spec (if (:struct-ops spec) (struct-ops/completed spec ctx) spec)]
    (try
      (mapped-if-asked options
                       (if (= :by-name (:pinning spec))
                         (named spec (:pin-path options "/sys/fs/bpf") ctx)
                         (create-new spec ctx)))
      (catch ExceptionInfo e
        ;; What it took, opening, freezing, pinning, was done for this.
        (throw (if (= :create (:bpfmap/op (ex-data e)))
                 e
                 (ex-info (ex-message e) (assoc (ex-data e) :bpfmap/op :create) e)))))))

;; --- open

(defn- invalid-option [path message hint]
  (error/error :invalid-value message {:bpfmap/op :open :bpfmap/path path :bpfmap/hint hint}))

(defn- spec-told
  "Returns the spec of an open map, of its info and the types of key and value, which it carries
  parsed.

  The kernel does not report on which NUMA node a map is, so its spec does not either."
  [{:keys [name type key-size value-size max-entries flags map-extra]}
   {:keys [key value struct-ops untyped] :as told}]
  (let [{:keys [added extra]} (rules/types type)]
    (cond-> (with-meta
              {:name name :type type :key-size key-size :value-size value-size
               :max-entries max-entries
               :flags (if (= #{} flags) flags (reduce disj flags (conj added :numa-node)))
               :key key :value value}
              (meta told))
      (and extra map-extra) (assoc :map-extra map-extra)
      (contains? told :types) (assoc :types (:types told))
      struct-ops (assoc :struct-ops struct-ops)
      untyped (assoc :untyped untyped))))

(defn- adopt
  "A handle of a descriptor just opened."
  [fd access options path ctx]
  (owning fd
    (let [info (map/info fd ctx nil)
          spec (spec-told info (map-btf/types-of info options ctx))]
      (mapped-if-asked options (make fd info spec access path)))))

(defn entry-count
  "Returns how many entries an open map has; nil if they cannot be read.

  Without types: counting needs none."
  [fd info]
  (try
    (let [spec (spec-told info (map-btf/bytes-types info))]
      (batch-ops/count-entries (make fd info spec :read-only nil)))
    (catch ExceptionInfo _ nil)))

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
  (let [path (call/path-text file :open)
        ctx {:op :open :path path}
        fd (try
             (map/by-path path (access options) ctx)
             (catch ExceptionInfo e
               (if (and (= :not-found (:bpfmap/error (ex-data e))) (not (str/includes? path "/")))
                 (throw (error/error :not-found (str "There is no file " path)
                                     (assoc (ex-data e) :bpfmap/hint
                                            (str "to open a map by its name: (open {:name "
                                                 (pr-str path) "})"))))
                 (throw e))))]
    (adopt fd (access options) options path ctx)))

(defn- open-id [id options]
  (let [ctx {:op :open}]
    (adopt (map/by-id id (access options) ctx) (access options) options nil ctx)))

(defn- with-types
  "Returns the options of open with the types under `:key` and `:value`."
  [options]
  (reduce-kv (fn [options other k]
               (cond
                 (not (contains? options other)) options
                 (contains? options k)
                 (throw (invalid-option [other] (str "Only one of " k " and " other " may be given")
                                        "they are two names of one option"))
                 :else (-> options (assoc k (get options other)) (dissoc other))))
             options {:key-type :key :value-type :value}))

(defn- open-ref [ref options]
  (cond
    (int? ref) (open-id (whole-number ref ref 0xffffffff) options)
    (or (string? ref) (instance? Path ref) (instance? File ref)) (open-path ref options)
    (and (map? ref) (= 1 (count ref)))
    (let [[kind x] (first ref)]
      (case kind
        (:id :map-id) (open-id (whole-number ref x 0xffffffff) options)
        :name (open-id (naming/id-of x) options)
        :path (open-path x options)
        :fd (let [ctx {:op :open}
                  fd (call/of-number :map (whole-number ref x 0x7fffffff) ctx)]
              (owning fd
                (adopt fd (or (call/access fd) (access options)) options nil ctx)))
        (throw (invalid-option [kind] (str "Unknown reference " (pr-str (error/shown ref)))
                               "it is {:id n}, {:map-id n}, {:path p}, {:name n} or {:fd n}"))))
    :else (throw (invalid-option [] (str "Not a map: " (pr-str (error/shown ref)))
                                 "open takes an id, a pin path, {:name n} or {:fd n}"))))

(defn open
  "Opens a map by id, pin path, `{:id n}`, `{:path p}`, `{:fd n}` or `{:name s}`."
  [ref options]
  (open-ref ref (with-types (options/check :open options))))

;; --- the spec of an open map

(defn- inner-spec
  "Returns the spec of the first map that a map of maps holds, or nil if it holds none or none can
  be opened. The kernel takes only maps that are like the one for which the map of maps was made."
  [m]
  (try
    (when-let [{:keys [map-id]} (reduce (fn [_ [_ value]] (reduced value)) nil m)]
      (with-open [^java.io.Closeable inner (open {:id map-id} {:access :read-only})]
        (dissoc (bpf-map/spec-of inner) :name)))
    (catch ExceptionInfo _ nil)))

(defn spec
  "Returns the spec of the map."
  [m]
  (let [{:keys [inner-map] :as spec} (bpf-map/spec-of m)
        inner (when (and (nil? inner-map) (:inner? (bpf-map/row-of m)))
                (inner-spec m))]
    (cond-> spec inner (assoc :inner-map inner))))
