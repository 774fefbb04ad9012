(ns ^:no-doc bpfmap.metrics.config-file
  "Reads the config of metrics from a file."
  (:require [bpfmap.error :as error]
            [bpfmap.exec.arguments :as arguments]
            [bpfmap.impl.edn :as edn]
            [bpfmap.metrics.config :as config])
  (:import (clojure.lang ExceptionInfo)
           (java.io IOException)
           (java.nio.file Files NoSuchFileException Path)))

(set! *warn-on-reflection* true)

(def ^:private largest "The largest config, in bytes." (* 4 1024 1024))

(defn read-data
  "Returns the EDN in a file, with keywords for symbols.

  Throws `:io` and `:invalid-edn`."
  [file]
  (let [path (Path/of file (make-array String 0))
        content (try
                  (when (< (long largest) (Files/size path))
                    (throw (error/error :io (str "The config " (error/printed file)
                                                 " must be at most " largest " bytes long")
                                        {:bpfmap/file file})))
                  (Files/readString path)
                  (catch IOException e
                    (throw (error/error :io (str "Cannot read the config " (error/printed file))
                                        {:bpfmap/file file
                                         :bpfmap/hint (if (instance? NoSuchFileException e)
                                                        "there is no such file"
                                                        (or (ex-message e) "it cannot be read"))}
                                        e))))]
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
