(ns ^:no-doc bpfmap.exec.remembered
  "Types for maps without BTF: those that `types --save` wrote to a file, and those of bpftrace.

  The file is `bpfmap/types.edn` in `XDG_CONFIG_HOME`, or else in `~/.config` of the user who runs
  bpfmap. It has rows by the names of maps:

      {\"flows\" [{:owner \"agent\", :key :u32, :value [:struct [:packets :u64] [:bytes :u64]]}]}

  The owner is the command of a process that has the map open, or the name of a program that uses
  it. A row without an owner is for any map with this name. A row is used only if its sizes fit. The
  row of a ring buffer or perf event array has the type of its events as `:value`. Names of maps may
  be patterns, and symbols stand for keywords.

  bpftrace gives its maps no types, and stores every number in 8 bytes. So a key or value of 8 bytes
  is a `:u64`. The parts of longer ones cannot be known."
  (:require [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.saved-file :as saved-file]
            [bpfmap.exec.selection :as selection]
            [bpfmap.impl.edn :as edn]
            [bpfmap.impl.edn-text :refer [edn-text]]
            [bpfmap.impl.host.holders :as holders]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.whole-names :as whole-names]
            [bpfmap.impl.user-file :as user-file]
            [bpfmap.type :as type]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.io File)
           (java.lang ProcessHandle)
           (java.nio.file Files LinkOption Path)
           (java.nio.file.attribute FileAttribute PosixFilePermissions)))

(set! *warn-on-reflection* true)

;; --- the file

(defn default-file
  "Returns the path of the file, or nil if the user has no home.

      (default-file) ;=> \"/root/.config/bpfmap/types.edn\""
  []
  (let [xdg (System/getenv "XDG_CONFIG_HOME")
        home (System/getenv "HOME")]
    (cond
      (some-> xdg (str/starts-with? "/")) (str xdg "/bpfmap/types.edn")
      (some-> home (str/starts-with? "/")) (str home "/.config/bpfmap/types.edn"))))

(defn- attribute [^Path path name]
  (Files/getAttribute path (str "unix:" name) (make-array LinkOption 0)))

(defn- changeable?
  "Returns true if another user can change a file, or what is in a directory.

  Other users cannot replace a file in a sticky directory, such as /tmp."
  [this-user ^Path path last?]
  (let [mode (long (int (attribute path "mode")))]
    (or (not (or (= 0 (attribute path "uid")) (= this-user (attribute path "uid"))))
        (and (pos? (bit-and mode 022))
             (or last? (zero? (bit-and mode 01000)))))))

(defn- check-trusted
  "Throws `:permission` if another user can change a file or a directory above it."
  [^String file]
  (let [path (.toRealPath (Path/of file (make-array String 0)) (make-array LinkOption 0))
        this-user (attribute (Path/of "/proc/self" (make-array String 0)) "uid")
        places (take-while some? (iterate #(.getParent ^Path %) path))]
    (when-let [place (first (filter #(changeable? this-user % (= path %)) places))]
      (throw (error/error :permission (str "The file of types " (error/shown file) " is not used")
                          {:bpfmap/file file
                           :bpfmap/hint (str "another user can change " place "; use chmod go-w, or"
                                             " pass --types none")})))))

(defn- malformed [file problem]
  (error/error :invalid-value (str "The file of types " (error/shown file) " must be " problem)
               {:bpfmap/file file :bpfmap/hint "such as {\"flows\" [{:key :u32, :value :u64}]}"}))

(defn- row-problem [{:keys [owner key value] :as row}]
  (let [unknown (first (remove #{:owner :key :value} (when (map? row) (keys row))))]
    (cond
      (not (map? row)) "it is not a map"
      unknown (str (error/printed unknown) " is not one of :owner, :key and :value")
      (not (or (nil? owner) (string? owner))) "the owner is not text"
      :else (some (fn [[side type]]
                    (when (some? type)
                      (when-let [problem (type/problem type)]
                        (str "the " (name side) " is not a type: "
                             (str/replace problem #"^\[\]: " "")))))
                  {:key key :value value}))))

(def ^:private largest-file "The largest file of types, in bytes." (* 4 1024 1024))

(defn- source [file]
  {:file file :what "the file of types" :most largest-file})

(defn- read-file
  "Returns the rows in a file by the names of maps; nil if it does not exist."
  [^String file]
  (when (.exists (File. file))
    (check-trusted file)
    (let [by-name (try
                    (edn/read-text (user-file/text-in (source file)))
                    (catch ExceptionInfo e
                      (throw (if-let [problem (:bpfmap/problem (ex-data e))]
                               (malformed file (str "EDN (" problem ")"))
                               e))))]
      (when-not (and (map? by-name) (every? #(or (string? %) (ident? %)) (keys by-name))
                     (every? sequential? (vals by-name)))
        (throw (malformed file "a map of names of maps to vectors of types")))
      (into {}
            (for [[given rows] by-name
                  :let [map-name (if (string? given) given (name given))]]
              [map-name (mapv (fn [row]
                                (let [row (arguments/with-keywords row)]
                                  (when-let [problem (row-problem row)]
                                    (throw (malformed file
                                                      (str "a map of names of maps to vectors of"
                                                           " types (" map-name ": " problem ")"))))
                                  row))
                              rows)])))))

;; --- owners

(defn- owners
  "Returns the commands and programs that use a map, as a set of names."
  [id]
  (let [this (.pid (ProcessHandle/current))]
    (into (into #{} (comp (remove #(= this (:pid %))) (map :command))
                (get-in (holders/held-maps) [id :holders]))
          (comp (filter #(some #{id} (:map-ids %))) (map :name))
          (holders/programs {:brief true}))))

;; --- finding types

(defn- size-of [type]
  (try (type/size type) (catch ExceptionInfo _ nil)))

(defn- misfit
  "Returns the side and size of a row that do not fit a map's info, or nil."
  [{:keys [type key-size value-size]} {:keys [key value]}]
  (some (fn [[side type size]]
          (when (and type (not= size (size-of type))) [side (size-of type)]))
        (cond-> [[:key key key-size]]
          (not (map-types/event-types type)) (conj [:value value value-size]))))

(defn- of-bpftrace
  "Returns the types of a map of bpftrace that are sure, or nil."
  [{:keys [key-size value-size]}]
  (not-empty (cond-> {}
               (= 8 key-size) (assoc :key :u64)
               (= 8 value-size) (assoc :value :u64))))

(defn- look-up
  "Returns what a file of types has for a map: `{:file :rows :names :row}`.

  `:names` is a delay with the names of the owners, `:row` the row to use."
  [{:keys [id] :as info} types]
  (let [file (if (= "bpftrace" types) nil (or types (default-file)))
        rows (when file
               (when (and types (not (.exists (File. ^String file))))
                 (throw (user-file/refusal (source file) "there is no such file" nil)))
               (mapcat val (whole-names/for-name (read-file file) info selection/whole-name)))
        fitting (remove #(misfit info %) rows)
        names (delay (owners id))]
    {:file file :rows rows :names names
     :row (or (some #(when (contains? @names (:owner %)) %) (filter :owner fitting))
              (first (remove :owner fitting)))}))

(defn find-types
  "Returns the types for a map without BTF, or nil.

  As `{:key :value :from}`, from the info of the map. `types` is a file, or nil for the user's own;
  `\"bpftrace\"` or `\"none\"`. For a ring buffer or perf event array, `:value` is the type of its
  events. Throws `:permission` for a file that another user can change.

      (find-types {:id 12 :name \"AT_n\" :key-size 8 :value-size 4} nil) ;=> {:key :u64, :from \"bpftrace\"}"
  [{:keys [name] :as info} types]
  (when-not (= "none" types)
    (let [{:keys [file row names]} (look-up info types)]
      (cond
        row (assoc (select-keys row [:key :value]) :from file)
        (or (= "bpftrace" types)
            (and (nil? types) (str/starts-with? (str name) "AT_") (contains? @names "bpftrace")))
        (some-> (of-bpftrace info) (assoc :from "bpftrace"))))))

(defn why-unused
  "Returns the reason why none of a file's types for a map is used, or nil.

  It is nil if the file has none. Takes the same arguments as [[find-types]].

      (why-unused {:id 12 :name \"flows\" :key-size 4 :value-size 24} nil)
      ;=> \"the types for its name in /root/.config/bpfmap/types.edn are for values of 16 bytes, not 24\""
  [info types]
  (when-not (= "none" types)
    (let [{:keys [file rows row]} (look-up info types)
          sizes (keep #(misfit info %) rows)]
      (when (and (seq rows) (not row))
        (str "the types for its name in " (error/shown file) " are for "
             (if (= (count sizes) (count rows))
               (let [[side size] (first sizes)]
                 (str (clojure.core/name side) "s of " (error/plural size "byte") ", not "
                      (info ({:key :key-size :value :value-size} side))))
               (str "maps that " (error/list-of (distinct (keep :owner rows)))
                    " uses, and this one is not")))))))

;; --- saving types

(defn- make-directory [^String file]
  (Files/createDirectories (.toPath (.getParentFile (File. file)))
                           (into-array FileAttribute
                                       [(PosixFilePermissions/asFileAttribute
                                         (PosixFilePermissions/fromString "rwx------"))])))

(defn- known
  "Returns the types of a spec without sides whose type is only bytes."
  [{:keys [key-size value-size]} {:keys [key value]}]
  (cond-> {}
    (and key (not= [:bytes key-size] key)) (assoc :key key)
    (and value (not= [:bytes value-size] value)) (assoc :value value)))

(defn save
  "Writes the types of a map to the file, and returns the row with the `:file`.

  Takes the info of an open map and its types. Replaces the row with the same name, owner and sizes.

      (save {:id 12 :name \"flows\"} {:key :u32 :value :u64} nil) ;=> {:file \"/root/.config/bpfmap/types.edn\", :owner \"agent\", :key :u32, :value :u64}"
  [{:keys [id name] :as info} spec types]
  (let [file (or types (default-file))
        owner (first (sort (owners id)))
        known (known info spec)
        row (cond->> known owner (merge {:owner owner}))]
    (when (or (contains? #{"none" "bpftrace"} types) (nil? file))
      (throw (error/error :invalid-value "There is no file to save the types in"
                          {:bpfmap/hint "set HOME, or pass the path of a file as :types (--types)"})))
    (when-not (seq name)
      (throw (error/error :not-supported "The types of a map without a name cannot be saved"
                          {:bpfmap/hint "pass --key-type and --value-type"})))
    (when (empty? known)
      (throw (error/error :usage (str "Map " (error/id-and-name info) " has no types to save")
                          {:bpfmap/hint (if (map-types/event-types (:type info))
                                          "pass the type of its events as --value-type"
                                          "pass --key-type and --value-type")})))
    (make-directory file)
    (let [before (or (read-file file) {})
          rows (conj (filterv #(or (not= owner (:owner %)) (misfit info %)) (get before name)) row)
          after (into (sorted-map) (assoc before name rows))]
      (saved-file/write-whole
       file
       (fn [^java.io.BufferedWriter writer]
         (.write writer
                 (str "{" (str/join "\n "
                                    (for [[name rows] after
                                          :let [start (str (edn-text name) " [")
                                                blanks (.repeat " " (inc (count start)))]]
                                      (str start
                                           (str/join (str "\n" blanks) (map edn-text rows))
                                           "]")))
                      "}\n"))))
      (assoc row :file file))))
