(ns ^:no-doc bpfmap.impl.codec.error
  "Errors for values that do not fit their types, with the path of the value."
  (:require [bpfmap.error :as error])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(defn- message [{:bpfmap/keys [path value type] ::keys [what]}]
  (str (when (seq path) (str path ": "))
       (or what (str (error/printed value) " is not a " (error/printed type)))))

(defn- of-data ^Throwable [data cause]
  (error/error :invalid-value (message data) (dissoc data :bpfmap/error ::what) cause))

(defn misfit
  "Returns the exception for a value that does not fit; `expected` is the hint.

      (throw (misfit :u8 [:value] 256 \"it must be an integer from 0 to 255\"))"
  (^Throwable [type path value expected] (misfit type path value expected nil nil))
  (^Throwable [type path value expected what] (misfit type path value expected what nil))
  (^Throwable [type path value expected what cause]
   (of-data {:bpfmap/path (vec path)
             :bpfmap/type (error/shown type)
             :bpfmap/value (error/shown value)
             :bpfmap/hint expected
             ::what what}
            cause)))

(defn deeper
  "Returns the error with k prepended to its path; other exceptions unchanged."
  ^Throwable [^Throwable e path k]
  (let [data (ex-data e)]
    (if (and (instance? ExceptionInfo e)
             (= :invalid-value (:bpfmap/error data))
             (:bpfmap/path data))
      (let [old-path (:bpfmap/path data)
            ;; The rest of the message, after its path and before its hint, stays the same.
            text (ex-message e)
            start (if (seq old-path) (+ 2 (count (str old-path))) 0)
            end (- (count text) (count (:bpfmap/hint data)) 2)]
        (of-data (assoc data
                        :bpfmap/path (into (conj (vec path) k) old-path)
                        ::what (subs text start end))
                 (ex-cause e)))
      e)))
