(ns ^:volume bpfmap.cli.process-test
  "bin/bpfmap as a process: from where it is called, what it does to signals, pipes and the
  terminal."
  (:require [bpfmap.cli.main :as main]
            [bpfmap.core :as bpf]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.prog :as prog]
            [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing use-fixtures]])
  (:import (java.io Closeable File)
           (java.nio.file Files Path)
           (java.nio.file.attribute FileAttribute)
           (java.util List)
           (java.util.concurrent TimeUnit)))

(set! *warn-on-reflection* true)

(def ^:private script
  (str (.getAbsolutePath (io/file "bin/bpfmap"))))

;; Where the command line is not compiled yet, the first run says so; that is not what these tests
;; are about.
(use-fixtures :once (fn [tests] (fixture/run [script "--version"]) (tests)))

(defn- sh
  "Runs a line of bash, in which $bpfmap is the command."
  [line & {:as options}]
  (apply fixture/run ["bash" "-c" line]
         (mapcat identity (update options :env merge {"bpfmap" script}))))

;; --- where it is called from

(deftest runs-from-any-directory
  (testing "runs from any directory and through a symbolic link"
    (let [dir (fixture/temporary-directory)
          link (.toPath (io/file dir "a link"))]
      (Files/createSymbolicLink link (Path/of script (make-array String 0))
                                (make-array FileAttribute 0))
      (try
        (is (= {:exit 0 :out (str "bpfmap " main/version "\n") :err ""}
               (fixture/run [(str link) "--version"] :dir dir)))
        (finally
          (Files/delete link)
          (.delete dir))))))

(kernel-test relative-pin-of-user
  (testing "resolves a relative pin from the directory of the user"
    (with-open [m ^Closeable (bpf/create {:name "cli_process" :type :array :key :u32 :value :u8
                                          :max-entries 1})]
      (let [pin (io/file (fixture/new-pin))]
        (bpf/pin! m pin)
        (let [{:keys [exit out err]} (fixture/run [script "show" "--edn" (str "./" (.getName pin))]
                                                  :dir (.getParent pin))]
          (is (= [0 ""] [exit err]))
          (is (= (:id (bpf/info m)) (:id (edn/read-string out)))))
        (bpf/unpin! m)))))

(deftest command-exit-code
  (testing "exits with the code of the command"
    (is (= {:exit 2 :out ""
            :err "bpfmap: Unexpected argument \"1\": list takes no arguments; see `bpfmap help list`\n"}
           (sh "$bpfmap list 1")))))

;; --- pipes

(kernel-test closed-pipe-no-error
  (testing "a reader that closes the pipe early is not an error"
    (with-open [m ^Closeable (bpf/create {:name "cli_pipe" :type :array :key-size 4 :value-size 8
                                          :max-entries 20000})]
      (is (= {:exit 0 :out "  KEY  VALUE\n141\n" :err ""}
             (sh (str "$bpfmap dump " (:id (bpf/info m))
                      " | head -n 1; echo ${PIPESTATUS[0]}")))))))

(kernel-test closed-pipe-ends-watch
  (testing "a watch ends if its reader closes the pipe"
    (with-open [m ^Closeable (bpf/create {:name "cli_pipe" :type :array :key-size 4 :value-size 8
                                          :max-entries 5})]
      (let [id (:id (bpf/info m))]
        (is (= {:exit 0 :out "{\n141\n" :err ""}
               (sh (str "$bpfmap watch " id
                        " --interval 0.05 --json | head -c 1; code=${PIPESTATUS[0]}; echo; echo "
                        "$code"))))))))

(kernel-test full-disk-all-formats
  (testing "a full disk is an error in every output format"
    (with-open [m ^Closeable (bpf/create {:name "cli_full" :type :array :key-size 4 :value-size 8
                                          :max-entries 5})]
      (doseq [arguments ["list" "list --edn" (str "dump " (:id (bpf/info m)) " --json")]]
        (is (= {:exit 1 :out ""
                :err "bpfmap: Cannot write the output: No space left on device\n"}
               (sh (str "$bpfmap " arguments
                        " 2>&1 > /dev/full | grep -v entries >&2; exit ${PIPESTATUS[0]}"))))))))

(deftest output-to-dev-full
  (testing "reports output that cannot be written"
    (when (.exists (io/file "/dev/full"))
      (is (= {:exit 1 :out ""
              :err "bpfmap: Cannot write the output: No space left on device\n"}
             (sh "$bpfmap help > /dev/full"))))))

;; --- signals

(defn- counting?
  "Whether a process is attached: it has a link open, which the demo makes last."
  [pid]
  (some (fn [^File info]
          (try
            (str/includes? (Files/readString (.toPath info)) "link_id:")
            (catch java.io.IOException _ false))) ; it has closed
        (.listFiles (io/file "/proc" (str pid) "fdinfo"))))

(defn- interrupted-demo
  "Starts the demo for a minute, sends it a signal once it counts; {:exit :out :seconds}, the
  seconds it took to end."
  [signal]
  (let [out (File/createTempFile "bpfmap" ".out")
        ^List command [script "demo" "--seconds" "60" "--edn"]
        process (.start (doto (ProcessBuilder. command)
                          (.redirectOutput out)
                          (.redirectError (File. "/dev/null"))))]
    (try
      (fixture/eventually #(or (not (.isAlive process)) (counting? (.pid process))))
      (Thread/sleep 300)
      (fixture/run ["sh" "-c" (str "kill -" signal " " (.pid process))])
      (let [begun (System/nanoTime)]
        (is (.waitFor process (* 2 (long fixture/patience)) TimeUnit/MILLISECONDS))
        {:exit (.exitValue process)
         :out (slurp out)
         :seconds (/ (- (System/nanoTime) begun) 1e9)})
      (finally
        (.destroyForcibly process)
        (.delete out)))))

(kernel-test signal-ends-the-demo
  (testing "a signal ends the demo and leaves no map behind"
    (doseq [[signal code] {"INT" 130, "TERM" 143}
            :let [{:keys [exit out seconds]} (interrupted-demo signal)
                  {:keys [total] {:keys [id]} :map} (edn/read-string out)]]
      (is (= code exit))
      (is (< (* 1000 (double seconds)) fixture/patience))
      (is (and total (pos? total)) "the counts so far are printed")
      (is (some? id))
      (is (= :not-found (:bpfmap/error (fixture/error-of (bpf/open id)))))
      (when-let [bpftool (fixture/executable "bpftool")]
        (is (not (re-find (re-pattern (str "map_ids .*\\b" id "\\b"))
                          (:out (fixture/run [bpftool "prog" "show"])))))))))

;; --- tail

(defn- ring ^Closeable []
  (bpf/create {:name "cli_tail" :type :ringbuf :max-entries 4096}))

(defn- send!
  "Sends eight bytes to a ring as an event."
  [m word]
  (with-open [^Closeable p (prog/load {:type :raw-tracepoint
                                       :insns [[:lddw :r1 word]
                                               [:stxdw [:r10 -8] :r1]
                                               [:lddw :r1 m]
                                               [:mov64 :r2 :r10]
                                               [:add64 :r2 -8]
                                               [:mov64 :r3 8]
                                               [:mov64 :r4 0]
                                               [:call :ringbuf-output]
                                               [:mov64 :r0 0]
                                               [:exit]]})]
    (prog/test-run p)))

(defn- with-tail
  "Calls f with the process of a tail and its output, once it has printed a line.

  Returns what it has printed, and its exit code, nil if it runs after 20 seconds."
  [arguments f]
  (let [out (File/createTempFile "bpfmap" ".out")
        err (File/createTempFile "bpfmap" ".err")
        ^List command (into [script "tail"] (map str) arguments)
        process (.start (doto (ProcessBuilder. command)
                          (.redirectOutput out)
                          (.redirectError err)))]
    (try
      (fixture/eventually #(or (not (.isAlive process)) (not= "" (slurp out))))
      (f process)
      {:exit (when (.waitFor process (* 2 (long fixture/patience)) TimeUnit/MILLISECONDS)
               (.exitValue process))
       :out (slurp out) :err (slurp err)}
      (finally
        (.destroyForcibly process)
        (.delete out)
        (.delete err)))))

(kernel-test signal-ends-tail
  (testing "a signal ends a tail, which has printed every event as it came"
    (with-open [m (ring)]
      (send! m 1)
      (doseq [[signal code] {"INT" 130, "TERM" 143}]
        (is (= {:exit code :out " VALUE\n     1\n"
                :err (str "bpfmap: map " (:id (bpf/info m)) " (cli_tail) is open in java["
                          (.pid (java.lang.ProcessHandle/current)) "]: events are copied and none "
                          "is taken; --steal takes them\n1 event\n")}
               (with-tail [(:id (bpf/info m)) "--value-type" "u64"]
                 (fn [^Process process]
                   (fixture/run ["sh" "-c" (str "kill -" signal " " (.pid process))])))))))))

(kernel-test closed-pipe-ends-tail
  (testing "a tail ends when its pipe is closed, also if there are no more events"
    (with-open [m (ring)]
      (send! m 1)
      (is (= {:exit 0 :out "{:value 1}\n141\n" :err ""}
             (sh (str "$bpfmap tail " (:id (bpf/info m)) " --from oldest --value-type u64 --edn | "
                      "head -n 1; echo ${PIPESTATUS[0]}")))))))

(kernel-test end-of-ring-ends-tail
  (testing "a tail ends when nothing can send events any more"
    (let [pin (fixture/new-pin)
          id (with-open [m (ring)]
               (send! m 1)
               (bpf/pin! m pin)
               (:id (bpf/info m)))]
      (is (= {:exit 1 :out "{\"value\":1}\n{\"status\":\"gone\"}\n"
              :err (str "bpfmap: map " id " (cli_tail) has ended: no process, program or pin refers "
                        "to it\n")}
             (with-tail [pin "--value-type" "u64" "--json"] (fn [_] (.delete (io/file pin))))))
      (is (= :not-found (:bpfmap/error (fixture/error-of (bpf/open id))))))))

(kernel-test tail-without-root
  (testing "a tail of another user says what is missing"
    (with-open [m (ring)]
      (let [as-user ["setpriv" "--reuid=65533" "--regid=65533" "--clear-groups"]
            id (:id (bpf/info m))]
        (if-not (and (fixture/executable "setpriv")
                     (zero? (:exit (fixture/run (into as-user ["test" "-x" script])))))
          (fixture/skip! "setpriv is not installed, or other users cannot read this checkout")
          (let [{:keys [exit out err]} (fixture/run (into as-user [script "tail" (str id)]))]
            (is (= [1 ""] [exit out]))
            (is (re-find (re-pattern (str "^bpfmap: Opening map " id " failed with EPERM: open needs "
                                          "CAP_SYS_ADMIN, .*run as root, or grant the capability"))
                         err))))))))

(kernel-test tail-in-locale-c
  (testing "output is UTF-8 in the locale C"
    (with-open [m (ring)]
      (send! m 0xa9c3) ; é
      (is (= {:exit 0 :out "VALUE\né\n" :err "1 event\n"}
             (sh (str "$bpfmap tail " (:id (bpf/info m))
                      " --from oldest --value-type '[string 8]' --limit 1")
                 :env {"LC_ALL" "C"}))))))

;; --- the terminal

(kernel-test live-table-on-terminal
  (testing "the demo shows a live table and restores the terminal"
    (if-not (fixture/executable "script")
      (fixture/skip! "there is no `script` (bsdutils, util-linux) to make a terminal")
      (let [dir (fixture/temporary-directory)
            command (str "stty rows 12 cols 60; before=$(stty -g); "
                         "$bpfmap demo --seconds 2; echo exit $?; "
                         "[ \"$before\" = \"$(stty -g)\" ] && echo same")
            {:keys [out]} (fixture/run ["script" "-qec" command "/dev/null"]
                                       :dir dir :env
                                       {"bpfmap" script "TERM" "xterm" "SHELL" "/bin/sh"})
            _ (.delete dir)
            [live after] (str/split out #"\u001b\[\?1049l" 2)
            frames (rest (str/split live #"\u001b\[H"))]
        (is (str/includes? live "\u001b[?1049h") "another screen")
        (is (< (str/index-of live "\u001b[?25l") (str/last-index-of out "\u001b[?25h"))
            "the cursor comes back")
        (is (seq frames))
        (doseq [frame frames
                :let [lines
                      (str/split (str/replace frame #"\u001b\[[0-9;?]*[A-Za-z]" "") #"\r*\n")]]
          (is (<= (count lines) 12))
          (is (every? #(< (count %) 60) lines) "nothing wraps"))
        (is
         (re-find
          #"(?m)^Counted \d+ system calls of \d+ kinds in \d+\.\d s; the top 8 are above\r?$"
          after))
        (is (str/includes? after "NAME"))
        (is (re-find #"(?m)^exit 0\r?$" after))
        (is (re-find #"(?m)^same\r?$" after) "the terminal's settings are what they were")))))
