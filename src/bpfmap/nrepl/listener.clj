(ns ^:no-doc bpfmap.nrepl.listener
  "Accepts connections: on a Unix socket from admitted users, on TCP from this host.

  The kernel reports the user who called connect(2) on a Unix socket (SO_PEERCRED). It is checked
  before any byte is read. Only root and the user of the server are admitted."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.nrepl.socket-dir :as socket-dir])
  (:import (bpfmap.sys Fd)
           (java.io Closeable IOException)
           (java.lang ProcessHandle)
           (java.net InetAddress InetSocketAddress SocketAddress StandardProtocolFamily
                     UnixDomainSocketAddress)
           (java.nio.channels ClosedChannelException ServerSocketChannel SocketChannel)
           (java.nio.file FileSystems Files LinkOption Path)
           (java.nio.file.attribute UserPrincipal)
           (java.util Set)
           (java.util.concurrent ConcurrentHashMap)
           (jdk.net ExtendedSocketOptions UnixDomainPrincipal)))

(set! *warn-on-reflection* true)

(def ^:private ^:const pause
  "Milliseconds to wait after a failure to accept a connection."
  200)

;; --- admitted users

(defn- user-of
  "Returns the user at the other end of a Unix socket."
  ^UserPrincipal [^SocketChannel channel]
  (.user ^UnixDomainPrincipal (.getOption channel ExtendedSocketOptions/SO_PEERCRED)))

(defn- admitted
  "Returns the users who may connect: root and the owner of the directory.

  The directory was checked to be this process's. Users compare by number."
  [^Path directory]
  (let [users (.getUserPrincipalLookupService (FileSystems/getDefault))]
    (set [(.lookupPrincipalByName users "0")
          (Files/getOwner directory (into-array LinkOption [LinkOption/NOFOLLOW_LINKS]))])))

(defn- refusal
  "Returns the reason to refuse a connection, or nil."
  [may? channel]
  (let [user (user-of channel)]
    (when-not (may? user)
      (str "A connection of the user " user
           " was refused: only root and the server's own user are admitted"))))

;; --- accepting connections

;; `connections` are the open channels; `release` is called once, when the listener closes.
(deftype Listener [^ServerSocketChannel server ^Set connections release]
  Closeable
  (close [_]
    (.close server)
    (run! #(.close ^SocketChannel %) (vec (.toArray connections)))
    (release)))

(defn- thread [^String name f]
  (doto (Thread. ^Runnable (bound-fn* f) name)
    (.setDaemon true)
    (.start)))

(defn- take-one
  "Accepts or refuses a connection."
  [^SocketChannel channel ^Set connections {:keys [refusal serve complain]}]
  (if-let [why (try
                 (refusal channel)
                 (catch IOException e
                   (str "A connection was refused, because its user is unknown: " (ex-message e))))]
    (do (.close channel)
        (complain why))
    (do (.add connections channel)
        (thread "bpfmap-nrepl-connection"
                (fn []
                  (try
                    (serve channel)
                    (finally
                      (.remove connections channel)
                      (.close channel))))))))

(defn- take-all
  "Accepts connections until the socket is closed.

  Continues if a connection cannot be accepted, e.g. for lack of descriptors."
  [^ServerSocketChannel server connections {:keys [complain] :as how}]
  (when (try
          (take-one (.accept server) connections how)
          true
          (catch ClosedChannelException _ false)
          (catch Throwable e
            (when (.isOpen server)
              (complain (str "A connection could not be accepted: " e))
              (Thread/sleep (long pause))
              true)))
    (recur server connections how)))

(defn- listening
  "Returns a running listener on a bound socket."
  [^ServerSocketChannel server how release]
  (let [connections (ConcurrentHashMap/newKeySet)]
    (thread "bpfmap-nrepl-listener" #(take-all server connections how))
    (Listener. server connections release)))

(defmacro ^:private or-close
  "Evaluates body; if it throws, evaluates `closing`."
  [closing & body]
  `(try
     ~@body
     (catch Throwable e#
       ~closing
       (throw e#))))

(defn- bind [^ServerSocketChannel server ^SocketAddress address what]
  (try
    (.bind server address)
    (catch IOException e
      (throw (error/error :busy (str what " cannot be bound")
                          {:bpfmap/op :nrepl :bpfmap/hint (ex-message e)} e)))))

(defn- bind-path
  "Binds a server to a path, or throws `:busy`.

  Java converts the address from the kernel to text, which fails if the locale cannot encode the
  path. Such a socket is therefore bound under an ASCII name in its directory, and then moved to its
  path. A socket that was moved stays connected."
  [^ServerSocketChannel server ^Path path]
  (let [what (str "The socket " (socket-dir/text path))]
    (if-not (re-find #"[^\x00-\x7f]" (str path))
      (bind server (UnixDomainSocketAddress/of path) what)
      (with-open [^Fd directory (call/open-file (paths/text (paths/of-java (.getParent path))) false
                                                {:op :nrepl})]
        (let [number (.acquire directory)
              beside (str "/proc/self/fd/" number "/." (.pid (ProcessHandle/current)) ".sock")]
          (try
            ;; A process with the same number was killed before it moved its socket.
            (paths/remove-file beside)
            (bind server (UnixDomainSocketAddress/of beside) what)
            (call/rename beside (paths/text (paths/of-java path)) {:op :nrepl})
            (finally (.release directory))))))))

(defn unix
  "Listens on a Unix socket whose path `bpfmap.nrepl.socket-dir` has checked.

  `serve` is called with the channel of each admitted connection, on its own thread, and
  `complain` with a line about each failure. Returns a Closeable that closes the connections too,
  and removes the socket."
  ^Closeable [^Path path {:keys [serve complain]}]
  (let [claim (socket-dir/claim path)
        ^ServerSocketChannel server (or-close (socket-dir/release claim)
                                      (ServerSocketChannel/open StandardProtocolFamily/UNIX))]
    (or-close (do (.close server) (socket-dir/release claim))
      (bind-path server path)
      (let [claim (socket-dir/mark claim)
            may? (admitted (.getParent path))]
        (listening server {:refusal #(refusal may? %) :serve serve :complain complain}
                   #(socket-dir/release claim))))))

(defn tcp
  "Listens on a TCP port of the loopback address, 0 for any free port.

  Any user of this host can connect. Otherwise like [[unix]]."
  ^Closeable [port {:keys [serve complain]}]
  (let [server (ServerSocketChannel/open StandardProtocolFamily/INET)
        loopback (InetAddress/getByAddress (byte-array [127 0 0 1]))]
    (or-close (.close server)
      (bind server (InetSocketAddress. loopback (int port)) (str "The port " port))
      (listening server {:refusal (constantly nil) :serve serve :complain complain} (fn [])))))

(defn port
  "Returns the TCP port of a listener; nil for a Unix socket."
  [^Listener listener]
  (let [address (.getLocalAddress ^ServerSocketChannel (.-server listener))]
    (when (instance? InetSocketAddress address)
      (.getPort ^InetSocketAddress address))))

(defn connection-count
  "Returns the number of open connections."
  [^Listener listener]
  (.size ^Set (.-connections listener)))
