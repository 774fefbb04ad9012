(ns ^:no-doc bpfmap.exec.inspect
  "Implements the command `inspect`: a compiled object as data, without privileges."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.nearest :as nearest]
            [bpfmap.object :as object])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(defn- named
  "Returns the program or function of an object with a name."
  [{:keys [programs functions]} name]
  (or (programs name)
      (functions name)
      (throw (error/error :not-found (str "No program or function named " (error/printed name))
                          {:bpfmap/op :inspect
                           :bpfmap/hint (nearest/alternatives
                                         name (sort (concat (keys programs) (keys functions))))}))))

(defn- with-relocations
  "Adds the CO-RE relocations of an object, with their values on this kernel.

  A system without the types of its kernel has no values."
  [{:keys [programs functions] :as o}]
  (if (some (comp seq :core) (concat (vals programs) (vals functions)))
    (try
      (assoc o :relocations (object/relocations o))
      (catch ExceptionInfo e
        (if (#{:not-found :not-supported :permission} (:bpfmap/error (ex-data e)))
          o
          (throw e))))
    o))

(defn inspect
  "Returns a compiled object, or one of its programs, as `bpfmap.object/read` does.

  If it has CO-RE relocations, `:relocations` of the object has their values on this kernel, as
  `bpfmap.object/relocations` does.

      (inspect {:file \"flows.bpf.o\"}) ;=> {:name \"flows\", :maps {…}, :programs {…}, …}
      (inspect {:file \"flows.bpf.o\" :program \"count\"}) ;=> {:name \"count\", :insns […], …}"
  [{:keys [file program]}]
  (let [o (object/read file)]
    (if program (named o program) (with-relocations o))))
