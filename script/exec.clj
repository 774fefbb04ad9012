(ns clojure.run.exec
  "Calls one function with one map, as told by the command line and the aliases:
  what stands behind -X and -T of the Clojure CLI. The official namespace comes
  only with the CLI, not from Maven Central; `bin/clj` loads this one where the
  CLI is missing. It bears the official name because tools ask it for
  `*ns-default*` and `*ns-aliases*`."
  (:require [clojure.edn :as edn]
            [clojure.java.basis :as basis]
            [clojure.string :as str])
  (:import (java.io FileNotFoundException)
           (java.util.concurrent Executors)))

(set! *warn-on-reflection* true)

(def ^:dynamic *ns-default*
  "The namespace of a function named without one, from the alias, or nil."
  nil)

(def ^:dynamic *ns-aliases*
  "Short names for namespaces, symbol to symbol, from the alias, or nil."
  nil)

(defn- refuse
  "Throws what `-main` prints as one line."
  [& message]
  (throw (ex-info (str/join message) {::refused true})))

(defn- read-arg [text]
  (try
    (edn/read-string {:default tagged-literal} text)
    (catch RuntimeException _
      (refuse "Cannot read the argument as EDN: " text))
    (catch StackOverflowError _
      (refuse "Cannot read the argument as EDN: it is nested too deep"))))

(defn- parse
  "Splits the arguments `[f] [key value]… [map]`. A key that is a vector is a path."
  [args]
  (let [[f more]   (if (symbol? (first args)) [(first args) (rest args)] [nil args])
        odd        (odd? (count more))
        trailing   (when odd (last more))]
    (when (and odd (not (map? trailing)))
      (refuse "No value for the key " (pr-str trailing)))
    {:f f, :overrides (partition 2 more), :trailing trailing}))

(defn- override [args [k v]]
  (if (vector? k) (assoc-in args k v) (assoc args k v)))

(defn- qualify [f]
  (let [ns-name (some-> (namespace f) symbol)]
    (cond
      ns-name      (symbol (str (get *ns-aliases* ns-name ns-name)) (name f))
      *ns-default* (symbol (str *ns-default*) (name f))
      :else        (refuse "Cannot tell the namespace of the function " f
                           "; write ns/" f ", or give the alias a :ns-default"))))

(defn- find-function [f]
  (try
    (or (requiring-resolve f)
        (refuse "The namespace " (namespace f) " has no function " (name f)))
    (catch FileNotFoundException e
      (refuse "Cannot load the namespace " (namespace f) ": " (ex-message e)))))

(defn- let-futures-end
  "Has futures and agents run on daemon threads. On the usual ones, a function
  that used a future would keep the JVM alive for a minute after it returned."
  []
  (set-agent-send-off-executor!
   (Executors/newCachedThreadPool (.factory (.daemon (Thread/ofPlatform))))))

(defn -main
  "Finds the function, puts its map together (`:exec-args`, then keys and values,
  then the trailing map) and calls it."
  [& args]
  (try
    (let [{:keys [exec-fn exec-args ns-default ns-aliases]} (:argmap (basis/initial-basis))
          {:keys [f overrides trailing]} (parse (map read-arg args))
          f   (or f exec-fn (refuse "No function given, and none as the alias's :exec-fn"))
          arg (merge (reduce override exec-args overrides) trailing)]
      (let-futures-end)
      (binding [*ns-default* ns-default
                *ns-aliases* ns-aliases]
        ((find-function (qualify f)) arg)))
    (catch clojure.lang.ExceptionInfo e
      (when-not (::refused (ex-data e)) (throw e))
      (binding [*out* *err*] (println (ex-message e)))
      (System/exit 1))))
