(ns bpfmap.exec.reference
  "The map that a command is about: opened by what names it."
  (:require [bpfmap.core :as bpf]
            [bpfmap.error :as error]
            [bpfmap.rules :as rules]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(defn- with-table
  "Returns an error about a name without the list of candidates in its text: the command line prints them as a table."
  [e]
  (let [{:bpfmap/keys [error candidates hint] :as data} (ex-data e)]
    (error/error error (str/replace (ex-message e) (str ": " hint) "")
                 (assoc data :bpfmap/hint
                        (if (= :ambiguous error)
                          (str "it is the name of " (count candidates) " maps; give the id of one")
                          (str "the kernel keeps only " (pr-str (:name (first candidates))) " of it, and no map has the whole "
                               "name in its BTF or as that of a pin; give the id of one")))
                 e)))

(defn open
  "Opens the map that the `:ref` of a command's options names, with their types. Whoever opens it closes it. Of one that is
  open it is a second handle.

      (with-open [m (open {:ref {:name \"counts\"} :key-type :u32} :read-only)] (bpf/info m))"
  ^java.io.Closeable [{:keys [ref key-type value-type]} access]
  (try
    (if (bpf/bpf-map? ref)
      (bpf/clone ref)
      (bpf/open ref
                (cond-> {:access access}
                  key-type (assoc :key key-type)
                  value-type (assoc :value value-type))))
    (catch ExceptionInfo e
      (throw (if (:bpfmap/candidates (ex-data e)) (with-table e) e)))))

(defn row-of-type
  "What the rules say of a map type: its row of `bpfmap.rules/types`.

      (:per-cpu? (row-of-type :percpu-hash)) ;=> true"
  [type]
  (rules/types type))

(defn row-of
  "What the rules say of the type of an open map: its row of `bpfmap.rules/types`.

      (:per-cpu? (row-of m)) ;=> true"
  [m]
  (row-of-type (:type (bpf/spec m))))
