(ns ^:no-doc bpfmap.impl.object.load-error
  "Makes the errors of loading an object, which name the part that they are about."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.nearest :as nearest]
            [clojure.string :as str])
  (:import (clojure.lang ExceptionInfo)
           (java.util.regex Matcher)))

(set! *warn-on-reflection* true)

(defn invalid
  "Returns the exception for a part of an object that cannot be loaded.

      (throw (invalid [:programs \"count\" :type] \"A program must have a type\" \"set one\"))"
  (^Throwable [path message]
   (invalid path message nil))
  (^Throwable [path message hint]
   (error/error :invalid-value message
                {:bpfmap/op :load :bpfmap/path (mapv error/shown path) :bpfmap/hint hint})))

(defn unknown-name
  "Returns the exception for the name of a part that the object lacks.

      (throw (unknown-name [:only] \"program\" \"cuont\" [\"count\"]))"
  [path what wanted names]
  (invalid path (str "The object has no " what " " (error/printed wanted))
           (if (seq names)
             (nearest/alternatives wanted (sort names))
             (str "it has none"))))

(defn- of-part
  "Returns a message about a part of an object with the name of the part.

  Codecs and specs do not know of which variable or map they speak."
  [message [k named] whole]
  (case k
    :variables (if (= :value (nth whole 2 nil))
                 (str "Value of " named ": " message)
                 message)
    :maps (str/replace-first message #"^The map spec is" (Matcher/quoteReplacement
                                                          (str "The spec of map " named " is")))
    message))

(defn at-path
  "Returns an exception with the path of a part of an object.

  A path that the exception has already continues it."
  ^Throwable [^ExceptionInfo e path]
  (let [data (ex-data e)
        whole (into path (:bpfmap/path data))]
    (doto ^Throwable (ex-info (of-part (ex-message e) path whole)
                              (assoc data
                                     :bpfmap/op :load
                                     :bpfmap/path whole)
                              (or (ex-cause e) e))
      (.setStackTrace (.getStackTrace e)))))

(defmacro in-path
  "Runs body; adds the path of a part of an object to errors.

      (in-path [:variables \"limit\" :value] (encode 7))"
  [path & body]
  `(try
     ~@body
     (catch ExceptionInfo e#
       (throw (at-path e# ~path)))))
