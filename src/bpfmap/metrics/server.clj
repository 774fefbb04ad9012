(ns ^:no-doc bpfmap.metrics.server
  "Serves a registry over HTTP, with the server of the Prometheus library."
  (:require [bpfmap.error :as error]
            [clojure.string :as str])
  (:import (com.sun.net.httpserver Authenticator BasicAuthenticator HttpExchange HttpHandler
                                   HttpsConfigurator)
           (io.prometheus.metrics.exporter.httpserver HTTPServer)
           (io.prometheus.metrics.model.registry PrometheusRegistry)
           (java.io ByteArrayInputStream IOException)
           (java.net InetAddress InetSocketAddress UnknownHostException)
           (java.nio.charset StandardCharsets)
           (java.nio.file Files LinkOption Path)
           (java.nio.file.attribute PosixFilePermission)
           (java.security GeneralSecurityException KeyStore MessageDigest)
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

(def handlers
  "The pages besides /metrics, by path: functions of an HttpExchange.

  A page is for GET and HEAD only. There is none yet."
  {})

(defn- answer [^HttpExchange exchange status ^String text]
  (let [content (.getBytes text StandardCharsets/UTF_8)
        head? (= "HEAD" (.getRequestMethod exchange))]
    (.set (.getResponseHeaders exchange) "Content-Type" "text/plain; charset=utf-8")
    (.sendResponseHeaders exchange status (if head? -1 (alength content)))
    (when-not head?
      (with-open [out (.getResponseBody exchange)]
        (.write out content)))))

(defn- pages
  "Returns the handler of all paths but /metrics."
  ^HttpHandler []
  (reify HttpHandler
    (handle [_ exchange]
      (with-open [exchange exchange]
        (let [page (get handlers (.getPath (.getRequestURI exchange)))]
          (cond
            (nil? page) (answer exchange 404 "Not found: the metrics are at /metrics\n")
            (not (#{"GET" "HEAD"} (.getRequestMethod exchange)))
            (answer exchange 405 "Only GET is allowed\n")
            :else (page exchange)))))))

(defn- address ^InetAddress [host]
  (try
    (InetAddress/getByName host)
    (catch UnknownHostException e
      (throw (error/error :invalid-value (str "Unknown host " (error/printed host))
                          {:bpfmap/op :metrics :bpfmap/path [:http :host]
                           :bpfmap/hint "give an address of this host, such as \"127.0.0.1\""}
                          e)))))

(defn start
  "Starts a server of a registry and returns it as `{:server :url}`; [[stop]] it.

  `http` is the part of a checked config. Throws `:busy` if the port is taken, and `:io`,
  `:permission` or `:invalid-value` for files and hosts that cannot be used."
  [registry http]
  (let [{:keys [host port basic-auth] tls-files :tls} (merge defaults http)
        inet-address (address host)
        builder (-> (HTTPServer/builder)
                    (.inetAddress inet-address)
                    (.port (int port))
                    (.registry ^PrometheusRegistry registry)
                    (.registerHealthHandler false)
                    (.defaultHandler (pages)))]
    (when tls-files (.httpsConfigurator builder (tls tls-files)))
    (when basic-auth (.authenticator builder (password-check basic-auth)))
    (try
      (let [^HTTPServer server (.buildAndStart builder)]
        {:server server
         :url (str (if tls-files "https" "http") "://"
                   (let [shown (.getHostString (InetSocketAddress. inet-address 0))]
                     (if (str/includes? shown ":") (str "[" shown "]") shown))
                   ":" (.getPort server) "/metrics")})
      (catch java.net.BindException e
        (throw (error/error :busy (str "Cannot listen at " host ":" port)
                            {:bpfmap/op :metrics :bpfmap/path [:http :port]
                             :bpfmap/hint (str (ex-message e)
                                               "; give another :port or :host in :http")}
                            e)))
      (catch IOException e
        (throw (error/error :io (str "Cannot listen at " host ":" port)
                            {:bpfmap/op :metrics :bpfmap/hint (ex-message e)} e))))))

(defn stop
  "Stops a server; requests in progress end."
  [{:keys [^HTTPServer server]}]
  (.close server))
