(ns ^:no-doc bpfmap.impl.kernel.tracefs
  "Reads tracefs: the ids of tracepoints, and their names.

  If tracefs is not mounted, it is mounted for the time of a call, where only this process reaches
  it."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.kernel.call :as call]
            [bpfmap.impl.kernel.procfs :as procfs]
            [clojure.string :as str])
  (:import (bpfmap.sys Fd FileSyscalls)
           (java.io IOException)))

(set! *warn-on-reflection* true)

(def ^:private mount-points ["/sys/kernel/tracing" "/sys/kernel/debug/tracing"])

(defn- names
  "Returns the names in a directory; nil if it cannot be read."
  [directory]
  (try
    (procfs/list-names directory)
    (catch IOException _ nil)))

(defn- mount-error ^Throwable [outcome {:keys [op] :as ctx}]
  (let [cause (call/failure "Mounting tracefs" outcome ctx)]
    (error/error (:bpfmap/error (ex-data cause)) "tracefs is not mounted, and cannot be mounted"
                 {:bpfmap/op op
                  :bpfmap/errno (:bpfmap/errno (ex-data cause))
                  :bpfmap/hint (if (= :ENODEV (:bpfmap/errno (ex-data cause)))
                                 "this kernel has no tracefs: it must be built with CONFIG_TRACING"
                                 (str "mount it with `mount -t tracefs tracefs "
                                      "/sys/kernel/tracing`, which needs CAP_SYS_ADMIN"))}
                 cause)))

(defn with-root
  "Calls f with the path of the root of tracefs."
  [f ctx]
  (if-let [root (first (filter #(seq (names (str % "/events"))) mount-points))]
    (f root)
    (let [outcome (FileSyscalls/mount "tracefs")]
      (when (neg? outcome)
        (throw (mount-error outcome ctx)))
      (let [fd (Fd/own outcome)]
        (try
          (f (str "/proc/self/fd/" (.acquire fd)))
          (finally
            (.release fd)
            (call/close fd)))))))

(defn tracepoint-id
  "Returns the id of a tracepoint, or nil if there is none."
  [root category name]
  (try
    (parse-long (str/trim (String. (procfs/read-bytes
                                    (str root "/events/" category "/" name "/id")))))
    (catch IOException _ nil)))

(defn category?
  "Returns true if there are tracepoints of a category."
  [root category]
  (some? (seq (names (str root "/events/" category)))))

(defn tracepoints
  "Returns the names of all tracepoints, as category/name."
  [root]
  (for [category (names (str root "/events"))
        event (names (str root "/events/" category))
        :when (not (#{"enable" "filter"} event))]
    (str category "/" event)))

(defn traceable-functions
  "Returns the functions that ftrace can trace, as a set of names; nil if unknown."
  [root]
  (try
    (into #{} (map #(first (str/split % #"[ \t]" 2)))
          (str/split-lines (String. (procfs/read-bytes
                                     (str root "/available_filter_functions")))))
    (catch IOException _ nil)))
