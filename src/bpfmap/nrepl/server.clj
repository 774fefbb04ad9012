(ns ^:no-doc bpfmap.nrepl.server
  "An nREPL server for a process that is root: a REPL in it, for editors, that no other user of
  the host reaches.

      bin/clj -M:nrepl

  listens at /run/bpfmap/nrepl.sock; `-M:nrepl --help` has the options. In a service it is

      (def server (nrepl/start {:socket \"/run/my-agent/nrepl.sock\"}))
      (.close server)

  Whoever connects runs code as the user of this process. Therefore it is a Unix socket, in a
  directory of mode 0700 that is this user's (`bpfmap.nrepl.socket-dir`), and the kernel is asked
  who connects (`bpfmap.nrepl.listener`). Results come bounded (`bpfmap.nrepl.bounded-print`). The
  rest is the nREPL library, which comes with the alias :nrepl. doc/nrepl.md is for users."
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
  "Speaks nREPL over a connection until its client has gone."
  [handler channel]
  (with-open [transport (wire/over channel)]
    (try
      (server/handle handler transport)
      (catch IOException _) ; the client has gone, or the server was closed
      (catch Throwable e
        (complain (str "A connection was closed, since what came was no message: "
                       (first (str/split-lines (str e)))))))))

(defn- refuse [message hint]
  (throw (error/error :invalid-value message {:bpfmap/op :nrepl :bpfmap/hint hint})))

(defn- check [{:keys [socket port trust-all-local-users] :as options}]
  (options/check :nrepl options)
  (cond
    (and socket (or port trust-all-local-users))
    (refuse "A server has a socket or a port, not both" nil)
    (and port (not trust-all-local-users))
    (refuse
     "A TCP port is open to every user and program of this host, who could then run code as this process's user"
            "leave out the port, for a socket that only this user reaches; or say :trust-all-local-users true as well")
    (and trust-all-local-users (not port))
    (refuse ":trust-all-local-users is of a :port, and there is none" nil)
    (and port (not (and (int? port) (<= 0 (long port) 65535))))
    (refuse (str "Not a port: " (pr-str (error/shown port)))
            "it is a number from 0 to 65535; 0 takes any that is free")
    (not (or socket port))
    (refuse "A server needs a :socket" nil)))

;; A server: `address` is `{:socket path}` or `{:port n}`, `url` where clients find it.
(defrecord Server [address url listener]
  Closeable
  (close [_] (.close ^Closeable listener)))

(defn- url
  "Returns the URL of a socket: that of its file, in another scheme, so that its bytes are the
  path's in every locale."
  [^Path path]
  (str "nrepl+unix:" (.getRawPath (.toUri path))))

(defn start
  "Starts a server; returns it as a Closeable, with its `:url`. Closing it ends its connections
  and removes the socket.

  | option                   | what it is                                                                       |
  |--------------------------|----------------------------------------------------------------------------------|
  | `:socket`                | an absolute path, in a directory of its own, which is made with mode 0700       |
  | `:port`                  | a TCP port of 127.0.0.1 instead, 0 for any; only together with the next          |
  | `:trust-all-local-users` | true: every user and program of this host may run code as this process's user    |

  A socket of a server that is gone is replaced. Throws `:exists` where one is alive, or another
  file is there; `:permission` where other users could reach the socket or put another in its
  place; `:busy` for a port that is taken; `:invalid-value` for odd options.

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
  "Where the server listens unless told otherwise: /run/bpfmap/nrepl.sock for root, else in the
  user's runtime directory.

      (default-socket) ;=> \"/run/bpfmap/nrepl.sock\""
  []
  (let [own (some-> (procfs/environment "XDG_RUNTIME_DIR") paths/argument)]
    (if (or (zero? (socket-dir/effective-user)) (str/blank? own))
      "/run/bpfmap/nrepl.sock"
      (str own "/bpfmap/nrepl.sock"))))

(def ^:private options
  [["-s" "--socket PATH"
    "Where to listen, or with --connect what to connect to; in a directory of its own"]
   ["-c" "--connect" "Be a client on the terminal instead: a REPL in the server's process"]
   [nil "--port PORT" "Listen on a TCP port of 127.0.0.1, for editors that know no sockets"
    :parse-fn #(or (parse-long %) %)]
   [nil "--trust-all-local-users"
    "Needed for --port: everybody on this host may run code as this user"]
   ["-h" "--help" "Print this"]])

(defn- help [summary]
  (str/join "\n" ["Usage: bin/clj -M:nrepl [OPTION ...]"
                  ""
                  "An nREPL server that only root and this user reach, until Ctrl-C."
                  ""
                  summary
                  ""
                  (str "Without --socket it is " (default-socket) ".")]))

(defn- announce
  "Says where the server is, in nREPL's own words, which editors look for."
  [{:keys [address url]}]
  (println (if-let [port (:port address)]
             (str "nREPL server started on port " port " on host 127.0.0.1 - " url)
             (str "nREPL server started on socket " url)))
  (flush))

(defn- leave-port
  "Leaves the port where editors look for it, in this directory, as long as the process runs. What
  is there is not touched."
  [port]
  (try
    (let [file (Files/createFile (socket-dir/java-path ".nrepl-port") (make-array FileAttribute 0))]
      (.deleteOnExit (.toFile file))
      (Files/writeString file (str port) (make-array OpenOption 0)))
    (catch IOException e
      (complain (str "The file .nrepl-port is not written: " e)))))

(defn- prepare-user
  "Gives the namespace in which sessions begin short names for the library."
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
     "--port is open to every user and program of this host, who could then run code as this user"
            "leave it out, for a socket that only this user reaches; or add --trust-all-local-users"))
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
        ;; nREPL's client takes a text, which Java encodes as the locale says: a descriptor of the
        ;; socket has a name in ASCII.
        (with-open [^Fd fd (call/open-file (paths/text (paths/of-java path)) false {:op :nrepl})]
          (let [number (.acquire fd)]
            (try
              (connect (str "/proc/self/fd/" number))
              (finally (.release fd)))))))))

(defn run
  "Does what the arguments say, and returns the exit code: 1 when it cannot, 2 for wrong usage. A
  server runs on.

      (run [\"--socket\" \"/run/my-agent/nrepl.sock\"])"
  [args]
  (let [{:keys [errors arguments summary]
         {:keys [connect port trust-all-local-users] :as given} :options}
        (cli/parse-opts args options)
        wrong (cond
                errors (first errors)
                (seq arguments) (str "It takes no argument, such as " (pr-str (first arguments)))
                (and connect (or port trust-all-local-users)) "--connect is to a --socket"
                (and trust-all-local-users (not port)) "--trust-all-local-users is for a --port")]
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
  "Returns a writer in UTF-8, whatever the locale is."
  [out]
  (PrintWriter. (OutputStreamWriter. ^OutputStream out StandardCharsets/UTF_8) true))

(defn -main
  "Runs a server, or with --connect a client, and exits."
  [& args]
  (System/exit (binding [*out* (utf-8 System/out), *err* (utf-8 System/err)]
                 (run (procfs/arguments args)))))
