(ns bpfmap.nrepl.process-test
  "`bin/clj -M:nrepl` as a process: what it prints, how it ends, what it leaves."
  (:require [bpfmap.fixture :as fixture]
            [bpfmap.nrepl.server :as server]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io File StringWriter)
           (java.lang Process)
           (java.util List)
           (java.util.concurrent TimeUnit)))

(set! *warn-on-reflection* true)

(defn- run
  "Exit code, output and complaint of the command, in this process."
  [& args]
  (let [err (StringWriter.)
        code (atom nil)
        out (with-out-str (binding [*err* err] (reset! code (server/run args))))]
    [@code out (str err)]))

(deftest usage-error-exit-code
  (testing "wrong usage prints one line and exits with 2"
    (doseq [[args complaint]
            [[["--port" "7888"]
              (str
               "--port must be confirmed: every user and program of this host could run code as "
               "this user: use --socket, which only this user reaches, or add "
               "--trust-all-local-users")]
             [["--trust-all-local-users"] "--trust-all-local-users requires --port; see --help"]
             [["--port" "x" "--trust-all-local-users"]
              ":port must be an integer from 0 to 65535, got \"x\": use 0 for any free port"]
             [["--port" "1" "--trust-all-local-users" "--socket" "/run/x/y"]
              "Only one of :socket and :port may be given"]
             [["--bind" "0.0.0.0"] "Unknown option: \"--bind\"; see --help"]
             [["7888"] "Unexpected argument \"7888\"; see --help"]
             [["--socket"] "Missing required argument for \"--socket PATH\"; see --help"]
             [["--connect" "--port" "1"] "--connect cannot be combined with --port or --trust-all-local-users; see --help"]
             [["--socket" "x/y"]
              (str
               "The path of a socket must be absolute, without \"..\" and not in the root "
               "directory, got \"x/y\"")]]]
      (is (= [2 "" (str "bpfmap nrepl: " complaint "\n")] (apply run args))))))

(deftest other-error-exit-code
  (testing "an error prints one line and exits with 1"
    (is (= [1 "" "bpfmap nrepl: No directory /nowhere\n"]
           (run "--socket" "/nowhere/own/nrepl.sock")))
    (is (= [1 "" "bpfmap nrepl: No directory /nowhere\n"]
           (run "--connect" "--socket" "/nowhere/own/nrepl.sock")))))

(deftest help-lists-options
  (testing "the help lists the options"
    (let [[code out err] (run "--help")]
      (is (= [0 ""] [code err]))
      (doseq [option ["--socket PATH" "--connect" "--port PORT" "--trust-all-local-users"
                      "/nrepl.sock"]]
        (is (str/includes? out option))))))

;; --- processes

(def ^:private command
  "The command with this JVM's class path, as the alias has it."
  [(str (System/getProperty "java.home") "/bin/java") "--enable-native-access=ALL-UNNAMED"
   "-cp" (System/getProperty "java.class.path") "clojure.main" "-m" "bpfmap.nrepl.server"])

(defn- start-command
  "Starts a server and waits for its output; returns the process and the line."
  [^List command]
  (let [process (.start (doto (ProcessBuilder. command) (.redirectError (File. "/dev/null"))))
        reader (io/reader (.getInputStream process))]
    [process (.readLine ^java.io.BufferedReader reader)]))

(defn- start [& args]
  (start-command (vec (concat command args))))

(defn- ended [^Process process]
  (when (.waitFor process fixture/patience TimeUnit/MILLISECONDS)
    (.exitValue process)))

(deftest signal-removes-socket
  (testing "a server runs until a signal and removes its socket"
    (let [home (fixture/temporary-directory)
          socket (str home "/own/nrepl.sock")
          [^Process killed line] (start "--socket" socket)]
      (try
        (is (= (str "nREPL server started on socket nrepl+unix:" socket) line)
            "as nREPL's own server says it")
        (testing "another does not take its place"
          (is (= [1 ""
                  (str "bpfmap nrepl: An nREPL server uses " socket
                       ": connect to it, stop it, or use another --socket\n")]
                 (run "--socket" socket))))
        (testing "nREPL's client on the terminal, the namespaces of the library at hand"
          (let [{:keys [exit out]} (fixture/run ["bash" "-c"
                                                 (str
                                                  "printf '(+ 1 2)\\n(map bpf/bpf-map? [1])\\n' | "
                                                  (str/join " " (map #(str "'" % "'") command))
                                                  " --connect --socket " socket)])]
            (is (= 0 exit))
            (is (str/includes? out "user=> 3\nuser=> (false)\n"))))
        (testing "killed, it leaves the socket, and the next one replaces it"
          (.destroyForcibly killed)
          (is (= 137 (ended killed)))
          (is (.exists (io/file socket)))
          (is (= [1 ""
                  (str "bpfmap nrepl: No nREPL server is at " socket
                       ": bin/clj -M:nrepl starts one\n")]
                 (run "--connect" "--socket" socket)))
          (let [[^Process next line] (start "--socket" socket)]
            (is (str/ends-with? line socket))
            (.destroy next) ; SIGTERM
            (is (= 143 (ended next)))
            (is (= ["nrepl.sock.lock"] (seq (.list (io/file home "own")))))))
        (finally
          (.destroyForcibly killed)
          (run! #(.delete ^File %) (reverse (file-seq home))))))))

(deftest socket-of-any-bytes
  (testing "in the C locale, at a path that is neither ASCII nor UTF-8, server and client meet"
    (let [home (fixture/temporary-directory)
          ;; Java could not pass such an argument
          script (fn [& more]
                   (str "socket=$(printf '%s/own/caf\\303\\251\\377.sock' '" home "'); "
                        "export LC_ALL=C; exec "
                        (str/join " " (map #(str "'" % "'") command))
                        (str/join (map #(str " " %) more)) " --socket \"$socket\""))
          [^Process server line] (start-command ["bash" "-c" (script)])]
      (try
        (is (= (str "nREPL server started on socket nrepl+unix:" home "/own/caf%C3%A9%FF.sock")
               line))
        (let [{:keys [exit out]} (fixture/run ["bash" "-c" (str "printf '(+ 1 2)\\n' | ( "
                                                               (script "--connect") " )")])]
          (is (= 0 exit))
          (is (str/includes? out "user=> 3\n")))
        (.destroy server)
        (is (= 143 (ended server)))
        (is (= [".lock"] (map #(subs % (- (count %) 5)) (.list (io/file home "own")))))
        (finally
          (.destroyForcibly server)
          (fixture/run ["rm" "-r" (str home)]))))))
