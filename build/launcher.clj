(ns build.launcher
  "Builds target/bpfmap.jar, which bin/bpfmap starts.

  The steps:
  1. List the namespaces to compile: all of the libraries, and those of src that the command line may load.
  2. Lay out the contents of the jar in a folder: libraries, sources, resources, the Java core.
  3. Compile the namespaces in a JVM of their own, by build/compile.clj.
  4. Add the classes, and remove each source that has one.
  5. Pack the folder, and put the jar in place."
  (:require [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.tools.build.api :as b])
  (:import (java.io File PushbackReader)
           (java.lang ProcessHandle)
           (java.util.jar JarFile)))

(set! *warn-on-reflection* true)

(defn- ns-form [source]
  (with-open [reader (PushbackReader. (io/reader source))]
    (binding [*read-eval* false]
      (read {:read-cond :allow :features #{:clj}} reader))))

(defn- files-in [dir]
  (filter #(.isFile ^File %) (file-seq (b/resolve-path dir))))

;; --- the namespaces to compile

(defn- library-namespaces
  "Returns the namespaces that the jars have as source, except Clojure's own, which its jar has compiled."
  [jars]
  (for [^JarFile jar jars
        entry (enumeration-seq (.entries jar))
        :let [source (re-find #"^(.*)\.cljc?$" (str entry))]
        :when (and source
                   (nil? (.getEntry jar (str (second source) "__init.class")))
                   (not (re-find #"^clojure/(core|parallel)|data_readers" (str entry))))]
    (second (ns-form (.getInputStream jar entry)))))

(defn- requires
  "Returns the namespaces that an ns form requires."
  [[_ _ & clauses]]
  (for [clause clauses :when (and (seq? clause) (= :require (first clause)))
        lib (rest clause)]
    (if (sequential? lib) (first lib) lib)))

(defn- path-of [ns-name]
  (str/replace (munge (str ns-name)) "." "/"))

(defn- in-jars?
  "Returns true if one of the jars has a namespace, as source or compiled."
  [jars ns-name]
  (some (fn [^JarFile jar]
          (some #(.getEntry jar (str (path-of ns-name) %)) [".clj" ".cljc" "__init.class"]))
        jars))

(defn- source-namespaces
  "Returns the namespaces of src to compile: those whose every dependency is in src or in the jars.

  Other edges than the command line stay sources, and so does what needs more than the jars, such as the
  generators of values: every class in the JVM's cache is loaded at every start."
  [jars]
  (let [forms (for [^File file (files-in "src")
                    :when (and (str/ends-with? (.getName file) ".clj")
                               (not= "data_readers.clj" (.getName file)))]
                (ns-form file))
        all (into {} (for [[_ ns-name :as form] forms
                           :when (not (re-find #"^bpfmap\.(pod|nrepl|tool|metrics)\b" (str ns-name)))]
                       [ns-name (requires form)]))]
    (loop [kept (set (keys all))]
      (let [good (set (filter (fn [ns-name]
                                (every? #(if (all %) (kept %) (in-jars? jars %)) (all ns-name)))
                              kept))]
        (if (= good kept)
          (sort good)
          (recur good))))))

;; --- the steps

(defn- lay-out
  "Lays out the contents of the jar in a folder, except what is compiled. Returns the namespaces to compile, which
  are also in the file bpfmap/launcher.edn of the folder."
  [dir class-dir basis]
  (let [jars (filter #(str/ends-with? % ".jar") (:classpath-roots basis))
        opened (mapv #(JarFile. ^String %) jars)
        namespaces (vec (concat (library-namespaces opened) (source-namespaces opened)))]
    (b/delete {:path dir})
    (doseq [jar jars]
      (b/unzip {:zip-file jar :target-dir dir}))
    (run! #(b/delete {:path (str dir "/META-INF/" %)}) ["MANIFEST.MF" "maven"])
    (b/copy-dir {:src-dirs ["src" "resources" class-dir] :target-dir dir})
    (b/copy-file {:src "LICENSE" :target (str dir "/META-INF/LICENSE")})
    (spit (b/resolve-path (str dir "/bpfmap/launcher.edn")) (pr-str namespaces))
    namespaces))

(defn- compile-namespaces
  "Compiles namespaces into a folder, in a JVM of its own."
  [basis class-dir namespaces dir]
  (.mkdirs ^File (b/resolve-path dir))
  (let [command (b/java-command {:basis basis
                                 :cp [dir class-dir]
                                 :java-cmd (str (System/getProperty "java.home") "/bin/java")
                                 :main 'clojure.main
                                 :main-args (into ["build/compile.clj" (str (b/resolve-path dir))]
                                                  (map str)
                                                  namespaces)})
        {:keys [exit]} (b/process command)]
    (when-not (zero? exit)
      (throw (ex-info "The command line could not be compiled" {})))))

(defn- remove-compiled-sources
  "Removes each source of a folder that has a class: of both, Clojure would load the newer."
  [dir]
  (doseq [^File file (files-in dir)
          :let [source (re-find #"(.*)\.cljc?$" (str file))]
          :when (and source (.exists (io/file (str (second source) "__init.class"))))]
    (.delete file)))

(defn- without-target
  "Removes the compiled Java core from the paths of deps.edn: it may be in another folder, and is laid out from there."
  [deps]
  (update deps :paths (fn [paths] (filterv #(not (str/starts-with? % "target/")) paths))))

(defn build
  "Builds the jar from the checkout and the compiled Java core in `:class-dir`. Other folders are made below `:target`,
  and removed. The jar takes its place only when it is whole."
  [{:keys [target class-dir jar-file]}]
  (let [basis (b/create-basis {:aliases [:cli] :project (without-target (edn/read-string (slurp "deps.edn")))})
        pid (.pid (ProcessHandle/current))
        dir (str target "/launcher." pid)
        compiled (str target "/compiled." pid)
        new-jar (str jar-file "." pid)]
    (try
      (let [namespaces (lay-out dir class-dir basis)]
        (compile-namespaces basis class-dir namespaces compiled))
      (b/copy-dir {:src-dirs [compiled] :target-dir dir})
      (remove-compiled-sources dir)
      (b/jar {:class-dir dir
              :jar-file new-jar
              :main 'bpfmap.cli.launcher
              :manifest {"Enable-Native-Access" "ALL-UNNAMED"}})
      (when-not (.renameTo ^File (b/resolve-path new-jar) (b/resolve-path jar-file))
        (throw (ex-info (str "Cannot put the jar in " jar-file) {})))
      (finally
        (run! #(b/delete {:path %}) [dir compiled new-jar])))))
