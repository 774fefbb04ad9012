(ns build
  "Tasks that compile, test and package bpfmap, each run as

    bin/clj -T:build <task>

  With the official Clojure CLI, `clojure -T:build <task>` does the same."
  (:refer-clojure :exclude [test])
  (:require [build.launcher :as launcher]
            [clojure.string :as str]
            [clojure.tools.build.api :as b])
  (:import (clojure.lang ExceptionInfo)
           (java.io File)
           (java.lang ProcessHandle)))

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

(defn launcher
  "Builds the jar that bin/bpfmap starts, target/bpfmap.jar: the command line with all it needs, compiled ahead of time and
  linked directly, so that it starts at once. The steps are in build/launcher.clj. The library's own jar has sources
  instead: see [[jar]].

    bin/clj -T:build launcher"
  [_]
  (javac nil)
  (try
    (launcher/build {:target target :class-dir class-dir :jar-file launcher-file})
    (catch ExceptionInfo e
      (fail (ex-message e))))
  (println "Built" launcher-file))

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
