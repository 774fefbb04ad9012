(ns ^:no-doc bpfmap.metrics.page
  "Answers the requests for the page of the exporter: its paths, headers and limits.

  | path                | answer                                          |
  |---------------------|-------------------------------------------------|
  | `/` `/events`       | all maps of the host, and their events          |
  | `/maps/ID` `/maps/ID/events` | one map, and its events                |
  | `/page.css` `/page.js` `/page.svg` | what the page consists of         |

  Everything is read-only."
  (:require [bpfmap.metrics.page.entries :as entries]
            [bpfmap.metrics.page.host :as host]
            [bpfmap.metrics.page.layout :as layout]
            [bpfmap.metrics.page.markup :as markup]
            [bpfmap.metrics.page.shared :as shared]
            [bpfmap.metrics.page.stream :as stream]
            [bpfmap.metrics.server :as server]
            [clojure.java.io :as io])
  (:import (clojure.lang ExceptionInfo)
           (com.sun.net.httpserver HttpExchange)
           (java.io ByteArrayOutputStream IOException)
           (java.nio.charset StandardCharsets)
           (java.util.concurrent ScheduledThreadPoolExecutor Semaphore TimeUnit)))

(set! *warn-on-reflection* true)

(def most-streams "The largest number of clients that get events." 32)
(def ^:private most-answers "The largest number of pages that are made and written at once." 8)
(def ^:private most-maps "The largest number of maps that are watched." 16)
(def ^:private idle "Milliseconds for which the history of a map that nobody watches is kept." 30000)

;; --- state

(defn start
  "Returns the page of an exporter; [[stop]] it.

  `:host` is the source of readings of all maps, and `(map-source row params)` returns the source of
  one map. `(all)` returns true if the entries of every map are shown; otherwise a map must have
  metrics in the config, `(metrics-of row)`. `:loopback` is true if the server listens at a loopback
  address."
  [{:keys [host map-source metrics-of all loopback]}]
  (let [timer (stream/timer)
        maps (shared/table most-maps idle (fn [{:keys [row params]}] (map-source row params)))
        page {:metrics-of metrics-of :all all :loopback loopback
              :timer timer :stop (atom (promise))
              :host host :maps maps
              :streams (Semaphore. most-streams) :answers (Semaphore. most-answers)}]
    (.scheduleWithFixedDelay ^ScheduledThreadPoolExecutor timer ^Runnable #(shared/sweep maps)
                             (long idle) (long idle) TimeUnit/MILLISECONDS)
    page))

(defn end-streams
  "Ends the streams of a page; browsers connect again."
  [{:keys [stop]}]
  (deliver (first (reset-vals! stop (promise))) true))

(defn stop
  "Stops a page, and ends its streams."
  [{:keys [^ScheduledThreadPoolExecutor timer] :as page}]
  (end-streams page)
  (.shutdown timer))

;; --- answers

(def ^:private headers
  {"Content-Security-Policy"
   (str "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
   "X-Content-Type-Options" "nosniff"
   "Referrer-Policy" "no-referrer"
   "Cross-Origin-Resource-Policy" "same-origin"
   "Cross-Origin-Opener-Policy" "same-origin"
   "Cache-Control" "no-store"})

(defn- write
  "Writes an answer; gives up a client that does not read it."
  [{:keys [timer]} ^HttpExchange exchange status type ^bytes content]
  (.set (.getResponseHeaders exchange) "Content-Type" type)
  (let [out (server/body exchange status)]
    (stream/in-time timer stream/write-time
                    #(with-open [out out]
                       (.write out content)))))

(defn- answer
  ([page exchange status text] (answer page exchange status "text/plain; charset=utf-8" text))
  ([page exchange status type ^String text]
   (write page exchange status type (.getBytes text StandardCharsets/UTF_8))))

(defn- html [page exchange status text]
  (answer page exchange status "text/html; charset=utf-8" text))

(defn- problem
  "Answers with a page that has a message only."
  [page exchange status title text]
  (html page exchange status
        (layout/document {:title title
                          :parts [(layout/part "problem" [:p {:class "problem"} text])]})))

(defn- busy [page ^HttpExchange exchange]
  (.set (.getResponseHeaders exchange) "Retry-After" "10")
  (answer page exchange 503 "Too many clients: try again later\n"))

(defmacro ^:private with-permit
  "Runs body with a permit of a semaphore, or answers 503 if there is none."
  [[page exchange semaphore] & body]
  `(let [^Semaphore semaphore# ~semaphore]
     (if (.tryAcquire semaphore#)
       (try
         ~@body
         (finally (.release semaphore#)))
       (busy ~page ~exchange))))

;; --- files

(def ^:private types
  {"/page.css" "text/css; charset=utf-8"
   "/page.js" "text/javascript; charset=utf-8"
   "/page.svg" "image/svg+xml; charset=utf-8"})

(def ^:private files
  (delay (into {} (for [path (keys types)]
                    [path (with-open [in (io/input-stream (io/resource (str "bpfmap" path)))
                                      out (ByteArrayOutputStream.)]
                            (io/copy in out)
                            (.toByteArray out))]))))

;; --- the host

(defn- serve-host [{:keys [host] :as page} ^HttpExchange exchange]
  (let [params (markup/params (.getRawQuery (.getRequestURI exchange)) host/params)
        [_ reading] (shared/current host)]
    (html page exchange (if (:error reading) 500 200) (host/page params reading))))

(defn- stream-host [{:keys [host] :as page} ^HttpExchange exchange]
  (let [params (markup/params (.getRawQuery (.getRequestURI exchange)) host/params)]
    (stream/send-views exchange page host (host/view params))))

;; --- maps

(defn- map-row
  "Returns the row of a map with an id, from the reading of the host."
  [{:keys [host]} id]
  (let [[_ {:keys [rows error]}] (shared/current host)]
    (when error
      (throw (ex-info error {:status 500})))
    (or (some #(when (= id (:id %)) %) rows)
        (throw (ex-info (str "No map has the id " id ".") {:status 404})))))

(defn- shown?
  "Returns true if the entries of a map are shown."
  [{:keys [all metrics-of]} row]
  (boolean (or (all) (seq (metrics-of row)))))

(defn- with-source
  "Calls f with the source of a map; answers 503 if too many maps are watched."
  [{:keys [maps] :as page} exchange {:keys [id] :as row} options f]
  (let [params (select-keys options [:bucket :slots])
        k {:id id :params params :row (select-keys row [:id :name :kernel-name :pinned])}
        source (shared/acquire maps k)]
    (if source
      (try
        (f source)
        (finally (shared/release maps k)))
      (busy page exchange))))

(defn- with-map
  "Calls `(shown row given options source)` for the map with an id.

  Calls `(hidden row given)` if its entries are not shown."
  [page ^HttpExchange exchange id shown hidden]
  (let [given (markup/params (.getRawQuery (.getRequestURI exchange)) entries/params)
        row (map-row page id)
        options (entries/checked given)]
    (if (shown? page row)
      (with-source page exchange row options #(shown row given options %))
      (hidden row given))))

(defn- serve-map [page exchange id]
  (with-map page exchange id
    (fn [row given options source]
      (let [[_ reading] (shared/current source)
            view ((entries/view row given options) reading)]
        (html page exchange (if (:gone reading) 404 200)
              (entries/document row given view true))))
    (fn [row given]
      (html page exchange 200 (entries/document row given (entries/hidden-view row) false)))))

(defn- stream-map [page exchange id]
  (with-map page exchange id
    (fn [row given options source]
      (stream/send-views exchange page source (entries/view row given options)))
    (fn [_ _]
      (answer page exchange 404 "The entries of this map are not shown\n"))))

;; --- requests

(defn- local-host?
  "Returns true for the header Host of a request to this host by a loopback name.

  A web site whose name was changed to a loopback address has its own name there."
  [host]
  (boolean (and host (re-matches #"(?i)(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?"
                                 host))))

(defn- target
  "Returns the function that answers a path, or nil: `[semaphore-key function]`."
  [path]
  (let [[_ id events] (re-matches #"/maps/([1-9][0-9]{0,9})(/events)?" path)
        id (some-> id parse-long)]
    (cond
      (types path) [:answers #(write %1 %2 200 (types path) (@files path))]
      (= "/" path) [:answers serve-host]
      (= "/events" path) [:streams stream-host]
      events [:streams #(stream-map %1 %2 id)]
      id [:answers #(serve-map %1 %2 id)])))

(defn- respond [page ^HttpExchange exchange [limit f]]
  (try
    (if (and (= :streams limit) (= "HEAD" (.getRequestMethod exchange)))
      (answer page exchange 200 "text/event-stream; charset=utf-8" "")
      (with-permit [page exchange (get page limit)]
        (f page exchange)))
    (catch ExceptionInfo e
      (let [{:keys [status] :bpfmap/keys [error]} (ex-data e)]
        (problem page exchange (or status (if (= :usage error) 400 500))
                 (if (= 404 status) "Not found" "This cannot be shown") (ex-message e))))))

(defn handle
  "Answers a request if its path belongs to the page; returns nil otherwise."
  [{:keys [loopback] :as page} ^HttpExchange exchange]
  (when-let [found (target (.getPath (.getRequestURI exchange)))]
    (doseq [[k v] headers] (.set (.getResponseHeaders exchange) k v))
    (try
      (cond
        (not (#{"GET" "HEAD"} (.getRequestMethod exchange)))
        (do (.set (.getResponseHeaders exchange) "Allow" "GET, HEAD")
            (answer page exchange 405 "Only GET is allowed\n"))
        (and loopback (not (local-host? (.getFirst (.getRequestHeaders exchange) "Host"))))
        (answer page exchange 421 "The host of the URL must be localhost or 127.0.0.1\n")
        :else (respond page exchange found))
      (catch IOException _ nil)) ; the client is gone
    true))
