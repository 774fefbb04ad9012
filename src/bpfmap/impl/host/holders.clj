(ns ^:no-doc bpfmap.impl.host.holders
  "Lists the BPF objects of this host: by id, by pin, and by process.

  Others create and remove objects at the same time. Objects that cannot be read are left out of
  the returned vectors, and reported under `:skipped` in their metadata."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.errno :as errno]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.link :as kernel.link]
            [bpfmap.impl.kernel.map :as kernel.map]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.kernel.prog :as kernel.prog]
            [bpfmap.impl.open-object :as open-object]
            [bpfmap.impl.waiting :as waiting]
            [clojure.string :as str])
  (:import (bpfmap.sys Fdinfo)
           (clojure.lang ExceptionInfo)
           (java.io IOException)
           (java.nio.file AccessDeniedException NoSuchFileException)))

(set! *warn-on-reflection* true)

(defn- with-skipped
  "Calls `(f skip)`; returns its vector with the skipped objects in the metadata.

  `(skip place e)` records the exception for a place."
  [f]
  (let [skipped (volatile! [])
        found (f (fn [place e]
                   (vswap! skipped conj
                           (assoc place :error (:bpfmap/error (ex-data e)) :message
                                  (ex-message e)))))]
    (vary-meta found assoc :skipped @skipped)))

(defn- unreadable-error
  "Returns the exception for a file that cannot be read."
  [what op file kind hint cause]
  (error/error kind (str what " cannot be read") {:bpfmap/op op :bpfmap/file file :bpfmap/hint hint}
               cause))

(def ^:private no-file "it does not exist (any more)")
(def ^:private no-permission "this user must have the permission to read it")

(defn- file-error
  "Returns an IOException as an error as data.

  When a process ends, the kernel returns ESRCH, for which Java has no class."
  [^IOException e what op file]
  (let [[kind hint] (condp instance? e
                      NoSuchFileException [:not-found no-file]
                      AccessDeniedException [:permission no-permission]
                      (if (re-find #"No such process" (str (ex-message e)))
                        [:not-found "the process has ended"]
                        [:kernel (ex-message e)]))]
    (unreadable-error what op file kind hint e)))

(defn- outcome-or-throw
  "Returns the outcome of reading a path; throws for a negated errno."
  [outcome path]
  (if-not (and (int? outcome) (neg? (long outcome)))
    outcome
    (let [errno (errno/errno-name (- (long outcome)))
          [kind hint] (case errno
                        :ENOENT [:not-found no-file]
                        :ENOTDIR [:not-found "it is not a directory"]
                        (:EACCES :EPERM) [:permission no-permission]
                        (:EMFILE :ENFILE) [:too-many-files
                                           "raise the limit of open files (ulimit -n, fs.file-max)"]
                        [:kernel
                         (str "the kernel returned " (if (keyword? errno) (name errno) errno))])]
      (throw (unreadable-error (paths/printable path) :pins path kind hint nil)))))

(defmacro ^:private with-file-errors
  "Runs body; converts an IOException to an error as data."
  [what op file & body]
  `(try
     ~@body
     (catch IOException e#
       (throw (file-error e# ~what ~op (str ~file))))))

(defmacro ^:private skip-on-error
  "Runs body; records an error as data for the place and returns nil."
  [skip place & body]
  `(try
     ~@body
     (catch ExceptionInfo e#
       (~skip ~place e#)
       nil)))

;; --- by id

(def ^:private info-of
  "Functions that return the info of a descriptor, by kind of object."
  {:map kernel.map/info, :program kernel.prog/info, :link kernel.link/info})

(defn map-infos
  "Returns the infos of all maps, by ascending id.

  Calls `(skipped id e)` for each map that cannot be opened. Options are those of [[maps]]."
  ([op skipped] (map-infos op skipped nil))
  ([op skipped {:keys [brief row]}]
   (kernel.map/scan {:op op}
                    {:skipped skipped, :brief brief, :row (or row (fn [_ info] info))})))

(defn maps
  "Returns the infos of all maps, by ascending id.

  Options: `:brief`, true to leave out `:memlock` and `:frozen`, which are in a file for each map;
  `:row`, a function of a scanner that has the map open and of the info, which returns the element."
  ([] (maps nil))
  ([options]
   (with-skipped
     (fn [skip]
       (map-infos :list (fn [id e] (skip {:id id} e)) options)))))

(defn- all
  "Returns the infos of all objects of a kind, by ascending id."
  ([kind] (all kind (info-of kind)))
  ([kind info]
   (let [ctx {:op :list}]
     (with-skipped
       (fn [skip]
         (into []
               (keep (fn [id]
                       (skip-on-error skip {:id id}
                         (let [fd (call/open-id kind id ctx)]
                           (try
                             (info fd ctx)
                             (finally (call/close fd)))))))
               (call/ids kind ctx)))))))

(defn programs
  "Returns the infos of all programs, by ascending id.

  With `:brief`, without `:memlock`, which is in a file for each program."
  ([] (programs nil))
  ([{:keys [brief]}] (all :program (if brief kernel.prog/brief-info kernel.prog/info))))

(defn links
  "Returns the infos of all links, by ascending id."
  []
  (all :link))

;; --- pins

(defn- pin
  "Returns the pin at a path: `{:path :kind :id :name :type}`."
  [path]
  (let [ctx {:op :pins :path path}
        fd (call/open-path path ctx)]
    (try
      (let [kind (call/kind-or-throw fd path ctx)]
        (when (= :other kind)
          (throw (error/error :not-supported
                              (str (paths/printable path)
                                   " is a pin of an unknown kind")
                              {:bpfmap/op :pins :bpfmap/file path
                               :bpfmap/hint "it is not a map, program or link"})))
        (into {:path path :kind kind}
              (select-keys ((info-of kind) fd ctx) [:id :name :type])))
      (finally (call/close fd)))))

(defn- pins-below
  "Returns the pins below a directory.

  Does not enter directories on which something else is mounted."
  [directory mount-point? skip]
  (loop [[{:keys [path type]} & more] [{:path directory :type :directory}] found []]
    (case type
      nil found
      :file (recur more
                   (if-let [pin (skip-on-error skip {:path path} (pin path))]
                     (conj found pin)
                     found))
      :directory (if (and (mount-point? path) (not= path directory))
                   (recur more found)
                   (recur (concat (skip-on-error skip
                                    {:path path}
                                    (outcome-or-throw (paths/entries path) path))
                                  more) found))
      (if (int? type) ; a negated errno: it has gone or must not be read
        (do (skip-on-error skip {:path path} (outcome-or-throw type path))
            (recur more found))
        (recur more found)))))

(defn- below? [directory path]
  (and (not= directory path)
       (str/starts-with? path (paths/child directory ""))))

(defn- real-path
  "Returns the path of a directory without symbolic links."
  [directory]
  (let [text (call/path-text directory :pins)
        real (outcome-or-throw (paths/real-path text) text)]
    (when-not real
      (throw (unreadable-error text :pins text :kernel
                               "mount /proc, which is required to resolve the path"
                               nil)))
    (when-not (= :directory (outcome-or-throw (paths/type-of real true) text))
      (outcome-or-throw -20 text)) ; ENOTDIR
    real))

(defn pins
  "Returns the pins on every visible BPF file system, or in and below a directory."
  ([] (pins "/"))
  ([directory]
   (let [directory (real-path directory)
         mounts (with-file-errors "The list of mounts" :pins "/proc/self/mountinfo" (procfs/mounts))
         mount-of (procfs/mount-locator mounts)
         in-sight (filter #(= (:id %) (:id (mount-of (:path %)))) mounts)
         bpf? #(= "bpf" (:type %))
         roots (cond->> (filter #(below? directory %) (map :path (filter bpf? in-sight)))
                 (bpf? (mount-of directory)) (cons directory))]
     (when (and (empty? roots) (not= "/" directory))
       (throw (error/error :not-bpffs
                           (str "Nothing can be pinned below " (paths/printable directory))
                           {:bpfmap/op :pins :bpfmap/file directory
                            :bpfmap/hint (str
                                          "it is not on a BPF file system, and none is mounted "
                                          "below "
                                          "it")})))
     (with-skipped
       (fn [skip]
         (let [mount-point? (set (map :path in-sight))]
           (vec (sort-by :path (mapcat #(pins-below % mount-point? skip) roots)))))))))

(defn pins-by-id
  "Returns the paths of the pins of each object of a kind, by id.

      (get (pins-by-id :map) 12) ;=> [\"/sys/fs/bpf/counts\"]"
  [wanted]
  (reduce (fn [found {:keys [kind id path]}]
            (if (= wanted kind) (update found id (fnil conj []) path) found))
          {} (pins)))

;; --- holders

(defn- invalid [ref op constraint]
  (error/error :invalid-value (str constraint ", got " (error/printed ref))
               {:bpfmap/op op}))

(def ^:private id-keys {:map-id :map, :program-id :program, :link-id :link})

(defn- reference
  "Returns a reference as `[kind id]`."
  [ref op]
  (let [id? #(and (int? %) (<= 0 (long %) 0xffffffff))]
    (cond
      (satisfies? open-object/OpenObject ref) [(open-object/kind ref) (open-object/id ref)]
      (id? ref) [:map ref]
      (and (map? ref) (= 1 (count ref)) (id-keys (key (first ref))) (id? (val (first ref))))
      [(id-keys (key (first ref))) (val (first ref))]
      :else (throw (invalid ref op
                            (str "A reference must be the id of a map, {:map-id n}, "
                                 "{:program-id n}, {:link-id n} or an open object"))))))

(defn links-or-none
  "Returns the infos of all links; none before Linux 5.8, which cannot list them."
  []
  (try
    (links)
    (catch ExceptionInfo e
      (if (= :not-supported (:bpfmap/error (ex-data e))) [] (throw e)))))

(defn- for-processes
  "Returns a vector of `(f pid)` for each process, without nils."
  [f]
  (let [processes (with-file-errors "The list of processes" :holders "/proc" (procfs/processes))]
    (with-skipped
      (fn [skip]
        (into []
              (keep (fn [pid]
                      (skip-on-error skip {:pid pid}
                        (with-file-errors (str "Process " pid)
                          :holders
                          (str "/proc/" pid)
                          (f pid)))))
              processes)))))

(defn- kind-of [^Fdinfo object]
  (keyword (.-kind object)))

(defn holders
  "Returns the processes that have a descriptor of an object, by ascending number."
  [ref]
  (let [[kind id] (reference ref :holders)]
    (for-processes
     (fn [pid]
       (when-let [fds (seq (for [^Fdinfo object (procfs/objects pid)
                                :when (and (= id (.-id object)) (= kind (kind-of object)))]
                            (.-number object)))]
         {:pid pid :command (procfs/command pid) :fds (vec fds)})))))

(def ^:private looks
  "The number of looks that must find a holder.

  A process that lists objects again and again gives each of them the same number, so a look cannot
  tell it from a holder. If it has the object open half of the time, one call in 256 returns it."
  8)

(defn settled
  "Returns the processes that `look` finds, except those that let go soon.

  A process that lists objects has each of them open for a moment, and may do so again and again.
  `look` returns processes as [[holders]] does, and is called again if it finds any. Throws
  `:interrupted`.

      (settled #(holders {:map-id 12}) :put!) ;=> [{:pid 4711 :command \"agent\" :fds [5]}]"
  [look op]
  (loop [found (vec (look)) n 1]
    (if (or (empty? found) (= n (long looks)))
      found
      (do (waiting/sleep 20 op)
          (let [now (into #{} (map (juxt :pid :fds)) (look))]
            (recur (filterv (comp now (juxt :pid :fds)) found) (inc n)))))))

(defn maps-of-process
  "Returns the ids of the maps that a process has open, ascending, each once."
  [pid]
  (with-file-errors (str "Process " pid) :holders (str "/proc/" pid)
    (into [] (distinct)
          (sort (for [^Fdinfo object (procfs/objects pid) :when (= "map" (.-kind object))]
                  (.-id object))))))

(defn all-holders
  "Returns the processes that have descriptors of BPF objects, with those objects.

  By ascending number."
  []
  (for-processes
   (fn [pid]
     (when-let [held (seq (procfs/objects pid))]
       {:pid pid :command (procfs/command pid)
        :holds (into []
                     (comp (map (fn [^Fdinfo object] {:kind (kind-of object) :id (.-id object)}))
                           (distinct))
                     held)}))))

(defn held
  "Returns the processes that have objects open, by kind and id.

  Each process is `{:pid :command}`.

      (get-in (held) [:program 30]) ;=> [{:pid 4711 :command \"agent\"}]"
  []
  (reduce (fn [found [path holder]] (update-in found path (fnil conj []) holder))
          {}
          (for [{:keys [holds] :as process} (all-holders), {:keys [kind id]} holds]
            [[kind id] (dissoc process :holds)])))

(defn- this-process ^long []
  (.pid (java.lang.ProcessHandle/current)))

(defn own-objects
  "Returns the BPF objects that this process has open, each as a `Fdinfo`.

  Empty if its files in /proc cannot be read."
  []
  (try
    (procfs/objects (this-process))
    (catch IOException _ [])))

(defn held-maps
  "Returns the maps that processes have open, by id.

  Each is `{:holders [{:pid :command}], :fdinfo Fdinfo}`, with the fdinfo of one of them. `own` is
  the result of [[own-objects]], from before the caller opens maps on another thread."
  ([] (held-maps (own-objects)))
  ([own]
   (let [this (this-process)
         add (fn [holder held ^Fdinfo object]
               (let [id (.-id object)
                     known (get held id)]
                 (cond
                   (not= "map" (.-kind object)) held
                   (nil? known) (assoc! held id {:holders [holder] :fdinfo object})
                   (identical? holder (peek (:holders known))) held ; by another descriptor
                   :else (assoc! held id (update known :holders conj holder)))))]
     (persistent! (reduce (fn [held [holder objects]] (reduce #(add holder %1 %2) held objects))
                          (transient {})
                          (for-processes
                           (fn [pid]
                             (when-let [objects (seq (if (= pid this) own (procfs/objects pid)))]
                               [{:pid pid :command (procfs/command pid)} objects]))))))))

(defn add-memory
  "Adds `:memlock` and `:frozen` of a map to a row.

  Reads them from the fdinfo of a holder, or opens the map if `fdinfo` is nil. Leaves out fields
  that cannot be read, for example if the map no longer exists.

      (add-memory {} 12 nil) ;=> {:memlock 2304, :frozen false}"
  [row id ^Fdinfo fdinfo]
  (if fdinfo
    (let [memlock (.-memlock fdinfo)
          frozen (.-frozen fdinfo)]
      (cond-> row
        (not (neg? memlock)) (assoc :memlock memlock)
        (not (neg? frozen)) (assoc :frozen (== 1 frozen))))
    (let [ctx {:op :list}]
      (try
        (with-open [fd (kernel.map/open-id id :read-only ctx)]
          (into row (select-keys (kernel.map/info fd ctx) [:memlock :frozen])))
        (catch ExceptionInfo _ row)))))

(defn own-descriptors
  "Returns how many descriptors of a map this process has.

  Returns 0 if its files in /proc cannot be read."
  [id]
  (count (filter #(and (= :map (kind-of %)) (= id (.-id ^Fdinfo %))) (own-objects))))

(defn programs-using
  "Returns the infos of the programs that use a map."
  [ref]
  (let [[kind id] (reference ref :programs-using)]
    (when-not (= :map kind)
      (throw (invalid ref :programs-using
                      "The map must be an id, {:map-id n} or an open map")))
    (let [programs (programs)]
      (with-meta (filterv #(some #{id} (:map-ids %)) programs) (meta programs)))))
