(ns bpfmap.robust-test
  "What may happen to a process at any moment: interrupts, kill -9, a full disk, no descriptors, little memory."
  (:require [bpfmap.core :as bpf]
            [bpfmap.exec :as exec]
            [bpfmap.exec.saving :as saving]
            [bpfmap.fixture :as fixture :refer [kernel-test]]
            [bpfmap.host :as host]
            [bpfmap.pod :as pod]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io ByteArrayInputStream ByteArrayOutputStream Closeable File)
           (java.util Random)
           (java.util.concurrent TimeUnit)))

(set! *warn-on-reflection* true)

(defn- with-directory [f]
  (let [dir (fixture/temporary-directory)]
    (try
      (f (str dir))
      (finally (run! #(.delete ^File %) (reverse (file-seq dir)))))))

;; --- interrupts

(defn- interrupted
  "What f returns, or the error that it throws, on a thread that was interrupted; and whether the thread still is."
  [f]
  (let [result (promise)]
    (doto (Thread. (fn []
                     (.interrupt (Thread/currentThread))
                     (deliver result [(try (f) (catch Throwable e [(:bpfmap/error (ex-data e) (class e)) (ex-message e)]))
                                      (Thread/interrupted)])))
      (.start)
      (.join))
    @result))

(kernel-test an-interrupt-changes-no-answer-and-closes-nothing
  (with-directory
    (fn [dir]
      (let [file (str dir "/a.edn")]
        (with-open [^Closeable m (bpf/create {:name "interrupts" :type :hash :key :u32 :value :u64 :max-entries 64 :contents {1 10}})]
          (let [id (:id (bpf/info m))
                plain #(dissoc % :memlock)]
            (doseq [[what f] {"info" #(plain (bpf/info m))
                              "opening" #(with-open [^Closeable o (bpf/open id)] (bpf/spec o))
                              "the list" #(plain (first (filter (comp #{id} :id) (host/maps))))
                              "holders" #(map :pid (get (host/holders) id))
                              "pins" #(count (host/pins (fixture/bpffs)))
                              "creating" #(with-open [^Closeable o (bpf/create {:type :array :value :u32 :max-entries 1})] (bpf/snapshot o))
                              "many" #(do (bpf/put-all! m {2 20, 3 30}) (bpf/delete-all! m [2 3]) (bpf/snapshot m))
                              "show" #(:entries (exec/show {:ref id}))}]
              (testing what
                (is (= [(f) true] (interrupted f)))))
            (testing "a file"
              (exec/save {:ref id :file file})
              (let [before (slurp file)
                    message (str file " cannot be written: the thread was interrupted")]
                (is (= [[:io message] true] (interrupted #(exec/save {:ref id :file file}))))
                (is (= before (slurp file)))
                (is (= [0 true] (update (interrupted #(exec/restore {:file file :into id :yes true})) 0 :changed)))
                (is (= ["a.edn"] (seq (.list (io/file dir)))) "nothing is left beside it")))
            (is (= {1 10} (bpf/snapshot m)) "and the map is still open")))))))

;; --- the pod

(defn run-malformed
  "Has a pod read n streams, each a message that was made invalid at random; returns those that did not end in an answer or in exit code 1 or 0."
  [n seed]
  (let [random (Random. seed)
        seeds ["d2:op8:describee" "d2:op6:invoke2:id1:13:var21:pod.bpfmap.type/size4:args6:[:u32]e" "d2:op8:shutdowne"
               "d2:op6:invoke2:id1:24:args5:[nil]3:var31:pod.bpfmap.feature/possible-cpuse"]
        mutate (fn [^bytes message]
                 (let [message (aclone message)]
                   (dotimes [_ (inc (.nextInt random 4))]
                     (aset message (.nextInt random (alength message)) (unchecked-byte (.nextInt random 256))))
                   (if (zero? (.nextInt random 3)) (java.util.Arrays/copyOf message (.nextInt random (alength message))) message)))]
    (into []
          (keep (fn [_]
                  (let [bytes (mutate (.getBytes ^String (rand-nth seeds) "ISO-8859-1"))
                        err (java.io.StringWriter.)
                        exit (binding [*err* err, *out* err]
                               (try (pod/serve (ByteArrayInputStream. bytes) (ByteArrayOutputStream.)) (catch Throwable e e)))]
                    (when-not (and (contains? #{0 1} exit) (not (str/includes? (str err) "Exception")))
                      {:message (String. ^bytes bytes "ISO-8859-1") :exit exit :err (str err)}))))
          (range n))))

(deftest malformed-messages-end-a-pod-or-are-answered
  (let [seed (System/nanoTime)]
    (testing (str "seed " seed)
      (is (= [] (take 3 (run-malformed 300 seed)))))))

;; --- kill -9

(def ^:private child
  "What a child does over and over until it is killed: saves, restores, writes and drains; its ids and files are in the system property."
  '(do (require '[bpfmap.core :as bpf] '[bpfmap.exec :as exec])
       (let [{:keys [a b file into pin writable]} (read-string (System/getProperty "child"))
             m (bpf/open writable)]
         (println "ready")
         (flush)
         (loop [n 0]
           (exec/save {:ref (if (even? n) a b) :file file})
           (exec/restore {:file file :into into :yes true})
           (bpf/put-all! m (for [i (range 64)] [i n]))
           (bpf/drain! m)
           (with-open [p (bpf/create {:name "killed" :type :array :value :u32 :max-entries 1 :pinning :by-name :pin-root pin})]
             (bpf/unpin! p))
           (recur (inc n))))))

(defn run-kills
  "Kills a process with SIGKILL n times while it saves, restores, writes, drains and pins; returns what was neither old nor new."
  [n]
  (let [found (atom [])
        pin (fixture/bpffs)]
    (with-directory
      (fn [dir]
        (let [file (str dir "/a.edn")
              out (io/file dir "said")
              entries (fn [from] (into {} (for [i (range 2000)] [i (+ from i)])))
              spec {:type :hash :key :u32 :value :u64 :max-entries 4096}]
          (with-open [^Closeable a (bpf/create (assoc spec :name "old" :contents (entries 0)))
                      ^Closeable b (bpf/create (assoc spec :name "new" :contents (entries 1000000)))
                      ^Closeable into-map (bpf/create (assoc spec :name "into" :contents (entries 0)))
                      ^Closeable m (bpf/create (assoc spec :name "writes"))]
            (let [id #(:id (bpf/info %))
                  good #{(entries 0) (entries 1000000)}
                  args {:a (id a) :b (id b) :file file :into (id into-map) :writable (id m) :pin pin}]
              (dotimes [_ n]
                (let [process (.start (doto (ProcessBuilder.
                                             ^java.util.List
                                             (vector (str (System/getProperty "java.home") "/bin/java") "--enable-native-access=ALL-UNNAMED" "-XX:+UseSerialGC"
                                              "-XX:TieredStopAtLevel=1" (str "-Dchild=" (pr-str args))
                                              "-cp" (System/getProperty "java.class.path") "clojure.main" "-e" (pr-str child)))
                                        (.redirectErrorStream true)
                                        (.redirectOutput out)))]
                  (loop [] (when (and (.isAlive process) (= "" (slurp out))) (Thread/sleep 20) (recur)))
                  (.waitFor process (long (rand-int 400)) TimeUnit/MILLISECONDS)
                  (.destroyForcibly process)
                  (.waitFor process)
                  (when-not (= "ready\n" (slurp out)) (swap! found conj [:said (slurp out)]))
                  (when (.exists (io/file file))
                    (let [saved (try (into {} (:entries (saving/read-file file))) (catch Throwable e e))]
                      (when-not (good saved) (swap! found conj [:file saved]))))
                  (doseq [[k v] (bpf/snapshot into-map)]
                    (when-not (#{k (+ 1000000 (long k))} v) (swap! found conj [:into k v])))
                  (when-not (every? (set (range 64)) (keys (bpf/snapshot m))) (swap! found conj [:map (bpf/snapshot m)]))
                  (let [pinned (io/file pin "killed")]
                    (when (.exists pinned)
                      (with-open [^Closeable p (bpf/open (str pinned))]
                        (when-not (= :array (:type (bpf/info p))) (swap! found conj [:pin (bpf/info p)])))
                      (.delete pinned)))))
              (let [left (remove #{"a.edn" "said"} (.list (io/file dir)))]
                (swap! found into (for [f left :when (not (re-find #"^\.a\.edn\.\d+\.part$" f))] [:left f]))))))))
    @found))

(kernel-test a-killed-process-leaves-the-old-or-the-new
  (is (= [] (run-kills 3))))

;; --- no room

(kernel-test a-full-disk-leaves-the-file-as-it-was
  (with-directory
    (fn [dir]
      (let [{:keys [exit]} (fixture/run ["mount" "-t" "tmpfs" "-o" "size=64k" "tmpfs" dir])
            file (str dir "/a.edn")]
        (is (= 0 exit))
        (try
          (with-open [^Closeable small (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 4 :contents {1 1}})
                      ^Closeable large (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 20000
                                                    :contents (into {} (for [i (range 20000)] [i i]))})]
            (exec/save {:ref (:id (bpf/info small)) :file file})
            (let [before (slurp file)
                  e (fixture/error-of (exec/save {:ref (:id (bpf/info large)) :file file}))]
              (is (= [:io (str file " cannot be written: No space left on device")] ((juxt :bpfmap/error :message) e)))
              (is (= before (slurp file)))
              (is (= ["a.edn"] (seq (.list (io/file dir)))))))
          (finally (fixture/run ["umount" "-l" dir])))))))

(defn- in-little
  "Runs forms in a JVM of its own, under a limit of the shell and with options of the JVM; what it prints."
  [limit options form]
  (let [{:keys [out err]} (fixture/run (into ["bash" "-c" (str limit "; exec \"$@\"") "bash" (str (System/getProperty "java.home") "/bin/java")
                                              "--enable-native-access=ALL-UNNAMED" "-XX:+UseSerialGC"]
                                             (concat options ["-cp" (System/getProperty "java.class.path") "clojure.main" "-e" (pr-str form)])))]
    (str out err)))

(kernel-test without-descriptors-each-operation-says-so
  (let [said (in-little "ulimit -n 40" []
               '(do (require '[bpfmap.core :as bpf] '[bpfmap.exec :as exec] '[bpfmap.host :as host] '[bpfmap.feature :as feature] 'bpfmap.exec.saving)
                    (let [spec {:name "few" :type :hash :key :u32 :value :u64 :max-entries 8 :contents {1 2}}
                          m (bpf/create spec)
                          id (:id (bpf/info m))
                          attempt (fn [what f]
                                    (try (f) (catch Throwable e
                                               (when-not (:bpfmap/error (ex-data e))
                                                 (println "INTERNAL" what e)))))
                          ops {"create" #(bpf/create spec) "open" #(bpf/open id) "clone" #(bpf/clone m) "info" #(bpf/info m)
                               "list" #(exec/list {}) "show" #(exec/show {:ref id}) "dump" #(exec/dump {:ref id})
                               "save" #(exec/save {:ref id :file "/tmp/bpfmap-few.edn"}) "snapshot" #(bpf/snapshot m)
                               "holders" #(host/holders) "put-all!" #(bpf/put-all! m {1 3}) "drain!" #(bpf/drain! m)}]
                      (doseq [[what f] ops] (attempt what f)) ; loaded, all of it
                      (bpf/put-all! m {1 2})
                      (let [held (loop [held []]
                                   (if-let [o (try (bpf/clone m) (catch clojure.lang.ExceptionInfo e (println (:bpfmap/error (ex-data e)) (ex-message e))))]
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
    (is (not (re-find #"INTERNAL|please report" said)) said)))

(kernel-test little-memory-is-an-error-that-says-so
  (with-directory
    (fn [dir]
      (let [file (str dir "/large.edn")]
        (spit file (str "{:bpfmap/saved 1 :spec {:type :hash :key :u32 :value :u64 :max-entries 9} :entries [\n"
                        (str/join (repeat 600000 "[1 2]\n")) "]}"))
        (let [said (in-little "true" ["-Xmx32m"]
                     `(do (require '[bpfmap.exec :as ~'exec] '[bpfmap.core :as ~'bpf])
                          (try (@(resolve 'exec/restore) {:file ~file :pin "/nonexistent"})
                               (catch Throwable ~'e (println (:bpfmap/error (ex-data ~'e)) (ex-message ~'e))))
                          (let [m# (@(resolve 'bpf/create) {:type :hash :key :u32 :value :u64 :max-entries 200000})]
                            (@(resolve 'bpf/put-all!) m# (eduction (map (fn [i#] [i# i#])) (range 10)))
                            (println (count (@(resolve 'bpf/snapshot) m#))))))]
          (is (str/includes? said ":no-memory The text needs more memory than the JVM may use: give it more with the JVM's option -Xmx\n10\n") said))))))
