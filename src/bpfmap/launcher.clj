(ns bpfmap.launcher
  "Where `target/bpfmap.jar` begins: the command line, without the detours of `clojure.main`.

  `bin/bpfmap` starts it. With the system property `bpfmap.training`, all that a command may load is loaded first, for the
  JVM to keep in its cache."
  (:require [clojure.edn :as edn]
            [clojure.java.io :as io]
            [clojure.string :as str])
  (:gen-class))

(set! *warn-on-reflection* true)

(defn- load-compiled
  "Loads a namespace, by its path, if it is compiled into the jar; whether it is."
  [path]
  (try
    (binding [*ns* *ns*, *warn-on-reflection* *warn-on-reflection*, *unchecked-math* *unchecked-math*]
      (Class/forName (str (str/replace (subs path 1) "/" ".") "__init"))
      true)
    (catch ClassNotFoundException _ false)))

(defn- load-at-once
  "Has Clojure load what is compiled without looking for three files first, through all modules of the JDK, to find out which is
  the newest: in this jar there is one. That took 16 ms of 300."
  []
  (alter-var-root #'load
    (fn [load]
      (fn [& paths]
        (run! #(when-not (and (str/starts-with? % "/") (load-compiled %)) (load %)) paths)))))

(defn- load-everything []
  (run! require (edn/read-string (slurp (io/resource "bpfmap/launcher.edn")))))

(defn- link-beside
  "Has a thread of its own link the C library meanwhile, which takes as long as a third of all namespaces."
  []
  (doto (Thread. (fn [] (try (Class/forName "bpfmap.sys.Native") (catch Throwable _))) "linking") ; who needs it will hear why not
    (.setDaemon true)
    (.start)))

(defn -main
  "As `bpfmap.cli/-main`."
  [& args]
  (link-beside)
  (load-at-once)
  (when (System/getProperty "bpfmap.training")
    (load-everything))
  (apply (requiring-resolve 'bpfmap.cli/-main) args))
