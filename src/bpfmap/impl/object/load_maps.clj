(ns ^:no-doc bpfmap.impl.object.load-maps
  "Makes the maps of an object and fills them: with variables, other maps, and programs."
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.kernel.element :as kernel.element]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.element-ops :as element-ops]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.impl.map.mapped :as mapped]
            [bpfmap.impl.memory.bytes :as memory.bytes]
            [bpfmap.impl.object.core :as core]
            [bpfmap.impl.object.externs :as externs]
            [bpfmap.impl.object.load-error :refer [in-path invalid unknown-name]]
            [bpfmap.impl.object.selection
             :refer [arena-section contents-of named-part only-value section?]]
            [bpfmap.impl.object.undo :as undo]
            [bpfmap.type :as type]
            [clojure.string :as str])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.sys Codec)
           (java.lang.foreign MemorySegment)))

(set! *warn-on-reflection* true)

(defn- section-map-name
  "Returns the kernel's name for the map of a section, as libbpf makes it.

      (section-map-name \"flows\" \".bss\") ;=> \"flows.bss\""
  [object-name section]
  (if (str/includes? (subs section 1) ".")
    section
    (let [prefix (str/replace (str object-name) #"[^A-Za-z0-9_.]" "_")
          room (max 0 (- 15 (max 7 (count section))))]
      (str (subs prefix 0 (min room (count prefix))) section))))

(defn- encoded
  "Returns a value of a variable as bytes."
  ^bytes [{:keys [type size value]}]
  (if (bytes/byte-count value)
    (if (= size (bytes/byte-count value))
      (bytes/->array value)
      (throw (error/error :invalid-value
                          (str "A value of bytes must have " size ", got "
                               (bytes/byte-count value))
                          {:bpfmap/path [:value]})))
    (let [^Codec codec (codec/codec type)
          array (byte-array (.size codec))]
      (when-not (= size (.size codec))
        (throw (error/error :invalid-value
                            (str "The type must have " size " bytes, got " (.size codec))
                            {:bpfmap/path [:type]})))
      (in-path [:value] (.encode codec value (MemorySegment/ofArray array) 0))
      array)))

(defn check-variables
  "Throws unless all variables of a section lie in it, and their types in them."
  [{:keys [variables]} section section-size]
  (doseq [[name {:keys [offset size type value] :as variable}] variables
          :when (= section (:section variable))
          :let [path [:variables name]]]
    (when-not (<= (+ (long offset) (long size)) (long section-size))
      (throw (invalid path (str "A variable must lie in its section of " section-size
                                " bytes, got " size " bytes at offset " offset))))
    ;; The types of values are checked as these are encoded.
    (when (nil? value)
      (let [type-size (in-path (conj path :type) (type/size type))]
        (when (< (long size) (long type-size))
          (throw (invalid (conj path :type) (str "The type of " name " must have at most " size
                                                 " bytes, got " type-size))))))))

(defn section-bytes
  "Returns the contents of a section: own bytes, and values of variables."
  ^bytes [{:keys [maps variables]} section size]
  (let [size (long size)
        out (byte-array size)
        own (only-value (:contents (get maps section)))]
    (when own
      (let [bytes (in-path [:maps section :contents 0]
                    (encoded {:type (:value (get maps section)) :size size :value own}))]
        (System/arraycopy bytes 0 out 0 size)))
    (doseq [[name {:keys [offset value] bytes :size :as variable}] variables
            :when (and (= section (:section variable)) (some? value))]
      (let [array (in-path [:variables name] (encoded variable))]
        (System/arraycopy array 0 out (int offset) (int bytes))))
    out))

(def ^:private index-codec (codec/codec :u32))

(defn- fill-section
  "Writes the bytes of a section to its map, and freezes it if it is constant."
  [^BpfMap m ^bytes contents freeze?]
  (when-not (every? zero? contents)
    (if (:per-cpu (map-types/types (:type (bpf-map/identity-of m))))
      (element-ops/write m :put! kernel.element/any 0 (bytes/wrap contents) {:cpus :all})
      (kernel.element/write (.-elements m) index-codec (codec/codec [:bytes (alength contents)])
                            0 contents kernel.element/any m :load)))
  (when freeze?
    (kernel.map/freeze (.-fd m) {:op :load :map (.-identity m)})))

(defn- refers? [contents]
  (some (fn [entry]
          (and (vector? entry) (= 2 (count entry))
               (or (named-part (second entry) :map) (named-part (second entry) :program))))
        (map #(if (map-entry? %) (vec %) %) contents)))

(defn spec-to-create
  "Returns the spec of a map without what only load understands."
  [object map-name {:keys [type] :as spec}]
  (let [default-name? (= map-name (:name spec map-name))]
    (cond-> (dissoc spec :autoload)
      true (assoc :name (:name spec map-name))
      ;; Both are done here, and without the name's meaning.
      (section? map-name) (-> (dissoc :contents) (assoc :freeze false))
      (and default-name? (section? map-name))
      (assoc :name (section-map-name (:name object) map-name))
      (= :struct-ops type) (-> (dissoc :contents)
                               (update :struct-ops #(some-> % core/essential-name)))
      (refers? (contents-of spec)) (dissoc :contents))))

(defn check-given
  "Throws unless an open map of the caller can be used as a map of the object."
  [object map-name m]
  (let [path [:maps map-name]]
    (when-not (contains? (:maps object) map-name)
      (throw (unknown-name path "map" map-name (keys (:maps object)))))
    (when-not (bpf-map/bpf-map? m)
      (throw (invalid path (str "The map for " map-name " must be an open map, got "
                                (error/printed m)))))
    (let [spec (spec-to-create object map-name (get-in object [:maps map-name]))
          difference (in-path path
                       (select-keys (lifecycle/difference m (dissoc spec :contents :freeze
                                                                    :pinning))
                                    [:type :key-size :value-size]))]
      (when (seq difference)
        (throw (error/error :incompatible
                            (str "The map given for " map-name " does not match its spec")
                            {:bpfmap/op :load :bpfmap/path path :bpfmap/diff difference
                             :bpfmap/hint
                             (str/join "; " (for [[k {:keys [spec map]}] (sort-by key difference)]
                                              (str k " is " (error/printed map)
                                                   ", the object has " (error/printed spec))))})))
      m)))

(defn- create-map
  "Creates a map, or opens the one that is pinned under its name: `{:map :reused}`."
  [{:keys [undo on-failure options btf types]} map-name spec]
  (in-path [:maps map-name]
    (let [[m reused?] (lifecycle/create-or-reuse
                       spec (select-keys options [:pin-path])
                       (when btf
                         {:fd (:fd btf) :ids (get types map-name [0 0])}))]
      (undo/push! undo m #(bpf-map/close m))
      (when (and (:pinning spec) (not reused?))
        (undo/push! on-failure m #(lifecycle/unpin! m)))
      {:map m :reused reused?})))

(defn- section-map
  "Returns the map of a section or of the configuration, filled and frozen."
  [state map-name spec contents freeze?]
  (let [{m :map :keys [reused] :as made} (create-map state map-name spec)]
    (when-not reused
      (in-path [:maps map-name] (fill-section m contents freeze?)))
    made))

(defn size-of
  "Returns the size of a value of a spec in bytes.

      (size-of {:value :u32}) ;=> 4"
  [{:keys [value-size value]}]
  (or value-size (type/size value)))

(defn- config-map
  "Returns the map of the kernel's configuration.

  Values that no program uses may be missing, and are 0."
  [{:keys [object references] :as state} {:keys [size offsets]}]
  (let [used (into #{} (comp (filter #(= :kconfig (key %))) (map val)) references)
        contents (byte-array size)]
    (doseq [[name declaration] (:kconfig object)
            :let [bytes (externs/config-bytes name (cond-> declaration
                                                     (not (used name)) (assoc :weak true)))]]
      (System/arraycopy bytes 0 contents (int (offsets name)) (alength ^bytes bytes)))
    (section-map state ".kconfig"
                 {:name (section-map-name (:name object) ".kconfig")
                  :type :array :key :u32 :value-size size :max-entries 1 :freeze false
                  :flags #{:rdonly-prog :mmapable}}
                 contents true)))

(defn- map-arena
  "Sets the address of an arena by mapping it, and writes its variables."
  [{:keys [object undo]} map-name m]
  (when-let [memory (mapped/memory-or-nil m)]
    (undo/push! undo memory #(memory.bytes/close memory))
    (let [end (reduce max 0 (for [{:keys [section offset size]} (vals (:variables object))
                                  :when (= arena-section section)]
                              (+ (long offset) (long size))))]
      (when (pos? (long end))
        (in-path [:maps map-name]
          (check-variables object arena-section (count memory))
          (let [contents (section-bytes object arena-section end)]
            (when-not (every? zero? contents)
              (memory.bytes/copy-from memory 0 contents 0 nil))))))))

(defn- fill-with-maps
  "Writes the maps that a map of maps begins with."
  [maps map-name m spec]
  (in-path [:maps map-name]
    (doseq [[k value] (contents-of spec)
            :let [inner (named-part value :map)]]
      (element-ops/write m :put! kernel.element/any k (if inner (maps inner) value) nil))))

(defn with-maps
  "Returns the state with the open maps: those given, and those that are made."
  [{:keys [object options config-layout specs contents] :as state}]
  (let [given (:maps options)
        made (reduce
              (fn [made [map-name spec]]
                (let [{m :map :as found}
                      (if-let [own (contents map-name)]
                        (section-map state map-name spec own
                                     (:freeze (get-in object [:maps map-name])))
                        (create-map state map-name spec))]
                  (when (= :arena (:type spec))
                    (map-arena state map-name m))
                  (assoc made map-name found)))
              {} specs)
        made (cond-> made
               (and config-layout (not (contains? given ".kconfig")))
               (assoc ".kconfig" (config-map state config-layout)))
        maps (into (update-vals made :map) given)]
    (doseq [[name {m :map :keys [reused]}] made
            :let [spec (get-in object [:maps name])]
            :when (and (:inner (map-types/types (:type spec))) (not reused)
                       (refers? (contents-of spec)))]
      (fill-with-maps maps name m spec))
    (assoc state :maps maps)))

(defn- struct-value
  "Returns the value of a struct_ops map with its open programs."
  [programs {:keys [contents]}]
  {:data (into {}
               (keep (fn [[member value]]
                       (if-let [name (named-part value :program)]
                         (when-let [program (programs name)]
                           [member program])
                         [member value])))
               (only-value contents))})

(defn fill-with-programs
  "Writes programs to the maps of programs of the object.

  Slots of programs that are not loaded stay empty. A struct_ops map with the flag `:link` gets its
  value here, because only a link makes the kernel use it; the values of others are returned by
  name."
  [{:keys [object maps]} programs]
  (let [of-type (fn [type] (filter #(= type (:type (val %))) (select-keys (:maps object)
                                                                          (keys maps))))]
    (doseq [[map-name spec] (of-type :prog-array)
            [k value] (contents-of spec)
            :let [named (named-part value :program)
                  program (if named (programs named) value)]
            :when (and program (refers? (contents-of spec)))]
      (in-path [:maps map-name]
        (element-ops/write (maps map-name) :put! kernel.element/any k program nil)))
    (into {}
          (for [[map-name {:keys [flags] :as spec}] (of-type :struct-ops)
                :let [value (struct-value programs spec)]]
            (do (when (contains? (set flags) :link)
                  (in-path [:maps map-name]
                    (element-ops/write (maps map-name) :put! kernel.element/any 0 value nil)))
                [map-name value])))))
