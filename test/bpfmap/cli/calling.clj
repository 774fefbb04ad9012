(ns bpfmap.cli.calling
  "The command line, called within this process by the tests."
  (:require [bpfmap.cli.main :as main]
            [bpfmap.core :as bpf]
            [bpfmap.impl.edn-text :as edn-text]
            [clojure.data.json :as json]
            [clojure.edn :as edn]
            [clojure.string :as str]
            [clojure.test :refer [is]])
  (:import (java.io StringWriter)))

(set! *warn-on-reflection* true)

(defn bpfmap-to
  "Runs the command line here, with a writer as standard output; {:exit :out :err}."
  [out & args]
  (let [err (StringWriter.)
        exit (binding [*out* out *err* err] (main/run (map str args)))]
    {:exit exit :out (str out) :err (str err)}))

(defn bpfmap
  "Runs the command line here; {:exit :out :err}."
  [& args]
  (apply bpfmap-to (StringWriter.) args))

(defn read-edn [text]
  (edn/read-string {:readers edn-text/readers} text))

(defn edn-of [& args]
  (let [{:keys [exit out err]} (apply bpfmap "--edn" args)]
    (is (= [0 ""] [exit err]))
    (read-edn out)))

(defn json-of [& args]
  (let [{:keys [exit out err]} (apply bpfmap "--json" args)]
    (is (= [0 ""] [exit err]))
    (json/read-str out)))

(defn lines-of
  "The lines that a command prints for people."
  [& args]
  (let [{:keys [exit out]} (apply bpfmap args)]
    (is (= 0 exit))
    (str/split-lines out)))

(defn refused
  "The exit code and the one line of a command that fails; nothing may be on stdout."
  [& args]
  (let [{:keys [exit out err]} (apply bpfmap args)]
    (is (= "" out))
    (is (str/ends-with? err "\n"))
    (is (= 1 (count (str/split-lines err))) err)
    [exit (str/trim-newline err)]))

(defn id-of [m]
  (:id (bpf/info m)))

(defn words [line]
  (str/split (str/trim line) #"\s+"))
