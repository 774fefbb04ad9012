(ns ^:volume bpfmap.nrepl.server-test
  "The server over a real socket, with nREPL's own client: who gets in, what is printed, what is
  left behind.

  `bpfmap.nrepl.socket-dir-test` has where a socket may lie, `bpfmap.nrepl.process-test` the
  command."
  (:require [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [error-of kernel-test]]
            [bpfmap.nrepl.bounded-print :as bounded-print]
            [bpfmap.nrepl.listener :as listener]
            [bpfmap.nrepl.server :as server]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]]
            [nrepl.core :as client])
  (:import (java.io Closeable File StringWriter)
           (java.net StandardProtocolFamily UnixDomainSocketAddress)
           (java.nio ByteBuffer)
           (java.nio.channels ServerSocketChannel SocketChannel)
           (java.nio.file Files LinkOption)
           (java.nio.file.attribute PosixFilePermissions)))

(set! *warn-on-reflection* true)

(defn- start-at
  "A server at a socket, that complains to a writer."
  ^Closeable [socket said]
  (binding [*err* said]
    (server/start {:socket socket})))

(defn- with-server*
  "Calls f with a server in a new directory, the path of its socket, and what it has said; deletes
  the directory."
  [f]
  (let [home (fixture/temporary-directory)
        socket (str home "/own/nrepl.sock")
        said (StringWriter.)]
    (try
      (with-open [server (start-at socket said)]
        (f server socket said))
      (finally
        (run! #(.delete ^File %) (reverse (file-seq home)))))))

(defmacro ^:private with-server [[server socket said] & body]
  `(with-server* (fn [~server ~socket ~said] ~@body)))

(defn- answers
  "What a client gets for a message, combined."
  [transport message]
  (client/combine-responses (client/message (client/client transport 60000) message)))

(defn- session [transport]
  (client/new-session (client/client transport 60000)))

(defn- evaluated
  "The printed value of some code, or the whole answer where there is none."
  [transport code & {:as more}]
  (let [{:keys [value] :as answer} (answers transport (merge {:op "eval" :code code} more))]
    (if value (last value) answer)))

(defn- set-mode [file permissions]
  (Files/setPosixFilePermissions (.toPath (io/file file))
                                 (PosixFilePermissions/fromString permissions)))

(defn- soon
  "Whether something comes to be true within the patience of the tests."
  [f]
  (boolean (fixture/eventually f)))

;; --- a server as nREPL's clients know one

(deftest sessions-evaluate-code
  (testing "an nREPL client evaluates code and has sessions"
    (with-server [server socket _]
      (is (= (str "nrepl+unix:" socket) (:url server)))
      (is (= "rw-------"
             (PosixFilePermissions/toString
              (Files/getPosixFilePermissions (.toPath (io/file socket))
                                             (make-array LinkOption 0)))))
      (with-open [t ^Closeable (client/connect :socket socket)]
        (is (= "3" (evaluated t "(+ 1 2)")))
        (let [id (session t)]
          (evaluated t "(def answer 42)" :session id)
          (is (= "42" (evaluated t "answer" :session id)))
          (is (= {:out "hi\n" :value ["nil"]}
                 (select-keys (answers t {:op "eval" :code "(println \"hi\")" :session id})
                              [:out :value])))
          (is (str/includes? (:err (answers t {:op "eval" :code "(/ 1 0)" :session id}))
                             "Divide by zero"))
          (is (every? (:ops (answers t {:op "describe"}))
                      [:clone :eval :load-file :interrupt :completions :lookup :stdin]))
          (is (contains? (:status (answers t {:op "close" :session id})) "session-closed")))))))

(deftest interrupt-ends-evaluation
  (testing "an interrupt ends the evaluation and not the connection"
    (with-server [_ socket _]
      (with-open [t ^Closeable (client/connect :socket socket)]
        (let [id (session t)
              c (client/client t 60000)
              running (client/message c
                                      {:op "eval"
                                       :code "(do (println :begun) (Thread/sleep 600000))"
                                       :session id :id "long"})]
          (is (= ":begun\n" (:out (first running))))
          (client/message c {:op "interrupt" :session id})
          (is (contains? (:status (client/combine-responses running)) "interrupted"))
          (is (= "3" (evaluated t "(+ 1 2)" :session id))))))))

(kernel-test maps-from-a-session
  (testing "a session can open and read maps"
    (with-server [_ socket _]
      (with-open [m ^Closeable (bpf/create {:name "nrepl_flows" :type :hash :key :u32 :value :u64
                                            :max-entries 2000})
                  t ^Closeable (client/connect :socket socket)]
        (bpf/put-all! m (zipmap (range 2000) (range)))
        (let [id (session t)]
          (evaluated t
                     (str "(require '[bpfmap.core :as bpf]) (def m (bpf/open " (:id (bpf/info m))
                          "))") :session id)
          (is (= (str "#<bpf-map " (:id (bpf/info m)) " :hash \"nrepl_flows\" :u32 -> :u64>")
                 (evaluated t "m" :session id))
              "a map is a line, whatever is in it")
          (testing "its contents are printed within the bounds"
            (doseq [code ["(into {} m)" "(bpf/snapshot m)" "(seq m)" "(reduce conj [] m)"]]
              (let [text (evaluated t code :session id)]
                (is (re-find #" ?\.\.\.[\])}]$" text))
                (is (= 100 (count (re-seq #"\d+ \d+" text))) code))))
          (testing "and is whole where it is used"
            (is (= "2000" (evaluated t "(count (into {} m))" :session id)))
            (is (= "true"
                   (evaluated t "(= 2000 (count (read-string (pr-str (into {} m)))))" :session
                              id))))
          (evaluated t "(bpf/close m)" :session id))))))

;; --- printing

(deftest endless-results-cut
  (testing "truncates results without an end"
    (with-server [_ socket _]
      (with-open [t ^Closeable (client/connect :socket socket)]
        (let [id (session t)
              value #(evaluated t % :session id)]
          (is (= (str "(" (str/join " " (range 100)) " ...)") (value "(range)")))
          (is (str/ends-with? (value "(iterate inc 0)") " 99 ...)"))
          (is (= "#" (last (re-seq #"#" (value "(nth (iterate vector 1) 1000)")))))
          (let [{:keys [value status]} (answers t
                                                {:op "eval" :code "(apply str (repeat 1000000 \\x))"
                                                 :session id})]
            (is (= bounded-print/default-quota (count (last value))))
            (is (contains? status "nrepl.middleware.print/truncated")))
          (is (= bounded-print/default-quota
                 (count (value "(repeat (repeat (repeat (repeat :x))))"))))
          (is (= "(0 1 2 ...)" (do (value "(set! *print-length* 3)") (value "(range)")))
              "the session says how long")
          (is (= 1000
                 (count (re-seq #"\d+"
                                (do (value "(set! *print-length* 1000)") (value "(range)"))))))
          (is (= "[[#]]" (do (value "(set! *print-level* 2)") (value "[[[1]]]"))))
          (is (= "3" (value "(+ 1 2)")) "and it goes on"))))))

(deftest whole-output-of-code
  (testing "code prints and writes values in full"
    (with-server [_ socket _]
      (with-open [t ^Closeable (client/connect :socket socket)]
        (let [whole (pr-str (range 1000))]
          (is (= (str (count whole)) (evaluated t "(count (pr-str (range 1000)))")))
          (is (= (str whole "\n") (:out (answers t {:op "eval" :code "(prn (range 1000))"})))))))))

(deftest own-printer-limited
  (testing "uses the printer of the client within the limits"
    (with-server [_ socket _]
      (with-open [t ^Closeable (client/connect :socket socket)]
        (let [value (fn [code & {:as more}]
                      (evaluated t code
                                 (update-keys more #(keyword "nrepl.middleware.print" (name %)))))]
          (is (= 101
                 (count (str/split-lines (value "(range)" :print "nrepl.util.print/pprint" :options
                                                {:right-margin 2})))))
          (is (= "(0 1 ...)"
                 (value "(range)" :print "nrepl.util.print/pr" :options {:print-length 2}))
              "its options come first")
          (is (= 10 (count (value "(range)" :quota 10))) "and its quota")
          (is (= (value "(range)") (value "(range)" :stream? 1)))
          (is (= "nrepl.middleware.print/error"
                 (first (:status (answers t
                                          {:op "eval" :code "1"
                                           :nrepl.middleware.print/print "no.such/printer"}))))
              "a printer that is not there is nREPL's to complain of"))))))

(deftest load-file-result-limited
  (testing "limits the printed result of a loaded file"
    (with-server [_ socket _]
      (with-open [t ^Closeable (client/connect :socket socket)]
        (is (str/ends-with? (last (:value (answers t {:op "load-file" :file "(range)"})))
                            " 99 ...)"))))))

;; --- who gets in

(def ^:private knock
  "A Perl program that connects to a socket, asks for an evaluation, and prints what comes, or why
  nothing does."
  (str "use Socket; socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die; "
       "connect($s, sockaddr_un($ARGV[0])) or do { print qq(connect: $!\\n); exit };"
       "$SIG{PIPE} = 'IGNORE'; syswrite($s, $ARGV[1]); my $all = '';"
       "while ($all !~ /4:done/ && sysread($s, my $b, 4096)) { $all .= $b }"
       "print qq(user $>: ), length($all) ? $all : 'nothing', qq(\\n);"))

(defn- knocking
  "What the program prints as a user, when it asks for the evaluation of some code."
  [user socket code]
  (let [perl (fixture/executable "perl")
        command [perl "-e" knock socket (str "d4:code" (count code) ":" code "2:op4:evale")]]
    (:out (fixture/run (if user
                         (into ["setpriv" "--reuid" user "--regid" user "--clear-groups" "--"]
                               command)
                         command)))))

(kernel-test other-user-rejected
  (testing "another user cannot connect to the socket"
    (if-not (and (fixture/executable "perl") (fixture/executable "setpriv"))
      (fixture/skip! "perl or setpriv is not installed")
      (with-server [server socket said]
        (let [directory (.getParentFile (io/file socket))
              home (.getParentFile directory)
              touched (io/file home "touched")
              touch (str "(spit \"" touched "\" 1)")]
          (set-mode home "rwxr-xr-x") ; what keeps others out is the socket's directory alone
          (testing "root gets in"
            (is (str/includes? (knocking nil socket "(+ 1 2)") "5:value1:3")))
          (testing "the directory keeps another user out"
            (is (= "connect: Permission denied\n" (knocking "65534" socket touch)))
            (is (= "" (str said)) "and the server does not even notice"))
          (testing "the socket does so too, when the directory is opened"
            (set-mode directory "rwxrwxrwx")
            (is (= "connect: Permission denied\n" (knocking "65534" socket touch))))
          (testing "and the kernel says who connects, when the socket is opened as well"
            (set-mode socket "rwxrwxrwx")
            (is (= "user 65534: nothing\n" (knocking "65534" socket touch)))
            (is
             (soon
              #(re-find
                (re-pattern (str "^bpfmap nrepl: A connection of the user \\S+ was refused: "
                                 "only root and the server's own user are admitted\n$"))
                (str said))))
            (is (soon #(zero? (listener/connection-count (:listener server))))))
          (testing "a user without a name as well"
            (is (= "user 54321: nothing\n" (knocking "54321" socket touch)))
            (is (soon #(str/includes? (str said) "A connection of the user 54321 was refused"))))
          (is (not (.exists touched)) "nothing of theirs was evaluated")
          (testing "root still gets in"
            (is (str/includes? (knocking nil socket "(+ 1 2)") "5:value1:3"))))))))

(kernel-test user-and-root-accepted
  (testing "a server of a user accepts that user and root"
    (let [home (fixture/temporary-directory)
          socket (str home "/own/nrepl.sock")]
      (try
        (fixture/run ["chown" "65534:65534" (str home)])
        (with-open [_ ^Closeable (fixture/unprivileged #(start-at socket (StringWriter.)))]
          (is (str/includes? (knocking "65534" socket "(+ 1 2)") "5:value1:3"))
          (is (str/includes? (knocking nil socket "(+ 1 2)") "5:value1:3"))
          (set-mode (io/file home "own") "rwxr-xr-x")
          (set-mode socket "rw-rw-rw-")
          (set-mode home "rwxr-xr-x")
          (is (= "user 54321: nothing\n" (knocking "54321" socket "(+ 1 2)"))))
        (finally
          (run! #(.delete ^File %) (reverse (file-seq home))))))))

;; --- TCP

(deftest tcp-needs-two-options
  (testing "rejects TCP unless two options allow it"
    (is
     (=
      (str
       "A :port must be confirmed: every user and program of this host could run code as this "
       "process's user: use :socket, which only this user reaches, or add "
       ":trust-all-local-users true")
      (:message (error-of (server/start {:port 0})))))
    (doseq [[options
             message] [[{:trust-all-local-users true}
                        ":trust-all-local-users requires :port"]
                       [{:socket "/run/x/y" :port 1 :trust-all-local-users true}
                        "Only one of :socket and :port may be given"]
                       [{:port 65536 :trust-all-local-users true}
                        ":port must be an integer from 0 to 65535, got 65536: use 0 for any free port"]
                       [{:port 0 :trust-all-local-users true :bind "0.0.0.0"}
                        "Unknown option :bind: use :port, :socket or :trust-all-local-users"]
                       [{} ":socket or :port is required"]]]
      (is (= [:invalid-value message]
             ((juxt :bpfmap/error :message) (error-of (server/start options))))))))

(deftest tcp-on-loopback-only
  (testing "TCP listens only on the loopback address"
    (with-open [server ^Closeable (server/start {:port 0 :trust-all-local-users true})]
      (let [port (get-in server [:address :port])]
        (is (= (str "nrepl://127.0.0.1:" port) (:url server)))
        (with-open [t ^Closeable (client/url-connect (:url server))]
          (is (= "3" (evaluated t "(+ 1 2)"))))
        (is (= ["0100007F"]
               (distinct
                (keep #(second (re-find (re-pattern (format "^ *\\d+: (\\w+):%04X .* 0A " port)) %))
                      (mapcat #(str/split-lines (Files/readString (.toPath (io/file %))))
                              ["/proc/net/tcp" "/proc/net/tcp6"]))))
            "as the kernel has it: 127.0.0.1")
        (testing "a port that is taken"
          (is (= [:busy (str "The port " port " cannot be bound: Address already in use")]
                 ((juxt :bpfmap/error
                        :message) (error-of
                                    (server/start {:port port :trust-all-local-users true}))))))))))

;; --- failures, and what stays behind

(deftest garbage-ends-connection
  (testing "an invalid message ends only its connection"
    (with-server [server socket said]
      (with-open [t ^Closeable (client/connect :socket socket)]
        (is (= "3" (evaluated t "(+ 1 2)")))
        (doseq [^String garbage ["hello:" "i99999999999999999999e" "-5:x" "99999999999999:x"
                                 "d1:ai1e" "ll"]]
          (with-open [channel (SocketChannel/open (UnixDomainSocketAddress/of ^String socket))]
            (.write channel (ByteBuffer/wrap (.getBytes garbage)))
            (.shutdownOutput channel)
            (is (= -1 (.read channel (ByteBuffer/allocate 100))) garbage)))
        (is (every? #(str/starts-with? %
                                       "bpfmap nrepl: A connection was closed, because it sent an invalid message: ")
                    (remove empty? (str/split-lines (str said)))))
        (is (= "3" (evaluated t "(+ 1 2)")))
        (is (soon #(= 1 (listener/connection-count (:listener server)))))))))

(deftest close-removes-socket
  (testing "closing the server ends its connections and removes the socket"
    (let [gone (with-server [server socket _]
                 (with-open
                  [channel (SocketChannel/open (UnixDomainSocketAddress/of ^String socket))]
                   (is (soon #(= 1 (listener/connection-count (:listener server)))))
                   (.close ^Closeable server)
                   (is (= -1 (.read channel (ByteBuffer/allocate 100))))
                   (is (not (.exists (io/file socket))))
                   (.close ^Closeable server) ; twice is fine
                   (with-open [again ^Closeable (server/start {:socket socket})]
                     (is (some? again) "and the name is free")
                     (is (= :exists (:bpfmap/error (error-of (server/start {:socket socket}))))
                         "but not taken from a server that has it")
                     (with-open [t ^Closeable (client/connect :socket socket)]
                       (is (= "3" (evaluated t "(+ 1 2)")))))))]
      (is (true? gone)))))

(deftest stale-socket-replaced
  (testing "replaces a socket that a dead server left"
    (let [home (fixture/temporary-directory)
          socket (str home "/own/nrepl.sock")]
      (try
        (Files/createDirectory (.toPath (io/file home "own"))
                               (into-array
                                [(PosixFilePermissions/asFileAttribute
                                  (PosixFilePermissions/fromString "rwx------"))]))
        (with-open [dead (ServerSocketChannel/open StandardProtocolFamily/UNIX)]
          (.bind dead (UnixDomainSocketAddress/of socket)))
        (is (.exists (io/file socket)))
        (with-open [_ ^Closeable (server/start {:socket socket})
                    t ^Closeable (client/connect :socket socket)]
          (is (= "3" (evaluated t "(+ 1 2)"))))
        (finally
          (run! #(.delete ^File %) (reverse (file-seq home))))))))

(deftest connections-leave-nothing
  (testing "connections leave no descriptor open and print nothing"
    (with-server [server socket said]
      (let [visit #(with-open [t ^Closeable (client/connect :socket socket)]
                     (evaluated t "(+ 1 2)"))
            idle (fn [] (soon #(zero? (listener/connection-count (:listener server)))))]
        (visit)
        (idle)
        (let [before (fixture/settled-descriptors)]
          (dotimes [_ 100] (visit))
          (is (idle))
          (is (soon #(< (fixture/open-descriptors) (+ before 20))))
          (is (= "" (str said))))))))
