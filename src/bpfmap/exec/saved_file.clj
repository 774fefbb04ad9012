(ns ^:no-doc bpfmap.exec.saved-file
  "The file of a saved map: its spec and entries as EDN.

  The data is written to another file in the same directory, which replaces the file when all data
  is on the disk. So the file is either old or new, and never incomplete.

      {:bpfmap/saved 1
       :at #inst \"…\" :host \"…\"
       :spec {:name \"flows\" :type :lru-hash …}
       :entries [
       [{:src \"10.0.0.1\", :port 443} 1]
       …
       ]}

  The file of a map of maps has `:bpfmap/saved 2`, and each inner map once, by its id at that time:

       :inner {12 {:spec {…} :entries [
       …
       ]}}"
  (:require [bpfmap.error :as error]
            [bpfmap.exec.progress :as progress]
            [bpfmap.impl.edn :as edn]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.impl.user-file :as user-file]
            [bpfmap.spec :as spec])
  (:import (clojure.lang ExceptionInfo)
           (java.io BufferedWriter IOException OutputStreamWriter)
           (java.lang ProcessHandle)
           (java.nio.channels Channels FileChannel OverlappingFileLockException)
           (java.nio.charset StandardCharsets)
           (java.nio.file CopyOption DirectoryIteratorException Files LinkOption
                          NoSuchFileException Path StandardCopyOption StandardOpenOption)
           (java.nio.file.attribute FileAttribute PosixFilePermissions)
           (java.util Set)
           (java.util.concurrent ConcurrentHashMap)
           (java.util.concurrent.atomic AtomicLong)))

(set! *warn-on-reflection* true)

(defn- java-path
  "Returns the Java path of a user's file, the same in every locale."
  ^Path [file]
  (paths/->java (call/path-text file :save)))

(defn- cannot-write [file reason cause]
  (error/error :io (str "Cannot write the file " (error/printed file))
               {:bpfmap/op :save :bpfmap/file file :bpfmap/hint reason} cause))

;; --- writing

(defn- sync-directory
  "Syncs a directory to the disk.

  Ignores file systems that cannot do that."
  [^Path directory]
  (try
    (with-open [channel (FileChannel/open directory
                                          (into-array StandardOpenOption
                                                      [StandardOpenOption/READ]))]
      (.force channel true))
    (catch IOException _ nil)))

(defn- private-file
  "Returns the attributes of a file that only its owner may read.

  The contents of a map can be confidential."
  []
  (into-array FileAttribute
              [(PosixFilePermissions/asFileAttribute
                (PosixFilePermissions/fromString "rw-------"))]))

;; --- files of killed processes

(def ^:private no-attributes (make-array FileAttribute 0))

(def ^:private not-followed (into-array [LinkOption/NOFOLLOW_LINKS]))

(defn- own-file?
  "Returns true if a path is a regular file of this user.

  Other users cannot replace such a file in a directory such as /tmp."
  [^Path file]
  (and (Files/isRegularFile file not-followed)
       (= (Files/getAttribute file "unix:uid" not-followed)
          (Files/getAttribute (paths/->java "/proc/self") "unix:uid" (make-array LinkOption 0)))))

(defn- older-than-this-process?
  "Returns true if a file was last written before this process began.

  An earlier process with the same id wrote it."
  [^Path file]
  (let [began (.orElse (.startInstant (.info (ProcessHandle/current))) nil)]
    (and began
         (neg? (compare (.toInstant (Files/getLastModifiedTime file (make-array LinkOption 0)))
                        began)))))

(defn- part-name [file-name writer]
  (str "." file-name "." writer ".part"))

(def ^:private parts-made (AtomicLong.))

(def ^:private parts-open
  "The files that this process is writing.

  They are removed if a signal ends the process."
  (delay
    (let [files (ConcurrentHashMap/newKeySet)
          remove-all (fn []
                       (doseq [^Path part files]
                         (try (Files/deleteIfExists part) (catch IOException _ nil))))]
      (try
        (.addShutdownHook (Runtime/getRuntime) (Thread. ^Runnable remove-all))
        (catch IllegalStateException _ nil)) ; the process is ending already
      files)))

(defn- writer-name
  "Returns a unique name for one call that writes a file.

  Several threads can write the same file."
  []
  (str (.pid (ProcessHandle/current)) "-" (.incrementAndGet ^AtomicLong parts-made)))

(defn- let-go?
  "Returns true if the lock of a file is free: its writer has ended.

  The id of a process in another container means nothing here."
  [^Path part]
  (with-open [channel (FileChannel/open part #{StandardOpenOption/WRITE LinkOption/NOFOLLOW_LINKS}
                                        no-attributes)]
    (some? (.tryLock channel))))

(defn- remove-parts
  "Removes the files that killed processes left next to a file.

  Ignores files that cannot be removed."
  [^Path directory file-name]
  (try
    (with-open [files (Files/newDirectoryStream directory ^String (part-name "*" "*"))]
      (doseq [^Path part files
              :let [[_ of pid]
                    (re-matches #"\.(.+)\.(\d{1,10})(?:-\d+)?\.part"
                                (paths/file-name (paths/text (paths/of-java part))))
                    pid (some-> pid parse-long)
                    ours? (= pid (.pid (ProcessHandle/current)))]]
        (try
          (when (and (= of file-name)
                     (own-file? part)
                     (if ours?
                       (older-than-this-process? part)
                       (and (.isEmpty (ProcessHandle/of pid)) (let-go? part))))
            (Files/deleteIfExists part))
          (catch IOException _ nil)
          (catch OverlappingFileLockException _ nil))))
    (catch IOException _ nil)
    (catch DirectoryIteratorException _ nil)))

(defn write-whole
  "Calls f with a writer, and replaces a file in one step by what f wrote.

  The file changes when all data is on the disk. If f throws, or the process is killed, the file
  stays as it was. A killed process can leave a file such as `.flows.edn.4711-1.part`; the next
  call that writes the same file removes it. If several threads write the same file, the last one
  wins. Throws `:io`.

      (write-whole \"/tmp/flows.edn\" (fn [writer] (.write writer \"{}\")))"
  [file f]
  (let [target (java-path file)
        no-links (make-array LinkOption 0)
        target (if (Files/exists target no-links)
                 (.toRealPath target no-links)
                 (.toAbsolutePath target))
        place (paths/text (paths/of-java target))
        beside (paths/->java (paths/child (paths/parent place)
                                          (part-name (paths/file-name place) (writer-name))))]
    (when (and (Files/exists target no-links) (not (Files/isRegularFile target no-links)))
      (throw (cannot-write file "it is not a regular file" nil)))
    (try
      (try
        (remove-parts (.getParent target) (paths/file-name place))
        (.add ^Set @parts-open beside)
        (with-open [channel (FileChannel/open beside
                                              #{StandardOpenOption/CREATE_NEW
                                                StandardOpenOption/WRITE} (private-file))
                    writer (BufferedWriter.
                            (OutputStreamWriter. (Channels/newOutputStream channel)
                                                 StandardCharsets/UTF_8))]
          (try
            (.tryLock channel) ; it is free again when this process is killed
            (catch IOException e ; some file systems have no locks
              (when-not (.isOpen channel) (throw e))))
          (f writer)
          (.flush writer)
          (.force channel true))
        (Files/move beside target (into-array CopyOption [StandardCopyOption/ATOMIC_MOVE]))
        (sync-directory (.getParent target))
        (finally
          (Files/deleteIfExists beside)
          (.remove ^Set @parts-open beside)))
      (catch IOException e
        (throw (cannot-write file
                             (cond
                               (not (instance? NoSuchFileException e)) (user-file/reason e)
                               (Files/isDirectory (.getParent target) (make-array LinkOption 0))
                               "no file can be created there"
                               :else "its directory does not exist")
                             e))))))

;; --- reading

(defn- saved-map? [x]
  (and (map? x) (map? (:spec x)) (vector? (:entries x))
       (every? #(and (vector? %) (= 2 (count %))) (:entries x))))

(defn read-file
  "Returns the contents of a saved file: `{:spec :entries …}`.

  A map of maps has `:inner` too. Throws `:io` if the file cannot be read, and `:not-saved` if it
  is not a saved map.

      (:spec (read-file \"/root/flows.edn\")) ;=> {:name \"flows\", :type :lru-hash, …}"
  [file]
  (let [wrong (fn [hint cause]
                (throw (error/error :not-saved (str file " is not a saved map")
                                    {:bpfmap/op :restore :bpfmap/file file :bpfmap/hint hint}
                                    cause)))
        data (try
               (user-file/call-with-reader {:file file :what "the saved map" :op :restore
                                            :progress (progress/counter "bytes read")}
                 (fn [text]
                   (let [reader (edn/bounded-reader text)
                         data (edn/read-form reader {:eof nil})]
                     (when (some? (edn/read-form reader {:eof nil}))
                       (wrong "it has more than one EDN form" nil))
                     data)))
               (catch ExceptionInfo e
                 (if-let [problem (:bpfmap/problem (ex-data e))]
                   (wrong problem e)
                   (throw e))))]
    (when-not (and (saved-map? data)
                   (case (str (:bpfmap/saved data))
                     "1" true
                     "2" (and (map? (:inner data))
                              (every? int? (keys (:inner data)))
                              (every? saved-map? (vals (:inner data))))
                     false))
      (wrong "`bpfmap save` writes a map with :bpfmap/saved, :spec and :entries" nil))
    data))

(defn completed
  "Completes the spec of a file for reading its entries.

      (:key-size (completed {:type :hash :key :u32 :value :u32 :max-entries 1})) ;=> 4"
  [{:keys [type inner-map] :as spec}]
  (spec/complete (cond-> (dissoc spec :pinning)
                   ;; Some files of maps of maps have no :inner-map. Entries do not depend on it.
                   (and (:inner (map-types/types type)) (nil? inner-map))
                   (assoc :inner-map {:type :array :value-size 4 :max-entries 1}))
                 (lifecycle/machine)))

;; --- entries as bytes

(defn in-bytes
  "Returns the entries of a file as bytes, in order.

  Values of a per-CPU map have as many CPUs as the first value. Throws `:invalid-value` for an
  entry that does not fit the completed spec.

      (in-bytes spec [[7 42]]) ;=> [[#bpfmap/bytes \"07 00 00 00\" #bpfmap/bytes \"2a 00 00 00\"]]"
  [{:keys [type] :as spec} entries]
  (let [n (when (:per-cpu (map-types/types type))
            (bounded-count 0x10000 (let [v (second (first entries))] (if (coll? v) v [v]))))
        {:keys [key-in value-in]} (raw-entries/types spec n)]
    (into []
          (comp (progress/counting "entries checked")
                (map (fn [[k v]]
                       (raw-entries/with-entry-context :restore k
                         #(vector (key-in k) (value-in v))))))
          entries)))
