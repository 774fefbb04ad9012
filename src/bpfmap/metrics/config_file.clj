(ns ^:no-doc bpfmap.metrics.config-file
  "Reads the config of metrics from a file."
  (:require [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.impl.edn :as edn]
            [bpfmap.impl.user-file :as user-file]
            [bpfmap.metrics.config :as config])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(def ^:private largest "The largest config, in bytes." (* 4 1024 1024))

(defn read-data
  "Returns the EDN in a file, with keywords for symbols.

  Throws `:io` and `:invalid-edn`."
  [file]
  (let [content (user-file/text-in {:file file :what "the config" :most largest})]
    (try
      (arguments/with-keywords (edn/read-text content))
      (catch ExceptionInfo e
        (throw (error/error :invalid-edn (str "The config " (error/printed file) " must be EDN")
                            {:bpfmap/file file
                             :bpfmap/hint (:bpfmap/problem (ex-data e) (ex-message e))}
                            e))))))

(defn read-config
  "Returns the checked config in a file, or throws all of its problems."
  [file]
  (let [data (read-data file)
        {:keys [config problems]} (config/checked data)]
    (when (seq problems)
      (throw (config/refusal problems)))
    config))
