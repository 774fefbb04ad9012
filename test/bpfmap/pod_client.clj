(ns bpfmap.pod-client
  "A client of pods, as Babashka is one: its own bencode, a thread that reads the answers, and
  namespaces made from what `describe` answers, with the client-side code evaluated in them.

  Vars of pods find their client by `babashka.pods/invoke`, as the code that pods send calls it."
  (:require [bpfmap.fixture :as fixture]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:import (java.io EOFException File OutputStream PushbackInputStream)
           (java.util List)
           (java.util.concurrent TimeUnit)))

(set! *warn-on-reflection* true)

;; --- bencode, in its own words: it shares nothing with the pod's

(defn encode
  "The bytes of a message, as a string of their Latin-1."
  ^String [x]
  (let [text (fn [s]
               (let [s (String. (.getBytes ^String s "UTF-8") "ISO-8859-1")]
                 (str (count s) ":" s)))]
    (cond
      (string? x) (text x)
      (integer? x) (str "i" x "e")
      (map? x) (str "d" (str/join (mapcat (fn [k] [(text k) (encode (x k))]) (sort (keys x)))) "e")
      :else (str "l" (str/join (map encode x)) "e"))))

(defn- character [^PushbackInputStream in]
  (let [c (.read in)]
    (when (neg? c) (throw (EOFException.)))
    (char c)))

(defn- until [in end]
  (let [c (character in)]
    (when-not (= c end) (cons c (lazy-seq (until in end))))))

(defn decode
  "The next value of a stream; throws EOFException at its end."
  [^PushbackInputStream in]
  (let [c (character in)
        all (fn [] (loop [found []]
                     (let [x (decode in)]
                       (if (= ::end x) found (recur (conj found x))))))]
    (case c
      \d (apply hash-map (all))
      \l (all)
      \e ::end
      \i (parse-long (str/join (until in \e)))
      (let [n (parse-long (str/join (cons c (until in \:))))]
        (String. (.readNBytes in n) "UTF-8")))))

;; --- clients

(defonce ^:private clients (atom {}))

(defn- answered
  "Does with an answer what its request waits for: a promise gets all, a map of handlers is called."
  [{:keys [waiting readers]} {:strs [id value status ex-message ex-data] :as answer}]
  (let [read #(edn/read-string {:readers readers} %)
        done? (some #{"done"} status)
        failed? (some #{"error"} status)
        waiter (get @waiting id)]
    (when done? (swap! waiting dissoc id))
    (if (map? waiter)
      (let [{:keys [success error done]} waiter]
        (when value (success (read value)))
        (when failed? (error {:ex-message ex-message :ex-data (read ex-data)}))
        (when (and done? (not failed?)) (done)))
      (some-> waiter (deliver (cond
                                failed? (ex-info ex-message (read ex-data))
                                value [(read value)]
                                :else answer))))))

(defn- read-answers [{:keys [in waiting ended] :as client}]
  (try
    (loop []
      (answered client (decode in))
      (recur))
    (catch EOFException _
      (deliver ended :end))
    (catch Throwable e
      (deliver ended e)))
  (doseq [[_ waiter] @waiting :when (not (map? waiter))]
    (deliver waiter (ex-info "The pod has ended" {}))))

(defn send-text
  "Sends text as it is, a byte for each character."
  [{:keys [^OutputStream out]} ^String text]
  (locking out
    (.write out (.getBytes text "ISO-8859-1"))
    (.flush out)))

(defn request
  "Sends a message with an id of its own; returns a promise of the answer, or calls the handlers."
  ([client message] (request client message (promise)))
  ([{:keys [waiting] :as client} message waiter]
   (let [id (str (random-uuid))]
     (swap! waiting assoc id waiter)
     (send-text client (encode (assoc message "id" id)))
     waiter)))

(defn settled
  "Returns the value of a promise of an answer; throws if that is an exception, and when it
  does not come."
  [waiter]
  (let [answer (deref waiter fixture/patience (ex-info "No answer came" {}))]
    (if (instance? Throwable answer)
      (throw answer)
      answer)))

(defn invoke-text
  "Invokes a var with the text of its arguments."
  [client var-name args]
  (first (settled (request client {"op" "invoke" "var" (str var-name) "args" args}))))

(defn invoke
  "Invokes a var as Babashka does; with `:handlers`, returns at once and calls them."
  [client var-name args {:keys [handlers]}]
  (if handlers
    (request client {"op" "invoke" "var" (str var-name) "args" (pr-str args)} handlers)
    (invoke-text client var-name (pr-str args))))

;; --- namespaces, created for each client

(load-string "(ns babashka.pods)")

(intern 'babashka.pods 'invoke
        (fn [pod-id var-name args options]
          (invoke (@clients pod-id) var-name args options)))

(defn- load-namespaces
  "Makes the namespaces that a pod describes, for this client."
  [{:keys [description] :as client}]
  (swap! clients assoc (get-in description ["namespaces" 0 "name"]) client)
  (doseq [{:strs [name vars]} (description "namespaces")
          :let [ns-name (symbol name)]]
    (remove-ns ns-name)
    (binding [*ns* (load-string (str "(ns " name ") *ns*"))]
      (doseq [{:strs [name code meta]} vars
              :let [sym (symbol name)]]
        (ns-unmap *ns* sym)
        (if code
          (load-string code)
          (intern *ns* (with-meta sym (edn/read-string meta))
                  (fn [& args] (invoke client (symbol (str ns-name) name) args {}))))))))

(defn over
  "A client over two streams, that has asked for the description and made the namespaces."
  [in out]
  (let [client {:in (PushbackInputStream. in) :out out :waiting (atom {}) :ended (promise)}]
    (send-text client (encode {"op" "describe" "id" "first"}))
    (let [description (decode (:in client))
          client (assoc client
                        :description description
                        :readers
                        (into {}
                              (map (fn [[tag sym]]
                                     [(symbol tag) (fn [form] ((resolve (symbol sym)) form))]))
                              (description "readers")))]
      (load-namespaces client)
      (fixture/thread #(read-answers client))
      client)))

;; --- pods as processes

(def script (str (.getAbsolutePath (io/file "bin/pod-bpfmap"))))

(defn start-process
  "Starts bin/pod-bpfmap; returns it with a file that gets its stderr. `before` are words that
  come before the command."
  [& {:keys [dir env before]}]
  (let [err (doto (File/createTempFile "bpfmap-pod" ".err") (.deleteOnExit))
        ^List command (conj (vec before) script)
        builder (doto (ProcessBuilder. command) (.redirectError err))]
    (.put (.environment builder) "BABASHKA_POD" "true")
    (doseq [[k v] env] (.put (.environment builder) k v))
    (when dir (.directory builder (io/file dir)))
    {:process (.start builder) :err err}))

(defn exit
  "The exit code of a pod; fails the test's patience after a minute."
  [{:keys [^Process process]}]
  (if (.waitFor process (long fixture/patience) TimeUnit/MILLISECONDS)
    (.exitValue process)
    (do (.destroyForcibly process) :none-within-a-minute)))

(defn start
  "Starts bin/pod-bpfmap and a client of it."
  [& {:as options}]
  (let [{:keys [^Process process] :as pod} (start-process options)]
    (merge (over (.getInputStream process) (.getOutputStream process)) pod)))

(defonce ^:private loaded (atom []))

(intern 'babashka.pods 'load-pod
        (fn [path]
          (assert (= "bin/pod-bpfmap" path))
          (let [client (start)]
            (swap! loaded conj client)
            {:pod/id (get-in client [:description "namespaces" 0 "name"])})))

(defn stop
  "Ends a pod as Babashka does: shutdown, and waiting for the process."
  [client]
  (send-text client (encode {"op" "shutdown" "id" "last"}))
  (exit client))

(defn stop-loaded
  "Ends the pods that `babashka.pods/load-pod` has started; returns their exit codes."
  []
  (let [[clients _] (reset-vals! loaded [])]
    (mapv stop clients)))
