(ns ^:no-doc bpfmap.impl.feature.btf
  "Probes the running kernel for the kinds of BTF types that it takes.

  Each feature is probed by loading the smallest BTF that has it. A kernel that has all of them
  takes one system call."
  (:require [bpfmap.impl.btf.writer :as writer]
            [bpfmap.impl.kernel.btf :as kernel.btf]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.token :as token]
            [bpfmap.impl.object.loadable-btf :as loadable-btf])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(def ^:private an-int {:kind :int :name "int" :size 4 :bits 32 :signed true})

(def ^:private a-variable {:kind :var :name "v" :type 1 :linkage :global})

(defn- a-section [name]
  {:kind :datasec :name name :size 4 :vars [{:type 2 :offset 0 :size 4}]})

(defn- a-function [linkage]
  [{:kind :func-proto :return 1 :params [{:name "a" :type 1}]}
   {:kind :func :name "f" :type 2 :linkage linkage}])

(def types
  "The types that probe for each feature; type 1 is an int.

  The keys are those of `bpfmap.impl.object.loadable-btf/features`."
  {:func (a-function :static)
   :datasec [a-variable (a-section ".data")]
   :global-func (a-function :global)
   :float [{:kind :float :name "float" :size 4}]
   :decl-tag [a-variable {:kind :decl-tag :name "tag" :type 2 :component -1}]
   :type-tag [{:kind :type-tag :name "tag" :type 1} {:kind :ptr :type 2}]
   :enum64 [{:kind :enum64 :name "e" :size 8 :signed true :values [["E" -1]]}]
   :optional-section [a-variable (a-section "?.data")]
   :attribute [{:kind :type-tag :name "tag" :type 1 :attribute true} {:kind :ptr :type 2}]})

(defn blob
  "Returns the BTF that probes for a feature.

      (blob :float) ;=> a byte array"
  ^bytes [feature]
  (writer/blob (into [an-int] (types feature))))

(defn- shifted
  "Returns records for a place behind others: their ids above 1 are increased by n."
  [records n]
  (let [id #(if (< 1 (long %)) (+ (long %) (long n)) %)]
    (for [record records]
      (cond-> record
        (:type record) (update :type id)
        (:vars record) (update :vars (partial mapv #(update % :type id)))))))

(defn- all-blob
  "Returns the BTF that needs all features at once."
  ^bytes []
  (writer/blob (reduce (fn [records feature]
                         (into records (shifted (types feature) (dec (count records)))))
                       [an-int] (keys loadable-btf/features))))

(defn- takes?
  "Returns true if the kernel takes the BTF.

  Returns false if it does not know a part of it, and throws any other error."
  [bytes ctx]
  (try
    (call/close (token/with-token ctx #(kernel.btf/load bytes % ctx)))
    true
    (catch ExceptionInfo e
      (if (= :EINVAL (:bpfmap/errno (ex-data e)))
        false
        (throw e)))))

(defn probe
  "Returns the set of features that the running kernel has.

  `load?` is a function of BTF that returns true if the kernel takes it.

      (probe (constantly true)) ;=> #{:func :datasec …}"
  [load?]
  (let [features (keys loadable-btf/features)]
    (into #{} (if (load? (all-blob))
                features
                (filter #(load? (blob %)) features)))))

(def ^:private known "The features of the running kernel, once they were needed." (atom nil))

(defn supported
  "Returns the set of BTF features of the running kernel, which is probed once.

  Throws if the kernel refuses BTF for another reason than a type that it does not know, such as a
  missing capability.

      (supported) ;=> #{:func :datasec :global-func :float …}"
  [ctx]
  (or @known
      (reset! known (probe #(takes? % ctx)))))
