(ns bpfmap.launcher
  "Where `target/bpfmap.jar` begins: the command line, without the detours of `clojure.main`.

  `bin/bpfmap` starts it. With the system property `bpfmap.training`, all that a command may load is loaded first, for the
  JVM to keep in its cache."
  (:require [clojure.edn :as edn]
            [clojure.java.io :as io])
  (:gen-class))

(set! *warn-on-reflection* true)

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
  (when (System/getProperty "bpfmap.training")
    (load-everything))
  (apply (requiring-resolve 'bpfmap.cli/-main) args))
