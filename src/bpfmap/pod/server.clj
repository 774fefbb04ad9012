(ns ^:no-doc bpfmap.pod.server
  "Runs a Babashka pod: the public API for scripts, in a process of its own. `bin/pod-bpfmap` starts
  it.

      (require '[babashka.pods :as pods])
      (pods/load-pod \"pod-bpfmap\")
      (require '[pod.bpfmap.core :as bpf])
      (bpf/with-open [m (bpf/open {:name \"flows\"} {:access :read-only})]
        (bpf/count-entries m))

  It implements the pod protocol (https://github.com/babashka/pods): messages in bencode on stdin
  and stdout, payloads in EDN. Each call runs on a thread of its own. doc/pod.md is for users.

  | op         | answer                                                                                      |
  |------------|---------------------------------------------------------------------------------------------|
  | `describe` | namespaces, vars and tags                                                                   |
  | `invoke`   | `value`, or `ex-message` and `ex-data` with the status `error`; `done` with the last answer |
  | `shutdown` | none: running calls can end, everything is closed, the pod exits with 0                     |

  The end of stdin means `shutdown`. An invalid message ends the pod with exit code 1 and a line on
  stderr."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.escape :as escape]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.waiting :as waiting]
            [bpfmap.pod.bencode :as bencode]
            [bpfmap.pod.change-events :as change-events]
            [bpfmap.pod.handles :as handles]
            [bpfmap.pod.payload :as payload]
            [bpfmap.pod.subscription :as subscription]
            [bpfmap.pod.vars :as vars])
  (:import (clojure.lang ArityException ExceptionInfo)
           (java.io BufferedInputStream FileDescriptor FileInputStream FileOutputStream
                    IOException InputStream PrintStream PrintWriter Writer)
           (java.util.concurrent ExecutorService Executors ThreadFactory TimeUnit)))

(set! *warn-on-reflection* true)

(def ^:private ^:const patience "Seconds that running calls have to end at shutdown." 5)

(defn- complain [& message]
  (binding [*out* *err*]
    (println (escape/escape (apply str "bpfmap pod: " message)))
    (flush)))

;; --- answers

;; `out` is written by one thread at a time. `ending` is a promise of the exit code, kept as soon
;; as the pod has to end.
(defrecord Pod [out table ^ExecutorService calls ending])

(defn- give-up
  "Ends the pod with exit code 1, reports the reason once, and returns nil."
  [{:keys [ending]} & message]
  (locking ending
    (when-not (realized? ending)
      (apply complain message)
      (deliver ending 1)))
  nil)

(defn- send! [{:keys [out] :as pod} message]
  (try
    (locking out
      (bencode/write-message out message))
    (catch IOException e
      ;; The client has gone, or has closed its side, so no answer can be sent.
      (give-up pod "The output cannot be written: " (ex-message e)))))

(defn- id-of
  "Returns the id for an answer.

  It is \"unknown\", as in other pods, if the request has none."
  [message]
  (get message "id" "unknown"))

(defn- failure-data
  "Returns the data of an exception for the client: EDN with `:bpfmap/error`."
  [e]
  (cond
    (:bpfmap/error (ex-data e)) (ex-data e)
    (instance? ArityException e) {:bpfmap/error :invalid-value}
    (instance? OutOfMemoryError e) {:bpfmap/error :no-memory}
    :else {:bpfmap/error :bug :exception (.getName (class e))}))

(defn- failure-message [^Throwable e]
  (cond
    (:bpfmap/error (ex-data e)) (ex-message e)
    (instance? ArityException e) (ex-message e)
    (instance? OutOfMemoryError e) "The pod has too little memory for the call, or for its result"
    :else (str "This is a bug in bpfmap, and the pod's stderr says where: " e)))

(defn- send-failure! [{:keys [table] :as pod} message ^Throwable e]
  (let [data (failure-data e)]
    (when (= :bug (:bpfmap/error data))
      (.printStackTrace e (PrintWriter. ^Writer *err* true)))
    (send! pod {"id" (id-of message)
                "status" ["done" "error"]
                "ex-message" (str (failure-message e))
                "ex-data" (try
                            (payload/write table data)
                            (catch ExceptionInfo _ (payload/write table (error/shown data))))})))

(defmacro ^:private answering
  "Evaluates body, and answers a message with any exception."
  [[pod message] & body]
  `(try
     ~@body
     (catch Throwable e#
       (send-failure! ~pod ~message e#))))

;; --- ops

(defn- required-text
  "Returns a field of a message, which must be a string."
  [message field]
  (let [x (get message field)]
    (if (string? x)
      x
      (throw (error/error :invalid-message
                          (str "The op " (get message "op") " requires " (pr-str field)
                               ", a string") nil)))))

(defn- call
  "Calls the function that a message invokes, and sends the result."
  [{:keys [table] :as pod} message]
  (let [{:keys [call] streams? :streams closed-is-nil? :closed-is-nil}
        (vars/function (required-text message "var"))
        text (required-text message "args")
        args (if closed-is-nil? (payload/read-args table text nil) (payload/read-args table text))
        emit (fn [x] (send! pod {"id" (id-of message) "value" (payload/write table x)}))
        result (binding [call/*refuse-number* vars/refuse-number]
                 (apply call {:table table :emit emit} args))]
    (send! pod (cond-> {"id" (id-of message) "status" ["done"]}
                 (not streams?) (assoc "value" (payload/write table result))))))

(defn- invoke [{:keys [^ExecutorService calls] :as pod} message]
  (.execute calls (bound-fn [] (answering [pod message] (call pod message)))))

(defn- describe [pod message]
  (send! pod (cond-> (vars/description)
               (get message "id") (assoc "id" (get message "id")))))

(defn- shutdown [{:keys [ending]} _]
  (deliver ending 0))

(def ^:private ops
  {"describe" describe
   "invoke" invoke
   "shutdown" shutdown})

(defn- handle [pod {:strs [op] :as message}]
  (answering [pod message]
    (if-let [f (ops op)]
      (f pod message)
      (throw (error/error :invalid-message (str "The pod has no op " (error/printed op))
                          {:bpfmap/hint (str "it has "
                                             (error/list-of (map pr-str (sort (keys ops)))))})))))

;; --- running

(defn- daemon ^Thread [^String name ^Runnable runnable]
  (doto (Thread. runnable name)
    (.setDaemon true)))

(def ^:private ^ThreadFactory daemons
  (reify ThreadFactory
    (newThread [_ runnable] (daemon "bpfmap-pod-call" runnable))))

(defn- read-all
  "Handles messages until the pod ends."
  [{:keys [ending] :as pod} in]
  (loop []
    (if-let [message (try
                       (bencode/read-message in)
                       (catch ExceptionInfo e
                         (give-up pod (ex-message e)))
                       (catch IOException e
                         (give-up pod "The input cannot be read: " (ex-message e)))
                       (catch OutOfMemoryError _
                         (give-up pod "The pod has too little memory for a message")))]
      (do (handle pod message)
          (when-not (realized? ending) (recur)))
      (deliver ending 0))))

(defn serve
  "Serves the protocol over two streams and returns the exit code.

  Ends at shutdown or at the end of the input. The exit code is 0, or 1 after an invalid message
  or if the output cannot be written. Closes all open objects and ends watches. Throws
  `:interrupted` if the thread is interrupted.

      (serve in out) ;=> 0"
  [^InputStream in out]
  (let [calls (Executors/newCachedThreadPool daemons)
        table (handles/table)
        pod (->Pod out table calls (promise))]
    ;; A daemon thread reads, because a read of stdin cannot be interrupted when the output has
    ;; failed.
    (.start (daemon "bpfmap-pod-input" (bound-fn [] (read-all pod in))))
    (try
      (waiting/value (:ending pod) :serve)
      (finally
        (.shutdown calls)
        (handles/close-all table (some-fn change-events/watch? subscription/endless?))
        (try
          (.awaitTermination calls patience TimeUnit/SECONDS)
          (catch InterruptedException e
            (throw (waiting/interrupted :serve e)))
          (finally (handles/close-all table)))))))

(defn- explain
  "Prints a message for users who start the pod by hand, and returns the exit code."
  [message]
  (complain message
            "; it is a Babashka pod: (babashka.pods/load-pod \"bin/pod-bpfmap\")")
  2)

(defn -main
  "Runs the pod on stdin and stdout, and exits.

  Everything that is printed goes to stderr."
  [& args]
  (let [in (BufferedInputStream. (FileInputStream. FileDescriptor/in))
        out (FileOutputStream. FileDescriptor/out)]
    (System/setIn (InputStream/nullInputStream))
    (System/setOut (PrintStream. (FileOutputStream. FileDescriptor/err) true))
    (alter-var-root #'*out* (constantly *err*))
    (System/exit (binding [*out* *err*]
                   (cond
                     args (explain "It accepts no arguments")
                     (= "socket"
                        (System/getenv
                         "BABASHKA_POD_TRANSPORT")) (explain
                                                     "It has no socket, only stdin and stdout")
                     :else (serve in out))))))
