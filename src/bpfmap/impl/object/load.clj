(ns ^:no-doc bpfmap.impl.object.load
  "Loads an object into the kernel: BTF, maps, programs, and contents that refer to both.

  Everything that is made goes on a stack, from which it is given back if a step fails."
  (:require [bpfmap.asm :as asm]
            [bpfmap.error :as error]
            [bpfmap.impl.btf.blob :as blob]
            [bpfmap.impl.feature.btf :as feature.btf]
            [bpfmap.impl.host.kernel-btf :as kernel-btf]
            [bpfmap.impl.kernel.btf :as kernel.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.prog :as kernel.prog]
            [bpfmap.impl.link.attach-types :as attach-types]
            [bpfmap.impl.link.usdt :as usdt]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.bpf-map :as bpf-map]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.impl.object.core :as core]
            [bpfmap.impl.object.externs :as externs]
            [bpfmap.impl.object.link :as link]
            [bpfmap.impl.object.load-error :refer [in-path invalid unknown-name]]
            [bpfmap.impl.object.load-maps :as load-maps]
            [bpfmap.impl.object.loadable-btf :as loadable-btf]
            [bpfmap.impl.object.loaded :as loaded]
            [bpfmap.impl.object.references :as references]
            [bpfmap.impl.object.selection :as selection]
            [bpfmap.impl.object.undo :as undo]
            [bpfmap.impl.open-object :as open-object]
            [bpfmap.impl.options :as options]
            [bpfmap.impl.prog.function :as function]
            [bpfmap.impl.prog.program :as program]
            [bpfmap.impl.prog.verifier-log :as verifier-log]
            [bpfmap.spec :as spec]
            [bpfmap.type :as type]
            [clojure.string :as str])
  (:import (bpfmap.impl.prog.program Program)
           (clojure.lang ExceptionInfo)
           (java.io Closeable)
           (java.nio ByteBuffer ByteOrder)))

(set! *warn-on-reflection* true)

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
                 (when-not (kernel.btf/refused? e)
                   (throw e))))]
      (if-not fd
        state
        (do (undo/push! temporary fd #(call/close fd))
            (assoc state
                   :btf {:fd fd :loadable l}
                   :types (types-of-maps @blob)))))))

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
    module (assoc :attach-btf (references/module-fd state module))))

(defn- with-attach-type
  "Returns a program with the attach type that its section leaves open.

  A program for USDT probes is loaded for links of many uprobes if the kernel has them."
  [{:keys [type attach-type section] :as program}]
  (cond-> program
    (and (= :kprobe type) (nil? attach-type) section
         (re-find #"^\??usdt(\.s)?(/|$)" section)
         @usdt/one-link-for-all-places)
    (assoc :attach-type :trace-uprobe-multi)))

(defn- descriptions
  "Returns the maps by which a program finds the arguments of USDT probes, or nil.

  The keys are those of `bpfmap.impl.link.usdt/describe!`."
  [{:keys [object maps]} {:keys [type]}]
  (let [specs "__bpf_usdt_specs"]
    (when (and (= :kprobe type) (contains? maps specs))
      {:specs (maps specs)
       :addresses (maps "__bpf_usdt_ip_to_spec_id")
       :offsets (type/offsets (get-in object [:maps specs :value]))
       :cookies (externs/has-cookies?)})))

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
       :attach-btf-id (function/id-of (program/descriptor target) (:target program) {:op :load}
                                      {:bpfmap/path [:programs name :target]})
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
  (let [{:keys [type flags] :as program} (with-attach-type (get-in object [:programs name]))
        usdt (descriptions state program)
        other (get-in options [:attach-to name])
        code (.order (ByteBuffer/wrap code) (ByteOrder/nativeOrder))
        ctx (assoc state :fds (volatile! []) :poison (volatile! {}) :fd-array (volatile! []))
        fields (in-path [] (attach-fields state name program))]
    (doseq [relocation relocations]
      (references/resolve-reference! ctx code relocation))
    (references/relocate-core! ctx code parts)
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
                             (cond-> (assoc (select-keys program [:section :target :attach-type
                                                                  :flags])
                                            :name name)
                               usdt (assoc :usdt usdt)
                               other (assoc :of-program {:program other
                                                         :id (open-object/id other)})))]
        (undo/push! undo opened #(.close ^Closeable opened))
        {:program opened :log log}))))

;; ---------------------------------------------------------------- the whole

(defn- targets-of [{:keys [kernel-btf]}]
  (if kernel-btf (core/targets kernel-btf) (kernel-btf/targets)))

(defn- prepared
  "Returns what can be known of a load without the kernel.

  Checks the object, selects programs and maps, links the programs, and encodes the variables."
  [object options]
  (options/check :load options)
  (selection/check-object object)
  (selection/check-contents object)
  (doseq [[map-name m] (:maps options)]
    (load-maps/check-given object map-name m))
  (doseq [[name target] (:attach-to options)]
    (check-target object name target))
  (when-let [b (:kernel-btf options)]
    (in-path [:kernel-btf] (blob/check b)))
  (let [implementations (selection/implementations object)
        names (selection/selected object implementations options)
        _ (doseq [name names] (check-program name (get-in object [:programs name])))
        assembler (link/assembler object)
        linked (into {} (map (juxt identity #(link/linked object assembler %))) names)
        relocations (mapcat (comp :relocations val) linked)
        _ (run! #(selection/check-reference object %) relocations)
        references (into #{} (comp (map :ref) (remove bpf-map/bpf-map?) (map first)) relocations)
        b (delay (some-> (:btf object) blob/parse))
        specs (into {}
                    (for [map-name (selection/maps-to-create object options implementations names
                                                             references)
                          :when (not (contains? (:maps options) map-name))
                          :let [spec (get-in object [:maps map-name])]]
                      [map-name (in-path [:maps map-name]
                                  (doto (load-maps/spec-to-create object map-name spec)
                                    lifecycle/check-spec))]))]
    (doseq [map-name (concat (keys specs) (keys (:maps options)))
            :when (selection/section? map-name)
            :let [{:keys [type] :as spec} (get-in object [:maps map-name])]]
      (when-not (#{:array :percpu-array} type)
        (throw (invalid [:maps map-name :type]
                        (str "The map of a section must be of type :array or :percpu-array, got "
                             (error/printed type)))))
      (load-maps/check-variables object map-name (load-maps/size-of spec)))
    {:object object
     :options options
     :implementations implementations
     :names names
     :linked linked
     :references references
     :specs specs
     :contents (into {} (for [[map-name spec] specs :when (selection/section? map-name)]
                          [map-name (load-maps/section-bytes object map-name
                                                             (load-maps/size-of spec))]))
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
  (let [undo (undo/stack)
        on-failure (undo/stack)
        temporary (undo/stack)
        {:keys [names linked] :as state} (prepared object options)]
    (try
      (let [state (-> (assoc state :undo undo :on-failure on-failure :temporary temporary
                             :module-fds (volatile! {}))
                      with-btf
                      load-maps/with-maps)
            loaded (into {} (map (fn [name] [name (load-program state name (linked name))])) names)
            programs (update-vals loaded :program)
            struct-ops (load-maps/fill-with-programs state programs)
            {:keys [maps]} state
            given (set (vals (:maps options)))]
        (loaded/loaded object
                       (cond-> {:name (:name object) :license (:license object)
                                :maps maps :programs programs}
                         (seq struct-ops) (assoc :struct-ops struct-ops)
                         (= :stats (:log options))
                         (assoc :stats (update-vals loaded #(verifier-log/stats (:log %))))
                         (= :full (:log options)) (assoc :logs (update-vals loaded :log)))
                       (fn [section]
                         (get maps (selection/map-of-reference object [:section section])))
                       #(not (contains? given %))
                       undo))
      (catch Throwable e
        (doseq [failed [(undo/all! on-failure) (undo/all! undo)]]
          (when failed (.addSuppressed e failed)))
        (throw e))
      (finally
        (undo/all! temporary)))))
