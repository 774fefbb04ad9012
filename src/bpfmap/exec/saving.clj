(ns bpfmap.exec.saving
  "The commands `save` and `restore`: a map's spec and contents as EDN in a file.

  The file is written beside its place, and takes it when all of it is on the disk: it is the
  old one or the new one, never half of one.

      {:bpfmap/saved 1
       :at #inst \"…\" :host \"…\"
       :spec {:name \"flows\" :type :lru-hash …}
       :entries [
      [{:src \"10.0.0.1\", :port 443} 1]
      …
      ]}"
  (:require [bpfmap.bytes :as bytes]
            [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.exec.consent :as consent]
            [bpfmap.exec.progress :as progress]
            [bpfmap.exec.reference :as reference]
            [bpfmap.impl.comparing :as comparing]
            [bpfmap.rules :as rules]
            [bpfmap.spec :as spec]
            [clojure.edn :as edn])
  (:import (java.io BufferedWriter IOException OutputStreamWriter PushbackReader)
           (java.net InetAddress)
           (java.nio.channels Channels FileChannel)
           (java.nio.charset StandardCharsets)
           (java.nio.file AccessDeniedException CopyOption FileSystemException Files LinkOption NoSuchFileException Path
                          StandardCopyOption StandardOpenOption)
           (java.nio.file.attribute FileAttribute PosixFilePermissions)))

(set! *warn-on-reflection* true)

(defn- path-of ^Path [file] (Path/of file (make-array String 0)))

(defn- file-error
  "An IOException as an error as data, with what was to be done."
  [^IOException e op file what]
  (let [reason (condp instance? e
                 NoSuchFileException "there is no such file or directory"
                 AccessDeniedException "permission denied"
                 FileSystemException (or (.getReason ^FileSystemException e) (ex-message e))
                 (ex-message e))]
    (error/error :io (str file " cannot be " what) {:bpfmap/op op :bpfmap/file file :bpfmap/hint reason} e)))

;; --- writing

(defn- sync-directory
  "Has a directory's names on the disk. Some file systems cannot, and need not."
  [^Path directory]
  (try
    (with-open [channel (FileChannel/open directory (into-array StandardOpenOption [StandardOpenOption/READ]))]
      (.force channel true))
    (catch IOException _ nil)))

(defn- private-file
  "Attributes of a file that its owner alone may read: what is in a map may be nobody else's business."
  []
  (into-array FileAttribute [(PosixFilePermissions/asFileAttribute (PosixFilePermissions/fromString "rw-------"))]))

(defn write-whole
  "Calls f with a writer, and puts what it wrote into a file, in place of what was there, when all of it is on the disk.
  What f throws leaves the file as it was. Throws `:io`.

      (write-whole \"/tmp/flows.edn\" (fn [writer] (.write writer \"{}\")))"
  [file f]
  (let [target (path-of file)
        no-links (make-array LinkOption 0)
        target (if (Files/exists target no-links) (.toRealPath target no-links) (.toAbsolutePath target))
        beside (.resolveSibling target (str "." (.getFileName target) "." (.pid (java.lang.ProcessHandle/current)) ".part"))]
    (when (and (Files/exists target no-links) (not (Files/isRegularFile target no-links)))
      (throw (error/error :io (str file " cannot be written") {:bpfmap/op :save :bpfmap/file file
                                                               :bpfmap/hint "it is no plain file, and would be replaced"})))
    (try
      (try
        (.deleteOnExit (.toFile beside)) ; for the case that a signal ends the process meanwhile
        (with-open [channel (FileChannel/open beside #{StandardOpenOption/CREATE_NEW StandardOpenOption/WRITE} (private-file))
                    writer (BufferedWriter. (OutputStreamWriter. (Channels/newOutputStream channel) StandardCharsets/UTF_8))]
          (f writer)
          (.flush writer)
          (.force channel true))
        (Files/move beside target (into-array CopyOption [StandardCopyOption/ATOMIC_MOVE]))
        (sync-directory (.getParent target))
        (finally
          (Files/deleteIfExists beside)))
      (catch IOException e
        (throw (file-error e :save file "written"))))))

(defn- write-line [^BufferedWriter writer text]
  (.write writer ^String text)
  (.newLine writer))

(defn- host-name []
  (try (.getHostName (InetAddress/getLocalHost)) (catch IOException _ nil)))

(defn- text-of [x]
  (binding [*print-namespace-maps* false *print-length* nil *print-level* nil *print-meta* false]
    (pr-str x)))

(defn- unsavable
  "The exception for a map whose values cannot be read and stay."
  ^Throwable [m]
  (error/error :not-supported (str "The contents of " m " cannot be saved")
               {:bpfmap/op :save :bpfmap/hint (rules/alternative (:type (bpf/spec m)) :reduce 0)}))

(defn save
  "Writes a map's spec and contents to a file.

      (save {:ref {:name \"flows\"} :file \"/root/flows.edn\"}) ;=> {:file \"/root/flows.edn\", :map {…}, :entries 20}"
  [{:keys [file] :as options}]
  (with-open [m (reference/open options :read-only)]
    (when-not (:reduce (:ops (reference/row-of m)))
      (throw (unsavable m)))
    (let [saved (volatile! 0)]
      (write-whole file
                   (fn [writer]
                     (write-line writer (str "{:bpfmap/saved 1\n :at " (text-of (java.util.Date.))
                                             (when-let [host (host-name)] (str "\n :host " (text-of host)))))
                     (write-line writer (str " :spec " (text-of (cond-> (bpf/spec m) (:frozen? (bpf/info m)) (assoc :freeze true)))
                                             "\n :entries ["))
                     (run! (fn [[k v]]
                             (vswap! saved inc)
                             (write-line writer (str "[" (text-of k) " " (text-of v) "]")))
                           (eduction (progress/counting "entries") m))
                     (write-line writer "]}")))
      {:file file :map (select-keys (bpf/info m) [:id :name :type]) :entries @saved})))

;; --- reading

(defn read-file
  "What was saved in a file: `{:spec :entries …}`. Throws `:io` for one that cannot be read, and `:not-saved` for any other.

      (:spec (read-file \"/root/flows.edn\")) ;=> {:name \"flows\", :type :lru-hash, …}"
  [file]
  (let [wrong (fn [hint cause]
                (throw (error/error :not-saved (str file " is no saved map") {:bpfmap/op :restore :bpfmap/file file :bpfmap/hint hint}
                                    cause)))
        data (try
               (with-open [reader (PushbackReader. (Files/newBufferedReader (path-of file)))]
                 (let [options {:readers {'bpfmap/bytes bytes/->bytes} :eof nil}
                       data (edn/read options reader)]
                   (when (some? (edn/read options reader))
                     (wrong "there is more in it than one form" nil))
                   data))
               (catch java.nio.charset.CharacterCodingException e (wrong "it is no text" e))
               (catch IOException e (throw (file-error e :restore file "read")))
               (catch RuntimeException e
                 (if (:bpfmap/error (ex-data e)) (throw e) (wrong (ex-message e) e))))]
    (when-not (and (map? data) (= 1 (:bpfmap/saved data)) (map? (:spec data)) (vector? (:entries data))
                   (every? #(and (vector? %) (= 2 (count %))) (:entries data)))
      (wrong "`bpfmap save` writes a map with :bpfmap/saved 1, :spec and :entries" nil))
    data))

(defn completed
  "Completes the spec of a file for reading its entries. What a map of maps was made to hold says nothing about those.

      (:key-size (completed {:type :hash :key :u32 :value :u32 :max-entries 1})) ;=> 4"
  [{:keys [type inner-map] :as spec}]
  (let [unknown? (and (:inner? (rules/types type)) (nil? inner-map))]
    (cond-> (spec/complete (cond-> (dissoc spec :pinning)
                             unknown? (assoc :inner-map {:type :array :value-size 4 :max-entries 1}))
                           (comparing/machine))
      unknown? (dissoc :inner-map))))

;; --- restoring

(defn- into-existing
  "Puts what was saved into a map that is there, and with `:exact` deletes what was not saved."
  [{:keys [into exact] :as options} {:keys [spec entries]}]
  (with-open [m (reference/open (assoc options :ref into) :read-write)]
    (when-let [difference (not-empty (select-keys (bpf/spec-diff spec m) [:type :key-size :value-size]))]
      (throw (error/error :incompatible (str "What was saved does not go into " m)
                          {:bpfmap/op :restore :bpfmap/diff difference
                           :bpfmap/hint (str "they differ: " (pr-str difference))})))
    (consent/check m options "Write the saved entries into it?")
    (let [saved (set (map first entries))
          written (bpf/put-all! m entries)
          deleted (if exact
                    (bpf/delete-all! m (clojure.core/into [] (comp (map key) (remove saved)) m))
                    0)]
      {:map (select-keys (bpf/info m) [:id :name :type]) :entries written :deleted deleted})))

(defn restore
  "Makes a map as it was saved and pins it at `:pin`, or writes what was saved `:into` a map that is there.

      (restore {:file \"/root/flows.edn\" :pin \"/sys/fs/bpf/flows\"}) ;=> {:map {:id 12 …}, :path \"/sys/fs/bpf/flows\", :entries 20}"
  [{:keys [file pin into exact] :as options}]
  (when (= (some? pin) (some? into))
    (throw (if pin
             (arguments/refused "restore" :into into "it excludes :pin")
             (arguments/lacking "restore" :pin :into))))
  (when (and exact pin)
    (throw (arguments/refused "restore" :exact exact "it is for a map that is there, with :into")))
  (let [{:keys [spec entries] :as saved} (read-file file)]
    (if into
      (into-existing options saved)
      (with-open [m (bpf/create (-> spec
                                    (dissoc :pinning)
                                    (assoc :contents entries)))]
        (bpf/pin! m pin)
        {:map (select-keys (bpf/info m) [:id :name :type]) :path pin :entries (count entries)}))))
