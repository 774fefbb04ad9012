(ns ^:no-doc bpfmap.impl.object.malformed
  "The error for objects that cannot be read, with the place."
  (:require [bpfmap.error :as error]
            [bpfmap.impl.btf.image :as image])
  (:import (clojure.lang ExceptionInfo)))

(set! *warn-on-reflection* true)

(defn malformed
  "Returns the exception for a malformed object.

  `path` is the place, such as `[:section \"xdp\" :offset 24]`, and `what` the problem.

      (throw (malformed [:section \".maps\" :offset 0] \"the map has no type\"))"
  (^Throwable [path what]
   (malformed path what nil))
  (^Throwable [path what hint]
   (error/error :malformed-object
                (str "Malformed object in " (image/place path) ": " what)
                {:bpfmap/op :read :bpfmap/path path :bpfmap/hint hint})))

(defn in-section
  "Returns the path of an offset in a section.

      (in-section {:name \"xdp\"} 24) ;=> [:section \"xdp\" :offset 24]"
  [section offset]
  [:section (:name section) :offset offset])

(defn of-btf
  "Returns the exception for an error of BTF or ELF as one of the object.

  Any other exception is returned unchanged."
  ^Throwable [^ExceptionInfo e]
  (let [{:bpfmap/keys [path hint] kind :bpfmap/error} (ex-data e)]
    (if (= :malformed-btf kind)
      (error/error :malformed-object (if (= [:elf] path)
                                       (str "Malformed object: " hint)
                                       (str "Malformed object: " (ex-message e)))
                   {:bpfmap/op :read
                    :bpfmap/path (if (= [:elf] path) path (into [:section ".BTF"] path))})
      e)))
