(ns ^:no-doc bpfmap.impl.map.lifecycle
  "Creates, opens, clones, freezes, pins and compares open maps.

  In order: the handle, from a descriptor and a spec; operations on it; comparison with a spec;
  pins; create; open; the spec of an open map."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.cache :as cache]
            [bpfmap.impl.codec.map-codecs :as map-codecs]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.element :as kernel.element]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.token :as token]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.batch-ops :as batch-ops]
            [bpfmap.impl.map.bpf-map :as bpf-map :refer [with-error-context]]
            [bpfmap.impl.map.element-ops :as element-ops]
            [bpfmap.impl.map.find-by-name :as find-by-name]
            [bpfmap.impl.map.map-btf :as map-btf]
            [bpfmap.impl.map.mapped :as mapped]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.impl.map.references :as references]
            [bpfmap.impl.map.struct-ops :as struct-ops]
            [bpfmap.impl.memory.mapping :as mapping]
            [bpfmap.impl.options :as options]
            [bpfmap.spec :as spec]
            [clojure.string :as str])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.sys Codec)
           (clojure.lang ExceptionInfo)
           (java.io File)
           (java.nio.file Path)))

(set! *warn-on-reflection* true)

;; --- handles

(defn- conditional-write-refusals
  "Returns the refusals of writes that depend on whether the key exists.

  As op to `[kind hint]`. Only for types of which some kernels, by the rules, do not look whether
  the key exists. A stable release may have the fix, so the kernel is probed. If it cannot be
  probed, the operations are refused."
  [type fd]
  (when-let [since (when-not (call/simulated? fd) (:conditional-since (map-types/types type)))]
    (let [release (call/kernel-release)]
      (when-not (or (some-> release (map-types/at-least? since))
                    (:supported ((requiring-resolve 'bpfmap.feature/conditional-write) type)))
        (let [hint (str "before Linux " since
                        " the kernel does not check that the key exists, and this is " release
                        "; use put!, which writes in any case")]
          {:insert! [:not-supported hint] :replace! [:not-supported hint]})))))

(defn- refusals
  "Returns the refusals of a handle: operation to `[kind hint]`, or nil.

  Includes the operations that are made of others, so that a check is one lookup."
  [type value-size access fd]
  (when-some [refused (merge (conditional-write-refusals type fd)
                             (map-types/refusals type value-size access))]
    (into refused (keep (fn [op] (some->> (refused (map-types/ability op)) (vector op))))
          map-types/made-of-others)))

(deftype ^:private Parts [refusals key-codec value-codec resolvers cpus row])

(defn- parts-of
  "Returns the parts of a handle that depend on types, sizes and access only."
  ^Parts [spec type value-size access fd]
  (let [{:keys [ops per-cpu] :as row} (map-types/types type)
        cpus (when per-cpu (call/possible-cpus fd))]
    (Parts. (refusals type value-size access fd)
            (when (seq ops) (map-codecs/key spec))
            (when (seq ops) (map-codecs/value spec (count cpus)))
            (references/resolvers spec)
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

(defn- byte-count
  "Returns the n of a `[:bytes n]`; -1 for any other type.

  All types `[:bytes n]` of a size are equivalent, so the cache need not compare them by identity."
  ^long [type]
  (if (and (vector? type) (= 2 (count type)) (= :bytes (nth type 0)) (int? (nth type 1)))
    (long (nth type 1))
    -1))

(def ^:private parts-cache (cache/cache))

(defn- parts
  "Returns the same as [[parts-of]], from a cache.

  Results that depend on a probe of the kernel, or on a simulated map, are not cached."
  ^Parts [{:keys [key value types] :as spec} type value-size access fd]
  (if (or (:conditional-since (map-types/types type)) (call/simulated? fd))
    (parts-of spec type value-size access fd)
    (let [key-bytes (byte-count key)
          value-bytes (byte-count value)]
      (cache/through parts-cache 128
                     (PartsKey. (when (neg? key-bytes) key) (when (neg? value-bytes) value) types
                                (:type spec) type access key-bytes value-bytes value-size)
                     #(parts-of spec type value-size access fd)))))

(defn make-map
  "Returns an open map of a descriptor, its info and its spec.

  Without element operations if the type's layout is not known."
  ^BpfMap [fd {:keys [id type value-size]} spec access path]
  (let [parts (parts spec type value-size access fd)
        key-codec (.-key-codec parts)
        value-codec (.-value-codec parts)
        identity {:id id :name (str (:name spec)) :type type}
        mapping (mapping/mapping fd identity spec access)]
    (BpfMap. fd identity spec access
             (.-refusals parts)
             (when (seq (:ops (.-row parts)))
               (kernel.element/elements fd
                                        (if key-codec (.size ^Codec key-codec) 0)
                                        (if value-codec (.size ^Codec value-codec) 0)))
             key-codec value-codec (.-resolvers parts) (.-cpus parts)
             (atom (if path [path] [])) (.-row parts) mapping
             (when (and mapping value-codec)
               (mapping/fast-path mapping key-codec value-codec spec)))))

(defn clone
  "Opens a second handle of the same map.
  It is closed separately and has no pins."
  [^BpfMap m]
  (with-error-context [m :clone]
    (let [fd (call/duplicate (.-fd m) {:op :clone :map (.-identity m)})
          copy (make-map fd (merge (.-spec m) (.-identity m)) (.-spec m) (.-access m) nil)]
      (mapping/like (.-mapping copy) (.-mapping m))
      copy)))

(defn info
  "Returns the kernel's data about the map, with the types of key and value."
  [^BpfMap m]
  (with-error-context [m :info]
    (merge (into {} (filter (comp some? val))
                 (select-keys (.-spec m) [:key :value :struct-ops :untyped]))
           (kernel.map/info (.-fd m) {:op :info :map (.-identity m)})
           (when (call/simulated? (.-fd m)) {:simulated true}))))

(defn freeze!
  "Freezes the map.
  Does nothing if it is frozen."
  [^BpfMap m]
  (with-error-context [m :freeze!]
    (when-not (:frozen (kernel.map/info (.-fd m) {:op :freeze! :map (.-identity m)}))
      (let [ctx (mapping/explaining (.-mapping m) {:op :freeze! :map (.-identity m)})]
        (mapping/while-unmapped (.-mapping m) #(kernel.map/freeze (.-fd m) ctx)))))
  m)

;; --- comparing with a spec

(defn machine
  "Returns the facts of this machine that completing a spec depends on."
  []
  {:possible-cpus (count (call/possible-cpus)) :page-size (call/page-size)})

(defn- simulated-machine
  "Returns the same facts for simulated maps with a number of CPUs."
  [cpus]
  {:possible-cpus cpus :page-size (call/page-size)})

(defn difference
  "Returns the difference between a map and a spec; nil if there is none.

  `m` is an open map, or the info of one."
  [m spec]
  (let [fd (when (bpf-map/bpf-map? m) (bpf-map/descriptor m))]
    (spec/diff (if fd (info m) m) spec
               (if (and fd (call/simulated? fd))
                 (simulated-machine (count (call/possible-cpus fd)))
                 (machine)))))

;; --- pins

(defn- holds-kernel-map?
  "Returns true if this map of the kernel is pinned at a path.

  Others may have removed the pin, and pinned another map at the path."
  [m path op]
  (try
    (let [fd (kernel.map/open-path path :read-only {:op op :path path})]
      (try
        (= (:id (bpf-map/identity-of m)) (:id (kernel.map/info fd {:op op})))
        (finally (call/close fd))))
    (catch ExceptionInfo e
      (if (#{:not-found :not-a-map :not-bpffs} (:bpfmap/error (ex-data e)))
        false
        (throw e)))))

(defn- holds-map?
  "Returns true if this map is pinned at a path.
  A simulated map is pinned nowhere."
  [m path op]
  (if (call/simulated? (bpf-map/descriptor m))
    false
    (holds-kernel-map? m path op)))

(defn pinned-at?
  "Returns true if this map is pinned at a path."
  [m file]
  (bpf-map/check-open-map m :pinned-at?)
  ;; :open, because an error of this is an error of opening the object at the path.
  (holds-map? m (call/path-text file :pinned-at?) :open))

(defn incompatible-error
  "Returns the exception for a pinned map that a spec cannot use.

  It has all differences."
  ^Throwable [path difference ctx]
  (error/error :incompatible
               (str "The map pinned at " (paths/printable path) " does not match the spec")
               {:bpfmap/op (:op ctx)
                :bpfmap/file path
                :bpfmap/diff difference
                :bpfmap/hint (str/join "; " (for [[k {:keys [spec map]}] (sort-by key difference)]
                                              (str k " is " (error/printed map) ", the spec has "
                                                   (error/printed spec))))}))

(defn unusable-path-error
  "Returns the exception for a path where open and pin failed repeatedly."
  ^Throwable [path]
  (if (= :link (paths/type-of path false))
    (error/error :exists (str (paths/printable path) " is a dangling symbolic link")
                 {:bpfmap/file path :bpfmap/hint "remove it; nothing can be pinned in its place"})
    (error/error :busy (str "The pin " (paths/printable path) " was created and removed repeatedly")
                 {:bpfmap/file path
                  :bpfmap/hint "others create and remove it at the same time; try again"})))

(defn- without [pins path]
  (into [] (remove #{path}) pins))

(defn pin!
  "Pins the map at a path, in addition to its other pins."
  [m file]
  (bpf-map/check-open-map m :pin!)
  (let [path (call/path-text file :pin!)
        pins (bpf-map/pins-of m)]
    (locking pins
      (when-not (and (some #{path} @pins) (holds-map? m path :pin!))
        (call/pin (bpf-map/descriptor m) path {:op :pin! :path path :map (bpf-map/identity-of m)}))
      (swap! pins #(conj (without % path) path))))
  m)

(defn- not-a-pin-error
  "Returns the exception for a path that is not a pin of the map."
  [m path op]
  (error/error :not-found
               (str (paths/printable path) " is not a pin of map "
                    (error/id-and-name (bpf-map/identity-of m)))
               {:bpfmap/op op :bpfmap/file path :bpfmap/map (bpf-map/identity-of m)
                :bpfmap/hint "nothing is there, or something else is pinned there"}))

(defn- only-pin
  "Returns the only pin of the handle; else throws `:not-found` or `:ambiguous`."
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
                   (str/join ", " (map paths/printable pins)))))))

(defn move-pin!
  "Moves a pin of the map to another path, atomically.

  If `from` is nil, moves the only pin of the handle."
  [m from to]
  (bpf-map/check-open-map m :move-pin!)
  (let [from (when from (call/path-text from :move-pin!))
        to (call/path-text to :move-pin!)
        pins (bpf-map/pins-of m)]
    (call/check-pin-path to :move-pin!)
    (locking pins
      (let [from (or from (only-pin m @pins))]
        (when-not (holds-map? m from :move-pin!)
          (throw (not-a-pin-error m from :move-pin!)))
        (when-not (= from to)
          (call/rename from to {:op :move-pin! :path to :from from :map (bpf-map/identity-of m)}))
        (swap! pins #(conj (-> % (without from) (without to)) to)))))
  m)

(defn- remove-pin
  "Removes a pin if it is a pin of the map; returns true if it was."
  [m path]
  (when (holds-map? m path :unpin!)
    (call/remove-file path "Removing the pin"
                      {:op :unpin! :path path :map (bpf-map/identity-of m)})))

(defn unpin!
  "Removes the pins of the handle that are still pins of the map, or one at a path."
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
         (throw (not-a-pin-error m path :unpin!)))
       (swap! pins without path)))
   m))

;; --- create and open

(defmacro ^:private close-on-error
  "Runs body; closes the descriptor if it throws."
  [fd & body]
  `(try
     ~@body
     (catch Throwable t#
       (call/close ~fd)
       (throw t#))))

;; --- create

(defn- keyless? [{:keys [type]}]
  (contains? (:ops (map-types/types type)) :push!))

(defn- check-contents
  "Throws for the first entry of a completed spec's `:contents` that does not fit.

  Called before anything is created."
  [{:keys [type contents] :as spec} {:keys [cpus] :as ctx}]
  (when (seq contents)
    (let [key-codec (map-codecs/key spec)
          value-codec (map-codecs/value spec
                                        (when (:per-cpu (map-types/types type))
                                          (or cpus (count (call/possible-cpus)))))
          resolvers (references/resolvers spec)
          scope (references/new-scope)]
      (try
        (doseq [[k v] (if (keyless? spec) (map-indexed vector contents) contents)]
          (raw-entries/with-entry-context :create k
            (fn []
              (when key-codec
                (kernel.element/check-encodable key-codec
                                                (if resolvers
                                                  (references/resolve-key resolvers scope k ctx)
                                                  k)))
              (kernel.element/check-encodable value-codec
                                              (if resolvers
                                                (references/resolve-value resolvers scope v ctx)
                                                v)))))
        (finally (references/release-all! scope))))))

(defn- fill
  "Writes the `:contents` of a spec to its new map."
  [m {:keys [contents] :as spec}]
  (if (keyless? spec)
    (doseq [[i v] (map-indexed vector contents)]
      (raw-entries/with-entry-context :create i #(element-ops/push! m v nil)))
    (try
      (batch-ops/put-all! m contents nil)
      (catch ExceptionInfo e
        (let [i (or (:bpfmap/index (ex-data e)) (:bpfmap/done (ex-data e)))]
          (raw-entries/with-entry-context :create (when i (first (nth (seq contents) i)))
            #(throw e)))))))

(defn- create-bare
  "Creates an empty map from a completed spec; returns `{:fd :untyped}`."
  [{:keys [inner-map token struct-ops] :as spec} ctx]
  (let [template (some-> inner-map (assoc :token token) (create-bare (dissoc ctx :btf)) :fd)
        create #(map-btf/create-with-btf (cond-> spec template (assoc :inner-map template))
                                         (assoc ctx :unsupported
                                                (delay
                                                  ((requiring-resolve
                                                    'bpfmap.feature/unsupported) spec))))]
    (try
      (if struct-ops
        (struct-ops/with-kernel-btf create ctx)
        (create))
      (finally (some-> template call/close)))))

(def ^:private access-of-flags
  {:rdonly :read-only, :wronly :write-only})

(defn- access-of
  "Returns the access of a descriptor that the flags of a spec request."
  [{:keys [flags]}]
  (or (some access-of-flags flags) :read-write))

(defn- handle-spec
  "Returns the part of a completed spec that an open map keeps."
  [spec]
  (dissoc spec :contents :freeze :value-type))

(defn- simulate-bare
  "Creates an empty simulated map from a completed spec; returns `{:fd}`."
  [{:keys [inner-map] :as spec} {:keys [cpus] :as ctx}]
  (let [template (some-> inner-map (simulate-bare ctx) :fd)]
    (try
      {:fd (kernel.map/simulate (cond-> (assoc spec :inner-map template)
                                  (:name spec) (update :name spec/kernel-name))
                                cpus spec)}
      (finally (some-> template call/close)))))

(defn- create-new
  "Creates a map from a completed spec, fills it and freezes it, in this order."
  [{:keys [name contents freeze] :as spec} ctx]
  (check-contents spec ctx)
  (let [{:keys [fd untyped]} (if (:cpus ctx)
                               (simulate-bare spec ctx)
                               (token/with-token
                                ctx
                                #(create-bare (cond-> spec % (assoc :token %)) ctx)))]
    (close-on-error fd
      (let [m (make-map fd {:id (kernel.map/id-of fd ctx)
                            :type (:type spec)
                            :value-size (:value-size spec)}
                        (cond-> (handle-spec spec) untyped (assoc :untyped untyped))
                        (access-of spec)
                        nil)]
        (when (seq contents)
          (fill m spec))
        (when (if (some? freeze) freeze (spec/frozen-by-name? name))
          (kernel.map/freeze fd (assoc ctx :op :freeze!)))
        m))))

(declare open-path)

(defn- reuse
  "Opens the map pinned at a path as the map of a spec.

  Throws `:incompatible` with all differences."
  [spec path ctx]
  (let [m (open-path path {:access (access-of spec)})]
    (close-on-error (bpf-map/descriptor m)
      (let [pinned (info m)]
        (when-let [difference (spec/diff pinned (dissoc spec :value-type) nil)]
          (throw (incompatible-error path difference ctx)))
        (make-map (bpf-map/descriptor m) pinned (handle-spec spec) (access-of spec)
                  path)))))

(defn- create-pinned
  "Creates a map and pins it as the last step; returns nil if the path is taken."
  [spec path ctx]
  (let [m (create-new spec ctx)]
    (try
      (close-on-error (bpf-map/descriptor m) (pin! m path))
      (catch ExceptionInfo e
        (when-not (= :exists (:bpfmap/error (ex-data e)))
          (throw e))))))

(def ^:private ^:const max-attempts
  "The number of attempts while others pin and unpin the same name."
  16)

(defn- open-or-create-pinned
  "Opens the map pinned under a spec's name, or creates it and pins it there.

  Returns the map and true if it was there already."
  [{:keys [name] :as spec} dir ctx]
  (let [path (str dir "/" name)
        found (fn []
                (try
                  (reuse spec path ctx)
                  (catch ExceptionInfo e
                    (when-not (= :not-found (:bpfmap/error (ex-data e)))
                      (throw e)))))]
    (or (some (fn [_]
                (if-let [m (found)]
                  [m true]
                  (when-let [m (create-pinned spec path ctx)]
                    [m false])))
              (range max-attempts))
        (throw (unusable-path-error path)))))

(defn- use-memory-if-mapped
  "Sets up a new handle to use its memory if `:mapped` is true; returns it."
  [{:keys [mapped]} m]
  (when mapped
    (close-on-error (bpf-map/descriptor m) (mapped/through-memory m)))
  m)

(def ^:private completed-specs (cache/cache))

(def ^:private same-specs
  "Completed specs by the identity of the spec.

  A program often uses one spec object for many maps."
  (cache/cache))

(defn- complete-cached
  "Returns `[completed reusable?]`: the completed spec with its BTF.

  `reusable?` is true if it may be cached. Specs of the same types that differ in name only are
  completed once."
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

(defn- complete
  "Returns the completed spec, from a cache by the identity of the spec.

  Only specs that cannot change are cached."
  [spec]
  (let [k (cache/by-identity spec nil nil nil)]
    (or (cache/known same-specs k)
        (let [[complete reusable?] (complete-cached spec)]
          (when reusable? (cache/keep! same-specs 128 k complete))
          complete))))

(defn check-spec
  "Throws `:invalid-spec` for a spec that breaks a rule."
  [spec]
  (complete spec))

(defmacro ^:private as-create
  "Evaluates body with `:create` as the operation of its errors.

  Opening, freezing, pinning and mapping memory are steps of create."
  [& body]
  `(try
     ~@body
     (catch ExceptionInfo e#
       (throw (if (= :create (:bpfmap/op (ex-data e#)))
                e#
                (ex-info (ex-message e#) (assoc (ex-data e#) :bpfmap/op :create) e#))))))

(defn- check-create-options
  "Throws `:invalid-value` for invalid options of create, or of simulate."
  [op options]
  (options/check op options)
  (when (contains? options :pin-path)
    (call/path-text (:pin-path options) :create)))

(defn create-or-reuse
  "Creates a map from a spec, or opens the map pinned under its name.

  Returns the map and true if it was there already. `btf` is nil, or `{:fd :ids}` with a BTF object
  that has the types of key and value under two ids; without it, one is made of the spec."
  [spec options btf]
  (check-create-options :create options)
  (let [spec (complete spec)
        {:keys [name type numa-node]} spec
        ctx (cond-> {:op :create :type type :map (if name {:name name :type type} {:type type})}
              numa-node (assoc :numa-node numa-node)
              btf (assoc :btf btf))
        spec (if (:struct-ops spec) (struct-ops/complete spec ctx) spec)]
    (as-create
     (let [[m reused?] (if (= :by-name (:pinning spec))
                         (open-or-create-pinned spec (:pin-path options "/sys/fs/bpf") ctx)
                         [(create-new spec ctx) false])]
       [(use-memory-if-mapped options m) reused?]))))

(def ^:private simulated-types
  "Map types that can be simulated: those that need nothing else of the kernel."
  (sort [:hash :percpu-hash :lru-hash :lru-percpu-hash :rhash :array :percpu-array :lpm-trie :queue
         :stack :bloom-filter :array-of-maps :hash-of-maps :ringbuf]))

(defn- not-simulated
  "Returns the exception for a spec of a map that cannot be simulated."
  [ctx what hint]
  (error/error :not-supported (str what " cannot be simulated")
               {:bpfmap/op :create :bpfmap/map (:map ctx) :bpfmap/hint hint}))

(defn simulate
  "Creates a simulated map from a spec.

  Options: `:cpus`, the number of CPUs, and those of [[create]]."
  [spec options]
  (as-create (check-create-options :simulate options))
  (let [{:keys [cpus] :or {cpus 2}} options
        {:keys [name type pinning inner-map] :as spec} (spec/complete spec (simulated-machine cpus))
        ctx {:op :create :type type :cpus cpus :map (if name {:name name :type type} {:type type})}]
    (doseq [type [type (:type inner-map)]]
      (when-not (or (nil? type) (some #{type} simulated-types))
        (throw (not-simulated ctx (str "A map of type " type)
                              (str "the types that can be are "
                                   (error/list-of simulated-types "and"))))))
    (when (contains? (:flags spec) :rb-overwrite)
      (throw (not-simulated ctx "A ring buffer with the flag :rb-overwrite"
                            "leave out the flag; a full ring then takes no record")))
    (when pinning
      (throw (not-simulated ctx "A map that is pinned by name"
                            "leave out :pinning; a pin holds a map of the kernel")))
    (as-create (use-memory-if-mapped options (create-new spec ctx)))))

(defn create
  "Creates a map from a spec, or opens the map pinned under its name."
  [spec options]
  (first (create-or-reuse spec options nil)))

;; --- open

(defn- invalid-option [path message hint]
  (error/error :invalid-value message {:bpfmap/op :open :bpfmap/path path :bpfmap/hint hint}))

(defn- spec-of-info
  "Returns the spec of an open map from its info and the types of key and value.

  It carries the parsed types.

  The kernel does not report the NUMA node of a map, so the spec has none."
  [{:keys [name type key-size value-size max-entries flags map-extra]}
   {:keys [key value struct-ops untyped] :as told}]
  (let [{:keys [added extra]} (map-types/types type)]
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

(defn- make-opened
  "Returns a handle of a descriptor that was just opened.
  Closes it if that throws."
  [fd access options path ctx]
  (close-on-error fd
    (let [info (kernel.map/info fd ctx nil)
          spec (spec-of-info info (map-btf/types-of info options (assoc ctx :fd fd)))]
      (use-memory-if-mapped options (make-map fd info spec access path)))))

(defn- count-with-handle
  "Returns the number of entries of a map; nil if they cannot be read.

  Does not read the types, which counting does not need."
  [fd info deadline]
  (try
    (let [spec (spec-of-info info (map-btf/bytes-types info))]
      (batch-ops/count-entries (make-map fd info spec :read-only nil) deadline))
    (catch ExceptionInfo _ nil)
    (finally (call/close fd))))

(defn entry-count
  "Returns the number of entries of the map that a scanner has open.

  Returns nil if they cannot be read, or not until the deadline, a time of `System/nanoTime`."
  ([scanner info] (entry-count scanner info nil))
  ([scanner info deadline]
   (or (kernel.map/count-at-once scanner info)
       (count-with-handle (kernel.map/take-scanned scanner) info deadline))))

(defn- requested-access
  "Returns the access in the options of `open`.
  The kernel opens exactly that."
  [options]
  (:access options :read-write))

(defn- check-number
  "Returns n if it is an integer from 0 to `most`; else throws `:invalid-value`."
  [what n most]
  (if (and (int? n) (<= 0 n most))
    n
    (throw (invalid-option [] (str what " must be an integer from 0 to " most ", got "
                                   (error/printed n))
                           nil))))

(defn- check-id [n]
  (check-number "The id of a map" n 0xffffffff))

(defn- open-path
  [file options]
  (let [path (call/path-text file :open)
        ctx {:op :open :path path}
        fd (try
             (kernel.map/open-path path (requested-access options) ctx)
             (catch ExceptionInfo e
               (if (and (= :not-found (:bpfmap/error (ex-data e))) (not (str/includes? path "/")))
                 (throw (error/error :not-found (str "No file " path)
                                     (assoc (ex-data e) :bpfmap/hint
                                            (str "to open a map by its name: (open {:name "
                                                 (pr-str path) "})"))))
                 (throw e))))]
    (make-opened fd (requested-access options) options path ctx)))

(defn- open-id [id options]
  (let [ctx {:op :open}]
    (make-opened (kernel.map/open-id id (requested-access options) ctx) (requested-access options)
                 options nil ctx)))

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
    (int? ref) (open-id (check-id ref) options)
    (or (string? ref) (instance? Path ref) (instance? File ref)) (open-path ref options)
    (and (map? ref) (= 1 (count ref)))
    (let [[kind x] (first ref)]
      (case kind
        (:id :map-id) (open-id (check-id x) options)
        :name (open-id (find-by-name/id-of x) options)
        :path (open-path x options)
        :fd (let [ctx {:op :open}
                  fd (call/open-number :map (check-number "A descriptor" x 0x7fffffff) ctx)]
              (close-on-error fd
                (make-opened fd (or (call/access fd) (requested-access options))
                             options nil ctx)))
        (throw (invalid-option [kind] (str "Unknown reference " (error/printed ref))
                               "use {:id n}, {:map-id n}, {:path p}, {:name n} or {:fd n}"))))
    :else (throw (invalid-option []
                                 (str "A map must be given by id, pin path, {:name n} or {:fd n}, "
                                      "got " (error/printed ref))
                                 nil))))

(defn open
  "Opens a map by id, pin path, `{:id n}`, `{:path p}`, `{:fd n}` or `{:name s}`."
  [ref options]
  (open-ref ref (with-types (options/check :open options))))

;; --- the spec of an open map

(defn- inner-spec
  "Returns the spec of the first inner map of a map of maps, without its name.

  Returns nil if there is none or it cannot be opened. All inner maps are alike: the kernel
  accepts no others."
  [m]
  (try
    (when-let [{:keys [map-id]} (reduce (fn [_ [_ value]] (reduced value)) nil m)]
      (with-open [^java.io.Closeable inner (open {:id map-id} {:access :read-only})]
        (dissoc (bpf-map/spec-of inner) :name)))
    (catch ExceptionInfo _ nil)))

(defn spec
  "Returns the spec of the map, with `:inner-map` for a map of maps."
  [m]
  (let [{:keys [inner-map] :as spec} (bpf-map/spec-of m)
        inner (when (and (nil? inner-map) (:inner (bpf-map/row-of m)))
                (inner-spec m))]
    (cond-> spec inner (assoc :inner-map inner))))
