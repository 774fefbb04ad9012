(ns bpfmap.build-test
  "The published library as others use it: the jar, and the checkout as a local dependency."
  (:require [bpfmap.fixture :as fixture]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io File)
           (java.util.jar JarFile)))

(set! *warn-on-reflection* true)

(def ^:private main-job
  "The library's main job in a few lines, or that it can be loaded where there are no privileges
  for more."
  (if (fixture/kernel-missing)
    "(require 'bpfmap.core) (println {7 42})"
    "(require '[bpfmap.core :as bpf])
     (with-open [m (bpf/create {:type :hash :key :u32 :value :u64 :max-entries 8})]
       (bpf/put! m 7 42)
       (println (into {} m)))"))

(def ^:private classpath (System/getProperty "java.class.path"))

(def ^:private clojure-alone
  (str/join ":"
            (filter #(re-find #"/clojure-\d|spec\.alpha|core\.specs\.alpha" %)
                    (str/split classpath #":"))))

(deftest jar-needs-only-clojure
  (testing "the jar works with Clojure alone"
    (let [{:keys [exit out err]} (fixture/run ["bin/clj" "-T:build" "jar"])
          jar-path (second (re-find #"Built (\S+)" out))]
      (is (= 0 exit) err)
      (with-open [jar (JarFile. ^String jar-path)]
        (let [manifest (.getMainAttributes (.getManifest jar))
              entries (set (map str (enumeration-seq (.entries jar))))
              pom (slurp (.getInputStream jar
                                          (.getEntry jar
                                                     "META-INF/maven/io.github.bpfmap/bpfmap/pom.xml")))]
          (is (= "bpfmap" (.getValue manifest "Automatic-Module-Name")))
          (is (= "ALL-UNNAMED" (.getValue manifest "Enable-Native-Access")))
          (is (every? entries
                      ["bpfmap/core.clj" "bpfmap/maps/BpfMap.class" "bpfmap/sys/Native.class"
                       "data_readers.clj"
                       "META-INF/LICENSE"]))
          (is (not-any? #(re-find #"_test|test_runner|\.java$" %) entries))
          (is (= ["clojure"]
                 (map second
                      (re-seq #"<dependency>\s*<groupId>[^<]*</groupId>\s*<artifactId>([^<]*)"
                              pom))))
          (is (str/includes? pom "MIT"))))
      (let [{:keys [exit out err]} (fixture/run [(str (System/getProperty "java.home") "/bin/java")
                                                 "--enable-native-access=ALL-UNNAMED"
                                                 "-cp" (str jar-path ":" clojure-alone)
                                                 "clojure.main" "-e" main-job])]
        (is (= [0 "{7 42}\n" ""] [exit out err]))))))

(defn- copy-tree [^File from ^File to]
  (doseq [^File file (file-seq from) :when (.isFile file)]
    (let [target (io/file to (str (.relativize (.toPath from) (.toPath file))))]
      (io/make-parents target)
      (io/copy file target)
      (.setExecutable target (.canExecute file)))))

(deftest local-dependency
  (testing "a checkout works as a local dependency after it is prepared"
    (let [dir (fixture/temporary-directory)
          library (io/file dir "library")
          project (io/file dir "project")
          clj (str (.getAbsolutePath (io/file "bin/clj")))]
      (try
        (doseq [part ["java" "src" "resources" "build"]]
          (copy-tree (io/file part) (io/file library part)))
        (doseq [file ["deps.edn" "build.clj" "LICENSE"]]
          (io/copy (io/file file) (io/file library file)))
        (.mkdir project)
        (spit (io/file project "deps.edn")
              (pr-str '{:deps {io.github.bpfmap/bpfmap {:local/root "../library"}}}))
        (testing "before"
          (let [{:keys [exit err]} (fixture/run [clj "-Spath"] :dir project)]
            (is (not= 0 exit))
            (is (re-find #"(?i)prep" err))))
        (testing "preparing it"
          (let [{:keys [exit err out]} (fixture/run [clj "-X:deps" "prep"] :dir project)]
            (is (= 0 exit) (str out err)))
          (is (.exists (io/file library "target/classes/bpfmap/sys/Native.class"))))
        (testing "after"
          (let [{:keys [exit out err]} (fixture/run [clj "-J--enable-native-access=ALL-UNNAMED" "-M"
                                                     "-e" main-job] :dir project)]
            (is (= [0 "{7 42}\n"] [exit out]) err)))
        (finally
          (run! #(.delete ^File %) (reverse (file-seq dir))))))))
