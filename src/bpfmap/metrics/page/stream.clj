(ns ^:no-doc bpfmap.metrics.page.stream
  "Sends events to browsers (server-sent events), and gives up on clients that do not read.

  A view is `{:parts [[id html] …]}`: the elements of a page, each with the id that its HTML has. An
  event `all` has all of them; an event `part` has those that changed."
  (:require [bpfmap.impl.waiting :as waiting]
            [bpfmap.metrics.page.shared :as shared]
            [clojure.string :as str])
  (:import (com.sun.net.httpserver HttpExchange)
           (java.io IOException OutputStream)
           (java.nio.charset StandardCharsets)
           (java.util.concurrent ScheduledThreadPoolExecutor ThreadFactory TimeUnit)))

(set! *warn-on-reflection* true)

;; --- deadlines

(defn timer
  "Returns the executor that ends late writes; the caller shuts it down."
  ^ScheduledThreadPoolExecutor []
  (doto (ScheduledThreadPoolExecutor.
         1 (reify ThreadFactory
             (newThread [_ f]
               (doto (Thread. f "bpfmap-page-timer") (.setDaemon true)))))
    (.setRemoveOnCancelPolicy true)))

(defn in-time
  "Runs f, and interrupts it after so many milliseconds.

  An interrupt closes the connection on which a thread is writing, so f throws an IOException."
  [^ScheduledThreadPoolExecutor timer ms f]
  (let [thread (Thread/currentThread)
        state (atom :running)
        task (.schedule timer
                        ^Runnable (fn []
                                    (locking state
                                      (when (compare-and-set! state :running :late)
                                        (.interrupt thread))))
                        (long ms) TimeUnit/MILLISECONDS)]
    (try
      (f)
      (finally
        (.cancel task false)
        (locking state
          (when-not (compare-and-set! state :running :done)
            (Thread/interrupted))))))) ; the thread goes back to its pool

;; --- events

(defn event
  "Returns an event as text.

      (event \"part\" \"<p>1</p>\") ;=> \"event: part\\ndata: <p>1</p>\\n\\n\""
  [event-name data]
  (str "event: " event-name "\n"
       (str/join (map #(str "data: " % "\n") (str/split data #"\r\n|\r|\n" -1)))
       "\n"))

(defn changed
  "Returns the event from one view to the next; nil if nothing changed.

      (changed nil {:parts [[\"a\" \"<p id=a>1</p>\"]]}) ;=> \"event: all\\n…\""
  [{before :parts} {now :parts}]
  (if (= (map first before) (map first now))
    (let [parts (for [[[_ old] [_ new]] (map vector before now) :when (not= old new)] new)]
      (when (seq parts)
        (event "part" (str/join parts))))
    (event "all" (str/join (map second now)))))

(def write-time
  "Milliseconds for writing to a client." 10000)

(def ^:private quiet
  "Milliseconds after which something is written, to notice a client that left." 5000)

(def ^:private life
  "Milliseconds after which a stream ends; the browser connects again." 300000)

(defn- write-text [^OutputStream out timer ^String text]
  (in-time timer write-time
           #(do (.write out (.getBytes text StandardCharsets/UTF_8))
                (.flush out))))

(defn send-views
  "Sends the views of a source to a client until it goes away.

  Ends too when the promise that is in the atom `stop` now is delivered, after five minutes, and
  after a view with `:end`.
  `(view reading)` returns the view of a reading."
  [^HttpExchange exchange {:keys [timer stop]} source view]
  (.set (.getResponseHeaders exchange) "Content-Type" "text/event-stream; charset=utf-8")
  (.sendResponseHeaders exchange 200 0)
  (let [out (.getResponseBody exchange)
        ends (+ (System/nanoTime) (* 1000000 (long life)))
        stop @stop
        pause (fn [ms] (waiting/value stop ms ::go-on :page))]
    (try
      (write-text out timer "retry: 3000\n\n")
      (loop [before nil number 0 written (System/nanoTime)]
        (let [[n reading] (shared/current source)
              n (long n)
              now (if (= n number) before (view reading))
              text (or (when-not (= n number) (changed before now))
                       (when (< (* 1000000 (long quiet)) (- (System/nanoTime) (long written)))
                         ": still here\n\n"))]
          (when text (write-text out timer text))
          (cond
            (:end now) (write-text out timer (event "end" ""))
            (and (neg? (- (System/nanoTime) ends))
                 (= ::go-on (pause (min (long quiet) (shared/wait source)))))
            (recur now n (if text (System/nanoTime) written)))))
      (catch IOException _ nil)))) ; the client is gone
