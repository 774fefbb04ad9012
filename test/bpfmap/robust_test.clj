(ns ^:volume bpfmap.robust-test
  "What may happen to a process at any moment: interrupts, kill -9, a full disk, no descriptors,
  little memory."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.saved-file :as saved-file]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.kills :as kills]
            [bpfmap.pod.change-events :as change-events]
            [bpfmap.pod.server :as server]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io ByteArrayInputStream ByteArrayOutputStream Closeable File)
           (java.lang ProcessHandle)
           (java.util Random)))

(set! *warn-on-reflection* true)

(defn- with-directory [f]
  (let [dir (fixture/temporary-directory)]
    (try
      (f (str dir))
      (finally (run! #(.delete ^File %) (reverse (file-seq dir)))))))

;; --- interrupts

(defn- interrupted
  "What f returns, or the error that it throws, on a thread that was interrupted; and whether the
  thread still is."
  [f]
  (let [result (promise)]
    (doto (Thread. (fn []
                     (.interrupt (Thread/currentThread))
                     (deliver result
                              [(try (f)
                                    (catch Throwable e
                                      [(:bpfmap/error (ex-data e) (class e)) (ex-message e)]))
                               (Thread/interrupted)])))
      (.start)
      (.join))
    @result))

(kernel-test interrupted-calls
  (testing "an interrupt changes no result and closes nothing"
    (with-directory
      (fn [dir]
        (let [file (str dir "/a.edn")]
          (with-open [^Closeable m (bpf/create {:name "interrupts" :type :hash :key :u32 :value :u64
                                                :max-entries 64 :contents {1 10}})]
            (let [id (:id (bpf/info m))
                  plain #(dissoc % :memlock)]
              (doseq [[what f] {"info" #(plain (bpf/info m))
                                "opening" #(with-open [^Closeable o (bpf/open id)] (bpf/spec o))
                                "the list" #(plain (first (filter (comp #{id} :id) (host/maps))))
                                "holders" #(map :pid (get (host/holders) id))
                                "pins" #(count (host/pins (fixture/bpffs)))
                                "creating" #(with-open
                                             [^Closeable o
                                              (bpf/create
                                               {:type :array :value :u32 :max-entries 1})]
                                              (bpf/snapshot o))
                                "many" #(do (bpf/put-all! m {2 20, 3 30})
                                            (bpf/delete-all! m [2 3])
                                            (bpf/snapshot m))
                                "show" #(:entries (exec/show {:ref id}))}]
                (testing what
                  (is (= [(f) true] (interrupted f)))))
              (testing "a file"
                (exec/save {:ref id :file file})
                (let [before (slurp file)
                      message (str "Cannot write the file " (pr-str file) ": the thread was interrupted")]
                  (is (= [[:io message] true] (interrupted #(exec/save {:ref id :file file}))))
                  (is (= before (slurp file)))
                  (is (= [0 true]
                         (update (interrupted #(exec/restore {:file file :into id :yes true})) 0
                                 :changed)))
                  (is (= ["a.edn"] (seq (.list (io/file dir)))) "nothing is left beside it")))
              (is (= {1 10} (bpf/snapshot m)) "and the map is still open"))))))))

;; --- waits

(defn- interrupted-later
  "As [[interrupted]], but of a thread that is interrupted while it waits; fails where it does not
  wait."
  [f]
  (let [result (promise)
        thread (Thread. (fn []
                          (deliver result
                                   [(try (f)
                                         (catch Throwable e
                                           [(:bpfmap/error (ex-data e)) (ex-message e)]))
                                    (Thread/interrupted)])))]
    (.start thread)
    (is (fixture/eventually
         #(#{Thread$State/TIMED_WAITING Thread$State/WAITING} (.getState thread)))
        "it waits")
    (Thread/sleep 20)
    (.interrupt thread)
    (deref result fixture/patience :still-waits)))

(kernel-test interrupted-waits
  (testing "an interrupt ends every wait with an error as data"
    (with-open [^Closeable m (bpf/create {:name "waits" :type :hash :key :u32 :value :u64
                                          :max-entries 64 :contents {1 10}})]
      (let [id (:id (bpf/info m))
            silent (proxy [java.io.InputStream] [] (read ([] @(promise)) ([_ _ _] @(promise))))
            waits {"watch" [:watch #(exec/watch {:ref id :interval 100.0 :print :edn})]
                   "watch, reduced" [:watch
                                     #(reduce (fn [_ x] x) nil
                                              (exec/watch {:ref id :interval 100.0}))]
                   "watch, :seconds" [:watch
                                      #(into [] (exec/watch {:ref id :seconds 90 :interval 60.0}))]
                   "diff, :seconds" [:diff #(exec/diff {:old id :seconds 100})]
                   "demo" [:demo #(exec/demo {:seconds 100.0})]
                   "a pod's watch" [:watch
                                    #(change-events/run (change-events/start m {:interval 86400})
                                                        identity)]
                   "a pod" [:serve #(server/serve silent (ByteArrayOutputStream.))]}]
        (doseq [[what [op f]] waits]
          (testing what
            (let [answer [[:interrupted
                           (str (name op) " has not finished: the thread was interrupted")] true]]
              (is (= answer
                     (binding [*out* (java.io.StringWriter.)] (interrupted-later (bound-fn* f)))))
              (is (= answer (binding [*out* (java.io.StringWriter.)] (interrupted (bound-fn* f))))
                  "when it was interrupted before, too"))))
        (testing "and nothing stays open"
          (is (= {1 10} (bpf/snapshot m)))
          (is (fixture/eventually
               (fn [] (not-any? (comp #{"bpfmap_demo"} :name) (host/maps))))))))))

(kernel-test interrupted-commands
  (testing "an interrupt changes no result of a command"
    (with-directory
      (fn [dir]
        (with-open [^Closeable m (bpf/create {:name "commands" :type :hash :key :u32 :value :u64
                                              :max-entries 64 :contents {1 10, 2 20}})]
          (let [id (:id (bpf/info m))
                file (str dir "/a.edn")
                pin (fixture/new-pin)
                plain (fn [x] (if (map? x) (dissoc x :memlock :pins :pinned) x))]
            (exec/save {:ref id :file file})
            (doseq [[what f] {"show" #(plain (exec/show {:ref id}))
                              "list" #(map :id (exec/list {:where (str "id=" id)}))
                              "types" #(exec/types {:ref id})
                              "dump" #(vec (exec/dump {:ref id}))
                              "get" #(exec/get {:ref id :key 1})
                              "hist" #(exec/hist {:ref id})
                              "diff of a file" #(vec (exec/diff {:old {:file file} :new id}))
                              "tree" #(count (exec/tree {:directory (fixture/bpffs)}))
                              "features" #(count (exec/features {}))
                              "put" #(exec/put {:ref id :key 1 :value 10 :yes true})
                              "take" #(do (bpf/put! m 4 40) (exec/take {:ref id :key 4 :yes true}))
                              "delete" #(do (bpf/put! m 4 40)
                                            (exec/delete {:ref id :key 4 :yes true}))
                              "pin, unpin" #(do (exec/pin {:ref id :path pin :yes true})
                                                (exec/unpin {:path pin :yes true})
                                                (.exists (io/file pin)))
                              "restore" #(dissoc (exec/restore {:file file :into id :yes true})
                                                 :map)}]
              (testing what
                (is (= [(f) true] (interrupted f)))))))))))

(deftest known-waits-in-sources
  (testing "every wait in the sources is a known one that an interrupt can end"
    (let
     [waits #"\(Thread/sleep|\(deref \w+ \S+ |\(\.(await|awaitTermination|waitFor|join) |@\(promise"
       ;; Threads of their own, which nobody else can interrupt; a pod that ends; and the one
       ;; that keeps the answer.
      known {"impl/waiting.clj" 3, "cli/interactive.clj" 4, "cli/terminal.clj" 3,
             "nrepl/listener.clj" 1, "pod/server.clj" 1, "impl/memory/view.clj" 1, "prog.clj" 1,
             ;; For events in slices of 100 ms, between which the reader looks for an interrupt;
             ;; and for a function of the caller's that uses the reader that is being closed.
             "impl/kernel/events.clj" 1, "impl/events/reader.clj" 1,
             ;; For the user's editor, which ends the command line.
             "cli/edit.clj" 1
             ;; For the thread that reads keys, which was told to end.
             "cli/screen.clj" 1}
      found (into {} (for [^File file (file-seq (io/file "src/bpfmap"))
                           :when (str/ends-with? (.getName file) ".clj")
                           :let [n (count (re-seq waits (slurp file)))]
                           :when (pos? n)]
                       [(subs (str file) (count "src/bpfmap/")) n]))]
      (is (= known found) "another wait belongs into bpfmap.impl.waiting"))))

;; --- the pod

(defn run-malformed
  "Has a pod read n streams, each a message that was made invalid at random; returns those that
  did not end in an answer or in exit code 1 or 0."
  [n seed]
  (let [random (Random. seed)
        seeds ["d2:op8:describee" "d2:op6:invoke2:id1:13:var21:pod.bpfmap.type/size4:args6:[:u32]e"
               "d2:op8:shutdowne"
               "d2:op6:invoke2:id1:24:args5:[nil]3:var31:pod.bpfmap.feature/possible-cpuse"]
        mutate (fn [^bytes message]
                 (let [message (aclone message)]
                   (dotimes [_ (inc (.nextInt random 4))]
                     (aset message (.nextInt random (alength message))
                           (unchecked-byte (.nextInt random 256))))
                   (if (zero? (.nextInt random 3))
                     (java.util.Arrays/copyOf message (.nextInt random (alength message)))
                     message)))]
    (into []
          (keep (fn [_]
                  (let [bytes (mutate (.getBytes ^String (rand-nth seeds) "ISO-8859-1"))
                        err (java.io.StringWriter.)
                        exit (binding [*err* err, *out* err]
                               (try (server/serve (ByteArrayInputStream. bytes)
                                                  (ByteArrayOutputStream.)) (catch Throwable e e)))]
                    (when-not (and (contains? #{0 1} exit)
                                   (not (str/includes? (str err) "Exception")))
                      {:message (String. ^bytes bytes "ISO-8859-1") :exit exit :err (str err)}))))
          (range n))))

(deftest malformed-messages
  (testing "malformed messages end a pod or get an error"
    (let [seed (System/nanoTime)]
      (testing (str "seed " seed)
        (is (= [] (take 3 (run-malformed 300 seed))))))))

;; --- kill -9

(kernel-test killed-process
  (testing "a killed process leaves the old state or the new one"
    (let [{:keys [found wrong]} (kills/run 10)]
      (is (= [] wrong))
      (is (= #{:save :restore :put-all! :drain! :pin-by-name :move-pin!} (set (keys found)))))))

(kernel-test leftover-of-killed-save
  (testing "the next save removes what a killed one left"
    (with-directory
      (fn [dir]
        (let [file (str dir "/a.edn")
              pid (.pid (ProcessHandle/current))
              gone (loop [pid 4000000]
                     (if (.isPresent (ProcessHandle/of pid)) (recur (dec pid)) pid))
              live (.pid ^ProcessHandle (.get (.parent (ProcessHandle/current))))
              part (fn [name pid] (str "." name "." pid ".part"))
              left (fn ^File [name millis]
                     (doto (io/file dir name) (spit "half") (.setLastModified millis)))
              now (System/currentTimeMillis)]
          (left (part "a.edn" gone) now)
          (left (part "a.edn" (str gone "-12")) now)
          (left (part "a.edn" pid) 1000000000)
          (left (part "a.edn" (str pid "-3")) 1000000000)
          (left (part "a.edn" live) now)
          (left (part "b.edn" gone) now)
          (left ".a.edn.part" now)
          (.mkdir (io/file dir (part "a.edn" (dec gone))))
          (with-open [^Closeable m (bpf/create {:name "parts" :type :hash :key :u32 :value :u64
                                                :max-entries 4 :contents {1 1}})]
            (exec/save {:ref (:id (bpf/info m)) :file file}))
          (is (= (sort ["a.edn" (part "a.edn" live) (part "b.edn" gone) ".a.edn.part"
                        (part "a.edn" (dec gone))])
                 (sort (.list (io/file dir))))
              "of other files, of processes that live, and anything except a plain file stays")
          (testing "a lock that somebody holds says that he is at it"
            (let [^File held (left (part "a.edn" gone) now)
                  program (str "import fcntl,sys,time\n"
                               "f=open(sys.argv[1],'r+'); fcntl.lockf(f, fcntl.LOCK_EX)\n"
                               "print('held', flush=True); time.sleep(60)")
                  ^java.util.List command ["python3" "-c" program (str held)]
                  flock (.start (ProcessBuilder. command))]
              (try
                (if (= "held" (.readLine (.inputReader flock)))
                  (do (saved-file/write-whole file (fn [^java.io.Writer w] (.write w "{}")))
                      (is (.exists held)))
                  (fixture/skip! "there is no python3 to hold a lock"))
                (finally (.waitFor (.destroyForcibly flock))))
              (saved-file/write-whole file (fn [^java.io.Writer w] (.write w "{}")))
              (is (not (.exists held))))))))))

;; --- no room

(kernel-test full-disk-keeps-file
  (testing "a full disk leaves the old file"
    (with-directory
      (fn [dir]
        (let [{:keys [exit]} (fixture/run ["mount" "-t" "tmpfs" "-o" "size=64k" "tmpfs" dir])
              file (str dir "/a.edn")]
          (is (= 0 exit))
          (try
            (with-open [^Closeable small (bpf/create {:type :hash :key :u32 :value :u64
                                                      :max-entries 4 :contents {1 1}})
                        ^Closeable large (bpf/create {:type :hash :key :u32 :value :u64
                                                      :max-entries 20000
                                                      :contents (into {}
                                                                      (for [i (range 20000)]
                                                                        [i i]))})]
              (exec/save {:ref (:id (bpf/info small)) :file file})
              (let [before (slurp file)
                    e (fixture/error-of (exec/save {:ref (:id (bpf/info large)) :file file}))]
                (is (= [:io (str "Cannot write the file " (pr-str file) ": No space left on device")]
                       ((juxt :bpfmap/error :message) e)))
                (is (= before (slurp file)))
                (is (= ["a.edn"] (seq (.list (io/file dir)))))))
            (finally (fixture/run ["umount" "-l" dir]))))))))

(defn- in-little
  "Runs forms in a JVM of its own, under a limit of the shell and with options of the JVM; what it
  prints."
  [limit options form]
  (let [{:keys [out
                err]} (fixture/run (into ["bash" "-c" (str limit "; exec \"$@\"") "bash"
                                          (str (System/getProperty "java.home") "/bin/java")
                                          "--enable-native-access=ALL-UNNAMED" "-XX:+UseSerialGC"]
                                         (concat options
                                                 ["-cp" (System/getProperty "java.class.path")
                                                  "clojure.main" "-e" (pr-str form)])))]
    (str out err)))

(kernel-test no-free-descriptors
  (testing "each operation reports a lack of descriptors"
    (let [;; The JVM has a descriptor for each jar, and a few more.
          jars (count (filter #(str/ends-with? % ".jar")
                              (str/split (System/getProperty "java.class.path") #":")))
          said (in-little (str "ulimit -n " (+ 24 jars)) []
                 '(do (require '[bpfmap.core :as bpf] '[bpfmap.exec :as exec]
                               '[bpfmap.host :as host] '[bpfmap.feature :as feature]
                               'bpfmap.exec.backup)
                      (let [spec {:name "few" :type :hash :key :u32 :value :u64 :max-entries 8
                                  :contents {1 2}}
                            m (bpf/create spec)
                            id (:id (bpf/info m))
                            attempt (fn [what f]
                                      (try (f) (catch Throwable e
                                                 (when-not (:bpfmap/error (ex-data e))
                                                   (println "INTERNAL" what e)))))
                            ops {"create" #(bpf/create spec) "open" #(bpf/open id)
                                 "clone" #(bpf/clone m) "info" #(bpf/info m)
                                 "list" #(exec/list {}) "show" #(exec/show {:ref id})
                                 "dump" #(exec/dump {:ref id})
                                 "save" #(exec/save {:ref id :file "/tmp/bpfmap-few.edn"})
                                 "snapshot" #(bpf/snapshot m)
                                 "holders" #(host/holders) "put-all!" #(bpf/put-all! m {1 3})
                                 "drain!" #(bpf/drain! m)}]
                        (doseq [[what f] ops] (attempt what f)) ; loaded, all of it
                        (bpf/put-all! m {1 2})
                        (let [held (loop [held []]
                                     (if-let [o (try (bpf/clone m)
                                                     (catch clojure.lang.ExceptionInfo e
                                                       (println
                                                        (:bpfmap/error (ex-data e))
                                                        (ex-message e))))]
                                       (recur (conj held o))
                                       held))]
                          (doseq [free (range 0 4)]
                            (when (pos? free) (bpf/close (nth held free)))
                            (doseq [[what f] ops] (attempt what f)))
                          (run! bpf/close held))
                        (bpf/put-all! m {1 2})
                        (println "DONE" (bpf/snapshot m)))))]
      (is (str/includes? said "EMFILE") said)
      (is (str/includes? said "DONE {1 2}") said)
      (is (not (re-find #"INTERNAL|please report" said)) said))))

(kernel-test with-little-memory
  (testing "a lack of memory is an error that names it"
    (with-directory
      (fn [dir]
        (let [file (str dir "/large.edn")]
          (spit file
                (str
                 "{:bpfmap/saved 1 :spec {:type :hash :key :u32 :value :u64 :max-entries 9} "
                 ":entries [\n"
                 (str/join (repeat 600000 "[1 2]\n")) "]}"))
          (let [said (in-little "true" ["-Xmx32m"]
                       `(do (require '[bpfmap.exec :as ~'exec] '[bpfmap.core :as ~'bpf])
                            (try (@(resolve 'exec/restore) {:file ~file :pin "/nonexistent"})
                                 (catch Throwable ~'e
                                   (println (:bpfmap/error (ex-data ~'e)) (ex-message ~'e))))
                            (let
                             [m# (@(resolve
                                    'bpf/create) {:type :hash :key :u32 :value :u64
                                                  :max-entries 200000})]
                              (@(resolve
                                 'bpf/put-all!) m# (eduction (map (fn [i#] [i# i#])) (range 10)))
                              (println (count (@(resolve 'bpf/snapshot) m#))))))]
            (is (str/includes? said
                               ":no-memory The text needs more memory than the JVM may use: give it more with the JVM's option -Xmx\n10\n") said)))))))
