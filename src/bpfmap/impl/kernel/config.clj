(ns ^:no-doc bpfmap.impl.kernel.config
  "Reads the options with which the running kernel was built."
  (:require [bpfmap.impl.kernel.procfs :as procfs]
            [clojure.string :as str])
  (:import (java.io ByteArrayInputStream IOException)
           (java.nio.charset StandardCharsets)
           (java.util.zip GZIPInputStream)))

(set! *warn-on-reflection* true)

(defn- read-bytes ^bytes [file]
  (try (procfs/read-bytes file) (catch IOException _ nil)))

(defn- text [^bytes bytes]
  (String. bytes StandardCharsets/UTF_8))

(defn files
  "Returns the files that may have the options of the running kernel."
  []
  [(str "/boot/config-" (procfs/kernel-release)) "/proc/config.gz"])

(defn- read-text []
  (let [[boot proc] (files)]
    (if-let [plain (read-bytes boot)]
      (text plain)
      (when-let [packed (read-bytes proc)]
        (with-open [in (GZIPInputStream. (ByteArrayInputStream. packed))]
          (text (.readAllBytes in)))))))

(defn parse
  "Returns the options in a text as a map of name to text.

      (parse \"CONFIG_HZ=250\\n# CONFIG_X is not set\\n\") ;=> {\"CONFIG_HZ\" \"250\"}"
  [text]
  (into {}
        (keep (fn [line]
                (when-let [[_ name value] (re-matches #"(CONFIG_\w+)=(.*)" line)]
                  [name value])))
        (str/split-lines text)))

(def ^:private known (atom nil))

(defn options
  "Returns the options of the running kernel by name; nil if they cannot be read.

  They are read once, but for a read that failed."
  []
  (or @known (reset! known (some-> (read-text) parse))))
