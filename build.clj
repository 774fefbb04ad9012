(ns build
  "Tasks that compile, test and package bpfmap, each run as

    bin/clj -T:build <task>

  With the official Clojure CLI, `clojure -T:build <task>` does the same."
  (:refer-clojure :exclude [test])
  (:require [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.tools.build.api :as b])
  (:import (clojure.lang ExceptionInfo)
           (java.io File PushbackReader)
           (java.lang ProcessHandle)
           (java.util.jar JarFile)))

(def lib "The name of the library in a Maven repository." 'io.github.bpfmap/bpfmap)
(def version
  "The version that `jar` and `install` give it; the command line prints the same."
  (str/trim (slurp "resources/bpfmap/version")))

;; Where another user can change target/, the scripts name a folder of the user's
;; own. The scripts know the names below; the first is also on the class path of
;; deps.edn and in its :deps/prep-lib.
(def ^:private target (System/getProperty "bpfmap.target" "target"))
(def ^:private class-dir (str target "/classes"))
(def ^:private stamp-file (str target "/javac.edn"))
(def ^:private launcher-file (str target "/bpfmap.jar"))
(def ^:private jar-dir (str target "/jar"))
(def ^:private jar-file (format "%s/%s-%s.jar" target (name lib) version))

(def ^:private oldest-jdk
  "The first JDK whose foreign function API is final (JEP 454)."
  22)

(def ^:private javac-opts
  ["--release" (str oldest-jdk) "-Xlint:all" "-Werror"])

(defn- fail
  "Ends the build with one line on stderr. The exit code is not 1 because
  `clojure -X:deps prep` takes that to mean that the task was not found."
  [& message]
  (binding [*out* *err*] (println (str/join message)))
  (System/exit 2))

(defn clean
  "Removes everything that was built, which is the folder target.

    bin/clj -T:build clean"
  [_]
  (b/delete {:path target}))

(defn- compilation
  "What the classes depend on, as data: each source with the time it was changed,
  and the options of javac."
  []
  {:opts    javac-opts
   :sources (into (sorted-map)
                  (for [^File file (file-seq (b/resolve-path "java"))
                        :when (str/ends-with? (.getName file) ".java")]
                    [(str file) (.lastModified file)]))})

(defn- compile-java
  "Compiles java/ into a folder of its own, which takes the place of target/classes
  only when all went well. So there is never half a target/classes, and none of its
  classes has lost its source. Clojure is not on javac's class path, because the
  Java core has no business with it."
  []
  (let [fresh (str class-dir "." (.pid (ProcessHandle/current)))]
    (try
      (b/javac {:src-dirs ["java"] :class-dir fresh :javac-opts javac-opts})
      (b/delete {:path class-dir})
      (when-not (.renameTo (b/resolve-path fresh) (b/resolve-path class-dir))
        (throw (ex-info (str "Cannot put the compiled classes in " class-dir
                             "; is another build at work?") {})))
      (catch ExceptionInfo e
        (b/delete {:path fresh})
        (fail (ex-message e))))))

(defn javac
  "Compiles the Java core in java/ to target/classes. Does nothing if no source was
  added, changed or removed since the last time. Any warning of javac is an error.

    bin/clj -T:build javac"
  [_]
  (let [wanted (pr-str (compilation))
        stamp  (b/resolve-path stamp-file)
        jdk    (.feature (Runtime/version))]
    (when-not (and (.exists ^File (b/resolve-path class-dir))
                   (.exists ^File stamp)
                   (= wanted (slurp stamp)))
      (when (< jdk oldest-jdk)
        (fail "bpfmap's Java core needs JDK " oldest-jdk " or newer to compile; this is JDK "
              jdk " at " (System/getProperty "java.home") "; set JAVA_HOME"))
      (compile-java)
      (spit stamp wanted))))

(defn- test-basis
  "With nREPL where it can be had: the tests of the rest need it not."
  []
  (try
    (b/create-basis {:aliases [:nrepl :test]})
    (catch Exception _
      (b/create-basis {:aliases [:test]}))))

(defn test
  "Compiles the Java core, then runs the tests in a JVM of their own, with the :test
  alias. The build fails if a test does.

  `:args` is a vector of further arguments to the test runner.

    bin/clj -T:build test"
  [{:keys [args]}]
  (javac nil)
  (let [basis   (test-basis)
        command (b/java-command
                 {:basis     basis
                  ;; the JDK that compiled the core, which need not be the PATH's
                  :java-cmd  (str (System/getProperty "java.home") "/bin/java")
                  :main      'clojure.main
                  :main-args (into (get-in basis [:argmap :main-opts]) (map str) args)})
        {:keys [exit]} (b/process command)]
    (when-not (zero? exit)
      (fail "The tests failed with exit code " exit))))

(defn jar
  "Builds the library's jar, target/bpfmap-<version>.jar: Clojure sources, resources,
  the compiled Java core, the licence, and a pom whose one dependency is Clojure.

    bin/clj -T:build jar"
  [_]
  (javac nil)
  (b/delete {:path jar-dir})
  (b/copy-dir {:src-dirs ["src" "resources" class-dir] :target-dir jar-dir})
  (b/copy-file {:src "LICENSE" :target (str jar-dir "/META-INF/LICENSE")})
  (b/write-pom {:class-dir jar-dir
                :lib       lib
                :version   version
                :basis     (b/create-basis {})
                :src-pom   :none
                :repos     {} ; Clojure is in Maven Central, the default
                :pom-data  [[:description "eBPF maps as Clojure data and collections."]
                            [:licenses
                             [:license
                              [:name "MIT License"]
                              [:url "https://opensource.org/license/mit"]
                              [:distribution "repo"]]]]})
  (b/jar {:class-dir jar-dir
          :jar-file  jar-file
          ;; The JVM heeds the second only in a jar started with java -jar; it is
          ;; there for those who make such a jar out of this one.
          :manifest  {"Automatic-Module-Name" "bpfmap"
                      "Enable-Native-Access"  "ALL-UNNAMED"}})
  (println "Built" jar-file))

;; --- the command line, compiled

(defn- ns-form [source]
  (with-open [reader (PushbackReader. (io/reader source))]
    (binding [*read-eval* false]
      (read {:read-cond :allow :features #{:clj}} reader))))

(defn- of-libraries
  "The namespaces that the jars have as source, but for those of Clojure itself, which its jar has compiled."
  [jars]
  (for [^JarFile jar jars
        entry (enumeration-seq (.entries jar))
        :let [source (re-find #"^(.*)\.cljc?$" (str entry))]
        :when (and source
                   (nil? (.getEntry jar (str (second source) "__init.class")))
                   (not (re-find #"^clojure/(core|parallel)|data_readers" (str entry))))]
    (second (ns-form (.getInputStream jar entry)))))

(defn- requires
  "The namespaces that the ns form of a file requires."
  [[_ _ & clauses]]
  (for [clause clauses :when (and (seq? clause) (= :require (first clause)))
        lib (rest clause)]
    (if (sequential? lib) (first lib) lib)))

(defn- path-of [ns-name]
  (str/replace (munge (str ns-name)) "." "/"))

(defn- found-in
  "Whether the jars of a class path have a namespace."
  [jars ns-name]
  (some (fn [^JarFile jar] (some #(.getEntry jar (str (path-of ns-name) %)) [".clj" ".cljc" "__init.class"])) jars))

(defn- compilable
  "The namespaces of src whose every requirement is in src or among the jars: those of the command line, and all that it may load
  on demand. What needs more, such as the generators of values, comes as source, and so do other edges: a class that is in the
  JVM's cache is loaded at every start."
  [jars]
  (let [forms (for [^File file (file-seq (b/resolve-path "src"))
                    :when (and (str/ends-with? (.getName file) ".clj") (not= "data_readers.clj" (.getName file)))]
                (ns-form file))
        all (into {} (for [[_ ns-name :as form] forms
                           :when (not (re-find #"^bpfmap\.(pod|nrepl|tool)\b" (str ns-name)))]
                       [ns-name (requires form)]))]
    (loop [kept (set (keys all))]
      (let [good (set (filter (fn [ns-name]
                                (every? #(if (all %) (kept %) (found-in jars %)) (all ns-name)))
                              kept))]
        (if (= good kept)
          (sort good)
          (recur good))))))

(def ^:private clojures-own
  "Namespaces of Clojure's that every start loads, and that are compiled anew with the others: see [[compiling]]. Those of
  clojure.spec are not: the compiler is using them."
  '[clojure.string clojure.edn clojure.walk clojure.set clojure.java.io clojure.instant clojure.uuid
    clojure.core.server clojure.main])

(def ^:private compiling
  "The program that compiles. What it changes of `ns` spares half of the time until a command begins: each of some sixty namespaces
  would put all names of clojure.core into a table of its own when it is loaded. Only the compiler looks there, so here they are
  put there while the `ns` form is expanded, and the compiled namespace does without."
  '(do
     (require 'clojure.java.io 'clojure.string 'clojure.walk)
     (let [[path namespaces again] (read-string (slurp (System/getProperty "bpfmap.compiling")))
           core? (fn [x]
                   (and (seq? x)
                        (or (= 'clojure.core/refer-clojure (first x))
                            (= '(clojure.core/refer 'clojure.core) x))))]
       (alter-var-root
        #'clojure.core/ns
        (fn [expand]
          (fn [form env ns-name & clauses]
            (clojure.walk/postwalk
             (fn [x]
               (if (and (seq? x) (some core? x))
                 (do (binding [*ns* (create-ns ns-name)] (run! eval (filter core? x)))
                     (apply list (remove core? x)))
                 x))
             (apply expand form env ns-name clauses)))))
       (binding [*compile-path* path
                 *compiler-options* {:direct-linking true :elide-meta [:file :line :column]}]
         (run! compile namespaces)
         (binding [*compile-files* true]
           (doseq [file (map #(str (.replace (str %) \. \/) ".clj") again)]
             (with-open [reader (clojure.java.io/reader (clojure.java.io/resource file))]
               (clojure.lang.Compiler/compile reader file (last (clojure.string/split file #"/"))))))))))

(defn- compile-ahead
  "Compiles namespaces into a folder, in a JVM of its own."
  [basis nses dir]
  (let [input (str dir ".edn")]
    (spit (b/resolve-path input) (pr-str [(str (b/resolve-path dir)) (vec nses) clojures-own]))
    (let [{:keys [exit]} (b/process (b/java-command {:basis basis
                                                     :cp [dir class-dir]
                                                     :java-cmd (str (System/getProperty "java.home") "/bin/java")
                                                     :java-opts [(str "-Dbpfmap.compiling=" (b/resolve-path input))]
                                                     :main 'clojure.main
                                                     :main-args ["-e" (pr-str compiling)]}))]
      (b/delete {:path input})
      (when-not (zero? exit)
        (fail "The command line could not be compiled")))))

(defn- files-in [dir]
  (filter #(.isFile ^File %) (file-seq (b/resolve-path dir))))

(defn- lay-out
  "Lays out in a folder what is in the launcher's jar, libraries too; returns the namespaces that are compiled."
  [dir basis]
  (let [jars (filter #(str/ends-with? % ".jar") (:classpath-roots basis))
        opened (mapv #(JarFile. ^String %) jars)
        nses (concat (of-libraries opened) (compilable opened))]
    (b/delete {:path dir})
    (doseq [jar jars]
      (b/unzip {:zip-file jar :target-dir dir}))
    (run! #(b/delete {:path (str dir "/META-INF/" %)}) ["MANIFEST.MF" "maven"])
    (b/copy-dir {:src-dirs ["src" "resources" class-dir] :target-dir dir})
    (b/copy-file {:src "LICENSE" :target (str dir "/META-INF/LICENSE")})
    (spit (b/resolve-path (str dir "/bpfmap/launcher.edn")) (pr-str (vec nses)))
    nses))

(defn- without-target
  "Leaves the compiled Java core out of the paths of deps.edn: it may be in another folder, and is laid out from there."
  [deps]
  (update deps :paths (fn [paths] (filterv #(not (str/starts-with? % "target/")) paths))))

(defn launcher
  "Builds the jar that bin/bpfmap starts, target/bpfmap.jar: the command line with all it needs, compiled ahead of time and
  linked directly, so that it starts at once. The library's own jar has sources instead: see [[jar]].

    bin/clj -T:build launcher"
  [_]
  (javac nil)
  (let [basis (b/create-basis {:aliases [:cli] :project (without-target (edn/read-string (slurp "deps.edn")))})
        mark (.pid (ProcessHandle/current))
        dir (str target "/launcher." mark)
        compiled (str target "/compiled." mark)
        fresh (str launcher-file "." mark)]
    (try
      (let [nses (lay-out dir basis)]
        (.mkdirs ^File (b/resolve-path compiled))
        (compile-ahead basis nses compiled)
        (b/copy-dir {:src-dirs [compiled] :target-dir dir})
        ;; Of a source and its class, the newer would be loaded.
        (doseq [^File file (files-in dir)
                :let [source (re-find #"(.*)\.cljc?$" (str file))]
                :when (and source (.exists (io/file (str (second source) "__init.class"))))]
          (.delete file))
        (b/jar {:class-dir dir
                :jar-file fresh
                :main 'bpfmap.launcher
                :manifest {"Enable-Native-Access" "ALL-UNNAMED"}})
        (when-not (.renameTo ^File (b/resolve-path fresh) (b/resolve-path launcher-file))
          (fail "Cannot put the jar in " launcher-file))
        (println "Built" launcher-file))
      (finally
        (run! #(b/delete {:path %}) [dir compiled fresh])))))

(defn install
  "Builds the jar and puts it into the local Maven repository, where other projects
  on this machine find it as `io.github.bpfmap/bpfmap {:mvn/version \"<version>\"}`.

    bin/clj -T:build install"
  [_]
  (jar nil)
  (b/install {:class-dir jar-dir
              :lib       lib
              :version   version
              :basis     (b/create-basis {})
              :jar-file  jar-file})
  (println "Installed" (str lib) version))
