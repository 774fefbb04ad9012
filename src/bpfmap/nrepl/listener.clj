(ns ^:no-doc bpfmap.nrepl.listener
  "Taking connections: from a Unix socket those of users who may, from TCP those of this host.

  Who is at the other end of a Unix socket the kernel says (SO_PEERCRED): the user who called
  connect(2). It is asked as soon as a connection is there, before a byte of it is read. Only root
  and the user of the server are let in."
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
  "Milliseconds to wait after a connection could not be taken, such as for want of descriptors."
  200)

;; --- who may

(defn- user-of
  "The user at the other end of a Unix socket."
  ^UserPrincipal [^SocketChannel channel]
  (.user ^UnixDomainPrincipal (.getOption channel ExtendedSocketOptions/SO_PEERCRED)))

(defn- admitted
  "The users who may connect: root, and whose the directory is, which was found to be this
  process's. They compare by number."
  [^Path directory]
  (let [users (.getUserPrincipalLookupService (FileSystems/getDefault))]
    (set [(.lookupPrincipalByName users "0")
          (Files/getOwner directory (into-array LinkOption [LinkOption/NOFOLLOW_LINKS]))])))

(defn- refusal
  "Why a connection is not let in, or nil when it is."
  [may? channel]
  (let [user (user-of channel)]
    (when-not (may? user)
      (str "A connection of the user " user
           " was refused: only root and the server's own user are let in"))))

;; --- taking connections

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
  "Lets a connection in, or not."
  [^SocketChannel channel ^Set connections {:keys [refusal serve complain]}]
  (if-let [why (try
                 (refusal channel)
                 (catch IOException e
                   (str "A connection was refused: nobody can tell whose it is: " (ex-message e))))]
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
  "Takes connections until the socket is closed. A failure to take one does not end that: it may
  be for want of descriptors."
  [^ServerSocketChannel server connections {:keys [complain] :as how}]
  (when (try
          (take-one (.accept server) connections how)
          true
          (catch ClosedChannelException _ false)
          (catch Throwable e
            (when (.isOpen server)
              (complain (str "A connection could not be taken: " e))
              (Thread/sleep (long pause))
              true)))
    (recur server connections how)))

(defn- listening
  "A listener on a bound socket, at work."
  [^ServerSocketChannel server how release]
  (let [connections (ConcurrentHashMap/newKeySet)]
    (thread "bpfmap-nrepl-listener" #(take-all server connections how))
    (Listener. server connections release)))

(defmacro ^:private or-close
  "Evaluates body; when it throws, closes first."
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
      (throw (error/error :busy (str what " cannot be had")
                          {:bpfmap/op :nrepl :bpfmap/hint (ex-message e)} e)))))

(defn- bind-path
  "Binds a server to a path, or throws `:busy`.

  Java makes a text of the address that the kernel tells, which fails for a path that the locale
  cannot name. So such a socket is bound to a name in ASCII in its directory, and moved by its
  bytes to its own: a moved socket stays connected."
  [^ServerSocketChannel server ^Path path]
  (let [what (str "The socket " (socket-dir/text path))]
    (if-not (re-find #"[^\x00-\x7f]" (str path))
      (bind server (UnixDomainSocketAddress/of path) what)
      (with-open [^Fd directory (call/open-file (paths/text (paths/of-java (.getParent path))) false
                                                {:op :nrepl})]
        (let [number (.acquire directory)
              beside (str "/proc/self/fd/" number "/." (.pid (ProcessHandle/current)) ".sock")]
          (try
            ;; Of a process that was killed in between, and had the same number
            (paths/remove-file beside)
            (bind server (UnixDomainSocketAddress/of beside) what)
            (call/rename beside (paths/text (paths/of-java path)) {:op :nrepl})
            (finally (.release directory))))))))

(defn unix
  "Listens on a Unix socket, whose path `bpfmap.nrepl.socket-dir` has checked, and takes those
  connections that may.

  `serve` is called with the channel of each, on a thread of its own, and `complain` with a line
  about what went wrong. Returns a Closeable, which closes the connections too, and removes the
  socket."
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
  "Listens on a TCP port of the loopback address, 0 for any that is free, to which any user of
  this host can connect.

  As [[unix]] otherwise."
  ^Closeable [port {:keys [serve complain]}]
  (let [server (ServerSocketChannel/open StandardProtocolFamily/INET)
        loopback (InetAddress/getByAddress (byte-array [127 0 0 1]))]
    (or-close (.close server)
      (bind server (InetSocketAddress. loopback (int port)) (str "The port " port))
      (listening server {:refusal (constantly nil) :serve serve :complain complain} (fn [])))))

(defn port
  "The TCP port of a listener; nil for a Unix socket."
  [^Listener listener]
  (let [address (.getLocalAddress ^ServerSocketChannel (.-server listener))]
    (when (instance? InetSocketAddress address)
      (.getPort ^InetSocketAddress address))))

(defn connection-count
  "How many connections are open."
  [^Listener listener]
  (.size ^Set (.-connections listener)))
