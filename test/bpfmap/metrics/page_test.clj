(ns bpfmap.metrics.page-test
  "The page of `bpfmap export`: what it shows and to whom, its limits, and what a browser makes of it."
  (:require [bpfmap.browser :as browser]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.metrics.export :as export]
            [bpfmap.metrics.page :as page]
            [bpfmap.metrics.page.markup :as markup]
            [bpfmap.metrics.page.picture :as picture]
            [bpfmap.metrics.page.shared :as shared]
            [bpfmap.metrics.page.stream :as stream]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (com.sun.net.httpserver HttpHandler HttpServer)
           (java.io ByteArrayInputStream Closeable File IOException InputStream)
           (java.net InetSocketAddress Socket URI)
           (java.net.http HttpClient HttpRequest HttpRequest$BodyPublishers HttpResponse
                          HttpResponse$BodyHandlers)
           (java.util.concurrent CountDownLatch)
           (javax.xml.parsers DocumentBuilderFactory)
           (org.w3c.dom Document Element)))

(set! *warn-on-reflection* true)

;; --- an exporter and its clients

(defn- with-export
  "Calls f with the exporter of a config, and the URL of a path."
  [config f]
  (let [dir (fixture/temporary-directory)
        file (io/file dir "metrics.edn")]
    (try
      (spit file (pr-str (merge {:host false :metrics []} config
                               {:http (merge {:port 0} (:http config))})))
      (let [e (export/start (str file) (fn [_]))]
        (try
          (f e #(str/replace (:url e) "/metrics" %))
          (finally (export/stop e))))
      (finally (run! #(.delete ^File %) (reverse (file-seq dir)))))))

(def ^:private all "The part of a config that shows the entries of every map." {:http {:page :all}})

(defn- fetched
  "The status, the body and the headers of a request, GET unless there is another method."
  ([url] (fetched url "GET"))
  ([url method]
   (with-open [client (HttpClient/newHttpClient)]
     (let [^HttpResponse response
           (.send client (.build (.method (HttpRequest/newBuilder (URI. url)) method
                                          (HttpRequest$BodyPublishers/noBody)))
                  (HttpResponse$BodyHandlers/ofString))]
       {:status (.statusCode response) :body (.body response)
        :header #(.orElse (.firstValue (.headers response) %) nil)}))))

(defn- sent
  "Sends a text to the port of a URL, and returns the socket."
  ^Socket [url ^String text]
  (let [socket (Socket.)]
    (.connect socket (InetSocketAddress. "127.0.0.1" (.getPort (URI. url))) 10000)
    (.setSoTimeout socket 120000)
    (.write (.getOutputStream socket) (.getBytes text "UTF-8"))
    socket))

(defn- status-line [^Socket socket]
  (first (str/split-lines
          (with-open [in (io/reader (.getInputStream socket))]
            (or (.readLine ^java.io.BufferedReader in) "")))))

(defn- document
  "The document that an XML parser reads in a page."
  ^Document [^String html]
  (.parse (.newDocumentBuilder (DocumentBuilderFactory/newInstance))
          (ByteArrayInputStream. (.getBytes (str/replace html "<!DOCTYPE html>" "") "UTF-8"))))

(defn- elements
  "The elements of a document with a tag."
  [^Document document tag]
  (let [found (.getElementsByTagName document tag)]
    (mapv #(.item found %) (range (.getLength found)))))

(defn- texts [html tag] (mapv #(.getTextContent ^Element %) (elements (document html) tag)))

(defn- map-of [spec entries]
  (doto (bpf/create (merge {:type :hash :max-entries 64} spec))
    (bpf/put-all! entries)))

(defn- id-of [m] (:id (bpf/info m)))

(defn- closing-later
  "Shuts a client down after `fixture/patience`, so that a read of its streams ends.

  Closing the result ends the wait."
  ^Closeable [^HttpClient client]
  (let [ended (promise)
        timer (Thread/startVirtualThread
               #(when (= ::late (deref ended fixture/patience ::late))
                  (.shutdownNow client)))]
    (reify Closeable
      (close [_]
        (deliver ended true)
        (.join ^Thread timer)))))

(defn- events
  "Calls f with a function that returns the next event of a stream: `{:event :data}`, or nil at its
  end.

  A stream that goes on for longer than `fixture/patience` is closed, and reading from it throws."
  [url f]
  (with-open [client (HttpClient/newHttpClient)
              _ (closing-later client)
              in (io/reader ^InputStream
                            (.body (.send client (.build (HttpRequest/newBuilder (URI. url)))
                                          (HttpResponse$BodyHandlers/ofInputStream))))]
    (f (fn []
         (loop [found {}]
           (let [line (.readLine ^java.io.BufferedReader in)
                 [_ field text] (re-matches #"(event|data): (.*)" (or line ""))]
             (cond
               (nil? line) nil
               field (recur (update found (keyword field) #(str % (when % "\n") text)))
               (and (= "" line) (:event found)) found
               :else (recur found))))))))

(defn- event-with
  "Returns the next event whose data matches a pattern."
  [next-event pattern]
  (loop []
    (let [{:keys [data] :as event} (next-event)]
      (if (or (nil? event) (re-find pattern data)) event (recur)))))

;; --- markup and pictures

(def ^:private odd-texts
  ["<script>alert(1)</script>" "\"><img src=x onerror=alert(1)>" "' onmouseover='alert(1)"
   "&amp;&lt;" "]]>" "<!--" "\u0000\u0001\u001b[31m" "\ud800" "\ufffe" "é漢😀" "javascript:alert(1)"
   "</title><script>" "\r\n\r\ndata: x"])

(deftest x6-escapes-everything
  (testing "texts and attributes are what a parser reads, but for characters that XML has not"
    (doseq [text odd-texts]
      (let [html (markup/html [:p {:title text} text [:b text]])
            ^Element p (first (elements (document html) "p"))
            readable (str/replace (str/replace text #"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800\ufffe]" "\ufffd")
                                  "\r" "\ufffd")]
        (is (= 1 (count (elements (document html) "b"))) (pr-str text))
        (is (= (str readable readable) (.getTextContent p)))
        (is (= (str/replace readable "\n" " ") (.getAttribute p "title")))
        (is (= 1 (.getLength (.getAttributes p))))))))

(deftest parameters-of-urls
  (testing "a URL with parameters gives them back, and what is malformed is left out"
    (doseq [text (remove #{"\ud800"} odd-texts)]
      (is (= {:q text}
             (markup/params (second (str/split (markup/url "/" {:q text :sort nil}) #"\?")) [:q :sort]))))
    (is (= {:q "a b"} (markup/params "q=a+b&sort=%zz&x=1&sort=&=&&limit" [:q :sort :limit])))
    (is (= {} (markup/params nil [:q])))))

(deftest pictures-are-svg
  (testing "a picture is well-formed, within its box, and has a text"
    (doseq [numbers [[] [1.0] [0.0 0.0] [nil 1.0 nil 3.0] [-5.0 5.0] (range 200) [1e300 -1e300]]]
      (let [html (markup/html (picture/sparkline numbers 60 "Rate of <b>"))
            ^Element svg (first (elements (document html) "svg"))]
        (is (str/starts-with? (.getAttribute svg "aria-label") "Rate of <b>: "))
        (doseq [[_ x y] (re-seq #"([-0-9.]+),([-0-9.]+)" html)]
          (is (<= -0.1 (parse-double x) 200.1) html)
          (is (<= 2.9 (parse-double y) 27.1) html))))
    (doseq [columns [[] [[0 0]] [[0 1] [5 1000000]] (repeat 100 [1 2 3])]]
      (let [html (markup/html (picture/heat-map columns 60 "Latency"))
            [width height] (map parse-long
                                (rest (re-find #"viewBox=\"0 0 (\d+) (\d+)\"" html)))]
        (doseq [^Element rect (elements (document html) "rect")
                :let [n #(parse-long (let [x (.getAttribute rect %)] (if (= "" x) "0" x)))]]
          (is (<= 0 (n "x") (+ (n "x") (n "width")) width))
          (is (<= 0 (n "y") (+ (n "y") (n "height")) height)))))
    (testing "the highest bucket is on top, and the newest column on the right"
      (is (re-find #"class=\"h8\" x=\"590\" y=\"0\"" (markup/html (picture/heat-map [[0 9]] 60 "x"))))
      (is (re-find #"class=\"h8\" x=\"580\" y=\"14\""
                   (markup/html (picture/heat-map [[9 0] [0 0]] 60 "x")))))))

;; --- readings on demand

(deftest x8-one-reading-for-all
  (testing "clients at the same time share a reading, and nobody makes one if nobody looks"
    (let [source (shared/source 3600000 (fn [before] {:n (inc (:n before 0))}))]
      (is (= 0 (shared/readings source)))
      (is (= #{[1 {:n 1}]} (set (fixture/in-threads 16 (fn [_] (shared/current source))))))
      (is (= 1 (shared/readings source)))))
  (testing "after the interval there is a newer one, made from the one before"
    (let [source (shared/source 0 (fn [before] {:n (inc (:n before 0))}))]
      (is (= 1 (:n (second (shared/current source)))))
      (browser/until "a second reading" #(= 2 (:n (second (shared/current source)))))))
  (testing "an error is thrown to the client, and the next one tries again"
    (let [fail? (atom true)
          source (shared/source 0 (fn [_] (if @fail? (throw (ex-info "no" {})) :read)))]
      (is (= "no" (:message (error-of (shared/current source)))))
      (reset! fail? false)
      (is (= [1 :read] (shared/current source))))))

(deftest sources-by-key
  (testing "a table has so many sources, and forgets those nobody uses"
    (let [made (atom [])
          table (shared/table 2 0 #(do (swap! made conj %) (str %)))]
      (is (= [":a" ":b" nil] (mapv #(shared/acquire table %) [:a :b :c])))
      (is (= [":a" ":b"] (sort (map str @made))))
      (shared/release table :a)
      (is (= ":c" (shared/acquire table :c)) "in the place of :a")
      (is (nil? (shared/acquire table :a)))
      (shared/release table :b)
      (shared/release table :c)
      (shared/sweep table)
      (is (= {} @(:entries table))))))

(deftest late-writers-are-interrupted
  (testing "f that takes too long is interrupted, and the thread is as before afterwards"
    (let [timer (stream/timer)]
      (try
        (is (= :done (stream/in-time timer 60000 (constantly :done))))
        (is (= InterruptedException
               (:class (error-of (stream/in-time timer 1 #(.await (CountDownLatch. 1)))))))
        (is (not (.isInterrupted (Thread/currentThread))))
        (finally (.shutdown timer))))))

(deftest x8-clients-that-do-not-read
  (testing "a write to a client that does not read ends in time, and closes the connection"
    (let [timer (stream/timer)]
      (with-open [server (doto (java.nio.channels.ServerSocketChannel/open)
                           (.bind (InetSocketAddress. "127.0.0.1" 0)))
                  client (java.nio.channels.SocketChannel/open (.getLocalAddress server))
                  _ (.accept server)]
        (try
          (is (= java.nio.channels.ClosedByInterruptException
                 (:class (error-of
                          (let [some-bytes (java.nio.ByteBuffer/allocate 65536)]
                            (stream/in-time timer 200 #(while true
                                                         (.write client (.clear some-bytes)))))))))
          (is (not (.isOpen client)))
          (finally (.shutdown timer)))))))

(deftest events-of-views
  (testing "the first event has all parts, the next ones those that changed"
    (let [a {:parts [["x" "<p id=\"x\">1</p>"] ["y" "<p id=\"y\">1</p>"]]}
          b (assoc-in a [:parts 1 1] "<p id=\"y\">2</p>")]
      (is (= "event: all\ndata: <p id=\"x\">1</p><p id=\"y\">1</p>\n\n" (stream/changed nil a)))
      (is (= "event: part\ndata: <p id=\"y\">2</p>\n\n" (stream/changed a b)))
      (is (nil? (stream/changed b b)))
      (is (= "event: all\ndata: <p id=\"x\">1</p>\n\n" (stream/changed b (update a :parts pop))))))
  (testing "a text with the ends of lines cannot begin an event of its own"
    (is (= "event: all\ndata: a\ndata: \ndata: event: end\ndata: b\n\n"
           (stream/event "all" "a\r\revent: end\nb")))))

;; --- what it serves

(def ^:private odd-strings
  ["<script>alert(1)</script>" "\"><img src=x onerror=alert(1)>" "' x='" "&amp;" "]]>-->"
   "\u001b[31m"])

(kernel-test page-of-the-host
  (testing "the page lists maps with what `list` has, well-formed and with strict headers"
    (with-open [m ^Closeable (map-of {:name "t_page_full" :key :u32 :value :u64 :max-entries 10}
                                     (zipmap (range 10) (range)))
                _ ^Closeable (map-of {:name "t_page_other" :key :u32 :value :u64 :max-entries 10} {})]
      (with-export {}
        (fn [_ at]
          (let [{:keys [status body header]} (fetched (at "/?q=t_page_full"))]
            (is (= [200 "text/html; charset=utf-8"] [status (header "content-type")]))
            (is (= (str "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
                        "connect-src 'self'; form-action 'self'; base-uri 'none'; "
                        "frame-ancestors 'none'")
                   (header "content-security-policy")))
            (is (= ["nosniff" "no-referrer" "no-store" "same-origin"]
                   (map header ["x-content-type-options" "referrer-policy" "cache-control"
                                "cross-origin-resource-policy"])))
            (is (= ["Maps of this host"] (texts body "h1")))
            (is (some #{(str (id-of m))} (texts body "td")))
            (is (some #{"t_page_full"} (texts body "a")))
            (is (re-find #"aria-valuenow=\"100\"" body))
            (is (re-find #"class=\"bar high\"" body))
            (is (not (re-find #"(?i)<[^>]* (style|on[a-z]+)=" body)) "nothing inline"))
          (testing "rows that are left out are counted"
            (is (re-find #"left out" (:body (fetched (at "/?limit=1"))))))
          (testing "an unknown order and an odd limit are ignored"
            (is (= [200 200 200] (map #(:status (fetched (at %)))
                                      ["/?sort=nope" "/?sort=-&limit=x" "/?limit=-1&q=%FF"])))))))))

(kernel-test page-of-a-map
  (testing "entries are typed, sorted, filtered and shown by the hints of the config"
    (with-open [m ^Closeable (map-of {:name "t_page_map" :key :u32 :value [:struct [:n :u64] [:ip :u32]]}
                                     (into {} (for [i (range 9)] [i {:n (* i 100) :ip 16777343}])))]
      (with-export {:metrics [{:name "m" :type :gauge :map {:id (id-of m)} :value :n
                               :labels {:ip :ip} :as {:ip :ipv4}}]}
        (fn [_ at]
          (let [page #(fetched (at (markup/url (str "/maps/" (id-of m)) %)))
                rows #(map vec (partition 2 (rest (texts (:body (page %)) "th"))))
                values (fn [params]
                         (map second
                              (re-seq #"<td class=\"number\">(\d+)</td><td>127\.0\.0\.1</td>"
                                      (:body (page params)))))]
            (is (seq (rows {})))
            (is (= (map str (range 0 900 100)) (sort-by parse-long (values {}))))
            (is (= ["800" "700" "600"] (values {:sort "-n" :limit 3})))
            (is (re-find #"6 more entries left out" (:body (page {:sort "-n" :limit 3}))))
            (is (= ["0" "100"] (values {:sort "n" :where "n<200"})))
            (is (= ["700"] (values {:q "700"})))
            (is (re-find #"No entry matches" (:body (page {:q "absent"}))))
            (testing "a condition, an order and a bucket that do not fit are reported"
              (doseq [[params status pattern]
                      [[{:where "nope>1"} 200 #"Unknown field nope"]
                       [{:where "n"} 400 #"must"]
                       [{:where "n~1"} 400 #"must have no regular expression"]
                       [{:sort "nope"} 200 #"Unknown field nope"]
                       [{:bucket "nope"} 200 #"Unknown field nope"]
                       [{:slots "nope" :bucket "n"} 400 #"must be log2, bcc or bpftrace"]
                       [{:q (apply str (repeat 501 "x"))} 400 #"must have at most 500 characters"]]]
                (let [{body :body answered :status} (page params)]
                  (is (= status answered) (pr-str params))
                  (is (some #(re-find pattern %) (texts body "p")) (pr-str params)))))))))))

(kernel-test x6-texts-of-others-are-escaped
  (testing "names, keys and values from other programs are text, in the page and in events"
    (with-open [m ^Closeable (map-of {:name "t_page_odd" :key [:string 64] :value [:string 64]}
                                     (zipmap odd-strings (reverse odd-strings)))]
      (with-export all
        (fn [_ at]
          (let [path (str "/maps/" (id-of m))
                {:keys [body]} (fetched (at path))
                plain (set (map #(str/replace % #"^\"|\"$" "") (concat (texts body "td")
                                                                       (texts body "th"))))]
            (is (= 1 (count (elements (document body) "script"))) "the page's own")
            (is (empty? (elements (document body) "img")))
            (is (contains? plain "<script>alert(1)</script>"))
            (is (contains? plain "&amp;"))
            (events (at (str path "/events"))
                    (fn [next-event]
                      (let [{:keys [event data]} (next-event)]
                        (is (= "all" event))
                        (is (re-find #"&lt;script&gt;" data))
                        (is (not (re-find #"(?i)<script|<img" data))))))
            (testing "and so are parameters"
              (doseq [text odd-strings, k [:q :where :sort :bucket]]
                (let [{:keys [body]} (fetched (at (markup/url path {k text})))]
                  (is (= 1 (count (elements (document body) "script"))) (pr-str k text))
                  (is (empty? (elements (document body) "img"))))))))))))

(kernel-test x7-entries-need-a-metric-or-a-password
  (testing "without either, everyone who can connect sees no entries but those of the config's maps"
    (with-open [m ^Closeable (map-of {:name "t_page_secret" :key :u32 :value :u64} {1 424242})]
      (let [path (str "/maps/" (id-of m))]
        (with-export {}
          (fn [_ at]
            (let [{:keys [body]} (fetched (at path))]
              (is (not (re-find #"424242" body)))
              (is (re-find #"The entries are not shown: no metric of the config is about this map"
                           body))
              (is (= 404 (:status (fetched (at (str path "/events")))))))))
        (with-export {:metrics [{:name "m" :type :gauge :map "t_page_secret"}]}
          (fn [_ at] (is (re-find #"424242" (:body (fetched (at path)))))))
        (with-export all
          (fn [_ at] (is (re-find #"424242" (:body (fetched (at path)))))))
        (let [secret (File/createTempFile "bpfmap" ".password")
              http {:basic-auth {:user "me" :password-file (str secret)}}
              ask (fn [at credentials]
                    (with-open [s (sent (at "/") (str "GET " path " HTTP/1.1\r\nHost: localhost\r\n"
                                                      "Connection: close\r\n" credentials "\r\n"))]
                      (slurp (.getInputStream s))))
              known (str "Authorization: Basic "
                         (.encodeToString (java.util.Base64/getEncoder) (.getBytes "me:s3cret"))
                         "\r\n")]
          (try
            (spit secret "s3cret\n")
            (.setReadable secret false false)
            (.setReadable secret true true)
            (testing "with a password"
              (with-export {:http http}
                (fn [_ at]
                  (is (re-find #"^HTTP/1.1 401 " (ask at "")))
                  (is (not (re-find #"424242" (ask at ""))))
                  (is (re-find #"424242" (ask at known))))))
            (testing "with a password, but :page true"
              (with-export {:http (assoc http :page true)}
                (fn [_ at]
                  (is (re-find #"The entries are not shown" (ask at known)))
                  (is (not (re-find #"424242" (ask at known)))))))
            (finally (.delete secret))))))))

(kernel-test paths-and-methods
  (testing "only the paths of the page exist, and only to read"
    (with-export {}
      (fn [_ at]
        (doseq [path ["/metrics/x" "/metricsfoo" "/metrics/" "/maps" "/maps/" "/maps/0" "/maps/01"
                      "/maps/1x" "/maps/-1" "/maps/99999999999" "/maps/1/" "/maps/1/events/x"
                      "/page" "/page.css/" "/page.js.map" "/index.html" "/events/" "/../page.css"
                      "/bpfmap/version"]]
          (is (= [404 "Not found: the metrics are at /metrics\n"]
                 ((juxt :status :body) (fetched (at path)))) path))
        (is (= 404 (:status (fetched (at "/maps/4294967295")))))
        (is (re-find #"No map has the id 4294967295"
                     (:body (fetched (at "/maps/4294967295")))))
        (doseq [[path type] {"/page.css" "text/css; charset=utf-8"
                             "/page.js" "text/javascript; charset=utf-8"
                             "/page.svg" "image/svg+xml; charset=utf-8"}]
          (let [{:keys [status header body]} (fetched (at path))]
            (is (= [200 type] [status (header "content-type")]) path)
            (is (seq body))))
        (doseq [path ["/" "/events" "/maps/1" "/page.js" "/metrics"], method ["POST" "PUT" "DELETE"]]
          (let [{:keys [status header]} (fetched (at path) method)]
            (is (= [405 "GET, HEAD"] [status (header "allow")]) (str method path))))
        (doseq [path ["/" "/events" "/page.js"]]
          (is (= [200 ""] ((juxt :status :body) (fetched (at path) "HEAD"))) path)))))
  (testing ":page false turns the page off"
    (with-export {:http {:page false}}
      (fn [_ at]
        (is (= [404 404 404 200] (map #(:status (fetched (at %)))
                                      ["/" "/events" "/page.js" "/metrics"])))))))

(kernel-test names-of-other-sites
  (testing "at a loopback address, a page is served only under a name of this host"
    (with-export {}
      (fn [_ at]
        (let [answer (fn [path host]
                       (with-open [s (sent (at "/") (str "GET " path " HTTP/1.1\r\nHost: " host
                                                         "\r\nConnection: close\r\n\r\n"))]
                         (status-line s)))]
          (doseq [host ["localhost" "LOCALHOST:1" "127.0.0.1:9435" "127.1.2.3" "[::1]:80"]]
            (is (= "HTTP/1.1 200 OK" (answer "/page.js" host)) host))
          (doseq [host ["evil.example" "localhost.evil.example" "127.0.0.1.evil.example:80" ""]]
            (is (re-find #" 421 " (answer "/page.js" host)) host))
          (is (= "HTTP/1.1 200 OK" (answer "/metrics" "other.example")) "metrics as before"))))))

;; --- events and limits

(deftest streams-have-a-deadline
  (testing "a stream on which nothing comes ends with an error, and does not hang"
    (let [server (doto (HttpServer/create (InetSocketAddress. "127.0.0.1" 0) 0)
                   (.createContext "/" (reify HttpHandler
                                         (handle [_ exchange]
                                           (.sendResponseHeaders exchange 200 0)
                                           (.flush (.getResponseBody exchange)))))
                   .start)]
      (try
        (with-redefs [fixture/patience 200]
          (is (thrown? IOException
                       (events (str "http://127.0.0.1:" (.getPort (.getAddress server)) "/")
                               (fn [next-event] (next-event))))))
        (finally (.stop server 0))))))

(kernel-test streams-of-changes
  (testing "events of the host and of a map follow what other programs do"
    ;; A name of its own: a map of another run of the tests would be another row.
    (with-open [m ^Closeable (map-of {:name (str "t_live" (mod (System/nanoTime) 10000000))
                                      :key :u32 :value :u64} {1 5})]
      (with-export all
        (fn [_ at]
          (events (at (str "/events?q=" (:name (bpf/info m))))
                  (fn [next-event]
                    (is (= "all" (:event (next-event))))
                    (bpf/put! m 2 6)
                    (is (= "part" (:event (event-with next-event #"<span>2</span>"))))))
          (events (at (str "/maps/" (id-of m) "/events"))
                  (fn [next-event]
                    (is (= "all" (:event (next-event))))
                    (bpf/put! m 2 123456)
                    (is (some? (event-with next-event #">123456<")))
                    (is (some? (event-with next-event #"<polyline")) "a rate over time")))))))
  (testing "the stream of a map ends when the map is gone"
    (with-export all
      (fn [_ at]
        (let [m (map-of {:name "t_page_gone" :key :u32 :value :u64} {1 5})
              id (id-of m)]
          (try
            (events (at (str "/maps/" id "/events"))
                    (fn [next-event]
                      (is (= "all" (:event (next-event))))
                      (bpf/close m)
                      (is (some? (event-with next-event #"The map no longer exists")))
                      (is (= {:event "end" :data ""} (next-event)))
                      (is (nil? (next-event)))))
            (finally (bpf/close m))))))))

(kernel-test heat-maps
  (testing "an array of slots is a heat map, and so is a histogram of the config"
    (with-open [m ^Closeable (map-of {:name "t_page_heat" :key :u32
                                      :value [:struct [:slots [:array :u32 8]]]}
                                     {1 {:slots [0 0 5 0 0 0 0 0]}})
                n ^Closeable (map-of {:name "t_page_slot" :key :u32 :value :u64} {3 7})]
      (with-export (merge all {:metrics [{:name "slow_seconds" :type :histogram :last 8
                                          :slots :exp2 :map {:id (id-of n)}}]})
        (fn [_ at]
          (let [body (:body (fetched (at (str "/maps/" (id-of m)))))]
            (is (some #{"Histograms"} (texts body "h2")))
            (is (some #{"≤ 7"} (texts body "th")))
            (is (re-find #"class=\"cells\"" body)))
          (is (some #{"slow_seconds"} (texts (:body (fetched (at (str "/maps/" (id-of n))))) "span")))
          (events (at (str "/maps/" (id-of m) "/events"))
                  (fn [next-event]
                    (next-event)
                    (bpf/put! m 1 {:slots [0 0 9 0 0 0 0 0]})
                    (is (some? (event-with next-event #"<rect class=\"h8\""))))))))))

(defn- settled
  "Waits until a number is what it should be."
  [what n f]
  (browser/until what #(= n (f))))

(kernel-test x8-streams-are-limited
  (testing "so many clients have events; others get 503, and scrapes and pages go on"
    (with-export {}
      (fn [e at]
        (let [^java.util.concurrent.Semaphore streams (get-in e [:page :streams])
              request (str "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
              sockets (vec (repeatedly page/most-streams #(sent (at "/") request)))]
          (try
            (settled "all streams are open" 0 #(.availablePermits streams))
            (let [{:keys [status header]} (fetched (at "/events"))]
              (is (= [503 "10"] [status (header "retry-after")])))
            (is (= [200 200] (map #(:status (fetched (at %))) ["/" "/metrics"])))
            (finally (run! #(.close ^Socket %) sockets)))
          (testing "a client that is gone is noticed"
            (settled "all streams are closed" page/most-streams #(.availablePermits streams))
            (events (at "/events") #(is (= "all" (:event (%)))))))))))

(kernel-test unfinished-requests
  (testing "clients that do not finish their requests do not delay scrapes and pages"
    (with-export {}
      (fn [_ at]
        (let [sockets (vec (repeatedly 50 #(sent (at "/") "GET / HTTP/1.1\r\nHost: loc")))]
          (try
            (is (= [200 200] (map #(:status (fetched (at %))) ["/metrics" "/"])))
            (finally (run! #(.close ^Socket %) sockets))))))))

(kernel-test x8-descriptors-stay-flat
  (testing "after a thousand requests, and after streams of clients that went away"
    (with-open [m ^Closeable (map-of {:name "t_page_fds" :key :u32 :value :u64} {1 5})]
      (with-export all
        (fn [e at]
          (let [^java.util.concurrent.Semaphore streams (get-in e [:page :streams])
                paths ["/" "/?q=x" (str "/maps/" (id-of m)) "/page.js" "/nope" "/maps/4294967295"
                       "/metrics"]
                ask #(with-open [s (sent (at "/") (str "GET " % " HTTP/1.1\r\nHost: localhost\r\n"
                                                       "Connection: close\r\n\r\n"))]
                       (slurp (.getInputStream s)))
                stream #(with-open [s (sent (at "/") (str "GET " % " HTTP/1.1\r\nHost: localhost\r\n\r\n"))]
                          (.read (.getInputStream s)))
                round (fn [n]
                        (dotimes [i n] (ask (nth paths (mod i (count paths)))))
                        (dotimes [_ 8] (stream "/events") (stream (str "/maps/" (id-of m) "/events")))
                        (settled "all streams are closed" page/most-streams
                                 #(.availablePermits streams)))
                sockets (fn []
                          (count (filter #(re-find #"^(socket|anon_inode:bpf-map)"
                                                   (str (try (java.nio.file.Files/readSymbolicLink
                                                              (.toPath ^File %))
                                                             (catch IOException _ nil))))
                                         (.listFiles (File. "/proc/self/fd")))))]
            (round 14)
            (let [before (long (sockets))]
              (round 1000)
              (browser/until "as many descriptors as before" #(<= (long (sockets)) before))
              (is (<= (long (sockets)) before)))))))))

;; --- in a browser

(defn- in-browser
  "Calls f with a browser; skips the test where there is none."
  [f]
  (if-not @browser/executable
    (fixture/skip! "Chromium is not installed")
    (with-open [b ^Closeable (browser/open)]
      (f b))))

(def ^:private fits
  "An expression that is true if the page is not wider than the screen."
  (str "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
       " && document.documentElement.clientWidth === "))

(def ^:private unlabelled
  "An expression for the elements that a screen reader cannot name."
  (str "Array.from(document.querySelectorAll('input:not([type=hidden]), select, svg, button, a, table th'))"
       ".filter(e => !e.closest('[aria-hidden=true]') && !(e.getAttribute('aria-label') ||"
       " e.textContent.trim() || (e.labels && e.labels.length))).map(e => e.outerHTML)"))

(kernel-test ^:volume page-in-a-browser
  (testing "at the width of a desktop and of a phone, light and dark, the page fits, has no errors in
           the console, and is live"
    (in-browser
     (fn [b]
       (with-open [m ^Closeable (map-of {:name "t_page_chrome" :key :ipv4
                                         :value [:struct [:n :u64] [:comm [:string 48]]]}
                                        {"10.0.0.1" {:n 1 :comm "<script>document.title='x'</script>"}})
                   h ^Closeable (map-of {:name "t_page_chist" :key :u32
                                         :value [:struct [:slots [:array :u32 27]]]}
                                        {1 {:slots (vec (range 27))}})]
         (with-export all
           (fn [_ at]
             (doseq [[width height] [[1280 800] [390 844]]
                     scheme ["light" "dark"]
                     [path title] [["/" "Maps of this host"]
                                   [(str "/maps/" (id-of m)) "t_page_chrome"]
                                   [(str "/maps/" (id-of h)) "t_page_chist"]
                                   ["/maps/4294967295" "Not found"]]]
               (testing (str path " at " width " " scheme)
                 (browser/look b (at path) width height scheme)
                 (is (= title (browser/evaluate b "document.title")))
                 (is (true? (browser/evaluate b (str fits width))))
                 (is (= [] (browser/evaluate b unlabelled)))
                 (is (= "1" (str (browser/evaluate b "document.querySelectorAll('h1').length"))))
                 (is (= (if (= "light" scheme) "rgb(255, 255, 255)" "rgb(20, 24, 28)")
                        (browser/evaluate b "getComputedStyle(document.body).backgroundColor"))
                     "the style sheet is in use")
                 (when-not (= "Not found" title)
                   (browser/wait-for b "document.getElementById('status').textContent === 'live'")
                   (is (true? (browser/evaluate b (str fits width)))))
                 ;; The answer 404 itself is an entry of the log.
                 (is (= [] (cond->> @(:errors b)
                             (= "Not found" title) (remove #(str/ends-with? % path)))))))
             (testing "a new entry comes without a reload, and the focus stays"
               (browser/look b (at (str "/maps/" (id-of m) "?sort=n")) 390 844 "light")
               (browser/wait-for b "document.getElementById('status').textContent === 'live'")
               (browser/evaluate b "window.kept = true; document.querySelector('thead a').focus()")
               (bpf/put! m "10.0.0.2" {:n 4711 :comm "<img src=x onerror=document.title='x'>"})
               (browser/wait-for b "document.body.textContent.includes('4711')")
               (is (true? (browser/evaluate b "window.kept && document.activeElement.tagName === 'A'")))
               (is (= "t_page_chrome" (browser/evaluate b "document.title")))
               (is (= 0 (browser/evaluate b "document.querySelectorAll('#live img, #live script').length")))
               (is (= [] @(:errors b))))
             (testing "a sparkline is drawn while somebody looks"
               (browser/wait-for b "document.querySelector('.rates polyline') !== null"))
             (testing "the page says so when the map is gone"
               (bpf/close m)
               (browser/wait-for b "document.getElementById('status').textContent === 'ended'")
               (is (true? (browser/evaluate
                           b "document.body.textContent.includes('The map no longer exists')")))))))))))

(kernel-test ^:volume page-without-scripts
  (testing "without scripts, the page has all that it had when it was made, and its links work"
    (in-browser
     (fn [b]
       (with-open [m ^Closeable (map-of {:name "t_page_plain" :key :u32 :value :u64}
                                        {1 10, 2 30, 3 20})]
         (with-export all
           (fn [_ at]
             (browser/call b "Emulation.setScriptExecutionDisabled" {:value true})
             (browser/look b (at (str "/maps/" (id-of m))) 390 844 "light")
             (is (= "" (browser/evaluate b "document.getElementById('status').textContent")))
             (is (re-find #"Reload the page" (browser/evaluate b "document.body.textContent")))
             (let [values (str "Array.from(document.querySelectorAll('tbody#body tr'))"
                               ".map(r => r.children[1].textContent)")
                   sorted-by (fn [way]
                               (browser/evaluate b "document.querySelectorAll('thead a')[1].click()")
                               (browser/wait-for
                                b (str "document.readyState === 'complete' && (document.querySelectorAll("
                                       "'thead th')[1] || document.body).getAttribute('aria-sort') === '"
                                       way "'"))
                               (browser/evaluate b values))]
               (is (= #{"10" "20" "30"} (set (browser/evaluate b values))))
               (is (= ["10" "20" "30"] (sorted-by "ascending")))
               (is (= ["30" "20" "10"] (sorted-by "descending")))))))))))
