(ns ^:no-doc bpfmap.nrepl.server
  "Runs an nREPL server in a process of root: a REPL for editors that no other user of the host can
  reach.

      bin/clj -M:nrepl

  listens at /run/bpfmap/nrepl.sock; `-M:nrepl --help` has the options. In a service it is

      (def server (nrepl/start {:socket \"/run/my-agent/nrepl.sock\"}))
      (.close server)

  A client runs code as the user of this process. Therefore the server listens on a Unix socket in a
  directory of this user with mode 0700 (`bpfmap.nrepl.socket-dir`), and checks the user of each
  connection (`bpfmap.nrepl.listener`). Results are bounded (`bpfmap.nrepl.bounded-print`). The rest
  is the nREPL library, which the alias :nrepl provides. doc/nrepl.md is for users."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.paths :as paths]
            [bpfmap.impl.kernel.procfs :as procfs]
            [bpfmap.impl.options :as options]
            [bpfmap.impl.waiting :as waiting]
            [bpfmap.nrepl.bounded-print :as bounded-print]
            [bpfmap.nrepl.listener :as listener]
            [bpfmap.nrepl.socket-dir :as socket-dir]
            [bpfmap.nrepl.wire :as wire]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.tools.cli :as cli]
            [nrepl.server :as server])
  (:import (bpfmap.sys Fd)
           (clojure.lang ExceptionInfo)
           (java.io Closeable IOException OutputStream OutputStreamWriter PrintWriter)
           (java.nio.charset StandardCharsets)
           (java.nio.file Files OpenOption Path)
           (java.nio.file.attribute FileAttribute)))

(set! *warn-on-reflection* true)

(defn- complain [message]
  (binding [*out* *err*]
    (println (str "bpfmap nrepl: " message))
    (flush)))

;; --- connections

(defn- serve
  "Serves nREPL on a connection until its client is gone."
  [handler channel]
  (with-open [transport (wire/over channel)]
    (try
      (server/handle handler transport)
      (catch IOException _) ; the client has gone, or the server is closed
      (catch Throwable e
        (complain (str "A connection was closed, because it sent an invalid message: "
                       (first (str/split-lines (str e)))))))))

(defn- refuse [message hint]
  (throw (error/error :invalid-value message {:bpfmap/op :nrepl :bpfmap/hint hint})))

(defn- check [{:keys [socket port trust-all-local-users] :as options}]
  (options/check :nrepl options)
  (cond
    (and socket (or port trust-all-local-users))
    (refuse "Only one of :socket and :port may be given" nil)
    (and port (not trust-all-local-users))
    (refuse
     "A :port must be confirmed: every user and program of this host could run code as this process's user"
     "use :socket, which only this user reaches, or add :trust-all-local-users true")
    (and trust-all-local-users (not port))
    (refuse ":trust-all-local-users requires :port" nil)
    (and port (not (and (int? port) (<= 0 (long port) 65535))))
    (refuse (str ":port must be an integer from 0 to 65535, got " (error/printed port))
            "use 0 for any free port")
    (not (or socket port))
    (refuse ":socket or :port is required" nil)))

;; A server: `address` is `{:socket path}` or `{:port n}`, `url` where clients find it.
(defrecord Server [address url listener]
  Closeable
  (close [_] (.close ^Closeable listener)))

(defn- url
  "Returns the URL of a socket.

  It is the URL of its file with another scheme, so that its bytes are the bytes of the path in
  every locale."
  [^Path path]
  (str "nrepl+unix:" (.getRawPath (.toUri path))))

(defn start
  "Starts a server and returns it as a Closeable with its `:url`.

  Closing it ends its connections and removes the socket.

  | option                   | meaning                                                                          |
  |--------------------------|----------------------------------------------------------------------------------|
  | `:socket`                | absolute path in a directory of its own, which is created with mode 0700         |
  | `:port`                  | TCP port of 127.0.0.1 instead, 0 for any; requires the next option               |
  | `:trust-all-local-users` | true: every user and program of this host can run code as this process's user    |

  Replaces the socket of a server that no longer runs. Throws `:exists` if a server uses it or if
  it is another file, `:permission` if other users could reach or replace the socket, `:busy` for
  a port in use, and `:invalid-value` for invalid options.

      (start {:socket \"/run/my-agent/nrepl.sock\"})"
  ^Server [{:keys [socket port] :as options}]
  (check options)
  (let [handler (server/default-handler #'bounded-print/wrap-bounds)
        how {:serve #(serve handler %) :complain complain}]
    (if port
      (let [listener (listener/tcp port how)
            port (listener/port listener)]
        (->Server {:port port} (str "nrepl://127.0.0.1:" port) listener))
      (let [path (socket-dir/in-private-directory socket true)]
        (->Server {:socket (socket-dir/text path)} (url path) (listener/unix path how))))))

;; --- the command

(defn default-socket
  "Returns the default path of the socket.

  It is /run/bpfmap/nrepl.sock for root, and in the user's runtime directory otherwise.

      (default-socket) ;=> \"/run/bpfmap/nrepl.sock\""
  []
  (let [own (some-> (procfs/environment "XDG_RUNTIME_DIR") paths/argument)]
    (if (or (zero? (socket-dir/effective-user)) (str/blank? own))
      "/run/bpfmap/nrepl.sock"
      (str own "/bpfmap/nrepl.sock"))))

(def ^:private options
  [["-s" "--socket PATH"
    "Socket to listen on, or to connect to with --connect; in a directory of its own"]
   ["-c" "--connect" "Connect to a server instead: a REPL in its process"]
   [nil "--port PORT" "TCP port of 127.0.0.1, for editors without support for sockets"
    :parse-fn #(or (parse-long %) %)]
   [nil "--trust-all-local-users"
    "Let every user of this host run code as this user (required for --port)"]
   ["-h" "--help" "Print this help"]])

(defn- help [summary]
  (str/join "\n" ["Usage: bin/clj -M:nrepl [OPTION ...]"
                  ""
                  "Runs an nREPL server for root and this user only, until Ctrl-C."
                  ""
                  summary
                  ""
                  (str "The default socket is " (default-socket) ".")]))

(defn- announce
  "Prints the address of the server in nREPL's own words, for which editors look."
  [{:keys [address url]}]
  (println (if-let [port (:port address)]
             (str "nREPL server started on port " port " on host 127.0.0.1 - " url)
             (str "nREPL server started on socket " url)))
  (flush))

(defn- leave-port
  "Writes the port to .nrepl-port in this directory, where editors look for it.

  The file is removed when the process ends. An existing file stays untouched."
  [port]
  (try
    (let [file (Files/createFile (socket-dir/java-path ".nrepl-port") (make-array FileAttribute 0))]
      (.deleteOnExit (.toFile file))
      (Files/writeString file (str port) (make-array OpenOption 0)))
    (catch IOException e
      (complain (str "The file .nrepl-port is not written: " e)))))

(defn- prepare-user
  "Adds aliases for the library to the namespace in which sessions begin."
  []
  (when-not (io/resource "bpfmap/sys/Native.class")
    (throw (error/error :not-found "The Java core is not compiled"
                        {:bpfmap/op :nrepl :bpfmap/hint "run script/compile-java"})))
  (binding [*ns* (create-ns 'user)]
    (refer 'clojure.core)
    (require '[bpfmap.core :as bpf] '[bpfmap.host :as host])))

(defn- run-server
  "Runs a server until a signal ends the process."
  [{:keys [port trust-all-local-users] :as given}]
  (when (and port (not trust-all-local-users))
    (refuse
     "--port must be confirmed: every user and program of this host could run code as this user"
     "use --socket, which only this user reaches, or add --trust-all-local-users"))
  (prepare-user)
  (let [{:keys [address] :as server} (start (if (or port trust-all-local-users)
                                              given
                                              (update given :socket #(or % (default-socket)))))]
    (.addShutdownHook (Runtime/getRuntime) (Thread. ^Runnable (fn [] (.close ^Closeable server))))
    (some-> (:port address) leave-port)
    (announce server)
    (waiting/value (promise) :nrepl)))

(defn- run-client [{:keys [socket]}]
  (let [path (socket-dir/in-private-directory (or socket (default-socket)) false)]
    (when-not (socket-dir/answers? path)
      (throw (error/error :not-found (str "No nREPL server is at " (socket-dir/text path))
                          {:bpfmap/op :nrepl :bpfmap/hint "bin/clj -M:nrepl starts one"})))
    (let [connect (fn [path]
                    ((requiring-resolve 'nrepl.cmdline/-main) "--connect" "--socket" path))]
      (if-not (re-find #"[^\x00-\x7f]" (str path))
        (connect (str path))
        ;; nREPL's client accepts a text, which Java encodes by the locale. The path of a descriptor
        ;; of the socket is ASCII.
        (with-open [^Fd fd (call/open-file (paths/text (paths/of-java path)) false {:op :nrepl})]
          (let [number (.acquire fd)]
            (try
              (connect (str "/proc/self/fd/" number))
              (finally (.release fd)))))))))

(defn run
  "Runs a server or client as the arguments say, and returns the exit code.

  Exit codes: 1 failure, 2 wrong usage. A server runs until a signal.

      (run [\"--socket\" \"/run/my-agent/nrepl.sock\"])"
  [args]
  (let [{:keys [errors arguments summary]
         {:keys [connect port trust-all-local-users] :as given} :options}
        (cli/parse-opts args options)
        wrong (cond
                errors (first errors)
                (seq arguments) (str "Unexpected argument " (pr-str (first arguments)))
                (and connect (or port trust-all-local-users)) "--connect cannot be combined with --port or --trust-all-local-users"
                (and trust-all-local-users (not port)) "--trust-all-local-users requires --port")]
    (try
      (cond
        (:help given) (do (println (help summary)) 0)
        wrong (do (complain (str wrong "; see --help")) 2)
        connect (do (run-client given) 0)
        :else (run-server given))
      (catch ExceptionInfo e
        (when-not (:bpfmap/error (ex-data e)) (throw e))
        (complain (ex-message e))
        (if (= :invalid-value (:bpfmap/error (ex-data e))) 2 1)))))

(defn- utf-8
  "Returns a writer in UTF-8, in every locale."
  [out]
  (PrintWriter. (OutputStreamWriter. ^OutputStream out StandardCharsets/UTF_8) true))

(defn -main
  "Runs a server, or with --connect a client, and exits."
  [& args]
  (System/exit (binding [*out* (utf-8 System/out), *err* (utf-8 System/err)]
                 (run (procfs/arguments args)))))
