(ns bpfmap.pod.server-test
  "The pod as its client sees it: its vars, arguments and results, and errors.

  Here it runs in this process, over two pipes of the system; `bpfmap.pod.process-test` has it as
  a process."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec.commands :as commands]
            [bpfmap.exec.options :as options]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.objects :as objects]
            [bpfmap.pod-client :as client]
            [bpfmap.pod.server :as server]
            [bpfmap.pod.vars :as vars]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io ByteArrayInputStream ByteArrayOutputStream OutputStream
                    PushbackInputStream StringWriter)
           (java.nio.channels Channels Pipe)))

(set! *warn-on-reflection* true)

(defn- with-pod*
  "Calls f with a client of a pod, then lets the input end; returns the exit code and what went to
  stderr."
  [f]
  (let [requests (Pipe/open)
        answers (Pipe/open)
        err (StringWriter.)
        code (promise)
        server (fixture/thread
                 (fn []
                   (with-open [out (Channels/newOutputStream (.sink answers))]
                     (deliver code
                              (binding [*err* err]
                                (server/serve (Channels/newInputStream (.source requests)) out))))))
        client (client/over (Channels/newInputStream (.source answers))
                            (Channels/newOutputStream (.sink requests)))]
    (try
      (f client)
      (finally
        (.close ^OutputStream (:out client))
        (fixture/join server)
        (.close (.source requests))
        (.close (.source answers))))
    [@code (str err)]))

(defmacro ^:private with-pod
  "Runs body with a client of a pod; the pod ends well and says nothing."
  [[client] & body]
  `(is (= [0 ""] (with-pod* (fn [~client] ~@body)))))

(defn- script
  "Evaluates forms as a script of the pod's client would be, one after the other; returns the last
  value."
  [_client & forms]
  (let [home (create-ns (gensym "script"))]
    (try
      (binding [*ns* home]
        (refer 'clojure.core)
        (doseq [[short full] '{bpf pod.bpfmap.core, host pod.bpfmap.host, feature pod.bpfmap.feature
                               prog pod.bpfmap.prog, link pod.bpfmap.link
                               type pod.bpfmap.type, exec pod.bpfmap.exec
                               events pod.bpfmap.events}]
          (alias short full))
        (last (mapv eval forms)))
      (finally (remove-ns (ns-name home))))))

(def ^:private small
  {:name "pod_small" :type :hash :key :u32 :value :u64 :max-entries 64})

;; --- links

(kernel-test links-of-programs
  (testing "links are handles, which are attached, opened and closed"
    (with-pod [c]
      (is (= [:raw-tracepoint "sys_enter" true :not-supported :closed]
             (script c
                     '(let [p (prog/load {:type :raw-tracepoint :insns [[:mov64 :r0 0] [:exit]]})
                            l (link/attach p {:raw-tracepoint "sys_enter"})
                            error-of (fn [f] (try (f) (catch clojure.lang.ExceptionInfo e
                                                        (:bpfmap/error (ex-data e)))))
                            info (link/info l)
                            again (link/open {:link-id (:id info)})]
                        [(:type info) (:tracepoint info) (= info (link/info again))
                         (error-of #(link/update! l p))
                         (do (run! bpf/close [l again p])
                             (error-of #(link/info l)))])))))))

;; --- namespaces and vars

(deftest offered-functions
  (testing "offers every function of the API or omits it for a reason"
    (doseq [{:keys [name of]} vars/namespaces]
      (with-pod [c]
        (let [offered (set (for [ns (get-in c [:description "namespaces"])
                                 :when (= (str name) (ns "name"))
                                 v (ns "vars")]
                             (symbol (v "name"))))]
          (doseq [sym (keys (ns-publics of)) :when (not (re-find #"^(->|map->)[A-Z]" (str sym)))]
            (is (or (offered sym) (get-in vars/left-out [of sym]))
                (str of "/" sym " is neither offered nor left out"))
            (is (not (and (offered sym) (get-in vars/left-out [of sym])))
                (str of "/" sym " is both"))))))))

(deftest describe-response
  (testing "describe returns the namespaces and operations"
    (with-pod [c]
      (let [{:strs [format ops readers namespaces]} (:description c)
            var-named (fn [name]
                        (some #(when (= name (% "name")) %) (get-in namespaces [0 "vars"])))]
        (is (= "edn" format))
        (is (= {"shutdown" {}} ops))
        (is (= "pod.bpfmap.core" (get-in namespaces [0 "name"]))
            "the pod's name for babashka.pods/invoke")
        (is (= #{"bpfmap/bytes" "bpfmap/map" "bpfmap/program" "bpfmap/link" "bpfmap/watch"
                 "bpfmap/reader" "bpfmap/subscription" "bpfmap/writer"}
               (set (keys readers))))
        (let [{:keys [doc arglists]} (edn/read-string ((var-named "lookup") "meta"))]
          (is (= (:doc (meta #'bpf/lookup)) doc))
          (is (= (:arglists (meta #'bpf/lookup)) arglists)))
        (is (= "true" ((var-named "watch-events") "async")))
        (is (str/includes? ((var-named "with-open") "code") "(defmacro with-open"))
        (doseq [ns namespaces, {:strs [name meta code]} (ns "vars")]
          (is (or code (:doc (edn/read-string meta))) (str name " has no docstring")))))))

;; --- scripts

(kernel-test ^{:needs [[:operation :hash :take!]]} script-runs-as-locally
  (testing "a script returns the same as in this process"
    (with-pod [c]
      (is (= [[42 nil :none true] [{7 42} 1] [true false] 42 {8 1}]
             (script c
                     (list 'bpf/with-open ['m (list 'bpf/create small)]
                           '(bpf/put! m 7 42)
                           '[[(bpf/lookup m 7) (bpf/lookup m 8) (bpf/lookup m 8 :none)
                              (bpf/has-key? m 7)]
                             [(bpf/snapshot m) (bpf/count-entries m)]
                             [(bpf/insert! m 8 1) (bpf/replace! m 9 1)]
                             (bpf/take! m 7)
                             (into {} (bpf/entries m))])))))))

(kernel-test with-open-order
  (testing "with-open closes in reverse order"
    (with-pod [c]
      (let [[outer inner thrown] (script c
                                         '(def opened (atom []))
                                         '(def thrown
                                            (try
                                              (bpf/with-open
                                               [a (bpf/create
                                                   {:type :array :key :u32 :value :u32
                                                    :max-entries 1})
                                                b (bpf/clone a)]
                                                (reset! opened [a b])
                                                (bpf/put! b 7 7)) ; the array has no seventh element
                                              (catch Exception e (:bpfmap/error (ex-data e)))))
                                         '[(try (bpf/info (@opened 0))
                                                (catch Exception e (:bpfmap/error (ex-data e))))
                                           (try (bpf/info (@opened 1))
                                                (catch Exception e (:bpfmap/error (ex-data e))))
                                           thrown])]
        (is (= [:closed :closed :out-of-range] [outer inner thrown])))
      (is (= "The bindings of with-open must be a vector of names and expressions"
             (:message (error-of (script c '(try (macroexpand '(bpf/with-open [a] 1))
                                                 (catch Exception e
                                                   (throw (or (ex-cause e) e))))))))))))

(kernel-test nested-handles
  (testing "a handle can stand anywhere in the arguments"
    (with-pod [c]
      (is (= [0 7 :raw-tracepoint "sys_enter" 1]
             (script c
                     '(bpf/with-open
                       [inner (bpf/create {:type :array :key :u32 :value :u64 :max-entries 1
                                           :contents {0 7}})
                        p (prog/load {:type :raw-tracepoint
                                      :insns [[:lddw :r1 inner] [:mov64 :r0 0] [:exit]]})
                        outer (bpf/create {:type :array-of-maps :key :u32 :max-entries 2
                                           :contents {0 inner}
                                           :inner-map {:type :array :key :u32 :value :u64
                                                       :max-entries 1}})
                        again (bpf/open (bpf/lookup outer 0) {:key :u32 :value :u64})
                        a (prog/attach-raw-tracepoint p "sys_enter")]
                        [(:return (prog/test-run p)) (bpf/lookup again 0) (:type (prog/info p))
                         (:tracepoint (prog/info a))
                         (count (host/programs-using inner))])))))))

(kernel-test returned-handles
  (testing "a function that returns its map returns its handle"
    (with-pod [c]
      (is (= [true true]
             (script c
                     (list 'def 'm (list 'bpf/create small))
                     '[(= m (bpf/put! m 1 1) (bpf/freeze! m)) (bpf/bpf-map? m)]))))))

;; --- arguments and results

(kernel-test typed-value-round-trip
  (testing "a value reads back as it was written"
    (let [value {:a 18446744073709551615N :c \space :d ##Inf :e "ü \"\\\n€" :f "10.0.0.1" :g :on
                 :h (bpf/->bytes "00 ff 7f")}
          spec {:type :array :key :u32 :max-entries 2
                :value [:struct [:a :u64] [:c :char] [:d :f64] [:e [:string 16]] [:f :ipv4]
                        [:g [:enum :u32 {:on 1}]]
                        [:h [:bytes 3]]]}]
      (with-pod [c]
        (let [m (client/invoke c 'pod.bpfmap.core/create [spec] {})]
          (client/invoke c 'pod.bpfmap.core/put! [m 0 value] {})
          (is (= (assoc value :h (tagged-literal 'bpfmap/bytes "00 ff 7f"))
                 (client/invoke c 'pod.bpfmap.core/lookup [m 0] {}))))))))

(kernel-test untyped-bytes
  (testing "untyped bytes are tagged and can be written again"
    (with-pod [c]
      (is (= [[255 0] {[255 0] [1]}]
             (script c
                     '(bpf/with-open [m (bpf/create {:type :hash :key-size 2 :value-size 1
                                                     :max-entries 4})]
                        (bpf/put! m (bpf/->bytes "ff00") (bpf/->bytes [1]))
                        [(bpf/byte-seq (bpf/next-key m))
                         (into {} (for [[k v] (bpf/snapshot m)]
                                    (do (bpf/put! m k v)
                                        [(bpf/byte-seq k) (bpf/byte-seq v)])))])))))))

(kernel-test many-entries-both-ways
  (testing "transfers a hundred thousand entries both ways"
    (with-pod [c]
      (let [n 100000]
        (is (= [n (* n (dec n))]
               (script c
                       (list 'bpf/with-open ['m (list 'bpf/create (assoc small :max-entries n))]
                             (list 'let
                                   ['written
                                    (list 'bpf/put-all! 'm
                                          (list 'zipmap (list 'range n) (list 'range 0 (* 2 n) 2)))]
                                   '[written (reduce + (vals (bpf/snapshot m)))])))))))))

;; --- errors

(defn- failing
  "What a script's form throws: its message, and its data."
  [c form]
  (script c (list 'try form '(catch Exception e [(ex-message e) (ex-data e)]))))

(kernel-test same-error-as-locally
  (testing "an error equals the one thrown in this process"
    (with-open [m ^java.io.Closeable (bpf/create small)]
      (with-pod [c]
        (let [here (error-of (bpf/put! m 7 -1))
              there (failing c
                             (list 'bpf/with-open ['m (list 'bpf/open (:id (bpf/info m)))]
                                   '(bpf/put! m 7 -1)))]
          (is (= [(:message here) (dissoc here :message :class)] there))
          (is (= :invalid-value (:bpfmap/error (second there)))))))))

(kernel-test handle-of-nothing
  (testing "an invalid handle reports the reason"
    (with-pod [c]
      (let [m (client/invoke c 'pod.bpfmap.core/create [small] {})
            handle (fn [changed]
                     (pr-str [(tagged-literal 'bpfmap/map (merge (:form m) changed)) 0]))
            lookup (fn [args] (error-of (client/invoke-text c 'pod.bpfmap.core/lookup args)))]
        (testing "a number that was not given out"
          (is (= {:message (str "No open map has the handle 77: pass a handle from this pod; it is "
                                  "valid as long as the pod runs")
                  :bpfmap/error :not-found}
                 (select-keys (lookup (handle {:handle 77})) [:message :bpfmap/error]))))
        (testing "another pod's, which has the same number and stands for another map"
          (is (= :not-found (:bpfmap/error (lookup (handle {:id 1}))))))
        (testing "no handle"
          (is (= "A handle must be a result of this pod, got #bpfmap/map {:handle \"1\"}: its :handle must be a number"
                 (:message (lookup "[#bpfmap/map {:handle \"1\"} 0]"))))
          (is (= :invalid-value (:bpfmap/error (lookup "[#bpfmap/map 1 0]")))))
        (testing "another kind of thing"
          (is (= :not-found
                 (:bpfmap/error (lookup (pr-str [(tagged-literal 'bpfmap/program (:form m)) 0])))))
          (is
           (=
            "The argument must be an open map, got {:name \"pod_small\"}: pass a result of create, open or clone"
            (:message (lookup "[{:name \"pod_small\"} 0]"))))
          (is (= "The argument must be a handle, got 1: pass a result of create, open, load or watch"
                 (:message (error-of (client/invoke c 'pod.bpfmap.core/close [1] {}))))))
        (testing "a closed one"
          (is (nil? (client/invoke c 'pod.bpfmap.core/close [m] {})))
          (is (= {:message (str "The map of handle " (:handle (:form m)) " is closed")
                  :bpfmap/error :closed
                  :bpfmap/map (dissoc (:form m) :handle)}
                 (dissoc (lookup (handle {})) :class)))
          (is (nil? (client/invoke c 'pod.bpfmap.core/close [m] {})) "closing twice is fine"))))))

(def ^:private bad-arguments
  "Text of arguments, and how the error begins."
  [["" "The arguments must be EDN: it is empty"]
   ["(" "The arguments must be EDN: EOF while reading"]
   ["7" "The arguments of a call must be a vector"]
   ["{}" "The arguments of a call must be a vector"]
   ["[#=(System/exit 3)]" "The arguments must be EDN: No dispatch macro for: ="]
   ["[#java.io.File[\"/etc/passwd\"]]"
    "Unknown tag in the arguments: #java.io.File"]
   ["[#object[\"[B\" 0x1 \"[B@1\"]]"
    "The arguments must be data: send no functions, arrays"]
   ["[#bpfmap/bytes \"0g\"]"
    "Bytes must be pairs of hexadecimal digits, such as \"0a 00\" or \"0x0a00\", got \"0g\""]
   ["[\\nope]" "The arguments must be EDN: Unsupported character"]
   ["[1/0]" "The arguments must be EDN: Divide by zero"]
   [(apply str (repeat 100000 "["))
    "The arguments must be EDN: more than 100 collections within one another"]
   [(apply str (repeat 30000 "#a "))
    "The arguments must be EDN: tags or metadata nested too deep"]
   ["[] []" "The arguments must be EDN: there is more than one form"]])

(deftest unreadable-arguments
  (testing "reports arguments that cannot be read"
    (with-pod [c]
      (doseq [[text begins] bad-arguments
              :let [{:keys [message] :as e}
                    (error-of (client/invoke-text c 'pod.bpfmap.type/size text))]]
        (is (= :invalid-value (:bpfmap/error e)) (subs text 0 (min 20 (count text))))
        (is (str/starts-with? (str message) begins)))
      (is (= 4 (client/invoke-text c 'pod.bpfmap.type/size "[:u32]")) "and the pod goes on")
      (is (seq (client/invoke-text c 'pod.bpfmap.feature/possible-cpus "nil"))
          "a client that has no arguments, as Babashka, sends nil"))))

(deftest unknown-calls
  (testing "reports a call to an unknown function"
    (with-pod [c]
      (is (= "Wrong number of args (0) passed to: bpfmap.type/size"
             (:message (error-of (client/invoke-text c 'pod.bpfmap.type/size "[]")))))
      (is (= {:bpfmap/error :not-found
              :message "The pod has no var pod.bpfmap.core/eval: the answer to describe lists its vars"}
             (select-keys (error-of (client/invoke-text c 'pod.bpfmap.core/eval "[1]"))
                          [:bpfmap/error :message])))
      (is (= :not-found (:bpfmap/error (error-of (client/invoke-text c 'clojure.core/eval "[1]")))))
      (is (= :not-found (:bpfmap/error (error-of (client/invoke-text c "" "[1]")))))
      (is (= "A pod cannot open {:fd 0}: a descriptor's number means nothing in the pod's process"
             (:message (error-of (client/invoke-text c 'pod.bpfmap.core/open "[{:fd 0}]"))))))))

(deftest requests-without-meaning
  (testing "reports messages without a valid request"
    (with-pod [c]
      (let [refused (fn [message]
                      (:message (error-of (client/settled (client/request c message)))))]
        (is (= "The pod has no op \"eval\": it has \"describe\", \"invoke\" or \"shutdown\""
               (refused {"op" "eval"})))
        (is (= "The pod has no op nil: it has \"describe\", \"invoke\" or \"shutdown\""
               (refused {})))
        (is (= "The pod has no op [\"x\"]: it has \"describe\", \"invoke\" or \"shutdown\""
               (refused {"op" ["x"]})))
        (is (= "The op invoke requires \"var\", a string" (refused {"op" "invoke" "args" "[]"})))
        (is (= "The op invoke requires \"args\", a string"
               (refused {"op" "invoke" "var" "pod.bpfmap.type/size" "args" 3}))))
      (is (= "edn" (get (client/settled (client/request c {"op" "describe"})) "format"))
          "and the pod goes on"))))

;; --- input that breaks the protocol

(defn- answer-to
  "Returns the exit code of a pod for some bytes, its output, and its messages."
  [^String text]
  (let [out (ByteArrayOutputStream.)
        err (StringWriter.)
        code (binding [*err* err]
               (server/serve (ByteArrayInputStream. (.getBytes text "ISO-8859-1")) out))]
    [code (str out) (str/trim (str err))]))

(def ^:private no-messages
  "Input, and its problem."
  [["hello\n" "Invalid bencode: a message must begin with `d`, got `h`"]
   ["GET / HTTP/1.1\r\n\r\n" "Invalid bencode: a message must begin with `d`, got `G`"]
   ["\n" "Invalid bencode: a message must begin with `d`, got byte 10"]
   ["i1e" "Invalid bencode: a message must begin with `d`, got `i`"]
   ["d" "The input ends within a message"]
   ["d2:op8:descr" "The input ends within a message"]
   ["d2:op" "The input ends within a message"]
   ["d2:ope" "Invalid bencode: every key of a dictionary must have a value"]
   ["di1e2:xye" "Invalid bencode: every key of a dictionary must be a string"]
   ["d2:opi12xe" "Invalid bencode: `x` within a number"]
   ["d2:opi-0e" "Invalid bencode: a number that is written \"-0\""]
   ["d2:opi01e" "Invalid bencode: a number that is written \"01\""]
   ["d2:opie" "Invalid bencode: a number that is written \"\""]
   ["d2:opi--1e" "Invalid bencode: `-` within a number"]
   ["d2:opi9223372036854775808e" "Invalid bencode: a number must fit into 64 bits"]
   ["d-1:x" "Invalid bencode: `-` within a number"]
   ["d2:op99999999999999999999:x" "Invalid bencode: a number must fit into 64 bits"]
   ["d2:op999999999999:x" "The message is longer than 268435456 bytes"]
   ["d2:op268435456:x" "The message is longer than 268435456 bytes"]
   ["d2:op200000000:x" "The input ends within a message"]
   ["d2:op2:\u00ff\u00fee" "The strings of a message must be UTF-8"]
   [(str "d2:op" (apply str (repeat 100000 "l")))
    "Invalid bencode: more than 64 lists or dictionaries within one another"]])

(deftest garbage-ends-the-pod
  (testing "input that is not a message ends the pod with one line"
    (doseq [[text message] no-messages]
      (is (= [1 "" (str "bpfmap pod: " message)] (answer-to text))))))

(deftest last-request-is-answered
  (testing "answers a request before the input ends"
    (let [[code out
           err] (answer-to (client/encode {"op" "invoke" "id" "1" "var" "pod.bpfmap.type/size"
                                           "args" "[:u32]"}))]
      (is (= [0 ""] [code err]))
      (is (= {"id" "1" "status" ["done"] "value" "4"}
             (client/decode
              (PushbackInputStream. (ByteArrayInputStream. (.getBytes ^String out)))))))))

(deftest unwritable-output
  (testing "ends if its output cannot be written"
    (let [err (StringWriter.)
          full (proxy [OutputStream] []
                 (write ([_]) ([_ _ _] (throw (java.io.IOException. "No space left on device")))))]
      ;; Of which nothing comes, and which does not end
      (with-open [requests (Channels/newInputStream (.source (Pipe/open)))]
        (is (= 1 (binding [*err* err]
                   (server/serve (java.io.SequenceInputStream.
                                  (ByteArrayInputStream.
                                   (.getBytes (client/encode {"op" "describe" "id" "1"})))
                                  requests)
                                 full)))))
      (is (= "bpfmap pod: The output cannot be written: No space left on device\n" (str err))))))

;; --- open objects

(kernel-test handles-closed-at-end
  (testing "closes all handles at the end"
    (doseq [end [(fn [_]) ; the end of the input
                 (fn [c] (client/send-text c (client/encode {"op" "shutdown" "id" "last"})))]]
      (let [ids (atom nil)]
        (with-pod [c]
          (reset! ids
                  (vec (repeatedly 20
                                   #(:id
                                     (:form
                                      (client/invoke c 'pod.bpfmap.core/create [small] {}))))))
          (with-open [m ^java.io.Closeable (bpf/open (first @ids))]
            (is (= small (select-keys (bpf/info m) (keys small)))))
          (end c))
        (doseq [id @ids]
          (is (= :not-found (:bpfmap/error (error-of (bpf/open id))))))))))

(kernel-test ^:volume many-opened-maps
  (testing "a thousand opened and closed maps leave nothing"
    (with-pod [c]
      (let [m (client/invoke c 'pod.bpfmap.core/create [small] {})
            before (fixture/settled-descriptors)]
        (dotimes [_ 1000]
          (client/invoke c 'pod.bpfmap.core/close [(client/invoke c 'pod.bpfmap.core/clone [m] {})]
                         {}))
        ;; A class that is loaded at the same time may open a file.
        (is (< (fixture/open-descriptors) (+ before 50)))))))

;; --- watches

(kernel-test watch-streams-changes
  (testing "a watch streams until the client ends it"
    (with-pod [c]
      (is (= [[{:entries {1 10} :count 1} {:added {2 20} :count 2} {:changed {2 [20 21]} :count 2}
               {:removed {1 10} :count 1}]
              :done
              [:closed "The watch of handle 2 is closed"]]
             (script c
                     (list 'def 'm (list 'bpf/create (assoc small :contents {1 10})))
                     '(def events (java.util.concurrent.LinkedBlockingQueue.))
                     '(def done (promise))
                     '(defn event
                        []
                        (dissoc (.poll events 60 java.util.concurrent.TimeUnit/SECONDS) :at))
               ;; The callback may itself call the pod.
                     '(def w (bpf/watch m {:interval 0.005 :on-done #(deliver done :done)}
                                        (fn [e]
                                          (.put events (assoc e :count (bpf/count-entries m))))))
                     '(def seen [(event)
                                 (do (bpf/put! m 2 20) (event))
                                 (do (bpf/put! m 2 21) (event))
                                 (do (bpf/delete! m 1) (event))])
                     '(bpf/close w)
                     '(def ended (promise))
               ;; A watch that cannot go on, as this one that is over, ends with its error.
                     '(with-redefs [pod.bpfmap.core/watch-start (constantly w)]
                        (bpf/watch m
                                   {:on-error #(deliver ended
                                                        [(:bpfmap/error (ex-data %))
                                                         (ex-message %)])}
                                   prn))
                     ['seen (list 'deref 'done fixture/patience :not-done)
                      (list 'deref 'ended fixture/patience :not-ended)]))))))

(def ^:private with-ring
  "Forms that define a ring, a program that sends it a record, and a function that sends n."
  '[(def m (bpf/create {:name "pod_ring" :type :ringbuf :max-entries 65536}))
    (def numbers (bpf/create {:name "pod_number" :type :array :key :u32 :value :u64
                              :max-entries 1}))
    (def p (prog/load {:type :raw-tracepoint
                       :insns [[:stw [:r10 -4] 0]
                               [:lddw :r1 numbers]
                               [:mov64 :r2 :r10]
                               [:add64 :r2 -4]
                               [:call :map-lookup-elem]
                               [:jeq :r0 0 :out]
                               [:ldxdw :r1 [:r0 0]]
                               [:add64 :r1 1]
                               [:stxdw [:r0 0] :r1]
                               [:stxdw [:r10 -16] :r1]
                               [:lddw :r1 m]
                               [:mov64 :r2 :r10]
                               [:add64 :r2 -16]
                               [:mov64 :r3 8]
                               [:mov64 :r4 0]
                               [:call :ringbuf-output]
                               :out
                               [:mov64 :r0 0]
                               [:exit]]}))
    (defn send-some [n] (dotimes [_ n] (prog/test-run p)))])

(defn- ring-script
  "Evaluates forms after those that define a ring."
  [c & forms]
  (apply script c (concat with-ring forms)))

(kernel-test reads-events
  (testing "a pod reads the events of a ring, one by one and all that are there"
    (with-pod [c]
      (is (= [nil 1 [2 3] nil {:events 3 :bytes 24 :discarded 0 :lost 0 :fill 0 :capacity 65536}
              48 :closed]
             (ring-script c
                          '(def r (events/reader m {:type :u64}))
                          '(def before (events/poll! r 0.01))
                          '(send-some 3)
                          '(def found [(events/poll! r 1) (events/drain! r) (events/poll! r 0)
                                       (events/stats r)])
                          '(send-some 3)
                          '(def fill (:fill (events/stats m)))
                          '(bpf/close r)
                          '(into [before]
                                 (conj found fill
                                       (try (events/poll! r 0)
                                            (catch Exception e
                                              (:bpfmap/error (ex-data e))))))))))))

(kernel-test close-wakes-poll
  (testing "closing a reader wakes a call that waits for an event"
    (with-pod [c]
      (is (nil? (ring-script c
                             '(def r (events/reader m {:type :u64}))
                             '(def waiting (future (events/poll! r)))
                             '(Thread/sleep 100)
                             '(bpf/close r)
                             (list 'deref 'waiting fixture/patience :none)))))))

(kernel-test subscribes-to-events
  (testing "a function is called with each event until the subscription is closed"
    (with-pod [c]
      (is (= [[1 2 3] :done :again]
             (ring-script c
                          '(def r (events/reader m {:type :u64}))
                          '(def seen (java.util.concurrent.LinkedBlockingQueue.))
                          '(def done (promise))
                          '(def s (events/subscribe r {:on-done #(deliver done :done)}
                                                    (fn [n] (.put seen n))))
                          '(send-some 3)
                          '(def found (vec (repeatedly
                                           3 #(.poll seen 60
                                                     java.util.concurrent.TimeUnit/SECONDS))))
                          '(bpf/close s)
                          (list 'def 'ended (list 'deref 'done fixture/patience :not-done))
                          '(send-some 1)
                          '[found ended (if (= 4 (events/poll! r 60)) :again :lost)]))))))

(kernel-test ^:volume back-pressure
  (testing "events of a slow client stay in the ring, and none is lost"
    (with-pod [c]
      (let [[fill seen]
            (ring-script c
                         '(def r (events/reader m {:type :u64}))
                         '(def go (promise))
                         '(def seen (atom []))
                         '(def s (events/subscribe r (fn [n] @go (swap! seen conj n))))
                         '(send-some 3000)
                         ;; At most 1024 were read; the rest fills the ring, and stays there.
                         '(loop [n 0]
                            (when (and (< 31616 (:fill (events/stats m))) (< n 60000))
                              (Thread/sleep 10)
                              (recur (inc n))))
                         '(Thread/sleep 500)
                         '(def fill (:fill (events/stats m)))
                         '(deliver go true)
                         '(loop [n 0]
                            (when (and (< (count @seen) 3000) (< n 60000))
                              (Thread/sleep 10)
                              (recur (inc n))))
                         '(bpf/close s)
                         '[fill @seen])]
        (is (= (* 16 (- 3000 1024)) fill))
        (is (= (range 1 3001) seen))))))

(kernel-test events-that-fail
  (testing "an event that cannot be decoded is reported, and the next ones come"
    (with-pod [c]
      (is (= [[:error "u64"] :busy]
             (ring-script c
                          '(def r (events/peek m {:type [:enum :u64 {:one 1}]}))
                          '(def r2 (events/reader m))
                          '(def busy (try (events/reader m)
                                          (catch Exception e (:bpfmap/error (ex-data e)))))
                          '(def failed (promise))
                          '(def s (events/subscribe r2 {:on-error #(deliver failed %)}
                                                    (fn [b] (throw (ex-info "not this" {})))))
                          '(bpf/close r2)
                          '[[:error "u64"] busy])))
      (is (= [:invalid-value true]
             (ring-script c
                          '(def e (try (events/subscribe m prn) (catch Exception e e)))
                          '[(:bpfmap/error (ex-data e))
                            (clojure.string/starts-with?
                             (ex-message e) "The argument must be a reader, got")]))))))

(kernel-test tail-refused-in-pod
  (testing "exec/tail names the alternative"
    (with-pod [c]
      (is (= [:not-supported
              (str "A pod has no exec/tail: use pod.bpfmap.events/subscribe, which calls a function "
                   "with each event of a reader")]
             (script c '(try (exec/tail {:ref "1"})
                             (catch Exception e [(:bpfmap/error (ex-data e)) (ex-message e)]))))))))

(kernel-test ^:volume events-that-nobody-takes-are-dropped-with-their-number
  (with-pod [c]
    (let [stop (atom false)]
      (with-open [changing ^java.io.Closeable (bpf/create (assoc small :contents {1 0}))]
        (let [writer (fixture/thread #(loop [i 1]
                                        (when-not @stop
                                          (bpf/put! changing 1 i)
                                          (recur (inc i)))))]
          (try
            (let [[events seen]
                  (script c
                          (list 'def 'm (list 'bpf/open (:id (bpf/info changing))))
                          '(def seen (atom 0))
                          '(def events (atom []))
                          '(def free (promise))
                    ;; Both watches see about the same number of events, and one of them waits
                    ;; while the other goes on.
                          '(def slow (bpf/watch m {:interval 0.001} (fn [event]
                                                                      (when (= 2
                                                                               (count
                                                                                (swap! events conj
                                                                                       event)))
                                                                        @free))))
                          '(def quick (bpf/watch m {:interval 0.001} (fn [_] (swap! seen inc))))
                          '(while (< @seen 2500) (Thread/sleep 5))
                          '(deliver free true)
                          '(while (< (count @events) 1500) (Thread/sleep 5))
                          '(bpf/close slow)
                          '(bpf/close quick)
                          '[@events @seen])
                  held-up (count (take-while (complement :dropped) events))
                  values (map #(get (:changed %) 1) (rest events))]
              (is (= 2 held-up) "the first event after the call that waited has the number of dropped events")
              (is (< 100 (:dropped (nth events 2)) seen))
              (is (= 1 (count (filter :dropped (take 1026 events)))) "the latest 1024 were kept")
              (doseq
               [[[_ after] [before _] event] (map vector values (rest values) (drop 2 events))]
                (is (or (:dropped event) (= after before))
                    "nothing is missing where no number says so")))
            (finally
              (reset! stop true)
              (fixture/join writer))))))))

(kernel-test immediate-watch-errors
  (testing "a watch reports errors at once and does not block the pod"
    (with-pod [c]
      (is (= [:invalid-value :not-supported [1 2 3]]
             (script c
                     (list 'def 'm (list 'bpf/create small))
                     '(defn kind [f] (try (f) (catch Exception e (:bpfmap/error (ex-data e)))))
                     '(def w (bpf/watch m {:interval 1000} (fn [_])))
                     '[(kind #(bpf/watch m {:every 5} prn))
                       (bpf/with-open [q (bpf/create {:type :queue :value :u32 :max-entries 4})]
                         (kind #(bpf/watch q prn)))
                       (mapv #(do (bpf/put! m % %) (bpf/lookup m %)) [1 2 3])]))))))

;; --- commands

(kernel-test commands-about-programs
  (testing "the commands about programs, links and objects return data"
    (with-pod [c]
      (is (= {:list ["pod_prog"]
              :show "pod_prog"
              :dump [[:mov64 :r0 0] [:exit]]
              :links ["sys_enter"]
              :top true
              :inspect :hash
              :run [[:running :ended] ["raw-tracepoint sys_enter"]]
              :refused ["A pod has no exec/prog-top without :seconds: set :seconds; exec/prog-top then returns all rows as a vector"]}
             (script c
                     '(def p (prog/load {:type :raw-tracepoint :name "pod_prog"
                                         :insns [[:mov64 :r0 0] [:exit]]}))
                     '(def a (prog/attach-raw-tracepoint p "sys_enter"))
                     '(let [id (:id (:form p))]
                        {:list (map :name (exec/prog-list {:where (str "id=" id)}))
                         :show (:name (exec/prog-show {:ref p}))
                         :dump (:insns (exec/prog-dump {:ref id}))
                         :links (map :attached-to
                                     (exec/link-list {:where "program.name=pod_prog"}))
                         :top (pos? (:runs (first (:rows (last (exec/prog-top
                                                                {:seconds 0.2 :interval 0.1
                                                                 :where (str "id=" id)}))))))
                         :inspect (get-in (exec/inspect {:file "test/objects/flows-el.o"})
                                          [:maps "flows" :type])
                         :run (let [rows (exec/run {:file "test/objects/calls-el.o" :seconds 0.1
                                                    :var {"step" 0}})]
                                [(map :status rows)
                                 (map :attached-to (:programs (first rows)))])
                         :refused [(try (exec/prog-top {})
                                        (catch Exception e (ex-message e)))]})))))))

(kernel-test commands-return-data
  (testing "the commands return data"
    (let [file (str (java.io.File/createTempFile "pod" ".edn"))
          pin (fixture/new-pin)
          other (fixture/new-pin)]
      (try
        (with-pod [c]
          (is (= {:list [{:name "pod_exec" :max-entries 8}]
                  :dump [{:key 1 :value 10}]
                  :put [10 11 true]
                  :get {:key 1 :value 11}
                  :missing nil
                  :show :hash
                  :types :u64
                  :taken {:key 1 :value 11}
                  :deleted {2 20}
                  :saved 1
                  :diff []
                  :restored 1
                  :hist 1
                  :tree [pin]
                  :features true
                  :unpinned [nil nil]}
                 (script c
                         (list 'def 'm
                               (list 'bpf/create
                                     {:name "pod_exec" :type :hash :key :u32 :value :u64
                                      :max-entries 8
                                      :contents {1 10}}))
                         (list 'def 'where {:file file :pin pin :other other})
                         '(let [id (:id (:form m))]
                            (array-map ; evaluated in this order
                             :list (exec/list {:where (str "id=" id) :columns "name,max-entries"})
                             :dump (exec/dump {:ref m})
                             :put
                             ((juxt :before :value :written) (exec/put {:ref m :key 1 :value 11}))
                             :get (exec/get {:ref id :key "1"})
                             :missing (exec/get {:ref m :key 7})
                             :show (:type (exec/show {:ref m}))
                             :types (:type (:value (exec/types {:ref m})))
                             :taken (exec/take {:ref m :key 1})
                             :deleted (do (bpf/put-all! m {2 20, 3 30})
                                          (exec/delete {:ref m :key 3})
                                          (bpf/snapshot m))
                             :saved (:entries (exec/save {:ref m :file (:file where)}))
                             :diff (exec/diff {:old (:file where) :new m})
                             :restored (do (exec/pin {:ref m :path (:pin where)})
                                           (:entries
                                            (exec/restore
                                             {:file (:file where) :pin (:other where)})))
                             :hist (count (exec/hist {:ref m :field "value"}))
                             :tree (filter #{(:pin where)} (map :path (exec/tree {})))
                             :features
                             (:here
                              (first (exec/features {:where ["name=hash" "feature=map-type"]})))
                             :unpinned
                             [(do (exec/unpin {:path (:pin where)}) nil)
                              (do (exec/unpin {:path (:other where)}) nil)]))))))
        (finally
          (run! io/delete-file (filter #(.exists (io/file %)) [file pin other])))))))

(kernel-test rejected-commands
  (testing "a rejected command names the alternative"
    (with-pod [c]
      (is (= [[:not-supported
               (str
                "A pod has no exec/watch: use pod.bpfmap.core/watch, which calls a function with "
                "what changes "
                "in an open map")]
              [:not-supported
               (str
                "A pod has no option :stream: leave it out; exec/dump returns all rows, and :where "
                "and "
                ":limit keep them few")]
              [:not-supported
               "A pod has no option :print: print what exec/list returns, such as with clojure.pprint/print-table"]
              [:invalid-value
               "A pod cannot open {:fd 3}: a descriptor's number means nothing in the pod's process"]
              [:invalid-value
               "A pod cannot open {:fd 3}: a descriptor's number means nothing in the pod's process"]
              [:usage "show requires :ref or :held-by"]
              [:usage ":limit must be a non-negative integer, got \"x\""]
              [:not-found true]
              [:closed true]]
             (script c
                     (list 'def 'm (list 'bpf/create small))
                     '(def closed (bpf/clone m))
                     '(bpf/close closed)
                     '(defn error
                        [f]
                        (try (f) (catch Exception e [(:bpfmap/error (ex-data e)) (ex-message e)])))
                     '[(error #(exec/watch {:ref m}))
                       (error #(exec/dump {:ref m :stream true}))
                       (error #(exec/list {:print :table}))
                       (error #(exec/dump {:ref {:fd 3}}))
                       (error #(exec/diff {:old m :new {:fd 3}}))
                       (error #(exec/show {}))
                       (error #(exec/dump {:ref m :limit "x"}))
                       (assoc (error #(exec/dump {:ref "no_such_map"})) 1 true)
                       (assoc (error #(exec/dump {:ref closed})) 1 true)]))))))

(kernel-test a-number-of-a-descriptor-is-refused-wherever-a-client-gives-it
  (with-pod [c]
    (with-open [file (objects/udp-socket)
                inner ^java.io.Closeable (bpf/create {:type :array :value :u32 :max-entries 1})]
      (let [refused [:invalid-value "a descriptor's number means nothing in the pod's process"]
            own? #(= (.pid (java.lang.ProcessHandle/current)) (:pid %))
            number (first (:fds (first (filter own? (host/holders inner)))))
            of-this-process {:pid (.pid (java.lang.ProcessHandle/current)) :fd (:fd file)}]
        (is (= (concat (repeat 19 refused) [{:fd 3} 1])
               (script c
                       '(defn error [f] (try (f) (catch Exception e [(:bpfmap/error (ex-data e))
                                                                     (re-find
                                                                      #"a descriptor's number means nothing in the pod's process"
                                                                      (ex-message e))])))
                       (list 'def 'n {:fd number})
                       '(def outer (bpf/create {:type :hash-of-maps :key :u32 :max-entries 4
                                                :inner-map {:type :array :value :u32
                                                            :max-entries 1}}))
                       '(def programs (bpf/create {:type :prog-array :max-entries 4}))
                       '(def cpus
                          (bpf/create {:type :cpumap
                                       :value [:struct [:qsize :u32] [:program :u32]]}))
                       '(def sockets
                          (bpf/create {:type :sk-storage :value :u32 :flags #{:no-prealloc}}))
                       '(def plain
                          (bpf/create {:type :hash :key :u32 :value [:struct [:fd :u32]]
                                       :max-entries 4}))
                       (list
                        'concat
                        '[(error #(bpf/open n))
                          (error #(prog/open n))
                          (error #(bpf/put! outer 1 n))
                          (error #(bpf/insert! outer 1 n))
                          (error #(bpf/replace! outer 1 n))
                          (error #(bpf/put-all! outer {1 n}))
                          (error #(bpf/create {:type :hash-of-maps :key :u32 :max-entries 4
                                               :contents {1 n}
                                               :inner-map {:type :array :value :u32
                                                           :max-entries 1}}))
                          (error #(bpf/put! programs 1 n))
                          (error #(bpf/put! cpus 0 {:qsize 8 :program n}))
                          (error #(bpf/put! sockets n 1))
                          (error #(bpf/lookup sockets n))
                          (error #(bpf/has-key? sockets n))
                          (error #(bpf/delete! sockets n))
                          (error #(bpf/delete-all! sockets [n]))
                          (error #(bpf/lookup-all sockets [n]))
                          (error #(exec/put {:ref outer :key 1 :value n}))
                          (error #(exec/get {:ref sockets :key n}))
                          (error #(exec/dump {:ref n}))
                          (error #(exec/pin {:ref n :path "/nonexistent/x"}))]
                        (list 'vector
                        ;; Data that looks like it
                              '(do (bpf/put! plain 1 {:fd 3}) (bpf/lookup plain 1))
                              (list 'do (list 'bpf/put! 'sockets of-this-process 1)
                                    (list 'bpf/lookup 'sockets of-this-process)))))))
        (testing "and the process itself may give its own"
          (with-open
           [outer ^java.io.Closeable (bpf/create {:type :hash-of-maps :key :u32 :max-entries 4
                                                  :inner-map {:type :array :value :u32
                                                              :max-entries 1}})]
            (is (= outer (bpf/put! outer 1 {:fd number})))))))))

(deftest every-command-offered
  (testing "offers every command"
    (is (= (set (map (comp symbol options/function-name :name) (filter :fn commands/commands)))
           (set (:vars (some #(when (= 'pod.bpfmap.exec (:name %)) %) vars/namespaces)))))))

;; --- several threads

(kernel-test concurrent-calls
  (testing "concurrent calls get their own results"
    (with-pod [c]
      (let [m (client/invoke c 'pod.bpfmap.core/create [small] {})
            call (fn [var-name & args] (client/invoke c var-name args {}))]
        (is (= (for [t (range 8)] (repeat 50 t))
               (fixture/in-threads 8 (fn [t]
                                       (vec (repeatedly 50 (fn []
                                                             (call 'pod.bpfmap.core/put! m t t)
                                                             (call 'pod.bpfmap.core/lookup m
                                                                   t))))))))))))
