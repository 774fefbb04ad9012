(ns ^:no-doc bpfmap.impl.host.inventory
  "Everything of BPF on this host: by id, by pin, and by who holds it.

  Others make and remove objects meanwhile. What cannot be read is left out of
  the vectors returned and noted in their metadata, under `:skipped`."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.errno :as errno]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.link :as link]
            [bpfmap.impl.kernel.map :as map]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.kernel.prog :as progs]
            [bpfmap.impl.map.references :as references]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.io IOException)
           (java.nio.file AccessDeniedException NoSuchFileException)))

(set! *warn-on-reflection* true)

(defn- noting-skips
  "Calls f with a function of a place and the exception that it met; returns f's vector with those
  in its metadata."
  [f]
  (let [skipped (volatile! [])
        found (f (fn [place e]
                   (vswap! skipped conj
                           (assoc place :error (:bpfmap/error (ex-data e)) :message
                                  (ex-message e)))))]
    (vary-meta found assoc :skipped @skipped)))

(defn- unreadable
  "The exception for a file that cannot be read."
  [what op file kind hint cause]
  (error/error kind (str what " cannot be read") {:bpfmap/op op :bpfmap/file file :bpfmap/hint hint}
               cause))

(def ^:private no-file "it is not there, or no longer")
(def ^:private no-permission "this user may not look into it")

(defn- file-error
  "An IOException as an error as data. The kernel answers ESRCH, which Java has no name for, when
  a process ends."
  [^IOException e what op file]
  (let [[kind hint] (condp instance? e
                      NoSuchFileException [:not-found no-file]
                      AccessDeniedException [:permission no-permission]
                      (if (re-find #"No such process" (str (ex-message e)))
                        [:not-found "the process has ended"]
                        [:kernel (ex-message e)]))]
    (unreadable what op file kind hint e)))

(defn- checked
  "Returns the outcome of reading a path; throws the error of a negated errno."
  [outcome path]
  (if-not (and (int? outcome) (neg? (long outcome)))
    outcome
    (let [errno (errno/errno-name (- (long outcome)))
          [kind hint] (case errno
                        :ENOENT [:not-found no-file]
                        :ENOTDIR [:not-found "it is no directory"]
                        (:EACCES :EPERM) [:permission no-permission]
                        (:EMFILE :ENFILE) [:too-many-files
                                           "no descriptor is left (ulimit -n, fs.file-max)"]
                        [:kernel
                         (str "the kernel answered " (if (keyword? errno) (name errno) errno))])]
      (throw (unreadable (paths/printed path) :pins path kind hint nil)))))

(defmacro ^:private reading-file
  "Runs body; an IOException of it becomes an error as data."
  [what op file & body]
  `(try
     ~@body
     (catch IOException e#
       (throw (file-error e# ~what ~op (str ~file))))))

(defmacro ^:private skipping
  "Runs body; what it throws as data is noted at the place, and the value is nil."
  [skip place & body]
  `(try
     ~@body
     (catch ExceptionInfo e#
       (~skip ~place e#)
       nil)))

;; --- by id

(def ^:private info-of
  "By kind of object: the info of an open descriptor."
  {:map map/info, :program progs/info, :link link/info})

(defn map-infos
  "What the kernel says of every map, by ascending id; calls `skipped` with the error of each that
  cannot be opened. With `brief?`, without :memlock and :frozen, which are in a file for each map.

  With `more`, each element is `(more fd info)`, called while the map is open."
  ([op skipped] (map-infos op skipped false))
  ([op skipped brief?] (map-infos op skipped brief? nil))
  ([op skipped brief? more]
   (let [ctx {:op op}
         info (fn [id]
                (try
                  (let [fd (map/by-id id :read-only ctx)]
                    (try
                      (let [info (if brief? (map/info fd ctx nil) (map/info fd ctx))]
                        (if more (more fd info) info))
                      (finally (call/close fd))))
                  (catch ExceptionInfo e
                    (skipped id e)
                    nil)))]
     (loop [ids (seq (call/ids :map ctx)) found (transient [])]
       (if ids
         (let [one (info (first ids))]
           (recur (next ids) (if one (conj! found one) found)))
         (persistent! found))))))

(defn maps
  "Returns the infos of all maps, by ascending id; with `brief?`, without :memlock and :frozen.

  `more` is passed to [[map-infos]]."
  ([] (maps false))
  ([brief?] (maps brief? nil))
  ([brief? more]
   (noting-skips
    (fn [skip]
      (map-infos :list (fn [id e] (skip {:id id} e)) brief? more)))))

(defn- all
  "The infos of all objects of a kind, by ascending id."
  [kind]
  (let [ctx {:op :list}]
    (noting-skips
     (fn [skip]
       (into []
             (keep (fn [id]
                     (skipping skip {:id id}
                       (let [fd (call/by-id kind id ctx)]
                         (try
                           ((info-of kind) fd ctx)
                           (finally (call/close fd)))))))
             (call/ids kind ctx))))))

(defn programs
  "The infos of all programs, by ascending id."
  []
  (all :program))

(defn links
  "The infos of all links, by ascending id."
  []
  (all :link))

;; --- pins

(defn- pin
  "What is pinned at a path."
  [path]
  (let [ctx {:op :pins :path path}
        fd (call/by-path path ctx)]
    (try
      (let [kind (call/kind-or-throw fd path ctx)]
        (when (= :other kind)
          (throw (error/error :not-supported
                              (str (paths/printed path)
                                   " holds something that bpfmap does not know")
                              {:bpfmap/op :pins :bpfmap/file path
                               :bpfmap/hint "it is no map, program or link"})))
        (into {:path path :kind kind}
              (select-keys ((info-of kind) fd ctx) [:id :name :type])))
      (finally (call/close fd)))))

(defn- walk
  "The pins below a directory, without entering a directory in which something else is mounted."
  [directory mount-point? skip]
  (loop [[{:keys [path type]} & more] [{:path directory :type :directory}] found []]
    (case type
      nil found
      :file (recur more
                   (if-let [pin (skipping skip {:path path} (pin path))] (conj found pin) found))
      :directory (if (and (mount-point? path) (not= path directory))
                   (recur more found)
                   (recur (concat (skipping skip {:path path} (checked (paths/entries path) path))
                                  more) found))
      (if (int? type) ; it is gone, or nobody may look at it
        (do (skipping skip {:path path} (checked type path))
            (recur more found))
        (recur more found)))))

(defn- below? [directory path]
  (and (not= directory path)
       (str/starts-with? path (paths/child directory ""))))

(defn- real-path
  "Where a directory is, without symbolic links."
  [directory]
  (let [text (call/path-text directory :pins)
        real (checked (paths/real-path text) text)]
    (when-not real
      (throw (unreadable text :pins text :kernel "where it is cannot be told: /proc is not mounted"
                         nil)))
    (when-not (= :directory (checked (paths/type-of real true) text))
      (checked -20 text)) ; ENOTDIR
    real))

(defn pins
  "What is pinned on every BPF file system in sight, or in and below a directory."
  ([] (pins "/"))
  ([directory]
   (let [directory (real-path directory)
         mounts (reading-file "The list of mounts" :pins "/proc/self/mountinfo" (procfs/mounts))
         mount-of (procfs/locator mounts)
         in-sight (filter #(= (:id %) (:id (mount-of (:path %)))) mounts)
         bpf? #(= "bpf" (:type %))
         roots (cond->> (filter #(below? directory %) (map :path (filter bpf? in-sight)))
                 (bpf? (mount-of directory)) (cons directory))]
     (when (and (empty? roots) (not= "/" directory))
       (throw (error/error :not-bpffs (str "Nothing can be pinned below " (paths/printed directory))
                           {:bpfmap/op :pins :bpfmap/file directory
                            :bpfmap/hint "it is not on a BPF file system, and none is mounted below it"})))
     (noting-skips
      (fn [skip]
        (let [mount-point? (set (map :path in-sight))]
          (vec (sort-by :path (mapcat #(walk % mount-point? skip) roots)))))))))

;; --- who holds what

(defn- invalid [ref op hint]
  (error/error :invalid-value (str "Not a reference: " (pr-str (error/shown ref)))
               {:bpfmap/op op :bpfmap/hint hint}))

(def ^:private id-keys {:map-id :map, :program-id :program, :link-id :link})

(defn- reference
  "What is meant, as `[kind id]`."
  [ref op]
  (let [id? #(and (int? %) (<= 0 (long %) 0xffffffff))]
    (cond
      (satisfies? references/Open ref) [(references/kind ref) (references/id ref)]
      (id? ref) [:map ref]
      (and (map? ref) (= 1 (count ref)) (id-keys (key (first ref))) (id? (val (first ref))))
      [(id-keys (key (first ref))) (val (first ref))]
      :else (throw (invalid ref op
                            (str
                             "it is the id of a map, {:map-id n}, {:program-id n} or {:link-id n}, "
                                 "or a map, program or attachment that is open here"))))))

(defn- in-processes
  "Calls f with each process's number, and puts what it returns for each into a vector; a nil is
  left out."
  [f]
  (let [processes (reading-file "The list of processes" :holders "/proc" (procfs/processes))]
    (noting-skips
     (fn [skip]
       (into []
             (keep (fn [pid]
                     (skipping skip {:pid pid}
                       (reading-file (str "Process " pid) :holders (str "/proc/" pid)
                         (f pid)))))
             processes)))))

(defn holders
  "The processes that have a descriptor of an object, by ascending number."
  [ref]
  (let [wanted (reference ref :holders)]
    (in-processes
     (fn [pid]
       (when-let [fds (seq (for [[fd object] (procfs/objects pid) :when (= wanted object)] fd))]
         {:pid pid :command (procfs/command pid) :fds (vec fds)})))))

(defn all-holders
  "The processes that have a descriptor of anything of BPF, with what they hold, by ascending
  number."
  []
  (in-processes
   (fn [pid]
     (when-let [held (seq (distinct (vals (procfs/objects pid))))]
       {:pid pid :command (procfs/command pid)
        :holds (mapv (fn [[kind id]] {:kind kind :id id}) held)}))))

(defn programs-using
  "The infos of the programs that use a map."
  [ref]
  (let [[kind id] (reference ref :programs-using)]
    (when-not (= :map kind)
      (throw (invalid ref :programs-using
                      "it takes a map: an id, {:map-id n}, or one that is open here")))
    (let [programs (programs)]
      (with-meta (filterv #(some #{id} (:map-ids %)) programs) (meta programs)))))
