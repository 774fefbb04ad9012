(ns ^:no-doc bpfmap.metrics.server
  "Serves a registry and the page over HTTP: the JDK's server, with the handler of the Prometheus
  library for /metrics."
  (:require [bpfmap.error :as error]
            [clojure.string :as str])
  (:import (com.sun.net.httpserver Authenticator BasicAuthenticator HttpExchange HttpHandler
                                   HttpServer HttpsConfigurator HttpsServer)
           (io.prometheus.metrics.exporter.httpserver MetricsHandler)
           (io.prometheus.metrics.model.registry PrometheusRegistry)
           (java.io ByteArrayInputStream IOException)
           (java.net InetAddress InetSocketAddress UnknownHostException)
           (java.nio.charset StandardCharsets)
           (java.nio.file Files LinkOption Path)
           (java.nio.file.attribute PosixFilePermission)
           (java.security GeneralSecurityException KeyStore MessageDigest)
           (java.util.concurrent ExecutorService Executors ThreadFactory)
           (java.util.concurrent.atomic AtomicLong)
           (javax.net.ssl KeyManagerFactory SSLContext)))

(set! *warn-on-reflection* true)

(def defaults
  "The default address of the server: only this host can connect."
  {:host "127.0.0.1" :port 9435})

;; --- files with secrets

(defn- io-error [what file ^Throwable e]
  (error/error :io (str "Cannot read " what " " (error/printed file))
               {:bpfmap/op :metrics :bpfmap/file file
                :bpfmap/hint (if (instance? java.nio.file.NoSuchFileException e)
                               "there is no such file"
                               (or (ex-message e) (str (class e))))}
               e))

(defn- read-secret
  "Returns the first line of a file, which only its owner and group may read."
  [file]
  (let [path (Path/of file (make-array String 0))]
    (try
      (when (contains? (Files/getPosixFilePermissions path (make-array LinkOption 0))
                       PosixFilePermission/OTHERS_READ)
        (throw (error/error :permission (str "Other users can read the file of the password "
                                             (error/printed file))
                            {:bpfmap/op :metrics :bpfmap/file file
                             :bpfmap/hint (str "chmod o= " file)})))
      (let [line (first (str/split-lines (Files/readString path)))]
        (when (str/blank? line)
          (throw (error/error :invalid-value (str "The file of the password " (error/printed file)
                                                  " must have a password in its first line")
                              {:bpfmap/op :metrics :bpfmap/file file})))
        line)
      (catch IOException e
        (throw (io-error "the file of the password" file e))))))

;; --- TLS and passwords

(defn- tls ^HttpsConfigurator [{:keys [keystore password-file]}]
  (let [password (.toCharArray ^String (read-secret password-file))
        content (try
                  (Files/readAllBytes (Path/of keystore (make-array String 0)))
                  (catch IOException e
                    (throw (io-error "the key store" keystore e))))]
    (try
      (let [store (doto (KeyStore/getInstance "PKCS12")
                    (.load (ByteArrayInputStream. content) password))
            keys (doto (KeyManagerFactory/getInstance (KeyManagerFactory/getDefaultAlgorithm))
                   (.init store password))]
        (HttpsConfigurator. (doto (SSLContext/getInstance "TLS")
                              (.init (.getKeyManagers keys) nil nil))))
      (catch GeneralSecurityException e
        (throw (io-error "the key store" keystore e)))
      ;; A wrong password is an IOException here.
      (catch IOException e
        (throw (io-error "the key store" keystore e))))))

(defn- same-text?
  "Compares two texts in a time that does not depend on where they differ."
  [^String a ^String b]
  (MessageDigest/isEqual (.getBytes a StandardCharsets/UTF_8) (.getBytes b StandardCharsets/UTF_8)))

(defn- password-check ^Authenticator [{:keys [user password-file]}]
  (let [password (read-secret password-file)]
    (proxy [BasicAuthenticator] ["bpfmap"]
      (checkCredentials [given-user given]
        (let [user? (same-text? user given-user)]
          (and (same-text? password given) user?))))))

;; --- the server

(def ^:private limits
  "Limits of the JDK's server, as system properties.

  The server reads them once; what is set already stays. The times are in seconds: for receiving a
  request, and for an answer, which ends a stream too."
  {"sun.net.httpserver.maxReqTime" "20"
   "sun.net.httpserver.maxRspTime" "600"
   "jdk.httpserver.maxConnections" "200"})

(defn- answer [^HttpExchange exchange status ^String text]
  (let [content (.getBytes text StandardCharsets/UTF_8)
        head? (= "HEAD" (.getRequestMethod exchange))]
    (.set (.getResponseHeaders exchange) "Content-Type" "text/plain; charset=utf-8")
    (.sendResponseHeaders exchange status (if head? -1 (alength content)))
    (when-not head?
      (with-open [out (.getResponseBody exchange)]
        (.write out content)))))

(defn- handler
  "Returns the handler of all requests.

  The server itself compares only the beginning of a path, so there is one handler for all."
  ^HttpHandler [^HttpHandler metrics page]
  (reify HttpHandler
    (handle [_ exchange]
      (with-open [exchange exchange]
        (let [path (.getPath (.getRequestURI exchange))]
          (cond
            (not= "/metrics" path)
            (when-not (and page ((:handle page) exchange))
              (answer exchange 404 "Not found: the metrics are at /metrics\n"))

            (#{"GET" "HEAD"} (.getRequestMethod exchange))
            (.handle metrics exchange)

            :else
            (do (.set (.getResponseHeaders exchange) "Allow" "GET, HEAD")
                (answer exchange 405 "Only GET is allowed\n"))))))))

(defn- threads
  "Returns the threads of the server, at most one for each connection.

  So a client that waits, or reads slowly, does not delay another one."
  ^ExecutorService []
  (let [n (AtomicLong.)]
    (Executors/newCachedThreadPool
     (reify ThreadFactory
       (newThread [_ f]
         (doto (Thread. f (str "bpfmap-http-" (.incrementAndGet n))) (.setDaemon true)))))))

(defn- address ^InetAddress [host]
  (try
    (InetAddress/getByName host)
    (catch UnknownHostException e
      (throw (error/error :invalid-value (str "Unknown host " (error/printed host))
                          {:bpfmap/op :metrics :bpfmap/path [:http :host]
                           :bpfmap/hint "give an address of this host, such as \"127.0.0.1\""}
                          e)))))

(defn- listen
  "Returns a server that is bound to an address; not started yet."
  ^HttpServer [^InetAddress inet-address host port https]
  (doseq [[k v] limits :when (nil? (System/getProperty k))]
    (System/setProperty k v))
  (try
    (let [socket-address (InetSocketAddress. inet-address (int port))]
      (if https
        (doto (HttpsServer/create socket-address 0) (.setHttpsConfigurator https))
        (HttpServer/create socket-address 0)))
    (catch java.net.BindException e
      (throw (error/error :busy (str "Cannot listen at " host ":" port)
                          {:bpfmap/op :metrics :bpfmap/path [:http :port]
                           :bpfmap/hint (str (ex-message e)
                                             "; give another :port or :host in :http")}
                          e)))
    (catch IOException e
      (throw (error/error :io (str "Cannot listen at " host ":" port)
                          {:bpfmap/op :metrics :bpfmap/hint (ex-message e)} e)))))

(defn- url [https ^InetAddress inet-address port]
  (let [shown (.getHostString (InetSocketAddress. inet-address 0))]
    (str (if https "https" "http") "://"
         (if (str/includes? shown ":") (str "[" shown "]") shown)
         ":" port "/metrics")))

(defn start
  "Starts a server of a registry and returns it with its `:url`; [[stop]] it.

  `http` is the part of a checked config. `start-page` gets `:password`, whether clients need one,
  and `:loopback`, whether the address is one, and returns what answers other requests: `:handle`, a
  function of an exchange that returns true if it answers, and `:close`; or nil.
  Throws `:busy` if the port is taken, and `:io`, `:permission` or `:invalid-value` for files and
  hosts that cannot be used."
  [registry http start-page]
  (let [{:keys [host port basic-auth] tls-files :tls} (merge defaults http)
        inet-address (address host)
        https (some-> tls-files tls)
        authenticator (some-> basic-auth password-check)
        server (listen inet-address host port https)
        page (start-page {:password (some? basic-auth)
                          :loopback (.isLoopbackAddress inet-address)})
        threads (threads)]
    (.setExecutor server threads)
    (let [context (.createContext server "/"
                                  (handler (MetricsHandler. ^PrometheusRegistry registry) page))]
      (when authenticator (.setAuthenticator context authenticator)))
    (.start server)
    {:server server :threads threads :page page
     :url (url https inet-address (.getPort (.getAddress server)))}))

(defn stop
  "Stops a server, and ends what its clients are waiting for."
  [{:keys [^HttpServer server ^ExecutorService threads page]}]
  (when page
    ((:close page)))
  (.stop server 0)
  (.shutdownNow threads))
