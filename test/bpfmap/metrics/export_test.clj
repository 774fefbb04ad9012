(ns bpfmap.metrics.export-test
  "`bpfmap export`: what it serves and to whom, how it takes a new config, how it ends."
  (:require [bpfmap.cli.calling :refer [bpfmap refused]]
            [bpfmap.core :as bpf]
            [bpfmap.exposition :as exposition]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.metrics.credentials :as credentials]
            [bpfmap.metrics.export :as export]
            [clojure.data.json :as json]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io BufferedReader Closeable File)
           (java.net InetSocketAddress Socket URI)
           (java.net.http HttpClient HttpRequest HttpRequest$BodyPublishers HttpRequest$Builder
                          HttpResponse$BodyHandlers)
           (java.security KeyStore SecureRandom)
           (java.security.cert X509Certificate)
           (java.util Base64 List)
           (java.util.concurrent TimeUnit)
           (javax.net.ssl SSLContext SSLSocket TrustManager)))

(set! *warn-on-reflection* true)

(defmacro ^:private with-directory [[dir] & body]
  `(let [~dir (fixture/temporary-directory)]
     (try
       ~@body
       (finally (run! #(.delete ^File %) (reverse (file-seq ~dir)))))))

(defn- file-in [dir name content]
  (let [file (io/file dir name)]
    (spit file content)
    (str file)))

(defn- fetched
  "The status and the body of a GET, or of another method."
  ([url] (fetched url {}))
  ([url {:keys [method headers ^SSLContext ssl]}]
   (let [client (.build (cond-> (HttpClient/newBuilder) ssl (.sslContext ssl)))
         ^HttpRequest$Builder builder (.method (HttpRequest/newBuilder (URI. url)) (or method "GET")
                                               (HttpRequest$BodyPublishers/noBody))
         _ (doseq [[k v] headers] (.header builder k v))
         request (.build builder)
         response (.send client request (HttpResponse$BodyHandlers/ofString))]
     {:status (.statusCode response) :body (.body response)
      :type (.orElse (.firstValue (.headers response) "content-type") nil)})))

(defmacro ^:private with-export
  "Runs body with an export of a config, given as data."
  [[e dir config] & body]
  `(let [~e (export/start (file-in ~dir "metrics.edn" (pr-str ~config)) (fn [_#]))]
     (try
       ~@body
       (finally (export/stop ~e)))))

(defn- counts [entries]
  (doto (bpf/create {:type :hash :name "t_export" :key :u32 :value :u64 :max-entries 64})
    (bpf/put-all! entries)))

(defn- config-for [m]
  {:http {:port 0} :host false
   :metrics [{:name "m" :type :gauge :map {:id (:id (bpf/info m))} :labels {:k :key}}]})

;; --- HTTP

(kernel-test serves-metrics
  (testing "the server has /metrics in each format, on the loopback address only"
    (with-directory [dir]
      (with-open [m ^Closeable (counts {1 5})]
        (with-export [e dir (config-for m)]
          (let [url (str (:url e))
                at #(str/replace url "/metrics" %)]
            (is (str/starts-with? url "http://127.0.0.1:"))
            (let [{:keys [status body type]} (fetched url)]
              (is (= [200 "text/plain; version=0.0.4; charset=utf-8"] [status type]))
              (is (= {{"k" "1"} 5.0}
                     (exposition/values-of (exposition/read-text body false) "m"))))
            (let [{:keys [status body type]}
                  (fetched url {:headers {"Accept" "application/openmetrics-text; version=1.0.0"}})]
              (is (= [200 true] [status (str/starts-with? type "application/openmetrics-text")]))
              (is (= {{"k" "1"} 5.0}
                     (exposition/values-of (exposition/read-text body true) "m"))))
            (doseq [path ["/x" "/-/healthy" "/metric" "/metrics/" "/metrics/x" "/metricsfoo"]]
              (is (= {:status 404 :body "Not found: the metrics are at /metrics\n"}
                     (dissoc (fetched (at path)) :type))
                  path))
            (is (= 405 (:status (fetched url {:method "POST"}))))
            (testing "other addresses of the host do not answer"
              (let [port (.getPort (URI. url))
                    others (for [^java.net.NetworkInterface i
                                 (enumeration-seq (java.net.NetworkInterface/getNetworkInterfaces))
                                 ^java.net.InetAddress a (enumeration-seq (.getInetAddresses i))
                                 :when (not (.isLoopbackAddress a))]
                             a)]
                (doseq [^java.net.InetAddress a others]
                  (is (thrown? java.io.IOException
                               (with-open [s (Socket.)]
                                 (.connect s (InetSocketAddress. a port) 5000)))
                      (str a)))))))))))

(kernel-test basic-auth
  (testing "with :basic-auth, only the user with the password is served"
    (with-directory [dir]
      (let [secret (io/file dir "password")
            basic (fn [text]
                    {:headers {"Authorization"
                               (str "Basic " (.encodeToString (Base64/getEncoder)
                                                              (.getBytes ^String text "UTF-8")))}})
            config {:http {:port 0 :basic-auth {:user "prom" :password-file (str secret)}}
                    :host false :metrics []}]
        (spit secret "s3cret\n")
        (testing "a file that others can read is refused"
          (.setReadable secret true false)
          (let [{:keys [message] :bpfmap/keys [error]}
                (error-of (export/start (file-in dir "m.edn" (pr-str config)) nil))]
            (is (= :permission error))
            (is (= (str "Other users can read the file of the password " (pr-str (str secret))
                        ": chmod o= " secret)
                   message))))
        (.setReadable secret false false)
        (.setReadable secret true true)
        (with-export [e dir config]
          (is (= [401 401 401 200 401]
                 [(:status (fetched (:url e)))
                  (:status (fetched (:url e) (basic "prom:wrong")))
                  (:status (fetched (:url e) (basic "other:s3cret")))
                  (:status (fetched (:url e) (basic "prom:s3cret")))
                  (:status (fetched (str/replace (:url e) "/metrics" "/")))])))
        (testing "files that are missing or empty"
          (spit secret "\n")
          (is (= (str "The file of the password " (pr-str (str secret))
                      " must have a password in its first line")
                 (:message (error-of (export/start (file-in dir "m.edn" (pr-str config)) nil)))))
          (.delete secret)
          (is (= (str "Cannot read the file of the password " (pr-str (str secret))
                      ": there is no such file")
                 (:message (error-of (export/start (file-in dir "m.edn" (pr-str config)) nil))))))))))

(defn- trusting-all ^SSLContext []
  (doto (SSLContext/getInstance "TLS")
    (.init nil
           (into-array TrustManager
                       [(proxy [javax.net.ssl.X509ExtendedTrustManager] []
                          (checkServerTrusted ([_ _]) ([_ _ _]))
                          (checkClientTrusted ([_ _]) ([_ _ _]))
                          (getAcceptedIssuers [] (make-array X509Certificate 0)))])
           (SecureRandom.))))

(kernel-test tls
  (testing "with :tls, the server answers by HTTPS with the key of a PKCS12 key store"
    (with-directory [dir]
      (let [keystore (str (io/file dir "keys.p12"))
            secret (io/file dir "password")
            config {:http {:port 0 :tls {:keystore keystore :password-file (str secret)}}
                    :host false :metrics []}
            failing (fn [] (:message (error-of (export/start (file-in dir "m.edn" (pr-str config))
                                                             nil))))]
        (spit secret "changeit\n")
        (.setReadable secret false false)
        (.setReadable secret true true)
        (is (= (str "Cannot read the key store " (pr-str keystore) ": there is no such file")
               (failing)))
        (let [{:keys [exit out err]}
              (fixture/run [(str (System/getProperty "java.home") "/bin/keytool") "-genkeypair"
                            "-alias" "bpfmap" "-keyalg" "EC" "-dname" "CN=localhost" "-storetype"
                            "PKCS12" "-storepass" "changeit" "-keystore" keystore])]
          (is (= 0 exit) (str out err)))
        (with-export [e dir config]
          (is (str/starts-with? (:url e) "https://127.0.0.1:"))
          (let [ssl (trusting-all)]
            (is (= 200 (:status (fetched (str/replace (:url e) "127.0.0.1" "localhost")
                                         {:ssl ssl}))))))
        (spit secret "wrong\n")
        (is (str/starts-with? (failing) (str "Cannot read the key store " (pr-str keystore) ": ")))))))

(defn- keytool [& args]
  (let [{:keys [exit out err]}
        (fixture/run (into [(str (System/getProperty "java.home") "/bin/keytool")] args))]
    (is (= 0 exit) (str out err))
    out))

(defn- pem [label ^bytes content]
  (str "-----BEGIN " label "-----\n"
       (.encodeToString (Base64/getMimeEncoder 64 (.getBytes "\n")) content)
       "\n-----END " label "-----\n"))

(defn- private-file [dir name content]
  (let [file (file-in dir name content)]
    (.setReadable (io/file file) false false)
    (.setReadable (io/file file) true true)
    file))

(defn- new-pairs
  "Makes keys by algorithm: {:certificate :key}, as PEM, and the DER of the key.

  The first is the issuer of the others."
  [dir algorithms]
  (let [keystore (str (io/file dir "all.p12"))
        password (.toCharArray "changeit")]
    (doseq [algorithm algorithms :let [issuer? (= algorithm (first algorithms))]]
      (apply keytool "-genkeypair" "-alias" algorithm "-keyalg" algorithm
             "-dname" (str "CN=" algorithm) "-storetype" "PKCS12" "-storepass" "changeit"
             "-keystore" keystore
             (if issuer? ["-ext" "bc:c"] ["-signer" (first algorithms)])))
    (let [store (KeyStore/getInstance "PKCS12")]
      (with-open [in (io/input-stream keystore)]
        (.load store in password))
      (for [algorithm algorithms
            :let [der (.getEncoded (.getKey store algorithm password))]]
        {:certificate (str/join (map #(pem "CERTIFICATE" (.getEncoded ^X509Certificate %))
                                     (.getCertificateChain store algorithm)))
         :key (pem "PRIVATE KEY" der)
         :der der}))))

(defn- served-names
  "The names of the certificates that a server presents to a new client."
  [url]
  (let [{:keys [port]} (bean (URI. url))
        socket ^SSLSocket (.createSocket (.getSocketFactory (trusting-all)) "localhost" (int port))]
    (with-open [socket socket]
      (.startHandshake socket)
      (mapv #(str (.getSubjectX500Principal ^X509Certificate %))
            (.getPeerCertificates (.getSession socket))))))

(kernel-test tls-of-pem-files
  (testing "with a certificate and a key in PEM files, the server answers by HTTPS"
    (with-directory [dir]
      (let [[rsa ec ed] (new-pairs dir ["RSA" "EC" "Ed25519"])
            files (fn [certificate key]
                    {:certificate (file-in dir "cert.pem" certificate)
                     :key (private-file dir "key.pem" key)})
            config (fn [tls] {:http {:port 0 :tls tls} :host false :metrics []})
            error (fn [tls] (error-of (export/start (file-in dir "m.edn" (pr-str (config tls)))
                                                    nil)))]
        (doseq [[{:keys [certificate key]} names] [[rsa ["CN=RSA"]] [ec ["CN=EC" "CN=RSA"]]
                                                   [ed ["CN=Ed25519" "CN=RSA"]]]
                :let [tls (files (str "a text before it\n" certificate) key)]]
          (with-export [e dir (config tls)]
            (is (= 200 (:status (fetched (str/replace (:url e) "127.0.0.1" "localhost")
                                         {:ssl (trusting-all)}))))
            (is (= names (served-names (:url e))))))
        (testing "a renewed certificate is used after SIGHUP, a broken one is not"
          (with-export [e dir (config (files (:certificate rsa) (:key rsa)))]
            (is (= ["CN=RSA"] (served-names (:url e))))
            (files (:certificate ec) (:key ec))
            (is (= ["CN=RSA"] (served-names (:url e))))
            (is (= (str "The config " (pr-str (:file e)) " was read again") (export/reload e)))
            (is (= ["CN=EC" "CN=RSA"] (served-names (:url e))))
            (files (:certificate rsa) (:key ec))
            (is (= (str "The key " (pr-str (str (io/file dir "key.pem")))
                        " does not belong to the first certificate in "
                        (pr-str (str (io/file dir "cert.pem")))
                        ": the certificate of the server must come before others"
                        "; the config before it stays in use")
                   (export/reload e)))
            (is (= ["CN=EC" "CN=RSA"] (served-names (:url e))))))
        (testing "files that cannot be used are refused, and --check prints all of them"
          (let [command (fn [file] (str "convert it with openssl pkcs8 -topk8 -nocrypt -in " file
                                        " -out NEW.pem"))]
            (doseq [[certificate key kind what reason]
                    [[(:certificate ec) (:key rsa) :invalid-value "The key"
                      #(str " does not belong to the first certificate in " (pr-str (:certificate %))
                            ": the certificate of the server must come before others")]
                     [(:certificate ec) (pem "ENCRYPTED PRIVATE KEY" (:der ec)) :io
                      "Cannot read the key" #(str ": it is encrypted; " (command (:key %)))]
                     [(:certificate ec) (pem "RSA PRIVATE KEY" (:der rsa)) :io "Cannot read the key"
                      #(str ": it has an RSA PRIVATE KEY instead of PKCS#8; " (command (:key %)))]
                     [(:certificate ec) (str (pem "EC PARAMETERS" (byte-array 9))
                                             (pem "EC PRIVATE KEY" (:der ec)))
                      :io "Cannot read the key"
                      #(str ": it has an EC PRIVATE KEY instead of PKCS#8; " (command (:key %)))]
                     [(str (:certificate rsa) (:certificate ec)) (:key rsa) :invalid-value
                      "The certificates in"
                      (constantly " must be a chain: that of the server, then its issuer's")]
                     [(:certificate ec) "nothing" :io "Cannot read the key"
                      (constantly ": it must have a private key in PEM format")]
                     [(:certificate ec) (pem "PRIVATE KEY" (byte-array 40)) :io "Cannot read the key"
                      (constantly ": it must be an RSA, EC or EdDSA key in PKCS#8")]
                     [(:key ec) (:key ec) :io "Cannot read the certificate"
                      (constantly ": it must have certificates in PEM format")]
                     [(pem "CERTIFICATE" (byte-array 40)) (:key ec) :io "Cannot read the certificate"
                      (constantly ": it must have certificates in PEM format")]]
                    :let [tls (files certificate key)
                          named ((if (str/includes? what "certificate") :certificate :key) tls)
                          message (str what " " (pr-str named) (reason tls))]]
              (is (= [kind message] ((juxt :bpfmap/error :message) (error tls))))
              (is (= {:exit 1 :out (str message "\n") :err ""}
                     (bpfmap "export" "--check"
                             (file-in dir "c.edn" (pr-str (config tls)))))))
            (let [tls (files (:certificate ec) (:key ec))]
              (.setReadable (io/file (:key tls)) true false)
              (is (= [:permission (str "Other users can read the key " (pr-str (:key tls))
                                       ": chmod o= " (:key tls))]
                     ((juxt :bpfmap/error :message) (error tls)))))))
        (testing "--check reads each file, also if another cannot be read"
          (let [secret (private-file dir "secret" "\n")
                missing #(str (io/file dir %))
                check (fn [http]
                        (str/split-lines
                         (:out (bpfmap "export" "--check"
                                       (file-in dir "c.edn" (pr-str {:http http :metrics []}))))))]
            (is (= [(str "Cannot read the certificate " (pr-str (missing "c")) ": there is no such file")
                    (str "Cannot read the key " (pr-str (missing "k")) ": there is no such file")
                    (str "The file of the password " (pr-str secret)
                         " must have a password in its first line")]
                   (check {:tls {:certificate (missing "c") :key (missing "k")}
                           :basic-auth {:user "a" :password-file secret}})))
            (is (= [(str "Cannot read the key store " (pr-str (missing "s")) ": there is no such file")
                    (str "Cannot read the file of the password " (pr-str (missing "p"))
                         ": there is no such file")]
                   (check {:tls {:keystore (missing "s") :password-file (missing "p")}})))))
        (testing "the keys of a config must be one of the two forms"
          (doseq [[tls problems]
                  [[{} [(str ":http :tls must have either :certificate and :key, or :keystore and"
                             " :password-file, got neither")]]
                   [{:certificate "a" :password-file "b"}
                    [(str ":http :tls must have either :certificate and :key, or :keystore and"
                          " :password-file, got both")]]
                   [{:key "a"} [":http :tls :certificate is required"]]
                   [{:keystore "a"} [":http :tls :password-file is required"]]]]
            (is (= problems
                   (str/split-lines
                    (:out (bpfmap "export" "--check"
                                  (file-in dir "c.edn" (pr-str (config tls))))))))))))))

(deftest keys-of-openssl
  (testing "the command of the refusal makes a key that is accepted"
    (if-not (fixture/executable "openssl")
      (fixture/skip! "openssl is not installed")
      (with-directory [dir]
        (let [in (fn [name] (str (io/file dir name)))
              openssl (fn [& args]
                        (let [{:keys [exit out err]} (fixture/run (into ["openssl"] args))]
                          (is (= 0 exit) (str out err))))]
          (openssl "req" "-x509" "-newkey" "rsa:2048" "-nodes" "-subj" "/CN=o" "-days" "2"
                   "-keyout" (in "pkcs8.pem") "-out" (in "rsa.crt"))
          (openssl "rsa" "-traditional" "-in" (in "pkcs8.pem") "-out" (in "pkcs1.pem"))
          (openssl "pkcs8" "-topk8" "-in" (in "pkcs8.pem") "-passout" "pass:x"
                   "-out" (in "encrypted.pem"))
          (openssl "rsa" "-traditional" "-aes128" "-passout" "pass:x" "-in" (in "pkcs8.pem")
                   "-out" (in "encrypted1.pem"))
          (openssl "ecparam" "-name" "prime256v1" "-genkey" "-out" (in "sec1.pem"))
          (openssl "req" "-x509" "-key" (in "sec1.pem") "-subj" "/CN=o" "-days" "2"
                   "-out" (in "ec.crt"))
          (doseq [[key certificate reason]
                  [["pkcs1.pem" "rsa.crt" #"it has an RSA PRIVATE KEY instead of PKCS#8"]
                   ["encrypted.pem" "rsa.crt" #"it is encrypted"]
                   ["encrypted1.pem" "rsa.crt" #"it is encrypted"]
                   ["sec1.pem" "ec.crt" #"it has an EC PRIVATE KEY instead of PKCS#8"]]
                  :let [tls {:certificate (in certificate) :key (in key)}
                        [message] (credentials/problems {:tls tls})
                        [_ command] (re-find #"convert it with openssl (.*) -out NEW.pem$" message)]]
            (is (re-find reason message))
            (apply openssl (into (str/split command #" ")
                                 ["-out" (in "NEW.pem") "-passin" "pass:x"]))
            (is (= [] (credentials/problems {:tls (assoc tls :key (in "NEW.pem"))})) key)))))))

(kernel-test addresses-that-are-taken
  (testing "a port that is taken, and a host that does not exist, are reported"
    (with-directory [dir]
      (with-export [e dir {:http {:port 0} :host false :metrics []}]
        (let [port (.getPort (URI. (:url e)))
              start #(error-of (export/start (file-in dir "n.edn" (pr-str {:http % :host false
                                                                           :metrics []}))
                                             nil))]
          (let [{:keys [message] :bpfmap/keys [error]} (start {:port port})]
            (is (= :busy error))
            (is (= (str "Cannot listen at 127.0.0.1:" port
                        ": Address already in use; give another :port or :host in :http")
                   message)))
          (is (= "Unknown host \"no such host\": give an address of this host, such as \"127.0.0.1\""
                 (:message (start {:host "no such host" :port 0})))))))))

(defn- leave-early
  "Asks for a path, and resets the connection before the answer is read."
  [url path]
  (with-open [socket (Socket.)]
    (.connect socket (InetSocketAddress. "127.0.0.1" (.getPort (URI. url))) 10000)
    (.write (.getOutputStream socket)
            (.getBytes (str "GET " path " HTTP/1.1\r\nHost: localhost\r\n\r\n")))
    (.setSoLinger socket true 0)))

(kernel-test clients-that-leave-early
  (testing "a client that leaves before its answer costs no descriptor, and nothing is on stderr"
    (with-directory [dir]
      (with-open [m ^Closeable (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 8192})]
        (bpf/put-all! m (for [i (range 8192)] [i 1]))
        (let [clients 20
              scrapes (fn [e] (:n @(get-in @(:state e) [:collection :state])))]
          (with-export [e dir (assoc-in (config-for m) [:http :page] :all)]
            (fetched (:url e))
            (let [logger (java.util.logging.Logger/getLogger "")
                  records (atom [])
                  handler (proxy [java.util.logging.Handler] []
                            (publish [record] (swap! records conj record))
                            (flush []) (close []))
                  before (fixture/settled-descriptors)]
              (.addHandler logger handler)
              (try
                (dotimes [_ clients]
                  (let [n (scrapes e)]
                    (leave-early (:url e) "/metrics")
                    (is (fixture/eventually #(< (long n) (long (scrapes e)))) "it is read"))
                  (leave-early (:url e) "/"))
                (is (fixture/eventually #(<= (long (fixture/open-descriptors)) (long before)))
                    "the connections are closed")
                (is (= [] @records))
                (is (= 200 (:status (fetched (:url e)))))
                (finally (.removeHandler logger handler))))))))))

;; --- a new config

(kernel-test reload-loses-no-scrape
  (testing "a new config is used by the next scrape, a broken one is not, and no scrape fails"
    (with-directory [dir]
      (with-open [m ^Closeable (counts {1 5})]
        (with-export [e dir (config-for m)]
          (let [stop (promise)
                scraping (future
                           (loop [seen []]
                             (let [{:keys [status body]} (fetched (:url e))
                                   seen (conj seen [status (boolean (re-find #"(?m)^[mn]\{" body))])]
                               (if (deref stop 0 nil) seen (recur seen)))))
                value (fn [name] (exposition/values-of
                                  (exposition/read-text (:body (fetched (:url e))) false) name))
                write #(file-in dir "metrics.edn" (pr-str %))
                renamed (assoc-in (config-for m) [:metrics 0 :name] "n")]
            (is (= {{} 1.0} (value "bpfmap_config_last_reload_successful")))
            (dotimes [i 20]
              (write (if (even? i) renamed (config-for m)))
              (is (= (str "The config " (pr-str (:file e)) " was read again") (export/reload e))))
            (write renamed)
            (export/reload e)
            (is (= [{{"k" "1"} 5.0} {}] [(value "n") (value "m")]))
            (write {:metrics [{:name "n"}]})
            (is (= (str "The config of metrics is invalid: metric n :type is required; metric n :map "
                        "is required; the config before it stays in use")
                   (export/reload e)))
            (is (= [{{"k" "1"} 5.0} {{} 0.0}]
                   [(value "n") (value "bpfmap_config_last_reload_successful")]))
            (spit (:file e) "{:metrics")
            (is (re-find #"^The config .* must be EDN: .*; the config before it stays in use$"
                         (export/reload e)))
            (.delete (io/file (:file e)))
            (is (= (str "Cannot read the config " (pr-str (:file e))
                        ": there is no such file; the config before it stays in use")
                   (export/reload e)))
            (write (assoc renamed :http {:port 1}))
            (is (= (str "The config " (pr-str (:file e))
                        " was read again, but its :http is not in use: restart to change :port")
                   (export/reload e)))
            (is (= {{} 1.0} (value "bpfmap_config_last_reload_successful")))
            (deliver stop true)
            (is (= #{[200 true]} (set @scraping)))))))))

(defn- basic [text]
  {"Authorization" (str "Basic " (.encodeToString (Base64/getEncoder) (.getBytes ^String text)))})

(defn- http-changer
  "Returns a function that reloads an export with another `:http`, and returns what it reports."
  [e dir]
  (fn [http]
    (file-in dir "metrics.edn" (pr-str {:http http :host false :metrics []}))
    (str/replace (export/reload e) (str "The config " (pr-str (:file e)) " was read again") "read")))

(kernel-test reload-of-passwords
  (testing "a user and a password are added, changed and removed by a reload"
    (with-directory [dir]
      (let [a (private-file dir "a" "one") b (private-file dir "b" "two")]
        (with-export [e dir {:http {:port 0} :host false :metrics []}]
          (let [reload (http-changer e dir)
                statuses (fn []
                           (for [headers [{} (basic "x:one") (basic "x:two") (basic "y:two")]]
                             (:status (fetched (:url e) {:headers headers}))))]
            (is (= [200 200 200 200] (statuses)))
            (is (= "read" (reload {:port 0 :basic-auth {:user "x" :password-file a}})))
            (is (= [401 200 401 401] (statuses)))
            (is (= "read" (reload {:port 0 :basic-auth {:user "x" :password-file b}})))
            (is (= [401 401 200 401] (statuses)))
            (is (= "read" (reload {:port 0 :basic-auth {:user "y" :password-file b}})))
            (is (= [401 401 401 200] (statuses)))
            (testing "a file that cannot be read, and an address that needs a restart, change nothing"
              (is (= (str "Cannot read the file of the password \"/no/such\": there is no such file; "
                          "the config before it stays in use")
                     (reload {:port 0 :basic-auth {:user "x" :password-file "/no/such"}})))
              (is (= "read, but its :http is not in use: restart to change :host and change :port"
                     (reload {:port 1 :host "localhost"})))
              (is (= [401 401 401 200] (statuses))))
            (is (= "read" (reload {:port 0})))
            (is (= [200 200 200 200] (statuses)))))))))

(kernel-test reload-of-page
  (testing "a reload takes a new :page, and a client that is connected does not see more than a new one"
    (with-directory [dir]
      (with-open [m ^Closeable (counts {1 5})]
        (with-export [e dir {:http {:port 0 :page :all} :host false :metrics []}]
          (let [reload (http-changer e dir)
                at #(str (str/replace (:url e) "/metrics" "/maps/") (:id (bpf/info m)) %)
                client (HttpClient/newHttpClient)
                response (.send client (.build (HttpRequest/newBuilder (URI. (at "/events"))))
                                (HttpResponse$BodyHandlers/ofLines))
                statuses #(mapv (comp :status fetched) [(at "") (at "/events")])]
            (is (= [200 200] [(:status (fetched (at ""))) (.statusCode response)]))
            (is (= "read" (reload {:port 0})))
            (is (nat-int? (deref (future (.count ^java.util.stream.Stream (.body response)))
                                 fixture/patience nil))
                "the stream ends")
            (.close client)
            (is (= [200 404] (statuses)) "the entries are not shown")
            (is (= "read" (reload {:port 0 :page false})))
            (is (= [404 404] (statuses)))
            (is (= "read" (reload {:port 0 :page true})))
            (is (= [200 404] (statuses)))))))))

(kernel-test reload-of-tls
  (testing "a reload takes other files of keys, also in the other form"
    (with-directory [dir]
      (let [pairs (new-pairs dir ["RSA" "EC"])
            [rsa ec] (for [[n {:keys [certificate key]}] (map-indexed vector pairs)]
                       {:certificate (file-in dir (str "cert" n) certificate)
                        :key (private-file dir (str "key" n) key)})
            store {:keystore (str (io/file dir "store.p12"))
                   :password-file (private-file dir "password" "changeit")}]
        (keytool "-genkeypair" "-alias" "x" "-keyalg" "EC" "-dname" "CN=store" "-storetype" "PKCS12"
                 "-storepass" "changeit" "-keystore" (:keystore store))
        (with-export [e dir {:http {:port 0 :tls rsa} :host false :metrics []}]
          (let [reload (http-changer e dir)]
            (doseq [[tls names] [[ec ["CN=EC" "CN=RSA"]] [store ["CN=store"]] [rsa ["CN=RSA"]]]]
              (is (= "read" (reload {:port 0 :tls tls})))
              (is (= names (served-names (:url e)))))
            (is (= "read, but its :http is not in use: restart to remove :tls" (reload {:port 0})))
            (is (= ["CN=RSA"] (served-names (:url e))))
            (is (= (str "The key " (pr-str (:key rsa)) " does not belong to the first certificate in "
                        (pr-str (:certificate ec))
                        ": the certificate of the server must come before others"
                        "; the config before it stays in use")
                   (reload {:port 0 :tls (assoc ec :key (:key rsa))})))
            (is (= ["CN=RSA"] (served-names (:url e))))))
        (with-export [e dir {:http {:port 0} :host false :metrics []}]
          (is (= "read, but its :http is not in use: restart to add :tls"
                 ((http-changer e dir) {:port 0 :tls rsa})))
          (is (= 200 (:status (fetched (:url e))))))))))

;; --- the command

(kernel-test check-prints-problems
  (testing "--check prints the problems, and serves nothing"
    (with-directory [dir]
      (with-open [m ^Closeable (counts {1 5})]
        (let [file #(file-in dir "c.edn" (pr-str %))]
          (is (= {:exit 0 :out "The config is valid: 1 metric\n" :err ""}
                 (bpfmap "export" (file (config-for m)) "--check")))
          (is (= {:exit 0 :out "The config is valid: 1 metric\n"
                  :err "bpfmap: No map named \"t_no_such_map\": it may come later\n"}
                 (bpfmap "export" "--check"
                         (file {:metrics [{:name "m" :type :gauge :map "t_no_such_map"}]}))))
          (is (= {:exit 1 :err ""
                  :out "metric m :type is required\nmetric m :map is required\nmetric n :type is required\nmetric n :map is required\n"}
                 (bpfmap "export" (file {:metrics [{:name "m"} {:name "n"}]}) "--check")))
          (testing "as data"
            (let [refused (file {:metrics [{:name "m" :type :gauge}]})]
              (is (= {:problems [{:path [:metrics 0 :map] :message "metric m :map is required"}]
                      :missing []}
                     (edn/read-string (:out (bpfmap "export" refused "--check" "--edn")))))
              (is (= [1 {"problems" [{"path" ["metrics" 0 "map"]
                                      "message" "metric m :map is required"}]
                         "missing" []}]
                     (update ((juxt :exit :out) (bpfmap "export" refused "--check" "--json"))
                             1 json/read-str)))))
          (is (= {:exit 1 :err "" :out "metric m: Unknown field y: the fields are key and value\n"}
                 (update (bpfmap "export" "--check"
                                 (file (assoc-in (config-for m) [:metrics 0 :value] :y)))
                         :out str/replace "key, value" "key and value")))))))
  (testing "a file that cannot be used"
    (is (= [1 "bpfmap: Cannot read the config \"/no/such\": there is no such file"]
           (refused "export" "/no/such" "--check")))
    (is (= [2 "bpfmap: export requires CONFIG; see `bpfmap help export`"] (refused "export")))))

(def ^:private classpath (System/getProperty "java.class.path"))

(defn- command [classpath & args]
  (into [(str (System/getProperty "java.home") "/bin/java") "--enable-native-access=ALL-UNNAMED"
         "-XX:TieredStopAtLevel=1" "-cp" classpath "clojure.main" "-m" "bpfmap.cli.main" "export"]
        args))

(deftest libraries-missing
  (testing "without the libraries of the alias, one line says how to get them"
    (with-directory [dir]
      (is (= {:exit 1 :out ""
              :err (str "bpfmap: export requires the libraries of io.prometheus: run bin/bpfmap export "
                        "in a checkout of bpfmap, which gets them from Maven Central, or "
                        "bin/clj -M:export\n")}
             (fixture/run (apply command
                                 (str/join ":" (remove #(str/includes? % "/io/prometheus/")
                                                       (str/split classpath #":")))
                                 [(file-in dir "c.edn" "{:host true}")])))))))

(defn- with-process
  "Calls f with the first line of output of an exporter in a process of its own, with a function
  that sends it a signal, and with one that returns its stderr. Returns its exit code after TERM."
  [dir file f]
  (let [err (io/file dir "err")
        ;; The run of the tests may ignore SIGHUP, as nohup makes it, and its children too.
        process (.start (doto (ProcessBuilder.
                               ^List (into ["env" "--default-signal"] (command classpath file)))
                          (.redirectError err)))
        signal #(fixture/run ["kill" (str "-" %) (str (.pid process))])]
    (try
      (f (str (.readLine ^BufferedReader (io/reader (.getInputStream process))))
         signal
         #(slurp err))
      (signal "TERM")
      (is (.waitFor process (long fixture/patience) TimeUnit/MILLISECONDS))
      (.exitValue process)
      (finally (.destroyForcibly process)))))

(kernel-test https-as-a-process
  (testing "on SIGHUP, a process with HTTPS takes other files and a password"
    (with-directory [dir]
      (let [[rsa ec] (for [[n {:keys [certificate key]}]
                           (map-indexed vector (new-pairs dir ["RSA" "EC"]))]
                       {:certificate (file-in dir (str "cert" n) certificate)
                        :key (private-file dir (str "key" n) key)})
            secret (private-file dir "password" "one")
            file (str (io/file dir "metrics.edn"))
            write #(spit file (pr-str {:http (merge {:port 0} %) :host false :metrics []}))
            status #(:status (fetched (str/replace % "127.0.0.1" "localhost")
                                      {:ssl (trusting-all) :headers %2}))
            chain ["CN=EC" "CN=RSA"]
            again (str "bpfmap: The config " (pr-str file) " was read again")]
        (write {:tls rsa})
        (is (= 0 (with-process
                   dir file
                   (fn [line signal err]
                     (let [[_ url] (re-matches
                                    #"Metrics are at (https://127\.0\.0\.1:\d+/metrics)" line)]
                       (is url (str line (err)))
                       (is (= [["CN=RSA"] 200] [(served-names url) (status url {})]))
                       (write {:tls ec :basic-auth {:user "x" :password-file secret}})
                       (signal "HUP")
                       (is (fixture/eventually #(= chain (served-names url))))
                       (is (= [401 200] [(status url {}) (status url (basic "x:one"))]))
                       (write {:tls rsa :port 1})
                       (signal "HUP")
                       (is (fixture/eventually
                            #(= (str again "\n" again
                                     ", but its :http is not in use: restart to change :port\n")
                                (err))))
                       (is (= [chain 401] [(served-names url) (status url {})])))))))))))

(kernel-test runs-as-a-process
  (testing "the process serves, reads its config again on SIGHUP, and ends on SIGTERM with 0"
    (with-directory [dir]
      (with-open [m ^Closeable (counts {1 5})]
        (let [file (file-in dir "metrics.edn" (pr-str (config-for m)))
              until fixture/eventually]
          (is (= 0 (with-process
                     dir file
                     (fn [line signal err]
                       (let [[_ url] (re-matches
                                      #"Metrics are at (http://127\.0\.0\.1:\d+/metrics)" line)
                             has? (fn [name]
                                    (re-find (re-pattern (str "(?m)^" name "\\{"))
                                             (:body (fetched url))))]
                         (is url (str line (err)))
                         (is (has? "m"))
                         (spit file (pr-str (assoc-in (config-for m) [:metrics 0 :name] "other")))
                         (signal "HUP")
                         (is (until #(has? "other")))
                         (is (until #(= (err) (str "bpfmap: The config " (pr-str file)
                                                   " was read again\n"))))))))))))))
