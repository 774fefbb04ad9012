(ns ^:no-doc bpfmap.nrepl.socket-dir
  "Checks the directory of a server's socket, and claims the socket's name for one server at a time.

  The directory keeps other users out: the kernel checks its mode before a connection, while some
  systems and old kernels ignore the mode of the socket itself. That works only if nobody can
  replace the directory. Therefore every directory above it must belong to root or to this user,
  and others must not be able to write to it, unless it is sticky like /tmp. Symbolic links that
  another user may have made are never followed.

  Paths are bytes here, as in `bpfmap.impl.kernel.paths`, so that they do not depend on the locale.
  Java's text of a path does depend on it."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.paths :as paths])
  (:import (java.io IOException)
           (java.net ConnectException StandardProtocolFamily UnixDomainSocketAddress)
           (java.nio.channels FileChannel SocketChannel)
           (java.nio.file FileAlreadyExistsException Files LinkOption NoSuchFileException
                          Path StandardOpenOption)
           (java.nio.file.attribute FileAttribute PosixFilePermissions)
           (java.util Set)))

(set! *warn-on-reflection* true)

(def ^:private ^:const longest-path
  "The size of the path in sockaddr_un without its NUL.

  Source: unix(7)."
  107)

(defn text
  "Returns the text of a path, for people and for [[java-path]].

      (text (java-path \"/run/café/nrepl.sock\")) ;=> \"/run/café/nrepl.sock\""
  [path]
  (if (instance? Path path)
    (paths/printable (paths/text (paths/of-java path)))
    (str path)))

(defn- refuse [kind message file hint]
  (throw (error/error kind message {:bpfmap/op :nrepl :bpfmap/file (text file) :bpfmap/hint hint})))

(defn java-path
  "Returns the path that a text names, in every locale.

  If there is no file of exactly that name, the text can be a name as it was printed. Throws
  `:invalid-value` for a text that cannot name a file.

      (java-path \"/run/bpfmap/nrepl.sock\")"
  ^Path [given]
  (if (instance? Path given)
    given
    (let [given (str given)
          refuse-it #(refuse :invalid-value (str "A path must not have " % ", got " (error/printed given))
                             nil nil)
          path (paths/resolve given refuse-it)]
      (cond
        (nil? path) (refuse-it "half a character (a lone surrogate)")
        (some zero? (paths/bytes-of path)) (refuse-it "a NUL character")
        :else (paths/->java path)))))

(defn sibling
  "Returns the path with an ending added to its name."
  ^Path [^Path path ending]
  (paths/->java (str (paths/text (paths/of-java path)) ending)))

;; --- the file at a path

(def ^:private kinds
  "The kinds of files, by the bits of their mode.

  Source: inode(7)."
  {0140000 :socket, 0120000 :symbolic-link, 0100000 :file, 0040000 :directory})

(defn- status
  "Returns the status of a path without following links, or nil.

  The status is `{:kind :mode :uid :inode}`."
  [^Path path]
  (try
    (let [{:strs [mode uid ino]} (Files/readAttributes path "unix:mode,uid,ino"
                                                       ^"[Ljava.nio.file.LinkOption;"
                                                       (into-array
                                                        LinkOption [LinkOption/NOFOLLOW_LINKS]))]
      {:kind (kinds (bit-and 0170000 (long mode)) :other) :mode (bit-and 07777 (long mode)) :uid uid
       :inode ino})
    (catch NoSuchFileException _ nil)
    (catch IOException e
      (refuse :permission (str (text path) " cannot be read") path (str e)))))

(defn- octal [mode]
  (format "%04o" mode))

(defn effective-user
  "Returns the number of the effective user of this thread.

      (effective-user) ;=> 0"
  []
  (let [text (Files/readString (java-path "/proc/thread-self/status"))]
    (parse-long (second (re-find #"(?m)^Uid:\s+\d+\s+(\d+)" text)))))

;; --- the directory

(defn- check-above
  "Throws if another user could change a directory or link on the way to a place."
  [^Path above {:keys [kind mode uid]} place]
  (let [unsafe (fn [why]
                 (refuse :permission
                         (str (text above) " " why ", who could replace "
                              (text place))
                         above "use another directory"))]
    (when-not (#{:directory :symbolic-link} kind)
      (refuse :not-found (str (text above) " is not a directory") above nil))
    (when-not (or (= 0 uid) (= (effective-user) uid))
      (unsafe (str "belongs to another user (" uid ")")))
    (when (and (= :directory kind) (pos? (bit-and 0022 mode)) (zero? (bit-and 01000 mode)))
      (unsafe (str "can be written by other users (mode " (octal mode) ")")))))

(def ^:private ^:const most-links
  "The number of symbolic links that are followed.

  Source: path_resolution(7)."
  40)

(defn- names
  "Returns the names of a path's parts, as paths."
  [path]
  (remove #(= "." (str %)) path))

(defn- real-directory
  "Returns the directory of a path, without symbolic links.

  Follows each link by hand, after its directory is known to be safe and the link to belong to
  root or this user. `place` is the path in the errors."
  ^Path [^Path path place]
  (loop [at (java-path "/"), left (names path), links 0]
    (let [[name & more] left
          ^Path next (if (= ".." (str name))
                       (or (.getParent at) at)
                       (.resolve at ^Path name))
          {:keys [kind] :as found} (status next)]
      (when-not found
        (refuse :not-found (str "No directory " (text next)) next nil))
      (check-above next found place)
      (cond
        (= :symbolic-link kind) (let [target (Files/readSymbolicLink next)]
                                  (when (= most-links links)
                                    (refuse :invalid-value
                                            (str "Too many symbolic links on the way to "
                                                 (text place)) place nil))
                                  (recur (if (.isAbsolute target) (java-path "/") at)
                                         (concat (names target) more) (inc links)))
        more (recur next more links)
        :else next))))

(defn- check-private [^Path directory]
  (let [{:keys [kind mode uid]} (status directory)
        not-private (fn [why hint]
                      (refuse :permission (str (text directory) " " why) directory hint))]
    (cond
      (not= :directory kind) (not-private "is not a directory"
                                          "use a directory for the socket alone")
      (not= (effective-user) uid) (not-private (str "belongs to another user (" uid ")")
                                               "use a directory that belongs to this user")
      (not= 0700
            (bit-and 0777 mode)) (not-private (str "is open to other users (mode " (octal mode) ")")
                                              (str
                                               "use a directory of its own with mode "
                                               "0700, such as "
                                               (text directory)
                                               "/nrepl, which is created if it does not exist")))))

(defn- make [^Path directory]
  (try
    (Files/createDirectory directory
                           (into-array FileAttribute
                                       [(PosixFilePermissions/asFileAttribute
                                         (PosixFilePermissions/fromString "rwx------"))]))
    (catch FileAlreadyExistsException _) ; another process made it; it is checked below
    (catch IOException e
      (refuse :permission (str "The directory " (text directory) " cannot be created") directory
              (str e)))))

(defn in-private-directory
  "Returns the path of a socket, without symbolic links, and checks its directory.

  Creates the directory if it does not exist and `make?` is true. Follows symbolic links only if
  root or this user made them. Throws `:permission` if other users could reach or replace the
  socket, `:not-found` if the parent directory does not exist, and `:invalid-value` for a path
  that cannot be a socket.

      (in-private-directory \"/run/bpfmap/nrepl.sock\" true)"
  ^Path [given make?]
  (let [path (java-path given)
        directory (.getParent path)]
    (when-not (and (.isAbsolute path) directory (= path (.normalize path)) (.getParent directory))
      (refuse :invalid-value
              (str "The path of a socket must be absolute, without \"..\" and not in the root "
                   "directory, got " (error/printed (str given)))
              given nil))
    (let [real (.resolve (real-directory (.getParent directory) directory) (.getFileName directory))
          socket (.resolve real (.getFileName path))]
      (when (< (long longest-path) (alength (paths/of-java socket)))
        (refuse :invalid-value
                (str "The path of the socket is longer than " longest-path " bytes: " (text socket))
                socket nil))
      (when (and make? (nil? (status real)))
        (make real))
      (when-not (status real)
        (refuse :not-found (str "No directory " (text directory)) directory nil))
      (check-private real)
      socket)))

;; --- the name

(def ^:private private-file
  (delay (into-array FileAttribute
                     [(PosixFilePermissions/asFileAttribute
                       (PosixFilePermissions/fromString "rw-------"))])))

(defn- held-by-another [path]
  (refuse :exists (str "An nREPL server uses " (text path)) path
          "connect to it, stop it, or use another --socket"))

(defn- open-lock ^FileChannel [^Path file]
  (let [^Set options #{StandardOpenOption/CREATE StandardOpenOption/WRITE
                       LinkOption/NOFOLLOW_LINKS}]
    (try
      (FileChannel/open file options ^"[Ljava.nio.file.attribute.FileAttribute;" @private-file)
      (catch IOException e
        (refuse :permission (str "The file " (text file) " cannot be opened") file (str e))))))

(def ^:private names-of-this-process
  "The lock files that servers of this process have open.

  Closing any descriptor of a file releases all locks that the process has on it (fcntl(2)). A
  second claim in the same process therefore must not open the file."
  (atom #{}))

(defn- lock-file
  "Returns the lock file of a socket, one path for all paths of its directory."
  ^Path [^Path path]
  (let [file (sibling path ".lock")]
    (try
      (.resolve (.toRealPath (.getParent file) (make-array LinkOption 0)) (.getFileName file))
      (catch IOException _ file)))) ; opening it says why

(defn- unlock [{:keys [file ^FileChannel channel]}]
  (some-> channel .close)
  (swap! names-of-this-process disj file))

(defn- lock
  "Acquires the lock that marks the name as taken; returns `{:file :channel}`.

  The kernel releases it when this process ends."
  [^Path path]
  (let [file (lock-file path)
        [before] (swap-vals! names-of-this-process conj file)]
    (when (contains? before file)
      (held-by-another path))
    (let [channel (try
                    (open-lock file)
                    (catch Throwable e
                      (unlock {:file file})
                      (throw e)))
          lock {:file file :channel channel}]
      (try
        (when-not (.tryLock ^FileChannel channel)
          (held-by-another path))
        lock
        (catch Throwable e
          (unlock lock)
          (throw e))))))

(defn answers?
  "Returns true if a process listens at a socket.

  Does not wait for it to accept.

      (answers? path) ;=> true"
  [^Path path]
  (with-open [channel (SocketChannel/open StandardProtocolFamily/UNIX)]
    (.configureBlocking channel false)
    (try
      (.connect channel (UnixDomainSocketAddress/of path))
      true
      (catch ConnectException _ false) ; refused: the process that bound it has ended
      (catch IOException _ (some? (status path)))))) ; if unknown, assume that it runs

(defn claim
  "Claims the name of a socket and returns `{:path :lock}`.

  Removes the socket of a server that no longer runs. Throws `:exists` if a server is running, or
  if the path is another kind of file.

      (claim path)"
  [^Path path]
  (let [lock (lock path)]
    (try
      (case (:kind (status path))
        nil nil
        :socket (if (answers? path)
                  (held-by-another path)
                  (Files/deleteIfExists path))
        (refuse :exists (str (text path) " already exists and is not a socket") path
                "remove it, or use another --socket"))
      {:path path :lock lock}
      (catch Throwable e
        (unlock lock)
        (throw e)))))

(defn mark
  "Returns the claim with the inode of the bound socket.

  Closes the socket itself to other users too."
  [{:keys [^Path path] :as claim}]
  (Files/setPosixFilePermissions path (PosixFilePermissions/fromString "rw-------"))
  (assoc claim :inode (:inode (status path))))

(defn release
  "Removes the socket, if it is still the marked one, and releases the name."
  [{:keys [^Path path inode lock]}]
  (when (.isOpen ^FileChannel (:channel lock))
    (when (and inode (= inode (:inode (status path))))
      (Files/deleteIfExists path))
    (unlock lock)))
