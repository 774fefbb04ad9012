(ns bpfmap.first-run-test
  "A fresh checkout: every command of the documentation works as the first one."
  (:require [bpfmap.fixture :as fixture]
            [clojure.java.io :as io]
            [clojure.string :as str]
            [clojure.test :refer [deftest is testing]])
  (:import (java.io File)))

(set! *warn-on-reflection* true)

(def ^:private built #{"target" ".cpcache" ".git"})

(defn- copy-checkout
  "Copies the files of this checkout to a directory, except built files."
  [^File to]
  (doseq [^File part (.listFiles (io/file ".")) :when (not (built (.getName part)))
          ^File file (file-seq part) :when (.isFile file)]
    (let [target (io/file to (str/replace-first (str file) "./" ""))]
      (io/make-parents target)
      (io/copy file target)
      (.setExecutable target (.canExecute file)))))

(defn- delete-tree [dir]
  (run! #(.delete ^File %) (reverse (file-seq (io/file dir)))))

(defmacro ^:private with-checkout
  "Runs body with a fresh checkout in a temporary directory."
  [[dir] & body]
  `(let [~dir (fixture/temporary-directory)]
     (try
       (copy-checkout ~dir)
       ~@body
       (finally (delete-tree ~dir)))))

(deftest bin-has-only-commands-for-users
  (is (= #{"bpfmap" "pod-bpfmap" "test" "clj"} (set (.list (io/file "bin"))))))

(def ^:private path (System/getenv "PATH"))

(deftest fresh-checkout
  (testing "a fresh checkout compiles itself"
    (with-checkout [dir]
      (testing "for a REPL, with nothing but a JDK and Maven"
        (let [{:keys [exit out err]}
              (fixture/run ["bin/clj" "-M:dev" "-e" "(bpf/bpf-map? nil)"] :dir dir)]
          (is (= 0 exit) err)
          (is (str/ends-with? out "\nfalse\n") out)
          (is (str/includes? err "compiling the Java core, this once"))))
      (testing "and only once"
        (let [{:keys [exit out err]} (fixture/run ["bin/clj" "-X:exec" "features" ":print" "edn"]
                                                  :dir dir)]
          (is (= 0 exit) err)
          (is (str/starts-with? out "[") out)
          (is (not (str/includes? err "compiling")))))
      (testing "without bin/clj, an error says what to do"
        (delete-tree (io/file dir "target"))
        (let [class-path (str/trim (:out (fixture/run ["bin/clj" "-Spath" "-M:dev"] :dir dir)))
              java (str (System/getProperty "java.home") "/bin/java")
              {:keys [exit err]} (fixture/run [java "-cp" class-path "clojure.main" "-e" "1"] :dir
                                              dir)]
          (is (= 1 exit))
          (is (str/includes? err
                             "The Java core of bpfmap is not compiled: run bin/clj -T:build javac"))
          (is (not (str/includes? err "ClassNotFoundException"))))))))

;; --- every command, with the official CLI

(defn- documented
  "The commands with bin/clj in the documentation, each as a line for a shell."
  []
  (->> (concat (map io/file ["README.md" "CONTRIBUTING.md"])
               (.listFiles (io/file "doc"))
               (filter #(.isFile ^File %) (.listFiles (io/file "examples")))
               [(io/file "dev/user.clj") (io/file "deps.edn")])
       (mapcat #(re-seq #"bin/clj [^`\n,;]*" (slurp %)))
       (map #(str/trim (str/replace % #"  .*| -->.*|, .*|\.$|\)\.?$" "")))
       distinct
       sort))

(def ^:private official
  "Stands in for the official `clojure`, with tools.deps: it prepares the Java core as that does,
  from what was compiled before, and says whether there was one when it was to start a JVM."
  "#!/bin/bash
case \"$*\" in
  *'-T:build javac') mkdir -p target && cp -R \"$COMPILED\" target/classes && touch target/javac.edn ;;
  *) [[ -d target/classes ]] && echo compiled || echo 'not compiled' ;;
esac
")

(deftest documented-commands
  (testing "every documented command finds the Java core compiled"
    (with-checkout [dir]
      (let [commands (documented)
            cli (doto (io/file dir "official/clojure")
                  io/make-parents
                  (spit official)
                  (.setExecutable true))
            env {"PATH" (str (.getParent cli) ":" path)
                 "COMPILED" (str (.getAbsolutePath (io/file "target/classes")))}]
        (is (< 20 (count commands)) (pr-str commands))
        (doseq [command commands]
          (delete-tree (io/file dir "target"))
          (let [{:keys [exit out err]} (fixture/run ["bash" "-c" command] :dir dir :env env)
                tool? (str/includes? command " -T")]
            (is (= 0 exit) (str command err))
            (when-not tool?
              (is (= "compiled\n" out) command)
              (is (= "bpfmap: compiling the Java core, this once\n" err) command))))))))

(deftest commands-without-jvm
  (testing "commands that start no JVM compile nothing"
    (with-checkout [dir]
      (let [cli (doto (io/file dir "official/clojure")
                  io/make-parents
                  (spit official)
                  (.setExecutable true))
            env {"PATH" (str (.getParent cli) ":" path)}]
        (doseq [command ["-Spath -M:dev" "-A:dev -Spath" "-Sdeps '{}' -P -M:dev" "-X:deps prep"
                         "-T:build clean" "--version"]]
          (is (= {:exit 0 :out "not compiled\n" :err ""}
                 (fixture/run ["bash" "-c" (str "bin/clj " command)] :dir dir :env env))
              command))
        (testing "nor does another project"
          (let [project (doto (io/file dir "project") .mkdir)]
            (is (= {:exit 0 :out "not compiled\n" :err ""}
                   (fixture/run ["../bin/clj" "-M" "-e" "1"] :dir project :env env)))))))))
