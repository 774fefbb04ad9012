(ns ^:no-doc bpfmap.cli.launcher
  "The main class of `target/bpfmap.jar`, which `bin/bpfmap` starts: the command line without
  `clojure.main`.

  With the system property `bpfmap.training`, it first loads every namespace that a command may
  need, so that the JVM keeps them in its cache."
  (:require [clojure.edn :as edn]
            [clojure.java.io :as io])
  (:gen-class))

(set! *warn-on-reflection* true)

(defn- load-everything []
  (run! require (edn/read-string (slurp (io/resource "bpfmap/launcher.edn")))))

(defn- link-in-background
  "Links the C library on another thread, while namespaces are loaded.

  Linking takes a third of the time that loading takes."
  []
  ;; The first call that needs the library throws the same error.
  (doto (Thread. (fn [] (try (Class/forName "bpfmap.sys.Native") (catch Throwable _))) "linking")
    (.setDaemon true)
    (.start)))

(defn -main
  "Runs the command line: see `bpfmap.cli.main/-main`."
  [& args]
  (link-in-background)
  (when (System/getProperty "bpfmap.training")
    (load-everything))
  (apply (requiring-resolve 'bpfmap.cli.main/-main) args))
