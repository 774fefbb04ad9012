(ns ^:no-doc bpfmap.impl.user-file
  "Reads files that a user names: configs, hints, types, saved maps, entries, objects, keys.

  Every function takes a source, with these keys:

  | key         | meaning                                                          |
  |-------------|------------------------------------------------------------------|
  | `:what`     | the noun phrase for errors, such as \"the config\"                 |
  | `:file`     | the path: a string, a `File` or a `Path`                         |
  | `:in`       | an InputStream to read instead; it is not closed                 |
  | `:most`     | the largest number of bytes; default: the size when it is opened |
  | `:op`       | the operation, for errors                                        |
  | `:progress` | a function that is called with the number of bytes of each part  |

  Reading ends: directories, devices, sockets and FIFOs are rejected, except for pipes that the
  process inherited. Everything that goes wrong is an `:io` error with the same sentence, `Cannot
  read the config \"x.edn\": there is no such file`."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.paths :as paths])
  (:import (java.io BufferedReader FilterInputStream IOException InputStream InputStreamReader
                    Reader StringWriter)
           (java.nio.channels ClosedByInterruptException)
           (java.nio.charset CharacterCodingException StandardCharsets)
           (java.nio.file AccessDeniedException FileSystemException Files LinkOption
                          NoSuchFileException OpenOption Path)))

(set! *warn-on-reflection* true)

;; --- errors

(defn reason
  "Returns the reason of an IOException as text."
  [^IOException e]
  (condp instance? e
    CharacterCodingException "it is not UTF-8 text"
    ClosedByInterruptException "the thread was interrupted"
    NoSuchFileException "there is no such file"
    AccessDeniedException "permission denied"
    FileSystemException (or (.getReason ^FileSystemException e) (str (class e)))
    (or (ex-message e) (str (class e)))))

(defn refusal
  "Returns the `:io` error for a source that cannot be read, with the reason.

      (ex-message (refusal {:what \"the config\" :file \"x.edn\"} \"it is a directory\" nil))
      ;=> \"Cannot read the config \\\"x.edn\\\": it is a directory\""
  ^Throwable [{:keys [what file op]} reason cause]
  (let [file (some-> file str)]
    (error/error :io (str "Cannot read " what (when file (str " " (error/printed file))))
                 {:bpfmap/op op :bpfmap/file file :bpfmap/hint reason}
                 cause)))

;; --- opening

(def ^:private follow (make-array LinkOption 0))

(defn- special
  "Returns the reason to reject a path that is not a regular file, or nil.

  A FIFO can block, and a device can be endless. Pipes that the process inherited, such as
  /dev/stdin or a pipe of `<(…)`, are allowed."
  [^Path path]
  (when-not (or (Files/isRegularFile path follow) (Files/notExists path follow))
    (let [unix? (contains? (.supportedFileAttributeViews (.getFileSystem path)) "unix")
          inherited? (re-find #"^/dev/(stdin$|fd/)|^/proc/[^/]+/fd/" (str (.toAbsolutePath path)))]
      (if (Files/isDirectory path follow)
        "it is a directory"
        (when unix?
          (case (bit-and 0170000 (int (Files/getAttribute path "unix:mode" follow)))
            0010000 (when-not inherited? "it is a FIFO; pass its contents as /dev/stdin")
            (0020000 0060000) "it is a device"
            0140000 "it is a socket"
            nil))))))

(defn- limited
  "Returns a stream that throws after more than `most` bytes; `reason` says why."
  ^InputStream [^InputStream below most reason progress]
  (let [left (volatile! (long (or most Long/MAX_VALUE)))
        counted (fn [n]
                  (when progress (progress n))
                  (when (neg? (long (vswap! left - n)))
                    (throw (IOException. ^String reason))))]
    (proxy [FilterInputStream] [below]
      (read
        ([] (let [b (.read below)] (when-not (neg? b) (counted 1)) b))
        ([bytes] (.read ^InputStream this bytes 0 (alength ^bytes bytes)))
        ([bytes offset length]
         (let [n (.read below ^bytes bytes (int offset) (int length))]
           (when (pos? n) (counted n))
           n))))))

(defn- open
  "Returns the stream of a source."
  ^InputStream [{:keys [file in most op progress] :as source}]
  (let [path (when-not in (paths/->java (call/path-text file op)))
        stream (or in
                   (if-let [reason (special path)]
                     (throw (refusal source reason nil))
                     (Files/newInputStream path (make-array OpenOption 0))))]
    (if (or most (nil? path) (not (Files/isRegularFile path follow)))
      (limited stream most (str "it must have at most " most " bytes") progress)
      (limited stream (Files/size path) "it grew while it was read" progress))))

;; --- reading

(defn call-with-stream
  "Calls f with the stream of a source, and returns its result.

      (call-with-stream {:file \"a.bpf.o\" :what \"the object\"} #(.readAllBytes %))"
  [{:keys [in] :as source} f]
  (try
    (if in
      (f (open source))
      (with-open [stream (open source)] (f stream)))
    (catch IOException e
      (throw (refusal source (reason e) e)))
    (catch OutOfMemoryError e
      (throw (error/error :no-memory
                          (str (ex-message (refusal source "it needs more memory than the JVM has"
                                                    nil)))
                          {:bpfmap/op (:op source) :bpfmap/file (some-> (:file source) str)
                           :bpfmap/hint "give it more with the JVM's option -Xmx"} e)))))

(defn call-with-reader
  "Calls f with a reader of the UTF-8 text of a source, and returns its result.

      (call-with-reader {:file \"a.edn\" :what \"the config\"} #(.readLine %))"
  [source f]
  (call-with-stream source
    (fn [^InputStream stream]
      (f (BufferedReader. (InputStreamReader. stream (.newDecoder StandardCharsets/UTF_8)))))))

(defn bytes-in
  "Returns the bytes of a source.

      (alength (bytes-in {:file \"keys.p12\" :what \"the key store\" :most 4096})) ;=> 1270"
  ^bytes [source]
  (call-with-stream source (fn [^InputStream stream] (.readAllBytes stream))))

(defn text-in
  "Returns the text of a source in UTF-8.

      (text-in {:file \"flows.edn\" :what \"the file of hints\" :most 4096}) ;=> \"{\\\"flows\\\" {…}}\""
  ^String [source]
  (call-with-reader source
    (fn [^Reader reader]
      (let [out (StringWriter.)]
        (.transferTo reader out)
        (str out)))))
