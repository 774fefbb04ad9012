(ns ^:no-doc bpfmap.impl.object.selection
  "Checks an object and selects what of it is loaded."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.object.link :as link]
            [bpfmap.impl.object.load-error :refer [invalid unknown-name]]
            [clojure.string :as str])
  (:import (java.nio ByteOrder)))

(set! *warn-on-reflection* true)

(defn- records-with-slots? [x]
  (and (sequential? x)
       (every? #(and (map? %) (int? (:slot %)) (<= 0 (long (:slot %)) Integer/MAX_VALUE)) x)))

(def ^:private forms
  "Keys of parts, by part: `[valid? constraint]`.

  Instructions, specs and values are checked where they are encoded."
  (let [text [#(or (nil? %) (string? %)) "a string"]
        records [#(or (nil? %) (records-with-slots? %))
                 "a vector of maps, each with the number of a slot as its :slot"]
        number [#(and (int? %) (<= 0 (long %) Integer/MAX_VALUE))
                "an integer from 0 to 2147483647"]
        function {:section text
                  :target text
                  :tags [#(or (nil? %) (sequential? %)) "a vector"]
                  :flags [#(or (nil? %) (set? %) (sequential? %)) "a set"]
                  :lines records
                  :core records
                  :btf-id (update number 0 #(some-fn nil? %))}]
    {:programs function
     :functions function
     :variables {:section [string? "a string"] :offset number :size number}}))

(def ^:private known-keys
  "Keys of parts, by part.

  Qualified keys are the user's own."
  (let [function #{:name :section :type :attach-type :target :flags :autoload :insns :lines :core
                   :linkage :weak :visibility :btf-id :tags}]
    {:programs function
     :functions function
     :variables #{:section :type :offset :size :value :linkage :btf-id :tags :pointers}
     :kconfig #{:type :weak :btf-id}
     :ksyms #{:kind :type :weak :btf-id}}))

(def ^:private keys-of-an-object
  #{:name :license :kernel-version :byte-order :maps :programs :functions :variables :kconfig
    :ksyms :btf})

(defn- check-keys
  "Throws for a key that is not known, such as a misspelt one."
  [path part known]
  (doseq [k (keys part)
          :when (not (or (known k) (qualified-keyword? k)))]
    (throw (invalid (conj path k) (str "Unknown key " (error/printed k)
                                       (when-let [[_ named] (seq path)] (str " of " named)))
                    (nearest/suggestion k (sort known) "bpfmap.object/read for all keys")))))

(defn- check-parts
  "Throws unless a part of an object is a map of names to maps of its form."
  [object k]
  (let [parts (get object k)]
    (when-not (or (nil? parts) (map? parts))
      (throw (invalid [k] (str k " must be a map of names, got " (error/printed parts)))))
    (doseq [[name part] parts]
      (when-not (string? name)
        (throw (invalid [k name] (str "A name of " k " must be a string, got "
                                      (error/printed name)))))
      (when-not (error/named-map? part)
        (throw (invalid [k name] (str "A part of an object must be a map, got "
                                      (error/printed part)))))
      (some->> (known-keys k) (check-keys [k name] part))
      (doseq [[field [valid? constraint]] (forms k)
              :let [x (get part field)]]
        (when-not (valid? x)
          (throw (invalid [k name field] (str field " of " name " must be " constraint ", got "
                                              (error/printed x)))))))))

(defn section?
  "Returns true if the map of this name holds a section.

      (section? \".bss\") ;=> true"
  [map-name]
  (str/starts-with? map-name "."))

(defn- pairs? [x]
  (or (map? x) (and (sequential? x) (every? #(and (vector? %) (= 2 (count %))) x))))

(defn only-value
  "Returns the value that the contents of a map of one element have, or nil."
  [contents]
  (get (into {} contents) 0))

(defn- check-only-value
  "Throws unless the contents of a section or struct_ops are those of one element."
  [map-name {:keys [type contents]}]
  (let [struct-ops? (= :struct-ops type)]
    (when (and (some? contents) (or struct-ops? (section? map-name)))
      (when-not (and (pairs? contents)
                     (or (not struct-ops?)
                         (let [value (only-value contents)]
                           (or (nil? value) (and (map? value) (every? keyword? (keys value)))))))
        (throw (invalid [:maps map-name :contents]
                        (str ":contents of " map-name " must be {0 "
                             (if struct-ops? "{member value …}" "value") "}, got "
                             (error/printed contents))))))))

(def ^:private native-order
  (if (= ByteOrder/BIG_ENDIAN (ByteOrder/nativeOrder)) :big-endian :little-endian))

(defn check-object
  "Throws unless an object has the form that read returns, and this byte order.

      (check-object (object/read \"flows.bpf.o\"))"
  [{:keys [byte-order license] :as object}]
  (when-not (and (map? object) (map? (:programs object)) (map? (:maps object)))
    (throw (invalid [] (str "An object must be a result of read, got " (error/printed object))
                    "read the file first: (load (read \"flows.bpf.o\"))")))
  (check-keys [] object keys-of-an-object)
  (run! #(check-parts object %) [:maps :programs :functions :variables :kconfig :ksyms])
  (doseq [[map-name spec] (:maps object)]
    (check-only-value map-name spec))
  (when-not (contains? #{nil :little-endian :big-endian} byte-order)
    (throw (invalid [:byte-order] (str ":byte-order must be :little-endian or :big-endian, got "
                                       (error/printed byte-order)))))
  (when-not (or (nil? byte-order) (= native-order byte-order))
    (throw (error/error :not-supported
                        (str "The object is " (name byte-order) ", and this machine is "
                             (name native-order))
                        {:bpfmap/op :load :bpfmap/path [:byte-order]
                         :bpfmap/hint (str "compile it with -target "
                                           (if (= :big-endian native-order) "bpfeb" "bpfel"))})))
  (when-not (or (nil? license) (string? license))
    (throw (invalid [:license] (str ":license must be a string, got " (error/printed license))))))

(defn implementations
  "Returns the struct_ops programs of an object: name to `{:maps :struct :member}`.

  A program can be in several maps, as the same member of the same struct."
  [{:keys [maps]}]
  (reduce
   (fn [found [program {:keys [struct member] map-name :map :as use}]]
     (let [known (found program)]
       (when (and known (not= [struct member] [(:struct known) (:member known)]))
         (throw (invalid [:maps map-name :contents 0 member]
                         (str "The program " program " must have one member, got "
                              (name member) " of " struct " and " (name (:member known)) " of "
                              (:struct known)))))
       (assoc found program (-> (dissoc use :map)
                                (assoc :maps (conj (:maps known #{}) map-name))))))
   {}
   (for [[map-name {:keys [type struct-ops contents]}] maps
         :when (= :struct-ops type)
         [member value] (only-value contents)
         :when (and (map? value) (string? (:program value)))]
     [(:program value) {:map map-name :struct struct-ops :member member}])))

(defn- wanted?
  "Returns true if a program is loaded by default.

  A struct_ops program is loaded with a map that it is for."
  [{:keys [maps]} implementations [name {:keys [type autoload]}]]
  (and (not (false? autoload))
       (or (not= :struct-ops type)
           (some #(not (false? (get-in maps [% :autoload])))
                 (:maps (implementations name))))))

(defn selected
  "Returns the names of the programs to load, sorted."
  [{:keys [programs] :as object} implementations {:keys [only]}]
  (if (some? only)
    (do (doseq [name only]
          (when-not (contains? programs name)
            (throw (unknown-name [:only] "program" name (keys programs)))))
        (sort (set only)))
    (sort (map key (filter #(wanted? object implementations %) programs)))))

(def arena-section
  "The section of variables in an arena."
  ".addr_space.1")

(defn map-of-reference
  "Returns the name of the map that a reference needs, or nil."
  [{:keys [variables maps]} [k named]]
  (let [of-section (fn [section]
                     (if (= arena-section section)
                       (some (fn [[name {:keys [type]}]] (when (= :arena type) name)) maps)
                       section))]
    (case k
      :map named
      :section (of-section named)
      :variable (of-section (:section (get variables named)))
      :kconfig ".kconfig"
      nil)))

(defn- references-of
  "Returns the references in instructions, as entries."
  [insns]
  (keep #(when (and (map? %) (= 1 (count %)) (string? (val (first %))))
           (first %))
        (tree-seq sequential? seq insns)))

(defn- references-from
  "Returns all references of programs and of what they call.

  Unknown functions are left out: the programs may never be loaded."
  [object names]
  (loop [todo (seq names) seen (set names) found #{}]
    (if-let [name (first todo)]
      (let [references (references-of (:insns (second (link/place object name))))
            new-names (into [] (comp (filter #(= :function (key %))) (map val) (remove seen)
                                     (distinct))
                            references)]
        (recur (concat (next todo) new-names) (into seen new-names) (into found references)))
      found)))

(defn check-reference
  "Throws unless a relocation refers to a part of the object, or to an open map."
  [{:keys [maps] :as object} {:keys [ref path]}]
  (when-not (bpf-map/bpf-map? ref)
    (let [[k named] (when (and (map? ref) (= 1 (count ref))) (first ref))
          known (fn [part what]
                  (when-not (contains? (get object part) named)
                    (throw (unknown-name path what named (keys (get object part))))))]
      (case k
        :map (known :maps "map")
        :section (when-not (= arena-section named) (known :maps "section"))
        :variable (do (known :variables "variable")
                      (let [section (map-of-reference object [k named])]
                        (when-not (contains? maps section)
                          (throw (invalid path (str "The section of variable " named
                                                    " must be a map of the object, got "
                                                    (error/printed section)))))))
        :kconfig (known :kconfig "kconfig")
        (:kfunc :ksym) (when-not (string? named)
                         (throw (invalid path (str "The name of a " (name k)
                                                   " must be a string, got "
                                                   (error/printed named)))))
        (throw (invalid path (str "An instruction must refer to a part of the object or to an open "
                                  "map, got " (error/printed ref))))))))

(defn contents-of
  "Returns the entries with which a map begins, or nil without a list of them.

      (contents-of {:contents {0 {:map \"first\"}}}) ;=> {0 {:map \"first\"}}"
  [{:keys [contents]}]
  (when (or (map? contents) (sequential? contents)) contents))

(defn named-part
  "Returns the name of the part that a value of `:contents` refers to, or nil.

      (named-part {:map \"first\"} :map) ;=> \"first\""
  [value k]
  (when (and (map? value) (= [k] (keys value)) (string? (k value)))
    (k value)))

(defn check-contents
  "Throws for a map in the contents of a map that the object lacks."
  [{:keys [maps]}]
  (doseq [[map-name spec] maps
          entry (contents-of spec)
          :when (and (vector? entry) (= 2 (count entry)))
          :let [[k value] entry
                inner (named-part value :map)]
          :when (and inner (not (contains? maps inner)))]
    (throw (unknown-name [:maps map-name :contents k] "map" inner (keys maps)))))

(defn- with-inner
  "Returns names of maps with those of the maps that they contain."
  [{:keys [maps]} names]
  (loop [todo (seq names) found (set names)]
    (if-let [name (first todo)]
      (let [inner (remove found (for [entry (contents-of (get maps name))
                                      :when (and (vector? entry) (= 2 (count entry)))
                                      :let [inner (named-part (second entry) :map)]
                                      :when inner]
                                  inner))]
        (recur (concat (next todo) inner) (into found inner)))
      found)))

(defn maps-to-create
  "Returns the names of the maps to create, sorted.

  These are all except those that only programs need that are not loaded, and those with
  `:autoload false`."
  [{:keys [maps programs] :as object} {:keys [only]} implementations names references]
  (let [left-out (remove (set names) (keys programs))
        named (set only)
        autoload? (fn [[map-name {:keys [type autoload]}]]
                    (let [programs (for [[program {:keys [maps]}] implementations
                                         :when (maps map-name)]
                                     program)]
                      (cond
                        (or (not= :struct-ops type) (empty? programs)) (not (false? autoload))
                        (some named programs) true
                        :else (and (not (false? autoload)) (some (set names) programs)))))
        default (into #{} (comp (filter autoload?) (map key)) maps)
        of-references (fn [references] (keep #(map-of-reference object %) references))]
    (sort (if (empty? left-out)
            default
            (let [skipped (reduce disj
                                  (set (of-references (references-from object left-out)))
                                  (of-references references))]
              (with-inner object (remove skipped default)))))))
