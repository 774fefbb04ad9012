(ns bpfmap.browser
  "Drives a headless Chromium by its DevTools protocol, over a WebSocket of the JDK."
  (:require [bpfmap.fixture :as fixture]
            [clojure.data.json :as json]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.io Closeable File)
           (java.net URI)
           (java.net.http HttpClient HttpRequest HttpResponse$BodyHandlers WebSocket
                          WebSocket$Listener)
           (java.util Base64)
           (java.util.concurrent CompletableFuture TimeUnit)))

(set! *warn-on-reflection* true)

(def ^:private patience
  "Seconds after which something that should happen is given up."
  (* 120 (long fixture/slowness)))

(def executable
  "The path of Chromium or Chrome, or nil where neither is installed."
  (delay (some fixture/executable ["chromium" "google-chrome" "chromium-browser"])))

(defn until
  "Calls f until it returns something true, and returns that; throws when patience is over."
  [what f]
  (let [ends (+ (System/nanoTime) (* 1000000000 (long patience)))]
    (loop []
      (or (f)
          (do
            (when (pos? (- (System/nanoTime) ends))
              (throw (ex-info (str "It did not happen within " patience " seconds: " what) {})))
            (.join (Thread/currentThread) 20) ; it is another process: there is nothing to wait on
            (recur))))))

;; --- the process

(defn- port-of
  "Returns the port that Chromium has written into its profile, or nil."
  [profile]
  (let [file (io/file profile "DevToolsActivePort")]
    (when (.exists file)
      (some-> (first (str/split-lines (slurp file))) not-empty parse-long))))

(defn- start-process
  "Starts Chromium as the user nobody, with a profile of its own."
  ^Process [profile]
  (fixture/run ["chown" "-R" "nobody" (str profile)])
  (.start
   (doto (ProcessBuilder.
          ^java.util.List
          (vector "setpriv" "--reuid" "65534" "--regid" "65534" "--clear-groups" "--no-new-privs"
                  "env" "-i" (str "HOME=" profile) "PATH=/usr/bin:/bin" "LANG=C.UTF-8"
                  @executable "--headless=new" "--no-sandbox" ; its sandbox needs privileges
                  "--disable-gpu" "--disable-dev-shm-usage" "--disable-extensions"
                  "--disable-background-networking" "--disable-component-update" "--disable-sync"
                  "--no-first-run" "--no-default-browser-check" "--mute-audio" "--hide-scrollbars"
                  "--remote-debugging-port=0" (str "--user-data-dir=" profile) "about:blank"))
     (.redirectErrorStream true)
     (.redirectOutput (io/file profile "log"))
     (.redirectInput (File. "/dev/null")))))

;; --- the protocol

(defn- listener
  "Returns a listener that gives each whole message to f."
  ^WebSocket$Listener [f]
  (let [text (StringBuilder.)]
    (reify WebSocket$Listener
      (onText [_ socket part last?]
        (.append text part)
        (when last?
          (f (json/read-str (str text) :key-fn keyword))
          (.setLength text 0))
        (.request socket 1)
        nil))))

(defn call
  "Calls a method of the protocol, and returns its result."
  [{:keys [^WebSocket socket answers number]} method params]
  (let [id (swap! number inc)
        answer (promise)]
    (swap! answers assoc id answer)
    (.join (.sendText socket (json/write-str {:id id :method method :params params}) true))
    (let [{:keys [result error]} (deref answer (* 1000 (long patience)) {:error "no answer"})]
      (swap! answers dissoc id)
      (when error (throw (ex-info (str method ": " (pr-str error)) {})))
      result)))

(defn- page-url
  "Returns the URL of the WebSocket of the first tab, or nil."
  [port]
  (let [response (.send (HttpClient/newHttpClient)
                        (.build (HttpRequest/newBuilder
                                 (URI. (str "http://127.0.0.1:" port "/json/list"))))
                        (HttpResponse$BodyHandlers/ofString))]
    (some #(when (= "page" (:type %)) (:webSocketDebuggerUrl %))
          (json/read-str (.body response) :key-fn keyword))))

(defn- note
  "Keeps what the console of a page would show as an error."
  [errors {:keys [method params]}]
  (case method
    "Runtime.exceptionThrown" (swap! errors conj (get-in params [:exceptionDetails :exception
                                                                 :description] (pr-str params)))
    "Log.entryAdded" (when (= "error" (get-in params [:entry :level]))
                       (swap! errors conj (str (get-in params [:entry :text]) " "
                                               (get-in params [:entry :url]))))
    "Runtime.consoleAPICalled" (when (= "error" (:type params))
                                 (swap! errors conj (pr-str (:args params))))
    nil))

(defrecord Browser [^Process process profile ^WebSocket socket answers number errors]
  Closeable
  (close [_]
    (some-> socket .abort)
    (.destroyForcibly process)
    (.waitFor process)
    ;; Its other processes may still write.
    (until "the profile is deleted"
           #(do (run! (fn [^File file] (.delete file)) (reverse (file-seq profile)))
                (not (.exists ^File profile))))))

(defn open
  "Starts Chromium with one empty tab. Close it."
  ^Closeable []
  (let [profile (fixture/temporary-directory)
        process (start-process profile)
        answers (atom {})
        errors (atom [])
        browser (->Browser process profile nil answers (atom 0) errors)]
    (try
      (let [port (until "Chromium has a port"
                        #(do (when-not (.isAlive process)
                               (throw (ex-info (str "Chromium ended: "
                                                    (slurp (io/file profile "log"))) {})))
                             (port-of profile)))
            url (until "Chromium has a tab" #(page-url port))
            received (fn [{:keys [id] :as message}]
                       (if id
                         (some-> (get @answers id) (deliver message))
                         (note errors message)))
            socket (-> (.newWebSocketBuilder (HttpClient/newHttpClient))
                       (.buildAsync (URI. url) (listener received))
                       ^CompletableFuture (.orTimeout patience TimeUnit/SECONDS)
                       .join)
            browser (assoc browser :socket socket)]
        (doseq [domain ["Page" "Runtime" "Log"]]
          (call browser (str domain ".enable") {}))
        browser)
      (catch Throwable e
        (.close ^Closeable browser)
        (throw e)))))

;; --- a page

(defn evaluate
  "Returns the value of an expression of JavaScript."
  [browser expression]
  (let [{:keys [result exceptionDetails]} (call browser "Runtime.evaluate"
                                                {:expression expression :returnByValue true
                                                 :awaitPromise true})]
    (when exceptionDetails
      (throw (ex-info (str "JavaScript: " (pr-str exceptionDetails)) {})))
    (:value result)))

(defn wait-for
  "Waits until an expression of JavaScript has a true value, and returns it."
  [browser expression]
  (until expression #(try
                       (evaluate browser expression)
                       ;; Such as in the moment between two pages.
                       (catch ExceptionInfo _ nil))))

(defn look
  "Opens a URL at a width and height, and waits until it is loaded.

  `scheme` is \"light\" or \"dark\"."
  [browser url width height scheme]
  (call browser "Emulation.setDeviceMetricsOverride"
        {:width width :height height :deviceScaleFactor 1 :mobile (< (long width) 600)})
  (call browser "Emulation.setEmulatedMedia"
        {:features [{:name "prefers-color-scheme" :value scheme}]})
  (call browser "Page.navigate" {:url "about:blank"})
  (wait-for browser "location.href === 'about:blank' && document.readyState === 'complete'")
  (reset! (:errors browser) [])
  (call browser "Page.navigate" {:url url})
  (wait-for browser "location.href !== 'about:blank' && document.readyState === 'complete'"))

(defn screenshot
  "Writes what the tab shows to a PNG file."
  [browser file]
  (let [{:keys [data]} (call browser "Page.captureScreenshot" {:format "png"})]
    (with-open [out (io/output-stream file)]
      (.write out (.decode (Base64/getDecoder) ^String data)))))
