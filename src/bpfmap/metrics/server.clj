(ns ^:no-doc bpfmap.metrics.server
  "Serves a registry and the page over HTTP: the JDK's server, with the handler of the Prometheus
  library for /metrics."
  (:require [bpfmap.error :as error]
            [bpfmap.metrics.credentials :as credentials]
            [clojure.string :as str])
  (:import (com.sun.net.httpserver Authenticator Authenticator$Success BasicAuthenticator
                                   HttpExchange HttpHandler HttpServer HttpsConfigurator
                                   HttpsServer)
           (io.prometheus.metrics.exporter.common PrometheusHttpExchange PrometheusHttpRequest
                                                  PrometheusHttpResponse PrometheusScrapeHandler)
           (io.prometheus.metrics.model.registry PrometheusRegistry)
           (java.io IOException OutputStream)
           (java.net InetAddress InetSocketAddress UnknownHostException)
           (java.nio.charset StandardCharsets)
           (java.security MessageDigest)
           (java.util Collections)
           (java.util.concurrent ExecutorService Executors ThreadFactory)
           (java.util.concurrent.atomic AtomicLong)
           (javax.net.ssl SSLContext SSLContextSpi)))

(set! *warn-on-reflection* true)

(def defaults
  "The default address of the server: only this host can connect."
  {:host "127.0.0.1" :port 9435})

;; --- TLS and passwords

(defn- current-tls
  "Returns a configurator of TLS by the SSLContext in use.

  The JDK's server looks up its SSLContext once, so this one makes engines by the current one."
  ^HttpsConfigurator [in-use]
  (let [current (fn ^SSLContext [] (:tls (:credentials @in-use)))
        spi (proxy [SSLContextSpi] []
              (engineInit [_ _ _])
              (engineGetSocketFactory [] (.getSocketFactory ^SSLContext (current)))
              (engineGetServerSocketFactory [] (.getServerSocketFactory ^SSLContext (current)))
              (engineCreateSSLEngine
                ([] (.createSSLEngine ^SSLContext (current)))
                ([host port] (.createSSLEngine ^SSLContext (current) host (int port))))
              (engineGetServerSessionContext [] (.getServerSessionContext ^SSLContext (current)))
              (engineGetClientSessionContext [] (.getClientSessionContext ^SSLContext (current)))
              (engineGetDefaultSSLParameters []
                (.getDefaultSSLParameters ^SSLContext (current)))
              (engineGetSupportedSSLParameters []
                (.getSupportedSSLParameters ^SSLContext (current))))]
    (HttpsConfigurator. (proxy [SSLContext] [spi (.getProvider ^SSLContext (current)) "TLS"]))))

(defn- same-text?
  "Compares two texts in a time that does not depend on where they differ."
  [^String a ^String b]
  (MessageDigest/isEqual (.getBytes a StandardCharsets/UTF_8) (.getBytes b StandardCharsets/UTF_8)))

(defn- password-check
  "Returns the authenticator for the user and the password in use.

  Everybody is let in while there is none."
  ^Authenticator [in-use]
  (let [current #(:basic-auth (:credentials @in-use))
        basic (proxy [BasicAuthenticator] ["bpfmap"]
                (checkCredentials [given-user given]
                  (let [{:keys [user password] :as known} (current)
                        user? (and known (same-text? user given-user))]
                    (boolean (and known (same-text? password given) user?)))))]
    (proxy [Authenticator] []
      (authenticate [exchange]
        (if (current)
          (.authenticate ^Authenticator basic exchange)
          (Authenticator$Success. nil))))))

;; --- the server

(def ^:private limits
  "Limits of the JDK's server, as system properties.

  The server reads them once; what is set already stays. The times are in seconds: for receiving a
  request, and for an answer, which ends a stream too."
  {"sun.net.httpserver.maxReqTime" "20"
   "sun.net.httpserver.maxRspTime" "600"
   "jdk.httpserver.maxConnections" "200"})

(defn body
  "Sends the headers of an answer, and returns the stream for its content.

  The content is chunked: the JDK's server keeps the descriptor of a client that left before it has
  read an answer of a known length."
  ^OutputStream [^HttpExchange exchange status]
  (if (= "HEAD" (.getRequestMethod exchange))
    (do (.sendResponseHeaders exchange status -1)
        (OutputStream/nullOutputStream))
    (do (.sendResponseHeaders exchange status 0)
        (.getResponseBody exchange))))

(defn- answer [^HttpExchange exchange status ^String text]
  (.set (.getResponseHeaders exchange) "Content-Type" "text/plain; charset=utf-8")
  (with-open [out (body exchange status)]
    (.write out (.getBytes text StandardCharsets/UTF_8))))

;; --- /metrics

(defn- request-of ^PrometheusHttpRequest [^HttpExchange exchange]
  (reify PrometheusHttpRequest
    (getQueryString [_] (.getRawQuery (.getRequestURI exchange)))
    (getHeaders [_ header]
      (Collections/enumeration (or (.get (.getRequestHeaders exchange) header) [])))
    (getMethod [_] (.getRequestMethod exchange))
    (getRequestPath [_] (.getPath (.getRequestURI exchange)))))

(defn- response-of ^PrometheusHttpResponse [^HttpExchange exchange]
  (reify PrometheusHttpResponse
    (setHeader [_ header value]
      (when-not (= "content-length" (str/lower-case header)) ; the content is chunked
        (.set (.getResponseHeaders exchange) header value)))
    (sendHeadersAndGetBody [_ status _] (body exchange status))))

(defn- exchange-of
  "Returns an exchange for the handler of the Prometheus library.

  A client that is gone is not an error. `report` is called with any other one."
  ^PrometheusHttpExchange [^HttpExchange exchange report]
  (let [failed (fn [^Exception e]
                 (when-not (instance? IOException e)
                   (report e)
                   (when (neg? (.getResponseCode exchange))
                     (answer exchange 500 "The scrape failed: see stderr of the exporter\n"))))]
    (reify PrometheusHttpExchange
      (getRequest [_] (request-of exchange))
      (getResponse [_] (response-of exchange))
      (^void handleException [_ ^IOException e] (failed e) nil)
      (^void handleException [_ ^RuntimeException e] (failed e) nil)
      (close [_] (.close exchange)))))

(defn- handler
  "Returns the handler of all requests.

  The server itself compares only the beginning of a path, so there is one handler for all."
  ^HttpHandler [^PrometheusScrapeHandler metrics page report]
  (reify HttpHandler
    (handle [_ exchange]
      (with-open [exchange exchange]
        (let [path (.getPath (.getRequestURI exchange))]
          (cond
            (not= "/metrics" path)
            (when-not ((:handle page) exchange)
              (answer exchange 404 "Not found: the metrics are at /metrics\n"))

            (#{"GET" "HEAD"} (.getRequestMethod exchange))
            (.handleRequest metrics (exchange-of exchange report))

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

  `http` is the part of a checked config. `start-page` is a function of `:http`, a function that
  returns the part in use, and of `:loopback`, whether the address is one. It returns what answers
  other requests: `:handle`, a function of an exchange that returns true if it answers, and
  `:close`. `report` is a function of the exception of a scrape that failed.
  Throws `:busy` if the port is taken, and `:io`, `:permission` or `:invalid-value` for files and
  hosts that cannot be used."
  [registry http start-page report]
  (let [{:keys [host port tls] :as http} (merge defaults http)
        inet-address (address host)
        in-use (atom {:http http :credentials (credentials/load http)})
        https (when tls (current-tls in-use))
        server (listen inet-address host port https)
        page (start-page {:http #(:http @in-use) :loopback (.isLoopbackAddress inet-address)})
        threads (threads)]
    (.setExecutor server threads)
    (let [metrics (PrometheusScrapeHandler. ^PrometheusRegistry registry)]
      (.setAuthenticator (.createContext server "/" (handler metrics page report))
                         (password-check in-use)))
    (.start server)
    {:server server :threads threads :page page :in-use in-use
     :url (url https inet-address (.getPort (.getAddress server)))}))

(defn- restarts
  "Returns what needs a restart to get from one `:http` to another."
  [{:keys [host port tls]} now]
  (cond-> []
    (not= host (:host now)) (conj "change :host")
    (not= port (:port now)) (conj "change :port")
    (and tls (not (:tls now))) (conj "remove :tls")
    (and (:tls now) (not tls)) (conj "add :tls")))

(defn prepare
  "Reads the files of a new `:http`, and returns `{:use function :restart texts}`.

  `:use` makes it the part in use. If something in it needs a restart, `:use` changes nothing, so
  that a password is not removed while the address stays; `:restart` has what to change.
  Throws as [[start]] does for a file that cannot be used."
  [{:keys [in-use]} http]
  (let [http (merge defaults http)
        renewed {:http http :credentials (credentials/load http)}
        restart (restarts (:http @in-use) http)]
    {:restart restart
     :use #(when (empty? restart) (reset! in-use renewed))}))

(defn stop
  "Stops a server, and ends what its clients are waiting for."
  [{:keys [^HttpServer server ^ExecutorService threads page]}]
  ((:close page))
  (.stop server 0)
  (.shutdownNow threads))
