(ns ^:no-doc bpfmap.exec.backup
  "The commands `save` and `restore`: a map's spec and contents as EDN in a file.

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
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.confirm :as confirm]
            [bpfmap.exec.input :as input]
            [bpfmap.exec.progress :as progress]
            [bpfmap.impl.edn :as edn]
            [bpfmap.impl.edn-text :refer [edn-text]]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.map-types :as map-types]
            [bpfmap.impl.map.lifecycle :as lifecycle]
            [bpfmap.impl.map.raw-entries :as raw-entries]
            [bpfmap.spec :as spec])
  (:import (clojure.lang ExceptionInfo)
           (java.io BufferedWriter FilterReader IOException OutputStreamWriter
                    PushbackReader Reader)
           (java.lang ProcessHandle)
           (java.net InetAddress)
           (java.nio.channels Channels ClosedByInterruptException FileChannel
                              OverlappingFileLockException)
           (java.nio.charset StandardCharsets)
           (java.nio.file AccessDeniedException CopyOption DirectoryIteratorException
                          FileSystemException Files LinkOption NoSuchFileException Path
                          StandardCopyOption StandardOpenOption)
           (java.nio.file.attribute FileAttribute PosixFilePermissions)
           (java.util ArrayList HashSet Map Set)
           (java.util.concurrent ConcurrentHashMap)
           (java.util.concurrent.atomic AtomicLong)))

(set! *warn-on-reflection* true)

(defn- java-path
  "Returns the Java path of a user's file, the same in every locale."
  ^Path [file]
  (paths/->java (call/path-text file :save)))

(defn- file-error
  "Returns an IOException as an `:io` error."
  [^IOException e op file what]
  (let [reason (condp instance? e
                 ClosedByInterruptException "the thread was interrupted"
                 NoSuchFileException "no such file or directory"
                 AccessDeniedException "permission denied"
                 FileSystemException (or (.getReason ^FileSystemException e) (ex-message e))
                 (ex-message e))]
    (error/error :io (str file " cannot be " what)
                 {:bpfmap/op op :bpfmap/file file :bpfmap/hint reason} e)))

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
      (throw (error/error :io (str file " cannot be written") {:bpfmap/op :save :bpfmap/file file
                                                               :bpfmap/hint "it is not a regular file"})))
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
        (throw (file-error e :save file "written"))))))

(defn- write-line [^BufferedWriter writer text]
  (.write writer ^String text)
  (.newLine writer))

(defn- host-name []
  (try (.getHostName (InetAddress/getLocalHost)) (catch IOException _ nil)))

;; --- maps that cannot be restored

(def ^:private not-restored
  "The reasons why values cannot be restored, by their kind in the kernel."
  {:socket-cookie "the kernel returns only the cookies of sockets, by which no socket can be found"
   :functions "restoring its value would register it with the kernel"})

(defn- why-unsavable
  "Returns the reason why the contents of a map cannot be restored, or nil."
  [m]
  (let [{:keys [type value-size]} (bpf/spec m)
        {:keys [ops refers]} (input/row-of m)]
    (or (map-types/alternative type :reduce value-size)
        (when-not (:reduce ops) "the kernel cannot list its entries")
        (not-restored (get-in refers [:value :out]))
        (when-not (:put! ops)
          (str "they cannot be restored: " (map-types/alternative type :put! value-size))))))

(defn- unsavable ^Throwable [m why]
  (error/error :not-supported
               (str "The contents of map " (error/id-and-name (bpf/info m)) ", "
                    (name (:type (bpf/spec m)))
                    ", cannot be saved")
               {:bpfmap/op :save :bpfmap/map (select-keys (bpf/info m) [:id :name :type])
                :bpfmap/hint why}))

(defn- check-savable [m]
  (when-let [why (why-unsavable m)]
    (throw (unsavable m why))))

(defn- spec-to-save
  "Returns the spec of a map for a file.

  Throws `:not-supported` if it contains functions."
  [m]
  (let [spec (cond-> (bpf/spec m) (:frozen (bpf/info m)) (assoc :freeze true))]
    (when (some fn? (tree-seq coll? seq spec))
      (throw (unsavable m
                        "its types contain functions ([:via …]); give --key-type or --value-type without them")))
    spec))

;; --- maps of maps

(defn- inner-ids
  "Returns the ids of the maps in a map of maps, each once."
  [m]
  (into [] (comp (map (comp :map-id val)) (distinct)) m))

(defn- open-inner
  "Opens an inner map.

  Throws `:not-found` if the map was freed."
  ^java.io.Closeable [id]
  (let [m (bpf/open {:id id} {:access :read-only})]
    (try
      (check-savable m)
      m
      (catch Throwable e
        (bpf/close m)
        (throw e)))))

(defn- with-template
  "Returns the spec of a map of maps with the spec of its inner maps.

  The kernel reports that spec only through a map that is in it."
  [spec m ids]
  (cond
    (:inner-map spec) spec
    (empty? ids) (throw (unsavable m
                                   "it is empty, so the spec of its inner maps is unknown"))
    :else (with-open [inner (open-inner (first ids))]
            (assoc spec :inner-map (dissoc (spec-to-save inner) :name :freeze :pinning)))))

;; --- writing a map

(defn- write-entries
  "Writes entries as the lines of a vector and returns their number."
  [writer entries]
  (let [written (volatile! 0)]
    (write-line writer "[")
    (run! (fn [[k v]]
            (vswap! written inc)
            (write-line writer (str "[" (edn-text k) " " (edn-text v) "]")))
          entries)
    (.write ^BufferedWriter writer "]")
    @written))

(defn- write-inner
  "Writes the maps of a map of maps, by id."
  [^BufferedWriter writer ids]
  (.write writer "\n :inner {")
  (doseq [id ids]
    (with-open [m (open-inner id)]
      (write-line writer "")
      (.write writer (str id " {:spec " (edn-text (spec-to-save m)) "\n :entries "))
      (write-entries writer m)
      (.write writer "}")))
  (.write writer "}"))

(defn- write-map
  "Writes a map as EDN and returns the number of its entries."
  [^BufferedWriter writer m]
  (let [spec (spec-to-save m)
        ids (when (:inner? (input/row-of m)) (inner-ids m))
        spec (if ids (with-template spec m ids) spec)
        host (host-name)]
    (write-line writer (str "{:bpfmap/saved " (if ids 2 1) "\n :at " (edn-text (java.util.Date.))
                            (when host (str "\n :host " (edn-text host)))))
    (.write writer (str " :spec " (edn-text spec) "\n :entries "))
    (let [written (write-entries writer
                                 (eduction (if ids (filter (comp (set ids) :map-id val)) identity)
                                           (progress/counting "entries") m))]
      (when ids (write-inner writer ids))
      (write-line writer "}")
      written)))

(defn save
  "Writes the spec and entries of a map to a file.

  The inner maps of a map of maps are saved too. Throws `:not-supported` for a map whose contents
  cannot be restored.

      (save {:ref {:name \"flows\"} :file \"/root/flows.edn\"}) ;=> {:file \"/root/flows.edn\", :map {…}, :entries 20}"
  [{:keys [file] :as options}]
  (with-open [m (input/open options :read-only)]
    (check-savable m)
    (let [saved (volatile! 0)]
      (write-whole file (fn [writer] (vreset! saved (write-map writer m))))
      {:file (call/path-text file :save) :map (select-keys (bpf/info m) [:id :name :type])
       :entries @saved})))

;; --- reading

(defn- saved-map? [x]
  (and (map? x) (map? (:spec x)) (vector? (:entries x))
       (every? #(and (vector? %) (= 2 (count %))) (:entries x))))

(defn- refuse-special
  "Throws `:io` for a directory, a device, a socket or a FIFO.

  Pipes that the process inherited, such as /dev/stdin or a pipe of `<(…)`, are allowed."
  [file]
  (let [path (java-path file)
        follow (make-array LinkOption 0)
        type (long (if (Files/exists path follow)
                     (bit-and 0170000 (int (Files/getAttribute path "unix:mode" follow)))
                     0))
        given? (re-find #"^/dev/(stdin$|fd/)|^/proc/[^/]+/fd/" (str (.toAbsolutePath path)))
        hint (case type
               0040000 "it is a directory"
               0010000 (when-not given? "it is a FIFO; pass its contents as /dev/stdin")
               (0020000 0060000) "it is a device"
               0140000 "it is a socket"
               nil)]
    (when hint
      (throw (error/error :io (str file " cannot be read")
                          {:bpfmap/op :restore :bpfmap/file file :bpfmap/hint hint})))))

(defn- no-longer-than
  "Returns a reader of at most `most` bytes of a file.

  Throws IOException if the file grew."
  ^Reader [^Reader below ^long most]
  (let [left (volatile! most)]
    (proxy [FilterReader] [below]
      (read
        ([] (throw (UnsupportedOperationException.)))
        ([chars offset length]
         (let [n (.read below ^chars chars (int offset) (int length))]
           ;; A character has one byte or more.
           (when (and (pos? n) (neg? (long (vswap! left - n))))
             (throw (IOException. "it grew while it was read")))
           n))))))

(defn- file-reader
  "Returns a reader of a file's EDN."
  ^PushbackReader [file]
  (refuse-special file)
  (let [path (java-path file)
        regular? (Files/isRegularFile path (make-array LinkOption 0))
        reader (Files/newBufferedReader path)]
    (edn/bounded-reader (if regular? (no-longer-than reader (Files/size path)) reader))))

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
               (with-open [^PushbackReader reader (file-reader file)]
                 (let [data (edn/read-form reader {:eof nil})]
                   (when (some? (edn/read-form reader {:eof nil}))
                     (wrong "it has more than one EDN form" nil))
                   data))
               (catch java.nio.charset.CharacterCodingException e (wrong "it is not UTF-8 text" e))
               (catch IOException e (throw (file-error e :restore file "read")))
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
                   (and (:inner? (map-types/types type)) (nil? inner-map))
                   (assoc :inner-map {:type :array :value-size 4 :max-entries 1}))
                 (lifecycle/machine)))

;; --- restoring

(defn in-bytes
  "Returns the entries of a file as bytes, in order.

  Values of a per-CPU map have as many CPUs as the first value. Throws `:invalid-value` for an
  entry that does not fit the completed spec.

      (in-bytes spec [[7 42]]) ;=> [[#bpfmap/bytes \"07 00 00 00\" #bpfmap/bytes \"2a 00 00 00\"]]"
  [{:keys [type] :as spec} entries]
  (let [n (when (:per-cpu (map-types/types type))
            (bounded-count 0x10000 (let [v (second (first entries))] (if (coll? v) v [v]))))
        {:keys [key-in value-in]} (raw-entries/types spec n)]
    (mapv (fn [[k v]] (raw-entries/with-entry-context :restore k #(vector (key-in k) (value-in v))))
          entries)))

(defn- check-cpus
  "Throws `:incompatible` if the values are for a different number of CPUs."
  [m entries]
  (when-let [cpus (input/cpus-of m)]
    (when-let [other (some (fn [[_ v]] (when-not (= (count cpus) (when (vector? v) (count v))) v))
                           entries)]
      (throw (error/error :incompatible "The saved map does not fit this host"
                          {:bpfmap/op :restore
                           :bpfmap/hint (str "its values have "
                                             (if (vector? other) (count other) "no")
                                             " CPUs, and this host has "
                                             (count cpus) " possible CPUs")})))))

(defn- against
  "Compares the entries of a map with saved entries, as bytes.

  Returns `{:same #{keys} :changed n :missing n :strangers [keys]}`. Values count only if
  `values?`."
  [m ^Map saved values?]
  (let [same (HashSet.)
        strangers (ArrayList.)
        changed (volatile! 0)]
    (run! (fn [[k v]]
            (let [was (.get saved k)]
              (cond
                (nil? was) (.add strangers k)
                (or (not values?) (= was v)) (.add same k)
                :else (vswap! changed inc))))
          (raw-entries/entries m))
    {:same same :changed @changed :missing (- (.size saved) (.size same) (long @changed))
     :strangers strangers}))

(defn- put-inner
  "Creates the inner maps of saved entries and puts them.

  Some hundred at a time, because each takes a descriptor. A map with several entries is created
  once."
  [m entries inner]
  (doseq [ids (partition-all 256 (distinct (map (comp :map-id second) entries)))]
    (let [made (volatile! {})]
      (try
        (doseq [id ids :let [{:keys [spec entries]} (get inner id)]]
          (vswap! made assoc id (bpf/create (assoc (dissoc spec :pinning) :contents entries))))
        (bpf/put-all! m (for [[k {:keys [map-id]}] entries :when (contains? @made map-id)]
                          [k (get @made map-id)]))
        (finally (run! bpf/close (vals @made)))))))

(defn- check-inner
  "Throws `:not-saved` for an entry whose map is not in the file."
  [file entries inner]
  (doseq [[k v] entries :when (not (contains? inner (:map-id v)))]
    (throw (error/error :not-saved (str file " is not a saved map")
                        {:bpfmap/op :restore :bpfmap/file file
                         :bpfmap/hint (str "the entry of " (edn-text k) " is " (edn-text v)
                                           ", which :inner does not have")}))))

(defn- write-entries-into
  "Writes entries into a map, given as data and as bytes."
  [m entries in-bytes {:keys [inner]}]
  (cond
    inner (put-inner m entries inner)
    ;; A reference is written as a descriptor, which has no bytes.
    (get-in (input/row-of m) [:refers :value :in]) (bpf/put-all! m entries)
    :else (with-open [twin (raw-entries/open-raw m)]
            (bpf/put-all! twin in-bytes))))

(defn- outcome
  "Returns the result of a restore: the entries of the map, and the actions."
  [m saved values? skipped deleted]
  (let [{:keys [same changed missing]} (against m saved values?)]
    {:map (select-keys (bpf/info m) [:id :name :type])
     :entries (count same) :changed changed :missing missing :skipped skipped :deleted deleted}))

(defn- into-existing
  "Writes saved entries into an existing map, without its existing entries.

  With `:exact`, first deletes entries that were not saved."
  [{:keys [into exact file] :as options} {:keys [spec entries inner] :as saved}]
  (with-open [m (input/open (assoc options :ref into) :read-write)]
    (when-let [difference (not-empty (select-keys (bpf/spec-diff m (completed spec))
                                                  [:type :key-size :value-size]))]
      (throw (error/error :incompatible
                          (str "The saved map does not match map "
                               (error/id-and-name (bpf/info m)))
                          {:bpfmap/op :restore :bpfmap/diff difference
                           :bpfmap/hint (str "they differ: " (pr-str difference))})))
    (when inner (check-inner file entries inner))
    (check-cpus m entries)
    (let [in-bytes (in-bytes (completed spec) entries)
          by-key (raw-entries/snapshot in-bytes)]
      (confirm/check m options "Write the saved entries into it?")
      (let [{:keys [^HashSet same strangers]} (against m by-key true)
            ;; The maps in a map of maps are new maps, so their ids cannot be compared.
            same (if inner (HashSet.) same)
            other? (fn [[k]] (not (.contains ^HashSet same k)))
            deleted (if (and exact (seq strangers))
                      (with-open [twin (raw-entries/open-raw m)] (bpf/delete-all! twin strangers))
                      0)]
        (write-entries-into m
                            (keep (fn [[entry raw]] (when (other? raw) entry))
                                  (map vector entries in-bytes))
                            (filter other? in-bytes)
                            saved)
        (outcome m by-key (nil? inner) (count same) deleted)))))

(defn- made
  "Returns a new, open map made from a file.

  A map of maps is filled and frozen after its creation."
  ^java.io.Closeable [file {:keys [spec entries inner]}]
  (if-not inner
    (bpf/create (assoc (dissoc spec :pinning) :contents entries))
    (do
      (check-inner file entries inner)
      (let [m (bpf/create (dissoc spec :pinning :freeze))]
        (try
          (put-inner m entries inner)
          (when (:freeze spec) (bpf/freeze! m))
          m
          (catch Throwable e
            (bpf/close m)
            (throw e)))))))

(defn restore
  "Restores a map from a file.

  With `:pin`, creates the map and pins it. With `:into`, writes the entries into an existing map.
  Skips entries that exist already.

  The result describes the map afterwards. `:entries` is the number of saved entries in it,
  `:missing` of those that it evicted or others deleted, `:changed` of those with a different
  value. `:skipped` entries existed before, `:deleted` ones were not in the file.

      (restore {:file \"/root/flows.edn\" :pin \"/sys/fs/bpf/flows\"})
      ;=> {:map {:id 12 …}, :path \"/sys/fs/bpf/flows\", :entries 20, :changed 0, :missing 0, :skipped 0, :deleted 0}"
  [{:keys [file pin into exact] :as options}]
  (when (= (some? pin) (some? into))
    (throw (if pin
             (arguments/refused "restore" :into into ["cannot be combined with " :pin])
             (arguments/missing-option "restore" :pin :into))))
  (when (and exact pin)
    (throw (arguments/refused "restore" :exact exact ["requires " :into])))
  (let [{:keys [spec entries inner] :as saved} (read-file file)]
    (if into
      (into-existing options saved)
      (with-open [m (made file saved)]
        (bpf/pin! m pin)
        (assoc (outcome m (raw-entries/snapshot (in-bytes (completed spec) entries)) (nil? inner) 0
                        0) :path (bpf/pinned-path m))))))
