(ns bpfmap.cli.launcher-test
  "bin/bpfmap as something to start: the compiled jar, and the JVM's cache, whatever state that is
  in."
  (:require [bpfmap.cli.main :as main]
            [bpfmap.fixture :as fixture]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing use-fixtures]])
  (:import (java.io File RandomAccessFile)
           (java.util.jar JarFile)))

(set! *warn-on-reflection* true)

(def ^:private script (str (.getAbsolutePath (io/file "bin/bpfmap"))))

;; Compiled, if it was not
(use-fixtures :once (fn [tests] (fixture/run [script "--version"]) (tests)))

(def ^:private good {:exit 0 :out (str "bpfmap " main/version "\n") :err ""})

(defn- version
  "Runs `bpfmap --version` with a folder for caches."
  [folder]
  (fixture/run [script "--version"] :env {"XDG_CACHE_HOME" (str folder)}))

(defn- java-command
  "The command with which the script starts the JVM, as words; from what bash prints of it."
  [folder]
  (let [{:keys [err]} (fixture/run ["bash" "-x" script "--version"] :env
                                   {"XDG_CACHE_HOME" (str folder)})]
    (str/split (subs (last (filter #(str/starts-with? % "+ exec ") (str/split-lines err))) 7)
               #" ")))

(defn- cache-in ^File [folder]
  (first (filter #(str/ends-with? (.getName ^File %) ".cache") (file-seq (io/file folder)))))

(defn- with-folder [f]
  (let [dir (fixture/temporary-directory)]
    (try
      (f dir)
      (finally (run! #(.delete ^File %) (reverse (file-seq dir)))))))

(defn- from-the-cache
  "Which of some classes the JVM takes from the script's cache, in a run of its own."
  [folder classes]
  (let [log (io/file folder "classes.log")
        command (remove #{"-Xlog:disable"} (java-command folder))]
    (fixture/run (into [(first command) (str "-Xlog:class+load:file=" log)] (rest command)))
    (let [shared (into {}
                       (keep #(let [[_ class source] (re-find #"\] (\S+) source: (.*)" %)]
                                (when class [class source])))
                       (str/split-lines (slurp log)))]
      (filter #(str/includes? (get shared % "") "shared objects file") classes))))

(deftest first-run-makes-cache
  (testing "the first run creates a JVM cache that later runs start from"
    (with-folder
      (fn [folder]
        (is (= good (version folder)))
        (is (pos? (.length (cache-in folder))))
        (let [made (.lastModified (cache-in folder))]
          (is (= good (version folder)))
          (is (= made (.lastModified (cache-in folder))) "it is not made again"))
        (is (= ["clojure.core__init" "bpfmap.cli.launcher" "bpfmap.cli.main__init"]
               (from-the-cache folder
                               ["clojure.core__init" "bpfmap.cli.launcher"
                                "bpfmap.cli.main__init"])))))))

(deftest cache-of-removed-jar
  (testing "removes the cache of a jar that is gone"
    (with-folder
      (fn [folder]
        (let [caches (io/file folder "bpfmap/start")
              names (fn [] (filter #(str/includes? % "gone") (.list caches)))]
          (.mkdirs caches)
          (doseq [[suffix text] {"cache" "40 MB" "cache.lock" ""
                                 "cache.state" "/no/such folder/gone.jar 1 2.0 2.0 3\n/usr 1 2.0 2.0 3\n"}]
            (spit (io/file caches (str "gone." suffix)) text))
          (is (= 3 (count (names))))
          (is (= good (version folder)))
          (is (= [] (names)))
          (is (pos? (.length (cache-in folder))) "and this one's is there"))))))

(defn- overwrite
  "Writes bytes into the middle of a file."
  [^File file]
  (with-open [f (RandomAccessFile. file "rw")]
    (.seek f (quot (.length f) 2))
    (.write f (byte-array 100000 (byte 85)))))

(deftest broken-cache-is-ignored
  (testing "a broken cache never breaks a run"
    (with-folder
      (fn [folder]
        (version folder)
        (let [cache (cache-in folder)
              whole (.length cache)
              modified (.lastModified cache)]
          (doseq [[how
                   break] {"with a hole, and dated back" #(do (overwrite cache)
                                                              (.setLastModified cache modified))
                           "cut off" #(with-open [f (RandomAccessFile. ^File cache "rw")]
                                        (.setLength f 100000))
                           "not a cache" #(spit cache "no cache")
                           "gone" #(.delete cache)}]
            (testing how
              (break)
              (is (= good (version folder)))
              (is (< (* 0.9 whole) (.length cache)) "it is made again")))
          (is (str/includes? (str/join " " (java-command folder)) (str cache))))))))

(deftest no-cache-directory
  (testing "works if there is no directory for the cache"
    (doseq [folder ["/dev/null" "/proc/nowhere"]]
      (is (= good (version folder)) folder))
    (is (= good (fixture/run ["env" "-u" "HOME" "-u" "XDG_CACHE_HOME" script "--version"])))))

(deftest concurrent-first-runs
  (testing "several concurrent first runs succeed"
    (with-folder
      (fn [folder]
        (is (= (repeat 3 good) (fixture/in-threads 3 (fn [_] (version folder)))))
        (is (= good (version folder)))
        (is (= 1 (count (filter #(str/ends-with? (str %) ".cache") (file-seq folder)))))
        (is (= [] (filter #(re-find #"\.(new|conf)$" (str %)) (file-seq folder)))
            "nothing is left behind")))))

(deftest compiled-code-in-jar
  (testing "the jar contains every namespace that commands load in compiled form"
    (version "/dev/null")
    (with-open [jar (JarFile. "target/bpfmap.jar")]
      (let [entries (set (map str (enumeration-seq (.entries jar))))
            has-source? (fn [entry]
                          (some #(entries (str/replace entry "__init.class" %)) [".clj" ".cljc"]))
            compiled (filter #(str/ends-with? % "__init.class") entries)]
        (is (every? entries
                    ["bpfmap/cli/launcher.class" "bpfmap/cli/main__init.class"
                     "bpfmap/core__init.class"
                     "bpfmap/sys/Native.class"
                     "clojure/data/json__init.class" "clojure/tools/cli__init.class"
                     "META-INF/LICENSE"]))
        (is (= [] (filter has-source? compiled)) "of source and class, the newer would be loaded")
        (is (not-any? #(re-find #"^(clojure/test/check|nrepl/)" %) entries))
        (is (= "bpfmap.cli.launcher"
               (.getValue (.getMainAttributes (.getManifest jar)) "Main-Class")))))))

(deftest jar-works-standalone
  (testing "the jar and its launcher work without the checkout"
    (with-folder
      (fn [folder]
        (version "/dev/null")
        (doseq [file ["bin/bpfmap" "target/bpfmap.jar"]]
          (io/copy (io/file file) (io/file folder (.getName (io/file file)))))
        (let [alone (io/file folder "bpfmap")]
          (.setExecutable alone true)
          (is (= good (fixture/run [(str alone) "--version"] :env {"XDG_CACHE_HOME" "/dev/null"
                                                                   "JAVA_HOME" (System/getProperty
                                                                                "java.home")})))
          (testing "whatever somebody has laid out in the folder above"
            (let [below (doto (io/file folder "bin") .mkdir)
                  copy (io/file below "bpfmap")]
              (doseq [file ["bpfmap" "bpfmap.jar"]]
                (io/copy (io/file folder file) (io/file below file)))
              (.setExecutable copy true)
              (doseq [file ["script/trust" "script/find-jdk" "build.clj"]]
                (doto (io/file folder file) io/make-parents (spit "echo evil; exit 3\n")))
              (is (= good
                     (fixture/run [(str copy) "--version"] :env
                                  {"JAVA_HOME" (System/getProperty "java.home")})))))
          (.delete (io/file folder "bpfmap.jar"))
          (is (= {:exit 1 :out ""
                  :err "bpfmap: There is no bpfmap.jar beside this script, and no checkout around it\n"}
                 (fixture/run [(str alone) "--version"]))))))))
