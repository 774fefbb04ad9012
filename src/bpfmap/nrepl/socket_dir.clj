(ns ^:no-doc bpfmap.nrepl.socket-dir
  "Where a server's socket lies: a directory that nobody else can look into, and a name in it that
  one server has at a time.

  The kernel asks the directory's mode before it lets anybody connect, and other systems' and old
  kernels' sockets do not heed their own mode: so the directory is what keeps others out. It is of
  no use when somebody else can put another in its place; therefore every directory above it must
  be root's or this user's, and closed to the writing of others, or sticky as /tmp is. Nothing
  here follows a symbolic link that another user may have made.

  Paths are bytes here, as in `bpfmap.impl.kernel.paths`: what a path names does not depend on the
  locale. Java's own text of a path does, so none is made from a text that came out of one."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.paths :as paths])
  (:import (java.io IOException)
           (java.net ConnectException StandardProtocolFamily UnixDomainSocketAddress)
           (java.nio.channels FileChannel OverlappingFileLockException SocketChannel)
           (java.nio.file FileAlreadyExistsException Files LinkOption NoSuchFileException
                          Path StandardOpenOption)
           (java.nio.file.attribute FileAttribute PosixFilePermissions)
           (java.util Set)))

(set! *warn-on-reflection* true)

(def ^:private ^:const longest-path
  "Bytes: what sockaddr_un holds, and a NUL. Source: unix(7)."
  107)

(defn text
  "Returns the text of a path, as `java-path` takes it and people read it.

      (text (java-path \"/run/café/nrepl.sock\")) ;=> \"/run/café/nrepl.sock\""
  [path]
  (if (instance? Path path)
    (paths/printable (paths/text (paths/of-java path)))
    (str path)))

(defn- refuse [kind message file hint]
  (throw (error/error kind message {:bpfmap/op :nrepl :bpfmap/file (text file) :bpfmap/hint hint})))

(defn java-path
  "Returns the path that a text names, in every locale.

  If there is no file of exactly that name, it may be a name as it was printed. Throws
  `:invalid-value` for a text that cannot name one.

      (java-path \"/run/bpfmap/nrepl.sock\")"
  ^Path [given]
  (if (instance? Path given)
    given
    (let [given (str given)
          refuse-it #(refuse :invalid-value (str "Not a path: " (pr-str (error/shown given))) nil %)
          path (paths/resolve given refuse-it)]
      (cond
        (nil? path) (refuse-it "it has half a character")
        (some zero? (paths/bytes-of path)) (refuse-it "it has a NUL")
        :else (paths/->java path)))))

(defn sibling
  "Returns the path with an ending added to its name."
  ^Path [^Path path ending]
  (paths/->java (str (paths/text (paths/of-java path)) ending)))

;; --- what is at a path

(def ^:private kinds
  "What a file is, by the bits of its mode. Source: inode(7)."
  {0140000 :socket, 0120000 :symbolic-link, 0100000 :file, 0040000 :directory})

(defn- status
  "What is at a path, a link not followed: `{:kind :mode :uid :inode}`; nil for nothing."
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
      (refuse :permission (str (text path) " cannot be looked at") path (str e)))))

(defn- octal [mode]
  (format "%04o" mode))

(defn effective-user
  "The number of the user as whom this thread acts.

      (effective-user) ;=> 0"
  []
  (let [text (Files/readString (java-path "/proc/thread-self/status"))]
    (parse-long (second (re-find #"(?m)^Uid:\s+\d+\s+(\d+)" text)))))

;; --- the directory

(defn- check-above
  "Refuses what is on the way to a place, a directory or a link, when another user could change
  what the way leads to."
  [^Path above {:keys [kind mode uid]} place]
  (let [unsafe (fn [why]
                 (refuse :permission
                         (str (text above) " " why ", who could put something else in the place of "
                              (text place))
                         above "choose another place"))]
    (when-not (#{:directory :symbolic-link} kind)
      (refuse :not-found (str (text above) " is no directory") above nil))
    (when-not (or (= 0 uid) (= (effective-user) uid))
      (unsafe (str "belongs to another user (" uid ")")))
    (when (and (= :directory kind) (pos? (bit-and 0022 mode)) (zero? (bit-and 01000 mode)))
      (unsafe (str "can be written by other users (mode " (octal mode) ")")))))

(def ^:private ^:const most-links
  "How many symbolic links are followed. Source: path_resolution(7)."
  40)

(defn- names
  "Returns the names of a path's parts, as paths."
  [path]
  (remove #(= "." (str %)) path))

(defn- real-directory
  "The directory that a path names, without symbolic links. Each is followed by hand, once its own
  directory is known to be safe, and it to be root's or this user's. `place` is what the errors
  are about."
  ^Path [^Path path place]
  (loop [at (java-path "/"), left (names path), links 0]
    (let [[name & more] left
          ^Path next (if (= ".." (str name))
                       (or (.getParent at) at)
                       (.resolve at ^Path name))
          {:keys [kind] :as found} (status next)]
      (when-not found
        (refuse :not-found (str "There is no directory " (text next)) next nil))
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
      (not= :directory kind) (not-private "is no directory"
                                          "the socket needs a directory of its own")
      (not= (effective-user) uid) (not-private (str "belongs to another user (" uid ")")
                                               "the socket needs a directory of this user's")
      (not= 0700
            (bit-and 0777 mode)) (not-private (str "is open to other users (mode " (octal mode) ")")
                                              (str
                                               "the socket needs a directory of its own with mode "
                                               "0700, such as "
                                                   (text directory)
                                               "/nrepl, which is made if it is not there")))))

(defn- make [^Path directory]
  (try
    (Files/createDirectory directory
                           (into-array FileAttribute
                                       [(PosixFilePermissions/asFileAttribute
                                         (PosixFilePermissions/fromString "rwx------"))]))
    (catch FileAlreadyExistsException _) ; made meanwhile: it is looked at like any other
    (catch IOException e
      (refuse :permission (str "The directory " (text directory) " cannot be made") directory
              (str e)))))

(defn in-private-directory
  "The path of a socket, its directory checked, and made if it is not there and `make?`. Symbolic
  links on the way to the directory are followed where only root and this user could have made
  them; the path that is returned has none.

  Throws `:permission` where other users could reach the socket or put another in its place,
  `:not-found` where the directory is to be made in none, `:invalid-value` for a path that no
  socket can have.

      (in-private-directory \"/run/bpfmap/nrepl.sock\" true)"
  ^Path [given make?]
  (let [path (java-path given)
        directory (.getParent path)]
    (when-not (and (.isAbsolute path) directory (= path (.normalize path)) (.getParent directory))
      (refuse :invalid-value (str "Not a place for a socket: " (pr-str (error/shown (str given))))
              given
              "it is an absolute path, without \"..\", to a file in a directory that is the socket's own"))
    (let [real (.resolve (real-directory (.getParent directory) directory) (.getFileName directory))
          socket (.resolve real (.getFileName path))]
      (when (< (long longest-path) (alength (paths/of-java socket)))
        (refuse :invalid-value
                (str "The path of the socket is longer than " longest-path " bytes: " (text socket))
                socket nil))
      (when (and make? (nil? (status real)))
        (make real))
      (when-not (status real)
        (refuse :not-found (str "There is no directory " (text directory)) directory nil))
      (check-private real)
      socket)))

;; --- the name

(def ^:private private-file
  (delay (into-array FileAttribute
                     [(PosixFilePermissions/asFileAttribute
                       (PosixFilePermissions/fromString "rw-------"))])))

(defn- held-by-another [path]
  (refuse :exists (str "An nREPL server has " (text path)) path
          "connect to it, end it, or choose another --socket"))

(defn- open-lock ^FileChannel [^Path file]
  (let [^Set options #{StandardOpenOption/CREATE StandardOpenOption/WRITE
                       LinkOption/NOFOLLOW_LINKS}]
    (try
      (FileChannel/open file options ^"[Ljava.nio.file.attribute.FileAttribute;" @private-file)
      (catch IOException e
        (refuse :permission (str "The file " (text file) " cannot be opened") file (str e))))))

(defn- lock
  "Holds what says that the name is taken: a lock that the kernel lets go when this process ends,
  however it does."
  ^FileChannel [^Path path]
  (let [channel (open-lock (sibling path ".lock"))]
    (if (try
          (.tryLock channel)
          (catch OverlappingFileLockException _ nil)) ; a server of this very process has it
      channel
      (do (.close channel)
          (held-by-another path)))))

(defn answers?
  "Whether something listens at a socket. Does not wait for it to accept.

      (answers? path) ;=> true"
  [^Path path]
  (with-open [channel (SocketChannel/open StandardProtocolFamily/UNIX)]
    (.configureBlocking channel false)
    (try
      (.connect channel (UnixDomainSocketAddress/of path))
      true
      (catch ConnectException _ false) ; refused: whoever bound it is gone
      (catch IOException _ (some? (status path)))))) ; what cannot be told is not taken for gone

(defn claim
  "Makes sure that nobody has a name, and holds it: `{:path :lock}`. A socket that a server left,
  which is gone, is removed.

  Throws `:exists` where a server is alive, or something is that is no socket: nothing is taken
  away from anybody.

      (claim path)"
  [^Path path]
  (let [^FileChannel lock (lock path)]
    (try
      (case (:kind (status path))
        nil nil
        :socket (if (answers? path)
                  (held-by-another path)
                  (Files/deleteIfExists path))
        (refuse :exists (str (text path) " is there already, and is no socket") path
                "remove it, or choose another --socket"))
      {:path path :lock lock}
      (catch Throwable e
        (.close lock)
        (throw e)))))

(defn mark
  "What is needed to know the socket again, once it is bound: the claim with its inode. Closes the
  socket itself to others, too."
  [{:keys [^Path path] :as claim}]
  (Files/setPosixFilePermissions path (PosixFilePermissions/fromString "rw-------"))
  (assoc claim :inode (:inode (status path))))

(defn release
  "Removes the socket, if it is still the one that was marked, and lets the name go."
  [{:keys [^Path path inode ^FileChannel lock]}]
  (when (.isOpen lock)
    (when (and inode (= inode (:inode (status path))))
      (Files/deleteIfExists path))
    (.close lock)))
