(ns ^:no-doc bpfmap.impl.object.load
  "Loads an object into the kernel: BTF, maps, programs, and contents that refer to both.

  In order: what is to be loaded; maps; references of programs; programs; the whole. Everything that
  is made goes on a stack, from which it is given back if a step fails."
  (:require [bpfmap.asm :as asm]
            [bpfmap.bytes :as bytes]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.codec :as codec]
            [bpfmap.impl.host.kernel-btf :as kernel-btf]
            [bpfmap.impl.feature.btf :as feature.btf]
            [bpfmap.impl.kernel.btf :as kernel.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.element :as kernel.element]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.kernel.prog :as kernel.prog]
            [bpfmap.impl.link.attach-types :as attach-types]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.element-ops :as element-ops]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.impl.map.mapped :as mapped]
            [bpfmap.impl.memory.bytes :as memory.bytes]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.object.core :as core]
            [bpfmap.impl.object.externs :as externs]
            [bpfmap.impl.object.loadable-btf :as loadable-btf]
            [bpfmap.impl.object.link :as link :refer [invalid]]
            [bpfmap.impl.object.loaded :as loaded]
            [bpfmap.impl.options :as options]
            [bpfmap.impl.prog.program :as program]
            [bpfmap.impl.prog.verifier-log :as verifier-log]
            [bpfmap.spec :as spec]
            [bpfmap.type :as type]
            [clojure.string :as str])
  (:import (bpfmap.impl.map.bpf_map BpfMap)
           (bpfmap.impl.prog.program Program)
           (bpfmap.sys Codec Fd)
           (clojure.lang ExceptionInfo)
           (java.io Closeable)
           (java.lang.foreign MemorySegment)
           (java.nio ByteBuffer ByteOrder)
           (java.util Deque)
           (java.util.regex Matcher)))

(set! *warn-on-reflection* true)

(defn- of-part
  "Returns a message about a part of an object with the name of the part.

  Codecs and specs do not know of which variable or map they speak."
  [message [k named] whole]
  (case k
    :variables (if (= :value (nth whole 2 nil))
                 (str "Value of " named ": " message)
                 message)
    :maps (str/replace-first message #"^The map spec is" (Matcher/quoteReplacement
                                                          (str "The spec of map " named " is")))
    message))

(defn- at-path
  "Returns an exception with the path of a part of an object.

  A path that the exception has already continues it."
  ^Throwable [^ExceptionInfo e path]
  (let [data (ex-data e)
        whole (into path (:bpfmap/path data))]
    (doto ^Throwable (ex-info (of-part (ex-message e) path whole)
                              (assoc data
                                     :bpfmap/op :load
                                     :bpfmap/path whole)
                              (or (ex-cause e) e))
      (.setStackTrace (.getStackTrace e)))))

(defmacro ^:private in-path
  "Runs body; adds a path to errors."
  [path & body]
  `(try
     ~@body
     (catch ExceptionInfo e#
       (throw (at-path e# ~path)))))

;; ---------------------------------------------------------------- what is to be loaded

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

(defn- section? [map-name] (str/starts-with? map-name "."))

(defn- pairs? [x]
  (or (map? x) (and (sequential? x) (every? #(and (vector? %) (= 2 (count %))) x))))

(defn- only-value
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

(defn- check-object [{:keys [byte-order license] :as object}]
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

(defn- unknown-name [path what wanted names]
  (invalid path (str "The object has no " what " " (error/printed wanted))
           (if (seq names)
             (nearest/alternatives wanted (sort names))
             (str "it has none"))))

(defn- implementations
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

(defn- selected
  "Returns the names of the programs to load, sorted."
  [{:keys [programs] :as object} implementations {:keys [only]}]
  (if (some? only)
    (do (doseq [name only]
          (when-not (contains? programs name)
            (throw (unknown-name [:only] "program" name (keys programs)))))
        (sort (set only)))
    (sort (map key (filter #(wanted? object implementations %) programs)))))

(def ^:private arena-section ".addr_space.1")

(defn- map-of-reference
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

(defn- check-reference
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

(defn- contents-of [{:keys [contents]}]
  (when (or (map? contents) (sequential? contents)) contents))

(defn- named-part
  "Returns the name of the part that a value of `:contents` refers to, or nil.

      (named-part {:map \"first\"} :map) ;=> \"first\""
  [value k]
  (when (and (map? value) (= [k] (keys value)) (string? (k value)))
    (k value)))

(defn- check-contents
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

(defn- maps-to-create
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

;; ---------------------------------------------------------------- BTF

(defn- member-types
  "Returns the ids of the key and value types in the definition of a map, or 0."
  [b id]
  (let [{:keys [members]} (blob/record b (blob/resolve b id))
        target (fn [text]
                 (or (some (fn [{:keys [name type]}]
                             (when (= text name)
                               (:type (blob/record b (blob/resolve b type)))))
                           members)
                     0))]
    [(target "key") (target "value")]))

(defn- types-of-maps
  "Returns the ids of the key and value types of all maps of an object, by name."
  [b]
  (into {}
        (mapcat (fn [id]
                  (let [{:keys [name vars]} (blob/record b id)]
                    (if (= ".maps" name)
                      (for [{:keys [type]} vars
                            :let [{:keys [kind name] of-var :type} (blob/record b type)]
                            :when (= :var kind)]
                        [name (member-types b of-var)])
                      [[name [0 id]]]))))
        (filter #(= :datasec (blob/kind b %)) (range 1 (inc (blob/type-count b))))))

(def ^:private btf-refused
  "Kinds of errors after which an object is loaded without its BTF."
  #{:invalid-value :not-supported :malformed-btf :incompatible})

(defn- with-btf
  "Returns the state with the BTF of the object in the kernel, if it takes it.

  `:btf` has its descriptor as `:fd`, and the types of maps and tables of functions are made of it."
  [{:keys [object temporary blob] :as state}]
  (if-not (:btf object)
    state
    (let [ctx {:op :load}
          l (in-path [:btf] (loadable-btf/loadable object (feature.btf/supported ctx)))
          fd (try
               (kernel.btf/load (:bytes l) nil ctx)
               (catch ExceptionInfo e
                 (when-not (btf-refused (:bpfmap/error (ex-data e)))
                   (throw e))))]
      (if-not fd
        state
        (do (loaded/undoing! temporary fd #(call/close fd))
            (assoc state
                   :btf {:fd fd :loadable l}
                   :types (types-of-maps @blob)))))))

;; ---------------------------------------------------------------- maps

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

(defn- check-variables
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

(defn- section-bytes
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

(defn- spec-to-create
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

(defn- check-given
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

(defn- check-target
  "Throws unless an open program is given for a program of the object."
  [{:keys [programs]} name target]
  (when-not (contains? programs name)
    (throw (unknown-name [:attach-to name] "program" name (keys programs))))
  (when-not (program/program? target)
    (throw (invalid [:attach-to name]
                    (str "The target must be an open program, got " (error/printed target)))))
  (let [{:keys [type target]} (get programs name)]
    (when-not (and (#{:ext :tracing} type) (not (str/blank? target)))
      (throw (invalid [:attach-to name]
                      (str "The program " name " must be of type :ext or :tracing and have a "
                           ":target, got type " (error/printed type) " and target "
                           (error/printed target))
                      "only freplace, fentry and fexit programs are for another program")))))

(defn- create-map
  "Creates a map, or opens the one that is pinned under its name: `{:map :reused}`."
  [{:keys [undo on-failure options btf types]} map-name spec]
  (in-path [:maps map-name]
    (let [[m reused?] (lifecycle/create-or-reuse
                       spec (select-keys options [:pin-path])
                       (when btf
                         {:fd (:fd btf) :ids (get types map-name [0 0])}))]
      (loaded/undoing! undo m #(bpf-map/close m))
      (when (and (:pinning spec) (not reused?))
        (loaded/undoing! on-failure m #(lifecycle/unpin! m)))
      {:map m :reused reused?})))

(defn- section-map
  "Returns the map of a section or of the configuration, filled and frozen."
  [state map-name spec contents freeze?]
  (let [{m :map :keys [reused] :as made} (create-map state map-name spec)]
    (when-not reused
      (in-path [:maps map-name] (fill-section m contents freeze?)))
    made))

(defn- size-of [{:keys [value-size value]}]
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
    (loaded/undoing! undo memory #(memory.bytes/close memory))
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

(defn- with-maps
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

;; ---------------------------------------------------------------- references of programs

;; The instructions of a linked program are changed in place. `fds` collects the descriptors that
;; are written to it during the call, and `poison` by slot why an instruction must not run.

(defn- set-source!
  "Sets the source register of an instruction.

  It decides what the immediate means."
  [^ByteBuffer code slot src]
  (let [at (int (inc (* 8 (long slot))))
        registers (bit-and 0xff (.get code at))]
    (.put code at (unchecked-byte
                   (if (= ByteOrder/BIG_ENDIAN (.order code))
                     (bit-or (bit-and 0xf0 registers) (long src))
                     (bit-or (bit-and 0x0f registers) (bit-shift-left (long src) 4)))))))

(defn- immediate ^long [^ByteBuffer code slot]
  (.getInt code (int (+ 4 (* 8 (long slot))))))

(defn- set-immediate! [^ByteBuffer code slot n]
  (.putInt code (int (+ 4 (* 8 (long slot)))) (unchecked-int (long n))))

(defn- set-offset! [^ByteBuffer code slot n]
  (.putShort code (int (+ 2 (* 8 (long slot)))) (short n)))

(defn- set-wide! [code slot n]
  (set-immediate! code slot n)
  (set-immediate! code (inc (long slot)) (bit-shift-right (long n) 32)))

(defn- poison! [{:keys [poison]} ^ByteBuffer code slot reason]
  (core/patch! (.array code) slot {:poison reason} (.order code))
  (vswap! poison assoc slot reason))

(defn- use-map!
  "Makes an instruction refer to a map, at an offset in its value."
  [{:keys [maps fds] :as ctx} code {:keys [slot]} map-name offset]
  (if-let [m (get maps map-name)]
    (do (vswap! fds conj {:slot slot :fd (bpf-map/descriptor m)})
        (when offset
          (set-immediate! code (inc (long slot))
                          (+ (immediate code (inc (long slot))) (long offset)))))
    (poison! ctx code slot (str "map " map-name " was not created, because its :autoload is "
                                "false"))))

(defn- module-fd
  "Returns a descriptor of the BTF of a module, opened once for a load."
  ^Fd [{:keys [temporary module-fds]} module]
  (or (@module-fds module)
      (let [fd (or (kernel.btf/open-named module {:op :load})
                   (throw (externs/missing [] "module" module)))]
        (loaded/undoing! temporary fd #(call/close fd))
        (vswap! module-fds assoc module fd)
        fd)))

(defn- module-index
  "Returns the index of a module in the array of descriptors of a program, from 1."
  [{:keys [fd-array] :as ctx} module]
  (let [fd (module-fd ctx module)
        index (.indexOf ^java.util.List @fd-array fd)]
    (if (neg? index)
      (count (vswap! fd-array conj fd))
      (inc index))))

(defn- use-kernel-function!
  "Makes a call or an address refer to a function of the kernel.

  A weak function that this kernel does not have must not be called, and has the address 0."
  [{:keys [object fds] :as ctx} code {:keys [slot ref path kind]}]
  (let [wanted (val (first ref))
        weak? (:weak (get-in object [:ksyms wanted]))
        {:keys [id module]} (externs/find-type (core/essential-name wanted) :func)]
    (cond
      id (do (set-immediate! code slot id)
             (when module
               (if (= :kfunc kind)
                 (set-offset! code slot (module-index ctx module))
                 (vswap! fds conj {:slot (inc (long slot)) :fd (module-fd ctx module)}))))
      (not weak?) (throw (externs/missing path "function" wanted))
      (= :kfunc kind) (poison! ctx code slot (str "this kernel has no function " wanted))
      :else (do (set-source! code slot 0)
                (set-wide! code slot 0)))))

(defn- use-symbol!
  "Makes an instruction load the address of a symbol of the kernel."
  [{:keys [object addresses fds] :as ctx} code {:keys [slot ref path]}]
  (let [wanted (val (first ref))
        {:keys [weak] type :type} (get-in object [:ksyms wanted])
        {:keys [id module]} (when type (externs/find-type (core/essential-name wanted) :var))]
    ;; The BTF may have variables of which the kernel does not know the address.
    (if (and id (or (not weak) (@addresses wanted)))
      (do (set-source! code slot 3) ; BPF_PSEUDO_BTF_ID
          (set-immediate! code slot id)
          (when module
            (vswap! fds conj {:slot (inc (long slot)) :fd (module-fd ctx module)})))
      (let [address (when-not type (get @addresses wanted))]
        (when-not (or address weak)
          (throw (externs/missing path "variable" wanted)))
        (set-wide! code slot (or address 0))))))

(defn- resolve-reference! [{:keys [object config-layout fds] :as ctx} code
                           {:keys [kind ref slot] :as relocation}]
  (cond
    (bpf-map/bpf-map? ref) (vswap! fds conj {:slot slot :fd (bpf-map/descriptor ref)})
    (#{:kfunc :btf-id} kind) (use-kernel-function! ctx code relocation)
    (= :ksym kind) (use-symbol! ctx code relocation)
    :else
    (let [[k named] (first ref)]
      (use-map! ctx code relocation (map-of-reference object (first ref))
                (case k
                  :variable (get-in object [:variables named :offset])
                  :kconfig (get-in config-layout [:offsets named])
                  nil)))))

(defn- relocate-core!
  "Applies the CO-RE relocations of a linked program."
  [{:keys [local targets poison]} ^ByteBuffer code parts]
  (doseq [{base :slot :keys [program]} parts
          {:keys [slot] :as relocation} (:core program)
          :let [at (+ (long base) (long slot))]]
    (in-path [:programs (:name program) :core slot]
      (let [resolved (core/resolve @local @targets relocation)]
        (core/patch! (.array code) at resolved (.order code))
        (when-let [reason (or (:poison resolved) (:misfit resolved))]
          (vswap! poison assoc at reason))))))

;; ---------------------------------------------------------------- programs

(defn- struct-ops-target
  "Returns the struct and the member that a program implements, as numbers."
  [name {:keys [struct member]}]
  (let [path [:programs name]
        id (externs/type-id (core/essential-name struct) :struct)
        members (when id (:members (blob/record (kernel-btf/running-kernel) id)))
        index (first (keep-indexed (fn [i m] (when (= (clojure.core/name member) (:name m)) i))
                                   members))]
    (when-not id
      (throw (externs/missing path "struct" struct)))
    (when-not index
      (throw (error/error :not-found
                          (str "The struct " struct " of this kernel has no member "
                               (clojure.core/name member))
                          {:bpfmap/op :load :bpfmap/path path
                           :bpfmap/hint (nearest/did-you-mean member (keep :name members))})))
    {:attach-btf-id id :expected-attach-type index}))

(defn- btf-target
  "Returns the fields for a target in the BTF of the kernel or of a module."
  [state {:keys [id module]}]
  (cond-> {:attach-btf-id id}
    module (assoc :attach-btf (module-fd state module))))

(defn- attach-fields
  "Returns the fields of a program that say what it is loaded for."
  [{:keys [implementations options] :as state} name {:keys [type attach-type] :as program}]
  (let [target (get (:attach-to options) name)]
    (cond
      (and (= :struct-ops type) (implementations name))
      (struct-ops-target name (implementations name))

      (= :struct-ops type)
      (throw (invalid [:programs name]
                      (str "The program " name " must be a member of a struct_ops map of the object")
                      "leave it out, or name it in the :contents of the map"))

      target
      {:attach-program (program/descriptor target)
       :attach-btf-id (externs/function-of-program target (:target program)
                                                   [:programs name :target])
       :expected-attach-type (attach-types/numbers attach-type)}

      (= :ext type)
      (throw (invalid [:programs name :target]
                      (str "The program " name " replaces a function of another program, which "
                           "must be given")
                      (str "pass the open program: {:attach-to {" (pr-str name) " program}}")))

      :else
      (cond-> {}
        attach-type (assoc :expected-attach-type (attach-types/numbers attach-type))
        (#{:tracing :lsm} type) (merge (btf-target state (externs/attach-target name program)))))))

(defn- check-program [name {:keys [type attach-type flags section]}]
  (let [path [:programs name]]
    (when (nil? type)
      (throw (invalid (conj path :type)
                      (str "The program " name " must have a type; its section "
                           (error/printed section) " is not known")
                      "set a :type of bpfmap.prog/types, or leave the program out")))
    (when-not (kernel.prog/types type)
      (throw (invalid (conj path :type) (str "Unknown program type " (error/printed type))
                      (nearest/suggestion type (sort (keys kernel.prog/types))
                                          "bpfmap.prog/types for all names"))))
    (when-not (or (nil? attach-type) (attach-types/numbers attach-type))
      (throw (invalid (conj path :attach-type)
                      (str "Unknown attach type " (error/printed attach-type))
                      (nearest/suggestion attach-type (sort (keys attach-types/numbers))
                                          "bpfmap.prog/attach-types for all names"))))
    (when-let [[unknown] (seq (remove #{:sleepable :xdp-has-frags} flags))]
      (throw (invalid (conj path :flags)
                      (str "A flag of a program must be :sleepable or :xdp-has-frags, got "
                           (error/printed unknown)))))))

(defn- tables
  "Returns the BTF of a program, its functions and its source lines; or nil."
  [{{:keys [fd loadable]} :btf} parts]
  (when fd
    (when-let [functions (loadable-btf/func-info loadable parts)]
      {:btf fd
       :func-info functions
       :line-info (loadable-btf/line-info loadable parts)})))

(defn- load-program
  "Loads a linked program; returns `{:program opened :log text}`."
  [{:keys [object options undo] :as state} name {:keys [code parts relocations callbacks]}]
  (let [{:keys [type flags] :as program} (get-in object [:programs name])
        code (.order (ByteBuffer/wrap code) (ByteOrder/nativeOrder))
        ctx (assoc state :fds (volatile! []) :poison (volatile! {}) :fd-array (volatile! []))
        fields (in-path [] (attach-fields state name program))]
    (doseq [relocation relocations]
      (resolve-reference! ctx code relocation))
    (relocate-core! ctx code parts)
    (in-path [:programs name]
      (let [{:keys [fd log]}
            (kernel.prog/load
             (merge {:type (kernel.prog/types type)
                     :name (spec/kernel-name name)
                     :title name
                     :license (or (:license object) "")
                     :insns (.array code)
                     :relocations @(:fds ctx)
                     :functions callbacks
                     :fd-array @(:fd-array ctx)
                     :patch! asm/patch-map-fd!
                     :flags flags
                     :kernel-version (when (= :kprobe type) @(:kernel-version state))
                     :log (:log options)
                     :line #(link/line-at parts %)
                     :poison @(:poison ctx)}
                    (tables state parts)
                    fields)
             {:op :load :program-type type})
            opened (Program. fd type (spec/kernel-name name)
                             (assoc (select-keys program [:section :target :attach-type :flags])
                                    :name name))]
        (loaded/undoing! undo opened #(.close ^Closeable opened))
        {:program opened :log log}))))

;; ---------------------------------------------------------------- contents that are programs

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

(defn- fill-with-programs
  "Writes programs to the maps of programs of the object.

  Slots of programs that are not loaded stay empty. A struct_ops map with the flag `:link` gets its
  value here, because only a link makes the kernel use it; the values of others are returned by name."
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

;; ---------------------------------------------------------------- the whole

(defn- targets-of [{:keys [kernel-btf]}]
  (if kernel-btf (core/targets kernel-btf) (kernel-btf/targets)))

(defn- prepared
  "Returns what can be known of a load without the kernel.

  Checks the object, selects programs and maps, links the programs, and encodes the variables."
  [object options]
  (options/check :load options)
  (check-object object)
  (check-contents object)
  (doseq [[map-name m] (:maps options)]
    (check-given object map-name m))
  (doseq [[name target] (:attach-to options)]
    (check-target object name target))
  (when-let [b (:kernel-btf options)]
    (in-path [:kernel-btf] (blob/check b)))
  (let [implementations (implementations object)
        names (selected object implementations options)
        _ (doseq [name names] (check-program name (get-in object [:programs name])))
        assembler (link/assembler object)
        linked (into {} (map (juxt identity #(link/linked object assembler %))) names)
        relocations (mapcat (comp :relocations val) linked)
        _ (run! #(check-reference object %) relocations)
        references (into #{} (comp (map :ref) (remove bpf-map/bpf-map?) (map first)) relocations)
        b (delay (some-> (:btf object) blob/parse))
        specs (into {}
                    (for [map-name (maps-to-create object options implementations names references)
                          :when (not (contains? (:maps options) map-name))
                          :let [spec (get-in object [:maps map-name])]]
                      [map-name (in-path [:maps map-name]
                                  (doto (spec-to-create object map-name spec)
                                    lifecycle/check-spec))]))]
    (doseq [map-name (concat (keys specs) (keys (:maps options)))
            :when (section? map-name)
            :let [{:keys [type] :as spec} (get-in object [:maps map-name])]]
      (when-not (#{:array :percpu-array} type)
        (throw (invalid [:maps map-name :type]
                        (str "The map of a section must be of type :array or :percpu-array, got "
                             (error/printed type)))))
      (check-variables object map-name (size-of spec)))
    {:object object
     :options options
     :implementations implementations
     :names names
     :linked linked
     :references references
     :specs specs
     :contents (into {} (for [[map-name spec] specs :when (section? map-name)]
                          [map-name (section-bytes object map-name (size-of spec))]))
     :blob b
     :local (delay (core/local @b))
     :targets (delay (targets-of options))
     :addresses (delay (externs/addresses (into [] (comp (filter #(= :ksym (key %))) (map val))
                                                references)))
     :kernel-version (delay (when-not (map-types/at-least? (call/kernel-release) "5.0")
                              (externs/kernel-version)))
     :config-layout (when (some #(= :kconfig (key %)) references)
                      (externs/config-layout (:kconfig object)))}))

(defn load-object
  "Loads an object, as `bpfmap.object/load` describes; returns it open."
  ^Closeable [object options]
  (let [undo (loaded/undo-stack)
        on-failure (loaded/undo-stack)
        temporary (loaded/undo-stack)
        {:keys [names linked] :as state} (prepared object options)]
    (try
      (let [state (-> (assoc state :undo undo :on-failure on-failure :temporary temporary
                             :module-fds (volatile! {}))
                      with-btf
                      with-maps)
            loaded (into {} (map (fn [name] [name (load-program state name (linked name))])) names)
            programs (update-vals loaded :program)
            struct-ops (fill-with-programs state programs)
            {:keys [maps]} state
            given (set (vals (:maps options)))]
        (loaded/loaded object
                       (cond-> {:name (:name object) :license (:license object)
                                :maps maps :programs programs}
                         (seq struct-ops) (assoc :struct-ops struct-ops)
                         (= :stats (:log options))
                         (assoc :stats (update-vals loaded #(verifier-log/stats (:log %))))
                         (= :full (:log options)) (assoc :logs (update-vals loaded :log)))
                       (fn [section] (get maps (map-of-reference object [:section section])))
                       #(not (contains? given %))
                       undo))
      (catch Throwable e
        (doseq [failed [(loaded/undo! on-failure) (loaded/undo! undo)]]
          (when failed (.addSuppressed e failed)))
        (throw e))
      (finally
        (loaded/undo! temporary)))))
