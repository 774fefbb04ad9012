(ns ^:no-doc bpfmap.exec.pins
  "Implements the commands that create and pin maps: `create`, `pin` and `unpin`."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.confirm :as confirm]
            [bpfmap.exec.fields :as fields]
            [bpfmap.exec.input :as input]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.map-types :as map-types]
            [clojure.string :as str]))

(set! *warn-on-reflection* true)

(defn pinned
  "Pins an open map at a path and returns `{:id :name :type :path}`.

      (pinned m \"/sys/fs/bpf/counts\") ;=> {:id 12, :name \"counts\", :type :hash, :path \"/sys/fs/bpf/counts\"}"
  [m path]
  (bpf/pin! m path)
  (assoc (select-keys (bpf/info m) [:id :name :type]) :path (bpf/pinned-path m)))

(defn- kernel-names
  "Returns a spec whose map types and flags may have the kernel's spelling.

  Inner maps are included."
  [{:keys [type flags inner-map] :as spec}]
  (let [named #(if (and (keyword? %1) (not (contains? %2 %1)))
                 (keyword (fields/kernel-name (subs (str %1) 1)))
                 %1)]
    (cond-> spec
      type (assoc :type (named type map-types/types))
      (coll? flags) (assoc :flags (into #{} (map #(named % map-types/flags)) flags))
      (map? inner-map) (update :inner-map kernel-names))))

(defn- spec-of
  "Returns the spec for the options.

  Options override `:spec`, which overrides the spec of the map `:like`."
  [{:keys [path like spec name type key-type value-type key-size value-size max-entries flags]}]
  (let [base (merge (when like
                      (with-open [m (input/open {:ref like} :read-only)]
                        (bpf/spec m)))
                    spec)
        ;; A given size means bytes. A given type takes precedence over the sizes of the base.
        base (cond-> base
               (or key-type key-size) (dissoc :key :key-size)
               (or value-type value-size) (dissoc :value :value-size))
        given (into {} (remove (comp nil? val))
                    {:type type :key key-type :value value-type :key-size key-size
                     :value-size value-size
                     :max-entries max-entries :flags (some-> flags set)})]
    (kernel-names (merge {:name (paths/file-name path)} base given (when name {:name name})))))

(defn- forgotten
  "Returns a warning about types that the kernel does not store, or nil."
  [path key-type value-type]
  (with-open [m (bpf/open path {:access :read-only})]
    (let [{:keys [key value] :as spec} (bpf/spec m)
          bytes? #(and (vector? %) (= :bytes (first %)))
          lost (for [[given kept option] [[key-type key "--key-type"]
                                          [value-type value "--value-type"]]
                     :when (and given (not (bytes? given)) (bytes? kept))]
                 (str option " " (if (keyword? given) (name given) (str "'" (pr-str given) "'"))))]
      (when (seq lost)
        (str "a " (name (:type spec)) " map does not keep its types in the kernel: give "
             (str/join " and " lost)
             " to dump, get and put too")))))

(defn create
  "Creates a map and pins it.

  Without a pin, the map would be freed when this process ends.

      (create {:path \"/sys/fs/bpf/counts\" :type :hash :key-type :u32 :value-type :u64 :max-entries 1024})
      ;=> {:id 12, :name \"counts\", :type :hash, :path \"/sys/fs/bpf/counts\"}"
  [{:keys [path spec] :as options}]
  (when-not (or (nil? spec) (and (map? spec) (every? keyword? (keys spec))))
    (throw (arguments/refused "create" :spec spec
             "must be a map with keyword keys, such as {:map-extra 3}")))
  (let [{:keys [key value] :as spec} (dissoc (spec-of options) :pinning)]
    (with-open [m (bpf/create spec)]
      (let [info (pinned m path)
            untyped (when (or key value)
                      (forgotten (:path info) key value))]
        (cond-> info untyped (assoc :untyped untyped))))))

(defn pin
  "Pins a map at a path.

  Other pins stay. With `:move`, `:ref` is the path of a pin, and the pin moves.

      (pin {:ref {:id 12} :path \"/sys/fs/bpf/counts\"}) ;=> {:id 12, :name \"counts\", :type :hash, :path …}"
  [{:keys [path move] :as options}]
  (with-open [m (input/open options (if move :read-only :read-write))]
    (if-not move
      (pinned m path)
      (let [from (last (bpf/pinned-paths m))]
        (when-not from
          (throw (arguments/refused "pin" :move true ["requires the path of a pin as " :ref])))
        (confirm/check m options "Move this pin of it?")
        (bpf/move-pin! m from path)
        (assoc (select-keys (bpf/info m) [:id :name :type]) :path (bpf/pinned-path m) :from
               from)))))

(defn unpin
  "Removes the pin of a map.

  The kernel frees the map if nothing else refers to it.

      (unpin {:path \"/sys/fs/bpf/counts\"}) ;=> {:id 12, :name \"counts\", :type :hash, :path …}"
  [{:keys [path] :as options}]
  (with-open [m (input/open {:ref {:path path}} :read-only)]
    (confirm/check m options "Remove this pin of it?")
    (let [info (select-keys (bpf/info m) [:id :name :type])
          path (bpf/pinned-path m)]
      (bpf/unpin! m)
      (assoc info :path path))))
